//! Values, and how often the database is asked for them.

use std::collections::BTreeSet;

use super::servers::asked;
use super::*;

/// Requests for one key at the same time.
const STAMPEDE: u64 = 5000;
/// So long a value is kept; a stampede is over much sooner.
const LIFE: Duration = Duration::from_secs(12);
/// At most so many of them are open at a time, as far as the machine's open files go.
const STAMPEDE_AT_ONCE: usize = 1000;

fn scene(kind: Kind, n_rows: u64) -> Scene {
    Plan::new(Server::start(kind, n_rows)).start()
}

fn serves(kind: Kind) {
    let it = scene(kind, 10);
    for pod in 0..3 {
        assert_eq!(it.get(pod, "/things/k7").text().expect("text"), "v7");
        assert_eq!(it.get(pod, "/things/k11").status(), 404);
        // Foreign to whatever database: quotes, commas and braces of its own lists, bytes that are no text.
        for strange in ["k'1", "k%221", "k%2C1", "%7Bk1%7D", "k%5C1", "%FF%00", "NULL", "%C3%A4"] {
            assert_eq!(it.get(pod, &format!("/things/{strange}")).status(), 404, "{kind:?} {strange}");
        }
    }
    let many = serde_json::json!({"keys": (1..=10).map(|i| format!("k{i}")).collect::<Vec<_>>()});
    let answer = it.client.post(format!("{}/things", it.cluster.url(0))).json(&many).send().expect("an answer");
    let page: serde_json::Value = answer.json().expect("JSON");
    assert_eq!(page["results"].as_array().map(Vec::len), Some(10));
    assert!(page["results"].as_array().into_iter().flatten().all(|result| result["status"] == 200), "{page}");
    let explained: serde_json::Value = it.get(0, "/-/explain/things/k7").json().expect("JSON");
    assert!(explained.to_string().contains("\"loaded\":\""), "{explained}");
}

#[test]
fn sqlite_serves_values_and_only_those_that_are_there() {
    serves(Kind::Sqlite);
}

#[test]
fn postgresql_serves_values_and_only_those_that_are_there() {
    serves(Kind::Postgres);
}

#[test]
fn redis_serves_values_and_only_those_that_are_there() {
    serves(Kind::Redis);
}

/// 5,000 requests over all routers for one key cost one operation, whether it is cold, expired or absent.
fn stampede(kind: Kind) {
    let it = Plan::new(Server::start(kind, 2))
        .region(&format!("ttl = \"{LIFE:?}\"\nmax_stale = \"{LIFE:?}\"\nabsent_ttl = \"{LIFE:?}\"\n"))
        .start();
    let loaded = Instant::now();
    assert_eq!(it.get(0, "/things/k1").text().expect("text"), "v1");
    for (what, key, status) in [("cold", "k2", 200), ("absent", "none", 404), ("expired", "k1", 200)] {
        if what == "expired" {
            std::thread::sleep(LIFE.saturating_sub(loaded.elapsed()));
        }
        let before = it.operations().len();
        let began = Instant::now();
        let told = it.read_all(|_| key.to_owned(), STAMPEDE, STAMPEDE_AT_ONCE, 1);
        let time = began.elapsed();
        assert_eq!(
            told.statuses.keys().copied().collect::<BTreeSet<_>>(),
            BTreeSet::from([status]),
            "{what}: {told:?}"
        );
        let n_operations = it.operations().len() - before;
        println!("{kind:?}, {what}: {STAMPEDE} requests in {time:?}, {n_operations} operations");
        // Unless it has expired again on a machine that is slow.
        let is_one = n_operations == 1 || time > LIFE / 2;
        let n_passed = it.sum("cache_node_database_operations_total", &["reason=\"pass_through\""]);
        assert!(is_one, "{what}: {n_operations} operations in {time:?}; {n_passed} past owners since the start");
    }
}

#[test]
fn a_stampede_costs_sqlite_one_operation() {
    stampede(Kind::Sqlite);
}

#[test]
fn a_stampede_costs_postgresql_one_operation() {
    stampede(Kind::Postgres);
}

#[test]
fn a_stampede_costs_redis_one_operation() {
    stampede(Kind::Redis);
}

