//! Whether this process may have the threads and descriptors that every build needs: learned before the first step, because
//! later it shows as whatever happens to be tried at that moment.

use std::io;
use std::sync::Mutex;

use rustix::process::Resource;

use super::BuildError;

/// Open files that a build has at the least: base, tree, layer, pipes of a command and its supervision.
const LEAST_DESCRIPTORS: u64 = 64;

/// Threads that a build has at the least: stage, steps, hashing, output, supervision, and a command's own process.
const LEAST_THREADS: usize = 12;

/// Looks, and tries.
///
/// # Errors
/// [`BuildError::FewDescriptors`], [`BuildError::FewProcesses`].
pub fn check() -> Result<(), BuildError> {
    if let Some(limit) = rustix::process::getrlimit(Resource::Nofile).current
        && limit < LEAST_DESCRIPTORS
    {
        return Err(BuildError::FewDescriptors { limit, needed: LEAST_DESCRIPTORS });
    }
    let (started, failed) = start(LEAST_THREADS);
    match failed {
        None => Ok(()),
        Some(source) => Err(BuildError::FewProcesses { started, needed: LEAST_THREADS, source }),
    }
}

/// Has so many threads at one time; how many there were, and why not more.
fn start(count: usize) -> (usize, Option<io::Error>) {
    let hold = Mutex::new(());
    let held = hold.lock();
    std::thread::scope(|scope| {
        let mut started = 0;
        let mut failed = None;
        while started < count && failed.is_none() {
            // Each waits until all are there.
            let wait = || drop(hold.lock());
            match std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, wait) {
                Ok(_) => started += 1,
                Err(error) => failed = Some(error),
            }
        }
        drop(held);
        (started, failed)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_had_at_one_time() {
        assert!(matches!(start(LEAST_THREADS), (LEAST_THREADS, None)));
        check().expect("there is room for a test");
    }
}
