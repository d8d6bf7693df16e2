//! Which manifest of an index is meant: the order of preference that containerd has (platforms.Only, images.Manifest).

use super::Document;
use super::error::SourceError;
use crate::oci::{BlobDigest, Descriptor, ImageConfig, ImageIndex, ImageManifest, MediaType, Platform, Sha256};

/// Indexes within indexes that are followed. Real ones have one level, a few tools make two.
const INDEX_LEVELS: usize = 4;

/// The image for a platform.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) digest: BlobDigest,
    pub(super) manifest: ImageManifest,
    pub(super) config: Vec<u8>,
}

/// Reads a document that is named by a descriptor; the text says what it is, for errors.
type Fetch<'a> = dyn Fn(&Descriptor, &'static str) -> Result<Vec<u8>, SourceError> + 'a;

/// Descends from what the name points to down to one image. An image that is not in an index is taken whatever its
/// platform is, as BuildKit does.
pub(super) fn choose(
    reference: &str,
    top: &Document,
    platform: &Platform,
    fetch: &Fetch<'_>,
) -> Result<Chosen, SourceError> {
    let mut available = Vec::new();
    let search = Search { reference, platform, fetch };
    match search.descend(top, None, 0, &mut available)? {
        Some(chosen) => Ok(chosen),
        None => {
            available.sort();
            available.dedup();
            Err(SourceError::NoPlatform {
                reference: reference.to_owned(),
                platform: Box::new(platform.clone()),
                available,
            })
        }
    }
}

struct Search<'a> {
    reference: &'a str,
    platform: &'a Platform,
    fetch: &'a Fetch<'a>,
}

impl Search<'_> {
    /// `listed` is the descriptor that led here; without a platform in it, the image's config decides.
    fn descend(
        &self,
        document: &Document,
        listed: Option<&Descriptor>,
        level: usize,
        available: &mut Vec<Platform>,
    ) -> Result<Option<Chosen>, SourceError> {
        if document.media_type.is_index() {
            return self.descend_index(document, level, available);
        }
        let manifest: ImageManifest = self.parse(&document.bytes)?;
        let config_type = &manifest.config.media_type;
        if !matches!(config_type, MediaType::OciConfig | MediaType::DockerConfig) {
            if listed.is_some() {
                return Ok(None); // an attestation or another artifact beside the images
            }
            let media_type = config_type.clone();
            return Err(SourceError::NotAnImage { reference: self.reference.to_owned(), media_type });
        }
        let config = self.fetch(&manifest.config, "config")?;
        if listed.is_some_and(|descriptor| descriptor.platform.is_none()) {
            let own = ImageConfig::from_json(&config).map(|config| config.platform());
            let own = own.map_err(|source| SourceError::BadConfig { reference: self.reference.to_owned(), source })?;
            if rank(self.platform, &own).is_none() {
                available.push(own);
                return Ok(None);
            }
        }
        Ok(Some(Chosen { digest: document.digest, manifest, config }))
    }

    fn descend_index(
        &self,
        document: &Document,
        level: usize,
        available: &mut Vec<Platform>,
    ) -> Result<Option<Chosen>, SourceError> {
        if level >= INDEX_LEVELS {
            return Err(SourceError::NestedIndex { reference: self.reference.to_owned(), limit: INDEX_LEVELS });
        }
        let index: ImageIndex = self.parse(&document.bytes)?;
        for descriptor in candidates(&index, self.platform, available) {
            let bytes = self.fetch(descriptor, "manifest")?;
            let digest = BlobDigest(Sha256::of(&bytes));
            let child = Document { bytes, media_type: descriptor.media_type.clone(), digest };
            if let Some(chosen) = self.descend(&child, Some(descriptor), level + 1, available)? {
                return Ok(Some(chosen));
            }
        }
        Ok(None)
    }

    fn fetch(&self, descriptor: &Descriptor, what: &'static str) -> Result<Vec<u8>, SourceError> {
        let bytes = (self.fetch)(descriptor, what)?;
        if bytes.len() as u64 == descriptor.size {
            return Ok(bytes);
        }
        Err(SourceError::WrongSize {
            reference: self.reference.to_owned(),
            what,
            digest: descriptor.digest,
            expected: descriptor.size,
            actual: bytes.len() as u64,
        })
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Result<T, SourceError> {
        serde_json::from_slice(bytes)
            .map_err(|source| SourceError::BadManifest { reference: self.reference.to_owned(), source })
    }
}

