//! How long an entry may be served.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// Largest part of a time to live that chance takes away, so that entries loaded together do not expire together.
const JITTER: f64 = 0.1;

/// The last part of the time for which an entry is fresh: one in so many.
const ENDING_PART: u32 = 10;

/// The times of a region; all count from when a load was sent to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// Older is stale: served once more, and refreshed.
    pub ttl: Duration,
    /// Older is gone: never served.
    pub max_stale: Duration,
    /// How long "there is no such row" is remembered.
    pub absent_ttl: Duration,
}

/// Until when one entry is what. Moments are microseconds since [`START`], rounded to what makes an entry older; another node
/// may have sent a load before that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    /// When the load was sent that brought it.
    pub(super) sent: i64,
    /// When it was known to be true last: by a load, or by the owner before.
    pub(super) trusted: i64,
    /// Milliseconds from `sent` on, up to 49 days.
    pub(super) stale: u32,
    pub(super) gone: u32,
}

/// What times count from.
static START: LazyLock<Instant> = LazyLock::new(Instant::now);

const NANOS_PER_MICRO: i64 = 1_000;
const NANOS_PER_MILLI: i64 = 1_000_000;

/// Four years before: nothing that is served is so old, and it takes no more than 48 bits.
const SENT_MIN: i64 = -(1 << 47);

/// A moment, in nanoseconds since [`START`]: who compares many times with one makes it once of an [`Instant`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct At(i64);

impl At {
    /// Before all others.
    pub(crate) const EVER: Self = Self(i64::MIN);

    pub(super) const fn nanos(self) -> i64 {
        self.0
    }

    pub(super) const fn of_nanos(nanos: i64) -> Self {
        Self(nanos)
    }

    const fn micros(self) -> i64 {
        self.0.div_euclid(NANOS_PER_MICRO)
    }
}

impl From<Instant> for At {
    fn from(at: Instant) -> Self {
        let start = *START;
        Self(match at.checked_duration_since(start) {
            Some(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
            None => i64::try_from((start - at).as_nanos()).map_or(i64::MIN, |before| -before),
        })
    }
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// What an entry is at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    Fresh,
    Stale,
    Gone,
}

impl Freshness {
    /// The lifetime of what a load sent at `sent` brought. `chance` is in `[0, 1)`; jitter only shortens.
    pub(crate) fn lifetime(&self, sent: Instant, is_absent: bool, chance: f64) -> Lifetime {
        let shortened = |duration: Duration| millis(duration.mul_f64(1.0 - JITTER * chance));
        let sent = At::from(sent).micros();
        let (stale, gone) = if is_absent { (self.absent_ttl, self.absent_ttl) } else { (self.ttl, self.max_stale) };
        Lifetime { sent, trusted: sent, stale: shortened(stale), gone: shortened(gone) }
    }
}

impl Lifetime {
    /// Of what another node had in memory at some moment, which was not before `asked_at`: its age then, and how long it was
    /// to be fresh and to be served.
    pub(crate) fn of_handed(asked_at: Instant, age: Duration, fresh_for: Duration, served_for: Duration) -> Self {
        let old = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        let asked_at = At::from(asked_at);
        let sent = At(asked_at.0.saturating_sub(old)).micros().max(SENT_MIN);
        let trusted = asked_at.micros();
        Self { sent, trusted, stale: millis(age + fresh_for), gone: millis(age + served_for) }
    }

    pub(crate) fn age(&self, now: impl Into<At>) -> Age {
        let old = self.old(now.into());
        if old < i64::from(self.stale) * NANOS_PER_MILLI {
            Age::Fresh
        } else if old < i64::from(self.gone) * NANOS_PER_MILLI {
            Age::Stale
        } else {
            Age::Gone
        }
    }

    /// Nanoseconds since it was sent.
    fn old(&self, now: At) -> i64 {
        now.0.saturating_sub(self.sent * NANOS_PER_MICRO)
    }

