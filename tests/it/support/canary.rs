//! The search for keys where none may be: in any bytes, as they are and as encoders write them.
//!
//! Two ways: a known secret by a piece of its end, and any key of ours by its form, which its checksum proves. The first
//! finds the half of a key, the second finds keys that nobody remembers.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use modelgate::auth::well_formed_id;
use modelgate::telemetry::{self, LogFormat};

/// The folder in which a run of the whole suite is watched, if this is one.
pub(crate) const WATCH: &str = "MODELGATE_TEST_CANARY";

/// How much of a secret's end is looked for, in bytes of any form: less would be found by chance.
const PIECE: usize = 16;

const PREFIX: &[u8] = b"mg_live_";
const KEY_LEN: usize = 57;

#[expect(clippy::disallowed_methods, reason = "a watched run says so to its tests by the environment")]
fn watched() -> Option<PathBuf> {
    std::env::var_os(WATCH).map(PathBuf::from)
}

/// How much a gateway in a process of its own logs.
pub(crate) fn log_level() -> &'static str {
    if watched().is_some() { "trace" } else { "info" }
}

/// Notes a secret that callers will send, and has the gateways of this process log all they can; in a watched run.
pub(crate) fn note(secret: &str) {
    static LOG: Once = Once::new();
    let Some(folder) = watched() else { return };
    LOG.call_once(|| {
        let config = telemetry::Config { format: LogFormat::Text, filter: "trace".to_owned(), otlp: None };
        drop(telemetry::init(&config).unwrap());
    });
    append(&folder.join("secrets"), secret);
}

/// Keeps a line that a gateway in a process of its own logged; in a watched run.
pub(crate) fn keep(process: u32, line: &str) {
    if let Some(folder) = watched() {
        append(&folder.join(format!("gateway-{process}.log")), line);
    }
}

fn append(file: &Path, line: &str) {
    let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
    // In one piece, so that the lines of threads do not mix.
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// Secrets, ready to be searched for.
pub(crate) struct Search {
    /// Known secrets, each by the beginning of every form of its end.
    pieces: HashSet<[u8; PIECE]>,
    /// How any key of ours begins, and how the rest of it is read then.
    beginnings: Vec<(Vec<u8>, Writing)>,
    /// Whether anything of the above begins with these two bytes: most do not, and are passed over.
    pairs: Vec<bool>,
}

/// How a text is written.
#[derive(Clone, Copy)]
enum Writing {
    Plain,
    /// Two hexadecimal digits a byte, after a mark.
    Digits(&'static str),
    /// The group of four letters that the text begins in is so many letters back.
    Base64(usize),
}

impl Search {
    /// For these secrets, and for every key of ours.
    pub(crate) fn new<'s>(secrets: impl IntoIterator<Item = &'s str>) -> Self {
        let pieces = secrets.into_iter().flat_map(forms).map(|form| *form.first_chunk().expect("forms are longer"));
        let (pieces, beginnings): (HashSet<[u8; PIECE]>, _) = (pieces.collect(), beginnings());
        let mut pairs = vec![false; 1 << 16];
        let first = pieces.iter().map(|piece| &piece[..2]).chain(beginnings.iter().map(|(text, _)| &text[..2]));
        first.for_each(|two| pairs[pair(two)] = true);
        Self { pieces, beginnings, pairs }
    }

    /// What is found in `bytes`, with the secret itself left out.
    pub(crate) fn find(&self, bytes: &[u8]) -> Option<String> {
        let candidates = bytes.windows(2).enumerate().filter(|(_, two)| self.pairs[pair(two)]);
        candidates.map(|(at, _)| at).find_map(|at| self.find_at(bytes, at))
    }

    fn find_at(&self, bytes: &[u8], at: usize) -> Option<String> {
        let rest = &bytes[at..];
        if rest.first_chunk().is_some_and(|piece| self.pieces.contains(piece)) {
            return Some(format!("a piece of a known key at byte {at}"));
        }
        let (_, writing) = self.beginnings.iter().find(|(text, _)| rest.starts_with(text))?;
        let text = match writing {
            Writing::Plain => rest[..rest.len().min(KEY_LEN)].to_vec(),
            Writing::Digits(mark) => unhex(rest, mark),
            Writing::Base64(back) => unbase64(&bytes[at.checked_sub(*back)?..]),
        };
        key_in(&text).map(|id| format!("the whole of the key {id} at byte {at}"))
    }

    /// What is found in the files below `folder`, with the files.
    pub(crate) fn find_below(&self, folder: &Path) -> Vec<String> {
        // What is gone before it was looked at was a test's own, and is over.
        let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
        let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
        let found = paths.flat_map(|path| {
            if path.is_dir() {
                return self.find_below(&path);
            }
            let found = fs::read(&path).ok().and_then(|bytes| self.find(&bytes));
            found.map(|found| format!("{}: {found}", path.display())).into_iter().collect()
        });
        found.collect()
    }
}

fn pair(two: &[u8]) -> usize {
    usize::from(two[0]) << 8 | usize::from(two[1])
}

/// How a key of ours begins in each writing.
fn beginnings() -> Vec<(Vec<u8>, Writing)> {
    let hex = hex(PREFIX);
    let escaped = PREFIX.iter().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
    let digits = [(hex.to_uppercase(), ""), (hex, ""), (escaped.to_uppercase(), "%"), (escaped, "%")];
    let digits = digits.into_iter().map(|(text, mark)| (text.into_bytes(), Writing::Digits(mark)));
    // Base64 goes by three: what stands before the key may share a group with its first letters.
    let encoded = (0..3).map(|skip| {
        let back = if skip == 0 { 0 } else { 4 };
        (base64(&PREFIX[skip..skip + 6]).into_bytes(), Writing::Base64(back))
    });
    digits.chain(encoded).chain([(PREFIX.to_vec(), Writing::Plain)]).collect()
}

/// The end of `secret` as it is, and as encoders write it. Each is at least [`PIECE`] long.
fn forms(secret: &str) -> Vec<Vec<u8>> {
    let secret = &secret.as_bytes()[secret.len() - 20..];
    let hex = hex(secret);
    // Base64 depends on where the text begins, by three.
    let encoded = (0..3).map(|skip| base64(&secret[skip..skip + 15]).into_bytes());
    let url = secret.iter().map(|byte| format!("%{byte:02x}")).collect::<Vec<_>>().concat();
    let texts = [hex.to_uppercase(), hex, url.to_uppercase(), url, format!("{secret:?}")[1..].to_owned()];
    encoded.chain(texts.map(String::into_bytes)).chain([secret.to_vec()]).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        write!(hex, "{byte:02x}").unwrap();
        hex
    })
}

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

