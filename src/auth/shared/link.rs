//! The wire to the store of shared keys. Nobody who waits for an answer to a prediction waits here.

use std::sync::LazyLock;
use std::time::Duration;

use redis::{Client, Connection, RedisResult, Script};

use super::{MAX_RECORDS, SharedError, SharedStore, client, reason};

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("publish.lua")));

/// Connecting takes no longer, and then no part of an answer to a question: questions are asked every second.
const PATIENCE: Duration = Duration::from_secs(1);

/// No part of an answer to a change takes longer: it may be of many records.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Records fetched at a time.
const PAGE: usize = 1000;

/// Where keys stand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Position {
    /// Tells the changes that led here from others that are as many. Empty: they were never shared.
    pub(super) stamp: String,
    /// How many changes led here.
    pub(super) generation: i64,
}

impl Position {
    /// As the store has it; nothing for keys that were never shared.
    fn text(&self) -> String {
        if self.stamp.is_empty() { String::new() } else { format!("{} {}", self.stamp, self.generation) }
    }
}

/// What the store says of the keys in it.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) at: Position,
    /// The stamp it had in the generation that was asked about, if it was there and that is not long ago.
    pub(super) stamp_then: Option<String>,
    /// How many records there should be.
    expected: u64,
    /// How many there are.
    found: u64,
    /// The fingerprint of the pepper they were made with.
    pub(super) pepper: String,
}

/// What the store answers of its state: the text, the stamp of a generation, and how many records are ordered and written.
type Answer = (Option<String>, Option<String>, u64, u64);

impl State {
    fn read(text: &str, stamp_then: Option<String>, found: u64) -> Option<Self> {
        let [stamp, generation, expected, pepper] = text.split(' ').collect::<Vec<_>>().try_into().ok()?;
        let at = Position { stamp: stamp.to_owned(), generation: generation.parse().ok()? };
        Some(Self { at, stamp_then, expected: expected.parse().ok()?, found, pepper: pepper.to_owned() })
    }

    /// The same where no record is missing.
    pub(super) fn complete(self) -> Result<Self, SharedError> {
        let Self { expected, found, .. } = self;
        if found == expected { Ok(self) } else { Err(SharedError::Incomplete { found, expected }) }
    }
}

/// What is to be written.
pub(super) struct Publication {
    /// Where the writer thinks that the keys stand.
    pub(super) expected: Position,
    /// Whether the records are all there shall be.
    pub(super) is_whole: bool,
    pub(super) becomes: Position,
    pub(super) pepper: String,
    /// Fields with their values.
    pub(super) records: Vec<(String, String)>,
}

pub(super) struct Link {
    client: Client,
    connection: Option<Connection>,
    state: String,
    records: String,
    changes: String,
    stamps: String,
}

impl Link {
    pub(super) fn new(store: &SharedStore) -> RedisResult<Self> {
        let records = format!("{}:keys", store.namespace);
        Ok(Self {
            client: client(&store.url, store.password.as_ref())?,
            connection: None,
            state: format!("{records}:state"),
            changes: format!("{records}:changes"),
            stamps: format!("{records}:stamps"),
            records,
        })
    }

    /// Where the keys stand, and what their stamp was in this generation; `None` where there are none.
    pub(super) fn state(&mut self, generation: i64) -> Result<Option<State>, SharedError> {
        let pipe = self.question(generation);
        let answer = self.ask(|link| pipe.query(link))?;
        self.intelligible(answer)
    }

    /// The fields that were written after `generation`, or all of them, with where the keys stood then.
    pub(super) fn changes(&mut self, after: Option<i64>) -> Result<(State, Vec<String>), SharedError> {
        let from = after.map_or_else(|| "-inf".to_owned(), |generation| format!("({generation}"));
        let mut pipe = self.question(after.unwrap_or_default());
        pipe.cmd("ZRANGEBYSCORE").arg(&self.changes).arg(from).arg("+inf");
        let (text, stamp, ordered, written, fields) = self.ask(|link| pipe.query(link))?;
        let state = self.intelligible((text, stamp, ordered, written))?.ok_or(SharedError::Absent)?;
        Ok((state.complete()?, fields))
    }

    /// The question for an [`Answer`], all of it of one moment.
    fn question(&self, generation: i64) -> redis::Pipeline {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("GET").arg(&self.state).cmd("HGET").arg(&self.stamps).arg(generation);
        pipe.cmd("ZCARD").arg(&self.changes).cmd("HLEN").arg(&self.records);
        pipe
    }

    /// The values of `fields`, in the same order. `None` for what is not there, or is no text.
    pub(super) fn records(&mut self, fields: &[String]) -> Result<Vec<Option<String>>, SharedError> {
        let mut values = Vec::with_capacity(fields.len());
        for page in fields.chunks(PAGE) {
            let name = self.records.clone();
            let page: Vec<Option<Vec<u8>>> = self.ask(|link| redis::cmd("HMGET").arg(&name).arg(page).query(link))?;
            values.extend(page.into_iter().map(|value| String::from_utf8(value?).ok()));
        }
        Ok(values)
    }

    /// Writes what is to be written, in one step. False, and nothing is written, where the keys stand elsewhere by now.
    pub(super) fn publish(&mut self, publication: &Publication) -> Result<bool, SharedError> {
        let Publication { expected, is_whole, becomes, pepper, records } = publication;
        if records.len() > MAX_RECORDS {
            return Err(SharedError::TooMany(records.len()));
        }
        let mut call = PUBLISH.key(&self.state);
        call.key(&self.records).key(&self.changes).key(&self.stamps);
        call.arg(expected.text()).arg(u8::from(*is_whole));
        call.arg(&becomes.stamp).arg(becomes.generation).arg(pepper);
        for (field, value) in records {
            call.arg(field).arg(value);
        }
        self.call(WRITE_PATIENCE, |link| call.invoke(link)).map_err(|error| {
            // What the server refused was not done; what it was not heard to do may have been.
            let is_refused = error.code().is_some();
            if is_refused { SharedError::Unreachable(reason(&error)) } else { SharedError::Uncertain(reason(&error)) }
        })
    }

    /// Asks a question: once more over a new connection, if the old one may have ended since it was last used.
    fn ask<T>(&mut self, ask: impl Fn(&mut Connection) -> RedisResult<T>) -> Result<T, SharedError> {
        let was_used = self.connection.is_some();
        let answer = self.call(PATIENCE, &ask);
        let answer = match answer {
            Err(error) if was_used && error.is_connection_dropped() => self.call(PATIENCE, &ask),
            answer => answer,
        };
        answer.map_err(|error| SharedError::Unreachable(reason(&error)))
    }

    fn call<T>(&mut self, patience: Duration, call: impl FnOnce(&mut Connection) -> RedisResult<T>) -> RedisResult<T> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.client.get_connection_with_timeout(PATIENCE)?,
        };
        connection.set_read_timeout(Some(patience))?;
        connection.set_write_timeout(Some(patience))?;
        let answer = call(&mut connection);
        // Whatever went wrong, the next answer on this connection might be the one to this question.
        if answer.is_ok() {
            self.connection = Some(connection);
        }
        answer
    }

    fn intelligible(&self, (text, stamp, ordered, written): Answer) -> Result<Option<State>, SharedError> {
        let Some(text) = text else { return Ok(None) };
        let state = State::read(&text, stamp, ordered.min(written));
        state.map(Some).ok_or_else(|| SharedError::Unintelligible { name: self.state.clone() })
    }
}
