//! Every database, as a real server that the tests start: what a cluster asks of it, counted by the server itself.
//! `FAULT_RUNS` makes the runs long.

mod announcing;
mod away;
mod budget;
mod histories;
mod reading;
mod servers;
mod slow;
mod tls;
mod writing;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use loadtest::cluster::{Cluster, Options, Role};
use loadtest::figures::Samples;
use reqwest::blocking::Client;
use tempfile::TempDir;

use servers::{Kind, Operation, Server};

/// Longest time for anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is to become true.
const PAUSE: Duration = Duration::from_millis(10);
/// The deadline of a request, unless a test says otherwise.
const DEADLINE: Duration = Duration::from_secs(2);

/// Runs of each fault.
fn n_runs() -> usize {
    std::env::var("FAULT_RUNS").ok().map_or(1, |runs| runs.parse().expect("a number"))
}

/// Whether the long runs are wanted.
fn is_long() -> bool {
    n_runs() > 1
}

/// A cluster on a database.
struct Scene {
    server: Server,
    cluster: Cluster,
    client: Client,
    _dir: TempDir,
}

/// A database to be used by a cluster.
struct Plan {
    server: Server,
    url: String,
    of_database: String,
    of_region: String,
    relayed: bool,
}

impl Plan {
    fn new(server: Server) -> Self {
        let (url, of_region) = (server.url(), server.query().to_owned());
        Self { server, url, of_database: String::new(), of_region, relayed: false }
    }

    fn database(mut self, lines: &str) -> Self {
        self.of_database += lines;
        self
    }

    fn region(mut self, lines: &str) -> Self {
        self.of_region += lines;
        self
    }

    /// Starts three pods; the url comes from the environment.
    fn start(self) -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("cache.toml");
        let Self { url, of_database, of_region, .. } = &self;
        let config = format!(
            "[database.main]\nurl = \"$TEST_URL\"\n{of_database}[region.things]\ndatabase = \"main\"\n{of_region}"
        );
        std::fs::write(&path, config).expect("a file");
        let mut options = Options::new(path, dir.path());
        options.relayed = self.relayed;
        options.envs.push(("TEST_URL".to_owned(), url.clone()));
        options.envs.push(("RUST_LOG".to_owned(), "info,cache_node::sqlite_trace=trace".to_owned()));
        let cluster = Cluster::start_ready(&options, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        Scene { server: self.server, cluster, client, _dir: dir }
    }
}

/// What clients were told.
#[derive(Clone, Debug, Default)]
struct Told {
    /// By status.
    statuses: BTreeMap<u16, u64>,
    slowest: Duration,
    /// Answers of 503 that did not say when to come again.
    without_retry_after: u64,
    /// Values that were not the right ones.
    wrong: u64,
}

impl Scene {
    fn get(&self, pod: usize, path: &str) -> reqwest::blocking::Response {
        self.client.get(format!("{}{path}", self.cluster.url(pod))).send().expect("an answer")
    }

    fn logs(&self) -> Vec<PathBuf> {
        (0..self.cluster.n_pods()).map(|pod| self.cluster.log(Role::Node, pod).to_owned()).collect()
    }

    /// What the database says that it was asked.
    fn operations(&self) -> Vec<Operation> {
        self.server.operations(&self.logs())
    }

    /// What a node tells of itself; `None`: it does not answer.
    fn samples(&self, pod: usize) -> Option<Samples> {
        let page = self.client.get(format!("{}/metrics", self.cluster.control(pod))).send().ok()?.text().ok()?;
        Some(Samples::parse(&page))
    }

