//! The directory in which all trees of a work dir lie, shared by any number of processes.
//!
//! ```text
//! <work>/trees/lock            held for a moment: shared while a temporary directory is made, alone while old ones are found
//! <work>/trees/layers/<hex>/   overlay mode: what one layer adds to the layers below it; named by chain id
//! <work>/trees/flat/<hex>/     overlay mode: a whole stack as one directory, where there are more layers than a mount takes
//! <work>/trees/merged/<hex>-<n>/  overlay mode: the last `n` layers of a stack as one, where they are small; see `merge`
//! <work>/trees/plain/<hex>/    directory mode: a finished tree that nobody changes; named by chain id. Whoever takes it away
//!                              holds an exclusive lock (flock(2)) on it for that moment, whoever copies it a shared one
//! <work>/trees/bases/<hex>/    directory mode: a finished tree that nobody ever changes, whose blocks others share, or whose files
//!                              they borrow; see `plain` and `borrowed`
//! <work>/trees/linked/<hex>/   as `plain`, of trees that borrow files: for those alone who see every change before it is made
//! <work>/trees/indexes/<hex>   what a layer holds, named by diff_id; see `index`
//! <work>/trees/none/{a,b}/     empty directories under every stack
//! <work>/trees/tmp/<random>/   work of one process, which holds a lock (flock(2)) on it as long as it lives
//! ```
//!
//! Everything with a name is whole: it was renamed there from `tmp`. What a killed process leaves lies in `tmp` without a
//! lock, and the next one that opens the work dir removes it.
//!
//! # Limitations
//! Nothing is synced: after a power failure (not after a kill) files may be empty.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, IFlags, Mode, OFlags};
use rustix::io::Errno;

use super::index::Indexes;
use super::remove::remove_entry;
use super::volume::lock_file;
use super::{Rootfs, TreeError};
use crate::disk::Disk;
use crate::oci::ChainId;

/// The `trees` directory.
#[derive(Debug)]
pub(super) struct TreesDir {
    root: PathBuf,
    /// What may be written.
    disk: OnceLock<Disk>,
}

/// A directory that vanishes when dropped, or at the next start.
#[derive(Debug)]
pub(super) struct TempDir {
    path: PathBuf,
    /// Open and locked.
    _lock: OwnedFd,
}

/// A finished tree that stays as it is, and where it is, as long as this lives.
#[derive(Debug)]
pub(super) struct Lease {
    /// Open and locked.
    directory: OwnedFd,
}

/// What became of a tree that was to be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is somewhere else now, and nobody else's.
    Yes,
    /// There is none.
    Missing,
    /// Somebody copies it.
    Lent,
}

/// Attaches what was done and where.
pub(super) fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> TreeError {
    move |source| TreeError::Io { action, path: path.to_owned(), source }
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes a directory with exactly these rights; it may be there.
pub(super) fn make_directory(path: &Path) -> Result<(), TreeError> {
    let fail = io_error("create", path);
    match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
        Ok(()) => {
            let fd = open_directory(path).map_err(&fail)?;
            rustix::fs::fchmod(fd, Mode::from_raw_mode(0o755)).map_err(|error| fail(error.into()))
        }
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(fail(error.into())),
    }
}

/// Asks the file system to place what is in one directory of `path` apart from what is in another, as it does with the
/// directories of its root (`chattr +T`, see ext4(5) and chattr(1)).
///
/// ext4 without a journal gives no inode away again within the minutes after its file was removed, and looks past all of
/// these for each file that it makes near them: 100,000 files made where a tree of as many was removed a moment ago took
/// 12 s of processor time, and 0.7 s elsewhere on the disk. Where the flag is unknown nothing happens.
fn place_apart(path: &Path) {
    let flagged = open_directory(path).and_then(|directory| {
        let flags = rustix::fs::ioctl_getflags(&directory)?;
        if !flags.contains(IFlags::TOPDIR) {
            rustix::fs::ioctl_setflags(&directory, flags | IFlags::TOPDIR)?;
        }
        Ok(())
    });
    if let Err(error) = flagged {
        tracing::debug!(path = %path.display(), %error, "trees are placed as the file system likes");
    }
}

