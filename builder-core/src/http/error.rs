//! Why a request did not get an answer, or its answer not to the end.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::hint::Hint;

/// Any error behind ours.
pub(crate) type Cause = Box<dyn Error + Send + Sync>;

/// Why a request did not get an answer, or its answer not to the end. URLs are redacted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HttpError {
    /// The text is not a URL of scheme `http` or `https`.
    #[error("`{url}` is not an http or https URL")]
    BadUrl {
        /// What was given, redacted where it could be parsed.
        url: String,
    },
    /// A header value cannot be sent.
    #[error("the value for header `{name}` holds characters that HTTP does not allow")]
    BadHeader {
        /// Name of the header.
        name: String,
    },
    /// No connection, or it broke before the answer.
    #[error("cannot reach {url} ({attempts} attempts)")]
    Unreachable {
        /// Where to.
        url: String,
        /// How often it was tried.
        attempts: u32,
        /// Why.
        source: Cause,
    },
    /// The TLS handshake failed: certificates, versions, or the other side speaks plain HTTP.
    #[error("cannot establish a secure connection to {url}")]
    Tls {
        /// Where to.
        url: String,
        /// Why.
        source: Cause,
    },
    /// Nothing came or went for too long.
    #[error("{url} was silent for {} seconds", limit.as_secs())]
    Stalled {
        /// Whom we waited for.
        url: String,
        /// How long.
        limit: Duration,
    },
    /// The connection ended before the body did.
    #[error("{url} ended after {received} of {} bytes", expected.map_or_else(|| "an unknown number of".to_owned(), |n| n.to_string()))]
    Truncated {
        /// Where from.
        url: String,
        /// Bytes that came.
        received: u64,
        /// Bytes that were announced, if any were.
        expected: Option<u64>,
        /// Why.
        source: Cause,
    },
    /// The body is larger than anything that is sensible there.
    #[error("the answer of {url} is larger than {limit} bytes")]
    TooLarge {
        /// Where from.
        url: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The answer is not a success.
    #[error("{url} answered {status}{}{excerpt}", if excerpt.is_empty() { "" } else { ": " })]
    Status {
        /// Who.
        url: String,
        /// HTTP status code.
        status: u16,
        /// The beginning of the body, one line.
        excerpt: String,
    },
    /// One redirect too many.
    #[error("{url} redirects more than {limit} times")]
    RedirectLoop {
        /// Where it began.
        url: String,
        /// How many were followed.
        limit: usize,
    },
    /// A redirect that cannot be followed.
    #[error("{url} redirects to `{location}`, which cannot be followed")]
    BadRedirect {
        /// Who.
        url: String,
        /// The header `Location`, redacted where it could be parsed.
        location: String,
    },
    /// The body of an upload could not be read.
    #[error("cannot read what should be sent to {url}")]
    Source {
        /// Where to.
        url: String,
        /// Why.
        source: io::Error,
    },
    /// A certificate or key file is unusable.
    #[error("cannot use certificate file `{}`", path.display())]
    CertificateFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: Cause,
    },
    /// A proxy setting is not a proxy's URL.
    #[error("the proxy for {scheme} URLs is not a valid proxy URL")]
    Proxy {
        /// `http` or `https`.
        scheme: &'static str,
        /// Why.
        source: Cause,
    },
    /// The client could not be set up.
    #[error("cannot set up the HTTP client")]
    Setup {
        /// Why.
        source: Cause,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl HttpError {
    /// Finds the error again that a [`super::BodyReader`] reported through `Read`.
    pub fn in_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Takes the error back out of what a [`super::BodyReader`] reported through `Read`.
    ///
    /// # Errors
    /// Gives the error back if it is none of ours.
    pub fn from_io(error: io::Error) -> Result<Self, io::Error> {
        error.downcast()
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Stalled { .. } | Self::Truncated { .. } => true,
            Self::Status { status, .. } => super::retry::is_temporary(*status),
            _ => false,
        }
    }
}

impl From<HttpError> for io::Error {
    fn from(error: HttpError) -> Self {
        let kind = match &error {
            HttpError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            HttpError::Stalled { .. } => io::ErrorKind::TimedOut,
            HttpError::TooLarge { .. } => io::ErrorKind::InvalidData,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Hint for HttpError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Tls { source, .. } => {
                let detail = source.to_string();
                if detail.contains("UnknownIssuer") {
                    "add the CA of that host with --registry-ca, or install the system's CA certificates"
                } else if detail.contains("InvalidContentType") || detail.contains("corrupt message") {
                    "the host seems to speak plain HTTP; --insecure-registry allows that"
                } else {
                    return None;
                }
            }
            Self::Unreachable { .. } => "check host name, port, network and proxy settings",
            Self::Status { status: 429, .. } => "the host limits requests: try later, or log in",
            _ => return None,
        };
        Some(text.to_owned())
    }
}

/// The first error of type `T` in the chain of causes; looks into `io::Error` as well.
pub(super) fn find_cause<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// What remains of an error for our chain: the innermost texts, without the layers of the client library.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Flattened {
    text: String,
}

/// The cause that a person can use, without the titles that client libraries put around it and without URLs.
pub(super) fn innermost(error: reqwest::Error) -> Cause {
    let error = error.without_url();
    let mut cause: &(dyn Error + 'static) = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    Box::new(Flattened { text: cause.to_string() })
}
