//! One layer's tar → a directory: either onto the lower layers' files, whiteouts applied, or alone, whiteouts kept in the
//! form that overlayfs reads (image-spec, layer.md; kernel, Documentation/filesystems/overlayfs.rst).
//!
//! A name in a tar is cleaned lexically, its parents are followed within the root, its last component never is: so
//! `lib/x` lands in `usr/lib/x` where `lib` is a link. Parents that no entry describes are made 0755, owned by root, with
//! the time 0; such a parent that was there keeps its own time. An entry for the root itself changes nothing, as in
//! containerd. A whiteout hides what lower layers have whatever the order of entries; what the same layer brings stays.
//!
//! # Limitations
//! Devices that a user namespace may not make are left out where the file system has no user attributes to mark a file
//! that stands for one, as other tools without privileges always do.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::archive::{TarEntry, TarError, TarKind, TarReader};
use super::attributes::{Handle, Target, timestamps};
use super::fetch::Stop;
use super::index::Recorder;
use super::overlay::{Marks, is_opaque, is_whiteout};
use super::pretend::Existing;
use super::remove::remove_entry;
use super::resolve::PLACE;
use super::sparse::SparseWriter;
use super::stat::Stat;
use super::tree::new_file;
use super::{Attributes, FileKind, Rootfs, clean};
use crate::disk::Disk;

/// Prefix of a name that hides the rest of the name (image-spec, layer.md, "Whiteouts").
pub(super) const WHITEOUT: &[u8] = b".wh.";

/// Prefix of names with which aufs kept its own state; all but the opaque marker are passed over.
pub(super) const WHITEOUT_META: &[u8] = b".wh..wh.";

/// Name that hides all that lower layers have in its directory.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a layer's whiteouts become.
#[derive(Debug, Clone, Copy)]
pub(super) enum Whiteouts {
    /// What they name is removed: the directory holds the lower layers.
    Apply,
    /// They are kept for overlayfs: the directory holds this layer alone.
    Keep(Marks),
}

/// Why an entry cannot be unpacked.
#[derive(Debug, thiserror::Error)]
pub(super) enum EntryProblem {
    #[error("a whiteout of nothing, or of a directory above")]
    WhiteoutName,
    #[error("hard link to `{}`, which is not there", .0.display())]
    LinkTarget(PathBuf),
    #[error("hard link to the directory `{}`", .0.display())]
    LinkToDirectory(PathBuf),
    #[error("`{}` leads to something that is not a directory", .0.display())]
    Parent(PathBuf),
    #[error("the name is too long for the file system")]
    NameTooLong,
}

/// Why a layer cannot be unpacked.
#[derive(Debug)]
pub(super) enum UnpackError {
    Tar(TarError),
    Entry {
        entry: PathBuf,
        problem: EntryProblem,
    },
    /// The user namespace does not have the id.
    Unmapped {
        entry: PathBuf,
        uid: u32,
        gid: u32,
    },
    /// The disk or kernel refused at this path of the tree.
    Io {
        path: PathBuf,
        source: io::Error,
    },
    Cancelled,
}

impl From<TarError> for UnpackError {
    fn from(error: TarError) -> Self {
        Self::Tar(error)
    }
}

/// What a layer unpacked alone could not know about the layers below it.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// Directories that no entry described, made or found.
    pub implied: BTreeSet<PathBuf>,
    /// Those of them that a whiteout in this layer names too: they have nothing from below.
    pub renewed: BTreeSet<PathBuf>,
    /// Whiteouts that were made.
    pub whiteouts: BTreeSet<PathBuf>,
    /// Hard links to what is not in this layer.
    pub links: Vec<PendingLink>,
    /// Whether nothing of the lower layers is left at all.
    pub opaque_root: bool,
}

impl Pending {
    /// Whether the layer is right as it is.
    pub(super) fn is_empty(&self) -> bool {
        self.implied.is_empty() && self.whiteouts.is_empty() && self.links.is_empty() && !self.opaque_root
    }
}

#[derive(Debug)]
pub(super) struct PendingLink {
    pub path: PathBuf,
    pub target: PathBuf,
    pub attributes: Attributes,
    /// The layer has a directory there, which is right only if it stands for a link of a lower layer.
    pub through_directory: bool,
}

