//! As [`crate::planted`], for reads and writes: clients notice when one of the rules is not kept.

use std::time::Duration;

use sharding::keys::Rules;

use crate::events::Weather;
use crate::faults::{Plan, run};
use crate::serving::Manners;
use crate::traffic::Traffic;

/// Every mistake is found within so many runs.
const RUNS_MAX: u64 = 3000;

/// Clients that meet on few keys, while owners change often.
fn plan(seed: u64, manners: Manners) -> Plan {
    let plan = Plan { pause: Duration::from_millis(300), ..Plan::random(seed).with_clients(seed) };
    let traffic = Traffic { keys_in_use: 4, pause: Duration::from_millis(10), manners, ..plan.traffic };
    Plan { traffic, ..plan }
}

fn is_found(what: &str, mistaken: impl Fn(u64) -> Plan) {
    for seed in 1..=RUNS_MAX {
        let Err(violation) = run(seed, &mistaken(seed)) else { continue };
        let is_meant = violation.contains("I2") || violation.contains("not whole");
        assert!(is_meant, "without {what}: run {seed}: {violation}");
        println!("without {what}: run {seed}: {violation}");
        return;
    }
    panic!("{RUNS_MAX} runs without {what} found nothing");
}

/// Owners that come and go while their writes are long on their way, and many who may notice.
fn late(plan: Plan) -> Plan {
    let traffic = Traffic {
        n_clients: 24,
        keys_in_use: 12,
        pause: Duration::from_millis(5),
        writes: 20,
        passes: 50,
        database_slow: 300,
        ..plan.traffic
    };
    Plan { weather: Weather::default(), is_churn: true, pause: Duration::from_millis(800), traffic, ..plan }
}

fn without(rules: Rules) -> Manners {
    Manners { rules, ..Manners::GOOD }
}

/// Owners that stay, and links that carry all, so that what goes wrong lies between clients and one node.
fn calm(plan: Plan) -> Plan {
    let weather = Weather { loss: 0, duplicates: 0, slow: 5 };
    Plan { weather, pause: Duration::from_secs(3), ..plan }
}

#[test]
fn loads_before_the_fence_is_raised_are_found() {
    let rules = Rules { fence_first: false, ..Rules::ALL };
    is_found("the fence first", |seed| late(plan(seed, without(rules))));
}

#[test]
fn a_late_write_of_the_owner_itself_is_found() {
    let rules = Rules { fence_again: false, ..Rules::ALL };
    is_found("the fence raised again", |seed| calm(plan(seed, without(rules))));
}

#[test]
fn a_key_that_is_read_from_memory_while_it_is_written_is_found() {
    let rules = Rules { hide: false, ..Rules::ALL };
    is_found("readers that wait for a write", |seed| plan(seed, without(rules)));
}

#[test]
fn loads_that_a_write_does_not_cut_are_found() {
    let rules = Rules { cut: false, ..Rules::ALL };
    let unnoticed = |plan: Plan| Plan { traffic: Traffic { has_changes: false, ..plan.traffic }, ..plan };
    is_found("the cut of loads by writes", |seed| unnoticed(calm(plan(seed, without(rules)))));
}

#[test]
fn loads_that_a_notice_does_not_cut_are_found() {
    let rules = Rules { cut: false, ..Rules::ALL };
    let unwritten = |plan: Plan| Plan { traffic: Traffic { has_changes: true, writes: 0, ..plan.traffic }, ..plan };
    is_found("the cut of loads by notices", |seed| unwritten(calm(plan(seed, without(rules)))));
}

#[test]
fn a_read_past_the_owner_that_joins_what_was_sent_is_found() {
    let manners = Manners { joins_sent: true, ..Manners::GOOD };
    is_found("a load of one's own past the owner", |seed| plan(seed, manners));
}

#[test]
fn a_write_that_is_sent_again_is_found() {
    let manners = Manners { resends: true, ..Manners::GOOD };
    is_found("sending once", |seed| plan(seed, manners));
}

#[test]
fn an_unknown_outcome_that_is_called_none_is_found() {
    let manners = Manners { blurs_unknown: true, ..Manners::GOOD };
    is_found("unknown outcomes", |seed| plan(seed, manners));
}

#[test]
fn entries_that_outlive_another_owner_are_found() {
    let manners = Manners { keeps_entries: true, ..Manners::GOOD };
    is_found("owned since", |seed| plan(seed, manners));
}

#[test]
fn a_shard_whose_fence_is_too_high_for_ever_is_found() {
    let manners = Manners { ignores_fences: true, ..Manners::GOOD };
    is_found("heeding a higher fence", |seed| plan(seed, manners));
}

#[test]
fn a_fence_that_is_looked_at_too_early_is_found() {
    let early = |plan: Plan| Plan { traffic: Traffic { looks_early: true, ..plan.traffic }, ..plan };
    is_found("the lock on the fence", |seed| early(late(plan(seed, Manners::GOOD))));
}

#[test]
fn with_all_rules_the_same_runs_keep_every_promise() {
    for seed in 1..=50 {
        for change in [|plan| plan, calm, late] {
            run(seed, &change(plan(seed, Manners::GOOD))).expect("no violation");
        }
    }
}
