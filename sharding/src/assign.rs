//! Who owns what: the next table of owners from the previous one and the members.
//!
//! An explicit table balances better and moves less than any hash: counts differ by at most one, and no shard moves
//! that need not.

use crate::id::{NShards, NodeId};

/// Gives every shard an owner out of `members`.
///
/// `previous` says for each shard who owned it (shorter is fine: the rest had no owner); owners that are not members
/// any more lose their shards. Answers for each shard an index into `members`, which must be distinct; an empty table
/// when there are no members. Among equals the earlier member wins, so that the answer depends on the arguments only.
#[must_use]
pub fn assign(n_shards: NShards, previous: &[Option<NodeId>], members: &[NodeId]) -> Vec<usize> {
    if members.is_empty() {
        return Vec::new();
    }
    let held_before = |shard: usize| -> Option<usize> {
        let owner = previous.get(shard)?.as_ref()?;
        members.iter().position(|member| member == owner)
    };
    let mut owners: Vec<Option<usize>> = n_shards.shards().map(|shard| held_before(shard.index())).collect();
    let mut room = targets(n_shards, &owners, members.len());

    for owner in &mut owners {
        let Some(member) = *owner else { continue };
        match room[member].checked_sub(1) {
            Some(left) => room[member] = left,
            None => *owner = None,
        }
    }
    // What is left over goes to one member after the other, in runs: neighbours differ in the lane that they live on, so
    // a run is spread evenly over a node's lanes, as a stride of the members' number might not be.
    let mut member = 0;
    let mut next_with_room = || {
        while room[member] == 0 {
            member += 1;
        }
        room[member] -= 1;
        member
    };
    owners.into_iter().map(|owner| owner.unwrap_or_else(&mut next_with_room)).collect()
}

/// How many shards each member shall own. The members that hold most get the remainder: that moves least.
fn targets(n_shards: NShards, owners: &[Option<usize>], n_members: usize) -> Vec<usize> {
    let mut held = vec![0_usize; n_members];
    for owner in owners.iter().flatten() {
        held[*owner] += 1;
    }
    let (share, remainder) = (owners.len() / n_members, owners.len() % n_members);
    debug_assert_eq!(owners.len(), usize::from(n_shards.get()));
    let mut most_first: Vec<usize> = (0..n_members).collect();
    most_first.sort_by_key(|&member| std::cmp::Reverse(held[member]));
    let mut targets = vec![share; n_members];
    for &member in &most_first[..remainder] {
        targets[member] += 1;
    }
    targets
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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

    #[test]
    fn nobody_owns_anything_when_there_are_no_members() {
        assert!(assign(NShards::DEFAULT, &[], &[]).is_empty());
    }

    proptest! {
        #[test]
        fn every_shard_has_an_owner_and_counts_differ_by_at_most_one(
            n_shards in 1_u16..2000,
            names in proptest::collection::hash_set(0_usize..40, 1..20),
            previous in proptest::collection::vec(proptest::option::of(0_usize..40), 0..2000),
        ) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let members = members(&names.into_iter().collect::<Vec<_>>());
            let node = |name: usize| NodeId::parse(&format!("pod-{name}")).expect("a pod's name");
            let previous: Vec<_> = previous.into_iter().map(|name| name.map(node)).collect();
            let table = assign(n_shards, &previous, &members);
            prop_assert_eq!(table.len(), usize::from(n_shards.get()));
            let counts = counts(&table, members.len());
            let (least, most) = (counts.iter().min().expect("members"), counts.iter().max().expect("members"));
            prop_assert!(most - least <= 1, "{:?}", counts);
        }

        #[test]
        fn a_joining_node_takes_its_share_and_nothing_else_moves(n_shards in 1_u16..2000, n in 1_usize..20) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let many = members(&(0..=n).collect::<Vec<_>>());
            let before = owners(&assign(n_shards, &[], &many[..n]), &many);
            let table = assign(n_shards, &before, &many);
            let after = owners(&table, &many);
            prop_assert_eq!(moved(&before, &after), usize::from(n_shards.get()) / (n + 1));
            prop_assert_eq!(moved(&before, &after), counts(&table, n + 1)[n]);
        }

        #[test]
        fn only_the_shards_of_a_leaving_node_move(n_shards in 1_u16..2000, n in 2_usize..20, leaver in 0_usize..20) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let leaver = leaver % n;
            let many = members(&(0..n).collect::<Vec<_>>());
            let table = assign(n_shards, &[], &many);
            let before = owners(&table, &many);
            let mut rest = many.clone();
            rest.remove(leaver);
            let after = owners(&assign(n_shards, &before, &rest), &rest);
            prop_assert_eq!(moved(&before, &after), counts(&table, n)[leaver]);
        }

        #[test]
        fn every_lane_of_a_new_cluster_gets_its_share(n_shards in 64_u16..2000, n in 1_usize..6, n_lanes in 1_u16..6) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            let n_lanes = std::num::NonZeroU16::new(n_lanes).expect("not 0");
            let table = assign(n_shards, &[], &members(&(0..n).collect::<Vec<_>>()));
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
            let table = assign(n_shards, &[], &many);
            prop_assert_eq!(assign(n_shards, &owners(&table, &many), &many), table);
        }
    }
}
