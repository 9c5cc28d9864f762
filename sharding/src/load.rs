//! How much is asked of each shard, and what it weighs by that.
//!
//! An owner measures its shards once a second with [`Meters`] and reports them with its requests for the lease; the
//! coordinator makes [`Weights`] of all reports.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::id::{NShards, ShardId};

/// What the shards of a cluster weigh together, but for what is lost by rounding.
pub const WEIGHT_TOTAL: u64 = 1_000_000_000_000;
/// Of the weight of all shards, in per mille, so much goes by requests, where there are enough of them.
const BY_REQUESTS: u64 = 940;
/// And so much by bytes. The rest is the same for each shard: it costs something even when nobody asks for it.
const BY_BYTES: u64 = 40;
/// With fewer requests for a shard in the mean, in thousandths a second, their part shrinks with them.
const REQUESTS_MIN_MILLI: u64 = 1000;
/// With fewer KiB in a shard in the mean, their part shrinks with them.
const KIB_MIN: u64 = 64;
/// A new second counts for one part in so many of a rate.
const SMOOTHING: i64 = 4;
/// Seconds whose plain mean would be as steady as a smoothed rate: twice [`SMOOTHING`] less one.
const STEADY_SECONDS: u64 = 7;

/// The load of a cluster is steady while it changes by no more than one part in so many from one report to the next. Since rates
/// are smoothed, that is when it really grows by half, or falls to half.
const STEADY_PART: u64 = 8;

/// What a shard costs its owner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardLoad {
    /// Thousandths of a request a second.
    pub requests_milli: u32,
    /// Memory of its entries in KiB, rounded up.
    pub kib: u32,
}

/// What an owner has counted of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardCount {
    /// Requests since the shard began to be served here.
    pub requests: u64,
    /// Memory of its entries at this moment.
    pub bytes: u64,
}

/// The rate of one shard.
#[derive(Clone, Copy, Debug)]
struct Meter {
    counted: u64,
    requests_milli: i64,
    /// Seconds in the rate, at most [`SMOOTHING`].
    n_seconds: i64,
}

/// Measures the shards of a node: smooths their rates over some seconds. A shard has a load from its first full second
/// on.
#[derive(Debug, Default)]
pub struct Meters {
    measured: Duration,
    meters: BTreeMap<ShardId, Meter>,
}

impl Meters {
    /// Takes what has been counted of each shard that is served, and gives the loads of those that were there the last
    /// time. To be called about once a second; `now` is by the boot clock.
    pub fn measure(
        &mut self,
        now: Duration,
        counts: impl IntoIterator<Item = (ShardId, ShardCount)>,
    ) -> Vec<(ShardId, ShardLoad)> {
        let passed = now.saturating_sub(self.measured).as_millis().max(1);
        self.measured = now;
        let before = std::mem::take(&mut self.meters);
        let mut loads = Vec::new();
        for (shard, count) in counts {
            let mut meter = Meter { counted: count.requests, requests_milli: 0, n_seconds: 0 };
            // One that counts from nothing again is another, which was begun in the middle of this second.
            if let Some(last) = before.get(&shard)
                && let Some(requests) = count.requests.checked_sub(last.counted)
            {
                let rate = u32::try_from(u128::from(requests) * 1_000_000 / passed).unwrap_or(u32::MAX);
                meter.n_seconds = SMOOTHING.min(last.n_seconds + 1);
                meter.requests_milli = last.requests_milli + (i64::from(rate) - last.requests_milli) / meter.n_seconds;
                let kib = u32::try_from(count.bytes.div_ceil(1024)).unwrap_or(u32::MAX);
                let requests_milli = u32::try_from(meter.requests_milli).expect("it lies between two of its type");
                loads.push((shard, ShardLoad { requests_milli, kib }));
            }
            self.meters.insert(shard, meter);
        }
        loads
    }
}

/// What owners report of their shards: each once a second, at a moment of its own.
///
/// Reports can be compared while the load of the whole cluster is steady. When it gets busy all at once, the one whose report
/// is from before that seems to have no load.
#[derive(Debug)]
pub struct Reports {
    last: Vec<Option<ShardLoad>>,
    before: Vec<Option<ShardLoad>>,
    /// Those before the last ones, as of the last moment at which the load was steady.
    steady: Vec<Option<ShardLoad>>,
}

impl Reports {
    /// Nothing yet.
    #[must_use]
    pub fn new(n_shards: NShards) -> Self {
        let none = vec![None; usize::from(n_shards.get())];
        Self { last: none.clone(), before: none.clone(), steady: none }
    }

    /// Takes what an owner says.
    pub fn take(&mut self, report: impl IntoIterator<Item = (ShardId, ShardLoad)>) {
        for (shard, load) in report {
            if let Some(last) = self.last.get_mut(shard.index()) {
                self.before[shard.index()] = last.replace(load);
            }
        }
        let requests = |loads: &[Option<ShardLoad>]| -> u64 {
            loads.iter().flatten().map(|load| u64::from(load.requests_milli)).sum()
        };
        // What was said for the first time is a change as well: others may have yet to say it. For the same reason the last
        // reports do not count before the next ones have shown that nothing was missing: one of many is too little to be seen in the
        // sum.
        let (before, last) = (requests(&self.before), requests(&self.last));
        if before.abs_diff(last) * STEADY_PART <= before.max(last) {
            self.steady.clone_from(&self.before);
        }
    }

