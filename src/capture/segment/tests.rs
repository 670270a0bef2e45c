//! Damage of every kind, and the laws of the encoding.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::*;

fn any_kind() -> impl Strategy<Value = Kind> {
    (0_u8..6).prop_map(|code| kind_from_code(code).unwrap())
}

fn any_header() -> impl Strategy<Value = Header> {
    let column = (".{0,12}", any_kind()).prop_map(|(name, kind)| Column {
        name: name.into(),
        kind,
        protection: Protection::Keep,
    });
    let prediction = (0_u8..4).prop_map(|code| ValueKind::from_code(code).unwrap());
    let classes = vec(".{0,8}".prop_map(Arc::from), 0..4);
    let shape = (prediction, vec(column, 0..6), classes);
    (any::<(u64, i64, u64, [u8; 32])>(), "[A-Za-z0-9][A-Za-z0-9._-]{0,20}", shape).prop_map(
        |((id, hour, version, digest), model, (prediction, features, classes))| {
            let schema = Schema { model: model.parse().unwrap(), version, digest, prediction, features, classes };
            Header { id, hour, schema }
        },
    )
}

fn any_cell() -> impl Strategy<Value = Cell> {
    prop_oneof![
        Just(Cell::Missing),
        any::<bool>().prop_map(Cell::Boolean),
        any::<i64>().prop_map(Cell::Integer),
        prop::num::f64::ANY.prop_filter("cells are finite", |value| value.is_finite()).prop_map(Cell::Float),
        ".{0,30}".prop_map(|text| Cell::Text(text.into())),
    ]
}

fn any_prediction() -> impl Strategy<Value = Prediction> {
    let value = prop_oneof![
        any::<i64>().prop_map(Value::Integer),
        (-1e300..1e300).prop_map(Value::Number),
        ".{0,12}".prop_map(|text| Value::Text(text.into())),
    ];
    (value, option::of(".{0,12}".prop_map(Arc::from)), option::of(0.0..1.0))
        .prop_map(|(value, label, score)| Prediction { value, label, score })
}

fn any_sample(width: usize) -> impl Strategy<Value = Sample> {
    let row = (vec(any_cell(), width), any_prediction(), vec(0_f32..1.0, 0..4))
        .prop_map(|(cells, prediction, probabilities)| Row { cells, prediction, probabilities });
    (".{0,40}", any::<i64>(), ".{0,12}", vec(row, 1..4)).prop_map(|(request_id, time, key_id, rows)| Sample {
        request_id: request_id.into(),
        time,
        key_id: key_id.into(),
        rows,
    })
}

fn any_contents() -> impl Strategy<Value = Contents> {
    any_header().prop_flat_map(|header| {
        let samples = vec(any_sample(header.schema.features.len()), 0..6);
        (Just(header), samples).prop_map(|(header, samples)| Contents { header, samples })
    })
}

/// The bytes, and where each frame begins.
fn encode(contents: &Contents) -> (Vec<u8>, Vec<usize>) {
    let mut bytes = Vec::new();
    contents.header.encode(&mut bytes);
    let mut starts = Vec::new();
    let mut before = 0;
    for sample in &contents.samples {
        starts.push(bytes.len());
        let cells = |row| contents.header.schema.protected(row, None);
        let rows = sample.rows.iter().map(|row| (cells(&row.cells), &row.prediction, &*row.probabilities));
        let Sample { request_id, time, key_id, .. } = sample;
        contents.header.encode_sample(before, request_id, *time, key_id, rows, &mut bytes);
        before += sample.rows.len() as u64;
    }
    (bytes, starts)
}

/// Three samples of one, two and three rows.
fn example() -> Contents {
    let features =
        ["Age", "Job"].map(|name| Column { name: name.into(), kind: Kind::Double, protection: Protection::Keep });
    let schema = Schema {
        model: "credit-score".parse().unwrap(),
        version: 3,
        digest: [7; 32],
        prediction: ValueKind::Integer,
        features: features.into(),
        classes: vec!["Poor".into(), "Good".into()],
    };
    let row = |value| Row {
        cells: vec![Cell::Float(40.5), Cell::Text("Doctor".into())],
        prediction: Prediction { value: Value::Integer(value), label: Some("Good".into()), score: Some(0.75) },
        probabilities: vec![0.25, 0.75],
    };
    let sample = |rows: i64| Sample {
        request_id: format!("request-{rows}").into(),
        time: 1_764_000_000_000,
        key_id: "k1".into(),
        rows: (0..rows).map(row).collect(),
    };
    Contents {
        header: Header { id: 0x0123_4567_89ab_cdef, hour: 490_000, schema },
        samples: vec![sample(1), sample(2), sample(3)],
    }
}

/// Damages the example and checks which samples are read, by their rows, and how many rows are known to be lost.
#[track_caller]
fn check_damage(damage: impl FnOnce(&mut Vec<u8>, &[usize]), read: &[usize], lost: u64) {
    let contents = example();
    let (mut bytes, starts) = encode(&contents);
    damage(&mut bytes, &starts);
    let found: Option<Vec<_>> =
        super::read(&bytes).map(|found| found.samples.iter().map(|sample| sample.rows.len()).collect());
    assert_eq!(found.unwrap_or_default(), read);
    let whole = read.iter().map(|rows| *rows as u64).sum();
    assert_eq!(survey(&bytes, contents.header.id), Survey { whole, damaged: lost });
}

