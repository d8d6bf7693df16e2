//! Entries → files of the target.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::{Archive, ArchiveError, make_directories};
use crate::cancel::Cancel;
use crate::rootfs::{self, Attributes, FileKind, Metadata, NewFile, TarEntry, TarKind, View};

/// Symbolic links followed for one entry (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Unpacks `archive` into the directory `destination` of `target`, which holds no links and is made if it is missing.
/// `owner` takes the place of all owners in the archive.
///
/// # Errors
/// [`ArchiveError`]; the target then holds a part.
pub(crate) fn unpack(
    mut archive: Archive,
    target: &dyn View<'_>,
    destination: &Path,
    owner: Option<(u32, u32)>,
    cancel: &Cancel,
) -> Result<(), ArchiveError> {
    unpack_checked(&mut archive, target, destination, owner, cancel, |_| Ok(()))
}

/// Unpacks a context: as [`unpack`], but a name that climbs out of the archive is an error, because whoever made it meant
/// something else.
///
/// # Errors
/// [`ArchiveError`]; the target then holds a part.
pub(crate) fn unpack_context(
    mut archive: Archive,
    target: &dyn View<'_>,
    owner: Option<(u32, u32)>,
    cancel: &Cancel,
) -> Result<(), ArchiveError> {
    unpack_checked(&mut archive, target, Path::new("/"), owner, cancel, |entry| {
        let mut depth = 0_i64;
        for part in Path::new(&entry.name).components() {
            depth += match part {
                Component::Normal(_) => 1,
                Component::ParentDir => -1,
                _ => 0,
            };
            if depth < 0 {
                return Err(ArchiveError::Outside { entry: entry.name.clone().into() });
            }
        }
        Ok(())
    })
}

fn unpack_checked(
    archive: &mut Archive,
    target: &dyn View<'_>,
    destination: &Path,
    owner: Option<(u32, u32)>,
    cancel: &Cancel,
    check: impl Fn(&TarEntry) -> Result<(), ArchiveError>,
) -> Result<(), ArchiveError> {
    let mut unpacking = Unpacking { target, cancel, destination, owner, directories: BTreeMap::new() };
    unpacking.make_directories(destination, owner)?;
    loop {
        unpacking.check_cancel()?;
        match archive.next_entry() {
            Ok(Some(entry)) => {
                check(&entry)?;
                unpacking.entry(&entry, archive)?;
            }
            Ok(None) => return unpacking.finish(),
            Err(error) => return Err(unpacking.unreadable(error.into())),
        }
    }
}

struct Unpacking<'a, 'c> {
    target: &'a dyn View<'c>,
    cancel: &'a Cancel,
    /// Without links.
    destination: &'a Path,
    owner: Option<(u32, u32)>,
    /// What the directories of the archive get when all is written: writing changes their time, and their mode may
    /// keep us from writing.
    directories: BTreeMap<PathBuf, Attributes>,
}

/// Where a path of the archive leads.
struct Place {
    /// Path in the target without links.
    path: PathBuf,
    there: Option<Metadata>,
    /// Nothing is there because a link leads nowhere.
    dangling: bool,
}

impl Unpacking<'_, '_> {
    fn entry(&mut self, entry: &TarEntry, archive: &mut Archive) -> Result<(), ArchiveError> {
        let named = rootfs::clean(&entry.name);
        let (Some(parent), Some(name)) = (named.parent(), named.file_name()) else {
            // The destination keeps its own mode and owner.
            return if entry.kind == TarKind::Directory { Ok(()) } else { Err(ArchiveError::ReplacesRoot) };
        };
        let path = self.parent(parent, &named)?.join(name);
        let there = self.lstat(&path)?;
        let was_directory = there.is_some_and(|there| there.kind == FileKind::Directory);
        if was_directory && entry.kind != TarKind::Directory {
            // It gives way with all it holds, and with what was remembered of it.
            self.directories.retain(|directory, _| !directory.starts_with(&path));
        }
        let attributes = self.attributes(entry);
        match entry.kind {
            TarKind::Directory => {
                if !was_directory {
                    self.create(&path, NewFile::Directory, &Attributes::default())?;
                }
                self.directories.insert(path, attributes);
                Ok(())
            }
            TarKind::File if entry.sparse.is_some() => self.sparse(&path, entry, archive, &attributes),
            TarKind::File => {
                let mut data = Data { inner: archive, cancel: self.cancel, error: None };
                let written = self.target.create(&path, NewFile::File(&mut data), &attributes);
                written.map_err(|error| match data.error {
                    Some(error) => self.unreadable(error.into()),
                    None => self.failed("create", &path, error),
                })
            }
            TarKind::Symlink => self.create(&path, NewFile::Symlink(Path::new(&entry.link)), &attributes),
            TarKind::Fifo => self.create(&path, NewFile::Fifo, &attributes),
            TarKind::CharDevice => self.create(&path, NewFile::CharDevice(entry.device.0, entry.device.1), &attributes),
            TarKind::BlockDevice => {
                self.create(&path, NewFile::BlockDevice(entry.device.0, entry.device.1), &attributes)
            }
            TarKind::HardLink => self.hard_link(&path, &named, entry, attributes),
        }
    }

