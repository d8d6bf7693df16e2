//! All root filesystems of a work dir: layers unpacked once, stacked by overlayfs where that works, in one plain
//! directory each otherwise.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::{ListError, Listing, Rootfs};
use crate::cancel::Cancel;
use crate::oci::{ChainId, Descriptor, DiffId};

/// A layer of a stack: what it is in the tar and as a blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerRef {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// The compressed blob.
    pub blob: Descriptor,
}

/// Where [`Trees`] gets the bytes of a layer that it has not unpacked yet.
pub trait LayerSource: Sync {
    /// The compressed blob as a stream, from a registry, a layout or the store. Whoever implements it checks the blob's
    /// digest and reports a mismatch as an error before end of file; `Trees` checks the diff_id.
    ///
    /// # Errors
    /// Whatever stands in the way; it becomes the cause in [`TreeError::Fetch`].
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>>;
}

/// How trees are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TreeMode {
    /// One directory a layer, stacked by overlayfs; a step's changes are its upper directory.
    Overlay,
    /// One plain directory a tree; a step's changes are found by comparing metadata.
    Directory,
}

/// Owners that cannot be made real.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ownership {
    /// Any id can be given to a file (root, or a user namespace with subordinate ids).
    Real,
    /// Only one id exists: others, devices and privileged attributes are recorded beside the tree.
    Recorded,
}

/// Why a tree could not be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// The layer's bytes could not be had.
    #[error("cannot read layer {layer}")]
    Fetch {
        /// Which.
        layer: DiffId,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The layer's tar is not what the config says.
    #[error("layer {expected} unpacked to a tar with diff_id {actual}")]
    WrongDiffId {
        /// What the config says.
        expected: DiffId,
        /// What came.
        actual: DiffId,
    },
    /// The tar cannot be applied.
    #[error("layer {layer}, entry `{entry}`: {reason}")]
    BadEntry {
        /// Which.
        layer: DiffId,
        /// Name in the tar, lossy.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The disk or kernel refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `unpack into`, `mount`, …
        action: &'static str,
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

/// All root filesystems of one work dir.
#[derive(Debug)]
pub struct Trees {
    _private: (),
}

/// A stage's root filesystem between steps: a stack of layers, with a directory behind it once one was needed.
#[derive(Debug)]
pub struct WorkTree {
    _private: (),
}

/// A step at work on a tree. Dropped before [`Step::commit`], its changes are gone (in directory mode the tree is then
/// discarded with them).
#[derive(Debug)]
pub struct TreeStep<'a> {
    _tree: &'a mut WorkTree,
}

impl Trees {
    /// Opens the trees below `work_dir`. `mode` `None` probes for overlayfs by mounting one.
    ///
    /// # Errors
    /// If directories cannot be made, or a forced overlay does not work.
    pub fn open(_work_dir: &Path, _mode: Option<TreeMode>, _ownership: Ownership) -> Result<Self, TreeError> {
        todo!()
    }

    /// How trees are kept here.
    pub fn mode(&self) -> TreeMode {
        todo!()
    }

    /// Why overlay is not used, if it was probed and refused.
    pub fn overlay_refused(&self) -> Option<&str> {
        todo!()
    }

    /// Unpacks those of `layers` (lowest first) that are not here yet, several at once where the mode allows, and gives
    /// a tree with exactly this content. No two trees share what one of them may change.
    ///
    /// # Errors
    /// [`TreeError`]; nothing half unpacked is ever found by a later call.
    pub fn checkout(
        &self,
        _layers: &[LayerRef],
        _source: &dyn LayerSource,
        _cancel: &Cancel,
    ) -> Result<WorkTree, TreeError> {
        todo!()
    }
}

impl WorkTree {
    /// The stack of layers; `None` for an empty tree.
    pub fn chain(&self) -> Option<ChainId> {
        todo!()
    }

    /// The tree as it is, to read from (COPY --from, mounts, exporters). In overlay mode a read-only mount.
    ///
    /// # Errors
    /// If it cannot be mounted or opened.
    pub fn rootfs(&self) -> Result<Rootfs, TreeError> {
        todo!()
    }

    /// Begins a step.
    ///
    /// # Errors
    /// If no upper directory can be made and mounted, or (directory mode) the listing fails.
    pub fn begin(&mut self) -> Result<TreeStep<'_>, TreeError> {
        todo!()
    }
}

impl TreeStep<'_> {
    /// The tree to change.
    pub fn rootfs(&self) -> &Rootfs {
        todo!()
    }

    /// Overlay mode: the raw upper directory: what the step wrote, with whiteouts as character devices 0:0 and opaque
    /// directories marked by the attribute that [`TreeStep::is_opaque`] reads. `None` in directory mode.
    pub fn upper(&self) -> Option<&Rootfs> {
        todo!()
    }

    /// Overlay mode: the tree before the step, read-only. `None` in directory mode.
    pub fn lower(&self) -> Option<&Rootfs> {
        todo!()
    }

    /// Overlay mode: whether this directory of [`TreeStep::upper`] hides everything below it in the lower layers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_opaque(&self, _path: &Path) -> io::Result<bool> {
        todo!()
    }

    /// Directory mode: everything in the tree before the step. `None` in overlay mode.
    pub fn before(&self) -> Option<&Listing> {
        todo!()
    }

    /// Directory mode: everything in the tree now. Kept as the next step's [`TreeStep::before`], so nothing may change
    /// after the last call before [`TreeStep::commit`].
    ///
    /// # Errors
    /// The first path that could not be examined.
    pub fn scan(&self) -> Result<std::sync::Arc<Listing>, ListError> {
        todo!()
    }

    /// Keeps the changes as the layer `diff_id` on top of the stack.
    ///
    /// # Errors
    /// If directories cannot be moved.
    pub fn commit(self, _diff_id: DiffId) -> Result<(), TreeError> {
        todo!()
    }
}
