//! The budget of a database: how many operations a second the whole cluster may spend on it (I4).
//!
//! A budget of `n` operations a second is `n` *slots*. An operation holds a slot from before it is sent until a second
//! after its answer, or after the death of the connection that it was sent on. The database sees it somewhere in between;
//! so it never sees two operations of one slot within one second, and never more than `n` in any sliding second, however
//! slow links, processes and the database are. Only of what a dead process has sent nobody hears any more: that is taken to
//! be seen within [`Budgeted::operation_timeout`], which is also how long a sender may hesitate.
//!
//! Most slots are lent: the coordinator ([`Lending`]) gives each node a *share*, which comes with the lease and ends with
//! it. A tenth is not: each seed has its part of that for ever ([`Floor`]), so that reads go on without a coordinator.
//! The seeds are fixed configuration, so this part never grows. A node keeps its slots in a [`Purse`].

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use crate::id::DatabaseName;
use crate::membership::Incarnation;
use crate::times::{Lease, Now, Times};

/// So long a slot is held after the answer: a second by any clock.
pub const HOLD: Duration = Duration::from_millis(1020);
/// The part of a budget that is not lent: one in so many.
const FLOOR_PART: u32 = 10;
/// Who is late by less makes up for it: timers are that coarse.
const LATE_MAX: Duration = Duration::from_millis(10);
/// While more nodes want slots than there are, they take turns of this length.
const TURN: Duration = Duration::from_secs(4);
/// Most grants that are remembered to be on their way to one node; the oldest are the first to have been overtaken.
const GRANTS_MAX: usize = 64;

/// Operations a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(pub NonZeroU32);

/// What a seed may spend for ever, outside of any lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Floor {
    /// Slots.
    pub slots: u32,
    /// How long each is held after an answer: longer than [`HOLD`] where a seed's part is less than one a second.
    pub hold: Duration,
}

impl Floor {
    /// That of a node that is no seed.
    pub const NONE: Self = Self { slots: 0, hold: HOLD };
}

impl Budget {
    /// The floor of each of `n_seeds` seeds (at least 1).
    #[must_use]
    pub fn floor(self, n_seeds: u32) -> Floor {
        // Of one operation a second nothing can be lent.
        let reserved = if self.0.get() == 1 { 1.0 } else { f64::from(self.0.get()) / f64::from(FLOOR_PART) };
        let each = reserved / f64::from(n_seeds.max(1));
        if each < 1.0 {
            return Floor { slots: 1, hold: HOLD.div_f64(each) };
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "below the budget, which is a u32")]
        Floor { slots: each as u32, hold: HOLD }
    }

    /// Slots that are lent to all nodes together.
    #[must_use]
    pub const fn lent(self) -> u32 {
        self.0.get() - self.0.get().div_ceil(FLOOR_PART)
    }
}

/// What a node says of its slots of one database, with each request for its lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetUse {
    /// Of which.
    pub database: DatabaseName,
    /// Slots that are its own at this moment: its share, or more where operations still hold slots of a larger one.
    pub held: u32,
    /// Slots that it could make use of.
    pub demand: u32,
}

/// What the coordinator grants a node of one database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BudgetShare {
    /// Of which.
    pub database: DatabaseName,
    /// Slots.
    pub slots: u32,
}

/// A slot that an operation holds. To be given back with [`Purse::settle`], whatever becomes of the operation.
#[derive(Debug)]
#[must_use = "a slot that is not given back is lost"]
pub struct Slot {
    is_floor: bool,
}

/// There is no slot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// When there is one again; `None`: when an operation is answered, or the share is another.
    pub until: Option<Duration>,
}

/// Slots of one kind that are held.
#[derive(Debug, Default)]
struct Held {
    in_flight: u32,
    /// When each of those whose operations were answered is free, in order.
    free_at: VecDeque<Duration>,
}

impl Held {
    fn count(&self) -> u32 {
        self.in_flight + u32::try_from(self.free_at.len()).unwrap_or(u32::MAX)
    }

