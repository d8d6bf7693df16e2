//! What planning can fail with.

use std::error::Error;
use std::fmt;

use super::chmod::ChmodError;
use super::mount::MountError;
use super::port::PortError;
use crate::dockerfile::lint::{CheckOptionError, LintViolation};
use crate::dockerfile::words::ExpandError;
use crate::dockerfile::{Finding, LineRange, ParseErrors, Quoted, Span};
use crate::hint::Hint;
use crate::oci::{PlatformParseError, ReferenceParseError};

/// Why a Dockerfile cannot be planned. Displays as BuildKit words it.
#[derive(Debug, Clone, PartialEq)]
pub struct PlanError {
    /// The lines of the instructions at fault: none where BuildKit names none, several for a cycle.
    pub lines: Vec<LineRange>,
    /// What exactly is at fault, for a caret.
    pub span: Option<Span>,
    /// What is wrong.
    pub kind: Box<PlanErrorKind>,
    /// What lint rules found before (checklist L-24).
    pub findings: Vec<Finding>,
}

impl fmt::Display for PlanError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)
    }
}

impl Error for PlanError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}

/// Why a Dockerfile cannot be planned.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanErrorKind {
    /// A word cannot be expanded.
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// A `--mount` is wrong.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// An `EXPOSE` is wrong.
    #[error(transparent)]
    Port(#[from] PortError),
    /// A `--chmod` is wrong.
    #[error(transparent)]
    Chmod(#[from] ChmodError),
    /// An `ONBUILD` trigger cannot be read.
    #[error("{}", trigger_message(.0))]
    Trigger(ParseErrors),
    /// The base of a FROM expands to nothing.
    #[error("base name ({raw}) should not be blank")]
    BlankBase {
        /// As written.
        raw: String,
    },
    /// The platform of a FROM expands to nothing.
    #[error("empty platform value from expression {raw}{}", did_you_mean(suggestion))]
    EmptyPlatform {
        /// As written.
        raw: String,
        /// A global argument near the one that is missing.
        suggestion: Option<String>,
    },
    /// The platform of a FROM is none.
    #[error("failed to parse platform {raw}")]
    Platform {
        /// As written.
        raw: String,
        /// What is wrong with its value.
        source: PlatformParseError,
    },
    /// The base of a FROM, or the image of a `--from`, is no reference.
    #[error("failed to parse stage name {}", Quoted(name))]
    StageName {
        /// Expanded.
        name: String,
        /// What is wrong with it.
        source: ReferenceParseError,
    },
    /// A stage's name could not be that of a `--build-context` in its place.
    #[error("invalid context name {name}")]
    ContextName {
        /// Lower-cased.
        name: String,
        /// What is wrong with it.
        source: ReferenceParseError,
    },
    /// `--target` names no stage.
    #[error("target stage {} could not be found{}", Quoted(target), did_you_mean(suggestion))]
    UnknownTarget {
        /// What was asked for.
        target: String,
        /// A stage near it.
        suggestion: Option<String>,
    },
    /// Stages copy from each other.
    #[error("circular dependency detected on stage: {stage}")]
    Cycle {
        /// Name, or `stage-<position>`.
        stage: String,
    },
    /// `COPY --from=<number>` without such a stage.
    #[error("invalid stage index {index}")]
    StageIndex {
        /// What was given.
        index: i64,
    },
    /// `COPY --from=$x`.
    #[error(
        "variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround"
    )]
    CopyFromExpands,
    /// `COPY --from` a later stage.
    #[error("cannot copy from stage {}, it needs to be defined before current stage {}", Quoted(from), Quoted(stage))]
    CopyFromLaterStage {
        /// The later one.
        from: String,
        /// The one that copies.
        stage: String,
    },
    /// `RUN --mount=from=` a later stage.
    #[error(
        "cannot mount from stage {} to {}, stage needs to be defined before current command",
        Quoted(from),
        Quoted(target)
    )]
    MountFromLaterStage {
        /// The later one.
        from: String,
        /// Where it would be mounted.
        target: String,
    },
    /// Named contexts that lead from one to the next without end.
    #[error("context recursion detected on {}", Quoted(name))]
    NamedContextLoop {
        /// The name it began with.
        name: String,
    },
    /// `COPY` of a URL.
    #[error("source can't be a URL for COPY")]
    CopyUrl,
    /// `COPY` of a git repository.
    #[error("source can't be a git ref for COPY")]
    CopyGit,
    /// `--checksum` with several sources.
    #[error("checksum can't be specified for multiple sources")]
    ChecksumSeveralSources,
    /// `--checksum` of a local file.
    #[error("checksum requires HTTP(S) or Git sources")]
    ChecksumLocal,
    /// `--checksum` of a URL that is no digest.
    #[error("invalid checksum digest format: {text}")]
    ChecksumFormat {
        /// What was given.
        text: String,
    },
    /// `STOPSIGNAL`
    #[error("invalid signal: {signal}")]
    Signal {
        /// Expanded.
        signal: String,
    },
    /// A `VOLUME` that expands to nothing.
    #[error("VOLUME specified can not be an empty string")]
    BlankVolume,
    /// `RUN --device`
    #[error("device feature is only supported in Dockerfile frontend 1.14.0-labs or later")]
    Device,
    /// `RUN []`
    #[error("arguments are required")]
    NoArguments,
    /// An entitlement that was not given.
    #[error("{entitlement} is not allowed")]
    NotAllowed {
        /// `network.host` or `security.insecure`.
        entitlement: &'static str,
    },
    /// Rules found something, and `error=true` is set.
    #[error(transparent)]
    Lint(#[from] LintViolation),
    /// `# check=` cannot be read.
    #[error(transparent)]
    CheckOption(#[from] CheckOptionError),
    /// `SOURCE_DATE_EPOCH` is neither a number nor a context or stage.
    #[error("invalid SOURCE_DATE_EPOCH: {value}")]
    Epoch {
        /// What was given.
        value: String,
    },
    /// `# syntax=` names a frontend that reads another language.
    #[error("frontend {reference} is not available: slipway reads the language of docker/dockerfile itself")]
    Frontend {
        /// As written.
        reference: String,
    },
    /// A build argument that cannot be followed.
    #[error("build argument {name} is not supported")]
    BuildArg {
        /// Its name.
        name: String,
    },
}

/// A trigger's error without its own line: it stands in another file.
fn trigger_message(errors: &ParseErrors) -> String {
    let error = errors.first();
    match &error.suggestion {
        Some(suggestion) => format!("{} (did you mean {suggestion}?)", error.kind),
        None => error.kind.to_string(),
    }
}

fn did_you_mean(suggestion: &Option<String>) -> String {
    suggestion.as_ref().map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

impl PlanError {
    /// An error that points at no line.
    pub(super) fn new(kind: PlanErrorKind) -> Self {
        Self { lines: Vec::new(), span: None, kind: Box::new(kind), findings: Vec::new() }
    }

    /// An error at an instruction.
    pub(super) fn at(kind: PlanErrorKind, lines: LineRange, span: &Span) -> Self {
        Self { lines: vec![lines], span: Some(span.clone()), kind: Box::new(kind), findings: Vec::new() }
    }
}

impl Hint for PlanError {
    fn hint(&self) -> Option<String> {
        self.kind.hint()
    }
}

impl Hint for PlanErrorKind {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Expand(error) => return error.hint(),
            Self::Trigger(errors) => return errors.hint(),
            Self::BlankBase { .. } => {
                "declare the ARG before the first FROM, with a default, or give it with --build-arg".to_owned()
            }
            Self::EmptyPlatform { .. } => {
                "only ARGs before the first FROM and TARGET…/BUILD… names count here".to_owned()
            }
            Self::StageName { name, .. } if name.to_lowercase() != *name => {
                format!("image names are lower-case; a stage is found as `{}`", name.to_lowercase())
            }
            Self::ContextName { .. } => {
                "a stage is called as an image could be: a-z and 0-9, with `.`, `_`, `__` or dashes between them"
                    .to_owned()
            }
            Self::CopyFromExpands => "write `FROM $IMAGE AS name`, then `COPY --from=name`".to_owned(),
            Self::CopyFromLaterStage { from, .. } | Self::MountFromLaterStage { from, .. } => {
                format!("move stage `{from}` up")
            }
            Self::CopyUrl | Self::CopyGit => "use ADD".to_owned(),
            Self::Device => {
                "devices cannot be given to a RUN here: leave the flag out, and do in a container what needs one"
                    .to_owned()
            }
            Self::NotAllowed { entitlement } => format!("allow it with `--allow {entitlement}`"),
            Self::Frontend { .. } => {
                "remove the line if the file needs no more than that; a frontend image is a program for BuildKit"
                    .to_owned()
            }
            Self::Epoch { .. } => {
                "it is a number of seconds since 1970, `context`, a context of files, or a stage that is \
                                   FROM scratch with one ADD of a URL or git source"
                    .to_owned()
            }
            _ => return None,
        })
    }
}
