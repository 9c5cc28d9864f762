//! How the processes of the cluster reach each other, for nodes and routers alike: which the seeds are ([`seeds`]), at
//! which addresses a name is found ([`names`]), the connections over which nodes are asked ([`upstream`]), the ports that
//! are listened on ([`ports`]), and what their flags have in common ([`flags`]).

pub mod flags;
pub mod names;
pub mod ports;
pub mod seeds;
pub mod upstream;
