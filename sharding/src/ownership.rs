//! Node side: what this node may serve, since when, and until when.
//!
//! The shell sends what [`Ownership::poll_renew`] gives out to every seed, puts the answers in, and performs what
//! [`Ownership::poll_effect`] gives out. Whatever a node does as an owner it does while [`Effect::Lease`] holds.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::budget::{BudgetShare, BudgetUse};
use crate::epoch::{Epoch, Term};
use crate::id::{NShards, ShardId};
use crate::load::ShardLoad;
use crate::map::{Member, ShardMap};
use crate::membership::{Addition, After, Grant, Greeting, Incarnation, Renew, Reply, Tenure, Transfer};
use crate::times::{Lease, Now, Times};

/// So long who has taken a shard over waits for the one that has sealed it to tell the coordinator, before it does so itself.
const TAKEN_PATIENCE: Duration = Duration::from_millis(20);

/// What the shell has to do, in the order given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Tell those who answer "misdirected" of this map.
    Publish(Arc<ShardMap>),
    /// What is served may be served under this lease from now on.
    Lease(Lease),
    /// These are its parts of the budgets, under this lease; of other databases it has none.
    Shares(Vec<BudgetShare>, Lease),
    /// Begin to serve a shard, with no entries.
    Serve {
        /// The shard.
        shard: ShardId,
        /// The epoch at which it became ours.
        since: Epoch,
        /// Whose it was before.
        after: After,
    },
    /// Serve a shard no more and forget its entries.
    Release {
        /// The shard.
        shard: ShardId,
    },
    /// These are on their way from here, and to here; no others.
    Moves {
        /// To be sealed, each when its next owner has what is in memory; [`Ownership::handle_sealed`] is told.
        giving: Vec<Transfer>,
        /// To be taken over.
        taking: Vec<Transfer>,
    },
    /// Nothing is owned any more, as was asked with [`Ownership::handle_leave`].
    Left,
}

/// Who a node is, for as long as it lives.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Its name, and where it takes data connections.
    pub member: Member,
    /// Drawn at its start.
    pub incarnation: Incarnation,
    /// See [`Renew::identity`].
    pub identity: String,
}

/// A shard that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    since: Epoch,
    after: After,
    /// It is served no more, whatever anybody grants: the next owner may have it already.
    is_sealed: bool,
}

/// Decides what a node serves. One for each node; only its own thread changes it.
#[derive(Debug)]
pub struct Ownership {
    me: Identity,
    times: Times,
    request: u64,
    /// When the requests were sent whose answers may still come.
    sent: VecDeque<(u64, Now)>,
    granted: u64,
    greeting: Option<Greeting>,
    seen: Epoch,
    lease: Option<Lease>,
    /// For each shard that is served: since when.
    tenures: Vec<Option<Held>>,
    /// What is asked of each shard, where its owner has measured that.
    loads: Vec<Option<ShardLoad>>,
    /// The coordinator has not been told of them.
    has_new_loads: bool,
    /// What was taken over whole, and since when it belonged to the one that has sealed it.
    taken: BTreeMap<ShardId, Epoch>,
    /// What is on its way, by the grant that it acted on last.
    moves: (Vec<Transfer>, Vec<Transfer>),
    /// Its parts of the budgets by the grant that it acted on last.
    shares: Vec<BudgetShare>,
    map: Option<Arc<ShardMap>>,
    next_renew: Duration,
    is_leaving: bool,
    has_left: bool,
    effects: VecDeque<Effect>,
}

impl Ownership {
    /// A node that serves nothing yet.
    #[must_use]
    pub fn new(now: Now, me: Identity, n_shards: NShards, times: Times) -> Self {
        Self {
            me,
            times,
            request: 0,
            sent: VecDeque::new(),
            granted: 0,
            greeting: None,
            seen: Epoch::default(),
            lease: None,
            tenures: vec![None; usize::from(n_shards.get())],
            loads: vec![None; usize::from(n_shards.get())],
            has_new_loads: true,
            taken: BTreeMap::new(),
            moves: Default::default(),
            shares: Vec::new(),
            map: None,
            next_renew: now.boot,
            is_leaving: false,
            has_left: false,
            effects: VecDeque::new(),
        }
    }

    /// Whether it may act as an owner at this moment.
    #[must_use]
    pub fn holds(&self, now: Now) -> bool {
        self.lease.is_some_and(|lease| lease.holds(now))
    }

