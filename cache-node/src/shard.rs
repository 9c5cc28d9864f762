//! One shard: the actor that owns its entries. Batches of requests come in, answers go out through their replies.
//!
//! The actor is a thin shell: what it keeps and for how long is decided in [`entries`] and [`freshness`], who loads, who
//! writes and who waits for what in [`sharding::keys`]. Nothing in it waits: loads and writes run outside and come back as
//! the messages [`Landed`] and [`WriteEnded`].

mod actor;
pub(crate) mod entries;
mod explain;
pub(crate) mod freshness;
mod handing;
pub(crate) mod trust;
mod writing;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Addr, AsyncContext, Context, Message};
use bytes::Bytes;
use sharding::epoch::Epoch;
use sharding::flight::{FlightId, FlightKey};
use sharding::id::ShardId;
use sharding::keys::{Effect, Keys, Rules};
use sharding::load::ShardCount;
use sharding::membership::After;
use sharding::wire::{AnswerBody, Entry as WireEntry, Served};
use tokio::time::timeout_at;

use crate::fencing::Wanted;
use crate::loading::{LoadError, Loaded};
use crate::metrics::LoadReason;
use crate::node::Node;
use crate::reply::Reply;
use crate::shard_region::{FenceSays, Notice, Serve};
pub(crate) use actor::{ShardActor, SharedShard, Told};
use entries::{Entries, Entry, Value};
use freshness::{Age, At, Lifetime};
use handing::{Handing, Parked, Seal};
use writing::Writer;
pub(crate) use writing::{WriteEnded, Writing};

/// So long before its time is over whoever waits for a load is told that it cannot be waited for; earlier by less where
/// there is little time.
const LEAVE_BEFORE: Duration = Duration::from_millis(250);
/// The smallest part of a request's time that is used to say so: one in so many.
const LEAVE_PART: u32 = 8;
/// Whoever waits is looked at after this time at the latest.
const FIRST_LOOK: Duration = Duration::from_millis(500);
/// After a load has failed nothing is refreshed for so long: what is stale is served meanwhile, and may be for long.
const REFRESH_PAUSE: Duration = Duration::from_millis(100);
/// Those who wait are looked at so often, once the first has left.
const LEAVE_PERIOD: Duration = Duration::from_millis(100);

/// One in so many reads of a fresh entry in the last part of its life has it loaded anew: those of keys that are asked for
/// often come there.
const AHEAD_CHANCE: u8 = 16;
/// A larger value is not copied to those that leave with it: it goes by the actor, as a handle.
const HIT_BYTES_MAX: usize = 256 * 1024;

/// What is asked of a key.
#[derive(Debug)]
pub(crate) enum Op {
    Get,
    Explain,
    /// Get it past its owner; whoever is the owner serves it like any other.
    PassThrough,
    /// Forget it.
    Invalidate,
    /// Forget all that begins so.
    InvalidatePrefix,
    /// Write or remove it.
    Write(Box<Writing>),
    /// Hand over a part of what is in memory of the shard.
    Pull {
        since: Epoch,
        cursor: u32,
        number: u32,
    },
    /// Serve the shard no more, and hand over the rest.
    Seal {
        since: Epoch,
        number: u32,
    },
}

/// One request for this shard.
#[derive(Debug)]
pub(crate) struct Work {
    pub(crate) op: Op,
    pub(crate) shard: ShardId,
    /// Position of the region.
    pub(crate) region: usize,
    pub(crate) key: Bytes,
    /// So long whoever asked waits.
    pub(crate) deadline: Duration,
    pub(crate) reply: Reply,
}

impl Work {
    /// About a shard as a whole.
    pub(crate) fn of_shard(op: Op, shard: ShardId, reply: Reply) -> Self {
        Self { op, shard, region: 0, key: Bytes::new(), deadline: Duration::ZERO, reply }
    }
}

