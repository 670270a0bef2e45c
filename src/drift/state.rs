//! What is kept over a restart: the windows, and the baselines that were made of live rows or are being made.
//!
//! One file of two lines. The first is `modelgate-drift 1` and the CRC-32 of the second, in hexadecimal digits; the second
//! is JSON, a list of [`Saved`]. It is written beside its place and renamed, so that there is a whole one at any time. A
//! file that is damaged, or of another version, is set aside and the windows begin empty.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::baseline::{Subject, WrittenSubject};
use super::learner::SavedLearner;
use crate::model::Identity;

/// Before the sum in the first line: what the file is, and the version of its form.
const MAGIC: &str = "modelgate-drift 1 ";

/// No larger file is read: the versions in memory are few, and one of a thousand features takes 3 MB. While a baseline is
/// being made a version may take 20 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Versions that are kept although nobody has watched them since the start, at most: those that may be rolled back to.
const UNCLAIMED_MAX: usize = 16;

/// Where it is kept, and what was found there.
#[derive(Debug)]
pub(super) struct State {
    file: PathBuf,
    /// What an earlier process left of versions that are not watched yet.
    unclaimed: Mutex<Vec<Saved>>,
    is_failing: Mutex<bool>,
}

/// One version.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Saved {
    model: String,
    version: u64,
    digest: String,
    /// Whether the first rows have been made a baseline already.
    pub(super) is_learned: bool,
    /// The features in their order, the prediction and the score; nothing where there is no baseline.
    pub(super) subjects: Vec<Option<SavedSubject>>,
    /// What was counted.
    pub(super) window: SavedWindow,
    /// What has been learned of a baseline that is still being made.
    #[serde(default)]
    pub(super) learner: Option<SavedLearner>,
}

/// A part of a baseline, and whether it was made of live rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedSubject {
    is_live: bool,
    subject: WrittenSubject,
}

/// The slots of a window.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedWindow {
    /// How long a slot is.
    pub(super) slot_millis: u64,
    /// The number of each slot and its counts.
    pub(super) slots: Vec<(i64, Vec<u32>)>,
}

impl Saved {
    pub(super) fn of(
        id: &Identity,
        is_learned: bool,
        subjects: Vec<Option<SavedSubject>>,
        window: SavedWindow,
        learner: Option<SavedLearner>,
    ) -> Self {
        let (model, version, digest) = name_of(id);
        Self { model, version, digest, is_learned, subjects, window, learner }
    }

    fn is_of(&self, id: &Identity) -> bool {
        let (model, version, digest) = name_of(id);
        self.model == model && self.version == version && self.digest == digest
    }
}

/// What a version is called in every process.
fn name_of(id: &Identity) -> (String, u64, String) {
    (id.name.to_string(), id.version.0, id.digest.hex())
}

impl SavedSubject {
    pub(super) fn of(subject: &Subject, is_live: bool) -> Self {
        Self { is_live, subject: WrittenSubject::of(subject) }
    }

    /// The subject, if it was made of live rows and is whole.
    pub(super) fn live(self) -> Option<Subject> {
        self.is_live.then(|| self.subject.read().ok()).flatten()
    }
}

impl State {
    /// Reads what an earlier process left in `file`. What cannot be used is set aside and said.
    pub(super) fn open(file: PathBuf) -> Self {
        let unclaimed = read(&file).unwrap_or_else(|reason| {
            let aside = beside(&file, "damaged");
            let renamed = fs::rename(&file, &aside);
            warn!(
                file = %file.display(),
                "the windows of drift begin empty, because what was kept of them cannot be used: {reason}; it is {}",
                if renamed.is_ok() { format!("set aside as {}", aside.display()) } else { "left there".to_owned() }
            );
            Vec::new()
        });
        Self { file, unclaimed: Mutex::new(unclaimed), is_failing: Mutex::default() }
    }

    /// What is known of a version; once.
    pub(super) fn claim(&self, id: &Identity) -> Option<Saved> {
        let mut unclaimed = self.unclaimed.lock();
        let at = unclaimed.iter().position(|saved| saved.is_of(id))?;
        Some(unclaimed.swap_remove(at))
    }

    /// Writes what is `watched`, and what nobody has asked for yet. A failure is said once, until it works again.
    pub(super) fn save(&self, mut watched: Vec<Saved>) {
        watched.extend(self.unclaimed.lock().iter().take(UNCLAIMED_MAX).cloned());
        let written = write(&self.file, &watched);
        let mut is_failing = self.is_failing.lock();
        match &written {
            Err(error) if !*is_failing => {
                warn!(file = %self.file.display(), "the windows of drift would not outlast a restart: {error}");
            }
            _ => (),
        }
        *is_failing = written.is_err();
    }
}

