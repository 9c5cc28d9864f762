//! What goes on with the keys of one shard: loads in the air, writes, and who waits for what (I2, I3).
//!
//! The owner of a shard makes one of these. Entries are not here: whoever reads a key asks [`Keys::may_serve`] whether
//! memory tells the truth, and hands in what cannot be answered from it. What is to be done comes out of
//! [`Keys::poll_effect`], in order.
//!
//! - All readers of a key share a load. A write, an invalidation and a notice *cut* it: what is in the air then may be
//!   older than what somebody is promised, so it answers those who waited, and is neither kept nor joined.
//! - A key is written once at a time. While it is, its readers wait: the database may have the new value already, and
//!   somebody may have read it there.
//! - A write whose outcome is unknown may land at any later time. So the key is forgotten, and waits until the shard's
//!   fence has been raised above that write's token: then it has landed or never will.
//! - Before a new owner has raised the fence it loads and writes nothing: a write of the owner before may still land.

use std::collections::{BTreeMap, VecDeque};

use crate::flight::{Boarding, FlightId, FlightKey, Flights};

/// The rules that I2 hangs on, one by one. Always all: a simulation that cannot find what goes wrong without one of them
/// would prove nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// The fence is raised before anything is loaded.
    pub fence_first: bool,
    /// It is raised again when the outcome of a write is unknown.
    pub fence_again: bool,
    /// While a key is written its readers wait.
    pub hide: bool,
    /// Loads that may bring something old are cut.
    pub cut: bool,
}

impl Rules {
    /// All of them.
    pub const ALL: Self = Self { fence_first: true, fence_again: true, hide: true, cut: true };
}

/// Which write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId(u64);

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has been done, or surely has not: whatever holds, holds from now on.
    Known,
    /// Nobody can say; it may still land.
    Unknown,
}

/// What is to be done, in the order given.
#[derive(Debug, PartialEq, Eq)]
pub enum Effect<R, W> {
    /// Load a key, then say [`Keys::handle_landed`].
    Load {
        /// Which.
        key: FlightKey,
        /// The load's name.
        flight: FlightId,
    },
    /// Write a key, then say [`Keys::handle_written`] or [`Keys::handle_fenced`].
    Write {
        /// Which.
        key: FlightKey,
        /// The write's name.
        write: WriteId,
        /// The number that the fence must have.
        n: u64,
        /// What is to be written.
        writer: W,
    },
    /// These have waited: memory serves them now, where it can; if not, they are to be handed in again.
    Resume {
        /// Of which key.
        key: FlightKey,
        /// Who.
        readers: Vec<R>,
    },
    /// Forget what is in memory of a key.
    Forget {
        /// Which.
        key: FlightKey,
    },
    /// Raise a fence to this number, then say [`Keys::handle_raised`] or [`Keys::handle_raise_failed`].
    Raise {
        /// Position of the fence.
        fence: usize,
        /// The number.
        n: u64,
    },
}

/// The fence of this shard in one database.
#[derive(Clone, Copy, Debug)]
struct Fence {
    /// What this owner began with; nothing is loaded before.
    first: u64,
    /// The last number that it is known to have.
    raised: Option<u64>,
    /// What it is to have; while it is raised nothing is written.
    wanted: u64,
}

/// A key that is not as usual.
#[derive(Debug)]
struct Held<R, W> {
    /// The write in the air, and the number that it relies on.
    write: Option<(WriteId, u64)>,
    /// Something changed meanwhile: what the write leaves is not to be kept.
    is_cut: bool,
    /// Nothing is done before the fence has this number.
    needs: u64,
    readers: Vec<R>,
    writers: VecDeque<W>,
}

impl<R, W> Held<R, W> {
    const fn new() -> Self {
        Self { write: None, is_cut: false, needs: 0, readers: Vec::new(), writers: VecDeque::new() }
    }
}

/// Those who have waited for a write or a fence, each with the position of its region.
#[derive(Debug, PartialEq, Eq)]
pub struct Waiting<R, W> {
    /// For a value.
    pub readers: Vec<(usize, R)>,
    /// To write.
    pub writers: Vec<(usize, W)>,
}

