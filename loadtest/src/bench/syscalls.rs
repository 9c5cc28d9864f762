//! System calls, counted by perf while a load runs.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use super::BenchError;
use super::process::{Server, find};
use crate::cluster::Signal;

/// perf has begun to count after this.
const ATTACH: Duration = Duration::from_millis(300);
const TIMEOUT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);

/// perf, at work.
pub(super) struct Counter {
    perf: Server,
    out: PathBuf,
}

impl Counter {
    /// Begins to count what these processes call; `None` without perf.
    pub(super) fn start(dir: &Path, pids: &[i32]) -> Result<Option<Self>, BenchError> {
        let Some(program) = find("perf") else { return Ok(None) };
        let out = dir.join("perf.out");
        let pids: Vec<String> = pids.iter().map(i32::to_string).collect();
        let mut command = std::process::Command::new(program);
        command.args(["stat", "-e", "raw_syscalls:sys_enter", "-x", ",", "-p", &pids.join(",")]).arg("-o").arg(&out);
        let perf = Server::spawn(command.stdout(Stdio::null()).stderr(Stdio::null()), "perf")?;
        std::thread::sleep(ATTACH);
        Ok(Some(Self { perf, out }))
    }

    /// How many there were; `None` where perf may not count.
    pub(super) fn stop(mut self) -> Option<u64> {
        self.perf.signal(Signal::SIGINT);
        // It ends with the signal or with 0: what it has written decides.
        let _ = self.perf.wait(Instant::now() + TIMEOUT, PAUSE);
        parse(&std::fs::read_to_string(&self.out).ok()?)
    }
}

fn parse(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("raw_syscalls:sys_enter"))?;
    line.split(',').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_the_first_field() {
        assert_eq!(parse("# started on\n\n12345,,raw_syscalls:sys_enter,1,100.00,,\n"), Some(12345));
        assert_eq!(parse("<not supported>,,raw_syscalls:sys_enter,0,100.00,,\n"), None);
        assert_eq!(parse(""), None);
    }
}
