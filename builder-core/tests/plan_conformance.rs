//! The planner against the recorded answers of BuildKit in `fixtures/conformance`, as far as planning alone decides:
//! config and history of the image, and the message and lines of what is refused. Whole builds are compared elsewhere.
//!
//! `data/base_configs.json` holds the configs of the base images that `make-bases.sh` makes; the digests of their
//! layers depend on the busybox of the machine and do not matter here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use builder_core::dockerfile::{self, LineRange};
use builder_core::oci::{ImageConfig, Platform, Reference};
use builder_core::plan::{
    self, BaseImage, Bases, ImageRequest, Lowered, NamedContext, Plan, PlanError, PlanOptions, PlannedHistory,
};
use serde_json::{Map, Value, json};

/// Parts of messages that tell an error of execution, or of a registry.
const LATER_ERRORS: &[&str] = &[
    "failed to compute cache key",
    "did not complete successfully",
    "failed to resolve source metadata",
    "failed to load cache key",
    "digest mismatch",
    "secret nope: not found",
    "no SSH key",
    "invalid user index: -1",
    "not a directory",
    "cannot copy to non-directory",
    "cannot replace to directory",
    "no such file or directory",
    "unexpected EOF",
    "syntax error in pattern",
    "illegal exclusion pattern",
];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/conformance")
}

fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    // Names that are not UTF-8 appear as lone surrogates, which serde_json refuses; none matters here.
    serde_json::from_str(&text)
        .or_else(|_| serde_json::from_str(&text.replace("\\udc", "dc")))
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Base images by name and platform, as a source would resolve them.
struct Images(Value);

