//! One tree of files to read from.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::io::Errno;

use super::hashes::{Counters, HashCache, Notes};
use super::ignore::{Matched, Patterns};
use crate::hint::Hint;
use crate::oci::{Hasher, Sha256};
use crate::rootfs::{CAPABILITY, FileKind, Metadata, Owners, Rootfs};

/// Symbolic links followed in one path. BuildKit's limit.
const MAX_LINKS: usize = 255;

/// A tree of files that COPY and ADD read: a directory with ignore rules, or a stage's root filesystem.
#[derive(Debug)]
pub struct Files {
    pub(super) tree: Option<Rootfs>,
    /// The directory behind it, if it is one of the host.
    host: Option<PathBuf>,
    pub(super) patterns: Patterns,
    pub(super) hashes: Option<HashCache>,
    pub(super) counters: Counters,
    /// Hashes that are taken while files are read for something else, once somebody wants that.
    pub(super) notes: OnceLock<Notes>,
}

/// How many files had to be read to know their content.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HashCounts {
    /// Files that were read.
    pub read: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files whose hash was known from an earlier build.
    pub known: u64,
}

/// Why files could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FilesError {
    /// The disk or kernel refused.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `read`, `list`, …
        action: &'static str,
        /// Path in the tree, `/` first.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Links that lead to each other.
    #[error("`{}`: too many levels of symbolic links", path.display())]
    TooManyLinks {
        /// Path in the tree as it was asked for.
        path: PathBuf,
    },
    /// Somebody changes the file while the build reads it.
    #[error("`{}` changed while it was read", path.display())]
    Changed {
        /// Path in the tree, `/` first.
        path: PathBuf,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for FilesError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Io { source, path, .. } if source.kind() == io::ErrorKind::PermissionDenied => Some(format!(
                "make `{}` readable for the user who builds, or hide it with a line in `.dockerignore`",
                path.display()
            )),
            Self::Changed { path } => Some(format!(
                "build again when nothing writes to `{}`, or hide it with a line in `.dockerignore`",
                path.display()
            )),
            Self::TooManyLinks { .. } => Some("a symbolic link leads back to itself; remove one of them".to_owned()),
            Self::Io { .. } | Self::Cancelled => None,
        }
    }
}

/// A file as it was when it was listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) metadata: Metadata,
    /// Time of the last change of content or metadata.
    pub(crate) ctime: (i64, u32),
}

/// Where a path leads after all links.
#[derive(Debug, Clone)]
pub(crate) struct Followed {
    /// Without a leading `/`, and without links.
    pub(crate) path: PathBuf,
    /// What is there; `None` if nothing is, or it is hidden.
    pub(crate) found: Option<Found>,
}

impl Files {
    /// A directory of the host. Owners are 0:0, `patterns` hide files.
    ///
    /// # Errors
    /// If it is not a readable directory.
    pub fn directory(path: &Path, patterns: Patterns) -> io::Result<Self> {
        let tree = Rootfs::open(path)?;
        let host = path.canonicalize()?;
        Ok(Self { tree: Some(tree), host: Some(host), patterns, ..Self::empty() })
    }

    /// The same directory with what is recorded of its files: it is what an archive held.
    #[must_use]
    pub fn recorded(self, owners: Arc<Owners>) -> Self {
        Self { tree: self.tree.map(|tree| tree.recording(owners)), ..self }
    }

    /// Whether it is a directory of the host as it is there: its owners mean nothing.
    fn is_plain(&self) -> bool {
        self.host.is_some() && self.tree.as_ref().is_some_and(|tree| tree.owners().is_none())
    }

    /// A root filesystem: owners as they are, nothing hidden.
    pub fn rootfs(rootfs: Rootfs) -> Self {
        Self { tree: Some(rootfs), ..Self::empty() }
    }

    /// An empty tree.
    pub fn empty() -> Self {
        let (patterns, counters) = (Patterns::default(), Counters::default());
        Self { tree: None, host: None, patterns, hashes: None, counters, notes: OnceLock::new() }
    }

