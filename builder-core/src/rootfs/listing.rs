//! A sorted list of everything in a tree, made by several threads, whose length memory does not feel.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ordered::{self, Everywhere, Visited};
use super::stat::Stat;
use super::{FileKind, Guide, Metadata, Rootfs};
use crate::spool::{Paths, Place, Spool, SpoolReader};

/// Every path of a tree with its metadata, the root itself excepted, in the order of [`path_order`]. About 50 bytes a
/// file, which lie in a file without a name below the work dir if they are many and the tree has such a place.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    packed: Arc<Packed>,
    /// What was noted later, by position in the list.
    notes: BTreeMap<u64, Note>,
}

/// The list as it was made.
#[derive(Debug, Default)]
struct Packed {
    spool: Spool,
    count: u64,
    /// Every so many files a place to begin at, for those that look for one.
    marks: Vec<Mark>,
}

#[derive(Debug)]
struct Mark {
    position: u64,
    path: Box<[u8]>,
}

/// Files from one [`Mark`] to the next.
const MARK_EVERY: u64 = 256;

/// What is known better than the list has it.
#[derive(Debug, Clone, Copy)]
struct Note {
    stat: Stat,
    /// Of files that are one file for the image, though not on the disk: number of the inode that they share, and of
    /// its names.
    shared: Option<(u64, u64)>,
}

/// One file of a [`Listing`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Path in the tree, without a leading `/`.
    pub path: PathBuf,
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

/// Whether a plain path is somewhere in a directory; the empty path is the root.
pub fn is_below(path: &Path, directory: &Path) -> bool {
    path != directory && path.starts_with(directory)
}

/// What each of two lists has where they differ.
type Difference = (Option<(PathBuf, Stat)>, Option<(PathBuf, Stat)>);

impl Listing {
    /// Number of files.
    pub fn len(&self) -> usize {
        usize::try_from(self.packed.count).unwrap_or(usize::MAX)
    }

    /// Whether the tree is empty.
    pub fn is_empty(&self) -> bool {
        self.packed.count == 0
    }

    /// All files in order. After an error there are no more.
    pub fn iter(&self) -> impl Iterator<Item = Result<Listed, ListError>> {
        self.entries(0).map(|entry| entry.map(Entry::listed))
    }

    /// The file at exactly this path (no leading `/`).
    ///
    /// # Errors
    /// If the list cannot be read.
    pub fn get(&self, path: &Path) -> Result<Option<Listed>, ListError> {
        Ok(self.find(path)?.map(Entry::listed))
    }

    /// Paths and what the disk has there, but for owners and devices that are recorded.
    pub(super) fn raw(&self) -> impl Iterator<Item = Result<(PathBuf, Stat), ListError>> {
        self.entries(0).map(|entry| entry.map(|entry| (entry.path, entry.note.stat)))
    }

    /// What [`Listing::raw`] has without the paths.
    pub(super) fn stats(&self) -> impl Iterator<Item = Result<Stat, ListError>> {
        self.raw().map(|entry| entry.map(|(_, stat)| stat))
    }

    /// What both lists say where they differ first, but for times at which directories changed, which nobody asks.
    pub(super) fn difference(&self, other: &Self) -> Result<Option<Difference>, ListError> {
        let asked = |(path, mut stat): (PathBuf, Stat)| {
            if stat.kind == FileKind::Directory {
                stat.ctime = (0, 0);
            }
            (path, stat)
        };
        let (mut ours, mut theirs) =
            (self.raw().map(|entry| entry.map(asked)), other.raw().map(|entry| entry.map(asked)));
        loop {
            match (ours.next().transpose()?, theirs.next().transpose()?) {
                (None, None) => return Ok(None),
                (one, other) if one == other => {}
                differ => return Ok(Some(differ)),
            }
        }
    }

    /// Notes what the disk has at a path of the list now, and which inode it has with how many names for the image.
    pub(super) fn replace(&mut self, path: &Path, stat: Stat, shared: (u64, u64)) -> Result<(), ListError> {
        if let Some(entry) = self.find(path)? {
            self.notes.insert(entry.index, Note { stat, shared: Some(shared) });
        }
        Ok(())
    }

