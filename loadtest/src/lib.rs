//! The distributed cache on one machine, as real processes: a cluster of pods to try, to test and to load; the demo
//! database that it serves; the load that goose puts on it; and the benchmark beside other caches.

pub mod bench;
pub mod cluster;
pub mod command_line;
pub mod demo;
pub mod figures;
pub mod history;
pub mod load;
pub mod scenario;
