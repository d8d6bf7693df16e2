//! Writing resolved sources into a target.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use super::mode::ModeChange;
use super::remote::RemoteFile;
use super::resolve::{Match, ResolvedCopy, Source};
use super::target::{Given, Target, Watched, make_directories};
use super::{CopyError, bulk, io_error, owner};
use crate::cancel::Cancel;
use crate::context::{self, ArchiveError, Files, FilesError, Found, TreeEntry, clean};
use crate::oci::Sha256;
use crate::plan::{CopyAction, CopySource, WorkdirAction};
use crate::rootfs::index::{Content, Passing};
use crate::rootfs::{Attributes, FileKind, NewFile, Original, Seen, Tee, View, capability};

/// Writes resolved sources into `target`.
///
/// A file that is not what [`super::resolve`] found is an error.
///
/// # Errors
/// [`CopyError`]; the target then holds a part.
pub fn apply<'c>(
    action: &CopyAction,
    resolved: &'c ResolvedCopy,
    files: &'c Files,
    target: &dyn View<'c>,
    cancel: &Cancel,
) -> Result<(), CopyError> {
    let target = Target {
        tree: target,
        given: Given {
            // Names are looked up before anything changes: a passwd file that this very step brings does not count.
            owner: action
                .chown
                .as_deref()
                .filter(|spec| !spec.is_empty())
                .map(|spec| owner::look_up(target, spec))
                .transpose()?,
            mode: action.chmod.as_ref().map(ModeChange::new).transpose()?,
        },
        cancel,
    };
    // Behind it nothing is looked at any more.
    let last = match resolved.sources.last() {
        Some(Source::Matches(matches)) => matches.last(),
        Some(Source::Git(tree)) => Some(&tree.content),
        _ => None,
    };
    let copy = Copy { action, files, target: &target, last };
    for (written, source) in action.sources.iter().zip(&resolved.sources) {
        match (written, source) {
            (_, Source::Matches(matches)) => {
                for found in matches {
                    copy.copy(found)?;
                }
            }
            (CopySource::Heredoc { name, body }, Source::Heredoc) => copy.heredoc(name, body)?,
            (_, Source::Url(file)) => copy.url(file)?,
            (_, Source::Git(tree)) => Copy { files: &tree.files, ..copy }.copy(&tree.content)?,
            // `resolve` keeps the order of the action's sources.
            (_, Source::Heredoc) => {}
        }
    }
    Ok(())
}

/// Creates the directory of a WORKDIR (checklist I-17). What exists stays as it is.
///
/// # Errors
/// [`CopyError`]
pub fn workdir(action: &WorkdirAction, target: &dyn View<'_>) -> Result<(), CopyError> {
    let path = Path::new(&action.path);
    let plain = target.resolve(path, true).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotADirectory => CopyError::NotADirectory { path: path.to_owned() },
        _ => io_error("resolve", path, error),
    })?;
    let owner = if action.user.is_empty() { (0, 0) } else { owner::look_up(target, &action.user)? };
    let attributes = Attributes {
        owner: Some(owner),
        mode: Some(0o755),
        mtime: action.source_date_epoch.map(|seconds| (seconds, 0)),
        xattrs: Vec::new(),
    };
    let made = make_directories(target, &plain, &attributes)?;
    if attributes.mtime.is_some() {
        // The time of a parent moved when its child was made.
        let time = Attributes { mtime: attributes.mtime, ..Attributes::default() };
        for path in made.iter().rev() {
            target.set_attributes(path, &time).map_err(|error| io_error("set the time of", path, error))?;
        }
    }
    Ok(())
}

struct Copy<'a, 'c> {
    action: &'a CopyAction,
    files: &'c Files,
    target: &'a Target<'a, 'c>,
    /// What is copied last.
    last: Option<&'c Match>,
}

/// A file of the source that was found and not read.
pub(super) struct FoundFile<'c> {
    pub(super) files: &'c Files,
    pub(super) path: PathBuf,
    pub(super) found: Found,
}

