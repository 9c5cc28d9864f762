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

impl Fencing {
    /// Raises whatever is asked for, for ever.
    pub(crate) async fn run(mut self, node: Arc<Node>, lanes: Vec<Addr<ShardRegion>>, inbox: Inbox) {
        let mut wanted: BTreeMap<ShardId, Wanted> = BTreeMap::new();
        let mut pause = PAUSE_MIN;
        loop {
            // The newest counts: its number is the highest, and its tenure the last.
            let first = if wanted.is_empty() { self.requests.recv().await } else { None };
            if wanted.is_empty() && first.is_none() {
                return;
            }
            let more = std::iter::from_fn(|| self.requests.try_recv().ok());
            wanted.extend(first.into_iter().chain(more).flatten().map(|one| (one.shard, one)));
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
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Which are up, and what those who wait for the others are told: of a row that somebody holds nothing.
    fn judge(&self, raised: &Result<Raised, DatabaseError>, inbox: &Inbox) -> (Vec<ShardId>, Option<Failure>) {
        let failure = |code, message| Some(Failure { code, retry_after: RETRY, message });
        match raised {
            Ok(Raised { raised, higher }) => {
                if higher.is_empty() {
                    return (raised.clone(), None);
                }
                for (shard, token) in higher {
                    // A full queue hears of it with the next try.
                    let _ = inbox.try_send(Inbound::Fence(*shard, token.since));
                }
                // It may be our own of another life: then the shard is granted anew as well.
                let message = format!("another owner has raised the fence in database {}", self.database);
                (raised.clone(), failure(FailureCode::NotApplied, message))
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
