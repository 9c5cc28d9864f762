//! The entries of one region in one shard, bounded by bytes.
//!
//! Which entries give way to others is decided as in S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction",
//! SOSP 2023): what comes in waits in a small queue, and what was asked for there goes on to the main one, so a scan
//! passes through without harm. Lifetimes are looked at when an entry is read, and what is gone is swept.

mod log;
mod lost;
mod record;

use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::sync::LazyLock;
use std::time::Instant;

use bytes::Bytes;
use hashbrown::HashTable;
use prometheus_client::metrics::gauge::Gauge;
use sharding::form::Form;
use sharding::wire::Etag;
use slab::Slab;
use twox_hash::XxHash3_64;

use super::freshness::{Age, At, Lifetime};
use crate::metrics::LoadReason;
use log::{Log, Spot};
use lost::Lost;
use record::Record;

/// Charged for each entry beyond its key and value: what is known of it, its place in the table, and room that is empty.
pub(crate) const ENTRY_OVERHEAD_BYTES: u64 = 80;
/// While the small queue has more than one in so many bytes of the room, it is the one that gives up entries.
const SMALL_PART: u64 = 10;
/// A table that has less than one in so many of its places taken is made smaller.
const TABLE_PART: usize = 4;
/// Most entries that are spared at a time since they were asked for; nobody is served meanwhile.
const SPARED_MAX: usize = 256;

/// Keys come from outside: those that meet in the table of one process do not meet in that of another.
static SEED: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(0));

/// Why a record is found.
const KNOWN: &str = "the table knows every record";

fn hash_of(key: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(*SEED, key)
}

fn charge_of(key: &[u8], entry: &Entry) -> u64 {
    let value_bytes = entry.content.as_ref().map_or(0, |(value, _)| value.len());
    (key.len() + value_bytes) as u64 + ENTRY_OVERHEAD_BYTES
}

/// What is known of a key.
#[derive(Clone, Debug)]
pub(crate) struct Entry<V = Bytes> {
    /// The value; `None`: the database has no such row.
    pub(crate) content: Option<(V, Etag)>,
    /// Why it was loaded.
    pub(crate) reason: LoadReason,
    pub(crate) lifetime: Lifetime,
}

impl Entry<Value<'_>> {
    /// The same, to be kept.
    pub(crate) fn to_owned(&self) -> Entry {
        let content = self.content.map(|(value, etag)| (value.to_bytes(), etag));
        Entry { content, reason: self.reason, lifetime: self.lifetime }
    }
}

/// A value in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    /// In its entry's record, and how it stands in JSON.
    Inside(&'a [u8], Option<Form>),
    /// Too large for that.
    Large(&'a Bytes),
}

impl Value<'_> {
    /// How it stands in JSON, as far as that is known.
    pub(crate) const fn form(self) -> Option<Form> {
        match self {
            Self::Inside(_, form) => form,
            Self::Large(_) => None,
        }
    }

    /// A handle of its own: the same memory if the value is large, else a copy.
    pub(crate) fn to_bytes(self) -> Bytes {
        match self {
            Self::Inside(value, _) => Bytes::copy_from_slice(value),
            Self::Large(value) => value.clone(),
        }
    }
}

impl Deref for Value<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Inside(value, _) => value,
            Self::Large(value) => value,
        }
    }
}

/// Which log an entry is in, and where. There is one for each entry, so it is kept small.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place(Spot);

const IN_MAIN: u32 = 1 << 31;
const _: () = assert!(Spot::AT_MAX < IN_MAIN);

impl Place {
    const fn of(spot: Spot, is_main: bool) -> Self {
        Self(Spot { at: if is_main { spot.at | IN_MAIN } else { spot.at }, ..spot })
    }

    const fn is_main(self) -> bool {
        self.0.at & IN_MAIN != 0
    }

    const fn spot(self) -> Spot {
        Spot { at: self.0.at & !IN_MAIN, ..self.0 }
    }
}

/// The small queue, then the main one.
#[derive(Debug, Default)]
struct Queues([Log; 2]);

impl Queues {
    fn of_mut(&mut self, place: Place) -> &mut Log {
        &mut self.0[usize::from(place.is_main())]
    }

    fn get(&self, place: Place) -> Record<&[u8]> {
        self.0[usize::from(place.is_main())].get(place.spot())
    }

