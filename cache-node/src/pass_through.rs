//! Reads past an owner that a router cannot reach. What is read so is answered and not kept.
//!
//! The router's link may be the broken one, and the owner well: then no failover ever comes, and every read would cost the
//! database. So the owner is asked first, by an ordinary request, which nobody passes on again. Readers of one key share
//! one flight here too.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant as StdInstant};

use bytes::Bytes;
use sharding::flight::{Boarding, FlightId, FlightKey, Flights};
use sharding::id::ShardId;
use sharding::wire::{AnswerBody, Ask, Failure, FailureCode, RequestBody, Served};
use tokio::time::Instant;
use transport::upstream::{Upstream, UpstreamError};

use crate::metrics::LoadReason;
use crate::node::Node;
use crate::shard::entries::Entry;
use crate::shard::{self, Waiter, Work};

/// After so long without an answer the owner is asked whether it is there, and gets as long to say so.
const OWNER_PATIENCE: Duration = Duration::from_millis(100);
/// What a caller is told to wait when too many keys are read past owners.
const OVERLOADED_RETRY: Duration = Duration::from_secs(1);

/// The reads past owners of one lane. All of it lives on the lane's thread.
pub(crate) struct PassThrough {
    node: Arc<Node>,
    owners: Rc<Upstream>,
    flights: RefCell<Flights<Waiter>>,
}

impl PassThrough {
    pub(crate) fn new(node: Arc<Node>, owners: Rc<Upstream>) -> Self {
        Self { node, owners, flights: RefCell::new(Flights::new()) }
    }

    /// Answers a request: with a read of its key that is under way, or one of its own.
    pub(crate) fn take(self: &Rc<Self>, work: Work) {
        let Work { shard, region, key, deadline, reply, .. } = work;
        self.fly(shard, (region, key), Waiter::new(reply, StdInstant::now(), deadline));
    }

    fn fly(self: &Rc<Self>, shard: ShardId, flight: FlightKey, waiter: Waiter) {
        let leaves_at = waiter.leaves_at;
        let Boarding::Lead(id) = self.flights.borrow_mut().board(flight.clone(), Some(waiter)) else { return };
        let aboard = Aboard { pass: Rc::clone(self), shard, flight, id };
        actix_rt::spawn(async move {
            let reading = aboard.pass.read(shard, aboard.flight.0, &aboard.flight.1, leaves_at);
            let (answer, asked_at) = shard::watched(reading, leaves_at, || aboard.part(StdInstant::now())).await;
            aboard.land(&answer, asked_at);
        });
    }

    /// The answer, and when it was asked for: it may be as old as that.
    async fn read(
        &self,
        shard: ShardId,
        region: usize,
        key: &Bytes,
        wanted_by: StdInstant,
    ) -> (AnswerBody, StdInstant) {
        let asked_at = StdInstant::now();
        let Ok(_permit) = self.node.passing.try_acquire() else {
            let message = "too many keys are read past their owners already".to_owned();
            let code = FailureCode::Overloaded;
            return (AnswerBody::Failed(Failure { code, retry_after: OVERLOADED_RETRY, message }), asked_at);
        };
        if let Some(answer) = self.ask_owner(shard, region, key, wanted_by.into()).await {
            return (answer, asked_at);
        }
        let region = &self.node.regions[region];
        match region.load(key.clone(), LoadReason::PassThrough, Some(wanted_by)).await {
            Ok(loaded) => {
                let lifetime = region.freshness.lifetime(loaded.sent, loaded.content.is_none(), fastrand::f64());
                let entry = Entry { content: loaded.content, reason: LoadReason::PassThrough, lifetime };
                (shard::answer(entry, Served::PassedThrough, false, StdInstant::now()), loaded.sent)
            }
            Err(error) => (AnswerBody::Failed(error.failure()), StdInstant::now()),
        }
    }

