//! Entries in the order in which they came, one after the other in a few large pieces of memory.
//!
//! A piece for each entry would cost more: the allocator's own bytes, and holes of sizes that nobody asks for again, since
//! entries live long among much that does not. Here what is taken out leaves a hole as well, but the segment with the most
//! holes is cleaned: what is left in it goes to the end of the log. So is done in log-structured memory (Rumble, Kejriwal,
//! Ousterhout: "Log-structured memory for DRAM-based storage", FAST 2014).

use std::collections::VecDeque;

use super::record::{RECORD_BYTES_MAX, Record};

/// A new segment has one in so many of the bytes that are in use, so that little is empty in a small log.
const SEGMENT_PART: usize = 16;
/// It has no less than that, and no more.
const SEGMENT_BYTES_MIN: usize = 4 * 1024;
const SEGMENT_BYTES_MAX: u32 = 64 * 1024;
const _: () = assert!(RECORD_BYTES_MAX < SEGMENT_BYTES_MAX as usize);
/// One in so many of the bytes that are in use may be in holes.
const HOLES_PART: usize = 8;
/// Beside as many as there are others, so many segments may be without memory.
const GAPS_MAX: usize = 8;
/// Most segments that are cleaned at a time: nobody is served meanwhile. What is left is cleaned with the next changes.
const CLEANED_MAX: usize = 4;

/// Where an entry lies in its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    /// Segments are numbered through; after the last number comes the first.
    pub(super) segment: u32,
    /// Of the segment's bytes.
    pub(super) at: u32,
}

impl Spot {
    /// The largest `at` that there is.
    pub(super) const AT_MAX: u32 = SEGMENT_BYTES_MAX - 1;

    fn new(segment: u32, at: usize) -> Self {
        Self { segment, at: u32::try_from(at).expect("within a segment") }
    }
}

#[derive(Debug, Default)]
struct Segment {
    /// Records, one after the other. Never longer than the capacity that it was made with.
    bytes: Vec<u8>,
    /// What is before was popped.
    begin: usize,
    n_live: usize,
    /// Bytes of what was taken out.
    holes: usize,
}

impl Segment {
    const fn is_gap(&self) -> bool {
        self.bytes.capacity() == 0
    }

    fn record(&self, at: usize) -> Record<&[u8]> {
        Record::first_of(&self.bytes[at..])
    }

    /// What is not dead, and where.
    fn live(&self) -> impl Iterator<Item = (usize, Record<&[u8]>)> {
        let mut at = self.begin;
        let next = move || {
            let record = (at < self.bytes.len()).then(|| (at, self.record(at)))?;
            at += record.1.bytes().len();
            Some(record)
        };
        std::iter::from_fn(next).filter(|(_, record)| !record.is_dead())
    }
}

/// First in, first out, but for what is taken out of the middle and what is moved for it.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The last one is written to. One that has nothing alive has no memory, unless it is the last; it stays until all before
    /// it are gone.
    segments: VecDeque<Segment>,
    /// Segments without memory.
    n_gaps: usize,
    /// Number of the first.
    first: u32,
    len: usize,
    /// What the entries are charged for.
    charge: u64,
    /// Bytes of all records that were not popped.
    used: usize,
    /// Bytes of those that were taken out.
    holes: usize,
}

impl Log {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn charge(&self) -> u64 {
        self.charge
    }

    fn index(&self, spot: Spot) -> usize {
        spot.segment.wrapping_sub(self.first) as usize
    }

    fn number(&self, index: usize) -> u32 {
        self.first.wrapping_add(u32::try_from(index).expect("fewer segments than numbers"))
    }

    pub(super) fn get(&self, spot: Spot) -> Record<&[u8]> {
        self.segments[self.index(spot)].record(spot.at as usize)
    }

    pub(super) fn get_mut(&mut self, spot: Spot) -> Record<&mut [u8]> {
        let len = self.get(spot).bytes().len();
        let (index, at) = (self.index(spot), spot.at as usize);
        Record(&mut self.segments[index].bytes[at..at + len])
    }

    /// Puts a record at the end.
    pub(super) fn push(&mut self, record: &Record<impl AsRef<[u8]>>) -> Spot {
        let bytes = record.bytes();
        let has_room = |last: &Segment| last.bytes.capacity() - last.bytes.len() >= bytes.len();
        if !self.segments.back().is_some_and(has_room) {
            let size = (self.used / SEGMENT_PART).clamp(SEGMENT_BYTES_MIN, SEGMENT_BYTES_MAX as usize);
            // Room for whole records, if all are as long as this one.
            let size = (size / bytes.len()).max(1) * bytes.len();
            let bytes = Vec::with_capacity(size);
            match self.segments.back_mut().filter(|last| last.n_live == 0 && !last.is_gap()) {
                Some(last) => last.bytes = bytes,
                None => self.segments.push_back(Segment { bytes, ..Segment::default() }),
            }
        }
        let last = self.segments.len() - 1;
        let segment = &mut self.segments[last];
        let at = segment.bytes.len();
        segment.bytes.extend_from_slice(bytes);
        segment.n_live += 1;
        self.len += 1;
        self.used += bytes.len();
        self.charge += record.charge();
        Spot::new(self.number(last), at)
    }

