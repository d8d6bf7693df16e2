//! Owner, mode, times and extended attributes of one file: read and set, in the order that loses none.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::FileKind;
use super::resolve::ITSELF;

/// Largest value of an extended attribute in bytes (xattr(7)).
const XATTR_BYTES: usize = 64 * 1024;

/// Prefixes of attributes in which overlayfs keeps its own state. They are neither shown nor set: a layer that carried
/// one could otherwise make files appear or vanish.
const OVERLAY_PREFIXES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];

/// The one attribute of which the kernel and a layer make something: capabilities(7).
pub const CAPABILITY: &str = "security.capability";

/// The value of [`CAPABILITY`] among attributes.
pub fn capability(attributes: impl IntoIterator<Item = (OsString, Vec<u8>)>) -> Option<Vec<u8>> {
    attributes.into_iter().find(|(name, _)| name == CAPABILITY).map(|(_, value)| value)
}

/// Attribute of an empty regular file that stands for a device.
pub(super) const DEVICE_MARK: &str = "user.slipway.device";

/// Attribute of a file whose owner does not exist here: who it is.
pub(super) const OWNER_MARK: &str = "user.slipway.owner";

/// Whether the attribute belongs to overlayfs or to us, not to the image.
pub(super) fn is_internal(name: &OsStr) -> bool {
    name == DEVICE_MARK
        || name == OWNER_MARK
        || OVERLAY_PREFIXES.iter().any(|prefix| name.as_bytes().starts_with(prefix))
}

/// A file to read or change attributes of: by a descriptor that may do so, or as an entry of a directory.
#[derive(Debug, Clone, Copy)]
pub(super) enum Target<'a> {
    /// An open regular file or directory, not `O_PATH`.
    Open(BorrowedFd<'a>),
    /// An `O_PATH` descriptor of something that must not be opened: a device, a fifo, a link.
    Place(BorrowedFd<'a>, FileKind),
}

impl<'a> Target<'a> {
    pub(super) fn fd(self) -> BorrowedFd<'a> {
        match self {
            Self::Open(fd) | Self::Place(fd, _) => fd,
        }
    }

    pub(super) fn chown(self, uid: u32, gid: u32) -> io::Result<()> {
        let (uid, gid) = (id(uid)?, id(gid)?);
        let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        match self {
            Self::Open(fd) => rustix::fs::fchown(fd, uid, gid)?,
            Self::Place(fd, _) => rustix::fs::chownat(fd, "", uid, gid, ITSELF)?,
        }
        Ok(())
    }

    /// Symbolic links have no mode of their own.
    pub(super) fn chmod(self, mode: u32) -> io::Result<()> {
        let mode = Mode::from_raw_mode(mode & 0o7777);
        match self {
            Self::Open(fd) => rustix::fs::fchmod(fd, mode)?,
            Self::Place(_, FileKind::Symlink) => {}
            Self::Place(fd, _) => rustix::fs::chmod(proc_path(fd), mode)?,
        }
        Ok(())
    }

    pub(super) fn set_mtime(self, mtime: (i64, u32)) -> io::Result<()> {
        let times = timestamps(mtime);
        match self {
            Self::Open(fd) => rustix::fs::futimens(fd, &times)?,
            Self::Place(fd, _) => match rustix::fs::utimensat(fd, "", &times, ITSELF) {
                // AT_EMPTY_PATH came with Linux 5.8.
                Err(Errno::INVAL | Errno::NOENT) => {
                    rustix::fs::utimensat(rustix::fs::CWD, proc_path(fd), &times, AtFlags::empty())?;
                }
                other => other?,
            },
        }
        Ok(())
    }

    pub(super) fn set_xattr(self, name: &OsStr, value: &[u8]) -> rustix::io::Result<()> {
        match self {
            Self::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
            Self::Place(fd, _) => rustix::fs::setxattr(proc_path(fd), name, value, XattrFlags::empty()),
        }
    }

    pub(super) fn remove_xattr(self, name: &OsStr) -> io::Result<()> {
        match self {
            Self::Open(fd) => rustix::fs::fremovexattr(fd, name)?,
            Self::Place(fd, _) => rustix::fs::removexattr(proc_path(fd), name)?,
        }
        Ok(())
    }

    /// Value of one attribute; `None` if it is not set or the file system has none.
    pub(super) fn xattr(self, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        let mut value = Vec::new();
        // Nearly every value fits at once, so the size is asked for only when one does not.
        let mut capacity = 256;
        loop {
            value.clear();
            value.reserve(capacity);
            let result = match self {
                Self::Open(fd) => rustix::fs::fgetxattr(fd, name, spare_capacity(&mut value)),
                Self::Place(fd, _) => rustix::fs::getxattr(proc_path(fd), name, spare_capacity(&mut value)),
            };
            match result {
                Ok(_) => return Ok(Some(value)),
                Err(Errno::RANGE) if capacity < XATTR_BYTES => capacity = XATTR_BYTES,
                Err(error) if has_none(error) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Attributes sorted by name, without internal ones.
    pub(super) fn xattrs(self) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        let mut found = self.all_xattrs()?;
        found.retain(|(name, _)| !is_internal(name));
        Ok(found)
    }

    /// Gives `to` all attributes of this one, internal ones too, as far as `to` may have them.
    pub(super) fn copy_xattrs(self, to: Target<'_>) -> io::Result<()> {
        for (name, value) in self.all_xattrs()? {
            tolerate(&name, to.set_xattr(&name, &value))?;
        }
        Ok(())
    }

    /// Attributes sorted by name, also those that belong to overlayfs or to us.
    fn all_xattrs(self) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        let mut list = Vec::new();
        let mut capacity = 256;
        loop {
            list.clear();
            list.reserve(capacity);
            let result = match self {
                Self::Open(fd) => rustix::fs::flistxattr(fd, spare_capacity(&mut list)),
                Self::Place(fd, _) => rustix::fs::listxattr(proc_path(fd), spare_capacity(&mut list)),
            };
            match result {
                Ok(_) => break,
                Err(Errno::RANGE) if capacity < XATTR_BYTES => capacity = XATTR_BYTES,
                Err(error) if has_none(error) => return Ok(Vec::new()),
                Err(error) => return Err(error.into()),
            }
        }
        let mut found = Vec::new();
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let name = OsStr::from_bytes(name);
            if let Some(value) = self.xattr(name)? {
                found.push((OsString::from_vec(name.as_bytes().to_vec()), value));
            }
        }
        found.sort();
        Ok(found)
    }
}

