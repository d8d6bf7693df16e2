//! System calls that no safe wrapper offers. The only module of the workspace with `unsafe`.
//!
//! Two kinds of thing are here: thin wrappers (each names its man page and why the call is sound), and the code that runs
//! between `clone` and `execve` ([`child`]), which has one rule: **nothing may be allocated or locked**. The process that is
//! cloned may have threads; another thread can hold the allocator's lock at that moment, and in the child nobody will ever
//! release it. So the parent prepares everything as a [`Program`], and the child only reads it.

#![allow(unsafe_code, reason = "the one place for system calls without a safe wrapper")]

pub mod bpf;
mod child;
pub mod heap;
mod keeper;
pub mod landlock;
pub mod memory;
pub mod notify;
mod program;
pub mod ptrace;
pub mod raw;
pub mod seccomp;
mod trial;
mod watcher;

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

pub use keeper::Kept;
pub use program::{Arguments, Op, Program, Step};
pub use trial::{Ids, Outsider, Refused, try_namespaces, write_own_maps};
pub use watcher::Watcher;

use rustix::io::Errno;

use super::ExitStatus;

/// The number of an error that comes from the kernel; `EIO` of others.
pub fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// A process that this one made.
#[derive(Debug)]
pub struct Child {
    /// Its id, in the namespace of the caller.
    pub pid: i32,
    /// Stays with the process when the id is used again: pidfd_open(2).
    pub pidfd: OwnedFd,
}

impl Child {
    /// Kills it; if it is process 1 of a pid namespace, all others there with it. Fine if it has ended.
    pub fn kill(&self) {
        // ESRCH: it has ended already.
        _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }

    /// Kills it and waits until it is gone.
    pub fn end(&self) {
        self.kill();
        // ECHILD: it is gone.
        _ = self.wait();
    }

    /// Waits for its end: waitid(2).
    ///
    /// # Errors
    /// `ECHILD` if somebody else has waited for it.
    pub fn wait(&self) -> io::Result<ExitStatus> {
        // SAFETY: an all-zero siginfo_t is a valid value of that plain C struct.
        let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
        // __WALL: the process was cloned without an exit signal, so that neither a SIGCHLD handler nor a `wait(-1)` of the
        // program around this library ever meets it.
        let options = libc::WEXITED | libc::__WALL;
        let id = self.pidfd.as_raw_fd().cast_unsigned();
        loop {
            // SAFETY: `info` is valid for writing; the descriptor is owned by `self`.
            if unsafe { libc::waitid(libc::P_PIDFD, id, &raw mut info, options) } == 0 {
                break;
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
        // SAFETY: waitid succeeded, so the fields of a SIGCHLD siginfo are set.
        let status = unsafe { info.si_status() };
        Ok(if info.si_code == libc::CLD_EXITED { ExitStatus::Code(status) } else { ExitStatus::Signal(status) })
    }
}

/// Held from the clone of a child until that has closed what it need not have.
///
/// A child begins with a copy of every descriptor, also of files that other threads are writing just then: the programs of
/// another tree, say. Until the copy is closed nobody can execute such a file (execve(2), `ETXTBSY`), although its writer has
/// long closed it. So a child is started only once all earlier ones are rid of theirs: whatever was written before is then
/// open nowhere. It is a matter of the whole process, as descriptors are.
static START: Mutex<()> = Mutex::new(());

/// Starts `program` in a new process with the namespaces `flags` (`CLONE_NEW…`). The child closes every descriptor that the
/// program does not name before it does anything else, and has done so when this returns.
///
/// # Errors
/// What clone(2) says: `EPERM` without the right to make the namespaces, `EINVAL` for namespaces the kernel does not have.
/// `EMFILE`
pub fn start(program: &Program, flags: i32) -> io::Result<Child> {
    // Its other end is among what the child closes.
    let (closed, open) = pipe()?;
    let gate = START.lock().unwrap_or_else(PoisonError::into_inner);
    let mask = SignalsBlocked::new();
    // SAFETY: the child runs `child::run`, which neither allocates nor locks and never returns.
    let forked = unsafe { clone(flags) };
    match forked? {
        Some(child) => {
            drop(mask);
            drop(open);
            // The end of the pipe, or an error that says no more; the child tells itself what fails.
            _ = rustix::io::retry_on_intr(|| rustix::io::read(&closed, &mut [0; 1]));
            drop(gate);
            Ok(child)
        }
        // SAFETY: this is the child of the clone above, with its own copy of everything `program` refers to.
        None => unsafe { child::run(program) },
    }
}

/// clone(2) as fork, with `CLONE_PIDFD` and without an exit signal; `None` in the child.
///
/// # Safety
/// The child must obey the module's rule.
unsafe fn clone(flags: i32) -> io::Result<Option<Child>> {
    let mut pidfd: RawFd = -1;
    let flags = libc::c_long::from(flags | libc::CLONE_PIDFD);
    // clone and not clone3: container runtimes refuse clone3 because seccomp cannot see its flags. Flags, stack and the place
    // for the pidfd come first on x86-64 and on aarch64 alike; without CLONE_SETTLS the order of the rest does not matter.
    //
    // SAFETY: no CLONE_VM, so the child has its own memory and a null stack means "go on with a copy of mine". `pidfd` is
    // valid for writing. The caller vouches for what the child does.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        // SAFETY: the kernel has just put a new descriptor there, which nobody else owns. A pid fits an i32.
        _ => Ok(Some(Child { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })),
    }
}

/// Blocks all signals of this thread: between `clone` and the child's reset no handler of the parent may run in the child.
struct SignalsBlocked(libc::sigset_t);

impl SignalsBlocked {
    fn new() -> Self {
        // SAFETY: both sets are plain memory, filled by the calls; pthread_sigmask(3) with valid pointers.
        unsafe {
            let mut all: libc::sigset_t = mem::zeroed();
            let mut before: libc::sigset_t = mem::zeroed();
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before);
            Self(before)
        }
    }
}

