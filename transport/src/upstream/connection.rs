//! One connection to one lane of a node: many requests in flight, each with its own id.

use std::cell::{Cell, RefCell};
use std::io;
use std::num::NonZeroU16;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::BytesMut;
use sharding::wire::{ANSWER_FRAME_BYTES_MAX, AnswerBody, FrameReader, FromNode, Hello, WireError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::Notify;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

use super::Tally;
use super::unanswered::Unanswered;
use crate::names::Names;

/// Longest time from dialling to the node's welcome.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Longest time for which a node may leave requests unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
/// A buffer that one burst made larger than this is given back.
const BUFFER_BYTES_MAX: usize = 1024 * 1024;

/// What is to be sent waits for more while its thread goes on being asked, but for no more turns than that. With 32 clients and
/// all processes on one CPU a hit costs 14.3 us with one turn, 11.9 us with six, and no less with sixteen.
const GATHERING_TURNS: u32 = 8;
/// Nor does it wait once it has so many bytes, which are some 30 questions: more of them cost no less each.
const GATHERED_BYTES: usize = 2048;

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

/// Those who wait are looked at so often.
const LOOK_PERIOD: Duration = Duration::from_millis(25);
/// They are counted through, and after the last number comes the first: a look that is farther ahead than so many has passed.
const LOOKS_MAX: u32 = u32::MAX / 2;

/// Who waits for an answer.
struct Waiting {
    /// The look from which on it is told, once, that it has waited for long.
    late_at: Option<u32>,
    state: State,
}

enum State {
    Waiting(Option<Waker>),
    Answered(AnswerBody),
}

/// An open connection, for all who ask on its thread. It ends itself when the node closes it or breaks the protocol;
/// then everyone who waits learns so.
pub(super) struct Connection {
    waiting: RefCell<Unanswered<Waiting>>,
    tally: Tally,
    unsent: RefCell<BytesMut>,
    has_unsent: Notify,
    is_open: Cell<bool>,
    /// How often those who wait have been looked at.
    looks: Cell<u32>,
    /// They are being looked at.
    is_looking: Cell<bool>,
    has_waiting: Notify,
}

/// A request whose answer has not been taken. Dropped, it is forgotten.
pub(super) struct Asked {
    connection: Rc<Connection>,
    id: u32,
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Came {
    /// The node's answer.
    Answer(AnswerBody),
    /// The connection has ended.
    Lost,
    /// Nothing came for a while; it may be waited for on.
    Late,
}

impl Future for Asked {
    type Output = Came;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Came> {
        let connection = Rc::clone(&self.connection);
        let mut all = connection.waiting.borrow_mut();
        let Some(waiting) = all.get_mut(self.id) else { return Poll::Ready(Came::Lost) };
        match &mut waiting.state {
            State::Answered(_) => {}
            State::Waiting(waker) => {
                // Nobody may have polled it at that very look.
                let has_passed = |at: &mut u32| connection.looks.get().wrapping_sub(*at) <= LOOKS_MAX;
                if waiting.late_at.take_if(has_passed).is_some() {
                    return Poll::Ready(Came::Late);
                }
                match waker {
                    Some(waker) => waker.clone_from(cx.waker()),
                    None => *waker = Some(cx.waker().clone()),
                }
                return Poll::Pending;
            }
        }
        match all.remove(self.id) {
            Some(Waiting { state: State::Answered(answer), .. }) => Poll::Ready(Came::Answer(answer)),
            _ => Poll::Ready(Came::Lost),
        }
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.connection.waiting.borrow_mut().remove(self.id);
    }
}

impl Connection {
    /// Dials, greets, and starts the connection's task. Gives the node's number of lanes too.
    pub(super) async fn open(
        names: &Arc<Names>,
        address: &str,
        lane: u16,
        tally: Tally,
    ) -> Result<(Rc<Self>, NonZeroU16), ConnectError> {
        let opened = timeout(CONNECT_TIMEOUT, Self::greet(names, address, lane)).await;
        let (stream, reader, n_lanes) = opened.map_err(|_| ConnectError::Timeout)??;
        let (from, to) = stream.into_split();
        let connection = Rc::new(Self {
            waiting: RefCell::default(),
            tally,
            unsent: RefCell::default(),
            has_unsent: Notify::new(),
            is_open: Cell::new(true),
            looks: Cell::new(0),
            is_looking: Cell::new(false),
            has_waiting: Notify::new(),
        });
        let (task, address) = (Rc::clone(&connection), address.to_owned());
        spawn_local(async move {
            task.tally.n_open.inc();
            let error = task.run(from, to, reader).await;
            task.tally.n_open.dec();
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

    /// Sends the request that `encode` writes under the id that it is given. It says when it has waited for longer than
    /// `patience`, to the nearest look.
    pub(super) fn ask(self: &Rc<Self>, patience: Option<Duration>, encode: impl FnOnce(u32, &mut BytesMut)) -> Asked {
        let id = self.waiting.borrow().next_id();
        let asked = Asked { connection: Rc::clone(self), id };
        if !self.is_open() {
            return asked;
        }
        let late_at = patience.map(|patience| self.looks.get().wrapping_add(n_looks(patience)));
        self.waiting.borrow_mut().insert(Waiting { late_at, state: State::Waiting(None) });
        self.tally.n_asked.set(self.tally.n_asked.get() + 1);
        let mut unsent = self.unsent.borrow_mut();
        if unsent.is_empty() {
            self.has_unsent.notify_one();
        }
        encode(id, &mut unsent);
        if !self.is_looking.get() {
            self.has_waiting.notify_one();
        }
        asked
    }

    async fn run(&self, from: OwnedReadHalf, to: OwnedWriteHalf, reader: FrameReader) -> ConnectError {
        let error = tokio::select! {
            error = self.read(from, reader) => error,
            error = self.write(to) => error,
            error = self.look() => error,
        };
        self.is_open.set(false);
        // Whoever waits finds nothing there any more.
        let waiting = self.waiting.borrow_mut().drain();
        waiting.into_iter().for_each(|waiting| waiting.state.wake());
        error
    }

    /// Has those who wait look from time to time whether they have waited for too long.
    async fn look(&self) -> ConnectError {
        loop {
            self.is_looking.set(false);
            if self.in_flight() == 0 {
                self.has_waiting.notified().await;
            }
            self.is_looking.set(true);
            sleep(LOOK_PERIOD).await;
            let look = self.looks.get().wrapping_add(1);
            self.looks.set(look);
            let mut waiting = self.waiting.borrow_mut();
            waiting.age();
            waiting.values().filter(|waiting| waiting.late_at == Some(look)).for_each(|waiting| waiting.state.remind());
        }
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
            // One that has left is not missed.
            if let Some(waiting) = self.waiting.borrow_mut().get_mut(answer.id) {
                std::mem::replace(&mut waiting.state, State::Answered(answer.body)).wake();
            }
        }
        Ok(())
    }

    /// Lets what is asked at about the same time come together: a node that wakes up for many requests at once answers each for
    /// less. Who asks an idle node does not wait.
    async fn gather(&self) {
        if self.in_flight() <= 1 {
            return;
        }
        for _ in 0..GATHERING_TURNS {
            let n_asked = self.tally.n_asked.get();
            tokio::task::yield_now().await;
            if self.tally.n_asked.get() == n_asked || self.unsent.borrow().len() >= GATHERED_BYTES {
                return;
            }
        }
    }

    async fn write(&self, mut to: OwnedWriteHalf) -> ConnectError {
        let mut sending = BytesMut::new();
        loop {
            if self.unsent.borrow().is_empty() {
                while self.unsent.borrow().is_empty() {
                    self.has_unsent.notified().await;
                }
                self.gather().await;
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

/// So many looks are at least that long.
fn n_looks(patience: Duration) -> u32 {
    // The first comes at once, in the worst case.
    let n_looks = patience.as_millis().div_ceil(LOOK_PERIOD.as_millis()) + 1;
    u32::try_from(n_looks).unwrap_or(u32::MAX).min(LOOKS_MAX)
}

impl State {
    fn wake(self) {
        if let Self::Waiting(Some(waker)) = self {
            waker.wake();
        }
    }

    fn remind(&self) {
        if let Self::Waiting(Some(waker)) = self {
            waker.wake_by_ref();
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::gauge::Gauge;
    use sharding::id::NodeId;
    use sharding::wire::Welcome;
    use tokio::net::TcpListener;
    use tokio::task::{LocalSet, yield_now};

    use super::*;

    /// More turns than anything waits for.
    const TURNS: u32 = 1000;

    /// A connection to a node that says welcome and then only reads; what is asked on its thread is counted in the second.
    async fn connect() -> (Rc<Connection>, Rc<Cell<u64>>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        spawn_local(async move {
            let (mut stream, _) = listener.accept().await.expect("the connection");
            let mut welcome = BytesMut::new();
            let node = NodeId::parse("pod-0").expect("a name");
            Welcome { n_lanes: 1, node }.encode(&mut welcome);
            stream.write_all(&welcome).await.expect("it listens");
            tokio::io::copy(&mut stream, &mut tokio::io::sink()).await
        });
        let n_asked = Rc::new(Cell::new(0));
        let tally = Tally { n_open: Gauge::default(), n_asked: Rc::clone(&n_asked) };
        let names = Names::of_system();
        let (connection, _) = Connection::open(&names, &address, 0, tally).await.expect("welcome");
        // It begins to wait for questions.
        yield_now().await;
        (connection, n_asked)
    }

    fn ask(connection: &Rc<Connection>, len: usize) -> Asked {
        connection.ask(None, |_, out| out.resize(out.len() + len, 0))
    }

    /// The most bytes that ever wait, while a question of this length comes each turn.
    async fn most_unsent(len: usize) -> usize {
        let (connection, _) = connect().await;
        let (mut asked, mut most) = (Vec::new(), 0);
        for _ in 0..TURNS {
            asked.push(ask(&connection, len));
            most = most.max(connection.unsent.borrow().len());
            yield_now().await;
        }
        most
    }

    #[tokio::test]
    async fn who_was_not_looking_at_its_time_learns_all_the_same_that_it_is_late() {
        let came = async {
            let (connection, _) = connect().await;
            let mut asked = connection.ask(Some(LOOK_PERIOD), |_, out| out.resize(1, 0));
            while connection.looks.get() <= n_looks(LOOK_PERIOD) {
                sleep(LOOK_PERIOD).await;
            }
            let late = timeout(CONNECT_TIMEOUT, &mut asked).await;
            (late, timeout(CONNECT_TIMEOUT, asked).await)
        };
        let came = LocalSet::new().run_until(came).await;
        assert!(matches!(came, (Ok(Came::Late), Err(_))), "once: {came:?}");
    }

    #[tokio::test]
    async fn what_is_asked_turn_after_turn_leaves_after_so_many() {
        let n = LocalSet::new().run_until(most_unsent(1)).await;
        assert!((3..=GATHERING_TURNS as usize + 2).contains(&n), "{n} questions waited");
    }

    #[tokio::test]
    async fn what_is_long_enough_waits_for_no_more() {
        let len = GATHERED_BYTES / 3 + 1;
        let bytes = LocalSet::new().run_until(most_unsent(len)).await;
        assert!((2 * len..=5 * len).contains(&bytes), "{bytes} bytes waited");
    }

    #[tokio::test]
    async fn who_asks_an_idle_node_does_not_wait_for_what_others_are_asked() {
        let asked = async {
            let (connection, n_asked) = connect().await;
            let _asked = ask(&connection, 1);
            let mut turns = 0;
            while !connection.unsent.borrow().is_empty() && turns < TURNS {
                n_asked.set(n_asked.get() + 1);
                yield_now().await;
                turns += 1;
            }
            turns
        };
        let turns = LocalSet::new().run_until(asked).await;
        assert!(turns <= 2, "{turns} turns");
    }
}