    fn push(&mut self, record: &Record<impl AsRef<[u8]>>, is_main: bool) -> Place {
        Place::of(self.0[usize::from(is_main)].push(record), is_main)
    }

    fn charge(&self) -> u64 {
        self.0.iter().map(Log::charge).sum()
    }

    fn iter(&self) -> impl Iterator<Item = (Place, Record<&[u8]>)> {
        let [small, main] = &self.0;
        let of = |is_main| move |(spot, record)| (Place::of(spot, is_main), record);
        small.iter().map(of(false)).chain(main.iter().map(of(true)))
    }
}

/// Entries by key. Whoever owns it is the only one to change it; dropping it takes its numbers out of the gauges.
pub(crate) struct Entries {
    table: HashTable<Place>,
    queues: Queues,
    /// Values that are too large to stand in their records.
    large: Slab<Bytes>,
    bytes_max: u64,
    /// The region's values are JSON.
    is_json: bool,
    /// When entries of another node were known to be true last; of several times the first.
    handed: i64,
    lost: Lost,
    gauges: EntryGauges,
}

/// What the node tells of all entries of a region together.
#[derive(Clone, Debug)]
pub(crate) struct EntryGauges {
    pub(crate) entries: Gauge,
    pub(crate) bytes: Gauge,
}

