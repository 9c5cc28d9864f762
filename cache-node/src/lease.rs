//! The node's lease, as all of its threads see it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use sharding::times::Lease;

use crate::clock;

/// Set by the membership, looked at by whoever acts as an owner. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub(crate) struct HeldLease(Arc<ArcSwapOption<Lease>>);

impl HeldLease {
    pub(crate) fn set(&self, lease: Lease) {
        self.0.store(Some(Arc::new(lease)));
    }

    /// Whether it holds at this moment.
    pub(crate) fn holds(&self) -> bool {
        self.0.load().as_ref().is_some_and(|lease| lease.holds(clock::now()))
    }

    /// What is left of it at this moment.
    pub(crate) fn left(&self) -> Duration {
        let now = clock::now();
        let lease = self.0.load();
        lease.as_ref().filter(|lease| lease.holds(now)).map_or(Duration::ZERO, |lease| lease.until - now.boot)
    }
}
