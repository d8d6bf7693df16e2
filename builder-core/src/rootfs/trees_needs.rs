//! What trees need of the disk, who will need them, and what is there.

use std::path::Path;

use super::super::frames::Windows;
use super::super::index::Indexes;
use super::super::inflate::Allowance;
use super::super::plain::Sharing;
use super::super::recall::Unchanged;
use super::super::volume;
use super::super::wanted::Expected;
use super::super::workdir::{TempDir, TreesDir};
use super::{Kind, LayerRef, Ownership, TreeError, TreeStep, Trees, Work, chain_ids};
use crate::disk::Disk;
use crate::oci::ChainId;

impl Trees {
    /// A directory below the work dir that goes when it is dropped.
    pub(in crate::rootfs) fn temp(&self) -> Result<TempDir, TreeError> {
        self.dir().temp()
    }

    /// Everything that is written from now on counts.
    pub fn account(&self, disk: Disk) {
        self.dir().account(disk);
    }

    /// What may be written.
    pub(crate) fn disk(&self) -> Disk {
        self.dir().disk()
    }

    /// Removes what a build can make again and nobody uses, the oldest first; `false` if there is no more of it.
    pub fn make_room(&self) -> bool {
        self.dir().forget_oldest().unwrap_or_else(|error| {
            tracing::debug!(%error, "no room is made");
            false
        })
    }

    /// Keeps what stages begin with as it is unpacked, and gives them trees that have blocks of files in common with it, where the file
    /// system can (directory mode; otherwise it does nothing).
    ///
    /// Where it cannot, trees whose owners are recorded have whole files in common with it, if `sees_changes`: only for those who call
    /// [`crate::rootfs::Owners::own`] before each change that a command makes. The file system has to keep when files were made.
    pub fn share_bases(&self, sees_changes: bool) {
        let Kind::Directory(plains) = &self.kind else { return };
        let root = plains.dir.root();
        if volume::shares_blocks(root) {
            plains.share(Sharing::Blocks);
        } else if sees_changes && self.ownership == Ownership::Recorded && volume::keeps_birth_times(root) {
            plains.share(Sharing::Names);
        }
    }

    /// Where long lists of files go.
    pub fn lists_in(&self) -> std::sync::Arc<Path> {
        self.dir().root().into()
    }

    pub(in crate::rootfs) fn dir(&self) -> &TreesDir {
        match &self.kind {
            Kind::Overlay(stacks) => &stacks.dir,
            Kind::Directory(plains) => &plains.dir,
        }
    }

    /// Whether the tree of these layers is here, so that [`Trees::checkout`] has nothing to unpack.
    pub fn has(&self, layers: &[LayerRef]) -> bool {
        let mut chains = chain_ids(None, layers);
        match &self.kind {
            Kind::Overlay(stacks) => chains.all(|chain| stacks.dir.layer(chain).exists()),
            Kind::Directory(plains) => chains.last().is_none_or(|chain| plains.has(chain)),
        }
    }

    /// Says that somebody will begin with a tree of these layers: whoever else needs them in directory mode leaves a tree of them
    /// to be copied or taken. What this gives is for [`Trees::checkout_as`]; dropped, nobody comes.
    pub fn expect(&self, layers: &[LayerRef]) -> Expected {
        match &self.kind {
            // All stacks share their layers.
            Kind::Overlay(_) => Expected::nobody(),
            Kind::Directory(plains) => plains.wanted.expect(ChainId::of(layers.iter().map(|layer| layer.diff_id))),
        }
    }

    /// Layers that may be read at one time.
    pub(in crate::rootfs) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// Memory for what decoders of zstd have to remember: of all of them together, and of one alone, in bytes. One that waits for the
    /// others may take more than all together.
    pub fn set_window_bytes(&mut self, together: u64, alone: u64) {
        self.allowed.windows = Windows::new(together, alone);
    }

    /// What a layer may take.
    pub(in crate::rootfs) fn allowed(&self) -> &Allowance {
        &self.allowed
    }
}

impl TreeStep<'_> {
    /// Directory mode: what the lowest of `layers`, of which the tree is made, looked like when it was unpacked, if that is kept.
    ///
    /// # Errors
    /// If what is kept cannot be opened.
    pub fn unchanged(&self, layers: &[LayerRef]) -> Result<Option<Unchanged>, TreeError> {
        match &self.work {
            Work::Overlay { .. } => Ok(None),
            Work::Directory { tree, .. } => tree.unchanged(layers),
        }
    }

    /// Directory mode: what layers hold, as far as that is kept.
    pub fn indexes(&self) -> Option<Indexes> {
        match &self.work {
            Work::Overlay { .. } => None,
            Work::Directory { tree, .. } => Some(tree.indexes()),
        }
    }
}
