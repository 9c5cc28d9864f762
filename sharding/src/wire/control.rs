//! What nodes say to seeds and seeds to nodes, on connections of their own to the data port.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};

use super::answer::{decode_map, encode_map, many, node, put_count};
use super::codec::{Fields, frame, put_epoch, put_short};
use super::{MAGIC, PROTOCOL, WireError};
use crate::acceptor::{Ballot, Vote};
use crate::budget::{BudgetShare, BudgetUse};
use crate::epoch::{Epoch, Term};
use crate::id::{DatabaseName, NodeId, ShardId};
use crate::load::ShardLoad;
use crate::map::Member;
use crate::membership::{Addition, After, Grant, Greeting, Incarnation, Renew, Reply, Tenure, Transfer};
use crate::proposer::Proposal;

/// Kind of [`Join`].
pub(super) const JOIN: u8 = 32;
const PROPOSAL: u8 = 33;
const VOTE: u8 = 34;
const RENEW: u8 = 35;
const HELLO: u8 = 36;
const GRANT: u8 = 37;
const GOODBYE: u8 = 38;
const WAKE: u8 = 39;
const ADDITION: u8 = 40;

/// Longest frame of this kind of connection: a map of all shards and some thousand members.
pub const CONTROL_FRAME_BYTES_MAX: usize = 1024 * 1024;
/// Longest [`Renew::identity`].
pub const IDENTITY_BYTES_MAX: usize = 1024;

/// Opens a connection of a node to a seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// Protocol that the node speaks.
    pub protocol: u16,
    /// Hash of what all nodes of a cluster must agree on ([`crate::hash::cluster`]). A seed refuses another.
    pub cluster: u64,
    /// Ordinal of the seed that is meant: votes are counted by it, so no other process may answer in its place.
    pub seed: u16,
}

impl Join {
    /// The greeting of this release.
    #[must_use]
    pub const fn new(cluster: u64, seed: u16) -> Self {
        Self { protocol: PROTOCOL, cluster, seed }
    }

    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        frame(out, JOIN, |out| {
            out.put_slice(&MAGIC);
            out.put_u16_le(self.protocol);
            out.put_u64_le(self.cluster);
            out.put_u16_le(self.seed);
        });
    }

    pub(super) fn decode(mut fields: Fields) -> Result<Self, WireError> {
        if fields.array()? != MAGIC {
            return Err(WireError::NoGreeting);
        }
        let join = Self { protocol: fields.u16()?, cluster: fields.u64()?, seed: fields.u16()? };
        if join.protocol == PROTOCOL {
            fields.end()?;
        }
        Ok(join)
    }
}

/// Any frame after the greeting, in either direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// From a seed to all seeds.
    Proposal(Proposal),
    /// The answer to it.
    Vote(Vote),
    /// From a node to all seeds.
    Renew(Renew),
    /// The coordinator's answer to it.
    Reply(Reply),
}

