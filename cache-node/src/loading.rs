//! Loading what is missing: one loader per database, on a thread of its own, so that no load blocks a lane.
//!
//! While the database is busy the keys that come in wait together; what waits leaves in one batched read. So a load is
//! sent at once while there is headroom, and gathered when there is not.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use sharding::wire::{Etag, Failure, FailureCode, VALUE_BYTES_MAX};
use tokio::sync::oneshot;

use crate::database::{Database, DatabaseError};
use crate::metrics::{DatabaseMetrics, LoadReason};

/// What a caller is told to wait when the queue of loads is full.
const QUEUE_FULL_RETRY: Duration = Duration::from_secs(1);

/// A key to be read, and who wants to know.
#[derive(Debug)]
struct Load {
    /// The region's query.
    query: Arc<str>,
    key: Bytes,
    reason: LoadReason,
    /// When its answer is worth nothing any more.
    until: Instant,
    /// Dropped without an answer, it says that the load was given up.
    done: oneshot::Sender<Result<Loaded, LoadError>>,
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
            Self::QueueFull(_) => (FailureCode::Overloaded, QUEUE_FULL_RETRY),
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
    /// Longest time for one load.
    pub(crate) timeout: Duration,
}

/// Where loads for one database are handed in. Clones share the queue; when the last is dropped the thread ends.
#[derive(Clone, Debug)]
pub(crate) struct Loader {
    queue: Sender<Load>,
    limits: LoaderLimits,
}

impl Loader {
    /// Starts the loader's thread. `connect` is called on it for the first connection, and for another after a panic
    /// inside one.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn start<D: Database>(
        name: &str,
        connect: impl Fn() -> Result<D, DatabaseError> + Send + 'static,
        limits: LoaderLimits,
        metrics: DatabaseMetrics,
    ) -> std::io::Result<Self> {
        let (queue, waiting) = bounded(limits.queue_max);
        let thread = LoaderThread { name: name.into(), connect, waiting, limits, metrics };
        std::thread::Builder::new().name(format!("loader {name}")).spawn(move || thread.run())?;
        Ok(Self { queue, limits })
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`LoadError`], at the latest after [`LoaderLimits::timeout`].
    pub(crate) async fn load(&self, query: Arc<str>, key: Bytes, reason: LoadReason) -> Result<Loaded, LoadError> {
        let result = self.send(query, key, reason)?;
        match tokio::time::timeout(self.limits.timeout, result).await {
            Ok(result) => result.unwrap_or(Err(LoadError::GivenUp)),
            Err(_) => Err(LoadError::TimedOut(self.limits.timeout)),
        }
    }

    fn send(&self, query: Arc<str>, key: Bytes, reason: LoadReason) -> Result<Landing, LoadError> {
        let (done, landing) = oneshot::channel();
        let until = Instant::now() + self.limits.timeout;
        match self.queue.try_send(Load { query, key, reason, until, done }) {
            // The thread ends only after all loaders: a load it never takes answers "given up" when it is dropped.
            Ok(()) | Err(TrySendError::Disconnected(_)) => Ok(landing),
            Err(TrySendError::Full(_)) => Err(LoadError::QueueFull(self.limits.queue_max)),
        }
    }
}

struct LoaderThread<C> {
    name: Arc<str>,
    connect: C,
    waiting: Receiver<Load>,
    limits: LoaderLimits,
    metrics: DatabaseMetrics,
}

impl<D: Database, C: Fn() -> Result<D, DatabaseError>> LoaderThread<C> {
    fn run(self) {
        let mut connection = None;
        while let Ok(first) = self.waiting.recv() {
            let mut batch = vec![first];
            batch.extend(self.waiting.try_iter().take(self.limits.keys_max - 1));
            loop {
                // Looked at before each operation: the one before may have taken long.
                let now = Instant::now();
                batch.retain(|load| load.until > now && !load.done.is_closed());
                let Some(first) = batch.first() else { break };
                let query = Arc::clone(&first.query);
                let (same, others) = batch.into_iter().partition(|load| *load.query == *query);
                self.read(&mut connection, &query, same);
                batch = others;
            }
        }
    }