    fn release(&mut self, now: Duration) {
        while self.free_at.front().is_some_and(|at| *at <= now) {
            self.free_at.pop_front();
        }
    }
}

/// A node's slots of one database. Operations are paced: what a second allows is spread over the second.
#[derive(Debug)]
pub struct Purse {
    floor: Floor,
    /// Before that the process that had the floor before may have spent it.
    floor_from: Duration,
    hold: Duration,
    share: u32,
    /// The share's; without one that holds there is none.
    lease: Option<Lease>,
    of_floor: Held,
    of_share: Held,
    next_at: Duration,
}

impl Purse {
    /// That of a process that starts, without a share. The floor is for later: whoever had it before may have sent an
    /// operation that the database sees within `operation_timeout`.
    #[must_use]
    pub fn new(now: Now, floor: Floor, operation_timeout: Duration, times: &Times) -> Self {
        let hold = |hold| if times.rules.hold { hold } else { Duration::ZERO };
        let wait = times.bound(operation_timeout) + floor.hold;
        Self {
            floor_from: if times.rules.late_floor { now.boot + wait } else { now.boot },
            floor: Floor { hold: hold(floor.hold), ..floor },
            hold: hold(HOLD),
            share: 0,
            lease: None,
            of_floor: Held::default(),
            of_share: Held::default(),
            next_at: Duration::ZERO,
        }
    }

    /// A share has been granted, or, with 0, taken back.
    pub fn handle_share(&mut self, slots: u32, lease: Lease) {
        (self.share, self.lease) = (slots, Some(lease));
    }

    /// Slots that may be held at this moment, whether they are or not.
    #[must_use]
    pub fn slots(&self, now: Now) -> u32 {
        self.floor_slots(now) + self.share(now)
    }

    fn floor_slots(&self, now: Now) -> u32 {
        if self.floor_from <= now.boot { self.floor.slots } else { 0 }
    }

    fn share(&self, now: Now) -> u32 {
        if self.lease.is_some_and(|lease| lease.holds(now)) { self.share } else { 0 }
    }

    /// Slots of the share that operations hold.
    pub fn held(&mut self, now: Now) -> u32 {
        self.of_share.release(now.boot);
        self.of_share.count()
    }

    /// Slots that are free at this moment.
    pub fn free(&mut self, now: Now) -> u32 {
        self.of_share.release(now.boot);
        self.of_floor.release(now.boot);
        let of_share = self.share(now).saturating_sub(self.of_share.count());
        of_share + self.floor_slots(now).saturating_sub(self.of_floor.count())
    }

    /// Takes a slot for an operation that is sent at this moment, if it leaves so many for others that may be more urgent.
    ///
    /// # Errors
    /// [`Short`] when there is none.
    pub fn spend(&mut self, now: Now, leaves: u32) -> Result<Slot, Short> {
        let is_free = self.free(now) > leaves;
        let (share, floor) = (self.share(now), self.floor_slots(now));
        let has_share = self.of_share.count() < share;
        if !is_free {
            let share_at = self.of_share.free_at.front().filter(|_| self.of_share.count() <= share);
            let floor_at = Some(&self.floor_from).filter(|from| now.boot < **from && self.floor.slots > 0);
            let floor_at = floor_at.or(self.of_floor.free_at.front());
            return Err(Short { until: share_at.into_iter().chain(floor_at).min().copied() });
        }
        if now.boot < self.next_at {
            return Err(Short { until: Some(self.next_at) });
        }
        let pace = Duration::from_secs(1) / (share + floor).max(1);
        // Whoever was late by a little makes up for it.
        let from = if now.boot < self.next_at + pace.max(LATE_MAX) { self.next_at } else { now.boot };
        self.next_at = from + pace;
        let held = if has_share { &mut self.of_share } else { &mut self.of_floor };
        held.in_flight += 1;
        Ok(Slot { is_floor: !has_share })
    }

