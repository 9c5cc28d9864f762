//! Who owns what: the next table of owners from the previous one, the members and what the shards weigh.
//!
//! An explicit table balances better and moves less than any hash. Here is decided what must be: who gets shards that
//! have no owner, and what a new member takes from the others. A table in which nobody is missing and nobody is new
//! stays as it is, however uneven: [`crate::balance`] evens it out, slowly.

use std::cmp::Reverse;

use crate::id::NodeId;
use crate::load::Weights;

/// Gives every shard an owner out of `members`.
///
/// `previous` says for each shard who owned it (shorter is fine: the rest had no owner); owners that are not members
/// any more lose their shards. Those go to the members that have least, so that these come level; then members that
/// owned less than half of an even share take what is left of it from those that have more than that. Nothing else moves.
///
/// Answers for each shard an index into `members`, which must be distinct; an empty table when there are no members. As
/// long as shards weigh the same and each table is made from the one before, counts differ by at most one. Among equals
/// the earlier member wins, so that the answer depends on the arguments only.
#[must_use]
pub fn assign(weights: &Weights, previous: &[Option<NodeId>], members: &[NodeId]) -> Vec<usize> {
    if members.is_empty() {
        return Vec::new();
    }
    let weights = weights.of_shards();
    let held_before = |shard: usize| -> Option<usize> {
        let owner = previous.get(shard)?.as_ref()?;
        members.iter().position(|member| member == owner)
    };
    let mut owners: Vec<Option<usize>> = (0..weights.len()).map(held_before).collect();
    let loads = loads(weights, &owners, members.len());
    // One whose filling was interrupted (its coordinator died) is still as good as new.
    let fair = weights.iter().sum::<u64>() / u64::try_from(members.len()).expect("members are bounded below 65,536");
    let is_new: Vec<bool> = loads.iter().map(|load| *load < fair / 2).collect();

    let free: Vec<usize> = (0..owners.len()).filter(|shard| owners[*shard].is_none()).collect();
    let level = level(&loads, free.iter().map(|shard| weights[*shard]).sum());
    let room: Vec<u64> = loads.iter().map(|load| level.saturating_sub(*load)).collect();
    spread(weights, &free, &room, &mut owners);

    fill(weights, &is_new, &mut owners);
    owners.into_iter().map(|owner| owner.expect("what was free has been spread")).collect()
}

/// What each member has.
fn loads(weights: &[u64], owners: &[Option<usize>], n_members: usize) -> Vec<u64> {
    let mut loads = vec![0; n_members];
    for (owner, weight) in owners.iter().zip(weights) {
        if let Some(owner) = *owner {
            loads[owner] += weight;
        }
    }
    loads
}

/// Up to here those who have least can be filled with `more`.
fn level(loads: &[u64], more: u64) -> u64 {
    let mut least_first = loads.to_vec();
    least_first.sort_unstable();
    let (mut sum, mut level) = (more, 0);
    for (load, n) in least_first.into_iter().zip(1..) {
        if n > 1 && level <= load {
            break;
        }
        sum += load;
        level = sum / n;
    }
    level
}

/// Gives shards to one member after the other, in runs: neighbours differ in the lane that they live on, so a run is
/// spread evenly over a node's lanes, as a stride of the members' number might not be. A shard goes to the one whose
/// `room` its middle falls into: what is rounded for one is made up for by the next. Requires: room for all.
fn spread(weights: &[u64], shards: &[usize], room: &[u64], owners: &mut [Option<usize>]) {
    let (mut member, mut bound, mut filled) = (0, room[0], 0);
    for &shard in shards {
        while member + 1 < room.len() && bound < filled + weights[shard].div_ceil(2) {
            member += 1;
            bound += room[member];
        }
        owners[shard] = Some(member);
        filled += weights[shard];
    }
}

