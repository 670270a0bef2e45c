//! What becomes of accepted samples when the process is killed, the sink is away, the disk is full or lies. Each test is a
//! function of its size, run small with the others and whole at night.

#![expect(clippy::print_stdout, reason = "children tell what they did, and figures are printed")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::num::NonZeroU32;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use modelgate::capture::Counts;
use modelgate::capture::sink::Sink;
use modelgate::model::Digest;
use parking_lot::{Condvar, Mutex};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::RowAccessor as _;
use parquet::schema::types::Type;
use sha2::{Digest as _, Sha256};
use tokio::task::block_in_place;
use tokio::time::Instant;

use crate::support::s3::{self, BUCKET, Fault, Moment, S3, SECRET};
use crate::support::samples::{Gate, all_ids, bucket, directory, noon, segments};

// Kills.

/// Clients that offer samples at once.
const CLIENTS: usize = 16;

/// Samples that are offered and not yet accepted, at most: well below the queue's bound, so that none is dropped.
const WINDOW: u64 = 400;

/// The way from the clients to the writer. Samples are numbered in the order of the queue, so that their count tells
/// which are accepted.
#[derive(Default)]
struct Line {
    state: Mutex<Progress>,
    room: Condvar,
}

#[derive(Default)]
struct Progress {
    offered: u64,
    accepted: u64,
}

impl Line {
    /// What one client does: offers samples as long as there is room.
    fn offer_for_ever(&self, offer: impl Fn(u64)) -> ! {
        loop {
            let mut state = self.state.lock();
            self.room.wait_while(&mut state, |state| state.offered - state.accepted >= WINDOW);
            offer(state.offered);
            state.offered += 1;
        }
    }

    /// Notes accepted rows, and gives back how many there are by now.
    fn accept(&self, rows: u64) -> u64 {
        let mut state = self.state.lock();
        state.accepted += rows;
        self.room.notify_all();
        state.accepted
    }
}

/// The values of a sample, by its number.
fn values(number: u64) -> (f64, String) {
    (f64::from(u32::try_from(number % 9973).unwrap()) + 0.5, format!("job {}", number % 101))
}

/// Ends a child that breaks, although its clients would go on for ever.
struct EndIfBroken;

impl Drop for EndIfBroken {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// What the child of the kill test does: sixteen clients offer samples, and it says how many are accepted and when it
/// sends them, until it is killed. Reads its folder, the bucket's address and its first number from standard input.
#[test]
#[ignore = "child: of accepted_samples_survive_kills"]
fn accepts_samples_until_it_is_killed() {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let folder = PathBuf::from(lines.next().unwrap());
    let client = s3::client(lines.next().unwrap().parse().unwrap(), SECRET);
    let first: u64 = lines.next().unwrap().parse().unwrap();
    let sink = Sink::S3 { client, bucket: BUCKET.to_owned(), prefix: String::new() };
    let mut gate = Gate::configured(&folder, sink, |config| config.flush_rows = NonZeroU32::MAX);
    let (capture, model, line) = (gate.capture.clone(), gate.model.clone(), Line::default());
    let offer = |number: u64| {
        let (age, job) = values(first + number);
        capture.offer(&model.identity.name, 1, || model.record_of(&(first + number).to_string(), age, &job));
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::scope(|threads| {
        let _end = EndIfBroken;
        for _ in 0..CLIENTS {
            threads.spawn(|| line.offer_for_ever(offer));
        }
        runtime.block_on(async {
            for minute in 0_u64.. {
                for _ in 0..5 {
                    println!("\naccepted {}.", line.accept(gate.writer.spool_once().await.unwrap()));
                }
                println!("\nflushing.");
                // Later than any back-off, so that a sink that failed is asked again.
                let now = noon() + Duration::from_mins(6 * minute);
                println!("\nflushed {}.", line.accept(gate.writer.flush_once(now, false).await.accepted));
                // Not that they add up: the clients do not rest.
                let counts = capture.counts();
                assert_eq!(counts.dropped_queue_full + counts.failed, 0);
            }
        });
    });
}

/// When the child is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// As soon as it has said how far it is.
    AtOnce,
    /// At that moment of its next object.
    At(Moment),
}

/// A child, and what it was heard to say.
struct Victim {
    child: Arc<Mutex<Child>>,
    output: Option<BufReader<ChildStdout>>,
    accepted: u64,
    last: String,
}

impl Victim {
    fn start(folder: &Path, s3: &S3, first: u64) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "durability::accepts_samples_until_it_is_killed", "--nocapture"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        writeln!(child.stdin.take().unwrap(), "{}\n{}\n{first}", folder.display(), s3.address()).unwrap();
        let output = child.stdout.take().map(BufReader::new);
        Self { child: Arc::new(Mutex::new(child)), output, accepted: 0, last: String::new() }
    }

