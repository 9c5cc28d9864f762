//! Router side: which map to believe, and what to do with a request that was not answered.

use std::time::Duration;

use crate::epoch::Epoch;

/// Most times that one request is sent.
pub const TRIES_MAX: u32 = 3;
/// Pause before the second try, when nothing newer is known than what was tried; doubles with each further one.
pub const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Why a try brought no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setback {
    /// The node is not the owner, by the map of this epoch.
    Misdirected(Epoch),
    /// The shard has no owner in the map.
    NoOwner,
    /// No connection, or it broke before the answer.
    Unreachable,
    /// The node lost the request on its way (its shard was just being started again).
    Dropped,
}

/// What to do next with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Get the map of that epoch or a newer one, then send again.
    RefreshMap(Epoch),
    /// Wait, look the owner up again, then send again.
    Pause(Duration),
    /// Say what went wrong.
    GiveUp,
}

/// The tries of one request. Deadlines are the shell's.
#[derive(Debug, Default)]
pub struct Tries {
    made: u32,
}

impl Tries {
    /// Decides after a try by the map of epoch `known` that brought no answer.
    pub fn handle_setback(&mut self, known: Epoch, setback: Setback) -> Next {
        self.made += 1;
        if self.made >= TRIES_MAX {
            return Next::GiveUp;
        }
        match setback {
            Setback::Misdirected(newer) if newer > known => Next::RefreshMap(newer),
            // A node that is behind us, or about to own what the map gives it, needs a moment.
            _ => Next::Pause(RETRY_PAUSE * 2_u32.pow(self.made - 1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Term;

    fn epoch(seq: u64) -> Epoch {
        Epoch { term: Term { counter: 1, seed: 0 }, seq }
    }

    #[test]
    fn a_newer_map_is_fetched_at_once() {
        let next = Tries::default().handle_setback(epoch(1), Setback::Misdirected(epoch(2)));
        assert_eq!(next, Next::RefreshMap(epoch(2)));
    }

    #[test]
    fn a_node_that_is_behind_gets_a_moment() {
        let next = Tries::default().handle_setback(epoch(2), Setback::Misdirected(epoch(1)));
        assert_eq!(next, Next::Pause(RETRY_PAUSE));
    }

    #[test]
    fn a_request_is_sent_three_times_at_most_whatever_happens() {
        for setback in [Setback::Unreachable, Setback::NoOwner, Setback::Dropped, Setback::Misdirected(epoch(9))] {
            let mut tries = Tries::default();
            assert_ne!(tries.handle_setback(epoch(1), setback), Next::GiveUp);
            assert_ne!(tries.handle_setback(epoch(1), setback), Next::GiveUp);
            assert_eq!(tries.handle_setback(epoch(1), setback), Next::GiveUp);
        }
    }
}
