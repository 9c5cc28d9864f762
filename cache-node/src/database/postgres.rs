//! PostgreSQL: one operation is one statement that reads all keys of a batch. Each operation in flight has a connection of
//! its own, kept for the next one; so has each write, on connections that may.

mod writing;

use std::collections::HashMap;
use std::future::poll_fn;
use std::path::Path;
use std::str::FromStr as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::BoxFuture;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{IsNull, ToSql, Type, to_sql_checked};
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, Error, Row, Statement};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{
    Announcement, Announcer, Database, DatabaseError, Found, KEYS, Query, Raise, Raised, Read, Write, WriteError,
    Written, one_statement, replace_keys, respell_keys,
};
use writing::Storing;

/// Longest time to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// Where changes are announced: `NOTIFY distributed_cache, 'region key'`, or the region alone for all of it.
const CHANNEL: &str = "distributed_cache";
/// As what whoever listens is known to the server.
const LISTENER: &str = "distributed-cache announcements";
/// Whoever listens asks the server so often whether it is there.
const PING_PERIOD: Duration = Duration::from_secs(2);
/// Longest time for its answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// A statement is prepared anew after so long.
const PREPARED_MAX: Duration = Duration::from_secs(60);
/// And after so long when there are keys that have not the type that it knows.
const PREPARED_MAX_WITH_MISFITS: Duration = Duration::from_secs(1);
/// Longest time for a server to stop a statement that it was told to stop.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(1);
/// What the server takes for `statement_timeout`, in milliseconds.
const STATEMENT_TIMEOUT_MS_MAX: u128 = i32::MAX as u128;
/// A server whose machine is gone is noticed within this time, while something is sent to it.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(3);

/// A server, and the connections to it that nobody uses at this moment.
#[derive(Clone)]
pub struct Postgres(Arc<Inner>);

struct Inner {
    config: Config,
    tls: MakeRustlsConnect,
    statement_timeout: Duration,
    write_timeout: Duration,
    idle: Mutex<Vec<Connection>>,
    idle_to_write: Mutex<Vec<Connection>>,
    /// For each connection that writes, by the process that serves it: the region and the key that it has written last.
    writes: Mutex<HashMap<i32, (Arc<str>, Bytes)>>,
}

struct Connection {
    client: Client,
    /// By the comment, which names the region.
    prepared: HashMap<Arc<str>, Prepared>,
    /// By the comment, and whether it stores or removes.
    storing: HashMap<(Arc<str>, bool), Storing>,
    /// Statements of our own.
    fixed: HashMap<&'static str, Statement>,
    /// The server's process, of a connection that writes.
    pid: Option<i32>,
    /// It is not to be used again.
    is_broken: bool,
}

#[derive(Clone)]
struct Prepared {
    statement: Statement,
    keys: KeyType,
    since: Instant,
}

impl Prepared {
    /// Whether it is young enough: a table may get another type of key, and then keys fit that did not before.
    fn may_serve(&self, keys: &[Bytes]) -> bool {
        let all_fit = self.keys.bind(keys).is_some_and(|(_, n_fit)| n_fit == keys.len());
        self.since.elapsed() < if all_fit { PREPARED_MAX } else { PREPARED_MAX_WITH_MISFITS }
    }
}

/// Why a statement brought no rows.
enum Asked {
    TooLate(DatabaseError),
    Refused(Error),
}

/// Whether a statement that was sound once is refused because of what it is about.
fn is_outdated(error: &Error) -> bool {
    let classes = ["42", "0A", "26"];
    error.code().is_some_and(|code| classes.iter().any(|class| code.code().starts_with(class)))
}

/// Reads a URL as the driver knows it, `postgres://` or `postgresql://`.
///
/// # Errors
/// What is wrong with it, without quoting it.
pub fn parse_url(url: &str) -> Result<Config, String> {
    let wrong = "the url is postgres://[user[:password]@]host[:port]/database[?sslmode=require]";
    let mut config = Config::from_str(url).map_err(|_| wrong.to_owned())?;
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err(wrong.to_owned());
    }
    if config.get_application_name().is_none() {
        config.application_name("distributed-cache");
    }
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    config.tcp_user_timeout(UNACKNOWLEDGED_MAX);
    Ok(config)
}

/// What of a query can be seen without a server.
///
/// # Errors
/// What is wrong with it.
pub fn check(load: &str) -> Result<(), String> {
    let with_keys = replace_keys(load, "");
    if with_keys == load || with_keys.contains(KEYS) {
        return Err("the query needs :keys, as in WHERE id = ANY(:keys)".to_owned());
    }
    if one_statement(load).contains(';') {
        return Err("the query is one statement".to_owned());
    }
    Ok(())
}

