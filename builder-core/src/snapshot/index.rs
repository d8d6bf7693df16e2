//! Two trees in memory, of which the later one began as a copy of the earlier one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, Read};
use std::iter::Peekable;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::list::Assembly;
use super::overlay::{COMPARE_BYTES, failed};
use super::{Changes, Difference, SnapshotError, same_metadata};
use crate::oci::{Hasher, Sha256};
use crate::rootfs::index::{BulkFile, BulkFiles, IndexNode, IndexStep, IndexTree, Opened, Places};
use crate::rootfs::{FileKind, Recall, is_below, path_order};
use crate::spool::Place;

/// What a step made of the tree before it, which has the layers of `below`.
///
/// # Errors
/// What the kernel says about the content of a file; a layer of `below` that cannot be read.
pub fn changes_of_index(step: &IndexStep<'_>, below: Recall<'_>) -> Result<Changes, SnapshotError> {
    let after = step.after();
    let mut undecided = Vec::new();
    compare(step.before(), &after, &mut |sight| {
        if let Sight::Undecided(path, was, is) = sight {
            undecided.push((path, was, is));
        }
        Ok(())
    })?;
    let differs = decide(&undecided, step, below)?;
    drop(undecided);
    list(step.before(), &after, step.lists_in(), step.brought(), &mut differs.into_iter())
}

/// What layers made of the tree `before`: `after` is that tree with them on top. A file that was written counts as
/// changed, for the step that wrote it found that it was. `place` is where a long list goes.
///
/// # Errors
/// If the list cannot be written.
pub fn changes_of_stack(before: &IndexTree, after: &IndexTree, place: Place) -> Result<Changes, SnapshotError> {
    list(before, after, place, None, &mut std::iter::repeat(true))
}

/// All differences in order. `differs` says in the same order which of the undecided ones are any, and `brought` what is in the
/// directories whose content is not in the tree.
fn list(
    before: &IndexTree,
    after: &IndexTree,
    place: Place,
    brought: Option<BulkFiles<'_>>,
    differs: &mut dyn Iterator<Item = bool>,
) -> Result<Changes, SnapshotError> {
    let ancestor = |path: &Path| Ok(after.get(path).map(|node| node.metadata));
    let mut assembly = Assembly::new(place, &ancestor);
    let mut brought = brought.into_iter().flatten().peekable();
    compare(before, after, &mut |sight| match sight {
        Sight::Removed(path) => assembly.add(path, Difference::Removed),
        Sight::Written(path, is) => assembly.add(path, Difference::Written(is.metadata)),
        Sight::Undecided(path, _, is) => match differs.next() {
            Some(false) => Ok(()),
            Some(true) | None => assembly.add(path, Difference::Written(is.metadata)),
        },
        Sight::Brought(directory) => {
            let is_behind = |path: &Path| path_order(path, &directory).is_gt() && !is_below(path, &directory);
            // Those before it are in directories whose content is in the tree.
            while let Some(file) = brought.next_if(|file| !matches!(file, Ok(file) if is_behind(&file.path))) {
                let BulkFile { path, metadata, .. } = file.map_err(SnapshotError::Keep)?;
                if is_below(&path, &directory) {
                    assembly.add(path, Difference::Written(metadata))?;
                }
            }
            Ok(())
        }
    })?;
    Ok(assembly.finish())
}

/// One path in which two trees differ, or may.
enum Sight<'t> {
    Removed(PathBuf),
    Written(PathBuf, &'t IndexNode),
    /// A regular file with the metadata of the one before: what only the content can tell.
    Undecided(PathBuf, &'t IndexNode, &'t IndexNode),
    /// A directory that was empty, and whose content is brought in bulk.
    Brought(PathBuf),
}

/// What a name of a directory stands for.
type Child<'t> = &'t Arc<IndexNode>;

/// Names of a directory and what they stand for.
type Children<'t> = Peekable<Box<dyn Iterator<Item = (&'t OsStr, Child<'t>)> + 't>>;

/// Two directories at one place, or a new one.
struct Level<'t> {
    before: Children<'t>,
    after: Children<'t>,
}

impl<'t> Level<'t> {
    /// A directory that was something else begins empty; a directory that is gone takes all with it.
    fn of(before: Option<&'t IndexNode>, after: &'t IndexNode) -> Self {
        let before = before.filter(|node| node.metadata.kind == FileKind::Directory);
        let children = |node: Option<&'t IndexNode>| -> Box<dyn Iterator<Item = _> + 't> {
            Box::new(node.into_iter().flat_map(IndexNode::children))
        };
        Self { before: children(before).peekable(), after: children(Some(after)).peekable() }
    }

