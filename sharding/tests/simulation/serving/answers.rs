//! What comes back from the database, and what does not.

use std::time::Duration;

use sharding::epoch::Epoch;
use sharding::fence::Token;
use sharding::flight::FlightId;
use sharding::id::ShardId;
use sharding::keys::{Outcome, Waiting, WriteId};
use sharding::times::Now;

use super::{Asker, FENCE, Output, PATIENCE, Pending, Purpose, REGION, Serving, Told, Turn, Writer, name};
use crate::database::Answer;
use crate::world::KEYS_PER_SHARD;

impl Serving {
    /// The database has answered; `None`: it did not in time.
    fn handle_answer(&mut self, turn: &mut Turn<'_>, purpose: Purpose, answer: Option<Answer>) {
        match (purpose, answer) {
            (Purpose::Load { key, since, flight }, answer) => self.landed(turn, key, since, flight, answer),
            (Purpose::Write { key, since, write, writer }, answer) => {
                self.written(turn, key, since, (write, writer), answer);
            }
            (Purpose::Raise(_), Some(Answer::Raised(raised))) => {
                raised.into_iter().for_each(|(shard, token, higher)| self.raised(turn, shard, token, higher));
            }
            (Purpose::Raise(tokens), _) => self.raise_failed(turn.now, tokens),
            (Purpose::Pass { askers, .. }, answer) => {
                let told = match answer {
                    Some(Answer::Loaded(value)) => Told::Value { value, passed: true },
                    _ => Told::Failed,
                };
                self.outputs.extend(askers.into_iter().map(|asker| Output::Tell(asker, told)));
            }
        }
    }

    pub(crate) fn handle_landed(&mut self, mut turn: Turn<'_>, operation: u64, answer: Answer) {
        if let Some(pending) = self.pending.remove(&operation) {
            self.handle_answer(&mut turn, pending.purpose, Some(answer));
        }
    }

    /// Gives up what has taken too long.
    pub(crate) fn poll(&mut self, turn: &mut Turn<'_>) {
        let now = turn.now.boot;
        let over: Vec<Pending> =
            self.pending.extract_if(.., |_, pending| pending.until <= now).map(|(_, pending)| pending).collect();
        over.into_iter().for_each(|pending| self.handle_answer(turn, pending.purpose, None));
        if self.asked.values().any(|came| *came + PATIENCE <= now) {
            self.tell_impatient(now);
        }
        self.tell_late(turn);
        self.poll_taking(turn.now);
    }

    /// Who has waited for too long leaves alone.
    fn tell_impatient(&mut self, now: Duration) {
        let leaves = |asker: &Asker| self.asked.get(&asker.request).is_some_and(|came| *came + PATIENCE <= now);
        let mut left = Vec::new();
        for Pending { purpose, .. } in self.pending.values() {
            if let Purpose::Load { key, since, flight } = purpose
                && let Some(served) = &mut self.shards[key / KEYS_PER_SHARD]
                && served.since == *since
            {
                left.extend(served.keys.take_landing(&name(*key), *flight, leaves));
            }
        }
        let mut waiting = Waiting { readers: left.into_iter().map(|asker| (REGION, asker)).collect(), writers: vec![] };
        for served in self.shards.iter_mut().flatten() {
            let left = served.keys.take_waiting(leaves, |writer| leaves(&writer.asker));
            waiting.readers.extend(left.readers);
            waiting.writers.extend(left.writers);
        }
        self.tell_waiting(waiting, Told::Failed, Told::NotApplied);
    }

    fn landed(&mut self, turn: &Turn<'_>, key: usize, since: Epoch, flight: FlightId, answer: Option<Answer>) {
        let notes = !self.manners.notes_nothing;
        let Some(served) = self.served(key, since) else { return };
        let Some((readers, keeps)) = served.keys.handle_landed(&name(key), flight) else { return };
        let mut told = Told::Failed;
        if let Some(Answer::Loaded(value)) = answer {
            told = Told::Value { value, passed: false };
            served.note_change(key, notes);
            if keeps && turn.ownership.holds(turn.now) && served.is_open() {
                served.entries[key % KEYS_PER_SHARD] = Some(value);
            }
        }
        self.outputs.extend(readers.into_iter().map(|asker| Output::Tell(asker, told)));
    }

    fn written(
        &mut self,
        turn: &mut Turn<'_>,
        key: usize,
        since: Epoch,
        (write, writer): (WriteId, Writer),
        answer: Option<Answer>,
    ) {
        let (next_n, notes) = (self.numbers.draw(), !self.manners.notes_nothing);
        let unknown = if self.manners.blurs_unknown { Told::NotApplied } else { Told::Unknown };
        let told = match (self.served(key, since), answer) {
            (Some(served), Some(Answer::Fenced)) => {
                served.keys.handle_fenced(&name(key), write, writer, || next_n);
                None
            }
            (None, Some(Answer::Fenced)) => Some((writer.asker, Told::Misdirected)),
            (served, answer) => {
                let is_known = answer.is_some();
                if let Some(served) = served {
                    let outcome = if is_known { Outcome::Known } else { Outcome::Unknown };
                    served.note_change(key, notes);
                    if served.keys.handle_written(&name(key), write, outcome, || next_n) {
                        served.entries[key % KEYS_PER_SHARD] = Some(writer.value);
                    }
                }
                Some((writer.asker, if is_known { Told::Done } else { unknown }))
            }
        };
        self.outputs.extend(told.map(|(asker, told)| Output::Tell(asker, told)));
        self.perform(turn, key);
    }

    fn raised(&mut self, turn: &mut Turn<'_>, shard: usize, token: Token, higher: Option<Token>) {
        let key = shard * KEYS_PER_SHARD;
        let numbers = self.numbers;
        let Some(served) = self.served(key, token.since) else { return };
        let is_ours = |higher: Token| higher.since == token.since && numbers.have_given(higher.n);
        match higher.filter(|higher| !is_ours(*higher)) {
            // Or it is higher by this node's own next raise.
            None => served.keys.handle_raised(FENCE, token.n),
            Some(_) if self.manners.ignores_fences => {}
            // Somebody else has owned it since: this node gives it up.
            Some(higher) => {
                let shard = ShardId(u16::try_from(shard).expect("few"));
                turn.ownership.handle_fence(turn.now, shard, higher.since);
            }
        }
        self.perform(turn, key);
    }

    /// Raises again what is still wanted. Who waits is told that it takes long.
    fn raise_failed(&mut self, now: Now, mut tokens: Vec<(usize, Token)>) {
        tokens.retain(|&(shard, token)| self.served(shard * KEYS_PER_SHARD, token.since).is_some());
        for &(shard, token) in &tokens {
            if let Some(served) = self.served(shard * KEYS_PER_SHARD, token.since) {
                let waiting = served.keys.handle_raise_failed(FENCE);
                self.tell_waiting(waiting, Told::Failed, Told::NotApplied);
            }
        }
        if !tokens.is_empty() {
            self.raise(now, tokens);
        }
    }
}
