//! What a child does between `clone` and `execve`, prepared by the parent.

use std::ffi::{CStr, CString, OsStr, c_char};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::{io, ptr};

use rustix::mount::MountAttrFlags;
use rustix::thread::CapabilitySet;

/// All that the child does, in order. Reading it needs no memory.
pub struct Program {
    /// Set-up, one after the other; the first that fails ends it.
    pub steps: Vec<Step>,
    /// Paths to try for the program, in order.
    pub candidates: Vec<CString>,
    /// Arguments.
    pub argv: Arguments,
    /// Environment.
    pub env: Arguments,
    /// Where the child says what failed: the step's number and errno, both `u32`. Closed by a successful exec.
    pub report: OwnedFd,
}

impl Program {
    /// The number that stands for `execve` in a report.
    pub const EXEC: u32 = u32::MAX;

    /// Puts [`Op::CloseDescriptors`] first, for all numbers that no step names: also those that other threads open meanwhile.
    pub fn close_others(&mut self) {
        let gaps = gaps(self.descriptors());
        self.steps.insert(0, Step { what: "close descriptors".into(), op: Op::CloseDescriptors { gaps } });
    }

    /// What each step does, for the report: [`Step::what`].
    pub fn names(&self) -> Vec<String> {
        self.steps.iter().map(|step| step.what.clone()).collect()
    }

    /// Numbers of all descriptors that the program uses.
    pub fn descriptors(&self) -> Vec<u32> {
        let mut keep = vec![self.report.as_raw_fd().cast_unsigned()];
        for step in &self.steps {
            match &step.op {
                Op::EnterRoot { tree: fd }
                | Op::EnterChroot { tree: fd }
                | Op::Restrict { ruleset: fd }
                | Op::Listen { socket: fd, .. }
                | Op::ListenUnseen { socket: fd, .. }
                | Op::ListenIfPossible { socket: fd, .. }
                | Op::AttachStaging { mount: fd }
                | Op::Attach { mount: fd, .. }
                | Op::AttachIfPossible { mount: fd, .. }
                | Op::Fresh { fallback: Some(fd), .. } => keep.push(fd.as_raw_fd().cast_unsigned()),
                Op::Standard { input, output, error, .. } => {
                    keep.extend([input, output, error].map(|fd| fd.as_raw_fd().cast_unsigned()));
                }
                _ => {}
            }
        }
        keep
    }
}

/// The ranges between the numbers in `keep`, both ends included. 0, 1 and 2 are replaced later and stay until then.
pub(super) fn gaps(mut keep: Vec<u32>) -> Vec<(u32, u32)> {
    keep.extend([0, 1, 2]);
    keep.sort_unstable();
    keep.dedup();
    let ends = keep.iter().skip(1).map(|&next| next - 1).chain([u32::MAX]);
    keep.iter().map(|&kept| kept + 1).zip(ends).filter(|(first, last)| first <= last).collect()
}

/// One step of the set-up.
pub struct Step {
    /// For the error: completes "cannot …".
    pub what: String,
    /// What to do.
    pub op: Op,
}

