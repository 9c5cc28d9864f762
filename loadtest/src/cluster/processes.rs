//! The child processes of a cluster: started, watched, started again, ended; and the file that names them.
//!
//! One thread starts all of them: the kernel ends a child (`PR_SET_PDEATHSIG`) when the *thread* that started it ends,
//! so it has to be one that lives as long as the cluster.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use serde::Serialize;

/// A child that lived at least so long is started again at once.
const STEADY_LIFE: Duration = Duration::from_secs(5);
/// Pause before the second start in a row of a child that ends at once; doubles each time.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(5);

/// What a process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A `cache-node`.
    Node,
    /// A `router-sidecar`.
    Router,
}

/// How to start a process, and where it listens.
#[derive(Clone, Debug)]
pub(super) struct Spec {
    pub(super) role: Role,
    pub(super) name: String,
    pub(super) argv: Vec<String>,
    pub(super) envs: Vec<(String, String)>,
    pub(super) log: PathBuf,
    /// Names of `cluster.json` with addresses.
    pub(super) addresses: Vec<(&'static str, String)>,
}

/// A running process, as `cluster.json` shows it.
#[derive(Serialize)]
struct Entry<'a> {
    role: Role,
    name: &'a str,
    pid: i32,
    argv: &'a [String],
    #[serde(flatten)]
    addresses: std::collections::BTreeMap<&'static str, &'a str>,
}

#[derive(Serialize)]
struct Page<'a> {
    processes: Vec<Entry<'a>>,
}

#[derive(Clone, Copy, Debug)]
enum Life {
    /// Not started, or to be started again.
    None,
    Running {
        pid: Pid,
        since: Instant,
    },
    Ended(ExitStatus),
}

#[derive(Debug)]
struct Process {
    spec: Spec,
    life: Life,
    /// Lives in a row that were short.
    short_lives: u32,
}

impl Process {
    /// How long to wait before the next life: the first short one is followed at once.
    fn restart_pause(&self) -> Duration {
        match self.short_lives {
            0 | 1 => Duration::ZERO,
            lives => RESTART_PAUSE.saturating_mul(1 << (lives - 2).min(10)).min(RESTART_PAUSE_MAX),
        }
    }
}

#[derive(Debug)]
struct Shared {
    processes: Mutex<Vec<Process>>,
    changed: Condvar,
    page: PathBuf,
}

enum Order {
    Start(usize, Sender<io::Result<()>>),
    /// A child has ended and been reaped.
    Ended(usize),
    /// Start nothing again.
    StopRestarts,
    /// The thread may end: its children have.
    Quit,
}

/// The processes of a cluster. Dropped, it kills those that still run.
#[derive(Debug)]
pub(super) struct Processes {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Processes {
    /// Nothing is started yet. `page` is the file to be kept current.
    pub(super) fn new(specs: Vec<Spec>, page: PathBuf, restart: bool) -> io::Result<Self> {
        let process = |spec| Process { spec, life: Life::None, short_lives: 0 };
        let processes = Mutex::new(specs.into_iter().map(process).collect());
        let shared = Arc::new(Shared { processes, changed: Condvar::new(), page });
        let (orders, received) = mpsc::channel();
        let starter = Starter { shared: Arc::clone(&shared), orders: orders.clone(), restart, due: Vec::new() };
        let thread = std::thread::Builder::new().name("children".to_owned()).spawn(move || starter.run(&received))?;
        Ok(Self { shared, orders, thread: Some(thread) })
    }

    /// Starts a process, for the first time or again.
    pub(super) fn start(&self, index: usize) -> io::Result<()> {
        let (reply, started) = mpsc::channel();
        let gone = || io::Error::other("the thread that starts children has ended");
        self.orders.send(Order::Start(index, reply)).map_err(|_| gone())?;
        started.recv().map_err(|_| gone())?
    }

    /// Which process is which.
    pub(super) fn pids(&self) -> Pids {
        Pids(Arc::clone(&self.shared))
    }

    pub(super) fn pid(&self, index: usize) -> Option<i32> {
        match self.shared.lock()[index].life {
            Life::Running { pid, .. } => Some(pid.as_raw()),
            Life::None | Life::Ended(_) => None,
        }
    }

    /// Signals a process; whether it runs.
    pub(super) fn signal(&self, index: usize, signal: Signal) -> bool {
        // The lock is held: a process is reaped under it, so the id still belongs to it.
        match self.shared.lock()[index].life {
            Life::Running { pid, .. } => kill(pid, signal).is_ok(),
            Life::None | Life::Ended(_) => false,
        }
    }

    /// How a process ended, if it has and is not to come back.
    pub(super) fn ended(&self, index: usize) -> Option<ExitStatus> {
        match self.shared.lock()[index].life {
            Life::Ended(status) => Some(status),
            Life::None | Life::Running { .. } => None,
        }
    }

