//! What becomes of accepted samples when the process is killed or the power goes at any moment, and when the disk fails:
//! the whole way from the queue to the folder of objects, on a disk in memory. Each test is a function of its size, run
//! small with the others and whole at night.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;

use tokio::runtime::Runtime;

use super::disk::simulated::{End, SimulatedDisk};
use super::sink::{Directory, Sink};
use super::tests::{Version3, config, noon, version};
use super::*;

/// A gateway's machine, the samples it was offered, and what it said of them.
struct Machine {
    disk: SimulatedDisk,
    random: fastrand::Rng,
    versions: [Version3; 2],
    now: Timestamp,
    /// The samples of every batch, and how many of them were accepted.
    batches: Vec<(Range<u64>, u64)>,
}

/// One process of it.
struct Gateway {
    capture: Capture,
    writer: Writer,
}

impl Machine {
    fn new(seed: u64) -> Self {
        Self {
            disk: SimulatedDisk::new(seed),
            random: fastrand::Rng::with_seed(seed),
            versions: [version(3), version(4)],
            now: noon(),
            batches: Vec::new(),
        }
    }

    fn start(&mut self) -> Result<Gateway, OpenError> {
        let config =
            Config { format: Format::Csv, flush_rows: NonZeroU32::new(5).unwrap(), ..config(Path::new("/data")) };
        let disk: Arc<dyn Disk> = Arc::new(self.disk.clone());
        let sink = Sink::Directory(Directory::new("/sink/samples".into(), Arc::clone(&disk)));
        let (capture, writer) = open_on(disk, config, sink, &mut getrandom::fill, self.random.u64(..))?;
        Ok(Gateway { capture, writer })
    }

    /// What a gateway does, one thing after the other.
    async fn step(&mut self, gateway: &mut Gateway) {
        match self.random.u8(..8) {
            0..5 => self.offer(gateway).await,
            5 | 6 => {
                // Later than a segment's age and any back-off, or not.
                self.now += Duration::from_mins(self.random.u64(..2) * 6);
                gateway.flush(self.now, false).await;
            }
            _ => gateway.flush(self.now, true).await,
        }
    }

    /// Offers some samples of one version and hour.
    async fn offer(&mut self, gateway: &mut Gateway) {
        let first = self.batches.last().map_or(0, |(ids, _)| ids.end);
        let ids = first..first + self.random.u64(1..4);
        let time = self.now + Duration::from_hours(self.random.u64(..2));
        let version = &self.versions[self.random.usize(..2)];
        for id in ids.clone() {
            gateway.capture.offer(&version.model.name, 1, || version.record(&id.to_string(), 1, "Doctor", time));
        }
        let accepted = gateway.writer.spool_once().await.unwrap();
        self.batches.push((ids, accepted));
        gateway.counts();
    }

    /// Delivers all there is, in a process that nothing happens to, and says what it counted.
    async fn deliver(&mut self) -> Counts {
        let mut gateway = self.start().expect("a disk that works is no reason not to start");
        gateway.flush(self.now, true).await;
        let counts = gateway.counts();
        assert_eq!((counts.pending, counts.dropped_queue_full, counts.dropped_spool_full), (0, 0, 0), "{counts:?}");
        let left = self.disk.files(Path::new("/data"));
        assert_eq!(left, [], "the spool is empty");
        counts
    }

    /// The bodies of all objects.
    fn objects(&self) -> Vec<String> {
        let mut files = self.disk.files(Path::new("/sink"));
        files.retain(|(path, _)| path.extension().is_some_and(|extension| extension == "csv"));
        files.into_iter().map(|(_, body)| String::from_utf8(body).unwrap()).collect()
    }

    /// How often every sample is in the objects.
    fn delivered(&self) -> BTreeMap<u64, u64> {
        let mut times = BTreeMap::new();
        for object in self.objects() {
            for line in object.lines().skip(1) {
                *times.entry(line.split(',').next().unwrap().parse().unwrap()).or_default() += 1;
            }
        }
        times
    }

