//! Histories by hand: fine ones, and one of each kind of violation.

use std::collections::BTreeMap;

use super::search::Budget;
use super::segment::{Verdict, decide};
use super::*;

mod file;
mod generated;
mod play;
mod property;

fn operation(client: u64, call: Call, (invoked_us, returned_us): (u64, u64), outcome: Outcome) -> Operation {
    Operation { client, key: "k".to_owned(), call, invoked_us, returned_us: Some(returned_us), outcome }
}

fn write(client: u64, value: &str, times: (u64, u64)) -> Operation {
    operation(client, Call::Write(value.to_owned()), times, Outcome::Done)
}

fn read(client: u64, value: Option<&str>, times: (u64, u64)) -> Operation {
    operation(client, Call::Read, times, Outcome::Found(value.map(str::to_owned)))
}

fn delete(client: u64, times: (u64, u64)) -> Operation {
    operation(client, Call::Delete, times, Outcome::Done)
}

fn failed(operation: Operation) -> Operation {
    Operation { outcome: Outcome::Failed, ..operation }
}

fn unknown(operation: Operation) -> Operation {
    Operation { outcome: Outcome::Unknown, ..operation }
}

/// What is to blame; panics if the history is fine.
fn blamed(operations: &[Operation]) -> Vec<Operation> {
    match check(operations) {
        Err(Failure::Violation(violation)) => violation.operations,
        other => panic!("this should be a violation, but is {other:?}"),
    }
}

#[test]
fn an_empty_history_is_fine() {
    assert_eq!(check(&[]), Ok(Checked::default()));
}

#[test]
fn reads_between_writes_are_fine_and_all_is_counted() {
    let history = [
        read(1, None, (0, 1)),
        write(1, "a", (2, 4)),
        read(2, Some("a"), (5, 6)),
        delete(1, (7, 8)),
        read(2, None, (9, 10)),
        failed(write(1, "b", (11, 12))),
        failed(read(2, None, (11, 12))),
        unknown(write(3, "c", (13, 14))),
        read(2, None, (15, 16)),
        Operation { key: "other".to_owned(), ..read(4, None, (3, 4)) },
    ];
    let expected = Checked { reads: 5, writes: 2, failed: 2, unknown: 1, keys: 2, longest_segment: 1 };
    assert_eq!(check(&history), Ok(expected));
}

#[test]
fn a_read_during_a_write_may_see_either_value() {
    let history = |value| [write(1, "a", (0, 1)), write(1, "b", (2, 9)), read(2, value, (3, 4))];
    assert!(check(&history(Some("a"))).is_ok());
    assert!(check(&history(Some("b"))).is_ok());
    assert_eq!(blamed(&history(None)), [write(1, "a", (0, 1)), read(2, None, (3, 4))]);
}

#[test]
fn reads_during_a_write_must_not_go_back() {
    let history =
        [write(1, "a", (0, 1)), write(1, "b", (2, 9)), read(2, Some("b"), (3, 4)), read(3, Some("a"), (5, 6))];
    assert_eq!(blamed(&history), history);
}

#[test]
fn operations_that_touch_in_one_microsecond_overlap() {
    assert!(check(&[write(1, "a", (0, 5)), read(2, None, (5, 6))]).is_ok());
    assert!(check(&[write(1, "a", (0, 5)), read(2, None, (6, 7))]).is_err());
}

#[test]
fn a_stale_read_after_an_acknowledged_write_is_a_violation() {
    let stale = [write(1, "a", (0, 1)), write(1, "b", (2, 3)), read(2, Some("a"), (4, 5))];
    let mut history = stale.to_vec();
    history.extend([read(3, Some("a"), (1, 2)), write(1, "c", (6, 7)), read(2, Some("c"), (8, 9))]);
    assert_eq!(blamed(&history), stale);
}

#[test]
fn a_value_that_comes_back_is_a_violation() {
    let mut history = vec![write(1, "a", (0, 20)), write(2, "b", (0, 20))];
    history.extend([read(3, Some("a"), (1, 2)), read(3, Some("b"), (3, 4))]);
    assert!(check(&history).is_ok());
    history.push(read(3, Some("a"), (5, 6)));
    assert_eq!(blamed(&history), history);
}

#[test]
fn a_read_of_a_write_that_failed_is_a_violation() {
    let history = [write(1, "a", (0, 1)), failed(write(1, "b", (2, 3))), read(2, Some("b"), (4, 5))];
    assert_eq!(blamed(&history), history[1..]);
}

