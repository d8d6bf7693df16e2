//! What is kept in a work dir, and removing it.
//!
//! Every build holds a shared lock (flock(2)) on `<work>/lock` from its first look at the work dir to its end; [`prune`] takes
//! it exclusively, so nothing is removed under a running build, and a build that begins meanwhile waits.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::Serialize;

use super::mounts::{CacheMountId, bring_all_home};
use crate::hint::Hint;
use crate::rootfs::{Ownership, TreeError, TreeMode, Trees, Volume, lock_file};
use crate::sandbox::{Environment, IdMapping, Tier};

/// What is kept, by kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Inventory {
    /// Version of this form.
    pub version: u32,
    /// Layers, manifests and configs as registries store them.
    pub blobs: Kept,
    /// Unpacked layers and trees.
    pub trees: Kept,
    /// Records of the step cache.
    pub steps: Kept,
    /// Directories of `RUN --mount=type=cache`.
    pub mounts: Vec<KeptMount>,
}

/// Number and size of something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Kept {
    /// How many.
    pub count: u64,
    /// Space on disk in bytes; hard links count once.
    pub bytes: u64,
}

/// One cache mount.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct KeptMount {
    /// Its identity.
    pub id: CacheMountId,
    /// Space on disk in bytes.
    pub bytes: u64,
}

/// Why a work dir could not be listed or pruned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MaintainError {
    /// A build uses it.
    #[error("a build is running in `{}`", path.display())]
    Busy {
        /// The work dir.
        path: PathBuf,
    },
    /// The disk refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `list`, `remove`, …
        action: &'static str,
        /// Which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Hint for MaintainError {
    fn hint(&self) -> Option<String> {
        matches!(self, Self::Busy { .. }).then(|| "try again when it has ended".to_owned())
    }
}

/// Version of [`Inventory`]'s form.
const INVENTORY_VERSION: u32 = 1;

/// Directories that hold what a build can make again, in the order in which they are removed: records before what they name.
const PRUNED: [&str; 6] = ["cache", "files", "trees", "uploads", "blobs", "tmp"];

/// Holds a work dir for a build until dropped.
#[derive(Debug)]
pub(super) struct InUse {
    _lock: File,
}

/// Takes the shared lock; waits while the work dir is pruned.
pub(super) fn hold(work_dir: &Path) -> io::Result<InUse> {
    fs::create_dir_all(work_dir)?;
    let lock = lock_file(&work_dir.join("lock"))?;
    rustix::fs::flock(&lock, FlockOperation::LockShared)?;
    Ok(InUse { _lock: lock })
}

/// Lists what is kept. A missing work dir keeps nothing.
///
/// # Errors
/// [`MaintainError::Io`]
pub fn inventory(work_dir: &Path) -> Result<Inventory, MaintainError> {
    let mut found = Inventory { version: INVENTORY_VERSION, ..Inventory::default() };
    found.blobs = kept(&work_dir.join("blobs"), |path| path.is_file())?;
    found.steps = kept(&work_dir.join("cache/steps"), |path| path.is_file())?;
    let trees = work_dir.join("trees");
    found.trees.bytes = kept(&trees, |_| true)?.bytes;
    for kind in entries(&trees)? {
        found.trees.count += entries(&kind)?.len() as u64;
    }
    for directory in entries(&work_dir.join("mounts"))? {
        let meta = fs::read(directory.join("meta.json")).ok();
        if let Some(id) = meta.and_then(|bytes| serde_json::from_slice(&bytes).ok()) {
            found.mounts.push(KeptMount { id, bytes: kept(&directory.join("data"), |_| true)?.bytes });
        }
    }
    found.mounts.sort_by(|a, b| a.id.id.cmp(&b.id.id));
    Ok(found)
}

/// Removes everything that a build can make again, and the cache mounts if `mounts`. Returns the bytes freed.
///
/// # Errors
/// [`MaintainError::Busy`] while a build runs.
pub fn prune(work_dir: &Path, mounts: bool) -> Result<u64, MaintainError> {
    if !work_dir.exists() {
        return Ok(0);
    }
    let failed = |action| {
        let path = work_dir.to_owned();
        move |source| MaintainError::Io { action, path, source }
    };
    let lock = lock_file(&work_dir.join("lock")).map_err(failed("lock"))?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(MaintainError::Busy { path: work_dir.to_owned() }),
        Err(error) => return Err(failed("lock")(error.into())),
    }
    bring_all_home(work_dir).map_err(failed("restore the cache mounts of"))?;
    let mut freed = 0;
    for name in PRUNED.iter().copied().chain(mounts.then_some("mounts")) {
        let path = work_dir.join(name);
        freed += kept(&path, |_| true)?.bytes;
        match fs::remove_dir_all(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(MaintainError::Io { action: "remove", path, source: error });
            }
            _ => {}
        }
    }
    Ok(freed)
}

/// For `slipway info`: how a work dir could be used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WorkDir {
    /// What its volume can do.
    pub volume: Volume,
    /// Whether trees are stacked by overlayfs or plain directories.
    pub trees: TreeMode,
    /// Why not overlayfs, unless plain directories were asked for.
    pub overlay_refused: Option<String>,
    /// Whether owners are real or recorded beside the trees.
    pub ownership: Ownership,
}

