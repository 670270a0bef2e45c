//! From a label to an object: the three formats, a sink that is away, and a kill.

use super::*;
use crate::capture::sink::Sink;
use crate::model::{Digest, Outcomes, Outputs, Prediction, Value, Version};

fn noon() -> Timestamp {
    "2025-12-01T12:00:00Z".parse().unwrap()
}

struct Desk {
    folder: tempfile::TempDir,
    feedback: Feedback,
    keeper: Keeper,
    sender: Sender,
}

fn open(folder: &std::path::Path, format: Format) -> (Feedback, Keeper, Sender) {
    let config = Config {
        age: Duration::from_hours(24),
        max_bytes: 1 << 20,
        max_labels: 10,
        file: folder.join("feedback.db"),
        objects: Some(Objects { format, flush_rows: 100, flush_age: Duration::from_mins(1) }),
    };
    let (feedback, keeper, sender) = super::open(config, Some(Sink::directory(folder.join("samples")))).unwrap();
    (feedback, keeper, sender.unwrap())
}

impl Desk {
    fn open(format: Format) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (feedback, keeper, sender) = open(folder.path(), format);
        Self { folder, feedback, keeper, sender }
    }

    fn answered(&self, id: &str, value: Value, outcomes: Outcomes) {
        let prediction = Prediction { value, label: None, score: None };
        self.feedback.answered(|| Answered {
            request_id: id.into(),
            account: "ours".into(),
            time: noon(),
            model: Arc::new(Identity::new("m".parse().unwrap(), Version(3), Digest([7; 32]), None)),
            outcomes: Arc::new(outcomes),
            outputs: Outputs::new(vec![prediction.clone(), prediction], Arc::default(), Vec::new()),
        });
    }

    async fn label(&mut self, labels: &[(&str, u32, Said)]) -> Vec<Outcome> {
        let label = |(id, row, said): &(&str, u32, Said)| Label {
            request_id: (*id).into(),
            row: *row,
            model: None,
            said: said.clone(),
        };
        let batch = Batch {
            account: "ours".into(),
            key_id: "key".into(),
            may_label: Arc::new(|_| true),
            labels: labels.iter().map(label).collect(),
        };
        let (outcomes, _) = tokio::join!(self.feedback.label(batch), self.keeper.keep_once(noon));
        outcomes.unwrap()
    }

    /// The keys below the sink's folder, and what they hold.
    fn objects(&self) -> Vec<(String, Vec<u8>)> {
        let root = self.folder.path().join("samples");
        let mut folders = vec![root.clone()];
        let mut found = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else {
                    let key = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
                    found.push((key, std::fs::read(path).unwrap()));
                }
            }
        }
        found.sort();
        found
    }
}

fn classes() -> Outcomes {
    let names = [("0", "Poor"), ("1", "Good")].map(|(class, name)| (class.to_owned(), name.into()));
    Outcomes::Classes { names: names.into(), are_all: true }
}

fn text(text: &str) -> Said {
    Said::Text(text.into())
}

async fn sent_in(format: Format) -> Vec<(String, Vec<u8>)> {
    let mut desk = Desk::open(format);
    desk.answered("a", Value::Integer(1), classes());
    let labels = [("a", 0, text("Good")), ("a", 1, Said::Number(0.0)), ("gone", 1, text("x,y"))];
    assert_eq!(desk.label(&labels).await, [Outcome::Matched, Outcome::Matched, Outcome::Unknown]);
    assert_eq!(desk.sender.flush_once(noon(), false).await, 0, "they wait for others");
    assert_eq!(desk.sender.flush_once(noon() + Duration::from_mins(1), false).await, 3);
    let counts = desk.feedback.counts().unwrap();
    assert_eq!((counts.matched, counts.unknown, counts.stored, counts.pending), (2, 1, 3, 0));
    desk.objects()
}

#[tokio::test]
async fn as_json_lines_labels_are_sagemakers_ground_truth() {
    let objects = sent_in(Format::Jsonl).await;
    let [(matched, lines), (unmatched, others)] = &objects[..] else { panic!("{objects:?}") };
    assert!(matched.starts_with("_labels/m/3/2025/12/01/12/"), "{matched}");
    assert!(unmatched.starts_with("_labels/unmatched/2025/12/01/12/"), "{unmatched}");
    let line = |data: &str, id: &str| {
        let (data, id) = (serde_json::json!(data), serde_json::json!(id));
        format!(
            r#"{{"groundTruthData":{{"data":{data},"encoding":"CSV"}},"eventMetadata":{{"eventId":{id}}},"eventVersion":"0"}}"#
        ) + "\n"
    };
    assert_eq!(std::str::from_utf8(lines).unwrap(), line("1\n0", "a"));
    assert_eq!(std::str::from_utf8(others).unwrap(), line("\n\"x,y\"", "gone"));
}

