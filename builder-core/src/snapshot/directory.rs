//! Two listings of one directory tree.

use std::cmp::Ordering;
use std::path::Path;

use super::{Change, Difference, assemble, same_metadata};
use crate::rootfs::{FileKind, Listed, Listing, path_order};

/// What made `before` into `after`.
pub(super) fn changes(before: &Listing, after: &Listing) -> Vec<Change> {
    let mut differences = Vec::new();
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
                differences.extend(difference(&was, &is).map(|difference| (is.path.to_owned(), difference)));
            }
        }
    }
    assemble(differences, after)
}

/// What happened to a name that is there before and after.
fn difference(was: &Listed<'_>, is: &Listed<'_>) -> Option<Difference> {
    match (was.metadata.kind, is.metadata.kind) {
        (FileKind::Socket, FileKind::Socket) => None,
        (_, FileKind::Socket) => Some(Difference::Removed),
        _ => (!is_unchanged(was, is)).then_some(Difference::Written(is.metadata)),
    }
}

fn skip_below<'a>(listing: &mut std::iter::Peekable<impl Iterator<Item = Listed<'a>>>, directory: &Path) {
    while listing.next_if(|listed| listed.path.starts_with(directory)).is_some() {}
}

fn is_unchanged(was: &Listed<'_>, is: &Listed<'_>) -> bool {
    if !same_metadata(&was.metadata, &is.metadata) {
        return false;
    }
    let same_inode = was.metadata.inode == is.metadata.inode;
    match is.metadata.kind {
        FileKind::Directory => true,
        // What these are besides their metadata is fixed when they are made.
        FileKind::Symlink | FileKind::Fifo | FileKind::CharDevice | FileKind::BlockDevice => {
            same_inode || is.metadata.kind != FileKind::Symlink
        }
        FileKind::Socket => true,
        // Data, modes and attributes cannot change without the change time, which nobody can set (inode(7)). Making or
        // removing another name sets it too; the size and time of the data say then that the data is as it was.
        FileKind::File => same_inode && (was.ctime == is.ctime || was.metadata.links != is.metadata.links),
    }
}
