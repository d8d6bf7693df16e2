//! A second tree of what one tree holds, for directory mode: everything that the disk has is the same, but inodes.
//!
//! The bytes of files are shared where the file system can (ioctl_ficlone(2)) and copied in the kernel elsewhere, which is
//! still several times cheaper than inflating their layers again, and needs no blob. What is recorded of an inode is
//! recorded of its copy.
//!
//! Directories are dealt with side by side, on all threads of the current rayon pool. Names of one file are linked when
//! everything else is there, and then the directories around them get their times.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::attributes::Handle;
use super::borrowed::{LentFiles, own_mode};
use super::fetch::Stop;
use super::owners::{Key, Owners};
use super::sparse::Original;
use super::stat::Stat;
use super::tree::new_file;
use super::{FileKind, ListError, Rootfs};
use crate::disk::Disk;

/// A tree and the empty one that becomes its like. Both as the disk has them, with nothing pretended.
pub(super) struct Duplicate<'a> {
    pub from: &'a Rootfs,
    pub to: &'a Rootfs,
    /// Where anything is recorded: what is known of the one, and what will be of the other.
    pub owners: Option<(&'a Owners, &'a Owners)>,
    /// Whether owners are real.
    pub owned: bool,
    /// Files that need no copy, because nobody changes them.
    pub lent: &'a LentFiles,
    pub disk: &'a Disk,
    pub stop: &'a Stop<'a>,
}

/// What is known of a copy that goes on.
#[derive(Default)]
struct Progress {
    /// The first name of each file with several.
    first: BTreeMap<u64, PathBuf>,
    /// Their other names: the first one, and the one to be made.
    others: Vec<(PathBuf, PathBuf)>,
    /// Directories in which names will be made.
    late: Vec<PathBuf>,
    failed: Option<ListError>,
}

fn fail(path: &Path) -> impl Fn(io::Error) -> ListError {
    move |source| ListError { path: path.to_owned(), source }
}

