//! Which system calls the supervisor sees, and how.
//!
//! Calls that carry paths, ids or process numbers are *answered*: the supervisor performs them and the kernel never sees what
//! the process meant. Calls that only the process itself can make are *rewritten* while it is stopped. Everything else goes to
//! the kernel at full speed.

use libc::{EOPNOTSUPP, EPERM};

use super::super::numbers::{CHANGE_USER, RENAMEAT, late};
use super::super::sys::bpf::{Action, Rule, When};

/// Why a thread is stopped: message of the filter's `SECCOMP_RET_TRACE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Rewrite {
    /// execve(2), execveat(2).
    Exec = 1,
    /// connect(2), sendto(2): an address at argument 1 or 4.
    Connect = 2,
    /// bind(2).
    Bind = 3,
    /// inotify_add_watch(2).
    Watch = 4,
    /// sendmsg(2), sendmmsg(2).
    Message = 5,
    /// getsockopt(2) for `SO_PEERCRED`.
    Peer = 6,
}

impl Rewrite {
    /// From the message of a stop.
    pub fn from_message(message: u64) -> Option<Self> {
        [Self::Exec, Self::Connect, Self::Bind, Self::Watch, Self::Message, Self::Peer]
            .into_iter()
            .find(|rewrite| *rewrite as u64 == message)
    }
}

/// Answered calls that every machine has.
const ANSWERED: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_fstat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_readlinkat,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    RENAMEAT,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_mknodat,
    libc::SYS_fchmod,
    libc::SYS_fchmodat,
    late::FCHMODAT2,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_truncate,
    libc::SYS_statfs,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_getcwd,
    libc::SYS_umask,
    libc::SYS_uname,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    libc::SYS_setgroups,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_setpriority,
    libc::SYS_ioprio_set,
];

/// Answered calls of x86-64 alone: what newer machines have `…at` for.
#[cfg(target_arch = "x86_64")]
const ANSWERED_OLD: &[libc::c_long] = &[
    libc::SYS_open,
    libc::SYS_creat,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_readlink,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_unlink,
    libc::SYS_rename,
    libc::SYS_link,
    libc::SYS_symlink,
    libc::SYS_mknod,
    libc::SYS_chmod,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
];
#[cfg(not(target_arch = "x86_64"))]
const ANSWERED_OLD: &[libc::c_long] = &[];

/// Calls that fail as for root in a container without CAP_SYS_ADMIN. Docker's profile has most of them too, but it is left
/// out for `--security=insecure`, and here nothing of it may reach the kernel: it would act outside of the root.
const REFUSED: &[(libc::c_long, i32)] = &[
    (libc::SYS_mount, EPERM),
    (libc::SYS_umount2, EPERM),
    (libc::SYS_pivot_root, EPERM),
    (libc::SYS_unshare, EPERM),
    (libc::SYS_setns, EPERM),
    (libc::SYS_swapon, EPERM),
    (libc::SYS_swapoff, EPERM),
    (libc::SYS_acct, EPERM),
    (libc::SYS_quotactl, EPERM),
    (libc::SYS_ptrace, EPERM),
    (libc::SYS_kcmp, EPERM),
    (libc::SYS_open_by_handle_at, EPERM),
    (libc::SYS_fanotify_init, EPERM),
    (libc::SYS_name_to_handle_at, EOPNOTSUPP),
    (late::OPEN_TREE, EPERM),
    (late::MOVE_MOUNT, EPERM),
    (late::FSOPEN, EPERM),
    (late::FSPICK, EPERM),
    (late::MOUNT_SETATTR, EPERM),
    (libc::SYS_pidfd_getfd, EPERM),
    // Rings open files without system calls.
    (libc::SYS_io_uring_setup, EPERM),
    (libc::SYS_io_uring_enter, EPERM),
    (libc::SYS_io_uring_register, EPERM),
    // Its flags cannot be seen by a filter; programs fall back to clone(2).
    (libc::SYS_clone3, libc::ENOSYS),
    (late::STATMOUNT, libc::ENOSYS),
    (late::LISTMOUNT, libc::ENOSYS),
    // What the supervisor does for a process, rules of its own would not stop: "not switched on in this kernel".
    (libc::SYS_landlock_create_ruleset, EOPNOTSUPP),
];

/// `CLONE_UNTRACED`: a process that the supervisor would not know of.
const UNTRACED: u32 = 0x0080_0000;

