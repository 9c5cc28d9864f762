//! One lane: a thread with its shard actors and its connections.
//!
//! The [`ShardRegion`] actor starts, restarts and stops the lane's shards; [`Lane`] is its table of them, which the
//! lane's connections read without asking anybody.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, AsyncContext, Context, Handler, Message};
use bytes::{Bytes, BytesMut};
use sharding::epoch::Epoch;
use sharding::form::is_json;
use sharding::hash::shard_of;
use sharding::id::ShardId;
use sharding::load::ShardCount;
use sharding::membership::After;
use sharding::wire::{self, Answer, Etag, Failure, FrameReader, GetMany, GetRef, Hit};
use tokio::sync::OwnedSemaphorePermit;
use transport::upstream::Upstream;

use crate::data;
use crate::fencing::Wanted;
use crate::node::Node;
use crate::pass_through::PassThrough;
use crate::region::Region;
use crate::shard::entries::{Entries, Value};
use crate::shard::freshness::At;
use crate::shard::{Ahead, Batch, Op, Resize, Shard, ShardActor, SharedShard, Stop, Sweep, Work, how};
use crate::taking::{Beginning, Deferred, Taking, Wish};

/// Every shard is swept once in this time.
const SWEEP_PERIOD: Duration = Duration::from_secs(30);
/// Pause between two parts of a sweep.
const SWEEP_PAUSE: Duration = Duration::from_millis(250);
/// An answer with many hits that is as long takes no more of them: what is left is asked for one by one.
const HITS_BYTES_MAX: usize = 256 * 1024;

/// A shard that is served on this lane.
struct Served {
    actor: Addr<ShardActor>,
    shard: SharedShard,
}

/// The moment at which what has arrived on a connection is looked at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    now: At,
    holds_lease: bool,
}

impl Moment {
    /// This one. The lease is looked at after everything has arrived that is answered by it, so each answer was right at
    /// some time between its request and itself.
    pub(crate) fn now(node: &Node) -> Self {
        Self { now: Instant::now().into(), holds_lease: node.holds_lease() }
    }
}

/// A lane's shards, for all who live on its thread.
pub(crate) struct Lane {
    number: u16,
    pub(crate) node: Arc<Node>,
    shards: RefCell<Vec<Option<Served>>>,
    /// Hits since they were counted last, by region.
    hits: RefCell<Vec<u64>>,
    pass_through: Rc<PassThrough>,
    /// Connections to other nodes.
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) taking: Taking,
    /// What the lane's own shards and those to come share of the node's memory with the others.
    n_owned: Cell<usize>,
    /// All lanes of the node in order, this one included.
    lanes: OnceCell<Vec<Addr<ShardRegion>>>,
}

impl Lane {
    /// Room for the entries of one more shard.
    pub(crate) fn empty_entries(&self) -> Vec<Entries> {
        let n_owned = self.n_owned.get();
        let part = |region: &Region| {
            let is_json = is_json(&region.content_type);
            Entries::new(region.shard_bytes(n_owned), is_json, region.metrics.entries.clone())
        };
        self.node.regions.iter().map(part).collect()
    }

    /// Answers from memory at once, if a fresh entry of this lane can; whether it did.
    pub(crate) fn hit(&self, moment: Moment, get: &GetRef<'_>, out: &mut BytesMut) -> bool {
        let ask = &get.ask;
        let Some(region) = self.node.region(ask.region) else { return false };
        // A router whose map has another number of shards is told so elsewhere.
        if self.shard_of(region, ask.key) != ask.shard {
            return false;
        }
        self.find(moment, (region, ask.shard, ask.key), |entry, etag, value| {
            Answer::encode_value(get.id, &entry, etag, &value, out);
        })
    }

    /// Answers those of many keys that a fresh entry of this lane can, as long as their answer is not too long.
    pub(crate) fn hits(&self, moment: Moment, many: &GetMany, out: &mut BytesMut) {
        let Some(region) = self.node.region(&many.region) else {
            return Answer::encode_hits(many.id, out, |_| {});
        };
        Answer::encode_hits(many.id, out, |hits| {
            for (place, key) in (0..).zip(many.keys.iter()) {
                if hits.bytes() >= HITS_BYTES_MAX {
                    return;
                }
                self.find(moment, (region, self.shard_of(region, key), key), |entry, etag, value| {
                    hits.put(&Hit { place, entry, etag, form: value.form(), value: &value });
                });
            }
        });
    }

    fn shard_of(&self, region: usize, key: &[u8]) -> ShardId {
        shard_of(&self.node.regions[region].name, key, self.node.n_shards)
    }

