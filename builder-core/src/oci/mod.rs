//! Value types of the OCI specifications: digests, references, platforms, descriptors, manifests, image configs.
//!
//! Architecture invariant: nothing here does I/O, speaks HTTP or reads a file.

mod config;
mod digest;
mod json;
mod manifest;
mod platform;
mod reference;

pub use config::{HistoryEntry, ImageConfig};
pub use digest::{BlobDigest, ChainId, DiffId, DigestParseError, Hasher, Sha256};
pub use json::canonical_json;
pub(crate) use json::json_hash;
pub use manifest::{Descriptor, ImageIndex, ImageManifest, MediaType};
pub use platform::{Platform, PlatformParseError};
pub use reference::{Reference, ReferenceParseError};
