//! A database that is written to: its values, and a fence for each shard. It does not know who is alive: what was sent to
//! it lands.

use std::collections::BTreeMap;

use sharding::fence::Token;
use sharding::membership::Incarnation;

use crate::world::{KEYS_PER_SHARD, N_KEYS, N_SHARDS};

/// What is kept of a key: the number of the write that left it; 0 before the first. A removal is a write like another,
/// so that no two leave the same.
pub(crate) type Value = u64;

/// What a node asks of the database.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    Load {
        key: usize,
    },
    /// Done only while the fence of the key's shard has this token.
    Write {
        key: usize,
        value: Value,
        token: Token,
    },
    /// Raises fences of shards.
    Raise(Vec<(usize, Token)>),
}

/// What it answers.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Loaded(Value),
    Written,
    /// Not written: the fence has another token.
    Fenced,
    /// For each shard what was asked for, and the token of the fence where that is higher.
    Raised(Vec<(usize, Token, Option<Token>)>),
}

/// An operation on its way.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    operation: Operation,
    /// Whether the fence let it through when it began.
    passed: bool,
}

#[derive(Debug)]
pub(crate) struct Database {
    values: [Value; N_KEYS],
    fences: [Token; N_SHARDS as usize],
    /// Who has raised each fence.
    raised_by: [Option<Incarnation>; N_SHARDS as usize],
    /// Two lives have raised a fence to the same token: the writes of one go through for the other.
    pub(crate) shared: Option<(usize, Token)>,
    /// What was written, in this order.
    places: BTreeMap<Value, u64>,
    /// A write looks at the fence as it was when it began, not as it is when it lands: a mistake.
    looks_early: bool,
}

impl Database {
    pub(crate) fn new(looks_early: bool) -> Self {
        Self {
            values: [0; N_KEYS],
            fences: [Token::default(); N_SHARDS as usize],
            raised_by: [None; N_SHARDS as usize],
            shared: None,
            places: BTreeMap::new(),
            looks_early,
        }
    }

    pub(crate) fn begin(&self, operation: Operation) -> Sent {
        let passed = self.lets_through(&operation);
        Sent { operation, passed }
    }

    fn lets_through(&self, operation: &Operation) -> bool {
        match operation {
            Operation::Write { key, token, .. } => self.fences[key / KEYS_PER_SHARD] == *token,
            Operation::Load { .. } | Operation::Raise(_) => true,
        }
    }

    pub(crate) fn land(&mut self, from: Incarnation, sent: Sent) -> Answer {
        let passes = if self.looks_early { sent.passed } else { self.lets_through(&sent.operation) };
        match sent.operation {
            Operation::Load { key } => Answer::Loaded(self.values[key]),
            Operation::Write { .. } if !passes => Answer::Fenced,
            Operation::Write { key, value, .. } => {
                self.change(key, value);
                Answer::Written
            }
            Operation::Raise(tokens) => {
                Answer::Raised(tokens.into_iter().map(|fence| self.raise(from, fence)).collect())
            }
        }
    }

    fn raise(&mut self, from: Incarnation, (shard, token): (usize, Token)) -> (usize, Token, Option<Token>) {
        let fence = &mut self.fences[shard];
        let higher = (*fence > token).then_some(*fence);
        if *fence == token && self.raised_by[shard] != Some(from) {
            self.shared = Some((shard, token));
        }
        if *fence < token {
            (*fence, self.raised_by[shard]) = (token, Some(from));
        }
        (shard, token, higher)
    }

    /// Sets a value, whoever asks for it. Gives its place in the order of all.
    pub(crate) fn change(&mut self, key: usize, value: Value) -> u64 {
        self.values[key] = value;
        let place = self.places.len() as u64 + 1;
        self.places.insert(value, place);
        place
    }

    pub(crate) fn fence(&self, shard: usize) -> Token {
        self.fences[shard]
    }

    /// The place of a value in the order of all; 0: it has none.
    pub(crate) fn place(&self, value: Value) -> u64 {
        self.places.get(&value).copied().unwrap_or(0)
    }
}
