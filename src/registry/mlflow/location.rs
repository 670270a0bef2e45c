//! Where a version's files are, as the registry writes it; and what is refused before anything is asked.
//!
//! Anyone who may register a model writes these addresses. An old server takes any of them.

use url::Url;

use crate::registry::path::{is_plain_segment, printable};
use crate::registry::{RegistryError, S3Folder};

/// The longest address that is looked at.
const MAX_BYTES: usize = 2048;

/// Stores the *server* can read for us. The gateway itself talks to none of them.
const STORES_OF_THE_SERVER: [&str; 9] = ["gs", "wasb", "wasbs", "abfs", "abfss", "dbfs", "hdfs", "r2", "file"];

/// Where a version's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Location {
    /// `mlflow-artifacts:/<path>`: the server hands them on. The path's parts.
    Proxied(Vec<String>),
    /// `models:/m-<id>`: with a logged model.
    LoggedModel(String),
    /// `runs:/<run>/<path>`: in a run.
    Run { run: String, path: Vec<String> },
    /// `s3://<bucket>/<path>`: in a bucket.
    S3(S3Folder),
    /// Somewhere only the server can read, or an older version of a registered model.
    Elsewhere,
}

impl Location {
    /// Reads an address that the registry at `base` gives.
    pub(super) fn parse(uri: &str, base: &Url) -> Result<Self, RegistryError> {
        Self::read(uri, base).ok_or_else(|| {
            RegistryError::BadArtifacts(format!(
                "the registry says they are at `{}`, and that address is not one to fetch from",
                printable(uri, 120)
            ))
        })
    }

    fn read(uri: &str, base: &Url) -> Option<Self> {
        if uri.len() > MAX_BYTES {
            return None;
        }
        if uri.starts_with('/') {
            return segments(uri).map(|_| Self::Elsewhere);
        }
        let (scheme, rest) = uri.split_once(':')?;
        let (authority, path) = authority_and_path(rest)?;
        let path = segments(path)?;
        let named = |count: usize| authority.is_empty() && path.len() >= count;
        match scheme {
            "mlflow-artifacts" if authority.is_empty() || is_host_of(authority, base) => Some(Self::Proxied(path)),
            "models" if named(1) && path.len() == 1 && path[0].starts_with("m-") => {
                Some(Self::LoggedModel(path[0].clone()))
            }
            "models" if named(1) => Some(Self::Elsewhere),
            "runs" if named(2) => Some(Self::Run { run: path[0].clone(), path: path[1..].to_vec() }),
            "s3" if is_bucket(authority) => Some(Self::S3(S3Folder { bucket: authority.to_owned(), path })),
            "s3" => None,
            "file" if !matches!(authority, "" | "localhost") => None,
            store if authority.contains('@') && !store.starts_with("wasb") && !store.starts_with("abfs") => None,
            store if STORES_OF_THE_SERVER.contains(&store) => Some(Self::Elsewhere),
            _ => None,
        }
    }
}

/// What S3 takes for a bucket's name, and a little more: no user, no port.
fn is_bucket(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'))
}

/// `//host/a/b` → `host`, `/a/b`. Nothing beyond ASCII and nothing escaped in the host.
fn authority_and_path(rest: &str) -> Option<(&str, &str)> {
    let Some(rest) = rest.strip_prefix("//") else { return Some(("", rest)) };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // Azure's stores name a container before the host: `container@account`.
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '@' | '[' | ']');
    authority.chars().all(is_plain).then_some((authority, path))
}

/// The parts of a path, if each is a plain name.
fn segments(path: &str) -> Option<Vec<String>> {
    let path = path.strip_prefix('/').unwrap_or(path);
    let path = path.strip_suffix('/').unwrap_or(path);
    let parts: Vec<String> = path.split('/').map(str::to_owned).collect();
    parts.iter().all(|part| is_plain_segment(part)).then_some(parts)
}

fn is_host_of(authority: &str, base: &Url) -> bool {
    let is_with_port = authority == host_and_port(base);
    is_with_port || (base.port().is_none() && Some(authority) == base.host_str())
}

