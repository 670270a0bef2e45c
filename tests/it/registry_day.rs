//! Days without a registry, and days with a bad version, in seconds: the gateway's own clock and tokio's are turned on by
//! hand. What is asked and answered meanwhile is real: sockets, requests, log lines.
#![expect(clippy::print_stdout, reason = "figures are printed")]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::response::Response;
use http::StatusCode;
use modelgate::clock::Clock;
use serde_json::json;
use tokio::time::Instant;
use tracing::field::{Field, Visit};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use crate::support::fixtures::sum_files;
use crate::support::hostile_registry::{Asked, Honest, Hostile, ok, say, version};
use crate::support::site::{Gate, Site, eventually};

/// What the configuration's default is.
const POLL: Duration = Duration::from_secs(30);

/// How late a return may be noticed: a minute and the jitter, or the poll interval and the jitter.
const ONE_POLL: Duration = Duration::from_secs(72);

/// The gateway's log as an operator sees it at the default level.
#[derive(Clone, Debug, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}

impl<S: Subscriber> Layer<S> for Lines {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        *metadata.level() <= Level::INFO && metadata.target().starts_with("modelgate")
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut message = Message(String::new());
        event.record(&mut message);
        self.0.lock().unwrap().push(message.0);
    }
}

impl Lines {
    /// Listens to this thread: a gateway has no other for its tasks here.
    fn listen() -> (Self, DefaultGuard) {
        let lines = Self::default();
        let guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines.clone()));
        (lines, guard)
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A registry that is as the test says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    /// Every connection gets an answer that is none.
    Down,
    /// Down at every other question; version 3 is champion.
    Flapping,
    /// Version so and so is champion.
    Wants(u16),
}

struct World {
    mood: Arc<Mutex<Mood>>,
    registry: Hostile,
    clock: Clock,
    lines: Lines,
    _listening: DefaultGuard,
}

fn honest(number: u16) -> Honest {
    let mut files = sum_files(1000.0 * f32::from(number));
    if number == BAD {
        files[1].1.fill(0);
    }
    Honest::with(&files)
}

/// The version that nobody should serve.
const BAD: u16 = 2;

fn answer(mood: Mood, count: usize, asked: &Asked) -> Response {
    let down = || say(StatusCode::BAD_GATEWAY, "text/html", format!("<html>no upstream, request {count}</html>"));
    let wanted = match mood {
        Mood::Down => return down(),
        Mood::Flapping if count % 2 == 1 => return down(),
        Mood::Flapping => 3,
        Mood::Wants(number) => number,
    };
    if asked.path.ends_with("registered-models/alias") {
        let mut version = version();
        version["version"] = json!(wanted.to_string());
        version["source"] = json!(format!("mlflow-artifacts:/0/run/artifacts/model-{wanted}"));
        return ok(&json!({ "model_version": version }));
    }
    honest(wanted).answer(asked)
}

impl World {
    async fn new(mood: Mood) -> Self {
        let (lines, listening) = Lines::listen();
        let mood = Arc::new(Mutex::new(mood));
        let (told, count) = (Arc::clone(&mood), Arc::new(AtomicUsize::new(0)));
        let registry = Hostile::start(move |asked| {
            let mut answer = answer(*told.lock().unwrap(), count.fetch_add(1, Ordering::SeqCst), &asked);
            answer.headers_mut().insert("connection", "close".parse().unwrap());
            std::future::ready(answer)
        })
        .await;
        let clock = Clock::manual(Clock::system().now());
        Self { mood, registry, clock, lines, _listening: listening }
    }

    fn site(&self) -> Site {
        let mut site = Site::new(&format!(
            "[plans.open]\n[[model]]\nname = \"sum\"\nregistered_model = \"m\"\nselect = \"alias:champion\"\n\
             [registry]\nuri = \"{}\"\n",
            self.registry.uri
        ));
        site.poll = POLL;
        site
    }

    fn is(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn polls(&self) -> usize {
        self.registry.asked().iter().filter(|asked| asked.path.ends_with("registered-models/alias")).count()
    }

    /// How often the files of any version were asked for.
    fn downloads(&self) -> usize {
        self.registry.asked().iter().filter(|asked| asked.path.ends_with("get-download-uri")).count()
    }

    /// Turns both clocks on.
    async fn pass(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            let step = Duration::from_secs(1);
            tokio::time::sleep(step).await;
            self.clock.advance(step);
        }
    }

