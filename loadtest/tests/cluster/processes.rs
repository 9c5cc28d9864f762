use loadtest::cluster::{Role, Signal};

use super::faults::{coordinator, stands_still};
use super::*;

fn things(n: usize) -> String {
    (0..n).map(|i| format!("INSERT INTO things VALUES ('key {i}', 'value {i}');")).collect()
}

#[test]
fn a_cluster_drains_at_once_though_clients_keep_their_connections() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    let idle: Vec<TcpStream> =
        (0..3).map(|pod| TcpStream::connect(it.cluster.http_address(pod)).expect("connects")).collect();
    for pod in 0..3 {
        assert_eq!(it.get(pod, "/things/a").status(), 200);
    }
    let began = Instant::now();
    assert_eq!(it.cluster.stop(), Vec::<String>::new(), "none had to be killed");
    assert!(began.elapsed() < Duration::from_secs(10), "it took {:?}", began.elapsed());
    drop(idle);
}

#[test]
fn a_router_goes_on_for_a_while_after_it_was_told_to_leave() {
    let mut scene = Scene::new("INSERT INTO things VALUES ('a', 'b')");
    scene.options.router_args = vec!["--drain-delay".to_owned(), "2s".to_owned()];
    let it = scene.start();
    let began = Instant::now();
    assert!(it.cluster.signal(Role::Router, 0, Signal::SIGTERM));
    eventually("it says that it leaves", || it.get(0, "/readyz").status() == 503);
    let answer = client().get(format!("{}/things/a", it.cluster.url(0))).send().expect("a new connection is answered");
    assert_eq!(header(&answer, "connection"), "close");
    assert_eq!(answer.text().expect("text"), "b");
    let status = it.cluster.wait_ended(Role::Router, 0, PATIENCE).expect("ends");
    assert!(status.success() && began.elapsed() >= Duration::from_secs(2), "{status} after {:?}", began.elapsed());
}

#[test]
fn a_request_in_flight_is_answered_before_its_router_and_node_leave() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    let owner = it.owner("things", "a");
    let database = it.database();
    database.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| it.get(owner, "/things/a").text().expect("text"));
        eventually("the load is in the air", || {
            let page: serde_json::Value = it.get((owner + 1) % 3, "/-/explain/things/a").json().expect("JSON");
            page["at_owner"]["is_loading"] == true
        });
        assert!(it.cluster.signal(Role::Router, owner, Signal::SIGTERM));
        assert!(it.cluster.signal(Role::Node, owner, Signal::SIGTERM));
        eventually("the node drains", || {
            let ready = it.client.get(format!("{}/readyz", it.cluster.control(owner))).send();
            ready.is_ok_and(|answer| answer.status() == 503)
        });
        database.execute_batch("COMMIT").expect("unlocked");
        assert_eq!(waiting.join().expect("answered"), "b");
    });
    for role in [Role::Router, Role::Node] {
        let status = it.cluster.wait_ended(role, owner, PATIENCE).expect("ends");
        assert!(status.success(), "{role:?}: {status}");
    }
}

#[test]
fn a_killed_node_fails_no_read_and_its_shards_get_another_owner() {
    let it = Scene::new(&things(50)).start();
    let path = |key: &str| format!("/things/{}", key.replace(' ', "%20"));
    let key = |i: usize| format!("key%20{}", i % 50);
    let (lost, kept) = (it.key_of(1, "things", key), it.key_of(2, "things", key));
    assert_eq!(it.get(0, &path(&lost)).status(), 200);
    assert_eq!(it.get(0, &path(&kept)).status(), 200);

    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGKILL));
    it.cluster.wait_ended(Role::Node, 1, PATIENCE).expect("killed");
    let mut passed = 0;
    eventually("the lost key is kept by another owner", || {
        for pod in 0..3 {
            assert_eq!(it.get(pod, &path(&lost)).status(), 200, "no read fails");
            assert_eq!(it.get(pod, &path(&kept)).status(), 200, "no read fails");
            assert_eq!(it.get(pod, "/readyz").status(), 200, "a router is not sick because a node is");
        }
        let answer = it.get(0, &path(&lost));
        passed += usize::from(header(&answer, "cache-status").contains("pass-through"));
        header(&answer, "cache-status").contains("; hit")
    });
    assert!(passed > 0, "until then it was read past its owner");
    assert!(it.sum("cache_node_database_keys_total", &["reason=\"pass_through\""]) > 0.0);

    it.cluster.start_again(Role::Node, 1).expect("starts");
    it.cluster.wait_ready(PATIENCE).expect("it has its share again");
    assert_eq!(it.get(0, &path(&lost)).status(), 200);
}

