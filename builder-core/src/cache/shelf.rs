//! One place: looking records up, and putting them there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::FlockOperation;

use super::{CachePlace, Record};
use crate::cancel::Cancel;
use crate::event::Observer;
use crate::hint::Hint;
use crate::limits::Limits;
use crate::oci::{BlobDigest, Descriptor, ImageIndex, Sha256};
use crate::output::{self, Blobs, Export, OutputError, Pusher};
use crate::registry::{Registry, RegistryError};
use crate::source::Origin;

/// Where a layout keeps the tag of a descriptor (image-spec, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// A place that is in use by a build.
#[derive(Debug)]
pub struct Shelf {
    place: CachePlace,
    registry: Registry,
    /// What a layout had when it was first asked, by key.
    layout: OnceLock<Vec<(String, BlobDigest)>>,
}

/// Why a place could not be asked or written.
#[derive(Debug, thiserror::Error)]
#[error("cache {place}")]
pub struct CacheError {
    /// Which place.
    pub place: String,
    /// Why.
    pub source: CacheErrorKind,
}

/// What went wrong with a place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CacheErrorKind {
    /// Its registry.
    #[error(transparent)]
    Registry(Box<RegistryError>),
    /// Writing.
    #[error(transparent)]
    Output(Box<OutputError>),
    /// Its directory.
    #[error("cannot {action} `{}`", path.display())]
    Io {
        /// `read`, `lock`, …
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its index.
    #[error("`{}` is no index", path.display())]
    Index {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
}

impl CacheError {
    /// Whether the build was cancelled.
    pub fn is_cancelled(&self) -> bool {
        match &self.source {
            CacheErrorKind::Registry(error) => matches!(**error, RegistryError::Cancelled),
            CacheErrorKind::Output(error) => matches!(**error, OutputError::Cancelled),
            _ => false,
        }
    }
}

impl Hint for CacheError {
    fn hint(&self) -> Option<String> {
        match &self.source {
            CacheErrorKind::Registry(error) => error.hint(),
            CacheErrorKind::Output(error) => error.hint(),
            _ => None,
        }
    }
}

impl Shelf {
    /// Nothing is asked yet.
    pub fn new(place: CachePlace, registry: Registry) -> Self {
        Self { place, registry, layout: OnceLock::new() }
    }

    /// Where it is.
    pub fn place(&self) -> &CachePlace {
        &self.place
    }

    /// Host and port, if it is in a registry.
    pub fn registry(&self) -> Option<&str> {
        match &self.place {
            CachePlace::Registry(repository) => Some(repository.registry()),
            CachePlace::Layout(_) => None,
        }
    }

    /// Where the layers of its records are.
    pub fn origin(&self) -> Origin {
        match &self.place {
            CachePlace::Registry(repository) => Origin::Registry(vec![repository.reference().clone()]),
            CachePlace::Layout(path) => Origin::Layout(path.clone()),
        }
    }

    /// The record under `key`: one request for its manifest. What is there and no record of the step counts as absent.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn find(&self, key: Sha256, cancel: &Cancel) -> Result<Option<Record>, CacheError> {
        let manifest = match &self.place {
            CachePlace::Registry(repository) => {
                let name = repository.name(key);
                match self.registry.manifest_at(&name, &name, cancel) {
                    Ok(found) => Some(found.bytes),
                    Err(RegistryError::NotFound { .. }) => None,
                    Err(error) => return Err(self.failed(CacheErrorKind::Registry(Box::new(error)))),
                }
            }
            CachePlace::Layout(path) => self.read_layout(path, key)?,
        };
        let Some(manifest) = manifest else { return Ok(None) };
        match Record::read(key, &manifest) {
            Ok(record) => Ok(Some(record)),
            Err(error) => {
                tracing::debug!(place = %self.place, key = key.to_hex(), %error, "what is there is taken as a miss");
                Ok(None)
            }
        }
    }

    /// Puts `record` under each of `keys`, its layer first. Blobs that are there are not sent again.
    ///
    /// # Errors
    /// [`CacheError`]
    pub fn put(
        &self,
        record: &Record,
        keys: &[Sha256],
        blobs: &dyn Blobs,
        observer: &dyn Observer,
        cancel: &Cancel,
    ) -> Result<(), CacheError> {
        let image = record.image(keys);
        let images = std::slice::from_ref(&image);
        let export = |names| Export { images, index: None, names, created: None, annotations: &[] };
        let failed = |error| self.failed(CacheErrorKind::Output(Box::new(error)));
        match &self.place {
            CachePlace::Registry(repository) => {
                let names: Vec<_> = keys.iter().map(|key| repository.name(*key)).collect();
                let pusher = Pusher::new(&self.registry, blobs, Limits::default(), observer);
                pusher.publish(&export(&names), false, cancel).map(drop).map_err(failed)
            }
            CachePlace::Layout(path) => {
                let _lock = self.lock(path)?;
                // The host is never asked: a layout keeps the tag alone.
                let names: Vec<_> = keys
                    .iter()
                    .map(|key| format!("cache.invalid/step:{}", key.to_hex()).parse().expect("a valid reference"))
                    .collect();
                output::oci_directory(&export(&names), blobs, path, cancel, observer).map_err(failed)
            }
        }
    }

    fn failed(&self, source: CacheErrorKind) -> CacheError {
        CacheError { place: self.place.to_string(), source }
    }

    fn io<'a>(&'a self, action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CacheError + 'a {
        move |source| self.failed(CacheErrorKind::Io { action, path: path.to_owned(), source })
    }

    /// Holds off other writers of a layout, as [`output::oci_directory`] itself does not.
    fn lock(&self, path: &Path) -> Result<File, CacheError> {
        fs::create_dir_all(path).map_err(self.io("create", path))?;
        let name = path.join(".tmp-slipway-cache.lock");
        let file =
            File::options().create(true).truncate(false).write(true).open(&name).map_err(self.io("open", &name))?;
        match rustix::fs::flock(&file, FlockOperation::LockExclusive) {
            // A file system without locks: a lost name is a miss of the next build, nothing worse.
            Ok(()) | Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOLCK) => {
                Ok(file)
            }
            Err(error) => Err(self.io("lock", &name)(error.into())),
        }
    }

    fn read_layout(&self, path: &Path, key: Sha256) -> Result<Option<Vec<u8>>, CacheError> {
        let entries = match self.layout.get() {
            Some(entries) => entries,
            None => {
                let read = self.read_index(path)?;
                self.layout.get_or_init(|| read)
            }
        };
        let key = key.to_hex();
        let Some((_, digest)) = entries.iter().find(|(name, _)| *name == key) else { return Ok(None) };
        let blob = path.join("blobs/sha256").join(digest.to_hex());
        match fs::read(&blob) {
            Ok(bytes) if BlobDigest(Sha256::of(&bytes)) == *digest => Ok(Some(bytes)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.io("read", &blob)(error)),
        }
    }

    fn read_index(&self, path: &Path) -> Result<Vec<(String, BlobDigest)>, CacheError> {
        let name = path.join("index.json");
        let bytes = match fs::read(&name) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(self.io("read", &name)(error)),
        };
        let index: ImageIndex = serde_json::from_slice(&bytes)
            .map_err(|source| self.failed(CacheErrorKind::Index { path: name.clone(), source }))?;
        let named = |entry: Descriptor| Some((entry.annotations.get(REF_NAME)?.clone(), entry.digest));
        Ok(index.manifests.into_iter().filter_map(named).collect())
    }
}
