//! The configuration file: read as TOML, then checked into [`CacheConfig`].

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use sharding::budget::Budget;
use sharding::id::{ClusterName, DatabaseName, NShards, RegionName};
use toml::Spanned;
use transport::flags::period;

use super::{CacheConfig, ConfigError, DatabaseConfig, RegionConfig, Server};
use crate::database::sqlite::Sqlite;
use crate::database::{Query, Statements, check_statements, postgres, redis};
use crate::shard::freshness::Freshness;

const SQLITE_SCHEME: &str = "sqlite:";
const HEADER_BYTES_MAX: usize = 255;

/// Where a key stands in the name of a key in Redis.
const REDIS_KEY: &str = "{key}";

const IN_FLIGHT_MAX: usize = 4;
const OPERATION_TIMEOUT: Duration = Duration::from_secs(1);
const LOAD_TIMEOUT: Duration = Duration::from_secs(10);
const LOAD_KEYS_MAX: usize = 256;
const BUDGET_MAX: u32 = 1_000_000;
const LOAD_QUEUE_MAX: usize = 65_536;
const WRITE_TIMEOUT: Duration = Duration::from_millis(400);
const CLUSTER: &str = "default";
const CONTENT_TYPE: &str = "application/octet-stream";
/// A client may keep a value but asks each time whether it still holds: only this cache knows.
const CACHE_CONTROL: &str = "no-cache";
const TTL: Duration = Duration::from_secs(60);
const MAX_STALE: Duration = Duration::from_secs(600);
const ABSENT_TTL: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 256 * 1024 * 1024;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    n_shards: Option<Spanned<u16>>,
    cluster: Option<Spanned<String>>,
    #[serde(default)]
    database: BTreeMap<Spanned<String>, DatabaseTable>,
    #[serde(default)]
    region: BTreeMap<Spanned<String>, RegionTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabaseTable {
    url: Option<Spanned<String>>,
    url_file: Option<Spanned<String>>,
    ca_file: Option<Spanned<String>>,
    announce: Option<Spanned<bool>>,
    budget: Option<Spanned<String>>,
    max_in_flight: Option<Spanned<usize>>,
    operation_timeout: Option<Spanned<String>>,
    load_timeout: Option<Spanned<String>>,
    load_keys_max: Option<Spanned<usize>>,
    load_queue_max: Option<Spanned<usize>>,
    write_timeout: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionTable {
    database: Spanned<String>,
    load: Option<Spanned<String>>,
    key: Option<Spanned<String>>,
    field: Option<Spanned<String>>,
    writes: Option<Spanned<bool>>,
    store: Option<Spanned<String>>,
    remove: Option<Spanned<String>>,
    content_type: Option<Spanned<String>>,
    cache_control: Option<Spanned<String>>,
    ttl: Option<Spanned<String>>,
    max_stale: Option<Spanned<String>>,
    absent_ttl: Option<Spanned<String>>,
    max_bytes: Option<Spanned<String>>,
}

pub(super) fn load(path: &Path) -> Result<CacheConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|error| ConfigError {
        place: path.display().to_string(),
        message: format!("cannot be read: {error}; name the file with --config"),
    })?;
    let source = Source { path, text: &text };
    let file: File = toml::from_str(&text).map_err(|error| {
        let message = error.message();
        let is_number = message.starts_with("invalid type: integer") || message.starts_with("invalid type: float");
        let remedy = "; write it in quotes, with its unit if it has one";
        let remedy = if is_number && message.ends_with("a string") { remedy } else { "" };
        source.error(error.span(), &format!("{message}{remedy}"))
    })?;
    source.check(file)
}

