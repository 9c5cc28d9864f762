//! Planned changes under load: no request fails, and nothing is read from the database again. `FAULT_RUNS` makes the runs
//! long.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::future::join_all;
use loadtest::cluster::{Role, Signal};

use super::faults::{coordinator, settled, stands_still};
use super::*;

/// What clients have seen: how long each read took, and what went wrong.
#[derive(Debug, Default)]
struct Seen {
    micros: Vec<u64>,
    errors: BTreeMap<String, u64>,
}

impl Seen {
    fn p99(&mut self) -> Duration {
        self.micros.sort_unstable();
        Duration::from_micros(self.micros[self.micros.len() * 99 / 100])
    }
}

fn is_long() -> bool {
    std::env::var("FAULT_RUNS").is_ok()
}

/// Entries that are in memory, and clients that read them.
fn size() -> (u64, usize) {
    if is_long() { (100_000, 64) } else { (20_000, 16) }
}

/// All in memory, for longer than the test.
fn warm(n_pods: usize) -> Running {
    let (n_rows, _) = size();
    let rows = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n_rows}) \
         INSERT INTO things SELECT 'k' || i, 'v' || i || hex(zeroblob(500)) FROM n"
    );
    let config = format!("{DATABASE}{REGION}ttl = \"1h\"\nmax_stale = \"2h\"\n");
    let mut scene = Scene::configured(&rows, &config);
    (scene.options.pods, scene.options.seeds) = (n_pods, Some(3));
    let it = scene.start();
    settled(&it, n_pods);
    read_all(&it);
    assert_eq!(it.sum("cache_node_entries", &[]), n_rows as f64);
    it
}

fn read_all(it: &Running) {
    for first in (1..=size().0).step_by(500) {
        let keys: Vec<String> = (first..first + 500).map(|i| format!("k{i}")).collect();
        let url = format!("{}/things", it.cluster.url(0));
        let answer = it.client.post(url).json(&serde_json::json!({ "keys": keys })).send().expect("an answer");
        assert_eq!(answer.status(), 200);
    }
}

/// What the same costs without a hand-off: each node is killed in turn, and starts again.
fn restart_cold(it: &Running) {
    let mut cost = Cost::default();
    for pod in [2, 1, 0] {
        cost.count(it, -1.0, (0..3).filter(|other| *other != pod));
        assert!(it.cluster.signal(Role::Node, pod, Signal::SIGKILL));
        it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("it has ended");
        it.cluster.start_again(Role::Node, pod).expect("starts");
        it.cluster.wait_ready(PATIENCE).expect("ready");
        settled(it, 3);
        read_all(it);
        cost.count(it, 1.0, 0..3);
    }
    println!("beside it, each node killed in turn: {} keys read from the database again", cost.keys);
    assert!(cost.keys > size().0 as f64 / 2.0, "{}: is nothing lost with a node that is killed?", cost.keys);
}

async fn read(it: &Running, client: &reqwest::Client, seen: &Mutex<Seen>, is_over: &AtomicBool) {
    let n_rows = size().0;
    while !is_over.load(Ordering::Relaxed) {
        let (pod, key) = (fastrand::usize(..3), fastrand::u64(1..=n_rows));
        let began = Instant::now();
        let asked = async {
            let answer = client.get(format!("{}/things/k{key}", it.cluster.url(pod))).send().await?;
            Ok::<_, reqwest::Error>((answer.status(), answer.text().await?))
        };
        let answer = asked.await;
        let micros = u64::try_from(began.elapsed().as_micros()).expect("short");
        let error = match answer {
            Ok((status, text)) if status == 200 => {
                (!text.starts_with(&format!("v{key}00"))).then(|| "a wrong value".to_owned())
            }
            Ok((status, text)) => Some(format!("{status}: {text}")),
            Err(error) => Some(error.to_string()),
        };
        let mut seen = seen.lock().expect("no panic under it");
        seen.micros.push(micros);
        if let Some(error) = error {
            *seen.errors.entry(error).or_default() += 1;
        }
    }
}

struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// All clients share one thread: on other machines as they would be, they take no turns of the servers' processors.
fn under_load<T>(it: &Running, work: impl FnOnce() -> T) -> (T, Seen) {
    let (seen, is_over) = (Mutex::default(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        let _ends = Ends(&is_over);
        scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
            runtime.block_on(join_all((0..size().1).map(|_| read(it, &client, &seen, &is_over))));
        });
        work()
    });
    (done, seen.into_inner().expect("no panic under it"))
}

/// What a planned change has cost.
#[derive(Debug, Default)]
struct Cost {
    /// Keys that were read from the database, whatever for.
    keys: f64,
    /// For how long nobody served each shard that was taken over, in microseconds.
    pauses: Vec<u64>,
    cold: f64,
}

