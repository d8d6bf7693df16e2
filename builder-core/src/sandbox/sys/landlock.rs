//! What a process may open by itself, whatever a supervisor does for it: landlock(7).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

// linux/landlock.h; the system calls have one number on all machines.
const CREATE_RULESET: libc::c_long = 444;
const ADD_RULE: libc::c_long = 445;
const RESTRICT_SELF: libc::c_long = 446;

const VERSION: u32 = 1;
const PATH_BENEATH: libc::c_int = 1;

/// Executing and reading files.
pub const EXECUTE: u64 = 1 << 0 | 1 << 2;
/// Everything that version 1 knows: reading, writing, making and removing all kinds of files.
pub const ALL: u64 = (1 << 13) - 1;
/// All rights that the kernel knows.
pub const EVERYTHING: u64 = u64::MAX;
/// Rights that later versions know: refer (2), truncate (3), ioctl on devices (5).
const LATER: [(i32, u64); 3] = [(2, 1 << 13), (3, 1 << 14), (5, 1 << 15)];
/// The version from which on abstract sockets and signals of processes outside can be kept away, Linux 6.12.
pub const WITH_SCOPES: i32 = 6;
/// Those two.
const SCOPES: u64 = 1 << 0 | 1 << 1;

/// Rules that a process can be put under.
#[derive(Debug)]
pub struct Ruleset {
    fd: OwnedFd,
    known: u64,
}

#[repr(C)]
struct RulesetAttributes {
    files: u64,
    network: u64,
    scoped: u64,
}

/// Without padding: 12 bytes.
#[repr(C, packed)]
struct PathRule {
    access: u64,
    parent: RawFd,
}

/// The version that the kernel has; 0 if it has none, or it is switched off or refused by a seccomp filter.
pub fn version() -> i32 {
    // SAFETY: asks for a number; no memory is involved.
    let version = unsafe { libc::syscall(CREATE_RULESET, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    i32::try_from(version.max(0)).unwrap_or(0)
}

impl Ruleset {
    /// Rules under which nothing can be opened, made, removed or executed, nor a process outside be signalled or reached by an
    /// abstract socket.
    ///
    /// # Errors
    /// `ENOSYS` or `EOPNOTSUPP` without Landlock.
    pub fn new() -> io::Result<Self> {
        let version = version();
        let known = LATER.iter().filter(|(since, _)| version >= *since).fold(ALL, |all, (_, right)| all | right);
        Self::with(version, known, if version >= WITH_SCOPES { SCOPES } else { 0 })
    }

    /// Rules about processes outside alone; `None` before version 6.
    ///
    /// # Errors
    /// `EMFILE`
    pub fn about_processes() -> io::Result<Option<Self>> {
        let version = version();
        if version < WITH_SCOPES { Ok(None) } else { Self::with(version, 0, SCOPES).map(Some) }
    }

    fn with(version: i32, known: u64, scoped: u64) -> io::Result<Self> {
        let attributes = RulesetAttributes { files: known, network: 0, scoped };
        let size = match version {
            ..=3 => 8_usize,
            4..=5 => 16,
            _ => 24,
        };
        // SAFETY: the struct is valid for reading, and has at least the size that is given.
        let fd = unsafe { libc::syscall(CREATE_RULESET, &raw const attributes, size, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel has just made this descriptor, which nobody else owns.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd as RawFd) }, known })
    }

    /// Allows `access` to `place` and everything below it, as far as the kernel knows these rights.
    ///
    /// # Errors
    /// What the kernel says; `EINVAL` for rights of directories at something that is none.
    pub fn allow(&self, place: BorrowedFd<'_>, access: u64) -> io::Result<()> {
        let rule = PathRule { access: access & self.known, parent: place.as_raw_fd() };
        // SAFETY: the struct is valid for reading, the descriptors are open.
        let result = unsafe { libc::syscall(ADD_RULE, self.fd.as_raw_fd(), PATH_BENEATH, &raw const rule, 0) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// The descriptor for [`super::Op::Restrict`].
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }
}

/// Puts the calling thread under rules, for ever. Needs no_new_privs. Neither allocates nor locks.
pub(super) fn restrict_self(ruleset: BorrowedFd<'_>) -> Result<(), rustix::io::Errno> {
    // SAFETY: plain numbers.
    let result = unsafe { libc::syscall(RESTRICT_SELF, ruleset.as_fd().as_raw_fd(), 0) };
    if result == 0 { Ok(()) } else { Err(super::last_errno()) }
}
