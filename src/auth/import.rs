//! Keys that were made by API Gateway: its CSV file → keys that work here as they are sent.
//!
//! What they look like is unknown, so no id is in their text: they are found by their keyed hash. All of a file is
//! taken over or none of it, and every mistake is told at once.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;

use super::lifecycle::{check_name, to_millisecond};
use super::{ApiKeys, KeyRecord, Random, Scopes, StoreError, key, store};

/// What API Gateway takes for a key, in characters.
const LENGTH: std::ops::RangeInclusive<usize> = 20..=128;

/// Which of our plans stands for which of API Gateway's.
#[derive(Clone, Debug, Default)]
pub struct Plans {
    /// Our plan by their usage plan id; a plan of ours with that very name needs no entry.
    pub by_usage_plan: BTreeMap<String, String>,
    /// The plan of keys that are on no usage plan, or on none that is named above.
    pub otherwise: Option<String>,
}

/// What an import did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Keys that are new here.
    pub created: usize,
    /// Keys that were here, and whose name, plan and state are now as in the file.
    pub updated: usize,
}

/// Everything that is wrong with a file of keys, in the order of its lines.
#[derive(Debug, thiserror::Error)]
#[error("no key was imported:{}", lines(mistakes))]
pub struct ImportError {
    /// At least one.
    pub mistakes: Vec<Mistake>,
}

/// One thing that is wrong. Holds no key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, counted from one.
    pub line: u64,
    /// What to change.
    pub text: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.line, self.text)
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().fold(String::new(), |lines, mistake| lines + "\n  " + &mistake.to_string())
}

/// Whether `text` may be a key from elsewhere.
pub(super) fn is_key(text: &str) -> bool {
    LENGTH.contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// One line of the file that is as it should be.
struct Row {
    key: String,
    name: String,
    plan: String,
    is_enabled: bool,
}

/// Where the file has what; names are read in any case and order, other columns are passed over.
struct Columns {
    name: usize,
    key: usize,
    enabled: Option<usize>,
    usage_plans: Option<usize>,
}

impl ApiKeys {
    /// Takes over the keys of `csv`, a file as API Gateway's import takes it. A key that is here already gets the file's
    /// name, plan and state; one that was revoked here stays so.
    ///
    /// # Errors
    /// When anything in the file will not do, or the store cannot be written. Nothing is imported then.
    pub fn import(
        &self,
        csv: &[u8],
        plans: &Plans,
        now: Timestamp,
        random: Random<'_>,
    ) -> Result<Imported, StoreError> {
        let rows = self.read(csv, plans)?;
        self.edit(|edit| {
            let mut imported = Imported::default();
            for row in &rows {
                let hash = self.pepper.digest(&row.key);
                let before = store::key_by_hash(edit, &hash)?.map(|key| key.record);
                if let Some(before) = before {
                    edit.update(&row.over(before, now))?;
                    imported.updated += 1;
                } else {
                    edit.insert(&row.record(now, random)?, &hash)?;
                    imported.created += 1;
                }
            }
            Ok(imported)
        })
    }

    fn read(&self, csv: &[u8], plans: &Plans) -> Result<Vec<Row>, ImportError> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).flexible(true).from_reader(csv);
        let columns = Columns::find(csv, &mut reader).map_err(|mistake| ImportError { mistakes: vec![mistake] })?;
        let (mut rows, mut mistakes) = (Vec::new(), Vec::new());
        for record in reader.records() {
            let row = record.map_err(|error| broken(csv, &error)).and_then(|record| {
                self.row(&columns, &record, plans).map_err(|text| Mistake { line: line(csv, record.position()), text })
            });
            match row {
                Ok(row) => rows.push(row),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(rows) } else { Err(ImportError { mistakes }) }
    }

    fn row(&self, columns: &Columns, record: &csv::StringRecord, plans: &Plans) -> Result<Row, String> {
        let field = |column: Option<usize>| column.and_then(|column| record.get(column)).unwrap_or_default();
        let row = Row {
            key: field(Some(columns.key)).to_owned(),
            name: field(Some(columns.name)).to_owned(),
            is_enabled: enabled(field(columns.enabled))?,
            plan: self.plan(field(columns.usage_plans), plans)?,
        };
        check_name(&row.name).map_err(|error| error.to_string())?;
        if key::parse(&row.key).is_some() {
            return Err("the key has the form of modelgate's own: make it with `keys create`".to_owned());
        }
        if !is_key(&row.key) {
            return Err("expected a key of 20 to 128 visible ASCII characters".to_owned());
        }
        Ok(row)
    }

    /// The one plan of ours that the usage plans of a key come down to.
    fn plan(&self, usage_plans: &str, plans: &Plans) -> Result<String, String> {
        let ids = || usage_plans.split(',').map(str::trim).filter(|id| !id.is_empty());
        let ours = |id| plans.by_usage_plan.get(id).map(String::as_str).or(self.plans.contains_key(id).then_some(id));
        let mut named: Vec<&str> = ids().filter_map(ours).collect();
        named.dedup();
        let plan = match (&named[..], &plans.otherwise) {
            ([plan], _) => plan,
            ([], Some(plan)) => plan.as_str(),
            ([], None) => {
                return Err(format!(
                    "no plan stands for the usage plans `{usage_plans}`: add --usage-plan ID=PLAN or --plan"
                ));
            }
            (several, _) => return Err(format!("a key is on one plan, this one is on {}", several.join(", "))),
        };
        self.check_plan(plan).map_err(|error| error.to_string())?;
        Ok(plan.to_owned())
    }
}

