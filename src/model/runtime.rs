//! ONNX Runtime: found, checked, and put to the test before anything is served with it.
//!
//! The library decides answers, so a wrong one must never serve: releases known to answer wrongly are refused by
//! version, and every other has to give the known answers of two small models first.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use ort::value::Tensor;
use parking_lot::Mutex;

/// The library's file name on this platform.
const LIBRARY: &str = if cfg!(target_os = "macos") { "libonnxruntime.dylib" } else { "libonnxruntime.so" };

/// The oldest library with the interface this build asks for.
const OLDEST: (u32, u32) = (1, 24);

/// The first release whose official build reports usage to its maker unless told not to before it is loaded.
const FIRST_WITH_TELEMETRY: (u32, u32) = (1, 29);

/// Set before the library is loaded, it keeps every release from reporting usage.
pub const TELEMETRY_OFF: (&str, &str) = ("ORT_DISABLE_TELEMETRY", "1");

/// The library, loaded once per process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: Environment,
    version: Arc<str>,
}

/// Why there is no usable library. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nowhere to be found.
    #[error(
        "ONNX Runtime not found; run scripts/fetch-onnxruntime.sh, or set `onnxruntime = \"/path/to/{LIBRARY}\"` in the \
         configuration, or ORT_DYLIB_PATH. Looked at {}",
        list(tried)
    )]
    NotFound {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
    /// There is a file, and it does not load.
    #[error(
        "ONNX Runtime does not load: {reason}; fetch the right library with scripts/fetch-onnxruntime.sh, or point \
         `onnxruntime` in the configuration, or ORT_DYLIB_PATH, at one"
    )]
    Unloadable {
        /// What the system's loader says.
        reason: String,
    },
    /// Older than what this build can talk to.
    #[error("ONNX Runtime {version} is too old: 1.24 is the oldest that works; run scripts/fetch-onnxruntime.sh")]
    TooOld {
        /// The library's version.
        version: String,
    },
    /// A release known to answer wrongly.
    #[error(
        "ONNX Runtime {version} answers wrongly for binary random forests (microsoft/onnxruntime#28557); use 1.28: run \
         scripts/fetch-onnxruntime.sh"
    )]
    KnownWrong {
        /// The library's version.
        version: String,
    },
    /// A release that reports usage to its maker, and has not been told not to.
    #[error("ONNX Runtime {version} reports usage to its maker: set {}={} before the start", TELEMETRY_OFF.0, TELEMETRY_OFF.1)]
    TelemetryOn {
        /// The library's version.
        version: String,
    },
    /// The self-test's answers are wrong.
    #[error(
        "ONNX Runtime {version} fails the self-test `{test}`: {found}; it would answer wrongly. Use 1.28: run \
         scripts/fetch-onnxruntime.sh"
    )]
    WrongAnswers {
        /// The library's version.
        version: String,
        /// Which of the models.
        test: &'static str,
        /// What it answered.
        found: String,
    },
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// ONNX Runtime allows one environment per process, so there is one per process here too. The first library that loads
/// stays; tests load from many threads.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// Loads the library from `configured`, else from where it is usually put, and runs the self-test. Once one is
    /// loaded, later calls return it, whatever they ask for.
    ///
    /// # Errors
    /// When there is none, it is a version known to answer wrongly, or the self-test's answers are wrong.
    pub fn load(configured: Option<&Path>) -> Result<Self, RuntimeError> {
        let mut loaded = LOADED.lock();
        if let Some(runtime) = &*loaded {
            return Ok(runtime.clone());
        }
        let runtime = Self::open_first(configured)?;
        runtime.self_test()?;
        Ok(loaded.insert(runtime).clone())
    }

    fn open_first(configured: Option<&Path>) -> Result<Self, RuntimeError> {
        let tried = candidates(configured);
        if let Some(found) = tried.iter().find(|path| path.is_file()) {
            // Made absolute, because `ort` takes a relative path as relative to the executable.
            return Self::open(&std::path::absolute(found).unwrap_or_else(|_| found.clone()));
        }
        if configured.is_some() {
            return Err(RuntimeError::NotFound { tried });
        }
        // The plain name: whatever the system's loader finds under it.
        Self::open(Path::new(LIBRARY)).map_err(|error| match error {
            RuntimeError::Unloadable { .. } => RuntimeError::NotFound { tried },
            other => other,
        })
    }

    fn open(library: &Path) -> Result<Self, RuntimeError> {
        let (builder, version) = loader_log::version_of(|| ort::init_from(library));
        let builder = builder.map_err(|error| match error {
            ort::LoadDynamicError::BadVersion { version_str: version, .. } => RuntimeError::TooOld { version },
            other => unloadable(other),
        })?;
        let version = version.ok_or_else(|| unloadable("it does not say its version"))?;
        judge(&version, telemetry_is_off())?;
        let environment = builder.with_name("modelgate").with_telemetry(false).build().map_err(unloadable)?;
        Ok(Self { environment, version: version.into() })
    }

    /// The library's version, as it says itself.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// A session over a model's bytes, which runs on the thread that calls it.
    ///
    /// Logs errors only: some exporters declare a shape they do not keep, which is a warning with every run.
    pub(super) fn session(&self, onnx: &[u8]) -> ort::Result<Session> {
        Session::builder(&self.environment)?
            .with_log_level(LogLevel::Error)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .commit_from_memory(onnx)
    }

    fn self_test(&self) -> Result<(), RuntimeError> {
        for test in SELF_TESTS {
            match self.positives(test) {
                Ok(found) if test.is_answered_by(&found) => (),
                Ok(found) => return Err(self.wrong(test, format!("it answers {found:?}"))),
                Err(error) => return Err(self.wrong(test, error.to_string())),
            }
        }
        Ok(())
    }

    fn wrong(&self, test: &SelfTest, found: String) -> RuntimeError {
        RuntimeError::WrongAnswers { version: self.version.to_string(), test: test.name, found }
    }

    /// Label and probability of the positive class per row.
    fn positives(&self, test: &SelfTest) -> ort::Result<Vec<(i64, f32)>> {
        let mut session = self.session(test.onnx)?;
        let outputs = (test.run)(&mut session)?;
        let (_, labels) = outputs[0].try_extract_tensor::<i64>()?;
        let (_, probabilities) = outputs[1].try_extract_tensor::<f32>()?;
        let (pairs, _) = probabilities.as_chunks::<2>();
        Ok(labels.iter().zip(pairs).map(|(label, pair)| (*label, pair[1])).collect())
    }
}

