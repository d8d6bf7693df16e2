//! Objects in the stores of Amazon, Google and Azure, as streams that go on where they were cut.

use std::future::poll_fn;
use std::io::{self, Read};
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_core::Stream;
use object_store::aws::AmazonS3ConfigKey;
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GcpCredential, GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, StaticCredentialProvider};

use super::service::{Connector, block_on, cause, once};
use super::{CloudEnvironment, CloudError, aws, google};
use crate::cancel::Cancel;
use crate::http::{self as ours, Method, Request, Secret, Url};

/// The object that is meant where only a bucket is named.
const DEFAULT_OBJECT: &str = "context.tar.gz";

/// Bytes that must come between two cuts for the count of attempts to begin anew.
const PROGRESS_BYTES: u64 = 1 << 20;

/// Where Azure keeps blobs, below the name of the account.
const AZURE_DOMAINS: [&str; 4] =
    ["blob.core.windows.net", "blob.core.chinacloudapi.cn", "blob.core.cloudapi.de", "blob.core.usgovcloudapi.net"];

/// An object by its URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    kind: Kind,
    bucket: String,
    object: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Amazon,
    Google,
    Azure {
        account: String,
        domain: String,
        /// Query of a signed URL.
        signature: Option<Secret>,
    },
}

/// A URL of an object store that names no object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` {reason}")]
pub struct BucketParseError {
    /// What was given, without its query.
    pub text: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { bucket, object, .. } = self;
        match &self.kind {
            Kind::Amazon => write!(f, "s3://{bucket}/{object}"),
            Kind::Google => write!(f, "gs://{bucket}/{object}"),
            Kind::Azure { account, domain, .. } => write!(f, "https://{account}.{domain}/{bucket}/{object}"),
        }
    }
}

impl Bucket {
    /// Reads `s3://BUCKET[/KEY]`, `gs://BUCKET[/OBJECT]` and `https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB[?SAS]`; `None` if the
    /// text is none of these.
    ///
    /// # Errors
    /// If it is one and names no object.
    pub fn parse(text: &str) -> Option<Result<Self, BucketParseError>> {
        let before = text.split('?').next().unwrap_or(text);
        let failed = |reason| Some(Err(BucketParseError { text: before.to_owned(), reason }));
        for (scheme, kind) in [("s3://", Kind::Amazon), ("gs://", Kind::Google)] {
            let Some(rest) = text.strip_prefix(scheme) else { continue };
            let (bucket, object) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() || bucket.contains(['?', '#', '@', ':']) {
                return failed("names no bucket");
            }
            let object = if object.is_empty() { DEFAULT_OBJECT } else { object };
            return Some(Ok(Self { kind, bucket: bucket.to_owned(), object: object.to_owned() }));
        }
        let rest = text.strip_prefix("https://")?;
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (account, domain) = host.split_once('.')?;
        if !AZURE_DOMAINS.contains(&domain) {
            return None;
        }
        let (path, query) = path.split_once('?').map_or((path, None), |(path, query)| (path, Some(query)));
        let Some((container, blob)) = path.split_once('/') else { return failed("names no blob in a container") };
        if account.is_empty() || container.is_empty() || blob.is_empty() {
            return failed("names no blob in a container");
        }
        let signature = query.filter(|query| !query.is_empty()).map(Secret::new);
        let kind = Kind::Azure { account: account.to_owned(), domain: domain.to_owned(), signature };
        Some(Ok(Self { kind, bucket: container.to_owned(), object: blob.to_owned() }))
    }

    /// Opens the object. The request is sent now.
    ///
    /// # Errors
    /// [`CloudError`]
    pub fn open(
        &self,
        environment: &CloudEnvironment,
        client: &ours::Client,
        cancel: &Cancel,
    ) -> Result<BucketReader, CloudError> {
        let amazon = matches!(self.kind, Kind::Amazon);
        let client = if amazon { &aws::trusting(environment, client) } else { client };
        let mut reader = BucketReader {
            bucket: self.clone(),
            environment: environment.clone(),
            connector: Connector::new(client, cancel),
            etag: None,
            stream: None,
            piece: Bytes::new(),
            offset: 0,
            last_cut: 0,
            size: 0,
            attempt: 1,
        };
        reader.start()?;
        Ok(reader)
    }

