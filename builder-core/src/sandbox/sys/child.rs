//! The code between `clone` and `execve`. See the module's rule: nothing here allocates, locks or panics.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use super::{MountAttributes, Op, Program, last_errno, mount_setattr};

/// Descriptors that steps hand to later ones.
#[derive(Default)]
struct State {
    old_root: Option<OwnedFd>,
    staging: Option<OwnedFd>,
    /// Whether the last `Op::Fresh` took its fallback.
    fell_back: bool,
}

/// Runs the program; ends the process with 127 if it cannot.
///
/// # Safety
/// Only in a child of `clone` that shares no memory with its parent.
pub(super) unsafe fn run(program: &Program) -> ! {
    let mut state = State::default();
    for (number, step) in program.steps.iter().enumerate() {
        if let Err(errno) = perform(&step.op, &mut state, program) {
            fail(program, number as u32, errno);
        }
    }
    let errno = exec(program);
    fail(program, Program::EXEC, errno)
}

fn fail(program: &Program, step: u32, errno: Errno) -> ! {
    let mut report = [0; 8];
    report[..4].copy_from_slice(&step.to_ne_bytes());
    report[4..].copy_from_slice(&errno.raw_os_error().to_ne_bytes());
    // Eight bytes fit any pipe; if the reader is gone there is nobody to tell.
    _ = rustix::io::write(&program.report, &report);
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(127) }
}

fn perform(op: &Op, state: &mut State, program: &Program) -> Result<(), Errno> {
    match op {
        Op::CloseDescriptors { gaps } => close_descriptors(gaps),
        Op::Detach => {
            session(program)?;
            rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        }
        Op::Session => session(program),
        Op::NoNewPrivileges => rustix::thread::set_no_new_privs(true),
        Op::UserNamespace { uid_map, gid_map } => {
            super::unshare(UnshareFlags::NEWUSER)?;
            super::write_own_maps(uid_map, gid_map)
        }
        Op::EnterChroot { tree } => {
            rustix::process::fchdir(tree)?;
            rustix::process::chroot(c".")?;
            rustix::process::chdir(c"/")
        }
        Op::GiveUpPrivileges => give_up_privileges(),
        Op::Restrict { ruleset } => super::landlock::restrict_self(ruleset.as_fd()),
        Op::Listen { filter, socket } => {
            // A copy of a process that nobody may look into is one too, and the supervisor has to. What else is under a
            // supervisor's filter cannot look here.
            rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)?;
            hand_over(install_listener(filter)?, socket.as_fd())
        }
        Op::ListenUnseen { filter, socket } => hand_over(install_listener(filter)?, socket.as_fd()),
        Op::ListenIfPossible { filter, socket } => match install_listener(filter) {
            Ok(listener) => hand_over(listener, socket.as_fd()),
            // No such kernel, or this process is under somebody's listener already. The socket goes with the exec.
            Err(_) => Ok(()),
        },
        Op::EnterRoot { tree } => enter_root(tree.as_fd(), state),
        Op::AttachStaging { mount } => {
            let old_root = state.old_root.as_ref().ok_or(Errno::BADF)?;
            move_to(mount.as_fd(), old_root.as_fd())?;
            state.staging = Some(rustix::io::fcntl_dupfd_cloexec(mount, 3)?);
            Ok(())
        }
        Op::Attach { mount, target } => attach(mount.as_fd(), target),
        Op::AttachIfPossible { mount, target } => {
            _ = attach(mount.as_fd(), target);
            Ok(())
        }
        Op::AttachStaged { name, target, flags } => {
            let staging = state.staging.as_ref().ok_or(Errno::BADF)?;
            attach_clone(staging.as_fd(), name, OpenTreeFlags::empty(), *flags, target)
        }
        Op::Fresh { kind, options, flags, target, fallback, optional } => {
            let mounted = fresh(kind, options, *flags).and_then(|mount| attach(mount.as_fd(), target));
            state.fell_back = mounted.is_err();
            match (mounted, fallback) {
                (Err(_), Some(fallback)) => attach(fallback.as_fd(), target),
                (mounted, _) => mounted,
            }
            .or_else(|errno| if *optional { Ok(()) } else { Err(errno) })
        }
        Op::CoverFallback { name, target } => {
            if !state.fell_back {
                return Ok(());
            }
            let staging = state.staging.as_ref().ok_or(Errno::BADF)?;
            let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
            ignore(Errno::NOENT, attach_clone(staging.as_fd(), name, OpenTreeFlags::empty(), read_only, target))
        }
        Op::MakeDirectories { paths } => {
            for path in paths {
                ignore(Errno::EXIST, rustix::fs::mkdirat(CWD, path.as_c_str(), Mode::from_raw_mode(0o755)))?;
            }
            Ok(())
        }
        Op::MakeFile { path } => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            ignore(Errno::EXIST, rustix::fs::open(path.as_c_str(), flags, Mode::from_raw_mode(0o644)).map(drop))
        }
        Op::Mask { path, empty } => mask(path, empty, state),
        Op::ReadOnly { path } => {
            let clone = attach_clone(CWD, path, OpenTreeFlags::AT_RECURSIVE, MountAttrFlags::MOUNT_ATTR_RDONLY, path);
            ignore(Errno::NOENT, clone)
        }
        Op::ReadOnlyProcesses => {
            let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
            let own = rustix::process::getpid();
            super::each_process(|pid, path| {
                if pid != own {
                    // It may have ended.
                    _ = attach_clone(CWD, path, OpenTreeFlags::empty(), read_only, path);
                }
            })
        }
        Op::LeaveOldRoot => {
            // One after the other: "." is the topmost mount of a stack, and what stayed on the stack of "/" would be where
            // `..` leads from /etc.
            for mount in [state.staging.take(), state.old_root.take()].into_iter().flatten() {
                rustix::process::fchdir(&mount)?;
                rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
            }
            rustix::process::chdir(c"/")
        }
        // podman's own profile allows namespaces and not this; the container's name is then the command's too.
        Op::HostName(name) => match rustix::system::sethostname(name) {
            Err(Errno::PERM) => Ok(()),
            result => result,
        },
        Op::LoopbackUp => loopback_up(),
        Op::Limit { resource, soft, hard } => set_limit(*resource, *soft, *hard),
        Op::WorkingDirectory { path, last_try } => match rustix::process::chdir(path.as_c_str()) {
            Err(Errno::ACCESS | Errno::PERM) if !last_try => Ok(()),
            result => result,
        },
        Op::Standard { input, output, error, uid } => standard(input, output, error, *uid),
        Op::UnblockSignals => unblock_signals(),
        Op::BoundingSet(keep) => bounding_set(*keep),
        Op::Filter(filter) => install_filter(filter),
        Op::Become { uid, gid, groups, capabilities } => {
            if let Some(groups) = groups {
                rustix::thread::set_thread_groups(groups)?;
            }
            let gid = rustix::process::Gid::from_raw(*gid);
            rustix::thread::set_thread_res_gid(gid, gid, gid)?;
            let raw = *uid;
            let uid = rustix::process::Uid::from_raw(raw);
            rustix::thread::set_thread_res_uid(uid, uid, uid)?;
            // A user other than root has lost all of them with its ids.
            let kept = if raw == 0 { *capabilities } else { CapabilitySet::empty() };
            let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
            rustix::thread::set_capabilities(None, sets)?;
            // Changing ids has cleared it: prctl(2), PR_SET_PDEATHSIG.
            die_with_parent(program)?;
            rustix::process::umask(Mode::from_raw_mode(0o022));
            unblock_signals()
        }
    }
}

