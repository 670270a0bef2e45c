//! What a model file would do to whoever loads it, judged before anything does: a walk over its bytes, without ONNX
//! Runtime.
//!
//! ONNX Runtime recurses over a graph's functions and subgraphs and computes its constants while it loads: a file of
//! 38 KB can overflow its stack and one of 68 bytes can take gigabytes. The walk is linear in the file, follows
//! subgraphs to a fixed depth, never expands a function, and opens no other file. What it cannot see (a shape that is
//! computed, an operator that takes long) is left to the process that tries the version.

use std::collections::HashMap;
use std::fmt;

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::features::excerpt;
use super::onnx_file::{NotOnnx, OnnxFile};
use super::protobuf::{Fields, Wire, varint};

mod calls;
mod constant;

use calls::{Body, Calls};
use constant::{Constant, Held};

/// Model-local functions at most. Exporters write some hundred.
const MAX_FUNCTIONS: usize = 1_000;

/// How deep functions may call functions. ONNX Runtime recurses once a level.
const MAX_CALL_DEPTH: usize = 32;

/// How deep subgraphs may lie in subgraphs.
const MAX_NESTING: usize = 16;

/// Nodes at most, counting those of every function once for each place that calls it.
const MAX_NODES: u64 = 200_000;

/// The largest tensor that one node may make of constants alone, in bytes.
const MAX_MADE_BYTES: f64 = 268_435_456.0;

/// The operator sets that are served with; `ai.onnx` is the long name of the nameless one.
const DOMAINS: [&[u8]; 3] = [b"", b"ai.onnx", b"ai.onnx.ml"];

/// Fields between two looks at the clock.
const FIELDS_PER_LOOK: u32 = 1 << 16;

/// Why a file is refused before it is loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is something else.
    #[error("the model file is not ONNX: {0}")]
    NotOnnx(#[from] NotOnnx),
    /// It breaks a rule.
    #[error("{place} breaks the rule `{rule}`: {found}")]
    Breaks {
        /// The rule.
        rule: Rule,
        /// The node, function or tensor.
        place: String,
        /// What was found there.
        found: String,
    },
}

/// What a file must keep to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// Every message in it can be read to its end.
    Whole,
    /// Operators are ONNX's own, or functions of the model.
    Domains,
    /// At most 1,000 functions.
    Functions,
    /// Functions call each other at most 32 deep.
    CallDepth,
    /// No function calls itself.
    Cycle,
    /// Subgraphs lie at most 16 deep.
    Nesting,
    /// At most 200,000 nodes.
    Nodes,
    /// Tensors are as large as they say: what they declare without holding it is at most the size of the file.
    Initializers,
    /// No node makes more than 256 MiB of constants.
    Shapes,
    /// All weights are in the file.
    ExternalData,
    /// The scan ends in time.
    Time,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole => "the file is whole",
            Self::Domains => "operators of \"\", ai.onnx and ai.onnx.ml only",
            Self::Functions => "at most 1000 functions",
            Self::CallDepth => "functions call at most 32 deep",
            Self::Cycle => "no function calls itself",
            Self::Nesting => "subgraphs at most 16 deep",
            Self::Nodes => "at most 200000 nodes",
            Self::Initializers => "tensors hold what they declare",
            Self::Shapes => "constants make at most 256 MiB",
            Self::ExternalData => "all weights are in the model file",
            Self::Time => "the scan ends in time",
        })
    }
}

