//! The simulation finds what goes wrong without each of the rules; else it would prove nothing.

use std::time::Duration;

use sharding::times::{Rules, Times};

use crate::events::Weather;
use crate::faults::{Plan, run};

/// Every planted fault is found within so many runs; the floor that is spent again takes thousands, all others less than 200.
const RUNS_MAX: u64 = 20_000;

fn is_found(what: &str, rules: Rules, plan: impl Fn(Plan) -> Plan) {
    for seed in 1..=RUNS_MAX {
        let times = Times { rules, ..Times::default() };
        let plan = plan(Plan { times, pause: Duration::from_millis(300), ..Plan::random(seed) });
        if let Err(violation) = run(seed, &plan)
            && ["I1", "I2", "I4", "both coordinate"].iter().any(|promise| violation.contains(promise))
        {
            println!("without {what}: run {seed}: {violation}");
            return;
        }
    }
    panic!("{RUNS_MAX} runs without {what} found nothing");
}

#[test]
fn an_acceptor_that_votes_at_once_is_found() {
    is_found("the acceptor's silence", Rules { silence: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn a_bound_without_a_guard_is_found() {
    is_found("the guard", Rules { guard: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn a_coordinator_that_does_not_wait_is_found() {
    is_found("the wait of a new coordinator", Rules { wait: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn a_report_of_another_term_that_is_believed_is_found() {
    // Coordinators come and go, and with them shards; many reports arrive when they are no longer true.
    let stormy = Weather { slow: 400, loss: 200, duplicates: 0 };
    let plan = |plan: Plan| Plan { weather: stormy, is_churn: true, pause: Duration::from_millis(200), ..plan };
    is_found("the hello", Rules { hello: false, ..Rules::ALL }, plan);
}

#[test]
fn a_lease_counted_from_its_arrival_is_found() {
    is_found("counting from the asking", Rules { from_asking: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn an_addition_to_another_grant_is_found() {
    let rules = Rules { additions: false, ..Rules::ALL };
    is_found("minding what is added to", rules, |plan| Plan { is_moving: true, ..plan });
}

#[test]
fn a_slot_that_is_free_with_the_answer_is_found() {
    is_found("the hold of a slot", Rules { hold: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn a_coordinator_that_lends_at_once_is_found() {
    is_found("the wait before lending", Rules { lend_wait: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn slots_of_a_dead_node_that_come_back_at_once_are_found() {
    is_found("the late return", Rules { late_return: false, ..Rules::ALL }, |plan| plan);
}

#[test]
fn a_floor_that_is_spent_again_after_a_restart_is_found() {
    is_found("the late floor", Rules { late_floor: false, ..Rules::ALL }, |plan| plan);
}