    /// The operation was answered, or never sent, or its connection is gone: the database sees it no more after this moment.
    pub fn settle(&mut self, now: Now, slot: Slot) {
        let (held, hold) =
            if slot.is_floor { (&mut self.of_floor, self.floor.hold) } else { (&mut self.of_share, self.hold) };
        held.in_flight -= 1;
        // In order also where a clock went back.
        let at = held.free_at.back().map_or(now.boot, |last| now.boot.max(last.saturating_sub(hold)));
        held.free_at.push_back(at + hold);
    }

    /// How long it takes, about, until so many more operations can be sent one after the other. `None`: there is no slot
    /// to wait for.
    #[must_use]
    pub fn wait(&self, now: Now, n_operations: u32) -> Option<Duration> {
        let (share, floor) = (self.share(now), self.floor_slots(now));
        let slots = share + floor;
        if slots == 0 {
            return None;
        }
        let is_free = self.of_share.count() < share || self.of_floor.count() < floor;
        let next_free = self.of_share.free_at.front().into_iter().chain(self.of_floor.free_at.front()).min();
        let first = if is_free { self.next_at } else { next_free.copied().unwrap_or(self.next_at).max(self.next_at) };
        // What is lent is held for a second; a floor may be held for longer.
        let pace = if share > 0 { Duration::from_secs(1) } else { self.floor.hold.max(Duration::from_secs(1)) };
        Some(first.saturating_sub(now.boot) + pace * n_operations.saturating_sub(1) / slots)
    }
}

/// What the coordinator must know of a database to lend its budget.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Budgeted {
    /// Its name, by which nodes ask.
    pub database: DatabaseName,
    /// For the whole cluster.
    pub budget: Budget,
    /// The database has seen an operation within this time after it was sent, or never will.
    pub operation_timeout: Duration,
}

#[derive(Debug, Default)]
struct Account {
    /// As the node said last.
    held: u32,
    demand: u32,
    /// Shares in grants that it may act on yet, by the requests that they answer.
    granted: VecDeque<(u64, u32)>,
}

impl Account {
    /// The most that it may hold at this moment.
    fn bound(&self) -> u32 {
        self.granted.iter().map(|(_, slots)| *slots).max().unwrap_or(0).max(self.held)
    }
}

/// The coordinator's side of one budget: who may hold how many slots. The sum of all bounds never rises above what is
/// lent.
#[derive(Debug)]
pub struct Lending {
    budgeted: Budgeted,
    accounts: BTreeMap<Incarnation, Account>,
    /// Slots of nodes that are gone, and when they are free.
    returns: Vec<(Duration, u32)>,
    /// Before that the term before may have lent slots that nobody has reported.
    lends_from: Duration,
    returns_late: bool,
}

impl Lending {
    /// That of a new term, which knows of no share.
    #[must_use]
    pub fn new(now: Now, times: &Times, budgeted: Budgeted) -> Self {
        let wait = times.bound(times.lease) + times.bound(budgeted.operation_timeout) + HOLD;
        let lends_from = if times.rules.lend_wait { now.boot + wait } else { now.boot };
        Self {
            budgeted,
            accounts: BTreeMap::new(),
            returns: Vec::new(),
            lends_from,
            returns_late: times.rules.late_return,
        }
    }

    /// Of which database.
    #[must_use]
    pub const fn database(&self) -> &DatabaseName {
        &self.budgeted.database
    }

    /// A node says what it holds, having acted on all grants up to the one that answers request `acted`.
    pub fn handle_use(&mut self, node: Incarnation, acted: u64, used: &BudgetUse) {
        let account = self.accounts.entry(node).or_default();
        account.granted.retain(|(request, _)| *request > acted);
        (account.held, account.demand) = (used.held, used.demand);
    }

