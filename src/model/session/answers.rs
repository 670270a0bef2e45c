//! From a graph's outputs to plain numbers and classes, whichever way its exporter writes them.

use std::borrow::Cow;

use ort::session::SessionOutputs;
use ort::value::{DynMapValueType, DynValue, Outlet, TensorElementType, ValueType};

use super::{LoadError, PredictError};
use crate::model::onnx_file::Classes;
use crate::model::outputs::{Form, Raw, RawClasses};

/// Where the answers stand among the outputs, and in which shape.
#[derive(Debug)]
pub(super) struct Reader {
    class: Option<(usize, ClassKind)>,
    scores: Option<(usize, ScoreKind)>,
    /// Whether the scores are a single number a row.
    number: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ClassKind {
    Integer,
    Text,
}

#[derive(Clone, Debug, PartialEq)]
enum ScoreKind {
    /// `[n, classes]`, or `[n, 1]`, or `[n]`.
    Float,
    /// The same in 64 bits.
    Double,
    /// A map from class to score per row (`ZipMap`), of these classes.
    Maps(Classes),
}

impl Reader {
    /// How to read `outputs`, and what they hold. `classes` are those the graph names.
    pub(super) fn new(outputs: &[Outlet], classes: Option<Classes>, labels: usize) -> Result<(Self, Form), LoadError> {
        let mut reader = Self { class: None, scores: None, number: false };
        let mut columns = None;
        for (at, outlet) in outputs.iter().enumerate() {
            match (outlet.dtype(), &reader) {
                (ValueType::Tensor { ty: TensorElementType::Int64, .. }, Self { class: None, .. }) => {
                    reader.class = Some((at, ClassKind::Integer));
                }
                (ValueType::Tensor { ty: TensorElementType::String, .. }, Self { class: None, .. }) => {
                    reader.class = Some((at, ClassKind::Text));
                }
                (ValueType::Tensor { ty: TensorElementType::Float32, shape, .. }, Self { scores: None, .. }) => {
                    columns = columns_of(shape);
                    reader.scores = Some((at, ScoreKind::Float));
                }
                (ValueType::Tensor { ty: TensorElementType::Float64, shape, .. }, Self { scores: None, .. }) => {
                    columns = columns_of(shape);
                    reader.scores = Some((at, ScoreKind::Double));
                }
                (ValueType::Sequence(of), Self { scores: None, .. }) if is_score_map(of) => {
                    let classes = classes.clone().ok_or(LoadError::UnnamedClasses)?;
                    reader.scores = Some((at, ScoreKind::Maps(classes)));
                }
                _ => return Err(LoadError::outputs(outputs)),
            }
        }
        let form = reader.form(classes, columns, labels).ok_or_else(|| LoadError::outputs(outputs))??;
        reader.number = form == Form::Number;
        Ok((reader, form))
    }

    /// `None` when there is nothing to answer with.
    fn form(&self, named: Option<Classes>, columns: Option<usize>, labels: usize) -> Option<Result<Form, LoadError>> {
        let form = match (&self.class, &self.scores) {
            (None, None) => return None,
            (Some(_), None) => Form::Class,
            (_, Some((_, ScoreKind::Maps(classes)))) => Form::ScoredClass(classes.clone()),
            (Some((_, kind)), Some(_)) => {
                let classes = match (kind, named) {
                    (ClassKind::Integer, Some(Classes::Integers(numbers))) => Classes::Integers(numbers),
                    (ClassKind::Text, Some(Classes::Texts(texts))) => Classes::Texts(texts),
                    // Where nothing names them, class numbers count from 0; an answer outside of them is an error.
                    (ClassKind::Integer, _) => match columns {
                        Some(columns) => Classes::Integers((0_i64..).take(columns).collect()),
                        None => return Some(Err(LoadError::UnnamedClasses)),
                    },
                    (ClassKind::Text, _) => return Some(Err(LoadError::UnnamedClasses)),
                };
                if let Some(columns) = columns.filter(|columns| *columns != classes.len()) {
                    return Some(Err(LoadError::Scores { columns, classes: classes.len() }));
                }
                Form::ScoredClass(classes)
            }
            // Labels tell how many where the graph leaves it open.
            (None, Some(_)) => match columns.or(Some(labels).filter(|labels| *labels > 2)) {
                None | Some(1) => Form::Number,
                Some(columns) => Form::Scores(columns),
            },
        };
        Some(Ok(form))
    }

