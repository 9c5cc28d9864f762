//! A cluster on this machine: for each pod a `cache-node` and a `router-sidecar`, as real processes on loopback.
//!
//! Used by the program `local-cluster`, by the load tests, and by the tests of the whole.

mod links;
pub(crate) mod ports;
pub(crate) mod processes;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use links::Links;
pub use nix::sys::signal::Signal;
use ports::{Ports, loopback};
use processes::{Processes, Spec};

pub use links::Party;
pub use processes::Role;

/// Longest time for one question whether a process is ready.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// Pause between two rounds of such questions.
const PROBE_PAUSE: Duration = Duration::from_millis(25);
/// So much of a process's log is shown when it does not start.
const LOG_LINES_SHOWN: usize = 5;

/// What a cluster is to be like.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pods, at least one.
    pub pods: usize,
    /// How many of them are seeds; `None`: the largest of 1, 3 and 5 that there are pods for.
    pub seeds: Option<usize>,
    /// Port of the first router, the next ones follow; 0: free ports.
    pub port: u16,
    /// The configuration of databases and regions.
    pub config: PathBuf,
    /// Where logs and `cluster.json` go.
    pub data_dir: PathBuf,
    /// Start an ended process again.
    pub restart: bool,
    /// Reach every node through a relay, so that links can be cut.
    pub relayed: bool,
    /// Further flags of every node.
    pub node_args: Vec<String>,
    /// Further flags of every router.
    pub router_args: Vec<String>,
    /// Environment of every process, beyond one's own.
    pub envs: Vec<(String, String)>,
    /// Longest time that processes may take to drain before they are killed.
    pub stop_timeout: Duration,
}

impl Options {
    /// Three pods on free ports.
    pub fn new(config: impl Into<PathBuf>, data_dir: impl Into<PathBuf>) -> Self {
        Self {
            pods: 3,
            seeds: None,
            port: 0,
            config: config.into(),
            data_dir: data_dir.into(),
            restart: false,
            relayed: false,
            node_args: Vec::new(),
            router_args: Vec::new(),
            envs: Vec::new(),
            stop_timeout: Duration::from_secs(25),
        }
    }
}

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// A mistake of whoever asked: another port, or a build first.
    #[error("{0}")]
    Usage(String),
    /// The machine's refusal.
    #[error("{place}: {error}")]
    Io {
        /// What it concerns.
        place: String,
        /// What the machine says.
        error: io::Error,
    },
    /// A process ended while it was to become ready.
    #[error("{role:?} of {name} ended with {status} before it was ready; its log, {log}, ends with:\n{tail}")]
    Ended {
        /// What it was.
        role: Role,
        /// Its pod.
        name: String,
        /// How.
        status: ExitStatus,
        /// The whole log.
        log: PathBuf,
        /// Its last lines.
        tail: String,
    },
    /// The deadline passed first.
    #[error("the cluster was not ready within {waited:?}: {waits_for}")]
    NotReady {
        /// How long it was given.
        waited: Duration,
        /// Who was not.
        waits_for: String,
    },
}

fn io_error(place: &Path) -> impl Fn(io::Error) -> ClusterError {
    let place = place.display().to_string();
    move |error| ClusterError::Io { place: place.clone(), error }
}

/// Where the processes of a pod listen.
#[derive(Clone, Debug)]
struct Pod {
    http: SocketAddr,
    data: SocketAddr,
    control: SocketAddr,
    /// The relay before its data port, if there is one.
    relay: Option<SocketAddr>,
}

impl Pod {
    /// Where others reach its data port.
    fn advertised(&self) -> SocketAddr {
        self.relay.unwrap_or(self.data)
    }
}

/// The processes of a cluster. Dropped without [`Cluster::stop`], it kills them.
#[derive(Debug)]
pub struct Cluster {
    pods: Vec<Pod>,
    specs: Vec<Spec>,
    processes: Processes,
    links: Option<Links>,
    http: reqwest::blocking::Client,
    stop_timeout: Duration,
}

impl Cluster {
    /// Starts all processes and does not wait for them.
    ///
    /// # Errors
    /// [`ClusterError::Usage`] when a port is taken or the programs are not built.
    pub fn start(options: &Options) -> Result<Self, ClusterError> {
        let logs = options.data_dir.join("logs");
        std::fs::create_dir_all(&logs).map_err(io_error(&logs))?;
        let mut pods = addresses(options)?;
        let mut relays = Vec::new();
        if options.relayed {
            for pod in &mut pods {
                let listener = TcpListener::bind(loopback(0)).map_err(io_error(Path::new("a relay")))?;
                pod.relay = Some(listener.local_addr().map_err(io_error(Path::new("a relay")))?);
                relays.push((listener, pod.data));
            }
        }
        let specs = specs(options, &pods, &logs)?;
        for spec in &specs {
            // A log tells of this cluster only.
            std::fs::File::create(&spec.log).map_err(io_error(&spec.log))?;
        }
        let page = options.data_dir.join("cluster.json");
        let processes = Processes::new(specs.clone(), page, options.restart).map_err(io_error(&options.data_dir))?;
        let links = options.relayed.then(|| Links::start(relays, processes.pids())).transpose();
        let links = links.map_err(io_error(Path::new("a relay")))?;
        let http = reqwest::blocking::Client::builder().timeout(PROBE_TIMEOUT).build();
        let http = http.map_err(|error| ClusterError::Usage(error.to_string()))?;
        let cluster = Self { pods, specs, processes, links, http, stop_timeout: options.stop_timeout };
        for index in 0..cluster.specs.len() {
            let place = Path::new(&cluster.specs[index].argv[0]);
            cluster.processes.start(index).map_err(io_error(place))?;
        }
        Ok(cluster)
    }

