//! One shard: the actor that owns its entries. Batches of requests come in, answers go out through their replies.
//!
//! The actor is a thin shell: what it keeps and for how long is decided in [`entries`] and [`freshness`], who loads
//! in [`flight`]. Nothing in it waits: a load runs outside and comes back as the message [`Landed`].

pub(crate) mod entries;
pub(crate) mod flight;
pub(crate) mod freshness;
pub(crate) mod trust;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, Addr, Context, Handler, Message};
use bytes::Bytes;
use serde::Serialize;
use sharding::epoch::Epoch;
use sharding::id::ShardId;
use sharding::membership::After;
use sharding::wire::{AnswerBody, Entry as WireEntry, Served};
use tokio::time::timeout_at;

use crate::loading::{LoadError, Loaded};
use crate::metrics::LoadReason;
use crate::node::Node;
use crate::region::Region;
use crate::reply::Reply;
use crate::shard_region::{Notice, Serve, ShardDied, ShardRegion};
use entries::{Entries, Entry};
use flight::{Boarding, FlightId, FlightKey, Flights};
use freshness::Age;

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

/// What is asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    Explain,
    /// Get it past its owner; whoever is the owner serves it like any other.
    PassThrough,
    /// Forget it.
    Invalidate,
    /// Forget all that begins so.
    InvalidatePrefix,
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

/// Tells the shard of its load, however the load's task ends: its waiters are not stranded by a panic there.
struct LoadTask {
    shard: Addr<Shard>,
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

/// The owner of one shard's entries. Started by its lane's [`ShardRegion`], which hears of it when it panics.
pub(crate) struct Shard {
    serve: Serve,
    /// When it began to.
    began: Instant,
    node: Arc<Node>,
    entries: Vec<Entries>,
    /// For each region: nothing is refreshed before that, since a refresh has just failed.
    refreshes_from: Vec<Instant>,
    flights: Flights<Waiter>,
    supervisor: Addr<ShardRegion>,
}

impl Shard {
    /// An empty shard of a node that owns `n_owned` of them.
    pub(crate) fn new(serve: Serve, node: Arc<Node>, n_owned: usize, supervisor: Addr<ShardRegion>) -> Self {
        let part = |region: &Region| Entries::new(region.shard_bytes(n_owned), region.metrics.entries.clone());
        let entries: Vec<Entries> = node.regions.iter().map(part).collect();
        let refreshes_from = vec![Instant::now(); entries.len()];
        Self { serve, began: Instant::now(), node, entries, refreshes_from, flights: Flights::new(), supervisor }
    }

    /// Whether it may act as the owner at this moment.
    fn owns(&self) -> bool {
        self.node.owns(self.serve.shard, self.serve.tenure)
    }

    fn get(&mut self, work: Work, now: Instant, me: &Addr<Self>) {
        let region = &self.node.regions[work.region];
        let entry = self.entries[work.region].get(&work.key, now);
        match entry.filter(|entry| region.trust.holds(entry.lifetime.sent)) {
            Some(entry) => {
                let is_fresh = entry.lifetime.age(now) == Age::Fresh;
                let (served, counter) =
                    if is_fresh { (Served::Hit, &region.metrics.hit) } else { (Served::Stale, &region.metrics.stale) };
                counter.inc();
                work.reply.send(answer(entry, served, true, now));
                if !is_fresh && self.refreshes_from[work.region] <= now {
                    self.load((work.region, work.key), None, LoadReason::Refreshed, me);
                }
            }
            None => {
                let reason = self.reason(work.region, &work.key, now);
                let waiter = Waiter::new(work.reply, now, work.deadline);
                self.load((work.region, work.key), Some(waiter), reason, me);
            }
        }
    }