    /// Notes what the disk has at a path of the list now.
    pub(super) fn note(&mut self, path: &Path, stat: Stat) -> Result<(), ListError> {
        if let Some(Entry { index, note, .. }) = self.find(path)? {
            self.notes.insert(index, Note { stat, ..note });
        }
        Ok(())
    }

    /// Calls `visit` with each file that is not in the root itself, after the directory that it is in; what it changes is
    /// noted.
    pub(super) fn visit_children(&mut self, mut visit: impl FnMut(&Stat, &mut Stat)) -> Result<(), ListError> {
        // The directories around the current entry.
        let mut around: Vec<(PathBuf, Stat)> = Vec::new();
        let mut notes = BTreeMap::new();
        for entry in self.entries(0) {
            let Entry { index, path, mut note } = entry?;
            while around.last().is_some_and(|(last, _)| !path.starts_with(last)) {
                around.pop();
            }
            if let Some((_, directory)) = around.last() {
                let was = note.stat;
                visit(directory, &mut note.stat);
                if note.stat != was {
                    notes.insert(index, note);
                }
            }
            if note.stat.kind == FileKind::Directory {
                around.push((path, note.stat));
            }
        }
        self.notes.extend(notes);
        Ok(())
    }

    /// The entries from a mark on.
    fn entries(&self, mark: usize) -> Entries<'_> {
        let position = self.packed.marks.get(mark).map_or(0, |mark| mark.position);
        let index = mark as u64 * MARK_EVERY;
        Entries { listing: self, input: self.packed.spool.read_from(position), paths: Paths::default(), index }
    }

    fn find(&self, path: &Path) -> Result<Option<Entry>, ListError> {
        let path_of = |mark: &Mark| -> Ordering { path_order(Path::new(OsStr::from_bytes(&mark.path)), path) };
        let after = self.packed.marks.partition_point(|mark| path_of(mark).is_le());
        let Some(mark) = after.checked_sub(1) else { return Ok(None) };
        for entry in self.entries(mark) {
            let entry = entry?;
            match path_order(&entry.path, path) {
                Ordering::Less => {}
                Ordering::Equal => return Ok(Some(entry)),
                Ordering::Greater => break,
            }
        }
        Ok(None)
    }
}

/// A file with its position in the list.
struct Entry {
    index: u64,
    path: PathBuf,
    note: Note,
}

impl Entry {
    fn listed(self) -> Listed {
        let mut metadata = self.note.stat.metadata();
        if let Some(shared) = self.note.shared {
            (metadata.inode, metadata.links) = shared;
        }
        Listed { path: self.path, metadata, ctime: self.note.stat.ctime }
    }
}

/// Reads a list from some mark on.
struct Entries<'a> {
    listing: &'a Listing,
    input: SpoolReader<'a>,
    paths: Paths,
    index: u64,
}

impl Iterator for Entries<'_> {
    type Item = Result<Entry, ListError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.listing.packed.count {
            return None;
        }
        let index = self.index;
        self.index += 1;
        if index.is_multiple_of(MARK_EVERY) {
            self.paths.restart();
        }
        let read = self.paths.read(&mut self.input).map(|path| Path::new(OsStr::from_bytes(path)).to_owned());
        let entry = read.and_then(|path| {
            let stat = Stat::read(&mut self.input)?;
            let note = self.listing.notes.get(&index).copied().unwrap_or(Note { stat, shared: None });
            Ok(Entry { index, path, note })
        });
        Some(entry.map_err(|source| {
            self.index = u64::MAX;
            ListError { path: Path::new(OsStr::from_bytes(self.paths.last())).to_owned(), source }
        }))
    }
}

/// Makes a list, in order.
pub(super) struct Writer {
    packed: Packed,
    paths: Paths,
    record: Vec<u8>,
}

impl Writer {
    pub(super) fn new(place: Place) -> Self {
        let packed = Packed { spool: Spool::new(place), ..Packed::default() };
        Self { packed, paths: Paths::default(), record: Vec::new() }
    }

