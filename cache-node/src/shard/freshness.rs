//! How long an entry may be served.

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

/// Until when one entry is what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lifetime {
    pub(crate) sent: Instant,
    /// When it was known to be true last: by a load, or by the owner before.
    pub(crate) trusted_at: Instant,
    pub(crate) stale_from: Instant,
    pub(crate) gone_from: Instant,
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
        let shortened = |duration: Duration| sent + duration.mul_f64(1.0 - JITTER * chance);
        if is_absent {
            let gone_from = shortened(self.absent_ttl);
            return Lifetime { sent, trusted_at: sent, stale_from: gone_from, gone_from };
        }
        Lifetime { sent, trusted_at: sent, stale_from: shortened(self.ttl), gone_from: shortened(self.max_stale) }
    }
}

impl Lifetime {
    pub(crate) fn age(&self, now: Instant) -> Age {
        if now < self.stale_from {
            Age::Fresh
        } else if now < self.gone_from {
            Age::Stale
        } else {
            Age::Gone
        }
    }

    /// Whether it will be stale soon. What is absent never is.
    pub(crate) fn is_ending(&self, now: Instant) -> bool {
        let fresh = self.stale_from.saturating_duration_since(self.sent);
        self.stale_from < self.gone_from && self.stale_from.saturating_duration_since(now) < fresh / ENDING_PART
    }

    /// Milliseconds until it is stale; negative afterwards.
    pub(crate) fn ttl_ms(&self, now: Instant) -> i64 {
        let millis = |duration: Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        match self.stale_from.checked_duration_since(now) {
            Some(left) => millis(left),
            None => -millis(now - self.stale_from),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMES: Freshness = Freshness { ttl: SECOND, max_stale: Duration::from_secs(10), absent_ttl: SECOND };

    #[test]
    fn an_entry_is_fresh_then_stale_then_gone() {
        let sent = Instant::now();
        let lifetime = TIMES.lifetime(sent, false, 0.0);
        assert_eq!(lifetime.age(sent), Age::Fresh);
        assert_eq!(lifetime.ttl_ms(sent), 1000);
        assert_eq!(lifetime.age(sent + SECOND), Age::Stale);
        assert_eq!(lifetime.ttl_ms(sent + 3 * SECOND), -2000);
        assert_eq!(lifetime.age(sent + 10 * SECOND), Age::Gone);
    }

    #[test]
    fn an_absent_entry_is_never_stale() {
        let sent = Instant::now();
        let lifetime = TIMES.lifetime(sent, true, 0.0);
        assert_eq!(lifetime.age(sent + SECOND - Duration::from_nanos(1)), Age::Fresh);
        assert_eq!(lifetime.age(sent + SECOND), Age::Gone);
    }

    #[test]
    fn jitter_shortens_by_a_tenth_at_most_and_never_lengthens() {
        let sent = Instant::now();
        for chance in [0.0, 0.25, 0.5, 0.999] {
            let lifetime = TIMES.lifetime(sent, false, chance);
            assert!(lifetime.stale_from <= sent + TIMES.ttl && lifetime.gone_from <= sent + TIMES.max_stale);
            assert!(lifetime.stale_from >= sent + TIMES.ttl.mul_f64(0.9));
        }
    }
}