    /// Why a key that cannot be served from memory has to be loaded.
    fn reason(&mut self, region: usize, key: &[u8], now: Instant) -> LoadReason {
        match self.entries[region].peek(key) {
            Some(entry) if !self.node.regions[region].trust.holds(entry.lifetime.sent) => {
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
            After::Move if is_recent => LoadReason::Moved,
            After::Crash if is_recent => LoadReason::Crashed,
            _ => LoadReason::Cold,
        }
    }

    /// Joins the key's load, or starts one.
    fn load(&mut self, flight: FlightKey, waiter: Option<Waiter>, reason: LoadReason, me: &Addr<Self>) {
        let leaves_at = waiter.as_ref().map(|waiter| waiter.leaves_at);
        let Boarding::Lead(id) = self.flights.board(flight.clone(), waiter) else { return };
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

    fn land(&mut self, landed: Landed, now: Instant) {
        let Landed { flight, reason, id, result } = landed;
        // A load that was given up meanwhile may not be stored: something newer may be there.
        let Some((waiters, is_cut)) = self.flights.land(&flight, id) else { return };
        let (region, metrics) = (&self.node.regions[flight.0], &self.node.regions[flight.0].metrics);
        match result {
            Ok(loaded) => {
                let lifetime = region.freshness.lifetime(loaded.sent, loaded.content.is_none(), fastrand::f64());
                let entry = Entry { content: loaded.content, reason, lifetime };
                // What a deposed owner has loaded, or one who was told meanwhile that it is old, was true when it was asked
                // for, and answers who waited; but it is not kept.
                let owns = self.owns() && !is_cut && region.trust.holds(loaded.sent);
                let kept = owns && self.entries[flight.0].insert(Box::from(&flight.1[..]), entry.clone()).is_ok();
                if owns && !kept {
                    metrics.not_kept.inc();
                }
                for (place, Waiter { reply, .. }) in waiters.into_iter().enumerate() {
                    let (served, counter) = match place {
                        0 => (Served::Miss, &metrics.miss),
                        _ => (Served::Joined, &metrics.joined),
                    };
                    counter.inc();
                    reply.send(answer(&entry, served, kept, now));
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
        self.flights.cut(|flight| flight.0 == region && flight.1 == key);
        self.entries[region].remove(key)
    }

    /// Forgets what is in memory, and cuts what is in the air: that is neither kept nor joined, since it may be older.
    fn invalidate(&mut self, work: Work) {
        let (region, key) = (work.region, &work.key);
        let entries = match work.op {
            Op::InvalidatePrefix => {
                self.flights.cut(|flight| flight.0 == region && flight.1.starts_with(key));
                self.entries[region].remove_prefix(key)
            }
            _ => self.forget(region, key),
        };
        self.node.regions[region].metrics.invalidated.inc_by(entries as u64);
        let entries = u32::try_from(entries).unwrap_or(u32::MAX);
        work.reply.send(AnswerBody::Invalidated { since: self.serve.since, entries });
    }

    /// Answers those who cannot wait any longer; the load goes on for the others, and for whoever comes.
    fn part(&mut self, Overdue { flight, id }: &Overdue, now: Instant) {
        let region = &self.node.regions[flight.0];
        for waiter in self.flights.part(flight, *id, |waiter| waiter.leaves_at <= now) {
            let failure = region.slow();
            region.metrics.count_failure(failure.code);
            waiter.reply.send(AnswerBody::Failed(failure));
        }
    }

    fn explain(&self, work: &Work, now: Instant) -> AnswerBody {
        let flight = (work.region, work.key.clone());
        let page = Explanation {
            region: self.node.regions[work.region].name.as_str(),
            key: String::from_utf8_lossy(&work.key),
            shard: self.serve.shard,
            owned_since: self.serve.since,
            is_loading: self.flights.is_in_the_air(&flight),
            entry: self.entries[work.region].peek(&work.key).map(|entry| EntryPage::of(entry, now)),
        };
        AnswerBody::Page(serde_json::to_vec(&page).expect("a page of plain fields is JSON").into())
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

pub(crate) fn answer(entry: &Entry, served: Served, kept: bool, now: Instant) -> AnswerBody {
    let lifetime = &entry.lifetime;
    let age = now.saturating_duration_since(lifetime.sent);
    let how = WireEntry { served, kept, age, ttl_ms: lifetime.ttl_ms(now) };
    match &entry.content {
        Some((value, etag)) => AnswerBody::Value { entry: how, etag: *etag, value: value.clone() },
        None => AnswerBody::Absent(how),
    }
}

/// What `/-/explain` says of a key.
#[derive(Serialize)]
struct Explanation<'a> {
    region: &'a str,
    key: std::borrow::Cow<'a, str>,
    shard: ShardId,
    owned_since: Epoch,
    is_loading: bool,
    entry: Option<EntryPage>,
}

#[derive(Serialize)]
struct EntryPage {
    state: &'static str,
    is_absent: bool,
    /// Why it was loaded.
    loaded: &'static str,
    value_bytes: usize,
    etag: Option<String>,
    age_ms: u128,
    ttl_ms: i64,
}

impl EntryPage {
    fn of(entry: &Entry, now: Instant) -> Self {
        Self {
            state: match entry.lifetime.age(now) {
                Age::Fresh => "fresh",
                Age::Stale => "stale",
                Age::Gone => "gone",
            },
            is_absent: entry.content.is_none(),
            loaded: entry.reason.label(),
            value_bytes: entry.content.as_ref().map_or(0, |(value, _)| value.len()),
            etag: entry.content.as_ref().map(|(_, etag)| etag.to_string()),
            age_ms: now.saturating_duration_since(entry.lifetime.sent).as_millis(),
            ttl_ms: entry.lifetime.ttl_ms(now),
        }
    }
}

impl Actor for Shard {
    type Context = Context<Self>;
}

impl Drop for Shard {
    /// A panic ends the actor and nobody restarts it; so it says so itself. Its waiters are answered as they drop.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.supervisor.do_send(ShardDied { shard: self.serve.shard, since: self.serve.since });
        }
    }
}

impl Handler<Batch> for Shard {
    type Result = ();

    fn handle(&mut self, Batch(batch): Batch, ctx: &mut Context<Self>) {
        use actix::AsyncContext;
        let (now, me) = (Instant::now(), ctx.address());
        // Here the values are taken: here the lease has to hold.
        let owns = self.owns();
        for work in batch {
            match work.op {
                _ if !owns => self.node.misdirect(work),
                Op::Get | Op::PassThrough => self.get(work, now, &me),
                Op::Invalidate | Op::InvalidatePrefix => self.invalidate(work),
                Op::Explain => {
                    let page = self.explain(&work, now);
                    work.reply.send(page);
                }
            }
        }
    }
}

impl Handler<Landed> for Shard {
    type Result = ();

    fn handle(&mut self, landed: Landed, _: &mut Context<Self>) {
        self.land(landed, Instant::now());
    }
}

impl Handler<Notice> for Shard {
    type Result = ();

    fn handle(&mut self, notice: Notice, _: &mut Context<Self>) {
        self.forget(notice.region, &notice.key);
        drop(notice.permit);
    }
}

impl Handler<Overdue> for Shard {
    type Result = ();

    fn handle(&mut self, overdue: Overdue, _: &mut Context<Self>) {
        self.part(&overdue, Instant::now());
    }
}

impl Handler<Resize> for Shard {
    type Result = ();

    fn handle(&mut self, resize: Resize, _: &mut Context<Self>) {
        for (entries, region) in self.entries.iter_mut().zip(&*self.node.regions) {
            entries.resize(region.shard_bytes(resize.n_owned));
        }
    }
}

impl Handler<Sweep> for Shard {
    type Result = ();

    fn handle(&mut self, _: Sweep, _: &mut Context<Self>) {
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

impl Handler<Stop> for Shard {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        use actix::ActorContext;
        ctx.stop();
    }
}
