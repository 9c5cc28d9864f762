//! What must hold after every event; of what clients see, at the end of a run. One file for each.

pub(crate) mod announced;
pub(crate) mod answered;
mod budget;
pub(crate) mod fresh;
mod monotonic;
mod one_coordinator;
mod single_owner;

use crate::world::World;

pub(crate) fn check(world: &mut World) -> Result<(), String> {
    single_owner::check(world)?;
    one_coordinator::check(world)?;
    monotonic::check(world)?;
    budget::check(world)
}
