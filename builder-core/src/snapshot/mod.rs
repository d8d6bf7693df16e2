//! Before + after → sorted changes.
//!
//! Architecture invariant: neither tar nor compression is known here.

use std::path::PathBuf;

use crate::rootfs::{Metadata, TreeStep};

/// One difference that a step made, in the order in which the layer lists it (checklist T-01): depth first, names of a
/// directory in byte order, a directory directly followed by its content, ancestors before the first change below them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The entry is new or differs, or is an unchanged ancestor directory of one that does. Sockets never appear.
    Entry {
        /// Path in the tree, without a leading `/`.
        path: PathBuf,
        /// Metadata after the step.
        metadata: Metadata,
        /// An earlier path of this list with the same inode: write a hard link to it.
        link_to: Option<PathBuf>,
    },
    /// The entry is gone: a whiteout.
    Removed {
        /// Path in the tree, without a leading `/`.
        path: PathBuf,
    },
}

/// Finds what a step changed. Same result in overlay and directory mode.
///
/// # Errors
/// What the kernel says about a path.
pub fn changes(_step: &TreeStep<'_>) -> Result<Vec<Change>, SnapshotError> {
    todo!()
}

/// Why the changes could not be listed.
#[derive(Debug, thiserror::Error)]
#[error("cannot examine `{}` for changes", path.display())]
pub struct SnapshotError {
    /// Where.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}
