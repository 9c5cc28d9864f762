//! Finds the few operations that are to blame.
//!
//! What is taken away never makes a history worse: without some reads, without a string and all its reads, or without a
//! delete that no read can have seen, a linearizable history stays linearizable. So what is left and still has no order
//! is a proof of its own.

use std::collections::HashSet;

use super::search::Budget;
use super::segment::{Verdict, decide};
use super::{Call, Operation, Outcome};

/// What the search for the smallest may cost in all. After that the smallest so far is shown.
const COPIES_MAX: usize = 100_000_000;

/// Operations of the key that have no order either, in the order of their calls; none can be taken away if the
/// budget suffices. A failed write whose value was read is added.
///
/// Requires: `operations` are of one key and [`decide`] says that they are impossible.
pub(super) fn shrink(operations: &[&Operation]) -> Vec<Operation> {
    let mut rest: Vec<&Operation> = operations.iter().copied().filter(|operation| says_something(operation)).collect();
    rest.sort_by_key(|operation| operation.invoked_us);
    let budget = Budget::new(COPIES_MAX);
    let mut chunk = rest.len().div_ceil(2);
    while chunk > 0 && !budget.is_spent() {
        let mut is_smaller = false;
        let mut start = 0;
        while start < rest.len() && !budget.is_spent() {
            let less = without(&rest, start, chunk);
            if less.len() < rest.len() && decide(&less, &budget) == Verdict::Impossible {
                rest = less;
                is_smaller = true;
            } else {
                start += chunk;
            }
        }
        if !is_smaller || chunk > 1 {
            chunk /= 2;
        }
    }
    let found: HashSet<&str> = rest.iter().filter_map(|operation| operation.found().flatten()).collect();
    let is_failed_source = |operation: &&&Operation| match &operation.call {
        Call::Write(value) => operation.outcome == Outcome::Failed && found.contains(value.as_str()),
        Call::Read | Call::Delete => false,
    };
    rest.extend(operations.iter().filter(is_failed_source));
    rest.sort_by_key(|operation| operation.invoked_us);
    rest.into_iter().cloned().collect()
}

fn says_something(operation: &Operation) -> bool {
    operation.stored().is_some() || operation.found().is_some()
}

/// `operations` without a chunk of them, as far as they can go, and without the reads of the strings that go.
fn without<'a>(operations: &[&'a Operation], start: usize, chunk: usize) -> Vec<&'a Operation> {
    let in_chunk = |index| (start..start + chunk).contains(&index);
    let gone: HashSet<&str> =
        operations.iter().skip(start).take(chunk).filter_map(|operation| operation.stored().flatten()).collect();
    let is_read_of_gone = |operation: &Operation| operation.found().flatten().is_some_and(|value| gone.contains(value));
    let stays = |(index, operation): &(usize, &&Operation)| {
        (!in_chunk(*index) || operation.call == Call::Delete) && !is_read_of_gone(operation)
    };
    let (indices, mut rest): (Vec<usize>, Vec<&Operation>) = operations.iter().enumerate().filter(stays).unzip();
    for (place, index) in indices.into_iter().enumerate().rev() {
        if in_chunk(index) && !may_be_seen(rest[place], &rest) {
            rest.remove(place);
        }
    }
    rest
}

/// Whether a read of "absent" can have seen the delete: it returned after the delete began, and not all of another
/// write lies between the two.
fn may_be_seen(delete: &Operation, operations: &[&Operation]) -> bool {
    let is_behind = |write: &&&Operation| delete.acknowledged_us().is_some_and(|us| us < write.invoked_us);
    let done = operations.iter().filter(|operation| operation.outcome == Outcome::Done);
    let hidden_us = done.filter(is_behind).filter_map(|write| write.acknowledged_us()).min();
    let mut reads = operations.iter().filter(|operation| operation.found() == Some(None));
    reads.any(|read| {
        let is_later = read.acknowledged_us() >= Some(delete.invoked_us);
        is_later && hidden_us.is_none_or(|hidden_us| read.invoked_us <= hidden_us)
    })
}