pub(crate) fn base64(bytes: &[u8]) -> String {
    let bits = |chunk: &[u8]| chunk.iter().fold(0_usize, |bits, byte| bits << 8 | usize::from(*byte));
    let letters = bytes.chunks_exact(3).flat_map(|chunk| [18, 12, 6, 0].map(|shift| bits(chunk) >> shift & 63));
    letters.map(|index| char::from(BASE64[index])).collect()
}

/// The id of the key of ours that `text` holds near its beginning.
fn key_in(text: &[u8]) -> Option<String> {
    (0..3).filter_map(|from| str::from_utf8(text.get(from..from + KEY_LEN)?).ok()).find_map(|text| {
        let id = well_formed_id(text)?;
        Some(id.to_string())
    })
}

/// The bytes that the hexadecimal digits at the beginning of `text` stand for, each after `mark`.
fn unhex(text: &[u8], mark: &str) -> Vec<u8> {
    let byte = |piece: &[u8]| {
        let digits = str::from_utf8(piece.strip_prefix(mark.as_bytes())?).ok()?;
        u8::from_str_radix(digits, 16).ok()
    };
    text.chunks(2 + mark.len()).take(KEY_LEN).map_while(byte).collect()
}

/// The bytes that the base64 at the beginning of `text` stands for.
fn unbase64(text: &[u8]) -> Vec<u8> {
    let six = |letter: &u8| BASE64.iter().position(|known| known == letter);
    let letters: Vec<usize> = text.iter().take(4 * (KEY_LEN.div_ceil(3) + 1)).map_while(six).collect();
    let bytes = letters.chunks_exact(4).flat_map(|four| {
        let bits = four.iter().fold(0, |bits, six| bits << 6 | six);
        [16, 8, 0].map(|shift| u8::try_from(bits >> shift & 255).expect("eight bits"))
    });
    bytes.collect()
}
