//! Loads that wait for a database, and which of them leave together: decided without a clock or a thread.
//!
//! A load leaves at once while there is headroom: fewer operations in flight than may be, a slot of the budget, a database
//! that answers. While there is none, loads gather, and those of one region leave in one operation, in the order in which
//! they are wanted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::Load;
use super::breaker::{Breaker, State};

/// Loads of one region in the order in which they are wanted.
type Waiting = BTreeMap<(Instant, u64), Load>;

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By region.
    waiting: BTreeMap<usize, Waiting>,
    n_waiting: usize,
    /// Batches, and parts of such, that have been sent before; they go first.
    parts: VecDeque<Vec<Load>>,
    n_taken: u64,
    in_flight: usize,
    pub(super) breaker: Breaker,
}

/// What a queue does next.
#[derive(Debug)]
pub(super) enum Next {
    /// There may be a batch: whoever has a slot for it takes it with [`Queue::take`].
    Batch,
    /// Nothing before this time.
    At(Instant),
    /// Nothing before something else happens.
    Idle,
}

impl Queue {
    pub(super) fn push(&mut self, load: Load) {
        self.n_taken += 1;
        self.n_waiting += 1;
        self.waiting.entry(load.region).or_default().insert((load.wanted_by, self.n_taken), load);
    }

    /// A batch has run past its time: its halves are sent each alone, so that one key cannot hold the rest.
    pub(super) fn split(&mut self, mut batch: Vec<Load>) {
        let half = batch.split_off(batch.len() / 2);
        self.parts.extend([batch, half].into_iter().filter(|part| !part.is_empty()));
    }

    /// A batch has met no database: it is sent once more.
    pub(super) fn again(&mut self, batch: Vec<Load>) {
        self.parts.push_back(batch);
    }

    pub(super) fn next(&self, now: Instant, in_flight_max: usize) -> Next {
        if self.n_operations(1).is_none() {
            return Next::Idle;
        }
        match self.breaker.state(now) {
            State::Open if self.in_flight < in_flight_max => Next::Batch,
            State::Probing if self.in_flight == 0 => Next::Batch,
            State::Open | State::Probing => Next::Idle,
            State::Closed(until) => Next::At(until),
        }
    }

    /// How many operations what waits would make; `None`: nothing waits.
    pub(super) fn n_operations(&self, keys_max: usize) -> Option<usize> {
        let n = self.parts.len() + self.waiting.values().map(|loads| loads.len().div_ceil(keys_max)).sum::<usize>();
        (n > 0).then_some(n)
    }

    /// The next batch: of the region whose load is wanted first. Empty, if nobody waits any more for any of it. Counts as in
    /// flight until [`Queue::landed`] otherwise.
    pub(super) fn take(&mut self, now: Instant, keys_max: usize) -> Vec<Load> {
        let is_wanted = |load: &Load| load.until > now && !load.done.is_closed();
        let mut batch = match self.parts.pop_front() {
            Some(part) => part,
            None => self.take_first(keys_max, is_wanted),
        };
        batch.retain(is_wanted);
        self.in_flight += usize::from(!batch.is_empty());
        batch
    }

    fn take_first(&mut self, keys_max: usize, is_wanted: impl Fn(&Load) -> bool) -> Vec<Load> {
        let first = |waiting: &Waiting| waiting.first_key_value().map(|(place, _)| *place);
        let region = self.waiting.iter().min_by_key(|(_, waiting)| first(waiting)).map(|(region, _)| *region);
        let Some(mut entry) = region.map(|region| (region, self.waiting.remove(&region).unwrap_or_default())) else {
            return Vec::new();
        };
        let mut batch = Vec::new();
        while batch.len() < keys_max
            && let Some((_, load)) = entry.1.pop_first()
        {
            self.n_waiting -= 1;
            batch.extend(is_wanted(&load).then_some(load));
        }
        if !entry.1.is_empty() {
            self.waiting.insert(entry.0, entry.1);
        }
        batch
    }

