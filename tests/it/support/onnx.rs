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
    bytes(5, &[number(1, 1), number(2, 7), bytes(8, name.as_bytes()), bytes(9, &value.to_le_bytes())].concat())
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
