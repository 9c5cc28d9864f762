//! Databases that entries are loaded from and written to.

pub mod postgres;
pub mod redis;
pub mod sqlite;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use sharding::fence::Token;
use sharding::id::{ClusterName, NShards, ShardId};
use sharding::wire::{Etag, Precondition};
use tokio::sync::mpsc::UnboundedSender;

use crate::loading::spending::HeldSlot;

/// Values by their keys; a key that is not there has no row.
pub type Found = HashMap<Bytes, Bytes>;

/// Why a database did not answer. No message holds a password.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// It answered with an error. The message says which statement or row, and what to look at.
    #[error("{0}")]
    Failed(String),
    /// It cannot be reached, or does not serve now.
    #[error("{0}")]
    Unavailable(String),
    /// It did not answer in time.
    #[error("the query ran past its time and was stopped")]
    TimedOut,
}

/// How a region's values are found by their keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// A statement with the parameter `:keys`, of two columns: the key, then the value.
    Sql(String),
    /// A string, or a field of a hash.
    Redis {
        /// The name of the key in Redis: what comes before ours, and after it.
        key: (String, String),
        /// The field; none for a string.
        field: Option<String>,
    },
}

/// One operation: a batch of keys to be read. Dropped when the database has answered it, or will never see it: it holds a
/// slot of the budget until then.
#[derive(Debug)]
pub struct Read {
    /// The region's query.
    pub query: Arc<Query>,
    /// For people who look at the database: what stands in a comment of the statement.
    pub comment: Arc<str>,
    /// Each once.
    pub keys: Vec<Bytes>,
    /// After that it is not sent any more: who waits for the slot does not count with it.
    pub send_by: Instant,
    /// When it is to be stopped.
    pub until: Instant,
    /// Its slot, where there is a budget.
    pub(crate) _slot: Option<HeldSlot>,
}

impl Read {
    /// Whether it may be sent at this moment. To be asked just before.
    fn may_be_sent(&self) -> Result<(), DatabaseError> {
        may_be_sent(self.send_by, self.until)
    }
}

fn may_be_sent(send_by: Instant, until: Instant) -> Result<(), DatabaseError> {
    if Instant::now() < send_by.min(until) { Ok(()) } else { Err(DatabaseError::TimedOut) }
}

/// How a region is written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statements {
    /// Statements with the parameters `:key` and `:value`, and `:key` alone.
    Sql {
        /// Writes a row, whether it is there or not.
        store: String,
        /// Removes it.
        remove: String,
    },
    /// The same key that is read.
    Redis,
}

/// Where the fences of a cluster stand, in each database that it writes to: a table, in Redis a hash.
pub const FENCES: &str = "distributed_cache_fence";

/// The table of fences, as SQL that PostgreSQL and SQLite take. Redis needs none.
pub const FENCE_TABLE: &str = "\
CREATE TABLE distributed_cache_fence (
    cluster text NOT NULL,
    shard integer NOT NULL,
    n_shards integer NOT NULL,
    token text NOT NULL,
    PRIMARY KEY (cluster, shard)
);
";

/// Whose fences: rows of another cluster, or of another number of shards, are none of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fences {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// Its shards.
    pub n_shards: NShards,
}

/// One operation: a key's value is written, or its row removed, while the fence of its shard stands.
#[derive(Debug)]
pub struct Write {
    /// How the region is read: what a write leaves is read by it in the same transaction.
    pub query: Arc<Query>,
    /// How it is written to.
    pub statements: Arc<Statements>,
    /// As of [`Read`].
    pub comment: Arc<str>,
    /// The region's name.
    pub region: Arc<str>,
    /// The key.
    pub key: Bytes,
    /// The value; `None`: remove the row.
    pub value: Option<Bytes>,
    /// What must hold of the value that is there.
    pub precondition: Precondition,
    /// Whose fence.
    pub fences: Arc<Fences>,
    /// The key's shard.
    pub shard: ShardId,
    /// What its fence must be.
    pub token: Token,
    /// As of [`Read`].
    pub send_by: Instant,
    /// When its outcome is given up.
    pub until: Instant,
    /// As of [`Read`].
    pub(crate) _slot: Option<HeldSlot>,
}

impl Write {
    /// Whether the value that is there lets it be done.
    fn is_allowed(&self, current: Option<&Bytes>) -> bool {
        self.precondition.holds(current.map(|value| Etag::of(value)))
    }
}

/// What became of a write that the database has answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is done; a reader gets this from now on.
    Done(Option<Bytes>),
    /// It is not: its precondition does not hold of this.
    Precondition(Option<Bytes>),
    /// It is not: the fence is another.
    Fenced,
}

/// Why nothing is known to have been written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// It was surely not done.
    #[error("{0}")]
    NotDone(DatabaseError),
    /// It was surely not done: the database does not take this value or key.
    #[error("{0}")]
    Refused(String),
    /// It may have been done, or may be later.
    #[error("{0}")]
    Unknown(DatabaseError),
}

