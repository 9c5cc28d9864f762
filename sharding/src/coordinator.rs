//! The seed that holds the coordinator's lease: who owns what, and until when.
//!
//! It keeps nothing on a disk. A new coordinator learns who owns what from the owners themselves; what nobody has
//! reported when every lease of the one before must have run out, is free.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use crate::assign::assign;
use crate::balance::Balance;
use crate::budget::{BudgetShare, Budgeted, Lending};
use crate::epoch::{Epoch, Term};
use crate::id::{NShards, NodeId, ShardId};
use crate::load::{Reports, Weights};
use crate::map::{Member, ShardMap};
use crate::membership::{Addition, After, Grant, Greeting, Incarnation, Renew, Reply, Tenure, Transfer};
use crate::times::{Now, Times};

/// Most lives that it remembers to have greeted and that have not quoted it yet.
const GREETED_MAX: usize = 1024;

/// What a shard is to the coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seat {
    /// Nobody has it.
    Free { after: After },
    /// Granted, or to be granted with the next answer.
    Owned { by: Incarnation, since: Epoch, after: After },
    /// To be given up by its owner: to `to`, when that one has taken over what is in memory; or, where there is nobody, by
    /// leaving it out of its grants. Its owner was told so with the grant that answers request `asked` (`None`: it has not
    /// asked since).
    Moving { by: Incarnation, since: Epoch, after: After, to: Option<Incarnation>, asked: Option<u64> },
}

impl Seat {
    const fn owner(self) -> Option<(Incarnation, Epoch)> {
        match self {
            Self::Free { .. } => None,
            Self::Owned { by, since, .. } | Self::Moving { by, since, .. } => Some((by, since)),
        }
    }
}

#[derive(Debug)]
struct Owner {
    member: Member,
    identity: String,
    /// Of the greeting that it has quoted. Of two lives that have quoted theirs the one with the larger nonce is the
    /// newer: it was alive when that was said, and had then taken the other's place already.
    nonce: u64,
    /// The last request that was answered.
    request: u64,
    /// The epoch up to which that answer goes.
    answered: Epoch,
    /// The last request whose grant it has acted on, and when it was heard to have done so.
    granted: u64,
    heard: Duration,
    /// The epoch up to which it has acted on its grants.
    seen: Epoch,
    /// Its lease has run out by then, whatever it was granted.
    bound: Duration,
    is_leaving: bool,
    /// Since when it has nothing any more, after it began to leave.
    empty_since: Option<Epoch>,
    /// A newer life of the same name has come: this one gets nothing any more, and its bound is waited out.
    is_superseded: bool,
}

impl Owner {
    /// Whether it may get shards.
    const fn may_own(&self) -> bool {
        !self.is_leaving && !self.is_superseded
    }
}

/// How a member stands with the coordinator.
#[derive(Debug)]
pub struct Standing<'a> {
    /// Its name.
    pub node: &'a NodeId,
    /// Its life.
    pub life: Incarnation,
    /// Until its lease has surely run out.
    pub bound_left: Duration,
    /// What is asked of its shards, in per mille of an even share. A shard of which nobody has reported anything counts
    /// as the others do in the mean.
    pub load_per_mille: u64,
    /// How many shards it has.
    pub n_owned: usize,
    /// How many of these are to be given to others.
    pub n_moving: usize,
}

/// The state of one term. Made when the lease is acquired, dropped when it is lost; asked only while the lease holds.
#[derive(Debug)]
pub struct Coordinator {
    times: Times,
    term: Term,
    seq: u64,
    seats: Vec<Seat>,
    loads: Reports,
    balance: Balance,
    owners: BTreeMap<Incarnation, Owner>,
    /// Those who were told a greeting, and which.
    greeted: BTreeMap<Incarnation, u64>,
    /// Greetings have the nonces after this one.
    first_nonce: u64,
    /// How many it has given.
    n_greetings: u64,
    /// Until then shards that nobody has reported may belong to owners of the term before.
    adopts_until: Duration,
    map: Arc<ShardMap>,
    /// One for each database with a budget.
    lendings: Vec<Lending>,
    /// Something has happened since the last plan that may call for another.
    needs_plan: bool,
    /// Those for whom there is something new.
    wakes: BTreeSet<Incarnation>,
    /// Those for whom something was sealed.
    gains: BTreeSet<Incarnation>,
}

/// A coordinator has met a term that is not below its own: it must acquire a higher one before it grants anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HigherTerm(pub Term);