#[tokio::test]
async fn as_csv_labels_have_a_header() {
    let objects = sent_in(Format::Csv).await;
    let digest = Digest([7; 32]);
    let time = "2025-12-01T12:00:00.000Z";
    let expected = format!(
        "request_id,row,time,model_name,model_version,model_digest,key_id,class,label,number\n\
         a,0,{time},m,3,{digest},key,1,Good,\na,1,{time},m,3,{digest},key,0,Poor,\n"
    );
    assert!(objects[0].0.starts_with("_labels/model=m/version=3/date=2025-12-01/hour=12/"), "{}", objects[0].0);
    assert_eq!(std::str::from_utf8(&objects[0].1).unwrap(), expected);
    assert!(
        std::str::from_utf8(&objects[1].1).unwrap().ends_with("\ngone,1,2025-12-01T12:00:00.000Z,,,,key,,\"x,y\",\n")
    );
}

#[tokio::test]
async fn as_parquet_labels_are_a_table() {
    use ::parquet::file::reader::{FileReader as _, SerializedFileReader};
    let objects = sent_in(Format::Parquet).await;
    let reader = SerializedFileReader::new(bytes::Bytes::from(objects[0].1.clone())).unwrap();
    let lines: Vec<String> = reader.get_row_iter(None).unwrap().map(|line| line.unwrap().to_string()).collect();
    assert_eq!(lines.len(), 2);
    assert!(
        lines[0].contains("request_id: \"a\", row: 0, ")
            && lines[0].contains("class: \"1\", label: \"Good\", number: null"),
        "{}",
        lines[0]
    );
}

#[tokio::test]
async fn numbers_are_compared_as_numbers() {
    let mut desk = Desk::open(Format::Jsonl);
    desk.answered("a", Value::Number(2.0), Outcomes::Numbers);
    let outcomes = desk.label(&[("a", 0, Said::Number(3.0)), ("a", 1, text("3"))]).await;
    assert_eq!(outcomes, [Outcome::Matched, Outcome::Refused(Problem::NotANumber)]);
    let report = desk.feedback.report(&"m".parse().unwrap()).unwrap();
    let figures = &report.versions[0].figures;
    assert_eq!((figures.mae, figures.bias, figures.rmse, figures.accuracy), (Some(1.0), Some(-1.0), Some(1.0), None));
    assert_eq!((report.versions[0].days[0].date.as_str(), report.versions[0].version.as_str()), ("2025-12-01", "3"));
}

#[tokio::test]
async fn labels_outlast_a_sink_that_is_away_and_a_kill() {
    let mut desk = Desk::open(Format::Csv);
    let samples = desk.folder.path().join("samples");
    // A file where the sink's folder should be.
    std::fs::write(&samples, "in the way").unwrap();
    desk.answered("a", Value::Integer(1), classes());
    desk.label(&[("a", 0, text("Good"))]).await;
    let later = noon() + Duration::from_mins(5);
    assert_eq!(desk.sender.flush_once(later, false).await, 0);
    std::fs::remove_file(&samples).unwrap();
    assert_eq!(desk.sender.flush_once(later + Duration::from_secs(29), false).await, 0, "it rests");
    let (feedback, keeper, sender) = open(desk.folder.path(), Format::Csv);
    (desk.feedback, desk.keeper, desk.sender) = (feedback, keeper, sender);
    assert_eq!(desk.feedback.counts().unwrap().pending, 1);
    assert_eq!(desk.sender.flush_once(later, false).await, 1);
    let objects = desk.objects();
    assert_eq!(objects.len(), 1);
    assert_eq!(desk.label(&[("a", 0, text("Good"))]).await, [Outcome::Duplicate]);
}

#[tokio::test]
async fn what_was_sent_and_not_noted_is_not_there_twice() {
    let mut desk = Desk::open(Format::Parquet);
    desk.answered("a", Value::Integer(1), classes());
    desk.label(&[("a", 0, text("Good"))]).await;
    // Sent, and killed before the file knew of it.
    desk.sender.store.lock().bundle(100, noon()).unwrap();
    let labels = desk.sender.store.lock().object_after(0).unwrap();
    let (key, body) = objects::encode(&labels, Format::Parquet).unwrap();
    desk.sender.sink.put(&key, body).await.unwrap();
    (desk.feedback, desk.keeper, desk.sender) = open(desk.folder.path(), Format::Parquet);
    assert_eq!(desk.sender.flush_once(noon(), true).await, 1);
    assert_eq!(desk.objects().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_are_kept_without_labels_too() {
    let mut desk = Desk::open(Format::Csv);
    desk.answered("a", Value::Integer(1), classes());
    assert!(desk.keeper.keep_once(noon).await);
    (desk.feedback, desk.keeper, desk.sender) = open(desk.folder.path(), Format::Csv);
    assert_eq!(desk.label(&[("a", 0, text("Good"))]).await, [Outcome::Matched]);
}