    /// Keeps the hashes of file contents in a file below `directory`, and uses those that an earlier build kept there
    /// for files whose path, size, times and inode are the same. Written when the value is dropped, or earlier with
    /// [`Files::save_hashes`].
    pub fn with_hash_cache(mut self, directory: &Path) -> Self {
        if std::fs::create_dir_all(directory).is_ok() {
            self.tree = self.tree.map(|tree| tree.listing_in(directory));
        }
        let scope = self.host.as_deref().unwrap_or(Path::new("")).as_os_str().as_bytes();
        self.hashes = Some(HashCache::new(directory.join(Sha256::of(scope).to_hex())));
        self
    }

    /// Writes the kept hashes, if there are new ones.
    ///
    /// # Errors
    /// What the disk says; the next build will read the files again.
    pub fn save_hashes(&self) -> io::Result<()> {
        self.hashes.as_ref().map_or(Ok(()), HashCache::save)
    }

    /// How many files were read so far, and how many did not have to be.
    pub fn hash_counts(&self) -> HashCounts {
        self.counters.get()
    }

    /// The directory of the host behind it, if there is one.
    pub fn host_path(&self) -> Option<PathBuf> {
        self.host.clone()
    }

    /// Extended attributes of a file, without those that mean something to this host only (labels, access lists).
    /// `file` is the file itself if it is open.
    pub(crate) fn xattrs(&self, path: &Path, file: Option<&File>) -> Vec<(OsString, Vec<u8>)> {
        // Best effort (checklist C-25): a file system that cannot say has none.
        let attributes = match (&self.tree, self.is_plain(), file) {
            (Some(_), true, Some(file)) => open_xattrs(file),
            // Nobody gives attributes to the directories of a context, and asking is not free.
            (Some(_), true, None) | (None, ..) => Ok(Vec::new()),
            (Some(tree), false, _) => tree.xattrs(path),
        };
        let mut attributes = attributes.unwrap_or_else(|error| {
            tracing::debug!(%error, path = %path.display(), "extended attributes are left out");
            Vec::new()
        });
        attributes.retain(|(name, _)| name == CAPABILITY || name.as_bytes().starts_with(b"user."));
        attributes
    }

    /// `security.capability`, if it is set.
    pub(super) fn capability(&self, path: &Path, file: &File) -> io::Result<Option<Vec<u8>>> {
        match &self.tree {
            // A tree may pretend attributes that the file does not have.
            Some(tree) if !self.is_plain() => tree.xattr(path, OsStr::new(CAPABILITY)),
            _ => open_xattr(file, OsStr::new(CAPABILITY)),
        }
    }

