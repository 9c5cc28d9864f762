//! The whole: real processes on free ports, a real database file, HTTP from outside.

mod bad_input;
mod cuts;
mod database;
mod docs;
mod faults;
mod frames;
mod handoff;
mod invalidate;
mod load;
mod local_cluster;
mod processes;
mod serving;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use loadtest::cluster::{Cluster, Options};
use loadtest::demo;
use loadtest::figures::Samples;
use reqwest::blocking::{Client, Response};
use tempfile::TempDir;

/// Longest time for anything that a test waits for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks at something that is to become true.
const PAUSE: Duration = Duration::from_millis(10);

const DATABASE: &str = "[database.main]\nurl = \"sqlite:test.db\"\n";
const REGION: &str = "[region.things]\ndatabase = \"main\"\n\
    load = \"SELECT id, body FROM things WHERE id IN (:keys)\"\ncontent_type = \"text/plain\"\n";

/// A cluster to be, on a database of its own.
struct Scene {
    dir: TempDir,
    options: Options,
}

/// A cluster that runs.
struct Running {
    dir: TempDir,
    cluster: Cluster,
    client: Client,
}

impl Scene {
    /// A table `things (id, body)`, filled by `sql`, and a region of this name.
    fn new(sql: &str) -> Self {
        Self::configured(sql, &format!("{DATABASE}{REGION}"))
    }

    fn configured(sql: &str, config: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let database = rusqlite::Connection::open(dir.path().join("test.db")).expect("a database");
        database.execute_batch("CREATE TABLE things (id TEXT PRIMARY KEY, body)").expect("a table");
        database.execute_batch(sql).expect("sound SQL");
        let path = dir.path().join("cache.toml");
        std::fs::write(&path, config).expect("a file");
        let options = Options::new(path, dir.path());
        Self { dir, options }
    }

    /// The demo's region over so many products.
    fn demo(n_products: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        demo::make_database(&dir.path().join("demo.db"), n_products).expect("a database");
        let config = demo::prepare(dir.path()).expect("a configuration");
        let options = Options::new(config, dir.path());
        Self { dir, options }
    }

    fn start(self) -> Running {
        let cluster = Cluster::start_ready(&self.options, PATIENCE).unwrap_or_else(|error| panic!("{error}"));
        Running { dir: self.dir, cluster, client: client() }
    }
}

fn client() -> Client {
    Client::builder().timeout(PATIENCE).build().expect("a client")
}

impl Running {
    fn get(&self, pod: usize, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.cluster.url(pod))).send().expect("an answer")
    }

    /// Sum over all processes of the cluster that run.
    fn samples(&self) -> Samples {
        let mut all = Samples::default();
        for pod in 0..self.cluster.n_pods() {
            for base in [self.cluster.url(pod), self.cluster.control(pod)] {
                if let Ok(page) = self.client.get(format!("{base}/metrics")).send() {
                    all.add(&Samples::parse(&page.text().expect("text")));
                }
            }
        }
        all
    }

    /// Of one node.
    fn samples_of(&self, pod: usize) -> reqwest::Result<Samples> {
        let page = self.client.get(format!("{}/metrics", self.cluster.control(pod))).send()?.text()?;
        Ok(Samples::parse(&page))
    }

    /// Whether a node, if it answers, coordinates.
    fn coordinates(&self, pod: usize) -> bool {
        self.samples_of(pod).is_ok_and(|samples| samples.sum("cache_node_coordinator", &[]) == 1.0)
    }

    fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        self.samples().sum(metric, labels)
    }

    /// A connection to the database that may write.
    fn database(&self) -> rusqlite::Connection {
        let database = rusqlite::Connection::open(self.path("test.db")).expect("opens");
        database.busy_timeout(PATIENCE).expect("a timeout");
        database
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Which pod owns a key.
    fn owner(&self, region: &str, key: &str) -> usize {
        let page: serde_json::Value = self.get(0, &format!("/-/explain/{region}/{key}")).json().expect("JSON");
        let owner = page["owner"].as_str().expect("an owner");
        owner.strip_prefix("pod-").and_then(|number| number.parse().ok()).expect("a pod")
    }

    /// A key that this pod owns, among those that `key` makes.
    fn key_of(&self, pod: usize, region: &str, key: impl Fn(usize) -> String) -> String {
        (1..1000).map(key).find(|key| self.owner(region, key) == pod).expect("every pod owns a third of the keys")
    }
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map_or("", |value| value.to_str().expect("text"))
}

/// Looks until it is true; the deadline only ends a test that fails.
fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_true() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Sends bytes as they are, and reads to the end of the connection.
fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // A server that has seen enough may close before all is written.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
