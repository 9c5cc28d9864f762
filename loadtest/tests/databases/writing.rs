//! Writes through the cache, on every database: what is read afterwards, what is refused, and what a fence costs.

use reqwest::blocking::Response;
use reqwest::header::{ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};

use super::*;

const KINDS: [Kind; 3] = [Kind::Sqlite, Kind::Postgres, Kind::Redis];

/// A cluster that may write, with `n_rows` rows there.
pub(super) fn plan(kind: Kind, n_rows: u64) -> Plan {
    let server = Server::start(kind, n_rows);
    if kind != Kind::Redis {
        server.execute(cache_node::database::FENCE_TABLE);
    }
    let writes = server.statements();
    Plan::new(server).region(writes)
}

impl Scene {
    pub(super) fn put(&self, pod: usize, key: &str, value: &str, demands: &[(HeaderName, &str)]) -> Response {
        let request = self.client.put(format!("{}/things/{key}", self.cluster.url(pod))).body(value.to_owned());
        let demand =
            |request: reqwest::blocking::RequestBuilder, (name, tag): &(HeaderName, &str)| request.header(name, *tag);
        demands.iter().fold(request, demand).send().expect("an answer")
    }

    fn delete(&self, pod: usize, key: &str) -> Response {
        self.client.delete(format!("{}/things/{key}", self.cluster.url(pod))).send().expect("an answer")
    }

    /// What every router gives.
    fn values(&self, key: &str) -> Vec<(u16, String)> {
        let one = |pod| {
            let answer = self.get(pod, &format!("/things/{key}"));
            let status = answer.status().as_u16();
            (status, if status == 200 { answer.text().expect("text") } else { String::new() })
        };
        (0..self.cluster.n_pods()).map(one).collect()
    }

    fn operations_of(&self, reason: &str) -> f64 {
        self.sum("cache_node_database_operations_total", &[&format!("reason=\"{reason}\"")])
    }
}

fn tag(answer: &Response) -> String {
    answer.headers().get(ETAG).map_or_else(String::new, |tag| tag.to_str().expect("text").to_owned())
}

fn problem(answer: Response) -> String {
    let page: serde_json::Value = answer.json().expect("JSON");
    page["type"].as_str().expect("a kind").trim_start_matches("urn:distributed-cache:problem:").to_owned()
}

#[test]
fn what_is_written_is_read_by_all_out_of_memory_and_stands_in_the_database() {
    for kind in KINDS {
        let it = plan(kind, 10).start();
        assert_eq!(it.values("k1"), vec![(200, "v1".to_owned()); 3], "{kind:?}");
        for (run, key) in ["k1", "new"].into_iter().enumerate() {
            let value = format!("written {run}");
            let answer = it.put(run, key, &value, &[]);
            let etag = tag(&answer);
            assert_eq!(answer.status(), 204, "{kind:?}: {:?}", answer.text());
            let loads = it.sum("cache_node_database_keys_total", &["reason=\"cold\""]);
            assert_eq!(it.values(key), vec![(200, value.clone()); 3], "{kind:?}");
            assert_eq!(tag(&it.get(0, &format!("/things/{key}"))), etag, "{kind:?}");
            assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"cold\""]), loads, "{kind:?}: no load");
            assert_eq!(it.server.value(key), Some(value), "{kind:?}");
        }
        for _ in 0..2 {
            let answer = it.delete(2, "k1");
            assert_eq!(answer.status(), 204, "{kind:?}: {:?}", answer.text());
            assert_eq!(it.values("k1"), vec![(404, String::new()); 3], "{kind:?}");
            assert_eq!(it.server.value("k1"), None, "{kind:?}");
        }
        assert_eq!(it.operations_of("write"), 4.0, "{kind:?}");
        assert_eq!(it.operations_of("fence"), 3.0, "{kind:?}: one for the shards of each node");
        assert_eq!(it.sum("cache_node_writes_total", &["result=\"done\""]), 4.0, "{kind:?}");
    }
}

