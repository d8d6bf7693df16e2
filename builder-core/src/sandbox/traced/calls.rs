//! Answers calls: which one, and the common part of old and new forms.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use rustix::io::Errno;

use super::super::numbers::{RENAMEAT, late};
use super::super::sys::bpf;
use super::super::sys::notify::{Notification, Reply};
use super::pipes::Pipe;
use super::tasks::lock;
use super::world::{Caller, World};

/// What a call gets.
#[derive(Debug)]
pub enum Answer {
    /// This is returned.
    Value(i64),
    /// The kernel does it.
    Continue,
    /// A descriptor, closed by exec or not.
    Give(OwnedFd, bool),
    /// A named pipe, whose other end has to be waited for, with these flags.
    Meet(Pipe, rustix::fs::OFlags),
}

/// Address that no program uses: the loader's call for a file that the supervisor holds ready.
pub const HANDED: u64 = 0x5117_0a15;

pub type Answered = Result<Answer, Errno>;

/// What a call was answered that a signal had ended meanwhile, which kernels before 5.19 let happen: its thread makes it again, and it
/// must not be performed twice.
#[derive(Debug)]
pub struct Missed {
    number: i32,
    arguments: [u64; 6],
    answered: Answered,
}

impl Missed {
    fn of(call: &Notification, answered: Answered) -> Self {
        Self { number: call.number, arguments: call.arguments, answered }
    }

    fn is_of(&self, call: &Notification) -> bool {
        (self.number, self.arguments) == (call.number, call.arguments)
    }
}

/// Nothing more to say than that it worked.
pub const DONE: Answered = Ok(Answer::Value(0));

impl World {
    /// Answers one call. `complain` gets a line for the output of the RUN, at most once. `meet` is given what would block.
    pub fn answer(
        &self,
        call: Notification,
        complain: &dyn Fn(&str),
        meet: &dyn Fn((u64, i32), Pipe, rustix::fs::OFlags),
    ) {
        let (id, thread) = (call.id, call.thread);
        let task = self.tasks.get(thread);
        let mut missed = task.as_ref().map(|task| lock(&task.missed));
        let before = missed.as_mut().and_then(|missed| missed.take()).filter(|before| before.is_of(&call));
        let answered = if call.architecture != bpf::NATIVE {
            if !self.narrow.swap(true, Ordering::Relaxed) {
                complain("slipway: 32-bit programs cannot run in the sandbox `traced`");
            }
            Err(Errno::NOSYS)
        } else {
            match (before, &task) {
                (Some(before), _) => before.answered,
                (None, Some(task)) => Caller { world: self, task: Arc::clone(task), call }.answer(),
                (None, None) => Err(Errno::SRCH),
            }
        };
        let mut miss = |answered| {
            if let Some(missed) = &mut missed {
                **missed = Some(Missed::of(&call, answered));
            }
        };
        let reply = match answered {
            Ok(Answer::Value(value)) => Reply::Value(value),
            Ok(Answer::Continue) => Reply::Continue,
            Ok(Answer::Give(fd, cloexec)) => {
                let giving = self.giving.read().unwrap_or_else(PoisonError::into_inner);
                let given = self.listener.reply_with(id, fd.as_fd(), cloexec);
                if given == Err(Errno::NOENT) {
                    return miss(Ok(Answer::Give(fd, cloexec)));
                }
                drop(fd);
                drop(giving);
                match given {
                    Ok(number) => return self.behind.given(thread, number),
                    Err(errno) => Reply::Error(errno),
                }
            }
            Ok(Answer::Meet(pipe, flags)) => return meet((id, thread), pipe, flags),
            Err(errno) => Reply::Error(errno),
        };
        if !self.listener.reply(id, reply) {
            match reply {
                Reply::Value(value) => miss(Ok(Answer::Value(value))),
                // Said of a call that nobody waited for any more before it was performed.
                Reply::Error(Errno::INTR) | Reply::Continue => {}
                Reply::Error(errno) => miss(Err(errno)),
            }
        }
    }
}

