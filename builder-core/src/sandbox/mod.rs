//! Runs one command in a root filesystem: namespaces, mounts, ids, limits, output.
//!
//! [`enter`] is called first thing in `main`: it finds out what this machine allows and moves the process into a user and
//! mount namespace where that is needed (the table at [`IdMapping`] says what each kind can and cannot do). [`run`] then runs commands,
//! from any thread and several at once.
//!
//! # A run
//!
//! 1. The parent finds mount points in the tree, makes those that are missing (`stubs`), prepares all mounts detached
//!    (`mounts`) and writes down every step as a `sys::Program`.
//! 2. A process is cloned into new mount, pid, ipc, uts and cgroup namespaces (and network, for `--network=none`). It
//!    performs the steps and becomes the command. The command is **process 1** of its namespace, as in BuildKit: when it
//!    ends, the kernel kills everything it left behind before the parent learns of the end.
//!    Where the kernel refuses a `/proc` for that ([`Processes::Guarded`]) there is no pid namespace, and a keeper ends
//!    everything (`kept`).
//! 3. Two threads stream the output; stubs are removed; what ended the command is returned.
//!
//! # Cancelling
//!
//! There are no signal handlers here. A program that links the library handles `SIGINT` and `SIGTERM` itself (a thread with
//! `signal_hook::iterator`, or a self-pipe) and calls [`Cancel::cancel`]: `run` kills the whole pid namespace within
//! a twentieth of a second and returns [`SandboxError::Cancelled`]. Commands have their own session, so a Ctrl-C on the
//! terminal reaches the builder only. If the builder itself is killed, the kernel kills process 1 and with it all others,
//! or where a setuid program has made the kernel forget, `sys::Watcher` does.
//!
//! # What a command cannot reach
//!
//! The builder's environment, descriptors, memory and processes: the environment is the given one, every descriptor is
//! closed, `/proc` is that of the new pid namespace, or calls that name other processes are refused (`guard`). Device nodes other than the six harmless ones cannot be opened, in
//! whatever way they were made. System calls and capabilities are Docker's defaults (`sys::seccomp`).
//!
//! # Limitations
//!
//! - The network is the host's, abstract sockets included before version 6 of Landlock; resource control groups are not set up.
//! - Where the kernel refuses a fresh `/proc` (in a container whose runtime masks parts of it), the outer one is shown
//!   instead: processes of the outer pid namespace are visible there with names and arguments, and the command is not process 1.
//!   The builder keeps its memory and environment shut against it; two RUNs of one build that run at the same time can look into
//!   each other.
//! - A builder that itself runs in a chroot(2), or directly on an initramfs, cannot pivot_root(2): RUN fails with `EINVAL`.
//! - Linux 5.12 or later. Only x86-64 and aarch64 have a system call filter.
//!
//! Architecture invariant: Dockerfiles, layers and network protocols are not known here; all system calls that need
//! `unsafe` are in `sys`.

mod callers;
mod chroot;
mod command;
mod counters;
mod dev;
mod environment;
mod execute;
mod guard;
mod ids;
mod kept;
mod machine;
mod members;
mod mounts;
mod namespaces;
mod network;
mod nodes;
mod numbers;
mod output;
mod processes;
mod remedies;
mod serving;
mod signals;
mod stubs;
mod supervision;
mod sys;
mod traced;
pub mod users;

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

pub use chroot::journal::{Whereabouts, bring_home};
pub use counters::Counters;
pub use environment::{Environment, IdMapping, Refusal, Tier, Wish};
pub use ids::{IdRange, IdRanges};
pub use machine::Machine;
pub use processes::Processes;

use crate::cancel::Cancel;
use crate::event::Stream;
use crate::hint::Hint;
use crate::rootfs::{Owners, Rootfs};

/// Moves the calling process into the namespaces in which it can unpack, mount and run, as far as this machine lets it.
/// Must be called while the process has one thread, before anything else; programs that link the library call it first
/// thing in `main`. For real root this is a mount namespace of its own; no ids change.
///
/// Afterwards the process is not dumpable (prctl(2), `PR_SET_DUMPABLE`), as commands could read its memory otherwise where
/// they see the outer `/proc`. Not being able to run commands is no error: [`IdMapping::None`] tells, with the reasons.
///
/// # Errors
/// `InvalidInput` if the process has more than one thread; or if something that has just worked in a child process fails.
pub fn enter() -> io::Result<Environment> {
    enter_as(&Wish::default())
}

/// [`enter`], with a say in how commands are run. Where the wish cannot be fulfilled [`Environment::tier`] is `None` and
/// [`Environment::refused`] says why.
///
/// # Errors
/// As [`enter`].
pub fn enter_as(wish: &Wish) -> io::Result<Environment> {
    environment::enter(wish)
}

