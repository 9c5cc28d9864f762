//! Writes of a shard: what is sent to the database, and what becomes of memory and of whoever wants to write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Addr, Message};
use bytes::Bytes;
use sharding::fence::Token;
use sharding::flight::FlightKey;
use sharding::keys::{Outcome, WriteId};
use sharding::wire::{AnswerBody, Etag, Failure, FailureCode, Precondition, VALUE_BYTES_MAX};
use tokio::sync::OwnedSemaphorePermit;

use super::entries::Entry;
use super::{LEAVE_BEFORE, Shard, ShardActor, Work};
use crate::database::{DatabaseError, Written};
use crate::loading::writing::{WriteEnd, WriteFailure, WriteWish};
use crate::metrics::{LoadReason, Wrote};
use crate::reply::Reply;

/// The part of a request's time that a write leaves to be done and answered in: half of it, if that is less than
/// `write_timeout`.
const START_PART: u32 = 2;

/// What is to be written.
#[derive(Debug)]
pub(crate) struct Writing {
    /// `None`: remove the row.
    pub(crate) value: Option<Bytes>,
    pub(crate) precondition: Precondition,
    /// Its place among the values that are being written.
    pub(crate) _room: Option<OwnedSemaphorePermit>,
}

/// Who wants to write.
#[derive(Debug)]
pub(crate) struct Writer {
    writing: Writing,
    reply: Reply,
    /// It is not begun after that.
    start_by: Instant,
}

impl Writer {
    /// Whether it is too late to begin.
    pub(super) fn is_late(&self, now: Instant) -> bool {
        self.start_by <= now
    }

    pub(super) fn fail(self, failure: Failure) {
        self.into_reply().send(AnswerBody::Failed(failure));
    }

    /// To be told that nothing was begun.
    pub(super) fn into_reply(mut self) -> Reply {
        self.reply.begin(false);
        self.reply
    }
}

/// A write has come back.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct WriteEnded {
    key: FlightKey,
    write: WriteId,
    end: WriteEnd,
    writer: Writer,
}

/// Tells the shard of its write, however the write's task ends.
struct WriteTask {
    shard: Addr<ShardActor>,
    ended: Option<WriteEnded>,
}

impl Drop for WriteTask {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.shard.do_send(ended);
        }
    }
}

/// What a write that never began is told.
pub(super) fn not_begun() -> Failure {
    let message = "not written: the writes of this key before it took all its time".to_owned();
    Failure { code: FailureCode::NotApplied, retry_after: Duration::ZERO, message }
}

/// What one is told whose fence could not be raised.
pub(super) fn without_fence(failure: &Failure) -> Failure {
    Failure { code: FailureCode::NotApplied, message: format!("not written: {}", failure.message), ..*failure }
}

impl Shard {
    pub(super) fn want_write(&mut self, work: Work, writing: Writing, now: Instant) {
        let Work { region, key, deadline, reply, .. } = work;
        let timeout = self.node.regions[region].write_timeout;
        let for_write = timeout.min(deadline / START_PART) + LEAVE_BEFORE.min(deadline / super::LEAVE_PART);
        let writer = Writer { writing, reply, start_by: now + deadline.saturating_sub(for_write) };
        self.keys.handle_write((region, key), writer);
    }

    /// Sends a write to the database.
    pub(super) fn begin_write(
        &mut self,
        key: FlightKey,
        write: WriteId,
        n: u64,
        mut writer: Writer,
        me: &Addr<ShardActor>,
    ) {
        let node = Arc::clone(&self.node);
        let wish = WriteWish {
            region: key.0,
            key: key.1.clone(),
            value: writer.writing.value.clone(),
            precondition: writer.writing.precondition.clone(),
            shard: self.serve.shard,
            token: Token { since: self.serve.since, n },
            start_by: writer.start_by,
        };
        writer.reply.begin(true);
        let lost = WriteFailure::Unknown {
            database: "of the region".into(),
            error: DatabaseError::Failed("the write's task was lost".to_owned()),
        };
        let mut task = WriteTask { shard: me.clone(), ended: Some(WriteEnded { key, write, end: Err(lost), writer }) };
        actix_rt::spawn(async move {
            let end = node.regions[wish.region].write(wish).await;
            if let Some(ended) = &mut task.ended {
                ended.end = end;
            }
        });
    }

    /// Takes what a write has left into memory, and tells whoever wanted it.
    pub(super) fn end_write(&mut self, ended: WriteEnded) {
        let WriteEnded { key, write, end, mut writer } = ended;
        let node = Arc::clone(&self.node);
        let next_n = || node.next_fence_number();
        let region = &node.regions[key.0];
        let (sent, content, is_done) = match end {
            Ok((_, Written::Fenced)) if self.owns() => {
                writer.reply.begin(false);
                return self.keys.handle_fenced(&key, write, writer, next_n);
            }
            Ok((_, Written::Fenced)) => {
                // Somebody else is the owner by now, and nothing was done: whoever asked asks there.
                self.keys.handle_written(&key, write, Outcome::Known, next_n);
                return node.misdirect_reply(key.0, self.serve.shard, writer.into_reply());
            }
            Ok((sent, Written::Done(content))) => (sent, content, true),
            Ok((sent, Written::Precondition(content))) => (sent, content, false),
            Err(failure) => {
                let is_unknown = matches!(failure, WriteFailure::Unknown { .. });
                let outcome = if is_unknown { Outcome::Unknown } else { Outcome::Known };
                self.keys.handle_written(&key, write, outcome, next_n);
                region.metrics.count_write(if is_unknown { Wrote::Unknown } else { Wrote::Failed });
                return writer.reply.send(AnswerBody::Failed(failure.failure()));
            }
        };
        let lifetime = region.freshness.lifetime(sent, content.is_none(), fastrand::f64());
        let is_served = content.as_ref().is_none_or(|value| value.len() <= VALUE_BYTES_MAX);
        let content = content.map(|value| (Etag::of(&value), value)).map(|(etag, value)| (value, etag));
        let etag = content.as_ref().map(|(_, etag)| *etag);
        let entry = Entry { content, reason: LoadReason::Write, lifetime };
        let keeps = self.keys.handle_written(&key, write, Outcome::Known, next_n);
        self.note_change(key.0, &key.1);
        // The same as of a load; what is not kept is not there any more either.
        let is_kept = keeps
            && is_served
            && self.owns()
            && region.trust.holds(sent)
            && self.entries[key.0].insert(&key.1, &entry).is_ok();
        if !is_kept {
            self.entries[key.0].remove(&key.1);
        }
        region.metrics.count_write(if is_done { Wrote::Done } else { Wrote::Precondition });
        writer.reply.send(if is_done {
            AnswerBody::Written(etag)
        } else {
            let message = "not written: what If-Match or If-None-Match demands does not hold of the value".to_owned();
            AnswerBody::Failed(Failure { code: FailureCode::Precondition, retry_after: Duration::ZERO, message })
        });
    }
}
