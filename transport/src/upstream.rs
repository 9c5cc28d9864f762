//! Connections to nodes: one for each lane of a node that is asked, opened when first needed.
//!
//! All of it lives on one thread: no lock, no hop. Requests that are asked at about the same time leave in one write.

mod connection;
mod unanswered;

use std::cell::{Cell, RefCell};
use std::collections::hash_map::Entry;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use prometheus_client::metrics::gauge::Gauge;
use rustc_hash::FxHashMap;
use sharding::id::ShardId;
use sharding::wire::{AnswerBody, Request, RequestBody};
use tokio::sync::oneshot;
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout_at};

use crate::names::Names;
pub use connection::ConnectError;
use connection::{Asked, Came, Connection};

/// Why a node did not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be opened.
    #[error("no connection to {address}: {error}")]
    Unreachable {
        /// Who was to be asked.
        address: Arc<str>,
        /// Why not.
        error: Arc<ConnectError>,
    },
    /// The connection ended first.
    #[error("the connection to {address} broke before the answer came")]
    Lost {
        /// Who was to be asked.
        address: Arc<str>,
        /// Whether it may have been.
        was_asked: bool,
    },
    /// It does not even answer what needs no database.
    #[error("{address} has fallen silent")]
    Silent {
        /// Who was to be asked.
        address: Arc<str>,
        /// Whether it may have been.
        was_asked: bool,
    },
    /// Nothing came, neither good nor bad.
    #[error("no answer from {address} in time")]
    DeadlinePassed {
        /// Who was to be asked.
        address: Arc<str>,
        /// Whether it may have been.
        was_asked: bool,
    },
    /// It was not asked.
    #[error("{in_flight_max} requests to {address} are unanswered already")]
    Overloaded {
        /// Who was to be asked.
        address: Arc<str>,
        /// The bound.
        in_flight_max: usize,
    },
}

impl UpstreamError {
    /// Whether the node may have been asked, and may do what it was asked for.
    #[must_use]
    pub const fn was_asked(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Overloaded { .. } => false,
            Self::Lost { was_asked, .. } | Self::Silent { was_asked, .. } | Self::DeadlinePassed { was_asked, .. } => {
                *was_asked
            }
        }
    }
}

/// The connections of one thread.
pub struct Upstream {
    links: RefCell<FxHashMap<String, Rc<Link>>>,
    names: Arc<Names>,
    in_flight_max: usize,
    tally: Tally,
}

/// What connections count together.
#[derive(Clone)]
struct Tally {
    /// Those that are open.
    n_open: Gauge,
    /// What has been asked on all those of this thread.
    n_asked: Rc<Cell<u64>>,
}

/// The connections to one node.
struct Link {
    address: Arc<str>,
    /// As the node said last; one until it has.
    n_lanes: Cell<NonZeroU16>,
    lanes: RefCell<FxHashMap<u16, LaneLink>>,
    /// Lanes that somebody has waited for too long.
    watches: RefCell<FxHashMap<u16, Watch>>,
}

/// Looks whether a lane is there.
struct Watch {
    /// Those who wait for its silence.
    waiters: Vec<oneshot::Sender<()>>,
    is_silent: bool,
    /// While it is silent: somebody would have asked it since the last look.
    is_wanted: Cell<bool>,
}

impl Watch {
    /// Whether the watch goes on.
    fn take(&mut self, address: &str, answer: Result<AnswerBody, UpstreamError>) -> bool {
        let is_silent = answer.is_err();
        if self.is_silent != is_silent {
            log::info!(address; "{}", if is_silent { "does not answer" } else { "answers again" });
            self.is_silent = is_silent;
            // For those who have just been told.
            self.is_wanted.set(true);
        }
        if is_silent {
            for waiter in self.waiters.drain(..) {
                // One that has left is not missed.
                let _ = waiter.send(());
            }
            return self.is_wanted.replace(false);
        }
        self.waiters.retain(|waiter| !waiter.is_closed());
        !self.waiters.is_empty()
    }
}

impl Link {
    fn lost(&self, was_asked: bool) -> UpstreamError {
        UpstreamError::Lost { address: Arc::clone(&self.address), was_asked }
    }

    fn passed(&self, was_asked: bool) -> UpstreamError {
        UpstreamError::DeadlinePassed { address: Arc::clone(&self.address), was_asked }
    }
}

type Opened = Result<Rc<Connection>, UpstreamError>;

/// A question that can be asked at once.
pub struct Begin {
    connection: Rc<Connection>,
    link: Rc<Link>,
    patience: Duration,
}

