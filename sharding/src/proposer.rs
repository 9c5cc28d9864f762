//! One seed's way to the coordinator's lease, and its keeping: the proposer of PaxosLease (see [`crate::acceptor`]).
//!
//! A round is a prepare and a propose, each answered by a majority of the acceptors. The lease counts from before the
//! prepare was sent: a promise that an acceptor has forgotten by a restart is then worth nothing any more.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::acceptor::{Accepted, Ballot, Vote};
use crate::epoch::Term;
use crate::times::{Lease, Now, Times};

/// What a proposer sends to every seed, itself included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proposal {
    /// First phase.
    Prepare(Ballot),
    /// Second phase.
    Propose(Ballot),
    /// The lease is given back.
    Resign(Ballot),
}

#[derive(Clone, Debug)]
enum Round {
    /// Until the next attempt.
    None,
    Preparing {
        ballot: Ballot,
        asked: Now,
        free: BTreeSet<u16>,
    },
    Proposing {
        ballot: Ballot,
        asked: Now,
        accepted: BTreeSet<u16>,
    },
}

impl Round {
    const fn ballot(&self) -> Option<Ballot> {
        match self {
            Self::None => None,
            Self::Preparing { ballot, .. } | Self::Proposing { ballot, .. } => Some(*ballot),
        }
    }
}

/// The lease of a coordinator.
#[derive(Clone, Copy, Debug)]
struct Held {
    term: Term,
    ballot: Ballot,
    lease: Lease,
}

/// The proposer of one seed.
#[derive(Clone, Debug)]
pub struct Proposer {
    times: Times,
    seed: u16,
    n_seeds: u16,
    life: u64,
    /// The highest counter seen anywhere.
    counter: u64,
    chance: fastrand::Rng,
    round: Round,
    held: Option<Held>,
    next_round: Duration,
    /// It does not want the lease: it drains.
    is_leaving: bool,
    unsent: Option<Proposal>,
}

/// So many of the lowest bits of a counter are those of the seed's life; the others begin with milliseconds. All together
/// fit the 53 bits of a number in JSON.
const LIFE_BITS: u32 = 12;

impl Proposer {
    /// A proposer of the seed of this ordinal, out of `n_seeds`. `life` is random for each start; ballots count from the
    /// wall clock's milliseconds, so that they do not go back when all seeds have forgotten.
    #[must_use]
    pub fn new(now: Now, times: Times, seed: u16, n_seeds: u16, life: u64) -> Self {
        let counter = u64::try_from(now.wall.as_millis()).unwrap_or(0) << LIFE_BITS;
        Self {
            times,
            seed,
            n_seeds,
            life,
            counter,
            chance: fastrand::Rng::with_seed(life),
            round: Round::None,
            held: None,
            next_round: now.boot,
            is_leaving: false,
            unsent: None,
        }
    }

    /// The term of the lease that it holds at this moment. To be asked at the moment that something is done under it.
    #[must_use]
    pub fn term(&self, now: Now) -> Option<Term> {
        self.held.filter(|held| held.lease.holds(now)).map(|held| held.term)
    }

    /// A counter has been seen somewhere: own ballots stay above it.
    pub fn handle_counter(&mut self, counter: u64) {
        self.counter = self.counter.max(counter);
    }

    /// A term has been seen that is not below our own, and is not ours: what was granted under it must not win over
    /// what we grant. The lease is given back and acquired again above it.
    pub fn handle_higher_term(&mut self, now: Now, term: Term) {
        self.handle_counter(term.counter);
        if self.held.is_some() {
            self.resign();
            self.next_round = now.boot;
        }
    }

    /// Another has given the lease back: there is nothing to wait for.
    pub fn handle_free(&mut self, now: Now) {
        self.next_round = self.next_round.min(now.boot + self.jitter());
    }

    /// It drains: gives the lease back and wants no other.
    pub fn handle_leave(&mut self) {
        self.is_leaving = true;
        self.resign();
    }

    fn resign(&mut self) {
        self.round = Round::None;
        if let Some(held) = self.held.take() {
            // Not smaller than any ballot that was proposed under the lease.
            let ballot = Ballot { counter: self.counter.max(held.ballot.counter), ..held.ballot };
            self.unsent = Some(Proposal::Resign(ballot));
        }
    }

