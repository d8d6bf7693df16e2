//! What all stages of one build use together.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use super::BuildError;
use super::cache::StepCache;
use super::elsewhere::{Elsewhere, Trail};
use super::forecast::Forecast;
use super::known::Known;
use super::passing::{Passing, Patience};
use super::released::Released;
use super::request::BuildRequest;
use super::twins::Twins;
use super::uploads::Uploads;
use crate::cancel::Cancel;
use crate::context::{Files, Remote};
use crate::event::{Event, Observer, Transfer};
use crate::layer::SealedLayer;
use crate::oci::{BlobDigest, ChainId, Descriptor, Sha256};
use crate::plan::{FileSource, ImageRequest, Plan, Stage, StageId};
use crate::rootfs::{Expected, LayerRef, LayerSource, Rootfs, Trees, WorkTree};
use crate::source::{Keep, Origin, ResolvedImage, SourceError, Sources};
use crate::store::{Store, StoreError};

/// What all stages of one build use together.
pub(super) struct Shared<'a> {
    pub(super) request: &'a BuildRequest,
    pub(super) plan: &'a Plan,
    pub(super) observer: &'a dyn Observer,
    pub(super) cancel: Cancel,
    pub(super) store: &'a Store,
    pub(super) trees: &'a Trees,
    pub(super) cache: &'a StepCache,
    /// Results of steps in other places.
    pub(super) elsewhere: &'a Elsewhere<'a>,
    /// What those places have, found out before the first step.
    pub(super) forecast: OnceLock<Forecast>,
    /// Steps that several stages have in common.
    pub(super) twins: OnceLock<Twins>,
    pub(super) images: &'a BTreeMap<ImageRequest, Arc<ResolvedImage>>,
    pub(super) blobs: &'a BlobAccess<'a>,
    /// The main context and the named ones, opened before the first step.
    pub(super) context: &'a Files,
    pub(super) named_contexts: &'a BTreeMap<String, Files>,
    /// How ADD reaches URLs and git repositories.
    pub(super) remote: Remote,
    pub(super) stages: Vec<Slot<Arc<StageResult>>>,
    /// Stages in which a step is done or was done now, and not taken from a cache.
    pub(super) at_work: Vec<AtomicBool>,
    /// Stages that will need the directory of their base.
    pub(super) expected: Mutex<BTreeMap<StageId, Expected>>,
    /// Root filesystems of images that are only copied or mounted from.
    pub(super) image_trees: Mutex<BTreeMap<ImageRequest, Arc<Tree>>>,
    /// Free places for steps that really run.
    pub(super) places: Places,
    /// Layers that may be packed at one time: each uses all processors by itself, so more would only take memory.
    pub(super) seals: Places,
    /// COPYs that were begun without a look at what was done before, by all that decides their results but what they read.
    pub(super) begun: Mutex<BTreeSet<Sha256>>,
    /// Number of the first step of each stage.
    pub(super) first_step: Vec<usize>,
    /// What stacks of layers hold.
    pub(super) known: Known,
    /// Where layers of the image go while later steps run.
    pub(super) uploads: &'a Uploads<'a>,
}

/// Where a result appears for those that wait for it.
pub(super) struct Slot<T> {
    result: Mutex<Option<Option<T>>>,
    ready: Condvar,
}

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self { result: Mutex::new(None), ready: Condvar::new() }
    }
}

impl<T: Clone> Slot<T> {
    /// Makes the result known; `None` if there will be none.
    pub(super) fn fill(&self, result: Option<T>) {
        *lock(&self.result) = Some(result);
        self.ready.notify_all();
    }

    /// Whether nobody needs to wait any more.
    pub(super) fn is_filled(&self) -> bool {
        lock(&self.result).is_some()
    }

