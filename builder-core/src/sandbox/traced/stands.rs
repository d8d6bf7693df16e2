//! Descriptors that stand for files which a command may hold without opening them (`O_PATH`): symbolic links, sockets, pipes,
//! and files that it may not read.
//!
//! The kernel lets nobody give such a descriptor away (seccomp_unotify(2), `EBADF`), so the command gets an empty file in memory
//! that can be neither read nor written, and the supervisor remembers by its inode what it stands for. Whatever is asked of the
//! descriptor then (fstat(2), readlinkat(2), fchownat(2), `/proc/self/fd/3`, …) is asked of that file.
//!
//! # Limitations
//! A quarter of the descriptors that the builder may have (RLIMIT_NOFILE) are remembered at a time; beyond that the oldest is
//! forgotten, and is an empty file then.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, Statx};
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::tasks::lock;
use super::view::{reopen, statx};

/// What descriptors stand for.
#[derive(Debug)]
pub struct Stands {
    /// How many are remembered.
    most: usize,
    /// Whether there was ever one.
    any: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// By inode; all are on one device.
    files: HashMap<u64, Arc<OwnedFd>>,
    /// The oldest first.
    order: VecDeque<u64>,
    device: (u32, u32),
}

impl Default for Stands {
    fn default() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self {
            most: usize::try_from(limit / 4).unwrap_or(usize::MAX),
            any: AtomicBool::new(false),
            known: Mutex::default(),
        }
    }
}

impl Stands {
    /// A descriptor that stands for `file`, which is one with `O_PATH`.
    ///
    /// # Errors
    /// If there can be no more files.
    pub fn for_file(&self, file: OwnedFd) -> Result<OwnedFd, Errno> {
        let memory = rustix::fs::memfd_create("path", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::fcntl_add_seals(&memory, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        let stat = statx(&memory)?;
        let given = reopen(memory.as_fd(), OFlags::WRONLY, Mode::empty())?;
        let mut known = lock(&self.known);
        if known.order.len() >= self.most
            && let Some(oldest) = known.order.pop_front()
        {
            known.files.remove(&oldest);
        }
        known.device = (stat.stx_dev_major, stat.stx_dev_minor);
        known.files.insert(stat.stx_ino, Arc::new(file));
        known.order.push_back(stat.stx_ino);
        self.any.store(true, Ordering::Release);
        Ok(given)
    }

    /// What a file stands for, if it does.
    pub fn find(&self, real: &Statx) -> Option<Arc<OwnedFd>> {
        if real.stx_nlink != 0 || !self.any.load(Ordering::Acquire) {
            return None;
        }
        let known = lock(&self.known);
        if known.device != (real.stx_dev_major, real.stx_dev_minor) {
            return None;
        }
        known.files.get(&real.stx_ino).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_for_links() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("link");
        std::os::unix::fs::symlink("somewhere", &path).expect("link");
        let open = || rustix::fs::open(&path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        const MOST: usize = 20;
        let stands = Stands { most: MOST, ..Stands::default() };
        let plain = statx(std::fs::File::open("/dev/null").expect("open")).expect("statx");
        assert!(stands.find(&plain).is_none());
        let given = stands.for_file(open().expect("open")).expect("a descriptor");
        assert_eq!(rustix::io::write(&given, b"x"), Err(Errno::PERM));
        assert_eq!(rustix::io::read(&given, &mut [0; 1]), Err(Errno::BADF));
        let file = stands.find(&statx(&given).expect("statx")).expect("it stands for the link");
        assert_eq!(rustix::fs::readlinkat(&*file, "", Vec::new()).expect("a link").as_bytes(), b"somewhere");
        assert!(stands.find(&plain).is_none());
        let others: Vec<_> = (0..MOST).map(|_| stands.for_file(open().expect("open")).expect("a descriptor")).collect();
        assert!(stands.find(&statx(&given).expect("statx")).is_none(), "the oldest is forgotten");
        assert!(others.iter().all(|other| stands.find(&statx(other).expect("statx")).is_some()));
    }
}
