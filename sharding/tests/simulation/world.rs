//! Virtual processes, clocks and links.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use sharding::budget::{Budget, BudgetUse, Budgeted, Floor, Purse};
use sharding::epoch::{Epoch, Term};
use sharding::fence::Numbers;
use sharding::id::{DatabaseName, NShards, NodeId};
use sharding::map::{Member, ShardMap};
use sharding::membership::Incarnation;
use sharding::ownership::{Identity, Ownership};
use sharding::seed::{Output, Seed};
use sharding::times::{Now, Times};

use crate::clients::Client;
use crate::database::Database;
use crate::events::{Event, Message, Weather, What};
use crate::history::History;
use crate::invariants;
use crate::machine::{Clocks, Life, Machine};
use crate::serving::{Serving, Turn};
use crate::traffic::Traffic;

/// Few, so that each is contended; at most 64, the bits of a mask.
pub(crate) const N_SHARDS: u16 = 16;
/// More than one, so that a fence is raised because of one key while another is written; the last one is changed behind
/// the cache's back as well.
pub(crate) const KEYS_PER_SHARD: usize = 3;
pub(crate) const N_KEYS: usize = N_SHARDS as usize * KEYS_PER_SHARD;
/// Operations a second that the whole cluster may spend; every node would spend more.
pub(crate) const BUDGET: Budget = Budget(NonZeroU32::new(20).expect("some"));
/// Within this time the database has seen an operation that was sent.
const OPERATION_TIMEOUT: Duration = Duration::from_millis(700);
/// A process that nothing wakes looks at its clock so often.
const IDLE: Duration = Duration::from_millis(100);

fn shards() -> NShards {
    NShards::new(N_SHARDS).expect("some")
}

pub(crate) fn budgeted() -> Budgeted {
    let database = DatabaseName::parse("main").expect("a name");
    Budgeted { database, budget: BUDGET, operation_timeout: OPERATION_TIMEOUT }
}

pub(crate) struct World {
    pub(crate) real: Duration,
    pub(crate) chance: fastrand::Rng,
    pub(crate) machines: Vec<Machine>,
    pub(crate) n_seeds: usize,
    pub(crate) times: Times,
    pub(crate) weather: Weather,
    pub(crate) traffic: Traffic,
    /// Nodes report loads: every second others, and of no connection with what clients do.
    pub(crate) has_loads: bool,
    /// Links that carry nothing, one way.
    pub(crate) cut: HashSet<(usize, usize)>,
    /// Routers, by their clients, that cannot reach a node.
    pub(crate) cut_off: BTreeSet<(usize, usize)>,
    pub(crate) database: Database,
    pub(crate) clients: Vec<Client>,
    pub(crate) n_requests: u64,
    /// They begin nothing more.
    pub(crate) clients_rest: bool,
    /// For each key the place of the last write that was acknowledged.
    pub(crate) acknowledged: [u64; N_KEYS],
    /// What was found at a place where nothing can be returned.
    pub(crate) violation: Option<String>,
    pub(crate) history: History,
    /// When the database sees how many operations, those included that are on their way.
    pub(crate) operations: BTreeMap<Duration, u32>,
    /// What each life has seen last, to see that it never goes back.
    pub(crate) seen: HashMap<Incarnation, Epoch>,
    pub(crate) highest_term: Term,
    /// Every map that a node has had.
    pub(crate) maps: BTreeMap<Epoch, Arc<ShardMap>>,
    /// Where each life was.
    addresses: HashMap<Incarnation, usize>,
    events: BinaryHeap<Reverse<Event>>,
    n_events: u64,
}

impl World {
    pub(crate) fn new(seed: u64, n_seeds: usize, n_nodes: usize, times: Times) -> Self {
        Self::with_traffic(seed, n_seeds, n_nodes, times, Traffic::NONE)
    }

