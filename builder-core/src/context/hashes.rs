//! Hashes of file contents, kept between builds.
//!
//! `kept` says how they lie on the disk: memory does not feel how many they are.

mod kept;
mod note;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use rustix::fs::SeekFrom;
use rustix::io::Errno;

use self::kept::Kept;
use self::note::ContentHasher;
pub(super) use self::note::Notes;
use super::files::{Files, FilesError, Found, HashCounts, io_error};
use crate::cancel::Cancel;

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
    /// Its bytes, as [`ContentHasher`] takes them.
    pub(crate) data: blake3::Hash,
    /// `security.capability`, the one attribute that reaches a layer.
    pub(crate) capability: Option<Vec<u8>>,
}

impl FileHash {
    /// Stands for the content of any file.
    pub(crate) fn unread() -> Self {
        Self { data: blake3::Hash::from_bytes([0; blake3::OUT_LEN]), capability: None }
    }
}

/// What was done to know hashes.
#[derive(Debug, Default)]
pub(super) struct Counters {
    read: AtomicU64,
    bytes: AtomicU64,
    known: AtomicU64,
}

impl Counters {
    /// A file was read.
    fn count(&self, bytes: u64) {
        self.read.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

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
        let Some(notes) = self.notes.get() else { return self.hash_rest(files, cancel) };
        let mut hashes = notes.known(files);
        if let Some(cache) = &self.hashes {
            cache.keep(notes.begun, files, &hashes);
        }
        let rest = files.iter().zip(&hashes).filter(|(_, hash)| hash.is_none()).map(|(file, _)| file.clone());
        let rest: Vec<_> = rest.collect();
        let mut found = self.hash_rest(&rest, cancel)?.into_iter();
        for hash in hashes.iter_mut().filter(|hash| hash.is_none()) {
            *hash = found.next();
        }
        Ok(hashes.into_iter().flatten().collect())
    }

    /// The hashes of regular files if all of them are known from earlier builds.
    pub(crate) fn known_hashes(&self, files: &[(PathBuf, Found)]) -> Option<Vec<FileHash>> {
        if files.is_empty() {
            return Some(Vec::new());
        }
        self.hashes.as_ref()?.known(files).into_iter().collect()
    }

    /// So many files did not have to be read.
    pub(crate) fn count_known(&self, files: u64) {
        self.counters.known.fetch_add(files, Ordering::Relaxed);
    }

    /// The same for files that nobody read meanwhile.
    fn hash_rest(&self, files: &[(PathBuf, Found)], cancel: &Cancel) -> Result<Vec<FileHash>, FilesError> {
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
        let (data, bytes) = content_hash(&mut file, buffer, cancel).map_err(|error| match error {
            Some(error) => io_error("read", path, error),
            None => FilesError::Cancelled,
        })?;
        self.check(&file, path, found)?;
        self.counters.count(bytes);
        let capability =
            self.capability(path, &file).map_err(|error| io_error("read the attributes of", path, error))?;
        Ok(FileHash { data, capability })
    }
}

/// Hash of what a file holds ([`ContentHasher`]), and how many bytes had to be read for it: holes are not. `Err(None)` when
/// cancelled.
fn content_hash(file: &mut File, block: &mut [u8], cancel: &Cancel) -> Result<(blake3::Hash, u64), Option<io::Error>> {
    let whole = block.len() as u64;
    let mut hasher = ContentHasher::default();
    let (mut position, mut bytes) = (0, 0);
    loop {
        if cancel.is_cancelled() {
            return Err(None);
        }
        let length = fill(file, block)?;
        bytes += length as u64;
        if length == block.len() && block.iter().all(|byte| *byte == 0) {
            let next = match rustix::fs::seek(&*file, SeekFrom::Data(position + whole)) {
                Ok(data) => data / whole * whole,
                // Nothing but a hole is left, or less than a block.
                Err(Errno::NXIO) => file.metadata()?.len().max(position + whole) / whole * whole,
                // A file system that does not know has no holes.
                Err(_) => position + whole,
            };
            rustix::fs::seek(&*file, SeekFrom::Start(next)).map_err(io::Error::from)?;
            hasher.zeros(next - position);
            position = next;
            continue;
        }
        if length == 0 {
            return Ok((hasher.finish(), bytes));
        }
        hasher.bytes(&block[..length]);
        position += length as u64;
    }
}

/// Reads until the buffer is full or the file ends.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Whether a write after `now` is sure to change `ctime`.
fn is_settled(ctime: (i64, u32), now: (i64, u32)) -> bool {
    let nanoseconds = |(seconds, fraction): (i64, u32)| i128::from(seconds) * 1_000_000_000 + i128::from(fraction);
    let tick = if ctime.1 == 0 { COARSE_TICK_NANOSECONDS } else { TICK_NANOSECONDS };
    nanoseconds(now) - nanoseconds(ctime) > tick
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_hole_is_what_zeros_are_and_is_not_read() {
        let hash = |pieces: &[(u64, &[u8])], size: u64| {
            let mut file = tempfile::tempfile().unwrap();
            for (at, bytes) in pieces {
                file.write_all_at(bytes, *at).unwrap();
            }
            file.set_len(size).unwrap();
            content_hash(&mut file, &mut [0; READ_BYTES], &Cancel::default()).unwrap()
        };
        let block = READ_BYTES as u64;
        let zeros = vec![0; 5 * READ_BYTES];
        // Without a block of zeros it is the hash of the bytes, as ever.
        assert_eq!(hash(&[(0, b"text")], 4).0, blake3::hash(b"text"));
        assert_eq!(hash(&[], 0).0, blake3::hash(b""));
        assert_eq!(hash(&[], block - 1).0, blake3::hash(&zeros[..READ_BYTES - 1]));
        for size in [block, 3 * block, 3 * block + 7] {
            let written = &zeros[..usize::try_from(size).unwrap()];
            assert_eq!(hash(&[], size).0, hash(&[(0, written)], size).0, "{size}");
        }
        let ends: &[(u64, &[u8])] = &[(0, b"a"), (4 * block + 5, b"b")];
        assert_eq!(hash(ends, 5 * block).0, hash(&[&[(0, &zeros[..])], ends].concat(), 5 * block).0);
        let all = [
            hash(&[], block).0,
            hash(&[], 2 * block).0,
            hash(&[(0, b"a")], 2 * block).0,
            hash(&[(block, b"a")], 2 * block).0,
            hash(&[(0, b"a")], 3 * block).0,
            hash(ends, 5 * block).0,
            hash(ends, 6 * block).0,
        ];
        assert_eq!(all.iter().map(|hash| hash.as_bytes()).collect::<std::collections::BTreeSet<_>>().len(), all.len());
        // A terabyte.
        let (_, read) = hash(&[(5 << 40, b"end")], (5 << 40) + 3);
        assert!(read < 4 * block, "{read}");
        let cancel = Cancel::default();
        cancel.cancel();
        assert!(content_hash(&mut tempfile::tempfile().unwrap(), &mut [0; 9], &cancel).is_err_and(|e| e.is_none()));
    }
}
