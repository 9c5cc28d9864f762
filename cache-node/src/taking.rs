//! Shards that this node takes over from others, on the lane that they will live on: what is in memory there is pulled in
//! chunks, paced; then the other one seals, and what has changed follows. Once the coordinator grants the shard, what was
//! taken over is served.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use sharding::epoch::Epoch;
use sharding::flight::FlightKey;
use sharding::id::ShardId;
use sharding::membership::{After, Transfer};
use sharding::wire::{AnswerBody, Chunk, Etag, FailureCode, Handed, Pull, RequestBody};
use tokio::time::sleep;
use transport::upstream::Upstream;

use crate::membership::Inbound;
use crate::metrics::LoadReason;
use crate::node::MovePage;
use crate::shard::Work;
use crate::shard::entries::{Entries, Entry};
use crate::shard::freshness::Lifetime;
use crate::shard_region::{FenceSays, Lane, Serve};

/// Longest time for a chunk, and for a seal: that waits for writes.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(2);
/// Shards that are sealed together: each is not served while the coordinator hears of all of them.
const SEALED_TOGETHER: usize = 8;
/// Pause before a seal is asked for again that came too early.
const TOO_EARLY: Duration = Duration::from_millis(10);
/// How often.
const SEAL_TRIES_MAX: usize = 100;
/// Longest time for a sealed shard to be granted.
const SEALED_FOR: Duration = Duration::from_secs(10);
/// Most keys that were said to have changed while a shard was taken over; one more, and it is not.
pub(crate) const NOTICED_MAX: usize = 10_000;
/// Most requests that wait for a shard to be granted.
const PARKED_MAX: usize = 4096;
/// Longest time for that.
const PARKED_FOR: Duration = Duration::from_millis(500);

/// A shard to be taken over, and where from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wish {
    pub(crate) transfer: Transfer,
    /// Data port of the one that gives it.
    pub(crate) address: String,
}

/// What there is of a shard that is not granted yet.
struct Incoming {
    /// Since when it belonged to the one that gave it.
    since: Epoch,
    /// Of the pull, as the other one has said.
    number: u32,
    entries: Vec<Entries>,
    /// Keys that the database has said to have changed meanwhile.
    noticed: HashSet<FlightKey>,
    /// When the other one was asked to seal it.
    seal_asked_at: Option<Instant>,
    /// It has sealed it, and said all.
    is_sealed: bool,
    parked: Vec<Work>,
    page: MovePage,
    began: Instant,
}

impl Incoming {
    /// Whether this is a grant of just that tenure which it was taken over from.
    fn is_of(&self, serve: Serve) -> bool {
        serve.after == After::Sealed(self.since)
    }
}

/// A grant that has overtaken the answer to the seal of its shard. It waits for that whatever becomes of what was taken
/// over, until the shard is released.
#[derive(Debug)]
pub(crate) struct Deferred {
    pub(crate) serve: Serve,
    /// What was said of the shard's fences meanwhile.
    pub(crate) said: Vec<FenceSays>,
}

/// What a shard begins with.
#[derive(Default)]
pub(crate) struct Beginning {
    /// `None`: with nothing in memory.
    pub(crate) entries: Option<Vec<Entries>>,
    /// Requests that came before it was granted.
    pub(crate) parked: Vec<Work>,
}

/// The shards that a lane takes over. All of it lives on the lane's thread.
#[derive(Default)]
pub(crate) struct Taking {
    wished: RefCell<BTreeMap<ShardId, Wish>>,
    incoming: RefCell<HashMap<ShardId, Incoming>>,
    deferred: RefCell<HashMap<ShardId, Deferred>>,
    is_running: Cell<bool>,
}

impl Taking {
    /// These are to be taken over, and no others.
    pub(crate) fn handle_wishes(&self, lane: &Rc<Lane>, wishes: Vec<Wish>) {
        let wished: BTreeMap<ShardId, Wish> = wishes.into_iter().map(|wish| (wish.transfer.shard, wish)).collect();
        let is_wished = |shard: &ShardId, incoming: &Incoming| {
            match wished.get(shard) {
                Some(wish) => wish.transfer.since == incoming.since,
                // One that is sealed is granted with the same breath.
                None => incoming.seal_asked_at.is_some_and(|at| at.elapsed() < SEALED_FOR),
            }
        };
        let mut all = self.incoming.borrow_mut();
        for (_, dropped) in all.extract_if(|shard, incoming| !is_wished(shard, incoming)) {
            dropped.parked.into_iter().for_each(|work| lane.node.misdirect(work));
        }
        drop(all);
        *self.wished.borrow_mut() = wished;
        if !self.is_running.replace(true) {
            actix_rt::spawn(run(Rc::clone(lane)));
        }
    }

