//! Reads sections of the merged tree against `default.toml`: every key asked for is known, every other key is a mistake,
//! and a mistake does not end the reading, so that all of them are found at once.

use std::collections::BTreeSet;

use super::effective::Effective;
use super::layer::{Node, Origin, Table, Value};
use super::value::{Parsed, Wrong, boolean, text};
use super::{ConfigErrors, Mistake};

/// What is gathered while sections are read.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) mistakes: Vec<Mistake>,
    pub(super) effective: Effective,
}

impl Findings {
    /// Notes a mistake at `origin`.
    pub(super) fn mistake(&mut self, origin: Origin, text: String) {
        self.mistakes.push(Mistake { origin, text });
    }

    /// What is in effect, unless there was a mistake.
    pub(super) fn into_effective(self) -> Result<Effective, ConfigErrors> {
        if self.mistakes.is_empty() { Ok(self.effective) } else { Err(ConfigErrors::new(self.mistakes)) }
    }
}

/// One table of the configuration. Ask for its keys, then [`finish`](Self::finish).
#[derive(Debug)]
pub(super) struct Section<'a> {
    findings: &'a mut Findings,
    /// As in error texts: `model[0].features`.
    path: String,
    /// What the user wrote.
    table: Option<&'a Table>,
    origin: Origin,
    /// What `default.toml` has, with every key switched on.
    defaults: &'a Table,
    asked: BTreeSet<&'static str>,
}

impl<'a> Section<'a> {
    /// The whole document.
    pub(super) fn root(findings: &'a mut Findings, table: &'a Table, defaults: &'a Table) -> Self {
        Section {
            findings,
            path: String::new(),
            table: Some(table),
            origin: Origin::Default,
            defaults,
            asked: BTreeSet::new(),
        }
    }

    /// The value of `key`, which must be there.
    pub(super) fn required<T>(&mut self, key: &'static str, parse: impl Fn(&Value) -> Parsed<T>) -> Option<T> {
        let absent = Node { value: Value::Absent, origin: self.origin.clone() };
        let node = self.ask(key).cloned().unwrap_or(absent);
        self.read(key, &node, parse)
    }

    /// The value of `key`, if it is there.
    pub(super) fn optional<T>(&mut self, key: &'static str, parse: impl Fn(&Value) -> Parsed<T>) -> Option<T> {
        let node = self.ask(key)?.clone();
        self.read(key, &node, parse)
    }

    /// The value of `key`, or else the one in `default.toml`; that one too where the user's is a mistake.
    pub(super) fn defaulted<T>(&mut self, key: &'static str, parse: impl Fn(&Value) -> Parsed<T>) -> T {
        let default = self.defaults.get(key).map_or(Value::Absent, |node| node.value.clone());
        self.or(key, default, parse)
    }

    /// The value of `key`, or else `default`; that one too where the user's is a mistake.
    pub(super) fn or<T>(&mut self, key: &'static str, default: Value, parse: impl Fn(&Value) -> Parsed<T>) -> T {
        let default = Node { value: default, origin: Origin::Default };
        let written = self.ask(key).cloned();
        let value = self.read(key, written.as_ref().unwrap_or(&default), &parse);
        value.or_else(|| parse(&default.value).ok()).expect("the tests read every default")
    }

    /// A secret, if it is there: never shown, not even where it is a mistake.
    pub(super) fn secret(&mut self, key: &'static str) -> Option<String> {
        let node = self.ask(key)?.clone();
        match interpret(&node.value, &text) {
            Ok((secret, _)) => {
                self.findings.effective.entry(key, &Value::Text("***".to_owned()), &node.origin);
                Some(secret)
            }
            Err(wrong) => {
                self.mistake(key, &format!("found {}, expected {}", node.value.kind(), wrong.expected));
                None
            }
        }
    }

    /// A switch with a default.
    pub(super) fn switch(&mut self, key: &'static str) -> bool {
        self.defaulted(key, boolean)
    }

    /// Whether the user wrote `key`.
    pub(super) fn has(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
    }

