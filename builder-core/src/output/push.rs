//! Into registries: layers side by side, then configs, then manifests by digest, and names last.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Blobs, Export, OutputError, Part};
use crate::cancel::Cancel;
use crate::event::{Event, Observer, Transfer};
use crate::http;
use crate::limits::Limits;
use crate::oci::{BlobDigest, Descriptor, Reference};
use crate::registry::{BlobToPush, Pushed, Registry, RegistryError, Sessions};

/// What happens when a registry refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PushOptions {
    /// How often the whole push is tried again after a failure of any kind, beside the retries of single requests; after 1 s,
    /// 2 s, 4 s, …
    pub retries: u32,
    /// A registry that refuses because the tag exists and may not change is as good as one that agrees.
    pub ignore_immutable_tags: bool,
}

impl PushOptions {
    /// How long to wait after so many failures.
    pub fn pause(failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1);
        Duration::from_secs(1_u64.checked_shl(doublings).unwrap_or(u64::MAX).min(LONGEST_PAUSE_SECONDS))
    }
}

/// What Artifact Registry and ECR say about tags that may not change.
const IMMUTABLE_TAG: [&str; 2] =
    ["The repository has enabled tag immutability", "cannot be overwritten because the tag is immutable"];

/// Longest pause between two attempts of a push, in seconds.
const LONGEST_PAUSE_SECONDS: u64 = 64;

/// Pushes one build's results. Blobs may go early ([`Pusher::blob`]), while later steps still run; names appear with
/// [`Pusher::publish`], when all they lead to is there.
pub struct Pusher<'a> {
    pub(super) registry: &'a Registry,
    blobs: &'a dyn Blobs,
    limits: Limits,
    observer: &'a dyn Observer,
    state: Mutex<State>,
    /// Told whenever a blob is no longer on its way.
    arrived: Condvar,
    options: PushOptions,
    /// Where uploads are kept for later processes.
    pub(super) sessions: Option<Sessions>,
}

/// Registry and path of a repository.
pub(super) type Repository = (String, String);

#[derive(Default)]
struct State {
    /// Repositories that are known to have a blob.
    placed: BTreeMap<BlobDigest, BTreeSet<Repository>>,
    /// What some thread is bringing there.
    on_their_way: BTreeSet<(BlobDigest, Repository)>,
}

/// How often a thread that waits for another one's upload looks whether it should end.
const WAIT: Duration = Duration::from_millis(50);

impl<'a> Pusher<'a> {
    /// Nothing is contacted yet.
    pub fn new(registry: &'a Registry, blobs: &'a dyn Blobs, limits: Limits, observer: &'a dyn Observer) -> Self {
        let options = PushOptions::default();
        let (state, arrived) = (Mutex::default(), Condvar::new());
        Self { registry, blobs, limits, observer, options, state, arrived, sessions: None }
    }

    /// The same with other options.
    #[must_use]
    pub fn with(self, options: PushOptions) -> Self {
        Self { options, ..self }
    }

    /// The same; uploads that this process does not end are kept there for the next one.
    #[must_use]
    pub fn keeping(self, sessions: Sessions) -> Self {
        Self { sessions: Some(sessions), ..self }
    }

    /// How failures are met.
    pub fn options(&self) -> PushOptions {
        self.options
    }

    /// Makes sure that the repository of `target` has a blob. Does nothing if this pusher knows that it has; waits if another
    /// thread is bringing it there.
    ///
    /// # Errors
    /// [`OutputError`]
    pub fn blob(&self, target: &Reference, descriptor: &Descriptor, cancel: &Cancel) -> Result<(), OutputError> {
        self.place(target, &Part::Blob(descriptor.clone()), cancel)
    }

    /// Pushes everything that is missing and then sets the names. Returns each name with the digest that it has now.
    ///
    /// # Errors
    /// [`OutputError`]. Names are set one after the other: those before the one in the error are set, and whole.
    pub fn publish(
        &self,
        export: &Export<'_>,
        by_digest: bool,
        cancel: &Cancel,
    ) -> Result<Vec<(Reference, BlobDigest)>, OutputError> {
        for attempt in 1..=self.options.retries {
            let error = match self.publish_once(export, by_digest, cancel) {
                Ok(published) => return Ok(published),
                Err(error @ (OutputError::Cancelled | OutputError::NoName | OutputError::NoImage)) => {
                    return Err(error);
                }
                Err(error) => error,
            };
            let delay = PushOptions::pause(attempt);
            tracing::debug!(%error, attempt, "the push is tried again");
            self.observer.event(Event::Retry { what: &error.to_string(), attempt: attempt + 1, delay });
            if !http::sleep(delay, cancel) {
                return Err(OutputError::Cancelled);
            }
        }
        self.publish_once(export, by_digest, cancel)
    }

