use loadtest::cluster::{Role, Signal};

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
fn a_killed_node_costs_its_own_keys_only_and_comes_back_empty() {
    let it = Scene::new(&things(50)).start();
    let path = |key: &str| format!("/things/{}", key.replace(' ', "%20"));
    let key = |i: usize| format!("key%20{}", i % 50);
    let (lost, kept) = (it.key_of(1, "things", key), it.key_of(2, "things", key));
    assert_eq!(it.get(0, &path(&lost)).status(), 200);
    assert_eq!(it.get(0, &path(&kept)).status(), 200);

    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGKILL));
    it.cluster.wait_ended(Role::Node, 1, PATIENCE).expect("killed");
    for pod in 0..3 {
        let answer = it.get(pod, &path(&lost));
        assert_eq!((answer.status().as_u16(), header(&answer, "retry-after")), (503, "1"), "{:?}", answer.headers());
        assert!(header(&it.get(pod, &path(&kept)), "cache-status").contains("; hit"));
        assert_eq!(it.get(pod, "/readyz").status(), 200, "a router is not sick because a node is");
    }
    it.cluster.start_again(Role::Node, 1).expect("starts");
    it.cluster.wait_ready(PATIENCE).expect("ready");
    let answer = it.get(0, &path(&lost));
    assert!(header(&answer, "cache-status").contains("fwd=miss"), "{:?}", answer.headers());
    assert_eq!(answer.status(), 200);
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
fn a_stopped_node_ends_in_an_answer_by_the_deadline() {
    let mut scene = Scene::new(&things(50));
    scene.options.router_args = vec!["--request-timeout".to_owned(), "300ms".to_owned()];
    let it = scene.start();
    let key = it.key_of(1, "things", |i| format!("key%20{}", i % 50));
    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGSTOP));
    let began = Instant::now();
    assert_eq!(it.get(0, &format!("/things/{key}")).status(), 504);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(it.cluster.signal(Role::Node, 1, Signal::SIGCONT));
    eventually("it serves again", || it.get(0, &format!("/things/{key}")).status() == 200);
}
