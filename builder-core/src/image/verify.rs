//! Every invariant of an image, in one walk (image-spec, manifest.md and config.md).

use std::io::{self, Read};

use super::{Image, Index};
use crate::oci::{
    BlobDigest, Descriptor, DiffId, Hasher, ImageConfig, ImageIndex, ImageManifest, MediaType, Platform, Sha256,
};

/// One read of a blob, in bytes.
const READ_BYTES: usize = 128 * 1024;

/// Opens the blob of a descriptor.
pub type ReadBlob<'a> = &'a dyn Fn(&Descriptor) -> io::Result<Box<dyn Read>>;

/// Something about an image that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// A document is not what it should be.
    #[error("the {document} cannot be read: {reason}")]
    Unreadable {
        /// `manifest`, `config` or `index`.
        document: &'static str,
        /// Why.
        reason: String,
    },
    /// Bytes do not hash to the digest that points to them.
    #[error("{blob} {expected} hashes to {actual}")]
    Digest {
        /// `manifest`, `config`, `layer 2`, …
        blob: String,
        /// What points to it.
        expected: BlobDigest,
        /// What it is.
        actual: BlobDigest,
    },
    /// A blob has another length than its descriptor says.
    #[error("{blob} has {actual} bytes, its descriptor says {expected}")]
    Size {
        /// As in [`Violation::Digest`].
        blob: String,
        /// Bytes by the descriptor.
        expected: u64,
        /// Bytes found.
        actual: u64,
    },
    /// A layer unpacks to another tar than the config says.
    #[error("layer {number} has diff_id {actual}, the config says {expected}")]
    DiffId {
        /// Counted from 0, lowest first.
        number: usize,
        /// By the config.
        expected: DiffId,
        /// By its bytes.
        actual: DiffId,
    },
    /// A blob cannot be read to its end.
    #[error("{blob} cannot be read: {reason}")]
    Blob {
        /// As in [`Violation::Digest`].
        blob: String,
        /// Why.
        reason: String,
    },
    /// Numbers that must agree do not.
    #[error("{left_count} {left}, but {right_count} {right}")]
    Count {
        /// `layers in the manifest`, …
        left: &'static str,
        /// How many.
        left_count: usize,
        /// `diff_ids in the config`, …
        right: &'static str,
        /// How many.
        right_count: usize,
    },
    /// A field has another value than it must have.
    #[error("{field} is {actual}, expected {expected}")]
    Field {
        /// Such as `schemaVersion`.
        field: String,
        /// What must be there.
        expected: String,
        /// What is there.
        actual: String,
    },
    /// The parts that are kept beside the bytes differ from the bytes.
    #[error("{what} of the image differs from its manifest")]
    Inconsistent {
        /// `config descriptor`, `layer 1`, …
        what: String,
    },
}

/// Walks every invariant and returns all violations. With `read`, the layers are read, hashed and unpacked too; without,
/// only documents are looked at.
pub fn validate(image: &Image, read: Option<ReadBlob<'_>>) -> Vec<Violation> {
    let mut check = Check::default();
    check.bytes("manifest", &image.manifest, image.digest, None);
    let manifest: Option<ImageManifest> = check.document("manifest", &image.manifest);
    check.bytes("config", &image.config, image.config_descriptor.digest, Some(image.config_descriptor.size));
    let config: Option<ImageConfig> = match ImageConfig::from_json(&image.config) {
        Ok(config) => Some(config),
        Err(error) => {
            check.0.push(Violation::Unreadable { document: "config", reason: error.to_string() });
            None
        }
    };
    if let Some(manifest) = &manifest {
        check.manifest(manifest, image);
    }
    if let Some(config) = &config {
        check.config(config, image);
        if let Some(manifest) = &manifest {
            let ids = config.diff_ids().len();
            check.count("layers in the manifest", manifest.layers.len(), "diff_ids in the config", ids);
        }
    }
    if let Some(read) = read {
        for (number, layer) in image.layers.iter().enumerate() {
            check.layer(number, &layer.blob, layer.diff_id, read);
        }
    }
    check.0
}

