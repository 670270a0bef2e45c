//! Training data as CSV (RFC 4180: a header, quotes where needed) → a [`Baseline`].
//!
//! Files are taken as people have them: with a byte-order mark, with semicolons, tabs or bars between the fields, and with
//! the words that pandas reads as missing beside the empty cell. Where semicolons are, numbers may have a decimal comma.
//!
//! Of data with more than [`ROWS_MAX`] rows that many are drawn, each row as likely as any other.

use std::io::{BufRead as _, BufReader, Read};
use std::sync::Arc;

use csv::StringRecord;

use super::axis::BINS_MAX;
use super::baseline::{Baseline, Subject};
use super::builder::Builder;
use super::learner::{PREDICTION, SCORE, add_value};
use crate::model::features::{Feature, Features, Inputs, Raw};
use crate::model::outputs::Outputs;
use crate::model::signature::{FEATURES_MAX, Kind};

/// Rows that are looked at: a PSI of a thousand live rows is within 1 % of the one that all rows would give.
pub const ROWS_MAX: usize = 100_000;

/// The draw is the same each time, so that the same data make the same baseline.
const SEED: u64 = 1;

/// What stands for a value that is missing, beside nothing: what pandas takes for it, whose frames models are made of.
const MISSING: [&str; 17] = [
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL",
    "NaN", "None", "n/a", "nan",
];

/// What may be between fields. Of two that are in the header equally often the first is taken.
const DELIMITERS: [u8; 4] = [b',', b';', b'\t', b'|'];

/// How much of a file is looked at for its delimiter: a header of the most columns is shorter.
const HEADER_MAX_BYTES: usize = 1 << 20;

/// Rows of training data, as texts.
#[derive(Debug)]
pub struct Table {
    /// Whether numbers have a decimal comma.
    has_commas: bool,
    header: Vec<Arc<str>>,
    /// With the line each begins on.
    rows: Vec<(u64, StringRecord)>,
    total: u64,
}

