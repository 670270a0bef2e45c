//! What a model answered, in the words callers read: prediction, label, score, probabilities.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::onnx_file::Classes;
use super::session::PredictError;

/// How raw outputs become a prediction: from the configuration, else from the version's tags.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Class as the model writes it → label as people read it (`"0"` → `"Poor"`).
    pub labels: BTreeMap<String, String>,
    /// What the score decides, where something other than the model does.
    pub rule: Rule,
}

/// What the score decides.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Rule {
    /// Nothing: the model's own class stands.
    #[default]
    Model,
    /// Two classes: the positive one at or above this score.
    Threshold(f64),
    /// Named bands of the score, ascending: each holds scores below its upper edge and at or above the one before.
    Bands {
        /// `(label, upper edge)`, ascending.
        below: Vec<(Arc<str>, f64)>,
        /// The label of all that is higher.
        top: Arc<str>,
    },
}

/// A decision that does not fit the model, or cannot be read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum DecisionError {
    /// A tag of the version that is not what it should be.
    #[error("the version's tag `{tag}` is not {expected}: {found}")]
    Tag {
        /// The tag's key.
        tag: &'static str,
        /// What belongs there, with an example.
        expected: &'static str,
        /// What is wrong with what stands there.
        found: String,
    },
    /// A label for a class the model does not have.
    #[error("`labels` names class `{class}`; the model's classes are {classes}")]
    NoSuchClass {
        /// The class as the labels name it.
        class: String,
        /// The model's classes.
        classes: String,
    },
    /// A rule over one score, for a model that has several, or none.
    #[error("`{rule}` needs a model with one score or two classes; this one has {classes}")]
    NotTwoClasses {
        /// The rule's key.
        rule: &'static str,
        /// How many classes the model has; 0 when it gives no scores.
        classes: usize,
    },
    /// A threshold or a band's edge is not a number, or bands do not ascend.
    #[error("`{0}` must be finite numbers, each larger than the one before, with a label for the rest")]
    NotAscending(&'static str),
    /// Several scores a row, and nothing that names them.
    #[error(
        "the model answers {columns} numbers a row without a class: name its classes with `labels`, or export it with \
         its class as an output"
    )]
    Unnamed {
        /// How many numbers a row.
        columns: usize,
    },
}

/// `{"0":"Poor","1":"Good"}`
const LABELS_TAG: &str = "modelgate.labels";
/// `0.4`
const THRESHOLD_TAG: &str = "modelgate.threshold";
/// `{"Low":0.35,"Medium":0.7,"High":null}`
const BANDS_TAG: &str = "modelgate.bands";

impl Decision {
    /// The decision a version's tags make; none of them is needed. Bands win over a threshold.
    ///
    /// # Errors
    /// When one of them cannot be read.
    pub fn from_tags(tags: &BTreeMap<String, String>) -> Result<Self, DecisionError> {
        let labels = tags.get(LABELS_TAG).map(|text| read_labels(text)).transpose()?;
        let threshold = tags.get(THRESHOLD_TAG).map(|text| read_threshold(text)).transpose()?;
        let bands = tags.get(BANDS_TAG).map(|text| read_bands(text)).transpose()?;
        Ok(Self { labels: labels.unwrap_or_default(), rule: bands.or(threshold).unwrap_or_default() })
    }

    /// This decision, and `fallback` for what it leaves open.
    #[must_use]
    pub fn or(self, fallback: Self) -> Self {
        Self {
            labels: if self.labels.is_empty() { fallback.labels } else { self.labels },
            rule: if self.rule == Rule::Model { fallback.rule } else { self.rule },
        }
    }
}

fn read_labels(text: &str) -> Result<BTreeMap<String, String>, DecisionError> {
    let expected = r#"a JSON object of texts like {"0":"Poor","1":"Good"}"#;
    serde_json::from_str(text).map_err(|error| DecisionError::Tag {
        tag: LABELS_TAG,
        expected,
        found: error.to_string(),
    })
}

fn read_threshold(text: &str) -> Result<Rule, DecisionError> {
    let wrong = |found| DecisionError::Tag { tag: THRESHOLD_TAG, expected: "a number like 0.4", found };
    let threshold = text.trim().parse().map_err(|_| wrong(text.chars().take(64).collect()))?;
    Rule::Threshold(threshold).checked()
}

