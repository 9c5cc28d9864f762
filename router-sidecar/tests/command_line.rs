//! The program as its user meets it: every mistake is named, exit code 64, and nothing starts.

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Longest time to refuse a mistake; whoever starts to serve instead is ended.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_router-sidecar"));
    command.env_clear().args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("a child");
            panic!("{arguments:?} was taken for sound");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
}

#[test]
fn a_mistake_in_a_flag_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (flags, expected) in [
        (vec![], "--seeds"),
        (vec!["--seeds", "nowhere"], "--seeds"),
        (vec!["--seeds", "h:1", "--bind", "everywhere"], "--bind"),
        (vec!["--seeds", "h:1", "--threads", "0"], "--threads"),
        (vec!["--seeds", "h:1", "--request-timeout", "soon"], "--request-timeout"),
        (vec!["--seeds", "h:1", "--client-idle-timeout", "0s"], "between 1s and 1year"),
        (vec!["--seeds", "h:1", "--map-period", "0s"], "--map-period"),
        (vec!["--seeds", "h:1", "--request-timeout", "9223372036854775807s"], "--request-timeout"),
        (vec!["--seeds", "h:1", "--bind", &address], "cannot be listened on"),
    ] {
        let output = run(&flags);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{flags:?}: {told}");
        assert!(told.contains(expected), "{expected:?} is not in {told}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("SEED_NODES"));
}