    fn store(&self, environment: &CloudEnvironment, connector: &Connector) -> Result<Arc<dyn ObjectStore>, CloudError> {
        let failed = |source| CloudError::Store { url: self.to_string(), source };
        match &self.kind {
            Kind::Amazon => self.amazon(environment, connector),
            Kind::Google => {
                let builder = GoogleCloudStorageBuilder::new()
                    .with_bucket_name(&self.bucket)
                    .with_retry(once())
                    .with_http_connector(connector.clone());
                let builder = match environment.get("STORAGE_EMULATOR_HOST") {
                    Some(host) => {
                        let base = if host.contains("://") { host.to_owned() } else { format!("http://{host}") };
                        builder
                            .with_base_url(base.trim_end_matches('/'))
                            .with_config(GoogleConfigKey::SkipSignature, "true")
                    }
                    None => {
                        let token = google::access_token(environment, &connector.client, &connector.cancel)
                            .map_err(|error| self.unknown(error))?;
                        let bearer = token.token.expose().to_owned();
                        builder.with_credentials(Arc::new(StaticCredentialProvider::new(GcpCredential { bearer })))
                    }
                };
                Ok(Arc::new(builder.build().map_err(failed)?))
            }
            Kind::Azure { account, domain, signature } => {
                let mut builder = MicrosoftAzureBuilder::new()
                    .with_account(account)
                    .with_container_name(&self.bucket)
                    .with_allow_http(true)
                    .with_retry(once())
                    .with_http_connector(connector.clone());
                let endpoint = environment.get("AZURE_STORAGE_ENDPOINT").map(str::to_owned);
                builder = builder.with_endpoint(endpoint.unwrap_or_else(|| format!("https://{account}.{domain}")));
                let mut set = |key, value: Option<&str>| {
                    if let Some(value) = value {
                        builder = std::mem::take(&mut builder).with_config(key, value);
                    }
                };
                if let Some(key) = environment.get("AZURE_STORAGE_ACCESS_KEY").filter(|_| signature.is_none()) {
                    set(AzureConfigKey::AccessKey, Some(key));
                } else if let Some(signature) = signature {
                    set(AzureConfigKey::SasKey, Some(signature.expose()));
                } else {
                    set(AzureConfigKey::ClientId, environment.get("AZURE_CLIENT_ID"));
                    set(AzureConfigKey::ClientSecret, environment.get("AZURE_CLIENT_SECRET"));
                    set(AzureConfigKey::AuthorityId, environment.get("AZURE_TENANT_ID"));
                    set(AzureConfigKey::AuthorityHost, environment.get("AZURE_AUTHORITY_HOST"));
                    set(AzureConfigKey::FederatedTokenFile, environment.get("AZURE_FEDERATED_TOKEN_FILE"));
                    let host = environment.get("AZURE_POD_IDENTITY_AUTHORITY_HOST");
                    let endpoint =
                        host.map(|host| format!("{}/metadata/identity/oauth2/token", host.trim_end_matches('/')));
                    set(AzureConfigKey::MsiEndpoint, endpoint.as_deref());
                }
                Ok(Arc::new(builder.build().map_err(failed)?))
            }
        }
    }

    fn unknown(&self, error: CloudError) -> CloudError {
        match error {
            CloudError::Cancelled => CloudError::Cancelled,
            error => CloudError::Identity { url: self.to_string(), source: Box::new(error) },
        }
    }