#[test]
fn a_write_that_failed_may_be_tried_again_with_the_same_value() {
    let history = [failed(write(1, "a", (0, 1))), write(1, "a", (2, 3)), read(2, Some("a"), (4, 5))];
    assert!(check(&history).is_ok());
}

#[test]
fn a_value_from_nowhere_or_from_the_future_is_a_violation() {
    assert_eq!(blamed(&[read(1, Some("a"), (0, 1))]), [read(1, Some("a"), (0, 1))]);
    let early = [read(1, Some("a"), (0, 1)), write(2, "a", (2, 3))];
    assert_eq!(blamed(&early), early);
}

/// In each, the read of "absent" may have seen the delete: without it, it would be blamed.
#[test]
fn a_delete_that_may_have_been_seen_stays_with_its_reads() {
    let times = [((2, 3), (4, 20), (5, 6)), ((2, 3), (4, 5), (5, 6)), ((2, 4), (4, 6), (8, 9))];
    for (deleted, written, absent) in times {
        let (first, delete, stale) = (write(1, "a", (0, 1)), delete(1, deleted), read(3, Some("a"), (30, 31)));
        let history = [first.clone(), delete.clone(), write(2, "b", written), read(3, None, absent), stale.clone()];
        assert_eq!(blamed(&history), [first, delete, stale]);
    }
}

#[test]
fn a_delete_that_cannot_have_been_seen_is_not_blamed() {
    let lost = [write(2, "b", (4, 5)), read(3, None, (6, 7))];
    let history = [delete(1, (2, 3)), lost[0].clone(), lost[1].clone(), unknown(delete(4, (8, 9)))];
    assert_eq!(blamed(&history), lost);
}

#[test]
fn a_lost_acknowledged_write_is_a_violation() {
    let history = [write(1, "a", (0, 1)), read(2, None, (2, 3))];
    assert_eq!(blamed(&history), history);
    let deleted = [write(1, "a", (0, 1)), delete(1, (2, 3)), read(2, Some("a"), (4, 5))];
    assert_eq!(blamed(&deleted), deleted);
}

#[test]
fn an_unknown_write_may_take_effect_late_but_only_once() {
    let mut history = vec![unknown(write(1, "late", (0, 1))), write(2, "a", (10, 11)), read(3, Some("a"), (12, 13))];
    history.push(read(3, Some("late"), (14, 15)));
    history.push(write(2, "b", (16, 17)));
    assert!(check(&history).is_ok());
    history.push(read(3, Some("late"), (18, 19)));
    let expected = [&history[0], &history[3], &history[4], &history[5]].map(Clone::clone);
    assert_eq!(blamed(&history), expected);
}

#[test]
fn an_unknown_delete_may_take_effect_late_but_only_once() {
    let mut history = vec![unknown(delete(1, (0, 1))), write(2, "a", (10, 11)), read(3, Some("a"), (12, 13))];
    history.extend([read(3, None, (14, 15)), write(2, "b", (16, 17)), read(3, Some("b"), (18, 19))]);
    assert!(check(&history).is_ok());
    history.push(read(3, None, (20, 21)));
    let core = blamed(&history);
    assert!(core.contains(&history[0]) && core.contains(&history[3]) && core.contains(&history[6]), "{core:?}");
    // With a second one it is fine again, and stays so in any order of the operations.
    history.push(unknown(delete(4, (19, 30))));
    history.reverse();
    assert!(check(&history).is_ok());
}

/// A delete that hangs until 70 keeps it all in one segment.
#[test]
fn one_segment_may_use_several_unknown_deletes_that_began_early_enough() {
    let mut history = vec![delete(1, (0, 70))];
    let times = [("a", 10), ("b", 20), ("c", 30)];
    for (value, began) in times {
        history.extend([write(2, value, (began, began + 1)), read(2, Some(value), (began + 2, began + 3))]);
        history.push(read(2, None, (began + 4, began + 5)));
    }
    history.extend([write(2, "d", (40, 41)), read(2, Some("d"), (42, 43)), read(2, Some("d"), (90, 91))]);
    let with = |deletes: &[u64]| {
        let deletes = (3..).zip(deletes).map(|(client, &began)| unknown(delete(client, (began, began + 1))));
        check(&history.iter().cloned().chain(deletes).collect::<Vec<_>>())
    };
    assert!(with(&[0]).is_err());
    assert!(with(&[0, 50]).is_err());
    assert!(with(&[0, 0]).is_ok());
    assert!(with(&[50, 0, 5]).is_ok());
}

