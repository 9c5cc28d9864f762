//! Processes die under load: no read fails, and their shards have new owners in time. `FAULT_RUNS` says how often.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::BytesMut;
use loadtest::cluster::{Role, Signal};
use sharding::epoch::Epoch;
use sharding::hash::shard_of;
use sharding::id::{NShards, RegionName};
use sharding::wire::{ANSWER_FRAME_BYTES_MAX, AnswerBody, Ask, FrameReader, FromNode, Hello, Request, RequestBody};

use super::*;

/// Runs of each fault in an ordinary test run.
const RUNS: u64 = 2;
/// Clients that read all the time.
const CLIENTS: usize = 6;
pub(super) const KEYS: u64 = 500;
/// No run needs longer to be whole again.
pub(super) const WHOLE_MAX: Duration = Duration::from_secs(10);

pub(super) fn runs() -> u64 {
    std::env::var("FAULT_RUNS").ok().map_or(RUNS, |runs| runs.parse().expect("a number"))
}

/// What the clients of a run have seen.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub(super) reads: u64,
    /// Other answers than 200, by status, and requests without an answer.
    pub(super) errors: BTreeMap<String, u64>,
    pub(super) slowest: Duration,
    /// Longest time without any good answer to any client.
    pub(super) gap: Duration,
    last_good: Option<Instant>,
}

impl Seen {
    fn take(&mut self, began: Instant, error: Option<String>) {
        let now = Instant::now();
        self.reads += 1;
        self.slowest = self.slowest.max(now - began);
        match error {
            Some(error) => *self.errors.entry(error).or_default() += 1,
            None => {
                self.gap = self.last_good.map_or(Duration::ZERO, |last| now - last).max(self.gap);
                self.last_good = Some(now);
            }
        }
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { reads, errors, slowest, gap, .. } = self;
        write!(f, "{reads} reads, slowest {slowest:?}, longest gap {gap:?}, errors {errors:?}")
    }
}

/// Reads through all routers of the first three pods while `work` goes on.
pub(super) fn under_load<T>(it: &Running, work: impl FnOnce() -> T) -> (T, Seen) {
    let (seen, ends) = (Mutex::default(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        // Raised by a panic of `work` too: else its clients would never end.
        let _ends = Ends(&ends);
        (0..CLIENTS).for_each(|_| {
            scope.spawn(|| read(it, &seen, &ends));
        });
        eventually("the clients read", || seen.lock().expect("no panic under it").reads > 1000);
        work()
    });
    (done, seen.into_inner().expect("no panic under it"))
}

/// Says that it is over when it is dropped.
pub(super) struct Ends<'a>(pub(super) &'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn read(it: &Running, seen: &Mutex<Seen>, ends: &AtomicBool) {
    let client = client();
    while !ends.load(Ordering::Relaxed) {
        let (pod, key) = (fastrand::usize(..3), fastrand::u64(1..=KEYS));
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
        seen.lock().expect("no panic under it").take(began, error);
    }
}

pub(super) fn map(it: &Running, pod: usize) -> serde_json::Value {
    it.get(pod, "/-/map").json().expect("JSON")
}

/// Whether every shard has an owner, and none of them is this pod.
pub(super) fn is_whole_without(map: &serde_json::Value, pod: usize) -> bool {
    let owners = map["owners"].as_object().expect("owners");
    let count = |ranges: &serde_json::Value| -> u64 {
        let length =
            |range: &serde_json::Value| range[1].as_u64().expect("a shard") - range[0].as_u64().expect("a shard") + 1;
        ranges.as_array().expect("ranges").iter().map(length).sum()
    };
    !owners.contains_key(&format!("pod-{pod}")) && owners.values().map(count).sum::<u64>() == 1024
}

pub(super) fn coordinator(it: &Running) -> usize {
    let mut found = None;
    eventually("one coordinates", || {
        found = (0..3).find(|pod| it.coordinates(*pod));
        found.is_some()
    });
    found.expect("one coordinates")
}

/// As the coordinator itself says: a router's map may be an earlier one.
fn map_of_coordinator(it: &Running) -> serde_json::Value {
    page_of_coordinator(it, "map")
}