fn read_bands(text: &str) -> Result<Rule, DecisionError> {
    let expected = r#"a JSON object of upper edges like {"Low":0.35,"Medium":0.7,"High":null}, null for the rest"#;
    let wrong = |found| DecisionError::Tag { tag: BANDS_TAG, expected, found };
    let edges: BTreeMap<String, Option<f64>> = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let mut below: Vec<_> = edges.iter().filter_map(|(label, edge)| Some((label.as_str().into(), (*edge)?))).collect();
    below.sort_by(|(_, one): &(Arc<str>, f64), (_, other)| one.total_cmp(other));
    let mut tops = edges.into_iter().filter(|(_, edge)| edge.is_none());
    match (tops.next(), tops.next()) {
        (Some((top, _)), None) => Rule::Bands { below, top: top.into() }.checked(),
        (None, _) => Err(wrong("no band has null".into())),
        (Some(_), Some(_)) => Err(wrong("several bands have null".into())),
    }
}

impl Rule {
    /// The rule, if its numbers are finite and ascend.
    fn checked(self) -> Result<Self, DecisionError> {
        let (key, good) = match &self {
            Self::Model => ("", true),
            Self::Threshold(threshold) => ("threshold", threshold.is_finite()),
            Self::Bands { below, .. } => {
                let finite = below.iter().all(|(_, edge)| edge.is_finite());
                ("bands", finite && !below.is_empty() && below.is_sorted_by(|one, next| one.1 < next.1))
            }
        };
        if good { Ok(self) } else { Err(DecisionError::NotAscending(key)) }
    }

    /// The label of the band that holds `score`; `None` when there are no bands.
    fn band(&self, score: f64) -> Option<&Arc<str>> {
        match self {
            Self::Bands { below, top } => {
                Some(below.iter().find(|(_, edge)| !reaches(score, *edge)).map_or(top, |(label, _)| label))
            }
            Self::Model | Self::Threshold(_) => None,
        }
    }

    /// The key it is configured under.
    fn key(&self) -> &'static str {
        match self {
            Self::Model => "labels",
            Self::Threshold(_) => "threshold",
            Self::Bands { .. } => "bands",
        }
    }
}

/// The prediction itself, as the model's type has it.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A class number.
    Integer(i64),
    /// A class name.
    Text(Arc<str>),
    /// A regression's value. Finite.
    Number(f64),
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(class) => class.fmt(f),
            Self::Text(class) => class.fmt(f),
            Self::Number(number) => number.fmt(f),
        }
    }
}

/// The answer for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Prediction {
    /// What the model predicts.
    pub value: Value,
    /// What people call it: from the labels, or the band.
    pub label: Option<Arc<str>>,
    /// Two classes: the probability of the positive one. More: of the predicted one. A regression has none.
    pub score: Option<f64>,
}

/// What a model's outputs hold for every row; known when it is loaded.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// One number.
    Number,
    /// A class.
    Class,
    /// A class and a score for each of these.
    ScoredClass(Classes),
    /// So many scores, more than one, and no class.
    Scores(usize),
}

/// What a model answered, row after row.
pub(super) enum Raw<'a> {
    /// One number a row.
    Numbers(Vec<f64>),
    /// A class a row.
    Classes(RawClasses<'a>),
    /// A score per class, row after row, and each row's class where the model names it.
    Scores(Option<RawClasses<'a>>, Cow<'a, [f32]>),
}

/// A class a row, as the model writes it.
pub(super) enum RawClasses<'a> {
    /// Class numbers.
    Integers(&'a [i64]),
    /// Class names.
    Texts(Vec<String>),
}

/// How one version's raw answers become predictions; made once, when it is loaded.
#[derive(Debug)]
pub(super) enum Decider {
    /// A regression, whose value may lie in a named band.
    Number(Rule),
    /// A class without scores, with the label for each that has one.
    Class(BTreeMap<String, Arc<str>>),
    /// Classes with scores.
    Scored(Scored),
}

/// Classes with scores.
#[derive(Debug)]
pub(super) struct Scored {
    classes: Box<[Class]>,
    /// What [`Outputs::classes`] shows.
    names: Arc<[Arc<str>]>,
    rule: Rule,
}

#[derive(Debug)]
struct Class {
    value: Value,
    label: Option<Arc<str>>,
}

