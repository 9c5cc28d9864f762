//! I6: every request that a node has taken is answered, and once.

use std::time::Duration;

use crate::world::World;

/// When nothing else goes on, an answer comes within this time.
const WAIT_MAX: Duration = Duration::from_millis(2500);

pub(crate) fn check(world: &World) -> Result<(), String> {
    for (node, machine) in world.machines.iter().enumerate() {
        let Some(life) = &machine.life else { continue };
        let (twice, wait) = (life.serving.n_answered_twice, life.serving.longest_wait(world.now(node)));
        if twice > 0 {
            return Err(format!("I6: pod-{node} has answered {twice} requests twice"));
        }
        if wait > WAIT_MAX {
            return Err(format!("I6: pod-{node} has not answered for {wait:?}"));
        }
    }
    Ok(())
}
