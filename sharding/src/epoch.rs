//! Which of two maps is newer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One life of a coordinator: the ballot with which it became one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "(u64, u16)", from = "(u64, u16)")]
pub struct Term {
    /// Never goes back.
    pub counter: u64,
    /// The seed's ordinal: makes two terms of the same counter differ.
    pub seed: u16,
}

impl From<(u64, u16)> for Term {
    fn from((counter, seed): (u64, u16)) -> Self {
        Self { counter, seed }
    }
}

impl From<Term> for (u64, u16) {
    fn from(term: Term) -> Self {
        (term.counter, term.seed)
    }
}

/// Rises with every map; the larger wins. No process acts on an epoch older than one that it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// Who made the map.
    pub term: Term,
    /// Which of its maps.
    pub seq: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}/{}", self.term.counter, self.term.seed, self.seq)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_term_counts_before_the_sequence() {
        let epoch = |counter, seed, seq| Epoch { term: Term { counter, seed }, seq };
        assert!(epoch(2, 0, 1) > epoch(1, 9, 99));
        assert!(epoch(1, 1, 1) > epoch(1, 0, 99));
        assert!(epoch(1, 0, 2) > epoch(1, 0, 1));
        assert!(epoch(1, 0, 1) > Epoch::default());
    }
}
