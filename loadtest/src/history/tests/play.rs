//! Makes histories: clients call a register, each call takes effect at some time, and some reads lie.

use super::*;

/// One call of a client, after its last one.
#[derive(Clone, Debug)]
pub(super) struct Sketch {
    pub(super) client: u64,
    pub(super) key: u64,
    pub(super) what: What,
    /// Since the client's last call returned; more than zero.
    pub(super) gap_us: u64,
    pub(super) length_us: u64,
    /// When it takes effect, since it began.
    pub(super) effect_us: u64,
    pub(super) end: End,
    /// A read answers so instead, if so many values of the key were ever written, or are to be; 0 is absent.
    pub(super) lie: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum What {
    Read,
    Write,
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum End {
    Acknowledged,
    Failed,
    /// It takes effect, maybe long after its return.
    UnknownDone,
    UnknownNever,
}

/// What the clients see.
pub(super) fn play(sketches: &[Sketch]) -> Vec<Operation> {
    let mut clocks: BTreeMap<u64, u64> = BTreeMap::new();
    let mut operations = Vec::new();
    let mut effects = Vec::new();
    for (index, sketch) in sketches.iter().enumerate() {
        let clock_us = clocks.entry(sketch.client).or_default();
        let invoked_us = *clock_us + sketch.gap_us;
        *clock_us = invoked_us + sketch.length_us;
        let call = match sketch.what {
            What::Read => Call::Read,
            What::Write => Call::Write(format!("w{index}")),
            What::Delete => Call::Delete,
        };
        let effect_us = invoked_us + sketch.effect_us;
        let (outcome, effect_us) = match sketch.end {
            End::Acknowledged => (Outcome::Done, Some(effect_us.min(*clock_us))),
            End::Failed => (Outcome::Failed, None),
            End::UnknownDone => (Outcome::Unknown, Some(effect_us)),
            End::UnknownNever => (Outcome::Unknown, None),
        };
        effects.extend(effect_us.map(|effect_us| (effect_us, index)));
        let (client, key, returned_us) = (sketch.client, format!("k{}", sketch.key), Some(*clock_us));
        operations.push(Operation { client, key, call, invoked_us, returned_us, outcome });
    }
    effects.sort_unstable();
    let mut registers: BTreeMap<u64, Option<String>> = BTreeMap::new();
    for (_, index) in effects {
        let register = registers.entry(sketches[index].key).or_default();
        match &operations[index].call {
            Call::Write(value) => *register = Some(value.clone()),
            Call::Delete => *register = None,
            Call::Read if operations[index].outcome == Outcome::Done => {
                operations[index].outcome = Outcome::Found(lie(sketches, index).unwrap_or_else(|| register.clone()));
            }
            Call::Read => {}
        }
    }
    operations
}

fn lie(sketches: &[Sketch], index: usize) -> Option<Option<String>> {
    let lie = sketches[index].lie?;
    let is_write = |(_, sketch): &(usize, &Sketch)| sketch.key == sketches[index].key && sketch.what == What::Write;
    let mut writes = sketches.iter().enumerate().filter(is_write);
    match lie.checked_sub(1) {
        None => Some(None),
        Some(nth) => writes.nth(nth).map(|(write, _)| Some(format!("w{write}"))),
    }
}