impl Begin {
    /// Asks it. `encode` writes the request, under the id that it is given.
    pub fn ask(self, encode: impl FnOnce(u32, &mut BytesMut)) -> Asking {
        let Self { connection, link, patience } = self;
        Asking { asked: connection.ask(Some(patience), encode), link, was_asked: true, is_late: false, patience }
    }
}

/// A question that was asked.
pub struct Asking {
    asked: Asked,
    link: Rc<Link>,
    was_asked: bool,
    /// It has said that it has waited for long.
    is_late: bool,
    patience: Duration,
}

impl Asking {
    /// The node's answer. `None`: there is none yet, or none will come; [`Upstream::answer`] says which.
    pub fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<AnswerBody>> {
        Pin::new(&mut self.asked).poll(cx).map(|came| match came {
            Came::Answer(answer) => Some(answer),
            Came::Lost => None,
            Came::Late => {
                self.is_late = true;
                None
            }
        })
    }
}

/// The connection to one lane.
enum LaneLink {
    /// Those who wait for it.
    Opening(Vec<oneshot::Sender<Opened>>),
    Open(Rc<Connection>),
}

impl Upstream {
    /// No connection yet. `in_flight_max`: unanswered requests on one connection; `n_open` counts the connections.
    pub fn new(names: Arc<Names>, in_flight_max: usize, n_open: Gauge) -> Self {
        let tally = Tally { n_open, n_asked: Rc::default() };
        Self { links: RefCell::default(), names, in_flight_max, tally }
    }

    /// Asks the node at `address`, on the lane of `shard` where one is concerned.
    ///
    /// # Errors
    /// [`UpstreamError`], at the latest at `deadline`.
    pub async fn ask(
        &self,
        address: &str,
        shard: Option<ShardId>,
        body: RequestBody,
        deadline: Instant,
    ) -> Result<AnswerBody, UpstreamError> {
        let link = self.link(address);
        let lane = shard.map_or(0, |shard| shard.lane(link.n_lanes.get()));
        let connection = self.connection(&link, lane, deadline).await?;
        Self::ask_on(&link, &connection, body, deadline).await
    }

    async fn ask_on(
        link: &Link,
        connection: &Rc<Connection>,
        body: RequestBody,
        deadline: Instant,
    ) -> Result<AnswerBody, UpstreamError> {
        let was_asked = connection.is_open();
        let asked = connection.ask(None, |id, out| Request { id, body }.encode(out));
        Self::await_answer(link, asked, was_asked, deadline).await
    }

    /// The open connection to a lane, however many wait there.
    async fn reach(&self, link: &Rc<Link>, lane: u16, deadline: Instant) -> Opened {
        match self.open(link, lane) {
            Ok(connection) => Ok(connection),
            Err(opening) => {
                let opened = timeout_at(deadline, opening).await.map_err(|_| link.passed(false))?;
                opened.unwrap_or(Err(link.lost(false)))
            }
        }
    }

    /// The open connection to a lane, which takes one more request.
    async fn connection(&self, link: &Rc<Link>, lane: u16, deadline: Instant) -> Opened {
        let connection = self.reach(link, lane, deadline).await?;
        if connection.in_flight() >= self.in_flight_max {
            let in_flight_max = self.in_flight_max;
            return Err(UpstreamError::Overloaded { address: Arc::clone(&link.address), in_flight_max });
        }
        Ok(connection)
    }

    async fn await_answer(
        link: &Link,
        asked: Asked,
        was_asked: bool,
        deadline: Instant,
    ) -> Result<AnswerBody, UpstreamError> {
        let mut asked = std::pin::pin!(asked);
        loop {
            match timeout_at(deadline, &mut asked).await {
                Ok(Came::Answer(answer)) => return Ok(answer),
                Ok(Came::Lost) => return Err(link.lost(was_asked)),
                Ok(Came::Late) => {}
                Err(_) => return Err(link.passed(was_asked)),
            }
        }
    }

    /// Asks the lane of a shard, which may have fallen silent. After `patience` without an answer the lane is asked
    /// whether it is there at all; once it is known not to be, it is not asked in vain.
    ///
    /// # Errors
    /// As [`Upstream::ask`], and [`UpstreamError::Silent`].
    pub async fn ask_patiently(
        self: &Rc<Self>,
        address: &str,
        shard: ShardId,
        body: RequestBody,
        deadline: Instant,
        patience: Duration,
    ) -> Result<AnswerBody, UpstreamError> {
        let encode = |id, out: &mut BytesMut| Request { id, body }.encode(out);
        let asking = match self.begin(address, shard, patience) {
            Some(begin) => begin.ask(encode),
            None => {
                let link = self.link(address);
                let lane = shard.lane(link.n_lanes.get());
                self.check_silence(&link, lane)?;
                let connection = self.connection(&link, lane, deadline).await?;
                let was_asked = connection.is_open();
                Asking { asked: connection.ask(Some(patience), encode), link, was_asked, is_late: false, patience }
            }
        };
        self.answer(asking, shard, deadline).await
    }

