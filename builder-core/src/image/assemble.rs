//! Config and manifest of one image.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::history::{History, timestamp};
use super::{Image, ImageLayer};
use crate::layer::SealedLayer;
use crate::oci::{BlobDigest, Descriptor, ImageConfig, ImageManifest, MediaType, Sha256, canonical_json};
use crate::plan::{PlannedHistory, StageId};

/// Which family of media types an image has (checklist X-06).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub enum MediaTypes {
    /// `application/vnd.oci.image…`
    #[default]
    Oci,
    /// `application/vnd.docker…`: no annotations.
    Docker,
}

/// A layer that this build made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    /// Its blob and digests.
    pub layer: SealedLayer,
    /// When its step ended; what the history says unless an epoch is in force.
    pub created: SystemTime,
    /// The step's title, for a layer that has no history item.
    pub description: String,
}

/// What an image is made of.
#[derive(Debug)]
pub struct Assembly<'a> {
    /// Config of the target stage ([`crate::plan::Stage::config`]).
    pub config: &'a ImageConfig,
    /// Its history ([`crate::plan::Stage::history`]).
    pub history: &'a [PlannedHistory],
    /// Layers of the base image that the target began with, lowest first.
    pub base_layers: &'a [ImageLayer],
    /// Layers by stage and number of the step: at least those that `history` names.
    pub new_layers: &'a BTreeMap<(StageId, usize), NewLayer>,
    /// Seconds since 1970 for all new times ([`crate::plan::Plan::source_date_epoch`]).
    pub source_date_epoch: Option<i64>,
    /// OCI or Docker.
    pub media_types: MediaTypes,
    /// Annotations of the manifest; Docker manifests have none (checklist X-09).
    pub annotations: &'a BTreeMap<String, String>,
}

/// Why an image cannot be assembled.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AssembleError {
    /// The history names a layer that is not there.
    #[error("no layer was made for step {step} of stage {stage} (`{created_by}`)", stage = .stage.0)]
    MissingLayer {
        /// The stage.
        stage: StageId,
        /// Number of the step in the stage, counted from 0.
        step: usize,
        /// Its text.
        created_by: String,
    },
    /// A time outside of what RFC 3339 can say.
    #[error("a time cannot be written")]
    Time {
        /// Why.
        source: jiff::Error,
    },
    /// An epoch outside of what RFC 3339 can say.
    #[error("SOURCE_DATE_EPOCH {seconds} cannot be written as a date")]
    Epoch {
        /// Seconds since 1970.
        seconds: i64,
    },
    /// A document cannot be written.
    #[error("cannot write the image's JSON")]
    Json(#[from] serde_json::Error),
}

/// Writes config and manifest.
///
/// # Errors
/// [`AssembleError`]
pub fn assemble(assembly: &Assembly<'_>) -> Result<Image, AssembleError> {
    let epoch = assembly.source_date_epoch.map(epoch_text).transpose()?;
    let mut layers: Vec<ImageLayer> = assembly.base_layers.to_vec();
    let mut made: Vec<Option<&NewLayer>> = vec![None; layers.len()];
    let mut history = History::default();
    for item in assembly.history {
        match item {
            PlannedHistory::Inherited(entry) => history.inherit(entry),
            PlannedHistory::New { created_by, step: None } => history.push(created_by, true, epoch.clone()),
            PlannedHistory::New { created_by, step: Some((stage, step)) } => {
                let layer = assembly.new_layers.get(&(*stage, *step)).ok_or_else(|| AssembleError::MissingLayer {
                    stage: *stage,
                    step: *step,
                    created_by: created_by.clone(),
                })?;
                let created = match &epoch {
                    Some(epoch) => epoch.clone(),
                    None => timestamp(layer.created)?,
                };
                history.push(created_by, false, Some(created));
                layers.push(ImageLayer { diff_id: layer.layer.diff_id, blob: layer.layer.blob.clone() });
                made.push(Some(layer));
            }
        }
    }
    history.fit(&made, epoch.as_deref())?;
    history.date();

    let mut config = assembly.config.clone();
    match history.last_time().or(epoch) {
        Some(created) => _ = config.raw_mut().insert("created".to_owned(), created.into()),
        None => _ = config.raw_mut().remove("created"),
    }
    config.raw_mut().insert("history".to_owned(), history.into_value());
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    config.raw_mut().insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
    if !config.raw().get("config").is_some_and(Value::is_object) {
        config.raw_mut().insert("config".to_owned(), json!({}));
    }
    let platform = config.platform();
    config.set_platform(&platform);
    let config_bytes = canonical_json(config.raw())?;

    let types = assembly.media_types;
    for layer in &mut layers {
        layer.blob = types.layer(&layer.blob);
    }
    let config_type = match types {
        MediaTypes::Oci => MediaType::OciConfig,
        MediaTypes::Docker => MediaType::DockerConfig,
    };
    let config_digest = BlobDigest(Sha256::of(&config_bytes));
    let config_descriptor = Descriptor::new(config_type, config_digest, config_bytes.len() as u64);
    let manifest_type = types.manifest();
    let manifest = ImageManifest {
        schema_version: 2,
        media_type: Some(manifest_type.clone()),
        artifact_type: None,
        config: config_descriptor.clone(),
        layers: layers.iter().map(|layer| layer.blob.clone()).collect(),
        annotations: match types {
            MediaTypes::Oci => assembly.annotations.clone(),
            MediaTypes::Docker => BTreeMap::new(),
        },
    };
    // Indented by two, as BuildKit writes manifests (checklist X-10).
    let manifest = serde_json::to_vec_pretty(&manifest)?;
    Ok(Image {
        config: config_bytes,
        config_descriptor,
        digest: BlobDigest(Sha256::of(&manifest)),
        manifest,
        manifest_type,
        layers,
        platform,
    })
}