/// One thing to do in the child. Paths are of the new root once [`Op::EnterRoot`] is done.
pub enum Op {
    /// Closes all descriptors but those of the program, given as gaps (first, last).
    CloseDescriptors {
        /// Ranges to close, both ends included.
        gaps: Vec<(u32, u32)>,
    },
    /// Own session, default signal handlers, killed when the parent dies, mounts private.
    Detach,
    /// The same without the mounts.
    Session,
    /// Gives all capabilities up and sets no_new_privs: no program that is executed will have more rights than this one.
    GiveUpPrivileges,
    /// Sets no_new_privs: setuid programs and file capabilities give nothing from here on.
    NoNewPrivileges,
    /// Enters a user namespace of its own, whose owner is the user that it has outside.
    UserNamespace {
        /// For `uid_map`.
        uid_map: Vec<u8>,
        /// For `gid_map`.
        gid_map: Vec<u8>,
    },
    /// Makes the directory `tree` the root with chroot(2).
    EnterChroot {
        /// A directory.
        tree: OwnedFd,
    },
    /// Puts the process under the rules of Landlock, made by [`super::landlock::Ruleset`].
    Restrict {
        /// The rules.
        ruleset: OwnedFd,
    },
    /// Installs a filter with a listener, sends the listener over `socket`, and waits for a byte from there: the supervisor
    /// is ready. The filter must allow sendmsg and read. From now on others may look into the process, as the supervisor has to.
    Listen {
        /// The filter.
        filter: Vec<libc::sock_filter>,
        /// One end of a pair; the other one gets the descriptor: [`super::receive_descriptor`].
        socket: OwnedFd,
    },
    /// The same, but nobody may look into the process before it executes something.
    ListenUnseen {
        /// The filter.
        filter: Vec<libc::sock_filter>,
        /// As for [`Op::Listen`].
        socket: OwnedFd,
    },
    /// As [`Op::ListenUnseen`], but only if it can be done.
    ListenIfPossible {
        /// The filter.
        filter: Vec<libc::sock_filter>,
        /// As for [`Op::Listen`]; if there is no listener, its other end sees the end.
        socket: OwnedFd,
    },
    /// Makes the detached mount `tree` the root; the old one stays reachable for the steps up to [`Op::LeaveOldRoot`].
    EnterRoot {
        /// A detached mount.
        tree: OwnedFd,
    },
    /// Puts a tmpfs with files for [`Op::AttachStaged`] where no path leads to it: over the old root.
    AttachStaging {
        /// A detached mount.
        mount: OwnedFd,
    },
    /// Attaches a detached mount.
    Attach {
        /// The mount.
        mount: OwnedFd,
        /// Where.
        target: CString,
    },
    /// The same, but failing is fine.
    AttachIfPossible {
        /// The mount.
        mount: OwnedFd,
        /// Where.
        target: CString,
    },
    /// Mounts a file or directory of the staging tmpfs.
    AttachStaged {
        /// Its name.
        name: CString,
        /// Where.
        target: CString,
        /// Flags for the mount.
        flags: MountAttrFlags,
    },
    /// Mounts a new instance of a filesystem that belongs to one of the child's namespaces.
    Fresh {
        /// Its type.
        kind: &'static CStr,
        /// Mount options: key and value.
        options: Vec<(&'static CStr, CString)>,
        /// Flags for the mount.
        flags: MountAttrFlags,
        /// Where.
        target: CString,
        /// Attached if the kernel refuses a new instance.
        fallback: Option<OwnedFd>,
        /// Whether failing altogether is fine.
        optional: bool,
    },
    /// Does what [`Op::AttachStaged`] does, if the [`Op::Fresh`] before it had to take its fallback.
    CoverFallback {
        /// Its name.
        name: &'static CStr,
        /// Where.
        target: CString,
    },
    /// Makes directories, outermost first; those that exist are fine.
    MakeDirectories {
        /// Each with its full path.
        paths: Vec<CString>,
    },
    /// Makes an empty file; one that exists is fine.
    MakeFile {
        /// Which.
        path: CString,
    },
    /// Hides a file or directory, if it exists.
    Mask {
        /// Which.
        path: CString,
        /// Name of an empty directory in the staging tmpfs.
        empty: &'static CStr,
    },
    /// Makes what /proc shows of other processes read-only, as far as the kernel allows: some of it (`oom_score_adj`,
    /// `coredump_filter`) may be written by whoever has the user id of the process.
    ReadOnlyProcesses,
    /// Makes a file or directory and the mounts below it read-only, if it exists.
    ReadOnly {
        /// Which.
        path: CString,
    },
    /// Unmounts the old root and the staging tmpfs with it.
    LeaveOldRoot,
    /// Sets the host name.
    HostName(Vec<u8>),
    /// Brings the loopback interface up.
    LoopbackUp,
    /// Sets a resource limit: setrlimit(2).
    Limit {
        /// `RLIMIT_…`
        resource: u32,
        /// Soft limit; `u64::MAX` is none.
        soft: u64,
        /// Hard limit.
        hard: u64,
    },
    /// Goes to the working directory. Before the ids change a refusal is ignored: root may be shut out where the user is not
    /// (a network filesystem), and the other way round.
    WorkingDirectory {
        /// Which.
        path: CString,
        /// Whether a refusal counts.
        last_try: bool,
    },
    /// Arranges descriptors 0, 1 and 2, and gives the pipes to the user, so that it may open `/dev/stdout`.
    Standard {
        /// 0
        input: OwnedFd,
        /// 1
        output: OwnedFd,
        /// 2
        error: OwnedFd,
        /// Owner of the pipes.
        uid: u32,
    },
    /// Lets signals through again that were blocked when the process was made.
    UnblockSignals,
    /// Leaves only these capabilities in the bounding set.
    BoundingSet(CapabilitySet),
    /// Installs a seccomp filter.
    Filter(Vec<libc::sock_filter>),
    /// Becomes the user, with these capabilities if it is root. Last: after it nothing privileged works.
    Become {
        /// User id: real, effective, saved.
        uid: u32,
        /// Group id: real, effective, saved.
        gid: u32,
        /// Supplementary groups; `None` where the namespace refuses setgroups(2).
        groups: Option<Vec<rustix::process::Gid>>,
        /// Capabilities of root.
        capabilities: CapabilitySet,
    },
}

/// An argument or an environment variable.
pub type Argument = CString;

/// A null-terminated array of C strings, as execve(2) takes it.
pub struct Arguments {
    pointers: Vec<*const c_char>,
    _strings: Vec<Argument>,
}

// SAFETY: the pointers lead to `_strings`, which are owned, do not move when this does, and are never changed.
unsafe impl Send for Arguments {}

impl Arguments {
    /// Prepares `strings`, each of which becomes one element.
    ///
    /// # Errors
    /// `InvalidInput` if one holds a NUL byte.
    pub fn new<S: AsRef<OsStr>>(strings: impl IntoIterator<Item = S>) -> io::Result<Self> {
        let strings: Result<Vec<_>, _> = strings.into_iter().map(|s| CString::new(s.as_ref().as_bytes())).collect();
        let strings = strings?;
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect();
        Ok(Self { pointers, _strings: strings })
    }

    pub(super) fn as_ptr(&self) -> *const *const c_char {
        self.pointers.as_ptr()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_between_descriptors() {
        assert_eq!(gaps(vec![]), [(3, u32::MAX)]);
        assert_eq!(gaps(vec![3, 4]), [(5, u32::MAX)]);
        assert_eq!(gaps(vec![9, 5, 5, 6]), [(3, 4), (7, 8), (10, u32::MAX)]);
    }

    #[test]
    fn arguments_end_with_null() {
        let arguments = Arguments::new(["a", ""]).expect("no NUL");
        assert_eq!(arguments.pointers.len(), 3);
        assert!(arguments.pointers[2].is_null());
        assert!(Arguments::new(["a\0b"]).is_err());
    }
}
