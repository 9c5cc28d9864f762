//! The coordinator's lease, exhaustively: every order of deliveries, losses, rounds and restarts within small bounds, by
//! the model checker stateright. Drift and freezes are the simulation's.
//!
//! Three seeds, two of which want the lease. Time goes in ticks of 100 ms; a lease is two of them long, and an acceptor
//! holds on for three. A message may be delivered at any later tick or never; a seed may begin a round at any tick.

use std::collections::BTreeSet;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use sharding::acceptor::{Acceptor, Vote};
use sharding::proposer::{Proposal, Proposer};
use sharding::times::{Now, Rules, Times};
use stateright::{Checker, Model, Property};

use crate::from_environment;

const SEEDS: u16 = 3;
const TICK: Duration = Duration::from_millis(100);
/// Long before the first tick, so that acceptors vote at once.
const START: Duration = Duration::from_secs(60);

/// The bounds within which everything is tried.
struct Bounds {
    rules: Rules,
    ticks: u32,
    /// Rounds that each may begin.
    rounds: [u8; SEEDS as usize],
    /// Restarts of any seed.
    restarts: u8,
}

impl Bounds {
    fn times(&self) -> Times {
        Times {
            coordinator_lease: 2 * TICK,
            // Too short for a jitter: when a round begins is the model's choice.
            coordinator_period: Duration::from_nanos(3),
            skew_max: Duration::ZERO,
            rules: self.rules,
            ..Times::default()
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    Proposal(Proposal),
    Vote(Vote),
}

#[derive(Clone)]
struct Seed {
    acceptor: Acceptor,
    proposer: Proposer,
    rounds: u8,
}

#[derive(Clone)]
struct State {
    tick: u32,
    seeds: Vec<Seed>,
    /// From, to, what.
    network: BTreeSet<(u16, u16, Message)>,
    restarts: u8,
}

/// Two states are the same when all that they consist of is.
impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tick, seeds, network, restarts } = self;
        write!(f, "{tick} {restarts} {network:?}")?;
        seeds.iter().try_for_each(|seed| write!(f, " {:?} {:?} {}", seed.acceptor, seed.proposer, seed.rounds))
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        format!("{self:?}") == format!("{other:?}")
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, state: &mut H) {
        format!("{self:?}").hash(state);
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Action {
    Tick,
    Begin(u16),
    Deliver(u16, u16, Message),
    Restart(u16),
}

impl State {
    fn now(&self) -> Now {
        let now = START + self.tick * TICK;
        Now { boot: now, wall: now }
    }

    /// Sends what a proposer has to say; to its own acceptor without a network.
    fn send(&mut self, from: u16) {
        while let Some(proposal) = self.seeds[usize::from(from)].proposer.poll_proposal() {
            for to in (0..SEEDS).filter(|to| *to != from) {
                self.network.insert((from, to, Message::Proposal(proposal)));
            }
            if let Some(vote) = self.vote(from, proposal) {
                let now = self.now();
                self.seeds[usize::from(from)].proposer.handle_vote(now, from, vote);
            }
        }
    }

    fn vote(&mut self, at: u16, proposal: Proposal) -> Option<Vote> {
        let now = self.now();
        let acceptor = &mut self.seeds[usize::from(at)].acceptor;
        match proposal {
            Proposal::Prepare(ballot) => acceptor.handle_prepare(now, ballot),
            Proposal::Propose(ballot) => acceptor.handle_propose(now, ballot),
            Proposal::Resign(ballot) => {
                acceptor.handle_resign(ballot);
                None
            }
        }
    }

    /// A vote that changes nothing now changes nothing later: rounds only go on.
    fn forget_dead_votes(&mut self) {
        let (now, seeds) = (self.now(), &self.seeds);
        self.network.retain(|&(from, to, message)| match message {
            Message::Proposal(_) => true,
            Message::Vote(vote) => {
                let before = &seeds[usize::from(to)].proposer;
                let mut after = before.clone();
                after.handle_vote(now, from, vote);
                format!("{before:?}") != format!("{after:?}")
            }
        });
    }

    fn n_coordinators(&self) -> usize {
        self.seeds.iter().filter(|seed| seed.proposer.term(self.now()).is_some()).count()
    }
}

impl Model for Bounds {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let now = Now::default();
        let seed = |ordinal: u16| Seed {
            acceptor: Acceptor::new(now, self.times()),
            proposer: Proposer::new(now, self.times(), ordinal, SEEDS, u64::from(ordinal)),
            rounds: self.rounds[usize::from(ordinal)],
        };
        let seeds = (0..SEEDS).map(seed).collect();
        vec![State { tick: 0, seeds, network: BTreeSet::new(), restarts: self.restarts }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.tick < self.ticks {
            actions.push(Action::Tick);
        }
        for (ordinal, seed) in (0..).zip(&state.seeds) {
            if seed.rounds > 0 {
                actions.push(Action::Begin(ordinal));
            }
            if state.restarts > 0 {
                actions.push(Action::Restart(ordinal));
            }
        }
        actions.extend(state.network.iter().map(|&(from, to, message)| Action::Deliver(from, to, message)));
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let now = state.now();
        match action {
            Action::Tick => state.tick += 1,
            Action::Begin(ordinal) => {
                let seed = &mut state.seeds[usize::from(ordinal)];
                seed.rounds -= 1;
                let held = seed.acceptor.held(now);
                seed.proposer.poll(now, held);
                state.send(ordinal);
            }
            Action::Deliver(from, to, message) => {
                state.network.remove(&(from, to, message));
                match message {
                    Message::Proposal(proposal) => match state.vote(to, proposal) {
                        // A refusal only ends a round: without it there are no fewer ways to a lease.
                        None | Some(Vote::Refuse { .. }) => return None,
                        Some(vote) => drop(state.network.insert((to, from, Message::Vote(vote)))),
                    },
                    Message::Vote(vote) => {
                        state.seeds[usize::from(to)].proposer.handle_vote(now, from, vote);
                        state.send(to);
                    }
                }
            }
            Action::Restart(ordinal) => {
                state.restarts -= 1;
                let life = u64::from(ordinal + SEEDS);
                let seed = &mut state.seeds[usize::from(ordinal)];
                seed.acceptor = Acceptor::new(now, self.times());
                seed.proposer = Proposer::new(now, self.times(), ordinal, SEEDS, life);
            }
        }
        state.forget_dead_votes();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("one coordinator", |_, state: &State| state.n_coordinators() <= 1),
            Property::sometimes("a coordinator", |_, state: &State| state.n_coordinators() == 1),
            Property::sometimes("a coordinator although another tried", |_, state: &State| {
                state.seeds[1].proposer.term(state.now()).is_some() && state.seeds[0].rounds == 0
            }),
        ]
    }
}

fn check(bounds: Bounds) -> impl Checker<Bounds> {
    bounds.checker().threads(2).spawn_bfs().join()
}

#[test]
fn there_is_one_coordinator_in_every_order_of_events() {
    // A round more takes minutes: for `make sim`, and not to repeat a single run.
    let of_the_second = if from_environment("SIMULATION_RUNS", 1) > 1 { 2 } else { 1 };
    let checker = check(Bounds { rules: Rules::ALL, ticks: 3, rounds: [1, of_the_second, 0], restarts: 1 });
    println!("{} states, {} of them distinct", checker.state_count(), checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn an_acceptor_that_votes_at_once_is_found_by_the_model_too() {
    let rules = Rules { silence: false, ..Rules::ALL };
    check(Bounds { rules, ticks: 3, rounds: [1, 1, 0], restarts: 1 }).assert_any_discovery("one coordinator");
}
