//! A blob that is still being written, for those who read behind the writer.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How far a blob has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Growth {
    /// So many bytes can be read, and more will come.
    Bytes(u64),
    /// It is whole, and has so many bytes.
    Whole(u64),
    /// It will never be whole: whoever wrote it gave up.
    Lost,
}

/// A blob that is being written. What was written can be read as long as this exists, also when the blob has been published
/// or removed meanwhile.
#[derive(Debug, Clone)]
pub struct Growing {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: File,
    growth: Mutex<Growth>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Growth> {
        // One value, replaced as a whole.
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Growing {
    /// Waits until `at_least` bytes can be read or nothing more will come, for at most `limit`.
    pub fn wait(&self, at_least: u64, limit: Duration) -> Growth {
        let waits = |growth: &mut Growth| matches!(growth, Growth::Bytes(bytes) if *bytes < at_least);
        let waited = self.shared.changed.wait_timeout_while(self.shared.lock(), limit, waits);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// What can be read by now, from `offset` in bytes on. It ends there; who wants more waits and reads again.
    pub fn read_from(&self, offset: u64) -> impl Read + use<> {
        Behind { shared: Arc::clone(&self.shared), offset }
    }
}

struct Behind {
    shared: Arc<Shared>,
    offset: u64,
}

impl Read for Behind {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.shared.file.read_at(buf, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// The writer's side: dropped before [`Teller::whole`], the blob is lost.
#[derive(Debug)]
pub(super) struct Teller(Arc<Shared>);

impl Teller {
    /// `file` is read; what has been written so far is told by [`Teller::grown`].
    pub(super) fn new(file: File) -> (Self, Growing) {
        let growth = Mutex::new(Growth::Bytes(0));
        let shared = Arc::new(Shared { file, growth, changed: Condvar::new() });
        (Self(Arc::clone(&shared)), Growing { shared })
    }

    /// `bytes` of the file can be read.
    pub(super) fn grown(&self, bytes: u64) {
        self.tell(Growth::Bytes(bytes));
    }

    /// All `bytes` of it are there.
    pub(super) fn whole(self, bytes: u64) {
        self.tell(Growth::Whole(bytes));
    }

    fn tell(&self, growth: Growth) {
        *self.0.lock() = growth;
        self.0.changed.notify_all();
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if matches!(*self.0.lock(), Growth::Bytes(_)) {
            self.tell(Growth::Lost);
        }
    }
}