impl Coordinator {
    /// The coordinator of a new term, acquired at `now`. `nonce` is random: greetings of two lives with the same term differ.
    /// It lends the budgets of `budgeted`.
    ///
    /// # Panics
    /// Never: an empty map of `n_shards` is a map.
    #[must_use]
    pub fn new(now: Now, times: Times, term: Term, n_shards: NShards, nonce: u64, budgeted: &[Budgeted]) -> Self {
        let n = usize::from(n_shards.get());
        let map = ShardMap::new(Epoch { term, seq: 0 }, Vec::new(), vec![None; n]).expect("an empty map is one");
        Self {
            times,
            term,
            seq: 0,
            seats: vec![Seat::Free { after: After::Nobody }; n],
            loads: Reports::new(n_shards),
            balance: Balance::new(now, &times, n),
            owners: BTreeMap::new(),
            greeted: BTreeMap::new(),
            // Half of the range: nonces are compared, and do not wrap.
            first_nonce: nonce >> 1,
            n_greetings: 0,
            // Whoever was granted something by the one before sent its request before this moment.
            adopts_until: if times.rules.wait { now.boot + times.bound(times.lease) } else { now.boot },
            map: Arc::new(map),
            lendings: budgeted.iter().map(|budgeted| Lending::new(now, &times, budgeted.clone())).collect(),
            needs_plan: true,
            wakes: BTreeSet::new(),
            gains: BTreeSet::new(),
        }
    }

    /// What somebody is to be told who has not asked, until there is nothing.
    pub fn poll_news(&mut self) -> Option<(Incarnation, Reply)> {
        while let Some(incarnation) = self.gains.pop_first() {
            let Some(owner) = self.owners.get(&incarnation) else { continue };
            let addition = self.addition(incarnation, owner);
            // It may have been granted all of it since, as it asked by itself.
            if !addition.shards.is_empty() {
                return Some((incarnation, Reply::Addition(addition)));
            }
        }
        self.wakes.pop_first().map(|incarnation| (incarnation, Reply::Wake { incarnation }))
    }

    fn addition(&self, incarnation: Incarnation, owner: &Owner) -> Addition {
        let is_new = |(shard, seat): (ShardId, &Seat)| match *seat {
            Seat::Owned { by, since, after } if by == incarnation && since > owner.answered => {
                Some(Tenure { shard, since, after })
            }
            _ => None,
        };
        let shards = (0..).map(ShardId).zip(&self.seats).filter_map(is_new).collect();
        Addition { incarnation, request: owner.request, epoch: self.map.epoch(), shards }
    }

    /// Its term.
    #[must_use]
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The newest map.
    #[must_use]
    pub const fn map(&self) -> &Arc<ShardMap> {
        &self.map
    }

    /// Answers a node. `None`: the request is an old one. `stays`: with this node goes the coordinator, and it has the time
    /// to leave last.
    ///
    /// Requires: the lease holds at `now`.
    ///
    /// # Errors
    /// [`HigherTerm`] when the node has seen a term that is not below this one and not this one.
    pub fn handle_renew(&mut self, now: Now, renew: &Renew, stays: bool) -> Result<Option<Reply>, HigherTerm> {
        self.expire(now);
        let quotes = renew.greeting.filter(|greeting| self.has_given(*greeting)).map(|greeting| greeting.nonce);
        let is_foreign = renew.seen.term == self.term && quotes.is_none() && self.times.rules.hello;
        if renew.seen.term > self.term || is_foreign {
            return Err(HigherTerm(renew.seen.term));
        }
        if !self.owners.contains_key(&renew.incarnation) {
            let greeted = self.greeted.get(&renew.incarnation).copied();
            if self.times.rules.hello && (greeted.is_none() || quotes != greeted) {
                return Ok(Some(self.greet(renew.incarnation)));
            }
            // Without the rule, whoever comes later is believed to be newer.
            let nonce = greeted.unwrap_or_else(|| self.next_nonce());
            if !self.admit(now, renew, nonce) {
                return Ok(None);
            }
        }
        let Some(owner) = self.owners.get_mut(&renew.incarnation) else { return Ok(None) };
        if renew.request <= owner.request {
            return Ok(None);
        }
        owner.request = renew.request;
        for used in &renew.budgets {
            if let Some(lending) = self.lendings.iter_mut().find(|lending| *lending.database() == used.database) {
                lending.handle_use(renew.incarnation, renew.granted, used);
            }
        }
        owner.seen = renew.seen;
        if owner.granted < renew.granted {
            (owner.granted, owner.heard) = (renew.granted, now.boot);
        }
        // It is heard and hears nothing: the last lease that it acted on has run out (it had asked for it a period before it
        // said so), and another would only keep its shards from others.
        if owner.heard + self.times.bound(self.times.lease) - self.times.period < now.boot {
            return Ok(None);
        }
        self.needs_plan |= renew.is_leaving && !owner.is_leaving;
        owner.is_leaving |= renew.is_leaving;
        self.hear_loads(renew);
        self.release(now, renew);
        self.plan(now);
        Ok(Some(self.answer(now, renew, stays)))
    }

