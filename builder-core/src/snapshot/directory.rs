//! Two listings of one directory tree.

use std::cmp::Ordering;
use std::io;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::overlay::{COMPARE_BYTES, capability, failed, fill};
use super::{Change, Difference, SnapshotError, assemble, same_metadata};
use crate::oci::{Hasher, Sha256};
use crate::rootfs::{FileKind, Listed, Listing, Metadata, Recall, Recalled, Rootfs, path_order};

/// What made `before` into `after`, which is `rootfs` now and had the layers `below`.
pub(super) fn changes(
    before: &Listing,
    after: &Listing,
    rootfs: &Rootfs,
    below: Option<Recall<'_>>,
) -> Result<Vec<Change>, SnapshotError> {
    let mut differences = Vec::new();
    // Same metadata as before: what only the content can tell.
    let mut undecided = Vec::new();
    let mut old = before.iter().peekable();
    let mut new = after.iter().peekable();
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => path_order(old.path, new.path),
        };
        match order {
            Ordering::Less => {
                let Some(gone) = old.next() else { break };
                // A socket is in no layer, so there is nothing to take away.
                if gone.metadata.kind != FileKind::Socket {
                    differences.push((gone.path.to_owned(), Difference::Removed));
                }
                skip_below(&mut old, gone.path);
            }
            Ordering::Greater => {
                let Some(made) = new.next() else { break };
                differences.push((made.path.to_owned(), Difference::Written(made.metadata)));
            }
            Ordering::Equal => {
                let (Some(was), Some(is)) = (old.next(), new.next()) else { break };
                if was.metadata.kind == FileKind::Directory && is.metadata.kind != FileKind::Directory {
                    // The new entry alone says that the old content is gone (checklist T-07).
                    skip_below(&mut old, was.path);
                }
                match fate(&was, &is) {
                    Fate::Same => {}
                    Fate::Changed(difference) => differences.push((is.path.to_owned(), difference)),
                    Fate::Undecided => undecided.push((is.path.to_owned(), is.metadata)),
                }
            }
        }
    }
    differences.extend(decide(undecided, before, rootfs, below)?);
    Ok(assemble(differences, &|path| Some(after.get(path)?.metadata)))
}

/// Those of `undecided` that are not what the layers below say.
fn decide(
    undecided: Vec<(PathBuf, Metadata)>,
    before: &Listing,
    rootfs: &Rootfs,
    below: Option<Recall<'_>>,
) -> Result<Vec<(PathBuf, Difference)>, SnapshotError> {
    let recalled = match below {
        Some(below) if !undecided.is_empty() => {
            let wanted = undecided.iter().map(|(path, _)| path.clone()).collect();
            let files = undecided.len();
            below.files(wanted, before).map_err(|source| SnapshotError::Recall { files, source })?
        }
        _ => std::collections::BTreeMap::new(),
    };
    let decided = undecided.into_par_iter().map(|(path, metadata)| {
        let same = match recalled.get(&path) {
            Some(was) => is_still(rootfs, &path, was).map_err(|source| failed(&path, source))?,
            None => false,
        };
        Ok((!same).then_some((path, Difference::Written(metadata))))
    });
    Ok(decided.collect::<Result<Vec<_>, SnapshotError>>()?.into_iter().flatten().collect())
}

/// Whether content and capability are what they were.
fn is_still(rootfs: &Rootfs, path: &Path, was: &Recalled) -> io::Result<bool> {
    match was {
        Recalled::Symlink(text) => Ok(rootfs.read_link(path)? == *text),
        Recalled::File { sha256, capability: was } => {
            Ok(capability(rootfs, path)? == *was && hash(rootfs, path)? == *sha256)
        }
    }
}

fn hash(rootfs: &Rootfs, path: &Path) -> io::Result<Sha256> {
    let mut file = rootfs.open_file(path)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; COMPARE_BYTES];
    loop {
        let length = fill(&mut file, &mut buffer)?;
        hasher.update(&buffer[..length]);
        if length < COMPARE_BYTES {
            return Ok(hasher.finish());
        }
    }
}

/// What happened to a name that is there before and after.
enum Fate {
    Same,
    Changed(Difference),
    /// Metadata is the same, content may not be.
    Undecided,
}

fn skip_below<'a>(listing: &mut std::iter::Peekable<impl Iterator<Item = Listed<'a>>>, directory: &Path) {
    while listing.next_if(|listed| listed.path.starts_with(directory)).is_some() {}
}

fn fate(was: &Listed<'_>, is: &Listed<'_>) -> Fate {
    match (was.metadata.kind, is.metadata.kind) {
        (FileKind::Socket, FileKind::Socket) => return Fate::Same,
        (_, FileKind::Socket) => return Fate::Changed(Difference::Removed),
        _ => {}
    }
    if !same_metadata(&was.metadata, &is.metadata) {
        return Fate::Changed(Difference::Written(is.metadata));
    }
    let same_inode = was.metadata.inode == is.metadata.inode;
    let same = match is.metadata.kind {
        // What these are besides their metadata is fixed when they are made.
        FileKind::Symlink => same_inode,
        FileKind::Directory | FileKind::Fifo | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket => true,
        // Data, modes and attributes cannot change without the change time, which nobody can set (inode(7)). Making or
        // removing another name sets it too; the size and time of the data say then that the data is as it was.
        FileKind::File => same_inode && (was.ctime == is.ctime || was.metadata.links != is.metadata.links),
    };
    if same { Fate::Same } else { Fate::Undecided }
}
