//! Layers that leave while they are written, and blobs of bases that leave while they are read.
//!
//! A layer's digest is known when its last byte is written. Until then its upload belongs to nobody; [`Pusher::sealed`] makes
//! it the one upload of that blob to that repository, before anybody hears of the digest, so that nobody sends it a second time.
//! An upload that fails, or a registry that takes no pieces, costs nothing but the bytes sent: the blob is then missing, and
//! goes the usual way.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::OutputError;
use super::push::{Claim, Pusher, Repository, failed, repository};
use crate::cancel::Cancel;
use crate::oci::{Descriptor, Reference};
use crate::registry::{BlobToPush, GrowingBlob, Grown, Sessions, Streamed};
use crate::store::{Growing, Growth};

/// Bytes of a layer that must be there before its upload begins: a smaller one is soon whole.
const BEGIN_AT_BYTES: u64 = 8 << 20;

/// How often somebody who waits for more bytes looks whether the build was cancelled.
const LOOK: Duration = Duration::from_millis(100);

/// A layer that is being written, on its way to repositories of one output.
#[derive(Debug)]
pub struct GrowingLayer {
    blob: Growing,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// What it turned out to be; the inner value is `None` if nothing.
    sealed: Option<Option<Descriptor>>,
    uploads: BTreeMap<Repository, Upload>,
}

/// One upload of the layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Upload {
    /// The digest is not known yet.
    Nameless,
    /// It is the one that brings the blob there.
    Claimed,
    /// The blob is there, or somebody else brings it.
    Superfluous,
}

impl GrowingLayer {
    /// Whoever makes this says [`Pusher::sealed`] or [`GrowingLayer::lost`] in the end.
    pub fn new(blob: Growing) -> Self {
        Self { blob, state: Mutex::default(), changed: Condvar::new() }
    }

