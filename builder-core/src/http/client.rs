//! Sending: one connection pool for each set of TLS and proxy settings, retries, redirects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use reqwest::header::{HeaderName, HeaderValue};
use url::Url;

use super::body::{Uploaded, stopped, upload};
use super::error::{find_cause, innermost};
use super::request::{HeaderText, RequestBody};
use super::retry::{is_temporary, sleep};
use super::runtime::Runtime;
use super::{BodyReader, ClientOptions, HostOptions, HttpError, Method, Request, Response, redacted, tls};
use crate::cancel::Cancel;

/// Redirects that are followed; what Go's client, and so every other builder, follows.
const REDIRECT_LIMIT: usize = 10;

/// The client. Cheap to clone; clones share connections. Nothing runs and no file is read before the first request.
#[derive(Debug, Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    options: ClientOptions,
    runtime: OnceLock<Arc<Runtime>>,
    pools: Mutex<BTreeMap<PoolKey, reqwest::Client>>,
}

/// What distinguishes connections: plain HTTP has no TLS settings, loopback no proxy.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct PoolKey {
    tls: Option<HostOptions>,
    direct: bool,
}

impl Client {
    /// A client with these settings. Wrong ones (a missing CA file, a bad proxy) are errors of the first request that needs
    /// them.
    pub fn new(options: ClientOptions) -> Self {
        Self { inner: Arc::new(Inner { options, runtime: OnceLock::new(), pools: Mutex::default() }) }
    }

    /// The settings.
    pub fn options(&self) -> &ClientOptions {
        &self.inner.options
    }

    /// Sends `request`, again after temporary failures, following redirects of `GET` and `HEAD` and those that repeat the
    /// method with a body that can be sent again. Every status is an `Ok`; temporary ones (429, 503, …) only when no
    /// attempt is left. Blocks; ends within a fraction of a second once `cancel` is set.
    ///
    /// # Errors
    /// [`HttpError`] if there is no answer.
    pub fn send(&self, mut request: Request<'_>, cancel: &Cancel) -> Result<Response, HttpError> {
        let first = request.url.clone();
        for _ in 0..=REDIRECT_LIMIT {
            let response = self.send_hop(&mut request, cancel)?;
            let Some(location) = redirect(&request, &response) else {
                return Ok(response);
            };
            let from = response.url.clone();
            let next =
                from.join(location).ok().filter(|next| matches!(next.scheme(), "http" | "https")).ok_or_else(|| {
                    HttpError::BadRedirect {
                        url: redacted(&from),
                        location: Url::parse(location).map_or_else(|_| location.to_owned(), |url| redacted(&url)),
                    }
                })?;
            if next.origin() != from.origin() {
                request.headers.retain(|(_, value)| matches!(value, HeaderText::Plain(_)));
            }
            request.url = next;
        }
        Err(HttpError::RedirectLoop { url: redacted(&first), limit: REDIRECT_LIMIT })
    }

    /// Tells about a retry and sleeps before it; for callers that repeat what [`Client::send`] cannot.
    ///
    /// # Errors
    /// [`HttpError::Cancelled`]
    pub fn pause(&self, url: &Url, attempt: u32, delay: Duration, cancel: &Cancel) -> Result<(), HttpError> {
        if let Some(notice) = &self.inner.options.on_retry {
            notice.0(&redacted(url), attempt, delay);
        }
        if sleep(delay, cancel) { Ok(()) } else { Err(HttpError::Cancelled) }
    }

    /// One URL, several attempts.
    fn send_hop(&self, request: &mut Request<'_>, cancel: &Cancel) -> Result<Response, HttpError> {
        let options = &self.inner.options;
        let mut attempt = 1;
        loop {
            let result = self.attempt(request, attempt, cancel);
            let asked = match &result {
                Ok(response) if is_temporary(response.status) => response.retry_after(),
                Err(error) if error.is_temporary() => None,
                _ => return result,
            };
            let delay = options.retry.delay(attempt + 1, asked).filter(|_| request.retries);
            let Some(delay) = delay else {
                return result;
            };
            drop(result);
            attempt += 1;
            self.pause(&request.url, attempt, delay, cancel)?;
        }
    }

