//! Programs that the benchmark starts, and ends again.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BenchError, cpu};
use crate::cluster::processes::die_with_parent;

/// How long a program may take to end before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);
const STOP_PAUSE: Duration = Duration::from_millis(5);
/// Where administrators' programs are, which a user's PATH may lack.
const ADMIN_DIRS: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// A program of this machine.
///
/// # Errors
/// When it is not installed.
pub(super) fn command(name: &str) -> Result<Command, BenchError> {
    find(name).map(Command::new).ok_or_else(|| BenchError::Missing(name.to_owned()))
}

pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(ADMIN_DIRS.map(PathBuf::from));
    dirs.map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// A running program. Dropped, it is asked to end, then killed with its children.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    pid: i32,
    name: String,
}

impl Server {
    /// Starts a server whose output goes to `log`.
    pub(super) fn start(command: &mut Command, name: &str, log: &Path) -> Result<Self, BenchError> {
        let file = std::fs::File::create(log).map_err(BenchError::io(log))?;
        let again = file.try_clone().map_err(BenchError::io(log))?;
        Self::spawn(command.stdout(file).stderr(again), name)
    }

    /// Starts a program. It ends when this one does.
    pub(super) fn spawn(command: &mut Command, name: &str) -> Result<Self, BenchError> {
        // Ctrl-C at the terminal reaches this program only, which then ends the others.
        command.stdin(Stdio::null()).process_group(0);
        // nginx takes its workers with it when it may say so itself.
        die_with_parent(command, Signal::SIGTERM);
        let child = command.spawn().map_err(|error| BenchError::Failed(format!("{name} does not start: {error}")))?;
        let pid = i32::try_from(child.id()).expect("process ids are positive 32-bit integers");
        Ok(Self { child, pid, name: name.to_owned() })
    }

    pub(super) const fn pid(&self) -> i32 {
        self.pid
    }

    /// How it ended, if it has.
    pub(super) fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it has not ended well by the deadline.
    pub(super) fn wait(&mut self, deadline: Instant, pause: Duration) -> Result<(), BenchError> {
        loop {
            match self.ended().map_err(|error| BenchError::Failed(format!("{}: {error}", self.name)))? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => return Err(BenchError::Failed(format!("{} ended with {status}", self.name))),
                None if Instant::now() > deadline => {
                    return Err(BenchError::Failed(format!("{} does not come to its end", self.name)));
                }
                None => std::thread::sleep(pause),
            }
        }
    }

    /// Signals it, while it runs.
    pub(super) fn signal(&mut self, signal: Signal) {
        // Not waited for yet: the id is still its own.
        if matches!(self.ended(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.ended(), Ok(None)) {
            return;
        }
        let all = cpu::with_descendants(&[self.pid]);
        self.signal(Signal::SIGTERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while matches!(self.ended(), Ok(None)) {
            if Instant::now() > deadline {
                // Children first: their ids are theirs while the parent has not waited for them.
                for pid in all.iter().rev() {
                    let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
                }
                // It is dead, or about to be.
                let _ = self.child.wait();
            }
            std::thread::sleep(STOP_PAUSE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_is_named_with_what_to_do() {
        let error = command("no-such-program").expect_err("it is not there").to_string();
        assert!(error.starts_with("no-such-program is not installed") && !error.contains('\n'), "{error}");
        assert!(find("sh").is_some());
    }

    #[test]
    fn a_dropped_server_ends() {
        let server = Server::spawn(command("sleep").expect("a program").arg("60"), "sleep").expect("started");
        let pid = Pid::from_raw(server.pid());
        assert_eq!(kill(pid, None), Ok(()));
        drop(server);
        assert_eq!(kill(pid, None), Err(nix::errno::Errno::ESRCH));
    }
}
