//! I5: an epoch has one map; no process acts on an epoch older than one that it has seen; and no process that owns has seen less than one that
//! owned the same shard before.

use std::sync::Arc;

use crate::world::World;

pub(super) fn check(world: &mut World) -> Result<(), String> {
    for node in 0..world.machines.len() {
        let Some(life) = &world.machines[node].life else { continue };
        let seen = life.ownership.seen();
        if let Some(map) = life.ownership.map()
            && map.epoch() > seen
        {
            return Err(format!("I5: pod-{node} has a map of epoch {} and says that it saw {seen}", map.epoch()));
        }
        if let Some(map) = life.ownership.map() {
            let known = world.maps.entry(map.epoch()).or_insert_with(|| Arc::clone(map));
            if !Arc::ptr_eq(known, map) && known != map {
                return Err(format!("I5: there are two maps of epoch {}", map.epoch()));
            }
        }
        let identity = life.incarnation;
        let before = world.seen.entry(identity).or_default();
        if seen < *before {
            return Err(format!("I5: pod-{node} has gone back from epoch {before} to {seen}"));
        }
        *before = seen;
    }
    Ok(())
}
