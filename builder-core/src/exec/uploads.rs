//! Layers on their way to registries while later steps run.
//!
//! A layer of the image is offered as soon as it is sealed, and a few threads bring what was offered to every repository
//! that the outputs name. When the last step is done they take nothing new; what is left is placed by
//! [`Pusher::publish`], which waits for what is still on its way. So the config waits for nothing but the last layers.
//!
//! A layer that takes a while to be written does not wait for that either: its upload reads behind the writer
//! ([`Uploads::follow`]). And blobs of bases that are read anyway are passed on meanwhile ([`super::passing`]).
//!
//! An early upload that fails is no failure of the build: `publish` tries again, and its error counts. Only a registry
//! that refuses this user, as often as such failures may be tried again ([`crate::output::PushOptions`]), ends the build before
//! its end, since nothing that follows can change that.

use std::sync::{Arc, Mutex};
use std::thread::Scope;

use crossbeam_channel::{Receiver, Sender, TryRecvError, after, never, unbounded};

use super::BuildError;
use super::passing::Pass;
use super::released::Released;
use super::request::BuildRequest;
use super::shared::lock;
use crate::cancel::Cancel;
use crate::event::Observer;
use crate::oci::{Descriptor, Reference};
use crate::output::{Blobs, Exporter, GrowingLayer, OutputError, PushOptions, Pusher, Target};
use crate::registry::{Registry, RegistryError, Sessions};
use crate::store::BlobWriter;

/// Where the layers of one build go early.
pub(super) struct Uploads<'a> {
    destinations: Vec<Destination<'a>>,
    queue: (Sender<Descriptor>, Receiver<Descriptor>),
    growing: (Sender<Follow>, Receiver<Follow>),
    /// Taken by the thread that begins uploads; gone with it, so that nobody hands on what nobody takes.
    passes: Mutex<Option<Receiver<Pass>>>,
    /// Taken by the end of the last step: nobody takes anything from the queue then.
    open: Mutex<Option<Sender<()>>>,
    ended: Receiver<()>,
    refused: Mutex<Option<OutputError>>,
    released: &'a Released<'a>,
    workers: usize,
}

/// A layer that is being written, and one of the repositories that it goes to.
struct Follow {
    destination: usize,
    repository: usize,
    layer: Arc<GrowingLayer>,
}

/// The duty to say what became of a layer that is followed. Dropped, it is lost.
pub(super) struct Following<'u, 'a> {
    uploads: &'u Uploads<'a>,
    /// For each destination.
    layers: Vec<Arc<GrowingLayer>>,
}

impl Following<'_, '_> {
    /// The layer is whole. To be said before anybody else hears of its blob.
    pub(super) fn sealed(self, blob: &Descriptor) {
        for (destination, layer) in self.uploads.destinations.iter().zip(&self.layers) {
            destination.pusher.sealed(layer, blob);
        }
    }
}

impl Drop for Following<'_, '_> {
    fn drop(&mut self) {
        self.layers.iter().for_each(|layer| layer.lost());
    }
}

/// One registry output.
struct Destination<'a> {
    /// Its place among the outputs.
    output: usize,
    pusher: Pusher<'a>,
    repositories: Vec<Reference>,
}