    /// Gives what a fresh entry of this lane answers, if there is one; whether there was.
    fn find(
        &self,
        Moment { now, holds_lease }: Moment,
        (region, shard, key): (usize, ShardId, &[u8]),
        give: impl FnOnce(wire::Entry, Etag, Value<'_>),
    ) -> bool {
        if !holds_lease {
            return false;
        }
        let shards = self.shards.borrow();
        let Some(Some(served)) = shards.get(shard.index()) else { return false };
        let mut shard = served.shard.borrow_mut();
        let Some(shard) = &mut *shard else { return false };
        let Some(entry) = shard.hit(region, key, now) else { return false };
        let Some((value, etag)) = &entry.content else { return false };
        let lifetime = entry.lifetime;
        give(how(&lifetime, wire::Served::Hit, true, now), *etag, *value);
        self.hits.borrow_mut()[region] += 1;
        if shard.wants_ahead(region, &lifetime, now) {
            served.actor.do_send(Ahead((region, Bytes::copy_from_slice(key))));
        }
        true
    }

    /// Adds the hits up that were not counted yet.
    pub(crate) fn count_hits(&self) {
        for (hits, region) in self.hits.borrow_mut().iter_mut().zip(&*self.node.regions) {
            if *hits > 0 {
                region.metrics.hit.inc_by(std::mem::take(hits));
            }
        }
    }

    /// The answer to the seal of this shard has come, or will not: its grant has waited for that.
    pub(crate) fn grant_deferred(&self, shard: ShardId) {
        if let Some(lanes) = self.lanes.get() {
            lanes[usize::from(self.number)].do_send(ServeDeferred { shard });
        }
    }

    /// Gives every request to its shard: in one message for each shard, on this thread. What belongs to another lane
    /// crosses to it; what this node does not own is answered "misdirected".
    pub(crate) fn dispatch(self: &Rc<Self>, mut works: Vec<Work>) {
        works.sort_by_key(|work| work.shard);
        while let Some(shard) = works.last().map(|work| work.shard) {
            let of_shard = works.split_off(works.partition_point(|work| work.shard < shard));
            self.dispatch_to(shard, of_shard);
        }
    }

    /// Whether this node is the owner itself, on this lane: whoever asked past it is behind.
    fn owns(&self, shard: ShardId) -> bool {
        self.shards.borrow().get(shard.index()).is_some_and(Option::is_some) && self.node.holds_lease()
    }

    fn dispatch_to(self: &Rc<Self>, shard: ShardId, mut works: Vec<Work>) {
        let lane = shard.lane(self.node.n_lanes);
        if lane != self.number {
            if let Some(lanes) = self.lanes.get() {
                self.node.metrics.wrong_lane.inc_by(works.len() as u64);
                lanes[usize::from(lane)].do_send(WrongLane(works));
            }
            return;
        }
        if self.shards.borrow().get(shard.index()).is_none_or(Option::is_none) {
            works = works.into_iter().filter_map(|work| self.taking.park(self, work)).collect();
        }
        if works.iter().any(|work| matches!(work.op, Op::PassThrough)) && !self.owns(shard) {
            for work in std::mem::take(&mut works) {
                match work.op {
                    Op::PassThrough => self.pass_through.take(work),
                    _ => works.push(work),
                }
            }
        }
        let owner = match self.shards.borrow().get(shard.index()) {
            Some(Some(served)) => Some(served.actor.clone()),
            _ => None,
        };
        match owner {
            Some(owner) => owner.do_send(Batch(works)),
            None => works.into_iter().for_each(|work| self.node.misdirect(work)),
        }
    }
}

/// Supervises the shards of one lane.
pub(crate) struct ShardRegion {
    lane: Rc<Lane>,
    /// For each shard that is served here, under which tenure.
    serves: Vec<Option<Serve>>,
    /// Where the sweep goes on.
    next_swept: usize,
}

/// Serve a shard from now on.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Serve {
    pub(crate) shard: ShardId,
    pub(crate) since: Epoch,
    /// Whose it was before.
    pub(crate) after: After,
    /// See [`Node::owns`].
    pub(crate) tenure: u64,
    /// The number that its fences are being raised to.
    pub(crate) n: u64,
}

/// Serve a shard whose grant has waited until now, unless it has been released.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct ServeDeferred {
    shard: ShardId,
}

/// What has been asked of each shard of the lane, since it is served here.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "Vec<(ShardId, ShardCount)>")]
pub(crate) struct Count;

/// These shards are to be taken over, and no others.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Take(pub(crate) Vec<Wish>);

