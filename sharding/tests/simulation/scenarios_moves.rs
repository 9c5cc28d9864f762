//! Shards that are handed over in fair weather.

use std::collections::BTreeMap;
use std::time::Duration;

use sharding::coordinator::Coordinator;
use sharding::epoch::{Epoch, Term};
use sharding::id::{NShards, NodeId, ShardId};
use sharding::map::Member;
use sharding::membership::{After, Grant, Greeting, Incarnation, Renew, Reply, Tenure};
use sharding::times::{Now, Times};

use crate::database::Value;
use crate::traffic::Traffic;
use crate::world::{KEYS_PER_SHARD, N_KEYS, World};

const STEP: Duration = Duration::from_millis(5);
/// A chunk is sometimes asked for only after 400 ms, and there are three.
const MOVED_MAX: Duration = Duration::from_secs(3);

/// Four nodes, or three; with entries, and clients that have gone.
fn filled(seed: u64, has_fourth: bool) -> World {
    let traffic = Traffic { n_clients: 8, pause: Duration::from_millis(5), writes: 20, ..Traffic::NONE };
    let mut world = World::with_traffic(seed, 3, 4, Times::default(), traffic);
    if !has_fourth {
        world.crash(3);
    }
    world.run_until(Duration::from_secs(6)).expect("no violation");
    world.clients_rest = true;
    world.run_until(world.real + Duration::from_secs(1)).expect("no violation");
    assert!(world.is_whole());
    world
}

/// What is in memory of the shards that a node serves.
fn memory(world: &World, node: usize) -> BTreeMap<usize, Value> {
    let Some(life) = &world.machines[node].life else { return BTreeMap::new() };
    let is_served = |key: &usize| life.mask & (1 << (key / KEYS_PER_SHARD)) != 0;
    (0..N_KEYS).filter(is_served).filter_map(|key| Some((key, life.serving.entry(key)?))).collect()
}

fn memories(world: &World) -> BTreeMap<usize, Value> {
    (0..world.machines.len()).flat_map(|node| memory(world, node)).collect()
}

fn until(world: &mut World, longest: Duration, is_done: impl Fn(&World) -> bool) -> Duration {
    let began = world.real;
    while !is_done(world) {
        world.run_until(world.real + STEP).expect("no violation");
        assert!(world.real <= began + longest, "it is not done after {longest:?}");
    }
    world.real - began
}

fn has_left(world: &World) -> bool {
    world.machines[3].life.as_ref().is_some_and(|life| life.has_left)
}

#[test]
fn a_node_that_leaves_gives_its_entries_to_others() {
    let mut longest = Duration::ZERO;
    for seed in 0..50 {
        let mut world = filled(seed, true);
        let before = memories(&world);
        assert!(memory(&world, 3).len() > 3, "nothing to give");
        world.leave(3);
        longest = longest.max(until(&mut world, MOVED_MAX, has_left));
        world.crash(3);
        until(&mut world, Duration::from_millis(300), World::is_whole);
        // The answer to the last seal may still be on its way.
        world.run_until(world.real + 2 * STEP).expect("no violation");
        assert_eq!((memories(&world), world.history.counts.cold), (before, 0));
    }
    println!("gone after {longest:?} at most");
}

#[test]
fn a_node_that_joins_gets_its_share_with_its_entries() {
    for seed in 0..50 {
        let mut world = filled(seed, false);
        let before = memories(&world);
        world.start(3);
        let owns = |world: &World| world.machines[3].life.as_ref().is_some_and(|life| life.mask.count_ones() >= 3);
        until(&mut world, MOVED_MAX, |world| owns(world) && world.is_whole());
        world.run_until(world.real + MOVED_MAX).expect("no violation");
        assert!(!memory(&world, 3).is_empty());
        assert_eq!((memories(&world), world.history.counts.cold), (before, 0));
    }
}

