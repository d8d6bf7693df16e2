//! The typed instructions. Texts are raw: quotes and `$` are still in them, `plan` expands them with [`super::words`].

use super::source::{Source, Span, Spanned};

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    /// The text it was read from; all spans point into it.
    pub source: Source,
    /// What the directives at its head say.
    pub directives: Directives,
    /// All instructions in file order, `FROM` included.
    pub instructions: Vec<Instruction>,
    /// Findings of the rules that need the text alone. Those that need expansion are found by `plan`.
    pub findings: Vec<Finding>,
}

/// The parser directives (checklist P-01 to P-06).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directives {
    /// `# syntax=`: the whole value.
    pub syntax: Option<Spanned<String>>,
    /// `# escape=`: a backslash, unless a backtick was asked for.
    pub escape: char,
    /// `# check=`: the whole value.
    pub check: Option<Spanned<String>>,
}

/// What a lint rule found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// BuildKit's name of the rule, such as `StageNameCasing`.
    pub rule: &'static str,
    /// The sentence about this place, BuildKit's wording.
    pub message: String,
    /// Where.
    pub span: Span,
}

/// One instruction.
#[derive(Debug, Clone, PartialEq)]
pub struct Instruction {
    /// The first word as written, such as `From`.
    pub keyword: Spanned<String>,
    /// From the first word to the last line, heredoc bodies included.
    pub span: Span,
    /// The joined text without comments and continuation marks and without heredoc bodies: for titles and `ONBUILD`.
    pub text: String,
    /// The comment lines attached to it, without `#` and one blank (checklist P-13).
    pub comments: Vec<String>,
    /// What it says.
    pub kind: InstructionKind,
}

/// A raw word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    /// Unexpanded text, quotes included.
    pub raw: String,
    /// Where it stands.
    pub span: Span,
}

/// `name=value` of `ENV` and `LABEL`; both sides raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// Raw key.
    pub key: String,
    /// Raw value.
    pub value: String,
    /// Written as `ENV key value`, without `=`.
    pub legacy: bool,
    /// Where it stands.
    pub span: Span,
}

/// `name` or `name=default` of `ARG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArgPair {
    /// Raw name (BuildKit does not expand names).
    pub name: String,
    /// Raw default.
    pub default: Option<String>,
    /// Where it stands.
    pub span: Span,
}

/// Arguments of `RUN`, `CMD`, `ENTRYPOINT` and `HEALTHCHECK CMD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CommandLine {
    /// JSON form: the program and its arguments.
    Exec(Vec<String>),
    /// Shell form: one text for the stage's `SHELL`.
    Shell(String),
}

/// A heredoc of `RUN`, `COPY` or `ADD`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The unquoted name.
    pub name: String,
    /// File descriptor digits before `<<`; 0 when there are none.
    pub file_descriptor: u32,
    /// Whether the body expands (no quotes in the name).
    pub expand: bool,
    /// Whether `<<-` was written. `body` is as in the file even then.
    pub chomp: bool,
    /// The lines up to the terminator, byte for byte.
    pub body: String,
    /// Where the body stands.
    pub span: Span,
}

/// What an instruction says.
#[derive(Debug, Clone, PartialEq)]
pub enum InstructionKind {
    /// `FROM [--platform=P] base [AS name]`
    From(From),
    /// `ARG name[=default] …`
    Arg(Vec<ArgPair>),
    /// `ENV key=value …`
    Env(Vec<KeyValue>),
    /// `LABEL key=value …`
    Label(Vec<KeyValue>),
    /// `RUN …`
    Run(Run),
    /// `CMD …`
    Cmd(CommandLine),
    /// `ENTRYPOINT …`
    Entrypoint(CommandLine),
    /// `COPY …`
    Copy(Copy),
    /// `ADD …`
    Add(Copy),
    /// `WORKDIR path`
    Workdir(Word),
    /// `USER name[:group]`
    User(Word),
    /// `EXPOSE port …`
    Expose(Vec<Word>),
    /// `VOLUME path …`
    Volume(Vec<Word>),
    /// `STOPSIGNAL signal`
    StopSignal(Word),
    /// `HEALTHCHECK …`
    Healthcheck(Healthcheck),
    /// `SHELL ["…"]`
    Shell(Vec<String>),
    /// `ONBUILD …`
    Onbuild(Onbuild),
    /// `MAINTAINER text`
    Maintainer(Word),
}

/// `FROM`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct From {
    /// Raw base name.
    pub base: Word,
    /// Raw value of `--platform`.
    pub platform: Option<Word>,
    /// Stage name, lower-cased, and as it was written.
    pub name: Option<StageName>,
}

/// The name after `AS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageName {
    /// Lower-cased.
    pub name: String,
    /// As written.
    pub written: String,
    /// Where it stands.
    pub span: Span,
}

/// `RUN`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// The command, without flags; for heredocs the line only.
    pub command: CommandLine,
    /// Heredocs in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount` values, raw CSV, in order.
    pub mounts: Vec<Word>,
    /// `--network`.
    pub network: Option<Word>,
    /// `--security`.
    pub security: Option<Word>,
    /// `--device` values.
    pub devices: Vec<Word>,
}

/// `COPY` and `ADD`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// Raw source words, heredoc words left out.
    pub sources: Vec<Word>,
    /// Heredoc sources in order.
    pub heredocs: Vec<Heredoc>,
    /// Raw destination.
    pub destination: Word,
    /// `--from` (COPY, and ADD where BuildKit accepts it).
    pub from: Option<Word>,
    /// `--chown`, raw.
    pub chown: Option<Word>,
    /// `--chmod`, raw.
    pub chmod: Option<Word>,
    /// `--link[=bool]`.
    pub link: bool,
    /// `--parents[=bool]`.
    pub parents: bool,
    /// `--exclude` values.
    pub excludes: Vec<Word>,
    /// `--checksum`, raw (ADD).
    pub checksum: Option<Word>,
    /// `--keep-git-dir` (ADD).
    pub keep_git_dir: Option<bool>,
    /// `--unpack` (ADD).
    pub unpack: Option<bool>,
}

/// `HEALTHCHECK`
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Healthcheck {
    /// `HEALTHCHECK NONE`
    None,
    /// `HEALTHCHECK [options] CMD …`; durations in nanoseconds.
    Cmd {
        /// The command.
        command: CommandLine,
        /// `--interval`
        interval: i64,
        /// `--timeout`
        timeout: i64,
        /// `--start-period`
        start_period: i64,
        /// `--start-interval`
        start_interval: i64,
        /// `--retries`
        retries: i64,
    },
}

/// `ONBUILD`: nothing but the text is checked before it is triggered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Onbuild {
    /// The joined line without `ONBUILD`, then the heredoc bodies with their terminators (checklist P-31).
    pub trigger: String,
}