#[test]
fn an_unknown_read_says_nothing() {
    let read = Operation { returned_us: None, ..unknown(operation(1, Call::Read, (2, 3), Outcome::Unknown)) };
    assert!(check(&[write(2, "a", (0, 1)), read]).is_ok());
}

#[test]
fn keys_are_told_apart() {
    let other = |operation| Operation { key: "other".to_owned(), ..operation };
    assert!(check(&[write(1, "a", (0, 1)), other(read(2, None, (2, 3)))]).is_ok());
    let history = [read(3, None, (0, 9)), other(write(1, "a", (0, 1))), other(read(2, None, (2, 3)))];
    let violation = check(&history).expect_err("the write is lost");
    let expected = "key \"other\" is not linearizable: no order explains these\n           \
                    0..1            client 1   write \"a\": ok\n           \
                    2..3            client 2   read: absent";
    assert_eq!(violation.to_string(), expected);
}

#[test]
fn what_is_not_a_history_is_refused() {
    let is_malformed = |history: &[Operation]| matches!(check(history), Err(Failure::Malformed(_)));
    assert!(is_malformed(&[write(1, "a", (0, 1)), unknown(write(1, "a", (2, 3)))]));
    assert!(is_malformed(&[write(1, "a", (3, 2))]));
    assert!(is_malformed(&[Operation { returned_us: None, ..write(1, "a", (3, 4)) }]));
    assert!(is_malformed(&[Operation { call: Call::Read, ..write(1, "a", (3, 4)) }]));
}

/// Chains of overlapping reads of "absent" and deletes never have a quiet moment.
#[test]
fn a_segment_that_is_too_long_is_undecided_and_never_fine() {
    let deletes = (0..600).map(|n| delete(n % 2, (10 * n, 10 * n + 15)));
    let history: Vec<Operation> = deletes.collect();
    let undecided = Undecided { key: "k".to_owned(), segment: 600 };
    assert_eq!(check(&history), Err(Failure::Undecided(undecided)));
}

#[test]
fn a_search_that_costs_too_much_is_undecided_and_never_fine() {
    let history =
        [write(1, "a", (0, 9)), write(2, "b", (0, 9)), read(3, Some("a"), (1, 2)), read(3, Some("b"), (3, 4))];
    let operations: Vec<&Operation> = history.iter().collect();
    assert_eq!(decide(&operations, &Budget::new(1_000)), Verdict::Fine { longest_segment: 1 });
    assert_eq!(decide(&operations, &Budget::new(3)), Verdict::Undecided { segment: 1 });
}

#[test]
fn a_last_value_that_is_acknowledged_or_unknown_is_not_lost() {
    let history = [
        write(1, "a", (0, 1)),
        write(1, "b", (2, 6)),
        write(2, "c", (3, 5)),
        unknown(write(3, "d", (0, 1))),
        failed(write(3, "e", (9, 9))),
    ];
    let lost = |last: Option<&str>| {
        let lost = lost_writes(&history, &BTreeMap::from([("k".to_owned(), last.map(str::to_owned))]));
        lost.into_iter().map(|lost| lost.writes).collect::<Vec<_>>()
    };
    assert!(["b", "c", "d"].iter().all(|last| lost(Some(last)).is_empty()));
    let candidates = [history[1..3].to_vec()];
    assert!([None, Some("a"), Some("e"), Some("x")].iter().all(|&last| lost(last) == candidates));
}

#[test]
fn a_last_value_whose_write_touches_the_next_is_not_lost() {
    let last = BTreeMap::from([("k".to_owned(), Some("a".to_owned()))]);
    assert!(lost_writes(&[write(1, "a", (0, 2)), write(2, "b", (2, 3))], &last).is_empty());
    assert!(!lost_writes(&[write(1, "a", (0, 2)), write(2, "b", (3, 4))], &last).is_empty());
}

#[test]
fn a_key_that_is_not_there_at_the_end_is_absent() {
    let history = [write(1, "a", (0, 1)), Operation { key: "other".to_owned(), ..unknown(write(1, "b", (2, 3))) }];
    let lost = lost_writes(&history, &BTreeMap::new());
    assert_eq!(lost, [Lost { key: "k".to_owned(), found: None, writes: vec![history[0].clone()] }]);
    assert!(lost_writes(&[write(1, "a", (0, 1)), delete(1, (2, 3))], &BTreeMap::new()).is_empty());
}
