//! Databases that entries are loaded from.

pub mod sqlite;

use std::collections::HashMap;
use std::time::Instant;

use bytes::Bytes;

/// Why a database did not answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// It answered with an error. The message says which statement or row, and what to look at.
    #[error("{0}")]
    Failed(String),
    /// It did not answer in time.
    #[error("the query ran past its time and was stopped")]
    TimedOut,
}

/// A connection to a database; each loader thread has its own. A call blocks the thread that makes it.
pub trait Database: Send {
    /// Reads the values of these keys by a region's query, in one operation. A key that is not in the answer has no
    /// row.
    ///
    /// # Errors
    /// [`DatabaseError`] when nothing can be said of any of the keys; past `until` it is
    /// [`DatabaseError::TimedOut`].
    fn read(&mut self, load: &str, keys: &[Bytes], until: Instant) -> Result<HashMap<Bytes, Bytes>, DatabaseError>;
}
