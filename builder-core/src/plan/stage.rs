//! One stage while its instructions are read: environment, config, history, steps.

use std::collections::BTreeMap;

use serde_json::Value;

use super::copy::Ignored;
use super::error::{PlanError, PlanErrorKind};
use super::graph::Origins;
use super::outline::{Outline, Place, full_name, set};
use super::parameters::{Argument, Declared, description};
use super::text;
use super::types::{Action, FileSource, PlanOptions, PlannedHistory, StageId, Step, WorkdirAction};
use crate::dockerfile::lint::{self, Rule, messages};
use crate::dockerfile::words::{self, Expanded};
use crate::dockerfile::{ArgPair, CommandLine, Finding, Instruction, KeyValue, Span, Word};
use crate::hint::suggest::nearest;
use crate::oci::{ImageConfig, Platform};

/// `PATH` of an image that has none (checklist A-14).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// ARGs that steer the software bill of materials and never enter an environment (checklist A-09).
const NEVER_IN_ENV: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// What all stages read.
pub(super) struct Shared<'a> {
    pub(super) options: &'a PlanOptions,
    pub(super) outline: Outline,
    /// `None` if the rule CopyIgnoredFile cannot be applied.
    pub(super) ignored: Option<Ignored>,
    pub(super) findings: Vec<Finding>,
    /// The first error that BuildKit would tell only when everything else is planned.
    pub(super) late: Option<PlanError>,
}

/// What a stage passes on to the stages that begin with it.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) config: ImageConfig,
    pub(super) history: Vec<PlannedHistory>,
    /// What words and RUNs see; of a repeated name only the last setting is there, at its place.
    pub(super) env: Vec<(String, String)>,
    /// ARGs declared so far, in order, repetitions included.
    pub(super) args: Vec<(String, Option<String>)>,
    pub(super) platform: Platform,
    /// A WORKDIR of this Dockerfile has been read.
    pub(super) workdir_set: bool,
    /// The base image was not looked up: it may set variables.
    pub(super) unknown_base: bool,
}

/// An instruction of a stage, or a trigger in front of them.
pub(super) struct Command<'a> {
    pub(super) instruction: &'a Instruction,
    /// Of FROM, for a trigger.
    pub(super) place: Place,
    pub(super) origins: Origins,
    pub(super) trigger: bool,
    pub(super) escape: char,
}

impl Command<'_> {
    pub(super) fn error(&self, kind: impl Into<PlanErrorKind>, span: &Span) -> PlanError {
        // Spans of a trigger point into the trigger's text.
        let span = if self.trigger { &self.place.span } else { span };
        PlanError::at(kind.into(), self.place.lines, span)
    }
}

/// A stage being read.
pub(super) struct StageBuilder<'a, 'b> {
    pub(super) shared: &'b mut Shared<'a>,
    pub(super) state: State,
    pub(super) id: StageId,
    /// Name in titles; empty if there is only one stage.
    pub(super) label: String,
    /// Name in messages.
    pub(super) name: String,
    pub(super) steps: Vec<Step>,
    pub(super) arguments: Vec<Declared>,
    pub(super) step_number: usize,
    pub(super) step_total: usize,
    /// Which stages can be copied from: those that were read before this one.
    pub(super) done: &'b BTreeMap<usize, StageId>,
    pub(super) cmd: Option<Span>,
    pub(super) entrypoint: Option<Span>,
    pub(super) healthcheck: Option<Span>,
}

impl StageBuilder<'_, '_> {
    /// What BuildKit does before the first instruction: PATH, environment, working directory.
    pub(super) fn begin(&mut self) {
        let config = &mut self.state.config;
        if !config.env().iter().any(|(name, _)| name == "PATH") && self.state.platform.os != "windows" {
            config.set_env("PATH", DEFAULT_PATH);
        }
        for (name, value) in config.env() {
            set(&mut self.state.env, &name, value);
        }
        let workdir = config.text("WorkingDir").to_owned();
        if !workdir.is_empty() && !workdir.starts_with('/') {
            config.set("WorkingDir", text::join("/", &workdir).into());
        }
    }

    /// The current directory, as the config holds it; `/` if it holds none.
    pub(super) fn workdir(&self) -> String {
        match self.state.config.text("WorkingDir") {
            "" => "/".to_owned(),
            workdir => workdir.to_owned(),
        }
    }

    // ---- words ----

    /// Expands a word with the stage's environment.
    pub(super) fn word(&mut self, command: &Command<'_>, word: &Word) -> Result<String, PlanError> {
        self.text(command, &word.raw, &word.span)
    }

    /// Expands a text that stands at `span`.
    pub(super) fn text(&mut self, command: &Command<'_>, raw: &str, span: &Span) -> Result<String, PlanError> {
        let expanded = words::expand(raw, command.escape, &self.state.env);
        let expanded = expanded.map_err(|error| command.error(error, span))?;
        Ok(self.undefined(command, expanded))
    }

    /// Lint rule UndefinedVar (checklist L-11).
    pub(super) fn undefined(&mut self, command: &Command<'_>, expanded: Expanded) -> String {
        for name in &expanded.unset {
            self.undefined_name(command, name);
        }
        expanded.text
    }