impl Drop for SignalsBlocked {
    fn drop(&mut self) {
        // SAFETY: the set was filled by `new`.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut()) };
    }
}

/// Leaves namespaces of the calling thread: unshare(2). Neither allocates nor locks.
///
/// # Errors
/// What the kernel says; `EINVAL` for a user namespace if the process has more than one thread.
pub fn unshare(flags: rustix::thread::UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(rustix::thread::UnshareFlags::FILES), "would part threads from their descriptors");
    // SAFETY: the danger named by rustix is CLONE_FILES alone.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Changes of a mount: mount_setattr(2).
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub struct MountAttributes {
    /// `MOUNT_ATTR_…` to set.
    pub set: u64,
    /// `MOUNT_ATTR_…` to clear.
    pub clear: u64,
    /// `MS_PRIVATE` and the like; 0 leaves it.
    pub propagation: u64,
    userns_fd: u64,
}

impl MountAttributes {
    /// These flags set, propagation private: what every mount of a sandbox gets. Without it a mount below a bind of the
    /// host's shared `/` would appear on the host too.
    pub const fn private(set: u32) -> Self {
        Self { set: set as u64, clear: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 }
    }
}

/// Changes `mount` and, if `recursive`, all mounts in it: mount_setattr(2), since Linux 5.12. Neither allocates nor locks.
///
/// # Errors
/// `EPERM` where a flag is locked by a user namespace further out, `ENOSYS` before Linux 5.12.
pub fn mount_setattr(
    mount: BorrowedFd<'_>,
    attributes: &MountAttributes,
    recursive: bool,
) -> Result<(), rustix::io::Errno> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, the struct has the layout and size of `struct mount_attr`, version 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttributes>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// Bytes of `/proc/` and the longest number of a process, with a NUL.
const PROCESS_PATH_BYTES: usize = 17;

/// Every process that /proc shows, with its path there. Neither allocates nor locks.
fn each_process(mut act: impl FnMut(rustix::process::Pid, &std::ffi::CStr)) -> Result<(), Errno> {
    use rustix::fs::{Mode, OFlags, RawDir};
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open(c"/proc", flags, Mode::empty())?;
    let mut buffer = [mem::MaybeUninit::uninit(); 8192];
    let mut directory = RawDir::new(proc.as_fd(), &mut buffer);
    while let Some(entry) = directory.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let Some(pid) = number(name).and_then(rustix::process::Pid::from_raw) else { continue };
        let mut path = *b"/proc/\0\0\0\0\0\0\0\0\0\0\0";
        path[6..6 + name.len()].copy_from_slice(name);
        if let Ok(path) = std::ffi::CStr::from_bytes_until_nul(&path) {
            act(pid, path);
        }
    }
    Ok(())
}

