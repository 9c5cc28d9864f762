//! Lanes and shards of one node, on a real database file, without sockets.

use std::path::Path;

use bytes::{Bytes, BytesMut};
use clap::Parser;
use sharding::epoch::Term;
use sharding::form::Form;
use sharding::hash::shard_of;
use sharding::id::NodeId;
use sharding::map::{Member, ShardMap};
use sharding::membership::Transfer;
use sharding::times::{Lease, Times};
use sharding::wire::{Answer, AnswerBody, AskRef, Failure, FailureCode, Served};

use super::*;
use crate::announcing::pass_on;
use crate::clock;
use crate::config::{CacheConfig, Program};
use crate::reply::Outbox;
use crate::shard::{Op, Told, Writing};

/// Makes a shard's actor panic, as a mistake in it would.
#[derive(Clone, Copy, Debug, Message)]
#[rtype(result = "()")]
struct Panic;

impl Told<Panic> for Shard {
    fn told(&mut self, _: Panic, _: &mut Context<ShardActor>) {
        panic!("on purpose");
    }
}

type Act<T> = dyn FnOnce(&mut ShardRegion, &mut Context<ShardRegion>) -> T + Send;

/// Has a lane do something between its other messages.
struct Do<T>(Box<Act<T>>);

impl<T: Send + 'static> Message for Do<T> {
    type Result = T;
}

impl<T: Send + 'static> Handler<Do<T>> for ShardRegion {
    type Result = actix::MessageResult<Do<T>>;

    fn handle(&mut self, Do(act): Do<T>, ctx: &mut Context<Self>) -> Self::Result {
        actix::MessageResult(act(self, ctx))
    }
}

/// What happens in one turn of the lane while another node seals a shard for it and the grant is here already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    Sealed,
    NotSealed,
    /// More keys of it have changed than are remembered.
    Overflowed,
    Released,
}

/// Has a lane take over a shard until it waits for the seal, and be granted it; then it hears of the shard's fence before
/// it can act on the answer to the seal.
fn overtake(region: &mut ShardRegion, ctx: &mut Context<ShardRegion>, serve: Serve, meanwhile: Meanwhile) {
    let (lane, Serve { shard, since, tenure, n, .. }) = (Rc::clone(&region.lane), serve);
    let wish = wish(shard, since);
    assert!(lane.taking.begin(&lane, &wish));
    lane.taking.begin_seal(shard, Instant::now()).expect("it is being taken over");
    region.handle(serve, ctx);
    ctx.address().do_send(FenceSays { shard, tenure, fence: 0, result: Ok(n) });
    if meanwhile == Meanwhile::Overflowed {
        for n in 0..=crate::taking::NOTICED_MAX {
            lane.taking.handle_notice(&lane, shard, &(0, Bytes::from(n.to_string())));
        }
    }
    if meanwhile == Meanwhile::Released {
        ctx.address().do_send(Release { shard });
    }
    lane.taking.handle_sealed(&lane, &wish, matches!(meanwhile, Meanwhile::Sealed | Meanwhile::Released));
}

/// To take a shard over from a node that does not answer.
fn wish(shard: ShardId, since: Epoch) -> Wish {
    let transfer = Transfer { shard, since, peer: NodeId::parse("b").expect("a name") };
    Wish { transfer, address: "127.0.0.1:1".to_owned() }
}

/// Its first epochs.
const fn epoch(seq: u64) -> Epoch {
    Epoch { term: Term { counter: 1, seed: 0 }, seq }
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
    database.execute_batch(crate::database::FENCE_TABLE).expect("a table");
    let text = format!(
        "[database.main]\nurl = \"sqlite:test.db\"\n[region.things]\ndatabase = \"main\"\nload = \"{load}\"\n\
         writes = true\nstore = \"INSERT INTO things VALUES (:key, :value) ON CONFLICT (id) DO UPDATE SET body = \
         excluded.body\"\nremove = \"DELETE FROM things WHERE id = :key\"\n"
    );
    std::fs::write(&path, text).expect("a file");
    CacheConfig::load(&path).expect("a sound configuration")
}

