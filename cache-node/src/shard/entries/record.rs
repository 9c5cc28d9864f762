//! An entry as it lies in memory: what is to be known of it, its key and its value, one after the other.

use bytes::{Buf, BufMut, Bytes};
use sharding::form::Form;
use sharding::id::KEY_BYTES_MAX;
use sharding::wire::Etag;
use slab::Slab;

use super::{ENTRY_OVERHEAD_BYTES, Entry, Value};
use crate::metrics::LoadReason;
use crate::shard::freshness::Lifetime;

/// A larger value does not stand in its record, but among the large ones.
pub(super) const VALUE_BYTES_INSIDE: usize = 8 * 1024;
/// A larger value is not even copied: it stays where it was read to, unless that is a part of a shard.
const VALUE_BYTES_COPIED: usize = 64 * 1024;

// What stands before the key, each at its place. Times are those of a `Lifetime`; all is little-endian.
const SENT_BYTES: usize = 6;
const ETAG: usize = SENT_BYTES + 4 + 4;
const USES: usize = ETAG + 16;
const KEY_LEN: usize = USES + 2;
const VALUE_LEN: usize = KEY_LEN + 2;
const FLAGS: usize = VALUE_LEN + 2;
const HEAD_BYTES: usize = FLAGS + 1;

// What the length of a key leaves of its two bytes.
const IS_DEAD: u16 = 1 << 15;
const IS_LARGE: u16 = 1 << 14;
const IS_ABSENT: u16 = 1 << 13;
const LEN: u16 = IS_ABSENT - 1;
const _: () = assert!(KEY_BYTES_MAX <= LEN as usize);

// What the length of a value leaves of its two bytes.
const FORM_SHIFT: u32 = 14;
const _: () = assert!(VALUE_BYTES_INSIDE < 1 << FORM_SHIFT);

// The flags.
const REASON: u8 = 0b1111;
const IS_HANDED: u8 = 1 << 4;
const CLOCK_SHIFT: u32 = 6;
const _: () = assert!(LoadReason::ALL.len() <= REASON as usize + 1);

/// Most uses that an entry's clock counts.
const CLOCK_MAX: u8 = 3;

/// Longest record.
pub(super) const RECORD_BYTES_MAX: usize = HEAD_BYTES + KEY_BYTES_MAX + VALUE_BYTES_INSIDE;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record<B>(pub(super) B);

/// The record of an entry. `is_handed`: another node had it before. `is_json`: its region's values are JSON.
/// Requires: a key of at most [`KEY_BYTES_MAX`] bytes.
pub(super) fn make(
    key: &[u8],
    entry: &Entry,
    (is_handed, is_json): (bool, bool),
    large: &mut Slab<Bytes>,
) -> Record<Vec<u8>> {
    assert!(key.len() <= KEY_BYTES_MAX, "keys that come in are bounded");
    let value = entry.content.as_ref().map(|(value, _)| value);
    let mut record =
        Vec::with_capacity(HEAD_BYTES + key.len() + value.map_or(0, |value| value.len().min(VALUE_BYTES_INSIDE)));
    let Lifetime { sent, stale, gone, .. } = entry.lifetime;
    record.put_int_le(sent, SENT_BYTES);
    record.put_u32_le(stale);
    record.put_u32_le(gone);
    record.put_u128_le(entry.content.as_ref().map_or(0, |(_, etag)| etag.0));
    record.put_u16_le(0);
    let key_len = u16::try_from(key.len()).expect("a key is bounded");
    let (flag, value_len) = match value {
        None => (IS_ABSENT, 0),
        Some(value) if value.len() > VALUE_BYTES_INSIDE => (IS_LARGE, size_of::<u64>() * 2),
        Some(value) => (0, value.len()),
    };
    record.put_u16_le(key_len | flag);
    let form = value.filter(|_| flag == 0).and_then(|value| Form::of(value, is_json));
    let value_len = u16::try_from(value_len).expect("what stands in a record is bounded");
    record.put_u16_le(value_len | u16::from(Form::number(form)) << FORM_SHIFT);
    record.put_u8(entry.reason as u8 | if is_handed { IS_HANDED } else { 0 });
    record.put_slice(key);
    match value {
        Some(value) if flag == IS_LARGE => {
            let is_alone = value.len() > VALUE_BYTES_COPIED && !is_handed;
            let kept = if is_alone { value.clone() } else { Bytes::copy_from_slice(value) };
            record.put_u64_le(large.insert(kept) as u64);
            record.put_u64_le(value.len() as u64);
        }
        Some(value) => record.put_slice(value),
        None => {}
    }
    Record(record)
}

impl<'a> Record<&'a [u8]> {
    /// The one that these bytes begin with.
    pub(super) fn first_of(bytes: &'a [u8]) -> Self {
        let all = Self(bytes);
        Self(&bytes[..all.value_at() + all.value_len()])
    }

    /// What it says. `handed`: when entries of another node were known to be true, as [`Lifetime`] counts.
    pub(super) fn entry(self, handed: i64, large: &'a Slab<Bytes>) -> Entry<Value<'a>> {
        let is_absent = self.short(KEY_LEN) & IS_ABSENT != 0;
        let etag = Etag((&self.0[ETAG..]).get_u128_le());
        let inside = || Value::Inside(&self.0[self.value_at()..], self.form());
        let value = self.large().map_or_else(inside, |place| Value::Large(&large[place]));
        let reason = LoadReason::ALL[usize::from(self.flags() & REASON)];
        let content = if is_absent { None } else { Some((value, etag)) };
        Entry { content, reason, lifetime: self.lifetime(handed) }
    }
}

impl<B: AsRef<[u8]>> Record<B> {
    pub(super) fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    fn short(&self, at: usize) -> u16 {
        (&self.bytes()[at..]).get_u16_le()
    }

