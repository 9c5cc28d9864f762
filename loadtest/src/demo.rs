//! The demo: a database of products that anybody can make again, and the configuration that serves it.

use std::fmt::Write as _;
use std::io;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use indicatif::{ProgressBar, ProgressStyle};

/// Rows of the demo database: the products 1 to 100,000.
pub const N_PRODUCTS: u64 = 100_000;
/// The demo's region, and its first path segment.
pub const REGION: &str = "cache-data";
/// Rows of one progress step.
const STEP: u64 = 1000;
/// About so long is a product.
const PRODUCT_BYTES: usize = 1024;

const WORDS: [&str; 32] = [
    "amber", "birch", "cedar", "copper", "coral", "delta", "ember", "fjord", "flint", "garnet", "harbor", "hazel",
    "indigo", "ivory", "juniper", "kelp", "lagoon", "linen", "maple", "marble", "nickel", "oak", "ochre", "opal",
    "pine", "quartz", "raven", "slate", "teal", "umber", "willow", "zinc",
];

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The disk's refusal.
    #[error("{path}: {error}")]
    Io {
        /// Where.
        path: PathBuf,
        /// What the machine says.
        error: io::Error,
    },
    /// SQLite's refusal.
    #[error("{path}: {error}")]
    Sqlite {
        /// Where.
        path: PathBuf,
        /// What SQLite says.
        error: rusqlite::Error,
    },
}

/// The product of this id as JSON, about 1 KiB: always the same, on every machine.
pub fn product(id: u64) -> String {
    let mut chance = fastrand::Rng::with_seed(id);
    let mut word = || WORDS[chance.usize(..WORDS.len())];
    let mut text = String::with_capacity(PRODUCT_BYTES + 64);
    let (first, second) = (word(), word());
    let write = write!(
        text,
        r#"{{"id":{id},"name":"{first} {second} {id}","price_cents":{},"stock":{},"description":""#,
        99 + id * 7919 % 100_000,
        id * 31 % 500,
    );
    write.expect("a string takes all");
    while text.len() < PRODUCT_BYTES {
        text.push_str(word());
        text.push(' ');
    }
    text.pop();
    text.push_str("\"}");
    text
}

/// Makes what is missing of the demo in `dir`: `demo.db`, which shows its progress, and `demo.toml`. Gives the path of
/// the latter.
///
/// # Errors
/// When the disk or SQLite refuses.
pub fn prepare(dir: &Path) -> Result<PathBuf, DemoError> {
    std::fs::create_dir_all(dir).map_err(|error| DemoError::Io { path: dir.to_owned(), error })?;
    let database = dir.join("demo.db");
    if !database.exists() {
        make_database(&database, N_PRODUCTS)?;
    }
    let config = dir.join("demo.toml");
    std::fs::write(&config, CONFIG).map_err(|error| DemoError::Io { path: config.clone(), error })?;
    Ok(config)
}

/// The demo's configuration with a budget for its database, beside the other one. Gives its path.
///
/// # Errors
/// When the disk refuses.
pub fn with_budget(config: &Path, budget: NonZeroU32) -> Result<PathBuf, DemoError> {
    let path = config.with_file_name("demo-budget.toml");
    let text = CONFIG.replace("[region.", &format!("budget = \"{budget}/s\"\n[region."));
    std::fs::write(&path, text).map_err(|error| DemoError::Io { path: path.clone(), error })?;
    Ok(path)
}

const CONFIG: &str = r#"# Written anew by local-cluster. Copy it to serve your own data, then: local-cluster --config YOUR.toml
[database.main]
url = "sqlite:demo.db"                 # relative to this file

[region.cache-data]                    # GET /cache-data/{key}
database = "main"
load = "SELECT id, body FROM products WHERE id IN (:keys)"   # first column the key, second the value
content_type = "application/json"
ttl = "60s"                            # older: stale, served and refreshed
max_stale = "10m"                      # older: gone
absent_ttl = "5s"                      # how long "there is no such row" is remembered
max_bytes = "256MiB"                   # per node
"#;

/// Makes a database of `n_products` beside `path` and puts it in place when it is whole.
///
/// # Errors
/// When the disk or SQLite refuses.
pub fn make_database(path: &Path, n_products: u64) -> Result<(), DemoError> {
    let unfinished = path.with_extension("db.unfinished");
    let io_error = |error| DemoError::Io { path: unfinished.clone(), error };
    match std::fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        _ => {}
    }
    fill(&unfinished, n_products).map_err(|error| DemoError::Sqlite { path: unfinished.clone(), error })?;
    std::fs::rename(&unfinished, path).map_err(io_error)
}

fn fill(path: &Path, n_products: u64) -> rusqlite::Result<()> {
    let style = ProgressStyle::with_template("making {msg} {bar:40} {human_pos}/{human_len} rows, {eta} to go")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    let progress = ProgressBar::new(n_products).with_style(style).with_message("the demo database");
    let mut connection = rusqlite::Connection::open(path)?;
    connection.execute_batch("CREATE TABLE products (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")?;
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO products (id, body) VALUES (?1, ?2)")?;
        for id in 1..=n_products {
            insert.execute((id.cast_signed(), product(id)))?;
            if id % STEP == 0 {
                progress.set_position(id);
            }
        }
    }
    transaction.commit()?;
    progress.finish_and_clear();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_always_the_same_json_of_about_a_kibibyte() {
        let text = product(42);
        assert_eq!(text, product(42));
        assert_ne!(text, product(43));
        assert!((1000..1100).contains(&text.len()), "{}", text.len());
        let json: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(json["id"], 42);
        assert!(text.starts_with(r#"{"id":42,"name":"#), "{text}");
    }

    #[test]
    fn the_demo_is_made_once_and_its_configuration_is_sound() {
        let dir = tempfile::tempdir().expect("a directory");
        make_database(&dir.path().join("demo.db"), 10).expect("made");
        let config = prepare(dir.path()).expect("prepared");
        cache_node::config::CacheConfig::load(&config).expect("sound");
        let connection = rusqlite::Connection::open(dir.path().join("demo.db")).expect("opens");
        let count: i64 = connection.query_row("SELECT count(*) FROM products", [], |row| row.get(0)).expect("counts");
        assert_eq!(count, 10, "what is there is not made again");
        let body: String =
            connection.query_row("SELECT body FROM products WHERE id = 7", [], |row| row.get(0)).expect("a row");
        assert_eq!(body, product(7));
    }
}
