//! A sorted list of everything in a tree, made by several threads.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use rayon::slice::ParallelSliceMut;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::owners::Key;
use super::stat::Stat;
use super::{FileKind, Metadata, Rootfs};

/// Every path of a tree with its metadata, the root itself excepted, in the order of [`path_order`]. About 200 bytes a
/// file.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// All paths, one after the other.
    text: Vec<u8>,
    entries: Vec<Entry>,
    /// Files that are one file for the image, though not on the disk: position in `entries` → number of the inode that they
    /// share, and of its names.
    shared: BTreeMap<usize, (u64, u64)>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    start: u64,
    length: u32,
    stat: Stat,
}

/// One file of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed<'a> {
    /// Path in the tree, without a leading `/`.
    pub path: &'a Path,
    /// Metadata of the file itself.
    pub metadata: Metadata,
    /// Time of the last change to content or metadata: seconds since 1970 and nanoseconds. Nobody can set it.
    pub ctime: (i64, u32),
}

/// Where a listing failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot list `{}`", path.display())]
pub struct ListError {
    /// Path in the tree.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

/// Depth first, names of one directory in byte order, a directory directly followed by its content: `a`, `a/b`, `a-b`.
pub fn path_order(a: &Path, b: &Path) -> Ordering {
    let (a, b) = (a.as_os_str().as_bytes(), b.as_os_str().as_bytes());
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    // The separator sorts before every other byte, the end before the separator.
    let rank = |bytes: &[u8]| match bytes.get(same) {
        None => 0,
        Some(b'/') => 1,
        Some(byte) => u16::from(*byte) + 2,
    };
    rank(a).cmp(&rank(b))
}

impl Listing {
    /// Number of files.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the tree is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All files in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Listed<'_>> {
        self.entries.iter().enumerate().map(|(index, entry)| self.listed(index, entry))
    }

    /// The file at exactly this path (no leading `/`).
    pub fn get(&self, path: &Path) -> Option<Listed<'_>> {
        let found = self.entries.binary_search_by(|entry| path_order(self.path(entry), path));
        found.ok().and_then(|index| Some(self.listed(index, self.entries.get(index)?)))
    }

    /// Inodes of all files.
    pub(super) fn keys(&self) -> impl Iterator<Item = Key> {
        self.entries.iter().map(|entry| Key::of(&entry.stat))
    }

    /// Metadata of all files as the disk has it, but for owners and devices that are recorded.
    pub(super) fn stats(&self) -> impl Iterator<Item = &Stat> {
        self.entries.iter().map(|entry| &entry.stat)
    }

    /// Paths and what the disk has there.
    pub(super) fn raw(&self) -> impl Iterator<Item = (&Path, &Stat)> {
        self.entries.iter().map(|entry| (self.path(entry), &entry.stat))
    }

    /// Notes what the disk has at a path of the list now, and which inode it has with how many names for the image.
    pub(super) fn replace(&mut self, path: &Path, stat: Stat, shared: (u64, u64)) {
        if let Ok(index) = self.entries.binary_search_by(|entry| path_order(self.path(entry), path))
            && let Some(entry) = self.entries.get_mut(index)
        {
            entry.stat = stat;
            self.shared.insert(index, shared);
        }
    }

    /// Calls `visit` with each file that is not in the root itself, after the directory that it is in.
    pub(super) fn visit_children(&mut self, mut visit: impl FnMut(&Stat, &mut Stat)) {
        // The directories around the current entry.
        let mut around: Vec<usize> = Vec::new();
        for index in 0..self.entries.len() {
            let mut entry = self.entries[index];
            while around.last().is_some_and(|last| !self.path(&entry).starts_with(self.path(&self.entries[*last]))) {
                around.pop();
            }
            if let Some(directory) = around.last() {
                let directory = self.entries[*directory].stat;
                visit(&directory, &mut entry.stat);
                self.entries[index].stat = entry.stat;
            }
            if entry.stat.kind == FileKind::Directory {
                around.push(index);
            }
        }
    }

    fn path(&self, entry: &Entry) -> &Path {
        let start = usize::try_from(entry.start).expect("start is an index into text");
        Path::new(OsStr::from_bytes(&self.text[start..start + entry.length as usize]))
    }

    fn listed(&self, index: usize, entry: &Entry) -> Listed<'_> {
        let mut metadata = entry.stat.metadata();
        if let Some(shared) = self.shared.get(&index) {
            (metadata.inode, metadata.links) = *shared;
        }
        Listed { path: self.path(entry), metadata, ctime: entry.stat.ctime }
    }

    fn push(&mut self, dir: &[u8], name: &[u8], stat: Stat) {
        let start = self.text.len() as u64;
        self.text.extend_from_slice(dir);
        if !dir.is_empty() {
            self.text.push(b'/');
        }
        self.text.extend_from_slice(name);
        // Memory would end long before a path of 4 GiB could be built.
        let length = u32::try_from(self.text.len() as u64 - start).unwrap_or(u32::MAX);
        self.entries.push(Entry { start, length, stat });
    }

    fn append(&mut self, other: &Self) {
        let offset = self.text.len() as u64;
        self.text.extend_from_slice(&other.text);
        self.entries.extend(other.entries.iter().map(|entry| Entry { start: entry.start + offset, ..*entry }));
    }

    fn sort(&mut self) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.par_sort_unstable_by(|a, b| path_order(self.path(a), self.path(b)));
        self.entries = entries;
    }
}

