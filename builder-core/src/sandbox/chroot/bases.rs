//! Working directories of threads: relative paths begin there, and what was asked of the kernel lately need not be asked for each.
//!
//! Calls that change a working directory, or what is on its way, take back what is known. The kernel does them after they were
//! answered, and threads may share a working directory: until a thread that made such a call makes its next one, or a while has passed,
//! nobody's is remembered, as it may have been asked for before and hold no more. So what is known holds exactly.
//!
//! # Limitations
//! Directories that are moved in a way that the supervisor does not see (renameat(2) with a descriptor) are taken to be where they
//! were for the rest of [`MOMENT`].

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::ways::MOMENT;

/// So many are known at a time.
const MOST: usize = 256;

/// After so long a call has been done, whether its thread made another one or not.
const LONGEST_CALL: Duration = Duration::from_secs(1);

/// What is known.
#[derive(Debug)]
pub struct Bases {
    known: Mutex<Known>,
    /// How many threads are on their way, to be asked without the lock.
    leaving: AtomicUsize,
    moment: Duration,
}

#[derive(Debug, Default)]
struct Known {
    /// By thread, where it is in the tree, and until when.
    places: HashMap<i32, (PathBuf, Instant)>,
    /// Threads whose last call changes something, and when it was made.
    leaving: HashMap<i32, Instant>,
    /// How many such calls there were.
    changes: u64,
}

impl Default for Bases {
    fn default() -> Self {
        Self { known: Mutex::default(), leaving: AtomicUsize::new(0), moment: MOMENT }
    }
}

impl Bases {
    /// A thread makes a call, so that the one before has been done.
    pub fn called(&self, thread: i32) {
        if self.leaving.load(Ordering::Acquire) > 0 {
            let mut known = self.lock();
            known.leaving.remove(&thread);
            self.leaving.store(known.leaving.len(), Ordering::Release);
        }
    }

    /// Where a thread is, which `ask` finds out if it is not known; `None` if that is not in the tree.
    pub fn of(&self, thread: i32, ask: impl FnOnce() -> Option<PathBuf>) -> Option<PathBuf> {
        let now = Instant::now();
        let known = self.lock();
        if let Some((path, until)) = known.places.get(&thread)
            && now < *until
        {
            return Some(path.clone());
        }
        let changes = known.changes;
        drop(known);
        let path = ask()?;
        let mut known = self.lock();
        if !known.leaving.is_empty() {
            known.leaving.retain(|_, since| now.saturating_duration_since(*since) < LONGEST_CALL);
            self.leaving.store(known.leaving.len(), Ordering::Release);
        }
        if known.changes == changes && known.leaving.is_empty() {
            if known.places.len() >= MOST {
                known.places.clear();
            }
            known.places.insert(thread, (path.clone(), now + self.moment));
        }
        Some(path)
    }

    /// The thread's call takes it, or whoever shares its working directory, somewhere else, or changes something that cannot be told.
    pub fn forget_all(&self, thread: i32) {
        self.leaves(thread).places.clear();
    }

    /// The thread's call makes what has this path another.
    pub fn forget(&self, thread: i32, path: &Path) {
        self.leaves(thread).places.retain(|_, (base, _)| !base.starts_with(path));
    }

    fn leaves(&self, thread: i32) -> MutexGuard<'_, Known> {
        let mut known = self.lock();
        known.leaving.insert(thread, Instant::now());
        known.changes += 1;
        self.leaving.store(known.leaving.len(), Ordering::Release);
        known
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases() -> Bases {
        Bases { moment: Duration::from_secs(3600), ..Bases::default() }
    }

    #[test]
    fn asked_once() {
        let bases = bases();
        assert_eq!(bases.of(1, || None), None, "what is outside is asked again");
        assert_eq!(bases.of(1, || Some("/a".into())), Some("/a".into()));
        assert_eq!(bases.of(1, || None), Some("/a".into()));
        assert_eq!(bases.of(2, || Some("/b".into())), Some("/b".into()), "another thread");
        bases.forget(3, Path::new("/a"));
        assert_eq!(bases.of(1, || None), None);
        assert_eq!(bases.of(2, || None), Some("/b".into()), "elsewhere");
        bases.forget_all(3);
        assert_eq!(bases.of(2, || None), None);
    }

    #[test]
    fn who_leaves_is_waited_for() {
        let bases = bases();
        bases.forget_all(1);
        // The kernel has not done it yet.
        assert_eq!(bases.of(2, || Some("/old".into())), Some("/old".into()));
        assert_eq!(bases.of(2, || Some("/new".into())), Some("/new".into()), "not remembered");
        bases.called(3);
        assert_eq!(bases.of(2, || Some("/newer".into())), Some("/newer".into()), "somebody else calls");
        bases.called(1);
        assert_eq!(bases.of(2, || Some("/newest".into())), Some("/newest".into()));
        assert_eq!(bases.of(2, || None), Some("/newest".into()), "remembered");
        // Asked before, told after.
        let told = bases.of(4, || {
            bases.forget_all(1);
            bases.called(1);
            Some("/gone".into())
        });
        assert_eq!(told, Some("/gone".into()));
        assert_eq!(bases.of(4, || None), None);
    }
}
