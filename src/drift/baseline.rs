//! What a population looked like when its model was made: counts over frozen places, and the file that holds them.
//!
//! The file comes with a version, from people: all of it is checked, and one that is broken is a reason in words.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::axis::{Axis, Categories, MISSING};
use super::statistics;
use crate::model::features::{Feature, Target};
use crate::model::signature::Kind;

/// The file in a version's folder, beside `MLmodel`.
pub const FILE: &str = "baseline.json";

/// What SageMaker Model Monitor calls it.
const STATISTICS_FILE: &str = "statistics.json";

/// The schema that is written and read.
const SCHEMA: u32 = 1;

/// No larger file is read. A thousand features of fifty bins are 3 MB; a sketch of Model Monitor may come with each.
const MAX_BYTES: u64 = 16 << 20;

/// Features of one baseline at most.
const FEATURES_MAX: usize = 4096;

/// The longest name of a feature, in bytes.
const NAME_MAX_BYTES: usize = 256;

/// Counts up to here are exact as floats.
const COUNT_MAX: u64 = 1 << 52;

/// A population by feature, and what its model made of it.
#[derive(Clone, Debug, Default)]
pub struct Baseline {
    /// How many rows it was made of.
    pub(super) rows: u64,
    pub(super) features: Vec<Subject>,
    /// The class a model predicts, or a regression's value.
    pub(super) prediction: Option<Subject>,
    /// The score, where there is one.
    pub(super) score: Option<Subject>,
}

/// One feature, or the predictions: rows by place.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) name: Arc<str>,
    pub(super) axis: Axis,
    /// As many as the axis has places.
    pub(super) counts: Vec<u64>,
}

/// Why a baseline cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BaselineError {
    /// The file cannot be read, or is too large.
    #[error("{file} cannot be read: {reason}")]
    Unreadable {
        /// The file's name.
        file: &'static str,
        /// Why not.
        reason: String,
    },
    /// The file is not what it should be.
    #[error("{file} is not a baseline: {reason}; make it with `modelgate baseline`")]
    Broken {
        /// The file's name.
        file: &'static str,
        /// What is wrong.
        reason: String,
    },
}

impl Baseline {
    /// The baseline in a version's `folder`: ours, else Model Monitor's, else none.
    ///
    /// # Errors
    /// When there is one and it cannot be used.
    pub fn find(folder: &Path) -> Result<Option<Self>, BaselineError> {
        if let Some(text) = text_of(folder, FILE)? {
            return Self::parse(&text).map(Some).map_err(|reason| BaselineError::Broken { file: FILE, reason });
        }
        let Some(text) = text_of(folder, STATISTICS_FILE)? else { return Ok(None) };
        let read = statistics::parse(&text).and_then(Self::checked);
        read.map(Some).map_err(|reason| BaselineError::Broken { file: STATISTICS_FILE, reason })
    }

    /// Reads the text of a [`FILE`].
    fn parse(text: &str) -> Result<Self, String> {
        let file: Written = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if file.modelgate_baseline != SCHEMA {
            return Err(format!("it has schema {}, and this gateway reads schema {SCHEMA}", file.modelgate_baseline));
        }
        let subject = |written: Option<WrittenSubject>| written.map(WrittenSubject::read).transpose();
        Self::checked(Self {
            rows: file.rows,
            features: file.features.into_iter().map(WrittenSubject::read).collect::<Result<_, _>>()?,
            prediction: subject(file.prediction)?,
            score: subject(file.score)?,
        })
    }

    fn checked(self) -> Result<Self, String> {
        if self.features.len() > FEATURES_MAX {
            return Err(format!("it has {} features, at most {FEATURES_MAX} are read", self.features.len()));
        }
        let mut names = HashSet::new();
        match self.features.iter().find(|subject| !names.insert(&subject.name)) {
            Some(twice) => Err(format!("two features are called `{}`", twice.name)),
            None => Ok(self),
        }
    }

