//! One root filesystem: every path is resolved inside it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Kind of a file, without its permission bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FileKind {
    /// Regular file.
    File,
    /// Directory.
    Directory,
    /// Symbolic link.
    Symlink,
    /// Named pipe.
    Fifo,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Unix socket.
    Socket,
}

/// What `lstat` says, with pretended owners and devices in place of real ones where ids are recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    /// Kind.
    pub kind: FileKind,
    /// Permission bits with setuid, setgid and sticky: 0 to 0o7777.
    pub mode: u32,
    /// Owner as the image sees it.
    pub uid: u32,
    /// Group as the image sees it.
    pub gid: u32,
    /// Device numbers (major, minor) of devices; zeros elsewhere.
    pub device: (u32, u32),
    /// Length in bytes of a regular file or link text.
    pub size: u64,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Inode number, equal for hard links within one tree.
    pub inode: u64,
    /// Number of hard links.
    pub links: u64,
}

/// Owner, mode, time and extended attributes to give to a file. `None` leaves what is there (or the default of a new
/// file: 0:0, 0644 or 0755, now).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Owner and group.
    pub owner: Option<(u32, u32)>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: Option<u32>,
    /// Modification time.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes by full name, such as `security.capability`; set in addition to those present.
    pub xattrs: Vec<(OsString, Vec<u8>)>,
}

/// What to create with [`Rootfs::create`].
pub enum NewFile<'a> {
    /// A regular file with these bytes.
    File(&'a mut dyn Read),
    /// A directory.
    Directory,
    /// A symbolic link with this text.
    Symlink(&'a Path),
    /// A named pipe.
    Fifo,
    /// A character device.
    CharDevice(u32, u32),
    /// A block device.
    BlockDevice(u32, u32),
}

/// A root filesystem open for reading and changing.
///
/// All paths are of the image: a leading `/` is the tree's root, `..` and symbolic links never leave it. Unless said
/// otherwise parents are followed and the last component is not. Not kept open: any descriptor but the root's.
#[derive(Debug)]
pub struct Rootfs {
    _root: OwnedFd,
}

impl Rootfs {
    /// Opens a plain directory as a root filesystem, real ids as they are.
    ///
    /// # Errors
    /// If it is not a directory that can be opened.
    pub fn open(_directory: &Path) -> io::Result<Self> {
        todo!()
    }

    /// The root directory itself, for `sandbox` to mount.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        todo!()
    }

    /// Follows every symbolic link in `path`, the last one only if `follow_last`, and gives the plain path within the
    /// tree (begins with `/`). What does not exist is taken literally from there on.
    ///
    /// # Errors
    /// `ELOOP` after 40 links (path_resolution(7)), `ENOTDIR`, `EACCES`.
    pub fn resolve(&self, _path: &Path, _follow_last: bool) -> io::Result<PathBuf> {
        todo!()
    }

    /// Metadata of `path` itself.
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn lstat(&self, _path: &Path) -> io::Result<Metadata> {
        todo!()
    }

    /// Metadata of what `path` leads to.
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn stat(&self, _path: &Path) -> io::Result<Metadata> {
        todo!()
    }

    /// Text of a symbolic link.
    ///
    /// # Errors
    /// `InvalidInput` if it is not one.
    pub fn read_link(&self, _path: &Path) -> io::Result<PathBuf> {
        todo!()
    }

    /// Names in a directory in byte order, with kinds; `path` is followed.
    ///
    /// # Errors
    /// `NotADirectory` and what the kernel says.
    pub fn read_dir(&self, _path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        todo!()
    }

    /// Opens a regular file for reading; the last component is not followed, and never blocks on a fifo or device.
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn open_file(&self, _path: &Path) -> io::Result<File> {
        todo!()
    }

    /// Extended attributes of `path` itself, sorted by name, without those that the tree uses for its own ends.
    ///
    /// # Errors
    /// What the kernel says, except that a file system without attributes has none.
    pub fn xattrs(&self, _path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        todo!()
    }

    /// Creates `path`, replacing whatever is there unless both are directories (then attributes are applied to it).
    /// Parents must exist. Holes in the data stay holes where that is cheap.
    ///
    /// # Errors
    /// `NotFound` if the parent is missing, `DirectoryNotEmpty` never: a directory in the way is removed whole.
    pub fn create(&self, _path: &Path, _file: NewFile<'_>, _attributes: &Attributes) -> io::Result<()> {
        todo!()
    }

    /// Opens the regular file `path` for writing from its beginning without replacing it (same inode), following a
    /// symbolic link at the end; created 0644 if missing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn overwrite(&self, _path: &Path) -> io::Result<File> {
        todo!()
    }

    /// Makes `path` a hard link to `existing`; replaces what is there.
    ///
    /// # Errors
    /// `NotFound` if `existing` is missing.
    pub fn hard_link(&self, _existing: &Path, _path: &Path) -> io::Result<()> {
        todo!()
    }

    /// Creates missing directories down to `path`, following links, each with `attributes`; returns those it made.
    ///
    /// # Errors
    /// `NotADirectory` if something else is in the way.
    pub fn create_dir_all(&self, _path: &Path, _attributes: &Attributes) -> io::Result<Vec<PathBuf>> {
        todo!()
    }

    /// Changes attributes of `path` itself.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_attributes(&self, _path: &Path, _attributes: &Attributes) -> io::Result<()> {
        todo!()
    }

    /// Removes `path` and all below it; missing is fine.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, _path: &Path) -> io::Result<()> {
        todo!()
    }

    /// Reads a small file, following links: `/etc/passwd` and the like.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData` if it is not a regular file or is longer than `limit` bytes.
    pub fn read_small(&self, _path: &Path, _limit: u64) -> io::Result<Vec<u8>> {
        todo!()
    }
}

/// Joins and cleans lexically: `.` and `..` and double slashes vanish, the result begins with `/`.
pub fn clean(path: &OsStr) -> PathBuf {
    let _ = path;
    todo!()
}
