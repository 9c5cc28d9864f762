//! Virtual processes, clocks and links.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use sharding::acceptor::Vote;
use sharding::budget::{Budget, BudgetUse, Budgeted, Floor, Purse, Slot};
use sharding::epoch::{Epoch, Term};
use sharding::id::{DatabaseName, NShards, NodeId, ShardId};
use sharding::map::Member;
use sharding::membership::{Incarnation, Renew, Reply};
use sharding::ownership::{Effect, Identity, Ownership};
use sharding::proposer::Proposal;
use sharding::seed::{Output, Seed};
use sharding::times::{Now, Times};

use crate::invariants;

/// Few, so that each is contended; at most 64, the bits of a mask.
pub(crate) const N_SHARDS: u16 = 16;
/// How far all clocks are from zero, so that they can be set back.
const CLOCK_START: Duration = Duration::from_secs(1_000_000);
/// Operations a second that the whole cluster may spend; every node would spend more.
pub(crate) const BUDGET: Budget = Budget(NonZeroU32::new(20).expect("some"));
/// Within this time the database has seen an operation that was sent.
const OPERATION_TIMEOUT: Duration = Duration::from_millis(700);
/// A process that nothing wakes looks at its clock so often.
const IDLE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Proposal(Proposal),
    Vote(Vote),
    Renew(Renew),
    Reply(Reply),
}

#[derive(Clone, Debug)]
enum What {
    Deliver { from: usize, message: Box<Message> },
    Wake,
}

struct Event {
    at: Duration,
    number: u64,
    node: usize,
    what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

fn shards() -> NShards {
    NShards::new(N_SHARDS).expect("some")
}

pub(crate) fn budgeted() -> Budgeted {
    let database = DatabaseName::parse("main").expect("a name");
    Budgeted { database, budget: BUDGET, operation_timeout: OPERATION_TIMEOUT }
}

/// The clocks of one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Seconds of the boot clock in a million real ones, less a million.
    pub(crate) drift_ppm: i64,
    boot_at: Duration,
    real_at: Duration,
    wall_offset: i64,
}

impl Clocks {
    fn now(&self, real: Duration) -> Now {
        let passed = real.saturating_sub(self.real_at).as_micros() as i64;
        let boot = self.boot_at + Duration::from_micros((passed + passed * self.drift_ppm / 1_000_000) as u64);
        let wall = (CLOCK_START + boot).as_micros() as i64 + self.wall_offset;
        Now { boot, wall: Duration::from_micros(wall as u64) }
    }

    /// The real time at which the boot clock will show this.
    fn real(&self, boot: Duration) -> Duration {
        let ahead = boot.saturating_sub(self.boot_at).as_micros() as i64;
        self.real_at + Duration::from_micros((ahead * 1_000_000 / (1_000_000 + self.drift_ppm) + 1) as u64)
    }
}

/// A process.
pub(crate) struct Life {
    incarnation: Incarnation,
    pub(crate) seed: Option<Seed>,
    pub(crate) ownership: Ownership,
    /// For each shard that it serves what it keeps of it.
    pub(crate) entries: [Option<u64>; N_SHARDS as usize],
    pub(crate) mask: u64,
    pub(crate) has_left: bool,
    next_wake: Duration,
    purse: Purse,
    /// Operations, and when each is answered.
    in_flight: Vec<(Duration, Slot)>,
}

pub(crate) struct Machine {
    pub(crate) life: Option<Life>,
    pub(crate) clocks: Clocks,
    /// It does nothing until then.
    pub(crate) stopped_until: Duration,
    /// What came meanwhile.
    backlog: Vec<(usize, Message)>,
    /// Changes when it moves to another machine.
    identity: u64,
}

/// How links behave, in parts of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) loss: u32,
    pub(crate) duplicates: u32,
    pub(crate) slow: u32,
}

pub(crate) struct World {
    pub(crate) real: Duration,
    pub(crate) chance: fastrand::Rng,
    pub(crate) machines: Vec<Machine>,
    pub(crate) n_seeds: usize,
    pub(crate) times: Times,
    pub(crate) weather: Weather,
    pub(crate) keeps_entries: bool,
    /// Links that carry nothing, one way.
    pub(crate) cut: HashSet<(usize, usize)>,
    /// The newest value of each shard in the database.
    pub(crate) database: [u64; N_SHARDS as usize],
    /// When the database sees how many operations, those included that are on their way.
    pub(crate) operations: BTreeMap<Duration, u32>,
    /// What each life has seen last, to see that it never goes back.
    pub(crate) seen: HashMap<Incarnation, Epoch>,
    pub(crate) highest_term: Term,
    /// Where each life was.
    addresses: HashMap<Incarnation, usize>,
    events: BinaryHeap<Reverse<Event>>,
    n_events: u64,
}

impl World {
    pub(crate) fn new(seed: u64, n_seeds: usize, n_nodes: usize, times: Times) -> Self {
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
            keeps_entries: false,
            cut: HashSet::new(),
            database: [0; N_SHARDS as usize],
            operations: BTreeMap::new(),
            seen: HashMap::new(),
            highest_term: Term::default(),
            addresses: HashMap::new(),
            events: BinaryHeap::new(),
            n_events: 0,
        };
        for node in 0..n_nodes {
            world.start(node);
        }
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
            entries: [None; N_SHARDS as usize],
            mask: 0,
            has_left: false,
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

