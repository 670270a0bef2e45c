//! A segment of samples as bytes: a compact encoding, and a reader that is total. Pure: no files here.
//!
//! A segment is one header and any number of frames, one frame a sample. `text` is a varint length and UTF-8, `list` a
//! varint count and its items, `int` a zigzag varint; everything else is little-endian.
//!
//! ```text
//! header  magic "MGSPOOL" and the byte 1, u32 length, that many bytes of schema, u32 CRC-32 of all before
//! schema  u64 id, int hour since 1970, text model, u64 version, 32 bytes digest, u8 kind of the prediction (3: none),
//!         list of features (text name, u8 kind, protection), list of classes (text)
//! protection  u8 tag: 0 kept, 1 left out, 2 hashed, 3 rounded down to a multiple of an f64, which follows
//! frame   u32 length of the body, u32 rows, u64 rows before, u32 CRC-32, body, u32 CRC-32 of the body
//! body    text request id, int milliseconds since 1970, text key id, one row after the other
//! row     one cell a feature, value, option of label (text), option of score (f64), list of probabilities (f32)
//! cell    u8 tag: 0 missing, 1 false, 2 true, 3 int, 4 f64, 5 text; then the value
//! value   u8 tag: 3 int, 4 f64, 5 text; then the value
//! ```
//!
//! Both sums of a frame are salted with the segment's random id, so that neither a stale page of another segment nor a
//! caller's text can pass for a frame. A reader that meets damage looks for the next frame byte by byte; the rows it
//! missed are the difference to that frame's `rows before`.

use std::borrow::Cow;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::model::features::Feature;
use crate::model::signature::Kind;
use crate::model::{Cell, Digest, ModelName, Prediction, Value};

use super::Record;
use super::protect::{Policy, Protection, Secret};

const MAGIC: &[u8; 8] = b"MGSPOOL\x01";
/// Magic and length.
const PREFIX: usize = 12;
const CRC: usize = 4;
/// Length of the body, rows, rows before, and their sum.
const HEAD: usize = 4 + 4 + 8 + CRC;

/// What every sample of a segment shares.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// Random; salts the sums.
    pub id: u64,
    /// The hour of the samples: whole hours since 1970, UTC.
    pub hour: i64,
    /// What the rows look like.
    pub schema: Schema,
}

/// Which version answered, and what its rows look like.
#[derive(Clone, Debug, PartialEq)]
pub struct Schema {
    /// The model's name.
    pub model: ModelName,
    /// The registry's version number.
    pub version: u64,
    /// SHA-256 over the version's files.
    pub digest: [u8; 32],
    /// The type of [`Prediction::value`].
    pub prediction: ValueKind,
    /// The features, in the order of the cells.
    pub features: Vec<Column>,
    /// The labels of the classes, in the order of the probabilities; empty for a regression.
    pub classes: Vec<Arc<str>>,
}

/// One feature of a [`Schema`].
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The model's name for it.
    pub name: Arc<str>,
    /// The type of what is written.
    pub kind: Kind,
    /// What becomes of its values before they are written.
    pub protection: Protection,
}

/// The type of a prediction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueKind {
    /// Class numbers.
    Integer,
    /// A regression's values.
    Number,
    /// Class names.
    Text,
    /// The requests failed, and the columns say how.
    Nothing,
}

/// One request and its answer, as read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The id the caller was given.
    pub request_id: Box<str>,
    /// When it was answered, in milliseconds since 1970.
    pub time: i64,
    /// The public id of the caller's key.
    pub key_id: Box<str>,
    /// What was asked and answered.
    pub rows: Vec<Row>,
}

/// One row of a [`Sample`].
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// One per feature of the schema.
    pub cells: Vec<Cell>,
    /// The answer.
    pub prediction: Prediction,
    /// One per class of the schema, or none.
    pub probabilities: Vec<f32>,
}

/// A segment as read back.
#[derive(Debug, PartialEq)]
pub struct Contents {
    /// What the samples share.
    pub header: Header,
    /// The samples that are whole.
    pub samples: Vec<Sample>,
}

