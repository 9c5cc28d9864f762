//! At which addresses a name is found, and connections to it.
//!
//! DNS finds, it never decides: an answer is used for [`PERIOD`], asked for anew after a connection has failed, and kept
//! when there is no newer one. A name server may say for half a minute where a pod was before it was replaced, or that
//! there is none: so whoever is found there by another way is believed first ([`Names::hint`]). Nothing here gives up;
//! whoever asks has a deadline.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use socket2::TcpKeepalive;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::Instant;

/// So long an answer is used.
pub const PERIOD: Duration = Duration::from_secs(5);
/// So long after the last answer a name is not asked for again, whatever fails.
pub const PERIOD_AFTER_FAILURE: Duration = Duration::from_millis(500);
/// A peer that has not acknowledged what was sent for so long is gone: it would have lost its lease by now.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(2);
/// A peer that was quiet for so long is asked whether it is there.
const IDLE_MAX: Duration = Duration::from_secs(5);
const KEEPALIVE_PERIOD: Duration = Duration::from_secs(1);
/// Most names that are remembered; pods keep theirs.
const NAMES_MAX: usize = 4096;

/// Turns a name into addresses.
pub trait Resolve: std::fmt::Debug + Send + Sync + 'static {
    /// The addresses of `host`, at best in the order to try them. `host` has no port.
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

/// The machine's own resolver. A name of several labels is first taken for a full one, with a final dot: that skips the
/// search list, which in a pod costs several questions for each name. When there is none such, the list is tried.
#[derive(Clone, Copy, Debug)]
pub struct SystemResolver;

impl Resolve for SystemResolver {
    fn resolve(&self, host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move {
            if host.contains('.')
                && !host.ends_with('.')
                && let Ok(found) = tokio::net::lookup_host((format!("{host}."), port)).await
            {
                return Ok(found.collect());
            }
            Ok(tokio::net::lookup_host((host, port)).await?.collect())
        })
    }
}

/// Makes a connection send at once, and end when the peer's machine is gone: soon when something was sent to it, within
/// ten seconds when all is quiet.
///
/// # Errors
/// The machine's refusal.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = socket2::SockRef::from(stream);
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE_MAX).with_interval(KEEPALIVE_PERIOD))
}

/// Names and their addresses, for all threads of a process.
#[derive(Debug)]
pub struct Names {
    resolver: Box<dyn Resolve>,
    known: Mutex<HashMap<String, Known>>,
}

/// What is known of one name.
#[derive(Debug)]
struct Known {
    /// The last that were found; empty until some were.
    addresses: Vec<SocketAddr>,
    /// Where it says that it is; none after a connection to there has failed.
    hint: Option<SocketAddr>,
    answered: Instant,
    /// A connection has failed since.
    has_failed: bool,
    /// Why the last question brought none.
    error: Option<String>,
    /// A question in the air: one at a time, whoever waits for it.
    asking: Option<watch::Receiver<()>>,
}

impl Known {
    fn unheard(now: Instant) -> Self {
        Self { addresses: Vec::new(), hint: None, answered: now, has_failed: false, error: None, asking: None }
    }

    fn is_due(&self, now: Instant) -> bool {
        let is_good = !self.has_failed && self.error.is_none();
        now >= self.answered + if is_good { PERIOD } else { PERIOD_AFTER_FAILURE }
    }
}

impl Names {
    /// Nothing is known yet.
    pub fn new(resolver: impl Resolve) -> Arc<Self> {
        Arc::new(Self { resolver: Box::new(resolver), known: Mutex::default() })
    }

    /// Names as this machine finds them.
    pub fn of_system() -> Arc<Self> {
        Self::new(SystemResolver)
    }

    /// Connects to `host:port`, at any of its addresses. The connection sends at once (no delay for more), and ends when
    /// the peer's machine is gone.
    ///
    /// # Errors
    /// When the name is not found, or nothing answers there. Sets no deadline.
    pub async fn connect(self: &Arc<Self>, address: &str) -> io::Result<TcpStream> {
        let addresses = self.resolve(address).await?;
        // Given up by its deadline, it has failed as well.
        let mut doubt = Doubt { names: self, address, is_cleared: false };
        let stream = TcpStream::connect(&addresses[..]).await?;
        doubt.is_cleared = true;
        tune(&stream)?;
        Ok(stream)
    }

    /// Who is called `host:port` was met at `address`: tried before what the name server says, until a connection to there
    /// fails.
    pub fn hint(&self, name: &str, address: SocketAddr) {
        let mut known = self.lock();
        if known.len() < NAMES_MAX || known.contains_key(name) {
            let one = known.entry(name.to_owned()).or_insert_with(|| Known::unheard(Instant::now()));
            one.hint = (one.addresses != [address]).then_some(address);
        }
    }

