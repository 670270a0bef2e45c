//! Versions on disk by content, and which of them was last good for each model.
//!
//! ```text
//! <root>/sha256/<digest>/files/…          a version's files
//! <root>/sha256/<digest>/manifest.json    their names, sizes and SHA-256
//! <root>/last-good/<model>.json           what to open when the registry does not answer
//! <root>/pins/<registered model>.json      the digest each version had when it was seen first
//! <root>/incoming/…                       what is being fetched
//! ```
//!
//! A version's digest is the SHA-256 over one line a file, `<sha256>  <relative name>\n`, the lines sorted by their
//! bytes. In a version's folder, `find . -type f -printf '%P\0' | xargs -0 sha256sum | LC_ALL=C sort | sha256sum` says
//! the same. A folder appears under its final name only when it is whole, by one rename. A copy is checked against its
//! manifest each time it is handed out, and a damaged one is not. One process at a time uses a cache.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tracing::warn;

use super::path::RelativePath;
use super::{Fetched, Found};
use crate::model::{Digest, ModelName, Version};

mod pins;
pub(super) mod staging;

pub use pins::Pin;
use staging::Staging;

/// How many versions that nothing refers to are kept, the newest, so that a rollback finds them on disk.
const KEPT_UNREFERENCED: usize = 3;

/// The largest manifest or last-good note that is read; ours hold at most 256 names.
const MAX_NOTE_BYTES: u64 = 1 << 20;

/// The cache under one data directory. Its functions block.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
    /// Held while a file of pins is read and written: versions are brought beside each other.
    pinning: Arc<Mutex<()>>,
}

impl Cache {
    /// Opens the cache, sweeping what an interrupted download left behind.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(root: PathBuf) -> io::Result<Self> {
        let cache = Self::beside(root);
        if cache.incoming().exists() {
            fs::remove_dir_all(cache.incoming())?;
        }
        for folder in [cache.versions(), cache.last_good_notes(), cache.pins(), cache.incoming()] {
            fs::create_dir_all(folder)?;
        }
        Ok(cache)
    }

    /// The cache as another process has it: nothing is swept, and only what changes nothing should be asked of it.
    #[must_use]
    pub fn beside(root: PathBuf) -> Self {
        Self { root, pinning: Arc::default() }
    }

    /// The version last served well under `name`, if its files are still what they were. Reads all of them.
    #[must_use]
    pub fn last_good(&self, name: &ModelName) -> Option<(Found, Fetched)> {
        let note = read_note::<LastGood>(&self.last_good_note(name))
            .inspect_err(|error| {
                if error.kind() != io::ErrorKind::NotFound {
                    warn!(model.name = %name, "the note of the last good version of `{name}` cannot be read: {error}");
                }
            })
            .ok()?;
        let fetched = self.get(&note.digest.parse().ok()?)?;
        Some((note.into_found(), fetched))
    }

    /// Remembers a version as good.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, name: &ModelName, found: &Found, fetched: &Fetched) -> io::Result<()> {
        write_note(&self.last_good_note(name), &LastGood::new(found, fetched))
    }

    /// The version with this digest, if it is here and undamaged. Reads all its files.
    #[must_use]
    pub fn get(&self, digest: &Digest) -> Option<Fetched> {
        let home = self.home(digest);
        if !home.exists() {
            return None;
        }
        match check(&home, digest) {
            Ok(()) => Some(Fetched { digest: *digest, folder: home.join("files") }),
            Err(error) => {
                warn!(model.digest = %digest, "a version in the cache is damaged and is not opened: {error}");
                None
            }
        }
    }

    /// Removes the versions that are neither in `keep` nor last good for a model, but for the three newest of them.
    ///
    /// # Errors
    /// When the cache cannot be read or a folder cannot be removed.
    pub fn retain(&self, keep: &[Digest]) -> io::Result<()> {
        let mut referenced: Vec<String> = keep.iter().map(Digest::hex).collect();
        for entry in fs::read_dir(self.last_good_notes())? {
            // A note that cannot be read refers to nothing that could be opened.
            referenced.extend(read_note::<LastGood>(&entry?.path()).ok().map(|note| note.digest));
        }
        let mut rest: Vec<(SystemTime, PathBuf)> = Vec::new();
        for entry in fs::read_dir(self.versions())? {
            let entry = entry?;
            if !referenced.iter().any(|digest| entry.file_name() == **digest) {
                rest.push((entry.metadata()?.modified()?, entry.path()));
            }
        }
        rest.sort_unstable_by(|one, other| other.cmp(one));
        rest.iter().skip(KEPT_UNREFERENCED).try_for_each(|(_, home)| fs::remove_dir_all(home))
    }

    /// A new, empty folder for a version of at most `max_bytes`.
    pub(super) fn stage(&self, max_bytes: u64) -> io::Result<Staging> {
        Staging::new(self, max_bytes)
    }

    fn versions(&self) -> PathBuf {
        self.root.join("sha256")
    }

    fn home(&self, digest: &Digest) -> PathBuf {
        self.versions().join(digest.hex())
    }

    fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    fn last_good_notes(&self) -> PathBuf {
        self.root.join("last-good")
    }

    fn last_good_note(&self, name: &ModelName) -> PathBuf {
        self.last_good_notes().join(format!("{name}.json"))
    }
}

