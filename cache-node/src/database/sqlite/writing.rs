//! Writes to SQLite: each is one transaction that holds the file's lock from its beginning.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rusqlite::{ErrorCode, OptionalExtension as _, named_params};
use sharding::fence::Token;

use super::super::{
    FENCES, Progress, Raise, Raised, Statements, Write, WriteError, Written, check_written, may_be_sent, other_n_shards,
};
use super::{Query, Sqlite, failed, key_value};
use crate::database::DatabaseError;

/// SQLite counts the time that it waits for a lock in a number of 31 bits.
const BUSY_MAX: Duration = Duration::from_secs(3600);

/// How a transaction that is not to be committed ends.
enum Left {
    /// Its result is known all the same.
    As(Written),
    Failed(WriteError),
}

impl From<WriteError> for Left {
    fn from(error: WriteError) -> Self {
        Self::Failed(error)
    }
}

impl From<DatabaseError> for Left {
    fn from(error: DatabaseError) -> Self {
        Self::Failed(WriteError::NotDone(error))
    }
}

impl Sqlite {
    /// Checks the statements by which a region is written to, without running them, and that there is a table of fences.
    ///
    /// # Errors
    /// [`DatabaseError::Failed`] when they do not parse, or the table is missing.
    pub fn check_writes(&mut self, store: &str, remove: &str) -> Result<(), DatabaseError> {
        for sql in [store, remove] {
            self.connection.prepare(sql).map_err(failed)?;
        }
        let table = format!("SELECT cluster, shard, n_shards, token FROM {FENCES}");
        self.connection.prepare(&table).map(drop).map_err(|error| without_fences(&error.to_string()))
    }

    /// See [`crate::database::Database::write`].
    ///
    /// # Errors
    /// [`WriteError`].
    pub fn write(&mut self, write: &Write, progress: &Progress) -> Result<Written, WriteError> {
        may_be_sent(write.send_by, write.until).map_err(WriteError::NotDone)?;
        self.begin(write.until).map_err(WriteError::NotDone)?;
        match self.write_inside(write) {
            Ok(content) if progress.reach(Progress::COMMITTING) => self.commit().map(|()| Written::Done(content)),
            Ok(_) => {
                self.roll_back();
                Err(WriteError::NotDone(DatabaseError::TimedOut))
            }
            Err(left) => {
                self.roll_back();
                match left {
                    Left::As(written) => Ok(written),
                    Left::Failed(error) => Err(error),
                }
            }
        }
    }

    fn write_inside(&mut self, write: &Write) -> Result<Option<Bytes>, Left> {
        if self.token(&write.fences, write.shard.0)? != Some(write.token.to_string()) {
            return Err(Left::As(Written::Fenced));
        }
        let (Query::Sql(load), Statements::Sql { store, remove }) = (&*write.query, &*write.statements) else {
            return Err(DatabaseError::Failed("it takes SQL".to_owned()).into());
        };
        if write.value.is_none() || !write.precondition.is_none() {
            let current = self.current(load, write)?;
            if !write.is_allowed(current.as_ref()) {
                return Err(Left::As(Written::Precondition(current)));
            }
            if write.value.is_none() && current.is_none() {
                return Err(Left::As(Written::Done(None)));
            }
        }
        let key = key_value(&write.key);
        let done = match &write.value {
            Some(value) => {
                let mut statement = self.prepare_plain(store, &write.comment)?;
                statement.execute(named_params! { ":key": key, ":value": key_value(value) })
            }
            None => {
                let mut statement = self.prepare_plain(remove, &write.comment)?;
                statement.execute(named_params! { ":key": key })
            }
        };
        done.map_err(refused)?;
        let content = self.current(load, write)?;
        check_written(write, content.as_ref())?;
        Ok(content)
    }

    fn current(&mut self, load: &str, write: &Write) -> Result<Option<Bytes>, DatabaseError> {
        let mut found = self.read(load, &write.comment, std::slice::from_ref(&write.key), write.until)?;
        Ok(found.remove(&write.key))
    }

    fn token(&self, fences: &super::super::Fences, shard: u16) -> Result<Option<String>, DatabaseError> {
        let sql = format!("SELECT token FROM {FENCES} WHERE cluster = ?1 AND shard = ?2");
        let mut statement = self.connection.prepare_cached(&sql).map_err(about_fences)?;
        statement.query_row((fences.cluster.as_str(), shard), |row| row.get(0)).optional().map_err(about_fences)
    }

