//! Why the store could not do what was asked.

use std::io;
use std::path::{Path, PathBuf};

use crate::hint::Hint;
use crate::oci::BlobDigest;

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bytes are not those that were promised.
    #[error("blob {expected} hashed to {actual} after {bytes} bytes")]
    WrongDigest {
        /// What was promised.
        expected: BlobDigest,
        /// What came.
        actual: BlobDigest,
        /// How many bytes were hashed.
        bytes: u64,
    },
    /// The blob is not in the store.
    #[error("blob {digest} is not in the work dir")]
    Missing {
        /// Which.
        digest: BlobDigest,
    },
    /// The file system or the quota is full.
    #[error("cannot {action} `{}`: no space left", path.display())]
    NoSpace {
        /// `create`, `write`, `publish`, …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The work dir cannot be written.
    #[error("cannot {action} `{}`: the file system is read-only", path.display())]
    ReadOnly {
        /// `create`, `write`, `publish`, …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file could not be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `create`, `write`, `publish`, …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl StoreError {
    /// Sorts an error of the disk into the variants.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { action, path, source },
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { action, path, source },
            _ => Self::Io { action, path, source },
        }
    }

    /// Takes the typed error back out of what [`super::BlobWriter`]'s `Write` reported; another error becomes one about
    /// `path`.
    pub fn from_write(error: io::Error, path: &Path) -> Self {
        match error.downcast::<Self>() {
            Ok(typed) => typed,
            Err(error) => Self::io("write", path, error),
        }
    }
}

impl From<StoreError> for io::Error {
    /// Keeps the kind of the disk's error, and the typed error inside.
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::WrongDigest { .. } => io::ErrorKind::InvalidData,
            StoreError::Missing { .. } => io::ErrorKind::NotFound,
            StoreError::NoSpace { source, .. }
            | StoreError::ReadOnly { source, .. }
            | StoreError::Io { source, .. } => source.kind(),
        };
        Self::new(kind, error)
    }
}

impl Hint for StoreError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoSpace { .. } => Some("free space there, or give --work-dir a larger volume".to_owned()),
            Self::ReadOnly { .. } => Some("give --work-dir a directory that can be written".to_owned()),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("give --work-dir a directory that belongs to the calling user".to_owned())
            }
            _ => None,
        }
    }
}
