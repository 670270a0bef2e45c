//! One question for all models. A poll of many costs the server one search, which tells where each alias points.
//!
//! A search names the version of an alias but does not describe it, unless it is the newest of its stage. What a version is
//! does not change, so it is asked for when it is first met; its tags do, so it is asked for again from time to time.
//! Nothing is concluded from what a search leaves out: such a model is asked about by itself, and that answer counts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use parking_lot::Mutex;
use tokio::time::Instant;
use tracing::info;

use super::{API, Client, wire};
use crate::model::Version;
use crate::registry::{Found, RegistryError, Select};

/// Models asked about at one time, where each has to be.
const QUESTIONS_AT_ONCE: usize = 8;

/// How long a description of a version counts. Its decisive tags may be edited meanwhile.
const DESCRIPTION_AGE: Duration = Duration::from_mins(5);

/// The longest filter: an address of more than 8 KB is refused by most servers, and escapes triple it.
const MAX_FILTER_BYTES: usize = 2400;

/// The most models a search gives at once, in every release.
const MAX_MODELS: &str = "1000";

/// How a server is asked about many models, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// It finds models by a list of names: 3.x.
    ByNames,
    /// It gives all it has: 2.x, which knows no lists.
    All,
    /// It has no search.
    OneByOne,
}

/// What is remembered between polls.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// How many manners the server does not know.
    unknown: AtomicU8,
    described: Mutex<HashMap<(String, Version), Described>>,
}

/// A version as the server described it.
#[derive(Clone, Debug)]
struct Described {
    found: Found,
    /// When its registered model was made: numbers start again with a new one.
    model_created: i64,
    at: Instant,
}

impl Memory {
    fn manner(&self) -> Manner {
        match self.unknown.load(Ordering::Relaxed) {
            0 => Manner::ByNames,
            1 => Manner::All,
            _ => Manner::OneByOne,
        }
    }

    fn recall(&self, name: &str, version: Version, model_created: i64) -> Option<Found> {
        let described = self.described.lock();
        let known = described.get(&(name.to_owned(), version))?;
        let holds = known.model_created == model_created && known.at.elapsed() < DESCRIPTION_AGE;
        holds.then(|| known.found.clone())
    }

    fn remember(&self, found: &Found, model_created: i64) {
        let key = (found.registered_model.clone(), found.version);
        let mut described = self.described.lock();
        // What is no longer asked for grows old, so there are never many more than models.
        described.retain(|_, known| known.at.elapsed() < DESCRIPTION_AGE);
        described.insert(key, Described { found: found.clone(), model_created, at: Instant::now() });
    }
}

impl Client {
    /// What the registry says of each model, in their order.
    pub(in crate::registry) async fn resolve_all(
        &self,
        wanted: &[(String, Select)],
    ) -> Vec<Result<Found, RegistryError>> {
        if wanted.len() < 2 {
            return self.one_by_one(wanted, &[]).await;
        }
        match self.search(wanted).await {
            Ok(models) => self.one_by_one(wanted, &models).await,
            Err(error) => wanted.iter().map(|_| Err(error.again())).collect(),
        }
    }

    /// Answers from `models` where they have the answer, and asks where not.
    async fn one_by_one(
        &self,
        wanted: &[(String, Select)],
        models: &[wire::RegisteredModel],
    ) -> Vec<Result<Found, RegistryError>> {
        let answer = |(name, select): &(String, Select)| {
            let model = models.iter().find(|model| model.name == *name).cloned();
            let (client, name, select) = (self.clone(), name.clone(), select.clone());
            async move {
                match model {
                    Some(model) => client.in_model(&model, &select).await,
                    None => client.resolve(&name, &select).await,
                }
            }
        };
        let answers: Vec<_> = wanted.iter().map(answer).collect();
        stream::iter(answers).buffered(QUESTIONS_AT_ONCE).collect().await
    }

    async fn in_model(&self, model: &wire::RegisteredModel, select: &Select) -> Result<Found, RegistryError> {
        let Some(number) = model.number(select) else { return self.resolve(&model.name, select).await };
        let alias = if let Select::Alias(alias) = select { Some(alias.as_str().into()) } else { None };
        if let Some(version) = model.latest_versions.iter().find(|version| version.version == number) {
            return self.accept(&model.name, alias, version.clone());
        }
        if let Some(found) = self.memory.recall(&model.name, Version(number), model.creation_timestamp) {
            return Ok(Found { alias, ..found });
        }
        let found = self.resolve(&model.name, select).await?;
        self.memory.remember(&found, model.creation_timestamp);
        Ok(found)
    }