#[test]
fn a_write_demands_what_it_says_of_the_value_that_the_database_has() {
    for kind in KINDS {
        let it = plan(kind, 10).start();
        let first = tag(&it.get(0, "/things/k1"));
        let refused = |answer: Response| {
            assert_eq!(answer.status(), 412, "{kind:?}");
            assert_eq!(problem(answer), "precondition-failed", "{kind:?}");
        };
        refused(it.put(0, "new", "v", &[(IF_MATCH, "*")]));
        refused(it.put(0, "k1", "v", &[(IF_NONE_MATCH, "*")]));
        refused(it.put(0, "k1", "v", &[(IF_MATCH, "\"0123456789abcdef0123456789abcdef\"")]));
        assert_eq!(it.put(0, "new", "v", &[(IF_NONE_MATCH, "*")]).status(), 201, "{kind:?}");
        let answer = it.put(1, "k1", "second", &[(IF_MATCH, &first)]);
        assert_eq!(answer.status(), 204, "{kind:?}");
        refused(it.put(1, "k1", "third", &[(IF_MATCH, &first)]));
        assert_eq!(it.values("k1"), vec![(200, "second".to_owned()); 3], "{kind:?}");

        // Changed behind the cache's back: the entry is old, the database is not.
        it.server.set("k1", "changed");
        refused(it.put(2, "k1", "third", &[(IF_MATCH, &tag(&answer))]));
        assert_eq!(it.values("k1"), vec![(200, "changed".to_owned()); 3], "{kind:?}: whoever is refused sees why");
        let third = it.put(2, "k1", "third", &[(IF_MATCH, &tag(&it.get(0, "/things/k1")))]);
        assert_eq!(third.status(), 204, "{kind:?}");
        let wrong = it.put(2, "k1", "x", &[(IF_MATCH, "no tag")]);
        assert_eq!((wrong.status().as_u16(), problem(wrong).as_str()), (400, "bad-precondition"), "{kind:?}");
    }
}

#[test]
fn two_who_write_at_once_on_one_condition_do_not_both_succeed() {
    for kind in KINDS {
        let it = plan(kind, 10).start();
        for round in 0..10 {
            let etag = tag(&it.get(0, "/things/k1"));
            let statuses: Vec<u16> = std::thread::scope(|scope| {
                let put = |pod: usize| {
                    let (it, etag) = (&it, &etag);
                    scope.spawn(move || {
                        it.put(pod, "k1", &format!("{round} of {pod}"), &[(IF_MATCH, etag)]).status().as_u16()
                    })
                };
                let writers: Vec<_> = (0..3).map(put).collect();
                writers.into_iter().map(|writer| writer.join().expect("a writer")).collect()
            });
            let count = |status| statuses.iter().filter(|found| **found == status).count();
            assert_eq!((count(204), count(412)), (1, 2), "{kind:?}: {statuses:?}");
        }
    }
}

