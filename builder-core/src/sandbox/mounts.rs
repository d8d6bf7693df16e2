//! Mounts made by the parent, detached: the child only has to attach them.
//!
//! A bind of something in the parent's mount namespace must be cloned by the parent: the child has a namespace of its own,
//! and open_tree(2) clones nothing from others. What belongs to one of the child's namespaces (/proc, /dev/mqueue, …) is
//! mounted by the child.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};

use super::dev;
use super::sys::{MountAttributes, mount_setattr};

/// Size of the tmpfs at /dev, as Docker has it.
const DEV_OPTIONS: [(&str, &str); 2] = [("mode", "755"), ("size", "65536k")];

/// Name of an empty directory in the staging tmpfs, shown in place of masked directories.
pub const EMPTY: &CStr = c"empty";

/// Name of a directory in the staging tmpfs that is like `/sys/class/net` of a network with nothing but loopback.
pub const LOOPBACK_ONLY: &CStr = c"net";

/// A detached tmpfs.
///
/// # Errors
/// What the kernel says.
pub fn tmpfs(options: &[(&str, &str)], flags: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What df(1) shows; "none" otherwise.
    if options.iter().all(|(key, _)| *key != "source") {
        rustix::mount::fsconfig_set_string(context.as_fd(), "source", "tmpfs")?;
    }
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mount = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, flags)?;
    Ok(mount)
}

/// A detached copy of the mount that `path` is on, beginning there; an empty path is `from` itself.
///
/// # Errors
/// What the kernel says.
pub fn bind(from: BorrowedFd<'_>, path: &Path, flags: MountAttrFlags, recursive: bool) -> io::Result<OwnedFd> {
    let (mount, recursive) = match clone(from, path, recursive) {
        // In a user namespace what is mounted further in may not be left out, because that would show what it hides:
        // mount_namespaces(7), "Restrictions".
        Err(Errno::INVAL) if !recursive => (clone(from, path, true)?, true),
        result => (result?, recursive),
    };
    mount_setattr(mount.as_fd(), &MountAttributes::private(flags.bits()), recursive)?;
    Ok(mount)
}

fn clone(from: BorrowedFd<'_>, path: &Path, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut how = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        how |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(from, path, how)
}

/// The root of a RUN: a detached copy of the mount behind `root`, without device nodes, with setuid programs.
///
/// # Errors
/// What the kernel says.
pub fn root(root: BorrowedFd<'_>, allow_devices: bool) -> io::Result<OwnedFd> {
    let mount = match clone(root, Path::new(""), false) {
        Ok(mount) => mount,
        // Before Linux 6.15 a mount that was never attached cannot be cloned; it is attached itself then, and lives on for
        // whoever holds a descriptor of it.
        Err(Errno::INVAL) => root.try_clone_to_owned()?,
        Err(errno) => return Err(errno.into()),
    };
    let nodev = if allow_devices { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    let mut attributes = MountAttributes::private(nodev.bits());
    // The work dir may lie on a filesystem mounted nosuid or noexec (/tmp often is); in a user namespace that stays so.
    attributes.clear = u64::from((MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC).bits());
    match mount_setattr(mount.as_fd(), &attributes, false) {
        Err(Errno::PERM) => {
            attributes.clear = 0;
            mount_setattr(mount.as_fd(), &attributes, false)?;
        }
        result => result?,
    }
    Ok(mount)
}

/// The tmpfs for /dev: empty files and directories to mount on, and links.
///
/// # Errors
/// What the kernel says.
pub fn dev(devices: &[&str], allow_devices: bool) -> io::Result<OwnedFd> {
    let mut flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    if !allow_devices {
        flags |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    let mount = tmpfs(&DEV_OPTIONS, flags)?;
    for name in [c"pts", c"shm", c"mqueue", c"net"] {
        if name != c"net" || devices.iter().any(|device| device.starts_with("net/")) {
            make_directory(&mount, name)?;
        }
    }
    for name in devices {
        write_file(&mount, *name, b"", 0o666, (0, 0))?;
    }
    for (name, text) in dev::LINKS.into_iter().chain([("ptmx", "pts/ptmx")]) {
        rustix::fs::symlinkat(text, &mount, name)?;
    }
    Ok(mount)
}

/// A device node of the host.
///
/// # Errors
/// What the kernel says; `ENOENT` if the host has none.
pub fn device(name: &str) -> io::Result<OwnedFd> {
    let host = rustix::fs::open("/dev", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    bind(host.as_fd(), Path::new(name), flags, false)
}

/// The staging tmpfs: files that the child mounts one by one, and [`EMPTY`].
///
/// # Errors
/// What the kernel says.
pub fn staging() -> io::Result<OwnedFd> {
    // 700: nobody but the sandbox itself has to reach it by path.
    let mount = tmpfs(&[("mode", "700")], MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID)?;
    make_directory(&mount, EMPTY)?;
    make_directory(&mount, LOOPBACK_ONLY)?;
    let target = [LOOPBACK_ONLY.to_bytes(), b"/lo"].concat();
    rustix::fs::symlinkat(c"../../devices/virtual/net/lo", &mount, target)?;
    Ok(mount)
}

fn make_directory(mount: &OwnedFd, name: &CStr) -> io::Result<()> {
    rustix::fs::mkdirat(mount, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    // mkdirat obeys the umask.
    Ok(rustix::fs::fchmod(rustix::fs::openat(mount, name, flags, Mode::empty())?, Mode::from_raw_mode(0o755))?)
}

/// Writes a file into a mount of ours.
///
/// # Errors
/// What the kernel says: `EINVAL` for an owner that does not exist in this user namespace.
pub fn write_file(
    mount: &OwnedFd,
    name: impl rustix::path::Arg,
    content: &[u8],
    mode: u32,
    owner: (u32, u32),
) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(mount, name, flags, Mode::from_raw_mode(0o600))?;
    let mut file = std::fs::File::from(file);
    io::Write::write_all(&mut file, content)?;
    let (uid, gid) = (rustix::fs::Uid::from_raw(owner.0), rustix::fs::Gid::from_raw(owner.1));
    rustix::fs::fchown(&file, Some(uid), Some(gid))?;
    Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?)
}

/// `/dev/null` of the host, for standard input.
///
/// # Errors
/// What the kernel says.
pub fn open_null() -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, "/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}