/// What a version's predictions can say, for those who compare them with what came true.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Outcomes {
    /// Numbers.
    Numbers,
    /// Classes.
    Classes {
        /// Each class as the model writes it, and what people call it; in the order of the probabilities, where there are
        /// any.
        names: Vec<(String, Arc<str>)>,
        /// Whether there are no others.
        are_all: bool,
    },
}

impl Outcomes {
    /// What people call the class that the model writes as `class`; that itself where it has no other name.
    #[must_use]
    pub fn name_of<'a>(&'a self, class: &'a str) -> &'a str {
        match self {
            Self::Classes { names, .. } => {
                names.iter().find(|(written, _)| written == class).map_or(class, |(_, name)| name)
            }
            Self::Numbers => class,
        }
    }
}

impl Decider {
    /// What the predictions can say.
    pub(super) fn outcomes(&self) -> Outcomes {
        match self {
            Self::Number(_) => Outcomes::Numbers,
            Self::Class(labels) => Outcomes::Classes {
                names: labels.iter().map(|(class, label)| (class.clone(), Arc::clone(label))).collect(),
                are_all: false,
            },
            Self::Scored(scored) => {
                let classes = scored.classes.iter().map(|class| class.value.class_text().into_owned());
                Outcomes::Classes { names: classes.zip(scored.names.iter().cloned()).collect(), are_all: true }
            }
        }
    }

    /// The way from `form` to what `decision` asks for.
    pub(super) fn new(form: Form, decision: Decision) -> Result<Self, DecisionError> {
        let Decision { labels, rule } = decision;
        let rule = rule.checked()?;
        match form {
            Form::Number if is_probability(&labels, &rule) => {
                Scored::new(&Classes::Integers(vec![0, 1]), &labels, rule).map(Self::Scored)
            }
            Form::Number => Ok(Self::Number(rule)),
            Form::ScoredClass(classes) => Scored::new(&classes, &labels, rule).map(Self::Scored),
            Form::Scores(columns) if labels.is_empty() && rule == Rule::Model => {
                Err(DecisionError::Unnamed { columns })
            }
            Form::Scores(columns) => {
                Scored::new(&Classes::Integers((0_i64..).take(columns).collect()), &labels, rule).map(Self::Scored)
            }
            Form::Class if rule != Rule::Model => Err(DecisionError::NotTwoClasses { rule: rule.key(), classes: 0 }),
            Form::Class => Ok(Self::Class(labels.into_iter().map(|(class, label)| (class, label.into())).collect())),
        }
    }

    /// The answers to `rows` rows.
    pub(super) fn decide(&self, raw: Raw<'_>, rows: usize) -> Result<Outputs, PredictError> {
        match (self, raw) {
            (Self::Number(rule), Raw::Numbers(numbers)) => regression(rule, &numbers, rows),
            (Self::Class(labels), Raw::Classes(classes)) => classes_only(labels, &classes, rows),
            (Self::Scored(scored), Raw::Numbers(numbers)) => scored.decide(None, both_sides(&numbers)?.into(), rows),
            (Self::Scored(by_class), Raw::Scores(found, scores)) => by_class.decide(found.as_ref(), scores, rows),
            _ => Err(PredictError::Answer("other outputs than it declares".into())),
        }
    }

    /// No answers, to no rows.
    pub(super) fn nothing(&self) -> Outputs {
        let classes = match self {
            Self::Scored(scored) => Arc::clone(&scored.names),
            Self::Number(_) | Self::Class(_) => Arc::default(),
        };
        Outputs::new(Vec::new(), classes, Vec::new())
    }
}

/// Whether a single number is meant as the probability of the second of two classes. Bands outside of 0 to 1 are bands
/// of a regression's value.
fn is_probability(labels: &BTreeMap<String, String>, rule: &Rule) -> bool {
    let by_rule = match rule {
        Rule::Model => false,
        Rule::Threshold(_) => true,
        Rule::Bands { below, .. } => below.iter().all(|(_, edge)| (0.0..=1.0).contains(edge)),
    };
    by_rule || !labels.is_empty()
}

fn check_rows(found: usize, rows: usize) -> Result<(), PredictError> {
    if found == rows { Ok(()) } else { Err(PredictError::Answer(format!("{found} answers to {rows} rows"))) }
}

