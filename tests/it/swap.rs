//! Swaps under load: no request fails, no answer mixes versions, what is reported to serve does serve, and what was
//! replaced leaves memory. The gateway is a process of its own; the callers know the answers by heart.
#![expect(clippy::print_stdout, reason = "what was counted is a part of the verdict")]

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use modelgate::model::{Digest, Identity, Model, Spec, Version, published};
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::process::Binary;
use crate::support::callers::{Callers, Seen};
use crate::support::fixtures;
use crate::support::onnx::{self, Weights};
use crate::support::site::{Answer, Site, eventually};

/// A site whose versions of `sum` are loaded without a process for each of them, unless `probe`; only orders switch, and
/// none is taken back because a busy machine made it slow.
fn site(new: fn(&str) -> Site, probe: bool, slots: usize) -> (Site, PathBuf) {
    let site = new(&format!(
        "[plans.open]\n[[model]]\nname = \"sum\"\nselect = \"alias:champion\"\n[model.rollout]\nwatch = \"0s\"\n\
         [registry]\nuri = \"file:{{folder}}/registry\"\npoll_interval = \"1h\"\n\
         [engine]\nslots = {slots}\n[admission]\nprobe = {probe}\nreplay_rows = 0\n"
    ));
    site.config();
    let file = site.folder().join("modelgate.toml");
    (site, file)
}

async fn start(site: &mut Site, file: &std::path::Path) -> (Binary, String) {
    let key = site.key("open");
    let binary = Binary::serve_with(file, &[("RUST_LOG", "warn,modelgate::server=info,modelgate::app=info")]);
    binary.ready(&reqwest::Client::builder().build().unwrap()).await;
    (binary, key)
}

/// Has `version` serve; when this returns it does.
async fn promote(binary: &Binary, http: &reqwest::Client, version: u64) {
    let url = format!("http://{}/admin/models/sum/promote", binary.admin);
    let order = http.post(url).header("x-modelgate-admin", "1").json(&json!({ "version": version }));
    let answer = Answer::of(order.send().await.unwrap()).await;
    assert_eq!((answer.status, &answer.body["version"]), (200, &json!(version.to_string())), "{}", answer.body);
}

fn base(version: u64) -> f32 {
    #[expect(clippy::cast_precision_loss, reason = "up to sixteen million is exact in 32 bits of float")]
    let base = (1000 * version) as f32;
    base
}

/// A run of callers against one version after the other.
struct Run {
    site: fn(&str) -> Site,
    swaps: u64,
    callers: u64,
    /// Fewer requests prove nothing.
    least_requests: u64,
    /// How long the same callers ask without a swap, to compare with.
    quiet: Duration,
    /// Between two requests of a caller.
    pause: Duration,
}

async fn check_swaps(run: Run) {
    // So many that 64 callers with batches find one: how a gateway turns callers away is another matter.
    let (mut site, file) = site(run.site, false, 8);
    site.register_sum("sum", 1, base(1));
    site.promote("sum", 1);
    let (binary, key) = start(&mut site, &file).await;
    let http = reqwest::Client::builder().build().unwrap();

    let begun = Instant::now();
    let callers = Callers::start(binary.data, &key, run.callers, run.pause).await;
    tokio::time::sleep(run.quiet).await;
    let quiet = callers.end().await;
    let quiet_rate = rate(&quiet, begun);

    let begun = Instant::now();
    let callers = Callers::start(binary.data, &key, run.callers, run.pause).await;
    callers.expect_from_now_on(1);
    for version in 2..=run.swaps + 1 {
        site.register_sum("sum", version, base(version));
        // As fast as it goes, and not so fast that the last switches find too few requests.
        let least = run.least_requests * (version - 1) / run.swaps;
        while callers.answered() < least && !callers.have_complained() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        promote(&binary, &http, version).await;
        callers.expect_from_now_on(version);
        fs::remove_dir_all(site.registry().join("sum").join((version - 1).to_string())).unwrap();
        if callers.have_complained() {
            break;
        }
        tell_progress(version - 1, run.swaps, begun, &callers);
    }
    let took = begun.elapsed();
    let seen = callers.end().await;
    let swapping_rate = rate(&seen, begun);
    println!(
        "{} swaps in {:.1} s, {} requests ({} rows), {} of them the first of their caller after a switch, {} versions \
         answered; {quiet_rate:.0} requests/s without swaps, {swapping_rate:.0} with them, ratio {:.2}",
        run.swaps,
        took.as_secs_f64(),
        seen.requests,
        seen.rows,
        seen.first_after,
        seen.digests.len(),
        swapping_rate / quiet_rate,
    );
    assert!(seen.requests >= run.least_requests, "invalid: only {} requests", seen.requests);
    assert!(seen.digests.len() as u64 > run.swaps / 2, "invalid: only {} versions answered", seen.digests.len());
    assert!(seen.first_after > run.swaps / 10, "invalid: only {} requests met a switch", seen.first_after);
    check_history(&binary, &http, &seen).await;
}

