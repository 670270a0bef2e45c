//! Loading and running models, where no file of a fixture is needed.

use std::sync::Arc;

use super::*;
use crate::model::features::Settings;
use crate::model::signature::Column;
use crate::model::{Digest, Version};

pub(super) fn fixture(kind: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(kind).join("model.onnx")
}

pub(super) fn spec(onnx: PathBuf) -> Spec {
    Spec {
        id: Identity::new("m".parse().unwrap(), Version(1), Digest([0; 32]), None),
        onnx,
        signature: None,
        features: Settings::default(),
        decision: Decision::default(),
        slots: 1,
    }
}

fn load(spec: Spec) -> Result<Model, LoadError> {
    Model::load(&Runtime::load(None).unwrap(), spec)
}

pub(super) fn numbers(model: &Model, field: &str, numbers: &[f64]) -> Inputs {
    let mut rows = model.features().rows();
    for number in numbers {
        rows.begin();
        rows.set(field, Raw::Float(*number));
        rows.end();
    }
    rows.finish().unwrap()
}

fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

/// A model that counts to `x`, and never ends when that is large.
fn counter(slots: usize) -> Arc<Model> {
    Arc::new(load(Spec { slots, ..spec(fixture("endless")) }).unwrap())
}

const FOREVER: f64 = 1e18;

fn column(name: &str, kind: Kind, required: bool) -> Column {
    Column { name: name.into(), kind, required }
}

#[track_caller]
fn check_refused(kind: &str, columns: Vec<Column>, reason: &str) {
    let spec = Spec { signature: Some(Signature::Columns(columns)), ..spec(fixture(kind)) };
    let error = load(spec).unwrap_err().to_string();
    assert!(error.contains(reason), "{error}");
}

fn text_classes() -> Vec<Column> {
    vec![
        column("Age", Kind::Long, true),
        column("Annual_Income", Kind::Double, true),
        column("Outstanding_Debt", Kind::Double, true),
        column("Credit_Mix", Kind::Text, false),
    ]
}

#[test]
fn a_signature_that_fits_the_graph_loads_in_any_order() {
    let mut columns = text_classes();
    columns.reverse();
    assert!(load(Spec { signature: Some(Signature::Columns(columns)), ..spec(fixture("text-classes")) }).is_ok());
}

#[test]
fn a_signature_that_does_not_fit_the_graph_is_refused_by_name() {
    let mut columns = text_classes();
    columns[0].name = "Years".into();
    check_refused("text-classes", columns, "no column of the signature feeds the graph's input `Age`");

    let mut columns = text_classes();
    columns.push(column("Shoe_Size", Kind::Double, true));
    check_refused("text-classes", columns, "no input of the graph takes the column `Shoe_Size`");

    let mut columns = text_classes();
    columns[0].kind = Kind::Double;
    check_refused("text-classes", columns, "`Age` does not fit the graph's input `Age`, which takes int64");

    let mut columns = text_classes();
    columns[3].kind = Kind::Long;
    check_refused("text-classes", columns, "which takes string");

    let mut columns = text_classes();
    columns[0].required = false;
    check_refused("text-classes", columns, "the optional column `Age` goes into int64, which has no gaps");

    let dense = (0..3).map(|number| column(&format!("c{number}"), Kind::Double, true)).collect();
    check_refused("sigmoid", dense, "takes [n, 4], and the signature has 3 values a row");
}

#[test]
fn a_default_closes_the_gap_of_an_integer() {
    let mut columns = text_classes();
    columns[0].required = false;
    let mut spec = Spec { signature: Some(Signature::Columns(columns)), ..spec(fixture("text-classes")) };
    spec.features.default = [("Age".to_owned(), features::DefaultValue::Integer(40))].into();
    assert!(load(spec).is_ok());
}

