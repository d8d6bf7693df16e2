//! Trying out in a child process whether system calls of a command can be answered by this process.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{AtFlags, CWD, MemfdFlags, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::thread::CapabilitySet;

use super::command::read_report;
use super::remedies::Status;
use super::sys::bpf::{self, Action, Rule};
use super::sys::notify::{Listener, Reply};
use super::sys::{self, Arguments, Child, Op, Program, Step, memory, ptrace};

/// What is going to be done with the supervision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Supervised<'a> {
    /// Root in a chroot, with seccomp notification.
    InChroot,
    /// Anybody, with seccomp notification.
    Guarded,
    /// The same, and ptrace.
    Traced,
    /// The same for processes in a user namespace of their own, over which this one has all capabilities, as their owner from
    /// outside or as its root from inside. `CAP_SYS_PTRACE` is what Yama's `ptrace_scope` of 2 asks for.
    TracedInNamespace {
        /// For `uid_map`.
        uid_map: &'a [u8],
        /// For `gid_map`.
        gid_map: &'a [u8],
    },
}

/// What was refused first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A process.
    Process,
    /// chroot(2)
    Chroot,
    /// A user namespace.
    Namespace,
    /// Capabilities with which root becomes another user.
    Ids,
    /// prctl(2), PR_SET_NO_NEW_PRIVS.
    NoNewPrivileges,
    /// seccomp(2) with SECCOMP_FILTER_FLAG_NEW_LISTENER, or what belongs to it.
    Notification,
    /// process_vm_readv(2)
    Memory,
    /// ptrace(2)
    Tracing,
    /// A call that files are found, looked at or made with.
    Call(&'static str),
}

/// What root needs to be other users and to give them files: what container runtimes leave it, without
/// `SYS_CHROOT`, which is tried.
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::KILL);

/// How long the child of a trial may take: far more than it needs on a machine that is busy.
const LIMIT: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What the trial's call is answered with: none of its own errors.
const ANSWER: Errno = Errno::XFULL;

/// Makes the calls that every tier's look at a tree needs and that profiles made for older programs refuse.
///
/// # Errors
/// Which was refused, and why.
pub fn try_calls() -> Result<(), (Missing, io::Error)> {
    let named = |name| move |errno: Errno| (Missing::Call(name), errno.into());
    let (flags, how) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS);
    let root = rustix::fs::openat2(CWD, "/", flags, Mode::empty(), how).map_err(named("openat2"))?;
    rustix::fs::statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS).map_err(named("statx"))?;
    rustix::fs::memfd_create("trial", MemfdFlags::CLOEXEC).map_err(named("memfd_create"))?;
    Ok(())
}

/// Does in a child process what a supervised RUN needs.
///
/// # Errors
/// What was refused first, and why.
pub fn try_supervision(kind: Supervised<'_>) -> Result<(), (Missing, io::Error)> {
    let early = |error: io::Error| (Missing::Process, error);
    if kind == Supervised::InChroot && Status::read().capabilities & NEEDED.bits() != NEEDED.bits() {
        return Err((Missing::Ids, Errno::PERM.into()));
    }
    let (socket, ours) = sys::socket_pair().map_err(early)?;
    let (report, reporter) = sys::pipe().map_err(early)?;
    let mut steps = vec![step(Op::Session)];
    let mut refusals = vec![Missing::Process; 2];
    if kind == Supervised::InChroot {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let tree = root.map_err(|errno| early(errno.into()))?;
        steps.push(step(Op::EnterChroot { tree }));
        refusals.push(Missing::Chroot);
    }
    if let Supervised::TracedInNamespace { uid_map, gid_map } = kind {
        steps.push(step(Op::UserNamespace { uid_map: uid_map.to_owned(), gid_map: gid_map.to_owned() }));
        refusals.push(Missing::Namespace);
    }
    steps.push(step(Op::NoNewPrivileges));
    refusals.push(Missing::NoNewPrivileges);
    let filter = bpf::filter(&[Rule::always(libc::SYS_execve, Action::Notify)], Action::Allow);
    steps.push(step(Op::Listen { filter, socket }));
    refusals.push(Missing::Notification);

    let nothing = || Arguments::new(std::iter::empty::<&str>()).map_err(early);
    let candidates = vec![CString::from(c"/slipway")];
    let mut program = Program { steps, candidates, argv: nothing()?, env: nothing()?, report: reporter };
    program.close_others();
    let child = sys::start(&program, 0).map_err(early)?;
    let path = program.candidates[0].as_ptr().addr() as u64;
    // Our ends: as long as they are open, the other ones do not see the end.
    program.steps.clear();
    let Program { report: reporter, candidates, .. } = program;
    drop(reporter);
    let result = converse(kind, &child, &ours, path);
    child.kill();
    _ = child.wait();
    drop(candidates);
    match (result, read_report(&report)) {
        // It said itself what failed, which is more than its silence says.
        (Err(_), Some((number, error))) if (number as usize) < refusals.len() => {
            Err((refusals[number as usize], error))
        }
        (result, _) => result,
    }
}

