//! `POST /{region}`: many values in one request, asked of their owners at the same time.

use std::sync::Arc;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::future::join_all;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::value::RawValue;
use sharding::id::KEY_BYTES_MAX;
use sharding::wire::{AnswerBody, RegionInfo};
use tokio::time::{Instant, timeout};

use super::HttpState;
use super::error::Problem;
use crate::forward::{Begun, ForwardError};
use crate::map_watch::View;

/// Keys of one request that are asked for at a time.
const IN_FLIGHT_MAX: usize = 256;
/// What a result takes beside its value, about.
const RESULT_BYTES: usize = 128;
const JSON: &str = "application/json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    keys: Vec<String>,
}

#[derive(Serialize)]
struct Results<'a> {
    results: Vec<OneResult<'a>>,
}

/// What became of one key; in the order in which they were asked for.
#[derive(Serialize)]
struct OneResult<'a> {
    key: &'a str,
    /// As a `GET` of this key would have answered.
    status: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    /// Seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    age: Option<u64>,
    #[serde(flatten)]
    value: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
}

/// A value inside JSON: as it is where it is JSON, as a text where it is one, else as base64.
struct Value {
    bytes: Bytes,
    is_json: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Written<'a> {
    #[serde(rename = "value")]
    Json(&'a RawValue),
    Text(&'a str),
    Base64(String),
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Ok(text) = std::str::from_utf8(&self.bytes) else {
            return Written::Base64(BASE64.encode(&self.bytes)).serialize(serializer);
        };
        match self.is_json.then(|| serde_json::from_str(text)) {
            Some(Ok(json)) => Written::Json(json).serialize(serializer),
            _ => Written::Text(text).serialize(serializer),
        }
    }
}

/// The whole body of a request, within its bounds of time and length.
pub(super) async fn body(payload: web::Payload, state: &HttpState) -> Result<Bytes, Problem> {
    let wait = state.forwarder.request_timeout;
    let body = timeout(wait, payload.to_bytes_limited(state.body_bytes_max)).await;
    let body = body.map_err(|_| Problem::body_too_slow(wait))?;
    let body = body.map_err(|_| Problem::body_too_long(state.body_bytes_max))?;
    body.map_err(|error| Problem::bad_body(error.to_string()))
}

pub(super) async fn post(
    payload: web::Payload,
    state: &HttpState,
    (view, region): (&Arc<View>, &RegionInfo),
) -> Result<HttpResponse, Problem> {
    let body = body(payload, state).await?;
    let Wanted { keys } = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad_body(format!("expected {{\"keys\":[\"...\"]}}: {error}")))?;
    if keys.len() > state.batch_keys_max {
        return Err(Problem::too_many_keys(keys.len(), state.batch_keys_max));
    }
    let is_json = region.content_type.split(';').next().is_some_and(|media| media.trim() == "application/json");
    let answers = ask_all(state, (view, region), &keys).await;
    let mut room = state.batch_bytes_max;
    let mut results = Vec::with_capacity(keys.len());
    for (key, answer) in keys.iter().zip(answers) {
        results.push(one(key, answer, is_json, (&mut room, state.batch_bytes_max)));
    }
    let mut body = Vec::with_capacity(state.batch_bytes_max - room + keys.len() * RESULT_BYTES);
    serde_json::to_writer(&mut body, &Results { results }).map_err(|error| Problem::internal(&error.to_string()))?;
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).content_type(JSON).body(body))
}

type KeyAnswer = Result<AnswerBody, ForwardError>;

