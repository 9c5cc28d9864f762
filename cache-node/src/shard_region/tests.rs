//! Lanes and shards of one node, on a real database file, without sockets.

use std::path::Path;

use bytes::Bytes;
use clap::Parser;
use sharding::epoch::Term;
use sharding::hash::shard_of;
use sharding::map::ShardMap;
use sharding::times::{Lease, Times};
use sharding::wire::{Answer, AnswerBody, Failure, FailureCode, Served};

use super::*;
use crate::clock;
use crate::config::{Args, CacheConfig};
use crate::reply::Outbox;
use crate::shard::Op;

/// Makes a shard's actor panic, as a mistake in it would.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct Panic(ShardId);

impl Handler<Panic> for ShardRegion {
    type Result = ();

    fn handle(&mut self, panic: Panic, _: &mut Context<Self>) {
        let shards = self.lane.shards.borrow();
        shards[panic.0.index()].as_ref().expect("the shard is served here").do_send(panic);
    }
}

impl Handler<Panic> for Shard {
    type Result = ();

    fn handle(&mut self, _: Panic, _: &mut Context<Self>) {
        panic!("on purpose");
    }
}

/// Longer than any test.
const LEASE: Duration = Duration::from_secs(3600);

struct Scene {
    node: Arc<Node>,
    lanes: Vec<Addr<ShardRegion>>,
    outbox: Arc<Outbox>,
    _dir: tempfile::TempDir,
}

fn write_config(dir: &Path, load: &str) -> CacheConfig {
    let database = rusqlite::Connection::open(dir.join("test.db")).expect("a database");
    let schema =
        "CREATE TABLE things (id INTEGER PRIMARY KEY, body TEXT); INSERT INTO things VALUES (1, 'one'), (2, 'two')";
    database.execute_batch(schema).expect("a table");
    let path = dir.join("cache.toml");
    let text =
        format!("[database.main]\nurl = \"sqlite:test.db\"\n[region.things]\ndatabase = \"main\"\nload = \"{load}\"\n");
    std::fs::write(&path, text).expect("a file");
    CacheConfig::load(&path).expect("a sound configuration")
}

impl Scene {
    /// The only node of its cluster, with two lanes.
    fn new(load: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = write_config(dir.path(), load);
        let args = Args::parse_from(["cache-node", "--name", "a", "--seeds", "a=127.0.0.1:1", "--lanes", "2"]);
        let place = crate::place(&args, &config).expect("a sound place");
        let node = Arc::new(Node::start(&args, crate::n_lanes(&args), &config, &place).expect("starts").0);
        let lanes = crate::start_lanes(&node);
        let epoch = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };
        let map = ShardMap::assigned(epoch, config.n_shards, place.seeds).expect("a map");
        node.publish(Arc::new(map));
        node.set_lease(Lease::new(clock::now(), LEASE, &Times::default()));
        for shard in config.n_shards.shards() {
            node.set_tenure(shard, 1);
            lanes[usize::from(shard.lane(node.n_lanes))].do_send(Serve {
                shard,
                since: epoch,
                after: After::Nobody,
                tenure: 1,
            });
        }
        Self { node, lanes, outbox: Arc::default(), _dir: dir }
    }

    fn shard(&self, key: &'static str) -> ShardId {
        let map = self.node.map().expect("a map");
        shard_of(&self.node.regions[0].name, key.as_bytes(), map.n_shards())
    }

    fn lane_of(&self, key: &'static str) -> &Addr<ShardRegion> {
        &self.lanes[usize::from(self.shard(key).lane(self.node.n_lanes))]
    }

    fn send(&self, lane: &Addr<ShardRegion>, id: u32, key: &'static str) {
        self.send_op(Op::Get, lane, id, key);
    }

    fn send_op(&self, op: Op, lane: &Addr<ShardRegion>, id: u32, key: &'static str) {
        let (shard, reply) = (self.shard(key), self.outbox.reply(id));
        lane.do_send(WrongLane(vec![Work {
            op,
            shard,
            region: 0,
            key: Bytes::from(key),
            deadline: Duration::from_secs(5),
            reply,
        }]));
    }

    async fn answer(&self) -> AnswerBody {
        let mut answers = Vec::new();
        while answers.is_empty() {
            self.outbox.changed().await;
            self.outbox.take(&mut answers);
        }
        let [Answer { body, .. }] = <[Answer; 1]>::try_from(answers).expect("one answer");
        body
    }

    async fn get(&self, key: &'static str) -> AnswerBody {
        self.send(self.lane_of(key), 1, key);
        self.answer().await
    }
}