    /// The database says that a key has changed: nothing that was or will be taken over of it is true.
    pub(crate) fn handle_notice(&self, lane: &Lane, shard: ShardId, key: &FlightKey) {
        let mut all = self.incoming.borrow_mut();
        let Some(incoming) = all.get_mut(&shard) else { return };
        incoming.entries[key.0].remove(&key.1);
        incoming.noticed.insert(key.clone());
        if incoming.noticed.len() > NOTICED_MAX {
            drop(all);
            self.forget(lane, shard);
        }
    }

    /// Has a request wait for its shard, if that is about to be granted; else gives it back.
    pub(crate) fn park(&self, lane: &Rc<Lane>, work: Work) -> Option<Work> {
        let mut all = self.incoming.borrow_mut();
        match all.get_mut(&work.shard).filter(|incoming| incoming.seal_asked_at.is_some()) {
            Some(incoming) if incoming.parked.len() < PARKED_MAX => {
                if incoming.parked.is_empty() {
                    let (lane, shard) = (Rc::clone(lane), work.shard);
                    actix_rt::spawn(async move {
                        sleep(PARKED_FOR).await;
                        lane.taking.unpark(&lane, shard);
                    });
                }
                incoming.parked.push(work);
                None
            }
            _ => Some(work),
        }
    }

    fn unpark(&self, lane: &Lane, shard: ShardId) {
        let parked = self.incoming.borrow_mut().get_mut(&shard).map(|incoming| std::mem::take(&mut incoming.parked));
        parked.into_iter().flatten().for_each(|work| lane.node.misdirect(work));
    }

    /// Has a grant wait for the answer to the seal of its shard, if that is still to come; whether it waits.
    pub(crate) fn defer(&self, serve: Serve) -> bool {
        let all = self.incoming.borrow();
        let is_awaited = all
            .get(&serve.shard)
            .is_some_and(|incoming| incoming.is_of(serve) && incoming.seal_asked_at.is_some() && !incoming.is_sealed);
        if is_awaited {
            self.deferred.borrow_mut().insert(serve.shard, Deferred { serve, said: Vec::new() });
        }
        is_awaited
    }

    /// The grant of this shard that has waited, if it was not released meanwhile.
    pub(crate) fn take_deferred(&self, shard: ShardId) -> Option<Deferred> {
        self.deferred.borrow_mut().remove(&shard)
    }

    /// A shard is granted: what it begins with.
    pub(crate) fn take(&self, lane: &Lane, serve: Serve) -> Beginning {
        let shard = serve.shard;
        self.wished.borrow_mut().remove(&shard);
        let metrics = &lane.node.metrics.handoff;
        let Some(incoming) = self.incoming.borrow_mut().remove(&shard) else {
            if matches!(serve.after, After::Sealed(_)) {
                metrics.cold.inc();
            }
            return Beginning::default();
        };
        let is_warm = incoming.is_of(serve) && incoming.is_sealed;
        let Incoming { entries, seal_asked_at, parked, mut page, began, .. } = incoming;
        if !is_warm {
            metrics.cold.inc();
            return Beginning { entries: None, parked };
        }
        let pause = seal_asked_at.map_or(Duration::ZERO, |at| at.elapsed());
        metrics.warm.inc();
        metrics.pause_seconds.observe(pause.as_secs_f64());
        metrics.seconds.observe(began.elapsed().as_secs_f64());
        page.duration_ms = millis(began.elapsed());
        page.pause_us = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        lane.node.note_move(page);
        Beginning { entries: Some(entries), parked }
    }

    /// Keeps what is said of the fence of a shard whose grant waits; gives back any other.
    pub(crate) fn keep(&self, says: FenceSays) -> Option<FenceSays> {
        match self.deferred.borrow_mut().get_mut(&says.shard) {
            Some(deferred) if deferred.serve.tenure == says.tenure => {
                deferred.said.push(says);
                None
            }
            _ => Some(says),
        }
    }

    /// A shard is not granted any more.
    pub(crate) fn handle_release(&self, lane: &Lane, shard: ShardId) {
        self.deferred.borrow_mut().remove(&shard);
        self.forget(lane, shard);
    }

