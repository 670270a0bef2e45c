//! From one [`Value`] to one type that cannot be wrong. Each reader says on failure what it expected; the caller knows
//! what was found, and where.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;

use super::layer::{Node, Value};

/// A value, or why it is none.
pub(super) type Parsed<T> = Result<T, Wrong>;

/// What was expected in the place of a value, or of one inside it.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) expected: String,
    /// The value inside that is wrong, and the path to it: `.key` or `[index]`.
    pub(super) inside: Option<(String, Node)>,
}

impl Wrong {
    pub(super) fn expected(expected: impl Into<String>) -> Self {
        Self { expected: expected.into(), inside: None }
    }

    pub(super) fn inside(self, step: &str, node: &Node) -> Self {
        let inside = match self.inside {
            Some((path, node)) => (format!("{step}{path}"), node),
            None => (step.to_owned(), node.clone()),
        };
        Self { inside: Some(inside), ..self }
    }
}

/// One second, for ranges of durations.
pub(super) const SECOND: Duration = Duration::from_secs(1);

/// Text that is not empty.
pub(super) fn text(value: &Value) -> Parsed<String> {
    match value {
        Value::Text(text) if !text.trim().is_empty() => Ok(text.clone()),
        _ => Err(Wrong::expected("text")),
    }
}

/// Text that `parse` can read.
pub(super) fn text_as<T>(expected: &str, parse: impl Fn(&str) -> Option<T>) -> impl Fn(&Value) -> Parsed<T> {
    move |value| match value {
        Value::Text(text) => parse(text).ok_or_else(|| Wrong::expected(expected)),
        _ => Err(Wrong::expected(expected)),
    }
}

pub(super) fn path(value: &Value) -> Parsed<PathBuf> {
    text(value).map(PathBuf::from).map_err(|_| Wrong::expected("a path"))
}

pub(super) fn boolean(value: &Value) -> Parsed<bool> {
    match value {
        Value::Boolean(truth) => Ok(*truth),
        _ => Err(Wrong::expected("true or false")),
    }
}

/// A whole number in `range`, as whichever type holds all of the range.
pub(super) fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&Value) -> Parsed<T> {
    move |value| {
        let number = match value {
            Value::Integer(number) => u64::try_from(*number).ok().filter(|number| range.contains(number)),
            _ => None,
        };
        let expected = || Wrong::expected(format!("a whole number from {} to {}", range.start(), range.end()));
        number.and_then(|number| T::try_from(number).ok()).ok_or_else(expected)
    }
}

/// A number that is neither infinite nor NaN.
pub(super) fn finite(value: &Value) -> Option<f64> {
    match value {
        // Exact up to 2^53, far above every rate, share, score and edge.
        #[expect(clippy::cast_precision_loss, reason = "a configured number that large means nothing")]
        Value::Integer(number) => Some(*number as f64),
        Value::Float(number) => Some(*number).filter(|number| number.is_finite()),
        _ => None,
    }
}

/// A number in `range`.
pub(super) fn number(range: RangeInclusive<f64>) -> impl Fn(&Value) -> Parsed<f64> {
    move |value| {
        let expected = || Wrong::expected(format!("a number from {} to {}", range.start(), range.end()));
        finite(value).filter(|number| range.contains(number)).ok_or_else(expected)
    }
}

/// A length of time in `range`, as `"30s"` or `"1h 30m"`.
pub(super) fn duration(range: RangeInclusive<Duration>) -> impl Fn(&Value) -> Parsed<Duration> {
    move |value| {
        let parsed = match value {
            Value::Text(text) => text.parse::<SignedDuration>().ok(),
            _ => None,
        };
        let (shortest, longest) = (Short(*range.start()), Short(*range.end()));
        let expected = || Wrong::expected(format!("a time from \"{shortest}\" to \"{longest}\""));
        parsed
            .and_then(|duration| Duration::try_from(duration).ok())
            .filter(|duration| range.contains(duration))
            .ok_or_else(expected)
    }
}

/// A duration of whole seconds in its largest even unit: `5s`, `15m`, `1h`.
struct Short(Duration);

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_secs() {
            seconds if seconds != 0 && seconds % 3600 == 0 => write!(f, "{}h", seconds / 3600),
            seconds if seconds != 0 && seconds % 60 == 0 => write!(f, "{}m", seconds / 60),
            seconds => write!(f, "{seconds}s"),
        }
    }
}

/// A number of bytes in `range`, as `"2MiB"`, in whichever type holds all of the range.
pub(super) fn size<T: TryFrom<u64>>(range: RangeInclusive<ByteSize>) -> impl Fn(&Value) -> Parsed<T> {
    move |value| {
        let parsed = match value {
            Value::Text(text) => text.parse::<ByteSize>().ok().filter(|size| range.contains(size)),
            _ => None,
        };
        let (smallest, largest) = (plain(*range.start()), plain(*range.end()));
        let expected = || Wrong::expected(format!("a size from \"{smallest}\" to \"{largest}\""));
        parsed.and_then(|size| T::try_from(size.as_u64()).ok()).ok_or_else(expected)
    }
}

