//! What descriptors of the RUN stood for a moment ago, so that the next call with the same one need not open it, or ask for its
//! path, again: programs that unpack archives give a file its times, owner and mode by three calls in a row, and those that remove
//! trees name thousands of files by the descriptor of one directory.
//!
//! A number tells nothing, as the kernel alone knows when it is closed and used again. So it is examined each time, and what is
//! known counts only for the same inode.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{Statx, StatxFlags};

use super::tasks::lock;
use super::view::{key, mount_id};
use crate::rootfs::InodeKey;

/// Files that are held open, each in the place that its thread's number gives it. They are few, because a file that is removed
/// takes up its blocks for as long.
const FILES: usize = 4;

/// Directories whose paths are known at a time.
const DIRECTORIES: usize = 256;

/// What tells a file from all others, also from those that had its number before: the second part is the host's mount.
type Inode = (InodeKey, u64);

/// A file behind a descriptor.
#[derive(Debug)]
struct Kept {
    thread: i32,
    descriptor: i32,
    inode: Inode,
    file: Arc<OwnedFd>,
}

/// What is known.
#[derive(Debug, Default)]
pub struct Behind {
    /// Whether a file is held open.
    any: AtomicBool,
    files: Mutex<[Option<Kept>; FILES]>,
    directories: Mutex<HashMap<Inode, Named>>,
}

/// Physical path of a directory, and the generation ([`super::view::View::generation`]) it is of.
#[derive(Debug)]
struct Named {
    path: Vec<u8>,
    generation: u64,
}

/// `None` where the file system does not say when files were made.
fn inode(real: &Statx) -> Option<Inode> {
    (real.stx_mask & StatxFlags::BTIME.bits() != 0).then(|| (key(real), mount_id(real)))
}

fn place(thread: i32) -> usize {
    thread.unsigned_abs() as usize % FILES
}

impl Behind {
    /// Whether a descriptor stood for a file that is held open.
    pub fn is_known(&self, thread: i32, descriptor: i32) -> bool {
        self.any.load(Ordering::Relaxed)
            && lock(&self.files)[place(thread)]
                .as_ref()
                .is_some_and(|kept| (kept.thread, kept.descriptor) == (thread, descriptor))
    }

    /// That file, if `real` is what is known of it.
    pub fn file(&self, thread: i32, real: &Statx) -> Option<Arc<OwnedFd>> {
        let inode = inode(real)?;
        lock(&self.files)[place(thread)].as_ref().filter(|kept| kept.inode == inode).map(|kept| Arc::clone(&kept.file))
    }

    /// Holds what a descriptor stands for open: `file`, of which `real` is known.
    pub fn keep(&self, thread: i32, descriptor: i32, real: &Statx, file: &Arc<OwnedFd>) {
        // What has no name any more shall go as soon as its program lets it go.
        if real.stx_nlink > 0
            && let Some(inode) = inode(real)
        {
            lock(&self.files)[place(thread)] = Some(Kept { thread, descriptor, inode, file: Arc::clone(file) });
            self.any.store(true, Ordering::Relaxed);
        }
    }

    /// A descriptor was given that stands for a file which is just being opened: another one.
    pub fn given(&self, thread: i32, descriptor: i32) {
        if self.is_known(thread, descriptor)
            && let Some(kept) = &mut lock(&self.files)[place(thread)]
        {
            kept.descriptor = -1;
        }
    }

    /// A name was removed, or another file has it now: what is held open would stay on the disk.
    pub fn let_go(&self) {
        if self.any.swap(false, Ordering::Relaxed) {
            *lock(&self.files) = Default::default();
        }
    }

    /// Physical path of a directory, if it is known.
    pub fn path(&self, real: &Statx, generation: u64) -> Option<Vec<u8>> {
        let inode = inode(real)?;
        let directories = lock(&self.directories);
        directories.get(&inode).filter(|named| named.generation == generation).map(|named| named.path.clone())
    }

    /// Remembers the path of a directory.
    pub fn remember(&self, real: &Statx, generation: u64, path: &[u8]) {
        let Some(inode) = inode(real) else { return };
        let mut directories = lock(&self.directories);
        if directories.len() >= DIRECTORIES {
            directories.clear();
        }
        directories.insert(inode, Named { path: path.to_owned(), generation });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::traced::view::statx;

    #[test]
    fn only_the_same_inode_counts() {
        let directory = tempfile::tempdir().expect("directory");
        let open = |name: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, name).expect("write");
            let file = Arc::new(OwnedFd::from(std::fs::File::open(path).expect("open")));
            let mut real = statx(&*file).expect("statx");
            // Not every file system tells when files were made.
            real.stx_mask |= StatxFlags::BTIME.bits();
            (file, real)
        };
        let ((one, first), (_, second)) = (open("one"), open("two"));
        let behind = Behind::default();
        assert!(!behind.is_known(7, 3));
        behind.keep(7, 3, &first, &one);
        assert!(behind.is_known(7, 3) && !behind.is_known(7, 4) && !behind.is_known(8, 3));
        assert!(behind.file(7, &first).is_some_and(|file| Arc::ptr_eq(&file, &one)));
        assert!(behind.file(7, &second).is_none());
        behind.given(7, 4);
        assert!(behind.is_known(7, 3));
        behind.given(7, 3);
        assert!(!behind.is_known(7, 3), "it is to be opened");
        behind.keep(7, 3, &first, &one);
        behind.let_go();
        assert!(!behind.is_known(7, 3) && behind.file(7, &first).is_none());
        assert_eq!(Arc::strong_count(&one), 1, "closed");
    }

    #[test]
    fn what_cannot_be_told_apart_is_not_kept() {
        let file = Arc::new(OwnedFd::from(std::fs::File::open("/dev/null").expect("open")));
        let mut real = statx(&*file).expect("statx");
        let behind = Behind::default();
        real.stx_mask &= !StatxFlags::BTIME.bits();
        behind.keep(7, 3, &real, &file);
        behind.remember(&real, 1, b"/a");
        assert!(!behind.is_known(7, 3));
        assert_eq!(behind.path(&real, 1), None);
        real.stx_mask |= StatxFlags::BTIME.bits();
        real.stx_nlink = 0;
        behind.keep(7, 3, &real, &file);
        assert!(!behind.is_known(7, 3), "without a name");
        behind.remember(&real, 1, b"/a");
        assert_eq!(behind.path(&real, 1), Some(b"/a".to_vec()));
        assert_eq!(behind.path(&real, 2), None, "directories moved since");
    }
}
