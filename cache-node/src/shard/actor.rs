//! The actor of a shard, and what the connections of its lane share with it.
//!
//! Everything changes a shard by a message to its actor, one after the other. What a fresh entry answers changes nothing but
//! counts of use, so a connection takes it where it lies: a message would cost more than the answer.

use std::cell::RefCell;
use std::rc::Rc;

use actix::{Actor, Addr, Context, Handler, Message};

use super::Shard;
use crate::shard_region::{ShardDied, ShardRegion};

/// A shard of this thread; `None` when its actor has ended.
pub(crate) type SharedShard = Rc<RefCell<Option<Shard>>>;

/// What a shard does with a message.
pub(crate) trait Told<M> {
    fn told(&mut self, message: M, ctx: &mut Context<ShardActor>);
}

/// Started by its lane's [`ShardRegion`], which hears of it when it panics.
pub(crate) struct ShardActor {
    shard: SharedShard,
    died: ShardDied,
    supervisor: Addr<ShardRegion>,
}

impl ShardActor {
    /// Starts the actor of a shard on this thread.
    pub(crate) fn start(shard: Shard, supervisor: Addr<ShardRegion>) -> (Addr<Self>, SharedShard) {
        let died = ShardDied { shard: shard.serve.shard, tenure: shard.serve.tenure };
        let shard = Rc::new(RefCell::new(Some(shard)));
        let actor = Self { shard: Rc::clone(&shard), died, supervisor };
        (Actor::start(actor), shard)
    }
}

impl Actor for ShardActor {
    type Context = Context<Self>;
}

impl<M: Message<Result = ()>> Handler<M> for ShardActor
where
    Shard: Told<M>,
{
    type Result = ();

    fn handle(&mut self, message: M, ctx: &mut Context<Self>) {
        let mut shard = self.shard.borrow_mut();
        shard.as_mut().expect("it ends with its actor").told(message, ctx);
    }
}

impl Drop for ShardActor {
    /// A panic ends the actor and nobody restarts it; so it says so itself. Its waiters are answered as they drop.
    fn drop(&mut self) {
        let shard = self.shard.take();
        if std::thread::panicking() {
            self.supervisor.do_send(self.died);
        }
        drop(shard);
    }
}
