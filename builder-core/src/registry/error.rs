//! Why a registry did not give or take what was asked.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::hint::Hint;
use crate::http::HttpError;
use crate::oci::{BlobDigest, MediaType};

/// A repository of a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Host and port as in references.
    pub registry: String,
    /// Path of the repository.
    pub repository: String,
}

impl Place {
    pub(super) fn new(registry: &str, repository: &str) -> Box<Self> {
        Box::new(Self { registry: registry.to_owned(), repository: repository.to_owned() })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)
    }
}

/// Why a registry did not give or take what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The registry does not know the tag, digest or repository.
    #[error("{reference}: not found")]
    NotFound {
        /// What was asked for, normalised, as the user named it.
        reference: String,
    },
    /// The registry does not have a blob that a manifest of it names.
    #[error("blob {digest} is not in {place}")]
    BlobNotFound {
        /// Which repository of which registry.
        place: Box<Place>,
        /// Which blob.
        digest: BlobDigest,
    },
    /// No credentials, or wrong ones (401).
    #[error(
        "{} does not let {} access {}{}",
        place.registry,
        identity.as_deref().unwrap_or("anonymous users"),
        place.repository,
        after_colon(message)
    )]
    Unauthorized {
        /// Which repository of which registry.
        place: Box<Place>,
        /// User and where the credentials came from; `None` without credentials.
        identity: Option<String>,
        /// What the registry or its token server said.
        message: String,
    },
    /// The registry knows who asks and refuses (403).
    #[error("{} denies access to {}{}", place.registry, place.repository, after_colon(message))]
    Denied {
        /// Which repository of which registry.
        place: Box<Place>,
        /// User and where the credentials came from; `None` without credentials.
        identity: Option<String>,
        /// What the registry said.
        message: String,
    },
    /// Any other answer that is not a success.
    #[error(
        "{} answered {status} to {action} of {}{}{}",
        place.registry,
        place.repository,
        after_colon(message),
        if *attempts > 1 { format!(" ({attempts} attempts)") } else { String::new() }
    )]
    Refused {
        /// Which repository of which registry.
        place: Box<Place>,
        /// `the manifest`, `an upload`, …
        action: &'static str,
        /// HTTP status code.
        status: u16,
        /// The registry's error code, such as `MANIFEST_INVALID`; empty if it gave none.
        code: String,
        /// What the registry said.
        message: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// Bytes that do not have the digest under which they were asked for.
    #[error("{what} {expected} from {place} hashed to {actual} after {bytes} bytes")]
    WrongDigest {
        /// Which repository of which registry.
        place: Box<Place>,
        /// `manifest` or `blob`.
        what: &'static str,
        /// What was asked for.
        expected: BlobDigest,
        /// What came.
        actual: BlobDigest,
        /// How many bytes came.
        bytes: u64,
    },
    /// `Docker-Content-Digest` contradicts the body.
    #[error("{} announced manifest {name} of {} as {announced}, but it hashes to {actual}", place.registry, place.repository)]
    WrongDigestHeader {
        /// Which repository of which registry.
        place: Box<Place>,
        /// Tag or digest that was asked for.
        name: String,
        /// The header.
        announced: String,
        /// The body.
        actual: BlobDigest,
    },
    /// A blob is longer or shorter than its descriptor says.
    #[error("blob {digest} from {place} has {actual} bytes where {expected} were announced")]
    WrongSize {
        /// Which repository of which registry.
        place: Box<Place>,
        /// Which blob.
        digest: BlobDigest,
        /// Bytes that the descriptor announces.
        expected: u64,
        /// Bytes that came, or were on their way.
        actual: u64,
    },
    /// A manifest or config that is too large to be one.
    #[error("{what} {name} of {place} is larger than {limit} bytes")]
    TooLarge {
        /// Which repository of which registry.
        place: Box<Place>,
        /// `manifest` or `config`.
        what: &'static str,
        /// Tag or digest.
        name: String,
        /// The limit in bytes.
        limit: u64,
    },
    /// The registry stores something else under the name.
    #[error("{reference} is a `{media_type}`, which is not an image")]
    UnsupportedMediaType {
        /// What was asked for.
        reference: String,
        /// What it is.
        media_type: MediaType,
    },
    /// A document is not what its media type says.
    #[error("{what} of {reference} is not valid")]
    BadDocument {
        /// What was asked for.
        reference: String,
        /// `manifest`, `index`, …
        what: &'static str,
        /// Why.
        source: serde_json::Error,
    },
    /// A document claims to be an image and an index at once.
    #[error("the manifest of {reference} is an image and an index at once")]
    AmbiguousManifest {
        /// What was asked for.
        reference: String,
    },
    /// The host answers, but not as a registry.
    #[error("{registry} is not a registry: it lacks {lacks}")]
    NotARegistry {
        /// Which host.
        registry: String,
        /// What is missing, such as an upload's `Location`.
        lacks: &'static str,
    },
    /// The registry lost or refused parts of an upload again and again.
    #[error("upload of blob {digest} to {place} failed {attempts} times, last after {sent} of {size} bytes")]
    Upload {
        /// Which repository of which registry.
        place: Box<Place>,
        /// Which blob.
        digest: BlobDigest,
        /// Bytes that the registry had when it failed last.
        sent: u64,
        /// Bytes of the blob.
        size: u64,
        /// How often it was tried.
        attempts: u32,
        /// The last failure.
        source: Box<RegistryError>,
    },
    /// What should be pushed could not be read.
    #[error("cannot read {} to push it", digest.map_or_else(|| "a layer that is being written".to_owned(), |digest| format!("blob {digest}")))]
    Source {
        /// Which blob; `None` while that is not known.
        digest: Option<BlobDigest>,
        /// Why.
        source: io::Error,
    },
    /// The connection failed.
    #[error("cannot talk to registry {registry}")]
    Http {
        /// Which registry.
        registry: String,
        /// Why.
        source: HttpError,
    },
    /// The credentials could not be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

/// Why credentials could not be had although they are configured.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A configuration file could not be read.
    #[error("cannot read credentials from `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A configuration is not valid JSON of the known form.
    #[error("credentials in {origin} are not valid")]
    Parse {
        /// File name or name of the variable.
        origin: String,
        /// Why.
        source: serde_json::Error,
    },
    /// An `auth` field is not base64 of `user:password`.
    #[error("the `auth` field for `{key}` in {origin} is not base64 of user:password")]
    BadAuth {
        /// File name or name of the variable.
        origin: String,
        /// Key in `auths`.
        key: String,
    },
    /// The helper is not installed or cannot run.
    #[error("cannot run credential helper `{helper}` for {registry}")]
    HelperMissing {
        /// Name of the program.
        helper: String,
        /// For which registry.
        registry: String,
        /// Why.
        source: io::Error,
    },
    /// The helper failed.
    #[error("credential helper `{helper}` failed for {registry}: {message}")]
    HelperFailed {
        /// Name of the program.
        helper: String,
        /// For which registry.
        registry: String,
        /// What it said.
        message: String,
    },
    /// The helper did not end in time.
    #[error("credential helper `{helper}` did not answer for {registry} within {} seconds", limit.as_secs())]
    HelperTimeout {
        /// Name of the program.
        helper: String,
        /// For which registry.
        registry: String,
        /// How long we waited.
        limit: Duration,
    },
    /// The registry asks to send a password to its token server without encryption.
    #[error("{registry} wants credentials sent in clear text to {realm}")]
    ClearTextRealm {
        /// Which registry.
        registry: String,
        /// Address of the token server.
        realm: String,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

fn after_colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

impl RegistryError {
    /// Finds the error again that a blob stream reported through `Read`.
    pub fn in_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Names the registry in an error of the connection.
    pub(super) fn http(registry: &str, source: HttpError) -> Self {
        match source {
            HttpError::Cancelled => Self::Cancelled,
            source => Self::Http { registry: registry.to_owned(), source },
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Http { source, .. } => source.is_temporary(),
            Self::Refused { status, .. } => matches!(status, 408 | 429 | 499 | 500 | 502 | 503 | 504 | 522),
            Self::Upload { .. } => true,
            _ => false,
        }
    }
}

impl From<RegistryError> for io::Error {
    fn from(error: RegistryError) -> Self {
        let kind = match &error {
            RegistryError::WrongDigest { .. } | RegistryError::WrongSize { .. } => io::ErrorKind::InvalidData,
            RegistryError::NotFound { .. } | RegistryError::BlobNotFound { .. } => io::ErrorKind::NotFound,
            RegistryError::Unauthorized { .. } | RegistryError::Denied { .. } => io::ErrorKind::PermissionDenied,
            _ => io::ErrorKind::Other,
        };
        Self::new(kind, error)
    }
}

impl Hint for RegistryError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { reference } => Some(format!("check the spelling of `{reference}`, or push it first")),
            Self::Unauthorized { place, identity: None, .. } => Some(format!(
                "the repository may not exist, or needs a login: add credentials for {} to the Docker config.json",
                place.registry
            )),
            Self::Unauthorized { identity: Some(identity), .. } | Self::Denied { identity: Some(identity), .. } => {
                Some(format!("check the password and the rights of {identity}"))
            }
            Self::Denied { place, identity: None, .. } => {
                Some(format!("add credentials for {} to the Docker config.json", place.registry))
            }
            Self::WrongDigest { .. } | Self::WrongDigestHeader { .. } | Self::WrongSize { .. } => {
                Some("the registry, or a proxy before it, changes or damages what it stores".to_owned())
            }
            Self::Refused { status: 429, .. } => {
                Some("the registry limits requests: log in, or use a mirror".to_owned())
            }
            Self::Refused { status: 413, place, .. } => Some(format!(
                "a proxy in front of {} refuses bodies of that size, and the registry takes no smaller pieces: raise the \
                 proxy's limit (nginx: client_max_body_size)",
                place.registry
            )),
            Self::Upload { source, .. } => source.hint(),
            Self::Http { source, .. } => source.hint(),
            Self::Credentials(error) => error.hint(),
            _ => None,
        }
    }
}

impl Hint for CredentialError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::HelperMissing { helper, .. } => Some(format!(
                "install `{helper}` in PATH, or remove it from credsStore and credHelpers in the Docker config.json"
            )),
            Self::ClearTextRealm { registry, .. } => Some(format!("--insecure-registry {registry} allows that")),
            _ => None,
        }
    }
}
