//! Amazon, Google and Azure: who we are to them, and objects in their stores.
//!
//! Requests go over [`crate::http`] like all others, also those of the `object_store` crate, which knows how S3, Google Cloud
//! Storage and Azure Blob Storage sign requests and where Amazon hides credentials. Tokens are asked for when they are needed
//! and again when they have expired; nothing is written anywhere.
//!
//! Architecture invariant: environment, files of the user and the clock come in through [`CloudEnvironment`]; registries and build
//! contexts are not known here.
//!
//! # Limitations
//! Of Google's external accounts those that run a program or use Amazon's identity are refused, of Amazon's profiles those
//! that sign in by SSO or run a program, of Azure's principals those with a certificate or with a user's password.

mod aws;
mod azure;
mod bucket;
mod error;
mod google;
mod profile;
mod service;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub use bucket::{Bucket, BucketParseError, BucketReader};
pub use error::CloudError;

pub(crate) use aws::{EcrRegistry, ecr_login};
pub(crate) use azure::acr_refresh_token;
pub(crate) use google::access_token;

use crate::http::{self, RetryOptions, Secret, Timeouts};

/// What surrounds the process, as far as clouds look at it.
#[derive(Clone)]
pub struct CloudEnvironment {
    variables: BTreeMap<String, String>,
    home: Option<PathBuf>,
    now: fn() -> SystemTime,
}

impl fmt::Debug for CloudEnvironment {
    /// Variables hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CloudEnvironment").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Default for CloudEnvironment {
    /// An environment without variables.
    fn default() -> Self {
        Self::new(BTreeMap::new(), None)
    }
}

impl CloudEnvironment {
    /// The environment with these variables; `home` is where `.aws` and `.config/gcloud` are looked for.
    pub fn new(variables: BTreeMap<String, String>, home: Option<PathBuf>) -> Self {
        Self { variables, home, now: SystemTime::now }
    }

    /// A variable that is set and not empty.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The first of several variables that is set.
    fn first(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|name| self.get(name))
    }

    /// All variables whose names begin so.
    fn beginning<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let set = self.variables.iter().filter(|(_, value)| !value.is_empty());
        set.map(|(name, value)| (name.as_str(), value.as_str())).filter(move |(name, _)| name.starts_with(prefix))
    }

    fn home(&self, name: &str) -> Option<PathBuf> {
        self.home.as_ref().map(|home| home.join(name))
    }

    /// Seconds since 1970.
    fn unix_time(&self) -> i64 {
        let since = (self.now)().duration_since(UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
    }
}

/// A token and for how long it may be used.
#[derive(Debug, Clone)]
pub(crate) struct CloudToken {
    pub(crate) token: Secret,
    /// From when it was asked for.
    pub(crate) life: Duration,
}

/// Life of a token whose issuer says nothing about it: long enough for a push, short enough that nobody minds asking again.
const DEFAULT_LIFE: Duration = Duration::from_secs(300);

/// A client for addresses that exist inside of a cloud only, so that their absence is noticed soon; never asked through a
/// proxy, which would be another machine.
fn metadata_client(client: &http::Client) -> http::Client {
    http::Client::new(http::ClientOptions {
        proxies: http::ProxyOptions::default(),
        timeouts: Timeouts { connect: Duration::from_secs(2), stall: Duration::from_secs(5), ..Timeouts::default() },
        retry: RetryOptions { attempts: 2, first_delay: Duration::from_millis(200), ..RetryOptions::default() },
        ..client.options().clone()
    })
}

/// A small file of the user.
fn read(path: &Path) -> Result<String, CloudError> {
    fs::read_to_string(path).map_err(|source| CloudError::File { path: path.to_owned(), source })
}
