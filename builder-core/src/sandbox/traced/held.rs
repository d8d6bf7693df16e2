//! Directories of the tree that are held open, so that a call for a file in them need not walk there, nor open and close.
//!
//! Only the supervisor changes the tree while a RUN is at work, so it is known when a directory is not any more where it was.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::view::statx;

/// Most directories that are held, where the limit of descriptors (an eighth of which they may take) is higher.
const MOST: usize = 512;

/// A directory that is open, with `O_PATH`.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    passes_group_on: OnceLock<bool>,
}

impl From<OwnedFd> for Directory {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, passes_group_on: OnceLock::new() }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Directory {
    /// Whether what is made in it gets its group: setgid, inode(7). Asked once; when that changes it is held no more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn passes_group_on(&self) -> Result<bool, Errno> {
        if let Some(known) = self.passes_group_on.get() {
            return Ok(*known);
        }
        let passes = statx(&self.fd)?.stx_mode & 0o2000 != 0;
        Ok(*self.passes_group_on.get_or_init(|| passes))
    }
}

/// Directories by physical path.
#[derive(Debug)]
pub struct Held {
    directories: RwLock<Directories>,
    most: usize,
}

#[derive(Debug, Default)]
struct Directories {
    open: HashMap<Vec<u8>, Arc<Directory>>,
    /// Counts what made an entry wrong, for what is being opened meanwhile.
    changes: u64,
}

impl Held {
    /// None yet.
    pub fn new() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let most = usize::try_from(limit / 8).unwrap_or(MOST).min(MOST);
        Self { directories: RwLock::default(), most }
    }

    /// The directory at `path`, opened by `open` if it is not held.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn get(&self, path: &[u8], open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Arc<Directory>, Errno> {
        let before = {
            let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = directories.open.get(path) {
                return Ok(Arc::clone(held));
            }
            directories.changes
        };
        let opened = Arc::new(Directory::from(open()?));
        let mut directories = self.directories.write().unwrap_or_else(PoisonError::into_inner);
        // What was removed or renamed since may have been this.
        if directories.changes == before {
            if directories.open.len() >= self.most {
                directories.open.clear();
            }
            directories.open.insert(path.to_owned(), Arc::clone(&opened));
        }
        Ok(opened)
    }

    /// An empty directory was removed.
    pub fn removed(&self, path: &[u8]) {
        let mut directories = self.directories.write().unwrap_or_else(PoisonError::into_inner);
        directories.changes += 1;
        directories.open.remove(path);
    }

    /// Directories were renamed, or got setgid.
    pub fn changed(&self) {
        let mut directories = self.directories.write().unwrap_or_else(PoisonError::into_inner);
        directories.changes += 1;
        directories.open.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn null() -> Result<OwnedFd, Errno> {
        Ok(std::fs::File::open("/dev/null").expect("open").into())
    }

    #[test]
    fn held_until_it_moves() {
        let held = Held { directories: RwLock::default(), most: 2 };
        let first = held.get(b"/a", null).expect("open");
        let again = held.get(b"/a", || Err(Errno::IO)).expect("held");
        assert!(Arc::ptr_eq(&first, &again));
        held.removed(b"/a");
        assert_eq!(held.get(b"/a", || Err(Errno::NOENT)).err(), Some(Errno::NOENT));
        held.get(b"/a/b", null).expect("open");
        held.changed();
        assert_eq!(held.get(b"/a/b", || Err(Errno::NOENT)).err(), Some(Errno::NOENT));
    }

    #[test]
    fn what_moves_while_it_is_opened_is_not_held() {
        let held = Held { directories: RwLock::default(), most: 2 };
        held.get(b"/a", || {
            held.changed();
            null()
        })
        .expect("open");
        assert_eq!(held.get(b"/a", || Err(Errno::NOENT)).err(), Some(Errno::NOENT));
    }

    #[test]
    fn bounded() {
        let held = Held { directories: RwLock::default(), most: 2 };
        for path in [b"/a", b"/b", b"/c"] {
            held.get(path, null).expect("open");
        }
        assert_eq!(held.directories.read().expect("no panic").open.len(), 1);
    }
}
