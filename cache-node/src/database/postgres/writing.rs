//! Writes to PostgreSQL: each is one transaction that holds the row of its fence, so that nobody raises it meanwhile.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sharding::fence::Token;
use sharding::id::ShardId;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Error, Statement};

use super::super::{
    FENCES, KEY, Progress, Raise, Raised, Statements, VALUE, Write, WriteError, Written, check_written, may_be_sent,
    one_statement, other_n_shards, replace_parameter,
};
use super::{Asked, Connection, PREPARED_MAX, Postgres, failed, text};
use crate::database::{DatabaseError, Query};

/// Holds the row until the transaction ends: whoever raises the fence waits, or has done so before.
const HOLD_FENCE: &str = "SELECT 1 FROM distributed_cache_fence \
     WHERE cluster = $1 AND shard = $2 AND token = $3 FOR SHARE";
/// In one statement: puts in the rows that are missing, raises those that are lower and that no write holds, and says what
/// was there before. Nothing is touched where the cluster had another number of shards.
const RAISE: &str = "\
WITH wanted AS (SELECT * FROM unnest($3::int4[], $4::text[]) AS w(shard, token)),
other AS (SELECT n_shards FROM distributed_cache_fence WHERE cluster = $1 AND n_shards <> $2 LIMIT 1),
added AS (
    INSERT INTO distributed_cache_fence (cluster, shard, n_shards, token)
    SELECT $1, shard, $2, token FROM wanted WHERE NOT EXISTS (SELECT FROM other)
    ON CONFLICT (cluster, shard) DO NOTHING RETURNING shard),
idle AS (
    SELECT f.shard FROM distributed_cache_fence f JOIN wanted w ON w.shard = f.shard
    WHERE f.cluster = $1 AND f.token COLLATE \"C\" < w.token COLLATE \"C\" AND NOT EXISTS (SELECT FROM other)
    FOR UPDATE OF f SKIP LOCKED),
raised AS (
    UPDATE distributed_cache_fence f SET token = w.token FROM wanted w, idle
    WHERE f.cluster = $1 AND f.shard = w.shard AND idle.shard = w.shard RETURNING f.shard)
SELECT w.shard, (SELECT n_shards FROM other),
    w.shard IN (SELECT shard FROM added UNION ALL SELECT shard FROM raised), f.token
FROM wanted w LEFT JOIN distributed_cache_fence f ON f.cluster = $1 AND f.shard = w.shard";

/// A statement that writes, and how its parameters are bound.
#[derive(Clone)]
pub(super) struct Storing {
    statement: Statement,
    /// For `:key`, then `:value`: whether they are bytes.
    are_bytes: Vec<bool>,
    since: Instant,
}

/// How a transaction that is not to be committed ends.
enum Left {
    As(Written),
    Failed(WriteError),
}

impl From<Error> for Left {
    fn from(error: Error) -> Self {
        Self::Failed(refused(&error))
    }
}

impl From<DatabaseError> for Left {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(WriteError::NotDone(error))
    }
}

impl From<Asked> for Left {
    fn from(asked: Asked) -> Self {
        match asked {
            Asked::TooLate(error) => error.into(),
            Asked::Refused(error) => Self::Failed(WriteError::NotDone(failed(&error))),
        }
    }
}

