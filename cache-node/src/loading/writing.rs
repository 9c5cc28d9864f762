//! Writes, and raises of fences, on their way to a database. They are few and each stands alone, so they go before loads.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use sharding::fence::Token;
use sharding::id::ShardId;
use sharding::wire::{Failure, FailureCode, Precondition};
use tokio::sync::oneshot;

use super::breaker::State;
use super::spending::{HeldSlot, Spending};
use super::{Crew, Job, Loader, RETRY, Room, STOP_TIMEOUT};
use crate::database::{DatabaseError, Fences, Raise, Raised, Write, WriteError, Written};
use crate::lease::HeldLease;
use crate::metrics::LoadReason;

/// A write that is wanted.
#[derive(Debug)]
pub(crate) struct WriteWish {
    /// Position of its region.
    pub(crate) region: usize,
    pub(crate) key: Bytes,
    /// `None`: remove the row.
    pub(crate) value: Option<Bytes>,
    pub(crate) precondition: Precondition,
    pub(crate) shard: ShardId,
    pub(crate) token: Token,
    /// It is not begun after that.
    pub(crate) start_by: Instant,
}

/// Why a write is not known to have been done.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum WriteFailure {
    #[error("not written: {why}")]
    NotStarted { why: String, retry_after: Duration },
    #[error("not written: database {database}: {error}")]
    NotDone { database: Arc<str>, error: DatabaseError },
    #[error("not written: database {database} refuses it: {message}")]
    Refused { database: Arc<str>, message: String },
    #[error("whether it was written is not known: database {database}: {error}; read it to see")]
    Unknown { database: Arc<str>, error: DatabaseError },
}

impl WriteFailure {
    fn of(database: &Arc<str>, error: WriteError) -> Self {
        let database = Arc::clone(database);
        match error {
            WriteError::NotDone(error) => Self::NotDone { database, error },
            WriteError::Refused(message) => Self::Refused { database, message },
            WriteError::Unknown(error) => Self::Unknown { database, error },
        }
    }

    /// What whoever wanted to write is told.
    pub(crate) fn failure(&self) -> Failure {
        let (code, retry_after) = match self {
            Self::NotStarted { retry_after, .. } => (FailureCode::NotApplied, *retry_after),
            Self::NotDone { error: DatabaseError::Failed(_), .. } => (FailureCode::Database, Duration::ZERO),
            Self::NotDone { .. } => (FailureCode::NotApplied, RETRY),
            Self::Refused { .. } => (FailureCode::Refused, Duration::ZERO),
            Self::Unknown { .. } => (FailureCode::Unknown, Duration::ZERO),
        };
        Failure { code, retry_after, message: self.to_string() }
    }
}

/// What became of a write, and when it was sent.
pub(crate) type WriteEnd = Result<(Instant, Written), WriteFailure>;

/// A write that waits to be sent.
#[derive(Debug)]
pub(super) struct PendingWrite {
    wish: WriteWish,
    /// Dropped without an answer, it was not sent.
    done: oneshot::Sender<WriteEnd>,
    _room: Room,
}

impl PendingWrite {
    fn end(self, why: impl Into<String>, retry_after: Duration) {
        // Nobody waits any more.
        let _ = self.done.send(Err(WriteFailure::NotStarted { why: why.into(), retry_after }));
    }
}

/// Something that changes the database.
#[derive(Debug)]
pub(super) enum Change {
    Write(Box<PendingWrite>),
    Raise(Vec<(ShardId, Token)>, oneshot::Sender<Result<Raised, DatabaseError>>),
}

/// A change that has come back.
pub(crate) struct Changed {
    sent: Instant,
    is_raise: bool,
    /// How the database has taken it, for the breaker.
    error: Option<DatabaseError>,
}

/// The changes of one database.
pub(crate) struct Changes {
    fences: Arc<Fences>,
    lease: HeldLease,
    waiting: VecDeque<Change>,
    is_raising: bool,
    n_writing: usize,
    /// The first that waits lacks a slot of the budget.
    pub(super) is_short: bool,
    pub(super) in_flight: FuturesUnordered<BoxFuture<'static, Changed>>,
}

impl Changes {
    /// None wait; whose fences are relied on, and under which lease.
    pub(crate) fn new(fences: Arc<Fences>, lease: HeldLease) -> Self {
        let in_flight = FuturesUnordered::new();
        Self { fences, lease, waiting: VecDeque::new(), is_raising: false, n_writing: 0, is_short: false, in_flight }
    }

