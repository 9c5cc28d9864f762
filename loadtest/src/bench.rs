//! The benchmark: a routed hit of this cache beside nginx, memcached, haproxy and Redis, in one run on this machine.
//!
//! `docs/benchmarks.md` says how it measures and how to read what it gives.

mod chart;
mod closed;
mod cpu;
mod front;
mod http;
mod keys;
mod load;
mod measure;
mod memory;
mod open;
mod process;
mod report;
mod setup;
mod syscalls;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

pub use front::{FrontArgs, serve as serve_front};
pub use load::Load;
pub use setup::Setup;

use crate::cluster::ClusterError;
use measure::Measurer;
use report::{Report, compare, ratios};

/// The region of the benchmark, and the first segment of every path.
const REGION: &str = "cache-data";
/// The files of a run.
const JSON: &str = "routed-hit.json";
const TABLE: &str = "routed-hit.md";
const CHART: &str = "routed-hit.svg";

/// What the quick run measures, how often, and how long it may go on repeating samples.
const QUICK_LOADS: [Load; 4] = [Load::C32, Load::C128, Load::C32Syscalls, Load::C128Syscalls];
const QUICK_SETUPS: [Setup; 2] = [Setup::Ours, Setup::NginxNginx];
const QUICK_ROUNDS: u32 = 3;
const QUICK_REPEATS: Duration = Duration::from_secs(60);
/// How long a whole run may.
const REPEATS: Duration = Duration::from_secs(30 * 60);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often each load is put on each set-up; by default 5, 3 when quick.
    pub rounds: Option<u32>,
    /// How long a sample takes; whole seconds.
    pub sample: Duration,
    /// Set-ups; none: all.
    pub setups: Vec<Setup>,
    /// Loads; none: all.
    pub loads: Vec<Load>,
    /// Where the files are; by default in `docs/benchmarks`, and nowhere when only a part is measured.
    pub output: Option<PathBuf>,
    /// Compare with the files instead of writing them.
    pub quick: bool,
}

impl Plan {
    fn output(&self) -> &Path {
        self.output.as_deref().unwrap_or(Path::new("docs/benchmarks"))
    }

    /// Whether all there is is measured.
    const fn is_whole(&self) -> bool {
        self.setups.is_empty() && self.loads.is_empty() && !self.quick
    }
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// A program that the machine lacks.
    #[error("{0} is not installed: run make peers as root, or install nginx, haproxy, memcached, redis-server and wrk")]
    Missing(String),
    /// A mistake of whoever asked.
    #[error("{0}")]
    Usage(String),
    /// Our own set-up.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The machine's refusal.
    #[error("{place}: {error}")]
    Io {
        /// What it concerns.
        place: String,
        /// What the machine says.
        error: io::Error,
    },
    /// A set-up or a generator that does not do what it should.
    #[error("{0}")]
    Failed(String),
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

impl BenchError {
    fn io(place: &Path) -> impl Fn(io::Error) -> Self {
        Self::at(&place.display().to_string())
    }

    fn at(place: &str) -> impl Fn(io::Error) -> Self + use<> {
        let place = place.to_owned();
        move |error| Self::Io { place: place.clone(), error }
    }
}

/// Whether somebody has asked to stop. A look between two samples is enough: they are short.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asked by SIGINT, SIGTERM and SIGHUP from now on.
    ///
    /// # Errors
    /// The machine's refusal.
    pub fn on_signals() -> Result<Self, BenchError> {
        use tokio::signal::unix::{SignalKind, signal};
        let failed = BenchError::at("signals");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(&failed)?;
        let heard = |kind: fn() -> SignalKind| signal(kind());
        let listen = async {
            let (interrupt, terminate) = (heard(SignalKind::interrupt)?, heard(SignalKind::terminate)?);
            Ok((interrupt, terminate, heard(SignalKind::hangup)?))
        };
        let (mut interrupt, mut terminate, mut hangup) = runtime.block_on(listen).map_err(&failed)?;
        let stop = Self::default();
        let asked = stop.clone();
        let wait = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            asked.0.store(true, Ordering::Relaxed);
        };
        let thread = std::thread::Builder::new().name("signals".to_owned());
        thread.spawn(move || runtime.block_on(wait)).map_err(&failed)?;
        Ok(stop)
    }

    fn check(&self) -> Result<(), BenchError> {
        if self.0.load(Ordering::Relaxed) { Err(BenchError::Stopped) } else { Ok(()) }
    }
}

