//! Content-addressed blobs under the work dir: verified, then published.
//!
//! ```text
//! <work>/blobs/sha256/<hex>   sealed blobs, never changed once named
//! <work>/tmp/                 unfinished blobs; removed at start when nobody holds them
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::oci::BlobDigest;

/// The blobs of one work dir. Cheap to clone; several processes may share the directory.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
}

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bytes are not those that were promised.
    #[error("blob {expected} hashed to {actual} after {bytes} bytes")]
    WrongDigest {
        /// What was promised.
        expected: BlobDigest,
        /// What came.
        actual: BlobDigest,
        /// How many bytes were hashed.
        bytes: u64,
    },
    /// A file could not be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `create`, `write`, `publish`, …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A blob being written. Dropped before [`BlobWriter::publish`], it leaves nothing.
#[derive(Debug)]
pub struct BlobWriter {
    _private: (),
}

impl io::Write for BlobWriter {
    fn write(&mut self, _buf: &[u8]) -> io::Result<usize> {
        todo!()
    }

    fn flush(&mut self) -> io::Result<()> {
        todo!()
    }
}

impl BlobWriter {
    /// Ends the blob, checks its digest if one is expected, and gives it its name. Returns digest and size in bytes.
    ///
    /// # Errors
    /// [`StoreError::WrongDigest`], or what the disk says.
    pub fn publish(self, _expected: Option<BlobDigest>) -> Result<(BlobDigest, u64), StoreError> {
        todo!()
    }
}

impl Store {
    /// Opens or creates the store below `work_dir`.
    ///
    /// # Errors
    /// If the directories cannot be made or written.
    pub fn open(_work_dir: &Path) -> Result<Self, StoreError> {
        todo!()
    }

    /// Directory for unfinished files, on the same file system as the blobs.
    pub fn temp_dir(&self) -> PathBuf {
        todo!()
    }

    /// Size in bytes of a blob that is here.
    pub fn size(&self, _digest: BlobDigest) -> Option<u64> {
        todo!()
    }

    /// Opens a blob that is here.
    ///
    /// # Errors
    /// If it is not here or cannot be read.
    pub fn blob(&self, _digest: BlobDigest) -> Result<File, StoreError> {
        todo!()
    }

    /// Starts a blob.
    ///
    /// # Errors
    /// If no file can be made.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        todo!()
    }

    /// Writes a small blob.
    ///
    /// # Errors
    /// What the disk says.
    pub fn put(&self, _bytes: &[u8]) -> Result<BlobDigest, StoreError> {
        todo!()
    }

    /// Path of a blob, whether it is here or not.
    pub fn path(&self, digest: BlobDigest) -> PathBuf {
        self.root.join(digest.to_hex())
    }
}
