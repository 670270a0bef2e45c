//! Which bytes were seen first under a version's name.
//!
//! A registry's versions do not change. Where one does, somebody has written over it: what was approved under its number
//! is no longer what would be fetched. So the first digest of each version is kept, and another is refused.

use std::io;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Cache, hex, read_note, write_note};
use crate::model::Digest;
use crate::registry::Found;

/// Versions kept for each registered model; above it those seen first are forgotten first.
const MAX_PINS: usize = 2_000;

/// What is known of a version's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pin {
    /// Never seen; from now on it is these.
    New,
    /// The same as before.
    Same,
    /// It was another digest before.
    Other(Digest),
}

/// What a pin file holds, in the order the versions were seen.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Pins {
    versions: Vec<Pinned>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pinned {
    version: u64,
    /// SHA-256 of the version's source: registries write texts of any length there.
    source: String,
    /// In hexadecimal digits.
    digest: String,
}

impl Cache {
    /// Compares the bytes of `found` with those first seen under its registered model, number and source; those of a
    /// version that was never seen are kept.
    ///
    /// # Errors
    /// When what is kept cannot be read or written.
    pub fn pin(&self, found: &Found, digest: &Digest) -> io::Result<Pin> {
        let file = self.pins().join(format!("{}.json", sha256(&found.registered_model)));
        let _turn = self.pinning.lock();
        let mut pins: Pins = match read_note(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Pins::default(),
            read => read?,
        };
        let source = sha256(&found.source);
        let seen = pins.versions.iter().find(|pinned| pinned.version == found.version.0 && pinned.source == source);
        if let Some(seen) = seen {
            let first = seen.digest.parse().map_err(|_| super::damage("a pin is no digest"))?;
            return Ok(if first == *digest { Pin::Same } else { Pin::Other(first) });
        }
        pins.versions.push(Pinned { version: found.version.0, source, digest: digest.hex() });
        let too_many = pins.versions.len().saturating_sub(MAX_PINS);
        pins.versions.drain(..too_many);
        write_note(&file, &pins)?;
        Ok(Pin::New)
    }
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Version;

    fn found(version: u64, source: &str) -> Found {
        Found {
            registered_model: "credit".into(),
            version: Version(version),
            alias: None,
            source: source.into(),
            created: 1,
            tags: std::collections::BTreeMap::new(),
        }
    }

    #[test]
    fn the_first_bytes_of_a_version_are_its_bytes_across_restarts() {
        let folder = tempfile::tempdir().unwrap();
        let open = || Cache::open(folder.path().to_path_buf()).unwrap();
        let (one, other) = (Digest([1; 32]), Digest([2; 32]));
        assert_eq!(open().pin(&found(1, "a"), &one).unwrap(), Pin::New);
        assert_eq!(open().pin(&found(1, "a"), &one).unwrap(), Pin::Same);
        assert_eq!(open().pin(&found(1, "a"), &other).unwrap(), Pin::Other(one));
        assert_eq!(open().pin(&found(1, "a"), &other).unwrap(), Pin::Other(one), "the first stays");
        assert_eq!(open().pin(&found(2, "a"), &other).unwrap(), Pin::New);
        assert_eq!(open().pin(&found(1, "b"), &other).unwrap(), Pin::New, "made anew from another source");
    }

    #[test]
    fn versions_that_arrive_together_are_all_kept() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().to_path_buf()).unwrap();
        let digest = |version: u64| Digest([u8::try_from(version).unwrap(); 32]);
        std::thread::scope(|scope| {
            for version in 0..16 {
                let cache = &cache;
                scope.spawn(move || cache.pin(&found(version, "a"), &digest(version)).unwrap());
            }
        });
        for version in 0..16 {
            assert_eq!(cache.pin(&found(version, "a"), &digest(version)).unwrap(), Pin::Same);
        }
    }

    #[test]
    fn pins_are_bounded_and_what_is_damaged_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::open(folder.path().to_path_buf()).unwrap();
        let file = cache.pins().join(format!("{}.json", sha256("credit")));
        let versions = (0..MAX_PINS as u64)
            .map(|version| Pinned { version, source: sha256("a"), digest: Digest([1; 32]).hex() })
            .collect();
        write_note(&file, &Pins { versions }).unwrap();
        assert_eq!(cache.pin(&found(9_999, "a"), &Digest([1; 32])).unwrap(), Pin::New);
        let pins: Pins = read_note(&file).unwrap();
        assert_eq!((pins.versions.len(), pins.versions[0].version), (MAX_PINS, 1));
        std::fs::write(&file, "{").unwrap();
        assert!(cache.pin(&found(1, "a"), &Digest([1; 32])).is_err());
    }
}