/// Training data that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// It is no CSV.
    #[error("the data are not CSV in UTF-8: {0}")]
    Csv(#[from] csv::Error),
    /// It cannot be read.
    #[error("the data cannot be read: {0}")]
    Read(#[from] std::io::Error),
    /// A header and nothing below it.
    #[error("the data have no rows")]
    Empty,
    /// More columns than a model can have.
    #[error("the data have {0} columns, at most {FEATURES_MAX} are read")]
    TooManyColumns(usize),
    /// A column's name twice.
    #[error("two columns are called `{0}`")]
    Twice(Arc<str>),
    /// Columns of the signature that are not there.
    #[error("the data lack columns of the signature: {}", .0.join(", "))]
    Lacks(Vec<String>),
    /// A cell that is not of its column's type.
    #[error("line {line}: `{column}` is {found:?}, expected {expected}")]
    Cell {
        /// The line of the file, from 1.
        line: u64,
        /// The column.
        column: Arc<str>,
        /// What is there, its first 40 characters.
        found: String,
        /// What belongs there.
        expected: &'static str,
    },
}

/// What a model made of the rows.
#[derive(Debug, Default)]
pub struct Predictions {
    value: Builder,
    score: Builder,
}

impl Predictions {
    /// Adds the answers to some rows.
    pub fn add(&mut self, outputs: &Outputs) {
        for prediction in outputs.predictions() {
            add_value(&mut self.value, &prediction.value);
            if let Some(score) = prediction.score {
                self.score.add_number(score);
            }
        }
    }
}

impl Table {
    /// Reads all of `data`.
    ///
    /// # Errors
    /// When it is no CSV, or has no rows.
    pub fn read(data: impl Read) -> Result<Self, TableError> {
        let mut data = BufReader::with_capacity(HEADER_MAX_BYTES, data);
        let delimiter = delimiter(&mut data)?;
        let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(data);
        let header: Vec<Arc<str>> = reader.headers()?.iter().map(Arc::from).collect();
        check_header(&header)?;
        let mut draw = fastrand::Rng::with_seed(SEED);
        let (mut rows, mut total) = (Vec::new(), 0_u64);
        for record in reader.records() {
            let record = record?;
            total += 1;
            let line = record.position().map_or(0, csv::Position::line);
            if rows.len() < ROWS_MAX {
                rows.push((line, record));
            } else if let Ok(place) = usize::try_from(draw.u64(0..total))
                && place < ROWS_MAX
            {
                rows[place] = (line, record);
            }
        }
        if rows.is_empty() {
            return Err(TableError::Empty);
        }
        Ok(Self { has_commas: delimiter == b';', header, rows, total })
    }

    /// How many rows the data have, and how many of them are looked at.
    #[must_use]
    pub fn rows(&self) -> (u64, usize) {
        (self.total, self.rows.len())
    }

    /// Columns that stand for a group of one-hot columns of `features`: `Occupation` for `Occupation_Doctor` and others.
    #[must_use]
    pub fn groups(&self, features: &Features) -> Vec<String> {
        let is_group = |name: &&Arc<str>| {
            let in_group = |feature: &Feature| feature.name.strip_prefix(&***name).is_some_and(|c| c.starts_with('_'));
            !features.has(name) && features.list().iter().any(in_group)
        };
        self.header.iter().filter(is_group).map(ToString::to_string).collect()
    }

    /// The baseline of the columns that are features, each by its type. Predictions come
    /// [later](Baseline::with_predictions).
    ///
    /// # Errors
    /// When a feature has no column, or a cell is not of its type.
    pub fn baseline_of(&self, features: &Features, bins: usize) -> Result<Baseline, TableError> {
        let lacks: Vec<String> = features
            .list()
            .iter()
            .filter(|feature| self.column(&feature.name).is_none())
            .map(|feature| feature.name.to_string())
            .collect();
        if !lacks.is_empty() {
            return Err(TableError::Lacks(lacks));
        }
        let columns = features.list().iter().filter_map(|feature| Some((self.column(&feature.name)?, feature.kind)));
        self.baseline(columns.collect(), bins)
    }

    /// The baseline of all columns that have a name: numbers where every cell is one, else texts. The column without one is
    /// the index of a frame.
    ///
    /// # Errors
    /// Never for a table that could be read.
    pub fn baseline_of_all(&self, bins: usize) -> Result<Baseline, TableError> {
        let kind = |column: usize| {
            let mut cells = self.rows.iter().map(|(_, row)| &row[column]).filter(|cell| !is_missing(cell)).peekable();
            let numbers = cells.peek().is_some() && cells.all(|cell| self.number(cell).is_ok());
            if numbers { Kind::Double } else { Kind::Text }
        };
        let named = (0..self.header.len()).filter(|column| !self.header[*column].is_empty());
        self.baseline(named.map(|column| (column, kind(column))).collect(), bins)
    }

    fn baseline(&self, columns: Vec<(usize, Kind)>, bins: usize) -> Result<Baseline, TableError> {
        let subjects: Vec<Option<Subject>> =
            columns.into_iter().map(|(column, kind)| self.subject(column, kind, bins)).collect::<Result<_, _>>()?;
        Ok(Baseline {
            rows: self.rows.len() as u64,
            features: subjects.into_iter().flatten().collect(),
            prediction: None,
            score: None,
        })
    }

    fn subject(&self, column: usize, kind: Kind, bins: usize) -> Result<Option<Subject>, TableError> {
        let mut builder = if kind == Kind::Text { Builder::of_texts() } else { Builder::default() };
        for (line, row) in &self.rows {
            let wrong = |expected| self.wrong(*line, column, &row[column], expected);
            match (self.raw(kind, &row[column]).map_err(wrong)?, kind) {
                (Raw::Text(text), _) => builder.add_text(text),
                (Raw::Float(number), _) => builder.add_number(number),
                (Raw::Boolean(value), _) => builder.add_number(f64::from(u8::from(value))),
                (Raw::Integer(value), _) => builder.add_number(super::window::nearest(value)),
                _ => builder.add_missing(),
            }
        }
        Ok(builder.build(Arc::clone(&self.header[column]), bins.min(BINS_MAX)))
    }

    /// Every row that fits `features`, as a request of its own.
    pub fn requests<'t>(&'t self, features: &'t Features) -> impl Iterator<Item = Inputs> + 't {
        let columns: Vec<(usize, &Feature)> =
            features.list().iter().filter_map(|feature| Some((self.column(&feature.name)?, feature))).collect();
        self.rows.iter().filter_map(move |(_, row)| {
            let mut rows = features.rows();
            rows.begin();
            for (column, feature) in &columns {
                rows.set(&feature.field, self.raw(feature.kind, &row[*column]).ok()?);
            }
            rows.end();
            rows.finish().ok()
        })
    }

    /// A cell as a caller would send it; missing is null.
    fn raw<'c>(&self, kind: Kind, cell: &'c str) -> Result<Raw<'c>, &'static str> {
        match kind {
            _ if is_missing(cell) => Ok(Raw::Null),
            Kind::Text => Ok(Raw::Text(cell)),
            Kind::Boolean => boolean(cell).map(Raw::Boolean),
            Kind::Integer | Kind::Long if let Ok(whole) = cell.trim().parse() => Ok(Raw::Integer(whole)),
            Kind::Integer | Kind::Long | Kind::Float | Kind::Double => self.number(cell).map(Raw::Float),
        }
    }

    /// A finite number.
    fn number(&self, cell: &str) -> Result<f64, &'static str> {
        let cell = cell.trim();
        let parsed = match cell.parse::<f64>() {
            Err(_) if self.has_commas => cell.replacen(',', ".", 1).parse(),
            parsed => parsed,
        };
        match parsed {
            Ok(number) if number.is_finite() => Ok(number),
            _ => Err("a number"),
        }
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.header.iter().position(|column| **column == *name)
    }

    fn wrong(&self, line: u64, column: usize, cell: &str, expected: &'static str) -> TableError {
        let found = cell.chars().take(40).collect();
        TableError::Cell { line, column: Arc::clone(&self.header[column]), found, expected }
    }
}