impl Images {
    fn load() -> Self {
        Self(read_json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/base_configs.json")))
    }

    /// `None` for an image that exists nowhere.
    fn resolve(&self, request: &ImageRequest) -> Option<BaseImage> {
        let reference: Reference = request.name.parse().expect("because the planner checked it");
        let name = match reference.digest() {
            // The corpus pins one image only.
            Some(_) => "tiny:1".to_owned(),
            None => reference.familiar(),
        };
        let exact = self.0.get(format!("{name} {}", request.platform));
        let config = exact.or_else(|| self.0.get(format!("{name} linux/amd64")))?;
        Some(BaseImage {
            config: ImageConfig::from_json(config.to_string().as_bytes()).expect("because it is an object"),
            pinned: format!("{reference}@sha256:{}", "0".repeat(64)),
        })
    }
}

/// What became of a case.
enum Outcome {
    Plan(Box<Plan>),
    Refused(PlanError),
    /// A base does not exist.
    NoImage(String),
    /// The parser refused it.
    NotParsed,
}

fn options(directory: &Path, case: &Value) -> PlanOptions {
    let map = |key: &str| -> BTreeMap<String, String> {
        let fields = case[key].as_object().into_iter().flatten();
        fields.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
    };
    let named_contexts = map("named_contexts").into_iter().map(|(name, value)| {
        let context = match value.strip_prefix("dir:") {
            Some(path) => NamedContext::Directory(directory.join(path)),
            None => NamedContext::Image(value.trim_start_matches("docker-image://").to_owned()),
        };
        (name, context)
    });
    let text = |key: &str| case[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let ignore = ["Dockerfile.dockerignore", "context/.dockerignore"].map(|path| directory.join(path));
    PlanOptions {
        build_args: map("build_args"),
        labels: map("labels"),
        target: text("target"),
        platform: text("platform").map(|platform| platform.parse().expect("because it is a platform")),
        build_platform: Some(Platform::new("linux", "amd64", "")),
        named_contexts: named_contexts.collect(),
        ignore_file: ignore.iter().find_map(|path| fs::read_to_string(path).ok()),
        ..PlanOptions::default()
    }
}

fn run(name: &str, images: &Images) -> Outcome {
    let directory = corpus().join("cases").join(name);
    let case = match directory.join("case.json") {
        path if path.exists() => read_json(&path),
        _ => json!({}),
    };
    let text = match name {
        // These two are written by their `setup.sh`.
        "parse-line-long-ok" => {
            format!("FROM busybox:1\nRUN : {}; echo done > /n.txt\n{}\nENV A=1\n", "x".repeat(4000), "#".repeat(65_000))
        }
        "parse-line-too-long" => format!("FROM busybox:1\nENV A={}\n", "x".repeat(65_540)),
        _ => fs::read_to_string(directory.join("Dockerfile")).expect("because each case has one"),
    };
    let Ok(dockerfile) = dockerfile::parse(&text) else { return Outcome::NotParsed };
    let options = options(&directory, &case);
    let outline = match plan::outline(&dockerfile, &options) {
        Ok(outline) => outline,
        Err(error) => return Outcome::Refused(error),
    };
    let mut bases = Bases::new();
    let mut needed = outline.images.clone();
    loop {
        for request in needed {
            match images.resolve(&request) {
                Some(base) => bases.insert(request, base),
                None => return Outcome::NoImage(request.name),
            };
        }
        match plan::lower(&dockerfile, &outline, &bases, &options) {
            Ok(Lowered::Plan(plan)) => return Outcome::Plan(plan),
            Ok(Lowered::Needs(more)) => needed = more,
            Err(error) => return Outcome::Refused(error),
        }
    }
}

/// The config in the form of the goldens: non-empty fields of the inner object, ports and volumes as lists.
fn golden_config(config: &ImageConfig) -> Value {
    let mut fields = config.raw().get("config").and_then(Value::as_object).cloned().unwrap_or_default();
    for name in ["ExposedPorts", "Volumes"] {
        if let Some(Value::Object(keys)) = fields.remove(name) {
            fields.insert(name.to_owned(), keys.keys().cloned().collect());
        }
    }
    for name in ["architecture", "os", "variant", "author"] {
        if let Some(value) = config.raw().get(name) {
            fields.insert(name.to_owned(), value.clone());
        }
    }
    Value::Object(fields)
}

fn golden_history(history: &[PlannedHistory]) -> Value {
    let item = |created_by: &str, empty: bool, comment: Option<&str>| {
        let mut fields = Map::new();
        fields.insert("created_by".to_owned(), created_by.into());
        if empty {
            fields.insert("empty_layer".to_owned(), true.into());
        }
        if let Some(comment) = comment {
            fields.insert("comment".to_owned(), comment.into());
        }
        Value::Object(fields)
    };
    let items = history.iter().map(|entry| match entry {
        PlannedHistory::Inherited(entry) => {
            item(entry.created_by(), entry.is_empty_layer(), entry.raw.get("comment").and_then(Value::as_str))
        }
        PlannedHistory::New { created_by, step } => item(created_by, step.is_none(), Some("buildkit.dockerfile.v0")),
    });
    items.collect()
}

/// The golden's history without fields that say nothing, and without the items that an image gets when it is written, for layers of files
/// that came from no step; a plan has none of them.
fn plain_history(golden: &Value) -> Value {
    let mut items = golden["history"].as_array().cloned().unwrap_or_default();
    items.retain(|item| item["comment"] != json!("buildkit.exporter.image.v0"));
    for fields in items.iter_mut().filter_map(Value::as_object_mut) {
        fields.retain(|_, value| *value != Value::Bool(false) && *value != json!(""));
    }
    items.into()
}

fn check_refusal(case: &Value, golden: &Value, error: &PlanError) -> Vec<String> {
    // As the whole program says it: the error and what caused it.
    let causes = std::iter::successors(Some(error as &dyn std::error::Error), |error| error.source());
    let message = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
    let mut complaints = Vec::new();
    let fragments = case["error_contains"].as_array().cloned().unwrap_or_default();
    for fragment in fragments.iter().filter_map(Value::as_str).filter(|fragment| !message.contains(fragment)) {
        complaints.push(format!("`{message}` lacks `{fragment}`"));
    }
    let told: BTreeSet<u64> =
        error.lines.iter().flat_map(|LineRange { first, last }| (*first..=*last).map(|line| line as u64)).collect();
    let marked: BTreeSet<u64> =
        golden["error_lines"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect();
    // Where BuildKit marks none, ours help.
    if !marked.is_empty() && told != marked {
        complaints.push(format!("lines {told:?}, expected {marked:?}"));
    }
    complaints
}

#[test]
fn plans_as_buildkit_does() {
    let images = Images::load();
    let mut names: Vec<String> = fs::read_dir(corpus().join("cases"))
        .expect("because the corpus is part of the project")
        .map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    let mut complaints = Vec::new();
    let (mut planned, mut refused) = (0, 0);
    for name in &names {
        let golden = read_json(&corpus().join("golden").join(format!("{name}.json")));
        let case_file = corpus().join("cases").join(name).join("case.json");
        let case = if case_file.exists() { read_json(&case_file) } else { json!({}) };
        let message = golden["stderr_tail"].as_str();
        let mut complain = |text: String| complaints.push(format!("{name}: {text}"));
        match (run(name, &images), message) {
            (Outcome::NotParsed, Some(_)) => {}
            (Outcome::NotParsed, None) => complain("not parsed".to_owned()),
            (Outcome::NoImage(image), message) => {
                if !message.is_some_and(|message| message.contains(&image)) {
                    complain(format!("image {image} is not there"));
                }
            }
            (Outcome::Refused(error), Some(_)) => {
                refused += 1;
                check_refusal(&case, &golden, &error).into_iter().for_each(complain);
            }
            (Outcome::Refused(error), None) => complain(format!("refused: {error}")),
            (Outcome::Plan(_), Some(message)) => {
                if !LATER_ERRORS.iter().any(|part| message.contains(part)) {
                    complain(format!("planned, but BuildKit says: {message}"));
                }
            }
            (Outcome::Plan(plan), None) => {
                planned += 1;
                let stage = &plan.stages[plan.target.0];
                let config = golden_config(&stage.config);
                if config != golden["config"] {
                    complain(format!("config\n  found    {config}\n  expected {}", golden["config"]));
                }
                let (history, expected) = (golden_history(&stage.history), plain_history(&golden));
                if history != expected {
                    complain(format!("history\n  found    {history}\n  expected {expected}"));
                }
            }
        }
    }
    assert!(complaints.is_empty(), "{} complaints:\n{}", complaints.len(), complaints.join("\n"));
    assert!(planned > 500 && refused > 50, "{planned} planned, {refused} refused");
}