/// Unpacks all entries of `tar` into `rootfs` and reads the stream to its end; `index` gets each of them.
pub(super) fn unpack<R: BufRead>(
    tar: R,
    rootfs: &Rootfs,
    whiteouts: Whiteouts,
    mut index: Option<&mut Recorder>,
    stop: &Stop<'_>,
) -> Result<(R, Pending), UnpackError> {
    let mut reader = TarReader::new(tar);
    let mut unpacker = Unpacker::new(rootfs, whiteouts)?;
    while let Some(entry) = reader.next_entry().map_err(UnpackError::Tar)? {
        if stop.is_stopped() {
            return Err(UnpackError::Cancelled);
        }
        match &mut index {
            Some(index) => index.entry(entry, &mut reader, |entry, mut data| unpacker.entry(entry, &mut data))?,
            None => unpacker.entry(entry, &mut reader)?,
        }
    }
    let pending = unpacker.finish()?;
    let rest = reader.finish().map_err(|error| UnpackError::Tar(TarError::Read(error)))?;
    Ok((rest, pending))
}

pub(super) struct Unpacker<'a> {
    pub(super) rootfs: &'a Rootfs,
    pub(super) whiteouts: Whiteouts,
    /// The directory of the last entry and those above it, the root first.
    pub(super) levels: Vec<Level>,
    /// Times that directories get at the end, by plain path.
    pub(super) times: BTreeMap<PathBuf, (i64, u32)>,
    /// Hashes of the plain paths that this layer brought.
    pub(super) brought: BTreeSet<u64>,
    pub(super) pending: Pending,
    /// Whether files that we make belong to 0:0 by themselves.
    pub(super) root_process: bool,
}

#[derive(Debug, Clone)]
pub(super) struct Level {
    /// Name in the tar; may be that of a link to the directory.
    pub(super) name: OsString,
    /// Plain path without a leading slash.
    pub(super) path: PathBuf,
    pub(super) dir: Option<Arc<OwnedFd>>,
    /// New entries get the directory's group.
    pub(super) setgid: bool,
}

impl<'a> Unpacker<'a> {
    fn new(rootfs: &'a Rootfs, whiteouts: Whiteouts) -> Result<Self, UnpackError> {
        let root = rootfs.open_place(Path::new("/"), PLACE | OFlags::DIRECTORY, Mode::empty());
        let root = root.map_err(|source| UnpackError::Io { path: PathBuf::from("/"), source })?;
        let setgid = is_setgid(&stat(&root, Path::new("/"))?);
        Ok(Self {
            rootfs,
            whiteouts,
            levels: vec![Level { name: OsString::new(), path: PathBuf::new(), dir: Some(Arc::new(root)), setgid }],
            times: BTreeMap::new(),
            brought: BTreeSet::new(),
            pending: Pending::default(),
            root_process: !rootfs.is_recorded()
                && rustix::process::geteuid().is_root()
                && rustix::process::getegid().is_root(),
        })
    }

