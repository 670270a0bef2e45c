//! What the module promises, case by case.

use std::collections::BTreeMap;

use super::*;
use crate::registry::RegistryError;

struct Fixture {
    cache: Cache,
    _folder: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { cache: Cache::open(folder.path().join("cache")).unwrap(), _folder: folder }
    }

    async fn store(&self, files: &[(&str, &[u8])]) -> Fetched {
        let mut staging = self.cache.stage(1 << 20).unwrap();
        for (name, bytes) in files {
            let mut incoming = staging.receive(name.parse().unwrap()).await.unwrap();
            incoming.write(bytes).await.unwrap();
            staging.keep(incoming).await.unwrap();
        }
        staging.seal().await.unwrap()
    }

    fn stored(&self) -> Vec<String> {
        let entries = fs::read_dir(self.cache.versions()).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn incoming(&self) -> usize {
        fs::read_dir(self.cache.incoming()).unwrap().count()
    }
}

fn name(text: &str) -> ModelName {
    text.parse().unwrap()
}

fn found(version: u64) -> Found {
    Found {
        registered_model: "any / name é".to_owned(),
        version: Version(version),
        alias: Some("champion".into()),
        source: "models:/m-1".to_owned(),
        created: 1_795_190_445_155,
        tags: BTreeMap::from([("a".to_owned(), "b".to_owned())]),
    }
}

const FILES: &[(&str, &[u8])] = &[("MLmodel", b"abc"), ("sub/model.onnx", b"")];

#[tokio::test]
async fn the_digest_is_that_of_sorted_lines_of_sha256sum() {
    let fixture = Fixture::new();
    let fetched = fixture.store(FILES).await;
    // printf 'ba7816bf…15ad  MLmodel\ne3b0c442…b855  sub/model.onnx\n' | sha256sum
    let lines = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  MLmodel\n\
                 e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  sub/model.onnx\n";
    assert_eq!(fetched.digest.hex(), hex(&Sha256::digest(lines)));
    assert_eq!(fs::read(fetched.folder.join("MLmodel")).unwrap(), b"abc");
    let turned: Vec<_> = FILES.iter().copied().rev().collect();
    assert_eq!(fixture.store(&turned).await.digest, fetched.digest);
    assert_eq!(fetched.digest.hex().parse(), Ok(fetched.digest));
    let renamed = fixture.store(&[("MLmodel", b"abc"), ("model.onnx", b"")]).await;
    assert_ne!(renamed.digest, fetched.digest);
}

#[tokio::test]
async fn the_same_bytes_may_arrive_together() {
    let fixture = Fixture::new();
    let all = futures_util::future::join_all((0..16).map(|_| fixture.store(FILES))).await;
    assert!(all.iter().all(|fetched| fetched.digest == all[0].digest));
    assert_eq!(fixture.stored().len(), 1);
}

#[tokio::test]
async fn what_is_remembered_comes_back_equal() {
    let fixture = Fixture::new();
    assert!(fixture.cache.last_good(&name("m")).is_none());
    let fetched = fixture.store(FILES).await;
    for version in [1, 2] {
        fixture.cache.remember(&name("m"), &found(version), &fetched).unwrap();
    }
    let reopened = Cache::open(fixture.cache.root.clone()).unwrap();
    let (again, from_disk) = reopened.last_good(&name("m")).unwrap();
    assert_eq!(again, found(2));
    assert_eq!((from_disk.digest, from_disk.folder), (fetched.digest, fetched.folder));
    assert!(reopened.last_good(&name("other")).is_none());
}

