//! From rows of cells to the tensors a graph takes.
//!
//! Which cell goes into which tensor, and that each fits there, is settled when a version is loaded. One row, the usual
//! request, is written into tensors that a slot keeps; many rows get tensors of their own.

use std::fmt::Debug;
use std::sync::Arc;

use ort::session::SessionInputValue;
use ort::value::{DynValue, Outlet, PrimitiveTensorElementType, Tensor, TensorElementType, ValueType};

use super::{LoadError, PredictError};
use crate::model::features::{Cell, Feature, Features, FieldError, Inputs, InvalidInput, Target};
use crate::model::signature::{Column, Kind, Signature};

/// What feeds a graph's inputs.
#[derive(Debug)]
pub(super) struct Feed {
    /// In the order of the graph's inputs.
    ports: Box<[Port]>,
    /// The callers' names of the features, for what cannot be fed after all.
    fields: Box<[Arc<str>]>,
}

/// One input of the graph, and the cells of a row that fill it.
#[derive(Debug)]
struct Port {
    element: Element,
    /// The dimensions after the rows.
    shape: Box<[i64]>,
    sources: Box<[Source]>,
}

/// What fills one element of a row.
#[derive(Clone, Debug)]
struct Source {
    /// Its position in [`Features::list`].
    feature: usize,
    /// For a one-hot column: the category it stands for.
    category: Option<Arc<str>>,
}

/// The types a graph may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Element {
    Float,
    Double,
    Int32,
    Int64,
    Boolean,
    Text,
}

/// An input as the graph declares it.
struct GraphInput<'g> {
    name: &'g str,
    element: Element,
    /// The dimensions after the rows; `None` where any size is allowed.
    shape: Vec<Option<usize>>,
}

