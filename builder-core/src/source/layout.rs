//! OCI layout directories (image-spec, image-layout.md).

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Document;
use super::error::{LayoutError, SourceError};
use crate::oci::{BlobDigest, Descriptor, ImageIndex, MediaType, Reference, Sha256};

/// Where a layout keeps the tag of a descriptor.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// `path[:tag][@digest]` after `oci-layout://`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutName {
    /// The directory.
    pub path: PathBuf,
    /// The tag, if one was given.
    pub tag: Option<String>,
    /// The digest of an index or manifest, if one was given.
    pub digest: Option<BlobDigest>,
}

impl LayoutName {
    /// Reads `path[:tag][@digest]`.
    ///
    /// # Errors
    /// [`SourceError::Layout`]
    pub fn parse(text: &str) -> Result<Self, SourceError> {
        let bad = || SourceError::Layout { path: PathBuf::from(text), source: LayoutError::BadName };
        let (rest, digest) = match text.rsplit_once('@') {
            Some((rest, digest)) if digest.starts_with("sha256:") => (rest, Some(digest.parse().map_err(|_| bad())?)),
            _ => (text, None),
        };
        let (path, tag) = match rest.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') && !tag.is_empty() => (path, Some(tag.to_owned())),
            _ => (rest, None),
        };
        if path.is_empty() {
            return Err(bad());
        }
        Ok(Self { path: PathBuf::from(path), tag, digest })
    }
}

/// What the name points to in its layout.
pub(super) fn top(name: &LayoutName, limit: u64) -> Result<Document, SourceError> {
    find(name, limit).map_err(|source| SourceError::Layout { path: name.path.clone(), source })
}

fn find(name: &LayoutName, limit: u64) -> Result<Document, LayoutError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        image_layout_version: String,
    }
    let version_path = name.path.join("oci-layout");
    let Version { image_layout_version: version } = parse(&version_path, &read(&version_path, limit)?)?;
    if !version.starts_with("1.") {
        return Err(LayoutError::Version { version });
    }
    let index_path = name.path.join("index.json");
    let index_bytes = read(&index_path, limit)?;
    let index: ImageIndex = parse(&index_path, &index_bytes)?;
    if let Some(digest) = name.digest {
        let listed = index.manifests.iter().find(|descriptor| descriptor.digest == digest);
        let path = blob_path(&name.path, digest);
        if !path.exists() {
            return Err(LayoutError::NotFound { name: digest.to_string() });
        }
        let bytes = verified(&name.path, digest, "manifest", limit)?;
        let media_type = match listed {
            Some(descriptor) => descriptor.media_type.clone(),
            None => media_type(&path, &bytes)?,
        };
        return Ok(Document { bytes, media_type, digest });
    }
    let wanted = name.tag.as_deref().unwrap_or("latest");
    let tagged: Vec<_> = index.manifests.iter().filter(|d| tag_of(d) == Some(wanted)).collect();
    let chosen = match (&tagged[..], &index.manifests[..], &name.tag) {
        ([one], _, _) => one,
        ([], [only], None) => only,
        // Several without a tag that tells them apart: their platforms do.
        ([], [_, _, ..], None) => {
            let digest = BlobDigest(Sha256::of(&index_bytes));
            return Ok(Document { bytes: index_bytes, media_type: MediaType::OciIndex, digest });
        }
        ([first, ..], _, _) => first,
        ([], _, _) => return Err(LayoutError::NotFound { name: wanted.to_owned() }),
    };
    let bytes = verified(&name.path, chosen.digest, "manifest", limit)?;
    Ok(Document { bytes, media_type: chosen.media_type.clone(), digest: chosen.digest })
}

/// The tag of a descriptor; some tools write a whole reference.
fn tag_of(descriptor: &Descriptor) -> Option<&str> {
    let name = descriptor.annotations.get(REF_NAME)?;
    Some(name.rsplit_once(':').map_or(name.as_str(), |(_, tag)| tag))
}

fn media_type(path: &Path, bytes: &[u8]) -> Result<MediaType, LayoutError> {
    // The reference is only for errors, which become ours.
    let shown: Reference = "layout".parse().expect("a plain word is a reference");
    crate::registry::classify(None, bytes, &shown).map_err(|_| LayoutError::Parse {
        path: path.to_owned(),
        source: serde::de::Error::custom("neither an image manifest nor an index"),
    })
}

/// Reads a manifest, index or config that a descriptor names.
pub(super) fn small(
    layout: &Path,
    descriptor: &Descriptor,
    what: &'static str,
    limit: u64,
) -> Result<Vec<u8>, SourceError> {
    verified(layout, descriptor.digest, what, limit)
        .map_err(|source| SourceError::Layout { path: layout.to_owned(), source })
}

/// Opens a blob.
pub(super) fn open(layout: &Path, digest: BlobDigest) -> Result<File, SourceError> {
    let path = blob_path(layout, digest);
    File::open(&path)
        .map_err(|source| SourceError::Layout { path: layout.to_owned(), source: LayoutError::Read { path, source } })
}

fn blob_path(layout: &Path, digest: BlobDigest) -> PathBuf {
    layout.join("blobs/sha256").join(digest.to_hex())
}

fn verified(layout: &Path, digest: BlobDigest, what: &'static str, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let bytes = read(&blob_path(layout, digest), limit)?;
    if bytes.len() as u64 > limit {
        return Err(LayoutError::TooLarge { what, digest, limit });
    }
    let actual = BlobDigest(Sha256::of(&bytes));
    if actual != digest {
        let size = bytes.len() as u64;
        return Err(LayoutError::WrongDigest { expected: digest, actual, bytes: size, size });
    }
    Ok(bytes)
}

/// At most one byte more than `limit`, which shows that there is more.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, LayoutError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut bytes))
        .map_err(|source| LayoutError::Read { path: path.to_owned(), source })?;
    Ok(bytes)
}

fn parse<T: serde::de::DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, LayoutError> {
    serde_json::from_slice(bytes).map_err(|source| LayoutError::Parse { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_path_tag_and_digest() {
        let digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let parsed = |text: &str| LayoutName::parse(text).map_err(|error| error.to_string());
        let name = |path: &str, tag: Option<&str>, digest: Option<&str>| {
            Ok(LayoutName {
                path: path.into(),
                tag: tag.map(str::to_owned),
                digest: digest.map(|text| text.parse().expect("a digest")),
            })
        };
        assert_eq!(parsed("/a/b"), name("/a/b", None, None));
        assert_eq!(parsed("/a/b:1"), name("/a/b", Some("1"), None));
        assert_eq!(parsed("/a:x/b"), name("/a:x/b", None, None));
        assert_eq!(parsed(&format!("/a@{digest}")), name("/a", None, Some(digest)));
        assert_eq!(parsed(&format!("a:t@{digest}")), name("a", Some("t"), Some(digest)));
        for bad in ["", ":t", "@sha256:1", "/a@sha256:1"] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }
}
