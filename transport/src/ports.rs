//! Ports that are listened on.

use std::io;
use std::net::{SocketAddr, TcpListener};

use socket2::SockRef;

/// Connections that may wait to be accepted; the kernel takes less where `net.core.somaxconn` says so. With the 128 of the
/// standard library a burst of clients loses some, and those wait a second before they try again.
const BACKLOG: i32 = 4096;

/// Listens at an address.
///
/// # Errors
/// The machine's refusal.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(address)?;
    SockRef::from(&listener).listen(BACKLOG)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_of_connections_waits_to_be_accepted() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a port");
        let address = listener.local_addr().expect("bound");
        // One that finds no room would try again after a second.
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(900)).expect("there is room");
        let waiting: Vec<TcpStream> = (0..300).map(connect).collect();
        assert_eq!(waiting.len(), 300);
    }
}
