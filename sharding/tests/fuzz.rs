//! Foreign bytes: whatever comes in, decoding neither panics nor takes what encoding would not write.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::prelude::*;
use sharding::epoch::Epoch;
use sharding::form::Form;
use sharding::id::{KEY_BYTES_MAX, ShardId};
use sharding::load::ShardLoad;
use sharding::map::Member;
use sharding::membership::{After, Incarnation, Renew, Tenure};
use sharding::wire::{
    Answer, AnswerBody, Ask, Control, Entry, Etag, FrameReader, FromNode, GetMany, GetRef, Hit, HitsWriter, Request,
    RequestBody, Served, ToNode, WireError,
};

/// Bytes that look like frames often enough to reach every field: a known kind, then small numbers and noise.
fn nearly_frames() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![1_u8..=13, 32_u8..=40, 64_u8..=76, any::<u8>()];
    let byte = prop_oneof![4 => Just(0_u8), 3 => 0_u8..4, 2 => b'a'..=b'z', 1 => any::<u8>()];
    (kind, proptest::collection::vec(byte, 0..120)).prop_map(|(kind, mut body)| {
        body.insert(0, kind);
        if (kind == 1 || kind == 32) && body.len() > 5 {
            body[1..5].copy_from_slice(b"dcch");
        }
        body
    })
}

/// Reads of a key, some of them cut short or with a name or key that is too long or too short.
fn nearly_gets() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |len| proptest::collection::vec(any::<u8>(), len);
    (any::<u32>(), bytes(0..70), prop_oneof![bytes(0..3), bytes(KEY_BYTES_MAX - 1..KEY_BYTES_MAX + 2)], 0_usize..3)
        .prop_map(|(id, region, key, cut)| {
            let ask = Ask {
                deadline: Duration::from_secs(1),
                epoch: Epoch::default(),
                shard: ShardId(7),
                region: region.into(),
                key: key.into(),
            };
            let mut out = BytesMut::new();
            Request { id, body: RequestBody::Get(ask) }.encode(&mut out);
            out[4..out.len() - cut].to_vec()
        })
}