    /// Starts all processes and waits until they are ready.
    ///
    /// # Errors
    /// As [`Cluster::start`] and [`Cluster::wait_ready`].
    pub fn start_ready(options: &Options, longest: Duration) -> Result<Self, ClusterError> {
        let cluster = Self::start(options)?;
        cluster.wait_ready(longest)?;
        Ok(cluster)
    }

    /// Waits until every process says that it is ready.
    ///
    /// # Errors
    /// When one has ended, or the time is up.
    pub fn wait_ready(&self, longest: Duration) -> Result<(), ClusterError> {
        let deadline = Instant::now() + longest;
        while let Some(waits_for) = self.not_ready()? {
            if Instant::now() > deadline {
                return Err(ClusterError::NotReady { waited: longest, waits_for });
            }
            std::thread::sleep(PROBE_PAUSE);
        }
        Ok(())
    }

    /// Who is not ready; `None`: all are.
    ///
    /// # Errors
    /// When a process has ended.
    pub fn not_ready(&self) -> Result<Option<String>, ClusterError> {
        for (index, spec) in self.specs.iter().enumerate() {
            if let Some(status) = self.processes.ended(index) {
                let (role, name, log) = (spec.role, spec.name.clone(), spec.log.clone());
                return Err(ClusterError::Ended { role, name, status, tail: tail(&log), log });
            }
        }
        for pod in 0..self.pods.len() {
            for (role, base) in [("node", self.control(pod)), ("router", self.url(pod))] {
                let answer = self.http.get(format!("{base}/readyz")).send();
                let waits_for = match answer {
                    Ok(answer) if answer.status().is_success() => continue,
                    Ok(answer) => answer.text().unwrap_or_default().trim_end().to_owned(),
                    Err(_) => "it does not answer yet".to_owned(),
                };
                return Ok(Some(format!("the {role} of pod-{pod}: {waits_for}")));
            }
        }
        Ok(None)
    }

    /// Pods of the cluster.
    pub fn n_pods(&self) -> usize {
        self.pods.len()
    }

    /// Where a pod's router is asked: `http://host:port`.
    pub fn url(&self, pod: usize) -> String {
        format!("http://{}", self.pods[pod].http)
    }

    /// Where a pod's router is asked, without the scheme.
    pub fn http_address(&self, pod: usize) -> SocketAddr {
        self.pods[pod].http
    }

    /// A node's control port: `http://host:port`.
    pub fn control(&self, pod: usize) -> String {
        format!("http://{}", self.pods[pod].control)
    }

    /// A node's data port.
    pub fn data_address(&self, pod: usize) -> SocketAddr {
        self.pods[pod].data
    }

    /// Lets nothing pass from one process to the other, until [`Cluster::heal`]; the way back stays. One of them is a node.
    ///
    /// # Panics
    /// Without [`Options::relayed`].
    pub fn cut(&self, from: Party, to: Party) {
        self.links.as_ref().expect("links that can be cut").cut(from, to);
    }

    /// Makes every link whole.
    pub fn heal(&self) {
        self.links.iter().for_each(Links::heal);
    }

    /// The log of a process.
    pub fn log(&self, role: Role, pod: usize) -> &Path {
        &self.specs[Self::index(role, pod)].log
    }

    /// The id of a process, while it runs.
    pub fn pid(&self, role: Role, pod: usize) -> Option<i32> {
        self.processes.pid(Self::index(role, pod))
    }

    /// Signals a process; whether it runs.
    pub fn signal(&self, role: Role, pod: usize, signal: Signal) -> bool {
        self.processes.signal(Self::index(role, pod), signal)
    }

    /// Waits for the end of a process; `None` when it still runs after `longest`.
    pub fn wait_ended(&self, role: Role, pod: usize, longest: Duration) -> Option<ExitStatus> {
        self.processes.wait_ended(Self::index(role, pod), Instant::now() + longest)
    }

    /// Starts a process that has ended, as it was started before.
    ///
    /// # Errors
    /// The machine's refusal.
    pub fn start_again(&self, role: Role, pod: usize) -> io::Result<()> {
        self.processes.start(Self::index(role, pod))
    }

