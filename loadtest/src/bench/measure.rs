//! Takes the samples: starts what a load needs, alternates the set-ups, repeats what others disturbed.

use std::path::Path;
use std::time::{Duration, Instant};

use super::closed::{self, Requests, Seen};
use super::keys::{self, Pattern};
use super::load::{Kind, Load};
use super::process::command;
use super::report::{FOREIGN_MAX, Row};
use super::setup::{Running, Scene, Setup, Starter};
use super::syscalls::Counter;
use super::{BenchError, Stop, cpu, note, open};
use crate::cluster::ports::Ports;

/// So often a sample is taken while other programs disturb it; then the least disturbed counts.
const TRIES_MAX: u32 = 4;
/// What a load with misses may reach: so many fresh keys are kept for it.
const RATE_MAX: f64 = 100_000.0;
/// Keys of a POST.
const BATCH: usize = 100;
/// Different POSTs.
const N_POSTS: usize = 500;
/// Pause before a sample is taken again.
const PAUSE: Duration = Duration::from_millis(200);

/// Where programs run.
#[derive(Debug)]
struct Cpus {
    all: Vec<usize>,
    /// The generator's and the servers'; `None` on a machine with one CPU.
    apart: Option<(usize, usize)>,
}

/// Takes samples.
pub(super) struct Measurer<'a> {
    dir: &'a Path,
    sample: Duration,
    repeats_until: Instant,
    stop: &'a Stop,
    cpus: Cpus,
    /// The next key that nobody has asked for, and the last one.
    fresh: std::ops::Range<u32>,
    /// What the closed loop with misses reached last.
    saturation: Option<f64>,
}

impl<'a> Measurer<'a> {
    pub(super) fn new(dir: &'a Path, sample: Duration, repeats: Duration, stop: &'a Stop) -> Result<Self, BenchError> {
        let all = cpu::allowed();
        let apart = all.first().copied().zip(all.get(1).copied());
        match apart {
            Some((generator, servers)) => note(&format!("the generator on CPU {generator}, servers on CPU {servers}")),
            None => note("one CPU: nothing is pinned, and the generator's work disturbs the servers'"),
        }
        let own = [i32::try_from(std::process::id()).expect("process ids are positive 32-bit integers")];
        if cpu::run_time(&own).is_none() {
            return Err(BenchError::Failed("the kernel keeps no run time of threads (schedstat)".to_owned()));
        }
        let cpus = Cpus { all, apart };
        let repeats_until = Instant::now() + repeats;
        Ok(Self { dir, sample, repeats_until, stop, cpus, fresh: 0..0, saturation: None })
    }

    /// Puts every load on its set-ups.
    pub(super) fn run(&mut self, setups: &[Setup], loads: &[Load], rounds: u32) -> Result<Vec<Row>, BenchError> {
        for program in setups.iter().flat_map(|setup| setup.programs()).chain(&["wrk"]) {
            command(program)?;
        }
        let mut rows = Vec::new();
        let mut left = loads.to_vec();
        while let Some(first) = left.first() {
            let scene = first.scene();
            let (now, later): (Vec<Load>, Vec<Load>) = left.iter().partition(|load| load.scene() == scene);
            left = later;
            let has_misses = now.iter().any(|load| matches!(load.kind(), Kind::MissesClosed | Kind::MissesOpen));
            let fresh = if has_misses { self.fresh_keys(rounds) } else { 0 };
            self.run_scene(Scene { fresh, ..scene.0 }, setups, &now, rounds, &mut rows)?;
        }
        Ok(rows)
    }

    /// How many keys have to be there that nobody has asked for.
    fn fresh_keys(&self, rounds: u32) -> u32 {
        // Two loads have misses, and each sample may be taken twice.
        keys::n_fresh(requests(RATE_MAX, self.sample)).saturating_mul(rounds.saturating_mul(4))
    }

    /// Puts loads that need the same on their set-ups, which run all the while.
    fn run_scene(
        &mut self,
        scene: Scene,
        setups: &[Setup],
        loads: &[Load],
        rounds: u32,
        rows: &mut Vec<Row>,
    ) -> Result<(), BenchError> {
        let mut needed: Vec<Setup> = loads.iter().flat_map(|load| load.setups(setups)).collect();
        needed.sort_unstable();
        needed.dedup();
        let dir = self.dir.join(format!("{}-{}-{}", scene.size, scene.workers, needed.len()));
        std::fs::create_dir_all(&dir).map_err(BenchError::io(&dir))?;
        let mut starter = Starter { dir: &dir, scene, ports: Ports::default() };
        let mut all = Vec::new();
        for setup in needed {
            self.stop.check()?;
            note(&format!("starting {}, values of {} bytes", setup.name(), scene.size));
            all.push(starter.start(setup)?);
        }
        let n_keys = keys::n_keys(scene.size);
        self.fresh = n_keys + 1..n_keys + 1 + scene.fresh;
        for round in 1..=rounds {
            for load in loads {
                let mut now = load.setups(setups);
                if round % 2 == 0 {
                    now.reverse();
                }
                for setup in now {
                    rows.extend(self.sample_of(scene, &mut all, setup, *load, round)?);
                }
            }
        }
        drop(all);
        // Values of later scenes need the room.
        std::fs::remove_dir_all(&dir).map_err(BenchError::io(&dir))
    }