    /// Waits for the result; `None` if whoever makes it failed.
    pub(super) fn wait(&self) -> Option<T> {
        let mut result = lock(&self.result);
        loop {
            match &*result {
                Some(done) => return done.clone(),
                None => result = self.ready.wait(result).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// The duty to fill a slot: dropped without a result, there will be none.
pub(super) struct Promise<T: Clone>(pub(super) Arc<Slot<T>>);

impl<T: Clone> Promise<T> {
    pub(super) fn keep(self, result: T) {
        self.0.fill(Some(result));
    }
}

impl<T: Clone> Drop for Promise<T> {
    fn drop(&mut self) {
        let unfilled = lock(&self.0.result).is_none();
        if unfilled {
            self.0.fill(None);
        }
    }
}

/// Locks without caring for a panic elsewhere: the build ends then anyway.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A finished stage.
pub(super) struct StageResult {
    pub(super) tree: Tree,
    /// The layers of its steps and of those of the stages below it.
    pub(super) made: BTreeMap<(StageId, usize), MadeLayer>,
    /// How it came about, for records in other places.
    pub(super) trail: Trail,
}

/// A layer that a step made, now or in an earlier build.
#[derive(Debug, Clone)]
pub(super) struct MadeLayer {
    pub(super) sealed: SealedLayer,
    /// Seconds and nanoseconds since 1970.
    pub(super) created: (i64, u32),
    /// The step's title.
    pub(super) title: String,
}

impl MadeLayer {
    pub(super) fn layer(&self) -> LayerRef {
        LayerRef { diff_id: self.sealed.diff_id, blob: self.sealed.blob.clone() }
    }
}

/// A stack of layers that does not change any more, unpacked when somebody looks.
pub(super) struct Tree {
    pub(super) layers: Vec<LayerRef>,
    work_tree: Mutex<Option<WorkTree>>,
}

impl Tree {
    pub(super) fn new(layers: Vec<LayerRef>, work_tree: Option<WorkTree>) -> Self {
        Self { layers, work_tree: Mutex::new(work_tree) }
    }

    pub(super) fn chain(&self) -> Option<ChainId> {
        ChainId::of(self.layers.iter().map(|layer| layer.diff_id))
    }

    /// The root filesystem to read from. It stays as long as `self` does.
    pub(super) fn rootfs(&self, shared: &Shared<'_>) -> Result<Rootfs, BuildError> {
        let mut work_tree = lock(&self.work_tree);
        if work_tree.is_none() {
            *work_tree = Some(shared.checkout(&self.layers)?);
        }
        let work_tree = work_tree.as_ref().expect("filled above");
        work_tree.rootfs().map_err(BuildError::from)
    }

    /// Whether there is a directory behind it.
    pub(super) fn is_there(&self) -> bool {
        lock(&self.work_tree).is_some()
    }

    /// A copy of the directory behind the tree, if there is one and directories are not shared by themselves, with these layers, of
    /// which the tree has the first ones.
    pub(super) fn copy(&self, shared: &Shared<'_>, layers: &[LayerRef]) -> Result<Option<WorkTree>, BuildError> {
        let work_tree = lock(&self.work_tree);
        let Some(work_tree) = work_tree.as_ref().filter(|_| layers.starts_with(&self.layers)) else { return Ok(None) };
        let more = &layers[self.layers.len()..];
        Ok(shared.trees.copy(work_tree, more, shared.blobs, &shared.cancel)?)
    }

    /// Takes the directory behind the tree, for the only stage that goes on from it.
    pub(super) fn take(&self) -> Option<WorkTree> {
        lock(&self.work_tree).take()
    }
}

/// Counts steps that run at one time.
pub(super) struct Places {
    free: Mutex<usize>,
    changed: Condvar,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { free: Mutex::new(count.max(1)), changed: Condvar::new() }
    }

    /// Waits for a place; it is given back when the guard is dropped.
    pub(super) fn enter(&self) -> PlaceGuard<'_> {
        let mut free = lock(&self.free);
        while *free == 0 {
            free = self.changed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        PlaceGuard(self)
    }
}

/// A place taken from [`Places`].
pub(super) struct PlaceGuard<'a>(&'a Places);

impl Drop for PlaceGuard<'_> {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.changed.notify_one();
    }
}

