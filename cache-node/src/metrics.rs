//! What a node counts. Handles are resolved once, so that counting looks nothing up.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use sharding::wire::FailureCode;

use crate::shard::entries::EntryGauges;

/// Seconds from 0.1 ms, doubling, to 13 s.
const LOAD_BUCKETS: u16 = 18;

/// Seconds from 0.5 ms, in steps of a half more, to 3 s.
const PAUSE_BUCKETS: u16 = 22;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabel {
    region: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    region: String,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct LoadLabels {
    database: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatabaseLabel {
    database: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabel {
    state: &'static str,
}

/// Why a database is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum LoadReason {
    /// It was not in memory.
    Cold,
    /// Its value was older than `max_stale`.
    Expired,
    /// Its value was older than `ttl`, and was served meanwhile.
    Refreshed,
    /// "There is no such row" was older than `absent_ttl`.
    Absent,
    /// The owner could not be reached; the value was not kept.
    PassThrough,
    /// It was in memory, and gave way to others before its time.
    Evicted,
    /// The shard was another's lately, which gave it away.
    Moved,
    /// The shard was another's lately, which is gone.
    Crashed,
    /// It was in memory, and somebody said that it is another now.
    Invalidated,
    /// It was fresh, asked for often and about to be stale, and the budget was not spent.
    Ahead,
    /// It was written.
    Write,
    /// The fences of shards were raised.
    Fence,
}

impl LoadReason {
    pub(crate) const ALL: [Self; 12] = [
        Self::Cold,
        Self::Expired,
        Self::Refreshed,
        Self::Absent,
        Self::PassThrough,
        Self::Evicted,
        Self::Moved,
        Self::Crashed,
        Self::Invalidated,
        Self::Ahead,
        Self::Write,
        Self::Fence,
    ];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Expired => "expired",
            Self::Refreshed => "refreshed",
            Self::Absent => "absent",
            Self::PassThrough => "pass_through",
            Self::Evicted => "evicted",
            Self::Moved => "moved",
            Self::Crashed => "crashed",
            Self::Invalidated => "invalidated",
            Self::Ahead => "ahead",
            Self::Write => "write",
            Self::Fence => "fence",
        }
    }
}

/// All metrics of a node.
#[derive(Debug)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    writes: Family<RequestLabels, Counter>,
    entries: Family<RegionLabel, Gauge>,
    entry_bytes: Family<RegionLabel, Gauge>,
    not_kept: Family<RegionLabel, Counter>,
    invalidated: Family<RegionLabel, Counter>,
    operations: Family<LoadLabels, Counter>,
    keys: Family<LoadLabels, Counter>,
    load_seconds: Histogram,
    announcements_heard: Family<DatabaseLabel, Gauge>,
    announcements: Family<DatabaseLabel, Counter>,
    over_budget: Family<DatabaseLabel, Counter>,
    budget_slots: Family<DatabaseLabel, Gauge>,
    connections_closed: Family<ReasonLabel, Counter>,
    shards: Family<StateLabel, Gauge>,
    pub(crate) handoff: HandoffMetrics,
    pub(crate) shards_restarted: Counter,
    pub(crate) wrong_lane: Counter,
    pub(crate) connections: Gauge,
    pub(crate) owner_connections: Gauge,
    pub(crate) coordinator: Gauge,
    pub(crate) lease_remaining: Gauge<f64, std::sync::atomic::AtomicU64>,
    pub(crate) term: Gauge,
    pub(crate) epoch: Gauge,
}

/// What is counted of shards that come from other nodes, and go to them.
#[derive(Debug)]
pub(crate) struct HandoffMetrics {
    /// Shards that began with what was in memory of the owner before.
    pub(crate) warm: Counter,
    /// Shards that began with nothing, although their owner had given them away.
    pub(crate) cold: Counter,
    /// Shards that were given away without what is in memory.
    pub(crate) given_up: Counter,
    pub(crate) entries: Counter,
    /// From the first chunk to the grant.
    pub(crate) seconds: Histogram,
    /// For so long nobody served a shard.
    pub(crate) pause_seconds: Histogram,
}

impl HandoffMetrics {
    fn new() -> Self {
        Self {
            warm: Counter::default(),
            cold: Counter::default(),
            given_up: Counter::default(),
            entries: Counter::default(),
            seconds: Histogram::new(exponential_buckets(0.001, 2.0, LOAD_BUCKETS)),
            pause_seconds: Histogram::new(exponential_buckets(0.0005, 1.5, PAUSE_BUCKETS)),
        }
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("handoff_warm", "Shards taken over with their entries", self.warm.clone());
        registry.register("handoff_cold", "Shards given to this node without their entries", self.cold.clone());
        registry.register("handoff_given_up", "Shards given away without their entries", self.given_up.clone());
        registry.register("handoff_entries", "Entries taken over", self.entries.clone());
        registry.register("handoff_seconds", "From the first chunk of a shard to its grant", self.seconds.clone());
        registry.register("handoff_pause_seconds", "For so long nobody served it", self.pause_seconds.clone());
    }
}

