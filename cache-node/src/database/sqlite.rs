//! SQLite: the embedded database. Opened to read, and once more to write where a region is written to; several processes
//! may share the file. Its calls block, so they are made on threads of their own.

mod writing;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use crossbeam_channel::{Receiver, Sender, unbounded};
use futures_util::future::BoxFuture;
use rusqlite::config::DbConfig;
use rusqlite::trace::{TraceEvent, TraceEventCodes};
use rusqlite::types::{Value, ValueRef};
use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags};

use tokio::sync::oneshot;

use super::{
    Database, DatabaseError, Found, KEYS, Progress, Query, Raise, Raised, Read, Write, WriteError, Written,
    one_statement, replace_keys, respell_keys,
};

/// How long a read waits for a writer that holds the file's lock.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// SQLite asks whether to go on once in so many steps of its virtual machine.
const STEPS_BETWEEN_CHECKS: i32 = 10_000;
/// Prepared statements of a connection: one for each region and reason.
const STATEMENTS_MAX: usize = 256;
/// Log target under which, at level `trace`, SQLite's own trace names each statement and row.
const TRACE_TARGET: &str = "cache_node::sqlite_trace";

/// A connection to an SQLite file.
pub struct Sqlite {
    connection: Connection,
}

impl Sqlite {
    /// Opens a file to read. What a writer that died has left half done is taken back, as every reader of SQLite does who may
    /// write to the file; one that was opened read-only would fail until somebody else had done so.
    ///
    /// # Errors
    /// [`DatabaseError::Failed`] when it cannot be opened or is no SQLite database, [`DatabaseError::Unavailable`] when
    /// somebody holds its lock.
    pub fn open(path: &Path) -> Result<Self, DatabaseError> {
        Self::open_as(path, true)
    }

    /// Opens a file to write.
    ///
    /// # Errors
    /// As [`Sqlite::open`].
    pub fn open_to_write(path: &Path) -> Result<Self, DatabaseError> {
        Self::open_as(path, false)
    }

    fn open_as(path: &Path, only_reads: bool) -> Result<Self, DatabaseError> {
        let open = || {
            // A file that may not be written to is opened read-only all the same.
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let mut connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(BUSY_TIMEOUT)?;
            if only_reads {
                connection.pragma_update(None, "query_only", true)?;
                connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
            }
            connection.set_prepared_statement_cache_capacity(STATEMENTS_MAX);
            rusqlite::vtab::array::load_module(&connection)?;
            // The file is looked at only when something is read.
            connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()))?;
            if log::log_enabled!(target: TRACE_TARGET, log::Level::Trace) {
                trace(&mut connection)?;
            }
            Ok(connection)
        };
        open().map(|connection| Self { connection }).map_err(failed)
    }

    /// Checks a region's query without running it.
    ///
    /// # Errors
    /// [`DatabaseError::Failed`] when it does not parse, writes, has no `:keys` or other than two columns.
    pub fn check(&mut self, load: &str) -> Result<(), DatabaseError> {
        let statement = self.prepare(load, "")?;
        let complaint = if statement.column_count() != 2 {
            "the query needs two columns: the key, then the value"
        } else if !statement.readonly() {
            "the query may only read"
        } else if statement.parameter_count() != 1 || statement.parameter_index(KEYS) != Ok(Some(1)) {
            "the query needs :keys, and no other parameter, as in WHERE id IN (:keys)"
        } else {
            return Ok(());
        };
        Err(DatabaseError::Failed(complaint.to_owned()))
    }

    /// Statements are interrupted after that.
    fn stop_at(&mut self, until: Instant) -> Result<(), DatabaseError> {
        let is_over = move || Instant::now() > until;
        self.connection.progress_handler(STEPS_BETWEEN_CHECKS, Some(is_over)).map_err(failed)
    }

    fn prepare(&mut self, load: &str, comment: &str) -> Result<CachedStatement<'_>, DatabaseError> {
        self.prepare_plain(&with_key_table(load), comment)
    }

    fn prepare_plain(&self, sql: &str, comment: &str) -> Result<CachedStatement<'_>, DatabaseError> {
        let commented = format!("{} /* {comment} */", one_statement(sql));
        self.connection.prepare_cached(if comment.is_empty() { sql } else { &commented }).map_err(failed)
    }

    /// Keys are bound as text, as a blob when they are not UTF-8. A row answers the key that its first column, as
    /// text, equals; where several do, the first counts. A NULL value is no value.
    ///
    /// # Errors
    /// As [`Database::read`].
    pub fn read(&mut self, load: &str, comment: &str, keys: &[Bytes], until: Instant) -> Result<Found, DatabaseError> {
        self.stop_at(until)?;
        let mut statement = self.prepare(load, comment)?;
        let bound: Vec<Value> = keys.iter().map(key_value).collect();
        let mut rows = statement.query([Rc::new(bound)]).map_err(failed)?;
        let mut found = HashMap::with_capacity(keys.len());
        while let Some(row) = rows.next().map_err(failed)? {
            let key = as_bytes(row.get_ref(0).map_err(failed)?);
            let value = as_bytes(row.get_ref(1).map_err(failed)?);
            if let (Some(key), Some(value)) = (key, value) {
                found.entry(key).or_insert(value);
            }
        }
        Ok(found)
    }
}