impl Scene {
    /// The only node of its cluster, with two lanes.
    fn new(load: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let config = write_config(dir.path(), load);
        let flags = ["cache-node", "--name", "a", "--seeds", "a=127.0.0.1:1", "--lanes", "2"];
        let args = Program::parse_from(flags).args;
        let place = crate::place(&args, &config).expect("a sound place");
        let (node, _, fencing) = Node::start(&args, crate::n_lanes(&args), &config, &place).expect("starts");
        let node = Arc::new(node);
        let lanes = crate::start_lanes(&node);
        let (inbox, _) = tokio::sync::mpsc::channel(1);
        for fencing in fencing {
            actix_rt::spawn(fencing.run(Arc::clone(&node), lanes.clone(), inbox.clone()));
        }
        let map = ShardMap::assigned(epoch(1), config.n_shards, place.seeds).expect("a map");
        node.publish(Arc::new(map));
        node.set_lease(Lease::new(clock::now(), LEASE, &Times::default()));
        let n = node.next_fence_number();
        let mut acquired = Vec::new();
        for shard in config.n_shards.shards() {
            node.set_tenure(shard, 1);
            let serve = Serve { shard, since: epoch(1), after: After::Nobody, tenure: 1, n };
            lanes[usize::from(shard.lane(node.n_lanes))].do_send(serve);
            acquired.push(Wanted { shard, tenure: 1, since: epoch(1), n });
        }
        node.raise_everywhere(&acquired);
        Self { node, lanes, outbox: Arc::default(), _dir: dir }
    }

    fn shard(&self, key: &str) -> ShardId {
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
        lane.do_send(WrongLane(vec![self.work(op, id, key)]));
    }

    fn work(&self, op: Op, id: u32, key: &'static str) -> Work {
        let (shard, reply) = (self.shard(key), self.outbox.reply(id));
        Work { op, shard, region: 0, key: Bytes::from(key), deadline: Duration::from_secs(5), reply }
    }

    /// Operations at the database so far.
    fn n_operations(&self) -> u64 {
        self.node.ledgers[0].metrics.ledger().map(|(_, operations, _)| operations).sum()
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

    /// So many answers, in the order of their requests.
    async fn answers(&self, n: usize) -> Vec<Answer> {
        let mut answers = Vec::new();
        while answers.len() < n {
            self.outbox.changed().await;
            let mut more = Vec::new();
            self.outbox.take(&mut more);
            answers.extend(more);
        }
        answers.sort_by_key(|answer| answer.id);
        answers
    }

    async fn on_lane<T: Send + 'static>(
        &self,
        key: &'static str,
        act: impl FnOnce(&mut ShardRegion, &mut Context<ShardRegion>) -> T + Send + 'static,
    ) -> T {
        self.lane_of(key).send(Do(Box::new(act))).await.expect("the lane lives")
    }

    /// Makes the shard of a key panic.
    fn panic(&self, key: &'static str) {
        let shard = self.shard(key);
        self.lane_of(key).do_send(Do(Box::new(move |region, _| {
            let shards = region.lane.shards.borrow();
            shards[shard.index()].as_ref().expect("the shard is served here").actor.do_send(Panic);
        })));
    }

    fn put(&self, id: u32, key: &'static str, value: impl Into<Bytes>) {
        let writing = Writing { value: Some(value.into()), precondition: Default::default(), _room: None };
        self.send_op(Op::Write(Box::new(writing)), self.lane_of(key), id, key);
    }

