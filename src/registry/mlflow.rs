//! The MLflow REST client: what of it a gateway needs, 2.7 to 3.x.
//!
//! Every request goes to the configured server, and only there: addresses that the server names are never called, and
//! redirects are not followed, so credentials cannot leave.

use std::sync::Arc;

use http::header::{IF_RANGE, RANGE};
use percent_encoding::percent_decode_str;
use reqwest::{RequestBuilder, Response};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use url::Url;

use super::path::printable;
use super::{Credentials, Fetched, Found, Mlflow, RegistryError, S3, Select};
use crate::model::Version;
use crate::model::loading::Loading;
use crate::registry::cache::Cache;

mod answer;
mod artifacts;
mod batch;
mod bucket;
mod location;
mod progress;
mod transfer;
mod wire;

use answer::{Answer, Asked};
use batch::Memory;
use location::Location;

/// Version numbers beyond this are not exact in every JSON reader; no registry has them.
const MAX_VERSION: u64 = 1 << 53;

/// MLflow 2 stores 5000 characters of a version's tag, and refuses more.
const MAX_TAG_CHARS: usize = 5000;

/// The path all calls of the API are under.
const API: &str = "api/2.0/mlflow";

/// An MLflow server. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    config: Arc<Mlflow>,
    /// The server's host and port, for messages.
    host: Arc<str>,
    http: reqwest::Client,
    /// Without it the server is asked for what lies in S3.
    s3: Option<S3>,
    memory: Arc<Memory>,
}

impl Client {
    /// `user:password@` in the address is used when there are no other credentials, and never sent as part of it.
    pub(super) fn new(mut config: Mlflow, http: reqwest::Client) -> Self {
        let in_address = credentials_in(&config.uri);
        if matches!(config.credentials, Credentials::None) {
            config.credentials = in_address;
        }
        // These fail for addresses without a host, which have no user either.
        let _ = config.uri.set_username("");
        let _ = config.uri.set_password(None);
        config.uri.set_query(None);
        config.uri.set_fragment(None);
        let host = location::host_and_port(&config.uri).into();
        Self { config: Arc::new(config), host, http, s3: None, memory: Arc::default() }
    }

    pub(super) fn with_s3(self, s3: S3) -> Self {
        Self { s3: Some(s3), ..self }
    }

    pub(super) async fn resolve(&self, registered_model: &str, select: &Select) -> Result<Found, RegistryError> {
        let (version, alias) = match select {
            Select::Alias(alias) => (self.aliased(registered_model, alias).await?, Some(alias.as_str().into())),
            Select::Latest => (self.latest(registered_model).await?, None),
            Select::Stage(stage) => (self.newest_in(registered_model, Some(stage)).await?, None),
            Select::Version(version) => (self.numbered(registered_model, *version).await?, None),
        };
        self.accept(registered_model, alias, version)
    }

    pub(super) async fn fetch(
        &self,
        found: &Found,
        cache: &Cache,
        loading: &Loading,
    ) -> Result<Fetched, RegistryError> {
        artifacts::fetch(self, found, cache, loading).await
    }

    /// Sets a tag of a version, cut to what every release stores.
    pub(super) async fn tag(&self, found: &Found, key: &str, value: &str) -> Result<(), RegistryError> {
        let what = "model-versions/set-tag";
        let value: String = value.chars().take(MAX_TAG_CHARS).collect();
        let body = serde_json::json!({
            "name": found.registered_model, "version": found.version.to_string(), "key": key, "value": value,
        });
        let request = self.http.post(self.url(&format!("{API}/{what}"), &[])).json(&body);
        let answer = self.answer_to(self.with_identity(request)).await?;
        answer.json::<serde::de::IgnoredAny>(self.asked(what)).map(drop)
    }

    async fn aliased(&self, registered_model: &str, alias: &str) -> Result<wire::ModelVersion, RegistryError> {
        let query = [("name", registered_model), ("alias", alias)];
        let one: wire::OneVersion = self.api("registered-models/alias", &query).await?;
        Ok(one.model_version)
    }

    async fn numbered(&self, registered_model: &str, version: Version) -> Result<wire::ModelVersion, RegistryError> {
        let query = [("name", registered_model), ("version", &version.to_string())];
        let one: wire::OneVersion = self.api("model-versions/get", &query).await?;
        if one.model_version.version != version.0 {
            return Err(RegistryError::Nonsense(format!(
                "asked for version {version}, it gives {}",
                one.model_version.version
            )));
        }
        Ok(one.model_version)
    }

    async fn latest(&self, registered_model: &str) -> Result<wire::ModelVersion, RegistryError> {
        let Some(filter) = filter_by_name(registered_model) else {
            return self.newest_in(registered_model, None).await;
        };
        // Without an order the first is the one that was edited last.
        let query = [("filter", filter.as_str()), ("order_by", "version_number DESC"), ("max_results", "1")];
        let what = "model-versions/search";
        let answer = self.ask(self.url(&format!("{API}/{what}"), &query)).await?;
        if answer.is_unsupported() {
            return self.newest_in(registered_model, None).await;
        }
        let versions: wire::Versions = answer.json(self.asked(what))?;
        newest(versions).ok_or_else(|| none_visible(registered_model))
    }

