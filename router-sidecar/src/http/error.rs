//! Where errors become HTTP: one place, one shape (RFC 9457).

use std::borrow::Cow;
use std::time::Duration;

use actix_web::HttpResponse;
use actix_web::dev::RequestHead;
use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, CACHE_CONTROL, RETRY_AFTER};
use serde::Serialize;
use sharding::id::RegionName;
use sharding::wire::{Failure, FailureCode};

use super::READING_METHODS;
use super::target::TargetError;
use crate::forward::ForwardError;
use crate::map_watch::View;

/// The header under which a request is known; the client's own is kept.
pub(super) const REQUEST_ID: &str = "x-request-id";
/// A client's id that is longer, or not printable, is replaced.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// When to try again where nothing better is known: failover and start take about so long.
const RETRY_SOON: Duration = Duration::from_secs(1);

/// An answer that is not what was asked for: which status, why, and what to do next.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    /// Names the kind for programs.
    kind: &'static str,
    title: &'static str,
    pub(super) detail: String,
    retry_after: Option<Duration>,
    allow: Option<&'static str>,
    cache_status: Option<String>,
}

/// A problem as JSON.
#[derive(Serialize)]
struct Body<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    request_id: Cow<'a, str>,
}

impl Problem {
    const fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: String) -> Self {
        Self { status, kind, title, detail, retry_after: None, allow: None, cache_status: None }
    }

    const fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after = Some(pause);
        self
    }

    pub(super) fn no_map() -> Self {
        let detail = "this router has not reached any node yet; it goes on trying".to_owned();
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "not-ready", "Not ready", detail).retry_after(RETRY_SOON)
    }

    pub(super) fn unknown_region(name: &str, view: &View) -> Self {
        let known: Vec<&str> = view.regions.iter().map(|region| region.name.as_str()).collect();
        let name: String = name.chars().take(sharding::id::REGION_NAME_BYTES_MAX).collect();
        let detail = format!("there is no region {name:?}; there is {}", known.join(", "));
        Self::new(StatusCode::NOT_FOUND, "unknown-region", "No such region", detail)
    }

    pub(super) fn absent(cache_status: String) -> Self {
        let detail = "the database has no row of this key".to_owned();
        let absent = Self::new(StatusCode::NOT_FOUND, "no-such-key", "No such key", detail);
        Self { cache_status: Some(cache_status), ..absent }
    }

    pub(super) fn method(allow: &'static str) -> Self {
        let detail = format!("here only {allow} is allowed");
        let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed", detail);
        Self { allow: Some(allow), ..problem }
    }

    pub(super) fn not_written_to(region: &RegionName) -> Self {
        let mut problem = Self::method(READING_METHODS);
        problem.detail += &format!("; region {region} may be written to when its configuration says writes = true");
        problem
    }

    pub(super) fn body_too_long(bytes_max: usize) -> Self {
        let detail = format!("the body is longer than {bytes_max} bytes; send less in one request");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", "Body too long", detail)
    }

    pub(super) fn body_too_slow(wait: Duration) -> Self {
        let detail = format!("the body did not come within {wait:?}; send it at once");
        Self::new(StatusCode::REQUEST_TIMEOUT, "body-too-slow", "Body too slow", detail)
    }

    pub(super) fn too_many_keys(n_keys: usize, keys_max: usize) -> Self {
        let detail = format!("{n_keys} keys were asked for; at most {keys_max} in one request");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-many-keys", "Too many keys", detail)
    }

    pub(super) fn bad_body(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-body", "The body is not what is expected", detail)
    }

    fn not_applied(detail: String, retry_after: Duration) -> Self {
        let status = StatusCode::SERVICE_UNAVAILABLE;
        Self::new(status, "not-applied", "Not written", detail).retry_after(retry_after.max(RETRY_SOON))
    }

    fn unknown(detail: String) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "outcome-unknown", "Written or not", detail)
    }

    pub(super) fn bad_precondition(detail: String) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad-precondition", "The precondition is not one", detail)
    }

    pub(super) fn partial() -> Self {
        let detail = "a value is written whole; send all of it, without Content-Range".to_owned();
        Self::new(StatusCode::BAD_REQUEST, "partial-value", "Not a whole value", detail)
    }

    pub(super) fn internal(detail: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error", detail.to_owned())
    }

    /// The answer to this request.
    pub(super) fn answer(&self, request: &RequestHead) -> HttpResponse {
        let request_id = request_id(request);
        if self.status.is_server_error() {
            let (status, path) = (self.status.as_u16(), request.uri.path());
            log::warn!(request_id:%, status, path; "{}", self.detail);
        }
        let mut response = HttpResponse::build(self.status);
        response.insert_header((REQUEST_ID, &*request_id)).insert_header((CACHE_CONTROL, "no-store"));
        if let Some(pause) = self.retry_after {
            response.insert_header((RETRY_AFTER, whole_seconds(pause)));
        }
        if let Some(allow) = self.allow {
            response.insert_header((ALLOW, allow));
        }
        if let Some(cache_status) = &self.cache_status {
            response.insert_header((super::entries::CACHE_STATUS, cache_status.as_str()));
        }
        let body = Body {
            r#type: format!("urn:distributed-cache:problem:{}", self.kind),
            title: self.title,
            status: self.status.as_u16(),
            detail: &self.detail,
            request_id,
        };
        let body = serde_json::to_vec(&body).unwrap_or_default();
        response.content_type("application/problem+json").body(body)
    }
}

