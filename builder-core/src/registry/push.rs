//! Pushing: existence, mounts, uploads that resume, manifests (distribution-spec, "Push").

use std::cell::Cell;
use std::io::{self, Read};
use std::time::Duration;

use url::Url;

use super::auth::Scopes;
use super::host::{Call, authorized};
use super::{Registry, RegistryError};
use crate::cancel::Cancel;
use crate::http::{HttpError, Method, Request, Response};
use crate::oci::{BlobDigest, Descriptor, MediaType, Reference, Sha256};

/// Size of the pieces once a registry refuses a blob in one piece, in bytes; a fourth is tried after each refusal.
const FIRST_CHUNK_BYTES: u64 = 16 << 20;

/// Pieces smaller than this, in bytes, are not tried: a registry that refuses them refuses us.
const SMALLEST_CHUNK_BYTES: u64 = 64 << 10;

/// Bytes that must have arrived between two failures for the count of attempts to begin anew.
const PROGRESS_BYTES: u64 = 1 << 20;

const BINARY: &str = "application/octet-stream";

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

/// An upload under way.
#[derive(Debug)]
struct Session {
    /// Where the next request goes.
    url: Url,
    /// Bytes that the registry has.
    offset: u64,
    /// The registry takes no smaller pieces but the last (distribution-spec, `OCI-Chunk-Min-Length`).
    min_chunk: u64,
}

/// What the registry said to the beginning of an upload.
enum Begun {
    Mounted,
    Session(Session),
}