    /// Listens until the child has accepted so many and an open segment holds the last of them, or to its end.
    fn listen(&mut self, until: u64) {
        let mut output = self.output.take().unwrap();
        let mut line = String::new();
        // A line that was cut by the kill says nothing.
        while !(self.accepted >= until && self.last == "accepted") && output.read_line(&mut line).unwrap() > 0 {
            if let Some(said) = line.strip_suffix(".\n") {
                said.split(' ').next().unwrap().clone_into(&mut self.last);
                self.accepted = said.split(' ').nth(1).map_or(self.accepted, |count| count.parse().unwrap());
            }
            line.clear();
        }
        self.output = Some(output);
    }

    /// Kills it, and hears what it said before.
    fn kill(&mut self, s3: &S3, when: When) {
        let child = Arc::clone(&self.child);
        match when {
            When::AtOnce => child.lock().kill().unwrap(),
            When::At(moment) => s3.weather().watch(move |now| {
                if now == moment {
                    child.lock().kill().unwrap();
                }
            }),
        }
        self.listen(u64::MAX);
        s3.weather().look_away();
        let ended = self.child.lock().wait().unwrap();
        assert_eq!(ended.signal(), Some(9), "the child ended by itself, after `{}`", self.last);
    }
}

/// Where the kills hit.
#[derive(Debug, Default)]
struct Hits {
    open_segment: usize,
    upload: usize,
    deletion: usize,
}

/// Segments whose object is in the bucket already.
fn undeleted(folder: &Path, objects: &[(String, Vec<u8>)]) -> usize {
    let is_stored = |(_, bytes): &&(String, Vec<u8>)| {
        let digest = &Digest(Sha256::digest(bytes).into()).hex()[..32];
        objects.iter().any(|(key, _)| key.contains(digest))
    };
    segments(folder).iter().filter(is_stored).count()
}

/// The numbers in a Parquet file, each with the values of its own.
fn numbers(object: &[u8]) -> Vec<u64> {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(object)).unwrap();
    let fields = reader.metadata().file_metadata().schema().get_fields().to_vec();
    let wanted = |field: &Arc<Type>| ["request_id", "feature_Age", "feature_Job"].contains(&field.name());
    let fields = fields.into_iter().filter(wanted).collect();
    let columns = Type::group_type_builder("sample").with_fields(fields).build().unwrap();
    let lines = reader.get_row_iter(Some(columns)).unwrap().map(Result::unwrap);
    let number = |line: parquet::record::Row| {
        let number = line.get_string(0).unwrap().parse().unwrap();
        let (age, job) = values(number);
        assert_eq!((line.get_double(1).unwrap(), line.get_string(2).unwrap()), (age, &job), "sample {number}");
        number
    };
    lines.map(number).collect()
}

/// Parquet objects: a PUT that was cut leaves other files in the bucket's folder.
fn objects(s3: &S3) -> Vec<(String, Vec<u8>)> {
    let mut objects = s3.objects();
    objects.retain(|(key, _)| Path::new(key).extension().is_some_and(|extension| extension == "parquet"));
    objects
}