#[test]
fn an_undamaged_segment_is_whole() {
    check_damage(|_, _| (), &[1, 2, 3], 0);
}

#[test]
fn a_damaged_body_loses_its_sample() {
    check_damage(|bytes, starts| bytes[starts[1] + HEAD + 3] ^= 1, &[1, 3], 2);
}

#[test]
fn a_damaged_head_loses_its_sample() {
    for byte in 0..HEAD {
        check_damage(|bytes, starts| bytes[starts[1] + byte] ^= 0x80, &[1, 3], 2);
    }
}

#[test]
fn a_damaged_head_of_the_first_sample_is_counted_too() {
    check_damage(|bytes, starts| bytes[starts[0]] ^= 1, &[2, 3], 1);
}

#[test]
fn a_damaged_header_loses_all_and_counts_them_by_the_id_in_the_name() {
    for byte in 0..40 {
        check_damage(|bytes, _| bytes[byte] ^= 4, &[], 6);
    }
}

#[test]
fn a_cut_body_is_counted() {
    check_damage(|bytes, _| bytes.truncate(bytes.len() - 1), &[1, 2], 3);
}

#[test]
fn a_cut_head_tells_nothing() {
    check_damage(|bytes, starts| bytes.truncate(starts[2] + HEAD - 1), &[1, 2], 0);
}

#[test]
fn a_zeroed_stretch_loses_what_it_covers() {
    check_damage(|bytes, starts| bytes[starts[0] + 5..starts[1] + 5].fill(0), &[3], 3);
}

#[test]
fn a_length_that_reaches_beyond_the_end_is_damage() {
    check_damage(|bytes, starts| bytes[starts[1]..starts[1] + 4].fill(0xff), &[1, 3], 2);
}

#[test]
fn a_frame_of_another_segment_is_none() {
    let mut other = example();
    other.header.id += 1;
    let (strange, starts) = encode(&other);
    check_damage(|bytes, _| bytes.extend_from_slice(&strange[starts[0]..]), &[1, 2, 3], 0);
}

#[test]
fn what_protects_a_feature_is_read_back() {
    let mut header = example().header;
    for protection in [Protection::Keep, Protection::Redact, Protection::Hash, Protection::Bucket(2.5)] {
        header.schema.features[0].protection = protection;
        let mut bytes = Vec::new();
        header.encode(&mut bytes);
        assert_eq!(super::read(&bytes).unwrap().header, header);
    }
}

#[test]
fn redacted_cells_are_not_in_the_bytes() {
    let mut contents = example();
    contents.header.schema.features[1].protection = Protection::Redact;
    let (bytes, _) = encode(&contents);
    assert!(!bytes.windows(6).any(|window| window == b"Doctor"));
    let found = super::read(&bytes).unwrap();
    assert_eq!(found.samples[0].rows[0].cells, [Cell::Float(40.5), Cell::Missing]);
}

proptest! {
    #[test]
    fn what_is_written_is_read(contents in any_contents()) {
        let (bytes, _) = encode(&contents);
        prop_assert_eq!(survey(&bytes, 0), Survey { whole: contents.rows(), damaged: 0 });
        prop_assert_eq!(super::read(&bytes), Some(contents));
    }

    #[test]
    fn any_bytes_are_read_without_a_panic(bytes in vec(any::<u8>(), 0..600), id: u64) {
        _ = super::read(&bytes);
        _ = survey(&bytes, id);
    }

    #[test]
    fn any_schema_is_read_without_a_panic(bytes in vec(any::<u8>(), 0..200)) {
        _ = Header::decode_schema(&bytes);
        _ = Sample::decode(&bytes, u32::MAX, 3);
    }

    #[test]
    fn any_damage_leaves_whole_samples_only(
        contents in any_contents(), at: prop::sample::Index, with in vec(any::<u8>(), 1..60), cut in option::of(any::<prop::sample::Index>())
    ) {
        let (mut bytes, _) = encode(&contents);
        let at = at.index(bytes.len());
        let end = bytes.len().min(at + with.len());
        bytes[at..end].copy_from_slice(&with[..end - at]);
        bytes.truncate(cut.map_or(usize::MAX, |cut| cut.index(bytes.len())));
        let survey = survey(&bytes, contents.header.id);
        prop_assert!(survey.whole + survey.damaged <= contents.rows());
        if let Some(found) = super::read(&bytes) {
            prop_assert_eq!(found.rows(), survey.whole);
            prop_assert!(found.samples.iter().all(|sample| contents.samples.contains(sample)));
        }
    }
}

#[test]
fn the_digest_is_of_what_is_whole() {
    let (bytes, starts) = encode(&example());
    let of = |bytes: &[u8]| Digest(Sha256::digest(bytes).into());
    assert_eq!(digest(&bytes), Some(of(&bytes)));
    assert_eq!(digest(&bytes[..bytes.len() - 1]), Some(of(&bytes[..starts[2]])), "a torn end");
    let with_garbage = [&bytes[..], &[0; 100]].concat();
    assert_eq!(digest(&with_garbage), Some(of(&bytes)));
    assert_eq!(digest(&bytes[1..]), None);
}