impl Postgres {
    pub(super) async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let until = Instant::from_std(write.until);
        let mut connection = self.writing_connection(until).await.map_err(WriteError::NotDone)?;
        if let Some(pid) = connection.pid {
            // Before anything is announced of it.
            self.0
                .writes
                .lock()
                .expect("nothing panics while it holds the lock")
                .insert(pid, (Arc::clone(&write.region), Bytes::copy_from_slice(&write.key)));
        }
        let (postgres, progress) = (self.clone(), Arc::new(Progress::default()));
        let stage = Arc::clone(&progress);
        // On a task of its own, as a read.
        let writing = tokio::spawn(async move {
            let written = connection.write(&write, &stage).await;
            postgres.keep_writing_connection(connection, matches!(written, Err(WriteError::Unknown(_))));
            written
        });
        match timeout_at(until, writing).await {
            Ok(Ok(written)) => written,
            Ok(Err(_)) => Err(WriteError::Unknown(DatabaseError::Failed("its driver panicked".to_owned()))),
            Err(_) if progress.reach(Progress::GIVEN_UP) => Err(WriteError::NotDone(DatabaseError::TimedOut)),
            Err(_) => Err(WriteError::Unknown(DatabaseError::TimedOut)),
        }
    }

    pub(super) async fn raise(&self, raise: Raise) -> Result<Raised, DatabaseError> {
        let until = Instant::from_std(raise.until);
        let connection = self.writing_connection(until).await?;
        may_be_sent(raise.send_by, raise.until)?;
        let postgres = self.clone();
        let raising = tokio::spawn(async move {
            let raised = connection.raise(&raise).await;
            postgres.keep_writing_connection(connection, raised.is_err());
            raised
        });
        match timeout_at(until, raising).await {
            Ok(Ok(raised)) => raised,
            Ok(Err(_)) => Err(DatabaseError::Failed("its driver panicked".to_owned())),
            Err(_) => Err(DatabaseError::TimedOut),
        }
    }

    async fn writing_connection(&self, until: Instant) -> Result<Connection, DatabaseError> {
        loop {
            let Some(connection) = self.idle_to_write().pop() else { break };
            if !connection.client.is_closed() {
                return Ok(connection);
            }
            self.keep_writing_connection(connection, true);
        }
        timeout_at(until, self.connect_to_write()).await.unwrap_or(Err(DatabaseError::TimedOut))
    }

    fn idle_to_write(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.idle_to_write.lock().expect("nothing panics while it holds the lock")
    }

    /// Locks and statements end in time also when we stand still.
    async fn connect_to_write(&self) -> Result<Connection, DatabaseError> {
        let millis = self.0.write_timeout.as_millis().max(1);
        let setup = format!(
            "SET default_transaction_isolation = 'read committed'; SET default_transaction_read_only = off; \
             SET statement_timeout = {millis}; SET idle_in_transaction_session_timeout = {millis}"
        );
        let mut connection = self.connect_with(&setup).await?;
        let pid = connection.client.query_one("SELECT pg_backend_pid()", &[]).await.map_err(|error| failed(&error))?;
        connection.pid = pid.try_get(0).ok();
        Ok(connection)
    }

    fn keep_writing_connection(&self, connection: Connection, is_doubtful: bool) {
        if !is_doubtful && !connection.is_broken && !connection.client.is_closed() {
            self.idle_to_write().push(connection);
        } else if let Some(pid) = connection.pid {
            self.0.writes.lock().expect("nothing panics while it holds the lock").remove(&pid);
        }
    }
}

impl Connection {
    async fn write(&mut self, write: &Write, progress: &Progress) -> Result<Written, WriteError> {
        // What is prepared outside of the transaction costs it nothing.
        let storing = self.storing(write).await.map_err(WriteError::NotDone)?;
        may_be_sent(write.send_by, write.until).map_err(WriteError::NotDone)?;
        self.client.batch_execute("BEGIN").await.map_err(|error| WriteError::NotDone(failed(&error)))?;
        let (content, is_done) = match self.write_inside(write, &storing).await {
            Ok(content) => (content, true),
            Err(Left::As(Written::Done(content))) => (content, false),
            Err(Left::As(written)) => {
                self.roll_back().await;
                return Ok(written);
            }
            Err(Left::Failed(error)) => {
                // The table may be another than when these were prepared.
                self.prepared.remove(&write.comment);
                self.storing.remove(&(Arc::clone(&write.comment), write.value.is_some()));
                self.roll_back().await;
                return Err(error);
            }
        };
        if !is_done || !progress.reach(Progress::COMMITTING) {
            self.roll_back().await;
            return if is_done {
                Err(WriteError::NotDone(DatabaseError::TimedOut))
            } else {
                Ok(Written::Done(content))
            };
        }
        match self.client.batch_execute("COMMIT").await {
            Ok(()) => Ok(Written::Done(content)),
            // Deferred constraints, and conflicts, are found out now, and undo it.
            Err(error)
                if is_of(&error, &["23", "40"])
                    && error.code() != Some(&SqlState::T_R_STATEMENT_COMPLETION_UNKNOWN) =>
            {
                Err(refused(&error))
            }
            Err(error) => Err(WriteError::Unknown(failed(&error))),
        }
    }