/// Who waits for a load, and until when it can be told something.
#[derive(Debug)]
pub(crate) struct Waiter {
    pub(crate) reply: Reply,
    pub(crate) came_at: Instant,
    pub(crate) leaves_at: Instant,
}

impl Waiter {
    pub(crate) fn new(reply: Reply, now: Instant, deadline: Duration) -> Self {
        Self { reply, came_at: now, leaves_at: now + deadline.saturating_sub(LEAVE_BEFORE.min(deadline / LEAVE_PART)) }
    }
}

/// Requests of one read of a connection, all of this shard.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Batch(pub(crate) Vec<Work>);

/// A load has come back.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Landed {
    flight: FlightKey,
    reason: LoadReason,
    id: FlightId,
    result: Result<Loaded, LoadError>,
}

/// A load has taken long: time to answer those whose own time is over.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Overdue {
    flight: FlightKey,
    id: FlightId,
}

/// Time to answer those who have waited for a write or a fence for too long.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct Look;

/// An entry that was read is to be loaded anew before its time.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Ahead(pub(crate) FlightKey);

/// Tells the shard of its load, however the load's task ends: its waiters are not stranded by a panic there.
struct LoadTask {
    shard: Addr<ShardActor>,
    landed: Option<Landed>,
}

impl Drop for LoadTask {
    fn drop(&mut self) {
        if let Some(landed) = self.landed.take() {
            self.shard.do_send(landed);
        }
    }
}

/// The node owns this many shards now: its memory is split anew.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Resize {
    pub(crate) n_owned: usize,
}

/// Time to forget what is gone.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Sweep;

/// One shard's entries, and what goes on with them. Its [`ShardActor`] changes it.
pub(crate) struct Shard {
    serve: Serve,
    /// When it began to.
    began: Instant,
    node: Arc<Node>,
    entries: Vec<Entries>,
    n_requests: u64,
    /// For each region: nothing is refreshed before that, since a refresh has just failed.
    refreshes_from: Vec<Instant>,
    keys: Keys<Waiter, Writer>,
    /// For each region: what was trusted when its loads in the air were looked at last.
    trusted: Vec<At>,
    /// It looks again after those who wait for a write or a fence.
    is_looking: bool,
    /// It is released, and waits for the outcome of its writes.
    is_stopping: bool,
    /// While it is handed over.
    handing: Option<Handing>,
    seal: Seal,
    /// Requests that wait for the next owner.
    parked: Vec<Parked>,
}

impl Shard {
    /// A shard that begins with these entries, one table for each region.
    pub(crate) fn new(serve: Serve, node: Arc<Node>, entries: Vec<Entries>) -> Self {
        let refreshes_from = vec![Instant::now(); entries.len()];
        let fence_of = node.regions.iter().map(|region| region.fence).collect();
        let keys = Keys::new(Rules::ALL, fence_of, node.n_fences(), serve.n);
        let trusted = node.regions.iter().map(|region| region.trust.from()).collect();
        Self {
            serve,
            began: Instant::now(),
            node,
            entries,
            n_requests: 0,
            refreshes_from,
            keys,
            trusted,
            is_looking: false,
            is_stopping: false,
            handing: None,
            seal: Seal::Open,
            parked: Vec::new(),
        }
    }

    /// Whether it may act as the owner at this moment.
    fn owns(&self) -> bool {
        self.node.owns(self.serve.shard, self.serve.tenure)
    }