#[test]
fn what_the_database_does_not_take_is_refused_and_nothing_is_lost() {
    let mut plan = plan(Kind::Postgres, 10);
    plan.server.execute("ALTER TABLE things ADD CHECK (body <> 'bad')");
    let numbers =
        "CREATE TABLE numbers (id integer PRIMARY KEY, body jsonb); INSERT INTO numbers VALUES (7, '{\"a\":1}')";
    plan.server.execute(numbers);
    plan.server.execute("CREATE TABLE fixed (id text PRIMARY KEY, body text); INSERT INTO fixed VALUES ('k1', 'v1')");
    plan = plan.region(
        "[region.numbers]\ndatabase = \"main\"\nload = \"SELECT id, body FROM numbers WHERE id IN (:keys)\"\n\
         writes = true\nstore = \"INSERT INTO numbers VALUES (:key, :value) ON CONFLICT (id) DO UPDATE SET body = \
         excluded.body\"\nremove = \"DELETE FROM numbers WHERE id = :key\"\n\
         [region.fixed]\ndatabase = \"main\"\nload = \"SELECT id, body FROM fixed WHERE id IN (:keys)\"\n",
    );
    let it = plan.start();
    let answer = it.put(0, "k1", "bad", &[]);
    assert_eq!((answer.status().as_u16(), problem(answer).as_str()), (422, "refused"));
    assert_eq!(it.values("k1"), vec![(200, "v1".to_owned()); 3]);

    let numbers = |pod: usize, key: &str, value: &str| {
        let url = format!("{}/numbers/{key}", it.cluster.url(pod));
        it.client.put(url).body(value.to_owned()).send().expect("an answer")
    };
    let spaced = numbers(0, "7", "{ \"a\":   2 }");
    assert_eq!((spaced.status().as_u16(), tag(&spaced).as_str()), (204, ""), "it is kept in another form");
    assert_eq!(it.get(1, "/numbers/7").text().expect("text"), "{\"a\": 2}");
    for (key, value) in [("7", "no JSON"), ("007", "{}"), ("x", "{}")] {
        let answer = numbers(1, key, value);
        assert_eq!((answer.status().as_u16(), problem(answer).as_str()), (422, "refused"), "{key} {value}");
    }
    assert_eq!(it.get(2, "/numbers/7").text().expect("text"), "{\"a\": 2}");

    let fixed = it.client.put(format!("{}/fixed/k1", it.cluster.url(0))).body("v").send().expect("an answer");
    assert_eq!((fixed.status().as_u16(), &fixed.headers()["allow"]), (405, &"GET, HEAD".parse().expect("a header")));
    let patch = it.client.patch(format!("{}/things/k1", it.cluster.url(0))).body("v").send().expect("an answer");
    assert_eq!(patch.headers()["allow"], "GET, HEAD, PUT, DELETE");
    let range = it.client.put(format!("{}/things/k1", it.cluster.url(0))).header("content-range", "bytes 0-1/2");
    assert_eq!(problem(range.body("v").send().expect("an answer")), "partial-value");
}

#[test]
fn what_a_trigger_makes_of_a_value_is_what_is_read() {
    let plan = plan(Kind::Postgres, 10);
    plan.server.execute(
        "CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.body := upper(NEW.body); RETURN NEW; \
         END $$; CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON things FOR EACH ROW EXECUTE FUNCTION shout()",
    );
    let it = plan.start();
    let answer = it.put(0, "k1", "quiet", &[]);
    assert_eq!((answer.status().as_u16(), tag(&answer).as_str()), (204, ""));
    assert_eq!(it.values("k1"), vec![(200, "QUIET".to_owned()); 3]);
}

#[test]
fn a_database_without_fences_says_what_is_missing() {
    let server = Server::start(Kind::Postgres, 10);
    let writes = server.statements();
    let it = Plan::new(server).region(writes).start();
    let mut said = String::new();
    eventually("it is said", || {
        said = it.get(0, "/things/k1").text().expect("text");
        said.contains("cache-node fence-table")
    });
    let answer = it.put(0, "k1", "v", &[]);
    assert_eq!((answer.status().as_u16(), problem(answer).as_str()), (503, "not-applied"));
    it.server.execute(cache_node::database::FENCE_TABLE);
    eventually("it heals", || it.put(0, "k1", "v", &[]).status() == 204);
    assert_eq!(it.values("k1"), vec![(200, "v".to_owned()); 3]);
}

/// A write that relies on a fence that somebody raises meanwhile is not done, wherever it is by then.
#[test]
fn a_write_whose_fence_is_raised_by_somebody_else_is_not_done() {
    for kind in KINDS {
        let it = plan(kind, 10).start();
        assert_eq!(it.put(0, "k1", "before", &[]).status(), 204, "{kind:?}");
        it.server.raise_all_fences();
        let answer = it.put(0, "k1", "after", &[]);
        assert_eq!((answer.status().as_u16(), problem(answer).as_str()), (503, "not-applied"), "{kind:?}");
        assert_eq!(it.server.value("k1"), Some("before".to_owned()), "{kind:?}");
        // Its term is above all that the cluster has seen: a coordinator acquires a higher one.
        eventually("the cluster goes above it", || it.put(0, "k1", "after", &[]).status() == 204);
        assert_eq!(it.values("k1"), vec![(200, "after".to_owned()); 3], "{kind:?}");
    }
}

