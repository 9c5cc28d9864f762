//! Which map holds: the shell around [`Ownership`].
//!
//! The members are the configured nodes and the map is the assignment over them, at the first epoch. What changes a
//! map later comes in through [`Membership::take`] as well.

use std::sync::Arc;

use actix::Addr;
use sharding::epoch::{Epoch, Term};
use sharding::id::NShards;
use sharding::map::{MapError, Member, ShardMap};

use crate::node::Node;
use crate::ownership::{Effect, Ownership};
use crate::shard::Resize;
use crate::shard_region::{Release, Serve, ShardRegion};

/// Epoch of the map of the configured nodes.
const FIRST_EPOCH: Epoch = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };

/// The map of a cluster of these nodes.
///
/// # Errors
/// [`MapError`] when there are too many.
pub(crate) fn configured_map(n_shards: NShards, members: Vec<Member>) -> Result<Arc<ShardMap>, MapError> {
    ShardMap::assigned(FIRST_EPOCH, n_shards, members).map(Arc::new)
}

/// Decides and performs what a map means for this node's lanes.
pub(crate) struct Membership {
    node: Arc<Node>,
    lanes: Vec<Addr<ShardRegion>>,
    ownership: Ownership,
}

impl Membership {
    pub(crate) fn new(node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>) -> Self {
        let ownership = Ownership::new(node.name.clone());
        Self { node, lanes, ownership }
    }

    /// Acts on a map, if it is newer than the last.
    pub(crate) fn take(&mut self, map: &Arc<ShardMap>) {
        self.ownership.handle_map(map);
        while let Some(effect) = self.ownership.poll_effect() {
            self.perform(effect);
        }
    }

    fn perform(&self, effect: Effect) {
        let lane_of = |shard: sharding::id::ShardId| &self.lanes[usize::from(shard.lane(self.node.n_lanes))];
        match effect {
            Effect::Publish(map) => {
                let n_owned = map.shards_of(&self.node.name).count();
                log::info!(epoch:% = map.epoch(), n_owned; "a new shard map");
                self.lanes.iter().for_each(|lane| lane.do_send(Resize { n_owned }));
                self.node.publish(map);
            }
            Effect::Serve { shard, since } => lane_of(shard).do_send(Serve { shard, since }),
            Effect::Release { shard } => lane_of(shard).do_send(Release { shard }),
        }
    }
}
