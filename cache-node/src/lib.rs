//! A node of the distributed cache: a process that owns shards, keeps their entries in memory and loads from the
//! database what is missing.
//!
//! [`run`] is the whole life of a node. Routers ask it on the data port, people and probes on the control port.

mod announcing;
mod clock;
pub mod config;
mod control;
mod data;
pub mod database;
mod drain;
mod fencing;
mod lease;
mod loading;
mod membership;
mod metrics;
mod node;
mod pass_through;
mod region;
mod reply;
mod shard;
mod shard_region;
mod taking;

use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU16;
use std::sync::Arc;

use actix::{Actor, Addr};
use actix_rt::{Arbiter, System};
use sharding::membership::Incarnation;
use sharding::ownership::Identity;
use sharding::wire::IDENTITY_BYTES_MAX;
use tokio::sync::mpsc;

use config::{Args, CacheConfig, ConfigError};
use membership::{Membership, Place};
use node::Node;
use shard_region::{Lanes, ShardRegion};

pub use shard::freshness::Freshness;

/// Messages between nodes and seeds that may wait for this node.
const INBOX_MAX: usize = 1024;

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
    let place = place(args, &config)?;
    config.check_writes(&args.config, &place.times)?;
    // Whoever speaks TLS does it with this one. Installed already, it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data_listener = bind("--data-bind", args.data_bind)?;
    let control_listener = bind("--control-bind", args.control_bind)?;

    System::new().block_on(async {
        let (node, announcing, fencing) = Node::start(args, n_lanes(args), &config, &place)?;
        let node = Arc::new(node);
        let lanes = start_lanes(&node);
        for announcing in announcing {
            actix_rt::spawn(announcing.run(Arc::clone(&node), lanes.clone()));
        }
        let (inbox, inbound) = mpsc::channel(INBOX_MAX);
        node.set_inbox(inbox.clone());
        for fencing in fencing {
            actix_rt::spawn(fencing.run(Arc::clone(&node), lanes.clone(), inbox.clone()));
        }
        let membership = Membership::new(Arc::clone(&node), lanes.clone(), place, &inbox);
        actix_rt::spawn(membership.run(inbound));

        data_listener.set_nonblocking(true)?;
        let data_listener = tokio::net::TcpListener::from_std(data_listener)?;
        actix_rt::spawn(data::accept(data_listener, Arc::clone(&node), lanes, inbox.clone()));
        let control = control::serve(control_listener, Arc::clone(&node))?;
        let control_handle = control.handle();
        actix_rt::spawn(control);
        log::info!(node:% = args.name(), data:% = args.data_bind, control:% = args.control_bind; "listening");

        drain::asked_to_stop().await?;
        drain::drain(&node, &inbox, args.drain_timeout).await;
        control_handle.stop(false).await;
        Ok(())
    })
}

/// What this node is to its cluster.
fn place(args: &Args, config: &CacheConfig) -> Result<Place, ConfigError> {
    let seeds = args.seed_members()?;
    let member = args.member(&seeds)?;
    let ordinal = seeds.iter().position(|seed| seed.node == *args.name());
    // Without a UID the address proves as much, where only one process at a time can have it.
    let is_own_address = member.data == args.data_bind.to_string();
    let identity = args.uid.clone().or_else(|| is_own_address.then(|| member.data.clone())).unwrap_or_default();
    if identity.len() > IDENTITY_BYTES_MAX {
        let message = format!("it has more than {IDENTITY_BYTES_MAX} bytes");
        return Err(ConfigError { place: "--uid".to_owned(), message });
    }
    Ok(Place {
        seeds,
        ordinal: ordinal.and_then(|ordinal| u16::try_from(ordinal).ok()),
        identity: Identity { member, incarnation: Incarnation(fastrand::u64(..)), identity },
        times: args.times()?,
        budgeted: region::budgeted(config),
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
    transport::ports::listen(address).map_err(|error| ConfigError {
        place: format!("{flag} {address}"),
        message: format!("cannot be listened on: {error}; choose another address or end who has it"),
    })
}