    /// Whether it may serve this shard at this moment.
    #[must_use]
    pub fn serves(&self, now: Now, shard: ShardId) -> bool {
        let held = self.tenures.get(shard.index()).copied().flatten();
        held.is_some_and(|held| !held.is_sealed) && self.holds(now)
    }

    /// The newest map.
    #[must_use]
    pub const fn map(&self) -> Option<&Arc<ShardMap>> {
        self.map.as_ref()
    }

    /// The newest epoch that it has seen. It acts on none that is older.
    #[must_use]
    pub const fn seen(&self) -> Epoch {
        self.seen
    }

    /// The lease as it was granted last.
    #[must_use]
    pub const fn lease(&self) -> Option<Lease> {
        self.lease
    }

    /// It drains: asks to own nothing any more.
    pub fn handle_leave(&mut self, now: Now) {
        self.is_leaving = true;
        self.next_renew = now.boot;
    }

    /// A database says that somebody else has owned a shard since this epoch, which is not below that of the tenure here
    /// (it is the same when a term has come twice, after all clocks were set back). So its term counts as seen: no
    /// coordinator grants below it. The tenure is given up: its fence can never be raised, and a coordinator that heard
    /// of it would adopt it as it is.
    pub fn handle_fence(&mut self, now: Now, shard: ShardId, since: Epoch) {
        let is_known = since.term <= self.seen.term;
        self.see(Epoch { term: since.term, seq: 0 });
        self.next_renew = now.boot;
        let Some(tenure) = self.tenures.get_mut(shard.index()) else { return };
        if tenure.take_if(|ours| ours.since <= since).is_none() {
            return;
        }
        self.effects.push_back(Effect::Release { shard });
        if is_known && self.holds(now) {
            // A coordinator of such a term counts it as ours, as it is: it takes a higher one to grant it anew.
            let term = Term { counter: self.seen.term.counter.saturating_add(1), seed: 0 };
            self.see(Epoch { term, seq: 0 });
        }
    }

    /// A shard has been sealed: the next owner has what was in memory, or gets none of it. This cannot be taken back.
    pub fn handle_sealed(&mut self, now: Now, shard: ShardId, since: Epoch) {
        if let Some(Some(held)) = self.tenures.get_mut(shard.index())
            && held.since == since
        {
            held.is_sealed = true;
            self.next_renew = now.boot;
        }
    }

    /// A shard has been taken over whole from the one that had it since this epoch: it has sealed it, and said all. To be
    /// called only after that one knows that it is sealed ([`Ownership::handle_sealed`] there).
    pub fn handle_taken(&mut self, now: Now, shard: ShardId, since: Epoch) {
        if is_among(&self.moves.1, shard, since) {
            self.taken.insert(shard, since);
            self.next_renew = self.next_renew.min(now.boot + TAKEN_PATIENCE);
        }
    }

    /// What it was told to give, and still has, goes without what is in memory: there is no time for that any more. Gives how
    /// many shards those are. Whoever leaves asks at once whether it may go.
    pub fn handle_hurry(&mut self, now: Now) -> usize {
        if self.is_leaving {
            self.next_renew = now.boot;
        }
        let giving: Vec<(ShardId, Epoch)> =
            self.moves.0.iter().map(|transfer| (transfer.shard, transfer.since)).collect();
        let mut n_cold = 0;
        for (shard, since) in giving {
            if let Some(Some(held)) = self.tenures.get(shard.index())
                && held.since == since
                && !held.is_sealed
            {
                self.handle_sealed(now, shard, since);
                self.effects.push_back(Effect::Release { shard });
                n_cold += 1;
            }
        }
        n_cold
    }

    /// What is asked of the shards that are served, as measured ([`crate::load::Meters`]); of others nothing is known.
    /// The next request tells the coordinator, when all that is held has been measured. To be called about once a
    /// second.
    pub fn handle_loads(&mut self, loads: impl IntoIterator<Item = (ShardId, ShardLoad)>) {
        self.loads.fill(None);
        for (shard, load) in loads {
            if let Some(known) = self.loads.get_mut(shard.index()) {
                *known = Some(load);
            }
        }
        self.has_new_loads = true;
    }

    /// Shards that are to be given away, and are not sealed yet.
    #[must_use]
    pub fn n_giving(&self) -> usize {
        let is_open = |transfer: &&Transfer| {
            let held = self.tenures.get(transfer.shard.index()).copied().flatten();
            held.is_some_and(|held| held.since == transfer.since && !held.is_sealed)
        };
        self.moves.0.iter().filter(is_open).count()
    }

