//! What a Dockerfile's text can be refused for.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::instruction::{Dockerfile, Finding};
use super::quote::Quoted;
use super::source::{LineRange, Span};
use crate::hint::Hint;

/// The longest physical line, in bytes, without its line feed: BuildKit's scanner takes no more (P-14).
pub const MAX_LINE_BYTES: usize = 65_535;

/// At which stage BuildKit raises the same error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorClass {
    /// While lines are split; such an error anywhere is told before any of the later classes.
    Parse,
    /// While typed instructions are built.
    Instr,
    /// While stages are resolved.
    Convert,
}

/// One thing that is wrong with the text. Displays as BuildKit words it.
#[derive(Debug, Clone, PartialEq)]
pub struct ParseError {
    /// When BuildKit would tell it.
    pub class: ErrorClass,
    /// The lines of the instruction or directive at fault.
    pub lines: LineRange,
    /// What exactly is at fault.
    pub span: Span,
    /// What is wrong.
    pub kind: ParseErrorKind,
    /// A known name near the unknown one.
    pub suggestion: Option<String>,
    /// Whether the message begins with the line, as BuildKit's does for most errors of class [`ErrorClass::Instr`].
    pub(super) tells_line: bool,
}

impl ParseError {
    /// The lines that BuildKit would mark; `None` for no place at all. It counts a line only once it is done with it, so
    /// what is wrong with directives and with too long lines is told one line early.
    pub fn lines_in_buildkit(&self) -> Option<LineRange> {
        match self.kind {
            ParseErrorKind::DirectiveRepeated { .. }
            | ParseErrorKind::InvalidEscape { .. }
            | ParseErrorKind::LineTooLong { .. } => {
                let line = self.lines.first - 1;
                (line > 0).then_some(LineRange { first: line, last: line })
            }
            _ if self.class == ErrorClass::Convert => None,
            _ => Some(self.lines),
        }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.tells_line {
            write!(f, "dockerfile parse error on line {}: ", self.lines.first)?;
        }
        write!(f, "{}", self.kind)?;
        if let Some(suggestion) = &self.suggestion {
            write!(f, " (did you mean {suggestion}?)")?;
        }
        Ok(())
    }
}

impl std::error::Error for ParseError {}

