use serde_json::{Value, json};

use super::*;

#[test]
fn a_bad_request_gets_a_problem_that_says_what_to_do() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    let long = "k".repeat(4097);
    let escaped = "%61".repeat(4097);
    let address = it.cluster.http_address(0);
    for (method, path, status, kind) in [
        ("GET", format!("/things/{long}"), 414, "key-too-long"),
        ("GET", format!("/things/{escaped}"), 414, "key-too-long"),
        ("GET", "/things/".to_owned(), 400, "bad-key"),
        ("GET", "/things/100%".to_owned(), 400, "bad-key"),
        ("GET", "/things/%zz".to_owned(), 400, "bad-key"),
        ("GET", "/nothings/1".to_owned(), 404, "unknown-region"),
        ("GET", "/".to_owned(), 404, "unknown-region"),
        ("GET", "/%2d/map".to_owned(), 404, "unknown-region"),
        ("GET", "/m%65trics".to_owned(), 404, "unknown-region"),
        ("PUT", "/things/a".to_owned(), 405, "method-not-allowed"),
        ("DELETE", "/things/a".to_owned(), 405, "method-not-allowed"),
        ("GET", "/things".to_owned(), 405, "method-not-allowed"),
        ("POST", "/-/map".to_owned(), 405, "method-not-allowed"),
        ("GET", "/-/explain/nothings/1".to_owned(), 404, "unknown-region"),
        ("GET", "/-/explain/things/%".to_owned(), 400, "bad-key"),
    ] {
        let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-request-id: mine\r\n\r\n");
        let answer = raw(address, request.as_bytes());
        let shown = &path[..path.len().min(40)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{method} {shown}: {answer}");
        let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
        assert!(head.contains("content-type: application/problem+json"), "{head}");
        assert_eq!(head.contains("allow: "), status == 405, "{method} {shown}: {head}");
        let problem: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(problem["type"], format!("urn:distributed-cache:problem:{kind}"), "{method} {shown}");
        assert_eq!((&problem["status"], &problem["request_id"]), (&json!(status), &json!("mine")));
        let detail = problem["detail"].as_str().expect("a detail");
        if kind == "unknown-region" {
            assert!(detail.ends_with("there is things"), "{problem}");
        }
        assert_eq!(
            detail.contains("writes = true"),
            ["PUT", "DELETE"].contains(&method),
            "{method} {shown}: {problem}"
        );
    }
    assert_eq!(it.get(0, &format!("/things/{}", "k".repeat(4096))).status(), 404, "4 KiB are allowed");
}

#[test]
fn what_is_no_http_is_refused_and_the_router_goes_on() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    let address = it.cluster.http_address(0);
    let endless_head = format!("GET /things/{} HTTP/1.1\r\nhost: x\r\n\r\n", "k".repeat(300_000));
    for request in [b"\x00\xff\x16\x03garbage\r\n\r\n".to_vec(), endless_head.into_bytes()] {
        let answer = raw(address, &request);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(it.get(0, "/things/a").text().expect("text"), "b");
}

#[test]
fn a_body_that_is_said_to_be_too_long_is_not_waited_for() {
    let it = Scene::new("").start();
    for target in ["POST /things", "POST /-/invalidate/things"] {
        let head = format!("{target} HTTP/1.1\r\nhost: x\r\ncontent-length: 1048577\r\n\r\n{{");
        let mut stream = TcpStream::connect(it.cluster.http_address(0)).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(head.as_bytes()).expect("sent");
        let mut answer = [0; 1024];
        let len = stream.read(&mut answer).expect("an answer");
        let answer = String::from_utf8_lossy(&answer[..len]);
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.contains("body-too-long"), "{target}: {answer}");
    }
}

#[test]
fn a_body_that_does_not_end_is_answered_all_the_same() {
    let mut scene = Scene::new("");
    scene.options.router_args = vec!["--request-timeout".to_owned(), "300ms".to_owned()];
    let it = scene.start();
    let mut stream = TcpStream::connect(it.cluster.http_address(0)).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"POST /things HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{").expect("sent");
    let mut answer = [0; 1024];
    let len = stream.read(&mut answer).expect("an answer");
    let answer = String::from_utf8_lossy(&answer[..len]);
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body-too-slow"), "{answer}");
}

#[test]
fn a_client_that_asks_nothing_is_let_go_in_its_time_and_not_before() {
    let time = Duration::from_secs(2);
    let mut scene = Scene::new("");
    scene.options.router_args = vec!["--client-idle-timeout".to_owned(), format!("{time:?}")];
    let it = scene.start();
    // About how long the router keeps one that sends this and then nothing: its clock moves every half a second.
    let kept = |said: &[u8]| {
        let mut stream = TcpStream::connect(it.cluster.http_address(0)).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(said).expect("sent");
        let began = Instant::now();
        let mut told = Vec::new();
        stream.read_to_end(&mut told).expect("the end");
        (began.elapsed(), String::from_utf8_lossy(&told).into_owned())
    };
    for (said, told) in [
        ("", "HTTP/1.1 408 "),
        ("GET /things/a HTTP/1.1\r\nho", "HTTP/1.1 408 "),
        ("GET /things/a HTTP/1.1\r\nhost: x\r\n\r\n", "HTTP/1.1 404 "),
    ] {
        let (lasted, answer) = kept(said.as_bytes());
        assert!(lasted > time / 2 && lasted < 2 * time, "{said:?}: closed after {lasted:?}");
        assert!(answer.starts_with(told), "{said:?}: {answer}");
    }
}