fn plain(size: ByteSize) -> String {
    size.display().iec().to_string().replace(".0 ", "")
}

pub(super) fn address(value: &Value) -> Parsed<SocketAddr> {
    let expected = "an address and port, such as \"127.0.0.1:8080\" or \"[::1]:8080\"";
    text_as(expected, |text| text.parse().ok())(value)
}

/// One of the words `now`. Those that come `later` are told apart from those that never were.
pub(super) fn word<T: Clone>(now: &[(&str, T)], later: &[&str]) -> impl Fn(&Value) -> Parsed<T> {
    move |value| {
        let written = match value {
            Value::Text(text) => text.as_str(),
            _ => "",
        };
        if let Some((_, meaning)) = now.iter().find(|(word, _)| *word == written) {
            return Ok(meaning.clone());
        }
        let expected = either(now.iter().map(|(word, _)| *word));
        // `redis` stands for `redis://host:6379`, too.
        let is_later = later.contains(&written.split(':').next().unwrap_or_default());
        let hint = if is_later { ": what was found comes in a later release" } else { "" };
        Err(Wrong::expected(format!("{expected}{hint}")))
    }
}

/// `"a"`, `"a" or "b"`, `"a", "b" or "c"`.
fn either<'w>(words: impl Iterator<Item = &'w str>) -> String {
    let quoted: Vec<String> = words.map(|word| format!("{word:?}")).collect();
    match quoted.split_last() {
        Some((last, others)) if !others.is_empty() => format!("{} or {last}", others.join(", ")),
        _ => quoted.concat(),
    }
}

/// A list whose items `parse` can read.
pub(super) fn list<T>(expected: &str, parse: impl Fn(&Value) -> Parsed<T>) -> impl Fn(&Value) -> Parsed<Vec<T>> {
    move |value| match value {
        Value::List(nodes) => {
            let item = |(index, node): (usize, &Node)| {
                parse(&node.value).map_err(|wrong| wrong.inside(&format!("[{index}]"), node))
            };
            nodes.iter().enumerate().map(item).collect()
        }
        _ => Err(Wrong::expected(expected)),
    }
}

/// A list of texts, none of them empty.
pub(super) fn texts(value: &Value) -> Parsed<Vec<String>> {
    list("a list of texts, such as [\"a\", \"b\"]", text)(value)
}

/// A table whose keys are the user's own, and whose values `parse` can read.
pub(super) fn map<T>(
    expected: &str,
    parse: impl Fn(&Value) -> Parsed<T>,
) -> impl Fn(&Value) -> Parsed<BTreeMap<String, T>> {
    move |value| match value {
        Value::Table(table) => {
            let item = |(key, node): (&String, &Node)| match parse(&node.value) {
                Ok(value) => Ok((key.clone(), value)),
                Err(wrong) => Err(wrong.inside(&format!(".{key}"), node)),
            };
            table.iter().map(item).collect()
        }
        _ => Err(Wrong::expected(expected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: fmt::Debug>(parsed: Parsed<T>, expect: &str) {
        assert_eq!(format!("{:?}", parsed.map_err(|wrong| wrong.expected)), expect);
    }

    fn of(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn a_duration_has_a_unit_and_a_range() {
        let parse = duration(SECOND..=SECOND * 3600);
        check(parse(&of("1s")), "Ok(1s)");
        check(parse(&of("1h")), "Ok(3600s)");
        for wrong in ["30", "999ms", "1h 1s", "-5s", "5s ago", "1 fortnight", ""] {
            check(parse(&of(wrong)), r#"Err("a time from \"1s\" to \"1h\"")"#);
        }
    }

    #[test]
    fn a_size_has_a_range() {
        let parse = size::<u64>(ByteSize::kib(1)..=ByteSize::mib(2));
        check(parse(&of("2MiB")), "Ok(2097152)");
        check(parse(&of("1 KiB")), "Ok(1024)");
        for wrong in ["1KB", "2.1MiB", "many", ""] {
            check(parse(&of(wrong)), r#"Err("a size from \"1KiB\" to \"2MiB\"")"#);
        }
    }

    #[test]
    fn a_whole_number_is_in_its_range() {
        let parse = whole::<u64>(1..=9);
        check(parse(&Value::Integer(9)), "Ok(9)");
        for wrong in [0, -1, 10, i64::MAX, i64::MIN] {
            check(parse(&Value::Integer(wrong)), r#"Err("a whole number from 1 to 9")"#);
        }
    }

    #[test]
    fn a_number_may_be_written_whole_but_must_be_finite() {
        let parse = number(0.0..=1.0);
        check(parse(&Value::Integer(1)), "Ok(1.0)");
        check(parse(&Value::Float(0.25)), "Ok(0.25)");
        for wrong in [f64::NAN, f64::INFINITY, -0.1, 1.1] {
            check(parse(&Value::Float(wrong)), r#"Err("a number from 0 to 1")"#);
        }
    }
}
