//! `COPY`, `ADD` and `WORKDIR` into a root filesystem: wildcards, ownership, mode, archives, URLs.
//!
//! Architecture invariant: layers and images are not known here.

use crate::cancel::Cancel;
use crate::context::Files;
use crate::oci::Sha256;
use crate::plan::{CopyAction, WorkdirAction};
use crate::rootfs::Rootfs;

/// Sources of one COPY or ADD, resolved: what was matched, and a hash over everything that reaches the result
/// (checklist C-10): the content part of the step's cache key.
#[derive(Debug)]
pub struct ResolvedCopy {
    _private: (),
}

impl ResolvedCopy {
    /// Hash over names, modes, owners, sizes, link texts, devices, capabilities and data; mtimes excluded.
    pub fn content_hash(&self) -> Sha256 {
        todo!()
    }

    /// Path and hash of each top-level source, for saying which file changed.
    pub fn items(&self) -> Vec<(String, Sha256)> {
        todo!()
    }
}

/// Why a COPY or ADD could not be done. `Display` holds BuildKit's telling words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CopyError {
    /// A literal source does not exist or is hidden.
    #[error("failed to calculate checksum of ref: \"{path}\": not found")]
    Missing {
        /// The source as written, cleaned.
        path: String,
    },
    /// The disk or kernel refused.
    #[error("cannot {action} `{path}`")]
    Io {
        /// `read`, `write`, …
        action: &'static str,
        /// Which path.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

/// Matches the sources of `action` in `files` and hashes them; several threads; reads only what is selected.
///
/// # Errors
/// [`CopyError`]
pub fn resolve(_action: &CopyAction, _files: &Files, _cancel: &Cancel) -> Result<ResolvedCopy, CopyError> {
    todo!()
}

/// Writes resolved sources into `target`.
///
/// # Errors
/// [`CopyError`]
pub fn apply(
    _action: &CopyAction,
    _resolved: &ResolvedCopy,
    _files: &Files,
    _target: &Rootfs,
    _cancel: &Cancel,
) -> Result<(), CopyError> {
    todo!()
}

/// Creates the directory of a WORKDIR (checklist I-17).
///
/// # Errors
/// [`CopyError`]
pub fn workdir(_action: &WorkdirAction, _target: &Rootfs) -> Result<(), CopyError> {
    todo!()
}