    async fn write_inside(&mut self, write: &Write, storing: &Storing) -> Result<Option<Bytes>, Left> {
        let shard = i32::from(write.shard.0);
        let hold = self.fixed(HOLD_FENCE).await?;
        let token = write.token.to_string();
        let held = self.client.query_opt(&hold, &[&write.fences.cluster.as_str(), &shard, &token]).await;
        if held.map_err(|error| about_fences(&error))?.is_none() {
            return Err(Left::As(Written::Fenced));
        }
        if write.value.is_none() || !write.precondition.is_none() {
            let current = self.current(write).await?;
            if !write.is_allowed(current.as_ref()) {
                return Err(Left::As(Written::Precondition(current)));
            }
            if write.value.is_none() && current.is_none() {
                return Err(Left::As(Written::Done(None)));
            }
        }
        let wrong =
            |what| Left::Failed(WriteError::Refused(format!("the {what} is no text, and the column takes text")));
        let (key, value) = (std::str::from_utf8(&write.key), write.value.as_deref().map(std::str::from_utf8));
        let mut parameters: Vec<&(dyn ToSql + Sync)> = Vec::new();
        let (key_bytes, value_bytes) = (&write.key[..], write.value.as_deref().unwrap_or_default());
        let (key_text, value_text);
        if storing.are_bytes.first() == Some(&true) {
            parameters.push(&key_bytes);
        } else {
            key_text = key.map_err(|_| wrong("key"))?;
            parameters.push(&key_text);
        }
        match storing.are_bytes.get(1) {
            None => {}
            Some(true) => parameters.push(&value_bytes),
            Some(false) => {
                value_text = value.transpose().map_err(|_| wrong("value"))?.unwrap_or_default();
                parameters.push(&value_text);
            }
        }
        self.client.execute(&storing.statement, &parameters).await?;
        let content = self.current(write).await?;
        check_written(write, content.as_ref()).map_err(Left::Failed)?;
        Ok(content)
    }

    /// What the region's query finds of the key now.
    async fn current(&mut self, write: &Write) -> Result<Option<Bytes>, Left> {
        let Query::Sql(load) = &*write.query else {
            return Err(DatabaseError::Failed("it takes SQL".to_owned()).into());
        };
        let keys = std::slice::from_ref(&write.key);
        let known = self.prepared.get(&write.comment).filter(|prepared| prepared.may_serve(keys)).cloned();
        let prepared = match known {
            Some(prepared) => prepared,
            None => self.prepare_anew(load, &write.comment).await?,
        };
        let mut found = self.ask(&prepared, keys, || Ok(())).await?;
        Ok(found.remove(&write.key))
    }

    async fn roll_back(&mut self) {
        // A connection that does not take it is closed, and that undoes as much.
        if !matches!(timeout(ROLLBACK_TIMEOUT, self.client.batch_execute("ROLLBACK")).await, Ok(Ok(()))) {
            log::debug!("a transaction could not be rolled back; its connection is given up");
            self.is_broken = true;
        }
    }

    async fn fixed(&mut self, sql: &'static str) -> Result<Statement, DatabaseError> {
        if let Some(statement) = self.fixed.get(sql) {
            return Ok(statement.clone());
        }
        let statement = self.client.prepare(sql).await.map_err(|error| about_fences(&error))?;
        self.fixed.insert(sql, statement.clone());
        Ok(statement)
    }