#[test]
fn shards_that_move_for_the_sake_of_load_take_their_entries_along() {
    for seed in 0..10 {
        let mut world = filled(seed, true);
        let before = memories(&world);
        let masks =
            |world: &World| world.machines.iter().map(|machine| machine.life.as_ref().map(|life| life.mask)).collect();
        let owned: Vec<_> = masks(&world);
        world.has_loads = true;
        until(&mut world, 2 * Times::default().movement, |world| masks(world) != owned);
        world.has_loads = false;
        world.run_until(world.real + MOVED_MAX).expect("no violation");
        assert!(world.is_whole() && owned != masks(&world), "nothing has moved");
        assert_eq!((memories(&world), world.history.counts.cold), (before, 0));
    }
}

#[test]
fn a_coordinators_crash_in_the_middle_of_moves_leaves_no_shard_stuck() {
    let mut longest = Duration::ZERO;
    for seed in 0..200 {
        let mut world = filled(seed, true);
        world.leave(3);
        world.run_until(world.real + Duration::from_millis(seed * 3)).expect("no violation");
        let leader = world.coordinator().expect("somebody coordinates");
        world.crash(leader);
        let is_done = |world: &World| has_left(world) && world.is_whole();
        longest = longest.max(until(&mut world, Duration::from_millis(3500), is_done));
    }
    println!("whole after {longest:?} at most");
}

#[test]
fn the_coordinator_that_leaves_stays_for_what_others_give_away() {
    let mut longest = Duration::ZERO;
    for seed in 0..300 {
        let mut world = filled(seed, true);
        let leader = world.coordinator().expect("somebody coordinates");
        world.leave(3);
        world.run_until(world.real + Duration::from_millis(seed)).expect("no violation");
        world.leave(leader);
        let (began, mut whole_at) = (world.real, world.real);
        while world.real < began + 2 * MOVED_MAX {
            world.run_until(world.real + STEP).expect("no violation");
            for node in [3, leader] {
                if world.machines[node].life.as_ref().is_some_and(|life| life.has_left) {
                    world.crash(node);
                }
            }
            if world.is_whole() {
                whole_at = world.real;
            }
            longest = longest.max(world.real - whole_at);
        }
        assert!(longest < Duration::from_millis(100), "run {seed}: some shard had no owner for {longest:?}");
        assert!([3, leader].iter().all(|node| world.machines[*node].life.is_none()), "run {seed}: they have not left");
    }
    println!("no shard had no owner for longer than {longest:?}");
}

#[test]
fn the_coordinator_that_leaves_in_a_hurry_does_not_wait_for_others() {
    let has_left = |world: &World, node: usize| world.machines[node].life.as_ref().is_some_and(|life| life.has_left);
    let (mut longest, mut n_first) = (Duration::ZERO, 0);
    for seed in 0..100 {
        let mut world = filled(seed, true);
        let leader = world.coordinator().expect("somebody coordinates");
        world.leave(3);
        world.run_until(world.real + Duration::from_millis(50)).expect("no violation");
        world.leave(leader);
        world.run_until(world.real + Duration::from_millis(50)).expect("no violation");
        world.hurry(leader);
        longest = longest.max(until(&mut world, MOVED_MAX, |world| has_left(world, leader)));
        n_first += usize::from(!has_left(&world, 3));
    }
    println!("{n_first} left before the other; after {longest:?} at most");
    assert!(n_first > 0 && longest < Duration::from_secs(1), "{n_first} before the other, one after {longest:?}");
}

/// A coordinator of one shard or a few, and nodes that ask it.
struct Court {
    coordinator: Coordinator,
    /// Its own node has no time to leave last.
    is_hurried: bool,
    greetings: BTreeMap<u64, Greeting>,
    request: u64,
}

/// The coordinator's own node.
const HOME: Incarnation = Incarnation(7);

impl Court {
    fn new() -> Self {
        Self::of(1)
    }

    fn of(n_shards: u16) -> Self {
        let (term, n_shards) = (Term { counter: 2, seed: 0 }, NShards::new(n_shards).expect("some"));
        let coordinator = Coordinator::new(at(10_000), Times::default(), term, n_shards, 8, &[]);
        Self { coordinator, is_hurried: false, greetings: BTreeMap::new(), request: 0 }
    }