/// `host:port`, the port always.
pub(super) fn host_and_port(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port_or_known_default().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str) -> Option<Location> {
        Location::parse(uri, &"https://mlflow.example:8443/base".parse().unwrap()).ok()
    }

    fn parts(path: &str) -> Vec<String> {
        path.split('/').map(str::to_owned).collect()
    }

    #[test]
    fn reads_what_registries_write() {
        let proxied = |path: &str| Some(Location::Proxied(parts(path)));
        assert_eq!(read("mlflow-artifacts:/1/models/m-cd/artifacts"), proxied("1/models/m-cd/artifacts"));
        assert_eq!(read("mlflow-artifacts:///1/r/artifacts/model"), proxied("1/r/artifacts/model"));
        assert_eq!(read("mlflow-artifacts://mlflow.example:8443/1/x"), proxied("1/x"));
        assert_eq!(read("mlflow-artifacts:/workspaces/a b/1"), proxied("workspaces/a b/1"));
        assert_eq!(read("models:/m-c2b5712555"), Some(Location::LoggedModel("m-c2b5712555".to_owned())));
        assert_eq!(read("models:/m-odel/2"), Some(Location::Elsewhere));
        assert_eq!(read("models:/iris@champion"), Some(Location::Elsewhere));
        assert_eq!(read("runs:/80990b/a/b"), Some(Location::Run { run: "80990b".to_owned(), path: parts("a/b") }));
        let bucket = S3Folder { bucket: "bucket".to_owned(), path: parts("a/b") };
        assert_eq!(read("s3://bucket/a/b"), Some(Location::S3(bucket)));
        let stores = ["file:///srv/mlflow/art", "/srv/mlflow", "dbfs:/x/y", "gs://b/x"];
        for uri in stores.into_iter().chain(["wasbs://container@account.blob.core.windows.net/x", "file://localhost/x"])
        {
            assert_eq!(read(uri), Some(Location::Elsewhere), "{uri}");
        }
    }

    #[test]
    fn the_default_port_need_not_be_named() {
        let base = "https://mlflow.example".parse().unwrap();
        for uri in ["mlflow-artifacts://mlflow.example/x", "mlflow-artifacts://mlflow.example:443/x"] {
            assert!(Location::parse(uri, &base).is_ok(), "{uri}");
        }
    }

    #[test]
    fn refuses_addresses_that_lead_elsewhere() {
        let long = format!("s3://b/{}", "a/".repeat(2048));
        let bad = [
            "",
            "model",
            "http://169.254.169.254/latest",
            "https://evil.example/x",
            "ftp://h/x",
            "HTTP://x/y",
            "javascript:x",
            "mlflow-artifacts://evil.example/1/x",
            "mlflow-artifacts://mlflow.example/1/x",
            "mlflow-artifacts://MLFLOW.example:8443/x",
            "mlflow-artifacts://mlflow.example:8443@evil.example/x",
            "mlflow-artifacts://u:p@mlflow.example:8443/x",
            "mlflow-artifacts:/../etc/passwd",
            "mlflow-artifacts:/1/../../x",
            "mlflow-artifacts:/1/%2e%2e/x",
            "mlflow-artifacts:/1/%252e%252e/x",
            "mlflow-artifacts:/1%2fx",
            "mlflow-artifacts:/1\\..\\x",
            "mlflow-artifacts:/1/x?y",
            "mlflow-artifacts:/1/x#y",
            "mlflow-artifacts:/a//b",
            "mlflow-artifacts:/",
            "mlflow-artifacts:/a\nb",
            "mlflow-artifacts:\\\\evil\\x",
            "mlflow-artifacts://mlflow\u{2024}example:8443/x",
            "mlflow-artifacts:////evil/x",
            "runs:/x",
            "runs://host/x/y",
            "models://profile@host/x",
            "models:/",
            "models:/m-c/../x",
            "file://host/share",
            "file:///a/../b",
            "file:///a/%2e%2e/b",
            "s3://key:secret@bucket/x",
            "s3://bucket",
            "s3:/bucket/x",
            "s3:///x",
            "s3://bucket:9000/x",
            "s3://bucket/a/../b",
            "s3://bucket/a/%2e%2e/b",
            "s3://b\u{fc}cket/x",
            "/a/../b",
            "..",
            "C:\\x",
            &long,
        ];
        for uri in bad {
            assert_eq!(read(uri), None, "{uri:?}");
        }
    }
}
