//! Manifests: fetched with a size limit, checked against their digest, sorted by what they are.

use std::io::Read;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::auth::Scopes;
use super::host::Call;
use super::{BlobStream, Place, Registry, RegistryError};
use crate::cancel::Cancel;
use crate::http::{HttpError, Method, Request, Response};
use crate::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};

/// Answers of registries, and of proxies before them, that do not know HEAD (RFC 9110, 15.5.6 and 15.6.2).
pub(super) const NO_HEAD: [u16; 2] = [405, 501];

/// What we can read, most wanted first.
const MANIFEST_TYPES: &[MediaType] =
    &[MediaType::OciIndex, MediaType::OciManifest, MediaType::DockerIndex, MediaType::DockerManifest];

/// A manifest or index as it came, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// An image manifest or an index.
    pub media_type: MediaType,
    /// SHA-256 of the bytes.
    pub digest: BlobDigest,
    /// The registry and repository that had it, with the tag or digest that was asked for; its blobs are there too.
    pub location: Reference,
}

impl Registry {
    /// Gets what `reference` names, from the first mirror that has it or from its own registry.
    ///
    /// # Errors
    /// [`RegistryError`] of the registry itself, or of the last mirror if that is not asked.
    pub fn manifest(&self, reference: &Reference, cancel: &Cancel) -> Result<Manifest, RegistryError> {
        let mut last = None;
        for location in self.options().locations(reference) {
            match self.manifest_at(&location, reference, cancel) {
                Ok(manifest) => return Ok(manifest),
                Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(error) => {
                    tracing::debug!(%location, %error, "no manifest from here");
                    // That one mirror lacks the image says less than that another is down or refuses us.
                    let keep = matches!(last, Some(ref known) if !matches!(known, RegistryError::NotFound { .. }))
                        && matches!(error, RegistryError::NotFound { .. });
                    if !keep {
                        last = Some(error);
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::NotFound { reference: reference.to_string() }))
    }

    /// Gets a manifest from exactly this registry and repository; `shown` is what errors call it.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn manifest_at(
        &self,
        location: &Reference,
        shown: &Reference,
        cancel: &Cancel,
    ) -> Result<Manifest, RegistryError> {
        let name = location.manifest_name();
        let call = self.manifest_call(location);
        let response = self.manifest_request(&call, Method::Get, &name, cancel)?;
        if response.status() == 404 {
            return Err(RegistryError::NotFound { reference: shown.to_string() });
        }
        if !response.is_success() {
            return Err(self.refused(&call, response));
        }
        let content_type = response.header("Content-Type").map(str::to_owned);
        let announced = response.header("Docker-Content-Digest").map(str::to_owned);
        let bytes = self.document(&call, "manifest", &name, response, cancel, &|| {
            self.manifest_request(&call, Method::Get, &name, cancel)
        })?;
        let digest = BlobDigest(Sha256::of(&bytes));
        if let Some(expected) = location.digest()
            && expected != digest
        {
            let (what, bytes) = ("manifest", bytes.len() as u64);
            return Err(RegistryError::WrongDigest { place: call.place(), what, expected, actual: digest, bytes });
        }
        // Other algorithms cannot be compared; what was asked for by digest has been.
        if let Some(announced) = announced
            && announced.starts_with("sha256:")
            && announced != digest.to_string()
        {
            return Err(RegistryError::WrongDigestHeader { place: call.place(), name, announced, actual: digest });
        }
        let media_type = classify(content_type.as_deref(), &bytes, shown)?;
        Ok(Manifest { bytes, media_type, digest, location: location.clone() })
    }

    /// What `reference` names in its own registry, without fetching it; `None` if it is not there.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn manifest_digest(&self, reference: &Reference, cancel: &Cancel) -> Result<Option<BlobDigest>, RegistryError> {
        let call = self.manifest_call(reference);
        let response = self.manifest_request(&call, Method::Head, &reference.manifest_name(), cancel)?;
        match response.status() {
            404 => Ok(None),
            status if !response.is_success() && !NO_HEAD.contains(&status) => Err(self.refused(&call, response)),
            // Without HEAD there is no header either.
            _ => match response.header("Docker-Content-Digest").and_then(|text| text.parse().ok()) {
                Some(digest) => Ok(Some(digest)),
                None => self.manifest_at(reference, reference, cancel).map(|manifest| Some(manifest.digest)),
            },
        }
    }

