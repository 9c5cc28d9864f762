//! The protocol of the distributed cache as deterministic code.
//!
//! It contains no I/O, reads no clock and awaits nothing: time, chance and messages are arguments, effects are returned.
//! Both sides of the protocol live here, so that they can be tested against each other, under virtual time
//! (`tests/simulation`).
//!
//! | module | what it decides |
//! | --- | --- |
//! | [`id`] | what a shard, a node, a region and a key are; everything foreign is parsed into them |
//! | [`hash`] | which shard a key belongs to, frozen for ever |
//! | [`epoch`], [`map`] | who owns which shard, and which of two maps is newer |
//! | [`assign`] | the next map from the previous one and the members |
//! | [`load`], [`balance`] | what each shard weighs, and which shards move so that nodes have the same load |
//! | [`times`] | how long leases last, by whose clock |
//! | [`acceptor`], [`proposer`] | which seed coordinates |
//! | [`coordinator`] | who is granted what, and until when |
//! | [`seed`] | the three together: what a seed does |
//! | [`budget`] | how many operations a second each node may spend on a database |
//! | [`membership`] | what owners and the coordinator say to each other |
//! | [`ownership`] | node side: which shards to serve, and under which lease |
//! | [`flight`], [`keys`] | owner side: who loads and who writes a key, and who waits for what |
//! | [`fence`] | what a database compares before it lets a write through |
//! | [`form`] | how a value stands in JSON |
//! | [`routing`] | router side: where a request goes, and what its answer means for the next try |
//! | [`wire`] | the frames on the data port |

pub mod acceptor;
pub mod assign;
pub mod balance;
pub mod budget;
pub mod coordinator;
pub mod epoch;
pub mod fence;
pub mod flight;
pub mod form;
pub mod hash;
pub mod id;
pub mod keys;
pub mod load;
pub mod map;
pub mod membership;
pub mod ownership;
pub mod proposer;
pub mod routing;
pub mod seed;
pub mod times;
pub mod wire;
