//! A shard that is given to another node: its entries go there one by one, while it is served here; then it is sealed, and
//! what has changed meanwhile follows.

use std::time::Duration;

use sharding::epoch::Epoch;
use sharding::id::ShardId;
use sharding::membership::Incarnation;

use super::{Output, Served, Serving, Told, Turn, name};
use crate::database::Value;
use crate::world::KEYS_PER_SHARD;

/// So late an ownership hears of a seal where that mistake is planted: there is another coordinator by then.
const LATE: Duration = Duration::from_secs(20);

/// What the next owner asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) shard: usize,
    /// Since when it belongs to the one that is asked.
    pub(crate) since: Epoch,
    /// Which entry; `None`: the seal, and what has changed.
    pub(crate) cursor: Option<usize>,
    /// What the first answer said of itself.
    pub(crate) pass: u64,
}

/// Where an answer goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplyTo {
    pub(crate) node: usize,
    pub(crate) incarnation: Incarnation,
    pub(crate) id: u64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Chunk {
    pub(crate) entries: Vec<(usize, Value)>,
    pub(crate) removed: Vec<usize>,
    /// The next entry to ask for; `None`: that was all.
    pub(crate) next: Option<usize>,
    pub(crate) pass: u64,
}

/// What is being handed over.
#[derive(Debug)]
pub(super) struct Handing {
    /// Of this pulling: what changed since its first chunk is of no use to another one.
    pass: u64,
    /// The keys that there were at the first chunk.
    order: Vec<usize>,
    /// Whether each key has changed since.
    changed: [bool; KEYS_PER_SHARD],
}

/// How far a shard is on its way.
#[derive(Debug, Default)]
pub(super) enum Seal {
    /// It is served.
    #[default]
    Open,
    /// It takes nothing new, and waits for the outcome of its writes.
    Wanted(ReplyTo),
    /// It is served no more.
    Sealed,
}

impl Served {
    /// What is known of a key is another from now on.
    pub(super) fn note_change(&mut self, key: usize, notes: bool) {
        if let Some(handing) = self.handing.as_mut().filter(|_| notes) {
            handing.changed[key % KEYS_PER_SHARD] = true;
        }
    }

    pub(super) const fn is_open(&self) -> bool {
        matches!(self.seal, Seal::Open)
    }

    /// What the next owner gets of a key.
    fn handed(&self, key: usize) -> Option<Value> {
        self.entries[key % KEYS_PER_SHARD].filter(|_| self.keys.may_serve(&name(key)))
    }
}

impl Serving {
    /// The next owner of a shard asks for something of it.
    pub(crate) fn handle_wanted(&mut self, turn: &mut Turn<'_>, to: ReplyTo, wanted: Wanted) {
        self.pulled_at = turn.now.boot;
        let Wanted { shard, since, cursor, pass } = wanted;
        let is_giving = self.giving.contains(&(shard, since));
        let holds = turn.ownership.serves(turn.now, ShardId(u16::try_from(shard).expect("few")));
        let n_handings = self.n_handings + 1;
        let checks = !self.manners.mixes_passes;
        let chunk = match self.shards[shard].as_mut().filter(|served| served.since == since && served.is_open()) {
            Some(served) if holds => match cursor {
                Some(cursor) => {
                    self.n_handings = n_handings;
                    served.pull(cursor, if cursor == 0 { n_handings } else { pass }, checks)
                }
                None if is_giving
                    && (!checks || served.handing.as_ref().is_some_and(|handing| handing.pass == pass)) =>
                {
                    return self.want_seal(turn, shard, to);
                }
                None => None,
            },
            _ => None,
        };
        self.outputs.push(Output::Handed(to, chunk));
    }

    fn want_seal(&mut self, turn: &mut Turn<'_>, shard: usize, to: ReplyTo) {
        let Some(served) = &mut self.shards[shard] else { return };
        served.seal = Seal::Wanted(to);
        let waiting = served.keys.take_waiting(|_| true, |_| true);
        self.tell_waiting(waiting, Told::Misdirected, Told::Misdirected);
        self.seal_if_quiet(turn, shard);
    }

    /// Seals, once no write is in the air any more: whatever their outcome, it is known what is true.
    pub(super) fn seal_if_quiet(&mut self, turn: &mut Turn<'_>, shard: usize) {
        let manners = self.manners;
        let Some(served) = &mut self.shards[shard] else { return };
        let is_quiet = served.keys.n_writing() == 0 || manners.seals_at_once;
        let Seal::Wanted(to) = served.seal else { return };
        if !is_quiet {
            return;
        }
        served.seal = Seal::Sealed;
        let since = served.since;
        let (mut chunk, handing) = (Chunk::default(), served.handing.take());
        for at in (0..KEYS_PER_SHARD).filter(|at| handing.as_ref().is_some_and(|handing| handing.changed[*at])) {
            let key = shard * KEYS_PER_SHARD + at;
            match served.handed(key) {
                Some(value) => chunk.entries.push((key, value)),
                None => chunk.removed.push(key),
            }
        }
        // Who was refused by the fence meanwhile would write yet.
        let waiting = served.keys.take_waiting(|_| true, |_| true);
        self.tell_waiting(waiting, Told::Misdirected, Told::Misdirected);
        self.outputs.push(Output::Handed(to, Some(chunk)));
        // No turning back: the next owner may have it from here on.
        let id = ShardId(u16::try_from(shard).expect("few"));
        if manners.answers_before_it_knows {
            self.untold.push((turn.now.boot + LATE, id, since));
        } else {
            turn.ownership.handle_sealed(turn.now, id, since);
        }
        self.sealed.push(shard);
    }

    /// Tells what should have been told before.
    pub(super) fn tell_late(&mut self, turn: &mut Turn<'_>) {
        for (_, shard, since) in self.untold.extract_if(.., |(at, ..)| *at <= turn.now.boot) {
            turn.ownership.handle_sealed(turn.now, shard, since);
        }
    }

    /// Shards that have been sealed since this was asked last.
    pub(crate) fn take_sealed(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.sealed)
    }

    pub(crate) const fn has_sealed(&self) -> bool {
        !self.sealed.is_empty()
    }
}

impl Served {
    fn pull(&mut self, cursor: usize, pass: u64, checks: bool) -> Option<Chunk> {
        if cursor == 0 {
            let order = (0..KEYS_PER_SHARD).filter(|at| self.entries[*at].is_some()).collect();
            self.handing = Some(Handing { pass, order, changed: [false; KEYS_PER_SHARD] });
        }
        let handing = self.handing.as_ref().filter(|handing| handing.pass == pass || !checks)?;
        let mut chunk = Chunk { pass: handing.pass, ..Chunk::default() };
        if let Some(&at) = handing.order.get(cursor) {
            chunk.next = (cursor + 1 < handing.order.len()).then_some(cursor + 1);
            let shard = self.shard;
            match self.handed(shard * KEYS_PER_SHARD + at) {
                Some(value) => chunk.entries.push((shard * KEYS_PER_SHARD + at, value)),
                // Nobody can say now; in the end it is looked at again.
                None => self.note_change(at, true),
            }
        }
        Some(chunk)
    }
}
