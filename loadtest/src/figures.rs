//! What a cluster is doing, from the metrics of its processes.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use reqwest::blocking::Client;

use crate::cluster::Cluster;

/// Longest time that one process may take to give its metrics.
const SCRAPE_TIMEOUT: Duration = Duration::from_millis(500);

/// Samples of one metrics page, or the sum of several.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    /// Name and labels as they stand in the page, to the value.
    values: BTreeMap<String, f64>,
}

impl Samples {
    /// Reads the text format of Prometheus and OpenMetrics; lines that are no samples are passed over.
    pub fn parse(page: &str) -> Self {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series.to_owned(), value.parse().ok()?))
        };
        Self { values: page.lines().filter(|line| !line.starts_with('#')).filter_map(sample).collect() }
    }

    /// Sum of all series of a metric that have all these `label="value"` pairs.
    pub fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        self.of(metric)
            .filter(|(found, _)| labels.iter().all(|label| found.contains(label)))
            .map(|(_, value)| value)
            // The sum of nothing is -0.
            .fold(0.0, |sum, value| sum + value)
    }

    /// Labels and value of each series of a metric.
    fn of(&self, metric: &str) -> impl Iterator<Item = (&str, f64)> {
        self.values.iter().filter_map(move |(series, value)| {
            let labels = series.strip_prefix(metric)?;
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, *value))
        })
    }

    /// Adds the samples of another process.
    pub fn add(&mut self, other: &Self) {
        for (series, value) in &other.values {
            *self.values.entry(series.clone()).or_default() += value;
        }
    }

    /// What has been counted since `before`; a process that began anew counts from zero.
    fn since(&self, before: &Self) -> Self {
        let change = |(series, value): (&String, &f64)| {
            let earlier = before.values.get(series).copied().unwrap_or_default();
            (series.clone(), if earlier <= *value { value - earlier } else { *value })
        };
        Self { values: self.values.iter().map(change).collect() }
    }

    /// The value below which a share `q` of a histogram's observations lies, taken as even within its bucket.
    pub fn quantile(&self, histogram: &str, q: f64) -> Option<f64> {
        let bound = |labels: &str| -> Option<f64> {
            let text = labels.split("le=\"").nth(1)?.split('"').next()?;
            if text == "+Inf" { Some(f64::INFINITY) } else { text.parse().ok() }
        };
        let name = format!("{histogram}_bucket");
        let mut buckets: Vec<(f64, f64)> = self.of(&name).filter_map(|(l, count)| Some((bound(l)?, count))).collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let total = buckets.last().map(|(_, count)| *count).filter(|total| *total > 0.0)?;
        let rank = q * total;
        let at = buckets.iter().position(|(_, count)| *count >= rank)?;
        let (upper, count) = buckets[at];
        let (lower, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
        if upper.is_infinite() {
            return Some(lower);
        }
        Some(lower + (upper - lower) * (rank - below) / (count - below).max(f64::MIN_POSITIVE))
    }
}

/// Asks all processes of a cluster, again and again.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    last: Option<(Instant, Samples)>,
}

impl Watch {
    /// Nothing is asked yet.
    ///
    /// # Errors
    /// When no HTTP client can be made.
    pub fn new() -> reqwest::Result<Self> {
        Ok(Self { client: Client::builder().timeout(SCRAPE_TIMEOUT).build()?, last: None })
    }

    /// The sum over all processes that answer.
    pub fn samples(&self, cluster: &Cluster) -> Samples {
        let mut all = Samples::default();
        for pod in 0..cluster.n_pods() {
            for base in [cluster.url(pod), cluster.control(pod)] {
                let page = self.client.get(format!("{base}/metrics")).send().and_then(|answer| answer.text());
                if let Ok(page) = page {
                    all.add(&Samples::parse(&page));
                }
            }
        }
        all
    }

    /// What happened since the last call.
    pub fn figures(&mut self, cluster: &Cluster) -> Figures {
        let (now, samples) = (Instant::now(), self.samples(cluster));
        let (began, before) = self.last.take().unwrap_or_else(|| (now, samples.clone()));
        let figures = Figures::of(&samples, &samples.since(&before), now.duration_since(began));
        self.last = Some((now, samples));
        figures
    }
}

