//! Writes that were acknowledged and are gone. Needs no search, and is easy to believe.

use std::collections::BTreeMap;
use std::fmt;

use super::{Operation, Outcome};

/// A key whose last value is not one of those that it may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The register.
    pub key: String,
    /// What it has at the end; `None` is absent.
    pub found: Option<String>,
    /// The acknowledged writes and deletes that nothing has replaced: one of them should be there.
    pub writes: Vec<Operation>,
}

/// The keys that have lost acknowledged writes. `last` is what each key has once all is quiet; a key that is not in it
/// is absent.
///
/// A key may have what an acknowledged write stored, unless an acknowledged write that began after it had returned has
/// replaced it; what any unknown write would store, for it may come at any time; and nothing, as at first, if nothing
/// was acknowledged. Deletes are writes of "absent".
#[must_use]
pub fn lost_writes(operations: &[Operation], last: &BTreeMap<String, Option<String>>) -> Vec<Lost> {
    let mut by_key: BTreeMap<&str, Vec<&Operation>> = last.keys().map(|key| (key.as_str(), Vec::new())).collect();
    for operation in operations.iter().filter(|operation| operation.stored().is_some()) {
        by_key.entry(&operation.key).or_default().push(operation);
    }
    let of_key = |(key, stores): (&str, Vec<&Operation>)| {
        let found = last.get(key).cloned().flatten();
        lost_of_key(key, found, &stores)
    };
    by_key.into_iter().filter_map(of_key).collect()
}

fn lost_of_key(key: &str, found: Option<String>, stores: &[&Operation]) -> Option<Lost> {
    let acknowledged = || stores.iter().filter(|store| store.outcome == Outcome::Done);
    let last_began_us = acknowledged().map(|store| store.invoked_us).max();
    let is_replaced = |store: &Operation| store.acknowledged_us() < last_began_us;
    let writes: Vec<Operation> =
        acknowledged().filter(|store| !is_replaced(store)).map(|&store| store.clone()).collect();

    let may_have = |store: &Operation| store.stored() == Some(found.as_deref());
    let is_unknown = |store: &&&Operation| store.outcome == Outcome::Unknown;
    let is_first = writes.is_empty() && found.is_none();
    let is_fine =
        is_first || writes.iter().any(may_have) || stores.iter().filter(is_unknown).any(|store| may_have(store));
    (!is_fine).then(|| Lost { key: key.to_owned(), found, writes })
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, found, writes } = self;
        match found {
            Some(found) => write!(f, "key {key:?} has {found:?}, but what was acknowledged last is:")?,
            None => write!(f, "key {key:?} is absent, but what was acknowledged last is:")?,
        }
        writes.iter().try_for_each(|write| write!(f, "\n{write}"))
    }
}