    /// How many rows it was made of.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// How many features it has, and whether it has the model's predictions.
    #[must_use]
    pub fn extent(&self) -> (usize, bool) {
        (self.features.len(), self.prediction.is_some())
    }

    /// The text of a [`FILE`]: one line for each feature, so that people and `diff` can read it.
    #[must_use]
    pub fn to_text(&self) -> String {
        let one = |subject: &Option<Subject>| subject.as_ref().map_or("null".to_owned(), line);
        let features: Vec<String> = self.features.iter().map(|subject| format!("  {}", line(subject))).collect();
        format!(
            "{{\"modelgate_baseline\":{SCHEMA},\"rows\":{},\"features\":[\n{}\n],\n\"prediction\":{},\n\"score\":{}}}\n",
            self.rows,
            features.join(",\n"),
            one(&self.prediction),
            one(&self.score)
        )
    }

    /// What is known of `feature`: under its own name, or as the sum of its one-hot columns.
    pub(super) fn subject_of(&self, feature: &Feature, by_name: &BTreeMap<&str, &Subject>) -> Option<Subject> {
        if let Some(subject) = by_name.get(&*feature.name) {
            return Some(Subject::clone(subject));
        }
        let Target::OneHot(columns) = &feature.target else { return None };
        let ones = |(category, _): &(Arc<str>, usize)| {
            let column = by_name.get(format!("{}_{category}", feature.name).as_str())?;
            Some((Arc::clone(category), column.count_of(1.0)?))
        };
        let counts: Vec<(Arc<str>, u64)> = columns.iter().map(ones).collect::<Option<_>>()?;
        let known: u64 = counts.iter().map(|(_, count)| count).sum();
        Subject::of_categories(Arc::clone(&feature.name), counts, self.rows.saturating_sub(known), 0)
    }

    /// The features by name.
    pub(super) fn by_name(&self) -> BTreeMap<&str, &Subject> {
        self.features.iter().map(|subject| (&*subject.name, subject)).collect()
    }
}

impl Subject {
    /// Categories with their counts. Nothing, if they cannot be categories.
    pub(super) fn of_categories(
        name: Arc<str>,
        categories: Vec<(Arc<str>, u64)>,
        others: u64,
        missing: u64,
    ) -> Option<Self> {
        let (names, known): (Vec<_>, Vec<_>) = categories.into_iter().unzip();
        let counts = [missing].into_iter().chain(known).chain([others]).collect();
        Some(Self { name, axis: Axis::texts(names)?, counts })
    }

    /// Bins with their counts. Nothing, if `edges` are not edges or `bins` not as many.
    pub(super) fn of_bins(name: Arc<str>, edges: Vec<f64>, bins: Vec<u64>, missing: u64) -> Option<Self> {
        let axis = Axis::numbers(edges)?;
        let counts: Vec<u64> = [missing, 0].into_iter().chain(bins).chain([0]).collect();
        (counts.len() == axis.places()).then_some(Self { name, axis, counts })
    }

    /// Whether values of this type are counted in such places.
    pub(super) fn is_of(&self, kind: Kind) -> bool {
        matches!(self.axis, Axis::Texts(_)) == (kind == Kind::Text)
    }

