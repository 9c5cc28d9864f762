//! Clients read and write through every router while processes die, stand still and lose each other. What they saw is
//! written down and checked: it must be linearizable for each key, and no acknowledged write may be lost.
//! `HISTORY_RUNS` says how many faults there are; the histories stay where `HISTORIES` says, else they go with the test.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use loadtest::cluster::Signal;
use loadtest::history::{Call, Checked, Outcome, Recorder, check, lost_writes};
use serde_json::{Value, json};

use super::writing::plan;
use super::*;

const CLIENTS: u64 = 8;
/// Keys of a run, each absent at first.
const KEYS: u64 = 8;
/// Faults in an ordinary test run.
const RUNS: usize = 3;
/// Longest pause of a client between two requests.
const THINK_MAX: Duration = Duration::from_millis(4);
/// After a kill in the middle of a hand-off every shard is served again within this time.
const WHOLE_MAX: Duration = Duration::from_millis(3500);
/// The load before a fault, and after it is over.
const CALM: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    StandStill,
    CutOff,
    /// What it says is not heard.
    Unheard,
    /// It hears nothing.
    Deaf,
    /// One router loses one node.
    CutFromRouter,
    Drain,
    /// A node that gives its shards away is killed in the middle of it.
    KillSender,
    /// One that takes them over is.
    KillReceiver,
    /// The database stands still: writes are answered too late, and land all the same.
    DatabaseStandsStill,
}

const FAULTS: [Fault; 8] = [
    Fault::Kill,
    Fault::StandStill,
    Fault::CutOff,
    Fault::DatabaseStandsStill,
    Fault::Unheard,
    Fault::Deaf,
    Fault::CutFromRouter,
    Fault::Drain,
];

/// In the middle of a hand-off; every other time the sender is the coordinator.
const FAULTS_OF_HANDOFF: [Fault; 2] = [Fault::KillSender, Fault::KillReceiver];

/// One request after the other, until it is over.
fn client(routers: &[String], recorder: &Recorder, number: u64, run: usize, is_over: &AtomicBool) {
    let client = Client::builder().timeout(PATIENCE).build().expect("a client");
    let mut n_writes = 0;
    while !is_over.load(Ordering::Relaxed) {
        let key = format!("r{run}-{}", fastrand::u64(..KEYS));
        let region = format!("{}/things", fastrand::choice(routers).expect("a router"));
        let url = format!("{region}/{key}");
        let (call, request) = match fastrand::u32(..10) {
            0..3 => (Call::Read, client.get(url)),
            3..5 => (Call::Read, client.post(region).json(&json!({ "keys": [key] }))),
            5..9 => {
                n_writes += 1;
                let value = format!("c{number}-{n_writes}");
                (Call::Write(value.clone()), client.put(url).body(value))
            }
            _ => (Call::Delete, client.delete(url)),
        };
        let is_read = call == Call::Read;
        let pending = recorder.begin(number, &key, call);
        let answer = request.send().map(|answer| (answer.status().as_u16(), answer.text().unwrap_or_default()));
        let answer = answer.map(|answer| of_one(&answer.1).unwrap_or(answer));
        pending.end(match (is_read, answer) {
            (true, Ok((200, value))) => Outcome::Found(Some(value)),
            (true, Ok((404, _))) => Outcome::Found(None),
            (true, _) => Outcome::Failed,
            (false, Ok((204, _))) => Outcome::Done,
            (false, Ok((502 | 503, _))) => Outcome::Failed,
            (false, Ok((504, _)) | Err(_)) => Outcome::Unknown,
            (false, Ok((status, body))) => panic!("a write was answered {status}: {body}"),
        });
        std::thread::sleep(THINK_MAX.mul_f64(fastrand::f64()));
    }
}

/// What the answer to a request for many keys says of the only one, if it is such an answer.
fn of_one(body: &str) -> Option<(u16, String)> {
    let body: Value = serde_json::from_str(body).ok()?;
    let result = &body["results"][0];
    Some((result["status"].as_u64()?.try_into().ok()?, result["text"].as_str().unwrap_or_default().to_owned()))
}

/// Waits until every shard is served again; gives how long that took.
fn whole(it: &Scene) -> Duration {
    let began = Instant::now();
    eventually("every shard is served", || it.sum("cache_node_shards", &["state=\"serving\""]) == 1024.0);
    began.elapsed()
}

