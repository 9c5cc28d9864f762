//! What a router counts.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::Registry;

/// Seconds from 50 us, in steps of the square root of two, to 6 s.
const REQUEST_BUCKETS: u16 = 35;
/// The region of a request that names none that there is.
pub(crate) const NO_REGION: &str = "-";

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct RequestLabels {
    region: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// Upper bounds of the buckets, in seconds; one more bucket is above all.
fn bounds() -> Vec<f64> {
    exponential_buckets(0.000_05, std::f64::consts::SQRT_2, REQUEST_BUCKETS).collect()
}

/// What one thread has counted of its requests. Nobody else takes the lock, but for whoever reads the metrics.
#[derive(Debug)]
pub(crate) struct Requests {
    bounds: Vec<f64>,
    counted: Mutex<Counted>,
}

#[derive(Debug, Default)]
struct Counted {
    /// They are few: a handful of regions and of statuses.
    by_status: Vec<(RequestLabels, u64)>,
    /// One for each bound, and one for what is above all.
    buckets: Vec<u64>,
    seconds: f64,
}

impl Requests {
    fn new() -> Self {
        let bounds = bounds();
        let counted = Counted { buckets: vec![0; bounds.len() + 1], ..Counted::default() };
        Self { bounds, counted: Mutex::new(counted) }
    }

    pub(crate) fn count(&self, region: &str, status: u16, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = self.bounds.partition_point(|bound| *bound < seconds);
        let mut counted = self.lock();
        counted.seconds += seconds;
        counted.buckets[bucket] += 1;
        let is_meant = |labels: &RequestLabels| labels.status == status && labels.region == region;
        match counted.by_status.iter_mut().find(|(labels, _)| is_meant(labels)) {
            Some((_, n)) => *n += 1,
            None => counted.by_status.push((RequestLabels { region: region.to_owned(), status }, 1)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().expect("nothing panics while it holds the lock")
    }
}

/// What all threads have counted, added up when it is read.
#[derive(Clone, Debug, Default)]
struct AllRequests(Arc<Mutex<Vec<Arc<Requests>>>>);

impl AllRequests {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Requests>>> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }
}

impl Collector for AllRequests {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut by_status = BTreeMap::<RequestLabels, u64>::new();
        let bounds = bounds();
        let (mut buckets, mut seconds) = (vec![0; bounds.len() + 1], 0.0);
        for requests in &*self.lock() {
            let counted = requests.lock();
            counted.by_status.iter().for_each(|(labels, n)| *by_status.entry(labels.clone()).or_default() += n);
            buckets.iter_mut().zip(&counted.buckets).for_each(|(sum, n)| *sum += n);
            seconds += counted.seconds;
        }
        let what = "HTTP requests for entries by status";
        let mut requests = encoder.encode_descriptor("requests", what, None, MetricType::Counter)?;
        for (labels, n) in by_status {
            ConstCounter::new(n).encode(requests.encode_family(&labels)?)?;
        }
        let what = "From a request's head to its answer";
        let mut took = encoder.encode_descriptor("request_seconds", what, None, MetricType::Histogram)?;
        let bounds = bounds.into_iter().chain([f64::INFINITY]);
        let n = buckets.iter().sum();
        took.encode_histogram::<NoLabelSet>(seconds, n, &bounds.zip(buckets).collect::<Vec<_>>(), None)
    }
}

/// All metrics of a router; threads count their requests apart, and everything else into the same.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: AllRequests,
    retries: Family<ReasonLabel, Counter>,
    pub(crate) misdirected: Counter,
    pub(crate) connections: Gauge,
    pub(crate) map_term: Gauge,
    pub(crate) map_epoch: Gauge,
}

impl Metrics {
    /// Metrics at zero, registered by the names that dashboards know.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: AllRequests::default(),
            retries: Family::default(),
            misdirected: Counter::default(),
            connections: Gauge::default(),
            map_term: Gauge::default(),
            map_epoch: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("router");
        registry.register_collector(Box::new(metrics.requests.clone()));
        registry.register("retries", "Tries after the first, by what the one before met", metrics.retries.clone());
        registry.register(
            "misdirected",
            "Requests that met a node that was not the owner",
            metrics.misdirected.clone(),
        );
        registry.register("node_connections", "Open connections to nodes", metrics.connections.clone());
        registry.register("map_term", "Term counter of the known map", metrics.map_term.clone());
        registry.register("map_epoch", "Sequence number of the known map", metrics.map_epoch.clone());
        metrics
    }

    /// Where one more thread counts its requests.
    pub(crate) fn of_thread(&self) -> Arc<Requests> {
        let requests = Arc::new(Requests::new());
        self.requests.lock().push(Arc::clone(&requests));
        requests
    }

    pub(crate) fn count_retry(&self, reason: &'static str) {
        self.retries.get_or_create(&ReasonLabel { reason }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_dashboards_know_are_there() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        for _ in 0..2 {
            metrics.of_thread().count("cache-data", 200, Duration::from_millis(1));
        }
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("text");
        for line in [
            "router_requests_total{region=\"cache-data\",status=\"200\"} 2",
            "router_request_seconds_count 2",
            "router_request_seconds_bucket{le=\"+Inf\"} 2",
            "router_misdirected_total 0",
            "router_map_term 0",
            "router_map_epoch 0",
        ] {
            assert!(page.lines().any(|found| found == line), "no {line:?} in\n{page}");
        }
    }
}