    /// Whether a greeting is one of this coordinator's, and not of an earlier life with the same term.
    const fn has_given(&self, greeting: Greeting) -> bool {
        let place = greeting.nonce.wrapping_sub(self.first_nonce);
        greeting.term.counter == self.term.counter
            && greeting.term.seed == self.term.seed
            && 0 < place
            && place <= self.n_greetings
    }

    const fn next_nonce(&mut self) -> u64 {
        self.n_greetings += 1;
        self.first_nonce + self.n_greetings
    }

    fn greet(&mut self, incarnation: Incarnation) -> Reply {
        let nonce = match self.greeted.get(&incarnation) {
            Some(&nonce) => nonce,
            None => {
                if self.greeted.len() >= GREETED_MAX {
                    self.greeted.clear();
                }
                let nonce = self.next_nonce();
                self.greeted.insert(incarnation, nonce);
                nonce
            }
        };
        Reply::Hello { incarnation, greeting: Greeting { term: self.term, nonce } }
    }

    /// Takes a life in that has quoted its greeting: it was alive after that was said. Not when it is surely dead.
    fn admit(&mut self, now: Now, renew: &Renew, nonce: u64) -> bool {
        self.greeted.remove(&renew.incarnation);
        let of_same_name = |owner: &Owner| owner.member.node == renew.member.node;
        // One process at a time can have what both have: the newer life proves the older one dead.
        let replaces = |owner: &Owner| !renew.identity.is_empty() && owner.identity == renew.identity;
        let is_newest = !self.owners.values().any(|owner| of_same_name(owner) && nonce < owner.nonce);
        if !is_newest && self.owners.values().any(|owner| of_same_name(owner) && replaces(owner) && nonce < owner.nonce)
        {
            return false;
        }
        let older = self.owners.iter_mut().filter(|(_, owner)| of_same_name(owner) && owner.nonce < nonce);
        let mut dead = Vec::new();
        for (incarnation, owner) in older {
            owner.is_superseded = true;
            if replaces(owner) {
                dead.push(*incarnation);
            }
        }
        dead.into_iter().for_each(|incarnation| self.remove(now, incarnation));
        let owner = Owner {
            member: renew.member.clone(),
            identity: renew.identity.clone(),
            nonce,
            request: 0,
            answered: Epoch::default(),
            granted: 0,
            heard: now.boot,
            seen: Epoch::default(),
            // It may hold a lease of the term before.
            bound: now.boot + self.times.bound(self.times.lease),
            is_leaving: false,
            empty_since: None,
            is_superseded: !is_newest,
        };
        self.owners.insert(renew.incarnation, owner);
        let mut has_adopted = false;
        // What it serves stays with it: its lease of the term before has not run out, so nobody else has it.
        for tenure in &renew.held {
            if let Some(seat @ Seat::Free { .. }) = self.seats.get_mut(tenure.shard.index())
                && now.boot < self.adopts_until
            {
                *seat = Seat::Owned { by: renew.incarnation, since: tenure.since, after: tenure.after };
                has_adopted = true;
            }
        }
        // What it has sealed may have been granted since, to somebody who is gone: what was taken over from it is worth
        // nothing.
        for &(shard, _) in &renew.sealed {
            if let Some(seat @ Seat::Free { .. }) = self.seats.get_mut(shard.index())
                && now.boot < self.adopts_until
            {
                *seat = Seat::Free { after: After::Move };
                has_adopted = true;
            }
        }
        if has_adopted {
            // It is not the first term: what nobody reports was somebody's who is gone.
            for seat in self.seats.iter_mut().filter(|seat| **seat == Seat::Free { after: After::Nobody }) {
                *seat = Seat::Free { after: After::Crash };
            }
        }
        self.change();
        true
    }

