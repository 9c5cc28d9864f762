//! What all threads of a node share: who it is, what it serves, and whether it is ready.

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU16;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, RwLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use serde::Serialize;
use sharding::epoch::Epoch;
use sharding::fence::Numbers;
use sharding::id::{NShards, NodeId, ShardId};
use sharding::map::ShardMap;
use sharding::membership::{Incarnation, Transfer};
use sharding::times::Lease;
use sharding::wire::AnswerBody;
use tokio::sync::{Semaphore, watch};
use transport::names::Names;

use crate::announcing::{self, Announcing, Heard};
use crate::config::{Args, CacheConfig};
use crate::fencing::{FenceRequests, Fencing, Wanted};
use crate::lease::HeldLease;
use crate::loading::spending::Spending;
use crate::membership::{Inbound, Inbox, Place};
use crate::metrics::Metrics;
use crate::region::{self, Ledger, LedgerPage, Region, Started};
use crate::reply::Reply;
use crate::shard::Work;

/// Shards that were taken over, as far as people are told.
const MOVES_SHOWN_MAX: usize = 1024;

/// A node's shared state. The shell's parts hold it by `Arc`; only the map and the drain change after the start.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) name: NodeId,
    pub(crate) n_lanes: NonZeroU16,
    pub(crate) n_shards: NShards,
    /// Hash of what all nodes of the cluster must agree on.
    pub(crate) cluster: u64,
    incarnation: Incarnation,
    /// See [`sharding::times::Times::failover`].
    pub(crate) failover: Duration,
    /// Its own among the seeds.
    pub(crate) seed: Option<u16>,
    /// Where other nodes are found.
    pub(crate) names: Arc<Names>,
    pub(crate) regions: Arc<[Region]>,
    /// One for each database.
    pub(crate) ledgers: Vec<Ledger>,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Registry,
    /// Most unanswered requests of one connection.
    pub(crate) in_flight_max: usize,
    pub(crate) connections_max: usize,
    /// One permit for each notice on its way to a shard.
    pub(crate) notices: Arc<Semaphore>,
    /// One permit for each read past an owner.
    pub(crate) passing: Arc<Semaphore>,
    /// One permit for each connection: all of them are back when no connection is left.
    pub(crate) connections: Arc<Semaphore>,
    /// Rises, and never falls.
    pub(crate) stage: watch::Sender<Stage>,
    /// Shards that lanes serve at this moment.
    pub(crate) serving: Gauge,
    /// How many shards are being given and taken.
    on_their_way: [Gauge; 2],
    map: RwLock<Option<Arc<ShardMap>>>,
    /// What is served is served under this one.
    lease: HeldLease,
    /// For each database that is written to.
    fences: Vec<FenceRequests>,
    /// Those of its fences.
    fence_numbers: Mutex<Numbers>,
    /// Bytes of values that may yet be taken in to be written.
    pub(crate) writing_bytes: Arc<Semaphore>,
    /// For each shard the tenure under which it is served; 0: not at all. Always set before the lease that goes with it: a
    /// lane may hear of both later than a request, and must not serve what it no longer has under a lease that is new.
    tenures: Box<[AtomicU64]>,
    /// For each shard the tenure under which it is to be given away; 0: it is not.
    giving: Box<[AtomicU64]>,
    /// For each shard whether it is to be taken over.
    taking: Box<[AtomicBool]>,
    /// When the next owner of a shard has asked for something last, in milliseconds since the start.
    pulled_at: AtomicU64,
    /// Bytes a second that are taken over by one lane.
    handoff_rate: u64,
    /// Where the membership is told of what happens to shards.
    inbox: OnceLock<Inbox>,
    /// Notices of shards that are others'.
    heard: Mutex<Heard>,
    /// Shards that were taken over lately, the newest last.
    moves: Mutex<VecDeque<MovePage>>,
    n_owned: AtomicUsize,
    /// On a seed: whether its vote counts. Elsewhere always.
    votes: AtomicBool,
    coordinates: AtomicBool,
    /// It has served its share once.
    has_joined: AtomicBool,
    /// Other members' leases, as this node sees them while it coordinates.
    granted: ArcSwap<Vec<LeasePage>>,
    started: Instant,
}

/// How far a node is on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stage {
    /// Not at all.
    Serving,
    /// It gives its shards away, and goes on serving what it still has.
    Leaving,
    /// It owns nothing, takes no new request and answers those in flight.
    Draining,
}