/// A model and what it must answer: `(label, probability of the positive class)` per row, from scikit-learn, by
/// `scripts/make-models.py`.
struct SelfTest {
    name: &'static str,
    onnx: &'static [u8],
    run: fn(&mut Session) -> ort::Result<ort::session::SessionOutputs<'_>>,
    answers: [(i64, f32); 3],
}

const SELF_TESTS: &[SelfTest] = &[
    SelfTest {
        name: "binary forest",
        onnx: include_bytes!("self-test/forest.onnx"),
        run: |session| {
            let rows = vec![1.5_f32, 1.0, 0.0, 0.0, -1.5, -1.0, 0.5, 0.5, 0.25, -0.25, 1.0, -1.0];
            session.run(ort::inputs![Tensor::from_array(([3, 4], rows))?])
        },
        answers: [(1, 0.990_000), (0, 0.011_627_9), (1, 0.631_048_86)],
    },
    SelfTest {
        name: "texts",
        onnx: include_bytes!("self-test/texts.onnx"),
        run: |session| {
            let amounts = Tensor::from_array(([3, 1], vec![0.5_f32; 3]))?;
            let grades = Tensor::from_string_array(([3, 1], ["high", "low", "unheard-of"].as_slice()))?;
            session.run(ort::inputs![amounts, grades])
        },
        answers: [(1, 0.995_420_93), (0, 0.179_481_39), (1, 0.876_941_14)],
    },
];

impl SelfTest {
    fn is_answered_by(&self, found: &[(i64, f32)]) -> bool {
        found.len() == self.answers.len()
            && self.answers.iter().zip(found).all(|(want, found)| want.0 == found.0 && (want.1 - found.1).abs() < 1e-5)
    }
}

/// Where a library may be: where it is configured to be, or where it is usually put.
fn candidates(configured: Option<&Path>) -> Vec<PathBuf> {
    if let Some(path) = configured {
        return vec![path.to_path_buf()];
    }
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_path_buf));
    // Unpacked or installed: beside the binary, in its lib/ or in ../lib. Run by cargo: from target/release or
    // target/release/deps.
    let near =
        beside.iter().flat_map(|dir| ["", "lib", "../lib", "../../lib", "../../../lib"].map(|lib| dir.join(lib)));
    near.chain([PathBuf::from("lib")]).map(|dir| dir.join(LIBRARY)).collect()
}

fn unloadable(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::Unloadable { reason: error.to_string() }
}

/// Whether a release may serve, by its version alone.
fn judge(version: &str, telemetry_is_off: bool) -> Result<(), RuntimeError> {
    let owned = version.to_owned();
    let mut numbers = version.split('.').map(str::parse::<u32>);
    let (Some(Ok(major)), Some(Ok(minor))) = (numbers.next(), numbers.next()) else {
        return Err(RuntimeError::Unloadable { reason: format!("`{version}` is not a version") });
    };
    match (major, minor) {
        number if number < OLDEST => Err(RuntimeError::TooOld { version: owned }),
        (1, 26 | 27) => Err(RuntimeError::KnownWrong { version: owned }),
        number if number >= FIRST_WITH_TELEMETRY && !telemetry_is_off => {
            Err(RuntimeError::TelemetryOn { version: owned })
        }
        _ => Ok(()),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the library reads this variable of the process, not our configuration; only what it will see counts"
)]
fn telemetry_is_off() -> bool {
    std::env::var_os(TELEMETRY_OFF.0).is_some_and(|value| value == TELEMETRY_OFF.1)
}