/// Nothing where there is no file; else what is in it, or why it cannot be used.
fn read(file: &Path) -> Result<Vec<Saved>, String> {
    let opened = match File::open(file) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    opened.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    parse(&text)
}

fn parse(text: &str) -> Result<Vec<Saved>, String> {
    let (head, body) = text.split_once('\n').ok_or("it is cut off")?;
    let sum = head.strip_prefix(MAGIC).ok_or("it is of another version of the gateway")?;
    if sum != sum_of(body) {
        return Err("its checksum is wrong".to_owned());
    }
    serde_json::from_str(body).map_err(|error| error.to_string())
}

fn text_of(all: &[Saved]) -> String {
    let body = serde_json::to_string(all).expect("texts and finite numbers are JSON");
    format!("{MAGIC}{}\n{body}", sum_of(&body))
}

/// Without what has been learned so far if that makes it too large.
fn text_that_can_be_read(all: &[Saved]) -> String {
    let text = text_of(all);
    if text.len() as u64 <= MAX_BYTES {
        return text;
    }
    let all: Vec<_> = all.iter().map(|saved| Saved { learner: None, ..saved.clone() }).collect();
    text_of(&all)
}

fn sum_of(body: &str) -> String {
    format!("{:08x}", crc32fast::hash(body.as_bytes()))
}

fn write(file: &Path, all: &[Saved]) -> io::Result<()> {
    let partial = beside(file, "partial");
    // For the owner only: categories are other people's data.
    let mut options = OpenOptions::new();
    let mut opened = options.create(true).truncate(true).write(true).mode(0o600).open(&partial)?;
    opened.write_all(text_that_can_be_read(all).as_bytes())?;
    opened.sync_all()?;
    fs::rename(&partial, file)?;
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => File::open(folder)?.sync_all(),
        _ => Ok(()),
    }
}

fn beside(file: &Path, extension: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".");
    name.push(extension);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Digest, Version};

    fn identity(version: u64) -> Identity {
        Identity::new("m".parse().unwrap(), Version(version), Digest([0; 32]), None)
    }

    fn saved(version: u64) -> Saved {
        let subject = Subject::of_bins("Age".into(), vec![0.1, 0.3, 0.5], vec![4, 5], 1).unwrap();
        let subjects = vec![Some(SavedSubject::of(&subject, true)), None, None];
        Saved::of(
            &identity(version),
            true,
            subjects,
            SavedWindow { slot_millis: 300_000, slots: vec![(7, vec![1, 2])] },
            None,
        )
    }

    #[test]
    fn what_is_saved_is_claimed_once_and_kept_until_then() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("drift.state");
        State::open(file.clone()).save(vec![saved(3), saved(4)]);
        let state = State::open(file.clone());
        assert_eq!(state.claim(&identity(3)), Some(saved(3)));
        assert_eq!(state.claim(&identity(3)), None);
        state.save(Vec::new());
        let state = State::open(file);
        assert_eq!((state.claim(&identity(3)), state.claim(&identity(4))), (None, Some(saved(4))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    /// Damages the file, and checks that it is set aside.
    #[track_caller]
    fn check_set_aside(damage: impl FnOnce(&mut Vec<u8>)) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("drift.state");
        let mut bytes = text_of(&[saved(3)]).into_bytes();
        damage(&mut bytes);
        fs::write(&file, &bytes).unwrap();
        let state = State::open(file.clone());
        assert_eq!(state.claim(&identity(3)), None);
        assert_eq!(fs::read(beside(&file, "damaged")).unwrap(), bytes);
        state.save(vec![saved(3)]);
        assert_eq!(State::open(file).claim(&identity(3)), Some(saved(3)));
    }

    #[test]
    fn a_damaged_file_is_set_aside() {
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..200 {
            check_set_aside(|bytes| {
                let at = random.usize(..bytes.len());
                bytes[at] ^= 1 << random.u32(..8);
            });
        }
        check_set_aside(Vec::clear);
        check_set_aside(|bytes| bytes.truncate(bytes.len() / 2));
        check_set_aside(|bytes| bytes[MAGIC.len() - 2] = b'2');
        check_set_aside(|bytes| bytes.fill(0));
        check_set_aside(|bytes| bytes.fill(b'\n'));
    }

    #[test]
    fn a_place_that_cannot_be_written_stops_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::open(folder.path().join("nowhere/drift.state"));
        state.save(vec![saved(3)]);
        state.save(vec![saved(3)]);
        assert!(*state.is_failing.lock());
    }
}
