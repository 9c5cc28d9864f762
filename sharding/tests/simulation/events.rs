//! What happens, and when.

use std::time::Duration;

use sharding::acceptor::Vote;
use sharding::membership::{Incarnation, Renew, Reply};
use sharding::proposer::Proposal;

use crate::clients::ClientEvent;
use crate::database::{Answer, Sent};
use crate::serving::{Ask, Asker, Chunk, ReplyTo, Wanted};

#[derive(Clone, Debug)]
pub(crate) enum Message {
    Proposal(Proposal),
    Vote(Vote),
    Renew(Renew),
    Reply(Reply),
    /// Of a router.
    Request {
        asker: Asker,
        key: usize,
        ask: Ask,
    },
    /// Of the database, to one life.
    Landed {
        incarnation: Incarnation,
        operation: u64,
        answer: Answer,
    },
    /// Of the database, to everybody: this is the place of the last change from outside.
    Notice {
        key: usize,
        place: u64,
    },
    /// Of the next owner of a shard.
    Want {
        to: ReplyTo,
        wanted: Wanted,
    },
    /// To it; `None`: it is not to be had.
    Handed {
        to: ReplyTo,
        chunk: Option<Chunk>,
    },
}

#[derive(Clone, Debug)]
pub(crate) enum What {
    Deliver {
        from: usize,
        message: Box<Message>,
    },
    Wake,
    /// An operation reaches the database, whatever has become of the node that sent it.
    Land {
        incarnation: Incarnation,
        operation: u64,
        sent: Sent,
    },
    /// Somebody changes a key behind the cache's back.
    Change,
    /// Something happens to the client of this number.
    Client(ClientEvent),
}

pub(crate) struct Event {
    pub(crate) at: Duration,
    pub(crate) number: u64,
    pub(crate) node: usize,
    pub(crate) what: What,
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}
impl Eq for Event {}
impl PartialOrd for Event {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Event {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

/// How links behave, in parts of a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Weather {
    pub(crate) loss: u32,
    pub(crate) duplicates: u32,
    pub(crate) slow: u32,
}
