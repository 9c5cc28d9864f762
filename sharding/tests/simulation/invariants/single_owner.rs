//! I1: the lease intervals of a shard never overlap.

use crate::world::World;

pub(super) fn check(world: &World) -> Result<(), String> {
    let mut taken = 0_u64;
    for (node, machine) in world.machines.iter().enumerate() {
        let Some(life) = &machine.life else { continue };
        // A process that stands still counts: its clock runs on, and so does its lease. A machine whose clock stands
        // still does nothing, and looks at both clocks before it does something again.
        if world.is_frozen(node) || !life.ownership.holds(world.now(node)) {
            continue;
        }
        if taken & life.mask != 0 {
            return Err(format!("I1: pod-{node} and another own the shards {:#x}", taken & life.mask));
        }
        taken |= life.mask;
    }
    Ok(())
}