    /// Answers a node, which quotes what it was greeted with; `say` puts in what it has to say.
    fn ask(&mut self, millis: u64, life: u64, say: impl FnOnce(&mut Renew)) -> Option<Reply> {
        self.request += 1;
        let node = NodeId::parse(&format!("pod-{life}")).expect("a name");
        let mut renew = Renew {
            member: Member { node, data: "h:1".to_owned() },
            incarnation: Incarnation(life),
            identity: String::new(),
            request: self.request,
            granted: self.request - 1,
            seen: Epoch::default(),
            map: Epoch::default(),
            greeting: self.greetings.get(&life).copied(),
            held: Vec::new(),
            loads: Vec::new(),
            sealed: Vec::new(),
            taken: Vec::new(),
            budgets: Vec::new(),
            is_leaving: false,
        };
        say(&mut renew);
        let stays = life == HOME.0 && !self.is_hurried;
        let reply = self.coordinator.handle_renew(at(millis), &renew, stays).expect("the highest term");
        if let Some(Reply::Hello { greeting, .. }) = &reply {
            self.greetings.insert(life, *greeting);
        }
        reply
    }

    fn grant(&mut self, millis: u64, life: u64, say: impl FnOnce(&mut Renew)) -> Grant {
        match self.ask(millis, life, say) {
            Some(Reply::Grant(grant)) => grant,
            other => panic!("{other:?}"),
        }
    }
}

const fn at(millis: u64) -> Now {
    Now { boot: Duration::from_millis(millis), wall: Duration::from_millis(millis) }
}

#[test]
fn what_was_sealed_under_another_coordinator_begins_with_nothing() {
    let mut court = Court::new();
    let since = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };
    court.ask(10_001, 1, |_| {});
    // The first has sealed its shard. The one before may have granted it to somebody who has written since and is dead.
    court.ask(10_002, 1, |renew| (renew.sealed, renew.is_leaving) = (vec![(ShardId(0), since)], true));
    court.ask(10_003, 2, |_| {});
    court.ask(10_004, 2, |_| {});
    court.ask(11_000, 2, |_| {});
    // That somebody has taken it over changes nothing.
    let grant = court.grant(11_400, 2, |renew| renew.taken = vec![(ShardId(0), since)]);
    assert!(matches!(grant.shards.as_slice(), [tenure] if !matches!(tenure.after, After::Sealed(_))), "{grant:?}");
}

/// A shard of the first node, which leaves and is to give it to the second.
fn court_with_a_move() -> (Court, Tenure) {
    let mut court = Court::new();
    court.ask(10_001, 1, |_| {});
    court.ask(10_002, 1, |_| {});
    court.ask(11_400, 1, |_| {});
    let held = court.grant(12_000, 1, |_| {}).shards;
    let [tenure] = held[..] else { panic!("{held:?}") };
    court.ask(12_001, 2, |_| {});
    court.ask(12_002, 2, |_| {});
    assert_eq!(court.grant(12_003, 1, leaving_with(tenure)).giving.len(), 1);
    assert_eq!(court.grant(12_004, 2, |_| {}).taking.len(), 1);
    (court, tenure)
}

fn leaving_with(tenure: Tenure) -> impl Fn(&mut Renew) {
    move |renew| (renew.held, renew.is_leaving) = (vec![tenure], true)
}

fn taken(shard: ShardId, since: Epoch) -> impl Fn(&mut Renew) {
    move |renew| renew.taken = vec![(shard, since)]
}

#[test]
fn that_a_shard_is_sealed_may_be_heard_from_the_next_owner_first() {
    let (mut court, tenure) = court_with_a_move();
    let Tenure { shard, since, .. } = tenure;
    // Another tenure than that of the owner: nothing follows.
    let other = Epoch { seq: since.seq + 1, ..since };
    assert_eq!(court.grant(12_005, 2, taken(shard, other)).shards, []);
    let granted = court.grant(12_006, 2, taken(shard, since)).shards;
    assert!(matches!(granted[..], [Tenure { after: After::Sealed(epoch), .. }] if epoch == since), "{granted:?}");
    // What the others say later changes nothing, whatever it is.
    assert_eq!(court.grant(12_007, 1, leaving_with(tenure)).shards, []);
    assert_eq!(court.grant(12_008, 2, taken(shard, since)).shards, granted);
    court.ask(12_009, 1, |renew| (renew.sealed, renew.is_leaving) = (vec![(shard, since)], true));
    assert_eq!(court.grant(12_010, 2, |_| {}).shards, granted);
}

