//! A long list of changes, and how it is put together in order.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{Change, Difference, SnapshotError};
use crate::rootfs::{FileKind, Metadata};
use crate::spool::{Fields, Paths, Place, Spool, SpoolReader, bytes};

/// Changes in their order, whose number memory does not feel: about 40 bytes each, which lie in a file without a name if
/// they are many.
#[derive(Debug, Default)]
pub struct Changes {
    spool: Spool,
    paths: Paths,
    record: Vec<u8>,
    count: u64,
    content_bytes: u64,
}

/// Added to the code of a kind: a path of an earlier change with the same inode follows.
const LINKED: u8 = 0x40;

/// Stands where the kind would.
const REMOVED: u8 = 0x20;

impl Changes {
    /// None yet. `place` is where the file is made.
    pub fn new(place: Place) -> Self {
        Self { spool: Spool::new(place), ..Self::default() }
    }

    /// Number of changes.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all regular files among them, holes included, each file once.
    pub fn content_bytes(&self) -> u64 {
        self.content_bytes
    }

    /// Adds a change.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn push(&mut self, change: &Change) -> io::Result<()> {
        let out = &mut self.record;
        out.clear();
        self.paths.write(out, change.path().as_os_str().as_bytes());
        match change {
            Change::Removed { .. } => out.push(REMOVED),
            Change::Entry { metadata, link_to, .. } => {
                out.push(metadata.kind.code() | if link_to.is_some() { LINKED } else { 0 });
                metadata.write(out);
                match link_to {
                    Some(first) => bytes(out, first.as_os_str().as_bytes()),
                    None if metadata.kind == FileKind::File => self.content_bytes += metadata.size,
                    None => {}
                }
            }
        }
        self.count += 1;
        self.spool.append(out)
    }

    /// All of them in order. After an error there are no more.
    pub fn iter(&self) -> Iter<'_> {
        Iter { input: self.spool.read_from(0), paths: Paths::default(), left: self.count }
    }
}

impl<'a> IntoIterator for &'a Changes {
    type Item = io::Result<Change>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

/// Reads [`Changes`].
#[derive(Debug)]
pub struct Iter<'a> {
    input: SpoolReader<'a>,
    paths: Paths,
    left: u64,
}

impl Iter<'_> {
    fn change(&mut self) -> io::Result<Change> {
        let path = PathBuf::from(OsStr::from_bytes(self.paths.read(&mut self.input)?));
        let code = self.input.byte()?;
        if code == REMOVED {
            return Ok(Change::Removed { path });
        }
        let kind = FileKind::from_code(code & !LINKED).ok_or(io::ErrorKind::InvalidData)?;
        let metadata = Metadata::read(kind, &mut self.input)?;
        let link_to = match code & LINKED {
            0 => None,
            _ => Some(PathBuf::from(std::ffi::OsString::from_vec(self.input.sized()?))),
        };
        Ok(Change::Entry { path, metadata, link_to })
    }
}

impl Iterator for Iter<'_> {
    type Item = io::Result<Change>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let change = self.change();
        if change.is_err() {
            self.left = 0;
        }
        Some(change)
    }
}

/// Puts differences together that come in order: with the ancestors of each before it, and hard links as links to the first
/// name.
pub(super) struct Assembly<'a> {
    changes: Changes,
    /// Knows every ancestor of a difference.
    ancestor: &'a dyn Fn(&Path) -> Result<Option<Metadata>, SnapshotError>,
    /// Of files with several names, as long as not all were seen: the first one, and how many were seen.
    first_names: BTreeMap<u64, (PathBuf, u64)>,
    /// Directories on the way to the last change, all of them listed.
    listed: Vec<PathBuf>,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(place: Place, ancestor: &'a dyn Fn(&Path) -> Result<Option<Metadata>, SnapshotError>) -> Self {
        Self { changes: Changes::new(place), ancestor, first_names: BTreeMap::new(), listed: Vec::new() }
    }

    pub(super) fn add(&mut self, path: PathBuf, difference: Difference) -> Result<(), SnapshotError> {
        if matches!(&difference, Difference::Written(metadata) if metadata.kind == FileKind::Socket) {
            return Ok(());
        }
        while self.listed.last().is_some_and(|directory| !path.starts_with(directory)) {
            self.listed.pop();
        }
        let missing: Vec<&Path> = path
            .ancestors()
            .skip(1)
            .take_while(|ancestor| {
                !ancestor.as_os_str().is_empty() && self.listed.last().is_none_or(|last| last != ancestor)
            })
            .collect();
        for ancestor in missing.into_iter().rev() {
            if let Some(metadata) = (self.ancestor)(ancestor)? {
                self.listed.push(ancestor.to_owned());
                self.keep(Change::Entry { path: ancestor.to_owned(), metadata, link_to: None })?;
            }
        }
        let change = match difference {
            Difference::Removed => Change::Removed { path },
            Difference::Written(metadata) if metadata.kind == FileKind::Directory => {
                self.listed.push(path.clone());
                Change::Entry { path, metadata, link_to: None }
            }
            Difference::Written(metadata) => {
                let link_to = if metadata.links > 1 { self.first_name(&path, &metadata) } else { None };
                Change::Entry { path, metadata, link_to }
            }
        };
        self.keep(change)
    }

    /// The first name of a file that has several; `None` if this is it.
    fn first_name(&mut self, path: &Path, metadata: &Metadata) -> Option<PathBuf> {
        let Entry::Occupied(mut known) = self.first_names.entry(metadata.inode) else {
            self.first_names.insert(metadata.inode, (path.to_owned(), 1));
            return None;
        };
        known.get_mut().1 += 1;
        if known.get().1 >= metadata.links { Some(known.remove().0) } else { Some(known.get().0.clone()) }
    }

    fn keep(&mut self, change: Change) -> Result<(), SnapshotError> {
        self.changes.push(&change).map_err(SnapshotError::Keep)
    }

    pub(super) fn finish(self) -> Changes {
        self.changes
    }
}
