use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Mutex;

use prometheus_client::registry::Registry;
use sharding::budget::{Budget, Floor};
use sharding::fence::Token;
use sharding::id::{ClusterName, DatabaseName, NShards, ShardId};
use sharding::times::{Lease, Times};

use super::writing::{WriteEnd, WriteFailure, WriteWish};
use super::*;
use crate::database::{Fences, Raise, Raised, Write, WriteError, Written};
use crate::lease::HeldLease;
use crate::metrics::Metrics;

const LIMITS: LoaderLimits = LoaderLimits {
    keys_max: 100,
    queue_max: 100,
    in_flight_max: 1,
    operation_timeout: Duration::from_secs(5),
    timeout: Duration::from_secs(5),
    write_timeout: Duration::from_secs(1),
};

type Answer = Result<Found, DatabaseError>;

/// A database whose every read is played by the test: it says what it was asked, then waits for the answer. Of writes and
/// raises it says so, and does them.
struct Scripted {
    asked: crossbeam_channel::Sender<(Vec<Bytes>, oneshot::Sender<Answer>)>,
    changed: crossbeam_channel::Sender<String>,
}

impl Database for Scripted {
    fn read(&self, read: Read) -> BoxFuture<'static, Answer> {
        let (answer, answered) = oneshot::channel();
        self.asked.send((read.keys.clone(), answer)).expect("the test listens");
        Box::pin(async move {
            let stopped = tokio::time::sleep_until(read.until.into());
            tokio::select! {
                answer = answered => answer.expect("on purpose: the driver panics where the test gives no answer"),
                () = stopped => Err(DatabaseError::TimedOut),
            }
        })
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Written, WriteError>> {
        self.changed.send(String::from_utf8_lossy(&write.key).into_owned()).expect("the test listens");
        Box::pin(async move { Ok(Written::Done(write.value)) })
    }

    fn raise(&self, raise: Raise) -> BoxFuture<'static, Result<Raised, DatabaseError>> {
        self.changed.send(format!("{} fences", raise.tokens.len())).expect("the test listens");
        let raised = raise.tokens.into_iter().map(|(shard, _)| shard).collect();
        Box::pin(async move { Ok(Raised { raised, higher: Vec::new() }) })
    }
}

struct Scene {
    loader: Loader,
    asked: crossbeam_channel::Receiver<(Vec<Bytes>, oneshot::Sender<Answer>)>,
    changed: crossbeam_channel::Receiver<String>,
    lease: HeldLease,
    /// Operations that the test has not answered yet.
    open: Mutex<Vec<oneshot::Sender<Answer>>>,
}

fn scene(limits: LoaderLimits, spending: Option<Spending>) -> Scene {
    let (asked_by, asked) = crossbeam_channel::unbounded();
    let (changed_by, changed) = crossbeam_channel::unbounded();
    let database = Arc::new(Scripted { asked: asked_by, changed: changed_by });
    let metrics = Metrics::new(&mut Registry::default()).database("main");
    let name = RegionName::parse("things").expect("a name");
    let query = Arc::new(Query::Sql("SELECT".to_owned()));
    let region = LoadedRegion { place: 0, name, query, statements: Some(Arc::new(Statements::Redis)) };
    let fences = Fences { cluster: ClusterName::parse("test").expect("a name"), n_shards: NShards::DEFAULT };
    let (fences, lease) = (Arc::new(fences), HeldLease::default());
    let loader =
        Loader::start("main", database, vec![region], limits, spending, metrics, Changes::new(fences, lease.clone()));
    Scene { loader: loader.expect("a thread"), asked, changed, lease, open: Mutex::default() }
}

fn found(key: &'static str, value: &'static str) -> Answer {
    Ok(HashMap::from([(Bytes::from(key), Bytes::from(value))]))
}

impl Scene {
    fn send(&self, key: &'static str) -> Landing {
        self.try_send(key).expect("room")
    }

