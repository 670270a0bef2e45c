//! The rules of the house that no compiler checks: who may name whom, and that the tree speaks of itself alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below `folder` with one of `endings`.
fn files(folder: &Path, endings: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, endings));
        } else if endings.iter().any(|ending| path.to_string_lossy().ends_with(ending)) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The arrows ARCHITECTURE.md allows: module → the modules it may name.
fn allowed() -> BTreeMap<String, BTreeSet<String>> {
    let page = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let block = page.split("```modules\n").nth(1).expect("ARCHITECTURE.md has a ```modules block");
    let block = block.split("```").next().unwrap();
    let rows = block.lines().filter(|line| !line.trim().is_empty());
    rows.map(|row| {
        let (module, may_name) = row.split_once(':').unwrap_or_else(|| panic!("`{row}` is not `module: names`"));
        (module.trim().to_owned(), may_name.split_whitespace().map(str::to_owned).collect())
    })
    .collect()
}

/// The module a source file belongs to: `src/model/session.rs` → `model`.
fn module_of(path: &Path) -> String {
    let below_src = path.strip_prefix(root().join("src")).unwrap();
    let first = below_src.components().next().unwrap().as_os_str().to_string_lossy().into_owned();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules named as `prefix::module` in `source`, also in braces: `crate::{auth, quota::Plan}`.
fn named(source: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut names = BTreeSet::new();
    for (at, _) in source.match_indices(&format!("{prefix}::")) {
        let rest = &source[at + prefix.len() + 2..];
        match rest.strip_prefix('{') {
            None => drop(names.insert(word(rest))),
            Some(inside) => {
                let mut depth = 0;
                let mut start = true;
                for (i, c) in inside.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && c.is_ascii_alphabetic() => {
                            names.insert(word(&inside[i..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names
}

/// What is compiled into the product: tests at the end of a file may reach further.
fn product_part(source: &str) -> &str {
    source.split("#[cfg(test)]").next().unwrap()
}

#[test]
fn modules_name_only_what_the_map_allows() {
    let allowed = allowed();
    let mut offences = Vec::new();
    for path in files(&root().join("src"), &[".rs"]) {
        let module = module_of(&path);
        let is_test = path.file_name().is_some_and(|name| name == "tests.rs");
        if module == "lib" || is_test {
            continue;
        }
        let source = fs::read_to_string(&path).unwrap();
        let may_name = allowed.get(&module).unwrap_or_else(|| panic!("`{module}` is not on the map"));
        let prefix = if module == "main" { "modelgate" } else { "crate" };
        for name in named(product_part(&source), prefix) {
            let is_module = allowed.contains_key(&name);
            if is_module && name != module && !may_name.contains(&name) {
                offences.push(format!("`{module}` names `{name}`; the map does not allow it ({})", path.display()));
            }
        }
    }
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}

#[test]
fn the_map_has_no_cycle_and_names_only_modules_that_exist() {
    let allowed = allowed();
    let mut placed = BTreeSet::new();
    while placed.len() < allowed.len() {
        let before = placed.len();
        for (module, may_name) in &allowed {
            assert!(may_name.iter().all(|name| allowed.contains_key(name)), "`{module}` may name an unknown module");
            if may_name.is_subset(&placed) {
                placed.insert(module.clone());
            }
        }
        let left = || allowed.keys().filter(|module| !placed.contains(*module)).cloned().collect::<Vec<_>>();
        assert!(placed.len() > before, "a cycle among {:?}", left());
    }
    for module in allowed.keys() {
        assert!(root().join(format!("src/{module}.rs")).exists(), "there is no src/{module}.rs");
    }
}

#[test]
fn the_scan_sees_names_in_every_form() {
    let source = "use crate::auth::Caller;\nuse crate::{clock, model::{Model, Version}, quota};\nfn f(c: crate::config::Config) {}";
    let expect: BTreeSet<_> = ["auth", "clock", "model", "quota", "config"].map(str::to_owned).into();
    assert_eq!(named(source, "crate"), expect);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let mut silent = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in files(&root().join(folder), &[".rs"]) {
            let source = fs::read_to_string(&path).unwrap();
            if !source.starts_with("//! ") || source.lines().next().is_some_and(|line| line.len() < 12) {
                silent.push(path.display().to_string());
            }
        }
    }
    assert!(silent.is_empty(), "without a first line that says what they are for:\n{}", silent.join("\n"));
}

#[test]
fn every_ignored_test_says_which_run_is_its_own() {
    let kinds = ["nightly: ", "figure: ", "child: "].map(|kind| format!("#[ignore = \"{kind}"));
    let mut offences = Vec::new();
    for path in ["src", "tests"].iter().flat_map(|folder| files(&root().join(folder), &[".rs"])) {
        let source = fs::read_to_string(&path).unwrap();
        for line in source.lines().map(str::trim_start).filter(|line| line.starts_with("#[ignore")) {
            if !kinds.iter().any(|kind| line.starts_with(kind)) {
                offences.push(format!("{line} ({})", path.display()));
            }
        }
    }
    assert!(offences.is_empty(), "CONTRIBUTING.md has the kinds there are:\n{}", offences.join("\n"));
}
