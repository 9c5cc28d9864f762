//! What a node does with the shards that it owns: it performs what `Keys` decides, as a shard's actor does.

mod answers;
mod handing;
mod manners;
mod taking;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use sharding::epoch::Epoch;
use sharding::fence::{Numbers, Token};
use sharding::flight::{FlightId, FlightKey};
use sharding::id::ShardId;
use sharding::keys::{Effect, Keys, Outcome, Waiting, WriteId};
use sharding::membership::After;
use sharding::ownership::Ownership;
use sharding::times::Now;

use crate::database::{Operation, Value};
use crate::world::{KEYS_PER_SHARD, N_KEYS, N_SHARDS};
pub(crate) use handing::{Chunk, ReplyTo, Wanted};
use handing::{Handing, Seal};
pub(crate) use manners::Manners;
use taking::Incoming;
pub(crate) use taking::NOT_PULLED_MAX;

/// A write that is not answered within this time has an unknown outcome; it starts only if the lease lasts longer.
const WRITE_TIMEOUT: Duration = Duration::from_millis(400);
const LOAD_TIMEOUT: Duration = Duration::from_secs(2);
/// A raise is sent again after this time.
const RAISE_PERIOD: Duration = Duration::from_millis(300);
/// Who has waited for so long is told that it takes too long.
const PATIENCE: Duration = Duration::from_secs(1);
/// The one region, which is written to in the one database.
const REGION: usize = 0;
const FENCE: usize = 0;
/// Names of the keys.
static NAMES: [u8; N_KEYS] = names();

const fn names() -> [u8; N_KEYS] {
    let mut names = [0; N_KEYS];
    let mut at = 1;
    while at < N_KEYS {
        names[at] = names[at - 1] + 1;
        at += 1;
    }
    names
}

fn name(key: usize) -> FlightKey {
    (REGION, Bytes::from_static(&NAMES[key..=key]))
}

fn number((_, name): &FlightKey) -> usize {
    usize::from(name[0])
}

/// Whom to answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asker {
    pub(crate) client: usize,
    pub(crate) request: u64,
    /// It is not to be given what has an earlier place in the database.
    pub(crate) floor: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask {
    Get,
    /// Get it past its owner; whoever is the owner serves it like any other.
    PassThrough,
    Put(Value),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Told {
    Value {
        value: Value,
        /// From the database, by a node that is not the owner.
        passed: bool,
    },
    Done,
    /// Nothing was done.
    Misdirected,
    /// Nothing was done, and will be.
    NotApplied,
    Unknown,
    Failed,
}

#[derive(Debug)]
struct Writer {
    asker: Asker,
    value: Value,
}

/// A shard, from when it is served until it is no more.
#[derive(Debug)]
struct Served {
    shard: usize,
    since: Epoch,
    keys: Keys<Asker, Writer>,
    entries: [Option<Value>; KEYS_PER_SHARD],
    handing: Option<Handing>,
    seal: Seal,
}

/// What the answer to an operation is for.
#[derive(Debug)]
enum Purpose {
    Load { key: usize, since: Epoch, flight: FlightId },
    Write { key: usize, since: Epoch, write: WriteId, writer: Writer },
    Raise(Vec<(usize, Token)>),
    Pass { key: usize, askers: Vec<Asker> },
}

#[derive(Debug)]
struct Pending {
    until: Duration,
    purpose: Purpose,
}

/// What the node sends.
#[derive(Debug)]
pub(crate) enum Output {
    Tell(Asker, Told),
    Operate(u64, Operation),
    /// To the node that gives a shard away: a question and its number.
    Want(usize, u64, Wanted),
    /// To the one that takes it over.
    Handed(ReplyTo, Option<Chunk>),
    /// A shard was handed over, with its entries or without.
    Began {
        is_warm: bool,
    },
}

/// What a turn of the node goes by.
pub(crate) struct Turn<'a> {
    pub(crate) now: Now,
    pub(crate) ownership: &'a mut Ownership,
    pub(crate) chance: &'a mut fastrand::Rng,
}

