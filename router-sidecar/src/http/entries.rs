//! `GET` and `HEAD /{region}/{key}`.

use std::cell::RefCell;
use std::sync::Arc;

use actix_web::body::BoxBody;
use actix_web::dev::RequestHead;
use actix_web::http::StatusCode;
use actix_web::http::header::{AGE, CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse};
use bytes::{BufMut, Bytes, BytesMut};
use sharding::wire::{AnswerBody, Entry, Etag, Served};
use tokio::time::Instant;

use super::HttpState;
use super::error::Problem;
use crate::forward::ForwardError;
use crate::map_watch::{Head, View};

/// RFC 9211.
pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// How this cache is called there.
const CACHE_NAME: &str = "distributed-cache";

pub(super) async fn get(
    request: &HttpRequest,
    state: &HttpState,
    (view, region): (&Arc<View>, usize),
    key: Bytes,
) -> Result<HttpResponse, Problem> {
    let answer = state.forwarder.get(view, &view.regions[region].name, key, Instant::now()).await;
    answered(request.head(), state, &view.heads[region], answer)
}

/// What a read is answered.
pub(super) fn answered(
    request: &RequestHead,
    state: &HttpState,
    head: &Head,
    answer: Result<AnswerBody, ForwardError>,
) -> Result<HttpResponse, Problem> {
    match answer? {
        AnswerBody::Value { entry, etag, value } => Ok(found(request, &state.texts, head, &entry, etag, value)),
        AnswerBody::Absent(entry) => Err(Problem::absent(cache_status(&entry))),
        _ => Err(Problem::internal("the owner's answer is none to this question")),
    }
}

fn found(request: &RequestHead, texts: &Texts, head: &Head, entry: &Entry, etag: Etag, value: Bytes) -> HttpResponse {
    let is_known = request.headers.contains_key(IF_NONE_MATCH) && {
        let etag = etag.to_string();
        request.headers.get_all(IF_NONE_MATCH).any(|header| header.to_str().is_ok_and(|list| lists(list, &etag)))
    };
    let mut response = if is_known {
        HttpResponse::new(StatusCode::NOT_MODIFIED)
    } else {
        HttpResponse::with_body(StatusCode::OK, BoxBody::new(value))
    };
    let headers = response.headers_mut();
    headers.insert(AGE, texts.header(|out| out.put_slice(itoa::Buffer::new().format(entry.age.as_secs()).as_bytes())));
    headers.insert(CACHE_CONTROL, head.cache_control.clone());
    headers.insert(CACHE_STATUS, texts.header(|out| put_cache_status(entry, out)));
    headers.insert(ETAG, texts.header(|out| out.put_slice(&etag.text())));
    if !is_known {
        headers.insert(CONTENT_TYPE, head.content_type.clone());
    }
    response
}

/// Where the texts of headers are written, one after the other: each is a part of one long piece of memory.
pub(crate) struct Texts(RefCell<BytesMut>);

/// Length of such a piece.
const TEXTS_BYTES: usize = 16 * 1024;
/// No text is longer.
const TEXT_BYTES_MAX: usize = 128;

impl Texts {
    pub(crate) fn new() -> Self {
        Self(RefCell::new(BytesMut::with_capacity(TEXTS_BYTES)))
    }

    fn header(&self, text: impl FnOnce(&mut BytesMut)) -> HeaderValue {
        let mut texts = self.0.borrow_mut();
        texts.reserve(TEXT_BYTES_MAX);
        text(&mut texts);
        HeaderValue::from_maybe_shared(texts.split().freeze()).expect("digits, letters and a few signs are a header")
    }
}

/// Whether an `If-None-Match` holds this tag, by the weak comparison that RFC 9110, section 13.1.2, asks for.
fn lists(list: &str, etag: &str) -> bool {
    list.trim() == "*" || list.split(',').map(str::trim).any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// RFC 9211: out of memory, or by way of the database, and for how long it is fresh.
fn put_cache_status(entry: &Entry, out: &mut BytesMut) {
    out.put_slice(CACHE_NAME.as_bytes());
    out.put_slice(match entry.served {
        Served::Hit => b"; hit",
        Served::Stale => b"; hit; detail=stale",
        Served::Miss => b"; fwd=miss",
        Served::Joined => b"; fwd=miss; collapsed",
        Served::PassedThrough => b"; fwd=miss; detail=pass-through",
    });
    if entry.kept && matches!(entry.served, Served::Miss | Served::Joined) {
        out.put_slice(b"; stored");
    }
    out.put_slice(b"; ttl=");
    // A whole second that has not passed yet counts as one to live.
    out.put_slice(itoa::Buffer::new().format(entry.ttl_ms.div_euclid(1000)).as_bytes());
}

fn cache_status(entry: &Entry) -> String {
    let mut text = BytesMut::with_capacity(TEXT_BYTES_MAX);
    put_cache_status(entry, &mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn entry(served: Served, kept: bool, ttl_ms: i64) -> Entry {
        Entry { served, kept, age: Duration::ZERO, ttl_ms }
    }

    #[test]
    fn the_cache_status_says_where_an_answer_came_from() {
        for (served, kept, ttl_ms, expected) in [
            (Served::Hit, true, 57_999, "distributed-cache; hit; ttl=57"),
            (Served::Stale, true, -2_500, "distributed-cache; hit; detail=stale; ttl=-3"),
            (Served::Miss, true, 60_000, "distributed-cache; fwd=miss; stored; ttl=60"),
            (Served::Miss, false, 60_000, "distributed-cache; fwd=miss; ttl=60"),
            (Served::PassedThrough, false, 60_000, "distributed-cache; fwd=miss; detail=pass-through; ttl=60"),
            (Served::Joined, true, 60_000, "distributed-cache; fwd=miss; collapsed; stored; ttl=60"),
        ] {
            assert_eq!(cache_status(&entry(served, kept, ttl_ms)), expected);
        }
    }

    #[test]
    fn an_etag_is_found_in_a_list() {
        let etag = "\"ab\"";
        for list in ["\"ab\"", "*", " \"x\", \"ab\"", "W/\"ab\"", "\"x\",W/\"ab\""] {
            assert!(lists(list, etag), "{list}");
        }
        for list in ["", "\"abc\"", "ab", "\"x\", \"y\""] {
            assert!(!lists(list, etag), "{list}");
        }
    }
}