impl Feed {
    /// Brings a graph's inputs, the signature's columns and the features together.
    pub(super) fn new(graph: &[Outlet], signature: &Signature, features: &Features) -> Result<Self, LoadError> {
        let graph: Vec<GraphInput<'_>> = graph.iter().map(GraphInput::read).collect::<Result<_, _>>()?;
        let columns = flat(signature, features.columns());
        let sources = sources(features.list(), columns.len());
        let port = |input: &GraphInput<'_>| {
            let (range, shape) = input.takes(signature, &columns, graph.len())?;
            let sources = range.map(|at| input.check(&columns[at], sources[at].as_ref(), features.list()));
            Ok(Port { element: input.element, shape, sources: sources.collect::<Result<_, LoadError>>()? })
        };
        let ports = graph.iter().map(port).collect::<Result<Box<[Port]>, LoadError>>()?;
        // A graph with a single input has taken all of them.
        let is_taken = |column: &Column| graph.len() == 1 || graph.iter().any(|input| *input.name == *column.name);
        if let Some(column) = columns.iter().find(|column| !is_taken(column)) {
            return Err(LoadError::Untaken { column: column.name.to_string() });
        }
        let fields = features.list().iter().map(|feature| Arc::clone(&feature.field)).collect();
        Ok(Self { ports, fields })
    }

    /// Tensors for one row, to be filled by [`fill`](Self::fill).
    pub(super) fn blank(&self) -> ort::Result<Vec<SessionInputValue<'static>>> {
        self.ports.iter().map(|port| port.blank().map(SessionInputValue::Owned)).collect()
    }

    /// Writes the only row of `inputs` into what [`blank`](Self::blank) made.
    pub(super) fn fill(&self, tensors: &mut [SessionInputValue<'static>], inputs: &Inputs) -> Result<(), PredictError> {
        for (port, tensor) in self.ports.iter().zip(tensors) {
            let SessionInputValue::Owned(value) = tensor else { unreachable!("`blank` makes owned tensors") };
            match port.element {
                Element::Float => self.refill::<f32>(port, value, inputs)?,
                Element::Double => self.refill::<f64>(port, value, inputs)?,
                Element::Int32 => self.refill::<i32>(port, value, inputs)?,
                Element::Int64 => self.refill::<i64>(port, value, inputs)?,
                Element::Boolean => self.refill::<bool>(port, value, inputs)?,
                // A tensor of texts cannot be written to.
                Element::Text => *value = self.texts(port, inputs)?,
            }
        }
        Ok(())
    }

    /// Tensors that hold all rows of `inputs`.
    pub(super) fn tensors(&self, inputs: &Inputs) -> Result<Vec<SessionInputValue<'static>>, PredictError> {
        let tensor = |port: &Port| match port.element {
            Element::Float => self.numbers::<f32>(port, inputs),
            Element::Double => self.numbers::<f64>(port, inputs),
            Element::Int32 => self.numbers::<i32>(port, inputs),
            Element::Int64 => self.numbers::<i64>(port, inputs),
            Element::Boolean => self.numbers::<bool>(port, inputs),
            Element::Text => self.texts(port, inputs),
        };
        self.ports.iter().map(|port| tensor(port).map(SessionInputValue::Owned)).collect()
    }

    fn refill<T: Number>(&self, port: &Port, value: &mut DynValue, inputs: &Inputs) -> Result<(), PredictError> {
        let (_, data) = value.try_extract_tensor_mut::<T>().map_err(PredictError::runtime)?;
        self.write(port, data, inputs)
    }

    fn numbers<T: Number>(&self, port: &Port, inputs: &Inputs) -> Result<DynValue, PredictError> {
        let mut data = vec![T::default(); inputs.rows() * port.sources.len()];
        self.write(port, &mut data, inputs)?;
        let tensor = Tensor::from_array((port.dimensions(inputs.rows()), data));
        Ok(tensor.map_err(PredictError::runtime)?.into_dyn())
    }

    fn write<T: Number>(&self, port: &Port, data: &mut [T], inputs: &Inputs) -> Result<(), PredictError> {
        for (row, elements) in data.chunks_exact_mut(port.sources.len()).enumerate() {
            let cells = inputs.row(row);
            for (element, source) in elements.iter_mut().zip(&port.sources) {
                let cell = &cells[source.feature];
                *element = match &source.category {
                    None => T::of(cell).ok_or_else(|| self.misfit(row, source.feature, cell, T::EXPECTED))?,
                    Some(category) => T::hot(matches!(cell, Cell::Text(text) if text == category)),
                };
            }
        }
        Ok(())
    }

    fn texts(&self, port: &Port, inputs: &Inputs) -> Result<DynValue, PredictError> {
        let mut data = Vec::with_capacity(inputs.rows() * port.sources.len());
        for row in 0..inputs.rows() {
            let cells = inputs.row(row);
            for source in &port.sources {
                let cell = &cells[source.feature];
                data.push(text_of(cell).ok_or_else(|| self.misfit(row, source.feature, cell, "text without a NUL"))?);
            }
        }
        let tensor = Tensor::from_string_array((port.dimensions(inputs.rows()), data.as_slice()));
        Ok(tensor.map_err(PredictError::runtime)?.into_dyn())
    }

    /// A value that fits the signature, and not the type the graph has for it.
    #[cold]
    fn misfit(&self, row: usize, feature: usize, cell: &Cell, expected: &str) -> PredictError {
        let found = match cell {
            Cell::Missing => "nothing".to_owned(),
            Cell::Boolean(value) => value.to_string(),
            Cell::Integer(value) => value.to_string(),
            Cell::Float(value) => value.to_string(),
            Cell::Text(_) => "another text".to_owned(),
        };
        let feature = self.fields[feature].to_string();
        let error = FieldError { row, feature, expected: expected.to_owned(), found };
        PredictError::Input(InvalidInput { errors: vec![error], total: 1 })
    }
}

impl Port {
    fn dimensions(&self, rows: usize) -> Vec<i64> {
        let rows = i64::try_from(rows).expect("rows are in memory, so there are fewer than 2^63");
        std::iter::once(rows).chain(self.shape.iter().copied()).collect()
    }

