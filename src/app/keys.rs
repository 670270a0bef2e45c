//! Keys of a gateway: opened, brought up to date while it runs, by other processes on its data directory and by other
//! gateways.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::Pace;
use crate::auth::{self, ApiKeys, PinTo, SharedStore, StoreError};
use crate::clock::Clock;
use crate::model::{Target, held};

/// How often the key store is looked at: a change made in another process works here within a second, with time to spare
/// for reading a million keys.
const KEY_REFRESH_INTERVAL: Duration = Duration::from_millis(250);

/// How often gateways that share keys look whether others changed them: a change works everywhere within five seconds,
/// with time to spare for an answer that got lost.
const SHARED_KEYS_INTERVAL: Duration = Duration::from_secs(1);

/// Opens the keys of a data directory: its own, or its copy of those that are shared.
///
/// # Errors
/// When they cannot be used.
pub fn open(config: auth::Config, shared: Option<&SharedStore>) -> Result<ApiKeys, StoreError> {
    match shared {
        Some(shared) => ApiKeys::open_shared(config, shared),
        None => ApiKeys::open(config, &mut getrandom::fill),
    }
}

/// The first look at the shared store; says whether the copy is as the store has it.
pub(super) async fn sync_at_start(keys: &Arc<ApiKeys>, now: Timestamp) -> anyhow::Result<bool> {
    let keys = Arc::clone(keys);
    let look = tokio::task::spawn_blocking(move || keys.sync_at_start(now));
    Ok(look.await.context("the thread that looks at the shared keys died")??)
}

/// Takes over what other gateways' keys became, until it is time to stop.
pub(super) async fn follow(keys: Arc<ApiKeys>, mut healthy: bool, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(SHARED_KEYS_INTERVAL, stop);
    while pace.next().await {
        let (copy, now) = (Arc::clone(&keys), clock.now());
        match tokio::task::spawn_blocking(move || copy.sync_once(now)).await {
            Ok(Ok(_)) if !healthy => {
                info!("the shared keys are known again");
                healthy = true;
            }
            Ok(Err(error)) if healthy => {
                warn!("{}", keys.age_of_copy(&error));
                healthy = false;
            }
            Ok(_) => {}
            Err(panic) => error!("looking at the shared keys panicked: {panic}"),
        }
    }
}

/// What callers stay on, for the control plane.
pub(super) fn who_stays(keys: &ApiKeys, now: Timestamp) -> held::Asked {
    let targets = |pinned: Vec<PinTo>| pinned.iter().map(Target::from).collect();
    keys.pinned(now).into_iter().map(|(model, pinned)| (model, targets(pinned))).collect()
}

/// Takes over what other processes on this data directory changed, until it is time to stop.
pub(super) async fn refresh(keys: Arc<ApiKeys>, tell: held::Teller, clock: Clock, stop: CancellationToken) {
    let mut pace = Pace::new(KEY_REFRESH_INTERVAL, stop);
    let mut healthy = true;
    while pace.next().await {
        let store = Arc::clone(&keys);
        let refreshed = tokio::task::spawn_blocking(move || store.refresh_once()).await;
        // Pins end by the clock, too, whether or not the store changes.
        let asked = who_stays(&keys, clock.now());
        tell.send_if_modified(|before| {
            let changed = *before != asked;
            *before = asked;
            changed
        });
        match refreshed {
            Ok(Ok(_)) => healthy = true,
            Ok(Err(error)) if healthy => {
                warn!("cannot read the key store, the keys read last stay: {error}");
                healthy = false;
            }
            Ok(Err(_)) => {}
            Err(panic) => error!("reading the key store panicked: {panic}"),
        }
    }
}
