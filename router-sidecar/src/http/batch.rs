//! `POST /{region}`: many values in one request, asked of their owners at the same time.

use std::borrow::Cow;
use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, CONTENT_LENGTH};
use actix_web::{HttpRequest, HttpResponse, web};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::Deserialize;
use sharding::form::{Form, is_json, is_plain};
use sharding::id::KEY_BYTES_MAX;
use sharding::wire::{AnswerBody, GET_MANY_KEYS_MAX, Hit, RegionInfo};
use tokio::time::{Instant, timeout};

use super::HttpState;
use super::error::Problem;
use crate::forward::ForwardError;
use crate::forward::many::{Many, WantedKey};
use crate::map_watch::View;

/// What a result takes beside its value, about.
const RESULT_BYTES: usize = 128;
const JSON: &str = "application/json";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted<'a> {
    #[serde(borrow)]
    keys: Vec<Key<'a>>,
}

/// Borrowed, where it stands in the body without an escape.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

/// The answer as it grows: what became of each key, in the order in which they were asked for.
struct Results {
    json: Vec<u8>,
    /// Bytes of values for which there is room, still and in all.
    room: usize,
    bytes_max: usize,
    /// The region's values are said to be JSON.
    is_json: bool,
}

/// The whole body of a request, within its bounds of time and length. One that is said to be longer is not waited for.
pub(super) async fn body(
    request: &HttpRequest,
    payload: web::Payload,
    state: &HttpState,
    bytes_max: usize,
) -> Result<Bytes, Problem> {
    let said = request.headers().get(CONTENT_LENGTH).and_then(|len| len.to_str().ok()?.parse::<usize>().ok());
    if said.is_some_and(|len| len > bytes_max) {
        return Err(Problem::body_too_long(bytes_max));
    }
    let wait = state.forwarder.request_timeout;
    let body = timeout(wait, payload.to_bytes_limited(bytes_max)).await;
    let body = body.map_err(|_| Problem::body_too_slow(wait))?;
    let body = body.map_err(|_| Problem::body_too_long(bytes_max))?;
    body.map_err(|error| Problem::bad_body(error.to_string()))
}

/// A JSON object. A list of its members in their order, which serde takes as well, is none.
pub(super) fn object<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, String> {
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err("it is no JSON object".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

pub(super) async fn post(
    request: &HttpRequest,
    payload: web::Payload,
    state: &HttpState,
    (view, region): (&Arc<View>, &RegionInfo),
) -> Result<HttpResponse, Problem> {
    let body = body(request, payload, state, state.body_bytes_max).await?;
    let Wanted { keys } =
        object(&body).map_err(|why| Problem::bad_body(format!("expected {{\"keys\":[\"...\"]}}: {why}")))?;
    if keys.len() > state.batch_keys_max {
        return Err(Problem::too_many_keys(keys.len(), state.batch_keys_max));
    }
    let is_json = is_json(&region.content_type);
    let (came_at, mut results) = (Instant::now(), Results::new(state.batch_bytes_max, is_json));
    for keys in keys.chunks(GET_MANY_KEYS_MAX) {
        let is_asked = |key: &str| (1..=KEY_BYTES_MAX).contains(&key.len()) && results.room > 0;
        let wanted = keys.iter().enumerate().filter(|(_, Key(key))| is_asked(key));
        let wanted = wanted.map(|(place, Key(key))| WantedKey { key: key.as_bytes(), place });
        let lanes = state.forwarder.get_many(view, &region.name, wanted, came_at).await;
        results.push_all(keys, lanes);
    }
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).content_type(JSON).body(results.finish()))
}

type KeyAnswer = Result<AnswerBody, ForwardError>;

/// What became of a key.
enum Found<'a> {
    /// It was in memory.
    Hit(Hit<'a>),
    Alone(KeyAnswer),
}

impl Results {
    fn new(bytes_max: usize, is_json: bool) -> Self {
        Self { json: b"{\"results\":[".to_vec(), room: bytes_max, bytes_max, is_json }
    }

