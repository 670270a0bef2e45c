//! The file against what callers may do with it: label twice, change their minds, label others' answers, be late.

use std::time::Duration;

use super::*;
use crate::model::{Identity, Outputs, Prediction, Value};

const HOUR: Duration = Duration::from_hours(1);

fn noon() -> Timestamp {
    "2025-12-01T12:00:00Z".parse().unwrap()
}

fn limits() -> Limits {
    Limits { age: 24 * HOUR, max_bytes: 1 << 20, sends: true }
}

struct Desk {
    folder: tempfile::TempDir,
    store: Store,
    now: Timestamp,
}

fn classes() -> Outcomes {
    let names = [("0", "Poor"), ("1", "Good")].map(|(class, name)| (class.to_owned(), name.into()));
    Outcomes::Classes { names: names.into(), are_all: true }
}

/// Two rows of `model`: the first is Good with 0.75, the second Poor with 0.5.
fn answered(id: &str, model: &str, version: u64, time: Timestamp) -> Answered {
    let prediction = |class| Prediction { value: Value::Integer(class), label: None, score: None };
    let outputs = Outputs::new(
        vec![prediction(1), prediction(0)],
        ["Poor".into(), "Good".into()].into(),
        vec![0.25, 0.75, 0.5, 0.5],
    );
    Answered {
        request_id: id.into(),
        account: "ours".into(),
        time,
        model: Arc::new(Identity::new(model.parse().unwrap(), Version(version), Digest([7; 32]), None)),
        outcomes: Arc::new(classes()),
        outputs,
    }
}

fn label(id: &str, row: u32, said: &str) -> Label {
    Label { request_id: id.into(), row, model: None, said: Said::Text(said.into()) }
}

fn batch(account: &str, labels: Vec<Label>) -> Batch {
    let may_label = Arc::new(|model: &str| model != "secret");
    Batch { account: account.into(), key_id: "key".into(), may_label, labels }
}