    /// The next name, with what had it and what has it.
    fn next(&mut self) -> Option<(&'t OsStr, Option<Child<'t>>, Option<Child<'t>>)> {
        let name = match (self.before.peek(), self.after.peek()) {
            (Some((a, _)), Some((b, _))) => *a.min(b),
            (Some((name, _)), None) | (None, Some((name, _))) => *name,
            (None, None) => return None,
        };
        let take = |children: &mut Children<'t>| children.next_if(|(other, _)| *other == name).map(|(_, node)| node);
        Some((name, take(&mut self.before), take(&mut self.after)))
    }
}

/// Calls `visit` with all differences in the order of [`path_order`].
fn compare<'t>(
    before: &'t IndexTree,
    after: &'t IndexTree,
    visit: &mut dyn FnMut(Sight<'t>) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    if after.root().is_brought() {
        visit(Sight::Brought(PathBuf::new()))?;
    }
    let mut path = PathBuf::new();
    // By hand, because a tree may be deeper than a stack.
    let mut levels = vec![Level::of(Some(before.root()), after.root())];
    while let Some(level) = levels.last_mut() {
        let Some((name, was, is)) = level.next() else {
            levels.pop();
            path.pop();
            continue;
        };
        match (was, is) {
            (Some(was), None) if was.metadata.kind != FileKind::Socket => visit(Sight::Removed(path.join(name)))?,
            (Some(was), Some(is)) if Arc::ptr_eq(was, is) => {}
            (was, Some(is)) => {
                let here = path.join(name);
                visit_one(&here, was.map(|was| &**was), is, visit)?;
                if is.is_brought() {
                    visit(Sight::Brought(here))?;
                } else if is.metadata.kind == FileKind::Directory {
                    levels.push(Level::of(was.map(|was| &**was), is));
                    path = here;
                }
            }
            (_, None) => {}
        }
    }
    Ok(())
}

fn visit_one<'t>(
    path: &Path,
    was: Option<&'t IndexNode>,
    is: &'t IndexNode,
    visit: &mut dyn FnMut(Sight<'t>) -> Result<(), SnapshotError>,
) -> Result<(), SnapshotError> {
    let written = || Sight::Written(path.to_owned(), is);
    let Some(was) = was.filter(|was| same_metadata(&was.metadata, &is.metadata)) else { return visit(written()) };
    match is.metadata.kind {
        FileKind::Symlink if was.link() != is.link() => visit(written()),
        // The same file as before, with other attributes.
        FileKind::File if was.metadata.inode == is.metadata.inode && was.capability() != is.capability() => {
            visit(written())
        }
        FileKind::File if is.has_content_of(was) => Ok(()),
        FileKind::File => visit(Sight::Undecided(path.to_owned(), was, is)),
        _ => Ok(()),
    }
}

/// What a layer says about a file.
type Content = (Sha256, Option<Vec<u8>>);

/// Whether the content of each is not what the layers below say.
fn decide(
    undecided: &[(PathBuf, &IndexNode, &IndexNode)],
    step: &IndexStep<'_>,
    below: Recall<'_>,
) -> Result<Vec<bool>, SnapshotError> {
    let places: Places = undecided.iter().filter_map(|(_, was, _)| was.origin()).collect();
    let mut known: BTreeMap<(usize, u64), Content> = BTreeMap::new();
    let files = undecided.len();
    below
        .entries(&places, &mut |place, entry, data| {
            let capability = entry.xattrs.iter().find(|(name, _)| name == "security.capability");
            known.insert(place, (hash(data)?, capability.map(|(_, value)| value.clone())));
            Ok(())
        })
        .map_err(|source| SnapshotError::Recall { files, source })?;
    let differs = |(path, was, _): &(PathBuf, &IndexNode, &IndexNode)| {
        let Some(was) = was.origin().and_then(|place| known.get(&place)) else { return Ok(true) };
        Ok(content(step, path).map_err(|source| failed(path, source))? != *was)
    };
    undecided.iter().map(differs).collect()
}

fn content(step: &IndexStep<'_>, path: &Path) -> io::Result<Content> {
    let made = step.made_file(path)?;
    match made.open()? {
        Opened::File(file) => {
            let capability = made.capability(Some(&file))?;
            Ok((hash(&mut &file)?, capability))
        }
        Opened::Stream(mut stream) => Ok((hash(&mut stream)?, made.capability(None)?)),
    }
}

fn hash(data: &mut dyn Read) -> io::Result<Sha256> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; COMPARE_BYTES];
    loop {
        match data.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