/// Rows of a segment, as far as its bytes can tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Rows in whole frames.
    pub whole: u64,
    /// Rows in damaged frames.
    pub damaged: u64,
}

impl Schema {
    /// The schema of `record`, with its features protected as `policy` says.
    #[must_use]
    pub fn of(record: &Record, policy: &Policy) -> Self {
        let prediction = ValueKind::of(record);
        let column = |feature: &Feature| {
            // What failed is protected already, and its columns are not features.
            let is_feature = prediction != ValueKind::Nothing;
            let protection = if is_feature { policy.of(feature) } else { Protection::Keep };
            Column { name: Arc::clone(&feature.name), kind: protection.kind(feature.kind), protection }
        };
        Self {
            model: record.model.name.clone(),
            version: record.model.version.0,
            digest: record.model.digest.0,
            prediction,
            features: record.features.list().iter().map(column).collect(),
            classes: record.outputs.classes().to_vec(),
        }
    }

    /// Whether rows of `record` look like this.
    #[must_use]
    pub fn describes(&self, record: &Record) -> bool {
        let features = record.features.list();
        let fits =
            |(ours, its): (&Column, &Feature)| ours.kind == ours.protection.kind(its.kind) && ours.name == its.name;
        self.version == record.model.version.0
            && self.digest == record.model.digest.0
            && self.model == record.model.name
            && self.prediction == ValueKind::of(record)
            && self.classes == record.outputs.classes()
            && self.features.len() == features.len()
            && self.features.iter().zip(features).all(fits)
    }
}

impl ValueKind {
    /// The type of the record's predictions: one model answers with one type.
    fn of(record: &Record) -> Self {
        match record.outputs.predictions().first().map(|prediction| &prediction.value) {
            Some(Value::Integer(_)) => Self::Integer,
            Some(Value::Text(_)) => Self::Text,
            Some(Value::Number(_)) => Self::Number,
            None => Self::Nothing,
        }
    }
}

impl Header {
    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&[0; 4]);
        self.encode_schema(out);
        let length = length_of(&out[start + PREFIX..]);
        out[start + PREFIX - 4..start + PREFIX].copy_from_slice(&length.to_le_bytes());
        let sum = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&sum.to_le_bytes());
    }

    fn encode_schema(&self, out: &mut Vec<u8>) {
        let schema = &self.schema;
        out.extend_from_slice(&self.id.to_le_bytes());
        put_int(out, self.hour);
        put_text(out, schema.model.as_str());
        out.extend_from_slice(&schema.version.to_le_bytes());
        out.extend_from_slice(&schema.digest);
        out.push(schema.prediction.code());
        put_count(out, schema.features.len());
        for column in &schema.features {
            put_text(out, &column.name);
            out.push(kind_code(column.kind));
            put_protection(out, column.protection);
        }
        put_count(out, schema.classes.len());
        for class in &schema.classes {
            put_text(out, class);
        }
    }

    /// The header at the start of `bytes`, and how long it is.
    fn decode(bytes: &[u8]) -> Option<(Self, usize)> {
        let mut cursor = Cursor(bytes);
        if cursor.take(MAGIC.len())? != MAGIC {
            return None;
        }
        let length = usize::try_from(cursor.u32()?).ok()?;
        let body = cursor.take(length)?;
        let end = PREFIX + length;
        if cursor.u32()? != crc32fast::hash(&bytes[..end]) {
            return None;
        }
        Some((Self::decode_schema(body)?, end + CRC))
    }

    fn decode_schema(bytes: &[u8]) -> Option<Self> {
        let mut cursor = Cursor(bytes);
        let id = cursor.u64()?;
        let hour = cursor.int()?;
        let schema = Schema {
            model: cursor.text()?.parse().ok()?,
            version: cursor.u64()?,
            digest: cursor.array()?,
            prediction: ValueKind::from_code(cursor.u8()?)?,
            features: cursor.list(Cursor::column)?,
            classes: cursor.list(|cursor| cursor.text().map(Arc::from))?,
        };
        cursor.0.is_empty().then_some(Self { id, hour, schema })
    }

    /// Appends `record` as a frame to `out`, after `before` rows of this segment. Without a `secret` what has to be
    /// hashed is left out.
    pub fn encode_record(&self, before: u64, record: &Record, secret: Option<&Secret>, out: &mut Vec<u8>) {
        // Stands in the frame of what has none, and is read by nobody.
        let nothing = Prediction { value: Value::Integer(0), label: None, score: None };
        let rows = (0..record.rows()).map(|row| {
            let prediction = record.outputs.predictions().get(row).unwrap_or(&nothing);
            let cells = self.schema.protected(record.inputs.row(row), secret);
            (cells, prediction, record.outputs.probabilities(row))
        });
        self.encode_sample(before, &record.request_id, record.time.as_millisecond(), &record.key_id, rows, out);
    }

    fn encode_sample<'a, C: IntoIterator<Item = Cow<'a, Cell>>>(
        &self,
        before: u64,
        request_id: &str,
        time: i64,
        key_id: &str,
        rows: impl ExactSizeIterator<Item = (C, &'a Prediction, &'a [f32])>,
        out: &mut Vec<u8>,
    ) {
        put_frame(out, self.id, before, rows.len(), |out| {
            put_text(out, request_id);
            put_int(out, time);
            put_text(out, key_id);
            for (cells, prediction, probabilities) in rows {
                cells.into_iter().for_each(|cell| put_cell(out, &cell));
                put_answer(out, prediction, probabilities);
            }
        });
    }
}