/// The data plane of one life of a node.
#[derive(Debug)]
pub(crate) struct Serving {
    manners: Manners,
    shards: [Option<Served>; N_SHARDS as usize],
    /// Entries of shards that were given up, for a node that makes that mistake.
    kept: [[Option<Value>; KEYS_PER_SHARD]; N_SHARDS as usize],
    pending: BTreeMap<u64, Pending>,
    /// Requests that are not answered, and when they came.
    asked: BTreeMap<u64, Duration>,
    /// Requests that were answered twice.
    pub(crate) n_answered_twice: u64,
    /// For each key the place of the last change that the database has told of.
    heard: [u64; N_KEYS],
    /// When it did, by the boot clock.
    heard_at: [Option<Duration>; N_KEYS],
    n_operations: u64,
    numbers: Numbers,
    outputs: Vec<Output>,
    /// What is to be given away, and since when it is ours.
    pub(crate) giving: Vec<(usize, Epoch)>,
    /// When the next owner has asked for something last.
    pub(crate) pulled_at: Duration,
    sealed: Vec<usize>,
    taken: Vec<(usize, Epoch)>,
    /// Seals of which the ownership hears too late, and when.
    untold: Vec<(Duration, ShardId, Epoch)>,
    n_handings: u64,
    incoming: BTreeMap<usize, Incoming>,
    /// Shards that were granted before the answer to their seals has come; since when, and after whom.
    awaited: BTreeMap<usize, (Epoch, After)>,
    n_asked: u64,
    luck: fastrand::Rng,
}

impl Serving {
    pub(crate) fn new(manners: Manners, numbers: Numbers, life: u64) -> Self {
        Self {
            manners,
            shards: [const { None }; N_SHARDS as usize],
            kept: [[None; KEYS_PER_SHARD]; N_SHARDS as usize],
            pending: BTreeMap::new(),
            asked: BTreeMap::new(),
            n_answered_twice: 0,
            heard: [0; N_KEYS],
            heard_at: [None; N_KEYS],
            n_operations: 0,
            numbers,
            outputs: Vec::new(),
            giving: Vec::new(),
            pulled_at: Duration::ZERO,
            sealed: Vec::new(),
            taken: Vec::new(),
            untold: Vec::new(),
            n_handings: 0,
            incoming: BTreeMap::new(),
            awaited: BTreeMap::new(),
            n_asked: 0,
            luck: fastrand::Rng::with_seed(life),
        }
    }

    pub(crate) fn take_outputs(&mut self) -> Vec<Output> {
        for output in &self.outputs {
            if let Output::Tell(asker, _) = output
                && self.asked.remove(&asker.request).is_none()
            {
                self.n_answered_twice += 1;
            }
        }
        std::mem::take(&mut self.outputs)
    }

    /// How long the oldest request waits for its answer.
    pub(crate) fn longest_wait(&self, now: Now) -> Duration {
        self.asked.values().map(|came| now.boot.saturating_sub(*came)).max().unwrap_or_default()
    }

    /// Since when it serves a shard.
    pub(crate) fn since(&self, shard: usize) -> Option<Epoch> {
        self.shards[shard].as_ref().map(|served| served.since)
    }

    /// What is in memory of a key.
    pub(crate) fn entry(&self, key: usize) -> Option<Value> {
        self.shards[key / KEYS_PER_SHARD].as_ref().and_then(|served| served.entries[key % KEYS_PER_SHARD])
    }

    /// When [`Serving::poll`] has something next, by the boot clock.
    pub(crate) fn next_timeout(&self) -> Option<Duration> {
        let pending = self.pending.values().map(|pending| pending.until);
        let untold = self.untold.iter().map(|(at, ..)| *at);
        pending.chain(untold).chain(self.incoming.values().filter_map(Incoming::due)).min()
    }

    /// Begins to serve shards; raises their fences in one operation.
    pub(crate) fn acquire(&mut self, now: Now, shards: &[(usize, Epoch, After)]) {
        let (awaited, known): (Vec<_>, Vec<_>) =
            shards.iter().partition(|(shard, _, after)| self.is_awaited(*shard, *after));
        self.awaited.extend(awaited.into_iter().map(|(shard, since, after)| (shard, (since, after))));
        self.begin(now, &known);
    }