/// An SQLite file, read by threads that each have a connection, and written to by one more.
#[derive(Debug)]
pub struct Threads {
    reads: Sender<Job<Read, Result<Found, DatabaseError>>>,
    changes: Sender<Change>,
}

#[derive(Debug)]
struct Job<T, A> {
    what: T,
    answer: oneshot::Sender<A>,
}

/// What the thread that writes does.
#[derive(Debug)]
enum Change {
    Write(Box<Job<Write, Result<Written, WriteError>>>, Arc<Progress>),
    Raise(Job<Raise, Result<Raised, DatabaseError>>),
}

impl Threads {
    /// Starts so many threads that read; all end when it is dropped.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(path: &Path, n_threads: usize) -> std::io::Result<Self> {
        let (reads, waiting) = unbounded();
        for number in 0..n_threads {
            let (path, waiting) = (path.to_owned(), Receiver::clone(&waiting));
            std::thread::Builder::new().name(format!("sqlite {number}")).spawn(move || read_all(&path, &waiting))?;
        }
        let (changes, waiting) = unbounded();
        let path = path.to_owned();
        std::thread::Builder::new().name("sqlite writes".to_owned()).spawn(move || change_all(&path, &waiting))?;
        Ok(Self { reads, changes })
    }
}

fn lost() -> DatabaseError {
    DatabaseError::Failed("its threads have ended".to_owned())
}

impl Database for Threads {
    fn read(&self, read: Read) -> BoxFuture<'static, Result<Found, DatabaseError>> {
        let (answer, answered) = oneshot::channel();
        // As many wait as its loader has in flight; so do those below.
        let sent = self.reads.send(Job { what: read, answer });
        Box::pin(async move {
            sent.map_err(|_| lost())?;
            answered.await.unwrap_or_else(|_| Err(lost()))
        })
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Written, WriteError>> {
        let (answer, answered) = oneshot::channel();
        let (until, progress) = (write.until, Arc::new(Progress::default()));
        let sent = self.changes.send(Change::Write(Box::new(Job { what: write, answer }), Arc::clone(&progress)));
        Box::pin(async move {
            sent.map_err(|_| WriteError::NotDone(lost()))?;
            match tokio::time::timeout_at(until.into(), answered).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(WriteError::Unknown(lost())),
                Err(_) if progress.reach(Progress::GIVEN_UP) => Err(WriteError::NotDone(DatabaseError::TimedOut)),
                Err(_) => Err(WriteError::Unknown(DatabaseError::TimedOut)),
            }
        })
    }

    fn raise(&self, raise: Raise) -> BoxFuture<'static, Result<Raised, DatabaseError>> {
        let (answer, answered) = oneshot::channel();
        let sent = self.changes.send(Change::Raise(Job { what: raise, answer }));
        Box::pin(async move {
            sent.map_err(|_| lost())?;
            answered.await.unwrap_or_else(|_| Err(lost()))
        })
    }
}

/// A connection that is opened when it is first needed, and again after a panic.
struct Opened<'a> {
    path: &'a Path,
    open: fn(&Path) -> Result<Sqlite, DatabaseError>,
    sqlite: Option<Sqlite>,
}

impl Opened<'_> {
    /// `None`: it panicked.
    fn run<T, E: From<Refusal>>(&mut self, what: impl FnOnce(&mut Sqlite) -> Result<T, E>) -> Option<Result<T, E>> {
        let run = catch_unwind(AssertUnwindSafe(|| {
            let sqlite = match &mut self.sqlite {
                Some(sqlite) => sqlite,
                None => self.sqlite.insert((self.open)(self.path).map_err(Refusal)?),
            };
            what(sqlite)
        }));
        if run.is_err() || self.sqlite.as_ref().is_some_and(Sqlite::is_stuck) {
            self.sqlite = None;
        }
        run.ok()
    }
}

