//! One record: the result of a step, as manifest and config.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::image::Image;
use crate::layer::SealedLayer;
use crate::oci::{BlobDigest, Descriptor, DiffId, ImageManifest, MediaType, Platform, Sha256, canonical_json};

/// The annotation that holds everything that the manifest itself has no place for.
const ANNOTATION: &str = "dev.slipway.cache.record";

/// Time of an image (image-spec, annotations.md).
const CREATED: &str = "org.opencontainers.image.created";

/// Version of [`Fields`]; records of another one are not read.
const RECORD_VERSION: u32 = 1;

/// The result of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Names the step by what its result depends on, with the content of what it reads.
    pub content: Sha256,
    /// Names what lay below when it was done.
    pub below: Sha256,
    /// Its layer.
    pub layer: SealedLayer,
    /// When it was done: seconds and nanoseconds since 1970.
    pub created: (i64, u32),
    /// For which platform.
    pub platform: Platform,
}

/// The annotation's JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Fields {
    version: u32,
    /// All keys under which the record was put.
    keys: Vec<String>,
    content: String,
    below: String,
    diff_id: DiffId,
    /// Length of the tar in bytes.
    tar_bytes: u64,
    /// Entries in the tar.
    entries: u64,
    /// Seconds and nanoseconds since 1970.
    created: (i64, u32),
    platform: Platform,
}

/// Why a manifest is no record of the step that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It is no manifest at all.
    #[error("it is no image manifest")]
    Manifest(#[source] serde_json::Error),
    /// It is an image that nobody meant as a record.
    #[error("it carries no record of a step")]
    NoRecord,
    /// Its annotation cannot be read.
    #[error("its record cannot be read")]
    Fields(#[source] serde_json::Error),
    /// A newer or older slipway wrote it.
    #[error("its record has version {found}, not {RECORD_VERSION}")]
    Version {
        /// Which.
        found: u32,
    },
    /// It is under the wrong name.
    #[error("it is the record of another step")]
    OtherKey,
    /// A record has one layer.
    #[error("it has {count} layers")]
    Layers {
        /// How many.
        count: usize,
    },
}

impl Record {
    /// Reads the manifest that was found under `key`.
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn read(key: Sha256, manifest: &[u8]) -> Result<Self, RecordError> {
        let manifest: ImageManifest = serde_json::from_slice(manifest).map_err(RecordError::Manifest)?;
        let text = manifest.annotations.get(ANNOTATION).ok_or(RecordError::NoRecord)?;
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } = serde_json::from_str(text).map_err(RecordError::Fields)?;
        if version != RECORD_VERSION {
            return Err(RecordError::Version { found: version });
        }
        let fields: Fields = serde_json::from_str(text).map_err(RecordError::Fields)?;
        let key = key.to_hex();
        let hash = |text: &str| Sha256::from_hex(text).ok_or(RecordError::OtherKey);
        if !fields.keys.contains(&key) {
            return Err(RecordError::OtherKey);
        }
        let count = manifest.layers.len();
        let mut layers = manifest.layers.into_iter();
        let (Some(blob), None) = (layers.next(), layers.next()) else { return Err(RecordError::Layers { count }) };
        Ok(Self {
            content: hash(&fields.content)?,
            below: hash(&fields.below)?,
            layer: SealedLayer {
                diff_id: fields.diff_id,
                blob,
                uncompressed_bytes: fields.tar_bytes,
                entries: fields.entries,
            },
            created: fields.created,
            platform: fields.platform,
        })
    }

    /// The record as an image that registries and layouts keep under each of `keys`.
    pub fn image(&self, keys: &[Sha256]) -> Image {
        let created = self.time_text();
        let config = canonical_json(&json!({
            "architecture": self.platform.architecture,
            "os": self.platform.os,
            "created": created,
            "config": {},
            "rootfs": { "type": "layers", "diff_ids": [self.layer.diff_id] },
            "history": [{ "created": created, "created_by": "slipway cache" }],
        }))
        .expect("plain JSON");
        let fields = Fields {
            version: RECORD_VERSION,
            keys: keys.iter().map(|key| key.to_hex()).collect(),
            content: self.content.to_hex(),
            below: self.below.to_hex(),
            diff_id: self.layer.diff_id,
            tar_bytes: self.layer.uncompressed_bytes,
            entries: self.layer.entries,
            created: self.created,
            platform: self.platform.clone(),
        };
        let text = String::from_utf8(canonical_json(&fields).expect("plain JSON")).expect("JSON is UTF-8");
        let blob = Descriptor { media_type: oci_type(&self.layer.blob.media_type), ..self.layer.blob.clone() };
        let config_descriptor =
            Descriptor::new(MediaType::OciConfig, BlobDigest(Sha256::of(&config)), config.len() as u64);
        let manifest = ImageManifest {
            schema_version: 2,
            media_type: Some(MediaType::OciManifest),
            artifact_type: None,
            config: config_descriptor.clone(),
            layers: vec![blob.clone()],
            annotations: BTreeMap::from([(ANNOTATION.to_owned(), text), (CREATED.to_owned(), created)]),
        };
        let manifest = canonical_json(&manifest).expect("plain JSON");
        Image {
            digest: BlobDigest(Sha256::of(&manifest)),
            manifest,
            manifest_type: MediaType::OciManifest,
            config,
            config_descriptor,
            layers: vec![crate::image::ImageLayer { diff_id: self.layer.diff_id, blob }],
            platform: self.platform.clone(),
        }
    }

    fn time_text(&self) -> String {
        let time = jiff::Timestamp::new(self.created.0, i32::try_from(self.created.1).unwrap_or(0));
        time.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
    }
}