    /// A node is gone, and its lease has run out by `bound`: what it has sent is still on its way.
    pub fn handle_gone(&mut self, now: Now, times: &Times, node: Incarnation, bound: Duration) {
        let Some(account) = self.accounts.remove(&node) else { return };
        let wait = times.bound(self.budgeted.operation_timeout) + HOLD;
        let at = if self.returns_late { bound.max(now.boot) + wait } else { now.boot };
        self.returns.push((at, account.bound()));
    }

    /// The share of a node, to go with the grant that answers `request`. `None`: it has said nothing of this database.
    pub fn grant(&mut self, now: Now, node: Incarnation, request: u64) -> Option<u32> {
        self.returns.retain(|(at, _)| now.boot < *at);
        let returning = self.returns.iter().map(|(_, slots)| *slots);
        // What a node says may be anything.
        let lent = self.accounts.values().map(Account::bound).chain(returning).fold(0, u32::saturating_add);
        let all = self.budgeted.budget.lent();
        let demands: Vec<u32> = self.accounts.values().map(|account| account.demand).collect();
        let place = self.accounts.keys().position(|one| *one == node)?;
        let turn = usize::try_from(now.boot.as_secs() / TURN.as_secs()).unwrap_or(0);
        let target = split(all, &demands, turn)[place];
        let account = self.accounts.get_mut(&node)?;
        let bound = account.bound();
        let may = if now.boot < self.lends_from {
            bound.saturating_sub(lent.saturating_sub(all))
        } else {
            (bound + all.saturating_sub(lent)).saturating_sub(lent.saturating_sub(all))
        };
        let slots = target.min(may);
        if account.granted.len() >= GRANTS_MAX
            && let Some((_, oldest)) = account.granted.pop_front()
        {
            // It may still be acted on: remembered as the larger of it and its successor.
            account.granted.front_mut().into_iter().for_each(|(_, next)| *next = oldest.max(*next));
        }
        account.granted.push_back((request, slots));
        Some(slots)
    }
}

