//! The way out: a signal, then a drain under a deadline.

use std::io;
use std::time::Duration;

use actix_rt::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, timeout_at};

use crate::membership::{Inbound, Inbox};
use crate::node::{Node, Stage};

/// The last part of the time for a drain in which nothing is handed over any more, nor waited for: one in so many.
const HURRY_PART: u32 = 5;

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

/// Gives the shards away, then answers what is in flight, and ends when all connections have; at the latest after
/// `longest`.
pub(crate) async fn drain(node: &Node, inbox: &Inbox, longest: Duration) {
    let end = Instant::now() + longest;
    node.reach(Stage::Leaving);
    // Its receiver ends only after it has left.
    let _ = inbox.send(Inbound::Leave).await;
    let mut stage = node.stage.subscribe();
    let warm = async {
        let hurry = end - longest / HURRY_PART;
        let is_hurried = tokio::select! {
            _ = stage.wait_for(|stage| *stage == Stage::Draining) => false,
            () = tokio::time::sleep_until(hurry) => true,
            // A second one: whoever sends it has no time.
            _ = asked_to_stop() => true,
        };
        if is_hurried {
            // As above.
            let _ = inbox.send(Inbound::Hurry).await;
        }
    };
    warm.await;
    let mut stage = node.stage.subscribe();
    if timeout_at(end, stage.wait_for(|stage| *stage == Stage::Draining)).await.is_err() {
        log::warn!("not all shards were given away within {longest:?}; their next owners wait out the lease");
        node.reach(Stage::Draining);
    }
    let all = u32::try_from(node.connections_max).unwrap_or(u32::MAX);
    match timeout_at(end, node.connections.acquire_many(all)).await {
        Ok(_) => log::info!("drained"),
        Err(_) => log::warn!("not all requests were answered within {longest:?}; the rest are given up"),
    }
}
