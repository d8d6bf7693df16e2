//! Calls that change a file which is named by its descriptor: `chmod("/proc/self/fd/3", …)`, as programs do that hold a file
//! without having opened it for reading (`O_PATH`), or that give a nameless file a name (`O_TMPFILE`).
//!
//! The builder performs them on the file itself, with the caller's user and groups, if it is a file of the command's tree or a
//! pipe: nothing else that has a name there is the command's.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, Uid, XattrFlags};
use rustix::io::Errno;

use super::super::callers::AsUser;
use super::super::numbers::late;
use super::super::sys::bpf::{Action, Rule, When};
use super::super::sys::notify::{Notification, Reply};
use super::serve::{Answer, CONTINUE, Server};
use super::tree::Place;

/// Largest value of an extended attribute, and largest list of names, in bytes: xattr(7).
const XATTR_BYTES: usize = 64 * 1024;

/// "Leave it" for chown(2).
const SAME: u32 = u32::MAX;

/// Which of these calls are marked: those that follow a link at the end of the path.
pub fn rules() -> Vec<Rule> {
    let notify = |number| Rule::always(number, Action::Notify);
    let some = |number, when| Rule::when(number, when, Action::Notify);
    let nofollow = libc::AT_SYMLINK_NOFOLLOW as u32;
    let rules = [
        notify(libc::SYS_fchmodat),
        some(late::FCHMODAT2, When::Lacks(3, nofollow)),
        some(libc::SYS_fchownat, When::Lacks(4, nofollow)),
        // Without a path it is the descriptor's own file: futimens(3).
        some(libc::SYS_utimensat, When::NotZero(1)),
        notify(libc::SYS_truncate),
        notify(libc::SYS_setxattr),
        notify(libc::SYS_getxattr),
        notify(libc::SYS_listxattr),
        notify(libc::SYS_lgetxattr),
        notify(libc::SYS_llistxattr),
        notify(libc::SYS_removexattr),
    ];
    #[cfg(target_arch = "x86_64")]
    let rules = rules.into_iter().chain([
        notify(libc::SYS_chmod),
        notify(libc::SYS_chown),
        notify(libc::SYS_utimes),
        some(libc::SYS_futimesat, When::NotZero(1)),
    ]);
    rules.into_iter().collect()
}

/// Whether a path is that of a terminal, which no node of the tree is.
fn is_terminal(path: &Path) -> bool {
    path.parent() == Some(Path::new("/dev/pts"))
}

/// What a call does with its file.
enum Change {
    Mode(u32),
    Owner(u32, u32),
    Times(Timestamps),
    Length(i64),
    /// Name, value, flags.
    SetXattr(CString, Vec<u8>, u32),
    /// Name, where to, size of that.
    GetXattr(CString, u64, u64),
    ListXattrs(u64, u64),
    RemoveXattr(CString),
    /// A directory and a name in it.
    Link(i32, u64),
}

