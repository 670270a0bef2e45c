//! The `[quota]` section: where use is counted, and what happens while that cannot be asked.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::path::PathBuf;

use percent_encoding::percent_decode_str;
use secrecy::SecretString;
use url::Url;

use super::layer::Value;
use super::reader::Section;
use super::sections::secret;
use super::value::{Parsed, Wrong, text_as, whole, word};
use crate::auth::PlanName;
use crate::quota::{LARGEST_AMOUNT, Location, OnStoreDown, Plan, Redis};

/// What `store` says.
#[derive(Clone)]
enum Store {
    Embedded,
    Redis(Url),
}

pub(super) fn read(mut s: Section<'_>, file: PathBuf, plans: &BTreeMap<PlanName, Plan>) -> Location {
    let store = s.defaulted("store", store);
    let password = secret(&mut s, "store_password", "store_password_file");
    let namespace = s.defaulted("namespace", text_as("1 to 64 of A-Z a-z 0-9 . _ -", namespace));
    let lease = s.optional("lease", whole::<u64>(1..=LARGEST_AMOUNT)).and_then(NonZeroU64::new);
    let policies = [("lease", OnStoreDown::Lease), ("closed", OnStoreDown::Closed), ("open", OnStoreDown::Open)];
    let on_store_down = s.defaulted("on_store_down", word(&policies, &[]));
    let location = match store {
        Store::Embedded => {
            check_embedded(&mut s, on_store_down);
            Location::File(file)
        }
        Store::Redis(mut url) => {
            check_amounts(&mut s, plans);
            let password = password.or_else(|| take_password(&mut url));
            Location::Redis(Redis { url, password, namespace, lease, on_store_down })
        }
    };
    s.finish();
    location
}

fn store(value: &Value) -> Parsed<Store> {
    let expected = "\"embedded\" or \"redis://host:6379\"";
    let Value::Text(written) = value else { return Err(Wrong::expected(expected)) };
    if written == "embedded" {
        return Ok(Store::Embedded);
    }
    let hint = if written.starts_with("dynamodb:") { ": what was found comes in a later release" } else { "" };
    let url = Url::parse(written).ok().filter(is_redis);
    url.map(Store::Redis).ok_or_else(|| Wrong::expected(format!("{expected}{hint}")))
}

/// `redis://[user:password@]host[:port][/database]`, or `rediss:` for TLS.
fn is_redis(url: &Url) -> bool {
    let database = url.path().trim_start_matches('/');
    matches!(url.scheme(), "redis" | "rediss")
        && url.host_str().is_some_and(|host| !host.is_empty())
        && (database.is_empty() || database.parse::<u16>().is_ok())
        && url.query().is_none()
        && url.fragment().is_none()
}

fn namespace(text: &str) -> Option<String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ((1..=64).contains(&text.len()) && text.bytes().all(allowed)).then(|| text.to_owned())
}

/// What is only for a shared store is a mistake without one: it would be a promise that nobody keeps.
fn check_embedded(s: &mut Section<'_>, on_store_down: OnStoreDown) {
    for key in ["store_password", "store_password_file", "lease"] {
        if s.has(key) {
            s.mistake(key, "expected a shared `store` with it, such as \"redis://host:6379\"");
        }
    }
    if on_store_down != OnStoreDown::Lease {
        s.mistake("on_store_down", "expected \"lease\" with the embedded store; the others need a shared `store`");
    }
}

/// The shared store counts exactly up to a limit of its own.
fn check_amounts(s: &mut Section<'_>, plans: &BTreeMap<PlanName, Plan>) {
    for (name, plan) in plans {
        if plan.quota.is_some_and(|limit| limit.amount.get() > LARGEST_AMOUNT) {
            s.mistake("store", &format!("counts to {LARGEST_AMOUNT} at most, and the plan {name:?} has more"));
        }
    }
}

/// Moves the password out of the URL, where logs and error texts could show it.
fn take_password(url: &mut Url) -> Option<SecretString> {
    let password = percent_decode_str(url.password()?).decode_utf8_lossy().into_owned();
    // Only URLs without a host refuse this.
    let _ = url.set_password(None);
    Some(password.into())
}