/// Says every tenth of the way how far it is, so that a run that is cut short has said something.
fn tell_progress(swap: u64, swaps: u64, begun: Instant, callers: &Callers) {
    if swap.is_multiple_of((swaps / 10).max(1)) {
        println!("{swap} of {swaps} swaps in {:.1?}, {} requests", begun.elapsed(), callers.answered());
    }
}

#[expect(clippy::cast_precision_loss, reason = "a few million requests")]
fn rate(seen: &Seen, begun: Instant) -> f64 {
    seen.requests as f64 / begun.elapsed().as_secs_f64()
}

/// What the gateway remembers of its switches is what callers were told.
async fn check_history(binary: &Binary, http: &reqwest::Client, seen: &Seen) {
    let url = format!("http://{}/admin/models/sum/history", binary.admin);
    let page = Answer::of(http.get(url).send().await.unwrap()).await.body;
    let mut compared = 0;
    for event in page["history"].as_array().unwrap() {
        let version: u64 = event["version"].as_str().unwrap().parse().unwrap();
        if let Some(told) = seen.digests.get(&version) {
            assert_eq!(event["digest"].as_str(), Some(told.as_str()), "{event}");
            compared += 1;
        }
    }
    assert!(compared > 100, "invalid: only {compared} versions compared with the history");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_hundred_swaps_under_sixty_four_callers_fail_no_request_and_mix_no_versions() {
    let (quiet, pause) = (Duration::from_millis(500), Duration::from_millis(50));
    check_swaps(Run { site: Site::new, swaps: 300, callers: 64, least_requests: 2_000, quiet, pause }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: 10,000 swaps, about ten minutes"]
async fn ten_thousand_swaps_under_a_million_requests_fail_none_and_mix_no_versions() {
    // At 10 ms of rest, 64 callers ask five thousand times a second: callers that leave the loader no processor at all measure
    // how long it starves.
    let (quiet, pause) = (Duration::from_secs(20), Duration::from_millis(10));
    check_swaps(Run { site: Site::in_memory, swaps: 10_000, callers: 64, least_requests: 1_000_000, quiet, pause })
        .await;
}

/// What a process holds, as the system counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) resident_kib: u64,
    /// Without what it has mapped of files, such as its own program.
    pub(crate) anonymous_kib: u64,
    threads: u64,
    files: usize,
}

pub(crate) fn held(process: u32) -> Held {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    };
    let files = fs::read_dir(format!("/proc/{process}/fd")).unwrap().count();
    Held { resident_kib: field("VmRSS:"), anonymous_kib: field("RssAnon:"), threads: field("Threads:"), files }
}

/// What a process holds once what was replaced is gone: the least of a second and a half, three looks of the gateway.
pub(crate) async fn settled(process: u32) -> Held {
    let mut least = held(process);
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        let now = held(process);
        least.resident_kib = least.resident_kib.min(now.resident_kib);
        least.anonymous_kib = least.anonymous_kib.min(now.anonymous_kib);
    }
    least
}