/// Docker's names of layers in OCI's words: records are OCI manifests whatever the image will be.
fn oci_type(media_type: &MediaType) -> MediaType {
    match media_type {
        MediaType::DockerLayer => MediaType::OciLayer,
        MediaType::DockerLayerGzip => MediaType::OciLayerGzip,
        MediaType::DockerLayerZstd => MediaType::OciLayerZstd,
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::ImageConfig;

    fn record() -> Record {
        Record {
            content: Sha256::of(b"content"),
            below: Sha256::of(b"below"),
            layer: SealedLayer {
                diff_id: DiffId(Sha256::of(b"tar")),
                blob: Descriptor::new(MediaType::DockerLayerGzip, BlobDigest(Sha256::of(b"gz")), 7),
                uncompressed_bytes: 1024,
                entries: 3,
            },
            created: (1_700_000_000, 5),
            platform: Platform::new("linux", "arm64", "v8"),
        }
    }

    #[test]
    fn a_record_survives_the_way_through_a_registry() {
        let (one, two) = (Sha256::of(b"one"), Sha256::of(b"two"));
        let image = record().image(&[one, two]);
        let mut expected = record();
        expected.layer.blob.media_type = MediaType::OciLayerGzip;
        for key in [one, two] {
            assert_eq!(Record::read(key, &image.manifest).expect("a record"), expected);
        }
        assert!(matches!(Record::read(Sha256::of(b"three"), &image.manifest), Err(RecordError::OtherKey)));
        assert_eq!(image, record().image(&[one, two]), "the same record gives the same bytes");
        let config = ImageConfig::from_json(&image.config).expect("a config");
        assert_eq!(config.diff_ids(), [expected.layer.diff_id]);
    }

    #[test]
    fn what_is_no_record_is_told_apart() {
        let key = Sha256::of(b"one");
        let text = String::from_utf8(record().image(&[key]).manifest).expect("JSON");
        let read = |text: &str| Record::read(key, text.as_bytes());
        assert!(matches!(read("{"), Err(RecordError::Manifest(_))));
        assert!(matches!(read(&text.replace(ANNOTATION, "other")), Err(RecordError::NoRecord)));
        assert!(matches!(
            read(&text.replace(r#"\"version\":1"#, r#"\"version\":9"#)),
            Err(RecordError::Version { found: 9 })
        ));
        assert!(matches!(read(&text.replace(r#"\"tar_bytes\":"#, r#"\"tar\":"#)), Err(RecordError::Fields(_))));
    }
}