fn ignore(errno: Errno, result: Result<(), Errno>) -> Result<(), Errno> {
    match result {
        Err(error) if error == errno => Ok(()),
        result => result,
    }
}

/// close_range(2), since Linux 5.9.
pub(super) fn close_descriptors(gaps: &[(u32, u32)]) -> Result<(), Errno> {
    for &(first, last) in gaps {
        // SAFETY: closes descriptors of this process only (a copy of the parent's table), none of which is used again.
        if unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) } != 0 {
            return Err(last_errno());
        }
    }
    Ok(())
}

fn session(program: &Program) -> Result<(), Errno> {
    // The system call itself, because libc keeps two signals back and a builder may have inherited them ignored. Zeros are
    // SIG_DFL, no flags and an empty mask in the kernel's own struct, whatever the order of its fields.
    let default = [0_u64; 4];
    for signal in 1..=64 {
        let no_old = std::ptr::null_mut::<libc::c_void>();
        // SAFETY: 32 bytes are what the kernel reads of `struct sigaction`; its mask has 8. KILL and STOP are refused.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), no_old, 8) };
    }
    rustix::process::setsid()?;
    die_with_parent(program)?;
    rustix::process::umask(Mode::empty());
    Ok(())
}

fn give_up_privileges() -> Result<(), Errno> {
    // Without CAP_SETPCAP nothing can be taken from the bounding set, but then no_new_privs keeps it from mattering.
    _ = bounding_set(CapabilitySet::empty());
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::set_no_new_privs(true)
}

