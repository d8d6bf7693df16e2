//! Cases and recorded answers as they lie in the corpus.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::json::complete_surrogates;
use super::tree::Entry;

/// Seconds since 1970 of 2020-09-13T12:26:40Z, the earliest time of a context file.
const FIRST_STAMP: i64 = 1_600_000_000;

/// One build of the corpus: `case.json` with its defaults.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Case {
    /// Name of its directory.
    #[serde(skip)]
    pub name: String,
    /// Its directory.
    #[serde(skip)]
    pub path: PathBuf,
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--target`; empty for none.
    pub target: String,
    /// `--label`.
    pub labels: BTreeMap<String, String>,
    /// Environment of the builder.
    pub env: BTreeMap<String, String>,
    /// `--secret`.
    pub secrets: BTreeMap<String, SecretValue>,
    /// `--build-context`.
    pub named_contexts: BTreeMap<String, NamedValue>,
    /// `--platform`; empty for none.
    pub platform: String,
    /// Whether the build needs no network.
    pub no_network: bool,
    /// Success or failure.
    pub expect: Expect,
    /// What the output of a failing build must hold.
    pub error_contains: Vec<String>,
    /// Name of a shared context below `contexts/`.
    pub context: String,
    /// What it shows.
    pub note: String,
    /// Items of the checklist.
    pub refs: Vec<String>,
    /// Patterns of paths whose time counts.
    pub mtime: Vec<String>,
    /// Whether its `http/` is served.
    pub http: bool,
    /// File name of the Dockerfile; empty for `Dockerfile`.
    pub dockerfile_name: String,
    /// Whether the Dockerfile lies in the context.
    pub dockerfile_in_context: bool,
}

/// Whether a build is to succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Expect {
    /// It ends with an image.
    #[default]
    Ok,
    /// It ends with an error.
    Error,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum SecretValue {
    /// A file with this text.
    Text(String),
    /// A variable of the builder's environment.
    Env {
        /// Its name.
        env: String,
    },
}

/// What a named context stands for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum NamedValue {
    /// A directory of the case.
    Directory(String),
    /// A reference as the command line takes it.
    Image(String),
}

impl From<String> for NamedValue {
    fn from(text: String) -> Self {
        match text.strip_prefix("dir:") {
            Some(dir) => Self::Directory(dir.to_owned()),
            None => Self::Image(text),
        }
    }
}

/// BuildKit's recorded answer.
#[derive(Debug, Clone)]
pub enum Golden {
    /// The build fails.
    Failure {
        /// Lines of the Dockerfile that BuildKit marks.
        lines: Vec<usize>,
        /// Its message.
        stderr_tail: String,
    },
    /// The build gives an image.
    Image(Box<GoldenImage>),
}

/// A recorded image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenImage {
    /// The base that its layers begin with.
    pub base: GoldenBase,
    /// Fields of the config that are not empty.
    pub config: Map<String, Value>,
    /// The whole history.
    pub history: Vec<HistoryItem>,
    /// Entries of each layer above the base.
    pub layers: Vec<Vec<Entry>>,
    /// The merged tree against the base's.
    #[serde(rename = "final")]
    pub tree: TreeDiff,
    /// Patterns of paths whose time counts.
    #[serde(default)]
    pub mtime_paths: Vec<String>,
}

/// The base of a recorded image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoldenBase {
    /// `name:tag`, or `scratch`.
    pub name: String,
    /// Its layers.
    pub diff_ids: Vec<String>,
}

/// An item of the history, without its time.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HistoryItem {
    /// The instruction.
    pub created_by: String,
    /// Whether it made no layer.
    pub empty_layer: bool,
    /// Who made it.
    pub comment: Option<String>,
}

/// How one tree differs from another.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeDiff {
    /// New and changed entries, sorted by path.
    pub entries: Vec<Entry>,
    /// Topmost paths that are gone.
    pub removed: Vec<String>,
}

/// All cases below `corpus`, sorted by name.
///
/// # Errors
/// If a file cannot be read or holds an unknown field.
pub fn all_cases(corpus: &Path) -> io::Result<Vec<Case>> {
    let mut cases = Vec::new();
    for dir in fs::read_dir(corpus.join("cases"))? {
        let dir = dir?;
        if dir.file_type()?.is_dir() {
            cases.push(Case::read(dir.path())?);
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

impl Case {
    fn read(path: PathBuf) -> io::Result<Self> {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut case = match fs::read(path.join("case.json")) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| io::Error::other(format!("{name}/case.json: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => return Err(error),
        };
        if case.dockerfile_name.is_empty() {
            "Dockerfile".clone_into(&mut case.dockerfile_name);
        }
        Ok(Self { name, path, ..case })
    }

    /// The recorded answer.
    ///
    /// # Errors
    /// If it cannot be read or holds something unknown.
    pub fn golden(&self, corpus: &Path) -> io::Result<Golden> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Failure {
            error: bool,
            error_lines: Vec<usize>,
            stderr_tail: String,
        }
        let named = |error| io::Error::other(format!("golden/{}.json: {error}", self.name));
        let text = fs::read_to_string(corpus.join("golden").join(&self.name).with_extension("json"))?;
        let value: Value = serde_json::from_str(&complete_surrogates(&text)).map_err(named)?;
        if value.get("error").is_none() {
            return Ok(Golden::Image(serde_json::from_value(value).map_err(named)?));
        }
        let failure: Failure = serde_json::from_value(value).map_err(named)?;
        debug_assert!(failure.error, "`error` is recorded as true or not at all");
        Ok(Golden::Failure { lines: failure.error_lines, stderr_tail: failure.stderr_tail })
    }

    /// Time of every context file, in seconds since 1970; differs from case to case.
    pub fn stamp(&self) -> i64 {
        let mut crc = flate2::Crc::new();
        crc.update(self.name.as_bytes());
        FIRST_STAMP + i64::from(crc.sum() % 10_000_000)
    }
}