    /// For each shard its load when that of the cluster was steady last, whoever has it now.
    #[must_use]
    pub fn steady(&self) -> &[Option<ShardLoad>] {
        &self.steady
    }
}

/// What each shard weighs, out of [`WEIGHT_TOTAL`]. None weighs nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weights {
    of: Vec<u64>,
    requests_milli: u64,
    /// So much of the weight, in per mille, goes by requests.
    by_requests: u64,
    /// And so much by nothing.
    equal: u64,
}

impl Weights {
    /// All shards weigh the same.
    #[must_use]
    pub fn equal(n_shards: NShards) -> Self {
        Self::new(&vec![None; usize::from(n_shards.get())])
    }

    /// By the loads of all shards. One that nobody has reported is taken to be as the others are in the mean.
    #[must_use]
    pub fn new(loads: &[Option<ShardLoad>]) -> Self {
        let n_shards = u64::try_from(loads.len()).expect("at most 65,535 shards");
        let n_known = u64::try_from(loads.iter().flatten().count()).expect("at most 65,535 shards");
        // Of each shard `n_known` times the load, or the sum of those that are known: a mean without a rounding.
        let scaled = |part: fn(ShardLoad) -> u32| -> Vec<u64> {
            let known = || loads.iter().flatten().map(|load| u64::from(part(*load)));
            let sum: u64 = known().sum();
            loads.iter().map(|load| load.map_or(sum, |load| n_known * u64::from(part(load)))).collect()
        };
        let (requests, kib) = (scaled(|load| load.requests_milli), scaled(|load| load.kib));
        let (all_requests, all_kib) = (requests.iter().sum::<u64>(), kib.iter().sum::<u64>());
        let share = |share: u64, sum: u64, least: u64| {
            let enough = n_known * n_shards * least;
            share * sum.min(enough) / enough.max(1)
        };
        let by_requests = share(BY_REQUESTS, all_requests, REQUESTS_MIN_MILLI);
        let by_bytes = share(BY_BYTES, all_kib, KIB_MIN);
        let equal = 1000 - by_requests - by_bytes;
        let part = |share: u64, of: u64, all: u64| {
            let part = u128::from(WEIGHT_TOTAL / 1000 * share) * u128::from(of) / u128::from(all.max(1));
            u64::try_from(part).expect("a part of the total")
        };
        let weight = |(requests, kib): (&u64, &u64)| {
            let measured = part(by_requests, *requests, all_requests) + part(by_bytes, *kib, all_kib);
            measured + WEIGHT_TOTAL / 1000 * equal / n_shards
        };
        let of = requests.iter().zip(&kib).map(weight).collect();
        Self { of, requests_milli: all_requests / n_known.max(1), by_requests, equal }
    }

    /// For each shard its weight.
    #[must_use]
    pub fn of_shards(&self) -> &[u64] {
        &self.of
    }

