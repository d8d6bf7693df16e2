//! Lists how an image differs from a recorded one.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};

use super::case::{GoldenImage, HistoryItem, TreeDiff};
use super::image::{Image, ImageError, list, text};
use super::tree::{Entry, Tree, layer_entries, wants_mtime};

/// Fields of `config.config` that are compared.
const CONFIG_FIELDS: [&str; 13] = [
    "Env",
    "Cmd",
    "Entrypoint",
    "WorkingDir",
    "User",
    "Labels",
    "ExposedPorts",
    "Volumes",
    "StopSignal",
    "Healthcheck",
    "Shell",
    "OnBuild",
    "ArgsEscaped",
];

/// Fields beside `config` that are compared.
const TOP_FIELDS: [&str; 5] = ["architecture", "variant", "os", "os.version", "author"];

/// Fields of an entry that are compared beside its content.
const ENTRY_FIELDS: [&str; 12] =
    ["type", "mode", "uid", "gid", "size", "link", "links", "dev", "xattrs", "mtime", "whiteout", "opaque"];

/// What differs, in three parts of rising strictness.
#[derive(Debug, Default)]
pub struct Differences {
    /// Config and final tree.
    pub image: Vec<String>,
    /// Number of layers and entries of each.
    pub layers: Vec<String>,
    /// Text and emptiness of each item of the history.
    pub history: Vec<String>,
}

/// Compares results with recorded images; remembers what layers hold.
#[derive(Debug, Default)]
pub struct Comparer {
    bases: BTreeMap<String, Image>,
    layers: Mutex<BTreeMap<String, Arc<Vec<Entry>>>>,
}

impl Comparer {
    /// `bases` is a directory made by `make-bases.sh`.
    ///
    /// # Errors
    /// If a layout there cannot be read.
    pub fn new(bases: &Path) -> Result<Self, ImageError> {
        let mut found = BTreeMap::new();
        for dir in fs::read_dir(bases.join("layouts"))? {
            let dir = dir?;
            let name = dir.file_name().to_string_lossy().into_owned();
            let Some((image, tag)) = name.rsplit_once('-') else { continue };
            for architecture in ["amd64", "arm64", "arm"] {
                let base = Image::open(&dir.path(), architecture)?;
                if base.config["architecture"] == architecture {
                    let plain = format!("{image}:{tag}");
                    let taken = found.contains_key(&plain);
                    found.insert(if taken { format!("{plain}/{architecture}") } else { plain }, base);
                }
            }
        }
        Ok(Self { bases: found, layers: Mutex::default() })
    }

    /// Compares the image at `result` with `golden`; `patterns` name the paths whose time counts.
    ///
    /// # Errors
    /// If the result cannot be read.
    pub fn compare(&self, result: &Path, golden: &GoldenImage, patterns: &[String]) -> Result<Differences, ImageError> {
        let image = Image::open(result, "amd64")?;
        let prefix = golden.base.diff_ids.as_slice();
        let mut differences = Differences::default();
        let (above, base) = if image.diff_ids.starts_with(prefix) {
            (Some(prefix.len()), self.merged(&image, prefix.len())?)
        } else if let Some(base) = self.bases.get(&golden.base.name) {
            // Another busybox than the recorded one: our own base of the same name stands in for it.
            let kept = image.diff_ids.starts_with(&base.diff_ids);
            (kept.then_some(base.diff_ids.len()), self.merged(base, base.layer_count())?)
        } else {
            return Err(ImageError("the result does not begin with the recorded base layers".to_owned()));
        };
        differences.image = compare_config(&golden.config, &normal_config(&image.config));
        let tree = self.merged(&image, image.layer_count())?;
        differences.image.extend(compare_tree(&golden.tree, &tree.against(&base, patterns)));
        match above {
            None => differences.layers.push("layers: the base layers were rewritten".to_owned()),
            Some(count) => {
                let layers: Vec<Vec<Entry>> = (count..image.layer_count())
                    .map(|number| Ok(public_layer(&self.entries(&image, number)?, patterns)))
                    .collect::<Result<_, ImageError>>()?;
                differences.layers = compare_layers(&golden.layers, &layers);
            }
        }
        differences.history = compare_history(&golden.history, &normal_history(&image.config));
        Ok(differences)
    }

