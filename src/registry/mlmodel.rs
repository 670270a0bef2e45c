//! The `MLmodel` file: which flavour, which file, which signature.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::RegistryError;
use super::path::{RelativePath, printable};
use crate::model::signature::Signature;

/// The file's name in a version's folder.
pub(super) const FILE: &str = "MLmodel";

/// Real ones are about 1 KB; one with a thousand columns is 100 KB.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// The request MLflow stores beside a model that was logged with an input example.
const SERVING_EXAMPLE: &str = "serving_input_example.json";

/// Examples of 59 MB have been seen; one that warms up a model is a few rows.
const MAX_EXAMPLE_BYTES: u64 = 16 << 20;

/// What the gateway needs to know from an `MLmodel` file.
#[derive(Clone, Debug)]
pub struct MlModel {
    /// The ONNX file's name in the version's folder.
    pub onnx: String,
    /// The input signature, where one was logged.
    pub signature: Option<Signature>,
    /// The file that holds the input example as a request body for `/invocations`, where one was logged
    /// (`serving_input_example.json`) and is not larger than 16 MiB.
    pub input_example: Option<String>,
}

impl MlModel {
    /// Reads `<folder>/MLmodel`.
    ///
    /// # Errors
    /// When it is not there, not readable, or not an ONNX model; the message says what to do then.
    pub fn read(folder: &Path) -> Result<Self, RegistryError> {
        let document = Document::read(&folder.join(FILE))?;
        let onnx = document.onnx()?;
        if !is_plain_file_below(folder, &onnx) {
            return Err(bad(format!("MLmodel names `{onnx}`, and there is no such file beside it")));
        }
        Ok(Self {
            onnx: onnx.as_str().to_owned(),
            signature: document.signature()?,
            input_example: document.input_example().filter(|file| is_small_file(&file.below(folder))).map(String::from),
        })
    }
}

/// The signature in an `MLmodel` file, wherever it lies.
///
/// # Errors
/// When it is no such file, or has no signature.
pub fn signature_in(file: &Path) -> Result<Signature, RegistryError> {
    let signature = Document::read(file)?.signature()?;
    signature.ok_or_else(|| bad("MLmodel has no signature: log the model with one".to_owned()))
}

impl From<RelativePath> for String {
    fn from(path: RelativePath) -> Self {
        path.as_str().to_owned()
    }
}

/// An `MLmodel` file as it is written, before its files are looked at.
#[derive(Debug, Deserialize)]
pub(super) struct Document {
    #[serde(default)]
    flavors: BTreeMap<String, Value>,
    signature: Option<SignatureTexts>,
    saved_input_example_info: Option<ExampleInfo>,
    model_size_bytes: Option<u64>,
}

/// JSON texts inside the YAML.
#[derive(Debug, Deserialize)]
struct SignatureTexts {
    inputs: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ExampleInfo {
    artifact_path: Option<String>,
    serving_input_path: Option<String>,
}

impl Document {
    pub(super) fn read(file: &Path) -> Result<Self, RegistryError> {
        let file =
            File::open(file).map_err(|_| bad("there is no MLmodel file: register a model, not a folder".to_owned()))?;
        let mut text = String::new();
        let read = file.take(MAX_BYTES + 1).read_to_string(&mut text);
        read.map_err(|error| bad(format!("MLmodel is not readable: {error}")))?;
        if text.len() as u64 > MAX_BYTES {
            return Err(bad(format!("MLmodel is larger than {MAX_BYTES} bytes")));
        }
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, RegistryError> {
        let options = serde_saphyr::options! {
            budget: serde_saphyr::budget! { max_depth: 32, max_nodes: 20_000, max_aliases: 0, max_anchors: 0, max_documents: 1 },
            with_snippet: false,
        };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            bad(format!("MLmodel is not the YAML that MLflow writes: {}", printable(&error.to_string(), 200)))
        })
    }

    /// The name of the ONNX file.
    pub(super) fn onnx(&self) -> Result<RelativePath, RegistryError> {
        let Some(onnx) = self.flavors.get("onnx") else {
            return Err(bad(self.cure_for_other_flavors()));
        };
        let data = onnx.get("data").and_then(Value::as_str).unwrap_or("model.onnx");
        data.parse().map_err(|_| bad(format!("MLmodel names `{}`, which is no file name", printable(data, 80))))
    }

    fn signature(&self) -> Result<Option<Signature>, RegistryError> {
        let inputs = self.signature.as_ref().and_then(|signature| signature.inputs.as_deref());
        inputs.map(Signature::parse).transpose().map_err(|error| bad(error.to_string()))
    }

    fn input_example(&self) -> Option<RelativePath> {
        let named = self.saved_input_example_info.as_ref().and_then(|info| info.serving_input_path.as_deref());
        named.unwrap_or(SERVING_EXAMPLE).parse().ok()
    }