    /// How many rows it has.
    pub(super) fn rows(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How many rows have a value in the bin of `value`, which has no other: 0 where there is no such bin.
    fn count_of(&self, value: f64) -> Option<u64> {
        matches!(self.axis, Axis::Numbers(_)).then(|| self.counts[self.axis.place_of_number(value)])
    }

    /// The subject, if its name can be shown and its counts added up.
    fn checked(self) -> Result<Self, String> {
        let sum = self.counts.iter().try_fold(0_u64, |sum, count| sum.checked_add(*count));
        if self.name.len() > NAME_MAX_BYTES {
            Err(format!("a feature's name is longer than {NAME_MAX_BYTES} bytes"))
        } else if sum.is_none_or(|sum| sum > COUNT_MAX) {
            Err(format!("the counts of `{}` are too large", self.name))
        } else if sum == Some(0) {
            Err(format!("`{}` has no rows", self.name))
        } else {
            Ok(self)
        }
    }
}

/// The file as it is written.
#[derive(Deserialize)]
struct Written {
    modelgate_baseline: u32,
    rows: u64,
    features: Vec<WrittenSubject>,
    prediction: Option<WrittenSubject>,
    score: Option<WrittenSubject>,
}

/// A part of a baseline as it is written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct WrittenSubject {
    name: String,
    missing: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    edges: Option<Vec<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    categories: Option<Vec<String>>,
    counts: Vec<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    others: Option<u64>,
}

impl WrittenSubject {
    pub(super) fn of(subject: &Subject) -> Self {
        let missing = subject.counts[MISSING];
        let (name, last) = (subject.name.to_string(), subject.counts.len() - 1);
        match &subject.axis {
            Axis::Numbers(edges) => {
                let counts = subject.counts[2..last].to_vec();
                Self { name, missing, edges: Some(edges.to_vec()), categories: None, counts, others: None }
            }
            Axis::Texts(categories) => {
                let (counts, others) = (subject.counts[1..last].to_vec(), Some(subject.counts[last]));
                Self { name, missing, edges: None, categories: Some(names(categories)), counts, others }
            }
        }
    }

    pub(super) fn read(self) -> Result<Subject, String> {
        let Self { name, missing, edges, categories, counts, others } = self;
        let label = format!("`{}`", name.chars().take(64).collect::<String>());
        let name: Arc<str> = name.into();
        let subject = match (edges, categories) {
            (Some(edges), None) => Subject::of_bins(name, edges, counts, missing)
                .ok_or_else(|| format!("the edges of {label} do not ascend, or are not one more than its counts"))?,
            (None, Some(categories)) if categories.len() == counts.len() => {
                let categories = categories.into_iter().map(Arc::from).zip(counts).collect();
                Subject::of_categories(name, categories, others.unwrap_or(0), missing)
                    .ok_or_else(|| format!("the categories of {label} are too many, too long or not distinct"))?
            }
            _ => return Err(format!("{label} has neither edges nor as many categories as counts")),
        };
        subject.checked()
    }
}

fn names(categories: &Categories) -> Vec<String> {
    categories.names().iter().map(ToString::to_string).collect()
}

fn line(subject: &Subject) -> String {
    serde_json::to_string(&WrittenSubject::of(subject)).expect("texts and finite numbers are JSON")
}

