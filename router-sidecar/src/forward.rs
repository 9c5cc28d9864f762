//! One request from the router to the owner of its key, and again when the first try meets a setback.

pub(crate) mod many;

use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use sharding::hash::shard_of;
use sharding::id::{RegionName, ShardId};
use sharding::routing::{Next, Setback, Tries, bypass};
use sharding::wire::{AnswerBody, Ask, AskRef, Failure, FailureCode, GetRef, Precondition, RequestBody};
use tokio::time::{Instant, sleep, timeout_at};
use transport::upstream::{Asking, Upstream, UpstreamError};

use crate::map_watch::{MapWatch, View};
use crate::metrics::Metrics;

/// Why no answer could be had.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("no node has told the shard map yet")]
    NoMap,
    #[error("shard {0} has no owner at this moment")]
    NoOwner(ShardId),
    #[error("shard {0} is being handed from node to node")]
    Misdirected(ShardId),
    #[error("the owner of shard {shard} cannot be reached: {error}")]
    Unreachable { shard: ShardId, error: UpstreamError },
    #[error("{0}")]
    Overloaded(UpstreamError),
    #[error("no answer within {0:?}")]
    DeadlinePassed(Duration),
    #[error("{}", .0.message)]
    Node(Failure),
    #[error("{why}")]
    GivenUp { why: Box<Self>, retry_after: Duration },
    #[error("not written: {0}")]
    NotWritten(Box<Self>),
    #[error("whether it was written is not known: {0}; read it to see")]
    Unknown(Box<Self>),
}

/// What one thread needs to ask any node.
#[derive(Clone)]
pub(crate) struct Forwarder {
    pub(crate) watch: Arc<MapWatch>,
    pub(crate) upstream: Rc<Upstream>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) request_timeout: Duration,
}

/// What is asked of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Get,
    Explain,
    Invalidate,
    /// All keys of a shard that begin so.
    InvalidatePrefix(ShardId),
    Put(Precondition, Bytes),
    Delete(Precondition),
}

impl Question {
    const fn is_write(&self) -> bool {
        matches!(self, Self::Put(..) | Self::Delete(_))
    }
}

/// A read that was sent to the owner of its key as soon as it came.
pub(crate) struct Begun {
    view: Arc<View>,
    shard: ShardId,
    asking: Asking,
    /// What the owner has said, if it is nothing that was asked for.
    setback: Option<AnswerBody>,
}

impl Begun {
    /// By which map.
    pub(crate) const fn view(&self) -> &Arc<View> {
        &self.view
    }

    /// As [`Begun::poll_answer`].
    pub(crate) async fn answer(&mut self) -> Option<AnswerBody> {
        poll_fn(|cx| self.poll_answer(cx)).await
    }

    /// A value, or "absent". `None`: [`Forwarder::go_on`] says what there is instead.
    pub(crate) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Option<AnswerBody>> {
        self.asking.poll_answer(cx).map(|answer| match answer {
            Some(answer @ (AnswerBody::Value { .. } | AnswerBody::Absent(_))) => Some(answer),
            other => {
                self.setback = other;
                None
            }
        })
    }
}

/// One request, through all its tries.
struct Wish<'a> {
    question: Question,
    region: &'a RegionName,
    key: Bytes,
    deadline: Instant,
    /// A node may do it, or may have done it, and has not said so.
    may_be_done: Cell<bool>,
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whom {
    Owner,
    /// The one of this place in [`bypass`].
    Past(usize),
}

/// After so long without an answer the router looks whether the node is there at all.
const PATIENCE: Duration = Duration::from_millis(100);

impl Forwarder {
    /// Asks the owner of a key, for a client's request that came at this time. Gives a value, "absent" or a page; everything
    /// else is an error.
    pub(crate) async fn ask(
        &self,
        question: Question,
        region: &RegionName,
        key: Bytes,
        came_at: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        let deadline = came_at + self.request_timeout;
        let wish = Wish { question, region, key, deadline, may_be_done: Cell::new(false) };
        let answer = self.ask_until(&wish, None).await;
        match answer {
            // What a node says of a write says whether it was done.
            Err(error) if wish.question.is_write() && !matches!(error, ForwardError::Node(_)) => {
                let why = Box::new(error);
                Err(if wish.may_be_done.get() { ForwardError::Unknown(why) } else { ForwardError::NotWritten(why) })
            }
            answer => answer,
        }
    }

