//! Fences of the shards that this node owns, in each database that it writes to: raised when shards are acquired, all of a
//! set in one operation, and again for a shard when the outcome of a write is unknown.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix::Addr;
use sharding::epoch::Epoch;
use sharding::fence::Token;
use sharding::id::ShardId;
use sharding::wire::{Failure, FailureCode};
use tokio::sync::mpsc;

use crate::database::{DatabaseError, Raised};
use crate::loading::Loader;
use crate::membership::{Inbound, Inbox};
use crate::node::Node;
use crate::shard_region::{FenceSays, ShardRegion};

/// First pause before fences are raised again that could not be; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What whoever waits for a fence is told to wait.
const RETRY: Duration = Duration::from_secs(1);

/// A fence that is to rise.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) shard: ShardId,
    /// See [`Node::owns`].
    pub(crate) tenure: u64,
    pub(crate) since: Epoch,
    pub(crate) n: u64,
}

/// Where the fences of one database are asked to rise. What is said in one message rises in one operation.
pub(crate) type FenceRequests = mpsc::UnboundedSender<Vec<Wanted>>;

/// The fences of one database.
pub(crate) struct Fencing {
    /// Its position among the databases that are written to.
    pub(crate) fence: usize,
    pub(crate) database: String,
    pub(crate) loader: Loader,
    pub(crate) requests: mpsc::UnboundedReceiver<Vec<Wanted>>,
}

/// The last tenure's last number counts: a shard that was released may still ask for its old one.
fn want(wanted: &mut BTreeMap<ShardId, Wanted>, one: Wanted) {
    let newest = wanted.entry(one.shard).or_insert(one);
    if (newest.tenure, newest.n) < (one.tenure, one.n) {
        *newest = one;
    }
}

impl Fencing {
    /// Raises whatever is asked for, for ever.
    pub(crate) async fn run(mut self, node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>, inbox: Inbox) {
        let mut wanted: BTreeMap<ShardId, Wanted> = BTreeMap::new();
        let mut pause = PAUSE_MIN;
        loop {
            let first = if wanted.is_empty() { self.requests.recv().await } else { None };
            if wanted.is_empty() && first.is_none() {
                return;
            }
            let more = std::iter::from_fn(|| self.requests.try_recv().ok());
            first.into_iter().chain(more).flatten().for_each(|one| want(&mut wanted, one));
            wanted.retain(|shard, one| node.is_of(*shard, one.tenure));
            if wanted.is_empty() {
                continue;
            }
            let tokens = wanted.values().map(|one| (one.shard, Token { since: one.since, n: one.n })).collect();
            let raised = self.loader.raise(tokens).await;
            let (up, failure) = self.judge(&raised, &inbox);
            for shard in up {
                if let Some(one) = wanted.remove(&shard) {
                    self.say(&node, &lanes, one, Ok(one.n));
                }
            }
            if wanted.is_empty() {
                pause = PAUSE_MIN;
                continue;
            }
            if let Some(failure) = failure {
                wanted.values().for_each(|one| self.say(&node, &lanes, *one, Err(failure.clone())));
            }
            // One that is held does not keep those that come from rising.
            if let Ok(Some(more)) = tokio::time::timeout(pause, self.requests.recv()).await {
                more.into_iter().for_each(|one| want(&mut wanted, one));
            }
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Which are up, and what those who wait for the others are told: of a row that somebody holds nothing.
    fn judge(&self, raised: &Result<Raised, DatabaseError>, inbox: &Inbox) -> (Vec<ShardId>, Option<Failure>) {
        let failure = |code, message| Some(Failure { code, retry_after: RETRY, message });
        match raised {
            Ok(Raised { raised, higher }) => {
                for (shard, token) in higher {
                    // The shard is released at once, and who waits for it is sent on. A full queue hears of it with the
                    // next try.
                    let _ = inbox.try_send(Inbound::Fence(*shard, token.since));
                }
                (raised.clone(), None)
            }
            Err(error) => {
                let code = match error {
                    DatabaseError::Failed(_) => FailureCode::Database,
                    DatabaseError::Unavailable(_) | DatabaseError::TimedOut => FailureCode::Unavailable,
                };
                let message = format!("the fences of database {} cannot be raised: {error}", self.database);
                (Vec::new(), failure(code, message))
            }
        }
    }

    fn say(&self, node: &Node, lanes: &[Addr<ShardRegion>], one: Wanted, result: Result<u64, Failure>) {
        let Wanted { shard, tenure, .. } = one;
        let lane = &lanes[usize::from(shard.lane(node.n_lanes))];
        lane.do_send(FenceSays { shard, tenure, fence: self.fence, result });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_number_of_the_last_tenure_is_raised_whoever_asks_last() {
        let one = |tenure, n| Wanted { shard: ShardId(7), tenure, since: Epoch::default(), n };
        for order in [[one(1, 9), one(2, 4), one(2, 6)], [one(2, 6), one(2, 4), one(1, 9)]] {
            let mut wanted = BTreeMap::new();
            order.into_iter().for_each(|one| want(&mut wanted, one));
            assert_eq!((wanted[&ShardId(7)].tenure, wanted[&ShardId(7)].n), (2, 6));
        }
    }
}
