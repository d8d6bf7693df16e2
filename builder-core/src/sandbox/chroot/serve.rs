//! Answers the system calls of a RUN that the filter marks.
//!
//! A path that leads into the tree is none of our business: the kernel goes on with the call in the command's own chroot, where
//! whatever another thread makes of the path meanwhile stays within that root. Calls that name processes go on only if
//! their arguments, which are numbers in registers, name processes of this RUN.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::super::callers::{AsUser, Identity};
use super::super::guard::{self, Guard, Scope};
use super::super::nodes::{DEVICE, Nodes};
use super::super::sys::bpf::{self, Action, Rule, When};
use super::super::sys::notify::{Listener, Notification, Reply};
use super::super::sys::{self, memory, raw};
use super::files::{Executed, Files};
use super::peer::Memories;
use super::tree::Place;

/// Where programs have short names, `/proc/e000/exe`: of the length of `/proc/self/exe`, and with the same last name, by which
/// some tell what they are.
pub const PROGRAMS: &str = "/proc/e";

/// So many programs have such a name at a time.
const SHORT_NAMES: u32 = 0x1000;

/// Devices that a command may make: what every container has.
const HARMLESS: [(u32, u32); 8] = [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2), (0, 0)];

/// Which calls are marked.
pub fn filter(scope: Scope) -> Vec<libc::sock_filter> {
    let notify = |number| Rule::always(number, Action::Notify);
    let some = |number, when| Rule::when(number, when, Action::Notify);
    // What is made anew cannot be a file of /proc.
    let new = (libc::O_CREAT | libc::O_EXCL) as u32;
    let empty = libc::AT_EMPTY_PATH as u32;
    let mut rules = vec![
        some(libc::SYS_openat, When::Lacks(2, new)),
        notify(libc::SYS_openat2),
        some(libc::SYS_newfstatat, When::Lacks(3, empty)),
        some(libc::SYS_statx, When::Lacks(2, empty)),
        notify(libc::SYS_faccessat),
        notify(libc::SYS_faccessat2),
        notify(libc::SYS_readlinkat),
        notify(libc::SYS_chdir),
        notify(libc::SYS_statfs),
        notify(libc::SYS_execve),
        notify(libc::SYS_uname),
        notify(libc::SYS_chroot),
        some(libc::SYS_execveat, When::Lacks(4, empty)),
        // That others may look into a process is what a process is made to say, see `peer`.
        some(libc::SYS_prctl, When::IsAndIsNot((0, libc::PR_SET_DUMPABLE as u32), (1, 1))),
    ];
    #[cfg(target_arch = "x86_64")]
    rules.extend([
        some(libc::SYS_open, When::Lacks(1, new)),
        notify(libc::SYS_creat),
        notify(libc::SYS_stat),
        notify(libc::SYS_lstat),
        notify(libc::SYS_access),
        notify(libc::SYS_readlink),
    ]);
    rules.extend(guard::rules(scope));
    rules.extend(super::changes::rules());
    rules.extend(super::names::rules());
    rules.extend(super::peer::rules());
    rules.extend(super::shells::rules());
    bpf::filter(&rules, Action::Notify)
}

/// An answer.
pub enum Answer {
    Reply(Reply),
    /// The call returns a copy of this descriptor.
    Descriptor(OwnedFd, bool),
    /// It has been given already.
    Given,
}

impl From<Result<(), Errno>> for Answer {
    fn from(result: Result<(), Errno>) -> Self {
        Self::Reply(result.map_or_else(Reply::Error, |()| Reply::Value(0)))
    }
}

/// The kernel goes on with the call.
pub const CONTINUE: Answer = Answer::Reply(Reply::Continue);

/// What answering needs.
pub struct Server<'a> {
    /// What is shown.
    pub files: &'a Files,
    /// Keeps it from other processes.
    pub guard: Guard,
    /// Where calls come from.
    pub listener: &'a Listener,
    /// Makes what stands for device nodes.
    pub nodes: &'a Nodes<'a>,
    /// Whether nodes of other devices than the harmless ones cannot be opened anyway.
    pub devices_confined: bool,
    /// How many programs have got a short name.
    pub programs: AtomicU32,
    /// Of processes that cannot be looked into any more.
    pub memories: Memories,
    /// Whether processes cannot be traced, on an older kernel.
    pub untraceable: AtomicBool,
    /// Gets lines for the output of the RUN.
    pub complain: &'a (dyn Fn(&str) + Sync),
    /// Whether it has been said that nobody can have another root.
    pub rooted: AtomicBool,
}

