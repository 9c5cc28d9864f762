//! What clients have asked for and been told, key by key, for the check that their reads are fresh.

use std::fmt;
use std::time::Duration;

use crate::database::Value;
use crate::world::{KEYS_PER_SHARD, N_KEYS};

/// Ends at no time: it may yet be done.
pub(crate) const OPEN: u64 = u64::MAX;

/// A read that was answered, or a write that may have been done. Moments are numbers that only rise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Op {
    pub(crate) is_write: bool,
    pub(crate) value: Value,
    pub(crate) began: u64,
    /// [`OPEN`]: its outcome is unknown.
    pub(crate) ended: u64,
    /// When it began and ended in virtual time, for whoever looks into a violation.
    pub(crate) real: (Duration, Duration),
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = if self.is_write { "write" } else { "read" };
        write!(f, "{what} of {} [{:?}, ", self.value, self.real.0)?;
        if self.ended == OPEN { write!(f, "unknown)") } else { write!(f, "{:?}]", self.real.1) }
    }
}

/// How much was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    /// Of the reads: past the owner.
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) acknowledged: u64,
    pub(crate) unknown: u64,
    pub(crate) not_applied: u64,
    /// Shards that were handed over with their entries.
    pub(crate) warm: u64,
    /// And without.
    pub(crate) cold: u64,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.reads += other.reads;
        self.passed += other.passed;
        self.failed += other.failed;
        self.acknowledged += other.acknowledged;
        self.unknown += other.unknown;
        self.not_applied += other.not_applied;
        self.warm += other.warm;
        self.cold += other.cold;
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reads, passed, failed, acknowledged, unknown, not_applied, warm, cold } = self;
        write!(f, "{reads} reads ({passed} past the owner), {failed} failed; ")?;
        write!(f, "writes: {acknowledged} acknowledged, {unknown} of unknown outcome, {not_applied} not applied; ")?;
        write!(f, "shards handed over: {warm} warm, {cold} cold")
    }
}

/// All that clients know.
#[derive(Debug)]
pub(crate) struct History {
    keys: [Vec<Op>; N_KEYS],
    moment: u64,
    pub(crate) counts: Counts,
}

impl History {
    pub(crate) fn new() -> Self {
        Self { keys: std::array::from_fn(|_| Vec::new()), moment: 0, counts: Counts::default() }
    }

    /// A moment later than any before.
    pub(crate) const fn moment(&mut self) -> u64 {
        self.moment += 1;
        self.moment
    }

    pub(crate) fn add(&mut self, key: usize, op: Op) {
        match (op.is_write, op.ended) {
            (false, _) => self.counts.reads += 1,
            (true, OPEN) => self.counts.unknown += 1,
            (true, _) => self.counts.acknowledged += 1,
        }
        self.keys[key].push(op);
    }

    /// The operations of keys that clients alone change.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (usize, &[Op])> {
        let keys = self.keys.iter().map(Vec::as_slice).enumerate();
        keys.filter(|(key, _)| key % KEYS_PER_SHARD < KEYS_PER_SHARD - 1)
    }
}