impl Shared<'_> {
    /// Steps that several stages have in common.
    pub(super) fn twins(&self) -> &Twins {
        self.twins.get().expect("they are found before the first stage begins")
    }

    /// Whether a stage may use nothing from earlier builds.
    pub(super) fn begins_anew(&self, stage: &Stage) -> bool {
        self.request.no_cache.applies_to(&stage.name)
    }

    /// A tree with exactly these layers.
    pub(super) fn checkout(&self, layers: &[LayerRef]) -> Result<WorkTree, BuildError> {
        Ok(self.trees.checkout(layers, self.blobs, &self.cancel)?)
    }

    /// The result of a stage that this one uses.
    pub(super) fn stage(&self, id: StageId) -> Result<Arc<StageResult>, BuildError> {
        // A failed stage has reported its own error; whoever waited for it just ends.
        self.stages[id.0].wait().ok_or(BuildError::Cancelled)
    }

    /// The layers of an image that was resolved with the plan.
    pub(super) fn image(&self, request: &ImageRequest) -> Result<&Arc<ResolvedImage>, BuildError> {
        self.images.get(request).ok_or_else(|| BuildError::UnresolvedImage { name: request.name.clone() })
    }

    /// The tree of an image that is copied or mounted from.
    pub(super) fn image_tree(&self, request: &ImageRequest) -> Result<Arc<Tree>, BuildError> {
        let layers = self.image(request)?.layers.clone();
        let mut trees = lock(&self.image_trees);
        Ok(Arc::clone(trees.entry(request.clone()).or_insert_with(|| Arc::new(Tree::new(layers, None)))))
    }

    /// The tree that `from` names, if it is one of layers.
    pub(super) fn tree_of(&self, from: &FileSource) -> Result<Option<SourceTree>, BuildError> {
        match from {
            FileSource::Stage(id) => Ok(Some(SourceTree::Stage(self.stage(*id)?))),
            FileSource::Image(request) => Ok(Some(SourceTree::Image(self.image_tree(request)?))),
            FileSource::Context | FileSource::NamedContext(_) | FileSource::Scratch => Ok(None),
        }
    }
}

/// A tree of a stage or an image.
pub(super) enum SourceTree {
    Stage(Arc<StageResult>),
    Image(Arc<Tree>),
}

impl SourceTree {
    pub(super) fn tree(&self) -> &Tree {
        match self {
            Self::Stage(result) => &result.tree,
            Self::Image(tree) => tree,
        }
    }
}

/// Blobs of base images and of new layers, wherever they are.
pub(super) struct BlobAccess<'a> {
    pub(super) store: &'a Store,
    pub(super) sources: &'a Sources,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) cancel: Cancel,
    /// Which image a base blob can be fetched from.
    pub(super) origins: BTreeMap<BlobDigest, Arc<ResolvedImage>>,
    /// Where blobs of steps are in other places.
    elsewhere: Mutex<BTreeMap<BlobDigest, Vec<Origin>>>,
    /// Layers that are only where they were pushed to.
    pub(super) released: &'a Released<'a>,
    /// Whether blobs of bases stay in the store when they are unpacked or passed on.
    keeps_bases: bool,
    /// Where else they go while they are read.
    passing: Passing,
}

