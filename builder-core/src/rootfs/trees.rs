//! All root filesystems of a work dir: layers unpacked once, stacked by overlayfs where that works, in one plain
//! directory each otherwise. The layout on disk is described in `workdir`.

use std::io::{self, Read};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use super::fetch::Stop;
use super::index::Bounds;
use super::inflate::Allowance;
use super::overlay::{is_opaque, probe};
use super::plain::{Making, PlainTree, Plains};
use super::pretend::{Marks, Pretence, StandIn};
use super::stack::{Claims, Stacks, Unnamed};
use super::volume;
use super::wanted::Expected;
use super::workdir::{TempDir, TreesDir, io_error, make_directory, publish};
use super::{Attributes, ListError, Listing, Rootfs, Touched, TreeError};
use crate::cancel::Cancel;
use crate::oci::{ChainId, Descriptor, DiffId};

pub(super) use detached::MOST_DETACHED;
pub use detached::{DetachedStep, UnnamedStep};

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
    /// The same, but nobody may open a device by a node in a tree: marked empty files stand for devices.
    RealFiles,
    /// Only one id exists: others, devices and privileged attributes are recorded beside the tree.
    Recorded,
}

/// All root filesystems of one work dir.
#[derive(Debug)]
pub struct Trees {
    kind: Kind,
    ownership: Ownership,
    /// What is pretended; each tree has its own records.
    pretence: Pretence,
    overlay_refused: Option<String>,
    streams: NonZeroUsize,
    allowed: Allowance,
    known_bounds: Bounds,
}

#[derive(Debug)]
enum Kind {
    Overlay(Arc<Stacks>),
    Directory(Arc<Plains>),
}

/// A stage's root filesystem between steps: a stack of layers, with a directory behind it once one was needed.
#[derive(Debug)]
pub struct WorkTree {
    state: State,
}

#[derive(Debug)]
enum State {
    Overlay(OverlayTree),
    Directory(PlainTree),
}

#[derive(Debug)]
struct OverlayTree {
    stacks: Arc<Stacks>,
    /// Chain ids of the layers that have them, the lowest first.
    chains: Vec<ChainId>,
    /// Layers above those, whose chain ids are not known yet.
    unnamed: Vec<Arc<Unnamed>>,
}

/// A step at work on a tree. Dropped before [`TreeStep::commit`], its changes are gone (in directory mode the tree is
/// then discarded with them).
#[derive(Debug)]
pub struct TreeStep<'a> {
    /// Declared first: the mount goes before the directories under it.
    rootfs: Rootfs,
    work: Work<'a>,
}

#[derive(Debug)]
enum Work<'a> {
    Overlay {
        /// Mounted when somebody asks for it: the more layers, the longer that takes.
        lower: OnceLock<Rootfs>,
        upper: Rootfs,
        temp: TempDir,
        tree: &'a mut OverlayTree,
    },
    Directory {
        before: Arc<Listing>,
        now: Mutex<Option<Arc<Listing>>>,
        tree: &'a mut PlainTree,
        /// A command was let at the tree.
        command: bool,
        touched: Arc<Touched>,
    },
}

