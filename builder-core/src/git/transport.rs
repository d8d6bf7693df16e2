//! git's smart HTTP protocol over slipway's own client, so that proxies, certificates and limits are the same everywhere.

use std::cell::RefCell;
use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::rc::Rc;

use gix_error::Error;
use gix_transport::client::blocking_io::http::{GetResponse, Http, PostBodyDataKind, PostResponse};

use crate::cancel::Cancel;
use crate::hint::chain;
use crate::http::{BodyReader, Client, Method, Request, Response, Secret};

/// [`Http`] over [`Client`].
pub(super) struct ClientTransport {
    client: Client,
    cancel: Cancel,
    authorization: Option<Secret>,
}

impl ClientTransport {
    pub(super) fn new(client: Client, cancel: Cancel, authorization: Option<Secret>) -> Self {
        Self { client, cancel, authorization }
    }

    fn request(&self, method: Method, url: &str, headers: &[(String, String)]) -> io::Result<Request<'static>> {
        let url = url::Url::parse(url).map_err(io::Error::other)?;
        let mut request = Request::new(method, url);
        for (name, value) in headers {
            request = match name.as_str() {
                "authorization" => request.secret_header(name, Secret::new(value.clone())),
                // Set with the body.
                "content-type" => request,
                _ => request.header(name, value.clone()),
            };
        }
        if let Some(authorization) = &self.authorization {
            request = request.secret_header("Authorization", authorization.clone());
        }
        Ok(request)
    }
}

fn pairs(headers: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<(String, String)> {
    headers
        .into_iter()
        .filter_map(|line| {
            let (name, value) = line.as_ref().split_once(':')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        })
        .collect()
}

/// A success with its header lines, or the error that gix expects for its status.
fn opened(response: Response) -> io::Result<(Cursor<Vec<u8>>, BufReader<BodyReader>)> {
    if matches!(response.status(), 401 | 403) {
        let status = response.status();
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("the server answered {status}")));
    }
    let response = response.error_for_status().map_err(|error| io::Error::other(chain(&error)))?;
    let content_type = response.header("Content-Type").unwrap_or_default();
    let lines = format!("content-type: {content_type}\n").into_bytes();
    Ok((Cursor::new(lines), BufReader::new(response.into_reader())))
}

impl Http for ClientTransport {
    type Headers = Part;
    type ResponseBody = Part;
    type PostBody = PostBody;

    fn get(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix_error::Result<GetResponse<Part, Part>> {
        let request = self.request(Method::Get, url, &pairs(headers)).map_err(Error::from_error)?;
        let sent = self.client.send(request, &self.cancel).map_err(|error| io::Error::other(chain(&error)));
        let (headers, body) = sent.and_then(opened).map_err(Error::from_error)?;
        Ok(GetResponse { headers: Part::Headers(headers), body: Part::Body(Box::new(body)) })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix_error::Result<PostResponse<Part, Part, PostBody>> {
        let headers = pairs(headers);
        let content_type =
            headers.iter().find(|(name, _)| name == "content-type").map(|(_, value)| value.clone()).unwrap_or_default();
        let exchange = Rc::new(RefCell::new(Exchange::Writing {
            client: self.client.clone(),
            cancel: self.cancel.clone(),
            request: Some(self.request(Method::Post, url, &headers).map_err(Error::from_error)?),
            content_type,
            body: Vec::new(),
        }));
        Ok(PostResponse {
            post_body: PostBody(Rc::clone(&exchange)),
            headers: Part::Later { exchange: Rc::clone(&exchange), wants_headers: true, ready: None },
            body: Part::Later { exchange, wants_headers: false, ready: None },
        })
    }

    fn configure(&mut self, _config: &dyn std::any::Any) -> gix_error::Result {
        Ok(())
    }
}

/// A POST: gix writes the body first and reads afterwards, so it is sent when something is read.
pub(super) enum Exchange {
    Writing { client: Client, cancel: Cancel, request: Option<Request<'static>>, content_type: String, body: Vec<u8> },
    Answered { headers: Option<Cursor<Vec<u8>>>, body: Option<BufReader<BodyReader>> },
    Failed,
}

impl Exchange {
    fn send(&mut self) -> io::Result<()> {
        let Self::Writing { client, cancel, request, content_type, body } = self else { return Ok(()) };
        let Some(request) = request.take() else { return Ok(()) };
        let request = request.bytes(content_type, std::mem::take(body));
        let answer = client.send(request, cancel).map_err(|error| io::Error::other(chain(&error))).and_then(opened);
        match answer {
            Ok((headers, body)) => {
                *self = Self::Answered { headers: Some(headers), body: Some(body) };
                Ok(())
            }
            Err(error) => {
                *self = Self::Failed;
                Err(error)
            }
        }
    }
}

/// What gix writes: wants and haves, small in a fetch without history.
pub(super) struct PostBody(Rc<RefCell<Exchange>>);

impl Write for PostBody {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *self.0.borrow_mut() {
            Exchange::Writing { body, .. } => body.extend_from_slice(bytes),
            _ => return Err(io::ErrorKind::BrokenPipe.into()),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Header lines or body of an answer.
pub(super) enum Part {
    Headers(Cursor<Vec<u8>>),
    Body(Box<BufReader<BodyReader>>),
    /// Of an answer that has not been asked for yet.
    Later {
        exchange: Rc<RefCell<Exchange>>,
        wants_headers: bool,
        ready: Option<Box<Part>>,
    },
}

impl Part {
    fn inner(&mut self) -> io::Result<&mut dyn BufRead> {
        match self {
            Self::Headers(lines) => Ok(lines),
            Self::Body(body) => Ok(body),
            Self::Later { exchange, wants_headers, ready } => {
                if ready.is_none() {
                    let mut exchange = exchange.borrow_mut();
                    exchange.send()?;
                    let Exchange::Answered { headers, body } = &mut *exchange else {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    };
                    let part = match wants_headers {
                        true => headers.take().map(Part::Headers),
                        false => body.take().map(Box::new).map(Part::Body),
                    };
                    *ready = part.map(Box::new);
                }
                ready.as_mut().ok_or(io::ErrorKind::UnexpectedEof)?.inner()
            }
        }
    }
}

impl Read for Part {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.inner()?.read(buf)
    }
}

impl BufRead for Part {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner()?.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        // Only what `fill_buf` showed is consumed, so the part is there.
        if let Ok(inner) = self.inner() {
            inner.consume(amount);
        }
    }
}
