//! What owners and the coordinator say to each other.

use std::sync::Arc;

use crate::budget::{BudgetShare, BudgetUse};
use crate::epoch::{Epoch, Term};
use crate::id::{NodeId, ShardId};
use crate::load::ShardLoad;
use crate::map::{Member, ShardMap};

/// One life of a node: a random number, drawn at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// A coordinator's proof that whoever quotes it was alive after it was said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// The coordinator's term.
    pub term: Term,
    /// Different for each greeting of a term.
    pub nonce: u64,
}

/// Whose shard it was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// Nobody's, as far as anybody knows.
    Nobody,
    /// An owner's that gave it away.
    Move,
    /// An owner's since this epoch, that has sealed it: what was taken over from it then is true.
    Sealed(Epoch),
    /// An owner's that is gone.
    Crash,
}

/// A shard and since when it belongs to its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    /// The shard.
    pub shard: ShardId,
    /// The epoch at which it was granted. Every grant after a lapse, and every grant to another life, has a new one.
    pub since: Epoch,
    /// Whose it was before that.
    pub after: After,
}

/// A shard on its way from its owner to the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// The shard.
    pub shard: ShardId,
    /// Since when it belongs to the one that gives it.
    pub since: Epoch,
    /// The other one.
    pub peer: NodeId,
}

/// A node asks for its lease: every period, and at once when something changed. It goes to every seed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Renew {
    /// Who it is and where it takes data connections.
    pub member: Member,
    /// Which life.
    pub incarnation: Incarnation,
    /// What two lives share only if the earlier one is surely dead: the pod's UID, or the address that only one process
    /// can have bound. Empty: nothing of the kind is known.
    pub identity: String,
    /// Rises with each.
    pub request: u64,
    /// Of the last grant that it acted on.
    pub granted: u64,
    /// The newest epoch that it has seen.
    pub seen: Epoch,
    /// The epoch of the newest map that it has.
    pub map: Epoch,
    /// The greeting of the coordinator that it believes in.
    pub greeting: Option<Greeting>,
    /// What it serves at this moment, under a lease that holds.
    pub held: Vec<Tenure>,
    /// What is asked of each of those, in their order; or none, when there is no news.
    pub loads: Vec<ShardLoad>,
    /// What it has given up for good, and since when it had it: until a grant shows that this was heard.
    pub sealed: Vec<(ShardId, Epoch)>,
    /// What it has taken over whole, and since when it belonged to the one that has sealed it: until a grant shows that this
    /// was heard.
    pub taken: Vec<(ShardId, Epoch)>,
    /// What it holds of the budgets; no database twice.
    pub budgets: Vec<BudgetUse>,
    /// It drains: it wants to own nothing any more.
    pub is_leaving: bool,
}

/// The coordinator's answer to a [`Renew`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It does not know this life yet; quote this. Older grants count no more.
    Hello {
        /// For whom.
        incarnation: Incarnation,
        /// What to quote.
        greeting: Greeting,
    },
    /// The lease.
    Grant(Grant),
    /// More shards under the lease that it has.
    Addition(Addition),
    /// There is something new for it: it is to ask at once.
    Wake {
        /// For whom.
        incarnation: Incarnation,
    },
    /// A node that was leaving owns nothing any more and may go.
    Goodbye {
        /// For whom.
        incarnation: Incarnation,
    },
}

/// A lease over shards. It counts from when the [`Renew`] that it answers was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// For whom.
    pub incarnation: Incarnation,
    /// The request that it answers.
    pub request: u64,
    /// The newest epoch of the coordinator.
    pub epoch: Epoch,
    /// All that the node may serve. What is not here it serves no more.
    pub shards: Vec<Tenure>,
    /// Those among them that it is to give to others, once they have what is in memory.
    pub giving: Vec<Transfer>,
    /// Shards of others that it is to take over.
    pub taking: Vec<Transfer>,
    /// Its parts of the budgets; of a database that is not here it has none.
    pub shares: Vec<BudgetShare>,
    /// The map, when the node has none so new, and it is worth having.
    pub map: Option<Arc<ShardMap>>,
}

/// Shards that became a node's since its last [`Grant`], told when one was sealed for it: it need not ask for them. They are
/// served under the lease of that grant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addition {
    /// For whom.
    pub incarnation: Incarnation,
    /// The request that the grant has answered.
    pub request: u64,
    /// The newest epoch of the coordinator.
    pub epoch: Epoch,
    /// All that became the node's since that grant.
    pub shards: Vec<Tenure>,
}