    fn try_send(&self, key: &'static str) -> Result<Landing, LoadError> {
        self.loader.send(0, Bytes::from(key), LoadReason::Cold, None)
    }

    /// The keys of the next operation.
    fn asked(&self) -> Vec<Bytes> {
        let (keys, answer) = self.asked.recv_timeout(LIMITS.timeout).expect("the database is asked");
        self.open.lock().expect("no panic under it").push(answer);
        keys
    }

    /// Answers the oldest open operation.
    fn answer(&self, answer: Answer) {
        self.open.lock().expect("no panic under it").remove(0).send(answer).expect("the loader listens");
    }

    fn fail(&self, key: &'static str, error: &DatabaseError) -> LoadError {
        let mut landing = self.send(key);
        loop {
            if let Ok((_, answer)) = self.asked.recv_timeout(Duration::from_millis(10)) {
                answer.send(Err(error.clone())).expect("the loader listens");
            } else if let Ok(result) = landing.try_recv() {
                return result.expect_err("failed");
            }
        }
    }
}

fn unavailable() -> DatabaseError {
    DatabaseError::Unavailable("connection refused".to_owned())
}

#[test]
fn keys_that_wait_for_a_busy_database_leave_in_one_read() {
    let scene = scene(LIMITS, None);
    let first = scene.send("a");
    assert_eq!(scene.asked(), ["a"]);
    let rest: Vec<Landing> = ["b", "c", "d"].into_iter().map(|key| scene.send(key)).collect();
    scene.answer(found("a", "1"));
    assert_eq!(scene.asked(), ["b", "c", "d"]);
    scene.answer(Ok(HashMap::new()));

    let value = first.blocking_recv().expect("answered").expect("loaded").content;
    assert_eq!(value.map(|(value, _)| value), Some(Bytes::from("1")));
    for done in rest {
        assert!(done.blocking_recv().expect("answered").expect("loaded").content.is_none());
    }
}

#[test]
fn while_there_is_headroom_a_load_leaves_at_once() {
    let scene = scene(LoaderLimits { in_flight_max: 2, ..LIMITS }, None);
    let _slow = scene.send("slow");
    assert_eq!(scene.asked(), ["slow"]);
    let other = scene.send("other");
    assert_eq!(scene.asked(), ["other"], "the slow one holds nobody");
    let _slow_answer = scene.open.lock().expect("no panic under it").remove(0);
    scene.answer(found("other", "1"));
    assert!(other.blocking_recv().expect("answered").is_ok());
}

#[test]
fn an_error_reaches_all_who_waited_and_the_next_load_tries_again() {
    let scene = scene(LIMITS, None);
    let error = scene.fail("a", &DatabaseError::Failed("no such table".to_owned()));
    assert!(error.to_string().contains("database main: no such table"), "{error}");
    assert_eq!(error.failure().code, FailureCode::Database);
    let next = scene.send("a");
    scene.asked();
    scene.answer(Ok(HashMap::new()));
    assert!(next.blocking_recv().expect("answered").is_ok());
}

#[test]
fn a_panic_in_a_driver_strands_nobody() {
    let scene = scene(LIMITS, None);
    let done = scene.send("a");
    scene.asked();
    scene.open.lock().expect("no panic under it").clear();
    let error = done.blocking_recv().expect("answered").expect_err("failed").to_string();
    assert!(error.contains("panicked"), "{error}");
    let _next = scene.send("b");
    assert_eq!(scene.asked(), ["b"]);
}

#[test]
fn one_load_more_than_may_wait_is_refused() {
    let scene = scene(LoaderLimits { queue_max: 3, ..LIMITS }, None);
    let _busy = scene.send("a");
    scene.asked();
    let _waiting = (scene.send("b"), scene.send("c"));
    let error = scene.try_send("d").expect_err("there is no room");
    assert_eq!((&error, error.failure().code), (&LoadError::QueueFull(3), FailureCode::Overloaded));
}

