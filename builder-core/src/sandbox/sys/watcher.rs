//! Kills a sandbox whose builder was killed.
//!
//! Process 1 of a sandbox asks the kernel to die with its parent, but that wish is dropped when it executes a setuid program
//! (`RUN ["sudo", "make"]`): prctl(2), PR_SET_PDEATHSIG. So there is a second one that nothing in the sandbox can reach.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::event::{PollFd, PollFlags};

use super::{Child, SignalsBlocked, pipe};

/// Stack of the watching process, in bytes: it calls a handful of functions that have no buffers.
const STACK_BYTES: usize = 64 * 1024;

/// A process that shares this one's memory (so that it costs none, however much the builder changes in the meantime), but not
/// its life. It ends with the sandbox or after the builder, whichever is first.
pub struct Watcher {
    process: Child,
    /// The watcher sees the end of this pipe when the builder is gone.
    lifeline: Option<OwnedFd>,
    stack: Stack,
    /// Read by the watching process.
    _task: Box<Task>,
}

/// What the watching process looks at, by its own descriptor numbers.
struct Task {
    sandbox: RawFd,
    lifeline: RawFd,
}

struct Stack(*mut c_void);

// SAFETY: the memory is used by the watching process only, and given back by whoever drops it after that has ended.
unsafe impl Send for Stack {}

impl Drop for Stack {
    fn drop(&mut self) {
        // SAFETY: mapped by `Watcher::new` with this length; its only user has ended.
        unsafe { libc::munmap(self.0, STACK_BYTES) };
    }
}

impl Watcher {
    /// Watches `sandbox`, the process 1 of a sandbox.
    ///
    /// # Errors
    /// `EMFILE`, `ENOMEM` and the like.
    pub fn new(sandbox: BorrowedFd<'_>) -> io::Result<Self> {
        let (end, lifeline) = pipe()?;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let stack = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_STACK;
            libc::mmap(ptr::null_mut(), STACK_BYTES, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0)
        };
        if stack == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let stack = Stack(stack);
        let mut task = Box::new(Task { sandbox: sandbox.as_raw_fd(), lifeline: end.as_raw_fd() });
        let mut pidfd: RawFd = -1;
        // They stay blocked in the watching process: no handler of the builder shall run there, in shared memory.
        let mask = SignalsBlocked::new();
        // SAFETY: the stack is ours and grows down from its end; `task` and the stack live in `self` until the process has
        // ended (see `drop`). CLONE_VM shares memory with a process that may have threads: `watch` keeps to system calls
        // that touch neither allocator, locks nor errno. The descriptor table is a copy.
        let pid = unsafe {
            let top = stack.0.byte_add(STACK_BYTES);
            let flags = libc::CLONE_VM | libc::CLONE_PIDFD;
            libc::clone(watch, top, flags, ptr::from_mut(&mut *task).cast(), &raw mut pidfd)
        };
        let error = io::Error::last_os_error();
        drop(mask);
        if pid == -1 {
            return Err(error);
        }
        // SAFETY: the kernel has just put a new descriptor there, which nobody else owns.
        let process = Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } };
        Ok(Self { process, lifeline: Some(lifeline), stack, _task: task })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Its stack must not go before it does.
        drop(self.lifeline.take());
        self.process.kill();
        if self.process.wait().is_err() {
            // Nobody else can have waited for it; if so all the same, losing a page is better than pulling it away.
            std::mem::forget(std::mem::replace(&mut self.stack, Stack(ptr::null_mut())));
        }
    }
}

/// Runs in the watching process.
extern "C" fn watch(task: *mut c_void) -> c_int {
    // SAFETY: `Watcher` keeps the task until this process has ended, and so does a builder that is killed: its memory stays
    // as long as this process has it.
    let task = unsafe { &*task.cast::<Task>() };
    let mut keep = [task.sandbox, task.lifeline];
    if keep[0] > keep[1] {
        keep.swap(0, 1);
    }
    // Descriptors of the builder would keep other pipes open, and this pipe's other end is among them.
    let mut first = 0;
    for kept in keep {
        close_range(first, kept - 1);
        first = kept + 1;
    }
    close_range(first, RawFd::MAX);
    // Away from the process group, which may be killed as a whole.
    _ = rustix::process::setsid();
    // SAFETY: both are open in this process's own table until it ends.
    let (sandbox, lifeline) = unsafe { (BorrowedFd::borrow_raw(task.sandbox), BorrowedFd::borrow_raw(task.lifeline)) };
    let mut fds = [PollFd::from_borrowed_fd(sandbox, PollFlags::IN), PollFd::from_borrowed_fd(lifeline, PollFlags::IN)];
    while rustix::event::poll(&mut fds, None) == Err(rustix::io::Errno::INTR) {}
    if fds[0].revents().is_empty() {
        _ = rustix::process::pidfd_send_signal(sandbox, rustix::process::Signal::KILL);
    }
    0
}

/// close_range(2) without errno, which belongs to a thread of the builder here; an empty range is nothing.
fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: descriptors of the calling process's own table, none of which is used again. On success errno is not
        // touched, and it fails only for ranges that are upside down.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sandbox::ExitStatus;

    #[test]
    fn kills_what_it_watches_when_the_pipe_ends() {
        let sleeper = std::process::Command::new("sleep").arg("3600").spawn().expect("sleep(1)");
        let pid = rustix::process::Pid::from_child(&sleeper);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd");
        let mut watcher = Watcher::new(pidfd.as_fd()).expect("watcher");
        drop(watcher.lifeline.take());
        let mut sleeper = sleeper;
        let end = sleeper.wait().expect("wait");
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&end), Some(libc::SIGKILL));
        assert_eq!(watcher.process.wait().expect("wait"), ExitStatus::Code(0));
        std::mem::forget(watcher);
    }

    #[test]
    fn ends_with_what_it_watches() {
        let mut done = std::process::Command::new("true").spawn().expect("true(1)");
        let pid = rustix::process::Pid::from_child(&done);
        let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("pidfd");
        let watcher = Watcher::new(pidfd.as_fd()).expect("watcher");
        assert!(done.wait().expect("wait").success());
        assert_eq!(watcher.process.wait().expect("wait"), ExitStatus::Code(0));
        std::mem::forget(watcher);
    }
}