/// The text being checked, to say where a mistake is.
struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn check(&self, file: File) -> Result<CacheConfig, ConfigError> {
        let n_shards = match &file.n_shards {
            None => NShards::DEFAULT,
            Some(n) => NShards::new(*n.get_ref()).ok_or_else(|| self.wrong(n, "n_shards is 1 to 65535"))?,
        };
        let cluster = match &file.cluster {
            None => ClusterName::parse(CLUSTER).expect("a plain name"),
            Some(name) => ClusterName::parse(name.get_ref()).map_err(|error| self.wrong(name, &error.to_string()))?,
        };
        if file.region.is_empty() {
            return Err(self.error(None, "there is no [region.NAME]; name at least one data set to serve"));
        }
        let mut databases = Vec::new();
        for (name, table) in &file.database {
            databases.push(self.database(name, table)?);
        }
        let mut regions = Vec::new();
        for (name, table) in &file.region {
            regions.push(self.region(name, table, &databases)?);
        }
        Ok(CacheConfig { n_shards, cluster, databases, regions })
    }

    fn database(&self, name: &Spanned<String>, table: &DatabaseTable) -> Result<DatabaseConfig, ConfigError> {
        let parsed = DatabaseName::parse(name.get_ref()).map_err(|error| self.wrong(name, &error.to_string()))?;
        let load_timeout = self.duration(table.load_timeout.as_ref(), LOAD_TIMEOUT)?;
        let ca_file = table.ca_file.as_ref().map(|path| self.file(path)).transpose()?;
        let server = self.server(name, table)?;
        if let (Some(announce), Server::Sqlite(_)) = (&table.announce, &server)
            && *announce.get_ref()
        {
            return Err(self.wrong(announce, "a SQLite file says nothing of changes; PostgreSQL and Redis do"));
        }
        Ok(DatabaseConfig {
            name: parsed,
            server,
            ca_file,
            announce: table.announce.as_ref().is_some_and(|announce| *announce.get_ref()),
            budget: table.budget.as_ref().map(|budget| self.budget(budget)).transpose()?,
            in_flight_max: self.count(table.max_in_flight.as_ref(), IN_FLIGHT_MAX)?,
            operation_timeout: self.operation_timeout(table, load_timeout)?,
            load_timeout,
            load_keys_max: self.count(table.load_keys_max.as_ref(), LOAD_KEYS_MAX)?,
            load_queue_max: self.count(table.load_queue_max.as_ref(), LOAD_QUEUE_MAX)?,
            write_timeout: self.duration(table.write_timeout.as_ref(), WRITE_TIMEOUT)?,
        })
    }

    fn operation_timeout(&self, table: &DatabaseTable, load_timeout: Duration) -> Result<Duration, ConfigError> {
        let Some(text) = &table.operation_timeout else { return Ok(OPERATION_TIMEOUT.min(load_timeout)) };
        let timeout = self.duration(Some(text), OPERATION_TIMEOUT)?;
        if timeout > load_timeout {
            return Err(
                self.wrong(text, "operation_timeout is longer than load_timeout, which is all the time of a load")
            );
        }
        Ok(timeout)
    }

    fn server(&self, name: &Spanned<String>, table: &DatabaseTable) -> Result<Server, ConfigError> {
        let (place, url) = match (&table.url, &table.url_file) {
            (Some(url), None) => (url, self.url(url)?),
            (None, Some(path)) => {
                let file = self.file(path)?;
                let text = std::fs::read_to_string(&file).map_err(|error| self.wrong(path, &error.to_string()))?;
                (path, text.trim().to_owned())
            }
            _ => return Err(self.wrong(name, "a database has a url or a url_file, and not both")),
        };
        // A url may hold a password: it is in no message.
        let wrong = |message: String| self.wrong(place, &message);
        match url.split(':').next() {
            Some("sqlite") => self.sqlite(place, url.strip_prefix(SQLITE_SCHEME).unwrap_or_default()),
            Some("postgres" | "postgresql") => {
                Ok(Server::Postgres(Box::new(postgres::parse_url(&url).map_err(wrong)?)))
            }
            Some("redis" | "rediss") => Ok(Server::Redis(Box::new(redis::parse_url(&url).map_err(wrong)?))),
            _ => Err(wrong("the url begins with sqlite:, postgres:, redis: or rediss:".to_owned())),
        }
    }

    fn sqlite(&self, place: &Spanned<String>, path: &str) -> Result<Server, ConfigError> {
        let meant = path.strip_prefix("//").filter(|path| !path.starts_with('/'));
        let remedy = meant.map_or_else(String::new, |path| format!("; write sqlite:{path}"));
        let path = self.beside(path);
        if !path.is_file() {
            return Err(self.wrong(place, &format!("there is no file {}{remedy}", path.display())));
        }
        Sqlite::open(&path).map_err(|error| self.wrong(place, &format!("{}: {error}", path.display())))?;
        Ok(Server::Sqlite(path))
    }

    /// `N/s`.
    fn budget(&self, text: &Spanned<String>) -> Result<Budget, ConfigError> {
        let number = text.get_ref().strip_suffix("/s").and_then(|number| number.trim().parse::<NonZeroU32>().ok());
        let budget = number.filter(|number| number.get() <= BUDGET_MAX).map(Budget);
        budget.ok_or_else(|| {
            self.wrong(text, "a budget is operations a second, as \"50/s\", at least 1 and at most 1000000")
        })
    }

    /// A file that is there.
    fn file(&self, path: &Spanned<String>) -> Result<PathBuf, ConfigError> {
        let file = self.beside(path.get_ref());
        if file.is_file() { Ok(file) } else { Err(self.wrong(path, &format!("there is no file {}", file.display()))) }
    }

    /// How a region's values are read from its database.
    fn query(&self, name: &Spanned<String>, table: &RegionTable, server: &Server) -> Result<Query, ConfigError> {
        let sql = || match (&table.load, &table.key, &table.field) {
            (Some(load), None, None) => Ok(load),
            _ => Err(self.wrong(name, "a region of an SQL database has load, and neither key nor field")),
        };
        match server {
            Server::Sqlite(path) => {
                let load = sql()?;
                let checked = Sqlite::open(path).and_then(|mut sqlite| sqlite.check(load.get_ref()));
                checked.map_err(|error| self.wrong(load, &error.to_string()))?;
                Ok(Query::Sql(load.get_ref().clone()))
            }
            Server::Postgres(_) => {
                let load = sql()?;
                postgres::check(load.get_ref()).map_err(|error| self.wrong(load, &error))?;
                Ok(Query::Sql(load.get_ref().clone()))
            }
            Server::Redis(_) => {
                let (Some(key), None) = (&table.key, &table.load) else {
                    return Err(
                        self.wrong(name, "a region of a Redis database has key, as \"product:{key}\", and no load")
                    );
                };
                let parts = key.get_ref().split_once(REDIS_KEY).filter(|(_, after)| !after.contains(REDIS_KEY));
                let (before, after) = parts.ok_or_else(|| self.wrong(key, "key has {key} in it, once"))?;
                let field = table.field.as_ref().map(|field| field.get_ref().clone());
                Ok(Query::Redis { key: (before.to_owned(), after.to_owned()), field })
            }
        }
    }

    /// How a region's values are written, if they may be.
    fn statements(
        &self,
        name: &Spanned<String>,
        table: &RegionTable,
        server: &Server,
    ) -> Result<Option<Statements>, ConfigError> {
        let is_written = table.writes.as_ref().is_some_and(|writes| *writes.get_ref());
        match (is_written, &table.store, &table.remove) {
            (false, None, None) => Ok(None),
            (false, Some(statement), _) | (false, _, Some(statement)) => {
                Err(self.wrong(statement, "the region is not written to; say writes = true as well"))
            }
            (true, None, None) if matches!(server, Server::Redis(_)) => Ok(Some(Statements::Redis)),
            (true, Some(statement), _) | (true, _, Some(statement)) if matches!(server, Server::Redis(_)) => {
                Err(self.wrong(statement, "a region of a Redis database is written by its key; it has no statements"))
            }
            (true, Some(store), Some(remove)) => {
                check_statements(store.get_ref(), remove.get_ref()).map_err(|error| self.wrong(store, &error))?;
                if let Server::Sqlite(path) = server {
                    let checked = Sqlite::open_to_write(path)
                        .and_then(|mut sqlite| sqlite.check_writes(store.get_ref(), remove.get_ref()));
                    checked.map_err(|error| self.wrong(store, &error.to_string()))?;
                }
                let (store, remove) = (store.get_ref().clone(), remove.get_ref().clone());
                Ok(Some(Statements::Sql { store, remove }))
            }
            (true, ..) => Err(self.wrong(
                name,
                "a region of an SQL database that is written to has store and remove, as \
                 \"INSERT INTO things VALUES (:key, :value) ON CONFLICT (id) DO UPDATE SET body = excluded.body\" and \
                 \"DELETE FROM things WHERE id = :key\"",
            )),
        }
    }

    fn region(
        &self,
        name: &Spanned<String>,
        table: &RegionTable,
        databases: &[DatabaseConfig],
    ) -> Result<RegionConfig, ConfigError> {
        let parsed = RegionName::parse(name.get_ref()).map_err(|error| self.wrong(name, &error.to_string()))?;
        let database = databases.iter().position(|database| database.name.as_str() == table.database.get_ref());
        let database = database.ok_or_else(|| {
            let names: Vec<&str> = databases.iter().map(|database| database.name.as_str()).collect();
            let known =
                if names.is_empty() { "none is defined".to_owned() } else { format!("there is {}", names.join(", ")) };
            self.wrong(&table.database, &format!("no [database.{}]; {known}", table.database.get_ref()))
        })?;
        let query = Arc::new(self.query(name, table, &databases[database].server)?);
        let statements = self.statements(name, table, &databases[database].server)?.map(Arc::new);
        let freshness = Freshness {
            ttl: self.duration(table.ttl.as_ref(), TTL)?,
            max_stale: self.duration(table.max_stale.as_ref(), MAX_STALE)?,
            absent_ttl: self.duration(table.absent_ttl.as_ref(), ABSENT_TTL)?,
        };
        if freshness.max_stale < freshness.ttl {
            let place = table.max_stale.as_ref().or(table.ttl.as_ref()).map(Spanned::span);
            return Err(self.error(place, "max_stale is shorter than ttl; it counts from the load, as ttl does"));
        }
        Ok(RegionConfig {
            name: parsed,
            database,
            query,
            statements,
            content_type: self.content_type(table.content_type.as_ref())?,
            cache_control: self.cache_control(table.cache_control.as_ref())?,
            freshness,
            max_bytes: self.bytes(table.max_bytes.as_ref(), MAX_BYTES)?,
        })
    }

    /// A URL may hold a password: `$NAME` is the environment variable of that name.
    fn url(&self, url: &Spanned<String>) -> Result<String, ConfigError> {
        let Some(name) = url.get_ref().strip_prefix('$') else { return Ok(url.get_ref().clone()) };
        std::env::var(name).map_err(|_| self.wrong(url, &format!("there is no environment variable {name}; set it")))
    }

    /// Paths in the file are relative to the file.
    fn beside(&self, path: &str) -> PathBuf {
        self.path.parent().unwrap_or(Path::new("")).join(path)
    }

    fn duration(&self, text: Option<&Spanned<String>>, default: Duration) -> Result<Duration, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let what = "a duration is a number with a unit, as \"500ms\", \"60s\" or \"10m\", from 1ms to a year";
        period(text.get_ref()).map_err(|_| self.wrong(text, what))
    }

    fn bytes(&self, text: Option<&Spanned<String>>, default: u64) -> Result<u64, ConfigError> {
        let Some(text) = text else { return Ok(default) };
        let what = "a size is a number with a unit, as \"256MiB\" or \"2GB\", more than 0";
        match text.get_ref().parse::<ByteSize>() {
            Ok(ByteSize(bytes)) if bytes > 0 => Ok(bytes),
            _ => Err(self.wrong(text, what)),
        }
    }

    fn count(&self, number: Option<&Spanned<usize>>, default: usize) -> Result<usize, ConfigError> {
        match number {
            None => Ok(default),
            Some(number) if (1..=1_000_000).contains(number.get_ref()) => Ok(*number.get_ref()),
            Some(number) => Err(self.wrong(number, "the number is 1 to 1000000")),
        }
    }

    fn content_type(&self, text: Option<&Spanned<String>>) -> Result<String, ConfigError> {
        let Some(text) = text else { return Ok(CONTENT_TYPE.to_owned()) };
        let value = text.get_ref();
        let printable = value.bytes().all(|b| (0x20..0x7f).contains(&b));
        if !printable || !value.contains('/') || value.len() > HEADER_BYTES_MAX {
            return Err(self.wrong(text, "content_type is a media type, as \"application/json\""));
        }
        Ok(value.clone())
    }

    fn cache_control(&self, text: Option<&Spanned<String>>) -> Result<String, ConfigError> {
        let Some(text) = text else { return Ok(CACHE_CONTROL.to_owned()) };
        let value = text.get_ref();
        let printable = value.bytes().all(|b| (0x20..0x7f).contains(&b));
        if value.trim().is_empty() || !printable || value.len() > HEADER_BYTES_MAX {
            return Err(self.wrong(text, "cache_control is a Cache-Control, as \"no-store\" or \"public, max-age=5\""));
        }
        Ok(value.clone())
    }

    fn wrong<T>(&self, at: &Spanned<T>, message: &str) -> ConfigError {
        self.error(Some(at.span()), message)
    }

    fn error(&self, span: Option<std::ops::Range<usize>>, message: &str) -> ConfigError {
        let place = match span {
            None => self.path.display().to_string(),
            Some(span) => {
                let before = &self.text[..self.text.floor_char_boundary(span.start)];
                let line = before.matches('\n').count() + 1;
                let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
                format!("{}:{line}:{column}", self.path.display())
            }
        };
        ConfigError { place, message: message.split_whitespace().collect::<Vec<_>>().join(" ") }
    }
}
