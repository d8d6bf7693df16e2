//! The upper directory of an overlay against the tree below it.

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::list::{Assembly, Changes};
use super::{Difference, SnapshotError, found, same_metadata};
use crate::rootfs::{FileKind, Listed, Metadata, Rootfs, path_order};

/// Bytes of two files that are compared at a time.
pub(super) const COMPARE_BYTES: usize = 64 * 1024;

/// A directory of the upper layer on the way to the entry being looked at.
struct Open {
    path: PathBuf,
    /// The tree before has a directory at this path, reached through directories only.
    in_lower: bool,
    /// Nothing of the tree before shines through.
    hides: bool,
}

/// Entries of the upper layer that are looked at before the undecided ones among them are compared.
const AT_ONCE: usize = 4096;

/// A path by its place in the order of changes.
#[derive(PartialEq, Eq)]
struct InOrder(PathBuf);

impl Ord for InOrder {
    fn cmp(&self, other: &Self) -> Ordering {
        path_order(&self.0, &other.0)
    }
}

impl PartialOrd for InOrder {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What is known of a path at first sight.
enum Seen {
    Different(Difference),
    /// Same metadata as below: what only its content can tell.
    Undecided(Metadata, Copy),
}

/// What a file in the upper layer is if it turns out to be the one below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copy {
    /// As good as that one.
    Harmless,
    /// One of several names here or there, which was set apart from the others, or is one file with names that it is not one with in
    /// the layers.
    Misleading,
}

/// What the upper layer changes in the tree `lower`, and which files in it only mislead about hard links: they are in no layer,
/// and what is below is the same.
pub(super) fn changes(
    upper: &Rootfs,
    lower: &Rootfs,
    is_opaque: &dyn Fn(&Path) -> io::Result<bool>,
) -> Result<(Changes, Vec<PathBuf>), SnapshotError> {
    let mut misleading = Vec::new();
    let listing = upper.list()?;
    let ancestor = |path: &Path| found(upper, path);
    let mut assembly = Assembly::new(upper.lists_in(), &ancestor);
    let mut seen: Vec<(PathBuf, Seen)> = Vec::new();
    // What is gone without a whiteout and comes after the entry being looked at.
    let mut gone: BTreeSet<InOrder> = BTreeSet::new();
    let removed = |path| (path, Seen::Different(Difference::Removed));
    let mut open = vec![Open { path: PathBuf::new(), in_lower: true, hides: false }];
    for listed in listing.iter() {
        let Listed { path, metadata, .. } = listed?;
        while let Some(first) = gone.first()
            && path_order(&first.0, &path).is_lt()
            && let Some(first) = gone.pop_first()
        {
            seen.push(removed(first.0));
        }
        if seen.len() >= AT_ONCE {
            decide(std::mem::take(&mut seen), upper, lower, &mut assembly, &mut misleading)?;
        }
        while open.len() > 1 && open.last().is_some_and(|directory| !path.starts_with(&directory.path)) {
            open.pop();
        }
        let (in_lower, hides) = open.last().map_or((true, false), |directory| (directory.in_lower, directory.hides));
        let below = if in_lower { found(lower, &path)? } else { None };
        if is_whiteout(&metadata) {
            if below.is_some_and(|below| below.kind != FileKind::Socket) {
                seen.push(removed(path));
            }
            continue;
        }
        if metadata.kind == FileKind::Directory {
            let is_directory_below = below.as_ref().is_some_and(|below| below.kind == FileKind::Directory);
            let hides = hides || is_opaque(&path).map_err(|source| failed(&path, source))?;
            if hides && is_directory_below {
                vanished(&path, upper, lower, &mut gone)?;
            }
            open.push(Open { path: path.clone(), in_lower: is_directory_below, hides });
        }
        match below {
            Some(below) if same_metadata(&below, &metadata) => match metadata.kind {
                FileKind::File | FileKind::Symlink => {
                    let several = !hides && (metadata.links > 1 || below.links > 1);
                    let copy = if several { Copy::Misleading } else { Copy::Harmless };
                    seen.push((path, Seen::Undecided(metadata, copy)));
                }
                _ => {}
            },
            Some(below) if metadata.kind == FileKind::Socket => {
                // A socket is in no layer, so there is nothing to take away if there was one.
                if below.kind != FileKind::Socket {
                    seen.push(removed(path));
                }
            }
            _ => seen.push((path, Seen::Different(Difference::Written(metadata)))),
        }
    }
    seen.extend(gone.into_iter().map(|gone| removed(gone.0)));
    decide(seen, upper, lower, &mut assembly, &mut misleading)?;
    Ok((assembly.finish(), misleading))
}