/// What is counted of one region.
#[derive(Clone, Debug)]
pub(crate) struct RegionMetrics {
    pub(crate) hit: Counter,
    pub(crate) stale: Counter,
    pub(crate) miss: Counter,
    pub(crate) joined: Counter,
    pub(crate) passed_through: Counter,
    pub(crate) relayed: Counter,
    pub(crate) failed: Counter,
    pub(crate) misdirected: Counter,
    pub(crate) overloaded: Counter,
    pub(crate) not_kept: Counter,
    pub(crate) invalidated: Counter,
    /// Writes by what became of them, as [`Wrote`] numbers it.
    writes: [Counter; Wrote::ALL.len()],
    pub(crate) entries: EntryGauges,
}

/// What is counted of one database.
#[derive(Clone, Debug)]
pub(crate) struct DatabaseMetrics {
    by_reason: [(Counter, Counter); LoadReason::ALL.len()],
    pub(crate) load_seconds: Histogram,
    /// Loads that were refused because the budget would not have come in time.
    pub(crate) over_budget: Counter,
    /// Slots of the budget that this node has.
    pub(crate) budget_slots: Gauge,
}

/// What is counted of the announcements of one database.
#[derive(Clone, Debug)]
pub(crate) struct AnnouncingMetrics {
    /// 1 while they are heard.
    pub(crate) listening: Gauge,
    /// Keys that were said to have changed.
    pub(crate) notices: Counter,
}

impl DatabaseMetrics {
    /// Counts one operation, by the reason of its first key.
    pub(crate) fn count_operation(&self, reason: LoadReason) {
        self.by_reason[reason as usize].0.inc();
    }

    /// How many operations there were for each reason, and how many keys they asked for.
    pub(crate) fn ledger(&self) -> impl Iterator<Item = (LoadReason, u64, u64)> {
        let counted = LoadReason::ALL.into_iter().zip(&self.by_reason);
        counted.map(|(reason, (operations, keys))| (reason, operations.get(), keys.get()))
    }

    /// Counts one key that is asked for.
    pub(crate) fn count_key(&self, reason: LoadReason) {
        self.by_reason[reason as usize].1.inc();
    }
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrote {
    /// It is in the database.
    Done,
    /// Its precondition did not hold.
    Precondition,
    /// It is surely not in the database.
    Failed,
    /// Nobody can say.
    Unknown,
}

impl Wrote {
    const ALL: [Self; 4] = [Self::Done, Self::Precondition, Self::Failed, Self::Unknown];

    const fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Precondition => "precondition",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        }
    }
}

impl RegionMetrics {
    pub(crate) fn count_write(&self, wrote: Wrote) {
        self.writes[wrote as usize].inc();
    }

    /// Counts a request that gets no value.
    pub(crate) fn count_failure(&self, code: FailureCode) {
        if code == FailureCode::Overloaded { &self.overloaded } else { &self.failed }.inc();
    }
}

impl Metrics {
    /// Metrics at zero, registered by the names that dashboards know.
    pub(crate) fn new(registry: &mut Registry) -> Self {
        let metrics = Self {
            requests: Family::default(),
            writes: Family::default(),
            entries: Family::default(),
            entry_bytes: Family::default(),
            not_kept: Family::default(),
            invalidated: Family::default(),
            operations: Family::default(),
            keys: Family::default(),
            load_seconds: Histogram::new(exponential_buckets(0.0001, 2.0, LOAD_BUCKETS)),
            announcements_heard: Family::default(),
            announcements: Family::default(),
            over_budget: Family::default(),
            budget_slots: Family::default(),
            connections_closed: Family::default(),
            shards: Family::default(),
            handoff: HandoffMetrics::new(),
            shards_restarted: Counter::default(),
            wrong_lane: Counter::default(),
            connections: Gauge::default(),
            owner_connections: Gauge::default(),
            coordinator: Gauge::default(),
            lease_remaining: Gauge::default(),
            term: Gauge::default(),
            epoch: Gauge::default(),
        };
        let registry = registry.sub_registry_with_prefix("cache_node");
        registry.register("requests", "Requests by what became of them", metrics.requests.clone());
        registry.register("writes", "Writes by what became of them", metrics.writes.clone());
        registry.register("entries", "Entries in memory, absent ones included", metrics.entries.clone());
        registry.register("entry_bytes", "Bytes of keys, values and overhead", metrics.entry_bytes.clone());
        registry.register("values_not_kept", "Values too large for a shard's room", metrics.not_kept.clone());
        registry.register(
            "entries_invalidated",
            "Entries forgotten because somebody said so",
            metrics.invalidated.clone(),
        );
        registry.register("database_operations", "Operations, by first key's reason", metrics.operations.clone());
        registry.register("database_keys", "Keys asked for, found or not", metrics.keys.clone());
        registry.register("load_seconds", "From sending an operation to its answer", metrics.load_seconds.clone());
        registry.register(
            "announcements_heard",
            "1 while the database's announcements are heard",
            metrics.announcements_heard.clone(),
        );
        registry.register("announcements", "Keys that a database said had changed", metrics.announcements.clone());
        registry.register(
            "loads_over_budget",
            "Loads refused because the budget would not have come in time",
            metrics.over_budget.clone(),
        );
        registry.register("budget_slots", "Operations a second that this node may spend", metrics.budget_slots.clone());
        registry.register(
            "connections_closed",
            "Data connections by why they ended",
            metrics.connections_closed.clone(),
        );
        registry.register("connections", "Data connections that are open", metrics.connections.clone());
        registry.register(
            "owner_connections",
            "Connections to owners that a router cannot reach",
            metrics.owner_connections.clone(),
        );
        metrics.handoff.register(registry);
        registry.register("shards", "Shards by state", metrics.shards.clone());
        registry.register(
            "shards_restarted",
            "Shard actors started again after a panic",
            metrics.shards_restarted.clone(),
        );
        registry.register("wrong_lane", "Requests that crossed a thread to their shard", metrics.wrong_lane.clone());
        registry.register("coordinator", "1 while this node coordinates", metrics.coordinator.clone());
        registry.register("lease_remaining_seconds", "What is left of the lease", metrics.lease_remaining.clone());
        registry.register("term", "Term counter of the newest map", metrics.term.clone());
        registry.register("epoch", "Sequence number of the newest map", metrics.epoch.clone());
        metrics
    }

