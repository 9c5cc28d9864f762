//! Redis: strings by `MGET`, a field of hashes by one script. One connection, shared by all that is in flight.

mod writing;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, ProtocolVersion, PushKind,
    RedisError, Script, ServerErrorKind, TlsCertificates, Value,
};
use tokio::sync::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};
use tokio::time::timeout_at;

use super::{
    Announcement, Announcer, Database, DatabaseError, Found, Query, Raise, Raised, Read, Write, WriteError, Written,
    may_be_sent,
};

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Whoever listens asks the server so often whether it is there.
const PING_PERIOD: Duration = Duration::from_secs(2);
/// Longest time for its answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// A server whose machine is gone is noticed within this time, while something is sent to it.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// A field of each key; what is no hash, or has no such field, is nil.
static FIELDS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local found = {}
         for place, key in ipairs(KEYS) do
           local value = redis.pcall('HGET', key, ARGV[1])
           found[place] = type(value) == 'string' and value or false
         end
         return found",
    )
});

/// A server, and the connection to it while there is one.
#[derive(Clone)]
pub struct Redis(Arc<Inner>);

struct Inner {
    client: Client,
    connection: Mutex<Option<Numbered>>,
    n_connections: AtomicU64,
}

/// A connection, told apart from those before it.
#[derive(Clone)]
struct Numbered {
    number: u64,
    connection: MultiplexedConnection,
}

/// Reads a URL as the Redis driver knows it, `redis://` or `rediss://`.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub fn parse_url(url: &str) -> Result<ConnectionInfo, String> {
    let wrong = "the url is redis://[user[:password]@]host[:port][/number], with rediss:// for TLS";
    let info = url.into_connection_info().map_err(|_| wrong.to_owned())?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    let tcp = info.tcp_settings().clone().set_nodelay(true).set_user_timeout(UNACKNOWLEDGED_MAX);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp))
}

impl Redis {
    /// Not connected yet. `ca_file`: the certificates (PEM) that the server's may follow from, in the place of those of the
    /// machine.
    ///
    /// # Errors
    /// When that file cannot be read.
    pub fn new(info: ConnectionInfo, ca_file: Option<&Path>) -> std::io::Result<Self> {
        let root_cert = ca_file.map(std::fs::read).transpose()?;
        let client = match root_cert {
            Some(_) => Client::build_with_tls(info, TlsCertificates { client_tls: None, root_cert }),
            None => Client::open(info),
        };
        let client = client.map_err(|error| std::io::Error::other(error.to_string()))?;
        Ok(Self(Arc::new(Inner { client, connection: Mutex::new(None), n_connections: AtomicU64::new(0) })))
    }

    async fn connection(&self) -> Result<Numbered, DatabaseError> {
        let mut connection = self.0.connection.lock().await;
        if let Some(connection) = &*connection {
            return Ok(connection.clone());
        }
        // Each operation has a time of its own.
        let config =
            AsyncConnectionConfig::new().set_connection_timeout(Some(CONNECT_TIMEOUT)).set_response_timeout(None);
        let new = self.0.client.get_multiplexed_async_connection_with_config(&config).await;
        let new = new.map_err(|error| DatabaseError::Unavailable(why_not_connected(&error)))?;
        let number = self.0.n_connections.fetch_add(1, Ordering::Relaxed);
        Ok(connection.insert(Numbered { number, connection: new }).clone())
    }

    /// Whoever comes next connects anew; what is in flight on this one goes on.
    async fn forget(&self, number: u64) {
        let mut connection = self.0.connection.lock().await;
        if connection.as_ref().is_some_and(|connection| connection.number == number) {
            connection.take();
        }
    }

