//! The module map of `builder-core/src/lib.rs` is true: no module uses another that its row does not name, `unsafe` code
//! and raw system calls are in `sandbox::sys` alone, and crates that have one user have one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Crates that only these directories or files of `builder-core/src` may name.
const SINGLE_USERS: [(&str, &[&str]); 5] = [
    ("reqwest", &["http"]),
    ("gix", &["git"]),
    ("gix_transport", &["git"]),
    ("libc", &["sandbox"]),
    ("tokio", &["http"]),
];

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../builder-core/src")
}

/// All `.rs` files below `top`, by path from there.
fn files(top: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory).expect("a directory of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("UTF-8 sources");
                found.insert(path.strip_prefix(top).expect("below the top").to_owned(), text);
            }
        }
    }
    found
}

/// The table in the crate's documentation: module → what it may use.
fn map() -> BTreeMap<String, BTreeSet<String>> {
    let text = fs::read_to_string(sources().join("lib.rs")).expect("lib.rs");
    let mut map = BTreeMap::new();
    for row in text.lines().filter_map(|line| line.strip_prefix("//! | [`")) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let names = |cell: &str| -> Vec<String> {
            let words = cell.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        for module in names(cells[0]) {
            map.insert(module, names(cells.get(2).copied().unwrap_or_default()).into_iter().collect());
        }
    }
    assert!(map.len() > 15, "the table was not found: {map:?}");
    map
}

/// The part of a file that is no test: tests may use what they like.
fn without_tests(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn is_test(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    name == "tests"
        || name.ends_with("_tests")
        || name.starts_with("test_")
        || name == "testing"
        || path.components().any(|part| part.as_os_str() == "tests")
}

fn module_of(path: &Path) -> String {
    let first = path.components().next().expect("a file name").as_os_str().to_string_lossy().into_owned();
    first.strip_suffix(".rs").map_or(first.clone(), str::to_owned)
}

/// Modules of this crate that `text` names: `crate::x`, and each of `crate::{x::…, y}`.
fn used(text: &str) -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let before = line[..at].chars().next_back();
            if before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                continue;
            }
            let rest = &line[at + "crate::".len()..];
            let parts = match rest.strip_prefix('{') {
                Some(list) => list.split(',').collect(),
                None => vec![rest],
            };
            for part in parts {
                let name: String = part.trim().chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
                used.insert(name);
            }
        }
    }
    used.remove("");
    used
}

#[test]
fn modules_use_what_the_map_allows() {
    let map = map();
    let mut wrong = BTreeSet::new();
    for (path, text) in files(&sources()) {
        let module = module_of(&path);
        if module == "lib" || module == "exec" || is_test(&path) {
            continue;
        }
        let Some(allowed) = map.get(&module) else {
            wrong.insert(format!("{module} has no row"));
            continue;
        };
        for name in used(without_tests(&text)) {
            if name != module && map.contains_key(&name) && !allowed.contains(&name) {
                wrong.insert(format!("{module} uses {name} ({})", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "not in the map of builder-core/src/lib.rs:\n{}", Vec::from_iter(wrong).join("\n"));
}

#[test]
fn the_map_allows_only_what_is_used() {
    let mut real: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in files(&sources()) {
        if !is_test(&path) {
            real.entry(module_of(&path)).or_default().extend(used(without_tests(&text)));
        }
    }
    let mut stale = BTreeSet::new();
    for (module, allowed) in map() {
        for name in allowed {
            // `all of them` is prose.
            let known = real.contains_key(&name);
            if known && module != "exec" && !real.get(&module).is_some_and(|used| used.contains(&name)) {
                stale.insert(format!("{module} does not use {name}"));
            }
        }
    }
    assert!(
        stale.is_empty(),
        "the map of builder-core/src/lib.rs allows more than is used:\n{}",
        Vec::from_iter(stale).join("\n")
    );
}

#[test]
fn unsafe_code_has_one_address() {
    let mut wrong = Vec::new();
    for (path, text) in files(&sources()) {
        if path.starts_with("sandbox/sys") || path == Path::new("sandbox/sys.rs") {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let mut words = code.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            if words.any(|word| word == "unsafe") || code.contains("allow(unsafe_code") {
                wrong.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "unsafe outside of sandbox::sys:\n{}", wrong.join("\n"));
}

#[test]
fn crates_with_one_user_have_one() {
    let mut wrong = Vec::new();
    for (path, text) in files(&sources()) {
        for (name, homes) in SINGLE_USERS {
            if homes.iter().any(|home| path.starts_with(home)) || is_test(&path) {
                continue;
            }
            for (number, line) in without_tests(&text).lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let named = code
                    .match_indices(&format!("{name}::"))
                    .any(|(at, _)| !code[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':'));
                if named {
                    wrong.push(format!("{}:{}: {name}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "used outside of its one module:\n{}", wrong.join("\n"));
}

#[test]
fn the_library_does_not_know_its_surroundings() {
    let mut wrong = Vec::new();
    for (path, text) in files(&sources()) {
        if is_test(&path) {
            continue;
        }
        for (number, line) in without_tests(&text).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            for call in ["env::var(", "env::var_os(", "env::vars(", "current_dir()", "SystemTime::now()"] {
                if code.contains(call) {
                    wrong.push(format!("{}:{}: {call}", path.display(), number + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "time, environment and directory are parameters:\n{}", wrong.join("\n"));
}