    /// Takes note of what is asked of the shards of a node.
    fn hear_loads(&mut self, renew: &Renew) {
        if renew.loads.is_empty() {
            return;
        }
        let (seats, life) = (&self.seats, renew.incarnation);
        let is_theirs =
            |shard: ShardId, since| seats.get(shard.index()).is_some_and(|seat| seat.owner() == Some((life, since)));
        let told = renew.held.iter().zip(&renew.loads).filter(|(tenure, _)| is_theirs(tenure.shard, tenure.since));
        self.loads.take(told.map(|(tenure, load)| (tenure.shard, *load)));
    }

    /// Frees what a node has given up: what it has sealed, and what it has stopped to serve after it was left out of a grant
    /// that the node has acted on.
    ///
    /// That a shard is sealed may be heard from the one that has taken it over first. Nobody owned it in between, since the
    /// seat knows of no tenure after the one that was sealed; and no coordinator before this one knew of the seal, since the
    /// owner would say so in the first Renew that this one believed.
    fn release(&mut self, now: Now, renew: &Renew) {
        let next = Epoch { term: self.term, seq: self.seq + 1 };
        let mut has_given = false;
        let may_own = |life: &Incarnation| self.owners.get(life).is_some_and(Owner::may_own);
        let may_take = may_own(&renew.incarnation);
        for &(shard, since) in renew.taken.iter().filter(|_| may_take) {
            let Some(seat) = self.seats.get_mut(shard.index()) else { continue };
            let is_last = match *seat {
                Seat::Free { after } => after == After::Sealed(since),
                Seat::Owned { by, since: theirs, .. } | Seat::Moving { by, since: theirs, .. } => {
                    by != renew.incarnation && theirs == since
                }
            };
            if is_last {
                self.balance.handle_moved(now, shard);
                *seat = Seat::Owned { by: renew.incarnation, since: next, after: After::Sealed(since) };
                has_given = true;
            }
        }
        for &(shard, since) in &renew.sealed {
            let Some(seat) = self.seats.get_mut(shard.index()) else { continue };
            if seat.owner() != Some((renew.incarnation, since)) {
                continue;
            }
            let after = After::Sealed(since);
            let to = match *seat {
                Seat::Moving { to, .. } => to,
                Seat::Owned { .. } | Seat::Free { .. } => None,
            };
            *seat = match to.filter(may_own) {
                Some(by) => {
                    self.gains.insert(by);
                    self.balance.handle_moved(now, shard);
                    Seat::Owned { by, since: next, after }
                }
                None => Seat::Free { after },
            };
            has_given = true;
        }
        if has_given {
            self.change();
        }
        let held: BTreeSet<ShardId> = renew.held.iter().map(|tenure| tenure.shard).collect();
        for (shard, seat) in (0..).map(ShardId).zip(&mut self.seats) {
            if let Seat::Moving { by, to: None, asked: Some(asked), .. } = *seat
                && by == renew.incarnation
                && asked <= renew.granted
                && !held.contains(&shard)
            {
                *seat = Seat::Free { after: After::Move };
                self.needs_plan = true;
            }
        }
    }

    /// Forgets owners whose leases have run out.
    fn expire(&mut self, now: Now) {
        let gone: Vec<Incarnation> =
            self.owners.iter().filter(|(_, owner)| owner.bound <= now.boot).map(|(life, _)| *life).collect();
        for incarnation in gone {
            self.remove(now, incarnation);
        }
    }

    fn remove(&mut self, now: Now, incarnation: Incarnation) {
        let bound = self.owners.remove(&incarnation).map_or(now.boot, |owner| owner.bound);
        for lending in &mut self.lendings {
            lending.handle_gone(now, &self.times, incarnation, bound);
        }
        for seat in &mut self.seats {
            match *seat {
                _ if seat.owner().is_some_and(|(by, _)| by == incarnation) => {
                    *seat = Seat::Free { after: After::Crash };
                }
                // Whoever has it keeps it, unless it has sealed it already: then it says so.
                Seat::Moving { by, since, after, to: Some(to), .. } if to == incarnation => {
                    *seat = Seat::Owned { by, since, after };
                }
                _ => {}
            }
        }
        self.change();
    }

    /// Gives what is free to those who shall have it, and asks for what shall move: what must, and when that is done,
    /// what evens out the load. Not before every lease of the term before has run out or been reported.
    fn plan(&mut self, now: Now) {
        if now.boot < self.adopts_until {
            return;
        }
        if std::mem::take(&mut self.needs_plan) {
            self.assign(now);
        }
        if self.balance.next() <= now.boot {
            self.even_out(now);
        }
    }