    /// One operation: reads the keys of one query and answers all who asked.
    fn read(&self, connection: &mut Option<D>, query: &str, batch: Vec<Load>) {
        let keys: Vec<Bytes> = batch.iter().map(|load| load.key.clone()).collect();
        // The last one to give up decides: the others' waiters have left by then.
        let until = batch.iter().map(|load| load.until).max().unwrap_or_else(Instant::now);
        let sent = Instant::now();
        let answer = catch_unwind(AssertUnwindSafe(|| {
            let database = match connection {
                Some(database) => database,
                None => connection.insert((self.connect)()?),
            };
            self.metrics.count_operation(batch[0].reason);
            for load in &batch {
                self.metrics.count_key(load.reason);
            }
            database.read(query, &keys, until)
        }));
        self.metrics.load_seconds.observe(sent.elapsed().as_secs_f64());
        let answer = answer.unwrap_or_else(|_| {
            *connection = None;
            Err(DatabaseError::Failed("its driver panicked".to_owned()))
        });
        if let Err(error) = &answer {
            log::warn!(database = &*self.name, keys = keys.len(); "a load failed: {error}");
        }
        for load in batch {
            let result = match &answer {
                Ok(found) => loaded(sent, found.get(&load.key)),
                Err(error) => Err(LoadError::Database { database: Arc::clone(&self.name), error: error.clone() }),
            };
            // Nobody waits any more: the load has outlived its time.
            let _ = load.done.send(result);
        }
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
mod tests {
    use std::collections::HashMap;

    use prometheus_client::registry::Registry;

    use super::*;
    use crate::metrics::Metrics;

    const LIMITS: LoaderLimits = LoaderLimits { keys_max: 100, queue_max: 100, timeout: Duration::from_secs(5) };

    /// As an error, it makes the driver panic.
    const PANIC: &str = "panic";

    /// A database whose every read is played by the test: it says what it was asked, then waits for the answer.
    struct Scripted {
        asked: Sender<Vec<Bytes>>,
        answers: Receiver<Result<HashMap<Bytes, Bytes>, DatabaseError>>,
    }

    impl Database for Scripted {
        fn read(&mut self, _: &str, keys: &[Bytes], _: Instant) -> Result<HashMap<Bytes, Bytes>, DatabaseError> {
            self.asked.send(keys.to_vec()).expect("the test listens");
            let answer = self.answers.recv().expect("the test answers");
            assert_ne!(answer, Err(DatabaseError::Failed(PANIC.to_owned())), "on purpose");
            answer
        }
    }

    struct Scene {
        loader: Loader,
        asked: Receiver<Vec<Bytes>>,
        answers: Sender<Result<HashMap<Bytes, Bytes>, DatabaseError>>,
    }

    fn scene(limits: LoaderLimits) -> Scene {
        let (ask, asked) = bounded(100);
        let (answers, answer) = bounded(100);
        let connect = move || Ok(Scripted { asked: ask.clone(), answers: answer.clone() });
        let metrics = Metrics::new(&mut Registry::default()).database("main");
        let loader = Loader::start("main", connect, limits, metrics).expect("a thread");
        Scene { loader, asked, answers }
    }

    impl Scene {
        fn send(&self, key: &'static str) -> Landing {
            self.try_send(key).expect("room")
        }

        fn try_send(&self, key: &'static str) -> Result<Landing, LoadError> {
            self.loader.send("SELECT".into(), Bytes::from(key), LoadReason::Cold)
        }

        /// The keys of the next read.
        fn asked(&self) -> Vec<Bytes> {
            self.asked.recv_timeout(LIMITS.timeout).expect("the database is asked")
        }
    }

    #[test]
    fn keys_that_wait_for_a_busy_database_leave_in_one_read() {
        let scene = scene(LIMITS);
        let first = scene.send("a");
        assert_eq!(scene.asked(), ["a"]);
        let rest: Vec<Landing> = ["b", "c", "d"].into_iter().map(|key| scene.send(key)).collect();
        scene.answers.send(Ok(HashMap::from([(Bytes::from("a"), Bytes::from("1"))]))).expect("the loader listens");
        assert_eq!(scene.asked(), ["b", "c", "d"]);
        scene.answers.send(Ok(HashMap::new())).expect("the loader listens");

        let value = first.blocking_recv().expect("answered").expect("loaded").content;
        assert_eq!(value.map(|(value, _)| value), Some(Bytes::from("1")));
        for done in rest {
            assert!(done.blocking_recv().expect("answered").expect("loaded").content.is_none());
        }
    }

    #[test]
    fn an_error_reaches_all_who_waited_and_the_next_load_tries_again() {
        let scene = scene(LIMITS);
        scene.answers.send(Err(DatabaseError::TimedOut)).expect("the loader listens");
        let error = scene.send("a").blocking_recv().expect("answered").expect_err("failed").to_string();
        assert!(error.contains("database main"), "{error}");
        scene.answers.send(Ok(HashMap::new())).expect("the loader listens");
        assert!(scene.send("a").blocking_recv().expect("answered").is_ok());
    }

    #[test]
    fn a_panic_in_a_driver_strands_nobody() {
        let scene = scene(LIMITS);
        let done = scene.send("a");
        scene.asked();
        scene.answers.send(Err(DatabaseError::Failed(PANIC.to_owned()))).expect("the loader listens");
        let error = done.blocking_recv().expect("answered").expect_err("failed").to_string();
        assert!(error.contains("panicked"), "{error}");
        let _next = scene.send("b");
        assert_eq!(scene.asked(), ["b"], "on a new connection");
    }

    #[test]
    fn one_load_more_than_may_wait_is_refused() {
        let scene = scene(LoaderLimits { queue_max: 2, ..LIMITS });
        let _busy = scene.send("a");
        scene.asked();
        let _waiting = (scene.send("b"), scene.send("c"));
        let error = scene.try_send("d").expect_err("there is no room");
        assert_eq!((&error, error.failure().code), (&LoadError::QueueFull(2), FailureCode::Overloaded));
    }

    #[test]
    fn a_load_that_nobody_waits_for_any_more_is_not_sent() {
        let scene = scene(LIMITS);
        let _busy = scene.send("a");
        scene.asked();
        drop(scene.send("left"));
        let _kept = scene.send("kept");
        scene.answers.send(Ok(HashMap::new())).expect("the loader listens");
        assert_eq!(scene.asked(), ["kept"]);
    }
}