impl Schema {
    /// One cell a feature, each as it may be written: what is protected never reaches the disk.
    fn protected<'a>(&'a self, cells: &'a [Cell], secret: Option<&'a Secret>) -> impl Iterator<Item = Cow<'a, Cell>> {
        let cell = move |(index, column): (usize, &'a Column)| {
            let cell = cells.get(index).unwrap_or(&Cell::Missing);
            column.protection.apply(&column.name, cell, secret)
        };
        self.features.iter().enumerate().map(cell)
    }
}

/// Reads a segment. `None` when its header is damaged: without it no row can be understood.
#[must_use]
pub fn read(bytes: &[u8]) -> Option<Contents> {
    let (header, length) = Header::decode(bytes)?;
    let width = header.schema.features.len();
    let sample = |frame: Frame<'_>| Sample::decode(frame.body?, frame.rows, width);
    let samples = Frames::new(&bytes[length..], header.id).filter_map(sample).collect();
    Some(Contents { header, samples })
}

/// SHA-256 of what is whole in a segment: of all of it, unless it was damaged or its end was never accepted. `None` when
/// its header is damaged.
#[must_use]
pub fn digest(bytes: &[u8]) -> Option<Digest> {
    let (header, length) = Header::decode(bytes)?;
    let mut digest = Sha256::new_with_prefix(&bytes[..length]);
    let whole = Frames::new(&bytes[length..], header.id).filter(|frame| frame.body.is_some());
    whole.for_each(|frame| digest.update(frame.bytes));
    Some(Digest(digest.finalize().into()))
}

/// Counts the rows of a segment. With a damaged header the frames are told by `id`, and all count as damaged.
#[must_use]
pub fn survey(bytes: &[u8], id: u64) -> Survey {
    let (id, start) = Header::decode(bytes).map_or((id, None), |(header, length)| (header.id, Some(length)));
    let mut found = Survey::default();
    let mut next = 0;
    for frame in Frames::new(&bytes[start.unwrap_or(0)..], id) {
        found.damaged = found.damaged.saturating_add(frame.before.saturating_sub(next));
        next = frame.before.saturating_add(u64::from(frame.rows));
        match frame.body {
            Some(_) if start.is_some() => found.whole = found.whole.saturating_add(u64::from(frame.rows)),
            _ => found.damaged = found.damaged.saturating_add(u64::from(frame.rows)),
        }
    }
    found
}

impl Contents {
    /// The rows of all samples.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.samples.iter().map(|sample| sample.rows.len() as u64).sum()
    }
}

/// A frame whose head is whole.
struct Frame<'a> {
    /// All of it.
    bytes: &'a [u8],
    before: u64,
    rows: u32,
    /// `None` when the body is damaged or cut off.
    body: Option<&'a [u8]>,
}