impl Postgres {
    /// Not connected yet. The server itself stops a statement that reads after `statement_timeout`, one that writes and what
    /// it holds after `write_timeout`, should we be gone. `ca_file`: the certificates (PEM) that the server's may follow
    /// from, in the place of those of the machine.
    ///
    /// # Errors
    /// When that file cannot be read.
    pub fn new(
        config: Config,
        statement_timeout: Duration,
        write_timeout: Duration,
        ca_file: Option<&Path>,
    ) -> std::io::Result<Self> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(match ca_file {
            Some(path) => {
                let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
                read().map_err(|error| std::io::Error::other(error.to_string()))?
            }
            None => rustls_native_certs::load_native_certs().certs,
        });
        let tls = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let tls = MakeRustlsConnect::new(tls);
        let (idle, idle_to_write, writes) = Default::default();
        Ok(Self(Arc::new(Inner { config, tls, statement_timeout, write_timeout, idle, idle_to_write, writes })))
    }

    async fn connect(&self) -> Result<Connection, DatabaseError> {
        let setup = format!(
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY; SET statement_timeout = {}",
            self.0.statement_timeout.as_millis().clamp(1, STATEMENT_TIMEOUT_MS_MAX)
        );
        self.connect_with(&setup).await
    }

    async fn connect_with(&self, setup: &str) -> Result<Connection, DatabaseError> {
        let Inner { config, tls, .. } = &*self.0;
        let connect = async {
            let (client, connection) = config.connect(tls.clone()).await.map_err(|error| failed(&error))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    log::info!("a connection to PostgreSQL ended: {}", text(&error));
                }
            });
            client.batch_execute(setup).await.map_err(|error| failed(&error))?;
            let (prepared, storing, fixed) = Default::default();
            Ok(Connection { client, prepared, storing, fixed, pid: None, is_broken: false })
        };
        timeout(CONNECT_TIMEOUT, connect).await.unwrap_or_else(|_| {
            Err(DatabaseError::Unavailable(format!("no connection to PostgreSQL within {CONNECT_TIMEOUT:?}")))
        })
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Connection>> {
        self.0.idle.lock().expect("nothing panics while it holds the lock")
    }

    async fn read(&self, read: Read) -> Result<Found, DatabaseError> {
        let until = Instant::from_std(read.until);
        let idle = self.idle().pop().filter(|connection| !connection.client.is_closed());
        let mut connection = match idle {
            Some(connection) => connection,
            None => timeout_at(until, self.connect()).await.unwrap_or(Err(DatabaseError::TimedOut))?,
        };
        let cancel = connection.client.cancel_token();
        let postgres = self.clone();
        // On a task of its own: given up here, it holds its slot and its connection until the server has answered, or the
        // connection is gone.
        let mut reading = tokio::spawn(async move {
            let answer = connection.read(&read).await;
            if !matches!(answer, Err(DatabaseError::Unavailable(_))) && !connection.client.is_closed() {
                postgres.idle().push(connection);
            }
            answer
        });
        let answer = match timeout_at(until, &mut reading).await {
            Ok(answer) => Some(answer),
            Err(_) => {
                self.cancel(&cancel).await;
                timeout(CANCEL_TIMEOUT, reading).await.ok()
            }
        };
        match answer {
            Some(Ok(answer)) => answer,
            Some(Err(_)) => Err(DatabaseError::Failed("its driver panicked".to_owned())),
            None => Err(DatabaseError::TimedOut),
        }
    }

    async fn cancel(&self, token: &CancelToken) {
        if !matches!(timeout(CANCEL_TIMEOUT, token.cancel_query(self.0.tls.clone())).await, Ok(Ok(()))) {
            log::warn!("PostgreSQL could not be told to stop a statement; its own statement_timeout will");
        }
    }
}

