//! The entries of one region in one shard, bounded by bytes.
//!
//! Eviction is quick_cache's (S3-FIFO); lifetimes are ours: an entry is looked at when it is read, and swept when it
//! is gone.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::RandomState;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use prometheus_client::metrics::gauge::Gauge;
use quick_cache::unsync::Cache;
use quick_cache::{Lifecycle, Weighter};
use sharding::wire::Etag;
use twox_hash::XxHash3_64;

use super::freshness::{Age, Lifetime};
use crate::metrics::LoadReason;

/// Charged for each entry beyond its key and value: the table's slot, the handles and the lifetime.
pub const ENTRY_OVERHEAD_BYTES: u64 = 128;
/// Size of an entry that the table is prepared for; others only make it grow sooner or later.
const TYPICAL_ENTRY_BYTES: u64 = 1024;

/// What is known of a key.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// The value; `None`: the database has no such row.
    pub(crate) content: Option<(Bytes, Etag)>,
    /// Why it was loaded.
    pub(crate) reason: LoadReason,
    pub(crate) lifetime: Lifetime,
}

impl Entry {
    /// The same, whose value is nobody else's: a handle that was shared once costs more, and may hold a piece of memory that is
    /// larger than the value.
    pub(crate) fn apart(&self) -> Self {
        let content = self.content.as_ref().map(|(value, etag)| match value.len() {
            ..=VALUE_BYTES_COPIED => (Bytes::copy_from_slice(value), *etag),
            _ => (value.clone(), *etag),
        });
        Self { content, ..*self }
    }
}

/// A larger value is not copied.
const VALUE_BYTES_COPIED: usize = 64 * 1024;

#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<[u8]>, Entry> for ByBytes {
    fn weight(&self, key: &Box<[u8]>, entry: &Entry) -> u64 {
        let value_bytes = entry.content.as_ref().map_or(0, |(value, _)| value.len());
        key.len() as u64 + value_bytes as u64 + ENTRY_OVERHEAD_BYTES
    }
}

/// Most keys that are remembered to have been lost before their time; the oldest are forgotten.
const LOST_MAX: usize = 256;

/// Keys that were in memory and are not any more, though they were not gone: by their hashes, with the reason for which
/// they will be loaded again.
#[derive(Clone, Debug, Default)]
struct Lost(Rc<RefCell<Notes>>);

#[derive(Debug, Default)]
struct Notes {
    in_order: VecDeque<u64>,
    reasons: HashMap<u64, LoadReason>,
}

impl Lost {
    fn note(&self, key: &[u8], entry: &Entry, reason: LoadReason) {
        if entry.lifetime.age(Instant::now()) == Age::Gone {
            return;
        }
        let Notes { in_order, reasons } = &mut *self.0.borrow_mut();
        let hash = XxHash3_64::oneshot(key);
        if reasons.insert(hash, reason).is_none() {
            in_order.push_back(hash);
        }
        if in_order.len() > LOST_MAX
            && let Some(oldest) = in_order.pop_front()
        {
            reasons.remove(&oldest);
        }
    }

    fn forget(&self, hash: u64) {
        let Notes { in_order, reasons } = &mut *self.0.borrow_mut();
        if reasons.remove(&hash).is_some() {
            in_order.retain(|other| *other != hash);
        }
    }
}

impl Lifecycle<Box<[u8]>, Entry> for Lost {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), key: Box<[u8]>, entry: Entry) {
        self.note(&key, &entry, LoadReason::Evicted);
    }
}

type Table = Cache<Box<[u8]>, Entry, ByBytes, RandomState, Lost>;

/// Entries by key. Whoever owns it is the only one to change it; dropping it takes its numbers out of the gauges.
pub(crate) struct Entries {
    cache: Table,
    lost: Lost,
    gauges: EntryGauges,
}

/// What the node tells of all entries of a region together.
#[derive(Clone, Debug)]
pub(crate) struct EntryGauges {
    pub(crate) entries: Gauge,
    pub(crate) bytes: Gauge,
}

/// The cache keeps no entry larger than this share of its room (quick_cache's default `hot_allocation`).
const HOT_PERCENT: u64 = 97;

