//! Layers that are kept by the registries they were pushed to, and no longer by the work dir.
//!
//! When every destination of a build is a registry, a layer that all of them have is removed from the store: its files are in
//! the tree, and its blob can be had again. What remains is where it is:
//!
//! ```text
//! <work>/cache/places/<digest>.json    repositories that a layer's blob was pushed to
//! ```
//!
//! A step whose layer has such a record counts as done. Its blob is fetched from there when something needs it: a tree in
//! a work dir that lost its own, another destination that cannot mount it, an archive. A registry that has it no longer makes
//! the record vanish and the build begin anew, which then does the step again.

use std::sync::atomic::{AtomicBool, Ordering};

use super::cache::StepCache;
use super::meter::Meter;
use super::request::BuildRequest;
use crate::oci::{BlobDigest, Descriptor, Reference};
use crate::output::Exporter;
use crate::store::Store;

/// What one build releases, and what earlier ones did.
pub(super) struct Released<'a> {
    cache: &'a StepCache,
    store: &'a Store,
    /// Wants to know before something goes.
    meter: &'a Meter<'a>,
    /// Whether layers go at all.
    releases: bool,
    /// Whether they go while the build runs.
    early: bool,
    /// A place turned out not to have what it should.
    forgotten: AtomicBool,
}

impl<'a> Released<'a> {
    pub(super) fn new(request: &BuildRequest, cache: &'a StepCache, store: &'a Store, meter: &'a Meter<'a>) -> Self {
        // What is fetched again is fetched as base images are: without a client or a leniency for pushes alone.
        let usual = |exporter: &Exporter| matches!(exporter, Exporter::Registry { insecure: false, .. });
        let to_registries = !request.outputs.is_empty() && request.outputs.iter().all(|output| usual(&output.exporter));
        let releases = to_registries && !request.keep_layers && request.registry_client.is_none();
        // Records for other places take the blob from the store when the image's push is through.
        let early = releases && request.cache.to.is_empty();
        Self { cache, store, meter, releases, early, forgotten: AtomicBool::new(false) }
    }

    /// All destinations have a layer that was made here, while the build runs.
    pub(super) fn arrived(&self, layer: &Descriptor, repositories: &[&Reference]) {
        if self.early {
            self.release(layer, repositories);
        }
    }

    /// The same at the build's end.
    pub(super) fn arrived_at_last(&self, layer: &Descriptor, repositories: &[&Reference]) {
        if self.releases {
            self.release(layer, repositories);
        }
    }

    /// All destinations have a layer of a base, which can always be fetched from where the base is.
    pub(super) fn base_arrived(&self, layer: &Descriptor) {
        if self.releases {
            self.remove(layer.digest);
        }
    }

    fn release(&self, layer: &Descriptor, repositories: &[&Reference]) {
        if self.store.size(layer.digest).is_none() {
            return;
        }
        let mut places: Vec<String> =
            repositories.iter().map(|name| name.with_digest(layer.digest).to_string()).collect();
        places.extend(self.cache.places(layer.digest));
        places.sort();
        places.dedup();
        match self.cache.put_places(layer.digest, &places) {
            Ok(()) => self.remove(layer.digest),
            Err(error) => tracing::debug!(%error, "a layer stays: where it is pushed to cannot be noted"),
        }
    }

    fn remove(&self, digest: BlobDigest) {
        self.meter.before_removal(self.store.size(digest).unwrap_or(0));
        if let Err(error) = self.store.remove(digest) {
            tracing::debug!(%error, "a layer that was pushed stays");
        }
    }

    /// Whether a step's layer is in the store, or was pushed somewhere.
    pub(super) fn knows(&self, digest: BlobDigest) -> bool {
        self.store.size(digest).is_some() || !self.cache.places(digest).is_empty()
    }

    /// Where a layer was pushed to.
    pub(super) fn places(&self, digest: BlobDigest) -> Vec<Reference> {
        self.cache.places(digest).iter().filter_map(|place| place.parse().ok()).collect()
    }

    /// None of the places has the layer.
    pub(super) fn forget(&self, digest: BlobDigest) {
        if let Err(error) = self.cache.remove_places(digest) {
            tracing::debug!(%error, "the record of a layer that is gone stays");
            return;
        }
        self.forgotten.store(true, Ordering::SeqCst);
    }

    /// Whether a build that failed would do other steps the next time.
    pub(super) fn forgot(&self) -> bool {
        self.forgotten.load(Ordering::SeqCst)
    }
}
