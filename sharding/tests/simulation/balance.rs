//! Load that is uneven and wanders, on a cluster without faults: nodes come to nearly the same load, and few shards
//! move.
//!
//! Keys are drawn by Zipf's law with the exponent 0.99 and hashed as real ones. The number of requests of a shard in a
//! second is drawn by Poisson's law. Imbalance is the hottest node's load over the mean, by what keys are expected to
//! be asked for, not by what was counted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use sharding::coordinator::Coordinator;
use sharding::epoch::{Epoch, Term};
use sharding::hash::shard_of;
use sharding::id::{NShards, NodeId, RegionName, ShardId};
use sharding::load::{Meters, ShardCount};
use sharding::map::{Member, ShardMap};
use sharding::membership::{Incarnation, Renew, Reply};
use sharding::ownership::{Effect, Identity, Ownership};
use sharding::times::{Now, Times};

const N_SHARDS: NShards = NShards::DEFAULT;
const N_KEYS: usize = 100_000;
const EXPONENT: f64 = 0.99;
/// Of the whole cluster, a second.
const REQUESTS: f64 = 5000.0;
const STEP: Duration = Duration::from_millis(125);
const STEPS_PER_SECOND: u32 = 8;
const SECONDS: usize = 20 * 60;
/// After this time the load is even for the first time: the coordinator moves nothing in its first minute, and then
/// no more in each minute than it may.
const EVEN_AFTER: usize = 120;
const IMBALANCE_MAX: f64 = 1.15;
/// A hand-off takes up to so long.
const HAND_OFF_MAX: Duration = Duration::from_millis(1500);

/// What keys are asked for, by shard and second.
struct Keys {
    /// Loads of shards, one table after the other.
    tables: Vec<Vec<f64>>,
    /// From one table to the next, in a straight line.
    wanders: Duration,
}

impl Keys {
    /// Which key has which rank is drawn anew for each table; with one, nothing ever changes.
    fn new(chance: &mut fastrand::Rng, n_tables: usize, wanders: Duration) -> Self {
        let region = RegionName::parse("cache-data").expect("a name");
        let shards: Vec<usize> =
            (0..N_KEYS).map(|key| shard_of(&region, format!("key-{key}").as_bytes(), N_SHARDS).index()).collect();
        let popularity: Vec<f64> = (1..=N_KEYS).map(|rank| (rank as f64).powf(-EXPONENT)).collect();
        let all: f64 = popularity.iter().sum();
        let mut ranks: Vec<usize> = (0..N_KEYS).collect();
        let mut table = || {
            chance.shuffle(&mut ranks);
            let mut loads = vec![0.0; usize::from(N_SHARDS.get())];
            for (shard, rank) in shards.iter().zip(&ranks) {
                loads[*shard] += REQUESTS * popularity[*rank] / all;
            }
            loads
        };
        Self { tables: (0..n_tables).map(|_| table()).collect(), wanders }
    }

    /// Requests a second for each shard.
    fn at(&self, now: Duration) -> Vec<f64> {
        let place = now.as_secs_f64() / self.wanders.as_secs_f64();
        let (before, part) = (place as usize, place.fract());
        let table = |at: usize| &self.tables[at.min(self.tables.len() - 1)];
        table(before).iter().zip(table(before + 1)).map(|(from, to)| from + (to - from) * part).collect()
    }
}

/// How many come in a second when `mean` are expected.
fn poisson(chance: &mut fastrand::Rng, mean: f64) -> u64 {
    if mean > 30.0 {
        let normal = (-2.0 * chance.f64().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * chance.f64()).cos();
        return (mean + mean.sqrt() * normal).round().max(0.0) as u64;
    }
    let (end, mut product, mut n) = ((-mean).exp(), chance.f64(), 0);
    while product > end {
        product *= chance.f64();
        n += 1;
    }
    n
}

struct Node {
    ownership: Ownership,
    meters: Meters,
    /// What it has counted of each shard that it serves.
    counts: BTreeMap<ShardId, u64>,
    /// Shards that it gives away, and when it will have done so.
    giving: Vec<(Duration, ShardId, Epoch)>,
}

struct Cluster {
    now: Now,
    chance: fastrand::Rng,
    coordinator: Coordinator,
    nodes: BTreeMap<Incarnation, Node>,
}

