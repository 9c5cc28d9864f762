use sharding::id::NShards;
use sharding::map::Member;
use sharding::times::Times;
use sharding::wire::{Hello, Join, PROTOCOL};

use super::*;

/// A greeting for lane 0.
fn hello(protocol: u16) -> Vec<u8> {
    let mut bytes = bytes::BytesMut::new();
    Hello { protocol, lane: 0 }.encode(&mut bytes);
    bytes.to_vec()
}

#[test]
fn a_broken_frame_ends_its_connection_and_is_counted() {
    let it = Scene::new("INSERT INTO things VALUES ('a', 'b')").start();
    assert_eq!(it.get(0, "/things/a").text().expect("text"), "b");
    let owner = it.owner("things", "a");
    let connections = it.sum("cache_node_connections", &[]);
    let with_hello = |frame: &[u8]| [&hello(PROTOCOL), frame].concat();
    for (what, bytes, reason) in [
        ("HTTP instead of frames", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(), "too_long"),
        ("a request before the greeting", b"\x05\x00\x00\x00\x04\x01\x00\x00\x00".to_vec(), "no_greeting"),
        ("an unknown kind", with_hello(b"\x01\x00\x00\x00\xee"), "kind"),
        ("a truncated body", with_hello(b"\x03\x00\x00\x00\x02\x00\x00"), "length"),
        ("a length beyond the bound", with_hello(b"\xff\xff\xff\x7f"), "too_long"),
        ("an empty frame", with_hello(b"\x00\x00\x00\x00"), "length"),
    ] {
        let labels = format!("reason=\"{reason}\"");
        let counted = || it.sum("cache_node_connections_closed_total", &[&labels]);
        let before = counted();
        raw(it.cluster.data_address(owner), &bytes);
        eventually(&format!("{what} is counted as {reason}"), || counted() == before + 1.0);
    }
    let before = it.sum("cache_node_connections_closed_total", &["reason=\"io\""]);
    {
        let mut stream = TcpStream::connect(it.cluster.data_address(owner)).expect("connects");
        stream.write_all(&with_hello(b"\x40\x00\x00\x00\x10")).expect("sent");
        stream.shutdown(std::net::Shutdown::Write).expect("half closed");
        // Reads the welcome, then the end.
        stream.read_to_end(&mut Vec::new()).expect("closed");
    }
    eventually("a frame that stops midway is counted", || {
        it.sum("cache_node_connections_closed_total", &["reason=\"io\""]) == before + 1.0
    });
    assert!(header(&it.get(0, "/things/a"), "cache-status").contains("; hit"));
    assert_eq!(it.sum("cache_node_connections", &[]), connections, "the routers' connections were left alone");
}

#[test]
fn a_router_of_another_protocol_is_refused_with_a_reason() {
    let it = Scene::new("").start();
    let answer = raw(it.cluster.data_address(0), &hello(99));
    assert!(answer.contains("protocol"), "{answer:?}");
    eventually("the refusal is counted", || {
        it.sum("cache_node_connections_closed_total", &["reason=\"refused\""]) == 1.0
    });
}

/// Else one vote could count twice: a name may be found at an address that is another seed's by now.
#[test]
fn a_node_that_means_another_seed_is_refused() {
    let it = Scene::new("").start();
    let seeds: Vec<String> = (0..3).map(|pod| format!("pod-{pod}={}", it.cluster.data_address(pod))).collect();
    let seeds = Member::parse_list(&seeds.join(",")).expect("a list");
    let cluster = sharding::hash::cluster(&seeds, NShards::DEFAULT, &Times::default());
    let join = |cluster, seed| {
        let mut bytes = bytes::BytesMut::new();
        Join::new(cluster, seed).encode(&mut bytes);
        raw(it.cluster.data_address(0), &bytes)
    };
    assert!(join(cluster, 1).contains("not the seed that was meant"));
    assert!(join(cluster + 1, 0).contains("are not the other's"));
    eventually("both are counted", || it.sum("cache_node_connections_closed_total", &["reason=\"refused\""]) == 2.0);
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let it = Scene::new("").start();
    let began = Instant::now();
    assert_eq!(raw(it.cluster.data_address(0), b""), "");
    assert!(began.elapsed() < PATIENCE);
    eventually("its silence is counted", || {
        it.sum("cache_node_connections_closed_total", &["reason=\"greeting_timeout\""]) == 1.0
    });
}
