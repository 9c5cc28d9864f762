//! Loading what is missing, and writing: one loader per database and node, on a thread of its own, so that nothing that
//! waits for a database blocks a lane.
//!
//! Raises of fences go before writes, and writes before loads. What of the loads leaves when, and together with what, is decided in [`queue`]; what the budget allows in [`spending`]; whether the
//! database is asked at all in [`breaker`]. The loader performs it.

mod breaker;
mod queue;
pub(crate) mod spending;
pub(crate) mod writing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use sharding::budget::Short;
use sharding::id::RegionName;
use sharding::wire::{Etag, Failure, FailureCode, VALUE_BYTES_MAX};
use tokio::sync::{mpsc, oneshot};

use crate::database::{Database, DatabaseError, Found, Query, Read, Statements};
use crate::metrics::{DatabaseMetrics, LoadReason};
use breaker::State;
use queue::{Next, Queue};
use spending::{HeldSlot, Spending};
use writing::{Change, Changes};

/// What a caller is told to wait when the queue of loads is full, or the database does not answer.
const RETRY: Duration = Duration::from_secs(1);
/// Loads that are taken in before operations are looked after again.
const TAKEN_AT_ONCE: usize = 1024;
/// A driver that has not stopped an operation so long after its time is not waited for.
const STOP_TIMEOUT: Duration = Duration::from_secs(2);

/// A key to be read, and who wants to know.
#[derive(Debug)]
struct Load {
    /// Position of its region.
    region: usize,
    key: Bytes,
    reason: LoadReason,
    /// When whoever waits for it leaves: the order in which loads are sent.
    wanted_by: Instant,
    /// Somebody waits for it; else it is a refresh, and goes after the others.
    is_awaited: bool,
    /// When its answer is worth nothing any more.
    until: Instant,
    /// Dropped without an answer, it says that the load was given up.
    done: oneshot::Sender<Result<Loaded, LoadError>>,
    /// Its place among those that may wait.
    _room: Option<Room>,
    /// It was sent once and met no database: the connection may have been an old one.
    is_again: bool,
}

impl Load {
    /// Whether its answer would be worth something.
    fn is_wanted(&self, now: Instant) -> bool {
        self.until > now && !self.done.is_closed()
    }
}

/// Where the answer to a load comes; closed, the load was given up.
type Landing = oneshot::Receiver<Result<Loaded, LoadError>>;

/// What a load brought.
#[derive(Clone, Debug)]
pub(crate) struct Loaded {
    /// When it was sent to the database.
    pub(crate) sent: Instant,
    /// The value; `None`: there is no such row.
    pub(crate) content: Option<(Bytes, Etag)>,
}

/// Why a load brought nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("database {database}: {error}; the next request tries again")]
    Database { database: Arc<str>, error: DatabaseError },
    #[error("database {database} does not answer: {error}; it is tried again")]
    Unavailable { database: Arc<str>, error: DatabaseError, retry_after: Duration },
    #[error("the budget of database {database} is spent for longer than this request can wait")]
    OverBudget { database: Arc<str>, retry_after: Duration },
    #[error("the value has {0} bytes; at most {VALUE_BYTES_MAX} are served")]
    ValueTooLarge(usize),
    #[error("the load was not answered within {0:?}; the next request tries again")]
    TimedOut(Duration),
    #[error("the load was given up; the next request tries again")]
    GivenUp,
    #[error("{0} loads wait for the database already")]
    QueueFull(usize),
}

impl LoadError {
    /// What those who wait for the load are told.
    pub(crate) fn failure(&self) -> Failure {
        let (code, retry_after) = match self {
            Self::QueueFull(_) => (FailureCode::Overloaded, RETRY),
            Self::OverBudget { retry_after, .. } => (FailureCode::Overloaded, *retry_after),
            Self::Unavailable { retry_after, .. } => (FailureCode::Unavailable, (*retry_after).max(RETRY)),
            _ => (FailureCode::Database, Duration::ZERO),
        };
        Failure { code, retry_after, message: self.to_string() }
    }
}

/// Bounds of a loader.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoaderLimits {
    /// Most keys in one operation.
    pub(crate) keys_max: usize,
    /// Most loads that wait.
    pub(crate) queue_max: usize,
    /// Most operations in flight.
    pub(crate) in_flight_max: usize,
    /// Longest time for an operation of several keys; past it they are split.
    pub(crate) operation_timeout: Duration,
    /// Longest time for one load.
    pub(crate) timeout: Duration,
    /// Longest time for one write.
    pub(crate) write_timeout: Duration,
}

