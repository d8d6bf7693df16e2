//! How much a build may do at once.

use std::num::NonZeroUsize;

/// How much the build may do at once. One value, passed down; nothing else asks how many processors there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Threads that compress. Trees are compared and files hashed in rayon's pool, which belongs to the process: a program
    /// sizes it by this number, as `slipway` does, or leaves one thread for each processor.
    pub cpu_threads: NonZeroUsize,
    /// Transfers from and to registries at one time.
    pub connections: NonZeroUsize,
    /// Steps that may run at one time.
    pub steps: NonZeroUsize,
    /// Space that the work dir may take, in bytes; `None` for all that there is.
    pub disk_bytes: Option<u64>,
    /// Anonymous memory that the builder may take, in bytes; `None` for what its threads need.
    pub memory_bytes: Option<u64>,
    /// Largest manifest, index or config that is read, in bytes.
    pub metadata_bytes: u64,
}

/// What one thread that compresses needs, in bytes: the block at work, one in the queue, the result, and the compressor.
const COMPRESSING_THREAD_BYTES: u64 = 5 << 20;

/// What one transfer needs, in bytes: pieces on their way, TLS, and a decompressor.
const CONNECTION_BYTES: u64 = 3 << 20;

/// What a builder needs before it does anything, in bytes: plan, certificates, HTTP client.
const FIXED_BYTES: u64 = 20 << 20;

/// What a builder without a limit of its own is sized for, in bytes, however many processors there are.
const DEFAULT_MEMORY_BYTES: u64 = 128 << 20;

impl Limits {
    /// The least that a builder can be given, in bytes.
    pub const LEAST_MEMORY_BYTES: u64 = 48 << 20;

    /// The same with fewer threads and connections, where all of them would need more than [`Limits::memory_bytes`] (or than
    /// what a builder is sized for without it). Results do not depend on it.
    #[must_use]
    pub fn fitted(self) -> Self {
        let room = self.room();
        let fit = |wanted: NonZeroUsize, part: u64, each: u64| {
            let most = usize::try_from(room / part / each).unwrap_or(usize::MAX);
            wanted.min(NonZeroUsize::new(most).unwrap_or(NonZeroUsize::MIN))
        };
        Self {
            cpu_threads: fit(self.cpu_threads, 2, COMPRESSING_THREAD_BYTES),
            connections: fit(self.connections, 4, CONNECTION_BYTES),
            ..self
        }
    }

    /// Memory for trees that are known without a directory, in bytes.
    pub fn tree_bytes(&self) -> u64 {
        self.room() / 2
    }

    /// Memory for what steps know of their files until their layers are written, in bytes.
    pub fn step_bytes(&self) -> u64 {
        self.room() / 5
    }

    /// Memory that one decompressor may take, in bytes, where others wait for it.
    pub fn window_bytes(&self) -> u64 {
        // What everybody can unpack, we can: a window of zstd has up to 128 MiB.
        self.memory_bytes.map_or(u64::MAX, |_| self.room())
    }

    /// What is left beside what every builder needs, in bytes.
    fn room(&self) -> u64 {
        self.memory_bytes.unwrap_or(DEFAULT_MEMORY_BYTES).saturating_sub(FIXED_BYTES)
    }

    /// Layers that may be packed at one time. Each uses all threads by itself; a second one only fills the pauses of the
    /// first, where there is memory for it.
    pub fn layers_at_once(&self) -> NonZeroUsize {
        let room = self.room() / 2;
        let each = COMPRESSING_THREAD_BYTES * self.cpu_threads.get() as u64;
        if 2 * each <= room { NonZeroUsize::MIN.saturating_add(1) } else { NonZeroUsize::MIN }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let four = NonZeroUsize::new(4).unwrap_or(NonZeroUsize::MIN);
        // 4 MiB is what distribution's registry itself accepts for a manifest.
        Self {
            cpu_threads: cpus,
            connections: four,
            steps: cpus.max(four),
            disk_bytes: None,
            memory_bytes: None,
            metadata_bytes: 4 << 20,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_fit_into_memory() {
        let number = |count: usize| NonZeroUsize::new(count).expect("not 0");
        let many = Limits { cpu_threads: number(64), connections: number(64), ..Limits::default() };
        for (memory, threads, connections, layers) in [
            (None, 10, 9, 1),
            (Some(64 << 20), 4, 3, 1),
            (Some(Limits::LEAST_MEMORY_BYTES), 2, 2, 1),
            (Some(0), 1, 1, 1),
        ] {
            let fitted = Limits { memory_bytes: memory, ..many }.fitted();
            let found = (fitted.cpu_threads.get(), fitted.connections.get(), fitted.layers_at_once().get());
            assert_eq!(found, (threads, connections, layers), "{memory:?}");
        }
        let two = Limits { cpu_threads: number(2), ..Limits::default() }.fitted();
        assert_eq!((two.cpu_threads.get(), two.layers_at_once().get()), (2, 2));
    }
}
