//! Node side: which shards this node serves, and since when.
//!
//! The shell puts maps in with [`Ownership::handle_map`] and performs what [`Ownership::poll_effect`] gives out.

use std::collections::VecDeque;
use std::sync::Arc;

use sharding::epoch::Epoch;
use sharding::id::{NodeId, ShardId};
use sharding::map::ShardMap;

/// What the shell has to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Tell those who answer "misdirected" of this map.
    Publish(Arc<ShardMap>),
    /// Begin to serve a shard, with no entries.
    Serve {
        /// The shard.
        shard: ShardId,
        /// The epoch at which it became ours.
        since: Epoch,
    },
    /// Serve a shard no more and forget its entries.
    Release {
        /// The shard.
        shard: ShardId,
    },
}

/// What one shard is to this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Unowned,
    Serving,
}

/// Decides what a node serves. One for each node; not shared.
#[derive(Debug)]
pub(crate) struct Ownership {
    me: NodeId,
    epoch: Option<Epoch>,
    phases: Vec<Phase>,
    effects: VecDeque<Effect>,
}

impl Ownership {
    /// A node that serves nothing yet.
    pub(crate) const fn new(me: NodeId) -> Self {
        Self { me, epoch: None, phases: Vec::new(), effects: VecDeque::new() }
    }

    /// Takes a map. One that is not newer than the last is ignored: no process acts on an epoch older than one that it
    /// has seen.
    pub(crate) fn handle_map(&mut self, map: &Arc<ShardMap>) {
        if self.epoch.is_some_and(|seen| map.epoch() <= seen) {
            return;
        }
        self.epoch = Some(map.epoch());
        self.phases.resize(usize::from(map.n_shards().get()), Phase::Unowned);
        self.effects.push_back(Effect::Publish(Arc::clone(map)));
        for shard in map.n_shards().shards() {
            let mine = map.owner_of(shard).is_some_and(|owner| owner.node == self.me);
            match (self.phases[shard.index()], mine) {
                (Phase::Unowned, true) => {
                    self.phases[shard.index()] = Phase::Serving;
                    self.effects.push_back(Effect::Serve { shard, since: map.epoch() });
                }
                (Phase::Serving, false) => {
                    self.phases[shard.index()] = Phase::Unowned;
                    self.effects.push_back(Effect::Release { shard });
                }
                (Phase::Unowned, false) | (Phase::Serving, true) => {}
            }
        }
    }

    /// The next thing to do, until there is none.
    pub(crate) fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sharding::epoch::Term;
    use sharding::map::Member;

    fn map(seq: u64, owners: &[u16]) -> Arc<ShardMap> {
        let members = Member::parse_list("a=h:1,b=h:2").expect("two members");
        let epoch = Epoch { term: Term { counter: 1, seed: 0 }, seq };
        Arc::new(ShardMap::new(epoch, members, owners.iter().copied().map(Some).collect()).expect("a map"))
    }

    fn effects(ownership: &mut Ownership) -> Vec<Effect> {
        std::iter::from_fn(|| ownership.poll_effect()).collect()
    }

    #[test]
    fn a_node_serves_what_the_map_gives_it_and_releases_what_it_takes() {
        let mut ownership = Ownership::new(NodeId::parse("a").expect("a name"));
        let (first, second) = (map(1, &[0, 1, 0]), map(2, &[1, 0, 0]));
        ownership.handle_map(&first);
        let serve = |shard, map: &ShardMap| Effect::Serve { shard: ShardId(shard), since: map.epoch() };
        let expected = vec![Effect::Publish(Arc::clone(&first)), serve(0, &first), serve(2, &first)];
        assert_eq!(effects(&mut ownership), expected);

        ownership.handle_map(&second);
        let release = Effect::Release { shard: ShardId(0) };
        assert_eq!(effects(&mut ownership), vec![Effect::Publish(Arc::clone(&second)), release, serve(1, &second)]);
    }

    #[test]
    fn a_map_that_is_not_newer_changes_nothing() {
        let mut ownership = Ownership::new(NodeId::parse("a").expect("a name"));
        ownership.handle_map(&map(2, &[0, 0]));
        effects(&mut ownership);
        ownership.handle_map(&map(2, &[1, 1]));
        ownership.handle_map(&map(1, &[1, 1]));
        assert_eq!(effects(&mut ownership), vec![]);
    }
}
