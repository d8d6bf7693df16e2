//! A second, independent reading of Dockerfiles: the crate dockerfile-parser 0.9 against ours, over `fixtures/dockerfiles`.
//!
//! Both readings are projected to instruction kinds and texts. They must agree, or `divergences.json` must say what
//! either of them reads, which one is right, and by which source; an entry that no longer holds fails the test too.
//! The crate knows less of the language than its name says (no heredocs, no directives, no flags of RUN, quoting lost),
//! so most files that are not plain have an entry.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use builder_core::dockerfile::{self, CommandLine, Copy, Instruction, InstructionKind, KeyValue};
use dockerfile_parser as oracle;
use serde::{Deserialize, Serialize};

/// What one parser makes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Reading {
    /// The file is refused.
    Refused,
    /// Per instruction: the kind in upper case, then its parts.
    Instructions(Vec<Vec<String>>),
}

/// Which reading is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Right {
    Ours,
    Theirs,
    /// Both, since the difference means nothing.
    Both,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Divergence {
    file: String,
    ours: Reading,
    theirs: Reading,
    right: Right,
    /// Where that is decided: an item of the conformance checklist, or a case of `fixtures/conformance`.
    source: String,
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/dockerfiles")
}

#[test]
fn readings_agree_or_their_difference_is_explained() {
    let listed = fs::read_to_string(directory().join("divergences.json")).expect("because it is part of the project");
    let listed: Vec<Divergence> = serde_json::from_str(&listed).expect("because divergences are a JSON list");
    let mut listed: BTreeMap<String, Divergence> =
        listed.into_iter().map(|entry| (entry.file.clone(), entry)).collect();
    let mut problems = Vec::new();
    let mut agreed = 0;
    for (file, text) in fixtures() {
        let (ours, theirs) = (ours(&text), theirs(&text));
        match listed.remove(&file) {
            None if ours == theirs => agreed += 1,
            None => problems.push(format!(
                "{file}: a new difference:\n{}",
                serde_json::to_string_pretty(&Divergence {
                    file: file.clone(),
                    ours,
                    theirs,
                    right: Right::Ours,
                    source: String::new()
                })
                .expect("because it is plain data")
            )),
            Some(_) if ours == theirs => problems.push(format!("{file}: the listed difference is gone")),
            Some(entry) => {
                if entry.ours != ours {
                    problems.push(format!("{file}: ours is {ours:?}, listed is {:?}", entry.ours));
                }
                if entry.theirs != theirs {
                    problems.push(format!("{file}: theirs is {theirs:?}, listed is {:?}", entry.theirs));
                }
                if entry.source.is_empty() {
                    problems.push(format!("{file}: no source says which reading is right"));
                }
            }
        }
    }
    problems.extend(listed.keys().map(|file| format!("{file}: listed, but there is no such file")));
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert!(agreed >= 10, "the readings agree on {agreed} files only");
}

fn fixtures() -> Vec<(String, String)> {
    let mut fixtures: Vec<(String, String)> = fs::read_dir(directory())
        .expect("because it is part of the project")
        .map(|entry| entry.expect("because the directory is readable").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "Dockerfile"))
        .map(|path| {
            let name = path.file_name().expect("because it is an entry").to_string_lossy().into_owned();
            (name, fs::read_to_string(path).expect("because fixtures are UTF-8"))
        })
        .collect();
    fixtures.sort();
    fixtures
}

fn ours(text: &str) -> Reading {
    match dockerfile::parse(text) {
        Ok(dockerfile) => Reading::Instructions(dockerfile.instructions.iter().flat_map(project_ours).collect()),
        Err(_) => Reading::Refused,
    }
}

fn project_ours(instruction: &Instruction) -> Vec<Vec<String>> {
    let kind = instruction.keyword.node.to_uppercase();
    let strings = |parts: Vec<String>| vec![[vec![kind.clone()], parts].concat()];
    match &instruction.kind {
        InstructionKind::From(from) => {
            let platform = from.platform.iter().map(|word| format!("--platform={}", word.raw));
            let name = from.name.iter().map(|name| format!("AS {}", name.written));
            strings(platform.chain([from.base.raw.clone()]).chain(name).collect())
        }
        InstructionKind::Run(run) => strings(project_command(&run.command)),
        InstructionKind::Cmd(command) | InstructionKind::Entrypoint(command) => strings(project_command(command)),
        InstructionKind::Copy(copy) => strings(project_copy(copy)),
        InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
            strings(pairs.iter().flat_map(project_pair).collect())
        }
        // The oracle takes one name an ARG.
        InstructionKind::Arg(pairs) => pairs
            .iter()
            .flat_map(|pair| {
                strings(
                    [Some(pair.name.clone()), pair.default.as_deref().map(unquoted)].into_iter().flatten().collect(),
                )
            })
            .collect(),
        _ => {
            let rest = instruction.text[instruction.keyword.node.len()..].trim();
            strings(vec![rest.to_owned()])
        }
    }
}

