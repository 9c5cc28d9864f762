//! Many reads in one frame, and what there is in memory of them.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::WireError;
use super::answer::{ENTRY_BYTES, Entry, put_found};
use super::codec::{Etag, Fields, frame, put_short};
use crate::form::Form;
use crate::id::{KEY_BYTES_MAX, REGION_NAME_BYTES_MAX};

pub(super) const GET_MANY: u8 = 13;

/// Most keys of a [`GetMany`].
pub const GET_MANY_KEYS_MAX: usize = 256;

/// A request for those values of a region that the node can give at once: fresh, in memory, and its own. Nothing is
/// loaded for it; what is not among the [hits](Hits) has to be asked for alone, and says nothing else of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GetMany {
    /// As [`super::Request::id`].
    pub id: u32,
    /// The region's name.
    pub region: Bytes,
    /// Which of its keys, all of one lane.
    pub keys: Keys,
}

/// 1 to [`GET_MANY_KEYS_MAX`] keys in an order, each with its length before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys(Bytes);

/// Which of many keys were in memory, with their values, one behind the other as they came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hits(Bytes);

/// A value that was in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit<'a> {
    /// Place of its key among those that were asked for.
    pub place: u32,
    /// How it was come by.
    pub entry: Entry,
    /// Its tag.
    pub etag: Etag,
    /// How the value stands in JSON; `None`: it has to be changed, or the node does not know.
    pub form: Option<Form>,
    /// The value.
    pub value: &'a [u8],
}

/// A frame of hits, as it is being written.
#[derive(Debug)]
pub struct HitsWriter<'a> {
    out: &'a mut BytesMut,
    /// Where they begin.
    begin: usize,
}

impl GetMany {
    /// Appends the frame that asks for these keys. Requires: as [`Keys`].
    pub fn encode_keys<'k>(id: u32, region: &[u8], keys: impl Iterator<Item = &'k [u8]>, out: &mut BytesMut) {
        frame(out, GET_MANY, |out| {
            out.put_u32_le(id);
            put_short(out, region);
            keys.for_each(|key| put_short(out, key));
        });
    }

    pub(super) fn decode(mut fields: Fields) -> Result<Self, WireError> {
        let (id, region) = (fields.u32()?, fields.short()?);
        if region.len() > REGION_NAME_BYTES_MAX {
            return Err(WireError::Field("region name"));
        }
        let keys = fields.remainder();
        let (mut rest, mut n) = (&keys[..], 0);
        while !rest.is_empty() {
            let key = first_key(&mut rest).ok_or(WireError::Length { kind: GET_MANY })?;
            if !(1..=KEY_BYTES_MAX).contains(&key.len()) {
                return Err(WireError::Field("key"));
            }
            n += 1;
        }
        if !(1..=GET_MANY_KEYS_MAX).contains(&n) {
            return Err(WireError::Field("number of keys"));
        }
        Ok(Self { id, region, keys: Keys(keys) })
    }
}

fn first_key<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let len = usize::from(rest.try_get_u16_le().ok()?);
    rest.split_off(..len)
}

impl Keys {
    /// The keys in their order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || first_key(&mut rest))
    }
}

impl<'a> HitsWriter<'a> {
    pub(super) fn new(out: &'a mut BytesMut) -> Self {
        Self { begin: out.len(), out }
    }

    /// Puts one behind the others.
    pub fn put(&mut self, hit: &Hit<'_>) {
        self.out.put_u32_le(u32::try_from(hit.value.len()).expect("values are bounded far below 4 GiB"));
        self.out.put_u8(Form::number(hit.form));
        put_found(hit.place, &hit.entry, hit.etag, hit.value, self.out);
    }

    /// Bytes of those that were put.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.out.len() - self.begin
    }
}

impl Hits {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_slice(&self.0);
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        let (kind, hits) = (fields.kind(), fields.remainder());
        let mut rest = &hits[..];
        while !rest.is_empty() {
            first_hit(&mut rest).ok_or(WireError::Length { kind })??;
        }
        Ok(Self(hits))
    }

    /// The hits as they came.
    pub fn iter(&self) -> impl Iterator<Item = Hit<'_>> {
        let mut rest = &self.0[..];
        std::iter::from_fn(move || first_hit(&mut rest)?.ok())
    }
}

/// `None`: there is less than one.
fn first_hit<'a>(rest: &mut &'a [u8]) -> Option<Result<Hit<'a>, WireError>> {
    let (len, form, place) = (rest.try_get_u32_le().ok()?, rest.try_get_u8().ok()?, rest.try_get_u32_le().ok()?);
    let entry = rest.split_off(..ENTRY_BYTES)?.first_chunk()?;
    let etag = Etag(rest.try_get_u128_le().ok()?);
    let value = rest.split_off(..usize::try_from(len).ok()?)?;
    if Form::number(Form::from_number(form)) != form {
        return Some(Err(WireError::Field("form")));
    }
    Some(Entry::of(entry).map(|entry| Hit { place, entry, etag, form: Form::from_number(form), value }))
}
