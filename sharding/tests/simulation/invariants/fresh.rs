//! I2: what clients see of a key is what they would see of a single copy of it (it is linearizable).
//!
//! Every write leaves another value, so it is enough to look at zones (Gibbons, Korach, "Testing shared memories", SIAM
//! Journal on Computing 26(4), 1997). The cluster of a value is its write and its reads. Its zone lies between the first
//! end and the last beginning of those: when the end comes first, all the time between the value must have been there.
//! So no two such zones overlap, and none has the zone of another value, however short, within it.

use std::collections::BTreeMap;

use crate::database::Value;
use crate::history::{History, OPEN, Op};

/// A value, from its write to its last read.
struct Cluster {
    value: Value,
    write_began: u64,
    first_end: u64,
    last_began: u64,
}

impl Cluster {
    /// All the time from the first end to the last beginning the key has this value.
    const fn is_forward(&self) -> bool {
        self.first_end < self.last_began
    }
}

pub(crate) fn check(history: &History) -> Result<(), String> {
    for (key, ops) in history.keys() {
        check_key(ops).map_err(|violation| format!("I2: key {key}: {violation}"))?;
    }
    Ok(())
}

/// Whether a key's operations are linearizable. It has the value 0 before all of them, and their moments are above 0.
fn check_key(ops: &[Op]) -> Result<(), String> {
    let clusters = clusters(ops)?;
    let (mut forward, backward): (Vec<_>, Vec<_>) = clusters.into_iter().partition(Cluster::is_forward);
    forward.sort_unstable_by_key(|cluster| cluster.first_end);
    for pair in forward.windows(2) {
        if pair[1].first_end < pair[0].last_began {
            return Err(broken(ops, &pair[0], &pair[1]));
        }
    }
    for inner in &backward {
        let outer = forward.partition_point(|outer| outer.first_end < inner.last_began);
        if let Some(outer) = outer.checked_sub(1).map(|place| &forward[place])
            && inner.first_end < outer.last_began
        {
            return Err(broken(ops, outer, inner));
        }
    }
    Ok(())
}

fn clusters(ops: &[Op]) -> Result<Vec<Cluster>, String> {
    let mut clusters = BTreeMap::from([(0, Cluster { value: 0, write_began: 0, first_end: 0, last_began: 0 })]);
    for &Op { value, began, ended, .. } in ops.iter().filter(|op| op.is_write) {
        clusters.insert(value, Cluster { value, write_began: began, first_end: ended, last_began: began });
    }
    for read in ops.iter().filter(|op| !op.is_write) {
        let Some(cluster) = clusters.get_mut(&read.value) else {
            return Err(format!("{read}: it was never written"));
        };
        if read.ended < cluster.write_began {
            return Err(format!("{read}: it was written later"));
        }
        cluster.first_end = cluster.first_end.min(read.ended);
        cluster.last_began = cluster.last_began.max(read.began);
    }
    // What may have been written, and nobody has read, tells nothing.
    Ok(clusters.into_values().filter(|cluster| cluster.first_end != OPEN).collect())
}

/// Tells of two values that cannot be put one after the other.
fn broken(ops: &[Op], one: &Cluster, other: &Cluster) -> String {
    let first = |value| ops.iter().filter(move |op| op.value == value).min_by_key(|op| op.ended);
    let last = |value| ops.iter().filter(move |op| op.value == value).max_by_key(|op| op.began);
    let ops = [first(one.value), last(one.value), first(other.value), last(other.value)];
    let ops: Vec<String> = ops.into_iter().flatten().map(ToString::to_string).collect();
    format!("{} and {} cannot be put in order: {}", one.value, other.value, ops.join(", "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use stateright::semantics::register::{Register, RegisterOp, RegisterRet};
    use stateright::semantics::{ConsistencyTester, LinearizabilityTester};

    use super::*;

    /// Operations of a few clients, each with one at a time, in an order by chance; with what stateright says of them.
    fn small_history(chance: &mut fastrand::Rng) -> (Vec<Op>, bool) {
        let mut tester = LinearizabilityTester::new(Register(0));
        let mut doing: [Option<Op>; 4] = [None; 4];
        let (mut ops, mut n_writes) = (Vec::new(), 0);
        for moment in 1..=chance.u64(4..15) {
            let client = chance.usize(..doing.len());
            let Some(mut op) = doing[client].take() else {
                let is_write = chance.bool();
                n_writes += u64::from(is_write);
                let real = (Duration::ZERO, Duration::ZERO);
                doing[client] = Some(Op { is_write, value: n_writes, began: moment, ended: OPEN, real });
                let invoked = if is_write { RegisterOp::Write(n_writes) } else { RegisterOp::Read };
                tester.on_invoke(client, invoked).expect("one at a time");
                continue;
            };
            op.ended = moment;
            if !op.is_write {
                // Mostly something new; sometimes what is not written yet.
                op.value = (n_writes + 1).saturating_sub(chance.u64(..4));
            }
            ops.push(op);
            let returned = if op.is_write { RegisterRet::WriteOk } else { RegisterRet::ReadOk(op.value) };
            tester.on_return(client, returned).expect("it was invoked");
        }
        ops.extend(doing.into_iter().flatten().filter(|op| op.is_write));
        (ops, tester.is_consistent())
    }

    #[test]
    fn small_histories_are_judged_as_by_stateright() {
        let mut chance = fastrand::Rng::with_seed(1);
        let mut n_of = [0, 0];
        for _ in 0..20_000 {
            let (ops, is_linearizable) = small_history(&mut chance);
            let said = check_key(&ops);
            assert_eq!(said.is_ok(), is_linearizable, "{said:?}: {ops:#?}");
            n_of[usize::from(is_linearizable)] += 1;
        }
        println!("{} histories linearizable, {} not", n_of[1], n_of[0]);
        assert!(n_of.iter().all(|n| *n > 4_000), "{n_of:?}");
    }
}
