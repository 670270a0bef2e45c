//! Bodies and what comes of each: a table, and laws that hold for any bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::model::features::{DefaultValue, Settings};
use crate::model::outputs::{Prediction, Value};
use crate::model::signature::{Column, Kind, Signature, Tensor};
use crate::model::{Cell, Digest, Features, Identity, Inputs, Outputs, Version};

fn column(name: &str, kind: Kind, required: bool) -> Column {
    Column { name: name.into(), kind, required }
}

/// One column of every kind; the callers say `idade` for `age`.
fn all_kinds() -> Features {
    let signature = Signature::Columns(vec![
        column("age", Kind::Long, true),
        column("flag", Kind::Boolean, false),
        column("small", Kind::Integer, false),
        column("ratio", Kind::Float, false),
        column("income", Kind::Double, false),
        column("name", Kind::Text, false),
        column("job_a", Kind::Double, true),
        column("job_b", Kind::Double, true),
    ]);
    let settings = Settings {
        coerce: true,
        rename: [("idade".to_owned(), "age".to_owned())].into(),
        default: [("job".to_owned(), DefaultValue::Text("a".to_owned()))].into(),
        one_hot: vec!["job".to_owned()],
        ..Settings::default()
    };
    Features::new(&signature, settings).expect("the settings fit the signature")
}

fn only(name: &str, kind: Kind) -> Features {
    Features::new(&Signature::Columns(vec![column(name, kind, true)]), Settings::default()).expect("one column")
}

fn tensors() -> Features {
    let tensor = |name: &str, kind, shape: &[_]| Tensor { name: name.into(), kind, shape: shape.to_vec() };
    let signature =
        Signature::Tensors(vec![tensor("X", Kind::Double, &[Some(2)]), tensor("n", Kind::Long, &[Some(1)])]);
    Features::new(&signature, Settings::default()).expect("two tensors")
}

/// What became of a body: the shape and the cells, or the refusal, in one line.
fn outcome(features: &Features, body: &[u8], limits: &Limits) -> String {
    let mut rows = features.rows();
    let shape = match read(body, &mut rows, limits) {
        Ok(shape) => shape,
        Err(error @ WireError::Malformed { .. }) => return format!("400 {error}"),
        Err(WireError::NoRows) => return "no rows".to_owned(),
        Err(WireError::TooManyRows { limit }) => return format!("more than {limit} rows"),
        Err(WireError::TooDeep { limit }) => return format!("deeper than {limit}"),
    };
    match rows.finish() {
        Ok(inputs) => format!("{shape:?} {}", cells(&inputs)),
        Err(error) => {
            let lines = error.errors.iter().map(|e| format!("{} {}: {} / {}", e.row, e.feature, e.expected, e.found));
            format!("422 {}", lines.collect::<Vec<_>>().join("; "))
        }
    }
}

fn cells(inputs: &Inputs) -> String {
    let cell = |cell: &Cell| match cell {
        Cell::Missing => "-".to_owned(),
        Cell::Boolean(value) => value.to_string(),
        Cell::Integer(value) => value.to_string(),
        Cell::Float(value) => format!("{value:?}"),
        Cell::Text(value) => format!("'{value}'"),
    };
    let row = |row| inputs.row(row).iter().map(cell).collect::<Vec<_>>().join(" ");
    (0..inputs.rows()).map(row).collect::<Vec<_>>().join(" | ")
}

