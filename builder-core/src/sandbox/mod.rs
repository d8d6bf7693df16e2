//! Runs one command in a root filesystem: namespaces, mounts, ids, limits, output.
//!
//! Architecture invariant: Dockerfiles, layers and network protocols are not known here; all system calls that need
//! `unsafe` are in [`sys`].

pub mod users;

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::cancel::Cancel;
use crate::event::Stream;
use crate::rootfs::Rootfs;

/// What this process may do, found out by doing it. Made once by [`enter`].
#[derive(Debug, Clone)]
pub struct Environment {
    /// Which ids can be used.
    pub ids: IdMapping,
    /// One line for `slipway info`, per refused possibility.
    pub refused: Vec<String>,
}

/// Ids that exist inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdMapping {
    /// Real root with CAP_SYS_ADMIN; no user namespace is needed.
    Root,
    /// A user namespace in which root's ids are as outside (root in a container without CAP_SYS_ADMIN).
    Identity,
    /// A user namespace with subordinate ids from /etc/subuid and /etc/subgid.
    Subordinate,
    /// A user namespace with one id.
    Single,
    /// None of these: RUN is not possible here.
    None,
}

/// Moves the calling process into the namespaces in which it can unpack, mount and run, as far as this machine lets it.
/// Must be called while the process has one thread, before anything else; programs that link the library call it first
/// thing in `main`. Calling it as real root changes nothing but mount propagation.
///
/// # Errors
/// If a system call fails that has no fallback.
pub fn enter() -> io::Result<Environment> {
    todo!()
}

/// A mount of a RUN.
#[derive(Debug, Clone)]
pub struct SandboxMount {
    /// Absolute path in the tree; created if missing and removed again, parents too, if still empty.
    pub target: PathBuf,
    /// Whether writing is refused.
    pub readonly: bool,
    /// What is mounted.
    pub source: MountSource,
}

/// What is mounted.
#[derive(Debug, Clone)]
pub enum MountSource {
    /// The file or directory behind an `O_PATH` descriptor.
    Descriptor(Arc<OwnedFd>),
    /// A file or directory of the host.
    Host(PathBuf),
    /// A fresh tmpfs of at most so many bytes.
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
    },
}

/// Whom a command runs as, after look-up.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunUser {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, the primary one included.
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
    /// Mounts in order, beside /proc, /dev, /sys, resolv.conf and hosts, which are always there.
    pub mounts: Vec<SandboxMount>,
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
    /// An id that does not exist in this environment.
    #[error("user id {id} does not exist in this user namespace")]
    NoSuchId {
        /// Which.
        id: u32,
    },
    /// Cancelled from outside; the processes are gone.
    #[error("cancelled")]
    Cancelled,
}

/// Runs one command to its end. `output` gets each line without its line end (and a last one without any), from two
/// threads. Processes that are left over are killed; stubs for mounts are removed again and times of their parents
/// restored.
///
/// # Errors
/// [`SandboxError`]
pub fn run(
    _environment: &Environment,
    _rootfs: &Rootfs,
    _spec: &RunSpec,
    _output: &(dyn Fn(Stream, &[u8]) + Sync),
    _cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    todo!()
}
