//! Changes behind the cache's back, announced by the database.

use redis::Commands as _;

use super::*;

/// A change is seen by all within this time, in the median.
const SEEN_MAX: Duration = Duration::from_millis(100);
pub(super) const TRIGGER: &str = "CREATE FUNCTION announce() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
    PERFORM pg_notify('distributed_cache', 'things ' || COALESCE(NEW.id, OLD.id)); RETURN NULL; END $$; \
    CREATE TRIGGER announce AFTER INSERT OR UPDATE OR DELETE ON things FOR EACH ROW EXECUTE FUNCTION announce()";

/// Whoever changes rows without knowing of a cache.
enum Writer {
    Postgres(tokio::runtime::Runtime, tokio_postgres::Client),
    Redis(redis::Connection),
}

impl Writer {
    fn connect(server: &Server) -> Self {
        if server.kind == Kind::Redis {
            return Self::Redis(
                redis::Client::open(server.url()).and_then(|client| client.get_connection()).expect("connects"),
            );
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let client = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.expect("connects");
            tokio::spawn(connection);
            client
        });
        Self::Postgres(runtime, client)
    }

    fn write(&mut self, key: &str, value: &str) {
        match self {
            Self::Postgres(runtime, client) => {
                let sql = "INSERT INTO things VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = $2";
                runtime.block_on(client.execute(sql, &[&key, &value])).expect("written");
            }
            Self::Redis(redis) => redis.set(format!("thing:{key}"), value).expect("written"),
        }
    }

    /// Cuts the connections by which nodes listen.
    fn cut(&mut self) {
        match self {
            Self::Postgres(runtime, client) => {
                let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                           WHERE application_name = 'distributed-cache announcements'";
                runtime.block_on(client.batch_execute(sql)).expect("cut");
            }
            Self::Redis(redis) => {
                let list: String = redis::cmd("CLIENT").arg("LIST").query(redis).expect("a list");
                let is_tracking =
                    |line: &&str| line.split(' ').any(|field| field.starts_with("flags=") && field.contains('t'));
                for line in list.lines().filter(is_tracking) {
                    let id = line.split(' ').find_map(|field| field.strip_prefix("id=")).expect("an id");
                    // It may have ended by itself.
                    let _ = redis::cmd("CLIENT").arg("KILL").arg("ID").arg(id).exec(redis);
                }
            }
        }
    }
}

fn scene(kind: Kind) -> (Scene, Writer) {
    let server = Server::start(kind, 1000);
    if kind == Kind::Postgres {
        server.execute(TRIGGER);
    }
    // Nothing is seen by its age.
    let it = Plan::new(server)
        .database("announce = true\n")
        .region("ttl = \"1h\"\nmax_stale = \"1h\"\nabsent_ttl = \"1h\"\n")
        .start();
    eventually("all listen", || it.sum("cache_node_announcements_heard", &[]) == 3.0);
    let writer = Writer::connect(&it.server);
    (it, writer)
}

/// Until every router gives the new value.
fn time_until_seen(it: &Scene, key: &str, value: &str) -> Duration {
    let began = Instant::now();
    for pod in 0..3 {
        eventually("the new value", || it.get(pod, &format!("/things/{key}")).text().expect("text") == value);
    }
    began.elapsed()
}

fn changes_are_seen(kind: Kind) {
    let (it, mut writer) = scene(kind);
    let mut times = Vec::new();
    for run in 0..100 {
        let key = format!("k{}", run % 10 + 1);
        it.get(run % 3, &format!("/things/{key}"));
        let value = format!("changed {run}");
        writer.write(&key, &value);
        times.push(time_until_seen(&it, &key, &value));
    }
    assert_eq!(it.get(0, "/things/new").status(), 404);
    writer.write("new", "there now");
    time_until_seen(&it, "new", "there now");
    times.sort_unstable();
    let (median, longest) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{kind:?}: a change is seen by all after {median:?} (median), {longest:?} (longest)");
    // Reading three times takes its time too; and a busy machine says nothing.
    assert!(!is_long() || median < SEEN_MAX, "{median:?}");
}

#[test]
fn a_change_in_postgresql_is_seen_by_all_at_once() {
    changes_are_seen(Kind::Postgres);
}

#[test]
fn a_change_in_redis_is_seen_by_all_at_once() {
    changes_are_seen(Kind::Redis);
}

/// Changes go on while the announcing connections are cut again and again: afterwards no value is an old one.
fn cuts(kind: Kind) {
    let (it, mut writer) = scene(kind);
    let n_cuts = if is_long() { 500 } else { 15 };
    let load = Load::start(&it, 3, || fastrand::u64(1..=1000));
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    for cut in 0..n_cuts {
        for change in 0..10 {
            let (key, value) = (format!("k{}", fastrand::u64(1..=1000)), format!("value {cut}.{change}"));
            writer.write(&key, &value);
            newest.insert(key, value);
            if change == 5 {
                writer.cut();
            }
        }
    }
    eventually("all listen again", || it.sum("cache_node_announcements_heard", &[]) == 3.0);
    let told = load.end();
    // A node may have been told of its loss only now.
    let is_new = |key: &String, value: &String| {
        (0..3).all(|pod| it.get(pod, &format!("/things/{key}")).text().expect("text") == *value)
    };
    eventually("every value is the newest", || newest.iter().all(|(key, value)| is_new(key, value)));
    for (key, value) in &newest {
        assert!(is_new(key, value), "{kind:?}: {key} went back");
    }
    println!("{kind:?}: {n_cuts} cuts, {} changed keys, no old value; {:?}", newest.len(), told.statuses);
    assert_eq!(told.statuses.keys().collect::<Vec<_>>(), [&200]);
}

#[test]
fn after_cuts_of_the_announcing_connection_no_value_of_postgresql_is_old() {
    cuts(Kind::Postgres);
}

#[test]
fn after_cuts_of_the_announcing_connection_no_value_of_redis_is_old() {
    cuts(Kind::Redis);
}
