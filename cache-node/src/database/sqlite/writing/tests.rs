use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::Connection;
use sharding::epoch::Epoch;
use sharding::id::{ClusterName, NShards, ShardId};
use sharding::wire::{Etag, Precondition, Tags};

use super::super::super::{FENCE_TABLE, Fences};
use super::*;

const STORE: &str = "INSERT INTO things VALUES (:key, :value) ON CONFLICT (id) DO UPDATE SET body = excluded.body";
const REMOVE: &str = "DELETE FROM things WHERE id = :key";

fn open(path: &Path) -> Sqlite {
    Sqlite::open_to_write(path).expect("opens")
}

/// With the fence of shard 7 at number 1.
fn database(key_type: &str) -> (tempfile::TempDir, Sqlite) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("test.db");
    let schema =
        format!("{FENCE_TABLE}; CREATE TABLE things (id {key_type} PRIMARY KEY, body TEXT CHECK (body <> 'bad'))");
    Connection::open(&path).and_then(|connection| connection.execute_batch(&schema)).expect("a schema");
    let mut sqlite = open(&path);
    assert_eq!(sqlite.raise(&raise(1024, &[(7, 1)])), Ok(raised(&[7])));
    (dir, sqlite)
}

fn fences(n_shards: u16) -> Arc<Fences> {
    let cluster = ClusterName::parse("test").expect("a name");
    Arc::new(Fences { cluster, n_shards: NShards::new(n_shards).expect("some") })
}

fn token(n: u64) -> Token {
    Token { since: Epoch::default(), n }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(5)
}

fn raise(n_shards: u16, tokens: &[(u16, u64)]) -> Raise {
    let tokens = tokens.iter().map(|(shard, n)| (ShardId(*shard), token(*n))).collect();
    Raise { fences: fences(n_shards), tokens, send_by: soon(), until: soon(), _slot: None }
}

fn raised(shards: &[u16]) -> Raised {
    Raised { raised: shards.iter().map(|shard| ShardId(*shard)).collect(), higher: Vec::new() }
}

fn write(n: u64, key: &str, value: Option<&str>) -> Write {
    Write {
        query: Arc::new(Query::Sql("SELECT id, body FROM things WHERE id IN (:keys)".to_owned())),
        statements: Arc::new(Statements::Sql { store: STORE.to_owned(), remove: REMOVE.to_owned() }),
        comment: "write".into(),
        region: "things".into(),
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: value.map(|value| Bytes::copy_from_slice(value.as_bytes())),
        precondition: Precondition::default(),
        fences: fences(1024),
        shard: ShardId(7),
        token: token(n),
        send_by: soon(),
        until: soon(),
        _slot: None,
    }
}

fn put(sqlite: &mut Sqlite, write: &Write) -> Result<Written, WriteError> {
    sqlite.write(write, &Progress::default())
}

fn done(value: Option<&'static str>) -> Result<Written, WriteError> {
    Ok(Written::Done(value.map(Bytes::from)))
}

#[test]
fn a_value_is_written_and_removed() {
    let (_dir, mut sqlite) = database("TEXT");
    assert_eq!(put(&mut sqlite, &write(1, "a", Some("one"))), done(Some("one")));
    assert_eq!(put(&mut sqlite, &write(1, "a", Some("two"))), done(Some("two")));
    assert_eq!(put(&mut sqlite, &write(1, "a", None)), done(None));
    assert_eq!(put(&mut sqlite, &write(1, "a", None)), done(None));
}

#[test]
fn a_write_goes_through_only_while_its_fence_stands() {
    let (_dir, mut sqlite) = database("TEXT");
    for n in [0, 2] {
        assert_eq!(put(&mut sqlite, &write(n, "a", Some("one"))), Ok(Written::Fenced));
    }
    assert_eq!(sqlite.raise(&raise(1024, &[(7, 3), (8, 1)])), Ok(raised(&[7, 8])));
    assert_eq!(put(&mut sqlite, &write(1, "a", Some("one"))), Ok(Written::Fenced));
    assert_eq!(put(&mut sqlite, &write(3, "a", Some("one"))), done(Some("one")));
    let lower = sqlite.raise(&raise(1024, &[(7, 2), (8, 1)])).expect("answered");
    assert_eq!((lower.raised, lower.higher), (vec![ShardId(8)], vec![(ShardId(7), token(3))]));
    let other_shards = sqlite.raise(&raise(512, &[(7, 9)])).expect_err("refused").to_string();
    assert!(other_shards.contains("of 1024 shards, not of 512"), "{other_shards}");
}

#[test]
fn what_is_demanded_is_looked_at_where_the_value_is() {
    let (_dir, mut sqlite) = database("TEXT");
    let only = |if_match, if_none_match, value| Write {
        precondition: Precondition { if_match, if_none_match },
        ..write(1, "a", Some(value))
    };
    let listed = |value: &str| Some(Tags::Listed(vec![Etag::of(value.as_bytes())]));
    assert_eq!(put(&mut sqlite, &only(Some(Tags::Any), None, "one")), Ok(Written::Precondition(None)));
    assert_eq!(put(&mut sqlite, &only(None, Some(Tags::Any), "one")), done(Some("one")));
    let there = Ok(Written::Precondition(Some(Bytes::from("one"))));
    assert_eq!(put(&mut sqlite, &only(None, Some(Tags::Any), "two")), there);
    assert_eq!(put(&mut sqlite, &only(listed("two"), None, "two")), there);
    assert_eq!(put(&mut sqlite, &only(listed("one"), None, "two")), done(Some("two")));
    assert_eq!(put(&mut sqlite, &only(None, listed("one"), "three")), done(Some("three")));
}

