//! How the processes of the cluster reach each other, for nodes and routers alike: which the seeds are ([`seeds`]), at
//! which addresses a name is found ([`names`]), and the connections over which nodes are asked ([`upstream`]).

pub mod names;
pub mod seeds;
pub mod upstream;