    /// The answer of a seed.
    pub fn handle_reply(&mut self, now: Now, reply: &Reply) {
        match reply {
            Reply::Hello { incarnation, greeting } if *incarnation == self.me.incarnation => {
                self.handle_hello(now, *greeting);
            }
            Reply::Grant(grant) if grant.incarnation == self.me.incarnation => self.handle_grant(now, grant),
            Reply::Addition(addition) if addition.incarnation == self.me.incarnation => {
                self.handle_addition(now, addition);
            }
            Reply::Goodbye { incarnation } if *incarnation == self.me.incarnation && self.is_leaving => {
                self.leave();
            }
            Reply::Wake { incarnation } if *incarnation == self.me.incarnation => self.next_renew = now.boot,
            Reply::Hello { .. } | Reply::Grant(_) | Reply::Addition(_) | Reply::Goodbye { .. } | Reply::Wake { .. } => {
            }
        }
    }

    fn leave(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        // Somebody may wait for it here.
        let sealed: Vec<ShardId> = self.sealed().map(|(shard, _)| shard).collect();
        self.effects.extend(sealed.into_iter().map(|shard| Effect::Release { shard }));
        self.effects.push_back(Effect::Left);
    }

    /// A coordinator's greeting counts as seen: grants of older terms are dropped from now on.
    fn handle_hello(&mut self, now: Now, greeting: Greeting) {
        if greeting.term < self.seen.term || self.greeting == Some(greeting) {
            return;
        }
        self.greeting = Some(greeting);
        // It knows nothing yet.
        self.has_new_loads = true;
        self.see(Epoch { term: greeting.term, seq: 0 });
        self.next_renew = now.boot;
    }

    fn handle_grant(&mut self, now: Now, grant: &Grant) {
        let is_old = grant.request <= self.granted || grant.epoch < self.seen;
        if is_old || (self.times.rules.hello && self.term() != Some(grant.epoch.term)) {
            return;
        }
        let Some(&(_, asked)) = self.sent.iter().find(|(request, _)| *request == grant.request) else { return };
        // The lease counts from the asking: the coordinator counts from its answer, which is later.
        let asked = if self.times.rules.from_asking { asked } else { now };
        let lease = Lease::new(asked, self.times.lease, &self.times);
        if !lease.holds(now) {
            return;
        }
        self.granted = grant.request;
        self.sent.retain(|(request, _)| *request > grant.request);
        self.see(grant.epoch);
        // First the map: whoever asked for a shard that is released is told where it is.
        if let Some(map) = &grant.map
            && self.map.as_ref().is_none_or(|known| known.epoch() < map.epoch())
        {
            self.map = Some(Arc::clone(map));
            self.effects.push_back(Effect::Publish(Arc::clone(map)));
        }
        self.take_shards(now, &grant.shards);
        self.lease = Some(lease);
        self.effects.push_back(Effect::Lease(lease));
        self.taken.retain(|shard, since| is_among(&grant.taking, *shard, *since));
        let moves = (grant.giving.clone(), grant.taking.clone());
        if moves != self.moves {
            self.moves = moves.clone();
            self.effects.push_back(Effect::Moves { giving: moves.0, taking: moves.1 });
        }
        // Also when nothing changed: the lease is another.
        if !self.shares.is_empty() || !grant.shares.is_empty() {
            self.shares.clone_from(&grant.shares);
            self.effects.push_back(Effect::Shares(grant.shares.clone(), lease));
        }
    }

    /// Shards are ours as if the grant that was acted on last had named them.
    fn handle_addition(&mut self, now: Now, addition: &Addition) {
        let minds = self.times.rules.additions;
        // Nothing that was said after it has been acted on: in particular, none of the shards was given away again.
        let is_old = minds && addition.epoch <= self.seen;
        if is_old || self.term() != Some(addition.epoch.term) {
            return;
        }
        if (minds && addition.request != self.granted) || !self.holds(now) {
            // What it adds to has been lost, or has run out.
            self.next_renew = now.boot;
            return;
        }
        self.see(addition.epoch);
        for &Tenure { shard, since, after } in &addition.shards {
            self.take_shard(now, shard, Some(Held { since, after, is_sealed: false }));
            self.taken.remove(&shard);
        }
        let n_taking = self.moves.1.len();
        self.moves.1.retain(|transfer| !addition.shards.iter().any(|tenure| tenure.shard == transfer.shard));
        if self.moves.1.len() < n_taking {
            let (giving, taking) = self.moves.clone();
            self.effects.push_back(Effect::Moves { giving, taking });
        }
    }

