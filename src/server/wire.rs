//! Our own face: `{"data": {…}}`, `{"data": [{…}, …]}` or the bare feature object in, one prediction or a list out.
//!
//! The body is read once, front to back, straight into the model's rows; no tree is built. What is wrong with the text
//! is a [`WireError`] with its place; what is wrong with a value is kept by the rows under the name of its feature.

use std::borrow::Cow;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::model::features::{List, Raw, Rows, excerpt};

mod answer;

pub use answer::write;

/// The member that wraps rows.
const DATA: &str = "data";

/// How much a body may hold. Each limit is the last value that passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Objects and lists in one another.
    pub depth: usize,
    /// Rows.
    pub rows: usize,
    /// Rows times features.
    pub cells: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { depth: 32, rows: 1000, cells: 1_000_000 }
    }
}

/// Whether a body held one row by itself or a list of rows. The answer has the same shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One row, and so one prediction.
    One,
    /// A list of rows, and so a list of predictions, even if it holds one.
    Many,
}

/// Why a body cannot be read as rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// Not JSON, or not in one of the shapes.
    #[error("line {line}, column {column}: {detail}")]
    Malformed {
        /// The line, from 1.
        line: usize,
        /// The byte in the line, from 1.
        column: usize,
        /// What is wrong; of the body's text it holds at most the name of a member.
        detail: String,
    },
    /// The list of rows is empty.
    #[error("there are no rows in `data`")]
    NoRows,
    /// More rows than the limits allow for this many features.
    #[error("there are more than {limit} rows")]
    TooManyRows {
        /// The most that would pass.
        limit: usize,
    },
    /// More objects and lists in one another than the limit.
    #[error("the body nests deeper than {limit} levels")]
    TooDeep {
        /// The most that would pass.
        limit: usize,
    },
}

/// Reads `body` into `rows`.
///
/// `{"data": 1}` is a bare feature object if the model has a feature `data`; an object or a list in `data` is always
/// rows. A number JSON has no place for (`NaN`, `Infinity`, `1e400`) ends the reading but is no error here: `rows` then
/// holds a mistake that names the feature.
///
/// # Errors
/// When the text is not JSON, not in one of the shapes, or over a limit.
pub fn read(body: &[u8], rows: &mut Rows<'_>, limits: &Limits) -> Result<Shape, WireError> {
    let text = str::from_utf8(body).map_err(|error| {
        let (line, column) = place_of(body, error.valid_up_to());
        WireError::Malformed { line, column, detail: "the body is not UTF-8".to_owned() }
    })?;
    let mut reader = Reader::new(rows, limits);
    let mut json = serde_json::Deserializer::from_str(text);
    let value = Value { reader: &mut reader, place: Place::Body, depth: 1 };
    match value.deserialize(&mut json).and_then(|()| json.end()) {
        Ok(()) => Ok(reader.shape()),
        Err(error) => reader.explain(text, &error),
    }
}

/// What is known while a body is read.
struct Reader<'r, 'f, 'de> {
    rows: &'r mut Rows<'f>,
    rows_max: usize,
    depth_max: usize,
    form: Form<'de>,
    /// Where the value that is being read belongs; tells what to do with a number that ends the reading.
    place: Place,
    /// The member that is being read, where `place` is a field or in its list.
    field: Cow<'de, str>,
    /// Why a visitor gave up. serde's own errors are text, and quote the body.
    refusal: Option<Refusal>,
}

/// Which of the shapes the body has.
enum Form<'de> {
    /// No member has been read yet.
    Open,
    /// The bare feature object, and its first member.
    Bare(Cow<'de, str>),
    /// `data` holds the rows.
    Wrapped(Shape),
}

/// Where a value stands.
#[derive(Clone, Copy)]
enum Place {
    /// The whole body.
    Body,
    /// The value of `data`.
    Data,
    /// One of the list in `data`.
    Row,
    /// The value of a row's member.
    Field,
    /// A value of the list that a tensor's row is.
    Element(List, usize),
    /// Inside a value that is refused as a whole; or between values.
    Nowhere,
}

enum Refusal {
    Malformed(Cow<'static, str>),
    NoRows,
    TooManyRows,
    TooDeep,
}

impl<'r, 'f> Reader<'r, 'f, '_> {
    fn new(rows: &'r mut Rows<'f>, limits: &Limits) -> Self {
        let width = rows.features().list().len();
        Self {
            rows,
            rows_max: limits.rows.min(limits.cells / width).max(1),
            // The parser itself gives up at 128.
            depth_max: limits.depth.min(126),
            form: Form::Open,
            place: Place::Nowhere,
            field: Cow::Borrowed(""),
            refusal: None,
        }
    }

    fn shape(&self) -> Shape {
        match self.form {
            Form::Open | Form::Bare(_) => Shape::One,
            Form::Wrapped(shape) => shape,
        }
    }

    /// Keeps a reason to give up, and makes the error that carries the news out of the parser.
    fn refuse<E: de::Error>(&mut self, refusal: Refusal) -> E {
        self.refusal = Some(refusal);
        E::custom("refused")
    }

