//! The program as its user meets it: every mistake is one line that names its place, exit code 64, and nothing starts.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const DATABASE: &str = "[database.main]\nurl = \"sqlite:test.db\"\n";
const LOAD: &str = "load = \"SELECT id, body FROM things WHERE id IN (:keys)\"\n";
const REMOVE: &str = "remove = \"DELETE FROM things WHERE id = :key\"\n";
const SEEDS: &str = "a=127.0.0.1:1";

/// Longest time to refuse a mistake; whoever starts to serve instead is ended.
const PATIENCE: Duration = Duration::from_secs(20);

fn run(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cache-node"));
    command
        .env_clear()
        .env("DATABASE_URL", "mysql://secret")
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("starts");
    let deadline = Instant::now() + PATIENCE;
    while child.try_wait().expect("a child").is_none() {
        if Instant::now() > deadline {
            child.kill().expect("a child");
            panic!("{arguments:?} was taken for sound");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().expect("its output")
}

fn assert_refused(output: &Output, expected: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(64), "{told}");
    assert!(told.contains(expected), "{expected:?} is not in {told}");
}

fn write(dir: &Path, text: &str) -> String {
    let database = rusqlite::Connection::open(dir.join("test.db")).expect("a database");
    database.execute_batch("CREATE TABLE IF NOT EXISTS things (id INTEGER PRIMARY KEY, body TEXT)").expect("a table");
    let path = dir.join("cache.toml");
    std::fs::write(&path, text).expect("a file");
    path.display().to_string()
}

#[test]
fn a_mistake_in_the_file_is_named_with_its_line_and_column() {
    let dir = tempfile::tempdir().expect("a directory");
    let region = |lines: &str| format!("{DATABASE}[region.things]\ndatabase = \"main\"\n{LOAD}{lines}");
    for (text, place, what) in [
        (region("tll = \"60s\"\n"), ":6:1", "unknown field `tll`"),
        (region("ttl = \"60\"\n"), ":6:7", "a duration is a number with a unit"),
        (region("ttl = 60\n"), ":6:7", "expected a string; write it in quotes, with its unit"),
        (region("max_bytes = \"256 apples\"\n"), ":6:13", "a size is a number with a unit"),
        (region("max_bytes = \"0MiB\"\n"), ":6:13", "more than 0"),
        (region("content_type = \"json\"\n"), ":6:16", "a media type"),
        (region("cache_control = \"a\\nb\"\n"), ":6:17", "a Cache-Control"),
        (region("ttl = \"60s\"\nmax_stale = \"1s\"\n"), ":7:13", "max_stale is shorter than ttl"),
        (region("ttl = \"60s\nmax_stale\n"), ":7:10", "expected `=`"),
        (region("").replace("SELECT id", "SELEC id"), ":5:8", "syntax error"),
        (region("").replace("things WHERE", "nothings WHERE"), ":5:8", "no such table"),
        (region("").replace("(:keys)", "(1)"), ":5:8", "needs :keys"),
        (region("").replace("test.db", "absent.db"), ":2:7", "there is no file"),
        (region("").replace("test.db", "cache.toml"), ":2:7", "cache.toml: file is not a database"),
        (region("").replace("sqlite:", "sqlite://"), ":2:7", "write sqlite:test.db"),
        (region("").replace("body FROM", "body, 1 FROM"), ":5:8", "needs two columns"),
        (region("").replace("sqlite:", "mysql:"), ":2:7", "sqlite:"),
        (region("").replace("sqlite:test.db", "$NOWHERE"), ":2:7", "there is no environment variable NOWHERE"),
        (region("").replace("sqlite:test.db", "$DATABASE_URL"), ":2:7", "sqlite:"),
        (region("").replace("database = \"main\"", "database = \"mein\""), ":4:12", "there is main"),
        (region("").replace("region.things", "region.Things"), ":3:9", ""),
        (format!("n_shards = 0\n{}", region("")), ":1:12", "n_shards is 1 to 65535"),
        (format!("cluster = \"a b\"\n{}", region("")), ":1:11", "a cluster name is made of"),
        (region("writes = true\n"), ":3:9", "has store and remove"),
        (region("store = \"INSERT INTO things VALUES (:key, :value)\"\n"), ":6:9", "say writes = true"),
        (
            region(&format!("writes = true\n{REMOVE}store = \"INSERT INTO things VALUES (:key, 1)\"\n")),
            ":8:9",
            "store needs",
        ),
        (
            region(&format!("writes = true\n{REMOVE}store = \"INSRT INTO things VALUES (:key, :value)\"\n")),
            ":8:9",
            "syntax error",
        ),
        (
            region(&format!("writes = true\n{REMOVE}store = \"INSERT INTO things VALUES (:key, :value)\"\n")),
            ":8:9",
            "make the table that `cache-node fence-table` prints",
        ),
        (DATABASE.to_owned(), ": there", "no [region.NAME]"),
    ] {
        let path = write(dir.path(), &text);
        let output = run(&["--name", "a", "--seeds", SEEDS, "--config", &path]);
        assert_refused(&output, &format!("cache-node: {path}{place}"));
        assert_refused(&output, what);
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(!told.contains("secret"), "{told}");
    }
}

#[test]
fn the_table_of_fences_is_printed_as_a_database_takes_it() {
    let output = run(&["fence-table"]);
    assert!(output.status.success());
    let dir = tempfile::tempdir().expect("a directory");
    let database = rusqlite::Connection::open(dir.path().join("test.db")).expect("a database");
    database.execute_batch(&String::from_utf8(output.stdout).expect("text")).expect("sound SQL");
    let schema = "CREATE TABLE things (id INTEGER PRIMARY KEY, body TEXT)";
    database.execute_batch(schema).expect("a table");
    let store = "store = \"INSERT INTO things VALUES (:key, :value)\"\n";
    let text = format!(
        "{DATABASE}write_timeout = \"900ms\"\n[region.things]\ndatabase = \"main\"\n{LOAD}writes = true\n{store}{REMOVE}"
    );
    std::fs::write(dir.path().join("cache.toml"), text).expect("a file");
    let path = dir.path().join("cache.toml").display().to_string();
    let output = run(&["--name", "a", "--seeds", SEEDS, "--config", &path]);
    assert_refused(&output, "write_timeout of database main is 900ms; it must be below 826ms");
}

#[test]
fn a_mistake_in_a_flag_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = write(dir.path(), &format!("{DATABASE}[region.things]\ndatabase = \"main\"\n{LOAD}"));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    for (flags, expected) in [
        (vec!["--name", "b", "--seeds", SEEDS, "--config", &config, "--data-bind", "0.0.0.0:0"], "--advertise"),
        (vec!["--name", "a", "--seeds", SEEDS, "--config", &config, "--advertise", "nowhere"], "--advertise"),
        (vec!["--name", "a", "--seeds", SEEDS, "--config", &config, "--pod-ip", "nowhere"], "--pod-ip"),
        (
            vec!["--name", "a", "--seeds", SEEDS, "--config", &config, "--lease", "700ms"],
            "the ownership lease is 700ms",
        ),
        (vec!["--name", "a", "--seeds", "a=h:1,b=h:2", "--config", &config], "name 1, 3 or 5"),
        (vec!["--name", "a", "--seeds", "a=nowhere", "--config", &config], "--seeds"),
        (vec!["--name", "a", "--seeds", "a=h:1,a=h:2", "--config", &config], "a"),
        (vec!["--name", "a", "--seeds", "127.0.0.1:2551", "--config", &config], "say a=127.0.0.1:2551 among the seeds"),
        (vec!["--seeds", SEEDS], "--name"),
        (vec!["--name", "a", "--seeds", SEEDS, "--drain-timeout", "soon"], "--drain-timeout"),
        (vec!["--name", "a", "--seeds", SEEDS, "--lanes", "0"], "--lanes"),
        (vec!["--name", "a", "--seeds", SEEDS, "--config", "nowhere.toml"], "nowhere.toml: cannot be read"),
        (vec!["--name", "a", "--seeds", SEEDS, "--config", &config, "--data-bind", &address], "--data-bind"),
        (
            vec![
                "--name",
                "a",
                "--seeds",
                SEEDS,
                "--config",
                &config,
                "--data-bind",
                "127.0.0.1:0",
                "--control-bind",
                &address,
            ],
            "--control-bind",
        ),
    ] {
        assert_refused(&run(&flags), expected);
    }
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8_lossy(&help.stdout).contains("CACHE_NODE_LANES"));
}
