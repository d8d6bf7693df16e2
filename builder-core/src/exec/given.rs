//! Contexts that the caller of the library gives as a tar, and what comes on standard input.

use std::fmt;
use std::io::{self, Cursor, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::cancel::Cancel;
use crate::context::{FetchedContext, Remote, RemoteError};
use crate::layer::entry::{Entry, EntryKind, TAR_BLOCK, padding};
use crate::store::Store;

/// A tar, compressed or not, that the caller has in memory or makes while it is read. It is what `slipway build -` takes from standard
/// input (owners do not count, and a text in place of a tar is the Dockerfile), but for one thing: a `.dockerignore` in it counts.
///
/// ```
/// use builder_core::exec::{BuildRequest, ContextSource, DockerfileSource, TarContext};
///
/// fn of_memory(mut request: BuildRequest) -> BuildRequest {
///     let files = [("Dockerfile", "FROM scratch\nCOPY motd /etc/\n"), ("motd", "hello\n")];
///     request.context = ContextSource::Tar(TarContext::of_files(files));
///     request.dockerfile = DockerfileSource::InContext("Dockerfile".into());
///     request
/// }
/// ```
#[derive(Clone)]
pub struct TarContext {
    name: Arc<str>,
    open: Arc<Open>,
}

type Open = dyn Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync;

impl TarContext {
    /// What `open` gives, called `name` in messages. `open` is called when the build begins, and once more in the rare case that a build begins
    /// anew (a layer that it meant to use is gone from its registry), so it has to give the same bytes each time.
    pub fn new(name: &str, open: impl Fn() -> io::Result<Box<dyn Read + Send>> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), open: Arc::new(open) }
    }

    /// A tar in memory, compressed or not.
    pub fn in_memory(bytes: impl Into<Arc<[u8]>>) -> Self {
        let bytes: Arc<[u8]> = bytes.into();
        Self::new("memory", move || Ok(Box::new(Cursor::new(Arc::clone(&bytes)))))
    }

    /// Files in memory by their path in the context, with mode 0644 and the time 1970-01-01; directories above them are made. What needs another mode, or
    /// is no file, is for [`TarContext::in_memory`].
    pub fn of_files<P: AsRef<Path>, C: AsRef<[u8]>>(files: impl IntoIterator<Item = (P, C)>) -> Self {
        let mut tar = Vec::new();
        for (path, content) in files {
            let content = content.as_ref();
            let entry = Entry {
                name: path.as_ref().as_os_str().as_encoded_bytes(),
                kind: EntryKind::File(content.len() as u64),
                mode: 0o644,
                uid: 0,
                gid: 0,
                mtime: 0,
                capability: None,
            };
            entry.encode(&mut tar);
            tar.extend_from_slice(content);
            tar.resize(tar.len() + padding(content.len() as u64), 0);
        }
        tar.resize(tar.len() + 2 * TAR_BLOCK, 0);
        Self::in_memory(tar)
    }

    /// Where it comes from, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn fetch(&self, remote: &Remote, cancel: &Cancel) -> Result<FetchedContext, RemoteError> {
        let opened = (self.open)();
        let stream = opened.map_err(|source| RemoteError::Stream { name: self.name.to_string(), source })?;
        remote.stream_context(stream, &self.name, cancel)
    }
}

impl PartialEq for TarContext {
    /// Whether both were cloned from one.
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.open, &other.open)
    }
}

impl Eq for TarContext {}

impl fmt::Debug for TarContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TarContext").field(&self.name).finish()
    }
}

/// What standard input held. It can be read only once, and a build may begin twice. The store is the one that holds its directory.
#[derive(Debug, Default)]
pub(super) struct StandardInput(Mutex<Option<(Arc<FetchedContext>, Option<Store>)>>);

impl StandardInput {
    pub(super) fn fetch(
        &self,
        remote: &Remote,
        store: Option<&Store>,
        cancel: &Cancel,
    ) -> Result<Arc<FetchedContext>, RemoteError> {
        let mut found = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((context, _)) = &*found {
            return Ok(Arc::clone(context));
        }
        let context = Arc::new(remote.stream_context(io::stdin(), "standard input", cancel)?);
        *found = Some((Arc::clone(&context), store.cloned()));
        Ok(context)
    }
}
