//! The budget holds, whatever happens to nodes and links.

use loadtest::cluster::Signal;

use super::servers::{asked, most_in_a_second};
use super::*;

const BUDGET: usize = 50;
const N_SEEDS: usize = 3;

fn scene(kind: Kind, n_rows: u64, relayed: bool) -> Scene {
    let mut plan = Plan::new(Server::start(kind, n_rows)).database(&format!("budget = \"{BUDGET}/s\"\n"));
    plan.relayed = relayed;
    let it = plan.start();
    // 45 that are lent, and a floor of one for each seed.
    it.await_shares(48.0);
    it
}

/// The database has seen no more than the budget, and one for each seed.
fn assert_within_budget(it: &Scene, what: &str) -> Vec<Operation> {
    let operations = it.operations();
    let most = most_in_a_second(&operations);
    println!("{what}: {} operations, at most {most} in a second", operations.len());
    assert!(most <= BUDGET + N_SEEDS, "{what}: {most} operations in a second");
    operations
}

fn cold_read(kind: Kind) {
    let (n_keys, at_once) = if is_long() { (50_000, 1024) } else { (5000, 512) };
    let it = scene(kind, n_keys, false);
    let began = Instant::now();
    let told = it.read_all(|i| format!("k{i}"), n_keys, at_once, 10);
    let time = began.elapsed();
    let operations = assert_within_budget(&it, &format!("{kind:?}, cold read of {n_keys} keys in {time:?}, {told:?}"));
    assert_eq!((told.statuses.get(&200), told.wrong), (Some(&n_keys), 0), "{told:?}");
    assert!(
        told.statuses.keys().all(|status| [200, 503].contains(status)) && told.without_retry_after == 0,
        "{told:?}"
    );
    assert!(told.slowest <= DEADLINE + Duration::from_millis(500), "{told:?}");
    let asked_for = it.sum("cache_node_database_keys_total", &[]);
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 53 bits")]
    let (keys, operations_seen) = (n_keys as f64, operations.len() as f64);
    assert_eq!(asked_for, keys, "each once");
    if kind != Kind::Sqlite {
        let asked = asked(&operations);
        assert!(asked.len() as u64 == n_keys && asked.values().all(|n| *n == 1), "{}", asked.len());
    }
    assert_eq!(
        it.sum("cache_node_database_operations_total", &[]),
        operations_seen,
        "the ledger is the database's own"
    );
    assert!(keys / operations_seen >= 50.0, "{} keys an operation", keys / operations_seen);
}

#[test]
fn a_cold_read_of_sqlite_stays_within_the_budget() {
    cold_read(Kind::Sqlite);
}

#[test]
fn a_cold_read_of_postgresql_stays_within_the_budget() {
    cold_read(Kind::Postgres);
}

#[test]
fn a_cold_read_of_redis_stays_within_the_budget() {
    cold_read(Kind::Redis);
}

#[test]
fn a_budget_of_one_is_a_budget() {
    let it = Plan::new(Server::start(Kind::Redis, 100)).database("budget = \"1/s\"\n").start();
    let load = Load::start(&it, 4, || fastrand::u64(1..=100));
    std::thread::sleep(Duration::from_secs(8));
    let told = load.end();
    let operations = it.operations();
    // Three floors of one in three seconds each.
    assert!(
        (1..=8 + N_SEEDS).contains(&operations.len()) && most_in_a_second(&operations) <= 1 + N_SEEDS,
        "{} {told:?}",
        operations.len()
    );
    assert!(told.statuses.keys().all(|status| [200, 503].contains(status)), "{told:?}");
}