/// `SECCOMP_FILTER_FLAG_NEW_LISTENER`, since Linux 5.0.
const NEW_LISTENER: libc::c_ulong = 1 << 3;

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, since Linux 5.19: a call that the supervisor has begun to perform is not given up
/// and made again because of a signal.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;

/// `SECCOMP_FILTER_FLAG_SPEC_ALLOW`, since Linux 4.17. Without it kernels before 5.16 switch a part of the processor's speculation
/// off for everything under a filter (`spec_store_bypass_disable=seccomp`), which slows down what only computes. Newer ones do so for
/// who asks alone.
const SPECULATION_AS_IT_IS: libc::c_ulong = 1 << 2;

fn install_listener(filter: &[libc::sock_filter]) -> Result<OwnedFd, Errno> {
    match try_listener(filter, NEW_LISTENER | WAIT_KILLABLE | SPECULATION_AS_IT_IS) {
        Err(Errno::INVAL) => try_listener(filter, NEW_LISTENER | SPECULATION_AS_IT_IS),
        listener => listener,
    }
}

/// Sends the listener and waits until the other side is ready.
fn hand_over(listener: OwnedFd, socket: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = rustix::net::SendAncillaryBuffer::new(&mut space);
    let rights = [listener.as_fd()];
    if !ancillary.push(rustix::net::SendAncillaryMessage::ScmRights(&rights)) {
        return Err(Errno::NOBUFS);
    }
    let byte = [std::io::IoSlice::new(&[0])];
    rustix::net::sendmsg(socket, &byte, &mut ancillary, rustix::net::SendFlags::NOSIGNAL)?;
    drop(listener);
    match rustix::io::read(socket, &mut [0_u8; 1][..])? {
        0 => Err(Errno::PIPE),
        _ => Ok(()),
    }
}

fn try_listener(filter: &[libc::sock_filter], flags: libc::c_ulong) -> Result<OwnedFd, Errno> {
    use std::os::fd::FromRawFd;
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: as in `install_filter`.
    let fd = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    // SAFETY: the kernel has just made this descriptor, which nobody else owns.
    if fd < 0 { Err(last_errno()) } else { Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) }) }
}

/// Asks the kernel for SIGKILL when the parent dies; nobody outside can be asked whether it has died already (its id is 0 from
/// within a pid namespace), but then the pipe has no reader any more.
fn die_with_parent(program: &Program) -> Result<(), Errno> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let mut fds = [rustix::event::PollFd::new(&program.report, rustix::event::PollFlags::empty())];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now))?;
    if fds[0].revents().contains(rustix::event::PollFlags::ERR) { Err(Errno::PIPE) } else { Ok(()) }
}

fn enter_root(tree: BorrowedFd<'_>, state: &mut State) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old_root = rustix::fs::open(c"/", flags, Mode::empty())?;
    // Over "/", because that is the one directory that is everywhere; nothing looks paths up before the pivot.
    move_to(tree, old_root.as_fd())?;
    rustix::process::fchdir(tree)?;
    rustix::process::pivot_root(c".", c".")?;
    rustix::process::chdir(c"/")?;
    state.old_root = Some(old_root);
    Ok(())
}

fn move_to(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, c"", target, c"", flags)
}

/// The mount point. Magic links (`/proc/self/fd/…` behind a symbolic link of the image) would lead out of the root.
fn open_target(target: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(CWD, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
}

fn attach(mount: BorrowedFd<'_>, target: &CStr) -> Result<(), Errno> {
    let target = open_target(target)?;
    move_to(mount, target.as_fd())
}

fn attach_clone(
    from: BorrowedFd<'_>,
    name: &CStr,
    how: OpenTreeFlags,
    flags: MountAttrFlags,
    target: &CStr,
) -> Result<(), Errno> {
    let open = how | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = rustix::mount::open_tree(from, name, open | OpenTreeFlags::AT_SYMLINK_NOFOLLOW)?;
    let recursive = how.contains(OpenTreeFlags::AT_RECURSIVE);
    mount_setattr(mount.as_fd(), &MountAttributes::private(flags.bits()), recursive)?;
    attach(mount.as_fd(), target)
}

/// A new instance of a file system, not attached.
pub(super) fn fresh(
    kind: &CStr,
    options: &[(&CStr, std::ffi::CString)],
    flags: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What mount(8) shows, and scripts look for (`grep '^proc '`); "none" where a kernel does not take it.
    _ = rustix::mount::fsconfig_set_string(context.as_fd(), c"source", kind);
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, value.as_c_str())?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)
}

