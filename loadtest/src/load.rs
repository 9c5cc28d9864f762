//! The load: goose users that ask routers for keys, each after the other, and look at every value that comes back.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use goose::config::GooseConfiguration;
use goose::goose::{
    GooseRequest, GooseUser, Scenario as GooseScenario, Transaction, TransactionFunction, TransactionResult,
};
use goose::metrics::GooseMetrics;
use goose::{GooseAttack, GooseError};
use sharding::wire::Etag;

use crate::demo;
use crate::scenario::{Keys, Scenario};

/// What a value must be to be right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Check {
    /// The demo's product of this key; none for a key beyond the last.
    Product,
    /// Whatever the ETag of the answer says: the XXH3-128 of the value.
    Etag,
}

/// How to load.
#[derive(Clone, Debug)]
pub struct Load {
    /// Routers, as `http://host:port`; at least one. Users are spread over them.
    pub urls: Vec<String>,
    /// The region to read.
    pub region: String,
    /// Rows have the keys 1 to this.
    pub n_rows: u64,
    /// What is right.
    pub check: Check,
    /// Users; each has one connection and one request at a time.
    pub connections: usize,
    /// How long all of them ask.
    pub duration: Duration,
    /// Directory of the reports.
    pub reports: PathBuf,
    /// Rules such as `p99<50ms`, as goose reads them.
    pub thresholds: Vec<String>,
}

/// What came of a load.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that were answered.
    pub requests: usize,
    /// Those among them that were not answered well: no answer, a wrong status, a wrong value.
    pub failed: usize,
    /// Requests a second.
    pub requests_per_second: f64,
    /// Rules that do not hold, with what was seen instead.
    pub broken_thresholds: Vec<String>,
    /// The report.
    pub report: PathBuf,
}

impl Load {
    /// Runs a scenario and writes its report.
    ///
    /// # Errors
    /// When goose cannot run it; a broken threshold is an [`Outcome`].
    pub async fn run(&self, scenario: Scenario) -> Result<Outcome, GooseError> {
        std::fs::create_dir_all(&self.reports)?;
        let report = self.reports.join(format!("{}.html", scenario.name()));
        let configuration = self.configuration(&report)?;
        let steps = GooseScenario::new(scenario.name())
            .register_transaction(Transaction::new(self.ask(scenario)).set_name(scenario.name()));
        let attack = GooseAttack::initialize_with_config(configuration)?.register_scenario(steps);
        match attack.execute().await {
            Ok(metrics) => Ok(outcome(&metrics, Vec::new(), report)),
            Err(GooseError::ThresholdsFailed { failed, metrics }) => {
                let broken = failed.iter().map(|failed| format!("{}: {}", failed.rule, failed.observed)).collect();
                Ok(outcome(&metrics, broken, report))
            }
            Err(error) => Err(error),
        }
    }

    fn configuration(&self, report: &Path) -> Result<GooseConfiguration, GooseError> {
        let seconds = self.duration.as_secs().max(1).to_string();
        let (connections, report) = (self.connections.to_string(), report.display().to_string());
        // All users start within the first second.
        let mut flags = vec!["--host", &self.urls[0], "--users", &connections, "--increase-rate", &connections];
        flags.extend(["--run-time", &seconds, "--report-file", &report, "--no-telnet"]);
        // Nothing is forgotten when all users have started: a failure counts from the first request on.
        flags.extend(["--no-reset-metrics", "--no-transaction-metrics", "--no-scenario-metrics", "--quiet"]);
        flags.extend(self.thresholds.iter().flat_map(|rule| ["--threshold", rule]));
        GooseConfiguration::parse_args_default(&flags)
    }

    /// What each user does again and again.
    fn ask(&self, scenario: Scenario) -> TransactionFunction {
        let keys = scenario.keys(self.n_rows);
        let (load, name) = (Arc::new(self.clone()), scenario.name());
        let next_url = AtomicUsize::new(fastrand::usize(..self.urls.len()));
        Arc::new(move |user| {
            let (load, keys) = (Arc::clone(&load), keys.clone());
            let url = next_url.fetch_add(1, Ordering::Relaxed) % load.urls.len();
            Box::pin(async move { load.ask_once(user, url, &keys, name).await })
        })
    }

    async fn ask_once(&self, user: &mut GooseUser, url: usize, keys: &Keys, name: &str) -> TransactionResult {
        let key = keys.draw(&mut rand::rng());
        let url = format!("{}/{}/{key}", self.urls[url], self.region);
        let expected = if key <= self.n_rows { 200 } else { 404 };
        let request = GooseRequest::builder().path(url.as_str()).name(name).expect_status_code(expected).build();
        let mut answer = user.request(request).await?;
        let Ok(response) = answer.response else { return Ok(()) };
        if response.status().as_u16() != expected {
            return Ok(());
        }
        let etag = response.headers().get("etag").and_then(|etag| etag.to_str().ok()).map(str::to_owned);
        let body = response.bytes().await;
        let is_right = expected == 404 || body.is_ok_and(|body| self.is_right(key, etag.as_deref(), &body));
        if is_right { Ok(()) } else { user.set_failure("a wrong value", &mut answer.request, None, None) }
    }

    fn is_right(&self, key: u64, etag: Option<&str>, body: &[u8]) -> bool {
        let is_whole = etag == Some(Etag::of(body).to_string().as_str());
        is_whole && (self.check == Check::Etag || body == demo::product(key).as_bytes())
    }
}

fn outcome(metrics: &GooseMetrics, broken_thresholds: Vec<String>, report: PathBuf) -> Outcome {
    let failed: usize = metrics.requests.values().map(|request| request.fail_count).sum();
    let requests = failed + metrics.requests.values().map(|request| request.success_count).sum::<usize>();
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let requests_per_second = requests as f64 / metrics.duration.max(1) as f64;
    Outcome { requests, failed, requests_per_second, broken_thresholds, report }
}