impl Node {
    /// Starts the loaders; nothing is served yet. Gives the databases that are to be listened to as well, and those whose
    /// fences are to be raised.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(crate) fn start(
        args: &Args,
        n_lanes: NonZeroU16,
        config: &CacheConfig,
        place: &Place,
    ) -> std::io::Result<(Self, Vec<Announcing>, Vec<Fencing>)> {
        let mut registry = Registry::default();
        let metrics = Metrics::new(&mut registry);
        let n_seeds = place.ordinal.and_then(|_| u32::try_from(place.seeds.len()).ok());
        let lease = HeldLease::default();
        let started = region::start(config, &metrics, &place.times, n_seeds, &lease)?;
        let Started { regions, ledgers, announcing, fencing, fences } = started;
        let node = Self {
            name: args.name().clone(),
            n_lanes,
            n_shards: config.n_shards,
            cluster: sharding::hash::cluster(&place.seeds, config.n_shards, &place.times),
            seed: place.ordinal,
            incarnation: place.identity.incarnation,
            failover: place.times.failover(),
            names: Names::of_system(),
            regions,
            ledgers,
            serving: metrics.shards("serving"),
            on_their_way: ["giving", "taking"].map(|state| metrics.shards(state)),
            metrics,
            registry,
            in_flight_max: args.in_flight_max,
            connections_max: args.connections_max,
            notices: Arc::new(Semaphore::new(announcing::NOTICES_MAX)),
            passing: Arc::new(Semaphore::new(args.pass_through_in_flight_max)),
            connections: Arc::new(Semaphore::new(args.connections_max)),
            stage: watch::Sender::new(Stage::Serving),
            map: RwLock::new(None),
            lease,
            fences,
            fence_numbers: Mutex::new(Numbers::new(fastrand::u32(..))),
            writing_bytes: Arc::new(Semaphore::new(args.writing_bytes_max)),
            tenures: config.n_shards.shards().map(|_| AtomicU64::new(0)).collect(),
            giving: config.n_shards.shards().map(|_| AtomicU64::new(0)).collect(),
            taking: config.n_shards.shards().map(|_| AtomicBool::new(false)).collect(),
            pulled_at: AtomicU64::new(0),
            handoff_rate: args.handoff_bytes_per_second,
            inbox: OnceLock::new(),
            heard: Mutex::default(),
            moves: Mutex::default(),
            n_owned: AtomicUsize::new(0),
            votes: AtomicBool::new(place.ordinal.is_none()),
            coordinates: AtomicBool::new(false),
            has_joined: AtomicBool::new(false),
            granted: ArcSwap::default(),
            started: Instant::now(),
        };
        Ok((node, announcing, fencing))
    }

    /// Position of a region by its name.
    pub(crate) fn region(&self, name: &[u8]) -> Option<usize> {
        self.regions.iter().position(|region| region.name.as_str().as_bytes() == name)
    }

    /// Whether it serves a shard, or is about to.
    pub(crate) fn serves(&self, shard: ShardId) -> bool {
        self.tenures[shard.index()].load(Ordering::Acquire) != 0
    }

    /// Those of its databases that have a budget.
    pub(crate) fn spendings(&self) -> impl Iterator<Item = &Spending> {
        self.ledgers.iter().filter_map(|ledger| ledger.spending.as_ref())
    }

    /// The newest map.
    pub(crate) fn map(&self) -> Option<Arc<ShardMap>> {
        self.map.read().expect("nothing panics while it holds the lock").clone()
    }

    /// Requires: `map` is newer than any before; `Ownership` has compared them.
    pub(crate) fn publish(&self, map: Arc<ShardMap>) {
        let epoch = map.epoch();
        self.metrics.term.set(i64::try_from(epoch.term.counter).unwrap_or(i64::MAX));
        self.metrics.epoch.set(i64::try_from(epoch.seq).unwrap_or(i64::MAX));
        *self.map.write().expect("nothing panics while it holds the lock") = Some(map);
    }

    /// Answers that this node is not the owner.
    pub(crate) fn misdirect(&self, work: Work) {
        self.misdirect_reply(work.region, work.shard, work.reply);
    }

    /// The same to whoever has asked for something in this region.
    pub(crate) fn misdirect_reply(&self, region: usize, shard: ShardId, reply: Reply) {
        self.regions[region].metrics.misdirected.inc();
        let map = self.map();
        let epoch = map.as_ref().map_or_else(Epoch::default, |map| map.epoch());
        let owner = map.as_ref().and_then(|map| map.owner_of(shard)).map(|owner| owner.node.clone());
        reply.send(AnswerBody::Misdirected { epoch, owner });
    }

    /// Whether this node may act as an owner at this moment.
    pub(crate) fn holds_lease(&self) -> bool {
        self.lease.holds()
    }

    /// Whether it may act as the owner of a shard under this tenure at this moment.
    pub(crate) fn owns(&self, shard: ShardId, tenure: u64) -> bool {
        // First the lease: a tenure that ended with it is then seen to have.
        self.holds_lease() && self.is_of(shard, tenure)
    }

    /// Whether this is still the tenure of a shard.
    pub(crate) fn is_of(&self, shard: ShardId, tenure: u64) -> bool {
        self.tenures[shard.index()].load(Ordering::Acquire) == tenure
    }

    /// Requires: called once, by the node's start.
    pub(crate) fn set_inbox(&self, inbox: Inbox) {
        self.inbox.set(inbox).expect("the inbox is told once");
    }

    /// Tells this node's membership, however much it has to do; `then` comes when the news is in its inbox.
    pub(crate) fn tell(&self, news: Inbound, then: impl FnOnce() + 'static) {
        let Some(inbox) = self.inbox.get().cloned() else { return };
        actix_rt::spawn(async move {
            // It ends only with the node.
            if inbox.send(news).await.is_ok() {
                then();
            }
        });
    }

    /// What was announced of others' shards.
    pub(crate) fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().expect("nothing panics while it holds the lock")
    }

    /// Which shards are to be given away, and which are to be taken over.
    pub(crate) fn set_moves(&self, giving: &[Transfer], taking: &[Transfer]) {
        for (gauge, moves) in self.on_their_way.iter().zip([giving, taking]) {
            gauge.set(i64::try_from(moves.len()).unwrap_or(i64::MAX));
        }
        let given: BTreeSet<ShardId> = giving.iter().map(|transfer| transfer.shard).collect();
        let taken: BTreeSet<ShardId> = taking.iter().map(|transfer| transfer.shard).collect();
        for shard in self.n_shards.shards() {
            let tenure = if given.contains(&shard) { self.tenures[shard.index()].load(Ordering::Acquire) } else { 0 };
            self.giving[shard.index()].store(tenure, Ordering::Release);
            self.taking[shard.index()].store(taken.contains(&shard), Ordering::Release);
        }
    }

    /// Whether a shard is to be given away under this tenure.
    pub(crate) fn is_giving(&self, shard: ShardId, tenure: u64) -> bool {
        self.giving[shard.index()].load(Ordering::Acquire) == tenure
    }

    pub(crate) fn is_taking(&self, shard: ShardId) -> bool {
        self.taking[shard.index()].load(Ordering::Acquire)
    }

    /// The next owner of a shard has asked for something.
    pub(crate) fn note_pull(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.pulled_at.store(millis, Ordering::Relaxed);
    }

    /// For how long nobody has.
    pub(crate) fn since_pull(&self) -> Duration {
        self.started.elapsed().saturating_sub(Duration::from_millis(self.pulled_at.load(Ordering::Relaxed)))
    }

    /// How long a lane pauses after it has taken over so many bytes.
    pub(crate) fn pace(&self, bytes: usize) -> Duration {
        Duration::from_secs(1).mul_f64(bytes as f64 / self.handoff_rate as f64)
    }

    /// Tells people of a shard that was taken over.
    pub(crate) fn note_move(&self, page: MovePage) {
        let mut moves = self.moves.lock().expect("nothing panics while it holds the lock");
        if moves.len() >= MOVES_SHOWN_MAX {
            moves.pop_front();
        }
        moves.push_back(page);
    }

    /// How many databases are written to.
    pub(crate) fn n_fences(&self) -> usize {
        self.fences.len()
    }

    /// A number for fences, larger than any before.
    pub(crate) fn next_fence_number(&self) -> u64 {
        self.fence_numbers.lock().expect("nothing panics while it holds the lock").draw()
    }

    /// Has a set of fences raised in one database, in one operation.
    pub(crate) fn raise(&self, fence: usize, wanted: Vec<Wanted>) {
        // It ends only with the node.
        let _ = self.fences[fence].send(wanted);
    }

    /// The same in every database that is written to.
    pub(crate) fn raise_everywhere(&self, wanted: &[Wanted]) {
        (0..self.n_fences()).for_each(|fence| self.raise(fence, wanted.to_vec()));
    }

    /// Requires: called before the lease that goes with it is set.
    pub(crate) fn set_tenure(&self, shard: ShardId, tenure: u64) {
        self.tenures[shard.index()].store(tenure, Ordering::Release);
    }

    /// What is left of the lease.
    pub(crate) fn lease_left(&self) -> Duration {
        self.lease.left()
    }

    pub(crate) fn set_lease(&self, lease: Lease) {
        self.lease.set(lease);
    }

    pub(crate) fn set_owned(&self, n_owned: usize) {
        self.n_owned.store(n_owned, Ordering::Relaxed);
    }

    pub(crate) fn set_granted(&self, granted: Vec<LeasePage>) {
        if !granted.is_empty() || !self.granted.load().is_empty() {
            self.granted.store(Arc::new(granted));
        }
    }

    pub(crate) fn set_vote(&self, votes: bool, coordinates: bool) {
        self.votes.store(votes, Ordering::Relaxed);
        if self.coordinates.swap(coordinates, Ordering::Relaxed) != coordinates {
            log::info!("{}", if coordinates { "coordinates from now on" } else { "coordinates no more" });
            self.metrics.coordinator.set(i64::from(coordinates));
        }
    }

    /// The next stage on the way out; there is no way back.
    pub(crate) fn reach(&self, stage: Stage) {
        self.stage.send_if_modified(|now| std::mem::replace(now, stage.max(*now)) < stage);
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.borrow()
    }

    /// Why the node is not ready; `None`: it is. Once it has joined, never because of what another node does: whoever is
    /// cut from its lease still passes owners by, and has a router beside it.
    pub(crate) fn is_unready(&self) -> Option<&'static str> {
        if self.stage() == Stage::Serving && self.has_joined.load(Ordering::Relaxed) && self.votes() {
            return None;
        }
        let waits_for = self.waits_for();
        self.has_joined.fetch_or(waits_for.is_none(), Ordering::Relaxed);
        waits_for
    }

    fn votes(&self) -> bool {
        self.votes.load(Ordering::Relaxed)
    }

    /// What the node waits for before it serves all its shards; `None`: it does.
    fn waits_for(&self) -> Option<&'static str> {
        if self.stage() != Stage::Serving {
            return Some("its end: it drains");
        }
        if !self.votes() {
            return Some("its vote: a seed is silent for a while after its start");
        }
        if !self.holds_lease() {
            return Some("its lease: no coordinator answers");
        }
        let Some(map) = self.map() else { return Some("the shard map") };
        let n_owned = self.n_owned.load(Ordering::Relaxed);
        let has_none = n_owned == 0 && map.members().len() <= map.owners().len();
        let serves_all = usize::try_from(self.serving.get()) == Ok(n_owned);
        (has_none || !serves_all).then_some("its shards")
    }

    /// What the node says of itself.
    pub(crate) fn page(&self) -> NodePage {
        let regions = self.regions.iter().map(|region| {
            let counted = &region.metrics;
            RegionPage {
                region: region.name.as_str().to_owned(),
                entries: counted.entries.entries.get(),
                entry_bytes: counted.entries.bytes.get(),
                max_bytes: region.max_bytes,
                hits: counted.hit.get() + counted.stale.get(),
                misses: counted.miss.get() + counted.joined.get(),
            }
        });
        NodePage {
            node: self.name.clone(),
            waits_for: self.waits_for(),
            incarnation: format!("{:016x}", self.incarnation.0),
            coordinates: self.coordinates.load(Ordering::Relaxed),
            granted: self.granted.load().to_vec(),
            lease_left_ms: u64::try_from(self.lease_left().as_millis()).unwrap_or(u64::MAX),
            epoch: self.map().map(|map| map.epoch()),
            n_lanes: self.n_lanes.get(),
            shards_serving: self.serving.get(),
            uptime_seconds: self.started.elapsed().as_secs(),
            regions: regions.collect(),
            databases: self.ledgers.iter().map(Ledger::page).collect(),
            moves: self.moves.lock().expect("nothing panics while it holds the lock").iter().cloned().collect(),
        }
    }
}