    fn push(&mut self, at: Duration, node: usize, what: What) {
        self.n_events += 1;
        self.events.push(Reverse(Event { at, number: self.n_events, node, what }));
    }

    pub(crate) fn send(&mut self, from: usize, to: usize, message: Message) {
        if from == to {
            self.push(self.real, to, What::Deliver { from, message: Box::new(message) });
            return;
        }
        if self.cut.contains(&(from, to)) || self.chance.u32(..1000) < self.weather.loss {
            return;
        }
        let copies = if self.chance.u32(..1000) < self.weather.duplicates { 2 } else { 1 };
        for _ in 0..copies {
            let is_slow = self.chance.u32(..1000) < self.weather.slow;
            let delay = if is_slow { self.chance.u64(1_000..4_000_000) } else { self.chance.u64(50..4_000) };
            self.push(
                self.real + Duration::from_micros(delay),
                to,
                What::Deliver { from, message: Box::new(message.clone()) },
            );
        }
    }

    /// Runs until that time; checks every invariant after every event.
    pub(crate) fn run_until(&mut self, end: Duration) -> Result<(), String> {
        while let Some(Reverse(event)) = self.events.peek()
            && event.at <= end
        {
            let Some(Reverse(event)) = self.events.pop() else { break };
            self.real = self.real.max(event.at);
            let node = event.node;
            if self.machines[node].life.is_none() {
                continue;
            }
            match event.what {
                What::Deliver { from, message } if !self.is_running(node) => {
                    self.machines[node].backlog.push((from, *message));
                    continue;
                }
                What::Deliver { from, message } => self.deliver(node, from, *message),
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
            (0..self.machines.len()).for_each(|node| self.touch(node));
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
                life.perform(self.keeps_entries);
            }
            (Message::Proposal(_) | Message::Vote(_) | Message::Renew(_), None) => {}
        }
    }

    /// Lets a process do what is due, and sees that it is woken for the rest.
    fn drive(&mut self, node: usize) {
        let now = self.now(node);
        let Some(life) = &mut self.machines[node].life else { return };
        let mut wake = now.boot + IDLE;
        let (mut to_seeds, mut replies) = (Vec::new(), Vec::new());
        if let Some(seed) = &mut life.seed {
            wake = wake.min(seed.poll(now));
            while let Some(output) = seed.poll_output() {
                match output {
                    Output::Proposal(proposal) => to_seeds.push(Message::Proposal(proposal)),
                    Output::Reply(to, reply) => replies.push((to, Message::Reply(reply))),
                }
            }
        }
        life.settle(now, self.real);
        let purse = &mut life.purse;
        let used = || vec![BudgetUse { database: budgeted().database, held: purse.held(now), demand: 20 }];
        if let Some(renew) = life.ownership.poll_renew(now, used) {
            to_seeds.push(Message::Renew(renew));
        }
        life.perform(self.keeps_entries);
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
    }

    /// Clients read and write a shard at this node, if it serves it at this moment.
    fn touch(&mut self, node: usize) {
        if !self.is_running(node) {
            return;
        }
        let now = self.now(node);
        self.spend(node, now);
        let (at, writes) = (self.chance.usize(..usize::from(N_SHARDS)), self.chance.u8(..4) == 0);
        let Some(life) = &mut self.machines[node].life else { return };
        if life.mask & (1 << at) == 0 || !life.ownership.holds(now) {
            return;
        }
        if writes {
            self.database[at] += 1;
            life.entries[at] = Some(self.database[at]);
        } else {
            life.entries[at].get_or_insert(self.database[at]);
        }
    }

    /// A node sends all operations that it may. The database sees them late, and answers late.
    fn spend(&mut self, node: usize, now: Now) {
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

    /// Whether every shard is served by somebody.
    pub(crate) fn is_whole(&self) -> bool {
        let served = |node: usize| match &self.machines[node].life {
            Some(life) if self.is_running(node) && life.ownership.holds(self.now(node)) => life.mask,
            _ => 0,
        };
        (0..self.machines.len()).map(served).fold(0, |all, mask| all | mask) == (1 << N_SHARDS) - 1
    }
}

impl Life {
    pub(crate) const fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    fn settle(&mut self, now: Now, real: Duration) {
        for (_, slot) in self.in_flight.extract_if(.., |(answered, _)| *answered <= real) {
            self.purse.settle(now, slot);
        }
    }

    fn perform(&mut self, keeps_entries: bool) {
        while let Some(effect) = self.ownership.poll_effect() {
            match effect {
                Effect::Serve { shard: ShardId(shard), .. } => {
                    self.mask |= 1 << shard;
                }
                Effect::Release { shard: ShardId(shard) } => {
                    self.mask &= !(1 << shard);
                    if !keeps_entries {
                        self.entries[usize::from(shard)] = None;
                    }
                }
                Effect::Left => self.has_left = true,
                Effect::Shares(shares, lease) => {
                    self.purse.handle_share(shares.first().map_or(0, |share| share.slots), lease);
                }
                Effect::Publish(_) | Effect::Lease(_) => {}
            }
        }
    }
}