impl Cost {
    /// Adds what the nodes that run now say, and forgets what one said that is about to end.
    fn count(&mut self, it: &Running, sign: f64, pods: impl Iterator<Item = usize>) {
        for pod in pods {
            // One that has ended has no more to say.
            let Ok(samples) = it.samples_of(pod) else { continue };
            self.keys += sign * samples.sum("cache_node_database_keys_total", &[]);
            self.cold += sign * samples.sum("cache_node_handoff_cold_total", &[]);
        }
    }

    /// Takes in for how long shards were not served that a node has taken over since its start.
    fn pauses(&mut self, it: &Running, pod: usize) {
        let page = it.client.get(format!("{}/-/node", it.cluster.control(pod))).send().expect("an answer");
        let page: serde_json::Value = page.json().expect("JSON");
        let moves = page["moves"].as_array().cloned().unwrap_or_default();
        self.pauses.extend(moves.iter().map(|one| one["pause_us"].as_u64().expect("a number")));
    }

    fn check(mut self, what: &str, mut calm: Seen, mut seen: Seen) {
        self.pauses.sort_unstable();
        let pause = |part: usize| Duration::from_micros(self.pauses[(self.pauses.len() - 1) * part / 100]);
        let (before, during, n_rows) = (calm.p99(), seen.p99(), size().0);
        println!(
            "{what}, {n_rows} entries: {} reads, failed {:?}; {} keys read from the database; {} shards moved, {} cold; \
             nobody served a shard for {:?} (median), {:?} (longest); p99 {before:?} before, {during:?} meanwhile",
            seen.micros.len(),
            seen.errors,
            self.keys,
            self.pauses.len(),
            self.cold,
            pause(50),
            pause(100),
        );
        assert!(seen.errors.is_empty(), "{:?}", seen.errors);
        assert!(self.keys <= n_rows as f64 / 1000.0, "{}", self.keys);
        assert_eq!(self.cold, 0.0);
        // A busy machine says nothing.
        if is_long() {
            assert!(pause(50) < Duration::from_millis(5) && pause(100) < Duration::from_millis(50), "{:?}", pause(100));
            assert!(during <= 3 * before, "{before:?} {during:?}");
        }
    }
}

/// The most memory that a process has while something happens, as a part of what it had before.
fn watch_memory(pid: i32, is_over: &AtomicBool) -> f64 {
    let resident = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<f64>().ok()
    };
    let before = resident().expect("it runs");
    let mut most = before;
    while let (Some(now), false) = (resident(), is_over.load(Ordering::Relaxed)) {
        most = most.max(now);
        std::thread::sleep(PAUSE);
    }
    most / before
}

fn leave(it: &Running, pod: usize) {
    assert!(it.cluster.signal(Role::Node, pod, Signal::SIGTERM));
    let status = it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("it leaves");
    assert!(status.success(), "{status}");
}

#[test]
fn a_rolling_restart_fails_no_read_and_costs_no_read_of_the_database() {
    let it = warm(3);
    let ((), calm) = under_load(&it, || std::thread::sleep(Duration::from_secs(2)));
    let (mut cost, mut memory) = (Cost::default(), 0.0_f64);
    cost.count(&it, -1.0, 0..3);
    let ((), seen) = under_load(&it, || {
        for pod in [2, 1, 0] {
            // What it says now is forgotten with it.
            cost.count(&it, 1.0, pod..=pod);
            let (pid, is_over) = (it.cluster.pid(Role::Node, pod).expect("it runs"), AtomicBool::new(false));
            let used = std::thread::scope(|scope| {
                let watching = scope.spawn(|| watch_memory(pid, &is_over));
                leave(&it, pod);
                is_over.store(true, Ordering::Relaxed);
                watching.join().expect("a watch")
            });
            memory = memory.max(used);
            it.cluster.start_again(Role::Node, pod).expect("starts");
            it.cluster.wait_ready(PATIENCE).expect("ready");
            settled(&it, 3);
            cost.pauses(&it, pod);
        }
    });
    cost.count(&it, 1.0, 0..3);
    println!("memory of a node that gives everything away: {memory:.2} of before");
    assert!(!is_long() || memory <= 1.1, "{memory}");
    if is_long() {
        restart_cold(&it);
    }
    cost.check("rolling restart of three nodes", calm, seen);
}

#[test]
fn a_node_that_is_told_to_leave_once_more_does_not_wait_for_who_is_to_have_its_shards() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    settled(&it, 3);
    let leader = coordinator(&it);
    let (next, leaver) = ((leader + 1) % 3, (leader + 2) % 3);
    assert!(it.cluster.signal(Role::Node, next, Signal::SIGSTOP));
    eventually("it stands still", || stands_still(it.cluster.pid(Role::Node, next).expect("it runs")));
    assert!(it.cluster.signal(Role::Node, leaver, Signal::SIGTERM));
    let n_giving = || it.samples_of(leaver).expect("it runs").sum("cache_node_shards", &["state=\"giving\""]);
    eventually("it has shards to give", || n_giving() > 0.0);
    assert!(it.cluster.signal(Role::Node, leaver, Signal::SIGTERM));
    let status = it.cluster.wait_ended(Role::Node, leaver, PATIENCE).expect("it leaves");
    assert!(status.success(), "{status}");
    let log = std::fs::read_to_string(it.cluster.log(Role::Node, leaver)).expect("a log");
    assert!(log.contains("shards are given away without what is in memory"), "{log}");
}