/// `PR_…` that ask or change what is played: capabilities, securebits, no_new_privs, and whether others may look in.
const PLAYED_PRCTL: [u32; 10] = [
    3,  // PR_GET_DUMPABLE
    4,  // PR_SET_DUMPABLE
    7,  // PR_GET_KEEPCAPS
    8,  // PR_SET_KEEPCAPS
    23, // PR_CAPBSET_READ
    24, // PR_CAPBSET_DROP
    27, // PR_GET_SECUREBITS
    28, // PR_SET_SECUREBITS
    38, // PR_SET_NO_NEW_PRIVS
    47, // PR_CAP_AMBIENT
];

/// Whether calls of this number are performed by the supervisor alone, and by nothing that a signal could end.
pub fn is_answered(number: i64) -> bool {
    ANSWERED.iter().chain(ANSWERED_OLD).chain(&CHANGE_USER).any(|&answered| answered == number)
}

/// The filter with the listener. It allows sendmsg(2), over which the listener is sent.
pub fn first() -> Vec<libc::sock_filter> {
    let mut rules: Vec<Rule> = ANSWERED
        .iter()
        .chain(ANSWERED_OLD)
        .chain(&CHANGE_USER)
        .map(|&number| Rule::always(number, Action::Notify))
        .collect();
    rules.extend(
        [late::SETXATTRAT, late::GETXATTRAT, late::LISTXATTRAT, late::REMOVEXATTRAT]
            .map(|number| Rule::always(number, Action::Notify)),
    );
    rules.extend(
        REFUSED.iter().map(|&(number, errno)| {
            Rule::always(number, Action::Errno(u16::try_from(errno).expect("errors are small")))
        }),
    );
    let trace = |rewrite: Rewrite| Action::Trace(rewrite as u16);
    rules.extend([
        Rule::always(libc::SYS_execve, trace(Rewrite::Exec)),
        Rule::always(libc::SYS_execveat, trace(Rewrite::Exec)),
        // A pod without CAP_SYS_CHROOT has a profile that refuses it.
        Rule::always(libc::SYS_chroot, Action::Trap),
        Rule::always(libc::SYS_connect, trace(Rewrite::Connect)),
        Rule::when(libc::SYS_sendto, When::NotZero(4), trace(Rewrite::Connect)),
        Rule::always(libc::SYS_bind, trace(Rewrite::Bind)),
        Rule::when(libc::SYS_getsockopt, When::OneOf(2, vec![libc::SO_PEERCRED as u32]), trace(Rewrite::Peer)),
        Rule::always(libc::SYS_inotify_add_watch, trace(Rewrite::Watch)),
        Rule::when(libc::SYS_clone, When::AnyBit(0, UNTRACED), Action::Errno(EPERM as u16)),
        Rule::when(libc::SYS_prctl, When::OneOf(0, PLAYED_PRCTL.to_vec()), Action::Notify),
        Rule::when(libc::SYS_prlimit64, When::NotZero(0), Action::Notify),
        Rule::when(libc::SYS_sched_setaffinity, When::NotZero(0), Action::Notify),
        Rule::when(libc::SYS_sched_setscheduler, When::NotZero(0), Action::Notify),
        Rule::when(libc::SYS_sched_setparam, When::NotZero(0), Action::Notify),
        Rule::when(libc::SYS_sched_setattr, When::NotZero(0), Action::Notify),
        // Signals on behalf of descriptors: F_SETOWN, F_SETOWN_EX, FIOSETOWN, SIOCSPGRP; and input of terminals: TIOCSTI.
        Rule::when(libc::SYS_fcntl, When::OneOf(1, vec![8, 15]), Action::Notify),
        Rule::when(libc::SYS_ioctl, When::OneOf(1, vec![0x8901, 0x8902, 0x5412]), Action::Errno(EPERM as u16)),
    ]);
    #[cfg(target_arch = "x86_64")]
    rules.push(Rule::always(libc::SYS_uselib, Action::Errno(libc::ENOSYS as u16)));
    super::super::sys::bpf::filter(&rules, Action::Notify)
}

/// The filter that comes after it.
pub fn second() -> Vec<libc::sock_filter> {
    let trace = Action::Trace(Rewrite::Message as u16);
    let rules = [Rule::always(libc::SYS_sendmsg, trace), Rule::always(libc::SYS_sendmmsg, trace)];
    super::super::sys::bpf::filter(&rules, Action::Allow)
}