    fn entry(&mut self, entry: TarEntry, data: &mut impl BufRead) -> Result<(), UnpackError> {
        let plain = clean(&entry.name);
        let names: Vec<&OsStr> = plain
            .components()
            .filter_map(|component| match component {
                Component::Normal(name) => Some(name),
                _ => None,
            })
            .collect();
        let Some((name, parents)) = names.split_last() else { return Ok(()) };
        let (name, parents) = (*name, parents);
        if parents.iter().any(|parent| parent.as_bytes().starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if name.as_bytes() == OPAQUE {
                self.enter(parents)?;
                return self.hide_all();
            }
            if name.as_bytes().starts_with(WHITEOUT_META) {
                return Ok(());
            }
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(UnpackError::Entry { entry: plain, problem: EntryProblem::WhiteoutName });
            }
            self.enter(parents)?;
            return self.hide(OsStr::from_bytes(hidden));
        }
        self.enter(parents)?;
        if entry.kind == TarKind::CharDevice && entry.device == (0, 0) {
            // Overlayfs would take it for a whiteout, wherever it comes from.
            return self.hide(name);
        }
        let (dir, path) = self.place(name);
        self.write(&dir, name, &path, entry, data)?;
        self.brought.insert(hash(&path));
        Ok(())
    }

    /// The current directory, and the plain path of an entry in it.
    pub(super) fn place(&self, name: &OsStr) -> (Arc<OwnedFd>, PathBuf) {
        let top = self.levels.last().expect("the root is never popped");
        let dir = top.dir.as_ref().expect("enter() opens the last level");
        (Arc::clone(dir), top.path.join(name))
    }

    fn write(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        entry: TarEntry,
        data: &mut impl BufRead,
    ) -> Result<(), UnpackError> {
        let owner = (entry.uid, entry.gid);
        let fail = |source: io::Error| entry_error(path, Some(owner), source);
        let mut attributes =
            Attributes { owner: Some(owner), mode: Some(entry.mode), mtime: Some(entry.mtime), xattrs: entry.xattrs };
        // The owner of most files is who we are, and a system call for each counts.
        let setgid = self.levels.last().is_some_and(|level| level.setgid);
        let owned = owner == (0, 0) && self.root_process && !setgid;
        match entry.kind {
            TarKind::File => {
                let file = File::from(self.make(dir, name, path, || new_file(&dir, name))?);
                self.rootfs.is_new(&file).map_err(|error| fail(error.into()))?;
                write_data(&file, entry.size, entry.sparse.as_deref(), data, (path, &self.rootfs.disk))?;
                if owned {
                    attributes.owner = None;
                }
                self.rootfs
                    .apply(Target::Open(file.as_fd()), FileKind::File, &attributes, Existing::Changed)
                    .map_err(fail)
            }
            TarKind::Symlink => {
                self.make(dir, name, path, || rustix::fs::symlinkat(&*entry.link, dir, name))?;
                if attributes.xattrs.is_empty() && !self.rootfs.is_recorded() {
                    // By name, which saves opening each of thousands of links.
                    let times = timestamps(entry.mtime);
                    let nofollow = AtFlags::SYMLINK_NOFOLLOW;
                    let chown = || {
                        if owned {
                            return Ok(());
                        }
                        let valid = owner.0 != u32::MAX && owner.1 != u32::MAX;
                        let (uid, gid) = if valid { owner } else { return Err(Errno::INVAL) };
                        rustix::fs::chownat(dir, name, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)), nofollow)
                    };
                    let result = chown().and_then(|()| rustix::fs::utimensat(dir, name, &times, nofollow));
                    return result.map_err(|error| fail(error.into()));
                }
                self.finish_entry(dir, name, FileKind::Symlink, &attributes).map_err(fail)
            }
            TarKind::Directory => {
                self.directory(dir, name, path, &attributes)?;
                self.times.insert(path.to_owned(), entry.mtime);
                self.pending.implied.remove(path);
                Ok(())
            }
            TarKind::HardLink => self.hard_link(dir, name, path, &entry.link, attributes),
            TarKind::Fifo => {
                let mode = Mode::from_raw_mode(0o600);
                self.make(dir, name, path, || rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0))?;
                self.finish_entry(dir, name, FileKind::Fifo, &attributes).map_err(fail)
            }
            TarKind::CharDevice | TarKind::BlockDevice => {
                let kind = match entry.kind {
                    TarKind::CharDevice => FileKind::CharDevice,
                    _ => FileKind::BlockDevice,
                };
                let rootfs = self.rootfs;
                match self.make(dir, name, path, || rootfs.make_device(dir, name, kind, entry.device)) {
                    Ok(()) => self.finish_entry(dir, name, kind, &attributes).map_err(fail),
                    Err(UnpackError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => {
                        tracing::debug!(path = %path.display(), "device left out: no right to make it");
                        Ok(())
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    fn finish_entry(&self, dir: &OwnedFd, name: &OsStr, kind: FileKind, attributes: &Attributes) -> io::Result<()> {
        let handle = Handle::entry(dir, name, kind)?;
        self.rootfs.apply(handle.target(), kind, attributes, Existing::New)
    }

    /// Makes something under a name that may be taken.
    fn make<T>(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        make: impl Fn() -> rustix::io::Result<T>,
    ) -> Result<T, UnpackError> {
        match make() {
            Err(Errno::EXIST) => {
                self.vacate(dir, name, path)?;
                make().map_err(|error| entry_error(path, None, error.into()))
            }
            other => other.map_err(|error| entry_error(path, None, error.into())),
        }
    }

    /// Removes what has a name.
    pub(super) fn vacate(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
        let found = match Stat::entry(dir, name) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(entry_error(path, None, error.into())),
        };
        remove_entry(dir, name).map_err(|error| entry_error(path, None, error))?;
        self.pending.whiteouts.remove(path);
        self.brought.remove(&hash(path));
        if matches!(found.kind, FileKind::Directory | FileKind::Symlink) {
            // Open directories may be below it, or have been reached through it.
            self.levels.truncate(1);
            forget_below(&mut self.pending.implied, path);
            forget_below(&mut self.pending.whiteouts, path);
            let gone: Vec<_> = below(self.times.range(path.to_owned()..).map(|(key, _)| key), path);
            for key in gone {
                self.times.remove(&key);
            }
        }
        Ok(())
    }

    /// Makes a directory or changes the one that is there. Whether it hides what lower layers have under its name.
    pub(super) fn directory(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        attributes: &Attributes,
    ) -> Result<bool, UnpackError> {
        let fail = |source: io::Error| entry_error(path, attributes.owner, source);
        let make = || rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o755));
        let mut hides = false;
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let found = Stat::entry(dir, name).map_err(|error| fail(error.into()))?;
                if found.kind == FileKind::Directory {
                    let handle = Handle::entry(dir, name, FileKind::Directory).map_err(|error| fail(error.into()))?;
                    if !self.brought.contains(&hash(path)) {
                        self.rootfs.retain_xattrs(handle.target(), &attributes.xattrs).map_err(fail)?;
                    }
                    let applied =
                        self.rootfs.apply(handle.target(), FileKind::Directory, attributes, Existing::Changed);
                    if let Some(level) = self.levels.iter_mut().find(|level| level.path == path) {
                        level.setgid = attributes.mode.is_some_and(|mode| mode & 0o2000 != 0);
                    }
                    return applied.map(|()| false).map_err(fail);
                }
                // What this layer put here already hides the lower layers.
                hides = self.pending.whiteouts.contains(path) || self.brought.contains(&hash(path));
                self.make(dir, name, path, make)?;
            }
            Err(error) => return Err(fail(error.into())),
        }
        let handle = Handle::entry(dir, name, FileKind::Directory).map_err(|error| fail(error.into()))?;
        self.rootfs.apply(handle.target(), FileKind::Directory, attributes, Existing::New).map_err(fail)?;
        if hides {
            self.mark_opaque(handle.target(), path)?;
        }
        Ok(hides)
    }

    fn hard_link(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
        target: &OsStr,
        attributes: Attributes,
    ) -> Result<(), UnpackError> {
        let target = clean(target);
        let fail = |problem| UnpackError::Entry { entry: path.to_owned(), problem };
        let io_fail = |error: io::Error| entry_error(path, attributes.owner, error);
        let found = match self.rootfs.parent_of(&target) {
            Ok(Some((parent, old))) => {
                match self.rootfs.own(&parent, &old).and_then(|()| Ok(Stat::entry(&parent, &old)?)) {
                    Ok(found) => Some((parent, old, found)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                    Err(error) => return Err(io_fail(error)),
                }
            }
            Ok(None) => return Err(fail(EntryProblem::LinkToDirectory(target))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                return Err(fail(EntryProblem::LinkTarget(target)));
            }
            Err(error) => return Err(io_fail(error)),
        };
        // A directory that is there only because something was put below it may be a link in a lower layer.
        let relative = target.strip_prefix("/").unwrap_or(&target);
        let keeps = matches!(self.whiteouts, Whiteouts::Keep(_));
        let through_directory = keeps && found.is_some() && self.pending.implied.contains(relative);
        let found = found.filter(|_| !through_directory);
        let Some((parent, old, found)) = found else {
            let Whiteouts::Keep(marks) = self.whiteouts else {
                return Err(fail(EntryProblem::LinkTarget(target)));
            };
            if self.pending.opaque_root || self.hides_parent_of(&target, marks) {
                return Err(fail(EntryProblem::LinkTarget(target)));
            }
            self.vacate(dir, name, path)?;
            // A link to a link that waits too wants the same file.
            let first = self.pending.links.iter().rev().find(|link| link.path == relative);
            let target = first.map_or(target.clone(), |link| link.target.clone());
            self.pending.links.push(PendingLink { path: path.to_owned(), target, attributes, through_directory });
            return Ok(());
        };
        if is_whiteout(found.kind, found.device) {
            return Err(fail(EntryProblem::LinkTarget(target)));
        }
        if found.kind == FileKind::Directory {
            return Err(fail(EntryProblem::LinkToDirectory(target)));
        }
        match Stat::entry(dir, name) {
            // The name has the file already.
            Ok(present) if present.inode == found.inode && present.kind == found.kind => {}
            _ => self.make(dir, name, path, || rustix::fs::linkat(&parent, &*old, dir, name, AtFlags::empty()))?,
        }
        self.update_link(dir, name, &found, &attributes).map_err(io_fail)
    }

    /// Whether this layer, as far as it was read, hides what lower layers have in the directories that lead to a path.
    fn hides_parent_of(&self, path: &Path, marks: Marks) -> bool {
        let mut parents = path.ancestors().skip(1).filter(|ancestor| ancestor.parent().is_some());
        // An error says that it is not in this layer, or a link.
        parents.any(|parent| is_opaque(self.rootfs, parent, marks).unwrap_or(false))
    }

    /// Gives a file the attributes of a further link to it, where they differ: a needless change of owner would clear its
    /// capabilities.
    fn update_link(&self, dir: &OwnedFd, name: &OsStr, found: &Stat, attributes: &Attributes) -> io::Result<()> {
        let kind = found.kind;
        let found = &self.rootfs.stat_entry(dir, name)?;
        let changed = Attributes {
            owner: attributes.owner.filter(|owner| *owner != (found.uid, found.gid)),
            mode: attributes.mode.filter(|mode| found.kind != FileKind::Symlink && *mode != found.mode),
            mtime: attributes.mtime.filter(|mtime| *mtime != found.mtime),
            xattrs: attributes.xattrs.clone(),
        };
        if changed == Attributes::default() {
            return Ok(());
        }
        let handle = Handle::entry(dir, name, kind)?;
        self.rootfs.apply(handle.target(), kind, &changed, Existing::Changed)
    }

    /// Gives directories their times.
    fn finish(mut self) -> Result<Pending, UnpackError> {
        self.levels.clear();
        for (path, mtime) in &self.times {
            let set = || Target::Place(self.open_plain(path)?.as_fd(), FileKind::Directory).set_mtime(*mtime);
            set().map_err(|error| entry_error(path, None, error))?;
        }
        Ok(self.pending)
    }
}

