//! Removing a directory with all below it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use super::{Attributes, Rootfs};

const OPEN_DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

impl Rootfs {
    /// Removes `path`, and leaves the time of the directory that it is in as it is.
    pub(super) fn remove_unnoticed(&self, path: &Path) -> io::Result<()> {
        let parent = Path::new("/").join(path.parent().unwrap_or(Path::new("")));
        let mtime = Some(self.lstat(&parent)?.mtime);
        self.remove(path)?;
        self.set_attributes(&parent, &Attributes { mtime, ..Attributes::default() })
    }
}

/// Removes an entry of a directory and all below it; missing is fine. Links are never followed.
pub(super) fn remove_entry(dir: impl AsFd, name: &OsStr) -> io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR, POSIX and some file systems EPERM.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(Errno::NOTEMPTY | Errno::EXIST) => {
            remove_content(open(&dir, name)?)?;
            Ok(rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)?)
        }
        Err(error) => Err(error.into()),
    }
}

/// Removes everything in a directory.
///
/// Neither recursion nor a descriptor for each level: a layer can nest directories as deep as it likes. Going back up
/// by `..` is checked against the directory that was left.
pub(super) fn remove_content(top: OwnedFd) -> io::Result<()> {
    struct Level {
        /// The directory, to be recognised when coming back.
        identity: (u64, u64),
        /// Directories in it that are not empty yet; the last one is being emptied.
        left: Vec<OsString>,
    }
    let mut levels = vec![Level { identity: identity(&top)?, left: unlink_files(&top)? }];
    let mut current = top;
    while let Some(level) = levels.last_mut() {
        let Some(name) = level.left.last() else {
            levels.pop();
            if let Some(above) = levels.last_mut() {
                let parent = rustix::fs::openat(&current, "..", OPEN_DIRECTORY, Mode::empty())?;
                if identity(&parent)? != above.identity {
                    return Err(io::Error::new(io::ErrorKind::Deadlock, "a directory moved while it was removed"));
                }
                current = parent;
                if let Some(done) = above.left.pop() {
                    rustix::fs::unlinkat(&current, &done, AtFlags::REMOVEDIR)?;
                }
            }
            continue;
        };
        match rustix::fs::unlinkat(&current, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {
                level.left.pop();
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {
                let below = open(&current, name)?;
                levels.push(Level { identity: identity(&below)?, left: unlink_files(&below)? });
                current = below;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn open(dir: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    match rustix::fs::openat(&dir, name, OPEN_DIRECTORY, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Our own directory without rights, and no privilege to ignore that.
            let place = super::resolve::entry(&dir, name)?;
            super::attributes::Target::Place(place.as_fd(), super::FileKind::Directory).chmod(0o700)?;
            Ok(rustix::fs::openat(&dir, name, OPEN_DIRECTORY, Mode::empty())?)
        }
        other => Ok(other?),
    }
}

#[allow(clippy::unnecessary_cast, reason = "the widths of struct stat differ between architectures")]
fn identity(fd: &OwnedFd) -> io::Result<(u64, u64)> {
    let Stat { st_dev, st_ino, .. } = rustix::fs::fstat(fd)?;
    Ok((st_dev as u64, st_ino as u64))
}

/// Unlinks all but directories, and names those.
fn unlink_files(dir: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut directories = Vec::new();
    let mut buffer = Vec::with_capacity(32 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let unlinked = match entry.file_type() {
            FileType::Directory => Err(Errno::ISDIR),
            _ => rustix::fs::unlinkat(dir, name, AtFlags::empty()),
        };
        match unlinked {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => directories.push(OsStr::from_bytes(name.to_bytes()).to_owned()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(directories)
}
