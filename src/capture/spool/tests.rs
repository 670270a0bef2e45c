//! The folder of segments: when they close, what fits, and every failure of the disk in turn.

use std::fs::{self, OpenOptions};
use std::num::NonZeroU32;

use tempfile::TempDir;

use crate::capture::disk::Local;
use crate::capture::disk::simulated::SimulatedDisk;
use crate::capture::segment::{self, Contents};
use crate::capture::tests::{config, noon, version};

use super::*;

fn spool(folder: &TempDir, change: impl FnOnce(&mut Config)) -> Spool {
    let mut config = config(folder.path());
    change(&mut config);
    Spool::open(Arc::new(Local), &config, Some(Secret::of(&[7; 32])), 1).unwrap()
}

/// One on a disk that does what the test wants.
fn simulated(disk: &SimulatedDisk) -> Spool {
    Spool::open(Arc::new(disk.clone()), &config(Path::new("/data")), None, 1).unwrap()
}

fn records(ids: std::ops::Range<usize>) -> impl Iterator<Item = Record> {
    let version = version(3);
    ids.map(move |id| version.record(&format!("r{id}"), 1, "Doctor", noon()))
}

fn contents(segment: &Closed) -> Contents {
    contents_on(&Local, segment)
}

fn contents_on(disk: &dyn Disk, segment: &Closed) -> Contents {
    segment::read(&read(disk, segment).unwrap()).unwrap()
}

fn ids(segments: &[Closed]) -> Vec<String> {
    ids_on(&Local, segments)
}

fn ids_on(disk: &dyn Disk, segments: &[Closed]) -> Vec<String> {
    let samples = segments.iter().flat_map(|segment| contents_on(disk, segment).samples);
    samples.map(|sample| sample.request_id.into()).collect()
}

fn accepted(rows: u64) -> Appended {
    Appended { accepted: rows, ..Appended::default() }
}

fn rows(spool: &Spool) -> Vec<Option<u64>> {
    spool.closed().iter().map(|segment| segment.rows).collect()
}

#[test]
fn a_segment_is_closed_at_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |config| config.flush_rows = NonZeroU32::new(10).unwrap());
    assert_eq!(spool.append(records(0..25)), accepted(25));
    assert_eq!(rows(&spool), [Some(10), Some(10)]);
    assert_eq!(spool.append(records(25..30)), accepted(5));
    assert_eq!(rows(&spool), [Some(10), Some(10), Some(10)]);
    assert_eq!(ids(spool.closed()), (0..30).map(|id| format!("r{id}")).collect::<Vec<_>>());
}

#[test]
fn a_segment_is_closed_at_its_age() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |_| ());
    spool.append(records(0..3));
    spool.close_due(noon() + Duration::from_secs(59), false);
    assert_eq!(rows(&spool), []);
    spool.close_due(noon() + Duration::from_mins(1), false);
    assert_eq!(rows(&spool), [Some(3)]);
}

#[test]
fn a_segment_from_the_future_is_closed_because_the_clock_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |_| ());
    spool.append(records(0..3));
    spool.close_due(noon() - Duration::from_hours(1), false);
    assert_eq!(rows(&spool), [Some(3)]);
}

#[test]
fn versions_and_hours_have_segments_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |_| ());
    let later = noon() + Duration::from_hours(1);
    spool.append([
        version(3).record("a", 1, "Doctor", noon()),
        version(4).record("b", 2, "Doctor", noon()),
        version(3).record("c", 3, "Doctor", later),
        version(3).record("d", 4, "Doctor", noon()),
    ]);
    spool.close_due(noon(), true);
    assert_eq!(rows(&spool), [Some(5), Some(2), Some(3)]);
}

#[test]
fn open_segments_are_bounded() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |_| ());
    spool.append((0..70).map(|number| version(number).record("r", 1, "Doctor", noon())));
    assert_eq!(spool.open.len(), OPEN_MAX);
    let versions = spool.closed().iter().map(|segment| contents(segment).header.schema.version);
    assert_eq!(versions.collect::<Vec<_>>(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn a_large_segment_is_closed_whatever_its_rows() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |_| ());
    let large = version(3).record("r", 1000, &"x".repeat(4000), noon());
    spool.append([large.clone()]);
    assert_eq!(rows(&spool), []);
    spool.append([large.clone(), large]);
    assert_eq!(rows(&spool), [Some(3000)]);
}

#[test]
fn what_finds_no_room_is_dropped_and_there_is_room_again_after_a_segment_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |config| config.spool_max_bytes = 2000);
    let appended = spool.append(records(0..100));
    assert!(appended.accepted > 10, "{appended:?}");
    assert_eq!(appended, Appended { accepted: appended.accepted, no_room: 100 - appended.accepted, failed: 0 });
    spool.close_due(noon(), true);
    let segment = spool.closed()[0].clone();
    assert!((1900..=2000).contains(&fs::metadata(&segment.path).unwrap().len()));
    assert_eq!(spool.append(records(0..1)).no_room, 1);
    assert_eq!(spool.remove(&segment.path).unwrap().unwrap().rows, Some(appended.accepted));
    assert_eq!(spool.append(records(0..1)), accepted(1));
}

