//! What samples cost: `cargo run --release --example samples -- train.csv [folder]`.
//!
//! Reads a table, takes every row for a request of a model, and measures what the request path pays for a sample, how many
//! rows a second the spool accepts, and how large the table is in each format. With a folder the objects stay there.

#![expect(clippy::print_stdout, reason = "a program that prints its figures")]

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use modelgate::capture::protect::Policy;
use modelgate::capture::sink::{self, Sink};
use modelgate::capture::{self, Capture, Config, Counts, Format, Record, SamplingRate, Writer};
use modelgate::model::features::{Raw, Settings};
use modelgate::model::signature::{Column, Kind, Signature};
use modelgate::model::{Digest, Features, Identity, Inputs, Outputs, Prediction, Value, Version};
use tokio::time::Instant;

/// Requests between two looks of the writer: what the queue has room for.
const BATCH: usize = 4000;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let file = arguments.next().context("expected a CSV file")?;
    let kept = arguments.next();
    let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let table = Table::read(&text)?;
    println!("{}: {} rows, {} features, {} bytes", file.display(), table.rows.len(), table.columns, text.len());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for (name, format) in [("parquet", Format::Parquet), ("jsonl", Format::Jsonl), ("csv", Format::Csv)] {
        let scratch = tempfile::tempdir()?;
        let place = kept.as_ref().map_or_else(|| scratch.path().join("samples"), |folder| folder.join(name));
        runtime.block_on(measure(&table, name, format, scratch.path(), &place))?;
        let bytes = size_of(&place)?;
        println!("  {name}: {bytes} bytes, {:.3} of the table", ratio(bytes, text.len() as u64));
    }
    Ok(())
}

/// A table as a gateway sees it: one request a row.
struct Table {
    identity: Arc<Identity>,
    features: Arc<Features>,
    columns: usize,
    rows: Vec<Inputs>,
}

impl Table {
    /// Reads CSV without line ends in its fields. A column is numbers if every field of it is one, or empty.
    fn read(text: &str) -> anyhow::Result<Self> {
        let mut lines = text.lines().map(fields);
        let names = lines.next().context("the file is empty")?;
        let lines: Vec<Vec<String>> = lines.filter(|line| line.len() == names.len()).collect();
        let is_number = |index: usize| {
            lines.iter().all(|line| line[index].is_empty() || line[index].parse::<f64>().is_ok_and(f64::is_finite))
        };
        let column = |(index, name): (usize, &String)| {
            let kind = if is_number(index) { Kind::Double } else { Kind::Text };
            Column { name: name.as_str().into(), kind, required: false }
        };
        let signature = Signature::Columns(names.iter().enumerate().map(column).collect());
        let features = Features::new(&signature, Settings { coerce: true, ..Settings::default() })?;
        let rows = lines.iter().map(|line| inputs(&features, &names, line)).collect::<anyhow::Result<_>>()?;
        let identity = Identity::new("credit-score".parse()?, Version(3), Digest([7; 32]), None);
        Ok(Self { identity: Arc::new(identity), features: Arc::new(features), columns: names.len(), rows })
    }

    fn record(&self, index: usize, time: Timestamp) -> Record {
        // An answer of three classes that differs from row to row, as a model's does.
        let share = f32::from(u16::try_from(index % 9973).unwrap_or_default()) / 9973.0 / 2.0;
        let prediction =
            Prediction { value: Value::Integer(2), label: Some("Good".into()), score: Some(f64::from(1.0 - share)) };
        let classes: Arc<[Arc<str>]> = ["Poor".into(), "Standard".into(), "Good".into()].into();
        Record {
            request_id: format!("019ad9c8-b200-7000-8000-{index:012x}").into(),
            time,
            model: Arc::clone(&self.identity),
            features: Arc::clone(&self.features),
            key_id: "k1a2b3c4d5".into(),
            inputs: self.rows[index].clone(),
            outputs: Outputs::new(vec![prediction], classes, vec![share / 2.0, share / 2.0, 1.0 - share]),
        }
    }
}

