//! One upload: a session of the registry, the pieces that go there, and what is done when one of them fails
//! (distribution-spec, "Pushing a blob in chunks").

use std::cell::Cell;
use std::io::{self, Read};
use std::time::Duration;

use url::Url;

use super::host::{Call, authorized};
use super::sessions::Kept;
use super::{Pushed, Registry, RegistryError};
use crate::cancel::Cancel;
use crate::http::{HttpError, Method, Request, Response};
use crate::oci::BlobDigest;

/// Size of the pieces once a registry refuses a blob in one piece, in bytes; a fourth is tried after each refusal.
const FIRST_CHUNK_BYTES: u64 = 16 << 20;

/// Pieces smaller than this, in bytes, are not tried: a registry that refuses them refuses us.
const SMALLEST_CHUNK_BYTES: u64 = 64 << 10;

/// Bytes that must have arrived between two failures for the count of attempts to begin anew.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Redirects that one piece follows, as many as other requests do.
const REDIRECT_LIMIT: usize = 10;

const BINARY: &str = "application/octet-stream";

/// Where the bytes of a blob come from.
pub(super) struct Source<'a> {
    /// For errors; `None` while it is not known.
    pub(super) digest: Option<BlobDigest>,
    /// Opens the blob from an offset in bytes on.
    pub(super) open: &'a dyn Fn(u64) -> io::Result<Box<dyn Read + 'a>>,
    /// Told how many bytes were sent so far.
    pub(super) progress: &'a dyn Fn(u64),
}

/// An upload as the registry knows it.
#[derive(Debug)]
pub(super) struct Session {
    /// Where the next request goes.
    pub(super) url: Url,
    /// Bytes that the registry has.
    pub(super) offset: u64,
    /// The registry takes no smaller pieces but the last (distribution-spec, `OCI-Chunk-Min-Length`).
    pub(super) min_chunk: u64,
}

/// What the registry said to the beginning of an upload.
pub(super) enum Begun {
    Mounted,
    Session(Session),
}

/// An upload under way.
pub(super) struct Upload {
    /// `None` before the first request, and after the registry lost it.
    pub(super) session: Option<Session>,
    /// Largest piece, in bytes; `None`: all that there is.
    pub(super) chunk: Option<u64>,
    /// Whether what is left is tried in the request that ends the upload, which saves a round trip.
    pub(super) rest_with_end: bool,
    /// Where it is noted for later processes.
    pub(super) kept: Option<Kept>,
    /// Number of the attempt, counted from 1; anew after progress.
    attempt: u32,
    /// Bytes that the registry had at the last failure.
    last_failure: u64,
}

impl Upload {
    pub(super) fn new(session: Option<Session>, chunk: Option<u64>) -> Self {
        Self { session, chunk, rest_with_end: false, kept: None, attempt: 1, last_failure: 0 }
    }
}

/// What became of one request of an upload.
pub(super) enum Step {
    /// The upload has ended.
    Done,
    /// The piece has arrived, at least a part of it.
    Continue,
    /// The piece, of so many bytes, was too large.
    TooLarge(u64),
    /// The registry's idea of the upload is not ours.
    Diverged(RegistryError),
    /// It may work the next time, after the delay if the registry named one.
    Failed(RegistryError, Option<Duration>),
}

/// Why an upload is not tried again.
pub(super) enum GaveUp {
    /// No attempt is left.
    Attempts { sent: u64, attempts: u32, error: RegistryError },
    /// What no further attempt can help.
    Final(RegistryError),
}

impl From<RegistryError> for GaveUp {
    fn from(error: RegistryError) -> Self {
        Self::Final(error)
    }
}