impl TreesDir {
    /// Opens or makes the directory and removes what nobody works on any more.
    pub(super) fn open(work_dir: &Path) -> Result<Self, TreeError> {
        std::fs::create_dir_all(work_dir).map_err(io_error("create", work_dir))?;
        // Mount options need absolute paths, and the working directory may change.
        let work_dir = work_dir.canonicalize().map_err(io_error("open", work_dir))?;
        let this = Self { root: work_dir.join("trees"), disk: OnceLock::new() };
        make_directory(&this.root)?;
        for name in
            ["layers", "flat", "merged", "plain", "bases", "linked", "indexes", "none", "none/a", "none/b", "tmp"]
        {
            make_directory(&this.root.join(name))?;
        }
        place_apart(&this.root.join("tmp"));
        this.remove_abandoned()?;
        Ok(this)
    }

    /// What may be written, once it is said.
    pub(super) fn disk(&self) -> Disk {
        self.disk.get().cloned().unwrap_or_default()
    }

    /// Everything that is written from now on counts; the first word is the last.
    pub(super) fn account(&self, disk: Disk) {
        _ = self.disk.set(disk);
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn layer(&self, chain: ChainId) -> PathBuf {
        self.root.join("layers").join(chain.to_hex())
    }

    pub(super) fn flat(&self, chain: ChainId) -> PathBuf {
        self.root.join("flat").join(chain.to_hex())
    }

    pub(super) fn merged(&self, chain: ChainId, layers: usize) -> PathBuf {
        self.root.join("merged").join(format!("{}-{layers}", chain.to_hex()))
    }

    pub(super) fn plain(&self, chain: ChainId) -> PathBuf {
        self.root.join("plain").join(chain.to_hex())
    }

    pub(super) fn base(&self, chain: ChainId) -> PathBuf {
        self.root.join("bases").join(chain.to_hex())
    }

    pub(super) fn linked(&self, chain: ChainId) -> PathBuf {
        self.root.join("linked").join(chain.to_hex())
    }

    pub(super) fn indexes(&self) -> Indexes {
        Indexes::new(&self.root.join("indexes"))
    }

    /// Two empty directories.
    pub(super) fn none(&self) -> [PathBuf; 2] {
        [self.root.join("none/a"), self.root.join("none/b")]
    }

    fn lock(&self, operation: FlockOperation) -> io::Result<File> {
        let file = lock_file(&self.root.join("lock"))?;
        loop {
            match rustix::fs::flock(&file, operation) {
                Err(Errno::INTR) => {}
                other => break Ok(other.map(|()| file)?),
            }
        }
    }

    pub(super) fn temp(&self) -> Result<TempDir, TreeError> {
        let parent = self.root.join("tmp");
        let fail = io_error("create", &parent);
        // Between being made and being locked the directory looks abandoned.
        let _making = self.lock(FlockOperation::LockShared).map_err(&fail)?;
        let path = tempfile::Builder::new().prefix("").rand_bytes(12).tempdir_in(&parent).map_err(&fail)?.keep();
        let lock = open_directory(&path).map_err(&fail)?;
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).map_err(|error| fail(error.into()))?;
        Ok(TempDir { path, _lock: lock })
    }