    /// The newest version in `stage`, or in any.
    async fn newest_in(
        &self,
        registered_model: &str,
        stage: Option<&str>,
    ) -> Result<wire::ModelVersion, RegistryError> {
        let query: Vec<_> =
            [Some(("name", registered_model)), stage.map(|stage| ("stages", stage))].into_iter().flatten().collect();
        let versions: wire::Versions = self.api("registered-models/get-latest-versions", &query).await?;
        newest(versions).ok_or_else(|| match stage {
            Some(stage) => RegistryError::NotFound(format!(
                "no version of `{}` is in the stage `{}`",
                printable(registered_model, 80),
                printable(stage, 40)
            )),
            None => none_visible(registered_model),
        })
    }

    /// Takes what the registry says for a version to serve, if it is one.
    fn accept(
        &self,
        registered_model: &str,
        alias: Option<Arc<str>>,
        version: wire::ModelVersion,
    ) -> Result<Found, RegistryError> {
        let (model, number) = (printable(registered_model, 80), version.version);
        if version.name != registered_model {
            return Err(RegistryError::Nonsense(format!(
                "asked for `{model}`, it gives `{}`",
                printable(&version.name, 80)
            )));
        }
        if !(1..=MAX_VERSION).contains(&number) {
            return Err(RegistryError::Nonsense(format!("`{model}` has no version {number}")));
        }
        if version.status != "READY" {
            let status = printable(&version.status, 40);
            return Err(RegistryError::NotFound(format!("version {number} of `{model}` is `{status}`, not READY")));
        }
        let is_prompt =
            |tag: &wire::Tag| tag.key == "mlflow.prompt.is_prompt" && tag.value.eq_ignore_ascii_case("true");
        if version.tags.iter().any(is_prompt) {
            return Err(RegistryError::NotFound(format!("`{model}` is a prompt, not a model")));
        }
        Location::parse(&version.source, &self.config.uri)?;
        Ok(Found {
            registered_model: version.name,
            version: Version(number),
            alias,
            source: version.source,
            created: version.creation_timestamp,
            tags: version.tags.into_iter().map(|tag| (tag.key, tag.value)).collect(),
        })
    }

    /// What the API says to a question.
    async fn api<T: DeserializeOwned>(&self, what: &str, query: &[(&str, &str)]) -> Result<T, RegistryError> {
        self.ask(self.url(&format!("{API}/{what}"), query)).await?.json(self.asked(what))
    }

    /// An address below the server's own path.
    fn url(&self, path: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.config.uri.clone();
        // An address that can hold no path is refused when it is called.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    fn asked<'a>(&'a self, what: &'a str) -> Asked<'a> {
        Asked { host: &self.host, what, credentials: &self.config.credentials }
    }

    /// The whole answer to a question, within the time for one.
    async fn ask(&self, url: Url) -> Result<Answer, RegistryError> {
        self.answer_to(self.get(url)).await
    }

    async fn answer_to(&self, request: RequestBuilder) -> Result<Answer, RegistryError> {
        let answer = async { Answer::read(request.send().await.map_err(answer::unreachable)?).await };
        timeout(self.config.timeout, answer).await.unwrap_or_else(|_| Err(self.too_slow()))
    }

    /// The head of an answer whose body is read by the caller; from a byte on, as long as the file still has this `ETag`.
    async fn open(&self, url: Url, part: Option<(u64, &str)>) -> Result<Response, RegistryError> {
        let request = self.get(url);
        let request = match part {
            Some((start, etag)) => request.header(RANGE, format!("bytes={start}-")).header(IF_RANGE, etag),
            None => request,
        };
        let response = timeout(self.config.timeout, request.send()).await.map_err(|_| self.too_slow())?;
        response.map_err(answer::unreachable)
    }

    fn get(&self, url: Url) -> RequestBuilder {
        self.with_identity(self.http.get(url))
    }

    fn with_identity(&self, request: RequestBuilder) -> RequestBuilder {
        let request = match &self.config.credentials {
            Credentials::None => request,
            Credentials::Basic { username, password } => request.basic_auth(username, Some(password.expose_secret())),
            Credentials::Bearer(token) => request.bearer_auth(token.expose_secret()),
        };
        match &self.config.workspace {
            Some(workspace) => request.header("X-MLFLOW-WORKSPACE", workspace),
            None => request,
        }
    }

    fn too_slow(&self) -> RegistryError {
        RegistryError::Unreachable(format!("no whole answer from {} within {:?}", self.host, self.config.timeout))
    }
}

/// The user and password in `https://user:password@host`.
fn credentials_in(uri: &Url) -> Credentials {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    if uri.username().is_empty() {
        return Credentials::None;
    }
    let password = decode(uri.password().unwrap_or_default()).into();
    Credentials::Basic { username: decode(uri.username()), password }
}

/// The search filter for one name. MLflow knows no escapes, so a name with both kinds of quotes has none.
fn filter_by_name(name: &str) -> Option<String> {
    match (name.contains('\''), name.contains('"')) {
        (false, _) => Some(format!("name='{name}'")),
        (true, false) => Some(format!("name=\"{name}\"")),
        (true, true) => None,
    }
}

fn newest(versions: wire::Versions) -> Option<wire::ModelVersion> {
    versions.model_versions.into_iter().max_by_key(|version| version.version)
}

fn none_visible(registered_model: &str) -> RegistryError {
    RegistryError::NotFound(format!(
        "no version of `{}` is to be seen: there is none, or this user may not see it",
        printable(registered_model, 80)
    ))
}

#[cfg(test)]
mod tests;