impl Postgres {
    async fn listen(&self, regions: &[String], tell: &UnboundedSender<Announcement>) -> DatabaseError {
        let Inner { config, tls, .. } = &*self.0;
        // So that it is told apart in pg_stat_activity.
        let mut config = config.clone();
        config.application_name(LISTENER);
        let (client, mut connection) = match timeout(CONNECT_TIMEOUT, config.connect(tls.clone())).await {
            Ok(Ok(connected)) => connected,
            Ok(Err(error)) => return failed(&error),
            Err(_) => return DatabaseError::TimedOut,
        };
        let driven = async {
            loop {
                match poll_fn(|context| connection.poll_message(context)).await {
                    Some(Ok(AsyncMessage::Notification(notice))) => {
                        if !self.is_our_write(notice.process_id(), notice.payload()) {
                            // Whoever was told ends us when it ends.
                            let _ = tell.send(announced(regions, notice.payload()));
                        }
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return failed(&error),
                    None => return DatabaseError::Unavailable("the connection was closed".to_owned()),
                }
            }
        };
        let listened = async {
            let listening = timeout(PING_TIMEOUT, client.batch_execute(&format!("LISTEN {CHANNEL}"))).await;
            match listening {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return failed(&error),
                Err(_) => return DatabaseError::TimedOut,
            }
            // As above.
            let _ = tell.send(Announcement::Begun);
            loop {
                tokio::time::sleep(PING_PERIOD).await;
                // An empty query: it reads nothing, and is answered.
                match timeout(PING_TIMEOUT, client.batch_execute("")).await {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return failed(&error),
                    Err(_) => return DatabaseError::TimedOut,
                }
            }
        };
        tokio::select! {
            error = driven => error,
            error = listened => error,
        }
    }
}

impl Postgres {
    /// Whether this is said of what a connection of ours has written last: memory has it already, as it was read back
    /// behind it, or later.
    fn is_our_write(&self, pid: i32, payload: &str) -> bool {
        let writes = self.0.writes.lock().expect("nothing panics while it holds the lock");
        let is_same = |(region, key): &(Arc<str>, Bytes)| {
            payload.split_once(' ').is_some_and(|(name, named)| *name == **region && named.as_bytes() == key)
        };
        writes.get(&pid).is_some_and(is_same)
    }
}

/// `region key`, or a region alone, or nothing: all of them.
fn announced(regions: &[String], payload: &str) -> Announcement {
    let (name, key) = payload.split_once(' ').map_or((payload, None), |(name, key)| (name, Some(key)));
    match (regions.iter().position(|region| region == name), key) {
        (Some(region), Some(key)) => Announcement::Key(region, Bytes::copy_from_slice(key.as_bytes())),
        (Some(region), None) => Announcement::Region(region),
        (None, None) if name.is_empty() => Announcement::All,
        // Of a region of somebody else's.
        (None, _) => Announcement::Other(name.to_owned()),
    }
}

impl Announcer for Postgres {
    fn listen(
        &self,
        regions: Vec<(String, Arc<Query>)>,
        tell: UnboundedSender<Announcement>,
    ) -> BoxFuture<'static, DatabaseError> {
        let postgres = self.clone();
        let names: Vec<String> = regions.into_iter().map(|(name, _)| name).collect();
        Box::pin(async move { Self::listen(&postgres, &names, &tell).await })
    }
}

impl Database for Postgres {
    fn read(&self, read: Read) -> BoxFuture<'static, Result<Found, DatabaseError>> {
        let postgres = self.clone();
        Box::pin(async move { postgres.read(read).await })
    }

    fn write(&self, write: Write) -> BoxFuture<'static, Result<Written, WriteError>> {
        let postgres = self.clone();
        Box::pin(async move { Self::write(&postgres, write).await })
    }

    fn raise(&self, raise: Raise) -> BoxFuture<'static, Result<Raised, DatabaseError>> {
        let postgres = self.clone();
        Box::pin(async move { Self::raise(&postgres, raise).await })
    }
}

impl Connection {
    async fn read(&mut self, read: &Read) -> Result<Found, DatabaseError> {
        let Query::Sql(load) = &*read.query else { return Err(DatabaseError::Failed("it takes SQL".to_owned())) };
        let known = self.prepared.get(&read.comment).filter(|prepared| prepared.may_serve(&read.keys)).cloned();
        let is_old = known.is_some();
        let prepared = match known {
            Some(prepared) => prepared,
            None => self.prepare_anew(load, &read.comment).await?,
        };
        match self.ask(&prepared, &read.keys, || read.may_be_sent()).await {
            // The table is another than when the statement was prepared: it was not run.
            Err(Asked::Refused(error)) if is_old && is_outdated(&error) => {
                let prepared = self.prepare_anew(load, &read.comment).await?;
                self.ask(&prepared, &read.keys, || read.may_be_sent()).await
            }
            answer => answer,
        }
        .map_err(|asked| match asked {
            Asked::TooLate(error) => error,
            Asked::Refused(error) => failed(&error),
        })
    }

    async fn prepare_anew(&mut self, load: &str, comment: &Arc<str>) -> Result<Prepared, DatabaseError> {
        self.prepared.remove(comment);
        let prepared = self.prepare(load, comment).await?;
        self.prepared.insert(Arc::clone(comment), prepared.clone());
        Ok(prepared)
    }

