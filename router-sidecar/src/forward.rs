//! One request from the router to the owner of its key, and again when the first try meets a setback.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sharding::hash::shard_of;
use sharding::id::{RegionName, ShardId};
use sharding::routing::{Next, Setback, Tries};
use sharding::wire::{AnswerBody, Ask, Failure, FailureCode, RequestBody};
use tokio::time::{Instant, sleep, timeout_at};

use crate::map_watch::{MapWatch, View};
use crate::metrics::Metrics;
use crate::upstream::{Upstream, UpstreamError};

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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Question {
    Get,
    Explain,
}

impl Forwarder {
    /// Asks the owner of a key. Gives a value, "absent" or a page; everything else is an error.
    pub(crate) async fn ask(
        &self,
        question: Question,
        region: &RegionName,
        key: Bytes,
    ) -> Result<AnswerBody, ForwardError> {
        let deadline = Instant::now() + self.request_timeout;
        let asked = self.ask_until(question, region, key, deadline);
        // Each try keeps the deadline itself; this one is for the waits between them.
        timeout_at(deadline, asked).await.unwrap_or(Err(ForwardError::DeadlinePassed(self.request_timeout)))
    }

    async fn ask_until(
        &self,
        question: Question,
        region: &RegionName,
        key: Bytes,
        deadline: Instant,
    ) -> Result<AnswerBody, ForwardError> {
        let mut tries = Tries::default();
        loop {
            let view = self.watch.view().ok_or(ForwardError::NoMap)?;
            let shard = shard_of(region, &key, view.map.n_shards());
            let (setback, error) = match self.try_once(&view, shard, question, region, &key, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(Met::Final(error)) => return Err(error),
                Err(Met::Setback(setback, error)) => (setback, error),
            };
            match tries.handle_setback(view.map.epoch(), setback) {
                Next::GiveUp => return Err(error),
                Next::Pause(pause) => sleep(pause).await,
                Next::RefreshMap(epoch) => {
                    let knows = view.map.owner_of(shard).map_or("", |owner| owner.data.as_str());
                    self.watch.reach(epoch, knows).await;
                }
            }
            self.metrics.count_retry(reason(setback));
        }
    }

    async fn try_once(
        &self,
        view: &View,
        shard: ShardId,
        question: Question,
        region: &RegionName,
        key: &Bytes,
        deadline: Instant,
    ) -> Result<AnswerBody, Met> {
        let Some(owner) = view.map.owner_of(shard) else {
            return Err(Met::Setback(Setback::NoOwner, ForwardError::NoOwner(shard)));
        };
        let ask = Ask {
            deadline: deadline.saturating_duration_since(Instant::now()),
            epoch: view.map.epoch(),
            shard,
            region: Bytes::copy_from_slice(region.as_str().as_bytes()),
            key: key.clone(),
        };
        let body = match question {
            Question::Get => RequestBody::Get(ask),
            Question::Explain => RequestBody::Explain(ask),
        };
        match self.upstream.ask(&owner.data, Some(shard), body, deadline).await {
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
            Err(error @ (UpstreamError::Unreachable { .. } | UpstreamError::Lost { .. })) => {
                Err(Met::Setback(Setback::Unreachable, ForwardError::Unreachable { shard, error }))
            }
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