fn regression(rule: &Rule, numbers: &[f64], rows: usize) -> Result<Outputs, PredictError> {
    check_rows(numbers.len(), rows)?;
    if !numbers.iter().all(|number| number.is_finite()) {
        return Err(PredictError::NotFinite);
    }
    let answer = |&number| Prediction { value: Value::Number(number), label: rule.band(number).cloned(), score: None };
    Ok(Outputs::new(numbers.iter().map(answer).collect(), Arc::default(), Vec::new()))
}

fn classes_only(
    labels: &BTreeMap<String, Arc<str>>,
    classes: &RawClasses<'_>,
    rows: usize,
) -> Result<Outputs, PredictError> {
    check_rows(classes.len(), rows)?;
    let answer = |value: Value| {
        let label = labels.get(&*value.class_text()).cloned();
        Prediction { value, label, score: None }
    };
    let predictions = match classes {
        RawClasses::Integers(numbers) => numbers.iter().map(|&number| answer(Value::Integer(number))).collect(),
        RawClasses::Texts(texts) => texts.iter().map(|text| answer(Value::Text(text.as_str().into()))).collect(),
    };
    Ok(Outputs::new(predictions, Arc::default(), Vec::new()))
}

/// The probabilities of both classes, from that of the second.
fn both_sides(numbers: &[f64]) -> Result<Vec<f32>, PredictError> {
    let mut scores = Vec::with_capacity(numbers.len() * 2);
    for number in numbers {
        if !number.is_finite() {
            return Err(PredictError::NotFinite);
        }
        if !(0.0..=1.0).contains(number) {
            return Err(PredictError::Answer(format!("{number}, which is not a probability")));
        }
        #[expect(clippy::cast_possible_truncation, reason = "a probability fits, to seven digits")]
        scores.extend([(1.0 - number) as f32, *number as f32]);
    }
    Ok(scores)
}

impl Scored {
    fn new(classes: &Classes, labels: &BTreeMap<String, String>, rule: Rule) -> Result<Self, DecisionError> {
        let values: Vec<Value> = match classes {
            Classes::Integers(numbers) => numbers.iter().map(|&number| Value::Integer(number)).collect(),
            Classes::Texts(texts) => texts.iter().map(|text| Value::Text(Arc::clone(text))).collect(),
        };
        if rule != Rule::Model && values.len() != 2 {
            return Err(DecisionError::NotTwoClasses { rule: rule.key(), classes: values.len() });
        }
        let texts: Vec<Cow<'_, str>> = values.iter().map(Value::class_text).collect();
        if let Some(class) = labels.keys().find(|class| !texts.iter().any(|text| text == class.as_str())) {
            return Err(DecisionError::NoSuchClass { class: class.clone(), classes: texts.join(", ") });
        }
        let label_of = |text: &str| labels.get(text).map(|label| Arc::from(label.as_str()));
        let found: Vec<Option<Arc<str>>> = texts.iter().map(|text| label_of(text)).collect();
        let names = texts.iter().zip(&found).map(|(text, label)| label.clone().unwrap_or_else(|| (&**text).into()));
        let names = names.collect();
        let classes = values.into_iter().zip(found).map(|(value, label)| Class { value, label }).collect();
        Ok(Self { classes, names, rule })
    }

    fn decide(
        &self,
        classes: Option<&RawClasses<'_>>,
        scores: Cow<'_, [f32]>,
        rows: usize,
    ) -> Result<Outputs, PredictError> {
        let width = self.classes.len();
        if scores.len() != rows * width {
            return Err(PredictError::Answer(format!("{} scores to {rows} rows of {width} classes", scores.len())));
        }
        if !scores.iter().all(|score| score.is_finite()) {
            return Err(PredictError::NotFinite);
        }
        if let Some(classes) = classes {
            check_rows(classes.len(), rows)?;
        }
        let answer = |(row, scores)| self.answer(classes, row, scores);
        let predictions = scores.chunks_exact(width).enumerate().map(answer).collect::<Result<_, _>>()?;
        Ok(Outputs::new(predictions, Arc::clone(&self.names), scores.into_owned()))
    }