/// A region as its loader knows it.
#[derive(Clone, Debug)]
pub(crate) struct LoadedRegion {
    /// Its place, by which loads name it.
    pub(crate) place: usize,
    pub(crate) name: RegionName,
    pub(crate) query: Arc<Query>,
    /// How it is written to, if it is.
    pub(crate) statements: Option<Arc<Statements>>,
}

/// Where loads for one database are handed in. Clones share the queue; when the last is dropped the thread ends.
#[derive(Clone, Debug)]
pub(crate) struct Loader {
    name: Arc<str>,
    jobs: mpsc::UnboundedSender<Job>,
    /// Loads and writes that were handed in and not answered.
    n_waiting: Arc<AtomicUsize>,
    limits: LoaderLimits,
    /// Nothing waits, and more could be done.
    is_idle: Arc<AtomicBool>,
}

/// What a loader does.
enum Job {
    Load(Load),
    Change(Change),
}

/// One place of a loader's queue.
#[derive(Debug)]
struct Room(Arc<AtomicUsize>);

impl Drop for Room {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Loader {
    /// Starts the loader's thread.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start(
        name: &str,
        database: Arc<dyn Database>,
        regions: Vec<LoadedRegion>,
        limits: LoaderLimits,
        spending: Option<Spending>,
        metrics: DatabaseMetrics,
        changes: Changes,
    ) -> std::io::Result<Self> {
        let (jobs, waiting) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let name: Arc<str> = name.into();
        let is_idle = Arc::new(AtomicBool::new(true));
        let has_writes = regions.iter().any(|region| region.statements.is_some());
        let regions = regions.into_iter().map(|region| (region.place, Prepared::new(region))).collect();
        let crew = Crew {
            name: Arc::clone(&name),
            database,
            regions,
            limits,
            spending,
            metrics,
            queue: Queue::default(),
            in_flight: FuturesUnordered::new(),
            changes,
            has_writes,
            last_error: None,
            is_idle: Arc::clone(&is_idle),
        };
        let thread = std::thread::Builder::new().name(format!("loader {name}"));
        thread.spawn(move || runtime.block_on(crew.run(waiting)))?;
        Ok(Self { name, jobs, n_waiting: Arc::default(), limits, is_idle })
    }

    /// Reads a key of a region; whoever waits for it does so until `wanted_by`, and the load goes on after that.
    ///
    /// # Errors
    /// [`LoadError`], at the latest after [`LoaderLimits::timeout`].
    pub(crate) async fn load(
        &self,
        region: usize,
        key: Bytes,
        reason: LoadReason,
        wanted_by: Option<Instant>,
    ) -> Result<Loaded, LoadError> {
        let landing = self.send(region, key, reason, wanted_by)?;
        match tokio::time::timeout(self.limits.timeout, landing).await {
            Ok(result) => result.unwrap_or(Err(LoadError::GivenUp)),
            Err(_) => Err(LoadError::TimedOut(self.limits.timeout)),
        }
    }

    /// Whether the database could do more, within the budget, and nobody asks it to.
    pub(crate) fn is_idle(&self) -> bool {
        self.is_idle.load(Ordering::Relaxed)
    }

    /// What whoever cannot wait any longer is told.
    pub(crate) fn slow(&self) -> Failure {
        let message = format!("database {} has not answered yet; the load goes on", self.name);
        Failure { code: FailureCode::Unavailable, retry_after: RETRY, message }
    }

    fn send(
        &self,
        region: usize,
        key: Bytes,
        reason: LoadReason,
        wanted_by: Option<Instant>,
    ) -> Result<Landing, LoadError> {
        let room = self.room().ok_or(LoadError::QueueFull(self.limits.queue_max))?;
        let (done, landing) = oneshot::channel();
        let until = Instant::now() + self.limits.timeout;
        let (is_awaited, wanted_by) = (wanted_by.is_some(), wanted_by.unwrap_or(until).min(until));
        // The thread ends only after all loaders: a load it never takes answers "given up" when it is dropped.
        let _ = self.jobs.send(Job::Load(Load {
            region,
            key,
            reason,
            wanted_by,
            is_awaited,
            until,
            done,
            _room: Some(room),
            is_again: false,
        }));
        Ok(landing)
    }

    /// A place for one more that waits; `None`: there is none.
    fn room(&self) -> Option<Room> {
        let room = Room(Arc::clone(&self.n_waiting));
        (self.n_waiting.fetch_add(1, Ordering::Relaxed) < self.limits.queue_max).then_some(room)
    }
}

/// A region's query, and what stands beside it in the database's own log for each reason.
struct Prepared {
    name: Arc<str>,
    query: Arc<Query>,
    statements: Option<Arc<Statements>>,
    comments: [Arc<str>; LoadReason::ALL.len()],
}

