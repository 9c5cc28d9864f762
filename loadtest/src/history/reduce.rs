//! Makes the history of a key small without changing whether it is linearizable.
//!
//! What makes a search long are calls that stay open for long, as calls to a paused node do. Strings that are written
//! are all different, so most of those calls are known to have taken effect at a certain time, or not to matter. Each
//! rule below keeps the answer: from an order of one side it makes an order of the other.
//!
//! 1. What failed did not happen, and a read without an answer says nothing: neither is kept.
//! 2. **A value and its reads.** Let `first` be when the first call of those that wrote or read a value returned, and
//!    `last` when the last of them began. The write took effect before `first`, and the next write after `last`.
//!    - `first < last`: the value is there from `first` to `last`, and that is all. The write can be put off until
//!      `first`, as nothing else happens between it and the next write, and every read can be put between `first` and
//!      `last`. So it is a write at `first` and a read at `last`, of no length.
//!    - `last < first`: all calls are open from `last` to `first`. The write can stay where it was, or be put off until
//!      `last` if that is later, with all the reads directly behind it. So it is one write between `last` and `first`
//!      that nobody reads. An unknown write that was read has a `first` like any other. One that was never read can be
//!      left out: nobody sees it missing.
//! 3. **A write that nobody reads** and that can be put directly before another write is hidden by it, and can be left
//!    out: if another write or an acknowledged delete lies within its time.
//! 4. **A read of "absent"** that can be put directly behind another, or behind an acknowledged delete, is not needed:
//!    if such a one lies within its time.
//!
//! An unknown delete is kept as it is: what it writes is not its own, so nobody can tell whether it was read.

use std::collections::HashMap;

use super::{Call, Operation, Outcome};

/// A place in the order of all calls and returns of a key. A call at the time of a return comes before it, so that the
/// two overlap.
pub(super) type Rank = usize;

/// A value as far as the search tells values apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Value {
    Absent,
    /// A string that nobody reads later.
    Unread,
    /// A string that is read, by the number of its write.
    Of(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Write(Value),
    Read(Value),
}

/// Something that takes effect between two moments, or at one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) from: Rank,
    pub(super) to: Rank,
    pub(super) act: Act,
}

/// What is left of a key's history.
#[derive(Debug, Default)]
pub(super) struct Reduced {
    pub(super) steps: Vec<Step>,
    /// When the deletes began that may take effect once at any later time, or never; in order.
    pub(super) unknown_deletes: Vec<Rank>,
}

/// All calls that wrote or read one value.
#[derive(Clone, Copy)]
struct Life {
    write_began: Rank,
    first_return: Rank,
    last_call: Rank,
}

/// Steps, to ask whether one of them lies within some other.
struct Within {
    /// Where steps begin, in order, and where the first ends of those that begin there or later.
    ends: Vec<(Rank, Rank)>,
}

/// What is left of the operations of one key; `None` if a read returned a value that nobody had begun to write.
pub(super) fn reduce(operations: &[&Operation]) -> Option<Reduced> {
    let spans = spans(operations);
    let (mut reduced, lives) = sort(operations, &spans)?;
    for (number, life) in lives.into_iter().enumerate() {
        if life.first_return < life.write_began {
            return None;
        }
        if life.first_return < life.last_call {
            let at = |rank, act| Step { from: rank, to: rank, act };
            reduced.steps.push(at(life.first_return, Act::Write(Value::Of(number))));
            reduced.steps.push(at(life.last_call, Act::Read(Value::Of(number))));
        } else if life.first_return < Rank::MAX {
            // All others are unknown and were never read.
            let act = Act::Write(Value::Unread);
            reduced.steps.push(Step { from: life.last_call, to: life.first_return, act });
        }
    }
    leave_out(&mut reduced);
    Some(reduced)
}

/// From where to where each operation may take effect.
fn spans(operations: &[&Operation]) -> Vec<(Rank, Rank)> {
    let mut moments: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * operations.len());
    for (index, operation) in operations.iter().enumerate() {
        moments.push((operation.invoked_us, false, index));
        moments.extend(operation.acknowledged_us().map(|returned_us| (returned_us, true, index)));
    }
    moments.sort_unstable();
    let mut spans = vec![(0, Rank::MAX); operations.len()];
    for (rank, (_, is_return, index)) in moments.into_iter().enumerate() {
        if is_return {
            spans[index].1 = rank;
        } else {
            spans[index].0 = rank;
        }
    }
    spans
}

/// Deletes and reads of "absent" as they are, and the lives of the strings; `None` if a read saw one that nobody wrote.
fn sort(operations: &[&Operation], spans: &[(Rank, Rank)]) -> Option<(Reduced, Vec<Life>)> {
    let mut reduced = Reduced::default();
    let mut lives = Vec::new();
    let mut numbers = HashMap::new();
    for (operation, &(from, to)) in operations.iter().zip(spans) {
        match (&operation.call, &operation.outcome) {
            (Call::Write(value), Outcome::Done | Outcome::Unknown) => {
                numbers.insert(value.as_str(), lives.len());
                lives.push(Life { write_began: from, first_return: to, last_call: from });
            }
            (Call::Delete, Outcome::Done) => reduced.steps.push(Step { from, to, act: Act::Write(Value::Absent) }),
            (Call::Delete, Outcome::Unknown) => reduced.unknown_deletes.push(from),
            (Call::Read, Outcome::Found(None)) => reduced.steps.push(Step { from, to, act: Act::Read(Value::Absent) }),
            _ => {}
        }
    }
    for (operation, &(from, to)) in operations.iter().zip(spans) {
        if let Some(Some(value)) = operation.found() {
            let life = &mut lives[*numbers.get(value)?];
            life.first_return = life.first_return.min(to);
            life.last_call = life.last_call.max(from);
        }
    }
    reduced.unknown_deletes.sort_unstable();
    Some((reduced, lives))
}

/// Rules 3 and 4. That a step within another is itself left out does no harm: something that is kept lies within it.
fn leave_out(reduced: &mut Reduced) {
    let writes = Within::new(reduced.steps.iter().filter(|step| matches!(step.act, Act::Write(_))));
    let absences = Within::new(
        reduced.steps.iter().filter(|step| matches!(step.act, Act::Write(Value::Absent) | Act::Read(Value::Absent))),
    );
    reduced.steps.retain(|step| match step.act {
        Act::Write(Value::Unread) => !writes.any_in(step),
        Act::Read(Value::Absent) => !absences.any_in(step),
        Act::Write(_) | Act::Read(_) => true,
    });
}

impl Within {
    fn new<'a>(steps: impl Iterator<Item = &'a Step>) -> Self {
        let mut ends: Vec<(Rank, Rank)> = steps.map(|step| (step.from, step.to)).collect();
        ends.sort_unstable();
        let mut first = Rank::MAX;
        for (_, end) in ends.iter_mut().rev() {
            first = first.min(*end);
            *end = first;
        }
        Self { ends }
    }

    fn any_in(&self, step: &Step) -> bool {
        let later = self.ends.partition_point(|&(from, _)| from <= step.from);
        self.ends.get(later).is_some_and(|&(_, first_end)| first_end < step.to)
    }
}