    fn begin(&mut self, now: Now, shards: &[(usize, Epoch, After)]) {
        if shards.is_empty() {
            return;
        }
        let n = self.numbers.draw();
        for &(shard, since, after) in shards {
            let entries = self.take(shard, after);
            let keys = Keys::new(self.manners.rules, vec![Some(FENCE)], 1, n);
            self.shards[shard] = Some(Served { shard, since, keys, entries, handing: None, seal: Seal::Open });
        }
        self.raise(now, shards.iter().map(|&(shard, since, _)| (shard, Token { since, n })).collect());
    }

    /// Serves a shard no more. Who waits is told so; who has a write in the air is told when its outcome is known.
    pub(crate) fn release(&mut self, shard: usize) {
        if self.awaited.remove(&shard).is_some() {
            self.incoming.remove(&shard);
        }
        let Some(mut served) = self.shards[shard].take() else { return };
        if self.manners.keeps_entries {
            self.kept[shard] = served.entries;
        }
        self.tell_waiting(served.keys.take_waiting(|_| true, |_| true), Told::Misdirected, Told::Misdirected);
        for Pending { purpose, .. } in self.pending.values() {
            if let Purpose::Load { key, since, flight } = purpose
                && key / KEYS_PER_SHARD == shard
                && *since == served.since
            {
                let left = served.keys.take_landing(&name(*key), *flight, |_| true);
                self.outputs.extend(left.into_iter().map(|asker| Output::Tell(asker, Told::Misdirected)));
            }
        }
    }

    pub(crate) fn handle_request(&mut self, mut turn: Turn<'_>, mut asker: Asker, key: usize, ask: Ask) {
        asker.floor = asker.floor.max(self.heard[key]);
        self.asked.insert(asker.request, turn.now.boot);
        let (holds, serves_on) = (turn.ownership.holds(turn.now), self.manners.serves_on);
        let is_served = |served: &&mut Served| holds && (served.is_open() || serves_on);
        match (self.shards[key / KEYS_PER_SHARD].as_mut().filter(is_served), ask) {
            (None, Ask::PassThrough) => self.pass_through(turn.now, asker, key),
            (None, Ask::Get | Ask::Put(_)) => self.tell(asker, Told::Misdirected),
            (Some(served), Ask::Put(value)) => {
                served.keys.handle_write(name(key), Writer { asker, value });
                self.perform(&mut turn, key);
            }
            (Some(served), Ask::Get | Ask::PassThrough) => {
                let entry = &mut served.entries[key % KEYS_PER_SHARD];
                // Memory is short.
                entry.take_if(|_| turn.chance.u8(..8) == 0);
                match *entry {
                    Some(value) if served.keys.may_serve(&name(key)) => {
                        // Sometimes what is served is about to be too old.
                        if turn.chance.u8(..8) == 0 {
                            served.keys.handle_refresh(name(key));
                        }
                        self.tell(asker, Told::Value { value, passed: false });
                    }
                    _ => served.keys.handle_read(name(key), asker),
                }
                self.perform(&mut turn, key);
            }
        }
    }

    /// The database says that a key was changed from outside.
    pub(crate) fn handle_notice(&mut self, now: Now, key: usize, place: u64) {
        self.heard[key] = place.max(self.heard[key]);
        self.heard_at[key] = Some(now.boot);
        let notes = !self.manners.notes_nothing;
        if let Some(served) = &mut self.shards[key / KEYS_PER_SHARD] {
            let name = name(key);
            served.keys.handle_change(|(_, changed)| changed == name.1);
            served.entries[key % KEYS_PER_SHARD] = None;
            served.note_change(key, notes);
        } else if let Some(incoming) = self.incoming.get_mut(&(key / KEYS_PER_SHARD))
            && !self.manners.ignores_notices
        {
            incoming.handle_notice(key);
        }
    }

    /// Reads past the owner; a load that has been sent is too old for whoever comes later.
    fn pass_through(&mut self, now: Now, asker: Asker, key: usize) {
        let joined = self.pending.values_mut().find_map(|pending| match &mut pending.purpose {
            Purpose::Pass { key: other, askers } if *other == key && self.manners.joins_sent => Some(askers),
            _ => None,
        });
        match joined {
            Some(askers) => askers.push(asker),
            None => self.send(now, LOAD_TIMEOUT, Operation::Load { key }, Purpose::Pass { key, askers: vec![asker] }),
        }
    }

