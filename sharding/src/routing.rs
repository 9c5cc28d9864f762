//! Router side: which map to believe, and what to do with a request that was not answered.

use std::time::Duration;

use twox_hash::XxHash3_64;

use crate::epoch::Epoch;
use crate::id::ShardId;
use crate::map::{Member, ShardMap};

/// Most times that one request is sent to an owner; after that the owner is passed by.
pub const TRIES_MAX: u32 = 3;
/// As often a request is sent that nobody but an owner can answer: with its pauses half a second, in which a shard of a node
/// that leaves has another owner.
pub const OWNER_TRIES_MAX: u32 = 11;
/// Most nodes that are asked to read past the owner.
pub const PASSES_MAX: usize = 5;
/// When nobody could be asked, all are asked once more.
pub const ROUNDS_MAX: u32 = 2;
/// Pause before the second round: for a machine that was too busy to answer anybody.
pub const ROUND_PAUSE: Duration = Duration::from_millis(200);
/// Pause before another try at an owner, when nothing newer is known than what was tried.
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
    /// Get the map of that epoch or a newer one, if one comes soon; then ask the owner again.
    RefreshMap(Epoch),
    /// Wait, look the owner up again, then ask it.
    Pause(Duration),
    /// Ask the node of this place in [`bypass`] to read past the owner.
    PassThrough(usize),
    /// Say what went wrong.
    GiveUp,
}

/// The tries of one request. Deadlines are the shell's.
#[derive(Debug)]
pub struct Tries {
    /// Others than the owner may answer it.
    may_pass: bool,
    made: u32,
    passed: usize,
    rounds: u32,
}

impl Tries {
    /// Those of a read, which any node can answer.
    #[must_use]
    pub const fn of_read() -> Self {
        Self { may_pass: true, made: 0, passed: 0, rounds: 0 }
    }

    /// Those of a request that is the owner's alone. Requires: what must not be done twice has surely not been begun.
    #[must_use]
    pub const fn of_owner() -> Self {
        Self { may_pass: false, ..Self::of_read() }
    }

    /// Decides after a try by the map of epoch `known` that brought no answer; so many are in [`bypass`].
    pub fn handle_setback(&mut self, known: Epoch, n_others: usize, setback: Setback) -> Next {
        if self.passed == 0 {
            self.made += 1;
        }
        match setback {
            _ if self.passed >= PASSES_MAX.min(n_others.max(1)) => {
                *self = Self { rounds: self.rounds + 1, ..Self::of_read() };
                if self.rounds < ROUNDS_MAX { Next::Pause(ROUND_PAUSE) } else { Next::GiveUp }
            }
            Setback::Misdirected(newer) if newer > known && self.made < TRIES_MAX => Next::RefreshMap(newer),
            _ if !self.may_pass && self.made < OWNER_TRIES_MAX => Next::Pause(RETRY_PAUSE),
            _ if !self.may_pass => Next::GiveUp,
            // A node that is behind us, or about to own what the map gives it, needs a moment.
            Setback::Misdirected(_) | Setback::Dropped if self.made == 1 => Next::Pause(RETRY_PAUSE),
            _ => {
                self.passed += 1;
                Next::PassThrough(self.passed - 1)
            }
        }
    }
}