    /// Takes the first record out, and says where it was.
    pub(super) fn pop(&mut self) -> Option<(Spot, Record<Vec<u8>>)> {
        let first = self.segments.front_mut()?;
        let (at, record) = first.live().next()?;
        let record = Record(record.bytes().to_vec());
        let end = at + record.bytes().len();
        // Holes before it are popped with it.
        let holes = at - first.begin;
        self.used -= end - first.begin;
        self.holes -= holes;
        first.holes -= holes;
        first.begin = end;
        let spot = Spot::new(self.first, at);
        self.leave(0, record.charge());
        Some((spot, record))
    }

    /// Takes a record out of the middle.
    pub(super) fn take(&mut self, spot: Spot) {
        let mut record = self.get_mut(spot);
        record.kill();
        let (bytes, charge, index) = (record.bytes().len(), record.charge(), self.index(spot));
        self.segments[index].holes += bytes;
        self.holes += bytes;
        self.leave(index, charge);
    }

    /// A record of a segment is not alive any more.
    fn leave(&mut self, index: usize, charge: u64) {
        self.charge -= charge;
        self.len -= 1;
        self.segments[index].n_live -= 1;
        if self.segments[index].n_live > 0 {
            return;
        }
        let goes_on = self.len > 0 && index + 1 == self.segments.len();
        let mut segment = self.clear(index);
        if goes_on {
            // Others come there; it still has its place, since something before it is alive.
            segment.bytes.clear();
            self.segments[index] = Segment { bytes: segment.bytes, ..Segment::default() };
            self.n_gaps -= 1;
        }
    }

    /// Gives back the memory of a segment that has nothing alive.
    fn clear(&mut self, index: usize) -> Segment {
        let segment = std::mem::take(&mut self.segments[index]);
        self.used -= segment.bytes.len() - segment.begin;
        self.holes -= segment.holes;
        self.n_gaps += 1;
        while let Some(first) = self.segments.front().filter(|first| first.n_live == 0) {
            self.n_gaps -= usize::from(first.is_gap());
            self.segments.pop_front();
            self.first = self.first.wrapping_add(1);
        }
        segment
    }

    /// Puts a record in the place of one that is as long.
    pub(super) fn replace(&mut self, spot: Spot, record: &Record<impl AsRef<[u8]>>) {
        let place = self.get_mut(spot);
        let before = place.charge();
        place.0.copy_from_slice(record.bytes());
        self.charge = self.charge - before + record.charge();
    }

    /// Closes holes and gaps if there are too many; tells of every record that is elsewhere now, and where it was.
    pub(super) fn clean(&mut self, mut moved: impl FnMut(Record<&[u8]>, Spot, Spot)) {
        for _ in 0..CLEANED_MAX {
            let index = if self.n_gaps > self.segments.len() / 2 + GAPS_MAX {
                // It holds those behind it.
                0
            } else if self.holes > (self.used / HOLES_PART).max(SEGMENT_BYTES_MIN) {
                let by_holes = self.segments.iter().enumerate().max_by_key(|(_, segment)| segment.holes);
                by_holes.map_or(0, |(index, _)| index)
            } else {
                return;
            };
            let number = self.number(index);
            let old = self.clear(index);
            for (at, record) in old.live() {
                self.len -= 1;
                self.charge -= record.charge();
                let spot = self.push(&record);
                moved(record, Spot::new(number, at), spot);
            }
        }
    }

    /// Panics when its counts are wrong, or it takes more memory than it may.
    #[cfg(test)]
    pub(super) fn check(&self) {
        let holes: usize = self.segments.iter().map(|segment| segment.holes).sum();
        let used: usize = self.segments.iter().map(|segment| segment.bytes.len() - segment.begin).sum();
        let live: usize = self.iter().map(|(_, record)| record.bytes().len()).sum();
        assert_eq!((self.holes, self.used, self.used - self.holes), (holes, used, live));
        assert_eq!(self.len, self.iter().count());
        assert!(holes <= (used / HOLES_PART).max(SEGMENT_BYTES_MIN), "{holes} of {used} bytes are holes");
        let capacity: usize = self.segments.iter().map(|segment| segment.bytes.capacity()).sum();
        let room = SEGMENT_BYTES_MIN.max(RECORD_BYTES_MAX);
        assert!(capacity <= 2 * (used + room) + room, "{capacity} bytes for {used}");
        assert!(self.segments.front().is_none_or(|first| first.n_live > 0), "what is dead is given back");
        assert_eq!(self.n_gaps, self.segments.iter().filter(|segment| segment.is_gap()).count());
        assert!(self.n_gaps <= self.segments.len() / 2 + GAPS_MAX, "{} of {}", self.n_gaps, self.segments.len());
    }

    /// All records, the oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Spot, Record<&[u8]>)> {
        self.segments.iter().enumerate().flat_map(|(index, of)| {
            let segment = self.number(index);
            of.live().map(move |(at, record)| (Spot::new(segment, at), record))
        })
    }
}