impl Trees {
    /// Opens the trees below `work_dir`. `mode` `None` probes for overlayfs by mounting one.
    ///
    /// # Errors
    /// If directories cannot be made, or a forced overlay does not work.
    pub fn open(work_dir: &Path, mode: Option<TreeMode>, ownership: Ownership) -> Result<Self, TreeError> {
        let dir = TreesDir::open(work_dir)?;
        let probed = match (mode, ownership) {
            (Some(TreeMode::Directory), _) => None,
            (_, Ownership::Recorded) => Some(Err("owners are recorded, which overlayfs cannot show".to_owned())),
            (_, Ownership::Real | Ownership::RealFiles) => {
                let temp = dir.temp()?;
                Some(probe(temp.path()))
            }
        };
        let overlay = matches!(probed, Some(Ok(_)));
        let pretence = match ownership {
            Ownership::Real if devices_work(&dir)? => Pretence::Nothing,
            Ownership::Real | Ownership::RealFiles => {
                // A stack of layers has no one place for records; nor does overlayfs work there in a user namespace.
                let recorded = !overlay && !volume::keeps_user_attributes(dir.root());
                let ids = StandIn::here().map(Arc::new);
                Pretence::Marked(Marks { ids, records: recorded.then(Arc::default) })
            }
            Ownership::Recorded => Pretence::Recorded(Arc::default()),
        };
        let (kind, overlay_refused) = match probed {
            None => (Kind::Directory(Arc::new(Plains::new(dir))), None),
            Some(Ok(marks)) => {
                let (claims, naming, merged) = (Claims::default(), RwLock::default(), Mutex::default());
                let stacks = Stacks { dir, marks, claims, pretence: pretence.clone(), naming, merged };
                (Kind::Overlay(Arc::new(stacks)), None)
            }
            Some(Err(reason)) if mode == Some(TreeMode::Overlay) => {
                return Err(TreeError::NoOverlay { path: dir.root().to_owned(), reason });
            }
            Some(Err(reason)) => (Kind::Directory(Arc::new(Plains::new(dir))), Some(reason)),
        };
        Ok(Self {
            kind,
            ownership,
            pretence,
            overlay_refused,
            streams: DEFAULT_STREAMS,
            allowed: Allowance::default(),
            known_bounds: Bounds::default(),
        })
    }

    /// How many layers may be fetched and unpacked at one time (overlay mode); 4 if this is not called.
    pub fn set_streams(&mut self, streams: NonZeroUsize) {
        self.streams = streams;
    }

    /// Bytes that the tar of one layer may have; without limit if this is not called.
    pub fn set_layer_limit(&mut self, bytes: Option<u64>) {
        self.allowed.tar_bytes = bytes;
    }

    /// How much of trees without a directory may be in memory.
    pub fn set_known_bounds(&mut self, bounds: Bounds) {
        self.known_bounds = bounds;
    }

    /// How much of trees without a directory may be in memory.
    pub fn known_bounds(&self) -> Bounds {
        self.known_bounds
    }

    /// How trees are kept here.
    pub fn mode(&self) -> TreeMode {
        match self.kind {
            Kind::Overlay(_) => TreeMode::Overlay,
            Kind::Directory(_) => TreeMode::Directory,
        }
    }

    /// Why overlay is not used, if it was probed and refused.
    pub fn overlay_refused(&self) -> Option<&str> {
        self.overlay_refused.as_deref()
    }

    /// Unpacks those of `layers` (lowest first) that are not here yet, several at once where the mode allows, and gives
    /// a tree with exactly this content. No two trees share what one of them may change.
    ///
    /// # Errors
    /// [`TreeError`]; nothing half unpacked is ever found by a later call.
    pub fn checkout(
        &self,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<WorkTree, TreeError> {
        self.checkout_as(Expected::nobody(), layers, source, cancel)
    }

    /// The same for somebody who was expected.
    ///
    /// # Errors
    /// As [`Trees::checkout`].
    pub fn checkout_as(
        &self,
        expected: Expected,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<WorkTree, TreeError> {
        let chains: Vec<ChainId> = chain_ids(None, layers).collect();
        let stop = Stop::new(cancel);
        let state = match &self.kind {
            Kind::Overlay(stacks) => {
                let stacks = Arc::clone(stacks);
                stacks.prepare(layers, &chains, source, self.streams.get(), &self.allowed, &stop)?;
                State::Overlay(OverlayTree { stacks, chains, unnamed: Vec::new() })
            }
            Kind::Directory(plains) => {
                State::Directory(self.making(plains, (layers, &chains), source, &stop).tree(expected)?)
            }
        };
        Ok(WorkTree { state })
    }

    /// Makes a tree of what another one has, and of `layers` on top of it, in directory mode; `None` in overlay mode, where a
    /// checkout of the same layers shares everything.
    ///
    /// # Errors
    /// [`TreeError`]
    pub fn copy(
        &self,
        tree: &WorkTree,
        layers: &[LayerRef],
        source: &dyn LayerSource,
        cancel: &Cancel,
    ) -> Result<Option<WorkTree>, TreeError> {
        let (Kind::Directory(plains), State::Directory(tree)) = (&self.kind, &tree.state) else { return Ok(None) };
        let chains: Vec<ChainId> = chain_ids(tree.chain(), layers).collect();
        let stop = Stop::new(cancel);
        let state = State::Directory(self.making(plains, (layers, &chains), source, &stop).on_copy_of(tree)?);
        Ok(Some(WorkTree { state }))
    }

    fn making<'a>(
        &'a self,
        plains: &'a Arc<Plains>,
        (layers, chains): (&'a [LayerRef], &'a [ChainId]),
        source: &'a dyn LayerSource,
        stop: &'a Stop<'a>,
    ) -> Making<'a> {
        Making { plains, pretence: &self.pretence, layers, chains, source, allowed: &self.allowed, stop }
    }
}

