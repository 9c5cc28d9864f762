//! The cache on this machine with one command: pods of real processes, a demo database when there is none.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use cache_node::config::{CacheConfig, ConfigError, EXIT_CONFIG};
use clap::Parser;
use loadtest::cluster::{Cluster, ClusterError, Options};
use loadtest::command_line;
use loadtest::demo::{self, DemoError};
use loadtest::figures::Watch;

/// Between two lines of live figures.
const FIGURES_PERIOD: Duration = Duration::from_secs(1);
/// Pause between two looks whether all is ready.
const READY_PAUSE: Duration = Duration::from_millis(50);
/// Longest time from the start to readiness.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Runs the distributed cache on this machine: for each pod a cache node and a router, on loopback. Ctrl-C drains.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many pods.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pods: u16,
    /// Port of the first router, the next ones follow; 0: free ports.
    #[arg(long, default_value_t = 9000)]
    port: u16,
    /// Databases and regions; by default those of a demo, made in the data directory.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Where the demo, the logs and cluster.json are kept.
    #[arg(long, default_value = "data/")]
    data_dir: PathBuf,
    /// Start a process that has ended again.
    #[arg(long)]
    restart: bool,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("signals: {0}")]
    Io(#[from] io::Error),
    #[error("killed because they did not drain in time: {0}")]
    Killed(String),
}

impl Error {
    const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Cluster(ClusterError::Usage(_)) => EXIT_CONFIG,
            _ => 1,
        }
    }
}

fn main() -> ExitCode {
    let args = match command_line::parse::<Args>() {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // What cannot be printed (a closed terminal) cannot be reported either.
            let _ = writeln!(io::stderr(), "local-cluster: {error}");
            error.exit_code().into()
        }
    }
}

fn run(args: Args) -> Result<(), Error> {
    let config = match args.config {
        Some(config) => config,
        None => demo::prepare(&args.data_dir)?,
    };
    let regions = CacheConfig::load(&config)?.regions;
    let stop = asked_to_stop()?;
    let options = Options {
        pods: args.pods.into(),
        port: args.port,
        restart: args.restart,
        ..Options::new(config, args.data_dir)
    };
    let cluster = Cluster::start(&options)?;
    if await_ready(&cluster, &stop)? {
        let region = regions[0].name.as_str();
        tell(&what_to_try(&cluster, region));
        live(&cluster, &stop)?;
        tell("draining");
    }
    let killed = cluster.stop();
    if killed.is_empty() { Ok(()) } else { Err(Error::Killed(killed.join(", "))) }
}

/// Whether all became ready before somebody asked to stop.
fn await_ready(cluster: &Cluster, stop: &Receiver<()>) -> Result<bool, Error> {
    let began = Instant::now();
    while let Some(waits_for) = cluster.not_ready()? {
        if began.elapsed() > READY_TIMEOUT {
            return Err(ClusterError::NotReady { waited: READY_TIMEOUT, waits_for }.into());
        }
        if stop.recv_timeout(READY_PAUSE) != Err(RecvTimeoutError::Timeout) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A line of figures each second, until somebody asks to stop.
fn live(cluster: &Cluster, stop: &Receiver<()>) -> Result<(), Error> {
    let mut watch = Watch::new()?;
    watch.figures(cluster);
    while stop.recv_timeout(FIGURES_PERIOD) == Err(RecvTimeoutError::Timeout) {
        tell(&watch.figures(cluster).to_string());
    }
    Ok(())
}

fn what_to_try(cluster: &Cluster, region: &str) -> String {
    let mut text = String::new();
    for pod in 0..cluster.n_pods() {
        text += &format!("router of pod-{pod}: {}\n", cluster.url(pod));
    }
    let (first, last) = (cluster.url(0), cluster.url(cluster.n_pods() - 1));
    text += &format!(
        "\ntry:\n  curl -i {first}/{region}/42\n  curl -i {last}/{region}/42\n  \
         curl -i -d '{{\"keys\":[\"1\",\"2\",\"3\"]}}' {first}/{region}\n  \
         curl {first}/-/explain/{region}/42\n  curl {first}/-/cluster\n\n\
         ready: {} pods; Ctrl-C drains and ends them",
        cluster.n_pods(),
    );
    text
}

/// Prints a line. When nobody reads any more, the cluster goes on.
fn tell(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Where SIGINT, SIGTERM and SIGHUP are heard.
fn asked_to_stop() -> io::Result<Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (tell, told) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let (mut interrupt, mut terminate, mut hangup) = runtime.block_on(async {
        let heard = |kind: fn() -> SignalKind| signal(kind());
        Ok::<_, io::Error>((heard(SignalKind::interrupt)?, heard(SignalKind::terminate)?, heard(SignalKind::hangup)?))
    })?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                    _ = hangup.recv() => {}
                }
                if tell.send(()).is_err() {
                    return;
                }
            }
        });
    })?;
    Ok(told)
}