    async fn ask(
        &self,
        prepared: &Prepared,
        keys: &[Bytes],
        may_be_sent: impl Fn() -> Result<(), DatabaseError>,
    ) -> Result<Found, Asked> {
        let Some((keys, _)) = prepared.keys.bind(keys) else { return Ok(Found::new()) };
        // Connecting and preparing may have taken long.
        may_be_sent().map_err(Asked::TooLate)?;
        let rows = self.client.query(&prepared.statement, &[&*keys]).await.map_err(Asked::Refused)?;
        let mut found = Found::with_capacity(rows.len());
        for row in &rows {
            let column = |at| bytes_of(row, at).map_err(Asked::Refused);
            if let (Some(key), Some(value)) = (column(0)?, column(1)?) {
                // Where several rows answer a key the first counts.
                found.entry(key).or_insert(value);
            }
        }
        Ok(found)
    }

    /// The query as it is sent: its key and value as text, or as they are when they are bytes. What type a key has the
    /// server says, so that its index serves.
    async fn prepare(&self, load: &str, comment: &str) -> Result<Prepared, DatabaseError> {
        let load = respell_keys(load, &["in", "(", KEYS, ")"], "= ANY(:keys)");
        let inner = replace_keys(one_statement(&load), "$1");
        let asked = self.client.prepare(&inner).await.map_err(|error| failed(&error))?;
        let ([keys], [key, value]) = (asked.params(), asked.columns()) else {
            let message = "the query needs two columns, the key and the value, and :keys as its only parameter";
            return Err(DatabaseError::Failed(message.to_owned()));
        };
        let keys = KeyType::of(keys).ok_or_else(|| {
            let message =
                format!("keys of type {keys} are not known here; compare as text: WHERE key::text = ANY(:keys)");
            DatabaseError::Failed(message)
        })?;
        let cast = |of: &Type| if *of == Type::BYTEA { "" } else { "::text" };
        let (key, value) = (cast(key.type_()), cast(value.type_()));
        let sql = format!("SELECT t.k{key}, t.v{value} FROM (\n{inner}\n) AS t(k, v) /* {comment} */");
        let statement = self.client.prepare_typed(&sql, asked.params()).await.map_err(|error| failed(&error))?;
        Ok(Prepared { statement, keys, since: Instant::now() })
    }
}

fn bytes_of(row: &Row, at: usize) -> Result<Option<Bytes>, Error> {
    if row.columns()[at].type_() == &Type::BYTEA {
        return Ok(row.try_get::<_, Option<&[u8]>>(at)?.map(Bytes::copy_from_slice));
    }
    Ok(row.try_get::<_, Option<&str>>(at)?.map(|text| Bytes::copy_from_slice(text.as_bytes())))
}

/// What keys are to the server. A key that no value of this type has as its text has no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyType {
    Int2,
    Int4,
    Int8,
    Text,
    Bytea,
    Uuid,
}

impl KeyType {
    fn of(list: &Type) -> Option<Self> {
        Some(match *list {
            Type::INT2_ARRAY => Self::Int2,
            Type::INT4_ARRAY => Self::Int4,
            Type::INT8_ARRAY => Self::Int8,
            Type::TEXT_ARRAY | Type::VARCHAR_ARRAY | Type::BPCHAR_ARRAY | Type::NAME_ARRAY => Self::Text,
            Type::BYTEA_ARRAY => Self::Bytea,
            Type::UUID_ARRAY => Self::Uuid,
            _ => return None,
        })
    }

    /// Those keys that can have a row, and how many they are; `None`: none of them can.
    fn bind(self, keys: &[Bytes]) -> Option<(Box<dyn ToSql + Sync + Send>, usize)> {
        match self {
            Self::Int2 => list(keys, canonical::<i16>),
            Self::Int4 => list(keys, canonical::<i32>),
            Self::Int8 => list(keys, canonical::<i64>),
            // PostgreSQL has no text with a zero byte.
            Self::Text => list(keys, |key| Some(plain(key)?.to_owned()).filter(|text| !text.contains('\0'))),
            Self::Bytea => list(keys, |key| Some(key.to_vec())),
            Self::Uuid => list(keys, |key| Uuid::parse(plain(key)?)),
        }
    }
}

fn list<T: ToSql + Sync + Send + 'static>(
    keys: &[Bytes],
    one: impl Fn(&Bytes) -> Option<T>,
) -> Option<(Box<dyn ToSql + Sync + Send>, usize)> {
    let values: Vec<T> = keys.iter().filter_map(one).collect();
    let n_fit = values.len();
    if n_fit == 0 { None } else { Some((Box::new(values), n_fit)) }
}

