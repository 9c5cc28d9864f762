//! The shard map: an immutable table shard -> owner, with one epoch.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::assign::assign;
use crate::epoch::Epoch;
use crate::id::{NShards, NameError, NodeId, ShardId};
use crate::load::Weights;

/// Most nodes that a map can hold: their positions fit 16 bits, one of which says "nobody".
pub const MEMBERS_MAX: usize = u16::MAX as usize - 1;
/// Longest address in bytes: a DNS name, a colon and a port.
pub const ADDRESS_BYTES_MAX: usize = 259;

/// A node and where it takes data connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name.
    pub node: NodeId,
    /// `host:port` of its data port; the host is a name or an address.
    pub data: String,
}

/// Why a text is not a member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// The part before the `=`, or what follows from the address.
    #[error(transparent)]
    Name(#[from] NameError),
    /// No port, no host, or too long.
    #[error("{0:?} is not host:port with a port of 1 to 65535")]
    Address(String),
    /// Two members of the same name or address.
    #[error("the node {0} is named twice, or its address is")]
    Twice(NodeId),
    /// An empty list.
    #[error("no node is named; give at least one host:port")]
    None,
}

impl Member {
    /// Parses `[name=]host:port`. Without a name the node is called by the first label of its host, as a pod of a
    /// StatefulSet is; by the whole address where the host is an IP address.
    ///
    /// # Errors
    /// [`MemberError`] that quotes the text.
    pub fn parse(text: &str) -> Result<Self, MemberError> {
        let (name, data) = match text.split_once('=') {
            Some((name, data)) => (Some(name), data),
            None => (None, text),
        };
        let wrong = || MemberError::Address(data.to_owned());
        let (host, port) = data.rsplit_once(':').ok_or_else(wrong)?;
        let port_is_one = port.parse::<u16>().is_ok_and(|port| port > 0);
        let bracketed = host.starts_with('[') && host.ends_with(']');
        if host.is_empty() || !port_is_one || data.len() > ADDRESS_BYTES_MAX || (host.contains(':') && !bracketed) {
            return Err(wrong());
        }
        let is_ip = bracketed || host.parse::<std::net::IpAddr>().is_ok();
        let own_name = if is_ip { data } else { host.split('.').next().unwrap_or(host) };
        Ok(Self { node: NodeId::parse(name.unwrap_or(own_name))?, data: data.to_owned() })
    }

    /// Parses a list with commas between.
    ///
    /// # Errors
    /// [`MemberError`] for the first that is wrong, for none and for one named twice.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, MemberError> {
        let mut members: Vec<Self> = Vec::new();
        for one in text.split(',').map(str::trim).filter(|one| !one.is_empty()) {
            let member = Self::parse(one)?;
            if members.iter().any(|known| known.node == member.node || known.data == member.data) {
                return Err(MemberError::Twice(member.node));
            }
            members.push(member);
        }
        if members.is_empty() { Err(MemberError::None) } else { Ok(members) }
    }
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.node, self.data)
    }
}

/// Who owns each shard, at one epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShardMap {
    epoch: Epoch,
    members: Vec<Member>,
    /// For each shard the position of its owner in `members`.
    owners: Vec<Option<u16>>,
}

/// Why a table is no shard map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Nothing to own.
    #[error("a map has 1 to 65535 shards, not {0}")]
    Shards(usize),
    /// More than positions can tell apart.
    #[error("a map has at most {MEMBERS_MAX} members, not {0}")]
    Members(usize),
    /// An owner that is not there.
    #[error("shard {shard} belongs to member {owner} of {n_members}")]
    Owner {
        /// The shard.
        shard: usize,
        /// Position that it names.
        owner: u16,
        /// Members that there are.
        n_members: usize,
    },
}

impl ShardMap {
    /// Puts a map together. `owners` has one position in `members` for each shard.
    ///
    /// # Errors
    /// [`MapError`] when the parts do not fit.
    pub fn new(epoch: Epoch, members: Vec<Member>, owners: Vec<Option<u16>>) -> Result<Self, MapError> {
        if owners.is_empty() || owners.len() > usize::from(u16::MAX) {
            return Err(MapError::Shards(owners.len()));
        }
        if members.len() > MEMBERS_MAX {
            return Err(MapError::Members(members.len()));
        }
        for (shard, owner) in owners.iter().enumerate() {
            if let Some(owner) = *owner
                && usize::from(owner) >= members.len()
            {
                return Err(MapError::Owner { shard, owner, n_members: members.len() });
            }
        }
        Ok(Self { epoch, members, owners })
    }

    /// The map of a cluster whose members are known beforehand: [`assign`] over them.
    ///
    /// # Errors
    /// [`MapError::Members`] when there are too many.
    pub fn assigned(epoch: Epoch, n_shards: NShards, members: Vec<Member>) -> Result<Self, MapError> {
        if members.len() > MEMBERS_MAX {
            return Err(MapError::Members(members.len()));
        }
        let nodes: Vec<NodeId> = members.iter().map(|member| member.node.clone()).collect();
        let position = |owner: usize| Some(u16::try_from(owner).expect("at most MEMBERS_MAX members"));
        let mut owners: Vec<_> = assign(&Weights::equal(n_shards), &[], &nodes).into_iter().map(position).collect();
        owners.resize(usize::from(n_shards.get()), None);
        Self::new(epoch, members, owners)
    }

