//! Reads of many keys at once: one question for all that live on one lane of a node, and it is answered with what is in memory
//! there. What is not is read one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sharding::hash::shard_of;
use sharding::id::{RegionName, ShardId};
use sharding::wire::{AnswerBody, GetMany, Hits};
use tokio::time::Instant;
use transport::upstream::{Asking, UpstreamError};

use super::{ForwardError, Forwarder};
use crate::map_watch::View;

/// Keys that were asked for together.
pub(crate) struct BegunMany {
    /// One of their shards.
    shard: ShardId,
    asking: Asking,
    /// Which keys of the client these are.
    places: Vec<usize>,
}

/// A key that is to be asked for.
struct Wanted<'k> {
    shard: ShardId,
    key: &'k [u8],
    place: usize,
}

impl Forwarder {
    /// Asks for these keys of a client, each with its place. What cannot be asked for at once is not among what was begun.
    pub(crate) fn begin_many<'k>(
        &self,
        view: &View,
        region: &RegionName,
        keys: impl Iterator<Item = (usize, &'k [u8])>,
    ) -> Vec<BegunMany> {
        let map = &view.map;
        let n_lanes: Vec<_> = map.members().iter().map(|member| self.upstream.n_lanes(&member.data)).collect();
        let mut lanes: BTreeMap<(u16, u16), Vec<Wanted<'_>>> = BTreeMap::new();
        for (place, key) in keys {
            let shard = shard_of(region, key, map.n_shards());
            if let Some(owner) = map.owners()[shard.index()] {
                let lane = shard.lane(n_lanes[usize::from(owner)]);
                lanes.entry((owner, lane)).or_default().push(Wanted { shard, key, place });
            }
        }
        let mut begun = Vec::with_capacity(lanes.len());
        for ((owner, _), wanted) in lanes {
            let (address, shard) = (&map.members()[usize::from(owner)].data, wanted[0].shard);
            if let Some(begin) = self.upstream.begin(address, shard, self.patience()) {
                let (name, keys) = (region.as_str().as_bytes(), wanted.iter().map(|wanted| wanted.key));
                let asking = begin.ask(|id, out| GetMany::encode_keys(id, name, keys, out));
                begun.push(BegunMany { shard, asking, places: wanted.iter().map(|wanted| wanted.place).collect() });
            }
        }
        begun
    }

    /// The places of the keys that were asked for, and which of them were in memory, or what each has met instead.
    pub(crate) async fn hits(&self, begun: BegunMany, deadline: Instant) -> (Vec<usize>, Result<Hits, UpstreamError>) {
        let BegunMany { shard, asking, places } = begun;
        let answer = self.upstream.answer(asking, shard, deadline).await;
        let hits = answer.map(|answer| match answer {
            AnswerBody::Hits(hits) => hits,
            // No node answers so; then each is asked for alone.
            _ => Hits::default(),
        });
        (places, hits)
    }

    /// Reads a key, after its owner was asked in vain if there is an error.
    pub(crate) async fn get_after(
        &self,
        error: Option<UpstreamError>,
        view: &Arc<View>,
        region: &RegionName,
        key: Bytes,
        came_at: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        let Some(error) = error else { return self.get(view, region, key, came_at).await };
        let shard = shard_of(region, &key, view.map.n_shards());
        self.follow(Err(error), (Arc::clone(view), shard), region, key, came_at).await
    }
}