    /// The files this document names, itself left out. A name that no file may have is left out, too.
    pub(super) fn named_files(&self) -> Result<Vec<RelativePath>, RegistryError> {
        let mut files = vec![self.onnx()?];
        if let Some(info) = &self.saved_input_example_info {
            let names = [&info.artifact_path, &info.serving_input_path].into_iter().flatten();
            files.extend(names.filter_map(|name| name.parse().ok()));
        }
        files.sort_unstable();
        files.dedup();
        Ok(files)
    }

    /// Whether `files`, with their sizes, are at least as large as the model was when it was logged. Files may be added
    /// to a version later; a version with fewer bytes has lost some, or its upload goes on.
    pub(super) fn is_covered_by<'a>(&self, files: impl Iterator<Item = (&'a str, u64)>) -> bool {
        // MLflow measures the model before it writes these.
        let measured = files
            .filter(|(name, _)| !matches!(*name, "MLmodel" | "conda.yaml" | "python_env.yaml" | "requirements.txt"));
        let there: u64 = measured.fold(0, |sum, (_, size)| sum.saturating_add(size));
        self.model_size_bytes.is_none_or(|logged| there >= logged)
    }

    /// What this is, as it cannot be served, and how to make of it what can.
    fn cure_for_other_flavors(&self) -> String {
        let known = ["sklearn", "xgboost", "lightgbm"].into_iter().find(|flavor| self.flavors.contains_key(*flavor));
        let (what, export) = match known {
            Some("sklearn") => (self.describe("sklearn", "pickled_model"), "skl2onnx.to_onnx(model, X[:1])"),
            Some("xgboost") => {
                (self.describe("xgboost", "data"), "onnxmltools.convert_xgboost(model, initial_types=…)")
            }
            Some(lightgbm) => (self.describe(lightgbm, "data"), "onnxmltools.convert_lightgbm(model, initial_types=…)"),
            None => (self.describe_unknown(), "skl2onnx, onnxmltools or torch.onnx"),
        };
        format!(
            "{what}, and only ONNX is served; no pickle is ever opened. Export it to ONNX ({export}) and log that: \
             mlflow.onnx.log_model(onnx_model, name=\"model\", signature=…, input_example=…)"
        )
    }

    fn describe(&self, flavor: &str, file_key: &str) -> String {
        match self.flavors[flavor].get(file_key).and_then(Value::as_str) {
            Some(file) => format!("this is a model of the flavor `{flavor}` ({})", printable(file, 80)),
            None => format!("this is a model of the flavor `{flavor}`"),
        }
    }

    fn describe_unknown(&self) -> String {
        let others: Vec<_> = self.flavors.keys().filter(|flavor| *flavor != "python_function").collect();
        match (others.first(), self.flavors.is_empty()) {
            (Some(flavor), _) => format!("this is a model of the flavor `{}`", printable(flavor, 40)),
            (None, false) => "this is a pyfunc model, which is Python code".to_owned(),
            (None, true) => "MLmodel names no flavor".to_owned(),
        }
    }
}

fn bad(reason: String) -> RegistryError {
    RegistryError::BadArtifacts(reason)
}

/// Whether `path` is a file in `folder`, reached through no link.
fn is_plain_file_below(folder: &Path, path: &RelativePath) -> bool {
    let mut place = folder.to_owned();
    let parts_are_real = path.segments().all(|segment| {
        place.push(segment);
        fs::symlink_metadata(&place).is_ok_and(|metadata| !metadata.is_symlink())
    });
    parts_are_real && place.is_file()
}

