//! Measurements of requests, features and predictions, aggregated in the process.
//!
//! Observing is a side door of the request path: it does not wait, cannot fail, and what it must refuse (a series over
//! the cap) it counts. A [`Flusher`] sends what was gathered once a minute: to [`cloudwatch`], as [`emf`] or to [`otlp`];
//! [`prometheus`] shows the totals.
//!
//! Threads write into stripes of their own choosing, so that they rarely meet at a lock. Who wants to know
//! (a flush, a scrape) empties the stripes into the totals, and into what each sink is still to be told.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use self::delivery::{Delivery, Pending, Place};
use self::histogram::Histogram;
use self::series::{Scope, Series};
use self::totals::Totals;
use self::vocabulary::Vocabularies;
use self::window::{Codes, Measured, OK, Window};
use crate::drift::report::Report;
use crate::feedback::tally::Figures;
use crate::model::{Features, Identity, Inputs, Model, ModelName, Outputs, Version};

pub use self::delivery::Mode;
pub use self::flusher::{Flushed, Flusher};

pub mod cloudwatch;
pub mod dashboard;
pub mod emf;
pub mod otlp;
pub mod prometheus;

mod datum;
mod delivery;
mod flusher;
mod gauges;
mod histogram;
mod queue;
mod sagemaker;
mod series;
mod text;
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
    /// Features whose values are not measured.
    withheld: Vec<String>,
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
    /// The accuracy that was last seen, likewise.
    accuracy: BTreeMap<Series, f64>,
    /// The version of each model that served when somebody last looked.
    served: BTreeMap<ModelName, Version>,
    /// One for each [`Flusher`]: as many as there are sinks in the configuration.
    deliveries: Vec<Delivery>,
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
    /// Its figures.
    pub samples: Vec<Sample>,
}

/// A label set.
pub type Labels = Vec<(&'static str, String)>;

/// A label set and its figure.
pub type Sample = (Labels, f64);

impl Family {
    /// Figures that only grow.
    #[must_use]
    pub fn counter(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Self {
        Self { name, help, counter: true, samples }
    }

    /// Figures that rise and fall.
    #[must_use]
    pub fn gauge(name: &'static str, help: &'static str, samples: Vec<Sample>) -> Self {
        Self { name, help, counter: false, samples }
    }
}

impl Metrics {
    /// Nothing measured yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::withholding(config, Vec::new())
    }

    /// As [`new`](Self::new); of the features `withheld`, by the model's or the callers' name for them, gaps are counted and
    /// no value is measured.
    #[must_use]
    pub fn withholding(config: Config, withheld: Vec<String>) -> Self {
        let max_series = config.max_series.get();
        // Twice the threads that can run, so that two of them seldom share a stripe.
        let stripes = 2 * thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self(Arc::new(Shared {
            stripes: (0..stripes).map(|_| Stripe::default()).collect(),
            withheld,
            vocabularies: Vocabularies::new(config.max_categories.get(), max_series),
            gathered: Mutex::new(Gathered {
                totals: Totals::new(max_series),
                drift: BTreeMap::new(),
                accuracy: BTreeMap::new(),
                served: BTreeMap::new(),
                deliveries: Vec::new(),
            }),
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

    /// Shows the drift of everything that is served, in place of what was shown before. It goes out with every flush, as it
    /// is then.
    pub fn show_drift(&self, reports: &[Report]) {
        let mut gathered = self.gather();
        let Gathered { totals, drift, .. } = &mut *gathered;
        drift.clear();
        for report in reports {
            let series = gauges::of(report).into_iter();
            drift.extend(series.filter(|(series, figure)| totals.add(&report.id, series, &Histogram::of(*figure, 1))));
        }
    }

    /// Notes which versions serve now. One that serves in place of another, newer or older, has a mark.
    pub fn show_served<'s>(&self, served: impl Iterator<Item = &'s Arc<Identity>>) {
        let mut gathered = self.gather();
        for id in served {
            let before = gathered.served.insert(id.name.clone(), id.version);
            if before.is_some_and(|before| before != id.version) {
                gathered.add(id, &Series::Switched(Scope::version(id)), &Histogram::of(1.0, 1));
            }
        }
    }

    /// Shows the accuracy of what is served, in place of what was shown before; to the sinks it goes as drift does.
    pub fn show_accuracy(&self, versions: &[(Arc<Identity>, Figures)]) {
        let mut gathered = self.gather();
        let Gathered { totals, accuracy, .. } = &mut *gathered;
        accuracy.clear();
        for (id, figures) in versions {
            let series = gauges::of_labels(id, figures).into_iter();
            accuracy.extend(series.filter(|(series, figure)| totals.add(id, series, &Histogram::of(*figure, 1))));
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
            VersionEvent::Refused => Series::VersionsRefused(model),
            VersionEvent::RolledBack => Series::Rollbacks(model),
        };
        self.gather().keep(&series, &Histogram::of(1.0, 1));
    }

    /// The Prometheus page: our own totals, then `outside`.
    #[must_use]
    pub fn render(&self, outside: &[Family]) -> String {
        let gathered = self.gather();
        let (totals, standing) = (gathered.totals.clone(), gathered.standing());
        let flushed: Vec<_> = gathered.deliveries.iter().map(Delivery::so_far).collect();
        // Writing the page takes longer than copying the figures; nobody need wait for it.
        drop(gathered);
        prometheus::page(totals, &standing, &flushed, outside)
    }

    /// From now on, what is measured is also kept for a sink until it is [taken](Self::take_pending).
    fn start_delivery(&self, delivery: Delivery) -> Place {
        let deliveries = &mut self.gather().deliveries;
        deliveries.push(delivery);
        Place(deliveries.len() - 1)
    }

    /// What was measured since last time, for one sink.
    fn take_pending(&self, place: Place) -> Pending {
        let mut gathered = self.gather();
        let standing = gathered.standing();
        gathered.deliveries[place.0].take(&standing)
    }

    /// Notes what a flush did.
    fn delivered(&self, place: Place, flushed: &Flushed) {
        self.0.gathered.lock().deliveries[place.0].note(flushed);
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
        let mut window = Window::new(id, features, &self.0.vocabularies, &self.0.withheld);
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
    /// The figures that stand as they are until the next look.
    fn standing(&self) -> BTreeMap<Series, f64> {
        self.drift.iter().chain(&self.accuracy).map(|(series, figure)| (series.clone(), *figure)).collect()
    }

    fn absorb(&mut self, measured: Measured) {
        let refused = self.totals.refused();
        for (series, values) in measured.series {
            self.add(&measured.id, &series, &values);
        }
        self.totals.add_version(&measured.id, &measured.codes, &measured.durations);
        let refused = self.totals.refused() - refused;
        if refused > 0 {
            self.keep(&Series::Refused, &Histogram::of(1.0, refused));
        }
    }

    fn add(&mut self, id: &Arc<Identity>, series: &Series, values: &Histogram) {
        if self.totals.add(id, series, values) {
            self.keep(series, values);
        }
    }

    fn add_limit(&mut self, series: Series, count: u64) {
        self.keep(&series, &Histogram::of(1.0, count));
        self.totals.add_limit(series, count);
    }

    /// Keeps measurements for every sink that takes them.
    fn keep(&mut self, series: &Series, values: &Histogram) {
        self.deliveries.iter_mut().for_each(|delivery| delivery.keep(series, values));
    }
}

/// Counts the threads that ever wrote.
static THREADS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// This thread's number: neighbours in time get neighbouring stripes.
    static TURN: usize = THREADS.fetch_add(1, Ordering::Relaxed);
}
