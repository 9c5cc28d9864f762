//! Which shards move so that nodes have the same load.
//!
//! Once a second, and only when no shard is on its way, the most loaded nodes give shards to the least loaded ones. It
//! begins when a node is clearly above the mean and ends when all are near it. Moves cost something, so they are held
//! back in three ways:
//!
//! - a movement budget: in any stretch of [`Times::movement`] (a minute) at most 5 % of the shards move for the sake of
//!   load. Moves for other reasons (a node has come, left or crashed) are not held back, but they use the budget up, so
//!   that nothing else moves then. A new coordinator does not know what moved before, and moves nothing for as long.
//! - a penalty for churn: a shard that has moved rests for such a stretch, and for four more it moves again only where
//!   no other gains a quarter as much.
//! - a least gain: a move that hardly helps is not made.
//!
//! A key that is hotter than a node's even share cannot be helped: its node keeps it, and gives away what weighs
//! something beside it.

use std::cmp::Reverse;
use std::time::Duration;

use crate::id::ShardId;
use crate::load::{ShardLoad, Weights};
use crate::times::{Now, Times};

/// It looks so often.
const PERIOD: Duration = Duration::from_secs(1);
/// It begins when a node has more than this, in per mille of the mean.
const BEGIN: u64 = 1080;
/// And in a cluster that is idle, where nothing is gained, when a node has more than this.
const BEGIN_IDLE: u64 = 1250;
/// It ends when no node has more than this.
const END: u64 = 1040;
/// In a stretch of [`Times::movement`] one shard in so many moves; one at least.
const MOVED_PART: usize = 20;
/// At most so many are on their way at a time.
const MOVING_MAX: usize = 8;
/// A shard has moved of late for so many stretches.
const RECENT: u32 = 5;
/// The gain of one that has moved of late counts for one part in so many.
const CHURN: u64 = 4;
/// The load falls by one part in so many of what a shard weighs in the mean, or the move is not made.
const GAIN_MIN: u64 = 4;

/// What moves, and has moved. A part of the coordinator; lives for a term.
#[derive(Debug)]
pub struct Balance {
    movement: Duration,
    /// For each shard when it got its owner.
    moved: Vec<Duration>,
    next: Duration,
    is_uneven: bool,
    n_moves: u64,
}

/// A member and what it has.
struct Side {
    member: usize,
    load: u64,
    shards: Vec<usize>,
}

impl Balance {
    /// It knows nothing of what was before: each shard may just have moved.
    #[must_use]
    pub fn new(now: Now, times: &Times, n_shards: usize) -> Self {
        Self { movement: times.movement, moved: vec![now.boot; n_shards], next: now.boot, is_uneven: false, n_moves: 0 }
    }

    /// When [`Balance::poll`] is to be asked next.
    #[must_use]
    pub const fn next(&self) -> Duration {
        self.next
    }

    /// How many moves it has asked for.
    #[must_use]
    pub const fn n_moves(&self) -> u64 {
        self.n_moves
    }

    /// A shard has got another owner, for whatever reason.
    pub fn handle_moved(&mut self, now: Now, shard: ShardId) {
        if let Some(moved) = self.moved.get_mut(shard.index()) {
            *moved = now.boot;
        }
    }

    /// The moves to begin now: which shard to which member. `owners` says for each shard which of the members has it;
    /// `None` while a shard is on its way or has no owner. Nothing moves then, nor before each shard's load is known.
    pub fn poll(
        &mut self,
        now: Now,
        loads: &[Option<ShardLoad>],
        n_members: usize,
        owners: Option<&[usize]>,
    ) -> Vec<(ShardId, usize)> {
        if now.boot < self.next {
            return Vec::new();
        }
        self.next = now.boot + PERIOD;
        let room = self.room(now);
        let Some(owners) = owners else { return Vec::new() };
        if room == 0 || n_members < 2 || loads.iter().any(Option::is_none) {
            return Vec::new();
        }
        let moves = self.moves(now, &Weights::new(loads), n_members, owners, room);
        self.n_moves += u64::try_from(moves.len()).expect("at most MOVING_MAX");
        moves
    }

    /// How many shards may move now.
    fn room(&self, now: Now) -> usize {
        let n_moved = self.moved.iter().filter(|moved| now.boot < **moved + self.movement).count();
        (self.moved.len() / MOVED_PART).max(1).saturating_sub(n_moved).min(MOVING_MAX)
    }