impl Server<'_> {
    /// Answers one of [`rules`]; `None` if the call is none of them.
    pub fn change(&self, call: &Notification) -> Option<Answer> {
        let [a, b, c, d, e, _] = call.arguments;
        let here = libc::AT_FDCWD;
        let number = libc::c_long::from(call.number);
        let follows = |flags: u64| flags as i32 & libc::AT_SYMLINK_NOFOLLOW == 0;
        let (at, path) = match number {
            libc::SYS_fchmodat | late::FCHMODAT2 | libc::SYS_linkat => (a as i32, b),
            libc::SYS_fchownat if follows(e) => (a as i32, b),
            libc::SYS_utimensat if follows(d) => (a as i32, b),
            libc::SYS_fchownat | libc::SYS_utimensat => return Some(CONTINUE),
            libc::SYS_truncate
            | libc::SYS_setxattr
            | libc::SYS_getxattr
            | libc::SYS_listxattr
            | libc::SYS_lgetxattr
            | libc::SYS_llistxattr
            | libc::SYS_removexattr => (here, a),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chmod | libc::SYS_chown | libc::SYS_utimes => (here, a),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_futimesat => (a as i32, b),
            _ => return None,
        };
        let Some(text) = self.text(call.thread, path) else { return Some(CONTINUE) };
        let stays = matches!(number, libc::SYS_lgetxattr | libc::SYS_llistxattr);
        let path = match self.files.tree.place(call.thread, at, &text, !stays) {
            // Nodes of /dev are the tree's, also those that cannot be opened; terminals are not.
            Place::Served(path) if !path.starts_with("/dev") || is_terminal(&path) => path,
            _ => {
                let looks = matches!(number, libc::SYS_getxattr | libc::SYS_listxattr);
                let refused =
                    if looks || stays { None } else { self.files.tree.refuses(call.thread, at, &text, false) };
                return Some(refused.map_or(CONTINUE, |errno| Answer::Reply(Reply::Error(errno))));
            }
        };
        // Neither links nor files of the kernel's have any.
        match number {
            libc::SYS_lgetxattr => return Some(Answer::Reply(Reply::Error(Errno::OPNOTSUPP))),
            libc::SYS_llistxattr => return Some(Answer::Reply(Reply::Value(0))),
            _ => {}
        }
        let change = match number {
            libc::SYS_fchmodat | late::FCHMODAT2 => Ok(Change::Mode(c as u32)),
            libc::SYS_fchownat => Ok(Change::Owner(c as u32, d as u32)),
            libc::SYS_utimensat => self.timespecs(call.thread, c).map(Change::Times),
            libc::SYS_linkat => Ok(Change::Link(c as i32, d)),
            libc::SYS_truncate => Ok(Change::Length(b.cast_signed())),
            libc::SYS_setxattr => self.name(call.thread, b).and_then(|name| {
                let length = usize::try_from(d).ok().filter(|length| *length <= XATTR_BYTES).ok_or(Errno::TOOBIG)?;
                Ok(Change::SetXattr(name, self.read(call.thread, c, length)?, e as u32))
            }),
            libc::SYS_getxattr => self.name(call.thread, b).map(|name| Change::GetXattr(name, c, d)),
            libc::SYS_listxattr => Ok(Change::ListXattrs(b, c)),
            libc::SYS_removexattr => self.name(call.thread, b).map(Change::RemoveXattr),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chmod => Ok(Change::Mode(b as u32)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_chown => Ok(Change::Owner(b as u32, c as u32)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_utimes => self.timevals(call.thread, b).map(Change::Times),
            #[cfg(target_arch = "x86_64")]
            _ => self.timevals(call.thread, c).map(Change::Times),
            #[cfg(not(target_arch = "x86_64"))]
            _ => Err(Errno::NOSYS),
        };
        let value = change.and_then(|change| {
            let identity = super::super::callers::Identity::of(call.thread).ok_or(Errno::SRCH)?;
            let looks = matches!(change, Change::GetXattr(..) | Change::ListXattrs(..));
            let file = self.files.changeable(&path, identity, call.thread, looks)?;
            if !self.listener.is_waiting(call.id) {
                return Err(Errno::INTR);
            }
            self.perform(call.thread, &file, identity, change)
        });
        Some(Answer::Reply(value.map_or_else(Reply::Error, Reply::Value)))
    }

    fn perform(
        &self,
        thread: i32,
        file: &OwnedFd,
        identity: super::super::callers::Identity,
        change: Change,
    ) -> Result<i64, Errno> {
        use std::os::fd::AsRawFd as _;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = AtFlags::empty();
        let user = AsUser::new(identity)?;
        match change {
            Change::Mode(mode) => rustix::fs::chmodat(CWD, &path, Mode::from_raw_mode(mode & 0o7777), follow)?,
            Change::Owner(uid, gid) => {
                let uid = Some(uid).filter(|uid| *uid != SAME).map(Uid::from_raw);
                let gid = Some(gid).filter(|gid| *gid != SAME).map(Gid::from_raw);
                rustix::fs::chownat(CWD, &path, uid, gid, follow)?;
            }
            Change::Times(times) => rustix::fs::utimensat(CWD, &path, &times, follow)?,
            Change::Length(length) => {
                let length = u64::try_from(length).map_err(|_| Errno::INVAL)?;
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::ftruncate(rustix::fs::open(&path, flags, Mode::empty())?, length)?;
            }
            Change::SetXattr(name, value, flags) => {
                let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
                rustix::fs::setxattr(&path, &name, &value, flags)?;
            }
            Change::RemoveXattr(name) => rustix::fs::removexattr(&path, &name)?,
            Change::GetXattr(name, out, size) => {
                let mut value = vec![0; XATTR_BYTES];
                let length = rustix::fs::getxattr(&path, &name, &mut value)?;
                drop(user);
                return self.give(thread, &value[..length], out, size);
            }
            Change::ListXattrs(out, size) => {
                let mut list = vec![0; XATTR_BYTES];
                let length = rustix::fs::listxattr(&path, &mut list)?;
                drop(user);
                return self.give(thread, &list[..length], out, size);
            }
            Change::Link(at, address) => {
                drop(user);
                let text = self.text(thread, address).filter(|text| !text.is_empty()).ok_or(Errno::NOENT)?;
                let new = self.files.tree.absolute(thread, at, &text).ok_or(Errno::XDEV)?;
                let (parent, name) = new.parent().zip(new.file_name()).ok_or(Errno::EXIST)?;
                let _user = AsUser::new(identity)?;
                let parent = self.files.tree.open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, 0)?;
                rustix::fs::linkat(CWD, &path, &parent, name, AtFlags::SYMLINK_FOLLOW)?;
            }
        }
        Ok(0)
    }

    /// Writes a value into a buffer; with size 0 only says how long it is.
    fn give(&self, thread: i32, value: &[u8], out: u64, size: u64) -> Result<i64, Errno> {
        if size != 0 {
            if (size as usize) < value.len() {
                return Err(Errno::RANGE);
            }
            self.write(thread, out, value)?;
        }
        Ok(value.len() as i64)
    }

    /// The name of an attribute.
    fn name(&self, thread: i32, address: u64) -> Result<CString, Errno> {
        let text = self.text(thread, address).ok_or(Errno::FAULT)?;
        CString::new(text).map_err(|_| Errno::INVAL)
    }

    /// Two `struct timespec`; a null pointer is now.
    fn timespecs(&self, thread: i32, address: u64) -> Result<Timestamps, Errno> {
        self.times(thread, address, 1)
    }

    /// Two `struct timeval`; a null pointer is now.
    #[cfg(target_arch = "x86_64")]
    fn timevals(&self, thread: i32, address: u64) -> Result<Timestamps, Errno> {
        self.times(thread, address, 1000)
    }

    /// Two pairs of seconds and a part of a second, in `unit` nanoseconds.
    fn times(&self, thread: i32, address: u64, unit: i64) -> Result<Timestamps, Errno> {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        if address == 0 {
            return Ok(Timestamps { last_access: now, last_modification: now });
        }
        let bytes = self.read(thread, address, 32)?;
        let field =
            |at: usize| i64::from_ne_bytes(bytes[at * 8..at * 8 + 8].try_into().expect("because it has 8 bytes"));
        let time = |at: usize| -> Result<Timespec, Errno> {
            let tv_nsec = field(at + 1).checked_mul(unit).ok_or(Errno::INVAL)?;
            Ok(Timespec { tv_sec: field(at), tv_nsec: tv_nsec as _ })
        };
        Ok(Timestamps { last_access: time(0)?, last_modification: time(2)? })
    }
}

impl super::files::Files {
    /// The file that a served path stands for, if the command may change it, or if it only `looks`.
    ///
    /// # Errors
    /// `EROFS` and `EPERM` for what is the kernel's or the machine's, and what the kernel says.
    pub fn changeable(
        &self,
        path: &std::path::Path,
        identity: super::super::callers::Identity,
        thread: i32,
        looks: bool,
    ) -> Result<OwnedFd, Errno> {
        if path.starts_with("/sys") || !looks && self.tree.secret(path).is_some() {
            return Err(Errno::ROFS);
        }
        let file = self.place(path, identity, thread, true)?;
        let outer = super::places::path_of(file.as_fd()).map_err(|_| Errno::NOENT)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
        // What has no name anywhere, such as pipes, sockets and files in memory.
        let nameless = !outer.has_root() || outer.starts_with("/memfd:");
        if self.tree.inner(&outer).is_some()
            || looks
            || is_terminal(path)
            || nameless && !matches!(kind, FileType::CharacterDevice)
        {
            Ok(file)
        } else {
            Err(Errno::PERM)
        }
    }
}
