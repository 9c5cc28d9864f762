//! The shell around [`Ownership`] and [`Seed`]: sockets, clocks and timers. Every decision is theirs.
//!
//! A node keeps one connection to each seed ([`links`]); a seed answers on the connections that nodes have opened. What
//! is lost on the way is not sent again: the next period brings its successor.

mod finding;
pub(crate) mod links;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use futures_util::future::join_all;
use sharding::budget::Budgeted;
use sharding::coordinator::Standing;
use sharding::epoch::Epoch;
use sharding::id::{NodeId, ShardId};
use sharding::load::{Meters, ShardCount};
use sharding::map::Member;
use sharding::membership::{Incarnation, Reply, Transfer};
use sharding::ownership::{Effect, Identity, Ownership};
use sharding::proposer::Proposal;
use sharding::seed::{Output, Seed};
use sharding::times::{Now, Times};
use sharding::wire::Control;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::clock;
use crate::fencing::Wanted;
use crate::loading::spending::Spending;
use crate::node::{LeasePage, Node, Stage};
use crate::shard::Resize;
use crate::shard_region::{Count, Release, Serve, ShardRegion, Take};
use crate::taking::Wish;
pub(crate) use links::serve;

/// Messages that may wait on their way in, and on their way to one peer. One more is dropped, as on a bad link.
const QUEUE_MAX: usize = 256;
/// A shard that nobody has pulled for so long is given away without what is in memory of it.
const NOT_PULLED_MAX: Duration = Duration::from_secs(5);
/// What people see of the leases that were granted is at most so old.
const PAGE_PERIOD: Duration = Duration::from_millis(200);
/// How often what is asked of each shard is counted.
const COUNT_PERIOD: Duration = Duration::from_secs(1);
/// Most lives that a seed keeps a way to answer for.
const NODES_MAX: usize = 4096;

/// A message, and where it came from.
#[derive(Debug)]
pub(crate) enum Inbound {
    /// On this node's connection to a seed.
    FromSeed(u16, Control),
    /// On a connection that a node has opened; the answer goes back there.
    FromNode(Control, mpsc::Sender<Control>),
    /// This node drains.
    Leave,
    /// There is no time left to hand anything over, or to wait for others that do.
    Hurry,
    /// A shard is sealed; since when it was ours.
    Sealed(ShardId, Epoch),
    /// A shard has been taken over whole; since when it was the other's.
    Taken(ShardId, Epoch),
    /// A database knows a fence of a shard since this epoch, which is above ours.
    Fence(ShardId, Epoch),
    /// What has been counted of each shard that is served.
    Counted(Vec<(ShardId, ShardCount)>),
}

/// Where messages for [`Membership`] are handed in.
pub(crate) type Inbox = mpsc::Sender<Inbound>;

/// What a node is to its cluster.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The seeds in their order.
    pub(crate) seeds: Vec<Member>,
    /// Its own ordinal among them.
    pub(crate) ordinal: Option<u16>,
    pub(crate) identity: Identity,
    pub(crate) times: Times,
    /// The budgets that it lends when it coordinates.
    pub(crate) budgeted: Vec<Budgeted>,
}

/// Asks the lanes what they have counted, for as long as there is a [`Membership`] to hear of it.
async fn count(lanes: Vec<Addr<ShardRegion>>, inbox: Inbox) {
    let mut ticks = tokio::time::interval(COUNT_PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A lane that has ended has ended with its node.
        let counted = join_all(lanes.iter().map(|lane| lane.send(Count))).await;
        if inbox.send(Inbound::Counted(counted.into_iter().flatten().flatten().collect())).await.is_err() {
            return;
        }
    }
}

