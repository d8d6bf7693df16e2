//! Base images from OCI layout directories, whole and damaged.

mod common;

use std::fs;
use std::io::Read as _;
use std::path::Path;

use builder_core::cancel::Cancel;
use builder_core::source::{Keep, LayoutError, SourceError};
use common::Bench;
use fixtures::image::{self, Image};
use serde_json::json;
use tempfile::TempDir;

fn layout(images: &[(&str, &Image)]) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory");
    image::write_layout(directory.path(), images).expect("written");
    directory
}

fn blob_path(layout: &Path, bytes: &[u8]) -> std::path::PathBuf {
    layout.join("blobs/sha256").join(image::digest(bytes).trim_start_matches("sha256:"))
}

/// Digest of the manifest that the name leads to.
fn resolve(name: &str) -> Result<String, SourceError> {
    let platform = "linux/amd64".parse().expect("a platform");
    let image = Bench::new().sources.resolve(name, &platform, &Cancel::default())?;
    Ok(image.manifest_digest.to_string())
}

#[test]
fn tags_digests_and_platforms_choose() {
    let (one, two) = (Image::small("one"), Image::small("two"));
    let both = layout(&[("1", &one), ("docker.io/library/x:2", &two)]);
    let name = |rest: &str| format!("oci-layout://{}{rest}", both.path().display());
    assert_eq!(resolve(&name(":1")).expect("tagged"), one.digest());
    assert_eq!(resolve(&name(":2")).expect("tagged"), two.digest());
    assert_eq!(resolve(&name(&format!("@{}", two.digest()))).expect("pinned"), two.digest());
    assert_eq!(resolve(&name(&format!(":1@{}", two.digest()))).expect("pinned"), two.digest());
    for missing in [":3", &format!("@sha256:{}", "0".repeat(64))] {
        let error = resolve(&name(missing)).expect_err("not there");
        assert!(error.is_not_found(), "{error:?}");
    }
    let only = layout(&[("", &one)]);
    assert_eq!(resolve(&format!("oci-layout://{}", only.path().display())).expect("the only one"), one.digest());
    let arm = Image::new("linux/arm64", vec![], json!({}));
    let platforms = layout(&[("", &arm), ("", &one)]);
    let chosen = resolve(&format!("oci-layout://{}", platforms.path().display())).expect("by its config");
    assert_eq!(chosen, one.digest());
}

#[test]
fn blobs_are_verified_while_they_are_read() {
    let image = Image::small("text");
    let directory = layout(&[("", &image)]);
    let name = format!("oci-layout://{}", directory.path().display());
    let layer = &image.layers[0].blob;
    let path = blob_path(directory.path(), layer);
    let read = |keep| {
        let bench = Bench::new();
        let cancel = Cancel::default();
        let resolved =
            bench.sources.resolve(&name, &"linux/amd64".parse().expect("a platform"), &cancel).expect("resolved");
        let mut stream = bench.sources.open_blob(&resolved, &resolved.layers[0].blob, keep, &cancel).expect("opened");
        let mut bytes = Vec::new();
        let result = stream.read_to_end(&mut bytes).map(|_| bytes);
        drop(stream);
        bench.assert_whole();
        (result, bench.has(layer))
    };
    let (bytes, kept) = read(Keep::InStore);
    assert!(kept && bytes.expect("whole") == *layer);
    let (bytes, kept) = read(Keep::Nothing);
    assert!(!kept && bytes.expect("whole") == *layer);

    let mut flipped = layer.clone();
    flipped[20] ^= 1;
    for damaged in [flipped, layer[..layer.len() - 1].to_vec(), [layer.as_slice(), b"x"].concat(), Vec::new()] {
        fs::write(&path, &damaged).expect("written");
        let (result, kept) = read(Keep::InStore);
        let error = result.expect_err("damaged");
        let typed = error.get_ref().and_then(|inner| inner.downcast_ref::<LayoutError>());
        assert!(matches!(typed, Some(LayoutError::WrongDigest { .. })), "{error:?}");
        assert!(!kept);
    }
}

#[test]
fn damaged_layouts_are_typed_errors() {
    type Damage = fn(&Path, &Image);
    #[expect(clippy::type_complexity, reason = "a table")]
    let damages: [(Damage, fn(&LayoutError) -> bool); 6] = [
        (
            |path, _| fs::remove_file(path.join("oci-layout")).expect("removed"),
            |error| matches!(error, LayoutError::Read { .. }),
        ),
        (
            |path, _| fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"2.0"}"#).expect("written"),
            |error| matches!(error, LayoutError::Version { version } if version == "2.0"),
        ),
        (
            |path, _| fs::write(path.join("index.json"), "{").expect("written"),
            |error| matches!(error, LayoutError::Parse { .. }),
        ),
        (
            |path, image| fs::remove_file(blob_path(path, &image.manifest)).expect("removed"),
            |error| matches!(error, LayoutError::Read { .. }),
        ),
        (
            |path, image| fs::write(blob_path(path, &image.config), "{}").expect("written"),
            |error| matches!(error, LayoutError::WrongDigest { .. }),
        ),
        (
            |path, image| {
                let file = fs::File::create(blob_path(path, &image.config)).expect("created");
                file.set_len(100 << 20).expect("grown");
            },
            |error| matches!(error, LayoutError::TooLarge { what: "config", .. }),
        ),
    ];
    for (at, (damage, is_right)) in damages.into_iter().enumerate() {
        let image = Image::small("x");
        let directory = layout(&[("", &image)]);
        damage(directory.path(), &image);
        let error = resolve(&format!("oci-layout://{}", directory.path().display())).expect_err("damaged");
        match &error {
            SourceError::Layout { source, .. } if is_right(source) => {}
            other => panic!("damage {at}: {other:?}"),
        }
    }
}

#[test]
fn manifest_and_config_must_agree() {
    let mut image = Image::small("x");
    image.layers.clear();
    let other = Image::new("linux/amd64", vec![], json!({}));
    let text = String::from_utf8(image.manifest.clone()).expect("JSON is text");
    let swapped = text
        .replace(&image::digest(&image.config), &image::digest(&other.config))
        .replace(&format!("\"size\":{}", image.config.len()), &format!("\"size\":{}", other.config.len()));
    let mixed = Image { config: other.config, layers: vec![], manifest: swapped.into_bytes() };
    let directory = layout(&[("", &mixed)]);
    let error = resolve(&format!("oci-layout://{}", directory.path().display())).expect_err("they disagree");
    assert!(matches!(error, SourceError::LayerCount { layers: 1, diff_ids: 0, .. }), "{error:?}");
}
