//! Planned config + sealed layers → config, manifest and index bytes; [`validate`].
//!
//! [`assemble`] writes one image, [`index`] the list of several platforms. The config is the base's document with what the
//! Dockerfile changed; fields that slipway does not know survive, which differs from BuildKit on purpose (checklist F-15).
//!
//! # Limitations
//! Attestations and inline cache records are not written.
//!
//! Architecture invariant: how layers were made is not known here.

mod assemble;
mod history;
mod index;
mod verify;

pub use assemble::{AssembleError, Assembly, MediaTypes, NewLayer, assemble};
pub use index::{Index, IndexError, index};
pub use verify::{ReadBlob, Violation, validate, validate_index};

use crate::oci::{BlobDigest, Descriptor, DiffId, ImageConfig, ImageManifest, MediaType, Platform};

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
    /// Puts an image together from bytes that were read elsewhere, such as a layout, without judging them: that is
    /// [`validate`]'s business. Layers without a diff_id in the config are left out.
    ///
    /// # Errors
    /// If config or manifest are no such documents.
    pub fn from_bytes(manifest_type: MediaType, manifest: Vec<u8>, config: Vec<u8>) -> serde_json::Result<Self> {
        let parsed: ImageManifest = serde_json::from_slice(&manifest)?;
        let document = ImageConfig::from_json(&config)?;
        let layers = document.diff_ids().into_iter().zip(parsed.layers);
        Ok(Self {
            digest: BlobDigest(crate::oci::Sha256::of(&manifest)),
            config,
            config_descriptor: parsed.config,
            manifest,
            manifest_type,
            layers: layers.map(|(diff_id, blob)| ImageLayer { diff_id, blob }).collect(),
            platform: document.platform(),
        })
    }

    /// The config as a document.
    ///
    /// # Errors
    /// Never for an image that slipway made.
    pub fn parsed_config(&self) -> serde_json::Result<ImageConfig> {
        ImageConfig::from_json(&self.config)
    }

    /// The descriptor of its manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.manifest_type.clone(), self.digest, self.manifest.len() as u64)
    }
}