impl Columns {
    fn find(csv: &[u8], reader: &mut csv::Reader<&[u8]>) -> Result<Self, Mistake> {
        let heads = reader.headers().map_err(|error| broken(csv, &error))?;
        let find = |name: &str| {
            heads.iter().position(|head| head.trim_start_matches('\u{feff}').trim().eq_ignore_ascii_case(name))
        };
        let missing = |name| Mistake { line: 1, text: format!("there is no column `{name}`") };
        Ok(Self {
            name: find("name").ok_or_else(|| missing("Name"))?,
            key: find("key").ok_or_else(|| missing("Key"))?,
            enabled: find("enabled"),
            usage_plans: find("usageplanids"),
        })
    }
}

impl Row {
    fn over(&self, before: KeyRecord, now: Timestamp) -> KeyRecord {
        let disabled = (!self.is_enabled).then(|| before.disabled.unwrap_or(to_millisecond(now)));
        KeyRecord { name: self.name.clone(), plan: self.plan.clone(), disabled, ..before }
    }

    fn record(&self, now: Timestamp, random: Random<'_>) -> Result<KeyRecord, StoreError> {
        let id: std::sync::Arc<str> = key::id_text(&key::generate_id(random)?).into();
        let now = to_millisecond(now);
        Ok(KeyRecord {
            account: id.clone(),
            id,
            name: self.name.clone(),
            plan: self.plan.clone(),
            created: now,
            expires: None,
            revoked: None,
            replaced_by: None,
            disabled: (!self.is_enabled).then_some(now),
            scopes: Scopes::All,
            imported: true,
        })
    }
}

fn enabled(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("expected `true` or `false` for Enabled".to_owned()),
    }
}

/// What is wrong with the CSV itself. The reader's own words could show a field.
fn broken(csv: &[u8], error: &csv::Error) -> Mistake {
    Mistake { line: line(csv, error.position()), text: "this is not CSV in UTF-8".to_owned() }
}

/// The line a record begins on. The reader's own is that of the empty lines before it, which it passes over.
fn line(csv: &[u8], position: Option<&csv::Position>) -> u64 {
    let Some(position) = position else { return 1 };
    let from = usize::try_from(position.byte()).unwrap_or(usize::MAX);
    let rest = csv.get(from..).unwrap_or_default();
    let empty = rest.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).filter(|byte| **byte == b'\n');
    position.line() + empty.map(|_| 1).sum::<u64>()
}
