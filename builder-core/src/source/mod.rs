//! Name + platform → resolved base image, from a registry or a layout directory; and its blobs as verified streams.
//!
//! A name is looked up once per [`Sources`]: every stage that says `FROM busybox` gets the same digest, whatever the registry
//! does meanwhile, and of several threads that ask at once only one asks the registry. Manifests and configs are kept in
//! the store, so that a name pinned by digest needs no network the next time.
//!
//! Architecture invariant: instructions are not known here, nor what happens to a layer's bytes.
//!
//! # Limitations
//! In a layout directory, a tag is the annotation `org.opencontainers.image.ref.name` only. Nothing is ever evicted from the store.

mod error;
mod layout;
mod once;
mod select;
mod stream;
mod warmed;

use std::io::{Read, Seek as _, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

pub use self::error::{LayoutError, SourceError};
pub use self::layout::LayoutName;
use self::once::OnceMap;
use self::stream::{Counting, Keeping, Verified};
pub use self::warmed::{WarmError, Warmed, Warmth};
use crate::cancel::Cancel;
use crate::oci::{BlobDigest, Descriptor, ImageConfig, ImageManifest, MediaType, Platform, Reference};
use crate::registry::{Registry, RegistryError};
use crate::rootfs::{LayerRef, LayerSource};
use crate::store::Store;

/// Everything that base images come from.
#[derive(Debug)]
pub struct Sources {
    registry: Registry,
    store: Store,
    warmed: Option<Warmed>,
    named: OnceMap<String, Named>,
    resolved: OnceMap<(String, Platform), ResolvedImage>,
}

/// A base image, down to the digests of its layers.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolvedImage {
    /// Normalised name as errors and events show it: `docker.io/library/busybox:1`.
    pub reference: String,
    /// The name with the digest that was found.
    pub pinned: String,
    /// Digest of what the name points to: an index or a manifest.
    pub digest: BlobDigest,
    /// Digest of the manifest for the platform; the same as `digest` if the name points to no index.
    pub manifest_digest: BlobDigest,
    /// The manifest.
    pub manifest: ImageManifest,
    /// The config.
    pub config: ImageConfig,
    /// The config's bytes as stored.
    pub config_bytes: Vec<u8>,
    /// The layers, lowest first.
    pub layers: Vec<LayerRef>,
    /// Where the blobs are.
    pub origin: Origin,
}

impl ResolvedImage {
    /// A repository that has the blobs, from which a push into another repository of that registry can mount them.
    pub fn mount_from(&self) -> Option<&Reference> {
        match &self.origin {
            Origin::Registry(locations) => locations.first(),
            Origin::Layout(_) => None,
        }
    }
}

/// Where the blobs of an image are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In one of these repositories, tried in order.
    Registry(Vec<Reference>),
    /// In an OCI layout directory.
    Layout(PathBuf),
}

/// Whether a blob that is read from elsewhere stays in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is only passed through.
    Nothing,
    /// It is written to the store on the way, and published there once it is whole.
    InStore,
}

/// What a name points to.
#[derive(Debug)]
struct Named {
    reference: String,
    pinned: String,
    document: Document,
    origin: Origin,
}

/// A manifest or index.
#[derive(Debug, Clone)]
struct Document {
    bytes: Vec<u8>,
    media_type: MediaType,
    digest: BlobDigest,
}

impl Sources {
    /// Sources over `registry`; manifests and configs are kept in `store`.
    pub fn new(registry: Registry, store: Store) -> Self {
        Self { registry, store, warmed: None, named: OnceMap::default(), resolved: OnceMap::default() }
    }

    /// The same, with a directory of images that is looked into before any registry is asked for a digest.
    #[must_use]
    pub fn with_warmed(self, warmed: Option<Warmed>) -> Self {
        Self { warmed, ..self }
    }

    /// The registries underneath.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Resolves a name: an image reference, optionally after `docker-image://`, or `oci-layout://path[:tag][@digest]`.
    ///
    /// # Errors
    /// [`SourceError`]; errors are not remembered, the next call asks again.
    pub fn resolve(&self, name: &str, platform: &Platform, cancel: &Cancel) -> Result<Arc<ResolvedImage>, SourceError> {
        let key = (name.to_owned(), platform.clone());
        self.resolved.get_or_try(key, || {
            let named = self.named.get_or_try(name.to_owned(), || self.look_up(name, cancel))?;
            self.choose(&named, platform, cancel)
        })
    }

