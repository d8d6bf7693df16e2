//! [`Image`] → registry, OCI layout, OCI or docker archive; root filesystem → directory or tar of files.
//!
//! [`Target`] is what was asked for. An [`Export`] is what there is: one image, or several under an index. Its blobs come from
//! wherever [`Blobs`] finds them, so a base layer goes from one registry to another without touching the disk. Everything is
//! checked on the way, and nothing has its final name before it is whole: layers before config before manifest before tags.
//!
//! Architecture invariant: how an image was built is not known here.
//!
//! # Limitations
//! Attestations are not written. Foreign layers (with URLs) are left where they are.

mod archive;
mod files;
mod layout;
mod push;
mod recompress;
mod saved;
mod stream;
mod target;

use std::io::{self, Read};
use std::path::PathBuf;

pub use archive::{docker_archive, docker_save, oci_archive};
pub use files::{FilesOptions, PlatformFiles, directory, tar};
pub use layout::{oci_directory, only_oci_directory};
pub use push::{PushOptions, Pusher};
pub use recompress::{needs_recompression, recompress};
pub use saved::{Saved, SavedError};
pub use stream::GrowingLayer;
pub use target::{
    Annotation, AnnotationError, AnnotationErrorKind, AnnotationLevel, Destination, Exporter, Target, TargetError,
    TargetErrorKind,
};

use crate::hint::Hint;
use crate::image::Image;
use crate::layer::LayerError;
use crate::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};
use crate::registry::RegistryError;
use crate::store::{Store, StoreError};

/// Where the blobs of an image are.
pub trait Blobs: Sync {
    /// Opens a blob. Whoever reads it checks the digest.
    ///
    /// # Errors
    /// Whatever stands in the way.
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>>;

    /// A repository that has the blob, from which a registry may be able to mount it.
    fn origin(&self, descriptor: &Descriptor) -> Option<Reference> {
        let _ = descriptor;
        None
    }
}

impl Blobs for Store {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        Ok(Box::new(self.blob(descriptor.digest).map_err(io::Error::other)?))
    }
}

/// The bytes of an image index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// As they are hashed.
    pub bytes: Vec<u8>,
    /// OCI index or Docker manifest list.
    pub media_type: MediaType,
    /// Annotations of its descriptor in a layout.
    pub annotations: Vec<(String, String)>,
}

/// An image to write.
#[derive(Debug, Clone, Copy)]
pub struct Export<'a> {
    /// One image a platform, in the order of the index.
    pub images: &'a [Image],
    /// The index above them; needed if there are several.
    pub index: Option<&'a Index>,
    /// Names that it gets.
    pub names: &'a [Reference],
    /// Time for `org.opencontainers.image.created` in a layout, as RFC 3339.
    pub created: Option<&'a str>,
    /// Annotations of the only manifest's descriptor in a layout; those of an index are in [`Index`].
    pub annotations: &'a [(String, String)],
}

impl Export<'_> {
    /// What a name points to: the index, or the only manifest.
    pub fn root(&self) -> Option<Descriptor> {
        match self.index {
            Some(index) => {
                let digest = BlobDigest(Sha256::of(&index.bytes));
                let mut descriptor = Descriptor::new(index.media_type.clone(), digest, index.bytes.len() as u64);
                descriptor.annotations = index.annotations.iter().cloned().collect();
                Some(descriptor)
            }
            None => {
                let image = self.images.first()?;
                let mut descriptor = manifest_descriptor(image);
                descriptor.platform = Some(image.platform.clone());
                descriptor.annotations = self.annotations.iter().cloned().collect();
                Some(descriptor)
            }
        }
    }

    /// Every blob once: layers, then configs, then manifests, then the index.
    fn parts(&self) -> Vec<Part<'_>> {
        let layers = self.images.iter().flat_map(|image| &image.layers);
        let layers = layers.filter(|layer| layer.blob.urls.is_empty()).map(|layer| Part::Blob(layer.blob.clone()));
        let configs =
            self.images.iter().map(|image| Part::Bytes(image.config_descriptor.clone(), image.config.as_slice()));
        let manifests =
            self.images.iter().map(|image| Part::Bytes(manifest_descriptor(image), image.manifest.as_slice()));
        let index = self.index.and_then(|index| Some(Part::Bytes(self.root()?, index.bytes.as_slice())));
        let mut parts: Vec<Part<'_>> = Vec::new();
        for part in layers.chain(configs).chain(manifests).chain(index) {
            if !parts.iter().any(|other| other.descriptor().digest == part.descriptor().digest) {
                parts.push(part);
            }
        }
        parts
    }
}