/// Divides slots: half evenly, so that nobody starts from nothing, and half by demand. Gives all of them away; those that
/// do not divide go to whom wants most, and among equals to another each turn.
fn split(slots: u32, demands: &[u32], turn: usize) -> Vec<u32> {
    let n = demands.len();
    let demand: u128 = demands.iter().map(|demand| u128::from(*demand)).sum();
    let weight = |of: &u32| if demand == 0 { 1 } else { demand + u128::from(*of) * n as u128 };
    let total: u128 = demands.iter().map(weight).sum();
    let part = |of| u32::try_from(u128::from(slots) * weight(of) / total.max(1)).unwrap_or(slots);
    let mut parts: Vec<u32> = demands.iter().map(part).collect();
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|place| (std::cmp::Reverse(demands[*place]), (place + turn) % n));
    let left = slots - parts.iter().sum::<u32>();
    order.into_iter().take(left as usize).for_each(|place| parts[place] += 1);
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(millis: u64) -> Now {
        let time = Duration::from_millis(millis);
        Now { boot: time, wall: Duration::from_secs(1_000_000) + time }
    }

    fn budget(per_second: u32) -> Budget {
        Budget(NonZeroU32::new(per_second).expect("some"))
    }

    /// Of a process that has run for a while.
    fn old(floor: Floor) -> Purse {
        Purse { floor_from: Duration::ZERO, ..Purse::new(at(0), floor, Duration::ZERO, &Times::default()) }
    }

    fn purse(share: u32, floor: u32) -> Purse {
        let times = Times::default();
        let mut purse = old(Floor { slots: floor, hold: HOLD });
        purse.handle_share(share, Lease::new(at(0), Duration::from_secs(1000), &times));
        purse
    }

    /// Spends whenever it can for a while, each operation taking as long; gives when they were sent.
    fn spend_all(purse: &mut Purse, millis: u64, operation: u64) -> Vec<u64> {
        let (mut sent, mut in_flight) = (Vec::new(), VecDeque::new());
        for now in 0..millis {
            while in_flight.front().is_some_and(|(end, _)| *end <= now) {
                let (_, slot) = in_flight.pop_front().expect("there is one");
                purse.settle(at(now), slot);
            }
            while let Ok(slot) = purse.spend(at(now), 0) {
                sent.push(now);
                in_flight.push_back((now + operation, slot));
            }
        }
        sent
    }

    fn most_in_a_second(sent: &[u64]) -> usize {
        sent.iter().map(|from| sent.iter().filter(|at| (*from..from + 1000).contains(at)).count()).max().unwrap_or(0)
    }

    #[test]
    fn no_second_sees_more_than_the_slots_and_most_are_made_use_of() {
        for (share, floor, operation) in [(10, 0, 1), (47, 1, 3), (5, 2, 400), (0, 3, 10)] {
            let sent = spend_all(&mut purse(share, floor), 20_000, operation);
            let slots = usize::try_from(share + floor).expect("few");
            assert!(most_in_a_second(&sent) <= slots, "{share} {floor} {operation}");
            let possible = 20.0 * f64::from(share + floor)
                / (HOLD.as_secs_f64() + f64::from(u32::try_from(operation).expect("few")) / 1000.0);
            assert!(
                f64::from(u32::try_from(sent.len()).expect("few")) > 0.9 * possible,
                "{} of {possible}",
                sent.len()
            );
        }
    }

    #[test]
    fn operations_are_spread_over_the_second() {
        let sent = spend_all(&mut purse(10, 0), 5000, 1);
        assert!(sent.windows(2).all(|two| two[1] - two[0] >= 90), "{sent:?}");
    }

    #[test]
    fn a_share_ends_with_its_lease_and_a_floor_does_not() {
        let times = Times::default();
        let mut purse = old(Floor { slots: 1, hold: HOLD });
        purse.handle_share(5, Lease::new(at(0), times.lease, &times));
        assert_eq!(purse.slots(at(100)), 6);
        assert_eq!(purse.slots(at(1200)), 1);
        let slot = purse.spend(at(2000), 0).expect("the floor");
        assert!(purse.spend(at(5000), 0).is_err(), "it is held until its answer");
        purse.settle(at(5000), slot);
        assert_eq!(purse.spend(at(5500), 0).expect_err("a second").until, Some(Duration::from_millis(6020)));
        assert!(purse.spend(at(6020), 0).is_ok());
    }

    #[test]
    fn a_process_that_starts_does_not_spend_the_floor_again_that_the_one_before_may_have_spent() {
        let times = Times::default();
        let mut purse = Purse::new(at(0), Floor { slots: 1, hold: HOLD }, Duration::from_secs(2), &times);
        let from = times.bound(Duration::from_secs(2)) + HOLD;
        assert_eq!(purse.spend(at(0), 0).expect_err("too early").until, Some(from));
        assert!(purse.spend(Now { boot: from, ..at(0) }, 0).is_ok());
    }

    #[test]
    fn a_smaller_share_waits_for_what_the_larger_one_spent() {
        let mut purse = purse(4, 0);
        let slots: Vec<Slot> = (0..4).map(|n| purse.spend(at(n * 250), 0).expect("a slot")).collect();
        purse.handle_share(1, Lease::new(at(0), Duration::from_secs(1000), &Times::default()));
        slots.into_iter().for_each(|slot| purse.settle(at(1000), slot));
        assert_eq!(purse.held(at(1500)), 4);
        assert!(purse.spend(at(1500), 0).is_err());
        assert_eq!(purse.held(at(2100)), 0);
        assert!(purse.spend(at(2100), 0).is_ok());
    }

    #[test]
    fn what_is_less_urgent_leaves_slots_for_what_is_more() {
        let mut purse = purse(4, 0);
        let _slots: Vec<Slot> = (0..3).map(|n| purse.spend(at(n * 250), 1).expect("a slot")).collect();
        assert_eq!(purse.free(at(750)), 1);
        assert!(purse.spend(at(750), 1).is_err());
        assert!(purse.spend(at(750), 0).is_ok());
    }

    #[test]
    fn floors_and_what_is_lent_stay_within_the_budget() {
        for per_second in 1..2000 {
            for n_seeds in [1, 3, 5] {
                let floor = budget(per_second).floor(n_seeds);
                let rate = f64::from(n_seeds * floor.slots) / floor.hold.as_secs_f64();
                assert!(rate + f64::from(budget(per_second).lent()) <= f64::from(per_second), "{per_second} {n_seeds}");
            }
        }
        assert_eq!(budget(1).floor(3), Floor { slots: 1, hold: HOLD * 3 });
        assert_eq!((budget(50).lent(), budget(1).lent()), (45, 0));
    }

    fn budgeted(per_second: u32) -> Budgeted {
        let database = DatabaseName::parse("main").expect("a name");
        Budgeted { database, budget: budget(per_second), operation_timeout: Duration::from_secs(2) }
    }

    fn used(held: u32, demand: u32) -> BudgetUse {
        BudgetUse { database: budgeted(1).database, held, demand }
    }

    #[test]
    fn a_slot_is_lent_again_only_when_its_holder_has_said_that_it_is_free() {
        let (times, a, b) = (Times::default(), Incarnation(1), Incarnation(2));
        let mut lending = Lending::new(at(0), &times, budgeted(20));
        lending.handle_use(a, 0, &used(0, 9));
        assert_eq!(lending.grant(at(1000), a, 1), Some(0), "the term before may have lent all");
        assert_eq!(lending.grant(at(5000), a, 2), Some(18));
        lending.handle_use(b, 0, &used(0, 9));
        assert_eq!(lending.grant(at(5000), b, 1), Some(0), "the other has all");
        assert_eq!(lending.grant(at(5250), a, 3), Some(9));
        assert_eq!(lending.grant(at(5250), b, 2), Some(0), "nor has it acted on less");
        lending.handle_use(a, 3, &used(12, 9));
        assert_eq!(lending.grant(at(5500), b, 3), Some(6), "its operations hold some still");
        lending.handle_use(a, 3, &used(9, 9));
        assert_eq!(lending.grant(at(5750), b, 4), Some(9));
    }

    #[test]
    fn what_a_dead_node_held_comes_back_when_the_database_has_seen_the_last_of_it() {
        let (times, a, b) = (Times::default(), Incarnation(1), Incarnation(2));
        let mut lending = Lending::new(at(0), &times, budgeted(20));
        lending.handle_use(a, 0, &used(0, 1));
        assert_eq!(lending.grant(at(5000), a, 1), Some(18));
        lending.handle_gone(at(7000), &times, a, Duration::from_millis(6500));
        lending.handle_use(b, 0, &used(0, 1));
        assert_eq!(lending.grant(at(10_000), b, 1), Some(0));
        assert_eq!(lending.grant(at(10_200), b, 2), Some(18));
    }

    #[test]
    fn where_there_are_fewer_slots_than_nodes_all_get_their_turn() {
        let mut got = [0; 6];
        for turn in 0..6 {
            split(4, &[2; 6], turn).iter().zip(&mut got).for_each(|(part, got)| *got += part);
        }
        assert_eq!(got, [4; 6]);
        assert_eq!(split(1, &[0, 100], 0), [0, 1]);
    }

    proptest! {
        #[test]
        fn a_split_gives_all_away_and_more_to_whom_wants_more(slots in 0..10_000_u32, turn in 0..9_usize, demands in prop::collection::vec(0..1000_u32, 1..12)) {
            let parts = split(slots, &demands, turn);
            prop_assert_eq!(parts.iter().sum::<u32>(), slots);
            let even = slots / u32::try_from(demands.len()).expect("few");
            for (part, demand) in parts.iter().zip(&demands) {
                prop_assert!(*part + 1 >= even / 2);
                for (other, less) in parts.iter().zip(&demands) {
                    prop_assert!(less > demand || other <= &(part + 1), "{:?} for {:?}", parts, demands);
                }
            }
        }
    }
}