    /// Which map this is.
    #[must_use]
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// How many shards there are.
    #[must_use]
    pub fn n_shards(&self) -> NShards {
        let n_shards = u16::try_from(self.owners.len()).ok().and_then(NShards::new);
        n_shards.expect("`new` has checked that there are 1 to 65535 shards")
    }

    /// All nodes of the cluster, owners or not.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// For each shard the position of its owner in [`ShardMap::members`].
    #[must_use]
    pub fn owners(&self) -> &[Option<u16>] {
        &self.owners
    }

    /// The owner of a shard; `None` where it has none, or where there is no such shard.
    #[must_use]
    pub fn owner_of(&self, shard: ShardId) -> Option<&Member> {
        let owner = (*self.owners.get(shard.index())?)?;
        self.members.get(usize::from(owner))
    }

    /// The shards of a node, in order.
    pub fn shards_of(&self, node: &NodeId) -> impl Iterator<Item = ShardId> {
        let position = self.members.iter().position(|member| member.node == *node);
        let owned =
            move |&shard: &ShardId| position.is_some() && self.owners[shard.index()].map(usize::from) == position;
        self.n_shards().shards().filter(owned)
    }

    /// What `/-/map` shows.
    #[must_use]
    pub fn page(&self) -> MapPage {
        let mut owners: BTreeMap<NodeId, Vec<(u16, u16)>> = BTreeMap::new();
        for shard in self.n_shards().shards() {
            let Some(owner) = self.owner_of(shard) else { continue };
            let ranges = owners.entry(owner.node.clone()).or_default();
            match ranges.last_mut() {
                Some((_, last)) if *last + 1 == shard.0 => *last = shard.0,
                _ => ranges.push((shard.0, shard.0)),
            }
        }
        MapPage { epoch: self.epoch, n_shards: self.n_shards(), owners }
    }
}

/// A shard map as people and scripts read it: `{"epoch":{"term":[counter,seed],"seq":n},"n_shards":n,"owners":{..}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapPage {
    /// Which map this is.
    pub epoch: Epoch,
    /// How many shards there are.
    pub n_shards: NShards,
    /// For each node that owns anything the ranges of its shards, first and last included.
    pub owners: BTreeMap<NodeId, Vec<(u16, u16)>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::epoch::Term;

    const EPOCH: Epoch = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };

    fn three() -> Vec<Member> {
        Member::parse_list("pod-0=127.0.0.1:1,pod-1=127.0.0.1:2,pod-2=127.0.0.1:3").expect("a list")
    }

    #[test]
    fn a_member_is_named_by_its_pod() {
        for (text, node, data) in [
            ("pod-0=127.0.0.1:2551", "pod-0", "127.0.0.1:2551"),
            (
                "distributed-cache-0.distributed-cache:2551",
                "distributed-cache-0",
                "distributed-cache-0.distributed-cache:2551",
            ),
            ("127.0.0.1:2551", "127.0.0.1:2551", "127.0.0.1:2551"),
            ("[::1]:2551", "[::1]:2551", "[::1]:2551"),
        ] {
            let member = Member::parse(text).expect(text);
            assert_eq!((member.node.as_str(), member.data.as_str()), (node, data));
        }
        for bad in ["", "host", "host:", ":1", "host:0", "host:65536", "a b:1", "=h:1", "::1:5", "h:x"] {
            assert!(Member::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn a_list_names_each_node_once() {
        assert_eq!(Member::parse_list(" , "), Err(MemberError::None));
        let twice = Member::parse_list("a=h:1,a=h:2");
        assert_eq!(twice, Err(MemberError::Twice(NodeId::parse("a").expect("a name"))));
        assert!(Member::parse_list("a=h:1,b=h:1").is_err(), "one vote would count twice");
        assert_eq!(Member::parse_list("a=h:1, b=h:2,").expect("two").len(), 2);
    }

    #[test]
    fn the_page_names_only_nodes_that_own_and_joins_neighbours() {
        let owners = vec![Some(0), Some(0), Some(1), None, Some(0)];
        let map = ShardMap::new(EPOCH, three(), owners).expect("a map");
        let page = serde_json::to_string(&map.page()).expect("JSON");
        assert_eq!(
            page,
            r#"{"epoch":{"term":[1,0],"seq":1},"n_shards":5,"owners":{"pod-0":[[0,1],[4,4]],"pod-1":[[2,2]]}}"#
        );
    }

    #[test]
    fn an_owner_that_is_not_there_is_refused() {
        assert!(matches!(ShardMap::new(EPOCH, three(), vec![Some(3)]), Err(MapError::Owner { .. })));
        assert!(matches!(ShardMap::new(EPOCH, three(), vec![]), Err(MapError::Shards(0))));
    }

    #[test]
    fn every_shard_of_an_assigned_map_is_found_at_its_owner() {
        let map = ShardMap::assigned(EPOCH, NShards::DEFAULT, three()).expect("a map");
        let mut n_owned = 0;
        for member in map.members() {
            for shard in map.shards_of(&member.node) {
                assert_eq!(map.owner_of(shard), Some(member));
                n_owned += 1;
            }
        }
        assert_eq!(n_owned, 1024);
        let nobody = ShardMap::assigned(EPOCH, NShards::DEFAULT, Vec::new()).expect("a map");
        assert_eq!(nobody.owner_of(ShardId(0)), None);
    }
}