    fn blank(&self) -> ort::Result<DynValue> {
        match self.element {
            Element::Float => self.zeros::<f32>(),
            Element::Double => self.zeros::<f64>(),
            Element::Int32 => self.zeros::<i32>(),
            Element::Int64 => self.zeros::<i64>(),
            Element::Boolean => self.zeros::<bool>(),
            Element::Text => {
                let texts = vec![String::new(); self.sources.len()];
                Ok(Tensor::from_string_array((self.dimensions(1), texts.as_slice()))?.into_dyn())
            }
        }
    }

    fn zeros<T: Number>(&self) -> ort::Result<DynValue> {
        Ok(Tensor::from_array((self.dimensions(1), vec![T::default(); self.sources.len()]))?.into_dyn())
    }
}

/// A number as a graph takes it.
trait Number: PrimitiveTensorElementType + Clone + Copy + Debug + Default + 'static {
    /// What a cell must be to become one, for error texts.
    const EXPECTED: &'static str;

    /// The cell, where it fits.
    fn of(cell: &Cell) -> Option<Self>;

    /// The value of a one-hot column.
    fn hot(is_it: bool) -> Self;
}

impl Number for f32 {
    const EXPECTED: &'static str = "a number of at most 3.4e38";

    // 32 bits are what the model was exported with; what is beyond them must not become infinity.
    #[expect(clippy::cast_possible_truncation, clippy::cast_precision_loss, reason = "the graph has 32 bits")]
    fn of(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Missing => Some(Self::NAN),
            Cell::Boolean(value) => Some(Self::hot(*value)),
            Cell::Integer(value) => Some(*value as Self),
            Cell::Float(value) => Some(*value as Self).filter(|value| value.is_finite()),
            Cell::Text(_) => None,
        }
    }

    fn hot(is_it: bool) -> Self {
        if is_it { 1.0 } else { 0.0 }
    }
}

impl Number for f64 {
    const EXPECTED: &'static str = "a number";

    #[expect(clippy::cast_precision_loss, reason = "the graph has 53 bits for integers")]
    fn of(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Missing => Some(Self::NAN),
            Cell::Boolean(value) => Some(Self::hot(*value)),
            Cell::Integer(value) => Some(*value as Self),
            Cell::Float(value) => Some(*value),
            Cell::Text(_) => None,
        }
    }

    fn hot(is_it: bool) -> Self {
        if is_it { 1.0 } else { 0.0 }
    }
}

impl Number for i64 {
    const EXPECTED: &'static str = "an integer";

    fn of(cell: &Cell) -> Option<Self> {
        match cell {
            Cell::Boolean(value) => Some(Self::from(*value)),
            Cell::Integer(value) => Some(*value),
            Cell::Missing | Cell::Float(_) | Cell::Text(_) => None,
        }
    }

    fn hot(is_it: bool) -> Self {
        Self::from(is_it)
    }
}

impl Number for i32 {
    const EXPECTED: &'static str = "an integer of 32 bits";

    fn of(cell: &Cell) -> Option<Self> {
        i64::of(cell).and_then(|value| value.try_into().ok())
    }

    fn hot(is_it: bool) -> Self {
        Self::from(is_it)
    }
}

impl Number for bool {
    const EXPECTED: &'static str = "true or false";

    fn of(cell: &Cell) -> Option<Self> {
        if let Cell::Boolean(value) = cell { Some(*value) } else { None }
    }

    fn hot(is_it: bool) -> Self {
        is_it
    }
}

/// A text, empty where it is missing. ONNX Runtime ends texts at the first NUL.
fn text_of(cell: &Cell) -> Option<Arc<str>> {
    match cell {
        Cell::Missing => Some(Arc::default()),
        Cell::Text(text) if !text.contains('\0') => Some(Arc::clone(text)),
        Cell::Text(_) | Cell::Boolean(_) | Cell::Integer(_) | Cell::Float(_) => None,
    }
}

