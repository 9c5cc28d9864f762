//! The set-ups that are compared: our cluster and its peers, each a front that chooses one of the stores behind it.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::http::{self, Client};
use super::keys::{self, Values};
use super::process::{Server, command};
use super::{BenchError, REGION, cpu};
use crate::cluster::ports::Ports;
use crate::cluster::{Cluster, Options, Role, Signal};

/// Stores of every set-up.
const N_STORES: usize = 3;
/// Stores of the large cluster.
const N_NODES_LARGE: usize = 12;
/// Longest time from the start of a set-up until it serves.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// Pause between two looks whether it does.
const READY_PAUSE: Duration = Duration::from_millis(20);
/// Keys that are looked at before anything is measured.
const N_VERIFIED: u32 = 50;
/// A longer value does not fit into nginx' configuration and is served from a file.
const RETURN_BYTES_MAX: usize = 3072;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Setup {
    /// This cache: a router and three nodes.
    Ours,
    /// nginx with a consistent hash before three nginx that return one value from memory: what all are compared with.
    NginxNginx,
    /// nginx with a consistent hash before three memcached.
    NginxMemcached,
    /// haproxy with a consistent hash before three nginx.
    HaproxyNginx,
    /// A thin front of actix-web and redis-rs before three Redis.
    ActixRedis,
    /// This cache with twelve nodes.
    #[value(skip)]
    #[serde(rename = "ours-12-nodes")]
    OursTwelve,
}

impl Setup {
    /// Those that are compared with each other.
    pub(super) const ALL: [Self; 5] =
        [Self::Ours, Self::NginxNginx, Self::NginxMemcached, Self::HaproxyNginx, Self::ActixRedis];

    /// Programs of others that it consists of.
    pub(super) const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Ours | Self::OursTwelve => &[],
            Self::NginxNginx => &["nginx"],
            Self::NginxMemcached => &["nginx", "memcached"],
            Self::HaproxyNginx => &["haproxy", "nginx"],
            Self::ActixRedis => &["redis-server"],
        }
    }

    /// As on the command line and in the rows.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::NginxNginx => "nginx-nginx",
            Self::NginxMemcached => "nginx-memcached",
            Self::HaproxyNginx => "haproxy-nginx",
            Self::ActixRedis => "actix-redis",
            Self::OursTwelve => "ours-12-nodes",
        }
    }
}

/// What all set-ups that run at the same time have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Scene {
    /// Bytes of a value.
    pub(super) size: usize,
    /// Threads or processes of a front.
    pub(super) workers: usize,
    /// Rows of our database beyond the keys that are in every store.
    pub(super) fresh: u32,
}

/// A set-up that runs. Dropped, it ends.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) setup: Setup,
    /// Where it is asked.
    pub(super) address: SocketAddr,
    servers: Vec<Server>,
    cluster: Option<Cluster>,
    /// The front with its children, and all processes with the front.
    pub(super) front: Vec<i32>,
    pub(super) all: Vec<i32>,
}

/// Starts set-ups in a directory.
pub(super) struct Starter<'a> {
    pub(super) dir: &'a Path,
    pub(super) scene: Scene,
    pub(super) ports: Ports,
}