    /// The statement that stores or removes, its parameters as text or as bytes; what else they are to be the server makes
    /// of them.
    async fn storing(&mut self, write: &Write) -> Result<Storing, DatabaseError> {
        let is_store = write.value.is_some();
        let known = self.storing.get(&(Arc::clone(&write.comment), is_store));
        if let Some(known) = known.filter(|known| known.since.elapsed() < PREPARED_MAX) {
            return Ok(known.clone());
        }
        let Statements::Sql { store, remove } = &*write.statements else {
            return Err(DatabaseError::Failed("it takes SQL".to_owned()));
        };
        let sql = one_statement(if is_store { store } else { remove });
        let put = |key: &str, value: &str| replace_parameter(&replace_parameter(sql, KEY, key), VALUE, value);
        let asked = self.client.prepare(&put("$1", "$2")).await.map_err(|error| failed(&error))?;
        let are_bytes: Vec<bool> = asked.params().iter().map(|of| *of == Type::BYTEA).collect();
        let cast = |at: usize| match asked.params().get(at) {
            None => String::new(),
            Some(&Type::BYTEA) => format!("${}", at + 1),
            Some(of) => format!("CAST(CAST(${} AS text) AS {})", at + 1, type_name(of)),
        };
        let sql = format!("{} /* {} */", put(&cast(0), &cast(1)), write.comment);
        let types: Vec<Type> = are_bytes.iter().map(|bytes| if *bytes { Type::BYTEA } else { Type::TEXT }).collect();
        let statement = self.client.prepare_typed(&sql, &types).await.map_err(|error| failed(&error))?;
        let storing = Storing { statement, are_bytes, since: Instant::now() };
        self.storing.insert((Arc::clone(&write.comment), is_store), storing.clone());
        Ok(storing)
    }

    async fn raise(&self, raise: &Raise) -> Result<Raised, DatabaseError> {
        let shards: Vec<i32> = raise.tokens.iter().map(|(shard, _)| i32::from(shard.0)).collect();
        let tokens: Vec<String> = raise.tokens.iter().map(|(_, token)| token.to_string()).collect();
        let (cluster, n_shards) = (raise.fences.cluster.as_str(), i32::from(raise.fences.n_shards.get()));
        let asked = self.client.query(RAISE, &[&cluster, &n_shards, &shards, &tokens]).await;
        let rows = asked.map_err(|error| about_fences(&error))?;
        let mut raised = Raised::default();
        for row in &rows {
            let broken = |error: Error| DatabaseError::Failed(text(&error));
            let (shard, is_raised): (i32, bool) = (row.try_get(0).map_err(broken)?, row.try_get(2).map_err(broken)?);
            if let Some(other) = row.try_get::<_, Option<i32>>(1).map_err(broken)? {
                return Err(other_n_shards(&raise.fences, other));
            }
            let Some((shard, wanted)) = raise.tokens.iter().find(|(wanted, _)| i32::from(wanted.0) == shard) else {
                continue;
            };
            let before = row.try_get::<_, Option<&str>>(3).map_err(broken)?.and_then(Token::parse);
            raised.take_one(*shard, *wanted, if is_raised { Some(*wanted) } else { before });
        }
        Ok(raised)
    }
}

/// Longest time for the server to undo what it has begun.
const ROLLBACK_TIMEOUT: Duration = Duration::from_secs(1);

impl Raised {
    /// As [`Raised::take`]; of a token that is none of ours nothing is known.
    fn take_one(&mut self, shard: ShardId, wanted: Token, found: Option<Token>) {
        if let Some(found) = found {
            self.take(shard, wanted, found);
        }
    }
}

/// How the server knows a type.
fn type_name(of: &Type) -> String {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    format!("{}.{}", quoted(of.schema()), quoted(of.name()))
}

fn is_of(error: &Error, classes: &[&str]) -> bool {
    error.code().is_some_and(|code| classes.iter().any(|class| code.code().starts_with(class)))
}

/// What the server says against a statement: it is about the value (a data exception, a constraint), or about the database.
fn refused(error: &Error) -> WriteError {
    if is_of(error, &["22", "23"]) { WriteError::Refused(text(error)) } else { WriteError::NotDone(failed(error)) }
}

fn about_fences(error: &Error) -> DatabaseError {
    if error.code() == Some(&SqlState::UNDEFINED_TABLE) {
        let message = format!("there is no table {FENCES}; make the one that `cache-node fence-table` prints");
        return DatabaseError::Failed(message);
    }
    failed(error)
}