#[test]
fn the_next_process_finds_closed_and_open_segments_the_oldest_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = spool(&folder, |_| ());
    first.append([version(3).record("late", 1, "Doctor", noon() + Duration::from_hours(2))]);
    first.append([version(3).record("early", 1, "Doctor", noon())]);
    drop(first);
    fs::write(folder.path().join("spool/readme.txt"), "no segment").unwrap();
    fs::write(folder.path().join("spool/0-0.v2.segment"), "of a later gateway").unwrap();
    let second = spool(&folder, |_| ());
    assert_eq!(ids(second.closed()), ["early", "late"]);
    assert_eq!(rows(&second), [None, None]);
    assert!(second.closed().iter().all(|segment| id_in_name(&segment.path) == Some(contents(segment).header.id)));
}

#[test]
fn a_folder_in_use_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let _first = spool(&folder, |_| ());
    let second = Spool::open(Arc::new(Local), &config(folder.path()), None, 1);
    assert_eq!(second.unwrap_err().kind(), io::ErrorKind::ResourceBusy);
}

#[test]
fn of_a_file_that_grew_beyond_all_segments_only_the_start_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |_| ());
    spool.append(records(0..3));
    spool.close_due(noon(), true);
    let mut segment = spool.closed()[0].clone();
    // A hole: it takes no space on the disk.
    OpenOptions::new().write(true).open(&segment.path).unwrap().set_len(1 << 40).unwrap();
    segment.bytes = 1 << 40;
    assert_eq!(read(&Local, &segment).unwrap().len() as u64, READ_MAX_BYTES);
}

#[track_caller]
fn check_protected(protect: Policy) {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = spool(&folder, |config| config.protect = protect);
    spool.append(records(0..3));
    // The same segment goes on taking records of the version.
    spool.append(records(3..6));
    spool.close_due(noon(), true);
    assert_eq!(rows(&spool), [Some(6)]);
    let bytes = read(&Local, &spool.closed()[0]).unwrap();
    assert!(!bytes.windows(6).any(|window| window == b"Doctor"));
    assert!(!bytes.windows(8).any(|window| window == 40.5_f64.to_le_bytes()));
}

#[test]
fn protected_values_are_not_on_the_disk() {
    let both = || vec!["Job".to_owned(), "Age".to_owned()];
    check_protected(Policy { redact: both(), ..Policy::default() });
    check_protected(Policy { hash: both(), ..Policy::default() });
    let bucket = [("Job".to_owned(), 10.0), ("Age".to_owned(), 10.0)].into();
    check_protected(Policy { bucket, ..Policy::default() });
}

/// An fsync that failed is not asked again: the kernel may have forgotten the lost page, and would say yes.
#[test]
fn a_failed_fsync_abandons_the_segment_and_writes_the_batch_elsewhere() {
    let disk = SimulatedDisk::new(1);
    let mut spool = simulated(&disk);
    spool.append(records(0..4));
    let accepted_bytes = spool.open[0].bytes();
    // The write, and then the fsync of an open segment.
    disk.fail(1..2, io::ErrorKind::Other);
    assert_eq!(spool.append(records(4..8)), accepted(4));
    assert!(disk.failed());
    spool.close_due(noon(), true);
    let [abandoned, other] = spool.closed() else { panic!("{:?}", spool.closed()) };
    assert_eq!(ids_on(&disk, std::slice::from_ref(abandoned)), ["r0", "r1", "r2", "r3"]);
    assert_eq!(ids_on(&disk, std::slice::from_ref(other)), ["r4", "r5", "r6", "r7"]);
    assert_eq!(disk.size(&abandoned.path).unwrap(), Some(accepted_bytes), "nothing of the batch is left in it");
    assert_ne!(contents_on(&disk, abandoned).header.id, contents_on(&disk, other).header.id);
}

/// Lets the disk fail a batch for good, and the next one not.
#[track_caller]
fn check_lost(kind: io::ErrorKind, expected: Appended) {
    let disk = SimulatedDisk::new(1);
    let mut spool = simulated(&disk);
    spool.append(records(0..4));
    // The write, the cut, and the other file.
    disk.fail(0..3, kind);
    assert_eq!(spool.append(records(4..8)), expected);
    assert!(disk.failed());
    assert_eq!(spool.append(records(8..12)), accepted(4));
    spool.close_due(noon(), true);
    assert_eq!(ids_on(&disk, spool.closed()), ["r0", "r1", "r2", "r3", "r8", "r9", "r10", "r11"]);
}

#[test]
fn a_batch_that_fails_twice_is_counted() {
    check_lost(io::ErrorKind::Other, Appended { failed: 4, ..Appended::default() });
}

#[test]
fn a_full_disk_is_no_room() {
    check_lost(io::ErrorKind::StorageFull, Appended { no_room: 4, ..Appended::default() });
}