/// Whether devices can be made here, which no user namespace allows.
fn devices_work(dir: &TreesDir) -> Result<bool, TreeError> {
    let temp = dir.temp()?;
    let place = temp.path().join("null");
    let kind = rustix::fs::FileType::CharacterDevice;
    let device = rustix::fs::makedev(1, 3);
    let made = rustix::fs::mknodat(rustix::fs::CWD, &place, kind, rustix::fs::Mode::empty(), device);
    Ok(made.is_ok())
}

/// Layers unpacked at one time: as many as hide the latency of a registry.
const DEFAULT_STREAMS: NonZeroUsize = NonZeroUsize::new(4).expect("4 is not 0");

impl WorkTree {
    /// The stack of layers, without detached ones on top of it; `None` for an empty tree.
    pub fn chain(&self) -> Option<ChainId> {
        match &self.state {
            State::Overlay(tree) => tree.chains.last().copied(),
            State::Directory(tree) => tree.chain(),
        }
    }

    /// The tree as it is, to read from (COPY --from, mounts, exporters). In overlay mode a read-only mount.
    ///
    /// # Errors
    /// If it cannot be mounted or opened; [`TreeError::Discarded`].
    pub fn rootfs(&self) -> Result<Rootfs, TreeError> {
        match &self.state {
            State::Overlay(tree) => tree.stacks.view_of(&tree.chains, &tree.unnamed),
            State::Directory(tree) if tree.dirty => Err(TreeError::Discarded),
            State::Directory(tree) => tree.readable(),
        }
    }

    /// Begins a step.
    ///
    /// # Errors
    /// If no upper directory can be made and mounted, or (directory mode) the listing fails; [`TreeError::Discarded`].
    pub fn begin(&mut self) -> Result<TreeStep<'_>, TreeError> {
        match &mut self.state {
            State::Overlay(tree) => {
                let temp = tree.stacks.dir.temp()?;
                let (upper, work) = (temp.path().join("upper"), temp.path().join("work"));
                make_directory(&upper)?;
                make_directory(&work)?;
                let rootfs = tree.stacks.mount_on(&tree.chains, &tree.unnamed, Some((&upper, &work)))?;
                let upper = tree.stacks.open(&upper)?;
                begin_root(&rootfs, &tree.stacks.top_of(&tree.chains, &tree.unnamed)?)?;
                Ok(TreeStep { rootfs, work: Work::Overlay { lower: OnceLock::new(), upper, temp, tree } })
            }
            State::Directory(tree) => {
                if tree.dirty {
                    return Err(TreeError::Discarded);
                }
                let rootfs = tree.rootfs()?;
                begin_root(&rootfs, &rootfs)?;
                let touched = Arc::new(Touched::default());
                let rootfs = rootfs.telling(Arc::clone(&touched));
                let before = match tree.take_listing() {
                    Some(listing) => listing,
                    None => Arc::new(rootfs.list().map_err(|error| io_error("list", &error.path)(error.source))?),
                };
                tree.dirty = true;
                Ok(TreeStep {
                    rootfs,
                    work: Work::Directory { before, now: Mutex::new(None), tree, command: false, touched },
                })
            }
        }
    }
}

