//! A shard that is given to another node: what is in memory goes there in chunks, while it is served here; then it is
//! sealed, and what has changed meanwhile follows.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use actix::Context;
use bytes::Bytes;
use sharding::epoch::Epoch;
use sharding::flight::FlightKey;
use sharding::wire::{ANSWER_FRAME_BYTES_MAX, AnswerBody, CHUNK_ENTRIES_MAX, Chunk, FailureCode, Handed};

use super::freshness::Age;
use super::{Shard, Work};
use crate::membership::Inbound;
use crate::reply::Reply;

/// A chunk has no more bytes, unless it has one entry only.
const CHUNK_BYTES: usize = 256 * 1024;
/// Most bytes of what has changed since the first chunk; the keys beyond it are said to be gone, and may take as many bytes
/// again.
const CHANGED_BYTES_MAX: usize = 8 * 1024 * 1024;
/// What an entry takes beside region, key and value, or less.
const OVERHEAD_BYTES: usize = 40;
const _: () = assert!(2 * CHANGED_BYTES_MAX < ANSWER_FRAME_BYTES_MAX);
/// Most requests that wait for a sealed shard to have another owner.
pub(super) const PARKED_MAX: usize = 4096;
/// Longest time for that.
const PARKED_FOR: Duration = Duration::from_millis(500);
/// So long a seal waits for loads in the air, so that what they bring goes along; a key that takes longer is read once more.
const LANDING_WAIT: Duration = Duration::from_millis(100);
/// What the next owner is told to wait that asks too early.
const TOO_EARLY: Duration = Duration::from_millis(10);

/// What is being handed over.
#[derive(Debug)]
pub(super) struct Handing {
    /// Which pull: whoever began another one has what has changed since noted for it.
    number: u32,
    /// The keys that there were at the first chunk, the most valuable first.
    order: Vec<FlightKey>,
    /// Keys that have changed since.
    changed: BTreeSet<FlightKey>,
}

/// How far a shard is on its way.
#[derive(Debug, Default)]
pub(super) enum Seal {
    /// It is served.
    #[default]
    Open,
    /// It begins nothing new and answers what is fresh in memory, until its writes and, for a while, its loads have landed.
    Wanted { reply: Reply, asked_at: Instant },
    /// It is served no more.
    Sealed,
}

/// A request that waits for its shard to have another owner.
#[derive(Debug)]
pub(super) struct Parked {
    work: Work,
    until: Instant,
}

impl Shard {
    /// What is known of a key is another from now on.
    pub(super) fn note_change(&mut self, region: usize, key: &Bytes) {
        if let Some(handing) = &mut self.handing {
            handing.changed.insert((region, key.clone()));
        }
    }

    /// The same of all keys that begin so.
    pub(super) fn note_changes(&mut self, region: usize, prefix: &[u8]) {
        if let Some(Handing { order, changed, .. }) = &mut self.handing {
            changed.extend(order.iter().filter(|(of, key)| *of == region && key.starts_with(prefix)).cloned());
        }
    }

    /// Whether it may begin something.
    pub(super) const fn is_open(&self) -> bool {
        matches!(self.seal, Seal::Open)
    }

    /// Whether what is in memory is its own no more.
    pub(super) const fn is_sealed(&self) -> bool {
        matches!(self.seal, Seal::Sealed)
    }

    /// Gives a part of what is in memory.
    pub(super) fn pull(&mut self, work: Work, since: Epoch, (cursor, number): (u32, u32), now: Instant) {
        self.node.note_pull();
        if since != self.serve.since || !self.is_open() {
            return work.reply.fail(FailureCode::NotApplied, TOO_EARLY, "the shard is not to be had here");
        }
        if cursor == 0 {
            let number = fastrand::u32(1..);
            self.handing = Some(Handing { number, order: self.by_value(), changed: BTreeSet::new() });
        }
        let is_of = |handing: &mut Handing| cursor == 0 || handing.number == number;
        let Some(mut handing) = self.handing.take_if(is_of) else {
            return work.reply.fail(FailureCode::NotApplied, TOO_EARLY, "a shard is pulled from its beginning");
        };
        let mut chunk = Chunk { number: handing.number, ..Chunk::default() };
        let (mut bytes, mut at) = (0, cursor as usize);
        while chunk.entries.len() < CHUNK_ENTRIES_MAX && at < handing.order.len() {
            let key = &handing.order[at];
            match self.handed(key, now) {
                Some(entry) => {
                    bytes += bytes_of(&entry);
                    if bytes > CHUNK_BYTES && !chunk.entries.is_empty() {
                        break;
                    }
                    chunk.entries.push(entry);
                }
                // Nobody can say now; in the end it is looked at again.
                None => {
                    handing.changed.insert(key.clone());
                }
            }
            at += 1;
        }
        chunk.next = u32::try_from(at).ok().filter(|_| at < handing.order.len());
        self.handing = Some(handing);
        work.reply.send(AnswerBody::Chunk(Box::new(chunk)));
    }

    fn by_value(&self) -> Vec<FlightKey> {
        let mut all: Vec<(u16, FlightKey)> = Vec::new();
        for (region, entries) in self.entries.iter().enumerate() {
            all.extend(entries.by_use().map(|(used, key)| (used, (region, key))));
        }
        all.sort_unstable_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        all.into_iter().map(|(_, key)| key).collect()
    }