    /// The member being read opens the bare feature object, or is one more of it.
    fn open_bare(&mut self) {
        if let Form::Open = self.form {
            self.form = Form::Bare(self.field.clone());
            self.rows.begin();
        }
    }

    /// Where the value of the body's member that is being read stands.
    fn member_place(&mut self) -> Result<Place, Refusal> {
        let is_data = self.field == DATA;
        match self.form {
            Form::Wrapped(_) if is_data => Err(Refusal::Malformed("`data` is there twice".into())),
            Form::Wrapped(_) => Err(beside_data(&self.field)),
            Form::Open if is_data => Ok(Place::Data),
            // The first member was a feature; so is this one, if the model has it.
            Form::Bare(_) if is_data && !self.rows.features().has(DATA) => Ok(Place::Data),
            Form::Open | Form::Bare(_) => {
                self.open_bare();
                Ok(Place::Field)
            }
        }
    }

    /// `data` turns out to hold rows.
    fn wrap(&mut self, shape: Shape) -> Result<(), Refusal> {
        match &self.form {
            Form::Bare(first) => Err(beside_data(first)),
            Form::Open | Form::Wrapped(_) => {
                self.form = Form::Wrapped(shape);
                Ok(())
            }
        }
    }

    /// Takes a value that is no object and no list.
    fn take(&mut self, place: Place, value: Raw<'_>) -> Result<(), Refusal> {
        match place {
            Place::Body => Err(Refusal::Malformed("the body must be an object".into())),
            Place::Row => Err(Refusal::Malformed("a row must be an object".into())),
            Place::Data if self.rows.features().has(DATA) => {
                self.open_bare();
                self.rows.set(DATA, value);
                Ok(())
            }
            Place::Data => Err(Refusal::Malformed("`data` must be an object or a list of objects".into())),
            Place::Field => {
                self.rows.set(&self.field, value);
                Ok(())
            }
            Place::Element(list, position) => {
                self.rows.set_element(list, position, value);
                Ok(())
            }
            Place::Nowhere => Ok(()),
        }
    }

    /// What ended the reading, in our words.
    fn explain(mut self, text: &str, error: &serde_json::Error) -> Result<Shape, WireError> {
        let (line, column) = (error.line(), error.column().max(1));
        let refusal = match self.refusal.take() {
            Some(refusal) => refusal,
            None if error.is_eof() => Refusal::Malformed("the body ends too early".into()),
            None if self.take_not_finite(text, line, column) => return Ok(self.shape()),
            None => Refusal::Malformed("this is not JSON".into()),
        };
        Err(match refusal {
            Refusal::Malformed(detail) => WireError::Malformed { line, column, detail: detail.into_owned() },
            Refusal::NoRows => WireError::NoRows,
            Refusal::TooManyRows => WireError::TooManyRows { limit: self.rows_max },
            Refusal::TooDeep => WireError::TooDeep { limit: self.depth_max },
        })
    }

    /// Gives the rows the token that ended the reading, if it is a number and a field's value. False if it is no mistake
    /// for them: then it is one for the parser.
    fn take_not_finite(&mut self, text: &str, line: usize, column: usize) -> bool {
        let is_value = matches!(self.place, Place::Data | Place::Field | Place::Element(..));
        match not_finite_at(text, line, column) {
            Some(token) if is_value => {
                // A value after the last of a tensor is no mistake before the list has ended.
                self.take(self.place, Raw::NotFinite(token)).is_ok() && self.rows.has_mistakes()
            }
            _ => false,
        }
    }
}

fn beside_data(key: &str) -> Refusal {
    Refusal::Malformed(format!("`{}` stands beside `data`", excerpt(key, 64)).into())
}

/// The place of a byte, as line and column from 1.
fn place_of(body: &[u8], at: usize) -> (usize, usize) {
    let lines = body[..at].split(|&byte| byte == b'\n');
    let last_line = lines.clone().next_back().map_or(0, <[u8]>::len);
    (lines.count(), last_line + 1)
}

/// The token around a place, if it is a number that JSON cannot say or 64 bits cannot hold.
fn not_finite_at(text: &str, line: usize, column: usize) -> Option<&str> {
    let line_start: usize = text.split_inclusive('\n').take(line - 1).map(str::len).sum();
    let at = line_start + column - 1;
    let of_token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let bytes = text.as_bytes();
    let start = at - bytes.get(..at)?.iter().rev().take_while(|byte| of_token(byte)).count();
    let end = at + bytes[at..].iter().take_while(|byte| of_token(byte)).count();
    let token = text.get(start..end)?;
    let is_name = matches!(token, "NaN" | "Infinity" | "-Infinity");
    (is_name || is_too_large(token)).then_some(token)
}

/// Whether a token is a JSON number beyond the largest float.
fn is_too_large(token: &str) -> bool {
    // Ignoring a value checks its grammar and not its size.
    let is_json = serde_json::from_str::<IgnoredAny>(token).is_ok();
    is_json && token.parse().is_ok_and(f64::is_infinite)
}

