//! ONNX files no exporter writes, put together byte by byte.

/// A model with the nodes `nodes`, the initializers and other fields of the graph `rest`, and `functions`.
pub(crate) fn model(nodes: &[Vec<u8>], rest: &[Vec<u8>], functions: &[Vec<u8>]) -> Vec<u8> {
    let nodes: Vec<u8> = nodes.iter().flat_map(|node| bytes(1, node)).collect();
    [number(1, 9), bytes(8, &number(2, 18)), bytes(7, &[nodes, rest.concat()].concat()), functions.concat()].concat()
}

/// `op` of `domain` on `inputs`.
pub(crate) fn node(domain: &str, op: &str, inputs: &[&str]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
    let names = [bytes(2, b"out"), bytes(3, b"culprit"), bytes(4, op.as_bytes()), bytes(7, domain.as_bytes())];
    [inputs, names.concat()].concat()
}

/// A function of the model, in the domain `own`.
pub(crate) fn function(name: &str, nodes: &[Vec<u8>]) -> Vec<u8> {
    let nodes: Vec<u8> = nodes.iter().flat_map(|node| bytes(7, node)).collect();
    bytes(25, &[bytes(1, name.as_bytes()), bytes(4, b"in"), bytes(5, b"out"), bytes(10, b"own"), nodes].concat())
}

/// An initializer of one 64-bit integer.
pub(crate) fn integer(name: &str, value: i64) -> Vec<u8> {
    integers(name, &[value])
}

/// An initializer whose data is in the file at `location`.
pub(crate) fn elsewhere(location: &str) -> Vec<u8> {
    let entry = [bytes(1, b"location"), bytes(2, location.as_bytes())].concat();
    bytes(5, &[number(1, 1), number(2, 1), bytes(8, b"w"), bytes(13, &entry), number(14, 1)].concat())
}

/// Functions that call each other, `length` deep: 700 of them end a process that loads them on a stack of 2 MiB.
pub(crate) fn chain(length: usize) -> Vec<u8> {
    let called = |at: usize| {
        let is_last = at + 1 == length;
        if is_last { node("", "Identity", &["in"]) } else { node("own", &format!("f{}", at + 1), &["in"]) }
    };
    let functions: Vec<_> = (0..length).map(|at| function(&format!("f{at}"), &[called(at)])).collect();
    model(&[node("own", "f0", &["in"])], &[], &functions)
}

/// A node in subgraphs, `depth` of them around it.
pub(crate) fn nested(depth: usize) -> Vec<u8> {
    let mut inner = node("", "Identity", &["in"]);
    for _ in 0..depth {
        let branch = attribute("then_branch", 5, &bytes(6, &bytes(1, &inner)));
        inner = [node("", "If", &["in"]), branch].concat();
    }
    model(&[inner], &[], &[])
}

/// An initializer that declares `dims` and holds eight bytes.
pub(crate) fn hollow(dims: &[u64]) -> Vec<u8> {
    let dims: Vec<u8> = dims.iter().flat_map(|size| number(1, *size)).collect();
    bytes(5, &[dims, number(2, 1), bytes(8, b"w"), bytes(9, &[0; 8])].concat())
}

/// A whole model that asks for operators nobody has yet.
pub(crate) fn of_the_future() -> Vec<u8> {
    [number(1, 9), bytes(8, &number(2, 999)), bytes(7, &bytes(1, &node("", "Identity", &["in"])))].concat()
}

/// A model with so many inputs.
pub(crate) fn with_inputs(count: usize) -> Vec<u8> {
    let inputs: Vec<Vec<u8>> =
        (0..count).map(|at| bytes(11, &tensor_of_floats(&format!("input{at}"), &[None, Some(1)]))).collect();
    model(&[node("", "Identity", &["input0"])], &[inputs.concat(), bytes(12, &tensor_of_floats("out", &[None]))], &[])
}

/// A model that answers as the fixture `sum` does, `base` plus the sum of the row, and carries `weights` besides.
pub(crate) fn sum_with(base: f32, weights: &Weights) -> Vec<u8> {
    let (mut nodes, mut constants) = (Vec::new(), vec![integers("axes", &[1]), floats("base", &[base])]);
    nodes.push(op("", "ReduceSum", &["row", "axes"], "sum", &[attribute_integers("keepdims", &[0])]));
    let mut terms = vec!["sum".to_owned(), "base".to_owned()];
    match weights {
        Weights::Dense { tensors, floats: count } => {
            // Which element is looked up depends on the row, so that nothing is folded away.
            constants.push(floats("zero", &[0.0]));
            nodes.push(op("", "Mul", &["sum", "zero"], "nothing", &[]));
            nodes.push(op("", "Cast", &["nothing"], "first", &[attribute_integers("to", &[7])]));
            for tensor in 0..*tensors {
                let (weight, found) = (format!("weight{tensor}"), format!("found{tensor}"));
                constants.push(floats(&weight, &vec![0.0; *count]));
                nodes.push(op("", "Gather", &[&weight, "first"], &found, &[]));
                terms.push(found);
            }
        }
        Weights::Computed { floats } => {
            constants.extend([integers("half", &[floats / 2]), integers("two", &[2])]);
            nodes.push(op("", "Mul", &["half", "two"], "size", &[]));
            nodes.push(op("", "ConstantOfShape", &["size"], "zeros", &[]));
            nodes.push(op("", "ReduceSum", &["zeros"], "nothing", &[attribute_integers("keepdims", &[0])]));
            terms.push("nothing".to_owned());
        }
        Weights::Trees { trees, depth } => {
            nodes.push(forest(*trees, *depth));
            nodes.push(op("", "Squeeze", &["score", "axes"], "scores", &[]));
            terms.push("scores".to_owned());
        }
    }
    let terms: Vec<&str> = terms.iter().map(String::as_str).collect();
    nodes.push(op("", "Sum", &terms, "total", &[]));
    let nodes = nodes.iter().flat_map(|node| bytes(1, node)).collect();
    let ends = [bytes(11, &tensor_of_floats("row", &[None, Some(3)])), bytes(12, &tensor_of_floats("total", &[None]))];
    let graph = [nodes, bytes(2, b"sum"), constants.concat(), ends.concat()].concat();
    let operators = [bytes(8, &number(2, 18)), bytes(8, &[bytes(1, b"ai.onnx.ml"), number(2, 3)].concat())];
    [number(1, 9), operators.concat(), bytes(7, &graph)].concat()
}

