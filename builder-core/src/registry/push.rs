//! Pushing: existence, mounts, uploads that resume, manifests (distribution-spec, "Push").

use std::io::{self, Read};

use super::auth::Scopes;
use super::host::Call;
use super::pull::NO_HEAD;
use super::sessions::Sessions;
use super::upload::{Begun, Source, Upload};
use super::{Registry, RegistryError};
use crate::cancel::Cancel;
use crate::http::{Method, Request};
use crate::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};

/// A blob to push.
pub struct BlobToPush<'a> {
    /// Digest and size.
    pub descriptor: &'a Descriptor,
    /// Opens the blob from an offset in bytes on; called again for every attempt.
    pub open: &'a dyn Fn(u64) -> io::Result<Box<dyn Read + 'a>>,
    /// Where the blob is known to be; used only if that is another repository of the same registry.
    pub mount_from: Option<&'a Reference>,
    /// Told how many bytes the registry was sent so far; goes back when a part must be sent again.
    pub progress: &'a dyn Fn(u64),
    /// Where the upload is kept for a later process, should this one be killed; for blobs that can be read again from any offset.
    pub sessions: Option<&'a Sessions>,
    /// Told how many bytes an earlier process had sent, if the upload goes on behind them.
    pub resumed: &'a dyn Fn(u64),
}

impl<'a> BlobToPush<'a> {
    /// A blob that is known to be nowhere else and is sent by this process alone, of which nobody is told.
    pub fn new(descriptor: &'a Descriptor, open: &'a dyn Fn(u64) -> io::Result<Box<dyn Read + 'a>>) -> Self {
        Self { descriptor, open, mount_from: None, progress: &|_| {}, sessions: None, resumed: &|_| {} }
    }
}

/// How a blob came to be in the registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// It was in another repository of the same registry.
    Mounted,
    /// It was sent.
    Uploaded,
}

impl Registry {
    /// Whether the repository has the blob.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn blob_exists(&self, target: &Reference, digest: BlobDigest, cancel: &Cancel) -> Result<bool, RegistryError> {
        let call = self.push_call(target, None);
        self.exists(&call, digest, cancel)
    }

    /// Makes sure that the repository of `target` has the blob: looks, mounts, uploads. Failures that may pass are tried
    /// again, from the byte on that the registry has.
    ///
    /// # Errors
    /// [`RegistryError`]; the registry has no part of the blob under its digest then.
    pub fn push_blob(
        &self,
        target: &Reference,
        blob: &BlobToPush<'_>,
        cancel: &Cancel,
    ) -> Result<Pushed, RegistryError> {
        let from = blob
            .mount_from
            .filter(|from| from.registry() == target.registry() && from.repository() != target.repository());
        let call = self.push_call(target, None);
        if self.exists(&call, blob.descriptor.digest, cancel)? {
            return Ok(Pushed::Existed);
        }
        let BlobToPush { descriptor: &Descriptor { digest, size, .. }, .. } = *blob;
        let kept =
            blob.sessions.and_then(|sessions| sessions.of((target.registry(), target.repository()), digest, size));
        let session = match &kept {
            Some(kept) => self.left_behind(&call, kept, size, cancel)?,
            None => None,
        };
        if let Some(session) = &session {
            (blob.resumed)(session.offset);
        }
        let session = match from {
            // It could not be mounted when its upload began.
            _ if session.is_some() => session,
            Some(from) => {
                let mount = self.push_call(target, Some(from.repository()));
                match self.begin(&mount, Some((blob.descriptor.digest, from.repository())), cancel) {
                    Ok(Begun::Mounted) => return Ok(Pushed::Mounted),
                    Ok(Begun::Session(session)) => Some(session),
                    // No right to read the other repository, or a registry that cannot mount: upload.
                    Err(error @ (RegistryError::Cancelled | RegistryError::Http { .. })) => return Err(error),
                    Err(error) => {
                        tracing::debug!(%error, "the blob cannot be mounted");
                        None
                    }
                }
            }
            None => None,
        };
        let source = Source { digest: Some(blob.descriptor.digest), open: blob.open, progress: blob.progress };
        let mut upload = Upload::new(session, self.options().upload_chunk_bytes);
        upload.kept = kept;
        self.upload(&call, (digest, size), &source, upload, cancel)
    }

    /// Writes a manifest or index under the tag of `target`, or under its digest if `target` has no tag. What it names must be
    /// there already.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn push_manifest(
        &self,
        target: &Reference,
        bytes: &[u8],
        media_type: &MediaType,
        cancel: &Cancel,
    ) -> Result<BlobDigest, RegistryError> {
        let digest = BlobDigest(Sha256::of(bytes));
        let name = target.tag().map_or_else(|| digest.to_string(), str::to_owned);
        let call = Call { action: "the manifest", ..self.push_call(target, None) };
        let response = self.send(&call, cancel, &|base| {
            let url = base.join(&format!("/v2/{}/manifests/{name}", call.repository))?;
            Ok(Request::new(Method::Put, url).bytes(media_type.as_str(), bytes.to_vec()))
        })?;
        if !response.is_success() {
            return Err(self.refused(&call, response));
        }
        match response.header("Docker-Content-Digest") {
            Some(announced) if announced.starts_with("sha256:") && announced != digest.to_string() => {
                Err(RegistryError::WrongDigestHeader {
                    place: call.place(),
                    name,
                    announced: announced.to_owned(),
                    actual: digest,
                })
            }
            _ => Ok(digest),
        }
    }

    /// Finds out whether pushing to the repository is allowed, by beginning an upload and giving it up.
    ///
    /// # Errors
    /// [`RegistryError`], above all `Unauthorized` and `Denied`.
    pub fn check_push(&self, target: &Reference, cancel: &Cancel) -> Result<(), RegistryError> {
        let call = self.push_call(target, None);
        if let Begun::Session(session) = self.begin(&call, None, cancel)? {
            self.give_up(&call, &session, cancel);
        }
        Ok(())
    }

    pub(super) fn push_call<'a>(&self, target: &'a Reference, mount_from: Option<&str>) -> Call<'a> {
        let repository = target.repository();
        let scopes = match mount_from {
            Some(from) => Scopes::push(repository).and_pull(from),
            None => Scopes::push(repository),
        };
        Call { host: self.host(target.registry()), repository, scopes, action: "an upload" }
    }

    pub(super) fn exists(&self, call: &Call<'_>, digest: BlobDigest, cancel: &Cancel) -> Result<bool, RegistryError> {
        let response = self.send(call, cancel, &|base| {
            let url = base.join(&format!("/v2/{}/blobs/{digest}", call.repository))?;
            Ok(Request::new(Method::Head, url))
        })?;
        match response.status() {
            404 => Ok(false),
            status if NO_HEAD.contains(&status) => {
                tracing::debug!(host = call.host.registry, status, "what is there cannot be asked");
                Ok(false)
            }
            _ if response.is_success() => Ok(true),
            _ => Err(self.refused(call, response)),
        }
    }
}