    fn moves(
        &mut self,
        now: Now,
        weights: &Weights,
        n_members: usize,
        owners: &[usize],
        room: usize,
    ) -> Vec<(ShardId, usize)> {
        let mut sides: Vec<Side> = (0..n_members).map(|member| Side { member, load: 0, shards: Vec::new() }).collect();
        for (shard, (owner, weight)) in owners.iter().zip(weights.of_shards()).enumerate() {
            sides[*owner].load += weight;
            sides[*owner].shards.push(shard);
        }
        let mean = weights.total() / u64::try_from(n_members).expect("members are bounded below 65,536");
        let mut moves = Vec::new();
        while moves.len() < room {
            sides.sort_by_key(|side| Reverse(side.load));
            let begin = if self.is_uneven { END } else { begin(weights, n_members) };
            self.is_uneven = above(mean, begin) < sides[0].load;
            if !self.is_uneven {
                break;
            }
            let (least, more) = sides.split_last_mut().expect("there are two at least");
            let givers = more.iter_mut().take_while(|giver| above(mean, END) < giver.load);
            let mut found = givers.filter_map(|giver| {
                let spare = (giver.load - mean).min(mean.saturating_sub(least.load));
                Some((self.best(now, weights, &giver.shards, spare)?, giver))
            });
            let Some((at, giver)) = found.next() else { break };
            let shard = giver.shards.swap_remove(at);
            giver.load -= weights.of_shards()[shard];
            least.load += weights.of_shards()[shard];
            // It is not among those of the taker: what moves now moves once.
            let id = ShardId(u16::try_from(shard).expect("at most 65,535 shards"));
            moves.push((id, least.member));
        }
        moves
    }

    /// The place of the shard by whose move most is gained, where one has `spare` too much and the other lacks that:
    /// the nearer its weight comes to that, the better.
    fn best(&self, now: Now, weights: &Weights, shards: &[usize], spare: u64) -> Option<usize> {
        let n_shards = u64::try_from(self.moved.len()).expect("at most 65,535 shards");
        let least = weights.total() / n_shards / GAIN_MIN;
        let gain = |(at, shard): (usize, &usize)| {
            let (weight, rested) = (weights.of_shards()[*shard], now.boot.saturating_sub(self.moved[*shard]));
            let gain = weight.min((2 * spare).saturating_sub(weight));
            let gain = if rested < RECENT * self.movement { gain / CHURN } else { gain };
            (self.movement <= rested && least <= gain).then_some((gain, Reverse(*shard), at))
        };
        shards.iter().enumerate().filter_map(gain).max().map(|(.., at)| at)
    }
}

/// So many per mille of the mean.
const fn above(mean: u64, per_mille: u64) -> u64 {
    mean / 1000 * per_mille
}

