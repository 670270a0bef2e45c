//! Signatures as MLflow writes them, and those that cannot be served.

use proptest::prelude::*;

use super::*;

fn column(name: &str, kind: Kind, required: bool) -> Column {
    Column { name: name.into(), kind, required }
}

fn tensor(name: &str, kind: Kind, shape: &[Option<usize>]) -> Tensor {
    Tensor { name: name.into(), kind, shape: shape.to_vec() }
}

fn check(inputs: &str, expected: &Result<Signature, SignatureError>) {
    assert_eq!(&Signature::parse(inputs), expected, "{inputs}");
}

fn check_refused(inputs: &str, expected: &str) {
    let error = Signature::parse(inputs).expect_err(inputs);
    assert!(error.to_string().contains(expected), "{inputs}: {error}");
}

#[test]
fn columns_of_every_type() {
    check(
        r#"[{"type": "boolean", "name": "home", "required": true}, {"type": "integer", "name": "i32", "required": true},
            {"type": "long", "name": "age"}, {"type": "float", "name": "f32", "optional": true},
            {"type": "double", "name": "income", "required": false}, {"type": "string", "name": "name (full)"}]"#,
        &Ok(Signature::Columns(vec![
            column("home", Kind::Boolean, true),
            column("i32", Kind::Integer, true),
            column("age", Kind::Long, true),
            column("f32", Kind::Float, false),
            column("income", Kind::Double, false),
            column("name (full)", Kind::Text, true),
        ])),
    );
}

#[test]
fn a_single_input_may_have_no_name() {
    check(r#"[{"type": "double"}]"#, &Ok(Signature::Columns(vec![column("input", Kind::Double, true)])));
    check(
        r#"[{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 4]}}]"#,
        &Ok(Signature::Tensors(vec![tensor("input", Kind::Float, &[Some(4)])])),
    );
    check(r#"[{"type": "double"}, {"type": "double", "name": "b"}]"#, &Err(SignatureError::Unnamed));
}

#[test]
fn tensors_of_every_type_and_shape() {
    for (dtype, kind) in [
        ("bool", Kind::Boolean),
        ("int32", Kind::Integer),
        ("int64", Kind::Long),
        ("float32", Kind::Float),
        ("float64", Kind::Double),
        ("str", Kind::Text),
        ("object", Kind::Text),
    ] {
        check(
            &format!(r#"[{{"name": "X", "type": "tensor", "tensor-spec": {{"dtype": "{dtype}", "shape": [-1]}}}}]"#),
            &Ok(Signature::Tensors(vec![tensor("X", kind, &[])])),
        );
    }
    check(
        r#"[{"name": "a", "type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, 1]}},
            {"name": "b", "type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, -1]}},
            {"name": "c", "type": "tensor", "tensor-spec": {"dtype": "int64", "shape": [-1, 2, 3]}}]"#,
        &Ok(Signature::Tensors(vec![
            tensor("a", Kind::Long, &[Some(1)]),
            tensor("b", Kind::Long, &[None]),
            tensor("c", Kind::Long, &[Some(2), Some(3)]),
        ])),
    );
}

#[test]
fn types_without_a_place_are_named() {
    for (entry, found) in [
        (r#"{"type": "datetime", "name": "when"}"#, "datetime"),
        (r#"{"type": "binary", "name": "when"}"#, "binary"),
        (r#"{"type": "any", "name": "when"}"#, "any"),
        (r#"{"type": "array", "items": {"type": "string"}, "name": "when"}"#, "array"),
        (r#"{"type": "object", "properties": {"a": {"type": "long", "required": true}}, "name": "when"}"#, "object"),
        (r#"{"type": "map", "values": {"type": "long"}, "name": "when"}"#, "map"),
        (r#"{"type": "tensor", "tensor-spec": {"dtype": "float16", "shape": [-1, 4]}, "name": "when"}"#, "float16"),
        (
            r#"{"type": "tensor", "tensor-spec": {"dtype": "datetime64[ns]", "shape": [-1]}, "name": "when"}"#,
            "datetime64[ns]",
        ),
    ] {
        check(
            &format!("[{entry}]"),
            &Err(SignatureError::Unsupported { name: "when".to_owned(), found: found.to_owned() }),
        );
    }
}

#[test]
fn shapes_that_are_not_rows_are_refused() {
    for shape in ["[]", "[1, 4]", "[4]", "[-1, 0]", "[-1, -2]", "[0, -1]"] {
        let inputs =
            format!(r#"[{{"name": "X", "type": "tensor", "tensor-spec": {{"dtype": "int32", "shape": {shape}}}}}]"#);
        check(&inputs, &Err(SignatureError::Shape { name: "X".to_owned(), found: shape.to_owned() }));
    }
}

#[test]
fn what_mlflow_does_not_write_is_refused() {
    check("[]", &Err(SignatureError::Empty));
    check(
        r#"[{"type": "long", "name": "a"}, {"type": "long", "name": "b"}, {"type": "double", "name": "a"}]"#,
        &Err(SignatureError::Twice("a".to_owned())),
    );
    check(
        r#"[{"type": "long", "name": "a"}, {"type": "tensor", "name": "X", "tensor-spec": {"dtype": "int32", "shape": [-1]}}]"#,
        &Err(SignatureError::Mixed),
    );
    check_refused(r#"[{"type": "tensor", "name": "X"}]"#, "no `tensor-spec`");
    check_refused(r#"[{"name": "a"}]"#, "missing field `type`");
    check_refused("null", "not readable");
    check_refused(r#"{"type": "long"}"#, "not readable");
    check_refused("[[", "not readable");
    check_refused(
        &format!(r#"[{{"type": "long", "name": "{}"}}]"#, "n".repeat(NAME_MAX_BYTES + 1)),
        "longer than 256 bytes",
    );
}

#[test]
fn the_number_of_values_is_bounded() {
    let columns = |count: usize| {
        let entries: Vec<_> = (0..count).map(|i| format!(r#"{{"type": "long", "name": "c{i}"}}"#)).collect();
        format!("[{}]", entries.join(","))
    };
    let tensor = |shape: &str| {
        format!(r#"[{{"name": "X", "type": "tensor", "tensor-spec": {{"dtype": "int32", "shape": {shape}}}}}]"#)
    };
    assert!(Signature::parse(&columns(FEATURES_MAX)).is_ok());
    check(&columns(FEATURES_MAX + 1), &Err(SignatureError::TooMany(FEATURES_MAX + 1)));
    assert!(Signature::parse(&tensor("[-1, 4096]")).is_ok());
    check(&tensor("[-1, 4097]"), &Err(SignatureError::TooMany(4097)));
    check(&tensor("[-1, 9223372036854775807, 9223372036854775807]"), &Err(SignatureError::TooMany(usize::MAX)));
}

proptest! {
    #[test]
    fn any_text_is_a_signature_or_a_reason(text in r#"[\[\]{}",:a-z0-9 -]{0,60}"#) {
        if let Err(error) = Signature::parse(&text) {
            prop_assert!(error.to_string().chars().count() < 400);
        }
    }
}
