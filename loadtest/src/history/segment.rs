//! Cuts the history of a key at quiet moments, and goes from one to the next.
//!
//! A moment is quiet when no step is open, not counting unknown deletes, which are open for ever. In any order of the
//! whole, all steps that ended before a quiet moment come before all that begin after it. So the whole has an order if,
//! and only if, each segment has one that starts with what the register can have where the last segment ended. Of an
//! end only two things matter to what comes after:
//!
//! - The value. If a value is read both before and after the moment, the register must have it there. If not, what
//!   matters is whether it is absent (if that is still read): any other value is as good as [`Value::Unread`].
//! - How many of the unknown deletes that have begun are still to come. Which they are does not matter, as all of them
//!   have begun, and none ends. More is never worse, as they may never come. So of each value the most is carried.
//!
//! Which unknown deletes a segment uses does not matter either, if it is the first that began: one that began earlier
//! can come wherever one that began later did. And it needs no more of them than it has reads of "absent": one that no
//! read sees can be left out, or left to the next segment.

use std::collections::BTreeMap;
use std::iter::repeat_n;

use super::Operation;
use super::reduce::{Act, Rank, Reduced, Step, Value, reduce};
use super::search::{Budget, Question, Spent, is_possible};

/// Steps of the longest segment that is tried: the search needs memory by the square of it.
pub(super) const SEGMENT_MAX: usize = 500;

/// Whether the history of a key is linearizable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Fine { longest_segment: usize },
    Impossible,
    Undecided { segment: usize },
}

/// What happens between two quiet moments.
#[derive(Default)]
struct Segment {
    steps: Vec<Step>,
    unknown_deletes: Vec<Rank>,
    /// The string that must be there at its end.
    held: Option<Value>,
    /// Whether "absent" is read after its end.
    is_absence_read_later: bool,
}

/// What the register can have at a quiet moment, and with each the most unknown deletes that may still come.
type Ends = BTreeMap<Value, usize>;

/// Decides about the operations of one key, unless the budget is spent before.
pub(super) fn decide(operations: &[&Operation], budget: &Budget) -> Verdict {
    let Some(reduced) = reduce(operations) else {
        return Verdict::Impossible;
    };
    let mut longest_segment = 0;
    let mut ends = Ends::from([(Value::Absent, 0)]);
    for segment in cut(&reduced) {
        let length = segment.steps.len();
        longest_segment = longest_segment.max(length);
        if length > SEGMENT_MAX {
            return Verdict::Undecided { segment: length };
        }
        ends = match segment.ends(&ends, budget) {
            Ok(ends) if ends.is_empty() => return Verdict::Impossible,
            Ok(ends) => ends,
            Err(Spent) => return Verdict::Undecided { segment: length },
        };
    }
    Verdict::Fine { longest_segment }
}

fn cut(reduced: &Reduced) -> Vec<Segment> {
    let mut steps = reduced.steps.clone();
    steps.sort_unstable_by_key(|step| step.from);
    let is_absence = |step: &&Step| step.act == Act::Read(Value::Absent);
    let last_absence = steps.iter().filter(is_absence).map(|step| step.to).max();

    let mut segments: Vec<Segment> = Vec::new();
    let mut end = None;
    let mut held = None;
    for step in steps {
        // Nothing is open when all that have begun have ended.
        if Some(step.from) > end {
            segments.push(Segment::default());
        }
        let segment = segments.last_mut().expect("the first step is after no end");
        end = end.max(Some(step.to));
        match step.act {
            Act::Write(value @ Value::Of(_)) => held = Some(value),
            Act::Read(Value::Of(_)) => held = None,
            Act::Write(_) | Act::Read(_) => {}
        }
        segment.steps.push(step);
        segment.held = held;
        segment.is_absence_read_later = end < last_absence;
    }
    // A delete that began at a quiet moment is of the next segment. After the last segment none is needed.
    for &began in &reduced.unknown_deletes {
        let ends_later = |segment: &&mut Segment| segment.steps.iter().any(|step| began < step.to);
        if let Some(segment) = segments.iter_mut().find(ends_later) {
            segment.unknown_deletes.push(began);
        }
    }
    segments
}

impl Segment {
    /// What the register can have at the end, given what it can have at the start: nothing if there is no order.
    fn ends(&self, starts: &Ends, budget: &Budget) -> Result<Ends, Spent> {
        let mut ends = Ends::new();
        for (&start, &pending) in starts {
            // Those that are pending began before anything in here.
            let deletes: Vec<Rank> = repeat_n(0, pending).chain(self.unknown_deletes.iter().copied()).collect();
            for end in self.ends_that_matter() {
                let Some(used) = self.least_deletes(start, &deletes, end, budget)? else {
                    // If it cannot end in any way, it cannot end in a certain one.
                    break;
                };
                let left = ends.entry(end.unwrap_or(Value::Unread)).or_default();
                *left = (*left).max(deletes.len() - used);
            }
        }
        Ok(ends)
    }

    fn ends_that_matter(&self) -> Vec<Option<Value>> {
        match self.held {
            Some(value) => vec![Some(value)],
            None if self.is_absence_read_later => vec![None, Some(Value::Absent)],
            None => vec![None],
        }
    }

    /// How many of the deletes, the first that began, it takes to come to this end; `None` if there is no way.
    fn least_deletes(
        &self,
        start: Value,
        deletes: &[Rank],
        end: Option<Value>,
        budget: &Budget,
    ) -> Result<Option<usize>, Spent> {
        let absences = self.steps.iter().filter(|step| step.act == Act::Read(Value::Absent)).count();
        for used in 0..=absences.min(deletes.len()) {
            let question = Question { start, steps: &self.steps, deletes: &deletes[..used], end };
            if is_possible(&question, budget)? {
                return Ok(Some(used));
            }
        }
        Ok(None)
    }
}