/// One JSON value, and where it stands.
struct Value<'a, 'r, 'f, 'de> {
    reader: &'a mut Reader<'r, 'f, 'de>,
    place: Place,
    /// The level it is on if it is an object or a list; the body is on the first.
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Value<'_, '_, '_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self { reader, place, depth } = self;
        if let Place::Nowhere = place {
            return deserializer.deserialize_any(Value { reader, place, depth });
        }
        reader.place = place;
        deserializer.deserialize_any(Value { reader: &mut *reader, place, depth })?;
        reader.place = Place::Nowhere;
        Ok(())
    }
}

impl<'de> Visitor<'de> for Value<'_, '_, '_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<(), E> {
        self.scalar(Raw::Null)
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<(), E> {
        self.scalar(Raw::Boolean(value))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<(), E> {
        self.scalar(Raw::Integer(value))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<(), E> {
        self.scalar(i64::try_from(value).map_or(Raw::Unsigned(value), Raw::Integer))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<(), E> {
        self.scalar(Raw::Float(value))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<(), E> {
        self.scalar(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, seq: A) -> Result<(), A::Error> {
        self.enter()?;
        match self.place {
            Place::Data => self.rows(seq),
            Place::Field => match self.reader.rows.list(&self.reader.field) {
                Some(list) => self.list(list, seq),
                None => self.nested_list(seq),
            },
            Place::Element(..) | Place::Nowhere => self.nested_list(seq),
            Place::Body | Place::Row => self.scalar(Raw::Nested("a list")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, map: A) -> Result<(), A::Error> {
        self.enter()?;
        match self.place {
            Place::Body => self.body(map),
            Place::Data => {
                self.reader.wrap(Shape::One).map_err(|refusal| self.reader.refuse::<A::Error>(refusal))?;
                self.row(map)
            }
            Place::Row => self.row(map),
            Place::Field | Place::Element(..) | Place::Nowhere => self.nested_object(map),
        }
    }
}

impl<'r, 'f, 'de> Value<'_, 'r, 'f, 'de> {
    /// A value inside this one.
    fn inside(&mut self, place: Place) -> Value<'_, 'r, 'f, 'de> {
        Value { reader: &mut *self.reader, place, depth: self.depth + 1 }
    }

    /// Checks the depth of an object or a list.
    fn enter<E: de::Error>(&mut self) -> Result<(), E> {
        if self.depth > self.reader.depth_max { Err(self.reader.refuse(Refusal::TooDeep)) } else { Ok(()) }
    }

    fn scalar<E: de::Error>(self, value: Raw<'_>) -> Result<(), E> {
        self.reader.take(self.place, value).map_err(|refusal| self.reader.refuse(refusal))
    }

    /// The members of the body: `data`, or the features themselves.
    fn body<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key_seed(Key)? {
            self.reader.field = key;
            let place = self.reader.member_place().map_err(|refusal| self.reader.refuse::<A::Error>(refusal))?;
            map.next_value_seed(self.inside(place))?;
        }
        match self.reader.form {
            Form::Open => {
                self.reader.rows.begin();
                self.reader.rows.end();
            }
            Form::Bare(_) => self.reader.rows.end(),
            Form::Wrapped(_) => (),
        }
        Ok(())
    }

    /// The list of rows in `data`.
    fn rows<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        self.reader.wrap(Shape::Many).map_err(|refusal| self.reader.refuse::<A::Error>(refusal))?;
        while seq.next_element_seed(self.inside(Place::Row))?.is_some() {}
        if self.reader.rows.is_empty() { Err(self.reader.refuse(Refusal::NoRows)) } else { Ok(()) }
    }

    fn row<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        if self.reader.rows.len() == self.reader.rows_max {
            return Err(self.reader.refuse(Refusal::TooManyRows));
        }
        self.reader.rows.begin();
        while let Some(key) = map.next_key_seed(Key)? {
            self.reader.field = key;
            map.next_value_seed(self.inside(Place::Field))?;
        }
        self.reader.rows.end();
        Ok(())
    }

    /// The values of a tensor's row.
    fn list<A: SeqAccess<'de>>(mut self, list: List, mut seq: A) -> Result<(), A::Error> {
        let mut count = 0;
        while seq.next_element_seed(self.inside(Place::Element(list, count)))?.is_some() {
            count += 1;
        }
        self.reader.rows.end_list(&self.reader.field, list, count);
        Ok(())
    }

    /// A list where one value belongs: read to its end, for the text must be JSON all the same.
    fn nested_list<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(self.inside(Place::Nowhere))?.is_some() {}
        self.scalar(Raw::Nested("a list"))
    }

    /// An object where one value belongs.
    fn nested_object<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while map.next_key_seed(Key)?.is_some() {
            map.next_value_seed(self.inside(Place::Nowhere))?;
        }
        self.scalar(Raw::Nested("an object"))
    }
}

/// The name of a member: borrowed from the body unless it has escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Cow<'de, str>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_borrowed_str<E: de::Error>(self, key: &'de str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Borrowed(key))
    }

    fn visit_str<E: de::Error>(self, key: &str) -> Result<Cow<'de, str>, E> {
        Ok(Cow::Owned(key.to_owned()))
    }
}

#[cfg(test)]
mod tests;
