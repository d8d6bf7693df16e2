//! Why a cloud did not give what was asked for.

use std::io;
use std::path::PathBuf;

use crate::hint::Hint;
use crate::http::{self, HttpError, Response};

/// Why a cloud did not give what was asked for. Secrets are in no variant.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloudError {
    /// There is nothing that says who we are.
    #[error("no credentials for {service} were found")]
    NoCredentials {
        /// Such as `Amazon ECR`.
        service: &'static str,
        /// What could be given.
        hint: &'static str,
    },
    /// No answer.
    #[error("{service} cannot be reached")]
    Http {
        /// Such as `Google's metadata server`.
        service: String,
        /// Why.
        source: HttpError,
    },
    /// An answer that is no success.
    #[error("{service} answered {status}{}", after_colon(message))]
    Refused {
        /// Who.
        service: String,
        /// HTTP status code.
        status: u16,
        /// What it said.
        message: String,
    },
    /// An answer without what it should hold.
    #[error("the answer of {service} lacks {lacks}")]
    Answer {
        /// Who.
        service: String,
        /// What.
        lacks: &'static str,
    },
    /// A file of the user cannot be read.
    #[error("cannot read `{}`", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or variable of the user is not what it should be.
    #[error("{what} {problem}")]
    Malformed {
        /// Name of the file or variable.
        what: String,
        /// What is wrong.
        problem: String,
    },
    /// A profile of Amazon's configuration that cannot be used.
    #[error("Amazon's profile `{profile}` {problem}")]
    Profile {
        /// Its name.
        profile: String,
        /// Why.
        problem: String,
        /// What could be done.
        hint: &'static str,
    },
    /// A kind of credentials that is not known here.
    #[error("{what} is not supported")]
    Unsupported {
        /// What.
        what: String,
        /// What could be given instead.
        hint: &'static str,
    },
    /// An object store refused.
    #[error("cannot read {url}")]
    Store {
        /// Which object.
        url: String,
        /// Why.
        source: object_store::Error,
    },
    /// Nobody says who we are to the store of an object.
    #[error("cannot read {url}")]
    Identity {
        /// Which object.
        url: String,
        /// Why.
        source: Box<CloudError>,
    },
    /// There is no such object.
    #[error("{url}: not found")]
    NotFound {
        /// Which.
        url: String,
    },
    /// The object became another one while it was read.
    #[error("{url} changed while it was read, after {bytes} bytes")]
    Changed {
        /// Which.
        url: String,
        /// How much of the first one came.
        bytes: u64,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl Hint for CloudError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NoCredentials { hint, .. } | Self::Profile { hint, .. } | Self::Unsupported { hint, .. } => {
                Some((*hint).to_owned())
            }
            Self::Http { source, .. } => source.hint(),
            Self::Identity { source, .. } => source.hint(),
            Self::Store { source: object_store::Error::PermissionDenied { .. }, .. } => {
                Some("these credentials may not read the object".to_owned())
            }
            Self::Store { source: object_store::Error::Unauthenticated { .. }, .. } => {
                Some("the credentials are not accepted: are they expired, or of another account?".to_owned())
            }
            _ => None,
        }
    }
}

impl CloudError {
    pub(super) fn http(service: impl Into<String>) -> impl FnOnce(HttpError) -> Self {
        let service = service.into();
        move |source| match source {
            HttpError::Cancelled => Self::Cancelled,
            source => Self::Http { service, source },
        }
    }

    /// The answer's body, if it is a success.
    pub(super) fn success(service: &str, response: Response, limit: u64) -> Result<Vec<u8>, Self> {
        if response.is_success() {
            return response.into_bytes(limit).map_err(Self::http(service));
        }
        let status = response.status();
        let body = response.into_error_body();
        // Error texts of token services name accounts and reasons, not secrets.
        Err(Self::Refused { service: service.to_owned(), status, message: http::excerpt(&body) })
    }

    pub(super) fn lacks(service: &str, lacks: &'static str) -> Self {
        Self::Answer { service: service.to_owned(), lacks }
    }
}