/// Does it, and undoes it. Gives how long it took until every shard was served again, where that was looked at.
fn strike(it: &mut Scene, fault: Fault, is_coordinator: bool, time: Duration) -> Duration {
    let mut broken = Duration::ZERO;
    let leader = it.coordinator();
    let n_pods = it.cluster.n_pods();
    let victim = if is_coordinator { leader } else { (leader + 1) % n_pods };
    let restart = |it: &Scene| {
        it.cluster.wait_ended(Role::Node, victim, PATIENCE).expect("it has ended");
        it.cluster.start_again(Role::Node, victim).expect("starts");
    };
    let cut = |it: &Scene, from: bool, to: bool| {
        let parties = (0..n_pods).flat_map(|pod| [(Role::Node, pod), (Role::Router, pod)]);
        for other in parties.filter(|other| *other != (Role::Node, victim)) {
            if from {
                it.cluster.cut((Role::Node, victim), other);
            }
            if to {
                it.cluster.cut(other, (Role::Node, victim));
            }
        }
    };
    match fault {
        Fault::Kill => {
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGKILL));
            // At once, or when others own its shards.
            std::thread::sleep(time.mul_f64(f64::from(u8::from(fastrand::bool()))));
            restart(it);
        }
        Fault::Drain => {
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGTERM));
            restart(it);
        }
        Fault::KillSender | Fault::KillReceiver => {
            let serving = || it.samples(victim).map(|of| of.sum("cache_node_shards", &["state=\"serving\""]));
            let moment = serving().expect("it serves") * fastrand::f64();
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGTERM));
            let mut left = f64::MAX;
            eventually("it has given so many shards away", || {
                // One that has left has none.
                left = serving().unwrap_or(0.0);
                left <= moment
            });
            let is_sender = fault == Fault::KillSender;
            let killed = if is_sender { victim } else { (victim + 1) % n_pods };
            // Of three seeds two must be there: once the sender is about to leave, the receiver is not killed.
            let is_killed = is_sender || left > 0.0;
            if is_killed {
                it.cluster.signal(Role::Node, killed, Signal::SIGKILL);
            }
            broken = whole(it);
            restart(it);
            if is_killed && killed != victim {
                it.cluster.wait_ended(Role::Node, killed, PATIENCE).expect("it has ended");
                it.cluster.start_again(Role::Node, killed).expect("starts");
            }
        }
        Fault::StandStill => {
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGSTOP));
            std::thread::sleep(time);
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGCONT));
        }
        Fault::DatabaseStandsStill if it.server.kind == Kind::Sqlite => lock_file(it, time),
        Fault::DatabaseStandsStill => {
            it.server.signal(Signal::SIGSTOP);
            std::thread::sleep(time / 2);
            it.server.signal(Signal::SIGCONT);
        }
        Fault::CutOff => cut(it, true, true),
        Fault::Unheard => cut(it, true, false),
        Fault::Deaf => cut(it, false, true),
        Fault::CutFromRouter => {
            let router = (Role::Router, fastrand::usize(..n_pods));
            it.cluster.cut(router, (Role::Node, victim));
            it.cluster.cut((Role::Node, victim), router);
        }
    }
    if matches!(fault, Fault::CutOff | Fault::Unheard | Fault::Deaf | Fault::CutFromRouter) {
        std::thread::sleep(time);
        it.cluster.heal();
    }
    broken
}

/// Somebody else holds the file.
fn lock_file(it: &Scene, time: Duration) {
    let path = it.server.path("test.db");
    let other = rusqlite::Connection::open(path).expect("opens");
    other.busy_timeout(PATIENCE).expect("a timeout");
    other.execute_batch("BEGIN EXCLUSIVE").expect("locks");
    std::thread::sleep(time / 2);
    other.execute_batch("COMMIT").expect("unlocks");
}

/// What each pod says of a key, and has said last.
fn explained(it: &Scene, key: &str) -> String {
    let of_pod = |pod: usize| {
        let explained = it.get(pod, &format!("/-/explain/things/{key}")).text().expect("text");
        let metrics = it.client.get(format!("{}/metrics", it.cluster.control(pod))).send().expect("an answer");
        let metrics = metrics.text().expect("text");
        let counted = metrics.lines().filter(|line| !line.starts_with('#') && !line.contains("_bucket"));
        let log = std::fs::read_to_string(it.cluster.log(Role::Node, pod)).expect("a log");
        let said: Vec<&str> = log.lines().rev().take(100).collect();
        let counted: Vec<&str> = counted.collect();
        format!("pod-{pod}: {explained}\n{}\n{}", counted.join("\n"), said.join("\n"))
    };
    (0..it.cluster.n_pods()).map(of_pod).collect::<Vec<_>>().join("\n")
}