/// Checks that an index lists exactly these images.
pub fn validate_index(index: &Index, images: &[&Image]) -> Vec<Violation> {
    let mut check = Check::default();
    check.bytes("index", &index.bytes, index.digest, None);
    let Some(document) = check.document::<ImageIndex>("index", &index.bytes) else { return check.0 };
    check.field("schemaVersion of the index", "2", &document.schema_version.to_string());
    let media_type = document.media_type.as_ref().map(MediaType::as_str).unwrap_or_default();
    check.field("mediaType of the index", index.media_type.as_str(), media_type);
    check.count("manifests in the index", document.manifests.len(), "images", images.len());
    for (number, (descriptor, image)) in document.manifests.iter().zip(images).enumerate() {
        let field = |name: &str| format!("{name} of manifest {number}");
        check.field(&field("digest"), &image.digest.to_string(), &descriptor.digest.to_string());
        check.field(&field("size"), &image.manifest.len().to_string(), &descriptor.size.to_string());
        check.field(&field("mediaType"), image.manifest_type.as_str(), descriptor.media_type.as_str());
        let platform = descriptor.platform.as_ref().map(Platform::to_string).unwrap_or_default();
        check.field(&field("platform"), &image.platform.to_string(), &platform);
    }
    check.0
}

/// Violations so far.
#[derive(Default)]
struct Check(Vec<Violation>);

impl Check {
    fn bytes(&mut self, blob: &str, bytes: &[u8], expected: BlobDigest, size: Option<u64>) {
        let actual = BlobDigest(Sha256::of(bytes));
        if actual != expected {
            self.0.push(Violation::Digest { blob: blob.to_owned(), expected, actual });
        }
        if let Some(expected) = size
            && expected != bytes.len() as u64
        {
            self.0.push(Violation::Size { blob: blob.to_owned(), expected, actual: bytes.len() as u64 });
        }
    }

    fn document<T: serde::de::DeserializeOwned>(&mut self, document: &'static str, bytes: &[u8]) -> Option<T> {
        match serde_json::from_slice(bytes) {
            Ok(value) => Some(value),
            Err(error) => {
                self.0.push(Violation::Unreadable { document, reason: error.to_string() });
                None
            }
        }
    }

    fn field(&mut self, field: &str, expected: &str, actual: &str) {
        if expected != actual {
            let (expected, actual) = (expected.to_owned(), actual.to_owned());
            self.0.push(Violation::Field { field: field.to_owned(), expected, actual });
        }
    }

    fn count(&mut self, left: &'static str, left_count: usize, right: &'static str, right_count: usize) {
        if left_count != right_count {
            self.0.push(Violation::Count { left, left_count, right, right_count });
        }
    }

    fn inconsistent(&mut self, what: String) {
        self.0.push(Violation::Inconsistent { what });
    }

    fn manifest(&mut self, manifest: &ImageManifest, image: &Image) {
        self.field("schemaVersion", "2", &manifest.schema_version.to_string());
        // OCI manifests of older tools leave it out, which image-spec allows.
        if let Some(media_type) = &manifest.media_type {
            self.field("mediaType of the manifest", image.manifest_type.as_str(), media_type.as_str());
        }
        let docker = image.manifest_type == MediaType::DockerManifest;
        let config_type = if docker { MediaType::DockerConfig } else { MediaType::OciConfig };
        self.field("mediaType of the config", config_type.as_str(), manifest.config.media_type.as_str());
        for (number, layer) in manifest.layers.iter().enumerate() {
            let text = layer.media_type.as_str();
            // A family's manifest may carry the other's layers in practice (BuildKit writes Docker's zstd type nowhere else),
            // but never a document.
            if layer.media_type.is_index() || layer.media_type.is_manifest() || text.ends_with("+json") {
                self.field(&format!("mediaType of layer {number}"), "a layer type", text);
            }
        }
        if manifest.config != image.config_descriptor {
            self.inconsistent("config descriptor".to_owned());
        }
        self.count("layers of the image", image.layers.len(), "layers in the manifest", manifest.layers.len());
        for (number, (layer, descriptor)) in image.layers.iter().zip(&manifest.layers).enumerate() {
            if layer.blob != *descriptor {
                self.inconsistent(format!("layer {number}"));
            }
        }
    }

