//! I2 of the model: an owner never keeps a value older than the last write.

use crate::world::{N_SHARDS, World};

pub(super) fn check(world: &World) -> Result<(), String> {
    for (node, machine) in world.machines.iter().enumerate() {
        let Some(life) = &machine.life else { continue };
        if world.is_frozen(node) || !life.ownership.holds(world.now(node)) {
            continue;
        }
        for shard in 0..usize::from(N_SHARDS) {
            let newest = world.database[shard];
            if let Some(kept) = life.entries[shard]
                && life.mask & (1 << shard) != 0
                && kept != newest
            {
                return Err(format!("I2: pod-{node} serves {kept} of shard {shard}; the database has {newest}"));
            }
        }
    }
    Ok(())
}