impl<'a> Uploads<'a> {
    /// Destinations of `request`; `registries` has one for each output that is a registry.
    pub(super) fn new(
        request: &BuildRequest,
        registries: &[Option<&'a Registry>],
        blobs: &'a dyn Blobs,
        (released, passes): (&'a Released<'a>, Receiver<Pass>),
        sessions: &Sessions,
        observer: &'a dyn Observer,
    ) -> Self {
        let destinations =
            request.outputs.iter().zip(registries).enumerate().filter_map(|(output, (target, registry))| {
                let pusher = Pusher::new((*registry)?, blobs, request.limits, observer);
                let pusher = pusher.with(request.push.options).keeping(sessions.clone());
                Some(Destination { output, pusher, repositories: repositories(request, target) })
            });
        let (open, ended) = unbounded();
        Self {
            destinations: destinations.collect(),
            queue: unbounded(),
            growing: unbounded(),
            passes: Mutex::new(Some(passes)),
            open: Mutex::new(Some(open)),
            ended,
            refused: Mutex::default(),
            released,
            workers: request.limits.connections.get(),
        }
    }

    /// A layer of the image is in the store, in the form that it is pushed in.
    pub(super) fn offer(&self, layer: &Descriptor) {
        if !self.destinations.is_empty() {
            // The receiver lives as long as `self`.
            _ = self.queue.0.send(layer.clone());
        }
    }

    /// Sends a layer of the image while it is written; `None` if it goes nowhere.
    pub(super) fn follow(&self, blob: &mut BlobWriter) -> Option<Following<'_, 'a>> {
        if self.destinations.is_empty() {
            return None;
        }
        let growing = match blob.follow() {
            Ok(growing) => growing,
            Err(error) => {
                tracing::debug!(%error, "a layer is uploaded when it is whole");
                return None;
            }
        };
        let mut layers = Vec::with_capacity(self.destinations.len());
        for (destination, to) in self.destinations.iter().enumerate() {
            let layer = Arc::new(GrowingLayer::new(growing.clone()));
            // The other repositories of a registry mount it from the first.
            for (repository, name) in to.repositories.iter().enumerate() {
                if !to.repositories[..repository].iter().any(|other| other.registry() == name.registry()) {
                    // The receiver lives as long as `self`.
                    _ = self.growing.0.send(Follow { destination, repository, layer: Arc::clone(&layer) });
                }
            }
            layers.push(layer);
        }
        Some(Following { uploads: self, layers })
    }

    /// The pusher of an output that is a registry; it knows what is there already.
    pub(super) fn pusher(&self, output: usize) -> Option<&Pusher<'a>> {
        self.destinations.iter().find(|destination| destination.output == output).map(|found| &found.pusher)
    }

    /// Brings a layer of the image to the repositories that the outputs name in `registry`, or waits for the thread that does.
    /// Returns those that have it then.
    pub(super) fn bring(&self, layer: &Descriptor, registry: Option<&str>, stop: &Cancel) -> Vec<Reference> {
        let mut there = Vec::new();
        for destination in &self.destinations {
            for repository in destination.repositories.iter().filter(|at| Some(at.registry()) == registry) {
                match destination.pusher.blob(repository, layer, stop) {
                    Ok(()) => there.push(repository.clone()),
                    Err(error) => tracing::debug!(%error, digest = %layer.digest, "an early upload failed"),
                }
            }
        }
        there
    }

    /// Brings layers away while `build` runs. `stop` ends both: it is set when `build` fails or a registry refuses.
    ///
    /// # Errors
    /// That of `build`, or why a registry refused if that ended it.
    pub(super) fn during<T>(
        &self,
        stop: &Cancel,
        build: impl FnOnce() -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        std::thread::scope(|scope| {
            if !self.destinations.is_empty() {
                for _ in 0..self.workers {
                    scope.spawn(|| self.work(stop));
                }
                scope.spawn(|| self.begin_streams(scope, stop));
            }
            // Also when `build` panics: the scope waits for the workers.
            let _end = End(self);
            let result = build();
            if result.is_err() {
                stop.cancel();
            }
            match (result, lock(&self.refused).take()) {
                (Err(BuildError::Cancelled), Some(refused)) => Err(refused.into()),
                (result, _) => result,
            }
        })
    }

    /// The last step is done: what is not on its way by now is left to the publisher.
    pub(super) fn end(&self) {
        lock(&self.open).take();
    }

    fn work(&self, stop: &Cancel) {
        loop {
            let layer = crossbeam_channel::select! {
                recv(self.queue.1) -> layer => layer,
                recv(self.ended) -> _ => return,
            };
            // Both may be ready; the end comes first.
            if self.ended.try_recv() == Err(TryRecvError::Disconnected) {
                return;
            }
            let Ok(layer) = layer else { return };
            self.bring_everywhere(&layer, stop);
        }
    }