    /// What the owner says, if this node can reach it. Its refusal to load is an answer too: it speaks for the database.
    async fn ask_owner(&self, shard: ShardId, region: usize, key: &Bytes, until: Instant) -> Option<AnswerBody> {
        let map = self.node.map()?;
        let owner = map.owner_of(shard).filter(|owner| owner.node != self.node.name)?;
        let region = &self.node.regions[region];
        let (name, key) = (Bytes::copy_from_slice(region.name.as_str().as_bytes()), key.clone());
        let ask = Ask {
            deadline: until.saturating_duration_since(Instant::now()),
            epoch: map.epoch(),
            shard,
            region: name,
            key,
        };
        let answer = self.owners.ask_patiently(&owner.data, shard, RequestBody::Get(ask), until, OWNER_PATIENCE).await;
        match answer {
            Ok(answer @ (AnswerBody::Value { .. } | AnswerBody::Absent(_))) => Some(answer),
            Ok(AnswerBody::Failed(failure)) if speaks_for_the_database(failure.code) => {
                Some(AnswerBody::Failed(failure))
            }
            Ok(_) => None,
            // It is there, and waits for its database: another read of the same would not be faster.
            Err(error @ UpstreamError::DeadlinePassed { .. }) => {
                let (code, retry_after) = (FailureCode::DeadlinePassed, Duration::ZERO);
                Some(AnswerBody::Failed(Failure { code, retry_after, message: error.to_string() }))
            }
            Err(error) => {
                log::debug!(owner:% = owner.node; "an owner is passed by: {error}");
                None
            }
        }
    }
}

const fn speaks_for_the_database(code: FailureCode) -> bool {
    matches!(code, FailureCode::Database | FailureCode::Overloaded | FailureCode::Unavailable)
}

/// A flight that this task flies. Dropped before it has landed, it answers whoever waits by dropping them.
struct Aboard {
    pass: Rc<PassThrough>,
    shard: ShardId,
    flight: FlightKey,
    id: FlightId,
}

impl Aboard {
    /// Who came after it was asked for may have been promised something newer: that one flies anew. So does who has time left
    /// when that of the first is over.
    fn land(self, answer: &AnswerBody, asked_at: StdInstant) {
        let metrics = &self.pass.node.regions[self.flight.0].metrics;
        let is_value = matches!(answer, AnswerBody::Value { .. } | AnswerBody::Absent(_));
        let is_over = matches!(answer, AnswerBody::Failed(failure) if failure.code == FailureCode::DeadlinePassed);
        let now = StdInstant::now();
        for waiter in self.waiters() {
            if (is_value && waiter.came_at > asked_at) || (is_over && waiter.leaves_at > now) {
                self.pass.fly(self.shard, self.flight.clone(), waiter);
                continue;
            }
            let reply = waiter.reply;
            match answer {
                AnswerBody::Value { entry, .. } | AnswerBody::Absent(entry) => {
                    let is_ours = entry.served == Served::PassedThrough;
                    if is_ours { &metrics.passed_through } else { &metrics.relayed }.inc();
                }
                AnswerBody::Failed(failure) => metrics.count_failure(failure.code),
                _ => {}
            }
            reply.send(answer.clone());
        }
    }

    /// Answers those who cannot wait any longer.
    fn part(&self, now: StdInstant) {
        let region = &self.pass.node.regions[self.flight.0];
        let left = self.pass.flights.borrow_mut().part(&self.flight, self.id, |waiter| waiter.leaves_at <= now);
        for waiter in left {
            let failure = region.slow();
            region.metrics.count_failure(failure.code);
            waiter.reply.send(AnswerBody::Failed(failure));
        }
    }

    fn waiters(&self) -> Vec<Waiter> {
        let landed = self.pass.flights.borrow_mut().land(&self.flight, self.id);
        landed.map(|(waiters, _)| waiters).unwrap_or_default()
    }
}

impl Drop for Aboard {
    fn drop(&mut self) {
        drop(self.waiters());
    }
}