#[test]
fn a_killed_coordinator_is_replaced_by_one_of_a_higher_term() {
    let it = Scene::new(&things(50)).start();
    let term = || it.get(0, "/-/map").json::<serde_json::Value>().expect("JSON")["epoch"]["term"][0].as_u64();
    let (leader, before) = (coordinator(&it), term());
    assert!(it.cluster.signal(Role::Node, leader, Signal::SIGKILL));
    eventually("another coordinates", || (0..3).any(|pod| pod != leader && it.coordinates(pod)));
    eventually("its map is known", || {
        assert_eq!(it.get((leader + 1) % 3, "/things/key%201").status(), 200, "no read fails");
        term() > before
    });
}

#[test]
fn a_cluster_that_was_killed_is_one_again_by_itself() {
    let it = Scene::new(&things(50)).start();
    let term = || it.get(0, "/-/map").json::<serde_json::Value>().expect("JSON")["epoch"]["term"][0].as_u64();
    let before = term();
    for pod in 0..3 {
        assert!(it.cluster.signal(Role::Node, pod, Signal::SIGKILL));
        it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("killed");
    }
    for pod in 0..3 {
        it.cluster.start_again(Role::Node, pod).expect("starts");
    }
    it.cluster.wait_ready(PATIENCE).expect("ready");
    eventually("the routers know the new map", || term() > before);
    assert_eq!(it.get(0, "/things/key%201").status(), 200);
}

#[test]
fn without_a_majority_reads_go_through_and_all_heals_when_it_is_back() {
    let it = Scene::new(&things(50)).start();
    for pod in 0..2 {
        assert!(it.cluster.signal(Role::Node, pod, Signal::SIGKILL));
        it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("killed");
    }
    eventually("the third stops owning and says why", || {
        let answer = it.client.get(format!("{}/-/node", it.cluster.control(2))).send().expect("it lives");
        answer.text().expect("text").contains("its lease")
    });
    let ready = it.client.get(format!("{}/readyz", it.cluster.control(2))).send().expect("it lives");
    assert_eq!(ready.status(), 200, "a node is not sick because others are");
    for i in 0..10 {
        let answer = it.get(2, &format!("/things/key%20{i}"));
        assert_eq!(answer.status(), 200, "{:?}", answer.headers());
        assert!(header(&answer, "cache-status").contains("pass-through"), "{:?}", answer.headers());
    }
    it.cluster.start_again(Role::Node, 0).expect("starts");
    eventually("it owns again", || header(&it.get(2, "/things/key%201"), "cache-status").contains("; hit"));
}

#[test]
fn a_seed_that_the_map_does_not_know_reads_past_owners_that_are_gone() {
    let it = Scene::new(&things(50)).start();
    let leader = coordinator(&it);
    let (first, last) = ((leader + 1) % 3, (leader + 2) % 3);
    for pod in [first, leader] {
        assert!(it.cluster.signal(Role::Node, pod, Signal::SIGTERM));
        it.cluster.wait_ended(Role::Node, pod, PATIENCE).expect("it leaves");
    }
    let owners = || it.get(last, "/-/map").json::<serde_json::Value>().expect("JSON")["owners"].clone();
    eventually("one owns all", || owners().as_object().is_some_and(|owners| owners.len() == 1));
    assert!(it.cluster.signal(Role::Node, last, Signal::SIGKILL));
    it.cluster.wait_ended(Role::Node, last, PATIENCE).expect("killed");
    it.cluster.start_again(Role::Node, first).expect("starts");
    eventually("it lives", || it.client.get(format!("{}/livez", it.cluster.control(first))).send().is_ok());
    for i in 0..50 {
        let answer = it.get(last, &format!("/things/key%20{i}"));
        assert_eq!(answer.status(), 200, "{:?}", answer.text());
        assert!(header(&answer, "cache-status").contains("pass-through"), "{:?}", answer.headers());
    }
}

