//! Keys and values, and the order in which a load asks for them.

use rand::SeedableRng;
use rand::rngs::StdRng;

use super::REGION;
use crate::scenario::Scenario;

/// Keys that are in every store before anything is measured.
pub(super) const N_KEYS: u32 = 10_000;
/// The values of one store take no more than this: fewer keys when they are long.
const STORE_BYTES_MAX: usize = 128 << 20;
/// Requests of a walk before it begins again.
const WALK: usize = 100_000;
/// One request in so many is for a key that nobody has asked for.
const MISS_EVERY: usize = 20;

/// How often a key is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// Few keys by many: Zipf with exponent 0.99.
    Zipf,
    /// Each as often as any other.
    Uniform,
}

/// A key of 16 bytes.
pub(super) fn key(number: u32) -> String {
    format!("key-{number:012}")
}

/// Where every set-up is asked for it.
pub(super) fn path(number: u32) -> String {
    format!("/{REGION}/{}", key(number))
}

/// Keys that are in every store when values have `size` bytes: the numbers 1 to this.
pub(super) fn n_keys(size: usize) -> u32 {
    u32::try_from(STORE_BYTES_MAX / size).map_or(N_KEYS, |fit| fit.clamp(1, N_KEYS))
}

/// Makes values: text, another for each key.
#[derive(Debug)]
pub(super) struct Values {
    text: String,
    size: usize,
}

impl Values {
    pub(super) fn new(size: usize) -> Self {
        let mut chance = fastrand::Rng::with_seed(1);
        Self { text: std::iter::repeat_with(|| chance.alphanumeric()).take(size + 4096).collect(), size }
    }

    pub(super) fn of(&self, number: u32) -> &str {
        let from = number as usize % 4096;
        &self.text[from..from + self.size]
    }
}

/// The keys of a load, one after the other; the same for the same `seed`.
pub(super) fn walk(pattern: Pattern, n_keys: u32, seed: u64) -> Vec<u32> {
    let scenario = match pattern {
        Pattern::Zipf => Scenario::ReadMostly,
        Pattern::Uniform => Scenario::Uniform,
    };
    let (keys, mut chance) = (scenario.keys(n_keys.into()), StdRng::seed_from_u64(seed));
    let draw = || u32::try_from(keys.draw(&mut chance)).expect("a key up to n_keys");
    std::iter::repeat_with(draw).take(WALK).collect()
}

/// A walk of `len` keys where one in twenty is fresh: `fresh` on.
pub(super) fn walk_with_misses(walk: &[u32], len: usize, fresh: u32) -> Vec<u32> {
    let known = walk.iter().copied().cycle();
    let mut fresh = fresh..;
    let pick = |(at, key): (usize, u32)| {
        let is_miss = at % MISS_EVERY == MISS_EVERY - 1;
        if is_miss { fresh.next().unwrap_or(key) } else { key }
    };
    known.take(len).enumerate().map(pick).collect()
}

/// How many fresh keys such a walk has.
pub(super) fn n_fresh(len: usize) -> u32 {
    u32::try_from(len / MISS_EVERY).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_sixteen_bytes_and_a_value_its_size() {
        assert_eq!(key(42), "key-000000000042");
        let values = Values::new(100);
        assert!(values.of(1).len() == 100 && values.of(1) != values.of(2) && values.of(4096).len() == 100);
    }

    #[test]
    fn long_values_have_fewer_keys() {
        assert_eq!((n_keys(100), n_keys(1024), n_keys(64 << 10)), (10_000, 10_000, 2048));
    }

    #[test]
    fn a_walk_is_the_same_each_time_and_stays_within_the_keys() {
        let zipf = walk(Pattern::Zipf, 1000, 1);
        assert!(zipf == walk(Pattern::Zipf, 1000, 1) && zipf.iter().all(|key| (1..=1000).contains(key)));
        assert_ne!(zipf, walk(Pattern::Uniform, 1000, 1));
    }

    #[test]
    fn one_key_in_twenty_is_fresh_and_none_comes_twice() {
        let walk = walk_with_misses(&[1, 2, 3], 100, 1000);
        let fresh: Vec<u32> = walk.iter().copied().filter(|key| *key >= 1000).collect();
        assert_eq!(fresh, [1000, 1001, 1002, 1003, 1004]);
        assert_eq!((walk.len(), n_fresh(100)), (100, 5));
    }
}