    /// There will be no such layer. Does nothing if it is sealed.
    pub fn lost(&self) {
        self.lock().sealed.get_or_insert(None);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the layer is large enough to begin. `false` if it ended before that.
    fn grows(&self, cancel: &Cancel) -> bool {
        loop {
            match self.blob.wait(BEGIN_AT_BYTES, LOOK) {
                Growth::Bytes(bytes) if bytes >= BEGIN_AT_BYTES => return true,
                Growth::Bytes(_) if !cancel.is_cancelled() => {}
                Growth::Bytes(_) | Growth::Whole(_) | Growth::Lost => return false,
            }
        }
    }

    /// Notes an upload; `false` if it is too late for that.
    fn begin(&self, here: &Repository) -> bool {
        let mut state = self.lock();
        state.sealed.is_none() && state.uploads.insert(here.clone(), Upload::Nameless).is_none()
    }

    /// Waits for what the layer turned out to be. `None` if nothing, or if this upload need not end.
    fn turns_out(&self, here: &Repository, cancel: &Cancel) -> Option<Descriptor> {
        let mut state = self.lock();
        loop {
            if let Some(sealed) = &state.sealed {
                let wanted = state.uploads.get(here) == Some(&Upload::Claimed);
                return sealed.clone().filter(|_| wanted);
            }
            if cancel.is_cancelled() {
                return None;
            }
            state = self.changed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// An upload has ended, however; the blob that it had the claim on.
    fn end(&self, here: &Repository) -> Option<Descriptor> {
        let mut state = self.lock();
        let claimed = state.uploads.remove(here) == Some(Upload::Claimed);
        state.sealed.clone().flatten().filter(|_| claimed)
    }
}

impl<'a> Pusher<'a> {
    /// Sends `layer` to the repository of `target` while it is written. Returns when it is there, or will not be by this way; what
    /// goes wrong is only logged, since the layer can go the usual way ([`Pusher::blob`]).
    pub fn follow(&self, target: &Reference, layer: &GrowingLayer, cancel: &Cancel) {
        let here = repository(target);
        if !layer.grows(cancel) || !layer.begin(&here) {
            return;
        }
        let blob = Behind { pusher: self, layer, here: &here, cancel, begun: Instant::now(), sealed: OnceCell::new() };
        let ended = self.registry.push_growing(target, &blob, cancel);
        let claimed = layer.end(&here).map(|descriptor| {
            let claim = Claim { pusher: self, what: (descriptor.digest, here) };
            (descriptor, claim)
        });
        match (ended, claimed) {
            (Ok(Streamed::There(how)), Some((descriptor, claim))) => {
                self.tell(how, &descriptor);
                claim.arrived();
            }
            (Ok(ended), _) => tracing::debug!(%target, ?ended, "a layer was not uploaded while it was written"),
            (Err(error), _) => tracing::debug!(%target, %error, "a layer was not uploaded while it was written"),
        }
    }

    /// `layer` is whole. Uploads of it that are under way are from now on the only ones of this blob. Must be said before anybody
    /// hears of the blob.
    pub fn sealed(&self, layer: &GrowingLayer, descriptor: &Descriptor) {
        let mut state = layer.lock();
        if state.sealed.is_some() {
            return;
        }
        for (here, upload) in &mut state.uploads {
            let claimed = self.claim_now(descriptor.digest, here);
            *upload = if claimed { Upload::Claimed } else { Upload::Superfluous };
        }
        state.sealed = Some(Some(descriptor.clone()));
        layer.changed.notify_all();
    }

    /// Sends a blob that somebody reads anyway, and that can be read only once, to the repository of `target`. Does nothing if the
    /// blob is there, or on its way.
    ///
    /// # Errors
    /// [`OutputError`]; the blob can go the usual way then.
    pub fn pass(
        &self,
        target: &Reference,
        descriptor: &Descriptor,
        bytes: &mut dyn Read,
        cancel: &Cancel,
    ) -> Result<(), OutputError> {
        let here = repository(target);
        if !self.claim_now(descriptor.digest, &here) {
            return Ok(());
        }
        let claim = Claim { pusher: self, what: (descriptor.digest, here) };
        let once = Once { bytes: RefCell::new(bytes), at: Cell::new(0) };
        let open = |offset| -> io::Result<Box<dyn Read + '_>> {
            if offset == once.at.get() { Ok(Box::new(Turn(&once))) } else { Err(io::ErrorKind::NotSeekable.into()) }
        };
        let progress = |done| self.progress(descriptor, done);
        let blob = BlobToPush { progress: &progress, ..BlobToPush::new(descriptor, &open) };
        let how = self.registry.push_blob(target, &blob, cancel).map_err(|error| failed(target, error))?;
        self.tell(how, descriptor);
        claim.arrived();
        Ok(())
    }
}

/// A layer as its upload sees it.
struct Behind<'b, 'a> {
    pusher: &'b Pusher<'a>,
    layer: &'b GrowingLayer,
    here: &'b Repository,
    cancel: &'b Cancel,
    begun: Instant,
    sealed: OnceCell<Descriptor>,
}

impl GrowingBlob for Behind<'_, '_> {
    fn wait(&self, at_least: u64) -> Grown {
        loop {
            match self.layer.blob.wait(at_least, LOOK) {
                Growth::Whole(_) => {
                    let Some(descriptor) = self.layer.turns_out(self.here, self.cancel) else { return Grown::Lost };
                    let Descriptor { digest, size, .. } = *self.sealed.get_or_init(|| {
                        self.pusher.followed(&descriptor, self.begun.elapsed());
                        descriptor
                    });
                    return Grown::Whole { digest, size };
                }
                Growth::Bytes(bytes) if bytes >= at_least => return Grown::Bytes(bytes),
                Growth::Bytes(_) if !self.cancel.is_cancelled() => {}
                Growth::Bytes(_) | Growth::Lost => return Grown::Lost,
            }
        }
    }

    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>> {
        Ok(Box::new(self.layer.blob.read_from(offset)))
    }

    fn progress(&self, sent: u64) {
        // Before that there is nothing to call it by.
        if let Some(descriptor) = self.sealed.get() {
            self.pusher.progress(descriptor, sent);
        }
    }

    fn sessions(&self) -> Option<&Sessions> {
        self.pusher.sessions.as_ref()
    }
}

/// Bytes that can be read once, by those who take turns.
struct Once<'r> {
    bytes: RefCell<&'r mut dyn Read>,
    at: Cell<u64>,
}

struct Turn<'o, 'r>(&'o Once<'r>);

impl Read for Turn<'_, '_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.0.bytes.borrow_mut().read(buf)?;
        self.0.at.set(self.0.at.get() + count as u64);
        Ok(count)
    }
}
