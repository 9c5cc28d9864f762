//! The protocol of the distributed cache as deterministic code.
//!
//! It contains no I/O, reads no clock, draws no random number and awaits nothing: time and messages are arguments,
//! effects are returned. Both sides of the protocol live here, so that they can be tested against each other.
//!
//! | module | what it decides |
//! | --- | --- |
//! | [`id`] | what a shard, a node, a region and a key are; everything foreign is parsed into them |
//! | [`hash`] | which shard a key belongs to, frozen for ever |
//! | [`epoch`], [`map`] | who owns which shard, and which of two maps is newer |
//! | [`assign`] | the next map from the previous one and the members |
//! | [`ownership`] | node side: which shards to serve |
//! | [`routing`] | router side: where a request goes, and what its answer means for the next try |
//! | [`wire`] | the frames on the data port |

pub mod assign;
pub mod epoch;
pub mod hash;
pub mod id;
pub mod map;
pub mod ownership;
pub mod routing;
pub mod wire;
