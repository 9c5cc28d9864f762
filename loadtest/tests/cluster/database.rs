use serde_json::Value;

use super::*;

#[test]
fn a_database_error_is_answered_and_the_next_request_tries_again() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    it.database().execute_batch("ALTER TABLE things RENAME TO away").expect("renamed");
    let answer = it.get(0, "/things/a");
    assert_eq!((answer.status().as_u16(), header(&answer, "content-type")), (502, "application/problem+json"));
    let request_id = header(&answer, "x-request-id").to_owned();
    let problem: Value = answer.json().expect("JSON");
    assert_eq!(problem["request_id"], request_id.as_str());
    assert!(problem["detail"].as_str().expect("a detail").contains("no such table"), "{problem}");
    let log = std::fs::read_to_string(it.cluster.log(loadtest::cluster::Role::Router, 0)).expect("a log");
    assert!(log.contains(&request_id), "the id is in the router's log: {log}");
    assert_eq!(it.get(1, "/things/a").status(), 502);
    assert_eq!(it.sum("cache_node_requests_total", &["result=\"failed\""]), 2.0);

    it.database().execute_batch("ALTER TABLE away RENAME TO things").expect("renamed back");
    assert_eq!(it.get(2, "/things/a").text().expect("text"), "b");
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 3.0);
}

#[test]
fn a_request_whose_deadline_passes_is_answered_and_its_load_serves_the_next() {
    let mut scene = Scene::new("INSERT INTO things VALUES ('a', 'b')");
    scene.options.router_args = vec!["--request-timeout".to_owned(), "200ms".to_owned()];
    let it = scene.start();
    let database = it.database();
    database.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
    let began = Instant::now();
    let answer = it.get(0, "/things/a");
    assert_eq!(answer.status(), 503);
    // Not at once, and not by the router's own deadline, which would be a 504.
    assert!(began.elapsed() >= Duration::from_millis(150));
    assert!(!header(&answer, "retry-after").is_empty());
    let problem: Value = answer.json().expect("JSON");
    assert_eq!(problem["type"], "urn:distributed-cache:problem:database-silent");
    database.execute_batch("COMMIT").expect("unlocked");
    eventually("the value comes", || it.get(1, "/things/a").status() == 200);
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 1.0, "the load went on, and was the only one");
}

#[test]
fn a_request_for_many_keys_has_one_deadline() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    let mut scene = Scene::new("INSERT INTO things VALUES ('a', 'b')");
    scene.options.router_args = vec!["--request-timeout".to_owned(), format!("{TIMEOUT:?}")];
    let it = scene.start();
    let database = it.database();
    database.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
    let keys: Vec<String> = (0..1000).map(|key| key.to_string()).collect();
    let began = Instant::now();
    let url = format!("{}/things", it.cluster.url(0));
    let answer = it.client.post(url).json(&serde_json::json!({ "keys": keys })).send().expect("an answer");
    // They are asked for in four parts.
    assert!(began.elapsed() < 3 * TIMEOUT, "{:?}", began.elapsed());
    let page: Value = answer.json().expect("JSON");
    let statuses = page["results"].as_array().expect("a list").iter().map(|result| result["status"].as_u64());
    let statuses: Vec<u64> = statuses.flatten().collect();
    assert!(statuses.len() == keys.len() && statuses.iter().all(|status| [503, 504].contains(status)), "{page}");
    database.execute_batch("COMMIT").expect("unlocked");
}

#[test]
fn a_database_that_stays_locked_is_away_and_not_a_hang() {
    let mut scene = Scene::new("INSERT INTO things VALUES ('a', 'b')");
    // Long enough for the second try of a read that found it away.
    scene.options.router_args = vec!["--request-timeout".to_owned(), "10s".to_owned()];
    let it = scene.start();
    let database = it.database();
    database.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
    let answer = it.get(0, "/things/a");
    assert_eq!(answer.status(), 503);
    assert!(!header(&answer, "retry-after").is_empty());
    let problem: Value = answer.json().expect("JSON");
    assert_eq!(problem["type"], "urn:distributed-cache:problem:database-silent");
    let detail = problem["detail"].as_str().expect("a detail");
    assert!(detail.contains("database is locked") && !detail.contains("test.db"), "{detail}");
    database.execute_batch("COMMIT").expect("unlocked");
    eventually("it is read again", || it.get(0, "/things/a").status() == 200);
}