    /// What a fresh entry with a value answers; `None`: ask the actor. Requires: the node's lease holds, and did when `now`
    /// was taken.
    pub(crate) fn hit(&mut self, region: usize, key: &[u8], now: At) -> Option<Entry<Value<'_>>> {
        if !self.node.is_of(self.serve.shard, self.serve.tenure) || self.is_sealed() || !self.keys.is_quiet() {
            return None;
        }
        let trust = &self.node.regions[region].trust;
        let entry = self.entries[region].get(key, now)?;
        let is_short = entry.content.as_ref().is_some_and(|(value, _)| value.len() <= HIT_BYTES_MAX);
        if !is_short || entry.lifetime.age(now) != Age::Fresh || !trust.holds(entry.lifetime.trusted_at()) {
            return None;
        }
        self.n_requests += 1;
        Some(entry)
    }

    /// What has been asked of it, and what it holds.
    pub(crate) fn count(&self) -> ShardCount {
        ShardCount { requests: self.n_requests, bytes: self.entries.iter().map(Entries::bytes).sum() }
    }

    /// Whether an entry that is being read is to be loaded anew before its time.
    pub(crate) fn wants_ahead(&self, region: usize, lifetime: &Lifetime, now: At) -> bool {
        lifetime.is_ending(now)
            && fastrand::u8(..AHEAD_CHANCE) == 0
            && self.node.regions[region].is_idle()
            && At::from(self.refreshes_from[region]) <= now
    }

    fn get(&mut self, work: Work, now: Instant) {
        let key = (work.region, work.key);
        let waiter = Waiter::new(work.reply, now, work.deadline);
        if !self.keys.may_serve(&key) {
            self.keys.handle_read(key, waiter);
        } else if let Some(waiter) = self.serve(&key, waiter, now) {
            self.cut_what_is_not_trusted(key.0);
            self.keys.handle_read(key, waiter);
        }
    }

    /// Answers from memory; gives back who cannot be.
    fn serve(&mut self, key: &FlightKey, waiter: Waiter, now: Instant) -> Option<Waiter> {
        let region = &self.node.regions[key.0];
        let entry = self.entries[key.0].get(&key.1, now);
        let Some(entry) = entry.filter(|entry| region.trust.holds(entry.lifetime.trusted_at())) else {
            return Some(waiter);
        };
        let is_fresh = entry.lifetime.age(now) == Age::Fresh;
        let (served, counter) =
            if is_fresh { (Served::Hit, &region.metrics.hit) } else { (Served::Stale, &region.metrics.stale) };
        counter.inc();
        let lifetime = entry.lifetime;
        waiter.reply.send(answer(entry.to_owned(), served, true, now));
        let wants_refresh =
            if is_fresh { self.wants_ahead(key.0, &lifetime, now.into()) } else { self.refreshes_from[key.0] <= now };
        if wants_refresh {
            self.keys.handle_refresh(key.clone());
        }
        None
    }

    /// Since the database was not heard for a while, what was sent to it before may not be joined.
    fn cut_what_is_not_trusted(&mut self, region: usize) {
        let from = self.node.regions[region].trust.from();
        if std::mem::replace(&mut self.trusted[region], from) != from {
            self.keys.handle_change(|(other, _)| other == region);
        }
    }

    /// Why a key that cannot be served from memory has to be loaded.
    fn reason(&mut self, region: usize, key: &[u8], now: Instant) -> LoadReason {
        match self.entries[region].peek(key) {
            Some(entry) if !self.node.regions[region].trust.holds(entry.lifetime.trusted_at()) => {
                return LoadReason::Invalidated;
            }
            Some(Entry { content: None, .. }) => return LoadReason::Absent,
            Some(_) => return LoadReason::Expired,
            None => {}
        }
        if let Some(reason) = self.entries[region].why_lost(key) {
            return reason;
        }
        // Whoever had the shard before may have had it in memory, unless that is too long ago.
        let is_recent = now < self.began + self.node.regions[region].freshness.max_stale;
        match self.serve.after {
            After::Move | After::Sealed(_) if is_recent => LoadReason::Moved,
            After::Crash if is_recent => LoadReason::Crashed,
            _ => LoadReason::Cold,
        }
    }

    /// Does what is to be done.
    fn perform(&mut self, ctx: &mut Context<ShardActor>) {
        let (now, me) = (Instant::now(), ctx.address());
        while let Some(effect) = self.keys.poll_effect() {
            match effect {
                Effect::Load { key, flight } => self.load(key, flight, now, &me),
                Effect::Write { key, write, n, writer } => self.begin_write(key, write, n, writer, &me),
                Effect::Resume { key, readers } => self.resume(&key, readers, now),
                Effect::Forget { key } => {
                    self.note_change(key.0, &key.1);
                    self.entries[key.0].remove(&key.1);
                }
                // Released, it has nothing to raise any more.
                Effect::Raise { .. } if self.is_stopping => {}
                Effect::Raise { fence, n } => {
                    let Serve { shard, tenure, since, .. } = self.serve;
                    self.node.raise(fence, vec![Wanted { shard, tenure, since, n }]);
                }
            }
        }
        self.seal_if_quiet(now);
        self.end_if_done(ctx);
        if !self.is_looking && (self.keys.has_waiting() || !self.parked.is_empty() || self.is_sealing()) {
            self.is_looking = true;
            ctx.notify_later(Look, LEAVE_PERIOD);
        }
    }

    /// Those who have waited for a write or a fence.
    fn resume(&mut self, key: &FlightKey, readers: Vec<Waiter>, now: Instant) {
        let owns = self.owns();
        for waiter in readers {
            if !owns {
                self.node.misdirect_reply(key.0, self.serve.shard, waiter.reply);
            } else if let Some(waiter) = self.serve(key, waiter, now) {
                self.keys.handle_read(key.clone(), waiter);
            }
        }
    }

    /// Answers those who cannot wait any longer for a write or a fence.
    fn look(&mut self, ctx: &mut Context<ShardActor>) {
        let now = Instant::now();
        self.is_looking = false;
        let left = self.keys.take_waiting(|reader| reader.leaves_at <= now, |writer| writer.is_late(now));
        for (region, waiter) in left.readers {
            let region = &self.node.regions[region];
            let failure = region.slow();
            region.metrics.count_failure(failure.code);
            waiter.reply.send(AnswerBody::Failed(failure));
        }
        left.writers.into_iter().for_each(|(_, writer)| writer.fail(writing::not_begun()));
        self.unpark(Some(now));
        self.perform(ctx);
    }

    /// Loads a key, for those who wait for it.
    fn load(&mut self, key: FlightKey, id: FlightId, now: Instant, me: &Addr<ShardActor>) {
        let leaves_at = self.keys.waiters(&key, id).next().map(|waiter| waiter.leaves_at);
        let reason = match leaves_at {
            Some(_) => self.reason(key.0, &key.1, now),
            None => self.reason_to_refresh(key.0, &key.1, now),
        };
        let flight = key;
        let (node, me) = (Arc::clone(&self.node), me.clone());
        // Not `ctx.spawn`: the actor would poll every load in the air again with every message.
        actix_rt::spawn(async move {
            let mut task = LoadTask {
                shard: me,
                landed: Some(Landed { flight: flight.clone(), reason, id, result: Err(LoadError::GivenUp) }),
            };
            let loading = node.regions[flight.0].load(flight.1.clone(), reason, leaves_at);
            // Others may join who have less time.
            let soon = Instant::now() + FIRST_LOOK;
            let look_at = leaves_at.map_or(soon, |leaves_at| leaves_at.min(soon));
            let shard = task.shard.clone();
            let loaded = watched(loading, look_at, || shard.do_send(Overdue { flight: flight.clone(), id })).await;
            if let Some(landed) = &mut task.landed {
                landed.result = loaded;
            }
        });
    }

    fn reason_to_refresh(&self, region: usize, key: &[u8], now: Instant) -> LoadReason {
        match self.entries[region].peek(key) {
            Some(entry) if entry.lifetime.age(now) == Age::Fresh => LoadReason::Ahead,
            _ => LoadReason::Refreshed,
        }
    }

    fn land(&mut self, landed: Landed, now: Instant) {
        let Landed { flight, reason, id, result } = landed;
        // A load that was given up meanwhile may not be stored: something newer may be there.
        let Some((waiters, may_be_kept)) = self.keys.handle_landed(&flight, id) else { return };
        let node = Arc::clone(&self.node);
        let (region, metrics) = (&node.regions[flight.0], &node.regions[flight.0].metrics);
        match result {
            Ok(loaded) => {
                let lifetime = region.freshness.lifetime(loaded.sent, loaded.content.is_none(), fastrand::f64());
                let entry = Entry { content: loaded.content, reason, lifetime };
                // What a deposed owner has loaded, or one who was told meanwhile that it is old, was true when it was asked
                // for, and answers who waited; but it is not kept.
                let owns = self.owns() && !self.is_sealed() && may_be_kept && region.trust.holds(loaded.sent);
                self.note_change(flight.0, &flight.1);
                let kept = owns && self.entries[flight.0].insert(&flight.1, &entry).is_ok();
                if owns && !kept {
                    metrics.not_kept.inc();
                }
                for (place, Waiter { reply, .. }) in waiters.into_iter().enumerate() {
                    let (served, counter) = match place {
                        0 => (Served::Miss, &metrics.miss),
                        _ => (Served::Joined, &metrics.joined),
                    };
                    counter.inc();
                    reply.send(answer(entry.clone(), served, kept, now));
                }
            }
            Err(error) => {
                let failure = error.failure();
                self.refreshes_from[flight.0] = now + REFRESH_PAUSE;
                for waiter in waiters {
                    metrics.count_failure(failure.code);
                    waiter.reply.send(AnswerBody::Failed(failure.clone()));
                }
            }
        }
    }

    /// Forgets one key. Gives how many entries that were.
    fn forget(&mut self, region: usize, key: &[u8]) -> usize {
        self.keys.handle_change(|(other, changed)| other == region && changed == key);
        self.note_change(region, &Bytes::copy_from_slice(key));
        self.entries[region].remove(key)
    }

    /// Forgets what is in memory, and cuts what is in the air: that is neither kept nor joined, since it may be older.
    fn invalidate(&mut self, work: Work, is_prefix: bool) {
        let (region, key) = (work.region, &work.key);
        let entries = match is_prefix {
            true => {
                self.keys.handle_change(|(other, changed)| other == region && changed.starts_with(key));
                self.note_changes(region, &key.clone());
                self.entries[region].remove_prefix(key)
            }
            false => self.forget(region, key),
        };
        self.node.regions[region].metrics.invalidated.inc_by(entries as u64);
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        work.reply.send(AnswerBody::Invalidated { since: self.serve.since, entries });
    }

    /// Answers those who cannot wait any longer; the load goes on for the others, and for whoever comes.
    fn part(&mut self, Overdue { flight, id }: &Overdue, now: Instant) {
        let region = &self.node.regions[flight.0];
        for waiter in self.keys.take_landing(flight, *id, |waiter| waiter.leaves_at <= now) {
            let failure = region.slow();
            region.metrics.count_failure(failure.code);
            waiter.reply.send(AnswerBody::Failed(failure));
        }
    }
}