#[test]
fn a_file_that_is_no_model_is_refused_with_the_cure() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.onnx");
    std::fs::write(&path, b"\x80\x04\x95pickled").unwrap();
    let error = load(spec(path.clone())).unwrap_err().to_string();
    assert!(error.contains("Python pickle") && error.contains("mlflow.onnx.log_model"), "{error}");
    // It looks like a model, and is none to ONNX Runtime.
    std::fs::write(&path, [8, 9, 58, 0]).unwrap();
    assert!(matches!(load(spec(path.clone())), Err(LoadError::Rejected { .. } | LoadError::Outputs { .. })));
    // A tensor that says its data is elsewhere, though the scan has seen it before.
    std::fs::write(&path, [8, 9, 58, 4, 42, 2, 112, 1]).unwrap();
    assert!(matches!(load(spec(path.clone())), Err(LoadError::ExternalData)));
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(load(spec(path)), Err(LoadError::Unreadable(_))));
}

#[test]
fn a_decision_that_does_not_fit_is_refused() {
    let decision = Decision { labels: [("2".into(), "Good".into())].into(), ..Decision::default() };
    let error = load(Spec { decision, ..spec(fixture("one-hot")) }).unwrap_err().to_string();
    assert!(error.contains("names class `2`"), "{error}");
}