    pub(super) fn undefined_name(&mut self, command: &Command<'_>, name: &str) {
        let declared = self.state.args.iter().any(|(arg, _)| arg == name);
        if declared || self.state.unknown_base || NEVER_IN_ENV.contains(&name) {
            return;
        }
        let near = nearest(name, self.state.env.iter().map(|(name, _)| name.as_str()));
        let message = messages::undefined_var(name, near);
        self.find(command, Rule::UndefinedVar, message);
    }

    pub(super) fn find(&mut self, command: &Command<'_>, rule: Rule, message: String) {
        self.find_at(&command.place.span, rule, message);
    }

    pub(super) fn find_at(&mut self, span: &Span, rule: Rule, message: String) {
        self.shared.findings.push(rule.finding(message, span.clone()));
    }

    // ---- history and steps ----

    /// A history item without a layer.
    pub(super) fn note(&mut self, created_by: String) {
        self.state.history.push(PlannedHistory::New { created_by, step: None });
    }

    /// A step and its history item.
    pub(super) fn step(&mut self, command: &Command<'_>, title: &str, action: Action, created_by: String) {
        let title = self.title(command, title);
        let step = Some((self.id, self.steps.len()));
        self.state.history.push(PlannedHistory::New { created_by: created_by.clone(), step });
        self.steps.push(Step { title, lines: command.place.lines, action, created_by });
    }

    /// `[stage 2/5] RUN make` (checklist S-09).
    fn title(&mut self, command: &Command<'_>, text: &str) -> String {
        let (keyword, rest) = text.split_at(text.find(' ').unwrap_or(text.len()));
        let onbuild = if command.trigger { "ONBUILD " } else { "" };
        format!("{}{onbuild}{}{rest}", self.title_prefix(), keyword.to_uppercase())
    }

    /// `[linux/arm64 stage  2/12] `, counting up.
    pub(super) fn title_prefix(&mut self) -> String {
        self.step_number += 1;
        let platform = match self.shared.options.multi_platform {
            true => {
                let (own, target) = (full_name(&self.state.platform), full_name(&self.shared.outline.platform));
                if own == target {
                    format!("{own} ")
                } else {
                    format!("{own}->{} ", self.shared.outline.platform.architecture)
                }
            }
            false => String::new(),
        };
        let stage = if self.label.is_empty() { String::new() } else { format!("{} ", self.label) };
        let width = self.step_total.max(1).ilog10() as usize + 1;
        format!("[{platform}{stage}{:>width$}/{}] ", self.step_number, self.step_total)
    }

    /// The instruction's text with variables filled in, for titles; as written if that fails.
    pub(super) fn title_text(&self, command: &Command<'_>) -> String {
        let text = command.instruction.text.trim();
        words::expand(text, command.escape, &self.state.env).map_or_else(|_| text.to_owned(), |expanded| expanded.text)
    }

    // ---- instructions that change the environment ----

    pub(super) fn arg(&mut self, command: &Command<'_>, pairs: &[ArgPair]) -> Result<(), PlanError> {
        let mut shown = Vec::new();
        for pair in pairs {
            self.secret_name(command, "ARG", &pair.name);
            let given = self.shared.outline.build_args.get(&pair.name).cloned();
            let (value, global) = match (given, &pair.default) {
                (Some(given), _) => (Some(given), false),
                (None, Some(default)) => (Some(self.text(command, default, &pair.span)?), false),
                (None, None) => {
                    let globals = &self.shared.outline.globals;
                    let global = globals.iter().find(|(name, _)| *name == pair.name).map(|(_, value)| value.clone());
                    let is_global = global.is_some();
                    (global, is_global)
                }
            };
            let argument = Argument {
                name: pair.name.clone(),
                value: value.clone(),
                description: description(command.instruction, &pair.name),
                lines: command.place.lines,
            };
            self.arguments.push(Declared { argument, global });
            if let Some(value) = &value
                && !NEVER_IN_ENV.contains(&pair.name.as_str())
            {
                set(&mut self.state.env, &pair.name, value.clone());
            }
            shown.push(match &value {
                Some(value) => format!("{}={value}", pair.name),
                None => pair.name.clone(),
            });
            self.state.args.push((pair.name.clone(), value));
        }
        self.note(format!("ARG {}", shown.join(" ")));
        Ok(())
    }

    pub(super) fn env(&mut self, command: &Command<'_>, pairs: &[KeyValue]) -> Result<(), PlanError> {
        let mut created_by = "ENV".to_owned();
        for (key, value) in self.pairs(command, pairs)? {
            self.secret_name(command, "ENV", &key);
            created_by.push_str(&format!(" {key}={value}"));
            self.state.config.set_env(&key, &value);
            set(&mut self.state.env, &key, value);
        }
        self.note(created_by);
        Ok(())
    }

    pub(super) fn label(&mut self, command: &Command<'_>, pairs: &[KeyValue]) -> Result<(), PlanError> {
        let mut created_by = "LABEL".to_owned();
        for (key, value) in self.pairs(command, pairs)? {
            created_by.push_str(&format!(" {key}={value}"));
            self.state.config.insert("Labels", &key, value.into());
        }
        self.note(created_by);
        Ok(())
    }