/// Too large to be kept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLarge;

impl Entries {
    pub(crate) fn new(bytes_max: u64, gauges: EntryGauges) -> Self {
        let typical_items = usize::try_from(bytes_max / TYPICAL_ENTRY_BYTES).unwrap_or(usize::MAX);
        let lost = Lost::default();
        let cache = Cache::with(typical_items.max(1), bytes_max, ByBytes, RandomState::new(), lost.clone());
        Self { cache, lost, gauges }
    }

    /// What is known of a key, unless it is gone.
    pub(crate) fn get(&self, key: &[u8], now: Instant) -> Option<&Entry> {
        self.cache.get(key).filter(|entry| entry.lifetime.age(now) != Age::Gone)
    }

    /// What is in memory of a key, gone or not, without counting as a use.
    pub(crate) fn peek(&self, key: &[u8]) -> Option<&Entry> {
        self.cache.peek(key)
    }

    /// Why a key that was in memory lately is there no more.
    pub(crate) fn why_lost(&self, key: &[u8]) -> Option<LoadReason> {
        self.lost.0.borrow().reasons.get(&XxHash3_64::oneshot(key)).copied()
    }

    /// What they are charged for.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// All keys, each with how often it was asked for since it is there.
    pub(crate) fn by_use(&self) -> Vec<(u64, Box<[u8]>)> {
        let used = |key: &[u8]| self.cache.item_stats(key).map_or(0, |stats| stats.access_count);
        self.cache.iter().map(|(key, _)| (used(key), key.clone())).collect()
    }

    /// Keeps an entry if there is room for it beside the others. Whether it did.
    pub(crate) fn take_over(&mut self, key: Box<[u8]>, entry: Entry) -> bool {
        let weight = ByBytes.weight(&key, &entry);
        self.remove(&key);
        self.cache.weight() + weight <= self.cache.capacity() / 100 * HOT_PERCENT && self.insert(key, entry).is_ok()
    }

    /// Keeps an entry, and gives up others for it. One that is larger than the whole room is refused, and what was
    /// known of its key before is forgotten.
    pub(crate) fn insert(&mut self, key: Box<[u8]>, entry: Entry) -> Result<(), TooLarge> {
        let lost = self.lost.clone();
        self.counted(|cache| {
            if ByBytes.weight(&key, &entry) > cache.capacity() / 100 * HOT_PERCENT {
                cache.remove(&*key);
                return Err(TooLarge);
            }
            let hash = XxHash3_64::oneshot(&key);
            cache.insert(key, entry);
            // It is there now; and one that was replaced was not evicted, although the table says so.
            lost.forget(hash);
            Ok(())
        })
    }

    /// Forgets a key. Gives how many entries that were: none or one.
    pub(crate) fn remove(&mut self, key: &[u8]) -> usize {
        let lost = self.counted(|cache| cache.remove(key));
        lost.iter().for_each(|(key, entry)| self.lost.note(key, entry, LoadReason::Invalidated));
        usize::from(lost.is_some())
    }

    /// Forgets all keys that begin so. Gives how many entries that were.
    pub(crate) fn remove_prefix(&mut self, prefix: &[u8]) -> usize {
        let (before, lost) = (self.cache.len(), self.lost.clone());
        self.counted(|cache| {
            cache.retain(|key, entry| {
                let is_meant = key.starts_with(prefix);
                if is_meant {
                    lost.note(key, entry, LoadReason::Invalidated);
                }
                !is_meant
            });
        });
        before - self.cache.len()
    }

    /// Sets another bound, and gives up what is over it.
    pub(crate) fn resize(&mut self, bytes_max: u64) {
        self.counted(|cache| cache.set_capacity(bytes_max));
    }

    /// Forgets what is gone, so that it holds no memory.
    pub(crate) fn sweep(&mut self, now: Instant) {
        self.counted(|cache| cache.retain(|_, entry| entry.lifetime.age(now) != Age::Gone));
    }

    fn counted<T>(&mut self, change: impl FnOnce(&mut Table) -> T) -> T {
        let before = self.size();
        let answer = change(&mut self.cache);
        let after = self.size();
        self.gauges.entries.inc_by(after.0 - before.0);
        self.gauges.bytes.inc_by(after.1 - before.1);
        answer
    }

