//! Blobs as streams: verified, and resumed where they were cut.

use std::fmt;
use std::io::{self, Read};

use url::Url;

use super::auth::Scopes;
use super::host::Call;
use super::{Registry, RegistryError};
use crate::cancel::Cancel;
use crate::http::{BodyReader, HttpError, Request, Response};
use crate::oci::{BlobDigest, Descriptor, Hasher, Reference};

/// Bytes that must come between two cuts for the count of attempts to begin anew: a connection that is cut now and then
/// still brings a large layer home, one that is cut at every turn ends.
const PROGRESS_BYTES: u64 = 1 << 20;

/// A blob on its way from a registry. Reading fails, with a [`RegistryError`] inside, before the last byte is handed out if
/// size or digest are wrong; a cut connection is resumed with a `Range` request.
pub struct BlobStream {
    registry: Registry,
    location: Reference,
    descriptor: Descriptor,
    cancel: Cancel,
    /// `None` when the stream began in the middle, where nothing can be verified.
    hasher: Option<Hasher>,
    offset: u64,
    body: Option<BodyReader>,
    attempt: u32,
    last_cut: u64,
    done: bool,
}

impl Registry {
    /// Opens a blob of the repository that `location` names (see [`super::Manifest::location`]). The request is sent now.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn open_blob(
        &self,
        location: &Reference,
        descriptor: &Descriptor,
        cancel: &Cancel,
    ) -> Result<BlobStream, RegistryError> {
        BlobStream::open(self, location, descriptor, cancel)
    }

    /// The rest of a blob from `offset` on, for resuming a copy into another registry. Only the size is checked here: the
    /// registry that receives it checks the digest.
    ///
    /// # Errors
    /// [`RegistryError`]
    pub fn open_blob_at(
        &self,
        location: &Reference,
        descriptor: &Descriptor,
        offset: u64,
        cancel: &Cancel,
    ) -> Result<BlobStream, RegistryError> {
        let mut stream = BlobStream::new(self, location, descriptor, cancel);
        stream.offset = offset;
        stream.last_cut = offset;
        stream.hasher = (offset == 0).then(Hasher::default);
        stream.start()?;
        Ok(stream)
    }
}

impl BlobStream {
    fn new(registry: &Registry, location: &Reference, descriptor: &Descriptor, cancel: &Cancel) -> Self {
        Self {
            registry: registry.clone(),
            location: location.clone(),
            descriptor: descriptor.clone(),
            cancel: cancel.clone(),
            hasher: Some(Hasher::default()),
            offset: 0,
            body: None,
            attempt: 1,
            last_cut: 0,
            done: false,
        }
    }

    pub(super) fn open(
        registry: &Registry,
        location: &Reference,
        descriptor: &Descriptor,
        cancel: &Cancel,
    ) -> Result<Self, RegistryError> {
        let mut stream = Self::new(registry, location, descriptor, cancel);
        stream.start()?;
        Ok(stream)
    }

    /// Digest of the blob.
    pub fn digest(&self) -> BlobDigest {
        self.descriptor.digest
    }

