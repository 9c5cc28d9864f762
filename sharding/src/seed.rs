//! A seed: one vote, one candidate, and, while it holds the lease, the coordinator.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::acceptor::{Acceptor, Vote};
use crate::budget::Budgeted;
use crate::coordinator::{Coordinator, HigherTerm};
use crate::epoch::Term;
use crate::id::NShards;
use crate::membership::{Incarnation, Renew, Reply};
use crate::proposer::{Proposal, Proposer};
use crate::times::{Now, Times};

/// Most nodes whose last request it remembers.
const HEARD_MAX: usize = 1024;

/// What the shell has to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// To every seed, this one included.
    Proposal(Proposal),
    /// To the node of this life.
    Reply(Incarnation, Reply),
}

/// The seed's part of a process. One for each; only its own thread changes it.
#[derive(Debug)]
pub struct Seed {
    times: Times,
    /// The node that it is in, as long as that one has time to leave last.
    home: Option<Incarnation>,
    n_shards: NShards,
    /// The budgets that it lends as coordinator.
    budgeted: Vec<Budgeted>,
    acceptor: Acceptor,
    proposer: Proposer,
    /// There is one exactly while the lease of its term holds.
    coordinator: Option<Coordinator>,
    /// The last request of each node: a new coordinator greets them all without waiting for their next one.
    heard: BTreeMap<Incarnation, (Duration, Renew)>,
    chance: fastrand::Rng,
    outputs: VecDeque<Output>,
}

impl Seed {
    /// The seed of this ordinal, out of `n_seeds`, in the node of this `life`.
    #[must_use]
    pub fn new(
        now: Now,
        times: Times,
        n_shards: NShards,
        budgeted: Vec<Budgeted>,
        (seed, n_seeds): (u16, u16),
        life: u64,
    ) -> Self {
        Self {
            times,
            home: Some(Incarnation(life)),
            n_shards,
            budgeted,
            acceptor: Acceptor::new(now, times),
            proposer: Proposer::new(now, times, seed, n_seeds, life),
            coordinator: None,
            heard: BTreeMap::new(),
            chance: fastrand::Rng::with_seed(life),
            outputs: VecDeque::new(),
        }
    }

    /// Whether its vote counts: it does not for a while after a start.
    pub fn votes(&mut self, now: Now) -> bool {
        self.acceptor.votes(now)
    }

    /// The coordinator, while this seed is it.
    pub fn coordinator(&mut self, now: Now) -> Option<&Coordinator> {
        self.keep_term(now);
        self.coordinator.as_ref()
    }

    /// The term under which it coordinates at this moment.
    #[must_use]
    pub fn term(&self, now: Now) -> Option<Term> {
        self.proposer.term(now)
    }

    /// A seed asks for its vote.
    pub fn handle_proposal(&mut self, now: Now, proposal: Proposal) -> Option<Vote> {
        match proposal {
            Proposal::Prepare(ballot) => self.acceptor.handle_prepare(now, ballot),
            Proposal::Propose(ballot) => self.acceptor.handle_propose(now, ballot),
            Proposal::Resign(ballot) => {
                self.acceptor.handle_resign(ballot);
                self.proposer.handle_free(now);
                None
            }
        }
    }

    /// A seed has voted.
    pub fn handle_vote(&mut self, now: Now, from: u16, vote: Vote) {
        self.proposer.handle_vote(now, from, vote);
    }

    /// A node asks for its lease. Only the coordinator answers.
    pub fn handle_renew(&mut self, now: Now, renew: Renew) {
        self.keep_term(now);
        self.answer(now, &renew);
        let is_newest = match self.heard.get(&renew.incarnation) {
            Some((_, last)) => last.request < renew.request,
            None => self.has_room(now),
        };
        if is_newest {
            self.heard.insert(renew.incarnation, (now.boot, renew));
        }
    }

    /// Forgets those who are quiet when there are too many.
    fn has_room(&mut self, now: Now) -> bool {
        if self.heard.len() >= HEARD_MAX {
            self.heard.retain(|_, (heard, _)| now.boot < *heard + self.times.lease);
        }
        self.heard.len() < HEARD_MAX
    }

    /// It drains: gives the lease back and wants no other.
    pub fn handle_leave(&mut self) {
        self.proposer.handle_leave();
    }

    /// Its node has no time left to wait for others before it leaves.
    pub const fn handle_hurry(&mut self) {
        self.home = None;
    }

    /// Does what time brings, and gives the next wake-up.
    pub fn poll(&mut self, now: Now) -> Duration {
        let held = self.acceptor.held(now);
        let mut wake = self.proposer.poll(now, held);
        self.keep_term(now);
        if let Some(coordinator) = &mut self.coordinator {
            wake = wake.min(coordinator.poll(now));
        }
        wake
    }

    /// What is to be sent, until there is nothing.
    pub fn poll_output(&mut self) -> Option<Output> {
        let proposal = self.proposer.poll_proposal().map(Output::Proposal);
        // What was answered goes first: the news add to it.
        proposal.or_else(|| self.outputs.pop_front()).or_else(|| {
            let (incarnation, news) = self.coordinator.as_mut()?.poll_news()?;
            Some(Output::Reply(incarnation, news))
        })
    }

    /// The coordinator's answer to a node, and what follows when its term is not the highest.
    fn answer(&mut self, now: Now, renew: &Renew) {
        let Some(coordinator) = &mut self.coordinator else { return };
        match coordinator.handle_renew(now, renew, self.home == Some(renew.incarnation)) {
            Ok(reply) => self.outputs.extend(reply.map(|reply| Output::Reply(renew.incarnation, reply))),
            Err(HigherTerm(term)) => {
                self.proposer.handle_higher_term(now, term);
                self.coordinator = None;
            }
        }
    }

    fn keep_term(&mut self, now: Now) {
        let term = self.proposer.term(now);
        if self.coordinator.as_ref().map(Coordinator::term) == term {
            return;
        }
        let coordinator =
            |term| Coordinator::new(now, self.times, term, self.n_shards, self.chance.u64(..), &self.budgeted);
        self.coordinator = term.map(coordinator);
        self.heard.retain(|_, (heard, _)| now.boot < *heard + self.times.lease);
        for (_, renew) in self.heard.clone().into_values() {
            self.answer(now, &renew);
        }
    }
}