/// What `manifest.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    files: Vec<ManifestFile>,
}

/// One file of a version.
#[derive(Debug, Serialize, Deserialize)]
struct ManifestFile {
    path: String,
    size: u64,
    /// In hexadecimal digits.
    sha256: String,
}

impl Manifest {
    fn digest(&self) -> Digest {
        let mut lines: Vec<_> = self.files.iter().map(|file| format!("{}  {}\n", file.sha256, file.path)).collect();
        lines.sort_unstable();
        let mut hasher = Sha256::new();
        for line in lines {
            hasher.update(line);
        }
        Digest(hasher.finalize().into())
    }
}

/// What a last-good note holds.
#[derive(Serialize, Deserialize)]
struct LastGood {
    registered_model: String,
    version: u64,
    alias: Option<String>,
    source: String,
    created: i64,
    tags: std::collections::BTreeMap<String, String>,
    /// In hexadecimal digits.
    digest: String,
}

impl LastGood {
    fn new(found: &Found, fetched: &Fetched) -> Self {
        Self {
            registered_model: found.registered_model.clone(),
            version: found.version.0,
            alias: found.alias.as_deref().map(str::to_owned),
            source: found.source.clone(),
            created: found.created,
            tags: found.tags.clone(),
            digest: fetched.digest.hex(),
        }
    }

    fn into_found(self) -> Found {
        Found {
            registered_model: self.registered_model,
            version: Version(self.version),
            alias: self.alias.map(Into::into),
            source: self.source,
            created: self.created,
            tags: self.tags,
        }
    }
}

/// Whether the version in `home` is what its digest says, every byte of it.
fn check(home: &Path, digest: &Digest) -> io::Result<()> {
    let manifest: Manifest = read_note(&home.join("manifest.json"))?;
    if manifest.digest() != *digest {
        return Err(damage("its manifest has another digest"));
    }
    for file in &manifest.files {
        let path: RelativePath = file.path.parse().map_err(|_| damage("its manifest names a file it cannot hold"))?;
        let on_disk = path.below(&home.join("files"));
        // Not followed: a link is not what was stored.
        let metadata = fs::symlink_metadata(&on_disk)?;
        if !metadata.is_file() || metadata.len() != file.size || sha256_of(&on_disk)? != file.sha256 {
            return Err(damage(&format!("`{path}` is not what was stored")));
        }
    }
    Ok(())
}

fn damage(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

fn read_note<T: for<'de> Deserialize<'de>>(path: &Path) -> io::Result<T> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_NOTE_BYTES).read_to_end(&mut text)?;
    serde_json::from_slice(&text).map_err(io::Error::from)
}

/// Writes `note` so that a power cut leaves the old file or the new one.
fn write_note(path: &Path, note: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().expect("notes lie in the cache");
    let mut half = tempfile::NamedTempFile::new_in(folder)?;
    half.write_all(&serde_json::to_vec_pretty(note)?)?;
    half.as_file().sync_all()?;
    half.persist(path)?;
    sync_folder(folder)
}

/// Makes the names in `folder` last.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests;