    /// A sample that nobody disturbed, or the least disturbed one.
    fn sample_of(
        &mut self,
        scene: Scene,
        all: &mut [Running],
        setup: Setup,
        load: Load,
        round: u32,
    ) -> Result<Option<Row>, BenchError> {
        let mut best: Option<Row> = None;
        for attempt in 1..=TRIES_MAX {
            self.stop.check()?;
            let row = match self.take(scene, all, setup, load, round) {
                Ok(Some(row)) => row,
                Ok(None) => break,
                // On a machine that others fill a request may take longer than a generator waits.
                Err(BenchError::Failed(text)) if attempt < TRIES_MAX => {
                    note(&format!("{}: {text}; again", load.name()));
                    continue;
                }
                Err(error) => return Err(error),
            };
            note(&format!(
                "{} {} round {round}: {:.1} us, {:.0}/s, p99 {} us, foreign {:.1} %",
                load.name(),
                setup.name(),
                row.cpu_us,
                row.requests_per_second,
                row.p99_us,
                100.0 * row.foreign,
            ));
            if best.as_ref().is_none_or(|best| row.foreign < best.foreign) {
                best = Some(row);
            }
            let is_quiet = best.as_ref().is_some_and(|best| best.foreign <= FOREIGN_MAX);
            if is_quiet || attempt == TRIES_MAX || Instant::now() > self.repeats_until {
                break;
            }
            std::thread::sleep(PAUSE);
        }
        if let (Kind::MissesClosed, Some(best)) = (load.kind(), &best) {
            self.saturation = Some(best.requests_per_second);
        }
        Ok(best)
    }

    /// One sample; `None` when it cannot be taken here.
    fn take(
        &mut self,
        scene: Scene,
        all: &mut [Running],
        setup: Setup,
        load: Load,
        round: u32,
    ) -> Result<Option<Row>, BenchError> {
        let everybody: Vec<i32> = all.iter().flat_map(|running| running.all.clone()).collect();
        let running = all.iter_mut().find(|running| running.setup == setup).expect("it has been started");
        if !running.is_whole() {
            return Err(BenchError::Failed(format!("{}: a process has ended", setup.name())));
        }
        let walk = keys::walk(load.pattern(), keys::n_keys(scene.size), u64::from(round));
        let Some(walk) = self.with_misses(load.kind(), walk) else { return Ok(None) };
        self.place(load, &running.all)?;
        let counter = match load.kind() {
            Kind::Syscalls { .. } => match Counter::start(self.dir, &running.all)? {
                None => {
                    note(&format!("{}: not measured: needs perf", load.name()));
                    return Ok(None);
                }
                some => some,
            },
            _ => None,
        };
        let usage = || {
            let machine = cpu::Usage::now(&everybody)?;
            Some((machine, cpu::run_time(&running.all)?, cpu::run_time(&running.front)?))
        };
        let before = usage();
        let seen = self.generate(load, running, &walk, scene.size)?;
        let after = usage();
        self.place_back()?;
        let calls = counter.map(Counter::stop);
        if calls == Some(None) {
            note(&format!("{}: not measured: perf may not count here", load.name()));
            return Ok(None);
        }
        let ((before, all_before, front_before), (after, all_after, front_after)) =
            before.zip(after).ok_or_else(|| BenchError::Failed(format!("{}: a process has ended", setup.name())))?;
        if seen.requests == 0 || seen.failed > 0 {
            let text = format!("{}: {} of {} requests failed", setup.name(), seen.failed, seen.requests);
            return Err(BenchError::Failed(text));
        }
        #[expect(clippy::cast_precision_loss, reason = "requests of some seconds")]
        let n = seen.requests as f64;
        let us = |time: Duration| (time.as_secs_f64() * 1e9 / n).round() / 1e3;
        #[expect(clippy::cast_precision_loss, reason = "calls of some seconds")]
        let syscalls = calls.flatten().map(|calls| (calls as f64 / n * 1e3).round() / 1e3);
        Ok(Some(Row {
            setup,
            load,
            round,
            cpu_us: us(all_after.saturating_sub(all_before)),
            front_cpu_us: us(front_after.saturating_sub(front_before)),
            requests_per_second: (n / seen.duration.as_secs_f64()).round(),
            p50_us: seen.p50_us,
            p99_us: seen.p99_us,
            p999_us: seen.p999_us,
            foreign: (before.foreign_until(&after, self.cpus.all.len()) * 1e4).round() / 1e4,
            syscalls,
        }))
    }

