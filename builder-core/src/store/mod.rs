//! Content-addressed blobs under the work dir: verified, then published.
//!
//! ```text
//! <work>/blobs/sha256/<hex>   sealed blobs, mode 0444, never changed once named
//! <work>/tmp/lock             locked (flock) while a process makes its own directory or removes those of the dead
//! <work>/tmp/<random>/        unfinished blobs of one open store, locked (flock) as long as it is open
//! ```
//!
//! Several processes may share the directory. A blob gets its name by one `rename`, so readers see all of it or none;
//! two writers of one blob replace it by itself. Directories below `tmp` whose lock nobody holds were left by a process
//! that was killed; the next one that opens the store removes them. Lock order: `tmp/lock`, then a directory below it.
//!
//! # Durability
//! Nothing is synced. A kill of the process loses nothing that was published, because the kernel holds the pages; only a
//! crash of the machine can. Then file systems that order data before sizes (ext4, XFS, btrfs) leave a blob that is too
//! short, never one with wrong bytes, and [`Store::contains`] compares the size that every descriptor states: a short
//! blob counts as absent and is fetched or built again. A sync of each blob instead would make every layer wait for the
//! disk, which on network volumes costs more than its compression.
//!
//! # Limitations
//! Without flock (some network file systems) leftovers stay until they are removed by hand. Nothing is ever evicted here.

mod error;
mod growing;

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::FlockOperation;
use tempfile::{NamedTempFile, TempDir};

pub use self::error::StoreError;
pub use self::growing::{Growing, Growth};
use crate::disk::Disk;
use crate::oci::{BlobDigest, Descriptor, Hasher, Sha256};

/// One write to the spill file, in bytes. Large enough that the system call costs nothing beside the hash (1 GB/s).
const SPILL_BUFFER_BYTES: usize = 256 * 1024;

/// The blobs of one work dir. Cheap to clone; several processes may share the directory.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// `<work>/blobs/sha256`
    root: PathBuf,
    /// Removed when the last clone goes. Declared before the lock: fields are dropped in this order, and an unlocked
    /// directory may be removed by others at the same time.
    temp: TempDir,
    /// What may be written.
    disk: Disk,
    /// Holds the lock on `temp`; `None` where the file system has no locks.
    _lock: Option<File>,
}

/// A blob being written. Dropped before [`BlobWriter::publish`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    file: BufWriter<NamedTempFile>,
    identity: Identity,
    bytes: u64,
    store: Store,
    /// Those who read behind it.
    followed: Option<growing::Teller>,
}

/// How a blob being written gets its digest.
#[derive(Debug)]
enum Identity {
    Hashed(Hasher),
    /// Whoever writes it has it from a stream that verifies itself.
    Verified(BlobDigest),
}

impl Write for BlobWriter {
    /// Fails with an error that holds a [`StoreError`] and keeps the kind of the disk's own.
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        // Before, so that nothing passes a budget; what is not written of it is found at the next measurement.
        self.store.inner.disk.take(buf.len() as u64).map_err(|error| self.typed("write", error))?;
        match self.file.write(buf) {
            Ok(written) => {
                if let Identity::Hashed(hasher) = &mut self.identity {
                    hasher.update(&buf[..written]);
                }
                self.bytes += written as u64;
                self.tell();
                Ok(written)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => Err(self.typed("write", error).into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|error| self.typed("write", error))?;
        self.tell();
        Ok(())
    }
}

impl BlobWriter {
    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Lets somebody read what has been written while more is.
    ///
    /// # Errors
    /// If the process has no descriptor left.
    pub fn follow(&mut self) -> Result<Growing, StoreError> {
        let file = self.file.get_ref().as_file().try_clone().map_err(|error| self.typed("open", error))?;
        let (teller, growing) = growing::Teller::new(file);
        self.followed = Some(teller);
        self.tell();
        Ok(growing)
    }