    /// Sum over all nodes that run.
    fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        (0..self.cluster.n_pods()).filter_map(|pod| self.samples(pod)).map(|samples| samples.sum(metric, labels)).sum()
    }

    /// The pod that coordinates, once there is one.
    fn coordinator(&self) -> usize {
        let leads = |pod: &usize| self.samples(*pod).is_some_and(|of| of.sum("cache_node_coordinator", &[]) == 1.0);
        let mut found = None;
        eventually("one coordinates", || {
            found = (0..self.cluster.n_pods()).find(leads);
            found.is_some()
        });
        found.expect("one does")
    }

    /// Waits until the nodes have all of the budget that is lent.
    fn await_shares(&self, slots: f64) {
        eventually("the budget is lent", || self.sum("cache_node_budget_slots", &[]) >= slots);
    }

    /// Reads each of these keys once through some router, so many at a time. Who is told to come again does so, `tries` times
    /// at most.
    fn read_all(&self, keys: impl Fn(u64) -> String + Send + Sync, n_keys: u64, at_once: usize, tries: u32) -> Told {
        let urls: Vec<String> = (0..self.cluster.n_pods()).map(|pod| self.cluster.url(pod)).collect();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let client = reqwest::Client::builder().timeout(PATIENCE).build().expect("a client");
            let (next, told) = (AtomicU64::new(1), std::sync::Mutex::new(Told::default()));
            let reader = || async {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number > n_keys {
                        return;
                    }
                    for _ in 0..tries {
                        let url = format!("{}/things/{}", fastrand::choice(&urls).expect("a router"), keys(number));
                        if read(&client, &url, number, &told).await {
                            break;
                        }
                    }
                }
            };
            futures_util::future::join_all((0..at_once).map(|_| reader())).await;
            told.into_inner().expect("no panic under it")
        })
    }
}

/// One read; whether the client is done with it.
async fn read(client: &reqwest::Client, url: &str, number: u64, told: &std::sync::Mutex<Told>) -> bool {
    let began = Instant::now();
    let answer = client.get(url).send().await.expect("an answer");
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body = answer.text().await.expect("a body");
    let retry_after = headers.get("retry-after").and_then(|header| header.to_str().ok()?.parse::<u64>().ok());
    {
        let mut told = told.lock().expect("no panic under it");
        *told.statuses.entry(status).or_default() += 1;
        told.slowest = told.slowest.max(began.elapsed());
        told.without_retry_after += u64::from(status == 503 && retry_after.is_none());
        told.wrong += u64::from(status == 200 && body != format!("v{number}"));
    }
    if status == 503 {
        tokio::time::sleep(Duration::from_secs(retry_after.unwrap_or(1))).await;
    }
    status != 503
}

fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Clients that read all the time until they are told to stop.
struct Load {
    is_over: Arc<AtomicUsize>,
    readers: Vec<std::thread::JoinHandle<Told>>,
}

impl Load {
    /// Each reads keys that `key` makes of a number, through the routers of all pods.
    fn start(it: &Scene, n_readers: usize, key: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let (is_over, key) = (Arc::new(AtomicUsize::new(0)), Arc::new(key));
        let urls: Vec<String> = (0..it.cluster.n_pods()).map(|pod| it.cluster.url(pod)).collect();
        let reader = |_| {
            let (is_over, key, urls) = (Arc::clone(&is_over), Arc::clone(&key), urls.clone());
            std::thread::spawn(move || {
                let client = Client::builder().timeout(PATIENCE).build().expect("a client");
                let mut told = Told::default();
                while is_over.load(Ordering::Relaxed) == 0 {
                    let number = key();
                    let began = Instant::now();
                    let url = format!("{}/things/k{number}", fastrand::choice(&urls).expect("a router"));
                    let Ok(answer) = client.get(url).send() else {
                        *told.statuses.entry(0).or_default() += 1;
                        continue;
                    };
                    let (status, has_retry) = (answer.status().as_u16(), answer.headers().contains_key("retry-after"));
                    let is_wrong = answer.text().is_ok_and(|body| status == 200 && body != format!("v{number}"));
                    *told.statuses.entry(status).or_default() += 1;
                    told.slowest = told.slowest.max(began.elapsed());
                    told.without_retry_after += u64::from(status == 503 && !has_retry);
                    told.wrong += u64::from(is_wrong);
                }
                told
            })
        };
        let readers = (0..n_readers).map(reader).collect();
        Self { is_over, readers }
    }

    fn end(mut self) -> Told {
        self.is_over.store(1, Ordering::Relaxed);
        let mut all = Told::default();
        for told in self.readers.drain(..).map(|reader| reader.join().expect("a reader")) {
            for (status, n) in told.statuses {
                *all.statuses.entry(status).or_default() += n;
            }
            all.slowest = all.slowest.max(told.slowest);
            all.without_retry_after += told.without_retry_after;
            all.wrong += told.wrong;
        }
        all
    }
}

/// A test that failed leaves no readers behind, who would keep the machine from the others.
impl Drop for Load {
    fn drop(&mut self) {
        self.is_over.store(1, Ordering::Relaxed);
    }
}
