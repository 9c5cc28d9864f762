//! What a node sends to a router.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{Etag, Fields, frame, put_epoch, put_short, yes_or_no};
use super::handoff::Chunk;
use super::many::{Hits, HitsWriter};
use super::{PROTOCOL, WireError};
use crate::epoch::Epoch;
use crate::id::{NodeId, RegionName};
use crate::map::{Member, ShardMap};

const WELCOME: u8 = 65;
const REFUSED: u8 = 66;
const VALUE: u8 = 67;
const ABSENT: u8 = 68;
const MISDIRECTED: u8 = 69;
const FAILED: u8 = 70;
const MAP: u8 = 71;
const PAGE: u8 = 72;
const INVALIDATED: u8 = 73;
const WRITTEN: u8 = 74;
const CHUNK: u8 = 75;
const HITS: u8 = 76;

/// Longest text of a [`Failure`] or [`Refused`]; what is longer is cut.
const MESSAGE_BYTES_MAX: usize = 1024;
/// Length of an [`Entry`].
pub(super) const ENTRY_BYTES: usize = 1 + 1 + 4 + 8;
/// In a map on the wire: this shard has no owner.
const NOBODY: u16 = u16::MAX;

/// Any frame from a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromNode {
    /// First answer: go on.
    Welcome(Welcome),
    /// First answer: we cannot talk.
    Refused(Refused),
    /// All others.
    Answer(Answer),
}

/// Accepts a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Lanes of the node: a shard's requests go to lane `shard mod n_lanes`.
    pub n_lanes: u16,
    /// Who answers.
    pub node: NodeId,
}

/// Turns a connection down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Why, and what to do.
    pub message: String,
}

/// The answer to the request of that id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The id that the router gave.
    pub id: u32,
    /// What was found.
    pub body: AnswerBody,
}

/// What a node can answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerBody {
    /// The value of the key.
    Value {
        /// How it was come by.
        entry: Entry,
        /// Its tag.
        etag: Etag,
        /// The value.
        value: Bytes,
    },
    /// The database has no such row.
    Absent(Entry),
    /// The node does not own the shard.
    Misdirected {
        /// Epoch of the newest map that the node knows.
        epoch: Epoch,
        /// Owner by that map.
        owner: Option<NodeId>,
    },
    /// No answer could be had.
    Failed(Failure),
    /// The shard map and the regions.
    Map(Box<MapAnswer>),
    /// JSON for people.
    Page(Bytes),
    /// The owner of the shard since this epoch, under a lease that holds, has forgotten so many entries.
    Invalidated {
        /// Since when it owns the shard.
        since: Epoch,
        /// How many there were.
        entries: u32,
    },
    /// The write is in the database: what a reader gets from now on. `None`: nothing.
    Written(Option<Etag>),
    /// A part of a shard, for its next owner.
    Chunk(Box<Chunk>),
    /// What was in memory of many keys.
    Hits(Hits),
}

/// How a node came by what it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Out of memory or not.
    pub served: Served,
    /// Whether it is in memory now.
    pub kept: bool,
    /// Time since its load was sent to the database; to the millisecond.
    pub age: Duration,
    /// Milliseconds for which it stays fresh; negative when it is stale.
    pub ttl_ms: i64,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// Memory, fresh.
    Hit,
    /// Memory, older than its region's `ttl`; a refresh is on its way.
    Stale,
    /// The database, for this request.
    Miss,
    /// The database, for an earlier request of the same key that this one joined.
    Joined,
    /// The database, past an owner that cannot be reached.
    PassedThrough,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind.
    pub code: FailureCode,
    /// When it may be worth another try; zero when nothing is known; to the millisecond.
    pub retry_after: Duration,
    /// What happened, for people.
    pub message: String,
}

