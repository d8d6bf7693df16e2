//! Directories of the tree that are held open, so that a call for a file in them need not walk there, nor open and close.
//!
//! Only the supervisor changes the tree while a RUN is at work, so it is known when a directory is not any more where it was.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, PoisonError, RwLock};

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// Most directories that are held, where the limit of descriptors (an eighth of which they may take) is higher.
const MOST: usize = 512;

/// Directories by physical path.
#[derive(Debug)]
pub struct Held {
    directories: RwLock<Directories>,
    most: usize,
}

#[derive(Debug, Default)]
struct Directories {
    open: HashMap<Vec<u8>, Arc<OwnedFd>>,
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
    pub fn get(&self, path: &[u8], open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<Arc<OwnedFd>, Errno> {
        let before = {
            let directories = self.directories.read().unwrap_or_else(PoisonError::into_inner);
            if let Some(held) = directories.open.get(path) {
                return Ok(Arc::clone(held));
            }
            directories.changes
        };
        let opened = Arc::new(open()?);
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

    /// Directories were renamed.
    pub fn renamed(&self) {
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
        held.renamed();
        assert_eq!(held.get(b"/a/b", || Err(Errno::NOENT)).err(), Some(Errno::NOENT));
    }

    #[test]
    fn what_moves_while_it_is_opened_is_not_held() {
        let held = Held { directories: RwLock::default(), most: 2 };
        held.get(b"/a", || {
            held.renamed();
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
