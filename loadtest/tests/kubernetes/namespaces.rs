//! Pods on hosts of their own, without Kubernetes: a network namespace each, with the environment of the manifests.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use loadtest::demo;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::blocking::Client;
use tempfile::TempDir;

use super::*;

/// Longest time for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);
/// Products of the demo; every one is read.
const N_PRODUCTS: u64 = 200;
/// Clients that read all the time.
const N_READERS: usize = 4;
/// Networks that were made.
static N_NETS: AtomicUsize = AtomicUsize::new(0);
/// Where namespaces have files of their own.
const NETNS_FILES: &str = "/etc/netns";

/// Three pods on a switch. The thread that made them is on the switch too: it has an address there and nowhere else.
struct Net {
    prefix: String,
    dir: TempDir,
    set: Value,
    database: String,
    pods: BTreeMap<usize, Pod>,
    client: Client,
}

/// Clients of the service: they read through every router that is ready, all the time, and look at every value.
struct Load {
    routers: Arc<Mutex<Vec<String>>>,
    is_over: Arc<AtomicBool>,
    readers: Vec<JoinHandle<(usize, Vec<String>)>>,
}

impl Load {
    /// Requires: called on the switch; threads are where the one is that made them.
    fn start(routers: Vec<String>) -> Self {
        let (routers, is_over) = (Arc::new(Mutex::new(routers)), Arc::new(AtomicBool::new(false)));
        let reader = |_| {
            let (routers, is_over) = (Arc::clone(&routers), Arc::clone(&is_over));
            std::thread::spawn(move || read_on(&routers, &is_over))
        };
        let readers = (0..N_READERS).map(reader).collect();
        Self { routers, is_over, readers }
    }

    /// As an endpoint of the service: a pod that is ready is one, a pod that is told to leave is none.
    fn set(&self, router: &str, is_ready: bool) {
        let mut routers = self.routers.lock().expect("no panic under it");
        routers.retain(|one| one != router);
        if is_ready {
            routers.push(router.to_owned());
        }
    }

    /// How many reads there were, and which failed.
    fn end(self) -> (usize, Vec<String>) {
        self.is_over.store(true, Ordering::Relaxed);
        let read = self.readers.into_iter().map(|reader| reader.join().expect("a reader"));
        read.fold((0, Vec::new()), |(n, all), (more, failed)| (n + more, [all, failed].concat()))
    }
}

fn read_on(routers: &Mutex<Vec<String>>, is_over: &AtomicBool) -> (usize, Vec<String>) {
    let client = Client::builder().timeout(PATIENCE).build().expect("a client");
    let (mut n_reads, mut failed) = (0, Vec::new());
    while !is_over.load(Ordering::Relaxed) {
        let id = fastrand::u64(1..=N_PRODUCTS);
        let router = fastrand::choice(&*routers.lock().expect("no panic under it")).expect("one is ready").clone();
        let read = client.get(format!("{router}/cache-data/{id}")).send().and_then(|answer| {
            let status = answer.status();
            Ok((status, answer.text()?))
        });
        n_reads += 1;
        match read {
            Ok((status, body)) if status == 200 && body == demo::product(id) => {}
            other => failed.push(format!("{router}: {other:?}")),
        }
    }
    (n_reads, failed)
}

/// A host with its two processes.
struct Pod {
    namespace: String,
    address: String,
    processes: Vec<Child>,
}

impl Drop for Pod {
    fn drop(&mut self) {
        for process in &mut self.processes {
            // It has ended already, or ends now.
            let _ = process.kill();
            let _ = process.wait();
        }
        let _ = std::fs::remove_dir_all(Path::new(NETNS_FILES).join(&self.namespace));
        let _ = try_ip(&format!("netns del {}", self.namespace));
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.pods.clear();
        let _ = try_ip(&format!("netns del {}", self.prefix));
    }
}

fn try_ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn ip(arguments: &str) {
    try_ip(arguments).unwrap_or_else(|error| panic!("ip {arguments}: {error}"));
}

fn dns_name(pod: usize) -> String {
    format!("distributed-cache-{pod}.default.svc.cluster.local")
}

