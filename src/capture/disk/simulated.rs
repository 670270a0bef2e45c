//! A disk for tests, in memory. It tells what is on the platter from what is only in the cache, fails the calls it is
//! told to, and loses at random what was not synced when its power is cut.
//!
//! It promises no more than POSIX does. A synced file may have no name, because its folder was not synced. Of what was not
//! synced any part may survive, in any order, with zeros or garbage between. After a failed sync the pages count as
//! clean, as on Linux: the next sync succeeds and brings none of them to the platter.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Access, Disk, Entry, EntryKind, Held, NewFile};

/// What is written or lost as one. Smaller than a real sector, because samples are small in tests.
const SECTOR: usize = 64;

/// A disk and whoever uses it. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct SimulatedDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// What programs see.
    names: BTreeMap<PathBuf, Node>,
    /// What is on the platter.
    durable: BTreeMap<PathBuf, Node>,
    /// The difference, in its order.
    pending: Vec<Change>,
    files: Vec<Content>,
    locks: BTreeSet<PathBuf>,
    /// Calls so far.
    calls: u64,
    failing: Range<u64>,
    kind: io::ErrorKind,
    /// The call at which the power goes.
    off_at: u64,
    /// The call during which the process ended, and its path.
    hit: Option<(&'static str, PathBuf)>,
    /// Processes so far that ended with a kill or the power.
    ended: u64,
    random: fastrand::Rng,
}

#[derive(Clone, Copy, Debug)]
enum Node {
    Folder,
    File(usize),
}

#[derive(Debug)]
enum Change {
    Put(PathBuf, Node),
    Moved(PathBuf, PathBuf, Node),
    Gone(PathBuf),
}

/// A file, whatever its name.
#[derive(Debug, Default)]
struct Content {
    cached: Vec<u8>,
    durable: Vec<u8>,
    /// So much of the cache is not waiting to be written.
    clean: usize,
    /// What of that never reached the platter, because its sync failed.
    forgotten: Vec<Range<usize>>,
}

/// What becomes of a call on an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Failed,
    /// The process ended during it.
    Ended,
}

/// How a process ends against its will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The disk goes on, and so does its cache.
    Kill,
    /// The cache is gone.
    PowerCut,
}

impl SimulatedDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            names: BTreeMap::new(),
            durable: BTreeMap::new(),
            pending: Vec::new(),
            files: Vec::new(),
            locks: BTreeSet::new(),
            calls: 0,
            failing: 0..0,
            kind: io::ErrorKind::Other,
            off_at: u64::MAX,
            hit: None,
            ended: 0,
            random: fastrand::Rng::with_seed(seed),
        })))
    }

    /// The calls in `which`, counted from now, fail.
    pub(crate) fn fail(&self, which: Range<u64>, kind: io::ErrorKind) {
        let mut state = self.0.lock();
        state.failing = state.calls + which.start..state.calls + which.end;
        state.kind = kind;
    }

    /// Whether all of them came to pass; none fails from here on.
    pub(crate) fn failed(&self) -> bool {
        let mut state = self.0.lock();
        let failing = std::mem::replace(&mut state.failing, 0..0);
        state.calls >= failing.end
    }

    /// No call from the `nth` from now on does anything, because the process has ended.
    pub(crate) fn end_at(&self, nth: u64) {
        let mut state = self.0.lock();
        state.off_at = state.calls + nth;
    }

    /// Whether the process has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.lock().hit.is_some()
    }

    /// Ends the process, gives the disk to the next, and says during which call that was.
    pub(crate) fn end(&self, how: End) -> Option<(&'static str, PathBuf)> {
        let mut state = self.0.lock();
        if how == End::PowerCut {
            state.lose();
        }
        state.ended += 1;
        state.locks.clear();
        state.off_at = u64::MAX;
        state.failing = 0..0;
        state.hit.take()
    }

    /// The files below a folder, as programs see them.
    pub(crate) fn files(&self, folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
        let state = self.0.lock();
        let below = state.names.iter().filter(|(path, _)| path.starts_with(folder));
        below
            .filter_map(|(path, node)| match node {
                Node::File(at) => Some((path.clone(), state.files[*at].cached.clone())),
                Node::Folder => None,
            })
            .collect()
    }
}