    /// Everything, for small blobs whose size was checked.
    pub(super) fn read_whole(mut self) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        match self.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(error.downcast().unwrap_or_else(|error: io::Error| RegistryError::Source {
                digest: Some(self.descriptor.digest),
                source: error,
            })),
        }
    }

    fn call(&self) -> Call<'_> {
        let repository = self.location.repository();
        let host = self.registry.host(self.location.registry());
        Call { host, repository, scopes: Scopes::pull(repository), action: "a blob" }
    }

    /// Sends the request for what is left.
    fn start(&mut self) -> Result<(), RegistryError> {
        let digest = self.descriptor.digest;
        let offset = self.offset;
        let ranged = |url: Url| {
            let request = Request::get(url);
            if offset > 0 { request.header("Range", format!("bytes={offset}-")) } else { request }
        };
        let call = self.call();
        let mut response = self.registry.send(&call, &self.cancel, &|base| {
            Ok(ranged(base.join(&format!("/v2/{}/blobs/{digest}", call.repository))?))
        })?;
        if response.status() == 404
            && let Some(elsewhere) = self.descriptor.urls.iter().find_map(|url| Url::parse(url).ok())
        {
            // A foreign layer (image-spec, descriptor.md, `urls`); it is verified like any other.
            response = self
                .registry
                .client()
                .send(ranged(elsewhere), &self.cancel)
                .map_err(|error| RegistryError::http(&call.host.registry, error))?;
        }
        match response.status() {
            404 => Err(RegistryError::BlobNotFound { place: call.place(), digest }),
            200 | 206 => {
                let body = self.positioned(response)?;
                self.body = Some(body);
                Ok(())
            }
            _ => Err(self.registry.refused(&call, response)),
        }
    }

    /// The body of `response`, from our offset on.
    fn positioned(&self, response: Response) -> Result<BodyReader, RegistryError> {
        let begins = match response.status() {
            206 => response.header("Content-Range").and_then(range_start).unwrap_or(self.offset),
            _ => 0,
        };
        if begins > self.offset {
            let lacks = "a byte range that was asked for";
            return Err(RegistryError::NotARegistry { registry: self.location.registry().to_owned(), lacks });
        }
        if let Some(length) = response.content_length()
            && begins + length != self.descriptor.size
        {
            return Err(self.wrong_size(begins + length));
        }
        let mut body = response.into_reader();
        let mut skip = (&mut body).take(self.offset - begins);
        let skipped = io::copy(&mut skip, &mut io::sink());
        skipped.map_err(|error| self.sorted(error))?;
        Ok(body)
    }

    fn wrong_size(&self, actual: u64) -> RegistryError {
        RegistryError::WrongSize {
            place: self.call().place(),
            digest: self.descriptor.digest,
            expected: self.descriptor.size,
            actual,
        }
    }

    fn sorted(&self, error: io::Error) -> RegistryError {
        match HttpError::from_io(error) {
            Ok(error) => RegistryError::http(self.location.registry(), error),
            Err(source) => RegistryError::Source { digest: Some(self.descriptor.digest), source },
        }
    }

    /// After a cut: waits and asks for the rest, or gives up with the error.
    fn resume(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.body = None;
        if self.offset - self.last_cut >= PROGRESS_BYTES {
            self.attempt = 1;
        }
        self.last_cut = self.offset;
        let mut error = error;
        loop {
            self.attempt += 1;
            let client = self.registry.client();
            let delay = client.options().retry.delay(self.attempt, None).filter(|_| error.is_temporary());
            let Some(delay) = delay else { return Err(error) };
            tracing::debug!(digest = %self.descriptor.digest, offset = self.offset, %error, "resuming a blob");
            let url = self.registry.base(&self.call().host, &self.cancel)?;
            client
                .pause(&url, self.attempt, delay, &self.cancel)
                .map_err(|error| RegistryError::http(self.location.registry(), error))?;
            match self.start() {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
    }

    fn next(&mut self, buf: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            let Some(body) = &mut self.body else {
                return Err(self.wrong_size(self.offset));
            };
            match body.read(buf) {
                Ok(0) if self.descriptor.size == 0 => return self.finish().map(|()| 0),
                Ok(0) => {
                    // An end without error before the announced size: a server that does not announce lengths was cut.
                    let error = HttpError::Truncated {
                        url: self.location.to_string(),
                        received: self.offset,
                        expected: Some(self.descriptor.size),
                        source: "the body ended early".into(),
                    };
                    self.resume(RegistryError::http(self.location.registry(), error))?;
                }
                Ok(count) => {
                    self.offset += count as u64;
                    if self.offset > self.descriptor.size {
                        return Err(self.wrong_size(self.offset));
                    }
                    if let Some(hasher) = &mut self.hasher {
                        hasher.update(&buf[..count]);
                    }
                    if self.offset == self.descriptor.size {
                        self.finish()?;
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let error = self.sorted(error);
                    self.resume(error)?;
                }
            }
        }
    }

    /// All bytes are here: verifies them.
    fn finish(&mut self) -> Result<(), RegistryError> {
        self.body = None;
        if let Some(hasher) = self.hasher.take() {
            let actual = BlobDigest(hasher.finish());
            let expected = self.descriptor.digest;
            if actual != expected {
                return Err(RegistryError::WrongDigest {
                    place: self.call().place(),
                    what: "blob",
                    expected,
                    actual,
                    bytes: self.offset,
                });
            }
        }
        self.done = true;
        Ok(())
    }
}

impl Read for BlobStream {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.done || buf.is_empty() {
            return Ok(0);
        }
        self.next(buf).map_err(|error| {
            // A reader that goes on after an error must not take the rest for the blob.
            self.body = None;
            error.into()
        })
    }
}

impl fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BlobStream({} at {} of {})", self.descriptor.digest, self.offset, self.descriptor.size)
    }
}

/// `N` of `bytes N-M/T` (RFC 9110, 14.4).
fn range_start(header: &str) -> Option<u64> {
    header.trim().strip_prefix("bytes")?.trim_start().split('-').next()?.parse().ok()
}