    pub(crate) fn with_traffic(seed: u64, n_seeds: usize, n_nodes: usize, times: Times, traffic: Traffic) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed);
        let machine = |chance: &mut fastrand::Rng| Machine {
            life: None,
            clocks: Clocks {
                // Any two differ by less than 2 %.
                drift_ppm: chance.i64(-9_500..9_500),
                boot_at: Duration::from_millis(chance.u64(0..100_000)),
                real_at: Duration::ZERO,
                wall_offset: chance.i64(-2_000_000..2_000_000),
            },
            stopped_until: Duration::ZERO,
            backlog: Vec::new(),
            identity: chance.u64(..),
        };
        let machines = (0..n_nodes).map(|_| machine(&mut chance)).collect();
        let mut world = Self {
            real: Duration::ZERO,
            chance,
            machines,
            n_seeds,
            times,
            weather: Weather::default(),
            traffic,
            has_loads: false,
            cut: HashSet::new(),
            cut_off: BTreeSet::new(),
            database: Database::new(traffic.looks_early),
            clients: Vec::new(),
            n_requests: 0,
            clients_rest: false,
            acknowledged: [0; N_KEYS],
            violation: None,
            history: History::new(),
            operations: BTreeMap::new(),
            seen: HashMap::new(),
            highest_term: Term::default(),
            maps: BTreeMap::new(),
            addresses: HashMap::new(),
            events: BinaryHeap::new(),
            n_events: 0,
        };
        for node in 0..n_nodes {
            world.start(node);
        }
        world.start_traffic();
        world
    }

    pub(crate) fn now(&self, node: usize) -> Now {
        self.machines[node].clocks.now(self.real)
    }

    /// Starts a process anew; it remembers nothing.
    pub(crate) fn start(&mut self, node: usize) {
        let clocks = &mut self.machines[node].clocks;
        if clocks.real_at > self.real {
            // It was frozen: the rest of that is over.
            clocks.wall_offset -= (clocks.real_at - self.real).as_micros() as i64;
            clocks.real_at = self.real;
        }
        let now = self.now(node);
        let life = self.chance.u64(..);
        let numbers = Numbers::new(self.chance.u32(..));
        self.addresses.insert(Incarnation(life), node);
        let is_seed = node < self.n_seeds;
        let name = NodeId::parse(&format!("pod-{node}")).expect("a name");
        let me = Identity {
            member: Member { node: name, data: format!("h:{}", node + 1) },
            incarnation: Incarnation(life),
            identity: self.machines[node].identity.to_string(),
        };
        let n_seeds = u16::try_from(self.n_seeds).expect("few");
        let seed = u16::try_from(node).expect("few");
        let floor = if is_seed { BUDGET.floor(n_seeds.into()) } else { Floor::NONE };
        self.machines[node].life = Some(Life {
            incarnation: Incarnation(life),
            seed: is_seed.then(|| Seed::new(now, self.times, shards(), vec![budgeted()], (seed, n_seeds), life)),
            ownership: Ownership::new(now, me, shards(), self.times),
            serving: Serving::new(self.traffic.manners, numbers, life),
            mask: 0,
            is_leaving: false,
            is_hurried: false,
            has_left: false,
            moved_at: now.boot,
            measured_at: now.boot,
            next_wake: Duration::MAX,
            purse: Purse::new(now, floor, OPERATION_TIMEOUT, &self.times),
            in_flight: Vec::new(),
        });
        self.machines[node].stopped_until = Duration::ZERO;
        self.machines[node].backlog.clear();
        self.drive(node);
    }

    pub(crate) fn crash(&mut self, node: usize) {
        self.machines[node].life = None;
    }

    /// A crash after which the pod comes up elsewhere: nothing proves the old process dead.
    pub(crate) fn crash_and_move(&mut self, node: usize) {
        self.crash(node);
        self.machines[node].identity = self.chance.u64(..);
    }

    /// The process stands still; its clocks run on.
    pub(crate) fn pause(&mut self, node: usize, time: Duration) {
        self.machines[node].stopped_until = self.real + time;
        self.push(self.real + time, node, What::Wake);
    }

    /// The machine stands still, and its boot clock with it; the wall clock is right again afterwards.
    pub(crate) fn freeze(&mut self, node: usize, time: Duration) {
        let now = self.now(node);
        let clocks = &mut self.machines[node].clocks;
        clocks.boot_at = now.boot;
        clocks.real_at = self.real + time;
        clocks.wall_offset += time.as_micros() as i64;
        self.pause(node, time);
    }

    /// Somebody sets the wall clock.
    pub(crate) fn set_wall(&mut self, node: usize, by_micros: i64) {
        self.machines[node].clocks.wall_offset += by_micros;
    }

    pub(crate) fn is_running(&self, node: usize) -> bool {
        self.machines[node].life.is_some() && self.machines[node].stopped_until <= self.real
    }

    /// Whether a frozen machine's clock may be asked at all.
    pub(crate) fn is_frozen(&self, node: usize) -> bool {
        self.machines[node].clocks.real_at > self.real
    }

    pub(crate) fn push(&mut self, at: Duration, node: usize, what: What) {
        self.n_events += 1;
        self.events.push(Reverse(Event { at, number: self.n_events, node, what }));
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        if from == to {
            self.push(self.real, to, What::Deliver { from, message: Box::new(message) });
            return;
        }
        if self.cut.contains(&(from, to)) || self.is_lost() {
            return;
        }
        let copies = if self.chance.u32(..1000) < self.weather.duplicates { 2 } else { 1 };
        for _ in 0..copies {
            let at = self.real + self.delay();
            self.push(at, to, What::Deliver { from, message: Box::new(message.clone()) });
        }
    }

    pub(crate) fn is_lost(&mut self) -> bool {
        self.chance.u32(..1000) < self.weather.loss
    }

    /// How long a message takes.
    pub(crate) fn delay(&mut self) -> Duration {
        let is_slow = self.chance.u32(..1000) < self.weather.slow;
        Duration::from_micros(if is_slow { self.chance.u64(1_000..4_000_000) } else { self.chance.u64(50..4_000) })
    }

    /// Runs until that time; checks every invariant after every event.
    pub(crate) fn run_until(&mut self, end: Duration) -> Result<(), String> {
        while let Some(Reverse(event)) = self.events.peek()
            && event.at <= end
        {
            if let Some(violation) = self.violation.take() {
                return Err(format!("at {:?}: {violation}", self.real));
            }
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.real = self.real.max(event.at);
            let node = event.node;
            match event.what {
                What::Client(event) => {
                    self.handle_client_event(node, event);
                    continue;
                }
                What::Change => {
                    self.change();
                    continue;
                }
                What::Land { incarnation, operation, sent } => {
                    self.land(node, incarnation, operation, sent);
                    continue;
                }
                _ if self.machines[node].life.is_none() => continue,
                What::Deliver { from, message } if !self.is_running(node) => {
                    self.machines[node].backlog.push((from, *message));
                    continue;
                }
                What::Deliver { from, message } => {
                    let is_data =
                        matches!(*message, Message::Request { .. } | Message::Landed { .. } | Message::Notice { .. });
                    self.deliver(node, from, *message);
                    let has_sealed = self.machines[node].life.as_ref().is_some_and(|life| life.serving.has_sealed());
                    if is_data && !has_sealed {
                        continue;
                    }
                }
                What::Wake if !self.is_running(node) => continue,
                What::Wake => {
                    for (from, message) in std::mem::take(&mut self.machines[node].backlog) {
                        self.deliver(node, from, message);
                    }
                    if let Some(life) = &mut self.machines[node].life
                        && life.next_wake <= self.real
                    {
                        life.next_wake = Duration::MAX;
                    }
                }
            }
            self.drive(node);
            (0..self.machines.len()).for_each(|node| self.spend(node));
            invariants::check(self).map_err(|violation| format!("at {:?}: {violation}", self.real))?;
        }
        self.real = self.real.max(end);
        Ok(())
    }

    fn deliver(&mut self, node: usize, from: usize, message: Message) {
        let now = self.now(node);
        let Some(life) = &mut self.machines[node].life else { return };
        match (message, &mut life.seed) {
            (Message::Proposal(proposal), Some(seed)) => {
                if let Some(vote) = seed.handle_proposal(now, proposal) {
                    self.send(node, from, Message::Vote(vote));
                }
            }
            (Message::Vote(vote), Some(seed)) => seed.handle_vote(now, u16::try_from(from).expect("few"), vote),
            (Message::Renew(renew), Some(seed)) => seed.handle_renew(now, renew),
            (Message::Reply(reply), _) => {
                life.ownership.handle_reply(now, &reply);
                life.perform(now);
            }
            (Message::Request { asker, key, ask }, _) => {
                let turn = Turn { now, ownership: &mut life.ownership, chance: &mut self.chance };
                life.serving.handle_request(turn, asker, key, ask);
                self.flush(node);
            }
            (Message::Notice { key, place }, _) => life.serving.handle_notice(now, key, place),
            (Message::Landed { incarnation, operation, answer }, _) => {
                if life.incarnation == incarnation {
                    let turn = Turn { now, ownership: &mut life.ownership, chance: &mut self.chance };
                    life.serving.handle_landed(turn, operation, answer);
                    life.perform(now);
                    self.flush(node);
                }
            }
            (Message::Want { to, wanted }, _) => {
                let mut turn = Turn { now, ownership: &mut life.ownership, chance: &mut self.chance };
                life.serving.handle_wanted(&mut turn, to, wanted);
            }
            (Message::Handed { to, chunk }, _) => {
                if life.incarnation == to.incarnation {
                    life.serving.handle_handed(now, to.id, chunk);
                }
            }
            (Message::Proposal(_) | Message::Vote(_) | Message::Renew(_), None) => {}
        }
    }

    /// Lets a process do what is due, and sees that it is woken for the rest.
    pub(crate) fn drive(&mut self, node: usize) {
        let now = self.now(node);
        let Some(life) = &mut self.machines[node].life else { return };
        let mut wake = now.boot + IDLE;
        let (mut to_seeds, mut replies) = (Vec::new(), Vec::new());
        if let Some(seed) = &mut life.seed {
            wake = wake.min(seed.poll(now));
        }
        life.settle(now, self.real);
        life.serving.poll(&mut Turn { now, ownership: &mut life.ownership, chance: &mut self.chance });
        life.hurry_if_late(now);
        life.perform(now);
        if self.has_loads {
            life.measure(now, &mut self.chance);
        }
        let purse = &mut life.purse;
        let used = || vec![BudgetUse { database: budgeted().database, held: purse.held(now), demand: 20 }];
        if let Some(renew) = life.ownership.poll_renew(now, used) {
            to_seeds.push(Message::Renew(renew));
        }
        life.perform(now);
        while let Some(output) = life.seed.as_mut().and_then(Seed::poll_output) {
            match output {
                Output::Proposal(proposal) => to_seeds.push(Message::Proposal(proposal)),
                Output::Reply(to, reply) => replies.push((to, Message::Reply(reply))),
            }
        }
        wake = wake.min(life.serving.next_timeout().unwrap_or(wake));
        if !life.has_left {
            wake = wake.min(life.ownership.next_renew());
        }
        for message in to_seeds {
            for to in 0..self.n_seeds {
                self.send(node, to, message.clone());
            }
        }
        for (to, reply) in replies {
            // Where that life was, whoever lives there now.
            let to = self.addresses[&to];
            self.send(node, to, reply);
        }
        let at = self.machines[node].clocks.real(wake).max(self.real + Duration::from_micros(1));
        let Some(life) = &mut self.machines[node].life else { return };
        if at < life.next_wake {
            life.next_wake = at;
            self.push(at, node, What::Wake);
        }
        self.flush(node);
    }

    /// A node sends all operations that it may. The database sees them late, and answers late.
    fn spend(&mut self, node: usize) {
        if !self.is_running(node) {
            return;
        }
        let now = self.now(node);
        let Some(life) = &mut self.machines[node].life else { return };
        life.settle(now, self.real);
        while let Ok(slot) = life.purse.spend(now, 0) {
            let longest = OPERATION_TIMEOUT.as_micros() as u64;
            let seen = self.chance.u64(0..longest);
            let answered = self.chance.u64(seen..=longest);
            *self.operations.entry(self.real + Duration::from_micros(seen)).or_default() += 1;
            life.in_flight.push((self.real + Duration::from_micros(answered), slot));
        }
    }

    /// Who coordinates at this moment.
    pub(crate) fn coordinator(&self) -> Option<usize> {
        let leads = |node: &usize| {
            let seed = self.machines[*node].life.as_ref().and_then(|life| life.seed.as_ref());
            seed.is_some_and(|seed| seed.term(self.now(*node)).is_some())
        };
        (0..self.n_seeds).find(leads)
    }

    /// The shards that a node serves at this moment.
    fn served(&self, node: usize) -> u64 {
        match &self.machines[node].life {
            Some(life) if self.is_running(node) && life.ownership.holds(self.now(node)) => life.mask,
            _ => 0,
        }
    }

    /// Whether every shard is served by somebody.
    pub(crate) fn is_whole(&self) -> bool {
        (0..self.machines.len()).fold(0, |all, node| all | self.served(node)) == (1 << N_SHARDS) - 1
    }

    /// Whether every shard is served by somebody whose writes go through.
    pub(crate) fn is_writable(&self) -> bool {
        let writable = |node: usize| {
            let is_writable = |shard: &usize| {
                let since = self.machines[node].life.as_ref().and_then(|life| life.serving.since(*shard));
                since == Some(self.database.fence(*shard).since)
            };
            let raised = (0..usize::from(N_SHARDS)).filter(is_writable).fold(0, |all, shard| all | 1 << shard);
            self.served(node) & raised
        };
        (0..self.machines.len()).fold(0, |all, node| all | writable(node)) == (1 << N_SHARDS) - 1
    }
}