/// One operation: fences of many shards are raised.
#[derive(Debug)]
pub struct Raise {
    /// Whose.
    pub fences: Arc<Fences>,
    /// To what; no shard twice.
    pub tokens: Vec<(ShardId, Token)>,
    /// As of [`Read`].
    pub send_by: Instant,
    /// As of [`Read`].
    pub until: Instant,
    /// As of [`Read`].
    pub(crate) _slot: Option<HeldSlot>,
}

/// What became of fences that were to be raised. Of those that are in neither list somebody holds the row.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Raised {
    /// They are what they were to be.
    pub raised: Vec<ShardId>,
    /// They are higher.
    pub higher: Vec<(ShardId, Token)>,
}

impl Raised {
    /// Takes one in, as it was found: its token, once it is not being changed.
    fn take(&mut self, shard: ShardId, wanted: Token, found: Token) {
        match found.cmp(&wanted) {
            std::cmp::Ordering::Equal => self.raised.push(shard),
            std::cmp::Ordering::Greater => self.higher.push((shard, found)),
            std::cmp::Ordering::Less => {}
        }
    }
}

/// The fences in the database are those of the same cluster with another number of shards.
fn other_n_shards(fences: &Fences, found: impl std::fmt::Display) -> DatabaseError {
    let (cluster, n_shards) = (fences.cluster.as_str(), fences.n_shards.get());
    DatabaseError::Failed(format!(
        "the fences of cluster {cluster} are of {found} shards, not of {n_shards}; when no node of the old number runs, \
         remove them (DELETE FROM {FENCES} WHERE cluster = '{cluster}'; in Redis DEL {FENCES}:{cluster})"
    ))
}

/// What is read back after a write must be what it was for; else it is undone.
fn check_written(write: &Write, content: Option<&Bytes>) -> Result<(), WriteError> {
    let why = match (&write.value, content) {
        // A key that would be written as something else than it is read by.
        (Some(_), None) => "what was written cannot be read back under this key: write the key as the database does",
        (None, Some(_)) => "the row is still there after it was removed",
        (Some(_), Some(_)) | (None, None) => return Ok(()),
    };
    Err(WriteError::Refused(format!("{why}; it was undone")))
}

/// Where a transaction is that whoever waits for it may give up.
#[derive(Debug, Default)]
pub struct Progress(AtomicU8);

impl Progress {
    const OPEN: u8 = 0;
    /// Its COMMIT is on the way: its outcome is the database's.
    const COMMITTING: u8 = 1;
    /// It will not be committed.
    const GIVEN_UP: u8 = 2;

    /// Whether it was open until now.
    fn reach(&self, stage: u8) -> bool {
        self.0.compare_exchange(Self::OPEN, stage, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// A database. Clones of what it holds live in the futures, so many reads may be under way.
pub trait Database: Send + Sync + 'static {
    /// Reads values in one operation.
    ///
    /// # Errors
    /// [`DatabaseError`] when nothing can be said of any of the keys; past [`Read::until`] it is
    /// [`DatabaseError::TimedOut`], and the database has been told to stop.
    fn read(&self, read: Read) -> BoxFuture<'static, Result<Found, DatabaseError>>;

    /// Writes a value or removes a row in one operation, which either is done whole or not at all.
    ///
    /// # Errors
    /// [`WriteError`]; past [`Write::until`] it may be [`WriteError::Unknown`].
    fn write(&self, write: Write) -> BoxFuture<'static, Result<Written, WriteError>>;

    /// Raises fences in one operation.
    ///
    /// # Errors
    /// [`DatabaseError`] when it is not known what they are; they may have been raised.
    fn raise(&self, raise: Raise) -> BoxFuture<'static, Result<Raised, DatabaseError>>;
}

/// What a database says of changes that others have made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// It is listened to from now on. What was read before may have changed unheard.
    Begun,
    /// This key of the region at this position among the announcer's has changed.
    Key(usize, Bytes),
    /// Anything in that region may have changed.
    Region(usize),
    /// Anything may have changed.
    All,
    /// Something in a region that is none of ours.
    Other(String),
}

/// A database that says what changes in it.
pub trait Announcer: Send + Sync + 'static {
    /// Listens until the connection is lost, and passes on what is said of these regions (name and query of each).
    fn listen(
        &self,
        regions: Vec<(String, Arc<Query>)>,
        tell: UnboundedSender<Announcement>,
    ) -> BoxFuture<'static, DatabaseError>;
}

/// The parameter of an SQL query, where the keys go.
const KEYS: &str = ":keys";
/// The parameters of a statement that writes.
const KEY: &str = ":key";
const VALUE: &str = ":value";

/// Puts something else in the place of `:keys`; not of a longer name that begins so.
fn replace_keys(load: &str, by: &str) -> String {
    replace_parameter(load, KEYS, by)
}