    fn config(&mut self, config: &ImageConfig, image: &Image) {
        let diff_ids = config.diff_ids();
        let raw_ids = config.raw().get("rootfs").and_then(|rootfs| rootfs.get("diff_ids"));
        let raw_count = raw_ids.and_then(serde_json::Value::as_array).map_or(0, Vec::len);
        self.count("diff_ids in the config", raw_count, "of them digests", diff_ids.len());
        let kind = config.raw().get("rootfs").and_then(|rootfs| rootfs.get("type"));
        let kind = kind.and_then(serde_json::Value::as_str).unwrap_or_default();
        self.field("rootfs.type", "layers", kind);
        for name in ["os", "architecture"] {
            if config.raw().get(name).and_then(serde_json::Value::as_str).is_none_or(str::is_empty) {
                self.field(name, "a name", "nothing");
            }
        }
        self.field("platform of the config", &image.platform.to_string(), &config.platform().to_string());
        let history = config.history();
        // image-spec makes history optional, but what there is must add up.
        if !history.is_empty() {
            let layered = history.iter().filter(|item| !item.is_empty_layer()).count();
            self.count("history items with a layer", layered, "diff_ids in the config", diff_ids.len());
        }
        for (number, (layer, diff_id)) in image.layers.iter().zip(&diff_ids).enumerate() {
            if layer.diff_id != *diff_id {
                self.0.push(Violation::DiffId { number, expected: *diff_id, actual: layer.diff_id });
            }
        }
    }

    /// Reads a layer once: both digests and the size.
    fn layer(&mut self, number: usize, descriptor: &Descriptor, diff_id: DiffId, read: ReadBlob<'_>) {
        let name = format!("layer {number}");
        let facts = read(descriptor).and_then(|blob| hash_layer(blob, &descriptor.media_type));
        match facts {
            Err(error) => self.0.push(Violation::Blob { blob: name, reason: error.to_string() }),
            Ok((digest, size, unpacked)) => {
                if digest != descriptor.digest {
                    let expected = descriptor.digest;
                    self.0.push(Violation::Digest { blob: name.clone(), expected, actual: digest });
                }
                if size != descriptor.size {
                    self.0.push(Violation::Size { blob: name, expected: descriptor.size, actual: size });
                }
                if let Some(actual) = unpacked.filter(|actual| *actual != diff_id) {
                    self.0.push(Violation::DiffId { number, expected: diff_id, actual });
                }
            }
        }
    }
}