    fn answer(&self, classes: Option<&RawClasses<'_>>, row: usize, scores: &[f32]) -> Result<Prediction, PredictError> {
        let chosen = match (&self.rule, classes) {
            (Rule::Threshold(threshold), _) => usize::from(reaches(scores[1].into(), *threshold)),
            (_, Some(classes)) => self.position(classes, row)?,
            (_, None) => largest(scores),
        };
        let class = &self.classes[chosen];
        // Two classes: the probability of the positive one. More: of the predicted one.
        let score = f64::from(if let [_, positive] = scores { *positive } else { scores[chosen] });
        let label = self.rule.band(score).or(class.label.as_ref()).cloned();
        Ok(Prediction { value: class.value.clone(), label, score: Some(score) })
    }

    /// Which of the classes the model named for `row`.
    fn position(&self, classes: &RawClasses<'_>, row: usize) -> Result<usize, PredictError> {
        let is_it = |class: &Class| match (classes, &class.value) {
            (RawClasses::Integers(found), Value::Integer(number)) => found[row] == *number,
            (RawClasses::Texts(found), Value::Text(text)) => found[row] == **text,
            _ => false,
        };
        let unknown = || PredictError::Answer("a class that is not among its classes".into());
        self.classes.iter().position(is_it).ok_or_else(unknown)
    }
}

/// Compared with the digits a 32-bit score has, because that is what models answer: 0.35 reaches an edge of 0.35.
#[expect(clippy::cast_possible_truncation, reason = "that is the point")]
fn reaches(score: f64, edge: f64) -> bool {
    score as f32 >= edge as f32
}

/// Where the largest stands; the first, where several are equal.
fn largest(scores: &[f32]) -> usize {
    let mut best = 0;
    for (position, score) in scores.iter().enumerate() {
        if *score > scores[best] {
            best = position;
        }
    }
    best
}

impl RawClasses<'_> {
    fn len(&self) -> usize {
        match self {
            Self::Integers(numbers) => numbers.len(),
            Self::Texts(texts) => texts.len(),
        }
    }
}

impl Value {
    /// The class as text, as the labels are keyed.
    #[must_use]
    pub fn class_text(&self) -> Cow<'_, str> {
        match self {
            Self::Integer(number) => number.to_string().into(),
            Self::Text(text) => (&**text).into(),
            Self::Number(number) => number.to_string().into(),
        }
    }
}

/// The answers for all rows, in order. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outputs(Arc<Table>);

#[derive(Debug)]
struct Table {
    predictions: Box<[Prediction]>,
    classes: Arc<[Arc<str>]>,
    /// Row after row, one per class; empty for a regression.
    probabilities: Box<[f32]>,
}

impl Outputs {
    /// Answers with their probabilities (row after row, one per class, or none at all).
    #[must_use]
    pub fn new(predictions: Vec<Prediction>, classes: Arc<[Arc<str>]>, probabilities: Vec<f32>) -> Self {
        debug_assert!(probabilities.is_empty() || probabilities.len() == predictions.len() * classes.len());
        Self(Arc::new(Table { predictions: predictions.into(), classes, probabilities: probabilities.into() }))
    }

    /// The answers in the order of the rows.
    #[must_use]
    pub fn predictions(&self) -> &[Prediction] {
        &self.0.predictions
    }

    /// The classes by their labels, in the model's order; empty for a regression.
    #[must_use]
    pub fn classes(&self) -> &[Arc<str>] {
        &self.0.classes
    }

