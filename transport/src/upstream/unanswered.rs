//! Requests without an answer, by their ids.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

/// A row that a burst made longer is given back when it is empty.
const ROW_KEPT: usize = 1024;

/// What waits under ids that count up. Most is answered soon, and in the order in which it was asked, or nearly: so those of
/// late lie in a row, where an id is a place; who waits for longer moves to a table. The row has a place for everything that
/// was asked since [`Unanswered::age`] was called last but one.
pub(super) struct Unanswered<T> {
    /// `None`: not there any more.
    row: VecDeque<Option<T>>,
    /// Id of the first of the row.
    first: u32,
    /// Id of the first that has come since [`Unanswered::age`].
    young: u32,
    older: FxHashMap<u32, T>,
    len: usize,
}

impl<T> Default for Unanswered<T> {
    fn default() -> Self {
        Self { row: VecDeque::new(), first: 0, young: 0, older: FxHashMap::default(), len: 0 }
    }
}

impl<T> Unanswered<T> {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// The id of what is put in next.
    pub(super) fn next_id(&self) -> u32 {
        self.first.wrapping_add(u32::try_from(self.row.len()).expect("a row is bounded by what is asked in a while"))
    }

    /// Gives it [`Unanswered::next_id`].
    pub(super) fn insert(&mut self, waiting: T) -> u32 {
        let id = self.next_id();
        self.row.push_back(Some(waiting));
        self.len += 1;
        id
    }

    fn place(&self, id: u32) -> usize {
        id.wrapping_sub(self.first) as usize
    }

    pub(super) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.place(id) {
            place if place < self.row.len() => self.row[place].as_mut(),
            _ => self.older.get_mut(&id),
        }
    }

    pub(super) fn remove(&mut self, id: u32) -> Option<T> {
        let removed = match self.place(id) {
            place if place < self.row.len() => self.row[place].take(),
            _ => self.older.remove(&id),
        };
        self.len -= usize::from(removed.is_some());
        self.trim();
        removed
    }

    fn trim(&mut self) {
        while let Some(None) = self.row.front() {
            self.row.pop_front();
            self.first = self.first.wrapping_add(1);
        }
    }

    /// Moves those out of the row that were there already when this was called last: to be called from time to time, lest one
    /// that waits for long keeps the row from becoming shorter.
    pub(super) fn age(&mut self) {
        let next_id = self.next_id();
        // When all that is older was answered, `first` has passed `young`, and this is more than half of all numbers.
        let n_old = self.young.wrapping_sub(self.first);
        if n_old <= u32::MAX / 2 {
            for waiting in self.row.drain(..n_old as usize) {
                if let Some(waiting) = waiting {
                    self.older.insert(self.first, waiting);
                }
                self.first = self.first.wrapping_add(1);
            }
        }
        self.young = next_id;
        self.trim();
        if self.row.is_empty() {
            self.row.shrink_to(ROW_KEPT);
        }
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.older.values().chain(self.row.iter().flatten())
    }

    /// Takes all out.
    pub(super) fn drain(&mut self) -> Vec<T> {
        self.len = 0;
        self.first = self.next_id();
        self.older.drain().map(|(_, waiting)| waiting).chain(self.row.drain(..).flatten()).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u8),
        Remove(prop::sample::Index),
        Age,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => any::<u8>().prop_map(Step::Insert),
            3 => any::<prop::sample::Index>().prop_map(Step::Remove),
            1 => Just(Step::Age),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map(steps in prop::collection::vec(step(), 0..200), first in prop_oneof![Just(0), u32::MAX - 50..]) {
            let mut unanswered = Unanswered { first, young: first, ..Unanswered::default() };
            let mut map = BTreeMap::new();
            let mut given = Vec::new();
            for step in steps {
                match step {
                    Step::Insert(value) => {
                        let id = unanswered.insert(value);
                        prop_assert!(map.insert(id, value).is_none());
                        given.push(id);
                    }
                    Step::Remove(_) if given.is_empty() => {}
                    Step::Remove(index) => {
                        let id = *index.get(&given);
                        prop_assert_eq!(unanswered.get_mut(id).copied(), map.get(&id).copied());
                        prop_assert_eq!(unanswered.remove(id), map.remove(&id));
                    }
                    Step::Age => unanswered.age(),
                }
                prop_assert_eq!(unanswered.len(), map.len());
                prop_assert!(unanswered.row.front().is_none_or(Option::is_some));
            }
            let mut values: Vec<u8> = unanswered.values().copied().collect();
            let mut expected: Vec<u8> = map.into_values().collect();
            expected.sort_unstable();
            values.sort_unstable();
            prop_assert_eq!(&values, &expected);
            let mut drained = unanswered.drain();
            drained.sort_unstable();
            prop_assert_eq!(drained, expected);
            prop_assert_eq!(unanswered.len(), 0);
        }
    }

    #[test]
    fn one_that_waits_for_long_does_not_make_the_row_long() {
        let mut unanswered = Unanswered::default();
        let slow = unanswered.insert(0);
        for round in 1..100 {
            for _ in 0..10 {
                let id = unanswered.insert(round);
                assert_eq!(unanswered.remove(id), Some(round));
            }
            unanswered.age();
            assert!(unanswered.row.len() <= 20);
        }
        assert_eq!(unanswered.remove(slow), Some(0));
    }
}
