//! Changes that others make in the database: what it announces is forgotten at once, by the shards of this node.
//!
//! Every node listens to all of it, from its start: a shard that moves here finds a node that has heard everything. While
//! nobody listens entries age as they would without announcements; when somebody does again, what was read before is read
//! anew before it is served (H21).

use std::cell::Cell;
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::Addr;
use bytes::Bytes;
use sharding::flight::FlightKey;
use sharding::hash::shard_of;
use sharding::id::ShardId;
use tokio::sync::mpsc;

use crate::database::{Announcement, Announcer, Query};
use crate::metrics::AnnouncingMetrics;
use crate::node::Node;
use crate::shard_region::{Notice, ShardRegion};

/// First pause before the database is listened to again; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(50);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// Largest part of a pause that chance takes away.
const JITTER: f64 = 0.5;
/// Most notices on their way to the shards. One more, and all of its region is read anew: that is known at once.
pub(crate) const NOTICES_MAX: usize = 10_000;

/// Notices of others' shards are remembered for so long: whoever gives one of them to this node may hear of it later.
const HEARD_FOR: Duration = Duration::from_secs(10);
/// Most such notices.
const HEARD_MAX: usize = 10_000;

/// Notices of keys whose shards this node does not serve.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    notices: VecDeque<(Instant, ShardId, FlightKey)>,
    /// When one was forgotten before its time.
    lost_at: Option<Instant>,
}

impl Heard {
    fn take(&mut self, now: Instant, shard: ShardId, key: FlightKey) {
        while self.notices.front().is_some_and(|(at, ..)| *at + HEARD_FOR <= now) {
            self.notices.pop_front();
        }
        if self.notices.len() >= HEARD_MAX {
            self.notices.pop_front();
            self.lost_at = Some(now);
        }
        self.notices.push_back((now, shard, key));
    }

    /// Keys of a shard that have changed lately. `None`: there were too many to remember.
    pub(crate) fn of_shard(&self, shard: ShardId, now: Instant) -> Option<HashSet<FlightKey>> {
        if self.lost_at.is_some_and(|at| now < at + HEARD_FOR) {
            return None;
        }
        let recent = self.notices.iter().filter(|(at, of, _)| *of == shard && now < *at + HEARD_FOR);
        Some(recent.map(|(_, _, key)| key.clone()).collect())
    }
}

/// A database that announces, and its regions.
pub(crate) struct Announcing {
    pub(crate) database: String,
    pub(crate) announcer: Arc<dyn Announcer>,
    /// Position of each among the node's regions, its name, and its query.
    pub(crate) regions: Vec<(usize, String, Arc<Query>)>,
    pub(crate) metrics: AnnouncingMetrics,
    /// It has announced something that concerns no region.
    pub(crate) has_met_others: Cell<bool>,
}

impl Announcing {
    /// Listens for ever.
    pub(crate) async fn run(self, node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>) {
        let set_heard = |node: &Node, is_heard| {
            self.regions.iter().for_each(|(place, ..)| node.regions[*place].trust.set_heard(is_heard));
        };
        set_heard(&node, false);
        let (mut pause, mut is_news) = (PAUSE_MIN, true);
        loop {
            let (tell, mut told) = mpsc::unbounded_channel();
            let regions = self.regions.iter().map(|(_, name, query)| (name.clone(), Arc::clone(query))).collect();
            let mut listening = self.announcer.listen(regions, tell);
            let error = loop {
                tokio::select! {
                    // What was said before the end is heard first.
                    biased;
                    Some(said) = told.recv() => {
                        if said == Announcement::Begun {
                            (pause, is_news) = (PAUSE_MIN, true);
                        }
                        self.take(&node, &lanes, said);
                    }
                    error = &mut listening => break error,
                }
            };
            self.metrics.listening.set(0);
            set_heard(&node, false);
            if std::mem::replace(&mut is_news, false) {
                log::warn!(database = self.database; "announcements are not heard: {error}; trying on");
            }
            tokio::time::sleep(pause.mul_f64(1.0 - JITTER * fastrand::f64())).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    fn take(&self, node: &Node, lanes: &[Addr<ShardRegion>], said: Announcement) {
        let distrust = |(place, ..): &(usize, String, Arc<Query>)| node.regions[*place].trust.begin(Instant::now());
        match said {
            Announcement::Begun => {
                self.metrics.listening.set(1);
                log::info!(database = self.database; "announcements are heard");
                self.regions.iter().for_each(distrust);
                self.regions.iter().for_each(|(place, ..)| node.regions[*place].trust.set_heard(true));
            }
            Announcement::All => self.regions.iter().for_each(distrust),
            Announcement::Region(region) => distrust(&self.regions[region]),
            Announcement::Key(region, key) => {
                self.metrics.notices.inc();
                pass_on(node, lanes, self.regions[region].0, key);
            }
            Announcement::Other(name) => {
                if !self.has_met_others.replace(true) {
                    let database = &self.database;
                    log::warn!(database; "announces changes in {name:?}, which is no region here; said once");
                }
            }
        }
    }
}

/// Tells the lane of a key that it has changed.
pub(crate) fn pass_on(node: &Node, lanes: &[Addr<ShardRegion>], region: usize, key: Bytes) {
    let shard = shard_of(&node.regions[region].name, &key, node.n_shards);
    if !node.serves(shard) {
        // Also of a shard that is on its way here: its turn to be pulled may come later.
        node.heard().take(Instant::now(), shard, (region, key.clone()));
        if !node.is_taking(shard) {
            return;
        }
    }
    let Ok(permit) = Arc::clone(&node.notices).try_acquire_owned() else {
        node.regions[region].trust.begin(Instant::now());
        return;
    };
    lanes[usize::from(shard.lane(node.n_lanes))].do_send(Notice { shard, region, key, permit });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_heard_of_others_shards_is_remembered_for_a_while() {
        let (mut heard, start) = (Heard::default(), Instant::now());
        let key = |name: &'static str| (0, Bytes::from(name));
        heard.take(start, ShardId(1), key("a"));
        heard.take(start, ShardId(2), key("b"));
        assert_eq!(heard.of_shard(ShardId(1), start), Some(HashSet::from([key("a")])));
        assert_eq!(heard.of_shard(ShardId(1), start + HEARD_FOR), Some(HashSet::new()));
        (0..HEARD_MAX).for_each(|_| heard.take(start, ShardId(3), key("c")));
        assert_eq!(heard.of_shard(ShardId(1), start), None, "it may have been forgotten");
        assert_eq!(heard.of_shard(ShardId(1), start + HEARD_FOR), Some(HashSet::new()));
    }
}
