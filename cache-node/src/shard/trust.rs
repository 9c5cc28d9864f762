//! Since when what was read from the database is known to have been heard of if it changed.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Instant;

use super::freshness::At;

/// Of one region; shared by all shards. It only rises.
#[derive(Debug)]
pub(crate) struct Trust {
    /// As [`At::nanos`]. First everything is trusted for as long as it lives.
    from: AtomicI64,
    /// The database is heard, or says nothing of changes at all.
    is_heard: AtomicBool,
}

impl Trust {
    pub(crate) const fn new() -> Self {
        Self { from: AtomicI64::new(At::EVER.nanos()), is_heard: AtomicBool::new(true) }
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
        self.from.fetch_max(At::from(now).nanos(), Ordering::AcqRel);
    }

    /// Since when.
    pub(crate) fn from(&self) -> At {
        At::of_nanos(self.from.load(Ordering::Acquire))
    }

    /// Whether what was asked for at this moment may be served.
    pub(crate) fn holds(&self, sent: impl Into<At>) -> bool {
        sent.into() >= self.from()
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
