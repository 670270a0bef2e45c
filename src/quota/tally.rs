//! What each key was used for since the process began: requests and rows by model. Decides nothing.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use foldhash::fast::RandomState;
use parking_lot::RwLock;

use super::Standing;
use crate::auth::{Caller, KeyId};

/// Pairs of key and model at most, about 20 MB. The use of later pairs is not told here; what it is charged is
/// unaffected.
const PAIRS_MAX: usize = 100_000;

/// One key's use.
#[derive(Clone, Debug)]
pub struct Use {
    /// The key.
    pub caller: Caller,
    /// By model, in the order in which they were first used.
    pub models: Vec<ModelUse>,
    /// Where its account stands.
    pub standing: Vec<Standing>,
}

/// One key's use of one model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelUse {
    /// The model, as configured.
    pub name: Arc<str>,
    /// Requests that were charged.
    pub requests: u64,
    /// Their rows.
    pub rows: u64,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    keys: RwLock<HashMap<KeyId, Arc<ByModel>, RandomState>>,
    pairs: AtomicUsize,
}

#[derive(Debug)]
struct ByModel {
    caller: Caller,
    models: RwLock<Vec<Counts>>,
}

#[derive(Debug)]
struct Counts {
    model: Arc<str>,
    requests: AtomicU64,
    rows: AtomicU64,
}

impl Tally {
    /// Counts a request of `rows`.
    pub(super) fn add(&self, caller: &Caller, model: &str, rows: u64) {
        let known = self.keys.read().get(&caller.key_id).cloned();
        let Some(key) = known.or_else(|| self.open(caller)) else { return };
        if !key.add(model, rows) {
            key.open(model, &self.pairs);
            key.add(model, rows);
        }
    }

    /// Everything, keys in the order of their ids.
    pub(super) fn uses(&self, standing: impl Fn(&Caller) -> Vec<Standing>) -> Vec<Use> {
        let mut keys: Vec<_> = self.keys.read().values().cloned().collect();
        keys.sort_by(|a, b| a.caller.key_id.cmp(&b.caller.key_id));
        let told = |key: &Arc<ByModel>| Use {
            caller: key.caller.clone(),
            models: key.models.read().iter().map(Counts::told).collect(),
            standing: standing(&key.caller),
        };
        keys.iter().map(told).collect()
    }

    fn open(&self, caller: &Caller) -> Option<Arc<ByModel>> {
        if self.pairs.load(Ordering::Relaxed) >= PAIRS_MAX {
            return None;
        }
        let new = || Arc::new(ByModel { caller: caller.clone(), models: RwLock::default() });
        let mut keys = self.keys.write();
        Some(Arc::clone(keys.entry(Arc::clone(&caller.key_id)).or_insert_with(new)))
    }
}

impl ByModel {
    /// Counts, if `model` has a place; says whether it has.
    fn add(&self, model: &str, rows: u64) -> bool {
        let models = self.models.read();
        let Some(counts) = models.iter().find(|counts| *counts.model == *model) else { return false };
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.rows.fetch_add(rows, Ordering::Relaxed);
        true
    }

    /// Makes a place for `model`, if there is room.
    fn open(&self, model: &str, pairs: &AtomicUsize) {
        let mut models = self.models.write();
        // Another request may have been faster.
        let is_new = models.iter().all(|counts| *counts.model != *model);
        if is_new && pairs.fetch_add(1, Ordering::Relaxed) < PAIRS_MAX {
            models.push(Counts::new(model));
        }
    }
}

impl Counts {
    fn new(model: &str) -> Self {
        Self { model: model.into(), requests: AtomicU64::new(0), rows: AtomicU64::new(0) }
    }

    fn told(&self) -> ModelUse {
        ModelUse {
            name: Arc::clone(&self.model),
            requests: self.requests.load(Ordering::Relaxed),
            rows: self.rows.load(Ordering::Relaxed),
        }
    }
}