/// Ten digits at most.
fn number(text: &[u8]) -> Option<i32> {
    if text.is_empty() || text.len() > 10 {
        return None;
    }
    text.iter().try_fold(0_i32, |sum, digit| {
        digit.is_ascii_digit().then(|| sum.checked_mul(10)?.checked_add(i32::from(digit - b'0'))).flatten()
    })
}

fn last_errno() -> rustix::io::Errno {
    // SAFETY: gives the address of this thread's errno.
    rustix::io::Errno::from_raw_os_error(unsafe { *libc::__errno_location() })
}

/// A pipe whose ends are closed by exec and are not 0, 1 or 2, so that they survive the child's arranging of those.
///
/// # Errors
/// `EMFILE`
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((above_stdio(reader)?, above_stdio(writer)?))
}

/// Two connected sockets, closed by exec, both above 2.
///
/// # Errors
/// `EMFILE`
pub fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    let (one, other) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((above_stdio(one)?, above_stdio(other)?))
}

/// Waits for the descriptor that [`Op::Listen`] sends; `None` if the other end is closed instead.
///
/// # Errors
/// What the kernel says.
pub fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut space = [mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| recvmsg(socket, &mut [io::IoSliceMut::new(&mut byte)], &mut ancillary, flags))?;
    let mut received = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut rights) => rights.next(),
        _ => None,
    });
    received.next().map(above_stdio).transpose()
}

/// The same file under a number above 2.
///
/// # Errors
/// `EMFILE`
pub fn above_stdio(descriptor: OwnedFd) -> io::Result<OwnedFd> {
    if descriptor.as_raw_fd() > 2 {
        return Ok(descriptor);
    }
    Ok(rustix::io::fcntl_dupfd_cloexec(descriptor.as_fd(), 3)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_processes_are_told() {
        #[track_caller]
        fn check(end: fn(), expected: ExitStatus) {
            // SAFETY: the functions make one system call.
            let child = match unsafe { clone(0) }.expect("clone") {
                Some(child) => child,
                None => {
                    end();
                    unreachable!("ended")
                }
            };
            assert_eq!(child.wait().expect("wait"), expected);
        }
        // SAFETY: plain system calls.
        check(|| unsafe { libc::_exit(37) }, ExitStatus::Code(37));
        check(
            || unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
            },
            ExitStatus::Signal(libc::SIGKILL),
        );
    }

    #[test]
    fn processes_are_found() {
        assert_eq!(number(b"2147483647"), Some(i32::MAX));
        assert_eq!([&b"2147483648"[..], b"self", b"", b"12345678901"].map(number), [None; 4]);
        let own = rustix::process::getpid();
        let mut found = Vec::new();
        each_process(|pid, path| found.push((pid, path.to_owned()))).expect("/proc");
        let path = std::ffi::CString::new(format!("/proc/{}", own.as_raw_nonzero())).expect("no NUL");
        assert!(found.contains(&(own, path)));
    }

    /// Writes a program and executes it at once, in several threads: no other thread's child may hold it open.
    #[test]
    fn what_was_just_written_can_be_executed() {
        let program = std::fs::read("/bin/true").expect("true(1)");
        let dir = tempfile::tempdir().expect("directory");
        let one = |path: &std::path::Path| -> io::Result<ExitStatus> {
            use std::os::unix::ffi::OsStrExt as _;
            use std::os::unix::fs::OpenOptionsExt as _;
            let mut file = std::fs::File::options().create(true).truncate(true).write(true).mode(0o755).open(path)?;
            io::Write::write_all(&mut file, &program)?;
            drop(file);
            let (reader, report) = pipe()?;
            let mut program = Program {
                steps: Vec::new(),
                candidates: vec![std::ffi::CString::new(path.as_os_str().as_bytes())?],
                argv: Arguments::new(["true"])?,
                env: Arguments::new([""; 0])?,
                report,
            };
            program.close_others();
            let child = start(&program, 0)?;
            drop(program);
            let status = child.wait()?;
            let mut bytes = [0; 8];
            match rustix::io::read(&reader, &mut bytes)? {
                0 => Ok(status),
                _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]))),
            }
        };
        std::thread::scope(|scope| {
            for number in 0..4 {
                let path = dir.path().join(format!("program-{number}"));
                scope.spawn(move || {
                    for _ in 0..100 {
                        assert_eq!(one(&path).expect("it runs"), ExitStatus::Code(0));
                    }
                });
            }
        });
    }
}
