//! The fuzz targets as plain functions, so that cargo-fuzz and the driver `mutate` run the same code.
//!
//! A target panics when an invariant is broken. It returns a number that stands for how the input behaved; the driver
//! keeps inputs that give new ones.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::mem::discriminant;
use std::path::{Path, PathBuf};

use builder_core::dockerfile::{self, words};

#[path = "../../tests/support/dockerfile_invariants.rs"]
mod dockerfile_invariants;

/// A fuzz target.
pub struct Target {
    /// As on the command line.
    pub name: &'static str,
    /// Runs one input.
    pub run: fn(&[u8]) -> u64,
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Pieces that mean something.
    pub dictionary: &'static [&'static str],
}

/// All targets.
pub const TARGETS: [Target; 2] = [
    Target {
        name: "dockerfile_parse",
        run: dockerfile_parse,
        seeds: dockerfiles,
        dictionary: &[
            "FROM ",
            "RUN ",
            "COPY ",
            "ADD ",
            "ENV ",
            "ARG ",
            "LABEL ",
            "ONBUILD ",
            "HEALTHCHECK ",
            "CMD ",
            "NONE",
            "SHELL ",
            "USER ",
            "EXPOSE ",
            "VOLUME ",
            "WORKDIR ",
            "STOPSIGNAL ",
            "MAINTAINER ",
            "ENTRYPOINT ",
            " AS ",
            "# escape=`\n",
            "# check=skip=all;error=true\n",
            "# syntax=",
            "\\\n",
            "`\n",
            "\r\n",
            "\n\n",
            "\n#",
            "\\",
            "\"",
            "'",
            "[\"",
            "\"]",
            "\", \"",
            "\\u00e9",
            "\\ud83d",
            "--from=",
            "--mount=type=cache,target=",
            "--link",
            "--parents",
            "--exclude=",
            "--network=",
            "--interval=1m",
            "--retries=",
            "--",
            "<<EOF",
            "<<-'E F'",
            "3<<X",
            "\nEOF\n",
            "\n\tE F\n",
            "$x",
            "${x}",
            "${",
            "}",
            "=",
            " ",
            "\t",
            "\u{feff}",
            "\u{a0}",
            "\u{0}",
            "é",
        ],
    },
    Target {
        name: "dockerfile_expand",
        run: dockerfile_expand,
        seeds: words_of_dockerfiles,
        dictionary: &[
            "$x",
            "${x}",
            "${x:-",
            "${x-",
            "${x:+",
            "${x+",
            "${x:?",
            "${x?",
            "${x#",
            "${x##",
            "${x%",
            "${x%%",
            "${x/",
            "${x//",
            "/",
            "}",
            "${",
            "$",
            "$$",
            "$1",
            "$@",
            "*",
            "?",
            "\\*",
            "\\?",
            "\\\\",
            "\\/",
            "\\}",
            "'",
            "\"",
            "\\\"",
            "`",
            "[a-z]",
            "${empty:-",
            "${star}",
            "$quote",
            "$0",
            "${0}",
            "\n",
            " ",
            "é",
        ],
    },
];

/// Reading a text as a Dockerfile: the invariants of `check_text` in
/// `builder-core/tests/support/dockerfile_invariants.rs`. Bytes that are not UTF-8 are replaced, as `read` refuses them.
pub fn dockerfile_parse(data: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(data);
    dockerfile_invariants::check_text(&text);
    let mut hasher = DefaultHasher::new();
    match dockerfile::parse(&text) {
        Ok(dockerfile) => {
            for instruction in &dockerfile.instructions {
                discriminant(&instruction.kind).hash(&mut hasher);
                instruction.text.contains("<<").hash(&mut hasher);
                instruction.comments.is_empty().hash(&mut hasher);
            }
            dockerfile.findings.iter().for_each(|finding| finding.rule.hash(&mut hasher));
            dockerfile.directives.escape.hash(&mut hasher);
        }
        Err(errors) => {
            errors.errors().iter().take(3).for_each(|error| discriminant(&error.kind).hash(&mut hasher));
        }
    }
    hasher.finish()
}

/// Expanding a word: the invariants of `check_expansion` in the same file. An odd first byte makes the escape a backtick.
pub fn dockerfile_expand(data: &[u8]) -> u64 {
    let (first, rest) = data.split_first().unwrap_or((&0, &[]));
    let escape = if first % 2 == 0 { '\\' } else { '`' };
    let raw = String::from_utf8_lossy(rest);
    dockerfile_invariants::check_expansion(&raw, escape);
    let mut hasher = DefaultHasher::new();
    match words::expand(&raw, escape, &[("x", "a.b/c d"), ("empty", "")]) {
        Ok(expanded) => {
            (expanded.used, expanded.unset.len().min(4), expanded.text.len().min(64)).hash(&mut hasher);
        }
        Err(error) => (discriminant(&error.kind), error.offset.min(32)).hash(&mut hasher),
    }
    hasher.finish()
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures")
}

/// The Dockerfiles of the project's fixtures.
fn dockerfiles() -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = Vec::new();
    let entries =
        |directory: PathBuf| fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    files.extend(
        entries(fixtures().join("dockerfiles")).filter(|path| path.extension().is_some_and(|it| it == "Dockerfile")),
    );
    files.extend(entries(fixtures().join("conformance/cases")).map(|case| case.join("Dockerfile")));
    files.sort(); // so that a seed of the driver gives the same run everywhere
    files.into_iter().filter_map(|path| fs::read(path).ok()).collect()
}

/// The words of those files that have something to expand, behind a byte for the escape.
fn words_of_dockerfiles() -> Vec<Vec<u8>> {
    dockerfiles()
        .iter()
        .flat_map(|file| file.split(|byte| byte.is_ascii_whitespace()))
        .filter(|word| word.iter().any(|byte| b"$'\"\\`".contains(byte)))
        .map(|word| [b"0", word].concat())
        .collect()
}