    fn has_no_row_twice(&self) -> bool {
        self.delivered().values().all(|times| *times == 1)
    }

    /// Checks that no accepted sample is missing, and none there that was not offered. Gives back how often each is.
    fn check(&self, context: &str) -> BTreeMap<u64, u64> {
        let delivered = self.delivered();
        for (ids, accepted) in &self.batches {
            let there = delivered.range(ids.clone()).count() as u64;
            assert!(there >= *accepted, "{context}: of {ids:?} {accepted} were accepted, and {there} are there");
        }
        let offered = self.batches.last().map_or(0, |(ids, _)| ids.end);
        assert_eq!(delivered.range(offered..).next(), None, "{context}");
        delivered
    }
}

impl Gateway {
    async fn flush(&mut self, now: Timestamp, all: bool) {
        self.writer.flush_once(now, all).await;
        self.counts();
    }

    fn counts(&self) -> Counts {
        let counts = self.capture.counts();
        let Counts { sampled, stored, dropped_queue_full, dropped_spool_full, failed, pending } = counts;
        assert_eq!(sampled, stored + dropped_queue_full + dropped_spool_full + failed + pending, "{counts:?}");
        counts
    }
}

/// One blocking thread: what a seed does is then the same each time, but for which of two objects is ready first.
fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().max_blocking_threads(1).build().unwrap()
}

/// Ends so many processes over the same disk, each at some call, and checks what is there afterwards. The calls that were
/// hit are added to `hits`.
async fn crash(seed: u64, ends: u64, hits: &mut BTreeMap<String, u64>) {
    let mut machine = Machine::new(seed);
    // Every other disk fails now and then, too.
    let is_failing = seed % 2 == 1;
    for _ in 0..ends {
        machine.disk.end_at(machine.random.u64(..80));
        if is_failing {
            let first = machine.random.u64(..40);
            machine.disk.fail(first..first + machine.random.u64(..4), io::ErrorKind::Other);
        }
        if let Ok(mut gateway) = machine.start() {
            while !machine.disk.has_ended() {
                machine.step(&mut gateway).await;
            }
        }
        let how = if machine.random.u8(..3) == 0 { End::Kill } else { End::PowerCut };
        if let Some((call, path)) = machine.disk.end(how) {
            let place = if path.starts_with("/data") { "spool" } else { "sink" };
            *hits.entry(format!("{call} in the {place}")).or_default() += 1;
        }
    }
    machine.deliver().await;
    let delivered = machine.check(&format!("seed {seed}"));
    // After a failed write a batch may stand in two segments. Else there is neither a row twice nor an object.
    assert!(is_failing || machine.has_no_row_twice(), "seed {seed}: rows are there twice: {delivered:?}");
}

/// So many disks, and four ends on each.
fn crashes(disks: u64) {
    let (runtime, mut hits) = (runtime(), BTreeMap::new());
    for seed in 0..disks {
        runtime.block_on(crash(seed, 4, &mut hits));
    }
    println!("{} ends: {hits:?}", hits.values().sum::<u64>());
    let orders = [
        ["append in the spool", "sync in the spool", "sync_folder in the spool", "remove in the spool"],
        ["append in the sink", "sync in the sink", "rename in the sink", "sync_folder in the sink"],
    ];
    for call in orders.as_flattened() {
        assert!(hits.get(*call).is_some_and(|hits| *hits >= disks / 20), "{call}: {hits:?}");
    }
}

#[test]
fn an_end_at_any_moment_loses_nothing_that_was_accepted() {
    crashes(550);
}

#[test]
#[ignore = "nightly: 100,000 ends of a process at any call of the disk, some minutes"]
fn a_hundred_thousand_ends_lose_nothing_that_was_accepted() {
    crashes(27_000);
}

