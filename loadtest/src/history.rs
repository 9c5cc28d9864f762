//! Histories of reads and writes: recorded while the cluster is attacked, then checked for linearizability.
//!
//! Each key is a register of its own, whose value is a string or absent; it is absent at first. Strings that are
//! written to one key are all different, so that a read says which write it saw.
//!
//! # The file
//!
//! A history is a file of JSON objects, one a line, in the order in which the operations ended. Any other tool can
//! check it. A field that is null may be left out.
//!
//! | field         | type            | meaning                                                                    |
//! |---------------|-----------------|----------------------------------------------------------------------------|
//! | `client`      | integer         | who called; a client has one operation at a time                           |
//! | `key`         | string          | the register                                                               |
//! | `op`          | string          | `read`, `write` or `delete`; a delete writes "absent"                      |
//! | `value`       | string or null  | what is written or what was read, see below                                |
//! | `invoked_us`  | integer         | when the call began                                                        |
//! | `returned_us` | integer or null | when the caller had its answer, or gave up; null if neither ever came      |
//! | `outcome`     | string          | `ok`, `failed` or `unknown`, see below                                     |
//!
//! The value of a `write` is what is written; of a `read` that is `ok`, what was read, and null if the key was absent;
//! of all others it is null. The outcome says what is known:
//!
//! - `ok`: acknowledged. It took effect once, between `invoked_us` and `returned_us`.
//! - `failed`: surely not done, and never will be. A read that failed says nothing.
//! - `unknown`: done once at any time after `invoked_us`, even long after `returned_us`, or never.
//!
//! Times are microseconds of one monotonic clock since the history began, rounded down. Two operations of which one
//! began in the microsecond in which the other returned overlap.
//!
//! ```json
//! {"client":3,"key":"k1","op":"write","value":"w17","invoked_us":123,"returned_us":456,"outcome":"ok"}
//! {"client":1,"key":"k1","op":"read","value":null,"invoked_us":120,"returned_us":460,"outcome":"ok"}
//! {"client":2,"key":"k1","op":"delete","value":null,"invoked_us":300,"returned_us":null,"outcome":"unknown"}
//! ```

use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::check::{Checked, Failure, Malformed, Undecided, Violation, check};
pub use self::line::{ReadError, read};
pub use self::lost::{Lost, lost_writes};
pub use self::recorder::{Pending, Recorder};

mod check;
mod line;
mod lost;
mod recorder;
mod reduce;
mod search;
mod segment;
mod shrink;
#[cfg(test)]
mod tests;

/// One call of one client, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "line::Line", into = "line::Line")]
pub struct Operation {
    /// Who called.
    pub client: u64,
    /// The register.
    pub key: String,
    /// What was asked.
    pub call: Call,
    /// When the call began, in microseconds since the history began.
    pub invoked_us: u64,
    /// When the caller had its answer or gave up. Always known when the outcome is [`Outcome::Done`] or
    /// [`Outcome::Found`].
    pub returned_us: Option<u64>,
    /// What the caller knows afterwards.
    pub outcome: Outcome,
}

/// What a client asks of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// The value, please.
    Read,
    /// This is the value from now on. No other write to the key may have the same.
    Write(String),
    /// The key is absent from now on.
    Delete,
}

/// What a client knows after a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A write or delete is acknowledged: it took effect during the call.
    Done,
    /// A read answered; `None` is absent.
    Found(Option<String>),
    /// Nothing happened, nor will.
    Failed,
    /// It may have taken effect, or may later, or never. A read that ends so says nothing.
    Unknown,
}

impl Operation {
    /// When it returned, if it was acknowledged.
    fn acknowledged_us(&self) -> Option<u64> {
        match self.outcome {
            Outcome::Done | Outcome::Found(_) => self.returned_us,
            Outcome::Failed | Outcome::Unknown => None,
        }
    }

    /// What this may have stored: `Some(None)` is absent, `None` nothing at all.
    fn stored(&self) -> Option<Option<&str>> {
        match (&self.call, &self.outcome) {
            (Call::Read, _) | (_, Outcome::Failed) => None,
            (Call::Write(value), _) => Some(Some(value)),
            (Call::Delete, _) => Some(None),
        }
    }

    /// What a read saw: `Some(None)` is absent, `None` no answer.
    fn found(&self) -> Option<Option<&str>> {
        match &self.outcome {
            Outcome::Found(value) => Some(value.as_deref()),
            Outcome::Done | Outcome::Failed | Outcome::Unknown => None,
        }
    }
}

impl Outcome {
    /// Whether `call` can end so.
    fn answers(&self, call: &Call) -> bool {
        match self {
            Self::Done => *call != Call::Read,
            Self::Found(_) => *call == Call::Read,
            Self::Failed | Self::Unknown => true,
        }
    }
}

/// One line: the times in microseconds, who, what, and what came of it.
impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let returned = self.returned_us.map_or_else(|| "never".to_owned(), |us| us.to_string());
        write!(f, "{:>12}..{returned:<12} client {:<3} ", self.invoked_us, self.client)?;
        match &self.call {
            Call::Read => f.write_str("read")?,
            Call::Write(value) => write!(f, "write {value:?}")?,
            Call::Delete => f.write_str("delete")?,
        }
        match &self.outcome {
            Outcome::Done => f.write_str(": ok"),
            Outcome::Found(Some(value)) => write!(f, ": {value:?}"),
            Outcome::Found(None) => f.write_str(": absent"),
            Outcome::Failed => f.write_str(": failed"),
            Outcome::Unknown => f.write_str(": unknown"),
        }
    }
}
