//! The folder where samples wait for the sink: segment files, written and read off the async threads.
//!
//! A sample is accepted once its bytes are fsynced; a batch costs one write and one fsync per segment it touches. There
//! is one open segment per version and hour. What a segment holds byte for byte is told in [`segment`](super::segment).
//! A file is named `<milliseconds of its first sample>-<id>.v1.segment`; a newer format would end in `.v2.segment` and
//! is none of ours. A closed segment never changes, so that its object has the same name however often it is sent.
//!
//! A write or fsync that fails is never repeated on the same file, because the kernel may report a lost page once and
//! then forget it: the segment is cut to what was accepted and closed, and the batch goes to another. If that fails too
//! the batch is lost, and counted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tracing::{error, info, warn};

use super::disk::{Access, Disk, EntryKind, Held, NewFile, make_folders};
use super::protect::{Policy, Secret};
use super::segment::{Header, Schema};
use super::{Config, Record};

const SUFFIX: &str = ".v1.segment";

/// Open segments at most; above it the oldest is closed. Each holds a file descriptor.
const OPEN_MAX: usize = 64;

/// A segment is closed at this size whatever its rows, because it is read and turned into Parquet in memory.
const SEGMENT_MAX_BYTES: u64 = 8 << 20;

/// No more of a segment is read: to its size when it is closed the last batch adds its own and one large record. What is
/// behind that in a file that a disk or a person made larger is none of ours.
const READ_MAX_BYTES: u64 = 128 << 20;

/// The spool's folder. One process owns it at a time.
#[derive(Debug)]
pub struct Spool {
    files: Files,
    /// In the order of their opening.
    open: Vec<Open>,
    protect: Policy,
    flush_rows: u64,
    flush_age: Duration,
    _lock: Box<dyn Held>,
}

/// The folder's files as a whole, and those that are closed.
#[derive(Debug)]
struct Files {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    closed: Vec<Closed>,
    /// Bytes of all segments, open and closed.
    used: u64,
    max: u64,
    /// Whether the last batch found no room; kept so that a change is logged once.
    is_full: bool,
    ids: fastrand::Rng,
    /// For the features that are hashed.
    secret: Option<Secret>,
}

/// A segment that takes samples.
#[derive(Debug)]
struct Open {
    header: Header,
    /// The time of its first sample.
    since: Timestamp,
    file: Option<OpenFile>,
    /// Not yet written.
    batch: Vec<Record>,
    batch_rows: u64,
}

/// What is accepted of an open segment.
#[derive(Debug)]
struct OpenFile {
    file: Box<dyn NewFile>,
    path: PathBuf,
    bytes: u64,
    rows: u64,
}

/// A segment that is complete and waits for the sink. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Closed {
    /// The file.
    pub path: Arc<Path>,
    /// Its length as far as it was accepted.
    pub bytes: u64,
    /// The rows in it; `None` when an earlier process left it and nobody has read it yet.
    pub rows: Option<u64>,
}

/// What became of a batch, in rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Appended {
    /// On the disk, fsynced.
    pub accepted: u64,
    /// The spool had its fill of the disk, or the disk was full.
    pub no_room: u64,
    /// The disk failed.
    pub failed: u64,
}

impl std::ops::AddAssign for Appended {
    fn add_assign(&mut self, more: Self) {
        self.accepted += more.accepted;
        self.no_room += more.no_room;
        self.failed += more.failed;
    }
}

impl Spool {
    /// Opens the folder, makes it if need be, and lists what an earlier process left there. Reads none of it. Without a
    /// `secret` what has to be hashed is left out.
    ///
    /// # Errors
    /// When the folder cannot be used, or another process uses it.
    pub fn open(disk: Arc<dyn Disk>, config: &Config, secret: Option<Secret>, seed: u64) -> io::Result<Self> {
        let folder = config.spool.clone();
        // For its owner only: samples are other people's data.
        make_folders(&*disk, &folder, Access::Owner)?;
        let lock = lock(&*disk, &folder)?;
        let closed = left_over(&*disk, &folder)?;
        let used = closed.iter().map(|segment| segment.bytes).sum();
        Ok(Self {
            files: Files {
                disk,
                folder,
                closed,
                used,
                max: config.spool_max_bytes,
                is_full: false,
                ids: fastrand::Rng::with_seed(seed),
                secret,
            },
            open: Vec::new(),
            protect: config.protect.clone(),
            flush_rows: u64::from(config.flush_rows.get()),
            flush_age: config.flush_age,
            _lock: lock,
        })
    }