    /// What only a file of the host has as it is now; nobody can give another file its time of change. `None` for files of a
    /// root filesystem.
    pub(crate) fn identity(&self, path: &Path, found: &Found) -> Option<Sha256> {
        let host = self.host.as_ref()?;
        let mut hasher = Hasher::default();
        for text in [host.as_os_str(), path.as_os_str()] {
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
        let Metadata { inode, size, mtime, .. } = found.metadata;
        for (seconds, nanoseconds) in [mtime, found.ctime] {
            hasher.update(&seconds.to_le_bytes());
            hasher.update(&nanoseconds.to_le_bytes());
        }
        hasher.update(&inode.to_le_bytes());
        hasher.update(&size.to_le_bytes());
        Some(hasher.finish())
    }

    /// Text of a link.
    pub(crate) fn read_link(&self, path: &Path) -> Result<PathBuf, FilesError> {
        self.tree()?.read_link(path).map_err(|source| io_error("read the link", path, source))
    }

    /// Opens a file that was listed, and makes sure that it is still the same.
    pub(crate) fn open(&self, path: &Path, expected: &Found) -> Result<File, FilesError> {
        let file = self.tree()?.open_file(path).map_err(|source| match source.kind() {
            // It was there, and it was a regular file.
            io::ErrorKind::NotFound | io::ErrorKind::InvalidInput | io::ErrorKind::NotADirectory => {
                FilesError::Changed { path: shown(path) }
            }
            _ => io_error("read", path, source),
        })?;
        self.check(&file, path, expected)?;
        Ok(file)
    }

    /// Whether an open file is still what was listed.
    pub(crate) fn check(&self, file: &File, path: &Path, expected: &Found) -> Result<(), FilesError> {
        let (now, ctime) = self.tree()?.examine_open(file).map_err(|error| io_error("read", path, error))?;
        // Inodes are left out: some network file systems number them anew, and nobody can forge a ctime.
        let same = (now.size, now.mtime, ctime) == (expected.metadata.size, expected.metadata.mtime, expected.ctime);
        if same { Ok(()) } else { Err(FilesError::Changed { path: shown(path) }) }
    }

    /// What is at `path` itself; its parents are directories, not links. `None` also for what is hidden.
    pub(crate) fn lookup(&self, path: &Path) -> Result<Option<Found>, FilesError> {
        let Some(tree) = &self.tree else {
            return Ok(path.as_os_str().is_empty().then_some(EMPTY_ROOT));
        };
        let found = match tree.examine(path) {
            Ok((metadata, ctime)) => self.found(metadata, ctime),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(source) => return Err(io_error("examine", path, source)),
        };
        let bytes = path.as_os_str().as_bytes();
        let matched = self.patterns.matched(bytes);
        if !matched.yes {
            return Ok(Some(found));
        }
        let visible = found.metadata.kind == FileKind::Directory && self.has_visible(path, matched)?;
        Ok(visible.then_some(found))
    }

    /// Visible entries of a directory in byte order.
    pub(crate) fn list(&self, directory: &Path) -> Result<Vec<(OsString, Found)>, FilesError> {
        let matched = self.patterns.matched(directory.as_os_str().as_bytes());
        let mut visible = Vec::new();
        for (name, found) in self.entries(directory)? {
            let path = directory.join(&name);
            let is_visible = if found.metadata.kind == FileKind::Directory {
                let below = self.patterns.below(&matched, path.as_os_str().as_bytes());
                !below.yes || self.has_visible(&path, below)?
            } else {
                !self.patterns.matches_file(&matched, path.as_os_str().as_bytes())
            };
            if is_visible {
                visible.push((name, found));
            }
        }
        visible.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        Ok(visible)
    }

    /// All entries of a directory, hidden ones included, in no order.
    pub(super) fn entries(&self, directory: &Path) -> Result<Vec<(OsString, Found)>, FilesError> {
        let Some(tree) = &self.tree else { return Ok(Vec::new()) };
        let entries = tree.entries(directory).map_err(|source| io_error("list", directory, source))?;
        Ok(entries.into_iter().map(|entry| (entry.name, self.found(entry.metadata, entry.ctime))).collect())
    }

    /// Whether something below a hidden directory is brought back by an exception.
    fn has_visible(&self, directory: &Path, matched: Matched) -> Result<bool, FilesError> {
        let mut pending = vec![(directory.to_owned(), matched)];
        while let Some((directory, matched)) = pending.pop() {
            if !self.patterns.may_change_below(&matched) {
                continue;
            }
            let entries = match self.entries(&directory) {
                // Hidden on purpose, perhaps because of this.
                Err(FilesError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => continue,
                other => other?,
            };
            for (name, found) in entries {
                let path = directory.join(name);
                let below = self.patterns.below(&matched, path.as_os_str().as_bytes());
                if !below.yes {
                    return Ok(true);
                }
                if found.metadata.kind == FileKind::Directory {
                    pending.push((path, below));
                }
            }
        }
        Ok(false)
    }

    /// Line and pattern of the ignore file that hide `path`.
    pub(crate) fn hidden_by(&self, path: &Path) -> Option<(usize, String)> {
        let (line, pattern) = self.patterns.hidden_by(path.as_os_str().as_bytes())?;
        Some((line, pattern.to_owned()))
    }

    /// Whether something is at `path`, hidden or not.
    pub(super) fn is_there(&self, path: &Path) -> bool {
        self.tree.as_ref().is_some_and(|tree| tree.examine(path).is_ok())
    }

    /// Follows every link in `path`, the last component's included, inside the tree (checklist C-11).
    pub(crate) fn follow(&self, path: &Path) -> Result<Followed, FilesError> {
        let mut pending: VecDeque<OsString> = components(path).map(OsStr::to_owned).collect();
        let mut plain = PathBuf::new();
        let mut found = self.lookup(&plain)?;
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                plain.pop();
                found = self.lookup(&plain)?;
                continue;
            }
            let next = plain.join(&name);
            found = self.lookup(&next)?;
            match found.map(|found| found.metadata.kind) {
                Some(FileKind::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(FilesError::TooManyLinks { path: shown(path) });
                    }
                    let text = self.read_link(&next)?;
                    if text.is_absolute() {
                        plain = PathBuf::new();
                    }
                    for component in components(&text).collect::<Vec<_>>().into_iter().rev() {
                        pending.push_front(component.to_owned());
                    }
                    found = self.lookup(&plain)?;
                }
                Some(FileKind::Directory) => plain = next,
                Some(_) if pending.is_empty() => plain = next,
                Some(_) | None => {
                    plain = next;
                    plain.extend(pending);
                    return Ok(Followed { path: plain, found: None });
                }
            }
        }
        Ok(Followed { path: plain, found })
    }

    fn tree(&self) -> Result<&Rootfs, FilesError> {
        self.tree.as_ref().ok_or_else(|| io_error("read", Path::new(""), io::ErrorKind::NotFound.into()))
    }

    pub(super) fn found(&self, metadata: Metadata, ctime: (i64, u32)) -> Found {
        let owner = if self.is_plain() { (0, 0) } else { (metadata.uid, metadata.gid) };
        Found { metadata: Metadata { uid: owner.0, gid: owner.1, ..metadata }, ctime }
    }
}

