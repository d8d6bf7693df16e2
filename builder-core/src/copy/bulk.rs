//! A COPY of very many files into a tree without a directory: what comes into directories that were empty is told to the layer in
//! order, straight from the list of what was found, and memory does not feel how much it is.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::CopyError;
use super::apply::FoundFile;
use super::resolve::Match;
use super::target::{Given, Target};
use crate::context::{Files, FilesError, TreeEntry};
use crate::rootfs::index::{Bulk, BulkFile, BulkFiles, Content, IndexStep};
use crate::rootfs::{FileKind, Metadata, is_below};

/// Set in the inode numbers of files of the source, apart from those that a step gives.
const OF_SOURCE: u64 = 1 << 62;

/// What is below one source, as it will be in the tree.
#[derive(Clone)]
struct Tree<'c> {
    files: &'c Files,
    found: &'c Match,
    given: Given,
    /// Where it goes, without a leading `/`.
    root: PathBuf,
    /// Time of directories that have none of the source.
    now: (i64, u32),
}

impl<'c> Tree<'c> {
    fn file(&self, entry: TreeEntry) -> BulkFile<'c> {
        let TreeEntry { path, found, link, selected } = entry;
        let source = found.metadata;
        // Nobody can connect to the copy of a socket (checklist C-27).
        let kind = if source.kind == FileKind::Socket { FileKind::File } else { source.kind };
        let is_file = source.kind == FileKind::File;
        let attributes = self.given.attributes(&source, self.found.mtime);
        let (uid, gid) = attributes.owner.unwrap_or_default();
        let metadata = Metadata {
            kind,
            mode: attributes.mode.unwrap_or(0o777) & 0o7777,
            uid,
            gid,
            device: source.device,
            size: match (source.kind, &link) {
                (FileKind::File, _) => source.size,
                (FileKind::Symlink, Some(text)) => text.as_os_str().len() as u64,
                _ => 0,
            },
            mtime: if selected { attributes.mtime.unwrap_or(self.now) } else { self.now },
            inode: source.inode | OF_SOURCE,
            links: if is_file { source.links } else { 1 },
        };
        let content = is_file.then(|| {
            let path = self.found.path.join(&path);
            Arc::new(FoundFile { files: self.files, path, found }) as Arc<dyn Content + 'c>
        });
        BulkFile { path: self.root.join(path), metadata, link, content }
    }
}

impl<'c> Bulk<'c> for Tree<'c> {
    fn files(&self) -> BulkFiles<'c> {
        let tree = self.clone();
        let found = self.found;
        Box::new(found.entries.iter().map(move |entry| entry.map(|entry| tree.file(entry)).map_err(io::Error::other)))
    }
}

/// Decides, while directories are made, what is left to the bulk.
pub(super) struct Left<'a, 'c> {
    step: &'a IndexStep<'c>,
    root: &'a Path,
    tree: Tree<'c>,
    /// A directory that was looked at last.
    candidate: Option<PathBuf>,
    taken: Taken,
}

/// Directories below a source whose content is left to the bulk, in order.
#[derive(Default)]
pub(super) struct Taken(Vec<PathBuf>);

impl<'a, 'c> Left<'a, 'c> {
    /// `None` where it would be wrong or not worth while.
    pub(super) fn begin(files: &'c Files, found: &'c Match, target: &Target<'a, 'c>, root: &'a Path) -> Option<Self> {
        let step = target.tree.index()?;
        // Names of one file must all be here or there.
        let split = || found.entries.linked() && !step.is_empty_directory(root);
        if found.entries.len() < step.bounds().bulk_from || split() {
            return None;
        }
        let inside = root.strip_prefix("/").unwrap_or(root).to_owned();
        let tree = Tree { files, found, given: target.given.clone(), root: inside, now: step.now() };
        Some(Self { step, root, tree, candidate: Some(PathBuf::new()), taken: Taken::default() })
    }

    /// Whether the next entry of the source is left to the bulk.
    pub(super) fn takes(&mut self, path: &Path) -> Result<bool, CopyError> {
        if self.taken.0.last().is_some_and(|top| is_below(path, top)) {
            return Ok(true);
        }
        let Some(directory) = self.candidate.take().filter(|directory| path.parent() == Some(directory)) else {
            return Ok(false);
        };
        let target = self.root.join(&directory);
        let left = self.step.leave_to_bulk(&target).map_err(|error| super::io_error("examine", &target, error))?;
        if left {
            if self.taken.0.is_empty() {
                self.step.bring(Arc::new(self.tree.clone()));
            }
            self.taken.0.push(directory);
        }
        Ok(left)
    }

    /// A directory of the source is there in the target.
    pub(super) fn may_take(&mut self, directory: PathBuf) {
        self.candidate = Some(directory);
    }

    pub(super) fn taken(self) -> Taken {
        self.taken
    }
}

impl Taken {
    /// Entries of the source but those that are left to the bulk.
    pub(super) fn without(
        self,
        entries: impl Iterator<Item = Result<TreeEntry, FilesError>>,
    ) -> impl Iterator<Item = Result<TreeEntry, FilesError>> {
        let mut tops = self.0.into_iter().peekable();
        let mut top: Option<PathBuf> = None;
        entries.filter(move |entry| {
            let Ok(entry) = entry else { return true };
            if top.as_ref().is_some_and(|top| is_below(&entry.path, top)) {
                return false;
            }
            match tops.next_if(|next| is_below(&entry.path, next)) {
                Some(next) => {
                    top = Some(next);
                    false
                }
                None => true,
            }
        })
    }
}