#[test]
fn a_batch_that_runs_past_its_time_is_split_until_the_slow_key_is_alone() {
    let scene = scene(LoaderLimits { operation_timeout: Duration::from_millis(30), ..LIMITS }, None);
    let busy = scene.send("a");
    scene.asked();
    let landings: Vec<Landing> = ["b", "slow", "c"].into_iter().map(|key| scene.send(key)).collect();
    scene.answer(Ok(HashMap::new()));
    busy.blocking_recv().expect("answered").expect("loaded");
    // Each batch with the slow key in it is left unanswered; what is alone has all its time.
    let mut n_operations = 0;
    let mut n_alone = 0;
    while n_alone < 3 {
        let keys = scene.asked();
        n_operations += 1;
        if keys.len() == 1 {
            n_alone += 1;
            let answer = scene.open.lock().expect("no panic under it").pop().expect("just asked");
            answer.send(Ok(HashMap::new())).expect("the loader listens");
        }
    }
    assert_eq!(n_operations, 5, "three, one and two, then each of the two");
    landings.into_iter().for_each(|landing| assert!(landing.blocking_recv().expect("answered").is_ok()));
}

#[test]
fn a_load_that_meets_no_database_is_sent_once_more() {
    let scene = scene(LIMITS, None);
    let landing = scene.send("a");
    scene.asked();
    scene.answer(Err(unavailable()));
    assert_eq!(scene.asked(), ["a"], "its connection may have been an old one");
    scene.answer(found("a", "1"));
    assert!(landing.blocking_recv().expect("answered").is_ok());
}

#[test]
fn a_database_that_is_away_is_left_alone_and_found_again() {
    let scene = scene(LIMITS, None);
    for _ in 0..2 {
        assert_eq!(scene.fail("a", &unavailable()).failure().code, FailureCode::Unavailable);
    }
    let error = scene.send("a").blocking_recv().expect("answered").expect_err("it is not asked");
    assert!(error.to_string().contains("connection refused") && error.failure().retry_after >= RETRY, "{error}");
    assert!(scene.asked.is_empty());
    // After the pause one operation is sent to see.
    let deadline = Instant::now() + LIMITS.timeout;
    let landing = loop {
        let landing = scene.send("a");
        if scene.asked.recv_timeout(Duration::from_millis(20)).map(|(_, answer)| answer.send(found("a", "1"))).is_ok() {
            break landing;
        }
        assert!(Instant::now() < deadline, "it is never asked again");
    };
    assert!(landing.blocking_recv().expect("answered").is_ok());
    let _next = scene.send("b");
    assert_eq!(scene.asked(), ["b"]);
}

fn spending(per_second: u32, share: u32) -> Spending {
    let (name, times) = (DatabaseName::parse("main").expect("a name"), Times::default());
    let budget = Budget(NonZeroU32::new(per_second).expect("some"));
    let spending = Spending::new(name, budget, Floor::NONE, Duration::ZERO, &times);
    spending.handle_share(share, Lease::new(crate::clock::now(), Duration::from_secs(100), &times));
    spending
}

#[test]
fn what_the_budget_does_not_allow_gathers_and_leaves_together() {
    let scene = scene(LoaderLimits { in_flight_max: 8, ..LIMITS }, Some(spending(4, 4)));
    let began = Instant::now();
    let _first = scene.send("a");
    assert_eq!(scene.asked(), ["a"], "at once");
    assert!(began.elapsed() < Duration::from_millis(100));
    let _rest: Vec<Landing> = ["b", "c", "d"].into_iter().map(|key| scene.send(key)).collect();
    assert_eq!(scene.asked(), ["b", "c", "d"]);
    assert!(began.elapsed() >= Duration::from_millis(200), "four a second, paced");
}

