//! Machines with their clocks, and the processes that live on them.

use std::time::Duration;

use sharding::budget::{Purse, Slot};
use sharding::id::ShardId;
use sharding::load::ShardLoad;
use sharding::membership::Incarnation;
use sharding::ownership::{Effect, Ownership};
use sharding::seed::Seed;
use sharding::times::Now;

use crate::events::Message;
use crate::serving::{NOT_PULLED_MAX, Serving};

/// How far all clocks are from zero, so that they can be set back.
const CLOCK_START: Duration = Duration::from_secs(1_000_000);

/// The clocks of one machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clocks {
    /// Seconds of the boot clock in a million real ones, less a million.
    pub(crate) drift_ppm: i64,
    pub(crate) boot_at: Duration,
    pub(crate) real_at: Duration,
    pub(crate) wall_offset: i64,
}

impl Clocks {
    pub(crate) fn now(&self, real: Duration) -> Now {
        let passed = real.saturating_sub(self.real_at).as_micros() as i64;
        let boot = self.boot_at + Duration::from_micros((passed + passed * self.drift_ppm / 1_000_000) as u64);
        let wall = (CLOCK_START + boot).as_micros() as i64 + self.wall_offset;
        Now { boot, wall: Duration::from_micros(wall as u64) }
    }

    /// The real time at which the boot clock will show this.
    pub(crate) fn real(&self, boot: Duration) -> Duration {
        let ahead = boot.saturating_sub(self.boot_at).as_micros() as i64;
        self.real_at + Duration::from_micros((ahead * 1_000_000 / (1_000_000 + self.drift_ppm) + 1) as u64)
    }
}

/// A process.
pub(crate) struct Life {
    pub(crate) incarnation: Incarnation,
    pub(crate) seed: Option<Seed>,
    pub(crate) ownership: Ownership,
    pub(crate) serving: Serving,
    pub(crate) mask: u64,
    pub(crate) is_leaving: bool,
    pub(crate) is_hurried: bool,
    pub(crate) has_left: bool,
    /// When it was told last what is on its way.
    pub(crate) moved_at: Duration,
    /// When it measured its load last.
    pub(crate) measured_at: Duration,
    pub(crate) next_wake: Duration,
    pub(crate) purse: Purse,
    /// Operations, and when each is answered.
    pub(crate) in_flight: Vec<(Duration, Slot)>,
}

pub(crate) struct Machine {
    pub(crate) life: Option<Life>,
    pub(crate) clocks: Clocks,
    /// It does nothing until then.
    pub(crate) stopped_until: Duration,
    /// What came meanwhile.
    pub(crate) backlog: Vec<(usize, Message)>,
    /// Changes when it moves to another machine.
    pub(crate) identity: u64,
}

impl Life {
    pub(crate) fn settle(&mut self, now: Now, real: Duration) {
        for (_, slot) in self.in_flight.extract_if(.., |(answered, _)| *answered <= real) {
            self.purse.settle(now, slot);
        }
    }

    pub(crate) fn perform(&mut self, now: Now) {
        let (mut acquired, mut moves) = (Vec::new(), None);
        while let Some(effect) = self.ownership.poll_effect() {
            match effect {
                Effect::Serve { shard: ShardId(shard), since, after } => {
                    self.mask |= 1 << shard;
                    acquired.push((usize::from(shard), since, after));
                }
                Effect::Release { shard: ShardId(shard) } => {
                    self.mask &= !(1 << shard);
                    acquired.retain(|(acquired, ..)| *acquired != usize::from(shard));
                    self.serving.release(usize::from(shard));
                }
                Effect::Left => {
                    self.has_left = true;
                    self.seed.iter_mut().for_each(Seed::handle_leave);
                }
                Effect::Shares(shares, lease) => {
                    self.purse.handle_share(shares.first().map_or(0, |share| share.slots), lease);
                }
                Effect::Moves { giving, taking } => moves = Some((giving, taking)),
                Effect::Publish(_) | Effect::Lease(_) => {}
            }
        }
        self.serving.acquire(now, &acquired);
        if let Some((giving, taking)) = moves {
            self.moved_at = now.boot;
            self.serving.giving = giving.iter().map(|transfer| (transfer.shard.index(), transfer.since)).collect();
            self.serving.handle_wishes(now, &taking);
        }
        for shard in self.serving.take_sealed() {
            self.mask &= !(1 << shard);
        }
        for (shard, since) in self.serving.take_taken() {
            self.ownership.handle_taken(now, ShardId(u16::try_from(shard).expect("few")), since);
        }
    }

    /// Once a second, of what it serves.
    pub(crate) fn measure(&mut self, now: Now, chance: &mut fastrand::Rng) {
        if now.boot < self.measured_at + Duration::from_secs(1) {
            return;
        }
        self.measured_at = now.boot;
        // So that the load of the cluster is steady about every other time.
        let mut load = || ShardLoad { requests_milli: chance.u32(200_000..1_000_000), kib: chance.u32(..1000) };
        let loads: Vec<_> = self.ownership.held().map(|tenure| (tenure.shard, load())).collect();
        self.ownership.handle_loads(loads);
    }

    /// Gives away as it is what nobody comes for, or all when there is no time.
    pub(crate) fn hurry_if_late(&mut self, now: Now) {
        let since = self.moved_at.max(self.serving.pulled_at);
        let is_late = self.is_hurried || since + NOT_PULLED_MAX < now.boot;
        if is_late && self.ownership.n_giving() > 0 {
            self.ownership.handle_hurry(now);
        }
    }
}