fn epoch_text(seconds: i64) -> Result<String, AssembleError> {
    let length = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let time = if seconds < 0 { epoch.checked_sub(length) } else { epoch.checked_add(length) };
    let time = time.ok_or(AssembleError::Epoch { seconds })?;
    timestamp(time).map_err(|_| AssembleError::Epoch { seconds })
}

/// Annotations for the builder's own use, which are not written (checklist X-10).
fn is_internal(annotation: &str) -> bool {
    annotation == "containerd.io/uncompressed"
        || annotation.starts_with("buildkit/")
        || annotation.starts_with("containerd.io/distribution.source.")
}

impl MediaTypes {
    pub(super) fn manifest(self) -> MediaType {
        match self {
            Self::Oci => MediaType::OciManifest,
            Self::Docker => MediaType::DockerManifest,
        }
    }

    /// The layer's descriptor in this family. Types of neither family stay as they are: the blob is what it is.
    fn layer(self, blob: &Descriptor) -> Descriptor {
        use MediaType::{DockerLayer, DockerLayerGzip, DockerLayerZstd, OciLayer, OciLayerGzip, OciLayerZstd};
        let mut blob = blob.clone();
        blob.platform = None;
        blob.media_type = match (self, blob.media_type) {
            (Self::Oci, DockerLayer) => OciLayer,
            (Self::Oci, DockerLayerGzip) => OciLayerGzip,
            (Self::Oci, DockerLayerZstd) => OciLayerZstd,
            (Self::Docker, OciLayer) => DockerLayer,
            (Self::Docker, OciLayerGzip) => DockerLayerGzip,
            (Self::Docker, OciLayerZstd) => DockerLayerZstd,
            (_, other) => other,
        };
        match self {
            Self::Oci => blob.annotations.retain(|name, _| !is_internal(name)),
            Self::Docker => blob.annotations.clear(),
        }
        blob
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image::validate;
    use crate::oci::{DiffId, HistoryEntry, Platform};

    /// A layer of a few bytes, not compressed.
    pub(in crate::image) fn layer(content: &[u8]) -> SealedLayer {
        let digest = Sha256::of(content);
        SealedLayer {
            diff_id: DiffId(digest),
            blob: Descriptor::new(MediaType::OciLayer, BlobDigest(digest), content.len() as u64),
            uncompressed_bytes: content.len() as u64,
            entries: 0,
        }
    }

    fn entry(value: Value) -> PlannedHistory {
        let Value::Object(raw) = value else { panic!("not an object") };
        PlannedHistory::Inherited(HistoryEntry { raw })
    }

    fn new(created_by: &str, step: Option<usize>) -> PlannedHistory {
        PlannedHistory::New { created_by: created_by.to_owned(), step: step.map(|step| (StageId(0), step)) }
    }

    /// One base layer, one new one, an instruction between them.
    pub(in crate::image) fn example(epoch: Option<i64>, media_types: MediaTypes) -> Image {
        let mut config = ImageConfig::scratch(&Platform::new("linux", "arm64", "v8"));
        config.raw_mut().insert("vendor".to_owned(), json!({ "kept": true }));
        let base = layer(b"base");
        let mut blob = base.blob.clone();
        blob.media_type = MediaType::DockerLayer;
        blob.annotations.insert("containerd.io/uncompressed".to_owned(), "x".to_owned());
        let base_layers = [ImageLayer { diff_id: base.diff_id, blob }];
        let step = NewLayer {
            layer: layer(b"new"),
            created: SystemTime::UNIX_EPOCH + Duration::from_millis(2_000_500),
            description: "[2/2] RUN x".to_owned(),
        };
        let annotations = [("a".to_owned(), "b".to_owned())].into();
        assemble(&Assembly {
            config: &config,
            history: &[
                entry(json!({ "created": "2020-01-01T00:00:00Z", "created_by": "base", "odd": 1 })),
                new("ENV A=1", None),
                new("RUN x # buildkit", Some(0)),
                new("CMD [\"x\"]", None),
            ],
            base_layers: &base_layers,
            new_layers: &[((StageId(0), 0), step)].into(),
            source_date_epoch: epoch,
            media_types,
            annotations: &annotations,
        })
        .expect("a complete image")
    }

    #[test]
    fn the_config_is_buildkits() {
        let image = example(None, MediaTypes::Oci);
        let config: Value = serde_json::from_slice(&image.config).expect("JSON");
        let time = "1970-01-01T00:33:20.5Z";
        assert_eq!(
            config,
            json!({
                "architecture": "arm64", "os": "linux", "config": { "WorkingDir": "/" }, "vendor": { "kept": true },
                "created": time,
                "history": [
                    { "created": "2020-01-01T00:00:00Z", "created_by": "base", "odd": 1 },
                    { "created": time, "created_by": "ENV A=1", "comment": "buildkit.dockerfile.v0", "empty_layer": true },
                    { "created": time, "created_by": "RUN x # buildkit", "comment": "buildkit.dockerfile.v0" },
                    { "created": time, "created_by": "CMD [\"x\"]", "comment": "buildkit.dockerfile.v0", "empty_layer": true },
                ],
                "rootfs": {
                    "type": "layers",
                    "diff_ids": [layer(b"base").diff_id.to_string(), layer(b"new").diff_id.to_string()],
                },
            })
        );
        assert_eq!(validate(&image, None), []);
    }

    #[test]
    fn an_epoch_dates_new_items_only() {
        let image = example(Some(1_700_000_000), MediaTypes::Oci);
        let config: Value = serde_json::from_slice(&image.config).expect("JSON");
        let times: Vec<&str> =
            config["history"].as_array().into_iter().flatten().filter_map(|item| item["created"].as_str()).collect();
        let epoch = "2023-11-14T22:13:20Z";
        assert_eq!(times, ["2020-01-01T00:00:00Z", epoch, epoch, epoch]);
        assert_eq!(config["created"], epoch);
        assert_eq!(image, example(Some(1_700_000_000), MediaTypes::Oci), "same input, same bytes");
    }

    #[test]
    fn manifests_of_both_families() {
        let image = example(None, MediaTypes::Oci);
        let text = String::from_utf8(image.manifest.clone()).expect("JSON is UTF-8");
        assert!(
            text.starts_with("{\n  \"schemaVersion\": 2,\n  \"mediaType\": \"application/vnd.oci.image.manifest"),
            "{text}"
        );
        assert!(text.contains("\"annotations\": {\n    \"a\": \"b\"\n  }"), "{text}");
        assert!(!text.contains("uncompressed\":"), "{text}");
        assert_eq!(image.layers[0].blob.media_type, MediaType::OciLayer);
        let docker = example(None, MediaTypes::Docker);
        assert_eq!(docker.layers[1].blob.media_type, MediaType::DockerLayer);
        assert_eq!(docker.config, image.config);
        assert!(!String::from_utf8_lossy(&docker.manifest).contains("annotations"));
        assert_eq!(validate(&docker, None), []);
    }

    #[test]
    fn a_layer_that_is_missing_is_named() {
        let config = ImageConfig::scratch(&Platform::host());
        let error = assemble(&Assembly {
            config: &config,
            history: &[new("RUN x # buildkit", Some(3))],
            base_layers: &[],
            new_layers: &BTreeMap::new(),
            source_date_epoch: None,
            media_types: MediaTypes::Oci,
            annotations: &BTreeMap::new(),
        });
        let text = error.map_err(|error| error.to_string());
        assert_eq!(text, Err("no layer was made for step 3 of stage 0 (`RUN x # buildkit`)".to_owned()));
    }

    #[test]
    fn layers_of_a_base_without_history_take_no_time_of_their_own() {
        let base = layer(b"base");
        let created = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let step = NewLayer { layer: layer(b"new"), created, description: "[2/2] RUN x".to_owned() };
        let image = assemble(&Assembly {
            config: &ImageConfig::scratch(&Platform::new("linux", "amd64", "")),
            history: &[new("RUN x # buildkit", Some(0))],
            base_layers: &[ImageLayer { diff_id: base.diff_id, blob: base.blob }],
            new_layers: &[((StageId(0), 0), step)].into(),
            source_date_epoch: Some(0),
            media_types: MediaTypes::Oci,
            annotations: &BTreeMap::new(),
        });
        let config: Value = serde_json::from_slice(&image.expect("complete").config).expect("JSON");
        let times = [&config["created"], &config["history"][0]["created"], &config["history"][1]["created"]];
        assert_eq!(times, ["1970-01-01T00:00:00Z"; 3]);
    }

    #[test]
    fn an_empty_image_has_no_time() {
        let config = ImageConfig::scratch(&Platform::new("linux", "amd64", ""));
        let assembly = Assembly {
            config: &config,
            history: &[],
            base_layers: &[],
            new_layers: &BTreeMap::new(),
            source_date_epoch: None,
            media_types: MediaTypes::Oci,
            annotations: &BTreeMap::new(),
        };
        let image = assemble(&assembly).expect("complete");
        assert_eq!(image.parsed_config().expect("JSON").raw().get("created"), None);
        let dated = assemble(&Assembly { source_date_epoch: Some(0), ..assembly }).expect("complete");
        let created = dated.parsed_config().expect("JSON").raw().get("created").cloned();
        assert_eq!(created, Some(json!("1970-01-01T00:00:00Z")));
    }
}