    /// What became of some keys. Those that were not asked for are no keys, or there was no room for them.
    fn push_all(&mut self, keys: &[Key<'_>], mut lanes: Vec<Many>) {
        let mut found: Vec<Option<Found<'_>>> = keys.iter().map(|_| None).collect();
        let mut bytes = 0;
        for (place, answer) in lanes.iter_mut().flat_map(|lane| std::mem::take(&mut lane.alone)) {
            if let Ok(AnswerBody::Value { value, .. }) = &answer {
                bytes += value.len();
            }
            found[place] = Some(Found::Alone(answer));
        }
        for (place, hit) in lanes.iter().flat_map(Many::hits) {
            bytes += hit.value.len();
            found[place] = Some(Found::Hit(hit));
        }
        self.json.reserve(keys.len() * RESULT_BYTES + bytes.min(self.room));
        for (Key(key), found) in keys.iter().zip(found) {
            match found {
                Some(Found::Hit(hit)) => self.push_value(key, &hit),
                Some(Found::Alone(answer)) => self.push(key, Some(answer)),
                None => self.push(key, None),
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        if self.json.last() == Some(&b',') {
            self.json.pop();
        }
        self.json.extend_from_slice(b"]}");
        self.json
    }

    /// What became of one key. The status is that of a `GET` of this key.
    fn push(&mut self, key: &str, answer: Option<KeyAnswer>) {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            let detail = format!("a key has 1 to {KEY_BYTES_MAX} bytes, this one has {}", key.len());
            return self.push_failure(key, if key.is_empty() { 400 } else { 414 }, Some(&detail));
        }
        match answer {
            Some(Ok(AnswerBody::Value { entry, etag, value })) => {
                self.push_value(key, &Hit { place: 0, entry, etag, form: None, value: &value });
            }
            Some(_) if self.room == 0 => self.push_no_room(key),
            None => self.push_no_room(key),
            Some(Ok(AnswerBody::Absent(_))) => self.push_failure(key, 404, None),
            Some(Err(error)) => {
                let problem = Problem::from(error);
                self.push_failure(key, problem.status.as_u16(), Some(&problem.detail));
            }
            Some(Ok(_)) => self.push_failure(key, 500, Some("the owner answers something else")),
        }
    }

    fn push_value(&mut self, key: &str, hit: &Hit<'_>) {
        let &Hit { entry, etag, form, value, .. } = hit;
        if self.room < value.len() || self.room == 0 {
            return self.push_no_room(key);
        }
        self.room -= value.len();
        self.begin(key, 200);
        // Its quotes are a part of it.
        let [_, digits @ .., _] = etag.text();
        self.json.extend_from_slice(b",\"etag\":\"\\\"");
        self.json.extend_from_slice(&digits);
        self.json.extend_from_slice(b"\\\"\",\"age\":");
        self.put_number(entry.age.as_secs());
        self.json.push(b',');
        self.put_value(value, form);
        self.json.extend_from_slice(b"},");
    }

    /// Nor has anything behind it.
    fn push_no_room(&mut self, key: &str) {
        self.room = 0;
        let bytes_max = self.bytes_max;
        let detail = format!("an answer has at most {bytes_max} bytes of values; GET this one, or ask for fewer");
        self.push_failure(key, 413, Some(&detail));
    }

    fn push_failure(&mut self, key: &str, status: u16, detail: Option<&str>) {
        self.begin(key, status);
        if let Some(detail) = detail {
            self.json.extend_from_slice(b",\"detail\":");
            self.put_text(detail);
        }
        self.json.extend_from_slice(b"},");
    }

    fn begin(&mut self, key: &str, status: u16) {
        self.json.extend_from_slice(b"{\"key\":");
        self.put_text(key);
        self.json.extend_from_slice(b",\"status\":");
        self.put_number(status);
    }

    fn put_number(&mut self, number: impl itoa::Integer) {
        self.json.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
    }

    /// A value inside JSON: as it is where it is JSON, as a text where it is one, else as base64.
    fn put_value(&mut self, value: &[u8], form: Option<Form>) {
        let form = match form {
            Some(Form::Json) if self.is_json => form,
            Some(Form::Plain) if !self.is_json => form,
            // Neither, not known, or found out for a region of another type.
            _ => Form::of(value, self.is_json),
        };
        match form {
            Some(Form::Json) => {
                self.json.extend_from_slice(b"\"value\":");
                self.json.extend_from_slice(value);
            }
            Some(Form::Plain) => {
                self.json.extend_from_slice(b"\"text\":");
                self.put_plain(value);
            }
            None => match std::str::from_utf8(value) {
                Ok(text) => {
                    self.json.extend_from_slice(b"\"text\":");
                    self.put_escaped(text);
                }
                Err(_) => {
                    self.json.extend_from_slice(b"\"base64\":");
                    self.put_plain(BASE64.encode(value).as_bytes());
                }
            },
        }
    }

    fn put_text(&mut self, text: &str) {
        match is_plain(text.as_bytes()) {
            true => self.put_plain(text.as_bytes()),
            false => self.put_escaped(text),
        }
    }

    fn put_escaped(&mut self, text: &str) {
        serde_json::to_writer(&mut self.json, text).expect("memory takes what is written");
    }

    fn put_plain(&mut self, text: &[u8]) {
        self.json.push(b'"');
        self.json.extend_from_slice(text);
        self.json.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;
    use sharding::wire::{Entry, Etag, Served};

    use super::*;

    fn answer(value: &[u8]) -> Option<KeyAnswer> {
        let entry = Entry { served: Served::Hit, kept: true, age: Duration::from_secs(1), ttl_ms: 0 };
        Some(Ok(AnswerBody::Value { entry, etag: Etag(0xabc), value: Bytes::copy_from_slice(value) }))
    }

    fn json(key: &str, value: &[u8], is_json: bool) -> String {
        let mut results = Results::new(1 << 20, is_json);
        results.push(key, answer(value));
        String::from_utf8(results.finish()).expect("UTF-8")
    }

    #[test]
    fn a_value_stands_in_json_as_what_it_is() {
        let stands = |value: &[u8], is_json, how: &str| {
            let etag = r#""etag":"\"00000000000000000000000000000abc\"""#;
            let wanted = format!(r#"{{"results":[{{"key":"k","status":200,{etag},"age":1,{how}}}]}}"#);
            assert_eq!(json("k", value, is_json), wanted);
        };
        stands(br#"{"a": 1.50}"#, true, r#""value":{"a": 1.50}"#);
        stands(br#"{"a": 1.50}"#, false, r#""text":"{\"a\": 1.50}""#);
        stands(b"{broken", true, r#""text":"{broken""#);
        stands(b"\xff\x00", true, r#""base64":"/wA=""#);
        stands(b"", false, r#""text":"""#);
    }

    #[test]
    fn what_a_node_says_of_a_value_is_believed_only_of_a_region_of_the_same_type() {
        for (form, is_json, value, how) in [
            (Some(Form::Json), true, &b"[1]"[..], r#""value":[1]"#),
            (Some(Form::Json), false, br#"["1"]"#, r#""text":"[\"1\"]""#),
            (Some(Form::Plain), false, b"[1]", r#""text":"[1]""#),
            (Some(Form::Plain), true, b"[1]", r#""value":[1]"#),
            (None, true, b"[1]", r#""value":[1]"#),
        ] {
            let entry = Entry { served: Served::Hit, kept: true, age: Duration::ZERO, ttl_ms: 0 };
            let mut results = Results::new(10, is_json);
            results.push_value("k", &Hit { place: 0, entry, etag: Etag(0), form, value });
            let text = String::from_utf8(results.finish()).expect("UTF-8");
            assert!(text.ends_with(&format!(r#""age":0,{how}}}]}}"#)), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_says_why() {
        let mut results = Results::new(3, false);
        results.push("", None);
        results.push("a", answer(b"12"));
        results.push("b", answer(b"12"));
        results.push("c", answer(b"1"));
        let body: serde_json::Value = serde_json::from_slice(&results.finish()).expect("JSON");
        let statuses: Vec<_> = body["results"].as_array().expect("a list").iter().map(|one| &one["status"]).collect();
        assert_eq!(statuses, [400, 200, 413, 413]);
        assert!(body["results"][3]["detail"].as_str().is_some_and(|detail| detail.contains("3 bytes")));
        assert_eq!(Results::new(3, false).finish(), br#"{"results":[]}"#);
    }

    proptest! {
        #[test]
        fn whatever_key_and_text_there_are_it_is_json_that_says_them(key in ".{1,20}", text in any::<String>()) {
            let body: serde_json::Value = serde_json::from_str(&json(&key, text.as_bytes(), false)).expect("JSON");
            prop_assert_eq!(body["results"][0]["key"].as_str(), Some(&key[..]));
            prop_assert_eq!(body["results"][0]["text"].as_str(), Some(&text[..]));
        }
    }
}