    /// Time since the load was sent that brought it.
    pub(crate) fn since_sent(&self, now: impl Into<At>) -> Duration {
        Duration::from_nanos(u64::try_from(self.old(now.into())).unwrap_or(0))
    }

    /// When it was known to be true last.
    pub(crate) const fn trusted_at(&self) -> At {
        At(self.trusted.saturating_mul(NANOS_PER_MICRO))
    }

    /// For how long it is fresh, from `now` on.
    pub(crate) fn fresh_for(&self, now: Instant) -> Duration {
        Duration::from_millis(self.stale.into()).saturating_sub(self.since_sent(now))
    }

    /// For how long it is served, from `now` on.
    pub(crate) fn served_for(&self, now: Instant) -> Duration {
        Duration::from_millis(self.gone.into()).saturating_sub(self.since_sent(now))
    }

    /// Whether it will be stale soon. What is absent never is.
    pub(crate) fn is_ending(&self, now: At) -> bool {
        let left = i64::from(self.stale) * NANOS_PER_MILLI - self.old(now);
        self.stale < self.gone && left < i64::from(self.stale / ENDING_PART) * NANOS_PER_MILLI
    }

    /// Milliseconds until it is stale; negative afterwards.
    pub(crate) fn ttl_ms(&self, now: impl Into<At>) -> i64 {
        (i64::from(self.stale) * NANOS_PER_MILLI - self.old(now.into())) / NANOS_PER_MILLI
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    /// A whole number of microseconds.
    static NOW: LazyLock<Instant> = LazyLock::new(|| *START + SECOND);
    const TIMES: Freshness = Freshness { ttl: SECOND, max_stale: Duration::from_secs(10), absent_ttl: SECOND };

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let sent = *NOW;
        let lifetime = TIMES.lifetime(sent, false, 0.0);
        assert_eq!(lifetime.age(sent), Age::Fresh);
        assert_eq!(lifetime.ttl_ms(sent), 1000);
        assert_eq!(lifetime.age(sent + SECOND), Age::Stale);
        assert_eq!(lifetime.ttl_ms(sent + 3 * SECOND), -2000);
        assert_eq!(lifetime.age(sent + 10 * SECOND), Age::Gone);
    }

    #[test]
    fn an_absent_entry_is_never_stale() {
        let sent = *NOW;
        let lifetime = TIMES.lifetime(sent, true, 0.0);
        assert_eq!(lifetime.age(sent + SECOND - Duration::from_nanos(1)), Age::Fresh);
        assert_eq!(lifetime.age(sent + SECOND), Age::Gone);
    }

    #[test]
    fn jitter_shortens_by_a_tenth_at_most_and_never_lengthens() {
        let sent = *NOW;
        for chance in [0.0, 0.25, 0.5, 0.999] {
            let lifetime = TIMES.lifetime(sent, false, chance);
            assert!(lifetime.fresh_for(sent) <= TIMES.ttl && lifetime.served_for(sent) <= TIMES.max_stale);
            assert!(lifetime.fresh_for(sent) >= TIMES.ttl.mul_f64(0.9));
        }
    }

    #[test]
    fn what_was_handed_over_is_as_old_as_it_was_and_may_be_older_than_the_process() {
        let (hour, asked_at) = (3600 * SECOND, *NOW);
        let lifetime = Lifetime::of_handed(asked_at, hour, SECOND, 2 * SECOND);
        assert_eq!((lifetime.since_sent(asked_at), lifetime.fresh_for(asked_at)), (hour, SECOND));
        assert_eq!((lifetime.served_for(asked_at + SECOND), lifetime.trusted_at()), (SECOND, asked_at.into()));
        assert_eq!(lifetime.age(asked_at + SECOND), Age::Stale);
        assert_eq!(lifetime.age(asked_at + 2 * SECOND), Age::Gone);
        let ages = Lifetime::of_handed(asked_at, Duration::MAX / 4, hour, hour);
        assert_eq!(ages.age(asked_at), Age::Gone, "what cannot be counted is not served");
    }
}
