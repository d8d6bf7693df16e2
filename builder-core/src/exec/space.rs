//! The space that everything below the work dir takes. What has a name below `trees` never changes, so its size is kept
//! (`<work>/cache/sizes/`) and only the rest is walked each time.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::cache::StepCache;
use super::shared::lock;
use crate::oci::Sha256;

/// Measures one work dir.
pub(super) struct Space<'a> {
    work_dir: PathBuf,
    cache: &'a StepCache,
    /// Sizes of what does not change.
    known: Mutex<BTreeMap<PathBuf, u64>>,
}

impl<'a> Space<'a> {
    pub(super) fn new(work_dir: &Path, cache: &'a StepCache) -> Self {
        Self { work_dir: work_dir.to_owned(), cache, known: Mutex::default() }
    }

    /// Space that everything below the work dir takes.
    pub(super) fn measure(&self) -> u64 {
        let mut links = BTreeSet::new();
        let mut total = 0;
        let mut named = Vec::new();
        for entry in fs::read_dir(&self.work_dir).into_iter().flatten().flatten() {
            if entry.file_name() != "trees" {
                total += walk(&entry.path(), &mut links);
                continue;
            }
            for kind in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                if matches!(kind.file_name().to_str(), Some("layers" | "flat" | "plain")) {
                    named.extend(fs::read_dir(kind.path()).into_iter().flatten().flatten().map(|entry| entry.path()));
                } else {
                    total += walk(&kind.path(), &mut links);
                }
            }
        }
        total + named.iter().map(|path| self.size_of(path)).sum::<u64>()
    }

    /// Size of a directory that does not change as long as it has its name.
    fn size_of(&self, path: &Path) -> u64 {
        if let Some(known) = lock(&self.known).get(path) {
            return *known;
        }
        let name = path.strip_prefix(&self.work_dir).unwrap_or(path);
        let key = Sha256::of(name.as_os_str().as_encoded_bytes());
        let size = match self.cache.size(key) {
            Some(known) => known,
            None => {
                let size = walk(path, &mut BTreeSet::new());
                // It may have lost its name while it was walked.
                if !path.exists() {
                    return size;
                }
                if let Err(error) = self.cache.put_size(key, size) {
                    tracing::debug!(%error, "the size of a tree is not kept");
                }
                size
            }
        };
        lock(&self.known).insert(path.to_owned(), size);
        size
    }
}

/// Space that `top` and everything below it takes; what vanishes meanwhile takes none. Hard links count once.
fn walk(top: &Path, links: &mut BTreeSet<(u64, u64)>) -> u64 {
    let mut total = 0;
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).into_iter().flatten().flatten().map(|entry| entry.path()));
        } else if metadata.nlink() > 1 && !links.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        // stat(2): blocks are of 512 bytes whatever the file system's own are.
        total += metadata.blocks() * 512;
    }
    total
}
