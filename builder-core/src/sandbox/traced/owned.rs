//! Before a file is changed that the tree borrows from a base, it becomes one of the tree's own ([`Owners::own`]).
//!
//! Descriptors that were opened before stand for the base's file as before; whoever asks what they stand for, or changes that,
//! means the copy.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::view::{Mount, Place, STAT, View, key, open_beneath, statx};
use super::world::{Caller, Reached, World};
use crate::rootfs::{InodeKey, Owners};

/// What the kernel adds to the path of a file whose name is gone or another one's.
const DELETED: &[u8] = b" (deleted)";

fn own(owners: &Owners, directory: impl AsFd, name: &OsStr) -> Result<(), Errno> {
    match owners.own(directory, name) {
        Ok(_) => Ok(()),
        // What has no number is that the build may not write so much.
        Err(error) => Err(Errno::from_io_error(&error).unwrap_or(Errno::NOSPC)),
    }
}

impl Mount {
    fn is_borrowed(&self, file: InodeKey) -> bool {
        self.owners.as_ref().is_some_and(|owners| owners.is_borrowed(file))
    }
}

impl Place<'_> {
    /// Sees to it that a file which is about to be opened for writing is no other tree's.
    ///
    /// # Errors
    /// What the kernel says, `EROFS` for a borrowed file that is mounted by itself.
    pub fn own(&self, view: &View) -> Result<(), Errno> {
        let Some(owners) = self.mount.owners.as_ref().filter(|owners| owners.borrows_files()) else { return Ok(()) };
        match self.parent(view) {
            Ok((directory, name)) => own(owners, &*directory, name),
            Err(Errno::BUSY) if !self.mount.directory && owners.is_borrowed(key(&statx(&self.mount.fd)?)) => {
                Err(Errno::ROFS)
            }
            // The root, or a directory that something is mounted on.
            Err(Errno::BUSY | Errno::EXIST) => Ok(()),
            Err(errno) => Err(errno),
        }
    }
}

impl World {
    /// Whether a file is one that any of the trees here borrows.
    pub fn is_borrowed(&self, real: &Statx) -> bool {
        let file = key(real);
        self.view.mounts().iter().any(|mount| mount.is_borrowed(file))
    }

    /// The copy that took the place of what a descriptor of ours stands for, `O_PATH`; `None` if it is still there.
    ///
    /// # Errors
    /// `ESTALE` if the copy has another name by now.
    pub fn copy_of(&self, fd: &OwnedFd, real: &Statx) -> Result<Option<(Arc<OwnedFd>, Statx)>, Errno> {
        let was = key(real);
        let copied = |mount: &&Mount| mount.owners.as_ref().is_some_and(|owners| owners.copy_of(was).is_some());
        if self.view.mounts().iter().find(copied).is_none() {
            return Ok(None);
        }
        let host = self.host_path(fd)?;
        // Of two trees with the same base only one may have changed its file.
        let Some(host) = host.strip_suffix(DELETED) else { return Ok(None) };
        let path = self.view.inside(host).ok_or(Errno::STALE)?;
        let copy = self.view.open(&path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let found = statx(&copy)?;
        let expected = self.view.mount(&path).owners.as_ref().and_then(|owners| owners.copy_of(was));
        if expected == Some(key(&found)) { Ok(Some((Arc::new(copy), found))) } else { Err(Errno::STALE) }
    }
}

impl Caller<'_> {
    /// Tells that a file is about to change, and gives the one to be changed.
    ///
    /// # Errors
    /// What the kernel says; `ESTALE` for a borrowed file without a name.
    pub fn changing<'a>(&'a self, file: Reached<'a>) -> Result<Reached<'a>, Errno> {
        Ok(self.owned(&file)?.unwrap_or(file))
    }

    /// The same; `None` if it is the file itself.
    ///
    /// # Errors
    /// As there.
    pub fn owned(&self, file: &Reached<'_>) -> Result<Option<Reached<'_>>, Errno> {
        self.tell_file(file);
        let was = key(&file.real);
        if !self.world.is_borrowed(&file.real) {
            return Ok(None);
        }
        let view = &self.world.view;
        let path = match &file.path {
            Some(path) => path.clone(),
            None => view.inside(&self.world.host_path(&file.fd)?).ok_or(Errno::STALE)?,
        };
        let mount = view.mount(&path);
        if mount.readonly {
            return Err(Errno::ROFS);
        }
        let Some(owners) = &mount.owners else { return Err(Errno::STALE) };
        if !owners.is_borrowed(was) {
            // Or it was given back a moment ago.
            return if owners.was_held(was) { Ok(None) } else { Err(Errno::STALE) };
        }
        let below = &path[mount.target.len()..];
        // A file that is mounted by itself has no directory here.
        let slash = below.iter().rposition(|&byte| byte == b'/').ok_or(Errno::ROFS)?;
        let directory = open_beneath(mount, &below[..slash], OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
        let name = OsStr::from_bytes(&below[slash + 1..]);
        let there = rustix::fs::statx(&directory, name, AtFlags::SYMLINK_NOFOLLOW, STAT)?;
        if key(&there) == was {
            own(owners, &directory, name)?;
        } else if owners.copy_of(was) != Some(key(&there)) {
            return Err(Errno::STALE);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = Arc::new(rustix::fs::openat(&directory, name, flags, Mode::empty())?);
        let real = statx(&*fd)?;
        let own = Reached { fd, real, mount: Some(mount), path: Some(path) };
        self.tell_file(&own);
        Ok(Some(own))
    }
}
