//! What becomes of a feature's values before they are written: kept, left out, hashed or made coarse.
//!
//! It happens when a sample is encoded for the spool, so that neither the disk nor the sink ever holds what is protected.
//! Where a rule cannot be followed the value is left out: a bucket of a text, a hash without its secret.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use hmac::{Hmac, KeyInit, Mac};
use secrecy::zeroize::Zeroizing;
use sha2::Sha256;

use crate::model::Cell;
use crate::model::features::Feature;
use crate::model::signature::Kind;

/// Where secrets come from: fills the buffer with random bytes, as `getrandom::fill` does.
pub type Random<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), getrandom::Error>;

/// Which features are protected, by the model's or the callers' name for them. A feature that several rules name follows
/// the strictest: left out before hashed, hashed before made coarse.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Left out.
    pub redact: Vec<String>,
    /// Written as a keyed hash.
    pub hash: Vec<String>,
    /// Rounded down to a multiple of this.
    pub bucket: BTreeMap<String, f64>,
}

/// What becomes of one feature's values.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Protection {
    /// Written as they came.
    #[default]
    Keep,
    /// Left out.
    Redact,
    /// Written as 32 hexadecimal digits that are the same for the same value of the same feature, in one deployment.
    Hash,
    /// Rounded down to a multiple of this.
    Bucket(f64),
}

impl Policy {
    /// The names of all features that are protected in any way.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.redact.iter().chain(&self.hash).chain(self.bucket.keys()).cloned().collect()
    }

    /// The rule for `feature`.
    #[must_use]
    pub fn of(&self, feature: &Feature) -> Protection {
        let is_it = |name: &String| **name == *feature.name || **name == *feature.field;
        let is_number = matches!(feature.kind, Kind::Integer | Kind::Long | Kind::Float | Kind::Double);
        if self.redact.iter().any(is_it) {
            return Protection::Redact;
        }
        if self.hash.iter().any(is_it) {
            return Protection::Hash;
        }
        match self.bucket.iter().find(|(name, _)| is_it(name)) {
            Some((_, width)) if is_number => Protection::Bucket(*width),
            Some(_) => Protection::Redact,
            None => Protection::Keep,
        }
    }
}

impl Protection {
    /// The type of what is written of values of `kind`.
    #[must_use]
    pub fn kind(self, kind: Kind) -> Kind {
        if self == Self::Hash { Kind::Text } else { kind }
    }

    /// Its name, as in the configuration; none for what is kept.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::Keep => None,
            Self::Redact => Some("redact"),
            Self::Hash => Some("hash"),
            Self::Bucket(_) => Some("bucket"),
        }
    }

    /// What may be written of a cell of `feature`.
    pub(super) fn apply<'c>(self, feature: &str, cell: &'c Cell, secret: Option<&Secret>) -> Cow<'c, Cell> {
        match (self, cell) {
            (Self::Keep, cell) | (_, cell @ Cell::Missing) => Cow::Borrowed(cell),
            (Self::Redact, _) => Cow::Owned(Cell::Missing),
            (Self::Hash, cell) => {
                Cow::Owned(secret.map_or(Cell::Missing, |secret| Cell::Text(secret.hash(feature, cell).into())))
            }
            (Self::Bucket(width), cell) => Cow::Owned(coarse(cell, width)),
        }
    }
}

/// The cell, rounded down to a multiple of `width`.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a bucket is coarse by intent")]
fn coarse(cell: &Cell, width: f64) -> Cell {
    let down = |value: f64| (value / width).floor() * width;
    match cell {
        Cell::Integer(value) if width.fract() == 0.0 && width < i64::MAX as f64 => {
            Cell::Integer(value.saturating_sub(value.rem_euclid(width as i64)))
        }
        Cell::Integer(value) => Cell::Integer(down(*value as f64) as i64),
        // A width far below the value's last digit divides it beyond what a float holds.
        Cell::Float(value) => Some(down(*value)).filter(|down| down.is_finite()).map_or(Cell::Missing, Cell::Float),
        Cell::Missing | Cell::Boolean(_) | Cell::Text(_) => Cell::Missing,
    }
}

/// Bytes in a secret: what HMAC-SHA-256 can make use of.
const SECRET_LEN: usize = 32;

/// Bytes of a hash that are written: enough that no two values of a feature ever share one.
const HASH_LEN: usize = 16;

/// The key of the hashes. It stays in this deployment's data directory, so that nobody who has only the samples can try
/// values, and samples of two deployments cannot be joined.
#[derive(Clone)]
pub struct Secret(Hmac<Sha256>);

impl Secret {
    /// The secret in the file at `path`, which is made if need be.
    ///
    /// # Errors
    /// When the file cannot be made or read, or holds something else.
    pub fn open(path: &Path, random: Random<'_>) -> io::Result<Self> {
        if !path.try_exists()? {
            create(path, random)?;
        }
        let bytes = Zeroizing::new(fs::read(path)?);
        if bytes.len() == SECRET_LEN {
            Ok(Self::of(&bytes))
        } else {
            let text = format!("it has {} bytes and not {SECRET_LEN}; restore it from a backup", bytes.len());
            Err(io::Error::new(io::ErrorKind::InvalidData, text))
        }
    }

    pub(super) fn of(bytes: &[u8]) -> Self {
        Self(Hmac::new_from_slice(bytes).expect("HMAC takes a key of any length"))
    }

