//! `object_store` over our own HTTP client.
//!
//! Its futures are run on the calling thread, and requests block there: nothing here knows an asynchronous runtime. It is
//! told not to repeat requests, because [`crate::http`] does, and its own waits would need one.

use std::future::Future;
use std::io::{self, Read as _};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use http_body::{Body, Frame};
use object_store::RetryConfig;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpResponseBody, HttpService,
};

use crate::cancel::Cancel;
use crate::http::{self as ours, BodyReader, Method, Request, Secret, Url};

/// One piece of a body, in bytes.
const PIECE_BYTES: usize = 256 * 1024;

/// Headers that are never shown.
const SECRET_HEADERS: [&str; 3] =
    ["authorization", "x-amz-security-token", "x-amz-server-side-encryption-customer-key"];

/// Makes the clients of an object store.
#[derive(Debug, Clone)]
pub(super) struct Connector {
    pub(super) client: ours::Client,
    /// For addresses that exist inside of a cloud only.
    pub(super) metadata: ours::Client,
    pub(super) cancel: Cancel,
}

impl Connector {
    pub(super) fn new(client: &ours::Client, cancel: &Cancel) -> Self {
        Self { client: client.clone(), metadata: super::metadata_client(client), cancel: cancel.clone() }
    }

    /// One request.
    pub(super) fn send(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let (parts, body) = request.into_parts();
        let bad =
            |text: String| HttpError::new(HttpErrorKind::Unknown, io::Error::new(io::ErrorKind::InvalidInput, text));
        let url = Url::parse(&parts.uri.to_string()).map_err(|_| bad("an object store made a bad URL".to_owned()))?;
        let method = match parts.method.as_str() {
            "GET" => Method::Get,
            "HEAD" => Method::Head,
            "PUT" => Method::Put,
            "POST" => Method::Post,
            "DELETE" => Method::Delete,
            other => return Err(bad(format!("an object store asked for {other}"))),
        };
        let inside = url.host_str().is_some_and(|host| host.starts_with("169.254.") || host.starts_with("[fd00:ec2::"));
        let client = if inside { &self.metadata } else { &self.client };
        let mut request = Request::new(method, url);
        let mut content_type = String::new();
        for (name, value) in &parts.headers {
            let value = value.to_str().map_err(|_| bad(format!("header {name} is no text")))?;
            if name == http::header::CONTENT_TYPE {
                value.clone_into(&mut content_type);
            } else if SECRET_HEADERS.contains(&name.as_str()) {
                request = request.secret_header(name.as_str(), Secret::new(value));
            } else if name != http::header::CONTENT_LENGTH && name != http::header::HOST {
                request = request.header(name.as_str(), value);
            }
        }
        if !body.is_empty() {
            let bytes = body.as_bytes().ok_or_else(|| bad("a body in parts".to_owned()))?;
            request = request.bytes(&content_type, bytes.to_vec());
        } else if !content_type.is_empty() {
            request = request.header("Content-Type", content_type);
        }
        let response = client.send(request, &self.cancel).map_err(sorted)?;
        let mut answer = http::Response::builder().status(response.status());
        for (name, value) in response.all_headers() {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
                answer = answer.header(name, value);
            }
        }
        let body = HttpResponseBody::new(Pieces(Mutex::new(Some(response.into_reader()))));
        answer.body(body).map_err(|error| HttpError::new(HttpErrorKind::Decode, error))
    }
}

fn sorted(error: ours::HttpError) -> HttpError {
    let kind = match error {
        ours::HttpError::Unreachable { .. } => HttpErrorKind::Connect,
        ours::HttpError::Stalled { .. } => HttpErrorKind::Timeout,
        ours::HttpError::Truncated { .. } => HttpErrorKind::Interrupted,
        _ => HttpErrorKind::Unknown,
    };
    HttpError::new(kind, error)
}

impl HttpConnector for Connector {
    fn connect(&self, _options: &object_store::ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.clone()))
    }
}

impl HttpService for Connector {
    fn call<'a, 'b>(
        &'a self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move { self.send(request) })
    }
}

/// A body as it is read. Behind a lock only because bodies must be shareable; nobody shares this one.
struct Pieces(Mutex<Option<BodyReader>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(self: Pin<&mut Self>, _context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let mut reader = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(body) = reader.as_mut() else { return Poll::Ready(None) };
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match body.read(&mut piece) {
                Ok(0) => {
                    *reader = None;
                    return Poll::Ready(None);
                }
                Ok(length) => {
                    piece.truncate(length);
                    return Poll::Ready(Some(Ok(Frame::data(Bytes::from(piece)))));
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    *reader = None;
                    let error = match ours::HttpError::from_io(error) {
                        Ok(error) => sorted(error),
                        Err(error) => HttpError::new(HttpErrorKind::Interrupted, error),
                    };
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }
}

/// No repetition here: the client underneath repeats.
pub(super) fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, retry_timeout: Duration::ZERO, ..RetryConfig::default() }
}

/// Our own HTTP error, if that is what an object store's error comes from.
pub(super) fn cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e ours::HttpError> {
    std::iter::successors(Some(error), |error| error.source()).find_map(|error| error.downcast_ref())
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Runs a future on this thread to its end.
pub(super) fn block_on<F: Future>(future: F) -> F::Output {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(value) => return value,
            Poll::Pending => thread::park(),
        }
    }
}