impl Net {
    /// `None` where namespaces cannot be made.
    fn new() -> Option<Self> {
        let prefix = format!("cache-{}-{}", std::process::id(), N_NETS.fetch_add(1, Ordering::Relaxed));
        if let Err(error) = try_ip(&format!("netns add {prefix}")) {
            eprintln!("skipped: network namespaces need root and iproute2: {}", error.trim());
            return None;
        }
        let switch = File::open(format!("/run/netns/{prefix}")).expect("it was made");
        setns(switch, CloneFlags::CLONE_NEWNET).expect("this thread changes its network");
        ip("link set lo up");
        ip("link add switch type bridge");
        ip("addr add 198.18.0.1/16 dev switch");
        ip("link set switch up");

        let demo = documents(&rendered("k8s/overlays/demo"));
        let set = document(&demo, "StatefulSet", "distributed-cache").clone();
        let dir = tempfile::tempdir().expect("a directory");
        demo::make_database(&dir.path().join("demo.db"), N_PRODUCTS).expect("a database");
        let config = document(&demo, "ConfigMap", "distributed-cache")["data"]["cache.toml"].as_str().expect("a file");
        std::fs::write(dir.path().join("cache.toml"), config).expect("a file");
        let database = format!("sqlite:{}", dir.path().join("demo.db").display());
        let client = Client::builder().timeout(PATIENCE).build().expect("a client");
        Some(Self { prefix, dir, set, database, pods: BTreeMap::new(), client })
    }

    /// Starts a pod at an address. `hosts` is what its name server says of all pods.
    fn start(&mut self, ordinal: usize, life: usize, hosts: &[&str]) {
        let (namespace, link) = (format!("{}-{ordinal}-{life}", self.prefix), format!("pod-{ordinal}-{life}"));
        let address = address(ordinal, life);
        ip(&format!("netns add {namespace}"));
        ip(&format!("link add {link} type veth peer name eth0 netns {namespace}"));
        ip(&format!("link set {link} master switch up"));
        // The same for each life, as the service's address is: nobody has to learn where it went.
        ip(&format!("-n {namespace} link set eth0 address 02:00:00:00:00:{ordinal:02x}"));
        ip(&format!("-n {namespace} addr add {address}/16 dev eth0"));
        if let Some(service) = hosts.get(ordinal).filter(|host| **host == service_address(ordinal)) {
            ip(&format!("-n {namespace} addr add {service}/16 dev eth0"));
        }
        ip(&format!("-n {namespace} link set lo up"));
        ip(&format!("-n {namespace} link set eth0 up"));
        let files = Path::new(NETNS_FILES).join(&namespace);
        std::fs::create_dir_all(&files).expect("a directory");
        let hosts: Vec<String> =
            hosts.iter().enumerate().map(|(i, host)| format!("{host} {}\n", dns_name(i))).collect();
        std::fs::write(files.join("hosts"), hosts.concat()).expect("a file");
        std::fs::write(files.join("resolv.conf"), "nameserver 127.0.0.1\n").expect("a file");
        self.pods.insert(ordinal, Pod { namespace, address, processes: Vec::new() });
        for container in ["router-sidecar", "cache-node"] {
            let process = self.start_container(ordinal, life, container);
            self.pods.get_mut(&ordinal).expect("just made").processes.push(process);
        }
    }

    /// Starts the three seeds, and waits until they are ready.
    fn start_seeds(&mut self, life: usize, hosts: &[&str]) {
        for ordinal in 0..3 {
            self.start(ordinal, life, hosts);
        }
        self.await_ready();
    }

    /// Ends a pod as Kubernetes does: the node first, then its router.
    fn stop(&mut self, ordinal: usize) {
        let mut pod = self.pods.remove(&ordinal).expect("it runs");
        for process in pod.processes.iter_mut().rev() {
            kill(Pid::from_raw(i32::try_from(process.id()).expect("a pid")), Signal::SIGTERM).expect("a child");
            let code = process.wait().expect("a child");
            assert!(code.success(), "{code}");
        }
    }