    /// The sum.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.of.iter().sum()
    }

    /// In per mille: so much of the weight goes by no measure. All of it in an idle cluster.
    #[must_use]
    pub const fn idle(&self) -> u64 {
        self.equal
    }

    /// Three standard deviations of the load of a node, in per mille of it, that come from the chance by which requests
    /// arrive: the count of `n` requests has one of the root of `n`.
    #[must_use]
    pub fn noise(&self, n_members: usize) -> u64 {
        let n_members = u64::try_from(n_members).expect("members are bounded below 65,536").max(1);
        // A thousand times the root of the requests of a node in all seconds that its rate remembers.
        let root = (self.requests_milli / n_members).saturating_mul(STEADY_SECONDS * 1000).isqrt();
        3 * 1000 * self.by_requests / root.max(1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    const fn load(requests_milli: u32, kib: u32) -> Option<ShardLoad> {
        Some(ShardLoad { requests_milli, kib })
    }

    fn measured(meters: &mut Meters, second: u32, requests: u64) -> Option<u32> {
        let count = ShardCount { requests, bytes: 1025 };
        let loads = meters.measure(second * SECOND, [(ShardId(7), count)]);
        assert!(loads.iter().all(|(shard, load)| (*shard, load.kib) == (ShardId(7), 2)));
        loads.first().map(|(_, load)| load.requests_milli)
    }

    #[test]
    fn the_loads_of_a_cluster_that_gets_busy_are_those_of_before_until_it_is_steady_again() {
        let mut reports = Reports::new(NShards::new(2).expect("not 0"));
        let mut report = |shard, requests_milli| {
            reports.take([(ShardId(shard), ShardLoad { requests_milli, kib: 0 })]);
            [0, 1].map(|shard: usize| reports.steady()[shard].map(|load| load.requests_milli))
        };
        assert_eq!(report(0, 100), [None, None], "nothing was said before");
        assert_eq!(report(1, 100), [None, None]);
        assert_eq!(report(0, 100), [None, None], "the second has said it once");
        assert_eq!(report(1, 100), [Some(100), Some(100)]);
        assert_eq!(report(0, 110), [Some(100), Some(100)]);
        assert_eq!(report(1, 110), [Some(100), Some(100)]);
        // Ten times as much; the second notices later.
        assert_eq!(report(0, 325), [Some(100), Some(100)]);
        assert_eq!(report(1, 325), [Some(100), Some(100)]);
        assert_eq!(report(0, 494), [Some(100), Some(100)]);
        assert_eq!(report(1, 494), [Some(100), Some(100)]);
        assert_eq!(report(0, 620), [Some(100), Some(100)]);
        assert_eq!(report(1, 550), [Some(100), Some(100)]);
        assert_eq!(report(0, 630), [Some(620), Some(494)]);
    }

    #[test]
    fn one_of_many_owners_that_notices_first_is_not_taken_for_busier_than_the_others() {
        let mut reports = Reports::new(NShards::new(16).expect("not 0"));
        let mut report = |shard, requests_milli| {
            reports.take([(ShardId(shard), ShardLoad { requests_milli, kib: 0 })]);
            reports.steady().iter().flatten().map(|load| load.requests_milli).max()
        };
        for at in 0..48 {
            report(at % 16, 100);
        }
        for (round, rate) in (0..).zip([325, 494, 620, 715, 786]) {
            for shard in 0..16 {
                let most = report(shard, rate).expect("known");
                assert!(most == 100 || round == 4 && most == 715, "{round} {shard}: {most}");
            }
        }
    }

    #[test]
    fn a_shard_has_a_rate_from_its_first_full_second_on_and_follows_it_in_some_more() {
        let mut meters = Meters::default();
        assert_eq!(measured(&mut meters, 1, 1000), None);
        assert_eq!(measured(&mut meters, 2, 1100), Some(100_000));
        let rates: Vec<_> = (3..13).filter_map(|second| measured(&mut meters, second, 1100)).collect();
        assert_eq!(rates[..4], [50_000, 33_334, 25_001, 18_751]);
        assert!(rates[9] < 4000, "{rates:?}");
    }

    #[test]
    fn a_shard_that_went_away_or_counts_anew_begins_anew() {
        let mut meters = Meters::default();
        measured(&mut meters, 1, 0);
        assert_eq!(measured(&mut meters, 2, 10), Some(10_000));
        assert_eq!(measured(&mut meters, 3, 9), None);
        assert_eq!(measured(&mut meters, 4, 11), Some(2000));
        assert!(meters.measure(5 * SECOND, []).is_empty());
        assert_eq!(measured(&mut meters, 6, 12), None);
    }

    #[test]
    fn an_idle_cluster_weighs_its_shards_alike() {
        let shards = NShards::new(10).expect("some");
        let equal = Weights::equal(shards);
        assert_eq!((equal.total(), equal.idle(), equal.noise(3)), (WEIGHT_TOTAL, 1000, 0));
        assert_eq!(Weights::new(&[load(0, 0); 10]), equal);
        // One that gets a request every 10 s, where 10 a second would be enough to go by them.
        let mut loads = [load(0, 0); 10];
        loads[3] = load(100, 0);
        let weights = Weights::new(&loads);
        assert_eq!(weights.idle(), 991);
    }

    #[test]
    fn a_busy_cluster_weighs_its_shards_by_requests_first_and_by_bytes_second() {
        let weights = Weights::new(&[load(4000, 1000), load(4000, 3000), load(0, 0), None]);
        let percent = |shard: usize| weights.of_shards()[shard] * 1000 / WEIGHT_TOTAL;
        // The last is taken to be as the three are in the mean: 2.67 requests a second out of 10.67.
        assert_eq!([percent(0), percent(1), percent(2), percent(3)], [365, 380, 5, 250]);
        // 10.67 requests a second for 7 s on 2 nodes: 37.3, the root is 6.1.
        assert_eq!(weights.noise(2), 3 * 1000 * 940 / 6110);
    }

    proptest! {
        #[test]
        fn weights_sum_up_whatever_the_loads(
            loads in proptest::collection::vec(
                proptest::option::of((any::<u32>(), any::<u32>(), 0_u32..32)), 1..300),
        ) {
            let shift = |(requests, kib, bits): (u32, u32, u32)| load(requests >> bits, kib >> bits);
            let loads: Vec<_> = loads.into_iter().map(|one| one.and_then(shift)).collect();
            let weights = Weights::new(&loads);
            prop_assert!(weights.of_shards().iter().all(|weight| *weight > 0));
            prop_assert!(weights.total() <= WEIGHT_TOTAL && WEIGHT_TOTAL - weights.total() < 3 * 300);
        }
    }
}
