//! The way out: a signal, then a drain under a deadline.

use std::io;

use actix_rt::signal::unix::{SignalKind, signal};

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