/// What [`enter`] would do, without doing it.
pub fn probe() -> Environment {
    environment::probe(&Wish::default())
}

/// What [`enter_as`] would do for each tier by itself, the strongest first, without doing it.
pub fn survey(work_dir: Option<&Path>) -> Vec<(Tier, Environment)> {
    environment::survey(work_dir)
}

/// Bounds the memory that the process's allocator keeps though nobody uses it, however many threads a build has. For a program
/// whose work is to build: it holds for the whole process, from now on. `threads` work at a time.
pub fn bound_heap(threads: NonZeroUsize) {
    sys::heap::bound(threads.get());
}

/// A mount of a RUN. Mounts are made in the order of their targets, parents first; of two with the same target the later
/// one is seen.
#[derive(Debug, Clone)]
pub struct SandboxMount {
    /// Absolute path in the tree; created if missing and removed again, parents too, if still empty.
    pub target: PathBuf,
    /// Whether writing is refused.
    pub readonly: bool,
    /// What is mounted.
    pub source: MountSource,
    /// What is recorded of the files in it, where owners are not real; `None` if nothing is.
    pub owners: Option<Arc<Owners>>,
}

/// What is mounted.
#[derive(Clone)]
pub enum MountSource {
    /// The file or directory behind an `O_PATH` descriptor, without the mounts below it (with them where a user namespace
    /// does not let them be left out).
    Descriptor(Arc<OwnedFd>),
    /// A file, directory or socket of the host; mounts below it as for a descriptor.
    Host(PathBuf),
    /// A fresh tmpfs of at most so many bytes. It has the mode of the directory that it covers, 1777 if there is none.
    Tmpfs(Option<u64>),
    /// A file in memory with these bytes: mode, uid, gid. Never printed.
    Bytes {
        /// Content.
        content: Arc<Vec<u8>>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Whether they must never be on a disk. Where nothing can be mounted such a file cannot be executed.
        secret: bool,
    },
}

impl fmt::Debug for MountSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Descriptor(descriptor) => f.debug_tuple("Descriptor").field(descriptor).finish(),
            Self::Host(path) => f.debug_tuple("Host").field(path).finish(),
            Self::Tmpfs(size) => f.debug_tuple("Tmpfs").field(size).finish(),
            Self::Bytes { mode, uid, gid, .. } => {
                let mut shown = f.debug_struct("Bytes");
                shown.field("mode", mode).field("uid", uid).field("gid", gid).finish_non_exhaustive()
            }
        }
    }
}

/// Whom a command runs as, after look-up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included. In an environment with one id they are left out.
    pub groups: Vec<u32>,
    /// Home directory from passwd; `/` if there is none.
    pub home: String,
}

/// One command to run.
#[derive(Debug, Clone)]
pub struct RunSpec {
    /// Program and arguments; the program is looked up in `PATH` of `env` inside the tree if it has no `/`.
    pub argv: Vec<OsString>,
    /// The whole environment.
    pub env: Vec<(OsString, OsString)>,
    /// Absolute working directory; made 0755 and owned by the user if missing.
    pub cwd: PathBuf,
    /// Whom it runs as.
    pub user: RunUser,
    /// Host name inside.
    pub hostname: String,
    /// Additional names and addresses for /etc/hosts.
    pub extra_hosts: Vec<(String, String)>,
    /// Loopback only.
    pub no_network: bool,
    /// All capabilities, nothing masked.
    pub insecure: bool,
    /// Size of /dev/shm in bytes; `None` for 64 MiB.
    pub shm_size: Option<u64>,
    /// setrlimit(2): name (`nofile`), soft and hard limit, -1 for none.
    pub ulimits: Vec<(String, i64, i64)>,
    /// Mounts, beside /proc, /dev, /sys, resolv.conf and hosts, which are always there.
    pub mounts: Vec<SandboxMount>,
}