impl From<TargetError> for Problem {
    fn from(error: TargetError) -> Self {
        let detail = error.to_string();
        match error {
            TargetError::KeyTooLong(_) => Self::new(StatusCode::URI_TOO_LONG, "key-too-long", "Key too long", detail),
            TargetError::EmptyKey | TargetError::PercentEncoding => {
                Self::new(StatusCode::BAD_REQUEST, "bad-key", "The key is not one", detail)
            }
        }
    }
}

impl From<ForwardError> for Problem {
    fn from(error: ForwardError) -> Self {
        let detail = error.to_string();
        match error {
            ForwardError::NoMap => Self::no_map(),
            ForwardError::GivenUp { why, retry_after } => Self::from(*why).retry_after(retry_after.max(RETRY_SOON)),
            ForwardError::NoOwner(_) | ForwardError::Misdirected(_) | ForwardError::Unreachable { .. } => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Self::new(status, "owner-unreachable", "Owner unreachable", detail).retry_after(RETRY_SOON)
            }
            ForwardError::Overloaded(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded", detail).retry_after(RETRY_SOON)
            }
            ForwardError::DeadlinePassed(_) => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline-passed", "No answer in time", detail)
            }
            ForwardError::Node(failure) => failure.into(),
            ForwardError::NotWritten(why) => {
                let why = Self::from(*why);
                Self::not_applied(detail, why.retry_after.unwrap_or(RETRY_SOON))
            }
            ForwardError::Unknown(_) => Self::unknown(detail),
        }
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let Failure { code, retry_after, message } = failure;
        match code {
            FailureCode::Database => Self::new(StatusCode::BAD_GATEWAY, "database", "The database failed", message),
            FailureCode::DeadlinePassed => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, "deadline-passed", "No answer in time", message)
            }
            FailureCode::Overloaded => Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "Overloaded", message)
                .retry_after(retry_after.max(RETRY_SOON)),
            FailureCode::Unavailable => {
                let (status, title) = (StatusCode::SERVICE_UNAVAILABLE, "The database does not answer");
                Self::new(status, "database-silent", title, message).retry_after(retry_after.max(RETRY_SOON))
            }
            FailureCode::Precondition => {
                let (status, title) = (StatusCode::PRECONDITION_FAILED, "The precondition does not hold");
                Self::new(status, "precondition-failed", title, message)
            }
            FailureCode::Refused => {
                let (status, title) = (StatusCode::UNPROCESSABLE_ENTITY, "The database refuses it");
                Self::new(status, "refused", title, message)
            }
            FailureCode::NotApplied => Self::not_applied(message, retry_after),
            FailureCode::Unknown => Self::unknown(message),
            // The router knew the region, the owner does not: they are of different configurations.
            FailureCode::UnknownRegion => Self::internal(&message),
            FailureCode::Dropped => Self::new(StatusCode::SERVICE_UNAVAILABLE, "dropped", "Lost on its way", message)
                .retry_after(RETRY_SOON),
        }
    }
}

/// `Retry-After` knows whole seconds only; rounded up, so that nobody comes too early.
fn whole_seconds(pause: Duration) -> u64 {
    pause.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX)
}

/// The client's id of this request, or a new one.
fn request_id(request: &RequestHead) -> Cow<'_, str> {
    let given = request.headers().get(REQUEST_ID).and_then(|id| id.to_str().ok());
    match given {
        Some(id) if (1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) => Cow::Borrowed(id),
        _ => Cow::Owned(format!("{:016x}", fastrand::u64(..))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_rounded_up_to_whole_seconds() {
        for (millis, seconds) in [(0, 0), (1, 1), (1000, 1), (1001, 2)] {
            assert_eq!(whole_seconds(Duration::from_millis(millis)), seconds);
        }
    }
}
