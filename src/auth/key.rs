//! The text of a key: `mg_live_<id>_<secret><checksum>`, 57 characters.
//!
//! The prefix lets secret scanners find leaked keys; the checksum lets them, and us, drop look-alikes without asking a
//! store. The checksum is not a protection: the 190 bits of the secret are.

use std::io::Write;

use secrecy::SecretString;
use secrecy::zeroize::Zeroizing;

use super::StoreError;

const PREFIX: &str = "mg_live_";
const ID_LEN: usize = 10;
const SECRET_LEN: usize = 32;
/// 62⁶ is just above 2³².
const CHECKSUM_LEN: usize = 6;
const ID_START: usize = PREFIX.len();
const ID_END: usize = ID_START + ID_LEN;
const SECRET_START: usize = ID_END + 1;
const CHECKSUM_START: usize = SECRET_START + SECRET_LEN;

/// The length of a key, in bytes.
pub(super) const KEY_LEN: usize = CHECKSUM_START + CHECKSUM_LEN;

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The largest multiple of 62 in a byte; bytes from here on would make some characters likelier than others.
const UNBIASED: u8 = 248;

/// The public id of a key, as bytes: a map's key that needs no allocation.
pub(super) type Id = [u8; ID_LEN];

/// The id in `text`, if `text` has the form of a key: length, prefix, alphabet and checksum are right.
pub(super) fn parse(text: &str) -> Option<Id> {
    let text: &[u8; KEY_LEN] = text.as_bytes().try_into().ok()?;
    let well_formed = text.starts_with(PREFIX.as_bytes())
        && are_letters(&text[ID_START..ID_END])
        && text[ID_END] == b'_'
        && are_letters(&text[SECRET_START..])
        && text[CHECKSUM_START..] == checksum(&text[..CHECKSUM_START]);
    well_formed.then(|| text[ID_START..ID_END].try_into().ok())?
}

/// Whether all of `text` is letters and digits. Looks at every byte, and at none with a branch: a processor that has learnt
/// the branches of a key that is used a lot is faster with texts that begin like it.
fn are_letters(text: &[u8]) -> bool {
    text.iter().fold(true, |all, byte| all & byte.is_ascii_alphanumeric())
}

/// The public id in `text`, if it is well formed: by length, prefix, alphabet and checksum, asking no store.
#[must_use]
pub fn well_formed_id(text: &str) -> Option<super::KeyId> {
    parse(text).map(|id| id_text(&id).into())
}

/// The id that `text` is, if it has the form of one.
pub(super) fn parse_id(text: &str) -> Option<Id> {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric()).then(|| text.as_bytes().try_into().ok())?
}

/// An id as text.
pub(super) fn id_text(id: &Id) -> &str {
    std::str::from_utf8(id).expect("an id is made of ASCII letters and digits: every way to one checks that")
}

/// A new key from `random`.
///
/// # Errors
/// When there is no randomness.
pub(super) fn generate(random: super::Random<'_>) -> Result<(Id, SecretString), StoreError> {
    let mut letters = Zeroizing::new([0; ID_LEN + SECRET_LEN]);
    fill_base62(letters.as_mut(), random)?;
    let (id, secret) = letters.split_at(ID_LEN);
    let mut text = Zeroizing::new([0; KEY_LEN]);
    let mut rest = text.as_mut_slice();
    for part in [PREFIX.as_bytes(), id, b"_", secret] {
        rest.write_all(part).expect("the parts of a key are as long as a key");
    }
    let sum = checksum(&text[..CHECKSUM_START]);
    text[CHECKSUM_START..].copy_from_slice(&sum);
    let text = std::str::from_utf8(text.as_slice()).expect("every character is ASCII");
    let id = id.try_into().expect("split at the length of an id");
    Ok((id, SecretString::from(text)))
}

/// A public id for a key from elsewhere.
///
/// # Errors
/// When there is no randomness.
pub(super) fn generate_id(random: super::Random<'_>) -> Result<Id, StoreError> {
    let mut id = [0; ID_LEN];
    fill_base62(&mut id, random)?;
    Ok(id)
}

/// Fills `letters` evenly from the alphabet.
fn fill_base62(letters: &mut [u8], random: super::Random<'_>) -> Result<(), StoreError> {
    let mut pool = Zeroizing::new([0_u8; 64]);
    let mut filled = 0;
    while filled < letters.len() {
        random(pool.as_mut()).map_err(StoreError::Random)?;
        let drawn = pool.iter().filter(|byte| **byte < UNBIASED);
        for (letter, byte) in letters[filled..].iter_mut().zip(drawn) {
            *letter = BASE62[usize::from(byte % 62)];
            filled += 1;
        }
    }
    Ok(())
}

/// CRC-32 of `text` in base 62, most significant first.
fn checksum(text: &[u8]) -> [u8; CHECKSUM_LEN] {
    let mut rest = crc32fast::hash(text);
    let mut digits = [b'0'; CHECKSUM_LEN];
    for digit in digits.iter_mut().rev() {
        *digit = BASE62[(rest % 62) as usize];
        rest /= 62;
    }
    digits
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    fn generated(seed: u64) -> (Id, String) {
        let mut source = fastrand::Rng::with_seed(seed);
        let (id, key) = generate(&mut |bytes| {
            source.fill(bytes);
            Ok(())
        })
        .unwrap();
        (id, key.expose_secret().to_owned())
    }

    #[test]
    fn a_published_key_has_its_published_parts() {
        // Computed outside this crate, with zlib's CRC-32.
        let key = "mg_live_7Kq3ZrT0aB_0123456789abcdefghijABCDEFGHIJ010VSnmY";
        assert_eq!(parse(key), Some(*b"7Kq3ZrT0aB"));
    }

    #[test]
    fn every_slip_of_a_character_is_noticed() {
        for seed in 0..50 {
            let (_, key) = generated(seed);
            for at in 0..KEY_LEN {
                for letter in BASE62.iter().chain(b"_-. \0") {
                    let mut slip = key.clone().into_bytes();
                    let was = std::mem::replace(&mut slip[at], *letter);
                    let parsed = parse(std::str::from_utf8(&slip).unwrap());
                    assert_eq!(parsed.is_some(), was == *letter, "position {at}");
                }
            }
        }
    }

    #[test]
    fn swapped_neighbours_and_lost_ends_are_noticed() {
        for seed in 0..10_000 {
            let (_, key) = generated(seed);
            for at in 1..KEY_LEN {
                assert_eq!(parse(&key[..at]), None);
                let mut swapped = key.clone().into_bytes();
                swapped.swap(at - 1, at);
                let swapped = String::from_utf8(swapped).unwrap();
                assert_eq!(parse(&swapped).is_some(), swapped == key);
            }
        }
    }

    #[test]
    fn a_source_without_randomness_makes_no_key() {
        let made = generate(&mut |_| Err(getrandom::Error::UNEXPECTED));
        assert!(matches!(made, Err(StoreError::Random(_))));
    }

    proptest! {
        #[test]
        fn every_generated_key_is_read_back(seed: u64) {
            let (id, key) = generated(seed);
            prop_assert_eq!(key.len(), 57);
            prop_assert_eq!(parse(&key), Some(id));
            prop_assert_eq!(parse_id(id_text(&id)), Some(id));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(mg_live_)?[0-9A-Za-z_é]{0,60}") {
            prop_assert_eq!(parse(&text), None);
        }
    }
}
