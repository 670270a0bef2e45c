//! ONNX Runtime: found, checked, and put to the test before anything is served with it.

use std::path::{Path, PathBuf};

/// The library, loaded once per process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Runtime {
    environment: ort::environment::Environment,
    version: std::sync::Arc<str>,
}

/// Why there is no usable library.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// Nowhere to be found.
    #[error("ONNX Runtime not found")]
    NotFound {
        /// Where it was looked for.
        tried: Vec<PathBuf>,
    },
}

impl Runtime {
    /// Loads the library from `configured`, else from where it is usually put, and runs the self-test.
    ///
    /// # Errors
    /// When there is none, it is a version known to answer wrongly, or the self-test's answers are wrong.
    pub fn load(configured: Option<&Path>) -> Result<Self, RuntimeError> {
        todo!()
    }

    /// The library's version, as it says itself.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }
}