/// The file could not be opened, so nothing was done.
struct Refusal(DatabaseError);

impl From<Refusal> for DatabaseError {
    fn from(Refusal(error): Refusal) -> Self {
        error
    }
}

impl From<Refusal> for WriteError {
    fn from(Refusal(error): Refusal) -> Self {
        Self::NotDone(error)
    }
}

fn panicked() -> DatabaseError {
    DatabaseError::Failed("its driver panicked".to_owned())
}

fn read_all(path: &Path, waiting: &Receiver<Job<Read, Result<Found, DatabaseError>>>) {
    let mut opened = Opened { path, open: Sqlite::open, sqlite: None };
    while let Ok(Job { what: read, answer }) = waiting.recv() {
        let result = opened.run(|sqlite| {
            // Nobody may wait any more: this thread may have stood still.
            read.may_be_sent()?;
            let Query::Sql(load) = &*read.query else { return Err(DatabaseError::Failed("it takes SQL".to_owned())) };
            sqlite.read(load, &read.comment, &read.keys, read.until)
        });
        // Nobody waits any more: the operation has outlived its time.
        let _ = answer.send(result.unwrap_or_else(|| Err(panicked())));
    }
}

fn change_all(path: &Path, waiting: &Receiver<Change>) {
    let mut opened = Opened { path, open: Sqlite::open_to_write, sqlite: None };
    while let Ok(change) = waiting.recv() {
        match change {
            Change::Write(job, progress) => {
                let result = opened.run(|sqlite| sqlite.write(&job.what, &progress));
                // As above.
                let _ = job.answer.send(result.unwrap_or_else(|| Err(WriteError::Unknown(panicked()))));
            }
            Change::Raise(Job { what, answer }) => {
                let result = opened.run(|sqlite| sqlite.raise(&what));
                // As above.
                let _ = answer.send(result.unwrap_or_else(|| Err(panicked())));
            }
        }
    }
}

/// SQLite cannot bind a list, but it can read one as a table: `IN (:keys)` becomes a subquery of that table.
fn with_key_table(load: &str) -> String {
    let load = respell_keys(load, &["=", "any", "(", KEYS, ")"], " IN (:keys)");
    replace_keys(&load, "SELECT value FROM rarray(:keys)")
}

fn key_value(key: &Bytes) -> Value {
    match std::str::from_utf8(key) {
        Ok(text) => Value::Text(text.to_owned()),
        Err(_) => Value::Blob(key.to_vec()),
    }
}

fn as_bytes(value: ValueRef<'_>) -> Option<Bytes> {
    Some(match value {
        ValueRef::Null => return None,
        ValueRef::Integer(integer) => Bytes::from(integer.to_string()),
        ValueRef::Real(real) => Bytes::from(format!("{real:?}")),
        ValueRef::Text(bytes) | ValueRef::Blob(bytes) => Bytes::copy_from_slice(bytes),
    })
}

fn failed(error: rusqlite::Error) -> DatabaseError {
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => DatabaseError::TimedOut,
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DatabaseError::Unavailable(error.to_string()),
        // It would name the file, to clients as well.
        Some(ErrorCode::CannotOpen) => DatabaseError::Failed("the file cannot be opened".to_owned()),
        _ => DatabaseError::Failed(error.to_string()),
    }
}

