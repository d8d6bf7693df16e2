//! Working directories of threads: relative paths begin there, and what was asked of the kernel lately need not be asked for each.
//!
//! Calls that change a working directory, or what is on its way, take back what is known.
//!
//! # Limitations
//! What was found holds for [`MOMENT`]: of threads that share a working directory one may ask while another one is just about to
//! change it, and is taken to be in the old one for the rest of that time.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::ways::MOMENT;

/// So many are known at a time.
const MOST: usize = 256;

/// What is known: by thread, where it is in the tree, and until when.
#[derive(Debug)]
pub struct Bases {
    known: Mutex<HashMap<i32, (PathBuf, Instant)>>,
    moment: Duration,
}

impl Default for Bases {
    fn default() -> Self {
        Self { known: Mutex::default(), moment: MOMENT }
    }
}

impl Bases {
    /// Where a thread is, which `ask` finds out if it is not known; `None` if that is not in the tree.
    pub fn of(&self, thread: i32, ask: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
        let now = Instant::now();
        if let Some((path, until)) = self.lock().get(&thread)
            && now < *until
        {
            return Some(path.clone());
        }
        let path = ask()?;
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(thread, (path.clone(), now + self.moment));
        Some(path)
    }

    /// Some thread goes somewhere else.
    pub fn forget_all(&self) {
        self.lock().clear();
    }

    /// What has this path is going to be another.
    pub fn forget(&self, path: &Path) {
        self.lock().retain(|_, (base, _)| !base.starts_with(path));
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<i32, (PathBuf, Instant)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asked_once() {
        let bases = Bases { moment: Duration::from_secs(3600), ..Bases::default() };
        assert_eq!(bases.of(1, || None), None, "what is outside is asked again");
        assert_eq!(bases.of(1, || Some("/a".into())), Some("/a".into()));
        assert_eq!(bases.of(1, || None), Some("/a".into()));
        assert_eq!(bases.of(2, || Some("/b".into())), Some("/b".into()), "another thread");
        bases.forget(Path::new("/a"));
        assert_eq!(bases.of(1, || None), None);
        assert_eq!(bases.of(2, || None), Some("/b".into()), "elsewhere");
        bases.forget_all();
        assert_eq!(bases.of(2, || None), None);
    }
}