    /// Waits for the end of a process; `None` when it still runs at the deadline.
    pub(super) fn wait_ended(&self, index: usize, deadline: Instant) -> Option<ExitStatus> {
        let mut processes = self.shared.lock();
        loop {
            match processes[index].life {
                Life::Ended(status) => return Some(status),
                Life::None => return None,
                Life::Running { .. } => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            processes = self.shared.wait(processes, left);
        }
    }

    /// Waits until a process that ended has been started again: until its id is another than `pid`.
    pub(super) fn wait_restarted(&self, index: usize, pid: i32, deadline: Instant) -> Option<i32> {
        let mut processes = self.shared.lock();
        loop {
            match processes[index].life {
                Life::Running { pid: other, .. } if other.as_raw() != pid => return Some(other.as_raw()),
                _ => {}
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            processes = self.shared.wait(processes, left);
        }
    }

    /// From now on an ended process stays ended.
    pub(super) fn stop_restarts(&self) {
        // A thread that has ended restarts nothing either.
        let _ = self.orders.send(Order::StopRestarts);
    }
}

/// Which process is which, for as long as anybody asks.
#[derive(Debug)]
pub(super) struct Pids(Arc<Shared>);

/// Whose TCP sockets there were at a moment.
#[derive(Debug)]
pub(super) struct Sockets {
    read_at: Instant,
    /// By local address, as the kernel writes it.
    owners: HashMap<String, (Role, usize)>,
}

impl Pids {
    /// The sockets of all processes that run (`proc_net_tcp(5)`, `proc_pid_fd(5)`).
    pub(super) fn sockets(&self) -> Sockets {
        let read_at = Instant::now();
        // Whoever's socket is missing is looked for again.
        let table = std::fs::read_to_string("/proc/net/tcp").unwrap_or_default();
        let mut by_inode = HashMap::new();
        for (index, process) in self.0.lock().iter().enumerate() {
            let Life::Running { pid, .. } = process.life else { continue };
            for file in std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                let target = std::fs::read_link(file.path()).unwrap_or_default();
                let inode = target.to_str().and_then(|target| target.strip_prefix("socket:[")?.strip_suffix(']'));
                if let Some(inode) = inode {
                    by_inode.insert(inode.to_owned(), (process.spec.role, index / 2));
                }
            }
        }
        let owner = |line: &str| {
            let mut fields = line.split_whitespace().skip(1);
            let local = fields.next()?;
            by_inode.get(fields.nth(7)?).map(|owner| (local.to_owned(), *owner))
        };
        Sockets { read_at, owners: table.lines().filter_map(owner).collect() }
    }
}

impl Sockets {
    /// When the reading began.
    pub(super) fn read_at(&self) -> Instant {
        self.read_at
    }

    /// Role and pod of the process that has a socket with this local address.
    pub(super) fn owner(&self, address: SocketAddr) -> Option<(Role, usize)> {
        let SocketAddr::V4(v4) = address else { return None };
        let local = format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port());
        self.owners.get(&local).copied()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        self.stop_restarts();
        let n_processes = self.shared.lock().len();
        for index in 0..n_processes {
            self.signal(index, Signal::SIGKILL);
        }
        for index in 0..n_processes {
            self.wait_ended(index, Instant::now() + STEADY_LIFE);
        }
        // Ended already, or it reads this.
        let _ = self.orders.send(Order::Quit);
        if let Some(thread) = self.thread.take() {
            // A panic of that thread has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Vec<Process>> {
        self.processes.lock().expect("nothing panics while it holds the lock")
    }

    fn wait<'a>(&self, processes: MutexGuard<'a, Vec<Process>>, longest: Duration) -> MutexGuard<'a, Vec<Process>> {
        self.changed.wait_timeout(processes, longest).expect("nothing panics while it holds the lock").0
    }

    /// Writes the file that names the running processes, and wakes who waits for a change.
    fn publish(&self, processes: &[Process]) {
        if let Err(error) = write_page(&self.page, processes) {
            log::error!("{}: {error}", self.page.display());
        }
        self.changed.notify_all();
    }
}

fn write_page(path: &Path, processes: &[Process]) -> io::Result<()> {
    let running = processes.iter().filter_map(|Process { spec, life, .. }| match life {
        Life::Running { pid, .. } => Some(Entry {
            role: spec.role,
            name: &spec.name,
            pid: pid.as_raw(),
            argv: &spec.argv,
            addresses: spec.addresses.iter().map(|(name, address)| (*name, address.as_str())).collect(),
        }),
        Life::None | Life::Ended(_) => None,
    });
    let mut text = serde_json::to_vec_pretty(&Page { processes: running.collect() })?;
    text.push(b'\n');
    let next = path.with_extension("json.next");
    std::fs::write(&next, text)?;
    std::fs::rename(&next, path)
}

