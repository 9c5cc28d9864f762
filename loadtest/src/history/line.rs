//! The file format: one JSON object a line.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Call, Operation, Outcome};

/// Why a file is not a history.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("the history cannot be read: {0}")]
    Io(#[from] io::Error),
    /// A line is not an operation.
    #[error("line {line} is not an operation: {source}")]
    Line {
        /// Counted from 1.
        line: usize,
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// An operation as it is written, before it is known to make sense.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
    client: u64,
    key: String,
    op: Op,
    value: Option<String>,
    invoked_us: u64,
    returned_us: Option<u64>,
    outcome: Word,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Op {
    Read,
    Write,
    Delete,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum Word {
    Ok,
    Failed,
    Unknown,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LineError {
    #[error("a write needs a value")]
    WriteWithoutValue,
    #[error("only a write, and a read that is ok, can have a value")]
    ValueWithoutMeaning,
    #[error("an operation that is ok needs returned_us")]
    OkWithoutReturn,
    #[error("returned_us is before invoked_us")]
    ReturnBeforeCall,
}

/// Reads a history from a file.
///
/// # Errors
///
/// The file cannot be read, or a line is not an operation: the line is named.
pub fn read(path: &Path) -> Result<Vec<Operation>, ReadError> {
    let lines = BufReader::new(File::open(path)?).lines();
    let parse = |(line, text): (usize, io::Result<String>)| {
        serde_json::from_str(&text?).map_err(|source| ReadError::Line { line, source })
    };
    (1..).zip(lines).map(parse).collect()
}

impl From<Operation> for Line {
    fn from(operation: Operation) -> Self {
        let Operation { client, key, call, invoked_us, returned_us, outcome } = operation;
        let (op, written) = match call {
            Call::Read => (Op::Read, None),
            Call::Write(value) => (Op::Write, Some(value)),
            Call::Delete => (Op::Delete, None),
        };
        let (outcome, found) = match outcome {
            Outcome::Done => (Word::Ok, None),
            Outcome::Found(value) => (Word::Ok, value),
            Outcome::Failed => (Word::Failed, None),
            Outcome::Unknown => (Word::Unknown, None),
        };
        Self { client, key, op, value: written.or(found), invoked_us, returned_us, outcome }
    }
}

impl TryFrom<Line> for Operation {
    type Error = LineError;

    fn try_from(line: Line) -> Result<Self, LineError> {
        let Line { client, key, op, value, invoked_us, returned_us, outcome } = line;
        if outcome == Word::Ok && returned_us.is_none() {
            return Err(LineError::OkWithoutReturn);
        }
        if returned_us.is_some_and(|returned_us| returned_us < invoked_us) {
            return Err(LineError::ReturnBeforeCall);
        }
        let (call, found) = match (op, value) {
            (Op::Write, Some(value)) => (Call::Write(value), None),
            (Op::Write, None) => return Err(LineError::WriteWithoutValue),
            (Op::Read, found) if outcome == Word::Ok => (Call::Read, Some(found)),
            (Op::Read | Op::Delete, Some(_)) => return Err(LineError::ValueWithoutMeaning),
            (Op::Read, None) => (Call::Read, None),
            (Op::Delete, None) => (Call::Delete, None),
        };
        let outcome = match outcome {
            Word::Ok => found.map_or(Outcome::Done, Outcome::Found),
            Word::Failed => Outcome::Failed,
            Word::Unknown => Outcome::Unknown,
        };
        Ok(Self { client, key, call, invoked_us, returned_us, outcome })
    }
}
