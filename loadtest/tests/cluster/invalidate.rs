use loadtest::cluster::{Role, Signal};
use serde_json::{Value, json};

use super::faults::stands_still;
use super::*;

fn invalidate(it: &Running, pod: usize, wanted: &Value) -> (u16, Value) {
    let url = format!("{}/-/invalidate/things", it.cluster.url(pod));
    let answer = it.client.post(url).json(wanted).send().expect("an answer");
    (answer.status().as_u16(), answer.json().expect("JSON"))
}

fn reads(it: &Running, key: &str) -> Vec<String> {
    (0..3).map(|pod| it.get(pod, &format!("/things/{key}")).text().expect("text")).collect()
}

#[test]
fn what_was_invalidated_is_read_anew_by_whoever_asks_next() {
    let rows: Vec<String> = (1..=30).map(|i| format!("('k{i}', 'old')")).collect();
    let it = Scene::new(&format!("INSERT INTO things VALUES {}", rows.join(","))).start();
    let keys: Vec<String> = (1..=30).map(|i| format!("k{i}")).collect();
    keys.iter().for_each(|key| assert_eq!(reads(&it, key), ["old"; 3]));
    it.database().execute_batch("UPDATE things SET body = 'new'").expect("updated");
    keys.iter().for_each(|key| assert_eq!(reads(&it, key), ["old"; 3], "nobody has said so yet"));

    let (status, page) = invalidate(&it, 1, &json!({"keys": ["k1", "k2", "none"]}));
    assert_eq!((status, &page["is_complete"], &page["entries"]), (200, &true.into(), &2.into()), "{page}");
    let acknowledged = page["acknowledged"].as_object().expect("who");
    assert!(acknowledged.keys().all(|node| node.starts_with("pod-")), "{page}");
    let told: u64 = acknowledged.values().map(|one| one["n"].as_u64().expect("a number")).sum();
    assert_eq!(told, 3, "{page}");
    assert_eq!(
        (reads(&it, "k1"), reads(&it, "k2"), reads(&it, "k3")),
        (vec!["new".to_owned(); 3], vec!["new".to_owned(); 3], vec!["old".to_owned(); 3])
    );
    assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"invalidated\""]), 2.0);

    // k2, and k20 to k29.
    let (status, page) = invalidate(&it, 2, &json!({"prefix": "k2"}));
    assert_eq!((status, &page["entries"]), (200, &11.into()), "{page}");
    let shards: u64 =
        page["acknowledged"].as_object().expect("who").values().map(|one| one["n"].as_u64().expect("a number")).sum();
    assert_eq!(shards, 1024, "every shard's owner has said so: {page}");
    assert_eq!((reads(&it, "k25"), reads(&it, "k3")), (vec!["new".to_owned(); 3], vec!["old".to_owned(); 3]));
    let (status, page) = invalidate(&it, 0, &json!({"prefix": ""}));
    assert_eq!((status, &page["is_complete"]), (200, &true.into()), "{page}");
    keys.iter().for_each(|key| assert_eq!(reads(&it, key), ["new"; 3]));
    assert_eq!(
        it.sum("cache_node_entries_invalidated_total", &[]),
        2.0 + 11.0 + page["entries"].as_f64().expect("a number")
    );
}

#[test]
fn what_nobody_could_acknowledge_is_said() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    let victim = it.owner("things", "a");
    let router = (victim + 1) % 3;
    assert_eq!(it.get(router, "/things/a").status(), 200);
    assert!(it.cluster.signal(Role::Node, victim, Signal::SIGSTOP));
    eventually("all of it stands still", || stands_still(it.cluster.pid(Role::Node, victim).expect("it runs")));
    let (status, page) = invalidate(&it, router, &json!({"keys": ["a"]}));
    assert_eq!((status, &page["is_complete"]), (503, &false.into()), "{page}");
    assert_eq!(
        (&page["missing"][0]["key"], page["missing"].as_array().map(Vec::len)),
        (&"a".into(), Some(1)),
        "{page}"
    );
    eventually("its next owner acknowledges", || invalidate(&it, router, &json!({"keys": ["a"]})).0 == 200);
    assert!(it.cluster.signal(Role::Node, victim, Signal::SIGCONT));
}

#[test]
fn an_invalidation_that_makes_no_sense_is_refused() {
    let it = Scene::new("").start();
    for wanted in [
        json!({}),
        json!({"keys": ["a"], "prefix": "a"}),
        json!({"keys": [""]}),
        json!({"key": "a"}),
        json!([]),
        json!([["a"], null]),
    ] {
        let (status, problem) = invalidate(&it, 0, &wanted);
        assert_eq!((status, &problem["type"]), (400, &"urn:distributed-cache:problem:bad-body".into()), "{wanted}");
    }
    let many: Vec<String> = (0..1001).map(|i| i.to_string()).collect();
    assert_eq!(invalidate(&it, 0, &json!({"keys": many})).0, 413);
    let url = |region: &str| format!("{}/-/invalidate/{region}", it.cluster.url(0));
    let answer = it.client.post(url("nothings")).json(&json!({"keys": ["a"]})).send().expect("an answer");
    assert_eq!(answer.status(), 404);
    let answer = it.client.get(url("things")).send().expect("an answer");
    assert_eq!((answer.status().as_u16(), header(&answer, "allow")), (405, "POST"));
}
