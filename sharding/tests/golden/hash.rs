//! Made with the reference implementation of XXH3 (the Python binding of xxHash), not with ours.

use sharding::hash::shard_of;
use sharding::id::{NShards, RegionName, ShardId};
use sharding::wire::Etag;

/// Region, key, and the shard of 1, 1,024 and 65,535.
fn vectors() -> Vec<(&'static str, Vec<u8>, [u16; 3])> {
    vec![
        ("cache-data", b"42".to_vec(), [0, 1015, 64993]),
        ("cache-data", b"1".to_vec(), [0, 315, 20172]),
        ("cache-data", b"a/b".to_vec(), [0, 421, 26964]),
        ("r", vec![0xff, 0x00, 0x80], [0, 376, 24109]),
        ("users_v2", "köln".as_bytes().to_vec(), [0, 461, 29536]),
        ("cache-data", vec![b'k'; 300], [0, 715, 45789]),
        ("cache-data", vec![b'x'; 4096], [0, 922, 59018]),
    ]
}

#[test]
fn a_key_belongs_to_the_same_shard_for_ever() {
    for (region, key, shards) in vectors() {
        let region = RegionName::parse(region).expect("a region's name");
        for (n_shards, shard) in [1, 1024, 65535].into_iter().zip(shards) {
            let n_shards = NShards::new(n_shards).expect("not 0");
            assert_eq!(shard_of(&region, &key, n_shards), ShardId(shard), "{region} {key:?} of {n_shards:?}");
        }
    }
}

#[test]
fn the_etag_is_the_xxh3_128_of_the_value() {
    assert_eq!(Etag::of(b"{\"id\":42}").to_string(), "\"271a3089edb8414d2f267a09d30c4253\"");
    assert_eq!(Etag::of(b"").to_string(), "\"99aa06d3014798d86001c324468d497f\"");
}
