//! One vote for who coordinates: the acceptor of PaxosLease.
//!
//! M. Trencséni, A. Gazsó, H. Reinhardt, "PaxosLease: Diskless Paxos for Leases", arXiv 1209.4187. An acceptor keeps its
//! promises in memory only. What it has forgotten by a restart has run out by the time that it answers again, because it
//! is silent for as long as any lease that it may have accepted. And it gives its vote to one holder at a time: until a lease
//! that it has accepted has run out or was given back, it accepts no other's, whatever the ballot. So no two have a majority
//! at the same time.

use std::time::Duration;

use crate::epoch::Term;
use crate::times::{Now, Times};

/// One attempt of one seed to become or to stay coordinator. The larger wins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ballot {
    /// Never goes back.
    pub counter: u64,
    /// Ordinal of the seed.
    pub seed: u16,
    /// Random for each life of the process: two lives never share a ballot.
    pub life: u64,
}

impl Ballot {
    /// The term of a coordinator that acquires its lease with this ballot.
    #[must_use]
    pub const fn term(self) -> Term {
        Term { counter: self.counter, seed: self.seed }
    }

    /// Whether both are of the same life of the same seed.
    #[must_use]
    pub const fn is_of_same(self, other: Self) -> bool {
        self.seed == other.seed && self.life == other.life
    }
}

/// What an acceptor answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Vote {
    /// It will accept no smaller ballot than this. `held`: by whom the lease is held, as far as it knows.
    Promise {
        /// The ballot that asked.
        ballot: Ballot,
        /// The ballot whose lease it has accepted and that has not run out.
        held: Option<Ballot>,
    },
    /// It has accepted this ballot.
    Accept {
        /// The ballot that asked.
        ballot: Ballot,
    },
    /// It has promised a larger one.
    Refuse {
        /// The ballot that asked.
        ballot: Ballot,
        /// The larger one.
        promised: Ballot,
    },
}

/// A lease that an acceptor has given its vote to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Of its holder.
    pub ballot: Ballot,
    /// It has run out at its holder by then.
    pub until: Duration,
}

/// The acceptor of one seed. One for each; only its own thread changes it.
#[derive(Clone, Debug)]
pub struct Acceptor {
    times: Times,
    silent_until: Duration,
    last: Now,
    promised: Ballot,
    accepted: Option<Accepted>,
}

impl Acceptor {
    /// An acceptor that remembers nothing: it votes only after the longest lease that it may have forgotten.
    #[must_use]
    pub fn new(now: Now, times: Times) -> Self {
        let silence = if times.rules.silence { times.bound(times.coordinator_lease) } else { Duration::ZERO };
        let silent_until = now.boot + silence;
        Self { times, silent_until, last: now, promised: Ballot::default(), accepted: None }
    }

    /// Whether it votes. It looks at the clocks: a process that was frozen unawares may have held on to a vote for too
    /// long, or let it go too early, and is silent as after a start.
    pub fn votes(&mut self, now: Now) -> bool {
        if now.skew_since(self.last) > self.times.skew_max {
            self.silent_until = now.boot + self.times.bound(self.times.coordinator_lease);
        }
        self.last = now;
        self.silent_until <= now.boot
    }

    /// First phase: somebody wants to know whether the lease is free.
    pub fn handle_prepare(&mut self, now: Now, ballot: Ballot) -> Option<Vote> {
        if !self.votes(now) {
            return None;
        }
        if ballot < self.promised {
            return Some(Vote::Refuse { ballot, promised: self.promised });
        }
        self.promised = ballot;
        Some(Vote::Promise { ballot, held: self.held(now).map(|accepted| accepted.ballot) })
    }

    /// Second phase: somebody wants the lease. Its time starts here, later than at the one who asks.
    pub fn handle_propose(&mut self, now: Now, ballot: Ballot) -> Option<Vote> {
        if !self.votes(now) {
            return None;
        }
        if ballot < self.promised {
            return Some(Vote::Refuse { ballot, promised: self.promised });
        }
        // A proposal that was on its way for long may come to a later life of this seed, which has promised nothing to it. What
        // that life has accepted since must not be forgotten for it. A proposer in its time does not need this vote: it was told
        // that the lease is held.
        let is_anothers = self.held(now).is_some_and(|held| !held.ballot.is_of_same(ballot));
        if is_anothers && self.times.rules.one_holder {
            return None;
        }
        self.promised = ballot;
        self.accepted = Some(Accepted { ballot, until: now.boot + self.times.bound(self.times.coordinator_lease) });
        Some(Vote::Accept { ballot })
    }

    /// The holder gives its lease back.
    pub fn handle_resign(&mut self, ballot: Ballot) {
        if self.accepted.is_some_and(|accepted| accepted.ballot.is_of_same(ballot) && accepted.ballot <= ballot) {
            self.accepted = None;
        }
    }

