//! One answer of the server, read within bounds, and what it means when it is not the one that was asked for.
//!
//! Servers answer in JSON, in HTML, in a sentence; with a status that does not always fit. So an answer is classified by
//! its status, then by MLflow's error code, then by its text. Messages name the cure where there is one.

use std::time::Duration;

use http::StatusCode;
use http::header::{CONTENT_TYPE, DATE, HeaderMap, LOCATION, RETRY_AFTER};
use jiff::Timestamp;
use jiff::fmt::rfc2822;
use reqwest::Response;
use serde::de::DeserializeOwned;

use super::wire::Trouble;
use crate::registry::path::printable;
use crate::registry::{Credentials, RegistryError};

/// A thousand versions are 365 KB.
const MAX_BYTES: usize = 8 << 20;

/// No server is left alone for longer, whatever it asks for.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(1);

/// Whom we asked, and how, for the messages.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    /// The server's host and port.
    pub(super) host: &'a str,
    /// What was asked for: the last parts of the path.
    pub(super) what: &'a str,
    /// Who we said we are.
    pub(super) credentials: &'a Credentials,
}

impl Asked<'_> {
    fn with_credentials(&self) -> bool {
        !matches!(self.credentials, Credentials::None)
    }
}

/// An answer, whole.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    /// Reads the body, as long as it is not too long.
    pub(super) async fn read(mut response: Response) -> Result<Self, RegistryError> {
        let too_long = || RegistryError::Nonsense(format!("it is longer than {MAX_BYTES} bytes"));
        if response.content_length().is_some_and(|length| length > MAX_BYTES as u64) {
            return Err(too_long());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unreachable)? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(too_long());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(Self { status: response.status(), headers: response.headers().clone(), body })
    }

    /// The JSON that was asked for.
    pub(super) fn json<T: DeserializeOwned>(&self, asked: Asked<'_>) -> Result<T, RegistryError> {
        if !self.status.is_success() {
            return Err(self.refusal(asked));
        }
        serde_json::from_slice(&self.body).map_err(|error| {
            let what = asked.what;
            RegistryError::Nonsense(if self.is_html() {
                format!("`{what}` gives an HTML page: is there a login page or a proxy before the registry, or is its path missing in the address?")
            } else {
                format!("`{what}` gives no JSON that MLflow would: {}", printable(&error.to_string(), 200))
            })
        })
    }

    /// Whether the server has no such route, or has switched it off.
    pub(super) fn is_unsupported(&self) -> bool {
        let trouble = self.trouble();
        match self.status {
            StatusCode::NOT_FOUND => {
                self.is_html()
                    || trouble.error_code == "ENDPOINT_NOT_FOUND"
                    || trouble.error.starts_with("unsupported endpoint")
            }
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => true,
            StatusCode::SERVICE_UNAVAILABLE => {
                let text = self.text();
                text.contains("--no-serve-artifacts") || text.contains("Artifact serving is disabled")
            }
            _ => false,
        }
    }

    /// Whether the server does not understand the question.
    pub(super) fn is_bad_request(&self) -> bool {
        self.status == StatusCode::BAD_REQUEST
    }

    /// Whether another question would have no better answer: the server is away, busy, or does not know us.
    pub(super) fn speaks_for_all(&self) -> bool {
        self.status.is_server_error()
            || matches!(self.status, StatusCode::UNAUTHORIZED | StatusCode::TOO_MANY_REQUESTS)
            || self.status.is_redirection()
    }

    /// What an answer other than the one asked for means.
    pub(super) fn refusal(&self, asked: Asked<'_>) -> RegistryError {
        let said = self.said();
        match self.status {
            StatusCode::UNAUTHORIZED => RegistryError::Refused(login_needed(asked.with_credentials())),
            StatusCode::FORBIDDEN if self.text().contains("Invalid Host header") => RegistryError::Refused(format!(
                "the server does not answer to the name `{0}`: start it with `--allowed-hosts {0}` \
                 (MLFLOW_SERVER_ALLOWED_HOSTS), or use an address it allows",
                asked.host
            )),
            StatusCode::FORBIDDEN => RegistryError::Refused(no_permission(asked.with_credentials(), &said)),
            StatusCode::TOO_MANY_REQUESTS => RegistryError::Busy { retry_after: self.retry_after() },
            _ if self.is_unsupported() => self.unsupported(asked),
            StatusCode::NOT_FOUND => RegistryError::NotFound(said),
            // An unknown alias is a bad request to MLflow.
            StatusCode::BAD_REQUEST if said.trim_end_matches('.').ends_with("not found") => {
                RegistryError::NotFound(said)
            }
            status if status.is_redirection() => RegistryError::Refused(self.redirected(asked)),
            status if status.is_client_error() => {
                RegistryError::Refused(format!("`{}`: {said} ({status})", asked.what))
            }
            // Sent by servers without workspaces to whoever names one, with a 500.
            status if self.trouble().error_code == "FEATURE_DISABLED" => {
                RegistryError::Refused(format!("{said} ({status}): take the workspace out of the configuration"))
            }
            StatusCode::SERVICE_UNAVAILABLE if self.retry_after().is_some() => {
                RegistryError::Busy { retry_after: self.retry_after() }
            }
            status => {
                // MLflow's basic authentication breaks on a token where its cache is on.
                let is_token = matches!(asked.credentials, Credentials::Bearer(_));
                let hint = if is_token && status == StatusCode::INTERNAL_SERVER_ERROR {
                    "; if it has MLflow's basic authentication, that takes a user name and a password, no token"
                } else {
                    ""
                };
                RegistryError::Unreachable(format!("`{}`: {said} ({status}){hint}", asked.what))
            }
        }
    }

    fn unsupported(&self, asked: Asked<'_>) -> RegistryError {
        let cure = if self.is_html() {
            "is the registry's address right, with its path?"
        } else {
            "select the version another way, such as by alias or by number"
        };
        RegistryError::Refused(format!("the server has no `{}` ({}): {cure}", asked.what, self.status))
    }

    fn redirected(&self, asked: Asked<'_>) -> String {
        let to = self.headers.get(LOCATION).and_then(|location| location.to_str().ok()).unwrap_or("nowhere");
        // What follows the path may be a secret.
        let to = to.split(['?', '#']).next().unwrap_or_default();
        format!(
            "`{}` is redirected to {}, and redirects are not followed: use the address the server really has, or log in",
            asked.what,
            printable(to, 200)
        )
    }

    /// How long the server asks us to wait, in seconds or until a date on its own clock.
    fn retry_after(&self) -> Option<Duration> {
        let header = |name| self.headers.get(name)?.to_str().ok();
        let after = header(RETRY_AFTER)?.trim();
        let wait = after.parse().map(Duration::from_secs).ok().or_else(|| {
            let wait = http_date(after)?.duration_since(http_date(header(DATE)?)?);
            Some(wait.try_into().unwrap_or(Duration::ZERO))
        })?;
        Some(wait.min(MAX_RETRY_AFTER))
    }

    fn trouble(&self) -> Trouble {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// What the server says went wrong, in one line.
    fn said(&self) -> String {
        let trouble = self.trouble();
        let said = [trouble.message, trouble.error].into_iter().find(|said| !said.is_empty());
        match said {
            Some(said) => printable(&said, 300),
            None if self.body.is_empty() || self.is_html() => "no reason given".to_owned(),
            None => printable(&self.text(), 300),
        }
    }

    fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.body[..self.body.len().min(2048)])
    }

    fn is_html(&self) -> bool {
        let typed = self.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
        typed && self.text().trim_start().starts_with('<')
    }
}

fn login_needed(with_credentials: bool) -> String {
    if with_credentials {
        "it does not accept the user name and password, or the token, that it was given (HTTP 401). DagsHub takes a user \
         name with a token as password"
            .to_owned()
    } else {
        "it wants a login (HTTP 401): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, on DagsHub the user name \
         and a token, or set MLFLOW_TRACKING_TOKEN"
            .to_owned()
    }
}

fn no_permission(with_credentials: bool, said: &str) -> String {
    let cure = if with_credentials {
        "give this user READ on the registered model"
    } else {
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    };
    format!("no permission, or no such model (HTTP 403, {said}): {cure}")
}

fn http_date(text: &str) -> Option<Timestamp> {
    // The zone of HTTP dates is always GMT, by that name.
    rfc2822::DateTimeParser::new().parse_timestamp(text).ok()
}

/// An error below HTTP, without the address, which may hold a secret in its query.
pub(super) fn unreachable(error: reqwest::Error) -> RegistryError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    RegistryError::Unreachable(printable(&text, 300))
}