impl Starter<'_> {
    /// Starts it, fills its stores, and looks whether it answers as it has to.
    pub(super) fn start(&mut self, setup: Setup) -> Result<Running, BenchError> {
        let dir = self.dir.join(setup.name());
        std::fs::create_dir_all(&dir).map_err(BenchError::io(&dir))?;
        let mut running = match setup {
            Setup::Ours => self.ours(&dir, N_STORES)?,
            Setup::OursTwelve => self.ours(&dir, N_NODES_LARGE)?,
            Setup::NginxNginx => {
                let backends = self.nginx_backends(&dir)?;
                let pool = pool("hash $uri consistent;", &addresses(&backends));
                let pass = "proxy_pass http://stores; proxy_http_version 1.1; proxy_set_header Connection \"\";\n\
                            proxy_buffers 24 4k; proxy_busy_buffers_size 64k; proxy_max_temp_file_size 0;";
                self.nginx_front(setup, &dir, &pool, pass, backends)?
            }
            Setup::NginxMemcached => {
                let stores = self.stores(&dir, "memcached", memcached)?;
                for (address, _) in &stores {
                    self.fill_memcached(*address)?;
                }
                let pool = pool("hash $memcached_key consistent;", &addresses(&stores));
                let buffer = self.scene.size + 8192;
                let pass = format!("set $memcached_key $uri; memcached_pass stores; memcached_buffer_size {buffer};");
                self.nginx_front(setup, &dir, &pool, &pass, stores)?
            }
            Setup::HaproxyNginx => self.haproxy(&dir)?,
            Setup::ActixRedis => {
                let stores = self.stores(&dir, "redis", |address| redis(address, &dir))?;
                for (address, _) in &stores {
                    self.fill_redis(*address)?;
                }
                self.actix_front(&dir, stores)?
            }
        };
        running.verify(self.scene.size)?;
        running.find_children();
        Ok(running)
    }

    fn free(&mut self) -> Result<SocketAddr, BenchError> {
        self.ports.free().map_err(|error| BenchError::Failed(error.to_string()))
    }

    fn ours(&mut self, dir: &Path, n_nodes: usize) -> Result<Running, BenchError> {
        let n_keys = keys::n_keys(self.scene.size);
        let config = database(self.dir, self.scene.size, n_keys + self.scene.fresh)?;
        let options = Options {
            pods: n_nodes,
            node_args: ["--lanes", "1"].map(str::to_owned).to_vec(),
            router_args: vec!["--threads".to_owned(), self.scene.workers.to_string()],
            ..Options::new(config, dir)
        };
        let cluster = Cluster::start_ready(&options, READY_TIMEOUT)?;
        // Only the first router is asked; the others would only heat the CPU.
        for pod in 1..n_nodes {
            cluster.signal(Role::Router, pod, Signal::SIGTERM);
        }
        for pod in 1..n_nodes {
            if cluster.wait_ended(Role::Router, pod, READY_TIMEOUT).is_none() {
                return Err(BenchError::Failed(format!("the router of pod-{pod} does not come to its end")));
            }
        }
        let setup = if n_nodes == N_STORES { Setup::Ours } else { Setup::OursTwelve };
        let address = cluster.http_address(0);
        let mut client = Client::connect(address).map_err(BenchError::at(setup.name()))?;
        for number in 1..=n_keys {
            let answer = client.ask(&http::get(&keys::path(number))).map_err(BenchError::at(setup.name()))?;
            if answer.status != 200 {
                return Err(BenchError::Failed(format!("{}: {} for a key", setup.name(), answer.head.trim())));
            }
        }
        let front: Vec<i32> = cluster.pid(Role::Router, 0).into_iter().collect();
        let nodes = (0..n_nodes).filter_map(|pod| cluster.pid(Role::Node, pod));
        let all = front.iter().copied().chain(nodes).collect();
        Ok(Running { setup, address, servers: Vec::new(), cluster: Some(cluster), front, all })
    }

    /// Starts three stores of one kind.
    fn stores(
        &mut self,
        dir: &Path,
        kind: &str,
        command: impl Fn(SocketAddr) -> Result<std::process::Command, BenchError>,
    ) -> Result<Stores, BenchError> {
        let mut stores = Vec::new();
        for number in 0..N_STORES {
            let (address, name) = (self.free()?, format!("{kind}-{number}"));
            let mut server = Server::start(&mut command(address)?, &name, &dir.join(format!("{name}.log")))?;
            wait_listening(&mut server, &name, address)?;
            stores.push((address, server));
        }
        Ok(stores)
    }

    fn nginx_backends(&mut self, dir: &Path) -> Result<Stores, BenchError> {
        let size = self.scene.size;
        let value = Values::new(size).of(0).to_owned();
        let mut stores = Vec::new();
        for number in 0..N_STORES {
            let home = dir.join(format!("store-{number}"));
            std::fs::create_dir_all(&home).map_err(BenchError::io(&home))?;
            let location = if size <= RETURN_BYTES_MAX {
                format!("default_type text/plain; return 200 \"{value}\";")
            } else {
                let file = home.join("value.txt");
                std::fs::write(&file, &value).map_err(BenchError::io(&file))?;
                "try_files /value.txt =404; open_file_cache max=10 inactive=1h; open_file_cache_valid 1h; sendfile on;"
                    .to_owned()
            };
            let address = self.free()?;
            let server =
                nginx(&home, 1, "", &format!("listen {address};\nroot {home:?};\nlocation / {{ {location} }}"))?;
            stores.push((address, server));
        }
        stores.iter_mut().try_for_each(|(address, server)| wait_listening(server, "nginx", *address))?;
        Ok(stores)
    }

    fn nginx_front(
        &mut self,
        setup: Setup,
        dir: &Path,
        pool: &str,
        pass: &str,
        stores: Stores,
    ) -> Result<Running, BenchError> {
        let address = self.free()?;
        let home = dir.join("front");
        std::fs::create_dir_all(&home).map_err(BenchError::io(&home))?;
        let server = format!("listen {address};\nlocation / {{ {pass} }}");
        Running::of(setup, address, nginx(&home, self.scene.workers, pool, &server)?, stores)
    }

    fn haproxy(&mut self, dir: &Path) -> Result<Running, BenchError> {
        let stores = self.nginx_backends(dir)?;
        let address = self.free()?;
        let mut text = format!(
            "global\n  nbthread {}\n  maxconn 4096\n\
             defaults\n  mode http\n  timeout connect 5s\n  timeout client 600s\n  timeout server 600s\n  \
             http-reuse always\n\
             frontend front\n  bind {address}\n  default_backend stores\n\
             backend stores\n  balance uri\n  hash-type consistent\n",
            self.scene.workers
        );
        for (number, (store, _)) in stores.iter().enumerate() {
            text += &format!("  server store{number} {store}\n");
        }
        let config = dir.join("haproxy.cfg");
        std::fs::write(&config, text).map_err(BenchError::io(&config))?;
        let mut command = command("haproxy")?;
        let front = Server::start(command.arg("-db").arg("-f").arg(&config), "haproxy", &dir.join("haproxy.log"))?;
        Running::of(Setup::HaproxyNginx, address, front, stores)
    }

    fn actix_front(&mut self, dir: &Path, stores: Stores) -> Result<Running, BenchError> {
        let address = self.free()?;
        let own = std::env::current_exe().map_err(BenchError::at("this program"))?;
        let mut command = std::process::Command::new(own);
        command.arg("actix-redis-front").args(["--listen", &address.to_string()]);
        command.args(["--workers", &self.scene.workers.to_string()]);
        command.args(stores.iter().flat_map(|(store, _)| ["--redis".to_owned(), store.to_string()]));
        let front = Server::start(&mut command, "actix-redis-front", &dir.join("front.log"))?;
        Running::of(Setup::ActixRedis, address, front, stores)
    }

    /// Puts every key into every store: the front decides which of them it asks.
    fn fill_memcached(&self, address: SocketAddr) -> Result<(), BenchError> {
        let values = Values::new(self.scene.size);
        let entries = (1..=keys::n_keys(self.scene.size)).map(|number| (keys::path(number), values.of(number)));
        set_memcached(address, entries, 0)
    }

    fn fill_redis(&self, address: SocketAddr) -> Result<(), BenchError> {
        let values = Values::new(self.scene.size);
        let entries = (1..=keys::n_keys(self.scene.size)).map(|number| (keys::key(number), values.of(number)));
        set_redis(address, entries, None)
    }
}