fn manifest_descriptor(image: &Image) -> Descriptor {
    Descriptor::new(image.manifest_type.clone(), image.digest, image.manifest.len() as u64)
}

/// One blob of an export.
enum Part<'a> {
    /// It is somewhere.
    Blob(Descriptor),
    /// It is here.
    Bytes(Descriptor, &'a [u8]),
}

impl Part<'_> {
    fn descriptor(&self) -> &Descriptor {
        match self {
            Self::Blob(descriptor) | Self::Bytes(descriptor, _) => descriptor,
        }
    }
}

/// Why an output could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OutputError {
    /// A registry refused, or could not be reached.
    #[error("cannot push {reference}")]
    Registry {
        /// To where.
        reference: Reference,
        /// Why.
        source: Box<RegistryError>,
    },
    /// A file could not be read or written.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `create`, `write`, …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard output could not be written.
    #[error("cannot write to standard output")]
    Stdout(#[source] io::Error),
    /// A blob could not be read.
    #[error("cannot read blob {digest}")]
    Blob {
        /// Which.
        digest: BlobDigest,
        /// Why.
        source: io::Error,
    },
    /// A blob is not what its digest says.
    #[error("blob {expected} hashed to {actual} after {bytes} bytes")]
    WrongDigest {
        /// What it should be.
        expected: BlobDigest,
        /// What it is.
        actual: BlobDigest,
        /// How many bytes there were.
        bytes: u64,
    },
    /// A layer in another form is not the layer of the config.
    #[error("layer {expected} unpacked to a tar with diff_id {actual}")]
    WrongDiffId {
        /// What the config says.
        expected: crate::oci::DiffId,
        /// What came.
        actual: crate::oci::DiffId,
    },
    /// The files could not be put into a tar, or a layer could not be compressed anew.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tree could not be listed.
    #[error(transparent)]
    List(#[from] crate::rootfs::ListError),
    /// The files of the tree could not be listed as changes.
    #[error(transparent)]
    Changes(#[from] crate::snapshot::SnapshotError),
    /// The directory holds something that is no OCI layout.
    #[error("`{}` is not an OCI layout: {reason}", path.display())]
    NotALayout {
        /// The directory.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A file shall be written where a directory is, or the other way round.
    #[error("cannot write to `{}`: {reason}", path.display())]
    Place {
        /// Where to.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The docker format has no room for several platforms (checklist X-03).
    #[error("docker exporter does not currently support exporting manifest lists")]
    ManifestList,
    /// Two platforms have different files of one name (checklist X-04).
    #[error("cannot overwrite {} from {second} with {first} when split option is disabled", path.display())]
    PlatformsDiffer {
        /// The file.
        path: PathBuf,
        /// Whose file is there.
        first: String,
        /// Whose file differs.
        second: String,
    },
    /// There is nothing to write.
    #[error("there is no image to write")]
    NoImage,
    /// A push needs a name.
    #[error("there is no name to push to")]
    NoName,
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for OutputError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Registry { source, .. } => source.hint(),
            Self::NoName => Some("name it with --tag or name=".to_owned()),
            Self::ManifestList => Some("type=oci has room for several platforms".to_owned()),
            Self::PlatformsDiffer { .. } => Some("leave platform-split out, or set it to true".to_owned()),
            Self::NotALayout { .. } => Some("name a new or empty directory, or one that slipway wrote".to_owned()),
            Self::Io { source, .. } | Self::Stdout(source)
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                Some("where the output goes is no space left: free some there, or name another place".to_owned())
            }
            _ => None,
        }
    }
}

impl OutputError {
    fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}
