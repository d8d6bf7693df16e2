//! Images that were fetched beforehand into a directory, which many machines may read at one time.
//!
//! ```text
//! <dir>/sha256:<hex>/oci-layout, index.json, blobs/sha256/<hex>   one image: an OCI layout, named by its manifest's digest
//! <dir>/.warming-<random>/                                        an image that is not whole yet
//! ```
//!
//! An image that is named by an index has that index among its blobs, so that a name pinned by the digest of either needs no
//! network. The time of an entry's directory is when it was fetched. Whatever is read is checked against its digest.
//!
//! # Limitations
//! What is too old is not removed until it is fetched again.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::error::SourceError;
use super::{Keep, ResolvedImage, Sources, layout};
use crate::cancel::Cancel;
use crate::oci::{BlobDigest, Descriptor, ImageIndex, MediaType, Platform, canonical_json};

/// A directory of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warmed {
    /// Where.
    pub directory: PathBuf,
    /// Entries that are older do not count.
    pub ttl: Duration,
    /// What "older" is measured from.
    pub now: SystemTime,
}

/// Why an image was not fetched into a directory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WarmError {
    /// It cannot be had.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The directory cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A blob ended early, or is not what its digest says.
    #[error("cannot fetch blob {digest}")]
    Blob {
        /// Which.
        digest: BlobDigest,
        /// Why.
        source: io::Error,
    },
}

impl crate::hint::Hint for WarmError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Source(error) => error.hint(),
            _ => None,
        }
    }
}

/// What was done about an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warmth {
    /// It was there and is young enough.
    Was(BlobDigest),
    /// It was fetched.
    Fetched(BlobDigest),
}

impl Warmed {
    /// Where the image of a manifest is kept.
    fn entry(&self, manifest: BlobDigest) -> PathBuf {
        self.directory.join(manifest.to_string())
    }

    /// Whether an entry is there, whole and young enough.
    fn counts(&self, entry: &Path) -> bool {
        let fetched = fs::metadata(entry.join("index.json")).and_then(|_| fs::metadata(entry)?.modified());
        fetched.is_ok_and(|fetched| {
            // From the future is as young as can be: clocks of several machines differ.
            self.now.duration_since(fetched).map_or(true, |age| age < self.ttl) && !self.ttl.is_zero()
        })
    }

    /// The blob, in whichever entry it is.
    pub(super) fn open(&self, digest: BlobDigest) -> Option<File> {
        let entries = fs::read_dir(&self.directory).ok()?;
        let mut entries: Vec<PathBuf> = entries
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"sha256:"))
            .map(|entry| entry.path())
            .collect();
        entries.sort();
        entries.iter().filter(|entry| self.counts(entry)).find_map(|entry| layout::open(entry, digest).ok())
    }

    /// A small blob whose digest is right.
    pub(super) fn small(&self, digest: BlobDigest, limit: u64) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut file = io::Read::take(self.open(digest)?, limit);
        io::Read::read_to_end(&mut file, &mut bytes).ok()?;
        (BlobDigest(crate::oci::Sha256::of(&bytes)) == digest).then_some(bytes)
    }

    /// Fetches an image, unless it is there and young enough and `force` is not set.
    ///
    /// # Errors
    /// [`WarmError`]; nothing is left of the attempt, and an entry that was there stays.
    pub fn fetch(
        &self,
        sources: &Sources,
        name: &str,
        platform: &Platform,
        force: bool,
        cancel: &Cancel,
    ) -> Result<Warmth, WarmError> {
        let image = sources.resolve(name, platform, cancel)?;
        let entry = self.entry(image.manifest_digest);
        if !force && self.counts(&entry) {
            return Ok(Warmth::Was(image.manifest_digest));
        }
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| WarmError::Write { path, source }
        };
        let making = tempfile::Builder::new()
            .prefix(".warming-")
            .permissions(fs::Permissions::from_mode(0o755))
            .tempdir_in(&self.directory)
            .map_err(failed(&self.directory))?;
        write(sources, &image, making.path(), cancel)?;
        let old = fs::symlink_metadata(&entry).is_ok().then(|| tempfile::tempdir_in(&self.directory));
        if let Some(old) = old {
            // It goes out of the way in one step, and then away.
            let old = old.map_err(failed(&self.directory))?;
            fs::rename(&entry, old.path().join("old")).map_err(failed(&entry))?;
        }
        match fs::rename(making.path(), &entry) {
            Ok(()) => _ = making.keep(),
            // Another one was faster.
            Err(_) if self.counts(&entry) => {}
            Err(source) => return Err(WarmError::Write { path: entry, source }),
        }
        Ok(Warmth::Fetched(image.manifest_digest))
    }
}

/// Writes the layout of one image.
fn write(sources: &Sources, image: &ResolvedImage, entry: &Path, cancel: &Cancel) -> Result<(), WarmError> {
    let blobs = entry.join("blobs/sha256");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| WarmError::Write { path, source }
    };
    fs::DirBuilder::new().recursive(true).mode(0o755).create(&blobs).map_err(failed(&blobs))?;
    let manifest = sources.kept(image.manifest_digest).ok_or(SourceError::NoLocation)?;
    let media_type = image.manifest.media_type.clone().unwrap_or(MediaType::OciManifest);
    let descriptor = Descriptor::new(media_type, image.manifest_digest, manifest.len() as u64);
    let mut small = vec![(image.manifest_digest, manifest), (image.manifest.config.digest, image.config_bytes.clone())];
    if image.digest != image.manifest_digest {
        small.push((image.digest, sources.kept(image.digest).ok_or(SourceError::NoLocation)?));
    }
    for (digest, bytes) in small {
        let path = blobs.join(digest.to_hex());
        fs::write(&path, bytes).map_err(failed(&path))?;
    }
    for layer in &image.layers {
        let (digest, path) = (layer.blob.digest, blobs.join(layer.blob.digest.to_hex()));
        let mut from = sources.open_blob(image, &layer.blob, Keep::Nothing, cancel)?;
        let mut to = File::create(&path).map_err(failed(&path))?;
        io::copy(&mut from, &mut to).map_err(|source| WarmError::Blob { digest, source })?;
        to.flush().and_then(|()| to.sync_all()).map_err(failed(&path))?;
    }
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(MediaType::OciIndex),
        manifests: vec![descriptor],
        annotations: Default::default(),
    };
    let index = canonical_json(&index).expect("all keys are strings");
    for (name, bytes) in [("oci-layout", &br#"{"imageLayoutVersion":"1.0.0"}"#[..]), ("index.json", &index)] {
        let path = entry.join(name);
        fs::write(&path, bytes).map_err(failed(&path))?;
    }
    Ok(())
}
