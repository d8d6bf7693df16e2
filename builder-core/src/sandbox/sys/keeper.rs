//! A process between the builder and a command that has no pid namespace: all that the command leaves behind becomes its
//! child, and it ends them, when the command has ended and when the builder is gone.
//!
//! It is a copy of the builder, made by `clone`, so the module's rule holds for all of it: nothing is allocated or locked.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};

use super::program::gaps;
use super::{Child, PROCESS_PATH_BYTES, Program, SignalsBlocked, child, clone, pipe};
use crate::sandbox::ExitStatus;

/// A command that is kept.
#[derive(Debug)]
pub struct Kept {
    /// The keeper. When it has ended, nothing is left of the command.
    pub keeper: Child,
    /// The number of the command.
    pub command: i32,
    /// Closed, it makes the keeper end everything.
    lifeline: RefCell<Option<OwnedFd>>,
    messages: OwnedFd,
}

/// What the keeper says: kind and value, each `u32`.
const STARTED: u32 = 0;
const EXITED: u32 = 1;
const KILLED: u32 = 2;
const FAILED: u32 = 3;

impl Kept {
    /// Starts `program`, whose descriptors must be in order ([`Program::close_others`]), in the namespaces `flags`
    /// (`CLONE_NEW…`, but no pid namespace) below a new keeper, which keeps `held` open until the end: locks, that are
    /// others' once nothing is left of the command.
    ///
    /// # Errors
    /// `EMFILE`, `EAGAIN` and the like; as [`super::start`] for the namespaces.
    pub fn start(program: &Program, flags: i32, held: &[OwnedFd]) -> io::Result<Self> {
        let (messages, message) = pipe()?;
        let (end, lifeline) = pipe()?;
        let (closed, open) = pipe()?;
        let own: Vec<u32> = [&message, &end].into_iter().chain(held).map(|fd| fd.as_raw_fd().cast_unsigned()).collect();
        // What the keeper closes before, and what after it has started the command.
        let mut both = program.descriptors();
        both.extend(&own);
        let task = Task { program, flags, before: gaps(both), after: gaps(own), message: &message, end: &end };
        let gate = super::START.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mask = SignalsBlocked::new();
        // SAFETY: the child runs `keep`, which neither allocates nor locks and never returns.
        let keeper = match unsafe { clone(0)? } {
            Some(keeper) => keeper,
            None => keep(&task),
        };
        drop(mask);
        drop(open);
        // The end of the pipe: the keeper has closed what it does not need, see `START`.
        _ = rustix::io::retry_on_intr(|| rustix::io::read(&closed, &mut [0; 1]));
        drop(gate);
        drop((message, end));
        let mut kept = Self { keeper, command: 0, lifeline: RefCell::new(Some(lifeline)), messages };
        let error = match kept.message() {
            Some((STARTED, command)) => {
                kept.command = command.cast_signed();
                return Ok(kept);
            }
            Some((_, errno)) => io::Error::from_raw_os_error(errno.cast_signed()),
            None => io::ErrorKind::UnexpectedEof.into(),
        };
        // It ends by itself.
        _ = kept.keeper.wait();
        Err(error)
    }

    /// Makes the keeper end the command and everything that came of it.
    pub fn end(&self) {
        drop(self.lifeline.take());
    }

    /// How the command ended, once the keeper has; its end is waited for.
    ///
    /// # Errors
    /// If somebody else waited for the keeper.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        let status = match self.message() {
            Some((EXITED, code)) => Some(ExitStatus::Code(code.cast_signed())),
            Some((KILLED, signal)) => Some(ExitStatus::Signal(signal.cast_signed())),
            _ => None,
        };
        let keeper = self.keeper.wait()?;
        Ok(status.unwrap_or(keeper))
    }

    fn message(&self) -> Option<(u32, u32)> {
        let mut bytes = [0; 8];
        let length = rustix::io::retry_on_intr(|| rustix::io::read(&self.messages, &mut bytes[..]));
        let [kind, value] =
            [0, 4].map(|at| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        (length == Ok(8)).then_some((kind, value))
    }
}

/// What the keeper reads.
struct Task<'a> {
    program: &'a Program,
    flags: i32,
    before: Vec<(u32, u32)>,
    after: Vec<(u32, u32)>,
    message: &'a OwnedFd,
    end: &'a OwnedFd,
}

