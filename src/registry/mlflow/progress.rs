//! How far a download has come, for those who wait for it.

use std::time::Duration;

use tokio::time::Instant;
use tracing::info;

use crate::model::loading::Loading;
use crate::registry::Found;
use crate::registry::path::RelativePath;

/// How often a download that takes its time is a line in the log. One that is done sooner is none.
const INTERVAL: Duration = Duration::from_secs(5);

/// One download.
#[derive(Debug)]
pub(super) struct Progress<'a> {
    found: &'a Found,
    loading: &'a Loading,
    /// The bytes of the files that are whole.
    whole: u64,
    /// What was here at the last line, and when that was.
    last: (u64, Instant),
}

impl<'a> Progress<'a> {
    pub(super) fn new(found: &'a Found, loading: &'a Loading) -> Self {
        Self { found, loading, whole: 0, last: (0, Instant::now()) }
    }

    /// All files together have `total` bytes.
    pub(super) fn expect(&self, total: u64) {
        self.loading.expect(total);
    }

    /// A file of `size` bytes is whole.
    pub(super) fn has_file(&mut self, size: u64) {
        self.whole += size;
        self.loading.has(self.whole);
    }

    /// So many bytes of `file` are here.
    pub(super) fn has_part(&mut self, file: &RelativePath, len: u64) {
        let bytes = self.whole + len;
        self.loading.has(bytes);
        let (before, at) = self.last;
        let took = at.elapsed();
        if took < INTERVAL {
            return;
        }
        self.last = (bytes, Instant::now());
        // Whole milliseconds, of which there are at least five thousand.
        let rate = u128::from(bytes.saturating_sub(before)) * 1000 / took.as_millis().max(1);
        let (model, version, total) = (&self.found.registered_model, self.found.version, self.loading.total());
        let of = total.map_or_else(String::new, |total| format!(" of {}", megabytes(total)));
        info!(
            registry.model = model, model.version = %version, file = file.as_str(), bytes, total, bytes_per_second = rate,
            "fetching `{model}` version {version}: {}{of} are here, {} a second",
            megabytes(bytes), megabytes(rate.try_into().unwrap_or(u64::MAX))
        );
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10)
}
