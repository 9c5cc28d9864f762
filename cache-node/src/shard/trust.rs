//! Since when what was read from the database is known to have been heard of if it changed.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Of one region; shared by all shards. It only rises.
#[derive(Debug)]
pub(crate) struct Trust {
    /// What the other time counts from.
    started: Instant,
    /// Nanoseconds; 0: everything is trusted for as long as it lives.
    from: AtomicU64,
    /// The database is heard, or says nothing of changes at all.
    is_heard: AtomicBool,
}

impl Trust {
    pub(crate) fn new() -> Self {
        Self { started: Instant::now(), from: AtomicU64::new(0), is_heard: AtomicBool::new(true) }
    }

    pub(crate) fn set_heard(&self, is_heard: bool) {
        self.is_heard.store(is_heard, Ordering::Release);
    }

    /// Whether what is trusted now may be vouched for.
    pub(crate) fn is_heard(&self) -> bool {
        self.is_heard.load(Ordering::Acquire)
    }

    /// What was read before `now` is not served any more.
    pub(crate) fn begin(&self, now: Instant) {
        let nanos = now.saturating_duration_since(self.started).as_nanos();
        self.from.fetch_max(u64::try_from(nanos).unwrap_or(u64::MAX), Ordering::AcqRel);
    }

    /// Since when; only to be compared with another answer.
    pub(crate) fn from(&self) -> u64 {
        self.from.load(Ordering::Acquire)
    }

    /// Whether what was asked for at this moment may be served.
    pub(crate) fn holds(&self, sent: Instant) -> bool {
        let from = self.from.load(Ordering::Acquire);
        from == 0 || sent.saturating_duration_since(self.started).as_nanos() >= u128::from(from)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_was_read_before_is_not_trusted_and_what_is_read_after_is() {
        let (trust, now) = (Trust::new(), Instant::now());
        assert!(trust.holds(now) && trust.holds(now - Duration::from_secs(1)));
        let second = Duration::from_secs(1);
        trust.begin(now + second);
        assert!(!trust.holds(now) && trust.holds(now + second));
        trust.begin(now);
        assert!(!trust.holds(now + second / 2), "it does not fall back");
    }
}