/// Writes the data of an entry.
fn write_data(
    file: &File,
    size: u64,
    sparse: Option<&[(u64, u64)]>,
    data: &mut impl BufRead,
    (path, budget): (&Path, &Disk),
) -> Result<(), UnpackError> {
    let disk = |error: io::Error| entry_error(path, None, error);
    let mut writer = SparseWriter::new(file, budget);
    let whole = [(0, size)];
    let mut position = 0;
    for (offset, length) in sparse.unwrap_or(&whole) {
        writer.skip(offset - position);
        let mut left = *length;
        while left > 0 {
            let bytes = data.fill_buf().map_err(|error| UnpackError::Tar(TarError::Read(error)))?;
            let count = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if count == 0 {
                return Err(UnpackError::Tar(TarError::Read(io::ErrorKind::UnexpectedEof.into())));
            }
            writer.write_aligned(&bytes[..count]).map_err(disk)?;
            data.consume(count);
            left -= count as u64;
        }
        position = offset + length;
    }
    writer.skip(size - position);
    writer.finish().map_err(disk)
}

pub(super) fn entry_error(path: &Path, owner: Option<(u32, u32)>, source: io::Error) -> UnpackError {
    let errno = Errno::from_io_error(&source);
    let entry = path.to_owned();
    match (errno, owner) {
        // chown(2) in a user namespace. Root always exists there.
        (Some(Errno::INVAL), Some((uid, gid))) if (uid, gid) != (0, 0) => UnpackError::Unmapped { entry, uid, gid },
        (Some(Errno::NAMETOOLONG), _) => UnpackError::Entry { entry, problem: EntryProblem::NameTooLong },
        (Some(Errno::LOOP | Errno::NOTDIR), _) => {
            UnpackError::Entry { problem: EntryProblem::Parent(entry.clone()), entry }
        }
        _ => UnpackError::Io { path: entry, source },
    }
}

/// Of a directory that no entry describes.
pub(super) fn implied_attributes() -> Attributes {
    Attributes { owner: Some((0, 0)), mode: Some(0o755), ..Attributes::default() }
}

pub(super) fn stat(fd: &OwnedFd, path: &Path) -> Result<Stat, UnpackError> {
    Stat::of(fd).map_err(|error| entry_error(path, None, error.into()))
}

pub(super) fn is_setgid(stat: &Stat) -> bool {
    stat.mode & 0o2000 != 0
}

pub(super) fn hash(path: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    path.as_os_str().hash(&mut hasher);
    hasher.finish()
}

/// Those of sorted paths that lie below `top`; paths sort by component, so they follow each other.
fn below<'p>(sorted: impl Iterator<Item = &'p PathBuf>, top: &Path) -> Vec<PathBuf> {
    sorted.take_while(|path| path.starts_with(top)).cloned().collect()
}

fn forget_below(paths: &mut BTreeSet<PathBuf>, top: &Path) {
    for path in below(paths.range(top.to_owned()..), top) {
        paths.remove(&path);
    }
}