#[tokio::test]
async fn what_the_graph_cannot_hold_is_the_callers_error() {
    let columns = Signature::Columns(text_classes());
    let model = load(Spec { signature: Some(columns), ..spec(fixture("text-classes")) }).unwrap();
    for (income, mix, field) in [(1e39, "Good", "Annual_Income"), (1.0, "Go\0od", "Credit_Mix")] {
        let mut rows = model.features().rows();
        rows.begin();
        rows.set("Age", Raw::Integer(40));
        rows.set("Annual_Income", Raw::Float(income));
        rows.set("Outstanding_Debt", Raw::Float(0.0));
        rows.set("Credit_Mix", Raw::Text(mix));
        rows.end();
        match model.predict(&rows.finish().unwrap(), later()).await {
            Err(PredictError::Input(invalid)) => assert_eq!(invalid.errors[0].feature, field),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_made_up_row_warms_a_model_without_an_example() {
    let model = load(spec(fixture("text-classes"))).unwrap();
    assert!(model.expected(1) > INLINE_MAX, "unmeasured work goes aside");
    assert!(model.warm_up(None).unwrap().is_none());
    assert!(model.expected(1) < Duration::from_secs(1), "measured");
    // What it answers to nonsense is not held against it.
    assert!(load(spec(fixture("not-finite"))).unwrap().warm_up(None).unwrap().is_none());
}

#[test]
fn a_model_that_answers_its_example_with_nan_does_not_warm_up() {
    let model = load(spec(fixture("not-finite"))).unwrap();
    let example = numbers(&model, "x", &[1.0]);
    assert!(matches!(model.warm_up(Some(&example)), Err(PredictError::NotFinite)));
}

#[tokio::test]
async fn a_run_past_its_deadline_is_ended_and_the_slot_comes_back() {
    let model = counter(1);
    let deadline = Instant::now() + Duration::from_millis(50);
    let error = model.predict(&numbers(&model, "x", &[FOREVER]), deadline).await.unwrap_err();
    assert!(matches!(error, PredictError::DeadlineExceeded { stage: Stage::Run }), "{error:?}");
    let answer = model.predict(&numbers(&model, "x", &[3.0]), later()).await.unwrap();
    assert_eq!(answer.predictions()[0].value, crate::model::Value::Number(3.0));
}

#[tokio::test]
async fn a_cancelled_request_ends_its_run_and_loses_no_slot() {
    let model = counter(1);
    let inputs = numbers(&model, "x", &[FOREVER]);
    {
        let run = model.predict(&inputs, later());
        tokio::pin!(run);
        assert!(futures_util::poll!(&mut run).is_pending(), "it runs");
        assert!(model.slots.try_acquire().is_none());
    }
    assert!(model.predict(&numbers(&model, "x", &[2.0]), later()).await.is_ok());
}

#[tokio::test]
async fn the_line_for_a_slot_is_bounded_and_keeps_deadlines() {
    let model = counter(1);
    let (forever, short) = (numbers(&model, "x", &[FOREVER]), numbers(&model, "x", &[1.0]));
    let mut run = Box::pin(model.predict(&forever, later()));
    assert!(futures_util::poll!(&mut run).is_pending());
    // Four stand in line for the one slot.
    let mut line: Vec<_> = (0..4).map(|_| Box::pin(model.predict(&short, later()))).collect();
    for waiting in &mut line {
        assert!(futures_util::poll!(waiting).is_pending());
    }
    let soon = Instant::now() + Duration::from_millis(10);
    assert!(matches!(model.predict(&short, soon).await, Err(PredictError::Overloaded)));
    // One leaves, and another may stand there: until its deadline.
    drop(line.pop());
    let error = model.predict(&short, soon).await.unwrap_err();
    assert!(matches!(error, PredictError::DeadlineExceeded { stage: Stage::Queue }), "{error:?}");
    // When the run ends, all of them are answered.
    drop(run);
    for waiting in line {
        assert!(waiting.await.is_ok());
    }
}

#[tokio::test]
async fn a_line_of_short_runs_is_as_long_as_it_takes_a_tenth_of_a_second() {
    let model = counter(1);
    let (forever, short) = (numbers(&model, "x", &[FOREVER]), numbers(&model, "x", &[1.0]));
    let mut run = Box::pin(model.predict(&forever, later()));
    assert!(futures_util::poll!(&mut run).is_pending());
    model.row_nanos.store(2_000_000, Ordering::Relaxed);
    let mut line: Vec<_> = (0..50).map(|_| Box::pin(model.predict(&short, later()))).collect();
    for waiting in &mut line {
        assert!(futures_util::poll!(waiting).is_pending());
    }
    assert!(matches!(model.predict(&short, later()).await, Err(PredictError::Overloaded)));
    // Who leaves makes room for as much as was expected of it, and no more.
    line.truncate(49);
    let batch = numbers(&model, "x", &[1.0, 2.0]);
    assert!(matches!(model.predict(&batch, later()).await, Err(PredictError::Overloaded)));
    let mut last = Box::pin(model.predict(&short, later()));
    assert!(futures_util::poll!(&mut last).is_pending());
    drop(run);
    for waiting in line {
        assert!(waiting.await.is_ok());
    }
    assert!(last.await.is_ok());
}

#[test]
fn a_slot_is_never_promised_before_it_is_back() {
    let model = counter(2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // A permit without a slot behind it panics.
            scope.spawn(|| (0..50_000).filter_map(|_| model.slots.try_acquire()).for_each(drop));
        }
    });
    let both: Vec<Lease> = std::iter::from_fn(|| model.slots.try_acquire()).collect();
    assert_eq!(both.len(), 2);
}

#[test]
fn every_slot_is_there_and_is_warmed_up() {
    let model = counter(3);
    let row = numbers(&model, "x", &[5.0]);
    model.warm_up(Some(&row)).unwrap();
    let leases: Vec<Lease> = std::iter::from_fn(|| model.slots.try_acquire()).collect();
    // What a slot ran last is still in its tensors.
    let last: Vec<f32> = leases
        .iter()
        .map(|lease| match &lease.row.0[0] {
            ort::session::SessionInputValue::Owned(value) => value.try_extract_tensor::<f32>().unwrap().1[0],
            _ => panic!("no tensor of its own"),
        })
        .collect();
    assert_eq!(last, [5.0; 3]);
}

#[test]
fn a_panic_gives_the_slot_back() {
    let model = counter(2);
    let slots = Arc::clone(&model.slots);
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _lease = slots.try_acquire().unwrap();
        panic!("in the middle of a run");
    }));
    assert!(panicked.is_err());
    let both: Vec<Lease> = std::iter::from_fn(|| slots.try_acquire()).collect();
    assert_eq!(both.len(), 2);
}
