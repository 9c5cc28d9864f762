use std::process::{Command, Output};

use super::*;

fn loadtest(it: &Running, more: &[&str]) -> Output {
    let urls: Vec<String> = (0..3).flat_map(|pod| ["--url".to_owned(), it.cluster.url(pod)]).collect();
    let report = it.path("reports").display().to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(urls).args(["--rows", "100", "--duration", "1s", "--connections", "4", "--report", &report]);
    command.args(more).output().expect("runs")
}

#[test]
fn a_load_test_passes_when_every_value_is_right_and_fails_when_one_is_wrong() {
    let it = Scene::demo(100).start();
    let output = loadtest(&it, &[]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{told}");
    for scenario in ["cold-start", "read-mostly", "uniform", "hot-key", "miss-heavy"] {
        let line = told.lines().find(|line| line.starts_with(scenario) && line.contains("requests, ")).expect(scenario);
        assert!(line.contains(" 0 failed: ok"), "{line}");
        let report = std::fs::read_to_string(it.path("reports").join(format!("{scenario}.html"))).expect("a report");
        assert!(report.contains("<html") && report.contains(scenario), "{scenario}");
    }

    let other = Scene::demo(100);
    let database = rusqlite::Connection::open(other.dir.path().join("demo.db")).expect("opens");
    database.execute("UPDATE products SET body = '{\"id\":42}' WHERE id = 42", []).expect("updated");
    let other = other.start();
    let output = loadtest(&other, &["--scenario", "hot-key"]);
    let told = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("BROKEN error-rate<=0%: 100%"), "{told}");
    let output = loadtest(&other, &["--scenario", "hot-key", "--check", "etag"]);
    assert_eq!(output.status.code(), Some(0), "the answer is whole, if not the demo's");
}

#[test]
fn a_load_test_that_reaches_nobody_fails() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let dir = tempfile::tempdir().expect("a directory");
    let (url, report) = (format!("http://{nobody}"), dir.path().display().to_string());
    let mut command = Command::new(env!("CARGO_BIN_EXE_loadtest"));
    command.args(["--url", &url, "--scenario", "uniform", "--duration", "1s", "--report", &report]);
    let output = command.output().expect("runs");
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stdout));
    for mistake in [
        ["--url", "no url"],
        ["--threshold", "p99"],
        ["--duration", "soon"],
        ["--duration", "0s"],
        ["--duration", "1500ms"],
        ["--connections", "0"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_loadtest")).args(mistake).output().expect("runs");
        assert_eq!(output.status.code(), Some(64), "{mistake:?}");
    }
}