    /// The addresses of `host:port`: the last known at once, if they are not old; else new ones, else the last known.
    ///
    /// # Errors
    /// When none was ever found.
    pub async fn resolve(self: &Arc<Self>, address: &str) -> io::Result<Vec<SocketAddr>> {
        if let Ok(literal) = address.parse() {
            return Ok(vec![literal]);
        }
        if let Some(hint) = self.lock().get(address).and_then(|known| known.hint) {
            return Ok(vec![hint]);
        }
        let Some(mut answered) = self.ask(address)? else { return self.answer(address) };
        if self.lock().get(address).is_some_and(|known| !known.addresses.is_empty()) {
            // The old ones serve meanwhile: a name server that is slow holds nobody up.
            return self.answer(address);
        }
        // Ended without a word: what is known is the answer all the same.
        let _ = answered.changed().await;
        self.answer(address)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Known>> {
        self.known.lock().expect("nothing panics while it holds the lock")
    }

    fn answer(&self, address: &str) -> io::Result<Vec<SocketAddr>> {
        match self.lock().get(address) {
            Some(known) if !known.addresses.is_empty() => Ok(known.addresses.clone()),
            Some(Known { error: Some(error), .. }) => Err(not_found(address, error)),
            _ => Err(not_found(address, "there is no such name")),
        }
    }

    /// Asks, if it is time to; gives the question in the air, if there is one.
    fn ask(self: &Arc<Self>, address: &str) -> io::Result<Option<watch::Receiver<()>>> {
        let now = Instant::now();
        let mut known = self.lock();
        match known.get(address) {
            Some(Known { asking: Some(asking), .. }) if asking.has_changed().is_ok() => {
                return Ok(Some(asking.clone()));
            }
            Some(one) if !one.is_due(now) => return Ok(None),
            _ => {}
        }
        let wrong = || not_found(address, "it is not host:port");
        let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
        let question = self.resolver.resolve(host.to_owned(), port.parse().map_err(|_| wrong())?);
        let (done, asking) = watch::channel(());
        if known.len() >= NAMES_MAX {
            known.clear();
        }
        known.entry(address.to_owned()).or_insert_with(|| Known::unheard(now)).asking = Some(asking.clone());
        let (names, address) = (Arc::clone(self), address.to_owned());
        tokio::spawn(async move {
            let answer = question.await;
            names.learn(&address, answer);
            drop(done);
        });
        Ok(Some(asking))
    }

    fn learn(&self, address: &str, answer: io::Result<Vec<SocketAddr>>) {
        let mut known = self.lock();
        let Some(one) = known.get_mut(address) else { return };
        (one.asking, one.answered, one.has_failed) = (None, Instant::now(), false);
        one.error = match answer {
            Ok(addresses) if addresses.is_empty() => Some("it has no address".to_owned()),
            Ok(addresses) => {
                if one.addresses != addresses {
                    log::debug!(name = address; "is found at {addresses:?}");
                    one.addresses = addresses;
                }
                None
            }
            Err(error) => Some(error.to_string()),
        };
    }
}

fn not_found(address: &str, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{address} is not found: {why}"))
}

/// Dropped, it has a name asked for anew, unless it was cleared.
struct Doubt<'a> {
    names: &'a Names,
    address: &'a str,
    is_cleared: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if !self.is_cleared
            && let Some(known) = self.names.lock().get_mut(self.address)
        {
            (known.has_failed, known.hint) = (true, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::advance;

    use super::*;

    type Said = Option<Result<Vec<SocketAddr>, ()>>;

    /// A name server that a test fills.
    #[derive(Clone, Debug, Default)]
    struct Book {
        /// `None`: it does not answer at all.
        answer: Arc<Mutex<Said>>,
        asked: Arc<AtomicUsize>,
    }

    impl Book {
        fn says(&self, answer: Option<Result<&[&str], ()>>) {
            let addresses = |all: &[&str]| all.iter().map(|one| one.parse().expect("an address")).collect();
            *self.answer.lock().expect("no panic under it") = answer.map(|answer| answer.map(addresses));
        }

        fn asked(&self) -> usize {
            self.asked.load(Ordering::Relaxed)
        }
    }

    impl Resolve for Book {
        fn resolve(&self, host: String, _: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            assert_eq!(host, "pod-0.pods.test");
            self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = self.answer.lock().expect("no panic under it").clone();
            Box::pin(async move {
                match answer {
                    Some(Ok(addresses)) => Ok(addresses),
                    Some(Err(())) => Err(io::Error::other("the name server is away")),
                    None => std::future::pending().await,
                }
            })
        }
    }

    const NAME: &str = "pod-0.pods.test:2551";

    fn names(answer: Option<Result<&[&str], ()>>) -> (Book, Arc<Names>) {
        let book = Book::default();
        book.says(answer);
        (book.clone(), Names::new(book))
    }

    /// What is found now, and after the question that this raised has been answered.
    async fn found(names: &Arc<Names>) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let at_once = names.resolve(NAME).await.expect("found");
        tokio::task::yield_now().await;
        (at_once, names.resolve(NAME).await.expect("found"))
    }

    fn at(address: &str) -> Vec<SocketAddr> {
        vec![address.parse().expect("an address")]
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_that_is_not_there_yet_is_asked_for_again_until_it_is() {
        let (book, names) = names(Some(Err(())));
        for n_asked in 1..20 {
            let error = names.resolve(NAME).await.expect_err("not there yet").to_string();
            assert!(error.contains(NAME) && error.contains("away"), "{error}");
            // At once again: nobody is asked.
            names.resolve(NAME).await.expect_err("not there yet");
            assert_eq!(book.asked(), n_asked);
            advance(PERIOD_AFTER_FAILURE).await;
        }
        book.says(Some(Ok(&["10.0.0.1:2551"])));
        assert_eq!(names.resolve(NAME).await.expect("found"), at("10.0.0.1:2551"));
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_used_for_a_period_and_then_renewed() {
        let (book, names) = names(Some(Ok(&["10.0.0.1:2551"])));
        assert_eq!(found(&names).await.0, at("10.0.0.1:2551"));
        book.says(Some(Ok(&["10.0.0.2:2551"])));
        advance(PERIOD - Duration::from_millis(1)).await;
        assert_eq!((found(&names).await.1, book.asked()), (at("10.0.0.1:2551"), 1));
        advance(Duration::from_millis(1)).await;
        assert_eq!((found(&names).await.1, book.asked()), (at("10.0.0.2:2551"), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_answer_is_kept_while_there_is_no_newer_one() {
        let (book, names) = names(Some(Ok(&["10.0.0.1:2551"])));
        found(&names).await;
        for silence in [Some(Err(())), Some(Ok(&[][..])), None] {
            book.says(silence);
            advance(PERIOD).await;
            assert_eq!(found(&names).await, (at("10.0.0.1:2551"), at("10.0.0.1:2551")), "{silence:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_server_that_does_not_answer_is_asked_once_at_a_time() {
        let (book, names) = names(None);
        for _ in 0..100 {
            let answered = tokio::time::timeout(Duration::from_secs(1), names.resolve(NAME)).await;
            assert!(answered.is_err(), "{answered:?}");
        }
        assert_eq!(book.asked(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_met_elsewhere_is_believed_before_the_name_server_until_a_connection_fails() {
        let (book, names) = names(Some(Ok(&["10.0.0.1:2551"])));
        found(&names).await;
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address");
        names.hint(NAME, gone);
        assert_eq!(names.resolve(NAME).await.expect("found"), [gone]);
        names.connect(NAME).await.expect_err("nobody listens there");
        assert_eq!(names.resolve(NAME).await.expect("found"), at("10.0.0.1:2551"));
        assert_eq!(book.asked(), 1);
    }

    #[tokio::test]
    async fn a_name_that_nobody_knows_is_found_by_a_hint() {
        let (book, names) = names(Some(Err(())));
        names.hint(NAME, at("10.0.0.1:2551")[0]);
        assert_eq!(names.resolve(NAME).await.expect("found"), at("10.0.0.1:2551"));
        assert_eq!(book.asked(), 0);
    }

    #[tokio::test]
    async fn a_connection_that_fails_has_the_name_asked_for_anew() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("an address");
        let (book, names) = names(Some(Ok(&[&gone.to_string()])));
        names.connect(NAME).await.expect_err("nobody listens there");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
        book.says(Some(Ok(&[&listener.local_addr().expect("an address").to_string()])));
        let connected = async {
            while names.connect(NAME).await.is_err() {
                tokio::time::sleep(PERIOD_AFTER_FAILURE / 10).await;
            }
        };
        tokio::time::timeout(PERIOD, connected).await.expect("long before the answer would be old");
        assert_eq!(book.asked(), 2);
    }

    #[tokio::test]
    async fn an_address_needs_nobody_and_what_is_none_is_said() {
        let (book, names) = names(None);
        assert_eq!(names.resolve("127.0.0.1:80").await.expect("an address"), at("127.0.0.1:80"));
        assert_eq!(names.resolve("[::1]:80").await.expect("an address"), at("[::1]:80"));
        let error = names.resolve("nowhere").await.expect_err("no port").to_string();
        assert!(error.contains("not host:port"), "{error}");
        assert_eq!(book.asked(), 0);
    }

    #[tokio::test]
    async fn the_machine_finds_itself() {
        let found = Names::of_system().resolve("localhost:1").await.expect("every machine knows itself");
        assert!(found.iter().all(|address| address.ip().is_loopback()), "{found:?}");
    }
}