/// The version of the library, overheard from what `ort` logs while loading it: there is no other safe way to ask.
mod loader_log {
    use std::fmt::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing::field::{Field, Visit};
    use tracing::subscriber::{Interest, with_default};
    use tracing::{Event, Metadata, Subscriber, span};

    /// Runs `load` and returns what it returns, and the version its log named.
    pub(super) fn version_of<T>(load: impl FnOnce() -> T) -> (T, Option<String>) {
        let version = Arc::new(Mutex::new(None));
        let loaded = with_default(Listener(Arc::clone(&version)), load);
        let version = version.lock().take();
        (loaded, version)
    }

    struct Listener(Arc<Mutex<Option<String>>>);

    impl Subscriber for Listener {
        fn register_callsite(&self, _: &'static Metadata<'static>) -> Interest {
            // Never `always` or `never`: this subscriber leaves again, and must leave no mark on the others.
            Interest::sometimes()
        }

        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.is_event() && metadata.target().starts_with("ort")
        }

        fn event(&self, event: &Event<'_>) {
            let mut text = Text::default();
            event.record(&mut text);
            if let Some(found) = version_in(&text.0) {
                *self.0.lock() = Some(found.to_owned());
            }
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
        fn enter(&self, _: &span::Id) {}
        fn exit(&self, _: &span::Id) {}
    }

    /// `1.28.0` in `Loaded ONNX Runtime dylib from "…"; version '1.28.0'`.
    fn version_in(message: &str) -> Option<&str> {
        let rest = message.strip_prefix("Loaded ONNX Runtime")?;
        let (_, version) = rest.rsplit_once("version '")?;
        version.strip_suffix('\'')
    }

    #[derive(Default)]
    struct Text(String);

    impl Visit for Text {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            if field.name() == "message" {
                write!(self.0, "{value:?}").expect("writing to a string cannot fail");
            }
        }
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn the_version_is_read_from_the_loaders_log() {
            let line = "Loaded ONNX Runtime dylib from \"/opt/version '9'/lib.so\"; version '1.28.0'";
            assert_eq!(super::version_in(line), Some("1.28.0"));
            assert_eq!(super::version_in("something else; version '1.28.0'"), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check_judged(version: &str, telemetry_is_off: bool, refused: Option<&str>) {
        let found = judge(version, telemetry_is_off).err().map(|error| error.to_string());
        assert_eq!(found.is_some(), refused.is_some(), "{version}: {found:?}");
        assert!(found.unwrap_or_default().contains(refused.unwrap_or_default()));
    }

    #[test]
    fn releases_are_judged_by_version() {
        check_judged("1.23.2", true, Some("too old"));
        check_judged("1.24.4", false, None);
        check_judged("1.26.0", true, Some("answers wrongly"));
        check_judged("1.27.1", true, Some("answers wrongly"));
        check_judged("1.28.0", false, None);
        check_judged("1.31.1", false, Some("ORT_DISABLE_TELEMETRY=1"));
        check_judged("1.31.1", true, None);
        check_judged("2.0.0", true, None);
        check_judged("nightly", true, Some("not a version"));
    }

    #[test]
    fn the_library_loads_and_says_its_version() {
        let runtime = Runtime::load(None).unwrap();
        assert!(runtime.version().starts_with("1."), "{}", runtime.version());
    }

    #[test]
    fn the_self_test_notices_a_wrong_answer() {
        let runtime = Runtime::load(None).unwrap();
        let found = runtime.positives(&SELF_TESTS[0]).unwrap();
        assert!(SELF_TESTS[0].is_answered_by(&found));
        let mut wrong = found.clone();
        wrong[0].1 = -0.2566;
        assert!(!SELF_TESTS[0].is_answered_by(&wrong));
        wrong = found;
        wrong[2].0 = 0;
        assert!(!SELF_TESTS[0].is_answered_by(&wrong));
    }

    #[test]
    fn a_configured_library_that_is_not_there_is_named() {
        let tried = candidates(Some(Path::new("/nowhere/libonnxruntime.so")));
        assert_eq!(tried, [PathBuf::from("/nowhere/libonnxruntime.so")]);
        let text = RuntimeError::NotFound { tried }.to_string();
        assert!(text.contains("/nowhere/libonnxruntime.so") && text.contains("fetch-onnxruntime.sh"), "{text}");
    }
}