    /// Sends a read to its owner, if there is nothing to be waited for before. `left`: the time that its client still waits.
    pub(crate) fn begin(&self, view: &Arc<View>, region: &RegionName, key: &[u8], left: Duration) -> Option<Begun> {
        let shard = shard_of(region, key, view.map.n_shards());
        // Nothing else looks at the time until then.
        let patience = PATIENCE.min(left / 2);
        let begin = self.upstream.begin(&view.map.owner_of(shard)?.data, shard, patience)?;
        let ask = AskRef { deadline: left, epoch: view.map.epoch(), shard, region: region.as_str().as_bytes(), key };
        let asking = begin.ask(|id, out| GetRef { id, ask }.encode(out));
        Some(Begun { view: Arc::clone(view), shard, asking, setback: None })
    }

    /// Reads a key: as [`Forwarder::ask`], in the shortest way that there is.
    pub(crate) async fn get(
        &self,
        view: &Arc<View>,
        region: &RegionName,
        key: Bytes,
        came_at: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        let deadline = came_at + self.request_timeout;
        let mut begun = self.begin(view, region, &key, deadline.saturating_duration_since(Instant::now()));
        if let Some(begun) = &mut begun
            && let Ok(Some(answer)) = timeout_at(deadline, begun.answer()).await
        {
            return Ok(answer);
        }
        self.go_on(begun, region, key, came_at).await
    }

    /// As [`Forwarder::ask`], with a first try that was begun, if there was one.
    pub(crate) async fn go_on(
        &self,
        begun: Option<Begun>,
        region: &RegionName,
        key: Bytes,
        came_at: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        let Some(Begun { view, shard, asking, setback }) = begun else {
            return self.ask(Question::Get, region, key, came_at).await;
        };
        let answer = match setback {
            Some(setback) => Ok(setback),
            None => self.upstream.answer(asking, shard, came_at + self.request_timeout).await,
        };
        self.follow(answer, (view, shard), region, key, came_at).await
    }

    /// As [`Forwarder::ask`] for a read whose first try has brought this.
    async fn follow(
        &self,
        first: Result<AnswerBody, UpstreamError>,
        (view, shard): (Arc<View>, ShardId),
        region: &RegionName,
        key: Bytes,
        came_at: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        let deadline = came_at + self.request_timeout;
        let wish = Wish { question: Question::Get, region, key, deadline, may_be_done: Cell::new(false) };
        match self.met(first, shard, &wish) {
            Ok(answer) => Ok(answer),
            Err(Met::Final(error)) => Err(error),
            Err(Met::Setback(setback, error)) => self.ask_until(&wish, Some((view, shard, setback, error))).await,
        }
    }

    /// Tries until there is an answer. `first`: what the first try has met, if there was one.
    async fn ask_until(
        &self,
        wish: &Wish<'_>,
        first: Option<(Arc<View>, ShardId, Setback, ForwardError)>,
    ) -> Result<AnswerBody, ForwardError> {
        // Each try keeps the deadline itself; this one is for the waits between them.
        let asked = timeout_at(wish.deadline, self.try_until(wish, first)).await;
        asked.unwrap_or(Err(ForwardError::DeadlinePassed(self.request_timeout)))
    }

    async fn try_until(
        &self,
        wish: &Wish<'_>,
        mut first: Option<(Arc<View>, ShardId, Setback, ForwardError)>,
    ) -> Result<AnswerBody, ForwardError> {
        let tries = if wish.question == Question::Get { Tries::of_read() } else { Tries::of_owner() };
        let (mut tries, mut whom, mut first_error) = (tries, Whom::Owner, None);
        loop {
            let (view, shard, setback, error) = match first.take() {
                Some(met) => met,
                None => {
                    let view = self.watch.view().ok_or(ForwardError::NoMap)?;
                    let shard = match &wish.question {
                        &Question::InvalidatePrefix(shard) => shard,
                        _ => shard_of(wish.region, &wish.key, view.map.n_shards()),
                    };
                    match self.try_once(&view, shard, whom, wish).await {
                        Ok(answer) => return Ok(answer),
                        Err(Met::Final(error)) => return Err(error),
                        Err(Met::Setback(setback, error)) => (view, shard, setback, error),
                    }
                }
            };
            // What the owner met says more than what those met who were asked past it.
            let error = first_error.get_or_insert(error);
            let n_others = bypass(&view.map, self.watch.seeds(), shard).len();
            match tries.handle_setback(view.map.epoch(), n_others, setback) {
                Next::GiveUp => return Err(self.given_up(error)),
                Next::PassThrough(place) => {
                    self.watch.suspect();
                    whom = Whom::Past(place);
                }
                Next::Pause(pause) => {
                    whom = Whom::Owner;
                    sleep(pause).await;
                }
                Next::RefreshMap(epoch) => {
                    whom = Whom::Owner;
                    let knows = view.map.owner_of(shard).map_or("", |owner| owner.data.as_str());
                    self.watch.reach(epoch, knows).await;
                }
            }
            self.metrics.count_retry(reason(setback));
        }
    }