/// What became of the fence of a shard in one database.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct FenceSays {
    pub(crate) shard: ShardId,
    pub(crate) tenure: u64,
    /// The database's position among those that are written to.
    pub(crate) fence: usize,
    /// The number that it has now.
    pub(crate) result: Result<u64, Failure>,
}

/// Serve a shard no more.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Release {
    pub(crate) shard: ShardId,
}

/// The database says that a key has changed.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Notice {
    pub(crate) shard: ShardId,
    pub(crate) region: usize,
    pub(crate) key: Bytes,
    /// Given back when it has been heard.
    pub(crate) permit: OwnedSemaphorePermit,
}

/// A shard's actor panicked.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct ShardDied {
    pub(crate) shard: ShardId,
    pub(crate) tenure: u64,
}

/// All lanes of the node, once they are started.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Lanes(pub(crate) Vec<Addr<ShardRegion>>);

/// Requests that came in on another lane.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct WrongLane(Vec<Work>);

/// A connection that has named this lane.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Connect {
    pub(crate) stream: std::net::TcpStream,
    /// What the router has sent behind its greeting.
    pub(crate) reader: FrameReader,
    pub(crate) permit: OwnedSemaphorePermit,
}

impl ShardRegion {
    /// The lane of this number, with no shards. Requires: called on the lane's thread.
    pub(crate) fn new(number: u16, node: Arc<Node>) -> Self {
        let upstream =
            Upstream::new(Arc::clone(&node.names), node.in_flight_max, node.metrics.owner_connections.clone());
        let upstream = Rc::new(upstream);
        let pass_through = Rc::new(PassThrough::new(Arc::clone(&node), Rc::clone(&upstream)));
        let hits = RefCell::new(vec![0; node.regions.len()]);
        let lane = Lane {
            number,
            node,
            shards: RefCell::default(),
            hits,
            pass_through,
            upstream,
            taking: Taking::default(),
            n_owned: Cell::new(1),
            lanes: OnceCell::new(),
        };
        Self { lane: Rc::new(lane), serves: Vec::new(), next_swept: 0 }
    }

    fn serve(&mut self, serve: Serve, ctx: &Context<Self>) {
        let shard = serve.shard;
        let Beginning { entries, parked } = self.lane.taking.take(&self.lane, serve);
        // What was in memory of the owner before is in memory here: nothing was lost.
        let after = if entries.is_some() { After::Nobody } else { serve.after };
        self.start_shard(Serve { after, ..serve }, entries, ctx.address());
        if !parked.is_empty() {
            self.lane.dispatch(parked);
        }
        if self.serves.len() <= shard.index() {
            self.serves.resize(shard.index() + 1, None);
        }
        self.serves[shard.index()] = Some(serve);
        self.lane.node.serving.inc();
    }

    /// With nothing in memory, but for what it is given.
    fn start_shard(&self, serve: Serve, warm: Option<Vec<Entries>>, me: Addr<Self>) {
        let (node, shard) = (Arc::clone(&self.lane.node), serve.shard);
        let entries = warm.unwrap_or_else(|| self.lane.empty_entries());
        let (actor, served) = ShardActor::start(Shard::new(serve, node, entries), me);
        let mut shards = self.lane.shards.borrow_mut();
        if shards.len() <= shard.index() {
            shards.resize_with(shard.index() + 1, || None);
        }
        // What was taken over has the bound of when that began.
        actor.do_send(Resize { n_owned: self.lane.n_owned.get() });
        shards[shard.index()] = Some(Served { actor, shard: served });
    }

    fn sweep_some(&mut self) {
        let shards = self.lane.shards.borrow();
        let pauses = usize::try_from(SWEEP_PERIOD.as_millis() / SWEEP_PAUSE.as_millis()).unwrap_or(1);
        for _ in 0..shards.len().div_ceil(pauses) {
            self.next_swept = (self.next_swept + 1) % shards.len();
            if let Some(served) = &shards[self.next_swept] {
                served.actor.do_send(Sweep);
            }
        }
    }
}

impl Actor for ShardRegion {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(SWEEP_PAUSE, |region, _| region.sweep_some());
    }
}

impl Handler<Lanes> for ShardRegion {
    type Result = ();

    fn handle(&mut self, Lanes(lanes): Lanes, _: &mut Context<Self>) {
        self.lane.lanes.set(lanes).expect("the lanes are told once, by the node's start");
    }
}

impl Handler<Resize> for ShardRegion {
    type Result = ();

