//! What a router sends to a node.

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::codec::{Etag, Fields, frame, put_epoch, put_short};
use super::control::{JOIN, Join};
use super::many::{GET_MANY, GetMany};
use super::{MAGIC, PROTOCOL, VALUE_BYTES_MAX, WireError};
use crate::epoch::{Epoch, Term};
use crate::id::{KEY_BYTES_MAX, REGION_NAME_BYTES_MAX, ShardId};

const HELLO: u8 = 1;
const GET: u8 = 2;
const EXPLAIN: u8 = 3;
const GET_MAP: u8 = 4;
const DESCRIBE: u8 = 5;
const PASS_THROUGH: u8 = 6;
const INVALIDATE: u8 = 7;
const INVALIDATE_PREFIX: u8 = 8;
const PUT: u8 = 9;
const DELETE: u8 = 10;
const PULL: u8 = 11;
const SEAL: u8 = 12;

/// Most tags in one precondition.
pub const TAGS_MAX: usize = 64;

/// Any frame to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToNode {
    /// The first.
    Hello(Hello),
    /// The first of another node, when this one is a seed.
    Join(Join),
    /// A request that never waits.
    GetMany(GetMany),
    /// All others.
    Request(Request),
}

/// Opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Protocol that the router speaks.
    pub protocol: u16,
    /// Lane that its requests are for; a node takes it modulo its lanes.
    pub lane: u16,
}

impl Hello {
    /// The greeting of this release.
    #[must_use]
    pub const fn to_lane(lane: u16) -> Self {
        Self { protocol: PROTOCOL, lane }
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame(out, HELLO, |out| {
            out.put_slice(&MAGIC);
            out.put_u16_le(self.protocol);
            out.put_u16_le(self.lane);
        });
    }
}

/// Something that wants an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The router's own number for it; the answer carries it.
    pub id: u32,
    /// What is asked.
    pub body: RequestBody,
}

/// What a router can ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestBody {
    /// The value of a key.
    Get(Ask),
    /// What the node knows of a key, as JSON.
    Explain(Ask),
    /// The value of a key whose owner cannot be reached: to be read from the database, and not to be kept.
    PassThrough(Ask),
    /// Forget a key: whoever reads it afterwards gets what the database had then, or later.
    Invalidate(Ask),
    /// Forget all keys of a shard that begin so.
    InvalidatePrefix(Ask),
    /// Write a key's value.
    Put(Ask, Precondition, Bytes),
    /// Remove a key's row.
    Delete(Ask, Precondition),
    /// From the next owner: a part of what is in memory of a shard.
    Pull(Pull),
    /// From the next owner: serve the shard no more, and say what has changed since it was pulled.
    Seal(Pull),
    /// The shard map and the regions.
    GetMap,
    /// What the node says of itself, as JSON.
    Describe,
}

/// What the next owner of a shard asks the one before for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    /// The shard.
    pub shard: ShardId,
    /// Since when it belongs to the one that is asked.
    pub since: Epoch,
    /// Where the chunk begins: 0, then what the last one said.
    pub cursor: u32,
    /// Which pull: 0, then what the first chunk said. What has changed is noted for one at a time.
    pub number: u32,
}

impl Pull {
    fn encode(&self, id: u32, out: &mut BytesMut) {
        out.put_u32_le(id);
        out.put_u16_le(self.shard.0);
        put_epoch(out, self.since);
        out.put_u32_le(self.cursor);
        out.put_u32_le(self.number);
    }

    fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        Ok(Self { shard: ShardId(fields.u16()?), since: fields.epoch()?, cursor: fields.u32()?, number: fields.u32()? })
    }
}

/// What must hold of a key's value at the moment of a write (RFC 9110, sections 13.1.1 and 13.1.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Precondition {
    /// `If-Match`: there is a value, of one of these tags.
    pub if_match: Option<Tags>,
    /// `If-None-Match`: there is none, or not of one of these tags.
    pub if_none_match: Option<Tags>,
}

/// Tags that a precondition names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// Whatever value there is.
    Any,
    /// One of these; at most [`TAGS_MAX`].
    Listed(Vec<Etag>),
}

impl Precondition {
    /// Whether there is none.
    #[must_use]
    pub const fn is_none(&self) -> bool {
        self.if_match.is_none() && self.if_none_match.is_none()
    }

    /// Whether it holds of a value with this tag; `None`: of no value.
    #[must_use]
    pub fn holds(&self, current: Option<Etag>) -> bool {
        let is_one_of = |tags: &Tags| match (tags, current) {
            (_, None) => false,
            (Tags::Any, Some(_)) => true,
            (Tags::Listed(tags), Some(current)) => tags.contains(&current),
        };
        self.if_match.as_ref().is_none_or(is_one_of) && !self.if_none_match.as_ref().is_some_and(is_one_of)
    }

