//! Properties of the parser and of word expansion over generated texts.

#[path = "support/dockerfile_invariants.rs"]
mod invariants;

use builder_core::dockerfile::words::{expand, expand_heredoc};
use builder_core::dockerfile::{self, CommandLine, InstructionKind};
use proptest::prelude::*;

/// Text that is likely to mean something: pieces of the language in any order.
fn likely_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => prop::sample::select(vec![
            "FROM ", "RUN ", "COPY ", "ADD ", "ENV ", "ARG ", "LABEL ", "ONBUILD ", "HEALTHCHECK ", "SHELL ", "CMD ",
            "USER ", "EXPOSE ", "VOLUME ", "WORKDIR ", "from x AS y", "# escape=`", "# check=", "# syntax=a", "\n", "\n",
            "\r\n", "\\\n", "`\n", "\\", "`", " ", "\t", "#", "=", "\"", "'", "[\"a\"", ", \"b\"]", "]", "--from=a ",
            "--mount=type=", "--", "<<EOF", "<<-", "\nEOF\n", "$x", "${x", ":-", "}", "${x/a/b}", "%%*", "CMD", "NONE",
            "\u{feff}", "é", "\u{a0}", "\0", ",", "a=b", "1s", "--retries=", "--interval=",
        ]).prop_map(str::to_owned),
        1 => "[ -~]{0,8}",
        1 => any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
}

/// A word of a model file: its value, and a way to write it.
fn word() -> impl Strategy<Value = (String, String)> {
    let value = "[a-zA-Z0-9_./:@%+ $'\"\\\\é-]{1,12}";
    (value, 0..3_u8)
        .prop_map(|(value, style)| {
            let written = match style {
                0 if !value.contains('\'') => format!("'{value}'"),
                1 => {
                    let escaped: String = value
                        .chars()
                        .flat_map(|c| matches!(c, '"' | '\\' | '$').then_some('\\').into_iter().chain([c]))
                        .collect();
                    format!("\"{escaped}\"")
                }
                _ => value
                    .chars()
                    .flat_map(|c| matches!(c, '"' | '\'' | '\\' | '$' | ' ').then_some('\\').into_iter().chain([c]))
                    .collect(),
            };
            (value, written)
        })
        // Blanks at the end of a line are dropped, and an escape before them continues it.
        .prop_filter("no blank at the end", |(_, written)| !written.ends_with(' '))
}

/// An instruction of a model file.
#[derive(Debug, Clone)]
enum Model {
    Env(Vec<(String, String, String)>),
    Run(String),
    Exec(Vec<String>),
    Copy(Vec<String>),
    Heredoc { name: String, body: Vec<String> },
    Workdir(String),
}

fn model() -> impl Strategy<Value = Model> {
    let plain = "[a-z0-9/._]{1,8}";
    prop_oneof![
        prop::collection::vec(("[A-Z_][A-Z0-9_]{0,6}", word()), 1..4)
            .prop_map(|pairs| Model::Env(pairs.into_iter().map(|(key, (value, raw))| (key, value, raw)).collect())),
        "[a-z][a-z0-9 ;&|>/$\"'é.=-]{0,30}[a-z]".prop_map(Model::Run),
        prop::collection::vec("\\PC{0,8}", 0..4).prop_map(Model::Exec),
        prop::collection::vec(plain, 2..5).prop_map(Model::Copy),
        ("[A-Z]{3,5}", prop::collection::vec("[ -~\t]{0,12}", 0..4))
            .prop_filter("the body must not hold the terminator", |(name, body)| !body.contains(name))
            .prop_map(|(name, body)| Model::Heredoc { name, body }),
        "/[a-z][a-z /]{0,10}[a-z]".prop_map(Model::Workdir),
    ]
}

/// How a model file is laid out.
#[derive(Debug, Clone)]
struct Layout {
    lower: bool,
    crlf: bool,
    /// Breaks lines at blanks between words, with these lines in between.
    breaks: Option<Vec<&'static str>>,
    indent: &'static str,
}

fn layout() -> impl Strategy<Value = Layout> {
    let lines = prop::collection::vec(prop::sample::select(vec!["# note", "", "   # note", "\t"]), 0..3);
    (any::<bool>(), any::<bool>(), prop::option::of(lines), prop::sample::select(vec!["", "  ", "\t"]))
        .prop_map(|(lower, crlf, breaks, indent)| Layout { lower, crlf, breaks, indent })
}

impl Layout {
    /// Writes an instruction whose words may be broken apart.
    fn line(&self, keyword: &str, words: &[String]) -> String {
        let end = if self.crlf { "\r\n" } else { "\n" };
        let keyword = if self.lower { keyword.to_lowercase() } else { keyword.to_owned() };
        let separator = match &self.breaks {
            Some(lines) => {
                let between: String = lines.iter().map(|line| format!("{line}{end}")).collect();
                format!(" \\ {end}{between} ")
            }
            None => " ".to_owned(),
        };
        let words: String = words.iter().map(|word| format!("{separator}{word}")).collect();
        format!("{}{keyword}{words}{end}", self.indent)
    }