fn page_of_coordinator(it: &Running, page: &str) -> serde_json::Value {
    let url = format!("{}/-/{page}", it.cluster.control(coordinator(it)));
    it.client.get(url).send().and_then(Response::json).expect("JSON")
}

/// Ends a node under load, `runs` times; gives the times until the map is whole again. Prints what happened.
fn end_under_load(what: &str, signal: Signal, is_victim: impl Fn(usize, usize) -> bool) -> Vec<Duration> {
    let it = Scene::demo(KEYS).start();
    let mut times = Vec::new();
    for run in 1..=runs() {
        let leader = coordinator(&it);
        let victim = (0..3).find(|pod| is_victim(*pod, leader)).expect("one of three");
        // The victim's own router goes on: it is another process.
        let (time, seen) = under_load(&it, || {
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
            time
        });
        println!("{what}, run {run}: whole after {time:?}; {seen}");
        assert!(seen.errors.is_empty(), "{what}: {seen}");
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

/// For each shard of the map its owner's name.
fn owners(map: &serde_json::Value) -> BTreeMap<u64, String> {
    let mut owners = BTreeMap::new();
    for (owner, ranges) in map["owners"].as_object().expect("owners") {
        for range in ranges.as_array().expect("ranges") {
            let shards = range[0].as_u64().expect("a shard")..=range[1].as_u64().expect("a shard");
            owners.extend(shards.map(|shard| (shard, owner.clone())));
        }
    }
    owners
}

/// How many shards have gone from whom to whom.
fn moved<'a>(
    before: &'a BTreeMap<u64, String>,
    after: &'a BTreeMap<u64, String>,
) -> BTreeMap<(&'a str, &'a str), usize> {
    let mut moved = BTreeMap::new();
    for (from, to) in before.values().zip(after.values()).filter(|(from, to)| from != to) {
        *moved.entry((from.as_str(), to.as_str())).or_default() += 1;
    }
    moved
}

/// Waits until so many nodes share all shards, and none is to move or on its way; gives who owns what then.
pub(super) fn settled(it: &Running, n_nodes: usize) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    eventually("the shards are shared, and stay where they are", || {
        let page = map_of_coordinator(it);
        found = owners(&page);
        let mut of_owners: BTreeMap<&str, u64> = BTreeMap::new();
        found.values().for_each(|owner| *of_owners.entry(owner).or_default() += 1);
        let node = page_of_coordinator(it, "node");
        // It is as of the same map only where the numbers agree.
        let stays = |(owner, n_owned): (&&str, &u64)| {
            let granted = node["granted"].as_array().into_iter().flatten();
            granted.filter(|of| of["node"] == **owner).any(|of| of["n_owned"] == *n_owned && of["n_moving"] == 0)
        };
        found.len() == 1024
            && of_owners.len() == n_nodes
            && of_owners.iter().all(stays)
            && map(it, 0)["epoch"] == page["epoch"]
    });
    found
}

#[test]
fn nodes_come_and_go_under_load_and_no_more_moves_than_must() {
    let mut scene = Scene::demo(KEYS);
    scene.options.pods = 5;
    scene.options.seeds = Some(3);
    let it = scene.start();
    settled(&it, 5);
    let leave = |pod| {
        assert!(it.cluster.signal(Role::Node, pod, Signal::SIGTERM));
        let status = it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("it leaves");
        assert!(status.success(), "{status}");
    };
    [3, 4].into_iter().for_each(leave);
    let of_three = settled(&it, 3);

    let ((of_five, of_three_again), seen) = under_load(&it, || {
        for pod in [3, 4] {
            it.cluster.start_again(Role::Node, pod).expect("starts");
        }
        let of_five = settled(&it, 5);
        [3, 4].into_iter().for_each(leave);
        (of_five, settled(&it, 3))
    });
    // The new two get their shares, and give them back; nothing else moves.
    let newcomers = of_five.values().filter(|owner| ["pod-3", "pod-4"].contains(&owner.as_str())).count();
    let (to_five, to_three) = (moved(&of_three, &of_five), moved(&of_five, &of_three_again));
    let (joined, left): (usize, usize) = (to_five.values().sum(), to_three.values().sum());
    println!("3 -> 5 nodes: {joined} of 1024 shards moved, {newcomers} must; 5 -> 3: {left}; {seen}");
    assert!(seen.errors.is_empty(), "{seen}");
    assert_eq!((joined, left), (newcomers, newcomers), "{to_five:?}, {to_three:?}");
}

