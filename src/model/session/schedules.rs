//! Every order in which requests, switches and looks at retired versions can happen: whatever the order, a version goes
//! when the one who looks lets it go, not before and not by a request's hand, and none is forgotten.

use std::sync::Weak;

use super::tests::{numbers, spec};
use super::*;
use crate::model::{Digest, Models, Publisher, Version, published};

/// What happens at one moment.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Step {
    /// A request takes the version that serves.
    Take(usize),
    /// It begins to run.
    Begin(usize),
    /// Its run is over.
    Release(usize),
    /// It is answered, or its caller has gone.
    Leave(usize),
    /// Another version comes to serve.
    Switch,
    /// What was replaced is looked at, and what is unused is freed.
    Look,
}

use Step::{Begin, Leave, Look, Release, Switch, Take};

/// A request that is answered, and one whose caller goes away in the middle of its run.
const ACTORS: [&[Step]; 4] = [
    &[Take(0), Begin(0), Release(0), Leave(0)],
    &[Take(1), Begin(1), Leave(1), Release(1)],
    &[Switch, Switch],
    &[Look, Look],
];

/// What one request holds.
#[derive(Default)]
struct Request {
    model: Option<Arc<Model>>,
    /// What a lease holds beside its session.
    lease: Option<Arc<Slots>>,
}

/// A gateway's versions at one point of a schedule.
struct World {
    models: Models,
    publisher: Publisher,
    /// The versions that were made, by their number less one.
    made: Vec<Weak<Slots>>,
    retired: Vec<Arc<Model>>,
    freed: Vec<u64>,
    requests: [Request; 2],
}

/// A version without sessions that answers nothing: what is asked here is only who has it.
fn version(like: &Model, number: u64) -> Arc<Model> {
    Arc::new(Model {
        id: Arc::new(Identity::new("m".parse().unwrap(), Version(number), Digest([0; 32]), None)),
        features: Arc::clone(&like.features),
        outcomes: Arc::clone(&like.outcomes),
        engine: Arc::clone(&like.engine),
        slots: Slots::new(Vec::new()),
        row_nanos: AtomicU64::new(0),
        recent: Recent::default(),
    })
}

impl World {
    fn new(like: &Model) -> Self {
        let (models, publisher) = published(["m".parse().unwrap()]);
        let (made, retired, freed) = (Vec::new(), Vec::new(), Vec::new());
        let mut world = Self { models, publisher, made, retired, freed, requests: Default::default() };
        world.switch(like);
        world
    }

    fn switch(&mut self, like: &Model) {
        let model = version(like, self.made.len() as u64 + 1);
        self.made.push(Arc::downgrade(&model.slots));
        self.retired.extend(self.publisher.serve(model));
    }

    /// As the manager reaps.
    fn look(&mut self) {
        let (free, busy): (Vec<_>, Vec<_>) = self.retired.drain(..).partition(Model::is_unused);
        self.retired = busy;
        for model in free {
            self.freed.push(model.id.version.0);
            drop(Arc::into_inner(model).expect("nobody has a version that is unused"));
        }
    }

    fn act(&mut self, step: Step, like: &Model) {
        match step {
            Take(request) => self.requests[request].model = Some(self.models.get("m").unwrap()),
            Begin(request) => {
                let model = self.requests[request].model.as_ref().unwrap();
                self.requests[request].lease = Some(Arc::clone(&model.slots));
            }
            Release(request) => self.requests[request].lease = None,
            Leave(request) => self.requests[request].model = None,
            Switch => self.switch(like),
            Look => self.look(),
        }
    }

    /// Every version is there until it was looked at and freed, and then it is gone.
    fn check(&self, done: &[Step]) {
        for (number, slots) in (1..).zip(&self.made) {
            let is_there = slots.strong_count() > 0;
            assert_eq!(is_there, !self.freed.contains(&number), "version {number} after {done:?}");
        }
    }
}

/// Goes through every order of what is left of each actor's steps; returns how many there are. A world cannot be copied,
/// so that each order is played from its beginning.
fn explore(like: &Model, done: &mut Vec<Step>, left: [&[Step]; 4]) -> u64 {
    if left.iter().all(|steps| steps.is_empty()) {
        play(like, done);
        return 1;
    }
    let mut schedules = 0;
    for actor in 0..left.len() {
        let Some((step, rest)) = left[actor].split_first() else { continue };
        let mut left = left;
        left[actor] = rest;
        done.push(*step);
        schedules += explore(like, done, left);
        done.pop();
    }
    schedules
}

fn play(like: &Model, schedule: &[Step]) {
    let mut world = World::new(like);
    for (at, step) in schedule.iter().enumerate() {
        world.act(*step, like);
        world.check(&schedule[..=at]);
    }
    world.look();
    world.check(schedule);
    world.freed.sort_unstable();
    assert_eq!((world.freed, world.retired.len()), (vec![1, 2], 0), "lost in {schedule:?}");
    assert_eq!(world.models.get("m").unwrap().id.version.0, 3);
}

#[test]
fn in_every_order_a_version_goes_when_it_is_looked_at_and_unused() {
    let like = Model::load(&Runtime::load(None).unwrap(), spec(super::tests::fixture("sum"))).unwrap();
    assert_eq!(explore(&like, &mut Vec::new(), ACTORS), 207_900);
}

#[tokio::test]
async fn a_run_that_outlives_its_request_holds_the_version() {
    let model = Arc::new(Model::load(&Runtime::load(None).unwrap(), spec(super::tests::fixture("endless"))).unwrap());
    let lease = model.slots.try_acquire().unwrap();
    assert!(!Model::is_unused(&model), "as the schedules have it");
    drop(lease);
    assert!(Model::is_unused(&model));
    let forever = numbers(&model, "x", &[1e18]);
    let mut run = Box::pin(model.predict(&forever, Instant::now() + Duration::from_mins(1)));
    assert!(futures_util::poll!(&mut run).is_pending());
    assert!(!Model::is_unused(&model));
    drop(run);
    while !Model::is_unused(&model) {
        tokio::task::yield_now().await;
    }
}