    /// Lanes of the node at `address`, as far as it is known.
    pub fn n_lanes(&self, address: &str) -> NonZeroU16 {
        self.links.borrow().get(address).map_or(NonZeroU16::MIN, |link| link.n_lanes.get())
    }

    /// A question to the lane of a shard that can be sent at once: the connection is open and nothing speaks against it.
    pub fn begin(&self, address: &str, shard: ShardId, patience: Duration) -> Option<Begin> {
        let link = Rc::clone(self.links.borrow().get(address)?);
        let lane = shard.lane(link.n_lanes.get());
        if link.watches.borrow().get(&lane).is_some_and(|watch| watch.is_silent) {
            return None;
        }
        let connection = match link.lanes.borrow().get(&lane) {
            Some(LaneLink::Open(connection)) if connection.is_open() => Rc::clone(connection),
            _ => return None,
        };
        (connection.in_flight() < self.in_flight_max).then_some(Begin { connection, link, patience })
    }

    /// The answer to what was asked, however long it takes: [`Upstream::ask_patiently`] from there on.
    ///
    /// # Errors
    /// As there.
    pub async fn answer(
        self: &Rc<Self>,
        asking: Asking,
        shard: ShardId,
        deadline: Instant,
    ) -> Result<AnswerBody, UpstreamError> {
        let Asking { mut asked, link, was_asked, is_late, patience } = asking;
        if !is_late {
            match timeout_at(deadline, &mut asked).await {
                Ok(Came::Answer(answer)) => return Ok(answer),
                Ok(Came::Lost) => return Err(link.lost(was_asked)),
                Ok(Came::Late) => {}
                Err(_) => return Err(link.passed(was_asked)),
            }
        }
        // It waits for its database, or it stands still or is cut off.
        tokio::select! {
            answer = Self::await_answer(&link, asked, was_asked, deadline) => answer,
            error = self.silence(&link, shard, patience) => Err(error),
        }
    }

    /// Resolves, with [`UpstreamError::Silent`], when a lane of a node does not answer, for as long as `patience`, what
    /// needs no database. It is asked again and again, with such a pause between, whoever waits for it.
    async fn silence(self: &Rc<Self>, link: &Rc<Link>, shard: ShardId, patience: Duration) -> UpstreamError {
        let lane = shard.lane(link.n_lanes.get());
        let (waiter, silent) = oneshot::channel();
        let is_watched = match link.watches.borrow_mut().entry(lane) {
            Entry::Occupied(mut watch) => {
                watch.get_mut().waiters.push(waiter);
                true
            }
            Entry::Vacant(place) => {
                place.insert(Watch { waiters: vec![waiter], is_silent: false, is_wanted: Cell::new(false) });
                false
            }
        };
        if !is_watched {
            spawn_local(Rc::clone(self).watch(Rc::clone(link), lane, patience));
        }
        // The watch ends when nobody waits; if it panics, what it was to find out is true enough.
        let _ = silent.await;
        UpstreamError::Silent { address: Arc::clone(&link.address), was_asked: true }
    }

    /// Says when a lane has fallen silent: then there is no use in asking it.
    ///
    /// # Errors
    /// [`UpstreamError::Silent`].
    fn check_silence(&self, link: &Link, lane: u16) -> Result<(), UpstreamError> {
        match link.watches.borrow().get(&lane) {
            Some(Watch { is_silent: true, is_wanted, .. }) => {
                is_wanted.set(true);
                Err(UpstreamError::Silent { address: Arc::clone(&link.address), was_asked: false })
            }
            _ => Ok(()),
        }
    }

    /// Asks a lane again and again, while anybody waits for its silence or its end.
    async fn watch(self: Rc<Self>, link: Rc<Link>, lane: u16, patience: Duration) {
        loop {
            let deadline = Instant::now() + patience;
            // Past the bound of unanswered requests: a lane that has much to do is not silent.
            let answer = match self.reach(&link, lane, deadline).await {
                Ok(connection) => Self::ask_on(&link, &connection, RequestBody::Describe, deadline).await,
                Err(error) => Err(error),
            };
            let is_needed =
                link.watches.borrow_mut().get_mut(&lane).is_some_and(|watch| watch.take(&link.address, answer));
            if !is_needed {
                link.watches.borrow_mut().remove(&lane);
                return;
            }
            sleep(patience).await;
        }
    }