fn trace(connection: &mut Connection) -> rusqlite::Result<()> {
    let events = TraceEventCodes::SQLITE_TRACE_STMT | TraceEventCodes::SQLITE_TRACE_ROW;
    let to_log = |event: TraceEvent<'_>| match event {
        TraceEvent::Stmt(_, sql) => log::trace!(target: TRACE_TARGET, "statement {sql}"),
        TraceEvent::Row(_) => log::trace!(target: TRACE_TARGET, "row"),
        _ => {}
    };
    connection.trace_v2(events, Some(to_log))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: &str = "SELECT id, body FROM things WHERE id IN (:keys)";

    fn database(schema: &str) -> (tempfile::TempDir, Sqlite) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("test.db");
        Connection::open(&path).and_then(|connection| connection.execute_batch(schema)).expect("a schema");
        let sqlite = Sqlite::open(&path).expect("opens");
        (dir, sqlite)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(5)
    }

    fn read(sqlite: &mut Sqlite, keys: &[&[u8]]) -> Vec<(String, String)> {
        let keys: Vec<Bytes> = keys.iter().map(|key| Bytes::copy_from_slice(key)).collect();
        let found = sqlite.read(LOAD, "", &keys, soon()).expect("reads");
        let text = |bytes: Bytes| String::from_utf8_lossy(&bytes).into_owned();
        let mut found: Vec<_> = found.into_iter().map(|(key, value)| (text(key), text(value))).collect();
        found.sort();
        found
    }

    #[test]
    fn what_a_writer_that_died_has_left_half_done_is_taken_back() {
        let (dir, mut sqlite) = database(
            "CREATE TABLE things (id PRIMARY KEY, body BLOB); INSERT INTO things VALUES ('a', 'before'); \
             INSERT INTO things SELECT value, zeroblob(4000) FROM json_each('[1,2,3,4,5,6,7,8,9,10]')",
        );
        let path = dir.path().join("test.db");
        let writer = Connection::open(&path).expect("opens");
        // It has no room for what it changes, so that goes to the file before it is committed.
        writer
            .execute_batch(
                "PRAGMA cache_size = 1; BEGIN; UPDATE things SET body = 'after'; \
                 UPDATE things SET body = zeroblob(5000) WHERE id != 'a'",
            )
            .expect("changes");
        let died = dir.path().join("died.db");
        for suffix in ["", "-journal"] {
            let copy = |path: &Path| format!("{}{suffix}", path.display());
            std::fs::copy(copy(&path), copy(&died)).expect("both files are there");
        }
        drop(writer);
        let mut reader = Sqlite::open(&died).expect("opens");
        assert_eq!(read(&mut reader, &[b"a"]), [("a".to_owned(), "before".to_owned())]);
        assert_eq!(read(&mut sqlite, &[b"a"]), [("a".to_owned(), "before".to_owned())]);
        assert!(reader.connection.execute("DELETE FROM things", []).is_err(), "it only reads");
    }

    #[test]
    fn keys_that_look_alike_are_not_the_same() {
        let (_dir, mut sqlite) = database(
            "CREATE TABLE things (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO things VALUES (42, 'a'), (7, NULL), (8, 'c')",
        );
        let found = read(&mut sqlite, &[b"42", b"042", b" 42", b"42.0", b"7", b"9"]);
        assert_eq!(found, [("42".to_owned(), "a".to_owned())]);
    }

    #[test]
    fn keys_of_text_and_of_raw_bytes_are_found() {
        let (_dir, mut sqlite) = database(
            "CREATE TABLE things (id PRIMARY KEY, body BLOB); INSERT INTO things VALUES ('a/b', x'00ff'), (x'ff00', 5), ('', 'e')",
        );
        assert_eq!(read(&mut sqlite, &[b"a/b"]), [("a/b".to_owned(), "\0\u{fffd}".to_owned())]);
        assert_eq!(read(&mut sqlite, &[b"\xff\x00"]), [("\u{fffd}\0".to_owned(), "5".to_owned())]);
    }

    #[test]
    fn a_query_is_checked_without_running_it() {
        let (_dir, mut sqlite) = database("CREATE TABLE things (id INTEGER PRIMARY KEY, body TEXT)");
        assert_eq!(sqlite.check(LOAD), Ok(()));
        for (load, complaint) in [
            ("SELEC id", "syntax error"),
            ("SELECT id, body FROM nothings WHERE id IN (:keys)", "no such table"),
            ("SELECT id FROM things WHERE id IN (:keys)", "two columns"),
            ("SELECT id, body, 1 FROM things WHERE id IN (:keys)", "two columns"),
            ("SELECT id, body FROM things", "needs :keys"),
            ("SELECT id, body FROM things WHERE id IN (:keys) AND body = :other", "needs :keys"),
            ("SELECT id, body FROM things WHERE id = ':keys'", "needs :keys"),
            ("DELETE FROM things WHERE id IN (:keys) RETURNING id, body", "only read"),
        ] {
            let error = sqlite.check(load).expect_err(load).to_string();
            assert!(error.contains(complaint), "{load}: {error}");
        }
    }

    #[test]
    fn a_query_that_runs_past_its_time_is_stopped() {
        let (_dir, mut sqlite) = database("CREATE TABLE things (id INTEGER PRIMARY KEY, body TEXT)");
        let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) \
                       SELECT i, i FROM n WHERE i IN (:keys) AND i < 0";
        let until = Instant::now() + Duration::from_millis(20);
        assert_eq!(sqlite.read(endless, "", &[Bytes::from("1")], until), Err(DatabaseError::TimedOut));
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("text.db");
        std::fs::write(&path, "this is no database, only a text that is long enough to be looked at as one".repeat(20))
            .expect("a file");
        let error = Sqlite::open(&path).err().expect("refused").to_string();
        assert!(error.contains("not a database"), "{error}");
    }
}
