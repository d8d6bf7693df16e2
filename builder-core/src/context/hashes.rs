//! Hashes of file contents, kept between builds.
//!
//! `kept` says how they lie on the disk: memory does not feel how many they are.

mod kept;

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use self::kept::Kept;
use super::files::{Files, FilesError, Found, HashCounts, io_error};
use crate::cancel::Cancel;
use crate::oci::{Hasher, Sha256};

/// One read of a file that is hashed, in bytes: most files of a context fit.
const READ_BYTES: usize = 64 * 1024;

/// A record is kept only if the file's ctime was this much older than the moment it was read, in nanoseconds: a later
/// write within the same tick of the kernel's clock (at most 10 ms, include/linux/jiffies.h) would not show.
const TICK_NANOSECONDS: i128 = 20_000_000;

/// The same for file systems that keep whole seconds only.
const COARSE_TICK_NANOSECONDS: i128 = 2_000_000_000;

/// What is hashed of a regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileHash {
    /// Its bytes.
    pub(crate) data: Sha256,
    /// `security.capability`, the one attribute that reaches a layer.
    pub(crate) capability: Option<Vec<u8>>,
}

/// What was done to know hashes.
#[derive(Debug, Default)]
pub(super) struct Counters {
    read: AtomicU64,
    bytes: AtomicU64,
    known: AtomicU64,
}

impl Counters {
    pub(super) fn get(&self) -> HashCounts {
        HashCounts {
            read: self.read.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            known: self.known.load(Ordering::Relaxed),
        }
    }
}

/// The kept hashes of one tree.
#[derive(Debug)]
pub(super) struct HashCache {
    path: PathBuf,
    /// `None` until somebody asks.
    kept: Mutex<Option<Box<Kept>>>,
}

impl HashCache {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, kept: Mutex::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Kept) -> T) -> T {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let place = || self.path.parent().filter(|directory| directory.is_dir()).map(Into::into);
        act(kept.get_or_insert_with(|| Box::new(Kept::open(&self.path, place()))))
    }

    /// Known hashes of `files`, in their order.
    fn known(&self, files: &[(PathBuf, Found)]) -> Vec<Option<FileHash>> {
        self.with(|kept| kept.known(files)).unwrap_or_else(|error| {
            tracing::debug!(%error, path = %self.path.display(), "the kept hashes cannot be read; files will be");
            vec![None; files.len()]
        })
    }

    fn keep(&self, now: Option<(i64, u32)>, files: &[(PathBuf, Found)], hashes: &[Option<FileHash>]) {
        let Some(now) = now else { return };
        if let Err(error) = self.with(|kept| kept.keep(files, hashes, |found| is_settled(found.ctime, now))) {
            tracing::debug!(%error, path = %self.path.display(), "hashes of files will not be kept");
        }
    }

    /// The time as the file system tells it, so that it can be compared with the times of files.
    fn now(&self) -> Option<(i64, u32)> {
        let time = || -> io::Result<(i64, u32)> {
            let directory = self.path.parent().unwrap_or(Path::new("."));
            std::fs::create_dir_all(directory)?;
            let stat = rustix::fs::fstat(tempfile::tempfile_in(directory)?)?;
            #[allow(clippy::unnecessary_cast, reason = "the widths of struct stat differ between architectures")]
            Ok((stat.st_mtime as i64, stat.st_mtime_nsec as u32))
        };
        match time() {
            Ok(time) => Some(time),
            Err(error) => {
                tracing::debug!(%error, path = %self.path.display(), "hashes of files will not be kept");
                None
            }
        }
    }

    pub(super) fn save(&self) -> io::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_mut().map_or(Ok(()), |kept| kept.save(&self.path))
    }
}

impl Drop for HashCache {
    fn drop(&mut self) {
        if let Err(error) = self.save() {
            // The next build reads the files again.
            tracing::debug!(%error, path = %self.path.display(), "hashes of files were not kept");
        }
    }
}

impl Files {
    /// Hashes regular files on all threads of the current rayon pool; reads only those that are not known.
    pub(crate) fn hash(&self, files: &[(PathBuf, Found)], cancel: &Cancel) -> Result<Vec<FileHash>, FilesError> {
        let mut hashes = self.hashes.as_ref().map_or_else(|| vec![None; files.len()], |cache| cache.known(files));
        let unknown = hashes.iter().filter(|hash| hash.is_none()).count();
        self.counters.known.fetch_add((files.len() - unknown) as u64, Ordering::Relaxed);
        if unknown == 0 {
            return Ok(hashes.into_iter().flatten().collect());
        }
        let now = self.hashes.as_ref().and_then(HashCache::now);
        let read: Vec<Option<FileHash>> = files
            .par_iter()
            .zip(&hashes)
            .map_init(
                || vec![0; READ_BYTES],
                |buffer, ((path, found), known)| match known {
                    Some(_) => Ok(None),
                    None => self.read(path, found, buffer, cancel).map(Some),
                },
            )
            .collect::<Result<_, _>>()?;
        if let Some(cache) = &self.hashes {
            cache.keep(now, files, &read);
        }
        for (hash, read) in hashes.iter_mut().zip(read) {
            if read.is_some() {
                *hash = read;
            }
        }
        Ok(hashes.into_iter().flatten().collect())
    }

    fn read(&self, path: &Path, found: &Found, buffer: &mut [u8], cancel: &Cancel) -> Result<FileHash, FilesError> {
        if cancel.is_cancelled() {
            return Err(FilesError::Cancelled);
        }
        let mut file = self.open(path, found)?;
        let mut hasher = Hasher::default();
        let mut bytes = 0;
        loop {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hasher.update(&buffer[..length]);
                    bytes += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("read", path, error)),
            }
            if cancel.is_cancelled() {
                return Err(FilesError::Cancelled);
            }
        }
        self.check(&file, path, found)?;
        self.counters.read.fetch_add(1, Ordering::Relaxed);
        self.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        let capability =
            self.capability(path, &file).map_err(|error| io_error("read the attributes of", path, error))?;
        Ok(FileHash { data: hasher.finish(), capability })
    }
}

/// Whether a write after `now` is sure to change `ctime`.
fn is_settled(ctime: (i64, u32), now: (i64, u32)) -> bool {
    let nanoseconds = |(seconds, fraction): (i64, u32)| i128::from(seconds) * 1_000_000_000 + i128::from(fraction);
    let tick = if ctime.1 == 0 { COARSE_TICK_NANOSECONDS } else { TICK_NANOSECONDS };
    nanoseconds(now) - nanoseconds(ctime) > tick
}
