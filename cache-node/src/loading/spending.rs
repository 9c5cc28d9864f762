//! A database's part of the budget on this node: its loader spends it, the membership is granted it.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::Serialize;
use sharding::budget::{Budget, BudgetUse, Floor, Purse, Short, Slot};
use sharding::id::DatabaseName;
use sharding::times::{Lease, Times};
use tokio::sync::Notify;

use crate::clock;

/// The part of a node's slots that loads leave to writes: one in so many.
const RESERVE_PART: u32 = 8;

/// Shared by all who hold it; changed under its lock only, for a moment.
#[derive(Clone, Debug)]
pub(crate) struct Spending(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    database: DatabaseName,
    budget: Budget,
    purse: Mutex<Purse>,
    /// Operations that could be sent if there were slots.
    wanted: AtomicU32,
    granted: Notify,
}

/// A slot that an operation holds; dropped, it is given back: the operation has ended, one way or another.
#[derive(Debug)]
pub(crate) struct HeldSlot {
    spending: Spending,
    slot: Option<Slot>,
}

impl Drop for HeldSlot {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            self.spending.purse().settle(clock::now(), slot);
        }
    }
}

impl Spending {
    /// With no share yet.
    pub(crate) fn new(
        database: DatabaseName,
        budget: Budget,
        floor: Floor,
        operation_timeout: Duration,
        times: &Times,
    ) -> Self {
        let purse = Mutex::new(Purse::new(clock::now(), floor, operation_timeout, times));
        Self(Arc::new(Inner { database, budget, purse, wanted: AtomicU32::new(0), granted: Notify::new() }))
    }

    fn purse(&self) -> MutexGuard<'_, Purse> {
        self.0.purse.lock().expect("nothing panics while it holds the lock")
    }

    pub(crate) fn database(&self) -> &DatabaseName {
        &self.0.database
    }

    /// A slot for a load that is sent at once. Where there are writes some slots are left to them.
    ///
    /// # Errors
    /// [`Short`], by [`clock::now`].
    pub(crate) fn spend_on_load(&self, has_writes: bool) -> Result<HeldSlot, Short> {
        let now = clock::now();
        let mut purse = self.purse();
        let reserve = if has_writes { purse.slots(now) / RESERVE_PART } else { 0 };
        let slot = purse.spend(now, reserve)?;
        Ok(HeldSlot { spending: self.clone(), slot: Some(slot) })
    }

    /// A slot for a write, or for the raise of fences, that is sent at once.
    ///
    /// # Errors
    /// As [`Spending::spend_on_load`].
    pub(crate) fn spend_on_write(&self) -> Result<HeldSlot, Short> {
        let slot = self.purse().spend(clock::now(), 0)?;
        Ok(HeldSlot { spending: self.clone(), slot: Some(slot) })
    }

    /// Whether most of what may be spent is not.
    pub(crate) fn is_mostly_unspent(&self) -> bool {
        let now = clock::now();
        let mut purse = self.purse();
        purse.free(now) > purse.slots(now) / 2
    }

    /// How long so many more operations have to wait, about; `None`: there is no slot to wait for.
    pub(crate) fn wait(&self, n_operations: usize) -> Option<Duration> {
        self.purse().wait(clock::now(), u32::try_from(n_operations).unwrap_or(u32::MAX))
    }

    /// The loader says how many operations it could send.
    pub(crate) fn set_wanted(&self, n_operations: usize) {
        self.0.wanted.store(u32::try_from(n_operations).unwrap_or(u32::MAX), Ordering::Relaxed);
    }

    pub(crate) fn handle_share(&self, slots: u32, lease: Lease) {
        self.purse().handle_share(slots, lease);
        self.0.granted.notify_one();
    }

    /// Resolves after a share was granted.
    pub(crate) async fn granted(&self) {
        self.0.granted.notified().await;
    }

    /// What the coordinator is told.
    pub(crate) fn used(&self) -> BudgetUse {
        let held = self.purse().held(clock::now());
        let demand = held.saturating_add(self.0.wanted.load(Ordering::Relaxed));
        BudgetUse { database: self.0.database.clone(), held, demand }
    }

    /// What people are told.
    pub(crate) fn page(&self) -> BudgetPage {
        let now = clock::now();
        let mut purse = self.purse();
        BudgetPage {
            budget_per_second: self.0.budget.0.get(),
            slots: purse.slots(now),
            slots_held: purse.held(now),
            operations_waiting: self.0.wanted.load(Ordering::Relaxed),
        }
    }
}

/// A budget on `/-/cluster`.
#[derive(Debug, Serialize)]
pub(crate) struct BudgetPage {
    /// Of the whole cluster.
    budget_per_second: u32,
    /// This node's share and floor.
    pub(crate) slots: u32,
    /// Slots of the share that operations hold.
    slots_held: u32,
    operations_waiting: u32,
}