    fn attempt(&self, request: &mut Request<'_>, attempt: u32, cancel: &Cancel) -> Result<Response, HttpError> {
        let url = request.url.clone();
        let shown = redacted(&url);
        let pool = self.pool(&url)?;
        let runtime = self.runtime()?;
        let timeouts = &self.inner.options.timeouts;
        let mut outgoing = outgoing(request)?;
        let answer = match &mut request.body {
            RequestBody::Stream { reader, bytes } => {
                match upload(runtime, &pool, outgoing, (*reader, *bytes), timeouts, cancel) {
                    Uploaded::Answer(answer) => answer,
                    Uploaded::Failed(error) => return Err(error),
                }
            }
            RequestBody::Bytes(bytes) => {
                *outgoing.body_mut() = Some(bytes.clone().into());
                let limit = timeouts.after_upload;
                runtime
                    .wait(pool.execute(outgoing), limit, cancel)
                    .map_err(|stop| stopped(stop, shown.clone(), limit))?
            }
            RequestBody::Empty => {
                if matches!(request.method, Method::Put | Method::Post | Method::Patch) {
                    // Some servers insist on a length (RFC 9110, 8.6, says that clients should send it).
                    outgoing.headers_mut().insert(reqwest::header::CONTENT_LENGTH, HeaderValue::from_static("0"));
                }
                let limit = timeouts.stall;
                runtime
                    .wait(pool.execute(outgoing), limit, cancel)
                    .map_err(|stop| stopped(stop, shown.clone(), limit))?
            }
        };
        let answer = answer.map_err(|error| sorted(error, shown, attempt))?;
        let status = answer.status().as_u16();
        let headers = answer
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let body = BodyReader::new(answer, Arc::clone(runtime), timeouts.stall, cancel.clone());
        Ok(Response { status, headers, url, attempts: attempt, body })
    }

    fn runtime(&self) -> Result<&Arc<Runtime>, HttpError> {
        if let Some(runtime) = self.inner.runtime.get() {
            return Ok(runtime);
        }
        let started = Runtime::start().map_err(|error| HttpError::Setup { source: error.into() })?;
        // Of two threads that start one at the same time, the second's ends here.
        Ok(self.inner.runtime.get_or_init(|| Arc::new(started)))
    }

    fn pool(&self, url: &Url) -> Result<reqwest::Client, HttpError> {
        let bad_url = || HttpError::BadUrl { url: redacted(url) };
        let host = url.host_str().ok_or_else(bad_url)?;
        let tls = match url.scheme() {
            "http" => None,
            "https" => Some(self.host_options(url, host)),
            _ => return Err(bad_url()),
        };
        let key = PoolKey { tls, direct: is_loopback(host) };
        // A poisoned map is whole: entries are only ever added.
        let mut pools = self.inner.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&key) {
            return Ok(pool.clone());
        }
        let pool = self.new_pool(&key)?;
        pools.insert(key, pool.clone());
        Ok(pool)
    }

    /// The host's own options merged with those of all hosts.
    fn host_options(&self, url: &Url, host: &str) -> HostOptions {
        let options = &self.inner.options;
        let with_port = url.port_or_known_default().map(|port| format!("{host}:{port}"));
        let own = with_port.and_then(|key| options.hosts.get(&key));
        let own = own.or_else(|| options.hosts.get(host).filter(|_| url.port().is_none()));
        let mut merged = own.cloned().unwrap_or_default();
        merged.ca_files.extend(options.ca_files.iter().cloned());
        merged.skip_tls_verify |= options.skip_tls_verify;
        merged
    }

    fn new_pool(&self, key: &PoolKey) -> Result<reqwest::Client, HttpError> {
        let options = &self.inner.options;
        let tls = match &key.tls {
            Some(host) => tls::config(host, &options.root_files)?,
            None => tls::unused()?,
        };
        let user_agent = match options.user_agent.as_str() {
            "" => concat!("slipway/", env!("CARGO_PKG_VERSION")),
            own => own,
        };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .no_proxy() // the environment's; ours follow
            .connect_timeout(options.timeouts.connect)
            .user_agent(user_agent);
        if !key.direct {
            let except = || reqwest::NoProxy::from_string(&options.proxies.no_proxy);
            let all = options.proxies.no_proxy.split(',').any(|host| host.trim() == "*");
            if let Some(proxy) = options.proxies.http.as_ref().filter(|proxy| !proxy.is_empty() && !all) {
                let proxy = reqwest::Proxy::http(proxy).map_err(|error| bad_proxy("http", error))?;
                builder = builder.proxy(proxy.no_proxy(except()));
            }
            if let Some(proxy) = options.proxies.https.as_ref().filter(|proxy| !proxy.is_empty() && !all) {
                let proxy = reqwest::Proxy::https(proxy).map_err(|error| bad_proxy("https", error))?;
                builder = builder.proxy(proxy.no_proxy(except()));
            }
        }
        builder.build().map_err(|error| HttpError::Setup { source: innermost(error) })
    }
}