/// The keys of one shard, for one owner. `R`: who waits for a value; `W`: who wants something written.
#[derive(Debug)]
pub struct Keys<R, W> {
    rules: Rules,
    flights: Flights<R>,
    held: BTreeMap<FlightKey, Held<R, W>>,
    fences: Vec<Fence>,
    /// For each region its fence; `None`: it is not written to.
    fence_of: Vec<Option<usize>>,
    n_writes: u64,
    effects: VecDeque<Effect<R, W>>,
}

impl<R, W> Keys<R, W> {
    /// Those of an owner that begins now. `fence_of` has, for each region that is written to, the position of its database
    /// among `n_fences`. All fences are being raised to `first`, of which [`Keys::handle_raised`] tells.
    #[must_use]
    pub fn new(rules: Rules, fence_of: Vec<Option<usize>>, n_fences: usize, first: u64) -> Self {
        let fence = Fence { first, raised: None, wanted: first };
        Self {
            rules,
            flights: Flights::new(),
            held: BTreeMap::new(),
            fences: vec![fence; n_fences],
            fence_of,
            n_writes: 0,
            effects: VecDeque::new(),
        }
    }

    /// The next thing to do, until there is none.
    pub fn poll_effect(&mut self) -> Option<Effect<R, W>> {
        self.effects.pop_front()
    }

    /// Whether what is in memory of a key is true at this moment.
    #[must_use]
    pub fn may_serve(&self, key: &FlightKey) -> bool {
        !self.rules.hide || self.held.is_empty() || !self.held.contains_key(key)
    }