    fn encode(&self, out: &mut BytesMut) {
        for tags in [&self.if_match, &self.if_none_match] {
            match tags {
                None => out.put_u8(0),
                Some(Tags::Any) => out.put_u8(1),
                Some(Tags::Listed(tags)) => {
                    out.put_u8(2);
                    out.put_u8(u8::try_from(tags.len()).expect("at most TAGS_MAX tags"));
                    tags.iter().for_each(|tag| out.put_u128_le(tag.0));
                }
            }
        }
    }

    fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        let mut tags = || {
            Ok(match fields.u8()? {
                0 => None,
                1 => Some(Tags::Any),
                2 => {
                    let count = usize::from(fields.u8()?);
                    if count > TAGS_MAX {
                        return Err(WireError::Field("number of tags"));
                    }
                    let listed: Result<_, WireError> = (0..count).map(|_| fields.u128().map(Etag)).collect();
                    Some(Tags::Listed(listed?))
                }
                _ => return Err(WireError::Field("precondition")),
            })
        };
        Ok(Self { if_match: tags()?, if_none_match: tags()? })
    }
}

/// A question about one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// How long the router will wait, from when the node reads this; to the millisecond.
    pub deadline: Duration,
    /// Epoch of the map by which the node was chosen.
    pub epoch: Epoch,
    /// The key's shard.
    pub shard: ShardId,
    /// The region's name.
    pub region: Bytes,
    /// The key: 1 to [`KEY_BYTES_MAX`] bytes; as a prefix it may be empty.
    pub key: Bytes,
}

/// As [`Ask`], of what somebody else has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskRef<'a> {
    /// As [`Ask::deadline`].
    pub deadline: Duration,
    /// As [`Ask::epoch`].
    pub epoch: Epoch,
    /// As [`Ask::shard`].
    pub shard: ShardId,
    /// As [`Ask::region`].
    pub region: &'a [u8],
    /// As [`Ask::key`].
    pub key: &'a [u8],
}

/// A request for the value of a key: what [`RequestBody::Get`] is, without a copy of anything. Most frames are such ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GetRef<'a> {
    /// As [`Request::id`].
    pub id: u32,
    /// What is asked.
    pub ask: AskRef<'a>,
}

impl<'a> GetRef<'a> {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame(out, GET, |out| self.ask.encode(self.id, out));
    }

    /// Reads a frame where it lies. `None`: it is another one, or none; [`ToNode::decode`] says which.
    #[must_use]
    pub fn of(frame: &'a [u8]) -> Option<Self> {
        let (&[GET], mut rest) = frame.split_first_chunk::<1>()? else { return None };
        let id = rest.try_get_u32_le().ok()?;
        let deadline = Duration::from_millis(u64::from(rest.try_get_u32_le().ok()?));
        let term = Term { counter: rest.try_get_u64_le().ok()?, seed: rest.try_get_u16_le().ok()? };
        let epoch = Epoch { term, seq: rest.try_get_u64_le().ok()? };
        let shard = ShardId(rest.try_get_u16_le().ok()?);
        let len = usize::from(rest.try_get_u16_le().ok()?);
        let (region, mut rest) = rest.split_at_checked(len)?;
        let len = usize::from(rest.try_get_u16_le().ok()?);
        let is_sound = region.len() <= REGION_NAME_BYTES_MAX && (1..=KEY_BYTES_MAX).contains(&len) && rest.len() == len;
        is_sound.then_some(Self { id, ask: AskRef { deadline, epoch, shard, region, key: rest } })
    }
}

impl Request {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        match &self.body {
            RequestBody::Get(ask) => frame(out, GET, |out| ask.encode(self.id, out)),
            RequestBody::Explain(ask) => frame(out, EXPLAIN, |out| ask.encode(self.id, out)),
            RequestBody::PassThrough(ask) => frame(out, PASS_THROUGH, |out| ask.encode(self.id, out)),
            RequestBody::Invalidate(ask) => frame(out, INVALIDATE, |out| ask.encode(self.id, out)),
            RequestBody::InvalidatePrefix(ask) => frame(out, INVALIDATE_PREFIX, |out| ask.encode(self.id, out)),
            RequestBody::Put(ask, precondition, value) => frame(out, PUT, |out| {
                ask.encode(self.id, out);
                precondition.encode(out);
                out.put_slice(value);
            }),
            RequestBody::Delete(ask, precondition) => frame(out, DELETE, |out| {
                ask.encode(self.id, out);
                precondition.encode(out);
            }),
            RequestBody::Pull(pull) => frame(out, PULL, |out| pull.encode(self.id, out)),
            RequestBody::Seal(pull) => frame(out, SEAL, |out| pull.encode(self.id, out)),
            RequestBody::GetMap => frame(out, GET_MAP, |out| out.put_u32_le(self.id)),
            RequestBody::Describe => frame(out, DESCRIBE, |out| out.put_u32_le(self.id)),
        }
    }
}

