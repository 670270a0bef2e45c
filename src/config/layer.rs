//! Layers of configuration: TOML text, environment variables and flags, each as a tree whose every value knows where it
//! was written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Mistake;

/// Where a value was written. Ordered as the layers are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Origin {
    /// `config/default.toml`
    Default,
    /// The user's file.
    File { path: Arc<Path>, line: usize },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
            Self::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

pub(super) type Table = BTreeMap<String, Node>;

/// A value as it was written.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// A key that must be there is not.
    Absent,
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Table),
    /// From outside TOML, where everything is text: the text, and what it would be in TOML, if anything.
    Loose {
        text: String,
        toml: Option<Box<Value>>,
    },
}

impl Value {
    /// What `text` from an environment variable or a flag may mean. A table, or a list of tables, is meant as one.
    pub(super) fn loose(text: &str, origin: &Origin) -> Self {
        let toml = DeValue::parse(text).ok().map(|value| from_toml(value.get_ref(), &|_| origin.clone()));
        match toml {
            Some(table @ Self::Table(_)) => table,
            Some(list @ Self::List(_)) if list.tables().is_some() => list,
            toml => Self::Loose { text: text.to_owned(), toml: toml.map(Box::new) },
        }
    }

    /// The value, if it is a table.
    pub(super) fn table(&self) -> Option<&Table> {
        match self {
            Self::Table(table) => Some(table),
            _ => None,
        }
    }

    /// The value, if it is a list of tables and nothing else.
    pub(super) fn tables(&self) -> Option<&[Node]> {
        match self {
            Self::List(nodes) if nodes.iter().all(|node| node.value.table().is_some()) => Some(nodes),
            _ => None,
        }
    }

    /// How an error text names the value. Never shows more than a line, nor the password of a URL.
    pub(super) fn found(&self) -> String {
        match self {
            Self::Text(text) | Self::Loose { text, .. } => {
                let shown: String = mask_url(text).chars().take(60).collect();
                format!("{shown:?}")
            }
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => number.to_string(),
            Self::Boolean(truth) => truth.to_string(),
            Self::Datetime(date) => date.clone(),
            Self::Absent | Self::List(_) | Self::Table(_) => self.kind().to_owned(),
        }
    }

    /// How an error text names the kind of value, for where the value itself is not to be shown.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::Text(_) | Self::Loose { .. } => "text",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a date",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }

    /// The value as TOML has it, in one line, without the password of a URL.
    pub(super) fn to_toml(&self) -> toml::Value {
        match self {
            Self::Absent => toml::Value::String(String::new()),
            Self::Text(text) | Self::Loose { text, .. } | Self::Datetime(text) => toml::Value::String(mask_url(text)),
            Self::Integer(number) => toml::Value::Integer(*number),
            Self::Float(number) => toml::Value::Float(*number),
            Self::Boolean(truth) => toml::Value::Boolean(*truth),
            Self::List(nodes) => toml::Value::Array(nodes.iter().map(|node| node.value.to_toml()).collect()),
            Self::Table(table) => {
                toml::Value::Table(table.iter().map(|(key, node)| (key.clone(), node.value.to_toml())).collect())
            }
        }
    }
}

/// `text` with `***` for the user and password of a URL.
pub(super) fn mask_url(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    match authority.rfind('@') {
        Some(at) => format!("{scheme}://***{}", &rest[at..]),
        None => text.to_owned(),
    }
}

/// Reads a TOML document.
///
/// # Errors
/// With every mistake of syntax, each with line and column.
pub(super) fn document(text: &str, path: &Arc<Path>) -> Result<Table, Vec<Mistake>> {
    let (root, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        let origin = |offset| Origin::File { path: Arc::clone(path), line: position(text, offset).0 };
        return Ok(table(root.get_ref(), &origin));
    }
    let mistake = |error: &toml::de::Error| {
        let (line, column) = position(text, error.span().map_or(0, |span| span.start));
        let text = format!("column {column}: {}", error.message().trim().replace('\n', ", "));
        Mistake { origin: Origin::File { path: Arc::clone(path), line }, text }
    };
    Err(errors.iter().map(mistake).collect())
}

/// Line and column of a byte of `text`, both from 1.
fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = &text.as_bytes()[..offset.min(text.len())];
    let before = String::from_utf8_lossy(before);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (1 + before.matches('\n').count(), 1 + before[line_start..].chars().count())
}

fn table(table: &DeTable<'_>, origin: &dyn Fn(usize) -> Origin) -> Table {
    table.iter().map(|(key, value)| (key.get_ref().to_string(), node(key.span().start, value, origin))).collect()
}

fn node(offset: usize, value: &Spanned<DeValue<'_>>, origin: &dyn Fn(usize) -> Origin) -> Node {
    Node { value: from_toml(value.get_ref(), origin), origin: origin(offset) }
}

fn from_toml(value: &DeValue<'_>, origin: &dyn Fn(usize) -> Origin) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        // Too large for an integer is too large for every key: as a float it can still be shown.
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::Float(number.as_str().parse().unwrap_or(f64::INFINITY)), Value::Integer),
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(truth) => Value::Boolean(*truth),
        DeValue::Datetime(date) => Value::Datetime(date.to_string()),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node(item.span().start, item, origin)).collect()),
        DeValue::Table(items) => Value::Table(table(items, origin)),
    }
}

/// Puts `value` at `path`, making the tables on the way.
pub(super) fn set(root: &mut Table, path: &[&str], value: Value, origin: &Origin) {
    let mut table = root;
    let Some((last, parents)) = path.split_last() else { return };
    for parent in parents {
        let empty = Node { value: Value::Table(Table::new()), origin: origin.clone() };
        let node = table.entry((*parent).to_owned()).or_insert_with(|| empty.clone());
        if !matches!(node.value, Value::Table(_)) {
            *node = empty;
        }
        let Value::Table(inner) = &mut node.value else { return };
        table = inner;
    }
    overlay(table, Table::from([((*last).to_owned(), Node { value, origin: origin.clone() })]));
}

/// Puts `upper` over `lower`: tables key by key, everything else whole.
pub(super) fn overlay(lower: &mut Table, upper: Table) {
    for (key, node) in upper {
        match (lower.get_mut(&key), node) {
            (Some(Node { value: Value::Table(below), .. }), Node { value: Value::Table(above), .. }) => {
                overlay(below, above);
            }
            (_, node) => {
                lower.insert(key, node);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_user() {
        assert_eq!(mask_url("https://me:p@ss@host/a@b"), "https://***@host/a@b");
        assert_eq!(mask_url("https://host/a@b"), "https://host/a@b");
        assert_eq!(mask_url("me@host"), "me@host");
    }

    #[test]
    fn tables_are_laid_over_key_by_key_and_lists_whole() {
        let path: Arc<Path> = Path::new("a.toml").into();
        let mut lower = document("[a]\nb = 1\nc = [1, 2]\n", &path).unwrap();
        overlay(&mut lower, document("[a]\nc = [3]\n", &path).unwrap());
        let whole = Value::Table(lower).to_toml();
        assert_eq!(whole.to_string(), "{ a = { b = 1, c = [3] } }");
    }

    #[test]
    fn a_position_counts_characters_from_one() {
        assert_eq!(position("aé = 1\nb", 0), (1, 1));
        assert_eq!(position("aé = 1\nb", 3), (1, 3));
        assert_eq!(position("aé = 1\nb", 8), (2, 1));
    }
}