/// The frames in some bytes, with whatever is between them skipped.
struct Frames<'a> {
    rest: Cursor<'a>,
    id: u64,
}

impl<'a> Frames<'a> {
    fn new(bytes: &'a [u8], id: u64) -> Self {
        Self { rest: Cursor(bytes), id }
    }

    /// The frame that starts exactly here.
    fn here(&self) -> Option<(Frame<'a>, Cursor<'a>)> {
        let mut cursor = Cursor(self.rest.0);
        let head = cursor.take(HEAD - CRC)?;
        if cursor.u32()? != salted_sum(self.id, head) {
            return None;
        }
        let mut head = Cursor(head);
        let (length, rows, before) = (usize::try_from(head.u32()?).ok()?, head.u32()?, head.u64()?);
        let mut after = Cursor(cursor.0);
        let body = after.take(length).zip(after.u32());
        // A cut body is the end of the segment; behind a damaged one the next frame stands where it should.
        let after = if body.is_some() { after } else { Cursor(&[]) };
        let bytes = &self.rest.0[..self.rest.0.len() - after.0.len()];
        let body = body.filter(|(body, sum)| *sum == salted_sum(self.id, body)).map(|(body, _)| body);
        Some((Frame { bytes, before, rows, body }, after))
    }
}

impl<'a> Iterator for Frames<'a> {
    type Item = Frame<'a>;

    fn next(&mut self) -> Option<Frame<'a>> {
        while self.rest.0.len() >= HEAD {
            if let Some((frame, after)) = self.here() {
                self.rest = after;
                return Some(frame);
            }
            self.rest.0 = &self.rest.0[1..];
        }
        None
    }
}

impl Sample {
    /// The number of rows must be `rows`, and nothing may be left over.
    fn decode(body: &[u8], rows: u32, width: usize) -> Option<Self> {
        let mut cursor = Cursor(body);
        let sample = Self {
            request_id: cursor.text()?.into(),
            time: cursor.int()?,
            key_id: cursor.text()?.into(),
            rows: (0..rows).map(|_| cursor.row(width)).collect::<Option<_>>()?,
        };
        cursor.0.is_empty().then_some(sample)
    }
}

impl ValueKind {
    fn code(self) -> u8 {
        match self {
            Self::Integer => 0,
            Self::Number => 1,
            Self::Text => 2,
            Self::Nothing => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Integer, Self::Number, Self::Text, Self::Nothing].into_iter().find(|kind| kind.code() == code)
    }
}

fn kind_code(kind: Kind) -> u8 {
    match kind {
        Kind::Boolean => 0,
        Kind::Integer => 1,
        Kind::Long => 2,
        Kind::Float => 3,
        Kind::Double => 4,
        Kind::Text => 5,
    }
}

fn kind_from_code(code: u8) -> Option<Kind> {
    let kinds = [Kind::Boolean, Kind::Integer, Kind::Long, Kind::Float, Kind::Double, Kind::Text];
    kinds.into_iter().find(|kind| kind_code(*kind) == code)
}

fn salted_sum(id: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&id.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize()
}

/// Lengths on disk are 32 bits; the queue bounds a record far below that.
fn length_of(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).expect("a record is bounded by the queue, a schema by the model file")
}

fn put_frame(out: &mut Vec<u8>, id: u64, before: u64, rows: usize, body: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEAD]);
    body(out);
    let length = length_of(&out[start + HEAD..]);
    let rows = u32::try_from(rows).expect("the queue holds far fewer rows");
    let head = &mut out[start..start + HEAD];
    head[..4].copy_from_slice(&length.to_le_bytes());
    head[4..8].copy_from_slice(&rows.to_le_bytes());
    head[8..16].copy_from_slice(&before.to_le_bytes());
    let head_sum = salted_sum(id, &head[..16]);
    head[16..].copy_from_slice(&head_sum.to_le_bytes());
    let body_sum = salted_sum(id, &out[start + HEAD..]);
    out.extend_from_slice(&body_sum.to_le_bytes());
}

