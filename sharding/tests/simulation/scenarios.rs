//! Single faults in fair weather, one for each thing that must be quick or must not disturb.

use std::time::Duration;

use sharding::times::Times;

use crate::world::World;

fn settled(n_seeds: usize, n_nodes: usize, seed: u64) -> World {
    let mut world = World::new(seed, n_seeds, n_nodes, Times::default());
    world.run_until(Duration::from_secs(4)).expect("no violation");
    assert!(world.is_whole());
    world
}

/// How long it takes until every shard is owned again.
fn until_whole(world: &mut World) -> Duration {
    let began = world.real;
    while !world.is_whole() {
        world.run_until(world.real + Duration::from_millis(5)).expect("no violation");
        assert!(world.real < began + Duration::from_secs(10), "it does not recover");
    }
    world.real - began
}

#[test]
fn a_crashed_owners_shards_are_owned_again_within_a_lease_and_its_guard() {
    for seed in 0..50 {
        let mut world = settled(3, 4, seed);
        world.crash(3);
        let time = until_whole(&mut world);
        assert!(time <= Duration::from_millis(1600), "{time:?}");
    }
}

#[test]
fn a_coordinators_crash_disturbs_no_other_owner() {
    for seed in 0..50 {
        let mut world = settled(3, 4, seed);
        let crashed = world.coordinator().expect("somebody coordinates");
        let masks = |world: &World| -> Vec<u64> {
            let mask = |node: usize| match &world.machines[node].life {
                Some(life) if life.ownership.holds(world.now(node)) => life.mask,
                _ => 0,
            };
            (0..4).filter(|node| *node != crashed).map(mask).collect()
        };
        let before = masks(&world);
        world.crash(crashed);
        let crash = world.real;
        while !world.is_whole() {
            world.run_until(world.real + Duration::from_millis(5)).expect("no violation");
            let kept = masks(&world).iter().zip(&before).all(|(now, before)| now & before == *before);
            // When the crashed one's shards are shared out anew, some of the others' may move as well.
            assert!(kept || world.is_whole(), "an owner lost a shard {:?} after the crash", world.real - crash);
            assert!(world.real < crash + Duration::from_secs(3), "it does not recover");
        }
    }
}

#[test]
fn a_process_that_starts_again_at_once_owns_again_at_once() {
    for seed in 0..50 {
        let mut world = settled(3, 4, seed);
        world.crash(3);
        world.start(3);
        let time = until_whole(&mut world);
        assert!(time <= Duration::from_millis(600), "{time:?}");
    }
}

#[test]
fn a_node_that_leaves_gives_everything_away_at_once() {
    for seed in 0..50 {
        let mut world = settled(3, 4, seed);
        let now = world.now(3);
        world.machines[3].life.as_mut().expect("alive").ownership.handle_leave(now);
        let began = world.real;
        while !world.machines[3].life.as_ref().is_none_or(|life| life.has_left) {
            world.run_until(world.real + Duration::from_millis(5)).expect("no violation");
            assert!(world.real < began + Duration::from_secs(1), "it does not get away");
        }
        world.crash(3);
        assert!(until_whole(&mut world) <= Duration::from_millis(300));
    }
}

#[test]
fn without_a_majority_nobody_owns_after_a_while_and_all_heals_when_it_is_back() {
    for seed in 0..20 {
        let mut world = settled(3, 4, seed);
        world.crash(0);
        world.crash(1);
        world.run_until(world.real + Duration::from_millis(600 + 1200 + 50)).expect("no violation");
        for node in 2..4 {
            let life = world.machines[node].life.as_ref().expect("alive");
            assert!(!life.ownership.holds(world.now(node)), "pod-{node} still owns");
        }
        world.start(0);
        assert!(until_whole(&mut world) <= Duration::from_secs(4));
    }
}

#[test]
fn after_all_were_killed_with_their_clocks_set_back_there_is_one_cluster_of_a_higher_term() {
    for seed in 0..20 {
        let mut world = settled(3, 4, seed);
        let before = world.highest_term;
        // One survives, and remembers the term.
        for node in 0..3 {
            world.crash(node);
            world.set_wall(node, -3_600_000_000);
            world.start(node);
        }
        until_whole(&mut world);
        world.run_until(world.real + Duration::from_secs(4)).expect("no violation");
        assert!(world.is_whole() && world.highest_term > before);
    }
}

#[test]
fn after_all_were_killed_with_their_clocks_set_back_their_fences_are_overcome() {
    for seed in 0..50 {
        let mut world = settled(3, 4, seed);
        let before = world.highest_term;
        for node in 0..4 {
            world.crash(node);
            world.set_wall(node, -3_600_000_000);
            world.start(node);
        }
        let began = world.real;
        while !(world.is_whole() && world.is_writable()) {
            world.run_until(world.real + Duration::from_millis(5)).expect("no violation");
            assert!(world.real < began + Duration::from_secs(6), "nothing can be written");
        }
        assert!(world.highest_term > before);
    }
}

#[test]
fn the_shards_of_a_node_that_is_heard_and_hears_nothing_go_to_others() {
    for seed in 0..50 {
        let mut world = settled(3, 4, seed);
        world.cut.extend((0..3).map(|seed| (seed, 3)));
        // The lease that it has runs out.
        world.run_until(world.real + Duration::from_millis(1300)).expect("no violation");
        assert!(!world.is_whole());
        let time = until_whole(&mut world);
        assert!(time <= Duration::from_millis(1600), "{time:?}");
        world.cut.clear();
        let owns = |world: &World| world.machines[3].life.as_ref().is_some_and(|life| life.mask != 0);
        let healed = world.real;
        while !(owns(&world) && world.is_whole()) {
            world.run_until(world.real + Duration::from_millis(5)).expect("no violation");
            assert!(world.real < healed + Duration::from_secs(3), "it does not come back");
        }
    }
}
