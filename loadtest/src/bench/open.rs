//! The open loop: requests leave when a schedule says so, whether or not the one before has been answered.
//!
//! Arrivals are Poisson. A latency counts from the scheduled arrival, so time in which the servers stand still counts
//! for every request that should have come then (no coordinated omission). One thread looks again and again and does
//! not sleep: it has a CPU of its own, and its waking up would otherwise be part of every latency.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::closed::Seen;
use super::{BenchError, http, keys};

/// A request waits in the schedule while all of them are in use.
const CONNECTIONS: usize = 64;
/// What is under way at the end of the schedule is waited for so long.
const GRACE: Duration = Duration::from_secs(1);
/// Latencies beyond it count as this.
const LATENCY_MAX: Duration = Duration::from_secs(60);

/// When requests are to leave, as times since the beginning: exponential gaps.
struct Arrivals {
    chance: fastrand::Rng,
    rate: f64,
    at: f64,
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.at -= (1.0 - self.chance.f64()).ln() / self.rate;
        Some(Duration::from_secs_f64(self.at))
    }
}

/// Latencies, and how they are summed up.
struct Latencies(Histogram<u64>);

impl Latencies {
    fn new() -> Self {
        Self(Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds and digits that it takes"))
    }

    fn record(&mut self, scheduled: Duration, answered: Duration) {
        let latency = answered.saturating_sub(scheduled).min(LATENCY_MAX);
        self.0.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    fn quantile(&self, q: f64) -> u64 {
        self.0.value_at_quantile(q)
    }
}

struct Connection {
    stream: TcpStream,
    /// When the request that is under way was to leave.
    scheduled: Duration,
    received: Vec<u8>,
}

struct Generator<'a> {
    epoll: Epoll,
    connections: Vec<Connection>,
    /// Those with nothing under way.
    free: Vec<usize>,
    walk: std::iter::Cycle<std::iter::Copied<std::slice::Iter<'a, u32>>>,
    size: usize,
    latencies: Latencies,
    answered: u64,
    failed: u64,
}

/// Asks at `rate` requests a second for `duration`. `size`: what a value has to have. `alone`: a CPU is its own.
pub(super) fn run(
    address: SocketAddr,
    rate: f64,
    walk: &[u32],
    size: usize,
    duration: Duration,
    alone: bool,
) -> Result<Seen, BenchError> {
    let failed = |error: std::io::Error| BenchError::Failed(format!("the open loop at {address}: {error}"));
    let mut generator = Generator::new(address, walk, size).map_err(failed)?;
    let chance = fastrand::Rng::with_seed(rate.to_bits());
    let mut arrivals = Arrivals { chance, rate, at: 0.0 }.take_while(|at| *at < duration).peekable();
    let began = Instant::now();
    let mut events = [EpollEvent::empty(); CONNECTIONS];
    loop {
        let now = began.elapsed();
        while arrivals.peek().is_some_and(|at| *at <= now)
            && let Some(connection) = generator.free.pop()
        {
            let scheduled = arrivals.next().expect("it has been looked at");
            generator.send(connection, scheduled).map_err(failed)?;
        }
        let is_done = arrivals.peek().is_none() && generator.free.len() == CONNECTIONS;
        if is_done || now > duration + GRACE {
            break;
        }
        let n_ready = match generator.epoll.wait(&mut events, EpollTimeout::ZERO) {
            // Somebody has asked to stop: that is looked at later.
            Err(Errno::EINTR) => 0,
            waited => waited.map_err(|error| failed(error.into()))?,
        };
        for event in &events[..n_ready] {
            let connection = usize::try_from(event.data()).expect("the index that was given");
            generator.receive(connection, began).map_err(failed)?;
        }
        if n_ready == 0 && !alone {
            std::thread::yield_now();
        }
    }
    // What was answered after the end of the schedule came too late: that is saturation, and the rate shows it.
    let duration = began.elapsed().max(duration);
    Ok(Seen {
        requests: generator.answered,
        failed: generator.failed,
        duration,
        p50_us: generator.latencies.quantile(0.5),
        p99_us: generator.latencies.quantile(0.99),
        p999_us: generator.latencies.quantile(0.999),
    })
}

impl<'a> Generator<'a> {
    fn new(address: SocketAddr, walk: &'a [u32], size: usize) -> std::io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let mut connections = Vec::new();
        for index in 0..CONNECTIONS {
            let stream = TcpStream::connect_timeout(&address, GRACE)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            epoll.add(stream.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
            connections.push(Connection { stream, scheduled: Duration::ZERO, received: Vec::new() });
        }
        Ok(Self {
            epoll,
            connections,
            free: (0..CONNECTIONS).collect(),
            walk: walk.iter().copied().cycle(),
            size,
            latencies: Latencies::new(),
            answered: 0,
            failed: 0,
        })
    }

    fn send(&mut self, connection: usize, scheduled: Duration) -> std::io::Result<()> {
        let key = self.walk.next().expect("a walk has keys");
        let connection = &mut self.connections[connection];
        connection.scheduled = scheduled;
        // A request fits into an empty socket.
        connection.stream.write_all(&http::get(&keys::path(key)))
    }

    fn receive(&mut self, index: usize, began: Instant) -> std::io::Result<()> {
        let connection = &mut self.connections[index];
        let mut part = [0; 16 << 10];
        let n_read = match connection.stream.read(&mut part) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(n_read) => n_read,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        connection.received.extend_from_slice(&part[..n_read]);
        let Some(head) = http::head(&connection.received)? else { return Ok(()) };
        if connection.received.len() < head.len + head.content_length {
            return Ok(());
        }
        self.latencies.record(connection.scheduled, began.elapsed());
        connection.received.clear();
        self.answered += 1;
        self.failed += u64::from(head.status != 200 || head.content_length != self.size);
        self.free.push(index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_come_at_their_rate_and_one_after_the_other() {
        let arrivals = Arrivals { chance: fastrand::Rng::with_seed(1), rate: 1000.0, at: 0.0 };
        let times: Vec<Duration> = arrivals.take_while(|at| *at < Duration::from_secs(10)).collect();
        assert!((9_700..10_300).contains(&times.len()), "{}", times.len());
        assert!(times.is_sorted());
        // Of exponential gaps a share of 1/e is longer than the mean.
        let long = times.windows(2).filter(|pair| pair[1] - pair[0] > Duration::from_millis(1)).count();
        assert!((3400..4000).contains(&long), "{long}");
    }

    #[test]
    fn a_latency_counts_from_the_schedule() {
        let mut latencies = Latencies::new();
        // The servers stand still for 100 ms: 100 requests that were due in it are answered at its end.
        for ms in 0..100 {
            latencies.record(Duration::from_millis(ms), Duration::from_millis(100));
        }
        let near = |us: u64, expected: u64| us.abs_diff(expected) <= expected / 100;
        assert!(near(latencies.quantile(0.5), 50_000) && near(latencies.quantile(0.99), 99_000));
        latencies.record(Duration::ZERO, Duration::from_secs(3600));
        assert!(near(latencies.quantile(1.0), 60_000_000), "longer ones count as the longest");
    }
}
