//! Load on the distributed cache: on a cluster of its own, or on any deployment.

use std::io::Write;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use cache_node::config::EXIT_CONFIG;
use clap::Parser;
use goose::threshold::Threshold;
use loadtest::cluster::{Cluster, ClusterError, Options};
use loadtest::command_line;
use loadtest::demo::{self, DemoError};
use loadtest::figures::Watch;
use loadtest::load::{Check, Load, Outcome};
use loadtest::scenario::Scenario;
use sharding::budget::Budget;

/// Longest time from the start of a cluster to readiness.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// Pause between two looks whether the budget is lent.
const BUDGET_PAUSE: Duration = Duration::from_millis(100);

/// Puts load on the cache and looks at every value. The thresholds decide the exit code: 0 all hold, 1 one is broken.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// A router, as http://host:port, again for more; without, a cluster is started on free ports.
    #[arg(long)]
    url: Vec<reqwest::Url>,
    /// What to run, again for more; by default all, one after the other.
    #[arg(long, value_enum)]
    scenario: Vec<Scenario>,
    /// Users, each with one connection and one request at a time.
    #[arg(long, default_value = "32")]
    connections: NonZeroUsize,
    /// How long each scenario runs; whole seconds.
    #[arg(long, default_value = "30s", value_parser = seconds)]
    duration: Duration,
    /// The region to read.
    #[arg(long, default_value = demo::REGION)]
    region: String,
    /// Rows have the keys 1 to this.
    #[arg(long, default_value_t = demo::N_PRODUCTS, value_parser = clap::value_parser!(u64).range(1..))]
    rows: u64,
    /// What a right value is.
    #[arg(long, value_enum, default_value = "product")]
    check: Check,
    /// Rules that have to hold, as goose reads them: pNN, avg, max, error-rate or rps, compared with a value.
    #[arg(long, default_values = ["error-rate<=0%", "p99<1s"])]
    threshold: Vec<Threshold>,
    /// Directory of the HTML reports.
    #[arg(long, default_value = "data/load")]
    report: PathBuf,
    /// Pods of the cluster that is started.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pods: u16,
    /// What that cluster may spend on its database, in operations a second; as much as it likes unless given.
    #[arg(long)]
    budget: Option<NonZeroU32>,
    /// Where that cluster's database and logs are.
    #[arg(long, default_value = "data/")]
    data_dir: PathBuf,
    /// Only make the demo's database, demo.db, in this directory if it is not there.
    #[arg(long)]
    make_demo: Option<PathBuf>,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error("{0}")]
    Http(#[from] reqwest::Error),
    #[error("{0}")]
    Goose(#[from] goose::GooseError),
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

/// The load generator counts in whole seconds.
fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_whole = parsed.subsec_nanos() == 0 && !parsed.is_zero();
    if is_whole { Ok(parsed) } else { Err("it has to be whole seconds, at least 1s".to_owned()) }
}

fn main() -> ExitCode {
    let args = match command_line::parse::<Args>() {
        Ok(args) => args,
        Err(exit) => return exit,
    };
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // What cannot be printed (a closed terminal) cannot be reported either.
            let _ = writeln!(std::io::stderr(), "loadtest: {error}");
            let is_usage = matches!(error, Error::Cluster(ClusterError::Usage(_)));
            if is_usage { EXIT_CONFIG.into() } else { ExitCode::FAILURE }
        }
    }
}

/// Whether all thresholds held.
fn run(args: &Args) -> Result<bool, Error> {
    if let Some(dir) = &args.make_demo {
        demo::prepare(dir)?;
        return Ok(true);
    }
    let cluster = if args.url.is_empty() { Some(start_cluster(args)?) } else { None };
    let urls = match &cluster {
        Some(cluster) => (0..cluster.n_pods()).map(|pod| cluster.url(pod)).collect(),
        None => args.url.iter().map(|url| url.as_str().trim_end_matches('/').to_owned()).collect(),
    };
    let load = Load {
        urls,
        region: args.region.clone(),
        n_rows: args.rows,
        check: args.check,
        connections: args.connections.get(),
        duration: args.duration,
        reports: args.report.clone(),
        thresholds: args.threshold.iter().map(Threshold::to_string).collect(),
    };
    let scenarios = if args.scenario.is_empty() { &Scenario::ALL[..] } else { &args.scenario[..] };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut watch = Watch::new()?;
    let mut lines = Vec::new();
    let mut all_hold = true;
    for &scenario in scenarios {
        if let Some(cluster) = &cluster {
            watch.figures(cluster);
        }
        let outcome = runtime.block_on(load.run(scenario))?;
        all_hold &= outcome.broken_thresholds.is_empty();
        lines.push(line(scenario, &outcome));
        lines.extend(
            cluster.as_ref().map(|cluster| format!("{:12} seen by the cluster: {}", "", watch.figures(cluster))),
        );
    }
    for line in lines {
        let _ = writeln!(std::io::stdout(), "{line}");
    }
    if let Some(cluster) = cluster {
        cluster.stop();
    }
    Ok(all_hold)
}

fn start_cluster(args: &Args) -> Result<Cluster, Error> {
    let config = demo::prepare(&args.data_dir)?;
    let config = args.budget.map(|budget| demo::with_budget(&config, budget)).transpose()?.unwrap_or(config);
    let options = Options { pods: args.pods.into(), ..Options::new(config, args.data_dir.join("load")) };
    let cluster = Cluster::start_ready(&options, READY_TIMEOUT)?;
    if let Some(budget) = args.budget {
        // What the cluster may spend is lent a while after it is ready.
        let (watch, deadline) = (Watch::new()?, Instant::now() + READY_TIMEOUT);
        let lent = f64::from(Budget(budget).lent());
        while watch.samples(&cluster).sum("cache_node_budget_slots", &[]) < lent && Instant::now() < deadline {
            std::thread::sleep(BUDGET_PAUSE);
        }
    }
    Ok(cluster)
}

fn line(scenario: Scenario, outcome: &Outcome) -> String {
    let Outcome { requests, failed, requests_per_second, broken_thresholds, report } = outcome;
    let verdict =
        if broken_thresholds.is_empty() { "ok".to_owned() } else { format!("BROKEN {}", broken_thresholds.join(", ")) };
    format!(
        "{:12} {requests} requests, {requests_per_second:.0} a second, {failed} failed: {verdict}; {}",
        scenario.name(),
        report.display()
    )
}
