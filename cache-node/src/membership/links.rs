//! Connections between nodes and seeds.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use sharding::wire::{CONTROL_FRAME_BYTES_MAX, Control, FrameReader, Join, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::{Inbound, Inbox, QUEUE_MAX};
use crate::node::{Node, Stage};

/// Longest time to connect to a seed.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time for which a peer may leave messages unread: then they are older than any lease.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Pause before a seed is dialled again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Why a connection between a node and a seed ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LinkEnd {
    #[error("closed")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("no connection within {CONNECT_TIMEOUT:?}")]
    ConnectTimeout,
    #[error("messages were not read within {WRITE_TIMEOUT:?}")]
    WriteTimeout,
    #[error("refused: {0}")]
    Refused(String),
}

/// Keeps a connection to a seed, for as long as the sender that it gives lives. Never gives up.
pub(super) fn start(seed: u16, address: &str, node: &Arc<Node>, inbox: Inbox) -> mpsc::Sender<Control> {
    let (sender, mut waiting) = mpsc::channel(QUEUE_MAX);
    let (address, node) = (address.to_owned(), Arc::clone(node));
    actix_rt::spawn(async move {
        let mut last_end = String::new();
        while !waiting.is_closed() {
            let end = connect(seed, &address, &node, &inbox, &mut waiting).await.to_string();
            if end != last_end {
                log::info!(seed, address = &*address; "no connection to a seed, trying on: {end}");
                last_end = end;
            }
            sleep(RETRY_PAUSE).await;
        }
    });
    sender
}

async fn connect(
    seed: u16,
    address: &str,
    node: &Node,
    inbox: &Inbox,
    waiting: &mut mpsc::Receiver<Control>,
) -> LinkEnd {
    let stream = match timeout(CONNECT_TIMEOUT, node.names.connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return error.into(),
        Err(_) => return LinkEnd::ConnectTimeout,
    };
    // What waited for this connection is old by now.
    while waiting.try_recv().is_ok() {}
    let (from, to) = stream.into_split();
    let mut first = BytesMut::new();
    Join::new(node.cluster, seed).encode(&mut first);
    let take = async |control| {
        // The receiver lives as long as the node does.
        let _ = inbox.send(Inbound::FromSeed(seed, control)).await;
    };
    tokio::select! {
        end = read(from, FrameReader::new(CONTROL_FRAME_BYTES_MAX), take) => end,
        end = write(to, first, waiting) => end,
    }
}

/// Serves a node's connection to this seed, to its end.
pub(crate) async fn serve(stream: TcpStream, mut reader: FrameReader, node: Arc<Node>, inbox: Inbox) -> LinkEnd {
    reader.accept_up_to(CONTROL_FRAME_BYTES_MAX);
    let (from, to) = stream.into_split();
    let (back, mut waiting) = mpsc::channel(QUEUE_MAX);
    let mut stage = node.stage.subscribe();
    let take = async |control| {
        // As above.
        let _ = inbox.send(Inbound::FromNode(control, back.clone())).await;
    };
    tokio::select! {
        end = read(from, reader, take) => end,
        end = write(to, BytesMut::new(), &mut waiting) => end,
        _ = stage.wait_for(|stage| *stage == Stage::Draining) => LinkEnd::Closed,
    }
}

async fn read(mut from: OwnedReadHalf, mut reader: FrameReader, take: impl AsyncFn(Control)) -> LinkEnd {
    loop {
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => match Control::decode(frame.clone()) {
                    Ok(control) => take(control).await,
                    Err(error) => return refusal(frame).unwrap_or_else(|| error.into()),
                },
                Ok(None) => break,
                Err(error) => return error.into(),
            }
        }
        match from.read_buf(reader.space()).await {
            Ok(0) => return LinkEnd::Closed,
            Ok(_) => {}
            Err(error) => return error.into(),
        }
    }
}

fn refusal(frame: bytes::Bytes) -> Option<LinkEnd> {
    match sharding::wire::FromNode::decode(frame) {
        Ok(sharding::wire::FromNode::Refused(refused)) => Some(LinkEnd::Refused(refused.message)),
        _ => None,
    }
}

async fn write(mut to: OwnedWriteHalf, mut buffer: BytesMut, waiting: &mut mpsc::Receiver<Control>) -> LinkEnd {
    loop {
        while let Ok(control) = waiting.try_recv() {
            control.encode(&mut buffer);
        }
        match timeout(WRITE_TIMEOUT, to.write_all(&buffer)).await {
            Ok(Ok(())) => buffer.clear(),
            Ok(Err(error)) => return error.into(),
            Err(_) => return LinkEnd::WriteTimeout,
        }
        match waiting.recv().await {
            Some(control) => control.encode(&mut buffer),
            None => return LinkEnd::Closed,
        }
    }
}