/// What became of one request of an upload.
enum Step {
    Done,
    Continue,
    /// The piece was too large.
    TooLarge,
    /// The registry's idea of the upload is not ours.
    Diverged(RegistryError),
    /// It may work the next time, after the delay if the registry named one.
    Failed(RegistryError, Option<Duration>),
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
        let session = match from {
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
        self.upload(&call, blob, session, cancel)
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
            let given_up = self
                .session_request(&call, &session.url, cancel, &|url| Request::new(Method::Delete, url).without_retry());
            if let Err(error) = given_up {
                tracing::debug!(%error, "the registry removes the unused upload itself");
            }
        }
        Ok(())
    }

    fn push_call<'a>(&self, target: &'a Reference, mount_from: Option<&str>) -> Call<'a> {
        let repository = target.repository();
        let scopes = match mount_from {
            Some(from) => Scopes::push(repository).and_pull(from),
            None => Scopes::push(repository),
        };
        Call { host: self.host(target.registry()), repository, scopes, action: "an upload" }
    }

    fn exists(&self, call: &Call<'_>, digest: BlobDigest, cancel: &Cancel) -> Result<bool, RegistryError> {
        let response = self.send(call, cancel, &|base| {
            let url = base.join(&format!("/v2/{}/blobs/{digest}", call.repository))?;
            Ok(Request::new(Method::Head, url))
        })?;
        match response.status() {
            404 => Ok(false),
            _ if response.is_success() => Ok(true),
            _ => Err(self.refused(call, response)),
        }
    }

    fn begin(
        &self,
        call: &Call<'_>,
        mount: Option<(BlobDigest, &str)>,
        cancel: &Cancel,
    ) -> Result<Begun, RegistryError> {
        let response = self.send(call, cancel, &|base| {
            let mut url = base.join(&format!("/v2/{}/blobs/uploads/", call.repository))?;
            if let Some((digest, from)) = mount {
                url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", from);
            }
            Ok(Request::new(Method::Post, url))
        })?;
        match response.status() {
            201 if mount.is_some() => Ok(Begun::Mounted),
            202 => {
                let url = location(&response).ok_or_else(|| no_location(call))?;
                let min_chunk = response.header("OCI-Chunk-Min-Length").and_then(|text| text.trim().parse().ok());
                Ok(Begun::Session(Session { url, offset: 0, min_chunk: min_chunk.unwrap_or(0) }))
            }
            _ => Err(self.refused(call, response)),
        }
    }

    fn upload(
        &self,
        call: &Call<'_>,
        blob: &BlobToPush<'_>,
        mut session: Option<Session>,
        cancel: &Cancel,
    ) -> Result<Pushed, RegistryError> {
        let Descriptor { digest, size, .. } = *blob.descriptor;
        let mut chunk = self.options().upload_chunk_bytes;
        let mut attempt = 1;
        let mut last_failure = 0;
        loop {
            let current = match &mut session {
                Some(session) => session,
                None => match self.begin(call, None, cancel)? {
                    Begun::Session(new) => session.insert(new),
                    Begun::Mounted => return Ok(Pushed::Mounted),
                },
            };
            let (error, asked) = match self.step(call, blob, current, chunk, cancel)? {
                Step::Done => {
                    (blob.progress)(size);
                    return Ok(Pushed::Uploaded);
                }
                Step::Continue => continue,
                Step::TooLarge => {
                    let smaller = chunk.map_or(FIRST_CHUNK_BYTES, |chunk| chunk / 4).min(size.div_ceil(2));
                    if smaller < current.min_chunk.max(SMALLEST_CHUNK_BYTES.min(size)) {
                        return Err(RegistryError::Refused {
                            place: call.place(),
                            action: call.action,
                            status: 413,
                            code: String::new(),
                            message: format!("not even pieces of {} bytes are taken", chunk.unwrap_or(size)),
                            attempts: attempt,
                        });
                    }
                    chunk = Some(smaller);
                    self.resync(call, &mut session, size, cancel)?;
                    continue;
                }
                Step::Diverged(error) => (error, Some(Duration::ZERO)),
                Step::Failed(error, asked) => (error, asked),
            };
            let sent = current.offset;
            let url = current.url.clone();
            if sent >= last_failure + PROGRESS_BYTES {
                attempt = 1;
            }
            last_failure = sent;
            attempt += 1;
            if attempt > 2 && sent == 0 && size > FIRST_CHUNK_BYTES {
                // Some proxies end connections that send too much instead of answering 413; 1 MiB is nginx's own limit.
                chunk = Some(chunk.map_or(FIRST_CHUNK_BYTES, |chunk| (chunk / 16).max(SMALLEST_CHUNK_BYTES)));
            }
            let Some(delay) = self.client().options().retry.delay(attempt, asked) else {
                let (attempts, source) = (attempt - 1, Box::new(error));
                return Err(RegistryError::Upload { place: call.place(), digest, sent, size, attempts, source });
            };
            tracing::debug!(%digest, sent, %error, "an upload failed and is tried again");
            let paused = self.client().pause(&url, attempt, delay, cancel);
            paused.map_err(|error| RegistryError::http(&call.host.registry, error))?;
            self.resync(call, &mut session, size, cancel)?;
            // The answer to the last request may have been lost, not the request.
            if session.is_none() && self.exists(call, digest, cancel)? {
                return Ok(Pushed::Uploaded);
            }
        }
    }

    /// Sends the next piece, or ends the upload.
    fn step(
        &self,
        call: &Call<'_>,
        blob: &BlobToPush<'_>,
        session: &mut Session,
        chunk: Option<u64>,
        cancel: &Cancel,
    ) -> Result<Step, RegistryError> {
        let Descriptor { digest, size, .. } = *blob.descriptor;
        let left = size - session.offset;
        let whole = session.offset == 0 && chunk.is_none_or(|chunk| chunk >= size);
        if whole || left == 0 {
            let mut url = session.url.clone();
            url.query_pairs_mut().append_pair("digest", &digest.to_string());
            let sent = self.send_piece(call, Method::Put, &url, blob, session.offset, left, cancel)?;
            return Ok(match sent {
                Sent::Answer(response) if response.is_success() => Step::Done,
                sent => self.failed(call, sent),
            });
        }
        let piece = chunk.map_or(left, |chunk| chunk.max(session.min_chunk).min(left));
        let sent = self.send_piece(call, Method::Patch, &session.url, blob, session.offset, piece, cancel)?;
        match sent {
            Sent::Answer(response) if response.is_success() => {
                session.url = location(&response).unwrap_or_else(|| session.url.clone());
                // A registry may keep less than it was sent, and says so.
                let kept = response.header("Range").and_then(range_end).filter(|kept| *kept <= session.offset + piece);
                let before = session.offset;
                session.offset = kept.unwrap_or(session.offset + piece);
                if session.offset <= before {
                    let error = RegistryError::NotARegistry {
                        registry: call.host.registry.clone(),
                        lacks: "a memory for the pieces of an upload",
                    };
                    return Ok(Step::Diverged(error));
                }
                Ok(Step::Continue)
            }
            sent => Ok(self.failed(call, sent)),
        }
    }

    /// Sorts what is not a success.
    fn failed(&self, call: &Call<'_>, sent: Sent) -> Step {
        match sent {
            Sent::Answer(response) => {
                let (status, asked) = (response.status(), response.retry_after());
                if status == 413 {
                    return Step::TooLarge;
                }
                let error = self.refused(call, *response);
                match status {
                    // The session is unknown, or elsewhere; the digest did not fit what arrived; the token ran out
                    // while the body was under way.
                    400 | 401 | 404 | 416 => Step::Diverged(error),
                    _ => Step::Failed(error, asked),
                }
            }
            Sent::Broken(error) => Step::Failed(RegistryError::http(&call.host.registry, error), None),
        }
    }

    /// Sends `length` bytes of the blob from `offset` on.
    #[allow(clippy::too_many_arguments, reason = "one request has that many parts, and only `step` makes it")]
    fn send_piece(
        &self,
        call: &Call<'_>,
        method: Method,
        url: &Url,
        blob: &BlobToPush<'_>,
        offset: u64,
        length: u64,
        cancel: &Cancel,
    ) -> Result<Sent, RegistryError> {
        let digest = blob.descriptor.digest;
        let base = self.base(&call.host, cancel)?;
        let ours = url.origin() == base.origin();
        let mut authorization = if ours { self.authorization(call, cancel)? } else { None };
        let mut renewed = false;
        loop {
            let source = if length == 0 { Ok(Box::new(io::empty()) as Box<dyn Read>) } else { (blob.open)(offset) };
            let source = source.map_err(|source| RegistryError::Source { digest, source })?;
            let mut reader = Counting { inner: source, sent: Cell::new(offset), progress: blob.progress };
            let mut request = Request::new(method, url.clone()).stream(BINARY, length, &mut reader);
            if method == Method::Patch {
                // Not the form of RFC 9110 but that of the distribution-spec: no unit, no total.
                request = request.header("Content-Range", format!("{offset}-{}", offset + length - 1));
            }
            let response = match self.client().send(authorized(request, authorization.as_ref()), cancel) {
                Ok(response) => response,
                Err(HttpError::Cancelled) => return Err(RegistryError::Cancelled),
                Err(HttpError::Source { source, .. }) => return Err(RegistryError::Source { digest, source }),
                Err(error) if error.is_temporary() => return Ok(Sent::Broken(error)),
                Err(error) => return Err(RegistryError::http(&call.host.registry, error)),
            };
            if response.status() != 401 || !ours || renewed {
                return Ok(Sent::Answer(Box::new(response)));
            }
            authorization = Some(self.renew(call, authorization.as_ref(), response, cancel)?);
            renewed = true;
        }
    }

    /// Asks how much of an upload arrived. A session that cannot be asked, or that has more than we have, is given up.
    fn resync(
        &self,
        call: &Call<'_>,
        session: &mut Option<Session>,
        size: u64,
        cancel: &Cancel,
    ) -> Result<(), RegistryError> {
        let Some(current) = session.take() else { return Ok(()) };
        let answer = self.session_request(call, &current.url, cancel, &|url| Request::get(url));
        let response = match answer {
            Ok(response) => response,
            Err(RegistryError::Cancelled) => return Err(RegistryError::Cancelled),
            Err(error) => {
                tracing::debug!(%error, "the upload cannot be asked for its state");
                return Ok(());
            }
        };
        let offset = response.header("Range").and_then(range_end);
        if matches!(response.status(), 200 | 202 | 204)
            && let Some(offset) = offset.filter(|offset| *offset <= size)
        {
            let url = location(&response).unwrap_or(current.url);
            *session = Some(Session { url, offset, min_chunk: current.min_chunk });
        }
        Ok(())
    }

    /// A request without body to the URL of an upload, which may be on another host.
    fn session_request(
        &self,
        call: &Call<'_>,
        url: &Url,
        cancel: &Cancel,
        make: &dyn Fn(Url) -> Request<'static>,
    ) -> Result<Response, RegistryError> {
        let base = self.base(&call.host, cancel)?;
        if url.origin() == base.origin() {
            return self.send(call, cancel, &|_| Ok(make(url.clone())));
        }
        let sent = self.client().send(make(url.clone()), cancel);
        sent.map_err(|error| RegistryError::http(&call.host.registry, error))
    }
}