    /// Moves a finished tree to where it belongs to its user alone.
    pub(super) fn take(&self, from: &Path, to: &Path) -> Result<Taken, TreeError> {
        match locked(from, FlockOperation::NonBlockingLockExclusive) {
            Ok(Some(_lock)) => match rustix::fs::rename(from, to) {
                Ok(()) => Ok(Taken::Yes),
                Err(Errno::NOENT) => Ok(Taken::Missing),
                Err(error) => Err(io_error("take", from)(error.into())),
            },
            Ok(None) => Ok(Taken::Missing),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Taken::Lent),
            Err(error) => Err(io_error("lock", from)(error)),
        }
    }

    /// Keeps a finished tree as it is; `None` if there is none.
    pub(super) fn lend(&self, path: &Path) -> Result<Option<Lease>, TreeError> {
        let locked = locked(path, FlockOperation::LockShared).map_err(io_error("lock", path))?;
        Ok(locked.map(|directory| Lease { directory }))
    }

    /// Removes the finished tree that nobody uses (directory mode) for the longest time; `false` if there is none. Whoever
    /// wants it again unpacks it from its layers.
    pub(super) fn forget_oldest(&self) -> Result<bool, TreeError> {
        let mut entries = Vec::new();
        for kind in ["plain", "linked", "bases"] {
            let parent = self.root.join(kind);
            entries.extend(std::fs::read_dir(&parent).map_err(io_error("read", &parent))?.flatten());
        }
        // What others take meanwhile is no error. A rename changes the ctime, so this is when the tree got its name.
        let mut found: Vec<_> = entries
            .into_iter()
            .filter_map(|entry| entry.metadata().ok().map(|of| ((of.ctime(), of.ctime_nsec()), entry.path())))
            .collect();
        found.sort_unstable();
        for (_, path) in found {
            let temp = self.temp()?;
            if self.take(&path, &temp.path().join("tree"))? == Taken::Yes {
                tracing::debug!(tree = %path.display(), "a tree that nobody uses makes room");
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn remove_abandoned(&self) -> Result<(), TreeError> {
        let parent = self.root.join("tmp");
        let fail = io_error("clean", &parent);
        let mut abandoned = Vec::new();
        {
            let _alone = match self.lock(FlockOperation::NonBlockingLockExclusive) {
                Ok(lock) => lock,
                // Somebody is at work here right now, and will be again.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(fail(error)),
            };
            for entry in std::fs::read_dir(&parent).map_err(&fail)? {
                let path = entry.map_err(&fail)?.path();
                let Ok(lock) = open_directory(&path) else { continue };
                if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() {
                    abandoned.push(TempDir { path, _lock: lock });
                }
            }
            self.indexes().remove_unfinished();
        }
        if !abandoned.is_empty() {
            tracing::debug!(count = abandoned.len(), "removing trees that an earlier process left unfinished");
        }
        drop(abandoned);
        Ok(())
    }
}

/// Opens and locks a directory that has a name; `None` if it has it no longer.
fn locked(path: &Path, operation: FlockOperation) -> io::Result<Option<OwnedFd>> {
    loop {
        let directory = match open_directory(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        match rustix::fs::flock(&directory, operation) {
            Err(Errno::INTR) => continue,
            other => other?,
        }
        // Another one may have taken it before it was locked, and a third one put its own there.
        let ours = rustix::fs::fstat(&directory)?;
        match rustix::fs::lstat(path) {
            Ok(there) if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino) => return Ok(Some(directory)),
            Ok(_) => {}
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

impl Lease {
    /// The root of the tree, as the disk has it.
    pub(super) fn root(&self) -> io::Result<Rootfs> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Rootfs::from_fd(rustix::fs::openat(&self.directory, "root", flags, Mode::empty())?))
    }
}

impl TempDir {
    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let (Some(parent), Some(name)) = (self.path.parent(), self.path.file_name()) else { return };
        let removed = open_directory(parent).and_then(|parent| remove_entry(parent.as_fd(), name));
        if let Err(error) = removed {
            tracing::debug!(path = %self.path.display(), %error, "left for the next start to remove");
        }
    }
}

/// Gives a finished directory its name. `false` if the name was taken, which means the same content is there.
pub(super) fn publish(from: &Path, to: &Path) -> Result<bool, TreeError> {
    match rustix::fs::rename(from, to) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST | Errno::NOTEMPTY) => Ok(false),
        Err(error) => Err(io_error("publish", to)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::print_stdout, reason = "tests say why they cannot run")]
    fn trees_are_placed_apart_where_the_file_system_can() {
        let dir = tempfile::tempdir().unwrap();
        TreesDir::open(dir.path()).unwrap();
        let flags = |path: &Path| rustix::fs::ioctl_getflags(open_directory(path).unwrap());
        // A directory of our own, for a file system that has flags but not this one.
        let probe = dir.path().join("probe");
        std::fs::create_dir(&probe).unwrap();
        place_apart(&probe);
        match flags(&probe) {
            Ok(flags) if flags.contains(IFlags::TOPDIR) => {}
            other => return println!("skipped: the file system has no such flag ({other:?})"),
        }
        assert!(flags(&dir.path().join("trees/tmp")).unwrap().contains(IFlags::TOPDIR));
        assert!(!flags(&dir.path().join("trees/layers")).unwrap().contains(IFlags::TOPDIR));
    }
}
