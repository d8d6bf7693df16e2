//! An image that was saved: a tar as `docker save` writes it, or an OCI layout; to be pushed as it is.
//!
//! Blobs stay where they are and are read from there. Only a layer that is not compressed in the tar is written once more,
//! compressed, into the store: registries are not given plain tars.
//!
//! # Limitations
//! The tar itself must not be compressed, since its blobs are read from their places in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Blobs, OutputError, recompress};
use crate::cancel::Cancel;
use crate::hint::Hint;
use crate::image::{Image, ImageLayer};
use crate::layer::{Compression, LayerOptions};
use crate::limits::Limits;
use crate::oci::{
    BlobDigest, Descriptor, Hasher, ImageConfig, ImageIndex, ImageManifest, MediaType, Sha256, canonical_json,
};
use crate::store::Store;

/// Largest document that is read, in bytes.
const DOCUMENT_BYTES: u64 = 16 << 20;

/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 128 * 1024;

/// An image that was saved.
#[derive(Debug)]
pub struct Saved {
    /// The image.
    pub image: Image,
    places: BTreeMap<BlobDigest, Place>,
}

/// Where a blob is.
#[derive(Debug, Clone)]
struct Place {
    path: PathBuf,
    offset: u64,
    size: u64,
}

/// Why a saved image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("`{}` is neither an image as `docker save` writes it nor an OCI layout: {reason}", path.display())]
    NotAnImage {
        /// Which.
        path: PathBuf,
        /// What is missing.
        reason: &'static str,
    },
    /// There are several, or none.
    #[error("`{}` holds {count} images where one is needed", path.display())]
    NotOne {
        /// Where.
        path: PathBuf,
        /// How many there are.
        count: usize,
    },
    /// A document is not what it should be.
    #[error("{what} in `{}` is not valid", path.display())]
    Document {
        /// Where.
        path: PathBuf,
        /// Such as `manifest.json`.
        what: String,
        /// Why.
        source: serde_json::Error,
    },
    /// What is named is not there.
    #[error("`{name}` is not in `{}`", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
        /// What.
        name: String,
    },
    /// As many layers as the config says there must be.
    #[error("`{}` has {layers} layers where its config names {diff_ids}", path.display())]
    Layers {
        /// Where.
        path: PathBuf,
        /// Of the manifest.
        layers: usize,
        /// Of the config.
        diff_ids: usize,
    },
    /// A layer cannot be compressed.
    #[error(transparent)]
    Output(#[from] OutputError),
}

impl Hint for SavedError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotAnImage { .. } => Some("write one with --tar-path or --oci-layout-path".to_owned()),
            Self::NotOne { .. } => Some("save one image alone".to_owned()),
            _ => None,
        }
    }
}