#[test]
fn a_bad_body_is_named() {
    let it = Scene::new("").start();
    let ask = |body: String| {
        let answer = it.client.post(format!("{}/things", it.cluster.url(1))).body(body).send().expect("an answer");
        let status = answer.status().as_u16();
        (status, answer.json::<Value>().expect("JSON")["type"].as_str().unwrap_or_default().to_owned())
    };
    let keys = |n: usize| serde_json::to_string(&json!({ "keys": vec!["k"; n] })).expect("JSON");
    for (body, status, kind) in [
        ("{".to_owned(), 400, "bad-body"),
        ("{\"keys\":[1]}".to_owned(), 400, "bad-body"),
        ("{\"key\":[\"1\"]}".to_owned(), 400, "bad-body"),
        ("[[\"1\"]]".to_owned(), 400, "bad-body"),
        (String::new(), 400, "bad-body"),
        (keys(1001), 413, "too-many-keys"),
        (" ".repeat(1024 * 1024 + 1), 413, "body-too-long"),
    ] {
        assert_eq!(ask(body), (status, format!("urn:distributed-cache:problem:{kind}")));
    }
    let answer = it.client.post(format!("{}/things", it.cluster.url(1))).body(keys(1000)).send().expect("an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 1.0, "one key, a thousand times");

    let mixed = json!({"keys": ["", "k".repeat(4097), "x"]});
    let answer = it.client.post(format!("{}/things", it.cluster.url(1))).json(&mixed).send().expect("an answer");
    let results = answer.json::<Value>().expect("JSON")["results"].clone();
    assert_eq!(json!([results[0]["status"], results[1]["status"], results[2]["status"]]), json!([400, 414, 404]));
}

#[test]
fn a_key_means_what_it_says_decoded_once() {
    let sql = "INSERT INTO things VALUES ('a/b', 'slash'), ('a%2Fb', 'escaped slash'), ('köln', 'umlaut'), \
               (x'ff00fe', 'raw bytes'), ('a b', 'space'), ('a+b', 'plus'), ('..', 'dots'), ('a?b', 'question'), \
               ('a//b', 'two slashes'), ('/', 'one slash'), (42, 'a number')";
    let it = Scene::new(sql).start();
    for (path, body) in [
        ("a/b", "slash"),
        ("a%2Fb", "slash"),
        ("a%2fb", "slash"),
        ("a%252Fb", "escaped slash"),
        ("k%C3%B6ln", "umlaut"),
        ("%ff%00%FE", "raw bytes"),
        ("a%20b", "space"),
        ("a+b", "plus"),
        ("%2E%2E", "dots"),
        ("..", "dots"),
        ("a%3Fb", "question"),
        ("a/b?query=ignored", "slash"),
        ("a//b", "two slashes"),
        ("/", "one slash"),
        ("42", "a number"),
    ] {
        for pod in 0..3 {
            let request = format!("GET /things/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            let answer = raw(it.cluster.http_address(pod), request.as_bytes());
            assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{path}: {answer}");
        }
    }
    assert_eq!(it.sum("cache_node_database_keys_total", &[]), 11.0, "each key was read once, however it was written");
    assert_eq!(it.get(0, "/things/042").status(), 404, "042 is not 42");
}

#[test]
fn an_answer_to_many_keys_is_bounded_and_says_which_are_missing() {
    let mut scene = Scene::new("INSERT INTO things VALUES ('a', '123456'), ('b', '123456'), ('c', '1')");
    scene.options.router_args = vec!["--batch-bytes-max".to_owned(), "10".to_owned()];
    let it = scene.start();
    let url = format!("{}/things", it.cluster.url(0));
    // First they are read, then they are in memory.
    for _ in 0..2 {
        let answer = it.client.post(&url).body(r#"{"keys":["a","b","c"]}"#).send().expect("an answer");
        let page: Value = answer.json().expect("JSON");
        let results = page["results"].as_array().expect("a list");
        let statuses: Vec<_> = results.iter().map(|one| one["status"].as_u64()).collect();
        assert_eq!(statuses, [Some(200), Some(413), Some(413)], "{page}");
        assert_eq!(results[0]["text"], "123456", "{page}");
        assert!(results[1..].iter().all(|one| one["detail"].is_string() && one["text"].is_null()), "{page}");
    }
}