/// A run of swaps among three versions with `weights`, each of which has to be loaded anew, while one caller asks.
struct Reloads<'a> {
    weights: &'a Weights,
    swaps: u64,
    /// Memory is looked at every so many swaps; the first look is what the others are held against.
    step: u64,
    probe: bool,
}

async fn check_memory(run: Reloads<'_>) {
    const MORE_KIB: u64 = 16 << 10;
    /// Threads for what blocks come and go with chance; one left behind by each swap would be more.
    const MORE_THREADS: u64 = 4;
    let (mut site, file) = site(Site::new, run.probe, 2);
    for version in 1..=3 {
        let model = onnx::sum_with(base(version), run.weights);
        site.register_changed("sum", version, "sum", |folder| fs::write(folder.join("model.onnx"), model).unwrap());
    }
    site.promote("sum", 1);
    let (binary, key) = start(&mut site, &file).await;
    let http = reqwest::Client::builder().build().unwrap();
    let callers = Callers::start(binary.data, &key, 1, Duration::ZERO).await;
    let begun = Instant::now();
    let (mut looks, mut highest) = (Vec::new(), 0);
    for swap in 1..=run.swaps {
        promote(&binary, &http, swap % 3 + 1).await;
        highest = highest.max(held(binary.id()).resident_kib);
        if swap % run.step == 0 {
            looks.push(settled(binary.id()).await);
        }
        tell_progress(swap, run.swaps, begun, &callers);
    }
    let seen = callers.end().await;
    let (start, end) = (looks[0], looks[looks.len() - 1]);
    println!(
        "{} swaps: {} KiB resident after {}, {} KiB at the end, {} KiB at most, {:.1} KiB a swap; {} requests",
        run.swaps,
        start.resident_kib,
        run.step,
        end.resident_kib,
        highest,
        slope(&looks, run.step),
        seen.requests,
    );
    assert!(seen.digests.len() == 3 && seen.requests > run.swaps, "invalid: {seen:?}");
    eventually("memory, threads and files as at the start", async || {
        let now = held(binary.id());
        now.resident_kib <= start.resident_kib + MORE_KIB
            && now.threads <= start.threads + MORE_THREADS
            && now.files <= start.files
    })
    .await;
}

/// KiB a swap, by least squares, of looks that are `step` swaps apart.
#[expect(clippy::cast_precision_loss, reason = "KiB of one process")]
fn slope(looks: &[Held], step: u64) -> f64 {
    let middle = (looks.len() - 1) as f64 / 2.0;
    let (over, under) = looks.iter().enumerate().fold((0.0, 0.0), |(over, under), (at, look)| {
        let from_middle = at as f64 - middle;
        (over + from_middle * look.resident_kib as f64, under + from_middle * from_middle)
    });
    over / under / step as f64
}