impl Cluster {
    fn new(seed: u64, n_nodes: u16) -> Self {
        let (now, times) = (Now::default(), Times::default());
        let term = Term { counter: 1, seed: 0 };
        let coordinator = Coordinator::new(now, times, term, N_SHARDS, seed, &[]);
        let chance = fastrand::Rng::with_seed(seed);
        let mut cluster = Self { now, chance, coordinator, nodes: BTreeMap::new() };
        (0..n_nodes).for_each(|node| cluster.join(node));
        cluster
    }

    fn join(&mut self, node: u16) {
        let incarnation = Incarnation(node.into());
        let name = NodeId::parse(&format!("pod-{node}")).expect("a name");
        let member = Member { node: name, data: format!("h:{}", node + 1) };
        let me = Identity { member, incarnation, identity: String::new() };
        let ownership = Ownership::new(self.now, me, N_SHARDS, Times::default());
        let node = Node { ownership, meters: Meters::default(), counts: BTreeMap::new(), giving: Vec::new() };
        self.nodes.insert(incarnation, node);
    }

    fn leave(&mut self, node: u16) {
        let node = self.nodes.get_mut(&Incarnation(node.into())).expect("it is there");
        node.ownership.handle_leave(self.now);
    }

    /// Everything that happens at this moment.
    fn drive(&mut self) {
        let mut answers: VecDeque<(Incarnation, Reply)> = VecDeque::new();
        loop {
            let now = self.now;
            for node in self.nodes.values_mut() {
                if let Some(renew) = node.poll(now, &mut self.chance) {
                    let reply = self.coordinator.handle_renew(now, &renew, false).expect("there is one term");
                    answers.extend(reply.map(|reply| (renew.incarnation, reply)));
                }
            }
            self.coordinator.poll(now);
            while let Some(news) = self.coordinator.poll_news() {
                answers.push_back(news);
            }
            if answers.is_empty() {
                return;
            }
            for (to, reply) in answers.drain(..) {
                self.nodes.get_mut(&to).expect("it asked").ownership.handle_reply(now, &reply);
            }
        }
    }

    /// So many requests have come, for each shard in the mean.
    fn count(&mut self, loads: impl Iterator<Item = f64>) {
        let requests: Vec<u64> = loads.map(|load| poisson(&mut self.chance, load)).collect();
        for node in self.nodes.values_mut() {
            node.counts.iter_mut().for_each(|(shard, count)| *count += requests[shard.index()]);
        }
    }

    /// A node's second is over.
    fn measure(&mut self, node: u16) {
        let node = self.nodes.get_mut(&Incarnation(node.into())).expect("it is there");
        let count = |(shard, requests): (&ShardId, &u64)| (*shard, ShardCount { requests: *requests, bytes: 100_000 });
        let loads = node.meters.measure(self.now.boot, node.counts.iter().map(count));
        node.ownership.handle_loads(loads);
    }

    /// Owners by shard.
    fn owners(&self) -> Vec<Option<u16>> {
        self.coordinator.map().owners().to_vec()
    }

    fn imbalance(&self, keys: &Keys) -> f64 {
        imbalance(&self.owners(), &keys.at(self.now.boot))
    }

    /// Lets a second pass.
    fn run_second(&mut self, keys: &Keys) {
        (0..STEPS_PER_SECOND).for_each(|_| self.step());
        self.count(keys.at(self.now.boot).into_iter());
        (0..self.n_nodes()).for_each(|node| self.measure(node));
    }

    /// Lets a part of a second pass, with requests if there are any; each node measures once a second, at a moment of its own.
    fn step_apart(&mut self, step: u32, keys: Option<&Keys>) {
        self.step();
        if let Some(keys) = keys {
            let part = f64::from(STEPS_PER_SECOND);
            self.count(keys.at(self.now.boot).into_iter().map(|load| load / part));
        }
        (0..self.n_nodes())
            .filter(|node| u32::from(*node) % STEPS_PER_SECOND == step)
            .for_each(|node| self.measure(node));
    }

    fn step(&mut self) {
        self.drive();
        self.now.boot += STEP;
        self.now.wall += STEP;
    }

    fn n_nodes(&self) -> u16 {
        u16::try_from(self.nodes.len()).expect("few")
    }
}

fn imbalance(owners: &[Option<u16>], loads: &[f64]) -> f64 {
    let mut of = vec![0.0; owners.iter().flatten().max().map_or(1, |last| usize::from(*last) + 1)];
    for (owner, load) in owners.iter().zip(loads) {
        if let Some(owner) = *owner {
            of[usize::from(owner)] += load;
        }
    }
    let mean = loads.iter().sum::<f64>() / of.len() as f64;
    of.into_iter().fold(0.0, f64::max) / mean
}

