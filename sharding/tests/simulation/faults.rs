//! Random faults, and the time after which the cluster is whole again.

use std::time::Duration;

use sharding::times::Times;

use crate::events::Weather;
use crate::history::Counts;
use crate::invariants::{answered, fresh};
use crate::traffic::Traffic;
use crate::world::World;

/// Time of faults in a run.
const FAULTS: Duration = Duration::from_secs(20);
/// After the last fault the cluster is whole within this. When all clocks were set back it may take some terms, and each
/// the time of a lease, until nobody meets a higher fence any more.
const RECOVERY_MAX: Duration = Duration::from_secs(8);
const STEP: Duration = Duration::from_millis(10);
/// So long clients go on when the cluster is whole again.
const AFTERMATH: Duration = Duration::from_secs(1);
/// Then nobody asks for anything for so long, and nobody is left without an answer.
const QUIET: Duration = Duration::from_secs(3);

/// What a run is like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub(crate) n_seeds: usize,
    pub(crate) n_nodes: usize,
    pub(crate) times: Times,
    pub(crate) weather: Weather,
    /// Mean time between two faults.
    pub(crate) pause: Duration,
    /// Coordinators crash and nodes come and go, and nothing else happens.
    pub(crate) is_churn: bool,
    /// Nodes leave and come all the time, so that shards are on their way.
    pub(crate) is_moving: bool,
    pub(crate) traffic: Traffic,
}

/// How a run went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// So long after the last fault every shard was owned again, and its fence raised.
    pub(crate) recovery: Duration,
    pub(crate) counts: Counts,
}

impl Plan {
    pub(crate) fn random(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(!seed);
        let n_seeds = [1, 3, 3, 3, 5][chance.usize(..5)];
        let is_stormy = chance.bool();
        Self {
            n_seeds,
            n_nodes: n_seeds + chance.usize(..4),
            times: Times::default(),
            weather: Weather {
                loss: if is_stormy { chance.u32(..300) } else { 0 },
                duplicates: chance.u32(..100),
                slow: if is_stormy { chance.u32(..300) } else { chance.u32(..5) },
            },
            pause: Duration::from_millis(chance.u64(150..3000)),
            is_churn: false,
            is_moving: false,
            traffic: Traffic::NONE,
        }
    }

    /// Clients read and write meanwhile.
    pub(crate) fn with_clients(self, seed: u64) -> Self {
        Self { traffic: Traffic::random(seed), ..self }
    }
}

/// Runs a plan: every promise is kept, and after the last fault every shard can be read and written again.
pub(crate) fn run(seed: u64, plan: &Plan) -> Result<Run, String> {
    // So that shards move for the sake of load within the run: one each second.
    let times = Times { movement: Duration::from_secs(1), ..plan.times };
    let mut world = World::with_traffic(seed, plan.n_seeds, plan.n_nodes, times, plan.traffic);
    world.has_loads = true;
    world.run_until(Duration::from_secs(4))?;
    if !world.is_whole() {
        return Err("not whole 4 s after the start, without any fault".to_owned());
    }
    world.weather = plan.weather;
    let end = world.real + FAULTS;
    while world.real < end {
        let pause = plan.pause.mul_f64(2.0 * world.chance.f64());
        world.run_until(world.real + pause)?;
        match plan.is_moving {
            true => move_on(&mut world),
            false => fault(&mut world, plan.is_churn),
        }
    }
    heal(&mut world);
    // The last fault is over when the last process that stands still goes on.
    let healed = world.machines.iter().map(|machine| machine.stopped_until).fold(world.real, Duration::max);
    world.run_until(healed)?;
    while !(world.is_whole() && world.is_writable() && !world.is_anybody_leaving()) {
        if world.real > healed + RECOVERY_MAX {
            let what = if world.is_anybody_leaving() { "somebody has not left" } else { "not whole" };
            return Err(format!("{what} {RECOVERY_MAX:?} after the last fault"));
        }
        world.run_until(world.real + STEP)?;
        world.start_those_who_are_gone();
    }
    let recovery = world.real - healed;
    if plan.traffic.n_clients > 0 {
        world.run_until(world.real + AFTERMATH)?;
        world.clients_rest = true;
        world.run_until(world.real + QUIET)?;
        world.end_clients();
        answered::check(&world)?;
        fresh::check(&world.history)?;
    }
    Ok(Run { recovery, counts: world.history.counts })
}

fn fault(world: &mut World, is_churn: bool) {
    let n_nodes = world.machines.len();
    let node = world.chance.usize(..n_nodes);
    let time = Duration::from_millis(world.chance.u64(10..3500));
    match world.chance.u32(..if is_churn { 52 } else { 112 }) {
        0..15 => world.crash(node),
        15..19 => world.crash_and_move(node),
        19..25 => {
            if let Some(leader) = world.coordinator() {
                world.crash(leader);
            }
        }
        25..40 => {
            world.crash(node);
            world.start(node);
        }
        40..52 => {
            world.start_those_who_are_gone();
        }
        52..64 => world.pause(node, time),
        64..68 => world.freeze(node, time),
        68..82 => {
            let to = world.chance.usize(..n_nodes);
            world.cut.insert((node, to));
            if world.chance.bool() {
                world.cut.insert((to, node));
            }
            if let Some(client) = world.clients.len().checked_sub(1).map(|last| world.chance.usize(..=last)) {
                world.cut_off.insert((client, node));
            }
        }
        82..88 => {
            for other in 0..n_nodes {
                world.cut.extend([(node, other), (other, node)]);
            }
        }
        88..96 => mend_links(world),
        96..98 => {
            let by = world.chance.i64(-3_600_000_000..60_000_000);
            world.set_wall(node, by);
        }
        98..107 => world.leave(node),
        107..110 => world.hurry(node),
        _ => {
            for node in 0..n_nodes {
                world.crash(node);
                let by = world.chance.i64(-3_600_000_000..1);
                world.set_wall(node, by);
            }
            for node in 0..n_nodes {
                world.start(node);
            }
        }
    }
}

/// Shards get on their way; and those who give and take them, and who tells them to, have accidents meanwhile.
fn move_on(world: &mut World) {
    let n_nodes = world.machines.len();
    let node = world.chance.usize(..n_nodes);
    match world.chance.u32(..100) {
        0..30 => world.leave(node),
        30..60 => world.start_those_who_are_gone(),
        60..68 => world.crash(node),
        68..74 => {
            if let Some(leader) = world.coordinator() {
                world.crash(leader);
            }
        }
        74..78 => world.hurry(node),
        78..86 => {
            let to = world.chance.usize(..n_nodes);
            world.cut.insert((node, to));
        }
        86..94 => mend_links(world),
        _ => {
            let time = Duration::from_millis(world.chance.u64(10..1500));
            world.pause(node, time);
        }
    }
}

fn heal(world: &mut World) {
    world.weather = Weather::default();
    world.traffic.database_slow = 0;
    mend_links(world);
    world.start_those_who_are_gone();
}

fn mend_links(world: &mut World) {
    world.cut.clear();
    world.cut_off.clear();
}