/// Asks for all keys, some at a time. Gives the answers in their order; `None` for what is no key.
///
/// Most go the short way: all questions leave before the first answer is awaited. What is left goes the long way.
async fn ask_all(
    state: &HttpState,
    (view, region): (&Arc<View>, &RegionInfo),
    keys: &[String],
) -> Vec<Option<KeyAnswer>> {
    let (forwarder, mut bytes) = (&state.forwarder, 0);
    let mut answers: Vec<Option<KeyAnswer>> = Vec::with_capacity(keys.len());
    for keys in keys.chunks(IN_FLIGHT_MAX) {
        // What has no room in the answer is not asked for.
        let is_full = bytes >= state.batch_bytes_max;
        let is_key = |key: &String| !is_full && (1..=KEY_BYTES_MAX).contains(&key.len());
        let now = Instant::now();
        let begin =
            |key: &String| is_key(key).then(|| forwarder.begin(view, &region.name, key.as_bytes(), now)).flatten();
        let mut long = Vec::new();
        let begun: Vec<Option<Begun>> = keys.iter().map(begin).collect();
        for (key, mut begun) in keys.iter().zip(begun) {
            let answer = match &mut begun {
                Some(begun) => begun.answer().await,
                None => None,
            };
            if answer.is_none() && is_key(key) {
                long.push((answers.len(), Bytes::copy_from_slice(key.as_bytes()), begun));
            }
            answers.push(answer.map(Ok));
        }
        let ask = |(at, key, begun): (usize, Bytes, Option<Begun>)| async move {
            (at, forwarder.go_on(begun, &region.name, key).await)
        };
        for (at, answer) in join_all(long.into_iter().map(ask)).await {
            answers[at] = Some(answer);
        }
        let value_bytes = |answer: &Option<KeyAnswer>| match answer {
            Some(Ok(AnswerBody::Value { value, .. })) => value.len(),
            _ => 0,
        };
        bytes += answers[answers.len() - keys.len()..].iter().map(value_bytes).sum::<usize>();
    }
    answers
}

/// What became of one key. `room`: bytes of values for which there is room in this answer, still and in all.
fn one<'a>(
    key: &'a str,
    answer: Option<KeyAnswer>,
    is_json: bool,
    (room, bytes_max): (&mut usize, usize),
) -> OneResult<'a> {
    let plain = || OneResult { key, status: 200, etag: None, age: None, value: None, detail: None };
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = Some(format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len()));
        return OneResult { status: if key.is_empty() { 400 } else { 414 }, detail, ..plain() };
    }
    let has_no_room = match &answer {
        None => true,
        Some(Ok(AnswerBody::Value { value, .. })) => *room < value.len() || *room == 0,
        Some(_) => *room == 0,
    };
    match answer {
        _ if has_no_room => {
            *room = 0;
            let detail = format!("the values before have {bytes_max} bytes already; ask for this one again");
            OneResult { status: 413, detail: Some(detail), ..plain() }
        }
        Some(Ok(AnswerBody::Value { entry, etag, value })) => {
            *room -= value.len();
            let (etag, age) = (Some(etag.to_string()), Some(entry.age.as_secs()));
            OneResult { etag, age, value: Some(Value { bytes: value, is_json }), ..plain() }
        }
        Some(Ok(AnswerBody::Absent(_))) => OneResult { status: 404, ..plain() },
        Some(Err(error)) => {
            let problem = Problem::from(error);
            OneResult { status: problem.status.as_u16(), detail: Some(problem.detail), ..plain() }
        }
        _ => OneResult { status: 500, detail: Some("the owner answers something else".to_owned()), ..plain() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(value: &[u8], is_json: bool) -> String {
        let result = OneResult {
            key: "k",
            status: 200,
            etag: None,
            age: Some(1),
            value: Some(Value { bytes: Bytes::copy_from_slice(value), is_json }),
            detail: None,
        };
        serde_json::to_string(&result).expect("JSON")
    }

    #[test]
    fn a_value_stands_in_json_as_what_it_is() {
        assert_eq!(json(br#"{"a": 1.50}"#, true), r#"{"key":"k","status":200,"age":1,"value":{"a": 1.50}}"#);
        assert_eq!(json(br#"{"a": 1.50}"#, false), r#"{"key":"k","status":200,"age":1,"text":"{\"a\": 1.50}"}"#);
        assert_eq!(json(b"{broken", true), r#"{"key":"k","status":200,"age":1,"text":"{broken"}"#);
        assert_eq!(json(b"\xff\x00", true), r#"{"key":"k","status":200,"age":1,"base64":"/wA="}"#);
    }
}