/// Why a text is refused. The wording is BuildKit's where BuildKit refuses the same.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseErrorKind {
    /// A directive is given twice.
    #[error("only one {key} parser directive can be used")]
    DirectiveRepeated {
        /// `syntax`, `escape` or `check`.
        key: &'static str,
    },
    /// `# escape=` with something else than a backslash or backtick.
    #[error("invalid escape token '{value}' does not match ` or \\")]
    InvalidEscape {
        /// What was asked for.
        value: String,
    },
    /// A physical line is too long.
    #[error("dockerfile line greater than max allowed size of {MAX_LINE_BYTES}")]
    LineTooLong {
        /// Its length in bytes.
        bytes: usize,
    },
    /// Nothing but comments and blank lines.
    #[error("file with no instructions")]
    NoInstructions,
    /// Zero bytes.
    #[error("the Dockerfile cannot be empty")]
    Empty,
    /// Only `ARG`.
    #[error("dockerfile contains no stages to build")]
    NoStages,
    /// An instruction other than `ARG` before the first `FROM`.
    #[error("no build stage in current context")]
    NoStageYet,
    /// The terminator of a heredoc is missing.
    #[error("unterminated heredoc")]
    UnterminatedHeredoc {
        /// The line that would end it.
        name: String,
    },
    /// The first word is not an instruction.
    #[error("unknown instruction: {name}")]
    UnknownInstruction {
        /// As written.
        name: String,
    },
    /// A flag that the instruction does not have.
    #[error("unknown flag: {flag}")]
    UnknownFlag {
        /// With its dashes.
        flag: String,
    },
    /// A flag that may stand only once is repeated.
    #[error("duplicate flag specified: {flag}")]
    FlagRepeated {
        /// With its dashes.
        flag: String,
    },
    /// A flag lacks `=value`.
    #[error("missing a value on flag: {flag}")]
    FlagWithoutValue {
        /// With its dashes.
        flag: String,
    },
    /// A boolean flag with another value than `true` and `false`.
    #[error("expecting boolean value for flag {flag}, not: {value}")]
    FlagNotBoolean {
        /// With its dashes.
        flag: String,
        /// What was written.
        value: String,
    },
    /// `--network` with an unknown mode.
    #[error("invalid network mode {}", Quoted(value))]
    InvalidNetwork {
        /// What was written.
        value: String,
    },
    /// `--security` with an unknown mode.
    #[error("security {} is not valid", Quoted(value))]
    InvalidSecurity {
        /// What was written.
        value: String,
    },
    /// `RUN --mount=from=$x`.
    #[error("'from' doesn't support variable expansion, define alias stage instead")]
    MountFromExpands,
    /// The value of `--mount` is not a line of comma-separated values.
    #[error("failed to parse csv mounts: {problem}")]
    MountSyntax {
        /// What is wrong with it.
        problem: CsvProblem,
    },
    /// A JSON array with something else than texts.
    #[error("when using JSON array syntax, arrays must be comprised of strings only")]
    JsonNotStrings,
    /// `SHELL` without JSON.
    #[error("{instruction} requires the arguments to be in JSON form")]
    JsonRequired {
        /// In upper case.
        instruction: &'static str,
    },
    /// No arguments where one or more are needed.
    #[error("{instruction} requires at least one argument")]
    NoArgument {
        /// In upper case.
        instruction: &'static str,
    },
    /// Something else than one argument.
    #[error("{instruction} requires exactly one argument")]
    NotOneArgument {
        /// In upper case.
        instruction: &'static str,
    },
    /// `COPY` or `ADD` with fewer than two words.
    #[error(
        "{instruction} requires at least two arguments, but only one was provided. Destination could not be determined"
    )]
    NoDestination {
        /// `COPY` or `ADD`.
        instruction: &'static str,
    },
    /// `FROM` with two words, or more than three, or none.
    #[error("FROM requires either one or three arguments")]
    FromArguments,
    /// `FROM x AS name` with a name that is none.
    #[error("invalid name for build stage: {}, name can't start with a number or contain symbols", Quoted(name))]
    InvalidStageName {
        /// As written.
        name: String,
    },
    /// `ENV key` or `LABEL key` without a value.
    #[error("{instruction} must have two arguments")]
    NoValue {
        /// `ENV` or `LABEL`.
        instruction: &'static str,
    },
    /// A word of `ENV` or `LABEL` without `=`.
    #[error("Syntax error - can't find = in {}. Must be of the form: name=value", Quoted(word))]
    NoEquals {
        /// The word.
        word: String,
    },
    /// `=value`.
    #[error("{instruction} names can not be blank")]
    BlankName {
        /// `ARG`, `ENV` or `LABEL`.
        instruction: &'static str,
    },
    /// An empty path in `VOLUME`.
    #[error("VOLUME specified can not be an empty string")]
    BlankVolume,
    /// A heredoc where `COPY` or `ADD` needs a path.
    #[error("{instruction} cannot accept a heredoc as a destination")]
    HeredocDestination {
        /// `COPY` or `ADD`.
        instruction: &'static str,
    },
    /// `HEALTHCHECK CMD` and nothing else.
    #[error("Missing command after HEALTHCHECK CMD")]
    HealthcheckWithoutCommand,
    /// `HEALTHCHECK NONE x`.
    #[error("HEALTHCHECK NONE takes no arguments")]
    HealthcheckNoneArguments,
    /// `HEALTHCHECK x`.
    #[error("Unknown type {} in HEALTHCHECK (try CMD)", Quoted(word))]
    HealthcheckType {
        /// In upper case.
        word: String,
    },
    /// A duration that is not one.
    #[error("time: {problem}")]
    InvalidDuration {
        /// What is wrong with it.
        problem: DurationProblem,
    },
    /// A duration below a millisecond other than 0.
    #[error("Interval {} cannot be less than 1ms", Quoted(flag))]
    DurationTooShort {
        /// Without its dashes.
        flag: &'static str,
    },
    /// `--retries` is not a number of 32 bits.
    #[error("strconv.ParseInt: parsing {}: {}", Quoted(value), if *out_of_range { "value out of range" } else { "invalid syntax" })]
    InvalidRetries {
        /// What was written.
        value: String,
        /// It is a number, but too large.
        out_of_range: bool,
    },
    /// `--retries` below 0.
    #[error("--retries cannot be negative ({value})")]
    NegativeRetries {
        /// What was written.
        value: i64,
    },
    /// `ONBUILD ONBUILD`.
    #[error("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")]
    OnbuildChained,
    /// `ONBUILD FROM` or `ONBUILD MAINTAINER`.
    #[error("{instruction} isn't allowed as an ONBUILD trigger")]
    OnbuildNotAllowed {
        /// `FROM` or `MAINTAINER`.
        instruction: &'static str,
    },
    /// An `ONBUILD` trigger of a base that holds several instructions, or none.
    #[error("onbuild trigger should be a single expression")]
    TriggerNotSingle,
    /// An `ONBUILD` trigger of a base that is a `FROM`.
    #[error("FROM is not a command type")]
    TriggerIsFrom,
}

