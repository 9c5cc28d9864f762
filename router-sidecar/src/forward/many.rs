//! Reads of many keys at once: one question for all that live on one lane of a node, and it is answered with what is in memory
//! there. What is not is read one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use sharding::hash::shard_of;
use sharding::id::{RegionName, ShardId};
use sharding::wire::{AnswerBody, GetMany, Hit, Hits};
use tokio::time::Instant;
use transport::upstream::{Asking, UpstreamError};

use super::{ForwardError, Forwarder, PATIENCE};
use crate::map_watch::View;

/// A key that a client asks for, and its place among those.
#[derive(Clone, Copy)]
pub(crate) struct WantedKey<'k> {
    pub(crate) key: &'k [u8],
    pub(crate) place: usize,
}

/// What became of keys of one lane.
pub(crate) struct Many {
    /// The places of those that were asked for together.
    places: Vec<usize>,
    hits: Hits,
    /// What became of each of the others.
    pub(crate) alone: Vec<(usize, Result<AnswerBody, ForwardError>)>,
}

impl Many {
    /// The values that were in memory, with the places of their keys.
    pub(crate) fn hits(&self) -> impl Iterator<Item = (usize, Hit<'_>)> {
        self.hits.iter().filter_map(|hit| Some((*self.places.get(hit.place as usize)?, hit)))
    }
}

/// Keys of one lane, and the question for all of them, if it could be asked at once.
struct Lane<'k> {
    /// One of theirs.
    shard: ShardId,
    wanted: Vec<WantedKey<'k>>,
    asking: Option<Asking>,
}

impl Forwarder {
    /// Reads keys, for a client's request that came at this time: as [`Forwarder::ask`] for each. All questions to
    /// lanes leave before the first answer is awaited, and no lane waits for another. Requires: at most
    /// [`sharding::wire::GET_MANY_KEYS_MAX`] keys.
    pub(crate) async fn get_many<'k>(
        &self,
        view: &Arc<View>,
        region: &RegionName,
        wanted: impl Iterator<Item = WantedKey<'k>>,
        came_at: Instant,
    ) -> Vec<Many> {
        let lanes = self.ask_lanes(view, region, wanted);
        join_all(lanes.into_iter().map(|lane| self.finish(lane, view, region, came_at))).await
    }

    fn ask_lanes<'k>(
        &self,
        view: &View,
        region: &RegionName,
        wanted: impl Iterator<Item = WantedKey<'k>>,
    ) -> Vec<Lane<'k>> {
        let map = &view.map;
        let n_lanes: Vec<_> = map.members().iter().map(|member| self.upstream.n_lanes(&member.data)).collect();
        // By owner and lane; those of nobody as well.
        let mut lanes: BTreeMap<Option<(u16, u16)>, Lane<'k>> = BTreeMap::new();
        for one in wanted {
            let shard = shard_of(region, one.key, map.n_shards());
            let lane = map.owners()[shard.index()].map(|owner| (owner, shard.lane(n_lanes[usize::from(owner)])));
            lanes.entry(lane).or_insert_with(|| Lane { shard, wanted: Vec::new(), asking: None }).wanted.push(one);
        }
        let ask = |Lane { shard, wanted, .. }: &Lane<'_>| {
            let begin = self.upstream.begin(&map.owner_of(*shard)?.data, *shard, PATIENCE)?;
            let (name, keys) = (region.as_str().as_bytes(), wanted.iter().map(|wanted| wanted.key));
            Some(begin.ask(|id, out| GetMany::encode_keys(id, name, keys, out)))
        };
        lanes.into_values().map(|lane| Lane { asking: ask(&lane), ..lane }).collect()
    }

    async fn finish(&self, lane: Lane<'_>, view: &Arc<View>, region: &RegionName, came_at: Instant) -> Many {
        let Lane { shard, wanted, asking } = lane;
        let deadline = came_at + self.request_timeout;
        let (hits, error) = match asking {
            None => (Hits::default(), None),
            Some(asking) => match self.upstream.answer(asking, shard, deadline).await {
                Ok(AnswerBody::Hits(hits)) => (hits, None),
                // No node answers so; then each is asked for alone.
                Ok(_) => (Hits::default(), None),
                Err(error) => (Hits::default(), Some(error)),
            },
        };
        let mut is_left = vec![true; wanted.len()];
        hits.iter().for_each(|hit| {
            if let Some(is_left) = is_left.get_mut(hit.place as usize) {
                *is_left = false;
            }
        });
        let left = wanted.iter().zip(is_left).filter(|(_, is_left)| *is_left);
        let read = |(wanted, _): (&WantedKey<'_>, bool)| {
            let WantedKey { key, place } = *wanted;
            let (key, error) = (Bytes::copy_from_slice(key), error.clone());
            async move { (place, self.get_alone(error, view, region, key, came_at).await) }
        };
        let alone = join_all(left.map(read)).await;
        Many { places: wanted.iter().map(|wanted| wanted.place).collect(), hits, alone }
    }

    /// Reads a key whose lane has not given it, or has met an error.
    async fn get_alone(
        &self,
        error: Option<UpstreamError>,
        view: &Arc<View>,
        region: &RegionName,
        key: Bytes,
        came_at: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        if came_at + self.request_timeout <= Instant::now() {
            return Err(ForwardError::DeadlinePassed(self.request_timeout));
        }
        match error {
            None => self.get(view, region, key, came_at).await,
            Some(error) => {
                let shard = shard_of(region, &key, view.map.n_shards());
                self.follow(Err(error), (Arc::clone(view), shard), region, key, came_at).await
            }
        }
    }
}
