//! One root filesystem: every path is resolved inside it.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::attributes::{Handle, Target, is_internal};
use super::overlay::Attached;
use super::owners::{Key, Owners};
use super::pretend::{Existing, Pretence};
use super::remove::remove_entry;
use super::resolve::{Dir, PLACE, Root};
use super::sparse::{Original, write_sparse};
use super::stat::Stat;
use super::touched::Touched;
use crate::disk::Disk;
use crate::spool::Place;

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// A regular file with the bytes of another one, shared with it where the file system can.
    Copy(Original<'a>),
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
///
/// Attributes in which overlayfs keeps its state (`trusted.overlay.*`, `user.overlay.*`) are neither shown nor set.
#[derive(Debug)]
pub struct Rootfs {
    root: Root,
    /// What is only pretended.
    pub(super) pretence: Pretence,
    /// What may be written.
    pub(super) disk: Disk,
    /// Where long lists of its files go.
    lists: Place,
    /// What a command touches, where somebody wants to know.
    touched: Option<Arc<Touched>>,
    /// Keeps a mount where it can be copied.
    _attached: Option<Attached>,
}

impl Rootfs {
    /// Opens a plain directory as a root filesystem, real ids as they are.
    ///
    /// # Errors
    /// If it is not a directory that can be opened.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self::from_fd(rustix::fs::open(directory, flags, Mode::empty())?))
    }

    /// The same tree, with owners, devices and privileged attributes recorded instead of made real.
    pub fn recording(self, owners: std::sync::Arc<Owners>) -> Self {
        self.pretending(Pretence::Recorded(owners))
    }

    /// The same tree; what the builder writes into it counts.
    pub(crate) fn within(self, disk: Disk) -> Self {
        Self { disk, ..self }
    }

    /// Takes a directory or detached mount that is open already.
    pub(super) fn from_fd(fd: OwnedFd) -> Self {
        Self {
            root: Root::new(fd),
            pretence: Pretence::Nothing,
            disk: Disk::default(),
            lists: None,
            touched: None,
            _attached: None,
        }
    }

    /// The same tree, which is a mount that is kept where it can be copied.
    pub(super) fn attached(self, attached: Option<Attached>) -> Self {
        Self { _attached: attached, ..self }
    }

    /// The same tree, with what cannot be made real here kept in another way.
    pub(super) fn pretending(self, pretence: Pretence) -> Self {
        Self { pretence, ..self }
    }

    /// The same tree, with files without a name in `directory` for long lists of what it holds. Without that they stay in
    /// memory.
    pub(crate) fn listing_in(self, directory: &Path) -> Self {
        Self { lists: Some(directory.into()), ..self }
    }

    /// The same tree, with a place to tell what a command touches.
    pub fn telling(self, touched: Arc<Touched>) -> Self {
        Self { touched: Some(touched), ..self }
    }

    /// Where a command that runs in the tree is to tell what it touches.
    pub fn touched(&self) -> Option<&Arc<Touched>> {
        self.touched.as_ref()
    }

    /// Where long lists of its files go.
    pub fn lists_in(&self) -> Place {
        self.lists.clone()
    }

    /// The root directory itself, for `sandbox` to mount. In overlay mode it is a mount that can be copied (open_tree(2)) while
    /// this lives.
    pub fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.fd()
    }

    /// Follows every symbolic link in `path`, the last one only if `follow_last`, and gives the plain path within the
    /// tree (begins with `/`). What does not exist is taken literally from there on.
    ///
    /// # Errors
    /// `ELOOP` after 40 links (path_resolution(7)), `ENOTDIR`, `EACCES`.
    pub fn resolve(&self, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
        self.root.resolve(path, follow_last)
    }

    /// Metadata of `path` itself.
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn lstat(&self, path: &Path) -> io::Result<Metadata> {
        Ok(self.stat_place(path, PLACE | OFlags::NOFOLLOW)?.metadata())
    }

    /// Metadata of what `path` leads to.
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn stat(&self, path: &Path) -> io::Result<Metadata> {
        Ok(self.stat_place(path, PLACE)?.metadata())
    }

    fn stat_place(&self, path: &Path, flags: OFlags) -> io::Result<Stat> {
        let place = self.root.open(path, flags, Mode::empty())?;
        Ok(self.stat_fd(&place)?)
    }

    /// The directory in which a path is an entry, and its name there; `None` for the root.
    pub(super) fn parent_of<'p>(&self, path: &'p Path) -> io::Result<Option<(Dir<'_>, std::borrow::Cow<'p, OsStr>)>> {
        self.root.parent(path)
    }

    /// Opens a place for the other parts of this module.
    pub(super) fn open_place(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.root.open(path, flags, mode)
    }

    /// Where owners, devices and privileged attributes are recorded; `None` where they are real.
    pub fn owners(&self) -> Option<&std::sync::Arc<Owners>> {
        self.pretence.owners()
    }

    /// Whether owners and devices are recorded, not real.
    pub(super) fn is_recorded(&self) -> bool {
        self.owners().is_some()
    }

    /// Text of a symbolic link.
    ///
    /// # Errors
    /// `InvalidInput` if it is not one.
    pub fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let place = self.root.open(path, PLACE | OFlags::NOFOLLOW, Mode::empty())?;
        match rustix::fs::readlinkat(&place, "", Vec::new()) {
            Ok(text) => Ok(OsString::from_vec(text.into_bytes()).into()),
            // readlinkat(2) on a descriptor says ENOENT for what is not a link.
            Err(Errno::NOENT | Errno::INVAL) => Err(Errno::INVAL.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Names in a directory in byte order, with kinds; `path` is followed.
    ///
    /// # Errors
    /// `NotADirectory` and what the kernel says.
    pub fn read_dir(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        let dir = self.root.open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut names = Vec::new();
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stored = FileKind::of(entry.file_type());
            let kind = match stored {
                Some(kind) if !self.may_be_device(kind, entry.ino()) => kind,
                // Some file systems do not store kinds in directories.
                _ => match self.stat_entry(&dir, name) {
                    Ok(stat) => stat.kind,
                    Err(Errno::NOENT) => continue,
                    Err(error) => return Err(error.into()),
                },
            };
            names.push((name.to_owned(), kind));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Opens a regular file for reading; the last component is not followed, and never blocks on a fifo or device.
    ///
    /// # Errors
    /// `NotFound` and what the kernel says; `InvalidInput` if it is not a regular file.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        let Some((dir, name)) = self.root.parent(path)? else { return Err(Errno::INVAL.into()) };
        // Looked at first, because opening a device is already an action.
        if self.stat_entry(&dir, &name)?.kind != FileKind::File {
            return Err(Errno::INVAL.into());
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&dir, &*name, flags, Mode::empty())?.into())
    }

    /// A descriptor of what `path` leads to, links followed, that can be mounted but not read (open(2), `O_PATH`).
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn open_path(&self, path: &Path) -> io::Result<OwnedFd> {
        self.root.open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
    }

    /// Extended attributes of `path` itself, sorted by name, without those that the tree uses for its own ends.
    ///
    /// # Errors
    /// What the kernel says, except that a file system without attributes has none.
    pub fn xattrs(&self, path: &Path) -> io::Result<Vec<(OsString, Vec<u8>)>> {
        let handle = self.handle(path)?;
        let real = handle.target().xattrs()?;
        let Some(owners) = self.owners() else { return Ok(real) };
        let mut all: BTreeMap<_, _> = real.into_iter().collect();
        all.extend(owners.xattrs(Key::of(&Stat::of(handle.target().fd())?)));
        Ok(all.into_iter().collect())
    }

    /// One extended attribute of `path` itself, by full name; `None` if it is not set.
    ///
    /// # Errors
    /// What the kernel says, except that a file system without attributes has none.
    pub fn xattr(&self, path: &Path, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        if is_internal(name) {
            return Ok(None);
        }
        let handle = self.handle(path)?;
        if let Some(owners) = self.owners() {
            let recorded = owners.xattrs(Key::of(&Stat::of(handle.target().fd())?));
            if let Some(value) = recorded.get(name) {
                return Ok(Some(value.clone()));
            }
        }
        handle.target().xattr(name)
    }

    /// As [`Rootfs::xattr`], of a file of this tree that is open.
    pub(crate) fn xattr_of(&self, file: &File, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
        if is_internal(name) {
            return Ok(None);
        }
        if let Some(owners) = self.owners() {
            let recorded = owners.xattrs(Key::of(&Stat::of(file)?));
            if let Some(value) = recorded.get(name) {
                return Ok(Some(value.clone()));
            }
        }
        Target::Open(file.as_fd()).xattr(name)
    }

    fn handle(&self, path: &Path) -> io::Result<Handle> {
        let (dir, name) = self.place(path)?;
        let kind = if name.is_empty() { FileKind::Directory } else { Stat::entry(&dir, &name)?.kind };
        Ok(Handle::entry(&dir, &name, kind)?)
    }

    /// Parent and name; the name is empty for the root itself.
    fn place<'p>(&self, path: &'p Path) -> io::Result<(Dir<'_>, std::borrow::Cow<'p, OsStr>)> {
        Ok(match self.root.parent(path)? {
            Some(place) => place,
            None => (Dir::Root(self.root.fd()), OsStr::new("").into()),
        })
    }

    /// Creates `path`, replacing whatever is there unless both are directories (then attributes are applied to it).
    /// Parents must exist. Holes in the data stay holes where that is cheap.
    ///
    /// # Errors
    /// `NotFound` if the parent is missing, `DirectoryNotEmpty` never: a directory in the way is removed whole.
    pub fn create(&self, path: &Path, file: NewFile<'_>, attributes: &Attributes) -> io::Result<()> {
        let Some((dir, name)) = self.root.parent(path)? else {
            return match file {
                NewFile::Directory => self.set_attributes(path, attributes),
                _ => Err(Errno::BUSY.into()),
            };
        };
        self.create_at(&dir, &name, file, attributes)
    }

    /// Like [`Rootfs::create`] in an open directory.
    pub(super) fn create_at(
        &self,
        dir: &impl AsFd,
        name: &OsStr,
        file: NewFile<'_>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let kind = file.kind();
        match file {
            NewFile::File(data) => {
                return self.create_regular(dir, name, attributes, &mut |to| write_sparse(data, to, &self.disk));
            }
            NewFile::Copy(mut original) => {
                return self.create_regular(dir, name, attributes, &mut |to| original.copy_to(to, &self.disk));
            }
            NewFile::Directory => match rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    if Stat::entry(dir, name)?.kind == FileKind::Directory {
                        let handle = Handle::entry(dir, name, kind)?;
                        return self.apply(handle.target(), kind, attributes, Existing::Changed);
                    }
                    replacing(dir, name, || rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755)))?;
                }
                Err(error) => return Err(error.into()),
            },
            NewFile::Symlink(text) => replacing(dir, name, || rustix::fs::symlinkat(text, dir, name))?,
            NewFile::Fifo => {
                let mode = Mode::from_raw_mode(0o600);
                replacing(dir, name, || rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0))?;
            }
            NewFile::CharDevice(major, minor) | NewFile::BlockDevice(major, minor) => {
                replacing(dir, name, || self.make_device(dir, name, kind, (major, minor)))?;
            }
        }
        let handle = Handle::entry(dir, name, kind)?;
        self.apply(handle.target(), kind, attributes, Existing::New)
    }

    /// A regular file in an open directory, with what `fill` writes.
    fn create_regular(
        &self,
        dir: &impl AsFd,
        name: &OsStr,
        attributes: &Attributes,
        fill: &mut dyn FnMut(&File) -> io::Result<()>,
    ) -> io::Result<()> {
        let file = File::from(replacing(dir, name, || new_file(dir, name))?);
        self.is_new(&file)?;
        let written = fill(&file)
            .and_then(|()| self.apply(Target::Open(file.as_fd()), FileKind::File, attributes, Existing::New));
        if written.is_err() {
            // Half a file is worse than none. If even this fails, the first error says more.
            _ = rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        written
    }

    /// Opens the regular file `path` for writing from its beginning without replacing it (same inode), following a
    /// symbolic link at the end; created 0644 if missing.
    ///
    /// # Errors
    /// What the kernel says; `InvalidInput` if it is neither missing nor a regular file.
    pub fn overwrite(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        match self.stat_place(path, PLACE) {
            Ok(stat) if stat.kind == FileKind::File => {
                self.own_at(path)?;
                Ok(self.root.open(path, flags | OFlags::TRUNC, Mode::empty())?.into())
            }
            Ok(_) => Err(Errno::INVAL.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fd = self.root.open(path, flags | OFlags::CREATE, Mode::from_raw_mode(0o644))?;
                let attributes = Attributes::default();
                self.apply(Target::Open(fd.as_fd()), FileKind::File, &attributes, Existing::New)?;
                Ok(fd.into())
            }
            Err(error) => Err(error),
        }
    }

    /// Makes `path` a hard link to `existing`; replaces what is there. Neither last component is followed.
    ///
    /// # Errors
    /// `NotFound` if `existing` is missing; `PermissionDenied` if it is a directory.
    pub fn hard_link(&self, existing: &Path, path: &Path) -> io::Result<()> {
        let (Some((from, old)), Some((to, new))) = (self.root.parent(existing)?, self.root.parent(path)?) else {
            return Err(Errno::PERM.into());
        };
        self.own(&from, &old)?;
        match rustix::fs::linkat(&from, &*old, &to, &*new, AtFlags::empty()) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
        let (source, target) = (Stat::entry(&from, &old)?, Stat::entry(&to, &new)?);
        if source.kind == FileKind::Directory {
            return Err(Errno::PERM.into());
        }
        if source.inode == target.inode && target.kind == source.kind {
            return Ok(());
        }
        remove_entry(&to, &new)?;
        Ok(rustix::fs::linkat(&from, &*old, &to, &*new, AtFlags::empty())?)
    }

    /// Creates missing directories down to `path`, following links, each with `attributes`; returns those it made.
    ///
    /// # Errors
    /// `NotADirectory` if something else is in the way.
    pub fn create_dir_all(&self, path: &Path, attributes: &Attributes) -> io::Result<Vec<PathBuf>> {
        let plain = self.root.resolve(path, true)?;
        let mut missing = Vec::new();
        for ancestor in plain.ancestors() {
            match self.stat_place(ancestor, PLACE | OFlags::NOFOLLOW) {
                Ok(stat) if stat.kind == FileKind::Directory => break,
                Ok(_) => return Err(Errno::NOTDIR.into()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(ancestor.to_owned()),
                Err(error) => return Err(error),
            }
        }
        missing.reverse();
        for directory in &missing {
            self.create(directory, NewFile::Directory, attributes)?;
        }
        Ok(missing)
    }

    /// Changes attributes of `path` itself.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        let (dir, name) = self.place(path)?;
        self.set_attributes_at(&dir, &name, attributes)
    }

    /// Like [`Rootfs::set_attributes`] in an open directory, or of the directory itself if the name is empty.
    pub(super) fn set_attributes_at(&self, dir: &impl AsFd, name: &OsStr, attributes: &Attributes) -> io::Result<()> {
        let kind = if name.is_empty() { FileKind::Directory } else { Stat::entry(dir, name)?.kind };
        if kind == FileKind::File {
            self.own(dir, name)?;
        }
        let handle = Handle::entry(dir, name, kind)?;
        self.apply(handle.target(), kind, attributes, Existing::Changed)
    }

    /// Removes `path` and all below it; missing is fine. Of the root itself only the content goes.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match self.root.parent(path) {
            Ok(Some((dir, name))) => remove_entry(&dir, &name),
            Ok(None) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY;
                super::remove::remove_content(self.root.open(Path::new("/"), flags, Mode::empty())?)
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Reads a small file, following links: `/etc/passwd` and the like.
    ///
    /// # Errors
    /// `NotFound`; `InvalidData` if it is not a regular file or is longer than `limit` bytes.
    pub fn read_small(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let stat = self.stat_place(path, PLACE)?;
        if stat.kind != FileKind::File || stat.size > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let file = File::from(self.root.open(path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty())?);
        let mut bytes = Vec::new();
        if file.take(limit.saturating_add(1)).read_to_end(&mut bytes)? as u64 > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    }
}

impl NewFile<'_> {
    fn kind(&self) -> FileKind {
        match self {
            Self::File(_) | Self::Copy(_) => FileKind::File,
            Self::Directory => FileKind::Directory,
            Self::Symlink(_) => FileKind::Symlink,
            Self::Fifo => FileKind::Fifo,
            Self::CharDevice(..) => FileKind::CharDevice,
            Self::BlockDevice(..) => FileKind::BlockDevice,
        }
    }
}

/// Makes something under a name; what has the name already gives way.
pub(super) fn replacing<T>(dir: &impl AsFd, name: &OsStr, make: impl Fn() -> rustix::io::Result<T>) -> io::Result<T> {
    match make() {
        Err(Errno::EXIST) => {
            remove_entry(dir, name)?;
            Ok(make()?)
        }
        other => Ok(other?),
    }
}

/// Opens a file that must not exist, for writing.
pub(super) fn new_file(dir: &impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