    fn start_container(&self, ordinal: usize, life: usize, name: &str) -> Child {
        let pod = pod(&self.set).expect("a pod");
        let container = containers(pod).find(|one| one["name"] == name).expect("a container");
        let mut env: BTreeMap<String, String> = BTreeMap::new();
        for one in container["env"].as_array().expect("settings") {
            let value =
                match (one["value"].as_str(), one.pointer("/valueFrom/fieldRef/fieldPath").and_then(Value::as_str)) {
                    (Some(value), _) => {
                        env.iter().fold(value.to_owned(), |all, (k, v)| all.replace(&format!("$({k})"), v))
                    }
                    (None, Some("metadata.name")) => format!("distributed-cache-{ordinal}"),
                    (None, Some("metadata.namespace")) => "default".to_owned(),
                    (None, Some("metadata.uid")) => format!("uid-{ordinal}-{life}"),
                    (None, Some("status.podIP")) => self.pods[&ordinal].address.clone(),
                    (None, Some(field)) => panic!("no such field of a pod: {field}"),
                    (None, None) => self.database.clone(),
                };
            env.insert(one["name"].as_str().expect("a name").to_owned(), value);
        }
        if let Some(config) = env.get_mut("CACHE_CONFIG") {
            *config = self.dir.path().join("cache.toml").display().to_string();
        }
        let log = File::create(self.log(ordinal, life, name)).expect("a file");
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.pods[&ordinal].namespace]).arg(program(name));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default()).envs(&env);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("starts")
    }

    fn log(&self, ordinal: usize, life: usize, name: &str) -> PathBuf {
        self.dir.path().join(format!("{name}-{ordinal}-{life}.log"))
    }

    fn url(&self, ordinal: usize, port: u16, path: &str) -> String {
        format!("http://{}:{port}{path}", self.pods[&ordinal].address)
    }

    /// Every product by every router. Gives how many of them were hits.
    fn read_all(&self) -> usize {
        let mut n_hits = 0;
        for id in 1..=N_PRODUCTS {
            for ordinal in self.pods.keys() {
                let url = self.url(*ordinal, 9000, &format!("/cache-data/{id}"));
                let answer = self.client.get(&url).send().unwrap_or_else(|error| panic!("{url}: {error}"));
                let status =
                    answer.headers().get("cache-status").map(|status| status.to_str().expect("text").to_owned());
                n_hits += usize::from(status.is_some_and(|status| status.contains("; hit")));
                let (status, body) = (answer.status(), answer.text().expect("text"));
                assert_eq!((status.as_u16(), body), (200, demo::product(id)), "{url}");
            }
        }
        n_hits
    }

    /// Where the service finds a pod.
    fn router(&self, ordinal: usize) -> String {
        self.url(ordinal, 9000, "")
    }

    /// Waits until whatever the probes of the manifests ask is answered well by all pods.
    fn await_ready(&self) {
        for ordinal in self.pods.keys() {
            for container in containers(pod(&self.set).expect("a pod")) {
                for probe in ["startupProbe", "readinessProbe", "livenessProbe"].map(|kind| &container[kind]["httpGet"])
                {
                    let Some(path) = probe["path"].as_str() else { continue };
                    let ports = container["ports"].as_array().into_iter().flatten();
                    let port = ports.into_iter().find(|port| port["name"] == probe["port"]).expect("a port");
                    let port =
                        port["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
                    let url = self.url(*ordinal, port, path);
                    self.eventually(&url, || self.client.get(&url).send().is_ok_and(|answer| answer.status() == 200));
                }
            }
        }
    }

    /// Who owns shards, by the router of a pod.
    fn owners(&self, ordinal: usize) -> Vec<String> {
        let page = self.client.get(self.url(ordinal, 9000, "/-/map")).send().and_then(|answer| answer.json::<Value>());
        let page = page.unwrap_or_default();
        page["owners"].as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    }

    /// Waits until these pods own all shards, whichever router is asked, and answer from memory.
    fn await_owners(&self, ordinals: &[usize]) {
        let names: Vec<String> = ordinals.iter().map(|ordinal| format!("distributed-cache-{ordinal}")).collect();
        for ordinal in self.pods.keys() {
            self.eventually(&format!("{names:?} own all"), || self.owners(*ordinal) == names);
        }
        let all = self.pods.len() * usize::try_from(N_PRODUCTS).expect("a few");
        self.eventually("all in memory", || self.read_all() == all);
    }

    fn eventually(&self, what: &str, mut is_true: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_true() {
            if Instant::now() > deadline {
                let mut logs = String::new();
                for file in std::fs::read_dir(self.dir.path()).expect("a directory").flatten() {
                    if file.path().extension().is_some_and(|extension| extension == "log") {
                        let log = std::fs::read_to_string(file.path()).expect("text");
                        logs += &format!("{}\n{log}\n", file.path().display());
                    }
                }
                panic!("not within {PATIENCE:?}: {what}\n{logs}");
            }
            std::thread::sleep(PAUSE);
        }
    }
}

/// Each life of a pod has an address of its own.
fn address(ordinal: usize, life: usize) -> String {
    format!("198.18.0.{}", 10 + ordinal + 10 * life)
}

