//! Planned config + sealed layers → config, manifest and index bytes; [`validate`].
//!
//! Architecture invariant: how layers were made is not known here.

use crate::oci::{BlobDigest, Descriptor, DiffId, ImageConfig, MediaType, Platform};

/// A finished image: exact bytes of config and manifest, and descriptors of the layers.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Bytes of the config.
    pub config: Vec<u8>,
    /// Its descriptor.
    pub config_descriptor: Descriptor,
    /// Bytes of the manifest.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub manifest_type: MediaType,
    /// Its digest.
    pub digest: BlobDigest,
    /// Layers, lowest first.
    pub layers: Vec<ImageLayer>,
    /// Platform.
    pub platform: Platform,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageLayer {
    /// Digest of the tar.
    pub diff_id: DiffId,
    /// The blob.
    pub blob: Descriptor,
}

/// Parsed form for callers that want to look inside.
impl Image {
    /// The config as a document.
    ///
    /// # Errors
    /// Never for an image that slipway made.
    pub fn parsed_config(&self) -> serde_json::Result<ImageConfig> {
        ImageConfig::from_json(&self.config)
    }
}