/// A descriptor for [`Target`], kept open with it.
#[derive(Debug)]
pub(super) enum Handle {
    Open(OwnedFd),
    Place(OwnedFd, FileKind),
}

impl Handle {
    /// Opens an entry of a directory (the directory itself for an empty name) of this kind in the way its attributes
    /// can be had.
    pub(super) fn entry(dir: impl AsFd, name: &OsStr, kind: FileKind) -> rustix::io::Result<Self> {
        if matches!(kind, FileKind::File | FileKind::Directory) {
            let name = if name.is_empty() { OsStr::new(".") } else { name };
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
            match rustix::fs::openat(&dir, name, flags, Mode::empty()) {
                Ok(fd) => return Ok(Self::Open(fd)),
                // No right to read it, which attributes do not need.
                Err(Errno::ACCESS | Errno::PERM) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::Place(super::resolve::entry(dir, name)?, kind))
    }

    pub(super) fn target(&self) -> Target<'_> {
        match self {
            Self::Open(fd) => Target::Open(fd.as_fd()),
            Self::Place(fd, kind) => Target::Place(fd.as_fd(), *kind),
        }
    }
}

/// A short attribute of an entry of a directory (of the descriptor itself for an empty name), if it can be had.
pub(super) fn entry_xattr(dir: impl AsFd, name: &OsStr, attribute: &OsStr) -> Option<Vec<u8>> {
    let mut path = OsString::from(proc_path(dir.as_fd()));
    let mut value = Vec::with_capacity(64);
    // A descriptor's own path is a link to be followed, an entry's must not be.
    let found = if name.is_empty() {
        rustix::fs::getxattr(path, attribute, spare_capacity(&mut value))
    } else {
        path.push("/");
        path.push(name);
        rustix::fs::lgetxattr(path, attribute, spare_capacity(&mut value))
    };
    found.is_ok().then_some(value)
}

/// What became of an attribute that was to be set.
///
/// A file system without extended attributes drops them (`ENOTSUP`). Without privileges `trusted.*` and `security.*`
/// cannot be set either and are dropped, except file capabilities: an image without them is another image.
pub(super) fn tolerate(name: &OsStr, result: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match result {
        Err(error @ Errno::NOTSUP) => {
            tracing::debug!(name = %name.display(), %error, "extended attribute dropped: the file system has none");
            Ok(())
        }
        Err(error @ (Errno::PERM | Errno::INVAL)) if name != CAPABILITY => {
            tracing::debug!(name = %name.display(), %error, "extended attribute dropped: no right to set it");
            Ok(())
        }
        other => other,
    }
}

/// Modification time with the access time left alone.
pub(super) fn timestamps((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// chown(2) would take the last id for "leave it".
fn id(id: u32) -> rustix::io::Result<u32> {
    if id == u32::MAX { Err(Errno::INVAL) } else { Ok(id) }
}

fn has_none(error: Errno) -> bool {
    // EPERM: user attributes of something that is neither a file nor a directory. ENOENT: no procfs to ask through.
    matches!(error, Errno::NODATA | Errno::NOTSUP | Errno::PERM | Errno::NOENT)
}

/// A path that leads to what the descriptor stands for, whatever its kind, without opening it (proc(5)).
fn proc_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
