//! What a router counts.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// Seconds from 50 us, in steps of the square root of two, to 6 s.
const REQUEST_BUCKETS: u16 = 35;
/// The region of a request that names none that there is.
pub(crate) const NO_REGION: &str = "-";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    region: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

/// All metrics of a router; every thread counts into the same.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    request_seconds: Histogram,
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
            requests: Family::default(),
            request_seconds: Histogram::new(exponential_buckets(0.000_05, std::f64::consts::SQRT_2, REQUEST_BUCKETS)),
            retries: Family::default(),
            misdirected: Counter::default(),
            connections: Gauge::default(),
            map_term: Gauge::default(),
            map_epoch: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("router");
        registry.register("requests", "HTTP requests for entries by status", metrics.requests.clone());
        registry.register("request_seconds", "From a request's head to its answer", metrics.request_seconds.clone());
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

    pub(crate) fn count_request(&self, region: &str, status: u16, took: Duration) {
        self.requests.get_or_create(&RequestLabels { region: region.to_owned(), status }).inc();
        self.request_seconds.observe(took.as_secs_f64());
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
        metrics.count_request("cache-data", 200, Duration::from_millis(1));
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("text");
        for line in [
            "router_requests_total{region=\"cache-data\",status=\"200\"} 1",
            "router_request_seconds_count 1",
            "router_misdirected_total 0",
            "router_map_term 0",
            "router_map_epoch 0",
        ] {
            assert!(page.lines().any(|found| found == line), "no {line:?} in\n{page}");
        }
    }
}
