//! The crate oci-spec, another reading of the specification, understands the config, manifest and index that we write.

use std::collections::BTreeMap;
use std::time::UNIX_EPOCH;

use builder_core::image::{self, Assembly, MediaTypes, NewLayer};
use builder_core::layer::SealedLayer;
use builder_core::oci::{BlobDigest, Descriptor, DiffId, ImageConfig, MediaType, Platform, Sha256};
use builder_core::plan::{PlannedHistory, StageId};
use oci_spec::image::{Arch, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde_json::json;

#[test]
fn another_reader_understands_what_we_write() {
    let platform: Platform = "linux/arm64".parse().expect("a platform");
    let mut config = ImageConfig::scratch(&platform);
    config.set_env("A", "b=c");
    config.set("Entrypoint", json!(["/bin/x"]));
    config.set("User", json!("1000:1000"));
    config.insert("Labels", "key", json!("value"));
    config.insert("ExposedPorts", "80/tcp", json!({}));
    let layer = SealedLayer {
        diff_id: DiffId(Sha256::of(b"tar")),
        blob: Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(b"gzip")), 4),
        uncompressed_bytes: 1024,
        entries: 1,
    };
    let place = (StageId(0), 0);
    let made = NewLayer { layer: layer.clone(), created: UNIX_EPOCH, description: "[1/1] RUN x".to_owned() };
    let image = image::assemble(&Assembly {
        config: &config,
        history: &[
            PlannedHistory::New { created_by: "ENV A=b=c".to_owned(), step: None },
            PlannedHistory::New { created_by: "RUN x".to_owned(), step: Some(place) },
        ],
        base_layers: &[],
        new_layers: &BTreeMap::from([(place, made)]),
        source_date_epoch: Some(1_600_000_000),
        media_types: MediaTypes::Oci,
        annotations: &BTreeMap::from([("note".to_owned(), "text".to_owned())]),
    })
    .expect("a valid image");

    let read = ImageConfiguration::from_reader(&image.config[..]).expect("a config");
    assert_eq!((read.os(), read.architecture()), (&Os::Linux, &Arch::ARM64));
    assert_eq!(read.rootfs().diff_ids(), &[layer.diff_id.to_string()]);
    assert_eq!(read.created().as_deref(), Some("2020-09-13T12:26:40Z"));
    let history = read.history().as_ref().expect("a history");
    assert_eq!(history.iter().map(|item| item.empty_layer().unwrap_or(false)).collect::<Vec<_>>(), [true, false]);
    let inner = read.config().as_ref().expect("a config object");
    assert!(inner.env().as_ref().is_some_and(|env| env.contains(&"A=b=c".to_owned())));
    assert_eq!(inner.entrypoint(), &Some(vec!["/bin/x".to_owned()]));
    assert_eq!(inner.exposed_ports().as_deref(), Some(&["80/tcp".to_owned()][..]));
    assert_eq!(inner.user().as_deref(), Some("1000:1000"));

    let read = ImageManifest::from_reader(&image.manifest[..]).expect("a manifest");
    assert_eq!(read.config().digest().to_string(), image.config_descriptor.digest.to_string());
    assert_eq!(read.config().size(), image.config.len() as u64);
    assert_eq!(read.layers()[0].digest().to_string(), layer.blob.digest.to_string());
    assert_eq!(read.annotations().as_ref().and_then(|all| all.get("note")).map(String::as_str), Some("text"));

    let index = image::index(&[&image], MediaTypes::Oci, &BTreeMap::new(), &BTreeMap::new()).expect("an index");
    let read = ImageIndex::from_reader(&index.bytes[..]).expect("an index");
    assert_eq!(read.manifests()[0].digest().to_string(), image.digest.to_string());
    let platform = read.manifests()[0].platform().as_ref().expect("a platform");
    assert_eq!((platform.os(), platform.architecture()), (&Os::Linux, &Arch::ARM64));
}