    /// A walk as the load wants it; `None` when there are too few fresh keys, or no rate for it is known.
    fn with_misses(&mut self, kind: Kind, walk: Vec<u32>) -> Option<Vec<u32>> {
        let rate = match (kind, self.saturation) {
            (Kind::MissesClosed, _) => RATE_MAX,
            (Kind::MissesOpen, Some(rate)) => rate / 2.0 * 1.1,
            (Kind::MissesOpen, None) => {
                note("misses-half: not measured: needs misses-c32 before it");
                return None;
            }
            _ => return Some(walk),
        };
        let len = requests(rate, self.sample);
        let n_fresh = keys::n_fresh(len);
        if self.fresh.end - self.fresh.start < n_fresh {
            note("misses: every key has been asked for by now");
            return None;
        }
        let walk = keys::walk_with_misses(&walk, len, self.fresh.start);
        self.fresh.start += n_fresh;
        Some(walk)
    }

    fn generate(&self, load: Load, running: &Running, walk: &[u32], size: usize) -> Result<Seen, BenchError> {
        let (dir, address, sample) = (self.dir, running.address, self.sample);
        let gets = Requests::Gets(walk);
        let alone = self.cpus.apart.is_some();
        match load.kind() {
            Kind::Closed { connections, threads } => closed::run(dir, address, (connections, threads), &gets, sample),
            Kind::Syscalls { connections } => closed::run(dir, address, (connections, 1), &gets, sample),
            Kind::MissesClosed => closed::run(dir, address, (32, 1), &gets, sample),
            Kind::Posts => closed::run(dir, address, (32, 1), &Requests::Posts(&posts(size)), sample),
            Kind::Open { rate } => open::run(address, rate, walk, size, sample, alone),
            Kind::MissesOpen => {
                let rate = self.saturation.unwrap_or_default() / 2.0;
                open::run(address, rate, walk, size, sample, alone)
            }
        }
    }

    /// Puts servers and generator where the load wants them.
    fn place(&self, load: Load, servers: &[i32]) -> Result<(), BenchError> {
        let place = || match self.cpus.apart.filter(|_| load.is_pinned()) {
            Some((generator, server)) => {
                cpu::pin(servers, &[server])?;
                cpu::pin_self(&[generator])
            }
            None => cpu::pin(servers, &self.cpus.all),
        };
        place().map_err(|error| BenchError::Failed(format!("programs cannot be put on a CPU: {error}")))
    }

    /// Lets what is started next run anywhere.
    fn place_back(&self) -> Result<(), BenchError> {
        cpu::pin_self(&self.cpus.all).map_err(|error| BenchError::Failed(format!("the CPUs: {error}")))
    }
}

/// How many requests there are in a sample.
fn requests(rate: f64, sample: Duration) -> usize {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "requests of some minutes")]
    let requests = (rate * sample.as_secs_f64()) as usize;
    requests
}

/// Documents that ask for a hundred different keys each, every one of them there, drawn as those of other loads are.
fn posts(size: usize) -> Vec<String> {
    let mut walk = keys::walk(Pattern::Zipf, keys::n_keys(size), 7).into_iter();
    let document = || {
        let mut numbers: Vec<u32> = Vec::with_capacity(BATCH);
        while numbers.len() < BATCH {
            let number = walk.next()?;
            if !numbers.contains(&number) {
                numbers.push(number);
            }
        }
        let keys: Vec<String> = numbers.into_iter().map(|number| format!("{:?}", keys::key(number))).collect();
        Some(format!("{{\"keys\":[{}]}}", keys.join(",")))
    };
    std::iter::from_fn(document).take(N_POSTS).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_post_asks_for_a_hundred_keys() {
        let posts = posts(1024);
        assert_eq!(posts.len(), N_POSTS);
        let json: serde_json::Value = serde_json::from_str(&posts[0]).expect("JSON");
        let keys = json["keys"].as_array().expect("a list");
        let different: BTreeSet<_> = keys.iter().map(|key| key.as_str().expect("a key")).collect();
        assert_eq!((keys.len(), different.len()), (BATCH, BATCH));
    }
}
