//! Database servers that the tests start on free ports, and what they say of what they were asked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cache_node::database::FENCES;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User};
use redis::Commands as _;
use sharding::epoch::{Epoch, Term};
use sharding::fence::Token;
use tempfile::TempDir;

use super::{PATIENCE, eventually};

/// Which database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    Postgres,
    Redis,
}

/// An operation as the database saw it.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    /// Seconds since 1970.
    pub(crate) at: f64,
    /// The keys that it asked for; unknown of SQLite, and none of a script.
    pub(crate) keys: Vec<String>,
}

/// A database with the rows `k1` to `kN`, their values `v1` to `vN`.
pub(crate) struct Server {
    pub(crate) kind: Kind,
    dir: TempDir,
    port: u16,
    tls_port: u16,
    process: Option<Child>,
    /// Further arguments of the process.
    pub(crate) args: Vec<String>,
    noted: Arc<Mutex<Noted>>,
    /// Notes what Redis is asked, while it runs.
    monitor: Option<JoinHandle<()>>,
}

/// What Redis was asked.
#[derive(Debug, Default)]
struct Noted {
    operations: Vec<Operation>,
    /// Questions of [`Server::catch_up`].
    marks: usize,
}

/// A password that may stand in no log and on no page.
pub(crate) const PASSWORD: &str = "geheim-4711";
/// Columns of the table.
const TABLE: &str = "CREATE TABLE things (id text PRIMARY KEY, body text)";

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("an address").port()
}

/// A program of PostgreSQL, wherever this release of it is.
fn postgres_program(name: &str) -> PathBuf {
    let releases = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = releases.map(|release| release.path().join("bin").join(name)).filter(|path| path.exists()).max();
    found.unwrap_or_else(|| panic!("{name} is missing: install postgresql, or run make test"))
}

