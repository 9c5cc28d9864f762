//! Planned changes under load: no request fails, and nothing is read from the database again. `FAULT_RUNS` makes the runs
//! long.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use loadtest::cluster::{Role, Signal};

use super::faults::settled;
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
fn warm() -> Running {
    let (n_rows, _) = size();
    let rows = format!(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n_rows}) \
         INSERT INTO things SELECT 'k' || i, 'v' || i || hex(zeroblob(500)) FROM n"
    );
    let config = format!("{DATABASE}{REGION}ttl = \"1h\"\nmax_stale = \"2h\"\n");
    let it = Scene::configured(&rows, &config).start();
    settled(&it, 3);
    for first in (1..=n_rows).step_by(500) {
        let keys: Vec<String> = (first..first + 500).map(|i| format!("k{i}")).collect();
        let url = format!("{}/things", it.cluster.url(0));
        let answer = it.client.post(url).json(&serde_json::json!({ "keys": keys })).send().expect("an answer");
        assert_eq!(answer.status(), 200);
    }
    assert_eq!(it.sum("cache_node_entries", &[]), n_rows as f64);
    it
}

fn read(it: &Running, seen: &Mutex<Seen>, is_over: &AtomicBool) {
    let (client, n_rows) = (client(), size().0);
    while !is_over.load(Ordering::Relaxed) {
        let (pod, key) = (fastrand::usize(..3), fastrand::u64(1..=n_rows));
        let began = Instant::now();
        let answer = client.get(format!("{}/things/k{key}", it.cluster.url(pod))).send();
        let micros = u64::try_from(began.elapsed().as_micros()).expect("short");
        let error = match answer {
            Ok(answer) if answer.status() == 200 => {
                (!answer.text().expect("text").starts_with(&format!("v{key}00"))).then(|| "a wrong value".to_owned())
            }
            Ok(answer) => Some(format!("{}: {}", answer.status(), answer.text().unwrap_or_default())),
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

fn under_load<T>(it: &Running, work: impl FnOnce() -> T) -> (T, Seen) {
    let (seen, is_over) = (Mutex::default(), AtomicBool::new(false));
    let done = std::thread::scope(|scope| {
        let _ends = Ends(&is_over);
        (0..size().1).for_each(|_| {
            scope.spawn(|| read(it, &seen, &is_over));
        });
        work()
    });
    (done, seen.into_inner().expect("no panic under it"))
}

/// Keys that were read from the database, whatever for. Nodes that have ended meanwhile have taken their counts along.
fn database_keys(it: &Running) -> f64 {
    it.sum("cache_node_database_keys_total", &[])
}

#[test]
fn a_rolling_restart_fails_no_read_and_costs_no_read_of_the_database() {
    let it = warm();
    let ((), mut calm) = under_load(&it, || std::thread::sleep(Duration::from_secs(2)));
    let mut cost = 0.0;
    let ((), mut seen) = under_load(&it, || {
        for pod in [2, 1, 0] {
            let before = database_keys(&it);
            let own = Samples::parse(
                &it.client
                    .get(format!("{}/metrics", it.cluster.control(pod)))
                    .send()
                    .and_then(Response::text)
                    .expect("text"),
            );
            assert!(it.cluster.signal(Role::Node, pod, Signal::SIGTERM));
            let status = it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("it leaves");
            assert!(status.success(), "{status}");
            it.cluster.start_again(Role::Node, pod).expect("starts");
            it.cluster.wait_ready(PATIENCE).expect("ready");
            settled(&it, 3);
            cost += database_keys(&it) - (before - own.sum("cache_node_database_keys_total", &[]));
        }
    });
    let warm = it.sum("cache_node_handoff_warm_total", &[]);
    let cold = it.sum("cache_node_handoff_cold_total", &[]);
    println!(
        "rolling restart of three nodes, {} entries: {} reads, p99 {:?} before, {:?} during, failed {:?}; {cost} keys read from \
         the database; {warm} shards warm and {cold} cold on the nodes that run now",
        size().0,
        seen.micros.len(),
        calm.p99(),
        seen.p99(),
        seen.errors,
    );
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert!(cost <= size().0 as f64 / 1000.0, "{cost}");
}