    /// Appends `records` to their segments. When this returns, what it calls accepted is on the disk.
    pub fn append(&mut self, records: impl IntoIterator<Item = Record>) -> Appended {
        let mut appended = Appended::default();
        for record in records {
            let index = self.segment_of(&record, &mut appended);
            let segment = &mut self.open[index];
            segment.push(record);
            if segment.rows() >= self.flush_rows {
                appended += self.close(index);
            }
        }
        for segment in &mut self.open {
            appended += segment.commit(&mut self.files);
        }
        while let Some(index) = self.open.iter().position(|segment| segment.bytes() >= SEGMENT_MAX_BYTES) {
            appended += self.close(index);
        }
        self.files.note(appended);
        appended
    }

    /// Closes the segments that are as old as they may be at `now`, or `all` of them.
    pub fn close_due(&mut self, now: Timestamp, all: bool) {
        // A clock that was set back closes a segment too, rather than keep it open until that time comes again.
        let age = self.flush_age;
        let is_due = |segment: &mut Open| all || now.duration_since(segment.since).unsigned_abs() >= age;
        self.files.closed.extend(self.open.extract_if(.., is_due).filter_map(Open::into_closed));
    }

    /// The segments that wait for the sink, the oldest first.
    #[must_use]
    pub fn closed(&self) -> &[Closed] {
        &self.files.closed
    }

    /// Notes how many rows a segment of an earlier process has; `false` when that is known already.
    pub fn set_rows(&mut self, path: &Path, rows: u64) -> bool {
        // In this order, because comparing paths is slow and there may be ten thousand.
        let unread = |segment: &&mut Closed| segment.rows.is_none() && *segment.path == *path;
        self.files.closed.iter_mut().find(unread).map(|segment| segment.rows = Some(rows)).is_some()
    }

    /// Lets a segment wait behind all others, so that one that the sink refuses does not hold them up.
    pub fn put_last(&mut self, path: &Path) {
        if let Some(index) = self.files.position(path) {
            self.files.closed[index..].rotate_left(1);
        }
    }

    /// Deletes a segment whose rows are in the sink, or lost. Gives back its entry; `None` if it has gone before.
    ///
    /// # Errors
    /// When the file cannot be deleted. Its entry stays.
    pub fn remove(&mut self, path: &Path) -> io::Result<Option<Closed>> {
        self.files.disk.remove(path)?;
        // Without this a loss of power may bring the file back, and its object be sent once more: no harm.
        _ = self.files.disk.sync_folder(&self.files.folder);
        Ok(self.forget(path))
    }

    /// Takes a segment's entry away and leaves its file, if there is one, for the next process. Gives back the entry;
    /// `None` if it has gone before.
    pub fn forget(&mut self, path: &Path) -> Option<Closed> {
        let index = self.files.position(path)?;
        let segment = self.files.closed.remove(index);
        self.files.used = self.files.used.saturating_sub(segment.bytes);
        Some(segment)
    }

    /// The open segment for `record`: the one there is, or a new one.
    fn segment_of(&mut self, record: &Record, appended: &mut Appended) -> usize {
        let hour = record.time.as_second().div_euclid(3600);
        let fits = |segment: &Open| segment.header.hour == hour && segment.header.schema.describes(record);
        if let Some(index) = self.open.iter().position(fits) {
            return index;
        }
        if self.open.len() == OPEN_MAX {
            *appended += self.close(0);
        }
        let header = Header { id: self.files.ids.u64(..), hour, schema: Schema::of(record, &self.protect) };
        self.open.push(Open { header, since: record.time, file: None, batch: Vec::new(), batch_rows: 0 });
        self.open.len() - 1
    }

    fn close(&mut self, index: usize) -> Appended {
        let mut segment = self.open.remove(index);
        let appended = segment.commit(&mut self.files);
        self.files.closed.extend(segment.into_closed());
        appended
    }
}

impl Open {
    fn push(&mut self, record: Record) {
        self.batch_rows += record.rows() as u64;
        self.batch.push(record);
    }

    /// Accepted and waiting.
    fn rows(&self) -> u64 {
        self.batch_rows + self.file.as_ref().map_or(0, |file| file.rows)
    }

