//! Two listings of one directory tree.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::list::{Assembly, Changes};
use super::overlay::{capability, failed};
use super::{Difference, SnapshotError, found, same_metadata};
use crate::rootfs::{FileKind, Listed, Listing, Metadata, Recalled, Rootfs, Touched, TreeError, hash_all, path_order};

/// Tells what files were before, as [`crate::rootfs::Recall::files`] does.
pub(super) type Recalls<'a> = dyn FnMut(BTreeSet<PathBuf>) -> Result<BTreeMap<PathBuf, Recalled>, TreeError> + 'a;

/// What made `before` into `after`, which is `rootfs` now.
pub(super) fn changes(
    before: &Listing,
    after: &Listing,
    rootfs: &Rootfs,
    recall: Option<&mut Recalls<'_>>,
) -> Result<Changes, SnapshotError> {
    // As long as the layers below have not been asked, what is undecided counts as the same.
    let mut undecided = Vec::new();
    let found = assemble(before, after, rootfs, &mut |path, metadata| {
        undecided.push((path, metadata));
        false
    })?;
    if undecided.is_empty() {
        return Ok(found);
    }
    let changed = decide(undecided, rootfs, recall)?;
    assemble(before, after, rootfs, &mut |path, _| changed.contains(&path))
}

/// Goes through both listings. `is_changed` decides about files whose metadata is the same.
fn assemble(
    before: &Listing,
    after: &Listing,
    rootfs: &Rootfs,
    is_changed: &mut dyn FnMut(PathBuf, Metadata) -> bool,
) -> Result<Changes, SnapshotError> {
    let ancestor = |path: &Path| found(rootfs, path);
    let mut assembly = Assembly::new(rootfs.lists_in(), &ancestor);
    let (mut old, mut new) = (before.iter(), after.iter());
    let (mut was, mut is) = (old.next().transpose()?, new.next().transpose()?);
    // A directory of the listing before whose content is of no interest.
    let mut gone: Option<PathBuf> = None;
    loop {
        if let (Some(directory), Some(below)) = (&gone, &was) {
            if below.path.starts_with(directory) {
                was = old.next().transpose()?;
                continue;
            }
            gone = None;
        }
        let order = match (&was, &is) {
            (None, None) => return Ok(assembly.finish()),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(was), Some(is)) => path_order(&was.path, &is.path),
        };
        let (mut left, mut right) = (None, None);
        if order.is_le() {
            left = std::mem::replace(&mut was, old.next().transpose()?);
        }
        if order.is_ge() {
            right = std::mem::replace(&mut is, new.next().transpose()?);
        }
        match (left, right) {
            (Some(left), None) => {
                // A socket is in no layer, so there is nothing to take away.
                if left.metadata.kind != FileKind::Socket {
                    assembly.add(left.path.clone(), Difference::Removed)?;
                }
                gone = Some(left.path);
            }
            (None, Some(right)) => assembly.add(right.path, Difference::Written(right.metadata))?,
            (Some(left), Some(right)) => {
                let fate = fate(&left, &right, rootfs.touched().map(Arc::as_ref));
                if left.metadata.kind == FileKind::Directory && right.metadata.kind != FileKind::Directory {
                    // The new entry alone says that the old content is gone (checklist T-07).
                    gone = Some(left.path);
                }
                match fate {
                    Fate::Same => {}
                    Fate::Changed(difference) => assembly.add(right.path, difference)?,
                    Fate::Undecided => {
                        if is_changed(right.path.clone(), right.metadata) {
                            assembly.add(right.path, Difference::Written(right.metadata))?;
                        }
                    }
                }
            }
            (None, None) => {}
        }
    }
}

/// Those of `undecided` that are not what the layers below say.
fn decide(
    undecided: Vec<(PathBuf, Metadata)>,
    rootfs: &Rootfs,
    recall: Option<&mut Recalls<'_>>,
) -> Result<BTreeSet<PathBuf>, SnapshotError> {
    let recalled = match recall {
        Some(recall) if !undecided.is_empty() => {
            let wanted = undecided.iter().map(|(path, _)| path.clone()).collect();
            let files = undecided.len();
            recall(wanted).map_err(|source| SnapshotError::Recall { files, source })?
        }
        _ => BTreeMap::new(),
    };
    let decided = undecided.into_par_iter().map(|(path, _)| {
        let same = match recalled.get(&path) {
            Some(was) => is_still(rootfs, &path, was).map_err(|source| failed(&path, source))?,
            None => false,
        };
        Ok((!same).then_some(path))
    });
    Ok(decided.collect::<Result<Vec<_>, SnapshotError>>()?.into_iter().flatten().collect())
}

/// Whether content and capability are what they were.
fn is_still(rootfs: &Rootfs, path: &Path, was: &Recalled) -> io::Result<bool> {
    match was {
        Recalled::Symlink(text) => Ok(rootfs.read_link(path)? == *text),
        Recalled::File { data, capability: was } => {
            Ok(capability(rootfs, path)? == *was && hash_all(&mut rootfs.open_file(path)?, &|| Ok(()))? == *data)
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

fn fate(was: &Listed, is: &Listed, touched: Option<&Touched>) -> Fate {
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
        FileKind::File => {
            let moved_back = || touched.is_some_and(|touched| touched.was_moved_back(&is.path, was.ctime, is.ctime));
            same_inode && (was.ctime == is.ctime || was.metadata.links != is.metadata.links || moved_back())
        }
    };
    if same { Fate::Same } else { Fate::Undecided }
}