impl Desk {
    fn open() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("feedback.db"), limits()).unwrap();
        Self { folder, store, now: noon() }
    }

    /// As after a kill: nothing is closed in order.
    fn reopen(&mut self, limits: Limits) {
        self.store = Store::open(&self.folder.path().join("feedback.db"), limits).unwrap();
    }

    fn answer(&mut self, id: &str, model: &str) {
        self.store.keep(&[answered(id, model, 3, self.now)], &[], self.now).unwrap();
    }

    fn label_as(&mut self, account: &str, label: Label) -> Outcome {
        let step = self.store.keep(&[], &[batch(account, vec![label])], self.now).unwrap();
        match &step.kept[..] {
            [Kept::All(outcomes)] => outcomes[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn check(&mut self, label: Label, expected: &Outcome) {
        assert_eq!(self.label_as("ours", label), *expected);
    }

    fn figures(&self) -> super::super::tally::Figures {
        let versions = self.store.tallies("m");
        super::super::sum(versions.iter().flat_map(|(_, days)| days.values())).figures()
    }

    fn remembered(&self) -> i64 {
        self.store.db.query_row("SELECT count(*) FROM answer", [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn a_label_is_compared_once_and_its_correction_counts_in_its_place() {
    let mut desk = Desk::open();
    desk.answer("a", "m");
    desk.check(label("a", 0, "Good"), &Outcome::Matched);
    desk.check(label("a", 0, "1"), &Outcome::Duplicate);
    desk.check(label("a", 1, "Good"), &Outcome::Matched);
    let figures = desk.figures();
    assert_eq!((figures.labelled_rows, figures.accuracy), (2, Some(0.5)));
    assert!((figures.log_loss.unwrap() - (0.75_f64.ln() + 0.5_f64.ln()) / -2.0).abs() < 1e-9);
    desk.check(label("a", 1, "Poor"), &Outcome::Changed);
    assert_eq!((desk.figures().labelled_rows, desk.figures().accuracy), (2, Some(1.0)));
    assert_eq!(desk.store.waiting(), 3, "a duplicate is not sent again");
    desk.reopen(limits());
    assert_eq!((desk.figures().accuracy, desk.store.waiting()), (Some(1.0), 3));
    desk.check(label("a", 1, "Poor"), &Outcome::Duplicate);
}

#[test]
fn another_callers_answer_is_one_that_is_not_remembered() {
    let mut desk = Desk::open();
    desk.answer("a", "m");
    let (theirs, nobodys) =
        (desk.label_as("theirs", label("a", 0, "Poor")), desk.label_as("theirs", label("b", 0, "Poor")));
    assert_eq!((theirs, nobodys), (Outcome::Unknown, Outcome::Unknown));
    assert_eq!(desk.figures().labelled_rows, 0);
}

#[test]
fn what_cannot_be_right_is_refused_and_not_kept() {
    let mut desk = Desk::open();
    desk.answer("a", "m");
    let refused = |problem| Outcome::Refused(problem);
    desk.check(label("a", 2, "Good"), &refused(Problem::NoSuchRow { rows: 2 }));
    let classes = vec!["Poor".into(), "Good".into()];
    desk.check(label("a", 0, "good"), &refused(Problem::NotAClass { classes }));
    desk.answer("a", "n");
    desk.check(label("a", 0, "Good"), &refused(Problem::WhichModel));
    let named = Label { model: Some("m".into()), ..label("a", 0, "Good") };
    desk.check(named, &Outcome::Matched);
    desk.answer("s", "secret");
    desk.check(label("s", 0, "Good"), &refused(Problem::OutOfScope));
    assert_eq!(desk.store.waiting(), 1);
}

#[test]
fn the_latest_answer_of_an_id_is_the_one_that_is_meant() {
    let mut desk = Desk::open();
    desk.answer("a", "m");
    desk.check(label("a", 0, "Good"), &Outcome::Matched);
    desk.answer("a", "m");
    desk.check(label("a", 0, "Good"), &Outcome::Matched);
    assert_eq!(desk.figures().labelled_rows, 2);
}

#[test]
fn answers_are_forgotten_by_age_and_by_room_the_oldest_first() {
    let mut desk = Desk::open();
    for number in 0..50 {
        desk.now = noon() + HOUR * number;
        desk.answer(&number.to_string(), "m");
    }
    assert_eq!(desk.remembered(), 25, "those of the last day, and that of this hour");
    desk.check(label("24", 0, "Good"), &Outcome::Unknown);
    desk.check(label("25", 0, "Good"), &Outcome::Matched);
    let bytes = desk.store.memory.answer_bytes;
    desk.reopen(Limits { max_bytes: bytes / 2, ..limits() });
    assert_eq!(desk.store.memory.answer_bytes, bytes);
    desk.check(label("49", 0, "Good"), &Outcome::Matched);
    assert_eq!(desk.remembered(), 12);
    let truths: i64 = desk.store.db.query_row("SELECT count(*) FROM truth", [], |row| row.get(0)).unwrap();
    assert_eq!(truths, 1, "what came true of a forgotten answer is forgotten with it");
    assert!(desk.store.memory.answer_bytes <= bytes / 2);
}

#[test]
fn figures_of_days_that_are_forgotten_go() {
    let mut desk = Desk::open();
    desk.answer("a", "m");
    desk.check(label("a", 0, "Good"), &Outcome::Matched);
    desk.now = noon() + 60 * HOUR;
    desk.answer("b", "m");
    assert_eq!(desk.figures().labelled_rows, 0);
    desk.reopen(limits());
    assert_eq!((desk.figures().labelled_rows, desk.store.waiting()), (0, 1));
}

#[test]
fn a_label_belongs_to_one_object_until_that_is_sent() {
    let mut desk = Desk::open();
    for id in ["a", "b", "c"] {
        desk.answer(id, "m");
        desk.check(label(id, 0, "Good"), &Outcome::Matched);
    }
    desk.check(label("nobody", 0, "x"), &Outcome::Unknown);
    assert!(!desk.store.bundle(5, noon() - HOUR).unwrap(), "neither enough nor old enough");
    assert!(desk.store.bundle(2, noon()).unwrap() && desk.store.bundle(2, noon()).unwrap());
    assert!(desk.store.bundle(2, noon()).unwrap() && !desk.store.bundle(2, noon()).unwrap());
    let ids = |labels: &[Waiting]| labels.iter().map(|label| label.request_id.clone()).collect::<Vec<_>>();
    let first = desk.store.object_after(0).unwrap();
    assert_eq!(ids(&first), ["a", "b"]);
    desk.reopen(limits());
    assert_eq!(ids(&desk.store.object_after(0).unwrap()), ["a", "b"], "the same after a kill");
    assert_eq!(desk.store.sent(first[0].id).unwrap(), 2);
    let second = desk.store.object_after(0).unwrap();
    assert_eq!(ids(&second), ["c"]);
    let third = desk.store.object_after(second[0].id).unwrap();
    assert_eq!((ids(&third), third[0].version.is_none()), (vec!["nobody".to_owned()], true));
    assert_eq!(desk.store.waiting(), 2);
}

#[test]
fn a_step_that_fails_leaves_nothing() {
    let mut desk = Desk::open();
    desk.store
        .db
        .execute_batch("CREATE TRIGGER no BEFORE INSERT ON label BEGIN SELECT raise(FAIL, 'no'); END")
        .unwrap();
    let labels = [batch("ours", vec![label("a", 0, "Good")])];
    assert!(desk.store.keep(&[answered("a", "m", 3, noon())], &labels, noon()).is_err());
    assert_eq!((desk.remembered(), desk.figures().labelled_rows, desk.store.waiting()), (0, 0, 0));
    assert!(desk.store.memory.versions.is_empty());
    desk.store.db.execute_batch("DROP TRIGGER no").unwrap();
    let step = desk.store.keep(&[answered("a", "m", 3, noon())], &labels, noon()).unwrap();
    assert!(matches!(&step.kept[..], [Kept::All(outcomes)] if outcomes[..] == [Outcome::Matched]));
}

#[test]
fn no_label_is_taken_for_which_there_is_no_room() {
    let mut desk = Desk::open();
    desk.store.memory.waiting = WAITING_MAX;
    let step = desk.store.keep(&[], &[batch("ours", vec![label("a", 0, "Good")])], noon()).unwrap();
    assert!(matches!(&step.kept[..], [Kept::NoRoom]));
}
