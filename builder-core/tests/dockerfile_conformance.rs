//! The parser, word expansion and text rules against the recorded answers of BuildKit in `fixtures/conformance`, as far
//! as text alone decides: which Dockerfiles are refused with which words at which lines, what `ENV` and `LABEL` expand
//! to, and which text rules fire. Whole builds are compared elsewhere.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use builder_core::dockerfile::lint::Config;
use builder_core::dockerfile::words::expand;
use builder_core::dockerfile::{self, Dockerfile, InstructionKind, KeyValue, LineRange};
use serde_json::Value;

/// Cases whose error is raised while the text is read although the message does not tell a line.
const REFUSED_WITHOUT_LINE: [&str; 15] = [
    "cfg-label-no-equal",
    "cfg-label-single-word",
    "env-no-value",
    "heredoc-unterminated",
    "parse-continuation-join-blanks",
    "parse-directive-duplicate",
    "parse-empty-file",
    "parse-escape-invalid",
    "parse-hash-in-env-words",
    "parse-instruction-before-from",
    "parse-json-nonstring",
    "parse-line-too-long",
    "parse-only-arg",
    "parse-only-comments",
    "vars-default-unquoted-blank",
];

struct Case {
    name: String,
    text: String,
    golden: Value,
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/conformance")
}

fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = fs::read_dir(corpus().join("cases"))
        .expect("because the corpus is part of the project")
        .map(|entry| {
            let directory = entry.expect("because the corpus is readable").path();
            let name = directory.file_name().expect("because it is an entry").to_string_lossy().into_owned();
            let text = match name.as_str() {
                // These two are written by their `setup.sh`.
                "parse-line-long-ok" => format!("FROM busybox:1\n{}\nENV A=1\n", "#".repeat(65_000)),
                "parse-line-too-long" => format!("FROM busybox:1\nENV A={}\n", "x".repeat(65_540)),
                // Whatever `dockerfile_name` it is built under.
                _ => fs::read_to_string(directory.join("Dockerfile"))
                    .unwrap_or_else(|error| panic!("Dockerfile of {name}: {error}")),
            };
            let golden = fs::read_to_string(corpus().join("golden").join(format!("{name}.json")))
                .unwrap_or_else(|error| panic!("golden of {name}: {error}"));
            // Names that are not UTF-8 appear as lone surrogates, which serde_json refuses; none matters here.
            let golden = serde_json::from_str(&golden)
                .or_else(|_| serde_json::from_str(&golden.replace("\\udc", "dc")))
                .expect("because goldens are JSON");
            Case { name, text, golden }
        })
        .collect();
    cases.sort_by(|one, other| one.name.cmp(&other.name));
    assert!(cases.len() >= 719, "only {} cases", cases.len());
    cases
}

/// Collects mismatches, so that all are seen at once.
#[derive(Default)]
struct Mismatches(Vec<String>);

impl Mismatches {
    fn expect<T: PartialEq + std::fmt::Debug>(&mut self, name: &str, what: &str, found: T, expected: T) {
        if found != expected {
            self.0.push(format!("{name}: {what}: found {found:?}, expected {expected:?}"));
        }
    }
}

impl Drop for Mismatches {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.0.is_empty(), "{} mismatches:\n{}", self.0.len(), self.0.join("\n"));
        }
    }
}

#[test]
fn refuses_what_buildkit_refuses() {
    let mut mismatches = Mismatches::default();
    let mut refused = 0;
    for Case { name, text, golden } in cases() {
        let message = golden["stderr_tail"].as_str().and_then(|tail| tail.strip_prefix("error: failed to solve: "));
        let expected = message.filter(|message| {
            message.starts_with("dockerfile parse error on line") || REFUSED_WITHOUT_LINE.contains(&name.as_str())
        });
        let errors = dockerfile::parse(&text).err();
        let found = errors.as_ref().map(|errors| errors.first().to_string());
        mismatches.expect(&name, "message", found.as_deref(), expected);
        let Some(errors) = errors else { continue };
        refused += 1;
        let lines = errors
            .first()
            .lines_in_buildkit()
            .map_or(Vec::new(), |LineRange { first, last }| (first..=last).map(|line| line as u64).collect());
        let marked = golden["error_lines"]
            .as_array()
            .map_or(Vec::new(), |lines| lines.iter().filter_map(Value::as_u64).collect());
        mismatches.expect(&name, "lines", lines, marked);
    }
    assert!(refused > 50, "only {refused} cases were refused");
}