#[test]
fn what_was_sealed_for_a_node_is_added_to_its_lease() {
    let (mut court, tenure) = court_with_a_move();
    let request = court.request;
    while court.coordinator.poll_news().is_some() {}
    court.ask(12_005, 1, |renew| (renew.sealed, renew.is_leaving) = (vec![(tenure.shard, tenure.since)], true));
    let news = court.coordinator.poll_news();
    let Some((to, Reply::Addition(addition))) = news else { panic!("{news:?}") };
    assert_eq!((to, addition.incarnation, addition.request), (Incarnation(2), Incarnation(2), request));
    assert_eq!(court.coordinator.poll_news(), None);
    let granted = court.grant(12_006, 2, |_| {});
    assert_eq!((addition.epoch, addition.shards), (granted.epoch, granted.shards));
}

#[test]
fn who_has_asked_meanwhile_is_not_told_what_was_sealed_for_it() {
    let (mut court, tenure) = court_with_a_move();
    while court.coordinator.poll_news().is_some() {}
    court.ask(12_005, 1, |renew| (renew.sealed, renew.is_leaving) = (vec![(tenure.shard, tenure.since)], true));
    assert_eq!(court.grant(12_006, 2, |_| {}).shards.len(), 1);
    assert_eq!(court.coordinator.poll_news(), None);
}

#[test]
fn who_leaves_does_not_wait_for_what_others_are_given_after_it_has_nothing() {
    let mut court = Court::of(2);
    court.ask(10_001, 1, |_| {});
    court.ask(10_002, 1, |_| {});
    court.ask(11_000, 1, |_| {});
    let held = court.grant(12_000, 1, |_| {}).shards;
    assert_eq!(held.len(), 2);
    // The second and the third come; the second takes what the first has and leaves after that.
    let leaves = |renew: &mut Renew| renew.is_leaving = true;
    court.ask(12_001, 2, |_| {});
    court.ask(12_002, 2, |_| {});
    let nothing = court.coordinator.map().epoch();
    assert!(matches!(court.ask(12_003, 2, leaves), Some(Reply::Grant(_))), "the first does not know of it");
    // The first is another's from now on.
    court.ask(12_004, 3, |_| {});
    court.ask(12_005, 3, |_| {});
    assert!(court.coordinator.map().epoch() > nothing);
    court.ask(12_006, 3, |renew| renew.seen = nothing);
    court.ask(12_007, 1, |renew| (renew.held, renew.seen) = (held.clone(), nothing));
    assert!(matches!(court.ask(12_008, 2, leaves), Some(Reply::Goodbye { .. })));
}

#[test]
fn the_coordinators_own_node_leaves_last_unless_it_is_in_a_hurry() {
    for is_hurried in [false, true] {
        let (mut court, tenure) = court_with_a_move();
        let leaves = |renew: &mut Renew| renew.is_leaving = true;
        for life in [HOME.0, 3] {
            court.ask(12_005, life, |_| {});
            court.ask(12_005, life, |_| {});
        }
        let see = |court: &mut Court, life| {
            let epoch = court.coordinator.map().epoch();
            court.ask(12_006, life, |renew| renew.seen = epoch);
        };
        see(&mut court, HOME.0);
        see(&mut court, 2);
        assert!(matches!(court.ask(12_007, 3, leaves), Some(Reply::Goodbye { .. })));
        see(&mut court, 2);
        assert!(matches!(court.ask(12_008, HOME.0, leaves), Some(Reply::Grant(_))));
        court.is_hurried = is_hurried;
        if !is_hurried {
            let seen = court.coordinator.map().epoch();
            let has_taken = taken(tenure.shard, tenure.since);
            court.ask(12_009, 2, |renew| {
                has_taken(renew);
                renew.seen = seen;
            });
            // All that was given is in the hands of others then.
            assert!(matches!(court.ask(12_009, HOME.0, leaves), Some(Reply::Grant(_))));
            see(&mut court, 2);
        }
        assert!(matches!(court.ask(12_010, HOME.0, leaves), Some(Reply::Goodbye { .. })), "hurried: {is_hurried}");
    }
}

