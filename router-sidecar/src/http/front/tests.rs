//! The short way, with a node that answers everything from memory.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use actix_http::test::TestRequest;
use actix_web::body::{BodySize, MessageBody as _};
use actix_web::http::header::{CONTENT_TYPE, ETAG};
use bytes::BytesMut as Buffer;
use prometheus_client::registry::Registry;
use sharding::epoch::{Epoch, Term};
use sharding::id::{NShards, NodeId, RegionName};
use sharding::map::{Member, ShardMap};
use sharding::wire::{
    Answer as NodeAnswer, Entry, Etag, FrameReader, GetRef, Hello, MapAnswer, REQUEST_FRAME_BYTES_MAX, RegionInfo,
    Served, ToNode, Welcome,
};
use tokio::sync::watch;
use transport::names::Names;
use transport::upstream::Upstream;

use super::*;
use crate::forward::Forwarder;
use crate::http::Texts;
use crate::map_watch::MapWatch;
use crate::metrics::Metrics;

const VALUE: &[u8] = &[b'v'; 1024];

/// Answers every read of a connection with the same value.
fn serve(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut reader, mut out, mut bytes) = (FrameReader::new(REQUEST_FRAME_BYTES_MAX), Buffer::new(), [0; 4096]);
    let entry = Entry { served: Served::Hit, kept: true, age: Duration::from_secs(3), ttl_ms: 57_000 };
    loop {
        let n = stream.read(&mut bytes)?;
        if n == 0 {
            return Ok(());
        }
        reader.space().extend_from_slice(&bytes[..n]);
        while let Some(frame) = reader.next_frame().expect("frames") {
            match GetRef::of(&frame) {
                Some(get) => NodeAnswer::encode_value(get.id, &entry, Etag::of(VALUE), VALUE, &mut out),
                None => {
                    let hello = Hello::to_lane(0);
                    assert_eq!(ToNode::decode(frame), Ok(ToNode::Hello(hello)), "nothing else is asked here");
                    Welcome { n_lanes: 1, node: NodeId::parse("a").expect("a name") }.encode(&mut out);
                }
            }
        }
        stream.write_all(&out)?;
        out.clear();
    }
}

/// A node on a thread of its own.
fn node() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    // They end with the test's process, or when the router hangs up.
    std::thread::spawn(move || listener.incoming().flatten().for_each(|stream| drop(serve(stream))));
    address
}

fn state(node: SocketAddr) -> Rc<HttpState> {
    let mut registry = Registry::default();
    let metrics = Arc::new(Metrics::new(&mut registry));
    let watch = Arc::new(MapWatch::new(Vec::new(), Arc::clone(&metrics)));
    let members = Member::parse_list(&format!("a={node}")).expect("a list");
    let epoch = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };
    let region = RegionInfo {
        name: RegionName::parse("things").expect("a name"),
        content_type: "text/plain".to_owned(),
        cache_control: "no-cache".to_owned(),
        writes: false,
    };
    watch.take(MapAnswer {
        map: Arc::new(ShardMap::assigned(epoch, NShards::DEFAULT, members).expect("a map")),
        regions: vec![region],
        failover: Duration::from_secs(1),
    });
    let upstream = Upstream::new(Names::of_system(), 100, metrics.connections.clone());
    Rc::new(HttpState {
        forwarder: Forwarder {
            watch,
            upstream: Rc::new(upstream),
            metrics: Arc::clone(&metrics),
            request_timeout: Duration::from_secs(2),
        },
        requests: metrics.of_thread(),
        texts: Texts::new(),
        body_bytes_max: 1,
        batch_keys_max: 1,
        batch_bytes_max: 1,
        drain: watch::Sender::new(false).subscribe(),
    })
}

fn request() -> Request {
    TestRequest::with_uri("/things/1").finish()
}

/// Reads the same key so often.
async fn hits(state: &Rc<HttpState>, n: u32) {
    for _ in 0..n {
        let Ok(read) = Read::begin(request(), state) else { panic!("a simple read") };
        let response = Answering { read: Some(read), other: None }.await.expect("an answer");
        assert_eq!((response.status().as_u16(), response.body().size()), (200, BodySize::Sized(1024)));
    }
}

#[actix_rt::test]
async fn a_plain_read_goes_the_short_way_as_soon_as_there_is_a_connection() {
    let state = state(node());
    let request = Read::begin(request(), &state).err().expect("nobody is connected yet");
    let key = Bytes::from_static(b"1");
    let view = state.forwarder.watch.view().expect("a view");
    let name = &view.regions[0].name;
    state.forwarder.ask(crate::forward::Question::Get, name, key, Instant::now()).await.expect("a value");
    let Ok(read) = Read::begin(request, &state) else { panic!("a simple read") };
    let response = Answering { read: Some(read), other: None }.await.expect("an answer");
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    assert_eq!(header(&CONTENT_TYPE).as_deref(), Some("text/plain"));
    assert_eq!(header(&ETAG), Some(Etag::of(VALUE).to_string()));
    for uri in ["/things/%31", "/other/1", "/things", "/livez", "/-/map"] {
        assert!(Read::begin(TestRequest::with_uri(uri).finish(), &state).is_err(), "{uri}");
    }
    let put = TestRequest::with_uri("/things/1").method(Method::PUT).finish();
    assert!(Read::begin(put, &state).is_err());
}

#[test]
fn a_hit_allocates_nothing_but_now_and_then_a_buffer() {
    const N: u32 = 10_000;
    let runtime = actix_rt::System::new();
    let state = state(node());
    runtime.block_on(async {
        let view = state.forwarder.watch.view().expect("a view");
        let key = Bytes::from_static(b"1");
        state
            .forwarder
            .ask(crate::forward::Question::Get, &view.regions[0].name, key, Instant::now())
            .await
            .expect("a value");
        hits(&state, 100).await;
    });
    let framework = allocation_counter::measure(|| runtime.block_on(async { (0..N).for_each(|_| drop(request())) }));
    let all = allocation_counter::measure(|| runtime.block_on(hits(&state, N)));
    let ours = all.count_total.saturating_sub(framework.count_total);
    println!("{N} hits: {ours} allocations of ours, {} of the framework for its requests", framework.count_total);
    assert!(ours < u64::from(N / 10), "{ours} allocations for {N} hits");
}
