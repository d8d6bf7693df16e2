//! Changes → deterministic tar → compressor → two hashes → spill file → [`SealedLayer`], in one pass.
//!
//! Architecture invariant: where a layer is pushed is not known here, and no layer is ever whole in memory.

use std::path::PathBuf;

use crate::cancel::Cancel;
use crate::limits::Limits;
use crate::oci::{Descriptor, DiffId};
use crate::rootfs::Rootfs;
use crate::snapshot::Change;
use crate::store::Store;

/// How layers are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Compression {
    /// Plain tar.
    None,
    /// gzip at a level from 1 to 9; the default is chosen by measurement.
    Gzip {
        /// 1 (fast) to 9.
        level: u32,
    },
    /// zstd at a level from 1 to 19.
    Zstd {
        /// 1 (fast) to 19.
        level: i32,
    },
}

/// What the layer writer is told apart from the changes.
#[derive(Debug, Clone, Copy)]
pub struct LayerOptions {
    /// Compression.
    pub compression: Compression,
    /// Docker media types instead of OCI ones.
    pub docker_media_types: bool,
    /// Clamp mtimes to this time (`rewrite-timestamp`), seconds since 1970.
    pub clamp_mtime: Option<i64>,
}

/// A layer whose digests are known and whose blob is in the store.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SealedLayer {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// The compressed blob.
    pub blob: Descriptor,
    /// Length of the tar in bytes.
    pub uncompressed_bytes: u64,
    /// Entries in the tar.
    pub entries: u64,
}

/// Why a layer could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// A file of the tree could not be read.
    #[error("cannot read `{}` for the layer", path.display())]
    Read {
        /// Path in the tree.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file became shorter while it was read.
    #[error("`{}` changed while it was read: expected {expected} bytes, got {actual}", path.display())]
    Changed {
        /// Path in the tree.
        path: PathBuf,
        /// Length when listed.
        expected: u64,
        /// Length when read.
        actual: u64,
    },
    /// The spill file could not be written.
    #[error("cannot write the layer")]
    Store(#[from] crate::store::StoreError),
    /// The stream could not be written.
    #[error("cannot write the layer")]
    Write(#[source] std::io::Error),
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

/// Writes `changes` of `rootfs` as one layer into `store`. `progress` gets the bytes of tar done so far. The same changes give the same bytes for any
/// number of threads.
///
/// # Errors
/// [`LayerError`]; nothing is left in the store then.
pub fn write(
    _changes: &[Change],
    _rootfs: &Rootfs,
    _store: &Store,
    _options: &LayerOptions,
    _limits: &Limits,
    _cancel: &Cancel,
    _progress: &(dyn Fn(u64) + Sync),
) -> Result<SealedLayer, LayerError> {
    todo!()
}