fn plain(key: &Bytes) -> Option<&str> {
    std::str::from_utf8(key).ok()
}

/// A number, if this is how it is written.
fn canonical<T: std::str::FromStr + ToString>(key: &Bytes) -> Option<T> {
    let text = plain(key)?;
    text.parse::<T>().ok().filter(|number| number.to_string() == text)
}

#[derive(Debug, PartialEq, Eq)]
struct Uuid([u8; 16]);

impl Uuid {
    /// As PostgreSQL writes it: 32 small hexadecimal digits, in groups of 8, 4, 4, 4 and 12.
    fn parse(text: &str) -> Option<Self> {
        let groups: Vec<&str> = text.split('-').collect();
        let is_plain = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        if !is_plain || !groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12]) {
            return None;
        }
        u128::from_str_radix(&groups.concat(), 16).ok().map(|number| Self(number.to_be_bytes()))
    }
}

impl ToSql for Uuid {
    fn to_sql(&self, _: &Type, out: &mut BytesMut) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        out.extend_from_slice(&self.0);
        Ok(IsNull::No)
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::UUID
    }

    to_sql_checked!();
}

/// The error with its causes, in one line. The driver's errors name hosts, and no passwords.
fn text(error: &Error) -> String {
    if let Some(error) = error.as_db_error() {
        return format!("{} ({})", error.message(), error.code().code());
    }
    let mut message = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

fn failed(error: &Error) -> DatabaseError {
    let Some(code) = error.code() else { return DatabaseError::Unavailable(text(error)) };
    // Connection exceptions, insufficient resources, operator intervention, a login that is refused, no such database.
    let is_away = ["08", "53", "57P", "28", "3D"].iter().any(|class| code.code().starts_with(class));
    match *code {
        SqlState::QUERY_CANCELED => DatabaseError::TimedOut,
        _ if is_away => DatabaseError::Unavailable(text(error)),
        _ => DatabaseError::Failed(text(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_checked_and_its_password_is_in_no_message() {
        let config = parse_url("postgres://user:geheim@host:1/shop?sslmode=require").expect("a url");
        assert!(!format!("{config:?}").contains("geheim"));
        for url in ["postgres://user:geheim@host:x/shop", "postgres://user:geheim@host/shop?mode=geheim", "postgres:"] {
            let error = parse_url(url).expect_err("refused");
            assert!(error.starts_with("the url is") && !error.contains("geheim"), "{error}");
        }
    }

    #[test]
    fn a_query_without_keys_or_of_two_statements_is_refused() {
        assert_eq!(check("SELECT id, body FROM things WHERE id = ANY(:keys);"), Ok(()));
        assert_eq!(check("SELECT id, body FROM things WHERE id IN (:keys)"), Ok(()));
        for load in ["SELECT id, body FROM things", "SELECT 1, :keys2", "DELETE FROM things; SELECT :keys, 1"] {
            assert!(check(load).is_err(), "{load}");
        }
    }

    #[test]
    fn a_notice_names_a_region_and_a_key() {
        let regions = ["things".to_owned(), "more".to_owned()];
        for (payload, expected) in [
            ("more k 1", Announcement::Key(1, Bytes::from("k 1"))),
            ("things", Announcement::Region(0)),
            ("others k1", Announcement::Other("others".to_owned())),
            ("THINGS", Announcement::Other("THINGS".to_owned())),
            ("", Announcement::All),
        ] {
            assert_eq!(announced(&regions, payload), expected);
        }
    }

    #[test]
    fn only_what_a_value_is_written_like_can_have_a_row() {
        let key = |text: &'static str| Bytes::from(text);
        assert_eq!(canonical::<i32>(&key("42")), Some(42));
        for other in ["042", " 42", "42.0", "+42", "2147483648", "", "x"] {
            assert_eq!(canonical::<i32>(&key(other)), None, "{other:?}");
        }
        let uuid = "0188b7b0-0000-4000-8000-0123456789ab";
        assert_eq!(Uuid::parse(uuid).map(|uuid| uuid.0[0..2].to_vec()), Some(vec![0x01, 0x88]));
        for other in [
            "0188B7B0-0000-4000-8000-0123456789ab",
            "0188b7b0000040008000-0123456789ab",
            "+188b7b0-0000-4000-8000-0123456789ab",
        ] {
            assert_eq!(Uuid::parse(other), None, "{other:?}");
        }
        assert!(KeyType::Int4.bind(&[key("x"), key("y")]).is_none());
        assert!(KeyType::Text.bind(&[key("a\0b"), Bytes::from(&b"\xff"[..])]).is_none());
    }
}
