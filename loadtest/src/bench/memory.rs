//! Memory: what an entry costs a store beyond its key and its value.

use std::path::Path;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::http::{self, Client};
use super::keys::{self, Values};
use super::process::Server;
use super::{BenchError, REGION, Stop, note, setup};
use crate::cluster::ports::Ports;
use crate::cluster::{Cluster, Options, Role};
use crate::figures::Samples;

/// Entries and the bytes of their values.
const CASES: [(u32, usize); 2] = [(1_000_000, 100), (500_000, 1024)];
/// So many entries are there before the first look: what a store needs once does not count.
const N_BEFORE: u32 = 1000;
/// Keys of one request to our router.
const BATCH: u32 = 1000;
/// Seconds that an entry of Redis and memcached has to live.
const TTL: u32 = 12 * 3600;
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Memory that is given back is given back within this.
const SETTLE: Duration = Duration::from_secs(2);

/// What a store was found to need.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct MemoryRow {
    pub(super) store: String,
    pub(super) entries: u32,
    pub(super) value_bytes: usize,
    /// Growth of the resident memory by an entry, less the bytes of key and value.
    pub(super) bytes_per_entry: f64,
    pub(super) resident_bytes_before: u64,
    pub(super) resident_bytes_after: u64,
}

/// Fills each store with each case.
pub(super) fn run(dir: &Path, stop: &Stop) -> Result<Vec<MemoryRow>, BenchError> {
    let mut rows = Vec::new();
    for (entries, size) in CASES {
        let dir = dir.join(format!("memory-{size}"));
        std::fs::create_dir_all(&dir).map_err(BenchError::io(&dir))?;
        for (store, measure) in [("ours", ours as Measure), ("memcached", memcached), ("redis", redis)] {
            stop.check()?;
            note(&format!("{store}: {entries} entries of {size} bytes"));
            let (before, after) = measure(&dir, entries, size)?;
            rows.push(row(store, entries, size, before, after));
        }
        std::fs::remove_dir_all(&dir).map_err(BenchError::io(&dir))?;
    }
    Ok(rows)
}

/// Fills a store; resident bytes before and after.
type Measure = fn(&Path, u32, usize) -> Result<(u64, u64), BenchError>;

fn row(store: &str, entries: u32, size: usize, before: u64, after: u64) -> MemoryRow {
    #[expect(clippy::cast_precision_loss, reason = "bytes of one machine")]
    let growth = after.saturating_sub(before) as f64 / f64::from(entries - N_BEFORE);
    #[expect(clippy::cast_precision_loss, reason = "bytes of one entry")]
    let bytes = growth - (keys::key(1).len() + size) as f64;
    MemoryRow {
        store: store.to_owned(),
        entries,
        value_bytes: size,
        bytes_per_entry: (bytes * 10.0).round() / 10.0,
        resident_bytes_before: before,
        resident_bytes_after: after,
    }
}