impl State {
    fn call(&mut self, name: &'static str, path: &Path) -> io::Result<()> {
        let call = self.calls;
        self.calls += 1;
        if call >= self.off_at {
            self.hit.get_or_insert_with(|| (name, path.to_owned()));
            return Err(io::Error::other("the process has ended"));
        }
        if self.failing.contains(&call) { Err(self.kind.into()) } else { Ok(()) }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.pending.push(change);
    }

    fn file(&self, path: &Path) -> io::Result<usize> {
        match self.names.get(path) {
            Some(Node::File(at)) => Ok(*at),
            Some(Node::Folder) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// A folder that everything in it needs.
    fn folder(&self, path: &Path) -> io::Result<()> {
        match self.names.get(path) {
            // The root.
            None if path.parent().is_none() => Ok(()),
            Some(Node::Folder) => Ok(()),
            Some(Node::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    fn lose(&mut self) {
        let (random, pending) = (&mut self.random, std::mem::take(&mut self.pending));
        // Nothing, all, what came first, or any of it.
        let (keep, first) = (random.u8(..4), random.usize(..=pending.len()));
        for (at, change) in pending.iter().enumerate() {
            let kept = match keep {
                0 => false,
                1 => true,
                2 => at < first,
                _ => random.bool(),
            };
            if kept {
                change.apply(&mut self.durable);
            }
        }
        let names = self.durable.clone();
        let is_there = |path: &Path| path.parent().is_none() || names.contains_key(path);
        self.durable.retain(|path, _| path.ancestors().all(is_there));
        self.names = self.durable.clone();
        for file in &mut self.files {
            file.tear(&mut self.random);
        }
    }
}

impl Change {
    fn apply(&self, names: &mut BTreeMap<PathBuf, Node>) {
        match self {
            Self::Put(path, node) => _ = names.insert(path.clone(), *node),
            Self::Gone(path) => _ = names.remove(path),
            Self::Moved(from, to, node) => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }

    fn is_in(&self, folder: &Path) -> bool {
        match self {
            Self::Put(path, _) | Self::Gone(path) | Self::Moved(path, ..) => path.parent() == Some(folder),
        }
    }
}

impl Content {
    fn sync(&mut self) {
        self.durable.clone_from(&self.cached);
        for range in &self.forgotten {
            self.durable[range.clone()].fill(0);
        }
        self.clean = self.cached.len();
    }

    /// A part may have reached the platter before.
    fn fail_to_sync(&mut self, random: &mut fastrand::Rng) {
        let (durable, cached) = (self.durable.len(), self.cached.len());
        if durable < cached {
            let reached = if random.bool() { cached } else { random.usize(durable..=cached) };
            self.durable.extend_from_slice(&self.cached[durable..reached]);
        }
        self.forgotten.push(self.clean..cached);
        self.clean = cached;
    }

    fn cut(&mut self, length: usize) {
        self.cached.truncate(length);
        self.clean = self.clean.min(length);
        for range in &mut self.forgotten {
            range.end = range.end.min(length);
            range.start = range.start.min(length);
        }
    }

    /// What the platter has after a loss of power.
    fn tear(&mut self, random: &mut fastrand::Rng) {
        let (durable, cached) = (self.durable.len(), self.cached.len());
        let length = match random.u8(..4) {
            0 => durable,
            1 => cached,
            _ => random.usize(durable.min(cached)..=durable.max(cached)),
        };
        self.durable.resize(length, 0);
        for start in (durable..length).step_by(SECTOR) {
            let range = start..length.min(start + SECTOR);
            match random.u8(..4) {
                0 => (),
                1 => random.fill(&mut self.durable[range]),
                _ => self.durable[range.clone()].copy_from_slice(&self.cached[range]),
            }
        }
        *self = Self {
            cached: self.durable.clone(),
            durable: std::mem::take(&mut self.durable),
            clean: length,
            forgotten: Vec::new(),
        };
    }
}

impl Disk for SimulatedDisk {
    fn make_folder(&self, folder: &Path, _: Access) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call("make_folder", folder)?;
        state.folder(folder.parent().ok_or(io::ErrorKind::InvalidFilename)?)?;
        match state.names.get(folder) {
            Some(Node::Folder) => (),
            Some(Node::File(_)) => return Err(io::ErrorKind::AlreadyExists.into()),
            None => state.change(Change::Put(folder.to_owned(), Node::Folder)),
        }
        Ok(())
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.0.lock();
        state.call("list", folder)?;
        state.folder(folder)?;
        let within = state.names.iter().filter(|(path, _)| path.parent() == Some(folder));
        let entry = |(path, node): (&PathBuf, &Node)| {
            let (kind, bytes) = match node {
                Node::Folder => (EntryKind::Folder, 0),
                Node::File(at) => (EntryKind::File, state.files[*at].cached.len() as u64),
            };
            Some(Entry { name: path.file_name()?.to_owned(), kind, bytes })
        };
        Ok(within.filter_map(entry).collect())
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        let mut state = self.0.lock();
        state.call("size", path)?;
        Ok(match state.names.get(path) {
            Some(Node::File(at)) => Some(state.files[*at].cached.len() as u64),
            Some(Node::Folder) => Some(0),
            None => path.parent().is_none().then_some(0),
        })
    }

    fn create(&self, path: &Path, _: Access) -> io::Result<Box<dyn NewFile>> {
        let mut state = self.0.lock();
        state.call("create", path)?;
        state.folder(path.parent().ok_or(io::ErrorKind::InvalidFilename)?)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let at = state.files.len();
        state.files.push(Content::default());
        state.change(Change::Put(path.to_owned(), Node::File(at)));
        Ok(Box::new(Opened { disk: self.clone(), path: path.to_owned(), at, process: state.ended }))
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut state = self.0.lock();
        state.call("read", path)?;
        let bytes = &state.files[state.file(path)?].cached;
        Ok(bytes[..bytes.len().min(usize::try_from(most).unwrap_or(usize::MAX))].to_vec())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_eq!(from.parent(), to.parent(), "a move between folders needs two syncs");
        let mut state = self.0.lock();
        state.call("rename", to)?;
        let node = Node::File(state.file(from)?);
        state.change(Change::Moved(from.to_owned(), to.to_owned(), node));
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call("remove", path)?;
        if state.names.contains_key(path) {
            state.file(path)?;
            state.change(Change::Gone(path.to_owned()));
        }
        Ok(())
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        let state = &mut *self.0.lock();
        let done = state.call("sync", path);
        let file = state.file(path)?;
        match (&done, &state.hit) {
            (Ok(()), _) => state.files[file].sync(),
            (Err(_), None) => state.files[file].fail_to_sync(&mut state.random),
            (Err(_), Some(_)) => (),
        }
        done
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        state.call("sync_folder", folder)?;
        state.folder(folder)?;
        let State { durable, pending, .. } = &mut *state;
        for change in pending.extract_if(.., |change| change.is_in(folder)) {
            change.apply(durable);
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Held>> {
        let mut state = self.0.lock();
        state.call("lock", path)?;
        if !state.locks.insert(path.to_owned()) {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        Ok(Box::new(Lock { disk: self.clone(), path: path.to_owned(), process: state.ended }))
    }
}

/// A file that a process has open.
#[derive(Debug)]
struct Opened {
    disk: SimulatedDisk,
    path: PathBuf,
    at: usize,
    process: u64,
}

impl Opened {
    fn call(&self, name: &'static str, work: impl FnOnce(&mut Content, &mut fastrand::Rng, Outcome)) -> io::Result<()> {
        let state = &mut *self.disk.0.lock();
        assert_eq!(self.process, state.ended, "a file outlived its process");
        let had_ended = state.hit.is_some();
        let done = state.call(name, &self.path);
        let outcome = match (&done, &state.hit) {
            (Ok(()), _) => Outcome::Done,
            (Err(_), None) => Outcome::Failed,
            (Err(_), Some(_)) => Outcome::Ended,
        };
        if !had_ended {
            work(&mut state.files[self.at], &mut state.random, outcome);
        }
        done
    }
}

impl NewFile for Opened {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.call("append", |file, random, outcome| {
            let written = if outcome == Outcome::Done { bytes.len() } else { random.usize(..=bytes.len()) };
            file.cached.extend_from_slice(&bytes[..written]);
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.call("sync", |file, random, outcome| match outcome {
            Outcome::Done => file.sync(),
            Outcome::Failed => file.fail_to_sync(random),
            Outcome::Ended => (),
        })
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        let length = usize::try_from(length).map_err(io::Error::other)?;
        self.call("cut", |file, _, outcome| {
            if outcome == Outcome::Done {
                file.cut(length);
            }
        })
    }
}

#[derive(Debug)]
struct Lock {
    disk: SimulatedDisk,
    path: PathBuf,
    process: u64,
}

impl Held for Lock {}

impl Drop for Lock {
    fn drop(&mut self) {
        let mut state = self.disk.0.lock();
        if state.ended == self.process {
            state.locks.remove(&self.path);
        }
    }
}

/// A file of `bytes` that were written, of which the first `synced` were synced. Its folder is `/`.
fn written(disk: &SimulatedDisk, path: &str, bytes: &[u8], synced: usize) {
    let mut file = disk.create(Path::new(path), Access::Owner).unwrap();
    file.append(&bytes[..synced]).unwrap();
    file.sync().unwrap();
    file.append(&bytes[synced..]).unwrap();
}

/// `/a`, to which three letters were written whose sync failed.
fn not_synced(disk: &SimulatedDisk) -> Box<dyn NewFile> {
    let mut file = disk.create(Path::new("/a"), Access::Owner).unwrap();
    disk.sync_folder(Path::new("/")).unwrap();
    file.append(b"abc").unwrap();
    disk.fail(0..1, io::ErrorKind::Other);
    file.sync().unwrap_err();
    file
}

/// What is left of a file in so many losses of power.
fn left_after_power_cuts(prepare: impl Fn(&SimulatedDisk)) -> BTreeSet<Option<Vec<u8>>> {
    let left = |seed| {
        let disk = SimulatedDisk::new(seed);
        prepare(&disk);
        disk.end(End::PowerCut);
        disk.files(Path::new("/")).pop().map(|(_, bytes)| bytes)
    };
    (0..200).map(left).collect()
}

#[test]
fn a_file_without_a_synced_name_may_be_gone_and_with_one_is_there() {
    let left = left_after_power_cuts(|disk| written(disk, "/a", b"abc", 3));
    assert_eq!(left, [None, Some(b"abc".to_vec())].into());
    let left = left_after_power_cuts(|disk| {
        written(disk, "/a", b"abc", 3);
        disk.sync_folder(Path::new("/")).unwrap();
    });
    assert_eq!(left, [Some(b"abc".to_vec())].into());
}

#[test]
fn what_was_not_synced_is_there_in_part_or_not_and_what_was_is_there() {
    let left = left_after_power_cuts(|disk| {
        written(disk, "/a", b"abcdef", 3);
        disk.sync_folder(Path::new("/")).unwrap();
    });
    assert!(left.iter().flatten().all(|bytes| bytes.starts_with(b"abc")));
    assert!([&b"abc"[..], b"abcdef", b"abcd", b"abc\0\0\0"].iter().all(|bytes| left.contains(&Some(bytes.to_vec()))));
    assert!(left.iter().flatten().any(|bytes| bytes.len() > 3 && !b"abcdef\0\0\0".contains(&bytes[3])), "garbage");
}

#[test]
fn a_sync_that_succeeds_after_one_that_failed_has_saved_nothing() {
    let left = left_after_power_cuts(|disk| {
        not_synced(disk).sync().unwrap();
    });
    assert_eq!(left, [Some(b"\0\0\0".to_vec())].into());
    let left = left_after_power_cuts(|disk| {
        not_synced(disk).cut(0).unwrap();
    });
    assert!(left.contains(&Some(b"ab".to_vec())) && left.contains(&Some(Vec::new())), "a cut that was not synced");
}

#[test]
fn a_name_that_was_removed_or_changed_without_a_sync_is_either() {
    let renamed = left_after_power_cuts(|disk| {
        written(disk, "/a", b"abc", 3);
        disk.sync_folder(Path::new("/")).unwrap();
        disk.rename(Path::new("/a"), Path::new("/b")).unwrap();
    });
    assert_eq!(renamed, [Some(b"abc".to_vec())].into());
    let removed = left_after_power_cuts(|disk| {
        written(disk, "/a", b"abc", 3);
        disk.sync_folder(Path::new("/")).unwrap();
        disk.remove(Path::new("/a")).unwrap();
    });
    assert_eq!(removed, [None, Some(b"abc".to_vec())].into());
}

#[test]
fn a_kill_costs_nothing_that_was_written() {
    let disk = SimulatedDisk::new(1);
    written(&disk, "/a", b"abc", 0);
    disk.end(End::Kill);
    assert_eq!(disk.files(Path::new("/")), [(PathBuf::from("/a"), b"abc".to_vec())]);
}