fn open_xattr(file: &File, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let mut value = Vec::with_capacity(256);
    loop {
        match rustix::fs::fgetxattr(file, name, rustix::buffer::spare_capacity(&mut value)) {
            Ok(_) => return Ok(Some(value)),
            Err(Errno::RANGE) => value.reserve(value.capacity() * 2),
            Err(Errno::NODATA | Errno::NOTSUP) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn open_xattrs(file: &File) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut names: Vec<u8> = Vec::with_capacity(1024);
    loop {
        match rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut names)) {
            Ok(_) => break,
            Err(Errno::RANGE) => names.reserve(names.capacity() * 2),
            Err(Errno::NOTSUP) => return Ok(Vec::new()),
            Err(error) => return Err(error.into()),
        }
    }
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(OsStr::from_bytes);
    let mut attributes = Vec::new();
    for name in names {
        attributes.extend(open_xattr(file, name)?.map(|value| (name.to_owned(), value)));
    }
    Ok(attributes)
}

/// Root of an empty tree: a directory without content, as `FROM scratch` has.
const EMPTY_ROOT: Found = Found {
    metadata: Metadata {
        kind: FileKind::Directory,
        mode: 0o755,
        uid: 0,
        gid: 0,
        device: (0, 0),
        size: 0,
        mtime: (0, 0),
        inode: 0,
        links: 1,
    },
    ctime: (0, 0),
};

/// Components without `.` and empty ones.
fn components(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.as_os_str()
        .as_bytes()
        .split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(OsStr::from_bytes)
}

/// A path of the tree as errors show it.
pub(crate) fn shown(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

pub(super) fn io_error(action: &'static str, path: &Path, source: io::Error) -> FilesError {
    FilesError::Io { action, path: shown(path), source }
}
