//! A server that is away: what is in memory is served, the rest is told when to come again, and all is well soon after it
//! is back.

use nix::sys::signal::Signal;

use super::*;

/// Keys that are in memory before.
const WARM: u64 = 200;

fn away(kind: Kind) {
    let time = Duration::from_secs(if is_long() { 60 } else { 5 });
    let server = Server::start(kind, 100_000);
    let mut it = Plan::new(server).region("ttl = \"1s\"\nmax_stale = \"10m\"\n").start();
    let told = it.read_all(|i| format!("k{i}"), WARM, 16, 1);
    assert_eq!(told.statuses.get(&200), Some(&WARM), "{told:?}");
    it.server.signal(Signal::SIGKILL);

    // What is in memory goes on being served, stale as it is.
    let warm = Load::start(&it, 4, || fastrand::u64(1..=WARM));
    let cold = Load::start(&it, 4, || fastrand::u64(WARM + 1..=100_000));
    std::thread::sleep(time);
    let (warm, cold) = (warm.end(), cold.end());
    println!("{kind:?} away for {time:?}: in memory {warm:?}, cold {cold:?}");
    assert_eq!(warm.statuses.keys().collect::<Vec<_>>(), [&200], "{warm:?}");
    assert!(
        cold.statuses.keys().all(|status| [502, 503].contains(status)) && cold.without_retry_after == 0,
        "{cold:?}"
    );
    assert!(cold.slowest < DEADLINE && warm.wrong == 0, "{cold:?}");

    let before = it.operations().len();
    it.server.start_again();
    let back = Instant::now();
    let load = Load::start(&it, 4, || fastrand::u64(WARM + 1..=100_000));
    eventually("cold keys are served again", || {
        it.get(0, &format!("/things/k{}", fastrand::u64(WARM + 1..=100_000))).status() == 200
    });
    let time = back.elapsed();
    // All routers, all nodes.
    eventually("everywhere", || {
        (0..30).all(|i| it.get(i % 3, &format!("/things/k{}", WARM + 1 + i as u64)).status() == 200)
    });
    let told = load.end();
    println!("{kind:?} serves again {time:?} after it is back, everywhere after {:?}; {told:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(5), "{:?}", back.elapsed());
    // One key is asked for once: nothing was saved up for the return.
    let operations = it.operations();
    let asked = servers::asked(&operations[before.min(operations.len())..]);
    let twice = asked.values().filter(|n| **n > 3).count();
    assert!(twice == 0, "{twice} keys were asked for again and again");
}

#[test]
fn what_is_in_memory_is_served_while_postgresql_is_away() {
    away(Kind::Postgres);
}

#[test]
fn what_is_in_memory_is_served_while_redis_is_away() {
    away(Kind::Redis);
}

/// A server that takes what it is sent and does not answer.
fn silent(kind: Kind) {
    let mut it = Plan::new(Server::start(kind, 1000)).start();
    assert_eq!(it.get(0, "/things/k1").status(), 200);
    it.server.signal(Signal::SIGSTOP);
    let load = Load::start(&it, 8, || fastrand::u64(2..=1000));
    std::thread::sleep(Duration::from_secs(4));
    let told = load.end();
    println!("{kind:?} silent: {told:?}");
    assert!(
        told.statuses.keys().all(|status| [502, 503].contains(status)) && told.without_retry_after == 0,
        "{told:?}"
    );
    assert!(told.slowest < DEADLINE, "{told:?}");
    assert_eq!(it.get(1, "/things/k1").status(), 200, "it is in memory");
    it.server.signal(Signal::SIGCONT);
    eventually("it serves again", || it.get(0, "/things/k999").status() == 200);
}

#[test]
fn a_postgresql_that_is_silent_keeps_nobody_waiting_past_the_deadline() {
    silent(Kind::Postgres);
}

#[test]
fn a_redis_that_is_silent_keeps_nobody_waiting_past_the_deadline() {
    silent(Kind::Redis);
}

#[test]
fn a_server_that_is_away_when_the_nodes_start_is_found_when_it_comes() {
    for kind in [Kind::Postgres, Kind::Redis] {
        let mut server = Server::start(kind, 10);
        server.signal(Signal::SIGKILL);
        let mut it = Plan::new(server).start();
        assert_eq!(it.get(0, "/things/k1").status(), 503);
        it.server.start_again();
        eventually("it is found", || it.get(0, "/things/k1").status() == 200);
    }
}