    fn print(&self, models: &[Model]) -> String {
        let mut text = self.line("FROM", &["x".to_owned()]);
        for model in models {
            text += &match model {
                Model::Env(pairs) => {
                    let words: Vec<String> = pairs.iter().map(|(key, _, raw)| format!("{key}={raw}")).collect();
                    self.line("ENV", &words)
                }
                Model::Run(command) => self.line("RUN", std::slice::from_ref(command)),
                Model::Exec(arguments) => {
                    self.line("CMD", &[serde_json::to_string(arguments).expect("because texts are JSON")])
                }
                Model::Copy(words) => self.line("COPY", words),
                Model::Heredoc { name, body } => {
                    let lines: String = body.iter().map(|line| format!("{line}\n")).collect();
                    self.line("COPY", &[format!("<<{name}"), "/to".to_owned()]) + &lines + name + "\n"
                }
                Model::Workdir(path) => self.line("WORKDIR", std::slice::from_ref(path)),
            };
        }
        text
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_is_read(text in any::<String>()) {
        invariants::check_text(&text);
    }

    #[test]
    fn likely_text_is_read(text in likely_text()) {
        invariants::check_text(&text);
    }

    #[test]
    fn any_word_expands(word in "([$#%/?+:*a-z{}'\"\\\\` -]|\\$\\{x)*") {
        invariants::check_expansion(&word, '\\');
        invariants::check_expansion(&word, '`');
    }

    #[test]
    fn printed_models_are_read_back(models in prop::collection::vec(model(), 0..6), layout in layout()) {
        let text = layout.print(&models);
        let dockerfile = dockerfile::parse(&text).map_err(|errors| TestCaseError::fail(format!("{text:?}: {errors}")))?;
        prop_assert_eq!(dockerfile.instructions.len(), models.len() + 1, "{:?}", text);
        for (instruction, model) in dockerfile.instructions[1..].iter().zip(&models) {
            match (&instruction.kind, model) {
                (InstructionKind::Env(pairs), Model::Env(expected)) => {
                    prop_assert_eq!(pairs.len(), expected.len());
                    for (pair, (key, value, raw)) in pairs.iter().zip(expected) {
                        prop_assert_eq!((&pair.key, &pair.value), (key, raw));
                        let expanded = expand(&pair.value, '\\', &[("x", "y")]);
                        prop_assert_eq!(expanded.map(|expanded| expanded.text), Ok(value.clone()));
                    }
                }
                (InstructionKind::Run(run), Model::Run(command)) => {
                    prop_assert_eq!(&run.command, &CommandLine::Shell(command.clone()));
                }
                (InstructionKind::Cmd(command), Model::Exec(arguments)) => {
                    prop_assert_eq!(command, &CommandLine::Exec(arguments.clone()));
                }
                (InstructionKind::Copy(copy), Model::Copy(words)) => {
                    let found: Vec<&String> =
                        copy.sources.iter().chain([&copy.destination]).map(|word| &word.raw).collect();
                    prop_assert_eq!(found, words.iter().collect::<Vec<_>>());
                }
                (InstructionKind::Copy(copy), Model::Heredoc { name, body }) => {
                    let body: String = body.iter().map(|line| format!("{line}\n")).collect();
                    prop_assert_eq!(copy.heredocs.len(), 1);
                    prop_assert_eq!((&copy.heredocs[0].name, &copy.heredocs[0].body), (name, &body));
                }
                (InstructionKind::Workdir(word), Model::Workdir(path)) => prop_assert_eq!(&word.raw, path),
                (found, expected) => prop_assert!(false, "{:?} is read as {:?}", expected, found),
            }
        }
    }

    #[test]
    fn quoting_undoes_expansion((value, written) in word()) {
        prop_assert_eq!(expand(&written, '\\', &[("a", "b")]).map(|expanded| expanded.text), Ok(value));
    }

    #[test]
    fn operators_follow_the_value(value in "[a-z.*?]{0,8}", other in "[a-z]{1,5}") {
        let text = |raw: &str| expand(raw, '\\', &[("v", value.as_str()), ("w", other.as_str())]).map(|expanded| expanded.text);
        let is_empty = value.is_empty();
        let or = |condition: bool, yes: &String| Ok(if condition { yes.clone() } else { String::new() });
        prop_assert_eq!(text("${v:-$w}"), Ok(if is_empty { other.clone() } else { value.clone() }));
        prop_assert_eq!(text("${v-$w}"), Ok(value.clone()));
        prop_assert_eq!(text("${u-$w}"), Ok(other.clone()));
        prop_assert_eq!(text("${v:+$w}"), or(!is_empty, &other));
        prop_assert_eq!(text("${v+$w}"), Ok(other.clone()));
        prop_assert_eq!(text("${v:?m}").is_err(), is_empty);
    }

    #[test]
    fn stripping_leaves_an_end_or_a_beginning(value in "[ab.]{0,12}", pattern in "[ab.*?]{0,6}") {
        let env = [("v", value.as_str()), ("p", pattern.as_str())];
        let text = |raw: &str| expand(raw, '\\', &env).expect("because these patterns are correct").text;
        let (short, long) = (text("${v#$p}"), text("${v##$p}"));
        prop_assert!(value.ends_with(&short) && short.ends_with(&long), "{} {}", short, long);
        let (short, long) = (text("${v%$p}"), text("${v%%$p}"));
        prop_assert!(value.starts_with(&short) && short.starts_with(&long), "{} {}", short, long);
        // What a literal pattern strips is the pattern itself.
        if !pattern.contains(['*', '?']) {
            prop_assert_eq!(text("${v#$p}"), value.strip_prefix(&pattern).unwrap_or(&value));
            prop_assert_eq!(text("${v%$p}"), value.strip_suffix(&pattern).unwrap_or(&value));
            prop_assert_eq!(text("${v/\"$p\"/X}"), value.replacen(&pattern, "X", 1));
            prop_assert_eq!(text("${v//\"$p\"/X}"), value.replace(&pattern, "X"));
        }
    }

    #[test]
    fn heredoc_bodies_without_dollar_and_escape_stay(body in "[^$\\\\]{0,40}") {
        prop_assert_eq!(expand_heredoc(&body, &[("a", "b")]).map(|expanded| expanded.text), Ok(body));
    }
}