/// The signature's columns one after the other, as [`Target`] counts them: `total` of them. The elements of a tensor are
/// columns of its name.
fn flat(signature: &Signature, total: usize) -> Vec<Column> {
    let elements = |tensor: &super::Tensor, width| {
        let element = Column { name: Arc::clone(&tensor.name), kind: tensor.kind, required: true };
        std::iter::repeat_n(element, width)
    };
    match signature {
        Signature::Columns(columns) => columns.clone(),
        // The settings may know the width where the tensor's shape leaves it open.
        Signature::Tensors(tensors) if tensors.len() == 1 => elements(&tensors[0], total).collect(),
        Signature::Tensors(tensors) => tensors.iter().flat_map(|tensor| elements(tensor, tensor.width())).collect(),
    }
}

/// What feeds each column, by the column's position.
fn sources(features: &[Feature], columns: usize) -> Vec<Option<Source>> {
    let mut sources = vec![None; columns];
    for (feature, description) in features.iter().enumerate() {
        match &description.target {
            Target::Column(at) => sources[*at] = Some(Source { feature, category: None }),
            Target::OneHot(categories) => {
                for (category, at) in categories {
                    sources[*at] = Some(Source { feature, category: Some(Arc::clone(category)) });
                }
            }
        }
    }
    sources
}

impl<'g> GraphInput<'g> {
    fn read(outlet: &'g Outlet) -> Result<Self, LoadError> {
        let name = outlet.name();
        let unsupported = || LoadError::InputType { input: name.to_owned(), found: outlet.dtype().to_string() };
        let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else { return Err(unsupported()) };
        let (rows, shape) = shape.split_first().ok_or_else(unsupported)?;
        if *rows >= 0 {
            return Err(LoadError::FixedRows { input: name.to_owned(), rows: *rows });
        }
        let element = Element::read(*ty).ok_or_else(unsupported)?;
        Ok(Self { name, element, shape: shape.iter().map(|size| usize::try_from(*size).ok()).collect() })
    }

    /// Which columns go in, by position, and in which shape. Columns are found by name; a graph with a single input takes
    /// all of them in the signature's order, whatever they are called.
    fn takes(
        &self,
        signature: &Signature,
        columns: &[Column],
        inputs: usize,
    ) -> Result<(std::ops::Range<usize>, Box<[i64]>), LoadError> {
        let range = if inputs == 1 {
            0..columns.len()
        } else {
            let first = columns.iter().position(|column| *column.name == *self.name);
            let first = first.ok_or_else(|| LoadError::Unfed { input: self.name.to_owned() })?;
            let count = columns[first..].iter().take_while(|column| *column.name == *self.name).count();
            first..first + count
        };
        let shape = match signature {
            Signature::Tensors(tensors) if tensors.len() == 1 || inputs > 1 => {
                let tensor = tensors.iter().find(|tensor| inputs == 1 || *tensor.name == *self.name);
                self.in_shape_of(tensor.map_or(&[], |tensor| &tensor.shape), range.len())
            }
            _ => self.in_one_row(range.len()),
        };
        let width = || LoadError::Width { input: self.name.to_owned(), takes: self.describe(), columns: range.len() };
        Ok((range.clone(), shape.ok_or_else(width)?))
    }

    /// The shape of a tensor of the signature, where the graph takes that.
    fn in_shape_of(&self, tensor: &[Option<usize>], width: usize) -> Option<Box<[i64]>> {
        if self.shape.len() != tensor.len() {
            return self.in_one_row(width);
        }
        let sizes = self.shape.iter().zip(tensor).map(|(graph, tensor)| match (graph, tensor) {
            (Some(graph), Some(tensor)) if graph != tensor => None,
            (Some(size), _) | (None, Some(size)) => i64::try_from(*size).ok(),
            (None, None) => Some(1),
        });
        let shape: Box<[i64]> = sizes.collect::<Option<_>>()?;
        let elements = shape.iter().try_fold(1_i64, |product, size| product.checked_mul(*size))?;
        (usize::try_from(elements) == Ok(width)).then_some(shape)
    }

