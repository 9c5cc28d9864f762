//! Free ports for the processes of a cluster.

use std::collections::HashSet;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// Below it are the ports that people give to their own services.
const LOWEST_PORT: u16 = 10_000;
/// First port of the machine's ephemeral range where the kernel does not tell.
const EPHEMERAL_PORT: u16 = 32_768;
/// So many ports are tried for one that is free.
const TRIES_MAX: usize = 1000;

/// An address on loopback.
pub(crate) const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// Ports that were free a moment ago, each given once. They lie below the ephemeral range: the kernel gives none of
/// them to an outgoing connection before the process that is to listen there has started.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    given: HashSet<u16>,
}

impl Ports {
    /// Keeps a port from being given.
    pub(crate) fn take(&mut self, port: u16) {
        self.given.insert(port);
    }

    /// A free port.
    ///
    /// # Errors
    /// When none is found in a thousand tries.
    pub(crate) fn free(&mut self) -> io::Result<SocketAddr> {
        let end = ephemeral_start().max(LOWEST_PORT + 1);
        for _ in 0..TRIES_MAX {
            let port = fastrand::u16(LOWEST_PORT..end);
            let address = loopback(port);
            if TcpListener::bind(address).is_ok() && self.given.insert(port) {
                return Ok(address);
            }
        }
        Err(io::Error::new(io::ErrorKind::AddrInUse, format!("no free port from {LOWEST_PORT} to {end}")))
    }
}

fn ephemeral_start() -> u16 {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    range.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(EPHEMERAL_PORT)
}