/// The thread that starts children.
struct Starter {
    shared: Arc<Shared>,
    orders: Sender<Order>,
    restart: bool,
    /// Children to be started again, and when.
    due: Vec<(Instant, usize)>,
}

impl Starter {
    fn run(mut self, orders: &Receiver<Order>) {
        loop {
            let next = self.due.iter().map(|(at, _)| *at).min();
            let order = match next {
                None => orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => orders.recv_timeout(at.saturating_duration_since(Instant::now())),
            };
            match order {
                Ok(Order::Start(index, reply)) => {
                    // Nobody waits: then nobody minds.
                    let _ = reply.send(self.start(index));
                }
                Ok(Order::Ended(index)) => self.ended(index),
                Ok(Order::StopRestarts) => {
                    self.restart = false;
                    self.due.clear();
                }
                Ok(Order::Quit) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.start_due(),
            }
        }
    }

    fn ended(&mut self, index: usize) {
        if !self.restart {
            return;
        }
        let pause = self.shared.lock()[index].restart_pause();
        self.due.push((Instant::now() + pause, index));
    }

    fn start_due(&mut self) {
        let now = Instant::now();
        let (due, later) = std::mem::take(&mut self.due).into_iter().partition(|(at, _)| *at <= now);
        self.due = later;
        let due: Vec<(Instant, usize)> = due;
        for (_, index) in due {
            if let Err(error) = self.start(index) {
                log::error!("a process could not be started again: {error}");
                self.due.push((now + RESTART_PAUSE_MAX, index));
            }
        }
    }

    fn start(&self, index: usize) -> io::Result<()> {
        let mut processes = self.shared.lock();
        if let Life::Running { .. } = processes[index].life {
            return Ok(());
        }
        let pid = spawn(&processes[index].spec)?;
        processes[index].life = Life::Running { pid, since: Instant::now() };
        self.shared.publish(&processes);
        drop(processes);
        let (shared, orders) = (Arc::clone(&self.shared), self.orders.clone());
        std::thread::Builder::new()
            .name(format!("wait {pid}"))
            .spawn(move || await_end(&shared, &orders, index, pid))?;
        Ok(())
    }
}

fn spawn(spec: &Spec) -> io::Result<Pid> {
    let log = OpenOptions::new().create(true).append(true).open(&spec.log)?;
    let (program, arguments) = spec.argv.split_first().expect("every process has a program");
    let mut command = Command::new(program);
    command.args(arguments).envs(spec.envs.iter().map(|(name, value)| (name, value)));
    command.stdin(Stdio::null()).stdout(File::try_clone(&log)?).stderr(log);
    // A group of its own: Ctrl-C at the terminal reaches the cluster's own process only, which then drains.
    command.process_group(0);
    die_with_parent(&mut command, Signal::SIGKILL);
    let child = command.spawn().map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
    Ok(Pid::from_raw(i32::try_from(child.id()).expect("process ids are positive 32-bit integers")))
}

/// Has the kernel signal the child when the thread that starts it ends.
pub(crate) fn die_with_parent(command: &mut Command, signal: Signal) {
    let parent = getpid();
    let die_with_parent = move || {
        set_pdeathsig(signal)?;
        // The parent may have ended before the line above.
        if getppid() == parent { Ok(()) } else { Err(io::Error::from(Errno::ESRCH)) }
    };
    #[expect(unsafe_code, reason = "between fork and exec it makes two system calls and touches no memory")]
    // SAFETY: prctl and getppid may be called after fork (signal-safety(7)), and nothing is allocated.
    unsafe {
        command.pre_exec(die_with_parent);
    }
}

/// Waits without reaping, then reaps under the lock: whoever holds the lock may signal the id.
fn await_end(shared: &Shared, orders: &Sender<Order>, index: usize, pid: Pid) {
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(Errno::EINTR) {}
    let mut processes = shared.lock();
    let status = match waitpid(pid, None) {
        Ok(WaitStatus::Exited(_, code)) => ExitStatus::from_raw(code << 8),
        Ok(WaitStatus::Signaled(_, signal, _)) => ExitStatus::from_raw(signal as i32),
        other => panic!("a child that has ended is waited for: {other:?}"),
    };
    let process = &mut processes[index];
    if let Life::Running { since, .. } = process.life {
        process.short_lives = if since.elapsed() < STEADY_LIFE { process.short_lives + 1 } else { 0 };
    }
    process.life = Life::Ended(status);
    let level = if status.success() { log::Level::Debug } else { log::Level::Warn };
    log::log!(level, "{} {:?} ended: {status}", process.spec.name, process.spec.role);
    shared.publish(&processes);
    drop(processes);
    // The thread has ended: nothing is started again.
    let _ = orders.send(Order::Ended(index));
}
