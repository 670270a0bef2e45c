//! The numbers: every kind of model answers what Python's onnxruntime answers, one row at a time and all at once.

use std::sync::Arc;

use modelgate::model::outputs::{Decision, Rule};
use modelgate::model::signature::Signature;
use modelgate::model::{Inputs, Model, Outputs, PredictError, Prediction, Spec, Value};
use serde::Deserialize;

use crate::support::fixtures;

/// What `scripts/make-models.py` wrote: rows as callers send them, and Python's answers to them.
#[derive(Deserialize)]
struct Expected {
    columns: Vec<String>,
    rows: Vec<Vec<serde_json::Value>>,
    /// The classes in the order of the probabilities.
    classes: Option<Vec<serde_json::Value>>,
    predictions: Vec<serde_json::Value>,
    probabilities: Option<Vec<Vec<f32>>>,
}

impl Expected {
    fn of(kind: &str) -> Self {
        let text = std::fs::read_to_string(fixtures::folder(kind).join("expected.json")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    fn inputs(&self, model: &Model, rows: std::ops::Range<usize>) -> Inputs {
        let columns: Vec<Arc<str>> = self.columns.iter().map(|column| column.as_str().into()).collect();
        fixtures::inputs(model.features(), &columns, &self.rows[rows]).unwrap()
    }

    /// `outputs` are the answers to the rows from `first` on. Together with all others a row's numbers are Python's to the
    /// bit; alone, a matrix product may add them up in another order.
    #[track_caller]
    fn check(&self, outputs: &Outputs, first: usize) {
        let tolerance = if outputs.predictions().len() == self.rows.len() { 0.0 } else { 1e-6 };
        for (row, found) in outputs.predictions().iter().enumerate() {
            let place = format!("row {}", first + row);
            self.check_value(&found.value, first + row, tolerance);
            let expected = self.probabilities.as_ref().map_or(&[][..], |all| &all[first + row]);
            let probabilities = outputs.probabilities(row);
            assert_eq!(probabilities.len(), expected.len(), "{place}");
            let close =
                probabilities.iter().zip(expected).all(|(found, expected)| (found - expected).abs() <= tolerance);
            assert!(close, "{place}: {probabilities:?} for {expected:?}");
            self.check_score(found, probabilities, &place);
        }
    }

    #[track_caller]
    fn check_value(&self, found: &Value, row: usize, tolerance: f32) {
        let expected = &self.predictions[row];
        match found {
            Value::Number(number) => {
                let expected = expected.as_f64().unwrap();
                let off = (number - expected).abs();
                assert!(off <= f64::from(tolerance) * expected.abs().max(1.0), "row {row}: {number} for {expected}");
            }
            Value::Integer(_) | Value::Text(_) => assert_eq!(&json(found), expected, "row {row}"),
        }
    }

    #[track_caller]
    fn check_score(&self, found: &Prediction, probabilities: &[f32], place: &str) {
        let position =
            |class: &serde_json::Value| self.classes.as_ref().unwrap().iter().position(|other| other == class);
        let expected = match probabilities {
            [] => None,
            [_, positive] => Some(f64::from(*positive)),
            more => Some(f64::from(more[position(&json(&found.value)).unwrap()])),
        };
        assert_eq!(found.score, expected, "{place}");
    }
}

fn json(value: &Value) -> serde_json::Value {
    match value {
        Value::Integer(number) => (*number).into(),
        Value::Text(text) => (&**text).into(),
        Value::Number(number) => (*number).into(),
    }
}

/// Every row of a kind, singly and together, before the warm-up (aside) and after it (inline).
async fn check_kind(kind: &str) {
    let (model, expected) = (fixtures::model(kind), Expected::of(kind));
    assert!(expected.rows.len() >= 200);
    let all = expected.inputs(&model, 0..expected.rows.len());
    for warm in [false, true] {
        if warm {
            let answered = model.warm_up(Some(&expected.inputs(&model, 0..3))).unwrap().unwrap();
            expected.check(&answered, 0);
        }
        let together = model.predict(&all, fixtures::later()).await.unwrap();
        assert_eq!(together.predictions().len(), expected.rows.len());
        expected.check(&together, 0);
        for row in 0..expected.rows.len() {
            let single = expected.inputs(&model, row..row + 1);
            expected.check(&model.predict(&single, fixtures::later()).await.unwrap(), row);
        }
    }
    check_classes(&model, &expected, &all).await;
}

async fn check_classes(model: &Model, expected: &Expected, all: &Inputs) {
    let outputs = model.predict(all, fixtures::later()).await.unwrap();
    let text = |class: &serde_json::Value| class.as_str().map_or_else(|| class.to_string(), str::to_owned);
    let classes: Vec<String> = expected.classes.iter().flatten().map(text).collect();
    assert_eq!(outputs.classes().iter().map(ToString::to_string).collect::<Vec<_>>(), classes);
}

#[tokio::test]
async fn a_pipeline_over_named_columns_with_gaps() {
    check_kind("pipeline").await;
}

#[tokio::test]
async fn a_binary_forest_with_zipmap() {
    check_kind("forest-zipmap").await;
}

#[tokio::test]
async fn classes_that_are_texts() {
    check_kind("text-classes").await;
}

#[tokio::test]
async fn xgboost_over_one_dense_input_with_gaps() {
    check_kind("xgboost").await;
}

#[tokio::test]
async fn lightgbm_of_three_classes_with_zipmap() {
    check_kind("lightgbm").await;
}

#[tokio::test]
async fn a_logistic_regression() {
    check_kind("logistic").await;
}

#[tokio::test]
async fn a_neural_classifier_that_keeps_its_classes_in_a_tensor() {
    check_kind("neural").await;
}

#[tokio::test]
async fn a_regression() {
    check_kind("regression").await;
}

#[tokio::test]
async fn one_hot_columns_filled_from_the_category() {
    check_kind("one-hot").await;
}

#[tokio::test]
async fn a_single_number_over_named_columns() {
    check_kind("sigmoid").await;
}

#[tokio::test]
async fn a_tensor_for_a_signature() {
    check_kind("tensor").await;
}

#[tokio::test]
async fn without_a_signature_the_graph_is_the_signature() {
    let mut spec = fixtures::spec("forest-zipmap");
    spec.signature = None;
    let (model, expected) = (fixtures::load(spec).unwrap(), Expected::of("forest-zipmap"));
    // What the graph does not tell is that a column may be missing.
    let whole = (0..expected.rows.len()).find(|row| !expected.rows[*row].contains(&serde_json::Value::Null)).unwrap();
    let outputs = model.predict(&expected.inputs(&model, whole..whole + 1), fixtures::later()).await.unwrap();
    expected.check(&outputs, whole);
}

#[tokio::test]
async fn one_number_becomes_two_classes_when_a_threshold_says_so() {
    let mut spec = fixtures::spec("sigmoid");
    spec.decision = Decision { labels: [("1".into(), "Default".into())].into(), rule: Rule::Threshold(0.3) };
    let (model, expected) = (fixtures::load(spec).unwrap(), Expected::of("sigmoid"));
    let outputs = model.predict(&expected.inputs(&model, 0..200), fixtures::later()).await.unwrap();
    for (row, (found, number)) in outputs.predictions().iter().zip(&expected.predictions).enumerate() {
        let number = number.as_f64().unwrap();
        assert_eq!(found.score, Some(number));
        assert_eq!(json(&found.value), i64::from(number >= 0.3));
        assert_eq!(found.label.as_deref(), (number >= 0.3).then_some("Default"));
        assert!((outputs.probabilities(row).iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }
    let labels: Vec<_> = outputs.predictions().iter().map(|found| found.label.is_some()).collect();
    assert!(labels.contains(&true) && labels.contains(&false), "the threshold decides");
}

#[tokio::test]
async fn a_category_that_training_never_saw_is_answered() {
    let (model, expected) = (fixtures::model("one-hot"), Expected::of("one-hot"));
    let unseen = expected.inputs(&model, 5..6);
    assert_eq!(unseen.unseen().len(), 1);
    expected.check(&model.predict(&unseen, fixtures::later()).await.unwrap(), 5);
}

async fn answer(kind: &str, numbers: &[f64]) -> Result<Outputs, PredictError> {
    let model = fixtures::model(kind);
    let rows: Vec<_> = numbers.iter().map(|number| vec![(*number).into()]).collect();
    let inputs = fixtures::inputs(model.features(), &["x".into()], &rows).unwrap();
    model.predict(&inputs, fixtures::later()).await
}

#[tokio::test]
async fn nothing_that_is_not_finite_leaves_the_model() {
    assert!(matches!(answer("not-finite", &[1.0]).await, Err(PredictError::NotFinite)));
    assert!(matches!(answer("not-finite", &[1.0, 2.0]).await, Err(PredictError::NotFinite)));
}

#[tokio::test]
async fn a_row_too_few_is_no_answer() {
    let error = answer("wrong-rows", &[1.0, 2.0, 3.0]).await.unwrap_err();
    assert_eq!(error.to_string(), "the model answered with 1 answers to 3 rows");
}

#[tokio::test]
async fn no_rows_are_no_answers() {
    assert!(answer("wrong-rows", &[]).await.unwrap().predictions().is_empty());
}

#[test]
fn both_versions_of_the_demo_load_and_run() {
    for version in ["1", "2"] {
        let folder = fixtures::folder("../../demo/registry/credit-score").join(version);
        let text = std::fs::read_to_string(folder.join("MLmodel")).unwrap();
        let file: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
        let signature = Signature::parse(file["signature"]["inputs"].as_str().unwrap()).unwrap();
        let onnx = folder.join("model.onnx");
        let model = fixtures::load(Spec { onnx, signature: Some(signature), ..fixtures::spec("pipeline") }).unwrap();
        assert!(model.warm_up(None).unwrap().is_none());
    }
}
