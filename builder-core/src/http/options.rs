//! What the caller decides about the client. Environment and files of the user enter here, as values.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Settings of a [`super::Client`].
#[derive(Debug, Clone, Default)]
pub struct ClientOptions {
    /// Sent as `User-Agent`; empty for `slipway/<version>`.
    pub user_agent: String,
    /// Proxies, as the environment names them.
    pub proxies: ProxyOptions,
    /// PEM files whose certificates are trusted in addition to the system's, for every host.
    pub ca_files: Vec<PathBuf>,
    /// PEM files that belong to the system's own: what of them cannot be read is left out.
    pub root_files: Vec<PathBuf>,
    /// What applies to one `host` or `host:port` only. A port in the key must match the URL's, explicit or default.
    pub hosts: BTreeMap<String, HostOptions>,
    /// Accept any certificate of any host.
    pub skip_tls_verify: bool,
    /// When a silent server is given up.
    pub timeouts: Timeouts,
    /// How failures are tried again.
    pub retry: RetryOptions,
    /// Told about each retry, from any thread.
    pub on_retry: Option<RetryNotice>,
}

/// Settings of one host.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostOptions {
    /// PEM files whose certificates are trusted in addition to the system's.
    pub ca_files: Vec<PathBuf>,
    /// PEM files of a client certificate (chain) and its key; both may be in one file.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// Accept any certificate.
    pub skip_tls_verify: bool,
}

/// `HTTP_PROXY` and its relatives. Loopback hosts are never asked through a proxy.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ProxyOptions {
    /// Proxy for `http` URLs.
    pub http: Option<String>,
    /// Proxy for `https` URLs.
    pub https: Option<String>,
    /// Hosts, domains, addresses and networks (CIDR) that are asked directly, separated by commas; `*` for all.
    pub no_proxy: String,
}

impl fmt::Debug for ProxyOptions {
    /// Proxy URLs may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxyOptions")
            .field("http", &self.http.is_some())
            .field("https", &self.https.is_some())
            .field("no_proxy", &self.no_proxy)
            .finish()
    }
}

/// Limits on silence. There is none on the whole transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands, TLS included.
    pub connect: Duration,
    /// Without a single byte in either direction.
    pub stall: Duration,
    /// From the last byte of an uploaded body to the answer: registries on object stores assemble the blob in between.
    pub after_upload: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            stall: Duration::from_secs(60),
            after_upload: Duration::from_secs(300),
        }
    }
}

/// How often and after which delays something is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryOptions {
    /// Attempts in all; 1 never tries again.
    pub attempts: u32,
    /// Delay after the first failure; doubled each time, and cut at random by up to a half.
    pub first_delay: Duration,
    /// Longest delay of the doubling.
    pub max_delay: Duration,
    /// Longest `Retry-After` that is waited for; a longer one makes the answer final.
    pub max_retry_after: Duration,
}

impl Default for RetryOptions {
    /// Four attempts within about 3 s, as other builders do: long enough for a registry that restarts a worker, short enough for
    /// a host name that is wrong.
    fn default() -> Self {
        Self {
            attempts: 4,
            first_delay: Duration::from_millis(500),
            max_delay: Duration::from_secs(20),
            max_retry_after: Duration::from_secs(120),
        }
    }
}

/// Called with what is tried again (a redacted URL), the number of the next attempt counted from 1, and the delay before it.
#[derive(Clone)]
pub struct RetryNotice(pub Arc<RetryCallback>);

type RetryCallback = dyn Fn(&str, u32, Duration) + Send + Sync;

impl fmt::Debug for RetryNotice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RetryNotice")
    }
}