/// Asks a node's data port for a key, and does not wait for the answer.
fn ask_directly(it: &Running, pod: usize, key: &str) -> TcpStream {
    let region = RegionName::parse("cache-data").expect("a name");
    let shard = shard_of(&region, key.as_bytes(), NShards::DEFAULT);
    let ask = Ask {
        deadline: PATIENCE,
        epoch: Epoch::default(),
        shard,
        region: bytes::Bytes::from_static(b"cache-data"),
        key: bytes::Bytes::copy_from_slice(key.as_bytes()),
    };
    let mut out = BytesMut::new();
    Hello::to_lane(0).encode(&mut out);
    Request { id: 1, body: RequestBody::Get(ask) }.encode(&mut out);
    let mut stream = TcpStream::connect(it.cluster.data_address(pod)).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(&out).expect("sent");
    stream
}

fn answer(stream: &mut TcpStream) -> AnswerBody {
    let mut reader = FrameReader::new(ANSWER_FRAME_BYTES_MAX);
    let mut chunk = [0; 4096];
    loop {
        while let Some(frame) = reader.next_frame().expect("a frame") {
            if let FromNode::Answer(answer) = FromNode::decode(frame).expect("a frame of ours") {
                return answer.body;
            }
        }
        let len = stream.read(&mut chunk).expect("an answer");
        assert_ne!(len, 0, "closed without an answer");
        reader.space().extend_from_slice(&chunk[..len]);
    }
}

/// Whether every thread of a process is stopped (proc_pid_stat(5): the state follows the name in parentheses).
pub(super) fn stands_still(pid: i32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).expect("its threads");
    threads.flatten().all(|thread| {
        let stat = std::fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    })
}

#[test]
fn a_node_that_stood_still_serves_nothing_from_memory() {
    let it = Scene::demo(KEYS).start();
    let mut anew = 0;
    for run in 1..=runs() {
        let leader = coordinator(&it);
        let victim = (0..3).find(|pod| *pod != leader).expect("one of three");
        // What the node itself says: a router's map may be an earlier one.
        let serves = |key: &String| matches!(answer(&mut ask_directly(&it, victim, key)), AnswerBody::Value { .. });
        let mut found = None;
        eventually("it serves something", || {
            found = (1..=30).map(|key| key.to_string()).find(serves);
            found.is_some()
        });
        let key = found.expect("a key");
        // What its coordinator's node knows comes a little later than what is so.
        eventually("it is known to own something", || !is_whole_without(&map_of_coordinator(&it), victim));
        assert!(it.cluster.signal(Role::Node, victim, Signal::SIGSTOP));
        // The signal is sent: its threads stop when they hear of it.
        eventually("all of it stands still", || stands_still(it.cluster.pid(Role::Node, victim).expect("it runs")));
        let mut waiting: Vec<TcpStream> = (0..20).map(|_| ask_directly(&it, victim, &key)).collect();
        eventually("its shards have other owners", || is_whole_without(&map_of_coordinator(&it), victim));
        let goes_on = Instant::now();
        assert!(it.cluster.signal(Role::Node, victim, Signal::SIGCONT));
        for stream in &mut waiting {
            match answer(stream) {
                AnswerBody::Misdirected { .. } => {}
                // It owns the shard again already, and has loaded the key anew.
                AnswerBody::Value { entry, .. } if entry.age <= goes_on.elapsed() => anew += 1,
                AnswerBody::Value { entry, .. } => {
                    panic!("run {run}, {:?} after it went on: {entry:?}", goes_on.elapsed())
                }
                answer => panic!("run {run}: {answer:?}"),
            }
        }
        it.cluster.wait_ready(PATIENCE).expect("it joins again");
        settled(&it, 3);
    }
    println!("{} runs: no answer from memory after a standstill, {anew} values loaded anew", runs());
}
