//! Configuration: flags and environment ([`Args`]), and the file that names databases and regions ([`CacheConfig`]).
//!
//! All of it is checked before a port opens; a mistake is one line that says where it is and what to do.

mod file;

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use sharding::budget::Budget;
use sharding::id::{ClusterName, DatabaseName, NShards, NodeId, RegionName};
use sharding::map::Member;
use sharding::times::{Times, TimesError};
use transport::flags::duration;
use transport::seeds::{DATA_PORT, SeedArgs, SeedsError};

use crate::database::{Query, Statements};
use crate::shard::freshness::Freshness;

/// Exit code for a mistake in the configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// A node of the distributed cache: owns shards, keeps their entries, loads what is missing.
#[derive(Clone, Debug, Parser)]
#[command(version, subcommand_negates_reqs = true)]
pub struct Program {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub task: Option<Task>,
    /// How to serve.
    #[command(flatten)]
    pub args: Args,
}

/// What the program does for those who set up a database.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Task {
    /// Print the SQL of the table that a database needs to be written to; for PostgreSQL and SQLite alike.
    FenceTable,
}

/// How a node serves.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Name of this node; in a cluster of pods the pod's name.
    #[arg(long, env = "POD_NAME", required = true, value_parser = NodeId::parse)]
    pub name: Option<NodeId>,
    /// The first nodes, which agree on the coordinator.
    #[command(flatten)]
    pub seeds: SeedArgs,
    /// `host:port` at which others reach this node's data port; by default at the pod's address, else as the seeds name
    /// it, else by the domain, else where it listens.
    #[arg(long, env = "CACHE_NODE_ADVERTISE")]
    pub advertise: Option<String>,
    /// Address of the pod: others reach the data port there. It is true from the start, which a name is only when the name
    /// servers have heard of the pod.
    #[arg(long, env = "POD_IP")]
    pub pod_ip: Option<IpAddr>,
    /// Domain of the node: others reach its data port at `<name>.<domain>`; in a cluster of pods the headless service.
    #[arg(long, env = "BIND_DOMAIN")]
    pub domain: Option<String>,
    /// Port of these addresses.
    #[arg(long, env = "BIND_PORT", default_value_t = DATA_PORT)]
    pub port: u16,
    /// What tells this pod from another of the same name; in a cluster of pods the pod's UID.
    #[arg(long, env = "POD_UID")]
    pub uid: Option<String>,
    /// The file that names databases and regions.
    #[arg(long, env = "CACHE_CONFIG", default_value = "cache.toml")]
    pub config: PathBuf,
    /// Where routers connect.
    #[arg(long, env = "CACHE_NODE_DATA_BIND", default_value = "127.0.0.1:2551")]
    pub data_bind: SocketAddr,
    /// Where people and probes ask, by HTTP.
    #[arg(long, env = "CACHE_NODE_CONTROL_BIND", default_value = "127.0.0.1:2552")]
    pub control_bind: SocketAddr,
    /// Threads that serve entries; by default one for each processor.
    #[arg(long, env = "CACHE_NODE_LANES")]
    pub lanes: Option<NonZeroU16>,
    /// Most data connections at a time; one more is refused.
    #[arg(long, env = "CACHE_NODE_CONNECTIONS_MAX", default_value_t = 4096)]
    pub connections_max: usize,
    /// Most unanswered requests of one data connection; one more is answered "overloaded".
    #[arg(long, env = "CACHE_NODE_IN_FLIGHT_MAX", default_value_t = 16_384)]
    pub in_flight_max: usize,
    /// Most keys that are read past owners at a time; one more is answered "overloaded".
    #[arg(long, env = "CACHE_NODE_PASS_THROUGH_IN_FLIGHT_MAX", default_value_t = 1024)]
    pub pass_through_in_flight_max: usize,
    /// Most bytes of values that wait to be written at a time; a write beyond it is answered "not applied".
    #[arg(long, env = "CACHE_NODE_WRITING_BYTES_MAX", default_value_t = 64 * 1024 * 1024)]
    pub writing_bytes_max: usize,
    /// Bytes a second at which one thread takes over what is in memory of a shard that another node gives it.
    #[arg(long, env = "CACHE_NODE_HANDOFF_BYTES_PER_SECOND", default_value_t = 128 * 1024 * 1024, value_parser = clap::value_parser!(u64).range(1..))]
    pub handoff_bytes_per_second: u64,
    /// How long this node may act as an owner without an answer of the coordinator.
    #[arg(long, env = "CACHE_NODE_LEASE", default_value = "1200ms", value_parser = duration)]
    pub lease: Duration,
    /// How often the lease is renewed.
    #[arg(long, env = "CACHE_NODE_LEASE_PERIOD", default_value = "250ms", value_parser = duration)]
    pub lease_period: Duration,
    /// How long a coordinator may act as one without a majority of the seeds.
    #[arg(long, env = "CACHE_NODE_COORDINATOR_LEASE", default_value = "600ms", value_parser = duration)]
    pub coordinator_lease: Duration,
    /// How often the coordinator's lease is renewed.
    #[arg(long, env = "CACHE_NODE_COORDINATOR_PERIOD", default_value = "200ms", value_parser = duration)]
    pub coordinator_period: Duration,
    /// Longest time to finish requests in flight after SIGTERM; must be below the pod's grace period.
    #[arg(long, env = "CACHE_NODE_DRAIN_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub drain_timeout: Duration,
}