/// Puts something else in the place of a parameter; not of a longer name that begins so, nor of a type that a colon more
/// makes of it.
fn replace_parameter(sql: &str, parameter: &str, by: &str) -> String {
    let mut replaced = String::with_capacity(sql.len() + 64);
    let mut rest = sql;
    while let Some(at) = rest.find(parameter) {
        let (before, after) = rest.split_at(at);
        replaced.push_str(before);
        rest = &after[parameter.len()..];
        let is_longer_name = rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        let is_type = before.ends_with(':');
        replaced.push_str(if is_longer_name || is_type { parameter } else { by });
    }
    replaced + rest
}

/// What of the statements that write can be seen without a database.
///
/// # Errors
/// What is wrong with them.
pub(crate) fn check_statements(store: &str, remove: &str) -> Result<(), String> {
    let has = |sql: &str, parameter| replace_parameter(sql, parameter, "") != sql;
    if !has(store, KEY) || !has(store, VALUE) {
        return Err(
            "store needs :key and :value, as in INSERT INTO things VALUES (:key, :value) ON CONFLICT …".to_owned()
        );
    }
    if !has(remove, KEY) || has(remove, VALUE) {
        return Err("remove needs :key, and no :value, as in DELETE FROM things WHERE id = :key".to_owned());
    }
    match [("store", store), ("remove", remove)].into_iter().find(|(_, sql)| one_statement(sql).contains(';')) {
        Some((name, _)) => Err(format!("{name} is one statement")),
        None => Ok(()),
    }
}

/// Where `IN (:keys)` stands, writes `= ANY(:keys)`, or the other way round: both may be said to every database.
fn respell_keys(load: &str, from: &[&str], to: &str) -> String {
    let mut sql = String::with_capacity(load.len());
    let mut rest = load;
    while let Some((before, after)) = find_words(rest, from) {
        sql.push_str(before);
        sql.push_str(to);
        rest = after;
    }
    sql + rest
}

/// The text before and after the first place where these words follow each other, in any case and with any white space
/// between them.
fn find_words<'a>(text: &'a str, words: &[&str]) -> Option<(&'a str, &'a str)> {
    let follows = |at: usize| {
        let mut rest = &text[at..];
        for word in words {
            rest = rest.trim_start();
            let head = rest.get(..word.len()).filter(|head| head.eq_ignore_ascii_case(word))?;
            rest = &rest[head.len()..];
        }
        Some((&text[..at], rest))
    };
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let is_midway = |at: usize| words[0].starts_with(is_word) && text[..at].ends_with(is_word);
    let is_start = |at: usize| !is_midway(at) && !text[at..].starts_with(char::is_whitespace);
    text.char_indices().map(|(at, _)| at).filter(|at| is_start(*at)).find_map(follows)
}

/// A statement without the semicolon at its end.
fn one_statement(load: &str) -> &str {
    load.trim_end().trim_end_matches(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_that_write_name_what_they_write() {
        let (store, remove) = ("INSERT INTO t VALUES (:key, :value)", "DELETE FROM t WHERE id = :key;");
        assert_eq!(check_statements(store, remove), Ok(()));
        for (store, remove, complaint) in [
            ("INSERT INTO t VALUES (:key, 1)", remove, "store needs"),
            ("INSERT INTO t VALUES (:keys, :value)", remove, "store needs"),
            (store, "DELETE FROM t", "remove needs"),
            (store, "DELETE FROM t WHERE id = :key AND v = :value", "remove needs"),
            (store, "DELETE FROM t WHERE id = :key; SELECT 1", "remove is one"),
        ] {
            let error = check_statements(store, remove).expect_err("refused");
            assert!(error.starts_with(complaint), "{error}");
        }
    }

    #[test]
    fn keys_are_asked_for_in_either_way() {
        for (load, expected) in [
            ("WHERE id IN (:keys)", "WHERE id = ANY(:keys)"),
            ("WHERE id in(\n :keys )", "WHERE id = ANY(:keys)"),
            ("WHERE a IN (1) AND admin IN (:keys)", "WHERE a IN (1) AND admin = ANY(:keys)"),
            ("WHERE id = ANY(:keys)", "WHERE id = ANY(:keys)"),
            ("WHERE id=any(:keys)", "WHERE id=any(:keys)"),
            ("WHERE ä_in (:keys)", "WHERE ä_in (:keys)"),
        ] {
            assert_eq!(respell_keys(load, &["in", "(", KEYS, ")"], "= ANY(:keys)"), expected);
        }
        let sql = respell_keys("WHERE id = any ( :keys )", &["=", "any", "(", KEYS, ")"], "IN (:keys)");
        assert_eq!(sql, "WHERE id IN (:keys)");
        assert_eq!(respell_keys("id=any(:keys)", &["=", "any", "(", KEYS, ")"], " IN (:keys)"), "id IN (:keys)");
        assert_eq!(replace_keys(":keys :keys2 :keys", "$1"), "$1 :keys2 $1");
        assert_eq!(replace_parameter(":key :keys 'a'::key (:key)", KEY, "$1"), "$1 :keys 'a'::key ($1)");
    }
}