/// Hashes what passes.
struct Hashing<R> {
    inner: R,
    hasher: Hasher,
    bytes: u64,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.hasher.update(&buf[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// Digest, size and, for known compressions, diff_id of a layer.
fn hash_layer(blob: Box<dyn Read>, media_type: &MediaType) -> io::Result<(BlobDigest, u64, Option<DiffId>)> {
    let mut compressed = Hashing { inner: blob, hasher: Hasher::default(), bytes: 0 };
    let unpacked = match media_type {
        MediaType::OciLayerGzip | MediaType::DockerLayerGzip => {
            Some(hash_all(flate2::read::MultiGzDecoder::new(&mut compressed))?)
        }
        MediaType::OciLayerZstd | MediaType::DockerLayerZstd => Some(hash_all(zstd::Decoder::new(&mut compressed)?)?),
        _ => None,
    };
    // What lies behind the end of the compressed stream belongs to the blob.
    io::copy(&mut compressed, &mut io::sink())?;
    let digest = compressed.hasher.finish();
    let plain = matches!(media_type, MediaType::OciLayer | MediaType::DockerLayer);
    Ok((BlobDigest(digest), compressed.bytes, unpacked.or_else(|| plain.then_some(DiffId(digest)))))
}

fn hash_all(mut reader: impl Read) -> io::Result<DiffId> {
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(DiffId(hasher.finish())),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::MediaTypes;
    use super::super::assemble::tests::example;
    use super::*;

    fn texts(image: &Image, read: Option<ReadBlob<'_>>) -> Vec<String> {
        validate(image, read).iter().map(Violation::to_string).collect()
    }

    fn change_config(image: &mut Image, change: impl FnOnce(&mut ImageConfig)) {
        let mut config = image.parsed_config().expect("an object");
        change(&mut config);
        image.config = crate::oci::canonical_json(config.raw()).expect("an object");
        let digest = BlobDigest(Sha256::of(&image.config));
        image.config_descriptor.digest = digest;
        image.config_descriptor.size = image.config.len() as u64;
        let mut manifest: ImageManifest = serde_json::from_slice(&image.manifest).expect("a manifest");
        manifest.config = image.config_descriptor.clone();
        image.manifest = serde_json::to_vec_pretty(&manifest).expect("a manifest");
        image.digest = BlobDigest(Sha256::of(&image.manifest));
    }

    #[test]
    fn a_changed_byte_is_found() {
        let mut image = example(None, MediaTypes::Oci);
        image.config.push(b' ');
        let found = texts(&image, None);
        assert!(found[0].starts_with("config sha256:") && found[1].starts_with("config has "), "{found:?}");
        let mut image = example(None, MediaTypes::Oci);
        image.manifest.truncate(10);
        let found = texts(&image, None);
        assert!(
            found[0].starts_with("manifest sha256:") && found[1].starts_with("the manifest cannot be read"),
            "{found:?}"
        );
    }

    #[test]
    fn all_violations_are_told() {
        let mut image = example(None, MediaTypes::Oci);
        change_config(&mut image, |config| {
            config.raw_mut().insert("rootfs".to_owned(), serde_json::json!({ "diff_ids": ["nonsense"] }));
            config.raw_mut().remove("os");
        });
        assert_eq!(
            texts(&image, None),
            [
                "1 diff_ids in the config, but 0 of them digests",
                "rootfs.type is , expected layers",
                "os is nothing, expected a name",
                "platform of the config is /arm64, expected linux/arm64",
                "2 history items with a layer, but 0 diff_ids in the config",
                "2 layers in the manifest, but 0 diff_ids in the config",
            ]
        );
    }

    #[test]
    fn layers_are_read() {
        let image = example(None, MediaTypes::Oci);
        let good = |descriptor: &Descriptor| -> io::Result<Box<dyn Read>> {
            let bytes: &[u8] = if descriptor.size == 4 { b"base" } else { b"new" };
            Ok(Box::new(bytes))
        };
        assert_eq!(texts(&image, Some(&good)), [""; 0]);
        let bad = |_: &Descriptor| -> io::Result<Box<dyn Read>> { Ok(Box::new(&b"base!"[..])) };
        assert_eq!(validate(&image, Some(&bad)).len(), 6);
        let gone = |_: &Descriptor| -> io::Result<Box<dyn Read>> { Err(io::ErrorKind::NotFound.into()) };
        assert_eq!(
            texts(&image, Some(&gone)),
            ["layer 0 cannot be read: entity not found", "layer 1 cannot be read: entity not found"]
        );
    }

    #[test]
    fn compressed_layers_are_unpacked() {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"tar").expect("a vector");
        let gzip = gzip.finish().expect("a vector");
        let zstd = zstd::encode_all(&b"tar"[..], 1).expect("a slice");
        for (bytes, media_type) in [(gzip, MediaType::OciLayerGzip), (zstd, MediaType::DockerLayerZstd)] {
            let (digest, size, diff_id) =
                hash_layer(Box::new(io::Cursor::new(bytes.clone())), &media_type).expect("valid");
            assert_eq!(digest, BlobDigest(Sha256::of(&bytes)));
            assert_eq!(size, bytes.len() as u64);
            assert_eq!(diff_id, Some(DiffId(Sha256::of(b"tar"))));
        }
    }

    #[test]
    fn an_image_survives_bytes() {
        let image = example(None, MediaTypes::Docker);
        let again = Image::from_bytes(image.manifest_type.clone(), image.manifest.clone(), image.config.clone())
            .expect("valid");
        assert_eq!(again, image);
    }
}
