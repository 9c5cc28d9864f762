//! Processes that stand still or lose each other under load: no read fails, and all heals by itself.

use loadtest::cluster::{Party, Role, Signal};

use super::faults::{KEYS, Seen, WHOLE_MAX, coordinator, is_whole_without, map, runs, settled, under_load};
use super::*;

/// Longer than any failover.
const CUT: Duration = Duration::from_secs(4);

/// Waits for the end of `began + longest`; says when the victim had lost its shards, if it did.
fn watch(it: &Running, victim: usize, began: Instant, longest: Duration) -> Option<Duration> {
    let mut whole = None;
    while began.elapsed() < longest {
        if whole.is_none() && is_whole_without(&map(it, (victim + 1) % 3), victim) {
            whole = Some(began.elapsed());
        }
        std::thread::sleep(PAUSE);
    }
    whole
}

fn report(what: &str, run: u64, whole: Option<Duration>, seen: &Seen) {
    let whole = whole.map_or("the owner stays".to_owned(), |whole| format!("new owners after {whole:?}"));
    println!("{what}, run {run}: {whole}; {seen}");
    assert!(seen.errors.is_empty(), "{what}: {seen}");
}

fn stands_still(pause: Duration) {
    let it = Scene::demo(KEYS).start();
    for run in 1..=runs() {
        let leader = coordinator(&it);
        // The coordinator in every other run.
        let victim = if run % 2 == 0 { leader } else { (leader + 1) % 3 };
        let (whole, seen) = under_load(&it, || {
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGSTOP));
            let whole = watch(&it, victim, Instant::now(), pause);
            assert!(it.cluster.signal(Role::Node, victim, Signal::SIGCONT));
            settled(&it, 3);
            whole
        });
        report(&format!("SIGSTOP for {pause:?}"), run, whole, &seen);
        assert!(pause < Duration::from_secs(3) || whole.is_some(), "nobody took over");
    }
}

#[test]
fn a_node_that_stands_still_for_1_s_fails_no_read() {
    stands_still(Duration::from_secs(1));
}

#[test]
fn a_node_that_stands_still_for_3_s_fails_no_read() {
    stands_still(Duration::from_secs(3));
}

#[test]
fn a_node_that_stands_still_for_10_s_fails_no_read() {
    stands_still(Duration::from_secs(10));
}

fn scene() -> Running {
    let mut scene = Scene::demo(KEYS);
    scene.options.relayed = true;
    scene.start()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Both,
    /// What it says is not heard.
    From,
    /// It hears nothing.
    To,
}

fn cut(it: &Running, one: Party, other: Party, way: Way) {
    if way != Way::To {
        it.cluster.cut(one, other);
    }
    if way != Way::From {
        it.cluster.cut(other, one);
    }
}

/// Cuts a node off from all other processes.
fn is_cut_off(way: Way) {
    let it = scene();
    for run in 1..=runs() {
        let leader = coordinator(&it);
        let victim = if run % 2 == 0 { leader } else { (leader + 1) % 3 };
        let (whole, seen) = under_load(&it, || {
            let began = Instant::now();
            for pod in 0..3 {
                cut(&it, (Role::Node, victim), (Role::Router, pod), way);
                if pod != victim {
                    cut(&it, (Role::Node, victim), (Role::Node, pod), way);
                }
            }
            let whole = watch(&it, victim, began, CUT);
            it.cluster.heal();
            settled(&it, 3);
            whole
        });
        report(&format!("a node cut off ({way:?})"), run, whole, &seen);
        assert!(whole.is_some_and(|whole| whole < WHOLE_MAX), "nobody took over");
    }
}

#[test]
fn a_node_that_is_cut_off_fails_no_read() {
    is_cut_off(Way::Both);
}

#[test]
fn a_node_that_nobody_hears_fails_no_read() {
    is_cut_off(Way::From);
}

#[test]
fn a_node_that_hears_nobody_fails_no_read() {
    is_cut_off(Way::To);
}

/// H9: no failover ever comes, since the owner is well.
#[test]
fn a_router_that_is_cut_off_from_a_healthy_owner_costs_the_database_nothing() {
    let it = scene();
    // All keys are in memory, and stay there: the demo's entries live a minute.
    (1..=KEYS).for_each(|key| assert_eq!(it.get(0, &format!("/cache-data/{key}")).status(), 200));
    for (run, way) in (1..).zip([Way::Both, Way::From, Way::To]) {
        let count = |result| it.sum("cache_node_requests_total", &[result]);
        let (read_before, relayed_before) = (count("result=\"pass_through\""), count("result=\"relayed\""));
        let ((), seen) = under_load(&it, || {
            cut(&it, (Role::Router, 0), (Role::Node, 1), way);
            let whole = watch(&it, 1, Instant::now(), CUT);
            assert_eq!(whole, None, "the owner is well");
            it.cluster.heal();
        });
        report(&format!("a router cut off from an owner ({way:?})"), run, None, &seen);
        let (read, relayed) =
            (count("result=\"pass_through\"") - read_before, count("result=\"relayed\"") - relayed_before);
        // A slow first connection may cost a read or two.
        assert!(read < relayed / 100.0, "{read} reads past the owner, {relayed} relayed");
    }
}