    /// Asks something, if it may be sent by then; its answer is worth something until `until`.
    async fn run<T: Send + 'static, F: Future<Output = Result<T, DatabaseError>> + Send + 'static>(
        &self,
        send_by: Instant,
        until: Instant,
        what: impl FnOnce(MultiplexedConnection) -> F,
    ) -> Result<T, DatabaseError> {
        let connected = timeout_at(until.into(), self.connection()).await.unwrap_or(Err(DatabaseError::TimedOut));
        let Numbered { number, connection } = connected?;
        may_be_sent(send_by, until)?;
        // On a task of its own: given up here, it holds its slot until the server has answered or the connection is gone.
        let asked = tokio::spawn(what(connection));
        let answer = match timeout_at(until.into(), asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(DatabaseError::Failed("its driver panicked".to_owned())),
            Err(_) => Err(DatabaseError::TimedOut),
        };
        if matches!(answer, Err(DatabaseError::TimedOut | DatabaseError::Unavailable(_))) {
            self.forget(number).await;
        }
        answer
    }

    async fn read(&self, read: Read) -> Result<Found, DatabaseError> {
        self.run(read.send_by, read.until, |connection| ask(connection, read)).await
    }
}

async fn ask(mut connection: MultiplexedConnection, read: Read) -> Result<Found, DatabaseError> {
    let Query::Redis { key: (before, after), field } = &*read.query else {
        return Err(DatabaseError::Failed("it takes a key, not a statement".to_owned()));
    };
    let names: Vec<Vec<u8>> = read.keys.iter().map(|key| [before.as_bytes(), key, after.as_bytes()].concat()).collect();
    let values: Result<Vec<Option<Vec<u8>>>, RedisError> = match field {
        None => redis::cmd("MGET").arg(names).query_async(&mut connection).await,
        Some(field) => {
            let mut call = FIELDS.prepare_invoke();
            call.key(names).arg(field);
            call.invoke_async(&mut connection).await
        }
    };
    let found = |(key, value): (&Bytes, Option<Vec<u8>>)| Some((key.clone(), Bytes::from(value?)));
    Ok(read.keys.iter().zip(values.map_err(|error| failed(&error))?).filter_map(found).collect())
}

impl Redis {
    /// Client tracking (<https://redis.io/docs/latest/develop/reference/client-side-caching/>), in broadcasting mode: the
    /// server says which keys of ours have changed, whoever has read them.
    async fn listen(&self, regions: &[(String, String)], tell: &UnboundedSender<Announcement>) -> DatabaseError {
        let (pushed, mut pushes) = unbounded_channel();
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(PING_TIMEOUT))
            .set_push_sender(pushed);
        let mut connection = match self.0.client.get_multiplexed_async_connection_with_config(&config).await {
            Ok(connection) => connection,
            Err(error) => return DatabaseError::Unavailable(why_not_connected(&error)),
        };
        let mut tracking = redis::cmd("CLIENT");
        tracking.arg("TRACKING").arg("ON").arg("BCAST");
        prefixes(regions).into_iter().for_each(|prefix| {
            tracking.arg("PREFIX").arg(prefix);
        });
        if let Err(error) = tracking.exec_async(&mut connection).await {
            return failed(&error);
        }
        // Whoever was told ends us when it ends.
        let _ = tell.send(Announcement::Begun);
        let mut ping = tokio::time::interval(PING_PERIOD);
        loop {
            tokio::select! {
                push = pushes.recv() => match push {
                    Some(push) if push.kind == PushKind::Invalidate => {
                        announced(regions, push.data).into_iter().for_each(|said| {
                            // As above.
                            let _ = tell.send(said);
                        });
                    }
                    Some(push) if push.kind == PushKind::Disconnection => break,
                    Some(_) => {}
                    None => break,
                },
                _ = ping.tick() => {
                    let mut connection = connection.clone();
                    if let Err(error) = redis::cmd("PING").exec_async(&mut connection).await {
                        return failed(&error);
                    }
                }
            }
        }
        DatabaseError::Unavailable("the connection was closed".to_owned())
    }
}

/// What to track: the beginnings of our keys, none of which may begin another.
fn prefixes(regions: &[(String, String)]) -> Vec<&str> {
    let all = || regions.iter().map(|(before, _)| before.as_str());
    let mut needed: Vec<&str> =
        all().filter(|one| !all().any(|other| other != *one && one.starts_with(other))).collect();
    needed.sort_unstable();
    needed.dedup();
    needed
}

