//! Shards that a node takes over from others: what is in memory there is pulled; then the other one seals, and what has
//! changed follows. Once the coordinator grants the shard, what was taken over is served.

use std::time::Duration;

use sharding::epoch::Epoch;
use sharding::membership::{After, Transfer};
use sharding::times::Now;

use super::handing::{Chunk, Wanted};
use super::{Output, Serving};
use crate::database::Value;
use crate::world::KEYS_PER_SHARD;

/// Longest time for a chunk, and for a seal: that waits for writes.
const CHUNK_TIMEOUT: Duration = Duration::from_millis(600);
/// Most times that a chunk is asked for.
const TRIES_MAX: u32 = 3;
/// Pause before a seal is asked for again that came too early, and how often.
const TOO_EARLY: Duration = Duration::from_millis(10);
const SEAL_TRIES_MAX: u32 = 100;
/// Longest time for a sealed shard to be granted.
const SEALED_FOR: Duration = Duration::from_secs(10);
/// An owner may hear of a change so much later than others do.
const HEARD_FOR: Duration = Duration::from_secs(10);
/// Who gives a shard away and is asked for nothing for so long gives it away as it is.
pub(crate) const NOT_PULLED_MAX: Duration = Duration::from_secs(3);

/// What there is of a shard that is not granted yet.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Since when it belonged to the one that gives it.
    since: Epoch,
    from: usize,
    entries: [Option<Value>; KEYS_PER_SHARD],
    /// Keys that the database has said to have changed.
    pub(super) noticed: [bool; KEYS_PER_SHARD],
    /// What is to be asked for next; `None`: the seal.
    cursor: Option<usize>,
    pass: u64,
    /// The question whose answer is waited for.
    asked: Option<u64>,
    /// When it is given up, or the next one is asked.
    due: Duration,
    tries: u32,
    /// The other one has sealed it, and said all.
    sealed_at: Option<Duration>,
}

impl Incoming {
    /// When [`Serving::poll_taking`] has something to do for it.
    pub(super) fn due(&self) -> Option<Duration> {
        self.sealed_at.is_none().then_some(self.due)
    }

    pub(super) fn handle_notice(&mut self, key: usize) {
        self.entries[key % KEYS_PER_SHARD] = None;
        self.noticed[key % KEYS_PER_SHARD] = true;
    }
}

impl Serving {
    /// These are to be taken over, and no others.
    pub(crate) fn handle_wishes(&mut self, now: Now, taking: &[Transfer]) {
        let is_wished = |shard: usize, since: Epoch| {
            taking.iter().any(|transfer| (transfer.shard.index(), transfer.since) == (shard, since))
        };
        let awaited = &self.awaited;
        self.incoming.retain(|shard, incoming| {
            awaited.contains_key(shard)
                || incoming.sealed_at.is_some_and(|at| now.boot < at + SEALED_FOR)
                || is_wished(*shard, incoming.since)
        });
        for Transfer { shard, since, peer } in taking {
            let shard = shard.index();
            if self.incoming.contains_key(&shard) {
                continue;
            }
            let was_heard = |at: usize| {
                let heard = self.heard_at[shard * KEYS_PER_SHARD + at].filter(|_| !self.manners.forgets_notices);
                heard.is_some_and(|heard| now.boot < heard + HEARD_FOR)
            };
            let incoming = Incoming {
                since: *since,
                from: peer.as_str().strip_prefix("pod-").and_then(|node| node.parse().ok()).expect("a pod"),
                entries: [None; KEYS_PER_SHARD],
                noticed: std::array::from_fn(was_heard),
                cursor: Some(0),
                pass: 0,
                asked: None,
                due: now.boot,
                tries: 0,
                sealed_at: None,
            };
            self.incoming.insert(shard, incoming);
        }
        self.poll_taking(now);
    }