/// Answers with two hits, some of them cut short or with a byte that is another.
fn nearly_hits() -> impl Strategy<Value = Vec<u8>> {
    let value = || proptest::collection::vec(any::<u8>(), 0..4);
    let entry = Entry { served: Served::Hit, kept: true, age: Duration::from_secs(1), ttl_ms: 1 };
    let hit = move |(place, value): &(u32, Vec<u8>), out: &mut HitsWriter<'_>| {
        out.put(&Hit { place: *place, entry, etag: Etag(7), form: Some(Form::Json), value });
    };
    let hits = [(any::<u32>(), value()), (any::<u32>(), value())];
    (any::<u32>(), hits, 0_usize..3, proptest::option::of((5_usize..60, 0_u8..5))).prop_map(
        move |(id, hits, cut, changed)| {
            let mut out = BytesMut::new();
            Answer::encode_hits(id, &mut out, |out| hits.iter().for_each(|one| hit(one, out)));
            let mut frame = out[4..out.len() - cut].to_vec();
            if let Some((at, byte)) = changed {
                frame[at] = byte;
            }
            frame
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]

    #[test]
    fn what_a_node_decodes_it_would_have_written_so(frame in nearly_frames()) {
        let frame = Bytes::from(frame);
        let mut out = BytesMut::new();
        match ToNode::decode(frame.clone()) {
            // A greeting of another protocol may carry more than we know of.
            Ok(ToNode::Hello(hello)) if hello.protocol != sharding::wire::PROTOCOL => return Ok(()),
            Ok(ToNode::Join(join)) if join.protocol != sharding::wire::PROTOCOL => return Ok(()),
            Ok(ToNode::Hello(hello)) => hello.encode(&mut out),
            Ok(ToNode::Join(join)) => join.encode(&mut out),
            Ok(ToNode::GetMany(many)) => GetMany::encode_keys(many.id, &many.region, many.keys.iter(), &mut out),
            Ok(ToNode::Request(request)) => request.encode(&mut out),
            Err(_) => return Ok(()),
        }
        prop_assert_eq!(out.freeze().slice(4..), frame);
    }

    #[test]
    fn a_get_is_read_where_it_lies_exactly_when_it_is_decoded(frame in prop_oneof![nearly_frames(), nearly_gets()]) {
        let mut out = BytesMut::new();
        let get = GetRef::of(&frame);
        get.iter().for_each(|get| get.encode(&mut out));
        prop_assert!(get.is_none() || out[4..] == frame);
        let decoded = ToNode::decode(Bytes::from(frame.clone()));
        let is_get = matches!(decoded, Ok(ToNode::Request(Request { body: RequestBody::Get(_), .. })));
        prop_assert_eq!(get.is_some(), is_get);
    }

    #[test]
    fn what_a_router_decodes_a_node_would_have_written_so(frame in prop_oneof![nearly_frames(), nearly_hits()]) {
        let frame = Bytes::from(frame);
        let mut out = BytesMut::new();
        match FromNode::decode(frame.clone()) {
            Ok(FromNode::Welcome(welcome)) => welcome.encode(&mut out),
            Ok(FromNode::Refused(refused)) => refused.encode(&mut out),
            Ok(FromNode::Answer(Answer { id, body: AnswerBody::Hits(hits) })) => {
                Answer::encode_hits(id, &mut out, |out| hits.iter().for_each(|hit| out.put(&hit)));
            }
            Ok(FromNode::Answer(answer)) => answer.encode(&mut out),
            Err(_) => return Ok(()),
        }
        // A node cuts its messages; a foreign one that is longer is still read.
        if out.len() == frame.len() + 4 {
            prop_assert_eq!(out.freeze().slice(4..), frame);
        }
    }

    #[test]
    fn what_a_seed_decodes_a_node_would_have_written_so(frame in nearly_frames()) {
        let frame = Bytes::from(frame);
        let mut out = BytesMut::new();
        if let Ok(control) = Control::decode(frame.clone()) {
            control.encode(&mut out);
            prop_assert_eq!(out.freeze().slice(4..), frame);
        }
    }

    #[test]
    fn loads_are_read_as_they_were_written_and_only_one_for_each_shard_that_is_held(
        n_held in 0_u16..20,
        loads in proptest::collection::vec((any::<u32>(), any::<u32>()), 0..20),
    ) {
        let since = Epoch::default();
        let loads: Vec<_> = loads.into_iter().map(|(requests_milli, kib)| ShardLoad { requests_milli, kib }).collect();
        let renew = Renew {
            member: Member::parse("pod-0=h:1").expect("a member"),
            incarnation: Incarnation(1),
            identity: String::new(),
            request: 1,
            granted: 0,
            seen: since,
            map: since,
            greeting: None,
            held: (0..n_held).map(|shard| Tenure { shard: ShardId(shard), since, after: After::Nobody }).collect(),
            loads,
            sealed: Vec::new(),
            taken: Vec::new(),
            budgets: Vec::new(),
            is_leaving: false,
        };
        let fits = renew.loads.is_empty() || renew.loads.len() == renew.held.len();
        let mut out = BytesMut::new();
        Control::Renew(renew.clone()).encode(&mut out);
        let read = Control::decode(out.freeze().slice(4..));
        prop_assert_eq!(read, if fits { Ok(Control::Renew(renew)) } else { Err(WireError::Field("number of loads")) });
    }

    #[test]
    fn a_reader_ends_on_any_stream(chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..20)) {
        let mut reader = FrameReader::new(64);
        for chunk in chunks {
            reader.space().extend_from_slice(&chunk);
            loop {
                match reader.next_frame() {
                    Ok(Some(frame)) => prop_assert!(frame.len() <= 64),
                    Ok(None) => break,
                    Err(WireError::TooLong { len, .. }) => {
                        prop_assert!(len > 64);
                        return Ok(());
                    }
                    Err(other) => return Err(TestCaseError::fail(other.to_string())),
                }
            }
        }
    }
}
