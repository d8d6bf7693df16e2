//! What the layers above the base hold, and how two builds differ.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::conformance::{Entry, Image, layer_entries, matches};

/// How many differences are shown.
const SHOWN: usize = 40;

/// The layers above the base; entries by path. A mark that hides what lower layers have below a directory has a `/` at its end.
#[derive(Debug)]
pub struct Layers {
    /// Digests of the layers of the base.
    base: Vec<String>,
    /// Seconds since 1970.
    started: i64,
    /// Of each layer, the lowest first.
    pub entries: Vec<BTreeMap<String, Entry>>,
}

/// Paths whose content differs between two builds.
#[derive(Debug, Default)]
pub struct Varies(Vec<String>);

impl Varies {
    /// Reads lines of a pattern, two blanks and a reason.
    ///
    /// # Errors
    /// If there is no such file, or a line has no reason.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let pattern = |line: &str| {
            let parts = line.split_once("  ").filter(|(_, reason)| !reason.trim().is_empty());
            parts.map(|(pattern, _)| pattern.to_owned()).ok_or(format!("{}: no reason: {line}", path.display()))
        };
        lines.map(pattern).collect::<Result<_, _>>().map(Self)
    }

    fn allows(&self, path: &str) -> bool {
        self.0.iter().any(|pattern| matches(pattern, path))
    }
}

impl Layers {
    /// Reads the image at `result`, whose build began at `started`, in seconds since 1970, and whose base has so many layers.
    ///
    /// # Errors
    /// If it is no image.
    pub fn read(result: &Path, started: i64, base: usize) -> Result<Self, String> {
        let text = |error: crate::conformance::ImageError| error.to_string();
        let image = Image::open(result, "").map_err(text)?;
        let mut entries = Vec::new();
        for number in base..image.layer_count() {
            let layer = layer_entries(&image.layer(number).map_err(text)?).map_err(text)?;
            let by_path = layer.into_iter().map(|mut entry| {
                entry.text = None;
                let mark = if entry.opaque { "/" } else { "" };
                (format!("{}{mark}", entry.path), entry)
            });
            entries.push(by_path.collect());
        }
        Ok(Self { base: image.diff_ids[..base].to_vec(), started, entries })
    }

    /// Every entry above the base, as the last layer has it.
    pub fn last(&self) -> BTreeMap<&str, &Entry> {
        self.entries.iter().flatten().map(|(path, entry)| (path.as_str(), entry)).collect()
    }

    /// Whether `other` has the same layers. Times count where they are older than both builds.
    ///
    /// # Errors
    /// The first differences, as text.
    pub fn same(&self, other: &Self, varies: &Varies) -> Result<(), String> {
        if self.base != other.base || self.entries.len() != other.entries.len() {
            let shown = |one: &Self| format!("{:?} and {} layers", one.base, one.entries.len());
            return Err(format!("{} instead of {}", shown(other), shown(self)));
        }
        let started = self.started.min(other.started);
        let mut differences = Vec::new();
        for (number, (here, there)) in self.entries.iter().zip(&other.entries).enumerate() {
            for path in here.keys().chain(there.keys()).collect::<BTreeSet<_>>() {
                let plain = |entry: &Entry| {
                    let mut entry = entry.clone();
                    entry.mtime = entry.mtime.filter(|time| *time < started);
                    if varies.allows(path) {
                        (entry.size, entry.sha256) = (None, None);
                    }
                    entry
                };
                let (expected, found) = (here.get(path).map(plain), there.get(path).map(plain));
                if expected != found {
                    let shown = |entry: Option<Entry>| match entry {
                        Some(entry) => serde_json::to_string(&entry).unwrap_or_default(),
                        None => "nothing".to_owned(),
                    };
                    differences.push(format!(
                        "layer {}: {path}\n    expected {}\n    found    {}",
                        number + self.base.len(),
                        shown(expected),
                        shown(found)
                    ));
                }
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        let count = differences.len();
        differences.truncate(SHOWN);
        Err(format!("{count} differences, such as\n{}", differences.join("\n")))
    }
}
