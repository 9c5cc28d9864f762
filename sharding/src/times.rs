//! Times of the leases, and the moments that they are counted from.
//!
//! No moment travels from one process to another: every lease is counted by each side's own clock, on the side of
//! caution. Rates of two clocks are taken to differ by at most `DRIFT_MAX`.

use std::time::Duration;

/// Most by which the rates of two clocks may differ: one part in so many (2 %).
const DRIFT_MAX: u32 = 50;

/// A moment by both clocks of one process. Moments of two processes are never compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Time since some fixed moment, by a clock that runs on while the machine is suspended. All deadlines are by it.
    pub boot: Duration,
    /// The wall clock. It only tells whether `boot` has missed something.
    pub wall: Duration,
}

impl Now {
    /// By how much the two clocks have moved apart since `then`.
    #[must_use]
    pub fn skew_since(self, then: Self) -> Duration {
        let (boot, wall) = (self.boot.saturating_sub(then.boot), then.wall.abs_diff(self.wall));
        if self.wall < then.wall { boot + wall } else { boot.abs_diff(wall) }
    }
}

/// How long leases last and how often they are renewed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// Time that the coordinator's lease lasts, from when it asked for it (T).
    pub coordinator_lease: Duration,
    /// The coordinator renews so often; another seed tries so often.
    pub coordinator_period: Duration,
    /// Time that an owner's lease lasts, from when it asked for it (L).
    pub lease: Duration,
    /// An owner renews so often.
    pub period: Duration,
    /// When a process's two clocks have moved apart by more, it was frozen, or its clock was set: it drops its leases.
    pub skew_max: Duration,
    /// For the sake of load only so many shards move in any stretch of time of this length ([`crate::balance`]).
    pub movement: Duration,
    /// What the protocol observes beyond these times.
    pub rules: Rules,
}

/// The rules that the promises hang on, one by one. Always all: a simulation that cannot find what goes wrong without
/// one of them would prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// An acceptor is silent after its start.
    pub silence: bool,
    /// An acceptor accepts no other's lease until the one that it has accepted has run out or was given back.
    pub one_holder: bool,
    /// Whoever counts another's lease counts longer than that one.
    pub guard: bool,
    /// A new coordinator waits before it gives away what nobody has reported.
    pub wait: bool,
    /// A report counts only when it quotes the coordinator's greeting.
    pub hello: bool,
    /// A lease counts from when it was asked for, not from when it came.
    pub from_asking: bool,
    /// An addition counts with the grant that it adds to, and with no later one.
    pub additions: bool,
    /// A slot of a budget is held until a second after the answer.
    pub hold: bool,
    /// A new coordinator waits before it lends slots that nobody has reported.
    pub lend_wait: bool,
    /// The slots of a dead node come back only when the database has seen the last of it.
    pub late_return: bool,
    /// A process that starts leaves its floor alone until the database has seen the last of the one before.
    pub late_floor: bool,
}

impl Rules {
    /// All of them.
    pub const ALL: Self = Self {
        silence: true,
        one_holder: true,
        guard: true,
        wait: true,
        hello: true,
        from_asking: true,
        additions: true,
        hold: true,
        lend_wait: true,
        late_return: true,
        late_floor: true,
    };
}

/// Times that cannot work together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} is {value:?}; it must be longer than {least_of} = {least:?}")]
pub struct TimesError {
    /// Which one.
    pub what: &'static str,
    /// What it is.
    pub value: Duration,
    /// What it must exceed.
    pub least_of: &'static str,
    /// That, as a time.
    pub least: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            coordinator_lease: Duration::from_millis(600),
            coordinator_period: Duration::from_millis(200),
            lease: Duration::from_millis(1200),
            period: Duration::from_millis(250),
            skew_max: Duration::from_millis(100),
            movement: Duration::from_secs(60),
            rules: Rules::ALL,
        }
    }
}

impl Times {
    /// Checks the times against each other.
    ///
    /// # Errors
    /// [`TimesError`] for the first that is too short.
    pub fn check(&self) -> Result<(), TimesError> {
        let rules = [
            ("the coordinator's period", self.coordinator_period, "nothing", Duration::ZERO),
            ("the renew period", self.period, "nothing", Duration::ZERO),
            ("the coordinator's lease", self.coordinator_lease, "2 coordinator's periods", 2 * self.coordinator_period),
            ("the ownership lease", self.lease, "3 renew periods", 3 * self.period),
            // Or a coordinator's crash would disturb every owner.
            (
                "the ownership lease",
                self.lease,
                "the coordinator's bound and a renew period",
                self.bound(self.coordinator_lease) + self.period,
            ),
        ];
        for (what, value, least_of, least) in rules {
            if value <= least {
                return Err(TimesError { what, value, least_of, least });
            }
        }
        Ok(())
    }

    /// After this time the shards of an owner that is gone have others: its bound passes, and the next one asks.
    #[must_use]
    pub fn failover(&self) -> Duration {
        self.bound(self.lease) + self.period
    }

    /// After this time by one's own clock, a lease that another process counts as `lease` has run out: its clock may
    /// be slower, and it may have been frozen for a while that it does not notice.
    #[must_use]
    pub fn bound(&self, lease: Duration) -> Duration {
        if !self.rules.guard {
            return lease;
        }
        lease + lease / DRIFT_MAX + self.skew_max
    }
}

/// A permission until a moment, by one's own clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// When it was asked for: it counts from here.
    pub asked: Now,
    /// When it ends, by the boot clock.
    pub until: Duration,
    /// Largest distance of the two clocks that it survives.
    pub skew_max: Duration,
}

impl Lease {
    /// A lease of this length.
    #[must_use]
    pub fn new(asked: Now, length: Duration, times: &Times) -> Self {
        Self { asked, until: asked.boot + length, skew_max: times.skew_max }
    }

    /// Whether it holds at this moment. To be asked at the moment that something is done under it.
    #[must_use]
    pub fn holds(&self, now: Now) -> bool {
        now.boot < self.until && now.boot >= self.asked.boot && now.skew_since(self.asked) <= self.skew_max
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(boot: u64, wall: u64) -> Now {
        Now { boot: Duration::from_millis(boot), wall: Duration::from_millis(wall) }
    }

    #[test]
    fn the_times_that_we_start_with_fit_together() {
        assert_eq!(Times::default().check(), Ok(()));
    }

    #[test]
    fn times_that_do_not_fit_are_named() {
        let times = Times { lease: Duration::from_millis(800), ..Times::default() };
        let error = times.check().expect_err("too short").to_string();
        assert!(error.contains("the ownership lease is 800ms") && error.contains("962ms"), "{error}");
    }

    #[test]
    fn a_lease_ends_at_its_time_and_when_the_clocks_move_apart() {
        let times = Times::default();
        let lease = Lease::new(at(1000, 5000), times.lease, &times);
        assert!(lease.holds(at(1000, 5000)) && lease.holds(at(2199, 6199)));
        assert!(!lease.holds(at(2200, 6200)));
        assert!(lease.holds(at(1500, 5600)) && lease.holds(at(1500, 5400)));
        assert!(!lease.holds(at(1500, 5601)) && !lease.holds(at(1500, 5399)));
    }
}
