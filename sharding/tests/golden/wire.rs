//! One frame of each kind, as bytes.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sharding::acceptor::{Ballot, Vote};
use sharding::budget::{BudgetShare, BudgetUse};
use sharding::epoch::{Epoch, Term};
use sharding::form::Form;
use sharding::id::{DatabaseName, NodeId, RegionName, ShardId};
use sharding::load::ShardLoad;
use sharding::map::{Member, ShardMap};
use sharding::membership::{Addition, After, Grant, Greeting, Incarnation, Renew, Reply, Tenure, Transfer};
use sharding::proposer::Proposal;
use sharding::wire::{
    Answer, AnswerBody, Ask, Chunk, Control, Entry, Etag, Failure, FailureCode, FromNode, GetMany, Handed, Hello, Hit,
    Join, MapAnswer, Precondition, Pull, Refused, RegionInfo, Request, RequestBody, Served, Tags, ToNode, Welcome,
};

const EPOCH: Epoch = Epoch { term: Term { counter: 0x0102_0304_0506_0708, seed: 9 }, seq: 10 };
const EPOCH_HEX: &str = "0807060504030201 0900 0a00000000000000";

fn bytes(hex: &str) -> Bytes {
    let digits: Vec<u8> = hex.bytes().filter(|b| !b.is_ascii_whitespace()).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal");
    digits.chunks(2).map(byte).collect()
}

fn to_node(frame: &ToNode, hex: &str) {
    let mut out = BytesMut::new();
    match frame {
        ToNode::Hello(hello) => hello.encode(&mut out),
        ToNode::Join(join) => join.encode(&mut out),
        ToNode::GetMany(GetMany { id, region, keys }) => GetMany::encode_keys(*id, region, keys.iter(), &mut out),
        ToNode::Request(request) => request.encode(&mut out),
    }
    assert_eq!(out, bytes(hex), "{frame:?}");
    assert_eq!(ToNode::decode(bytes(hex).slice(4..)), Ok(frame.clone()));
}

fn from_node(frame: &FromNode, hex: &str) {
    let mut out = BytesMut::new();
    match frame {
        FromNode::Welcome(welcome) => welcome.encode(&mut out),
        FromNode::Refused(refused) => refused.encode(&mut out),
        FromNode::Answer(answer) => answer.encode(&mut out),
    }
    assert_eq!(out, bytes(hex), "{frame:?}");
    assert_eq!(FromNode::decode(bytes(hex).slice(4..)), Ok(frame.clone()));
}

fn ask() -> Ask {
    let deadline = Duration::from_secs(2);
    Ask { deadline, epoch: EPOCH, shard: ShardId(0x0102), region: Bytes::from("r1"), key: Bytes::from("key") }
}

fn entry(served: Served) -> Entry {
    Entry { served, kept: true, age: Duration::from_millis(1000), ttl_ms: -1 }
}