    /// An acceptor's answer.
    pub fn handle_vote(&mut self, now: Now, from: u16, vote: Vote) {
        let majority = usize::from(self.n_seeds / 2 + 1);
        match (&mut self.round, vote) {
            (_, Vote::Refuse { ballot, promised }) => {
                self.handle_counter(promised.counter);
                if self.round.ballot() == Some(ballot) {
                    // Another was faster. It may be done by then; if not, ours is the larger one.
                    self.round = Round::None;
                    self.next_round = now.boot + self.jitter();
                }
            }
            (Round::Preparing { ballot, asked, free }, Vote::Promise { ballot: answered, held }) => {
                // A lease that we hold ourselves may be held on; one of an earlier life of ours may not.
                let is_free = held.is_none_or(|held| held.is_of_same(*ballot));
                if *ballot != answered || !is_free {
                    return;
                }
                free.insert(from);
                if free.len() >= majority {
                    let (ballot, asked) = (*ballot, *asked);
                    self.round = Round::Proposing { ballot, asked, accepted: BTreeSet::new() };
                    self.unsent = Some(Proposal::Propose(ballot));
                }
            }
            (Round::Proposing { ballot, asked, accepted }, Vote::Accept { ballot: answered }) => {
                if *ballot != answered {
                    return;
                }
                accepted.insert(from);
                if accepted.len() >= majority {
                    let (ballot, asked) = (*ballot, *asked);
                    self.acquire(now, ballot, asked);
                }
            }
            (Round::None | Round::Preparing { .. } | Round::Proposing { .. }, _) => {}
        }
    }

    fn acquire(&mut self, now: Now, ballot: Ballot, asked: Now) {
        self.round = Round::None;
        let lease = Lease::new(asked, self.times.coordinator_lease, &self.times);
        if !lease.holds(now) {
            return;
        }
        // A lease that has lapsed meanwhile was not held on: somebody else may have had it. So a new term begins.
        let term = self.term(now).unwrap_or_else(|| ballot.term());
        self.held = Some(Held { term, ballot, lease });
        self.next_round = asked.boot + self.times.coordinator_period;
    }

    /// Begins a round when it is time. `held`: who holds the lease as far as the acceptor of this seed knows; while
    /// another does, nothing is tried. Gives the next wake-up.
    pub fn poll(&mut self, now: Now, held: Option<Accepted>) -> Duration {
        if self.is_leaving {
            return now.boot + self.times.coordinator_lease;
        }
        if self.next_round <= now.boot {
            let jitter = self.jitter();
            let mine = Ballot { counter: 0, seed: self.seed, life: self.life };
            match held.filter(|held| !held.ballot.is_of_same(mine)) {
                Some(by_another) if self.term(now).is_none() => {
                    self.round = Round::None;
                    // Not all seeds at the same moment.
                    self.next_round = by_another.until + jitter;
                }
                _ => {
                    self.begin(now, mine);
                    // A round that is not over by then is given up.
                    self.next_round = now.boot + self.times.coordinator_period + jitter;
                }
            }
        }
        self.next_round
    }

    /// A pause that two seeds seldom choose alike.
    fn jitter(&mut self) -> Duration {
        (self.times.coordinator_period / 4).mul_f64(self.chance.f64())
    }

    fn begin(&mut self, now: Now, mine: Ballot) {
        // The lowest bits differ from life to life: after all clocks were set back, no term comes twice.
        self.counter = (((self.counter >> LIFE_BITS) + 1) << LIFE_BITS) | (self.life & ((1 << LIFE_BITS) - 1));
        let ballot = Ballot { counter: self.counter, ..mine };
        self.round = Round::Preparing { ballot, asked: now, free: BTreeSet::new() };
        self.unsent = Some(Proposal::Prepare(ballot));
    }

