//! A database that does not answer is left alone for a while, then asked by one operation whether it is back.

use std::time::{Duration, Instant};

/// So many operations in a row find no database before it is left alone.
const FAILURES_MAX: u32 = 3;
/// A probe that has not come back for so long is not waited for.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// First pause; it doubles up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// Longest pause: a database that is back is found within about this time.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Largest part of a pause that chance takes away, so that nodes do not come together.
const JITTER: f64 = 0.5;

#[derive(Debug, Default)]
pub(super) struct Breaker {
    failures: u32,
    pause: Duration,
    /// Nothing is sent before that.
    closed_until: Option<Instant>,
    /// When somebody was sent to see.
    probed: Option<Instant>,
    last_success: Option<Instant>,
}

/// Whether an operation may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// As many as one likes.
    Open,
    /// One, to see; it is to be told with [`Breaker::handle_probe`].
    Probing,
    /// None before this time.
    Closed(Instant),
}

impl Breaker {
    pub(super) fn state(&self, now: Instant) -> State {
        let probe_until = self.probed.map(|probed| probed + PROBE_TIMEOUT);
        match (self.closed_until, probe_until) {
            (None, _) => State::Open,
            (Some(until), _) if now < until => State::Closed(until),
            (Some(_), Some(until)) if now < until => State::Closed(until),
            (Some(_), _) => State::Probing,
        }
    }

    /// An operation is sent to see whether the database is back.
    pub(super) fn handle_probe(&mut self, now: Instant) {
        self.probed = Some(now);
    }

    /// The database has answered, be it with an error.
    pub(super) fn handle_success(&mut self, now: Instant) {
        *self = Self { last_success: Some(now), ..Self::default() };
    }

    /// An operation that was sent at `sent` has met no database. `chance` is in `[0, 1)`. Says whether the database is left
    /// alone from now on, and was not before.
    pub(super) fn handle_failure(&mut self, now: Instant, sent: Instant, chance: f64) -> bool {
        // It has answered others since: it is this one that is slow.
        if self.last_success.is_some_and(|success| success > sent) {
            return false;
        }
        self.failures += 1;
        let was_open = self.closed_until.is_none();
        // Those that were in the air together count once.
        if self.failures < FAILURES_MAX || self.closed_until.is_some_and(|until| now < until) {
            return false;
        }
        self.probed = None;
        self.pause = (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX);
        self.closed_until = Some(now + self.pause.mul_f64(1.0 - JITTER * chance));
        was_open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_some_failures_the_database_is_left_alone_then_probed_at_longer_and_longer_pauses() {
        let (mut breaker, mut now) = (Breaker::default(), Instant::now());
        assert!(!breaker.handle_failure(now, now, 0.0) && !breaker.handle_failure(now, now, 0.0));
        assert_eq!(breaker.state(now), State::Open);
        assert!(breaker.handle_failure(now, now, 0.0));
        for pause in [100, 200, 400, 800, 1600, 2000, 2000] {
            let until = now + Duration::from_millis(pause);
            assert_eq!(breaker.state(now), State::Closed(until));
            // In the air since before.
            assert!(!breaker.handle_failure(now, now, 0.0));
            now = until;
            assert_eq!(breaker.state(now), State::Probing);
            breaker.handle_probe(now);
            assert_eq!(breaker.state(now), State::Closed(now + PROBE_TIMEOUT), "one is enough to see");
            assert!(!breaker.handle_failure(now, now, 0.0));
        }
        let until = now + PAUSE_MAX;
        breaker.handle_probe(until);
        assert_eq!(breaker.state(until + PROBE_TIMEOUT), State::Probing, "a probe that is lost is not waited for");
        breaker.handle_success(until);
        assert_eq!(breaker.state(until), State::Open);
    }

    #[test]
    fn a_success_in_between_starts_the_count_again() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            breaker.handle_failure(now, now, 0.5);
            breaker.handle_failure(now, now, 0.5);
            breaker.handle_success(now);
        }
        assert_eq!(breaker.state(now), State::Open);
    }

    #[test]
    fn what_is_slow_while_others_are_answered_says_nothing_of_the_database() {
        let (mut breaker, now) = (Breaker::default(), Instant::now());
        breaker.handle_success(now + Duration::from_secs(1));
        for _ in 0..10 {
            assert!(!breaker.handle_failure(now + Duration::from_secs(2), now, 0.0));
        }
        assert_eq!(breaker.state(now), State::Open);
    }
}
