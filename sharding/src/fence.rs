//! The fence of a shard: what a database compares before it lets a write through.
//!
//! A database that is written to keeps one token for each shard. A new owner raises it before it loads or writes anything
//! of the shard, and a write goes through only while the token is still its own. So a write that was sent long ago, by an
//! owner that is deposed or by this one, and is still on its way, cannot land any more.

use std::fmt;

use crate::epoch::{Epoch, Term};

/// Whose writes of a shard go through: those of the owner since this epoch, under the last number that it has raised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token {
    /// Since when the owner owns the shard.
    pub since: Epoch,
    /// Rises when the outcome of a write is unknown, so that this one cannot land later.
    pub n: u64,
}

/// The numbers that one life of a node gives to its fences. They only rise, and another life has others, but for one
/// chance in four billion: when all clocks were set back, two lives may own a shard since the same epoch, and what is
/// under way for the one must not go through for the other.
#[derive(Clone, Copy, Debug)]
pub struct Numbers {
    first: u64,
    last: u64,
}

impl Numbers {
    /// Those of a life for which `chance` was drawn at its start.
    #[must_use]
    pub const fn new(chance: u32) -> Self {
        let first = (chance as u64) << 32;
        Self { first, last: first }
    }

    /// The next one.
    pub const fn draw(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// Whether this life has given it.
    #[must_use]
    pub const fn have_given(&self, n: u64) -> bool {
        self.first < n && n <= self.last
    }
}

/// Hexadecimal digits of a token.
const DIGITS: usize = 52;

/// Digits of the same length, so that texts are in the order of tokens.
impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Epoch { term, seq } = self.since;
        write!(f, "{:016x}{:04x}{seq:016x}{:016x}", term.counter, term.seed, self.n)
    }
}

impl Token {
    /// Reads a token as it is written; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != DIGITS || !text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return None;
        }
        let number = |from, to| u64::from_str_radix(text.get(from..to)?, 16).ok();
        let seed = u16::from_str_radix(text.get(16..20)?, 16).ok()?;
        let term = Term { counter: number(0, 16)?, seed };
        Some(Self { since: Epoch { term, seq: number(20, 36)? }, n: number(36, 52)? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn token((counter, seed, seq, n): (u64, u16, u64, u64)) -> Token {
        Token { since: Epoch { term: Term { counter, seed }, seq }, n }
    }

    #[test]
    fn a_token_is_written_as_databases_keep_it() {
        let text = "0000019f00000000000200000000000000030000000000000004";
        assert_eq!(token((0x19f_0000_0000, 2, 3, 4)).to_string(), text);
        for other in ["", "0", &text[1..], &text.to_uppercase(), &text.replace('f', "g"), &format!("{text}0")] {
            assert_eq!(Token::parse(other), None, "{other:?}");
        }
    }

    #[test]
    fn two_lives_give_different_numbers() {
        let (mut one, mut other) = (Numbers::new(7), Numbers::new(8));
        let (first, second, foreign) = (one.draw(), one.draw(), other.draw());
        assert!(first < second && one.have_given(first) && one.have_given(second));
        assert!(!one.have_given(foreign) && !one.have_given(second + 1) && !other.have_given(first));
    }

    proptest! {
        #[test]
        fn texts_are_in_the_order_of_tokens(one: (u64, u16, u64, u64), other: (u64, u16, u64, u64)) {
            let (one, other) = (token(one), token(other));
            prop_assert_eq!(Token::parse(&one.to_string()), Some(one));
            prop_assert_eq!(one.to_string().cmp(&other.to_string()), one.cmp(&other));
        }
    }
}
