//! Calls that make, remove and move names, and those about the working directory.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::calls::{Answer, Answered, DONE};
use super::held::Directory;
use super::ids::capability;
use super::permission::may;
use super::tasks::lock;
use super::view::{Base, Change, Kind, Mount, Place, STAT, key, own_path, reopen};
use super::world::{Caller, HERE};
use crate::rootfs::FileKind;

/// What is mounted read-only for everybody.
fn writable(mount: &Mount) -> Result<(), Errno> {
    match mount.kind {
        _ if mount.readonly => Err(Errno::ROFS),
        Kind::Sys => Err(Errno::ROFS),
        Kind::Proc => Err(Errno::PERM),
        _ => Ok(()),
    }
}

impl Caller<'_> {
    /// Does something with the directory that a path's last name is in, and with that name.
    fn in_parent<T>(
        &self,
        descriptor: i32,
        path: &[u8],
        mut act: impl FnMut(&Place<'_>, &Directory, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.at(descriptor, path, false, |place| {
            if place.mount.kind == Kind::Proc {
                return Err(Errno::PERM);
            }
            let (parent, name) = place.parent(&self.world.view)?;
            act(place, &parent, name)
        })
    }

    /// The same for a name that is to be made: what something is mounted on is there already.
    fn making<T>(
        &self,
        descriptor: i32,
        path: &[u8],
        mut act: impl FnMut(&Place<'_>, &Directory, &OsStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let me = self.me();
        let made = self.in_parent(descriptor, path, |place, parent, name| {
            let exists = || rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).is_ok();
            let may = writable(place.mount).and_then(|()| self.change(place.mount, parent, None, &me));
            if let Err(errno) = may {
                return Err(if exists() { Errno::EXIST } else { errno });
            }
            act(place, parent, name)
        });
        match made {
            Err(Errno::BUSY) => Err(Errno::EXIST),
            made => made,
        }
    }

    pub fn mkdir(&self, descriptor: i32, path: u64, mode: u32) -> Answered {
        let path = self.path_at(path)?;
        self.still()?;
        self.making(descriptor, &path, |place, parent, name| {
            let new = self.modes(mode & 0o1777, true);
            rustix::fs::mkdirat(parent, name, new.real)?;
            place.tell_subtree(&self.world.view);
            let me = lock(&self.task.credentials).user.files;
            if new.told.is_some() || me != 0 || place.mount.owners.is_some() {
                let made =
                    rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
                self.made(place.mount, parent, &made, Some(new))?;
            }
            Ok(())
        })?;
        DONE
    }

    pub fn mknod(&self, descriptor: i32, path: u64, mode: u32, device: u64) -> Answered {
        let path = self.path_at(path)?;
        let kind = match mode & libc::S_IFMT {
            0 => FileType::RegularFile,
            kind => FileType::from_raw_mode(kind),
        };
        let device_kind = match kind {
            FileType::RegularFile | FileType::Fifo | FileType::Socket => None,
            FileType::CharacterDevice => Some(FileKind::CharDevice),
            FileType::BlockDevice => Some(FileKind::BlockDevice),
            FileType::Directory => return Err(Errno::PERM),
            _ => return Err(Errno::INVAL),
        };
        if device_kind.is_some() && !self.me().can(capability::MKNOD) {
            return Err(Errno::PERM);
        }
        self.still()?;
        self.making(descriptor, &path, |place, parent, name| {
            if place.slash {
                return Err(Errno::NOENT);
            }
            let new = self.modes(mode & 0o7777, false);
            let real_kind = if device_kind.is_some() { FileType::RegularFile } else { kind };
            if device_kind.is_some() && place.mount.owners.is_none() {
                return Err(Errno::PERM);
            }
            rustix::fs::mknodat(parent, name, real_kind, new.real, 0)?;
            place.tell(&self.world.view);
            let made =
                rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            self.made(place.mount, parent, &made, Some(new))?;
            if let (Some(kind), Some(owners)) = (device_kind, &place.mount.owners) {
                let stat = rustix::fs::statx(&made, "", AtFlags::EMPTY_PATH, STAT)?;
                let numbers = (rustix::fs::major(device), rustix::fs::minor(device));
                owners.set_device(key(&stat), kind, numbers);
                self.world.devices.store(true, Ordering::Relaxed);
            }
            Ok(())
        })?;
        DONE
    }

    pub fn symlink(&self, text: u64, descriptor: i32, path: u64) -> Answered {
        let (text, path) = (self.path_at(text)?, self.path_at(path)?);
        if text.is_empty() {
            return Err(Errno::NOENT);
        }
        self.still()?;
        self.making(descriptor, &path, |place, parent, name| {
            if place.slash {
                return Err(Errno::NOENT);
            }
            rustix::fs::symlinkat(OsStr::from_bytes(&text), parent, name)?;
            place.tell(&self.world.view);
            let made =
                rustix::fs::openat(parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            self.made(place.mount, parent, &made, None)
        })?;
        DONE
    }

    pub fn link(&self, from: (i32, u64), to: (i32, u64), flags: u32) -> Answered {
        let known = (libc::AT_SYMLINK_FOLLOW | libc::AT_EMPTY_PATH) as u32;
        if flags & !known != 0 {
            return Err(Errno::INVAL);
        }
        let (old, new) = (self.path_at(from.1)?, self.path_at(to.1)?);
        let follow = flags & libc::AT_SYMLINK_FOLLOW as u32 != 0;
        let file = self.reach(from.0, &old, follow, flags & libc::AT_EMPTY_PATH as u32 != 0)?;
        if u32::from(file.real.stx_mode) & libc::S_IFMT == libc::S_IFDIR {
            return Err(Errno::PERM);
        }
        if let Some(mount) = file.mount {
            writable(mount)?;
        }
        self.still()?;
        let file = self.changing(file)?;
        self.making(to.0, &new, |place, parent, name| {
            if place.slash {
                return Err(Errno::NOENT);
            }
            if file.mount.is_some_and(|mount| !std::ptr::eq(mount, place.mount)) {
                return Err(Errno::XDEV);
            }
            let path = own_path(file.fd.as_fd());
            rustix::fs::linkat(CWD, path, parent, name, AtFlags::SYMLINK_FOLLOW)?;
            place.tell(&self.world.view);
            Ok(())
        })?;
        // Another number of links is a change of the file, too.
        self.tell_file(&file);
        DONE
    }

    pub fn unlink(&self, descriptor: i32, path: u64, flags: u32) -> Answered {
        let directory = flags & libc::AT_REMOVEDIR as u32 != 0;
        if flags & !(libc::AT_REMOVEDIR as u32) != 0 {
            return Err(Errno::INVAL);
        }
        let path = self.path_at(path)?;
        let last = path.rsplit(|&byte| byte == b'/').find(|name| !name.is_empty());
        if directory && last == Some(b".") {
            return Err(Errno::INVAL);
        }
        if last.is_none() && !path.is_empty() {
            return Err(if directory { Errno::BUSY } else { Errno::ISDIR });
        }
        if last == Some(b"..") {
            return Err(if directory { Errno::NOTEMPTY } else { Errno::ISDIR });
        }
        self.still()?;
        let me = self.me();
        let (flags, how) = if directory { (true, AtFlags::REMOVEDIR) } else { (false, AtFlags::empty()) };
        self.in_parent(descriptor, &path, |place, parent, name| {
            writable(place.mount)?;
            self.change(place.mount, parent, Some(name), &me)?;
            if place.slash && !flags {
                let kind = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode & libc::S_IFMT;
                return Err(if kind == libc::S_IFDIR { Errno::ISDIR } else { Errno::NOTDIR });
            }
            rustix::fs::unlinkat(parent, name, how)?;
            let change = if flags { Change::RemovedDirectory } else { Change::Name };
            match flags {
                true => place.tell_subtree(&self.world.view),
                false => place.tell(&self.world.view),
            }
            self.world.view.forget(&place.path, change);
            self.world.behind.let_go();
            Ok(())
        })?;
        DONE
    }

    pub fn rename(&self, from: (i32, u64), to: (i32, u64), flags: u32) -> Answered {
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        if flags.contains(RenameFlags::WHITEOUT) {
            return Err(Errno::PERM);
        }
        let (old, new) = (self.path_at(from.1)?, self.path_at(to.1)?);
        for path in [&old, &new] {
            let last = path.rsplit(|&byte| byte == b'/').find(|name| !name.is_empty());
            if !path.is_empty() && matches!(last, None | Some(b"." | b"..")) {
                return Err(Errno::BUSY);
            }
        }
        self.still()?;
        let me = self.me();
        self.in_parent(from.0, &old, |source, source_parent, source_name| {
            writable(source.mount)?;
            let moved = rustix::fs::statat(source_parent, source_name, AtFlags::SYMLINK_NOFOLLOW)?;
            let directory = moved.st_mode & libc::S_IFMT == libc::S_IFDIR;
            if source.slash && !directory {
                return Err(Errno::NOTDIR);
            }
            self.change(source.mount, source_parent, Some(source_name), &me)?;
            // Each name has look-ups of its own; what goes wrong with the second one is not about the first.
            let done = self.in_parent(to.0, &new, |target, target_parent, target_name| {
                if !std::ptr::eq(source.mount, target.mount) {
                    return Err(Errno::XDEV);
                }
                if target.slash && !directory {
                    return Err(Errno::NOTDIR);
                }
                let there = rustix::fs::statat(target_parent, target_name, AtFlags::SYMLINK_NOFOLLOW);
                let victim = there.is_ok().then_some(target_name);
                self.change(target.mount, target_parent, victim, &me)?;
                if self.world.view.is_covered(&source.path) || self.world.view.is_covered(&target.path) {
                    return Err(Errno::BUSY);
                }
                let exchange = flags.contains(RenameFlags::EXCHANGE);
                if flags.is_empty() {
                    // Known to old kernels and seccomp filters too.
                    rustix::fs::renameat(source_parent, source_name, target_parent, target_name)?;
                } else {
                    rustix::fs::renameat_with(source_parent, source_name, target_parent, target_name, flags)?;
                }
                let other = exchange && there.is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR);
                let change = if directory || other { Change::MovedDirectories } else { Change::Name };
                for place in [source, target] {
                    match change {
                        Change::MovedDirectories => place.tell_subtree(&self.world.view),
                        _ => place.tell(&self.world.view),
                    }
                }
                self.world.view.forget(&source.path, change);
                self.world.view.forget(&target.path, Change::Name);
                self.world.behind.let_go();
                Ok(())
            });
            match done {
                // Only the outer look-up learns and repairs by these; the inner one has done what it could.
                Err(errno @ (Errno::LOOP | Errno::AGAIN | Errno::ACCESS)) => Ok(Err(errno)),
                done => done.map(Ok),
            }
        })??;
        DONE
    }

    pub fn chdir(&self) -> Answered {
        let path = self.path(0)?;
        let me = self.me();
        let (physical, fd) = self.at(HERE, &path, true, |place| {
            if let Some(fd) = self.magic(place, true)? {
                let fd = reopen(fd.as_fd(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
                let host = rustix::fs::readlinkat(CWD, own_path(fd.as_fd()), Vec::new())?;
                return Ok((self.world.view.inside(host.as_bytes()), fd));
            }
            let fd = place.open(OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            self.check_enter(&fd, place.mount, &me)?;
            Ok((place.physical(), fd))
        })?;
        self.enter(physical, Arc::new(fd));
        DONE
    }

    pub fn fchdir(&self) -> Answered {
        let descriptor = self.int(0);
        let file = self.reach_descriptor(descriptor)?;
        if u32::from(file.real.stx_mode) & libc::S_IFMT != libc::S_IFDIR {
            return Err(Errno::NOTDIR);
        }
        let me = self.me();
        let shown = self.world.shown(&file.real, file.mount, &me);
        self.allow(&shown, may::EXECUTE, &me)?;
        let path = match self.world.base(&self.task, descriptor)? {
            Base::Path(path) => Some(path),
            Base::Directory(_) => None,
            Base::Gone => Some(b"/ (deleted)".to_vec()),
        };
        self.enter(path, file.fd);
        DONE
    }

    fn check_enter(&self, fd: &OwnedFd, mount: &Mount, me: &super::ids::Credentials) -> Result<(), Errno> {
        if me.can(capability::DAC_OVERRIDE) || matches!(mount.kind, Kind::Proc | Kind::Sys) {
            return Ok(());
        }
        let real = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, STAT)?;
        self.allow(&self.world.shown(&real, Some(mount), me), may::EXECUTE, me)
    }

    fn enter(&self, path: Option<Vec<u8>>, directory: Arc<OwnedFd>) {
        let mut surroundings = lock(&self.task.surroundings);
        surroundings.cwd = path;
        surroundings.directory = directory;
        surroundings.generation = self.world.view.generation();
    }

    pub fn getcwd(&self) -> Answered {
        let Base::Path(path) = self.world.cwd(&self.task) else { return Err(Errno::NOENT) };
        let root = lock(&self.task.surroundings).root.clone();
        let mut seen = match path.strip_prefix(root.as_slice()) {
            Some(b"") => b"/".to_vec(),
            Some(seen) => seen.to_vec(),
            None => [b"(unreachable)", path.as_slice()].concat(),
        };
        seen.push(0);
        if seen.len() > super::view::MAX_PATH + 1 {
            return Err(Errno::NAMETOOLONG);
        }
        if (self.word(1) as usize) < seen.len() {
            return Err(Errno::RANGE);
        }
        self.write(self.word(0), &seen)?;
        Ok(Answer::Value(seen.len() as i64))
    }

    /// chroot(2)
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn chroot(&self) -> Result<(), Errno> {
        let path = self.path(0)?;
        let me = self.me();
        let physical = self.at(HERE, &path, true, |place| {
            let fd = place.open(OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
            self.check_enter(&fd, place.mount, &me)?;
            place.physical().ok_or(Errno::NAMETOOLONG)
        })?;
        if !me.can(capability::SYS_CHROOT) {
            return Err(Errno::PERM);
        }
        lock(&self.task.surroundings).root = physical;
        Ok(())
    }
}
