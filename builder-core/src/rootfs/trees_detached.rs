//! Steps whose layers are made while later steps of their stage run.

use std::io;
use std::sync::{Arc, PoisonError};

use super::super::frozen::{self, Frozen, Held, Holding};
use super::super::stack::{Stacks, Unnamed};
use super::{TreeError, TreeStep, Work};
use crate::cancel::Cancel;
use crate::oci::ChainId;
use crate::rootfs::Rootfs;

/// Layers of a tree that may wait for their names at a time.
pub(in crate::rootfs) const MOST_DETACHED: usize = 100;

/// What a step wrote, already below the next step although its chain id is not known: the tar of it is being made by somebody else, for
/// whom what the step wrote stays as it was.
#[derive(Debug)]
pub struct DetachedStep {
    /// Declared first: the mount goes before the directories under it.
    files: Files,
    step: UnnamedStep,
}

/// Where the files of a detached step are.
#[derive(Debug)]
enum Files {
    /// The tree after the step.
    Mounted(Rootfs),
    /// Those of the layer alone.
    Frozen(Frozen),
}

/// A step whose chain id is not known yet.
#[derive(Debug)]
pub struct UnnamedStep(Naming);

#[derive(Debug)]
enum Naming {
    Overlay(Arc<Stacks>, Arc<Unnamed>),
    Directory(Arc<frozen::Naming>),
}

impl TreeStep<'_> {
    /// Whether [`TreeStep::detach`] is of use here, for a layer that is `holding` so much. `commands` says whether a command is among the steps
    /// that follow.
    pub fn can_detach(&self, holding: Holding, commands: bool) -> bool {
        match &self.work {
            // Each is one directory more in the mounts that follow, and none of them can become part of another one.
            Work::Overlay { tree, .. } => tree.unnamed.len() < MOST_DETACHED,
            Work::Directory { tree, .. } => tree.can_freeze(holding, commands),
        }
    }

    /// Keeps the changes as a layer on top of the tree before its diff_id is known, so that the next step can begin. `entries` are those of the
    /// layer, for directory mode. Whoever learns the diff_id calls [`UnnamedStep::name`].
    ///
    /// # Errors
    /// If the tree cannot be mounted as it is now, or its files cannot be kept as they are; [`TreeError::Cancelled`].
    pub fn detach(
        self,
        entries: impl Iterator<Item = io::Result<Held>>,
        cancel: &Cancel,
    ) -> Result<DetachedStep, TreeError> {
        let Self { rootfs, work } = self;
        match work {
            Work::Overlay { temp, tree, lower, upper } => {
                // The upper directory must not be written any more when it is a lower one.
                drop((rootfs, lower, upper));
                let layer = Arc::new(Unnamed::new(temp));
                tree.unnamed.push(Arc::clone(&layer));
                let files = Files::Mounted(tree.stacks.view_of(&tree.chains, &tree.unnamed)?);
                Ok(DetachedStep { files, step: UnnamedStep(Naming::Overlay(Arc::clone(&tree.stacks), layer)) })
            }
            Work::Directory { now, tree, .. } => {
                let files = Files::Frozen(tree.freeze(&rootfs, entries, cancel)?);
                let step = tree.detached(now.into_inner().unwrap_or_else(PoisonError::into_inner));
                Ok(DetachedStep { files, step: UnnamedStep(Naming::Directory(step)) })
            }
        }
    }
}

impl DetachedStep {
    /// The tree as the step left it, read-only; in directory mode the entries of the layer alone.
    pub fn rootfs(&self) -> &Rootfs {
        match &self.files {
            Files::Mounted(rootfs) => rootfs,
            Files::Frozen(frozen) => frozen.rootfs(),
        }
    }

    /// The layer is packed: nobody needs the files any more.
    pub fn packed(self) -> UnnamedStep {
        self.step
    }
}

impl UnnamedStep {
    /// Keeps the layer for other trees: `chain` is that of the whole stack with it.
    ///
    /// # Errors
    /// If the directory cannot be moved.
    pub fn name(self, chain: ChainId) -> Result<(), TreeError> {
        match self.0 {
            Naming::Overlay(stacks, layer) => stacks.name_detached(&layer, chain),
            Naming::Directory(step) => {
                step.name(chain);
                Ok(())
            }
        }
    }
}
