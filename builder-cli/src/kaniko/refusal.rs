//! Command lines that cannot be carried out. Kaniko's words, where it has some.

use builder_core::hint::go_quote;
use builder_core::http::HttpError;
use builder_core::oci::{PlatformParseError, ReferenceParseError};

use super::grammar::GrammarError;
use crate::request::UsageError;

/// Why a command line cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It cannot be read.
    #[error(transparent)]
    Grammar(#[from] GrammarError),
    /// A word where no word can be.
    #[error("unknown command {} for {}", go_quote(word), go_quote(program))]
    UnknownCommand {
        /// The word.
        word: String,
        /// `executor`, or a subcommand of it.
        program: &'static str,
    },
    /// No log level.
    #[error("parsing log level: not a valid logrus Level: {}", go_quote(.0))]
    LogLevel(String),
    /// No log format.
    #[error("not a valid log format: {}. Please specify one of (text, color, json)", go_quote(.0))]
    LogFormat(String),
    /// There is nowhere to push to.
    #[error("you must provide --destination, or use --no-push")]
    NoDestination,
    /// Names are to be written and there are none.
    #[error("you must provide --destination if setting --{0}")]
    NoName(&'static str),
    /// Words are missing, or there are too many.
    #[error("`{program}` takes {wanted} argument, received {given}")]
    Words {
        /// How the command is called.
        program: &'static str,
        /// How many it takes.
        wanted: usize,
        /// How many there are.
        given: usize,
    },
    /// There is nowhere to push to, and no other way.
    #[error("you must provide --destination")]
    NothingToPushTo,
    /// User or password are not there, or twice.
    #[error("{what}")]
    Login {
        /// What is wrong.
        what: &'static str,
    },
    /// No image is named.
    #[error("you must select at least one image to cache with --image, or a Dockerfile with --dockerfile")]
    NothingToWarm,
    /// A cache that has no place.
    #[error("cache flags invalid: if using cache with --no-push, specify cache repo with --cache-repo")]
    NoCacheRepo,
    /// Two flags that exclude each other.
    #[error("{one} cannot be used together with {other}: {reason}")]
    Conflict {
        /// One.
        one: &'static str,
        /// The other.
        other: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// A destination that is no name.
    #[error("getting tag for destination: {0}")]
    Destination(ReferenceParseError),
    /// A destination that names a digest.
    #[error("getting tag for destination: `{0}` is a digest; a result is pushed under a tag")]
    DestinationDigest(String),
    /// No platform.
    #[error("invalid platform: {0}")]
    Platform(PlatformParseError),
    /// A context of a kind that nobody knows.
    #[error(
        "error resolving source context: unknown build context prefix provided in `{0}`, please use one of the \
         following: gs://, dir://, tar://, s3://, git://, https://"
    )]
    ContextPrefix(String),
    /// A context that is malformed.
    #[error("error resolving source context: {0}")]
    ContextText(String),
    /// Nothing can come from standard input.
    #[error(
        "error resolving source context: no data found.. make sure tar is piped in: attach standard input \
         (`kubectl run -i`, `docker run -i`)"
    )]
    NoStdin,
    /// The context is not there.
    #[error("error resolving source context: `{path}` is not a directory that can be read: {source}")]
    Context {
        /// Which.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The Dockerfile is nowhere.
    #[error(
        "error resolving dockerfile path: please provide a valid path to a Dockerfile within the build context with \
         --dockerfile: neither {} exists", .0.join(" nor ")
    )]
    NoDockerfile(Vec<String>),
    /// The Dockerfile cannot be fetched.
    #[error("error resolving dockerfile path: {url}: {source}")]
    FetchDockerfile {
        /// From where.
        url: String,
        /// Why.
        source: HttpError,
    },
    /// A variable of the environment.
    #[error("invalid value {} of {name}: {reason}", go_quote(value))]
    Variable {
        /// Its name.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// A value that a flag cannot take.
    #[error("invalid argument {} for \"{flag}\" flag: {reason}", go_quote(value))]
    Value {
        /// With its dashes.
        flag: &'static str,
        /// As given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// A variable of `slipway` itself.
    #[error("the environment cannot be used: {0}")]
    Variables(String),
    /// What `slipway build` would refuse as well.
    #[error(transparent)]
    Usage(#[from] UsageError),
}

impl Refusal {
    /// A value that a flag cannot take.
    pub fn value(flag: &'static str, value: &str, reason: impl ToString) -> Self {
        Self::Value { flag, value: value.to_owned(), reason: reason.to_string() }
    }
}
