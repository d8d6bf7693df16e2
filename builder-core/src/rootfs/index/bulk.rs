//! Many files at once: what a step brings into directories that were empty need not be known node by node.
//!
//! A COPY of a million files would have a million nodes, each of which is looked at once, when the layer is written. Instead whoever
//! brings the files tells them in order, as often as they are asked for, and a directory only says that its content is
//! among them. The tree after such a step comes from the index of its layer.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::Content;
use super::node::{Body, IndexNode, own};
use super::step::{IndexStep, State};
use super::walk::{borrowed, find, walk};
use crate::rootfs::{Metadata, path_order};

/// One of many files that a step brings.
pub struct BulkFile<'c> {
    /// Path in the tree, without a leading `/`.
    pub path: PathBuf,
    /// As the tree has it. Hard links have one inode number, and one is in no other use.
    pub metadata: Metadata,
    /// Text of a symbolic link.
    pub link: Option<PathBuf>,
    /// Where the content of a regular file is; without it the file is empty.
    pub content: Option<Arc<dyn Content + 'c>>,
}

/// Many files in the order of [`path_order`], each directory before what is in it.
pub type BulkFiles<'c> = Box<dyn Iterator<Item = io::Result<BulkFile<'c>>> + Send + 'c>;

/// Brings many files. What it tells must be the same each time.
pub trait Bulk<'c>: Send + Sync {
    /// All of them.
    fn files(&self) -> BulkFiles<'c>;
}

/// Files that a step brings, and how far they were read.
#[derive(Default)]
pub(super) struct Brought<'c> {
    bulk: Option<Arc<dyn Bulk<'c> + 'c>>,
    reading: Option<Reading<'c>>,
}

struct Reading<'c> {
    left: BulkFiles<'c>,
    current: Option<BulkFile<'c>>,
}

impl<'c> Brought<'c> {
    pub(super) fn is_some(&self) -> bool {
        self.bulk.is_some()
    }

    /// The file at this path. Whoever asks in order has them all read once.
    fn at(&mut self, path: &Path) -> io::Result<Option<&BulkFile<'c>>> {
        let Some(bulk) = &self.bulk else { return Ok(None) };
        let path = path.strip_prefix("/").unwrap_or(path);
        let passed = |file: &BulkFile<'_>| path_order(&file.path, path).is_gt();
        if self.reading.as_ref().is_none_or(|reading| reading.current.as_ref().is_none_or(passed)) {
            self.reading = Some(Reading { left: bulk.files(), current: None });
        }
        let Some(Reading { left, current }) = &mut self.reading else { return Ok(None) };
        while current.as_ref().is_none_or(|file| path_order(&file.path, path).is_lt()) {
            *current = left.next().transpose()?;
            if current.is_none() {
                break;
            }
        }
        Ok(current.as_ref().filter(|file| file.path == path))
    }
}

impl<'c> State<'c> {
    /// The file at this path, if it is one of many that the step brings.
    pub(super) fn brought_at(&mut self, path: &Path) -> io::Result<Option<&BulkFile<'c>>> {
        if !self.brought.is_some() || find(&self.tree.root, path, false).is_ok() {
            return Ok(None);
        }
        self.brought.at(path)
    }
}

impl<'c> IndexStep<'c> {
    /// Says who tells what is in the directories of [`IndexStep::leave_to_bulk`]. Nothing but attributes of directories may be
    /// changed afterwards.
    pub fn bring(&self, bulk: Arc<dyn Bulk<'c> + 'c>) {
        self.lock().brought = Brought { bulk: Some(bulk), reading: None };
    }

    /// Leaves the content of a directory to the files of [`IndexStep::bring`], of which at least one is in it; `false` if there is
    /// something in it already.
    ///
    /// # Errors
    /// As [`crate::rootfs::View::lstat`].
    pub fn leave_to_bulk(&self, directory: &Path) -> io::Result<bool> {
        let mut state = self.lock();
        let walked = walk(&state.tree.root, directory, false)?;
        if !walked.node.is_some_and(is_empty_directory) {
            return Ok(false);
        }
        let names = walked.names;
        let Some(node) = own(&mut state.tree.root, borrowed(&names)) else { return Ok(false) };
        node.body = Body::Brought;
        node.metadata.mtime = self.now();
        Ok(true)
    }

    /// Whether there is a directory, and nothing in it.
    pub fn is_empty_directory(&self, path: &Path) -> bool {
        find(&self.lock().tree.root, path, false).is_ok_and(is_empty_directory)
    }

    /// All files that the step brings in bulk, those included that are in directories which it does not leave to them.
    pub fn brought(&self) -> Option<BulkFiles<'c>> {
        self.lock().brought.bulk.as_ref().map(|bulk| bulk.files())
    }
}

fn is_empty_directory(node: &IndexNode) -> bool {
    matches!(&node.body, Body::Directory(children) if children.is_empty())
}