/// Kills a gateway so many times while its clients write `samples` samples in all into a bucket that fails one PUT in
/// ten. No accepted sample may be missing, none be there twice, and no object.
#[expect(clippy::disallowed_methods, reason = "listens to a child while the bucket is served by another thread")]
async fn kills(kills: u64, samples: u64) {
    let folder = tempfile::tempdir().unwrap();
    let s3 = S3::start().await;
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let faults = [Fault::SlowDown, Fault::Reset, Fault::Unanswered, Fault::Unanswered];
    let mut puts = 0_usize;
    s3.weather().forecast(move || {
        puts += 1;
        puts.is_multiple_of(10).then(|| faults[puts / 10 % faults.len()])
    });
    let (mut hits, mut accepted) = (Hits::default(), BTreeMap::new());
    for kill in 0..kills {
        let first = kill * 1_000_000_000;
        let each = samples / kills;
        let when = match kill % 5 {
            0..3 => When::AtOnce,
            3 => When::At(Moment::Arrived),
            _ => When::At(Moment::Stored),
        };
        let victim = block_in_place(|| {
            let mut victim = Victim::start(folder.path(), &s3, first);
            victim.listen(each / 2 + random.u64(..=each));
            victim.kill(&s3, when);
            victim
        });
        accepted.insert(first, victim.accepted);
        hits.open_segment += usize::from(victim.last == "accepted");
        hits.upload += usize::from(when == When::At(Moment::Arrived));
        hits.deletion += usize::from(undeleted(folder.path(), &objects(&s3)) > 0);
    }
    let (asked, failed) = s3.weather().asked_and_failed();
    let total: u64 = accepted.values().sum();
    println!("{total} accepted; {asked} PUTs, {failed} of them failed; {hits:?} of {kills} kills");
    let at_least = |share: u64| usize::try_from(kills / share).unwrap();
    assert!(total >= samples / 10 * 8 && failed * 20 > asked, "the run was no trial");
    assert!(hits.open_segment >= at_least(4) && hits.upload >= at_least(10) && hits.deletion >= at_least(10));

    s3.weather().clear_up();
    let mut gate = Gate::open(
        folder.path(),
        Sink::S3 { client: s3.client(SECRET), bucket: BUCKET.to_owned(), prefix: String::new() },
    );
    assert_eq!(gate.flush().await.waiting, 0);
    let objects = objects(&s3);
    let bodies: BTreeSet<_> = objects.iter().map(|(_, body)| body).collect();
    assert_eq!(bodies.len(), objects.len(), "an object is there twice");
    let mut delivered: Vec<u64> = objects.iter().flat_map(|(_, body)| numbers(body)).collect();
    let rows = delivered.len();
    delivered.sort_unstable();
    delivered.dedup();
    assert_eq!(delivered.len(), rows, "rows are there twice");
    for (first, accepted) in accepted {
        let start = delivered.partition_point(|number| *number < first);
        let there = delivered[start..].iter().zip(first..).take_while(|(number, expected)| **number == *expected);
        let there = there.count() as u64;
        assert!(there >= accepted, "of {accepted} samples from {first} on only the first {there} are there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_samples_survive_kills() {
    kills(20, 50_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "nightly: 200 kills while 1,000,000 samples are written, a few minutes"]
async fn accepted_samples_survive_two_hundred_kills() {
    kills(200, 1_000_000).await;
}

// Outages.

/// What is wrong with the bucket.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// Nobody listens.
    Away,
    /// Every PUT fails in one way.
    With(Fault),
}

/// An outage, and what arrives meanwhile.
#[derive(Clone, Copy)]
struct Outage {
    trouble: Trouble,
    /// How often the writer looks, and how many minutes apart.
    looks: u64,
    minutes: u64,
    /// Samples between two looks, each with a text of so many bytes.
    samples: u64,
    text: usize,
    spool_max_bytes: u64,
}

/// What an outage came to: rows, and how long they took.
struct Drained {
    stored: u64,
    dropped: u64,
    spooling: Duration,
    draining: Duration,
}

impl Outage {
    async fn happen(self) -> Drained {
        let Self { trouble, looks, minutes, samples, text, spool_max_bytes } = self;
        let folder = tempfile::tempdir().unwrap();
        let mut s3 = S3::start().await;
        let mut gate = Gate::configured(folder.path(), bucket(&s3, SECRET), |config| {
            config.spool_max_bytes = spool_max_bytes;
        });
        match trouble {
            Trouble::Away => s3.stop().await,
            Trouble::With(fault) => s3.weather().forecast(move || Some(fault)),
        }
        let text = "x".repeat(text);
        let started = Instant::now();
        for look in 0..looks {
            for start in (0..samples).step_by(1000) {
                for sample in start..samples.min(start + 1000) {
                    let record = || gate.model.record_of(&format!("{look}-{sample}"), 1.5, &text);
                    gate.capture.offer(&gate.model.identity.name, 1, record);
                }
                gate.writer.spool_once().await.unwrap();
            }
            assert_eq!(gate.writer.flush_once(noon() + Duration::from_mins(minutes * look), false).await.stored, 0);
        }
        let spooling = started.elapsed();
        let (asked, _) = s3.weather().asked_and_failed();
        let most = 4 + usize::try_from(looks).unwrap();
        assert!(asked <= most, "{asked} PUTs in {looks} looks at {trouble:?}");
        let waiting = gate.counts();
        assert_eq!((waiting.stored, waiting.failed, waiting.dropped_queue_full), (0, 0, 0), "{trouble:?}: {waiting:?}");

        match trouble {
            Trouble::Away => s3.restart().await,
            Trouble::With(_) => s3.weather().clear_up(),
        }
        let (started, back) = (Instant::now(), noon() + Duration::from_mins(minutes * looks + 5));
        let drained = gate.writer.flush_once(back, false).await;
        let draining = started.elapsed();
        assert_eq!((drained.stored, drained.waiting), (waiting.pending, 0), "{trouble:?}: all leave in one flush");
        let Counts { sampled, stored, dropped_spool_full: dropped, .. } = gate.counts();
        assert_eq!((sampled, stored), (looks * samples, waiting.pending), "{trouble:?}");
        let parallel = s3.weather().most_under_way();
        assert!((2..=4).contains(&parallel), "{parallel} PUTs at once");
        let manifests = s3.everything().iter().filter(|(key, _)| key.contains("/_manifest/")).count();
        assert_eq!(manifests, 1, "one manifest lists them all");
        let rows: usize = objects(&s3).iter().map(|(_, object)| rows_in(object)).sum();
        assert_eq!(rows as u64, stored, "{trouble:?}");
        Drained { stored, dropped, spooling, draining }
    }
}

fn rows_in(object: &[u8]) -> usize {
    let reader = SerializedFileReader::new(bytes::Bytes::copy_from_slice(object)).unwrap();
    usize::try_from(reader.metadata().file_metadata().num_rows()).unwrap()
}

/// Six hours of five samples a minute.
const SIX_HOURS: Outage =
    Outage { trouble: Trouble::Away, looks: 72, minutes: 5, samples: 25, text: 10, spool_max_bytes: 1 << 30 };

#[tokio::test]
async fn six_hours_without_the_bucket_lose_nothing() {
    for trouble in [Trouble::Away, Trouble::With(Fault::Denied), Trouble::With(Fault::SlowDown)] {
        let drained = Outage { trouble, ..SIX_HOURS }.happen().await;
        assert_eq!((drained.stored, drained.dropped), (1800, 0), "{trouble:?}");
    }
    let large = Outage { trouble: Trouble::With(Fault::Reset), looks: 20, text: 1000, ..SIX_HOURS };
    assert_eq!(large.happen().await.stored, 500, "connections that end at half of the body");
}

#[tokio::test]
async fn an_outage_that_outlasts_the_spool_costs_what_finds_no_room() {
    let drained = Outage { spool_max_bytes: 100_000, ..SIX_HOURS }.happen().await;
    assert!(drained.dropped > 100 && drained.stored > 500, "{} stored, {} dropped", drained.stored, drained.dropped);
}

#[tokio::test]
#[ignore = "figure: six hours without the bucket at 100 samples of 1 KB a second, and how fast they drain"]
async fn six_hours_of_a_hundred_samples_a_second() {
    let outage = Outage { looks: 360, minutes: 1, samples: 6000, text: 900, spool_max_bytes: 8 << 30, ..SIX_HOURS };
    let Drained { stored, dropped, spooling, draining } = outage.happen().await;
    assert_eq!((stored, dropped), (6000 * 360, 0));
    let a_second = |time: Duration| f64::from(u32::try_from(stored).unwrap()) / time.as_secs_f64();
    println!("{stored} samples arrived in six hours: 100 a second; spooled at {:.0} a second", a_second(spooling));
    println!("drained at {:.0} a second, {:.0} times their arrival", a_second(draining), a_second(draining) / 100.0);
}

// A restart with a full spool.

/// Leaves so many segments of `rows` samples, and says how long the next process takes to open and to count them.
async fn restart(count: u64, rows: u64, text: usize) {
    let folder = tempfile::tempdir().unwrap();
    let mut s3 = S3::start().await;
    s3.stop().await;
    let mut gate = Gate::configured(folder.path(), bucket(&s3, SECRET), |config| {
        config.flush_rows = u32::try_from(rows).unwrap().try_into().unwrap();
        config.spool_max_bytes = 8 << 30;
    });
    let text = "x".repeat(text);
    for _ in 0..count {
        for row in 0..rows {
            let record = || gate.model.record_of(&row.to_string(), 1.5, &text);
            gate.capture.offer(&gate.model.identity.name, 1, record);
        }
        assert_eq!(gate.writer.spool_once().await, Some(rows));
    }
    drop(gate);

    let started = Instant::now();
    let mut gate = Gate::open(folder.path(), bucket(&s3, SECRET));
    let opening = started.elapsed();
    assert_eq!(gate.counts(), Counts::default(), "a segment was read before the gateway is ready");
    let before = Instant::now();
    let flushed = gate.writer.flush_once(noon(), false).await;
    let counting = before.elapsed();
    assert_eq!(flushed.waiting, count * rows);
    println!("{count} segments of {rows} samples: opened in {opening:?}, counted in {counting:?}");
}

#[tokio::test]
async fn a_full_spool_is_not_read_before_the_gateway_is_ready() {
    restart(50, 3, 10).await;
}

#[tokio::test]
#[ignore = "figure: opening a spool of 10,000 segments and 1 GiB"]
async fn opening_a_spool_of_ten_thousand_segments() {
    restart(10_000, 100, 1000).await;
}

// A full disk.

/// What the child of the next test does, with a small disk under its spool: fills it, and goes on when the sink has taken
/// what was there. Reads its folder from standard input.
#[tokio::test]
#[ignore = "child: of a_full_disk_drops_the_newest_counts_them_and_is_used_again"]
async fn fills_a_small_disk() {
    let folder = PathBuf::from(std::io::stdin().lines().next().unwrap().unwrap());
    let mut gate = Gate::open(&folder, directory(&folder));
    let batch = |number: u64| (0..100).map(move |id| format!("{number:02}-{id:02}-{}", "x".repeat(100)));
    let mut kept = Vec::new();
    for number in 0..40 {
        for id in batch(number) {
            gate.offer(&id);
        }
        match gate.writer.spool_once().await {
            Some(100) => kept.extend(batch(number)),
            accepted => assert_eq!(accepted, Some(0)),
        }
    }
    let (accepted, dropped) = (kept.len() as u64, 4000 - kept.len() as u64);
    let full = Counts { sampled: 4000, dropped_spool_full: dropped, pending: accepted, ..Counts::default() };
    assert!(accepted > 500 && dropped > 500, "{accepted} accepted, {dropped} dropped");
    assert_eq!(gate.counts(), full);
    assert_eq!(gate.flush().await.stored, accepted);
    gate.accept(batch(99)).await;
    kept.extend(batch(99));
    assert_eq!(gate.flush().await.stored, 100, "there is room again");
    assert_eq!(all_ids(&s3::samples(&folder.join("samples"))), kept);
    println!("\nthe disk was full: {accepted} accepted, {dropped} dropped.");
}

/// Runs a command among mounts of its own; `None` where that is not allowed.
fn with_private_mounts(script: &str, arguments: &[&str], input: &str) -> Option<String> {
    let unshare = |script: &str, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]).args(arguments);
        command
    };
    if !unshare("true", &[]).output().is_ok_and(|output| output.status.success()) {
        return None;
    }
    let mut child = unshare(script, arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{input}").unwrap();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    Some(said)
}