#[test]
fn who_leaves_gets_nothing_by_having_taken_it_over() {
    let (mut court, tenure) = court_with_a_move();
    let leaves = |renew: &mut Renew| (renew.taken, renew.is_leaving) = (vec![(tenure.shard, tenure.since)], true);
    assert!(!matches!(court.ask(12_005, 2, leaves), Some(Reply::Grant(grant)) if !grant.shards.is_empty()));
}

#[test]
fn a_shard_that_was_sealed_with_nobody_to_have_it_goes_to_who_has_taken_it_over() {
    let mut court = Court::new();
    let since = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };
    let held = Tenure { shard: ShardId(0), since, after: After::Nobody };
    for life in [1, 2] {
        court.ask(10_001, life, |_| {});
        court.ask(10_002, life, |renew| renew.held = if life == 1 { vec![held] } else { Vec::new() });
    }
    // The coordinator still waits for what others may have.
    assert_eq!(court.grant(10_003, 1, |renew| renew.sealed = vec![(held.shard, since)]).shards, []);
    let granted = court.grant(10_004, 2, taken(held.shard, since)).shards;
    assert!(matches!(granted[..], [Tenure { after: After::Sealed(epoch), .. }] if epoch == since), "{granted:?}");
}

#[test]
fn a_tenure_that_was_left_out_of_a_grant_does_not_begin_again() {
    let (mut court, tenure) = court_with_a_move();
    // The next owner is heard no more, and there is no other.
    for millis in (12_250..14_000).step_by(250) {
        court.ask(millis, 1, leaving_with(tenure));
    }
    assert_eq!(court.grant(14_000, 1, leaving_with(tenure)).shards, []);
    // It is back before the owner says that it has released the shard.
    court.ask(14_001, 2, |_| {});
    assert_eq!(court.grant(14_002, 2, |_| {}).taking, []);
    assert_eq!(court.grant(14_003, 1, leaving_with(tenure)).shards, []);
    court.ask(14_004, 1, |renew| renew.is_leaving = true);
    let granted = court.grant(14_005, 2, |_| {}).shards;
    assert!(matches!(granted[..], [Tenure { since, after: After::Move, .. }] if since > tenure.since), "{granted:?}");
}

#[test]
fn a_move_that_was_begun_is_not_turned_to_a_node_that_joins_meanwhile() {
    let n = 12;
    let mut court = Court::of(n);
    court.ask(10_001, 1, |_| {});
    court.ask(10_002, 1, |_| {});
    court.ask(11_400, 1, |_| {});
    let held = court.grant(12_000, 1, |_| {}).shards;
    assert_eq!(held.len(), usize::from(n));
    let holds = |renew: &mut Renew| renew.held.clone_from(&held);
    court.ask(12_001, 2, |_| {});
    court.ask(12_002, 2, |_| {});
    let begun = court.grant(12_003, 1, holds).giving;
    assert!(begun.len() == usize::from(n / 2) && begun.iter().all(|transfer| transfer.peer.as_str() == "pod-2"));
    court.ask(12_004, 3, |_| {});
    court.ask(12_005, 3, |_| {});
    let giving = court.grant(12_006, 1, holds).giving;
    assert!(begun.iter().all(|transfer| giving.contains(transfer)), "{begun:?} {giving:?}");
    // Sealed for the second, and the owner has heard of the third.
    let sealed: Vec<_> = begun.iter().map(|transfer| (transfer.shard, transfer.since)).collect();
    let rest: Vec<Tenure> =
        held.iter().copied().filter(|tenure| !sealed.contains(&(tenure.shard, tenure.since))).collect();
    court.ask(12_007, 1, |renew| (renew.held, renew.sealed) = (rest, sealed.clone()));
    assert_eq!(court.grant(12_008, 2, |_| {}).shards.len(), sealed.len());
}
