//! Measurements of requests, features and predictions, aggregated in the process.
//!
//! Observing is a side door of the request path: it does not wait, cannot fail, and what it must refuse (a series over
//! the cap) it counts. [`cloudwatch`] sends what was gathered once a minute; [`prometheus`] shows the totals.
//!
//! Threads write into stripes of their own choosing, so that they rarely meet at a lock. Who wants to know
//! (a flush, a scrape) empties the stripes into the totals, and into what CloudWatch is still to be told.

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use self::cloudwatch::{Flushed, Mode};
use self::histogram::Histogram;
use self::series::Series;
use self::totals::Totals;
use self::vocabulary::Vocabularies;
use self::window::{Codes, Measured, OK, Window};
use crate::drift::report::Report;
use crate::model::{Features, Identity, Inputs, Model, ModelName, Outputs};

pub mod cloudwatch;
pub mod dashboard;
pub mod prometheus;

mod datum;
mod gauges;
mod histogram;
mod queue;
mod series;
mod totals;
mod vocabulary;
mod window;

/// What is kept, and how much of it.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Distinct series (name and labels) at most; what is above is counted in `modelgate_series_refused_total`.
    pub max_series: NonZeroUsize,
    /// Categories kept per text feature; the rest are counted as `__other__`.
    pub max_categories: NonZeroUsize,
}

/// The measurements of one process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Metrics(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    stripes: Box<[Stripe]>,
    vocabularies: Vocabularies,
    gathered: Mutex<Gathered>,
}

/// A limit of a plan that callers pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PlanLimit {
    /// The rate, or what is allowed at one time.
    Throttle,
    /// The quota.
    Quota,
}

/// What happens to versions that an operator may want an alarm for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionEvent {
    /// One came to answer.
    Served,
    /// One was found unfit.
    Refused,
    /// One was left for the one before.
    RolledBack,
}

/// One place to write. Aligned so that two threads on two stripes do not share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Stripe(Mutex<Fresh>);

/// What was written into a stripe since it was last emptied.
#[derive(Debug, Default)]
struct Fresh {
    /// At most [`WINDOWS_MAX`], then the writer empties the stripes itself.
    windows: Vec<Window>,
    unmodelled: Codes,
    /// How often each plan's limits were passed; as many entries as there are plans.
    limits: BTreeMap<(Arc<str>, PlanLimit), u64>,
}

/// Versions measured in one stripe before somebody must look. More are possible only by reloading again and again
/// without one flush or scrape.
const WINDOWS_MAX: usize = 64;

/// What the stripes were emptied into.
#[derive(Debug)]
struct Gathered {
    totals: Totals,
    /// The drift that was last seen. No larger than the totals, where each of its series has a place.
    drift: BTreeMap<Series, f64>,
    /// There once a [`cloudwatch::Flusher`] is.
    delivery: Option<Delivery>,
}

/// What concerns CloudWatch alone.
#[derive(Debug, Default)]
struct Delivery {
    mode: Mode,
    /// Measured and not yet handed to the flusher. Bounded like the totals.
    pending: HashMap<Series, Histogram>,
    /// What all flushes did; `kept` as it was after the last.
    flushed: Flushed,
}

