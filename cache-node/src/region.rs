//! The regions of a node, ready to serve: each with its query, its times, its loader and its counters.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use serde::Serialize;
use sharding::budget::{Budgeted, Floor};
use sharding::id::RegionName;
use sharding::times::Times;
use sharding::wire::{Failure, RegionInfo};

use crate::config::{CacheConfig, DatabaseConfig, RegionConfig, Server};
use crate::database::Database;
use crate::database::postgres::Postgres;
use crate::database::redis::Redis;
use crate::database::sqlite::Threads;
use crate::loading::spending::{BudgetPage, Spending};
use crate::loading::{LoadError, Loaded, LoadedRegion, Loader, LoaderLimits};
use crate::metrics::{DatabaseMetrics, LoadReason, Metrics, RegionMetrics};
use crate::shard::freshness::Freshness;

/// A region, shared by all shards of the node and never changed.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    place: usize,
    pub(crate) name: RegionName,
    pub(crate) content_type: String,
    pub(crate) freshness: Freshness,
    pub(crate) max_bytes: u64,
    loader: Loader,
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

    /// What whoever cannot wait for a load any longer is told.
    pub(crate) fn slow(&self) -> Failure {
        self.loader.slow()
    }

    /// What routers need to know of it.
    pub(crate) fn info(&self) -> RegionInfo {
        RegionInfo { name: self.name.clone(), content_type: self.content_type.clone() }
    }
}

/// A database of a node: what it may spend on it, and what it has spent.
#[derive(Debug)]
pub(crate) struct Ledger {
    name: String,
    /// `None`: there is no budget.
    pub(crate) spending: Option<Spending>,
    metrics: DatabaseMetrics,
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

/// Starts the loaders and puts the regions together. `n_seeds` is for a seed: how many there are.
///
/// # Errors
/// When a loader cannot be started.
pub(crate) fn start(
    config: &CacheConfig,
    metrics: &Metrics,
    times: &Times,
    n_seeds: Option<u32>,
) -> std::io::Result<(Arc<[Region]>, Vec<Ledger>)> {
    let (mut ledgers, mut loaders) = (Vec::new(), Vec::new());
    for (place, database) in config.databases.iter().enumerate() {
        let spending = database.budget.map(|budget| {
            let floor = n_seeds.map_or(Floor::NONE, |n_seeds| budget.floor(n_seeds));
            Spending::new(database.name.clone(), budget, floor, database.operation_timeout, times)
        });
        let own = (0..).zip(&config.regions).filter(|(_, region)| region.database == place);
        let loaded = |(place, region): (usize, &RegionConfig)| LoadedRegion {
            place,
            name: region.name.clone(),
            query: Arc::clone(&region.query),
        };
        let metrics = metrics.database(database.name.as_str());
        loaders.push(start_loader(database, own.map(loaded).collect(), spending.clone(), metrics.clone())?);
        ledgers.push(Ledger { name: database.name.to_string(), spending, metrics });
    }
    let region = |(place, region): (usize, &RegionConfig)| Region {
        place,
        name: region.name.clone(),
        content_type: region.content_type.clone(),
        freshness: region.freshness,
        max_bytes: region.max_bytes,
        loader: loaders[region.database].clone(),
        metrics: metrics.region(region.name.as_str()),
    };
    Ok(((0..).zip(&config.regions).map(region).collect(), ledgers))
}

fn start_loader(
    database: &DatabaseConfig,
    regions: Vec<LoadedRegion>,
    spending: Option<Spending>,
    metrics: DatabaseMetrics,
) -> std::io::Result<Loader> {
    let limits = LoaderLimits {
        keys_max: database.load_keys_max,
        queue_max: database.load_queue_max,
        in_flight_max: database.in_flight_max,
        operation_timeout: database.operation_timeout,
        timeout: database.load_timeout,
    };
    let connected = connect(database)?;
    Loader::start(database.name.as_str(), connected, regions, limits, spending, metrics)
}

fn connect(database: &DatabaseConfig) -> std::io::Result<Arc<dyn Database>> {
    let ca_file = database.ca_file.as_deref();
    let at = |path: Option<&Path>, error: std::io::Error| match path {
        Some(path) => std::io::Error::other(format!("{}: {error}", path.display())),
        None => error,
    };
    Ok(match &database.server {
        Server::Sqlite(path) => Arc::new(Threads::start(path, database.in_flight_max)?),
        Server::Postgres(config) => {
            let postgres = Postgres::new((**config).clone(), database.load_timeout, ca_file);
            Arc::new(postgres.map_err(|error| at(ca_file, error))?)
        }
        Server::Redis(info) => Arc::new(Redis::new((**info).clone(), ca_file).map_err(|error| at(ca_file, error))?),
    })
}