    fn amazon(
        &self,
        environment: &CloudEnvironment,
        connector: &Connector,
    ) -> Result<Arc<dyn ObjectStore>, CloudError> {
        let mut builder = aws::builder(environment, connector)?.with_bucket_name(&self.bucket);
        let named = environment.first(&["S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]);
        let mut region = aws::region(environment)?;
        match named {
            Some(endpoint) => {
                let path_style = environment.get("S3_FORCE_PATH_STYLE") == Some("true");
                let endpoint =
                    if endpoint.contains("://") { endpoint.to_owned() } else { format!("https://{endpoint}") };
                let url = Url::parse(&endpoint).ok().filter(|url| url.has_host());
                let mut url = url.ok_or_else(|| CloudError::Malformed {
                    what: format!("the endpoint `{endpoint}`"),
                    problem: "is no URL".to_owned(),
                })?;
                // Names can have one before them, addresses and this machine cannot.
                let named = url.domain().filter(|domain| !ours::is_loopback(domain)).map(str::to_owned);
                match named.filter(|_| !path_style) {
                    Some(domain) => {
                        let host = format!("{}.{domain}", self.bucket);
                        url.set_host(Some(&host)).map_err(|_| CloudError::Malformed {
                            what: format!("the bucket `{}`", self.bucket),
                            problem: "cannot be part of a host name: set S3_FORCE_PATH_STYLE=true".to_owned(),
                        })?;
                        builder = builder.with_virtual_hosted_style_request(true);
                    }
                    None => builder = builder.with_virtual_hosted_style_request(false),
                }
                builder = builder.with_endpoint(url.as_str().trim_end_matches('/'));
            }
            None => {
                region = region.or_else(|| self.amazon_region(connector));
                builder = builder.with_virtual_hosted_style_request(!self.bucket.contains('.'));
            }
        }
        let region = region.as_deref().unwrap_or(aws::DEFAULT_REGION);
        builder = builder.with_config(AmazonS3ConfigKey::Region, region);
        Ok(Arc::new(builder.build().map_err(|source| CloudError::Store { url: self.to_string(), source })?))
    }

    /// The region of a bucket, which Amazon tells everybody.
    fn amazon_region(&self, connector: &Connector) -> Option<String> {
        let url = Url::parse(&format!("https://s3.amazonaws.com/{}", self.bucket)).ok()?;
        let answer = connector.client.send(Request::new(Method::Head, url).without_retry(), &connector.cancel);
        answer.ok()?.header("x-amz-bucket-region").map(str::to_owned)
    }
}

/// An object on its way. Reading fails, with a [`CloudError`] inside, if it cannot be had to its end; a cut connection is resumed
/// where it was cut, and never with another version of the object.
pub struct BucketReader {
    bucket: Bucket,
    environment: CloudEnvironment,
    connector: Connector,
    etag: Option<String>,
    stream: Option<Pin<Box<dyn Stream<Item = object_store::Result<Bytes>> + Send>>>,
    piece: Bytes,
    offset: u64,
    last_cut: u64,
    size: u64,
    attempt: u32,
}

impl std::fmt::Debug for BucketReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BucketReader({} at {} of {})", self.bucket, self.offset, self.size)
    }
}

impl BucketReader {
    /// Length of the object in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Asks for what is left. A new store each time: its credentials may have expired meanwhile.
    fn start(&mut self) -> Result<(), CloudError> {
        let store = self.bucket.store(&self.environment, &self.connector)?;
        let path = Path::from_url_path(&self.bucket.object).map_err(|error| CloudError::Malformed {
            what: format!("`{}`", self.bucket),
            problem: format!("is no name of an object: {error}"),
        })?;
        let options = GetOptions {
            range: (self.offset > 0).then_some(GetRange::Offset(self.offset)),
            if_match: self.etag.clone(),
            ..GetOptions::default()
        };
        let result = block_on(store.get_opts(&path, options)).map_err(|error| self.sorted(error))?;
        if self.offset == 0 {
            self.etag.clone_from(&result.meta.e_tag);
            self.size = result.meta.size;
        } else if result.meta.size != self.size {
            return Err(CloudError::Changed { url: self.bucket.to_string(), bytes: self.offset });
        }
        self.stream = Some(Box::pin(result.into_stream()));
        Ok(())
    }