/// A command as whoever may run a server: PostgreSQL refuses to be root.
fn as_server(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if let Some(user) = server_user() {
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command.stdin(Stdio::null());
    command
}

fn server_user() -> Option<User> {
    Uid::effective().is_root().then(|| User::from_name("postgres").ok().flatten().expect("Debian's user postgres"))
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A certificate for localhost that signs itself, and its key.
fn write_certificate(dir: &Path) {
    let key = rcgen::KeyPair::generate().expect("a key");
    let wish = rcgen::CertificateParams::new(["localhost".to_owned()]).expect("a name");
    std::fs::write(dir.join("server.crt"), wish.self_signed(&key).expect("signed").pem()).expect("a file");
    std::fs::write(dir.join("server.key"), key.serialize_pem()).expect("a file");
    let only_owner = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(dir.join("server.key"), only_owner).expect("permissions");
}

impl Server {
    /// Starts one and fills it.
    pub(crate) fn start(kind: Kind, n_rows: u64) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        write_certificate(dir.path());
        if let Some(user) = server_user().filter(|_| kind == Kind::Postgres) {
            for path in [dir.path().to_owned(), dir.path().join("server.crt"), dir.path().join("server.key")] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may");
            }
        }
        let (port, tls_port) = (free_port(), free_port());
        let mut server =
            Self { kind, dir, port, tls_port, process: None, args: Vec::new(), noted: Arc::default(), monitor: None };
        if kind == Kind::Postgres {
            let mut initdb = as_server(postgres_program("initdb"));
            let pw_file = server.path("password");
            std::fs::write(&pw_file, PASSWORD).expect("a file");
            initdb.args(["--no-sync", "--auth=scram-sha-256", "--username=cache"]).arg("--pwfile").arg(&pw_file);
            run(initdb.arg("--pgdata").arg(server.path("data")).env("LC_ALL", "C"));
        }
        server.start_again();
        server.fill(n_rows);
        server
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts the process, with what it held before; waits until it answers.
    pub(crate) fn start_again(&mut self) {
        let port = self.port.to_string();
        let mut command = match self.kind {
            Kind::Sqlite => return,
            Kind::Postgres => {
                let mut command = as_server(postgres_program("postgres"));
                let dir = self.dir.path().display();
                command.arg("-D").arg(self.path("data")).args(["-p", &port]);
                for setting in [
                    "listen_addresses=127.0.0.1".to_owned(),
                    format!("unix_socket_directories={dir}"),
                    "fsync=off".to_owned(),
                    "log_statement=all".to_owned(),
                    // Seconds since 1970 with their fraction.
                    "log_line_prefix=%n ".to_owned(),
                    "ssl=on".to_owned(),
                    format!("ssl_cert_file={dir}/server.crt"),
                    format!("ssl_key_file={dir}/server.key"),
                ] {
                    command.arg("-c").arg(setting);
                }
                command
            }
            Kind::Redis => {
                let mut command = Command::new("redis-server");
                command.args(["--port", &port, "--tls-port", &self.tls_port.to_string(), "--bind", "127.0.0.1"]);
                command.args(["--requirepass", PASSWORD, "--appendonly", "yes", "--tls-auth-clients", "no"]);
                command.arg("--dir").arg(self.dir.path());
                for (flag, file) in [("--tls-cert-file", "server.crt"), ("--tls-key-file", "server.key")] {
                    command.arg(flag).arg(self.path(file));
                }
                command.arg("--tls-ca-cert-file").arg(self.path("server.crt"));
                command
            }
        };
        command.args(&self.args);
        let log = File::options().append(true).create(true).open(self.path("server.log")).expect("a file");
        command.stdout(log.try_clone().expect("a handle")).stderr(log);
        self.process = Some(command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}; run make test")));
        let deadline = Instant::now() + PATIENCE;
        while !self.answers() {
            let ended = self.process.as_mut().and_then(|process| process.try_wait().expect("a child"));
            let log = || std::fs::read_to_string(self.path("server.log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "{:?} does not start: {}", self.kind, log());
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.kind == Kind::Redis {
            self.monitor = Some(self.watch());
        }
    }

    fn answers(&self) -> bool {
        match self.kind {
            Kind::Sqlite => true,
            Kind::Postgres => self.psql("SELECT 1").output().is_ok_and(|output| output.status.success()),
            Kind::Redis => self.redis().and_then(|mut redis| redis.ping::<String>()).is_ok(),
        }
    }

    /// Ends it at once, or has it stand still and go on.
    pub(crate) fn signal(&mut self, signal: Signal) {
        let process = self.process.as_mut().expect("it runs");
        let pid = process.id();
        // PostgreSQL serves each connection by a process of its own.
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        for pid in std::iter::once(pid.to_string().as_str()).chain(children.split_whitespace()) {
            // A child may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid.parse().expect("a pid")), signal);
        }
        if matches!(signal, Signal::SIGKILL | Signal::SIGTERM | Signal::SIGQUIT) {
            process.wait().expect("a child");
            self.process = None;
            if let Some(monitor) = self.monitor.take() {
                monitor.join().expect("it reads to the end");
            }
        }
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new(postgres_program("psql"));
        command.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", &self.url()]);
        command.args(["-c", sql]).env("LC_ALL", "C").stdin(Stdio::null());
        command
    }

    fn redis(&self) -> redis::RedisResult<redis::Connection> {
        redis::Client::open(self.url())?.get_connection_with_timeout(Duration::from_secs(2))
    }

    /// Runs SQL, as somebody who does not know of the cache.
    pub(crate) fn execute(&self, sql: &str) {
        match self.kind {
            Kind::Sqlite => {
                let database = rusqlite::Connection::open(self.path("test.db")).expect("opens");
                database.execute_batch(sql).expect("sound SQL");
            }
            Kind::Postgres => run(&mut self.psql(sql)),
            Kind::Redis => unreachable!("Redis knows no SQL"),
        }
    }

    fn fill(&self, n_rows: u64) {
        match self.kind {
            Kind::Sqlite => self.execute(&format!(
                "{TABLE}; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {n_rows}) \
                 INSERT INTO things SELECT 'k' || i, 'v' || i FROM n"
            )),
            Kind::Postgres => self.execute(&format!(
                "{TABLE}; INSERT INTO things SELECT 'k' || i, 'v' || i FROM generate_series(1, {n_rows}) i; ANALYZE"
            )),
            Kind::Redis => {
                let mut redis = self.redis().expect("connects");
                for first in (1..=n_rows).step_by(1000) {
                    let rows = (first..=n_rows.min(first + 999)).map(|i| (format!("thing:k{i}"), format!("v{i}")));
                    redis.mset::<_, _, ()>(&rows.collect::<Vec<_>>()).expect("stored");
                }
            }
        }
    }

    pub(crate) fn url(&self) -> String {
        match self.kind {
            Kind::Sqlite => format!("sqlite:{}", self.path("test.db").display()),
            Kind::Postgres => {
                format!("postgres://cache:{PASSWORD}@127.0.0.1:{}/postgres?sslmode=disable", self.port)
            }
            Kind::Redis => format!("redis://:{PASSWORD}@127.0.0.1:{}/", self.port),
        }
    }

    /// The same server by TLS.
    pub(crate) fn tls_url(&self) -> String {
        match self.kind {
            Kind::Sqlite => unreachable!("a file has no TLS"),
            Kind::Postgres => format!("postgres://cache:{PASSWORD}@localhost:{}/postgres?sslmode=require", self.port),
            Kind::Redis => format!("rediss://:{PASSWORD}@localhost:{}/", self.tls_port),
        }
    }

    /// What a region says to read its values.
    pub(crate) fn query(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite | Kind::Postgres => "load = \"SELECT id, body FROM things WHERE id IN (:keys)\"\n",
            Kind::Redis => "key = \"thing:{key}\"\n",
        }
    }

    /// What a region says to be written to.
    pub(crate) fn statements(&self) -> &'static str {
        match self.kind {
            Kind::Sqlite | Kind::Postgres => {
                "writes = true\nstore = \"INSERT INTO things VALUES (:key, :value) ON CONFLICT (id) DO UPDATE SET body = \
                 excluded.body\"\nremove = \"DELETE FROM things WHERE id = :key\"\n"
            }
            Kind::Redis => "writes = true\n",
        }
    }

    /// The value of a key as the database has it.
    pub(crate) fn value(&self, key: &str) -> Option<String> {
        match self.kind {
            Kind::Sqlite => {
                let database = rusqlite::Connection::open(self.path("test.db")).expect("opens");
                let sql = "SELECT body FROM things WHERE id = ?1";
                match database.query_row(sql, [key], |row| row.get(0)) {
                    Ok(value) => Some(value),
                    Err(rusqlite::Error::QueryReturnedNoRows) => None,
                    Err(error) => panic!("{error}"),
                }
            }
            Kind::Postgres => {
                let mut psql = self.psql(&format!("SELECT 'found ' || body FROM things WHERE id = '{key}'"));
                let output = psql.arg("-t").arg("-A").output().expect("psql");
                let text = String::from_utf8(output.stdout).expect("text");
                text.trim_end().strip_prefix("found ").map(str::to_owned)
            }
            Kind::Redis => self.redis().and_then(|mut redis| redis.get(format!("thing:{key}"))).expect("answered"),
        }
    }

    /// Changes a value behind the cache's back.
    pub(crate) fn set(&self, key: &str, value: &str) {
        match self.kind {
            Kind::Sqlite | Kind::Postgres => {
                self.execute(&format!("UPDATE things SET body = '{value}' WHERE id = '{key}'"));
            }
            Kind::Redis => self.redis().and_then(|mut redis| redis.set(format!("thing:{key}"), value)).expect("stored"),
        }
    }

    /// Raises every fence above all that a cluster has seen, as an owner of a later term would.
    pub(crate) fn raise_all_fences(&self) {
        let millis = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_millis();
        // As a coordinator's terms are counted.
        let counter = u64::try_from(millis + 60_000).expect("small") << 12;
        let since = Epoch { term: Term { counter, seed: 9 }, seq: 1 };
        let token = Token { since, n: 1 };
        match self.kind {
            Kind::Sqlite | Kind::Postgres => self.execute(&format!("UPDATE {FENCES} SET token = '{token}'")),
            Kind::Redis => {
                let mut redis = self.redis().expect("connects");
                let name = format!("{FENCES}:default");
                for shard in 0..1024 {
                    redis.hset::<_, _, _, ()>(&name, shard, token.to_string()).expect("stored");
                }
            }
        }
    }

    /// Notes what a Redis server is asked from now on.
    fn watch(&self) -> JoinHandle<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("connects");
        write!(stream, "AUTH {PASSWORD}\r\nMONITOR\r\n").expect("sent");
        let mut lines = BufReader::new(stream).lines();
        for _ in 0..2 {
            assert_eq!(lines.next().expect("an answer").expect("text"), "+OK");
        }
        let noted = Arc::clone(&self.noted);
        std::thread::spawn(move || {
            // +1700000000.123456 [0 127.0.0.1:1] "MGET" "thing:k1" …
            for line in lines.map_while(Result::ok) {
                let mut words = line.split('"').step_by(2).zip(line.split('"').skip(1).step_by(2));
                let Some((head, command)) = words.next() else { continue };
                let Some(at) = head.strip_prefix('+').and_then(|head| head.split(' ').next()?.parse().ok()) else {
                    continue;
                };
                let mut noted = noted.lock().expect("no panic under it");
                match command.to_ascii_uppercase().as_str() {
                    "EVAL" | "EVALSHA" => noted.operations.push(Operation { at, keys: Vec::new() }),
                    "MGET" => {
                        let keys = words.map(|(_, word)| word.trim_start_matches("thing:").to_owned()).collect();
                        noted.operations.push(Operation { at, keys });
                    }
                    "ECHO" => noted.marks += 1,
                    _ => {}
                }
            }
        })
    }

    /// Waits until all that Redis has been asked before is noted: it tells in the order in which it was asked.
    fn catch_up(&self) {
        let marks = || self.noted.lock().expect("no panic under it").marks;
        let before = marks();
        let mut redis = self.redis().expect("connects");
        redis.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        redis::cmd("ECHO").arg("caught up").exec(&mut redis).expect("answered");
        eventually("what Redis was asked is noted", || marks() > before);
    }

    /// Everything that the cache has asked of it, in order. `logs`: those of the nodes, by which SQLite tells.
    pub(crate) fn operations(&self, logs: &[PathBuf]) -> Vec<Operation> {
        let mut operations = match self.kind {
            Kind::Sqlite => logs.iter().flat_map(|log| traced(log)).collect(),
            Kind::Postgres => logged(&self.path("server.log")),
            Kind::Redis => {
                // Of one that has ended nothing more comes.
                if self.process.is_some() {
                    self.catch_up();
                }
                self.noted.lock().expect("no panic under it").operations.clone()
            }
        };
        operations.sort_by(|a: &Operation, b| a.at.total_cmp(&b.at));
        operations
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // A server that stands still ends all the same.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Statements of PostgreSQL's own log: a line with the statement, then one with its parameters.
fn logged(log: &Path) -> Vec<Operation> {
    let text = std::fs::read_to_string(log).expect("a log");
    let mut operations: Vec<Operation> = Vec::new();
    for line in text.lines() {
        if line.contains("reason=") && !line.contains("LOG:") {
            // The statement stands in several lines; what came before is its first.
            continue;
        }
        let Some((at, rest)) = line.split_once(' ') else { continue };
        let Ok(at) = at.parse::<f64>() else { continue };
        if rest.contains("LOG:  execute ") && rest.contains("SELECT t.k") {
            operations.push(Operation { at, keys: Vec::new() });
        } else if let (Some((_, list)), Some(last)) = (rest.split_once("parameters: $1 = '{"), operations.last_mut())
            && rest.contains("DETAIL:")
        {
            last.keys =
                list.trim_end_matches(['\'', '}']).split(',').map(|key| key.trim_matches('"').to_owned()).collect();
        }
    }
    operations
}

/// Statements of SQLite's own trace, in the log of a node.
fn traced(log: &Path) -> Vec<Operation> {
    let text = std::fs::read_to_string(log).expect("a log");
    let is_read = |line: &&str| line.contains("sqlite_trace") && line.contains("reason=");
    text.lines().filter(is_read).map(|line| Operation { at: seconds(line), keys: Vec::new() }).collect()
}

/// The time of a log line, `[2026-11-24T15:20:04.123Z …`, within its day.
fn seconds(line: &str) -> f64 {
    let clock = line.split_once('T').and_then(|(_, rest)| rest.split_once('Z')).map(|(clock, _)| clock);
    let parts = clock.into_iter().flat_map(|clock| clock.split(':')).map(|part| part.parse::<f64>().expect("a time"));
    parts.fold(0.0, |all, part| all * 60.0 + part)
}

/// The most operations in any second.
pub(crate) fn most_in_a_second(operations: &[Operation]) -> usize {
    let in_second = |(place, first): (usize, &Operation)| {
        operations[place..].iter().take_while(|operation| operation.at < first.at + 1.0).count()
    };
    operations.iter().enumerate().map(in_second).max().unwrap_or(0)
}

/// How often each key was asked for.
pub(crate) fn asked(operations: &[Operation]) -> BTreeMap<&str, usize> {
    let mut asked = BTreeMap::new();
    for key in operations.iter().flat_map(|operation| &operation.keys) {
        *asked.entry(key.as_str()).or_default() += 1;
    }
    asked
}
