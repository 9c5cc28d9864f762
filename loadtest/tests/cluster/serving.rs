use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};

use loadtest::cluster::Role;
use serde_json::{Value, json};

use super::*;

#[test]
fn every_router_serves_the_same_value_and_the_database_is_asked_once() {
    let it = Scene::demo(100).start();
    let answers: Vec<Response> = (0..3).map(|pod| it.get(pod, "/cache-data/42")).collect();
    let statuses: Vec<&str> = answers.iter().map(|answer| header(answer, "cache-status")).collect();
    assert!(statuses[0].starts_with("distributed-cache; fwd=miss; stored; ttl="), "{statuses:?}");
    assert!(statuses[1..].iter().all(|status| status.starts_with("distributed-cache; hit; ttl=")), "{statuses:?}");
    let etag = header(&answers[0], "etag").to_owned();
    for answer in answers {
        assert_eq!(answer.status(), 200);
        assert_eq!(header(&answer, "content-type"), "application/json");
        assert_eq!(header(&answer, "etag"), etag);
        assert_eq!(answer.text().expect("text"), demo::product(42));
    }
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 1.0);

    let url = format!("{}/cache-data/42", it.cluster.url(1));
    let unchanged = it.client.get(&url).header("if-none-match", &etag).send().expect("an answer");
    assert_eq!((unchanged.status().as_u16(), header(&unchanged, "etag")), (304, etag.as_str()));
    let changed = it.client.get(&url).header("if-none-match", "\"other\"").send().expect("an answer");
    assert_eq!(changed.status(), 200);
    let head = it.client.head(&url).send().expect("an answer");
    assert_eq!((head.status().as_u16(), header(&head, "content-length")), (200, "1029"));
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 1.0);
}

#[test]
fn clients_are_told_what_the_region_says_of_keeping_its_values() {
    let second = REGION.replace("things]", "lasting]");
    let config = format!("{DATABASE}{REGION}{second}cache_control = \"public, max-age=5\"\n");
    let it = Scene::configured("INSERT INTO things VALUES ('a', 'b')", &config).start();
    assert_eq!(header(&it.get(0, "/things/a"), "cache-control"), "no-cache");
    assert_eq!(header(&it.get(0, "/lasting/a"), "cache-control"), "public, max-age=5");
}

#[test]
fn what_is_not_there_is_remembered_too() {
    let it = Scene::demo(100).start();
    let first = it.get(0, "/cache-data/4711");
    assert_eq!((first.status().as_u16(), header(&first, "content-type")), (404, "application/problem+json"));
    assert!(header(&first, "cache-status").contains("fwd=miss"), "{:?}", first.headers());
    let problem: Value = first.json().expect("JSON");
    assert_eq!(problem["type"], "urn:distributed-cache:problem:no-such-key");
    let second = it.get(1, "/cache-data/4711");
    assert_eq!(second.status(), 404);
    assert!(header(&second, "cache-status").contains("; hit"), "{:?}", second.headers());
    assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"cold\""]), 1.0);
}

#[test]
fn every_key_is_read_once_and_kept_once() {
    const KEYS: usize = 10_000;
    const THREADS: usize = 8;
    let mut scene = Scene::demo(KEYS as u64);
    scene.options.envs.push(("RUST_LOG".to_owned(), "cache_node::sqlite_trace=trace".to_owned()));
    let it = scene.start();
    let next = AtomicUsize::new(1);
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let key = next.fetch_add(1, Ordering::Relaxed);
                    if key > KEYS {
                        return;
                    }
                    let answer = it.get(fastrand::usize(..3), &format!("/cache-data/{key}"));
                    assert_eq!(answer.text().expect("text"), demo::product(key as u64));
                }
            });
        }
    });
    let samples = it.samples();
    let keys = samples.sum("cache_node_database_keys_total", &["database=\"main\"", "reason=\"cold\""]);
    assert_eq!(keys, KEYS as f64, "keys that the nodes say they asked for");
    assert_eq!(samples.sum("cache_node_database_keys_total", &[]), KEYS as f64);
    assert_eq!(samples.sum("cache_node_entries", &["region=\"cache-data\""]), KEYS as f64, "entries of the three");
    assert_eq!(samples.sum("cache_node_requests_total", &["result=\"miss\""]), KEYS as f64);

    let logs: Vec<String> =
        (0..3).map(|pod| std::fs::read_to_string(it.cluster.log(Role::Node, pod)).expect("a log")).collect();
    let count = |what: &str| logs.iter().flat_map(|log| log.lines()).filter(|line| line.contains(what)).count();
    // Each node looks at the schema when it opens the file: to check it, and to load from it.
    let rows = count("sqlite_trace] row") - count("statement SELECT count(*) FROM sqlite_schema");
    assert_eq!(rows, KEYS, "rows that SQLite itself says it gave");
    let operations = count("statement SELECT id, body FROM products");
    assert_eq!(operations as f64, samples.sum("cache_node_database_operations_total", &[]));
    for pod in 0..3 {
        let entries = it.samples_of(pod).expect("an answer").sum("cache_node_entries", &[]);
        assert!((2800.0..3900.0).contains(&entries), "pod-{pod} keeps {entries} of {KEYS}");
    }
}