    /// An entry as the next owner gets it; `None`: it gets none.
    fn handed(&self, key: &FlightKey, now: Instant) -> Option<Handed> {
        let region = &self.node.regions[key.0];
        let entry = self.entries[key.0].peek(&key.1)?;
        let lifetime = &entry.lifetime;
        let is_true = self.keys.may_serve(key) && region.trust.holds(lifetime.trusted_at()) && region.trust.is_heard();
        if !is_true || lifetime.age(now) == Age::Gone {
            return None;
        }
        Some(Handed {
            region: Bytes::copy_from_slice(region.name.as_str().as_bytes()),
            key: key.1.clone(),
            value: entry.content.map(|(value, _)| value.to_bytes()),
            age: lifetime.since_sent(now),
            fresh_for: lifetime.fresh_for(now),
            served_for: lifetime.served_for(now),
        })
    }

    /// The next owner has what was here, and asks for the rest.
    pub(super) fn want_seal(&mut self, work: Work, since: Epoch, number: u32, now: Instant) {
        self.node.note_pull();
        if self.handing.as_ref().is_none_or(|handing| handing.number != number) {
            return work.reply.fail(FailureCode::NotApplied, TOO_EARLY, "another has begun to pull the shard");
        }
        if since != self.serve.since || !self.is_open() || !self.node.is_giving(self.serve.shard, self.serve.tenure) {
            return work.reply.fail(FailureCode::NotApplied, TOO_EARLY, "the shard is not to be given away yet");
        }
        self.seal = Seal::Wanted { reply: work.reply, asked_at: now };
        // Who waits for a write of somebody else waits for the next owner as well.
        self.send_on();
    }

    /// Those who wait for a write or a fence are told to ask again; writes that were begun go on.
    pub(super) fn send_on(&mut self) {
        let waiting = self.keys.take_waiting(|_| true, |_| true);
        let shard = self.serve.shard;
        for (region, waiter) in waiting.readers {
            self.node.misdirect_reply(region, shard, waiter.reply);
        }
        for (region, writer) in waiting.writers {
            self.node.misdirect_reply(region, shard, writer.into_reply());
        }
    }

    /// Whether a seal waits for something to land.
    pub(super) const fn is_sealing(&self) -> bool {
        matches!(self.seal, Seal::Wanted { .. })
    }

    /// Whoever waits for a seal does not get it: the tenure has ended otherwise.
    pub(super) fn give_no_seal(&mut self) {
        if self.is_sealing() {
            self.seal = Seal::Open;
        }
    }

    /// Seals, once no write is in the air any more: whatever their outcome, it is known what is true. And, if that does not
    /// take long, no load: each key is read once.
    pub(super) fn seal_if_quiet(&mut self, now: Instant) {
        let Seal::Wanted { asked_at, .. } = self.seal else { return };
        if self.keys.n_writing() > 0 || (self.keys.is_loading_any() && now < asked_at + LANDING_WAIT) {
            return;
        }
        // One that the fence has refused meanwhile would be written again.
        self.send_on();
        let Seal::Wanted { reply, .. } = std::mem::replace(&mut self.seal, Seal::Sealed) else { return };
        let changed = self.handing.take().map(|handing| handing.changed).unwrap_or_default();
        let (mut chunk, mut bytes, mut bytes_removed) = (Chunk::default(), 0, 0);
        for key in changed {
            let entry = self.handed(&key, now).filter(|entry| {
                bytes + bytes_of(entry) <= CHANGED_BYTES_MAX && chunk.entries.len() < CHUNK_ENTRIES_MAX
            });
            match entry {
                Some(entry) => {
                    bytes += bytes_of(&entry);
                    chunk.entries.push(entry);
                }
                None => {
                    let region = &self.node.regions[key.0].name;
                    bytes_removed += region.as_str().len() + key.1.len() + OVERHEAD_BYTES;
                    chunk.removed.push((Bytes::copy_from_slice(region.as_str().as_bytes()), key.1));
                }
            }
        }
        // No turning back: the next owner may have it from here on, and says so to the coordinator. Before it can, this node
        // is sure to say the same to any coordinator that greets it later.
        let can_be_said = chunk.removed.len() <= CHUNK_ENTRIES_MAX && bytes_removed <= CHANGED_BYTES_MAX;
        let answer = move || match can_be_said {
            true => reply.send(AnswerBody::Chunk(Box::new(chunk))),
            false => reply.fail(FailureCode::NotApplied, TOO_EARLY, "more has changed than can be said"),
        };
        self.node.tell(Inbound::Sealed(self.serve.shard, self.serve.since), answer);
    }

    /// Has a request wait until the shard has another owner, whom this node can name then.
    pub(super) fn park(&mut self, work: Work, now: Instant) {
        if self.parked.len() < PARKED_MAX {
            self.parked.push(Parked { work, until: now + PARKED_FOR });
        } else {
            self.node.misdirect(work);
        }
    }

    /// Sends on those who have waited long enough, or all.
    pub(super) fn unpark(&mut self, now: Option<Instant>) {
        let is_over = |parked: &mut Parked| now.is_none_or(|now| parked.until <= now);
        for parked in self.parked.extract_if(.., is_over) {
            self.node.misdirect(parked.work);
        }
    }

    /// Ends when nothing is left to be answered.
    pub(super) fn end_if_done(&self, ctx: &mut Context<super::ShardActor>) {
        use actix::ActorContext as _;
        if self.is_stopping && self.keys.n_writing() == 0 && !self.keys.is_loading_any() {
            ctx.stop();
        }
    }
}

fn bytes_of(entry: &Handed) -> usize {
    entry.region.len() + entry.key.len() + entry.value.as_ref().map_or(0, Bytes::len) + OVERHEAD_BYTES
}
