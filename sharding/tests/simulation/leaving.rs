//! Nodes that leave, and those that take their places.

use sharding::seed::Seed;

use crate::world::World;

impl World {
    /// A node drains.
    pub(crate) fn leave(&mut self, node: usize) {
        let now = self.now(node);
        if self.is_running(node)
            && let Some(life) = &mut self.machines[node].life
            && !std::mem::replace(&mut life.is_leaving, true)
        {
            life.ownership.handle_leave(now);
            self.drive(node);
        }
    }

    /// A node has no time left to give its shards away with their entries; one that leaves, to wait for others that do.
    pub(crate) fn hurry(&mut self, node: usize) {
        let now = self.now(node);
        if self.is_running(node)
            && let Some(life) = &mut self.machines[node].life
        {
            if life.is_leaving {
                life.is_hurried = true;
                life.seed.iter_mut().for_each(Seed::handle_hurry);
            }
            life.ownership.handle_hurry(now);
            self.drive(node);
        }
    }

    pub(crate) fn is_anybody_leaving(&self) -> bool {
        self.machines.iter().any(|machine| machine.life.as_ref().is_some_and(|life| life.is_leaving))
    }

    /// Whoever is dead or has left comes anew.
    pub(crate) fn start_those_who_are_gone(&mut self) {
        for node in 0..self.machines.len() {
            if self.machines[node].life.as_ref().is_none_or(|life| life.has_left) {
                self.start(node);
            }
        }
    }
}
