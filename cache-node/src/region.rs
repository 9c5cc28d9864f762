//! The regions of a node, ready to serve: each with its query, its times, its loader and its counters.

use std::sync::Arc;

use bytes::Bytes;
use sharding::id::RegionName;
use sharding::wire::RegionInfo;

use crate::config::{CacheConfig, DatabaseConfig};
use crate::database::sqlite::Sqlite;
use crate::loading::{LoadError, Loaded, Loader, LoaderLimits};
use crate::metrics::{LoadReason, Metrics, RegionMetrics};
use crate::shard::freshness::Freshness;

/// A region, shared by all shards of the node and never changed.
#[derive(Clone, Debug)]
pub(crate) struct Region {
    pub(crate) name: RegionName,
    pub(crate) content_type: String,
    pub(crate) query: Arc<str>,
    pub(crate) freshness: Freshness,
    pub(crate) max_bytes: u64,
    pub(crate) loader: Loader,
    pub(crate) metrics: RegionMetrics,
}

impl Region {
    /// Room of one shard when the node owns so many.
    pub(crate) fn shard_bytes(&self, n_owned: usize) -> u64 {
        self.max_bytes / (n_owned.max(1) as u64)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`LoadError`], as [`Loader::load`].
    pub(crate) async fn load(&self, key: Bytes, reason: LoadReason) -> Result<Loaded, LoadError> {
        self.loader.load(Arc::clone(&self.query), key, reason).await
    }

    /// What routers need to know of it.
    pub(crate) fn info(&self) -> RegionInfo {
        RegionInfo { name: self.name.clone(), content_type: self.content_type.clone() }
    }
}

/// Starts the loaders and puts the regions together.
///
/// # Errors
/// When a loader's thread cannot be started.
pub(crate) fn start(config: &CacheConfig, metrics: &Metrics) -> std::io::Result<Arc<[Region]>> {
    let loader = |database: &DatabaseConfig| {
        let path = database.path.clone();
        let limits = LoaderLimits {
            keys_max: database.load_keys_max,
            queue_max: database.load_queue_max,
            timeout: database.load_timeout,
        };
        Loader::start(&database.name, move || Sqlite::open(&path), limits, metrics.database(&database.name))
    };
    let loaders: Vec<Loader> = config.databases.iter().map(loader).collect::<Result<_, _>>()?;
    let region = |region: &crate::config::RegionConfig| Region {
        name: region.name.clone(),
        content_type: region.content_type.clone(),
        query: region.load.as_str().into(),
        freshness: region.freshness,
        max_bytes: region.max_bytes,
        loader: loaders[region.database].clone(),
        metrics: metrics.region(region.name.as_str()),
    };
    Ok(config.regions.iter().map(region).collect())
}
