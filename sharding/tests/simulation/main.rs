//! The protocol under virtual time: lossy and slow links, cuts, pauses, crashes, clocks that drift and jump. A seed
//! reproduces a run exactly.
//!
//! `SIMULATION_RUNS` and `SIMULATION_SEED` choose how many runs and from which seed on.

#![expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "microseconds of virtual time are far from the ends of their types"
)]

mod faults;
mod invariants;
mod model;
mod planted;
mod scenarios;
mod world;

use faults::{Plan, run};

/// Runs of every invariant under random faults.
const RUNS: u64 = 2000;

#[expect(clippy::disallowed_methods, reason = "which runs, not what they do")]
fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn no_promise_breaks_under_random_faults() {
    let (runs, first) = (from_environment("SIMULATION_RUNS", RUNS), from_environment("SIMULATION_SEED", 1));
    let mut recoveries = Vec::new();
    for seed in first..first + runs {
        match run(seed, &Plan::random(seed)) {
            Ok(recovery) => recoveries.push(recovery),
            Err(violation) => panic!("SIMULATION_RUNS=1 SIMULATION_SEED={seed}: {violation}"),
        }
    }
    recoveries.sort_unstable();
    let at = |share: usize| recoveries[(recoveries.len() - 1) * share / 100];
    println!("{runs} runs; whole again after the last fault: median {:?}, longest {:?}", at(50), at(100));
}