    /// Has these shards, and no others.
    fn take_shards(&mut self, now: Now, shards: &[Tenure]) {
        let mut granted = vec![None; self.tenures.len()];
        for &Tenure { shard, since, after } in shards {
            if let Some(granted) = granted.get_mut(shard.index()) {
                *granted = Some(Held { since, after, is_sealed: false });
            }
        }
        for (shard, granted) in (0..).map(ShardId).zip(granted) {
            self.take_shard(now, shard, granted);
        }
    }

    fn take_shard(&mut self, now: Now, shard: ShardId, granted: Option<Held>) {
        let Some(tenure) = self.tenures.get_mut(shard.index()) else { return };
        // One that is sealed stays so, until a grant shows that this was heard.
        if tenure.map(|held| held.since) == granted.map(|held| held.since) {
            return;
        }
        // Another "since" means that somebody else may have owned it in between: its entries are worth nothing.
        if let Some(ended) = std::mem::replace(tenure, granted) {
            self.effects.push_back(Effect::Release { shard });
            if !ended.is_sealed || self.is_leaving {
                // Somebody waits for it, or for us to have nothing left.
                self.next_renew = now.boot;
            }
        }
        if let Some(Held { since, after, .. }) = granted {
            self.effects.push_back(Effect::Serve { shard, since, after });
        }
        // What was measured was an earlier tenure's.
        self.loads[shard.index()] = None;
    }

    fn term(&self) -> Option<Term> {
        self.greeting.map(|greeting| greeting.term)
    }

    fn see(&mut self, epoch: Epoch) {
        self.seen = self.seen.max(epoch);
    }

    /// A request for the lease, when it is time for one; it goes to every seed. `budgets` says, for each database with a
    /// budget, how many slots operations hold at this moment, and how many could be made use of.
    pub fn poll_renew(&mut self, now: Now, budgets: impl FnOnce() -> Vec<BudgetUse>) -> Option<Renew> {
        if self.is_leaving && !self.has_left && !self.holds(now) {
            // Nobody can take anything over from it any more.
            self.leave();
        }
        if now.boot < self.next_renew || self.has_left {
            return None;
        }
        self.next_renew = now.boot + self.times.period;
        self.request += 1;
        self.sent.retain(|(_, asked)| now.boot < asked.boot + self.times.lease);
        self.sent.push_back((self.request, now));
        let held: Vec<Tenure> = if self.holds(now) { self.held().collect() } else { Vec::new() };
        if let Some(lease) = self.lease.filter(|lease| !lease.holds(now) && !self.shares.is_empty()) {
            // Not to be taken up again, should the clocks come together once more.
            self.shares.clear();
            self.effects.push_back(Effect::Shares(Vec::new(), lease));
        }
        let mut budgets = budgets();
        for used in &mut budgets {
            let share = self.shares.iter().find(|share| share.database == used.database);
            used.held = share.map_or(0, |share| share.slots).max(used.held);
        }
        let loads = self.new_loads(&held);
        Some(Renew {
            member: self.me.member.clone(),
            incarnation: self.me.incarnation,
            identity: self.me.identity.clone(),
            request: self.request,
            granted: self.granted,
            seen: self.seen,
            map: self.map.as_ref().map_or_else(Epoch::default, |map| map.epoch()),
            greeting: self.greeting,
            held,
            loads,
            sealed: self.sealed().collect(),
            taken: self.taken.iter().map(|(shard, since)| (*shard, *since)).collect(),
            budgets,
            is_leaving: self.is_leaving,
        })
    }

    /// The loads of what is held, when there is news and all have been measured.
    fn new_loads(&mut self, held: &[Tenure]) -> Vec<ShardLoad> {
        if !self.has_new_loads || self.greeting.is_none() {
            return Vec::new();
        }
        let loads: Option<Vec<ShardLoad>> = held.iter().map(|tenure| self.loads[tenure.shard.index()]).collect();
        self.has_new_loads = loads.is_none();
        loads.unwrap_or_default()
    }

