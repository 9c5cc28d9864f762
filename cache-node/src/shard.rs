//! One shard: the actor that owns its entries. Batches of requests come in, answers go out through their replies.
//!
//! The actor is a thin shell: what it keeps and for how long is decided in [`entries`] and [`freshness`], who loads
//! in [`flight`]. Nothing in it waits: a load runs outside and comes back as the message [`Landed`].

pub(crate) mod entries;
pub(crate) mod flight;
pub(crate) mod freshness;

use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, Addr, Context, Handler, Message};
use bytes::Bytes;
use serde::Serialize;
use sharding::epoch::Epoch;
use sharding::id::ShardId;
use sharding::wire::{AnswerBody, Entry as WireEntry, Served};

use crate::loading::{LoadError, Loaded};
use crate::metrics::LoadReason;
use crate::node::Node;
use crate::region::Region;
use crate::reply::Reply;
use crate::shard_region::{ShardDied, ShardRegion};
use entries::{Entries, Entry};
use flight::{Boarding, FlightId, FlightKey, Flights};
use freshness::Age;

/// What is asked of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Get,
    Explain,
    /// Get it past its owner; whoever is the owner serves it like any other.
    PassThrough {
        /// Whoever asked waits no longer.
        until: tokio::time::Instant,
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
    pub(crate) reply: Reply,
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
    id: FlightId,
    result: Result<Loaded, LoadError>,
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
    id: ShardId,
    since: Epoch,
    /// Under which it serves: a number that this node gives only once.
    tenure: u64,
    node: Arc<Node>,
    entries: Vec<Entries>,
    flights: Flights<Reply>,
    supervisor: Addr<ShardRegion>,
}

impl Shard {
    /// An empty shard of a node that owns `n_owned` of them.
    pub(crate) fn new(
        id: ShardId,
        since: Epoch,
        tenure: u64,
        node: Arc<Node>,
        n_owned: usize,
        supervisor: Addr<ShardRegion>,
    ) -> Self {
        let part = |region: &Region| Entries::new(region.shard_bytes(n_owned), region.metrics.entries.clone());
        let entries = node.regions.iter().map(part).collect();
        Self { id, since, tenure, node, entries, flights: Flights::new(), supervisor }
    }

    /// Whether it may act as the owner at this moment.
    fn owns(&self) -> bool {
        self.node.owns(self.id, self.tenure)
    }

    fn get(&mut self, work: Work, now: Instant, me: &Addr<Self>) {
        let region = &self.node.regions[work.region];
        match self.entries[work.region].get(&work.key, now) {
            Some(entry) => {
                let is_fresh = entry.lifetime.age(now) == Age::Fresh;
                let (served, counter) =
                    if is_fresh { (Served::Hit, &region.metrics.hit) } else { (Served::Stale, &region.metrics.stale) };
                counter.inc();
                work.reply.send(answer(entry, served, true, now));
                if !is_fresh {
                    self.load((work.region, work.key), None, LoadReason::Refreshed, me);
                }
            }
            None => {
                let reason = self.reason(work.region, &work.key);
                self.load((work.region, work.key), Some(work.reply), reason, me);
            }
        }
    }

    /// Why a key that cannot be served from memory has to be loaded.
    fn reason(&self, region: usize, key: &[u8]) -> LoadReason {
        match self.entries[region].peek(key) {
            None => LoadReason::Cold,
            Some(Entry { content: None, .. }) => LoadReason::Absent,
            Some(_) => LoadReason::Expired,
        }
    }

    /// Joins the key's load, or starts one.
    fn load(&mut self, flight: FlightKey, waiter: Option<Reply>, reason: LoadReason, me: &Addr<Self>) {
        let Boarding::Lead(id) = self.flights.board(flight.clone(), waiter) else { return };
        let (node, me) = (Arc::clone(&self.node), me.clone());
        // Not `ctx.spawn`: the actor would poll every load in the air again with every message.
        actix_rt::spawn(async move {
            let mut landed =
                LoadTask { shard: me, landed: Some(Landed { flight, id, result: Err(LoadError::GivenUp) }) };
            if let Some(Landed { flight, result, .. }) = &mut landed.landed {
                *result = node.regions[flight.0].load(flight.1.clone(), reason).await;
            }
        });
    }

    fn land(&mut self, landed: Landed, now: Instant) {
        let Landed { flight, id, result } = landed;
        // A load that was given up meanwhile may not be stored: something newer may be there.
        let Some(waiters) = self.flights.land(&flight, id) else { return };
        let (region, metrics) = (&self.node.regions[flight.0], &self.node.regions[flight.0].metrics);
        match result {
            Ok(loaded) => {
                let lifetime = region.freshness.lifetime(loaded.sent, loaded.content.is_none(), fastrand::f64());
                let entry = Entry { content: loaded.content, lifetime };
                // What a deposed owner has loaded is true, and answers who waited; but it is not kept.
                let owns = self.owns();
                let kept = owns && self.entries[flight.0].insert(Box::from(&flight.1[..]), entry.clone()).is_ok();
                if owns && !kept {
                    metrics.not_kept.inc();
                }
                for (place, reply) in waiters.into_iter().enumerate() {
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
                for reply in waiters {
                    metrics.count_failure(failure.code);
                    reply.send(AnswerBody::Failed(failure.clone()));
                }
            }
        }
    }

    fn explain(&self, work: &Work, now: Instant) -> AnswerBody {
        let flight = (work.region, work.key.clone());
        let page = Explanation {
            region: self.node.regions[work.region].name.as_str(),
            key: String::from_utf8_lossy(&work.key),
            shard: self.id,
            owned_since: self.since,
            is_loading: self.flights.is_in_the_air(&flight),
            entry: self.entries[work.region].peek(&work.key).map(|entry| EntryPage::of(entry, now)),
        };
        AnswerBody::Page(serde_json::to_vec(&page).expect("a page of plain fields is JSON").into())
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
            self.supervisor.do_send(ShardDied { shard: self.id, since: self.since });
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
                Op::Get | Op::PassThrough { .. } => self.get(work, now, &me),
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
