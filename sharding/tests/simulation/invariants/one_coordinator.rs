//! At most one seed acts as coordinator, and its term is higher than that of any before.

use crate::world::World;

pub(super) fn check(world: &mut World) -> Result<(), String> {
    let mut leading = None;
    for (node, machine) in world.machines.iter().enumerate() {
        let Some(seed) = machine.life.as_ref().and_then(|life| life.seed.as_ref()) else { continue };
        if world.is_frozen(node) {
            continue;
        }
        let Some(term) = seed.term(world.now(node)) else { continue };
        if let Some((other, _)) = leading {
            return Err(format!("pod-{other} and pod-{node} both coordinate"));
        }
        leading = Some((node, term));
    }
    if let Some((_, term)) = leading {
        // Terms may be lower than one that nobody remembers; I5 is about what is granted under them.
        world.highest_term = world.highest_term.max(term);
    }
    Ok(())
}
