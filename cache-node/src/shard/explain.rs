//! What `/-/explain` says of a key.

use std::borrow::Cow;
use std::time::Instant;

use serde::Serialize;
use sharding::epoch::Epoch;
use sharding::id::ShardId;
use sharding::wire::AnswerBody;

use super::entries::{Entry, Value};
use super::freshness::Age;
use super::{Shard, Work};

#[derive(Serialize)]
struct Explanation<'a> {
    region: &'a str,
    key: Cow<'a, str>,
    shard: ShardId,
    owned_since: Epoch,
    is_loading: bool,
    is_writing: bool,
    entry: Option<EntryPage>,
}

#[derive(Serialize)]
struct EntryPage {
    state: &'static str,
    is_absent: bool,
    /// Why it was loaded.
    loaded: &'static str,
    value_bytes: usize,
    etag: Option<String>,
    age_ms: u128,
    ttl_ms: i64,
}

impl EntryPage {
    fn of(entry: &Entry<Value<'_>>, now: Instant) -> Self {
        Self {
            state: match entry.lifetime.age(now) {
                Age::Fresh => "fresh",
                Age::Stale => "stale",
                Age::Gone => "gone",
            },
            is_absent: entry.content.is_none(),
            loaded: entry.reason.label(),
            value_bytes: entry.content.as_ref().map_or(0, |(value, _)| value.len()),
            etag: entry.content.as_ref().map(|(_, etag)| etag.to_string()),
            age_ms: entry.lifetime.since_sent(now).as_millis(),
            ttl_ms: entry.lifetime.ttl_ms(now),
        }
    }
}

impl Shard {
    pub(super) fn explain(&self, work: &Work, now: Instant) -> AnswerBody {
        let key = (work.region, work.key.clone());
        let page = Explanation {
            region: self.node.regions[work.region].name.as_str(),
            key: String::from_utf8_lossy(&work.key),
            shard: self.serve.shard,
            owned_since: self.serve.since,
            is_loading: self.keys.is_loading(&key),
            is_writing: self.keys.is_writing(&key),
            entry: self.entries[work.region].peek(&work.key).map(|entry| EntryPage::of(&entry, now)),
        };
        AnswerBody::Page(serde_json::to_vec(&page).expect("a page of plain fields is JSON").into())
    }
}