#[tokio::test]
async fn a_damaged_copy_is_never_handed_out_and_is_fetched_again() {
    type Damage = fn(&Path);
    let damages: [Damage; 7] = [
        |files| fs::write(files.join("MLmodel"), b"abd").unwrap(),
        |files| fs::write(files.join("MLmodel"), b"abcd").unwrap(),
        |files| fs::remove_file(files.join("sub/model.onnx")).unwrap(),
        |files| fs::remove_file(files.join("../manifest.json")).unwrap(),
        |files| fs::write(files.join("../manifest.json"), b"{\"files\": []}").unwrap(),
        |files| fs::write(files.join("../manifest.json"), b"{\"files\": [{\"path\": \"../../x\"").unwrap(),
        |files| {
            fs::rename(files.join("MLmodel"), files.join("moved")).unwrap();
            std::os::unix::fs::symlink("moved", files.join("MLmodel")).unwrap();
        },
    ];
    for (i, damage) in damages.into_iter().enumerate() {
        let fixture = Fixture::new();
        let fetched = fixture.store(FILES).await;
        fixture.cache.remember(&name("m"), &found(1), &fetched).unwrap();
        damage(&fetched.folder);
        assert!(fixture.cache.get(&fetched.digest).is_none(), "damage {i}");
        assert!(fixture.cache.last_good(&name("m")).is_none(), "damage {i}");
        let again = fixture.store(FILES).await;
        assert_eq!(again.digest, fetched.digest);
        assert!(fixture.cache.last_good(&name("m")).is_some(), "damage {i}");
    }
}

#[tokio::test]
async fn a_manifest_cannot_point_outside_its_folder() {
    let fixture = Fixture::new();
    let manifest = Manifest {
        files: vec![ManifestFile { path: "../secret".to_owned(), size: 3, sha256: hex(&Sha256::digest(b"abc")) }],
    };
    let digest = manifest.digest();
    let home = fixture.cache.home(&digest);
    fs::create_dir_all(home.join("files")).unwrap();
    fs::write(home.join("secret"), b"abc").unwrap();
    write_note(&home.join("manifest.json"), &manifest).unwrap();
    assert!(fixture.cache.get(&digest).is_none());
}

#[tokio::test]
async fn a_note_that_makes_no_sense_is_no_last_good_version() {
    let fixture = Fixture::new();
    for text in ["", "{}", "[", "{\"digest\": \"../../x\"}"] {
        fs::write(fixture.cache.last_good_note(&name("m")), text).unwrap();
        assert!(fixture.cache.last_good(&name("m")).is_none(), "{text}");
    }
    for digest in ["", "../..", &"é".repeat(32), &"+1".repeat(32), &"a".repeat(63)] {
        assert_eq!(digest.parse::<Digest>().ok(), None);
    }
}

#[tokio::test]
async fn what_was_given_up_is_removed_and_what_was_interrupted_is_swept() {
    let fixture = Fixture::new();
    let staging = fixture.cache.stage(100).unwrap();
    assert_eq!(fixture.incoming(), 1);
    drop(staging);
    assert_eq!(fixture.incoming(), 0);
    let staging = fixture.cache.stage(100).unwrap();
    std::mem::forget(staging);
    Cache::open(fixture.cache.root.clone()).unwrap();
    assert_eq!(fixture.incoming(), 0);
    assert!(fixture.stored().is_empty());
}

#[tokio::test]
async fn a_version_has_so_many_bytes_and_files_and_no_more() {
    let fixture = Fixture::new();
    let mut staging = fixture.cache.stage(10).unwrap();
    for (name, bytes) in [("a", &b"12345"[..]), ("b", b"12345")] {
        let mut incoming = staging.receive(name.parse().unwrap()).await.unwrap();
        incoming.write(bytes).await.unwrap();
        staging.keep(incoming).await.unwrap();
    }
    let mut one_more = staging.receive("c".parse().unwrap()).await.unwrap();
    assert!(matches!(one_more.write(b"1").await, Err(RegistryError::BadArtifacts(_))));
    assert!(matches!(staging.receive("a".parse().unwrap()).await, Err(RegistryError::Disk(_))));
    for i in staging_len(&staging)..staging::MAX_FILES {
        let incoming = staging.receive(format!("f{i}").parse().unwrap()).await.unwrap();
        staging.keep(incoming).await.unwrap();
    }
    assert!(matches!(staging.receive("last".parse().unwrap()).await, Err(RegistryError::BadArtifacts(_))));
}