#[test]
fn what_a_router_sends() {
    to_node(&ToNode::Hello(Hello { protocol: 1, lane: 2 }), "09000000 01 64636368 0100 0200");
    let get = Request { id: 7, body: RequestBody::Get(ask()) };
    let rest = format!("07000000 d0070000 {EPOCH_HEX} 0201 0200 7231 0300 6b6579");
    to_node(&ToNode::Request(get), &format!("26000000 02 {rest}"));
    let explain = Request { id: 7, body: RequestBody::Explain(ask()) };
    to_node(&ToNode::Request(explain), &format!("26000000 03 {rest}"));
    let invalidate = Request { id: 7, body: RequestBody::Invalidate(ask()) };
    to_node(&ToNode::Request(invalidate), &format!("26000000 07 {rest}"));
    let prefix = Request { id: 7, body: RequestBody::InvalidatePrefix(ask()) };
    to_node(&ToNode::Request(prefix), &format!("26000000 08 {rest}"));
    let put = Request { id: 7, body: RequestBody::Put(ask(), Precondition::default(), Bytes::from("v")) };
    to_node(&ToNode::Request(put), &format!("29000000 09 {rest} 00 00 76"));
    let if_match = Some(Tags::Listed(vec![Etag(0x0f)]));
    let delete = RequestBody::Delete(ask(), Precondition { if_match, if_none_match: Some(Tags::Any) });
    let tags_hex = "02 01 0f000000000000000000000000000000 01";
    to_node(&ToNode::Request(Request { id: 7, body: delete }), &format!("39000000 0a {rest} {tags_hex}"));
    let many_hex = "10000000 0d 07000000 0200 7231 0100 61 0200 6263";
    let many = ToNode::decode(bytes(many_hex).slice(4..)).expect("many keys");
    to_node(&many, many_hex);
    let ToNode::GetMany(GetMany { id: 7, region, keys }) = many else { panic!("{many:?}") };
    assert_eq!((&region[..], keys.iter().collect::<Vec<_>>()), (&b"r1"[..], vec![&b"a"[..], b"bc"]));
    let pull = Pull { shard: ShardId(0x0102), since: EPOCH, cursor: 3, number: 5 };
    let rest = format!("07000000 0201 {EPOCH_HEX} 03000000 05000000");
    to_node(&ToNode::Request(Request { id: 7, body: RequestBody::Pull(pull) }), &format!("21000000 0b {rest}"));
    to_node(&ToNode::Request(Request { id: 7, body: RequestBody::Seal(pull) }), &format!("21000000 0c {rest}"));
    to_node(&ToNode::Request(Request { id: 7, body: RequestBody::GetMap }), "05000000 04 07000000");
    to_node(&ToNode::Request(Request { id: 7, body: RequestBody::Describe }), "05000000 05 07000000");
}

