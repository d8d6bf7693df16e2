//! Before + after → sorted changes.
//!
//! In overlay mode what the step wrote is in a directory of its own, the upper one, and everything in it is looked up in
//! the tree before: cost follows what changed. In directory mode two listings of the whole tree are compared, which
//! reads metadata only. Of a tree that is only known, two copies are compared, which share what did not change. All end in
//! the same list.
//!
//! Architecture invariant: neither tar nor compression is known here.
//!
//! # Limitations
//! - In directory mode the old content is gone. What it was is read from the layers below where metadata is as before,
//!   but inode or change time are not; without layers such a file counts as changed. Only a changed number of links is taken
//!   as explanation enough.
//! - Neither the metadata of the root directory nor that of extended attributes other than `security.capability` is compared
//!   (checklist T-01, T-03).

mod directory;
mod ignored;
mod index;
mod list;
mod overlay;
#[cfg(test)]
mod tests;

pub use ignored::Ignored;

use std::io;
use std::path::{Path, PathBuf};

pub use index::{changes_of_index, changes_of_stack};
pub use list::Changes;

use crate::rootfs::{FileKind, ListError, Listing, Metadata, Recall, Rootfs, TreeError, TreeStep};
use crate::spool::Place;

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

impl Change {
    /// Path in the tree, without a leading `/`.
    pub fn path(&self) -> &Path {
        match self {
            Self::Entry { path, .. } | Self::Removed { path } => path,
        }
    }
}

/// Knows what a tree was made from before a step.
pub trait Below {
    /// Tells it. Asked at most once, and only where metadata does not say whether a file is another one.
    ///
    /// # Errors
    /// If there is nothing to tell any more.
    fn recall(&mut self) -> Result<Recall<'_>, TreeError>;
}

impl Below for Recall<'_> {
    fn recall(&mut self) -> Result<Recall<'_>, TreeError> {
        Ok(*self)
    }
}

/// Finds what a step changed. Same result in overlay and directory mode, if `below` is what the tree was made from.
///
/// The tree has the hard links of the layers then: what a step had copied without changing it is taken away ([`TreeStep::uncover`]),
/// and names are one file or several as the list has it ([`TreeStep::settle`]).
///
/// # Errors
/// What the kernel says about a path; a layer of `below` that cannot be read.
pub fn changes(step: &TreeStep<'_>, below: Option<&mut dyn Below>) -> Result<Changes, SnapshotError> {
    if let Some(upper) = step.upper() {
        let root = Path::new("/");
        if upper.read_dir(root).map_err(|error| overlay::failed(root, error))?.is_empty() {
            return Ok(list::Assembly::new(upper.lists_in(), &|_| Ok(None)).finish());
        }
        let lower = step
            .lower()
            .map_err(SnapshotError::Below)?
            .expect("because a step with an upper directory has a lower one");
        let (changes, misleading) = overlay::changes(upper, lower, &|path| step.is_opaque(path))?;
        step.uncover(&misleading).map_err(|error| overlay::failed(&error.path, error.source))?;
        return Ok(changes);
    }
    let after = step.scan()?;
    let Some(before) = step.before() else { return everything(&after, step.rootfs().lists_in()) };
    let mut recall = below.map(|below| {
        move |wanted| {
            let below = below.recall()?;
            let unchanged = step.unchanged(below.layers)?;
            below.files(wanted, before, unchanged.as_ref(), step.indexes().as_ref())
        }
    });
    let recall = recall.as_mut().map(|recall| recall as &mut directory::Recalls<'_>);
    let changes = directory::changes(before, &after, step.rootfs(), recall)?;
    drop(after);
    step.settle(changes.iter().filter_map(|change| match change {
        Ok(Change::Entry { path, link_to, .. }) => Some(Ok((path, link_to))),
        Ok(Change::Removed { .. }) => None,
        Err(error) => Some(Err(SnapshotError::Keep(error))),
    }))?;
    Ok(changes)
}

/// A whole tree as changes to an empty one. `place` is where a long list goes.
///
/// # Errors
/// If the lists cannot be read and written.
pub fn everything(listing: &Listing, place: Place) -> Result<Changes, SnapshotError> {
    // Each directory comes before what is in it.
    let mut assembly = list::Assembly::new(place, &|_| Ok(None));
    for listed in listing.iter() {
        let listed = listed?;
        assembly.add(listed.path, Difference::Written(listed.metadata))?;
    }
    Ok(assembly.finish())
}

/// Why the changes could not be listed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// A path could not be examined.
    #[error("cannot examine `{}` for changes", path.display())]
    Examine {
        /// Where.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The tree before the step could not be mounted.
    #[error("cannot see the tree before the step")]
    Below(#[source] TreeError),
    /// The list of changes could not be written or read.
    #[error("cannot keep the list of changes")]
    Keep(#[source] std::io::Error),
    /// What files were before could not be read from the layers below.
    #[error("cannot look up what {files} files were before the step")]
    Recall {
        /// How many.
        files: usize,
        /// Why.
        source: TreeError,
    },
}

impl From<ListError> for SnapshotError {
    fn from(error: ListError) -> Self {
        Self::Examine { path: error.path, source: error.source }
    }
}

/// What happened to one path, before ancestors and hard links are looked at.
enum Difference {
    Written(Metadata),
    Removed,
}

/// Whether everything but content, owner of the inode and times of directories is equal.
fn same_metadata(before: &Metadata, after: &Metadata) -> bool {
    let same_inode_data = before.kind == after.kind
        && before.mode == after.mode
        && (before.uid, before.gid) == (after.uid, after.gid)
        && before.device == after.device;
    // A directory's time changes with its content, so it says nothing (checklist T-08, golden `run-mtime-only`).
    same_inode_data
        && (before.kind == FileKind::Directory || (before.size == after.size && before.mtime == after.mtime))
}

/// What a tree has at a path now.
fn found(rootfs: &Rootfs, path: &Path) -> Result<Option<Metadata>, SnapshotError> {
    match rootfs.lstat(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(overlay::failed(path, source)),
    }
}