#[test]
fn two_thousand_requests_for_one_cold_key_cost_one_read() {
    const REQUESTS: usize = 2000;
    rlimit::increase_nofile_limit(u64::MAX).expect("open files");
    let it = Scene::new("INSERT INTO things VALUES ('hot', 'the value')").start();
    let mut streams: Vec<TcpStream> = (0..REQUESTS)
        .map(|i| {
            let stream = TcpStream::connect(it.cluster.http_address(i % 3)).expect("connects");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            stream
        })
        .collect();
    // The load waits for this lock while the requests come in.
    let database = it.database();
    database.execute_batch("BEGIN EXCLUSIVE").expect("the lock");
    for stream in &mut streams {
        stream.write_all(b"GET /things/hot HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    }
    database.execute_batch("COMMIT").expect("unlocked");
    for mut stream in streams {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\nthe value"), "{answer}");
    }
    let samples = it.samples();
    assert_eq!(samples.sum("cache_node_database_operations_total", &[]), 1.0);
    assert_eq!(samples.sum("cache_node_database_keys_total", &[]), 1.0);
    assert_eq!(samples.sum("cache_node_requests_total", &["result=\"miss\""]), 1.0);
    let (joined, hits) = (
        samples.sum("cache_node_requests_total", &["result=\"joined\""]),
        samples.sum("cache_node_requests_total", &["result=\"hit\""]),
    );
    assert_eq!(joined + hits, REQUESTS as f64 - 1.0);
    assert!(joined > 0.0, "nobody waited: the load was over before the second request");
}

#[test]
fn a_key_that_is_asked_for_often_is_loaded_anew_before_it_is_stale() {
    let config = format!("{DATABASE}{REGION}ttl = \"1s\"\nmax_stale = \"1h\"\n");
    let it = Scene::configured("INSERT INTO things VALUES ('hot', 'v')", &config).start();
    let asked = |reason: &str| it.sum("cache_node_database_keys_total", &[&format!("reason=\"{reason}\"")]);
    eventually("it is loaded ahead, and again", || {
        for _ in 0..100 {
            assert_eq!(it.get(0, "/things/hot").text().expect("text"), "v");
        }
        asked("ahead") >= 3.0
    });
    // At most as often as it would have been without: once in its time to live.
    assert!(asked("refreshed") <= asked("ahead"), "{} {}", asked("refreshed"), asked("ahead"));
}

#[test]
fn an_entry_turns_stale_is_refreshed_and_then_gone() {
    let config = format!("{DATABASE}{REGION}ttl = \"300ms\"\nmax_stale = \"1h\"\nabsent_ttl = \"100ms\"\n");
    let it = Scene::configured("INSERT INTO things VALUES ('a', 'old')", &config).start();
    assert_eq!(it.get(0, "/things/a").text().expect("text"), "old");
    it.database().execute("UPDATE things SET body = 'new'", []).expect("updated");
    // Looked at and not asked for: what is asked for may be loaded ahead.
    eventually("it is stale", || {
        let page: Value = it.get(1, "/-/explain/things/a").json().expect("JSON");
        page["at_owner"]["entry"]["state"] == "stale"
    });
    let answer = it.get(1, "/things/a");
    assert!(header(&answer, "cache-status").contains("detail=stale"), "who finds the entry old is answered from it");
    assert_eq!(answer.text().expect("text"), "old");
    eventually("the new value is served", || it.get(1, "/things/a").text().expect("text") == "new");
    assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"cold\""]), 1.0);
    assert!(it.sum("cache_node_database_keys_total", &["reason=\"refreshed\""]) >= 1.0);

    assert_eq!(it.get(0, "/things/b").status(), 404);
    it.database().execute("INSERT INTO things VALUES ('b', 'there')", []).expect("inserted");
    eventually("the row that was absent is found", || it.get(2, "/things/b").status() == 200);
    assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"absent\""]), 1.0);
}

