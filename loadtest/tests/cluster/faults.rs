//! Processes die under load: no read fails, and their shards have new owners in time. `FAULT_RUNS` says how often.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use loadtest::cluster::{Role, Signal};

use super::*;

/// Runs of each fault in an ordinary test run.
const RUNS: u64 = 2;
/// Clients that read all the time.
const CLIENTS: usize = 6;
const KEYS: u64 = 500;
/// No run needs longer to be whole again.
const WHOLE_MAX: Duration = Duration::from_secs(10);

fn runs() -> u64 {
    std::env::var("FAULT_RUNS").ok().map_or(RUNS, |runs| runs.parse().expect("a number"))
}

/// What the clients of a run have seen.
#[derive(Default)]
struct Seen {
    ends: AtomicBool,
    reads: AtomicU64,
    /// Other answers than 200, by status, and requests without an answer.
    errors: Mutex<BTreeMap<String, u64>>,
    slowest: Mutex<Duration>,
}

/// Reads keys through the routers of `pods`, each client after the other's example.
fn read(it: &Running, pods: &[usize], seen: &Seen) {
    let client = client();
    while !seen.ends.load(Ordering::Relaxed) {
        let (pod, key) = (pods[fastrand::usize(..pods.len())], fastrand::u64(1..=KEYS));
        let began = Instant::now();
        let answer = client.get(format!("{}/cache-data/{key}", it.cluster.url(pod))).send();
        let error = match answer {
            Ok(answer) if answer.status() == 200 => {
                let value = answer.text().expect("a whole value");
                (value != demo::product(key)).then(|| "a wrong value".to_owned())
            }
            Ok(answer) => Some(format!("{}: {}", answer.status().as_u16(), answer.text().unwrap_or_default())),
            Err(error) => Some(error.to_string()),
        };
        seen.reads.fetch_add(1, Ordering::Relaxed);
        let mut slowest = seen.slowest.lock().expect("no panic under it");
        *slowest = began.elapsed().max(*slowest);
        if let Some(error) = error {
            *seen.errors.lock().expect("no panic under it").entry(error).or_default() += 1;
        }
    }
}

fn map(it: &Running, pod: usize) -> serde_json::Value {
    it.get(pod, "/-/map").json().expect("JSON")
}

/// Whether every shard has an owner, and none of them is this pod.
fn is_whole_without(map: &serde_json::Value, pod: usize) -> bool {
    let owners = map["owners"].as_object().expect("owners");
    let count = |ranges: &serde_json::Value| -> u64 {
        let length =
            |range: &serde_json::Value| range[1].as_u64().expect("a shard") - range[0].as_u64().expect("a shard") + 1;
        ranges.as_array().expect("ranges").iter().map(length).sum()
    };
    !owners.contains_key(&format!("pod-{pod}")) && owners.values().map(count).sum::<u64>() == 1024
}

fn coordinator(it: &Running) -> usize {
    let coordinates = |pod: &usize| {
        let page = it.client.get(format!("{}/metrics", it.cluster.control(*pod))).send().and_then(Response::text);
        page.is_ok_and(|page| Samples::parse(&page).sum("cache_node_coordinator", &[]) == 1.0)
    };
    let mut found = None;
    eventually("one coordinates", || {
        found = (0..3).find(coordinates);
        found.is_some()
    });
    found.expect("one coordinates")
}

/// Ends a node under load, `runs` times; gives the times until the map is whole again. Prints what happened.
fn end_under_load(what: &str, signal: Signal, is_victim: impl Fn(usize, usize) -> bool) -> Vec<Duration> {
    let it = Scene::demo(KEYS).start();
    let mut times = Vec::new();
    for run in 1..=runs() {
        let leader = coordinator(&it);
        let victim = (0..3).find(|pod| is_victim(*pod, leader)).expect("one of three");
        // The victim's own router goes on: it is another process.
        let (pods, seen) = ([0, 1, 2], Seen::default());
        let time = std::thread::scope(|scope| {
            (0..CLIENTS).for_each(|_| {
                scope.spawn(|| read(&it, &pods, &seen));
            });
            eventually("the clients read", || seen.reads.load(Ordering::Relaxed) > 1000);
            assert!(it.cluster.signal(Role::Node, victim, signal));
            let began = Instant::now();
            while !is_whole_without(&map(&it, (victim + 1) % 3), victim) {
                assert!(began.elapsed() < WHOLE_MAX, "{what}: not whole within {WHOLE_MAX:?}");
                std::thread::sleep(PAUSE);
            }
            let time = began.elapsed();
            it.cluster.wait_ended(Role::Node, victim, PATIENCE).expect("it has ended");
            it.cluster.start_again(Role::Node, victim).expect("starts");
            it.cluster.wait_ready(PATIENCE).expect("ready");
            seen.ends.store(true, Ordering::Relaxed);
            time
        });
        let errors = seen.errors.into_inner().expect("no panic under it");
        let slowest = seen.slowest.into_inner().expect("no panic under it");
        println!(
            "{what}, run {run}: whole after {time:?}; {} reads, slowest {slowest:?}, errors {errors:?}",
            seen.reads.load(Ordering::Relaxed)
        );
        assert!(errors.is_empty(), "{what}: {errors:?}");
        times.push(time);
    }
    times.sort_unstable();
    println!("{what}: whole again after {:?} (median), {:?} (longest)", times[times.len() / 2], times[times.len() - 1]);
    times
}

#[test]
fn a_node_that_is_killed_under_load_fails_no_read() {
    end_under_load("kill -9 of a node", Signal::SIGKILL, |pod, leader| pod != leader);
}

#[test]
fn a_coordinator_that_is_killed_under_load_fails_no_read() {
    end_under_load("kill -9 of the coordinator", Signal::SIGKILL, |pod, leader| pod == leader);
}

#[test]
fn a_node_that_drains_under_load_fails_no_read() {
    end_under_load("SIGTERM of a node", Signal::SIGTERM, |pod, leader| pod != leader);
}

#[test]
fn a_coordinator_that_drains_under_load_fails_no_read() {
    end_under_load("SIGTERM of the coordinator", Signal::SIGTERM, |pod, leader| pod == leader);
}