#[test]
fn nodes_come_and_go_and_nothing_is_read_again() {
    let it = warm(5);
    let of_three = |it: &Running| {
        [4, 3].into_iter().for_each(|pod| leave(it, pod));
        settled(it, 3)
    };
    of_three(&it);
    let ((), calm) = under_load(&it, || std::thread::sleep(Duration::from_secs(2)));
    let mut cost = Cost::default();
    cost.count(&it, -1.0, 0..3);
    let ((), seen) = under_load(&it, || {
        for pod in [3, 4] {
            it.cluster.start_again(Role::Node, pod).expect("starts");
        }
        it.cluster.wait_ready(PATIENCE).expect("ready");
        settled(&it, 5);
        [3, 4].into_iter().for_each(|pod| cost.pauses(&it, pod));
        cost.count(&it, 1.0, 3..5);
        of_three(&it);
    });
    (0..3).for_each(|pod| cost.pauses(&it, pod));
    cost.count(&it, 1.0, 0..3);
    cost.check("3 -> 5 -> 3 nodes", calm, seen);
}

#[test]
fn of_what_has_no_room_the_most_valuable_arrives() {
    let n_rows = 6000;
    let rows = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n_rows}) \
         INSERT INTO things SELECT 'k' || i, hex(zeroblob(500)) FROM n"
    );
    // Three nodes have room for all, two for two thirds of it.
    let config = format!("{DATABASE}{REGION}ttl = \"1h\"\nmax_stale = \"2h\"\nmax_bytes = \"3MiB\"\n");
    let it = Scene::configured(&rows, &config).start();
    settled(&it, 3);
    let read = |keys: &mut dyn Iterator<Item = usize>| {
        let keys: Vec<String> = keys.map(|i| format!("k{i}")).collect();
        for keys in keys.chunks(500) {
            let url = format!("{}/things", it.cluster.url(0));
            let answer = it.client.post(url).json(&serde_json::json!({ "keys": keys })).send().expect("an answer");
            assert_eq!(answer.status(), 200);
        }
    };
    read(&mut (1..=n_rows));
    // One in four is asked for again and again.
    (0..5).for_each(|_| read(&mut (1..=n_rows).step_by(4)));
    let loaded =
        || (0..2).map(|pod| it.samples_of(pod).expect("text").sum("cache_node_database_keys_total", &[])).sum::<f64>();
    leave(&it, 2);
    settled(&it, 2);
    let before = loaded();
    read(&mut (1..=n_rows).step_by(4));
    let again = loaded() - before;
    let hot = n_rows as f64 / 4.0;
    println!("of {hot} entries that are asked for often {again} were read again");
    assert!(again <= hot / 20.0, "{again} of {hot}");
    for pod in 0..2 {
        let bytes = it.samples_of(pod).expect("text").sum("cache_node_entry_bytes", &[]);
        assert!(bytes <= 3.0 * 1024.0 * 1024.0, "{bytes}");
    }
}

#[test]
fn a_key_whose_load_is_in_the_air_is_read_once_all_the_same() {
    const SLOW: &str = "(SELECT count(*) FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE \
                        i < 30000) SELECT i FROM n)) > 0";
    let config = format!(
        "{DATABASE}{}ttl = \"1h\"\nmax_stale = \"2h\"\n",
        REGION.replace("(:keys)", &format!("(:keys) AND {SLOW}"))
    );
    let it = Scene::configured("INSERT INTO things VALUES ('k', 'one')", &config).start();
    settled(&it, 3);
    leave(&it, 2);
    settled(&it, 2);
    let keys_read = || it.sum("cache_node_database_keys_total", &[]);
    let (before, n_keys, is_over) = (keys_read(), AtomicUsize::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let _ends = Ends(&is_over);
        for client in 0..8 {
            let (it, n_keys, is_over) = (&it, &n_keys, &is_over);
            scope.spawn(move || {
                let http = super::client();
                while !is_over.load(Ordering::Relaxed) {
                    // Two ask for each key, at about the same time, through different routers.
                    let key = n_keys.fetch_add(1, Ordering::Relaxed) / 2;
                    let answer = http.get(format!("{}/things/new-{key}", it.cluster.url(client % 2))).send();
                    assert_eq!(answer.expect("an answer").status(), 404);
                }
            });
        }
        it.cluster.start_again(Role::Node, 2).expect("starts");
        it.cluster.wait_ready(PATIENCE).expect("ready");
        settled(&it, 3);
    });
    let n_keys = n_keys.into_inner().div_ceil(2);
    let read = keys_read() - before;
    println!("{n_keys} keys were asked for while a third of all shards moved, {read} were read");
    assert_eq!(read, n_keys as f64);
}