    /// Expands all pairs with the environment from before the instruction (checklist W-14).
    fn pairs(&mut self, command: &Command<'_>, pairs: &[KeyValue]) -> Result<Vec<(String, String)>, PlanError> {
        if let Some(mut finding) = lint::legacy_key_value(command.instruction) {
            finding.span = command.place.span.clone();
            self.shared.findings.push(finding);
        }
        let mut expanded = Vec::with_capacity(pairs.len());
        for pair in pairs {
            let key = self.text(command, &pair.key, &pair.span)?;
            expanded.push((key, self.text(command, &pair.value, &pair.span)?));
        }
        Ok(expanded)
    }

    fn secret_name(&mut self, command: &Command<'_>, instruction: &str, name: &str) {
        if lint::sounds_secret(name) {
            let message = messages::secrets_used_in_arg_or_env(instruction, name);
            self.find(command, Rule::SecretsUsedInArgOrEnv, message);
        }
    }

    // ---- WORKDIR and commands ----

    pub(super) fn change_directory(&mut self, command: &Command<'_>, word: &Word) -> Result<(), PlanError> {
        let path = self.word(command, word)?;
        if !self.state.workdir_set && !path.starts_with('/') {
            self.find(command, Rule::WorkdirRelativePath, messages::workdir_relative_path(&path));
        }
        self.state.workdir_set = true;
        // An absolute value is stored as written, a relative one joined and cleaned (checklist I-17).
        let workdir = if path.starts_with('/') { path } else { text::join(&self.workdir(), &path) };
        self.state.config.set("WorkingDir", workdir.as_str().into());
        let created_by = format!("WORKDIR {workdir}");
        if workdir == "/" {
            self.note(created_by);
            return Ok(());
        }
        let title = self.title_text(command);
        let action = Action::Workdir(WorkdirAction {
            path: text::clean(&workdir),
            user: self.state.config.text("User").to_owned(),
            source_date_epoch: self.shared.outline.source_date_epoch,
        });
        self.step(command, &title, action, created_by);
        Ok(())
    }

    /// The stage's SHELL in front of a shell-form command (checklist R-01).
    pub(super) fn with_shell(&self, text: String) -> Vec<String> {
        let mut argv = self.state.config.list("Shell");
        if argv.is_empty() {
            let default: &[&str] = match self.state.platform.os.as_str() {
                "windows" => &["cmd", "/S", "/C"],
                _ => &["/bin/sh", "-c"],
            };
            argv = default.iter().map(|word| (*word).to_owned()).collect();
        }
        argv.push(text);
        argv
    }

    /// The argument list of CMD or ENTRYPOINT.
    pub(super) fn default_command(&mut self, command: &Command<'_>, name: &str, line: &CommandLine) -> Vec<String> {
        match line {
            CommandLine::Exec(argv) => argv.clone(),
            CommandLine::Shell(text) => {
                if self.state.config.list("Shell").is_empty() {
                    self.find(command, Rule::JsonArgsRecommended, messages::json_args_recommended(name));
                }
                self.with_shell(text.clone())
            }
        }
    }

    /// Lint rule MultipleInstructionsDisallowed; told at the instruction that loses (checklist L-12).
    pub(super) fn once(&mut self, name: &str, earlier: Option<Span>) {
        if let Some(earlier) = earlier {
            let message = messages::multiple_instructions_disallowed(name);
            self.find_at(&earlier, Rule::MultipleInstructionsDisallowed, message);
        }
    }

    /// ARG values in scope, for saying what changed.
    pub(super) fn args_in_scope(&self) -> BTreeMap<String, String> {
        let env: BTreeMap<&str, &str> =
            self.state.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.state
            .args
            .iter()
            .filter_map(|(name, value)| {
                let value = env.get(name.as_str()).map(|value| (*value).to_owned()).or_else(|| value.clone())?;
                Some((name.clone(), value))
            })
            .collect()
    }

    /// Where the files of a `--from` are; `None` for a stage that has not been read yet.
    pub(super) fn file_source(&self, origin: &super::outline::Origin) -> Option<FileSource> {
        use super::outline::{Origin, StageBase};
        Some(match origin {
            Origin::Scratch => FileSource::Scratch,
            Origin::Image(request) => FileSource::Image(request.clone()),
            Origin::Context(key) => FileSource::NamedContext(key.clone()),
            Origin::Stage(position) => {
                let stage = &self.shared.outline.stages[*position];
                match (&stage.base, stage.replaced) {
                    // The context itself: its own `.dockerignore` and owners count.
                    (StageBase::Context(key), true) => FileSource::NamedContext(key.clone()),
                    _ => FileSource::Stage(*self.done.get(position)?),
                }
            }
        })
    }

    /// A field of the config as a list of texts.
    pub(super) fn set_list(&mut self, field: &str, items: &[String]) {
        self.state.config.set(field, Value::from(items.to_vec()));
    }
}