/// Who may read a shard past its owner, in the order to ask: the highest first by rendezvous (Thaler, Ravishankar, "A
/// name-based mapping scheme for rendezvous", 1996). All routers choose alike, so that readers of one key meet. Then the seeds
/// that the map does not know: all that it knows may be gone. The owner itself comes last of those that are asked: it may be
/// alive, and only have lost its lease.
#[must_use]
pub fn bypass<'a>(map: &'a ShardMap, seeds: &'a [Member], shard: ShardId) -> Vec<&'a Member> {
    let owner = map.owner_of(shard).map(|owner| &owner.data);
    let is_known = |seed: &Member| map.members().iter().any(|member| member.data == seed.data);
    let members = map.members().iter().map(|member| (false, member));
    let seeds = seeds.iter().filter(|seed| !is_known(seed)).map(|seed| (true, seed));
    let mut all: Vec<(bool, &Member)> = members.chain(seeds).collect();
    all.sort_by_cached_key(|(is_unknown, member)| {
        let score = XxHash3_64::oneshot(format!("{shard} {}", member.node).as_bytes());
        (Some(&member.data) == owner, *is_unknown, std::cmp::Reverse((score, member.data.clone())))
    });
    if all.len() > PASSES_MAX && all.last().is_some_and(|(_, last)| Some(&last.data) == owner) {
        all[PASSES_MAX - 1..].rotate_right(1);
    }
    all.into_iter().map(|(_, member)| member).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Term;
    use crate::id::NShards;

    fn epoch(seq: u64) -> Epoch {
        Epoch { term: Term { counter: 1, seed: 0 }, seq }
    }

    #[test]
    fn a_newer_map_is_fetched_at_once() {
        let next = Tries::of_read().handle_setback(epoch(1), 9, Setback::Misdirected(epoch(2)));
        assert_eq!(next, Next::RefreshMap(epoch(2)));
    }

    #[test]
    fn a_node_that_is_behind_gets_a_moment_and_is_then_passed_by() {
        let mut tries = Tries::of_read();
        assert_eq!(tries.handle_setback(epoch(2), 9, Setback::Misdirected(epoch(1))), Next::Pause(RETRY_PAUSE));
        assert_eq!(tries.handle_setback(epoch(2), 9, Setback::Misdirected(epoch(1))), Next::PassThrough(0));
    }

    #[test]
    fn nobody_is_asked_past_the_owner_to_write() {
        for setback in [Setback::Unreachable, Setback::NoOwner, Setback::Dropped, Setback::Misdirected(epoch(1))] {
            let mut tries = Tries::of_owner();
            for _ in 1..OWNER_TRIES_MAX {
                assert_eq!(tries.handle_setback(epoch(2), 9, setback), Next::Pause(RETRY_PAUSE));
            }
            assert_eq!(tries.handle_setback(epoch(2), 9, setback), Next::GiveUp);
        }
    }

    #[test]
    fn an_owner_that_cannot_be_reached_is_passed_by_at_once() {
        for setback in [Setback::Unreachable, Setback::NoOwner] {
            for (n_members, n_passes) in [(9, PASSES_MAX), (3, 3)] {
                let mut tries = Tries::of_read();
                for round in 1..=ROUNDS_MAX {
                    assert_eq!(tries.handle_setback(epoch(1), n_members, setback), Next::PassThrough(0));
                    for place in 1..n_passes {
                        let next = tries.handle_setback(epoch(1), n_members, Setback::Unreachable);
                        assert_eq!(next, Next::PassThrough(place));
                    }
                    let next = tries.handle_setback(epoch(1), n_members, Setback::Unreachable);
                    assert_eq!(next, if round < ROUNDS_MAX { Next::Pause(ROUND_PAUSE) } else { Next::GiveUp });
                }
            }
        }
    }

    #[test]
    fn a_request_is_given_up_in_the_end_whatever_happens() {
        for setback in [Setback::Unreachable, Setback::NoOwner, Setback::Dropped, Setback::Misdirected(epoch(9))] {
            for n_members in [0, 1, 3, 9] {
                let mut tries = Tries::of_read();
                let sent = (1..100).find(|_| tries.handle_setback(epoch(1), n_members, setback) == Next::GiveUp);
                assert!(sent.is_some_and(|sent| sent <= 18), "{setback:?}: {sent:?}");
            }
        }
    }

    #[test]
    fn an_owner_is_passed_by_over_all_others_and_the_work_is_spread() {
        let members = Member::parse_list("a=h:1,b=h:2,c=h:3,d=h:4").expect("four");
        let map = ShardMap::assigned(epoch(1), NShards::DEFAULT, members).expect("a map");
        let mut first = std::collections::BTreeMap::new();
        for shard in NShards::DEFAULT.shards() {
            let others = bypass(&map, &[], shard);
            assert_eq!(others.len(), 4);
            assert_eq!(Some(others[3]), map.owner_of(shard));
            *first.entry(others[0].node.clone()).or_insert(0) += 1;
        }
        assert!(first.values().all(|count| (200..320).contains(count)), "{first:?}");
    }

    #[test]
    fn seeds_that_the_map_does_not_know_come_after_those_that_it_knows_but_before_the_owner() {
        let seeds = Member::parse_list("a=h:1,b=h:2,c=h:3").expect("three");
        let map = ShardMap::assigned(epoch(1), NShards::DEFAULT, seeds[2..].to_vec()).expect("a map");
        let names = |shard| bypass(&map, &seeds, shard).iter().map(|member| member.node.as_str()).collect::<String>();
        assert!(matches!(names(ShardId(0)).as_str(), "abc" | "bac"), "{}", names(ShardId(0)));
        let map = ShardMap::assigned(epoch(1), NShards::DEFAULT, Member::parse_list("c=h:3,d=h:4").expect("two"));
        let map = map.expect("a map");
        let others = bypass(&map, &seeds, ShardId(0));
        let owner = map.owner_of(ShardId(0)).expect("an owner");
        assert!(others.len() == 4 && others[3] == owner && ["c", "d"].contains(&others[0].node.as_str()), "{others:?}");
        // As on Kubernetes, where the map has other addresses than the list of seeds.
        let seeds = Member::parse_list("a=a.host:1,b=b.host:2,c=c.host:3").expect("three");
        let others = bypass(&map, &seeds, ShardId(0));
        assert!(others.len() == 5 && others[4] == owner, "{others:?}");
        let seeds = Member::parse_list("e=h:5,f=h:6,g=h:7,h=h:8,i=h:9").expect("five");
        let others = bypass(&map, &seeds, ShardId(0));
        assert!(others.len() == 7 && others[PASSES_MAX - 1] == owner, "{others:?}");
    }
}