    fn entries(&self, image: &Image, number: usize) -> Result<Arc<Vec<Entry>>, ImageError> {
        let read = || Ok::<_, ImageError>(Arc::new(layer_entries(&image.layer(number)?)?));
        let Some(diff_id) = image.diff_ids.get(number) else { return read() };
        if !self.bases.values().any(|base| base.diff_ids.contains(diff_id)) {
            return read();
        }
        let mut known = self.layers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entries) = known.get(diff_id) {
            return Ok(Arc::clone(entries));
        }
        let entries = read()?;
        known.insert(diff_id.clone(), Arc::clone(&entries));
        Ok(entries)
    }

    fn merged(&self, image: &Image, count: usize) -> Result<Tree, ImageError> {
        let mut tree = Tree::default();
        for number in 0..count {
            tree.apply(&self.entries(image, number)?)?;
        }
        Ok(tree)
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn normal_config(image: &Value) -> Map<String, Value> {
    let mut fields = Map::new();
    for name in CONFIG_FIELDS {
        let value = match (&image["config"][name], name) {
            (value, _) if is_empty(value) => continue,
            (Value::Object(set), "ExposedPorts" | "Volumes") => {
                let mut names: Vec<&String> = set.keys().collect();
                names.sort();
                Value::from_iter(names.into_iter().cloned())
            }
            (Value::Object(check), "Healthcheck") => Value::Object(
                check.iter().filter(|(_, value)| !is_empty(value)).map(|(k, v)| (k.clone(), v.clone())).collect(),
            ),
            (value, _) => value.clone(),
        };
        fields.insert(name.to_owned(), value);
    }
    for name in TOP_FIELDS {
        if !is_empty(&image[name]) {
            fields.insert(name.to_owned(), image[name].clone());
        }
    }
    fields
}

fn normal_history(image: &Value) -> Vec<HistoryItem> {
    list(&image["history"])
        .iter()
        .map(|item| HistoryItem {
            created_by: text(&item["created_by"]).to_owned(),
            empty_layer: item["empty_layer"] == true,
            comment: item["comment"].as_str().map(str::to_owned),
        })
        .collect()
}

fn public_layer(entries: &[Entry], patterns: &[String]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = entries
        .iter()
        .map(|entry| Entry {
            text: None,
            mtime: entry.mtime.filter(|_| wants_mtime(&entry.path, patterns)),
            ..entry.clone()
        })
        .collect();
    entries.sort_by(|a, b| (&a.path, a.kind.is_some()).cmp(&(&b.path, b.kind.is_some())));
    entries
}

fn union<'a, K: Ord + 'a>(a: impl Iterator<Item = K>, b: impl Iterator<Item = K>) -> BTreeSet<K> {
    a.chain(b).collect()
}

fn compare_config(want: &Map<String, Value>, have: &Map<String, Value>) -> Vec<String> {
    let mut out = Vec::new();
    let differ = |what: String, want: Option<&Value>, have: Option<&Value>| {
        (want != have).then(|| format!("{what}: expected {}, got {}", short(want), short(have)))
    };
    for key in union(want.keys(), have.keys()) {
        match (want.get(key), have.get(key)) {
            (Some(Value::Object(want)), Some(Value::Object(have))) => out.extend(
                union(want.keys(), have.keys())
                    .into_iter()
                    .filter_map(|name| differ(format!("config.{key}[{name}]"), want.get(name), have.get(name))),
            ),
            (want, have) => out.extend(differ(format!("config.{key}"), want, have)),
        }
    }
    out
}

fn short(value: Option<&Value>) -> String {
    value.map_or_else(|| "null".to_owned(), Value::to_string)
}

fn fields(entry: &Entry) -> Value {
    serde_json::to_value(entry).unwrap_or_else(|error| unreachable!("an entry is plain data: {error}"))
}

fn compare_entry(place: &str, want: &Entry, have: &Entry) -> Vec<String> {
    let mut out = Vec::new();
    let both = |kind: &str| want.kind.as_deref() == Some(kind) && have.kind.as_deref() == Some(kind);
    let (want_fields, have_fields) = (fields(want), fields(have));
    for name in ENTRY_FIELDS {
        let skipped = match name {
            "mode" => both("symlink"),
            "size" => want.text.is_some() && have.text.is_some(),
            _ => false,
        };
        if !skipped && want_fields[name] != have_fields[name] {
            out.push(format!("{place}: {name} expected {}, got {}", want_fields[name], have_fields[name]));
        }
    }
    if want.sha256 != have.sha256 && both("file") {
        out.push(format!("{place}: content differs"));
        if let (Some(want), Some(have)) = (&want.text, &have.text) {
            out.extend(first_difference(want, have));
        }
    }
    out
}

fn first_difference(want: &str, have: &str) -> Vec<String> {
    let (mut want, mut have) = (want.split_inclusive('\n'), have.split_inclusive('\n'));
    for number in 1.. {
        match (want.next(), have.next()) {
            (None, None) => break,
            (a, b) if a == b => {}
            (a, b) => {
                let show = |line: Option<&str>| line.map_or_else(|| "(end)".to_owned(), |line| format!("{line:?}"));
                return vec![format!("    line {number}: expected {}, got {}", show(a), show(b))];
            }
        }
    }
    Vec::new()
}

fn compare_tree(want: &TreeDiff, have: &TreeDiff) -> Vec<String> {
    let mut out = Vec::new();
    let by_path = |entries: &[Entry]| -> BTreeMap<String, Entry> {
        entries
            .iter()
            .map(|entry| {
                let mut entry = entry.clone();
                if let Some(links) = &mut entry.links {
                    links.sort();
                }
                (entry.path.clone(), entry)
            })
            .collect()
    };
    let (wanted, had) = (by_path(&want.entries), by_path(&have.entries));
    for path in union(wanted.keys(), had.keys()) {
        let place = format!("final {}", path.escape_debug());
        match (wanted.get(path), had.get(path)) {
            (Some(want), None) => {
                let kind = want.kind.as_deref().unwrap_or("entry");
                out.push(format!("{place}: missing or not changed (expected {kind})"));
            }
            (None, Some(have)) => {
                out.push(format!("{place}: unexpected {}", fields(&Entry { sha256: None, ..have.clone() })));
            }
            (Some(want), Some(have)) => out.extend(compare_entry(&place, want, have)),
            (None, None) => {}
        }
    }
    for path in union(want.removed.iter(), have.removed.iter()) {
        let place = format!("final {}", path.escape_debug());
        if !have.removed.contains(path) {
            out.push(format!("{place}: should have been removed"));
        } else if !want.removed.contains(path) {
            out.push(format!("{place}: should not have been removed"));
        }
    }
    out
}

fn compare_layers(want: &[Vec<Entry>], have: &[Vec<Entry>]) -> Vec<String> {
    let mut out = Vec::new();
    if want.len() != have.len() {
        out.push(format!("layers: expected {} above the base, got {}", want.len(), have.len()));
    }
    for (number, (want_list, have_list)) in want.iter().zip(have).enumerate() {
        let by_key = |entries: &[Entry]| -> BTreeMap<(String, bool, bool), Entry> {
            entries.iter().map(|entry| ((entry.path.clone(), entry.whiteout, entry.opaque), entry.clone())).collect()
        };
        let (wanted, had) = (by_key(want_list), by_key(have_list));
        for key in union(wanted.keys(), had.keys()) {
            let kind = match key {
                (_, true, _) => " (whiteout)",
                (_, _, true) => " (opaque)",
                _ => "",
            };
            let place = format!("layer {number} {}{kind}", key.0.escape_debug());
            match (wanted.get(key), had.get(key)) {
                (Some(_), None) => out.push(format!("{place}: missing")),
                (None, Some(_)) => out.push(format!("{place}: unexpected")),
                (Some(want), Some(have)) => out.extend(compare_entry(&place, want, have)),
                (None, None) => {}
            }
        }
        if have_list.len() != had.len() {
            out.push(format!("layer {number}: an entry is listed twice"));
        }
    }
    out
}

fn compare_history(want: &[HistoryItem], have: &[HistoryItem]) -> Vec<String> {
    // The comment names the builder, so it is not compared.
    let shown = |item: Option<&HistoryItem>| item.map(|item| (item.created_by.clone(), item.empty_layer));
    (0..want.len().max(have.len()))
        .filter_map(|number| {
            let (want, have) = (shown(want.get(number)), shown(have.get(number)));
            (want != have).then(|| format!("history[{number}]: expected {want:?}, got {have:?}"))
        })
        .collect()
}