impl Content for FoundFile<'_> {
    fn open(&self) -> io::Result<File> {
        self.files.open(&self.path, &self.found).map_err(io::Error::other)
    }

    fn capability(&self, file: &File) -> io::Result<Option<Vec<u8>>> {
        Ok(capability(self.files.xattrs(&self.path, Some(file))))
    }

    fn check(&self, file: &File) -> io::Result<()> {
        self.files.check(file, &self.path, &self.found).map_err(io::Error::other)
    }

    fn identity(&self) -> Option<Sha256> {
        self.files.identity(&self.path, &self.found)
    }

    fn passing(&self) -> Option<Box<dyn Passing + '_>> {
        self.files.note(&self.path, &self.found)
    }
}

/// What a URL holds, fetched and not copied.
struct FetchedFile(File);

impl Content for FetchedFile {
    fn open(&self) -> io::Result<File> {
        let mut file = self.0.try_clone()?;
        file.rewind()?;
        Ok(file)
    }

    fn capability(&self, _file: &File) -> io::Result<Option<Vec<u8>>> {
        Ok(None)
    }

    fn check(&self, _file: &File) -> io::Result<()> {
        Ok(())
    }

    fn identity(&self) -> Option<Sha256> {
        None
    }
}

/// Files of so many bytes share their blocks with the original where they can; smaller ones are read sooner than asked for.
const SHARED_FROM: u64 = 64 * 1024;

/// Entries of a tree that are copied at one time.
const FILES_AT_ONCE: usize = 8192;

/// A directory of the target that gets its attributes when everything below it is written.
struct Unfinished {
    path: PathBuf,
    attributes: Attributes,
}

