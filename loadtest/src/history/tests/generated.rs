//! Long histories, as a run of the cluster makes them: most calls are short, and some hang while a node is paused.

use std::time::{Duration, Instant};

use fastrand::Rng;

use super::play::{End, Sketch, What, play};
use super::*;

/// Generous: it takes well under a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(20);

struct Load {
    clients: u64,
    keys: u64,
    operations: usize,
    unknown: usize,
    /// Of 100 calls, those that write, and those of them that delete.
    writes: u8,
    deletes: u8,
    /// One of so many calls hangs.
    hangs: u64,
    /// Between the calls of a client.
    gap_us: u64,
}

/// What the tests of the cluster do.
const USUAL: Load =
    Load { clients: 8, keys: 20, operations: 20_000, unknown: 50, writes: 40, deletes: 10, hangs: 500, gap_us: 200 };

impl Load {
    fn sketches(&self, rng: &mut Rng) -> Vec<Sketch> {
        let mut sketches: Vec<Sketch> = (0..self.operations).map(|_| self.sketch(rng)).collect();
        for _ in 0..self.unknown {
            let unlucky = &mut sketches[rng.usize(..self.operations)];
            unlucky.what = if rng.u8(..100) < self.deletes { What::Delete } else { What::Write };
            unlucky.end = if rng.bool() { End::UnknownDone } else { End::UnknownNever };
            unlucky.effect_us = rng.u64(..2_000_000);
        }
        sketches
    }

    fn sketch(&self, rng: &mut Rng) -> Sketch {
        let what = match (rng.u8(..100) < self.writes, rng.u8(..100) < self.deletes) {
            (false, _) => What::Read,
            (true, false) => What::Write,
            (true, true) => What::Delete,
        };
        let length_us = if rng.u64(..self.hangs) == 0 { rng.u64(..5_000_000) } else { rng.u64(100..2_000) };
        Sketch {
            client: rng.u64(..self.clients),
            key: rng.u64(..self.keys),
            what,
            gap_us: 1 + rng.u64(..=self.gap_us),
            length_us,
            effect_us: rng.u64(..=length_us),
            end: if rng.u8(..100) == 0 { End::Failed } else { End::Acknowledged },
            lie: None,
        }
    }
}

fn timed(name: &str, operations: &[Operation]) -> Result<Checked, Failure> {
    let started = Instant::now();
    let checked = check(operations);
    let took = started.elapsed();
    eprintln!("{name}: {took:?}, {checked:?}");
    assert!(took < PATIENCE, "{name} took {took:?}");
    checked
}

#[test]
fn a_long_fine_history_is_checked_quickly() {
    let operations = play(&USUAL.sketches(&mut Rng::with_seed(1)));
    let checked = timed("usual", &operations).expect("nobody lies");
    assert_eq!((checked.keys, checked.unknown), (20, 50));
}

#[test]
fn one_key_that_all_clients_hammer_is_checked_quickly() {
    for (seed, deletes) in (0..).zip([0, 10, 30]) {
        let load = Load { keys: 1, operations: 2_000, deletes, gap_us: 0, ..USUAL };
        let operations = play(&load.sketches(&mut Rng::with_seed(seed)));
        timed(&format!("hammered, {deletes} of 100 writes delete"), &operations).expect("nobody lies");
    }
}

#[test]
fn calls_that_hang_do_not_make_it_slow() {
    for (seed, hangs) in (0..).zip([20, 50, 200]) {
        let load = Load { hangs, unknown: 200, ..USUAL };
        let operations = play(&load.sketches(&mut Rng::with_seed(seed)));
        timed(&format!("one call in {hangs} hangs"), &operations).expect("nobody lies");
    }
}

#[test]
fn one_lie_in_a_long_history_is_found_and_shown_in_a_few_lines() {
    for seed in 0..5 {
        let mut rng = Rng::with_seed(seed);
        let mut sketches = USUAL.sketches(&mut rng);
        let is_answered = |sketch: &Sketch| sketch.what == What::Read && sketch.end == End::Acknowledged;
        let reads: Vec<usize> = (10_000..20_000).filter(|&index| is_answered(&sketches[index])).collect();
        sketches[reads[rng.usize(..reads.len())]].lie = Some(3);
        let failure = timed("a lie", &play(&sketches)).expect_err("the value is long gone");
        let Failure::Violation(violation) = failure else { panic!("{failure}") };
        assert!(violation.operations.len() <= 4, "{violation}");
    }
}
