//! `GET` and `HEAD /{region}/{key}`.

use std::fmt::Write;

use actix_web::http::StatusCode;
use actix_web::http::header::{AGE, CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse};
use bytes::Bytes;
use sharding::wire::{AnswerBody, Entry, Etag, RegionInfo, Served};

use super::HttpState;
use super::error::Problem;
use crate::forward::Question;

/// RFC 9211.
pub(super) const CACHE_STATUS: &str = "cache-status";
/// How this cache is called there.
const CACHE_NAME: &str = "distributed-cache";

pub(super) async fn get(
    request: &HttpRequest,
    state: &HttpState,
    region: &RegionInfo,
    key: Bytes,
) -> Result<HttpResponse, Problem> {
    match state.forwarder.ask(Question::Get, &region.name, key).await? {
        AnswerBody::Value { entry, etag, value } => Ok(found(request, region, &entry, etag, value)),
        AnswerBody::Absent(entry) => Err(Problem::absent(cache_status(&entry))),
        _ => Err(Problem::internal("the owner's answer is none to this question")),
    }
}

fn found(request: &HttpRequest, region: &RegionInfo, entry: &Entry, etag: Etag, value: Bytes) -> HttpResponse {
    let etag = etag.to_string();
    let is_known =
        request.headers().get_all(IF_NONE_MATCH).any(|header| header.to_str().is_ok_and(|list| lists(list, &etag)));
    let status = if is_known { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut response = HttpResponse::build(status);
    response
        .insert_header((AGE, entry.age.as_secs()))
        .insert_header((CACHE_CONTROL, region.cache_control.as_str()))
        .insert_header((CACHE_STATUS, cache_status(entry)))
        .insert_header((ETAG, etag));
    if is_known {
        return response.finish();
    }
    response.content_type(region.content_type.as_str()).body(value)
}

/// Whether an `If-None-Match` holds this tag, by the weak comparison that RFC 9110, section 13.1.2, asks for.
fn lists(list: &str, etag: &str) -> bool {
    list.trim() == "*" || list.split(',').map(str::trim).any(|tag| tag.strip_prefix("W/").unwrap_or(tag) == etag)
}

/// RFC 9211: out of memory, or by way of the database, and for how long it is fresh.
pub(super) fn cache_status(entry: &Entry) -> String {
    let mut text = String::with_capacity(64);
    text.push_str(CACHE_NAME);
    text.push_str(match entry.served {
        Served::Hit => "; hit",
        Served::Stale => "; hit; detail=stale",
        Served::Miss => "; fwd=miss",
        Served::Joined => "; fwd=miss; collapsed",
        Served::PassedThrough => "; fwd=miss; detail=pass-through",
    });
    if entry.kept && matches!(entry.served, Served::Miss | Served::Joined) {
        text.push_str("; stored");
    }
    // A whole second that has not passed yet counts as one to live.
    let _ = write!(text, "; ttl={}", entry.ttl_ms.div_euclid(1000));
    text
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
