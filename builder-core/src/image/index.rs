//! The list of one image for each of several platforms (checklist X-08).

use std::collections::BTreeMap;

use super::{Image, MediaTypes};
use crate::oci::{BlobDigest, ImageIndex, MediaType, Platform, Sha256};

/// An index: exact bytes and what is known of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The bytes that are hashed.
    pub bytes: Vec<u8>,
    /// OCI index or Docker manifest list.
    pub media_type: MediaType,
    /// Digest of the bytes.
    pub digest: BlobDigest,
}

/// Why an index cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IndexError {
    /// No image at all.
    #[error("an index needs at least one image")]
    Empty,
    /// Two images for one platform.
    #[error("two images for platform {platform}")]
    Twice {
        /// Which.
        platform: Box<Platform>,
    },
    /// OCI and Docker manifests in one list.
    #[error("image for {platform} has media type {found}, expected {expected}")]
    Mixed {
        /// The image.
        platform: Box<Platform>,
        /// Its type.
        found: MediaType,
        /// That of the others.
        expected: MediaType,
    },
    /// Docker's manifest lists have no annotations (checklist X-09).
    #[error("cannot export annotations with \"oci-mediatypes=false\"")]
    DockerAnnotations,
    /// The document cannot be written.
    #[error("cannot write the index's JSON")]
    Json(#[from] serde_json::Error),
}

/// Writes the index of `images`, in their order. `annotations` are those of the index itself; `descriptors` are those of the
/// manifests' descriptors, by platform.
///
/// # Errors
/// [`IndexError`]
pub fn index(
    images: &[&Image],
    media_types: MediaTypes,
    annotations: &BTreeMap<String, String>,
    descriptors: &BTreeMap<Platform, BTreeMap<String, String>>,
) -> Result<Index, IndexError> {
    if images.is_empty() {
        return Err(IndexError::Empty);
    }
    if media_types == MediaTypes::Docker && !(annotations.is_empty() && descriptors.is_empty()) {
        return Err(IndexError::DockerAnnotations);
    }
    let expected = media_types.manifest();
    let mut manifests = Vec::with_capacity(images.len());
    for (position, image) in images.iter().enumerate() {
        let platform = || Box::new(image.platform.clone());
        if image.manifest_type != expected {
            return Err(IndexError::Mixed { platform: platform(), found: image.manifest_type.clone(), expected });
        }
        if images[..position].iter().any(|other| other.platform == image.platform) {
            return Err(IndexError::Twice { platform: platform() });
        }
        let mut descriptor = image.descriptor();
        descriptor.annotations = descriptors.get(&image.platform).cloned().unwrap_or_default();
        descriptor.platform = Some(image.platform.clone());
        manifests.push(descriptor);
    }
    let media_type = match media_types {
        MediaTypes::Oci => MediaType::OciIndex,
        MediaTypes::Docker => MediaType::DockerIndex,
    };
    let index = ImageIndex {
        schema_version: 2,
        media_type: Some(media_type.clone()),
        manifests,
        annotations: annotations.clone(),
    };
    let bytes = serde_json::to_vec_pretty(&index)?;
    Ok(Index { digest: BlobDigest(Sha256::of(&bytes)), bytes, media_type })
}

#[cfg(test)]
mod tests {
    use super::super::assemble::tests::example;
    use super::*;
    use crate::image::validate_index;

    #[test]
    fn platforms_in_order() {
        let arm = example(None, MediaTypes::Oci);
        let amd = Image { platform: Platform::new("linux", "amd64", ""), ..arm.clone() };
        let notes = BTreeMap::from([("k".to_owned(), "v".to_owned())]);
        let descriptors = BTreeMap::from([(arm.platform.clone(), notes.clone())]);
        let written = index(&[&amd, &arm], MediaTypes::Oci, &notes, &descriptors).expect("valid");
        let read: ImageIndex = serde_json::from_slice(&written.bytes).expect("just written");
        let platforms: Vec<String> =
            read.manifests.iter().filter_map(|manifest| Some(manifest.platform.as_ref()?.to_string())).collect();
        assert_eq!(platforms, ["linux/amd64", "linux/arm64"]);
        assert_eq!(read.manifests[1].annotations, notes);
        assert!(read.manifests[0].annotations.is_empty());
        assert_eq!(validate_index(&written, &[&arm.clone(), &arm]).len(), 1, "one platform is wrong on purpose");
        assert_eq!(validate_index(&written, &[&amd, &arm]), []);
    }

    #[test]
    fn mistakes() {
        let image = example(None, MediaTypes::Oci);
        let none = BTreeMap::new();
        let text = |images: &[&Image], types| {
            index(images, types, &none, &BTreeMap::new()).map_err(|error| error.to_string()).err().unwrap_or_default()
        };
        assert_eq!(text(&[], MediaTypes::Oci), "an index needs at least one image");
        assert_eq!(text(&[&image, &image], MediaTypes::Oci), "two images for platform linux/arm64");
        assert!(text(&[&image], MediaTypes::Docker).starts_with("image for linux/arm64 has media type"));
    }
}
