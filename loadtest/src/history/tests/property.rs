//! The checker against stateright's tester, which knows nothing of reductions, segments and shrinking.

use std::cell::Cell;

use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

use super::play::{End, Sketch, What, play};
use super::*;

/// Histories that are tried.
const CASES: u32 = 6_000;

/// Whether the operations of one key are linearizable, told to the tester as they are.
fn is_linearizable(operations: &[Operation]) -> bool {
    let mut moments: Vec<(u64, bool, usize)> = Vec::new();
    for (index, operation) in operations.iter().enumerate() {
        if operation.stored().is_some() || operation.found().is_some() {
            moments.push((operation.invoked_us, false, index));
            moments.extend(operation.acknowledged_us().map(|returned_us| (returned_us, true, index)));
        }
    }
    moments.sort_unstable();
    let mut tester = LinearizabilityTester::new(Register(None));
    for (_, is_return, index) in moments {
        let operation = &operations[index];
        // After an unknown outcome a client goes on as another: an unknown operation has a thread for itself.
        let thread = (operation.client, (operation.outcome == Outcome::Unknown).then_some(index));
        let told = match (is_return, &operation.call, &operation.outcome) {
            (false, Call::Read, _) => tester.on_invoke(thread, RegisterOp::Read),
            (false, Call::Write(value), _) => tester.on_invoke(thread, RegisterOp::Write(Some(value.clone()))),
            (false, Call::Delete, _) => tester.on_invoke(thread, RegisterOp::Write(None)),
            (true, _, Outcome::Found(value)) => tester.on_return(thread, RegisterRet::ReadOk(value.clone())),
            (true, ..) => tester.on_return(thread, RegisterRet::WriteOk),
        };
        told.expect("a client has one operation at a time");
    }
    tester.is_consistent()
}

fn sketches() -> impl Strategy<Value = Vec<Sketch>> {
    let what = prop_oneof![4 => Just(What::Read), 2 => Just(What::Write), 2 => Just(What::Delete)];
    let end = prop_oneof![
        8 => Just(End::Acknowledged),
        1 => Just(End::Failed),
        1 => Just(End::UnknownDone),
        1 => Just(End::UnknownNever),
    ];
    // Long calls are rare, as in life.
    let length_us = prop_oneof![4 => 0..6_u64, 1 => 0..30_u64];
    let sketch = (0..4_u64, what, 1..5_u64, length_us, 0..20_u64, end, weighted(0.3, 0..5_usize)).prop_map(
        |(client, what, gap_us, length_us, effect_us, end, lie)| {
            let effect_us = if end == End::Acknowledged { effect_us % (length_us + 1) } else { effect_us };
            Sketch { client, key: 0, what, gap_us, length_us, effect_us, end, lie }
        },
    );
    vec(sketch, 2..14)
}

#[test]
fn the_checker_agrees_with_the_plain_tester_and_blames_what_has_no_order() {
    let (fine, wrong) = (Cell::new(0), Cell::new(0));
    let mut runner = TestRunner::new(Config { cases: CASES, failure_persistence: None, ..Config::default() });
    let result = runner.run(&sketches(), |sketches| {
        let operations = play(&sketches);
        let expected = is_linearizable(&operations);
        match check(&operations) {
            Ok(_) => {
                prop_assert!(expected, "there is no order for {operations:#?}");
                fine.set(fine.get() + 1);
            }
            Err(Failure::Violation(violation)) => {
                prop_assert!(!expected, "there is an order for {operations:#?}");
                prop_assert!(!is_linearizable(&violation.operations), "this has an order: {violation}");
                wrong.set(wrong.get() + 1);
            }
            Err(failure) => prop_assert!(false, "{failure}"),
        }
        Ok(())
    });
    result.expect("the two agree");
    assert!(fine.get() > CASES / 4 && wrong.get() > CASES / 8, "{} fine, {} wrong", fine.get(), wrong.get());
}
