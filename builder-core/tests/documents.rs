//! `docs/dockerfile.md` and `docs/checks.md` against the code that they describe.

use std::collections::BTreeMap;
use std::path::Path;

use builder_core::dockerfile::lint::Rule;
use builder_core::dockerfile::{self, directive_names, instruction_names};
use builder_core::oci::ImageConfig;
use builder_core::output::Target;
use builder_core::plan::{self, BaseImage, Bases, PlanOptions, mount_words};
use serde_json::json;

fn document(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cells of all rows of all tables, heads left out; `|` within a cell is written `\|`.
fn rows(document: &str) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for line in document.lines().filter(|line| line.starts_with('|')) {
        let line = line.replace("\\|", "\u{1}");
        let cells: Vec<String> =
            line.trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{1}', "|")).collect();
        if cells.iter().all(|cell| cell.chars().all(|c| c == '-')) {
            rows.pop(); // the head stands right above
        } else {
            rows.push(cells);
        }
    }
    rows
}

/// Whether `text` holds `word` as a word of its own.
fn has_word(text: &str, word: &str) -> bool {
    let part_of_word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().is_some_and(part_of_word);
        let after = text[at + word.len()..].chars().next().is_some_and(part_of_word);
        !before && !after
    })
}

#[test]
fn every_word_of_the_language_is_in_the_table() {
    let document = document("dockerfile.md");
    let rows = rows(&document);
    let mut missing = Vec::new();
    let mut look = |what: String, found: &dyn Fn(&str) -> bool| {
        if !rows.iter().any(|row| found(&row[0])) {
            missing.push(what);
        }
    };
    for directive in directive_names() {
        look(format!("# {directive}="), &|cell| cell.contains(&format!("`# {directive}=")));
    }
    for (instruction, flags) in instruction_names() {
        look(instruction.to_owned(), &|cell| cell.starts_with(&format!("`{instruction} ")));
        for flag in flags {
            let flag = format!("--{flag}");
            look(format!("{instruction} {flag}"), &|cell| has_word(cell, instruction) && has_word(cell, &flag));
        }
    }
    for word in mount_words() {
        look(format!("--mount {word}"), &|cell| cell.contains("--mount") && has_word(cell, word));
    }
    for (exporter, keys) in Target::words() {
        look(format!("type={exporter}"), &|cell| cell.contains(&format!("type={exporter}`")));
        for key in keys {
            look(format!("type={exporter},{key}="), &|cell| cell.contains("`-o ") && has_word(cell, key));
        }
    }
    assert_eq!(missing, Vec::<String>::new(), "missing in docs/dockerfile.md");
}

#[test]
fn no_row_says_ignored() {
    for row in rows(&document("dockerfile.md")) {
        assert_eq!(row.len(), 3, "{row:?}");
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
        assert!(!row.concat().to_lowercase().contains("ignored"), "{row:?}");
    }
}

/// What `docs/checks.md` says about a rule.
struct Section<'a> {
    text: &'a str,
    bad: &'a str,
    good: &'a str,
    message: &'a str,
}

fn sections(document: &str) -> BTreeMap<&str, Section<'_>> {
    document
        .split("\n## ")
        .skip(1)
        .map(|text| {
            let (name, text) = text.split_once('\n').expect("a heading");
            let blocks: Vec<&str> = text
                .split("```dockerfile\n")
                .skip(1)
                .map(|block| block.split_once("```").unwrap_or_else(|| panic!("{name}: an open block")).0)
                .collect();
            let [bad, good] = blocks[..] else { panic!("{name}: {} examples", blocks.len()) };
            let says = text.lines().find_map(|line| line.strip_prefix("Says: `")?.strip_suffix('`'));
            let message = says.unwrap_or_else(|| panic!("{name}: no sentence"));
            (name, Section { text, bad, good, message })
        })
        .collect()
}

/// The findings in a Dockerfile beside an ignore file that hides `*.log`, built for linux/amd64.
fn findings(text: &str) -> Vec<(&'static str, String)> {
    let dockerfile = dockerfile::parse(text).unwrap_or_else(|errors| panic!("{errors}: {text}"));
    let platform = "linux/amd64".parse().expect("a platform");
    let options = PlanOptions {
        build_platform: Some(platform),
        ignore_file: Some("*.log\n".to_owned()),
        ..PlanOptions::default()
    };
    let outline = match plan::outline(&dockerfile, &options) {
        Ok(outline) => outline,
        // A name that needs a build argument is an error here, and still a finding.
        Err(error) => return error.findings.into_iter().map(|finding| (finding.rule, finding.message)).collect(),
    };
    let bases: Bases = outline
        .images
        .iter()
        .map(|request| {
            let architecture = if request.name.contains("arm64") { "arm64" } else { "amd64" };
            let config = json!({"os": "linux", "architecture": architecture, "config": {"Env": ["PATH=/bin"]}});
            let config = ImageConfig::from_json(config.to_string().as_bytes()).expect("a config");
            (request.clone(), BaseImage { config, pinned: request.name.clone() })
        })
        .collect();
    let checked = plan::check(&dockerfile, &options, &bases);
    checked.findings.into_iter().map(|finding| (finding.rule, finding.message)).collect()
}

#[test]
fn every_rule_is_described_by_what_it_does() {
    let document = document("checks.md");
    let sections = sections(&document);
    assert_eq!(sections.len(), Rule::ALL.len(), "{:?}", sections.keys());
    for rule in Rule::ALL {
        let section = sections.get(rule.name()).unwrap_or_else(|| panic!("{} is not described", rule.name()));
        assert!(section.text.contains(rule.description()), "{}: {}", rule.name(), rule.description());
        assert_eq!(section.text.contains("experimental:"), rule.is_experimental(), "{}", rule.name());
        assert_eq!(findings(section.bad), [(rule.name(), section.message.to_owned())], "{}", section.bad);
        assert_eq!(findings(section.good), [], "{}", section.good);
    }
}
