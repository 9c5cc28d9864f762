//! The shard map and the regions, as far as this router knows: asked for once a period, and at once when a node says
//! that there is something newer.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use actix_web::http::header::HeaderValue;
use arc_swap::ArcSwapOption;
use sharding::epoch::Epoch;
use sharding::map::{Member, ShardMap};
use sharding::wire::{AnswerBody, MapAnswer, RegionInfo, RequestBody};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, timeout};
use transport::upstream::Upstream;

use crate::metrics::Metrics;

/// Longest time that one node may take to tell the map.
const ASK_TIMEOUT: Duration = Duration::from_millis(300);
/// Pause after no node has answered.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Between two words about nodes that tell no map.
const WARN_PERIOD: Duration = Duration::from_secs(5);
/// Longest time that a request waits for the first map.
const FIRST_MAP_PATIENCE: Duration = Duration::from_secs(1);
/// Longest time that a request waits for a map that somebody knows of: whoever knew of it may be gone. It tries on then.
const REACH_PATIENCE: Duration = Duration::from_millis(500);
/// While an owner cannot be reached, the map is asked for so often.
const SUSPECT_PAUSE: Duration = Duration::from_millis(50);

/// What a router knows of its cluster.
#[derive(Debug)]
pub(crate) struct View {
    pub(crate) map: Arc<ShardMap>,
    pub(crate) regions: Vec<RegionInfo>,
    /// What stands in the answers of each region.
    pub(crate) heads: Vec<Head>,
    /// How long a failover takes.
    failover: Duration,
}

/// Headers that all values of a region have.
#[derive(Debug)]
pub(crate) struct Head {
    pub(crate) content_type: HeaderValue,
    pub(crate) cache_control: HeaderValue,
}

impl Head {
    fn of(region: &RegionInfo) -> Self {
        // Nodes refuse a configuration with texts that are no headers.
        let value = |text: &str, other| HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static(other));
        Self {
            content_type: value(&region.content_type, "application/octet-stream"),
            cache_control: value(&region.cache_control, "no-store"),
        }
    }
}

impl View {
    /// Where a region stands in [`View::regions`].
    pub(crate) fn position(&self, name: &str) -> Option<usize> {
        self.regions.iter().position(|region| region.name.as_str() == name)
    }

    pub(crate) fn region(&self, name: &str) -> Option<&RegionInfo> {
        self.position(name).map(|at| &self.regions[at])
    }
}

/// The newest view, for all threads. Only [`MapWatch::run`] changes it, and never to an older map.
#[derive(Debug)]
pub(crate) struct MapWatch {
    view: ArcSwapOption<View>,
    seen: watch::Sender<Option<Epoch>>,
    /// The newest epoch that anybody waits for, and a node that knows of it.
    wish: Mutex<(Epoch, Option<String>)>,
    wanted: Notify,
    suspected: Notify,
    /// Since when an owner could not be reached, by this map.
    suspected_since: Mutex<Option<Instant>>,
    metrics: Arc<Metrics>,
    seeds: Vec<Member>,
}

impl MapWatch {
    pub(crate) fn new(seeds: Vec<Member>, metrics: Arc<Metrics>) -> Self {
        let (view, seen) = (ArcSwapOption::empty(), watch::Sender::new(None));
        let suspected_since = Mutex::default();
        Self {
            view,
            seen,
            suspected_since,
            wish: Mutex::default(),
            wanted: Notify::new(),
            suspected: Notify::new(),
            metrics,
            seeds,
        }
    }

    /// The seeds of the cluster.
    pub(crate) fn seeds(&self) -> &[Member] {
        &self.seeds
    }

    /// The newest view; `None` until some node has answered.
    pub(crate) fn view(&self) -> Option<Arc<View>> {
        self.view.load_full()
    }

    /// The newest view. Before the first one, waits for it a while: an application may ask as soon as it has started, which
    /// is as soon as its router listens.
    pub(crate) async fn first_view(&self) -> Option<Arc<View>> {
        if let Some(view) = self.view() {
            return Some(view);
        }
        let mut seen = self.seen.subscribe();
        // It came or not: that is looked at next.
        let _ = timeout(FIRST_MAP_PATIENCE, seen.wait_for(Option::is_some)).await;
        self.view()
    }