    /// Reads a small blob, such as a config, whole.
    ///
    /// # Errors
    /// [`RegistryError::TooLarge`] before any of it is read, or as [`Registry::open_blob`].
    pub fn small_blob(
        &self,
        location: &Reference,
        descriptor: &Descriptor,
        what: &'static str,
        cancel: &Cancel,
    ) -> Result<Vec<u8>, RegistryError> {
        let limit = self.options().metadata_bytes;
        if descriptor.size > limit {
            let place = Place::new(location.registry(), location.repository());
            let name = descriptor.digest.to_string();
            return Err(RegistryError::TooLarge { place, what, name, limit });
        }
        BlobStream::open(self, location, descriptor, cancel)?.read_whole()
    }

    fn manifest_call<'a>(&self, location: &'a Reference) -> Call<'a> {
        let repository = location.repository();
        let host = self.host(location.registry());
        Call { host, repository, scopes: Scopes::pull(repository), action: "the manifest" }
    }

    fn manifest_request(
        &self,
        call: &Call<'_>,
        method: Method,
        name: &str,
        cancel: &Cancel,
    ) -> Result<Response, RegistryError> {
        let accept = MANIFEST_TYPES.iter().map(MediaType::as_str).collect::<Vec<_>>().join(", ");
        self.send(call, cancel, &|base| {
            let url = base.join(&format!("/v2/{}/manifests/{name}", call.repository))?;
            Ok(Request::new(method, url).header("Accept", &accept))
        })
    }

    /// The body of a small document; asked for again when it was cut.
    fn document(
        &self,
        call: &Call<'_>,
        what: &'static str,
        name: &str,
        first: Response,
        cancel: &Cancel,
        again: &dyn Fn() -> Result<Response, RegistryError>,
    ) -> Result<Vec<u8>, RegistryError> {
        let limit = self.options().metadata_bytes;
        let mut response = first;
        let mut attempt = 1;
        loop {
            let url = response.url().clone();
            let encoding = response.header("Content-Encoding").unwrap_or_default().to_ascii_lowercase();
            let too_large = || {
                let name = name.to_owned();
                RegistryError::TooLarge { place: call.place(), what, name, limit }
            };
            let error = match response.into_bytes(limit) {
                Ok(bytes) if encoding == "gzip" => return decoded(bytes, limit).ok_or_else(too_large),
                Ok(bytes) => return Ok(bytes),
                Err(HttpError::TooLarge { .. }) => return Err(too_large()),
                Err(error) => error,
            };
            attempt += 1;
            let retry = self.client().options().retry.delay(attempt, None);
            let Some(delay) = retry.filter(|_| matches!(error, HttpError::Truncated { .. })) else {
                return Err(RegistryError::http(&call.host.registry, error));
            };
            let paused = self.client().pause(&url, attempt, delay, cancel);
            paused.map_err(|error| RegistryError::http(&call.host.registry, error))?;
            response = again()?;
            if !response.is_success() {
                return Err(self.refused(call, response));
            }
        }
    }
}

/// A document that came with `Content-Encoding: gzip`, though nobody asks for one; some stores are told to say so of all they have.
/// `None` if it has more than `limit` bytes. What is not gzip stays as it is: its digest says whether that is right.
fn decoded(bytes: Vec<u8>, limit: u64) -> Option<Vec<u8>> {
    let mut document = Vec::new();
    let mut decoder = flate2::read::MultiGzDecoder::new(bytes.as_slice()).take(limit.saturating_add(1));
    if decoder.read_to_end(&mut document).is_err() {
        return Some(bytes);
    }
    (document.len() as u64 <= limit).then_some(document)
}