fn inputs(features: &Features, names: &[String], line: &[String]) -> anyhow::Result<Inputs> {
    let mut rows = features.rows();
    rows.begin();
    for (name, field) in names.iter().zip(line) {
        rows.set(name, if field.is_empty() { Raw::Null } else { Raw::Text(field) });
    }
    rows.end();
    Ok(rows.finish()?)
}

/// The fields of a line of CSV.
fn fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    for letter in line.chars() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            _ => fields.last_mut().expect("it is never empty").push(letter),
        }
    }
    fields
}

/// Sends the table through capture into `place`.
async fn measure(table: &Table, name: &str, format: Format, scratch: &Path, place: &Path) -> anyhow::Result<()> {
    let config = Config {
        sink: sink::Config::Directory(place.to_owned()),
        format,
        rate: SamplingRate::ALL,
        rates: BTreeMap::new(),
        failed: false,
        flush_rows: NonZeroU32::new(1_000_000).context("it is not zero")?,
        flush_age: Duration::from_hours(1),
        protect: Policy::default(),
        secret: scratch.join("secret"),
        spool: scratch.join("spool"),
        spool_max_bytes: 8 << 30,
    };
    let sink = Sink::directory(place);
    let (capture, mut writer) = capture::open(config, sink, &mut getrandom::fill, 7)?;
    let noon = "2025-12-01T12:00:00Z".parse()?;
    let [mut offering, mut spooling] = [Duration::ZERO; 2];
    for start in (0..table.rows.len()).step_by(BATCH) {
        let records: Vec<Record> =
            (start..table.rows.len().min(start + BATCH)).map(|index| table.record(index, noon)).collect();
        offering += offer(&capture, records);
        spooling += spool(&capture, &mut writer).await?;
    }
    let before = resident("VmRSS")?;
    let started = Instant::now();
    let flushed = writer.flush_once(noon, true).await;
    let flushing = started.elapsed();
    let Counts { sampled, stored, .. } = capture.counts();
    anyhow::ensure!(sampled == stored && stored == table.rows.len() as u64, "{:?}", capture.counts());
    println!("{name}: {} objects", flushed.objects);
    println!("  offer: {:.0} ns a row on the request path", offering.as_secs_f64() * 1e9 / rows(sampled));
    println!("  spool: {:.0} rows a second, fsynced", rows(sampled) / spooling.as_secs_f64());
    println!("  flush: {:.0} rows a second, converted and stored", rows(sampled) / flushing.as_secs_f64());
    println!("  memory: {before} MiB before the flush, {} MiB at most so far", resident("VmHWM")?);
    Ok(())
}

/// Mebibytes of this process that are in memory, as Linux tells them.
fn resident(of: &str) -> anyhow::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(of)).context("Linux has such a line")?;
    let kibibytes: u64 = line.trim_matches(|letter: char| !letter.is_ascii_digit()).parse()?;
    Ok(kibibytes / 1024)
}

fn offer(capture: &Capture, records: Vec<Record>) -> Duration {
    let started = Instant::now();
    for record in records {
        let name = record.model.name.clone();
        capture.offer(&name, 1, || record);
    }
    started.elapsed()
}

async fn spool(capture: &Capture, writer: &mut Writer) -> anyhow::Result<Duration> {
    let started = Instant::now();
    writer.spool_once().await.context("the capture is there")?;
    anyhow::ensure!(capture.counts().dropped_queue_full == 0, "the queue was full");
    Ok(started.elapsed())
}

/// Bytes of the objects, without the manifests.
fn size_of(folder: &Path) -> anyhow::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            bytes += if entry.file_name() == "_manifest" { 0 } else { size_of(&entry.path())? };
        } else {
            bytes += entry.metadata()?.len();
        }
    }
    Ok(bytes)
}

#[expect(clippy::cast_precision_loss, reason = "tables of this world")]
fn ratio(bytes: u64, of: u64) -> f64 {
    bytes as f64 / of as f64
}

#[expect(clippy::cast_precision_loss, reason = "tables of this world")]
fn rows(count: u64) -> f64 {
    count as f64
}