    /// Waits for a map of this epoch or a newer one, of which the node at `address` knows; a while.
    pub(crate) async fn reach(&self, epoch: Epoch, address: &str) {
        let reached = |seen: &Option<Epoch>| seen.is_some_and(|seen| seen >= epoch);
        if !reached(&self.seen.borrow()) {
            let mut wish = self.wish();
            *wish = (wish.0.max(epoch), Some(address.to_owned()));
            drop(wish);
            self.wanted.notify_one();
        }
        let mut seen = self.seen.subscribe();
        // It came or not: the owner by the newest map is asked next.
        let _ = timeout(REACH_PATIENCE, seen.wait_for(reached)).await;
    }

    /// Somebody could not reach an owner: there may be a newer map soon.
    pub(crate) fn suspect(&self) {
        self.suspected_since().get_or_insert_with(Instant::now);
        self.suspected.notify_one();
    }

    /// When an owner that cannot be reached will have a successor: what is left of a failover.
    pub(crate) fn retry_after(&self) -> Duration {
        let failover = self.view().map_or(Duration::ZERO, |view| view.failover);
        let since = *self.suspected_since();
        since.map_or(failover, |since| failover.saturating_sub(since.elapsed()))
    }

    fn suspected_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.suspected_since.lock().expect("nothing panics while it holds the lock")
    }

    /// Keeps the view fresh, for ever.
    pub(crate) async fn run(&self, upstream: &Upstream, period: Duration) {
        let (mut turn, mut warned) = (0, None::<Instant>);
        loop {
            let refreshed = self.refresh(upstream, turn).await;
            let pause = if refreshed.is_ok() { period } else { RETRY_PAUSE };
            if let Err(error) = refreshed
                && warned.is_none_or(|warned| warned.elapsed() >= WARN_PERIOD)
            {
                log::warn!("no node tells the shard map that is wanted, trying on: {error}");
                warned = Some(Instant::now());
            }
            turn += 1;
            // However it ends, it is time to ask again.
            tokio::select! {
                () = self.wanted.notified() => {}
                () = self.suspected.notified() => tokio::select! {
                    () = self.wanted.notified() => {}
                    () = sleep(SUSPECT_PAUSE) => {}
                },
                () = sleep(pause) => {}
            }
        }
    }

    fn wish(&self) -> MutexGuard<'_, (Epoch, Option<String>)> {
        self.wish.lock().expect("nothing panics while it holds the lock")
    }

    /// Asks one node after the other until one answers with what is wished for: first who was named, then all in turn.
    async fn refresh(&self, upstream: &Upstream, turn: usize) -> Result<(), String> {
        let view = self.view();
        let known = view.as_ref().map_or(&[][..], |view| view.map.members());
        let mut addresses: Vec<&str> = known.iter().chain(&self.seeds).map(|member| member.data.as_str()).collect();
        addresses.dedup();
        let n_addresses = addresses.len();
        addresses.rotate_left(turn % n_addresses.max(1));
        let (wished, hint) = {
            let mut wish = self.wish();
            (wish.0, wish.1.take())
        };

        let mut last_error = "there is no node to ask".to_owned();
        for address in hint.as_deref().into_iter().chain(addresses) {
            let deadline = Instant::now() + ASK_TIMEOUT;
            match upstream.ask(address, None, RequestBody::GetMap, deadline).await {
                Ok(AnswerBody::Map(answer)) => {
                    let epoch = answer.map.epoch();
                    self.take(*answer);
                    if epoch >= wished {
                        return Ok(());
                    }
                    last_error = format!("{address} knows no newer map than {epoch}; wanted is {wished}");
                }
                Ok(AnswerBody::Failed(failure)) => last_error = format!("{address}: {}", failure.message),
                Ok(_) => last_error = format!("{address} answers something else; is it a node of this release?"),
                Err(error) => last_error = error.to_string(),
            }
        }
        Err(last_error)
    }

    /// Takes what is newer; of the same map the regions, which a node started anew may have changed.
    pub(crate) fn take(&self, answer: MapAnswer) {
        let epoch = answer.map.epoch();
        if let Some(view) = self.view() {
            let is_news = epoch > view.map.epoch() || (epoch == view.map.epoch() && answer.regions != view.regions);
            if !is_news {
                return;
            }
        }
        log::info!(epoch:%, nodes = answer.map.members().len(); "a new shard map");
        self.metrics.map_term.set(i64::try_from(epoch.term.counter).unwrap_or(i64::MAX));
        self.metrics.map_epoch.set(i64::try_from(epoch.seq).unwrap_or(i64::MAX));
        let MapAnswer { map, regions, failover } = answer;
        let heads = regions.iter().map(Head::of).collect();
        self.view.store(Some(Arc::new(View { map, regions, heads, failover })));
        *self.suspected_since() = None;
        self.seen.send_replace(Some(epoch));
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::registry::Registry;
    use sharding::epoch::Term;
    use sharding::id::{NShards, RegionName};

    use super::*;

    fn answer(seq: u64, region: &str) -> MapAnswer {
        let members = Member::parse_list("a=h:1").expect("a list");
        let epoch = Epoch { term: Term { counter: 1, seed: 0 }, seq };
        let map = ShardMap::assigned(epoch, NShards::DEFAULT, members).expect("a map");
        let name = RegionName::parse(region).expect("a name");
        let regions = vec![RegionInfo {
            name,
            content_type: "text/plain".to_owned(),
            cache_control: "no-cache".to_owned(),
            writes: false,
        }];
        MapAnswer { map: Arc::new(map), regions, failover: Duration::from_millis(1574) }
    }

    #[test]
    fn an_older_map_is_never_taken_and_the_same_one_only_for_its_regions() {
        let watch = MapWatch::new(Vec::new(), Arc::new(Metrics::new(&mut Registry::default())));
        let seen = |watch: &MapWatch| {
            let view = watch.view().expect("a view");
            (view.map.epoch().seq, view.regions[0].name.as_str().to_owned())
        };
        watch.take(answer(2, "two"));
        watch.take(answer(1, "one"));
        assert_eq!(seen(&watch), (2, "two".to_owned()));
        watch.take(answer(2, "other"));
        assert_eq!(seen(&watch), (2, "other".to_owned()));
        watch.take(answer(3, "three"));
        assert_eq!(seen(&watch), (3, "three".to_owned()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_before_the_first_map_waits_for_it_a_while() {
        let watch = MapWatch::new(Vec::new(), Arc::new(Metrics::new(&mut Registry::default())));
        assert!(watch.first_view().await.is_none(), "nobody told one");
        let (view, ()) = tokio::join!(watch.first_view(), async { watch.take(answer(1, "one")) });
        assert!(view.is_some(), "it came while it was waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_map_that_nobody_tells_is_not_waited_for_for_long() {
        let watch = MapWatch::new(Vec::new(), Arc::new(Metrics::new(&mut Registry::default())));
        watch.take(answer(1, "one"));
        let epoch = |seq| Epoch { term: Term { counter: 1, seed: 0 }, seq };
        let began = Instant::now();
        watch.reach(epoch(3), "h:1").await;
        assert_eq!(began.elapsed(), REACH_PATIENCE);
        tokio::join!(watch.reach(epoch(3), "h:1"), async { watch.take(answer(3, "three")) });
        assert_eq!(began.elapsed(), REACH_PATIENCE, "it came while it was waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_of_a_failover_is_when_to_come_again() {
        let watch = MapWatch::new(Vec::new(), Arc::new(Metrics::new(&mut Registry::default())));
        watch.take(answer(1, "one"));
        watch.suspect();
        tokio::time::advance(Duration::from_millis(1000)).await;
        watch.suspect();
        assert_eq!(watch.retry_after(), Duration::from_millis(574));
        watch.take(answer(2, "two"));
        assert_eq!(watch.retry_after(), Duration::from_millis(1574));
    }
}
