//! Which ignore file belongs to a build (checklist D-01).

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::hint::Hint;

/// Longest ignore file that is read, in bytes: lists made by scripts have thousands of lines, not millions.
const MAX_BYTES: u64 = 16 << 20;

/// An ignore file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IgnoreFile {
    /// Where it is.
    pub path: PathBuf,
    /// What it says; bytes that are not UTF-8 became U+FFFD, which a pattern may still match with `?` or `*`.
    pub text: String,
}

/// An ignore file that is there but cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IgnoreFileError {
    /// The disk or kernel refused.
    #[error("cannot read the ignore file `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is longer than any list of patterns.
    #[error("the ignore file `{}` has {bytes} bytes; at most {MAX_BYTES} are read", path.display())]
    TooLong {
        /// Which.
        path: PathBuf,
        /// Its length.
        bytes: u64,
    },
}

impl Hint for IgnoreFileError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Read { path, .. } => Some(format!("make `{}` readable, or remove it", path.display())),
            Self::TooLong { .. } => Some("patterns with `*` and `**` say the same in fewer lines".to_owned()),
        }
    }
}

/// Looks for `<dockerfile>.dockerignore`, then for `.dockerignore` in `context`; the first one found counts alone, even
/// when it is empty. `None` for a Dockerfile that has no path (standard input) or a context that is no directory.
///
/// # Errors
/// [`IgnoreFileError`] for a file that exists and cannot be read; a missing one is no error.
pub fn find_ignore_file(
    dockerfile: Option<&Path>,
    context: Option<&Path>,
) -> Result<Option<IgnoreFile>, IgnoreFileError> {
    let specific = dockerfile.map(|path| {
        let mut name = OsString::from(path);
        name.push(".dockerignore");
        PathBuf::from(name)
    });
    for path in specific.into_iter().chain(context.map(|directory| directory.join(".dockerignore"))) {
        if let Some(text) = read(&path)? {
            return Ok(Some(IgnoreFile { path, text }));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Result<Option<String>, IgnoreFileError> {
    let refused = |source| IgnoreFileError::Read { path: path.to_owned(), source };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(refused(error)),
    };
    if !metadata.is_file() {
        return Err(refused(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")));
    }
    if metadata.len() > MAX_BYTES {
        return Err(IgnoreFileError::TooLong { path: path.to_owned(), bytes: metadata.len() });
    }
    let bytes = std::fs::read(path).map_err(refused)?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}