#[test]
fn what_a_node_sends() {
    let node = NodeId::parse("n0").expect("a name");
    from_node(&FromNode::Welcome(Welcome { n_lanes: 4, node: node.clone() }), "09000000 41 0100 0400 0200 6e30");
    from_node(&FromNode::Refused(Refused { message: "no".to_owned() }), "05000000 42 0200 6e6f");

    let answer = |body| FromNode::Answer(Answer { id: 7, body });
    let value = AnswerBody::Value { entry: entry(Served::Stale), etag: Etag(0x0f), value: Bytes::from("v") };
    let entry_hex = "01 01 e8030000 ffffffffffffffff";
    from_node(&answer(value), &format!("24000000 43 07000000 {entry_hex} 0f000000000000000000000000000000 76"));
    from_node(&answer(AnswerBody::Absent(entry(Served::Stale))), &format!("13000000 44 07000000 {entry_hex}"));
    let misdirected = AnswerBody::Misdirected { epoch: EPOCH, owner: Some(node.clone()) };
    from_node(&answer(misdirected), &format!("1b000000 45 07000000 {EPOCH_HEX} 0200 6e30"));
    let nobody = AnswerBody::Misdirected { epoch: EPOCH, owner: None };
    from_node(&answer(nobody), &format!("19000000 45 07000000 {EPOCH_HEX} 0000"));
    let failure =
        Failure { code: FailureCode::Overloaded, retry_after: Duration::from_secs(1), message: "m".to_owned() };
    from_node(&answer(AnswerBody::Failed(failure)), "0d000000 46 07000000 02 e8030000 0100 6d");
    let invalidated = AnswerBody::Invalidated { since: EPOCH, entries: 3 };
    from_node(&answer(invalidated), &format!("1b000000 49 07000000 {EPOCH_HEX} 03000000"));
    let written = AnswerBody::Written(Some(Etag(0x0f)));
    from_node(&answer(written), "16000000 4a 07000000 01 0f000000000000000000000000000000");
    from_node(&answer(AnswerBody::Written(None)), "06000000 4a 07000000 00");
    let micros = Duration::from_micros;
    let handed = |value| Handed {
        region: Bytes::from("r"),
        key: Bytes::from("k"),
        value,
        age: micros(1),
        fresh_for: micros(2),
        served_for: micros(3),
    };
    let entries = vec![handed(Some(Bytes::from("v"))), handed(None)];
    let chunk = Chunk { entries, removed: vec![(Bytes::from("r"), Bytes::from("l"))], next: Some(4), number: 5 };
    let entry_hex = "0100 72 0100 6b 0100000000000000 0200000000000000 0300000000000000";
    let chunk_hex = format!("04000000 05000000 0100 0100 72 0100 6c 0200 {entry_hex} 01000000 76 {entry_hex} ffffffff");
    from_node(&answer(AnswerBody::Chunk(Box::new(chunk))), &format!("5c000000 4b 07000000 {chunk_hex}"));
    let hit_hex = |place| format!("01000000 02 {place}000000 00 01 e8030000 ffffffffffffffff 0f{} 76", "0".repeat(30));
    let hits_hex = format!("55000000 4c 07000000 {} {}", hit_hex("01"), hit_hex("02"));
    let hits = FromNode::decode(bytes(&hits_hex).slice(4..)).expect("hits");
    from_node(&hits, &hits_hex);
    let FromNode::Answer(Answer { id: 7, body: AnswerBody::Hits(hits) }) = hits else { panic!("{hits:?}") };
    let hit = |place| Hit { place, entry: entry(Served::Hit), etag: Etag(0x0f), form: Some(Form::Plain), value: b"v" };
    assert_eq!(hits.iter().collect::<Vec<_>>(), [hit(1), hit(2)]);
    let mut out = BytesMut::new();
    Answer::encode_hits(7, &mut out, |out| hits.iter().for_each(|hit| out.put(&hit)));
    assert_eq!(out, bytes(&hits_hex));
    from_node(&answer(AnswerBody::Page(Bytes::from("{}"))), "07000000 48 07000000 7b7d");

    let members = vec![Member { node, data: "h:1".to_owned() }];
    let map = ShardMap::new(EPOCH, members, vec![Some(0), None]).expect("a map");
    let name = RegionName::parse("r").expect("a name");
    let regions = vec![RegionInfo { name, content_type: "t".to_owned(), cache_control: "c".to_owned(), writes: true }];
    let map = AnswerBody::Map(Box::new(MapAnswer { map: Arc::new(map), regions, failover: Duration::from_secs(1) }));
    let map_hex = format!(
        "07000000 {EPOCH_HEX} 0100 0200 6e30 0300 683a31 0200 0000 ffff e8030000 0100 0100 72 0100 74 0100 63 01"
    );
    from_node(&answer(map), &format!("38000000 47 {map_hex}"));
}

