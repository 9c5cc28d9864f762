//! Probes, metrics, and the pages about the cluster.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::join_all;
use serde::Serialize;
use serde_json::value::RawValue;
use sharding::epoch::Epoch;
use sharding::id::{NodeId, ShardId};
use sharding::map::Member;
use sharding::wire::{AnswerBody, RequestBody};
use tokio::time::Instant;

use super::error::Problem;
use super::target::Target;
use super::{HttpState, METRICS_TYPE, Probed, Shared};
use crate::forward::Question;

/// Longest time that one node may take to describe itself.
const DESCRIBE_TIMEOUT: Duration = Duration::from_millis(500);

pub(super) async fn livez() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain").body("alive\n")
}

/// Ready: a map is known and the router is not on its way out. A node that is away does not make it unready.
pub(super) async fn readyz(probed: web::Data<Probed>) -> HttpResponse {
    let waits_for = if *probed.drain.borrow() {
        "its end: it drains"
    } else if probed.watch.view().is_none() {
        "the shard map: no node has answered yet"
    } else {
        return HttpResponse::Ok().content_type("text/plain").body("ready\n");
    };
    HttpResponse::ServiceUnavailable().content_type("text/plain").body(format!("not ready: waits for {waits_for}\n"))
}

pub(super) async fn metrics(probed: web::Data<Probed>) -> HttpResponse {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &probed.registry) {
        Ok(()) => HttpResponse::Ok().content_type(METRICS_TYPE).body(text),
        Err(error) => HttpResponse::InternalServerError().body(error.to_string()),
    }
}

pub(super) async fn map(request: HttpRequest, state: Shared) -> HttpResponse {
    match state.forwarder.watch.view() {
        Some(view) => HttpResponse::Ok().json(view.map.page()),
        None => Problem::no_map().answer(request.head()),
    }
}

/// What `/-/cluster` shows.
#[derive(Serialize)]
struct ClusterPage {
    epoch: Epoch,
    members: Vec<MemberPage>,
}

#[derive(Serialize)]
struct MemberPage {
    node: NodeId,
    data: String,
    shards_owned: usize,
    /// What the node says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Box<RawValue>>,
    /// Why it says nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

pub(super) async fn cluster(request: HttpRequest, state: Shared) -> HttpResponse {
    let Some(view) = state.forwarder.watch.view() else { return Problem::no_map().answer(request.head()) };
    let members = view.map.members().iter().map(|member| {
        let shards_owned = view.map.shards_of(&member.node).count();
        describe(&state, member, shards_owned)
    });
    let members = join_all(members).await;
    HttpResponse::Ok().json(ClusterPage { epoch: view.map.epoch(), members })
}

async fn describe(state: &HttpState, member: &Member, shards_owned: usize) -> MemberPage {
    let deadline = Instant::now() + DESCRIBE_TIMEOUT;
    let answer = state.forwarder.upstream.ask(&member.data, None, RequestBody::Describe, deadline).await;
    let status = match answer {
        Ok(AnswerBody::Page(json)) => raw_json(&json).ok_or_else(|| "it answers no JSON".to_owned()),
        Ok(_) => Err("it answers something else".to_owned()),
        Err(error) => Err(error.to_string()),
    };
    let (status, error) = match status {
        Ok(status) => (Some(status), None),
        Err(error) => (None, Some(error)),
    };
    MemberPage { node: member.node.clone(), data: member.data.clone(), shards_owned, status, error }
}

/// What `/-/explain` shows.
#[derive(Serialize)]
struct ExplainPage {
    shard: ShardId,
    epoch: Epoch,
    owner: Option<NodeId>,
    /// What the owner says of the key.
    at_owner: Box<RawValue>,
}

pub(super) async fn explain(request: HttpRequest, state: Shared) -> HttpResponse {
    match explain_entry(&request, &state).await {
        Ok(page) => HttpResponse::Ok().json(page),
        Err(problem) => problem.answer(request.head()),
    }
}

async fn explain_entry(request: &HttpRequest, state: &HttpState) -> Result<ExplainPage, Problem> {
    let view = state.forwarder.watch.view().ok_or_else(Problem::no_map)?;
    let path = request.uri().path();
    let target = Target::parse(path.strip_prefix("/-/explain").unwrap_or(path))?;
    let region = view.region(&target.region).ok_or_else(|| Problem::unknown_region(&target.region, &view))?;
    let key = target.key.ok_or_else(|| Problem::from(super::target::TargetError::EmptyKey))?;
    let shard = sharding::hash::shard_of(&region.name, &key, view.map.n_shards());
    let AnswerBody::Page(json) = state.forwarder.ask(Question::Explain, &region.name, key, Instant::now()).await?
    else {
        return Err(Problem::internal("the owner's answer is none to this question"));
    };
    let at_owner = raw_json(&json).ok_or_else(|| Problem::internal("the owner answers no JSON"))?;
    let owner = view.map.owner_of(shard).map(|owner| owner.node.clone());
    Ok(ExplainPage { shard, epoch: view.map.epoch(), owner, at_owner })
}

fn raw_json(json: &[u8]) -> Option<Box<RawValue>> {
    RawValue::from_string(std::str::from_utf8(json).ok()?.to_owned()).ok()
}
