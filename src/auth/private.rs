//! Files that only their owner may touch: made whole or not at all, refused when others can read them.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

use tempfile::NamedTempFile;

use super::StoreError;

/// Others may do nothing, the group may at most read: mounted secrets belong to a group.
const FORBIDDEN_MODE: u32 = 0o027;

/// A draft of the file at `path`, readable by the owner only, in the same directory, which is made when absent.
pub(super) fn draft(path: &Path) -> io::Result<NamedTempFile> {
    let directory = directory_of(path);
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    tempfile::Builder::new().prefix(".modelgate-").tempfile_in(directory)
}

/// Puts a finished draft in its place, durably. A file that is already there stays as it is.
pub(super) fn publish(draft: NamedTempFile, path: &Path) -> io::Result<()> {
    draft.as_file().sync_all()?;
    match draft.persist_noclobber(path) {
        Ok(_) => File::open(directory_of(path))?.sync_all(),
        Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(failed) => Err(failed.error),
    }
}

/// Refuses a file that others than its owner can change, or that everybody can read.
pub(super) fn refuse_exposed(path: &Path) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & FORBIDDEN_MODE != 0 {
        return Err(StoreError::Exposed { path: path.to_owned(), mode });
    }
    Ok(())
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