// Field numbers of onnx.proto3.
mod field {
    pub(super) const MODEL_GRAPH: u64 = 7;
    pub(super) const MODEL_OPSET: u64 = 8;
    pub(super) const MODEL_TRAINING: u64 = 20;
    pub(super) const MODEL_FUNCTION: u64 = 25;
    pub(super) const GRAPH_NODE: u64 = 1;
    pub(super) const GRAPH_INITIALIZER: u64 = 5;
    pub(super) const GRAPH_SPARSE: u64 = 15;
    pub(super) const SPARSE_VALUES: u64 = 1;
    pub(super) const SPARSE_INDICES: u64 = 2;
    pub(super) const NODE_INPUT: u64 = 1;
    pub(super) const NODE_OUTPUT: u64 = 2;
    pub(super) const NODE_NAME: u64 = 3;
    pub(super) const NODE_OP_TYPE: u64 = 4;
    pub(super) const NODE_ATTRIBUTE: u64 = 5;
    pub(super) const NODE_DOMAIN: u64 = 7;
    pub(super) const NODE_OVERLOAD: u64 = 8;
    pub(super) const FUNCTION_NAME: u64 = 1;
    pub(super) const FUNCTION_NODE: u64 = 7;
    pub(super) const FUNCTION_DOMAIN: u64 = 10;
    pub(super) const FUNCTION_ATTRIBUTE: u64 = 11;
    pub(super) const FUNCTION_OVERLOAD: u64 = 13;
    pub(super) const ATTRIBUTE_NAME: u64 = 1;
    pub(super) const ATTRIBUTE_FLOAT: u64 = 2;
    pub(super) const ATTRIBUTE_INTEGER: u64 = 3;
    pub(super) const ATTRIBUTE_TENSOR: u64 = 5;
    pub(super) const ATTRIBUTE_GRAPH: u64 = 6;
    pub(super) const ATTRIBUTE_FLOATS: u64 = 7;
    pub(super) const ATTRIBUTE_INTEGERS: u64 = 8;
    pub(super) const ATTRIBUTE_TENSORS: u64 = 10;
    pub(super) const ATTRIBUTE_GRAPHS: u64 = 11;
    pub(super) const ATTRIBUTE_SPARSE: u64 = 22;
    pub(super) const ATTRIBUTE_SPARSES: u64 = 23;
    pub(super) const TENSOR_DIMS: u64 = 1;
    pub(super) const TENSOR_DATA_TYPE: u64 = 2;
    pub(super) const TENSOR_FLOATS: u64 = 4;
    pub(super) const TENSOR_INT32S: u64 = 5;
    pub(super) const TENSOR_STRINGS: u64 = 6;
    pub(super) const TENSOR_INT64S: u64 = 7;
    pub(super) const TENSOR_NAME: u64 = 8;
    pub(super) const TENSOR_RAW: u64 = 9;
    pub(super) const TENSOR_DOUBLES: u64 = 10;
    pub(super) const TENSOR_UINT64S: u64 = 11;
    pub(super) const TENSOR_EXTERNAL: u64 = 13;
    pub(super) const TENSOR_LOCATION: u64 = 14;
    pub(super) const ENTRY_KEY: u64 = 1;
    pub(super) const ENTRY_VALUE: u64 = 2;
}

/// Judges a model file. Looks at nothing but `bytes`, and at most until `deadline`.
///
/// # Errors
/// When it breaks a rule; says which, and where.
pub fn scan(bytes: &[u8], deadline: Instant) -> Result<(), Refusal> {
    OnnxFile::read(bytes)?;
    let mut scan = Scan {
        deadline,
        fields: 0,
        nodes: 0,
        unbacked: 0,
        file_bytes: bytes.len() as u64,
        functions: HashMap::default(),
        scopes: Vec::new(),
    };
    scan.model(bytes)
}

/// What calls a function: domain, name and overload.
type FunctionKey<'a> = (&'a [u8], &'a [u8], &'a [u8]);

struct Scan<'a> {
    deadline: Instant,
    fields: u32,
    nodes: u64,
    /// Bytes that tensors declare and do not hold.
    unbacked: u64,
    file_bytes: u64,
    /// The model's functions, by their position.
    functions: HashMap<FunctionKey<'a>, usize, RandomState>,
    /// The constants by name that are in sight, the innermost graph's last.
    scopes: Vec<HashMap<&'a [u8], Constant, RandomState>>,
}

/// The parts of a node that are judged.
#[derive(Default)]
struct Node<'a> {
    name: &'a [u8],
    op: &'a [u8],
    domain: &'a [u8],
    overload: &'a [u8],
    inputs: Vec<&'a [u8]>,
    output: &'a [u8],
    attributes: Vec<&'a [u8]>,
}

/// The inputs of a node that are kept: no operator that is judged takes more.
const INPUTS_KEPT: usize = 4;

impl Node<'_> {
    fn place(&self) -> String {
        format!("node `{}` ({})", printable(self.name), printable(self.op))
    }
}

impl<'a> Scan<'a> {
    fn model(&mut self, bytes: &'a [u8]) -> Result<(), Refusal> {
        let (mut graphs, mut functions, mut has_opset) = (Vec::new(), Vec::new(), false);
        for part in Fields::of(bytes) {
            match self.part(part)? {
                (field::MODEL_GRAPH, Wire::Bytes(graph)) => graphs.push(graph),
                (field::MODEL_FUNCTION, Wire::Bytes(function)) => functions.push(function),
                (field::MODEL_OPSET, _) => has_opset = true,
                (field::MODEL_TRAINING, _) => return Err(breaks(Rule::Whole, "the model", "it holds a training step")),
                _ => (),
            }
        }
        if !has_opset {
            return Err(breaks(Rule::Whole, "the model", "it names no operator set; it may have been cut short"));
        }
        if functions.len() > MAX_FUNCTIONS {
            return Err(breaks(Rule::Functions, "the model", &format!("it has {}", functions.len())));
        }
        let names = self.name_functions(&functions)?;
        let mut calls = Calls::new(names);
        for (at, function) in functions.iter().enumerate() {
            calls.bodies[at] = self.function(function)?;
        }
        for graph in graphs {
            let mut main = Body::default();
            self.graph(graph, 0, &mut main)?;
            calls.check(&main)?;
        }
        Ok(())
    }

