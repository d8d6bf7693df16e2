//! Two trees in memory, of which the later one began as a copy of the earlier one.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::overlay::{COMPARE_BYTES, failed};
use super::{Changes, Difference, SnapshotError, assemble, same_metadata};
use crate::oci::{Hasher, Sha256};
use crate::rootfs::index::{IndexNode, IndexStep, IndexTree, Opened, Places};
use crate::rootfs::{FileKind, Metadata, Recall};
use crate::spool::Place;

/// What a step made of the tree before it, which has the layers of `below`.
///
/// # Errors
/// What the kernel says about the content of a file; a layer of `below` that cannot be read.
pub fn changes_of_index(step: &IndexStep<'_>, below: Recall<'_>) -> Result<Changes, SnapshotError> {
    let after = step.after();
    let mut found = Found { differences: Vec::new(), undecided: Vec::new() };
    found.directory(Path::new(""), step.before().root(), after.root());
    let Found { mut differences, undecided } = found;
    differences.extend(decide(undecided, step, below)?);
    assemble(differences, step.lists_in(), &|path| Ok(after.get(path).map(|node| node.metadata)))
}

/// What layers made of the tree `before`: `after` is that tree with them on top. A file that was written counts as
/// changed, for the step that wrote it found that it was. `place` is where a long list goes.
///
/// # Errors
/// If the list cannot be written.
pub fn changes_of_stack(before: &IndexTree, after: &IndexTree, place: Place) -> Result<Changes, SnapshotError> {
    let mut found = Found { differences: Vec::new(), undecided: Vec::new() };
    found.directory(Path::new(""), before.root(), after.root());
    let Found { mut differences, undecided } = found;
    differences.extend(undecided.into_iter().map(|(path, _, is)| (path, Difference::Written(is.metadata))));
    assemble(differences, place, &|path| Ok(after.get(path).map(|node| node.metadata)))
}

struct Found {
    differences: Vec<(PathBuf, Difference)>,
    /// Regular files with the metadata of the one before: what only the content can tell.
    undecided: Vec<(PathBuf, Arc<IndexNode>, Arc<IndexNode>)>,
}

impl Found {
    fn directory(&mut self, path: &Path, before: &Arc<IndexNode>, after: &Arc<IndexNode>) {
        // By hand, because a tree may be deeper than a stack.
        let mut left = vec![(path.to_owned(), Some(Arc::clone(before)), Arc::clone(after))];
        while let Some((path, before, after)) = left.pop() {
            let is_directory = |node: &&Arc<IndexNode>| node.metadata.kind == FileKind::Directory;
            let before = before.as_ref().filter(is_directory);
            // A directory that was something else begins empty; a directory that is gone takes all with it.
            for (name, was) in before.iter().flat_map(|before| before.children()) {
                if after.child(name).is_none() && was.metadata.kind != FileKind::Socket {
                    self.differences.push((path.join(name), Difference::Removed));
                }
            }
            for (name, is) in after.children() {
                let was = before.and_then(|before| before.child(name));
                if was.is_some_and(|was| Arc::ptr_eq(was, is)) {
                    continue;
                }
                let path = path.join(name);
                self.entry(&path, was, is);
                if is.metadata.kind == FileKind::Directory {
                    left.push((path, was.cloned(), Arc::clone(is)));
                }
            }
        }
    }

    fn entry(&mut self, path: &Path, was: Option<&Arc<IndexNode>>, is: &Arc<IndexNode>) {
        let written = || (path.to_owned(), Difference::Written(is.metadata));
        let Some(was) = was.filter(|was| same_metadata(&was.metadata, &is.metadata)) else {
            self.differences.push(written());
            return;
        };
        match is.metadata.kind {
            FileKind::Symlink if was.link() != is.link() => self.differences.push(written()),
            // The same file as before, with other attributes.
            FileKind::File if was.metadata.inode == is.metadata.inode && was.capability() != is.capability() => {
                self.differences.push(written());
            }
            FileKind::File if is.has_content_of(was) => {}
            FileKind::File => self.undecided.push((path.to_owned(), Arc::clone(was), Arc::clone(is))),
            _ => {}
        }
    }
}

/// What a layer says about a file.
type Content = (Sha256, Option<Vec<u8>>);

/// Those of `undecided` whose content is not what the layers below say.
fn decide(
    undecided: Vec<(PathBuf, Arc<IndexNode>, Arc<IndexNode>)>,
    step: &IndexStep<'_>,
    below: Recall<'_>,
) -> Result<Vec<(PathBuf, Difference)>, SnapshotError> {
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
    let mut differences = Vec::new();
    for (path, was, is) in undecided {
        let same = match was.origin().and_then(|place| known.get(&place)) {
            Some(was) => content(step, &path).map_err(|source| failed(&path, source))? == *was,
            None => false,
        };
        if !same {
            let metadata: Metadata = is.metadata;
            differences.push((path, Difference::Written(metadata)));
        }
    }
    Ok(differences)
}

fn content(step: &IndexStep<'_>, path: &Path) -> io::Result<Content> {
    match step.open(path)? {
        Opened::File(file) => {
            let capability = step.capability(path, Some(&file))?;
            Ok((hash(&mut &file)?, capability))
        }
        Opened::Stream(mut stream) => Ok((hash(&mut stream)?, step.capability(path, None)?)),
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
