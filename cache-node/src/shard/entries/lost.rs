//! Keys that were in memory and are not any more, though they were not gone.

use crate::metrics::LoadReason;

/// Fewest keys that there is room for.
const MARKS_MIN: usize = 256;

/// For each of them why it will be loaded again. A table of marks, at least as many as there are entries: where two keys meet,
/// the first is forgotten.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// The upper bits of a hash, then which reason. 0: none.
    marks: Box<[u32]>,
}

const REASON_MASK: u32 = 0b11;
const EVICTED: u32 = 1;
const INVALIDATED: u32 = 2;

/// The bits that do not say where the mark is, but for the two that say the reason.
fn upper(hash: u64) -> u32 {
    u32::try_from(hash >> u32::BITS).unwrap_or(0) & !REASON_MASK
}

impl Lost {
    /// Notes that a key is lost: evicted, or invalidated. So many entries are left.
    pub(super) fn note(&mut self, hash: u64, is_evicted: bool, n_entries: usize) {
        if self.marks.len() < n_entries || self.marks.is_empty() {
            // Which keys the old marks stand for cannot be told any more.
            self.marks = vec![0; n_entries.next_power_of_two().max(MARKS_MIN)].into();
        }
        let place = self.place(hash);
        self.marks[place] = upper(hash) | if is_evicted { EVICTED } else { INVALIDATED };
    }

    pub(super) fn forget(&mut self, hash: u64) {
        if self.why(hash).is_some() {
            let place = self.place(hash);
            self.marks[place] = 0;
        }
    }

    /// The reason for which a key will be loaded again.
    pub(super) fn why(&self, hash: u64) -> Option<LoadReason> {
        let mark = self.marks.get(self.place(hash)).filter(|mark| *mark & !REASON_MASK == upper(hash))?;
        match mark & REASON_MASK {
            EVICTED => Some(LoadReason::Evicted),
            INVALIDATED => Some(LoadReason::Invalidated),
            _ => None,
        }
    }

    /// The length is a power of two, or nothing.
    fn place(&self, hash: u64) -> usize {
        usize::try_from(hash & u64::from(u32::MAX)).unwrap_or(0) & self.marks.len().saturating_sub(1)
    }
}