/// What a document is: by its own `mediaType`, else by `Content-Type`, else by its fields. A document that could be read
/// both as an image and as an index is refused (CVE-2021-41190).
pub(crate) fn classify(
    content_type: Option<&str>,
    bytes: &[u8],
    shown: &Reference,
) -> Result<MediaType, RegistryError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Probe {
        media_type: Option<String>,
        manifests: Option<IgnoredAny>,
        config: Option<IgnoredAny>,
        layers: Option<IgnoredAny>,
    }
    let reference = || shown.to_string();
    let header = content_type.map(|text| text.split(';').next().unwrap_or_default().trim()).map(MediaType::from);
    let known = |media_type: &MediaType| media_type.is_index() || media_type.is_manifest();
    let probe: Probe = match serde_json::from_slice(bytes) {
        Ok(probe) => probe,
        Err(source) => {
            return Err(match header {
                Some(media_type @ MediaType::Other(_)) if !media_type.as_str().contains("json") => {
                    RegistryError::UnsupportedMediaType { reference: reference(), media_type }
                }
                _ => RegistryError::BadDocument { reference: reference(), what: "manifest", source },
            });
        }
    };
    let image = probe.config.is_some() || probe.layers.is_some();
    let index = probe.manifests.is_some();
    if image && index {
        return Err(RegistryError::AmbiguousManifest { reference: reference() });
    }
    let own = probe.media_type.as_deref().filter(|text| !text.is_empty()).map(MediaType::from);
    let found = own.or(header.filter(known)).or(match (index, image) {
        (true, _) => Some(MediaType::OciIndex),
        (_, true) => Some(MediaType::OciManifest),
        _ => None,
    });
    match found {
        Some(media_type) if media_type.is_index() && image || media_type.is_manifest() && index => {
            Err(RegistryError::AmbiguousManifest { reference: reference() })
        }
        Some(media_type) if known(&media_type) => Ok(media_type),
        found => {
            let media_type = found.unwrap_or_else(|| MediaType::from(content_type.unwrap_or("application/json")));
            Err(RegistryError::UnsupportedMediaType { reference: reference(), media_type })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart() {
        let shown: Reference = "x".parse().expect("a reference");
        let check = |header: Option<&str>, body: &str, expected: Result<MediaType, &str>| {
            let found = classify(header, body.as_bytes(), &shown).map_err(|error| format!("{error:?}"));
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{header:?} {body}"),
                (Err(found), Err(expected)) => assert!(found.starts_with(expected), "{header:?} {body}: {found}"),
                (found, expected) => panic!("{header:?} {body}: {found:?} where {expected:?} was expected"),
            }
        };
        let oci = "application/vnd.oci.image.manifest.v1+json; charset=utf-8";
        check(Some(oci), r#"{"config":{},"layers":[]}"#, Ok(MediaType::OciManifest));
        check(None, r#"{"config":{},"layers":[]}"#, Ok(MediaType::OciManifest));
        check(Some("text/plain"), r#"{"manifests":[]}"#, Ok(MediaType::OciIndex));
        let docker = MediaType::DockerIndex.as_str().to_owned();
        check(None, &format!(r#"{{"mediaType":"{docker}","manifests":[]}}"#), Ok(MediaType::DockerIndex));
        check(Some(oci), r#"{"manifests":[]}"#, Err("Ambiguous"));
        check(None, r#"{"manifests":[],"layers":[]}"#, Err("Ambiguous"));
        check(None, r#"{"schemaVersion":1,"fsLayers":[]}"#, Err("UnsupportedMediaType"));
        check(Some("application/vnd.docker.distribution.manifest.v1+prettyjws"), "{}", Err("UnsupportedMediaType"));
        check(Some(oci), "{", Err("BadDocument"));
        check(Some("text/html"), "<html>", Err("UnsupportedMediaType"));
    }
}
