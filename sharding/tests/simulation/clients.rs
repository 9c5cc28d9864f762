//! Clients, each with a router: one read or write after the other, as routers send them.

use std::time::Duration;

use sharding::id::ShardId;

use crate::database::Value;
use crate::events::{Message, What};
use crate::history::{OPEN, Op};
use crate::serving::{Ask, Asker, Told};
use crate::world::{KEYS_PER_SHARD, World};

/// Most times that an owner is asked.
const TRIES_MAX: u32 = 3;
/// Before the second try.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// A read waits so long for the owner; then it goes past it.
const OWNER_TIMEOUT: Duration = Duration::from_millis(200);
const PASS_TIMEOUT: Duration = Duration::from_secs(2);
/// After this time the outcome of a write is unknown.
const PUT_TIMEOUT: Duration = Duration::from_secs(1);
/// A router that makes the mistake sends a write again after this time.
const RESEND_AFTER: Duration = Duration::from_millis(100);

/// What happens to a client.
#[derive(Clone, Copy, Debug)]
pub(crate) enum ClientEvent {
    Begin,
    /// Time to ask again.
    Retry(u64),
    /// No answer has come.
    Late(u64),
    Answer(u64, Told),
}

pub(crate) struct Client {
    /// Beside which its router is.
    machine: usize,
    doing: Option<Doing>,
}

impl Client {
    pub(crate) const fn new(machine: usize) -> Self {
        Self { machine, doing: None }
    }
}

/// The operation of a client.
#[derive(Clone, Copy)]
struct Doing {
    key: usize,
    /// `None`: it reads.
    write: Option<Value>,
    began: (u64, Duration),
    /// The place of what was acknowledged before.
    floor: u64,
    /// The last request for it.
    request: u64,
    tries: u32,
    is_passing: bool,
    was_resent: bool,
}

impl World {
    /// What clients are still at: reads tell nothing, writes may yet be done.
    pub(crate) fn end_clients(&mut self) {
        for client in 0..self.clients.len() {
            if let Some(doing) = self.clients[client].doing.take() {
                self.note_write(doing, OPEN);
            }
        }
    }

    pub(crate) fn at_client(&mut self, at: Duration, client: usize, event: ClientEvent) {
        self.push(at, client, What::Client(event));
    }

    pub(crate) fn handle_client_event(&mut self, client: usize, event: ClientEvent) {
        let doing = self.clients[client].doing;
        match (event, doing) {
            (ClientEvent::Begin, _) => self.begin(client),
            (ClientEvent::Retry(request), Some(doing)) if doing.request == request => self.ask_owner(client, doing),
            (ClientEvent::Late(request), Some(doing)) if doing.request == request => self.handle_late(client, doing),
            (ClientEvent::Answer(request, told), Some(doing)) if doing.request == request => {
                self.handle_told(client, doing, told);
            }
            _ => {}
        }
    }

    fn begin(&mut self, client: usize) {
        if self.clients_rest {
            return;
        }
        let began = (self.history.moment(), self.real);
        let key = self.chance.usize(..self.traffic.keys_in_use);
        let write = (self.chance.u32(..100) < self.traffic.writes).then_some(began.0);
        let floor = self.acknowledged[key];
        let doing = Doing { key, write, began, floor, request: 0, tries: 0, is_passing: false, was_resent: false };
        if write.is_none() && self.chance.u32(..100) < self.traffic.passes {
            self.pass_by(client, doing);
        } else {
            self.ask_owner(client, doing);
        }
    }

    /// The next operation begins after a while.
    fn end(&mut self, client: usize) {
        self.clients[client].doing = None;
        let at = self.real + self.pause_of_clients();
        self.at_client(at, client, ClientEvent::Begin);
    }

    /// Asks the owner by the map of any node.
    fn ask_owner(&mut self, client: usize, mut doing: Doing) {
        doing.tries += 1;
        match (self.owner_by_some_map(doing.key / KEYS_PER_SHARD), doing.write) {
            (Some(owner), Some(value)) => {
                let resends = self.traffic.manners.resends && !doing.was_resent;
                self.ask(client, doing, owner, Ask::Put(value), if resends { RESEND_AFTER } else { PUT_TIMEOUT });
            }
            (Some(owner), None) => self.ask(client, doing, owner, Ask::Get, OWNER_TIMEOUT),
            (None, Some(_)) => self.handle_misdirected(client, doing),
            (None, None) => self.pass_by(client, doing),
        }
    }

