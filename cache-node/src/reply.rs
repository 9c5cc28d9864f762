//! Answers on their way back to a router: each connection has one [`Outbox`]; each request that came in on it has one
//! [`Reply`] into it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use sharding::wire::{Answer, AnswerBody, Failure, FailureCode};
use tokio::sync::Notify;

/// Answers of one connection that wait to be written. Shared by the connection, which writes, and by the replies,
/// which may be held by any lane or loader thread. Values in it are handles: a waiting answer copies no value.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    state: Mutex<State>,
    changed: Notify,
    taken: Notify,
}

#[derive(Debug, Default)]
struct State {
    answers: Vec<Answer>,
    /// Requests that have not been answered yet.
    unanswered: usize,
}

impl Outbox {
    /// Takes all answers that wait, in the place of `taken`, which must be empty; whether more are to come.
    pub(crate) fn take(&self, taken: &mut Vec<Answer>) -> bool {
        let mut state = self.lock();
        std::mem::swap(&mut state.answers, taken);
        self.taken.notify_one();
        state.unanswered > 0
    }

    /// Resolves when at most so many requests are in flight.
    pub(crate) async fn room(&self, in_flight_max: usize) {
        while self.in_flight() > in_flight_max {
            self.taken.notified().await;
        }
    }

    /// Resolves when something may have changed since the last [`Outbox::take`].
    pub(crate) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Requests that were taken in and whose answers were not taken out.
    pub(crate) fn in_flight(&self) -> usize {
        let state = self.lock();
        state.unanswered + state.answers.len()
    }

    /// Makes the writer look again.
    pub(crate) fn wake(&self) {
        self.changed.notify_one();
    }

    /// A reply to the request of this id.
    pub(crate) fn reply(self: &Arc<Self>, id: u32) -> Reply {
        self.lock().unanswered += 1;
        Reply { outbox: Arc::clone(self), id, is_answered: false, is_begun: false }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the lock")
    }
}

/// The one answer that a request will get. Dropped without one (its shard's actor panicked, its load was given up), it
/// says so: no request is left without an answer.
#[derive(Debug)]
pub(crate) struct Reply {
    outbox: Arc<Outbox>,
    id: u32,
    is_answered: bool,
    /// It is about a write that has been begun: lost, nobody knows what became of that.
    is_begun: bool,
}

impl Reply {
    pub(crate) fn send(mut self, body: AnswerBody) {
        self.answer(body);
    }

    /// What was asked for is being done from now on: it can be lost no more as if it had not.
    pub(crate) const fn begin(&mut self, is_begun: bool) {
        self.is_begun = is_begun;
    }

    pub(crate) fn fail(self, code: FailureCode, retry_after: Duration, message: impl Into<String>) {
        self.send(AnswerBody::Failed(Failure { code, retry_after, message: message.into() }));
    }

    fn answer(&mut self, body: AnswerBody) {
        self.is_answered = true;
        let mut state = self.outbox.lock();
        state.unanswered -= 1;
        state.answers.push(Answer { id: self.id, body });
        drop(state);
        self.outbox.changed.notify_one();
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.is_answered {
            let (code, message) = match self.is_begun {
                true => (FailureCode::Unknown, "the write was lost inside the node; read the key to see"),
                false => (FailureCode::Dropped, "the request was lost inside the node; send it again"),
            };
            let (retry_after, message) = (Duration::ZERO, message.to_owned());
            self.answer(AnswerBody::Failed(Failure { code, retry_after, message }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_that_is_dropped_answers_all_the_same() {
        let outbox = Arc::new(Outbox::default());
        drop(outbox.reply(7));
        let mut answers = Vec::new();
        assert!(!outbox.take(&mut answers));
        let [Answer { id: 7, body: AnswerBody::Failed(failure) }] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!(failure.code, FailureCode::Dropped);
    }

    #[test]
    fn a_write_that_was_begun_and_is_dropped_says_that_nobody_knows() {
        let outbox = Arc::new(Outbox::default());
        let mut reply = outbox.reply(7);
        reply.begin(true);
        drop(reply);
        let mut answers = Vec::new();
        outbox.take(&mut answers);
        let [Answer { body: AnswerBody::Failed(failure), .. }] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!(failure.code, FailureCode::Unknown);
    }

    #[test]
    fn what_is_in_flight_is_counted_until_it_is_taken_out() {
        let outbox = Arc::new(Outbox::default());
        let (first, second) = (outbox.reply(1), outbox.reply(2));
        first.fail(FailureCode::Overloaded, Duration::ZERO, "full");
        assert_eq!(outbox.in_flight(), 2);
        assert!(outbox.take(&mut Vec::new()), "the second is to come");
        assert_eq!(outbox.in_flight(), 1);
        drop(second);
        assert!(!outbox.take(&mut Vec::new()));
        assert_eq!(outbox.in_flight(), 0);
    }
}
