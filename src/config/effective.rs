//! The configuration in effect, as TOML: secrets masked, and beside every value where it was written.

use std::fmt;

use super::layer::{Origin, Value};

/// Sections and keys in the order they were read. Its text is TOML again.
#[derive(Clone, Debug, Default)]
pub struct Effective {
    lines: Vec<Line>,
}

#[derive(Clone, Debug)]
enum Line {
    Header(String),
    Entry { text: String, origin: String },
}

impl Effective {
    /// Opens the table at `path`; `model[0]` is `[[model]]` and `model[0].features` is `[model.features]`.
    pub(super) fn header(&mut self, path: &str) {
        let header = match path.split_once('[') {
            None => format!("[{path}]"),
            Some((list, rest)) => match rest.split_once('.') {
                None => format!("[[{list}]]"),
                Some((_, inner)) => format!("[{list}.{inner}]"),
            },
        };
        self.lines.push(Line::Header(header));
    }

    pub(super) fn entry(&mut self, key: &str, value: &Value, origin: &Origin) {
        self.note(format!("{key} = {}", value.to_toml()), origin);
    }

    /// Something that is in effect and is not a key.
    pub(super) fn note(&mut self, text: String, origin: &Origin) {
        self.lines.push(Line::Entry { text, origin: origin.to_string() });
    }
}

impl fmt::Display for Effective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.lines {
            match line {
                Line::Header(header) => writeln!(f, "\n{header}")?,
                Line::Entry { text, origin } => writeln!(f, "{text} # {origin}")?,
            }
        }
        Ok(())
    }
}
