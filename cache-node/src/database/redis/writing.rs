//! Writes to Redis: fence and value are looked at and written by one script, which nothing else interrupts.

use std::sync::LazyLock;

use bytes::Bytes;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, RedisError, Script, Value};
use sharding::fence::Token;
use tokio::time::timeout_at;

use super::super::{FENCES, Fences, Raise, Raised, Write, WriteError, Written, may_be_sent, other_n_shards};
use super::{Numbered, Query, Redis, failed};
use crate::database::DatabaseError;

/// Others that change a value between our look at it and our write are given way so often.
const TRIES_MAX: usize = 3;

/// KEYS: fences, key. ARGV: shard, token, field (empty: a string), what is expected of the value that is there ("": nothing;
/// "absent"; or its SHA-1), what to do ("look", "set", "del"), value. Answers with what has become of it, and for a look
/// with the value that is there and its SHA-1.
static WRITE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local shard, token, field, expected, deed, value = unpack(ARGV)
         if redis.call('HGET', KEYS[1], shard) ~= token then return {'fenced'} end
         local function current()
           local found
           if field == '' then found = redis.pcall('GET', KEYS[2]) else found = redis.pcall('HGET', KEYS[2], field) end
           return type(found) == 'string' and found or false
         end
         if deed == 'look' then
           local found = current()
           return {'found', found, found and redis.sha1hex(found)}
         end
         if expected ~= '' then
           local found = current()
           if (found and redis.sha1hex(found) or 'absent') ~= expected then return {'changed'} end
         end
         if deed == 'set' and field == '' then redis.call('SET', KEYS[2], value)
         elseif deed == 'set' then redis.call('HSET', KEYS[2], field, value)
         elseif field == '' then redis.call('DEL', KEYS[2])
         else redis.call('HDEL', KEYS[2], field) end
         return {'done'}",
    )
});

/// KEYS: fences. ARGV: n_shards, then shard and token in turn. Answers with the number of shards, then the token of each.
static RAISE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        // Texts are compared as the server's locale has it; 13 hexadecimal digits are a number as it is.
        "local function below(one, other)
           for at = 1, 52, 13 do
             local a, b = tonumber(one:sub(at, at + 12), 16), tonumber(other:sub(at, at + 12), 16)
             if a ~= b then return a < b end
           end
           return false
         end
         local known = redis.call('HGET', KEYS[1], 'n_shards')
         if known and known ~= ARGV[1] then return {known} end
         redis.call('HSET', KEYS[1], 'n_shards', ARGV[1])
         local found = {ARGV[1]}
         for place = 2, #ARGV, 2 do
           local token = redis.call('HGET', KEYS[1], ARGV[place])
           if not token or below(token, ARGV[place + 1]) then
             token = ARGV[place + 1]
             redis.call('HSET', KEYS[1], ARGV[place], token)
           end
           found[#found + 1] = token
         end
         return found",
    )
});

fn name_of_fences(fences: &Fences) -> String {
    format!("{FENCES}:{}", fences.cluster.as_str())
}

/// The key as Redis knows it.
fn name_of(write: &Write) -> Option<Vec<u8>> {
    let Query::Redis { key: (before, after), .. } = &*write.query else { return None };
    Some([before.as_bytes(), &write.key, after.as_bytes()].concat())
}

/// What a call of the script is to do.
struct Call<'a> {
    deed: &'static str,
    expected: &'a str,
    value: &'a [u8],
}

impl Redis {
    pub(super) async fn write(&self, write: Write) -> Result<Written, WriteError> {
        let until = write.until.into();
        let connected = timeout_at(until, self.connection()).await.unwrap_or(Err(DatabaseError::TimedOut));
        let Numbered { number, connection } = connected.map_err(WriteError::NotDone)?;
        may_be_sent(write.send_by, write.until).map_err(WriteError::NotDone)?;
        // On a task of its own, as a read.
        let asked = tokio::spawn(change(connection, write));
        let answer = match timeout_at(until, asked).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(WriteError::Unknown(DatabaseError::Failed("its driver panicked".to_owned()))),
            Err(_) => Err(WriteError::Unknown(DatabaseError::TimedOut)),
        };
        if matches!(answer, Err(WriteError::Unknown(_))) {
            self.forget(number).await;
        }
        answer
    }

    pub(super) async fn raise(&self, raise: Raise) -> Result<Raised, DatabaseError> {
        self.run(raise.send_by, raise.until, |connection| raise_all(connection, raise)).await
    }
}