/// What a cluster did in a span of time.
#[derive(Clone, Debug, PartialEq)]
pub struct Figures {
    /// HTTP requests a second, over all routers.
    pub requests_per_second: f64,
    /// Share of reads that memory answered; `None` without reads.
    pub hit_rate: Option<f64>,
    /// Database operations a second, over all nodes.
    pub operations_per_second: f64,
    /// Seconds at the router below which 99 in 100 requests took; `None` without requests.
    pub p99_seconds: Option<f64>,
    /// Entries in memory at the end.
    pub entries: f64,
}

impl Figures {
    fn of(total: &Samples, change: &Samples, span: Duration) -> Self {
        let seconds = span.as_secs_f64().max(f64::MIN_POSITIVE);
        let per_second = |count: f64| if span.is_zero() { 0.0 } else { count / seconds };
        let result = |result: &str| change.sum("cache_node_requests_total", &[&format!("result=\"{result}\"")]);
        let hits = result("hit") + result("stale");
        let reads = hits + result("miss") + result("joined");
        Self {
            requests_per_second: per_second(change.sum("router_requests_total", &[])),
            hit_rate: (reads > 0.0).then(|| hits / reads),
            operations_per_second: per_second(change.sum("cache_node_database_operations_total", &[])),
            p99_seconds: change.quantile("router_request_seconds", 0.99),
            entries: total.sum("cache_node_entries", &[]),
        }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        write!(
            f,
            "{:>8.0} requests/s   hit rate {:>7}   database {:>6.0} operations/s   p99 {:>9}   {:>8.0} entries",
            self.requests_per_second,
            or_dash(self.hit_rate.map(|rate| format!("{:.2} %", 100.0 * rate))),
            self.operations_per_second,
            or_dash(self.p99_seconds.map(|p99| format!("{:.2} ms", 1000.0 * p99))),
            self.entries,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "# TYPE cache_node_requests counter\n\
        cache_node_requests_total{region=\"a b\",result=\"hit\"} 30\n\
        cache_node_requests_total{region=\"a b\",result=\"miss\"} 10\n\
        cache_node_requests_total_other 5\n\
        router_requests_total{region=\"a b\",status=\"200\"} 40\n\
        router_request_seconds_bucket{le=\"0.001\"} 50\n\
        router_request_seconds_bucket{le=\"0.002\"} 100\n\
        router_request_seconds_bucket{le=\"+Inf\"} 100\n\
        cache_node_entries{region=\"a b\"} 7\n\
        # EOF\n";

    #[test]
    fn a_page_is_read_and_summed() {
        let mut samples = Samples::parse(PAGE);
        assert_eq!(samples.sum("cache_node_requests_total", &[]), 40.0);
        assert_eq!(samples.sum("cache_node_requests_total", &["result=\"hit\""]), 30.0);
        samples.add(&Samples::parse(PAGE));
        assert_eq!(samples.sum("cache_node_entries", &["region=\"a b\""]), 14.0);
    }

    #[test]
    fn a_quantile_lies_within_its_bucket() {
        let samples = Samples::parse(PAGE);
        let near = |q, expected: f64| {
            (samples.quantile("router_request_seconds", q).expect("observed") - expected).abs() < 1e-9
        };
        assert!(near(0.5, 0.001) && near(0.75, 0.0015) && near(0.99, 0.00198));
        assert_eq!(samples.quantile("nothing", 0.5), None);
    }

    #[test]
    fn figures_are_of_the_span_between() {
        let (before, now) = (Samples::default(), Samples::parse(PAGE));
        let figures = Figures::of(&now, &now.since(&before), Duration::from_secs(2));
        assert_eq!(figures.requests_per_second, 20.0);
        assert_eq!(figures.hit_rate, Some(0.75));
        assert_eq!(figures.entries, 7.0);
        let quiet = Figures::of(&now, &now.since(&now), Duration::from_secs(2));
        assert_eq!((quiet.requests_per_second, quiet.hit_rate, quiet.p99_seconds), (0.0, None, None));
        assert!(quiet.to_string().contains("hit rate       -"), "{quiet}");
    }
}
