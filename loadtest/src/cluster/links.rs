//! Links between processes that can be cut, one way or both, without root: every node is reached through a relay of ours.
//!
//! A cut link carries nothing and says nothing, as when packets are dropped: whoever connects waits, and what was sent
//! arrives when the link is whole again.

use std::collections::HashSet;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::processes::{Pids, Role, Sockets};

/// Looks for the process at the other end of a connection, and the first pause between them; it grows.
const LOOKS_MAX: u32 = 6;
const LOOK_PAUSE: Duration = Duration::from_millis(5);

/// A process of the cluster: what it is, and of which pod.
pub type Party = (Role, usize);

/// The relays of a cluster, one before each node. Dropping this ends them, and what waits at a cut link.
#[derive(Debug)]
pub(super) struct Links {
    shared: Arc<Shared>,
    relays: Vec<SocketAddr>,
}

#[derive(Debug)]
struct Shared {
    /// From whom to whom nothing passes.
    cuts: Mutex<HashSet<(Party, Party)>>,
    changed: Condvar,
    pids: Pids,
    sockets: Mutex<Sockets>,
    is_over: AtomicBool,
}

impl Links {
    /// Relays from each listener to the node of that pod.
    pub(super) fn start(relays: Vec<(TcpListener, SocketAddr)>, pids: Pids) -> io::Result<Self> {
        let addresses: io::Result<Vec<_>> = relays.iter().map(|(listener, _)| listener.local_addr()).collect();
        let shared = Shared {
            cuts: Mutex::default(),
            changed: Condvar::new(),
            sockets: Mutex::new(pids.sockets()),
            pids,
            is_over: AtomicBool::new(false),
        };
        let it = Self { shared: Arc::new(shared), relays: addresses? };
        for (pod, (listener, node)) in relays.into_iter().enumerate() {
            let shared = Arc::clone(&it.shared);
            thread(format!("relay {pod}"), move || accept(&shared, &listener, (Role::Node, pod), node))?;
        }
        Ok(it)
    }

    /// From now on nothing passes from the one to the other. The way back stays as it is.
    pub(super) fn cut(&self, from: Party, to: Party) {
        self.shared.lock().insert((from, to));
    }

    /// Every link is whole again.
    pub(super) fn heal(&self) {
        self.shared.lock().clear();
        self.shared.changed.notify_all();
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.heal();
        for relay in &self.relays {
            // Wakes it up; one that is gone already needs no waking.
            let _ = TcpStream::connect(relay);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, HashSet<(Party, Party)>> {
        self.cuts.lock().expect("nothing panics while it holds the lock")
    }

    /// Whose socket this is; nobody's: its process has ended already, or it is the test itself.
    fn whose(&self, peer: SocketAddr) -> Option<Party> {
        // The kernel's table is read in pieces, and may miss one while others come and go.
        (0..LOOKS_MAX).find_map(|look| {
            std::thread::sleep(look * LOOK_PAUSE);
            let asked = Instant::now();
            let mut sockets = self.sockets.lock().expect("nothing panics while it holds the lock");
            // One reading serves all who waited for it: a crowd of connections must not read a long table each.
            if sockets.read_at() < asked {
                *sockets = self.pids.sockets();
            }
            sockets.owner(peer)
        })
    }

    fn wait_whole(&self, from: Party, to: Party) {
        let is_cut = |cuts: &mut HashSet<(Party, Party)>| cuts.contains(&(from, to));
        drop(self.changed.wait_while(self.lock(), is_cut).expect("nothing panics while it holds the lock"));
    }
}

fn accept(shared: &Arc<Shared>, listener: &TcpListener, to: Party, node: SocketAddr) {
    while let Ok((near, peer)) = listener.accept() {
        if shared.is_over.load(Ordering::Relaxed) {
            return;
        }
        let shared = Arc::clone(shared);
        let relay = move || {
            let Some(from) = shared.whose(peer) else { return };
            // A handshake needs both ways.
            shared.wait_whole(from, to);
            shared.wait_whole(to, from);
            let Ok(far) = TcpStream::connect(node) else { return };
            // Without a pair of handles there is no connection: both ends see it closed.
            let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
            let back = Arc::clone(&shared);
            let started = thread("relay back".to_owned(), move || pump(&back, far_too, near_too, to, from));
            if started.is_ok() {
                pump(&shared, near, far, from, to);
            }
        };
        if let Err(error) = thread("relay".to_owned(), relay) {
            log::error!("a connection could not be relayed: {error}");
        }
    }
}

/// Carries bytes one way until either end closes; then both are closed.
fn pump(shared: &Shared, mut source: TcpStream, mut sink: TcpStream, from: Party, to: Party) {
    let mut chunk = [0; 64 * 1024];
    // Whatever fails, the connection ends; both sides learn it by their sockets.
    let _ = source.set_nodelay(true).and_then(|()| sink.set_nodelay(true));
    while let Ok(len @ 1..) = source.read(&mut chunk) {
        shared.wait_whole(from, to);
        if sink.write_all(&chunk[..len]).is_err() {
            break;
        }
    }
    // The news of the end takes the same way.
    shared.wait_whole(from, to);
    let _ = sink.shutdown(Shutdown::Both);
    let _ = source.shutdown(Shutdown::Both);
}

fn thread(name: String, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    std::thread::Builder::new().name(name).spawn(work).map(drop)
}