/// Kinds of failures, as far as a caller acts differently on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureCode {
    /// The database answered with an error, or did not answer in time.
    Database,
    /// The request's own deadline passed first.
    DeadlinePassed,
    /// A bound was reached.
    Overloaded,
    /// The node has no region of this name.
    UnknownRegion,
    /// The request was lost with the shard's actor: nothing was done, it may be sent again.
    Dropped,
    /// The database cannot be reached, or has not answered yet.
    Unavailable,
    /// A write was not done: what it demands of the value that is there does not hold.
    Precondition,
    /// A write was not done: the database refuses this value or key.
    Refused,
    /// A write was not done: there was no time, no room or no fence for it.
    NotApplied,
    /// A write may have been done, or may be done later; what is read afterwards says which.
    Unknown,
}

/// What a router needs to know of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapAnswer {
    /// Who owns what.
    pub map: Arc<ShardMap>,
    /// The data sets.
    pub regions: Vec<RegionInfo>,
    /// How long it takes until the shards of an owner that is gone have others; to the millisecond.
    pub failover: Duration,
}

/// What a router needs to know of a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// Its name.
    pub name: RegionName,
    /// Media type of its values.
    pub content_type: String,
    /// What clients and proxies on the way are told of keeping its values (RFC 9111, `Cache-Control`).
    pub cache_control: String,
    /// It may be written to.
    pub writes: bool,
}

impl Welcome {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame(out, WELCOME, |out| {
            out.put_u16_le(PROTOCOL);
            out.put_u16_le(self.n_lanes);
            put_short(out, self.node.as_str().as_bytes());
        });
    }
}

impl Refused {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame(out, REFUSED, |out| put_short(out, cut(&self.message).as_bytes()));
    }
}

impl Answer {
    /// Appends the frame that [`AnswerBody::Value`] makes of these.
    pub fn encode_value(id: u32, entry: &Entry, etag: Etag, value: &[u8], out: &mut BytesMut) {
        frame(out, VALUE, |out| put_found(id, entry, etag, value, out));
    }

    /// Appends the frame that [`AnswerBody::Hits`] makes of what `put` puts there.
    pub fn encode_hits(id: u32, out: &mut BytesMut, put: impl FnOnce(&mut HitsWriter<'_>)) {
        frame(out, HITS, |out| {
            out.put_u32_le(id);
            put(&mut HitsWriter::new(out));
        });
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        let id = self.id;
        match &self.body {
            AnswerBody::Value { entry, etag, value } => Self::encode_value(id, entry, *etag, value, out),
            AnswerBody::Absent(entry) => frame(out, ABSENT, |out| {
                out.put_u32_le(id);
                entry.encode(out);
            }),
            AnswerBody::Misdirected { epoch, owner } => frame(out, MISDIRECTED, |out| {
                out.put_u32_le(id);
                put_epoch(out, *epoch);
                put_short(out, owner.as_ref().map_or(&[], |owner| owner.as_str().as_bytes()));
            }),
            AnswerBody::Failed(failure) => frame(out, FAILED, |out| {
                out.put_u32_le(id);
                out.put_u8(failure.code.number());
                out.put_u32_le(millis(failure.retry_after));
                put_short(out, cut(&failure.message).as_bytes());
            }),
            AnswerBody::Map(answer) => frame(out, MAP, |out| {
                out.put_u32_le(id);
                answer.encode(out);
            }),
            AnswerBody::Page(json) => frame(out, PAGE, |out| {
                out.put_u32_le(id);
                out.put_slice(json);
            }),
            AnswerBody::Invalidated { since, entries } => frame(out, INVALIDATED, |out| {
                out.put_u32_le(id);
                put_epoch(out, *since);
                out.put_u32_le(*entries);
            }),
            AnswerBody::Written(etag) => frame(out, WRITTEN, |out| {
                out.put_u32_le(id);
                out.put_u8(u8::from(etag.is_some()));
                etag.iter().for_each(|etag| out.put_u128_le(etag.0));
            }),
            AnswerBody::Chunk(chunk) => frame(out, CHUNK, |out| {
                out.put_u32_le(id);
                chunk.encode(out);
            }),
            AnswerBody::Hits(hits) => frame(out, HITS, |out| {
                out.put_u32_le(id);
                hits.encode(out);
            }),
        }
    }
}

impl FromNode {
    /// Reads a frame as [`super::FrameReader`] gives it.
    ///
    /// # Errors
    /// [`WireError`] for anything that a node of this protocol would not write.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let mut fields = Fields::of(bytes)?;
        let decoded = match fields.kind() {
            WELCOME => {
                if fields.u16()? != PROTOCOL {
                    return Err(WireError::Field("protocol"));
                }
                let n_lanes = fields.u16()?;
                if n_lanes == 0 {
                    return Err(WireError::Field("number of lanes"));
                }
                Self::Welcome(Welcome { n_lanes, node: node(&mut fields)? })
            }
            REFUSED => Self::Refused(Refused { message: fields.text("message")? }),
            kind @ VALUE..=HITS => {
                let id = fields.u32()?;
                Self::Answer(Answer { id, body: AnswerBody::decode(kind, &mut fields)? })
            }
            kind => return Err(WireError::Kind(kind)),
        };
        fields.end()?;
        Ok(decoded)
    }
}

