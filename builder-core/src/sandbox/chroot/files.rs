//! The files of `/proc`, `/sys` and `/dev` that a command in a chroot is shown, and those it is not.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::callers::{AsUser, Identity};
use super::super::members::Members;
use super::super::sys::{self, raw};
use super::names::Refused;
use super::secrets::Secret;
use super::serve::PROGRAMS;
use super::tree::{Place, Tree};

/// What a container does not see of /proc and /sys: Docker's masked paths, and what is the kernel's alone.
const MASKED: [&str; 14] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// So many links of /proc back into the tree are followed, as of all links: path_resolution(7).
const LINKS: usize = 40;

/// What a served path stands for.
#[derive(Debug)]
enum Target<'a> {
    /// This path of our own, magic links followed.
    Outer(PathBuf),
    /// A path of the tree.
    Inner(PathBuf),
    /// These bytes; the path is for its metadata.
    Text(Vec<u8>, PathBuf),
    /// A file in memory.
    Secret(&'a Secret),
}

/// Shows files to the processes of one RUN.
#[derive(Debug)]
pub struct Files {
    /// The tree.
    pub tree: Tree,
    /// Whose processes are shown.
    pub members: Members,
    /// The name of the machine inside.
    pub hostname: String,
    /// Terminals that were opened by /dev/ptmx.
    terminals: Mutex<Vec<u32>>,
}

/// What is executed.
#[derive(Debug)]
pub enum Executed {
    /// A file of the tree.
    At(PathBuf),
    /// One in memory.
    Nameless(OwnedFd),
}

impl Files {
    /// For the processes of `members` in `tree`.
    pub fn new(tree: Tree, members: Members, hostname: String) -> Self {
        Self { tree, members, hostname, terminals: Mutex::default() }
    }

