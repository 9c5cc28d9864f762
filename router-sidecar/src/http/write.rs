//! `PUT` and `DELETE /{region}/{key}`, with `If-Match` and `If-None-Match` (RFC 9110, sections 9.3.4, 9.3.5 and 13.1).

use actix_web::http::header::{CONTENT_RANGE, ETAG, HeaderName, IF_MATCH, IF_NONE_MATCH};
use actix_web::{HttpRequest, HttpResponse, web};
use bytes::Bytes;
use sharding::wire::{AnswerBody, Etag, Precondition, RegionInfo, TAGS_MAX, Tags, VALUE_BYTES_MAX};
use tokio::time::Instant;

use super::error::Problem;
use super::{HttpState, batch};
use crate::forward::Question;

pub(super) async fn put(
    request: &HttpRequest,
    payload: web::Payload,
    state: &HttpState,
    region: &RegionInfo,
    key: Bytes,
) -> Result<HttpResponse, Problem> {
    if request.headers().contains_key(CONTENT_RANGE) {
        return Err(Problem::partial());
    }
    let precondition = precondition(request)?;
    let value = batch::body(request, payload, state, state.body_bytes_max.min(VALUE_BYTES_MAX)).await?;
    let sent = Etag::of(&value);
    let is_new = precondition.if_none_match == Some(Tags::Any);
    let etag = written(state, region, key, Question::Put(precondition, value)).await?;
    let mut response = if is_new { HttpResponse::Created() } else { HttpResponse::NoContent() };
    // Only what was kept as it was sent may be told the tag of: else the client would take its own copy for it.
    if etag == Some(sent) {
        response.insert_header((ETAG, sent.to_string()));
    }
    Ok(response.finish())
}

pub(super) async fn delete(
    request: &HttpRequest,
    state: &HttpState,
    region: &RegionInfo,
    key: Bytes,
) -> Result<HttpResponse, Problem> {
    let precondition = precondition(request)?;
    written(state, region, key, Question::Delete(precondition)).await?;
    Ok(HttpResponse::NoContent().finish())
}

async fn written(
    state: &HttpState,
    region: &RegionInfo,
    key: Bytes,
    question: Question,
) -> Result<Option<Etag>, Problem> {
    match state.forwarder.ask(question, &region.name, key, Instant::now()).await? {
        AnswerBody::Written(etag) => Ok(etag),
        _ => Err(Problem::internal("the owner's answer is none to a write")),
    }
}

fn precondition(request: &HttpRequest) -> Result<Precondition, Problem> {
    let lists = |name: &HeaderName| -> Result<Vec<String>, Problem> {
        let text = |value: &actix_web::http::header::HeaderValue| value.to_str().map(str::to_owned);
        let all: Result<_, _> = request.headers().get_all(name).map(text).collect();
        all.map_err(|_| Problem::bad_precondition(format!("{name} is no text")))
    };
    let tags = |name: &HeaderName, takes_weak| {
        parse(&lists(name)?, takes_weak).map_err(|what| Problem::bad_precondition(format!("{name}: {what}")))
    };
    Ok(Precondition { if_match: tags(&IF_MATCH, false)?, if_none_match: tags(&IF_NONE_MATCH, true)? })
}

/// Tags of the lines of a header; `None`: there is no such header. A tag that cannot be ours matches nothing; so does a
/// weak one, where the strong comparison is asked for.
fn parse(lines: &[String], takes_weak: bool) -> Result<Option<Tags>, String> {
    if lines.is_empty() {
        return Ok(None);
    }
    let tags: Vec<&str> = lines.iter().flat_map(|line| line.split(',')).map(str::trim).collect();
    if tags == ["*"] {
        return Ok(Some(Tags::Any));
    }
    if tags.len() > TAGS_MAX {
        return Err(format!("{} tags are named; at most {TAGS_MAX} are looked at", tags.len()));
    }
    let mut listed = Vec::new();
    for tag in tags.into_iter().filter(|tag| !tag.is_empty()) {
        let (tag, is_weak) = tag.strip_prefix("W/").map_or((tag, false), |tag| (tag, true));
        let opaque = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        let opaque = opaque.ok_or_else(|| format!("{tag} is neither \"a tag in quotes\" nor a single *"))?;
        let is_ours = opaque.len() == 32 && opaque.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if let Some(tag) = u128::from_str_radix(opaque, 16).ok().filter(|_| is_ours && (takes_weak || !is_weak)) {
            listed.push(Etag(tag));
        }
    }
    Ok(Some(Tags::Listed(listed)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_they_are_compared() {
        let (one, two) = (Etag(1), Etag(0xab));
        let read = |lines: &[&str], takes_weak| {
            let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
            parse(&lines, takes_weak)
        };
        assert_eq!(read(&[], false), Ok(None));
        assert_eq!(read(&[" * "], false), Ok(Some(Tags::Any)));
        let both = [format!("{one}, W/{two}"), format!("{two}")];
        let both: Vec<&str> = both.iter().map(String::as_str).collect();
        assert_eq!(read(&both, false), Ok(Some(Tags::Listed(vec![one, two]))));
        assert_eq!(read(&both[..1], false), Ok(Some(Tags::Listed(vec![one]))));
        assert_eq!(read(&both[..1], true), Ok(Some(Tags::Listed(vec![one, two]))));
        assert_eq!(read(&["\"of somebody else\""], true), Ok(Some(Tags::Listed(vec![]))));
        for wrong in ["abc", "\"a", "*, \"a\""] {
            assert!(read(&[wrong], true).is_err(), "{wrong}");
        }
        let many = vec!["\"a\""; TAGS_MAX + 1].join(",");
        assert!(read(&[&many], true).is_err());
    }
}