/// Adds what is different to the list, in the order in which it was seen.
fn decide(
    seen: Vec<(PathBuf, Seen)>,
    upper: &Rootfs,
    lower: &Rootfs,
    assembly: &mut Assembly<'_>,
    misleading: &mut Vec<PathBuf>,
) -> Result<(), SnapshotError> {
    let decided: Vec<_> = seen
        .into_par_iter()
        .map(|(path, seen)| match seen {
            Seen::Different(difference) => Ok((path, Decided::Different(difference))),
            Seen::Undecided(metadata, copy) => {
                let decided = match same_content(upper, lower, &path, &metadata) {
                    Ok(false) => Ok(Decided::Different(Difference::Written(metadata))),
                    Ok(true) if copy == Copy::Misleading => same_xattrs(upper, lower, &path)
                        .map(|same| Decided::Same(if same { Copy::Misleading } else { Copy::Harmless })),
                    Ok(true) => Ok(Decided::Same(Copy::Harmless)),
                    Err(error) => Err(error),
                };
                decided.map_err(|source| failed(&path, source)).map(|decided| (path, decided))
            }
        })
        .collect::<Result<_, _>>()?;
    for (path, decided) in decided {
        match decided {
            Decided::Different(difference) => assembly.add(path, difference)?,
            Decided::Same(Copy::Misleading) => misleading.push(path),
            Decided::Same(Copy::Harmless) => {}
        }
    }
    Ok(())
}

enum Decided {
    Different(Difference),
    Same(Copy),
}

fn same_xattrs(upper: &Rootfs, lower: &Rootfs, path: &Path) -> io::Result<bool> {
    Ok(upper.xattrs(path)? == lower.xattrs(path)?)
}

/// Names of the directory `path` in the tree before that a directory of the same name, made anew, does not have.
fn vanished(path: &Path, upper: &Rootfs, lower: &Rootfs, gone: &mut BTreeSet<InOrder>) -> Result<(), SnapshotError> {
    for (name, kind) in lower.read_dir(path).map_err(|source| failed(path, source))? {
        let child = path.join(name);
        if kind != FileKind::Socket && found(upper, &child)?.is_none() {
            gone.insert(InOrder(child));
        }
    }
    Ok(())
}

/// Character device 0:0 (kernel documentation, overlayfs, "whiteouts and opaque directories").
fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.kind == FileKind::CharDevice && metadata.device == (0, 0)
}

pub(super) fn failed(path: &Path, source: io::Error) -> SnapshotError {
    SnapshotError::Examine { path: path.to_owned(), source }
}

/// Whether content and capability are equal; metadata is.
fn same_content(upper: &Rootfs, lower: &Rootfs, path: &Path, metadata: &Metadata) -> io::Result<bool> {
    if metadata.kind == FileKind::Symlink {
        return Ok(upper.read_link(path)? == lower.read_link(path)?);
    }
    if capability(upper, path)? != capability(lower, path)? {
        return Ok(false);
    }
    if metadata.size == 0 {
        return Ok(true);
    }
    let (mut a, mut b) = (upper.open_file(path)?, lower.open_file(path)?);
    let (mut a_buffer, mut b_buffer) = (vec![0; COMPARE_BYTES], vec![0; COMPARE_BYTES]);
    loop {
        let a_length = fill(&mut a, &mut a_buffer)?;
        let b_length = fill(&mut b, &mut b_buffer)?;
        if a_buffer[..a_length] != b_buffer[..b_length] {
            return Ok(false);
        }
        if a_length < COMPARE_BYTES {
            return Ok(true);
        }
    }
}

pub(super) fn capability(rootfs: &Rootfs, path: &Path) -> io::Result<Option<Vec<u8>>> {
    Ok(crate::rootfs::capability(rootfs.xattrs(path)?))
}

/// Reads until the buffer is full or the file ends.
pub(super) fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}
