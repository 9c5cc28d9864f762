//! Databases that entries are loaded from.

pub mod postgres;
pub mod redis;
pub mod sqlite;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::future::BoxFuture;
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
        if Instant::now() < self.send_by.min(self.until) { Ok(()) } else { Err(DatabaseError::TimedOut) }
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

/// Puts something else in the place of `:keys`; not of a longer name that begins so.
fn replace_keys(load: &str, by: &str) -> String {
    let mut sql = String::with_capacity(load.len() + 64);
    let mut rest = load;
    while let Some(at) = rest.find(KEYS) {
        let (before, after) = rest.split_at(at);
        sql.push_str(before);
        rest = &after[KEYS.len()..];
        let is_longer_name = rest.starts_with(|c: char| c.is_alphanumeric() || c == '_');
        sql.push_str(if is_longer_name { KEYS } else { by });
    }
    sql + rest
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
    }
}
