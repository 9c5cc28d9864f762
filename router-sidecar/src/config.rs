//! Configuration: flags and environment, checked before a port opens.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::time::Duration;

use clap::{Parser, Subcommand};
use transport::flags::{DURATION_MAX, duration, duration_within, period};
use transport::seeds::SeedArgs;

use crate::inject::TemplateArgs;
use crate::inject::manifests::InjectArgs;
use crate::inject::webhook::{InstallArgs, WebhookArgs};

/// Exit code for a mistake in the configuration (`EX_USAGE` of sysexits.h).
pub const EXIT_CONFIG: u8 = 64;

/// The router of the distributed cache: sends each HTTP request to the node that owns its key.
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

/// What the program does for those who put routers into pods.
#[derive(Clone, Debug, Subcommand)]
pub enum Task {
    /// Put the router into the pods of Kubernetes manifests: reads YAML, writes YAML.
    Inject(InjectArgs),
    /// Serve the admission webhook that puts the router into pods with the label distributed-cache/inject: "true".
    Webhook(WebhookArgs),
    /// Write the manifests that install the webhook, with a certificate of its own, for `kubectl apply -f -`.
    WebhookManifests(InstallArgs),
    /// Write the admission policies that do the same without a server (Kubernetes 1.36 and newer).
    Policy(TemplateArgs),
}

/// How a router serves.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The nodes to ask first for the shard map.
    #[command(flatten)]
    pub seeds: SeedArgs,
    /// Where applications ask, by HTTP.
    #[arg(long, env = "ROUTER_BIND", default_value = "127.0.0.1:9000")]
    pub bind: SocketAddr,
    /// Where probes and Prometheus ask, by HTTP, when it is not there: /livez, /readyz, /health and /metrics alone.
    #[arg(long, env = "ROUTER_CONTROL_BIND")]
    pub control_bind: Option<SocketAddr>,
    /// Threads that serve HTTP; each has its own connections to the nodes.
    #[arg(long, env = "ROUTER_THREADS", default_value = "1")]
    pub threads: NonZeroUsize,
    /// Longest time for one request.
    #[arg(long, env = "ROUTER_REQUEST_TIMEOUT", default_value = "2s", value_parser = period)]
    pub request_timeout: Duration,
    /// How often the shard map is asked for when nothing says that it is old.
    #[arg(long, env = "ROUTER_MAP_PERIOD", default_value = "1s", value_parser = period)]
    pub map_period: Duration,
    /// Most unanswered requests to one lane of a node; one more is answered 503.
    #[arg(long, env = "ROUTER_IN_FLIGHT_MAX", default_value_t = 8192)]
    pub in_flight_max: usize,
    /// Most client connections of one thread; further ones wait to be accepted.
    #[arg(long, env = "ROUTER_CONNECTIONS_MAX", default_value_t = 25_000)]
    pub connections_max: usize,
    /// How long a client connection may be idle: until its first request has a whole head, and after each answer until the
    /// next one begins. Up to half a second less. Longer than what clients and load balancers keep idle ones for, or they send
    /// into one that is being closed.
    #[arg(long, env = "ROUTER_CLIENT_IDLE_TIMEOUT", default_value = "75s", value_parser = idle_timeout)]
    pub client_idle_timeout: Duration,
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
    #[arg(long, env = "ROUTER_DRAIN_DELAY", default_value = "0s", value_parser = duration)]
    pub drain_delay: Duration,
    /// Longest time to finish requests in flight after that; with the delay it must be below the pod's grace period.
    #[arg(long, env = "ROUTER_DRAIN_TIMEOUT", default_value = "20s", value_parser = duration)]
    pub drain_timeout: Duration,
}

/// The framework looks at its clock every half a second: shorter ones would end connections that are in use.
fn idle_timeout(text: &str) -> Result<Duration, String> {
    duration_within(text, Duration::from_secs(1)..=DURATION_MAX)
}
