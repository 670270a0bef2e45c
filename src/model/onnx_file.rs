//! What a model file says about itself, read without ONNX Runtime: whether it is ONNX at all, and what its classes are
//! called.
//!
//! ONNX is a protobuf message. Of it only what is needed is walked, by hand: at most [`MAX_FIELDS`] fields, to a fixed
//! depth, without following subgraphs. Any bytes give an answer or a [`NotOnnx`], never a panic.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::protobuf::{Fields, Wire, varint};

/// The walk stops here; a model of 200,000 nodes with ten fields each stays below.
const MAX_FIELDS: usize = 4_000_000;

/// The most classes that are named; more than any tabular classifier has.
const MAX_CLASSES: usize = 65_536;

/// What an ONNX file says about itself.
#[derive(Debug, Default, PartialEq)]
pub(super) struct OnnxFile {
    /// The classes in the order of their scores, where the graph names them.
    pub(super) classes: Option<Classes>,
    /// Whether weights lie in another file.
    pub(super) external_data: bool,
}

/// The classes in the order of their scores.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Classes {
    /// Class numbers.
    Integers(Vec<i64>),
    /// Class names.
    Texts(Vec<Arc<str>>),
}

/// What a file is that is not ONNX.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOnnx {
    /// Nothing in it.
    #[error("it is empty: the upload or the download broke off; log the model again")]
    Empty,
    /// Python's own format, which runs code when it is read.
    #[error("it is a Python pickle, which cannot be read without running it: log the model with mlflow.onnx.log_model")]
    Pickle,
    /// A ZIP archive, as skops and Keras write.
    #[error("it is a ZIP archive (skops or Keras): convert the model and log it with mlflow.onnx.log_model")]
    Zip,
    /// `XGBoost`'s binary or JSON format.
    #[error(
        "it is an XGBoost model (ubj or json): convert it with onnxmltools.convert_xgboost and log it with \
         mlflow.onnx.log_model"
    )]
    Xgboost,
    /// `LightGBM`'s text format.
    #[error(
        "it is a LightGBM text model: convert it with onnxmltools.convert_lightgbm and log it with mlflow.onnx.log_model"
    )]
    LightGbm,
    /// HDF5, as Keras wrote.
    #[error("it is an HDF5 file (Keras): convert it with tf2onnx and log it with mlflow.onnx.log_model")]
    Hdf5,
    /// A web page.
    #[error(
        "it is a web page, not a model: the artifact store answered with a login or error page; check the credentials"
    )]
    WebPage,
    /// A pointer to a file that was not fetched.
    #[error("it is a Git LFS pointer, not the model: run `git lfs pull` before logging it")]
    LfsPointer,
    /// None of these.
    #[error("it is not an ONNX file: log the model with mlflow.onnx.log_model")]
    Unknown,
}

impl Classes {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Integers(numbers) => numbers.len(),
            Self::Texts(texts) => texts.len(),
        }
    }
}

impl OnnxFile {
    /// Reads what `bytes` say of themselves.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, NotOnnx> {
        if let Some(other) = known_format(bytes) {
            return Err(other);
        }
        read_model(bytes).ok_or(NotOnnx::Unknown)
    }
}

/// The format that the first bytes give away, where it is one people log by mistake.
fn known_format(bytes: &[u8]) -> Option<NotOnnx> {
    let text = bytes.trim_ascii_start();
    match bytes {
        [] => Some(NotOnnx::Empty),
        [0x80, 2..=5, ..] => Some(NotOnnx::Pickle),
        [b'P', b'K', 3, 4, ..] => Some(NotOnnx::Zip),
        [0x89, b'H', b'D', b'F', ..] => Some(NotOnnx::Hdf5),
        [b'b', b'i', b'n', b'f', ..] => Some(NotOnnx::Xgboost),
        _ if text.starts_with(b"{") => Some(NotOnnx::Xgboost),
        _ if text.starts_with(b"<") => Some(NotOnnx::WebPage),
        _ if bytes.starts_with(b"tree\n") => Some(NotOnnx::LightGbm),
        _ if bytes.starts_with(b"version https://git-lfs") => Some(NotOnnx::LfsPointer),
        _ => None,
    }
}