impl AnswerBody {
    fn decode(kind: u8, fields: &mut Fields) -> Result<Self, WireError> {
        Ok(match kind {
            VALUE => {
                Self::Value { entry: Entry::decode(fields)?, etag: Etag(fields.u128()?), value: fields.remainder() }
            }
            ABSENT => Self::Absent(Entry::decode(fields)?),
            MISDIRECTED => Self::Misdirected {
                epoch: fields.epoch()?,
                owner: match fields.text("node name")? {
                    name if name.is_empty() => None,
                    name => Some(NodeId::parse(&name).map_err(|_| WireError::Field("node name"))?),
                },
            },
            FAILED => Self::Failed(Failure {
                code: FailureCode::from_number(fields.u8()?)?,
                retry_after: Duration::from_millis(u64::from(fields.u32()?)),
                message: fields.text("message")?,
            }),
            MAP => Self::Map(Box::new(MapAnswer::decode(fields)?)),
            PAGE => Self::Page(fields.remainder()),
            INVALIDATED => Self::Invalidated { since: fields.epoch()?, entries: fields.u32()? },
            WRITTEN => Self::Written(if fields.bool()? { Some(Etag(fields.u128()?)) } else { None }),
            CHUNK => Self::Chunk(Box::new(Chunk::decode(fields)?)),
            _ => Self::Hits(Hits::decode(fields)?),
        })
    }
}

/// What was found for the request or key of this number.
pub(super) fn put_found(number: u32, entry: &Entry, etag: Etag, value: &[u8], out: &mut BytesMut) {
    // Written apart, as in `AskRef::encode`.
    let mut head = [0; 4 + ENTRY_BYTES + 16];
    let mut fields = &mut head[..];
    fields.put_u32_le(number);
    entry.encode(&mut fields);
    fields.put_u128_le(etag.0);
    out.put_slice(&head);
    out.put_slice(value);
}

impl Entry {
    fn encode(&self, out: &mut impl BufMut) {
        out.put_u8(match self.served {
            Served::Hit => 0,
            Served::Stale => 1,
            Served::Miss => 2,
            Served::Joined => 3,
            Served::PassedThrough => 4,
        });
        out.put_u8(u8::from(self.kept));
        out.put_u32_le(millis(self.age));
        out.put_i64_le(self.ttl_ms);
    }

    fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        Self::of(&fields.array()?)
    }

    pub(super) fn of(bytes: &[u8; ENTRY_BYTES]) -> Result<Self, WireError> {
        let mut fields = &bytes[..];
        let served = match fields.get_u8() {
            0 => Served::Hit,
            1 => Served::Stale,
            2 => Served::Miss,
            3 => Served::Joined,
            4 => Served::PassedThrough,
            _ => return Err(WireError::Field("source")),
        };
        let kept = yes_or_no(fields.get_u8())?;
        let age = Duration::from_millis(u64::from(fields.get_u32_le()));
        Ok(Self { served, kept, age, ttl_ms: fields.get_i64_le() })
    }
}

