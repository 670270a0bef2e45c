//! Labels as objects beside the samples, in the samples' format, joined to them by request id and row.
//!
//! `_labels/model=<name>/version=<n>/date=<YYYY-MM-DD>/hour=<HH>/<content>.parquet` (or `.csv`), by the hour a label came;
//! as JSON lines `_labels/<name>/<version>/<YYYY>/<MM>/<DD>/<HH>/<content>.jsonl` in the form of SageMaker's ground truth:
//! a line a request, its rows lines of CSV, as in the capture that it is joined to. Labels of requests that are not
//! remembered lie under `_labels/unmatched/…`. The folder begins with an underscore, so that readers of the samples pass
//! it over.

use std::fmt::Write as _;
use std::sync::Arc;

use jiff::Timestamp;
use parquet::basic::{Compression, LogicalType, Repetition, TimeUnit, Type as PhysicalType, ZstdLevel};
use parquet::data_type::{ByteArray, ByteArrayType, DataType, DoubleType, Int32Type, Int64Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::types::Type;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use super::store::Waiting;
use crate::capture::Format;
use crate::capture::csv::put_text;
use crate::model::Digest;

/// Beside the samples.
const FOLDER: &str = "_labels";

/// As for samples.
const ZSTD_LEVEL: i32 = 3;

/// Why labels do not become an object.
#[derive(Debug, thiserror::Error)]
pub(super) enum EncodeError {
    #[error("labels do not become Parquet: {0}")]
    Parquet(#[from] parquet::errors::ParquetError),
    #[error("labels do not become JSON: {0}")]
    Json(#[from] serde_json::Error),
}

/// The key and the bytes of an object of `labels`, of which there is at least one; all are of one version and hour.
pub(super) fn encode(labels: &[Waiting], format: Format) -> Result<(String, Vec<u8>), EncodeError> {
    let body = match format {
        Format::Parquet => parquet(labels)?,
        Format::Jsonl => jsonl(labels)?.into_bytes(),
        Format::Csv => csv(labels).into_bytes(),
    };
    Ok((key(labels, &body, format), body))
}

fn key(labels: &[Waiting], body: &[u8], format: Format) -> String {
    let first = labels.first();
    let time = first.and_then(|label| Timestamp::from_millisecond(label.time).ok()).unwrap_or_default();
    let version = first.and_then(|label| label.version.as_deref());
    let mut name = Digest(Sha256::digest(body).into()).hex();
    name.truncate(32);
    let (extension, folder, hour) = match format {
        Format::Parquet => ("parquet", hive(version), time.strftime("date=%Y-%m-%d/hour=%H")),
        Format::Csv => ("csv", hive(version), time.strftime("date=%Y-%m-%d/hour=%H")),
        Format::Jsonl => {
            ("jsonl", version.map(|known| format!("{}/{}", known.model, known.version)), time.strftime("%Y/%m/%d/%H"))
        }
    };
    format!("{FOLDER}/{}/{hour}/{name}.{extension}", folder.as_deref().unwrap_or("unmatched"))
}

fn hive(version: Option<&super::store::Known>) -> Option<String> {
    version.map(|known| format!("model={}/version={}", known.model, known.version))
}

/// One column and where its values come from.
struct Column {
    name: &'static str,
    source: Source,
}

type Text = fn(&Waiting) -> Option<String>;

enum Source {
    Text(Text),
    Row,
    Time,
    Version,
    Number,
}

const COLUMNS: [Column; 10] = [
    Column { name: "request_id", source: Source::Text(|label| Some(label.request_id.clone())) },
    Column { name: "row", source: Source::Row },
    Column { name: "time", source: Source::Time },
    Column { name: "model_name", source: Source::Text(|label| Some(label.version.as_ref()?.model.to_string())) },
    Column { name: "model_version", source: Source::Version },
    Column { name: "model_digest", source: Source::Text(|label| Some(label.version.as_ref()?.digest.to_string())) },
    Column { name: "key_id", source: Source::Text(|label| Some(label.key_id.clone())) },
    Column { name: "class", source: Source::Text(|label| label.class.clone()) },
    Column { name: "label", source: Source::Text(|label| label.name.clone()) },
    Column { name: "number", source: Source::Number },
];

impl Column {
    fn field(&self) -> parquet::errors::Result<Arc<Type>> {
        let (physical, logical) = match self.source {
            Source::Text(_) => (PhysicalType::BYTE_ARRAY, Some(LogicalType::String)),
            Source::Row => (PhysicalType::INT32, None),
            Source::Time => (PhysicalType::INT64, Some(LogicalType::timestamp(true, TimeUnit::MILLIS))),
            Source::Version => (PhysicalType::INT64, None),
            Source::Number => (PhysicalType::DOUBLE, None),
        };
        let builder = Type::primitive_type_builder(self.name, physical).with_logical_type(logical);
        builder.with_repetition(Repetition::OPTIONAL).build().map(Arc::new)
    }
}

fn parquet(labels: &[Waiting]) -> parquet::errors::Result<Vec<u8>> {
    let fields = COLUMNS.iter().map(Column::field).collect::<Result<_, _>>()?;
    let schema = Arc::new(Type::group_type_builder("label").with_fields(fields).build()?);
    let properties = WriterProperties::builder()
        .set_created_by(concat!("modelgate ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?));
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties.build().into())?;
    let mut group = writer.next_row_group()?;
    for column in &COLUMNS {
        match column.source {
            Source::Text(text) => {
                write::<ByteArrayType>(&mut group, labels, |label| text(label).map(|text| ByteArray::from(&*text)))
            }
            Source::Row => write::<Int32Type>(&mut group, labels, |label| Some(label.row.cast_signed())),
            Source::Time => write::<Int64Type>(&mut group, labels, |label| Some(label.time)),
            Source::Version => {
                write::<Int64Type>(&mut group, labels, |label| Some(label.version.as_ref()?.version.0.cast_signed()))
            }
            Source::Number => write::<DoubleType>(&mut group, labels, |label| label.number),
        }?;
    }
    group.close()?;
    writer.into_inner()
}

fn write<T: DataType>(
    group: &mut SerializedRowGroupWriter<'_, Vec<u8>>,
    labels: &[Waiting],
    value: impl Fn(&Waiting) -> Option<T::T>,
) -> parquet::errors::Result<()> {
    let Some(mut chunk) = group.next_column()? else { return Ok(()) };
    let values: Vec<Option<T::T>> = labels.iter().map(value).collect();
    let levels: Vec<i16> = values.iter().map(|value| i16::from(value.is_some())).collect();
    let present: Vec<T::T> = values.into_iter().flatten().collect();
    chunk.typed::<T>().write_batch(&present, Some(&levels), None)?;
    chunk.close()
}

fn csv(labels: &[Waiting]) -> String {
    let mut out = COLUMNS.map(|column| column.name).join(",");
    out.push('\n');
    for label in labels {
        for (index, column) in COLUMNS.iter().enumerate() {
            if index > 0 {
                out.push(',');
            }
            put_field(&mut out, label, &column.source);
        }
        out.push('\n');
    }
    out
}

fn put_field(out: &mut String, label: &Waiting, source: &Source) {
    let written = match source {
        Source::Text(text) => {
            if let Some(text) = text(label) {
                put_text(out, &text);
            }
            Ok(())
        }
        Source::Row => write!(out, "{}", label.row),
        Source::Time => {
            out.push_str(&time(label.time, "%Y-%m-%dT%H:%M:%S%.3fZ"));
            Ok(())
        }
        Source::Version => label.version.iter().try_for_each(|known| write!(out, "{}", known.version)),
        Source::Number => label.number.iter().try_for_each(|number| write!(out, "{number}")),
    };
    written.expect("a String takes all that is written");
}

fn time(millisecond: i64, format: &str) -> String {
    Timestamp::from_millisecond(millisecond).map(|time| time.strftime(format).to_string()).unwrap_or_default()
}

/// A line of SageMaker's ground truth, with its members in the order of the documented form.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct GroundTruth<'a> {
    ground_truth_data: Data,
    event_metadata: EventMetadata<'a>,
    event_version: &'static str,
}

#[derive(Serialize)]
struct Data {
    data: String,
    encoding: &'static str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EventMetadata<'a> {
    event_id: &'a str,
}

/// A line for each run of labels of one request in the order of its rows; a row without a label is an empty line of CSV.
fn jsonl(labels: &[Waiting]) -> serde_json::Result<String> {
    let mut out = String::new();
    let follows = |one: &Waiting, next: &Waiting| one.request_id == next.request_id && one.row < next.row;
    for run in labels.chunk_by(follows) {
        let line = GroundTruth {
            ground_truth_data: Data { data: rows(run), encoding: "CSV" },
            event_metadata: EventMetadata { event_id: &run[0].request_id },
            event_version: "0",
        };
        out.push_str(&serde_json::to_string(&line)?);
        out.push('\n');
    }
    Ok(out)
}

/// The labels as lines of CSV, each in the place of its row. Classes as the model writes them, so that they compare with
/// the captured predictions.
fn rows(run: &[Waiting]) -> String {
    let mut out = String::new();
    let mut line = 0;
    for label in run {
        (line..label.row).for_each(|_| out.push('\n'));
        line = label.row;
        match (label.number, label.class.as_ref().or(label.name.as_ref())) {
            (Some(number), _) => out.push_str(&number.to_string()),
            (None, Some(text)) => put_text(&mut out, text),
            (None, None) => (),
        }
    }
    out
}
