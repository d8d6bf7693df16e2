//! The space that everything below the work dir takes. What has a name below `trees` never changes, so its size is kept
//! (`<work>/cache/sizes/`) and only the rest is walked each time. Trees that borrow files of a base count what is not the base's; while
//! something that is being made has files with several names, which may be a base's too, these are walked together.

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
    known: Mutex<BTreeMap<Sha256, u64>>,
}

impl<'a> Space<'a> {
    pub(super) fn new(work_dir: &Path, cache: &'a StepCache) -> Self {
        Self { work_dir: work_dir.to_owned(), cache, known: Mutex::default() }
    }

    /// Space that everything below the work dir takes. What is moved from one place to another meanwhile counts once.
    pub(super) fn measure(&self) -> u64 {
        let mut seen = Seen::default();
        let mut total = 0;
        let (mut named, mut bases, mut linked) = (Vec::new(), Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.work_dir).into_iter().flatten().flatten() {
            if entry.file_name() != "trees" {
                total += seen.walk(&entry.path());
                continue;
            }
            for kind in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let trees = match kind.file_name().to_str() {
                    Some("layers" | "flat" | "merged" | "plain") => &mut named,
                    Some("bases") => &mut bases,
                    Some("linked") => &mut linked,
                    _ => {
                        total += seen.walk(&kind.path());
                        continue;
                    }
                };
                let found = fs::read_dir(kind.path()).into_iter().flatten().flatten();
                trees.extend(found.filter_map(|tree| Some((tree.path(), inode(&tree.metadata().ok()?)))));
            }
        }
        if seen.several_names {
            return total
                + bases.iter().chain(&linked).map(|(path, _)| seen.walk(path)).sum::<u64>()
                + self.sizes_of(named, &[], &mut seen);
        }
        bases.sort();
        let paths: Vec<PathBuf> = bases.iter().map(|(path, _)| path.clone()).collect();
        named.extend(bases);
        total + self.sizes_of(named, &[], &mut seen) + self.sizes_of(linked, &paths, &mut seen)
    }

    /// Sizes of directories that do not change as long as they have their names, but for those that were met elsewhere.
    fn sizes_of(&self, mut named: Vec<(PathBuf, Inode)>, beside: &[PathBuf], seen: &mut Seen) -> u64 {
        named.retain(|(_, inode)| seen.inodes.insert(*inode));
        named.iter().map(|(path, _)| self.size_of(path, beside)).sum()
    }

    /// Size of one of them, without files that are also in those `beside` it.
    fn size_of(&self, path: &Path, beside: &[PathBuf]) -> u64 {
        let mut names: Vec<u8> = Vec::new();
        for path in std::iter::once(path).chain(beside.iter().map(PathBuf::as_path)) {
            let name = path.strip_prefix(&self.work_dir).unwrap_or(path);
            names.extend_from_slice(if names.is_empty() { b"" } else { b"\0" });
            names.extend_from_slice(name.as_os_str().as_encoded_bytes());
        }
        let key = Sha256::of(&names);
        if let Some(known) = lock(&self.known).get(&key) {
            return *known;
        }
        let size = match self.cache.size(key) {
            Some(known) => known,
            None => {
                let mut seen = Seen::default();
                for path in beside {
                    seen.walk(path);
                }
                let size = seen.walk(path);
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
        lock(&self.known).insert(key, size);
        size
    }
}

/// What was counted and might be met again.
#[derive(Default)]
struct Seen {
    inodes: BTreeSet<Inode>,
    /// Whether there was a file with several names.
    several_names: bool,
}

/// Device and number of an inode.
type Inode = (u64, u64);

/// Directories that may be moved while others are walked are at most so far below `trees/tmp` and the like.
const MOVED_DEPTH: usize = 3;

/// Files from so many bytes on count once though they have one name: they may be moved meanwhile, and much comes of it.
const LARGE_BYTES: u64 = 1 << 20;

impl Seen {
    /// Space that `top` and everything below it takes; what vanishes meanwhile takes none. Hard links count once.
    fn walk(&mut self, top: &Path) -> u64 {
        let mut total = 0;
        let mut pending = vec![(top.to_owned(), 0)];
        while let Some((path, depth)) = pending.pop() {
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            // stat(2): blocks are of 512 bytes whatever the file system's own are.
            let space = metadata.blocks() * 512;
            let several_names = !metadata.is_dir() && metadata.nlink() > 1;
            self.several_names |= several_names;
            let again = match metadata.is_dir() {
                true => depth <= MOVED_DEPTH,
                false => several_names || space >= LARGE_BYTES,
            };
            if again && !self.inodes.insert(inode(&metadata)) {
                continue;
            }
            if metadata.is_dir() {
                let entries = fs::read_dir(&path).into_iter().flatten().flatten();
                pending.extend(entries.map(|entry| (entry.path(), depth + 1)));
            }
            total += space;
        }
        total
    }
}

fn inode(metadata: &fs::Metadata) -> Inode {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_moved_meanwhile_counts_once() {
        let work = tempfile::tempdir().expect("a directory");
        let at = |path: &str| work.path().join(path);
        for directory in ["tmp/a/tree/root/etc", "plain", "bases", "sha256"] {
            fs::create_dir_all(at(directory)).expect("a directory");
        }
        let tree = at("tmp/a/tree/root/etc/file");
        fs::write(&tree, vec![1; 300_000]).expect("a file");
        fs::hard_link(&tree, at("tmp/a/tree/root/etc/second")).expect("a link");
        fs::write(at("tmp/blob"), vec![1; 2 << 20]).expect("a file");
        let whole = Seen::default().walk(work.path());
        let mut seen = Seen::default();
        let mut total = fs::metadata(work.path()).expect("metadata").blocks() * 512;
        for (top, (from, to)) in [
            ("tmp", ("tmp/a/tree", "plain/chain")),
            ("plain", ("plain/chain", "bases/chain")),
            ("bases", ("tmp/blob", "sha256/blob")),
            ("sha256", ("sha256/blob", "tmp/blob")),
        ] {
            total += seen.walk(&at(top));
            fs::rename(at(from), at(to)).expect("moved");
        }
        assert_eq!(total, whole);
    }
}
