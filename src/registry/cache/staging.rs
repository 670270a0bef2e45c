//! A version on its way into the cache: a folder of its own that is given its final name when it is whole.

use std::collections::BTreeSet;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use super::{Cache, Manifest, ManifestFile, check, hex, sync_folder, write_note};
use crate::model::Digest;
use crate::registry::path::RelativePath;
use crate::registry::{Fetched, RegistryError};

/// A version is a handful of files; a training folder that was logged by mistake is thousands.
pub(in crate::registry) const MAX_FILES: usize = 256;

/// What is being fetched. Dropping it removes it.
#[derive(Debug)]
pub(in crate::registry) struct Staging {
    cache: Cache,
    folder: TempDir,
    max_bytes: u64,
    files: Vec<ManifestFile>,
}

/// One file being written, hashed as it comes.
#[derive(Debug)]
pub(in crate::registry) struct Incoming {
    path: RelativePath,
    file: tokio::fs::File,
    hasher: Sha256,
    len: u64,
    max_len: u64,
    /// For the message.
    max_bytes: u64,
}

impl Staging {
    pub(super) fn new(cache: &Cache, max_bytes: u64) -> io::Result<Self> {
        let folder = TempDir::new_in(cache.incoming())?;
        std::fs::create_dir(folder.path().join("files"))?;
        Ok(Self { cache: cache.clone(), folder, max_bytes, files: Vec::new() })
    }

    /// Where `path` is while it is here.
    pub(in crate::registry) fn place(&self, path: &RelativePath) -> PathBuf {
        path.below(&self.folder.path().join("files"))
    }

    /// Makes room for one more file.
    pub(in crate::registry) async fn receive(&self, path: RelativePath) -> Result<Incoming, RegistryError> {
        if self.files.len() == MAX_FILES {
            return Err(RegistryError::BadArtifacts(format!("there are more than {MAX_FILES} of them")));
        }
        let place = self.place(&path);
        tokio::fs::create_dir_all(place.parent().expect("a place is below the staging folder")).await?;
        let file = tokio::fs::OpenOptions::new().read(true).write(true).create_new(true).open(place).await?;
        let taken: u64 = self.files.iter().map(|file| file.size).sum();
        Ok(Incoming {
            path,
            file,
            hasher: Sha256::new(),
            len: 0,
            max_len: self.max_bytes - taken,
            max_bytes: self.max_bytes,
        })
    }

    /// Takes in a file that is whole.
    pub(in crate::registry) async fn keep(&mut self, incoming: Incoming) -> io::Result<()> {
        let Incoming { path, mut file, hasher, len, .. } = incoming;
        file.flush().await?;
        file.sync_all().await?;
        let sha256 = hex(&hasher.finalize());
        self.files.push(ManifestFile { path: path.as_str().to_owned(), size: len, sha256 });
        Ok(())
    }

    /// Gives the version its final name.
    pub(in crate::registry) async fn seal(self) -> Result<Fetched, RegistryError> {
        let sealed = tokio::task::spawn_blocking(|| self.seal_blocking()).await;
        Ok(sealed.map_err(io::Error::other)??)
    }

    fn seal_blocking(self) -> io::Result<Fetched> {
        let manifest = Manifest { files: self.files };
        let digest = manifest.digest();
        let home = self.cache.home(&digest);
        let fetched = Fetched { digest, folder: home.join("files") };
        if is_whole(&home, &digest)? {
            return Ok(fetched);
        }
        let files = self.folder.path().join("files");
        sync_folders(&files, &manifest)?;
        write_note(&self.folder.path().join("manifest.json"), &manifest)?;
        if let Err(error) = std::fs::rename(self.folder.path(), &home) {
            // Another load of the same bytes was faster: a folder that is there is not replaced.
            return if is_whole(&home, &digest)? { Ok(fetched) } else { Err(error) };
        }
        // Its name is no longer the temporary one, so there is nothing left to remove.
        let _ = self.folder.keep();
        sync_folder(&self.cache.versions())?;
        Ok(fetched)
    }
}

/// Whether `home` holds the version already; a damaged copy is removed.
fn is_whole(home: &Path, digest: &Digest) -> io::Result<bool> {
    if !home.exists() {
        return Ok(false);
    }
    if check(home, digest).is_ok() {
        return Ok(true);
    }
    std::fs::remove_dir_all(home)?;
    Ok(false)
}

fn sync_folders(files: &Path, manifest: &Manifest) -> io::Result<()> {
    let paths: Vec<PathBuf> = manifest.files.iter().map(|file| files.join(&file.path)).collect();
    let folders: BTreeSet<&Path> =
        paths.iter().flat_map(|path| path.ancestors().skip(1).take_while(|folder| folder.starts_with(files))).collect();
    folders.into_iter().try_for_each(sync_folder)
}

impl Incoming {
    pub(in crate::registry) fn path(&self) -> &RelativePath {
        &self.path
    }

    /// How many bytes are here.
    pub(in crate::registry) fn len(&self) -> u64 {
        self.len
    }

    pub(in crate::registry) async fn write(&mut self, bytes: &[u8]) -> Result<(), RegistryError> {
        let len = self.len + bytes.len() as u64;
        if len > self.max_len {
            return Err(RegistryError::BadArtifacts(format!(
                "they are larger than the limit of {} bytes for one version",
                self.max_bytes
            )));
        }
        self.file.write_all(bytes).await?;
        self.hasher.update(bytes);
        self.len = len;
        Ok(())
    }

    /// The last `len` bytes, or all there are.
    pub(in crate::registry) async fn tail(&mut self, len: u64) -> io::Result<Vec<u8>> {
        self.file.flush().await?;
        let from = self.len.saturating_sub(len);
        self.file.seek(SeekFrom::Start(from)).await?;
        let mut tail = Vec::new();
        self.file.read_to_end(&mut tail).await?;
        Ok(tail)
    }

    /// Forgets what came after the first `len` bytes.
    pub(in crate::registry) async fn rewind(&mut self, len: u64) -> io::Result<()> {
        self.file.flush().await?;
        self.file.set_len(len).await?;
        self.file.seek(SeekFrom::Start(0)).await?;
        self.hasher = Sha256::new();
        let mut buffer = vec![0; 256 << 10];
        loop {
            match self.file.read(&mut buffer).await? {
                0 => break,
                n => self.hasher.update(&buffer[..n]),
            }
        }
        self.len = len;
        Ok(())
    }
}