    /// Whether [`Keys::may_serve`] holds of every key.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        !self.rules.hide || self.held.is_empty()
    }

    /// Whether a key is being loaded.
    #[must_use]
    pub fn is_loading(&self, key: &FlightKey) -> bool {
        self.flights.is_in_the_air(key)
    }

    /// Whether a key is being written.
    #[must_use]
    pub fn is_writing(&self, key: &FlightKey) -> bool {
        self.held.get(key).is_some_and(|held| held.write.is_some())
    }

    /// Whether anything is being loaded.
    #[must_use]
    pub fn is_loading_any(&self) -> bool {
        !self.flights.is_empty()
    }

    /// Writes in the air.
    #[must_use]
    pub fn n_writing(&self) -> usize {
        self.held.values().filter(|held| held.write.is_some()).count()
    }

    /// Whether anybody waits for a write or a fence.
    #[must_use]
    pub fn has_waiting(&self) -> bool {
        self.held.values().any(|held| !held.readers.is_empty() || !held.writers.is_empty())
    }

    /// Somebody wants a value that memory does not give.
    pub fn handle_read(&mut self, key: FlightKey, reader: R) {
        if let Some(held) = self.held.get_mut(&key)
            && (self.rules.hide || held.write.is_none())
        {
            held.readers.push(reader);
            return;
        }
        if !self.may_begin(key.0, 0) {
            self.held.entry(key).or_insert_with(Held::new).readers.push(reader);
            return;
        }
        self.board(key, Some(reader));
    }

    /// An entry is to be loaded anew, while it is served.
    pub fn handle_refresh(&mut self, key: FlightKey) {
        if self.may_serve(&key) && self.may_begin(key.0, 0) {
            self.board(key, None);
        }
    }

    fn board(&mut self, key: FlightKey, reader: Option<R>) {
        if let Boarding::Lead(flight) = self.flights.board(key.clone(), reader) {
            self.effects.push_back(Effect::Load { key, flight });
        }
    }

    /// Whether a key that needs the fence to have this number may be loaded or written.
    fn may_begin(&self, region: usize, needs: u64) -> bool {
        let fence = self.fence_of(region).map(|fence| self.fences[fence]);
        fence.is_none_or(|fence| {
            !self.rules.fence_first || fence.raised.is_some_and(|raised| fence.first.max(needs) <= raised)
        })
    }

    fn fence_of(&self, region: usize) -> Option<usize> {
        self.fence_of.get(region).copied().flatten()
    }

    /// Who waits for this load has come in this order.
    pub fn waiters(&self, key: &FlightKey, flight: FlightId) -> impl Iterator<Item = &R> {
        self.flights.waiters(key, flight)
    }

    /// A load has come back: who waited for it, and whether what it brings may be kept. `None`: nobody knows of it.
    pub fn handle_landed(&mut self, key: &FlightKey, flight: FlightId) -> Option<(Vec<R>, bool)> {
        let (readers, is_cut) = self.flights.land(key, flight)?;
        Some((readers, !is_cut))
    }

    /// Somebody wants to write.
    pub fn handle_write(&mut self, key: FlightKey, writer: W) {
        self.held.entry(key.clone()).or_insert_with(Held::new).writers.push_back(writer);
        self.go_on(&key);
    }

    /// Does with a held key what can be done now.
    fn go_on(&mut self, key: &FlightKey) {
        let needs = match self.held.get(key) {
            Some(Held { write: None, needs, .. }) => *needs,
            _ => return,
        };
        if !self.may_begin(key.0, needs) {
            return;
        }
        let fence = self.fence_of(key.0).map(|fence| self.fences[fence]);
        let Some(held) = self.held.get_mut(key) else { return };
        if !held.readers.is_empty() {
            let readers = std::mem::take(&mut held.readers);
            self.effects.push_back(Effect::Resume { key: key.clone(), readers });
        }
        // While the fence rises, what relies on it as it was would be refused.
        let is_still = fence.is_none_or(|fence| fence.raised == Some(fence.wanted));
        if is_still && let Some(writer) = held.writers.pop_front() {
            self.n_writes += 1;
            let (write, n) = (WriteId(self.n_writes), fence.map_or(0, |fence| fence.wanted));
            (held.write, held.is_cut) = (Some((write, n)), false);
            self.effects.push_back(Effect::Write { key: key.clone(), write, n, writer });
            self.cut_loads(|(region, other)| region == key.0 && *other == key.1);
        } else if held.writers.is_empty() {
            self.held.remove(key);
        }
    }

    /// A write has come back. Gives whether what it leaves may be kept in memory: it is to be, before the effects are
    /// performed. `next_n` gives a number that is larger than any before, for the fence, should it have to rise.
    pub fn handle_written(
        &mut self,
        key: &FlightKey,
        write: WriteId,
        outcome: Outcome,
        next_n: impl FnOnce() -> u64,
    ) -> bool {
        let fence = self.fence_of(key.0);
        let Some(held) = self.held.get_mut(key) else { return false };
        if held.write.take_if(|(id, _)| *id == write).is_none() {
            return false;
        }
        let keeps = outcome == Outcome::Known && !held.is_cut;
        if outcome == Outcome::Unknown {
            self.effects.push_back(Effect::Forget { key: key.clone() });
            if let Some(fence) = fence.filter(|_| self.rules.fence_again) {
                let n = next_n();
                held.needs = n;
                self.raise(fence, n);
            }
        }
        self.go_on(key);
        keeps
    }

    /// The database did not let a write through: the fence has another number, or is lost. It was not done; it is tried
    /// again when the fence has been raised again.
    pub fn handle_fenced(&mut self, key: &FlightKey, write: WriteId, writer: W, next_n: impl FnOnce() -> u64) {
        let fence = self.fence_of(key.0);
        let Some(held) = self.held.get_mut(key) else { return };
        let Some((_, relied_on)) = held.write.take_if(|(id, _)| *id == write) else { return };
        held.writers.push_front(writer);
        if let Some(fence) = fence.filter(|fence| self.fences[*fence].wanted == relied_on) {
            self.raise(fence, next_n());
        }
        self.go_on(key);
    }

    fn raise(&mut self, fence: usize, n: u64) {
        self.fences[fence].wanted = n;
        self.effects.push_back(Effect::Raise { fence, n });
    }

    /// A fence has this number now.
    pub fn handle_raised(&mut self, fence: usize, n: u64) {
        let raised = &mut self.fences[fence].raised;
        *raised = (*raised).max(Some(n));
        for key in self.held_by(fence) {
            self.go_on(&key);
        }
    }

    fn held_by(&self, fence: usize) -> Vec<FlightKey> {
        self.held.keys().filter(|key| self.fence_of(key.0) == Some(fence)).cloned().collect()
    }

    /// A fence could not be raised for now: gives who waits for it, to be told so.
    pub fn handle_raise_failed(&mut self, fence: usize) -> Waiting<R, W> {
        let fence_of = self.fence_of.clone();
        self.take(|key, held| held.write.is_none() && fence_of.get(key.0) == Some(&Some(fence)), |_| true, |_| true)
    }

    /// Gives those who leave, among all who wait for a write or a fence.
    pub fn take_waiting(
        &mut self,
        reader_leaves: impl Fn(&R) -> bool,
        writer_leaves: impl Fn(&W) -> bool,
    ) -> Waiting<R, W> {
        self.take(|_, _| true, reader_leaves, writer_leaves)
    }

    fn take(
        &mut self,
        is_meant: impl Fn(&FlightKey, &Held<R, W>) -> bool,
        reader_leaves: impl Fn(&R) -> bool,
        writer_leaves: impl Fn(&W) -> bool,
    ) -> Waiting<R, W> {
        let mut waiting = Waiting { readers: Vec::new(), writers: Vec::new() };
        for (key, held) in &mut self.held {
            if !is_meant(key, held) {
                continue;
            }
            let left = held.readers.extract_if(.., |reader| reader_leaves(reader));
            waiting.readers.extend(left.map(|reader| (key.0, reader)));
            let (left, stay) = std::mem::take(&mut held.writers).into_iter().partition::<Vec<W>, _>(&writer_leaves);
            held.writers = stay.into();
            waiting.writers.extend(left.into_iter().map(|writer| (key.0, writer)));
        }
        // What is held for nobody and nothing is as usual.
        self.held.retain(|_, held| {
            held.write.is_some() || held.needs > 0 || !held.readers.is_empty() || !held.writers.is_empty()
        });
        waiting
    }

    /// Gives those who leave, among all who wait for a load.
    pub fn take_landing(&mut self, key: &FlightKey, flight: FlightId, leaves: impl Fn(&R) -> bool) -> Vec<R> {
        self.flights.part(key, flight, leaves)
    }

    /// These keys may have changed: what is in the air of them is neither joined nor kept.
    pub fn handle_change(&mut self, is_meant: impl Fn((usize, &[u8])) -> bool) {
        for (key, held) in &mut self.held {
            held.is_cut |= held.write.is_some() && is_meant((key.0, &key.1));
        }
        self.cut_loads(is_meant);
    }

    fn cut_loads(&mut self, is_meant: impl Fn((usize, &[u8])) -> bool) {
        if self.rules.cut {
            self.flights.cut(is_meant);
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    type Shard = Keys<&'static str, &'static str>;

    fn key(name: &'static str) -> FlightKey {
        (0, Bytes::from(name))
    }

    /// One region, written to, whose fence has the number 1.
    fn shard() -> Shard {
        let mut keys = Keys::new(Rules::ALL, vec![Some(0)], 1, 1);
        keys.handle_raised(0, 1);
        keys
    }

    fn effects(keys: &mut Shard) -> Vec<Effect<&'static str, &'static str>> {
        std::iter::from_fn(|| keys.poll_effect()).collect()
    }

    fn begun(keys: &mut Shard, writer: &'static str) -> (WriteId, u64) {
        keys.handle_write(key("k"), writer);
        match effects(keys).as_slice() {
            [Effect::Write { write, n, .. }] => (*write, *n),
            other => panic!("{other:?}"),
        }
    }

    fn load(keys: &mut Shard, reader: &'static str) -> FlightId {
        keys.handle_read(key("k"), reader);
        match effects(keys).as_slice() {
            [Effect::Load { flight, .. }] => *flight,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn nothing_is_loaded_or_written_before_the_fence_is_up() {
        let mut keys = Keys::new(Rules::ALL, vec![Some(0), None], 1, 1);
        keys.handle_read(key("k"), "reader");
        keys.handle_write(key("l"), "writer");
        assert_eq!(effects(&mut keys), []);
        keys.handle_read((1, Bytes::from("k")), "of a region that is not written to");
        assert!(matches!(effects(&mut keys)[..], [Effect::Load { .. }]));
        keys.handle_raised(0, 1);
        let resumed = Effect::Resume { key: key("k"), readers: vec!["reader"] };
        let written = Effect::Write { key: key("l"), write: WriteId(1), n: 1, writer: "writer" };
        assert_eq!(effects(&mut keys), [resumed, written]);
    }

    #[test]
    fn readers_wait_while_a_key_is_written_and_go_before_the_next_writer() {
        let mut keys = shard();
        let (first, _) = begun(&mut keys, "first");
        assert!(!keys.may_serve(&key("k")) && keys.may_serve(&key("l")));
        keys.handle_write(key("k"), "second");
        keys.handle_read(key("k"), "reader");
        assert_eq!(effects(&mut keys), []);
        assert!(keys.handle_written(&key("k"), first, Outcome::Known, || unreachable!("the fence stays")));
        let resumed = Effect::Resume { key: key("k"), readers: vec!["reader"] };
        let second = Effect::Write { key: key("k"), write: WriteId(2), n: 1, writer: "second" };
        assert_eq!(effects(&mut keys), [resumed, second]);
        keys.handle_written(&key("k"), WriteId(2), Outcome::Known, || unreachable!("as above"));
        assert!(keys.may_serve(&key("k")) && keys.held.is_empty());
    }

    #[test]
    fn a_write_cuts_the_load_in_the_air() {
        let mut keys = shard();
        let flight = load(&mut keys, "before");
        let (write, _) = begun(&mut keys, "writer");
        keys.handle_written(&key("k"), write, Outcome::Known, || unreachable!("as above"));
        let another = load(&mut keys, "after");
        assert_eq!(keys.handle_landed(&key("k"), flight), Some((vec!["before"], false)));
        assert_eq!(keys.handle_landed(&key("k"), another), Some((vec!["after"], true)));
    }

    #[test]
    fn what_changes_during_a_write_keeps_its_result_out_of_memory() {
        let mut keys = shard();
        let (write, _) = begun(&mut keys, "writer");
        keys.handle_change(|(_, changed)| changed == b"k");
        assert!(!keys.handle_written(&key("k"), write, Outcome::Known, || unreachable!("as above")));
    }

    #[test]
    fn after_an_unknown_outcome_the_key_waits_for_a_higher_fence_and_others_are_read_on() {
        let mut keys = shard();
        let (write, _) = begun(&mut keys, "lost");
        keys.handle_written(&key("k"), write, Outcome::Unknown, || 2);
        assert_eq!(effects(&mut keys), [Effect::Forget { key: key("k") }, Effect::Raise { fence: 0, n: 2 }]);
        keys.handle_read(key("k"), "reader");
        keys.handle_write(key("l"), "writer of another");
        assert_eq!(effects(&mut keys), []);
        keys.handle_read(key("m"), "reader of another");
        assert!(matches!(effects(&mut keys)[..], [Effect::Load { .. }]));
        keys.handle_raised(0, 2);
        let resumed = Effect::Resume { key: key("k"), readers: vec!["reader"] };
        let written = Effect::Write { key: key("l"), write: WriteId(2), n: 2, writer: "writer of another" };
        assert_eq!(effects(&mut keys), [resumed, written]);
        assert!(keys.may_serve(&key("k")));
    }

    #[test]
    fn what_the_fence_refuses_is_written_again_under_a_higher_one() {
        let mut keys = shard();
        let (write, n) = begun(&mut keys, "writer");
        assert_eq!(n, 1);
        keys.handle_fenced(&key("k"), write, "writer", || 2);
        assert_eq!(effects(&mut keys), [Effect::Raise { fence: 0, n: 2 }]);
        keys.handle_raised(0, 2);
        assert_eq!(effects(&mut keys), [Effect::Write { key: key("k"), write: WriteId(2), n: 2, writer: "writer" }]);
    }

    #[test]
    fn who_waits_for_a_fence_that_does_not_rise_is_told() {
        let mut keys = Keys::new(Rules::ALL, vec![Some(0)], 1, 1);
        keys.handle_read(key("k"), "reader");
        keys.handle_write(key("l"), "writer");
        let told = keys.handle_raise_failed(0);
        assert_eq!((told.readers, told.writers), (vec![(0, "reader")], vec![(0, "writer")]));
        assert!(!keys.has_waiting() && effects(&mut keys).is_empty());
        keys.handle_raised(0, 1);
        load(&mut keys, "the next one");
    }

    #[test]
    fn who_cannot_wait_any_longer_leaves_alone() {
        let mut keys = shard();
        let (write, _) = begun(&mut keys, "writer");
        keys.handle_read(key("k"), "impatient");
        keys.handle_read(key("k"), "patient");
        let left = keys.take_waiting(|reader| *reader == "impatient", |_| true);
        assert_eq!((left.readers, left.writers), (vec![(0, "impatient")], vec![]));
        keys.handle_written(&key("k"), write, Outcome::Known, || unreachable!("as above"));
        assert_eq!(effects(&mut keys), [Effect::Resume { key: key("k"), readers: vec!["patient"] }]);
    }
}