/// Stores, and where they listen.
type Stores = Vec<(SocketAddr, Server)>;

fn addresses(stores: &Stores) -> Vec<SocketAddr> {
    stores.iter().map(|(address, _)| *address).collect()
}

impl Running {
    fn of(setup: Setup, address: SocketAddr, mut front: Server, stores: Stores) -> Result<Self, BenchError> {
        wait_listening(&mut front, setup.name(), address)?;
        let servers = std::iter::once(front).chain(stores.into_iter().map(|(_, server)| server)).collect();
        Ok(Self { setup, address, servers, cluster: None, front: Vec::new(), all: Vec::new() })
    }

    /// Finds the processes that do the work, now that all of them have worked.
    fn find_children(&mut self) {
        if let Some((front, stores)) = self.servers.split_first() {
            let stores: Vec<i32> = stores.iter().map(Server::pid).collect();
            self.front = cpu::with_descendants(&[front.pid()]);
            self.all = self.front.iter().copied().chain(cpu::with_descendants(&stores)).collect();
        }
    }

    /// Asks for some keys: each is there, and as long as it has to be.
    fn verify(&self, size: usize) -> Result<(), BenchError> {
        let name = self.setup.name();
        let mut client = Client::connect(self.address).map_err(BenchError::at(name))?;
        let n_keys = keys::n_keys(size);
        for number in (1..=n_keys).step_by((n_keys / N_VERIFIED).max(1) as usize) {
            let answer = client.ask(&http::get(&keys::path(number))).map_err(BenchError::at(name))?;
            let is_hit = self.cluster.is_none() || answer.head.contains("hit");
            if answer.status != 200 || answer.body.len() != size || !is_hit {
                let head = answer.head.lines().next().unwrap_or_default();
                return Err(BenchError::Failed(format!(
                    "{name}: {} is answered by {head:?} and {} bytes, not by a hit of {size} bytes",
                    keys::key(number),
                    answer.body.len(),
                )));
            }
        }
        Ok(())
    }