    /// Who holds the lease, as far as this acceptor knows.
    #[must_use]
    pub fn held(&self, now: Now) -> Option<Accepted> {
        self.accepted.filter(|accepted| now.boot < accepted.until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(millis: u64) -> Now {
        Now { boot: Duration::from_millis(millis), wall: Duration::from_millis(millis) }
    }

    const fn ballot(counter: u64, seed: u16) -> Ballot {
        Ballot { counter, seed, life: 7 }
    }

    /// 600 ms, a fiftieth more, and 100 ms for a freeze.
    const SILENCE: u64 = 712;

    fn awake() -> Acceptor {
        Acceptor::new(at(0), Times::default())
    }

    #[test]
    fn it_is_silent_after_a_start_for_as_long_as_a_lease() {
        let mut acceptor = awake();
        assert_eq!(acceptor.handle_prepare(at(SILENCE - 1), ballot(1, 0)), None);
        assert_eq!(acceptor.handle_propose(at(SILENCE - 1), ballot(1, 0)), None);
        let vote = acceptor.handle_prepare(at(SILENCE), ballot(1, 0));
        assert_eq!(vote, Some(Vote::Promise { ballot: ballot(1, 0), held: None }));
    }

    #[test]
    fn a_proposal_that_comes_late_does_not_take_the_vote_from_who_has_it() {
        let mut acceptor = awake();
        acceptor.handle_prepare(at(SILENCE), ballot(1, 1));
        assert_eq!(acceptor.handle_propose(at(SILENCE), ballot(1, 1)), Some(Vote::Accept { ballot: ballot(1, 1) }));
        // Promised by an earlier life. Asked first or not, it may not be accepted now.
        assert_eq!(acceptor.handle_propose(at(SILENCE + 1), ballot(2, 0)), None);
        let held = Some(ballot(1, 1));
        let promise = Some(Vote::Promise { ballot: ballot(2, 0), held });
        assert_eq!(acceptor.handle_prepare(at(SILENCE + 2), ballot(2, 0)), promise);
        assert_eq!(acceptor.handle_propose(at(SILENCE + 3), ballot(2, 0)), None);
        assert_eq!(acceptor.held(at(SILENCE + 3)).map(|accepted| accepted.ballot), held);
        // It has run out.
        assert_eq!(acceptor.handle_propose(at(2 * SILENCE), ballot(2, 0)), Some(Vote::Accept { ballot: ballot(2, 0) }));
    }

    #[test]
    fn it_is_silent_again_when_it_was_frozen_unawares() {
        let mut acceptor = awake();
        assert!(acceptor.votes(at(SILENCE)));
        let frozen = Now { wall: Duration::from_millis(2000 + 101), ..at(2000) };
        assert!(!acceptor.votes(frozen));
        let later = |millis| Now { wall: Duration::from_millis(millis + 101), ..at(millis) };
        assert!(!acceptor.votes(later(2000 + SILENCE - 1)));
        assert!(acceptor.votes(later(2000 + SILENCE)));
    }

    #[test]
    fn it_tells_who_holds_the_lease_until_that_has_run_out() {
        let (mut acceptor, start) = (awake(), SILENCE);
        assert_eq!(acceptor.handle_propose(at(start), ballot(1, 0)), Some(Vote::Accept { ballot: ballot(1, 0) }));
        let held =
            |acceptor: &mut Acceptor, millis, counter| match acceptor.handle_prepare(at(millis), ballot(counter, 1)) {
                Some(Vote::Promise { held, .. }) => held,
                other => panic!("{other:?}"),
            };
        assert_eq!(held(&mut acceptor, start + SILENCE - 1, 2), Some(ballot(1, 0)));
        assert_eq!(held(&mut acceptor, start + SILENCE, 3), None);
    }

    #[test]
    fn it_keeps_its_promise() {
        let mut acceptor = awake();
        let refused = |ballot| Some(Vote::Refuse { ballot, promised: Ballot { counter: 5, seed: 1, life: 7 } });
        acceptor.handle_prepare(at(SILENCE), ballot(5, 1)).expect("it votes");
        assert_eq!(acceptor.handle_prepare(at(SILENCE), ballot(5, 0)), refused(ballot(5, 0)));
        assert_eq!(acceptor.handle_propose(at(SILENCE), ballot(4, 2)), refused(ballot(4, 2)));
        assert_eq!(acceptor.held(at(SILENCE)), None);
    }

    #[test]
    fn a_lease_that_is_given_back_is_free_at_once() {
        let mut acceptor = awake();
        acceptor.handle_propose(at(SILENCE), ballot(1, 0)).expect("it votes");
        acceptor.handle_resign(Ballot { life: 8, ..ballot(2, 0) });
        assert_eq!(acceptor.held(at(SILENCE)).map(|held| held.ballot), Some(ballot(1, 0)), "that was another life");
        acceptor.handle_resign(ballot(2, 0));
        assert_eq!(acceptor.held(at(SILENCE)), None);
    }
}