    /// Tells followers how much is in the file and not only in the buffer before it.
    fn tell(&self) {
        if let Some(teller) = &self.followed {
            teller.grown(self.bytes - self.file.buffer().len() as u64);
        }
    }

    /// Ends the blob, checks its digest if one is expected, and gives it its name. Returns digest and size in bytes.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`], or what the disk says. The blob is gone then.
    pub fn publish(mut self, expected: Option<BlobDigest>) -> Result<(BlobDigest, u64), StoreError> {
        if let Err(error) = self.file.flush() {
            return Err(self.typed("write", error));
        }
        let Self { file, identity, bytes, store, followed } = self;
        let actual = match identity {
            Identity::Hashed(hasher) => BlobDigest(hasher.finish()),
            Identity::Verified(digest) => digest,
        };
        if let Some(expected) = expected
            && expected != actual
        {
            return Err(StoreError::WrongDigest { expected, actual, bytes });
        }
        let file = file.into_parts().0;
        let path = store.path(actual);
        file.as_file()
            .set_permissions(fs::Permissions::from_mode(0o444))
            .map_err(|error| StoreError::io("seal", file.path(), error))?;
        file.persist(&path).map_err(|error| StoreError::io("publish", &path, error.error))?;
        if let Some(teller) = followed {
            teller.whole(bytes);
        }
        Ok((actual, bytes))
    }

    fn typed(&self, action: &'static str, error: io::Error) -> StoreError {
        StoreError::io(action, self.file.get_ref().path(), error)
    }
}

impl Store {
    /// Opens or creates the store below `work_dir`, and removes what dead processes left in `tmp`.
    ///
    /// # Errors
    /// If the directories cannot be made or written; [`StoreError::ReadOnly`] and [`StoreError::NoSpace`] are told apart.
    pub fn open(work_dir: &Path) -> Result<Self, StoreError> {
        Self::open_within(work_dir, Disk::default())
    }