    /// Begins uploads of what is being written or read, each in a thread of its own: they wait for others, so in a thread that
    /// several share one could wait for the next.
    fn begin_streams<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>, stop: &'scope Cancel) {
        let passes = lock(&self.passes).take().unwrap_or_else(never);
        loop {
            crossbeam_channel::select! {
                recv(self.growing.1) -> follow => {
                    let Ok(Follow { destination, repository, layer }) = follow else { return };
                    let to = &self.destinations[destination];
                    scope.spawn(move || to.pusher.follow(&to.repositories[repository], &layer, stop));
                }
                recv(passes) -> pass => {
                    let Ok(pass) = pass else { return };
                    scope.spawn(move || self.pass(pass, stop));
                }
                recv(self.ended) -> _ => return,
            }
        }
    }

    /// Sends a blob of a base that somebody reads.
    fn pass(&self, mut pass: Pass, stop: &Cancel) {
        let places = self.destinations.iter().flat_map(|to| to.repositories.iter().map(move |name| (&to.pusher, name)));
        let Some((pusher, name)) = places.into_iter().find(|(_, name)| name.registry() == pass.registry) else {
            return;
        };
        let blob = pass.blob.clone();
        if let Err(error) = pusher.pass(name, &blob, &mut pass, stop) {
            tracing::debug!(%error, digest = %blob.digest, "a base's blob was not passed on while it was read");
        }
    }

    /// Brings a layer to every destination, and lets go of it if all have it.
    fn bring_everywhere(&self, layer: &Descriptor, stop: &Cancel) {
        let mut everywhere = true;
        for destination in &self.destinations {
            for repository in &destination.repositories {
                let Err(error) = self.bring_as_agreed(destination, repository, layer, stop) else { continue };
                everywhere = false;
                if is_refusal(&error) {
                    lock(&self.refused).get_or_insert(error);
                    stop.cancel();
                } else {
                    tracing::debug!(%error, digest = %layer.digest, "an early upload failed");
                }
            }
        }
        if everywhere {
            self.released.arrived(layer, &self.repositories());
        }
    }

    /// Brings a layer to a repository. A refusal counts when it came as often as failures may be tried again, with the pauses
    /// between; other failures are left to the end.
    fn bring_as_agreed(
        &self,
        to: &Destination<'_>,
        repository: &Reference,
        layer: &Descriptor,
        stop: &Cancel,
    ) -> Result<(), OutputError> {
        let retries = to.pusher.options().retries;
        for attempt in 1..=retries {
            match to.pusher.blob(repository, layer, stop) {
                Err(error) if is_refusal(&error) => {
                    tracing::debug!(%error, attempt, "an early upload was refused and is tried again");
                }
                ended => return ended,
            }
            crossbeam_channel::select! {
                // The publisher has attempts of its own.
                recv(self.ended) -> _ => return Err(OutputError::Cancelled),
                recv(after(PushOptions::pause(attempt))) -> _ => {}
            }
            if stop.is_cancelled() {
                return Err(OutputError::Cancelled);
            }
        }
        to.pusher.blob(repository, layer, stop)
    }

    /// All repositories that layers go to.
    pub(super) fn repositories(&self) -> Vec<&Reference> {
        self.destinations.iter().flat_map(|destination| &destination.repositories).collect()
    }
}

/// Ends the workers however the build ended.
struct End<'u, 'a>(&'u Uploads<'a>);

impl Drop for End<'_, '_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// One name for each repository that an output writes to.
fn repositories(request: &BuildRequest, target: &Target) -> Vec<Reference> {
    let mut found: Vec<Reference> = Vec::new();
    for name in request.tags.iter().chain(&target.names) {
        let known = |other: &Reference| (other.registry(), other.repository()) == (name.registry(), name.repository());
        if matches!(target.exporter, Exporter::Registry { .. }) && !found.iter().any(known) {
            found.push(name.clone());
        }
    }
    found
}

/// Whether the registry knows who asks and does not want it.
fn is_refusal(error: &OutputError) -> bool {
    let OutputError::Registry { source, .. } = error else { return false };
    matches!(**source, RegistryError::Unauthorized { .. } | RegistryError::Denied { .. })
}