/// Too large to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Entries {
    pub(crate) fn new(bytes_max: u64, is_json: bool, gauges: EntryGauges) -> Self {
        let (table, queues, large, lost) = (HashTable::new(), Queues::default(), Slab::new(), Lost::default());
        Self { table, queues, large, bytes_max, is_json, handed: i64::MAX, lost, gauges }
    }

    /// Where what is known of a key is.
    fn place(&self, hash: u64, key: &[u8]) -> Option<Place> {
        self.table.find(hash, |place| self.queues.get(*place).key() == key).copied()
    }

    /// What is known of a key, unless it is gone.
    pub(crate) fn get(&mut self, key: &[u8], now: impl Into<At>) -> Option<Entry<Value<'_>>> {
        let place = self.place(hash_of(key), key)?;
        self.queues.of_mut(place).get_mut(place.spot()).touch();
        Some(self.entry(place)).filter(|entry| entry.lifetime.age(now) != Age::Gone)
    }

    /// What is in memory of a key, gone or not, without counting as a use.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<Entry<Value<'_>>> {
        self.place(hash_of(key), key).map(|place| self.entry(place))
    }

    fn entry(&self, place: Place) -> Entry<Value<'_>> {
        self.queues.get(place).entry(self.handed, &self.large)
    }

    /// Why a key that was in memory lately is there no more.
    pub(crate) fn why_lost(&self, key: &[u8]) -> Option<LoadReason> {
        self.lost.why(hash_of(key))
    }

    /// What they are charged for.
    pub(crate) fn bytes(&self) -> u64 {
        self.queues.charge()
    }

    /// All keys, each with how often it was asked for since it is there.
    pub(crate) fn by_use(&self) -> impl Iterator<Item = (u16, Bytes)> {
        self.queues.iter().map(|(_, record)| (record.uses(), Bytes::copy_from_slice(record.key())))
    }

    /// Keeps an entry of another node if there is room for it beside the others. Whether it did.
    pub(crate) fn take_over(&mut self, key: &[u8], entry: &Entry) -> bool {
        self.remove(key);
        if self.bytes() + charge_of(key, entry) > self.bytes_max {
            return false;
        }
        let mut record = record::make(key, entry, (true, self.is_json), &mut self.large);
        // The other one has found it worth its room.
        record.touch();
        self.handed = self.handed.min(entry.lifetime.trusted);
        self.counted(|entries| entries.add(&record, hash_of(key), true));
        true
    }

    /// Keeps an entry, and gives up others for it. One that is larger than the whole room is refused, and what was
    /// known of its key before is forgotten.
    pub(crate) fn insert(&mut self, key: &[u8], entry: &Entry) -> Result<(), TooLarge> {
        self.counted(|entries| entries.put(key, entry))
    }

    fn put(&mut self, key: &[u8], entry: &Entry) -> Result<(), TooLarge> {
        let (hash, charge) = (hash_of(key), charge_of(key, entry));
        let place = self.place(hash, key);
        if charge > self.bytes_max {
            if let Some(place) = place {
                self.take(hash, place);
            }
            return Err(TooLarge);
        }
        let mut record = record::make(key, entry, (false, self.is_json), &mut self.large);
        let Some(place) = place else {
            let was_evicted = self.lost.why(hash) == Some(LoadReason::Evicted);
            self.make_room(charge);
            self.add(&record, hash, was_evicted);
            return Ok(());
        };
        let before = self.queues.get(place);
        record.replaces(&before);
        let is_as_long = before.bytes().len() == record.bytes().len();
        if is_as_long && self.bytes() - before.charge() + charge <= self.bytes_max {
            before.large().map(|place| self.large.remove(place));
            self.queues.of_mut(place).replace(place.spot(), &record);
        } else {
            self.take(hash, place);
            self.make_room(charge);
            self.add(&record, hash, place.is_main());
        }
        Ok(())
    }

    /// Puts in what was not there.
    fn add(&mut self, record: &Record<Vec<u8>>, hash: u64, is_main: bool) {
        let place = self.queues.push(record, is_main);
        let queues = &self.queues;
        self.table.insert_unique(hash, place, |place| hash_of(queues.get(*place).key()));
        self.lost.forget(hash);
    }

    /// Takes out what is there.
    fn take(&mut self, hash: u64, place: Place) {
        self.table.find_entry(hash, |other| *other == place).expect(KNOWN).remove();
        self.queues.get(place).large().map(|place| self.large.remove(place));
        self.queues.of_mut(place).take(place.spot());
    }

    /// Gives entries up until there is room for so many bytes more.
    fn make_room(&mut self, bytes: u64) {
        let mut n_spared = 0;
        while self.bytes() + bytes > self.bytes_max {
            let [small, main] = &mut self.queues.0;
            let is_main = main.len() > 0 && small.charge() <= self.bytes_max / SMALL_PART;
            let oldest = if is_main { main.pop() } else { small.pop() };
            let Some((spot, mut record)) = oldest else { return };
            let (place, hash, clock) = (Place::of(spot, is_main), hash_of(record.key()), record.clock());
            let mut found = self.table.find_entry(hash, |other| *other == place).expect(KNOWN);
            if clock == 0 || n_spared == SPARED_MAX {
                found.remove();
                record.large().map(|place| self.large.remove(place));
                if record.lifetime(self.handed).age(Instant::now()) != Age::Gone {
                    self.lost.note(hash, true, self.table.len());
                }
            } else {
                n_spared += 1;
                record.set_clock(if is_main { clock - 1 } else { 0 });
                *found.get_mut() = self.queues.push(&record, true);
            }
        }
    }

    /// Forgets a key. Gives how many entries that were: none or one.
    pub(crate) fn remove(&mut self, key: &[u8]) -> usize {
        let hash = hash_of(key);
        let Some(place) = self.place(hash, key) else { return 0 };
        self.counted(|entries| entries.invalidate(hash, place));
        1
    }

    fn invalidate(&mut self, hash: u64, place: Place) {
        if self.queues.get(place).lifetime(self.handed).age(Instant::now()) != Age::Gone {
            self.lost.note(hash, false, self.table.len());
        }
        self.take(hash, place);
    }

    /// Forgets all keys that begin so. Gives how many entries that were.
    pub(crate) fn remove_prefix(&mut self, prefix: &[u8]) -> usize {
        let meant = self.all(|record| record.key().starts_with(prefix));
        self.counted(|entries| {
            meant.iter().for_each(|(place, hash)| entries.invalidate(*hash, *place));
        });
        meant.len()
    }

    /// Sets another bound, and gives up what is over it.
    pub(crate) fn resize(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
        self.counted(|entries| entries.make_room(0));
    }

    /// Forgets what is gone, so that it holds no memory.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let gone = self.all(|record| record.lifetime(self.handed).age(now) == Age::Gone);
        self.counted(|entries| {
            for (place, hash) in gone {
                entries.take(hash, place);
            }
        });
        if self.table.len() < self.table.capacity() / TABLE_PART {
            let queues = &self.queues;
            self.table.shrink_to_fit(|place| hash_of(queues.get(*place).key()));
        }
        self.large.shrink_to_fit();
    }

    /// Where those entries are, with the hashes of their keys.
    fn all(&self, is_meant: impl Fn(&Record<&[u8]>) -> bool) -> Vec<(Place, u64)> {
        let meant = self.queues.iter().filter(|(_, record)| is_meant(record));
        meant.map(|(place, record)| (place, hash_of(record.key()))).collect()
    }

    /// Closes holes, if there are too many.
    fn clean(&mut self) {
        let table = &mut self.table;
        for (log, is_main) in self.queues.0.iter_mut().zip([false, true]) {
            log.clean(|record, old, new| {
                let [old, new] = [old, new].map(|spot| Place::of(spot, is_main));
                *table.find_mut(hash_of(record.key()), |place| *place == old).expect(KNOWN) = new;
            });
        }
    }

    /// Counts what a change of the entries has changed, and cleans up behind it.
    fn counted<T>(&mut self, change: impl FnOnce(&mut Self) -> T) -> T {
        let before = self.size();
        let answer = change(self);
        self.clean();
        let after = self.size();
        self.gauges.entries.inc_by(after.0 - before.0);
        self.gauges.bytes.inc_by(after.1 - before.1);
        answer
    }

    fn size(&self) -> (i64, i64) {
        let entries = i64::try_from(self.table.len()).unwrap_or(i64::MAX);
        (entries, i64::try_from(self.bytes()).unwrap_or(i64::MAX))
    }
}

