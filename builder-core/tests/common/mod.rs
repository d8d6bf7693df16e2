//! What the tests of registries share.

#![allow(dead_code, reason = "each test program uses its own part")]

use std::error::Error;
use std::time::Duration;

use builder_core::http::{self, ClientOptions, RetryOptions, Timeouts};
use builder_core::oci::{BlobDigest, Sha256};
use builder_core::registry::{
    Credential, CredentialOptions, Credentials, Registry, RegistryError, RegistryMap, RegistryOptions,
};
use builder_core::source::{SourceError, Sources};
use builder_core::store::Store;
use fixtures::registry::FakeRegistry;

/// Sources over a store of their own.
pub struct Bench {
    pub sources: Sources,
    pub store: Store,
    work: std::sync::Arc<tempfile::TempDir>,
}

/// Retries without noticeable delays.
pub fn quick() -> ClientOptions {
    ClientOptions {
        retry: RetryOptions { first_delay: Duration::from_millis(1), ..RetryOptions::default() },
        ..ClientOptions::default()
    }
}

impl Bench {
    pub fn new() -> Self {
        Self::with(CredentialOptions::default(), RegistryOptions::default())
    }

    pub fn with(credentials: CredentialOptions, options: RegistryOptions) -> Self {
        Self::build(quick(), credentials, options)
    }

    pub fn build(client: ClientOptions, credentials: CredentialOptions, options: RegistryOptions) -> Self {
        let work = std::sync::Arc::new(tempfile::TempDir::new().expect("a temporary directory"));
        let store = Store::open(work.path()).expect("a new store");
        let registry = Registry::new(http::Client::new(client), Credentials::new(credentials), options);
        Self { sources: Sources::new(registry, store.clone()), store, work }
    }

    /// With a limit on silence that a test waits for.
    pub fn with_stall(stall: Duration) -> Self {
        Self::build(
            ClientOptions { timeouts: Timeouts { stall, ..Timeouts::default() }, ..quick() },
            CredentialOptions::default(),
            RegistryOptions::default(),
        )
    }

    pub fn with_login(registry: &FakeRegistry, user: &str, password: &str) -> Self {
        let credential = Credential::Basic { user: user.to_owned(), password: http::Secret::new(password) };
        let given = vec![(registry.host(), credential)];
        Self::with(CredentialOptions { given, ..CredentialOptions::default() }, RegistryOptions::default())
    }

    pub fn with_map(registry: &str, target: &str, fallback: bool) -> Self {
        let targets = vec![target.parse().expect("a target")];
        let maps = vec![RegistryMap { registry: registry.to_owned(), targets, fallback }];
        Self::with(CredentialOptions::default(), RegistryOptions { maps, ..RegistryOptions::default() })
    }

    /// With `registry` in place of Docker Hub.
    pub fn mapped_to(registry: &FakeRegistry) -> Self {
        Self::with_map("docker.io", &registry.host(), false)
    }

    /// Another build over the same work dir.
    pub fn again(&self) -> Self {
        let store = Store::open(self.work.path()).expect("the store opens again");
        let registry = self.sources.registry().clone();
        Self { sources: Sources::new(registry, store.clone()), store, work: std::sync::Arc::clone(&self.work) }
    }

    pub fn has(&self, bytes: &[u8]) -> bool {
        self.store.size(BlobDigest(Sha256::of(bytes))).is_some()
    }

    /// Every blob that is visible hashes to its name, and nothing unfinished lies around.
    #[track_caller]
    pub fn assert_whole(&self) {
        for (digest, _) in self.store.list().expect("the store lists") {
            let bytes = std::fs::read(self.store.path(digest)).expect("the blob reads");
            assert_eq!(BlobDigest(Sha256::of(&bytes)), digest);
        }
        let left = std::fs::read_dir(self.store.temp_dir()).expect("the directory lists").count();
        assert_eq!(left, 0, "unfinished files");
    }
}

/// All texts of a chain of errors, as the binary prints it.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(&format!(": {error}"));
        next = error.source();
    }
    text
}

/// The registry's error within.
#[track_caller]
pub fn registry_error(error: &SourceError) -> &RegistryError {
    match error {
        SourceError::Resolve { source, .. } => source,
        SourceError::Registry(source) => source,
        other => panic!("not an error of a registry: {other:?}"),
    }
}

/// Waits until `condition` holds.
#[track_caller]
pub fn eventually(condition: impl Fn() -> bool) {
    for _ in 0..2000 {
        if condition() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it never came true");
}
