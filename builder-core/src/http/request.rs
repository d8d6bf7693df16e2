//! Requests and answers.

use std::fmt;
use std::io::Read;
use std::time::Duration;

use url::Url;

use super::error::HttpError;
use super::retry::retry_after;
use super::{BodyReader, Secret, redacted};

/// Bytes of an error body that are quoted.
const EXCERPT_BYTES: usize = 300;

/// Bytes of an error body that are read, so that the connection can be used again.
const ERROR_BODY_BYTES: u64 = 64 * 1024;

/// Methods that registries and file servers need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Read.
    Get,
    /// Read the headers only.
    Head,
    /// Write under the URL.
    Put,
    /// Begin something.
    Post,
    /// Write a part.
    Patch,
    /// Remove or give up.
    Delete,
}

/// One request. Idempotent as a rule: it is sent again after temporary failures unless its body is a stream.
#[must_use]
pub struct Request<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: Vec<(String, HeaderText)>,
    pub(super) body: RequestBody<'a>,
    pub(super) retries: bool,
}

/// A header value; secret ones do not survive a redirect to another origin.
#[derive(Debug, Clone)]
pub(super) enum HeaderText {
    Plain(String),
    Secret(Secret),
}

pub(super) enum RequestBody<'a> {
    Empty,
    Bytes(Vec<u8>),
    Stream { reader: &'a mut dyn Read, bytes: u64 },
}

impl<'a> Request<'a> {
    /// A request without body. User and password in the URL become a secret `Authorization` header.
    pub fn new(method: Method, mut url: Url) -> Self {
        let mut headers = Vec::new();
        if !url.username().is_empty() || url.password().is_some() {
            let decode = |text: &str| percent_decoded(text);
            let user = decode(url.username());
            let password = decode(url.password().unwrap_or_default());
            headers.push(("Authorization".to_owned(), HeaderText::Secret(basic(&user, &password))));
            // Both fail only for URLs that cannot hold credentials, and this one did.
            _ = url.set_username("");
            _ = url.set_password(None);
        }
        Self { method, url, headers, body: RequestBody::Empty, retries: true }
    }

    /// A `GET`.
    pub fn get(url: Url) -> Self {
        Self::new(Method::Get, url)
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), HeaderText::Plain(value.into())));
        self
    }

    /// Sets a header that is never shown, and never sent to another origin. It takes the place of one of the same name.
    pub fn secret_header(mut self, name: &str, value: Secret) -> Self {
        self.headers.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
        self.headers.push((name.to_owned(), HeaderText::Secret(value)));
        self
    }

    /// Sets a body that can be sent again.
    pub fn bytes(mut self, content_type: &str, body: Vec<u8>) -> Self {
        self.body = RequestBody::Bytes(body);
        self.header("Content-Type", content_type)
    }

    /// Sets a body of exactly `bytes` bytes that is read once, on the calling thread. The request is not repeated and
    /// redirects are handed to the caller.
    pub fn stream(mut self, content_type: &str, bytes: u64, reader: &'a mut dyn Read) -> Self {
        self.body = RequestBody::Stream { reader, bytes };
        self.retries = false;
        self.header("Content-Type", content_type)
    }

    /// Sends it once only.
    pub fn without_retry(mut self) -> Self {
        self.retries = false;
        self
    }
}

impl fmt::Debug for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {}", self.method, redacted(&self.url))
    }
}

/// The value of `Authorization` for Basic authentication (RFC 7617).
pub(crate) fn basic(user: &str, password: &str) -> Secret {
    use base64::Engine as _;
    Secret::new(format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))))
}

fn percent_decoded(text: &str) -> String {
    // `key=value` parsing also turns `+` into a space, which user names in URLs do not mean.
    let pair = format!("={}", text.replace('+', "%2B"));
    url::form_urlencoded::parse(pair.as_bytes()).map(|(_, value)| value.into_owned()).collect()
}

/// An answer: head read, body not yet.
#[derive(Debug)]
pub struct Response {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) url: Url,
    pub(super) attempts: u32,
    pub(super) body: BodyReader,
}

impl Response {
    /// HTTP status code.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// Whether the status is 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The first header of that name, any case. Bytes that are not UTF-8 make a header invisible.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All headers of that name, any case.
    pub fn headers<'h>(&'h self, name: &'h str) -> impl Iterator<Item = &'h str> {
        self.headers.iter().filter(move |(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// All headers in the order in which they came.
    pub(crate) fn all_headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Where the answer came from, after redirects. May hold secrets in its query: show it through [`redacted`].
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// How often the last hop was tried.
    pub fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How long the server asks to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        retry_after(self.header("Retry-After"), self.header("Date"))
    }

    /// Announced length of the body in bytes.
    pub fn content_length(&self) -> Option<u64> {
        self.header("Content-Length")?.trim().parse().ok()
    }

    /// The body as a stream. Its read errors hold an [`HttpError`].
    pub fn into_reader(self) -> BodyReader {
        self.body
    }

    /// The whole body, if it has at most `limit` bytes; not more than that is ever read.
    ///
    /// # Errors
    /// [`HttpError::TooLarge`], or why the body did not come to its end.
    pub fn into_bytes(self, limit: u64) -> Result<Vec<u8>, HttpError> {
        let too_large = || HttpError::TooLarge { url: redacted(&self.url), limit };
        if self.content_length().is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let url = redacted(&self.url);
        let mut bytes = Vec::new();
        let mut body = self.body.take(limit.saturating_add(1));
        body.read_to_end(&mut bytes).map_err(|error| {
            HttpError::from_io(error).unwrap_or_else(|source| HttpError::Source { url: url.clone(), source })
        })?;
        if bytes.len() as u64 > limit {
            return Err(HttpError::TooLarge { url, limit });
        }
        Ok(bytes)
    }

    /// The body of an error answer, cut at a small limit; what cannot be read of it is left out.
    pub fn into_error_body(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        if let Err(error) = self.body.take(ERROR_BODY_BYTES).read_to_end(&mut bytes) {
            tracing::debug!(%error, "the body of an error answer is cut");
        }
        bytes
    }

    /// Turns every status but 2xx into an error that quotes the body.
    ///
    /// # Errors
    /// [`HttpError::Status`]
    pub fn error_for_status(self) -> Result<Self, HttpError> {
        if self.is_success() {
            return Ok(self);
        }
        let (url, status) = (redacted(&self.url), self.status);
        Err(HttpError::Status { url, status, excerpt: excerpt(&self.into_error_body()) })
    }
}

/// The beginning of a body as one line for an error message: printable, or nothing.
pub(crate) fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(&body[..body.len().min(EXCERPT_BYTES)]);
    let words: Vec<_> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let line = words.join(" ");
    // A page of HTML says nothing that the status does not.
    if line.starts_with('<') || line.contains('\u{fffd}') { String::new() } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_url_become_a_secret_header() {
        let request = Request::get(Url::parse("https://a%40b:p+%3Aw@host/x").expect("a URL"));
        assert_eq!(request.url.as_str(), "https://host/x");
        match &request.headers[..] {
            [(name, HeaderText::Secret(value))] if name == "Authorization" => {
                assert_eq!(value, &basic("a@b", "p+:w"));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn excerpts_are_one_printable_line() {
        for (body, expected) in
            [(&b"a\n b\r\n\x1b[1m"[..], "a b [1m"), (b"<html><body>", ""), (b"\xff\xfe", ""), (b"", "")]
        {
            assert_eq!(excerpt(body), expected);
        }
    }
}