impl Node {
    fn poll(&mut self, now: Now, chance: &mut fastrand::Rng) -> Option<Renew> {
        for (_, shard, since) in self.giving.extract_if(.., |(done, ..)| *done <= now.boot) {
            self.ownership.handle_sealed(now, shard, since);
            self.counts.remove(&shard);
        }
        let renew = self.ownership.poll_renew(now, Vec::new);
        while let Some(effect) = self.ownership.poll_effect() {
            match effect {
                Effect::Serve { shard, .. } => drop(self.counts.insert(shard, 0)),
                Effect::Release { shard } => drop(self.counts.remove(&shard)),
                Effect::Moves { giving, .. } => {
                    for transfer in giving {
                        if !self.giving.iter().any(|(_, shard, _)| *shard == transfer.shard) {
                            let takes = Duration::from_millis(chance.u64(20..HAND_OFF_MAX.as_millis() as u64));
                            self.giving.push((now.boot + takes, transfer.shard, transfer.since));
                        }
                    }
                }
                Effect::Publish(_) | Effect::Lease(_) | Effect::Shares(..) | Effect::Left => {}
            }
        }
        renew
    }
}

/// What a run came to.
#[derive(Debug)]
struct Figures {
    /// For each second.
    imbalance: Vec<f64>,
    /// For each second the shards that moved in it.
    moved: Vec<usize>,
}

impl Figures {
    fn of(mut cluster: Cluster, keys: &Keys) -> Self {
        let mut figures = Self { imbalance: Vec::new(), moved: Vec::new() };
        let mut before = cluster.owners();
        for _ in 0..SECONDS {
            cluster.run_second(keys);
            let owners = cluster.owners();
            let has_moved = |(before, after): &(&Option<u16>, &Option<u16>)| before.is_some() && before != after;
            figures.moved.push(before.iter().zip(&owners).filter(has_moved).count());
            figures.imbalance.push(cluster.imbalance(keys));
            before = owners;
        }
        figures
    }

    /// What it would have been, had everything stayed as it was assigned.
    fn by_count(n_nodes: u16, keys: &Keys) -> Self {
        let member =
            |node| Member { node: NodeId::parse(&format!("pod-{node}")).expect("a name"), data: "h:1".to_owned() };
        let members = (0..n_nodes).map(member).collect();
        let map = ShardMap::assigned(Epoch::default(), N_SHARDS, members).expect("a map");
        let at = |second| imbalance(map.owners(), &keys.at(Duration::from_secs(second)));
        Self { imbalance: (1..=SECONDS as u64).map(at).collect(), moved: vec![0; SECONDS] }
    }

    fn even(&self) -> &[f64] {
        &self.imbalance[EVEN_AFTER..]
    }

    fn worst(&self) -> f64 {
        self.even().iter().copied().fold(0.0, f64::max)
    }

    /// Of a thousand seconds, in so many it is even enough.
    fn per_mille_even(&self) -> usize {
        self.even().iter().filter(|imbalance| **imbalance <= IMBALANCE_MAX).count() * 1000 / self.even().len()
    }

    fn mean(&self) -> f64 {
        self.even().iter().sum::<f64>() / self.even().len() as f64
    }

    /// Most that moved in any minute.
    fn most_moved(&self) -> usize {
        self.moved.windows(60).map(|minute| minute.iter().sum()).max().expect("minutes")
    }

    fn print(&self, what: &str) {
        let first = self.imbalance.iter().skip(5).position(|imbalance| *imbalance <= IMBALANCE_MAX).map(|at| at + 5);
        println!(
            "{what}: imbalance {:.3} in the mean, {:.3} at worst, even {} per mille of the time, first after \
             {first:?} s; {} moved, {} in a minute at most",
            self.mean(),
            self.worst(),
            self.per_mille_even(),
            self.moved.iter().sum::<usize>(),
            self.most_moved(),
        );
    }
}