#[test]
fn many_keys_in_one_request_come_from_their_owners() {
    let it = Scene::demo(100).start();
    let ask =
        |body: &Value| it.client.post(format!("{}/cache-data", it.cluster.url(0))).json(body).send().expect("sent");
    let answer: Value = ask(&json!({"keys": ["7", "4711", "8"]})).json().expect("JSON");
    let results = answer["results"].as_array().expect("results");
    let found: Vec<(&str, u64)> = results
        .iter()
        .map(|one| (one["key"].as_str().expect("a key"), one["status"].as_u64().expect("a status")))
        .collect();
    assert_eq!(found, [("7", 200), ("4711", 404), ("8", 200)]);
    let product: Value = serde_json::from_str(&demo::product(7)).expect("JSON");
    assert_eq!(results[0]["value"], product);
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 3.0);
    // What is in memory by now, of all pods, with others between.
    let keys: Vec<String> = (1..=40).map(|key| key.to_string()).collect();
    ask(&json!({ "keys": keys }));
    let mixed = [&["4711".to_owned(), "7".to_owned()], &keys[..], &["99".to_owned(), "7".to_owned()]].concat();
    let answer: Value = ask(&json!({ "keys": mixed })).json().expect("JSON");
    let results = answer["results"].as_array().expect("results");
    assert_eq!(results.len(), mixed.len());
    for (key, result) in mixed.iter().zip(results) {
        let number: u64 = key.parse().expect("a number");
        let product: Value = serde_json::from_str(&demo::product(number)).expect("JSON");
        let status = if number == 4711 { 404 } else { 200 };
        assert!(result["key"] == **key && result["status"] == status, "{key}: {result}");
        assert!(number == 4711 || result["value"] == product, "{key}: {result}");
    }
    // Forty and the one that came twice more; 99 was read now.
    assert_eq!(it.sum("cache_node_requests_total", &["result=\"hit\""]), 2.0 + 42.0 + 1.0);
    assert_eq!(ask(&json!({"keys": []})).json::<Value>().expect("JSON"), json!({"results": []}));
}

#[test]
fn a_value_larger_than_its_shards_room_is_served_and_not_kept() {
    // 400 KiB over the two or three shards of a node.
    let config = format!("n_shards = 8\n{DATABASE}{REGION}max_bytes = \"400KiB\"\n");
    let sql = "INSERT INTO things VALUES ('large', printf('%.*c', 300000, 'x')), ('small', 'y')";
    let it = Scene::configured(sql, &config).start();
    for round in 1..=2 {
        let answer = it.get(round % 3, "/things/large");
        assert_eq!(header(&answer, "cache-status"), "distributed-cache; fwd=miss; ttl=59".replace("59", &ttl(&answer)));
        assert_eq!(answer.bytes().expect("a body").len(), 300_000);
        assert_eq!(it.sum("cache_node_values_not_kept_total", &[]), round as f64);
    }
    assert_eq!(it.sum("cache_node_entries", &[]), 0.0);
    assert!(header(&it.get(0, "/things/small"), "cache-status").contains("stored"));
    assert_eq!(it.sum("cache_node_entries", &[]), 1.0);
}

fn ttl(answer: &Response) -> String {
    header(answer, "cache-status").rsplit_once("ttl=").expect("a ttl").1.to_owned()
}

#[test]
fn the_pages_about_the_cluster_agree_with_each_other() {
    let it = Scene::demo(100).start();
    assert_eq!(it.get(0, "/cache-data/42").status(), 200);
    let page = |pod, path: &str| -> Value { it.get(pod, path).json().expect("JSON") };
    let map = page(0, "/-/map");
    assert_eq!(map["n_shards"], 1024);
    for pod in 0..3 {
        let url = format!("{}/-/map", it.cluster.control(pod));
        let of_node = || it.client.get(&url).send().expect("an answer").json::<Value>().expect("JSON");
        eventually("all know the same map", || page(pod, "/-/map") == map && of_node() == map);
    }
    let mut owned = vec![0; 1024];
    let mut of_pod = Vec::new();
    for (_, ranges) in map["owners"].as_object().expect("owners") {
        let mut count = 0;
        for range in ranges.as_array().expect("ranges") {
            let [first, last] =
                [0, 1].map(|end| usize::try_from(range[end].as_u64().expect("a shard")).expect("small"));
            owned[first..=last].iter_mut().for_each(|times| *times += 1);
            count += last - first + 1;
        }
        of_pod.push(count);
    }
    assert!(owned.iter().all(|times| *times == 1), "every shard has one owner");
    of_pod.sort_unstable();
    assert_eq!(of_pod, [341, 341, 342]);

    let explained = page(1, "/-/explain/cache-data/42");
    assert_eq!(explained["at_owner"]["entry"]["state"], "fresh");
    assert_eq!(explained["at_owner"]["shard"], explained["shard"]);
    let cluster = page(2, "/-/cluster");
    let members = cluster["members"].as_array().expect("members");
    let entries: u64 =
        members.iter().map(|one| one["status"]["regions"][0]["entries"].as_u64().expect("a count")).sum();
    assert_eq!((members.len(), entries), (3, 1));
    for path in ["/health", "/livez", "/readyz", "/metrics"] {
        assert_eq!(it.get(0, path).status(), 200, "{path}");
        let url = format!("{}{path}", it.cluster.control(0));
        assert_eq!(it.client.get(url).send().expect("an answer").status(), 200, "{path} of the node");
    }
}