impl FailureCode {
    const fn number(self) -> u8 {
        match self {
            Self::Database => 0,
            Self::DeadlinePassed => 1,
            Self::Overloaded => 2,
            Self::UnknownRegion => 3,
            Self::Dropped => 4,
            Self::Unavailable => 5,
            Self::Precondition => 6,
            Self::Refused => 7,
            Self::NotApplied => 8,
            Self::Unknown => 9,
        }
    }

    const fn from_number(number: u8) -> Result<Self, WireError> {
        Ok(match number {
            0 => Self::Database,
            1 => Self::DeadlinePassed,
            2 => Self::Overloaded,
            3 => Self::UnknownRegion,
            4 => Self::Dropped,
            5 => Self::Unavailable,
            6 => Self::Precondition,
            7 => Self::Refused,
            8 => Self::NotApplied,
            9 => Self::Unknown,
            _ => return Err(WireError::Field("failure code")),
        })
    }
}

impl MapAnswer {
    fn encode(&self, out: &mut BytesMut) {
        encode_map(&self.map, out);
        out.put_u32_le(millis(self.failover));
        put_count(out, self.regions.len());
        for region in &self.regions {
            put_short(out, region.name.as_str().as_bytes());
            put_short(out, region.content_type.as_bytes());
            put_short(out, region.cache_control.as_bytes());
            out.put_u8(u8::from(region.writes));
        }
    }

    fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        let map = Arc::new(decode_map(fields)?);
        let failover = Duration::from_millis(u64::from(fields.u32()?));
        let regions = many(fields, |fields| {
            let name = RegionName::parse(&fields.text("region name")?).map_err(|_| WireError::Field("region name"))?;
            let (content_type, cache_control) = (fields.text("content type")?, fields.text("cache control")?);
            Ok(RegionInfo { name, content_type, cache_control, writes: fields.bool()? })
        })?;
        Ok(Self { map, regions, failover })
    }
}

pub(super) fn encode_map(map: &ShardMap, out: &mut BytesMut) {
    put_epoch(out, map.epoch());
    put_count(out, map.members().len());
    for member in map.members() {
        put_short(out, member.node.as_str().as_bytes());
        put_short(out, member.data.as_bytes());
    }
    put_count(out, map.owners().len());
    for owner in map.owners() {
        out.put_u16_le(owner.unwrap_or(NOBODY));
    }
}

pub(super) fn decode_map(fields: &mut Fields) -> Result<ShardMap, WireError> {
    let epoch = fields.epoch()?;
    let member = |fields: &mut Fields| Ok(Member { node: node(fields)?, data: fields.text("address")? });
    let members = many(fields, member)?;
    let owners = many(fields, |fields| Ok(Some(fields.u16()?).filter(|&owner| owner != NOBODY)))?;
    ShardMap::new(epoch, members, owners).map_err(|_| WireError::Field("shard map"))
}

pub(super) fn put_count(out: &mut BytesMut, count: usize) {
    out.put_u16_le(u16::try_from(count).expect("members, shards and regions are bounded below 65,536"));
}

/// A count, then so many of them. Grows as they come: the count alone allocates nothing.
pub(super) fn many<T>(
    fields: &mut Fields,
    one: impl Fn(&mut Fields) -> Result<T, WireError>,
) -> Result<Vec<T>, WireError> {
    let count = fields.u16()?;
    (0..count).map(|_| one(fields)).collect()
}

pub(super) fn node(fields: &mut Fields) -> Result<NodeId, WireError> {
    NodeId::parse(&fields.text("node name")?).map_err(|_| WireError::Field("node name"))
}

/// Milliseconds, at most 49 days.
fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

fn cut(message: &str) -> &str {
    &message[..message.floor_char_boundary(MESSAGE_BYTES_MAX)]
}