    /// Whether all of it still runs.
    pub(super) fn is_whole(&mut self) -> bool {
        self.servers.iter_mut().all(|server| matches!(server.ended(), Ok(None)))
            && self.all.iter().all(|pid| Path::new(&format!("/proc/{pid}")).exists())
    }
}

/// A database with the values of the keys 1 to `n_rows`, made once, and the configuration that serves it.
pub(super) fn database(dir: &Path, size: usize, n_rows: u32) -> Result<PathBuf, BenchError> {
    let config = dir.join("cache.toml");
    let file = dir.join("bench.db");
    if !file.exists() {
        make_database(&file, size, n_rows).map_err(|error| BenchError::Failed(format!("the database: {error}")))?;
    }
    let text = format!(
        "[database.main]\nurl = \"sqlite:bench.db\"\n[region.{REGION}]\ndatabase = \"main\"\n\
         load = \"SELECT key, body FROM entries WHERE key IN (:keys)\"\n\
         ttl = \"12h\"\nmax_stale = \"24h\"\nmax_bytes = \"8GiB\"\n"
    );
    std::fs::write(&config, text).map_err(BenchError::io(&config))?;
    Ok(config)
}

fn make_database(file: &Path, size: usize, n_rows: u32) -> rusqlite::Result<()> {
    let values = Values::new(size);
    let mut connection = rusqlite::Connection::open(file)?;
    connection.execute_batch(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
         CREATE TABLE entries (key TEXT PRIMARY KEY, body TEXT NOT NULL) WITHOUT ROWID",
    )?;
    let transaction = connection.transaction()?;
    {
        let mut insert = transaction.prepare("INSERT INTO entries VALUES (?1, ?2)")?;
        for number in 1..=n_rows {
            insert.execute((keys::key(number), values.of(number)))?;
        }
    }
    transaction.commit()
}

pub(super) fn memcached(address: SocketAddr) -> Result<std::process::Command, BenchError> {
    let mut command = command("memcached")?;
    command.args(["-t", "1", "-m", "4096", "-U", "0", "-l", &address.ip().to_string()]);
    command.args(["-p", &address.port().to_string()]);
    if nix::unistd::geteuid().is_root() {
        command.args(["-u", "root"]);
    }
    Ok(command)
}

pub(super) fn redis(address: SocketAddr, dir: &Path) -> Result<std::process::Command, BenchError> {
    let mut command = command("redis-server")?;
    command.args(["--bind", &address.ip().to_string(), "--port", &address.port().to_string()]);
    command.args(["--save", "", "--appendonly", "no", "--daemonize", "no"]).arg("--dir").arg(dir);
    Ok(command)
}