    /// The same; what is written counts.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open_within(work_dir: &Path, disk: Disk) -> Result<Self, StoreError> {
        let root = work_dir.join("blobs/sha256");
        let temp_root = work_dir.join("tmp");
        for directory in [&root, &temp_root] {
            fs::create_dir_all(directory).map_err(|error| StoreError::io("create", directory, error))?;
        }
        let gate_path = temp_root.join("lock");
        let gate = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&gate_path)
            .map_err(|error| StoreError::io("open", &gate_path, error))?;
        // Held until the end of this function: between making a directory and locking it, it must not look dead.
        let locks_work = lock(&gate, FlockOperation::LockExclusive);
        if locks_work {
            remove_leftovers(&temp_root);
        }
        let temp = tempfile::Builder::new()
            .prefix("")
            .tempdir_in(&temp_root)
            .map_err(|error| StoreError::io("create a directory in", &temp_root, error))?;
        let lock_file = if locks_work {
            let directory = File::open(temp.path()).map_err(|error| StoreError::io("open", temp.path(), error))?;
            lock(&directory, FlockOperation::NonBlockingLockExclusive).then_some(directory)
        } else {
            None
        };
        Ok(Self { inner: Arc::new(Inner { root, temp, disk, _lock: lock_file }) })
    }

    /// Directory for unfinished files, on the same file system as the blobs. It belongs to this store alone and is
    /// removed with its last clone.
    pub fn temp_dir(&self) -> PathBuf {
        self.inner.temp.path().to_owned()
    }

    /// Size in bytes of a blob that is here.
    pub fn size(&self, digest: BlobDigest) -> Option<u64> {
        let metadata = fs::metadata(self.path(digest)).ok().filter(fs::Metadata::is_file)?;
        // What a crash of the machine leaves of a blob that had not reached the disk.
        let torn = metadata.len() == 0 && digest.0 != Sha256::of(b"");
        (!torn).then_some(metadata.len())
    }

    /// Whether the blob is here with the length that its descriptor states.
    pub fn contains(&self, descriptor: &Descriptor) -> bool {
        self.size(descriptor.digest) == Some(descriptor.size)
    }

    /// Opens a blob that is here.
    ///
    /// # Errors
    /// [`StoreError::Missing`] if it is not here, or why it cannot be read.
    pub fn blob(&self, digest: BlobDigest) -> Result<File, StoreError> {
        let path = self.path(digest);
        File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { digest },
            _ => StoreError::io("read", &path, error),
        })
    }

    /// Starts a blob.
    ///
    /// # Errors
    /// If no file can be made.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        self.start(Identity::Hashed(Hasher::default()))
    }

    /// Starts a blob from a stream that fails before its last byte unless it is `digest`. It is not hashed a second time,
    /// so it must be published only when that stream has ended well.
    ///
    /// # Errors
    /// If no file can be made.
    pub(crate) fn verified_writer(&self, digest: BlobDigest) -> Result<BlobWriter, StoreError> {
        self.start(Identity::Verified(digest))
    }

    fn start(&self, identity: Identity) -> Result<BlobWriter, StoreError> {
        let directory = self.inner.temp.path();
        let file =
            NamedTempFile::new_in(directory).map_err(|error| StoreError::io("create a file in", directory, error))?;
        Ok(BlobWriter {
            file: BufWriter::with_capacity(SPILL_BUFFER_BYTES, file),
            identity,
            bytes: 0,
            store: self.clone(),
            followed: None,
        })
    }

    /// Writes a small blob, unless it is here.
    ///
    /// # Errors
    /// What the disk says.
    pub fn put(&self, bytes: &[u8]) -> Result<BlobDigest, StoreError> {
        let digest = BlobDigest(Sha256::of(bytes));
        if self.size(digest) == Some(bytes.len() as u64) {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        if let Err(error) = writer.write_all(bytes) {
            return Err(StoreError::from_write(error, &self.path(digest)));
        }
        Ok(writer.publish(Some(digest))?.0)
    }

    /// All blobs that are here with their sizes in bytes, sorted by digest.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn list(&self) -> Result<Vec<(BlobDigest, u64)>, StoreError> {
        let root = &self.inner.root;
        let error = |error| StoreError::io("list", root, error);
        let mut blobs = Vec::new();
        for entry in fs::read_dir(root).map_err(error)? {
            let name = entry.map_err(error)?.file_name();
            let digest = name.to_str().and_then(Sha256::from_hex).map(BlobDigest);
            blobs.extend(digest.and_then(|digest| Some((digest, self.size(digest)?))));
        }
        blobs.sort_unstable();
        Ok(blobs)
    }

    /// Removes a blob; readers that have it open keep it. No error if it is not here.
    ///
    /// # Errors
    /// What the disk says.
    pub fn remove(&self, digest: BlobDigest) -> Result<(), StoreError> {
        let path = self.path(digest);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(StoreError::io("remove", &path, error)),
            _ => Ok(()),
        }
    }

    /// Path of a blob, whether it is here or not.
    pub fn path(&self, digest: BlobDigest) -> PathBuf {
        self.inner.root.join(digest.to_hex())
    }
}

/// Whether the lock was taken; `false` where somebody holds it (non-blocking) or locks do not work.
fn lock(file: &File, operation: FlockOperation) -> bool {
    loop {
        match rustix::fs::flock(file, operation) {
            Ok(()) => return true,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Removes directories whose lock nobody holds. What cannot be removed stays: it costs space, not correctness.
fn remove_leftovers(temp_root: &Path) {
    let entries = match fs::read_dir(temp_root) {
        Ok(entries) => entries,
        Err(error) => return tracing::debug!(%error, "leftovers cannot be listed"),
    };
    for path in entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()) {
        let dead = File::open(&path).is_ok_and(|directory| lock(&directory, FlockOperation::NonBlockingLockExclusive));
        if dead && let Err(error) = fs::remove_dir_all(&path) {
            tracing::debug!(path = %path.display(), %error, "a leftover cannot be removed");
        }
    }
}

#[cfg(test)]
mod tests;