    fn bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, |file| file.bytes)
    }

    /// Writes the batch, and on failure once more to another file.
    fn commit(&mut self, files: &mut Files) -> Appended {
        if self.batch.is_empty() {
            return Appended::default();
        }
        let appended = self.write(files).or_else(|_| {
            self.abandon(files);
            self.write(files)
        });
        let appended = appended.unwrap_or_else(|error| {
            self.abandon(files);
            self.lost(&error)
        });
        self.batch.clear();
        self.batch_rows = 0;
        appended
    }

    /// One write and one fsync.
    fn write(&mut self, files: &mut Files) -> io::Result<Appended> {
        let (bytes, appended) = self.encode(files);
        if appended.accepted == 0 {
            return Ok(appended);
        }
        let is_new = self.file.is_none();
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(files.create(self.since, self.header.id)?),
        };
        file.file.append(&bytes)?;
        file.file.sync()?;
        if is_new {
            files.disk.sync_folder(&files.folder)?;
        }
        file.bytes += bytes.len() as u64;
        file.rows += appended.accepted;
        files.used += bytes.len() as u64;
        Ok(appended)
    }

    /// The batch as frames, without the records the disk has no room for.
    fn encode(&self, files: &Files) -> (Vec<u8>, Appended) {
        let mut bytes = Vec::new();
        let mut appended = Appended::default();
        let before = self.file.as_ref().map_or(0, |file| file.rows);
        if self.file.is_none() {
            self.header.encode(&mut bytes);
        }
        for record in &self.batch {
            let start = bytes.len();
            self.header.encode_record(before + appended.accepted, record, files.secret.as_ref(), &mut bytes);
            if files.has_room(bytes.len()) {
                appended.accepted += record.rows() as u64;
            } else {
                bytes.truncate(start);
                appended.no_room += record.rows() as u64;
            }
        }
        (bytes, appended)
    }

    /// Gives the file up as it was accepted; what follows goes to a new one.
    fn abandon(&mut self, files: &mut Files) {
        self.header.id = files.ids.u64(..);
        let Some(file) = self.file.take() else { return };
        // Best effort: whatever stays behind the accepted end is at worst delivered a second time after a crash.
        if file.bytes == 0 {
            _ = files.disk.remove(&file.path);
        } else {
            _ = file.file.cut(file.bytes).and_then(|()| file.file.sync());
            files.closed.push(file.into_closed());
        }
    }

    fn lost(&self, error: &io::Error) -> Appended {
        let rows = self.batch_rows;
        if matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Appended { no_room: rows, ..Appended::default() };
        }
        error!(error = %error, rows, "cannot write samples to the spool; {rows} rows are lost");
        Appended { failed: rows, ..Appended::default() }
    }

    fn into_closed(self) -> Option<Closed> {
        self.file.map(OpenFile::into_closed)
    }
}

impl OpenFile {
    fn into_closed(self) -> Closed {
        Closed { path: self.path.into(), bytes: self.bytes, rows: Some(self.rows) }
    }
}

impl Files {
    fn has_room(&self, bytes: usize) -> bool {
        self.used.saturating_add(bytes as u64) <= self.max
    }

    fn position(&self, path: &Path) -> Option<usize> {
        self.closed.iter().position(|segment| *segment.path == *path)
    }

    fn create(&self, since: Timestamp, id: u64) -> io::Result<OpenFile> {
        let millis = since.as_millisecond().max(0);
        let path = self.folder.join(format!("{millis:014}-{id:016x}{SUFFIX}"));
        Ok(OpenFile { file: self.disk.create(&path, Access::Owner)?, path, bytes: 0, rows: 0 })
    }

    /// Logs when the disk has become full, or has room again.
    fn note(&mut self, appended: Appended) {
        let is_full = appended.no_room > 0;
        if is_full && !self.is_full {
            warn!(
                used = self.used,
                "the sample spool is full; new samples are dropped until the sink takes some, or `spool_max` is raised"
            );
        } else if self.is_full && !is_full && appended.accepted > 0 {
            info!("the sample spool has room again");
        }
        self.is_full = is_full || (self.is_full && appended.accepted == 0);
    }
}

/// The id in a segment's name, for a segment whose header is damaged.
#[must_use]
pub fn id_in_name(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(SUFFIX)?;
    let (_, id) = name.split_once('-')?;
    u64::from_str_radix(id, 16).ok()
}

/// Reads what was accepted of a segment.
///
/// # Errors
/// When the file is gone or cannot be read.
pub fn read(disk: &dyn Disk, segment: &Closed) -> io::Result<Vec<u8>> {
    disk.read(&segment.path, segment.bytes.min(READ_MAX_BYTES))
}

fn lock(disk: &dyn Disk, folder: &Path) -> io::Result<Box<dyn Held>> {
    disk.lock(&folder.join("lock")).map_err(|error| match error.kind() {
        busy @ io::ErrorKind::ResourceBusy => {
            io::Error::new(busy, "another gateway uses it; give each its own `data_dir`")
        }
        _ => error,
    })
}

/// Segments of an earlier process, the oldest first.
fn left_over(disk: &dyn Disk, folder: &Path) -> io::Result<Vec<Closed>> {
    let mut entries = disk.list(folder)?;
    entries.retain(|entry| entry.kind == EntryKind::File && entry.name.as_encoded_bytes().ends_with(SUFFIX.as_bytes()));
    entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    let closed = entries.into_iter();
    Ok(closed.map(|entry| Closed { path: folder.join(entry.name).into(), bytes: entry.bytes, rows: None }).collect())
}

#[cfg(test)]
mod tests;