fn served(answer: &AnswerBody) -> Served {
    let AnswerBody::Value { entry, .. } = answer else { panic!("{answer:?}") };
    entry.served
}

const LOAD: &str = "SELECT id, body FROM things WHERE id IN (:keys)";

#[actix_rt::test]
async fn a_key_is_loaded_once_and_then_served_from_memory() {
    let scene = Scene::new(LOAD);
    assert_eq!(served(&scene.get("1").await), Served::Miss);
    assert_eq!(served(&scene.get("1").await), Served::Hit);
    assert!(matches!(scene.get("3").await, AnswerBody::Absent(entry) if entry.served == Served::Miss));
    assert!(matches!(scene.get("3").await, AnswerBody::Absent(entry) if entry.served == Served::Hit));
    assert_eq!(scene.node.regions[0].metrics.entries.entries.get(), 2);
}

#[actix_rt::test]
async fn a_request_that_lands_on_the_wrong_lane_is_answered_all_the_same() {
    let scene = Scene::new(LOAD);
    let wrong = &scene.lanes[usize::from((scene.shard("1").0 + 1) % 2)];
    scene.send(wrong, 1, "1");
    assert_eq!(served(&scene.answer().await), Served::Miss);
    assert_eq!(scene.node.metrics.wrong_lane.get(), 1);
    assert_eq!(served(&scene.get("1").await), Served::Hit);
    assert_eq!(scene.node.metrics.wrong_lane.get(), 1);
}

#[actix_rt::test]
async fn a_shard_that_is_not_ours_is_misdirected() {
    let scene = Scene::new(LOAD);
    scene.lane_of("1").do_send(Release { shard: scene.shard("1") });
    assert!(matches!(scene.get("1").await, AnswerBody::Misdirected { .. }));
    assert_eq!(scene.node.regions[0].metrics.misdirected.get(), 1);
}

#[actix_rt::test]
async fn what_was_in_the_air_when_its_key_was_invalidated_is_neither_kept_nor_joined() {
    for op in [Op::Invalidate, Op::InvalidatePrefix] {
        let scene = Scene::new(SLOW);
        let lane = scene.lane_of("1");
        scene.send(lane, 1, "1");
        scene.send_op(op, lane, 2, "1");
        scene.send(lane, 3, "1");
        let mut answers = Vec::new();
        while answers.len() < 3 {
            scene.outbox.changed().await;
            let mut more = Vec::new();
            scene.outbox.take(&mut more);
            answers.extend(more);
        }
        answers.sort_by_key(|answer| answer.id);
        let is_kept = |answer: &Answer| match &answer.body {
            AnswerBody::Value { entry, .. } => (entry.served, entry.kept),
            other => panic!("{other:?}"),
        };
        assert_eq!(is_kept(&answers[0]), (Served::Miss, false), "{op:?}: it may be old");
        assert!(matches!(answers[1].body, AnswerBody::Invalidated { entries: 0, .. }), "{op:?}");
        assert_eq!(is_kept(&answers[2]), (Served::Miss, true), "{op:?}: a load of its own");
        assert_eq!(served(&scene.get("1").await), Served::Hit);
    }
}

/// Long enough for what is sent right after it to come first, and ended by the loader's own bound if it does not.
const SLOW: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 300000) \
                    SELECT id, body FROM things WHERE id IN (:keys) AND (SELECT count(*) FROM n) > 0";

#[actix_rt::test]
async fn a_shard_that_panics_answers_its_waiters_and_is_started_again_empty() {
    let scene = Scene::new(SLOW);
    scene.get("1").await;
    assert_eq!(served(&scene.get("1").await), Served::Hit);

    let victim = scene.shard("1");
    scene.lane_of("1").do_send(Release { shard: victim });
    scene.lane_of("1").do_send(Serve { shard: victim, since: Epoch::default(), after: After::Nobody, tenure: 1 });
    scene.send(scene.lane_of("1"), 2, "1");
    scene.lane_of("1").do_send(Panic(victim));
    let AnswerBody::Failed(Failure { code, .. }) = scene.answer().await else { panic!("the waiter was not told") };
    assert_eq!(code, FailureCode::Dropped);

    // The supervisor hears of it by a message that is already on its way.
    assert_eq!(served(&scene.get("1").await), Served::Miss, "started again, empty");
    assert_eq!(served(&scene.get("1").await), Served::Hit);
    assert_eq!(scene.node.metrics.shards_restarted.get(), 1);
}