    fn look_up(&self, name: &str, cancel: &Cancel) -> Result<Named, SourceError> {
        if let Some(layout) = name.strip_prefix("oci-layout://") {
            return self.look_up_layout(layout);
        }
        let text = name.strip_prefix("docker-image://").unwrap_or(name);
        let reference: Reference =
            text.parse().map_err(|source| SourceError::BadReference { name: name.to_owned(), source })?;
        let shown = reference.to_string();
        if let Some(digest) = reference.digest()
            && let Some(bytes) = self.kept(digest).or_else(|| self.warmed_small(digest))
            && let Ok(media_type) = crate::registry::classify(None, &bytes, &reference)
        {
            let origin = Origin::Registry(self.registry.options().locations(&reference));
            let document = Document { bytes, media_type, digest };
            return Ok(Named { reference: shown.clone(), pinned: shown, document, origin });
        }
        let found =
            self.registry.manifest(&reference, cancel).map_err(|source| SourceError::resolve(&shown, source))?;
        self.store.put(&found.bytes)?;
        let document = Document { bytes: found.bytes, media_type: found.media_type, digest: found.digest };
        let pinned = reference.with_digest(document.digest).to_string();
        Ok(Named { reference: shown, pinned, document, origin: Origin::Registry(vec![found.location]) })
    }

    fn look_up_layout(&self, text: &str) -> Result<Named, SourceError> {
        let name = LayoutName::parse(text)?;
        let document = layout::top(&name, self.registry.options().metadata_bytes)?;
        let reference = format!("oci-layout://{text}");
        let pinned = format!("oci-layout://{}@{}", name.path.display(), document.digest);
        Ok(Named { reference, pinned, document, origin: Origin::Layout(name.path) })
    }

    fn choose(&self, named: &Named, platform: &Platform, cancel: &Cancel) -> Result<ResolvedImage, SourceError> {
        let reference = &named.reference;
        let fetch = |descriptor: &Descriptor, what| {
            self.small(&named.origin, descriptor, what, cancel).map_err(|error| error.while_resolving(reference))
        };
        let chosen = select::choose(reference, &named.document, platform, &fetch)?;
        let config = ImageConfig::from_json(&chosen.config)
            .map_err(|source| SourceError::BadConfig { reference: reference.clone(), source })?;
        let diff_ids = config.diff_ids();
        if diff_ids.len() != chosen.manifest.layers.len() {
            return Err(SourceError::LayerCount {
                reference: reference.clone(),
                layers: chosen.manifest.layers.len(),
                diff_ids: diff_ids.len(),
            });
        }
        let blobs = chosen.manifest.layers.iter().cloned();
        let layers = diff_ids.into_iter().zip(blobs).map(|(diff_id, blob)| LayerRef { diff_id, blob }).collect();
        Ok(ResolvedImage {
            reference: reference.clone(),
            pinned: named.pinned.clone(),
            digest: named.document.digest,
            manifest_digest: chosen.digest,
            manifest: chosen.manifest,
            config,
            config_bytes: chosen.config,
            layers,
            origin: named.origin.clone(),
        })
    }

    /// A manifest or config, from the store if it is there.
    fn small(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
        what: &'static str,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, SourceError> {
        if self.store.contains(descriptor)
            && let Some(bytes) = self.kept(descriptor.digest)
        {
            return Ok(bytes);
        }
        if let Some(bytes) = self.warmed_small(descriptor.digest) {
            self.store.put(&bytes)?;
            return Ok(bytes);
        }
        let limit = self.registry.options().metadata_bytes;
        let bytes = match origin {
            Origin::Layout(path) => layout::small(path, descriptor, what, limit)?,
            Origin::Registry(locations) => self.first(locations, |location| {
                if descriptor.media_type.is_manifest() || descriptor.media_type.is_index() {
                    let child = location.with_digest(descriptor.digest);
                    self.registry.manifest_at(&child, &child, cancel).map(|manifest| manifest.bytes)
                } else {
                    self.registry.small_blob(location, descriptor, what, cancel)
                }
            })?,
        };
        self.store.put(&bytes)?;
        Ok(bytes)
    }

    /// A small blob of the store.
    fn kept(&self, digest: BlobDigest) -> Option<Vec<u8>> {
        let size = self.store.size(digest).filter(|size| *size <= self.registry.options().metadata_bytes)?;
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        let read = self.store.blob(digest).ok()?.read_to_end(&mut bytes);
        // What the store lost in a crash is fetched again.
        read.ok().filter(|_| BlobDigest(crate::oci::Sha256::of(&bytes)) == digest).map(|_| bytes)
    }

    /// A small blob of the directory of warmed images.
    fn warmed_small(&self, digest: BlobDigest) -> Option<Vec<u8>> {
        self.warmed.as_ref()?.small(digest, self.registry.options().metadata_bytes)
    }