    /// The feature's name is part of it, so that equal values of two features do not look alike.
    fn hash(&self, feature: &str, cell: &Cell) -> String {
        let mut mac = self.0.clone();
        mac.update(feature.as_bytes());
        // No text of UTF-8 holds this byte, so no name and value can be split in two ways.
        mac.update(&[0xff]);
        match cell {
            Cell::Text(text) => mac.update(text.as_bytes()),
            Cell::Integer(value) => mac.update(value.to_string().as_bytes()),
            Cell::Float(value) => mac.update(value.to_string().as_bytes()),
            Cell::Boolean(value) => mac.update(value.to_string().as_bytes()),
            Cell::Missing => (),
        }
        let digest = mac.finalize().into_bytes();
        let mut text = String::with_capacity(2 * HASH_LEN);
        for byte in &digest[..HASH_LEN] {
            write!(text, "{byte:02x}").expect("a String takes all that is written");
        }
        text
    }
}

/// Makes the file, for its owner only, whole or not at all. One that is there already stays.
fn create(path: &Path, random: Random<'_>) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut bytes = Zeroizing::new([0; SECRET_LEN]);
    random(bytes.as_mut()).map_err(|error| io::Error::other(error.to_string()))?;
    let mut draft = tempfile::Builder::new().prefix(".modelgate-").tempfile_in(folder)?;
    draft.write_all(bytes.as_ref())?;
    draft.as_file().sync_all()?;
    match draft.persist_noclobber(path) {
        Err(failed) if failed.error.kind() != io::ErrorKind::AlreadyExists => Err(failed.error),
        _ => File::open(folder)?.sync_all(),
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use proptest::prelude::*;

    use super::*;
    use crate::model::features::{Features, Settings};
    use crate::model::signature::{Column, Signature};

    fn policy() -> Policy {
        Policy {
            redact: vec!["SSN".to_owned()],
            hash: vec!["name".to_owned(), "SSN".to_owned()],
            bucket: [("Income", 1000.0), ("Job", 5.0), ("name", 2.0)]
                .map(|(name, width)| (name.to_owned(), width))
                .into(),
        }
    }

    #[track_caller]
    fn check_rule(feature: &str, kind: Kind, expected: Protection) {
        let column = Column { name: feature.into(), kind, required: true };
        let rename = [("name".to_owned(), "Name".to_owned())].into();
        let settings = if feature == "Name" { Settings { rename, ..Settings::default() } } else { Settings::default() };
        let features = Features::new(&Signature::Columns(vec![column]), settings).unwrap();
        assert_eq!(policy().of(&features.list()[0]), expected);
    }

    #[test]
    fn the_strictest_rule_wins_and_one_that_cannot_be_followed_leaves_out() {
        check_rule("SSN", Kind::Text, Protection::Redact);
        check_rule("Name", Kind::Text, Protection::Hash);
        check_rule("Income", Kind::Double, Protection::Bucket(1000.0));
        check_rule("Job", Kind::Text, Protection::Redact);
        check_rule("Age", Kind::Long, Protection::Keep);
    }

    #[track_caller]
    fn check_bucket(width: f64, cell: &Cell, expected: &Cell) {
        assert_eq!(*Protection::Bucket(width).apply("f", cell, None), *expected);
    }

    #[test]
    fn a_bucket_rounds_down() {
        check_bucket(1000.0, &Cell::Float(19_114.12), &Cell::Float(19_000.0));
        check_bucket(1000.0, &Cell::Float(-1.0), &Cell::Float(-1000.0));
        check_bucket(10.0, &Cell::Integer(i64::MAX), &Cell::Integer(i64::MAX - 7));
        check_bucket(10.0, &Cell::Integer(i64::MIN), &Cell::Integer(i64::MIN));
        check_bucket(2.5, &Cell::Integer(9), &Cell::Integer(7));
        check_bucket(1e-300, &Cell::Float(1e300), &Cell::Missing);
        check_bucket(10.0, &Cell::Missing, &Cell::Missing);
    }

    proptest! {
        #[test]
        fn a_bucket_tells_no_more_than_its_number(width in 1_i64..1000, value in -1_000_000_i64..1_000_000) {
            #[expect(clippy::cast_precision_loss, reason = "below a million")]
            let bucket = Protection::Bucket(width as f64);
            let expected = Cell::Integer(value.div_euclid(width) * width);
            let cell = Cell::Integer(value);
            prop_assert_eq!(&*bucket.apply("f", &cell, None), &expected);
        }
    }

    fn hash(secret: &Secret, feature: &str, cell: &Cell) -> String {
        match &*Protection::Hash.apply(feature, cell, Some(secret)) {
            Cell::Text(text) => text.to_string(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_hash_depends_on_the_value_the_feature_and_the_deployment() {
        let (here, there) = (Secret::of(&[1; 32]), Secret::of(&[2; 32]));
        let value = Cell::Text("123-45-6789".into());
        let hashed = hash(&here, "SSN", &value);
        assert!(hashed.len() == 32 && hashed.bytes().all(|byte| byte.is_ascii_hexdigit()), "{hashed}");
        assert_eq!(hashed, hash(&here, "SSN", &value.clone()));
        assert_ne!(hashed, hash(&here, "SSN", &Cell::Text("123-45-6780".into())));
        assert_ne!(hashed, hash(&here, "Phone", &value));
        assert_ne!(hashed, hash(&there, "SSN", &value));
        assert_eq!(*Protection::Hash.apply("SSN", &value, None), Cell::Missing);
        assert_eq!(*Protection::Hash.apply("SSN", &Cell::Missing, Some(&here)), Cell::Missing);
    }

    #[test]
    fn a_secret_is_made_once_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let first = Secret::open(&path, &mut getrandom::fill).unwrap();
        let again = Secret::open(&path, &mut |_| panic!("it is there")).unwrap();
        let cell = Cell::Integer(7);
        assert_eq!(hash(&first, "f", &cell), hash(&again, "f", &cell));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        fs::write(&path, "short").unwrap();
        assert!(Secret::open(&path, &mut getrandom::fill).unwrap_err().to_string().contains("5 bytes"));
    }
}