/// Lets a batch go wrong after one that was accepted, and cuts the power at every call of what the `next` process, or the
/// same, does then. Whatever came back, nothing that was accepted is missing and no row there twice.
fn check_once(goes_wrong: impl Fn(&SimulatedDisk), next: impl Fn(&mut Machine, Gateway) -> Gateway) {
    let runtime = runtime();
    for end in 0..70 {
        for seed in 0..5 {
            let mut machine = Machine::new(seed);
            runtime.block_on(async {
                let mut gateway = machine.start().unwrap();
                let draw = machine.random.clone();
                machine.offer(&mut gateway).await;
                goes_wrong(&machine.disk);
                // The same version and hour, and so the same segment.
                machine.random = draw;
                machine.offer(&mut gateway).await;
                let mut gateway = next(&mut machine, gateway);
                machine.disk.end_at(end);
                gateway.flush(machine.now, true).await;
                drop(gateway);
                machine.disk.end(End::PowerCut);
                machine.deliver().await;
                let delivered = machine.check(&format!("call {end}, seed {seed}"));
                assert!(machine.has_no_row_twice(), "call {end}, seed {seed}: {delivered:?}");
            });
        }
    }
}

#[test]
fn what_a_killed_process_did_not_sync_is_there_once_or_not() {
    // The write happens, and the sync does not.
    let kill = |machine: &mut Machine, gateway: Gateway| {
        drop(gateway);
        machine.disk.end(End::Kill);
        machine.start().unwrap()
    };
    check_once(|disk| disk.end_at(1), kill);
}

#[test]
fn a_batch_whose_sync_failed_is_there_once() {
    check_once(|disk| disk.fail(1..2, io::ErrorKind::Other), |_, gateway| gateway);
}

/// Does so many steps with the `nth` call of the disk failing, and cuts the power. `false` if there are fewer calls.
async fn fail_one(nth: u64, steps: u64) -> bool {
    let mut machine = Machine::new(7);
    machine.disk.fail(nth..nth + 1, io::ErrorKind::Other);
    let mut gateway = match machine.start() {
        Ok(gateway) => gateway,
        Err(_) => machine.start().expect("one failure does not keep it from starting again"),
    };
    for _ in 0..steps {
        machine.step(&mut gateway).await;
    }
    let happened = machine.disk.failed();
    // Once for what is open, and once more for what was refused.
    for _ in 0..2 {
        gateway.flush(machine.now, true).await;
    }
    let (counts, context) = (gateway.counts(), format!("call {nth}"));
    let offered = machine.batches.last().map_or(0, |(ids, _)| ids.end);
    assert!(
        machine.batches.iter().all(|(ids, accepted)| ids.end - ids.start == *accepted),
        "{context}: a batch is lost"
    );
    assert_eq!((counts.sampled, counts.pending), (offered, 0), "{context}");
    assert_eq!(counts.stored, machine.delivered().values().sum::<u64>(), "{context}: {counts:?}");
    assert!(counts.failed <= 5, "{context}: more than a segment that could not be read is given up: {counts:?}");
    drop(gateway);
    machine.disk.end(End::PowerCut);
    let next = machine.deliver().await;
    let delivered = machine.check(&context);
    assert_eq!(delivered.len() as u64, offered, "{context}");
    assert!(
        next.stored >= counts.failed,
        "{context}: what could not be read once is read by the next process: {next:?}"
    );
    happened
}

/// Fails every call of the disk in turn, one a run.
fn fail_each(steps: u64) {
    let runtime = runtime();
    let mut calls = 0;
    while runtime.block_on(fail_one(calls, steps)) {
        calls += 1;
    }
    println!("{calls} calls in {steps} steps, each of which has failed once");
    assert!(calls > steps, "{calls} calls");
}

#[test]
fn any_one_failure_of_the_disk_loses_nothing_that_was_accepted() {
    fail_each(20);
}

#[test]
#[ignore = "nightly: every call of the disk fails once, thousands of them in a longer script, some minutes"]
fn any_one_failure_of_the_disk_in_a_longer_script_loses_nothing_that_was_accepted() {
    fail_each(200);
}
