//! The data port: frames in and out.
//!
//! The accepting thread reads the greeting, which names a lane, and passes the socket on to that lane's thread. There
//! one task reads all that has arrived and hands it to the shards, and writes all answers that wait in one go.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use bytes::{Buf, BytesMut};
use sharding::wire::{
    Answer, AnswerBody, Ask, FailureCode, FrameReader, GREETING_FRAME_BYTES_MAX, GetRef, Join, MapAnswer, PROTOCOL,
    Pull, REQUEST_FRAME_BYTES_MAX, Refused, Request, RequestBody, ToNode, Welcome, WireError,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::membership::links::LinkEnd;
use crate::membership::{self, Inbox};
use crate::node::{Node, Stage};
use crate::region::Region;
use crate::reply::Outbox;
use crate::shard::{Op, Work, Writing};
use crate::shard_region::{Connect, Lane, Moment, ShardRegion};

/// Longest time from a connection to its greeting.
const GREETING_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time for which a router may leave its answers unread.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers are gathered into writes of about this length.
const WRITE_BYTES: usize = 256 * 1024;
/// Pause after an accept that failed for want of something (open files, memory).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a router is told to wait when its connection has too much in flight.
const OVERLOADED_RETRY: Duration = Duration::from_secs(1);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error("closed by the router")]
    Closed,
    #[error("the node drains")]
    Drained,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Wire(#[from] WireError),
    #[error("no greeting within {GREETING_TIMEOUT:?}")]
    GreetingTimeout,
    #[error("its answers were not read within {WRITE_TIMEOUT:?}")]
    WriteTimeout,
    #[error("refused: {0}")]
    Refused(String),
    #[error("{0}")]
    Link(LinkEnd),
}

impl End {
    const fn reason(&self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Drained => "drained",
            Self::Io(_) => "io",
            Self::Wire(error) => error.reason(),
            Self::GreetingTimeout => "greeting_timeout",
            Self::WriteTimeout => "write_timeout",
            Self::Refused(_) => "refused",
            Self::Link(LinkEnd::Closed) => "closed",
            Self::Link(LinkEnd::Wire(error)) => error.reason(),
            Self::Link(LinkEnd::WriteTimeout) => "write_timeout",
            Self::Link(_) => "io",
        }
    }
}