    fn size(&self) -> (i64, i64) {
        let entries = i64::try_from(self.cache.len()).unwrap_or(i64::MAX);
        (entries, i64::try_from(self.cache.weight()).unwrap_or(i64::MAX))
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
    use std::time::Duration;

    use super::*;
    use crate::shard::freshness::Freshness;

    const SECOND: Duration = Duration::from_secs(1);
    const TIMES: Freshness = Freshness { ttl: SECOND, max_stale: Duration::from_secs(2), absent_ttl: SECOND };

    fn entries(bytes_max: u64) -> (Entries, EntryGauges) {
        let gauges = EntryGauges { entries: Gauge::default(), bytes: Gauge::default() };
        (Entries::new(bytes_max, gauges.clone()), gauges)
    }

    fn entry(len: usize, sent: Instant) -> Entry {
        let value = Bytes::from(vec![b'v'; len]);
        let etag = Etag::of(&value);
        Entry { content: Some((value, etag)), reason: LoadReason::Cold, lifetime: TIMES.lifetime(sent, false, 0.0) }
    }

    fn key(number: u32) -> Box<[u8]> {
        Box::from(number.to_le_bytes())
    }

    #[test]
    fn the_bound_holds_whatever_is_put_in() {
        const BOUND: u64 = 64 * 1024;
        let (mut entries, gauges) = entries(BOUND);
        let now = Instant::now();
        for number in 0..10_000 {
            let len = usize::try_from(number % 700).expect("small");
            entries.insert(key(number), entry(len, now)).expect("small entries fit");
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
        for number in 0..100 {
            entries.insert(key(number), entry(1024, now)).expect("fits");
        }
        assert!((0..100).all(|number| entries.get(&key(number), now).is_some()));
        assert_eq!(gauges.entries.get(), 100);
    }

    #[test]
    fn what_is_too_large_is_refused_and_takes_its_old_value_along() {
        let (mut entries, gauges) = entries(1000);
        let now = Instant::now();
        entries.insert(key(1), entry(10, now)).expect("fits");
        assert_eq!(entries.insert(key(1), entry(1000, now)), Err(TooLarge));
        assert!(entries.peek(&key(1)).is_none());
        assert_eq!((gauges.entries.get(), gauges.bytes.get()), (0, 0));
    }

    #[test]
    fn what_is_gone_is_not_served_and_is_swept() {
        let (mut entries, gauges) = entries(10_000);
        let now = Instant::now();
        entries.insert(key(1), entry(10, now)).expect("fits");
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
        entries.insert(key(0), entry(500, now)).expect("fits");
        entries.insert(key(0), entry(400, now)).expect("fits");
        assert_eq!(entries.why_lost(&key(0)), None, "it was replaced");
        for number in 1..100 {
            entries.insert(key(number), entry(500, now)).expect("fits");
        }
        let n_missing = (0..100).filter(|number| entries.peek(&key(*number)).is_none()).count();
        let is_evicted = |number: &u32| entries.why_lost(&key(*number)) == Some(LoadReason::Evicted);
        let n_evicted = (0..100).filter(is_evicted).count();
        assert!(n_missing > 50 && n_evicted == n_missing, "{n_evicted} of {n_missing}");
        for number in 100..2000 {
            entries.insert(key(number), entry(500, now)).expect("fits");
        }
        assert!(entries.lost.0.borrow().reasons.len() <= LOST_MAX);
    }

    #[test]
    fn what_is_invalidated_is_forgotten_and_its_reason_is_not() {
        let (mut entries, gauges) = entries(100_000);
        let now = Instant::now();
        for name in ["a/1", "a/2", "b/1"] {
            entries.insert(Box::from(name.as_bytes()), entry(10, now)).expect("fits");
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
        for number in 0..100 {
            entries.insert(key(number), entry(500, now)).expect("fits");
        }
        entries.resize(5_000);
        assert!(gauges.bytes.get() <= 5_000 && gauges.bytes.get() > 0, "{}", gauges.bytes.get());
    }
}
