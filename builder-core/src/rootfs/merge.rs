//! Several small layers of a stack as one directory, so that the cost of a mount does not grow with the number of steps.
//!
//! overlayfs looks a name up in one lower directory after the other, and prepares each of them for each mount. So sixteen layers in a
//! row that hold little, counted from the lowest of the stack, are copied into one directory that says what they say together, and
//! sixteen of those into another one: a stack of `n` layers is mounted as `n / 256 + 30` directories. What the layers
//! are as such stays where it is: other stacks begin with them.
//!
//! # Limitations
//! A file whose second name a layer above hides has fewer links in the copy.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::borrowed::LentFiles;
use super::duplicate::Duplicate;
use super::fetch::Stop;
use super::overlay::{Marks, is_opaque, is_whiteout};
use super::{FileKind, ListError, Rootfs};
use crate::disk::Disk;

/// Directories that become one. Of a stack with less than twice as many layers nothing is copied.
pub(super) const TOGETHER: usize = 16;

/// Entries that they have at most, all together: more of them take longer to copy than mounts of the layers do.
const MOST_ENTRIES: usize = 4096;

/// Bytes that their files have at most, all together.
const MOST_BYTES: u64 = 4 << 20;

/// What a path is in all layers together.
#[derive(Debug)]
struct Place {
    /// Which of them says it.
    source: usize,
    kind: FileKind,
    whiteout: bool,
    /// It hides what lies below it in the layers below all of these.
    opaque: bool,
    /// Its inode, if that has several names.
    linked: Option<u64>,
}

/// Layers by their raw directories, the lowest first.
pub(super) struct Merge<'a> {
    pub sources: &'a [Rootfs],
    pub marks: Marks,
    pub disk: &'a Disk,
    pub stop: &'a Stop<'a>,
}

/// What layers say together.
#[derive(Debug, Default)]
pub(super) struct Merged(BTreeMap<PathBuf, Place>);

fn fail(path: &Path) -> impl Fn(io::Error) -> ListError {
    move |source| ListError { path: path.to_owned(), source }
}

impl Merge<'_> {
    /// Reads the layers; `None` if they hold too much.
    ///
    /// # Errors
    /// The first path that could not be read.
    pub(super) fn read(&self) -> Result<Option<Merged>, ListError> {
        let mut merged = Merged::default();
        let (mut entries, mut bytes) = (0, 0);
        for (source, layer) in self.sources.iter().enumerate() {
            let mut directories = vec![PathBuf::new()];
            while let Some(directory) = directories.pop() {
                for entry in layer.entries(&Path::new("/").join(&directory)).map_err(fail(&directory))? {
                    let (path, found) = (directory.join(entry.name), entry.metadata);
                    entries += 1;
                    bytes += found.size;
                    if entries > MOST_ENTRIES || bytes > MOST_BYTES {
                        return Ok(None);
                    }
                    let directory = found.kind == FileKind::Directory;
                    let place = Place {
                        source,
                        kind: found.kind,
                        whiteout: is_whiteout(found.kind, found.device),
                        opaque: directory && is_opaque(layer, &path, self.marks).map_err(fail(&path))?,
                        linked: (!directory && found.links > 1).then_some(found.inode),
                    };
                    if directory {
                        directories.push(path.clone());
                    }
                    merged.put(path, place);
                }
            }
        }
        Ok(Some(merged))
    }

    /// Writes what they say into an empty directory.
    ///
    /// # Errors
    /// The first path that could not be copied.
    pub(super) fn write(&self, merged: &Merged, to: &Rootfs) -> Result<(), ListError> {
        let lent = LentFiles::default();
        let copies: Vec<Duplicate<'_>> = self
            .sources
            .iter()
            .map(|from| Duplicate {
                from,
                to,
                owners: None,
                owned: true,
                lent: &lent,
                disk: self.disk,
                stop: self.stop,
            })
            .collect();
        let mut names: BTreeMap<(usize, u64), &Path> = BTreeMap::new();
        for (path, place) in &merged.0 {
            let first = place.linked.map(|inode| names.entry((place.source, inode)));
            match first {
                Some(Entry::Occupied(name)) => to.hard_link(name.get(), path).map_err(fail(path))?,
                other => {
                    copies[place.source].one(path).map_err(fail(path))?;
                    if let Some(Entry::Vacant(name)) = other {
                        name.insert(path);
                    }
                }
            }
        }
        // What is made in a directory changes its time, so the innermost come first.
        for (path, place) in merged.0.iter().rev().filter(|(_, place)| place.kind == FileKind::Directory) {
            let finished = copies[place.source].finish(path);
            finished
                .and_then(|to| if place.opaque { self.marks.set_opaque(to.target()) } else { Ok(()) })
                .map_err(fail(path))?;
        }
        if let Some(top) = copies.last() {
            top.finish(Path::new("")).map_err(fail(Path::new("")))?;
        }
        Ok(())
    }
}

impl Merged {
    /// The next layer says something of a path; what is above it was said before.
    fn put(&mut self, path: PathBuf, mut place: Place) {
        if place.kind == FileKind::Directory
            && !place.opaque
            && let Some(there) = self.0.get_mut(&path)
            && there.kind == FileKind::Directory
        {
            there.source = place.source;
            return;
        }
        let hidden: Vec<PathBuf> = self
            .0
            .range(path.clone()..)
            .map(|(below, _)| below)
            .take_while(|below| below.starts_with(&path))
            .cloned()
            .collect();
        // A directory where something else was hides also what that hid.
        place.opaque |= place.kind == FileKind::Directory && !hidden.is_empty();
        for below in hidden {
            self.0.remove(&below);
        }
        self.0.insert(path, place);
    }

    /// Whether anything is said to be gone.
    pub(super) fn has_whiteouts(&self) -> bool {
        self.0.values().any(|place| place.whiteout)
    }

    /// Leaves out that something is gone which the layers `below` all of these do not show anyway: overlayfs shows the whiteouts of a
    /// directory that only one layer has.
    ///
    /// # Errors
    /// The first path that could not be looked up.
    pub(super) fn drop_idle_whiteouts(&mut self, below: Option<&Rootfs>) -> Result<(), ListError> {
        let mut idle = Vec::new();
        for (path, _) in self.0.iter().filter(|(_, place)| place.whiteout) {
            let opaque = path.ancestors().skip(1).any(|parent| self.0.get(parent).is_some_and(|place| place.opaque));
            let hides = match below {
                Some(below) if !opaque => is_there(below, path).map_err(fail(path))?,
                _ => false,
            };
            if !hides {
                idle.push(path.clone());
            }
        }
        for path in idle {
            self.0.remove(&path);
        }
        Ok(())
    }
}

/// Whether a tree has something under exactly this name: no link leads there.
fn is_there(tree: &Rootfs, path: &Path) -> io::Result<bool> {
    let mut place = PathBuf::from("/");
    let mut inside = true;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        if !inside {
            return Ok(false);
        }
        place.push(name);
        match tree.lstat(&place) {
            Ok(found) => inside = found.kind == FileKind::Directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}