/// One fault under load; gives what the checker has counted, and how long some shard was not served.
fn run(it: &mut Scene, number: usize, fault: Fault, file: &Path) -> (Checked, Duration) {
    let recorder = Recorder::create(file).expect("a file");
    let is_over = AtomicBool::new(false);
    let is_coordinator = fastrand::bool();
    let time = Duration::from_millis(fastrand::u64(200..3000));
    let said =
        format!("{:?}, run {number}: {fault:?} of the coordinator: {is_coordinator}, for {time:?}", it.server.kind);
    let routers: Vec<String> = (0..it.cluster.n_pods()).map(|pod| it.cluster.url(pod)).collect();
    let broken = std::thread::scope(|scope| {
        for client_number in 0..CLIENTS {
            let (routers, recorder, is_over) = (&routers, &recorder, &is_over);
            scope.spawn(move || client(routers, recorder, client_number, number, is_over));
        }
        let _over = Over(&is_over);
        std::thread::sleep(CALM);
        let broken = strike(it, fault, is_coordinator, time);
        it.cluster.wait_ready(PATIENCE).expect("ready again");
        std::thread::sleep(CALM);
        broken
    });
    let operations = recorder.finish().expect("written down");
    let keys: Vec<String> = (0..KEYS).map(|key| format!("r{number}-{key}")).collect();
    let mut last = BTreeMap::new();
    for key in &keys {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = it.get(fastrand::usize(..3), &format!("/things/{key}"));
            let (status, body) = (answer.status().as_u16(), answer.text().expect("text"));
            if [200, 404].contains(&status) {
                last.insert(key.clone(), (status == 200).then_some(body));
                break;
            }
            assert!(Instant::now() < deadline, "{said}: {key} is not quiet: {status} {body}\n{}", explained(it, key));
            std::thread::sleep(PAUSE);
        }
        assert_eq!(it.server.value(key), last[key], "{said}: memory is not what the database has");
    }
    let checked = check(&operations).unwrap_or_else(|failure| panic!("{said}: {}: {failure}", file.display()));
    let lost = lost_writes(&operations, &last);
    assert!(lost.is_empty(), "{said}: {}: lost: {lost:?}", file.display());
    println!("{said}: {checked:?}, whole after {broken:?}");
    (checked, broken)
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn faults(kind: Kind, faults: &[Fault], n_runs: usize) {
    let mut plan = plan(kind, 10);
    plan.relayed = true;
    let mut it = plan.start();
    let dir = tempfile::tempdir().expect("a directory");
    let dir = std::env::var("HISTORIES").map_or_else(|_| dir.path().to_owned(), Into::into);
    std::fs::create_dir_all(&dir).expect("a directory");
    let (mut all, mut times) = (Checked::default(), Vec::new());
    for number in 0..n_runs {
        // In an ordinary run another few each time.
        let fault =
            if n_runs > RUNS { faults[number % faults.len()] } else { *fastrand::choice(faults).expect("some") };
        let (checked, broken) = run(&mut it, number, fault, &dir.join(format!("{kind:?}-{number}.jsonl")));
        times.push(broken);
        all.reads += checked.reads;
        all.writes += checked.writes;
        all.failed += checked.failed;
        all.unknown += checked.unknown;
        all.keys += checked.keys;
        all.longest_segment = all.longest_segment.max(checked.longest_segment);
    }
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{kind:?}: {n_runs} faults, no violation, no lost write; {all:?}; whole after {median:?}, {longest:?}");
    assert!(n_runs <= RUNS || longest <= WHOLE_MAX, "a busy machine is no excuse in a long run: {longest:?}");
    assert!(all.reads > 100 && all.writes > 100, "{all:?}");
}

/// How many faults there are.
fn n_runs() -> usize {
    std::env::var("HISTORY_RUNS").map_or(RUNS, |runs| runs.parse().expect("a number"))
}

#[test]
fn what_clients_see_while_nodes_die_in_the_middle_of_a_hand_off_is_linearizable() {
    faults(Kind::Redis, &FAULTS_OF_HANDOFF, n_runs().div_ceil(4));
}

#[test]
fn what_clients_of_sqlite_see_while_nodes_fail_is_linearizable() {
    faults(Kind::Sqlite, &FAULTS, n_runs());
}

#[test]
fn what_clients_of_postgresql_see_while_nodes_fail_is_linearizable() {
    faults(Kind::Postgres, &FAULTS, n_runs());
}

#[test]
fn what_clients_of_redis_see_while_nodes_fail_is_linearizable() {
    faults(Kind::Redis, &FAULTS, n_runs());
}