    fn sorted(&self, source: object_store::Error) -> CloudError {
        let url = self.bucket.to_string();
        if let Some(ours::HttpError::Cancelled) = cause(&source) {
            return CloudError::Cancelled;
        }
        match source {
            object_store::Error::NotFound { .. } => CloudError::NotFound { url },
            object_store::Error::Precondition { .. } => CloudError::Changed { url, bytes: self.offset },
            source => CloudError::Store { url, source },
        }
    }

    fn next(&mut self) -> Result<Option<Bytes>, CloudError> {
        loop {
            let next = match &mut self.stream {
                Some(stream) => block_on(poll_fn(|context| stream.as_mut().poll_next(context))),
                None => None,
            };
            let error = match next {
                Some(Ok(piece)) if piece.is_empty() => continue,
                Some(Ok(piece)) => return Ok(Some(piece)),
                None if self.offset >= self.size => return Ok(None),
                Some(Err(error)) => self.sorted(error),
                None => CloudError::Answer { service: self.bucket.to_string(), lacks: "the rest of the object" },
            };
            self.resume(error)?;
        }
    }

    /// After a cut: waits and asks for the rest, or gives up with the error.
    fn resume(&mut self, mut error: CloudError) -> Result<(), CloudError> {
        self.stream = None;
        if self.offset - self.last_cut >= PROGRESS_BYTES {
            self.attempt = 1;
        }
        self.last_cut = self.offset;
        let url = Url::parse(&self.bucket.to_string()).ok();
        loop {
            let temporary = match &error {
                CloudError::Store { source, .. } => cause(source).is_some_and(ours::HttpError::is_temporary),
                CloudError::Answer { .. } => true,
                _ => false,
            };
            self.attempt += 1;
            let delay = self.connector.client.options().retry.delay(self.attempt, None).filter(|_| temporary);
            let (Some(delay), Some(url)) = (delay, &url) else { return Err(error) };
            tracing::debug!(object = %self.bucket, offset = self.offset, %error, "resuming an object");
            let paused = self.connector.client.pause(url, self.attempt, delay, &self.connector.cancel);
            paused.map_err(|_| CloudError::Cancelled)?;
            match self.start() {
                Ok(()) => return Ok(()),
                Err(next) => error = next,
            }
        }
    }
}

impl Read for BucketReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        if self.piece.is_empty() {
            match self.next() {
                Ok(Some(piece)) => self.piece = piece,
                Ok(None) => return Ok(0),
                Err(error) => {
                    self.stream = None;
                    return Err(io::Error::other(error));
                }
            }
        }
        let count = self.piece.len().min(buf.len());
        buf[..count].copy_from_slice(&self.piece.split_to(count));
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_are_named_by_urls() {
        let shown = |text: &str| {
            Bucket::parse(text).map(|parsed| parsed.map(|bucket| bucket.to_string()).map_err(|e| e.reason))
        };
        let named = |text: &str| Some(Ok(text.to_owned()));
        assert_eq!(shown("s3://b/k/x.tar.gz"), named("s3://b/k/x.tar.gz"));
        assert_eq!(shown("s3://b"), named("s3://b/context.tar.gz"));
        assert_eq!(shown("gs://b/"), named("gs://b/context.tar.gz"));
        let azure = "https://acc.blob.core.windows.net/c/d/x.tar.gz";
        assert_eq!(shown(azure), named(azure));
        assert_eq!(shown(&format!("{azure}?sig=secret")), named(azure));
        assert!(!format!("{:?}", Bucket::parse(&format!("{azure}?sig=secret"))).contains("secret"));
        assert_eq!(shown("https://acc.blob.core.windows.net/c"), Some(Err("names no blob in a container")));
        assert_eq!(shown("s3:///k"), Some(Err("names no bucket")));
        for other in ["https://acc.blob.core.windows.net.evil.example/c/b", "https://example/x.tar", "/dir", "s3"] {
            assert_eq!(shown(other), None, "{other}");
        }
    }
}
