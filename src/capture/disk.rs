//! What the spool and a folder of objects ask of a disk.
//!
//! Bytes are on the disk once their file was synced, and a name once its folder was. Until then a loss of power may take
//! them, in part and in any order; a process that is killed loses nothing it has written.

use std::ffi::OsString;
use std::fmt::Debug;
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

/// A disk, by the calls that are made of it.
pub trait Disk: Debug + Send + Sync {
    /// Makes a folder in one that is there. That it is there already is no failure.
    ///
    /// # Errors
    /// As the disk says.
    fn make_folder(&self, folder: &Path, access: Access) -> io::Result<()>;

    /// What is in a folder, in no order.
    ///
    /// # Errors
    /// As the disk says.
    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>>;

    /// The bytes of what is at `path`; `None` where nothing is.
    ///
    /// # Errors
    /// As the disk says.
    fn size(&self, path: &Path) -> io::Result<Option<u64>>;

    /// Creates a file where none is.
    ///
    /// # Errors
    /// As the disk says, and when there is one.
    fn create(&self, path: &Path, access: Access) -> io::Result<Box<dyn NewFile>>;

    /// The start of a file, `most` bytes of it at most.
    ///
    /// # Errors
    /// As the disk says.
    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>>;

    /// Gives a file another name in its folder.
    ///
    /// # Errors
    /// As the disk says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Deletes a file. That there is none is no failure.
    ///
    /// # Errors
    /// As the disk says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Waits until the bytes of a file are on the disk, whoever wrote them.
    ///
    /// # Errors
    /// As the disk says.
    fn sync(&self, path: &Path) -> io::Result<()>;

    /// Waits until the names in a folder are on the disk.
    ///
    /// # Errors
    /// As the disk says.
    fn sync_folder(&self, folder: &Path) -> io::Result<()>;

    /// Keeps other processes out as long as what is given back lives. A process that ends gives it back, however it ends.
    ///
    /// # Errors
    /// As the disk says; [`ResourceBusy`](io::ErrorKind::ResourceBusy) when another process has it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Held>>;
}

/// A file by the one that created it.
pub trait NewFile: Debug + Send {
    /// Writes behind what is there. After a failure a part may be there.
    ///
    /// # Errors
    /// As the disk says.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()>;

    /// Waits until the bytes are on the disk. After a failure nobody knows which are, and to ask again tells nothing.
    ///
    /// # Errors
    /// As the disk says.
    fn sync(&self) -> io::Result<()>;

    /// Cuts off what is behind so many bytes.
    ///
    /// # Errors
    /// As the disk says.
    fn cut(&self, length: u64) -> io::Result<()>;
}

/// A lock, until it is dropped.
pub trait Held: Debug + Send + Sync {}

/// Who may read what is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Its owner only.
    Owner,
    /// Whoever the process's mask lets.
    Anyone,
}

/// Something in a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Without the folder's.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// Its length, of a file.
    pub bytes: u64,
}

/// What is in a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file.
    File,
    /// A folder.
    Folder,
    /// A link, a socket.
    Other,
}

/// Makes a folder and those above it that are missing. When this returns, the names of all of them are on the disk.
pub(super) fn make_folders(disk: &dyn Disk, folder: &Path, access: Access) -> io::Result<()> {
    let Some(above) = folder.parent() else { return Ok(()) };
    if !above.as_os_str().is_empty() {
        make_folders(disk, above, access)?;
    }
    if disk.size(folder)?.is_none() {
        disk.make_folder(folder, access)?;
    }
    // Also if it was there: whoever made it may have been killed before this line.
    match disk.sync_folder(above) {
        Err(error) if cannot_be_synced(error.kind()) => Ok(()),
        done => done,
    }
}

/// A folder that may be passed through and not read, or one of a file system that syncs none. It is not ours.
fn cannot_be_synced(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{InvalidInput, PermissionDenied, ReadOnlyFilesystem, Unsupported};
    matches!(kind, InvalidInput | PermissionDenied | ReadOnlyFilesystem | Unsupported)
}

/// The disks of this machine.
#[derive(Clone, Copy, Debug)]
pub struct Local;

impl Disk for Local {
    fn make_folder(&self, folder: &Path, access: Access) -> io::Result<()> {
        let mode = match access {
            Access::Owner => 0o700,
            Access::Anyone => 0o777,
        };
        match DirBuilder::new().mode(mode).create(folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
            done => done,
        }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = match entry.metadata() {
                Ok(metadata) => metadata,
                // Renamed or deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let kind = match metadata.file_type() {
                file if file.is_file() => EntryKind::File,
                file if file.is_dir() => EntryKind::Folder,
                _ => EntryKind::Other,
            };
            entries.push(Entry { name: entry.file_name(), kind, bytes: metadata.len() });
        }
        Ok(entries)
    }

    fn size(&self, path: &Path) -> io::Result<Option<u64>> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn create(&self, path: &Path, access: Access) -> io::Result<Box<dyn NewFile>> {
        let mode = match access {
            Access::Owner => 0o600,
            Access::Anyone => 0o666,
        };
        let file = OpenOptions::new().create_new(true).append(true).mode(mode).open(path)?;
        Ok(Box::new(file))
    }

    fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let file = File::open(path)?;
        let length = file.metadata()?.len().min(most);
        // Ahead of reading, because a buffer that grows is as large again.
        let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
        file.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            done => done,
        }
    }

    fn sync(&self, path: &Path) -> io::Result<()> {
        File::open(path)?.sync_data()
    }

    fn sync_folder(&self, folder: &Path) -> io::Result<()> {
        let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
        File::open(folder)?.sync_all()
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Held>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(Lock(file))),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::ResourceBusy.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl NewFile for File {
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn cut(&self, length: u64) -> io::Result<()> {
        self.set_len(length)
    }
}

#[derive(Debug)]
struct Lock(File);

impl Held for Lock {}

impl Drop for Lock {
    /// Closing the file would not do: a child process that was forked just now shares it until its own program starts.
    fn drop(&mut self) {
        _ = self.0.unlock();
    }
}

#[cfg(test)]
pub(crate) mod simulated;