/// For `slipway info`: how trees would be kept in `work_dir`, and why not by overlayfs.
///
/// # Errors
/// If the work dir cannot be used at all.
pub fn probe_work_dir(
    work_dir: &Path,
    mode: Option<TreeMode>,
    environment: &Environment,
) -> Result<WorkDir, TreeError> {
    let (trees, ownership) = open_trees(work_dir, mode, environment)?;
    let failed = |source| TreeError::Io { action: "probe", path: work_dir.to_owned(), source };
    // Where the tier alone is the reason, nothing was tried.
    let mounts_nothing = match (trees.mode(), mode, environment.tier) {
        (TreeMode::Directory, None, Some(tier)) => Some(format!("the sandbox tier {tier} mounts nothing")),
        _ => None,
    };
    Ok(WorkDir {
        volume: Volume::probe(work_dir).map_err(failed)?,
        trees: trees.mode(),
        overlay_refused: trees.overlay_refused().map(str::to_owned).or(mounts_nothing),
        ownership,
    })
}

/// The trees of a work dir as the sandbox can use them, and whose files belong to whom.
///
/// # Errors
/// [`TreeError::NoOverlay`] if overlayfs is demanded where the sandbox cannot mount.
pub(super) fn open_trees(
    work_dir: &Path,
    mode: Option<TreeMode>,
    environment: &Environment,
) -> Result<(Trees, Ownership), TreeError> {
    let mode = match environment.tier {
        Some(tier @ (Tier::Chroot | Tier::Traced)) => {
            if mode == Some(TreeMode::Overlay) {
                let reason = format!("the sandbox tier {tier} mounts nothing");
                return Err(TreeError::NoOverlay { path: work_dir.to_owned(), reason });
            }
            Some(TreeMode::Directory)
        }
        _ => mode,
    };
    let failed = |action| move |source| TreeError::Io { action, path: work_dir.to_owned(), source };
    let ownership = ownership(work_dir, environment);
    // Opening removes what earlier builders have left.
    bring_all_home(work_dir).map_err(failed("restore the cache mounts of"))?;
    let trees = Trees::open(work_dir, mode, ownership)?;
    trees.share_bases(environment.tier == Some(Tier::Traced));
    Ok((trees, ownership))
}

/// Whether owners can be made real where the process is, on the volume of `work_dir`.
fn ownership(work_dir: &Path, environment: &Environment) -> Ownership {
    match environment.ids {
        IdMapping::Single | IdMapping::Played | IdMapping::None => Ownership::Recorded,
        // Every map with more than one id has these. Not being able to write at all is told when the trees are opened.
        IdMapping::Root | IdMapping::Identity | IdMapping::Subordinate => {
            match Volume::keeps_owners(work_dir, (1, 1)) {
                Ok(false) => Ownership::Recorded,
                // Nothing hides device nodes of the tree from a command in a chroot.
                _ if environment.tier == Some(Tier::Chroot) && !Volume::confines_devices(work_dir) => {
                    Ownership::RealFiles
                }
                _ => Ownership::Real,
            }
        }
    }
}

/// Paths directly in a directory, sorted; a missing one has none.
fn entries(directory: &Path) -> Result<Vec<PathBuf>, MaintainError> {
    let failed = |source| MaintainError::Io { action: "list", path: directory.to_owned(), source };
    let mut paths = Vec::new();
    match fs::read_dir(directory) {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {}
        Err(error) => return Err(failed(error)),
        Ok(found) => {
            for entry in found {
                paths.push(entry.map_err(failed)?.path());
            }
        }
    }
    paths.sort();
    Ok(paths)
}

/// Counts what `counts` and adds up the space of everything below `top`. What vanishes meanwhile is not there.
fn kept(top: &Path, counts: impl Fn(&Path) -> bool) -> Result<Kept, MaintainError> {
    use std::os::unix::fs::MetadataExt as _;
    let mut found = Kept::default();
    let mut links = BTreeSet::new();
    let mut pending = vec![top.to_owned()];
    while let Some(directory) = pending.pop() {
        for path in entries(&directory)? {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() || metadata.nlink() == 1 || links.insert((metadata.dev(), metadata.ino())) {
                // stat(2): blocks are of 512 bytes whatever the file system's own are.
                found.bytes += metadata.blocks() * 512;
            }
            if metadata.is_dir() {
                pending.push(path);
            } else if counts(&path) {
                found.count += 1;
            }
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_removed_under_a_build() {
        let work = tempfile::tempdir().expect("directory");
        let held = hold(work.path()).expect("lock");
        fs::create_dir_all(work.path().join("blobs/sha256")).expect("directory");
        fs::write(work.path().join("blobs/sha256/00"), vec![1; 10_000]).expect("file");
        assert!(matches!(prune(work.path(), true), Err(MaintainError::Busy { .. })));
        drop(held);
        let found = inventory(work.path()).expect("list");
        assert_eq!(found.blobs.count, 1);
        assert!(found.blobs.bytes >= 10_000);
        assert!(prune(work.path(), true).expect("prune") >= 10_000);
        assert_eq!(inventory(work.path()).expect("list").blobs, Kept::default());
    }

    #[test]
    fn a_work_dir_that_is_not_there_keeps_nothing() {
        let none = Path::new("/nonexistent/slipway");
        assert_eq!(prune(none, true).expect("nothing to do"), 0);
        assert_eq!(inventory(none).expect("nothing there").mounts, vec![]);
    }
}