    /// What the server says of the models; nothing of those it does not show, and an error where it would have none for
    /// single ones either.
    async fn search(&self, wanted: &[(String, Select)]) -> Result<Vec<wire::RegisteredModel>, RegistryError> {
        let what = "registered-models/search";
        loop {
            let filter = match self.memory.manner() {
                Manner::ByNames => filter_by_names(wanted),
                Manner::All => None,
                Manner::OneByOne => return Ok(Vec::new()),
            };
            let mut query = vec![("max_results", MAX_MODELS)];
            query.extend(filter.as_deref().map(|filter| ("filter", filter)));
            let answer = match self.ask(self.url(&format!("{API}/{what}"), &query)).await {
                // Of thousands of models it may be longer than any answer that is read.
                Err(RegistryError::Nonsense(_)) => return Ok(Vec::new()),
                answer => answer?,
            };
            if answer.is_unsupported() || answer.is_bad_request() {
                let unknown = if filter.is_some() && !answer.is_unsupported() { 1 } else { 2 };
                self.memory.unknown.store(unknown, Ordering::Relaxed);
                info!(registry.host = %self.host, "the registry {}", self.memory.manner().explained());
                continue;
            }
            return match answer.json::<wire::Models>(self.asked(what)) {
                Ok(models) => Ok(models.registered_models),
                Err(error) if answer.speaks_for_all() => Err(error),
                Err(_) => Ok(Vec::new()),
            };
        }
    }
}

impl Manner {
    fn explained(self) -> &'static str {
        match self {
            Self::ByNames => "is asked for the models by their names",
            Self::All => "finds no models by a list of names: it is asked for all it has, in one question",
            Self::OneByOne => "has no search for models: each model is asked about by itself",
        }
    }
}

impl wire::RegisteredModel {
    /// The version that `select` points at, where a search says so.
    fn number(&self, select: &Select) -> Option<u64> {
        match select {
            Select::Alias(alias) => self.aliases.iter().find(|given| given.alias == *alias).map(|given| given.version),
            Select::Version(version) => Some(version.0),
            // The newest of each stage are there, so the newest of all is.
            Select::Latest => self.latest_versions.iter().map(|version| version.version).max(),
            Select::Stage(stage) => {
                let in_stage = |version: &&wire::ModelVersion| version.current_stage.eq_ignore_ascii_case(stage);
                self.latest_versions.iter().filter(in_stage).map(|version| version.version).max()
            }
        }
    }
}

/// The filter for these names, without those that MLflow would read otherwise: it takes the list for Python.
fn filter_by_names(wanted: &[(String, Select)]) -> Option<String> {
    let mut names: Vec<&str> = wanted.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names.retain(|name| !name.contains(['\'', '"', '\\']));
    let listed: Vec<String> = names.iter().map(|name| format!("'{name}'")).collect();
    let filter = match listed.as_slice() {
        [] => return None,
        [only] => format!("name={only}"),
        several => format!("name IN ({})", several.join(", ")),
    };
    (filter.len() <= MAX_FILTER_BYTES).then_some(filter)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(names: &[&str]) -> Vec<(String, Select)> {
        names.iter().map(|name| ((*name).to_owned(), Select::Latest)).collect()
    }

    #[test]
    fn a_filter_holds_each_name_once_and_none_that_python_would_read_otherwise() {
        let filter = |names: &[&str]| filter_by_names(&wanted(names));
        assert_eq!(filter(&["b", "a", "b"]).unwrap(), "name IN ('a', 'b')");
        assert_eq!(filter(&["a", "a"]).unwrap(), "name='a'");
        assert_eq!(filter(&["a", "it's", "say \"hi\"", "back\\slash"]).unwrap(), "name='a'");
        assert_eq!(filter(&["it's"]), None);
        assert_eq!(filter(&[&"n".repeat(3000)]), None, "an address has an end");
    }
}
