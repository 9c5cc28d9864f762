//! What a shard's owner hands to the next one.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};

use super::WireError;
use super::answer::{many, put_count};
use super::codec::{Fields, put_short};
use crate::id::{KEY_BYTES_MAX, REGION_NAME_BYTES_MAX};

/// Most entries of a chunk.
pub const CHUNK_ENTRIES_MAX: usize = 4096;

/// A part of what is in memory of a shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Entries, the most valuable first; at most [`CHUNK_ENTRIES_MAX`].
    pub entries: Vec<Handed>,
    /// Keys of which nothing is true that was handed before: region and key. At most [`CHUNK_ENTRIES_MAX`].
    pub removed: Vec<(Bytes, Bytes)>,
    /// Where the next chunk begins; `None`: this was the last.
    pub next: Option<u32>,
    /// Which pull this belongs to.
    pub number: u32,
}

/// An entry. Its times are durations, to the microsecond, at the moment that the chunk was put together: moments of two
/// machines are never compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The region's name.
    pub region: Bytes,
    /// The key.
    pub key: Bytes,
    /// The value; `None`: there is no such row.
    pub value: Option<Bytes>,
    /// Since its load was sent to the database.
    pub age: Duration,
    /// For so long it is fresh; zero: it is stale.
    pub fresh_for: Duration,
    /// For so long it may be served.
    pub served_for: Duration,
}

impl Chunk {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u32_le(self.next.unwrap_or(u32::MAX));
        out.put_u32_le(self.number);
        put_count(out, self.removed.len());
        for (region, key) in &self.removed {
            put_short(out, region);
            put_short(out, key);
        }
        put_count(out, self.entries.len());
        for entry in &self.entries {
            put_short(out, &entry.region);
            put_short(out, &entry.key);
            for time in [entry.age, entry.fresh_for, entry.served_for] {
                out.put_u64_le(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
            }
            let len = entry
                .value
                .as_ref()
                .map_or(u32::MAX, |value| u32::try_from(value.len()).expect("values are bounded far below 4 GiB"));
            out.put_u32_le(len);
            entry.value.iter().for_each(|value| out.put_slice(value));
        }
    }

    pub(super) fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        let next = Some(fields.u32()?).filter(|next| *next != u32::MAX);
        let number = fields.u32()?;
        let removed = many(fields, |fields| Ok((region(fields)?, key(fields)?)))?;
        let entries = many(fields, |fields| {
            let (region, key) = (region(fields)?, key(fields)?);
            let mut time = || fields.u64().map(Duration::from_micros);
            let (age, fresh_for, served_for) = (time()?, time()?, time()?);
            let len = fields.u32()?;
            let value = if len == u32::MAX { None } else { Some(fields.bytes(len as usize)?) };
            Ok(Handed { region, key, value, age, fresh_for, served_for })
        })?;
        if entries.len() > CHUNK_ENTRIES_MAX || removed.len() > CHUNK_ENTRIES_MAX {
            return Err(WireError::Field("number of entries"));
        }
        Ok(Self { entries, removed, next, number })
    }
}

fn region(fields: &mut Fields) -> Result<Bytes, WireError> {
    Some(fields.short()?).filter(|name| name.len() <= REGION_NAME_BYTES_MAX).ok_or(WireError::Field("region name"))
}

fn key(fields: &mut Fields) -> Result<Bytes, WireError> {
    Some(fields.short()?).filter(|key| (1..=KEY_BYTES_MAX).contains(&key.len())).ok_or(WireError::Field("key"))
}
