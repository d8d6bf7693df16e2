//! The distribution protocol over [`crate::http`]; blobs as streams.
//!
//! A [`Registry`] speaks to all registries of a build. For each host it remembers the scheme, what the host asks for
//! (Basic or Bearer), and tokens by scope until shortly before they expire; a 401 in the middle of a build gets a new token
//! and one more try. Bytes are checked against the digest they were asked for, whatever the registry announces.
//!
//! Plain HTTP is spoken to loopback hosts (where TLS is tried when plain HTTP is refused), and to hosts that the caller
//! lists as insecure when TLS does not work; to nobody else.
//!
//! Architecture invariant: what is in a layer, and why it is wanted, is not known here.
//!
//! # Limitations
//! Digests are SHA-256 only. Docker's schema 1 manifests are refused. Foreign layers are read from their own URLs when the
//! registry does not have them, and never pushed to them.

mod auth;
mod blob;
mod error;
mod host;
mod options;
mod pull;
mod push;
mod sessions;
mod stream;
mod upload;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

pub use auth::{CloudSource, Credential, CredentialOptions, Credentials, Identity, keep_password};
pub use blob::BlobStream;
pub use error::{CredentialError, Place, RegistryError};
pub(crate) use host::ErrorBody;
pub use options::{MapTarget, MapTargetParseError, RegistryMap, RegistryOptions};
pub use pull::Manifest;
pub(crate) use pull::classify;
pub use push::{BlobToPush, Pushed};
pub use sessions::Sessions;
pub use stream::{GrowingBlob, Grown, Streamed};

use crate::http;

/// All registries of a build. Cheap to clone; clones share connections, tokens and what is known of each host.
#[derive(Debug, Clone)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: http::Client,
    credentials: Credentials,
    options: RegistryOptions,
    hosts: Mutex<BTreeMap<String, Arc<host::Host>>>,
}

impl Registry {
    /// A client of registries. Nothing is read or contacted yet.
    pub fn new(client: http::Client, credentials: Credentials, options: RegistryOptions) -> Self {
        Self { inner: Arc::new(Inner { client, credentials, options, hosts: Mutex::default() }) }
    }

    /// The HTTP client underneath.
    pub fn client(&self) -> &http::Client {
        &self.inner.client
    }

    /// The settings.
    pub fn options(&self) -> &RegistryOptions {
        &self.inner.options
    }
}
