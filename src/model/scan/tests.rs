//! Every rule at its limit and one above it, and damage of every kind.

use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// Writes a message's fields: `number` with the wire type of bytes.
fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
    let mut out = varint_of(number << 3 | 2);
    out.extend(varint_of(content.len() as u64));
    out.extend(content);
    out
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut out = varint_of(field << 3);
    out.extend(varint_of(value));
    out
}

fn varint_of(mut value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while value >= 0x80 {
        out.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    out.push(u8::try_from(value).unwrap());
    out
}

fn node(domain: &str, op: &str, inputs: &[&str], rest: &[Vec<u8>]) -> Vec<u8> {
    let mut out: Vec<u8> = inputs.iter().flat_map(|name| bytes(1, name.as_bytes())).collect();
    out.extend(bytes(2, b"out"));
    out.extend(bytes(3, b"culprit"));
    out.extend(bytes(4, op.as_bytes()));
    out.extend(bytes(7, domain.as_bytes()));
    out.extend(rest.concat());
    out
}

fn attribute(name: &str, value: &[u8]) -> Vec<u8> {
    bytes(5, &[bytes(1, name.as_bytes()), value.to_vec()].concat())
}

/// An initializer of 64-bit integers, in raw data.
fn integers(name: &str, values: &[i64]) -> Vec<u8> {
    let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    bytes(5, &[number(1, values.len() as u64), number(2, 7), bytes(8, name.as_bytes()), bytes(9, &raw)].concat())
}

fn function(name: &str, nodes: &[Vec<u8>]) -> Vec<u8> {
    let mut out = bytes(1, name.as_bytes());
    out.extend(bytes(10, b"own"));
    out.extend(nodes.iter().flat_map(|node| bytes(7, node)));
    bytes(25, &out)
}

fn model(graph: &[Vec<u8>], functions: &[Vec<u8>]) -> Vec<u8> {
    [number(1, 9), bytes(8, &number(2, 18)), bytes(7, &graph.concat()), functions.concat()].concat()
}

fn nodes(nodes: &[Vec<u8>]) -> Vec<Vec<u8>> {
    nodes.iter().map(|node| bytes(1, node)).collect()
}

fn later() -> Instant {
    Instant::now() + Duration::from_mins(1)
}

#[track_caller]
fn check_breaks(bytes: &[u8], rule: Rule, at: &str) {
    match scan(bytes, later()) {
        Err(refusal @ Refusal::Breaks { rule: broken, .. }) => {
            assert_eq!(broken, rule, "{refusal}");
            assert!(refusal.to_string().contains(at), "{refusal}");
        }
        other => panic!("{other:?}"),
    }
}

fn fixtures() -> impl Iterator<Item = (String, Vec<u8>)> {
    let folder = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures")).unwrap();
    let models = folder.map(|entry| entry.unwrap().path().join("model.onnx")).filter(|file| file.exists());
    models.map(|file| (file.display().to_string(), std::fs::read(file).unwrap()))
}

#[test]
fn no_fixture_breaks_a_rule() {
    let count = fixtures().map(|(name, bytes)| assert_eq!(scan(&bytes, later()), Ok(()), "{name}")).count();
    assert!(count > 10);
}

#[test]
fn operators_are_of_onnx_or_of_the_model_itself() {
    check_breaks(&model(&nodes(&[node("com.evil", "Run", &[], &[])]), &[]), Rule::Domains, "culprit");
    check_breaks(&model(&nodes(&[node("own", "Absent", &[], &[])]), &[]), Rule::Domains, "Absent");
    let known = ["", "ai.onnx", "ai.onnx.ml"].map(|domain| node(domain, "Any", &[], &[]));
    assert_eq!(scan(&model(&nodes(&known), &[]), later()), Ok(()));
    let own = model(&nodes(&[node("own", "f0", &[], &[])]), &[function("f0", &known)]);
    assert_eq!(scan(&own, later()), Ok(()));
}

/// Functions `f0`, `f1`, …, each of which calls the next `calls` times.
fn chain(length: usize, calls: usize) -> Vec<u8> {
    let body = |at: usize| {
        let is_last = at + 1 == length;
        if is_last {
            vec![node("", "Identity", &[], &[])]
        } else {
            vec![node("own", &format!("f{}", at + 1), &[], &[]); calls]
        }
    };
    let functions: Vec<_> = (0..length).map(|at| function(&format!("f{at}"), &body(at))).collect();
    model(&nodes(&[node("own", "f0", &[], &[])]), &functions)
}

#[test]
fn functions_call_neither_deep_nor_in_circles_nor_come_to_too_much() {
    assert_eq!(scan(&chain(32, 1), later()), Ok(()));
    check_breaks(&chain(33, 1), Rule::CallDepth, "f0");
    check_breaks(&chain(700, 1), Rule::CallDepth, "function `f");
    assert_eq!(scan(&chain(1_000, 0), later()), Ok(()));
    check_breaks(&chain(1_001, 0), Rule::Functions, "1001");
    check_breaks(&chain(32, 2), Rule::Nodes, "with its functions");
    let circle = [function("f0", &[node("own", "f1", &[], &[])]), function("f1", &[node("own", "f0", &[], &[])])];
    check_breaks(&model(&nodes(&[node("own", "f0", &[], &[])]), &circle), Rule::Cycle, "f0");
}

/// A node in a subgraph, `depth` of them around it.
#[test]
fn calls_written_out_count_as_nodes() {
    let body = vec![node("", "Abs", &["in"], &[]); 999];
    let calls = vec![node("own", "f", &["in"], &[]); 200];
    let more = [calls.clone(), vec![node("", "Abs", &["in"], &[])]].concat();
    let with = |main: &[Vec<u8>]| model(&nodes(main), &[function("f", &body)]);
    assert_eq!(scan(&with(&calls), later()), Ok(()), "200 calls and what is in them: 200,000");
    check_breaks(&with(&more), Rule::Nodes, "with its functions it has 200001");
}

fn nested(depth: usize) -> Vec<u8> {
    let mut inner = node("", "Identity", &[], &[]);
    for _ in 0..depth {
        inner = node("", "If", &[], &[attribute("then_branch", &bytes(6, &bytes(1, &inner)))]);
    }
    model(&nodes(&[inner]), &[])
}

#[test]
fn subgraphs_lie_sixteen_deep_at_most() {
    assert_eq!(scan(&nested(16), later()), Ok(()));
    check_breaks(&nested(17), Rule::Nesting, "culprit");
    check_breaks(&nested(1_000), Rule::Nesting, "culprit");
}

#[test]
fn there_are_two_hundred_thousand_nodes_at_most() {
    let one = bytes(1, &bytes(4, b"Abs"));
    assert_eq!(scan(&model(&vec![one.clone(); 200_000], &[]), later()), Ok(()));
    check_breaks(&model(&vec![one; 200_001], &[]), Rule::Nodes, "Abs");
}

#[track_caller]
fn check_made(op: &str, inputs: &[&str], rest: &[Vec<u8>], constants: &[Vec<u8>]) {
    let graph = [nodes(&[node("", op, inputs, rest)]), constants.to_vec()].concat();
    check_breaks(&model(&graph, &[]), Rule::Shapes, op);
}

#[test]
fn constants_do_not_make_large_tensors() {
    let shape = |sizes: &[i64]| integers("shape", sizes);
    check_made("ConstantOfShape", &["shape"], &[], &[shape(&[1 << 27])]);
    check_made("ConstantOfShape", &["shape"], &[], &[shape(&[i64::MAX, i64::MAX])]);
    check_made("Expand", &["x", "shape"], &[], &[shape(&[1 << 20, 1 << 10])]);
    check_made("Tile", &["shape", "times"], &[], &[shape(&[1, 2]), integers("times", &[1 << 25])]);
    check_made("Tile", &["x", "shape"], &[], &[shape(&[1 << 27])]);
    let range = [integers("from", &[0]), integers("to", &[1 << 27]), integers("step", &[1])];
    check_made("Range", &["from", "to", "step"], &[], &range);
    check_made("Pad", &["x", "shape"], &[], &[shape(&[0, 1 << 20, 0, 1 << 28])]);
    check_made("Resize", &["x", "", "", "shape"], &[], &[shape(&[1, 1, 1 << 15, 1 << 15])]);
    check_made("Resize", &["x", "", "shape"], &[], &[shape(&[1, 1, 1 << 15, 1 << 15])]);
    let wide = [attribute("value", &bytes(5, &[number(1, 1), number(2, 11), bytes(9, &[0; 8])].concat()))];
    check_made("ConstantOfShape", &["shape"], &wide, &[shape(&[1 << 26])]);
    let largest = [nodes(&[node("", "ConstantOfShape", &["shape"], &[])]), vec![shape(&[1 << 26])]].concat();
    assert_eq!(scan(&model(&largest, &[]), later()), Ok(()));
    check_made("ConstantOfShape", &["shape"], &[], &[shape(&[(1 << 26) + 1])]);
}

#[test]
fn a_shape_is_also_seen_in_a_constant_node_and_from_inside_of_a_subgraph() {
    let shape = [number(1, 1), number(2, 7), bytes(9, &(1_i64 << 40).to_le_bytes())].concat();
    let constant = node("", "Constant", &[], &[attribute("value", &bytes(5, &shape))]);
    let bomb = node("", "ConstantOfShape", &["out"], &[]);
    let inside = node("", "If", &[], &[attribute("then_branch", &bytes(6, &bytes(1, &bomb)))]);
    check_breaks(&model(&nodes(&[constant.clone(), bomb]), &[]), Rule::Shapes, "ConstantOfShape");
    check_breaks(&model(&nodes(&[constant, inside]), &[]), Rule::Shapes, "ConstantOfShape");
    let list = node("", "Constant", &[], &[attribute("value_ints", &number(8, 1 << 40))]);
    let bomb = node("", "ConstantOfShape", &["out"], &[]);
    check_breaks(&model(&nodes(&[list, bomb]), &[]), Rule::Shapes, "ConstantOfShape");
}

#[test]
fn weights_in_another_file_are_refused_wherever_they_hide() {
    let entry = [bytes(1, b"location"), bytes(2, b"../../secret")].concat();
    let tensor = [bytes(8, b"w"), bytes(13, &entry), number(14, 1)].concat();
    let hidden = node("", "Constant", &[], &[attribute("value", &bytes(5, &tensor))]);
    check_breaks(&model(&[bytes(5, &tensor)], &[]), Rule::ExternalData, "../../secret");
    check_breaks(&model(&nodes(std::slice::from_ref(&hidden)), &[]), Rule::ExternalData, "../../secret");
    check_breaks(&model(&[bytes(15, &bytes(1, &tensor))], &[]), Rule::ExternalData, "../../secret");
    check_breaks(&model(&[], &[function("f0", &[hidden])]), Rule::ExternalData, "../../secret");
    let nowhere = [bytes(8, b"w"), number(14, 1)].concat();
    check_breaks(&model(&[bytes(5, &nowhere)], &[]), Rule::ExternalData, "tensor `w`");
}

#[test]
fn a_file_without_operators_or_with_a_training_step_is_none_to_serve() {
    check_breaks(&[number(1, 9), bytes(7, &[])].concat(), Rule::Whole, "names no operator set");
    let training = [model(&[], &[]), bytes(20, &[])].concat();
    check_breaks(&training, Rule::Whole, "training step");
}

#[test]
fn tensors_hold_what_they_declare() {
    let tensor = |dims: u64, raw: &[u8]| bytes(5, &[number(1, dims), number(2, 1), bytes(9, raw)].concat());
    assert_eq!(scan(&model(&[tensor(2, &[0; 8])], &[]), later()), Ok(()));
    check_breaks(&model(&[tensor(1 << 30, &[0; 8])], &[]), Rule::Initializers, "tensor");
    check_breaks(&model(&[tensor(u64::MAX, &[0; 8])], &[]), Rule::Initializers, "dimensions");
    // Bytes declared and not held, as many as the file has, and one more.
    let hollow = |size: u64| model(&[bytes(5, &[number(1, size), number(2, 3)].concat())], &[]);
    let most = (0..1_000).find(|size| hollow(*size).len() as u64 == *size).unwrap();
    assert_eq!(scan(&hollow(most), later()), Ok(()));
    check_breaks(&hollow(most + 1), Rule::Initializers, "bytes more than they hold");
    // Small numbers take fewer bytes in the file than in memory; that is no lie.
    let packed = [number(1, 4096), number(2, 7), bytes(7, &[1; 4096])].concat();
    assert_eq!(scan(&model(&[bytes(5, &packed)], &[]), later()), Ok(()));
}

#[test]
fn a_scan_ends_when_its_time_is_over() {
    let many = model(&vec![bytes(1, &bytes(4, b"Abs")); 100_000], &[]);
    assert!(matches!(scan(&many, Instant::now()), Err(Refusal::Breaks { rule: Rule::Time, .. })));
}

#[test]
fn a_file_that_is_cut_short_is_refused_before_it_is_loaded() {
    let whole = std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/pipeline/model.onnx")).unwrap();
    let ends = (0..whole.len()).step_by((whole.len() / 100).max(1));
    let (mut cut, mut caught) = (0, 0);
    for end in ends {
        cut += 1;
        caught += usize::from(scan(&whole[..end], later()).is_err());
    }
    assert!(cut >= 100 && caught * 10 >= cut * 9, "{caught} of {cut}");
}

proptest! {
    #[test]
    fn any_damage_gives_an_answer(at in any::<prop::sample::Index>(), bit in 0..8_u32, length in 1..64_usize) {
        for kind in ["neural", "endless", "one-hot"] {
            let file = format!("{}/tests/fixtures/{kind}/model.onnx", env!("CARGO_MANIFEST_DIR"));
            let mut bytes = std::fs::read(file).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let _ = scan(&bytes, later());
            let end = (at + length).min(bytes.len());
            bytes[at..end].fill(0xff);
            let _ = scan(&bytes, later());
        }
    }

    #[test]
    fn any_bytes_behind_a_whole_beginning_give_an_answer(graph in proptest::collection::vec(any::<u8>(), 0..128)) {
        let _ = scan(&model(&[bytes(1, &graph), graph.clone()], &[]), later());
    }
}
