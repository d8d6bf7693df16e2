//! Why a base image could not be had.

use std::io;
use std::path::PathBuf;

use crate::hint::Hint;
use crate::oci::{BlobDigest, MediaType, Platform, ReferenceParseError};
use crate::registry::RegistryError;
use crate::store::StoreError;

/// Why a base image could not be had. Texts hold the words that BuildKit uses.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// The name is not an image reference.
    #[error("failed to parse image name `{name}`")]
    BadReference {
        /// As given.
        name: String,
        /// Why.
        source: ReferenceParseError,
    },
    /// The registry does not give it.
    #[error("failed to resolve source metadata for {reference}")]
    Resolve {
        /// Normalised name.
        reference: String,
        /// Why.
        source: Box<RegistryError>,
    },
    /// The index has no image for the platform.
    #[error(
        "failed to resolve source metadata for {reference}: no match for platform {platform} in manifest: not found"
    )]
    NoPlatform {
        /// Normalised name.
        reference: String,
        /// What was asked for.
        platform: Box<Platform>,
        /// What there is.
        available: Vec<Platform>,
    },
    /// Indexes within indexes without end.
    #[error("failed to resolve source metadata for {reference}: indexes are nested more than {limit} levels deep")]
    NestedIndex {
        /// Normalised name.
        reference: String,
        /// How deep we looked.
        limit: usize,
    },
    /// The name points to something that is not a runnable image.
    #[error("{reference} is not an image: its config is a `{media_type}`")]
    NotAnImage {
        /// Normalised name.
        reference: String,
        /// Media type of the config.
        media_type: MediaType,
    },
    /// A manifest or index is not valid.
    #[error("the manifest of {reference} is not valid")]
    BadManifest {
        /// Normalised name.
        reference: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The config is not a JSON object.
    #[error("the config of {reference} is not valid")]
    BadConfig {
        /// Normalised name.
        reference: String,
        /// Why.
        source: serde_json::Error,
    },
    /// Manifest and config disagree.
    #[error("the manifest of {reference} names {layers} layers, its config {diff_ids} diff_ids")]
    LayerCount {
        /// Normalised name.
        reference: String,
        /// Layers of the manifest.
        layers: usize,
        /// Valid diff_ids of the config.
        diff_ids: usize,
    },
    /// A document that an index or manifest names has another length than announced there.
    #[error("{what} {digest} of {reference} has {actual} bytes where {expected} were announced")]
    WrongSize {
        /// Normalised name.
        reference: String,
        /// `manifest` or `config`.
        what: &'static str,
        /// Its digest.
        digest: BlobDigest,
        /// Announced bytes.
        expected: u64,
        /// Bytes there are.
        actual: u64,
    },
    /// A layout directory is not usable.
    #[error("cannot use OCI layout `{}`", path.display())]
    Layout {
        /// The directory.
        path: PathBuf,
        /// Why.
        source: LayoutError,
    },
    /// A registry failed.
    #[error(transparent)]
    Registry(RegistryError),
    /// No registry may be asked: every map is empty.
    #[error("no registry is left to ask")]
    NoLocation,
    /// The work dir failed.
    #[error("cannot keep image metadata")]
    Store(#[from] StoreError),
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

/// Why a layout directory is not usable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// The name is not `path[:tag][@digest]`.
    #[error("the name is not of the form path[:tag][@sha256:…]")]
    BadName,
    /// A file is missing or cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file is not what the image-spec says.
    #[error("`{}` is not valid", path.display())]
    Parse {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another version than 1.x.
    #[error("its version is `{version}`, not 1.x")]
    Version {
        /// What it says.
        version: String,
    },
    /// No image of that name.
    #[error("{name}: not found")]
    NotFound {
        /// Tag or digest.
        name: String,
    },
    /// A manifest, index or config is too large to be one.
    #[error("{what} {digest} is larger than {limit} bytes")]
    TooLarge {
        /// `manifest` or `config`.
        what: &'static str,
        /// Its digest.
        digest: BlobDigest,
        /// The limit in bytes.
        limit: u64,
    },
    /// The bytes of a blob do not fit its name or descriptor.
    #[error("blob {expected} hashed to {actual} after {bytes} of {size} bytes")]
    WrongDigest {
        /// Its name.
        expected: BlobDigest,
        /// What the bytes hash to.
        actual: BlobDigest,
        /// Bytes there are.
        bytes: u64,
        /// Bytes that the descriptor announces.
        size: u64,
    },
}

impl SourceError {
    pub(super) fn resolve(reference: &str, source: RegistryError) -> Self {
        match source {
            RegistryError::Cancelled => Self::Cancelled,
            source => Self::Resolve { reference: reference.to_owned(), source: Box::new(source) },
        }
    }

    /// Names the image in an error about one of its parts.
    pub(super) fn while_resolving(self, reference: &str) -> Self {
        match self {
            Self::Registry(source) => Self::resolve(reference, source),
            other => other,
        }
    }

    /// Whether the place that was asked answers, and does not have the blob.
    pub fn lacks_blob(&self) -> bool {
        matches!(self, Self::Registry(RegistryError::BlobNotFound { .. } | RegistryError::NotFound { .. }))
    }

    /// Whether the image does not exist, as opposed to being out of reach.
    pub fn is_not_found(&self) -> bool {
        match self {
            Self::Resolve { source, .. } => matches!(**source, RegistryError::NotFound { .. }),
            Self::Layout { source, .. } => matches!(source, LayoutError::NotFound { .. }),
            Self::NoPlatform { .. } => true,
            _ => false,
        }
    }
}

impl Hint for SourceError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Resolve { source, .. } => source.hint(),
            Self::Registry(source) => source.hint(),
            Self::Store(source) => source.hint(),
            Self::NoPlatform { available, .. } if !available.is_empty() => {
                let names: Vec<_> = available.iter().map(ToString::to_string).collect();
                Some(format!("the image exists for {}", names.join(", ")))
            }
            Self::BadReference { .. } => Some("names have the form [registry/]repository[:tag][@digest]".to_owned()),
            _ => None,
        }
    }
}