    /// Waits until its shard may be loaded, and forgets it again.
    async fn forgotten(&self, key: &'static str) {
        self.get(key).await;
        self.send_op(Op::Invalidate, self.lane_of(key), 1, key);
        assert!(matches!(self.answer().await, AnswerBody::Invalidated { entries: 1, .. }));
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
async fn a_hit_allocates_nothing_sends_no_message_and_stays_on_its_thread() {
    const N: usize = 100;
    let scene = Scene::new(LOAD);
    assert_eq!(served(&scene.get("1").await), Served::Miss);
    let mut frames = BytesMut::new();
    for id in 0..N {
        let epoch = scene.node.map().expect("a map").epoch();
        let ask = AskRef { deadline: LEASE, epoch, shard: scene.shard("1"), region: b"things", key: b"1" };
        GetRef { id: u32::try_from(id).expect("few"), ask }.encode(&mut frames);
    }
    let (allocations, bytes) =
        scene.on_lane("1", move |region, _| data::tests::allocations(&frames, &region.lane)).await;
    assert_eq!(allocations, 0);
    // What leaves was written by the connection itself: no message, no reply, no other thread had a part in it.
    assert!(bytes > N * "one".len() && scene.node.regions[0].metrics.hit.get() == 2 * N as u64, "{bytes} bytes");
    assert_eq!(scene.node.metrics.wrong_lane.get(), 0);
}

/// Asks the lane of "1" for many keys: the places and values of those that are answered at once.
async fn ask_many(scene: &Scene, region: &str, keys: &[&'static str]) -> Vec<(u32, Option<Form>, Vec<u8>)> {
    let mut frame = BytesMut::new();
    GetMany::encode_keys(7, region.as_bytes(), keys.iter().map(|key| key.as_bytes()), &mut frame);
    let answers = scene.on_lane("1", move |region, _| data::tests::answered_at_once(&frame, &region.lane)).await;
    let [Answer { id: 7, body: AnswerBody::Hits(hits) }] = &answers[..] else { panic!("{answers:?}") };
    hits.iter().map(|hit| (hit.place, hit.form, hit.value.to_vec())).collect()
}

#[actix_rt::test]
async fn of_many_keys_those_in_memory_are_answered_at_once_and_the_others_are_not_loaded() {
    let scene = Scene::new(LOAD);
    let lane = |key: &str| scene.shard(key).lane(scene.node.n_lanes);
    let (here, there): (Vec<_>, Vec<_>) =
        ["2", "3", "4", "5", "6", "7", "8", "9"].into_iter().partition(|key| lane(key) == lane("1"));
    let ([written, absent, cold, ..], [elsewhere, ..]) = (&here[..], &there[..]) else { panic!("{here:?}") };
    scene.forgotten(written).await;
    scene.put(1, written, "t\nwo");
    assert!(matches!(scene.answer().await, AnswerBody::Written(_)));
    for key in ["1", absent, elsewhere] {
        scene.get(key).await;
    }
    let n_operations = scene.n_operations();
    let keys = ["1", cold, absent, written, elsewhere, "1"];
    let one = |place| (place, Some(Form::Plain), b"one".to_vec());
    assert_eq!(ask_many(&scene, "things", &keys).await, [one(0), (3, None, b"t\nwo".to_vec()), one(5)]);
    assert_eq!((scene.n_operations(), scene.node.regions[0].metrics.hit.get()), (n_operations, 3));
    assert_eq!(ask_many(&scene, "nothings", &keys).await, []);
    scene.lane_of("1").do_send(Release { shard: scene.shard("1") });
    assert_eq!(ask_many(&scene, "things", &["1"]).await, []);
}

#[actix_rt::test]
async fn an_answer_with_many_hits_is_bounded() {
    let scene = Scene::new(LOAD);
    scene.forgotten("1").await;
    scene.put(1, "1", vec![b'v'; HITS_BYTES_MAX / 2]);
    assert!(matches!(scene.answer().await, AnswerBody::Written(_)));
    let places: Vec<_> = ask_many(&scene, "things", &["1"; 9]).await.into_iter().map(|(place, ..)| place).collect();
    assert_eq!(places, [0, 1]);
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
async fn a_grant_that_overtakes_the_answer_to_its_seal_waits_for_it_and_learns_its_fence() {
    for meanwhile in [Meanwhile::Sealed, Meanwhile::NotSealed, Meanwhile::Overflowed, Meanwhile::Released] {
        let scene = Scene::new(LOAD);
        scene.get("1").await;
        let (shard, n) = (scene.shard("1"), scene.node.next_fence_number());
        scene.lane_of("1").do_send(Release { shard });
        scene.node.set_tenure(shard, 2);
        let serve = Serve { shard, since: epoch(2), after: After::Sealed(epoch(2)), tenure: 2, n };
        scene.on_lane("1", move |region, ctx| overtake(region, ctx, serve, meanwhile)).await;
        let first = scene.get("1").await;
        let handoff = &scene.node.metrics.handoff;
        if meanwhile == Meanwhile::Released {
            assert!(matches!(first, AnswerBody::Misdirected { .. }), "{first:?}");
            continue;
        }
        assert_eq!(served(&first), Served::Miss, "{meanwhile:?}");
        assert_eq!(served(&scene.get("1").await), Served::Hit);
        let is_warm = meanwhile == Meanwhile::Sealed;
        assert_eq!((handoff.warm.get(), handoff.cold.get()), (is_warm.into(), (!is_warm).into()), "{meanwhile:?}");
    }
}

#[actix_rt::test]
async fn what_was_sealed_for_a_node_is_kept_for_its_grant_but_not_against_a_newer_wish() {
    let scene = Scene::new(LOAD);
    let shard = scene.shard("1");
    scene.lane_of("1").do_send(Release { shard });
    let is_kept_under = |wishes: Vec<Wish>| {
        scene.on_lane("1", move |region, _| {
            let lane = Rc::clone(&region.lane);
            assert!(lane.taking.begin(&lane, &wish(shard, epoch(1))));
            lane.taking.begin_seal(shard, Instant::now()).expect("it is being taken over");
            lane.taking.handle_wishes(&lane, wishes);
            lane.taking.begin_seal(shard, Instant::now()).is_some()
        })
    };
    assert!(is_kept_under(Vec::new()).await);
    assert!(!is_kept_under(vec![wish(shard, epoch(2))]).await);
}

#[actix_rt::test]
async fn what_is_announced_of_a_shard_on_its_way_here_is_known_when_its_turn_comes() {
    let scene = Scene::new(LOAD);
    let shard = scene.shard("1");
    scene.node.set_tenure(shard, 0);
    scene.node.set_moves(&[], &[wish(shard, epoch(1)).transfer]);
    pass_on(&scene.node, &scene.lanes, 0, Bytes::from("1"));
    let heard = scene.node.heard().of_shard(shard, Instant::now()).expect("few");
    assert!(heard.contains(&(0, Bytes::from("1"))), "{heard:?}");
}

#[actix_rt::test]
async fn a_part_of_a_shard_is_bounded_unless_it_is_one_entry() {
    const LENGTHS: [usize; 4] = [1, 200 * 1024, 100 * 1024, 300 * 1024];
    let scene = Scene::new(LOAD);
    let keys = (1..100_000).map(|n: u32| &*n.to_string().leak());
    let keys: Vec<&'static str> = keys.filter(|key| scene.shard(key) == scene.shard("1")).take(LENGTHS.len()).collect();
    for (key, len) in keys.iter().zip(LENGTHS) {
        scene.put(1, key, vec![b'v'; len]);
        assert!(matches!(scene.answer().await, AnswerBody::Written(Some(_))));
    }
    let (mut lengths, mut at) = (Vec::new(), Some((0, 0)));
    while let Some((cursor, number)) = at {
        let op = Op::Pull { since: epoch(1), cursor, number };
        let work = Work::of_shard(op, scene.shard("1"), scene.outbox.reply(1));
        scene.lane_of("1").do_send(WrongLane(vec![work]));
        let AnswerBody::Chunk(chunk) = scene.answer().await else { panic!("no part") };
        lengths.push(chunk.entries.iter().map(|entry| entry.value.as_ref().map_or(0, Bytes::len)).collect::<Vec<_>>());
        at = chunk.next.map(|next| (next, chunk.number));
    }
    assert!(lengths.iter().all(|of_chunk| of_chunk.len() == 1 || of_chunk.iter().sum::<usize>() <= 256 * 1024));
    assert!(lengths.iter().any(|of_chunk| of_chunk.len() > 1), "{lengths:?}");
    let mut all = lengths.concat();
    all.sort_unstable();
    assert_eq!(all, [1, 100 * 1024, 200 * 1024, 300 * 1024]);
}

#[actix_rt::test]
async fn a_read_past_an_owner_does_not_fail_by_the_deadline_of_another() {
    let scene = Scene::new(LOAD);
    // It takes connections, and says nothing.
    let owner = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = owner.local_addr().expect("bound");
    let members = Member::parse_list(&format!("b={address}")).expect("a list");
    let map = ShardMap::assigned(epoch(2), scene.node.n_shards, members).expect("a map");
    scene.node.publish(Arc::new(map));
    scene.lane_of("1").do_send(Release { shard: scene.shard("1") });
    let work = |id, millis| Work { deadline: Duration::from_millis(millis), ..scene.work(Op::PassThrough, id, "1") };
    scene.lane_of("1").do_send(WrongLane(vec![work(1, 100), work(2, 5000)]));
    let answers = scene.answers(2).await;
    assert!(matches!(answers[0].body, AnswerBody::Failed(_)), "{answers:?}");
    assert_eq!(served(&answers[1].body), Served::PassedThrough);
}

#[actix_rt::test]
async fn what_was_in_the_air_when_its_key_was_invalidated_is_neither_kept_nor_joined() {
    for is_prefix in [false, true] {
        let op = if is_prefix { Op::InvalidatePrefix } else { Op::Invalidate };
        let scene = Scene::new(SLOW);
        scene.forgotten("1").await;
        // In one message: nothing lands in between.
        let work = vec![scene.work(Op::Get, 1, "1"), scene.work(op, 2, "1"), scene.work(Op::Get, 3, "1")];
        scene.lane_of("1").do_send(WrongLane(work));
        let answers = scene.answers(3).await;
        let is_kept = |answer: &Answer| match &answer.body {
            AnswerBody::Value { entry, .. } => (entry.served, entry.kept),
            other => panic!("{other:?}"),
        };
        assert_eq!(is_kept(&answers[0]), (Served::Miss, false), "it may be old");
        assert!(matches!(answers[1].body, AnswerBody::Invalidated { entries: 0, .. }));
        assert_eq!(is_kept(&answers[2]), (Served::Miss, true), "a load of its own");
        assert_eq!(served(&scene.get("1").await), Served::Hit);
    }
}

/// Long enough for what is sent right after it to come first, and ended by the loader's own bound if it does not.
const SLOW: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000000) \
                    SELECT id, body FROM things WHERE id IN (:keys) AND (SELECT count(*) FROM n) > 0";

#[actix_rt::test]
async fn a_shard_that_panics_answers_its_waiters_and_is_started_again_empty() {
    let scene = Scene::new(SLOW);
    scene.get("1").await;
    assert_eq!(served(&scene.get("1").await), Served::Hit);

    let victim = scene.shard("1");
    scene.lane_of("1").do_send(Release { shard: victim });
    let (since, n) = (Epoch { term: Term { counter: 2, seed: 0 }, seq: 0 }, scene.node.next_fence_number());
    let serve = Serve { shard: victim, since, after: After::Nobody, tenure: 1, n };
    scene.lane_of("1").do_send(serve);
    scene.node.raise_everywhere(&[Wanted { shard: victim, tenure: 1, since, n }]);
    scene.send(scene.lane_of("1"), 2, "1");
    scene.panic("1");
    let AnswerBody::Failed(Failure { code, .. }) = scene.answer().await else { panic!("the waiter was not told") };
    assert_eq!(code, FailureCode::Dropped);

    // The supervisor hears of it by a message that is already on its way.
    assert_eq!(served(&scene.get("1").await), Served::Miss, "started again, empty");
    assert_eq!(served(&scene.get("1").await), Served::Hit);
    assert_eq!(scene.node.metrics.shards_restarted.get(), 1);
}

#[actix_rt::test]
async fn what_was_written_is_served_from_memory_and_a_reader_waits_for_it() {
    let scene = Scene::new(LOAD);
    assert_eq!(served(&scene.get("1").await), Served::Miss);
    scene.put(1, "1", "new");
    scene.send(scene.lane_of("1"), 2, "1");
    let answers = scene.answers(2).await;
    assert!(matches!(answers[0].body, AnswerBody::Written(Some(_))), "{answers:?}");
    let AnswerBody::Value { entry, value, .. } = &answers[1].body else { panic!("{answers:?}") };
    assert_eq!((entry.served, &value[..]), (Served::Hit, &b"new"[..]));
}

#[actix_rt::test]
async fn a_write_of_a_shard_that_panics_is_said_to_be_unknown_and_cannot_land_later() {
    let scene = Scene::new(LOAD);
    scene.get("1").await;
    scene.put(1, "1", "new");
    scene.panic("1");
    let AnswerBody::Failed(Failure { code, .. }) = scene.answer().await else { panic!("not told") };
    assert_eq!(code, FailureCode::Unknown);
    let first = scene.get("1").await;
    let AnswerBody::Value { value, .. } = &first else { panic!("{first:?}") };
    let again = scene.get("1").await;
    assert!(matches!(&again, AnswerBody::Value { value: same, .. } if same == value), "{again:?}");
    scene.put(1, "1", "newer");
    assert!(matches!(scene.answer().await, AnswerBody::Written(Some(_))));
}

#[actix_rt::test]
async fn a_load_sent_before_the_database_was_heard_again_is_not_joined_afterwards() {
    let scene = Scene::new(SLOW);
    scene.forgotten("1").await;
    let n_before = scene.n_operations();
    scene.send(scene.lane_of("1"), 1, "1");
    while scene.n_operations() == n_before {
        tokio::task::yield_now().await;
    }
    // It was sent, and takes its time.
    scene.node.regions[0].trust.begin(Instant::now());
    scene.send(scene.lane_of("1"), 2, "1");
    let answers = scene.answers(2).await;
    let kept = |answer: &Answer| matches!(&answer.body, AnswerBody::Value { entry, .. } if entry.kept);
    assert_eq!((kept(&answers[0]), kept(&answers[1])), (false, true), "{answers:?}");
}
