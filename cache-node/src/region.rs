//! The regions of a node, ready to serve: each with its query, its times, its loader and its counters.

use std::cell::Cell;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use sharding::budget::{Budgeted, Floor};
use sharding::id::RegionName;
use sharding::times::Times;
use sharding::wire::{Failure, RegionInfo};
use tokio::sync::mpsc;

use crate::announcing::Announcing;
use crate::config::{CacheConfig, DatabaseConfig, RegionConfig, Server};
use crate::database::postgres::Postgres;
use crate::database::redis::Redis;
use crate::database::sqlite::Threads;
use crate::database::{Announcer, Database, Fences};
use crate::fencing::{FenceRequests, Fencing};
use crate::lease::HeldLease;
use crate::loading::spending::{BudgetPage, Spending};
use crate::loading::writing::{Changes, WriteEnd, WriteWish};
use crate::loading::{LoadError, Loaded, LoadedRegion, Loader, LoaderLimits};
use crate::metrics::{DatabaseMetrics, LoadReason, Metrics, RegionMetrics};
use crate::shard::freshness::Freshness;
use crate::shard::trust::Trust;

/// A region, shared by all shards of the node and never changed.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    place: usize,
    pub(crate) name: RegionName,
    pub(crate) content_type: String,
    pub(crate) cache_control: String,
    pub(crate) freshness: Freshness,
    pub(crate) max_bytes: u64,
    loader: Loader,
    /// Of a region that is written to: the position of its database among those that are.
    pub(crate) fence: Option<usize>,
    pub(crate) write_timeout: Duration,
    pub(crate) trust: Arc<Trust>,
    pub(crate) metrics: RegionMetrics,
}

impl Region {
    /// Room of one shard when the node owns so many.
    pub(crate) fn shard_bytes(&self, n_owned: usize) -> u64 {
        self.max_bytes / (n_owned.max(1) as u64)
    }

    /// Reads a key; see [`Loader::load`].
    ///
    /// # Errors
    /// [`LoadError`], as [`Loader::load`].
    pub(crate) async fn load(
        &self,
        key: Bytes,
        reason: LoadReason,
        wanted_by: Option<Instant>,
    ) -> Result<Loaded, LoadError> {
        self.loader.load(self.place, key, reason, wanted_by).await
    }

    /// Writes a key; see [`Loader::write`].
    ///
    /// # Errors
    /// As [`Loader::write`].
    pub(crate) async fn write(&self, wish: WriteWish) -> WriteEnd {
        self.loader.write(wish).await
    }

    /// See [`Loader::is_idle`].
    pub(crate) fn is_idle(&self) -> bool {
        self.loader.is_idle()
    }

    /// What whoever cannot wait for a load any longer is told.
    pub(crate) fn slow(&self) -> Failure {
        self.loader.slow()
    }

    /// What routers need to know of it.
    pub(crate) fn info(&self) -> RegionInfo {
        let (content_type, cache_control) = (self.content_type.clone(), self.cache_control.clone());
        RegionInfo { name: self.name.clone(), content_type, cache_control, writes: self.fence.is_some() }
    }
}

/// A database of a node: what it may spend on it, and what it has spent.
#[derive(Debug)]
pub(crate) struct Ledger {
    name: String,
    /// `None`: there is no budget.
    pub(crate) spending: Option<Spending>,
    pub(crate) metrics: DatabaseMetrics,
}

impl Ledger {
    /// What people are told.
    pub(crate) fn page(&self) -> LedgerPage {
        let spent = self.metrics.ledger().filter(|(_, operations, _)| *operations > 0);
        let row =
            |(reason, operations, keys): (LoadReason, _, _)| SpentPage { reason: reason.label(), operations, keys };
        LedgerPage {
            database: self.name.clone(),
            budget: self.spending.as_ref().map(Spending::page),
            spent: spent.map(row).collect(),
        }
    }

    /// Tells the metrics of the budget as it is now.
    pub(crate) fn measure(&self) {
        if let Some(page) = self.spending.as_ref().map(Spending::page) {
            self.metrics.budget_slots.set(page.slots.into());
        }
    }
}

/// A database on `/-/cluster`.
#[derive(Debug, Serialize)]
pub(crate) struct LedgerPage {
    database: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    budget: Option<BudgetPage>,
    spent: Vec<SpentPage>,
}

#[derive(Debug, Serialize)]
struct SpentPage {
    reason: &'static str,
    operations: u64,
    keys: u64,
}

/// What the coordinator has to know of the databases that have a budget.
pub(crate) fn budgeted(config: &CacheConfig) -> Vec<Budgeted> {
    let budgeted = |database: &DatabaseConfig| {
        let (name, operation_timeout) = (database.name.clone(), database.operation_timeout);
        Some(Budgeted { database: name, budget: database.budget?, operation_timeout })
    };
    config.databases.iter().filter_map(budgeted).collect()
}

