//! The upper directory of an overlay against the tree below it.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::{Change, Difference, SnapshotError, assemble, same_metadata};
use crate::rootfs::{FileKind, Listed, Listing, Metadata, Rootfs};

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

/// What the upper layer changes in the tree `lower`.
pub(super) fn changes(
    upper: &Rootfs,
    lower: &Rootfs,
    is_opaque: &dyn Fn(&Path) -> io::Result<bool>,
) -> Result<Vec<Change>, SnapshotError> {
    let listing = upper.list()?;
    let mut differences = Vec::new();
    // Same metadata as below: what only its content can tell.
    let mut undecided = Vec::new();
    let mut open = vec![Open { path: PathBuf::new(), in_lower: true, hides: false }];
    for listed in listing.iter() {
        let Listed { path, metadata, .. } = listed;
        while open.len() > 1 && open.last().is_some_and(|directory| !path.starts_with(&directory.path)) {
            open.pop();
        }
        let (in_lower, hides) = open.last().map_or((true, false), |directory| (directory.in_lower, directory.hides));
        let below = if in_lower { find(lower, path)? } else { None };
        if is_whiteout(&metadata) {
            if below.is_some_and(|below| below.kind != FileKind::Socket) {
                differences.push((path.to_owned(), Difference::Removed));
            }
            continue;
        }
        if metadata.kind == FileKind::Directory {
            let is_directory_below = below.as_ref().is_some_and(|below| below.kind == FileKind::Directory);
            let hides = hides || is_opaque(path).map_err(|source| failed(path, source))?;
            if hides && is_directory_below {
                vanished(path, &listing, lower, &mut differences)?;
            }
            open.push(Open { path: path.to_owned(), in_lower: is_directory_below, hides });
        }
        match below {
            Some(below) if same_metadata(&below, &metadata) => match metadata.kind {
                FileKind::File | FileKind::Symlink => undecided.push((path, metadata)),
                _ => {}
            },
            Some(below) if metadata.kind == FileKind::Socket => {
                // A socket is in no layer, so there is nothing to take away if there was one.
                if below.kind != FileKind::Socket {
                    differences.push((path.to_owned(), Difference::Removed));
                }
            }
            _ => differences.push((path.to_owned(), Difference::Written(metadata))),
        }
    }
    let decided: Vec<_> = undecided
        .into_par_iter()
        .map(|(path, metadata)| match same_content(upper, lower, path, &metadata) {
            Ok(same) => Ok((!same).then(|| (path.to_owned(), Difference::Written(metadata)))),
            Err(source) => Err(failed(path, source)),
        })
        .collect::<Result<_, _>>()?;
    differences.extend(decided.into_iter().flatten());
    Ok(assemble(differences, &|path| Some(listing.get(path)?.metadata)))
}

/// Names of the directory `path` in the tree before that a directory of the same name, made anew, does not have.
fn vanished(
    path: &Path,
    upper: &Listing,
    lower: &Rootfs,
    differences: &mut Vec<(PathBuf, Difference)>,
) -> Result<(), SnapshotError> {
    for (name, kind) in lower.read_dir(path).map_err(|source| failed(path, source))? {
        let child = path.join(name);
        if kind != FileKind::Socket && upper.get(&child).is_none() {
            differences.push((child, Difference::Removed));
        }
    }
    Ok(())
}

/// Character device 0:0 (kernel documentation, overlayfs, "whiteouts and opaque directories").
fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.kind == FileKind::CharDevice && metadata.device == (0, 0)
}

fn find(lower: &Rootfs, path: &Path) -> Result<Option<Metadata>, SnapshotError> {
    match lower.lstat(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(failed(path, source)),
    }
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
    let attributes = rootfs.xattrs(path)?;
    Ok(attributes.into_iter().find(|(name, _)| name == "security.capability").map(|(_, value)| value))
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