impl Control {
    /// Appends the frame.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::Proposal(proposal) => frame(out, PROPOSAL, |out| {
                let (phase, ballot) = match proposal {
                    Proposal::Prepare(ballot) => (0, ballot),
                    Proposal::Propose(ballot) => (1, ballot),
                    Proposal::Resign(ballot) => (2, ballot),
                };
                out.put_u8(phase);
                put_ballot(out, *ballot);
            }),
            Self::Vote(vote) => frame(out, VOTE, |out| put_vote(out, vote)),
            Self::Renew(renew) => frame(out, RENEW, |out| put_renew(out, renew)),
            Self::Reply(Reply::Hello { incarnation, greeting }) => frame(out, HELLO, |out| {
                out.put_u64_le(incarnation.0);
                put_greeting(out, *greeting);
            }),
            Self::Reply(Reply::Grant(grant)) => frame(out, GRANT, |out| {
                out.put_u64_le(grant.incarnation.0);
                out.put_u64_le(grant.request);
                put_epoch(out, grant.epoch);
                put_tenures(out, &grant.shards);
                put_transfers(out, &grant.giving);
                put_transfers(out, &grant.taking);
                put_count(out, grant.shares.len());
                for share in &grant.shares {
                    put_short(out, share.database.as_str().as_bytes());
                    out.put_u32_le(share.slots);
                }
                out.put_u8(u8::from(grant.map.is_some()));
                if let Some(map) = &grant.map {
                    encode_map(map, out);
                }
            }),
            Self::Reply(Reply::Addition(addition)) => frame(out, ADDITION, |out| {
                out.put_u64_le(addition.incarnation.0);
                out.put_u64_le(addition.request);
                put_epoch(out, addition.epoch);
                put_tenures(out, &addition.shards);
            }),
            Self::Reply(Reply::Wake { incarnation }) => frame(out, WAKE, |out| out.put_u64_le(incarnation.0)),
            Self::Reply(Reply::Goodbye { incarnation }) => {
                frame(out, GOODBYE, |out| out.put_u64_le(incarnation.0));
            }
        }
    }

    /// Reads a frame as [`super::FrameReader`] gives it.
    ///
    /// # Errors
    /// [`WireError`] for anything that [`Control::encode`] would not write.
    pub fn decode(bytes: Bytes) -> Result<Self, WireError> {
        let mut fields = Fields::of(bytes)?;
        let control = match fields.kind() {
            PROPOSAL => {
                let phase = fields.u8()?;
                let ballot = ballot(&mut fields)?;
                Self::Proposal(match phase {
                    0 => Proposal::Prepare(ballot),
                    1 => Proposal::Propose(ballot),
                    2 => Proposal::Resign(ballot),
                    _ => return Err(WireError::Field("phase")),
                })
            }
            VOTE => Self::Vote(vote(&mut fields)?),
            RENEW => Self::Renew(renew(&mut fields)?),
            HELLO => {
                let incarnation = Incarnation(fields.u64()?);
                Self::Reply(Reply::Hello { incarnation, greeting: greeting(&mut fields)? })
            }
            GRANT => Self::Reply(Reply::Grant(Grant {
                incarnation: Incarnation(fields.u64()?),
                request: fields.u64()?,
                epoch: fields.epoch()?,
                shards: tenures(&mut fields)?,
                giving: transfers(&mut fields)?,
                taking: transfers(&mut fields)?,
                shares: many(&mut fields, |fields| {
                    Ok(BudgetShare { database: database(fields)?, slots: fields.u32()? })
                })?,
                map: if fields.bool()? { Some(Arc::new(decode_map(&mut fields)?)) } else { None },
            })),
            ADDITION => Self::Reply(Reply::Addition(Addition {
                incarnation: Incarnation(fields.u64()?),
                request: fields.u64()?,
                epoch: fields.epoch()?,
                shards: tenures(&mut fields)?,
            })),
            WAKE => Self::Reply(Reply::Wake { incarnation: Incarnation(fields.u64()?) }),
            GOODBYE => Self::Reply(Reply::Goodbye { incarnation: Incarnation(fields.u64()?) }),
            kind => return Err(WireError::Kind(kind)),
        };
        fields.end()?;
        Ok(control)
    }
}

fn put_ballot(out: &mut BytesMut, ballot: Ballot) {
    out.put_u64_le(ballot.counter);
    out.put_u16_le(ballot.seed);
    out.put_u64_le(ballot.life);
}

fn ballot(fields: &mut Fields) -> Result<Ballot, WireError> {
    Ok(Ballot { counter: fields.u64()?, seed: fields.u16()?, life: fields.u64()? })
}

fn put_vote(out: &mut BytesMut, vote: &Vote) {
    match vote {
        Vote::Promise { ballot, held } => {
            out.put_u8(if held.is_some() { 1 } else { 0 });
            put_ballot(out, *ballot);
            held.iter().for_each(|held| put_ballot(out, *held));
        }
        Vote::Accept { ballot } => {
            out.put_u8(2);
            put_ballot(out, *ballot);
        }
        Vote::Refuse { ballot, promised } => {
            out.put_u8(3);
            put_ballot(out, *ballot);
            put_ballot(out, *promised);
        }
    }
}