#[test]
fn postgresql_is_asked_with_the_type_that_a_key_has() {
    let server = Server::start(Kind::Postgres, 1);
    server.execute(
        "CREATE TABLE numbers (id integer PRIMARY KEY, body jsonb); INSERT INTO numbers VALUES (42, '{\"a\": 1}'); \
         CREATE TABLE uuids (id uuid PRIMARY KEY, body bytea); \
         INSERT INTO uuids VALUES ('0188b7b0-0000-4000-8000-0123456789ab', '\\x00ff')",
    );
    let region = |name: &str| {
        format!("[region.{name}]\ndatabase = \"main\"\nload = \"SELECT id, body FROM {name} WHERE id = ANY(:keys);\"\n")
    };
    let it = Plan::new(server).region(&region("numbers")).region(&region("uuids")).start();
    assert_eq!(it.get(0, "/numbers/42").text().expect("text"), "{\"a\": 1}");
    for other in ["042", "x", "99999999999", "42.0"] {
        assert_eq!(it.get(0, &format!("/numbers/{other}")).status(), 404, "{other}");
    }
    let uuid = "0188b7b0-0000-4000-8000-0123456789ab";
    assert_eq!(it.get(1, &format!("/uuids/{uuid}")).bytes().expect("bytes").to_vec(), [0, 255]);
    assert_eq!(it.get(1, &format!("/uuids/{}", uuid.to_uppercase())).status(), 404);
    // A table that changes under prepared statements: other columns, and keys that did not fit before.
    let big = "/numbers/3000000000";
    assert_eq!(it.get(0, big).status(), 404);
    it.server.execute("ALTER TABLE numbers ALTER COLUMN id TYPE bigint; INSERT INTO numbers VALUES (3000000000, '{}')");
    eventually("the key fits", || it.get(0, big).status() == 200);
    it.server.execute("DROP TABLE numbers; CREATE TABLE numbers (id text PRIMARY KEY, body text); INSERT INTO numbers VALUES ('x1', 'X')");
    eventually("keys are texts now", || it.get(1, "/numbers/x1").status() == 200);
    it.server.execute("DROP TABLE numbers; CREATE TABLE numbers (id bigint PRIMARY KEY, body text); INSERT INTO numbers VALUES (7, 'Y')");
    assert_eq!(it.get(2, "/numbers/7").text().expect("text"), "Y", "and numbers again, without an error");
    it.server.execute("ALTER TABLE numbers ADD COLUMN more text; INSERT INTO numbers VALUES (43, '{}')");
    eventually("the statement is prepared anew", || it.get(0, "/numbers/43").status() == 200);
}

#[test]
fn redis_gives_a_field_of_a_hash() {
    let server = Server::start(Kind::Redis, 1);
    let mut redis = redis::Client::open(server.url()).and_then(|client| client.get_connection()).expect("connects");
    let set = |key: &str, field: &str| redis::cmd("HSET").arg(key).arg(field).arg("of the hash").to_owned();
    set("h:1", "body").exec(&mut redis).expect("stored");
    set("h:2", "other").exec(&mut redis).expect("stored");
    let hashes = "[region.hashes]\ndatabase = \"main\"\nkey = \"h:{key}\"\nfield = \"body\"\n";
    let it =
        Plan::new(server).region(hashes).region("[region.strings]\ndatabase = \"main\"\nkey = \"{key}\"\n").start();
    assert_eq!(it.get(0, "/hashes/1").text().expect("text"), "of the hash");
    assert_eq!(it.get(0, "/hashes/2").status(), 404, "no such field");
    assert_eq!(it.get(0, "/hashes/3").status(), 404, "no such key");
    assert_eq!(it.get(0, "/strings/h:1").status(), 404, "a hash is no string");
    assert_eq!(it.get(0, "/strings/thing:k1").text().expect("text"), "v1");
}

#[test]
fn the_database_itself_is_told_why_it_is_asked() {
    for kind in [Kind::Sqlite, Kind::Postgres] {
        let it = scene(kind, 10);
        it.get(0, "/things/k1");
        let log = match kind {
            Kind::Sqlite => it.logs().iter().map(|log| std::fs::read_to_string(log).expect("text")).collect::<String>(),
            _ => std::fs::read_to_string(it.server.path("server.log")).expect("a log"),
        };
        assert!(log.contains("/* distributed-cache region=things reason=cold */"), "{kind:?}: {log}");
    }
}

#[test]
fn every_key_is_read_once_by_few_operations() {
    for kind in [Kind::Postgres, Kind::Redis] {
        let it = Plan::new(Server::start(kind, 2000)).start();
        let told = it.read_all(|i| format!("k{i}"), 2000, 64, 1);
        assert_eq!((told.statuses.get(&200), told.wrong), (Some(&2000), 0), "{told:?}");
        let operations = it.operations();
        let asked = asked(&operations);
        assert!(asked.len() == 2000 && asked.values().all(|n| *n == 1), "{kind:?}: {}", asked.len());
        assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"cold\""]), 2000.0);
        println!("{kind:?}: 2000 keys in {} operations", operations.len());
    }
}