    fn link(&self, address: &str) -> Rc<Link> {
        if let Some(link) = self.links.borrow().get(address) {
            return Rc::clone(link);
        }
        let n_lanes = Cell::new(NonZeroU16::MIN);
        let (lanes, watches) = Default::default();
        let link = Rc::new(Link { address: address.into(), n_lanes, lanes, watches });
        self.links.borrow_mut().insert(address.to_owned(), Rc::clone(&link));
        link
    }

    /// The open connection to a lane, or where its opening will be told: one opening at a time, whoever waits for it
    /// and whoever leaves.
    fn open(&self, link: &Rc<Link>, lane: u16) -> Result<Rc<Connection>, oneshot::Receiver<Opened>> {
        let mut lanes = link.lanes.borrow_mut();
        let (opened, opening) = oneshot::channel();
        match lanes.get_mut(&lane) {
            Some(LaneLink::Open(connection)) if connection.is_open() => return Ok(Rc::clone(connection)),
            Some(LaneLink::Opening(waiters)) => waiters.push(opened),
            _ => {
                lanes.insert(lane, LaneLink::Opening(vec![opened]));
                spawn_local(Self::establish(Rc::clone(link), lane, Arc::clone(&self.names), self.tally.clone()));
            }
        }
        Err(opening)
    }

    async fn establish(link: Rc<Link>, lane: u16, names: Arc<Names>, tally: Tally) {
        let result = Connection::open(&names, &link.address, lane, tally).await;
        let result = match result {
            Ok((connection, n_lanes)) => {
                link.n_lanes.set(n_lanes);
                Ok(connection)
            }
            Err(error) => {
                log::debug!(address = &*link.address; "no connection: {error}");
                Err(UpstreamError::Unreachable { address: Arc::clone(&link.address), error: Arc::new(error) })
            }
        };
        let mut lanes = link.lanes.borrow_mut();
        let waiting = match &result {
            Ok(connection) => lanes.insert(lane, LaneLink::Open(Rc::clone(connection))),
            Err(_) => lanes.remove(&lane),
        };
        let Some(LaneLink::Opening(waiters)) = waiting else { return };
        for waiter in waiters {
            // One that has left is not missed.
            let _ = waiter.send(result.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use sharding::wire::{ANSWER_FRAME_BYTES_MAX, Answer, FrameReader, ToNode, Welcome};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::task::LocalSet;

    use super::*;

    const PATIENCE: Duration = Duration::from_millis(50);

    /// A node that answers what needs no database, and nothing else. Counts those answers.
    async fn busy_node(listener: TcpListener, n_described: Rc<Cell<u32>>) {
        let (mut stream, _) = listener.accept().await.expect("the connection");
        let mut out = BytesMut::new();
        Welcome { n_lanes: 1, node: sharding::id::NodeId::parse("pod-0").expect("a name") }.encode(&mut out);
        let mut reader = FrameReader::new(ANSWER_FRAME_BYTES_MAX);
        loop {
            stream.write_all(&std::mem::take(&mut out)).await.expect("it listens");
            stream.read_buf(reader.space()).await.expect("it asks");
            while let Some(frame) = reader.next_frame().expect("frames") {
                if let ToNode::Request(Request { id, body: RequestBody::Describe }) =
                    ToNode::decode(frame).expect("one")
                {
                    n_described.set(n_described.get() + 1);
                    Answer { id, body: AnswerBody::Page(bytes::Bytes::new()) }.encode(&mut out);
                }
            }
        }
    }

    #[tokio::test]
    async fn a_lane_with_as_much_to_do_as_it_takes_is_not_silent() {
        let asked = async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let address = listener.local_addr().expect("bound").to_string();
            let n_described = Rc::new(Cell::new(0));
            spawn_local(busy_node(listener, Rc::clone(&n_described)));
            let upstream = Rc::new(Upstream::new(Names::of_system(), 1, Gauge::default()));
            let deadline = Instant::now() + Duration::from_secs(60);
            let ask = || {
                let (upstream, address) = (Rc::clone(&upstream), address.clone());
                async move { upstream.ask_patiently(&address, ShardId(0), RequestBody::GetMap, deadline, PATIENCE).await }
            };
            let waiting = spawn_local(ask());
            // The second look knows of the first one's answer.
            while n_described.get() < 2 && !waiting.is_finished() {
                sleep(PATIENCE / 10).await;
            }
            (waiting.is_finished(), ask().await)
        };
        let (is_finished, second) = LocalSet::new().run_until(asked).await;
        assert!(!is_finished && matches!(second, Err(UpstreamError::Overloaded { .. })), "{second:?}");
    }
}