/// The model `count` whose version `v` answers `v` times the largest `x` of a request, and takes as long as that is large.
fn register_counter(site: &Site, version: u8) {
    const STEP: [u8; 10] = [0x42, 0x04, b's', b't', b'e', b'p', 0x4a, 0x04, 0x00, 0x00];
    site.register_changed("count", version.into(), "endless", |folder| {
        let mut bytes = fs::read(folder.join("model.onnx")).unwrap();
        let at = bytes.windows(STEP.len()).position(|window| window == STEP).unwrap() + STEP.len() - 2;
        bytes[at..at + 4].copy_from_slice(&f32::from(version).to_le_bytes());
        fs::write(folder.join("model.onnx"), bytes).unwrap();
        // Long enough for runs to be taken for long ones, which leave the threads that serve.
        let example = json!({ "dataframe_split": { "columns": ["x"], "data": [[100_000.0]] } });
        fs::write(folder.join("serving_input_example.json"), example.to_string()).unwrap();
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_is_replaced_while_it_runs_stays_until_its_last_run_is_over() {
    const ENDLESS: f64 = 1e17;
    let mut site = Site::new(
        "[plans.open]\n[[model]]\nname = \"count\"\nselect = \"alias:champion\"\n[engine]\nslots = 2\n\
         [admission]\nprobe = false\nreplay_rows = 0\n[server]\ndeadline = \"60s\"\n",
    );
    for version in 1..=3 {
        register_counter(&site, version);
    }
    site.promote("count", 1);
    let gate = site.start("open").await;
    gate.serves("count", 1).await;
    let first = Arc::downgrade(&gate.model("count"));
    let mut busy = JoinSet::new();
    for _ in 0..2 {
        let client = gate.client();
        busy.spawn(async move { client.predict("count", &json!({ "x": ENDLESS })).await });
    }
    eventually("two long runs", async || {
        let page = gate.http.get(format!("http://{}/metrics", gate.admin)).send().await.unwrap().text().await.unwrap();
        page.contains("modelgate_predictions_in_flight{} 2.0")
    })
    .await;
    // Version 1 is first the one before, and then one too many.
    for version in 2..=3_u8 {
        site.promote("count", version.into());
        gate.serves("count", version.into()).await;
        let answer = gate.predict("count", &json!({ "x": 10 })).await;
        assert_eq!(answer.body["prediction"].as_f64(), Some(f64::from(10 * version)), "{}", answer.body);
    }
    assert!(busy.try_join_next().is_none(), "a switch ended a run");
    assert!(first.strong_count() > 0, "freed under a run");
    // Callers who hang up end their runs.
    busy.shutdown().await;
    eventually("version 1 out of memory", async || first.strong_count() == 0).await;
    gate.stop().await;
}

/// The versions of `sum` under their numbers.
fn loaded(version: u64) -> Arc<Model> {
    let id = Identity::new("sum".parse().unwrap(), Version(version), Digest([7; 32]), None);
    Arc::new(fixtures::load(Spec { id, slots: 1, ..fixtures::spec("sum") }).unwrap())
}

#[test]
fn readers_see_versions_in_order_and_never_free_one() {
    const VERSIONS: u64 = 200;
    let (models, mut publisher) = published(["sum".parse().unwrap()]);
    publisher.serve(loaded(1));
    let is_over = AtomicBool::new(false);
    let looks: u64 = std::thread::scope(|scope| {
        let read = || {
            let (mut looks, mut latest) = (0_u64, 0);
            while !is_over.load(Ordering::SeqCst) {
                let model = models.get("sum").unwrap();
                let version = model.id().version.0;
                assert!(version >= latest, "version {version} after {latest}");
                (looks, latest) = (looks + 1, version);
                assert!(Arc::into_inner(model).is_none(), "a reader was the last to hold version {version}");
            }
            looks
        };
        let readers: Vec<_> = (0..4).map(|_| scope.spawn(read)).collect();
        let (mut retired, mut freed) = (Vec::new(), 0);
        for version in 2..=VERSIONS {
            retired.extend(publisher.serve(loaded(version)));
            let (free, busy): (Vec<_>, Vec<_>) = retired.drain(..).partition(Model::is_unused);
            retired = busy;
            for model in free {
                drop(Arc::into_inner(model).expect("nobody has a version that is unused"));
                freed += 1;
            }
        }
        is_over.store(true, Ordering::SeqCst);
        let looks = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(retired.iter().all(Model::is_unused), "nobody is left to hold one");
        assert_eq!(freed + retired.len() as u64, VERSIONS - 1, "none was lost");
        looks
    });
    assert!(looks > VERSIONS, "invalid: only {looks} looks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_replaced_leaves_memory() {
    let weights = Weights::Dense { tensors: 4, floats: 250_000 };
    check_memory(Reloads { weights: &weights, swaps: 12, step: 4, probe: false }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: 1,000 swaps of 50 MB, about half an hour"]
async fn a_thousand_swaps_of_fifty_megabytes_leave_no_more_memory_behind() {
    let weights = Weights::Dense { tensors: 5, floats: 2_500_000 };
    check_memory(Reloads { weights: &weights, swaps: 1_000, step: 20, probe: true }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: 300 swaps of a forest of 1 MB, two minutes"]
async fn three_hundred_swaps_of_a_forest_leave_no_more_memory_behind() {
    check_memory(Reloads { weights: &Weights::Trees { trees: 70, depth: 7 }, swaps: 300, step: 20, probe: true }).await;
}
