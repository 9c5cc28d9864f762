//! `POST /{region}`: many values in one request, asked of their owners at the same time.

use std::cell::Cell;
use std::sync::Arc;

use actix_web::{HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sharding::id::KEY_BYTES_MAX;
use sharding::wire::{AnswerBody, RegionInfo};
use tokio::time::timeout;

use super::HttpState;
use super::error::Problem;
use crate::map_watch::View;

/// Keys of one request that are asked for at a time.
const IN_FLIGHT_MAX: usize = 256;

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
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Value {
    #[serde(rename = "value")]
    Json(Box<RawValue>),
    Text(String),
    Base64(String),
}

impl Value {
    fn of(value: &[u8], is_json: bool) -> Self {
        let Ok(text) = std::str::from_utf8(value) else { return Self::Base64(BASE64.encode(value)) };
        if is_json && let Ok(json) = RawValue::from_string(text.to_owned()) {
            return Self::Json(json);
        }
        Self::Text(text.to_owned())
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
    let room = Cell::new(state.batch_bytes_max);
    let asked = keys.iter().map(|key| one(state, (view, region), is_json, key, &room));
    let results = stream::iter(asked).buffered(IN_FLIGHT_MAX).collect().await;
    Ok(HttpResponse::Ok().insert_header(("cache-control", "no-store")).json(Results { results }))
}

/// Asks for one key. `room`: bytes of values for which this answer still has room.
async fn one<'a>(
    state: &HttpState,
    (view, region): (&Arc<View>, &RegionInfo),
    is_json: bool,
    key: &'a str,
    room: &Cell<usize>,
) -> OneResult<'a> {
    let plain = || OneResult { key, status: 200, etag: None, age: None, value: None, detail: None };
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let detail = Some(format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len()));
        return OneResult { status: if key.is_empty() { 400 } else { 414 }, detail, ..plain() };
    }
    let no_room = || {
        let detail = format!("the values before have {} bytes already; ask for this one again", state.batch_bytes_max);
        OneResult { status: 413, detail: Some(detail), ..plain() }
    };
    if room.get() == 0 {
        return no_room();
    }
    let answer = state.forwarder.get(view, &region.name, Bytes::copy_from_slice(key.as_bytes())).await;
    match answer {
        Ok(AnswerBody::Value { value, .. }) if value.len() > room.get() => {
            room.set(0);
            no_room()
        }
        Ok(AnswerBody::Value { entry, etag, value }) => {
            room.set(room.get() - value.len());
            let (etag, age) = (Some(etag.to_string()), Some(entry.age.as_secs()));
            OneResult { etag, age, value: Some(Value::of(&value, is_json)), ..plain() }
        }
        Ok(AnswerBody::Absent(_)) => OneResult { status: 404, ..plain() },
        Ok(_) => OneResult { status: 500, detail: Some("the owner answers something else".to_owned()), ..plain() },
        Err(error) => {
            let problem = Problem::from(error);
            OneResult { status: problem.status.as_u16(), detail: Some(problem.detail), ..plain() }
        }
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
            value: Some(Value::of(value, is_json)),
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