#[test]
fn a_process_that_ended_is_started_again_where_it_was() {
    let mut scene = Scene::new("INSERT INTO things VALUES ('a', 'b')");
    scene.options.restart = true;
    let it = scene.start();
    for role in [Role::Node, Role::Router] {
        let pid = it.cluster.pid(role, 2).expect("it runs");
        assert!(it.cluster.signal(role, 2, Signal::SIGKILL));
        let other = it.cluster.wait_restarted(role, 2, pid, PATIENCE).expect("started again");
        assert_ne!(pid, other);
    }
    eventually("all are ready", || it.cluster.not_ready().is_ok_and(|waits_for| waits_for.is_none()));
    assert_eq!(it.get(2, "/things/a").text().expect("text"), "b");
}

#[test]
fn a_stopped_node_loses_its_shards_and_serves_nothing_of_them_when_it_goes_on() {
    let it = Scene::new(&things(50)).start();
    let key = it.key_of(1, "things", |i| format!("key%20{}", i % 50));
    let path = format!("/things/{key}");
    assert_eq!(it.get(0, &path).status(), 200);
    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGSTOP));
    // The signal is sent: its threads stop when they hear of it.
    eventually("all of it stands still", || stands_still(it.cluster.pid(Role::Node, 1).expect("it runs")));
    let answer = it.get(0, &path);
    assert_eq!(answer.status(), 200, "the next owner answers: {:?}", answer.text());
    eventually("another owner keeps it", || header(&it.get(0, &path), "cache-status").contains("; hit"));
    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGCONT));
    // What waited for it is answered by now, and not out of its memory.
    let hits = it.samples_of(1).expect("it goes on").sum("cache_node_requests_total", &["result=\"hit\""]);
    assert_eq!(hits, 0.0, "it serves nothing from memory that was not asked of it before");
    it.cluster.wait_ready(PATIENCE).expect("it joins again");
}

#[test]
fn many_keys_in_one_request_are_read_though_a_node_stands_still() {
    let it = Scene::new(&things(60)).start();
    let keys: Vec<String> = (0..60).map(|i| format!("key {i}")).collect();
    let ask = || -> serde_json::Value {
        let url = format!("{}/things", it.cluster.url(0));
        let answer = it.client.post(url).json(&serde_json::json!({ "keys": keys })).send().expect("an answer");
        let mut answer: serde_json::Value = answer.json().expect("JSON");
        let results = answer["results"].as_array_mut().expect("results");
        results.iter_mut().filter_map(|result| result.as_object_mut()?.remove("age")).for_each(drop);
        answer
    };
    let warm = ask();
    let others = keys.iter().filter(|key| it.owner("things", &key.replace(' ', "%20")) != 1).count();
    assert!((1..keys.len()).contains(&others), "all pods own some of the keys: {others}");
    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGSTOP));
    // The signal is sent: its threads stop when they hear of it.
    eventually("all of it stands still", || stands_still(it.cluster.pid(Role::Node, 1).expect("it runs")));
    let hits = || -> f64 {
        let of = |pod| it.samples_of(pod).expect("it runs").sum("cache_node_requests_total", &["result=\"hit\""]);
        of(0) + of(2)
    };
    let before = hits();
    let answer = ask();
    assert_eq!(answer, warm, "those of the one that stands still come past it");
    assert_eq!(hits() - before, others as f64, "the others' come from memory");
    let results = answer["results"].as_array().expect("results");
    assert!(results.len() == keys.len() && results.iter().all(|result| result["status"] == 200), "{answer}");
}

#[test]
fn a_node_that_joins_gets_its_share_and_one_that_leaves_gives_it_back() {
    let mut scene = Scene::new(&things(50));
    scene.options.pods = 4;
    let it = scene.start();
    let owners = |it: &Running| {
        let map = it.get(0, "/-/map").json::<serde_json::Value>().expect("JSON");
        map["owners"].as_object().expect("owners").len()
    };
    // Three seeds; the fourth has joined by itself.
    eventually("four own", || owners(&it) == 4);
    assert!(it.cluster.signal(Role::Node, 3, Signal::SIGTERM));
    for i in 0..200 {
        assert_eq!(it.get(i % 3, &format!("/things/key%20{}", i % 50)).status(), 200, "no read fails");
    }
    let status = it.cluster.wait_ended(Role::Node, 3, PATIENCE).expect("it leaves");
    assert!(status.success(), "{status}");
    eventually("three own", || owners(&it) == 3);
}
