//! Configuration: flags and environment, checked before a port opens.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Parser;
use transport::seeds::SeedArgs;

/// Exit code for a mistake in the configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// The router of the distributed cache: sends each HTTP request to the node that owns its key.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Args {
    /// The nodes to ask first for the shard map.
    #[command(flatten)]
    pub seeds: SeedArgs,
    /// Where applications ask, by HTTP.
    #[arg(long, env = "ROUTER_BIND", default_value = "127.0.0.1:9000")]
    pub bind: SocketAddr,
    /// Threads that serve HTTP; each has its own connections to the nodes.
    #[arg(long, env = "ROUTER_THREADS", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Longest time for one request.
    #[arg(long, env = "ROUTER_REQUEST_TIMEOUT", default_value = "2s", value_parser = humantime::parse_duration)]
    pub request_timeout: Duration,
    /// How often the shard map is asked for when nothing says that it is old.
    #[arg(long, env = "ROUTER_MAP_PERIOD", default_value = "1s", value_parser = humantime::parse_duration)]
    pub map_period: Duration,
    /// Most unanswered requests to one lane of a node; one more is answered 503.
    #[arg(long, env = "ROUTER_IN_FLIGHT_MAX", default_value_t = 8192)]
    pub in_flight_max: usize,
    /// Most client connections of one thread; further ones wait to be accepted.
    #[arg(long, env = "ROUTER_CONNECTIONS_MAX", default_value_t = 25_000)]
    pub connections_max: usize,
    /// Longest body of a request, in bytes; a longer one is answered 413.
    #[arg(long, env = "ROUTER_BODY_BYTES_MAX", default_value_t = 1024 * 1024)]
    pub body_bytes_max: usize,
    /// Most keys in one POST; more are answered 413.
    #[arg(long, env = "ROUTER_BATCH_KEYS_MAX", default_value_t = 1000)]
    pub batch_keys_max: usize,
    /// Most bytes of values in the answer to one POST; keys beyond it are answered 413.
    #[arg(long, env = "ROUTER_BATCH_BYTES_MAX", default_value_t = 64 * 1024 * 1024)]
    pub batch_bytes_max: usize,
    /// How long it goes on taking requests after SIGTERM, unready already: until whoever sends them has noticed.
    #[arg(long, env = "ROUTER_DRAIN_DELAY", default_value = "0s", value_parser = humantime::parse_duration)]
    pub drain_delay: Duration,
    /// Longest time to finish requests in flight after that; with the delay it must be below the pod's grace period.
    #[arg(long, env = "ROUTER_DRAIN_TIMEOUT", default_value = "20s", value_parser = humantime::parse_duration)]
    pub drain_timeout: Duration,
}
