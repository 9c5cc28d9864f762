//! A node of the distributed cache: a process that owns shards, keeps their entries in memory and loads from the
//! database what is missing.
//!
//! [`run`] is the whole life of a node. Routers ask it on the data port, people and probes on the control port.

pub mod config;
mod control;
mod data;
pub mod database;
mod drain;
mod loading;
mod membership;
mod metrics;
mod node;
mod ownership;
mod region;
mod reply;
mod shard;
mod shard_region;

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::sync::Arc;

use actix::{Actor, Addr};
use actix_rt::{Arbiter, System};

use config::{Args, CacheConfig, ConfigError};
use membership::Membership;
use node::Node;
use shard_region::{Lanes, ShardRegion};

pub use shard::entries::ENTRY_OVERHEAD_BYTES;
pub use shard::freshness::Freshness;

/// Why a node does not start, or ended in another way than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A mistake of whoever started it: exit code [`config::EXIT_CONFIG`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The machine's refusal.
    #[error("the node cannot run: {0}")]
    Io(#[from] std::io::Error),
}

/// Runs a node from its start to the end of its drain.
///
/// # Errors
/// [`NodeError::Config`] before anything has started.
pub fn run(args: &Args) -> Result<(), NodeError> {
    let config = CacheConfig::load(&args.config)?;
    let members = args.seeds.0.clone();
    if !members.iter().any(|member| member.node == args.name) {
        let message = format!("{} is not among --seeds; name it there", args.name);
        return Err(ConfigError { place: "--name".to_owned(), message }.into());
    }
    let map = membership::configured_map(config.n_shards, members)
        .map_err(|error| ConfigError { place: "--seeds".to_owned(), message: error.to_string() })?;
    let data_listener = bind("--data-bind", args.data_bind)?;
    let control_listener = bind("--control-bind", args.control_bind)?;

    System::new().block_on(async {
        let node = Arc::new(Node::start(args, n_lanes(args), &config)?);
        let lanes = start_lanes(&node);
        Membership::new(Arc::clone(&node), lanes.clone()).take(&map);

        data_listener.set_nonblocking(true)?;
        let data_listener = tokio::net::TcpListener::from_std(data_listener)?;
        actix_rt::spawn(data::accept(data_listener, Arc::clone(&node), lanes));
        let control = control::serve(control_listener, Arc::clone(&node))?;
        let control_handle = control.handle();
        actix_rt::spawn(control);
        log::info!(node:% = args.name, data:% = args.data_bind, control:% = args.control_bind; "serving");

        drain::asked_to_stop().await?;
        drain::drain(&node, args.drain_timeout).await;
        control_handle.stop(false).await;
        Ok(())
    })
}

/// One lane for each processor, unless told otherwise.
fn n_lanes(args: &Args) -> NonZeroU16 {
    let processors = || std::thread::available_parallelism().ok().and_then(|n| u16::try_from(n.get()).ok());
    args.lanes.or_else(|| processors().and_then(NonZeroU16::new)).unwrap_or(NonZeroU16::MIN)
}

fn start_lanes(node: &Arc<Node>) -> Vec<Addr<ShardRegion>> {
    let start = |number| {
        let node = Arc::clone(node);
        ShardRegion::start_in_arbiter(&Arbiter::new().handle(), move |_| ShardRegion::new(number, node))
    };
    let lanes: Vec<_> = (0..node.n_lanes.get()).map(start).collect();
    lanes.iter().for_each(|lane| lane.do_send(Lanes(lanes.clone())));
    lanes
}

fn bind(flag: &str, address: SocketAddr) -> Result<TcpListener, ConfigError> {
    TcpListener::bind(address).map_err(|error| ConfigError {
        place: format!("{flag} {address}"),
        message: format!("cannot be listened on: {error}; choose another address or end who has it"),
    })
}
