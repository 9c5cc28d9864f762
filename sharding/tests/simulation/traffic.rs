//! What clients ask for, and what is between nodes, routers and the database.

use std::time::Duration;

use sharding::membership::Incarnation;

use crate::clients::{Client, ClientEvent};
use crate::database::Sent;
use crate::events::{Message, What};
use crate::invariants::announced;
use crate::serving::{Manners, Output, ReplyTo};
use crate::world::{KEYS_PER_SHARD, N_KEYS, World};

/// What clients do in a run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Traffic {
    pub(crate) n_clients: usize,
    /// Clients use so many keys, the first ones.
    pub(crate) keys_in_use: usize,
    /// Mean time between two operations of a client.
    pub(crate) pause: Duration,
    /// So many operations of a hundred write.
    pub(crate) writes: u32,
    /// So many reads of a hundred go past the owner at once: their routers believe that it cannot be reached.
    pub(crate) passes: u32,
    /// Somebody changes keys behind the cache's back as well.
    pub(crate) has_changes: bool,
    /// Halves of the database's operations, in a thousand, that take long.
    pub(crate) database_slow: u32,
    pub(crate) manners: Manners,
    /// See [`crate::database::Database::looks_early`].
    pub(crate) looks_early: bool,
}

impl Traffic {
    pub(crate) const NONE: Self = Self {
        n_clients: 0,
        keys_in_use: N_KEYS,
        pause: Duration::from_millis(20),
        writes: 50,
        passes: 0,
        has_changes: false,
        database_slow: 0,
        manners: Manners::GOOD,
        looks_early: false,
    };

    pub(crate) fn random(seed: u64) -> Self {
        let mut chance = fastrand::Rng::with_seed(seed ^ 1 << 63);
        Self {
            n_clients: chance.usize(4..=8),
            keys_in_use: [1, 2, 4, N_KEYS][chance.usize(..4)],
            pause: Duration::from_millis([2, 10, 30, 60][chance.usize(..4)]),
            writes: [10, 50, 50, 80][chance.usize(..4)],
            passes: [0, 0, 10, 40][chance.usize(..4)],
            has_changes: chance.bool(),
            database_slow: [5, 50, 200, 600][chance.usize(..4)],
            ..Self::NONE
        }
    }
}

impl World {
    /// Begins what the traffic consists of.
    pub(crate) fn start_traffic(&mut self) {
        for client in 0..self.traffic.n_clients {
            let machine = self.chance.usize(..self.machines.len());
            self.clients.push(Client::new(machine));
            self.at_client(self.real, client, ClientEvent::Begin);
        }
        if self.traffic.has_changes {
            self.push(self.real, 0, What::Change);
        }
    }

    /// A pause between two things that clients do.
    pub(crate) fn pause_of_clients(&mut self) -> Duration {
        Duration::from_micros(self.chance.u64(..2 * self.traffic.pause.as_micros() as u64))
    }

    /// How long the database takes for half of an operation: nobody can say what becomes of it meanwhile.
    fn database_delay(&mut self) -> Duration {
        let is_slow = self.chance.u32(..1000) < self.traffic.database_slow;
        Duration::from_micros(if is_slow { self.chance.u64(1_000..3_000_000) } else { self.chance.u64(50..4_000) })
    }

    /// Sends what the data plane of a node has to send.
    pub(crate) fn flush(&mut self, node: usize) {
        let Some(life) = &mut self.machines[node].life else { return };
        let incarnation = life.incarnation;
        for output in life.serving.take_outputs() {
            match output {
                Output::Tell(asker, told) => {
                    announced::check(self, node, asker, told);
                    self.tell_client(node, asker, told);
                }
                Output::Want(from, id, wanted) => {
                    let to = ReplyTo { node, incarnation, id };
                    self.send(node, from, Message::Want { to, wanted });
                }
                Output::Handed(to, chunk) => self.send(node, to.node, Message::Handed { to, chunk }),
                Output::Began { is_warm: true } => self.history.counts.warm += 1,
                Output::Began { is_warm: false } => self.history.counts.cold += 1,
                Output::Operate(operation, what) => {
                    let (at, sent) = (self.real + self.database_delay(), self.database.begin(what));
                    self.push(at, node, What::Land { incarnation, operation, sent });
                }
            }
        }
    }

    /// Somebody changes a key in the database, which tells every node so after a while.
    pub(crate) fn change(&mut self) {
        let shards = self.traffic.keys_in_use.div_ceil(KEYS_PER_SHARD);
        let (key, value) = ((self.chance.usize(..shards) + 1) * KEYS_PER_SHARD - 1, self.history.moment());
        let place = self.database.change(key, value);
        for node in 0..self.machines.len() {
            let at = self.real + self.database_delay();
            self.push(at, node, What::Deliver { from: node, message: Box::new(Message::Notice { key, place }) });
        }
        if !self.clients_rest {
            let pause = 2 * self.pause_of_clients();
            self.push(self.real + pause, 0, What::Change);
        }
    }

    pub(crate) fn land(&mut self, node: usize, incarnation: Incarnation, operation: u64, sent: Sent) {
        let answer = self.database.land(incarnation, sent);
        if let Some((shard, token)) = self.database.shared {
            self.violation.get_or_insert(format!("two lives have the same token for shard {shard}: {token:?}"));
        }
        let at = self.real + self.database_delay();
        let message = Box::new(Message::Landed { incarnation, operation, answer });
        self.push(at, node, What::Deliver { from: node, message });
    }
}