#[test]
fn a_full_disk_drops_the_newest_counts_them_and_is_used_again() {
    let folder = tempfile::tempdir().unwrap();
    let spool = folder.path().join("spool");
    fs::create_dir(&spool).unwrap();
    let program = std::env::current_exe().unwrap();
    let script = "mount -t tmpfs -o size=256k tmpfs \"$1\" && \
        exec \"$2\" --ignored --exact durability::fills_a_small_disk --nocapture";
    let arguments = [spool.to_str().unwrap(), program.to_str().unwrap()];
    match with_private_mounts(script, &arguments, folder.path().to_str().unwrap()) {
        Some(said) => assert!(said.contains("\nthe disk was full: "), "{said}"),
        None => println!("not run: this user may not mount; the injected full disk of the unit tests was"),
    }
}

// Damage.

/// Ways in which a disk may change a segment behind the gateway's back.
#[derive(Clone, Copy, Debug)]
enum Damage {
    FlipByte,
    CutTail,
    /// As much of a page as there is.
    ZeroPage,
    HugeNumber,
    Garbage,
    OtherEndian,
    Grow,
    Delete,
    SwapWithNext,
}

const DAMAGES: [Damage; 9] = [
    Damage::FlipByte,
    Damage::CutTail,
    Damage::ZeroPage,
    Damage::HugeNumber,
    Damage::Garbage,
    Damage::OtherEndian,
    Damage::Grow,
    Damage::Delete,
    Damage::SwapWithNext,
];