impl RunSpec {
    /// A command as root in `/`, without mounts or limits of its own.
    pub fn as_root(argv: Vec<OsString>, env: Vec<(OsString, OsString)>, hostname: &str) -> Self {
        Self {
            argv,
            env,
            cwd: "/".into(),
            user: RunUser { uid: 0, gid: 0, groups: vec![0], home: "/root".into() },
            hostname: hostname.to_owned(),
            extra_hosts: Vec::new(),
            no_network: false,
            insecure: false,
            shm_size: None,
            ulimits: Vec::new(),
            mounts: Vec::new(),
        }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It called exit.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

/// Why a command could not be run (not: that it failed).
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The program is not in the tree or cannot be executed.
    #[error("cannot execute `{}`", program.to_string_lossy())]
    Exec {
        /// argv\[0\].
        program: OsString,
        /// Why.
        source: io::Error,
    },
    /// A step of the set-up failed inside.
    #[error("cannot {what}")]
    Setup {
        /// Such as `mount /proc`.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The environment has no way to run anything.
    #[error("cannot run commands here: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// Programs on the volume of the work dir cannot be executed.
    #[error("cannot run commands in `{}`: its volume is mounted noexec", work_dir.display())]
    NoExec {
        /// The work dir.
        work_dir: PathBuf,
    },
    /// `--network=none` where no network namespace can be had.
    #[error("a RUN without network needs a network namespace, which cannot be had here")]
    NoNetworkNamespace,
    /// An id that does not exist in this environment.
    #[error("user or group id {id} does not exist in this user namespace")]
    NoSuchId {
        /// Which.
        id: u32,
    },
    /// A resource limit that setrlimit(2) does not have.
    #[error("unknown resource limit `{name}`")]
    UnknownLimit {
        /// As given.
        name: String,
    },
    /// Cancelled from outside; the processes are gone.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for SandboxError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Exec { source, program } => match source.kind() {
                io::ErrorKind::NotFound => Some(format!(
                    "`{}` is not in the image (or the interpreter it names is not); look at PATH, and at the libc of the \
                     base image for binaries from elsewhere",
                    program.to_string_lossy()
                )),
                io::ErrorKind::PermissionDenied => Some("it is not executable by the user of this RUN".to_owned()),
                io::ErrorKind::ArgumentListTooLong => Some(
                    "the kernel takes 128 KiB as one argument or variable, and about 2 MiB as all of them (execve(2)): a heredoc that \
                     begins with `#!/bin/sh` is a file, and so is a script that is copied or mounted"
                        .to_owned(),
                ),
                _ if source.raw_os_error() == Some(rustix::io::Errno::NOEXEC.raw_os_error()) => {
                    Some("it is a script without `#!`, or made for another architecture".to_owned())
                }
                _ => None,
            },
            Self::NoSuchId { .. } => Some(
                "more ids need a range in /etc/subuid and /etc/subgid (`usermod --add-subuids 100000-165535 \
                 --add-subgids 100000-165535 $USER`, package uidmap), or root; `--sandbox traced` plays every id"
                    .to_owned(),
            ),
            Self::NoNetworkNamespace => Some(
                "`slipway info` says what a user namespace needs here; without `--network=none` the RUN works in this tier".to_owned(),
            ),
            Self::NoExec { .. } => Some("put --work-dir (SLIPWAY_DIR) on a volume without the mount option noexec".to_owned()),
            Self::Unavailable { .. } => Some("`slipway info` shows what this machine allows".to_owned()),
            Self::UnknownLimit { .. } => {
                Some("known are core, cpu, data, fsize, locks, memlock, msgqueue, nice, nofile, nproc, rss, rtprio, rttime, \
                      sigpending, stack"
                    .to_owned())
            }
            Self::Setup { .. } | Self::Cancelled => None,
        }
    }
}

/// Runs one command to its end. `output` gets each line without its line end (and a last one without any; lines over 16 KiB
/// in pieces), from two threads. Processes that are left over are killed; stubs for mounts are removed again and times of
/// their parents restored.
///
/// # Errors
/// [`SandboxError`]
pub fn run(
    environment: &Environment,
    rootfs: &Rootfs,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    if cancel.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    match environment.tier {
        Some(Tier::Namespaces) => namespaces::run(environment, rootfs, spec, output, cancel),
        Some(Tier::Chroot) => chroot::run(environment, rootfs, spec, output, cancel),
        Some(Tier::Traced) => traced::run(environment, rootfs, spec, output, cancel),
        None => {
            environment.available()?;
            unreachable!("without a tier nothing is available")
        }
    }
}

/// Names a failing step.
fn setup<T>(what: impl Into<String>, result: Result<T, impl Into<io::Error>>) -> Result<T, SandboxError> {
    result.map_err(|error| SandboxError::Setup { what: what.into(), source: error.into() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entering_needs_one_thread() {
        // The test runner and this test make two.
        let error = enter().expect_err("more than one thread");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
    }

    #[test]
    fn probing_changes_nothing() {
        let namespaces = || ["user", "mnt", "pid"].map(|kind| std::fs::read_link(format!("/proc/self/ns/{kind}")).ok());
        let before = namespaces();
        let environment = probe();
        assert_eq!(namespaces(), before);
        assert_eq!(environment.tier.is_none(), environment.ids == IdMapping::None);
        assert!(environment.facts().iter().any(|(name, _)| *name == "ids"));
    }
}
