//! Loads that wait for a database, and which of them leave together: decided without a clock or a thread.
//!
//! A load leaves at once while there is headroom: fewer operations in flight than may be, a slot of the budget, a database
//! that answers. While there is none, loads gather, and those of one region leave in one operation, in the order in which
//! they are wanted.

use std::collections::{BTreeMap, VecDeque};
use std::time::Instant;

use super::Load;
use super::breaker::{Breaker, State};

/// Loads of one region.
#[derive(Debug, Default)]
struct Waiting {
    /// In the order in which they are wanted.
    loads: BTreeMap<(Instant, u64), Load>,
    /// Those among them that somebody waits for.
    n_awaited: usize,
}

impl Waiting {
    fn pop(&mut self) -> Option<Load> {
        let (_, load) = self.loads.pop_first()?;
        self.n_awaited -= usize::from(load.is_awaited);
        Some(load)
    }
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    /// By region; none is empty.
    waiting: BTreeMap<usize, Waiting>,
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
        let waiting = self.waiting.entry(load.region).or_default();
        waiting.n_awaited += usize::from(load.is_awaited);
        waiting.loads.insert((load.wanted_by, self.n_taken), load);
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

    /// Forgets loads that nobody waits for any more, at least those before the first that is wanted.
    fn purge(&mut self, now: Instant) {
        self.parts.iter_mut().for_each(|part| part.retain(|load| load.is_wanted(now)));
        self.parts.retain(|part| !part.is_empty());
        for waiting in self.waiting.values_mut() {
            while waiting.loads.first_key_value().is_some_and(|(_, load)| !load.is_wanted(now)) {
                waiting.pop();
            }
        }
        self.waiting.retain(|_, waiting| !waiting.loads.is_empty());
    }

    pub(super) fn next(&mut self, now: Instant, in_flight_max: usize) -> Next {
        self.purge(now);
        if self.parts.is_empty() && self.waiting.is_empty() {
            return Next::Idle;
        }
        match self.breaker.state(now) {
            State::Open if self.in_flight >= in_flight_max => Next::Idle,
            State::Open | State::Probing => Next::Batch,
            State::Closed(until) => Next::At(until),
        }
    }

    /// How many operations what waits would make.
    pub(super) fn n_operations(&self, keys_max: usize) -> usize {
        self.parts.len() + self.waiting.values().map(|waiting| waiting.loads.len().div_ceil(keys_max)).sum::<usize>()
    }

    /// How many of them go before a load that somebody waits for, who has just come.
    pub(super) fn n_awaited_operations(&self, keys_max: usize) -> usize {
        self.parts.len() + self.waiting.values().map(|waiting| waiting.n_awaited.div_ceil(keys_max)).sum::<usize>()
    }

    /// The next batch: of the region whose load is wanted first. It counts as in flight until [`Queue::landed`].
    ///
    /// Requires: [`Queue::next`] has said that there is one.
    pub(super) fn take(&mut self, now: Instant, keys_max: usize) -> Vec<Load> {
        if self.breaker.state(now) == State::Probing {
            self.breaker.handle_probe(now);
        }
        self.in_flight += 1;
        if let Some(part) = self.parts.pop_front() {
            return part;
        }
        let first = |(_, waiting): &(&usize, &Waiting)| waiting.loads.first_key_value().map(|(place, _)| *place);
        let region = self.waiting.iter().min_by_key(first).map(|(region, _)| *region);
        let Some(waiting) = region.and_then(|region| self.waiting.get_mut(&region)) else { return Vec::new() };
        let mut batch = Vec::new();
        while batch.len() < keys_max
            && let Some(load) = waiting.pop()
        {
            batch.extend(load.is_wanted(now).then_some(load));
        }
        batch
    }

    /// An operation has come back.
    pub(super) const fn landed(&mut self) {
        self.in_flight -= 1;
    }

    /// Everything that waits.
    pub(super) fn drain(&mut self) -> Vec<Load> {
        let waiting = std::mem::take(&mut self.waiting).into_values().flat_map(|waiting| waiting.loads.into_values());
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
            self.queue.push(Load {
                region,
                key,
                reason,
                wanted_by,
                until,
                done,
                _room: None,
                is_awaited: true,
                is_again: false,
            });
        }

        fn take(&mut self, keys_max: usize) -> Vec<Bytes> {
            assert!(matches!(self.next(100), Next::Batch));
            self.queue.take(self.start, keys_max).into_iter().map(|load| load.key.clone()).collect()
        }

        fn next(&mut self, in_flight_max: usize) -> Next {
            self.queue.next(self.start, in_flight_max)
        }
    }

    #[test]
    fn what_is_wanted_first_leaves_first_with_others_of_its_region() {
        let mut scene = Scene::new();
        for (region, key, wanted) in [(0, "a", 30), (1, "b", 20), (0, "c", 10), (0, "d", 40)] {
            scene.push(region, key, wanted);
        }
        assert_eq!((scene.queue.n_operations(2), scene.queue.n_awaited_operations(2)), (3, 3));
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
            scene.queue.breaker.handle_failure(scene.start, scene.start, 0.0);
        }
        let Next::At(until) = scene.next(10) else { panic!("it is left alone") };
        scene.start = until;
        assert_eq!(scene.take(1), ["a"]);
        assert!(matches!(scene.next(10), Next::At(_)), "one is enough to see");
    }
}