impl Damage {
    fn happen(self, path: &Path, next: &Path, random: &mut fastrand::Rng) {
        let mut bytes = fs::read(path).unwrap();
        let at = random.usize(..bytes.len());
        let end = bytes.len().min(at + 4096);
        match self {
            Self::FlipByte => bytes[at] ^= 1 << random.u32(..8),
            Self::CutTail => bytes.truncate(at),
            Self::ZeroPage => bytes[at..end].fill(0),
            Self::HugeNumber => bytes[at..end.min(at + 8)].fill(0xff),
            Self::Garbage => bytes[at..].fill_with(|| random.u8(..)),
            Self::OtherEndian => bytes[at..end.min(at + 4)].reverse(),
            Self::Grow => bytes.resize(bytes.len() + 100_000, 0),
            Self::Delete => return fs::remove_file(path).unwrap(),
            Self::SwapWithNext => {
                fs::write(path, fs::read(next).unwrap()).unwrap();
                return fs::write(next, bytes).unwrap();
            }
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Leaves three segments of four samples in a folder.
async fn three_segments(folder: &Path) -> Gate {
    let four = NonZeroU32::new(4).unwrap();
    let mut gate = Gate::configured(folder, directory(folder), |config| config.flush_rows = four);
    gate.accept((0..12).map(|id| format!("{id:02}"))).await;
    gate
}

/// Damages one of three segments, before or after a restart, and checks what is delivered and what is counted.
async fn check_damage(damage: Damage, restart: bool, random: &mut fastrand::Rng) {
    let folder = tempfile::tempdir().unwrap();
    let mut gate = three_segments(folder.path()).await;
    let paths: Vec<_> =
        segments(folder.path()).iter().map(|(name, _)| folder.path().join("spool").join(name)).collect();
    // Names of segments are random, so ask the first which of the samples it holds.
    let damaged = first_id(&fs::read(&paths[0]).unwrap());
    let hit = |id: &usize| id / 4 == damaged / 4 && !matches!(damage, Damage::SwapWithNext);
    let untouched: Vec<_> = (0..12).filter(|id| !hit(id)).collect();
    damage.happen(&paths[0], &paths[1], random);
    if restart {
        drop(gate);
        gate = Gate::open(folder.path(), directory(folder.path()));
    }
    gate.flush().await;

    let delivered = all_ids(&s3::samples(&folder.path().join("samples")));
    let context = format!("{damage:?}, restart {restart}: {delivered:?}");
    let distinct: BTreeSet<_> = delivered.iter().map(|id| id.parse::<usize>().unwrap()).collect();
    assert_eq!(distinct.len(), delivered.len(), "{context}");
    assert!(untouched.iter().all(|id| distinct.contains(id)), "{context}");
    let counts = gate.counts();
    assert_eq!((counts.stored, counts.pending), (delivered.len() as u64, 0), "{context} {counts:?}");
    if !restart {
        assert_eq!(counts.failed, 12 - counts.stored, "{context}");
    }
    assert!(counts.stored + counts.failed <= 12, "{context} {counts:?}");
    assert_eq!(segments(folder.path()), [], "{context}");
}

/// The number of the first sample in a segment; ids are written as their length and two digits.
fn first_id(segment: &[u8]) -> usize {
    let id = segment.windows(3).rfind(|window| window[0] == 2 && window[1..].iter().all(u8::is_ascii_digit));
    std::str::from_utf8(&id.unwrap()[1..]).unwrap().parse().unwrap()
}

/// Damages a segment so many times in each way.
async fn damage(times: usize) {
    let mut random = fastrand::Rng::with_seed(7);
    for round in 0..times {
        for damage in DAMAGES {
            check_damage(damage, round % 2 == 0, &mut random).await;
        }
    }
}

#[tokio::test]
async fn damage_costs_no_more_than_what_it_hit_and_is_counted() {
    damage(8).await;
}

#[tokio::test]
#[ignore = "nightly: nine kinds of damage, a thousand times each, some minutes"]
async fn damage_of_nine_kinds_a_thousand_times_each() {
    damage(1000).await;
}
