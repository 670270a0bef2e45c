//! The pepper: a secret outside the store without which its hashes say nothing.
//!
//! A stolen database or backup holds HMACs only. A pepper that is lost makes every key useless, so it is made once, and
//! never made anew while the store has keys.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::zeroize::Zeroizing;
use sha2::Sha256;

use super::{Random, StoreError, private};

/// Bytes in a pepper: what HMAC-SHA-256 can make use of.
const PEPPER_LEN: usize = 32;

/// What a keyed hash is: 32 bytes.
pub(super) type Digest = [u8; 32];

/// The keyed hash, with the pepper already absorbed.
#[derive(Clone)]
pub(super) struct Pepper(Hmac<Sha256>);

impl Pepper {
    /// Reads the pepper at `path`; `None` when there is no such file.
    ///
    /// # Errors
    /// When the file is no pepper, or not private.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, StoreError> {
        let bytes = match fs::read(path) {
            Ok(bytes) => Zeroizing::new(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path: path.to_owned(), source }),
        };
        private::refuse_exposed(path)?;
        if bytes.len() != PEPPER_LEN {
            return Err(StoreError::PepperLength { path: path.to_owned(), found: bytes.len() });
        }
        Ok(Some(Self(keyed(&bytes))))
    }

    /// Makes the pepper at `path`, unless another process was faster, and reads it.
    ///
    /// # Errors
    /// When the file cannot be made, or is no pepper.
    pub(super) fn create(path: &Path, random: Random<'_>) -> Result<Self, StoreError> {
        let mut bytes = Zeroizing::new([0; PEPPER_LEN]);
        random(bytes.as_mut()).map_err(StoreError::Random)?;
        let written = private::draft(path).and_then(|mut draft| {
            draft.write_all(bytes.as_ref())?;
            private::publish(draft, path)
        });
        written.map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        Self::read(path)?.ok_or_else(|| StoreError::PepperMissing { path: path.to_owned() })
    }

    /// The keyed hash of `text`.
    pub(super) fn digest(&self, text: &str) -> Digest {
        let mut mac = self.0.clone();
        mac.update(text.as_bytes());
        mac.finalize().into_bytes().into()
    }

    /// Tells this pepper from others without telling what it is.
    pub(super) fn fingerprint(&self) -> Digest {
        // No key has this form, so no key's hash is ever this one.
        self.digest("modelgate pepper")
    }
}

fn keyed(pepper: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(pepper).expect("HMAC takes a key of any length")
}

impl fmt::Debug for Pepper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pepper")
    }
}
