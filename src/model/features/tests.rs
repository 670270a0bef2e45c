//! How rows are read against features: every kind of value, every mistake.

use proptest::prelude::*;

use super::*;
use crate::model::signature::{Column, Tensor};

fn column(name: &str, kind: Kind, required: bool) -> Column {
    Column { name: name.into(), kind, required }
}

fn tensor(name: &str, kind: Kind, shape: &[Option<usize>]) -> Tensor {
    Tensor { name: name.into(), kind, shape: shape.to_vec() }
}

fn names<T: for<'a> From<&'a str>>(names: &[&str]) -> Vec<T> {
    names.iter().map(|&name| name.into()).collect()
}

/// Settings that rename, in pairs of caller's name and signature's name.
fn renaming(pairs: &[(&str, &str)]) -> Settings {
    let rename = pairs.iter().map(|&(field, name)| (field.to_owned(), name.to_owned())).collect();
    Settings { rename, ..Settings::default() }
}

fn defaulting(column: &str, default: DefaultValue) -> Settings {
    Settings { default: BTreeMap::from([(column.to_owned(), default)]), ..Settings::default() }
}

fn features(signature: &Signature, settings: Settings) -> Features {
    Features::new(signature, settings).expect("the settings fit the signature")
}

/// Rows of fields through [`Rows`].
fn read(features: &Features, rows: &[&[(&str, Raw<'_>)]]) -> Result<Inputs, InvalidInput> {
    let mut reader = features.rows();
    for row in rows {
        reader.begin();
        for (field, value) in *row {
            reader.set(field, *value);
        }
        reader.end();
    }
    reader.finish()
}

/// The mistakes as `row field: expected / found`.
fn mistakes(result: Result<Inputs, InvalidInput>) -> Vec<String> {
    let error = result.expect_err("a mistake");
    let line = |e: FieldError| format!("{} {}: {} / {}", e.row, e.feature, e.expected, e.found);
    error.errors.into_iter().map(line).collect()
}

/// One value for one required column; `Err` holds what was expected, and what was found.
fn check(kind: Kind, coerce: bool, value: Raw<'_>, expected: Result<Cell, (&str, &str)>) {
    let signature = Signature::Columns(vec![column("x", kind, true)]);
    let features = features(&signature, Settings { coerce, ..Settings::default() });
    let result = read(&features, &[&[("x", value)]]);
    let result = result
        .map(|inputs| inputs.row(0)[0].clone())
        .map_err(|InvalidInput { mut errors, .. }| errors.remove(0))
        .map_err(|error| (error.expected, error.found));
    let expected = expected.map_err(|(words, found)| (words.to_owned(), found.to_owned()));
    assert_eq!(result, expected, "{kind:?}, coerce {coerce}, {value:?}");
}

#[test]
fn booleans() {
    let words = "true or false";
    for coerce in [false, true] {
        check(Kind::Boolean, coerce, Raw::Boolean(true), Ok(Cell::Boolean(true)));
        check(Kind::Boolean, coerce, Raw::Boolean(false), Ok(Cell::Boolean(false)));
        check(Kind::Boolean, coerce, Raw::Integer(1), Err((words, "1")));
        check(Kind::Boolean, coerce, Raw::Float(0.0), Err((words, "0.0")));
        check(Kind::Boolean, coerce, Raw::Text("True"), Err((words, "\"True\"")));
        check(Kind::Boolean, coerce, Raw::Text(""), Err((words, "\"\"")));
        check(Kind::Boolean, coerce, Raw::Null, Err((words, "null")));
        check(Kind::Boolean, coerce, Raw::Nested("a list"), Err((words, "a list")));
    }
    check(Kind::Boolean, true, Raw::Text("false"), Ok(Cell::Boolean(false)));
    check(Kind::Boolean, true, Raw::Text("true"), Ok(Cell::Boolean(true)));
    check(Kind::Boolean, false, Raw::Text("false"), Err((words, "\"false\"")));
}

#[test]
fn whole_numbers_of_both_widths() {
    let words = "a whole number";
    for kind in [Kind::Integer, Kind::Long] {
        for coerce in [false, true] {
            check(kind, coerce, Raw::Integer(-40), Ok(Cell::Integer(-40)));
            check(kind, coerce, Raw::Float(3.0), Ok(Cell::Integer(3)));
            check(kind, coerce, Raw::Float(-0.0), Ok(Cell::Integer(0)));
            check(kind, coerce, Raw::Float(3.5), Err((words, "3.5")));
            check(kind, coerce, Raw::Float(f64::NAN), Err((words, "NaN")));
            check(kind, coerce, Raw::Float(f64::INFINITY), Err((words, "inf")));
            check(kind, coerce, Raw::NotFinite("1e400"), Err((words, "1e400")));
            check(kind, coerce, Raw::Boolean(true), Err((words, "true")));
            check(kind, coerce, Raw::Null, Err((words, "null")));
            check(kind, coerce, Raw::Text("forty"), Err((words, "\"forty\"")));
            check(kind, coerce, Raw::Nested("an object"), Err((words, "an object")));
        }
        check(kind, true, Raw::Text("40"), Ok(Cell::Integer(40)));
        check(kind, true, Raw::Text("3.0"), Ok(Cell::Integer(3)));
        check(kind, true, Raw::Text("3.5"), Err((words, "\"3.5\"")));
        check(kind, true, Raw::Text(""), Err((words, "\"\"")));
        check(kind, true, Raw::Text("nan"), Err((words, "\"nan\"")));
        check(kind, false, Raw::Text("40"), Err((words, "\"40\"")));
    }
}

#[test]
fn whole_numbers_keep_their_width() {
    let words = "a whole number from -2147483648 to 2147483647";
    check(Kind::Integer, true, Raw::Integer(2_147_483_647), Ok(Cell::Integer(2_147_483_647)));
    check(Kind::Integer, true, Raw::Integer(-2_147_483_648), Ok(Cell::Integer(-2_147_483_648)));
    check(Kind::Integer, true, Raw::Integer(2_147_483_648), Err((words, "2147483648")));
    check(Kind::Integer, true, Raw::Integer(3_000_000_000), Err((words, "3000000000")));
    check(Kind::Integer, true, Raw::Float(3e9), Err((words, "3000000000.0")));
    check(Kind::Integer, true, Raw::Float(1e300), Err((words, "1e300")));
    check(Kind::Integer, true, Raw::Unsigned(u64::MAX), Err((words, "18446744073709551615")));
    check(Kind::Integer, true, Raw::Text("3000000000"), Err((words, "\"3000000000\"")));
}

#[test]
fn whole_numbers_of_64_bits_are_exact() {
    let words = "a whole number of 64 bits, in plain digits";
    let past = 9_007_199_254_740_993; // 2^53 + 1: no float has it
    check(Kind::Long, true, Raw::Integer(past), Ok(Cell::Integer(past)));
    check(Kind::Long, true, Raw::Text("9007199254740993"), Ok(Cell::Integer(past)));
    check(Kind::Long, true, Raw::Integer(i64::MAX), Ok(Cell::Integer(i64::MAX)));
    check(Kind::Long, true, Raw::Integer(i64::MIN), Ok(Cell::Integer(i64::MIN)));
    check(Kind::Long, true, Raw::Float(9_007_199_254_740_991.0), Ok(Cell::Integer(past - 2)));
    // As a float it may have been its neighbour when it was written.
    check(Kind::Long, true, Raw::Float(9_007_199_254_740_992.0), Err((words, "9007199254740992.0")));
    check(Kind::Long, true, Raw::Unsigned(1 << 63), Err((words, "9223372036854775808")));
    check(Kind::Long, true, Raw::Float(-1e19), Err((words, "-1e19")));
    check(Kind::Long, true, Raw::Text("9223372036854775808"), Err((words, "\"9223372036854775808\"")));
}

#[test]
fn floats_of_both_widths() {
    for kind in [Kind::Float, Kind::Double] {
        for coerce in [false, true] {
            check(kind, coerce, Raw::Float(0.1), Ok(Cell::Float(0.1)));
            check(kind, coerce, Raw::Integer(40), Ok(Cell::Float(40.0)));
            check(kind, coerce, Raw::Unsigned(1 << 63), Ok(Cell::Float(9_223_372_036_854_775_808.0)));
            check(kind, coerce, Raw::Float(f64::NAN), Err(("a finite number", "NaN")));
            check(kind, coerce, Raw::Float(f64::NEG_INFINITY), Err(("a finite number", "-inf")));
            check(kind, coerce, Raw::NotFinite("Infinity"), Err(("a finite number", "Infinity")));
            check(kind, coerce, Raw::Boolean(true), Err(("a number", "true")));
            check(kind, coerce, Raw::Null, Err(("a number", "null")));
            check(kind, coerce, Raw::Text("x"), Err(("a number", "\"x\"")));
            check(kind, coerce, Raw::Nested("a list"), Err(("a number", "a list")));
        }
        check(kind, true, Raw::Text("40"), Ok(Cell::Float(40.0)));
        check(kind, true, Raw::Text("-1.5e3"), Ok(Cell::Float(-1500.0)));
        check(kind, true, Raw::Text("1e400"), Err(("a finite number", "\"1e400\"")));
        check(kind, true, Raw::Text("NaN"), Err(("a finite number", "\"NaN\"")));
        check(kind, true, Raw::Text("infinity"), Err(("a finite number", "\"infinity\"")));
        check(kind, false, Raw::Text("40"), Err(("a number", "\"40\"")));
    }
}

#[test]
fn floats_are_finite_in_their_own_width() {
    let words = "a number that fits a 32-bit float";
    check(Kind::Float, true, Raw::Float(3.4e38), Ok(Cell::Float(3.4e38)));
    check(Kind::Float, true, Raw::Float(1e39), Err((words, "1e39")));
    check(Kind::Float, true, Raw::Float(-1e40), Err((words, "-1e40")));
    check(Kind::Float, true, Raw::Text("1e39"), Err((words, "\"1e39\"")));
    check(Kind::Double, true, Raw::Float(1e39), Ok(Cell::Float(1e39)));
}

#[test]
fn a_negative_zero_keeps_its_sign() {
    let signature = Signature::Columns(vec![column("x", Kind::Double, true)]);
    let inputs = read(&features(&signature, Settings::default()), &[&[("x", Raw::Float(-0.0))]]).unwrap();
    assert!(matches!(inputs.row(0), [Cell::Float(zero)] if zero.is_sign_negative()));
}

#[test]
fn texts() {
    for coerce in [false, true] {
        check(Kind::Text, coerce, Raw::Text("Ação 🙂"), Ok(Cell::Text("Ação 🙂".into())));
        check(Kind::Text, coerce, Raw::Text(""), Ok(Cell::Text("".into())));
        check(Kind::Text, coerce, Raw::Integer(5), Err(("text", "5")));
        check(Kind::Text, coerce, Raw::Unsigned(u64::MAX), Err(("text", "18446744073709551615")));
        check(Kind::Text, coerce, Raw::Float(5.5), Err(("text", "5.5")));
        check(Kind::Text, coerce, Raw::Boolean(false), Err(("text", "false")));
        check(Kind::Text, coerce, Raw::NotFinite("NaN"), Err(("text", "NaN")));
        check(Kind::Text, coerce, Raw::Null, Err(("text", "null")));
    }
    let longest = "é".repeat(TEXT_MAX_BYTES / 2);
    check(Kind::Text, true, Raw::Text(&longest), Ok(Cell::Text(longest.as_str().into())));
    let found = format!("\"{}…\"", "é".repeat(61));
    check(Kind::Text, true, Raw::Text(&format!("{longest}x")), Err(("text of at most 4096 bytes", &found)));
}

#[test]
fn gaps_are_filled_or_named() {
    let signature = Signature::Columns(vec![
        column("a", Kind::Long, true),
        column("b", Kind::Double, false),
        column("c", Kind::Text, true),
    ]);
    let plain = features(&signature, Settings::default());
    let filled = features(&signature, defaulting("c", DefaultValue::Text("none".to_owned())));
    assert!(plain.list()[2].required && !filled.list()[2].required);

    let row = read(&filled, &[&[("a", Raw::Integer(1))]]).unwrap();
    assert_eq!(row.row(0), [Cell::Integer(1), Cell::Missing, Cell::Text("none".into())]);
    let row = read(&filled, &[&[("c", Raw::Null), ("b", Raw::Null), ("a", Raw::Integer(1))]]).unwrap();
    assert_eq!(row.row(0), [Cell::Integer(1), Cell::Missing, Cell::Text("none".into())]);

    assert_eq!(
        mistakes(read(&plain, &[&[], &[("c", Raw::Null), ("a", Raw::Integer(1))]])),
        ["0 a: a whole number / nothing", "0 c: text / nothing", "1 c: text / null"]
    );
}

#[test]
fn fields_come_in_any_order_and_once() {
    let signature = Signature::Columns(vec![
        column("a", Kind::Long, true),
        column("b", Kind::Long, true),
        column("c", Kind::Long, true),
    ]);
    let features = features(&signature, Settings::default());
    let (a, b, c) = (("a", Raw::Integer(1)), ("b", Raw::Integer(2)), ("c", Raw::Integer(3)));
    for order in [[a, b, c], [a, c, b], [b, a, c], [b, c, a], [c, a, b], [c, b, a]] {
        let inputs = read(&features, &[&order, &order]).unwrap();
        for row in 0..2 {
            assert_eq!(inputs.row(row), [Cell::Integer(1), Cell::Integer(2), Cell::Integer(3)], "{order:?}");
        }
    }
    assert_eq!(mistakes(read(&features, &[&[a, b, a, c]])), ["0 a: one value / the field twice"]);
    assert_eq!(
        mistakes(read(&features, &[&[("a", Raw::Null), a, b, c]])),
        ["0 a: a whole number / null", "0 a: one value / the field twice"]
    );
}

#[test]
fn mistakes_speak_the_callers_names() {
    let signature = Signature::Columns(vec![column("Age", Kind::Long, true), column("Income", Kind::Double, true)]);
    let features = features(&signature, renaming(&[("idade", "Age")]));
    assert_eq!((&*features.list()[0].name, &*features.list()[0].field), ("Age", "idade"));
    let income = ("Income", Raw::Integer(1));
    assert!(read(&features, &[&[("idade", Raw::Integer(40)), income]]).is_ok());
    assert_eq!(mistakes(read(&features, &[&[("idade", Raw::Text("x")), income]])), ["0 idade: a whole number / \"x\""]);
    assert_eq!(mistakes(read(&features, &[&[income]])), ["0 idade: a whole number / nothing"]);
    assert_eq!(
        mistakes(read(&features, &[&[("Age", Raw::Integer(40)), income]])),
        ["0 Age: no such field; did you mean `idade`? / 40", "0 idade: a whole number / nothing"]
    );
}

#[test]
fn a_wrong_name_gets_the_nearest() {
    let signature = Signature::Columns(vec![
        column("Monthly_Inhand_Salary", Kind::Double, false),
        column("Num_Bank_Accounts", Kind::Double, false),
        column("Age", Kind::Double, false),
        column("x", Kind::Double, false),
    ]);
    let features = features(&signature, Settings::default());
    for (written, meant) in [
        ("Monthly_Inhand_Salery", Some("Monthly_Inhand_Salary")),
        ("Num_Bank_Account", Some("Num_Bank_Accounts")),
        ("Num-Bank-Accounts", Some("Num_Bank_Accounts")),
        ("Num Bank  Accounts", None),
        ("age", Some("Age")),
        ("Aage", Some("Age")),
        ("y", None),
        ("", None),
        ("zzzzzz", None),
    ] {
        let expected = match meant {
            Some(meant) => format!("0 {written}: no such field; did you mean `{meant}`? / 1"),
            None => format!("0 {written}: no such field / 1"),
        };
        assert_eq!(mistakes(read(&features, &[&[(written, Raw::Integer(1))]])), [expected]);
    }
    let long = "n".repeat(1000);
    let shown = format!("0 {}…: no such field / null", "n".repeat(63));
    assert_eq!(mistakes(read(&features, &[&[(&long, Raw::Null)]])), [shown]);
}

#[test]
fn ten_mistakes_are_told_and_all_counted() {
    let signature = Signature::Columns(vec![column("a", Kind::Long, true), column("b", Kind::Long, true)]);
    let features = features(&signature, Settings::default());
    let good: &[_] = &[("a", Raw::Integer(1)), ("b", Raw::Integer(1))];
    let bad: &[_] = &[("b", Raw::Boolean(true))];
    let rows: Vec<_> = [good].into_iter().chain([bad; 7]).chain([good; 3]).collect();
    let error = read(&features, &rows).unwrap_err();
    assert_eq!((error.errors.len(), error.total), (ERRORS_KEPT, 14));
    assert_eq!(error.errors[0].row, 1);
    assert_eq!(error.errors[9].row, 5);
}

fn jobs(unseen: Unseen) -> Features {
    let signature = Signature::Columns(vec![
        column("Age", Kind::Long, true),
        column("Job_Doctor", Kind::Double, true),
        column("Job_Type_Night", Kind::Boolean, true),
        column("Job_Lawyer", Kind::Double, true),
        column("Job_Type_Day", Kind::Boolean, true),
        column("City", Kind::Text, true),
    ]);
    features(&signature, Settings { one_hot: names(&["Job", "Job_Type"]), unseen, ..Settings::default() })
}

#[test]
fn one_hot_columns_become_one_feature() {
    let features = jobs(Unseen::Count);
    let list: Vec<_> = features.list().iter().map(|f| (&*f.name, f.kind, f.required, f.target.clone())).collect();
    let one_hot =
        |categories: &[(&str, usize)]| Target::OneHot(categories.iter().map(|&(c, i)| (c.into(), i)).collect());
    assert_eq!(
        list,
        [
            ("Age", Kind::Long, true, Target::Column(0)),
            ("Job", Kind::Text, true, one_hot(&[("Doctor", 1), ("Lawyer", 3)])),
            ("Job_Type", Kind::Text, true, one_hot(&[("Night", 2), ("Day", 4)])),
            ("City", Kind::Text, true, Target::Column(5)),
        ]
    );
    assert_eq!(features.columns(), 6);
}

fn job_row(job: Raw<'static>) -> [(&'static str, Raw<'static>); 4] {
    [("Age", Raw::Integer(40)), ("Job", job), ("Job_Type", Raw::Text("Day")), ("City", Raw::Text("Rio"))]
}

#[test]
fn known_categories_share_their_text() {
    let features = jobs(Unseen::Count);
    let inputs = read(&features, &[&job_row(Raw::Text("Lawyer")), &job_row(Raw::Text("Lawyer"))]).unwrap();
    let [Cell::Text(first), Cell::Text(second)] = [&inputs.row(0)[1], &inputs.row(1)[1]] else { panic!("two texts") };
    assert!(Arc::ptr_eq(first, second));
    assert!(inputs.unseen().is_empty());
}

#[test]
fn unseen_categories_are_counted_or_refused() {
    let rows = [job_row(Raw::Text("Lawyer")), job_row(Raw::Text("lawyer")), job_row(Raw::Text("Pilot"))];
    let rows: Vec<&[_]> = rows.iter().map(|row| &row[..]).collect();
    let inputs = read(&jobs(Unseen::Count), &rows).unwrap();
    assert_eq!(inputs.row(2)[1], Cell::Text("Pilot".into()));
    assert_eq!(inputs.unseen(), [(1, 1), (2, 1)]);
    assert_eq!(
        mistakes(read(&jobs(Unseen::Refuse), &rows)),
        ["1 Job: one of Doctor, Lawyer / \"lawyer\"", "2 Job: one of Doctor, Lawyer / \"Pilot\""]
    );
    for unseen in [Unseen::Count, Unseen::Refuse] {
        assert_eq!(mistakes(read(&jobs(unseen), &[&job_row(Raw::Integer(1))])), ["0 Job: text / 1"]);
        assert_eq!(mistakes(read(&jobs(unseen), &[&job_row(Raw::Null)])), ["0 Job: text / null"]);
    }
}

#[test]
fn a_group_with_a_default_may_be_absent() {
    let signature = Signature::Columns(vec![column("Job_Doctor", Kind::Double, true)]);
    let settings = |default: &str, unseen| Settings {
        one_hot: names(&["Job"]),
        unseen,
        ..defaulting("Job", DefaultValue::Text(default.to_owned()))
    };
    // A category without a column is how encodings that drop the first one write it. Nobody sent it: it is not unseen.
    let inputs = read(&features(&signature, settings("Other", Unseen::Count)), &[&[]]).unwrap();
    assert_eq!((inputs.row(0), inputs.unseen()), (&[Cell::Text("Other".into())][..], &[][..]));
    let inputs = read(&features(&signature, settings("Doctor", Unseen::Refuse)), &[&[]]).unwrap();
    assert_eq!(inputs.row(0), [Cell::Text("Doctor".into())]);
    check_settings(
        &signature,
        settings("Other", Unseen::Refuse),
        FeaturesError::WrongDefault { column: "Job".to_owned(), expected: "one of its categories" },
    );
}

fn check_settings(signature: &Signature, settings: Settings, expected: FeaturesError) {
    assert_eq!(Features::new(signature, settings).map(|_| ()), Err(expected));
}

#[test]
fn settings_must_fit_the_signature() {
    let signature = Signature::Columns(vec![
        column("Age", Kind::Integer, true),
        column("Job_Doctor", Kind::Text, true),
        column("City", Kind::Text, true),
    ]);
    let missing = |setting, column: &str| FeaturesError::NoSuchColumn { setting, column: column.to_owned() };
    let one_hot = |group: &str| Settings { one_hot: names(&[group]), ..Settings::default() };
    check_settings(&signature, renaming(&[("idade", "age")]), missing("rename", "age"));
    check_settings(&signature, renaming(&[("a", "Age"), ("b", "Age")]), FeaturesError::RenamedTwice("Age".to_owned()));
    check_settings(&signature, renaming(&[("City", "Age")]), FeaturesError::Twice("City".to_owned()));
    check_settings(&signature, one_hot("Color"), missing("one_hot", "Color"));
    check_settings(&signature, one_hot("Age"), missing("one_hot", "Age"));
    check_settings(&signature, one_hot("Job"), FeaturesError::NotOneHot("Job_Doctor".to_owned()));
    check_settings(&signature, defaulting("age", DefaultValue::Integer(1)), missing("default", "age"));
    check_settings(&signature, Settings { columns: names(&["a"]), ..Settings::default() }, FeaturesError::NotOneTensor);
    let swapped = features(&signature, renaming(&[("Age", "City"), ("City", "Age")]));
    assert_eq!(&*swapped.list()[0].field, "City");
}

#[test]
fn a_group_may_not_have_the_name_of_a_column() {
    let signature = Signature::Columns(vec![column("Job", Kind::Long, true), column("Job_Doctor", Kind::Long, true)]);
    check_settings(
        &signature,
        Settings { one_hot: names(&["Job"]), ..Settings::default() },
        FeaturesError::Twice("Job".to_owned()),
    );
}

#[test]
fn defaults_are_values_of_their_column() {
    let signature = |kind| Signature::Columns(vec![column("x", kind, true)]);
    let wrong = |expected| Err(FeaturesError::WrongDefault { column: "x".to_owned(), expected });
    for (kind, default, expected) in [
        (Kind::Boolean, DefaultValue::Boolean(true), Ok(Cell::Boolean(true))),
        (Kind::Boolean, DefaultValue::Integer(1), wrong("true or false")),
        (Kind::Integer, DefaultValue::Integer(3), Ok(Cell::Integer(3))),
        (Kind::Integer, DefaultValue::Integer(3_000_000_000), wrong("a whole number from -2147483648 to 2147483647")),
        (Kind::Integer, DefaultValue::Text("3".to_owned()), wrong("a whole number")),
        (Kind::Long, DefaultValue::Float(3.0), Ok(Cell::Integer(3))),
        (Kind::Long, DefaultValue::Float(3.5), wrong("a whole number")),
        (Kind::Float, DefaultValue::Float(1e39), wrong("a number that fits a 32-bit float")),
        (Kind::Double, DefaultValue::Integer(3), Ok(Cell::Float(3.0))),
        (Kind::Double, DefaultValue::Float(f64::NAN), wrong("a finite number")),
        (Kind::Text, DefaultValue::Integer(3), wrong("text")),
    ] {
        let label = format!("{kind:?} {default:?}");
        let result = Features::new(&signature(kind), defaulting("x", default));
        let result = result.map(|features| features.list()[0].default.clone().expect("a default"));
        assert_eq!(result, expected, "{label}");
    }
}

/// Fields and targets of what a signature becomes.
fn fields(features: &Features) -> Vec<(&str, Target)> {
    features.list().iter().map(|feature| (&*feature.field, feature.target.clone())).collect()
}

#[test]
fn tensors_become_a_feature_for_each_element() {
    let signature = Signature::Tensors(vec![
        tensor("age", Kind::Long, &[]),
        tensor("X", Kind::Float, &[Some(3)]),
        tensor("city", Kind::Text, &[Some(1)]),
    ]);
    let features = features(&signature, renaming(&[("income", "X_1")]));
    assert_eq!(
        fields(&features),
        [
            ("age", Target::Column(0)),
            ("X_0", Target::Column(1)),
            ("income", Target::Column(2)),
            ("X_2", Target::Column(3)),
            ("city", Target::Column(4)),
        ]
    );
    assert_eq!(features.columns(), 5);
    let rows = features.rows();
    assert_eq!(rows.list("age"), None);
    assert_eq!(rows.list("X"), Some(List { first: 1, len: 3 }));
    assert_eq!(rows.list("city"), Some(List { first: 4, len: 1 }));
    assert_eq!(rows.list("X_0"), None);
}

#[test]
fn the_elements_of_one_tensor_can_have_names() {
    let columns = || Settings { columns: names(&["age", "income"]), ..Settings::default() };
    for shape in [Some(2), None] {
        let signature = Signature::Tensors(vec![tensor("X", Kind::Float, &[shape])]);
        let features = features(&signature, Settings { one_hot: Vec::new(), ..columns() });
        assert_eq!(fields(&features), [("age", Target::Column(0)), ("income", Target::Column(1))]);
        assert_eq!(&*features.list()[1].name, "income");
        assert_eq!(features.rows().list("X"), Some(List { first: 0, len: 2 }));
    }
    let wide = Signature::Tensors(vec![tensor("X", Kind::Float, &[Some(3)])]);
    let wrong = FeaturesError::WrongColumns { tensor: "X".to_owned(), given: 2, wanted: 3 };
    check_settings(&wide, columns(), wrong);
    let two = Signature::Tensors(vec![tensor("X", Kind::Float, &[Some(2)]), tensor("Y", Kind::Float, &[Some(2)])]);
    check_settings(&two, columns(), FeaturesError::NotOneTensor);
    let twice = Settings { columns: names(&["a", "a"]), ..Settings::default() };
    check_settings(
        &Signature::Tensors(vec![tensor("X", Kind::Float, &[Some(2)])]),
        twice,
        FeaturesError::Twice("a".to_owned()),
    );
}

#[test]
fn a_tensor_with_one_hot_elements_is_no_list() {
    let signature = Signature::Tensors(vec![tensor("X", Kind::Float, &[Some(3)])]);
    let settings =
        Settings { columns: names(&["age", "job_a", "job_b"]), one_hot: names(&["job"]), ..Settings::default() };
    let features = features(&signature, settings);
    assert_eq!(features.list().len(), 2);
    assert_eq!(features.rows().list("X"), None);
}

#[test]
fn tensors_that_are_no_rows_of_values_are_refused() {
    let tensor = |shape: &[Option<usize>]| Signature::Tensors(vec![tensor("X", Kind::Float, shape)]);
    let dimensions = FeaturesError::Dimensions { tensor: "X".to_owned(), dimensions: 3 };
    check_settings(&tensor(&[Some(2), Some(3)]), Settings::default(), dimensions);
    check_settings(&tensor(&[None]), Settings::default(), FeaturesError::NoWidth("X".to_owned()));
    check_settings(&tensor(&[Some(0)]), Settings::default(), FeaturesError::Empty);
    check_settings(&Signature::Columns(Vec::new()), Settings::default(), FeaturesError::Empty);
    check_settings(&tensor(&[Some(4097)]), Settings::default(), FeaturesError::TooMany(4097));
    assert!(Features::new(&tensor(&[Some(4096)]), Settings::default()).is_ok());
    let columns = (0..4097).map(|i| column(&format!("c{i}"), Kind::Long, true)).collect();
    check_settings(&Signature::Columns(columns), Settings::default(), FeaturesError::TooMany(4097));
    let clash =
        Signature::Tensors(vec![self::tensor("X", Kind::Float, &[Some(2)]), self::tensor("X_1", Kind::Float, &[])]);
    check_settings(&clash, Settings::default(), FeaturesError::Twice("X_1".to_owned()));
}

/// One row with a list for the tensor `X` of three values.
fn list_row(features: &Features, values: &[Raw<'_>], more: &[(&str, Raw<'_>)]) -> Result<Inputs, InvalidInput> {
    let mut rows = features.rows();
    rows.begin();
    let list = rows.list("X").expect("X is a tensor");
    for (position, value) in values.iter().enumerate() {
        rows.set_element(list, position, *value);
    }
    rows.end_list("X", list, values.len());
    for (field, value) in more {
        rows.set(field, *value);
    }
    rows.end();
    rows.finish()
}

#[test]
fn a_tensor_may_come_as_a_list() {
    let signature = Signature::Tensors(vec![tensor("age", Kind::Long, &[]), tensor("X", Kind::Double, &[Some(3)])]);
    let features = features(&signature, Settings::default());
    let (one, age) = (Raw::Integer(1), [("age", Raw::Integer(40))]);
    let row = list_row(&features, &[one, Raw::Float(2.5), one], &age).unwrap();
    assert_eq!(row.row(0), [Cell::Integer(40), Cell::Float(1.0), Cell::Float(2.5), Cell::Float(1.0)]);

    for (values, found) in [(&[one, one][..], 2), (&[one, one, one, one], 4), (&[], 0)] {
        assert_eq!(mistakes(list_row(&features, values, &age)), [format!("0 X: a list of 3 / a list of {found}")]);
    }
    assert_eq!(
        mistakes(list_row(&features, &[one, Raw::Boolean(true), Raw::Null], &age)),
        ["0 X_1: a number / true", "0 X_2: a number / null"]
    );
    let twice = [("X_0", one), age[0]];
    assert_eq!(mistakes(list_row(&features, &[one, one, one], &twice)), ["0 X_0: one value / the field twice"]);
}

#[test]
fn many_features_and_many_rows() {
    let columns = (0..FEATURES_MAX).map(|i| column(&format!("c{i}"), Kind::Long, i % 2 == 0)).collect();
    let features = features(&Signature::Columns(columns), Settings::default());
    let fields: Vec<_> = features.list().iter().step_by(2).map(|feature| feature.field.to_string()).collect();
    let mut rows = features.rows();
    for row in 0..3 {
        rows.begin();
        for field in fields.iter().rev() {
            rows.set(field, Raw::Integer(row));
        }
        rows.end();
    }
    assert_eq!(rows.len(), 3);
    let inputs = rows.finish().unwrap();
    assert_eq!(inputs.rows(), 3);
    for row in 0..3 {
        let expected = [Cell::Integer(i64::try_from(row).unwrap()), Cell::Missing];
        assert!(inputs.row(row).chunks(2).all(|pair| pair == expected));
    }
}

proptest! {
    #[test]
    fn a_cell_is_finite_in_its_width_or_refused(bits: u64, wide: bool) {
        let kind = if wide { Kind::Double } else { Kind::Float };
        let signature = Signature::Columns(vec![column("x", kind, true)]);
        let value = f64::from_bits(bits);
        let fits = value.is_finite() && (wide || value.abs() < 3.402_823_567_797_336_6e38);
        match read(&features(&signature, Settings::default()), &[&[("x", Raw::Float(value))]]) {
            Ok(inputs) => {
                prop_assert!(fits);
                prop_assert!(matches!(inputs.row(0), [Cell::Float(cell)] if cell.to_bits() == bits));
            }
            Err(_) => prop_assert!(!fits),
        }
    }

    #[test]
    fn error_texts_are_short(field in ".{0,200}", text in ".{0,200}") {
        let signature = Signature::Columns(vec![column("x", Kind::Long, false)]);
        let features = features(&signature, Settings::default());
        let error = read(&features, &[&[(&field, Raw::Text(&text)), ("x", Raw::Text(&text)), ("x", Raw::NotFinite(&text))]]);
        for error in error.expect_err("x is there twice").errors {
            prop_assert!(error.feature.chars().count() <= 64);
            prop_assert!(error.found.chars().count() <= 64);
            prop_assert!(error.expected.chars().count() <= 128);
        }
    }
}
