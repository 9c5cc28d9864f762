//! One connection to one lane of a node: many requests in flight, each with its own id.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::num::NonZeroU16;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use prometheus_client::metrics::gauge::Gauge;
use sharding::wire::{
    ANSWER_FRAME_BYTES_MAX, AnswerBody, FrameReader, FromNode, Hello, Request, RequestBody, WireError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};
use tokio::task::spawn_local;
use tokio::time::timeout;

use crate::names::Names;

/// Longest time from dialling to the node's welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time for which a node may leave requests unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A buffer that one burst made larger than this is given back.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// Why a connection did not come about, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The machine's refusal, or that of the other one.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// It speaks something else.
    #[error("{0}")]
    Wire(#[from] WireError),
    /// It says why.
    #[error("refused: {0}")]
    Refused(String),
    /// It was too slow to be of use.
    #[error("no welcome within {CONNECT_TIMEOUT:?}")]
    Timeout,
    /// It has stopped reading.
    #[error("requests were not read within {WRITE_TIMEOUT:?}")]
    WriteTimeout,
}

/// An open connection, for all who ask on its thread. It ends itself when the node closes it or breaks the protocol;
/// then everyone who waits learns so.
pub(super) struct Connection {
    waiting: RefCell<HashMap<u32, oneshot::Sender<AnswerBody>>>,
    next_id: Cell<u32>,
    unsent: RefCell<BytesMut>,
    has_unsent: Notify,
    is_open: Cell<bool>,
}

/// Forgets a request whose asker has left.
struct Ticket<'a> {
    connection: &'a Connection,
    id: u32,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.connection.waiting.borrow_mut().remove(&self.id);
    }
}

impl Connection {
    /// Dials, greets, and starts the connection's task. Gives the node's number of lanes too.
    pub(super) async fn open(
        names: &Arc<Names>,
        address: &str,
        lane: u16,
        n_open: Gauge,
    ) -> Result<(Rc<Self>, NonZeroU16), ConnectError> {
        let opened = timeout(CONNECT_TIMEOUT, Self::greet(names, address, lane)).await;
        let (stream, reader, n_lanes) = opened.map_err(|_| ConnectError::Timeout)??;
        let connection = Rc::new(Self {
            waiting: RefCell::default(),
            next_id: Cell::new(0),
            unsent: RefCell::default(),
            has_unsent: Notify::new(),
            is_open: Cell::new(true),
        });
        let (task, address) = (Rc::clone(&connection), address.to_owned());
        spawn_local(async move {
            n_open.inc();
            let error = task.run(stream, reader).await;
            n_open.dec();
            log::info!(address = &*address, lane; "the connection to a node ended: {error}");
        });
        Ok((connection, n_lanes))
    }

    async fn greet(
        names: &Arc<Names>,
        address: &str,
        lane: u16,
    ) -> Result<(TcpStream, FrameReader, NonZeroU16), ConnectError> {
        let mut stream = names.connect(address).await?;
        let mut hello = BytesMut::new();
        Hello::to_lane(lane).encode(&mut hello);
        stream.write_all(&hello).await?;
        let mut reader = FrameReader::new(ANSWER_FRAME_BYTES_MAX);
        loop {
            if let Some(frame) = reader.next_frame()? {
                return match FromNode::decode(frame)? {
                    FromNode::Welcome(welcome) => {
                        let n_lanes = NonZeroU16::new(welcome.n_lanes).ok_or(WireError::Field("number of lanes"))?;
                        Ok((stream, reader, n_lanes))
                    }
                    FromNode::Refused(refused) => Err(ConnectError::Refused(refused.message)),
                    FromNode::Answer(_) => Err(WireError::NoGreeting.into()),
                };
            }
            if stream.read_buf(reader.space()).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.is_open.get()
    }

    /// Requests without an answer.
    pub(super) fn in_flight(&self) -> usize {
        self.waiting.borrow().len()
    }

    /// Asks; `None` when the connection ends first.
    pub(super) async fn ask(&self, body: RequestBody) -> Option<AnswerBody> {
        if !self.is_open() {
            return None;
        }
        let (answer, answered) = oneshot::channel();
        let id = self.next_id.get();
        self.next_id.set(id.wrapping_add(1));
        self.waiting.borrow_mut().insert(id, answer);
        let _ticket = Ticket { connection: self, id };
        Request { id, body }.encode(&mut self.unsent.borrow_mut());
        self.has_unsent.notify_one();
        answered.await.ok()
    }

    async fn run(&self, stream: TcpStream, reader: FrameReader) -> ConnectError {
        let (from, to) = stream.into_split();
        let error = tokio::select! {
            error = self.read(from, reader) => error,
            error = self.write(to) => error,
        };
        self.is_open.set(false);
        self.waiting.borrow_mut().clear();
        error
    }

    async fn read(&self, mut from: OwnedReadHalf, mut reader: FrameReader) -> ConnectError {
        loop {
            if let Err(error) = self.take_in(&mut reader) {
                return error.into();
            }
            match from.read_buf(reader.space()).await {
                Ok(0) => return io::Error::from(io::ErrorKind::UnexpectedEof).into(),
                Ok(_) => {}
                Err(error) => return error.into(),
            }
        }
    }

    fn take_in(&self, reader: &mut FrameReader) -> Result<(), WireError> {
        while let Some(frame) = reader.next_frame()? {
            let FromNode::Answer(answer) = FromNode::decode(frame)? else {
                return Err(WireError::Field("second greeting"));
            };
            if let Some(asker) = self.waiting.borrow_mut().remove(&answer.id) {
                // One that has just left is not missed.
                let _ = asker.send(answer.body);
            }
        }
        Ok(())
    }

    async fn write(&self, mut to: OwnedWriteHalf) -> ConnectError {
        let mut sending = BytesMut::new();
        loop {
            if self.unsent.borrow().is_empty() {
                self.has_unsent.notified().await;
                // What is asked in the same turn of the thread leaves together.
                tokio::task::yield_now().await;
            }
            std::mem::swap(&mut sending, &mut *self.unsent.borrow_mut());
            match timeout(WRITE_TIMEOUT, to.write_all(&sending)).await {
                Ok(Ok(())) if sending.capacity() > BUFFER_BYTES_MAX => sending = BytesMut::new(),
                Ok(Ok(())) => sending.clear(),
                Ok(Err(error)) => return error.into(),
                Err(_) => return ConnectError::WriteTimeout,
            }
        }
    }
}
