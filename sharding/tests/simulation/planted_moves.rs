//! As [`crate::planted_traffic`], for shards that are handed over with their entries.

use std::time::Duration;

use crate::events::Weather;
use crate::faults::{Plan, run};
use crate::serving::Manners;
use crate::traffic::Traffic;

/// Every mistake is found within so many runs.
const RUNS_MAX: u64 = 3000;

/// Nodes that leave and come while clients meet on few keys.
pub(crate) fn plan(seed: u64, manners: Manners) -> Plan {
    let mut chance = fastrand::Rng::with_seed(seed ^ 1 << 62);
    let plan = Plan::random(seed).with_clients(seed);
    let weather = match chance.u8(..3) {
        0 => Weather { loss: 50, duplicates: 50, slow: 50 },
        1 => Weather { loss: 5, duplicates: 100, slow: 100 },
        _ => Weather { loss: 0, duplicates: 10, slow: 10 },
    };
    let traffic = Traffic {
        n_clients: 12,
        keys_in_use: [6, 12, 24][chance.usize(..3)],
        pause: Duration::from_millis(5),
        writes: [10, 30, 50][chance.usize(..3)],
        database_slow: [5, 50, 200][chance.usize(..3)],
        manners,
        ..plan.traffic
    };
    let pause = Duration::from_millis([200, 500, 1000][chance.usize(..3)]);
    Plan { weather, pause, is_moving: true, traffic, ..plan }
}

fn is_found(what: &str, mistaken: impl Fn(u64) -> Plan) {
    breaks("I2", what, mistaken);
}

fn breaks(promise: &str, what: &str, mistaken: impl Fn(u64) -> Plan) {
    for seed in 1..=RUNS_MAX {
        let Err(violation) = run(seed, &mistaken(seed)) else { continue };
        assert!(violation.contains(promise), "without {what}: run {seed}: {violation}");
        println!("without {what}: run {seed}: {violation}");
        return;
    }
    panic!("{RUNS_MAX} runs without {what} found nothing");
}

#[test]
fn a_copy_that_is_used_after_a_crash_is_found() {
    let manners = Manners { takes_after_anything: true, ..Manners::GOOD };
    is_found("looking at whose the shard was before", |seed| plan(seed, manners));
}

#[test]
fn a_copy_that_is_used_without_the_answer_to_the_seal_is_found() {
    let manners = Manners { takes_unsealed: true, ..Manners::GOOD };
    is_found("the answer to the seal", |seed| plan(seed, manners));
}

#[test]
fn a_shard_that_is_said_to_be_taken_over_before_it_is_sealed_is_found() {
    let manners = Manners { says_taken_unsealed: true, ..Manners::GOOD };
    breaks("I1", "the answer to the seal before that is said", |seed| plan(seed, manners));
}

#[test]
fn a_seal_that_is_answered_before_the_owner_knows_is_found() {
    let manners = Manners { answers_before_it_knows: true, ..Manners::GOOD };
    // A new coordinator takes the owner's word: the shard is served by nobody, and whoever is to give it away cannot leave.
    breaks("after the last fault", "the owner's knowledge before the answer", |seed| plan(seed, manners));
}

#[test]
fn changes_after_the_first_chunk_that_are_not_noted_are_found() {
    let manners = Manners { notes_nothing: true, ..Manners::GOOD };
    is_found("noting changes", |seed| plan(seed, manners));
}

#[test]
fn an_owner_that_serves_on_after_the_seal_is_found() {
    let manners = Manners { serves_on: true, ..Manners::GOOD };
    is_found("the end at the seal", |seed| plan(seed, manners));
}

#[test]
fn a_seal_that_does_not_wait_for_writes_in_the_air_is_found() {
    let manners = Manners { seals_at_once: true, ..Manners::GOOD };
    is_found("the wait for writes", |seed| plan(seed, manners));
}

#[test]
fn notices_that_are_ignored_during_a_pull_are_found() {
    let manners = Manners { ignores_notices: true, ..Manners::GOOD };
    is_found("heeding notices during a pull", |seed| plan(seed, manners));
}

#[test]
fn notices_before_a_pull_that_are_forgotten_are_found() {
    let manners = Manners { forgets_notices: true, ..Manners::GOOD };
    let late = |plan: Plan| Plan {
        weather: Weather::default(),
        pause: Duration::from_millis(200),
        traffic: Traffic {
            n_clients: 24,
            has_changes: true,
            keys_in_use: 48,
            writes: 5,
            database_slow: 400,
            passes: 0,
            ..plan.traffic
        },
        ..plan
    };
    is_found("remembering notices", |seed| late(plan(seed, manners)));
}

#[test]
fn changes_that_are_said_to_another_puller_are_found() {
    let manners = Manners { mixes_passes: true, ..Manners::GOOD };
    let slow = |plan: Plan| Plan {
        weather: Weather { loss: 30, duplicates: 200, slow: 200 },
        traffic: Traffic { n_clients: 24, keys_in_use: 48, writes: 40, database_slow: 5, passes: 0, ..plan.traffic },
        ..plan
    };
    is_found("telling pulls apart", |seed| slow(plan(seed, manners)));
}