fn check(features: &Features, table: &[(&str, &str)]) {
    let outcome = |body: &str| outcome(features, body.as_bytes(), &Limits::default());
    let wrong = table.iter().filter(|(body, expected)| outcome(body) != *expected);
    let wrong: Vec<_> =
        wrong.map(|(body, expected)| format!("{body}\n  is     {}\n  not    {expected}", outcome(body))).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn shapes() {
    check(
        &all_kinds(),
        &[
            (r#"{"idade":40}"#, "One 40 - - - - - 'a'"),
            (r#"{"data":{"idade":40}}"#, "One 40 - - - - - 'a'"),
            (r#"{"data":[{"idade":40}]}"#, "Many 40 - - - - - 'a'"),
            (r#"{"data":[{"idade":1},{"idade":2}]}"#, "Many 1 - - - - - 'a' | 2 - - - - - 'a'"),
            (" \t\r\n{ \"data\" : [ { \"idade\" : 1 } ] } \n", "Many 1 - - - - - 'a'"),
            (r#"{"d\u0061ta":{"idade":40}}"#, "One 40 - - - - - 'a'"),
            (r#"{"data":[]}"#, "no rows"),
            (r#"{"data":{}}"#, "422 0 idade: a whole number / nothing"),
            ("{}", "422 0 idade: a whole number / nothing"),
            ("[]", "400 line 1, column 2: the body must be an object"),
            (r#"[{"idade":1}]"#, "400 line 1, column 1: the body must be an object"),
            ("1", "400 line 1, column 1: the body must be an object"),
            ("null", "400 line 1, column 4: the body must be an object"),
            (r#""data""#, "400 line 1, column 6: the body must be an object"),
            (r#"{"data":1}"#, "400 line 1, column 9: `data` must be an object or a list of objects"),
            (r#"{"data":null}"#, "400 line 1, column 12: `data` must be an object or a list of objects"),
            (r#"{"data":[1,2]}"#, "400 line 1, column 10: a row must be an object"),
            (r#"{"data":[[1]]}"#, "400 line 1, column 10: a row must be an object"),
            (r#"{"data":[{"idade":1},null]}"#, "400 line 1, column 25: a row must be an object"),
            (r#"{"data":{"idade":1},"data":{"idade":1}}"#, "400 line 1, column 26: `data` is there twice"),
            (r#"{"data":{"idade":1},"model":"x"}"#, "400 line 1, column 27: `model` stands beside `data`"),
            (r#"{"id":"7","data":{"idade":1}}"#, "400 line 1, column 18: `id` stands beside `data`"),
            (r#"{"idade":1,"data":[{}]}"#, "400 line 1, column 19: `idade` stands beside `data`"),
            (r#"{"idade":1,"data":2}"#, "400 line 1, column 19: `data` must be an object or a list of objects"),
        ],
    );
}

#[test]
fn values_of_every_kind() {
    check(
        &all_kinds(),
        &[
            (
                r#"{"idade":40,"flag":true,"small":-3,"ratio":0.5,"income":1e3,"name":"Ana","job":"b"}"#,
                "One 40 true -3 0.5 1000.0 'Ana' 'b'",
            ),
            (
                r#"{"job":"b","name":"Ana","income":1e3,"ratio":0.5,"small":-3,"flag":false,"idade":40}"#,
                "One 40 false -3 0.5 1000.0 'Ana' 'b'",
            ),
            (
                r#"{"idade":"40","flag":"true","small":"-3","ratio":"0.5","income":"1000"}"#,
                "One 40 true -3 0.5 1000.0 - 'a'",
            ),
            (
                r#"{"idade":4,"flag":null,"small":null,"ratio":null,"income":null,"name":null,"job":null}"#,
                "One 4 - - - - - 'a'",
            ),
            (r#"{"idade":40,"name":"Jo\u00e3o \ud83d\ude42 \"x\"\n"}"#, "One 40 - - - - 'João 🙂 \"x\"\n' 'a'"),
            (r#"{"id\u0061de":40}"#, "One 40 - - - - - 'a'"),
            (r#"{"idade":40.0}"#, "One 40 - - - - - 'a'"),
            (r#"{"idade":4e1}"#, "One 40 - - - - - 'a'"),
            (r#"{"idade":-0}"#, "One 0 - - - - - 'a'"),
            (r#"{"idade":9007199254740993}"#, "One 9007199254740993 - - - - - 'a'"),
            (r#"{"idade":9223372036854775807}"#, "One 9223372036854775807 - - - - - 'a'"),
            (r#"{"idade":-9223372036854775808}"#, "One -9223372036854775808 - - - - - 'a'"),
            (
                r#"{"idade":9223372036854775808}"#,
                "422 0 idade: a whole number of 64 bits, in plain digits / 9223372036854775808",
            ),
            (
                r#"{"idade":18446744073709551616}"#,
                "422 0 idade: a whole number of 64 bits, in plain digits / 1.8446744073709552e19",
            ),
            (
                r#"{"idade":9007199254740993.0}"#,
                "422 0 idade: a whole number of 64 bits, in plain digits / 9007199254740992.0",
            ),
            (r#"{"idade":3.5}"#, "422 0 idade: a whole number / 3.5"),
            (r#"{"idade":true}"#, "422 0 idade: a whole number / true"),
            (r#"{"idade":null}"#, "422 0 idade: a whole number / null"),
            (r#"{"idade":"x"}"#, "422 0 idade: a whole number / \"x\""),
            (r#"{"idade":""}"#, "422 0 idade: a whole number / \"\""),
            (r#"{"idade":[1]}"#, "422 0 idade: a whole number / a list"),
            (r#"{"idade":{"a":[1,{"b":null}]}}"#, "422 0 idade: a whole number / an object"),
            (r#"{"idade":1,"name":5}"#, "422 0 name: text / 5"),
            (r#"{"idade":1,"flag":1}"#, "422 0 flag: true or false / 1"),
            (
                r#"{"idade":1,"small":3000000000}"#,
                "422 0 small: a whole number from -2147483648 to 2147483647 / 3000000000",
            ),
            (r#"{"idade":1,"ratio":1e39}"#, "422 0 ratio: a number that fits a 32-bit float / 1e39"),
            (r#"{"idade":1,"income":-0.0}"#, "One 1 - - - -0.0 - 'a'"),
            (r#"{"idade":1,"income":1e-400}"#, "One 1 - - - 0.0 - 'a'"),
            (r#"{"idade":1,"job":"c"}"#, "One 1 - - - - - 'c'"),
            (r#"{"age":1}"#, "422 0 age: no such field; did you mean `idade`? / 1; 0 idade: a whole number / nothing"),
            (r#"{"idade":1,"Income":2}"#, "422 0 Income: no such field; did you mean `income`? / 2"),
            (r#"{"idade":1,"job_a":1}"#, "422 0 job_a: no such field; did you mean `job`? / 1"),
            (r#"{"idade":1,"":2}"#, "422 0 : no such field / 2"),
            (r#"{"idade":1,"idade":1}"#, "422 0 idade: one value / the field twice"),
            (r#"{"idade":1,"id\u0061de":2}"#, "422 0 idade: one value / the field twice"),
            (
                r#"{"data":[{"idade":1},{"idade":"x"},{}]}"#,
                "422 1 idade: a whole number / \"x\"; 2 idade: a whole number / nothing",
            ),
        ],
    );
}

#[test]
fn numbers_json_cannot_say_are_a_mistake_of_their_feature() {
    check(
        &all_kinds(),
        &[
            (r#"{"idade":1,"income":NaN}"#, "422 0 income: a finite number / NaN"),
            (r#"{"income":Infinity,"idade":1}"#, "422 0 income: a finite number / Infinity"),
            (r#"{"income": -Infinity , "idade":1}"#, "422 0 income: a finite number / -Infinity"),
            (r#"{"income":1e400}"#, "422 0 income: a finite number / 1e400"),
            (r#"{"income":-1.5E+400}"#, "422 0 income: a finite number / -1.5E+400"),
            (r#"{"idade":NaN}"#, "422 0 idade: a whole number / NaN"),
            (r#"{"flag":NaN}"#, "422 0 flag: true or false / NaN"),
            (r#"{"name":NaN}"#, "422 0 name: text / NaN"),
            (r#"{"Income":NaN}"#, "422 0 Income: no such field; did you mean `income`? / NaN"),
            (r#"{"income":[1,{"a":NaN}]}"#, "422 0 income: a finite number / NaN"),
            ("{\"data\":[{\"idade\":1},\n {\"idade\":1,\n\"income\":\nNaN}]}", "422 1 income: a finite number / NaN"),
            (
                r#"{"data":[{"idade":"x"},{"income":NaN}]}"#,
                "422 0 idade: a whole number / \"x\"; 1 income: a finite number / NaN",
            ),
            (r#"{"idade":1,"income":nan}"#, "400 line 1, column 22: this is not JSON"),
            (r#"{"idade":1,"income":NaNs}"#, "400 line 1, column 21: this is not JSON"),
            (r#"{"idade":1,"income":-NaN}"#, "400 line 1, column 22: this is not JSON"),
            (r#"{"idade":1,"income":01e400}"#, "400 line 1, column 22: this is not JSON"),
            (r#"{"idade":1,"income":+1e400}"#, "400 line 1, column 21: this is not JSON"),
            (r#"{"idade":1,"income":1.e400}"#, "400 line 1, column 23: this is not JSON"),
            (r#"{"idade":1,"income":1 NaN}"#, "400 line 1, column 23: this is not JSON"),
            (r#"{"idade":1 NaN:2}"#, "400 line 1, column 12: this is not JSON"),
            (r"{NaN:1}", "400 line 1, column 2: this is not JSON"),
            (r#"{"data":NaN}"#, "400 line 1, column 9: this is not JSON"),
            (r#"{"data":[NaN]}"#, "400 line 1, column 10: this is not JSON"),
            ("NaN", "400 line 1, column 1: this is not JSON"),
            ("1e400", "400 line 1, column 5: this is not JSON"),
        ],
    );
}

#[test]
fn text_that_is_no_json_is_told_with_its_place() {
    check(
        &all_kinds(),
        &[
            ("", "400 line 1, column 1: the body ends too early"),
            ("  ", "400 line 1, column 2: the body ends too early"),
            ("{", "400 line 1, column 1: the body ends too early"),
            (r#"{"idade"#, "400 line 1, column 7: the body ends too early"),
            (r#"{"idade":1"#, "400 line 1, column 10: the body ends too early"),
            ("{\n\"idade\":1,\n\"name\":}", "400 line 3, column 8: this is not JSON"),
            (r#"{"idade":1,}"#, "400 line 1, column 12: this is not JSON"),
            (r#"{"idade":1}x"#, "400 line 1, column 12: this is not JSON"),
            (r#"{"idade":1}{"idade":1}"#, "400 line 1, column 12: this is not JSON"),
            (r"{idade:1}", "400 line 1, column 2: this is not JSON"),
            (r"{'idade':1}", "400 line 1, column 2: this is not JSON"),
            (r#"{"idade":None}"#, "400 line 1, column 10: this is not JSON"),
            (r#"{"idade":True}"#, "400 line 1, column 10: this is not JSON"),
            (r#"{"idade":01}"#, "400 line 1, column 11: this is not JSON"),
            (r#"{"idade":1.}"#, "400 line 1, column 12: this is not JSON"),
            (r#"{"idade":.5}"#, "400 line 1, column 10: this is not JSON"),
            (r#"{"idade":0x10}"#, "400 line 1, column 11: this is not JSON"),
            (r#"{"idade":1 /* year */}"#, "400 line 1, column 12: this is not JSON"),
            (r#"{"name":"\ud83d"}"#, "400 line 1, column 16: this is not JSON"),
            (r#"{"name":"\udc00"}"#, "400 line 1, column 15: this is not JSON"),
            (r#"{"\ud83d":1}"#, "400 line 1, column 9: this is not JSON"),
            (r#"{"idade":["\udc00"]}"#, "400 line 1, column 17: this is not JSON"),
            (r#"{"name":"\x41"}"#, "400 line 1, column 11: this is not JSON"),
            ("{\"name\":\"a\nb\"}", "400 line 2, column 1: this is not JSON"),
            ("{\"name\":\"a\0b\"}", "400 line 1, column 11: this is not JSON"),
            ("\0", "400 line 1, column 1: this is not JSON"),
            ("\u{feff}{}", "400 line 1, column 1: this is not JSON"),
            ("{\"idade\":1é}", "400 line 1, column 11: this is not JSON"),
            ("{\"idade\":é}", "400 line 1, column 10: this is not JSON"),
        ],
    );
    let check = |body: &[u8], expected: &str| {
        assert_eq!(outcome(&all_kinds(), body, &Limits::default()), expected);
    };
    check(b"\xff\xfe{}", "400 line 1, column 1: the body is not UTF-8");
    check(b"{\n\n\"name\":\"\xe9\"}", "400 line 3, column 9: the body is not UTF-8");
    check(b"{\"idade\":[\"\xc0\x80\"]}", "400 line 1, column 12: the body is not UTF-8");
}

#[test]
fn a_feature_called_data() {
    check(
        &only("data", Kind::Double),
        &[
            (r#"{"data":1}"#, "One 1.0"),
            (r#"{"data":{"data":1}}"#, "One 1.0"),
            (r#"{"data":[{"data":1}]}"#, "Many 1.0"),
            (r#"{"data":null}"#, "422 0 data: a number / null"),
            (r#"{"data":NaN}"#, "422 0 data: a finite number / NaN"),
            (r#"{"data":1,"data":2}"#, "422 0 data: one value / the field twice"),
            (r#"{"data":1,"data":{"data":1}}"#, "422 0 data: one value / the field twice"),
            (r#"{"x":1,"data":[1]}"#, "422 0 x: no such field / 1; 0 data: a number / a list"),
            (r#"{"data":[1]}"#, "400 line 1, column 10: a row must be an object"),
        ],
    );
}

#[test]
fn tensors_as_lists_or_by_element() {
    check(
        &tensors(),
        &[
            (r#"{"X":[1,2.5],"n":3}"#, "One 1.0 2.5 3"),
            (r#"{"X_0":1,"X_1":2.5,"n":[3]}"#, "One 1.0 2.5 3"),
            (r#"{"data":[{"n":3,"X":[1,2]},{"X":[3,4],"n":5}]}"#, "Many 1.0 2.0 3 | 3.0 4.0 5"),
            (r#"{"X":[1],"n":3}"#, "422 0 X: a list of 2 / a list of 1"),
            (r#"{"X":[1,2,3],"n":3}"#, "422 0 X: a list of 2 / a list of 3"),
            (r#"{"X":[],"n":3}"#, "422 0 X: a list of 2 / a list of 0"),
            (r#"{"X":[1,[2]],"n":3}"#, "422 0 X_1: a number / a list"),
            (r#"{"X":[1,{"a":2}],"n":3}"#, "422 0 X_1: a number / an object"),
            (r#"{"X":[null,"a"],"n":3}"#, "422 0 X_0: a number / null; 0 X_1: a number / \"a\""),
            (r#"{"X":[1,NaN],"n":3}"#, "422 0 X_1: a finite number / NaN"),
            (r#"{"n":3,"X":[1,2,NaN]}"#, "400 line 1, column 17: this is not JSON"),
            (r#"{"n":3,"X":[1,2,[1e400]]}"#, "400 line 1, column 22: this is not JSON"),
            (r#"{"X":[1 NaN],"n":3}"#, "400 line 1, column 9: this is not JSON"),
            (
                r#"{"X":1,"n":3}"#,
                "422 0 X: no such field; did you mean `X_0`? / 1; 0 X_0: a number / nothing; 0 X_1: a number / nothing",
            ),
            (r#"{"X":[1,2],"X_0":1,"n":3}"#, "422 0 X_0: one value / the field twice"),
            (r#"{"X":[1,2]}"#, "422 0 n: a whole number / nothing"),
        ],
    );
}

/// Objects in one another, `depth` levels in all.
fn nested(depth: usize) -> String {
    format!("{}1{}", r#"{"x":"#.repeat(depth), "}".repeat(depth))
}

#[test]
fn depth_has_a_limit() {
    let features = only("x", Kind::Double);
    let refused = "422 0 x: a number / an object";
    let limits = Limits::default();
    assert_eq!(outcome(&features, nested(32).as_bytes(), &limits), refused);
    for depth in [33, 127, 128, 129, 100_000] {
        assert_eq!(outcome(&features, nested(depth).as_bytes(), &limits), "deeper than 32", "{depth}");
        assert_eq!(outcome(&features, r#"{"x":"#.repeat(depth).as_bytes(), &limits), "deeper than 32", "{depth}");
        let lists = format!(r#"{{"x":{}"#, "[".repeat(depth));
        assert_eq!(outcome(&features, lists.as_bytes(), &limits), "deeper than 32", "{depth}");
    }
    let wide_open = Limits { depth: usize::MAX, ..limits };
    assert_eq!(outcome(&features, nested(126).as_bytes(), &wide_open), refused);
    assert_eq!(outcome(&features, nested(127).as_bytes(), &wide_open), "deeper than 126");
    assert_eq!(outcome(&features, nested(1_000_000).as_bytes(), &wide_open), "deeper than 126");
}

#[test]
fn rows_and_cells_have_limits() {
    let body = |rows: usize| format!(r#"{{"data":[{}]}}"#, vec![r#"{"X":[1,2],"n":3}"#; rows].join(","));
    let read = |rows, limits: Limits| outcome(&tensors(), body(rows).as_bytes(), &limits);
    let limits = Limits { rows: 5, ..Limits::default() };
    assert!(read(5, limits).starts_with("Many "));
    assert_eq!(read(6, limits), "more than 5 rows");
    let limits = Limits { cells: 12, ..Limits::default() }; // three a row
    assert!(read(4, limits).starts_with("Many "));
    assert_eq!(read(5, limits), "more than 4 rows");
    assert!(read(1000, Limits::default()).starts_with("Many "));
    assert_eq!(read(1001, Limits::default()), "more than 1000 rows");
}

#[test]
fn a_flood_of_wrong_members_keeps_ten() {
    let members: Vec<_> = (0..100_000).map(|i| format!(r#""k{i}":[0]"#)).collect();
    let features = only("x", Kind::Double);
    let mut rows = features.rows();
    read(format!("{{{}}}", members.join(",")).as_bytes(), &mut rows, &Limits::default()).unwrap();
    let error = rows.finish().unwrap_err();
    assert_eq!((error.errors.len(), error.total), (10, 100_001));
}

/// Inputs as a body of the wrapped form, by the callers' names.
fn render(features: &Features, inputs: &Inputs) -> String {
    let cell = |cell: &Cell| match cell {
        Cell::Missing => serde_json::Value::Null,
        Cell::Boolean(value) => (*value).into(),
        Cell::Integer(value) => (*value).into(),
        Cell::Float(value) => (*value).into(),
        Cell::Text(value) => (**value).into(),
    };
    let row = |row| -> serde_json::Map<_, _> {
        features.list().iter().map(|f| f.field.to_string()).zip(inputs.row(row).iter().map(cell)).collect()
    };
    serde_json::json!({ "data": (0..inputs.rows()).map(row).collect::<Vec<_>>() }).to_string()
}

fn parse(features: &Features, body: &str) -> Inputs {
    let mut rows = features.rows();
    read(body.as_bytes(), &mut rows, &Limits::default()).expect("the body is in shape");
    rows.finish().expect("the rows fit")
}

/// Bodies one or a few bytes away from good ones.
fn nearly_good() -> impl Strategy<Value = Vec<u8>> {
    let good = prop::sample::select(vec![
        r#"{"data":[{"idade":40,"flag":true,"small":-3},{"idade":1,"ratio":0.5,"income":1e3,"name":"Ana","job":"b"}]}"#,
        r#"{"data":[{"n":3,"X":[1,2.5]},{"X":[3,NaN],"n":[5]}]}"#,
        r#"{"idade":NaN,"income":-Infinity,"name":"\ud83d\ude42","x":[[{}],null,1e400]}"#,
    ]);
    let byte = prop_oneof![any::<u8>(), prop::sample::select(br#"{}[]",:\0-9.eE+NIntu"#.to_vec())];
    let edits = prop::collection::vec((any::<prop::sample::Index>(), byte, 0..3_u8), 1..6);
    (good, edits).prop_map(|(good, edits)| {
        let mut body = good.as_bytes().to_vec();
        for (at, byte, edit) in edits {
            let at = at.index(body.len().max(1)).min(body.len().saturating_sub(1));
            match edit {
                0 if !body.is_empty() => body[at] = byte,
                1 if !body.is_empty() => drop(body.remove(at)),
                _ => body.insert(at, byte),
            }
        }
        body
    })
}

/// Any rows that fit [`all_kinds`], as a body.
fn rows() -> impl Strategy<Value = String> {
    let float = any::<f64>().prop_filter("JSON has finite numbers", |value| value.is_finite());
    let narrow = any::<f32>().prop_filter("JSON has finite numbers", |value| value.is_finite());
    let row = (
        any::<i64>(),
        prop::option::of(any::<bool>()),
        prop::option::of(any::<i32>()),
        prop::option::of(narrow),
        prop::option::of(float),
        prop::option::of(".{0,20}"),
        prop::option::of("[abc]"),
    );
    let row = row.prop_map(|(age, flag, small, ratio, income, name, job)| {
        serde_json::json!({
            "idade": age, "flag": flag, "small": small, "ratio": ratio, "income": income, "name": name, "job": job
        })
    });
    prop::collection::vec(row, 1..5).prop_map(|rows| serde_json::json!({ "data": rows }).to_string())
}

proptest! {
    #[test]
    fn any_bytes_are_inputs_or_a_typed_refusal(body in prop::collection::vec(any::<u8>(), 0..200)) {
        outcome(&all_kinds(), &body, &Limits::default());
        outcome(&tensors(), &body, &Limits::default());
    }

    #[test]
    fn nearly_good_bodies_are_inputs_or_a_typed_refusal(body in nearly_good()) {
        let is_json = serde_json::from_slice::<serde_json::Value>(&body).is_ok();
        for features in [all_kinds(), tensors()] {
            let outcome = outcome(&features, &body, &Limits::default());
            if outcome.starts_with("One") || outcome.starts_with("Many") {
                prop_assert!(is_json, "{outcome}");
            }
            if outcome.ends_with("not JSON") || outcome.ends_with("too early") || outcome.ends_with("UTF-8") {
                prop_assert!(!is_json, "{outcome}");
            }
        }
    }

    #[test]
    fn accepted_rows_written_again_read_the_same(body in rows()) {
        let features = all_kinds();
        let inputs = parse(&features, &body);
        let again = parse(&features, &render(&features, &inputs));
        prop_assert_eq!(inputs.rows(), again.rows());
        for row in 0..inputs.rows() {
            prop_assert_eq!(inputs.row(row), again.row(row));
        }
    }

    #[test]
    fn json_numbers_keep_their_bits(bits: u64, whole: i64) {
        let number = f64::from_bits(bits);
        if number.is_finite() {
            let inputs = parse(&only("x", Kind::Double), &format!(r#"{{"x":{number:e}}}"#));
            prop_assert!(matches!(inputs.row(0), [Cell::Float(cell)] if cell.to_bits() == bits));
        }
        let inputs = parse(&only("x", Kind::Long), &format!(r#"{{"x":{whole}}}"#));
        prop_assert_eq!(inputs.row(0), [Cell::Integer(whole)]);
    }

    #[test]
    #[expect(clippy::cast_possible_truncation, reason = "as the engine does")]
    fn narrow_numbers_keep_their_bits(bits: u32) {
        let number = f32::from_bits(bits);
        prop_assume!(number.is_finite());
        let inputs = parse(&only("x", Kind::Float), &format!(r#"{{"x":{number:e}}}"#));
        prop_assert!(matches!(inputs.row(0), [Cell::Float(cell)] if (*cell as f32).to_bits() == bits));
    }
}

fn written(shape: Shape, predictions: Vec<Prediction>, classes: &[&str], probabilities: Vec<f32>) -> String {
    let model = Identity::new("credit-score".parse().unwrap(), Version(3), Digest([7; 32]), None);
    let classes = classes.iter().map(|&class| Arc::from(class)).collect();
    let body = write(shape, "01J\"x", &model, &Outputs::new(predictions, classes, probabilities));
    String::from_utf8(body).expect("JSON is UTF-8")
}

const HEAD: &str = r#"{"request_id":"01J\"x","model":"credit-score","version":"3","#;

#[test]
fn a_class_with_its_label_and_probabilities() {
    let good = Prediction { value: Value::Integer(2), label: Some("Good".into()), score: Some(f64::from(0.87_f32)) };
    let poor = Prediction { value: Value::Integer(0), label: Some("Poor".into()), score: Some(0.123_456_789_012) };
    let classes = ["Poor", "Standard", "Good"];
    let first = concat!(
        r#""prediction":2,"label":"Good","score":0.87,"#,
        r#""probabilities":{"Poor":0.04,"Standard":0.09,"Good":0.87}}"#
    );
    let second = concat!(
        r#""prediction":0,"label":"Poor","score":0.123456789012,"#,
        r#""probabilities":{"Poor":1.0,"Standard":0.0,"Good":1e-10}}"#
    );
    assert_eq!(written(Shape::One, vec![good.clone()], &classes, vec![0.04, 0.09, 0.87]), format!("{HEAD}{first}"));
    assert_eq!(
        written(Shape::Many, vec![good, poor], &classes, vec![0.04, 0.09, 0.87, 1.0, 0.0, 1e-10]),
        format!(r#"{HEAD}"predictions":[{{{first},{{{second}]}}"#)
    );
}

#[test]
fn what_a_model_does_not_give_is_left_out() {
    let prediction = |value| Prediction { value, label: None, score: None };
    assert_eq!(
        written(Shape::One, vec![prediction(Value::Number(1234.5))], &[], vec![]),
        format!(r#"{HEAD}"prediction":1234.5}}"#)
    );
    assert_eq!(
        written(Shape::Many, vec![prediction(Value::Text("sim \"ç\"".into()))], &["sim"], vec![]),
        format!(r#"{HEAD}"predictions":[{{"prediction":"sim \"ç\""}}]}}"#)
    );
}