    /// The shape of a row of `width` numbers, where the graph takes that.
    fn in_one_row(&self, width: usize) -> Option<Box<[i64]>> {
        match self.shape.as_slice() {
            [] if width == 1 => Some(Box::default()),
            [size] if size.is_none_or(|size| size == width) => Some([i64::try_from(width).ok()?].into()),
            _ => None,
        }
    }

    /// `[n, 21]`
    fn describe(&self) -> String {
        let size = |size: &Option<usize>| size.map_or(", ?".to_owned(), |size| format!(", {size}"));
        format!("[n{}]", self.shape.iter().map(size).collect::<String>())
    }

    /// That what feeds `column` fits the graph's type.
    fn check(&self, column: &Column, source: Option<&Source>, features: &[Feature]) -> Result<Source, LoadError> {
        let source = source.ok_or_else(|| LoadError::Unfed { input: column.name.to_string() })?;
        if !self.element.takes(column.kind) {
            let (column, input) = (column.name.to_string(), self.name.to_owned());
            return Err(LoadError::Type { column, input, takes: self.element.name() });
        }
        let feature = &features[source.feature];
        let can_be_missing = source.category.is_none() && !feature.required && feature.default.is_none();
        if can_be_missing && !self.element.has_gap() {
            return Err(LoadError::NoGap { feature: feature.name.to_string(), takes: self.element.name() });
        }
        Ok(source.clone())
    }
}

impl Element {
    fn read(found: TensorElementType) -> Option<Self> {
        match found {
            TensorElementType::Float32 => Some(Self::Float),
            TensorElementType::Float64 => Some(Self::Double),
            TensorElementType::Int32 => Some(Self::Int32),
            TensorElementType::Int64 => Some(Self::Int64),
            TensorElementType::Bool => Some(Self::Boolean),
            TensorElementType::String => Some(Self::Text),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Float => "float32",
            Self::Double => "float64",
            Self::Int32 => "int32",
            Self::Int64 => "int64",
            Self::Boolean => "bool",
            Self::Text => "string",
        }
    }

    /// What a column of this type is, where the registry has no signature.
    fn kind(self) -> Kind {
        match self {
            Self::Float => Kind::Float,
            Self::Double => Kind::Double,
            Self::Int32 => Kind::Integer,
            Self::Int64 => Kind::Long,
            Self::Boolean => Kind::Boolean,
            Self::Text => Kind::Text,
        }
    }

    /// Whether a column of `kind` may go in. Integers and doubles into float32 lose digits, and are what every exporter
    /// does; a fraction into an integer is a mistake.
    fn takes(self, kind: Kind) -> bool {
        match self {
            Self::Float | Self::Double => kind != Kind::Text,
            Self::Int64 => matches!(kind, Kind::Boolean | Kind::Integer | Kind::Long),
            Self::Int32 => matches!(kind, Kind::Boolean | Kind::Integer),
            Self::Boolean => kind == Kind::Boolean,
            Self::Text => kind == Kind::Text,
        }
    }

    /// Whether there is a value that means "missing".
    fn has_gap(self) -> bool {
        matches!(self, Self::Float | Self::Double | Self::Text)
    }
}

/// The signature a graph's own inputs make: a column for each, or the tensors they are.
pub(super) fn signature_of(graph: &[Outlet]) -> Result<Signature, LoadError> {
    let inputs: Vec<GraphInput<'_>> = graph.iter().map(GraphInput::read).collect::<Result<_, _>>()?;
    let is_column = |input: &GraphInput<'_>| matches!(input.shape.as_slice(), [] | [Some(1)]);
    if inputs.iter().all(is_column) {
        let column =
            |input: &GraphInput<'_>| Column { name: input.name.into(), kind: input.element.kind(), required: true };
        return Ok(Signature::Columns(inputs.iter().map(column).collect()));
    }
    let tensor = |input: GraphInput<'_>| super::Tensor {
        name: input.name.into(),
        kind: input.element.kind(),
        shape: input.shape,
    };
    Ok(Signature::Tensors(inputs.into_iter().map(tensor).collect()))
}