    /// The table `key`, which is read whether it is there or not.
    pub(super) fn section(&mut self, key: &'static str) -> Section<'_> {
        let node = self.ask(key);
        let defaults = self.defaults.get(key);
        self.inner(key, node, defaults)
    }

    /// The table `key`, if it is there.
    pub(super) fn optional_section(&mut self, key: &'static str) -> Option<Section<'_>> {
        self.ask(key)?;
        Some(self.section(key))
    }

    /// The names of the tables below `key`; [`named`](Self::named) opens each.
    pub(super) fn names(&mut self, key: &'static str) -> Vec<String> {
        match self.ask(key) {
            None => Vec::new(),
            Some(Node { value: Value::Table(table), .. }) => table.keys().cloned().collect(),
            Some(Node { value, .. }) => {
                let found = value.found();
                self.mistake(key, &format!("found {found}, expected a table for each name"));
                Vec::new()
            }
        }
    }

    /// One of the tables below `key`. In `default.toml` there is one, which stands for all.
    pub(super) fn named(&mut self, key: &'static str, name: &str) -> Section<'_> {
        let node = table_in(self.ask(key)).and_then(|table| table.get(name));
        let defaults = table_in(self.defaults.get(key)).and_then(|table| table.values().next());
        self.inner(&format!("{key}.{name}"), node, defaults)
    }

    /// How many tables the list `key` has; [`element`](Self::element) opens each.
    pub(super) fn len(&mut self, key: &'static str) -> usize {
        match self.ask(key).map(|node| node.value.tables()) {
            None => 0,
            Some(Some(tables)) => tables.len(),
            Some(None) => {
                self.mistake(key, &format!("expected a list of tables, each written as [[{key}]]"));
                0
            }
        }
    }

    /// One of the tables of the list `key`. In `default.toml` there is one, which stands for all.
    pub(super) fn element(&mut self, key: &'static str, index: usize) -> Section<'_> {
        let node = self.ask(key).and_then(|node| node.value.tables()?.get(index));
        let defaults = self.defaults.get(key).and_then(|node| node.value.tables()?.first());
        self.inner(&format!("{key}[{index}]"), node, defaults)
    }

    /// Notes that something is wrong with `key`, where the user wrote it.
    pub(super) fn mistake(&mut self, key: &str, text: &str) {
        let origin = self.origin_of(key);
        let path = self.full(key);
        self.findings.mistake(origin, format!("{path}: {text}"));
    }

    /// Notes that something is wrong with the section itself.
    pub(super) fn refuse(&mut self, text: &str) {
        let text = format!("{}: {text}", self.path);
        self.findings.mistake(self.origin.clone(), text);
    }

    /// Notes that something is wrong outside of every key.
    pub(super) fn mistake_at(&mut self, origin: Origin, text: &str) {
        self.findings.mistake(origin, text.to_owned());
    }

    /// Shows something that is in effect and is not a key.
    pub(super) fn note(&mut self, text: String, origin: &Origin) {
        self.findings.effective.note(text, origin);
    }

    /// Shows a table that is in effect without having been written.
    pub(super) fn show_default(&mut self, header: &str) {
        self.findings.effective.header(header);
    }

    fn origin_of(&self, key: &str) -> Origin {
        self.table.and_then(|table| table.get(key)).map_or_else(|| self.origin.clone(), |node| node.origin.clone())
    }

    /// Notes every key that was not asked for.
    pub(super) fn finish(mut self) {
        let unknown = self.table.into_iter().flatten().filter(|(key, _)| !self.asked.contains(key.as_str()));
        for (key, _) in unknown.collect::<Vec<_>>() {
            let text = match nearest(key, &self.asked) {
                Some(known) => format!("unknown key, did you mean `{known}`?"),
                None => "unknown key".to_owned(),
            };
            self.mistake(key, &text);
        }
    }

    fn ask(&mut self, key: &'static str) -> Option<&'a Node> {
        debug_assert!(self.defaults.contains_key(key), "`{}` is not in default.toml", self.full(key));
        self.asked.insert(key);
        self.table?.get(key)
    }

    fn read<T>(&mut self, key: &str, node: &Node, parse: impl Fn(&Value) -> Parsed<T>) -> Option<T> {
        match interpret(&node.value, &parse) {
            Ok((parsed, value)) => {
                self.findings.effective.entry(key, value, &node.origin);
                Some(parsed)
            }
            Err(Wrong { expected, inside }) => {
                let (step, wrong) = inside.unwrap_or_else(|| (String::new(), node.clone()));
                let text = format!("{}{step}: found {}, expected {expected}", self.full(key), wrong.value.found());
                self.findings.mistake(wrong.origin, text);
                None
            }
        }
    }

    fn full(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    fn inner(&mut self, step: &str, node: Option<&'a Node>, defaults: Option<&'a Node>) -> Section<'_> {
        static EMPTY: Table = Table::new();
        let origin = node.map_or_else(|| self.origin.clone(), |node| node.origin.clone());
        let path = self.full(step);
        if let Some(Node { value, .. }) = node
            && value.table().is_none()
        {
            self.findings.mistake(origin.clone(), format!("{path}: found {}, expected a table", value.found()));
        }
        self.findings.effective.header(&path);
        Section {
            findings: self.findings,
            path,
            table: table_in(node),
            origin,
            defaults: table_in(defaults).unwrap_or(&EMPTY),
            asked: BTreeSet::new(),
        }
    }
}

fn table_in(node: Option<&Node>) -> Option<&Table> {
    node?.value.table()
}

/// Reads `value`; one from outside TOML first as the text it is, then as what it would be in TOML. Says which it was.
fn interpret<'v, T>(value: &'v Value, parse: &impl Fn(&Value) -> Parsed<T>) -> Result<(T, &'v Value), Wrong> {
    match value {
        Value::Loose { text, toml } => match (parse(&Value::Text(text.clone())), toml) {
            (Ok(parsed), _) => Ok((parsed, value)),
            (Err(_), Some(toml)) => parse(toml).map(|parsed| (parsed, &**toml)),
            (Err(wrong), None) => Err(wrong),
        },
        value => parse(value).map(|parsed| (parsed, value)),
    }
}

/// The known key that `key` was probably meant to be.
fn nearest(key: &str, known: &BTreeSet<&'static str>) -> Option<&'static str> {
    let distance = |known: &&str| strsim::damerau_levenshtein(key, known);
    let nearest = known.iter().copied().min_by_key(distance)?;
    // A third of the letters wrong is another word.
    (distance(&nearest) * 3 <= key.len().max(3)).then_some(nearest)
}