    /// Those who may get shards, in the order of their names.
    fn targets(&self) -> Vec<(Incarnation, NodeId)> {
        let may_own = self.owners.iter().filter(|(_, owner)| owner.may_own());
        let mut targets: Vec<_> = may_own.map(|(life, owner)| (*life, owner.member.node.clone())).collect();
        targets.sort_by(|a, b| a.1.cmp(&b.1));
        targets
    }

    fn even_out(&mut self, now: Now) {
        let targets = self.targets();
        let position = |seat: &Seat| match *seat {
            Seat::Owned { by, .. } => targets.iter().position(|(life, _)| *life == by),
            Seat::Free { .. } | Seat::Moving { .. } => None,
        };
        let owners: Option<Vec<usize>> = self.seats.iter().map(position).collect();
        for (shard, target) in self.balance.poll(now, self.loads.steady(), targets.len(), owners.as_deref()) {
            let (seat, to) = (&mut self.seats[shard.index()], Some(targets[target].0));
            if let Seat::Owned { by, since, after } = *seat {
                self.wakes.insert(by);
                *seat = Seat::Moving { by, since, after, to, asked: None };
            }
        }
    }

    fn assign(&mut self, now: Now) {
        let targets = self.targets();
        let may_own = |life| targets.iter().any(|(target, _)| *target == life);
        let nodes: Vec<NodeId> = targets.iter().map(|(_, node)| node.clone()).collect();
        let previous: Vec<Option<NodeId>> = self
            .seats
            .iter()
            .map(|seat| {
                let target =
                    |by: Incarnation| targets.iter().find(|(life, _)| *life == by).map(|(_, node)| node.clone());
                // What is on its way goes on to where it is going: that one has a part of it already.
                match *seat {
                    Seat::Moving { to: Some(to), .. } => target(to),
                    _ => None,
                }
                .or_else(|| target(seat.owner()?.0))
            })
            .collect();
        let table = assign(&Weights::new(self.loads.steady()), &previous, &nodes);
        let next = Epoch { term: self.term, seq: self.seq + 1 };
        let mut changed = false;
        for (shard, seat) in (0..).map(ShardId).zip(&mut self.seats) {
            let wanted = table.get(shard.index()).map(|&target| targets[target].0);
            let after = match (*seat, wanted) {
                (Seat::Free { after }, Some(by)) => {
                    self.balance.handle_moved(now, shard);
                    Seat::Owned { by, since: next, after }
                }
                (Seat::Owned { by, since, after }, to) if to != Some(by) => {
                    self.wakes.insert(by);
                    Seat::Moving { by, since, after, to, asked: None }
                }
                // Its owner may serve it no more: that tenure must not begin again. It is free when that is heard.
                (seat @ Seat::Moving { to: None, asked: Some(_), .. }, _) => seat,
                // Who was told to take it over goes on: its owner may be sealing it for that one, and no other has it.
                (seat @ Seat::Moving { to: Some(to), asked: Some(_), .. }, _) if may_own(to) => seat,
                (Seat::Moving { by, since, after, .. }, Some(wanted)) if wanted == by => {
                    Seat::Owned { by, since, after }
                }
                (Seat::Moving { by, since, after, to, .. }, wanted) if wanted != to => {
                    Seat::Moving { by, since, after, to: wanted, asked: None }
                }
                (seat, _) => seat,
            };
            changed |= after.owner() != seat.owner();
            *seat = after;
        }
        if changed {
            self.change();
            self.needs_plan = false;
        }
    }

    /// Owners or their shards are others: the map gets the next epoch.
    fn change(&mut self) {
        self.needs_plan = true;
        self.seq += 1;
        let lives: Vec<Incarnation> = self.owners.keys().copied().collect();
        let members = self.owners.values().map(|owner| owner.member.clone()).collect();
        let position = |by: Incarnation| lives.binary_search(&by).ok().and_then(|at| u16::try_from(at).ok());
        let owners = self.seats.iter().map(|seat| seat.owner().and_then(|(by, _)| position(by))).collect();
        let epoch = Epoch { term: self.term, seq: self.seq };
        if let Ok(map) = ShardMap::new(epoch, members, owners) {
            self.map = Arc::new(map);
        }
    }

