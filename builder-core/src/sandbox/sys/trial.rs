//! Trying out in a child process what the environment allows, and helping from outside a user namespace.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags};
use rustix::thread::UnshareFlags;

use super::{Child, MountAttributes, SignalsBlocked, clone, mount_setattr, pipe, unshare};
use crate::sandbox::ExitStatus;

/// What a [`try_namespaces`] does about ids.
pub enum Ids<'a> {
    /// No user namespace.
    Outer,
    /// A user namespace whose maps the child writes.
    Own {
        /// For `uid_map`.
        uid_map: &'a [u8],
        /// For `gid_map`.
        gid_map: &'a [u8],
    },
    /// A user namespace whose maps this function writes for the process with the given id.
    Given(&'a dyn Fn(i32) -> io::Result<()>),
}

/// What was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Refused {
    /// The user namespace (or, with [`Ids::Outer`], the mount namespace).
    Unshare = 1,
    /// Writing its maps.
    Maps,
    /// The pid, ipc and uts namespaces.
    Namespaces,
    /// Making mounts private.
    Private,
    /// Mounting a tmpfs.
    Mount,
    /// mount_setattr(2).
    Attributes,
}

const ALL: [Refused; 6] =
    [Refused::Unshare, Refused::Maps, Refused::Namespaces, Refused::Private, Refused::Mount, Refused::Attributes];

/// In a message: the child waits for its maps.
const READY: u8 = 100;
/// In a message: everything worked.
const DONE: u8 = 101;

/// Does in a child process what a RUN needs: namespaces, ids, a mount with the new system calls. What it gives is whether the
/// kernel mounts a /proc for a new pid namespace too, without which a RUN goes, or why not.
///
/// # Errors
/// What was refused first, and why; `Maps` also if [`Ids::Given`] fails.
pub fn try_namespaces(ids: &Ids<'_>) -> Result<Result<(), Errno>, (Refused, io::Error)> {
    let early = |error| (Refused::Unshare, error);
    let (messages, message) = pipe().map_err(early)?;
    let (answer, answers) = pipe().map_err(early)?;
    let mask = SignalsBlocked::new();
    // SAFETY: the child runs `attempt`, which only makes system calls and reads what `ids` refers to, and ends with _exit.
    let child = match unsafe { clone(0) }.map_err(early)? {
        Some(child) => child,
        None => {
            let [step, errno] = match attempt(ids, &message, &answer) {
                Ok(refused) => [DONE, refused],
                // Those that occur here are below 134, so they fit.
                Err((refused, errno)) => [refused as u8, errno.raw_os_error() as u8],
            };
            _ = rustix::io::write(&message, &[step, errno]);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(0) }
        }
    };
    drop(mask);
    drop((message, answer));
    let result = converse(ids, &child, &messages, &answers);
    child.kill();
    child.wait().map_err(early)?;
    result
}

fn converse(
    ids: &Ids<'_>,
    child: &Child,
    messages: &OwnedFd,
    answers: &OwnedFd,
) -> Result<Result<(), Errno>, (Refused, io::Error)> {
    let mut message = read_message(messages);
    if message == Some([READY, 0]) {
        if let Ids::Given(write) = ids {
            write(child.pid).map_err(|error| (Refused::Maps, error))?;
        }
        // Failing means that the child is gone, which the next message (its absence) tells better.
        _ = rustix::io::write(answers, b".");
        message = read_message(messages);
    }
    match message {
        Some([DONE, 0]) => Ok(Ok(())),
        Some([DONE, errno]) => Ok(Err(Errno::from_raw_os_error(errno.into()))),
        Some([step, errno]) => {
            let refused = ALL.into_iter().find(|&refused| refused as u8 == step).unwrap_or(Refused::Unshare);
            Err((refused, io::Error::from_raw_os_error(errno.into())))
        }
        None => Err((Refused::Unshare, io::Error::from(io::ErrorKind::UnexpectedEof))),
    }
}

fn read_message(messages: &OwnedFd) -> Option<[u8; 2]> {
    let mut message = [0; 2];
    let length = rustix::io::retry_on_intr(|| rustix::io::read(messages, &mut message[..]));
    (length == Ok(2)).then_some(message)
}

