//! How much a build may do at once.

use std::num::NonZeroUsize;

/// How much the build may do at once. One value, passed down; nothing else asks how many processors there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that hash, compress and compare.
    pub cpu_threads: NonZeroUsize,
    /// Transfers from and to registries at one time.
    pub connections: NonZeroUsize,
    /// Steps that may run at one time.
    pub steps: NonZeroUsize,
    /// Largest manifest, index or config that is read, in bytes.
    pub metadata_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let four = NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN);
        // 4 MiB is what distribution's registry itself accepts for a manifest.
        Self { cpu_threads: cpus, connections: four, steps: cpus.max(four), metadata_bytes: 4 << 20 }
    }
}