fn vote(fields: &mut Fields) -> Result<Vote, WireError> {
    let kind = fields.u8()?;
    let asked = ballot(fields)?;
    Ok(match kind {
        0 => Vote::Promise { ballot: asked, held: None },
        1 => Vote::Promise { ballot: asked, held: Some(ballot(fields)?) },
        2 => Vote::Accept { ballot: asked },
        3 => Vote::Refuse { ballot: asked, promised: ballot(fields)? },
        _ => return Err(WireError::Field("vote")),
    })
}

fn put_greeting(out: &mut BytesMut, greeting: Greeting) {
    out.put_u64_le(greeting.term.counter);
    out.put_u16_le(greeting.term.seed);
    out.put_u64_le(greeting.nonce);
}

fn greeting(fields: &mut Fields) -> Result<Greeting, WireError> {
    Ok(Greeting { term: Term { counter: fields.u64()?, seed: fields.u16()? }, nonce: fields.u64()? })
}

fn put_renew(out: &mut BytesMut, renew: &Renew) {
    put_short(out, renew.member.node.as_str().as_bytes());
    put_short(out, renew.member.data.as_bytes());
    out.put_u64_le(renew.incarnation.0);
    put_short(out, renew.identity.as_bytes());
    out.put_u64_le(renew.request);
    out.put_u64_le(renew.granted);
    put_epoch(out, renew.seen);
    put_epoch(out, renew.map);
    out.put_u8(u8::from(renew.greeting.is_some()));
    renew.greeting.iter().for_each(|greeting| put_greeting(out, *greeting));
    put_tenures(out, &renew.held);
    put_count(out, renew.loads.len());
    for load in &renew.loads {
        out.put_u32_le(load.requests_milli);
        out.put_u32_le(load.kib);
    }
    for tenures in [&renew.sealed, &renew.taken] {
        put_count(out, tenures.len());
        for (shard, since) in tenures {
            out.put_u16_le(shard.0);
            put_epoch(out, *since);
        }
    }
    put_count(out, renew.budgets.len());
    for used in &renew.budgets {
        put_short(out, used.database.as_str().as_bytes());
        out.put_u32_le(used.held);
        out.put_u32_le(used.demand);
    }
    out.put_u8(u8::from(renew.is_leaving));
}

fn renew(fields: &mut Fields) -> Result<Renew, WireError> {
    let ended = |fields: &mut Fields| many(fields, |fields| Ok((ShardId(fields.u16()?), fields.epoch()?)));
    let member = Member { node: node(fields)?, data: fields.text("address")? };
    // What a map lists must be an address wherever it came from.
    Member::parse(&member.to_string()).map_err(|_| WireError::Field("address"))?;
    let renew = Renew {
        member,
        incarnation: Incarnation(fields.u64()?),
        identity: fields.text("identity")?,
        request: fields.u64()?,
        granted: fields.u64()?,
        seen: fields.epoch()?,
        map: fields.epoch()?,
        greeting: if fields.bool()? { Some(greeting(fields)?) } else { None },
        held: tenures(fields)?,
        loads: many(fields, |fields| Ok(ShardLoad { requests_milli: fields.u32()?, kib: fields.u32()? }))?,
        sealed: ended(fields)?,
        taken: ended(fields)?,
        budgets: many(fields, |fields| {
            Ok(BudgetUse { database: database(fields)?, held: fields.u32()?, demand: fields.u32()? })
        })?,
        is_leaving: fields.bool()?,
    };
    if !renew.loads.is_empty() && renew.loads.len() != renew.held.len() {
        return Err(WireError::Field("number of loads"));
    }
    if renew.identity.len() > IDENTITY_BYTES_MAX { Err(WireError::Field("identity")) } else { Ok(renew) }
}