    /// One row's probability per class, in the order of [`classes`](Self::classes); empty for a regression.
    #[must_use]
    pub fn probabilities(&self, row: usize) -> &[f32] {
        let width = if self.0.probabilities.is_empty() { 0 } else { self.0.classes.len() };
        &self.0.probabilities[row * width..][..width]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|&(class, label)| (class.into(), label.into())).collect()
    }

    fn bands(below: &[(&str, f64)], top: &str) -> Rule {
        Rule::Bands { below: below.iter().map(|&(label, edge)| (label.into(), edge)).collect(), top: top.into() }
    }

    fn two() -> Form {
        Form::ScoredClass(Classes::Integers(vec![0, 1]))
    }

    /// One row's answer, as `value label score`.
    #[track_caller]
    fn check_decided(form: Form, decision: Decision, raw: Raw<'_>, expected: &str) {
        let outputs = Decider::new(form, decision).unwrap().decide(raw, 1).unwrap();
        let Prediction { value, label, score } = &outputs.predictions()[0];
        let score = score.map_or("-".to_owned(), |score| format!("{score:.2}"));
        assert_eq!(format!("{} {} {score}", value.class_text(), label.as_deref().unwrap_or("-")), expected);
    }

    fn scores<'a>(class: &'a [i64; 1], scores: &'a [f32]) -> Raw<'a> {
        Raw::Scores(Some(RawClasses::Integers(class)), scores.into())
    }

    fn three() -> Form {
        Form::ScoredClass(Classes::Integers(vec![0, 1, 2]))
    }

    #[test]
    fn the_models_class_stands_where_no_rule_does() {
        check_decided(two(), Decision::default(), scores(&[0], &[0.4, 0.6]), "0 - 0.60");
        check_decided(three(), Decision::default(), scores(&[2], &[0.1, 0.2, 0.7]), "2 - 0.70");
        let labels = labels(&[("0", "Poor"), ("1", "Standard"), ("2", "Good")]);
        let decision = Decision { labels, rule: Rule::Model };
        check_decided(three(), decision, scores(&[1], &[0.1, 0.8, 0.1]), "1 Standard 0.80");
        let named = Form::ScoredClass(Classes::Texts(vec!["bad".into(), "good".into()]));
        let raw = Raw::Scores(Some(RawClasses::Texts(vec!["bad".into()])), vec![0.9, 0.1].into());
        check_decided(named, Decision::default(), raw, "bad - 0.10");
    }

    #[test]
    fn a_threshold_decides_between_two_classes() {
        let at = |threshold| Decision { rule: Rule::Threshold(threshold), ..Decision::default() };
        check_decided(two(), at(0.35), scores(&[0], &[0.65, 0.35]), "1 - 0.35");
        check_decided(two(), at(0.36), scores(&[0], &[0.65, 0.35]), "0 - 0.35");
        check_decided(Form::Number, at(0.5), Raw::Numbers(vec![0.5]), "1 - 0.50");
        check_decided(Form::Number, at(0.5), Raw::Numbers(vec![0.49]), "0 - 0.49");
    }

    #[test]
    fn bands_name_the_score_and_leave_the_class() {
        let rule = || Decision { rule: bands(&[("Low", 0.35), ("Medium", 0.7)], "High"), ..Decision::default() };
        check_decided(two(), rule(), scores(&[0], &[0.8, 0.2]), "0 Low 0.20");
        check_decided(two(), rule(), scores(&[1], &[0.4, 0.6]), "1 Medium 0.60");
        check_decided(Form::Number, rule(), Raw::Numbers(vec![0.7]), "1 High 0.70");
        let rule = Decision { rule: bands(&[("Poor", 580.0)], "Fine"), ..Decision::default() };
        check_decided(Form::Number, rule, Raw::Numbers(vec![580.0]), "580 Fine -");
    }

    #[test]
    fn a_single_number_is_a_regression_until_something_calls_it_a_class() {
        check_decided(Form::Number, Decision::default(), Raw::Numbers(vec![612.5]), "612.5 - -");
        let decision = Decision { labels: labels(&[("1", "Default")]), rule: Rule::Model };
        check_decided(Form::Number, decision, Raw::Numbers(vec![0.75]), "1 Default 0.75");
    }

    #[test]
    fn scores_without_a_class_need_labels() {
        let decision = Decision { labels: labels(&[("0", "a"), ("1", "b"), ("2", "c")]), rule: Rule::Model };
        check_decided(Form::Scores(3), decision, Raw::Scores(None, vec![0.2, 0.5, 0.3].into()), "1 b 0.50");
        check_refused(Form::Scores(3), Decision::default(), "name its classes with `labels`");
    }

    #[test]
    fn a_class_without_scores_can_have_labels() {
        let decision = Decision { labels: labels(&[("-1", "odd")]), rule: Rule::Model };
        check_decided(Form::Class, decision, Raw::Classes(RawClasses::Integers(&[-1])), "-1 odd -");
    }

    #[track_caller]
    fn check_refused(form: Form, decision: Decision, reason: &str) {
        let error = Decider::new(form, decision).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn decisions_that_do_not_fit_are_refused() {
        let with = |rule| Decision { rule, ..Decision::default() };
        check_refused(three(), with(Rule::Threshold(0.5)), "`threshold` needs a model with one score or two classes");
        check_refused(three(), with(bands(&[("Low", 0.5)], "High")), "`bands`");
        check_refused(Form::Class, with(Rule::Threshold(0.5)), "this one has 0");
        check_refused(two(), with(Rule::Threshold(f64::NAN)), "`threshold` must be finite");
        check_refused(two(), with(bands(&[("a", 0.5), ("b", 0.5)], "c")), "larger than the one before");
        let typo = Decision { labels: labels(&[("3", "Good")]), rule: Rule::Model };
        check_refused(two(), typo, "names class `3`; the model's classes are 0, 1");
    }

    #[track_caller]
    fn check_no_answer(form: Form, raw: Raw<'_>, reason: &str) {
        let decider = Decider::new(form, Decision::default()).unwrap();
        let error = decider.decide(raw, 1).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }

    #[test]
    fn answers_that_make_no_sense_are_no_answers() {
        check_no_answer(Form::Number, Raw::Numbers(vec![f64::NAN]), "not finite");
        check_no_answer(Form::Number, Raw::Numbers(vec![1.0, 2.0]), "2 answers to 1 rows");
        check_no_answer(two(), scores(&[0], &[f32::NAN, 0.5]), "not finite");
        check_no_answer(two(), scores(&[0], &[1.0]), "1 scores to 1 rows of 2 classes");
        check_no_answer(two(), scores(&[7], &[0.5, 0.5]), "not among its classes");
        check_no_answer(two(), Raw::Classes(RawClasses::Integers(&[0])), "other outputs");
    }

    #[test]
    fn a_logit_is_not_taken_for_a_probability() {
        let decision = Decision { rule: Rule::Threshold(0.5), ..Decision::default() };
        let decider = Decider::new(Form::Number, decision).unwrap();
        assert!(decider.decide(Raw::Numbers(vec![3.2]), 1).unwrap_err().to_string().contains("not a probability"));
    }

    #[test]
    fn classes_are_shown_by_label() {
        let decision = Decision { labels: labels(&[("1", "Good")]), rule: Rule::Model };
        let outputs = Decider::new(two(), decision).unwrap().decide(scores(&[1], &[0.25, 0.75]), 1).unwrap();
        assert_eq!(outputs.classes().iter().map(|name| &**name).collect::<Vec<_>>(), ["0", "Good"]);
        assert_eq!(outputs.probabilities(0), [0.25, 0.75]);
    }

    fn tags(pairs: &[(&str, &str)]) -> Result<Decision, DecisionError> {
        Decision::from_tags(&labels(pairs))
    }

    #[test]
    fn tags_make_a_decision() {
        assert_eq!(tags(&[("owner", "risk")]).unwrap(), Decision::default());
        let decision = tags(&[("modelgate.labels", r#"{"0":"Poor"}"#), ("modelgate.threshold", " 0.4")]).unwrap();
        assert_eq!(decision, Decision { labels: labels(&[("0", "Poor")]), rule: Rule::Threshold(0.4) });
        let decision = tags(&[("modelgate.bands", r#"{"Low":0.35,"High":null,"Medium":0.7}"#)]).unwrap();
        assert_eq!(decision.rule, bands(&[("Low", 0.35), ("Medium", 0.7)], "High"));
    }

    #[test]
    fn tags_that_cannot_be_read_are_named() {
        for (tag, text) in [
            ("modelgate.labels", "Poor, Good"),
            ("modelgate.labels", r#"{"0":1}"#),
            ("modelgate.threshold", "half"),
            ("modelgate.bands", r#"{"Low":0.35}"#),
            ("modelgate.bands", r#"{"Low":null,"High":null}"#),
        ] {
            assert!(tags(&[(tag, text)]).unwrap_err().to_string().contains(tag), "{tag} {text}");
        }
        assert!(matches!(tags(&[("modelgate.threshold", "nan")]), Err(DecisionError::NotAscending("threshold"))));
    }

    #[test]
    fn the_configuration_wins_over_tags() {
        let configured = Decision { labels: labels(&[("0", "No")]), rule: Rule::Model };
        let tagged = Decision { labels: labels(&[("0", "Nein")]), rule: Rule::Threshold(0.4) };
        let expected = Decision { labels: labels(&[("0", "No")]), rule: Rule::Threshold(0.4) };
        assert_eq!(configured.or(tagged), expected);
    }
}