// Field numbers of onnx.proto3.
mod field {
    pub(super) const MODEL_IR_VERSION: u64 = 1;
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const GRAPH_NODE: u64 = 1;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const NODE_INPUT: u64 = 1;
    pub(super) const NODE_OP_TYPE: u64 = 4;
    pub(super) const NODE_ATTRIBUTE: u64 = 5;
    pub(super) const ATTRIBUTE_NAME: u64 = 1;
    pub(super) const ATTRIBUTE_INTS: u64 = 8;
    pub(super) const ATTRIBUTE_STRINGS: u64 = 9;
    pub(super) const TENSOR_DATA_TYPE: u64 = 2;
    pub(super) const TENSOR_INT32_DATA: u64 = 5;
    pub(super) const TENSOR_STRING_DATA: u64 = 6;
    pub(super) const TENSOR_INT64_DATA: u64 = 7;
    pub(super) const TENSOR_NAME: u64 = 8;
    pub(super) const TENSOR_RAW_DATA: u64 = 9;
    pub(super) const TENSOR_EXTERNAL_DATA: u64 = 13;
    pub(super) const TENSOR_DATA_LOCATION: u64 = 14;
}

/// `TensorProto.DataType` of the integers that class numbers are kept in.
const INT32: u64 = 6;
const INT64: u64 = 7;

fn read_model(bytes: &[u8]) -> Option<OnnxFile> {
    let mut budget = MAX_FIELDS;
    let (mut graph, mut has_version) = (None, false);
    for part in Fields::of(bytes) {
        match spend(&mut budget, part?)? {
            (field::MODEL_IR_VERSION, Wire::Number(_)) => has_version = true,
            (field::MODEL_GRAPH, Wire::Bytes(bytes)) => graph = Some(bytes),
            _ => (),
        }
    }
    if has_version { read_graph(graph?, &mut budget) } else { None }
}

fn read_graph(bytes: &[u8], budget: &mut usize) -> Option<OnnxFile> {
    let mut external_data = false;
    let mut tensors = BTreeMap::new();
    let mut by_attribute = None;
    let mut by_tensor = None;
    for part in Fields::of(bytes) {
        match spend(budget, part?)? {
            (field::GRAPH_INITIALIZER, Wire::Bytes(bytes)) => {
                let tensor = read_tensor(bytes, budget)?;
                external_data |= tensor.external;
                if let Some(classes) = tensor.classes {
                    tensors.insert(tensor.name, classes);
                }
            }
            (field::GRAPH_NODE, Wire::Bytes(bytes)) => match read_node(bytes, budget)? {
                // Later nodes stand nearer to the outputs.
                Names::Inline(classes) => by_attribute = Some(classes),
                Names::InTensor(name) => by_tensor = Some(name),
                Names::None => (),
            },
            _ => (),
        }
    }
    let classes = by_attribute.or_else(|| tensors.remove(by_tensor?));
    Some(OnnxFile { classes, external_data })
}

/// Where a node keeps class names.
enum Names<'a> {
    None,
    /// In an attribute, as tree ensembles, linear models and `ZipMap` do.
    Inline(Classes),
    /// In the initializer of this name, out of which the winner is picked.
    InTensor(&'a [u8]),
}

fn read_node<'a>(bytes: &'a [u8], budget: &mut usize) -> Option<Names<'a>> {
    let mut names = Names::None;
    let (mut first_input, mut picks) = (None, false);
    for part in Fields::of(bytes) {
        match spend(budget, part?)? {
            (field::NODE_INPUT, Wire::Bytes(input)) => first_input = first_input.or(Some(input)),
            (field::NODE_OP_TYPE, Wire::Bytes(op)) => picks = op == b"ArrayFeatureExtractor",
            (field::NODE_ATTRIBUTE, Wire::Bytes(attribute)) => {
                if let found @ Names::Inline(_) = read_attribute(attribute, budget)? {
                    names = found;
                }
            }
            _ => (),
        }
    }
    match (picks, first_input) {
        (true, Some(input)) => Some(Names::InTensor(input)),
        _ => Some(names),
    }
}

