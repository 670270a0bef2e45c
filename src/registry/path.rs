//! Names of files inside a version, as listings, `MLmodel` files and directories give them. None of them is trusted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Folders inside folders, the file's own name included.
const MAX_DEPTH: usize = 8;

/// The longest name a common file system takes.
const MAX_SEGMENT_BYTES: usize = 255;

/// A relative name with `/` between its parts that cannot leave the folder it is put under.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct RelativePath(String);

/// Why a name is not a [`RelativePath`].
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is not a name a file of a version may have")]
pub(super) struct NotARelativePath(String);

impl RelativePath {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn segments(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Where this name is below `folder`.
    pub(super) fn below(&self, folder: &Path) -> PathBuf {
        folder.join(&self.0)
    }

    /// `name`, found in this folder.
    pub(super) fn join(&self, name: &str) -> Result<Self, NotARelativePath> {
        format!("{}/{name}", self.0).parse()
    }
}

impl FromStr for RelativePath {
    type Err = NotARelativePath;

    fn from_str(text: &str) -> Result<Self, NotARelativePath> {
        let all_plain = text.split('/').all(is_plain_segment);
        if all_plain && text.split('/').count() <= MAX_DEPTH {
            Ok(Self(text.to_owned()))
        } else {
            Err(NotARelativePath(printable(text, 80)))
        }
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whether `segment` names something in a folder, on any system and whoever decodes it once more on the way.
pub(super) fn is_plain_segment(segment: &str) -> bool {
    let is_dots = matches!(segment, "" | "." | "..");
    let has_bad = segment.contains(|c: char| c.is_control() || matches!(c, '/' | '\\' | ':' | '?' | '#'));
    !is_dots && !has_bad && !has_hidden_character(segment) && segment.len() <= MAX_SEGMENT_BYTES
}

/// Whether percent-decoding would bring out a dot, a separator, a control character or another percent sign.
fn has_hidden_character(text: &str) -> bool {
    let mut escapes = text.split('%').skip(1);
    escapes.any(|escape| {
        let byte = escape.get(..2).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        byte.is_some_and(|byte| byte.is_ascii_control() || matches!(byte, b'.' | b'/' | b'\\' | b'%' | b':'))
    })
}

/// At most `max` characters of a text from outside, fit for one line of a log or a page.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut cleaned: String = text.chars().take(max).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(max).is_some() {
        cleaned.push('…');
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use std::path::Component;

    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;

    use super::*;

    #[test]
    fn takes_the_names_models_have() {
        for name in ["MLmodel", "model.onnx", "data/part 1/é.bin", "2d8c3370-e4fc.data", ".hidden", "100%", "a..b"] {
            assert_eq!(name.parse::<RelativePath>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_names_that_lead_elsewhere() {
        let long = "x".repeat(256);
        let deep = ["d"; 9].join("/");
        let bad = [
            "",
            ".",
            "..",
            "/",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a//b",
            "a/",
            "./a",
            "a\\b",
            "..\\x",
            "C:\\x",
            "C:x",
            "a\0b",
            "a\nb",
            "%2e%2e/x",
            "%2E%2E%2Fx",
            "a%2fb",
            "a%5cb",
            "%252e%252e",
            "a%00",
            "file:x",
            "a?b",
            "a#b",
            &long,
            &deep,
        ];
        for name in bad {
            assert!(name.parse::<RelativePath>().is_err(), "{name:?}");
        }
    }

    /// Every spelling of `..` and `/` that some server or library has taken for one, at every depth.
    fn traversals() -> Vec<String> {
        let dots = ["..", "%2e%2e", "%2E.", ".%2e", "%252e%252e", "%c0%ae%c0%ae/..", "..;/..", "....//..", "..%00"];
        let slashes = ["/", "\\", "//", "%2f", "%5c", "%252f", "\\/", "/./"];
        let (heads, tails) =
            (["", "/", "\\", "a/", "C:", "file:"], ["etc/passwd", "windows\\win.ini", "x%00.onnx", "x"]);
        let mut all = Vec::new();
        for (dots, slash) in dots.iter().flat_map(|dots| slashes.map(|slash| (dots, slash))) {
            for (depth, head, tail) in (1..9)
                .flat_map(|depth| heads.map(|head| (depth, head)))
                .flat_map(|(depth, head)| tails.map(|tail| (depth, head, tail)))
            {
                all.push(format!("{head}{}{tail}", format!("{dots}{slash}").repeat(depth)));
            }
        }
        all
    }

    #[test]
    fn no_traversal_in_any_spelling_is_a_name() {
        let all = traversals();
        assert!(all.len() > 10_000);
        for name in all {
            assert!(name.parse::<RelativePath>().is_err(), "{name:?}");
        }
    }

    /// A name in the alphabet of those who wish to leave a folder.
    const HOSTILE_NAME: &str = r"([./\\%a-f0-9: ]|\.\.|%2[eEfF]|\PC){0,24}";

    fn check_stays_below(name: &str) -> Result<(), TestCaseError> {
        let Ok(path) = name.parse::<RelativePath>() else { return Ok(()) };
        let joined = path.below(Path::new("/cache"));
        let below = joined.strip_prefix("/cache").unwrap();
        prop_assert!(below.components().all(|part| matches!(part, Component::Normal(_))));
        prop_assert_eq!(below.components().count(), path.segments().count());
        Ok(())
    }

    #[test]
    #[ignore = "nightly: a million hostile names, half a minute"]
    fn a_million_names_stay_below_their_folder() {
        let config = ProptestConfig { cases: 1_000_000, failure_persistence: None, ..ProptestConfig::default() };
        TestRunner::new(config).run(&HOSTILE_NAME, |name| check_stays_below(&name)).unwrap();
    }

    proptest! {
        #[test]
        fn whatever_is_taken_stays_below_its_folder(name in HOSTILE_NAME) {
            check_stays_below(&name)?;
        }

        #[test]
        fn what_is_printed_is_one_bounded_line(text in any::<String>()) {
            let printed = printable(&text, 20);
            prop_assert!(printed.chars().count() <= 21 && !printed.chars().any(char::is_control));
        }
    }
}