/// What is wrong with a line of comma-separated values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CsvProblem {
    /// No line at all.
    #[error("EOF")]
    Empty,
    /// A quote inside an unquoted field.
    #[error("parse error on line 1, column {column}: bare \" in non-quoted-field")]
    BareQuote {
        /// Counted from 1, in bytes.
        column: usize,
    },
    /// Text behind a closing quote, or no closing quote.
    #[error("parse error on line 1, column {column}: extraneous or missing \" in quoted-field")]
    Quote {
        /// Counted from 1, in bytes.
        column: usize,
    },
}

/// What is wrong with a duration, in the words of Go's `time` package.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DurationProblem {
    /// Not a duration at all, or too long.
    #[error("invalid duration {}", Quoted(value))]
    Invalid {
        /// What was written.
        value: String,
    },
    /// A number without unit.
    #[error("missing unit in duration {}", Quoted(value))]
    MissingUnit {
        /// What was written.
        value: String,
    },
    /// A unit that does not exist.
    #[error("unknown unit {} in duration {}", Quoted(unit), Quoted(value))]
    UnknownUnit {
        /// The unit.
        unit: String,
        /// What was written.
        value: String,
    },
}

impl Hint for ParseError {
    fn hint(&self) -> Option<String> {
        Some(match &self.kind {
            ParseErrorKind::UnterminatedHeredoc { name } => {
                format!("end it with a line that holds `{name}` and nothing else, without blanks behind it")
            }
            ParseErrorKind::NoStageYet => "only ARG may stand before the first FROM".to_owned(),
            ParseErrorKind::NoStages => "add a FROM".to_owned(),
            ParseErrorKind::NoEquals { .. } => {
                "quote a value that has blanks: name=\"some value\"; there are no comments behind an instruction"
                    .to_owned()
            }
            ParseErrorKind::NoDestination { .. } => "write the source, then the destination".to_owned(),
            ParseErrorKind::JsonRequired { .. } => r#"write it like ["/bin/sh", "-c"], with double quotes"#.to_owned(),
            ParseErrorKind::MountFromExpands => {
                "give the image a name with `FROM $image AS name`, then use that name".to_owned()
            }
            ParseErrorKind::InvalidStageName { .. } => {
                "begin with a letter, then letters, digits, `-`, `_` and `.`".to_owned()
            }
            ParseErrorKind::InvalidNetwork { .. } => "one of default, none, host".to_owned(),
            ParseErrorKind::InvalidSecurity { .. } => "one of sandbox, insecure".to_owned(),
            ParseErrorKind::InvalidDuration { problem: DurationProblem::MissingUnit { value } } => {
                format!("write `{value}s` for seconds")
            }
            _ => return None,
        })
    }
}

/// All that is wrong with a text.
#[derive(Debug, Clone, PartialEq)]
pub struct ParseErrors {
    /// At least one. The first is the one that BuildKit would stop at.
    errors: Vec<ParseError>,
    /// What could be read: the source, the directives, the correct instructions, and the findings.
    partial: Box<Dockerfile>,
}

impl ParseErrors {
    /// Orders the errors as BuildKit would meet them.
    ///
    /// # Panics
    /// If there is none.
    pub(super) fn new(mut errors: Vec<ParseError>, partial: Dockerfile) -> Self {
        assert!(!errors.is_empty(), "parse errors without an error");
        errors.sort_by_key(|error| (error.class, error.lines.first, error.span.0.start));
        Self { errors, partial: Box::new(partial) }
    }

    /// The error that BuildKit would stop at.
    pub fn first(&self) -> &ParseError {
        &self.errors[0]
    }

    /// All errors, those first that BuildKit would tell first.
    pub fn errors(&self) -> &[ParseError] {
        &self.errors
    }

    /// What could be read; its source shows the lines of the errors.
    pub fn partial(&self) -> &Dockerfile {
        &self.partial
    }

    /// Findings are told even when the text is refused (P-18, L-24).
    pub fn findings(&self) -> &[Finding] {
        &self.partial.findings
    }
}

impl fmt::Display for ParseErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.first())
    }
}

impl std::error::Error for ParseErrors {}

impl Hint for ParseErrors {
    fn hint(&self) -> Option<String> {
        self.first().hint()
    }
}

/// Why a Dockerfile cannot be read from a file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The file cannot be opened or read.
    #[error("cannot read `{}`", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds bytes that are not UTF-8.
    #[error("`{}` is not UTF-8: line {line}, byte {column}", path.display())]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Line of the first such byte, counted from 1.
        line: usize,
        /// Its position in the line in bytes, counted from 1.
        column: usize,
    },
    /// The text is refused.
    #[error("{errors}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        errors: ParseErrors,
    },
}

impl Hint for ReadError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Parse { errors, .. } => errors.hint(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                Some("name the Dockerfile with `--file`".to_owned())
            }
            _ => None,
        }
    }
}