impl Registry {
    /// Begins an upload, or mounts a blob of another repository.
    pub(super) fn begin(
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

    /// Sends what is missing of a blob and ends the upload.
    pub(super) fn upload(
        &self,
        call: &Call<'_>,
        (digest, size): (BlobDigest, u64),
        source: &Source<'_>,
        mut upload: Upload,
        cancel: &Cancel,
    ) -> Result<Pushed, RegistryError> {
        let pushed = self.send_missing(call, (digest, size), source, &mut upload, cancel)?;
        if let Some(kept) = upload.kept {
            kept.ended();
        }
        Ok(pushed)
    }

    fn send_missing(
        &self,
        call: &Call<'_>,
        (digest, size): (BlobDigest, u64),
        source: &Source<'_>,
        upload: &mut Upload,
        cancel: &Cancel,
    ) -> Result<Pushed, RegistryError> {
        loop {
            let session = match &mut upload.session {
                Some(session) => session,
                none => match self.begin(call, None, cancel)? {
                    Begun::Session(new) => none.insert(new),
                    Begun::Mounted => return Ok(Pushed::Mounted),
                },
            };
            if let Some(kept) = &upload.kept {
                kept.note(session);
            }
            let left = size - session.offset;
            let fits = upload.chunk.is_none_or(|chunk| chunk >= left);
            let step = if left == 0 || fits && (session.offset == 0 || upload.rest_with_end) {
                self.put(call, source, session, (digest, left), cancel)?
            } else {
                let piece = upload.chunk.map_or(left, |chunk| chunk.max(session.min_chunk).min(left));
                self.patch(call, source, session, piece, cancel)?
            };
            match step {
                Step::Done => {
                    (source.progress)(size);
                    return Ok(Pushed::Uploaded);
                }
                Step::Continue => continue,
                failed => match self.recover(call, upload, failed, size, cancel) {
                    Ok(()) => {}
                    Err(GaveUp::Final(error)) => return Err(error),
                    Err(GaveUp::Attempts { sent, attempts, error }) => {
                        let (place, source) = (call.place(), Box::new(error));
                        return Err(RegistryError::Upload { place, digest, sent, size, attempts, source });
                    }
                },
            }
            // The answer to the last request may have been lost, not the request.
            if upload.session.is_none() && self.exists(call, digest, cancel)? {
                return Ok(Pushed::Uploaded);
            }
        }
    }

    /// After a request that failed: pauses, makes pieces smaller, asks how much arrived. The upload has no session then if the
    /// registry lost it. `size` are the bytes of the blob as far as they are known.
    pub(super) fn recover(
        &self,
        call: &Call<'_>,
        upload: &mut Upload,
        step: Step,
        size: u64,
        cancel: &Cancel,
    ) -> Result<(), GaveUp> {
        upload.rest_with_end = false;
        let Some(current) = &upload.session else { return Ok(()) };
        let (sent, url) = (current.offset, current.url.clone());
        let (error, asked) = match step {
            Step::Done | Step::Continue => return Ok(()),
            Step::TooLarge(piece) => {
                let smaller = upload.chunk.map_or(FIRST_CHUNK_BYTES, |chunk| chunk / 4).min(piece.div_ceil(2));
                if smaller < current.min_chunk.max(SMALLEST_CHUNK_BYTES.min(piece)) {
                    return Err(GaveUp::Final(RegistryError::Refused {
                        place: call.place(),
                        action: call.action,
                        status: 413,
                        code: String::new(),
                        message: format!("not even pieces of {piece} bytes are taken"),
                        attempts: upload.attempt,
                    }));
                }
                upload.chunk = Some(smaller);
                return Ok(self.resync(call, &mut upload.session, size, &|url| Request::get(url), cancel)?);
            }
            Step::Diverged(error) => (error, Some(Duration::ZERO)),
            Step::Failed(error, asked) => (error, asked),
        };
        if sent >= upload.last_failure + PROGRESS_BYTES {
            upload.attempt = 1;
        }
        upload.last_failure = sent;
        upload.attempt += 1;
        if upload.attempt > 2 && sent == 0 && size > FIRST_CHUNK_BYTES {
            // Some proxies end connections that send too much instead of answering 413; 1 MiB is nginx's own limit.
            let smaller = upload.chunk.map_or(FIRST_CHUNK_BYTES, |chunk| (chunk / 16).max(SMALLEST_CHUNK_BYTES));
            upload.chunk = Some(smaller);
        }
        let Some(delay) = self.client().options().retry.delay(upload.attempt, asked) else {
            return Err(GaveUp::Attempts { sent, attempts: upload.attempt - 1, error });
        };
        tracing::debug!(place = %call.place(), sent, %error, "an upload failed and is tried again");
        let paused = self.client().pause(&url, upload.attempt, delay, cancel);
        paused.map_err(|error| RegistryError::http(&call.host.registry, error))?;
        Ok(self.resync(call, &mut upload.session, size, &|url| Request::get(url), cancel)?)
    }

    /// What an earlier process began and did not end, if the registry still knows it. It is asked once: what does not answer now
    /// is begun anew.
    pub(super) fn left_behind(
        &self,
        call: &Call<'_>,
        kept: &Kept,
        size: u64,
        cancel: &Cancel,
    ) -> Result<Option<Session>, RegistryError> {
        let mut session = kept.found();
        self.resync(call, &mut session, size, &|url| Request::get(url).without_retry(), cancel)?;
        Ok(session)
    }

    /// Sends the last `left` bytes and ends the upload as the blob `digest`.
    fn put(
        &self,
        call: &Call<'_>,
        source: &Source<'_>,
        session: &Session,
        (digest, left): (BlobDigest, u64),
        cancel: &Cancel,
    ) -> Result<Step, RegistryError> {
        let mut url = session.url.clone();
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let piece = Piece { method: Method::Put, url: &url, offset: session.offset, length: left };
        Ok(match self.send_piece(call, source, &piece, cancel)? {
            Sent::Answer(response) if response.is_success() => Step::Done,
            sent => self.failed(call, sent, left),
        })
    }

    /// Sends the next `length` bytes.
    pub(super) fn patch(
        &self,
        call: &Call<'_>,
        source: &Source<'_>,
        session: &mut Session,
        length: u64,
        cancel: &Cancel,
    ) -> Result<Step, RegistryError> {
        let piece = Piece { method: Method::Patch, url: &session.url, offset: session.offset, length };
        match self.send_piece(call, source, &piece, cancel)? {
            Sent::Answer(response) if response.is_success() => {
                session.url = location(&response).unwrap_or_else(|| session.url.clone());
                // A registry may keep less than it was sent, and says so.
                let kept = response.header("Range").and_then(range_end).filter(|kept| *kept <= session.offset + length);
                let before = session.offset;
                session.offset = kept.unwrap_or(session.offset + length);
                if session.offset <= before {
                    let error = RegistryError::NotARegistry {
                        registry: call.host.registry.clone(),
                        lacks: "a memory for the pieces of an upload",
                    };
                    return Ok(Step::Diverged(error));
                }
                Ok(Step::Continue)
            }
            sent => Ok(self.failed(call, sent, length)),
        }
    }

    /// Sorts what is not a success.
    fn failed(&self, call: &Call<'_>, sent: Sent, length: u64) -> Step {
        match sent {
            Sent::Answer(response) => {
                let (status, asked) = (response.status(), response.retry_after());
                if status == 413 {
                    return Step::TooLarge(length);
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

    fn send_piece(
        &self,
        call: &Call<'_>,
        source: &Source<'_>,
        piece: &Piece<'_>,
        cancel: &Cancel,
    ) -> Result<Sent, RegistryError> {
        let Piece { method, url, offset, length } = *piece;
        let digest = source.digest;
        let base = self.base(&call.host, cancel)?;
        let mut url = url.clone();
        let mut redirects = 0;
        let mut ours = url.origin() == base.origin();
        let mut authorization = if ours { self.authorization(call, cancel)? } else { None };
        let mut renewed = false;
        loop {
            let bytes = if length == 0 { Ok(Box::new(io::empty()) as Box<dyn Read>) } else { (source.open)(offset) };
            let bytes = bytes.map_err(|source| RegistryError::Source { digest, source })?;
            let mut reader = Counting { inner: bytes, sent: Cell::new(offset), progress: source.progress };
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
            // The client cannot: it would have to read the bytes again.
            if matches!(response.status(), 307 | 308)
                && redirects < REDIRECT_LIMIT
                && let Some(to) = location(&response)
            {
                redirects += 1;
                ours = to.origin() == base.origin();
                authorization = if ours { self.authorization(call, cancel)? } else { None };
                url = to;
                continue;
            }
            if response.status() != 401 || !ours || renewed {
                return Ok(Sent::Answer(Box::new(response)));
            }
            authorization = Some(self.renew(call, authorization.as_ref(), response, cancel)?);
            renewed = true;
        }
    }

    /// Tells the registry that an upload will not be ended. One that does not take that, or is not told because the build was
    /// cancelled, removes it some day by itself.
    pub(super) fn give_up(&self, call: &Call<'_>, session: &Session, cancel: &Cancel) {
        let delete = |url| Request::new(Method::Delete, url).without_retry();
        if let Err(error) = self.session_request(call, &session.url, cancel, &delete) {
            tracing::debug!(%error, "the registry removes the unused upload itself");
        }
    }

    /// Asks how much of an upload arrived. A session that cannot be asked, or that has more than we have, is given up.
    fn resync(
        &self,
        call: &Call<'_>,
        session: &mut Option<Session>,
        size: u64,
        get: &dyn Fn(Url) -> Request<'static>,
        cancel: &Cancel,
    ) -> Result<(), RegistryError> {
        let Some(current) = session.take() else { return Ok(()) };
        let answer = self.session_request(call, &current.url, cancel, get);
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

/// One body of an upload.
struct Piece<'a> {
    method: Method,
    url: &'a Url,
    /// Of its first byte in the blob.
    offset: u64,
    /// Of the body in bytes.
    length: u64,
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
