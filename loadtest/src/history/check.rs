//! Whether a history is linearizable.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::panic;
use std::thread;

use serde::Serialize;

use super::search::Budget;
use super::segment::{SEGMENT_MAX, Verdict, decide};
use super::shrink::shrink;
use super::{Call, Operation, Outcome};

/// The search calls itself for each step of a segment, with frames of up to some kilobytes when not optimised. Only
/// what is used is ever committed.
const STACK_BYTES: usize = 256 << 20;

/// What the search for the order of one key may cost. Above it the key is undecided.
const COPIES_MAX: usize = 100_000_000;

/// What a history that is linearizable consists of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Reads that were answered.
    pub reads: usize,
    /// Writes and deletes that were acknowledged.
    pub writes: usize,
    /// Operations of any kind that surely did not happen.
    pub failed: usize,
    /// Operations of any kind of which that is not known.
    pub unknown: usize,
    /// Keys that any operation was about.
    pub keys: usize,
    /// Steps of the longest segment that had to be searched, after all that is known without a search was left out.
    pub longest_segment: usize,
}

/// Why a history was not found to be linearizable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// It is not.
    #[error(transparent)]
    Violation(#[from] Violation),
    /// It may be, but no key was found that is not.
    #[error(transparent)]
    Undecided(#[from] Undecided),
    /// It is not a history.
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// A key whose operations have no order in which a register could have done them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Violation {
    /// The register.
    pub key: String,
    /// The fewest of its operations that already have no order, in the order of their calls; and a failed write of a
    /// value that was read.
    pub operations: Vec<Operation>,
}

/// A key for which the search was given up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "key {key:?} is undecided: {segment} steps without a quiet moment are more than {SEGMENT_MAX} or too hard to \
     search; use more keys, fewer clients or fewer deletes"
)]
pub struct Undecided {
    /// The register.
    pub key: String,
    /// Steps in the segment that was too hard.
    pub segment: usize,
}

/// An operation that cannot be, so nothing can be said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is not a history: {reason}: key {:?} {operation}", operation.key)]
pub struct Malformed {
    /// What is wrong.
    pub reason: &'static str,
    /// With what.
    pub operation: Operation,
}

/// Whether every key of the history is linearizable as a register that is absent at first.
///
/// The order of `operations` does not matter, nor does which client made a call: a client's calls do not overlap, so
/// the times say it all.
///
/// # Errors
///
/// A key is not linearizable; or none is found that is not but one takes too long; or the history makes no sense.
pub fn check(operations: &[Operation]) -> Result<Checked, Failure> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = BTreeMap::new();
    for operation in operations {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    by_key.values().try_for_each(|operations| is_well_formed(operations))?;
    let longest_segment = thread::scope(|scope| {
        let checker = thread::Builder::new().name("checker".to_owned()).stack_size(STACK_BYTES);
        let checker = checker.spawn_scoped(scope, || check_keys(&by_key)).expect("the system has a thread for us");
        checker.join().unwrap_or_else(|panicked| panic::resume_unwind(panicked))
    })?;
    let count = |is: fn(&Operation) -> bool| operations.iter().filter(|operation| is(operation)).count();
    Ok(Checked {
        reads: count(|operation| operation.found().is_some()),
        writes: count(|operation| operation.outcome == Outcome::Done),
        failed: count(|operation| operation.outcome == Outcome::Failed),
        unknown: count(|operation| operation.outcome == Outcome::Unknown),
        keys: by_key.len(),
        longest_segment,
    })
}

/// The longest segment, if all keys are fine. A violation anywhere weighs more than a key that is undecided.
fn check_keys(by_key: &BTreeMap<&str, Vec<&Operation>>) -> Result<usize, Failure> {
    let mut undecided = None;
    let mut longest = 0;
    for (&key, operations) in by_key {
        match decide(operations, &Budget::new(COPIES_MAX)) {
            Verdict::Fine { longest_segment } => longest = longest.max(longest_segment),
            Verdict::Impossible => {
                return Err(Violation { key: key.to_owned(), operations: shrink(operations) }.into());
            }
            Verdict::Undecided { segment } => undecided = Some(Undecided { key: key.to_owned(), segment }),
        }
    }
    undecided.map_or(Ok(longest), |undecided| Err(undecided.into()))
}

fn is_well_formed(operations: &[&Operation]) -> Result<(), Malformed> {
    let mut values = HashSet::new();
    for &operation in operations {
        let malformed = |reason| Err(Malformed { reason, operation: operation.clone() });
        let Operation { call, invoked_us, returned_us, outcome, .. } = operation;
        if !outcome.answers(call) {
            return malformed("such a call cannot end so");
        }
        if matches!(outcome, Outcome::Done | Outcome::Found(_)) && returned_us.is_none() {
            return malformed("it was answered, but when?");
        }
        if returned_us.is_some_and(|returned_us| returned_us < *invoked_us) {
            return malformed("it returned before it began");
        }
        // What failed never happened, so it may be tried again with the same value.
        if let (Call::Write(value), Outcome::Done | Outcome::Unknown) = (call, outcome)
            && !values.insert(value)
        {
            return malformed("another write to the key has the same value");
        }
    }
    Ok(())
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {:?} is not linearizable: no order explains these", self.key)?;
        self.operations.iter().try_for_each(|operation| write!(f, "\n{operation}"))
    }
}
