//! What all threads of a node share: who it is, what it serves, and whether it is ready.

use std::num::NonZeroU16;
use std::sync::{Arc, RwLock};
use std::time::Instant;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use sharding::epoch::Epoch;
use sharding::id::NodeId;
use sharding::map::ShardMap;
use tokio::sync::{Semaphore, watch};

use crate::config::{Args, CacheConfig};
use crate::metrics::Metrics;
use crate::region::{self, Region};

/// A node's shared state. The shell's parts hold it by `Arc`; only the map and the drain change after the start.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: NodeId,
    pub(crate) n_lanes: NonZeroU16,
    pub(crate) regions: Arc<[Region]>,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Registry,
    /// Most unanswered requests of one connection.
    pub(crate) in_flight_max: usize,
    pub(crate) connections_max: usize,
    /// One permit for each connection: all of them are back when no connection is left.
    pub(crate) connections: Arc<Semaphore>,
    /// Turns true once, when the node is told to leave.
    pub(crate) drain: watch::Sender<bool>,
    /// Shards that lanes serve at this moment.
    pub(crate) serving: Gauge,
    map: RwLock<Option<Arc<ShardMap>>>,
    started: Instant,
}

impl Node {
    /// Starts the loaders; nothing is served yet.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(args: &Args, n_lanes: NonZeroU16, config: &CacheConfig) -> std::io::Result<Self> {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let regions = region::start(config, &metrics)?;
        Ok(Self {
            name: args.name.clone(),
            n_lanes,
            regions,
            serving: metrics.shards_serving(),
            metrics,
            registry,
            in_flight_max: args.in_flight_max,
            connections_max: args.connections_max,
            connections: Arc::new(Semaphore::new(args.connections_max)),
            drain: watch::Sender::new(false),
            map: RwLock::new(None),
            started: Instant::now(),
        })
    }

    /// Position of a region by its name.
    pub(crate) fn region(&self, name: &[u8]) -> Option<usize> {
        self.regions.iter().position(|region| region.name.as_str().as_bytes() == name)
    }

    /// The newest map.
    pub(crate) fn map(&self) -> Option<Arc<ShardMap>> {
        self.map.read().expect("nothing panics while it holds the lock").clone()
    }

    /// Requires: `map` is newer than any before; `Ownership` has compared them.
    pub(crate) fn publish(&self, map: Arc<ShardMap>) {
        let epoch = map.epoch();
        self.metrics.term.set(i64::try_from(epoch.term.counter).unwrap_or(i64::MAX));
        self.metrics.epoch.set(i64::try_from(epoch.seq).unwrap_or(i64::MAX));
        *self.map.write().expect("nothing panics while it holds the lock") = Some(map);
    }

    /// Whether the node serves all that the map gives it and is not on its way out. Never false because of another.
    pub(crate) fn is_ready(&self) -> bool {
        let Some(map) = self.map() else { return false };
        let n_owned = i64::try_from(map.shards_of(&self.name).count()).unwrap_or(i64::MAX);
        self.serving.get() == n_owned && !*self.drain.borrow()
    }

    /// What the node says of itself.
    pub(crate) fn page(&self) -> NodePage {
        let regions = self.regions.iter().map(|region| {
            let counted = &region.metrics;
            RegionPage {
                region: region.name.as_str().to_owned(),
                entries: counted.entries.entries.get(),
                entry_bytes: counted.entries.bytes.get(),
                max_bytes: region.max_bytes,
                hits: counted.hit.get() + counted.stale.get(),
                misses: counted.miss.get() + counted.joined.get(),
            }
        });
        NodePage {
            node: self.name.clone(),
            is_ready: self.is_ready(),
            epoch: self.map().map(|map| map.epoch()),
            n_lanes: self.n_lanes.get(),
            shards_serving: self.serving.get(),
            uptime_seconds: self.started.elapsed().as_secs(),
            regions: regions.collect(),
        }
    }
}

/// A node on `/-/cluster`.
#[derive(Debug, Serialize)]
pub(crate) struct NodePage {
    node: NodeId,
    is_ready: bool,
    epoch: Option<Epoch>,
    n_lanes: u16,
    shards_serving: i64,
    uptime_seconds: u64,
    regions: Vec<RegionPage>,
}

#[derive(Debug, Serialize)]
struct RegionPage {
    region: String,
    entries: i64,
    entry_bytes: i64,
    max_bytes: u64,
    hits: u64,
    misses: u64,
}