/// The classes, if this is the attribute that names them.
fn read_attribute(bytes: &[u8], budget: &mut usize) -> Option<Names<'static>> {
    let (mut list, mut is_it) = (List::default(), false);
    for part in Fields::of(bytes) {
        match spend(budget, part?)? {
            (field::ATTRIBUTE_NAME, Wire::Bytes(name)) => {
                is_it = name.starts_with(b"classlabels_");
                if !is_it {
                    return Some(Names::None);
                }
            }
            (field::ATTRIBUTE_INTS, value) => list.push_integers(value, budget)?,
            (field::ATTRIBUTE_STRINGS, Wire::Bytes(text)) => list.push_text(text)?,
            _ => (),
        }
    }
    Some(list.classes().filter(|_| is_it).map_or(Names::None, Names::Inline))
}

struct TensorSays<'a> {
    name: &'a [u8],
    external: bool,
    /// What it holds, if that may be class names: integers or texts, and not too many.
    classes: Option<Classes>,
}

fn read_tensor<'a>(bytes: &'a [u8], budget: &mut usize) -> Option<TensorSays<'a>> {
    let mut says = TensorSays { name: b"", external: false, classes: None };
    let (mut data_type, mut raw, mut list) = (0, None, List::default());
    for part in Fields::of(bytes) {
        match spend(budget, part?)? {
            (field::TENSOR_NAME, Wire::Bytes(name)) => says.name = name,
            (field::TENSOR_DATA_TYPE, Wire::Number(number)) => data_type = number,
            (field::TENSOR_RAW_DATA, Wire::Bytes(bytes)) => raw = Some(bytes),
            (field::TENSOR_INT32_DATA | field::TENSOR_INT64_DATA, value) => list.push_integers(value, budget)?,
            (field::TENSOR_STRING_DATA, Wire::Bytes(text)) => list.push_text(text)?,
            (field::TENSOR_EXTERNAL_DATA, _) | (field::TENSOR_DATA_LOCATION, Wire::Number(1)) => says.external = true,
            _ => (),
        }
    }
    says.classes = match (raw, data_type) {
        (Some(raw), INT32) => raw_integers(raw, i32::from_le_bytes),
        (Some(raw), INT64) => raw_integers(raw, i64::from_le_bytes),
        (Some(_), _) => None,
        (None, _) => list.classes(),
    };
    Some(says)
}

fn raw_integers<const N: usize, T: Into<i64>>(raw: &[u8], read: fn([u8; N]) -> T) -> Option<Classes> {
    let (chunks, rest) = raw.as_chunks::<N>();
    let few_enough = rest.is_empty() && chunks.len() <= MAX_CLASSES;
    few_enough.then(|| Classes::Integers(chunks.iter().map(|chunk| read(*chunk).into()).collect()))
}

/// What a repeated field holds, until there are too many to be classes.
#[derive(Default)]
struct List {
    integers: Vec<i64>,
    texts: Vec<Arc<str>>,
    too_many: bool,
}

impl List {
    fn push_integers(&mut self, value: Wire<'_>, budget: &mut usize) -> Option<()> {
        match value {
            Wire::Number(number) => self.push_integer(number),
            Wire::Bytes(mut packed) if !self.too_many => {
                while !packed.is_empty() {
                    *budget = budget.checked_sub(1)?;
                    self.push_integer(varint(&mut packed)?);
                }
            }
            Wire::Bytes(_) | Wire::Four(_) | Wire::Eight(_) => (),
        }
        Some(())
    }

    #[expect(clippy::cast_possible_wrap, reason = "protobuf writes negative numbers as their two's complement")]
    fn push_integer(&mut self, number: u64) {
        self.too_many |= self.integers.len() >= MAX_CLASSES;
        if !self.too_many {
            self.integers.push(number as i64);
        }
    }

