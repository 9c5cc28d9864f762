//! I2 for keys that are changed behind the cache's back too: whoever asks a node gets nothing older than what this node has
//! heard of, nor than what was acknowledged before.

use crate::serving::{Asker, Told};
use crate::world::World;

/// To be called when a node answers.
pub(crate) fn check(world: &mut World, node: usize, asker: Asker, told: Told) {
    let Told::Value { value, .. } = told else { return };
    let place = world.database.place(value);
    if place < asker.floor {
        let what = format!("pod-{node} gives {value}, the change {place}; the change {} was known before", asker.floor);
        world.violation.get_or_insert(format!("I2: {what}"));
    }
}