impl Duplicate<'_> {
    /// Does it.
    ///
    /// # Errors
    /// The first path that could not be copied; `Interrupted` when stopped. The copy is then half done.
    pub(super) fn make(&self) -> Result<(), ListError> {
        let progress = Mutex::new(Progress::default());
        rayon::scope(|scope| self.visit(PathBuf::new(), &progress, scope));
        let Progress { others, late, failed, .. } = progress.into_inner().unwrap_or_else(PoisonError::into_inner);
        if let Some(error) = failed {
            return Err(error);
        }
        for (first, other) in others {
            self.to.hard_link(&first, &other).map_err(fail(&other))?;
        }
        for path in late {
            self.finish(&path).map_err(fail(&path))?;
        }
        Ok(())
    }

    fn visit<'s>(&'s self, path: PathBuf, progress: &'s Mutex<Progress>, scope: &rayon::Scope<'s>) {
        if lock(progress).failed.is_some() {
            return;
        }
        if let Err(error) = self.copy_directory(&path, progress, scope) {
            lock(progress).failed.get_or_insert(error);
        }
    }

    fn directory(&self, tree: &Rootfs, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        tree.open_place(&Path::new("/").join(path), flags, Mode::empty())
    }

    /// Copies what is in a directory that is there on both sides; those in it follow by themselves.
    fn copy_directory<'s>(
        &'s self,
        path: &Path,
        progress: &'s Mutex<Progress>,
        scope: &rayon::Scope<'s>,
    ) -> Result<(), ListError> {
        let from = self.directory(self.from, path).map_err(fail(path))?;
        let to = self.directory(self.to, path).map_err(fail(path))?;
        let mut linked = false;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&from, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| fail(path)(error.into()))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let below = path.join(name);
            if self.stop.is_stopped() {
                return Err(fail(&below)(io::ErrorKind::Interrupted.into()));
            }
            let failed = |error: Errno| fail(&below)(error.into());
            let stat = Stat::entry(&from, name).map_err(failed)?;
            if stat.kind == FileKind::Directory {
                rustix::fs::mkdirat(&to, name, Mode::from_raw_mode(0o700)).map_err(failed)?;
                scope.spawn(move |scope| self.visit(below, progress, scope));
                continue;
            }
            if stat.kind == FileKind::File && self.lent.contains(Key::of(&stat)) {
                self.borrow(&from, &to, name, stat).map_err(fail(&below))?;
                continue;
            }
            if stat.links > 1 {
                linked = true;
                let mut progress = lock(progress);
                if let Some(first) = progress.first.get(&stat.inode).cloned() {
                    progress.others.push((first, below));
                    continue;
                }
                progress.first.insert(stat.inode, below.clone());
            }
            self.copy_entry(&from, &to, name, &stat).map_err(fail(&below))?;
        }
        if linked {
            lock(progress).late.push(path.to_owned());
            return Ok(());
        }
        self.finish_directory(&from, &to).map(drop).map_err(fail(path))
    }

    /// Makes a name of a lent file.
    fn borrow(&self, from: &OwnedFd, to: &OwnedFd, name: &OsStr, mut stat: Stat) -> io::Result<()> {
        let (key, Some((known, later))) = (Key::of(&stat), self.owners) else { return Err(Errno::INVAL.into()) };
        match rustix::fs::linkat(from, name, to, name, AtFlags::empty()) {
            Ok(()) => {
                if let Some(record) = known.record(key) {
                    later.put_record(key, record);
                }
                return Ok(());
            }
            // Most file systems have a largest number of names, and some no second ones.
            Err(error) => tracing::trace!(%error, "a file of a base is copied"),
        }
        let shown = self.lent.mode(key).unwrap_or(stat.mode);
        stat.mode = own_mode(shown);
        self.copy_entry(from, to, name, &stat)?;
        later.set_mode(Key::of(&Stat::entry(to, name)?), shown, stat.mode);
        Ok(())
    }

    fn finish_directory(&self, from: &OwnedFd, to: &OwnedFd) -> io::Result<Handle> {
        let stat = Stat::of(from)?;
        let (from, to) =
            (Handle::entry(from, OsStr::new(""), stat.kind)?, Handle::entry(to, OsStr::new(""), stat.kind)?);
        self.give(&from, &to, &stat)?;
        Ok(to)
    }

    /// Copies one file to a name that is free; of a directory nothing but that it is one ([`Duplicate::finish`]).
    pub(super) fn one(&self, path: &Path) -> io::Result<()> {
        if self.stop.is_stopped() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let (parent, name) = (path.parent().unwrap_or(Path::new("")), path.file_name().unwrap_or_default());
        let (from, to) = (self.directory(self.from, parent)?, self.directory(self.to, parent)?);
        let stat = Stat::entry(&from, name)?;
        match stat.kind {
            FileKind::Directory => Ok(rustix::fs::mkdirat(&to, name, Mode::from_raw_mode(0o700))?),
            _ => self.copy_entry(&from, &to, name, &stat),
        }
    }

    /// Gives a directory what it has but for its content.
    pub(super) fn finish(&self, path: &Path) -> io::Result<Handle> {
        self.finish_directory(&self.directory(self.from, path)?, &self.directory(self.to, path)?)
    }

    fn copy_entry(&self, from: &OwnedFd, to: &OwnedFd, name: &OsStr, stat: &Stat) -> io::Result<()> {
        let special = |kind| {
            let device = rustix::fs::makedev(stat.device.0, stat.device.1);
            rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(0o600), device)
        };
        match stat.kind {
            FileKind::File => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let original = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
                let copy = File::from(new_file(to, name)?);
                let go_on = || match self.stop.is_stopped() {
                    true => Err(io::ErrorKind::Interrupted.into()),
                    false => Ok(()),
                };
                if stat.size > 0 {
                    Original { file: &original, go_on: &go_on, seen: None }.copy_to(&copy, self.disk)?;
                }
                return self.give(&Handle::Open(original.into()), &Handle::Open(copy.into()), stat);
            }
            FileKind::Symlink => {
                let text = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(text, to, name)?;
            }
            FileKind::Fifo => special(FileType::Fifo)?,
            FileKind::Socket => special(FileType::Socket)?,
            FileKind::CharDevice => special(FileType::CharacterDevice)?,
            FileKind::BlockDevice => special(FileType::BlockDevice)?,
            FileKind::Directory => {}
        }
        self.give(&Handle::entry(from, name, stat.kind)?, &Handle::entry(to, name, stat.kind)?, stat)
    }

    /// Gives a file what another one has, in the order in which nothing undoes what came before it.
    fn give(&self, from: &Handle, to: &Handle, stat: &Stat) -> io::Result<()> {
        let (from, to) = (from.target(), to.target());
        if let Some((known, later)) = self.owners
            && let Some(record) = known.record(Key::of(stat))
        {
            later.put_record(Key::of(&Stat::of(to.fd())?), record);
        }
        if self.owned {
            to.chown(stat.uid, stat.gid)?;
        }
        if stat.kind != FileKind::Symlink {
            to.chmod(stat.mode)?;
        }
        from.copy_xattrs(to)?;
        to.set_mtime(stat.mtime)
    }
}

fn lock(progress: &Mutex<Progress>) -> MutexGuard<'_, Progress> {
    progress.lock().unwrap_or_else(PoisonError::into_inner)
}