impl Prepared {
    fn new(region: LoadedRegion) -> Self {
        let comment = |reason: LoadReason| {
            format!("distributed-cache region={} reason={}", region.name.as_str(), reason.label()).into()
        };
        let comments = LoadReason::ALL.map(comment);
        Self { name: region.name.as_str().into(), query: region.query, statements: region.statements, comments }
    }
}

/// An operation that has ended.
struct Done {
    batch: Vec<Load>,
    sent: Instant,
    answer: Result<Found, DatabaseError>,
}

/// What runs on a loader's thread.
struct Crew {
    name: Arc<str>,
    database: Arc<dyn Database>,
    regions: std::collections::BTreeMap<usize, Prepared>,
    limits: LoaderLimits,
    spending: Option<Spending>,
    metrics: DatabaseMetrics,
    queue: Queue,
    in_flight: FuturesUnordered<BoxFuture<'static, Done>>,
    changes: Changes,
    /// Some region is written to.
    has_writes: bool,
    last_error: Option<DatabaseError>,
    is_idle: Arc<AtomicBool>,
}

impl Crew {
    async fn run(mut self, mut jobs: mpsc::UnboundedReceiver<Job>) {
        loop {
            for _ in 0..TAKEN_AT_ONCE {
                let Ok(job) = jobs.try_recv() else { break };
                self.take(job);
            }
            let wake = self.send_changes().into_iter().chain(self.send_what_may_be()).min();
            self.say_whether_idle();
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => self.take(job),
                    None => return,
                },
                Some(done) = self.in_flight.next(), if !self.in_flight.is_empty() => self.land(done),
                Some(changed) = self.changes.in_flight.next(), if !self.changes.in_flight.is_empty() => {
                    self.end_change(changed);
                }
                () = sleep_until(wake), if wake.is_some() => {}
                () = granted(self.spending.as_ref()), if self.spending.is_some() => {}
            }
        }
    }

    fn take(&mut self, job: Job) {
        match job {
            Job::Load(load) => self.take_in(load),
            Job::Change(change) => self.changes.push(change),
        }
    }

    fn say_whether_idle(&self) {
        let has_room = self.in_flight.len() < self.limits.in_flight_max.div_ceil(2);
        let is_unspent = self.spending.as_ref().is_none_or(Spending::is_mostly_unspent);
        let is_idle = has_room && is_unspent && self.queue.n_operations(1) == 0 && self.changes.is_empty();
        self.is_idle.store(is_idle, Ordering::Relaxed);
    }

    /// Puts a load into the queue, unless it would wait there in vain.
    fn take_in(&mut self, load: Load) {
        let now = Instant::now();
        if let (State::Closed(until), Some(error)) = (self.queue.breaker.state(now), &self.last_error) {
            let error = self.unavailable(error, until.saturating_duration_since(now));
            // Nobody waits any more.
            let _ = load.done.send(Err(error));
            return;
        }
        if let Some(wait) = self.wait(load.is_awaited)
            && now + wait > load.wanted_by
        {
            self.metrics.over_budget.inc();
            let _ = load.done.send(Err(LoadError::OverBudget { database: Arc::clone(&self.name), retry_after: wait }));
            return;
        }
        self.queue.push(load);
    }

    /// How long one more load would wait for the budget, about.
    fn wait(&self, is_awaited: bool) -> Option<Duration> {
        let keys_max = self.limits.keys_max;
        let n_before =
            if is_awaited { self.queue.n_awaited_operations(keys_max) } else { self.queue.n_operations(keys_max) };
        self.spending.as_ref()?.wait(n_before.max(1))
    }

    /// Sends batches while there is headroom; gives when there is some again.
    fn send_what_may_be(&mut self) -> Option<Instant> {
        let wake = loop {
            let now = Instant::now();
            match self.queue.next(now, self.limits.in_flight_max) {
                Next::Idle => break None,
                Next::At(at) => break Some(at),
                Next::Batch => {}
            }
            if self.changes.is_short {
                // Whatever there is is theirs.
                break None;
            }
            let has_writes = self.has_writes;
            let slot = match self.spending.as_ref().map(|spending| spending.spend_on_load(has_writes)).transpose() {
                Ok(slot) => slot,
                Err(short) => break at(now, short),
            };
            let batch = self.queue.take(now, self.limits.keys_max);
            self.send(now, batch, slot);
        };
        if let Some(spending) = &self.spending {
            spending.set_wanted(self.queue.n_operations(self.limits.keys_max) + self.changes.n_waiting());
        }
        wake
    }

    /// One operation. Requires: the batch is not empty, and all of one region.
    fn send(&mut self, sent: Instant, batch: Vec<Load>, slot: Option<HeldSlot>) {
        let prepared = &self.regions[&batch[0].region];
        self.metrics.count_operation(batch[0].reason);
        batch.iter().for_each(|load| self.metrics.count_key(load.reason));
        // The last one to give up decides: the others' waiters have left by then.
        let until = batch.iter().map(|load| load.until).max().unwrap_or(sent);
        let until = if batch.len() > 1 { until.min(sent + self.limits.operation_timeout) } else { until };
        let read = self.database.read(Read {
            query: Arc::clone(&prepared.query),
            comment: Arc::clone(&prepared.comments[batch[0].reason as usize]),
            keys: batch.iter().map(|load| load.key.clone()).collect(),
            send_by: sent + self.limits.operation_timeout,
            until,
            _slot: slot,
        });
        self.in_flight.push(Box::pin(async move {
            // On a task of its own, so that a panic in a driver ends that task and nothing else.
            let read = tokio::spawn(tokio::time::timeout_at((until + STOP_TIMEOUT).into(), read));
            let answer = match read.await {
                Ok(answer) => answer.unwrap_or(Err(DatabaseError::TimedOut)),
                Err(_) => Err(DatabaseError::Failed("its driver panicked".to_owned())),
            };
            Done { batch, sent, answer }
        }));
    }

    /// Answers all who asked, or splits a batch that ran past its time.
    fn land(&mut self, done: Done) {
        let Done { batch, sent, answer } = done;
        self.queue.landed();
        self.metrics.load_seconds.observe(sent.elapsed().as_secs_f64());
        let error = match answer {
            Ok(found) => {
                self.take_outcome(sent, "", None);
                for load in batch {
                    let result = loaded(sent, found.get(&load.key));
                    // Nobody waits any more: the load has outlived its time.
                    let _ = load.done.send(result);
                }
                return;
            }
            Err(error) => error,
        };
        self.take_outcome(sent, "a load failed", Some(&error));
        if error == DatabaseError::TimedOut && batch.len() > 1 {
            self.queue.split(batch);
        } else if matches!(error, DatabaseError::Unavailable(_)) && batch.iter().any(|load| !load.is_again) {
            self.queue.again(batch.into_iter().map(|load| Load { is_again: true, ..load }).collect());
        } else {
            let error = match error {
                DatabaseError::Unavailable(_) => self.unavailable(&error, RETRY),
                error => LoadError::Database { database: Arc::clone(&self.name), error },
            };
            for load in batch {
                let _ = load.done.send(Err(error.clone()));
            }
        }
        self.turn_away();
    }

    /// Whether the database answers: so that it is left alone when it does not.
    fn take_outcome(&mut self, sent: Instant, what: &str, error: Option<&DatabaseError>) {
        let now = Instant::now();
        let Some(error) = error else { return self.queue.breaker.handle_success(now) };
        log::warn!(database = &*self.name; "{what}: {error}");
        self.last_error = Some(error.clone());
        if matches!(error, DatabaseError::Failed(_)) {
            self.queue.breaker.handle_success(now);
        } else if self.queue.breaker.handle_failure(now, sent, fastrand::f64()) {
            log::error!(database = &*self.name; "the database does not answer; it is tried again from time to time");
        }
    }

    /// While the database is left alone nobody waits for it.
    fn turn_away(&mut self) {
        let now = Instant::now();
        if let (State::Closed(until), Some(error)) = (self.queue.breaker.state(now), &self.last_error) {
            let error = self.unavailable(error, until.saturating_duration_since(now));
            for load in self.queue.drain() {
                let _ = load.done.send(Err(error.clone()));
            }
        }
    }

    fn unavailable(&self, error: &DatabaseError, retry_after: Duration) -> LoadError {
        LoadError::Unavailable { database: Arc::clone(&self.name), error: error.clone(), retry_after }
    }
}

/// When there may be a slot again.
fn at(now: Instant, short: Short) -> Option<Instant> {
    short.until.map(|at| now + at.saturating_sub(crate::clock::now().boot))
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

async fn granted(spending: Option<&Spending>) {
    match spending {
        Some(spending) => spending.granted().await,
        None => std::future::pending().await,
    }
}

fn loaded(sent: Instant, value: Option<&Bytes>) -> Result<Loaded, LoadError> {
    match value {
        Some(value) if value.len() > VALUE_BYTES_MAX => Err(LoadError::ValueTooLarge(value.len())),
        Some(value) => Ok(Loaded { sent, content: Some((value.clone(), Etag::of(value))) }),
        None => Ok(Loaded { sent, content: None }),
    }
}

#[cfg(test)]
mod tests;