/// What a node has of its databases.
pub(crate) struct Started {
    pub(crate) regions: Arc<[Region]>,
    /// One for each database.
    pub(crate) ledgers: Vec<Ledger>,
    /// Those that are to be listened to.
    pub(crate) announcing: Vec<Announcing>,
    /// Those that are written to, and where their fences are asked to rise.
    pub(crate) fencing: Vec<Fencing>,
    pub(crate) fences: Vec<FenceRequests>,
}

/// Starts the loaders and puts the regions together. `n_seeds` is for a seed: how many there are.
///
/// # Errors
/// When a loader cannot be started.
pub(crate) fn start(
    config: &CacheConfig,
    metrics: &Metrics,
    times: &Times,
    n_seeds: Option<u32>,
    lease: &HeldLease,
) -> std::io::Result<Started> {
    let (mut ledgers, mut loaders, mut announcing) = (Vec::new(), Vec::new(), Vec::new());
    let (mut fencing, mut fences, mut fence_of) = (Vec::new(), Vec::new(), Vec::new());
    let of_cluster = Arc::new(Fences { cluster: config.cluster.clone(), n_shards: config.n_shards });
    for (place, database) in config.databases.iter().enumerate() {
        let spending = database.budget.map(|budget| {
            let floor = n_seeds.map_or(Floor::NONE, |n_seeds| budget.floor(n_seeds));
            Spending::new(database.name.clone(), budget, floor, database.operation_timeout, times)
        });
        let own = || (0..).zip(&config.regions).filter(|(_, region)| region.database == place);
        let name = database.name.to_string();
        let connected = connect(database)?;
        if let Some(announcer) = connected.announcer.filter(|_| database.announce) {
            let named = |(place, region): (usize, &RegionConfig)| {
                (place, region.name.as_str().to_owned(), Arc::clone(&region.query))
            };
            let (regions, metrics) = (own().map(named).collect(), metrics.announcing(&name));
            announcing.push(Announcing {
                database: name.clone(),
                announcer,
                regions,
                metrics,
                has_met_others: Cell::default(),
            });
        }
        let loaded = |(place, region): (usize, &RegionConfig)| LoadedRegion {
            place,
            name: region.name.clone(),
            query: Arc::clone(&region.query),
            statements: region.statements.clone(),
        };
        let metrics = metrics.database(database.name.as_str());
        let loaded = own().map(loaded).collect();
        let loader = Loader::start(
            &name,
            connected.database,
            loaded,
            limits(database),
            spending.clone(),
            metrics.clone(),
            Changes::new(Arc::clone(&of_cluster), lease.clone()),
        )?;
        let is_written = own().any(|(_, region)| region.statements.is_some());
        fence_of.push(is_written.then_some(fencing.len()));
        if is_written {
            let (asked, requests) = mpsc::unbounded_channel();
            fencing.push(Fencing { fence: fencing.len(), database: name.clone(), loader: loader.clone(), requests });
            fences.push(asked);
        }
        loaders.push(loader);
        ledgers.push(Ledger { name, spending, metrics });
    }
    let region = |(place, region): (usize, &RegionConfig)| Region {
        place,
        name: region.name.clone(),
        content_type: region.content_type.clone(),
        cache_control: region.cache_control.clone(),
        freshness: region.freshness,
        max_bytes: region.max_bytes,
        loader: loaders[region.database].clone(),
        fence: region.statements.as_ref().and(fence_of[region.database]),
        write_timeout: config.databases[region.database].write_timeout,
        trust: Arc::new(Trust::new()),
        metrics: metrics.region(region.name.as_str()),
    };
    Ok(Started { regions: (0..).zip(&config.regions).map(region).collect(), ledgers, announcing, fencing, fences })
}

const fn limits(database: &DatabaseConfig) -> LoaderLimits {
    LoaderLimits {
        keys_max: database.load_keys_max,
        queue_max: database.load_queue_max,
        in_flight_max: database.in_flight_max,
        operation_timeout: database.operation_timeout,
        timeout: database.load_timeout,
        write_timeout: database.write_timeout,
    }
}

/// A database, and what it says of itself where it can.
struct Connected {
    database: Arc<dyn Database>,
    announcer: Option<Arc<dyn Announcer>>,
}

impl Connected {
    fn speaking<D: Database + Announcer + Clone>(database: D) -> Self {
        Self { database: Arc::new(database.clone()), announcer: Some(Arc::new(database)) }
    }
}

fn connect(database: &DatabaseConfig) -> std::io::Result<Connected> {
    let ca_file = database.ca_file.as_deref();
    let at = |path: Option<&Path>, error: std::io::Error| match path {
        Some(path) => std::io::Error::other(format!("{}: {error}", path.display())),
        None => error,
    };
    Ok(match &database.server {
        Server::Sqlite(path) => {
            Connected { database: Arc::new(Threads::start(path, database.in_flight_max)?), announcer: None }
        }
        Server::Postgres(config) => {
            let postgres = Postgres::new((**config).clone(), database.load_timeout, database.write_timeout, ca_file);
            Connected::speaking(postgres.map_err(|error| at(ca_file, error))?)
        }
        Server::Redis(info) => {
            Connected::speaking(Redis::new((**info).clone(), ca_file).map_err(|error| at(ca_file, error))?)
        }
    })
}