fn put_protection(out: &mut Vec<u8>, protection: Protection) {
    match protection {
        Protection::Keep => out.push(0),
        Protection::Redact => out.push(1),
        Protection::Hash => out.push(2),
        Protection::Bucket(width) => {
            out.push(3);
            out.extend_from_slice(&width.to_le_bytes());
        }
    }
}

fn put_answer(out: &mut Vec<u8>, prediction: &Prediction, probabilities: &[f32]) {
    put_value(out, &prediction.value);
    put_option(out, prediction.label.as_deref(), put_text);
    put_option(out, prediction.score, |out, score| out.extend_from_slice(&score.to_le_bytes()));
    put_count(out, probabilities.len());
    for probability in probabilities {
        out.extend_from_slice(&probability.to_le_bytes());
    }
}

fn put_cell(out: &mut Vec<u8>, cell: &Cell) {
    match cell {
        Cell::Missing => out.push(0),
        Cell::Boolean(value) => out.push(1 + u8::from(*value)),
        Cell::Integer(value) => put_tagged_int(out, *value),
        Cell::Float(value) => put_tagged_float(out, *value),
        Cell::Text(value) => put_tagged_text(out, value),
    }
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::Integer(value) => put_tagged_int(out, *value),
        Value::Number(value) => put_tagged_float(out, *value),
        Value::Text(value) => put_tagged_text(out, value),
    }
}

fn put_tagged_int(out: &mut Vec<u8>, value: i64) {
    out.push(3);
    put_int(out, value);
}

fn put_tagged_float(out: &mut Vec<u8>, value: f64) {
    out.push(4);
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_tagged_text(out: &mut Vec<u8>, value: &str) {
    out.push(5);
    put_text(out, value);
}

fn put_option<T>(out: &mut Vec<u8>, value: Option<T>, put: impl FnOnce(&mut Vec<u8>, T)) {
    out.push(u8::from(value.is_some()));
    if let Some(value) = value {
        put(out, value);
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_count(out, text.len());
    out.extend_from_slice(text.as_bytes());
}

fn put_int(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

fn put_count(out: &mut Vec<u8>, count: usize) {
    put_varint(out, count as u64);
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Bytes yet to be read. Every read is checked.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn f64(&mut self) -> Option<f64> {
        self.array().map(f64::from_le_bytes)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn int(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = usize::try_from(self.varint()?).ok()?;
        std::str::from_utf8(self.take(length)?).ok()
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    /// Every item takes at least a byte, so a lying count ends with the bytes.
    fn list<T>(&mut self, read: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        let count = self.varint()?;
        (0..count).map(|_| read(self)).collect()
    }

    fn column(&mut self) -> Option<Column> {
        let (name, kind) = (self.text()?.into(), kind_from_code(self.u8()?)?);
        Some(Column { name, kind, protection: self.protection()? })
    }

    fn protection(&mut self) -> Option<Protection> {
        Some(match self.u8()? {
            0 => Protection::Keep,
            1 => Protection::Redact,
            2 => Protection::Hash,
            3 => Protection::Bucket(self.f64()?),
            _ => return None,
        })
    }

    fn row(&mut self, width: usize) -> Option<Row> {
        Some(Row {
            cells: (0..width).map(|_| self.cell()).collect::<Option<_>>()?,
            prediction: Prediction {
                value: self.value()?,
                label: if self.flag()? { Some(self.text()?.into()) } else { None },
                score: if self.flag()? { Some(self.f64()?) } else { None },
            },
            probabilities: self.list(|cursor| cursor.array().map(f32::from_le_bytes))?,
        })
    }

    fn cell(&mut self) -> Option<Cell> {
        Some(match self.u8()? {
            0 => Cell::Missing,
            1 => Cell::Boolean(false),
            2 => Cell::Boolean(true),
            3 => Cell::Integer(self.int()?),
            4 => Cell::Float(self.f64()?),
            5 => Cell::Text(self.text()?.into()),
            _ => return None,
        })
    }

    fn value(&mut self) -> Option<Value> {
        Some(match self.u8()? {
            3 => Value::Integer(self.int()?),
            4 => Value::Number(self.f64()?),
            5 => Value::Text(self.text()?.into()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests;