/// One for each node, on its main thread.
pub(crate) struct Membership {
    node: Arc<Node>,
    lanes: Vec<Addr<ShardRegion>>,
    me: Incarnation,
    seeds: Vec<Member>,
    ordinal: Option<u16>,
    ownership: Ownership,
    seed: Option<Seed>,
    /// The way to each seed; none to ourselves.
    links: Vec<Option<mpsc::Sender<Control>>>,
    /// The way back to each node that has asked.
    nodes: HashMap<Incarnation, mpsc::Sender<Control>>,
    /// When people are told of the leases again.
    next_page: Duration,
    n_owned: usize,
    /// Tenures that have begun: the last one's number.
    n_tenures: u64,
    /// When what is on its way was another last.
    moved_at: Instant,
    /// Nothing is handed over any more.
    is_hurried: bool,
    /// Shards on their way to this node.
    n_taking: usize,
    /// Shards that have just been acquired, whose fences are to be raised.
    acquired: Vec<Wanted>,
    /// What is asked of each shard.
    meters: Meters,
}

impl Membership {
    /// Starts the connections to the seeds. Messages come in by `inbox` too.
    pub(crate) fn new(node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>, place: Place, inbox: &Inbox) -> Self {
        let (now, times) = (clock::now(), place.times);
        let n_seeds = u16::try_from(place.seeds.len()).expect("a handful of seeds");
        let life = place.identity.incarnation;
        let seed = place
            .ordinal
            .map(|ordinal| Seed::new(now, times, node.n_shards, place.budgeted.clone(), (ordinal, n_seeds), life.0));
        let link = |(ordinal, seed): (u16, &Member)| {
            (Some(ordinal) != place.ordinal).then(|| links::start(ordinal, &seed.data, &node, inbox.clone()))
        };
        let links = (0..).zip(&place.seeds).map(link).collect();
        let ownership = Ownership::new(now, place.identity, node.n_shards, times);
        actix_rt::spawn(finding::look_around(Arc::clone(&node), place.seeds.clone()));
        actix_rt::spawn(count(lanes.clone(), inbox.clone()));
        let (ordinal, nodes) = (place.ordinal, HashMap::new());
        Self {
            node,
            lanes,
            me: life,
            seeds: place.seeds,
            ordinal,
            ownership,
            seed,
            links,
            nodes,
            next_page: now.boot,
            n_owned: 0,
            n_tenures: 0,
            moved_at: Instant::now(),
            is_hurried: false,
            n_taking: 0,
            acquired: Vec::new(),
            meters: Meters::default(),
        }
    }