async fn change(mut connection: MultiplexedConnection, write: Write) -> Result<Written, WriteError> {
    let (deed, value) = match &write.value {
        Some(value) => ("set", &value[..]),
        None => ("del", &b""[..]),
    };
    let mut expected = String::new();
    if name_of(&write).is_some_and(|name| name == name_of_fences(&write.fences).as_bytes()) {
        return Err(WriteError::Refused("the fences stand under this key".to_owned()));
    }
    for _ in 0..TRIES_MAX {
        if !write.precondition.is_none() {
            let look = Call { deed: "look", expected: "", value: b"" };
            // Nothing was done yet, whatever it says.
            let looked =
                call(&mut connection, &write, &look).await.map_err(|error| WriteError::NotDone(failed(&error)))?;
            let (found, hash) = match looked.as_slice() {
                [Answer::Text(said), ..] if said == b"fenced" => return Ok(Written::Fenced),
                [_, Answer::Text(value), Answer::Text(hash)] => (Some(Bytes::copy_from_slice(value)), Some(hash)),
                _ => (None, None),
            };
            if !write.is_allowed(found.as_ref()) {
                return Ok(Written::Precondition(found));
            }
            expected = hash.map_or("absent".to_owned(), |hash| String::from_utf8_lossy(hash).into_owned());
        }
        let done = call(&mut connection, &write, &Call { deed, expected: &expected, value }).await;
        match done.map_err(|error| write_error(&error))?.as_slice() {
            // A copy: what came over the wire holds all that came with it.
            [Answer::Text(said), ..] if said == b"done" => {
                return Ok(Written::Done(write.value.map(|value| Bytes::copy_from_slice(&value))));
            }
            [Answer::Text(said), ..] if said == b"changed" => {}
            _ => return Ok(Written::Fenced),
        }
    }
    Err(WriteError::NotDone(DatabaseError::Failed("others change the value all the time; try again".to_owned())))
}

/// One element of a script's answer.
enum Answer {
    Text(Vec<u8>),
    Nothing,
}

async fn call(
    connection: &mut MultiplexedConnection,
    write: &Write,
    Call { deed, expected, value }: &Call<'_>,
) -> Result<Vec<Answer>, RedisError> {
    let (Query::Redis { field, .. }, Some(name)) = (&*write.query, name_of(write)) else { return Ok(Vec::new()) };
    let mut script = WRITE.prepare_invoke();
    script.key(name_of_fences(&write.fences)).key(name);
    script.arg(write.shard.0).arg(write.token.to_string()).arg(field.as_deref().unwrap_or_default());
    script.arg(*expected).arg(*deed).arg(*value);
    let answer: Vec<Value> = script.invoke_async(connection).await?;
    let text = |value| match value {
        Value::BulkString(bytes) => Answer::Text(bytes),
        Value::SimpleString(text) => Answer::Text(text.into_bytes()),
        _ => Answer::Nothing,
    };
    Ok(answer.into_iter().map(text).collect())
}

/// What the server says against a script was found before it wrote; of one that was not answered nobody knows.
fn write_error(error: &RedisError) -> WriteError {
    match error.kind() {
        ErrorKind::Server(_) | ErrorKind::Extension => WriteError::NotDone(failed(error)),
        _ => WriteError::Unknown(failed(error)),
    }
}

async fn raise_all(mut connection: MultiplexedConnection, raise: Raise) -> Result<Raised, DatabaseError> {
    let mut script = RAISE.prepare_invoke();
    script.key(name_of_fences(&raise.fences)).arg(raise.fences.n_shards.get());
    for (shard, token) in &raise.tokens {
        script.arg(shard.0).arg(token.to_string());
    }
    let found: Vec<String> = script.invoke_async(&mut connection).await.map_err(|error| failed(&error))?;
    let Some((n_shards, found)) = found.split_first() else {
        return Err(DatabaseError::Failed("the script that raises fences answers nothing".to_owned()));
    };
    if *n_shards != raise.fences.n_shards.get().to_string() {
        return Err(other_n_shards(&raise.fences, n_shards));
    }
    let mut raised = Raised::default();
    for ((shard, wanted), found) in raise.tokens.iter().zip(found) {
        let found = Token::parse(found).ok_or_else(|| {
            DatabaseError::Failed(format!("the fence of shard {shard} in {} is none", name_of_fences(&raise.fences)))
        })?;
        raised.take(*shard, *wanted, found);
    }
    Ok(raised)
}