impl Drop for Entries {
    fn drop(&mut self) {
        let (entries, bytes) = self.size();
        self.gauges.entries.dec_by(entries);
        self.gauges.bytes.dec_by(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::shard::freshness::Freshness;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMES: Freshness = Freshness { ttl: SECOND, max_stale: Duration::from_secs(2), absent_ttl: SECOND };

    fn entries(bytes_max: u64) -> (Entries, EntryGauges) {
        let gauges = EntryGauges { entries: Gauge::default(), bytes: Gauge::default() };
        (Entries::new(bytes_max, false, gauges.clone()), gauges)
    }

    fn entry(len: usize, sent: Instant) -> Entry {
        let value = Bytes::from(vec![b'v'; len]);
        let etag = Etag::of(&value);
        Entry { content: Some((value, etag)), reason: LoadReason::Cold, lifetime: TIMES.lifetime(sent, false, 0.0) }
    }

    fn key(number: u32) -> [u8; 4] {
        number.to_le_bytes()
    }

    /// Puts entries of these numbers in, all of one length.
    fn fill(entries: &mut Entries, numbers: std::ops::Range<u32>, len: usize, now: Instant) {
        for number in numbers {
            entries.insert(&key(number), &entry(len, now)).expect("fits");
        }
    }

    #[test]
    fn the_bound_holds_whatever_is_put_in() {
        const BOUND: u64 = 64 * 1024;
        let (mut entries, gauges) = entries(BOUND);
        let now = Instant::now();
        for number in 0..10_000 {
            let len = usize::try_from(number % 700).expect("small");
            entries.insert(&key(number), &entry(len, now)).expect("small entries fit");
            let bytes = u64::try_from(gauges.bytes.get()).expect("never negative");
            assert!(bytes <= BOUND, "{bytes} bytes after {number}");
        }
        assert!(gauges.entries.get() > 50, "most of the room is used");
        drop(entries);
        assert_eq!((gauges.entries.get(), gauges.bytes.get()), (0, 0));
    }

    #[test]
    fn all_that_fits_is_kept() {
        let (mut entries, gauges) = entries(100 * (1024 + 4 + ENTRY_OVERHEAD_BYTES));
        let now = Instant::now();
        fill(&mut entries, 0..100, 1024, now);
        assert!((0..100).all(|number| entries.get(&key(number), now).is_some()));
        assert_eq!(gauges.entries.get(), 100);
    }

    #[test]
    fn what_is_too_large_is_refused_and_takes_its_old_value_along() {
        let (mut entries, gauges) = entries(1000);
        let now = Instant::now();
        entries.insert(&key(1), &entry(10, now)).expect("fits");
        assert_eq!(entries.insert(&key(1), &entry(1000, now)), Err(TooLarge));
        assert!(entries.peek(&key(1)).is_none());
        assert_eq!((gauges.entries.get(), gauges.bytes.get()), (0, 0));
    }

    #[test]
    fn what_is_gone_is_not_served_and_is_swept() {
        let (mut entries, gauges) = entries(10_000);
        let now = Instant::now();
        entries.insert(&key(1), &entry(10, now)).expect("fits");
        assert!(entries.get(&key(1), now + SECOND).is_some(), "stale is still there");
        assert!(entries.get(&key(1), now + 2 * SECOND).is_none());
        assert!(entries.peek(&key(1)).is_some());
        entries.sweep(now + 2 * SECOND);
        assert!(entries.peek(&key(1)).is_none());
        assert_eq!((gauges.entries.get(), gauges.bytes.get()), (0, 0));
    }

    #[test]
    fn what_gave_way_before_its_time_is_remembered_for_a_while() {
        let (mut entries, _) = entries(10_000);
        let now = Instant::now();
        entries.insert(&key(0), &entry(500, now)).expect("fits");
        entries.insert(&key(0), &entry(400, now)).expect("fits");
        assert_eq!(entries.why_lost(&key(0)), None, "it was replaced");
        fill(&mut entries, 1..100, 500, now);
        let missing: Vec<u32> = (0..100).filter(|number| entries.peek(&key(*number)).is_none()).collect();
        let is_evicted = |number: &u32| entries.why_lost(&key(*number)) == Some(LoadReason::Evicted);
        let n_evicted = missing.iter().copied().filter(is_evicted).count();
        // Some meet in the table of what was lost.
        assert!(missing.len() > 50 && n_evicted > missing.len() / 2, "{n_evicted} of {}", missing.len());
        assert!((0..100).filter(|number| !missing.contains(number)).all(|number| !is_evicted(&number)));
        let again = missing[missing.len() - 1];
        entries.insert(&key(again), &entry(500, now)).expect("fits");
        assert_eq!(entries.why_lost(&key(again)), None, "it is there again");
    }

    #[test]
    fn a_scan_passes_by_what_is_asked_for() {
        let (mut entries, _) = entries(1000 * (100 + 4 + ENTRY_OVERHEAD_BYTES));
        let now = Instant::now();
        for number in 0..500 {
            entries.insert(&key(number), &entry(100, now)).expect("fits");
            assert!(entries.get(&key(number), now).is_some());
        }
        fill(&mut entries, 500..20_000, 100, now);
        let n_left = (0..500).filter(|number| entries.peek(&key(*number)).is_some()).count();
        assert!(n_left >= 498, "each was asked for, and nothing of the scan was: {n_left}");
    }

    #[test]
    fn what_was_evicted_too_early_does_not_wait_again() {
        let (mut entries, _) = entries(1000 * (100 + 4 + ENTRY_OVERHEAD_BYTES));
        let now = Instant::now();
        fill(&mut entries, 0..1001, 100, now);
        assert_eq!(entries.why_lost(&key(0)), Some(LoadReason::Evicted));
        entries.insert(&key(0), &entry(100, now)).expect("fits");
        fill(&mut entries, 2000..3000, 100, now);
        assert!(entries.peek(&key(0)).is_some() && entries.peek(&key(1000)).is_none());
    }

    #[test]
    fn what_is_taken_over_keeps_what_it_was_known_to_be_true_at() {
        let (mut entries, _) = entries(100_000);
        let asked_at = Instant::now() + SECOND;
        let handed = Lifetime::of_handed(asked_at, SECOND, SECOND, 2 * SECOND);
        let other = Lifetime::of_handed(asked_at + SECOND, SECOND, SECOND, 2 * SECOND);
        for (number, lifetime) in [(1, handed), (2, other)] {
            assert!(entries.take_over(&key(number), &Entry { lifetime, ..entry(10, asked_at) }));
        }
        let lifetime = |number| entries.peek(&key(number)).expect("it is there").lifetime;
        assert_eq!(lifetime(1), handed);
        assert_eq!(lifetime(2), Lifetime { trusted: handed.trusted, ..other }, "never later than it was");
    }

    #[test]
    fn what_comes_and_goes_beside_what_stays_takes_no_more_and_more_memory() {
        let (mut entries, _) = entries(1 << 20);
        let now = Instant::now();
        entries.insert(&key(0), &entry(100, now)).expect("fits");
        for _ in 0..10_000 {
            for number in [1, 2] {
                entries.insert(&key(number), &entry(5000, now)).expect("fits");
            }
            assert_eq!((entries.remove(&key(1)), entries.remove(&key(2))), (1, 1));
            entries.queues.0.iter().for_each(Log::check);
        }
    }

    #[test]
    fn an_insert_spares_no_more_than_it_may() {
        let (mut entries, _) = entries(3000 * (100 + 4 + ENTRY_OVERHEAD_BYTES));
        let now = Instant::now();
        for number in 0..3000 {
            entries.insert(&key(number), &entry(100, now)).expect("fits");
            assert!(entries.get(&key(number), now).is_some());
        }
        entries.insert(&key(3000), &entry(100, now)).expect("fits");
        assert_eq!(entries.queues.0[1].len(), SPARED_MAX);
        assert_eq!(entries.table.len(), 3000);
    }

    proptest! {
        /// Whatever is done, what is in memory is what was put in last, the bound holds, and nothing is counted wrong.
        #[test]
        fn it_holds_what_was_put_in_last(
            steps in prop::collection::vec((0_u8..20, 0_u32..60, prop_oneof![0_usize..300, 0_usize..20_000]), 1..600),
        ) {
            let (mut entries, gauges) = entries(100_000);
            let (now, mut model, mut bound) = (Instant::now(), HashMap::new(), 100_000);
            for (what, number, len) in steps {
                let key = key(number);
                match what {
                    0..=9 => {
                        let kept = entries.insert(&key, &entry(len, now)).is_ok();
                        prop_assert_eq!(kept, 4 + len as u64 + ENTRY_OVERHEAD_BYTES <= bound);
                        if kept {
                            prop_assert!(entries.peek(&key).is_some());
                            model.insert(key, len);
                        } else {
                            model.remove(&key);
                        }
                    }
                    10..=14 => drop(entries.get(&key, now)),
                    15 | 16 => {
                        let was_there = entries.peek(&key).is_some();
                        prop_assert_eq!(entries.remove(&key), usize::from(was_there));
                        model.remove(&key);
                    }
                    17 => {
                        if entries.take_over(&key, &entry(len, now)) {
                            model.insert(key, len);
                        } else {
                            model.remove(&key);
                        }
                    }
                    18 => {
                        bound = 15_000 + len as u64 * 10;
                        entries.resize(bound);
                    }
                    _ => {
                        entries.remove_prefix(&key[..1]);
                        model.remove(&key);
                    }
                }
                prop_assert!(entries.bytes() <= bound);
                let there: Vec<(Bytes, u64)> = entries.queues.iter().map(|(_, item)| (
                    Bytes::copy_from_slice(item.key()),
                    item.charge(),
                )).collect();
                for (key, bytes) in &there {
                    let len = model.get(&key[..]).copied();
                    prop_assert_eq!(len.map(|len| 4 + len as u64 + ENTRY_OVERHEAD_BYTES), Some(*bytes));
                    let value = entries.peek(key).expect("the table knows it").content.expect("a value").0.len();
                    prop_assert_eq!(Some(value), len);
                }
                let size = (gauges.entries.get(), u64::try_from(gauges.bytes.get()).expect("never negative"));
                prop_assert_eq!(size, (there.len() as i64, there.iter().map(|(_, bytes)| bytes).sum()));
                prop_assert_eq!(entries.table.len(), there.len());
                let n_large = there.iter().filter(|(_, bytes)| *bytes > (4 + record::VALUE_BYTES_INSIDE) as u64 + ENTRY_OVERHEAD_BYTES).count();
                prop_assert_eq!(entries.large.len(), n_large);
                entries.queues.0.iter().for_each(Log::check);
            }
        }
    }

    #[test]
    fn what_is_invalidated_is_forgotten_and_its_reason_is_not() {
        let (mut entries, gauges) = entries(100_000);
        let now = Instant::now();
        for name in ["a/1", "a/2", "b/1"] {
            entries.insert(name.as_bytes(), &entry(10, now)).expect("fits");
        }
        assert_eq!((entries.remove(b"a/1"), entries.remove(b"a/1")), (1, 0));
        assert_eq!(entries.why_lost(b"a/1"), Some(LoadReason::Invalidated));
        assert_eq!((entries.remove_prefix(b"a/"), gauges.entries.get()), (1, 1));
        assert_eq!((entries.remove_prefix(b""), gauges.entries.get(), gauges.bytes.get()), (1, 0, 0));
    }

    #[test]
    fn a_smaller_bound_gives_up_what_is_over_it() {
        let (mut entries, gauges) = entries(100_000);
        let now = Instant::now();
        fill(&mut entries, 0..100, 500, now);
        entries.resize(5_000);
        assert!(gauges.bytes.get() <= 5_000 && gauges.bytes.get() > 0, "{}", gauges.bytes.get());
    }
}