    /// An operation has come back.
    pub(super) const fn landed(&mut self) {
        self.in_flight -= 1;
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<Load> {
        self.n_waiting = 0;
        let waiting = std::mem::take(&mut self.waiting).into_values().flat_map(BTreeMap::into_values);
        self.parts.drain(..).flatten().chain(waiting).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;
    use tokio::sync::oneshot;

    use super::*;
    use crate::loading::Landing;
    use crate::metrics::LoadReason;

    struct Scene {
        queue: Queue,
        start: Instant,
        /// Who waits for the loads.
        landings: Vec<Landing>,
    }

    impl Scene {
        fn new() -> Self {
            Self { queue: Queue::default(), start: Instant::now(), landings: Vec::new() }
        }

        fn push(&mut self, region: usize, key: &'static str, wanted_in_ms: u64) {
            let (done, landing) = oneshot::channel();
            self.landings.push(landing);
            let wanted_by = self.start + Duration::from_millis(wanted_in_ms);
            let until = self.start + Duration::from_secs(10);
            let (key, reason) = (Bytes::from(key), LoadReason::Cold);
            self.queue.push(Load { region, key, reason, wanted_by, until, done, _room: None, is_again: false });
        }

        fn take(&mut self, keys_max: usize) -> Vec<Bytes> {
            self.queue.take(self.start, keys_max).into_iter().map(|load| load.key.clone()).collect()
        }

        fn next(&self, in_flight_max: usize) -> Next {
            self.queue.next(self.start, in_flight_max)
        }
    }

    #[test]
    fn what_is_wanted_first_leaves_first_with_others_of_its_region() {
        let mut scene = Scene::new();
        for (region, key, wanted) in [(0, "a", 30), (1, "b", 20), (0, "c", 10), (0, "d", 40)] {
            scene.push(region, key, wanted);
        }
        assert_eq!(scene.queue.n_operations(2), Some(3));
        assert_eq!(scene.take(2), ["c", "a"]);
        assert_eq!(scene.take(2), ["b"]);
        assert_eq!(scene.take(2), ["d"]);
        assert!(matches!(scene.next(10), Next::Idle));
    }

    #[test]
    fn no_more_are_in_flight_than_may_be() {
        let mut scene = Scene::new();
        ["a", "b"].into_iter().for_each(|key| scene.push(0, key, 1));
        assert!(matches!(scene.next(1), Next::Batch));
        scene.take(1);
        assert!(matches!(scene.next(1), Next::Idle));
        scene.queue.landed();
        assert!(matches!(scene.next(1), Next::Batch));
    }

    #[test]
    fn a_batch_that_is_split_goes_on_in_halves() {
        let mut scene = Scene::new();
        ["a", "b", "c", "d", "e"].into_iter().for_each(|key| scene.push(0, key, 1));
        let batch = scene.queue.take(scene.start, 3);
        scene.queue.landed();
        scene.queue.split(batch);
        assert_eq!(
            (scene.take(10), scene.take(10), scene.take(10)),
            (vec!["a".into()], vec!["b".into(), "c".into()], vec!["d".into(), "e".into()])
        );
    }

    #[test]
    fn a_load_that_nobody_waits_for_any_more_does_not_leave() {
        let mut scene = Scene::new();
        ["a", "b"].into_iter().for_each(|key| scene.push(0, key, 1));
        scene.landings.remove(0);
        assert_eq!(scene.take(1), ["b"], "the batch is filled by who is left");
    }

    #[test]
    fn a_database_that_does_not_answer_is_probed_by_one_operation() {
        let mut scene = Scene::new();
        ["a", "b"].into_iter().for_each(|key| scene.push(0, key, 1));
        for _ in 0..3 {
            scene.queue.breaker.handle_failure(scene.start, 0.0);
        }
        let Next::At(until) = scene.next(10) else { panic!("it is left alone") };
        scene.start = until;
        assert!(matches!(scene.next(10), Next::Batch));
        scene.take(1);
        assert!(matches!(scene.next(10), Next::Idle), "one is enough to see");
    }
}