fn project_command(command: &CommandLine) -> Vec<String> {
    match command {
        CommandLine::Shell(text) => vec!["shell".to_owned(), text.clone()],
        CommandLine::Exec(arguments) => [vec!["exec".to_owned()], arguments.clone()].concat(),
    }
}

fn project_copy(copy: &Copy) -> Vec<String> {
    let flags = [("from", &copy.from), ("chown", &copy.chown), ("chmod", &copy.chmod)];
    let flags = flags.into_iter().filter_map(|(name, word)| Some(format!("--{name}={}", word.as_ref()?.raw)));
    let link = copy.link.then(|| "(flag) link".to_owned());
    let parents = copy.parents.then(|| "(flag) parents".to_owned());
    let heredocs = copy.heredocs.iter().map(|heredoc| format!("<<{}", heredoc.name));
    let paths = copy.sources.iter().chain([&copy.destination]).map(|word| word.raw.clone());
    flags.chain(link).chain(parents).chain(heredocs).chain(paths).collect()
}

fn project_pair(pair: &KeyValue) -> [String; 2] {
    [unquoted(&pair.key), if pair.legacy { pair.value.clone() } else { unquoted(&pair.value) }]
}

/// Without quotes and escapes, variables left alone: as far as the oracle keeps values.
fn unquoted(raw: &str) -> String {
    let mut text = String::new();
    let mut quote = None;
    let mut characters = raw.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => text.extend(characters.next()),
            ('\'' | '"', None) => quote = Some(character),
            (_, Some(open)) if open == character => quote = None,
            _ => text.push(character),
        }
    }
    text
}

fn theirs(text: &str) -> Reading {
    match oracle::Dockerfile::parse(text) {
        Ok(dockerfile) => Reading::Instructions(dockerfile.instructions.iter().map(project_theirs).collect()),
        Err(_) => Reading::Refused,
    }
}

fn project_theirs(instruction: &oracle::Instruction) -> Vec<String> {
    let strings = |kind: &str, parts: Vec<String>| [vec![kind.to_owned()], parts].concat();
    let command = |kind: &str, expression: &oracle::ShellOrExecExpr| match expression {
        oracle::ShellOrExecExpr::Shell(text) => {
            strings(kind, vec!["shell".to_owned(), text.to_string().trim_end().to_owned()])
        }
        oracle::ShellOrExecExpr::Exec(array) => {
            let arguments = array.as_str_vec().into_iter().map(str::to_owned).collect();
            strings(kind, [vec!["exec".to_owned()], arguments].concat())
        }
    };
    match instruction {
        oracle::Instruction::From(from) => {
            let flags = from.flags.iter().map(|flag| format!("--{}={}", flag.name, flag.value));
            let name = from.alias.iter().map(|alias| format!("AS {alias}"));
            strings("FROM", flags.chain([from.image.to_string()]).chain(name).collect())
        }
        oracle::Instruction::Arg(arg) => {
            let value = arg.value.as_ref().map(ToString::to_string);
            strings("ARG", [Some(arg.name.to_string()), value].into_iter().flatten().collect())
        }
        oracle::Instruction::Label(label) => strings(
            "LABEL",
            label.labels.iter().flat_map(|label| [label.name.to_string(), label.value.to_string()]).collect(),
        ),
        oracle::Instruction::Env(env) => {
            strings("ENV", env.vars.iter().flat_map(|pair| [pair.key.to_string(), pair.value.to_string()]).collect())
        }
        oracle::Instruction::Run(run) => command("RUN", &run.expr),
        oracle::Instruction::Cmd(cmd) => command("CMD", &cmd.expr),
        oracle::Instruction::Entrypoint(entrypoint) => command("ENTRYPOINT", &entrypoint.expr),
        oracle::Instruction::Copy(copy) => {
            let flags = copy.flags.iter().map(|flag| format!("--{}={}", flag.name, flag.value));
            let paths = copy.sources.iter().chain([&copy.destination]).map(ToString::to_string);
            strings("COPY", flags.chain(paths).collect())
        }
        oracle::Instruction::Misc(misc) => {
            strings(&misc.instruction.to_string().to_uppercase(), vec![misc.arguments.to_string().trim().to_owned()])
        }
    }
}
