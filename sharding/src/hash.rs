//! From a key to its shard. Frozen for ever: every router and node of every release must agree, or a value would be
//! held twice. The golden vectors in `tests/golden` hold it.

use twox_hash::XxHash3_64;

use crate::id::{NShards, RegionName, ShardId};
use crate::map::Member;
use crate::times::Times;

/// Region and key up to this many bytes are hashed without an allocation.
const INLINE_BYTES: usize = 256;

/// The shard of a key: `(xxh3_64(region ++ 0x00 ++ key, seed 0) * n_shards) >> 64`, the product taken in 128 bits.
///
/// XXH3 as specified at <https://github.com/Cyan4973/xxHash>. The multiplication takes the shard from the top bits, so
/// that a hash table inside a shard does not meet the same bits again.
#[must_use]
pub fn shard_of(region: &RegionName, key: &[u8], n_shards: NShards) -> ShardId {
    let hash = hash(region.as_str().as_bytes(), key);
    let shard = (u128::from(hash) * u128::from(n_shards.get())) >> 64;
    ShardId(u16::try_from(shard).expect("a 64-bit hash times n_shards, shifted by 64, is below n_shards"))
}

fn hash(region: &[u8], key: &[u8]) -> u64 {
    let len = region.len() + 1 + key.len();
    if len > INLINE_BYTES {
        return XxHash3_64::oneshot(&[region, &[0], key].concat());
    }
    let mut bytes = [0; INLINE_BYTES];
    bytes[..region.len()].copy_from_slice(region);
    bytes[region.len() + 1..len].copy_from_slice(key);
    XxHash3_64::oneshot(&bytes[..len])
}

/// Hash of what all nodes of a cluster must agree on: its seeds, in their order, its number of shards, and how long
/// leases last (who grants one and who holds it count it alike).
#[must_use]
pub fn cluster(seeds: &[Member], n_shards: NShards, times: &Times) -> u64 {
    let seeds: Vec<String> = seeds.iter().map(Member::to_string).collect();
    let leases = [times.coordinator_lease, times.lease, times.skew_max];
    XxHash3_64::oneshot(format!("{} {leases:?} {}", n_shards.get(), seeds.join(",")).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_inline_and_the_allocated_way_agree() {
        let long = vec![7; 2 * INLINE_BYTES];
        for len in [0, 1, INLINE_BYTES - 3, INLINE_BYTES - 2, INLINE_BYTES - 1, 2 * INLINE_BYTES] {
            let key = &long[..len];
            assert_eq!(hash(b"r", key), XxHash3_64::oneshot(&[b"r".as_slice(), &[0], key].concat()), "{len} bytes");
        }
    }

    #[test]
    fn a_region_and_a_key_cannot_be_shifted_into_each_other() {
        assert_ne!(hash(b"ab", b"c"), hash(b"a", b"bc"));
    }
}