    fn given_up(&self, why: &ForwardError) -> ForwardError {
        ForwardError::GivenUp { why: Box::new(why.clone()), retry_after: self.watch.retry_after() }
    }

    async fn try_once(&self, view: &View, shard: ShardId, whom: Whom, wish: &Wish<'_>) -> Result<AnswerBody, Met> {
        let node = match whom {
            Whom::Owner => view.map.owner_of(shard),
            Whom::Past(place) => bypass(&view.map, self.watch.seeds(), shard).get(place).copied(),
        };
        let Some(node) = node else {
            return Err(Met::Setback(Setback::NoOwner, ForwardError::NoOwner(shard)));
        };
        let ask = Ask {
            deadline: wish.deadline.saturating_duration_since(Instant::now()),
            epoch: view.map.epoch(),
            shard,
            region: Bytes::copy_from_slice(wish.region.as_str().as_bytes()),
            key: wish.key.clone(),
        };
        let body = match (whom, &wish.question) {
            (Whom::Past(_), _) => RequestBody::PassThrough(ask),
            (Whom::Owner, Question::Get) => RequestBody::Get(ask),
            (Whom::Owner, Question::Explain) => RequestBody::Explain(ask),
            (Whom::Owner, Question::Invalidate) => RequestBody::Invalidate(ask),
            (Whom::Owner, Question::InvalidatePrefix(_)) => RequestBody::InvalidatePrefix(ask),
            (Whom::Owner, Question::Put(precondition, value)) => {
                RequestBody::Put(ask, precondition.clone(), value.clone())
            }
            (Whom::Owner, Question::Delete(precondition)) => RequestBody::Delete(ask, precondition.clone()),
        };
        wish.may_be_done.set(true);
        let answer = self.upstream.ask_patiently(&node.data, shard, body, wish.deadline, PATIENCE).await;
        wish.may_be_done.set(answer.as_ref().is_err_and(UpstreamError::was_asked));
        self.met(answer, shard, wish)
    }

    /// What a try has brought.
    fn met(
        &self,
        answer: Result<AnswerBody, UpstreamError>,
        shard: ShardId,
        wish: &Wish<'_>,
    ) -> Result<AnswerBody, Met> {
        match answer {
            Ok(AnswerBody::Misdirected { epoch, .. }) => {
                self.metrics.misdirected.inc();
                Err(Met::Setback(Setback::Misdirected(epoch), ForwardError::Misdirected(shard)))
            }
            Ok(AnswerBody::Failed(failure)) if failure.code == FailureCode::Dropped => {
                Err(Met::Setback(Setback::Dropped, ForwardError::Node(failure)))
            }
            Ok(AnswerBody::Failed(failure)) => Err(Met::Final(ForwardError::Node(failure))),
            Ok(answer) => Ok(answer),
            Err(UpstreamError::DeadlinePassed { .. }) => {
                Err(Met::Final(ForwardError::DeadlinePassed(self.request_timeout)))
            }
            Err(error @ UpstreamError::Overloaded { .. }) => Err(Met::Final(ForwardError::Overloaded(error))),
            // Sent again, it might be done twice, and over what was written meanwhile.
            Err(error) if wish.question.is_write() && error.was_asked() => {
                Err(Met::Final(ForwardError::Unreachable { shard, error }))
            }
            Err(error) => Err(Met::Setback(Setback::Unreachable, ForwardError::Unreachable { shard, error })),
        }
    }
}

/// What a try met instead of an answer.
enum Met {
    /// Another try may do better; if not, this is the error.
    Setback(Setback, ForwardError),
    Final(ForwardError),
}

const fn reason(setback: Setback) -> &'static str {
    match setback {
        Setback::Misdirected(_) => "misdirected",
        Setback::NoOwner => "no_owner",
        Setback::Unreachable => "unreachable",
        Setback::Dropped => "dropped",
    }
}