    pub(super) fn push(&mut self, path: &Path, stat: &Stat) -> io::Result<()> {
        let path = path.as_os_str().as_bytes();
        if self.packed.count.is_multiple_of(MARK_EVERY) {
            self.paths.restart();
            self.packed.marks.push(Mark { position: self.packed.spool.len(), path: path.into() });
        }
        self.record.clear();
        self.paths.write(&mut self.record, path);
        stat.write(&mut self.record);
        self.packed.count += 1;
        self.packed.spool.append(&self.record)
    }

    pub(super) fn finish(self) -> Listing {
        Listing { packed: Arc::new(self.packed), notes: BTreeMap::new() }
    }
}

/// What a guided walk finds: path in the tree, metadata, change time, what is known of the directory around, and of itself
/// if it is a directory.
pub(crate) type Sight<'a, D> = (&'a Path, Metadata, (i64, u32), &'a D, Option<&'a D>);

impl Rootfs {
    /// Calls `visit` with everything below the directory `top` (plain, without a leading `/`) that `guide` leads to, in
    /// the order of [`path_order`], on all threads of the current rayon pool. What vanishes meanwhile is left out.
    pub(crate) fn guided<D: Send + Sync, E: From<ListError>>(
        &self,
        top: &Path,
        known: D,
        guide: &dyn Guide<Directory = D>,
        visit: &mut dyn FnMut(Sight<'_, D>) -> Result<(), E>,
    ) -> Result<(), E> {
        ordered::walk(self, top, known, guide, &mut |Visited { path, stat, around, own }| {
            visit((path, stat.metadata(), stat.ctime, around, own))
        })
    }

    /// Lists the whole tree on all threads of the current rayon pool. What vanishes meanwhile is left out.
    ///
    /// # Errors
    /// The first directory or file that could not be examined, or that the list could not be written.
    pub fn list(&self) -> Result<Listing, ListError> {
        let mut writer = Writer::new(self.lists_in());
        ordered::walk(self, Path::new(""), (), &Everywhere, &mut |Visited { path, stat, .. }| {
            writer.push(path, stat).map_err(|source| ListError { path: path.to_owned(), source })
        })?;
        Ok(writer.finish())
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
        let paths: Vec<_> = listing.iter().map(|listed| listed.unwrap().path).collect();
        assert_eq!(
            paths,
            ["a", "a/b", "a/b/c", "a/b/file", "a/link", "a-b", "z", "z/y", "z/y/x", "z/y/x/w"].map(PathBuf::from)
        );
        assert_eq!(listing.get(Path::new("a/b/file")).unwrap().unwrap().metadata.size, 5);
        assert_eq!(listing.get(Path::new("a/link")).unwrap().unwrap().metadata.kind, FileKind::Symlink);
        assert_eq!(listing.get(Path::new("a/nothing")).unwrap(), None);
    }

    #[test]
    fn each_of_many_files_is_found_in_a_list_that_left_memory() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        for number in 0..7 {
            std::fs::create_dir_all(tree.join(format!("d{number}"))).unwrap();
            for file in 0..1500 {
                std::fs::write(tree.join(format!("d{number}/a-rather-long-name-of-a-file-{file}")), "").unwrap();
            }
        }
        let rootfs = Rootfs::open(&tree).unwrap().listing_in(dir.path());
        let mut listing = rootfs.list().unwrap();
        assert_eq!(listing.len(), 7 * 1501);
        assert_eq!(listing.iter().count(), listing.len());
        for listed in listing.iter().step_by(97) {
            let listed = listed.unwrap();
            assert_eq!(listing.get(&listed.path).unwrap(), Some(listed));
        }
        // The list itself lies beside the tree, without a name.
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        let path = Path::new("d3/a-rather-long-name-of-a-file-77");
        let stat = listing.find(path).unwrap().unwrap().note.stat;
        listing.replace(path, stat, (5, 9)).unwrap();
        let metadata = listing.get(path).unwrap().unwrap().metadata;
        assert_eq!((metadata.inode, metadata.links), (5, 9));
        assert_eq!(rootfs.list().unwrap().get(Path::new("d3/z")).unwrap(), None);
    }
}