/// Runs with and without balance; gives what the one with it came to.
fn compare(what: &str, seed: u64, n_nodes: u16, keys: &Keys) -> Figures {
    let by_count = Figures::by_count(n_nodes, keys);
    let by_load = Figures::of(Cluster::new(seed, n_nodes), keys);
    by_count.print(&format!("{what}, {n_nodes} nodes, by count"));
    by_load.print(&format!("{what}, {n_nodes} nodes, by load"));
    assert!(by_load.mean() < by_count.mean() && by_load.worst() < by_count.worst());
    assert!(by_load.most_moved() <= usize::from(N_SHARDS.get()) / 20);
    by_load
}

#[test]
fn steady_load_is_even_after_two_minutes_and_stays_so() {
    for (seed, n_nodes) in [(1, 3), (4, 5)] {
        let keys = Keys::new(&mut fastrand::Rng::with_seed(seed), 1, Duration::from_secs(1));
        assert!(compare("steady", seed, n_nodes, &keys).worst() <= IMBALANCE_MAX);
    }
}

#[test]
fn load_that_wanders_is_even_nearly_always() {
    for (seed, n_nodes) in [(1, 3), (4, 5)] {
        // Every ten minutes all that is hot is another.
        let keys = Keys::new(&mut fastrand::Rng::with_seed(seed), 4, Duration::from_mins(10));
        assert!(compare("wandering", seed, n_nodes, &keys).per_mille_even() >= 950);
    }
}

#[test]
fn those_who_come_and_go_move_load_at_once_and_nothing_else() {
    let keys = Keys::new(&mut fastrand::Rng::with_seed(4), 1, Duration::from_secs(1));
    let mut cluster = Cluster::new(4, 4);
    (0..EVEN_AFTER).for_each(|_| cluster.run_second(&keys));
    let before = cluster.owners();
    cluster.join(4);
    (0..5).for_each(|_| cluster.run_second(&keys));
    let joined = cluster.owners();
    assert!(before.iter().zip(&joined).all(|(before, after)| before == after || *after == Some(4)));
    let n_taken = joined.iter().filter(|owner| **owner == Some(4)).count();
    println!("a fifth node takes {n_taken} shards; imbalance {:.3} then", cluster.imbalance(&keys));
    assert!(cluster.imbalance(&keys) <= IMBALANCE_MAX);
    let shares: Vec<u64> = cluster.coordinator.standings(cluster.now).iter().map(|of| of.load_per_mille).collect();
    assert!(shares.len() == 5 && shares.iter().all(|share| (850..=1150).contains(share)), "{shares:?}");

    (0..EVEN_AFTER).for_each(|_| cluster.run_second(&keys));
    let before = cluster.owners();
    cluster.leave(4);
    (0..5).for_each(|_| cluster.run_second(&keys));
    let left = cluster.owners();
    assert!(before.iter().zip(&left).all(|(before, after)| before == after || *before == Some(4)));
    assert!(!left.contains(&Some(4)));
    println!("it leaves; imbalance {:.3} then", cluster.imbalance(&keys));
    (0..EVEN_AFTER).for_each(|_| cluster.run_second(&keys));
    let n_balanced = cluster.coordinator.n_balanced();
    println!("and {:.3} two minutes later; {n_balanced} have moved for the sake of load", cluster.imbalance(&keys));
    assert!(cluster.imbalance(&keys) <= IMBALANCE_MAX);
}

#[test]
fn load_that_has_just_begun_moves_nothing_else() {
    const SECONDS: u32 = 6;
    let keys = Keys::new(&mut fastrand::Rng::with_seed(5), 1, Duration::from_secs(1));
    for at in 0..SECONDS * STEPS_PER_SECOND {
        let mut cluster = Cluster::new(5, 5);
        (0..10 * STEPS_PER_SECOND).for_each(|step| cluster.step_apart(step % STEPS_PER_SECOND, None));
        let before = cluster.owners();
        (0..at).for_each(|step| cluster.step_apart(step % STEPS_PER_SECOND, Some(&keys)));
        cluster.leave(4);
        (at..at + 5 * STEPS_PER_SECOND).for_each(|step| cluster.step_apart(step % STEPS_PER_SECOND, Some(&keys)));
        let after = cluster.owners();
        assert!(!after.contains(&Some(4)), "it has left");
        let mut n_owned = [0_usize; 4];
        for (shard, (before, after)) in before.iter().zip(&after).enumerate() {
            assert!(before == after || *before == Some(4), "{at} steps after it began, shard {shard}");
            n_owned[usize::from(after.expect("an owner"))] += 1;
        }
        assert!(n_owned.iter().all(|n| (150..=400).contains(n)), "{at} steps after it began: {n_owned:?}");
    }
}