fn staging_len(staging: &Staging) -> usize {
    fs::read_dir(staging.place(&"x".parse().unwrap()).parent().unwrap()).unwrap().count() - 1
}

#[tokio::test]
async fn a_file_taken_back_in_part_is_hashed_as_it_ends() {
    let fixture = Fixture::new();
    let mut staging = fixture.cache.stage(100).unwrap();
    let mut incoming = staging.receive("MLmodel".parse().unwrap()).await.unwrap();
    incoming.write(b"abXXXX").await.unwrap();
    incoming.rewind(2).await.unwrap();
    assert_eq!((incoming.len(), incoming.tail(10).await.unwrap()), (2, b"ab".to_vec()));
    incoming.write(b"c").await.unwrap();
    assert_eq!(incoming.tail(2).await.unwrap(), b"bc");
    staging.keep(incoming).await.unwrap();
    let incoming = staging.receive("sub/model.onnx".parse().unwrap()).await.unwrap();
    staging.keep(incoming).await.unwrap();
    assert_eq!(staging.seal().await.unwrap().digest, fixture.store(FILES).await.digest);
}

#[tokio::test]
async fn what_is_referred_to_and_the_newest_of_the_rest_are_retained() {
    let fixture = Fixture::new();
    let mut all = Vec::new();
    for i in 0..6_u8 {
        let fetched = fixture.store(&[("MLmodel", &[i])]).await;
        // Folders made within one tick of the file system's clock have no order.
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000 + u64::from(i));
        File::open(fixture.cache.home(&fetched.digest)).unwrap().set_modified(time).unwrap();
        all.push(fetched);
    }
    fixture.cache.remember(&name("m"), &found(1), &all[0]).unwrap();
    fixture.cache.retain(&[all[1].digest]).unwrap();
    let mut left = fixture.stored();
    left.sort_unstable();
    let mut expect: Vec<_> = [0, 1, 3, 4, 5].map(|i: usize| all[i].digest.hex()).into();
    expect.sort_unstable();
    assert_eq!(left, expect);
    assert!(fixture.cache.last_good(&name("m")).is_some());
}

#[tokio::test]
async fn a_version_without_its_manifest_never_has_its_final_name() {
    let fixture = Fixture::new();
    let mut staging = fixture.cache.stage(100).unwrap();
    let incoming = staging.receive("MLmodel".parse().unwrap()).await.unwrap();
    staging.keep(incoming).await.unwrap();
    // A manifest cannot be put in the place of a folder.
    let files = staging.place(&"x".parse().unwrap()).parent().unwrap().to_owned();
    fs::create_dir(files.parent().unwrap().join("manifest.json")).unwrap();
    assert!(matches!(staging.seal().await, Err(RegistryError::Disk(_))));
    assert!(fixture.stored().is_empty());
    assert_eq!(fixture.incoming(), 0);
}

#[tokio::test]
async fn a_note_is_replaced_and_never_written_over() {
    let fixture = Fixture::new();
    let fetched = fixture.store(FILES).await;
    fixture.cache.remember(&name("m"), &found(1), &fetched).unwrap();
    let mut before = File::open(fixture.cache.last_good_note(&name("m"))).unwrap();
    fixture.cache.remember(&name("m"), &found(2), &fetched).unwrap();
    let mut text = String::new();
    before.read_to_string(&mut text).unwrap();
    assert_eq!(
        serde_json::from_str::<LastGood>(&text).unwrap().version,
        1,
        "whoever was reading it reads it to its end"
    );
    assert_eq!(fs::read_dir(fixture.cache.last_good_notes()).unwrap().count(), 1);
}
