//! Why a commit could not be had.

use std::io;
use std::path::PathBuf;

use crate::hint::Hint;

/// Why a commit could not be had. URLs are shown without user and password.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GitError {
    /// The URL is none that git knows.
    #[error("`{url}` is not a git URL")]
    BadUrl {
        /// Which.
        url: String,
    },
    /// The repository has no such branch, tag, reference or commit.
    #[error("repository {url} does not contain ref {reference}")]
    NoSuchReference {
        /// Which repository.
        url: String,
        /// What was asked for.
        reference: String,
    },
    /// The repository could not be reached or did not send its objects.
    #[error("failed to fetch {url}: {reason}")]
    Fetch {
        /// Which repository.
        url: String,
        /// The protocol's own words, outermost first.
        reason: String,
    },
    /// An object is missing or malformed.
    #[error("repository {url}: {reason}")]
    Object {
        /// Which repository.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// A tree holds a name that no file may have.
    #[error("repository {url} holds an entry named `{name}`, which cannot be written")]
    BadName {
        /// Which repository.
        url: String,
        /// The name, lossy.
        name: String,
    },
    /// A submodule has no URL in `.gitmodules`.
    #[error("no url found for submodule path `{path}` in .gitmodules")]
    SubmoduleWithoutUrl {
        /// Path in the tree.
        path: String,
    },
    /// Submodules nest too deep, or in a circle.
    #[error("submodules of {url} nest deeper than {limit}")]
    SubmodulesTooDeep {
        /// The innermost repository.
        url: String,
        /// The limit.
        limit: usize,
    },
    /// A file could not be written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `write`, …
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for GitError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSuchReference { .. } => {
                Some("branches, tags, full references and commits can be named after `#`".to_owned())
            }
            Self::Fetch { reason, .. } if reason.contains("401") || reason.contains("403") => {
                Some("give a token with `--secret id=GIT_AUTH_TOKEN,env=NAME`".to_owned())
            }
            Self::Fetch { reason, .. } if reason.contains("Permission denied (publickey") => {
                Some("give a key or an agent with `--ssh default=FILE` or `--ssh default`".to_owned())
            }
            Self::Fetch { reason, .. } if reason.contains("Host key verification failed") => Some(
                "the host has another key than when it was met first: if that is right, remove the old one from \
                 ~/.ssh/known_hosts, or `urls/known_hosts` of the work directory"
                    .to_owned(),
            ),
            // A name in SHA-256 has 64 digits.
            Self::Fetch { reason, .. } if reason.contains("sized 64 hexadecimal") => Some(
                "the repository names its objects by SHA-256, which cannot be read yet; clone it with git, and give the \
                 directory as (named) context"
                    .to_owned(),
            ),
            _ => None,
        }
    }
}
