//! The `MLmodel` file: which flavour, which file, which signature.

use std::path::Path;

use super::RegistryError;
use crate::model::signature::Signature;

/// What the gateway needs to know from an `MLmodel` file.
#[derive(Clone, Debug)]
pub struct MlModel {
    /// The ONNX file's name in the version's folder.
    pub onnx: String,
    /// The input signature, where one was logged.
    pub signature: Option<Signature>,
    /// The input example's file name, where one was logged (`serving_input_example.json`).
    pub input_example: Option<String>,
}

impl MlModel {
    /// Reads `<folder>/MLmodel`.
    ///
    /// # Errors
    /// When it is not there, not readable, or not an ONNX model; the message says what to do then.
    pub fn read(folder: &Path) -> Result<Self, RegistryError> {
        todo!()
    }
}