impl<'a> BlobAccess<'a> {
    /// Access to the blobs of `images` and of the store.
    pub(super) fn new<'i>(
        store: &'a Store,
        sources: &'a Sources,
        observer: Arc<dyn Observer>,
        cancel: Cancel,
        images: impl Iterator<Item = &'i Arc<ResolvedImage>>,
        released: &'a Released<'a>,
        (keeps_bases, passing): (bool, Passing),
    ) -> Self {
        let origins =
            images.flat_map(|image| image.layers.iter().map(|layer| (layer.blob.digest, Arc::clone(image)))).collect();
        Self { store, sources, observer, cancel, origins, elsewhere: Mutex::default(), released, keeps_bases, passing }
    }

    /// A blob as a verified stream. One that is not in the store is fetched from where it is.
    pub(super) fn open_blob(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, BlobError> {
        if self.store.contains(blob) {
            return Ok(Box::new(self.store.blob(blob.digest)?));
        }
        let inner = match self.origins.get(&blob.digest) {
            Some(image) => {
                let keep = if self.keeps_bases { Keep::InStore } else { Keep::Nothing };
                self.sources.open_blob(image, blob, keep, &self.cancel)?
            }
            None => self.open_elsewhere(blob)?,
        };
        Ok(self.counted(inner, blob))
    }

    /// The same for one who reads it for its files; a base goes on to registries that get it while it is read.
    pub(super) fn open_and_pass(
        &self,
        blob: &Descriptor,
        patience: Patience,
    ) -> Result<Box<dyn Read + Send>, BlobError> {
        let stream = self.open_blob(blob)?;
        match self.origins.get(&blob.digest).map(|image| &image.origin) {
            // What stays can be sent, and sent again, at any time.
            Some(Origin::Registry(locations)) if !self.keeps_bases && !self.store.contains(blob) => {
                Ok(self.passing.beside(blob, locations, stream, patience))
            }
            _ => Ok(stream),
        }
    }

    /// The same; one of a base stays in the store.
    pub(super) fn open_and_keep(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, BlobError> {
        match self.origins.get(&blob.digest).filter(|_| !self.store.contains(blob)) {
            Some(image) => {
                let inner = self.sources.open_blob(image, blob, Keep::InStore, &self.cancel)?;
                Ok(self.counted(inner, blob))
            }
            None => self.open_blob(blob),
        }
    }

    fn counted(&self, inner: Box<dyn Read + Send>, blob: &Descriptor) -> Box<dyn Read + Send> {
        Box::new(Counted {
            inner,
            observer: Arc::clone(&self.observer),
            id: blob.digest.to_string(),
            done: 0,
            told: 0,
            total: blob.size,
        })
    }
}

impl BlobAccess<'_> {
    /// Notes that a place has a blob.
    pub(super) fn is_also_at(&self, digest: BlobDigest, origin: Origin) {
        let mut elsewhere = lock(&self.elsewhere);
        let known = elsewhere.entry(digest).or_default();
        if !known.contains(&origin) {
            known.push(origin);
        }
    }

    /// The other places that have a blob.
    pub(super) fn elsewhere(&self, digest: BlobDigest) -> Vec<Origin> {
        lock(&self.elsewhere).get(&digest).cloned().unwrap_or_default()
    }

    /// Opens a blob of the first other place that gives it.
    fn open_elsewhere(&self, blob: &Descriptor) -> Result<Box<dyn Read + Send>, BlobError> {
        let mut last = BlobError::Gone { digest: blob.digest };
        for origin in self.elsewhere(blob.digest) {
            match self.sources.open_blob_of(&origin, blob, Keep::InStore, &self.cancel) {
                Ok(stream) => return Ok(stream),
                Err(error) => last = error.into(),
            }
        }
        // Where earlier builds pushed it. Another build may have found that it is not there any more since this one asked, and
        // removed the record; or somebody pruned the work dir.
        let places = self.released.places(blob.digest);
        let mut gone = !places.is_empty() || matches!(last, BlobError::Gone { .. });
        for place in places {
            let origin = Origin::Registry(vec![place]);
            match self.sources.open_blob_of(&origin, blob, Keep::Nothing, &self.cancel) {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    gone &= error.lacks_blob();
                    last = error.into();
                }
            }
        }
        if gone {
            self.released.forget(blob.digest);
        }
        Err(last)
    }
}

/// Why a blob could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its registry or layout failed.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It was pruned from the work dir while the build needed it.
    #[error("blob {digest} is neither kept in the work directory nor part of a base image")]
    Gone {
        /// Which.
        digest: BlobDigest,
    },
}

impl LayerSource for BlobAccess<'_> {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.open_and_pass(&layer.blob, Patience::Little)?)
    }
}

/// Layers that are read for nothing but their index: nobody waits for that more than for their way to the registry.
pub(super) struct ForIndex<'b, 'a>(pub(super) &'b BlobAccess<'a>);

impl LayerSource for ForIndex<'_, '_> {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.open_and_pass(&layer.blob, Patience::Much)?)
    }
}

/// Counts bytes as they are read and tells the observer now and then.
struct Counted {
    inner: Box<dyn Read + Send>,
    observer: Arc<dyn Observer>,
    id: String,
    done: u64,
    told: u64,
    total: u64,
}

/// How many bytes pass between two progress events.
const PROGRESS_STEP_BYTES: u64 = 256 * 1024;

impl Read for Counted {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buf)?;
        self.done += read as u64;
        if read == 0 || self.done - self.told >= PROGRESS_STEP_BYTES {
            self.told = self.done;
            self.observer.event(Event::Progress {
                transfer: Transfer::Pull,
                id: &self.id,
                done: self.done,
                total: Some(self.total),
            });
        }
        Ok(read)
    }
}