/// Takes connections until the node drains, and gives each to the lane that it names.
pub(crate) async fn accept(listener: TcpListener, node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>, inbox: Inbox) {
    let mut stage = node.stage.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stage.wait_for(|stage| *stage == Stage::Draining) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                actix_rt::spawn(introduce(stream, Arc::clone(&node), lanes.clone(), inbox.clone()));
            }
            Err(error) => {
                log::warn!("a data connection could not be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn introduce(mut stream: TcpStream, node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>, inbox: Inbox) {
    let introduced = async {
        let Ok(permit) = Arc::clone(&node.connections).try_acquire_owned() else {
            let message = format!("the node has its {} connections already; try again later", node.connections_max);
            return Err(refuse(&mut stream, message).await);
        };
        transport::names::tune(&stream)?;
        let greeting = timeout(GREETING_TIMEOUT, greeting(&mut stream)).await;
        let (greeting, reader) = greeting.map_err(|_| End::GreetingTimeout)??;
        let hello = match greeting {
            ToNode::Hello(hello) => hello,
            ToNode::Join(join) => return join_seed(stream, reader, join, &node, inbox).await,
            ToNode::Request(_) | ToNode::GetMany(_) => return Err(WireError::NoGreeting.into()),
        };
        if hello.protocol != PROTOCOL {
            let message =
                format!("this node speaks protocol {PROTOCOL}, the router {}; use one release", hello.protocol);
            return Err(refuse(&mut stream, message).await);
        }
        let mut reader = reader;
        reader.accept_up_to(REQUEST_FRAME_BYTES_MAX);
        let lane = &lanes[usize::from(hello.lane) % lanes.len()];
        lane.do_send(Connect { stream: stream.into_std()?, reader, permit });
        Ok(())
    };
    if let Err(end) = introduced.await {
        count_end(&node, &end);
    }
}

/// Another node takes this one for a seed.
async fn join_seed(
    mut stream: TcpStream,
    reader: FrameReader,
    join: Join,
    node: &Arc<Node>,
    inbox: Inbox,
) -> Result<(), End> {
    let complaint = if join.protocol != PROTOCOL {
        format!("this node speaks protocol {PROTOCOL}, the other {}; use one release", join.protocol)
    } else if join.cluster != node.cluster {
        "the seeds, n_shards or lease times of this node are not the other's; configure all alike, and restart all"
            .to_owned()
    } else if node.seed != Some(join.seed) {
        format!("this is {}, not the seed that was meant; its name is found at a wrong address", node.name)
    } else {
        return Err(End::Link(membership::serve(stream, reader, Arc::clone(node), inbox).await));
    };
    Err(refuse(&mut stream, complaint).await)
}

async fn greeting(stream: &mut TcpStream) -> Result<(ToNode, FrameReader), End> {
    let mut reader = FrameReader::new(GREETING_FRAME_BYTES_MAX);
    loop {
        if let Some(frame) = reader.next_frame()? {
            return Ok((ToNode::decode(frame)?, reader));
        }
        if stream.read_buf(reader.space()).await? == 0 {
            return Err(End::Closed);
        }
    }
}

async fn refuse(stream: &mut TcpStream, message: String) -> End {
    let mut frame = BytesMut::new();
    Refused { message: message.clone() }.encode(&mut frame);
    // Whether the router reads it or not, the connection ends.
    let _ = timeout(GREETING_TIMEOUT, stream.write_all(&frame)).await;
    End::Refused(message)
}

fn count_end(node: &Node, end: &End) {
    node.metrics.connection_closed(end.reason());
    match end {
        End::Closed | End::Drained | End::Link(LinkEnd::Closed) => log::debug!("a data connection ended: {end}"),
        _ => log::info!("a data connection ended: {end}"),
    }
}

/// Serves a connection on its lane's thread, to its end.
pub(crate) async fn serve(connect: Connect, lane: Rc<Lane>) {
    let node = Arc::clone(&lane.node);
    node.metrics.connections.inc();
    let end = match TcpStream::from_std(connect.stream) {
        Ok(stream) => exchange(stream, connect.reader, &lane).await,
        Err(error) => End::Io(error),
    };
    node.metrics.connections.dec();
    count_end(&node, &end);
    drop(connect.permit);
}

/// What is on its way to a router. Answers that need no waiting are written to it as soon as their requests have been read,
/// and leave at once, if nothing else is leaving; all others wait in the outbox for [`write()`].
#[derive(Default)]
struct Leaving {
    bytes: RefCell<BytesMut>,
    /// Others are before them.
    is_busy: Cell<bool>,
    /// Nothing more comes in; what is here leaves, and then the connection ends.
    is_closing: Cell<bool>,
    has_left: Notify,
}

/// Has nothing left in a buffer; one that a burst made large is given back.
fn empty(buffer: &mut BytesMut) {
    if buffer.capacity() > 2 * WRITE_BYTES {
        *buffer = BytesMut::new();
    } else {
        buffer.clear();
    }
}

impl Leaving {
    /// Sends what can be sent without waiting.
    fn send(&self, to: &TcpStream, outbox: &Outbox) -> io::Result<()> {
        let mut bytes = self.bytes.borrow_mut();
        if !bytes.is_empty() && !self.is_busy.get() {
            match to.try_write(&bytes) {
                Ok(n) if n == bytes.len() => empty(&mut bytes),
                Ok(n) => bytes.advance(n),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        if !bytes.is_empty() {
            outbox.wake();
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.bytes.borrow().len() >= WRITE_BYTES
    }

    /// Resolves when there is room for more.
    async fn room(&self) {
        while self.is_full() {
            self.has_left.notified().await;
        }
    }
}

async fn exchange(stream: TcpStream, reader: FrameReader, lane: &Rc<Lane>) -> End {
    let (mut read_half, write_half) = stream.into_split();
    let (outbox, leaving) = (Arc::new(Outbox::default()), Leaving::default());
    let mut writing = std::pin::pin!(write(write_half, &outbox, &leaving, lane));
    let end = tokio::select! {
        end = read(&mut read_half, reader, (&outbox, &leaving), lane) => end,
        end = &mut writing => return end,
    };
    if matches!(end, End::Closed | End::Drained) {
        // Nothing more comes in; what came in is answered.
        leaving.is_closing.set(true);
        outbox.wake();
        writing.await;
        // Closed with something unread, the kernel would throw away answers that are still on their way.
        let mut unread = [0; 4096];
        let discard = async { while matches!(read_half.read(&mut unread).await, Ok(1..)) {} };
        // A router that does not close has had its time.
        let _ = timeout(WRITE_TIMEOUT, discard).await;
    }
    end
}

async fn read(
    from: &mut OwnedReadHalf,
    mut reader: FrameReader,
    (outbox, leaving): (&Arc<Outbox>, &Leaving),
    lane: &Rc<Lane>,
) -> End {
    let mut stage = lane.node.stage.subscribe();
    loop {
        while let taken = take_in(&mut reader, outbox, leaving, lane)
            && !matches!(taken, Ok(true))
        {
            if let Err(error) = taken {
                return error.into();
            }
            leaving.room().await;
        }
        if let Err(error) = leaving.send(from.as_ref(), outbox) {
            return error.into();
        }
        // Twice the bound: "overloaded" is an answer too, and a router that reads none of them must stop somewhere.
        outbox.room(2 * lane.node.in_flight_max).await;
        if *stage.borrow() == Stage::Draining {
            return End::Drained;
        }
        let read = tokio::select! {
            // There is always something to be read while there is load.
            biased;
            read = from.read_buf(reader.space()) => read,
            _ = stage.wait_for(|stage| *stage == Stage::Draining) => return End::Drained,
        };
        match read {
            Ok(0) if reader.is_midway() => return io::Error::from(io::ErrorKind::UnexpectedEof).into(),
            Ok(0) => return End::Closed,
            Ok(_) => {}
            Err(error) => return error.into(),
        }
    }
}

/// Takes in the whole frames that have arrived. `false`: not all, since too much waits to leave.
fn take_in(
    reader: &mut FrameReader,
    outbox: &Arc<Outbox>,
    leaving: &Leaving,
    lane: &Rc<Lane>,
) -> Result<bool, WireError> {
    let mut works = Vec::new();
    let moment = Moment::now(&lane.node);
    let result = loop {
        if leaving.is_full() {
            outbox.wake();
            break Ok(false);
        }
        if let Ok(Some(frame)) = reader.peek()
            && let Some(get) = GetRef::of(frame)
            && lane.hit(moment, &get, &mut leaving.bytes.borrow_mut())
        {
            reader.skip();
            continue;
        }
        let frame = match reader.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => break Ok(true),
            Err(error) => break Err(error),
        };
        match ToNode::decode(frame) {
            Ok(ToNode::GetMany(many)) => lane.hits(moment, &many, &mut leaving.bytes.borrow_mut()),
            Ok(ToNode::Request(request)) => works.extend(take_request(request, outbox, &lane.node)),
            Ok(ToNode::Hello(_) | ToNode::Join(_)) => break Err(WireError::Field("second greeting")),
            Err(error) => break Err(error),
        }
    };
    lane.count_hits();
    lane.dispatch(works);
    result
}

/// Answers what needs no shard; gives back what does.
fn take_request(request: Request, outbox: &Arc<Outbox>, node: &Node) -> Option<Work> {
    let is_full = outbox.in_flight() >= node.in_flight_max;
    let reply = outbox.reply(request.id);
    let (op, ask) = match request.body {
        RequestBody::Get(ask) => (Op::Get, ask),
        RequestBody::Explain(ask) => (Op::Explain, ask),
        RequestBody::PassThrough(ask) => (Op::PassThrough, ask),
        RequestBody::Invalidate(ask) => (Op::Invalidate, ask),
        RequestBody::InvalidatePrefix(ask) => (Op::InvalidatePrefix, ask),
        RequestBody::Put(ask, precondition, value) => {
            // One that is empty is something to keep too.
            let bytes = u32::try_from(value.len().max(1)).unwrap_or(u32::MAX);
            let Ok(room) = Arc::clone(&node.writing_bytes).try_acquire_many_owned(bytes) else {
                let message = "not written: the values that this node is writing take all the room there is for them";
                reply.fail(FailureCode::NotApplied, OVERLOADED_RETRY, message);
                return None;
            };
            (Op::Write(Box::new(Writing { value: Some(value), precondition, _room: Some(room) })), ask)
        }
        RequestBody::Delete(ask, precondition) => {
            (Op::Write(Box::new(Writing { value: None, precondition, _room: None })), ask)
        }
        RequestBody::Pull(Pull { shard, since, cursor, number }) => {
            return Some(Work::of_shard(Op::Pull { since, cursor, number }, shard, reply));
        }
        RequestBody::Seal(Pull { shard, since, number, .. }) => {
            return Some(Work::of_shard(Op::Seal { since, number }, shard, reply));
        }
        RequestBody::GetMap => {
            match node.map() {
                Some(map) => {
                    let regions = node.regions.iter().map(Region::info).collect();
                    reply.send(AnswerBody::Map(Box::new(MapAnswer { map, regions, failover: node.failover })));
                }
                None => reply.fail(FailureCode::Overloaded, OVERLOADED_RETRY, "the node has no shard map yet"),
            }
            return None;
        }
        RequestBody::Describe => {
            let page = serde_json::to_vec(&node.page()).expect("a page of plain fields is JSON");
            reply.send(AnswerBody::Page(page.into()));
            return None;
        }
    };
    let Ask { shard, region: name, key, deadline, .. } = ask;
    let Some(region) = node.region(&name) else {
        let message = format!("this node has no region {}", String::from_utf8_lossy(&name));
        reply.fail(FailureCode::UnknownRegion, Duration::ZERO, message);
        return None;
    };
    if is_full {
        node.regions[region].metrics.overloaded.inc();
        let message = format!("{} requests of one connection are in flight already", node.in_flight_max);
        reply.fail(FailureCode::Overloaded, OVERLOADED_RETRY, message);
        return None;
    }
    if matches!(op, Op::Write(_)) && node.regions[region].fence.is_none() {
        // The router knew better, by the configuration of another node.
        let message = format!("not written: region {} is not written to", node.regions[region].name);
        reply.fail(FailureCode::NotApplied, OVERLOADED_RETRY, message);
        return None;
    }
    let work = Work { op, shard, region, key, deadline, reply };
    // A router whose map has another number of shards would have a value kept twice.
    let shard_of_key = || sharding::hash::shard_of(&node.regions[region].name, &work.key, node.n_shards);
    if !matches!(work.op, Op::InvalidatePrefix) && shard_of_key() != shard {
        node.misdirect(work);
        return None;
    }
    Some(work)
}

async fn write(mut to: OwnedWriteHalf, outbox: &Outbox, leaving: &Leaving, lane: &Rc<Lane>) -> End {
    let mut buffer = BytesMut::with_capacity(WRITE_BYTES / 4);
    Welcome { n_lanes: lane.node.n_lanes.get(), node: lane.node.name.clone() }.encode(&mut buffer);
    let mut answers: Vec<Answer> = Vec::new();
    loop {
        let more_to_come = outbox.take(&mut answers);
        if buffer.is_empty() {
            std::mem::swap(&mut buffer, &mut *leaving.bytes.borrow_mut());
            leaving.has_left.notify_one();
        }
        if answers.is_empty() && buffer.is_empty() {
            if leaving.is_closing.get() && !more_to_come {
                // A router that is gone does not mind.
                let _ = to.shutdown().await;
                return End::Closed;
            }
            outbox.changed().await;
            // What becomes ready in the same turn of the thread leaves together.
            tokio::task::yield_now().await;
            continue;
        }
        leaving.is_busy.set(true);
        let mut waiting = answers.drain(..).peekable();
        loop {
            while buffer.len() < WRITE_BYTES
                && let Some(answer) = waiting.next()
            {
                answer.encode(&mut buffer);
            }
            match timeout(WRITE_TIMEOUT, to.write_all(&buffer)).await {
                Ok(Ok(())) => empty(&mut buffer),
                Ok(Err(error)) => return error.into(),
                Err(_) => return End::WriteTimeout,
            }
            if waiting.peek().is_none() {
                break;
            }
        }
        leaving.is_busy.set(false);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use sharding::wire::FromNode;

    use super::*;

    /// What leaves at once when these frames have come in.
    pub(crate) fn answered_at_once(frames: &[u8], lane: &Rc<Lane>) -> Vec<Answer> {
        let (mut reader, outbox, leaving) = (FrameReader::new(4096), Arc::default(), Leaving::default());
        reader.space().extend_from_slice(frames);
        take_in(&mut reader, &outbox, &leaving, lane).expect("sound frames");
        let (mut sent, mut answers) = (FrameReader::new(usize::MAX), Vec::new());
        sent.space().extend_from_slice(&leaving.bytes.borrow());
        while let Some(frame) = sent.next_frame().expect("a node's own") {
            let FromNode::Answer(answer) = FromNode::decode(frame).expect("as above") else { panic!("a greeting") };
            answers.push(answer);
        }
        answers
    }

    /// Takes in the same frames twice, and gives the allocations of the second time and the bytes that would leave.
    pub(crate) fn allocations(frames: &[u8], lane: &Rc<Lane>) -> (u64, usize) {
        let (mut reader, outbox, leaving) = (FrameReader::new(4096), Arc::default(), Leaving::default());
        let mut allocations = 0;
        for _ in 0..2 {
            leaving.bytes.borrow_mut().clear();
            reader.space().extend_from_slice(frames);
            let counted = allocation_counter::measure(|| {
                assert!(take_in(&mut reader, &outbox, &leaving, lane).expect("sound frames"), "all is taken in");
            });
            allocations = counted.count_total;
        }
        let leaving = leaving.bytes.borrow().len();
        (allocations, leaving)
    }
}