fn bad_proxy(scheme: &'static str, error: reqwest::Error) -> HttpError {
    HttpError::Proxy { scheme, source: innermost(error) }
}

/// The request without its body.
fn outgoing(request: &Request<'_>) -> Result<reqwest::Request, HttpError> {
    let method = match request.method {
        Method::Get => reqwest::Method::GET,
        Method::Head => reqwest::Method::HEAD,
        Method::Put => reqwest::Method::PUT,
        Method::Post => reqwest::Method::POST,
        Method::Patch => reqwest::Method::PATCH,
        Method::Delete => reqwest::Method::DELETE,
    };
    let mut outgoing = reqwest::Request::new(method, request.url.clone());
    for (name, text) in &request.headers {
        let bad = || HttpError::BadHeader { name: name.clone() };
        let key = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;
        let (text, secret) = match text {
            HeaderText::Plain(text) => (text.as_str(), false),
            HeaderText::Secret(secret) => (secret.expose(), true),
        };
        let mut value = HeaderValue::from_str(text).map_err(|_| bad())?;
        value.set_sensitive(secret);
        outgoing.headers_mut().append(key, value);
    }
    Ok(outgoing)
}

/// The `Location` to go on with, if the answer is a redirect that this request can follow.
fn redirect<'r>(request: &Request<'_>, response: &'r Response) -> Option<&'r str> {
    let follows = match request.method {
        Method::Get | Method::Head => matches!(response.status, 301 | 302 | 303 | 307 | 308),
        _ => matches!(response.status, 307 | 308) && !matches!(request.body, RequestBody::Stream { .. }),
    };
    response.header("Location").filter(|_| follows)
}

/// Sorts an error of the client library.
fn sorted(error: reqwest::Error, url: String, attempts: u32) -> HttpError {
    if error.is_builder() {
        return HttpError::Setup { source: innermost(error) };
    }
    match find_cause::<rustls::Error>(&error) {
        Some(tls) if error.is_connect() => HttpError::Tls { url, source: tls.clone().into() },
        _ => HttpError::Unreachable { url, attempts, source: innermost(error) },
    }
}

/// Whether the host is this machine: `localhost`, a name below it (RFC 6761, 6.3), `127.0.0.0/8` or `::1`.
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<std::net::IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            host == "localhost" || host.ends_with(".localhost")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_this_machine_only() {
        for host in ["localhost", "LOCALHOST", "a.localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["localhost.example", "10.0.0.1", "notlocalhost", "::2", "127.0.0.1.nip.io", ""] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn host_options_need_the_same_port() {
        let own = HostOptions { skip_tls_verify: true, ..HostOptions::default() };
        let hosts = BTreeMap::from([("a".to_owned(), own.clone()), ("b:5000".to_owned(), own)]);
        let client = Client::new(ClientOptions { hosts, ..ClientOptions::default() });
        for (url, expected) in [
            ("https://a/", true),
            ("https://a:443/", true),
            ("https://a:5000/", false),
            ("https://b:5000/", true),
            ("https://b/", false),
            ("https://c/", false),
        ] {
            let url = Url::parse(url).expect("a URL");
            let host = url.host_str().expect("a host");
            assert_eq!(client.host_options(&url, host).skip_tls_verify, expected, "{url}");
        }
    }

    #[test]
    fn nothing_starts_before_the_first_request() {
        let client = Client::new(ClientOptions { ca_files: vec!["/missing".into()], ..ClientOptions::default() });
        assert!(client.inner.runtime.get().is_none());
        let request = Request::get(Url::parse("https://localhost:1/").expect("a URL"));
        match client.send(request, &Cancel::default()) {
            Err(HttpError::CertificateFile { path, .. }) => assert_eq!(path, std::path::Path::new("/missing")),
            other => panic!("{other:?}"),
        }
    }
}