    fn answer(&mut self, now: Now, renew: &Renew, stays: bool) -> Reply {
        let (incarnation, request) = (renew.incarnation, renew.request);
        let (mut shards, mut giving, mut taking) = (Vec::new(), Vec::new(), Vec::new());
        let node = |life: &Incarnation| self.owners.get(life).map(|owner| owner.member.node.clone());
        for (shard, seat) in (0..).map(ShardId).zip(&mut self.seats) {
            match seat {
                Seat::Owned { by, since, after } if *by == incarnation => {
                    shards.push(Tenure { shard, since: *since, after: *after });
                }
                Seat::Moving { by, since, after, to, asked, .. } if *by == incarnation => {
                    if asked.is_none() {
                        *asked = Some(request);
                        self.wakes.extend(*to);
                    }
                    if let Some(peer) = to.as_ref().and_then(node) {
                        shards.push(Tenure { shard, since: *since, after: *after });
                        giving.push(Transfer { shard, since: *since, peer });
                    }
                }
                Seat::Moving { by, since, to: Some(to), asked: Some(_), .. } if *to == incarnation => {
                    taking.extend(node(by).map(|peer| Transfer { shard, since: *since, peer }));
                }
                _ => {}
            }
        }
        let owns_nothing = self.seats.iter().all(|seat| seat.owner().is_none_or(|(by, _)| by != incarnation));
        let epoch = self.map.epoch();
        let owner = self.owners.get_mut(&incarnation).expect("who is answered is an owner");
        if owner.is_leaving && owns_nothing && renew.held.is_empty() {
            let empty_since = *owner.empty_since.get_or_insert(epoch);
            // The next coordinator would have to wait before it gives away what arrives meanwhile.
            let is_on_its_way = |seat: &Seat| matches!(seat, Seat::Moving { to: Some(_), asked: Some(_), .. });
            let is_needed = stays && self.seats.iter().any(is_on_its_way);
            // Others must have what it gave away; and all that was given, if the coordinator goes with it.
            let given = if stays { epoch } else { empty_since };
            if !is_needed && self.owners.values().all(|owner| owner.is_leaving || owner.seen >= given) {
                self.remove(now, incarnation);
                return Reply::Goodbye { incarnation };
            }
        }
        let owner = self.owners.get_mut(&incarnation).expect("as above");
        owner.bound = now.boot + self.times.bound(self.times.lease);
        owner.answered = epoch;
        // While it learns who owns what, the last map of the term before is the better one.
        let is_settled = self.adopts_until <= now.boot || self.seats.iter().all(|seat| seat.owner().is_some());
        let map = (is_settled && renew.map < epoch).then(|| Arc::clone(&self.map));
        let share = |lending: &mut Lending| {
            let slots = lending.grant(now, incarnation, request)?;
            Some(BudgetShare { database: lending.database().clone(), slots })
        };
        let shares = self.lendings.iter_mut().filter_map(share).collect();
        Reply::Grant(Grant { incarnation, request, epoch, shards, giving, taking, shares, map })
    }

    /// Does what time brings, and gives the next wake-up.
    ///
    /// Requires: the lease holds at `now`.
    pub fn poll(&mut self, now: Now) -> Duration {
        self.expire(now);
        self.plan(now);
        let bounds = self.owners.values().map(|owner| owner.bound);
        let adopts = (now.boot < self.adopts_until).then_some(self.adopts_until);
        let balance = self.adopts_until.max(self.balance.next());
        bounds.chain(adopts).fold(balance, Duration::min)
    }

    /// How its members stand, for people.
    pub fn standings(&self, now: Now) -> Vec<Standing<'_>> {
        let mut standings = BTreeMap::new();
        for (&life, owner) in &self.owners {
            let (node, bound_left) = (&owner.member.node, owner.bound.saturating_sub(now.boot));
            standings.insert(life, Standing { node, life, bound_left, load_per_mille: 0, n_owned: 0, n_moving: 0 });
        }
        let weights = Weights::new(self.loads.steady());
        for (seat, weight) in self.seats.iter().zip(weights.of_shards()) {
            let Some(of) = seat.owner().and_then(|(by, _)| standings.get_mut(&by)) else { continue };
            of.load_per_mille += weight;
            of.n_owned += 1;
            of.n_moving += usize::from(matches!(seat, Seat::Moving { .. }));
        }
        let n_owners = u64::try_from(self.owners.len()).expect("members are bounded below 65,536").max(1);
        let share = (weights.total() / n_owners / 1000).max(1);
        standings.values_mut().for_each(|of| of.load_per_mille /= share);
        standings.into_values().collect()
    }

    /// How many shards it has asked to move for the sake of load, in its term.
    #[must_use]
    pub const fn n_balanced(&self) -> u64 {
        self.balance.n_moves()
    }
}