    /// Takes part until it has left, after it was asked to: then a seed's lease is given back. Or until the time for that is over.
    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Inbound>) {
        loop {
            let wake = self.drive(clock::now());
            if self.node.stage() == Stage::Draining {
                return;
            }
            let pause = wake.saturating_sub(clock::now().boot);
            // Either way: what is due is done.
            if let Ok(Some(inbound)) = tokio::time::timeout(pause, inbox.recv()).await {
                self.take(inbound);
                while let Ok(inbound) = inbox.try_recv() {
                    self.take(inbound);
                }
            }
        }
    }

    fn take(&mut self, inbound: Inbound) {
        let now = clock::now();
        match (inbound, &mut self.seed) {
            (Inbound::Leave, _) => self.ownership.handle_leave(now),
            (Inbound::Hurry, seed) => {
                seed.iter_mut().for_each(Seed::handle_hurry);
                self.is_hurried = true;
                self.hurry(now);
            }
            (Inbound::Sealed(shard, since), _) => self.ownership.handle_sealed(now, shard, since),
            (Inbound::Taken(shard, since), _) => self.ownership.handle_taken(now, shard, since),
            (Inbound::Fence(shard, since), _) => self.ownership.handle_fence(now, shard, since),
            (Inbound::Counted(counts), _) => self.ownership.handle_loads(self.meters.measure(now.boot, counts)),
            (Inbound::FromSeed(from, Control::Vote(vote)), Some(seed)) => seed.handle_vote(now, from, vote),
            (Inbound::FromSeed(_, Control::Reply(reply)), _) => self.ownership.handle_reply(now, &reply),
            (Inbound::FromNode(Control::Proposal(proposal), back), Some(seed)) => {
                if let Some(vote) = seed.handle_proposal(now, proposal) {
                    // A full queue is a bad link.
                    let _ = back.try_send(Control::Vote(vote));
                }
            }
            (Inbound::FromNode(Control::Renew(renew), back), Some(seed)) => {
                finding::meet(&self.node, &self.seeds, &renew.member);
                if self.nodes.len() >= NODES_MAX {
                    self.nodes.retain(|_, way| !way.is_closed());
                }
                if self.nodes.len() < NODES_MAX || self.nodes.contains_key(&renew.incarnation) {
                    self.nodes.insert(renew.incarnation, back);
                }
                seed.handle_renew(now, renew);
            }
            // Nobody says these to whom they do not concern.
            (Inbound::FromSeed(..) | Inbound::FromNode(..), _) => {}
        }
    }

    /// What is still to be given goes cold.
    fn hurry(&mut self, now: Now) {
        let n_cold = self.ownership.handle_hurry(now);
        if n_cold > 0 {
            log::warn!(n_cold; "shards are given away without what is in memory of them");
            self.node.metrics.handoff.given_up.inc_by(n_cold as u64);
        }
    }

    /// Does all that is due; gives the next wake-up.
    fn drive(&mut self, now: Now) -> Duration {
        let mut wake = self.ownership.next_renew();
        if let Some(seed) = &mut self.seed {
            wake = wake.min(seed.poll(now));
        }
        // First: a share that was taken back must be known to its loader before it is said to be free.
        self.perform_all(now);
        // What is to be given is known to be since then.
        let is_late = self.is_hurried || self.moved_at.elapsed().min(self.node.since_pull()) > NOT_PULLED_MAX;
        if is_late && self.ownership.n_giving() > 0 {
            self.hurry(now);
        }
        let node = Arc::clone(&self.node);
        let used = || node.spendings().map(Spending::used).collect();
        if let Some(renew) = self.ownership.poll_renew(now, used) {
            wake = wake.min(self.ownership.next_renew());
            self.to_seeds(&Control::Renew(renew.clone()));
            if let Some(seed) = &mut self.seed {
                seed.handle_renew(now, renew);
            }
        }
        self.send(now);
        self.resize();
        self.perform_all(now);
        if let Some(seed) = &mut self.seed {
            self.node.set_vote(seed.votes(now), seed.term(now).is_some());
        }
        self.show_granted(now);
        // What was answered to ourselves may have made something due.
        wake.min(self.ownership.next_renew())
    }

    /// Tells people whom this node has granted leases, if it coordinates.
    fn show_granted(&mut self, now: Now) {
        let Some(seed) = self.seed.as_mut().filter(|_| self.next_page <= now.boot) else { return };
        self.next_page = now.boot + PAGE_PERIOD;
        let granted = seed.coordinator(now).map(|coordinator| {
            let page = |of: Standing<'_>| LeasePage {
                node: of.node.clone(),
                incarnation: format!("{:016x}", of.life.0),
                bound_left_ms: u64::try_from(of.bound_left.as_millis()).unwrap_or(u64::MAX),
                load_per_mille: of.load_per_mille,
                n_owned: of.n_owned,
                n_moving: of.n_moving,
            };
            coordinator.standings(now).into_iter().map(page).collect()
        });
        self.node.set_granted(granted.unwrap_or_default());
    }

    /// Sends whatever the seed's part has to say; to ourselves without a socket.
    fn send(&mut self, now: Now) {
        while let Some(output) = self.seed.as_mut().and_then(Seed::poll_output) {
            match output {
                Output::Reply(to, reply) if to == self.me => self.ownership.handle_reply(now, &reply),
                Output::Reply(to, reply) => self.to_node(to, reply),
                Output::Proposal(proposal) => self.propose(now, proposal),
            }
        }
    }

    fn propose(&mut self, now: Now, proposal: Proposal) {
        self.to_seeds(&Control::Proposal(proposal));
        let (Some(seed), Some(ordinal)) = (&mut self.seed, self.ordinal) else { return };
        if let Some(vote) = seed.handle_proposal(now, proposal) {
            seed.handle_vote(now, ordinal, vote);
        }
    }

    fn to_seeds(&self, control: &Control) {
        for link in self.links.iter().flatten() {
            // A full queue is a bad link.
            let _ = link.try_send(control.clone());
        }
    }

    fn to_node(&self, to: Incarnation, reply: Reply) {
        if let Some(way) = self.nodes.get(&to) {
            // As above.
            let _ = way.try_send(Control::Reply(reply));
        }
    }

    fn perform_all(&mut self, now: Now) {
        while let Some(effect) = self.ownership.poll_effect() {
            self.perform(now, effect);
        }
        let acquired = std::mem::take(&mut self.acquired);
        if !acquired.is_empty() {
            self.node.raise_everywhere(&acquired);
        }
    }

    fn perform(&mut self, now: Now, effect: Effect) {
        let lane_of = |shard: ShardId| &self.lanes[usize::from(shard.lane(self.node.n_lanes))];
        match effect {
            Effect::Publish(map) => {
                log::info!(epoch:% = map.epoch(), members = map.members().len(); "a new shard map");
                map.members().iter().for_each(|member| finding::meet(&self.node, &self.seeds, member));
                self.node.publish(map);
            }
            Effect::Lease(lease) => self.node.set_lease(lease),
            Effect::Shares(shares, lease) => {
                for spending in self.node.spendings() {
                    let share = shares.iter().find(|share| share.database == *spending.database());
                    spending.handle_share(share.map_or(0, |share| share.slots), lease);
                }
            }
            Effect::Serve { shard, since, after } => {
                self.n_tenures += 1;
                let (tenure, n) = (self.n_tenures, self.node.next_fence_number());
                self.node.set_tenure(shard, tenure);
                lane_of(shard).do_send(Serve { shard, since, after, tenure, n });
                self.acquired.push(Wanted { shard, tenure, since, n });
            }
            Effect::Release { shard } => {
                self.node.set_tenure(shard, 0);
                lane_of(shard).do_send(Release { shard });
            }
            Effect::Moves { giving, taking } => {
                self.moved_at = Instant::now();
                self.n_taking = taking.len();
                self.node.set_moves(&giving, &taking);
                self.take_over(taking);
            }
            Effect::Left => {
                log::info!("left: nothing is owned any more");
                if let Some(seed) = &mut self.seed {
                    seed.handle_leave();
                }
                self.send(now);
                self.node.reach(Stage::Draining);
            }
        }
    }

    /// Tells each lane what is on its way to it.
    fn take_over(&self, taking: Vec<Transfer>) {
        let map = self.ownership.map();
        let address = |node: &NodeId| {
            let member = map?.members().iter().find(|member| member.node == *node)?;
            Some(member.data.clone())
        };
        let mut of_lane: Vec<Vec<Wish>> = self.lanes.iter().map(|_| Vec::new()).collect();
        for transfer in taking {
            if let Some(address) = address(&transfer.peer) {
                of_lane[usize::from(transfer.shard.lane(self.node.n_lanes))].push(Wish { transfer, address });
            }
        }
        self.lanes.iter().zip(of_lane).for_each(|(lane, wishes)| lane.do_send(Take(wishes)));
    }

    /// Memory is split over the shards that are owned, and those that will be.
    fn resize(&mut self) {
        let n_held = self.ownership.held().count();
        self.node.set_owned(n_held);
        let n_owned = n_held + self.n_taking;
        if n_owned != self.n_owned {
            log::info!(n_owned; "owns another number of shards");
            self.n_owned = n_owned;
            self.lanes.iter().for_each(|lane| lane.do_send(Resize { n_owned }));
        }
    }
}