impl AskRef<'_> {
    fn encode(&self, id: u32, out: &mut BytesMut) {
        // Written apart and put there in one go: most frames are these.
        let mut head = [0; 4 + 4 + 18 + 2];
        let mut fields = &mut head[..];
        fields.put_u32_le(id);
        fields.put_u32_le(u32::try_from(self.deadline.as_millis()).unwrap_or(u32::MAX));
        put_epoch(&mut fields, self.epoch);
        fields.put_u16_le(self.shard.0);
        out.put_slice(&head);
        put_short(out, self.region);
        put_short(out, self.key);
    }
}

impl Ask {
    fn encode(&self, id: u32, out: &mut BytesMut) {
        let Self { deadline, epoch, shard, region, key } = self;
        AskRef { deadline: *deadline, epoch: *epoch, shard: *shard, region, key }.encode(id, out);
    }

    fn decode(fields: &mut Fields) -> Result<Self, WireError> {
        let ask = Self {
            deadline: Duration::from_millis(u64::from(fields.u32()?)),
            epoch: fields.epoch()?,
            shard: ShardId(fields.u16()?),
            region: fields.short()?,
            key: fields.short()?,
        };
        if ask.region.len() > REGION_NAME_BYTES_MAX {
            return Err(WireError::Field("region name"));
        }
        if ask.key.len() > KEY_BYTES_MAX {
            return Err(WireError::Field("key"));
        }
        Ok(ask)
    }

    /// About one key, and not about all that begin so.
    fn decode_key(fields: &mut Fields) -> Result<Self, WireError> {
        let ask = Self::decode(fields)?;
        if ask.key.is_empty() { Err(WireError::Field("key")) } else { Ok(ask) }
    }
}

impl ToNode {
    /// Reads a frame as [`super::FrameReader`] gives it.
    ///
    /// # Errors
    /// [`WireError`] for anything that a router or a node of this protocol would not write.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let mut fields = Fields::of(bytes)?;
        if fields.kind() == HELLO {
            if fields.array()? != MAGIC {
                return Err(WireError::NoGreeting);
            }
            let hello = Hello { protocol: fields.u16()?, lane: fields.u16()? };
            // What a later protocol adds to its greeting is not for us to refuse: the number is.
            if hello.protocol == PROTOCOL {
                fields.end()?;
            }
            return Ok(Self::Hello(hello));
        }
        if fields.kind() == JOIN {
            return Join::decode(fields).map(Self::Join);
        }
        if fields.kind() == GET_MANY {
            return GetMany::decode(fields).map(Self::GetMany);
        }
        if !(GET..=SEAL).contains(&fields.kind()) {
            return Err(WireError::Kind(fields.kind()));
        }
        let id = fields.u32()?;
        let body = match fields.kind() {
            GET => RequestBody::Get(Ask::decode_key(&mut fields)?),
            EXPLAIN => RequestBody::Explain(Ask::decode_key(&mut fields)?),
            GET_MAP => RequestBody::GetMap,
            DESCRIBE => RequestBody::Describe,
            PASS_THROUGH => RequestBody::PassThrough(Ask::decode_key(&mut fields)?),
            INVALIDATE => RequestBody::Invalidate(Ask::decode_key(&mut fields)?),
            INVALIDATE_PREFIX => RequestBody::InvalidatePrefix(Ask::decode(&mut fields)?),
            PUT => {
                let (ask, precondition) = (Ask::decode_key(&mut fields)?, Precondition::decode(&mut fields)?);
                let value = fields.remainder();
                if value.len() > VALUE_BYTES_MAX {
                    return Err(WireError::Field("value"));
                }
                RequestBody::Put(ask, precondition, value)
            }
            DELETE => RequestBody::Delete(Ask::decode_key(&mut fields)?, Precondition::decode(&mut fields)?),
            PULL => RequestBody::Pull(Pull::decode(&mut fields)?),
            _ => RequestBody::Seal(Pull::decode(&mut fields)?),
        };
        fields.end()?;
        Ok(Self::Request(Request { id, body }))
    }
}