    fn target(&self, path: &Path, identity: Identity, thread: i32, follow: bool) -> Result<Target<'_>, Errno> {
        let mut target = self.target_once(path, identity, thread, follow)?;
        // `/proc/self/root/proc/self/…`
        for _ in 0..LINKS {
            let Target::Inner(inner) = &target else { break };
            let Place::Served(again) = self.tree.lead(inner, follow) else { break };
            if again == *inner {
                break;
            }
            target = self.target_once(&again, identity, thread, follow)?;
        }
        Ok(target)
    }

    fn target_once(&self, path: &Path, identity: Identity, thread: i32, follow: bool) -> Result<Target<'_>, Errno> {
        if let Some(secret) = self.tree.secret(path) {
            return Ok(Target::Secret(secret));
        }
        if MASKED.iter().any(|masked| path.starts_with(masked)) {
            return Err(Errno::NOENT);
        }
        let parts: Vec<&OsStr> = path.iter().skip(1).collect();
        match parts.first().and_then(|top| top.to_str()) {
            Some("proc") => self.in_proc(path, &parts[1..], identity, thread, follow),
            Some("dev") => match parts.get(1).zip(parts.get(2)) {
                Some((_, name)) if *name == "ptmx" => Ok(Target::Outer("/dev/ptmx".into())),
                Some((_, number)) => {
                    let number = number.to_str().and_then(|number| number.parse().ok()).ok_or(Errno::NOENT)?;
                    let known = self.terminals.lock().unwrap_or_else(PoisonError::into_inner).contains(&number);
                    if known { Ok(Target::Outer(path.to_owned())) } else { Err(Errno::NOENT) }
                }
                None => Ok(Target::Outer(path.to_owned())),
            },
            _ => Ok(Target::Outer(path.to_owned())),
        }
    }

    fn in_proc(
        &self,
        path: &Path,
        parts: &[&OsStr],
        identity: Identity,
        thread: i32,
        follow: bool,
    ) -> Result<Target<'_>, Errno> {
        let Some((first, rest)) = parts.split_first() else { return Ok(Target::Outer(path.to_owned())) };
        let own = |names: &[&OsStr]| -> PathBuf {
            let mut own = PathBuf::from(format!("/proc/{}", identity.process));
            own.extend(names);
            own
        };
        let who = (identity, follow);
        match first.to_str() {
            Some("self") if follow || !rest.is_empty() => self.of_process(identity.process, own(rest), rest, who),
            Some("thread-self") if follow || !rest.is_empty() => {
                let mut path = own(&[OsStr::new("task"), OsStr::new(&thread.to_string())]);
                path.extend(rest);
                self.of_process(identity.process, path, rest, who)
            }
            Some("mounts") if follow => {
                self.of_process(identity.process, own(&[OsStr::new("mounts")]), &[OsStr::new("mounts")], who)
            }
            // Interpreters read scripts by the short names that these were executed by.
            Some(name) if path.as_os_str().as_bytes().starts_with(PROGRAMS.as_bytes()) && is_short(name) && follow => {
                Ok(Target::Inner(path.to_owned()))
            }
            Some("net") if follow || !rest.is_empty() => Ok(Target::Outer(own(parts))),
            Some("sys") if path == Path::new("/proc/sys/kernel/hostname") => {
                Ok(Target::Text(format!("{}\n", self.hostname).into_bytes(), path.to_owned()))
            }
            Some(number) if number.bytes().all(|byte| byte.is_ascii_digit()) => {
                let process = number.parse().map_err(|_| Errno::NOENT)?;
                if process != identity.process && !self.members.contains(process) {
                    return Err(Errno::NOENT);
                }
                self.of_process(process, path.to_owned(), rest, who)
            }
            _ => Ok(Target::Outer(path.to_owned())),
        }
    }

    /// `path` below /proc/PROCESS, and the names after that.
    fn of_process(
        &self,
        process: i32,
        path: PathBuf,
        names: &[&OsStr],
        (identity, follow): (Identity, bool),
    ) -> Result<Target<'_>, Errno> {
        let (names, owner) = match names {
            [task, thread, rest @ ..] if *task == "task" => {
                (rest, format!("/proc/{process}/task/{}", thread.to_string_lossy()))
            }
            _ => (names, format!("/proc/{process}")),
        };
        let base = |link: String| -> Result<PathBuf, Errno> {
            let _user = AsUser::new(identity)?;
            let text = rustix::fs::readlink(link, Vec::new())?;
            self.tree.inner(Path::new(OsStr::from_bytes(text.as_bytes()))).ok_or(Errno::NOENT)
        };
        let name = |at: usize| names.get(at).and_then(|name| name.to_str());
        match (name(0), names.len()) {
            (Some("root"), 1) if follow => Ok(Target::Inner("/".into())),
            (Some("root"), 2..) => Ok(Target::Inner(Path::new("/").join(names[1..].iter().collect::<PathBuf>()))),
            (Some("cwd"), 1) if follow => Ok(Target::Inner(base(format!("{owner}/cwd"))?)),
            (Some("cwd"), 2..) => {
                Ok(Target::Inner(base(format!("{owner}/cwd"))?.join(names[1..].iter().collect::<PathBuf>())))
            }
            (Some("fd"), 3..) => {
                let link = format!("{owner}/fd/{}", names[1].to_string_lossy());
                Ok(Target::Inner(base(link)?.join(names[2..].iter().collect::<PathBuf>())))
            }
            (Some("mounts"), 1) => Ok(Target::Text(MOUNTS.into(), path)),
            (Some("mountinfo"), 1) => Ok(Target::Text(MOUNTINFO.into(), path)),
            (Some("mountstats"), 1) => Ok(Target::Text(Vec::new(), path)),
            _ => Ok(Target::Outer(path)),
        }
    }

    /// open(2) of a served path.
    ///
    /// # Errors
    /// What the kernel would say in a container.
    pub fn open(
        &self,
        path: &Path,
        identity: Identity,
        thread: i32,
        flags: OFlags,
        mode: u32,
    ) -> Result<OwnedFd, Errno> {
        let follow = !flags.contains(OFlags::NOFOLLOW);
        // Nobody can be given a descriptor with O_PATH (seccomp_unotify(2)); one to read from serves as well.
        let kept = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let holds = flags.contains(OFlags::PATH);
        let flags = if holds { flags.intersection(kept) | OFlags::NONBLOCK } else { flags };
        match self.target(path, identity, thread, follow)? {
            Target::Inner(inner) => {
                let _user = AsUser::new(identity)?;
                self.tree.open(&inner, flags | OFlags::NOCTTY | OFlags::CLOEXEC, mode)
            }
            Target::Text(text, _) => {
                if flags.intersects(OFlags::WRONLY | OFlags::RDWR) {
                    return Err(Errno::ROFS);
                }
                let kept = flags.intersection(OFlags::DIRECTORY | OFlags::NONBLOCK);
                self.tree.open(&self.tree.text(&text)?, kept | OFlags::CLOEXEC, 0)
            }
            Target::Secret(_) if flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC) => Err(Errno::ROFS),
            Target::Secret(_) if flags.contains(OFlags::DIRECTORY) => Err(Errno::NOTDIR),
            Target::Secret(secret) => {
                let _user = AsUser::new(identity)?;
                secret.open(OFlags::RDONLY)
            }
            Target::Outer(outer) => self.open_outer(&outer, identity, flags),
        }
    }

    fn open_outer(&self, outer: &Path, identity: Identity, flags: OFlags) -> Result<OwnedFd, Errno> {
        let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
        if writes && is_kernels(outer) {
            return Err(Errno::ROFS);
        }
        let place = {
            let _user = AsUser::new(identity)?;
            let mut how = OFlags::PATH | OFlags::CLOEXEC;
            how.set(OFlags::NOFOLLOW, flags.contains(OFlags::NOFOLLOW));
            rustix::fs::open(outer, how, Mode::empty())?
        };
        // A descriptor's name in /proc/PID/fd may stand for a file of the kernel's.
        let found = super::places::path_of(place.as_fd()).map_err(|_| Errno::NOENT)?;
        if writes && is_kernels(&found) {
            return Err(Errno::ROFS);
        }
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
        if kind.is_symlink() {
            // A magic link in the hand would be a way to what it leads to.
            return Err(Errno::LOOP);
        }
        if kind.is_dir() {
            if writes {
                return Err(Errno::ISDIR);
            }
            // Never the directory itself: with it one could go up and out. What lies in the tree is looked up there.
            return match self.tree.inner(&found) {
                Some(inner) => self.tree.open(&inner, flags | OFlags::CLOEXEC, 0),
                None => self.listing(outer, identity, flags),
            };
        }
        if flags.contains(OFlags::DIRECTORY) {
            return Err(Errno::NOTDIR);
        }
        let _user = AsUser::new(identity)?;
        // Not waiting for a fifo's other end: others wait for us.
        let how = flags.difference(OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW)
            | OFlags::NOCTTY
            | OFlags::CLOEXEC
            | OFlags::NONBLOCK;
        let file = rustix::fs::open(outer, how, Mode::empty())?;
        if !flags.contains(OFlags::NONBLOCK) {
            let now = rustix::fs::fcntl_getfl(&file)?;
            rustix::fs::fcntl_setfl(&file, now.difference(OFlags::NONBLOCK))?;
        }
        if outer == Path::new("/dev/ptmx")
            && let Ok(number) = raw::terminal_number(file.as_fd())
        {
            self.terminals.lock().unwrap_or_else(PoisonError::into_inner).push(number);
        }
        Ok(file)
    }

    /// A directory of the tree with the names that are in a served one.
    fn listing(&self, outer: &Path, identity: Identity, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = self.tree.listing(outer)?;
        let at = self.tree.outer(&path);
        let names: Vec<(OsString, fs::FileType)> = {
            let _user = AsUser::new(identity)?;
            let entries = fs::read_dir(outer).map_err(sys::errno)?;
            entries.flatten().filter_map(|entry| Some((entry.file_name(), entry.file_type().ok()?))).collect()
        };
        let top = outer == Path::new("/proc");
        let terminals = self.terminals.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, kind) in names {
            let path = outer.join(&name);
            let number = name.to_str().and_then(|name| name.parse::<i32>().ok());
            let hidden = MASKED.iter().any(|masked| path == Path::new(masked))
                || number.is_some_and(|number| {
                    top && number != identity.process && !self.members.contains(number)
                        || outer == Path::new("/dev/pts") && !terminals.contains(&number.unsigned_abs())
                });
            if hidden {
                continue;
            }
            let made = at.join(&name);
            // What cannot be shown is left out: the process may be gone.
            _ = if kind.is_dir() {
                fs::create_dir(made)
            } else if kind.is_symlink() {
                match self.link_text(&path, identity) {
                    Ok(text) => symlink(OsStr::from_bytes(&text), made),
                    Err(_) => continue,
                }
            } else {
                fs::write(made, "")
            };
        }
        let flags = flags.intersection(OFlags::DIRECTORY) | OFlags::CLOEXEC;
        self.tree.open(&path, flags, 0)
    }

    /// An open file, for its metadata.
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn place(&self, path: &Path, identity: Identity, thread: i32, follow: bool) -> Result<OwnedFd, Errno> {
        let mut flags = OFlags::PATH | OFlags::CLOEXEC;
        flags.set(OFlags::NOFOLLOW, !follow);
        let target = self.target(path, identity, thread, follow)?;
        let _user = AsUser::new(identity)?;
        match target {
            Target::Inner(inner) => self.tree.open(&inner, flags, 0),
            Target::Secret(secret) => secret.open(OFlags::PATH),
            Target::Text(text, _) => self.tree.open(&self.tree.text(&text)?, flags, 0),
            Target::Outer(outer) => rustix::fs::open(&outer, flags, Mode::empty()),
        }
    }

    /// `struct stat` of a served path.
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn stat(&self, path: &Path, identity: Identity, thread: i32, follow: bool) -> Result<Vec<u8>, Errno> {
        raw::stat(self.place(path, identity, thread, follow)?.as_fd())
    }

    /// `struct statx` of a served path.
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn statx(
        &self,
        path: &Path,
        identity: Identity,
        thread: i32,
        (flags, mask): (u32, u32),
    ) -> Result<Vec<u8>, Errno> {
        let follow = flags & libc::AT_SYMLINK_NOFOLLOW as u32 == 0;
        raw::statx(self.place(path, identity, thread, follow)?.as_fd(), 0, mask)
    }

    /// `struct statfs` of a served path.
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn statfs(&self, path: &Path, identity: Identity, thread: i32) -> Result<Vec<u8>, Errno> {
        raw::statfs(self.place(path, identity, thread, true)?.as_fd())
    }

    /// access(2) of a served path.
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn access(&self, path: &Path, identity: Identity, thread: i32, mode: u32) -> Result<(), Errno> {
        let access = Access::from_bits_truncate(mode);
        let place = match self.target(path, identity, thread, true)? {
            Target::Outer(outer) | Target::Text(_, outer) => {
                if access.contains(Access::WRITE_OK) && is_kernels(&outer) {
                    return Err(Errno::ROFS);
                }
                outer
            }
            Target::Secret(_) if access.contains(Access::WRITE_OK) => return Err(Errno::ROFS),
            Target::Secret(secret) => secret.name(),
            Target::Inner(inner) => {
                let place = self.tree.open(&inner, OFlags::PATH | OFlags::CLOEXEC, 0)?;
                let _user = AsUser::new(identity)?;
                let path = super::places::path_of(place.as_fd()).map_err(|_| Errno::NOENT)?;
                return rustix::fs::accessat(CWD, &path, access, AtFlags::EACCESS);
            }
        };
        let _user = AsUser::new(identity)?;
        rustix::fs::accessat(CWD, &place, access, AtFlags::EACCESS)
    }

    /// readlink(2) of a served path.
    ///
    /// # Errors
    /// What the kernel would say.
    pub fn readlink(&self, path: &Path, identity: Identity, thread: i32) -> Result<Vec<u8>, Errno> {
        match path.to_str() {
            Some("/proc/self") => return Ok(identity.process.to_string().into_bytes()),
            Some("/proc/thread-self") => return Ok(format!("{}/task/{thread}", identity.process).into_bytes()),
            _ => {}
        }
        match self.target(path, identity, thread, false)? {
            Target::Inner(inner) => {
                let place = self.tree.open(&inner, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, 0)?;
                Ok(rustix::fs::readlinkat(&place, "", Vec::new())?.into_bytes())
            }
            Target::Outer(outer) => self.link_text(&outer, identity),
            Target::Text(..) | Target::Secret(_) => Err(Errno::INVAL),
        }
    }

    /// The text of a link as the command may see it: paths begin in its root.
    fn link_text(&self, outer: &Path, identity: Identity) -> Result<Vec<u8>, Errno> {
        let text = {
            let _user = AsUser::new(identity)?;
            rustix::fs::readlink(outer, Vec::new())?.into_bytes()
        };
        if let Some(secret) = self.tree.secret_shown_as(&text) {
            return Ok(secret.path.as_os_str().as_bytes().to_vec());
        }
        let shown = Path::new(OsStr::from_bytes(&text));
        if !shown.has_root() {
            return Ok(text);
        }
        if let Some(inner) = self.tree.inner(shown) {
            return Ok(inner.into_os_string().into_vec());
        }
        let served = ["/proc", "/sys", "/dev"].iter().any(|top| shown.starts_with(top)) || text.starts_with(b"/memfd:");
        Ok(if served { text } else { b"/".to_vec() })
    }

    /// The path in the tree that a served path of a name stands for, which is going to be made, removed, linked or renamed.
    ///
    /// # Errors
    /// What a container says of names in /proc and /sys, and of mounts.
    pub fn inner(&self, path: &Path, identity: Identity, thread: i32, refused: Refused) -> Result<PathBuf, Errno> {
        let target = self.target(path, identity, thread, false);
        Err(match (target, refused) {
            (Ok(Target::Inner(inner)), _) => return Ok(inner),
            (Ok(Target::Secret(_)), Refused::Removed) => Errno::BUSY,
            (Ok(_), Refused::Linked) => Errno::XDEV,
            (Ok(Target::Secret(_)), Refused::Made) => Errno::EXIST,
            (Ok(Target::Outer(outer) | Target::Text(_, outer)), _) => match rustix::fs::lstat(&outer) {
                Ok(_) if refused == Refused::Made => Errno::EXIST,
                Ok(_) if !outer.starts_with("/sys") => Errno::PERM,
                Err(_) if !outer.starts_with("/sys") => Errno::NOENT,
                _ => Errno::ROFS,
            },
            (Err(errno), _) => errno,
        })
    }

    /// The directory of the tree that a served path leads to.
    pub fn directory(&self, path: &Path, identity: Identity, thread: i32) -> Option<PathBuf> {
        let place = self.place(path, identity, thread, true).ok()?;
        let is_directory = FileType::from_raw_mode(rustix::fs::fstat(&place).ok()?.st_mode).is_dir();
        self.tree.inner(&super::places::path_of(place.as_fd()).ok()?).filter(|_| is_directory)
    }

    /// A program that is named by a served path: `/proc/self/exe`, `/dev/fd/3`.
    pub fn program(&self, path: &Path, identity: Identity, thread: i32) -> Option<Executed> {
        match self.target(path, identity, thread, true).ok()? {
            Target::Inner(inner) => Some(Executed::At(inner)),
            Target::Outer(outer) => {
                let text = fs::read_link(&outer).ok()?;
                if !text.as_os_str().as_bytes().starts_with(b"/memfd:") {
                    return self.tree.inner(&text).map(Executed::At);
                }
                let _user = AsUser::new(identity).ok()?;
                rustix::fs::open(outer, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok().map(Executed::Nameless)
            }
            Target::Text(..) | Target::Secret(_) => None,
        }
    }
}