    /// What was taken over of a shard is of no use.
    fn forget(&self, lane: &Lane, shard: ShardId) {
        let dropped = self.incoming.borrow_mut().remove(&shard);
        dropped.into_iter().flat_map(|incoming| incoming.parked).for_each(|work| lane.node.misdirect(work));
    }

    /// Room for what is to be pulled. False: more has changed meanwhile than is remembered.
    pub(crate) fn begin(&self, lane: &Lane, wish: &Wish) -> bool {
        let Transfer { shard, since, ref peer } = wish.transfer;
        let page = MovePage { shard, from: peer.clone(), entries: 0, bytes: 0, duration_ms: 0, pause_us: 0 };
        // The other one may hear later of what was heard here before.
        let Some(noticed) = lane.node.heard().of_shard(shard, Instant::now()) else { return false };
        let incoming = Incoming {
            since,
            number: 0,
            entries: lane.empty_entries(),
            noticed,
            seal_asked_at: None,
            is_sealed: false,
            parked: Vec::new(),
            page,
            began: Instant::now(),
        };
        self.incoming.borrow_mut().insert(shard, incoming);
        true
    }

    /// The other one is asked to seal the shard now: the number of the pull that it goes with. `None`: it is not to be taken
    /// over any more.
    pub(crate) fn begin_seal(&self, shard: ShardId, now: Instant) -> Option<u32> {
        let mut all = self.incoming.borrow_mut();
        let incoming = all.get_mut(&shard)?;
        incoming.seal_asked_at = Some(now);
        Some(incoming.number)
    }

    /// The seal was answered, or will not be.
    pub(crate) fn handle_sealed(&self, lane: &Lane, wish: &Wish, is_sealed: bool) {
        let Transfer { shard, since, .. } = wish.transfer;
        if let Some(incoming) = self.incoming.borrow_mut().get_mut(&shard) {
            incoming.is_sealed = is_sealed;
        }
        if self.deferred.borrow().contains_key(&shard) {
            lane.grant_deferred(shard);
        } else if is_sealed {
            lane.node.tell(Inbound::Taken(shard, since), || {});
        } else {
            self.give_up(lane, wish);
        }
    }

    /// A shard that was sealed for this node long ago was granted to another one.
    fn handle_not_granted(&self, lane: &Lane, wish: &Wish) {
        let is_of = |incoming: &Incoming| incoming.since == wish.transfer.since && incoming.is_sealed;
        if self.incoming.borrow().get(&wish.transfer.shard).is_some_and(is_of) {
            self.give_up(lane, wish);
        }
    }

    /// Whether it was not withdrawn meanwhile.
    fn wants(&self, wish: &Wish) -> bool {
        self.wished.borrow().get(&wish.transfer.shard) == Some(wish)
    }