fn mask(path: &CStr, empty: &CStr, state: &State) -> Result<(), Errno> {
    let target = match open_target(path) {
        Ok(target) => target,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let is_directory = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&target)?.st_mode).is_dir();
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY;
    if is_directory {
        let staging = state.staging.as_ref().ok_or(Errno::BADF)?;
        attach_clone(staging.as_fd(), empty, OpenTreeFlags::empty(), read_only, path)
    } else {
        // The outer one: a mount of the RUN may lie on /dev.
        let outer = state.old_root.as_ref().ok_or(Errno::BADF)?;
        attach_clone(outer.as_fd(), c"dev/null", OpenTreeFlags::empty(), MountAttrFlags::empty(), path)
    }
}

/// netdevice(7)
fn loopback_up() -> Result<(), Errno> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    // SAFETY: an all-zero ifreq is valid; the name is shorter than its field and stays terminated; the ioctl reads the struct.
    let result = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request)
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

/// setrlimit(2)
fn set_limit(resource: u32, soft: u64, hard: u64) -> Result<(), Errno> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: pid 0 is this process; the struct is valid for reading; no old limit is asked for.
    let result = unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<libc::c_void>())
    };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn standard(input: &OwnedFd, output: &OwnedFd, error: &OwnedFd, uid: u32) -> Result<(), Errno> {
    for pipe in [output, error] {
        rustix::fs::fchown(pipe, Some(rustix::fs::Uid::from_raw(uid)), None)?;
    }
    for (descriptor, number) in [(input, 0), (output, 1), (error, 2)] {
        // SAFETY: replaces descriptors of this process that no owned value stands for.
        if unsafe { libc::dup2(descriptor.as_raw_fd(), number) } == -1 {
            return Err(last_errno());
        }
    }
    Ok(())
}

/// capabilities(7), "Capability bounding set".
fn bounding_set(keep: CapabilitySet) -> Result<(), Errno> {
    for number in 0..64 {
        if keep.bits() >> number & 1 == 1 {
            continue;
        }
        // SAFETY: prctl with plain numbers.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, number as libc::c_ulong, 0, 0, 0) } != 0 {
            return match last_errno() {
                // The first number the kernel does not know.
                Errno::INVAL => Ok(()),
                errno => Err(errno),
            };
        }
    }
    Ok(())
}

/// seccomp(2). Without no_new_privs (setuid programs shall work) it needs CAP_SYS_ADMIN, so it comes before the ids change.
fn install_filter(filter: &[libc::sock_filter]) -> Result<(), Errno> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    let flags = SPECULATION_AS_IT_IS;
    // SAFETY: the struct and the instructions it points to are valid for reading; the kernel copies them.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    if result == 0 { Ok(()) } else { Err(last_errno()) }
}

fn unblock_signals() -> Result<(), Errno> {
    // SAFETY: an empty set, valid for reading; pthread_sigmask(3) takes no lock.
    let result = unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if result == 0 { Ok(()) } else { Err(Errno::from_raw_os_error(result)) }
}

/// Tries the candidates as execvpe(3) does: one that may not be executed is remembered, one that is missing is not.
fn exec(program: &Program) -> Errno {
    let mut refused = Errno::NOENT;
    for path in &program.candidates {
        match exec_one(path, program) {
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => refused = Errno::ACCESS,
            errno => return errno,
        }
    }
    refused
}

/// How often a busy program is tried again, and how long between; together as long as a child of a stranger on a busy machine
/// may take to its own exec.
const BUSY: (u32, rustix::thread::Timespec) = (100, rustix::thread::Timespec { tv_sec: 0, tv_nsec: 10_000_000 });

/// execve(2). A program that was just written may be open for writing in a child that other code of this process made
/// meanwhile (a library's, a credential helper), which is over once that child has executed its own; of our own children see
/// [`super::start`].
fn exec_one(path: &CStr, program: &Program) -> Errno {
    let (mut tries, pause) = BUSY;
    loop {
        // SAFETY: path and arrays are null-terminated and owned by `program`.
        unsafe { libc::execve(path.as_ptr(), program.argv.as_ptr(), program.env.as_ptr()) };
        let errno = last_errno();
        if errno != Errno::TXTBSY || tries == 0 {
            return errno;
        }
        tries -= 1;
        // Cut short by a signal it is tried earlier.
        _ = rustix::thread::nanosleep(&pause);
    }
}
