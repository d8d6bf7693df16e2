//! Calls that change mode, owner, times and extended attributes.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, XattrFlags};
use rustix::io::Errno;

use super::super::numbers::late;
use super::acl;
use super::calls::{Answer, Answered, DONE};
use super::ids::capability;
use super::permission::may;
use super::view::{Kind, bytes, key, own_path, statx};
use super::world::{Caller, Reached, SET_IDS, kept_mode};

/// Largest value of an extended attribute, and largest list of names, in bytes: xattr(7).
const XATTR_BYTES: usize = 64 * 1024;

/// Longest name of an attribute, in bytes.
const NAME_BYTES: usize = 255;

/// "Leave it" for chown(2).
const SAME: u32 = u32::MAX;

/// What two sets of times make of a file.
pub type Times = Option<Timestamps>;

impl Reached<'_> {
    pub(super) fn kind(&self) -> u32 {
        u32::from(self.real.stx_mode) & libc::S_IFMT
    }

    pub(super) fn writable(&self) -> Result<(), Errno> {
        match self.mount {
            Some(mount) if mount.readonly || mount.kind == Kind::Sys => Err(Errno::ROFS),
            Some(mount) if mount.kind == Kind::Proc => Err(Errno::PERM),
            // Pipes, sockets and files in memory have no other names; what has is not the caller's to change.
            None if matches!(self.kind(), libc::S_IFREG | libc::S_IFDIR) && self.real.stx_nlink > 0 => Err(Errno::PERM),
            _ => Ok(()),
        }
    }
}