    fn name_functions(&mut self, functions: &[&'a [u8]]) -> Result<Vec<String>, Refusal> {
        let mut names = Vec::with_capacity(functions.len());
        for (at, bytes) in functions.iter().enumerate() {
            let (mut domain, mut name, mut overload): FunctionKey<'a> = (b"", b"", b"");
            for part in Fields::of(bytes) {
                match self.part(part)? {
                    (field::FUNCTION_NAME, Wire::Bytes(text)) => name = text,
                    (field::FUNCTION_DOMAIN, Wire::Bytes(text)) => domain = text,
                    (field::FUNCTION_OVERLOAD, Wire::Bytes(text)) => overload = text,
                    _ => (),
                }
            }
            self.functions.insert((short(domain), name, overload), at);
            names.push(printable(name));
        }
        Ok(names)
    }

    fn function(&mut self, bytes: &'a [u8]) -> Result<Body, Refusal> {
        let mut body = Body::default();
        self.scopes.push(HashMap::default());
        for part in Fields::of(bytes) {
            match self.part(part)? {
                (field::FUNCTION_NODE, Wire::Bytes(node)) => self.node(node, 0, &mut body)?,
                (field::FUNCTION_ATTRIBUTE, Wire::Bytes(attribute)) => {
                    self.attribute(attribute, 0, &mut body, &Node::default())?;
                }
                _ => (),
            }
        }
        self.scopes.pop();
        Ok(body)
    }

    /// A graph and all that lies in it; what it calls goes into `body`.
    fn graph(&mut self, bytes: &'a [u8], depth: usize, body: &mut Body) -> Result<(), Refusal> {
        self.scopes.push(HashMap::default());
        // Initializers stand after the nodes that use them.
        for part in Fields::of(bytes) {
            match self.part(part)? {
                (field::GRAPH_INITIALIZER, Wire::Bytes(tensor)) => {
                    let (name, constant) = self.tensor(tensor)?;
                    self.bind(name, constant);
                }
                (field::GRAPH_SPARSE, Wire::Bytes(sparse)) => self.sparse_tensor(sparse)?,
                _ => (),
            }
        }
        for part in Fields::of(bytes) {
            if let (field::GRAPH_NODE, Wire::Bytes(node)) = self.part(part)? {
                self.node(node, depth, body)?;
            }
        }
        self.scopes.pop();
        Ok(())
    }

    fn node(&mut self, bytes: &'a [u8], depth: usize, body: &mut Body) -> Result<(), Refusal> {
        let node = self.read_node(bytes)?;
        self.nodes += 1;
        body.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(breaks(Rule::Nodes, &node.place(), "it is one too many"));
        }
        let domain = short(node.domain);
        if let Some(function) = self.functions.get(&(domain, node.op, node.overload)) {
            body.calls.push(*function);
        } else if !DOMAINS.contains(&domain) {
            let found = format!("its operator is of the domain `{}`", printable(domain));
            return Err(breaks(Rule::Domains, &node.place(), &found));
        }
        let mut value = None;
        for attribute in &node.attributes {
            value = self.attribute(attribute, depth, body, &node)?.or(value);
        }
        if domain.is_empty() {
            self.judge_size(&node, value.as_ref())?;
            if let (b"Constant", Some(constant)) = (node.op, value) {
                self.bind(node.output, constant);
            }
        }
        Ok(())
    }