/// Measures; whether nothing has slipped.
///
/// # Errors
/// When a set-up does not start or does not answer as it should.
pub fn run(plan: &Plan, stop: &Stop) -> Result<bool, BenchError> {
    let json = plan.output().join(JSON);
    let earlier = read(&json)?;
    if plan.quick && earlier.is_none() {
        let text = format!("there is no {} to compare with: run make bench first, or give --output", json.display());
        return Err(BenchError::Usage(text));
    }
    let or = |given: &[Setup], default: &[Setup]| if given.is_empty() { default.to_vec() } else { given.to_vec() };
    let setups = or(&plan.setups, if plan.quick { &QUICK_SETUPS } else { &Setup::ALL });
    let loads = match (plan.loads.is_empty(), plan.quick) {
        (false, _) => Load::ALL.into_iter().filter(|load| plan.loads.contains(load)).collect(),
        (true, true) => QUICK_LOADS.to_vec(),
        (true, false) => Load::ALL.to_vec(),
    };
    let dir = tempfile::tempdir().map_err(BenchError::at("a temporary directory"))?;
    let repeats = if plan.quick { QUICK_REPEATS } else { REPEATS };
    let rounds = plan.rounds.unwrap_or(if plan.quick { QUICK_ROUNDS } else { 5 });
    let mut measurer = Measurer::new(dir.path(), plan.sample, repeats, stop)?;
    let rows = measurer.run(&setups, &loads, rounds)?;
    let mut report = Report { machine: machine(), date: today(), ratios: ratios(&rows), rows, memory: Vec::new() };
    if plan.quick {
        tell(&report.table());
        return Ok(is_as_good(&report, &earlier.unwrap_or_default()));
    }
    if plan.is_whole() {
        report.memory = memory::run(dir.path(), stop)?;
    }
    tell(&report.table());
    if plan.is_whole() || plan.output.is_some() {
        write(plan.output(), &report)?;
    }
    Ok(true)
}

/// Measures memory, and puts it into the files of an earlier run.
///
/// # Errors
/// As [`run`].
pub fn run_memory(plan: &Plan, stop: &Stop) -> Result<bool, BenchError> {
    let mut report = read(&plan.output().join(JSON))?.unwrap_or_default();
    let dir = tempfile::tempdir().map_err(BenchError::at("a temporary directory"))?;
    report.memory = memory::run(dir.path(), stop)?;
    if report.rows.is_empty() {
        (report.machine, report.date) = (machine(), today());
    }
    tell(&report.table());
    write(plan.output(), &report)?;
    Ok(true)
}

/// Prints the ratios beside the earlier ones.
fn is_as_good(report: &Report, earlier: &Report) -> bool {
    let compared = compare(&report.ratios, &earlier.ratios);
    let mut text = "| ratio | now | committed |\n| --- | --- | --- |\n".to_owned();
    for ratio in &compared {
        text += &format!("| {} | {:.2} | {:.2} |\n", ratio.name, ratio.now, ratio.earlier);
    }
    tell(&text);
    let slipped = compared.iter().filter(|ratio| ratio.has_slipped());
    let slipped: Vec<String> =
        slipped.map(|ratio| format!("{} {:.2} (committed: {:.2})", ratio.name, ratio.now, ratio.earlier)).collect();
    if !slipped.is_empty() {
        note(&format!("bench: more than 15 % worse than committed: {}", slipped.join(", ")));
    }
    slipped.is_empty()
}

fn read(json: &Path) -> Result<Option<Report>, BenchError> {
    match std::fs::read_to_string(json) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| BenchError::Usage(format!("{} is not of this benchmark: {error}", json.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(BenchError::io(json)(error)),
    }
}

fn write(output: &Path, report: &Report) -> Result<(), BenchError> {
    std::fs::create_dir_all(output).map_err(BenchError::io(output))?;
    let (json, table, chart) = (output.join(JSON), output.join(TABLE), output.join(CHART));
    let text = report.table();
    std::fs::write(&json, report.json()).map_err(BenchError::io(&json))?;
    std::fs::write(&table, format!("# A routed hit beside its peers\n\nWritten by `make bench`.\n\n{text}"))
        .map_err(BenchError::io(&table))?;
    chart::draw(report, &chart).map_err(|error| BenchError::Failed(format!("{}: {error}", chart.display())))
}

/// The processor, how many there are of it, and the kernel.
fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("unknown processor", |(_, model)| model);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    // What follows the numbers is the builder's.
    let kernel = kernel.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default().to_owned();
    format!("{model}, {} CPUs, Linux {kernel}", cpu::allowed().len())
}

fn today() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string().chars().take(10).collect()
}

/// Says how far it is.
fn note(line: &str) {
    // What cannot be printed (a closed terminal) cannot be reported either.
    let _ = writeln!(io::stderr(), "{line}");
}

/// Prints a line. When nobody reads any more, the run goes on.
fn tell(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