    fn push_text(&mut self, bytes: &[u8]) -> Option<()> {
        self.too_many |= self.texts.len() >= MAX_CLASSES;
        if !self.too_many {
            self.texts.push(std::str::from_utf8(bytes).ok()?.into());
        }
        Some(())
    }

    fn classes(self) -> Option<Classes> {
        match self {
            Self { too_many: true, .. } => None,
            Self { texts, .. } if !texts.is_empty() => Some(Classes::Texts(texts)),
            Self { integers, .. } if !integers.is_empty() => Some(Classes::Integers(integers)),
            Self { .. } => None,
        }
    }
}

fn spend<'a>(budget: &mut usize, field: (u64, Wire<'a>)) -> Option<(u64, Wire<'a>)> {
    *budget = budget.checked_sub(1)?;
    Some(field)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fixture(kind: &str) -> Vec<u8> {
        std::fs::read(format!("{}/tests/fixtures/{kind}/model.onnx", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[track_caller]
    fn check_classes(kind: &str, expected: impl Into<Option<Classes>>) {
        assert_eq!(OnnxFile::read(&fixture(kind)).unwrap().classes, expected.into(), "{kind}");
    }

    fn texts(names: &[&str]) -> Classes {
        Classes::Texts(names.iter().map(|&name| name.into()).collect())
    }

    #[test]
    fn classes_are_named_wherever_exporters_keep_them() {
        check_classes("pipeline", texts(&["Good", "Poor", "Standard"]));
        check_classes("neural", texts(&["Good", "Poor", "Standard"]));
        check_classes("text-classes", texts(&["bad", "good"]));
        check_classes("lightgbm", Classes::Integers(vec![0, 1, 2]));
        check_classes("logistic", Classes::Integers(vec![0, 1, 2]));
        check_classes("regression", None);
        check_classes("sigmoid", None);
    }

    #[track_caller]
    fn check_refused(bytes: &[u8], expected: NotOnnx) {
        assert_eq!(OnnxFile::read(bytes), Err(expected));
    }

    #[test]
    fn what_people_log_by_mistake_is_called_by_its_name() {
        check_refused(b"", NotOnnx::Empty);
        check_refused(b"\x80\x05\x95\x10", NotOnnx::Pickle);
        check_refused(b"PK\x03\x04schema.json", NotOnnx::Zip);
        check_refused(b"{L\0\0\0\0\0\0\0\x07learner", NotOnnx::Xgboost);
        check_refused(b" {\"learner\": {}}", NotOnnx::Xgboost);
        check_refused(b"tree\nversion=v4\n", NotOnnx::LightGbm);
        check_refused(b"\n<!DOCTYPE html><html>", NotOnnx::WebPage);
        check_refused(b"version https://git-lfs.github.com/spec/v1", NotOnnx::LfsPointer);
        check_refused(b"\x89HDF\r\n\x1a\n", NotOnnx::Hdf5);
        check_refused(b"once upon a time", NotOnnx::Unknown);
        check_refused(&[8, 9], NotOnnx::Unknown);
    }

    #[test]
    fn weights_in_another_file_are_seen() {
        // ir_version, and a graph with one initializer whose data_location is EXTERNAL.
        assert!(OnnxFile::read(&[8, 9, 58, 4, 42, 2, 112, 1]).unwrap().external_data);
        assert!(!OnnxFile::read(&fixture("sigmoid")).unwrap().external_data);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = OnnxFile::read(&bytes);
        }

        #[test]
        fn a_damaged_model_gives_an_answer(at in any::<prop::sample::Index>(), byte in any::<u8>(), end in any::<prop::sample::Index>()) {
            let mut bytes = fixture("neural");
            let at = at.index(bytes.len());
            bytes[at] = byte;
            bytes.truncate(end.index(bytes.len() + 1));
            let _ = OnnxFile::read(&bytes);
        }
    }
}