/// Waits for something, and looks after those who wait for it too: first at `look_at`, then again and again.
pub(crate) async fn watched<T>(what: impl Future<Output = T>, mut look_at: Instant, look: impl Fn()) -> T {
    let mut what = std::pin::pin!(what);
    loop {
        match timeout_at(look_at.into(), &mut what).await {
            Ok(done) => return done,
            Err(_) => look(),
        }
        look_at = Instant::now() + LEAVE_PERIOD;
    }
}

/// How an answer was come by, as the router is told.
pub(crate) fn how(lifetime: &Lifetime, served: Served, kept: bool, now: impl Into<At>) -> WireEntry {
    let now = now.into();
    WireEntry { served, kept, age: lifetime.since_sent(now), ttl_ms: lifetime.ttl_ms(now) }
}

pub(crate) fn answer(entry: Entry, served: Served, kept: bool, now: Instant) -> AnswerBody {
    let how = how(&entry.lifetime, served, kept, now);
    match entry.content {
        Some((value, etag)) => AnswerBody::Value { entry: how, etag, value },
        None => AnswerBody::Absent(how),
    }
}

impl Told<Batch> for Shard {
    fn told(&mut self, Batch(batch): Batch, ctx: &mut Context<ShardActor>) {
        let now = Instant::now();
        // Here the values are taken: here the lease has to hold.
        let owns = self.owns();
        self.n_requests += batch.len() as u64;
        for mut work in batch {
            match std::mem::replace(&mut work.op, Op::Get) {
                _ if !owns => self.node.misdirect(work),
                op if !self.is_open() => {
                    work.op = op;
                    self.park(work, now);
                }
                Op::Pull { since, cursor, number } => self.pull(work, since, (cursor, number), now),
                Op::Seal { since, number } => self.want_seal(work, since, number, now),
                Op::Get | Op::PassThrough => self.get(work, now),
                Op::Invalidate => self.invalidate(work, false),
                Op::InvalidatePrefix => self.invalidate(work, true),
                Op::Write(writing) => self.want_write(work, *writing, now),
                Op::Explain => {
                    let page = self.explain(&work, now);
                    work.reply.send(page);
                }
            }
        }
        self.perform(ctx);
    }
}