/// One node with one lane, which reads its database through a router.
fn ours(dir: &Path, entries: u32, size: usize) -> Result<(u64, u64), BenchError> {
    let config = setup::database(dir, size, entries)?;
    let node_args = ["--lanes", "1"].map(str::to_owned).to_vec();
    let options = Options { pods: 1, node_args, ..Options::new(config, dir) };
    let cluster = Cluster::start_ready(&options, READY_TIMEOUT)?;
    let pid = cluster.pid(Role::Node, 0).ok_or_else(|| BenchError::Failed("the node has ended".to_owned()))?;
    let mut client = Client::connect(cluster.http_address(0)).map_err(BenchError::at("ours"))?;
    let mut load = |numbers: std::ops::RangeInclusive<u32>| -> Result<(), BenchError> {
        let mut from = *numbers.start();
        while from <= *numbers.end() {
            let to = numbers.end().min(&(from + BATCH - 1)).to_owned();
            let wanted: Vec<String> = (from..=to).map(|number| format!("{:?}", keys::key(number))).collect();
            let json = format!("{{\"keys\":[{}]}}", wanted.join(","));
            let answer = client.ask(&http::post(&format!("/{REGION}"), &json)).map_err(BenchError::at("ours"))?;
            if answer.status != 200 {
                return Err(BenchError::Failed(format!("ours: {} for {BATCH} keys", answer.status)));
            }
            from = to + 1;
        }
        Ok(())
    };
    load(1..=N_BEFORE)?;
    let before = settled(pid)?;
    load(N_BEFORE + 1..=entries)?;
    let after = settled(pid)?;
    let address = cluster.control(0);
    let page = reqwest::blocking::get(format!("{address}/metrics")).and_then(reqwest::blocking::Response::text);
    let page = page.map_err(|error| BenchError::Failed(format!("the node's metrics: {error}")))?;
    let held = Samples::parse(&page).sum("cache_node_entries", &[]);
    if (held - f64::from(entries)).abs() > 0.5 {
        return Err(BenchError::Failed(format!("ours: {held} entries are held, not {entries}")));
    }
    Ok((before, after))
}

fn memcached(dir: &Path, entries: u32, size: usize) -> Result<(u64, u64), BenchError> {
    let mut ports = Ports::default();
    let address = ports.free().map_err(BenchError::at("ports"))?;
    let mut server = Server::start(&mut setup::memcached(address)?, "memcached", &dir.join("memcached.log"))?;
    setup::wait_listening(&mut server, "memcached", address)?;
    let values = Values::new(size);
    let set = |numbers: std::ops::RangeInclusive<u32>| {
        setup::set_memcached(address, numbers.map(|number| (keys::key(number), values.of(number))), TTL)
    };
    set(1..=N_BEFORE)?;
    let before = settled(server.pid())?;
    set(N_BEFORE + 1..=entries)?;
    Ok((before, settled(server.pid())?))
}

fn redis(dir: &Path, entries: u32, size: usize) -> Result<(u64, u64), BenchError> {
    let mut ports = Ports::default();
    let address = ports.free().map_err(BenchError::at("ports"))?;
    let mut server = Server::start(&mut setup::redis(address, dir)?, "redis", &dir.join("redis.log"))?;
    setup::wait_listening(&mut server, "redis", address)?;
    let values = Values::new(size);
    let set = |numbers: std::ops::RangeInclusive<u32>| {
        let entries = numbers.map(|number| (keys::key(number), values.of(number)));
        setup::set_redis(address, entries, Some(TTL.into()))
    };
    set(1..=N_BEFORE)?;
    let before = settled(server.pid())?;
    set(N_BEFORE + 1..=entries)?;
    Ok((before, settled(server.pid())?))
}

/// Resident bytes when they have not changed for a while.
fn settled(pid: i32) -> Result<u64, BenchError> {
    let deadline = Instant::now() + 5 * SETTLE;
    let mut last = resident(pid)?;
    loop {
        std::thread::sleep(SETTLE);
        let now = resident(pid)?;
        // Idle processes allocate a page now and then.
        if now.abs_diff(last) < 64 << 10 || Instant::now() > deadline {
            return Ok(now);
        }
        last = now;
    }
}

fn resident(pid: i32) -> Result<u64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).map_err(BenchError::io(Path::new(&path)))?;
    resident_of(&text).ok_or_else(|| BenchError::Failed(format!("{path} tells no VmRSS")))
}

fn resident_of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident_of("Name:\tx\nVmRSS:\t    1234 kB\nThreads:\t1\n"), Some(1234 * 1024));
        assert_eq!(resident_of("Name:\tx\n"), None);
    }

    #[test]
    fn an_entry_costs_what_is_beyond_key_and_value() {
        let row = row("ours", 101_000, 100, 1_000_000, 1_000_000 + 100_000 * 156);
        assert_eq!((row.bytes_per_entry, row.entries), (40.0, 101_000));
    }
}