/// A node on `/-/cluster`.
#[derive(Debug, Serialize)]
pub(crate) struct NodePage {
    node: NodeId,
    /// Nothing: it is ready.
    waits_for: Option<&'static str>,
    /// Drawn at its start.
    incarnation: String,
    coordinates: bool,
    /// Whom it has granted leases, while it coordinates.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    granted: Vec<LeasePage>,
    lease_left_ms: u64,
    epoch: Option<Epoch>,
    n_lanes: u16,
    shards_serving: i64,
    uptime_seconds: u64,
    regions: Vec<RegionPage>,
    /// What was spent on each, and why.
    databases: Vec<LedgerPage>,
    /// Shards that it has taken over, the newest last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    moves: Vec<MovePage>,
}

/// A shard that was taken over from another node.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct MovePage {
    pub(crate) shard: ShardId,
    pub(crate) from: NodeId,
    pub(crate) entries: u64,
    pub(crate) bytes: u64,
    /// From the first chunk to the grant.
    pub(crate) duration_ms: u64,
    /// For so long nobody served it.
    pub(crate) pause_us: u64,
}

/// A lease that the coordinator has granted.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LeasePage {
    pub(crate) node: NodeId,
    pub(crate) incarnation: String,
    /// Until it has surely run out.
    pub(crate) bound_left_ms: u64,
    /// What is asked of the node's shards, as measured: 1000 is an even share.
    pub(crate) load_per_mille: u64,
    /// Shards that it has, and those of them that are to be given to others.
    pub(crate) n_owned: usize,
    pub(crate) n_moving: usize,
}

#[derive(Debug, Serialize)]
struct RegionPage {
    region: String,
    entries: i64,
    entry_bytes: i64,
    max_bytes: u64,
    hits: u64,
    misses: u64,
}