impl Told<WriteEnded> for Shard {
    fn told(&mut self, ended: WriteEnded, ctx: &mut Context<ShardActor>) {
        self.end_write(ended);
        self.perform(ctx);
    }
}

impl Told<FenceSays> for Shard {
    fn told(&mut self, FenceSays { fence, result, .. }: FenceSays, ctx: &mut Context<ShardActor>) {
        match result {
            Ok(n) => self.keys.handle_raised(fence, n),
            Err(failure) => {
                let told = self.keys.handle_raise_failed(fence);
                for (region, waiter) in told.readers {
                    self.node.regions[region].metrics.count_failure(failure.code);
                    waiter.reply.send(AnswerBody::Failed(failure.clone()));
                }
                told.writers.into_iter().for_each(|(_, writer)| writer.fail(writing::without_fence(&failure)));
            }
        }
        self.perform(ctx);
    }
}

impl Told<Landed> for Shard {
    fn told(&mut self, landed: Landed, ctx: &mut Context<ShardActor>) {
        self.land(landed, Instant::now());
        self.perform(ctx);
    }
}

impl Told<Notice> for Shard {
    fn told(&mut self, notice: Notice, _: &mut Context<ShardActor>) {
        self.forget(notice.region, &notice.key);
        drop(notice.permit);
    }
}