    /// Turns the clocks on to the next question of the registry, and lets them go by themselves from then on. Returns how
    /// long it took.
    async fn until_asked(&self) -> Duration {
        let (before, start) = (self.polls(), Instant::now());
        while self.polls() == before {
            self.pass(Duration::from_secs(1)).await;
            assert!(start.elapsed() < Duration::from_hours(1), "the registry is not asked any more");
        }
        tokio::time::resume();
        start.elapsed()
    }

    /// Waits until `version` serves, and that is said and noted.
    async fn serves(gate: &Gate, version: u16) {
        gate.serves("sum", version.into()).await;
        let last = Some(("served".to_owned(), version.to_string()));
        eventually("the note of it", async || gate.history("sum").await.pop() == last).await;
    }

    /// Lets `hours` pass while callers ask and `version` answers, or nobody does.
    async fn live(&self, gate: &Gate, hours: u32, version: Option<u16>) -> Day {
        let (polls, downloads) = (self.polls(), self.downloads());
        self.lines.take();
        tokio::time::pause();
        for _ in 0..hours * 12 {
            self.pass(Duration::from_mins(5)).await;
            let answer = gate.predict("sum", &json!({ "a": 1, "b": 2, "c": 3 })).await;
            match version {
                Some(version) => assert_eq!(answer.body["prediction"], 1000.0 * f64::from(version) + 6.0),
                None => assert_eq!((answer.status, &answer.body["code"]), (503, &json!("model_not_ready"))),
            }
        }
        let lines = self.lines.take();
        println!("{hours} h: {} polls, {} lines: {lines:#?}", self.polls() - polls, lines.len());
        Day { polls: self.polls() - polls, downloads: self.downloads() - downloads, lines }
    }
}

/// What became of some time.
struct Day {
    polls: usize,
    downloads: usize,
    lines: Vec<String>,
}

/// A figure of `/metrics`, without what is behind its point.
async fn figure(gate: &Gate, line: &str) -> usize {
    let page = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap().text().await.unwrap();
    let value = page.lines().find_map(|found| found.strip_prefix(line)).unwrap_or_else(|| panic!("no {line}: {page}"));
    value.trim().split('.').next().unwrap().parse().unwrap()
}

const SILENT: &str = "modelgate_registry_silent_seconds{model=\"sum\"}";