/// Expands `ENV` and `LABEL` of single-stage files that have nothing else that could change variables.
#[test]
fn expands_as_buildkit_does() {
    let mut mismatches = Mismatches::default();
    let mut compared = 0;
    for Case { name, text, golden } in cases() {
        let Ok(dockerfile) = dockerfile::parse(&text) else { continue };
        // This one is built with labels of the command line.
        if name == "stage-build-labels" || !is_plain(&dockerfile) {
            continue;
        }
        let escape = dockerfile.directives.escape;
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut env = vec![("PATH".to_owned(), path.to_owned())];
        let mut labels = BTreeMap::new();
        let mut error = None;
        for instruction in &dockerfile.instructions {
            let (pairs, is_env) = match &instruction.kind {
                InstructionKind::Env(pairs) => (pairs, true),
                InstructionKind::Label(pairs) => (pairs, false),
                _ => continue,
            };
            match expand_pairs(pairs, escape, &env) {
                Ok(expanded) if is_env => expanded.into_iter().for_each(|pair| set(&mut env, pair)),
                Ok(expanded) => labels.extend(expanded),
                Err(message) => error = error.or(Some(message)),
            }
        }
        compared += 1;
        if let Some(error) = error {
            let expected = golden["stderr_tail"].as_str().unwrap_or("no error");
            mismatches.expect(&name, "error", format!("error: failed to solve: {error}").as_str(), expected);
        } else if golden["error"] != true {
            let found: Vec<String> = env.iter().map(|(key, value)| format!("{key}={value}")).collect();
            mismatches.expect(&name, "Env", Value::from(found), golden["config"]["Env"].clone());
            if !labels.is_empty() {
                let found = Value::from_iter(labels);
                mismatches.expect(&name, "Labels", found, golden["config"]["Labels"].clone());
            }
        }
    }
    assert!(compared > 80, "only {compared} cases were compared");
}

fn is_plain(dockerfile: &Dockerfile) -> bool {
    let count = |matches: &dyn Fn(&InstructionKind) -> bool| {
        dockerfile.instructions.iter().filter(|instruction| matches(&instruction.kind)).count()
    };
    let from_busybox = matches!(&dockerfile.instructions[0].kind,
        InstructionKind::From(from) if from.base.raw == "busybox:1");
    from_busybox
        && count(&|kind| matches!(kind, InstructionKind::From(_))) == 1
        && count(&|kind| matches!(kind, InstructionKind::Env(_) | InstructionKind::Label(_))) > 0
        && count(&|kind| matches!(kind, InstructionKind::Arg(_) | InstructionKind::Onbuild(_))) == 0
}

fn expand_pairs(pairs: &[KeyValue], escape: char, env: &[(String, String)]) -> Result<Vec<(String, String)>, String> {
    let expand = |raw: &str| expand(raw, escape, env).map(|expanded| expanded.text).map_err(|error| error.to_string());
    pairs.iter().map(|pair| Ok((expand(&pair.key)?, expand(&pair.value)?))).collect()
}

/// Replaces in place or appends, as the config's `Env` does.
fn set(env: &mut Vec<(String, String)>, (key, value): (String, String)) {
    match env.iter_mut().find(|(known, _)| *known == key) {
        Some((_, known)) => *known = value,
        None => env.push((key, value)),
    }
}

#[test]
fn text_rules_fire_as_in_buildkit() {
    /// What the text alone decides.
    const TEXT_RULES: [&str; 7] = [
        "StageNameCasing",
        "FromAsCasing",
        "NoEmptyContinuation",
        "ConsistentInstructionCasing",
        "DuplicateStageName",
        "ReservedStageName",
        "MaintainerDeprecated",
    ];
    let mut mismatches = Mismatches::default();
    let mut fired = 0;
    for Case { name, text, golden } in cases() {
        let Ok(dockerfile) = dockerfile::parse(&text) else { continue };
        // The build-arg of this case replaces the directive.
        let build_arg = (name == "lint-build-arg-override").then_some("skip=all");
        let tail = golden["stderr_tail"].as_str().unwrap_or_default();
        let config = match Config::of(&dockerfile, build_arg) {
            Ok(config) => config,
            Err(error) => {
                mismatches.expect(&name, "options", format!("error: failed to solve: {error}").as_str(), tail);
                continue;
            }
        };
        let told = config.filter(&dockerfile, dockerfile.findings.clone());
        let found = config.violation(&told).map_or(Vec::new(), |violation| violation.rules);
        let expected: Vec<&str> = tail
            .strip_prefix("error: failed to solve: lint violation found for rules: ")
            .map_or(Vec::new(), |rules| rules.split(", ").filter(|rule| TEXT_RULES.contains(rule)).collect());
        fired += expected.len();
        mismatches.expect(&name, "rules", found, expected);
    }
    assert!(fired >= 10, "only {fired} rules fired");
}
