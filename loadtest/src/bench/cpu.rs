//! CPU time of processes, where they run, and what other programs take.

use std::fs;
use std::time::{Duration, Instant};

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The unit of `/proc/stat`, in milliseconds: USER_HZ is 100 a second on every Linux.
const TICK_MS: u64 = 10;

/// Each of these processes with all their descendants.
pub(super) fn with_descendants(pids: &[i32]) -> Vec<i32> {
    let parents: Vec<(i32, i32)> = numbers("/proc").into_iter().filter_map(|pid| Some((pid, parent(pid)?))).collect();
    let mut all = pids.to_vec();
    let mut at = 0;
    while let Some(&pid) = all.get(at) {
        let children = parents.iter().filter(|(child, parent)| *parent == pid && !all.contains(child));
        let children: Vec<i32> = children.map(|(child, _)| *child).collect();
        all.extend(children);
        at += 1;
    }
    all
}

/// CPU time of all threads of these processes, from the scheduler's own counters; `None` where there are none.
pub(super) fn run_time(pids: &[i32]) -> Option<Duration> {
    let mut nanoseconds = 0;
    for pid in pids {
        for thread in numbers(&format!("/proc/{pid}/task")) {
            // A thread may end meanwhile.
            let Ok(text) = fs::read_to_string(format!("/proc/{pid}/task/{thread}/schedstat")) else { continue };
            nanoseconds += text.split(' ').next()?.parse::<u64>().ok()?;
        }
    }
    (nanoseconds > 0).then(|| Duration::from_nanos(nanoseconds))
}

/// The CPUs that this program may use.
pub(super) fn allowed() -> Vec<usize> {
    let set = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or(false)).collect()
}

/// Has every thread of these processes run on these CPUs only; what they start later does too.
pub(super) fn pin(pids: &[i32], cpus: &[usize]) -> nix::Result<()> {
    let set = set_of(cpus)?;
    for pid in pids {
        for thread in numbers(&format!("/proc/{pid}/task")) {
            match sched_setaffinity(Pid::from_raw(thread), &set) {
                // A thread may have ended meanwhile.
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Has this thread, and what it starts, run on these CPUs only.
pub(super) fn pin_self(cpus: &[usize]) -> nix::Result<()> {
    sched_setaffinity(Pid::from_raw(0), &set_of(cpus)?)
}

fn set_of(cpus: &[usize]) -> nix::Result<CpuSet> {
    let mut set = CpuSet::new();
    cpus.iter().try_for_each(|cpu| set.set(*cpu))?;
    Ok(set)
}

/// What the machine and this benchmark have used so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    at: Instant,
    machine: Duration,
    own: Duration,
}

impl Usage {
    /// Of now. `servers`: the processes that this benchmark has started and that still run.
    pub(super) fn now(servers: &[i32]) -> Option<Self> {
        let machine = busy_ticks(&fs::read_to_string("/proc/stat").ok()?)?;
        let own = own_ticks(&fs::read_to_string("/proc/self/stat").ok()?)?;
        let own = Duration::from_millis(own * TICK_MS) + run_time(servers).unwrap_or_default();
        Some(Self { at: Instant::now(), machine: Duration::from_millis(machine * TICK_MS), own })
    }

    /// Share of all CPUs that other programs have taken since then.
    pub(super) fn foreign_until(&self, now: &Self, n_cpus: usize) -> f64 {
        let others = (now.machine - self.machine).as_secs_f64() - now.own.saturating_sub(self.own).as_secs_f64();
        #[expect(clippy::cast_precision_loss, reason = "a number of CPUs is small")]
        let all = (now.at - self.at).as_secs_f64() * n_cpus as f64;
        (others / all).max(0.0)
    }
}

/// User, nice, system, interrupts' and stolen time of the whole machine (proc_stat(5)). What interrupts take is charged
/// to the thread that they interrupt, as is what other machines steal.
fn busy_ticks(text: &str) -> Option<u64> {
    let fields = text.lines().next()?.strip_prefix("cpu ")?;
    let fields: Vec<u64> = fields.split_whitespace().map_while(|field| field.parse().ok()).collect();
    Some(fields.get(..3)?.iter().sum::<u64>() + fields.iter().skip(5).take(3).sum::<u64>())
}

/// User and system time of this process and of children that have ended and were waited for (proc_pid_stat(5)).
fn own_ticks(text: &str) -> Option<u64> {
    let (_, fields) = text.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    fields.get(11..15)?.iter().map(|field| field.parse::<u64>().ok()).sum()
}

fn parent(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// The entries of a directory that are numbers.
fn numbers(dir: &str) -> Vec<i32> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_nobodys_time() {
        let text = "cpu  100 20 30 4000 50 60 70 8 9 0\ncpu0 1 2 3 4\n";
        assert_eq!(busy_ticks(text), Some(288));
        assert_eq!(busy_ticks("nothing"), None);
    }

    #[test]
    fn own_time_has_that_of_children_that_have_ended() {
        let text = "12 (a ) b) S 1 12 12 0 -1 4194304 1 2 3 4 500 60 7000 80 20 0 1 0";
        assert_eq!(own_ticks(text), Some(7640));
    }

    #[test]
    fn what_this_program_did_not_use_is_foreign() {
        let at = Instant::now();
        let usage = |seconds, machine, own| Usage {
            at: at + Duration::from_secs(seconds),
            machine: Duration::from_secs(machine),
            own: Duration::from_secs(own),
        };
        assert_eq!(usage(0, 100, 50).foreign_until(&usage(2, 103, 52), 2), 0.25);
        assert_eq!(usage(0, 100, 50).foreign_until(&usage(2, 101, 52), 2), 0.0, "rounding is not negative");
    }

    #[test]
    fn this_process_has_used_time() {
        let own = i32::try_from(std::process::id()).expect("an id");
        assert!(with_descendants(&[own]).contains(&own));
        assert!(parent(own).is_some() && !allowed().is_empty());
    }
}