impl Args {
    /// Its name.
    ///
    /// # Panics
    /// When there is something else to do than to serve.
    #[must_use]
    pub fn name(&self) -> &NodeId {
        self.name.as_ref().expect("whoever serves has been asked for a name")
    }

    /// The seeds in their order.
    ///
    /// # Errors
    /// [`ConfigError`] when the pods of the service cannot have names.
    pub fn seed_members(&self) -> Result<Vec<Member>, ConfigError> {
        let wrong = |error: SeedsError| ConfigError { place: "--seed-service".to_owned(), message: error.to_string() };
        self.seeds.members().map_err(wrong)
    }

    /// The node's own entry in the map.
    ///
    /// # Errors
    /// [`ConfigError`] when others could not reach it there.
    pub fn member(&self, seeds: &[Member]) -> Result<Member, ConfigError> {
        let seed = seeds.iter().find(|seed| seed.node == *self.name());
        let (place, data) = match (&self.advertise, self.pod_ip, seed, &self.domain) {
            (Some(address), ..) => ("--advertise", address.clone()),
            (None, Some(ip), ..) => ("--pod-ip", SocketAddr::new(ip, self.port).to_string()),
            (None, None, Some(seed), _) => return Ok(seed.clone()),
            (None, None, None, Some(domain)) => ("--domain", format!("{}.{domain}:{}", self.name(), self.port)),
            (None, None, None, None) => ("--advertise", self.data_bind.to_string()),
        };
        let wrong = |message: String| ConfigError { place: place.to_owned(), message };
        if data == self.data_bind.to_string() && self.data_bind.ip().is_unspecified() {
            return Err(wrong(format!("others cannot reach {data}; say at which host:port they can")));
        }
        // Whoever has a seed's address under another name would take itself for somebody else, and the cluster for away.
        if let Some(seed) = seeds.iter().find(|seed| seed.data == data && seed.node != *self.name()) {
            let message = format!("the seed at {data} is called {}, not {}", seed.node, self.name());
            let remedy = format!("say {}={data} among the seeds, everywhere, or --name {}", self.name(), seed.node);
            return Err(ConfigError { place: "--name".to_owned(), message: format!("{message}; {remedy}") });
        }
        Member::parse(&format!("{}={data}", self.name())).map_err(|error| wrong(error.to_string()))
    }