    fn publish_once(
        &self,
        export: &Export<'_>,
        by_digest: bool,
        cancel: &Cancel,
    ) -> Result<Vec<(Reference, BlobDigest)>, OutputError> {
        let root = export.root().ok_or(OutputError::NoImage)?;
        if export.names.is_empty() {
            return Err(OutputError::NoName);
        }
        let mut repositories: Vec<&Reference> = Vec::new();
        for name in export.names {
            if !repositories.iter().any(|known| same_repository(known, name)) {
                repositories.push(name);
            }
        }
        let parts = export.parts();
        let (layers, small): (Vec<_>, Vec<_>) = parts.iter().partition(|part| matches!(part, Part::Blob(_)));
        let (configs, manifests): (Vec<_>, Vec<_>) = small.into_iter().partition(|part| {
            export.images.iter().any(|image| image.config_descriptor.digest == part.descriptor().digest)
        });
        for repository in &repositories {
            self.place_all(repository, &layers, cancel)?;
            self.place_all(repository, &configs, cancel)?;
            for part in &manifests {
                if let Part::Bytes(descriptor, bytes) = part
                    && descriptor.digest != root.digest
                {
                    let target = untagged(repository, descriptor.digest);
                    self.manifest(&target, bytes, descriptor, cancel)?;
                }
            }
        }
        // Every repository is complete before the first name moves.
        let mut published = Vec::with_capacity(export.names.len());
        for name in export.names {
            let target = if by_digest { untagged(name, root.digest) } else { name.clone() };
            for part in &manifests {
                if let Part::Bytes(descriptor, bytes) = part
                    && descriptor.digest == root.digest
                {
                    self.manifest(&target, bytes, descriptor, cancel)?;
                }
            }
            self.observer.event(Event::Exported { target: &target.to_string(), digest: Some(root.digest) });
            published.push((target, root.digest));
        }
        Ok(published)
    }

    fn manifest(
        &self,
        target: &Reference,
        bytes: &[u8],
        descriptor: &Descriptor,
        cancel: &Cancel,
    ) -> Result<(), OutputError> {
        match self.registry.push_manifest(target, bytes, &descriptor.media_type, cancel) {
            Ok(_) => Ok(()),
            Err(error) if self.options.ignore_immutable_tags && is_immutable_tag(&error) => {
                let message = format!("{target} stays as it is: {error}");
                self.observer.event(Event::Notice { message: &message });
                Ok(())
            }
            Err(error) => Err(failed(target, error)),
        }
    }

    /// Several blobs at once; the first error ends the others.
    fn place_all(&self, target: &Reference, parts: &[&Part<'_>], cancel: &Cancel) -> Result<(), OutputError> {
        let stop = cancel.child();
        let next = AtomicUsize::new(0);
        let first_error = Mutex::new(None);
        std::thread::scope(|scope| {
            for _ in 0..self.limits.connections.get().min(parts.len()) {
                scope.spawn(|| {
                    while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed))
                        && !stop.is_cancelled()
                    {
                        if let Err(error) = self.place(target, part, &stop) {
                            let mut first = first_error.lock().unwrap_or_else(PoisonError::into_inner);
                            first.get_or_insert(error);
                            stop.cancel();
                        }
                    }
                });
            }
        });
        if cancel.is_cancelled() {
            return Err(OutputError::Cancelled);
        }
        match first_error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn place(&self, target: &Reference, part: &Part<'_>, cancel: &Cancel) -> Result<(), OutputError> {
        let descriptor = part.descriptor();
        let Some(claim) = self.claim(descriptor.digest, repository(target), cancel)? else { return Ok(()) };
        self.bring(target, part, cancel)?;
        claim.arrived();
        Ok(())
    }