/// The items that may be it: best platform first, of equal ones the first listed, then those that name no platform.
fn candidates<'a>(index: &'a ImageIndex, wanted: &Platform, available: &mut Vec<Platform>) -> Vec<&'a Descriptor> {
    let mut ranked = Vec::new();
    for descriptor in &index.manifests {
        if !descriptor.media_type.is_index() && !descriptor.media_type.is_manifest() {
            continue;
        }
        match &descriptor.platform {
            None => ranked.push((usize::MAX, descriptor)),
            Some(listed) => {
                let listed = normalised(listed);
                match rank(wanted, &listed) {
                    Some(rank) => ranked.push((rank, descriptor)),
                    // Attestations are listed under this name.
                    None if listed.os == "unknown" => {}
                    None => available.push(listed),
                }
            }
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    ranked.into_iter().map(|(_, descriptor)| descriptor).collect()
}

/// Platforms in indexes are not always written in the normal form.
fn normalised(platform: &Platform) -> Platform {
    let mut normal = Platform::new(&platform.os, &platform.architecture, &platform.variant);
    normal.os_version.clone_from(&platform.os_version);
    normal
}

/// How well `offered` serves `wanted`, 0 being best; `None` if not at all.
fn rank(wanted: &Platform, offered: &Platform) -> Option<usize> {
    // Windows versions must agree in their first three parts when one is asked for.
    if !wanted.os_version.is_empty() && !offered.os_version.is_empty() {
        let build = |version: &str| version.split('.').take(3).map(str::to_owned).collect::<Vec<_>>();
        if build(&wanted.os_version) != build(&offered.os_version) {
            return None;
        }
    }
    let same = |(architecture, variant): &(String, String)| {
        *offered
            == Platform { os_version: offered.os_version.clone(), ..Platform::new(&wanted.os, architecture, variant) }
    };
    runnable(&wanted.architecture, &wanted.variant).iter().position(same)
}

/// What a processor runs, best first (containerd platforms, `platformVector`).
fn runnable(architecture: &str, variant: &str) -> Vec<(String, String)> {
    let pair = |architecture: &str, variant: &str| (architecture.to_owned(), variant.to_owned());
    let version = |text: &str| text.strip_prefix('v').and_then(|text| text.parse::<u32>().ok());
    let mut all = vec![pair(architecture, variant)];
    match architecture {
        "amd64" => {
            let lower = (1..version(variant).unwrap_or(1)).rev();
            all.extend(lower.map(|version| pair("amd64", &format!("v{version}"))));
            all.push(pair("386", ""));
        }
        "arm" => {
            let lower = (5..version(variant).unwrap_or(5)).rev();
            all.extend(lower.map(|version| pair("arm", &format!("v{version}"))));
        }
        "arm64" => {
            all.push(pair("arm64", ""));
            all.extend((5..=8).rev().map(|version| pair("arm", &format!("v{version}"))));
        }
        _ => {}
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(wanted: &str, offered: &[&str], expected: &[&str]) {
        let platform = |text: &str| text.parse::<Platform>().expect("a platform");
        let manifests = offered
            .iter()
            .map(|text| {
                let digest = BlobDigest(Sha256::of(text.as_bytes()));
                let mut descriptor = Descriptor::new(MediaType::OciManifest, digest, 1);
                descriptor.platform = (!text.is_empty()).then(|| platform(text));
                descriptor
            })
            .collect();
        let index = ImageIndex { schema_version: 2, media_type: None, manifests, annotations: Default::default() };
        let chosen = candidates(&index, &platform(wanted), &mut Vec::new());
        let names: Vec<_> =
            chosen.iter().map(|d| d.platform.as_ref().map(ToString::to_string).unwrap_or_default()).collect();
        assert_eq!(names, expected, "{wanted} of {offered:?}");
    }

    #[test]
    fn platforms_are_preferred_as_containerd_does() {
        check("linux/amd64", &["linux/arm64", "linux/amd64", "windows/amd64"], &["linux/amd64"]);
        check("linux/amd64", &["linux/386", "linux/amd64"], &["linux/amd64", "linux/386"]);
        check("linux/amd64", &["linux/amd64/v2"], &[]);
        check("linux/amd64/v3", &["linux/amd64", "linux/amd64/v2"], &["linux/amd64/v2", "linux/amd64"]);
        check("linux/arm64", &["linux/arm/v7", "linux/arm64"], &["linux/arm64", "linux/arm/v7"]);
        check("linux/arm", &["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], &["linux/arm/v6", "linux/arm/v5"]);
        check("linux/s390x", &["linux/amd64", ""], &[""]);
        check("linux/amd64", &["", "linux/amd64"], &["linux/amd64", ""]);
    }
}