    /// What one run answered.
    pub(super) fn read<'o>(&self, outputs: &'o SessionOutputs<'_>) -> Result<Raw<'o>, PredictError> {
        let classes = self.class.map(|(at, kind)| read_classes(&outputs[at], kind)).transpose()?;
        match (&self.scores, classes) {
            (None, Some(classes)) => Ok(Raw::Classes(classes)),
            (Some((at, kind)), _) if self.number => Ok(Raw::Numbers(read_numbers(&outputs[*at], kind)?)),
            (Some((at, kind)), classes) => Ok(Raw::Scores(classes, read_scores(&outputs[*at], kind)?)),
            (None, None) => Err(PredictError::Answer("no outputs".into())),
        }
    }
}

/// The second dimension of two, where it is fixed; 1 where there is none.
fn columns_of(shape: &[i64]) -> Option<usize> {
    match shape {
        [] | [_] => Some(1),
        [_, columns] => usize::try_from(*columns).ok(),
        [_, _, _, ..] => None,
    }
}

fn is_score_map(of: &ValueType) -> bool {
    let keys = |key| matches!(key, TensorElementType::Int64 | TensorElementType::String);
    matches!(of, ValueType::Map { key, value: TensorElementType::Float32 } if keys(*key))
}

fn read_classes(output: &DynValue, kind: ClassKind) -> Result<RawClasses<'_>, PredictError> {
    match kind {
        ClassKind::Integer => output.try_extract_tensor::<i64>().map(|(_, numbers)| RawClasses::Integers(numbers)),
        ClassKind::Text => output.try_extract_strings().map(|(_, texts)| RawClasses::Texts(texts)),
    }
    .map_err(PredictError::runtime)
}

fn read_scores<'o>(output: &'o DynValue, kind: &ScoreKind) -> Result<Cow<'o, [f32]>, PredictError> {
    match kind {
        ScoreKind::Float => {
            let (_, scores) = output.try_extract_tensor::<f32>().map_err(PredictError::runtime)?;
            Ok(scores.into())
        }
        ScoreKind::Double => {
            let (_, scores) = output.try_extract_tensor::<f64>().map_err(PredictError::runtime)?;
            #[expect(clippy::cast_possible_truncation, reason = "scores are kept to seven digits")]
            Ok(scores.iter().map(|score| *score as f32).collect())
        }
        ScoreKind::Maps(Classes::Integers(classes)) => {
            read_maps(output, classes.len(), |at, key: &i64| classes.get(at) == Some(key)).map(Cow::Owned)
        }
        ScoreKind::Maps(Classes::Texts(classes)) => {
            read_maps(output, classes.len(), |at, key: &String| classes.get(at).is_some_and(|class| **class == **key))
                .map(Cow::Owned)
        }
    }
}

/// The scores of every row's map in the order of the classes; `is` tells whether a key is the class at a position.
fn read_maps<K>(output: &DynValue, classes: usize, is: impl Fn(usize, &K) -> bool) -> Result<Vec<f32>, PredictError>
where
    K: ort::value::IntoTensorElementType + Clone + std::hash::Hash + Eq,
{
    let maps = output.try_extract_sequence::<DynMapValueType>().map_err(PredictError::runtime)?;
    let mut scores = vec![f32::NAN; maps.len() * classes];
    for (row, map) in scores.chunks_exact_mut(classes).zip(maps) {
        for (at, (key, score)) in
            map.try_extract_key_values::<K, f32>().map_err(PredictError::runtime)?.iter().enumerate()
        {
            // Mostly in order already: both are sorted.
            let class = Some(at).filter(|at| is(*at, key)).or_else(|| (0..classes).find(|class| is(*class, key)));
            let class = class.ok_or_else(|| PredictError::Answer("a class that is not among its classes".into()))?;
            row[class] = *score;
        }
    }
    Ok(scores)
}

fn read_numbers(output: &DynValue, kind: &ScoreKind) -> Result<Vec<f64>, PredictError> {
    match kind {
        ScoreKind::Float => {
            let (_, numbers) = output.try_extract_tensor::<f32>().map_err(PredictError::runtime)?;
            Ok(numbers.iter().copied().map(f64::from).collect())
        }
        ScoreKind::Double => {
            let (_, numbers) = output.try_extract_tensor::<f64>().map_err(PredictError::runtime)?;
            Ok(numbers.to_vec())
        }
        ScoreKind::Maps(_) => Err(PredictError::Answer("other outputs than it declares".into())),
    }
}
