//! The way out: a signal, then a drain under a deadline.

use std::io;
use std::time::Duration;

use actix_rt::signal::unix::{SignalKind, signal};

use crate::node::Node;

/// Resolves at SIGTERM or SIGINT.
///
/// # Errors
/// When the signals cannot be listened to.
pub(crate) async fn asked_to_stop() -> io::Result<()> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = terminate.recv() => log::info!("SIGTERM: draining"),
        _ = interrupt.recv() => log::info!("SIGINT: draining"),
    }
    Ok(())
}

/// Takes no new request, answers those in flight, and ends when all connections have; at the latest after `deadline`.
pub(crate) async fn drain(node: &Node, deadline: Duration) {
    node.drain.send_replace(true);
    let all = u32::try_from(node.connections_max).unwrap_or(u32::MAX);
    match tokio::time::timeout(deadline, node.connections.acquire_many(all)).await {
        Ok(_) => log::info!("drained"),
        Err(_) => log::warn!("not all requests were answered within {deadline:?}; the rest are given up"),
    }
}
