//! What this process and the commands that it ran have read and written.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

/// proc_pid_io(5) of this process, opened while it still is dumpable: afterwards the file belongs to the root of the first
/// user namespace, and only whoever has it open can read it.
#[derive(Debug, Clone)]
pub struct Counters(Option<Arc<File>>);

impl Counters {
    pub(super) fn open() -> Self {
        Self(File::open("/proc/self/io").ok().map(Arc::new))
    }

    /// Bytes read and written by system calls so far, by this process and its ended children; zeros where the kernel does
    /// not count.
    pub fn read(&self) -> (u64, u64) {
        let mut buffer = [0; 512];
        let length = self.0.as_ref().and_then(|file| file.read_at(&mut buffer, 0).ok()).unwrap_or(0);
        let text = String::from_utf8_lossy(&buffer[..length]);
        let value = |name: &str| {
            let found = text.lines().find_map(|line| line.strip_prefix(name));
            found.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
        };
        (value("rchar:"), value("wchar:"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_and_writing_is_counted() {
        let counters = Counters::open();
        let (read, written) = counters.read();
        let mut file = tempfile::tempfile().expect("a file");
        std::io::Write::write_all(&mut file, &[1; 100_000]).expect("written");
        file.read_at(&mut [0; 100_000], 0).expect("read");
        let (read_since, written_since) = counters.read();
        assert!(read_since - read >= 100_000 && written_since - written >= 100_000);
    }
}