/// The text of a file in `folder`, where there is one.
fn text_of(folder: &Path, file: &'static str) -> Result<Option<String>, BaselineError> {
    let unreadable = |reason: String| BaselineError::Unreadable { file, reason };
    let opened = match File::open(folder.join(file)) {
        Ok(opened) => opened,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error.to_string())),
    };
    let mut text = String::new();
    opened.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| unreadable(error.to_string()))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(unreadable(format!("it is larger than {MAX_BYTES} bytes")));
    }
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::drift::builder::Builder;

    fn baseline() -> Baseline {
        let mut numbers = Builder::default();
        (0..1000).for_each(|number| numbers.add_number(f64::from(number) * 0.1));
        let mut texts = Builder::of_texts();
        for text in ["Doctor", "Lawyer", "Doctor"] {
            texts.add_text(text);
        }
        texts.add_missing();
        let score = numbers.clone().build("score".into(), 5);
        let features =
            [numbers.build("Age".into(), 20), texts.build("Job \"ü\"".into(), 20)].into_iter().flatten().collect();
        Baseline { rows: 1000, features, prediction: None, score }
    }

    #[test]
    fn what_is_written_is_read() {
        let written = baseline().to_text();
        let read = Baseline::parse(&written).unwrap();
        assert_eq!(read.to_text(), written);
        assert_eq!((read.rows(), read.extent()), (1000, (2, false)));
    }

    #[test]
    fn hostile_files_are_refused_in_words() {
        let subject = |text: &str| {
            format!("{{\"modelgate_baseline\":1,\"rows\":1,\"features\":[{text}],\"prediction\":null,\"score\":null}}")
        };
        let many: Vec<String> =
            (0..5000).map(|n| format!(r#"{{"name":"{n}","missing":1,"categories":[],"counts":[]}}"#)).collect();
        let cases = [
            (String::new(), "EOF"),
            ("[[[[".repeat(10_000), ""),
            ("{}".to_owned(), "modelgate_baseline"),
            (r#"{"modelgate_baseline":2,"rows":1,"features":[]}"#.to_owned(), "schema 2"),
            (subject(r#"{"name":"a","missing":0,"edges":[1,0],"counts":[1]}"#), "ascend"),
            (subject(r#"{"name":"a","missing":0,"edges":[0,1],"counts":[1,2]}"#), "one more"),
            (subject(r#"{"name":"a","missing":0,"edges":[0,1e999],"counts":[1]}"#), "range"),
            (subject(r#"{"name":"a","missing":0,"edges":[0,1],"counts":[-1]}"#), "-1"),
            (subject(r#"{"name":"a","missing":0,"edges":[0,1],"counts":[0]}"#), "no rows"),
            (subject(r#"{"name":"a","missing":18446744073709551615,"edges":[0,1],"counts":[9]}"#), "too large"),
            (subject(r#"{"name":"a","missing":0,"counts":[1]}"#), "neither"),
            (subject(r#"{"name":"a","missing":0,"categories":["x"],"counts":[1,2]}"#), "as many"),
            (subject(r#"{"name":"a","missing":0,"categories":["x","x"],"counts":[1,2]}"#), "distinct"),
            (subject(&format!(r#"{{"name":"{}","missing":1,"edges":[0,1],"counts":[1]}}"#, "n".repeat(300))), "256"),
            (subject(&many.join(",")), "4096"),
        ];
        for (text, reason) in cases {
            let found = Baseline::parse(&text).unwrap_err();
            assert!(found.contains(reason), "`{found}` does not say `{reason}`");
        }
        let twice = r#"{"name":"a","missing":1,"edges":[0,1],"counts":[1]}"#;
        assert!(Baseline::parse(&subject(&format!("{twice},{twice}"))).unwrap_err().contains("two features"));
    }

    #[test]
    fn a_folder_has_ours_or_model_monitors_or_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Baseline::find(folder.path()).unwrap().is_none());
        let statistics = r#"{"version":0,"dataset":{"item_count":9},"features":[{"name":"Age","inferred_type":"Integral",
            "numerical_statistics":{"common":{"num_present":9,"num_missing":1},"distribution":{"kll":{"buckets":[
            {"lower_bound":0,"upper_bound":5,"count":4},{"lower_bound":5,"upper_bound":10,"count":5}]}}}}]}"#;
        fs::write(folder.path().join(STATISTICS_FILE), statistics).unwrap();
        assert_eq!(Baseline::find(folder.path()).unwrap().unwrap().extent(), (1, false));
        fs::write(folder.path().join(FILE), baseline().to_text()).unwrap();
        assert_eq!(Baseline::find(folder.path()).unwrap().unwrap().extent(), (2, false));
        fs::write(folder.path().join(FILE), [0xff, 0xfe]).unwrap();
        assert!(Baseline::find(folder.path()).unwrap_err().to_string().contains("UTF-8"));
        fs::write(folder.path().join(FILE), vec![b' '; usize::try_from(MAX_BYTES).unwrap() + 1]).unwrap();
        assert!(Baseline::find(folder.path()).unwrap_err().to_string().contains("larger"));
    }
}