    /// The times of the leases.
    ///
    /// # Errors
    /// [`ConfigError`] when they cannot work together.
    pub fn times(&self) -> Result<Times, ConfigError> {
        let times = Times {
            coordinator_lease: self.coordinator_lease,
            coordinator_period: self.coordinator_period,
            lease: self.lease,
            period: self.lease_period,
            ..Times::default()
        };
        let wrong = |error: TimesError| ConfigError { place: "--lease".to_owned(), message: error.to_string() };
        times.check().map(|()| times).map_err(wrong)
    }
}

/// Databases and regions, as the file names them.
#[derive(Clone, Debug)]
pub struct CacheConfig {
    /// Shards of the cluster.
    pub n_shards: NShards,
    /// The cluster's name, by which its fences are told from another's.
    pub cluster: ClusterName,
    /// Every database.
    pub databases: Vec<DatabaseConfig>,
    /// Every region.
    pub regions: Vec<RegionConfig>,
}

/// Which database, and where. Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub enum Server {
    /// The SQLite file; absolute when the file's own path was.
    Sqlite(PathBuf),
    /// A PostgreSQL server.
    Postgres(Box<tokio_postgres::Config>),
    /// A Redis server.
    Redis(Box<redis::ConnectionInfo>),
}

/// A database.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// Its name in the file.
    pub name: DatabaseName,
    /// Where it is.
    pub server: Server,
    /// Certificates that the server's may follow from, PEM.
    pub ca_file: Option<PathBuf>,
    /// It says what others change in it, and is listened to.
    pub announce: bool,
    /// Operations a second of the whole cluster; `None`: as many as come.
    pub budget: Option<Budget>,
    /// Most operations of this node at a time.
    pub in_flight_max: usize,
    /// Longest time for an operation of several keys; past it they are split.
    pub operation_timeout: Duration,
    /// Longest time that a load may take.
    pub load_timeout: Duration,
    /// Most keys in one operation.
    pub load_keys_max: usize,
    /// Most loads and writes that wait; one more is answered "overloaded".
    pub load_queue_max: usize,
    /// Longest time that a write may take, from when it is sent.
    pub write_timeout: Duration,
}

/// A region.
#[derive(Clone, Debug)]
pub struct RegionConfig {
    /// Its name.
    pub name: RegionName,
    /// Position of its database in [`CacheConfig::databases`].
    pub database: usize,
    /// What reads its values.
    pub query: Arc<Query>,
    /// What writes them; `None`: nothing may.
    pub statements: Option<Arc<Statements>>,
    /// Media type of its values.
    pub content_type: String,
    /// What clients are told of keeping its values: a `Cache-Control`.
    pub cache_control: String,
    /// How long its entries may be served.
    pub freshness: Freshness,
    /// Memory for its entries on one node, in bytes.
    pub max_bytes: u64,
}

/// A mistake in the configuration, as one line: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// `file:line:column`, or the file alone.
    pub place: String,
    /// What is wrong, without line breaks.
    pub message: String,
}

impl CacheConfig {
    /// Reads a configuration file and checks all of it: names, units and bounds, that the databases are there and
    /// that their queries parse.
    ///
    /// # Errors
    /// [`ConfigError`] for the first mistake.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        file::load(path)
    }

    /// Checks that a write surely ends while its lease lasts.
    ///
    /// # Errors
    /// [`ConfigError`] for the first database whose writes may take longer.
    pub fn check_writes(&self, path: &Path, times: &Times) -> Result<(), ConfigError> {
        let guard = times.bound(times.lease).saturating_sub(times.lease);
        let is_written =
            |place| self.regions.iter().any(|region| region.database == place && region.statements.is_some());
        let longest = times.lease.saturating_sub(times.period + guard);
        for (place, database) in self.databases.iter().enumerate() {
            if is_written(place) && database.write_timeout >= longest {
                let (name, timeout) = (&database.name, database.write_timeout);
                let message = format!(
                    "write_timeout of database {name} is {timeout:?}; it must be below {longest:?}, which is the lease \
                     less its period and its guard: shorten it, or lengthen --lease"
                );
                return Err(ConfigError { place: path.display().to_string(), message });
            }
        }
        Ok(())
    }
}