impl Caller<'_> {
    pub fn chmod(&self, file: Reached<'_>, mode: u32) -> Answered {
        file.writable()?;
        if file.kind() == libc::S_IFLNK {
            return Err(Errno::OPNOTSUPP);
        }
        let me = self.me();
        let shown = self.world.shown(&file.real, file.mount, &me);
        self.own(&shown, &me)?;
        self.still()?;
        let mut mode = mode & 0o7777;
        if mode & 0o2000 != 0 && !me.is_in(shown.stx_gid) && !me.can(capability::FSETID) {
            mode &= !0o2000;
        }
        let Some(owners) = file.mount.and_then(|mount| mount.owners.as_ref()) else {
            if file.mount.is_some_and(|mount| mount.kind == Kind::Device) {
                return DONE;
            }
            self.world.chmod(&file.fd, mode)?;
            return DONE;
        };
        let real = kept_mode(mode, file.kind() == libc::S_IFDIR, &me);
        let file = self.changing(file)?;
        self.world.chmod(&file.fd, real)?;
        // Who is not in the group of a file cannot set its setgid bit.
        let real = if real & SET_IDS == 0 { real } else { rustix::fs::fstat(&file.fd)?.st_mode & 0o7777 };
        owners.set_mode(key(&file.real), mode, real);
        if mode & !u32::from(file.real.stx_mode) & 0o2000 != 0 && file.kind() == libc::S_IFDIR {
            self.world.view.passes_group_on();
        }
        DONE
    }

    pub fn chown(&self, file: Reached<'_>, uid: u32, gid: u32) -> Answered {
        file.writable()?;
        let me = self.me();
        let shown = self.world.shown(&file.real, file.mount, &me);
        if !me.can(capability::CHOWN) {
            let same_user = uid == SAME || uid == shown.stx_uid;
            let own_group = gid == SAME || gid == shown.stx_gid || me.is_in(gid);
            if !same_user || !own_group || shown.stx_uid != me.user.files {
                return Err(Errno::PERM);
            }
        }
        let Some(owners) = file.mount.and_then(|mount| mount.owners.as_ref()) else { return DONE };
        self.still()?;
        let file = self.changing(file)?;
        let key = key(&file.real);
        let take = |new: u32, now: u32| if new == SAME { now } else { new };
        owners.set_owner(key, (take(uid, shown.stx_uid), take(gid, shown.stx_gid)));
        // A new owner did not ask for what the old one allowed: chown(2), capabilities(7).
        if !matches!(file.kind(), libc::S_IFDIR | libc::S_IFLNK) {
            let mode = u32::from(shown.stx_mode) & 0o7777;
            let cleared = mode & !0o4000 & if mode & 0o010 != 0 { !0o2000 } else { !0 };
            if cleared != mode {
                let real = cleared | 0o600;
                self.world.chmod(&file.fd, real)?;
                owners.set_mode(key, cleared, real);
            }
            owners.remove_xattr(key, OsStr::new("security.capability"));
        }
        DONE
    }

    fn time(seconds: i64, nanoseconds: i64) -> Timespec {
        Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ }
    }

    /// Two `struct timespec`; `None` for now.
    pub fn timespecs(&self, address: u64) -> Result<Times, Errno> {
        if address == 0 {
            return Ok(None);
        }
        let bytes = self.read(address, 32)?;
        let field = |at: usize| i64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        let valid = |nanoseconds: i64| {
            (0..1_000_000_000).contains(&nanoseconds) || [{ UTIME_NOW }, { UTIME_OMIT }].contains(&nanoseconds)
        };
        if !valid(field(1)) || !valid(field(3)) {
            return Err(Errno::INVAL);
        }
        let (last_access, last_modification) = (Self::time(field(0), field(1)), Self::time(field(2), field(3)));
        Ok(Some(Timestamps { last_access, last_modification }))
    }

    /// Two `struct timeval`; `None` for now.
    #[cfg(target_arch = "x86_64")]
    pub fn timevals(&self, address: u64) -> Result<Times, Errno> {
        if address == 0 {
            return Ok(None);
        }
        let bytes = self.read(address, 32)?;
        let field = |at: usize| i64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        if !(0..1_000_000).contains(&field(1)) || !(0..1_000_000).contains(&field(3)) {
            return Err(Errno::INVAL);
        }
        let last_access = Self::time(field(0), field(1) * 1000);
        Ok(Some(Timestamps { last_access, last_modification: Self::time(field(2), field(3) * 1000) }))
    }

    /// `struct utimbuf`; `None` for now.
    #[cfg(target_arch = "x86_64")]
    pub fn seconds(&self, address: u64) -> Result<Times, Errno> {
        if address == 0 {
            return Ok(None);
        }
        let bytes = self.read(address, 16)?;
        let field = |at: usize| i64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("eight bytes"));
        Ok(Some(Timestamps { last_access: Self::time(field(0), 0), last_modification: Self::time(field(1), 0) }))
    }

    pub fn utimens(&self, descriptor: i32, path: u64, flags: u32, times: Times) -> Answered {
        let known = (libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) as u32;
        if flags & !known != 0 {
            return Err(Errno::INVAL);
        }
        let empty = flags & libc::AT_EMPTY_PATH as u32 != 0;
        let file = if path == 0 {
            // futimens(3)
            self.reach_descriptor(descriptor)?
        } else {
            let follow = flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0;
            self.reach(descriptor, &self.path_at(path)?, follow, empty)?
        };
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let both_now = times
            .as_ref()
            .is_none_or(|times| times.last_access.tv_nsec == UTIME_NOW && times.last_modification.tv_nsec == UTIME_NOW);
        let times = times.unwrap_or(Timestamps { last_access: now, last_modification: now });
        if times.last_access.tv_nsec == UTIME_OMIT && times.last_modification.tv_nsec == UTIME_OMIT {
            return DONE;
        }
        file.writable()?;
        let me = self.me();
        let shown = self.world.shown(&file.real, file.mount, &me);
        if let Err(errno) = self.own(&shown, &me) {
            if !both_now {
                return Err(errno);
            }
            self.allow(&shown, may::WRITE, &me)?;
        }
        self.still()?;
        if file.mount.is_some_and(|mount| mount.kind == Kind::Device) {
            return DONE;
        }
        let file = self.changing(file)?;
        let owners = file.mount.and_then(|mount| mount.owners.as_ref()).filter(|_| file.kind() == libc::S_IFREG);
        if let Some(owners) = owners {
            owners.settle(key(&file.real), bytes(&file.real));
        }
        rustix::fs::utimensat(&file.fd, "", &times, AtFlags::EMPTY_PATH)?;
        if let Some(owners) = owners.filter(|owners| owners.is_capable(key(&file.real))) {
            owners.watch(key(&file.real), bytes(&statx(&file.fd)?));
        }
        DONE
    }

    pub fn xattr(&self, number: libc::c_long) -> Answered {
        // The newest forms are (descriptor, path, flags, …) with a structure behind; the others differ in how they name the file.
        let (file, first) = match number {
            late::SETXATTRAT | late::GETXATTRAT | late::LISTXATTRAT | late::REMOVEXATTRAT => {
                (self.reach_at(0, 1, self.uint(2), false)?, 3)
            }
            libc::SYS_fsetxattr | libc::SYS_fgetxattr | libc::SYS_flistxattr | libc::SYS_fremovexattr => {
                (self.reach_descriptor(self.int(0))?, 1)
            }
            libc::SYS_lsetxattr | libc::SYS_lgetxattr | libc::SYS_llistxattr | libc::SYS_lremovexattr => {
                (self.reach_path(0, false)?, 1)
            }
            _ => (self.reach_path(0, true)?, 1),
        };
        match number {
            libc::SYS_listxattr | libc::SYS_llistxattr | libc::SYS_flistxattr => {
                self.list_xattrs(&file, self.word(1), self.word(2))
            }
            late::LISTXATTRAT => self.list_xattrs(&file, self.word(3), self.word(4)),
            libc::SYS_removexattr | libc::SYS_lremovexattr | libc::SYS_fremovexattr | late::REMOVEXATTRAT => {
                self.remove_xattr(&file, &self.name(first)?)
            }
            libc::SYS_getxattr | libc::SYS_lgetxattr | libc::SYS_fgetxattr => {
                self.get_xattr(&file, &self.name(1)?, self.word(2), self.word(3))
            }
            libc::SYS_setxattr | libc::SYS_lsetxattr | libc::SYS_fsetxattr => {
                self.set_xattr(&file, &self.name(1)?, (self.word(2), self.word(3)), self.uint(4))
            }
            _ => {
                // struct xattr_args: value, size, flags.
                if self.word(5) < 16 {
                    return Err(Errno::INVAL);
                }
                let bytes = self.read(self.word(4), 16)?;
                let value = u64::from_ne_bytes(bytes[..8].try_into().expect("eight bytes"));
                let half = |at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
                let name = self.name(3)?;
                if number == late::GETXATTRAT {
                    self.get_xattr(&file, &name, value, half(8).into())
                } else {
                    self.set_xattr(&file, &name, (value, half(8).into()), half(12))
                }
            }
        }
    }

    fn name(&self, at: usize) -> Result<OsString, Errno> {
        match super::super::sys::memory::read_string(self.task.thread, self.word(at), NAME_BYTES) {
            Ok(name) if name.is_empty() => Err(Errno::RANGE),
            Ok(name) => Ok(OsString::from_vec(name)),
            Err(Errno::NAMETOOLONG) => Err(Errno::RANGE),
            Err(errno) => Err(errno),
        }
    }

    /// All attributes that the caller sees; `None` where there are none.
    fn attributes(&self, file: &Reached<'_>) -> Result<BTreeMap<OsString, Option<Vec<u8>>>, Errno> {
        let mut all = BTreeMap::new();
        if file.kind() != libc::S_IFLNK {
            let mut list = Vec::with_capacity(XATTR_BYTES);
            match rustix::fs::listxattr(own_path(file.fd.as_fd()), rustix::buffer::spare_capacity(&mut list)) {
                Ok(_) => {
                    for name in list.split(|&byte| byte == 0).filter(|name| name.starts_with(b"user.")) {
                        if !is_internal(name) {
                            all.insert(OsStr::from_bytes(name).to_owned(), None);
                        }
                    }
                }
                Err(Errno::NOTSUP | Errno::PERM | Errno::ACCESS) => {}
                Err(errno) => return Err(errno),
            }
        }
        let trusted = self.me().can(21); // CAP_SYS_ADMIN, which lets trusted attributes be seen
        if let Some(owners) = file.mount.and_then(|mount| mount.owners.as_ref()) {
            owners.settle(key(&file.real), bytes(&file.real));
            let recorded = owners.xattrs(key(&file.real)).into_iter();
            let seen = recorded.filter(|(name, _)| trusted || !name.as_bytes().starts_with(b"trusted."));
            all.extend(seen.map(|(name, value)| (name, Some(value))));
        }
        Ok(all)
    }

    fn list_xattrs(&self, file: &Reached<'_>, out: u64, size: u64) -> Answered {
        let mut list = Vec::new();
        for name in self.attributes(file)?.keys() {
            list.extend_from_slice(name.as_bytes());
            list.push(0);
        }
        self.give(&list, out, size)
    }

    /// Writes a value into a buffer; with size 0 only says how long it is.
    fn give(&self, value: &[u8], out: u64, size: u64) -> Answered {
        if size != 0 {
            if (size as usize) < value.len() {
                return Err(Errno::RANGE);
            }
            self.write(out, value)?;
        }
        Ok(Answer::Value(value.len() as i64))
    }

    fn get_xattr(&self, file: &Reached<'_>, name: &OsStr, out: u64, size: u64) -> Answered {
        if is_internal(name.as_bytes()) {
            return Err(Errno::NODATA);
        }
        if name.as_bytes().starts_with(b"system.") && !acl::is_list(name) {
            return Err(Errno::OPNOTSUPP);
        }
        match self.attributes(file)?.remove(name) {
            None => Err(Errno::NODATA),
            Some(Some(value)) if acl::is_list(name) => {
                let mode = self.world.shown(&file.real, file.mount, &self.me()).stx_mode;
                self.give(&acl::shown(name, value, mode.into()), out, size)
            }
            Some(Some(value)) => self.give(&value, out, size),
            Some(None) => {
                let me = self.me();
                self.allow(&self.world.shown(&file.real, file.mount, &me), may::READ, &me)?;
                let mut value = Vec::with_capacity(XATTR_BYTES);
                let path = own_path(file.fd.as_fd());
                rustix::fs::getxattr(path, name, rustix::buffer::spare_capacity(&mut value))?;
                self.give(&value, out, size)
            }
        }
    }

    /// Whether the caller may set an attribute of this name.
    fn may_set(&self, file: &Reached<'_>, name: &OsStr) -> Result<(), Errno> {
        file.writable()?;
        let me = self.me();
        let shown = self.world.shown(&file.real, file.mount, &me);
        let name = name.as_bytes();
        if name.starts_with(b"user.") {
            if !matches!(u32::from(shown.stx_mode) & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
                return Err(Errno::PERM);
            }
            return self.allow(&shown, may::WRITE, &me);
        }
        if name == b"security.capability" {
            if file.kind() != libc::S_IFREG {
                return Err(Errno::INVAL);
            }
            return if me.can(capability::SETFCAP) { Ok(()) } else { Err(Errno::PERM) };
        }
        if name.starts_with(b"security.") || name.starts_with(b"trusted.") {
            // CAP_SYS_ADMIN, which root in a container does not have by default.
            return if me.can(21) { Ok(()) } else { Err(Errno::PERM) };
        }
        Err(Errno::OPNOTSUPP)
    }

    fn set_xattr(&self, file: &Reached<'_>, name: &OsStr, (value, size): (u64, u64), flags: u32) -> Answered {
        let size = usize::try_from(size).ok().filter(|size| *size <= XATTR_BYTES).ok_or(Errno::TOOBIG)?;
        let value = self.read(value, size)?;
        if is_internal(name.as_bytes()) {
            return Err(Errno::PERM);
        }
        if acl::is_list(name) {
            return self.set_list(file, name, Some(&value));
        }
        self.may_set(file, name)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        let exists = self.attributes(file)?.contains_key(name);
        if exists && flags.contains(XattrFlags::CREATE) {
            return Err(Errno::EXIST);
        }
        if !exists && flags.contains(XattrFlags::REPLACE) {
            return Err(Errno::NODATA);
        }
        self.still()?;
        let own = self.owned(file)?;
        let file = own.as_ref().unwrap_or(file);
        let owners = file.mount.and_then(|mount| mount.owners.as_ref());
        if name.as_bytes().starts_with(b"user.") {
            match (rustix::fs::setxattr(own_path(file.fd.as_fd()), name, &value, XattrFlags::empty()), owners) {
                (Err(Errno::NOTSUP | Errno::PERM), Some(_)) => {}
                (Err(errno), _) => return Err(errno),
                (Ok(()), owners) => {
                    if let Some(owners) = owners {
                        owners.remove_xattr(key(&file.real), name);
                    }
                    return DONE;
                }
            }
        }
        let owners = owners.ok_or(Errno::OPNOTSUPP)?;
        owners.set_xattr(key(&file.real), name, &value);
        // Whoever has it open for writing may write to it still.
        owners.watch(key(&file.real), bytes(&file.real));
        self.recorded(file);
        DONE
    }

    /// What is recorded of a file changed: so does its change time, by which that is found out later.
    pub(super) fn recorded(&self, file: &Reached<'_>) {
        if file.kind() != libc::S_IFLNK {
            // The mode that it has. Without a change time of its own it is found by the mode, owner and device alone.
            _ = self.world.chmod(&file.fd, u32::from(file.real.stx_mode) & 0o7777);
        }
    }

    fn remove_xattr(&self, file: &Reached<'_>, name: &OsStr) -> Answered {
        if is_internal(name.as_bytes()) {
            return Err(Errno::NODATA);
        }
        if acl::is_list(name) {
            return self.set_list(file, name, None);
        }
        self.may_set(file, name)?;
        match self.attributes(file)?.remove(name) {
            None => return Err(Errno::NODATA),
            Some(None) => {
                self.still()?;
                let own = self.owned(file)?;
                let file = own.as_ref().unwrap_or(file);
                rustix::fs::removexattr(own_path(file.fd.as_fd()), name)?;
            }
            Some(Some(_)) => {
                self.still()?;
                let own = self.owned(file)?;
                let file = own.as_ref().unwrap_or(file);
                if let Some(owners) = file.mount.and_then(|mount| mount.owners.as_ref()) {
                    owners.remove_xattr(key(&file.real), name);
                    self.recorded(file);
                }
            }
        }
        DONE
    }
}

/// Whether an attribute is not the RUN's.
fn is_internal(name: &[u8]) -> bool {
    [&b"user.slipway."[..], b"user.overlay.", b"trusted.overlay."].iter().any(|prefix| name.starts_with(prefix))
}