fn step(op: Op) -> Step {
    Step { what: String::new(), op }
}

/// The supervisor's part: `path` is where the child's memory holds the path it is going to execute.
fn converse(kind: Supervised<'_>, child: &Child, socket: &OwnedFd, path: u64) -> Result<(), (Missing, io::Error)> {
    let at = |missing| move |error: io::Error| (missing, error);
    let silent = || io::Error::from(Errno::TIMEDOUT);
    wait_for(socket).map_err(at(Missing::Notification))?;
    let listener = sys::receive_descriptor(socket.as_fd()).map_err(at(Missing::Notification))?;
    let listener = Listener::new(listener.ok_or_else(silent).map_err(at(Missing::Notification))?);
    if matches!(kind, Supervised::Traced | Supervised::TracedInNamespace { .. }) {
        ptrace::seize(child.pid).map_err(|errno| (Missing::Tracing, errno.into()))?;
    }
    rustix::io::write(socket, &[0]).map_err(|errno| (Missing::Notification, errno.into()))?;
    wait_for(&listener).map_err(at(Missing::Notification))?;
    let call = listener.receive().and_then(|call| call.ok_or_else(silent)).map_err(at(Missing::Notification))?;
    let read = memory::read_string(call.thread, path, 100).map_err(|errno| (Missing::Memory, errno.into()))?;
    if read != b"/slipway" {
        return Err((Missing::Memory, Errno::FAULT.into()));
    }
    memory::write(call.thread, path, &read).map_err(|errno| (Missing::Memory, errno.into()))?;
    // Linux 5.9, and not every emulation of it.
    listener.put(call.id, socket.as_fd()).map_err(|errno| (Missing::Notification, errno.into()))?;
    if !listener.reply(call.id, Reply::Error(ANSWER)) {
        return Err((Missing::Notification, Errno::NOENT.into()));
    }
    Ok(())
}

fn wait_for(descriptor: &impl AsFd) -> io::Result<()> {
    let mut fds = [PollFd::new(descriptor, PollFlags::IN)];
    match rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, Some(&LIMIT)))? {
        0 => Err(Errno::TIMEDOUT.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "tests say why they cannot run")]
mod tests {
    use super::*;

    #[test]
    fn a_child_is_answered() {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (uid_map, gid_map) = (format!("0 {uid} 1"), format!("0 {gid} 1"));
        let inside = Supervised::TracedInNamespace { uid_map: uid_map.as_bytes(), gid_map: gid_map.as_bytes() };
        for kind in [Supervised::InChroot, Supervised::Guarded, Supervised::Traced, inside] {
            match try_supervision(kind) {
                Ok(()) => {}
                Err((Missing::Namespace, error)) => println!("skipped: no user namespaces here: {error}"),
                Err((Missing::Ids | Missing::Chroot, error)) if !rustix::process::geteuid().is_root() => {
                    println!("skipped: {kind:?} needs root: {error}");
                }
                Err((missing, error)) => panic!("{kind:?}: {missing:?}: {error}"),
            }
        }
    }
}
