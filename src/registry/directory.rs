//! A registry that is a directory, for the demo and for those who ship models as files.
//!
//! `<root>/<registered model>/<version>/MLmodel`, and aliases in `<root>/<registered model>/aliases.toml`:
//! `champion = 2`. A version's folder is not expected to change: new files are a new version.

use std::collections::BTreeMap;
use std::fs::{self, DirEntry};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::AsyncReadExt;
use url::Url;

use super::cache::Cache;
use super::cache::staging::{MAX_FILES, Staging};
use super::path::{RelativePath, is_plain_segment, printable};
use super::{Fetched, Found, RegistryError, Select, mlmodel};
use crate::model::Version;

/// The largest version that is copied: what one ONNX file can hold, and as much again.
const MAX_VERSION_BYTES: u64 = 4 << 30;

/// A directory with a folder per registered model.
#[derive(Clone, Debug)]
pub struct Directory {
    root: Arc<Path>,
}

impl Directory {
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root: root.into() }
    }

    pub(super) fn resolve(&self, registered_model: &str, select: &Select) -> Result<Found, RegistryError> {
        let (version, alias) = match select {
            Select::Alias(alias) => (self.aliased(registered_model, alias)?, Some(alias.as_str().into())),
            Select::Latest => (self.latest(registered_model)?, None),
            Select::Version(version) => (*version, None),
            Select::Stage(stage) => {
                return Err(RegistryError::Refused(format!(
                    "a directory has no stages: select an alias, and write `{} = <version>` into aliases.toml",
                    printable(stage, 40).to_lowercase()
                )));
            }
        };
        let folder = self.folder(registered_model, version)?;
        if !folder.join(mlmodel::FILE).is_file() {
            return Err(RegistryError::NotFound(format!("there is no MLmodel file in {}", folder.display())));
        }
        Ok(Found {
            registered_model: registered_model.to_owned(),
            version,
            alias,
            source: source_of(&folder)?,
            created: 0,
            tags: BTreeMap::new(),
        })
    }

    pub(super) async fn fetch(&self, found: &Found, cache: &Cache) -> Result<Fetched, RegistryError> {
        let folder = self.folder(&found.registered_model, found.version)?;
        let mut staging = cache.stage(MAX_VERSION_BYTES)?;
        for (path, place) in self.list(&folder)? {
            copy(path, &place, &mut staging).await?;
        }
        staging.seal().await
    }

    fn model_folder(&self, registered_model: &str) -> Result<PathBuf, RegistryError> {
        fs::read_dir(&self.root).map_err(|error| {
            RegistryError::Unreachable(format!("the directory {} cannot be read: {error}", self.root.display()))
        })?;
        let folder = self.root.join(registered_model);
        if is_plain_segment(registered_model) && folder.is_dir() {
            Ok(folder)
        } else {
            let name = printable(registered_model, 80);
            Err(RegistryError::NotFound(format!("there is no folder `{name}` in {}", self.root.display())))
        }
    }

    fn folder(&self, registered_model: &str, version: Version) -> Result<PathBuf, RegistryError> {
        Ok(self.model_folder(registered_model)?.join(version.to_string()))
    }

    fn aliased(&self, registered_model: &str, alias: &str) -> Result<Version, RegistryError> {
        let file = self.model_folder(registered_model)?.join("aliases.toml");
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => {
                return Err(RegistryError::Unreachable(format!("{} cannot be read: {error}", file.display())));
            }
        };
        let aliases: BTreeMap<String, u64> = toml::from_str(&text).map_err(|error| {
            RegistryError::Nonsense(format!(
                "{} is not lines of `alias = version`: {}",
                file.display(),
                error.message()
            ))
        })?;
        aliases.get(alias).copied().map(Version).ok_or_else(|| {
            let alias = printable(alias, 80);
            RegistryError::NotFound(format!("{} does not say which version `{alias}` is", file.display()))
        })
    }

    fn latest(&self, registered_model: &str) -> Result<Version, RegistryError> {
        let folder = self.model_folder(registered_model)?;
        let entries: Vec<DirEntry> = fs::read_dir(&folder)?.collect::<io::Result<_>>()?;
        let versions = entries.iter().filter(|entry| entry.path().join(mlmodel::FILE).is_file()).filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            // `02` is not a version's folder: it would not be found again under its number.
            name.parse().ok().filter(|version: &Version| version.to_string() == name)
        });
        versions.max().ok_or_else(|| {
            RegistryError::NotFound(format!(
                "no folder in {} is a version number and has an MLmodel file",
                folder.display()
            ))
        })
    }

    /// The version's files: their names, and where each is when links are followed. No link may leave the registry.
    fn list(&self, version: &Path) -> Result<Vec<(RelativePath, PathBuf)>, RegistryError> {
        let root = self.root.canonicalize()?;
        let mut files = Vec::new();
        let mut folders: Vec<Option<RelativePath>> = vec![None];
        let mut seen = 0;
        while let Some(folder) = folders.pop() {
            let place = folder.as_ref().map_or_else(|| version.to_owned(), |folder| folder.below(version));
            for entry in fs::read_dir(place)? {
                seen += 1;
                if seen > MAX_FILES {
                    return Err(RegistryError::BadArtifacts(format!("there are more than {MAX_FILES} of them")));
                }
                let (path, place) = look_at(&entry?, folder.as_ref(), &root)?;
                if place.is_dir() {
                    folders.push(Some(path));
                } else {
                    files.push((path, place));
                }
            }
        }
        Ok(files)
    }
}

fn look_at(
    entry: &DirEntry,
    folder: Option<&RelativePath>,
    root: &Path,
) -> Result<(RelativePath, PathBuf), RegistryError> {
    let name = entry.file_name();
    let name = name.to_string_lossy();
    let path = folder.map_or_else(|| name.parse(), |folder| folder.join(&name));
    let path: RelativePath = path.map_err(|error| RegistryError::BadArtifacts(error.to_string()))?;
    let place = entry.path().canonicalize()?;
    if !place.starts_with(root) {
        return Err(RegistryError::BadArtifacts(format!("`{path}` is a link that leaves the registry's directory")));
    }
    if place.is_dir() || place.is_file() {
        Ok((path, place))
    } else {
        Err(RegistryError::BadArtifacts(format!("`{path}` is neither a file nor a folder")))
    }
}

/// The folder's address, which is its identity.
fn source_of(folder: &Path) -> Result<String, RegistryError> {
    let absolute = folder.canonicalize()?;
    let url = Url::from_file_path(absolute);
    Ok(url.expect("a canonical path is absolute").into())
}

async fn copy(path: RelativePath, from: &Path, staging: &mut Staging) -> Result<(), RegistryError> {
    let mut from = tokio::fs::File::open(from).await?;
    let mut incoming = staging.receive(path).await?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match from.read(&mut buffer).await? {
            0 => break,
            n => incoming.write(&buffer[..n]).await?,
        }
    }
    Ok(staging.keep(incoming).await?)
}

#[cfg(test)]
mod tests;