/// Sets entries of a memcached, and waits until it has them. `ttl`: seconds, 0 without an end.
pub(super) fn set_memcached<'a>(
    address: SocketAddr,
    entries: impl Iterator<Item = (String, &'a str)>,
    ttl: u32,
) -> Result<(), BenchError> {
    let fill = || -> std::io::Result<()> {
        let stream = TcpStream::connect_timeout(&address, READY_TIMEOUT)?;
        stream.set_read_timeout(Some(READY_TIMEOUT))?;
        let mut writer = std::io::BufWriter::new(&stream);
        for (key, value) in entries {
            write!(writer, "set {key} 0 {ttl} {} noreply\r\n{value}\r\n", value.len())?;
        }
        writer.write_all(b"version\r\n")?;
        writer.flush()?;
        let mut answer = [0; 7];
        (&stream).read_exact(&mut answer)?;
        if &answer == b"VERSION" { Ok(()) } else { Err(std::io::Error::other("it refuses an entry")) }
    };
    fill().map_err(BenchError::at("memcached"))
}

/// Sets entries of a Redis. `ttl`: seconds.
pub(super) fn set_redis<'a>(
    address: SocketAddr,
    entries: impl Iterator<Item = (String, &'a str)>,
    ttl: Option<u64>,
) -> Result<(), BenchError> {
    let mut entries = entries.peekable();
    let mut fill = || -> redis::RedisResult<()> {
        let client = redis::Client::open(format!("redis://{address}"))?;
        let mut connection = client.get_connection_with_timeout(READY_TIMEOUT)?;
        connection.set_read_timeout(Some(READY_TIMEOUT))?;
        while entries.peek().is_some() {
            let mut pipe = redis::pipe();
            for (key, value) in entries.by_ref().take(1000) {
                let set = pipe.cmd("SET").arg(key).arg(value);
                if let Some(ttl) = ttl {
                    set.arg("EX").arg(ttl);
                }
                pipe.ignore();
            }
            pipe.query::<()>(&mut connection)?;
        }
        Ok(())
    };
    fill().map_err(|error| BenchError::Failed(format!("redis-server: {error}")))
}

/// An nginx of its own below `home`, with one server.
fn nginx(home: &Path, workers: usize, pool: &str, server: &str) -> Result<Server, BenchError> {
    let user = if nix::unistd::geteuid().is_root() { "user root;\n" } else { "" };
    let mut text = format!(
        "{user}daemon off;\nworker_processes {workers};\npid {:?};\nerror_log stderr crit;\n\
         events {{ worker_connections 4096; }}\nhttp {{\naccess_log off;\ntcp_nodelay on;\n\
         keepalive_timeout 1h;\nkeepalive_requests 1000000000;\n",
        home.join("nginx.pid")
    );
    for kind in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        writeln!(text, "{kind}_temp_path {:?};", home.join(kind)).expect("a string takes all");
    }
    write!(text, "{pool}\nserver {{\n{server}\n}}\n}}\n").expect("a string takes all");
    let config = home.join("nginx.conf");
    std::fs::write(&config, text).map_err(BenchError::io(&config))?;
    let mut command = command("nginx")?;
    command.arg("-p").arg(home).arg("-c").arg(&config).args(["-e", "stderr"]);
    Server::start(&mut command, "nginx", &home.join("nginx.log"))
}

/// Servers behind an nginx, to which it keeps connections.
fn pool(choice: &str, stores: &[SocketAddr]) -> String {
    let servers: String = stores.iter().map(|store| format!("server {store};\n")).collect();
    format!("upstream stores {{\n{choice}\n{servers}keepalive 128;\nkeepalive_requests 1000000000;\n}}")
}

/// Waits until a program takes connections.
pub(super) fn wait_listening(server: &mut Server, name: &str, address: SocketAddr) -> Result<(), BenchError> {
    let deadline = Instant::now() + READY_TIMEOUT;
    while TcpStream::connect_timeout(&address, READY_TIMEOUT).is_err() {
        if let Some(status) = server.ended().map_err(BenchError::at(name))? {
            return Err(BenchError::Failed(format!("{name} ended with {status} before it was ready")));
        }
        if Instant::now() > deadline {
            return Err(BenchError::Failed(format!("{name} was not ready within {READY_TIMEOUT:?}")));
        }
        std::thread::sleep(READY_PAUSE);
    }
    Ok(())
}
