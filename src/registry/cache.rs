//! Versions on disk by content, and which of them was last good for each model.
//!
//! `<data_dir>/cache/sha256/<digest>/…` holds the files; `<data_dir>/cache/last-good/<model>.json` says what to open when
//! the registry does not answer. A folder appears under its final name only when it is whole.

use std::path::PathBuf;

use super::{Fetched, Found};
use crate::model::ModelName;

/// The cache under one data directory.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

impl Cache {
    /// Opens the cache, sweeping what an interrupted download left behind.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(root: PathBuf) -> std::io::Result<Self> {
        todo!()
    }

    /// The version last served well under `name`, if its files are still what they were.
    #[must_use]
    pub fn last_good(&self, name: &ModelName) -> Option<(Found, Fetched)> {
        todo!()
    }

    /// Remembers a version as good.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn remember(&self, name: &ModelName, found: &Found, fetched: &Fetched) -> std::io::Result<()> {
        todo!()
    }
}