    fn owner_by_some_map(&mut self, shard: usize) -> Option<usize> {
        let node = self.any_running()?;
        let shard = ShardId(u16::try_from(shard).expect("few"));
        let owner = self.machines[node].life.as_ref()?.ownership.map()?.owner_of(shard)?;
        owner.node.as_str().strip_prefix("pod-")?.parse().ok()
    }

    fn any_running(&mut self) -> Option<usize> {
        let running: Vec<usize> = (0..self.machines.len()).filter(|node| self.is_running(*node)).collect();
        self.chance.choice(running)
    }

    fn ask(&mut self, client: usize, mut doing: Doing, node: usize, ask: Ask, timeout: Duration) {
        self.n_requests += 1;
        doing.request = self.n_requests;
        self.clients[client].doing = Some(doing);
        let asker = Asker { client, request: doing.request, floor: doing.floor };
        if self.reaches(client, node, true) {
            let at = self.real + self.delay();
            let message = Message::Request { asker, key: doing.key, ask };
            self.push(at, node, What::Deliver { from: node, message: Box::new(message) });
        }
        self.at_client(self.real + timeout, client, ClientEvent::Late(doing.request));
    }

    /// Whether a message between a router and a node gets through. A router has the cuts of its machine and its own.
    fn reaches(&mut self, client: usize, node: usize, goes_there: bool) -> bool {
        let machine = self.clients[client].machine;
        let link = if goes_there { (machine, node) } else { (node, machine) };
        let is_cut = (link.0 != link.1 && self.cut.contains(&link)) || self.cut_off.contains(&(client, node));
        !is_cut && !self.is_lost()
    }

    pub(crate) fn tell_client(&mut self, node: usize, asker: Asker, told: Told) {
        if self.reaches(asker.client, node, false) {
            let at = self.real + self.delay();
            self.at_client(at, asker.client, ClientEvent::Answer(asker.request, told));
        }
    }

    fn pass_by(&mut self, client: usize, mut doing: Doing) {
        doing.is_passing = true;
        match self.any_running() {
            Some(node) => self.ask(client, doing, node, Ask::PassThrough, PASS_TIMEOUT),
            None => self.fail(client),
        }
    }

    fn handle_late(&mut self, client: usize, mut doing: Doing) {
        match doing.write {
            Some(_) if self.traffic.manners.resends && !doing.was_resent => {
                doing.was_resent = true;
                self.ask_owner(client, doing);
            }
            Some(_) => self.end_write(client, doing, Told::Unknown),
            None if doing.is_passing => self.fail(client),
            None => self.pass_by(client, doing),
        }
    }

    fn handle_misdirected(&mut self, client: usize, mut doing: Doing) {
        if doing.tries < TRIES_MAX {
            self.n_requests += 1;
            doing.request = self.n_requests;
            self.clients[client].doing = Some(doing);
            self.at_client(self.real + RETRY_PAUSE, client, ClientEvent::Retry(doing.request));
        } else if doing.write.is_some() {
            self.end_write(client, doing, Told::NotApplied);
        } else {
            self.pass_by(client, doing);
        }
    }

    fn handle_told(&mut self, client: usize, doing: Doing, told: Told) {
        match (told, doing.write) {
            (Told::Misdirected, _) => self.handle_misdirected(client, doing),
            (Told::Value { value, passed }, None) => {
                self.history.counts.passed += u64::from(passed);
                let (ended, real) = (self.history.moment(), (doing.began.1, self.real));
                self.history.add(doing.key, Op { is_write: false, value, began: doing.began.0, ended, real });
                self.end(client);
            }
            (_, None) => self.fail(client),
            (told, Some(_)) => self.end_write(client, doing, told),
        }
    }

    fn end_write(&mut self, client: usize, doing: Doing, told: Told) {
        match told {
            Told::Done => {
                let (ended, value) = (self.history.moment(), doing.write.unwrap_or_default());
                let last = &mut self.acknowledged[doing.key];
                *last = self.database.place(value).max(*last);
                self.note_write(doing, ended);
            }
            // What was sent twice may have been done once.
            Told::NotApplied if !doing.was_resent => self.history.counts.not_applied += 1,
            _ => self.note_write(doing, OPEN),
        }
        self.end(client);
    }

    fn note_write(&mut self, doing: Doing, ended: u64) {
        if let Some(value) = doing.write {
            let (began, real) = (doing.began.0, (doing.began.1, self.real));
            self.history.add(doing.key, Op { is_write: true, value, began, ended, real });
        }
    }

    fn fail(&mut self, client: usize) {
        self.history.counts.failed += 1;
        self.end(client);
    }
}