/// One family of outside figures to show at `/metrics` beside our own (queue lengths, counters of other modules).
#[derive(Clone, Debug)]
pub struct Family {
    /// The metric's name, without a `_total` suffix.
    pub name: &'static str,
    /// One line for people.
    pub help: &'static str,
    /// Whether it only grows.
    pub counter: bool,
    /// Label values and the figure.
    pub samples: Vec<(Vec<(&'static str, String)>, f64)>,
}

impl Metrics {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let max_series = config.max_series.get();
        // Twice the threads that can run, so that two of them seldom share a stripe.
        let stripes = 2 * thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self(Arc::new(Shared {
            stripes: (0..stripes).map(|_| Stripe::default()).collect(),
            vocabularies: Vocabularies::new(config.max_categories.get(), max_series),
            gathered: Mutex::new(Gathered { totals: Totals::new(max_series), drift: BTreeMap::new(), delivery: None }),
        }))
    }

    /// One answered request: every feature of every row, every prediction, and how long it took.
    pub fn observe(&self, model: &Model, inputs: &Inputs, outputs: &Outputs, took: Duration) {
        self.observe_parts(model.id(), model.features(), inputs, outputs, took);
    }

    /// As [`observe`](Self::observe), of a model taken apart.
    pub fn observe_parts(
        &self,
        id: &Arc<Identity>,
        features: &Features,
        inputs: &Inputs,
        outputs: &Outputs,
        took: Duration,
    ) {
        self.write(id, features, |window| {
            window.request(OK, false, took);
            window.inputs(inputs);
            window.outputs(outputs);
        });
    }

    /// One request that got an error; `code` is the error's code as the caller saw it, `model` is given where one was
    /// found (its name as configured, never the caller's text).
    ///
    /// A status of 500 and above counts as an error of the model; what the caller did wrong shows in Prometheus by its
    /// code. A request that found no model shows there under an empty model name and nowhere else.
    pub fn failed(&self, model: Option<&Model>, code: &'static str, status: u16, took: Duration) {
        match model {
            Some(model) => self.failed_parts(model.id(), model.features(), code, status, took),
            None => self.stripe().lock().unmodelled.add(code),
        }
    }

    /// As [`failed`](Self::failed), for a model taken apart.
    pub fn failed_parts(
        &self,
        id: &Arc<Identity>,
        features: &Features,
        code: &'static str,
        status: u16,
        took: Duration,
    ) {
        self.write(id, features, |window| window.request(code, status >= 500, took));
    }

    /// Shows the drift of everything that is served, in place of what was shown before. It goes to CloudWatch with every
    /// flush, as it is then.
    pub fn show_drift(&self, reports: &[Report]) {
        let mut gathered = self.gather();
        let Gathered { totals, drift, .. } = &mut *gathered;
        drift.clear();
        for report in reports {
            let series = gauges::of(report).into_iter();
            drift.extend(series.filter(|(series, figure)| totals.add(&report.id, series, &Histogram::of(*figure, 1))));
        }
    }

    /// One request that passed a limit of `plan`, refused or, in a dry run, not.
    pub fn limit_passed(&self, plan: &Arc<str>, limit: PlanLimit) {
        *self.stripe().lock().limits.entry((Arc::clone(plan), limit)).or_default() += 1;
    }

    /// Something that happened to a version of `model`, for CloudWatch. Prometheus reads it from what is published.
    pub fn version_event(&self, model: &ModelName, event: VersionEvent) {
        let model = model.clone();
        let series = match event {
            VersionEvent::Served => Series::VersionsServed(model),
            VersionEvent::Refused => Series::VersionsRefused(model),
            VersionEvent::RolledBack => Series::Rollbacks(model),
        };
        self.gather().keep(series, &Histogram::of(1.0, 1));
    }

    /// The Prometheus page: our own totals, then `outside`.
    #[must_use]
    pub fn render(&self, outside: &[Family]) -> String {
        let gathered = self.gather();
        let (totals, drift) = (gathered.totals.clone(), gathered.drift.clone());
        let flushed = gathered.delivery.as_ref().map(|delivery| delivery.flushed.clone());
        // Writing the page takes longer than copying the figures; nobody need wait for it.
        drop(gathered);
        prometheus::page(totals, &drift, flushed.as_ref(), outside)
    }

    /// From now on, what is measured is also kept for CloudWatch until it is [taken](Self::take_pending).
    fn start_delivery(&self, mode: Mode) {
        self.gather().delivery.get_or_insert_default().mode = mode;
    }

    /// What was measured since last time, for CloudWatch.
    fn take_pending(&self) -> HashMap<Series, Histogram> {
        let mut gathered = self.gather();
        for (series, figure) in gathered.drift.clone() {
            gathered.keep(series, &Histogram::of(figure, 1));
        }
        gathered.delivery.as_mut().map(|delivery| std::mem::take(&mut delivery.pending)).unwrap_or_default()
    }

    /// Notes what a flush did.
    fn delivered(&self, flushed: &Flushed) {
        if let Some(delivery) = &mut self.0.gathered.lock().delivery {
            delivery.flushed.datums += flushed.datums;
            delivery.flushed.calls += flushed.calls;
            delivery.flushed.dropped += flushed.dropped;
            delivery.flushed.kept = flushed.kept;
        }
    }

    /// Runs `write` on the window of the version `id`, under the lock of this thread's stripe.
    fn write(&self, id: &Arc<Identity>, features: &Features, write: impl FnOnce(&mut Window)) {
        let mut fresh = self.stripe().lock();
        if let Some(window) = fresh.windows.iter_mut().find(|window| window.is_of(id)) {
            return write(window);
        }
        if fresh.windows.len() >= WINDOWS_MAX {
            drop(fresh);
            drop(self.gather());
            fresh = self.stripe().lock();
        }
        let mut window = Window::new(id, features, &self.0.vocabularies);
        write(&mut window);
        fresh.windows.push(window);
    }

    fn stripe(&self) -> &Mutex<Fresh> {
        let stripes = &self.0.stripes;
        &stripes[TURN.with(|turn| *turn) % stripes.len()].0
    }

    /// Empties the stripes.
    fn gather(&self) -> MutexGuard<'_, Gathered> {
        let mut gathered = self.0.gathered.lock();
        gathered.totals.make_room();
        self.0.vocabularies.make_room();
        for stripe in &self.0.stripes {
            let fresh = std::mem::take(&mut *stripe.0.lock());
            gathered.totals.add_unmodelled(&fresh.unmodelled);
            for ((plan, limit), count) in fresh.limits {
                gathered.add_limit(Series::of_plan(plan, limit), count);
            }
            for window in fresh.windows {
                gathered.absorb(window.into_measured());
            }
        }
        gathered
    }
}

impl Gathered {
    fn absorb(&mut self, measured: Measured) {
        let refused = self.totals.refused();
        for (series, values) in measured.series {
            if self.totals.add(&measured.id, &series, &values) {
                self.keep(series, &values);
            }
        }
        self.totals.add_version(&measured.id, &measured.codes, &measured.durations);
        let refused = self.totals.refused() - refused;
        if refused > 0 {
            self.keep(Series::Refused, &Histogram::of(1.0, refused));
        }
    }

    fn add_limit(&mut self, series: Series, count: u64) {
        self.totals.add_limit(series.clone(), count);
        self.keep(series, &Histogram::of(1.0, count));
    }

    /// Keeps measurements for CloudWatch, where it is to have any.
    fn keep(&mut self, series: Series, values: &Histogram) {
        if let Some(delivery) = &mut self.delivery
            && (delivery.mode == Mode::Full || series.is_lean())
        {
            delivery.pending.entry(series).or_default().merge(values);
        }
    }
}

/// Counts the threads that ever wrote.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's number: neighbours in time get neighbouring stripes.
    static TURN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}