impl Baseline {
    /// The baseline, and what a model predicts for its rows.
    #[must_use]
    pub fn with_predictions(mut self, predictions: Predictions, bins: usize) -> Self {
        let bins = bins.min(BINS_MAX);
        self.prediction = predictions.value.build(PREDICTION.into(), bins);
        self.score = predictions.score.build(SCORE.into(), bins);
        self
    }
}

fn check_header(header: &[Arc<str>]) -> Result<(), TableError> {
    if header.len() > FEATURES_MAX {
        return Err(TableError::TooManyColumns(header.len()));
    }
    let mut names = std::collections::HashSet::new();
    match header.iter().find(|name| !names.insert(&**name)) {
        Some(twice) => Err(TableError::Twice(Arc::clone(twice))),
        None => Ok(()),
    }
}

/// The delimiter that the first line has most of, outside of quotes; a comma if it has none. A byte-order mark is passed
/// over, because a quote behind it would not be seen as one.
fn delimiter(data: &mut BufReader<impl Read>) -> std::io::Result<u8> {
    if data.fill_buf()?.starts_with(b"\xef\xbb\xbf") {
        data.consume(3);
    }
    let mut counts = [0_usize; DELIMITERS.len()];
    let mut is_quoted = false;
    for byte in data.fill_buf()? {
        match byte {
            b'"' => is_quoted = !is_quoted,
            b'\n' | b'\r' if !is_quoted => break,
            _ if is_quoted => (),
            _ => {
                if let Some(which) = DELIMITERS.iter().position(|delimiter| delimiter == byte) {
                    counts[which] += 1;
                }
            }
        }
    }
    let most = (0..counts.len()).rev().max_by_key(|which| counts[*which]);
    Ok(most.map_or(b',', |which| DELIMITERS[which]))
}

fn is_missing(cell: &str) -> bool {
    let cell = cell.trim();
    cell.is_empty() || MISSING.contains(&cell) || cell == "null"
}