#[test]
fn what_the_database_refuses_is_not_done_and_says_why() {
    let (_dir, mut sqlite) = database("TEXT");
    let refused = put(&mut sqlite, &write(1, "a", Some("bad"))).expect_err("refused");
    assert!(matches!(&refused, WriteError::Refused(why) if why.contains("CHECK")), "{refused:?}");
    assert_eq!(put(&mut sqlite, &write(1, "a", Some("good"))), done(Some("good")));
}

#[test]
fn a_key_that_the_database_writes_otherwise_is_refused() {
    let (_dir, mut sqlite) = database("INTEGER");
    assert_eq!(put(&mut sqlite, &write(1, "42", Some("one"))), done(Some("one")));
    let refused = put(&mut sqlite, &write(1, "042", Some("two"))).expect_err("refused");
    assert!(matches!(&refused, WriteError::Refused(why) if why.contains("cannot be read back")), "{refused:?}");
    assert_eq!(put(&mut sqlite, &write(1, "042", None)), done(None), "there is no such row");
    let demanding = Precondition { if_match: Some(Tags::Listed(vec![Etag::of(b"one")])), if_none_match: None };
    let same = Write { precondition: demanding, ..write(1, "42", Some("three")) };
    assert_eq!(put(&mut sqlite, &same), done(Some("three")), "what was undone did not change it");
}

#[test]
fn a_file_that_somebody_else_writes_to_is_waited_for_and_no_longer_than_allowed() {
    let (dir, mut sqlite) = database("TEXT");
    let other = Connection::open(dir.path().join("test.db")).expect("opens");
    other.execute_batch("BEGIN IMMEDIATE").expect("locks");
    let brief = Write { until: Instant::now() + Duration::from_millis(50), ..write(1, "a", Some("one")) };
    let refused = put(&mut sqlite, &brief).expect_err("locked");
    assert!(matches!(refused, WriteError::NotDone(_)), "{refused:?}");
    other.execute_batch("COMMIT").expect("unlocks");
    assert_eq!(put(&mut sqlite, &write(1, "a", Some("one"))), done(Some("one")));
}

#[test]
fn what_comes_after_a_write_has_a_time_of_its_own() {
    let (_dir, mut sqlite) = database("TEXT");
    let brief = Write { until: Instant::now() + Duration::from_millis(20), ..write(1, "a", Some("one")) };
    assert_eq!(put(&mut sqlite, &brief), done(Some("one")));
    std::thread::sleep(Duration::from_millis(30));
    // Enough of them for SQLite to ask whether to go on.
    let many: Vec<(u16, u64)> = (0..1024).map(|shard| (shard, 2)).collect();
    assert_eq!(sqlite.raise(&raise(1024, &many)).expect("raised").raised.len(), 1024);
}

#[test]
fn a_write_that_was_given_up_before_its_commit_is_undone() {
    let (_dir, mut sqlite) = database("TEXT");
    let progress = Progress::default();
    assert!(progress.reach(Progress::GIVEN_UP));
    let given_up = sqlite.write(&write(1, "a", Some("one")), &progress);
    assert_eq!(given_up, Err(WriteError::NotDone(DatabaseError::TimedOut)));
    let only_new = Precondition { if_match: None, if_none_match: Some(Tags::Any) };
    let new = Write { precondition: only_new, ..write(1, "a", Some("two")) };
    assert_eq!(put(&mut sqlite, &new), done(Some("two")), "nothing was there");
}

#[test]
fn a_row_that_stays_after_it_was_removed_is_said_to() {
    let (_dir, mut sqlite) = database("TEXT");
    assert_eq!(put(&mut sqlite, &write(1, "a", Some("one"))), done(Some("one")));
    let remove = "DELETE FROM things WHERE id = :key AND body <> 'one'".to_owned();
    let statements = Arc::new(Statements::Sql { store: STORE.to_owned(), remove });
    let refused = put(&mut sqlite, &Write { statements, ..write(1, "a", None) }).expect_err("refused");
    assert!(matches!(&refused, WriteError::Refused(why) if why.contains("still there")), "{refused:?}");
}

#[test]
fn a_table_of_fences_that_is_gone_is_said_with_how_to_make_it() {
    let (dir, mut sqlite) = database("INTEGER");
    assert!(put(&mut sqlite, &write(1, "1", Some("v"))).is_ok());
    let drop_it = format!("DROP TABLE {FENCES}");
    Connection::open(dir.path().join("test.db")).and_then(|it| it.execute_batch(&drop_it)).expect("dropped");
    let remedy = "make the table that `cache-node fence-table` prints";
    let error = sqlite.raise(&raise(1024, &[(7, 2)])).expect_err("there is none").to_string();
    assert!(error.contains(remedy), "{error}");
    let Err(WriteError::NotDone(error)) = put(&mut sqlite, &write(1, "1", Some("v"))) else {
        panic!("nothing is written")
    };
    assert!(error.to_string().contains(remedy), "{error}");
}