impl Saved {
    /// Reads the image at `path`: a file is a tar, a directory a layout. `store` is asked for where a layer has to be
    /// compressed.
    ///
    /// # Errors
    /// [`SavedError`]
    pub fn open(
        path: &Path,
        store: &dyn Fn() -> Result<Store, crate::store::StoreError>,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Self, SavedError> {
        let metadata = std::fs::metadata(path).map_err(read(path))?;
        if metadata.is_dir() { Self::layout(path) } else { Self::tar(path, store, limits, cancel) }
    }

    fn layout(path: &Path) -> Result<Self, SavedError> {
        let index_path = path.join("index.json");
        let not_an_image = |reason| SavedError::NotAnImage { path: path.to_owned(), reason };
        if !index_path.is_file() {
            return Err(not_an_image("it has no index.json"));
        }
        let index: ImageIndex = document(path, "index.json", &small(&index_path)?)?;
        let [descriptor] = &index.manifests[..] else {
            return Err(SavedError::NotOne { path: path.to_owned(), count: index.manifests.len() });
        };
        let blob = |digest: BlobDigest| path.join("blobs/sha256").join(digest.to_hex());
        let bytes = small(&blob(descriptor.digest))?;
        if descriptor.media_type.is_index() {
            let inner: ImageIndex = document(path, "its index", &bytes)?;
            return Err(SavedError::NotOne { path: path.to_owned(), count: inner.manifests.len() });
        }
        let manifest: ImageManifest = document(path, "its manifest", &bytes)?;
        let config = small(&blob(manifest.config.digest))?;
        let mut places = BTreeMap::new();
        for layer in manifest.layers.iter().filter(|layer| layer.urls.is_empty()) {
            let place = Place { path: blob(layer.digest), offset: 0, size: layer.size };
            if !place.path.is_file() {
                return Err(SavedError::Missing { path: path.to_owned(), name: layer.digest.to_string() });
            }
            places.insert(layer.digest, place);
        }
        Self::new(path, descriptor.media_type.clone(), bytes, &manifest, config, places)
    }

    fn tar(
        path: &Path,
        store: &dyn Fn() -> Result<Store, crate::store::StoreError>,
        limits: &Limits,
        cancel: &Cancel,
    ) -> Result<Self, SavedError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Entry {
            config: String,
            layers: Vec<String>,
        }
        let entries = entries(path)?;
        let find = |name: &str| {
            let missing = || SavedError::Missing { path: path.to_owned(), name: name.to_owned() };
            entries.get(name).ok_or_else(missing)
        };
        let Ok(place) = find("manifest.json") else {
            return Err(SavedError::NotAnImage { path: path.to_owned(), reason: "it has no manifest.json" });
        };
        let images: Vec<Entry> = document(path, "manifest.json", &place.bytes()?)?;
        let [entry] = &images[..] else {
            return Err(SavedError::NotOne { path: path.to_owned(), count: images.len() });
        };
        let config = find(&entry.config)?.bytes()?;
        let parsed = ImageConfig::from_json(&config).map_err(|source| SavedError::Document {
            path: path.to_owned(),
            what: entry.config.clone(),
            source,
        })?;
        let diff_ids = parsed.diff_ids();
        if diff_ids.len() != entry.layers.len() {
            let (layers, diff_ids) = (entry.layers.len(), diff_ids.len());
            return Err(SavedError::Layers { path: path.to_owned(), layers, diff_ids });
        }
        let mut places = BTreeMap::new();
        let mut layers = Vec::new();
        for (name, diff_id) in entry.layers.iter().zip(diff_ids) {
            let place = find(name)?.clone();
            let (digest, media_type) = place.hash().map_err(read(path))?;
            let mut blob = Descriptor::new(media_type, digest, place.size);
            places.insert(digest, place);
            if blob.media_type == MediaType::DockerLayer {
                let store = store().map_err(OutputError::from)?;
                let options =
                    LayerOptions { compression: Compression::default(), docker_media_types: true, clamp_mtime: None };
                let layer = ImageLayer { diff_id, blob };
                let packed = recompress(&layer, &Files(&places), &store, &options, limits, cancel, &|_| {})?;
                blob = packed.blob;
                let place = Place { path: store.path(blob.digest), offset: 0, size: blob.size };
                places.insert(blob.digest, place);
            }
            layers.push(blob);
        }
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(MediaType::DockerManifest),
            artifact_type: None,
            config: Descriptor::new(MediaType::DockerConfig, BlobDigest(Sha256::of(&config)), config.len() as u64),
            layers,
            annotations: BTreeMap::new(),
        };
        let bytes = canonical_json(&manifest).expect("all keys are strings");
        Self::new(path, MediaType::DockerManifest, bytes, &manifest, config, places)
    }

    fn new(
        path: &Path,
        media_type: MediaType,
        bytes: Vec<u8>,
        manifest: &ImageManifest,
        config: Vec<u8>,
        places: BTreeMap<BlobDigest, Place>,
    ) -> Result<Self, SavedError> {
        let image = Image::from_bytes(media_type, bytes, config).map_err(|source| SavedError::Document {
            path: path.to_owned(),
            what: "the image".to_owned(),
            source,
        })?;
        if image.layers.len() != manifest.layers.len() {
            let (layers, diff_ids) = (manifest.layers.len(), image.layers.len());
            return Err(SavedError::Layers { path: path.to_owned(), layers, diff_ids });
        }
        Ok(Self { image, places })
    }
}