/// Whether this is the first part of a program's short name below /proc: `e000`.
fn is_short(name: &str) -> bool {
    name.len() == 4 && name.bytes().skip(1).all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a file belongs to the kernel and not to a process: nobody in a container may write there.
fn is_kernels(outer: &Path) -> bool {
    match outer.strip_prefix("/proc") {
        Ok(rest) => !rest.as_os_str().as_bytes().first().is_some_and(u8::is_ascii_digit),
        Err(_) => outer.starts_with("/sys"),
    }
}

/// Nothing is mounted, so the tables say what a command would expect of a container.
const MOUNTS: &str = "rootfs / rootfs rw 0 0\nproc /proc proc rw,nosuid,nodev,noexec,relatime 0 0\n\
                      tmpfs /dev tmpfs rw,nosuid,mode=755 0 0\nsysfs /sys sysfs ro,nosuid,nodev,noexec,relatime 0 0\n";

const MOUNTINFO: &str = "1 0 0:1 / / rw - rootfs rootfs rw\n\
                         2 1 0:2 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw\n\
                         3 1 0:3 / /dev rw,nosuid - tmpfs tmpfs rw,mode=755\n\
                         4 1 0:4 / /sys ro,nosuid,nodev,noexec,relatime - sysfs sysfs ro\n";
