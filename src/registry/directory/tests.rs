//! What the module promises, case by case.

use super::*;

const MLMODEL: &str = "flavors: {onnx: {data: model.onnx}}\n";

/// `<root>/registry/m/…` with these files, and a cache.
fn set_up(files: &[&str]) -> (tempfile::TempDir, Directory, Cache) {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir_all(root.path().join("registry")).unwrap();
    for name in files {
        let place = root.path().join("registry/m").join(name);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(place, MLMODEL).unwrap();
    }
    let directory = Directory::new(root.path().join("registry"));
    let cache = Cache::open(root.path().join("cache")).unwrap();
    (root, directory, cache)
}

fn alias(name: &str) -> Select {
    Select::Alias(name.to_owned())
}

fn write_aliases(root: &tempfile::TempDir, text: &str) {
    fs::write(root.path().join("registry/m/aliases.toml"), text).unwrap();
}

#[track_caller]
fn check_not_found(directory: &Directory, model: &str, select: &Select) {
    let answer = directory.resolve(model, select);
    assert!(matches!(answer, Err(RegistryError::NotFound(_))), "{select:?}: {answer:?}");
}

#[test]
fn the_latest_is_the_highest_number_that_has_a_model() {
    let (_root, directory, _) =
        set_up(&["2/MLmodel", "10/MLmodel", "9/MLmodel", "11/model.onnx", "012/MLmodel", "v13/MLmodel", "14"]);
    let found = directory.resolve("m", &Select::Latest).unwrap();
    assert_eq!((found.version, found.created), (Version(10), 0));
    assert!(found.source.starts_with("file:///") && found.source.ends_with("/m/10"), "{}", found.source);
}

#[test]
fn aliases_are_lines_of_a_file() {
    let (root, directory, _) = set_up(&["1/MLmodel", "2/MLmodel"]);
    check_not_found(&directory, "m", &alias("champion"));
    write_aliases(&root, "champion = 2\nold = 1\ngone = 3\n");
    let found = directory.resolve("m", &alias("champion")).unwrap();
    assert_eq!((found.version, found.alias.as_deref()), (Version(2), Some("champion")));
    check_not_found(&directory, "m", &alias("challenger"));
    check_not_found(&directory, "m", &alias("gone"));
    for text in ["champion", "champion = \"two\"", "champion = -1", "[champion]\nversion = 2"] {
        write_aliases(&root, text);
        let answer = directory.resolve("m", &alias("champion"));
        assert!(matches!(answer, Err(RegistryError::Nonsense(_))), "{text}: {answer:?}");
    }
}

#[test]
fn what_is_not_there_is_not_found_and_a_missing_root_is_no_answer() {
    let (root, directory, _) = set_up(&["1/MLmodel", "2/model.onnx"]);
    assert!(directory.resolve("m", &Select::Version(Version(1))).is_ok());
    check_not_found(&directory, "m", &Select::Version(Version(2)));
    check_not_found(&directory, "m", &Select::Version(Version(3)));
    for model in ["n", "../registry/m", "m/1", "", ".", "/etc"] {
        check_not_found(&directory, model, &Select::Latest);
    }
    let stage = directory.resolve("m", &Select::Stage("Production".to_owned())).unwrap_err();
    assert!(stage.to_string().contains("`production = <version>` into aliases.toml"), "{stage}");
    fs::remove_dir_all(root.path().join("registry")).unwrap();
    assert!(matches!(directory.resolve("m", &Select::Latest), Err(RegistryError::Unreachable(_))));
}

#[tokio::test]
async fn a_version_is_copied_with_all_its_files() {
    let (_root, directory, cache) = set_up(&["1/MLmodel", "1/model.onnx", "1/a b/c.txt"]);
    let found = directory.resolve("m", &Select::Latest).unwrap();
    let fetched = directory.fetch(&found, &cache).await.unwrap();
    for name in ["MLmodel", "model.onnx", "a b/c.txt"] {
        assert_eq!(fs::read_to_string(fetched.folder.join(name)).unwrap(), MLMODEL);
    }
    assert_eq!(directory.fetch(&found, &cache).await.unwrap().digest, fetched.digest);
    assert_eq!(cache.get(&fetched.digest).unwrap().folder, fetched.folder);
}

#[tokio::test]
async fn links_are_followed_within_the_registry_and_not_out_of_it() {
    use std::os::unix::fs::symlink;
    let (root, directory, cache) = set_up(&["1/MLmodel", "1/model.onnx", "2/MLmodel"]);
    let version = root.path().join("registry/m/2");
    symlink("../1/model.onnx", version.join("model.onnx")).unwrap();
    let found = directory.resolve("m", &Select::Latest).unwrap();
    let fetched = directory.fetch(&found, &cache).await.unwrap();
    assert!(fs::symlink_metadata(fetched.folder.join("model.onnx")).unwrap().is_file());

    for target in ["/etc/hostname", "../../../cache", "."] {
        symlink(target, version.join("bad")).unwrap();
        let refused = directory.fetch(&found, &cache).await;
        assert!(matches!(refused, Err(RegistryError::BadArtifacts(_))), "{target}: {refused:?}");
        fs::remove_file(version.join("bad")).unwrap();
    }
}

#[tokio::test]
async fn a_folder_of_too_many_files_is_no_version() {
    let names: Vec<String> = (0..=MAX_FILES).map(|i| format!("1/f{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).chain(["1/MLmodel"]).collect();
    let (_root, directory, cache) = set_up(&names);
    let found = directory.resolve("m", &Select::Latest).unwrap();
    assert!(matches!(directory.fetch(&found, &cache).await, Err(RegistryError::BadArtifacts(_))));
}