impl Told<Look> for Shard {
    fn told(&mut self, _: Look, ctx: &mut Context<ShardActor>) {
        self.look(ctx);
    }
}

impl Told<Ahead> for Shard {
    fn told(&mut self, Ahead(key): Ahead, ctx: &mut Context<ShardActor>) {
        if self.owns() && self.is_open() {
            self.keys.handle_refresh(key);
            self.perform(ctx);
        }
    }
}

impl Told<Overdue> for Shard {
    fn told(&mut self, overdue: Overdue, _: &mut Context<ShardActor>) {
        self.part(&overdue, Instant::now());
    }
}

impl Told<Resize> for Shard {
    fn told(&mut self, resize: Resize, _: &mut Context<ShardActor>) {
        for (entries, region) in self.entries.iter_mut().zip(&*self.node.regions) {
            entries.resize(region.shard_bytes(resize.n_owned));
        }
    }
}

impl Told<Sweep> for Shard {
    fn told(&mut self, _: Sweep, _: &mut Context<ShardActor>) {
        let now = Instant::now();
        for entries in &mut self.entries {
            entries.sweep(now);
        }
    }
}

/// The end of a shard: its entries are forgotten.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

impl Told<Stop> for Shard {
    /// Who waits is sent to whoever owns the shard now; writes that were begun are still answered.
    fn told(&mut self, _: Stop, ctx: &mut Context<ShardActor>) {
        self.is_stopping = true;
        self.give_no_seal();
        self.send_on();
        self.unpark(None);
        self.perform(ctx);
    }
}