    /// The directory an entry lies in, made if nothing of that name is there.
    fn parent(&self, parent: &Path, named: &Path) -> Result<PathBuf, ArchiveError> {
        let place = self.locate(parent, named)?;
        match place.there {
            Some(there) if there.kind == FileKind::Directory => Ok(place.path),
            Some(_) => Err(ArchiveError::ParentNotADirectory { entry: named.to_owned() }),
            None if place.dangling => Err(ArchiveError::NoParent { entry: named.to_owned() }),
            None => {
                // Not listed, so nobody's: 0:0 even with `--chown`.
                self.make_directories(&place.path, None)?;
                Ok(place.path)
            }
        }
    }

    /// Follows a clean path of the archive, links and all, the destination being the root.
    fn locate(&self, path: &Path, named: &Path) -> Result<Place, ArchiveError> {
        let mut pending: VecDeque<OsString> = components(path).map(OsStr::to_owned).collect();
        let mut plain: Vec<OsString> = Vec::new();
        let (mut links, mut from_link) = (0, 0_usize);
        let full = |plain: &[OsString]| plain.iter().fold(self.destination.to_owned(), |path, name| path.join(name));
        let mut there = self.lstat(self.destination)?;
        while let Some(name) = pending.pop_front() {
            let was_from_link = from_link > 0;
            from_link = from_link.saturating_sub(1);
            if name == ".." {
                plain.pop();
                there = self.lstat(&full(&plain))?;
                continue;
            }
            plain.push(name);
            there = self.lstat(&full(&plain))?;
            match there.map(|there| there.kind) {
                Some(FileKind::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(ArchiveError::TooManyLinks { entry: named.to_owned() });
                    }
                    let link = full(&plain);
                    let text =
                        self.target.read_link(&link).map_err(|error| self.failed("read the link", &link, error))?;
                    if text.is_absolute() {
                        plain.clear();
                    } else {
                        plain.pop();
                    }
                    let names: Vec<OsString> = components(&text).map(OsStr::to_owned).collect();
                    from_link += names.len();
                    for name in names.into_iter().rev() {
                        pending.push_front(name);
                    }
                    there = self.lstat(&full(&plain))?;
                }
                Some(FileKind::Directory) => {}
                Some(_) if pending.is_empty() => {}
                Some(_) => return Ok(Place { path: full(&plain), there, dangling: false }),
                None => {
                    plain.extend(pending);
                    return Ok(Place { path: full(&plain), there: None, dangling: was_from_link });
                }
            }
        }
        Ok(Place { path: full(&plain), there, dangling: false })
    }

    fn attributes(&self, entry: &TarEntry) -> Attributes {
        let keep = |name: &OsStr| name == "security.capability" || name.as_bytes().starts_with(b"user.");
        Attributes {
            owner: Some(self.owner.unwrap_or((entry.uid, entry.gid))),
            mode: (entry.kind != TarKind::Symlink).then_some(entry.mode),
            mtime: Some(entry.mtime),
            xattrs: entry.xattrs.iter().filter(|(name, _)| keep(name)).cloned().collect(),
        }
    }

    fn create(&self, path: &Path, file: NewFile<'_>, attributes: &Attributes) -> Result<(), ArchiveError> {
        self.target.create(path, file, attributes).map_err(|error| self.failed("create", path, error))
    }

    fn hard_link(
        &self,
        path: &Path,
        named: &Path,
        entry: &TarEntry,
        mut attributes: Attributes,
    ) -> Result<(), ArchiveError> {
        let link = rootfs::clean(&entry.link);
        let missing = || ArchiveError::NoLinkTarget { link: link.clone(), entry: named.to_owned() };
        let (Some(parent), Some(name)) = (link.parent(), link.file_name()) else { return Err(missing()) };
        let existing = self.locate(parent, named)?.path.join(name);
        let there = self.lstat(&existing)?.ok_or_else(missing)?;
        if there.kind == FileKind::Symlink {
            attributes.mode = None;
        }
        let failed = |error| self.failed("link", path, error);
        self.target.hard_link(&existing, path).map_err(failed)?;
        self.target.set_attributes(path, &attributes).map_err(failed)
    }

    /// A file with holes: only the pieces are written.
    fn sparse(
        &self,
        path: &Path,
        entry: &TarEntry,
        archive: &mut Archive,
        attributes: &Attributes,
    ) -> Result<(), ArchiveError> {
        // What is wrong with the archive, not with the target.
        let mut broken = None;
        let mut fill = |file: &mut File| -> io::Result<()> {
            for (offset, length) in entry.sparse.iter().flatten() {
                file.seek(SeekFrom::Start(*offset))?;
                let mut left = *length;
                while left > 0 {
                    if self.cancel.is_cancelled() {
                        return Err(io::Error::other("cancelled"));
                    }
                    let available = match archive.fill_buf() {
                        Ok([]) => {
                            broken = Some(ArchiveError::Truncated);
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                        Ok(available) => available,
                        Err(error) => {
                            let kind = error.kind();
                            broken = Some(error.into());
                            return Err(kind.into());
                        }
                    };
                    let count = usize::try_from(left).unwrap_or(usize::MAX).min(available.len());
                    file.write_all(&available[..count])?;
                    archive.consume(count);
                    left -= count as u64;
                }
            }
            file.set_len(entry.size)
        };
        let written = self.target.create_with(path, &mut fill, attributes);
        written.map_err(|error| match broken {
            Some(broken) => self.unreadable(broken),
            None => self.failed("write", path, error),
        })
    }

    fn unreadable(&self, error: ArchiveError) -> ArchiveError {
        if self.cancel.is_cancelled() { ArchiveError::Cancelled } else { error }
    }

    fn failed(&self, action: &'static str, path: &Path, source: io::Error) -> ArchiveError {
        match self.cancel.is_cancelled() {
            true => ArchiveError::Cancelled,
            false => ArchiveError::Target { action, path: path.to_owned(), source },
        }
    }

    fn check_cancel(&self) -> Result<(), ArchiveError> {
        if self.cancel.is_cancelled() { Err(ArchiveError::Cancelled) } else { Ok(()) }
    }

    fn lstat(&self, path: &Path) -> Result<Option<Metadata>, ArchiveError> {
        match self.target.lstat(path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(self.failed("examine", path, error)),
        }
    }

    fn make_directories(&self, path: &Path, owner: Option<(u32, u32)>) -> Result<(), ArchiveError> {
        let attributes = Attributes { owner, mode: Some(0o755), ..Attributes::default() };
        match make_directories(self.target, path, &attributes) {
            Ok(_) => Ok(()),
            Err((path, error)) if error.kind() == io::ErrorKind::NotADirectory => {
                Err(ArchiveError::NotADirectory { path })
            }
            Err((path, error)) => Err(self.failed("create the directory", &path, error)),
        }
    }

    /// Deepest directories first, so that none changes the time of the one around it.
    fn finish(&self) -> Result<(), ArchiveError> {
        for (path, attributes) in self.directories.iter().rev() {
            self.target
                .set_attributes(path, attributes)
                .map_err(|error| self.failed("set the attributes of", path, error))?;
        }
        Ok(())
    }
}

fn components(path: &Path) -> impl Iterator<Item = &OsStr> {
    let parts = path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    parts.filter(|part| !part.is_empty() && *part != b".").map(OsStr::from_bytes)
}

/// Data of an entry; keeps an error of the archive apart from errors of the target.
struct Data<'a> {
    inner: &'a mut Archive,
    cancel: &'a Cancel,
    error: Option<io::Error>,
}

impl Read for Data<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.inner.read(buf).map_err(|error| {
            let kind = error.kind();
            if kind == io::ErrorKind::Interrupted {
                return error;
            }
            self.error = Some(error);
            kind.into()
        })
    }
}