    /// Asks for what is to be asked for, and gives up what does not come.
    pub(super) fn poll_taking(&mut self, now: Now) {
        let mut given_up = Vec::new();
        for (shard, incoming) in &mut self.incoming {
            if incoming.sealed_at.is_some() || now.boot < incoming.due {
                continue;
            }
            let is_awaited = self.awaited.contains_key(shard);
            if incoming.asked.is_some() && (incoming.tries >= TRIES_MAX || is_awaited || self.luck.u8(..4) == 0) {
                given_up.push(*shard);
                continue;
            }
            self.n_asked += 1;
            incoming.tries += 1;
            (incoming.asked, incoming.due) = (Some(self.n_asked), now.boot + CHUNK_TIMEOUT);
            let Incoming { since, cursor, pass, .. } = *incoming;
            let wanted = Wanted { shard: *shard, since, cursor, pass };
            if cursor.is_none() && self.manners.says_taken_unsealed {
                self.taken.push((*shard, since));
            }
            self.outputs.push(Output::Want(incoming.from, self.n_asked, wanted));
        }
        for shard in given_up {
            self.incoming.remove(&shard);
        }
        self.begin_awaited(now);
    }

    /// Whether the answer to a seal is on its way: the grant may overtake it.
    pub(super) fn is_awaited(&self, shard: usize, after: After) -> bool {
        let is_asked = |incoming: &Incoming| incoming.cursor.is_none() && incoming.asked.is_some();
        let incoming = self.incoming.get(&shard).filter(|_| !self.manners.takes_unsealed);
        incoming.is_some_and(|incoming| is_asked(incoming) && after == After::Sealed(incoming.since))
    }

    /// Begins with what was granted before, when the answer has come or will not come.
    fn begin_awaited(&mut self, now: Now) {
        let incoming = &self.incoming;
        let is_over = |shard: &usize, _: &mut _| incoming.get(shard).is_none_or(|it| it.asked.is_none());
        let over: Vec<_> =
            self.awaited.extract_if(.., is_over).map(|(at, (since, after))| (at, since, after)).collect();
        self.begin(now, &over);
    }

    /// The one that gives a shard away has answered; `None`: it is not to be had.
    pub(crate) fn handle_handed(&mut self, now: Now, id: u64, chunk: Option<Chunk>) {
        let pace = match self.luck.u8(..8) {
            0 => self.luck.u64(..400),
            _ => self.luck.u64(..10),
        };
        let is_it = |incoming: &Incoming| incoming.asked == Some(id) && incoming.sealed_at.is_none();
        let Some((&shard, incoming)) = self.incoming.iter_mut().find(|(_, incoming)| is_it(incoming)) else { return };
        incoming.asked = None;
        let Some(chunk) = chunk else {
            if incoming.cursor.is_some() || incoming.tries >= SEAL_TRIES_MAX {
                self.incoming.remove(&shard);
            } else {
                incoming.due = now.boot + TOO_EARLY;
            }
            return self.begin_awaited(now);
        };
        for key in chunk.removed {
            incoming.entries[key % KEYS_PER_SHARD] = None;
        }
        for (key, value) in chunk.entries {
            if !incoming.noticed[key % KEYS_PER_SHARD] {
                incoming.entries[key % KEYS_PER_SHARD] = Some(value);
            }
        }
        if incoming.cursor.is_none() {
            incoming.sealed_at = Some(now.boot);
            self.taken.push((shard, incoming.since));
        } else {
            (incoming.cursor, incoming.pass, incoming.tries) = (chunk.next, chunk.pass, 0);
            incoming.due = now.boot + Duration::from_millis(pace);
        }
        self.begin_awaited(now);
    }

    /// Shards that have been taken over whole since this was asked last, and since when they were the other's.
    pub(crate) fn take_taken(&mut self) -> Vec<(usize, Epoch)> {
        std::mem::take(&mut self.taken)
    }

    /// A shard is granted: what it begins with. What was taken over is used if it is all there is to know of it.
    pub(super) fn take(&mut self, shard: usize, after: After) -> [Option<Value>; KEYS_PER_SHARD] {
        let manners = self.manners;
        let is_meant = |incoming: &Incoming| {
            (after == After::Sealed(incoming.since) || manners.takes_after_anything)
                && (incoming.sealed_at.is_some() || manners.takes_unsealed)
        };
        let warm = self.incoming.remove(&shard).filter(is_meant);
        if matches!(after, After::Sealed(_)) {
            self.outputs.push(Output::Began { is_warm: warm.is_some() });
        }
        let kept = std::mem::take(&mut self.kept[shard]);
        warm.map_or(kept, |incoming| incoming.entries)
    }
}
