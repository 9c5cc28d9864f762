//! Vectors that no release may change: routers and nodes of different releases must agree on them.

mod hash;
mod wire;