#[test]
fn announced_writes_of_our_own_cost_no_reload() {
    let plan = plan(Kind::Postgres, 10).database("announce = true\n");
    plan.server.execute(announcing::TRIGGER);
    let it = plan.start();
    eventually("all listen", || it.sum("cache_node_announcements_heard", &[]) == 3.0);
    for run in 0..20 {
        let value = format!("written {run}");
        assert_eq!(it.put(run % 3, "k1", &value, &[]).status(), 204);
        assert_eq!(it.values("k1"), vec![(200, value); 3]);
    }
    // What is announced comes in order: with this change everything before it was heard.
    it.get(0, "/things/k2");
    it.server.set("k2", "changed");
    eventually("the change is seen", || it.values("k2") == vec![(200, "changed".to_owned()); 3]);
    assert_eq!(it.values("k1"), vec![(200, "written 19".to_owned()); 3]);
    assert_eq!(it.sum("cache_node_database_keys_total", &["reason=\"invalidated\""]), 1.0, "k2 alone");
    it.server.set("k1", "by somebody else");
    eventually("others are heard all the same", || it.values("k1")[0].1 == "by somebody else");
}

/// Whoever writes without a cache, by a statement that is prepared.
enum Bare {
    Sqlite(rusqlite::Connection),
    Postgres(tokio::runtime::Runtime, tokio_postgres::Client, tokio_postgres::Statement),
    Redis(redis::Connection),
}

const BARE: &str = "INSERT INTO things VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET body = excluded.body";

impl Bare {
    fn connect(server: &Server) -> Self {
        match server.kind {
            Kind::Sqlite => Self::Sqlite(rusqlite::Connection::open(server.path("test.db")).expect("opens")),
            Kind::Redis => Self::Redis(
                redis::Client::open(server.url()).and_then(|client| client.get_connection()).expect("connects"),
            ),
            Kind::Postgres => {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
                let runtime = runtime.expect("a runtime");
                let (client, statement) = runtime.block_on(async {
                    let (client, connection) =
                        tokio_postgres::connect(&server.url(), tokio_postgres::NoTls).await.expect("connects");
                    tokio::spawn(connection);
                    let statement = client.prepare(BARE).await.expect("sound");
                    (client, statement)
                });
                Self::Postgres(runtime, client, statement)
            }
        }
    }

    fn write(&mut self, key: &str, value: &str) {
        use redis::Commands as _;
        match self {
            Self::Sqlite(database) => {
                let mut statement = database.prepare_cached(BARE).expect("sound");
                statement.execute([key, value]).expect("written");
            }
            Self::Postgres(runtime, client, statement) => {
                runtime.block_on(client.execute(statement, &[&key, &value])).expect("written");
            }
            Self::Redis(redis) => redis.set(format!("thing:{key}"), value).expect("written"),
        }
    }
}

/// What a write costs beyond the statement alone: HTTP, two processes on its way, the fence, and reading it back.
#[test]
fn a_write_takes_little_longer_than_its_statement() {
    for kind in KINDS {
        let it = plan(kind, 10).start();
        let mut bare = Bare::connect(&it.server);
        let (mut alone, mut through) = (Vec::new(), Vec::new());
        // By turns, since machines are noisy.
        for run in 0..if is_long() { 2000 } else { 50 } {
            let began = Instant::now();
            bare.write("bare", &format!("v{run}"));
            alone.push(began.elapsed());
            let began = Instant::now();
            assert_eq!(it.put(run % 3, "k1", &format!("v{run}"), &[]).status(), 204, "{kind:?}");
            through.push(began.elapsed());
        }
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let (alone, through) = (median(alone), median(through));
        println!("{kind:?}: a statement takes {alone:?}, a write through the cache {through:?} (medians)");
        // A busy machine says nothing.
        assert!(!is_long() || through.saturating_sub(alone) < Duration::from_millis(1), "{kind:?}");
    }
}