/// Gives the root directory of a step the owner that it had in the tree before, and mode 0755 whatever that was: no layer
/// says what the root is like, and this is what containerd's snapshots, in which BuildKit runs, make of it.
fn begin_root(rootfs: &Rootfs, before: &Rootfs) -> Result<(), TreeError> {
    let root = Path::new("/");
    let was = before.lstat(root).map_err(io_error("examine", root))?;
    let attributes = Attributes { owner: Some((was.uid, was.gid)), mode: Some(0o755), ..Attributes::default() };
    rootfs.set_attributes(root, &attributes).map_err(io_error("set the attributes of", root))
}

/// The chain id of each of `layers`, which lie on top of the chain `below`.
pub(super) fn chain_ids(below: Option<ChainId>, layers: &[LayerRef]) -> impl Iterator<Item = ChainId> {
    layers.iter().scan(below, |top, layer| {
        *top = Some(ChainId::extend(*top, layer.diff_id));
        *top
    })
}

impl TreeStep<'_> {
    /// Prepares for a command that changes files by itself, for two things that the kernel does in overlay mode: what is
    /// written to a file of a lower layer by one of several names does not show under the others, and what is made in a
    /// directory with setgid gets its group, though that group be recorded only.
    ///
    /// # Errors
    /// If a file cannot be copied; [`TreeError::Cancelled`].
    pub fn prepare_command(&mut self, cancel: &Cancel) -> Result<(), TreeError> {
        match &mut self.work {
            Work::Overlay { .. } => Ok(()),
            Work::Directory { before, tree, command, .. } => {
                *command = true;
                tree.separate(&self.rootfs, before, cancel)
            }
        }
    }

    /// The tree to change.
    pub fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }

    /// Overlay mode: the raw upper directory: what the step wrote, with whiteouts as character devices 0:0 and opaque
    /// directories marked by the attribute that [`TreeStep::is_opaque`] reads. `None` in directory mode.
    pub fn upper(&self) -> Option<&Rootfs> {
        match &self.work {
            Work::Overlay { upper, .. } => Some(upper),
            Work::Directory { .. } => None,
        }
    }

    /// Overlay mode: the tree before the step, read-only. `None` in directory mode.
    ///
    /// # Errors
    /// If it cannot be mounted.
    pub fn lower(&self) -> Result<Option<&Rootfs>, TreeError> {
        let Work::Overlay { lower, tree, .. } = &self.work else { return Ok(None) };
        if let Some(mounted) = lower.get() {
            return Ok(Some(mounted));
        }
        let mounted = tree.stacks.view_of(&tree.chains, &tree.unnamed)?;
        Ok(Some(lower.get_or_init(|| mounted)))
    }

    /// Overlay mode: whether this directory of [`TreeStep::upper`] hides everything below it in the lower layers.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_opaque(&self, path: &Path) -> io::Result<bool> {
        match &self.work {
            Work::Overlay { upper, tree, .. } => is_opaque(upper, path, tree.stacks.marks),
            Work::Directory { .. } => Ok(false),
        }
    }

    /// Overlay mode: takes files out of the upper directory, so that what is below shows again. That is for copies of it which are not
    /// in the layer: making a name of a lower file copies it, and what was one file with others is one with the new name then, while
    /// in the layers it stays what it was. A tree that is made from the layers would be another one.
    ///
    /// # Errors
    /// The first path that could not be removed.
    pub fn uncover(&self, paths: &[PathBuf]) -> Result<(), ListError> {
        let Work::Overlay { upper, .. } = &self.work else { return Ok(()) };
        paths.iter().try_for_each(|path| {
            upper.remove_unnoticed(path).map_err(|source| ListError { path: path.clone(), source })
        })
    }

    /// Directory mode: the same end. `written` are the paths of the layer, with the first name of each file that has several in it.
    ///
    /// # Errors
    /// Those of `written`; the path that could not be copied or linked.
    pub fn settle<E: From<ListError>>(
        &self,
        written: impl Iterator<Item = Result<(PathBuf, Option<PathBuf>), E>>,
    ) -> Result<(), E> {
        if let Work::Directory { now, tree, command: true, .. } = &self.work
            && let Some(now) = &mut *now.lock().unwrap_or_else(PoisonError::into_inner)
        {
            return tree.settle(&self.rootfs, now, written);
        }
        Ok(())
    }

    /// Directory mode: everything in the tree before the step. `None` in overlay mode.
    pub fn before(&self) -> Option<&Listing> {
        match &self.work {
            Work::Overlay { .. } => None,
            Work::Directory { before, .. } => Some(before),
        }
    }

    /// Everything in the tree now. In directory mode kept as the next step's [`TreeStep::before`], so nothing may change
    /// after the last call before [`TreeStep::commit`].
    ///
    /// # Errors
    /// The first path that could not be examined.
    pub fn scan(&self) -> Result<Arc<Listing>, ListError> {
        if let Work::Directory { before, now, tree, command, touched } = &self.work {
            let mut found = match self.rootfs.list_again(before, touched)? {
                Some(found) => {
                    debug_assert_eq!(
                        found.difference(&self.rootfs.list()?)?,
                        None,
                        "the listing of what was touched is whole"
                    );
                    found
                }
                None => self.rootfs.list()?,
            };
            debug_assert_eq!(tree.damaged(&found)?, None, "files of a base stay as they are");
            tree.follow(&mut found)?;
            if let Some(owners) = tree.owners() {
                // Who tells what a command touches sees what it makes, and records its group.
                if *command && !touched.is_told() {
                    owners.inherit_groups(before, &mut found)?;
                }
                owners.drop_capabilities(before, &found)?;
            }
            let found = Arc::new(found);
            *now.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&found));
            return Ok(found);
        }
        Ok(Arc::new(self.rootfs.list()?))
    }

    /// Keeps the changes as the layer `diff_id` on top of the stack.
    ///
    /// # Errors
    /// If directories cannot be moved, or a detached layer below has no name yet.
    pub fn commit(self, diff_id: DiffId) -> Result<(), TreeError> {
        let Self { rootfs, work } = self;
        // The mount goes before its upper directory becomes a layer.
        drop(rootfs);
        match work {
            Work::Overlay { temp, tree, .. } => {
                let chain = ChainId::extend(tree.named()?, diff_id);
                publish(&temp.path().join("upper"), &tree.stacks.dir.layer(chain))?;
                tree.chains.push(chain);
            }
            Work::Directory { now, tree, .. } => {
                tree.committed(diff_id, now.into_inner().unwrap_or_else(PoisonError::into_inner))?;
            }
        }
        Ok(())
    }
}

impl OverlayTree {
    /// The chain id of all layers, if all of them have one.
    fn named(&mut self) -> Result<Option<ChainId>, TreeError> {
        for layer in std::mem::take(&mut self.unnamed) {
            let chain = layer.chain().ok_or(TreeError::Discarded)?;
            self.chains.push(chain);
        }
        Ok(self.chains.last().copied())
    }
}

#[path = "trees_detached.rs"]
mod detached;

#[path = "trees_needs.rs"]
mod needs;

#[cfg(test)]
#[path = "trees_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "trees_steps_tests.rs"]
mod steps_tests;

#[cfg(test)]
#[path = "trees_shared_tests.rs"]
mod shared_tests;

#[cfg(test)]
#[path = "trees_detached_tests.rs"]
mod detached_tests;
