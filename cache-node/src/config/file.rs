//! The configuration file: read as TOML, then checked into [`CacheConfig`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;
use serde::Deserialize;
use sharding::id::{NShards, RegionName};
use toml::Spanned;

use super::{CacheConfig, ConfigError, DatabaseConfig, RegionConfig};
use crate::database::sqlite::Sqlite;
use crate::shard::freshness::Freshness;

const SQLITE_SCHEME: &str = "sqlite:";
const CONTENT_TYPE_BYTES_MAX: usize = 255;

const LOAD_TIMEOUT: Duration = Duration::from_secs(10);
const LOAD_KEYS_MAX: usize = 256;
const LOAD_QUEUE_MAX: usize = 65_536;
const CONTENT_TYPE: &str = "application/octet-stream";
const TTL: Duration = Duration::from_secs(60);
const MAX_STALE: Duration = Duration::from_secs(600);
const ABSENT_TTL: Duration = Duration::from_secs(5);
const MAX_BYTES: u64 = 256 * 1024 * 1024;
/// A bound on all durations, so that no sum of times can overflow.
const DURATION_MAX: Duration = Duration::from_secs(366 * 24 * 3600);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    n_shards: Option<Spanned<u16>>,
    #[serde(default)]
    database: BTreeMap<Spanned<String>, DatabaseTable>,
    #[serde(default)]
    region: BTreeMap<Spanned<String>, RegionTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DatabaseTable {
    url: Spanned<String>,
    load_timeout: Option<Spanned<String>>,
    load_keys_max: Option<Spanned<usize>>,
    load_queue_max: Option<Spanned<usize>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RegionTable {
    database: Spanned<String>,
    load: Spanned<String>,
    content_type: Option<Spanned<String>>,
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
    let file: File = toml::from_str(&text).map_err(|error| source.error(error.span(), error.message()))?;
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
        if file.region.is_empty() {
            return Err(self.error(None, "there is no [region.NAME]; name at least one data set to serve"));
        }
        let mut databases = Vec::new();
        for (name, table) in &file.database {
            databases.push(self.database(name.get_ref(), table)?);
        }
        let mut regions = Vec::new();
        for (name, table) in &file.region {
            regions.push(self.region(name, table, &databases)?);
        }
        Ok(CacheConfig { n_shards, databases, regions })
    }

    fn database(&self, name: &str, table: &DatabaseTable) -> Result<DatabaseConfig, ConfigError> {
        let url = self.url(&table.url)?;
        let Some(path) = url.strip_prefix(SQLITE_SCHEME) else {
            return Err(self.wrong(&table.url, "the url begins with sqlite: and goes on with a file's path"));
        };
        let path = self.beside(path);
        if !path.is_file() {
            return Err(self.wrong(&table.url, &format!("there is no file {}", path.display())));
        }
        Sqlite::open(&path).map_err(|error| self.wrong(&table.url, &error.to_string()))?;
        Ok(DatabaseConfig {
            name: name.to_owned(),
            path,
            load_timeout: self.duration(table.load_timeout.as_ref(), LOAD_TIMEOUT)?,
            load_keys_max: self.count(table.load_keys_max.as_ref(), LOAD_KEYS_MAX)?,
            load_queue_max: self.count(table.load_queue_max.as_ref(), LOAD_QUEUE_MAX)?,
        })
    }

    fn region(
        &self,
        name: &Spanned<String>,
        table: &RegionTable,
        databases: &[DatabaseConfig],
    ) -> Result<RegionConfig, ConfigError> {
        let parsed = RegionName::parse(name.get_ref()).map_err(|error| self.wrong(name, &error.to_string()))?;
        let database = databases.iter().position(|database| database.name == *table.database.get_ref());
        let database = database.ok_or_else(|| {
            let names: Vec<&str> = databases.iter().map(|database| database.name.as_str()).collect();
            let known =
                if names.is_empty() { "none is defined".to_owned() } else { format!("there is {}", names.join(", ")) };
            self.wrong(&table.database, &format!("no [database.{}]; {known}", table.database.get_ref()))
        })?;
        let load = table.load.get_ref();
        let checked = Sqlite::open(&databases[database].path).and_then(|mut sqlite| sqlite.check(load));
        checked.map_err(|error| self.wrong(&table.load, &error.to_string()))?;

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
            load: load.clone(),
            content_type: self.content_type(table.content_type.as_ref())?,
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
        let what =
            "a duration is a number with a unit, as \"500ms\", \"60s\" or \"10m\", longer than 0 and at most a year";
        let duration = humantime::parse_duration(text.get_ref()).map_err(|_| self.wrong(text, what))?;
        if duration.is_zero() || duration > DURATION_MAX {
            return Err(self.wrong(text, what));
        }
        Ok(duration)
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
        if !printable || !value.contains('/') || value.len() > CONTENT_TYPE_BYTES_MAX {
            return Err(self.wrong(text, "content_type is a media type, as \"application/json\""));
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