impl Rootfs {
    /// Lists the whole tree on all threads of the current rayon pool. What vanishes meanwhile is left out.
    ///
    /// # Errors
    /// The first directory or file that could not be examined.
    pub fn list(&self) -> Result<Listing, ListError> {
        struct Found {
            listing: Listing,
            error: Option<ListError>,
        }
        fn scan<'s>(scope: &rayon::Scope<'s>, rootfs: &'s Rootfs, path: PathBuf, found: &'s Mutex<Found>) {
            let mut below = Vec::new();
            let result = rootfs.list_directory(&path, &mut below);
            {
                let mut found = found.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                match result {
                    Ok(part) => found.listing.append(&part),
                    Err(error) => {
                        found.error.get_or_insert(error);
                    }
                }
                if found.error.is_some() {
                    return;
                }
            }
            for path in below {
                scope.spawn(move |scope| scan(scope, rootfs, path, found));
            }
        }
        let found = Mutex::new(Found { listing: Listing::default(), error: None });
        rayon::scope(|scope| scan(scope, self, PathBuf::new(), &found));
        let Found { mut listing, error } = found.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        match error {
            Some(error) => Err(error),
            None => {
                listing.sort();
                Ok(listing)
            }
        }
    }

    /// Lists one directory, and names the directories in it.
    fn list_directory(&self, path: &Path, below: &mut Vec<PathBuf>) -> Result<Listing, ListError> {
        let fail = |path: PathBuf, error: Errno| ListError { path, source: error.into() };
        let mut listing = Listing::default();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let dir = match self.open_place(path, flags, Mode::empty()) {
            Ok(dir) => dir,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(listing),
            Err(source) => return Err(ListError { path: path.to_owned(), source }),
        };
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|error| fail(path.to_owned(), error))?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = match self.stat_entry(&dir, name) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(fail(path.join(name), error)),
            };
            if stat.kind == FileKind::Directory {
                below.push(path.join(name));
            }
            listing.push(path.as_os_str().as_bytes(), name.as_bytes(), stat);
        }
        Ok(listing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_followed_by_its_content() {
        let mut paths = ["a-b", "a/b", "b", "a", "a/b/c", "a.", "a/b-", "ab"].map(Path::new);
        paths.sort_by(|a, b| path_order(a, b));
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b-", "a-b", "a.", "ab", "b"].map(Path::new));
    }

    #[test]
    fn a_tree_is_listed_in_order_and_found_by_path() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b/c", "a-b", "z/y/x/w"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        std::fs::write(dir.path().join("a/b/file"), "12345").unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("a/link")).unwrap();
        let listing = Rootfs::open(dir.path()).unwrap().list().unwrap();
        let paths: Vec<_> = listing.iter().map(|listed| listed.path.to_str().unwrap()).collect();
        assert_eq!(paths, ["a", "a/b", "a/b/c", "a/b/file", "a/link", "a-b", "z", "z/y", "z/y/x", "z/y/x/w"]);
        assert_eq!(listing.get(Path::new("a/b/file")).unwrap().metadata.size, 5);
        assert_eq!(listing.get(Path::new("a/link")).unwrap().metadata.kind, FileKind::Symlink);
        assert_eq!(listing.get(Path::new("a/nothing")), None);
    }
}