/// The keeper.
fn keep(task: &Task<'_>) -> ! {
    match keep_or_fail(task) {
        Ok(()) => exit(0),
        Err(errno) => {
            say(task, FAILED, errno.raw_os_error().cast_unsigned());
            end_all();
            exit(1)
        }
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: ends the process without running anything of the builder's.
    unsafe { libc::_exit(code) }
}

fn say(task: &Task<'_>, kind: u32, value: u32) {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&kind.to_ne_bytes());
    bytes[4..].copy_from_slice(&value.to_ne_bytes());
    // If the builder is gone there is nobody to tell.
    _ = rustix::io::write(task.message, &bytes);
}

fn keep_or_fail(task: &Task<'_>) -> Result<(), Errno> {
    child::close_descriptors(&task.before)?;
    // Away from the group and terminal that a Ctrl-C goes to: the builder cancels in order.
    rustix::process::setsid()?;
    // SAFETY: prctl with plain numbers. Orphans of the command become children of this process.
    if unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) } != 0 {
        return Err(super::last_errno());
    }
    // SAFETY: the child runs `child::run`, which neither allocates nor locks and never returns.
    let command = match unsafe { clone(task.flags) } {
        Ok(Some(command)) => command,
        // SAFETY: this is the child of the clone above.
        Ok(None) => unsafe { child::run(task.program) },
        Err(error) => return Err(Errno::from_io_error(&error).unwrap_or(Errno::AGAIN)),
    };
    say(task, STARTED, command.pid.cast_unsigned());
    let pidfd = command.pidfd.as_raw_fd().cast_unsigned();
    for &(first, last) in &task.after {
        // Its own number lies somewhere in the gaps.
        for part in [(first, last.min(pidfd.wrapping_sub(1))), (first.max(pidfd + 1), last)] {
            if part.0 <= part.1 && !(part.0..=part.1).contains(&pidfd) {
                child::close_descriptors(&[part])?;
            }
        }
    }
    // 0, 1 and 2 are the builder's own.
    child::close_descriptors(&[(0, 2)])?;
    let ended = ended_children()?;
    loop {
        let mut fds = [
            PollFd::new(&command.pidfd, PollFlags::IN),
            PollFd::new(task.end, PollFlags::IN),
            PollFd::new(&ended, PollFlags::IN),
        ];
        match rustix::event::poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Ok(_) if !fds[0].revents().is_empty() => {
                match command.wait() {
                    Ok(ExitStatus::Code(code)) => say(task, EXITED, code.cast_unsigned()),
                    Ok(ExitStatus::Signal(signal)) => say(task, KILLED, signal.cast_unsigned()),
                    Err(_) => {}
                }
                break;
            }
            Ok(_) if !fds[1].revents().is_empty() => break,
            Ok(_) => {
                // One signal stands for all who ended before it was read.
                _ = rustix::io::read(&ended, &mut [0_u8; SIGNAL_BYTES]);
                reap_orphans(command.pid);
            }
            Err(errno) => return Err(errno),
        }
    }
    end_all();
    Ok(())
}

/// `struct signalfd_siginfo`
const SIGNAL_BYTES: usize = 128;

/// A descriptor that can be read when a child has ended: signalfd(2). All signals are blocked here, see [`SignalsBlocked`].
fn ended_children() -> Result<OwnedFd, Errno> {
    // SAFETY: the set is plain memory, filled by the calls.
    let fd = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    // SAFETY: the kernel has just made this descriptor, which nobody else owns.
    if fd < 0 { Err(super::last_errno()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd) }) }
}

/// Waits for orphans that have ended, so that their numbers mean nobody any more; not for the command, whose end is told by its
/// descriptor.
fn reap_orphans(command: i32) {
    loop {
        // SAFETY: an all-zero siginfo_t is a valid value of that plain C struct, and valid for writing.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        let options = libc::WEXITED | libc::WNOHANG | libc::__WALL;
        // SAFETY: as above.
        let found = unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, options | libc::WNOWAIT) };
        // SAFETY: waitid fills the fields of SIGCHLD, or leaves zeros.
        let pid = unsafe { info.si_pid() };
        if found != 0 || pid == 0 || pid == command {
            return;
        }
        // SAFETY: as above.
        unsafe { libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut info, options) };
    }
}

/// Kills all children until there are none: those of a killed one become this process's own.
fn end_all() {
    loop {
        each_child(|pid| _ = rustix::process::kill_process(pid, Signal::KILL));
        let mut status = 0;
        // SAFETY: the number is valid for writing.
        let waited = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL) };
        if waited == -1 && super::last_errno() == Errno::CHILD {
            return;
        }
        // SAFETY: as above.
        while unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::WNOHANG) } > 0 {}
    }
}

/// Every process whose parent this one is: proc(5).
fn each_child(mut act: impl FnMut(Pid)) {
    let own = rustix::process::getpid().as_raw_nonzero().get();
    // Without /proc there is nothing to be done.
    _ = super::each_process(|pid, path| {
        let mut place = [0_u8; PROCESS_PATH_BYTES + 5];
        let directory = path.to_bytes();
        place[..directory.len()].copy_from_slice(directory);
        place[directory.len()..directory.len() + 5].copy_from_slice(b"/stat");
        let Ok(path) = std::ffi::CStr::from_bytes_until_nul(&place) else { return };
        let Ok(file) = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else { return };
        let mut text = [0; 512];
        let Ok(length) = rustix::io::read(&file, &mut text[..]) else { return };
        if parent(&text[..length]) == Some(own) {
            act(pid);
        }
    });
}

/// The parent in a line of /proc/PID/stat. The name before it may hold anything.
fn parent(stat: &[u8]) -> Option<i32> {
    let after = stat.iter().rposition(|&byte| byte == b')')?;
    // ") S PARENT …"
    let mut fields = stat[after + 1..].split(|&byte| byte == b' ').filter(|field| !field.is_empty());
    super::number(fields.nth(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_read() {
        assert_eq!(parent(b"12 (a) b) S 7 12 12 0 -1 x"), Some(7));
        assert_eq!(parent(b"12 (sh"), None);
    }
}