    fn read_node(&mut self, bytes: &'a [u8]) -> Result<Node<'a>, Refusal> {
        let mut node = Node::default();
        for part in Fields::of(bytes) {
            match self.part(part)? {
                (field::NODE_INPUT, Wire::Bytes(name)) if node.inputs.len() < INPUTS_KEPT => node.inputs.push(name),
                (field::NODE_OUTPUT, Wire::Bytes(name)) if node.output.is_empty() => node.output = name,
                (field::NODE_NAME, Wire::Bytes(name)) => node.name = name,
                (field::NODE_OP_TYPE, Wire::Bytes(op)) => node.op = op,
                (field::NODE_DOMAIN, Wire::Bytes(domain)) => node.domain = domain,
                (field::NODE_OVERLOAD, Wire::Bytes(overload)) => node.overload = overload,
                (field::NODE_ATTRIBUTE, Wire::Bytes(attribute)) => node.attributes.push(attribute),
                _ => (),
            }
        }
        Ok(node)
    }

    /// Follows what lies in an attribute; returns the constant it is, where its name says it is one.
    fn attribute(
        &mut self,
        bytes: &'a [u8],
        depth: usize,
        body: &mut Body,
        node: &Node<'a>,
    ) -> Result<Option<Constant>, Refusal> {
        let (mut name, mut tensor, mut held): (&[u8], _, _) = (b"", None, Held::default());
        for part in Fields::of(bytes) {
            match self.part(part)? {
                (field::ATTRIBUTE_NAME, Wire::Bytes(text)) => name = text,
                (field::ATTRIBUTE_TENSOR, Wire::Bytes(value)) => tensor = Some(self.tensor(value)?.1),
                (field::ATTRIBUTE_TENSORS, Wire::Bytes(value)) => drop(self.tensor(value)?),
                (field::ATTRIBUTE_SPARSE | field::ATTRIBUTE_SPARSES, Wire::Bytes(sparse)) => {
                    self.sparse_tensor(sparse)?;
                }
                (field::ATTRIBUTE_GRAPH | field::ATTRIBUTE_GRAPHS, Wire::Bytes(graph)) => {
                    if depth == MAX_NESTING {
                        return Err(breaks(Rule::Nesting, &node.place(), "its subgraph lies deeper"));
                    }
                    self.graph(graph, depth + 1, body)?;
                }
                (field::ATTRIBUTE_INTEGER | field::ATTRIBUTE_INTEGERS, value) => held.integers(value),
                (field::ATTRIBUTE_FLOAT | field::ATTRIBUTE_FLOATS, value) => held.floats(value),
                _ => (),
            }
        }
        let is_constant = name.starts_with(b"value") || matches!(name, b"pads" | b"scales" | b"repeats");
        Ok(tensor.or_else(|| Some(held.into_constant())).filter(|_| is_constant))
    }

    fn sparse_tensor(&mut self, bytes: &'a [u8]) -> Result<(), Refusal> {
        for part in Fields::of(bytes) {
            if let (field::SPARSE_VALUES | field::SPARSE_INDICES, Wire::Bytes(tensor)) = self.part(part)? {
                self.tensor(tensor)?;
            }
        }
        Ok(())
    }

    fn tensor(&mut self, bytes: &'a [u8]) -> Result<(&'a [u8], Constant), Refusal> {
        let (mut name, mut data_type, mut dims): (&[u8], u64, _) = (b"", 0, Held::default());
        let (mut held, mut external, mut raw) = (Held::default(), None, None);
        for part in Fields::of(bytes) {
            match self.part(part)? {
                (field::TENSOR_NAME, Wire::Bytes(text)) => name = text,
                (field::TENSOR_DATA_TYPE, Wire::Number(number)) => data_type = number,
                (field::TENSOR_DIMS, value) => dims.integers(value),
                (field::TENSOR_RAW, Wire::Bytes(data)) => raw = Some(data),
                (field::TENSOR_INT32S | field::TENSOR_INT64S | field::TENSOR_UINT64S, value) => held.integers(value),
                (field::TENSOR_FLOATS, value) => held.floats(value),
                (field::TENSOR_DOUBLES, value) => held.doubles(value),
                (field::TENSOR_STRINGS, _) => held.count += 1,
                (field::TENSOR_EXTERNAL, Wire::Bytes(entry)) => external = self.location(entry)?.or(external),
                (field::TENSOR_LOCATION, Wire::Number(1)) => external = external.or(Some(b"")),
                _ => (),
            }
        }
        let place = format!("tensor `{}`", printable(name));
        if let Some(location) = external {
            let found = format!("it is in `{}`; log the model with save_as_external_data=False", printable(location));
            return Err(breaks(Rule::ExternalData, &place, &found));
        }
        let constant = Constant::new(data_type, dims, held, raw);
        let constant = constant.map_err(|found| breaks(Rule::Initializers, &place, found))?;
        self.unbacked = self.unbacked.saturating_add(constant.unbacked());
        if self.unbacked > self.file_bytes {
            let found = format!("with it, tensors declare {} bytes more than they hold", self.unbacked);
            return Err(breaks(Rule::Initializers, &place, &found));
        }
        Ok((name, constant))
    }

    /// The file an entry of `external_data` names; the empty name where it says something else of it.
    fn location(&mut self, entry: &'a [u8]) -> Result<Option<&'a [u8]>, Refusal> {
        let (mut key, mut value): (&[u8], &[u8]) = (b"", b"");
        for part in Fields::of(entry) {
            match self.part(part)? {
                (field::ENTRY_KEY, Wire::Bytes(text)) => key = text,
                (field::ENTRY_VALUE, Wire::Bytes(text)) => value = text,
                _ => (),
            }
        }
        Ok((key == b"location").then_some(value))
    }

    /// Refuses a node that makes a large tensor out of nothing but constants.
    fn judge_size(&self, node: &Node<'a>, value: Option<&Constant>) -> Result<(), Refusal> {
        let input = |at: usize| node.inputs.get(at).and_then(|name| self.constant(name));
        let made = match node.op {
            b"ConstantOfShape" => input(0).map(|shape| shape.product() * value.map_or(4.0, Constant::element_bytes)),
            b"Expand" => input(1).map(|shape| shape.product() * element_bytes(input(0))),
            b"Tile" => input(1).or(value).map(|repeats| repeats.product() * bytes_of(input(0))),
            b"Range" => range_bytes(input(0), input(1), input(2)),
            b"Pad" => input(1).or(value).map(|pads| padded_bytes(input(0), pads)),
            b"Resize" | b"Upsample" => {
                let scales = input(if node.inputs.len() == 2 { 1 } else { 2 }).or(value);
                let enlarged = scales.map(|scales| scales.product() * bytes_of(input(0)));
                input(3).map(|sizes| sizes.product() * element_bytes(input(0))).or(enlarged)
            }
            _ => None,
        };
        match made {
            Some(bytes) if bytes > MAX_MADE_BYTES => {
                let found = format!("it makes {:.0} MiB", (bytes / 1_048_576.0).min(1e12));
                Err(breaks(Rule::Shapes, &node.place(), &found))
            }
            _ => Ok(()),
        }
    }

    fn constant(&self, name: &[u8]) -> Option<&Constant> {
        self.scopes.iter().rev().find_map(|scope| scope.get(name))
    }

    fn bind(&mut self, name: &'a [u8], constant: Constant) {
        if let Some(scope) = self.scopes.last_mut() {
            scope.insert(name, constant);
        }
    }

    /// A field, while there is time and the bytes are whole.
    fn part(&mut self, part: Option<(u64, Wire<'a>)>) -> Result<(u64, Wire<'a>), Refusal> {
        self.fields += 1;
        if self.fields == FIELDS_PER_LOOK {
            self.fields = 0;
            if Instant::now() > self.deadline {
                return Err(breaks(Rule::Time, "the model", "it has too many parts"));
            }
        }
        part.ok_or_else(|| breaks(Rule::Whole, "the model", "a part of it breaks off"))
    }
}

fn breaks(rule: Rule, place: &str, found: &str) -> Refusal {
    Refusal::Breaks { rule, place: place.to_owned(), found: found.to_owned() }
}

/// A domain under its short name.
fn short(domain: &[u8]) -> &[u8] {
    if domain == b"ai.onnx" { b"" } else { domain }
}

fn printable(text: &[u8]) -> String {
    excerpt(&String::from_utf8_lossy(text), 80)
}

/// Bytes of one element; those of a float where nothing is known.
fn element_bytes(tensor: Option<&Constant>) -> f64 {
    tensor.map_or(4.0, Constant::element_bytes)
}

/// Bytes of a tensor; those of one element where nothing is known.
fn bytes_of(tensor: Option<&Constant>) -> f64 {
    tensor.map_or(4.0, |tensor| tensor.elements() * tensor.element_bytes())
}

fn range_bytes(start: Option<&Constant>, limit: Option<&Constant>, step: Option<&Constant>) -> Option<f64> {
    let (start, limit, step) = (start?.first()?, limit?.first()?, step?.first()?);
    Some(((limit - start) / step).max(0.0) * 8.0)
}

/// Bytes of `data` after padding; where nothing is known of it, of one element padded.
fn padded_bytes(data: Option<&Constant>, pads: &Constant) -> f64 {
    let (before, after) = pads.values.split_at(pads.values.len() / 2);
    let size = |at: usize| data.and_then(|data| data.dims.get(at)).copied().unwrap_or(1.0);
    let padded = before.iter().zip(after).enumerate().map(|(at, (one, other))| (size(at) + one + other).max(1.0));
    padded.product::<f64>() * element_bytes(data)
}

#[cfg(test)]
mod tests;
