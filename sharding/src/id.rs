//! Identities: parsed at the edge, passed on as types.

use std::fmt;
use std::num::NonZeroU16;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Longest key in bytes, after percent-decoding.
pub const KEY_BYTES_MAX: usize = 4096;
/// Longest name of a region, a database or a cluster in bytes.
pub const REGION_NAME_BYTES_MAX: usize = 63;
/// Longest name of a node in bytes: that of a DNS name.
pub const NODE_ID_BYTES_MAX: usize = 253;
/// First path segments that the router answers itself, so that no region may have them.
pub const RESERVED_REGION_NAMES: [&str; 4] = ["health", "livez", "readyz", "metrics"];

/// Number of shards of a cluster; the same for all its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NShards(NonZeroU16);

impl NShards {
    /// What a cluster has unless its configuration says otherwise.
    pub const DEFAULT: Self = match NonZeroU16::new(1024) {
        Some(n) => Self(n),
        None => unreachable!(),
    };

    /// `None` for 0.
    #[must_use]
    pub const fn new(n_shards: u16) -> Option<Self> {
        match NonZeroU16::new(n_shards) {
            Some(n) => Some(Self(n)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }

    /// All shards in order.
    pub fn shards(self) -> impl ExactSizeIterator<Item = ShardId> + Clone {
        (0..self.get()).map(ShardId)
    }
}

/// A fixed hash bucket of keys over all regions: the unit of ownership and of movement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub u16);

impl ShardId {
    /// Position in a table of all shards.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// The lane that the shard lives on, in a node that has `n_lanes` (at least 1).
    #[must_use]
    pub const fn lane(self, n_lanes: NonZeroU16) -> u16 {
        self.0 % n_lanes.get()
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a name is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or more than the bound.
    #[error("a {what} has 1 to {max} bytes, this one has {len}")]
    Length {
        /// Which kind of name.
        what: &'static str,
        /// Bytes that it has.
        len: usize,
        /// Bytes that it may have.
        max: usize,
    },
    /// A character that is not allowed, or not there.
    #[error("a {what} is made of {allowed}; {name:?} is not")]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// The rule.
        allowed: &'static str,
        /// What was given.
        name: String,
    },
    /// A name that the router answers itself.
    #[error("the name {0:?} is taken by the router's own pages; choose another for the region")]
    Reserved(String),
}

/// Name of a data set: the first path segment of its entries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RegionName(Arc<str>);

impl RegionName {
    /// Parses `[a-z0-9][a-z0-9_-]*`.
    ///
    /// # Errors
    /// [`NameError`] for another shape, a name that is too long or one that is taken.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_plain("region name", name)?;
        if RESERVED_REGION_NAMES.contains(&name) {
            return Err(NameError::Reserved(name.to_owned()));
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Name of a database, by which all nodes mean the same one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseName(Arc<str>);

impl DatabaseName {
    /// Parses `[a-z0-9][a-z0-9_-]*`.
    ///
    /// # Errors
    /// [`NameError`] for another shape, or a name that is too long.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_plain("database name", name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a cluster: tells its fences from those of another one that writes to the same database.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterName(Arc<str>);

impl ClusterName {
    /// Parses `[a-z0-9][a-z0-9_-]*`.
    ///
    /// # Errors
    /// [`NameError`] for another shape, or a name that is too long.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        check_plain("cluster name", name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RegionName {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::parse(&name)
    }
}

impl From<RegionName> for String {
    fn from(name: RegionName) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for RegionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Name of a node: its pod's name, the same over all its lives.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// Parses a DNS name, or an address with a port where a node has no other name.
    ///
    /// # Errors
    /// [`NameError`] for another shape or a name that is too long.
    pub fn parse(name: &str) -> Result<Self, NameError> {
        const WHAT: &str = "node name";
        check_length(WHAT, name, NODE_ID_BYTES_MAX)?;
        let allowed_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b':' | b'_' | b'[' | b']');
        if !name.bytes().all(allowed_byte) {
            let allowed = "letters, digits, - . _ and : []";
            return Err(NameError::Character { what: WHAT, allowed, name: name.to_owned() });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for NodeId {
    type Error = NameError;

    fn try_from(name: String) -> Result<Self, NameError> {
        Self::parse(&name)
    }
}

impl From<NodeId> for String {
    fn from(name: NodeId) -> Self {
        name.as_str().to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn check_plain(what: &'static str, name: &str) -> Result<(), NameError> {
    check_length(what, name, REGION_NAME_BYTES_MAX)?;
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    if !plain(bytes[0]) || !bytes.iter().all(|&b| plain(b) || b == b'_' || b == b'-') {
        let allowed = "a-z, 0-9, and after the first character - and _";
        return Err(NameError::Character { what, allowed, name: name.to_owned() });
    }
    Ok(())
}

fn check_length(what: &'static str, name: &str, max: usize) -> Result<(), NameError> {
    if name.is_empty() || name.len() > max {
        return Err(NameError::Length { what, len: name.len(), max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_name_is_a_plain_path_segment() {
        for good in ["cache-data", "a", "0", "users_v2", &"r".repeat(63)] {
            assert_eq!(RegionName::parse(good).expect(good).as_str(), good);
        }
        for bad in ["", "-a", "_a", "A", "a/b", "a.b", "-", "ü", &"r".repeat(64)] {
            assert!(RegionName::parse(bad).is_err(), "{bad:?} passed");
        }
    }

    #[test]
    fn the_routers_own_paths_are_no_regions() {
        for taken in RESERVED_REGION_NAMES {
            assert_eq!(RegionName::parse(taken), Err(NameError::Reserved(taken.to_owned())));
        }
    }

    #[test]
    fn a_node_name_is_a_pod_name_or_an_address() {
        for good in ["pod-0", "distributed-cache-0", "127.0.0.1:2551", "[::1]:2551"] {
            assert!(NodeId::parse(good).is_ok(), "{good:?} refused");
        }
        for bad in ["", "a b", "a,b", "a=b", "a/b", &"n".repeat(254)] {
            assert!(NodeId::parse(bad).is_err(), "{bad:?} passed");
        }
    }
}