    /// The first location that answers well.
    fn first<T>(
        &self,
        locations: &[Reference],
        mut ask: impl FnMut(&Reference) -> Result<T, RegistryError>,
    ) -> Result<T, SourceError> {
        let mut last = None;
        for location in locations {
            match ask(location) {
                Ok(value) => return Ok(value),
                Err(RegistryError::Cancelled) => return Err(SourceError::Cancelled),
                Err(error) => last = Some(error),
            }
        }
        Err(match last {
            Some(source) => SourceError::Registry(source),
            None => SourceError::NoLocation,
        })
    }

    /// Opens a blob of `image` as a stream, from the store if it is there. The stream fails before its last byte if the bytes are
    /// not those of the descriptor, and goes on by itself where a connection was cut.
    ///
    /// # Errors
    /// [`SourceError`]
    pub fn open_blob(
        &self,
        image: &ResolvedImage,
        descriptor: &Descriptor,
        keep: Keep,
        cancel: &Cancel,
    ) -> Result<Box<dyn Read + Send>, SourceError> {
        self.open_blob_of(&image.origin, descriptor, keep, cancel)
    }

    /// A blob that lies at `origin`; otherwise as [`Sources::open_blob`].
    ///
    /// # Errors
    /// [`SourceError`]
    pub fn open_blob_of(
        &self,
        origin: &Origin,
        descriptor: &Descriptor,
        keep: Keep,
        cancel: &Cancel,
    ) -> Result<Box<dyn Read + Send>, SourceError> {
        if self.store.contains(descriptor) {
            // Verified when it was published, and only we write there.
            return Ok(Box::new(self.store.blob(descriptor.digest)?));
        }
        if let Some(file) = self.warmed.as_ref().and_then(|warmed| warmed.open(descriptor.digest)) {
            return Ok(Box::new(Verified::new(file, descriptor, cancel)));
        }
        let stream: Box<dyn Read + Send> = match origin {
            Origin::Layout(path) => Box::new(Verified::new(layout::open(path, descriptor.digest)?, descriptor, cancel)),
            Origin::Registry(locations) => {
                Box::new(self.first(locations, |location| self.registry.open_blob(location, descriptor, cancel))?)
            }
        };
        match keep {
            Keep::Nothing => Ok(stream),
            Keep::InStore => Ok(Box::new(Keeping::new(stream, &self.store, descriptor)?)),
        }
    }

    /// A blob of `image` from `offset` on, for uploads that resume; otherwise as [`Sources::open_blob`]. What begins in the
    /// middle cannot be verified: whoever receives the whole must.
    ///
    /// # Errors
    /// [`SourceError`]
    pub fn open_blob_at(
        &self,
        image: &ResolvedImage,
        descriptor: &Descriptor,
        offset: u64,
        cancel: &Cancel,
    ) -> Result<Box<dyn Read + Send>, SourceError> {
        if offset == 0 {
            return self.open_blob(image, descriptor, Keep::Nothing, cancel);
        }
        let seek = |mut file: std::fs::File, path: PathBuf| match file.seek(SeekFrom::Start(offset)) {
            Ok(_) => Ok(Box::new(file) as Box<dyn Read + Send>),
            Err(source) => Err(SourceError::Layout { path: path.clone(), source: LayoutError::Read { path, source } }),
        };
        if self.store.contains(descriptor) {
            return seek(self.store.blob(descriptor.digest)?, self.store.path(descriptor.digest));
        }
        match &image.origin {
            Origin::Layout(path) => seek(layout::open(path, descriptor.digest)?, path.clone()),
            Origin::Registry(locations) => {
                let open = |location: &Reference| self.registry.open_blob_at(location, descriptor, offset, cancel);
                Ok(Box::new(self.first(locations, open)?))
            }
        }
    }

    /// The layers of `image` for [`crate::rootfs::Trees::checkout`]. `progress` is told about each layer's blob and
    /// the bytes of it read so far, from any thread.
    pub fn layers<'a>(
        &'a self,
        image: &'a ResolvedImage,
        keep: Keep,
        progress: Arc<LayerProgress>,
        cancel: &'a Cancel,
    ) -> ImageLayers<'a> {
        ImageLayers { sources: self, image, keep, progress, cancel }
    }
}

/// Told about a blob and the bytes of it that were read so far.
pub type LayerProgress = dyn Fn(&Descriptor, u64) + Sync + Send;

/// The layers of one image as [`LayerSource`].
pub struct ImageLayers<'a> {
    sources: &'a Sources,
    image: &'a ResolvedImage,
    keep: Keep,
    progress: Arc<LayerProgress>,
    cancel: &'a Cancel,
}

impl LayerSource for ImageLayers<'_> {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        let stream = self.sources.open_blob(self.image, &layer.blob, self.keep, self.cancel)?;
        Ok(Box::new(Counting::new(stream, &layer.blob, Arc::clone(&self.progress))))
    }
}