/// What came of a piece.
enum Sent {
    Answer(Box<Response>),
    Broken(HttpError),
}

/// Tells the progress while it is read.
struct Counting<'a> {
    inner: Box<dyn Read + 'a>,
    sent: Cell<u64>,
    progress: &'a dyn Fn(u64),
}

impl Read for Counting<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        if count > 0 {
            self.sent.set(self.sent.get() + count as u64);
            (self.progress)(self.sent.get());
        }
        Ok(count)
    }
}

/// `Location`, absolute or relative to where the answer came from.
fn location(response: &Response) -> Option<Url> {
    response.url().join(response.header("Location")?).ok()
}

fn no_location(call: &Call<'_>) -> RegistryError {
    RegistryError::NotARegistry { registry: call.host.registry.clone(), lacks: "a Location for the upload" }
}

/// Bytes that `0-N` covers. Registries write `0-0` for an empty upload, so it counts as that; if one byte has arrived, the
/// registry refuses the next piece and the upload begins anew.
fn range_end(header: &str) -> Option<u64> {
    let text = header.trim();
    let text = text.strip_prefix("bytes=").unwrap_or(text);
    let (start, end) = text.split_once('-')?;
    let end: u64 = end.trim().parse().ok()?;
    if start.trim() != "0" {
        return None;
    }
    Some(if end == 0 { 0 } else { end + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_ranges_are_lengths() {
        for (header, expected) in [
            ("0-9", Some(10)),
            ("bytes=0-9", Some(10)),
            ("0-0", Some(0)),
            ("5-9", None),
            ("", None),
            ("0-", None),
            ("x", None),
        ] {
            assert_eq!(range_end(header), expected, "{header:?}");
        }
    }
}
