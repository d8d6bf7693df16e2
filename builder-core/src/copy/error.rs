//! Why a COPY, ADD or WORKDIR could not be done.

use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::mode::ModeError;
use crate::context::{ArchiveError, BadPattern, Clue, FilesError, IgnoreError, RemoteError};
use crate::hint::Hint;
use crate::rootfs::Attributes;

/// Why a COPY or ADD could not be done. `Display` holds BuildKit's telling words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A literal source does not exist or is hidden.
    #[error("failed to compute cache key: failed to calculate checksum of ref: \"{}\": not found", path.display())]
    Missing {
        /// The source as written, cleaned.
        path: PathBuf,
        /// Why that is, if something speaks for it.
        clue: Option<Clue>,
    },
    /// The directory before the first wildcard does not exist.
    #[error("lstat {}: no such file or directory", path.display())]
    NoDirectory {
        /// The directory.
        path: PathBuf,
        /// Why that is, if something speaks for it.
        clue: Option<Clue>,
    },
    /// A wildcard that is none.
    #[error("syntax error in pattern `{pattern}`")]
    Pattern {
        /// The source as written.
        pattern: String,
        /// Why.
        source: BadPattern,
    },
    /// A pattern of `--exclude` or `--parents` that is none.
    #[error("{reason} in `{pattern}`", reason = source.reason)]
    Exclude {
        /// As written.
        pattern: String,
        /// Why.
        source: IgnoreError,
    },
    /// A source could not be read.
    #[error(transparent)]
    Files(FilesError),
    /// A directory is needed where something else is.
    #[error("mkdir {}: not a directory", path.display())]
    NotADirectory {
        /// Path in the target.
        path: PathBuf,
    },
    /// A directory of the source meets something else in the target.
    #[error("cannot copy to non-directory: {}", path.display())]
    NonDirectory {
        /// Path in the target.
        path: PathBuf,
    },
    /// A file of the source meets a directory in the target.
    #[error("cannot replace to directory {} with file", path.display())]
    ReplacesDirectory {
        /// Path in the target.
        path: PathBuf,
    },
    /// A name in `--chown` or `USER`, and no file system in which to look it up.
    #[error("invalid user index: -1")]
    NoUsers {
        /// As written.
        spec: String,
    },
    /// `/etc/passwd` or `/etc/group` of the target cannot be read.
    #[error("cannot read `{}` of the image", path.display())]
    Users {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A URL or git source could not be had.
    #[error(transparent)]
    Remote(RemoteError),
    /// `--chmod` is none.
    #[error(transparent)]
    Mode(#[from] ModeError),
    /// An archive cannot be unpacked.
    #[error("cannot unpack `{}`", archive.display())]
    Archive {
        /// The source.
        archive: PathBuf,
        /// Why.
        source: ArchiveError,
    },
    /// A source that needs something this build was not given.
    #[error("ADD of `{url}` is not possible here")]
    NoRemote {
        /// The URL without credentials.
        url: String,
    },
    /// The owner is none that a file can have here.
    #[error("cannot give `{}` to {uid}:{gid}, which does not exist in this user namespace", path.display())]
    UnmappedOwner {
        /// Path in the target.
        path: PathBuf,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// The disk or kernel refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// `create`, `write`, …
        action: &'static str,
        /// Path in the target.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl From<FilesError> for CopyError {
    fn from(error: FilesError) -> Self {
        match error {
            FilesError::Cancelled => Self::Cancelled,
            error => Self::Files(error),
        }
    }
}

impl From<RemoteError> for CopyError {
    fn from(error: RemoteError) -> Self {
        match error {
            RemoteError::Cancelled => Self::Cancelled,
            error => Self::Remote(error),
        }
    }
}

impl Hint for CopyError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Missing { clue, .. } | Self::NoDirectory { clue, .. } => clue.as_ref()?.hint(),
            Self::NoUsers { spec } => {
                Some(format!("write numbers instead of `{spec}`: there is no /etc/passwd yet to look names up in"))
            }
            Self::UnmappedOwner { uid, gid, .. } => Some(format!(
                "give the user enough subordinate ids in /etc/subuid and /etc/subgid, so that {uid}:{gid} can be mapped"
            )),
            Self::Pattern { .. } => Some("write `[[]` for a bracket that is part of a name".to_owned()),
            Self::Files(error) => error.hint(),
            Self::Remote(error) => error.hint(),
            Self::Archive { source, .. } => source.hint(),
            Self::NonDirectory { path } | Self::NotADirectory { path } => Some(format!(
                "`{}` is a file or a link in the image; remove it first, or copy elsewhere",
                path.display()
            )),
            Self::ReplacesDirectory { path } => {
                Some(format!("`{}` is a directory in the image; remove it first, or copy elsewhere", path.display()))
            }
            _ => None,
        }
    }
}

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> CopyError {
    CopyError::Io { action, path: path.display().to_string(), source }
}

/// The error of giving `attributes` to a file.
pub(super) fn attributes_error(
    action: &'static str,
    path: &Path,
    attributes: &Attributes,
    source: io::Error,
) -> CopyError {
    match attributes.owner {
        // chown(2) in a user namespace. Root always exists there.
        Some((uid, gid)) if (uid, gid) != (0, 0) && Errno::from_io_error(&source) == Some(Errno::INVAL) => {
            CopyError::UnmappedOwner { path: path.to_owned(), uid, gid }
        }
        _ => io_error(action, path, source),
    }
}