/// H27: loads leave some of it to writes, and both together are within it.
#[test]
fn writes_get_their_part_of_a_budget_that_loads_would_spend_alone() {
    let it = writing::plan(Kind::Redis, 200_000).database(&format!("budget = \"{BUDGET}/s\"\n")).start();
    it.await_shares(48.0);
    let next = AtomicU64::new(1);
    let load = Load::start(&it, 48, move || next.fetch_add(1, Ordering::Relaxed));
    let mut slowest = Duration::ZERO;
    for run in 0..40 {
        let began = Instant::now();
        let answer = it.put(run % 3, &format!("new{run}"), "v", &[]);
        assert_eq!(answer.status(), 204, "{:?}", answer.text());
        slowest = slowest.max(began.elapsed());
        std::thread::sleep(Duration::from_millis(50));
    }
    let told = load.end();
    let operations = assert_within_budget(&it, &format!("writes among loads, the slowest {slowest:?}; {told:?}"));
    let scripts = operations.iter().filter(|operation| operation.keys.is_empty()).count();
    assert!(scripts >= 40 && operations.len() > scripts, "{scripts} of {}", operations.len());
}

/// What is done to a cluster while its budget is short.
fn faults(kind: Kind) {
    let it = scene(kind, 1_000_000.min(if kind == Kind::Redis { 200_000 } else { 1_000_000 }), true);
    let n_runs = n_runs();
    // Everybody wants another key all the time: the budget is never enough.
    let next = AtomicU64::new(1);
    let load = Load::start(&it, 48, move || next.fetch_add(1, Ordering::Relaxed));
    let restart = |pod| {
        it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("it has ended");
        it.cluster.start_again(Role::Node, pod).expect("starts");
        it.cluster.wait_ready(PATIENCE).expect("ready");
    };
    let pause = |time| std::thread::sleep(time);
    for run in 1..=n_runs {
        let victim = (it.coordinator() + 1) % 3;
        assert!(it.cluster.signal(Role::Node, victim, Signal::SIGKILL));
        restart(victim);
        let leader = it.coordinator();
        assert!(it.cluster.signal(Role::Node, leader, Signal::SIGKILL));
        restart(leader);
        let victim = (it.coordinator() + 1) % 3;
        assert!(it.cluster.signal(Role::Node, victim, Signal::SIGSTOP));
        pause(Duration::from_secs(3));
        assert!(it.cluster.signal(Role::Node, victim, Signal::SIGCONT));
        let (one, other) = ((Role::Node, it.coordinator()), (Role::Node, (it.coordinator() + 2) % 3));
        it.cluster.cut(one, other);
        it.cluster.cut(other, one);
        pause(Duration::from_secs(3));
        it.cluster.heal();
        assert_within_budget(&it, &format!("{kind:?}, faults, run {run}"));
    }
    it.await_shares(48.0);
    let told = load.end();
    let operations = assert_within_budget(&it, &format!("{kind:?}, faults; {told:?}"));
    assert!(operations.len() > 50 * n_runs, "{}", operations.len());
    assert!(told.wrong == 0 && told.without_retry_after == 0, "{told:?}");
}

/// What a server that stood still was sent meanwhile, it sees when it goes on: that counts then.
fn stands_still(kind: Kind) {
    let mut it = scene(kind, 200_000, false);
    let next = AtomicU64::new(1);
    let load = Load::start(&it, 48, move || next.fetch_add(1, Ordering::Relaxed));
    for _ in 0..n_runs().min(3) {
        it.server.signal(Signal::SIGSTOP);
        std::thread::sleep(Duration::from_secs(6));
        it.server.signal(Signal::SIGCONT);
        std::thread::sleep(Duration::from_secs(4));
    }
    let told = load.end();
    assert_within_budget(&it, &format!("{kind:?} that stood still; {told:?}"));
    eventually("it serves again", || it.get(0, "/things/k199999").status() == 200);
}

#[test]
fn a_redis_that_stands_still_is_not_flooded_when_it_goes_on() {
    stands_still(Kind::Redis);
}

#[test]
fn a_postgresql_that_stands_still_is_not_flooded_when_it_goes_on() {
    stands_still(Kind::Postgres);
}

#[test]
fn nodes_that_die_stand_still_or_are_cut_off_do_not_overspend_redis() {
    faults(Kind::Redis);
}

#[test]
fn nodes_that_die_stand_still_or_are_cut_off_do_not_overspend_postgresql() {
    faults(Kind::Postgres);
}