    /// Waits until a process has another id than `pid`; gives that.
    pub fn wait_restarted(&self, role: Role, pod: usize, pid: i32, longest: Duration) -> Option<i32> {
        self.processes.wait_restarted(Self::index(role, pod), pid, Instant::now() + longest)
    }

    /// Drains routers, then nodes; kills what has not ended in time. Gives the names of those.
    pub fn stop(self) -> Vec<String> {
        self.processes.stop_restarts();
        let deadline = Instant::now() + self.stop_timeout;
        let mut killed = Vec::new();
        for role in [Role::Router, Role::Node] {
            for pod in 0..self.pods.len() {
                // A stopped process would not hear the other signal.
                self.signal(role, pod, Signal::SIGCONT);
                self.signal(role, pod, Signal::SIGTERM);
            }
            for pod in 0..self.pods.len() {
                let index = Self::index(role, pod);
                if self.processes.wait_ended(index, deadline).is_none() && self.signal(role, pod, Signal::SIGKILL) {
                    killed.push(format!("{role:?} of {}", self.specs[index].name));
                }
            }
        }
        killed
    }

    const fn index(role: Role, pod: usize) -> usize {
        2 * pod
            + match role {
                Role::Node => 0,
                Role::Router => 1,
            }
    }
}

fn addresses(options: &Options) -> Result<Vec<Pod>, ClusterError> {
    let mut ports = Ports::default();
    let mut http = Vec::new();
    for pod in 0..options.pods {
        if options.port == 0 {
            continue;
        }
        let port = u16::try_from(pod).ok().and_then(|pod| options.port.checked_add(pod));
        let port = port.ok_or_else(|| {
            ClusterError::Usage(format!("--port {}: there is no port for router {pod}; choose less", options.port))
        })?;
        let address = loopback(port);
        TcpListener::bind(address).map_err(|error| {
            ClusterError::Usage(format!("--port {}: {address}: {error}; choose another, or 0", options.port))
        })?;
        ports.take(port);
        http.push(address);
    }
    let mut free = || ports.free().map_err(io_error(Path::new("ports")));
    (0..options.pods)
        .map(|pod| {
            let http = if options.port == 0 { free()? } else { http[pod] };
            Ok(Pod { http, data: free()?, control: free()?, relay: None })
        })
        .collect()
}

/// Node and router of each pod, in this order.
fn specs(options: &Options, pods: &[Pod], logs: &Path) -> Result<Vec<Spec>, ClusterError> {
    let (node_program, router_program) = (program("cache-node")?, program("router-sidecar")?);
    let largest = [5, 3, 1].into_iter().find(|n| *n <= pods.len()).unwrap_or_default();
    let n_seeds = options.seeds.unwrap_or(largest);
    let seeds = pods.iter().enumerate().take(n_seeds).map(|(i, pod)| format!("pod-{i}={}", pod.advertised()));
    let seeds: Vec<String> = seeds.collect();
    let seeds = seeds.join(",");
    let mut specs = Vec::new();
    for (i, pod) in pods.iter().enumerate() {
        let name = format!("pod-{i}");
        let (http, data, control) = (pod.http.to_string(), pod.data.to_string(), pod.control.to_string());
        let config = options.config.display().to_string();
        let advertised = pod.advertised().to_string();
        let node = ["--name", &name, "--seeds", &seeds, "--config", &config, "--advertise", &advertised];
        let node = node.into_iter().chain(["--data-bind", &data, "--control-bind", &control]);
        let router = ["--seeds", &seeds, "--bind", &http];
        let argv = |program: &str, flags: Vec<&str>, more: &[String]| -> Vec<String> {
            let flags = flags.into_iter().map(str::to_owned);
            std::iter::once(program.to_owned()).chain(flags).chain(more.iter().cloned()).collect()
        };
        specs.push(Spec {
            role: Role::Node,
            name: name.clone(),
            argv: argv(&node_program, node.collect(), &options.node_args),
            envs: options.envs.clone(),
            log: logs.join(format!("{name}.node.log")),
            addresses: vec![("control", control.clone()), ("data", data.clone())],
        });
        specs.push(Spec {
            role: Role::Router,
            name: name.clone(),
            argv: argv(&router_program, router.to_vec(), &options.router_args),
            envs: options.envs.clone(),
            log: logs.join(format!("{name}.router.log")),
            addresses: vec![("http", http.clone())],
        });
    }
    Ok(specs)
}

/// A program of ours: it lies beside this one, or (for a test) one directory up.
fn program(name: &str) -> Result<String, ClusterError> {
    let own = std::env::current_exe().map_err(io_error(Path::new("this program")))?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|path| path.is_file());
    let missing = || format!("there is no {name} beside {}; run cargo build --workspace", own.display());
    found.map(|path| path.display().to_string()).ok_or_else(|| ClusterError::Usage(missing()))
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LOG_LINES_SHOWN)..].join("\n")
}