    fn next(&self, n: usize) -> Vec<Wish> {
        let incoming = self.incoming.borrow();
        let is_new = |wish: &&Wish| !incoming.contains_key(&wish.transfer.shard);
        self.wished.borrow().values().filter(is_new).take(n).cloned().collect()
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

async fn run(lane: Rc<Lane>) {
    loop {
        let wishes = lane.taking.next(SEALED_TOGETHER);
        if wishes.is_empty() {
            lane.taking.is_running.set(false);
            return;
        }
        let mut pulled = Vec::new();
        for wish in wishes {
            if !lane.taking.wants(&wish) {
                continue;
            }
            if pull(&lane, &wish).await {
                pulled.push(wish);
            } else {
                lane.taking.give_up(&lane, &wish);
            }
        }
        join_all(pulled.iter().map(|wish| seal(&lane, wish))).await;
    }
}

impl Taking {
    /// It will begin with nothing; the one that gives it away finds out by itself.
    fn give_up(&self, lane: &Lane, wish: &Wish) {
        let shard = wish.transfer.shard;
        log::info!(shard = shard.0, from:% = wish.transfer.peer; "a shard could not be taken over");
        self.wished.borrow_mut().retain(|_, wished| wished != wish);
        self.forget(lane, shard);
    }

    /// Puts a chunk in; whether the rest is worth pulling. `None`: it is not to be taken over any more.
    fn put_in(&self, lane: &Lane, wish: &Wish, chunk: Chunk, asked_at: Instant) -> Option<bool> {
        let mut all = self.incoming.borrow_mut();
        let incoming = all.get_mut(&wish.transfer.shard).filter(|incoming| incoming.since == wish.transfer.since)?;
        for (region, key) in chunk.removed {
            if let Some(region) = lane.node.region(&region) {
                incoming.entries[region].remove(&key);
            }
        }
        let n_handed = chunk.entries.len();
        let mut n_kept = 0;
        for handed in chunk.entries {
            let Some(region) = lane.node.region(&handed.region) else { continue };
            let key = (region, handed.key.clone());
            if incoming.noticed.contains(&key) {
                continue;
            }
            let bytes = (handed.key.len() + handed.value.as_ref().map_or(0, bytes::Bytes::len)) as u64;
            if incoming.entries[region].take_over(&key.1, &entry(handed, asked_at)) {
                n_kept += 1;
                incoming.page.entries += 1;
                incoming.page.bytes += bytes;
            }
        }
        lane.node.metrics.handoff.entries.inc_by(n_kept);
        // One alone may be too large where others are not.
        Some(n_handed <= 1 || n_kept > 0)
    }
}

/// An entry of another node: it is at least as old as is said, and grew older on its way since it was asked for.
fn entry(handed: Handed, asked_at: Instant) -> Entry {
    let lifetime = Lifetime::of_handed(asked_at, handed.age, handed.fresh_for, handed.served_for);
    let content = handed.value.map(|value| (Etag::of(&value), value)).map(|(etag, value)| (value, etag));
    Entry { content, reason: LoadReason::Moved, lifetime }
}

async fn ask(lane: &Lane, wish: &Wish, body: RequestBody) -> Option<Result<Chunk, Duration>> {
    let upstream: &Upstream = &lane.upstream;
    let deadline = tokio::time::Instant::now() + CHUNK_TIMEOUT;
    match upstream.ask(&wish.address, Some(wish.transfer.shard), body, deadline).await {
        Ok(AnswerBody::Chunk(chunk)) => Some(Ok(*chunk)),
        Ok(AnswerBody::Failed(failure)) if failure.code == FailureCode::NotApplied => Some(Err(failure.retry_after)),
        Ok(other) => {
            log::debug!("a shard is not handed over: {other:?}");
            None
        }
        Err(error) => {
            log::debug!("a shard is not handed over: {error}");
            None
        }
    }
}

/// Pulls all that there is room for. Whether it worked.
async fn pull(lane: &Rc<Lane>, wish: &Wish) -> bool {
    let Transfer { shard, since, .. } = wish.transfer;
    if !lane.taking.begin(lane, wish) {
        return false;
    }
    let (mut cursor, mut number) = (0, 0);
    loop {
        let asked_at = Instant::now();
        let Some(Ok(chunk)) = ask(lane, wish, RequestBody::Pull(Pull { shard, since, cursor, number })).await else {
            return false;
        };
        let (next, bytes) = (
            chunk.next,
            chunk.entries.iter().map(|entry| entry.value.as_ref().map_or(0, bytes::Bytes::len)).sum::<usize>(),
        );
        number = chunk.number;
        if let Some(incoming) = lane.taking.incoming.borrow_mut().get_mut(&shard) {
            incoming.number = number;
        }
        match lane.taking.put_in(lane, wish, chunk, asked_at) {
            None => return false,
            Some(false) => return true,
            Some(true) => {}
        }
        let Some(next) = next else { return true };
        cursor = next;
        sleep(lane.node.pace(bytes)).await;
    }
}

/// Has the other one seal it, and puts the rest in.
async fn seal(lane: &Rc<Lane>, wish: &Wish) {
    let Transfer { shard, since, .. } = wish.transfer;
    for _ in 0..SEAL_TRIES_MAX {
        if !lane.taking.wants(wish) {
            break;
        }
        let asked_at = Instant::now();
        let Some(number) = lane.taking.begin_seal(shard, asked_at) else { break };
        match ask(lane, wish, RequestBody::Seal(Pull { shard, since, cursor: 0, number })).await {
            Some(Ok(chunk)) => {
                let is_whole = lane.taking.put_in(lane, wish, chunk, asked_at).is_some();
                lane.taking.handle_sealed(lane, wish, is_whole);
                let (lane, wish) = (Rc::clone(lane), wish.clone());
                actix_rt::spawn(async move {
                    sleep(SEALED_FOR).await;
                    lane.taking.handle_not_granted(&lane, &wish);
                });
                return;
            }
            Some(Err(pause)) => sleep(pause.max(TOO_EARLY)).await,
            None => break,
        }
    }
    lane.taking.handle_sealed(lane, wish, false);
}
