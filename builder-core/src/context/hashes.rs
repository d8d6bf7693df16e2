//! Hashes of file contents, kept between builds.
//!
//! ```text
//! "slipway hashes 1\n"
//! per file: u32 length of the path, path, u64 size, i64 + u32 mtime, i64 + u32 ctime, u64 inode,
//!           32 bytes SHA-256, u32 length of security.capability (all ones: not set), its bytes, u8 age
//! SHA-256 of all of the above
//! ```
//!
//! Numbers are little endian. The file is replaced as a whole, so the last of several builds wins; a file that is cut,
//! of another version or otherwise wrong counts as missing. `age` is the number of times it was written without the file
//! being asked for.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;

use super::files::{Files, FilesError, Found, HashCounts, io_error};
use crate::cancel::Cancel;
use crate::oci::{Hasher, Sha256};

const MAGIC: &[u8] = b"slipway hashes 1\n";

/// One read of a file that is hashed, in bytes: most files of a context fit.
const READ_BYTES: usize = 64 * 1024;

/// Records that were not asked for so many times are dropped: steps of other Dockerfiles over the same context come
/// round again, files of last year do not.
const MAX_AGE: u8 = 16;

/// Files whose hashes are kept; those of a larger context are partly read again. A record takes about 230 bytes of memory.
const MAX_RECORDS: usize = 100_000;

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

#[derive(Debug, Clone)]
struct Record {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    inode: u64,
    hash: FileHash,
    age: u8,
}

impl Record {
    fn is_of(&self, found: &Found) -> bool {
        self.size == found.metadata.size
            && self.mtime == found.metadata.mtime
            && self.ctime == found.ctime
            && self.inode == found.metadata.inode
    }
}

/// The kept hashes of one tree.
#[derive(Debug)]
pub(super) struct HashCache {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// `None` until they are read from the disk.
    records: Option<BTreeMap<Vec<u8>, Record>>,
    changed: bool,
}

impl HashCache {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, state: Mutex::default() }
    }

    /// Known hashes of `files`, in their order.
    fn known(&self, files: &[(PathBuf, Found)]) -> Vec<Option<FileHash>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let records = state.records.get_or_insert_with(|| read_records(&self.path));
        let mut known = |path: &Path, found: &Found| {
            let record = records.get_mut(path.as_os_str().as_bytes())?;
            record.is_of(found).then(|| {
                record.age = 0;
                record.hash.clone()
            })
        };
        files.iter().map(|(path, found)| known(path, found)).collect()
    }

    fn keep(&self, now: Option<(i64, u32)>, files: &[(PathBuf, Found)], hashes: &[Option<FileHash>]) {
        let Some(now) = now else { return };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { records: Some(records), changed } = &mut *state else { return };
        for ((path, found), hash) in files.iter().zip(hashes) {
            let Some(hash) = hash else { continue };
            if !is_settled(found.ctime, now) {
                continue;
            }
            let record = Record {
                size: found.metadata.size,
                mtime: found.metadata.mtime,
                ctime: found.ctime,
                inode: found.metadata.inode,
                hash: hash.clone(),
                age: 0,
            };
            if records.len() < MAX_RECORDS || records.contains_key(path.as_os_str().as_bytes()) {
                records.insert(path.as_os_str().as_bytes().to_vec(), record);
                *changed = true;
            }
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
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { records: Some(records), changed } = &mut *state else { return Ok(()) };
        if !std::mem::take(changed) {
            return Ok(());
        }
        let directory = self.path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let file = tempfile::NamedTempFile::new_in(directory)?;
        write_records(file.as_file(), records)?;
        file.persist(&self.path)?;
        Ok(())
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

/// Hashes what is written.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hasher.update(&buf[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

fn write_records(file: &File, records: &mut BTreeMap<Vec<u8>, Record>) -> io::Result<()> {
    let mut out = Hashed { inner: io::BufWriter::new(file), hasher: Hasher::default() };
    out.write_all(MAGIC)?;
    for (path, record) in records.iter_mut() {
        if record.age < MAX_AGE {
            write_record(&mut out, path, record)?;
        }
        record.age = record.age.saturating_add(1);
    }
    let Hashed { mut inner, hasher } = out;
    inner.write_all(hasher.finish().as_bytes())?;
    inner.flush()
}

fn write_record(out: &mut impl Write, path: &[u8], record: &Record) -> io::Result<()> {
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX - 1).to_le_bytes();
    let mut bytes = Vec::with_capacity(path.len() + 128);
    bytes.extend(length(path));
    bytes.extend(path);
    bytes.extend(record.size.to_le_bytes());
    for (seconds, nanoseconds) in [record.mtime, record.ctime] {
        bytes.extend(seconds.to_le_bytes());
        bytes.extend(nanoseconds.to_le_bytes());
    }
    bytes.extend(record.inode.to_le_bytes());
    bytes.extend(record.hash.data.as_bytes());
    match &record.hash.capability {
        Some(value) => {
            bytes.extend(length(value));
            bytes.extend(value);
        }
        None => bytes.extend(u32::MAX.to_le_bytes()),
    }
    bytes.push(record.age);
    out.write_all(&bytes)
}

fn read_records(path: &Path) -> BTreeMap<Vec<u8>, Record> {
    let Ok(bytes) = std::fs::read(path) else { return BTreeMap::new() };
    parse(&bytes).unwrap_or_else(|| {
        tracing::debug!(path = %path.display(), "the kept hashes are unusable; files will be read again");
        BTreeMap::new()
    })
}

fn parse(bytes: &[u8]) -> Option<BTreeMap<Vec<u8>, Record>> {
    let (content, checksum) = bytes.split_last_chunk::<32>()?;
    if Sha256::of(content).as_bytes() != checksum {
        return None;
    }
    let mut input = Input(content.strip_prefix(MAGIC)?);
    // In order already, which makes this a linear build.
    let mut records = Vec::new();
    while !input.0.is_empty() {
        records.push(input.record()?);
    }
    Some(records.into_iter().collect())
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    fn time(&mut self) -> Option<(i64, u32)> {
        Some((i64::from_le_bytes(self.array()?), u32::from_le_bytes(self.array()?)))
    }

    fn length(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.array()?))
    }

    fn record(&mut self) -> Option<(Vec<u8>, Record)> {
        let length = self.length()?;
        let path = self.take(length as usize)?.to_vec();
        let size = u64::from_le_bytes(self.array()?);
        let (mtime, ctime) = (self.time()?, self.time()?);
        let inode = u64::from_le_bytes(self.array()?);
        let data = Sha256::from_bytes(self.array()?);
        let capability = match self.length()? {
            u32::MAX => None,
            length => Some(self.take(length as usize)?.to_vec()),
        };
        let [age] = self.array()?;
        Some((path, Record { size, mtime, ctime, inode, hash: FileHash { data, capability }, age }))
    }
}