impl Server<'_> {
    /// Answers one call.
    pub fn serve(&self, call: &Notification) {
        match self.answer(call) {
            Answer::Given => {}
            // Nobody waits any more if these fail, or the command has no descriptor free.
            Answer::Reply(reply) => _ = self.listener.reply(call.id, reply),
            Answer::Descriptor(file, cloexec) => {
                if let Err(errno) = self.listener.reply_with(call.id, file.as_fd(), cloexec) {
                    _ = self.listener.reply(call.id, Reply::Error(errno));
                }
            }
        }
    }

    fn answer(&self, call: &Notification) -> Answer {
        self.files.tree.called(call.thread);
        if call.architecture != bpf::NATIVE {
            return foreign(self, call);
        }
        let [a, b, c, d, ..] = call.arguments;
        let number = libc::c_long::from(call.number);
        let at = a as i32;
        match number {
            libc::SYS_openat => self.open(call, at, b, c, d),
            libc::SYS_openat2 => self.open2(call, at, b, c, d),
            libc::SYS_newfstatat => self.stat(call, at, b, c, d as i32 & libc::AT_SYMLINK_NOFOLLOW == 0),
            libc::SYS_statx => self.statx(call),
            libc::SYS_faccessat | libc::SYS_faccessat2 => self.access(call, at, b, c),
            libc::SYS_readlinkat => self.readlink(call, at, b, c, d),
            libc::SYS_chdir => self.chdir(call, a),
            libc::SYS_fchdir => {
                self.files.tree.forget_bases(call.thread);
                CONTINUE
            }
            libc::SYS_statfs => self.statfs(call, a, b),
            libc::SYS_rt_sigaction => self.handle_children(call, b),
            libc::SYS_execve => self.exec(call, libc::AT_FDCWD, a),
            libc::SYS_execveat => self.exec(call, at, b),
            libc::SYS_uname => self.uname(call, a),
            libc::SYS_chroot => self.chroot(call, a),
            libc::SYS_mknodat if c as u32 & DEVICE != 0 && !self.is_harmless(d) => {
                Answer::Reply(self.nodes.answer(self.listener, call))
            }
            // Arguments of calls could not be read any more; nobody outside may look in anyway.
            libc::SYS_prctl if b > 1 => Answer::Reply(Reply::Error(Errno::INVAL)),
            libc::SYS_prctl => Answer::Reply(Reply::Value(0)),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.open(call, libc::AT_FDCWD, a, b, c),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_creat => {
                let flags = libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC;
                self.open(call, libc::AT_FDCWD, a, flags as u64, b)
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_stat => self.stat(call, libc::AT_FDCWD, a, b, true),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_lstat => self.stat(call, libc::AT_FDCWD, a, b, false),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_access => self.access(call, libc::AT_FDCWD, a, b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_readlink => self.readlink(call, libc::AT_FDCWD, a, b, c),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_mknod if b as u32 & DEVICE != 0 && !self.is_harmless(c) => {
                Answer::Reply(self.nodes.answer(self.listener, call))
            }
            _ => self
                .change_names(call)
                .or_else(|| self.change(call))
                .or_else(|| self.change_user(call))
                .or_else(|| self.guard.answer(self.listener, call).map(Answer::Reply))
                .unwrap_or(Answer::Reply(Reply::Error(Errno::PERM))),
        }
    }

    /// Whether a device node may be made in truth: the numbers come in a register, so nobody can change them meanwhile.
    fn is_harmless(&self, number: u64) -> bool {
        let number = u64::from(number as u32);
        self.devices_confined || HARMLESS.contains(&(rustix::fs::major(number), rustix::fs::minor(number)))
    }

    /// The served path that a call names.
    pub fn served(
        &self,
        call: &Notification,
        at: i32,
        path: u64,
        follow: bool,
    ) -> Option<(std::path::PathBuf, Identity)> {
        let text = self.text(call.thread, path)?;
        match self.files.tree.place(call.thread, at, &text, follow) {
            Place::Served(path) => Some((path, Identity::of(call.thread)?)),
            Place::Native => None,
        }
    }

    fn open(&self, call: &Notification, at: i32, path: u64, flags: u64, mode: u64) -> Answer {
        let flags = OFlags::from_bits_retain(flags as u32 as _);
        let Some(text) = self.text(call.thread, path) else { return CONTINUE };
        let tree = &self.files.tree;
        let Place::Served(path) = tree.place(call.thread, at, &text, !flags.contains(OFlags::NOFOLLOW)) else {
            let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::CREATE | OFlags::TRUNC);
            let refused = if writes { tree.refuses(call.thread, at, &text, false) } else { None };
            return refused.map_or(CONTINUE, |errno| Answer::Reply(Reply::Error(errno)));
        };
        let Some(identity) = Identity::of(call.thread) else { return CONTINUE };
        if !self.listener.is_waiting(call.id) {
            return Answer::Reply(Reply::Error(Errno::INTR));
        }
        match self.files.open(&path, identity, call.thread, flags, mode as u32) {
            Ok(file) => Answer::Descriptor(file, flags.contains(OFlags::CLOEXEC)),
            Err(errno) => Answer::Reply(Reply::Error(errno)),
        }
    }

    /// openat2(2): the flags are in memory. Ways of resolving are kept for paths of the tree alone.
    fn open2(&self, call: &Notification, at: i32, path: u64, how: u64, size: u64) -> Answer {
        if size < 24 {
            return CONTINUE;
        }
        let Ok(flags) = self.read(call.thread, how, 16) else { return CONTINUE };
        let [flags, mode] = [0, 8].map(|at| {
            let mut word = [0; 8];
            word.copy_from_slice(&flags[at..at + 8]);
            u64::from_ne_bytes(word)
        });
        self.open(call, at, path, flags, mode)
    }

    fn stat(&self, call: &Notification, at: i32, path: u64, buffer: u64, follow: bool) -> Answer {
        let Some((path, identity)) = self.served(call, at, path, follow) else { return CONTINUE };
        let stat = self.files.stat(&path, identity, call.thread, follow);
        stat.and_then(|bytes| self.write(call.thread, buffer, &bytes)).into()
    }

    fn statx(&self, call: &Notification) -> Answer {
        let [at, path, flags, mask, buffer, _] = call.arguments;
        let follow = flags as i32 & libc::AT_SYMLINK_NOFOLLOW == 0;
        let Some((path, identity)) = self.served(call, at as i32, path, follow) else { return CONTINUE };
        let statx = self.files.statx(&path, identity, call.thread, (flags as u32, mask as u32));
        statx.and_then(|bytes| self.write(call.thread, buffer, &bytes)).into()
    }

    fn statfs(&self, call: &Notification, path: u64, buffer: u64) -> Answer {
        let Some((path, identity)) = self.served(call, libc::AT_FDCWD, path, true) else { return CONTINUE };
        let statfs = self.files.statfs(&path, identity, call.thread);
        statfs.and_then(|bytes| self.write(call.thread, buffer, &bytes)).into()
    }

    fn access(&self, call: &Notification, at: i32, path: u64, mode: u64) -> Answer {
        let Some((path, identity)) = self.served(call, at, path, true) else { return CONTINUE };
        self.files.access(&path, identity, call.thread, mode as u32).into()
    }

    fn readlink(&self, call: &Notification, at: i32, path: u64, buffer: u64, size: u64) -> Answer {
        let Some((path, identity)) = self.served(call, at, path, false) else { return CONTINUE };
        let text = self.files.readlink(&path, identity, call.thread).and_then(|mut text| {
            text.truncate(usize::try_from(size).unwrap_or(usize::MAX));
            self.write(call.thread, buffer, &text)?;
            Ok(text.len() as i64)
        });
        Answer::Reply(text.map_or_else(Reply::Error, Reply::Value))
    }

    /// A program that is named by a served path gets a name in the tree that fits where the path is.
    fn exec(&self, call: &Notification, at: i32, path: u64) -> Answer {
        let text = self.text(call.thread, path);
        self.memories.forget(call.thread);
        let Some(text) = text else { return CONTINUE };
        let Place::Served(served) = self.files.tree.place(call.thread, at, &text, true) else {
            return CONTINUE;
        };
        let Some(identity) = Identity::of(call.thread) else { return CONTINUE };
        let Some(program) = self.files.program(&served, identity, call.thread) else { return CONTINUE };
        if !self.listener.is_waiting(call.id) {
            return Answer::Reply(Reply::Error(Errno::INTR));
        }
        let number = self.programs.fetch_add(1, Ordering::Relaxed) % SHORT_NAMES;
        let last = Path::new(OsStr::from_bytes(&text)).file_name().unwrap_or(OsStr::new("exe"));
        let name = Path::new(&format!("{PROGRAMS}{number:03x}")).join(last);
        if name.as_os_str().len() > text.len() || self.put_program(&name, program).is_err() {
            return CONTINUE;
        }
        let mut bytes = name.into_os_string().into_vec();
        bytes.push(0);
        // The old program's memory goes away with a call that works.
        let written = memory::write_anywhere(call.thread, path, &bytes).or_else(|error| {
            let _user = AsUser::new(identity)?;
            memory::write_anywhere(call.thread, path, &bytes).map_err(|_| error)
        });
        _ = written;
        CONTINUE
    }

    /// Gives a program a name in the tree, which the command may have changed in any way: no link is followed out of it.
    fn put_program(&self, name: &Path, program: Executed) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut parts = name.iter().skip(1);
        let (Some(top), Some(short), Some(last)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(Errno::INVAL);
        };
        let top = self.files.tree.open(&Path::new("/").join(top), flags, 0)?;
        match rustix::fs::mkdirat(&top, short, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        let directory = rustix::fs::openat(&top, short, flags, Mode::empty())?;
        match rustix::fs::unlinkat(&directory, last, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        match program {
            Executed::At(path) => rustix::fs::symlinkat(path, &directory, last),
            Executed::Nameless(from) => {
                let mode = Mode::from_raw_mode(rustix::fs::fstat(&from)?.st_mode & 0o777);
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                let to = rustix::fs::openat(&directory, last, flags, Mode::from_raw_mode(0o700))?;
                let (mut from, mut to) = (std::fs::File::from(from), std::fs::File::from(to));
                std::io::copy(&mut from, &mut to).map_err(sys::errno)?;
                rustix::fs::fchmod(&to, mode)
            }
        }
    }

    fn uname(&self, call: &Notification, buffer: u64) -> Answer {
        let name = raw::uname(self.files.hostname.as_bytes());
        match name.and_then(|bytes| self.write(call.thread, buffer, &bytes)) {
            Err(Errno::PERM) => CONTINUE,
            result => result.into(),
        }
    }

    /// A root below the root would be a way out of it: chroot(2). The root itself is what one has already.
    fn chroot(&self, call: &Notification, path: u64) -> Answer {
        match self.text(call.thread, path) {
            Some(text) if text == b"/" => Answer::Reply(Reply::Value(0)),
            text => {
                if text.is_some() && !self.rooted.swap(true, Ordering::Relaxed) {
                    (self.complain)(
                        "slipway: chroot(2) is refused in the sandbox `chroot`; `--sandbox=traced` performs it",
                    );
                }
                Answer::Reply(Reply::Error(Errno::PERM))
            }
        }
    }
}

/// Calls of 32-bit programs: what could reach other processes or devices is refused unless it is the caller's own; paths are
/// the tree's alone.
fn foreign(server: &Server<'_>, call: &Notification) -> Answer {
    // It may be one that goes somewhere else.
    server.files.tree.forget_bases(call.thread);
    let [_, b, c, d, ..] = call.arguments;
    match call.number {
        FOREIGN_CHROOT => Answer::Reply(Reply::Error(Errno::PERM)),
        FOREIGN_MKNOD if b as u32 & DEVICE != 0 && !server.is_harmless(c) => Answer::Reply(Reply::Error(Errno::PERM)),
        FOREIGN_MKNODAT if c as u32 & DEVICE != 0 && !server.is_harmless(d) => Answer::Reply(Reply::Error(Errno::PERM)),
        _ => server.guard.answer(server.listener, call).map_or(CONTINUE, Answer::Reply),
    }
}

/// Number of chroot for 32-bit programs.
const FOREIGN_CHROOT: i32 = 61;
/// Number of mknod for 32-bit programs.
const FOREIGN_MKNOD: i32 = 14;
/// Number of mknodat for 32-bit programs, of i386 or arm.
const FOREIGN_MKNODAT: i32 = if cfg!(target_arch = "x86_64") { 297 } else { 324 };