    pub(super) fn push(&mut self, change: Change) {
        match change {
            Change::Raise(..) => self.waiting.push_front(change),
            Change::Write(_) => self.waiting.push_back(change),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn n_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Ends those whose time to begin is over; gives when that of the next one is.
    fn expire(&mut self, now: Instant) -> Option<Instant> {
        let is_over = |change: &Change| matches!(change, Change::Write(write) if write.wish.start_by <= now);
        if self.waiting.iter().any(is_over) {
            let (over, wait): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().partition(is_over);
            self.waiting = wait.into();
            for change in over {
                if let Change::Write(write) = change {
                    write.end("the budget, or the writes before it, took all its time", RETRY);
                }
            }
        }
        let start_by = |change: &Change| match change {
            Change::Write(write) => Some(write.wish.start_by),
            Change::Raise(..) => None,
        };
        self.waiting.iter().filter_map(start_by).min()
    }

    /// Whether the next one may be sent, as far as others in flight are concerned.
    fn may_send(&self, writes_max: usize) -> bool {
        match self.waiting.front() {
            Some(Change::Raise(..)) => !self.is_raising,
            Some(Change::Write(_)) => self.n_writing < writes_max,
            None => false,
        }
    }
}

impl Loader {
    /// Writes a key.
    ///
    /// # Errors
    /// [`WriteFailure`]; at the latest when the time of a write is over.
    pub(crate) async fn write(&self, wish: WriteWish) -> WriteEnd {
        let Some(room) = self.room() else {
            let why = format!("{} loads and writes wait for the database already", self.limits.queue_max);
            return Err(WriteFailure::NotStarted { why, retry_after: RETRY });
        };
        let (done, ended) = oneshot::channel();
        let write = Box::new(PendingWrite { wish, done, _room: room });
        // The loader ends with the node.
        let _ = self.jobs.send(Job::Change(Change::Write(write)));
        ended.await.unwrap_or_else(|_| {
            let error = DatabaseError::Failed("its loader has ended".to_owned());
            Err(WriteFailure::Unknown { database: Arc::clone(&self.name), error })
        })
    }

    /// Raises the fences of shards, all in one operation.
    ///
    /// # Errors
    /// [`DatabaseError`]; what they are is not known then.
    pub(crate) async fn raise(&self, tokens: Vec<(ShardId, Token)>) -> Result<Raised, DatabaseError> {
        let (done, ended) = oneshot::channel();
        // As above.
        let _ = self.jobs.send(Job::Change(Change::Raise(tokens, done)));
        ended.await.unwrap_or_else(|_| Err(DatabaseError::Failed("the database's loader has ended".to_owned())))
    }
}

impl Crew {
    /// Sends changes while there is headroom; gives when there is some again.
    pub(super) fn send_changes(&mut self) -> Option<Instant> {
        self.changes.is_short = false;
        loop {
            let now = Instant::now();
            let next = self.changes.expire(now);
            if !self.changes.may_send(self.limits.in_flight_max) {
                return next;
            }
            if self.refuse_while_away(now) || self.refuse_the_first() {
                continue;
            }
            let slot = match self.spending.as_ref().map(Spending::spend_on_write).transpose() {
                Ok(slot) => slot,
                Err(short) => {
                    self.changes.is_short = true;
                    return super::at(now, short).into_iter().chain(next).min();
                }
            };
            if self.queue.breaker.state(now) == State::Probing {
                self.queue.breaker.handle_probe(now);
            }
            match self.changes.waiting.pop_front() {
                Some(Change::Write(write)) => self.send_write(now, *write, slot),
                Some(Change::Raise(tokens, done)) => self.send_raise(now, tokens, done, slot),
                None => return next,
            }
        }
    }

    /// While the database is left alone nothing is changed in it; the first change after that looks whether it is back.
    fn refuse_while_away(&mut self, now: Instant) -> bool {
        match self.queue.breaker.state(now) {
            State::Open | State::Probing => false,
            State::Closed(until) => {
                let retry_after = until.saturating_duration_since(now).max(RETRY);
                let error = self.last_error.clone().unwrap_or(DatabaseError::TimedOut);
                match self.changes.waiting.pop_front() {
                    Some(Change::Write(write)) => {
                        write.end(format!("database {} does not answer: {error}", self.name), retry_after);
                    }
                    Some(Change::Raise(_, done)) => {
                        // Nobody waits any more.
                        let _ = done.send(Err(DatabaseError::Unavailable(error.to_string())));
                    }
                    None => {}
                }
                true
            }
        }
    }

    /// Ends the write that is the next one, if it cannot be begun at this moment.
    fn refuse_the_first(&mut self) -> bool {
        let why = match self.changes.waiting.front() {
            Some(Change::Write(write)) if self.regions[&write.wish.region].statements.is_none() => {
                "the region is not written to"
            }
            // One that outlasts the lease would only be refused by the fence, or nobody would know.
            Some(Change::Write(_)) if self.changes.lease.left() < self.limits.write_timeout => {
                "the node's lease does not last for as long as a write may"
            }
            _ => return false,
        };
        if let Some(Change::Write(write)) = self.changes.waiting.pop_front() {
            write.end(why, RETRY);
        }
        true
    }

    fn send_write(&mut self, sent: Instant, write: PendingWrite, slot: Option<HeldSlot>) {
        let PendingWrite { wish, done, _room } = write;
        let prepared = &self.regions[&wish.region];
        let Some(statements) = &prepared.statements else { return };
        self.metrics.count_operation(LoadReason::Write);
        self.metrics.count_key(LoadReason::Write);
        self.changes.n_writing += 1;
        let until = sent + self.limits.write_timeout;
        let writing = self.database.write(Write {
            query: Arc::clone(&prepared.query),
            statements: Arc::clone(statements),
            comment: Arc::clone(&prepared.comments[LoadReason::Write as usize]),
            region: Arc::clone(&prepared.name),
            key: wish.key,
            value: wish.value,
            precondition: wish.precondition,
            fences: Arc::clone(&self.changes.fences),
            shard: wish.shard,
            token: wish.token,
            // A slot counts with it for no longer.
            send_by: until.min(sent + self.limits.operation_timeout),
            until,
            _slot: slot,
        });
        let name = Arc::clone(&self.name);
        self.changes.in_flight.push(Box::pin(async move {
            // On a task of its own, as a load.
            let writing = tokio::spawn(tokio::time::timeout_at((until + STOP_TIMEOUT).into(), writing));
            let written = match writing.await {
                Ok(written) => written.unwrap_or(Err(WriteError::Unknown(DatabaseError::TimedOut))),
                Err(_) => Err(WriteError::Unknown(DatabaseError::Failed("its driver panicked".to_owned()))),
            };
            let error = match &written {
                Ok(_) | Err(WriteError::Refused(_)) => None,
                Err(WriteError::NotDone(error) | WriteError::Unknown(error)) => Some(error.clone()),
            };
            let end = written.map(|written| (sent, written)).map_err(|error| WriteFailure::of(&name, error));
            // As above.
            let _ = done.send(end);
            drop(_room);
            Changed { sent, is_raise: false, error }
        }));
    }

    fn send_raise(
        &mut self,
        sent: Instant,
        tokens: Vec<(ShardId, Token)>,
        done: oneshot::Sender<Result<Raised, DatabaseError>>,
        slot: Option<HeldSlot>,
    ) {
        self.metrics.count_operation(LoadReason::Fence);
        self.changes.is_raising = true;
        let until = sent + self.limits.operation_timeout;
        let fences = Arc::clone(&self.changes.fences);
        let raising = self.database.raise(Raise { fences, tokens, send_by: until, until, _slot: slot });
        self.changes.in_flight.push(Box::pin(async move {
            let raising = tokio::spawn(tokio::time::timeout_at((until + STOP_TIMEOUT).into(), raising));
            let raised = match raising.await {
                Ok(raised) => raised.unwrap_or(Err(DatabaseError::TimedOut)),
                Err(_) => Err(DatabaseError::Failed("its driver panicked".to_owned())),
            };
            let error = raised.as_ref().err().cloned();
            // As above.
            let _ = done.send(raised);
            Changed { sent, is_raise: true, error }
        }));
    }

    pub(super) fn end_change(&mut self, Changed { sent, is_raise, error }: Changed) {
        if is_raise {
            self.changes.is_raising = false;
        } else {
            self.changes.n_writing -= 1;
        }
        self.metrics.load_seconds.observe(sent.elapsed().as_secs_f64());
        let what = if is_raise { "fences could not be raised" } else { "a write failed" };
        match &error {
            // It may have waited for a row that somebody holds: that says nothing of the database.
            Some(DatabaseError::TimedOut) if !is_raise => {
                log::warn!(database = &*self.name; "{what}: it took too long");
            }
            error => self.take_outcome(sent, what, error.as_ref()),
        }
    }
}