/// Runs in the child: no allocation. Gives what [`mount_proc`] said.
fn attempt(ids: &Ids<'_>, message: &OwnedFd, answer: &OwnedFd) -> Result<u8, (Refused, Errno)> {
    let at = |refused| move |errno| (refused, errno);
    // Its own copy of the other end of `answer` would let it wait for ever for a parent that was killed.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .map_err(at(Refused::Unshare))?;
    match ids {
        Ids::Outer => unshare(UnshareFlags::NEWNS).map_err(at(Refused::Unshare))?,
        Ids::Own { uid_map, gid_map } => {
            unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(at(Refused::Unshare))?;
            write_own_maps(uid_map, gid_map).map_err(at(Refused::Maps))?;
        }
        Ids::Given(_) => {
            unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(at(Refused::Unshare))?;
            rustix::io::write(message, &[READY, 0]).map_err(at(Refused::Maps))?;
            wait_for(answer).map_err(at(Refused::Maps))?;
        }
    }
    unshare(UnshareFlags::NEWPID | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS).map_err(at(Refused::Namespaces))?;
    rustix::mount::mount_change(c"/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(at(Refused::Private))?;
    let proc = mount_proc().map_err(at(Refused::Namespaces))?;
    let mount = || {
        let context = rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    let mount = mount().map_err(at(Refused::Mount))?;
    let attributes = MountAttributes::private(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    mount_setattr(mount.as_fd(), &attributes, false).map_err(at(Refused::Attributes))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(mount.as_fd(), c"", CWD, c"/", flags).map_err(at(Refused::Mount))?;
    Ok(proc)
}

/// Mounts the /proc of the pid namespace that the next child is process 1 of. It gives 0 or an error's number.
fn mount_proc() -> Result<u8, Errno> {
    let flags =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NODEV;
    // SAFETY: the child only makes system calls and ends with _exit.
    let child = match unsafe { clone(0) }.map_err(super::errno)? {
        Some(child) => child,
        None => {
            let code = super::child::fresh(c"proc", &[], flags).map_or_else(Errno::raw_os_error, |_| 0);
            // SAFETY: ends the process without running anything of the parent's.
            unsafe { libc::_exit(code) }
        }
    };
    match child.wait().map_err(super::errno)? {
        // Those that occur here are below 134, so they fit.
        ExitStatus::Code(code) => Ok(code as u8),
        ExitStatus::Signal(_) => Ok(Errno::IO.raw_os_error() as u8),
    }
}

/// Waits for one byte.
fn wait_for(answer: &OwnedFd) -> Result<(), Errno> {
    let mut byte = [0; 1];
    match rustix::io::retry_on_intr(|| rustix::io::read(answer, &mut byte[..]))? {
        0 => Err(Errno::PIPE),
        _ => Ok(()),
    }
}

/// Maps one id each; setgroups(2) has to be given up for it: user_namespaces(7). Neither allocates nor locks.
///
/// # Errors
/// What the kernel says.
pub fn write_own_maps(uid_map: &[u8], gid_map: &[u8]) -> Result<(), Errno> {
    let write = |path: &CStr, text: &[u8]| {
        let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, text).map(drop)
    };
    match write(c"/proc/self/setgroups", b"deny") {
        // Linux before 3.19 has no such file.
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    write(c"/proc/self/uid_map", uid_map)?;
    write(c"/proc/self/gid_map", gid_map)
}

/// A process that stays where this one is about to leave.
pub struct Outsider {
    child: Child,
    go: OwnedFd,
    errors: OwnedFd,
}

impl Outsider {
    /// Forks; the child waits for [`Outsider::act`] and then runs `action`.
    ///
    /// # Errors
    /// `InvalidInput` if this process has more than one thread: `action` may allocate, which is safe only without others.
    pub fn new(action: impl FnOnce() -> io::Result<()>) -> io::Result<Self> {
        if std::fs::read_dir("/proc/self/task")?.count() != 1 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the process has more than one thread"));
        }
        let (wait, go) = pipe()?;
        let (errors, error) = pipe()?;
        // SAFETY: there is no other thread, so the copy of the allocator is in order; the child ends with _exit, also if
        // `action` panics, so that nothing of the parent's is run twice.
        match unsafe { clone(0)? } {
            Some(child) => Ok(Self { child, go, errors }),
            None => {
                drop(go);
                let act = || wait_for(&wait).map_err(io::Error::from).and_then(|()| action());
                let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
                let code = match result {
                    Ok(Ok(())) => 0,
                    Ok(Err(reason)) => {
                        _ = rustix::io::write(&error, reason.to_string().as_bytes());
                        1
                    }
                    Err(_) => 1,
                };
                // SAFETY: as above.
                unsafe { libc::_exit(code) }
            }
        }
    }

    /// Lets the child act and waits for it.
    ///
    /// # Errors
    /// What `action` said, as text.
    pub fn act(self) -> io::Result<()> {
        rustix::io::write(&self.go, b".")?;
        if self.child.wait()? == ExitStatus::Code(0) {
            return Ok(());
        }
        rustix::fs::fcntl_setfl(&self.errors, OFlags::NONBLOCK)?;
        let mut text = [0; 4096];
        let length = rustix::io::read(&self.errors, &mut text[..]).unwrap_or(0);
        Err(io::Error::other(String::from_utf8_lossy(&text[..length]).into_owned()))
    }
}

#[cfg(test)]
#[expect(clippy::print_stdout, reason = "tests say why they cannot run")]
mod tests {
    use super::*;

    #[test]
    fn what_is_refused_is_told() {
        // A map for a range nobody was granted: every user but the real root gets EPERM, and root EINVAL for the overflow.
        let result = try_namespaces(&Ids::Own { uid_map: b"nonsense", gid_map: b"" });
        let (refused, error) = result.expect_err("no map");
        if refused == Refused::Unshare {
            println!("skipped: no user namespaces here: {error}");
            return;
        }
        assert_eq!((refused, error.raw_os_error()), (Refused::Maps, Some(libc::EINVAL)));
    }

    #[test]
    fn maps_from_outside_may_fail() {
        let result = try_namespaces(&Ids::Given(&|_| Err(io::Error::other("no"))));
        let (refused, error) = result.expect_err("no map");
        if refused == Refused::Unshare {
            println!("skipped: no user namespaces here: {error}");
            return;
        }
        assert_eq!((refused, error.to_string().as_str()), (Refused::Maps, "no"));
    }
}