fn boolean(cell: &str) -> Result<bool, &'static str> {
    match cell.trim() {
        "true" | "True" | "TRUE" | "1" => Ok(true),
        "false" | "False" | "FALSE" | "0" => Ok(false),
        _ => Err("true or false"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::features::Settings;
    use crate::model::signature::{Column, Signature};

    fn table(text: &str) -> Result<Table, TableError> {
        Table::read(text.as_bytes())
    }

    fn features(columns: &[(&str, Kind)], one_hot: &[String]) -> Features {
        let columns = columns.iter().map(|&(name, kind)| Column { name: name.into(), kind, required: true });
        let settings = Settings { one_hot: one_hot.to_vec(), ..Settings::default() };
        Features::new(&Signature::Columns(columns.collect()), settings).unwrap()
    }

    fn counts<'b>(baseline: &'b Baseline, name: &str) -> &'b [u64] {
        &baseline.features.iter().find(|subject| *subject.name == *name).unwrap().counts
    }

    #[test]
    fn columns_are_read_by_their_types() {
        let table =
            table("\u{feff}Age,\"Job, now\",Label,ok\n40,\"a \"\"b\"\"\",1,True\n41.0,,0,0\nnan,c,1,1\n").unwrap();
        let columns = [("Age", Kind::Long), ("Job, now", Kind::Text), ("ok", Kind::Boolean)];
        let baseline = table.baseline_of(&features(&columns, &[]), 20).unwrap();
        assert_eq!(baseline.extent(), (3, false));
        assert_eq!(counts(&baseline, "Age"), [1, 0, 1, 1, 0]);
        assert_eq!(counts(&baseline, "Job, now"), [1, 1, 1, 0]);
        assert_eq!(counts(&baseline, "ok"), [0, 0, 1, 2, 0]);
        let all = table.baseline_of_all(20).unwrap();
        assert_eq!(all.extent(), (4, false));
        assert_eq!(counts(&all, "ok").len(), 5);
    }

    /// Reads `text` and checks the places of two columns.
    #[track_caller]
    fn check_read(text: &[u8], age: &[u64], job: &[u64]) {
        let baseline = Table::read(text).unwrap().baseline_of_all(20).unwrap();
        assert_eq!((baseline.extent().0, counts(&baseline, "Age"), counts(&baseline, "Job")), (2, age, job));
    }

    #[test]
    fn files_are_read_as_people_have_them() {
        let (age, job): (&[u64], &[u64]) = (&[1, 0, 1, 1, 0], &[1, 1, 1, 0]);
        check_read(b"Age,Job\n40,a\n41,b\n,\n", age, job);
        check_read(b"\xef\xbb\xbf\"Age\",\"Job\"\r\n\"40\",\"a\"\r\n41,b\r\nNA,NULL\r\n", age, job);
        check_read(b"Age;Job\n40,5;a\n41,5;b\nNaN;None\n", age, job);
        check_read(b"Age\tJob\n40\ta\n41\tb\n<NA>\tn/a\n", age, job);
        check_read(b"Age|Job\n 40 |a\n41|b\n | \n", age, job);
        // A comma in a quoted name is no delimiter, and the index of a frame is no feature.
        check_read(b";Age;Job\n0;40;\"a, or b; or c\"\n1;41;b\n2;;null\n", age, job);
        check_read(b"Age,Job\n40,2024-01-31\n41,2024-02-01 10:00:00\n,\n", age, job);
        let quoted = Table::read(&b"\"a,b,c\";Age\n1;2\n"[..]).unwrap();
        assert_eq!(quoted.baseline_of_all(20).unwrap().extent(), (2, false));
    }

    #[test]
    fn a_column_that_stands_for_one_hot_columns_is_a_feature() {
        let table = table("Job,Age\nDoctor,4\nNobody,5\n").unwrap();
        let columns = [("Job_Doctor", Kind::Long), ("Job_Lawyer", Kind::Long), ("Age", Kind::Long)];
        let groups = table.groups(&features(&columns, &[]));
        assert_eq!(groups, ["Job"]);
        let features = features(&columns, &groups);
        assert_eq!(counts(&table.baseline_of(&features, 20).unwrap(), "Job"), [0, 1, 1, 0]);
        assert_eq!(table.requests(&features).count(), 2);
    }

    #[test]
    fn mistakes_name_their_line_and_column() {
        let check = |text: &str, expected: &str| {
            let features = features(&[("Age", Kind::Double), ("Job", Kind::Text)], &[]);
            let error = table(text).and_then(|table| table.baseline_of(&features, 20)).unwrap_err().to_string();
            assert!(error.contains(expected), "`{error}` does not say `{expected}`");
        };
        check("Age,Job\n1,a\nold,b\n", "line 3: `Age` is \"old\", expected a number");
        check("Age,Job\n1,a\ninf,b\n", "line 3");
        check("Age\n1\n", "lack columns of the signature: Job");
        check("Age,Age\n1,2\n", "two columns are called `Age`");
        check("Age,Job\n", "no rows");
        check("Age,Job\n1,a,b\n", "not CSV");
        check("Age,Job\n\"1,234.5\",a\n", "line 2: `Age` is \"1,234.5\", expected a number");
        check("Age;Job\n1,234.5;a\n", "line 2: `Age`");
        let latin = Table::read(&b"Age,Job\n1,Z\xfcrich\n"[..]).unwrap_err().to_string();
        assert!(latin.contains("UTF-8") && latin.contains("line 2"), "{latin}");
        let wide = Table::read(&b"\xff\xfeA\0,\0B\0\n\0"[..]).unwrap_err().to_string();
        assert!(wide.contains("UTF-8"), "{wide}");
        check("", "no rows");
    }

    #[test]
    fn of_many_rows_some_are_drawn_from_everywhere() {
        let rows: Vec<String> = (0..ROWS_MAX * 2).map(|row| row.to_string()).collect();
        let text = format!("x\n{}\n", rows.join("\n"));
        let table = table(&text).unwrap();
        assert_eq!(table.rows(), (200_000, ROWS_MAX));
        let late = table.rows.iter().filter(|(line, _)| *line > 100_001).count();
        assert!((49_000..51_000).contains(&late), "{late}");
    }
}
