//! Single-flight: at most one load of a key at a time, and all who want it wait for that one.
//!
//! A flight belongs to the shard, not to a request: a waiter that goes away leaves alone, and the load goes on. Nobody
//! is stranded: whoever drops a waiter answers it (its `Drop` does).

use std::collections::HashMap;

use bytes::Bytes;

/// Which load of a key: one that was given up and came back late is told apart from its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlightId(u64);

/// Position of a region, and the key.
pub type FlightKey = (usize, Bytes);

/// Whether the caller has to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Boarding {
    /// Nobody does: start one under this id.
    Lead(FlightId),
    /// Somebody does.
    Joined,
}

#[derive(Debug)]
struct Flight<W> {
    id: FlightId,
    waiters: Vec<W>,
}

/// A flight that nobody may join any more: its value may be older than what somebody was promised since.
#[derive(Debug)]
struct Cut<W> {
    key: FlightKey,
    flight: Flight<W>,
}

/// The loads of a shard that are in the air.
#[derive(Debug)]
pub struct Flights<W> {
    by_key: HashMap<FlightKey, Flight<W>>,
    cut: Vec<Cut<W>>,
    next_id: u64,
}

impl<W> Default for Flights<W> {
    fn default() -> Self {
        Self { by_key: HashMap::new(), cut: Vec::new(), next_id: 0 }
    }
}

impl<W> Flights<W> {
    /// None in the air.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Joins the flight of a key, or begins one. Without a waiter it is a refresh that nobody waits for.
    pub fn board(&mut self, key: FlightKey, waiter: Option<W>) -> Boarding {
        if let Some(flight) = self.by_key.get_mut(&key) {
            flight.waiters.extend(waiter);
            return Boarding::Joined;
        }
        let id = FlightId(self.next_id);
        self.next_id += 1;
        self.by_key.insert(key, Flight { id, waiters: waiter.into_iter().collect() });
        Boarding::Lead(id)
    }

    /// Ends a flight: its waiters, in the order in which they came, and whether it was cut. `None` when it is not in the
    /// air any more.
    pub fn land(&mut self, key: &FlightKey, id: FlightId) -> Option<(Vec<W>, bool)> {
        if let Some(place) = self.place_of_cut(key, id) {
            return Some((self.cut.swap_remove(place).flight.waiters, true));
        }
        if self.by_key.get(key)?.id != id {
            return None;
        }
        self.by_key.remove(key).map(|flight| (flight.waiters, false))
    }

    fn place_of_cut(&self, key: &FlightKey, id: FlightId) -> Option<usize> {
        self.cut.iter().position(|cut| cut.flight.id == id && cut.key == *key)
    }

    /// Cuts flights: whoever waits for one goes on to, and is answered by it; whoever comes begins another.
    pub fn cut(&mut self, is_old: impl Fn((usize, &[u8])) -> bool) {
        let old = self.by_key.extract_if(|key, _| is_old((key.0, &key.1)));
        self.cut.extend(old.map(|(key, flight)| Cut { key, flight }));
    }

    /// Who waits for a flight, in the order in which they came.
    pub fn waiters(&self, key: &FlightKey, id: FlightId) -> impl Iterator<Item = &W> {
        let flight = match self.place_of_cut(key, id) {
            Some(place) => Some(&self.cut[place].flight),
            None => self.by_key.get(key).filter(|flight| flight.id == id),
        };
        flight.into_iter().flat_map(|flight| &flight.waiters)
    }

    /// Takes some who wait out of a flight that goes on, or of none.
    pub fn part(&mut self, key: &FlightKey, id: FlightId, leaves: impl Fn(&W) -> bool) -> Vec<W> {
        let flight = match self.place_of_cut(key, id) {
            Some(place) => Some(&mut self.cut[place].flight),
            None => self.by_key.get_mut(key).filter(|flight| flight.id == id),
        };
        flight.map(|flight| flight.waiters.extract_if(.., |waiter| leaves(waiter)).collect()).unwrap_or_default()
    }

    /// Whether none is in the air, cut ones included.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty() && self.cut.is_empty()
    }

    /// Whether there is a flight of this key that may be joined.
    #[must_use]
    pub fn is_in_the_air(&self, key: &FlightKey) -> bool {
        self.by_key.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> FlightKey {
        (0, Bytes::from("k"))
    }

    #[test]
    fn one_leads_and_the_others_join() {
        let mut flights = Flights::new();
        let Boarding::Lead(id) = flights.board(key(), Some(1)) else { panic!("the first leads") };
        assert_eq!(flights.board(key(), Some(2)), Boarding::Joined);
        assert_eq!(flights.board(key(), None), Boarding::Joined);
        assert!(matches!(flights.board((1, Bytes::from("k")), Some(3)), Boarding::Lead(_)), "another region's key");
        assert_eq!(flights.land(&key(), id), Some((vec![1, 2], false)));
        assert!(!flights.is_in_the_air(&key()));
    }

    #[test]
    fn who_leaves_leaves_alone() {
        let mut flights = Flights::new();
        let Boarding::Lead(id) = flights.board(key(), Some(1)) else { panic!("the first leads") };
        flights.board(key(), Some(2));
        assert_eq!(flights.part(&key(), id, |waiter| *waiter == 1), [1]);
        assert_eq!(flights.board(key(), Some(3)), Boarding::Joined);
        assert_eq!(flights.land(&key(), id), Some((vec![2, 3], false)));
        assert!(flights.part(&key(), id, |_| true).is_empty());
    }

    #[test]
    fn a_load_that_comes_back_late_is_not_taken_for_its_successor() {
        let mut flights = Flights::new();
        let Boarding::Lead(first) = flights.board(key(), Some(1)) else { panic!("the first leads") };
        flights.land(&key(), first);
        let Boarding::Lead(second) = flights.board(key(), Some(2)) else { panic!("the next leads") };
        assert_eq!(flights.land(&key(), first), None);
        assert_eq!(flights.land(&key(), second), Some((vec![2], false)));
    }

    #[test]
    fn nobody_joins_a_flight_that_was_cut_and_its_waiters_are_not_lost() {
        let mut flights = Flights::new();
        let Boarding::Lead(first) = flights.board(key(), Some(1)) else { panic!("the first leads") };
        flights.cut(|(region, found)| region == 0 && found.starts_with(b"k"));
        let Boarding::Lead(second) = flights.board(key(), Some(2)) else { panic!("it begins another") };
        flights.cut(|(region, _)| region == 1);
        assert_eq!(flights.part(&key(), first, |_| false), [0; 0]);
        assert_eq!(flights.land(&key(), first), Some((vec![1], true)));
        assert_eq!(flights.land(&key(), second), Some((vec![2], false)));
        assert_eq!(flights.land(&key(), first), None);
    }
}