/// Fills members that are new up to their even share. Each time the one that has most gives to the new one that has
/// least: the last of its shards by which neither gets past that share, or else the lightest, where that makes the two
/// more even.
fn fill(weights: &[u64], is_new: &[bool], owners: &mut [Option<usize>]) {
    let mut loads = loads(weights, owners, is_new.len());
    let fair = loads.iter().sum::<u64>() / u64::try_from(loads.len()).expect("members are bounded below 65,536");
    let mut shards = vec![Vec::new(); loads.len()];
    for (shard, owner) in owners.iter().enumerate() {
        shards[owner.expect("what was free has been spread")].push(shard);
    }
    let (new, old): (Vec<usize>, Vec<usize>) = (0..loads.len()).partition(|member| is_new[*member]);
    let (mut taken, mut gained) = (Vec::new(), vec![0; loads.len()]);
    while let Some(&least) = new.iter().min_by_key(|member| loads[**member])
        && let Some(&most) = old.iter().max_by_key(|member| (loads[**member], Reverse(**member)))
    {
        let of = &shards[most];
        let (spare, lack) = (loads[most].saturating_sub(fair), fair.saturating_sub(loads[least]));
        let last = || of.iter().rposition(|shard| weights[*shard] <= spare.min(lack));
        let lightest = (0..of.len()).min_by_key(|at| weights[of[*at]]);
        let lightest = || lightest.filter(|at| loads[least] + weights[of[*at]] < loads[most]);
        let Some(at) = last().or_else(lightest) else { break };
        let shard = shards[most].remove(at);
        loads[most] -= weights[shard];
        loads[least] += weights[shard];
        gained[least] += weights[shard];
        taken.push(shard);
    }
    taken.sort_unstable();
    spread(weights, &taken, &gained, owners);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::NShards;
    use crate::load::ShardLoad;

    fn members(names: &[usize]) -> Vec<NodeId> {
        names.iter().map(|name| NodeId::parse(&format!("pod-{name}")).expect("a pod's name")).collect()
    }

    fn owners(table: &[usize], members: &[NodeId]) -> Vec<Option<NodeId>> {
        table.iter().map(|&member| Some(members[member].clone())).collect()
    }

    fn counts(table: &[usize], n_members: usize) -> Vec<usize> {
        (0..n_members).map(|member| table.iter().filter(|&&owner| owner == member).count()).collect()
    }

    fn moved(before: &[Option<NodeId>], after: &[Option<NodeId>]) -> usize {
        before.iter().zip(after).filter(|(before, after)| before != after).count()
    }

    fn weights(loads: &[u32]) -> Weights {
        let load = |requests_milli: &u32| Some(ShardLoad { requests_milli: *requests_milli, kib: 0 });
        Weights::new(&loads.iter().map(load).collect::<Vec<_>>())
    }

    #[test]
    fn nobody_owns_anything_when_there_are_no_members() {
        assert!(assign(&Weights::equal(NShards::DEFAULT), &[], &[]).is_empty());
    }

    proptest! {
        #[test]
        fn counts_differ_by_at_most_one_however_nodes_come_and_go(
            n_shards in 1_u16..2000,
            changes in proptest::collection::vec(proptest::collection::hash_set(0_usize..20, 1..20), 1..8),
        ) {
            let weights = Weights::equal(NShards::new(n_shards).expect("not 0"));
            let mut previous = Vec::new();
            for names in changes {
                let members = members(&names.into_iter().collect::<Vec<_>>());
                let table = assign(&weights, &previous, &members);
                prop_assert_eq!(table.len(), usize::from(n_shards));
                let counts = counts(&table, members.len());
                let (least, most) = (counts.iter().min().expect("members"), counts.iter().max().expect("members"));
                prop_assert!(most - least <= 1, "{:?}", counts);
                previous = owners(&table, &members);
            }
        }

        #[test]
        fn what_has_an_owner_leaves_it_only_for_one_who_has_less_than_half_a_share(
            previous in proptest::collection::vec(proptest::option::of(0_usize..10), 100),
            loads in proptest::collection::vec(0_u32..100_000, 100),
        ) {
            let previous: Vec<_> = (0..10).map(Some).chain(previous).collect();
            let members = members(&(0..10).collect::<Vec<_>>());
            let owned: Vec<_> = previous.iter().map(|owner| owner.map(|owner| members[owner].clone())).collect();
            let weights = weights(&[vec![0; 10], loads].concat());
            let table = assign(&weights, &owned, &members);
            let before = super::loads(weights.of_shards(), &previous, members.len());
            let is_new = |member: usize| before[member] < weights.total() / 10 / 2;
            let stays = |(before, after): (&Option<usize>, usize)| before.is_none_or(|it| it == after || is_new(after));
            prop_assert!(previous.iter().zip(table).all(stays));
        }

        #[test]
        fn a_joining_node_takes_its_share_of_the_load_from_those_above_it(
            loads in proptest::collection::vec(0_u32..20_000, 200..1000),
            n in 1_usize..10,
        ) {
            let weights = weights(&loads);
            let many = members(&(0..=n).collect::<Vec<_>>());
            // Dealt out as by a balance: nobody has more than a shard more than another.
            let mut held = vec![0; n];
            let deal = |weight: &u64| {
                let least = (0..n).min_by_key(|member| held[*member]).expect("members");
                held[least] += weight;
                least
            };
            let before: Vec<usize> = weights.of_shards().iter().map(deal).collect();
            let after = assign(&weights, &owners(&before, &many), &many);
            prop_assert!(before.iter().zip(&after).all(|(before, after)| before == after || *after == n));
            let of = |member: usize| -> u64 {
                let is_its = |(_, owner): &(&u64, &usize)| **owner == member;
                weights.of_shards().iter().zip(&after).filter(is_its).map(|(weight, _)| weight).sum()
            };
            let heaviest = *weights.of_shards().iter().max().expect("shards");
            let fair = weights.total() / (n as u64 + 1);
            let loads: Vec<u64> = (0..=n).map(of).collect();
            prop_assert!(loads.iter().all(|load| load.abs_diff(fair) <= heaviest), "{:?}", loads);
        }

        #[test]
        fn a_joining_node_takes_its_share_and_nothing_else_moves(n_shards in 1_u16..2000, n in 1_usize..20) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let many = members(&(0..=n).collect::<Vec<_>>());
            let before = owners(&assign(&Weights::equal(n_shards), &[], &many[..n]), &many);
            let table = assign(&Weights::equal(n_shards), &before, &many);
            let after = owners(&table, &many);
            prop_assert_eq!(moved(&before, &after), usize::from(n_shards.get()) / (n + 1));
            prop_assert_eq!(moved(&before, &after), counts(&table, n + 1)[n]);
        }

        #[test]
        fn only_the_shards_of_a_leaving_node_move(n_shards in 1_u16..2000, n in 2_usize..20, leaver in 0_usize..20) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let leaver = leaver % n;
            let many = members(&(0..n).collect::<Vec<_>>());
            let table = assign(&Weights::equal(n_shards), &[], &many);
            let before = owners(&table, &many);
            let mut rest = many.clone();
            rest.remove(leaver);
            let after = owners(&assign(&Weights::equal(n_shards), &before, &rest), &rest);
            prop_assert_eq!(moved(&before, &after), counts(&table, n)[leaver]);
        }

        #[test]
        fn every_lane_of_a_new_cluster_gets_its_share(n_shards in 64_u16..2000, n in 1_usize..6, n_lanes in 1_u16..6) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let n_lanes = std::num::NonZeroU16::new(n_lanes).expect("not 0");
            let table = assign(&Weights::equal(n_shards), &[], &members(&(0..n).collect::<Vec<_>>()));
            for member in 0..n {
                let owned = n_shards.shards().filter(|shard| table[shard.index()] == member);
                let mut lanes = vec![0_usize; usize::from(n_lanes.get())];
                owned.for_each(|shard| lanes[usize::from(shard.lane(n_lanes))] += 1);
                let (least, most) = (lanes.iter().min().expect("lanes"), lanes.iter().max().expect("lanes"));
                prop_assert!(most - least <= 1, "{:?}", lanes);
            }
        }

        #[test]
        fn an_assignment_stays_as_it_is_while_nobody_comes_or_goes(n_shards in 1_u16..2000, n in 1_usize..20) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let many = members(&(0..n).collect::<Vec<_>>());
            let table = assign(&Weights::equal(n_shards), &[], &many);
            prop_assert_eq!(assign(&Weights::equal(n_shards), &owners(&table, &many), &many), table);
        }
    }
}