#[test]
fn nodes_and_seeds() {
    let ballot = Ballot { counter: 0x0102_0304_0506_0708, seed: 9, life: 11 };
    let other = Ballot { counter: 1, seed: 2, life: 3 };
    let (ballot_hex, other_hex) = ("0807060504030201 0900 0b00000000000000", "0100000000000000 0200 0300000000000000");
    let control = |control: Control, hex: &str| {
        let mut out = BytesMut::new();
        control.encode(&mut out);
        assert_eq!(out, bytes(hex), "{control:?}");
        assert_eq!(Control::decode(bytes(hex).slice(4..)), Ok(control));
    };
    to_node(&ToNode::Join(Join::new(7, 2)), "11000000 20 64636368 0100 0700000000000000 0200");
    for (phase, proposal) in
        ["00", "01", "02"].iter().zip([Proposal::Prepare(ballot), Proposal::Propose(ballot), Proposal::Resign(ballot)])
    {
        control(Control::Proposal(proposal), &format!("14000000 21 {phase} {ballot_hex}"));
    }
    control(Control::Vote(Vote::Promise { ballot, held: None }), &format!("14000000 22 00 {ballot_hex}"));
    let held = Some(other);
    control(Control::Vote(Vote::Promise { ballot, held }), &format!("26000000 22 01 {ballot_hex} {other_hex}"));
    control(Control::Vote(Vote::Accept { ballot }), &format!("14000000 22 02 {ballot_hex}"));
    let refuse = Vote::Refuse { ballot, promised: other };
    control(Control::Vote(refuse), &format!("26000000 22 03 {ballot_hex} {other_hex}"));

    let tenure = |shard| Tenure { shard: ShardId(shard), since: EPOCH, after: After::Move };
    let database = DatabaseName::parse("d").expect("a name");
    let greeting = Greeting { term: EPOCH.term, nonce: 5 };
    let renew = Renew {
        member: Member { node: NodeId::parse("a").expect("a name"), data: "h:1".to_owned() },
        incarnation: Incarnation(1),
        identity: "u".to_owned(),
        request: 2,
        granted: 1,
        seen: EPOCH,
        map: EPOCH,
        greeting: Some(greeting),
        held: vec![tenure(3), tenure(4), tenure(6)],
        loads: [1, 0x0102, 0].map(|requests_milli| ShardLoad { requests_milli, kib: 3 }).to_vec(),
        sealed: vec![(ShardId(9), EPOCH)],
        taken: vec![(ShardId(0x0102), EPOCH), (ShardId(3), EPOCH)],
        budgets: vec![BudgetUse { database: database.clone(), held: 3, demand: 0x0102 }],
        is_leaving: false,
    };
    let runs = format!("0200 0300 0400 {EPOCH_HEX} 01 0600 0600 {EPOCH_HEX} 01");
    let head = "0100 61 0300 683a31 0100000000000000 0100 75 0200000000000000 0100000000000000";
    let greeting_hex = "0807060504030201 0900 0500000000000000";
    let loads = "0300 01000000 03000000 02010000 03000000 00000000 03000000";
    let (sealed, taken) = (format!("0100 0900 {EPOCH_HEX}"), format!("0200 0201 {EPOCH_HEX} 0300 {EPOCH_HEX}"));
    let budgets = "0100 0100 64 03000000 02010000";
    control(
        Control::Renew(renew),
        &format!(
            "f3000000 23 {head} {EPOCH_HEX} {EPOCH_HEX} 01 {greeting_hex} {runs} {loads} {sealed} {taken} {budgets} 00"
        ),
    );
    let hello = Reply::Hello { incarnation: Incarnation(1), greeting };
    control(Control::Reply(hello), &format!("1b000000 24 0100000000000000 {greeting_hex}"));
    let peer = NodeId::parse("b").expect("a name");
    let transfer = |shard| Transfer { shard: ShardId(shard), since: EPOCH, peer: peer.clone() };
    let taken = Tenure { shard: ShardId(5), since: EPOCH, after: After::Sealed(EPOCH) };
    let (shards, shares) = (vec![tenure(3), taken], vec![BudgetShare { database, slots: 4 }]);
    let (giving, taking) = (vec![transfer(3)], vec![transfer(7), transfer(8)]);
    let (incarnation, request) = (Incarnation(1), 2);
    let grant = Grant { incarnation, request, epoch: EPOCH, shards, giving, taking, shares, map: None };
    let shares = "0100 0100 64 04000000";
    let hex = format!(
        "a5000000 25 0100000000000000 0200000000000000 {EPOCH_HEX} 0200 0300 0300 {EPOCH_HEX} 01 0500 0500 {EPOCH_HEX} 03 {EPOCH_HEX} 0100 0300 0300 {EPOCH_HEX} 0100 62 0100 0700 0800 {EPOCH_HEX} 0100 62 {shares} 00"
    );
    control(Control::Reply(Reply::Grant(grant)), &hex);
    let addition = Addition { incarnation, request, epoch: EPOCH, shards: vec![tenure(3), tenure(4)] };
    let hex = format!("3c000000 28 0100000000000000 0200000000000000 {EPOCH_HEX} 0100 0300 0400 {EPOCH_HEX} 01");
    control(Control::Reply(Reply::Addition(addition)), &hex);
    control(Control::Reply(Reply::Wake { incarnation: Incarnation(1) }), "09000000 27 0100000000000000");
    control(Control::Reply(Reply::Goodbye { incarnation: Incarnation(1) }), "09000000 26 0100000000000000");
}