fn is_small_file(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MAX_EXAMPLE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IRIS: &str = "\
artifact_path: model
flavors:
  onnx:
    code: null
    data: model.onnx
    providers: [CUDAExecutionProvider, CPUExecutionProvider]
  python_function: {data: model.onnx, env: {conda: conda.yaml, virtualenv: python_env.yaml}, loader_module: mlflow.onnx}
mlflow_version: 3.17.2
model_size_bytes: 3491
run_id: bdbc96b0334b497c991c691aae9e4816
saved_input_example_info: {artifact_path: input_example.json, serving_input_path: serving_input_example.json, type: ndarray}
";

    /// A folder with an `MLmodel` of this text and empty files of these names.
    fn folder(mlmodel: &str, files: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FILE), mlmodel).unwrap();
        for name in files {
            let place = folder.path().join(name);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, "").unwrap();
        }
        folder
    }

    #[track_caller]
    fn check_refused(mlmodel: &str, files: &[&str], says: &[&str]) {
        let error = MlModel::read(folder(mlmodel, files).path()).unwrap_err();
        assert!(matches!(error, RegistryError::BadArtifacts(_)), "{error:?}");
        for part in says {
            assert!(error.to_string().contains(part), "`{error}` does not say `{part}`");
        }
    }

    #[test]
    fn reads_what_mlflow_writes() {
        let here = folder(IRIS, &["model.onnx", "input_example.json", "serving_input_example.json"]);
        let read = MlModel::read(here.path()).unwrap();
        assert_eq!(read.onnx, "model.onnx");
        assert_eq!(read.signature, None);
        assert_eq!(read.input_example.as_deref(), Some("serving_input_example.json"));
        let named = Document::parse(IRIS).unwrap().named_files().unwrap();
        let named: Vec<_> = named.iter().map(RelativePath::as_str).collect();
        assert_eq!(named, ["input_example.json", "model.onnx", "serving_input_example.json"]);
    }

    #[test]
    fn an_example_that_is_not_there_or_too_large_is_no_example() {
        let here = folder(IRIS, &["model.onnx"]);
        assert_eq!(MlModel::read(here.path()).unwrap().input_example, None);
        let example = File::create(here.path().join(SERVING_EXAMPLE)).unwrap();
        example.set_len(MAX_EXAMPLE_BYTES).unwrap();
        assert!(MlModel::read(here.path()).unwrap().input_example.is_some());
        example.set_len(MAX_EXAMPLE_BYTES + 1).unwrap();
        assert_eq!(MlModel::read(here.path()).unwrap().input_example, None);
    }

    #[test]
    fn other_flavors_are_named_with_their_cure() {
        let flavor = |text: &str| format!("flavors:\n  {text}\n  python_function: {{loader_module: x}}\n");
        let sklearn = flavor("sklearn: {pickled_model: model.skops, serialization_format: skops}");
        check_refused(&sklearn, &[], &["`sklearn` (model.skops)", "skl2onnx", "mlflow.onnx.log_model(onnx_model"]);
        let xgboost = flavor("xgboost: {data: model.ubj, model_class: xgboost.core.Booster}");
        check_refused(&xgboost, &[], &["`xgboost` (model.ubj)", "onnxmltools.convert_xgboost"]);
        check_refused(&flavor("lightgbm: {data: model.lgb}"), &[], &["`lightgbm`", "onnxmltools.convert_lightgbm"]);
        check_refused(&flavor("pytorch: {}"), &[], &["`pytorch`"]);
        check_refused("flavors: {python_function: {loader_module: mlflow.pyfunc.model}}", &[], &["pyfunc", "ONNX"]);
        check_refused("flavors: {}", &[], &["no flavor"]);
    }

    #[test]
    fn the_model_file_is_a_plain_one_in_the_folder() {
        let data = |name: &str| format!("flavors:\n  onnx: {{data: '{name}'}}\n");
        check_refused(&data("model.onnx"), &[], &["`model.onnx`", "no such file"]);
        for name in ["../model.onnx", "/etc/passwd", "a\\b", "", "%2e%2e/x"] {
            check_refused(&data(name), &["model.onnx"], &["no file name"]);
        }
        check_refused(&data("folder"), &["folder/model.onnx"], &["no such file"]);
        let here = folder(&data("folder/model.onnx"), &["folder/model.onnx"]);
        assert_eq!(MlModel::read(here.path()).unwrap().onnx, "folder/model.onnx");
    }

    #[test]
    #[cfg(unix)]
    fn a_link_is_no_model_file() {
        let here = folder("flavors: {onnx: {data: model.onnx}}", &[]);
        std::os::unix::fs::symlink("/etc/hostname", here.path().join("model.onnx")).unwrap();
        assert!(MlModel::read(here.path()).is_err());
    }

    #[test]
    fn hostile_documents_are_refused_in_bounds() {
        let bomb = "a: &a [x, x]\nb: &b [*a, *a]\nflavors: {onnx: {data: *b}}";
        check_refused(bomb, &[], &["not the YAML"]);
        check_refused(&format!("flavors: {}", "[".repeat(100_000)), &[], &["not the YAML"]);
        check_refused(&"- x\n".repeat(100_000), &[], &["not the YAML"]);
        check_refused(&" ".repeat((1 << 20) + 1), &[], &["larger than"]);
        check_refused("flavors: 5", &[], &["not the YAML"]);
        check_refused("<html></html>", &[], &["not the YAML"]);
        let empty = tempfile::tempdir().unwrap();
        assert!(MlModel::read(empty.path()).unwrap_err().to_string().contains("there is no MLmodel file"));
    }

    #[test]
    fn fewer_bytes_than_were_logged_are_noticed_and_more_are_not() {
        let covered = |files: &[(&str, u64)]| Document::parse(IRIS).unwrap().is_covered_by(files.iter().copied());
        assert!(covered(&[("MLmodel", 1203), ("model.onnx", 3091), ("input_example.json", 400)]));
        assert!(!covered(&[("MLmodel", 1203), ("model.onnx", 3090), ("input_example.json", 400)]));
        assert!(covered(&[("model.onnx", 3491), ("baseline.json", 10)]));
        assert!(!covered(&[("conda.yaml", 9999)]));
        assert!(covered(&[("model.onnx", u64::MAX), ("x", u64::MAX)]));
    }
}