/// the registry is away for so many hours before a gateway has anything, for as many later on, and for as many every
/// other time it is asked.
async fn check_absence(hours: u32) {
    let world = World::new(Mood::Down).await;
    let mut site = world.site();
    let gate = site.start_by("open", world.clock.clone()).await;
    let day = world.live(&gate, hours, None).await;
    day.check_lines(hours);
    let ready = gate.get(gate.data, "/readyz").await;
    assert_eq!((ready.status, &ready.body["models"][0]["status"]), (503, &json!("waiting")));
    world.is(Mood::Wants(1));
    let late = world.until_asked().await;
    assert!(late <= ONE_POLL, "asked {late:?} after its return");
    World::serves(&gate, 1).await;

    world.is(Mood::Down);
    let day = world.live(&gate, hours, Some(1)).await;
    day.check_lines(hours);
    assert!(day.polls >= hours as usize * 50, "only {} polls", day.polls);
    let ready = gate.get(gate.data, "/readyz").await;
    let since = ready.body["models"][0]["stale_since"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let silent = figure(&gate, SILENT).await;
    let expected = hours as usize * 3600;
    assert!((expected - 72..=expected).contains(&silent), "{silent} s of {expected}");
    let known = world.clock.now().duration_since(since).as_secs();
    assert_eq!((ready.status, usize::try_from(known).unwrap()), (200, silent));
    world.is(Mood::Wants(3));
    let late = world.until_asked().await;
    assert!(late <= ONE_POLL, "asked {late:?} after its return");
    World::serves(&gate, 3).await;
    assert_eq!(figure(&gate, SILENT).await, 0);
    let back = world.lines.take();
    assert!(back.iter().any(|line| line.contains("answers for `sum` again")), "{back:?}");

    world.is(Mood::Flapping);
    let day = world.live(&gate, hours, Some(3)).await;
    assert!(day.polls >= hours as usize * 50, "only {} polls", day.polls);
    assert!(day.lines.len() <= hours as usize * 60, "{} lines in {hours} h", day.lines.len());
    let served: Vec<_> = gate.history("sum").await.into_iter().filter(|(event, _)| event == "served").collect();
    assert_eq!(served, ["1", "3"].map(|version| ("served".to_owned(), version.to_owned())));
    tokio::time::resume();
    gate.stop().await;
}

impl Day {
    /// Whoever looks at the log of any hour sees what is wrong; nobody has to read more than that.
    fn check_lines(&self, hours: u32) {
        let hours = hours as usize;
        let told = self.lines.iter().filter(|line| line.contains("no version of `sum` from the registry")).count();
        assert_eq!(told, self.lines.len(), "{:?}", self.lines);
        assert!((hours - 1..=hours + 1).contains(&told), "{told} lines in {hours} h: {:?}", self.lines);
    }
}

/// M-11: a version that nobody should serve is what the registry wants, for so many hours.
async fn check_bad_version(hours: u32) {
    let world = World::new(Mood::Wants(1)).await;
    let mut site = world.site();
    let gate = site.start_by("open", world.clock.clone()).await;
    World::serves(&gate, 1).await;
    world.is(Mood::Wants(BAD));
    tokio::time::pause();
    world.until_asked().await;
    gate.says("sum", "a refusal", |status| status["trouble"].as_str().is_some_and(|why| why.contains("refused"))).await;
    let day = world.live(&gate, hours, Some(1)).await;
    assert!(day.polls >= hours as usize * 100, "only {} polls", day.polls);
    assert_eq!((day.downloads, day.lines.as_slice()), (0, &[][..]), "what was refused is left alone");
    assert_eq!(figure(&gate, "modelgate_admissions_total{model=\"sum\",outcome=\"refused\"}").await, 1);
    world.is(Mood::Wants(3));
    let late = world.until_asked().await;
    assert!(late <= POLL.mul_f64(1.2) + Duration::from_secs(1), "asked {late:?} after it was there");
    World::serves(&gate, 3).await;
    let happened = [("served", "1"), ("refused", "2"), ("served", "3")];
    assert_eq!(gate.history("sum").await, happened.map(|(event, version)| (event.to_owned(), version.to_owned())));
    gate.stop().await;
}

/// M-11, the other way to be bad: the version is here and cannot be tried, for want of a process to try it in.
async fn check_untried_version(hours: u32) {
    let world = World::new(Mood::Wants(1)).await;
    let mut site = world.site();
    let gate = site.start_by("open", world.clock.clone()).await;
    World::serves(&gate, 1).await;
    gate.stop().await;
    site.set_probe_program("/nowhere/modelgate".into());
    let gate = site.start_by("open", world.clock.clone()).await;
    World::serves(&gate, 1).await;
    world.is(Mood::Wants(3));
    let day = world.live(&gate, hours, Some(1)).await;
    let tried = figure(&gate, "modelgate_admissions_total{model=\"sum\",outcome=\"undecided\"}").await;
    assert!((10..=24).contains(&tried), "{tried} tries");
    assert_eq!(day.downloads, tried);
    tokio::time::resume();
    gate.stop().await;
}

#[tokio::test]
async fn a_registry_that_is_away_for_hours_costs_no_answer_and_few_lines() {
    check_absence(2).await;
}

#[tokio::test]
#[ignore = "nightly: three simulated days with a registry that is away, a minute"]
async fn a_registry_that_is_away_for_days_costs_no_answer_and_few_lines() {
    check_absence(24).await;
}

#[tokio::test]
async fn a_bad_version_that_stays_is_tried_once_and_the_next_is_seen_at_once() {
    check_bad_version(1).await;
}

#[tokio::test]
async fn a_version_that_cannot_be_tried_is_tried_a_few_times_a_day() {
    check_untried_version(6).await;
}

#[tokio::test]
#[ignore = "nightly: a simulated day with a bad version, half a minute"]
async fn a_bad_version_that_stays_for_a_day_is_tried_once() {
    check_bad_version(24).await;
}

#[tokio::test]
#[ignore = "nightly: a simulated day with a version that cannot be tried, half a minute"]
async fn a_version_that_cannot_be_tried_is_tried_24_times_a_day() {
    check_untried_version(24).await;
}