#[test]
fn who_would_wait_in_vain_is_told_when_to_come_again() {
    let scene = scene(LoaderLimits { keys_max: 1, in_flight_max: 8, ..LIMITS }, Some(spending(1, 1)));
    let _first = scene.send("a");
    scene.asked();
    let soon = Some(Instant::now() + Duration::from_millis(300));
    let landing = scene.loader.send(0, Bytes::from("b"), LoadReason::Cold, soon).expect("room");
    let error = landing.blocking_recv().expect("answered").expect_err("too late");
    let failure = error.failure();
    assert_eq!(failure.code, FailureCode::Overloaded);
    assert!(failure.retry_after > Duration::from_millis(500), "{failure:?}");
    let _patient = scene.send("c");
    assert_eq!(scene.asked.recv_timeout(Duration::from_millis(100)).ok().map(|(keys, _)| keys), None);
}

#[test]
fn a_share_that_comes_lets_what_waits_leave() {
    let waiting = spending(4, 0);
    let scene = scene(LIMITS, Some(waiting.clone()));
    let _first = scene.send("a");
    assert!(scene.asked.recv_timeout(Duration::from_millis(50)).is_err(), "there is no slot");
    assert_eq!(waiting.used().demand, 1);
    waiting.handle_share(2, Lease::new(crate::clock::now(), Duration::from_secs(100), &Times::default()));
    assert_eq!(scene.asked(), ["a"]);
}

impl Scene {
    fn hold(&self, lease: Duration) {
        self.lease.set(Lease::new(crate::clock::now(), lease, &Times::default()));
    }

    /// Writes a key on a thread of its own.
    fn write(&self, key: &'static str, start_by: Instant) -> std::thread::JoinHandle<WriteEnd> {
        let wish = WriteWish {
            region: 0,
            key: Bytes::from(key),
            value: Some(Bytes::from("v")),
            precondition: Default::default(),
            shard: ShardId(0),
            token: Token::default(),
            start_by,
        };
        let loader = self.loader.clone();
        std::thread::spawn(move || futures_executor(loader.write(wish)))
    }

    fn changed(&self) -> String {
        self.changed.recv_timeout(LIMITS.timeout).expect("the database is changed")
    }
}

fn futures_executor<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

fn late() -> Instant {
    Instant::now() + LIMITS.timeout
}

#[test]
fn a_write_does_not_wait_for_loads() {
    let scene = scene(LIMITS, None);
    scene.hold(LIMITS.timeout);
    let _load = scene.send("a");
    assert_eq!(scene.asked(), ["a"]);
    let write = scene.write("b", late());
    assert_eq!(scene.changed(), "b");
    assert!(matches!(write.join().expect("ended"), Ok((_, Written::Done(Some(_))))));
}

#[test]
fn a_write_that_may_outlast_the_lease_is_not_begun() {
    let scene = scene(LIMITS, None);
    scene.hold(LIMITS.write_timeout);
    let Err(failure) = scene.write("a", late()).join().expect("ended") else { panic!("it was written") };
    assert!(matches!(failure, WriteFailure::NotStarted { .. }), "{failure}");
    assert_eq!(failure.failure().code, FailureCode::NotApplied);
    assert!(scene.changed.is_empty());
}

#[test]
fn a_write_that_the_budget_has_no_slot_for_is_given_up_in_time() {
    let database = DatabaseName::parse("main").expect("a name");
    let budget = Budget(NonZeroU32::new(10).expect("some"));
    let spending = Spending::new(database, budget, Floor::NONE, LIMITS.operation_timeout, &Times::default());
    let scene = scene(LIMITS, Some(spending));
    scene.hold(LIMITS.timeout);
    let began = Instant::now();
    let end = scene.write("a", began + Duration::from_millis(50)).join().expect("ended");
    assert!(matches!(end, Err(WriteFailure::NotStarted { .. })), "{end:?}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert!(scene.changed.is_empty());
}

#[test]
fn a_set_of_fences_rises_in_one_operation() {
    let scene = scene(LIMITS, None);
    let tokens = (0..100).map(|shard| (ShardId(shard), Token::default())).collect();
    let raised = futures_executor(scene.loader.raise(tokens)).expect("raised");
    assert_eq!((raised.raised.len(), scene.changed().as_str()), (100, "100 fences"));
    assert!(scene.changed.is_empty());
}
