//! The protocol under virtual time: lossy and slow links, cuts, pauses, crashes, clocks that drift and jump. A seed
//! reproduces a run exactly.
//!
//! `SIMULATION_RUNS` and `SIMULATION_SEED` choose how many runs and from which seed on.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "microseconds of virtual time are far from the ends of their types"
)]

mod balance;
mod clients;
mod database;
mod events;
mod faults;
mod history;
mod invariants;
mod leaving;
mod machine;
mod model;
mod planted;
mod planted_moves;
mod planted_traffic;
mod scenarios;
mod scenarios_moves;
mod serving;
mod traffic;
mod world;

use faults::{Plan, run};
use history::Counts;
use serving::Manners;

/// Runs of every invariant under random faults.
const RUNS: u64 = 2000;
/// Of those with clients.
const RUNS_WITH_CLIENTS: u64 = 500;

#[expect(clippy::disallowed_methods, reason = "which runs, not what they do")]
fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

/// Runs plans of many seeds; tells what they came to.
fn run_all(runs: u64, plan: impl Fn(u64) -> Plan) {
    let (runs, first) = (from_environment("SIMULATION_RUNS", runs), from_environment("SIMULATION_SEED", 1));
    let (mut recoveries, mut counts) = (Vec::new(), Counts::default());
    for seed in first..first + runs {
        match run(seed, &plan(seed)) {
            Ok(run) => {
                recoveries.push(run.recovery);
                counts += run.counts;
            }
            Err(violation) => panic!("SIMULATION_RUNS=1 SIMULATION_SEED={seed}: {violation}"),
        }
    }
    recoveries.sort_unstable();
    let at = |share: usize| recoveries[(recoveries.len() - 1) * share / 100];
    println!("{runs} runs; whole again after the last fault: median {:?}, longest {:?}", at(50), at(100));
    if counts != Counts::default() {
        println!("{counts}");
    }
}

#[test]
fn no_promise_breaks_under_random_faults() {
    run_all(RUNS, Plan::random);
}

#[test]
fn no_promise_breaks_while_shards_are_on_their_way() {
    run_all(RUNS_WITH_CLIENTS, |seed| planted_moves::plan(seed, Manners::GOOD));
}

#[test]
fn a_seed_reproduces_a_run() {
    for seed in 1..=20 {
        let plan = Plan::random(seed).with_clients(seed);
        assert_eq!(run(seed, &plan), run(seed, &plan));
    }
}

#[test]
fn what_clients_read_is_fresh_under_random_faults() {
    run_all(RUNS_WITH_CLIENTS, |seed| Plan::random(seed).with_clients(seed));
}