    pub(crate) fn region(&self, name: &str) -> RegionMetrics {
        let requests = |result| self.requests.get_or_create_owned(&RequestLabels { region: name.to_owned(), result });
        let writes = |wrote: Wrote| {
            self.writes.get_or_create_owned(&RequestLabels { region: name.to_owned(), result: wrote.label() })
        };
        let label = RegionLabel { region: name.to_owned() };
        RegionMetrics {
            writes: Wrote::ALL.map(writes),
            hit: requests("hit"),
            stale: requests("stale"),
            miss: requests("miss"),
            joined: requests("joined"),
            passed_through: requests("pass_through"),
            relayed: requests("relayed"),
            failed: requests("failed"),
            misdirected: requests("misdirected"),
            overloaded: requests("overloaded"),
            not_kept: self.not_kept.get_or_create_owned(&label),
            invalidated: self.invalidated.get_or_create_owned(&label),
            entries: EntryGauges {
                entries: self.entries.get_or_create_owned(&label),
                bytes: self.entry_bytes.get_or_create_owned(&label),
            },
        }
    }

    pub(crate) fn database(&self, name: &str) -> DatabaseMetrics {
        let counters = |reason: LoadReason| {
            let labels = LoadLabels { database: name.to_owned(), reason: reason.label() };
            (self.operations.get_or_create_owned(&labels), self.keys.get_or_create_owned(&labels))
        };
        let label = DatabaseLabel { database: name.to_owned() };
        DatabaseMetrics {
            by_reason: LoadReason::ALL.map(counters),
            load_seconds: self.load_seconds.clone(),
            over_budget: self.over_budget.get_or_create_owned(&label),
            budget_slots: self.budget_slots.get_or_create_owned(&label),
        }
    }

    pub(crate) fn announcing(&self, name: &str) -> AnnouncingMetrics {
        let label = DatabaseLabel { database: name.to_owned() };
        AnnouncingMetrics {
            listening: self.announcements_heard.get_or_create_owned(&label),
            notices: self.announcements.get_or_create_owned(&label),
        }
    }

    pub(crate) fn connection_closed(&self, reason: &'static str) {
        self.connections_closed.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// Shards that are `serving`, that are on their way to others (`giving`) or on their way here (`taking`).
    pub(crate) fn shards(&self, state: &'static str) -> Gauge {
        self.shards.get_or_create_owned(&StateLabel { state })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_that_dashboards_know_are_there() {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        metrics.region("cache-data").hit.inc();
        metrics.database("main").count_key(LoadReason::Cold);
        metrics.shards("serving").set(3);
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).expect("text");
        for line in [
            "cache_node_requests_total{region=\"cache-data\",result=\"hit\"} 1",
            "cache_node_entries{region=\"cache-data\"} 0",
            "cache_node_entry_bytes{region=\"cache-data\"} 0",
            "cache_node_database_operations_total{database=\"main\",reason=\"cold\"} 0",
            "cache_node_database_keys_total{database=\"main\",reason=\"cold\"} 1",
            "cache_node_load_seconds_count 0",
            "cache_node_shards{state=\"serving\"} 3",
            "cache_node_term 0",
            "cache_node_epoch 0",
        ] {
            assert!(page.lines().any(|found| found == line), "no {line:?} in\n{page}");
        }
    }
}