impl World {
    /// Waits until files that callers have already been given are open nowhere else. The caller may have closed one that it wrote
    /// to, and the kernel executes nothing that is open for writing (`ETXTBSY`).
    pub fn settle(&self) {
        drop(self.giving.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Caller<'_> {
    fn answer(&self) -> Answered {
        let number = libc::c_long::from(self.call.number);
        #[cfg(target_arch = "x86_64")]
        if let Some(answered) = self.answer_old(number) {
            return answered;
        }
        match number {
            libc::SYS_openat if self.word(1) == HANDED => {
                let file = lock(&self.task.handed).take().ok_or(Errno::FAULT)?;
                Ok(Answer::Give(file, true))
            }
            libc::SYS_openat => self.open(self.int(0), self.word(1), self.uint(2), self.uint(3)),
            libc::SYS_openat2 => self.open2(),
            libc::SYS_newfstatat => self.stat(self.int(0), self.word(1), self.word(2), self.uint(3)),
            libc::SYS_fstat => self.fstat(self.int(0), self.word(1)),
            libc::SYS_statx => self.statx(),
            libc::SYS_faccessat => self.access(self.int(0), self.word(1), self.uint(2), 0),
            libc::SYS_faccessat2 => self.access(self.int(0), self.word(1), self.uint(2), self.uint(3)),
            libc::SYS_readlinkat => self.readlink(self.int(0), self.word(1), self.word(2), self.word(3)),
            libc::SYS_truncate => self.truncate(),
            libc::SYS_statfs => self.statfs(),
            libc::SYS_mkdirat => self.mkdir(self.int(0), self.word(1), self.uint(2)),
            libc::SYS_unlinkat => self.unlink(self.int(0), self.word(1), self.uint(2)),
            libc::SYS_renameat2 => self.rename((self.int(0), self.word(1)), (self.int(2), self.word(3)), self.uint(4)),
            RENAMEAT => self.rename((self.int(0), self.word(1)), (self.int(2), self.word(3)), 0),
            libc::SYS_linkat => self.link((self.int(0), self.word(1)), (self.int(2), self.word(3)), self.uint(4)),
            libc::SYS_symlinkat => self.symlink(self.word(0), self.int(1), self.word(2)),
            libc::SYS_mknodat => self.mknod(self.int(0), self.word(1), self.uint(2), self.word(3)),
            libc::SYS_fchmod => self.chmod(self.reach_descriptor(self.int(0))?, self.uint(1)),
            libc::SYS_fchmodat => self.chmod(self.reach(self.int(0), &self.path(1)?, true, false)?, self.uint(2)),
            late::FCHMODAT2 => self.chmod(self.reach_at(0, 1, self.uint(3), false)?, self.uint(2)),
            libc::SYS_fchown => self.chown(self.reach_descriptor(self.int(0))?, self.uint(1), self.uint(2)),
            libc::SYS_fchownat => self.chown(self.reach_at(0, 1, self.uint(4), false)?, self.uint(2), self.uint(3)),
            libc::SYS_utimensat => self.utimens(self.int(0), self.word(1), self.uint(3), self.timespecs(self.word(2))?),
            libc::SYS_setxattr
            | libc::SYS_lsetxattr
            | libc::SYS_fsetxattr
            | libc::SYS_getxattr
            | libc::SYS_lgetxattr
            | libc::SYS_fgetxattr
            | libc::SYS_listxattr
            | libc::SYS_llistxattr
            | libc::SYS_flistxattr
            | libc::SYS_removexattr
            | libc::SYS_lremovexattr
            | libc::SYS_fremovexattr
            | late::SETXATTRAT
            | late::GETXATTRAT
            | late::LISTXATTRAT
            | late::REMOVEXATTRAT => self.xattr(number),
            libc::SYS_chdir => self.chdir(),
            libc::SYS_fchdir => self.fchdir(),
            libc::SYS_getcwd => self.getcwd(),
            libc::SYS_umask => {
                let mut surroundings = lock(&self.task.surroundings);
                let before = std::mem::replace(&mut surroundings.umask, self.uint(0) & 0o777);
                Ok(Answer::Value(before.into()))
            }
            _ => self.identity(number),
        }
    }

    /// Calls that newer machines do not have.
    #[cfg(target_arch = "x86_64")]
    fn answer_old(&self, number: libc::c_long) -> Option<Answered> {
        use libc::{AT_REMOVEDIR, O_CREAT, O_TRUNC, O_WRONLY};

        use super::world::HERE;
        let nofollow = libc::AT_SYMLINK_NOFOLLOW as u32;
        let (first, second) = (self.word(0), self.word(1));
        let (mode, third) = (self.uint(1), self.uint(2));
        Some(match number {
            libc::SYS_open => self.open(HERE, first, mode, third),
            libc::SYS_creat => self.open(HERE, first, (O_CREAT | O_WRONLY | O_TRUNC) as u32, mode),
            libc::SYS_stat => self.stat(HERE, first, second, 0),
            libc::SYS_lstat => self.stat(HERE, first, second, nofollow),
            libc::SYS_access => self.access(HERE, first, mode, 0),
            libc::SYS_readlink => self.readlink(HERE, first, second, self.word(2)),
            libc::SYS_mkdir => self.mkdir(HERE, first, mode),
            libc::SYS_rmdir => self.unlink(HERE, first, AT_REMOVEDIR as u32),
            libc::SYS_unlink => self.unlink(HERE, first, 0),
            libc::SYS_rename => self.rename((HERE, first), (HERE, second), 0),
            libc::SYS_link => self.link((HERE, first), (HERE, second), 0),
            libc::SYS_symlink => self.symlink(first, HERE, second),
            libc::SYS_mknod => self.mknod(HERE, first, mode, self.word(2)),
            libc::SYS_chmod => self.reach_path(0, true).and_then(|file| self.chmod(file, mode)),
            libc::SYS_chown => self.reach_path(0, true).and_then(|file| self.chown(file, mode, third)),
            libc::SYS_lchown => self.reach_path(0, false).and_then(|file| self.chown(file, mode, third)),
            libc::SYS_utime => self.seconds(second).and_then(|times| self.utimens(HERE, first, 0, times)),
            libc::SYS_utimes => self.timevals(second).and_then(|times| self.utimens(HERE, first, 0, times)),
            libc::SYS_futimesat => {
                self.timevals(self.word(2)).and_then(|times| self.utimens(self.int(0), second, 0, times))
            }
            _ => return None,
        })
    }
}