impl<'c> Copy<'_, 'c> {
    fn copy(&self, found: &'c Match) -> Result<(), CopyError> {
        let unpack = self.action.add && self.action.unpack != Some(false);
        if unpack && found.found.metadata.kind == FileKind::File && self.unpack_source(found)? {
            return Ok(());
        }
        let name = found.named.file_name().unwrap_or_default();
        let is_directory = found.found.metadata.kind == FileKind::Directory;
        let path = self.target.place(&self.action.destination, name, is_directory)?;
        if is_directory { self.tree(found, &path) } else { self.file(&found.path, found, &found.found, None, &path) }
    }

    /// Unpacks a source if it is an archive; says whether it was one.
    fn unpack_source(&self, found: &Match) -> Result<bool, CopyError> {
        let named = Path::new("/").join(&found.named);
        let unpacked = self.unpack(&named, self.files.open(&found.path, &found.found)?)?;
        // Opened again: it must still be what was found.
        _ = self.files.open(&found.path, &found.found)?;
        Ok(unpacked)
    }

    /// Unpacks a file into the destination if it is an archive; says whether it was one.
    fn unpack(&self, named: &Path, file: std::fs::File) -> Result<bool, CopyError> {
        let failed = |error| match error {
            ArchiveError::Cancelled => CopyError::Cancelled,
            ArchiveError::NotADirectory { path } => CopyError::NotADirectory { path },
            source => CopyError::Archive { archive: named.to_owned(), source },
        };
        let Some(archive) = context::detect(file).map_err(failed)? else { return Ok(false) };
        let destination = self.target.follow(Path::new(&clean(&format!("/{}", self.action.destination))))?;
        let Target { tree, given: Given { owner, .. }, cancel, .. } = *self.target;
        context::unpack(archive, tree, &destination, owner, cancel).map_err(failed)?;
        Ok(true)
    }

    fn heredoc(&self, name: &str, body: &str) -> Result<(), CopyError> {
        let path = self.target.place(&self.action.destination, OsStr::new(name), false)?;
        let mode = self.target.given.mode.as_ref().map_or(0o644, |mode| mode.apply(0o644, false));
        let attributes = Attributes {
            owner: Some(self.target.given.owner.unwrap_or((0, 0))),
            mode: Some(mode),
            ..Attributes::default()
        };
        self.target.write(&path, NewFile::File(&mut body.as_bytes()), &attributes)
    }

    /// What a URL holds: a file 0600, or an archive if `--unpack` says so (checklist C-51, C-57).
    fn url(&self, file: &RemoteFile) -> Result<(), CopyError> {
        let mut content = file.open(self.target.cancel)?;
        if self.action.unpack == Some(true) {
            let name = Path::new(&file.name);
            let again = content.try_clone().map_err(|error| io_error("read", name, error))?;
            if self.unpack(name, again)? {
                return Ok(());
            }
            content.rewind().map_err(|error| io_error("read", name, error))?;
        }
        let path = self.target.place(&self.action.destination, OsStr::new(&file.name), false)?;
        let mode = self.target.given.mode.as_ref().map_or(0o600, |mode| mode.apply(0o600, false));
        let attributes = Attributes {
            owner: Some(self.target.given.owner.unwrap_or((0, 0))),
            mode: Some(mode),
            mtime: Some((file.mtime(), 0)),
            xattrs: Vec::new(),
        };
        if let Some(index) = self.target.tree.index() {
            self.target.check_replaceable(&path)?;
            let size = content.metadata().map_err(|error| io_error("read", Path::new(&file.name), error))?.len();
            return index
                .refer(&path, Arc::new(FetchedFile(content)), size, &attributes)
                .map_err(|error| self.target.refused("create", &path, &attributes, error));
        }
        let mut content = Watched { inner: content, cancel: self.target.cancel, bytes: 0 };
        self.target.write(&path, NewFile::File(&mut content), &attributes)
    }

    /// The content of a source directory into a directory that exists, or onto something that is none.
    fn tree(&self, found: &'c Match, root: &Path) -> Result<(), CopyError> {
        if self.target.lstat(root)?.is_some_and(|there| there.kind != FileKind::Directory) {
            return Err(CopyError::NonDirectory { path: root.to_owned() });
        }
        let mut unfinished = Vec::new();
        let last = self.last.is_some_and(|last| std::ptr::eq(last, found));
        let mut bulk = bulk::Left::begin(self.files, found, self.target, root).filter(|_| last);
        for entry in found.entries.iter() {
            let entry = entry?;
            if let Some(bulk) = &mut bulk
                && bulk.takes(&entry.path)?
            {
                continue;
            }
            if entry.found.metadata.kind == FileKind::Directory {
                self.target.check_cancel()?;
                unfinished.extend(self.directory(found, &entry, root)?);
                if let Some(bulk) = &mut bulk {
                    bulk.may_take(entry.path);
                }
            }
        }
        let mut first_of: BTreeMap<u64, PathBuf> = BTreeMap::new();
        let mut links: Vec<(PathBuf, PathBuf)> = Vec::new();
        // The first failure in order is reported, however many threads met one.
        let copy = |entry: &TreeEntry| {
            let source = found.path.join(&entry.path);
            self.file(&source, found, &entry.found, entry.link.as_deref(), &root.join(&entry.path)).err()
        };
        let taken = bulk.map(bulk::Left::taken).unwrap_or_default();
        let mut entries = taken.without(found.entries.iter());
        loop {
            let (mut files, mut ended) = (Vec::new(), true);
            for entry in entries.by_ref().take(FILES_AT_ONCE) {
                let entry = entry?;
                ended = false;
                let metadata = &entry.found.metadata;
                if metadata.kind == FileKind::File && metadata.links > 1 {
                    match first_of.get(&metadata.inode) {
                        Some(first) => {
                            links.push((entry.path, first.clone()));
                            continue;
                        }
                        None => _ = first_of.insert(metadata.inode, entry.path.clone()),
                    }
                }
                if metadata.kind != FileKind::Directory {
                    files.push(entry);
                }
            }
            if ended {
                break;
            }
            let failure = match self.target.tree.index() {
                // Nothing is read or written yet.
                Some(_) => files.iter().find_map(copy),
                None => files.par_iter().find_map_first(copy),
            };
            if let Some(error) = failure {
                return Err(error);
            }
        }
        for (path, first) in links {
            let path = root.join(path);
            self.target.check_replaceable(&path)?;
            self.target
                .tree
                .hard_link(&root.join(&first), &path)
                .map_err(|error| self.target.failed("link", &path, error))?;
        }
        // Deepest first: a later one would change the time of the directory around it. The root comes last; of the
        // source it takes the time alone (checklist C-21).
        if !found.parents {
            let mtime = Some(found.mtime.unwrap_or(found.found.metadata.mtime));
            unfinished.insert(
                0,
                Unfinished { path: root.to_owned(), attributes: Attributes { mtime, ..Default::default() } },
            );
        }
        for Unfinished { path, attributes } in unfinished.into_iter().rev() {
            self.target
                .tree
                .set_attributes(&path, &attributes)
                .map_err(|error| self.target.refused("set the attributes of", &path, &attributes, error))?;
        }
        Ok(())
    }

    /// Makes one directory of a tree (checklist C-22, C-44); its attributes follow when its content is there.
    fn directory(&self, found: &Match, entry: &TreeEntry, root: &Path) -> Result<Option<Unfinished>, CopyError> {
        let path = root.join(&entry.path);
        let there = self.target.lstat(&path)?;
        if there.is_some_and(|there| there.kind != FileKind::Directory) {
            return Err(CopyError::NonDirectory { path });
        }
        let source = &entry.found.metadata;
        if there.is_some() && (found.parents || !entry.selected) {
            let attributes = Attributes { mode: Some(source.mode), ..Attributes::default() };
            return Ok(Some(Unfinished { path, attributes }));
        }
        let mut attributes = self.target.given.attributes(source, found.mtime);
        attributes.xattrs = self.files.xattrs(&found.path.join(&entry.path), None);
        if !entry.selected {
            attributes.mtime = None;
        }
        if there.is_none() {
            // Not yet the source's mode: it might keep us from writing into it.
            self.target
                .tree
                .create(&path, NewFile::Directory, &Attributes::default())
                .map_err(|error| self.target.failed("create the directory", &path, error))?;
        }
        Ok(Some(Unfinished { path, attributes }))
    }

    /// One file of `source` that is no directory.
    fn file(
        &self,
        path: &Path,
        source: &Match,
        found: &Found,
        link: Option<&Path>,
        target: &Path,
    ) -> Result<(), CopyError> {
        self.target.check_cancel()?;
        let mut attributes = self.target.given.attributes(&found.metadata, source.mtime);
        let device = found.metadata.device;
        match found.metadata.kind {
            FileKind::File => {
                if let Some(index) = self.target.tree.index() {
                    self.target.check_replaceable(target)?;
                    let content = Arc::new(FoundFile { files: self.files, path: path.to_owned(), found: *found });
                    return index
                        .refer(target, content, found.metadata.size, &attributes)
                        .map_err(|error| self.target.refused("create", target, &attributes, error));
                }
                let file = self.files.open(path, found)?;
                attributes.xattrs = self.files.xattrs(path, Some(&file));
                let mut passing = self.files.note(path, found);
                if found.metadata.size >= SHARED_FROM {
                    let go_on = || match self.target.cancel.is_cancelled() {
                        true => Err(std::io::Error::other("cancelled")),
                        false => Ok(()),
                    };
                    let mut whole = false;
                    let seen = passing.as_deref_mut().map(|passing| Seen { passing, whole: &mut whole });
                    let original = Original { file: &file, go_on: &go_on, seen };
                    self.target.write(target, NewFile::Copy(original), &attributes)?;
                    passing = passing.filter(|_| whole);
                } else {
                    let seen = passing.as_deref_mut().map(|passing| passing as &mut dyn Passing);
                    let inner = Tee { inner: &file, passing: seen };
                    let mut content = Watched { inner, cancel: self.target.cancel, bytes: 0 };
                    self.target.write(target, NewFile::File(&mut content), &attributes)?;
                    if content.bytes != found.metadata.size {
                        return Err(FilesError::Changed { path: Path::new("/").join(path) }.into());
                    }
                }
                // Size and times are still those that were listed, so all of it was copied.
                self.files.check(&file, path, found)?;
                if let Some(passing) = passing {
                    passing.whole(capability(attributes.xattrs));
                }
                Ok(())
            }
            FileKind::Symlink => {
                let read;
                let text = match link {
                    Some(text) => text,
                    None => {
                        read = self.files.read_link(path)?;
                        &read
                    }
                };
                self.target.write(target, NewFile::Symlink(text), &attributes)
            }
            FileKind::Fifo => self.target.write(target, NewFile::Fifo, &attributes),
            FileKind::CharDevice => self.target.write(target, NewFile::CharDevice(device.0, device.1), &attributes),
            FileKind::BlockDevice => self.target.write(target, NewFile::BlockDevice(device.0, device.1), &attributes),
            // Nobody can connect to the copy of a socket (checklist C-27).
            FileKind::Socket => self.target.write(target, NewFile::File(&mut std::io::empty()), &attributes),
            FileKind::Directory => Err(CopyError::NonDirectory { path: target.to_owned() }),
        }
    }
}