/// The address of a seed's service: whoever is this seed at a moment has it too.
fn service_address(ordinal: usize) -> String {
    format!("198.18.1.{}", 10 + ordinal)
}

#[test]
fn pods_with_addresses_of_their_own_survive_a_cut_and_name_servers_that_are_behind() {
    let Some(mut net) = Net::new() else { return };
    let first = [0, 1, 2].map(|ordinal| address(ordinal, 0));
    let first = first.each_ref().map(String::as_str);
    net.start_seeds(0, &first);
    net.await_owners(&[0, 1, 2]);

    // One link is cut: two pods do not hear each other, and both hear the third.
    for link in ["pod-1-0", "pod-2-0"] {
        ip(&format!("link set dev {link} type bridge_slave isolated on"));
    }
    let until = Instant::now() + Duration::from_secs(3);
    while Instant::now() < until {
        net.read_all();
    }
    for link in ["pod-1-0", "pod-2-0"] {
        ip(&format!("link set dev {link} type bridge_slave isolated off"));
    }
    net.await_owners(&[0, 1, 2]);

    // A pod is replaced at another address, and no name server has heard of it.
    net.pods.remove(&2);
    net.start(2, 1, &first);
    net.await_ready();
    net.await_owners(&[0, 1, 2]);
    // The seeds that are left must find each other although the name of one is wrong.
    net.pods.remove(&1);
    net.await_owners(&[0, 2]);
    // The next finds both, although it knows but one by its name.
    net.start(1, 1, &first);
    net.await_ready();
    net.await_owners(&[0, 1, 2]);
}

#[test]
fn pods_that_are_deleted_by_force_one_or_all_are_made_good_for() {
    let Some(mut net) = Net::new() else { return };
    let seeds = [0, 1, 2].map(service_address);
    let seeds = seeds.each_ref().map(String::as_str);
    let began = Instant::now();
    net.start_seeds(0, &seeds);
    println!("three pods are ready after {:?}", began.elapsed());
    net.await_owners(&[0, 1, 2]);
    let load = Load::start([0, 2].map(|ordinal| net.router(ordinal)).to_vec());
    // Killed as it stands, and not proved dead by its successor, which is another pod.
    net.pods.remove(&1);
    let began = Instant::now();
    let names = ["distributed-cache-0", "distributed-cache-2"].map(str::to_owned);
    net.eventually("the others own all", || net.owners(0) == names && net.owners(2) == names);
    println!("after a pod was deleted by force the others own all after {:?}", began.elapsed());
    net.start(1, 1, &seeds);
    net.await_ready();
    net.await_owners(&[0, 1, 2]);
    let (n_reads, failed) = load.end();
    assert!(n_reads > 100 && failed.is_empty(), "{n_reads} reads; {failed:#?}");

    net.pods.clear();
    let began = Instant::now();
    net.start_seeds(2, &seeds);
    println!("after all pods were deleted they are ready again after {:?}", began.elapsed());
    net.await_owners(&[0, 1, 2]);
}

#[test]
fn a_rolling_restart_and_scaling_in_and_out_fail_no_read() {
    let Some(mut net) = Net::new() else { return };
    let seeds = [0, 1, 2].map(service_address);
    let seeds = seeds.each_ref().map(String::as_str);
    net.start_seeds(0, &seeds);
    let load = Load::start((0..3).map(|ordinal| net.router(ordinal)).collect());
    // As a StatefulSet does: the last one first, each at another address.
    for ordinal in [2, 1, 0] {
        load.set(&net.router(ordinal), false);
        net.stop(ordinal);
        net.start(ordinal, 1, &seeds);
        net.await_ready();
        load.set(&net.router(ordinal), true);
    }
    for ordinal in [3, 4] {
        net.start(ordinal, 0, &seeds);
    }
    net.await_ready();
    net.await_owners(&[0, 1, 2, 3, 4]);
    [3, 4].iter().for_each(|ordinal| load.set(&net.router(*ordinal), true));
    for ordinal in [4, 3] {
        load.set(&net.router(ordinal), false);
        net.stop(ordinal);
    }
    net.await_owners(&[0, 1, 2]);
    let (n_reads, failed) = load.end();
    println!("{n_reads} reads, {} failed", failed.len());
    assert!(n_reads > 1000 && failed.is_empty(), "{n_reads} reads; {failed:#?}");
}
