//! `POST /-/invalidate/{region}`: keys, or all that begin with a prefix, are forgotten by their owners, who say so.

use std::collections::BTreeMap;

use actix_web::http::header::{CACHE_CONTROL, RETRY_AFTER};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use sharding::id::{KEY_BYTES_MAX, ShardId};
use sharding::wire::{AnswerBody, RegionInfo};
use tokio::time::Instant;

use super::error::Problem;
use super::target::Target;
use super::{HttpState, Shared, batch};
use crate::forward::Question;

/// Questions of one request that are asked at a time.
const IN_FLIGHT_MAX: usize = 256;
/// When to ask again for what was not acknowledged: a failover takes about so long.
const RETRY_SECONDS: u64 = 2;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    keys: Option<Vec<String>>,
    prefix: Option<String>,
}

/// What came of it.
#[derive(Default, Serialize)]
struct Page {
    /// Every owner that was asked has acknowledged.
    is_complete: bool,
    /// Entries that were forgotten.
    entries: u64,
    /// For each node what it has acknowledged, as the owner of the shards in question, under a lease that held.
    acknowledged: BTreeMap<String, Acknowledged>,
    /// What nobody has acknowledged: it may be served as it was until it is asked for again.
    missing: Vec<Missing>,
}

#[derive(Default, Serialize)]
struct Acknowledged {
    /// Keys, or shards where a prefix was named.
    n: usize,
    entries: u64,
}

#[derive(Serialize)]
struct Missing {
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    shard: ShardId,
    detail: String,
}

pub(super) async fn post(request: HttpRequest, payload: web::Payload, state: Shared) -> HttpResponse {
    match invalidate(&request, payload, &state).await {
        Ok(page) if page.is_complete => HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(page),
        Ok(page) => HttpResponse::ServiceUnavailable()
            .insert_header((CACHE_CONTROL, "no-store"))
            .insert_header((RETRY_AFTER, RETRY_SECONDS))
            .json(page),
        Err(problem) => problem.answer(request.head()),
    }
}

async fn invalidate(request: &HttpRequest, payload: web::Payload, state: &HttpState) -> Result<Page, Problem> {
    let view = state.forwarder.watch.first_view().await.ok_or_else(Problem::no_map)?;
    let path = request.uri().path();
    let target = Target::parse(path.strip_prefix("/-/invalidate").unwrap_or(path))?;
    let region = view.region(&target.region).ok_or_else(|| Problem::unknown_region(&target.region, &view))?;
    let body = batch::body(request, payload, state, state.body_bytes_max).await?;
    let wrong =
        |why: String| Problem::bad_body(format!("expected {{\"keys\":[\"...\"]}} or {{\"prefix\":\"...\"}}: {why}"));
    let wanted: Wanted = batch::object(&body).map_err(wrong)?;
    let n_shards = view.map.n_shards();
    let questions: Vec<(Question, Bytes, Option<String>, ShardId)> = match (wanted.keys, wanted.prefix) {
        (Some(keys), None) => {
            if keys.len() > state.batch_keys_max {
                return Err(Problem::too_many_keys(keys.len(), state.batch_keys_max));
            }
            if let Some(key) = keys.iter().find(|key| !(1..=KEY_BYTES_MAX).contains(&key.len())) {
                return Err(wrong(format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len())));
            }
            let question = |key: String| {
                let bytes = Bytes::copy_from_slice(key.as_bytes());
                let shard = sharding::hash::shard_of(&region.name, &bytes, n_shards);
                (Question::Invalidate, bytes, Some(key), shard)
            };
            keys.into_iter().map(question).collect()
        }
        (None, Some(prefix)) if prefix.len() <= KEY_BYTES_MAX => {
            let prefix = Bytes::from(prefix);
            n_shards.shards().map(|shard| (Question::InvalidatePrefix(shard), prefix.clone(), None, shard)).collect()
        }
        (None, Some(prefix)) => return Err(wrong(format!("the prefix has {} bytes", prefix.len()))),
        _ => return Err(wrong("one of the two".to_owned())),
    };
    Ok(ask_all(state, region, questions).await)
}

async fn ask_all(
    state: &HttpState,
    region: &RegionInfo,
    questions: Vec<(Question, Bytes, Option<String>, ShardId)>,
) -> Page {
    let came_at = Instant::now();
    let asked = questions.into_iter().map(|(question, bytes, key, shard)| async move {
        (state.forwarder.ask(question, &region.name, bytes, came_at).await, key, shard)
    });
    let mut answers = stream::iter(asked).buffer_unordered(IN_FLIGHT_MAX);
    let mut page = Page::default();
    while let Some((answer, key, shard)) = answers.next().await {
        match answer {
            Ok(AnswerBody::Invalidated { entries, .. }) => {
                let view = state.forwarder.watch.view();
                let owner = view.as_ref().and_then(|view| view.map.owner_of(shard)).map(|owner| owner.node.to_string());
                let of_owner = page.acknowledged.entry(owner.unwrap_or_default()).or_default();
                of_owner.n += 1;
                of_owner.entries += u64::from(entries);
                page.entries += u64::from(entries);
            }
            Ok(_) => page.missing.push(Missing { key, shard, detail: "the owner answers something else".to_owned() }),
            Err(error) => page.missing.push(Missing { key, shard, detail: error.to_string() }),
        }
    }
    page.is_complete = page.missing.is_empty();
    page
}