/// The changed keys; nil where the whole database was emptied.
fn announced(regions: &[(String, String)], data: Vec<Value>) -> Vec<Announcement> {
    let mut all = Vec::new();
    for value in data {
        let Value::Array(keys) = value else { return vec![Announcement::All] };
        for key in keys {
            let Value::BulkString(name) = key else { return vec![Announcement::All] };
            let of_region = |(place, (before, after)): (usize, &(String, String))| {
                let key = name.strip_prefix(before.as_bytes())?.strip_suffix(after.as_bytes())?;
                Some(Announcement::Key(place, Bytes::copy_from_slice(key)))
            };
            all.extend(regions.iter().enumerate().filter_map(of_region));
        }
    }
    all
}

impl Announcer for Redis {
    fn listen(
        &self,
        regions: Vec<(String, Arc<Query>)>,
        tell: UnboundedSender<Announcement>,
    ) -> BoxFuture<'static, DatabaseError> {
        let redis = self.clone();
        let keys = regions.into_iter().map(|(_, query)| match &*query {
            Query::Redis { key, .. } => key.clone(),
            Query::Sql(_) => Default::default(),
        });
        let keys: Vec<(String, String)> = keys.collect();
        Box::pin(async move { Self::listen(&redis, &keys, &tell).await })
    }
}

impl Database for Redis {
    fn read(&self, read: Read) -> BoxFuture<'static, Result<Found, DatabaseError>> {
        let redis = self.clone();
        Box::pin(async move { redis.read(read).await })
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Written, WriteError>> {
        let redis = self.clone();
        Box::pin(async move { redis.write(write).await })
    }

    fn raise(&self, raise: Raise) -> BoxFuture<'static, Result<Raised, DatabaseError>> {
        let redis = self.clone();
        Box::pin(async move { redis.raise(raise).await })
    }
}

/// A server may repeat what it was sent, and that was the password: its own words are not passed on.
fn why_not_connected(error: &RedisError) -> String {
    if error.is_io_error() {
        return error.to_string();
    }
    format!("the server refuses the connection: {}", error.code().unwrap_or("it speaks no RESP3, or not as expected"))
}

fn failed(error: &RedisError) -> DatabaseError {
    let message = error.to_string();
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::AuthenticationFailed
        | ErrorKind::Server(
            ServerErrorKind::BusyLoading
            | ServerErrorKind::MasterDown
            | ServerErrorKind::ClusterDown
            | ServerErrorKind::TryAgain,
        ) => DatabaseError::Unavailable(message),
        _ => DatabaseError::Failed(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_in_what_the_server_says() {
        let region = |before: &str, after: &str| (before.to_owned(), after.to_owned());
        let regions = [region("thing:", ""), region("thing:x:", ":body"), region("other:", "")];
        assert_eq!(prefixes(&regions), ["other:", "thing:"]);
        assert_eq!(prefixes(&[region("", ""), region("a", "")]), [""]);
        let name = |name: &str| Value::BulkString(name.as_bytes().to_vec());
        let said = announced(&regions, vec![Value::Array(vec![name("thing:x:1:body"), name("none")])]);
        assert_eq!(said, [Announcement::Key(0, "x:1:body".into()), Announcement::Key(1, "1".into())]);
        assert_eq!(announced(&regions, vec![Value::Nil]), [Announcement::All]);
    }

    #[test]
    fn a_url_is_checked_and_its_password_is_in_no_message() {
        assert!(parse_url("redis://user:geheim@host:1/2").is_ok());
        assert!(parse_url("rediss://host").is_ok());
        for url in ["redis://user:geheim@host:x", "http://user:geheim@host", "redis://user:geheim@host/zwei"] {
            let error = parse_url(url).expect_err("refused");
            assert!(!error.contains("geheim"), "{error}");
        }
        let info = parse_url("redis://user:geheim@host:1/2").expect("a url");
        assert!(!format!("{info:?}").contains("geheim"));
    }
}
