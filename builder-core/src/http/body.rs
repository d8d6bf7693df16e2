//! Bodies as streams, in both directions.

use std::convert::Infallible;
use std::fmt;
use std::future::Future as _;
use std::io::{self, Read};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::error::{HttpError, innermost};
use super::runtime::{Runtime, Stop};
use super::{Timeouts, redacted};
use crate::cancel::Cancel;

/// One piece of an upload, in bytes: large enough that waking the other thread costs nothing beside it.
const UPLOAD_PIECE_BYTES: usize = 256 * 1024;

/// Pieces that are read ahead of the socket.
const UPLOAD_PIECES_AHEAD: usize = 4;

/// The body of an answer. Read errors hold an [`HttpError`]: silence, a cut, or the cancel flag of the request.
pub struct BodyReader {
    response: reqwest::Response,
    chunk: Box<dyn AsRef<[u8]> + Send + Sync>,
    used: usize,
    received: u64,
    expected: Option<u64>,
    failed: bool,
    runtime: Arc<Runtime>,
    stall: Duration,
    cancel: Cancel,
}

impl BodyReader {
    pub(super) fn new(response: reqwest::Response, runtime: Arc<Runtime>, stall: Duration, cancel: Cancel) -> Self {
        let expected = response.content_length();
        let chunk = Box::new([]);
        Self { response, chunk, used: 0, received: 0, expected, failed: false, runtime, stall, cancel }
    }

    /// Bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    fn next_chunk(&mut self) -> Result<bool, HttpError> {
        let url = || redacted(self.response.url());
        if self.failed {
            let (received, expected) = (self.received, self.expected);
            return Err(HttpError::Truncated { url: url(), received, expected, source: "it failed before".into() });
        }
        let (received, expected) = (self.received, self.expected);
        match self.runtime.wait(self.response.chunk(), self.stall, &self.cancel) {
            Ok(Ok(Some(chunk))) => {
                self.received += chunk.len() as u64;
                self.used = 0;
                self.chunk = Box::new(chunk);
                Ok(true)
            }
            Ok(Ok(None)) => Ok(false),
            Ok(Err(error)) => {
                self.failed = true;
                Err(HttpError::Truncated {
                    url: redacted(self.response.url()),
                    received,
                    expected,
                    source: innermost(error),
                })
            }
            Err(stop) => {
                self.failed = true;
                Err(stopped(stop, redacted(self.response.url()), self.stall))
            }
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        while self.used == (*self.chunk).as_ref().len() {
            if !self.next_chunk()? {
                return Ok(0);
            }
        }
        let rest = &(*self.chunk).as_ref()[self.used..];
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        self.used += count;
        Ok(count)
    }
}

impl fmt::Debug for BodyReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BodyReader({}, {} bytes)", redacted(self.response.url()), self.received)
    }
}

pub(super) fn stopped(stop: Stop, url: String, limit: Duration) -> HttpError {
    match stop {
        Stop::Cancelled => HttpError::Cancelled,
        Stop::Stalled => HttpError::Stalled { url, limit },
    }
}

/// Pieces on their way from the calling thread to the socket.
struct Pieces(mpsc::Receiver<Vec<u8>>);

impl futures_core::Stream for Pieces {
    type Item = Result<Vec<u8>, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(context).map(|piece| piece.map(Ok))
    }
}

/// The running request; it ends when this is dropped.
struct Running(JoinHandle<reqwest::Result<reqwest::Response>>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Answer = Result<reqwest::Result<reqwest::Response>, tokio::task::JoinError>;

/// What came first: room for a piece, or the answer.
enum Next<'a> {
    Room(mpsc::Permit<'a, Vec<u8>>),
    Answered(Answer),
}

/// How an upload ended without our doing.
pub(super) enum Uploaded {
    Answer(reqwest::Result<reqwest::Response>),
    Failed(HttpError),
}

/// Sends `request` with the next `bytes` bytes of `reader` as body. The answer may come before the body is through.
pub(super) fn upload(
    runtime: &Runtime,
    client: &reqwest::Client,
    mut request: reqwest::Request,
    (reader, bytes): (&mut dyn Read, u64),
    timeouts: &Timeouts,
    cancel: &Cancel,
) -> Uploaded {
    let url = redacted(request.url());
    let (sender, receiver) = mpsc::channel(UPLOAD_PIECES_AHEAD);
    *request.body_mut() = Some(reqwest::Body::wrap_stream(Pieces(receiver)));
    request.headers_mut().insert(reqwest::header::CONTENT_LENGTH, bytes.into());
    let mut running = Running(runtime.handle().spawn(client.execute(request)));
    let mut left = bytes;
    while left > 0 {
        let piece = match read_piece(reader, left) {
            Ok(piece) => piece,
            Err(source) => return Uploaded::Failed(HttpError::Source { url, source }),
        };
        left -= piece.len() as u64;
        let next = async {
            let mut room = pin!(sender.reserve());
            let mut closed = false;
            std::future::poll_fn(|context| {
                if let Poll::Ready(answer) = Pin::new(&mut running.0).poll(context) {
                    return Poll::Ready(Next::Answered(answer));
                }
                if closed {
                    return Poll::Pending;
                }
                match room.as_mut().poll(context) {
                    Poll::Ready(Ok(permit)) => Poll::Ready(Next::Room(permit)),
                    // Nobody takes any more: the answer, or the reason why none comes, is on its way.
                    Poll::Ready(Err(_)) => {
                        closed = true;
                        Poll::Pending
                    }
                    Poll::Pending => Poll::Pending,
                }
            })
            .await
        };
        match runtime.wait(next, timeouts.stall, cancel) {
            Ok(Next::Room(permit)) => permit.send(piece),
            Ok(Next::Answered(answer)) => return answered(answer),
            Err(stop) => return Uploaded::Failed(stopped(stop, url, timeouts.stall)),
        }
    }
    drop(sender);
    match runtime.wait(&mut running.0, timeouts.after_upload, cancel) {
        Ok(answer) => answered(answer),
        Err(stop) => Uploaded::Failed(stopped(stop, url, timeouts.after_upload)),
    }
}

fn answered(answer: Answer) -> Uploaded {
    match answer {
        Ok(answer) => Uploaded::Answer(answer),
        Err(error) => Uploaded::Failed(HttpError::Setup { source: error.into() }),
    }
}

fn read_piece(reader: &mut dyn Read, left: u64) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(UPLOAD_PIECE_BYTES)];
    loop {
        match reader.read(&mut piece) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, format!("{left} bytes are missing"))),
            Ok(count) => {
                piece.truncate(count);
                return Ok(piece);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