    /// Waits until nobody else brings the blob there. `None` if it is there then.
    fn claim(
        &self,
        digest: BlobDigest,
        here: Repository,
        cancel: &Cancel,
    ) -> Result<Option<Claim<'_, 'a>>, OutputError> {
        let what = (digest, here);
        let mut state = self.lock();
        loop {
            if cancel.is_cancelled() {
                return Err(OutputError::Cancelled);
            }
            if state.placed.get(&what.0).is_some_and(|places| places.contains(&what.1)) {
                return Ok(None);
            }
            if state.on_their_way.insert(what.clone()) {
                return Ok(Some(Claim { pusher: self, what }));
            }
            state = self.arrived.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Takes the claim on a blob unless it is there or somebody has it.
    pub(super) fn claim_now(&self, digest: BlobDigest, here: &Repository) -> bool {
        let mut state = self.lock();
        let there = state.placed.get(&digest).is_some_and(|places| places.contains(here));
        !there && state.on_their_way.insert((digest, here.clone()))
    }

    fn bring(&self, target: &Reference, part: &Part<'_>, cancel: &Cancel) -> Result<(), OutputError> {
        let descriptor = part.descriptor();
        let known = self.lock().placed.get(&descriptor.digest).cloned().unwrap_or_default();
        // What we placed in this registry ourselves is surely there; else where the base came from.
        let mount_from = known
            .iter()
            .find(|(registry, _)| registry == target.registry())
            .and_then(|(registry, repository)| format!("{registry}/{repository}").parse().ok())
            .or_else(|| self.blobs.origin(descriptor));
        let open = |offset: u64| -> io::Result<Box<dyn Read + '_>> {
            match part {
                Part::Bytes(_, bytes) => {
                    let start = usize::try_from(offset).map_or(bytes.len(), |offset| offset.min(bytes.len()));
                    Ok(Box::new(&bytes[start..]))
                }
                Part::Blob(descriptor) => {
                    let mut blob = self.blobs.open(descriptor)?;
                    io::copy(&mut blob.by_ref().take(offset), &mut io::sink())?;
                    Ok(blob)
                }
            }
        };
        let progress = |done| self.progress(descriptor, done);
        let resumed = |bytes| {
            self.observer.event(Event::Resumed { id: &descriptor.digest.to_string(), bytes });
        };
        let blob = BlobToPush {
            descriptor,
            open: &open,
            mount_from: mount_from.as_ref(),
            progress: &progress,
            sessions: self.sessions.as_ref(),
            resumed: &resumed,
        };
        let how = self.registry.push_blob(target, &blob, cancel).map_err(|error| failed(target, error))?;
        self.tell(how, descriptor);
        Ok(())
    }

    /// So many bytes of a blob were sent.
    pub(super) fn progress(&self, descriptor: &Descriptor, done: u64) {
        let id = &descriptor.digest.to_string();
        self.observer.event(Event::Progress { transfer: Transfer::Push, id, done, total: Some(descriptor.size) });
    }

    /// A blob whose upload began so long ago has its name now.
    pub(super) fn followed(&self, descriptor: &Descriptor, elapsed: Duration) {
        self.observer.event(Event::Followed { id: &descriptor.digest.to_string(), elapsed });
    }

    /// A blob has come there.
    pub(super) fn tell(&self, how: Pushed, descriptor: &Descriptor) {
        match how {
            Pushed::Existed | Pushed::Mounted => {
                let id = &descriptor.digest.to_string();
                self.observer.event(Event::Exists { transfer: Transfer::Push, id });
            }
            Pushed::Uploaded => self.progress(descriptor, descriptor.size),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A blob that only this thread brings to a repository.
pub(super) struct Claim<'p, 'a> {
    pub(super) pusher: &'p Pusher<'a>,
    pub(super) what: (BlobDigest, Repository),
}

impl Claim<'_, '_> {
    pub(super) fn arrived(self) {
        let (digest, here) = self.what.clone();
        self.pusher.lock().placed.entry(digest).or_default().insert(here);
    }
}

impl Drop for Claim<'_, '_> {
    fn drop(&mut self) {
        self.pusher.lock().on_their_way.remove(&self.what);
        self.pusher.arrived.notify_all();
    }
}

/// Whether a registry refuses a tag because it exists and may not change.
fn is_immutable_tag(error: &RegistryError) -> bool {
    match error {
        RegistryError::Refused { message, .. }
        | RegistryError::Denied { message, .. }
        | RegistryError::Unauthorized { message, .. } => IMMUTABLE_TAG.iter().any(|words| message.contains(words)),
        _ => false,
    }
}

/// The repository of a name.
pub(super) fn repository(name: &Reference) -> Repository {
    (name.registry().to_owned(), name.repository().to_owned())
}

fn same_repository(a: &Reference, b: &Reference) -> bool {
    a.registry() == b.registry() && a.repository() == b.repository()
}

/// The repository of `name` with only a digest.
fn untagged(name: &Reference, digest: BlobDigest) -> Reference {
    let text = format!("{}/{}@{digest}", name.registry(), name.repository());
    text.parse().expect("parts of a reference make a reference")
}

pub(super) fn failed(reference: &Reference, error: RegistryError) -> OutputError {
    match error {
        RegistryError::Cancelled => OutputError::Cancelled,
        error => OutputError::Registry { reference: reference.clone(), source: Box::new(error) },
    }
}
