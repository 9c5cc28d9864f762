use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitStatus, Stdio};

use loadtest::cluster::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::Value;

use super::*;

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_local-cluster"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a process id")), signal).expect("it runs");
}

/// Starts `local-cluster` on the demo and reads its output to the line that begins with `ready`.
fn start(dir: &TempDir, more: &[&str]) -> (Child, BufReader<std::process::ChildStdout>, String) {
    demo::make_database(&dir.path().join("demo.db"), 100).expect("a database");
    let data_dir = dir.path().display().to_string();
    let mut child = command(&[&["--port", "0", "--data-dir", &data_dir], more].concat()).spawn().expect("starts");
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut told = String::new();
    while !told.lines().any(|line| line.starts_with("ready")) {
        assert_ne!(output.read_line(&mut told).expect("text"), 0, "it ended: {told}");
    }
    (child, output, told)
}

fn page(dir: &TempDir) -> Value {
    let text = std::fs::read_to_string(dir.path().join("cluster.json")).expect("a file");
    serde_json::from_str(&text).expect("JSON")
}

fn pids(page: &Value) -> Vec<Pid> {
    let pid =
        |process: &Value| Pid::from_raw(i32::try_from(process["pid"].as_i64().expect("a number")).expect("a pid"));
    page["processes"].as_array().expect("processes").iter().map(pid).collect()
}

fn is_gone(pid: Pid) -> bool {
    kill(pid, None).is_err()
}

fn wait(mut child: Child) -> ExitStatus {
    let mut status = None;
    eventually("it ends", || {
        status = child.try_wait().expect("a child");
        status.is_some()
    });
    status.expect("it has ended")
}

#[test]
fn it_says_what_runs_where_and_leaves_nothing_behind() {
    let dir = tempfile::tempdir().expect("a directory");
    let (child, mut output, told) = start(&dir, &["--pods", "2"]);
    let page = page(&dir);
    let processes = page["processes"].as_array().expect("processes");
    let parts: Vec<(&str, &str)> = processes
        .iter()
        .map(|process| (process["role"].as_str().expect("a role"), process["name"].as_str().expect("a name")))
        .collect();
    assert_eq!(parts, [("node", "pod-0"), ("router", "pod-0"), ("node", "pod-1"), ("router", "pod-1")]);
    for process in processes {
        let program = process["argv"][0].as_str().expect("a program");
        let probe = if process["role"] == "node" {
            assert!(program.ends_with("/cache-node") && process["data"].is_string(), "{process}");
            process["control"].as_str()
        } else {
            assert!(program.ends_with("/router-sidecar"), "{process}");
            process["http"].as_str()
        };
        let url = format!("http://{}/readyz", probe.expect("an address"));
        assert_eq!(client().get(url).send().expect("an answer").status(), 200);
    }
    let router = processes[3]["http"].as_str().expect("an address");
    assert!(told.contains(&format!("http://{router}/cache-data/42")), "{told}");
    let value = client().get(format!("http://{router}/cache-data/42")).send().expect("an answer");
    assert_eq!(value.text().expect("text"), demo::product(42));
    let mut line = String::new();
    while !line.contains("hit rate") {
        line.clear();
        assert_ne!(output.read_line(&mut line).expect("text"), 0, "it ended");
    }

    signal(&child, Signal::SIGINT);
    assert!(wait(child).success());
    assert!(pids(&page).into_iter().all(is_gone));
    assert_eq!(self::page(&dir)["processes"], serde_json::json!([]));
}

#[test]
fn killed_it_takes_its_children_along() {
    let dir = tempfile::tempdir().expect("a directory");
    let (child, _output, _) = start(&dir, &[]);
    let pids = pids(&page(&dir));
    assert_eq!(pids.len(), 6);
    signal(&child, Signal::SIGKILL);
    wait(child);
    eventually("all children are gone", || pids.iter().all(|pid| is_gone(*pid)));
}

#[test]
fn nobody_has_to_read_what_it_prints() {
    let dir = tempfile::tempdir().expect("a directory");
    let (child, output, _) = start(&dir, &["--pods", "1"]);
    drop(output);
    // It prints a line a second: wait until it must have met the closed pipe.
    let process = page(&dir)["processes"][1]["http"].as_str().expect("an address").to_owned();
    let began = Instant::now();
    eventually("two lines could not be printed", || began.elapsed() > Duration::from_millis(2100));
    assert_eq!(client().get(format!("http://{process}/readyz")).send().expect("it lives").status(), 200);
    signal(&child, Signal::SIGTERM);
    assert!(wait(child).success());
}

#[test]
fn a_mistake_is_one_line_and_nothing_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    demo::make_database(&dir.path().join("demo.db"), 1).expect("a database");
    let data_dir = dir.path().display().to_string();
    let config = dir.path().join("cache.toml").display().to_string();
    std::fs::write(&config, "[database.main]\nurl = \"sqlite:demo.db\"\nurls = 1\n").expect("a file");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (arguments, expected) in [
        (vec!["--port", &port], format!("127.0.0.1:{port}: Address already in use")),
        (vec!["--port", "65535"], "--port 65535: there is no port for router 1".to_owned()),
        (vec!["--config", &config], format!("{config}:3:1: unknown field `urls`")),
        (vec!["--config", "nowhere.toml"], "nowhere.toml: cannot be read".to_owned()),
    ] {
        let output = command(&[&["--data-dir", &data_dir], &arguments[..]].concat()).output().expect("runs");
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {told}");
        assert!(told.contains(&expected) && told.lines().count() == 1, "{arguments:?}: {told}");
        assert!(!dir.path().join("cluster.json").exists(), "nothing was started");
    }
}
