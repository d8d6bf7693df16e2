//! What is wrong with a command line.

use std::io;
use std::path::PathBuf;

use builder_core::cache::CacheParseError;
use builder_core::hint::Hint;
use builder_core::http::HttpError;
use builder_core::output::{AnnotationError, TargetError};
use builder_core::ssh::KeyError;

/// A command line that cannot be carried out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UsageError {
    /// A value is not of the form that its flag takes.
    #[error("invalid value `{value}` for {flag}: {reason}")]
    Value {
        /// Such as `--output`.
        flag: &'static str,
        /// As given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// Two flags, or parts of one, exclude each other.
    #[error("{one} cannot be used together with {other}")]
    Conflict {
        /// One.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// Something is missing.
    #[error("{what} needs {needed}")]
    Needs {
        /// Such as `--push`.
        what: &'static str,
        /// Such as `a name (--tag)`.
        needed: &'static str,
    },
    /// An `--output` that cannot be read.
    #[error(transparent)]
    Output(#[from] TargetError),
    /// A cache that cannot be read.
    #[error(transparent)]
    Cache(#[from] CacheParseError),
    /// An `--annotation` that cannot be read.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// A later version will do it.
    #[error("not supported yet: {what}")]
    NotYet {
        /// What was asked for.
        what: String,
    },
    /// A file that the command line names cannot be read.
    #[error("cannot read {what} `{}`", path.display())]
    Read {
        /// Such as `the secret`.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A `--file` that is a URL gives no Dockerfile.
    #[error("failed to read dockerfile: {url}")]
    FetchDockerfile {
        /// From where, without what may be secret in it.
        url: String,
        /// Why.
        source: HttpError,
    },
    /// A file of `--ssh` that no agent can sign with.
    #[error("cannot use the ssh key `{}`", path.display())]
    SshKey {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: KeyError,
    },
    /// `--ssh NAME` without a socket or key, where no agent runs.
    #[error("there is no agent for `--ssh {id}`: SSH_AUTH_SOCK is not set")]
    NoAgent {
        /// The name that RUN gives.
        id: String,
    },
    /// No place for the work directory is known.
    #[error("there is no home directory to keep state in: HOME is not set")]
    NoHome,
}

impl UsageError {
    pub(super) fn value(flag: &'static str, value: &str, reason: impl ToString) -> Self {
        Self::Value { flag, value: value.to_owned(), reason: reason.to_string() }
    }

    pub(super) fn not_yet(what: impl Into<String>) -> Self {
        Self::NotYet { what: what.into() }
    }
}

impl Hint for UsageError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoHome => Some("give a directory with --work-dir or SLIPWAY_DIR".to_owned()),
            Self::Value { flag, .. } => Some(format!("`slipway build --help` shows what {flag} takes")),
            Self::Output(error) => error.hint(),
            Self::Cache(error) => error.hint(),
            Self::Annotation(error) => error.hint(),
            Self::SshKey { source, .. } => source.hint(),
            Self::NoAgent { id } => Some(format!("start an ssh-agent, or name a private key: `--ssh {id}=FILE`")),
            _ => None,
        }
    }
}