    fn value_at(&self) -> usize {
        HEAD_BYTES + usize::from(self.short(KEY_LEN) & LEN)
    }

    fn value_len(&self) -> usize {
        usize::from(self.short(VALUE_LEN) & !(u16::MAX << FORM_SHIFT))
    }

    /// Of a value that stands in it.
    fn form(&self) -> Option<Form> {
        Form::from_number((self.short(VALUE_LEN) >> FORM_SHIFT) as u8)
    }

    fn inside(&self) -> &[u8] {
        &self.bytes()[self.value_at()..]
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.bytes()[HEAD_BYTES..self.value_at()]
    }

    /// Where its value is among the large ones.
    pub(super) fn large(&self) -> Option<usize> {
        let is_large = self.short(KEY_LEN) & IS_LARGE != 0;
        is_large.then(|| usize::try_from(self.inside().get_u64_le()).expect("it was a usize"))
    }

    /// What it is charged for.
    pub(super) fn charge(&self) -> u64 {
        let value_bytes = match self.large() {
            Some(_) => (&self.inside()[size_of::<u64>()..]).get_u64_le(),
            None => self.value_len() as u64,
        };
        self.key().len() as u64 + value_bytes + ENTRY_OVERHEAD_BYTES
    }

    pub(super) fn lifetime(&self, handed: i64) -> Lifetime {
        let mut head = self.bytes();
        let sent = head.get_int_le(SENT_BYTES);
        let trusted = if self.flags() & IS_HANDED == 0 { sent } else { handed };
        Lifetime { sent, trusted, stale: head.get_u32_le(), gone: head.get_u32_le() }
    }

    fn flags(&self) -> u8 {
        self.bytes()[FLAGS]
    }

    pub(super) fn is_dead(&self) -> bool {
        self.short(KEY_LEN) & IS_DEAD != 0
    }

    /// How often it was asked for since it is there; counts no further than it can.
    pub(super) fn uses(&self) -> u16 {
        self.short(USES)
    }

    /// Uses that eviction has not forgotten yet.
    pub(super) fn clock(&self) -> u8 {
        self.flags() >> CLOCK_SHIFT
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> Record<B> {
    fn set_uses(&mut self, uses: u16) {
        self.0.as_mut()[USES..USES + 2].copy_from_slice(&uses.to_le_bytes());
    }

    pub(super) fn set_clock(&mut self, clock: u8) {
        let flags = self.flags() & !(CLOCK_MAX << CLOCK_SHIFT);
        self.0.as_mut()[FLAGS] = flags | clock.min(CLOCK_MAX) << CLOCK_SHIFT;
    }

    /// It is asked for.
    pub(super) fn touch(&mut self) {
        self.set_uses(self.uses().saturating_add(1));
        self.set_clock(self.clock() + 1);
    }

    /// It takes the place of another, and is as valuable.
    pub(super) fn replaces(&mut self, other: &Record<impl AsRef<[u8]>>) {
        self.set_uses(other.uses());
        self.set_clock(other.clock());
    }

    /// It is there no more.
    pub(super) fn kill(&mut self) {
        let len = self.short(KEY_LEN) | IS_DEAD;
        self.0.as_mut()[KEY_LEN..KEY_LEN + 2].copy_from_slice(&len.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_record_says_what_it_was_made_of(
            key in prop::collection::vec(any::<u8>(), 1..300),
            value in prop::option::of(prop::collection::vec(any::<u8>(), 0..2 * VALUE_BYTES_INSIDE)),
            is_larger in any::<bool>(),
            times in (-(1_i64 << 47)..1 << 47, any::<u32>(), any::<u32>()),
            reason in prop::sample::select(&LoadReason::ALL[..]),
            (is_handed, is_json) in any::<(bool, bool)>(),
            touches in 0_u16..10,
        ) {
            let value = value.map(|value| if is_larger { value.repeat(10) } else { value });
            let content = value.map(|value| (Etag::of(&value), Bytes::from(value))).map(|(etag, value)| (value, etag));
            let lifetime = Lifetime { sent: times.0, trusted: times.0, stale: times.1, gone: times.2 };
            let (entry, mut large) = (Entry { content, reason, lifetime }, Slab::new());
            let mut made = make(&key, &entry, (is_handed, is_json), &mut large);
            (0..touches).for_each(|_| made.touch());
            let mut bytes = made.bytes().to_vec();
            bytes.extend([1, 2, 3]);
            let record = Record::first_of(&bytes);
            prop_assert_eq!(record.bytes(), made.bytes());
            let said = record.entry(7, &large);
            prop_assert_eq!(record.key(), &key[..]);
            prop_assert_eq!(said.content.map(|(value, etag)| (value.to_bytes(), etag)), entry.content.clone());
            if let Some((Value::Inside(value, form), _)) = said.content {
                prop_assert_eq!(form, Form::of(value, is_json));
            }
            prop_assert_eq!(said.reason, reason);
            prop_assert_eq!(said.lifetime, Lifetime { trusted: if is_handed { 7 } else { times.0 }, ..lifetime });
            prop_assert_eq!((record.uses(), u16::from(record.clock())), (touches, touches.min(3)));
            let value_bytes = entry.content.map_or(0, |(value, _)| value.len());
            prop_assert_eq!(record.charge(), (key.len() + value_bytes) as u64 + ENTRY_OVERHEAD_BYTES);
            prop_assert_eq!(record.large().is_some(), value_bytes > VALUE_BYTES_INSIDE);
            prop_assert!(record.bytes().len() <= RECORD_BYTES_MAX && !record.is_dead());
            made.kill();
            prop_assert!(made.is_dead() && made.key() == &key[..]);
        }
    }
}