/// What makes a model large.
pub(crate) enum Weights {
    /// So many tensors of so many numbers.
    Dense { tensors: usize, floats: usize },
    /// One tensor of so many zeros, whose size the graph computes.
    Computed { floats: i64 },
    /// So many whole trees, whose leaves are all zero.
    Trees { trees: usize, depth: u32 },
}

/// A regressor of whole binary trees over three features.
fn forest(trees: usize, depth: u32) -> Vec<u8> {
    let (nodes, inner) = ((1_i64 << (depth + 1)) - 1, (1_i64 << depth) - 1);
    let all = || (0..trees).flat_map(move |tree| (0..nodes).map(move |node| (i64::try_from(tree).unwrap(), node)));
    let leaves = || all().filter(move |(_, node)| *node >= inner);
    let child = move |side: i64| all().map(move |(_, node)| if node < inner { 2 * node + side } else { 0 });
    let integers =
        |name: &str, values: &mut dyn Iterator<Item = i64>| attribute_integers(name, &values.collect::<Vec<_>>());
    let modes: Vec<u8> =
        all().flat_map(|(_, node)| bytes(9, if node < inner { b"BRANCH_LEQ" } else { b"LEAF" })).collect();
    let attributes = [
        integers("nodes_treeids", &mut all().map(|(tree, _)| tree)),
        integers("nodes_nodeids", &mut all().map(|(_, node)| node)),
        integers("nodes_featureids", &mut all().map(|(_, node)| node % 3)),
        integers("nodes_truenodeids", &mut child(1)),
        integers("nodes_falsenodeids", &mut child(2)),
        attribute_floats(
            "nodes_values",
            all().map(|(tree, node)| f32::from(i8::try_from((tree * 7 + node * 13) % 100).unwrap())),
        ),
        attribute("nodes_modes", 8, &modes),
        integers("target_treeids", &mut leaves().map(|(tree, _)| tree)),
        integers("target_nodeids", &mut leaves().map(|(_, node)| node)),
        integers("target_ids", &mut leaves().map(|_| 0)),
        attribute_floats("target_weights", leaves().map(|_| 0.0)),
        attribute("n_targets", 2, &number(3, 1)),
    ];
    op("ai.onnx.ml", "TreeEnsembleRegressor", &["row"], "score", &attributes)
}

/// `op` of `domain` from `inputs` to `output`.
fn op(domain: &str, op: &str, inputs: &[&str], output: &str, attributes: &[Vec<u8>]) -> Vec<u8> {
    let inputs: Vec<u8> = inputs.iter().flat_map(|input| bytes(1, input.as_bytes())).collect();
    let names = [bytes(2, output.as_bytes()), bytes(4, op.as_bytes()), bytes(7, domain.as_bytes())];
    [inputs, names.concat(), attributes.concat()].concat()
}

/// An attribute of a node: `kind` is its type's number, `value` its fields.
fn attribute(name: &str, kind: u64, value: &[u8]) -> Vec<u8> {
    bytes(5, &[bytes(1, name.as_bytes()), value.to_vec(), number(20, kind)].concat())
}

/// One integer is an integer, several are a list, as ONNX tells them apart.
fn attribute_integers(name: &str, values: &[i64]) -> Vec<u8> {
    let value =
        |field| values.iter().flat_map(|value| number(field, u64::try_from(*value).unwrap())).collect::<Vec<_>>();
    if values.len() == 1 { attribute(name, 2, &value(3)) } else { attribute(name, 7, &value(8)) }
}

fn attribute_floats(name: &str, values: impl Iterator<Item = f32>) -> Vec<u8> {
    let packed: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
    attribute(name, 6, &bytes(7, &packed))
}

/// An initializer of 64-bit integers.
pub(crate) fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes(5, &[number(1, values.len() as u64), number(2, 7), bytes(8, name.as_bytes()), bytes(9, &raw)].concat())
}

fn floats(name: &str, values: &[f32]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes(5, &[number(1, values.len() as u64), number(2, 1), bytes(8, name.as_bytes()), bytes(9, &raw)].concat())
}

/// The name and type of an input or output; `None` is a dimension left open.
fn tensor_of_floats(name: &str, shape: &[Option<u64>]) -> Vec<u8> {
    let dimension = |size: &Option<u64>| bytes(1, &size.map_or_else(Vec::new, |size| number(1, size)));
    let shape: Vec<u8> = shape.iter().flat_map(dimension).collect();
    let tensor = [number(1, 1), bytes(2, &shape)].concat();
    [bytes(1, name.as_bytes()), bytes(2, &bytes(1, &tensor))].concat()
}

fn bytes(field: u64, content: &[u8]) -> Vec<u8> {
    [varint(field << 3 | 2), varint(content.len() as u64), content.to_vec()].concat()
}

fn number(field: u64, value: u64) -> Vec<u8> {
    [varint(field << 3), varint(value)].concat()
}

fn varint(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}