    /// See [`crate::database::Database::raise`].
    ///
    /// # Errors
    /// [`DatabaseError`].
    pub fn raise(&mut self, raise: &Raise) -> Result<Raised, DatabaseError> {
        may_be_sent(raise.send_by, raise.until)?;
        self.begin(raise.until)?;
        let raised = self.raise_inside(raise);
        match raised {
            Ok(raised) => self.commit().map(|()| raised).map_err(|error| match error {
                WriteError::NotDone(error) | WriteError::Unknown(error) => error,
                WriteError::Refused(why) => DatabaseError::Failed(why),
            }),
            Err(error) => {
                self.roll_back();
                Err(error)
            }
        }
    }

    fn raise_inside(&self, raise: &Raise) -> Result<Raised, DatabaseError> {
        let (cluster, n_shards) = (raise.fences.cluster.as_str(), raise.fences.n_shards.get());
        let sql = format!("SELECT n_shards FROM {FENCES} WHERE cluster = ?1 AND n_shards <> ?2 LIMIT 1");
        let other: Option<i64> =
            self.connection.query_row(&sql, (cluster, n_shards), |row| row.get(0)).optional().map_err(about_fences)?;
        if let Some(other) = other {
            return Err(other_n_shards(&raise.fences, other));
        }
        let sql = format!(
            "INSERT INTO {FENCES} (cluster, shard, n_shards, token) VALUES (?1, ?2, ?3, ?4) \
             ON CONFLICT (cluster, shard) DO UPDATE SET token = max(token, excluded.token) RETURNING token"
        );
        let mut statement = self.connection.prepare_cached(&sql).map_err(failed)?;
        let mut raised = Raised::default();
        for (shard, wanted) in &raise.tokens {
            let row = (cluster, shard.0, n_shards, wanted.to_string());
            let found: String = statement.query_row(row, |row| row.get(0)).map_err(failed)?;
            let found = Token::parse(&found).ok_or_else(|| broken_token(shard.0))?;
            raised.take(*shard, *wanted, found);
        }
        Ok(raised)
    }

    fn begin(&mut self, until: Instant) -> Result<(), DatabaseError> {
        self.stop_at(until)?;
        let wait = until.saturating_duration_since(Instant::now()).min(BUSY_MAX);
        self.connection.busy_timeout(wait).map_err(failed)?;
        self.connection.execute_batch("BEGIN IMMEDIATE").map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => DatabaseError::TimedOut,
            _ => failed(error),
        })
    }

    fn commit(&self) -> Result<(), WriteError> {
        let Err(error) = self.connection.execute_batch("COMMIT") else { return Ok(()) };
        let is_io = error.sqlite_error_code() == Some(ErrorCode::SystemIoFailure);
        let error = failed(error);
        // Still inside of it, so nothing was done. Else SQLite has ended it by itself, one way or the other.
        if self.roll_back() && !is_io { Err(WriteError::NotDone(error)) } else { Err(WriteError::Unknown(error)) }
    }

    /// Whether a transaction was left open that could not be undone: the connection is not to be used again.
    pub(super) fn is_stuck(&self) -> bool {
        !self.connection.is_autocommit()
    }

    /// Whether there was something to undo.
    fn roll_back(&self) -> bool {
        !self.connection.is_autocommit() && self.connection.execute_batch("ROLLBACK").is_ok()
    }
}

/// What SQLite says against a statement about fences.
fn about_fences(error: rusqlite::Error) -> DatabaseError {
    match failed(error) {
        DatabaseError::Failed(message) if message.contains(&format!("no such table: {FENCES}")) => {
            without_fences(&message)
        }
        error => error,
    }
}

fn without_fences(message: &str) -> DatabaseError {
    DatabaseError::Failed(format!("{message}; make the table that `cache-node fence-table` prints"))
}

pub(super) fn broken_token(shard: u16) -> DatabaseError {
    DatabaseError::Failed(format!("the fence of shard {shard} is none of ours; look at the table {FENCES}"))
}

/// What the database says against a statement: it is about the value, or about the database.
fn refused(error: rusqlite::Error) -> WriteError {
    match error.sqlite_error_code() {
        Some(ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch | ErrorCode::TooBig) => {
            WriteError::Refused(error.to_string())
        }
        _ => WriteError::NotDone(failed(error)),
    }
}

#[cfg(test)]
mod tests;