impl Blobs for Saved {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        open(&self.places, descriptor)
    }
}

/// Blobs at their places.
struct Files<'a>(&'a BTreeMap<BlobDigest, Place>);

impl Blobs for Files<'_> {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + '_>> {
        open(self.0, descriptor)
    }
}

fn open(places: &BTreeMap<BlobDigest, Place>, descriptor: &Descriptor) -> io::Result<Box<dyn Read + Send + 'static>> {
    let place = places.get(&descriptor.digest).ok_or(io::ErrorKind::NotFound)?;
    Ok(Box::new(place.open()?))
}

impl Place {
    fn open(&self) -> io::Result<io::Take<File>> {
        let mut file = File::open(&self.path)?;
        file.seek(SeekFrom::Start(self.offset))?;
        Ok(file.take(self.size))
    }

    fn bytes(&self) -> Result<Vec<u8>, SavedError> {
        let mut bytes = Vec::new();
        let mut read_all = || self.open()?.take(DOCUMENT_BYTES).read_to_end(&mut bytes);
        read_all().map_err(read(&self.path))?;
        Ok(bytes)
    }

    /// Digest, and the type that the first bytes tell.
    fn hash(&self) -> io::Result<(BlobDigest, MediaType)> {
        let mut from = self.open()?;
        let mut buffer = vec![0; HASH_BYTES];
        let mut hasher = Hasher::default();
        let mut media_type = None;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            let start = &buffer[..count];
            media_type.get_or_insert(match start {
                [0x1f, 0x8b, ..] => MediaType::DockerLayerGzip,
                [0x28, 0xb5, 0x2f, 0xfd, ..] => MediaType::OciLayerZstd,
                _ => MediaType::DockerLayer,
            });
            hasher.update(start);
        }
        Ok((BlobDigest(hasher.finish()), media_type.unwrap_or(MediaType::DockerLayer)))
    }
}

/// The regular files of a tar, and what links in it lead to.
fn entries(path: &Path) -> Result<BTreeMap<String, Place>, SavedError> {
    let file = File::open(path).map_err(read(path))?;
    let mut archive = tar::Archive::new(file);
    let mut places = BTreeMap::new();
    let mut links: Vec<(String, String)> = Vec::new();
    for entry in archive.entries_with_seek().map_err(read(path))? {
        let entry = entry.map_err(read(path))?;
        let name = entry.path().map_err(read(path))?.to_string_lossy().into_owned();
        if entry.header().entry_type().is_file() {
            let place = Place { path: path.to_owned(), offset: entry.raw_file_position(), size: entry.size() };
            places.insert(name, place);
        } else if let Some(target) = entry.link_name().map_err(read(path))? {
            // Older versions of Docker save a layer that two images share once, and links to it.
            let target = Path::new(&name).parent().unwrap_or(Path::new("")).join(target);
            links.push((name, plain(&target)));
        }
    }
    for (name, target) in links {
        if let Some(place) = places.get(&target).cloned() {
            places.insert(name, place);
        }
    }
    Ok(places)
}

/// A path within a tar without `.` and `..`.
fn plain(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for part in path.components() {
        match part {
            std::path::Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => _ = parts.pop(),
            _ => {}
        }
    }
    parts.join("/")
}

fn small(path: &Path) -> Result<Vec<u8>, SavedError> {
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(DOCUMENT_BYTES).read_to_end(&mut bytes)).map_err(read(path))?;
    Ok(bytes)
}

fn document<T: serde::de::DeserializeOwned>(path: &Path, what: &str, bytes: &[u8]) -> Result<T, SavedError> {
    serde_json::from_slice(bytes).map_err(|source| SavedError::Document {
        path: path.to_owned(),
        what: what.to_owned(),
        source,
    })
}

fn read(path: &Path) -> impl Fn(io::Error) -> SavedError {
    let path = path.to_owned();
    move |source| SavedError::Read { path: path.clone(), source }
}