    /// What is to be sent to every seed, until there is nothing.
    pub fn poll_proposal(&mut self) -> Option<Proposal> {
        self.unsent.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::acceptor::Acceptor;
    use crate::times::Rules;

    const fn at(millis: u64) -> Now {
        Now { boot: Duration::from_millis(millis), wall: Duration::from_millis(millis) }
    }

    /// Passes on whatever is unsent to these acceptors, and their votes back, until it is quiet.
    fn exchange(now: Now, proposer: &mut Proposer, acceptors: &mut [Acceptor]) {
        while let Some(proposal) = proposer.poll_proposal() {
            for (seed, acceptor) in (0..).zip(acceptors.iter_mut()) {
                let vote = match proposal {
                    Proposal::Prepare(ballot) => acceptor.handle_prepare(now, ballot),
                    Proposal::Propose(ballot) => acceptor.handle_propose(now, ballot),
                    Proposal::Resign(ballot) => {
                        acceptor.handle_resign(ballot);
                        None
                    }
                };
                if let Some(vote) = vote {
                    proposer.handle_vote(now, seed, vote);
                }
            }
        }
    }

    fn acceptors() -> Vec<Acceptor> {
        (0..3).map(|_| Acceptor::new(at(0), Times::default())).collect()
    }

    fn proposer(seed: u16) -> Proposer {
        Proposer::new(at(1000), Times::default(), seed, 3, u64::from(seed) + 100)
    }

    #[test]
    fn a_majority_makes_a_coordinator_and_nobody_else_while_it_lasts() {
        let (mut acceptors, mut first, mut second) = (acceptors(), proposer(0), proposer(1));
        first.poll(at(1000), None);
        exchange(at(1000), &mut first, &mut acceptors[..2]);
        let term = first.term(at(1000)).expect("it leads");
        assert_eq!(first.term(at(1599)), Some(term));
        assert_eq!(first.term(at(1600)), None);

        second.poll(at(1500), None);
        exchange(at(1500), &mut second, &mut acceptors);
        assert_eq!(second.term(at(1500)), None, "one of the majority remembers the first");
        second.poll(at(1800), None);
        exchange(at(1800), &mut second, &mut acceptors);
        assert!(second.term(at(1800)).expect("it leads") > term);
    }

    #[test]
    fn a_lease_that_is_renewed_in_time_keeps_its_term() {
        let (mut acceptors, mut proposer) = (acceptors(), proposer(2));
        proposer.poll(at(1000), None);
        exchange(at(1000), &mut proposer, &mut acceptors);
        let term = proposer.term(at(1000)).expect("it leads");
        for millis in [1250, 1500, 1750] {
            proposer.poll(at(millis), acceptors[2].held(at(millis)));
            exchange(at(millis), &mut proposer, &mut acceptors);
            assert_eq!(proposer.term(at(millis + 599)), Some(term));
        }
        proposer.poll(at(2400), acceptors[2].held(at(2400)));
        exchange(at(2400), &mut proposer, &mut acceptors);
        assert!(proposer.term(at(2400)).expect("it leads again") > term, "it had lapsed");
    }

    /// A proposal comes late, to a later life of a seed that had promised to accept it; then who sent it begins anew.
    fn n_coordinators_after_a_late_proposal(rules: Rules) -> usize {
        let times = Times { rules, ..Times::default() };
        let mut acceptors: Vec<_> = (0..3).map(|_| Acceptor::new(at(0), times)).collect();
        let (mut first, mut second) = (proposer(0), proposer(1));
        second.poll(at(1000), None);
        let Some(Proposal::Prepare(ballot)) = second.poll_proposal() else { panic!("it prepares") };
        for (seed, acceptor) in (1..).zip(&mut acceptors[1..]) {
            let vote = acceptor.handle_prepare(at(1000), ballot).expect("a vote");
            second.handle_vote(at(1000), seed, vote);
        }
        assert_eq!(second.poll_proposal(), Some(Proposal::Propose(ballot)));

        acceptors[1] = Acceptor::new(at(1000), times);
        first.poll(at(1800), None);
        exchange(at(1800), &mut first, &mut acceptors[..2]);
        acceptors[1].handle_propose(at(1801), ballot);
        second.poll(at(1802), None);
        exchange(at(1802), &mut second, &mut acceptors[1..]);
        usize::from(first.term(at(1802)).is_some()) + usize::from(second.term(at(1802)).is_some())
    }

    #[test]
    fn a_proposal_that_comes_late_makes_no_second_coordinator() {
        assert_eq!(n_coordinators_after_a_late_proposal(Rules::ALL), 1);
        assert_eq!(n_coordinators_after_a_late_proposal(Rules { one_holder: false, ..Rules::ALL }), 2);
    }

    #[test]
    fn a_minority_makes_no_coordinator() {
        let (mut acceptors, mut proposer) = (acceptors(), proposer(0));
        proposer.poll(at(1000), None);
        exchange(at(1000), &mut proposer, &mut acceptors[..1]);
        assert_eq!(proposer.term(at(1000)), None);
    }

    #[test]
    fn a_lease_given_back_is_free_for_the_next_at_once() {
        let (mut acceptors, mut first, mut second) = (acceptors(), proposer(0), proposer(1));
        first.poll(at(1000), None);
        exchange(at(1000), &mut first, &mut acceptors);
        first.handle_leave();
        exchange(at(1001), &mut first, &mut acceptors);
        assert_eq!(first.term(at(1001)), None);
        second.poll(at(1002), None);
        exchange(at(1002), &mut second, &mut acceptors);
        assert!(second.term(at(1002)).is_some());
    }

    #[test]
    fn a_higher_term_seen_anywhere_is_outdone_before_anything_is_granted() {
        let (mut acceptors, mut proposer) = (acceptors(), proposer(0));
        proposer.poll(at(1000), None);
        exchange(at(1000), &mut proposer, &mut acceptors);
        let seen = Term { counter: 9_000_000, seed: 2 };
        proposer.handle_higher_term(at(1010), seen);
        assert_eq!(proposer.term(at(1010)), None);
        exchange(at(1010), &mut proposer, &mut acceptors);
        proposer.poll(at(1010), None);
        exchange(at(1010), &mut proposer, &mut acceptors);
        assert!(proposer.term(at(1010)).expect("it leads") > seen);
    }
}