fn database(fields: &mut Fields) -> Result<DatabaseName, WireError> {
    DatabaseName::parse(&fields.text("database name")?).map_err(|_| WireError::Field("database name"))
}

/// Neighbours of the same age and origin are one run: first, last, since, after. Requires: in the order of the shards.
fn put_tenures(out: &mut BytesMut, tenures: &[Tenure]) {
    let is_run = |a: &Tenure, b: &Tenure| {
        (a.since, a.after) == (b.since, b.after) && a.shard.0.checked_add(1) == Some(b.shard.0)
    };
    let runs: Vec<&[Tenure]> = tenures.chunk_by(is_run).collect();
    put_count(out, runs.len());
    for run in runs {
        out.put_u16_le(run[0].shard.0);
        out.put_u16_le(run[run.len() - 1].shard.0);
        put_epoch(out, run[0].since);
        match run[0].after {
            After::Nobody => out.put_u8(0),
            After::Move => out.put_u8(1),
            After::Crash => out.put_u8(2),
            After::Sealed(since) => {
                out.put_u8(3);
                put_epoch(out, since);
            }
        }
    }
}

fn tenures(fields: &mut Fields) -> Result<Vec<Tenure>, WireError> {
    let runs = many(fields, |fields| Ok((fields.u16()?, fields.u16()?, (fields.epoch()?, after(fields)?))))?;
    let is_ordered = runs.iter().all(|(first, last, _)| first <= last)
        && runs.windows(2).all(|two| two[0].1 < two[1].0 && !(two[0].1 + 1 == two[1].0 && two[0].2 == two[1].2));
    if !is_ordered {
        return Err(WireError::Field("run of shards"));
    }
    let tenure = |(since, after)| move |shard| Tenure { shard: ShardId(shard), since, after };
    Ok(runs.into_iter().flat_map(|(first, last, origin)| (first..=last).map(tenure(origin))).collect())
}

/// Neighbours of the same age and peer are one run: first, last, since, peer. Requires: in the order of the shards.
fn put_transfers(out: &mut BytesMut, transfers: &[Transfer]) {
    let is_run = |a: &Transfer, b: &Transfer| {
        (a.since, &a.peer) == (b.since, &b.peer) && a.shard.0.checked_add(1) == Some(b.shard.0)
    };
    let runs: Vec<&[Transfer]> = transfers.chunk_by(is_run).collect();
    put_count(out, runs.len());
    for run in runs {
        out.put_u16_le(run[0].shard.0);
        out.put_u16_le(run[run.len() - 1].shard.0);
        put_epoch(out, run[0].since);
        put_short(out, run[0].peer.as_str().as_bytes());
    }
}

fn transfers(fields: &mut Fields) -> Result<Vec<Transfer>, WireError> {
    let runs = many(fields, |fields| Ok((fields.u16()?, fields.u16()?, (fields.epoch()?, node(fields)?))))?;
    let is_ordered = runs.iter().all(|(first, last, _)| first <= last)
        && runs.windows(2).all(|two| two[0].1 < two[1].0 && !(two[0].1 + 1 == two[1].0 && two[0].2 == two[1].2));
    if !is_ordered {
        return Err(WireError::Field("run of shards"));
    }
    let of_run = |(first, last, (since, peer)): (u16, u16, (Epoch, NodeId))| {
        (first..=last).map(move |shard| Transfer { shard: ShardId(shard), since, peer: peer.clone() })
    };
    Ok(runs.into_iter().flat_map(of_run).collect())
}

fn after(fields: &mut Fields) -> Result<After, WireError> {
    match fields.u8()? {
        0 => Ok(After::Nobody),
        1 => Ok(After::Move),
        2 => Ok(After::Crash),
        3 => Ok(After::Sealed(fields.epoch()?)),
        _ => Err(WireError::Field("origin of a shard")),
    }
}