/// A load above this, in per mille of the mean, is no chance, and worth a move.
fn begin(weights: &Weights, n_members: usize) -> u64 {
    BEGIN.max(END + weights.noise(n_members)) + (BEGIN_IDLE - BEGIN) * weights.idle() / 1000
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Whose shards are moved as soon as that is asked for.
    struct Scene {
        second: u64,
        balance: Balance,
        owners: Vec<usize>,
        n_members: usize,
    }

    const fn at(second: u64) -> Now {
        Now { boot: Duration::from_secs(second), wall: Duration::from_secs(second) }
    }

    impl Scene {
        /// In the order of the shards one after the other belongs to the next member.
        fn new(n_shards: usize, n_members: usize) -> Self {
            let balance = Balance::new(at(0), &Times::default(), n_shards);
            Self { second: 0, balance, owners: (0..n_shards).map(|shard| shard % n_members).collect(), n_members }
        }

        /// A second passes. Gives what has moved.
        fn step(&mut self, requests: &[u32]) -> Vec<usize> {
            self.second += 1;
            let load = |requests: &u32| Some(ShardLoad { requests_milli: requests * 1000, kib: 0 });
            let loads: Vec<_> = requests.iter().map(load).collect();
            let moves = self.balance.poll(at(self.second), &loads, self.n_members, Some(&self.owners));
            for (shard, to) in &moves {
                assert_ne!(std::mem::replace(&mut self.owners[shard.index()], *to), *to);
                self.balance.handle_moved(at(self.second), *shard);
            }
            moves.into_iter().map(|(shard, _)| shard.index()).collect()
        }

        /// Of the most loaded member, in per mille of the mean.
        fn most(&self, requests: &[u32]) -> u64 {
            let mut of = vec![0; self.n_members];
            self.owners.iter().zip(requests).for_each(|(owner, requests)| of[*owner] += u64::from(*requests));
            let all = of.iter().sum::<u64>().max(1);
            1000 * of.len() as u64 * of.into_iter().max().expect("members") / all
        }
    }

    #[test]
    fn nothing_moves_while_loads_are_unknown_or_shards_on_their_way() {
        let mut balance = Balance::new(at(0), &Times::default(), 4);
        let load = Some(ShardLoad { requests_milli: 50_000, kib: 0 });
        assert!(balance.poll(at(100), &[load, load, load, None], 2, Some(&[0, 0, 0, 1])).is_empty());
        assert!(balance.poll(at(101), &[load; 4], 2, None).is_empty());
        assert_eq!(balance.poll(at(102), &[load; 4], 2, Some(&[0, 0, 0, 1])), [(ShardId(0), 1)]);
        assert_eq!((balance.n_moves(), balance.next()), (1, Duration::from_secs(103)));
    }

    #[test]
    fn nothing_moves_when_members_differ_by_little_or_by_chance() {
        let mut scene = Scene::new(100, 2);
        // Of the 15,000 requests that a node gets in 7 s, 3 % more or less are chance.
        let uneven =
            |more: u32| -> Vec<u32> { (0..100).map(|shard| if shard % 2 == 0 { 40 + more } else { 40 }).collect() };
        assert!((0..200).all(|_| scene.step(&uneven(6)).is_empty()));
        assert!(!scene.step(&uneven(10)).is_empty());
        // With a tenth of the requests the same may be chance.
        let mut scene = Scene::new(100, 2);
        let few: Vec<u32> = uneven(10).iter().map(|requests| requests / 10).collect();
        assert!((0..200).all(|_| scene.step(&few).is_empty()));
    }

    #[test]
    fn in_an_idle_cluster_shards_move_only_when_their_numbers_differ_by_much() {
        let idle = [0; 100];
        let mut scene = Scene::new(100, 2);
        scene.owners = (0..100).map(|shard| usize::from(shard >= 62)).collect();
        assert!((0..200).all(|_| scene.step(&idle).is_empty()));
        scene.owners = (0..100).map(|shard| usize::from(shard >= 63)).collect();
        assert_eq!((0..600).flat_map(|_| scene.step(&idle)).count(), 11);
    }

    #[test]
    fn a_key_that_is_hotter_than_an_even_share_stays_alone_and_nothing_moves_twice() {
        let mut scene = Scene::new(300, 3);
        let mut requests = vec![10; 300];
        requests[0] = 3000;
        let mut moved: Vec<usize> = (0..1200).flat_map(|_| scene.step(&requests)).collect();
        let n_moved = moved.len();
        moved.sort_unstable();
        moved.dedup();
        assert_eq!((moved.len(), moved.contains(&0)), (n_moved, false));
        assert_eq!(scene.owners.iter().filter(|owner| **owner == 0).count(), 1);
    }

    #[test]
    fn what_is_hardly_asked_for_is_not_moved_away_from_a_hot_key() {
        let mut scene = Scene::new(300, 3);
        let mut requests = vec![1; 300];
        requests[0] = 3000;
        assert!((0..1200).all(|_| scene.step(&requests).is_empty()));
    }

    #[test]
    fn a_shard_that_has_moved_of_late_stays_when_another_helps_nearly_as_much() {
        let mut scene = Scene::new(40, 2);
        let mut requests = vec![100; 40];
        requests[0] = 900;
        let first = scene.step(&requests);
        assert!(first.is_empty(), "{first:?} moved in the first minute");
        scene.second = 100;
        let moved: Vec<usize> = (0..300).flat_map(|_| scene.step(&requests)).collect();
        // What was hot is not: some must go back, but not the same.
        requests[0] = 100;
        let again: Vec<usize> = (0..300).flat_map(|_| scene.step(&requests)).collect();
        assert!(!moved.is_empty() && !again.is_empty() && again.iter().all(|shard| !moved.contains(shard)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_minute_sees_more_than_its_budget_whatever_the_loads(
            n_shards in 1_usize..400,
            n_members in 1_usize..8,
            tables in proptest::collection::vec(proptest::collection::vec(0_u32..1000, 400), 1..20),
        ) {
            let mut scene = Scene::new(n_shards, n_members);
            let mut moved = Vec::new();
            for second in 0..400 {
                moved.push(scene.step(&tables[second % tables.len()][..n_shards]));
            }
            prop_assert!(moved[..59].iter().all(Vec::is_empty));
            for minute in moved.windows(60) {
                let mut shards = minute.concat();
                let n_moved = shards.len();
                prop_assert!(n_moved <= (n_shards / MOVED_PART).max(1));
                shards.sort_unstable();
                shards.dedup();
                prop_assert_eq!(shards.len(), n_moved, "one has moved twice");
            }
        }

        #[test]
        fn steady_load_comes_to_rest_and_more_even_than_before(
            n_members in 2_usize..8,
            requests in proptest::collection::vec(20_u32..2000, 100..300),
        ) {
            let mut scene = Scene::new(requests.len(), n_members);
            let before = scene.most(&requests);
            for _ in 0..900 {
                scene.step(&requests);
            }
            prop_assert!(scene.most(&requests) <= before.max(1100));
            prop_assert!(scene.most(&requests) <= 1100 || requests.len() < 20 * n_members);
            prop_assert!((0..120).all(|_| scene.step(&requests).is_empty()));
        }
    }
}