    /// Does what the keys of this key's shard want done.
    fn perform(&mut self, turn: &mut Turn<'_>, key: usize) {
        let (now, shard) = (turn.now, key / KEYS_PER_SHARD);
        let notes = !self.manners.notes_nothing;
        while let Some(served) = &mut self.shards[shard]
            && let Some(effect) = served.keys.poll_effect()
        {
            let since = served.since;
            match effect {
                Effect::Load { key, flight } => {
                    let key = number(&key);
                    let purpose = Purpose::Load { key, since, flight };
                    self.send(now, LOAD_TIMEOUT, Operation::Load { key }, purpose);
                }
                Effect::Write { key, write, n, writer } => self.write(turn, &key, write, Token { since, n }, writer),
                Effect::Resume { key, readers } => self.resume(turn, &key, readers),
                Effect::Forget { key } => {
                    served.entries[number(&key) % KEYS_PER_SHARD] = None;
                    served.note_change(number(&key), notes);
                }
                Effect::Raise { n, .. } => self.raise(now, vec![(shard, Token { since, n })]),
            }
        }
        self.seal_if_quiet(turn, shard);
    }

    /// Starts a write, if it will be over before the lease is.
    fn write(&mut self, turn: &Turn<'_>, key: &FlightKey, write: WriteId, token: Token, writer: Writer) {
        let (now, since) = (turn.now, token.since);
        let lease = turn.ownership.lease().filter(|lease| lease.holds(now));
        if lease.is_some_and(|lease| now.boot + WRITE_TIMEOUT < lease.until) {
            let key = number(key);
            let operation = Operation::Write { key, value: writer.value, token };
            self.send(now, WRITE_TIMEOUT, operation, Purpose::Write { key, since, write, writer });
            return;
        }
        self.tell(writer.asker, if lease.is_some() { Told::NotApplied } else { Told::Misdirected });
        if let Some(served) = &mut self.shards[number(key) / KEYS_PER_SHARD] {
            served.keys.handle_written(key, write, Outcome::Known, || 0);
        }
    }

    /// Those who have waited take what is in memory at this moment; a write that comes next has not been sent yet.
    fn resume(&mut self, turn: &Turn<'_>, key: &FlightKey, readers: Vec<Asker>) {
        let at = number(key);
        let Some(served) = &mut self.shards[at / KEYS_PER_SHARD] else { return };
        for reader in readers {
            let told = match served.entries[at % KEYS_PER_SHARD] {
                _ if !turn.ownership.holds(turn.now) => Told::Misdirected,
                Some(value) => Told::Value { value, passed: false },
                None => {
                    served.keys.handle_read(key.clone(), reader);
                    continue;
                }
            };
            self.outputs.push(Output::Tell(reader, told));
        }
    }

    fn raise(&mut self, now: Now, tokens: Vec<(usize, Token)>) {
        self.send(now, RAISE_PERIOD, Operation::Raise(tokens.clone()), Purpose::Raise(tokens));
    }

    fn send(&mut self, now: Now, timeout: Duration, operation: Operation, purpose: Purpose) {
        self.n_operations += 1;
        self.pending.insert(self.n_operations, Pending { until: now.boot + timeout, purpose });
        self.outputs.push(Output::Operate(self.n_operations, operation));
    }

    fn tell(&mut self, asker: Asker, told: Told) {
        self.outputs.push(Output::Tell(asker, told));
    }

    fn tell_waiting(&mut self, waiting: Waiting<Asker, Writer>, reader: Told, writer: Told) {
        let readers = waiting.readers.into_iter().map(|(_, asker)| Output::Tell(asker, reader));
        let writers = waiting.writers.into_iter().map(|(_, waiting)| Output::Tell(waiting.asker, writer));
        self.outputs.extend(readers.chain(writers));
    }

    /// The shard of a key, if it is served since then.
    fn served(&mut self, key: usize, since: Epoch) -> Option<&mut Served> {
        self.shards[key / KEYS_PER_SHARD].as_mut().filter(|served| served.since == since)
    }
}