    fn handle(&mut self, resize: Resize, _: &mut Context<Self>) {
        self.lane.n_owned.set(resize.n_owned);
        for served in self.lane.shards.borrow().iter().flatten() {
            served.actor.do_send(resize);
        }
    }
}

impl Handler<Serve> for ShardRegion {
    type Result = ();

    fn handle(&mut self, serve: Serve, ctx: &mut Context<Self>) {
        if !self.lane.taking.defer(serve) {
            self.serve(serve, ctx);
        }
    }
}

impl Handler<ServeDeferred> for ShardRegion {
    type Result = ();

    fn handle(&mut self, ServeDeferred { shard }: ServeDeferred, ctx: &mut Context<Self>) {
        let Some(Deferred { serve, said }) = self.lane.taking.take_deferred(shard) else { return };
        self.serve(serve, ctx);
        said.into_iter().for_each(|says| self.handle(says, ctx));
    }
}

impl Handler<Count> for ShardRegion {
    type Result = Vec<(ShardId, ShardCount)>;

    fn handle(&mut self, _: Count, _: &mut Context<Self>) -> Self::Result {
        let shards = self.lane.shards.borrow();
        let count = |served: &Served| served.shard.borrow().as_ref().map(Shard::count);
        let counts = (0..).map(ShardId).zip(shards.iter());
        counts.filter_map(|(shard, served)| Some((shard, count(served.as_ref()?)?))).collect()
    }
}

impl Handler<Notice> for ShardRegion {
    type Result = ();

    fn handle(&mut self, notice: Notice, _: &mut Context<Self>) {
        if let Some(Some(served)) = self.lane.shards.borrow().get(notice.shard.index()) {
            served.actor.do_send(notice);
        } else {
            self.lane.taking.handle_notice(&self.lane, notice.shard, &(notice.region, notice.key));
        }
    }
}

impl Handler<Take> for ShardRegion {
    type Result = ();

    fn handle(&mut self, Take(wishes): Take, _: &mut Context<Self>) {
        self.lane.taking.handle_wishes(&self.lane, wishes);
    }
}

impl Handler<FenceSays> for ShardRegion {
    type Result = ();

    fn handle(&mut self, says: FenceSays, _: &mut Context<Self>) {
        let Some(says) = self.lane.taking.keep(says) else { return };
        let is_meant = self
            .serves
            .get(says.shard.index())
            .is_some_and(|serve| serve.is_some_and(|serve| serve.tenure == says.tenure));
        if is_meant && let Some(Some(served)) = self.lane.shards.borrow().get(says.shard.index()) {
            served.actor.do_send(says);
        }
    }
}

impl Handler<Release> for ShardRegion {
    type Result = ();

    fn handle(&mut self, Release { shard }: Release, _: &mut Context<Self>) {
        let gone = self.lane.shards.borrow_mut().get_mut(shard.index()).and_then(Option::take);
        if let Some(gone) = gone {
            gone.actor.do_send(Stop);
            self.serves[shard.index()] = None;
            self.lane.node.serving.dec();
        } else {
            // It may wait for the answer to its seal.
            self.lane.taking.handle_release(&self.lane, shard);
        }
    }
}

impl Handler<ShardDied> for ShardRegion {
    type Result = ();

    /// Starts it again, empty, unless it has been released or given anew meanwhile.
    fn handle(&mut self, ShardDied { shard, tenure }: ShardDied, ctx: &mut Context<Self>) {
        let Some(served) = self.serves[shard.index()].filter(|served| served.tenure == tenure) else { return };
        log::error!(shard = shard.0; "a shard's actor panicked and is started again, empty");
        self.lane.node.metrics.shards_restarted.inc();
        // What it held is gone as after a crash, and what it was writing may land yet.
        let node = &self.lane.node;
        let served = Serve { after: After::Crash, n: node.next_fence_number(), ..served };
        self.serves[shard.index()] = Some(served);
        self.start_shard(served, None, ctx.address());
        let Serve { tenure, since, n, .. } = served;
        node.raise_everywhere(&[Wanted { shard, tenure, since, n }]);
    }
}

impl Handler<WrongLane> for ShardRegion {
    type Result = ();

    fn handle(&mut self, WrongLane(works): WrongLane, _: &mut Context<Self>) {
        self.lane.dispatch(works);
    }
}

impl Handler<Connect> for ShardRegion {
    type Result = ();

    fn handle(&mut self, connect: Connect, _: &mut Context<Self>) {
        actix_rt::spawn(data::serve(connect, Rc::clone(&self.lane)));
    }
}

#[cfg(test)]
mod tests;
