//! I4: in no second does the database see more operations than the budget and one for each seed.

use std::time::Duration;

use crate::world::{BUDGET, World};

const SECOND: Duration = Duration::from_secs(1);

pub(super) fn check(world: &mut World) -> Result<(), String> {
    // What is over and was looked at.
    let old = world.real.saturating_sub(2 * SECOND);
    world.operations = world.operations.split_off(&old);
    let n_seeds = u32::try_from(world.n_seeds).expect("few");
    let most = BUDGET.lent() + n_seeds * BUDGET.floor(n_seeds).slots;
    assert!(most <= BUDGET.0.get() + n_seeds, "floors of less than one a second count as one");
    let (mut in_second, mut from) = (0, world.operations.iter().peekable());
    for (at, n) in &world.operations {
        in_second += n;
        while let Some((_, n)) = from.next_if(|(first, _)| **first + SECOND <= *at) {
            in_second -= n;
        }
        if in_second > most {
            return Err(format!("I4: {in_second} operations in the second before {at:?}, at most {most} are allowed"));
        }
    }
    Ok(())
}
