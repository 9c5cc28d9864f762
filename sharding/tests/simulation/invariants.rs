//! What must hold after every event. One file for each.

mod budget;
mod fresh;
mod monotonic;
mod one_coordinator;
mod single_owner;

use crate::world::World;

pub(crate) fn check(world: &mut World) -> Result<(), String> {
    single_owner::check(world)?;
    one_coordinator::check(world)?;
    monotonic::check(world)?;
    fresh::check(world)?;
    budget::check(world)
}
