//! Records a history while clients work.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::{Call, Operation, Outcome};

/// Records what clients do, in a file and in memory. All threads share one.
///
/// The clock is the machine's: the history is of real processes, so all clients must be in this one.
#[derive(Debug)]
pub struct Recorder {
    started: Instant,
    log: Mutex<Log>,
}

/// A call that has begun. Dropped without an [`end`](Self::end), as when its thread panics or its task is cancelled,
/// its outcome is unknown.
#[derive(Debug)]
#[must_use = "a call that is dropped without an end counts as unknown"]
pub struct Pending<'a> {
    recorder: &'a Recorder,
    /// `None` once it is recorded.
    operation: Option<Operation>,
}

#[derive(Debug)]
struct Log {
    file: BufWriter<File>,
    operations: Vec<Operation>,
    /// The first error of the file; nothing is written after it.
    broken: Option<io::Error>,
}

impl Recorder {
    /// Starts a history in a new file; one that exists is replaced.
    ///
    /// # Errors
    ///
    /// The file cannot be created.
    pub fn create(path: &Path) -> io::Result<Self> {
        let log = Log { file: BufWriter::new(File::create(path)?), operations: Vec::new(), broken: None };
        Ok(Self { started: Instant::now(), log: Mutex::new(log) })
    }

    /// Notes that a call begins. Must come before anything is sent.
    pub fn begin(&self, client: u64, key: &str, call: Call) -> Pending<'_> {
        let key = key.to_owned();
        // The last thing before the call: an earlier time would be right too, but would say less.
        let invoked_us = self.now_us();
        let operation = Operation { client, key, call, invoked_us, returned_us: None, outcome: Outcome::Unknown };
        Pending { recorder: self, operation: Some(operation) }
    }

    /// The operations in the order of their ends, once they are all in the file.
    ///
    /// It takes the recorder, so no call can still be open: a write that is open and missing would look like a value
    /// from nowhere. Clients that share it by `Arc` have ended when `Arc::into_inner` gives it back.
    ///
    /// # Errors
    ///
    /// The file could not be written.
    pub fn finish(self) -> io::Result<Vec<Operation>> {
        let mut log = self.log.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = log.broken {
            return Err(error);
        }
        log.file.flush()?;
        Ok(log.operations)
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).expect("a history is shorter than 500,000 years")
    }

    /// Nothing panics half way through a line, so a poisoned log is a good one.
    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pending<'_> {
    /// Notes that the call has ended, now.
    ///
    /// # Panics
    ///
    /// The outcome is not one of the call: a read is [`Outcome::Found`], a write or delete [`Outcome::Done`].
    pub fn end(mut self, outcome: Outcome) {
        let now_us = self.recorder.now_us();
        let mut operation = self.operation.take().expect("a call ends once: this takes it");
        assert!(outcome.answers(&operation.call), "{:?} cannot end as {outcome:?}", operation.call);
        operation.returned_us = Some(now_us);
        operation.outcome = outcome;
        self.recorder.log().append(operation);
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        if let Some(operation) = self.operation.take() {
            self.recorder.log().append(operation);
        }
    }
}

impl Log {
    fn append(&mut self, operation: Operation) {
        if self.broken.is_none() {
            self.broken = self.write(&operation).err();
        }
        self.operations.push(operation);
    }

    fn write(&mut self, operation: &Operation) -> io::Result<()> {
        serde_json::to_writer(&mut self.file, operation)?;
        self.file.write_all(b"\n")
    }
}
