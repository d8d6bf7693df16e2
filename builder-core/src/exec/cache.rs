//! The local step cache.
//!
//! ```text
//! <work>/cache/steps/<key>.json    result of a step: its layer and when it was made
//! <work>/cache/outlines/<key>.json a step whose files have these names, modes and sizes was done; see `exec::copying`
//! <work>/cache/outlines/all        no step was done before outlines were kept here
//! <work>/cache/inputs/<key>.json   content hash of what a step reads from an immutable tree
//! <work>/cache/places/<digest>.json  where a layer was pushed to, see `exec::released`
//! <work>/cache/sizes/<key>.json    space that a finished tree takes, see `exec::meter`
//! <work>/cache/last/<place>.json   what the step at this place of this Dockerfile was made from last time
//! ```
//!
//! A file appears by rename, so a reader sees all of it or nothing; a file that cannot be read is a miss. Two builds
//! that write the same key write the same meaning. # Limitations: nothing is ever evicted here, `slipway cache prune` does.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::layer::SealedLayer;
use crate::oci::{BlobDigest, Sha256};
use crate::plan::key::Components;

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct StepRecord {
    /// Its layer.
    pub(super) layer: SealedLayer,
    /// When it was made: seconds and nanoseconds since 1970.
    pub(super) created: (i64, u32),
}

/// A content hash with what it was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct InputRecord {
    /// Hash over all, in hexadecimal.
    pub(super) hash: String,
    /// Path and hash of each source.
    pub(super) items: Vec<(String, String)>,
}

/// The cache below one work dir.
#[derive(Debug, Clone)]
pub(super) struct StepCache {
    root: PathBuf,
    has_all_outlines: bool,
}

impl StepCache {
    /// Opens or creates the cache.
    pub(super) fn open(work_dir: &Path) -> io::Result<Self> {
        let root = work_dir.join("cache");
        for part in ["steps", "inputs", "last", "sizes", "places"] {
            fs::create_dir_all(root.join(part))?;
        }
        let was_empty = fs::read_dir(root.join("steps"))?.next().is_none();
        let (outlines, all) = (root.join("outlines"), root.join("outlines/all"));
        // Who makes the directory says whether all outlines will be in it.
        let is_new = match fs::create_dir(&outlines) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            made => made.map(|()| true)?,
        };
        if is_new && was_empty {
            fs::File::create(&all)?;
        }
        let has_all_outlines = all.exists();
        Ok(Self { root, has_all_outlines })
    }

    /// Whether no step of which [`StepCache::has_outline`] does not know was done here.
    pub(super) fn has_all_outlines(&self) -> bool {
        self.has_all_outlines
    }

    /// Whether a step was done here that differs from the one with this outline at most in what its files hold.
    pub(super) fn has_outline(&self, outline: Sha256) -> bool {
        // What cannot be told may be there.
        self.path("outlines", outline).try_exists().unwrap_or(true)
    }

    pub(super) fn put_outline(&self, outline: Sha256) -> io::Result<()> {
        self.write("outlines", outline, &())
    }

    pub(super) fn step(&self, key: Sha256) -> Option<StepRecord> {
        self.read("steps", key)
    }

    pub(super) fn put_step(&self, key: Sha256, record: &StepRecord) -> io::Result<()> {
        self.write("steps", key, record)
    }

    pub(super) fn input(&self, key: Sha256) -> Option<InputRecord> {
        self.read("inputs", key)
    }

    pub(super) fn put_input(&self, key: Sha256, record: &InputRecord) -> io::Result<()> {
        self.write("inputs", key, record)
    }

    pub(super) fn last(&self, place: Sha256) -> Option<Components> {
        self.read("last", place)
    }

    pub(super) fn put_last(&self, place: Sha256, components: &Components) -> io::Result<()> {
        self.write("last", place, components)
    }

    /// Repositories that a layer's blob was pushed to, see `exec::released`.
    pub(super) fn places(&self, digest: BlobDigest) -> Vec<String> {
        self.read("places", digest.0).unwrap_or_default()
    }

    pub(super) fn put_places(&self, digest: BlobDigest, places: &[String]) -> io::Result<()> {
        self.write("places", digest.0, &places)
    }

    pub(super) fn remove_places(&self, digest: BlobDigest) -> io::Result<()> {
        match fs::remove_file(self.path("places", digest.0)) {
            // By another build.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    /// Space of a directory that does not change, in bytes.
    pub(super) fn size(&self, key: Sha256) -> Option<u64> {
        self.read("sizes", key)
    }

    pub(super) fn put_size(&self, key: Sha256, bytes: u64) -> io::Result<()> {
        self.write("sizes", key, &bytes)
    }

    fn path(&self, part: &str, key: Sha256) -> PathBuf {
        self.root.join(part).join(format!("{}.json", key.to_hex()))
    }

    fn read<T: DeserializeOwned>(&self, part: &str, key: Sha256) -> Option<T> {
        let path = self.path(part, key);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "cache record that cannot be read taken as a miss");
                return None;
            }
        };
        serde_json::from_slice(&bytes)
            .map_err(|error| tracing::debug!(path = %path.display(), %error, "unreadable cache record taken as a miss"))
            .ok()
    }

    fn write(&self, part: &str, key: Sha256, value: &impl Serialize) -> io::Result<()> {
        let path = self.path(part, key);
        let mut temp = tempfile::NamedTempFile::new_in(self.root.join(part))?;
        temp.write_all(&serde_json::to_vec(value)?)?;
        temp.persist(path).map_err(|error| error.error)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, DiffId, MediaType};

    #[test]
    fn records_survive_and_damage_is_a_miss() {
        let work = tempfile::tempdir().expect("temporary directory");
        let cache = StepCache::open(work.path()).expect("cache opens");
        let key = Sha256::of(b"key");
        assert_eq!(cache.step(key), None);
        assert!(cache.has_all_outlines());
        let record = StepRecord {
            layer: SealedLayer {
                diff_id: DiffId(Sha256::of(b"tar")),
                blob: Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(b"gz")), 7),
                uncompressed_bytes: 1024,
                entries: 0,
            },
            created: (1, 2),
        };
        cache.put_step(key, &record).expect("record is written");
        assert_eq!(cache.step(key), Some(record));
        fs::write(cache.path("steps", key), b"{\"layer\":").expect("file is damaged");
        assert_eq!(cache.step(key), None);
    }

    #[test]
    fn outlines_count_where_there_were_no_steps_before_them() {
        let work = tempfile::tempdir().expect("temporary directory");
        let open = || StepCache::open(work.path()).expect("cache opens");
        let key = Sha256::of(b"key");
        assert!(!open().has_outline(key));
        open().put_outline(key).expect("it is written");
        assert!(open().has_outline(key) && open().has_all_outlines());
        // As a builder leaves it that knows of no outlines.
        fs::remove_dir_all(work.path().join("cache/outlines")).expect("removed");
        open().write("steps", key, &0).expect("it is written");
        fs::remove_dir_all(work.path().join("cache/outlines")).expect("removed");
        assert!(!open().has_all_outlines());
        assert!(!open().has_all_outlines());
    }
}