    /// What is served, while the lease holds.
    pub fn held(&self) -> impl Iterator<Item = Tenure> {
        self.granted().filter(|(_, held)| !held.is_sealed).map(|(shard, held)| Tenure {
            shard,
            since: held.since,
            after: held.after,
        })
    }

    fn sealed(&self) -> impl Iterator<Item = (ShardId, Epoch)> {
        self.granted().filter(|(_, held)| held.is_sealed).map(|(shard, held)| (shard, held.since))
    }

    fn granted(&self) -> impl Iterator<Item = (ShardId, Held)> {
        (0..).map(ShardId).zip(&self.tenures).filter_map(|(shard, held)| held.map(|held| (shard, held)))
    }

    /// When [`Ownership::poll_renew`] has something next.
    #[must_use]
    pub const fn next_renew(&self) -> Duration {
        self.next_renew
    }

    /// The next thing to do, until there is none.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }
}

/// Whether this tenure of a shard is one of those on their way.
fn is_among(transfers: &[Transfer], shard: ShardId, since: Epoch) -> bool {
    transfers.iter().any(|transfer| (transfer.shard, transfer.since) == (shard, since))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::NodeId;

    const fn at(millis: u64) -> Now {
        Now { boot: Duration::from_millis(millis), wall: Duration::from_millis(millis) }
    }

    fn ownership() -> Ownership {
        let member = Member { node: NodeId::parse("pod-0").expect("a name"), data: "h:1".to_owned() };
        let me = Identity { member, incarnation: Incarnation(1), identity: String::new() };
        Ownership::new(at(0), me, NShards::new(8).expect("some"), Times::default())
    }

    /// Asks, and is answered in the name of this greeting with two shards.
    fn renew(ownership: &mut Ownership, now: Now, greeting: Greeting) -> Renew {
        ownership.handle_reply(now, &Reply::Hello { incarnation: Incarnation(1), greeting });
        ownership.next_renew = now.boot;
        let renew = ownership.poll_renew(now, Vec::new).expect("it is time");
        let since = Epoch { term: Term { counter: 1, seed: 0 }, seq: 1 };
        let tenure = |shard| Tenure { shard: ShardId(shard), since, after: After::Nobody };
        let grant = Grant {
            incarnation: Incarnation(1),
            request: renew.request,
            epoch: Epoch { term: greeting.term, seq: 1 },
            shards: vec![tenure(1), tenure(3)],
            giving: Vec::new(),
            taking: Vec::new(),
            shares: Vec::new(),
            map: None,
        };
        ownership.handle_reply(now, &Reply::Grant(grant));
        renew
    }

    #[test]
    fn what_was_taken_over_is_said_until_a_grant_shows_that_it_was_heard() {
        let mut ownership = ownership();
        let greeting = Greeting { term: Term { counter: 1, seed: 0 }, nonce: 1 };
        ownership.handle_reply(at(0), &Reply::Hello { incarnation: Incarnation(1), greeting });
        let since = Epoch { term: greeting.term, seq: 1 };
        let ask = |ownership: &mut Ownership, millis, taking: &[u16]| {
            let renew = ownership.poll_renew(at(millis), Vec::new).expect("it is time");
            let transfer =
                |shard: &u16| Transfer { shard: ShardId(*shard), since, peer: ownership.me.member.node.clone() };
            let grant = Grant {
                incarnation: Incarnation(1),
                request: renew.request,
                epoch: since,
                shards: Vec::new(),
                giving: Vec::new(),
                taking: taking.iter().map(transfer).collect(),
                shares: Vec::new(),
                map: None,
            };
            ownership.handle_reply(at(millis), &Reply::Grant(grant));
            renew.taken
        };
        let patience = u64::try_from(TAKEN_PATIENCE.as_millis()).expect("short");
        assert_eq!(ask(&mut ownership, 0, &[0, 2]), []);
        for (shard, seq) in [(2, 1), (0, 2), (1, 1)] {
            ownership.handle_taken(at(1), ShardId(shard), Epoch { seq, ..since });
        }
        // Soon; nothing of other tenures or of shards that it is not to take over.
        assert!(ownership.poll_renew(at(patience), Vec::new).is_none());
        assert_eq!(ask(&mut ownership, 1 + patience, &[0, 2]), [(ShardId(2), since)]);
        assert_eq!(ask(&mut ownership, 1000, &[0]), [(ShardId(2), since)]);
        assert_eq!(ask(&mut ownership, 2000, &[0]), []);
    }

    #[test]
    fn an_addition_adds_to_the_lease_that_was_acted_on_last_once() {
        let mut ownership = ownership();
        let greeting = Greeting { term: Term { counter: 1, seed: 0 }, nonce: 1 };
        let request = renew(&mut ownership, at(0), greeting).request;
        let epoch = |seq| Epoch { term: greeting.term, seq };
        ownership.moves.1 =
            vec![Transfer { shard: ShardId(2), since: epoch(1), peer: ownership.me.member.node.clone() }];
        ownership.handle_taken(at(1), ShardId(2), epoch(1));
        while ownership.poll_effect().is_some() {}
        let shards = vec![Tenure { shard: ShardId(2), since: epoch(2), after: After::Sealed(epoch(1)) }];
        let addition = Addition { incarnation: Incarnation(1), request, epoch: epoch(2), shards: shards.clone() };
        let told = |ownership: &mut Ownership, now, addition: &Addition| {
            ownership.handle_reply(now, &Reply::Addition(addition.clone()));
            std::iter::from_fn(|| ownership.poll_effect()).collect::<Vec<_>>()
        };
        // Of another coordinator; for somebody else; what is no news.
        let of_other = Epoch { term: Term { counter: 2, seed: 0 }, seq: 2 };
        assert_eq!(told(&mut ownership, at(2), &Addition { epoch: of_other, ..addition.clone() }), []);
        assert_eq!(told(&mut ownership, at(2), &Addition { incarnation: Incarnation(2), ..addition.clone() }), []);
        assert_eq!(told(&mut ownership, at(2), &Addition { epoch: epoch(1), ..addition.clone() }), []);
        assert!(ownership.next_renew() > at(2).boot);
        let lease = ownership.lease();
        let Tenure { shard, since, after } = shards[0];
        let begins = [Effect::Serve { shard, since, after }, Effect::Moves { giving: Vec::new(), taking: Vec::new() }];
        assert_eq!(told(&mut ownership, at(3), &addition), begins);
        assert_eq!((ownership.lease(), ownership.seen(), ownership.taken.len()), (lease, epoch(2), 0));
        assert!(ownership.serves(at(3), shard));
        assert_eq!(told(&mut ownership, at(4), &addition), []);
        // To a grant that was not acted on, or under a lease that has run out: it is asked for.
        for (millis, request) in [(5, request + 1), (1300, request)] {
            ownership.next_renew = at(5000).boot;
            let late = Addition { request, epoch: epoch(3), ..addition.clone() };
            assert_eq!(told(&mut ownership, at(millis), &late), []);
            assert_eq!((ownership.next_renew(), ownership.seen()), (at(millis).boot, epoch(2)));
        }
    }

    #[test]
    fn who_leaves_in_a_hurry_asks_at_once_whether_it_may_go() {
        let mut ownership = ownership();
        renew(&mut ownership, at(0), Greeting { term: Term { counter: 1, seed: 0 }, nonce: 1 });
        assert_eq!(ownership.handle_hurry(at(1)), 0);
        assert!(ownership.poll_renew(at(1), Vec::new).is_none());
        ownership.handle_leave(at(2));
        assert!(ownership.poll_renew(at(2), Vec::new).is_some());
        ownership.handle_hurry(at(3));
        assert!(ownership.poll_renew(at(3), Vec::new).is_some_and(|renew| renew.is_leaving));
    }

    #[test]
    fn loads_are_told_once_when_all_have_been_measured_and_again_to_another_coordinator() {
        let mut ownership = ownership();
        let greeting = |counter| Greeting { term: Term { counter, seed: 0 }, nonce: 1 };
        let load = |requests_milli| ShardLoad { requests_milli, kib: 1 };
        renew(&mut ownership, at(0), greeting(1));
        ownership.handle_loads([(ShardId(3), load(3))]);
        assert_eq!(renew(&mut ownership, at(100), greeting(1)).loads, []);
        ownership.handle_loads([(ShardId(3), load(3)), (ShardId(1), load(1)), (ShardId(9), load(9))]);
        let told = renew(&mut ownership, at(200), greeting(1));
        assert_eq!((told.held.len(), told.loads), (2, vec![load(1), load(3)]));
        assert_eq!(renew(&mut ownership, at(300), greeting(1)).loads, []);
        assert_eq!(renew(&mut ownership, at(400), greeting(2)).loads, [load(1), load(3)]);
        assert_eq!(renew(&mut ownership, at(500), greeting(2)).loads, []);
    }
}
