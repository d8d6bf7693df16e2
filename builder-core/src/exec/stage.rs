//! One stage: its steps in order, each from the cache or done now.
//!
//! Where trees are stacked by overlayfs, the next step does not wait for a large layer: what the step before it wrote
//! becomes a lower directory at once, and is packed while the next one runs. The diff_id that decides the next step's cache
//! key is known only when that is done, so its record is written then. In directory mode a step changes the files of
//! the one before it, so each is packed before the next begins.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use super::cache::StepRecord;
use super::elsewhere::Trail;
use super::forecast::forecast;
use super::shared::{MadeLayer, Promise, Shared, Slot, StageResult, Tree};
use super::{BuildError, copying, known, running};
use crate::event::{Event, StepId};
use crate::layer::{self, LayerInput, LayerOptions, SealedLayer};
use crate::oci::{ChainId, Descriptor, Sha256};
use crate::output;
use crate::plan::key::{Components, StateKey};
use crate::plan::{Action, Base, CopyAction, FileSource, MountKind, Plan, Stage, StageId, Step};
use crate::rootfs::index::IndexTree;
use crate::rootfs::{DetachedStep, FileKind, LayerRef, Recall, TreeMode, TreeStep, WorkTree};
use crate::snapshot::{self, Change};

/// A stage on its way.
pub(super) struct Progress<'scope, 'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) stage: &'a Stage,
    /// For layers that are made while later steps run.
    scope: &'scope Scope<'scope, 'a>,
    /// Base layers, then one for each step done.
    layers: Vec<LayerRef>,
    /// Layers above those that are still being made; every step after the first of them is one.
    coming: Vec<Coming<'scope>>,
    /// The directory behind `layers` and `coming`, once a step needed one; `None` after a cached step, which leaves it behind.
    tree: Option<WorkTree>,
    /// What `layers` hold, as far as a step without a directory had to know it; of use while it has as many layers.
    index: Option<IndexTree>,
    made: BTreeMap<(StageId, usize), MadeLayer>,
    /// How it came to where it is.
    trail: Trail,
}

/// What a step is made from: everything that its cache key covers.
pub(super) struct Inputs {
    /// Hash over each thing that it reads beside the tree below it, by a name for people.
    pub(super) items: BTreeMap<String, Sha256>,
}

/// Builds `stage` to its end.
pub(super) fn build(shared: &Shared<'_>, stage: &Stage) -> Result<StageResult, BuildError> {
    std::thread::scope(|scope| {
        let mut progress = Progress::begin(scope, shared, stage)?;
        let steps = stage.steps.iter().enumerate();
        let ran = steps.into_iter().try_for_each(|(index, step)| progress.step(index, step));
        match (ran, progress.settle()) {
            // A layer that failed in the background is why the step in front was cancelled.
            (Ok(()) | Err(BuildError::Cancelled), Err(error)) | (Err(error), _) => Err(error),
            (Ok(()), Ok(())) => {
                let (made, trail) = (progress.made, progress.trail);
                Ok(StageResult { tree: Tree::new(progress.layers, progress.tree), made, trail })
            }
        }
    })
}

impl<'scope, 'a> Progress<'scope, 'a> {
    fn begin(scope: &'scope Scope<'scope, 'a>, shared: &'a Shared<'a>, stage: &'a Stage) -> Result<Self, BuildError> {
        let (layers, tree, made) = match &stage.base {
            Base::Scratch => (Vec::new(), None, BTreeMap::new()),
            Base::Image(request) => (shared.image(request)?.layers.clone(), None, BTreeMap::new()),
            Base::Stage(id) => {
                let below = shared.stage(*id)?;
                let tree = if users(shared.plan, *id) == 1 { below.tree.take() } else { None };
                (below.tree.layers.clone(), tree, below.made.clone())
            }
            Base::Context(name) => (vec![copying::context_as_base(shared, stage, name)?], None, BTreeMap::new()),
        };
        Ok(Self {
            shared,
            stage,
            scope,
            layers,
            coming: Vec::new(),
            tree,
            index: None,
            made,
            trail: shared.trail(stage)?,
        })
    }

    /// Number of the step in the whole build.
    fn id(&self, index: usize) -> StepId {
        self.shared.step_id(self.stage.id, index)
    }

    fn chain(&self) -> Option<ChainId> {
        ChainId::of(self.layers.iter().map(|layer| layer.diff_id))
    }

    fn step(&mut self, index: usize, step: &'a Step) -> Result<(), BuildError> {
        let shared = self.shared;
        let id = self.id(index);
        if shared.cancel.is_cancelled() {
            shared.observer.event(Event::StepCancelled { step: id });
            return Err(BuildError::Cancelled);
        }
        let started = Instant::now();
        shared.observer.event(Event::StepStarted { step: id, title: &step.title });
        match self.find_or_make(index, step, id, started) {
            Ok(None) => Ok(()),
            Ok(Some((made, cached))) => {
                let (layer, elapsed) = (Some(made.sealed.diff_id), started.elapsed());
                shared.sealed(self.stage, &made);
                self.push(index, made);
                shared.observer.event(Event::StepFinished { step: id, cached, layer, elapsed });
                Ok(())
            }
            Err(BuildError::Cancelled) => {
                shared.observer.event(Event::StepCancelled { step: id });
                Err(BuildError::Cancelled)
            }
            Err(error) => {
                shared.observer.event(Event::StepFailed { step: id, elapsed: started.elapsed() });
                Err(error.at(step, self.stage))
            }
        }
    }

    fn push(&mut self, index: usize, made: MadeLayer) {
        self.layers.push(made.layer());
        self.made.insert((self.stage.id, index), made);
    }

    /// Waits for all layers that are being made.
    fn settle(&mut self) -> Result<(), BuildError> {
        let mut failed = None;
        for coming in std::mem::take(&mut self.coming) {
            match coming.wait() {
                (index, Ok((made, trail))) => {
                    self.push(index, made);
                    self.trail = trail;
                }
                // Those above it fail because of the first one.
                (_, Err(error)) => _ = failed.get_or_insert(error),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// The step's layer and whether it came from the cache; `None` if the layer is being made, by somebody who tells when
    /// it is done.
    fn find_or_make(
        &mut self,
        index: usize,
        step: &'a Step,
        id: StepId,
        started: Instant,
    ) -> Result<Option<(MadeLayer, bool)>, BuildError> {
        let shared = self.shared;
        if let Some(found) = shared.forecast_hit(self.stage, index, self.trail) {
            self.settle()?;
            self.tree = None;
            return Ok(Some((found.take(shared, self.stage, index, &mut self.trail), true)));
        }
        let phases = Phases { shared, step: id };
        let begun = Instant::now();
        self.fetch_base_meanwhile(index, step);
        let copy = match &step.action {
            Action::Copy(action) => Some(copying::Prepared::new(shared, action)?),
            Action::Run(_) | Action::Workdir(_) => None,
        };
        let inputs = match (&step.action, &copy) {
            (Action::Run(action), _) => running::inputs(shared, action)?,
            (Action::Copy(_), Some(prepared)) => match shared.known_inputs(self.stage, index) {
                Some(known) => known,
                None => prepared.inputs()?,
            },
            _ => Inputs { items: BTreeMap::new() },
        };
        phases.done("inputs", begun);
        let detached = matches!(&step.action, Action::Copy(action) if crate::copy::links(action));
        let key = StepKey { shared, stage: self.stage, step, index, inputs };
        // Below a layer that is being made nothing is looked up: what stands on a large layer made just now was hardly ever
        // built before, and to find out would mean to wait for it.
        let components = match self.coming.is_empty() {
            true => Some(key.components(self.chain())),
            false => None,
        };

        if !shared.request.no_cache.applies_to(&self.stage.name) {
            if let Some(hash) = components.as_ref().map(Components::key)
                && let Some(record) = shared.cache.step(hash)
                && shared.blobs.released.knows(record.layer.blob.digest)
                && !shared.is_expired(record.created)
            {
                self.tree = None;
                self.trail = shared.offer(&key, self.trail, &record);
                shared.remember(self.stage, index, components.as_ref().expect("it has a key"));
                return Ok(Some((MadeLayer::from_record(&record, &step.title), true)));
            }
            if let Some(found) = shared.content_hit(&key, self.trail) {
                self.settle()?;
                self.tree = None;
                return Ok(Some((found.take(shared, self.stage, index, &mut self.trail), true)));
            }
            let reason = match (shared.recall(self.stage, index), &components) {
                (None, _) => "not built here before".to_owned(),
                (Some(old), Some(now)) if old.key() == now.key() => "its result was pruned".to_owned(),
                (Some(old), Some(now)) => now.difference(&old),
                (Some(old), None) => key.components_on(StateKey(Sha256::of(b"not known yet"))).difference(&old),
            };
            shared.observer.event(Event::CacheMiss { step: id, reason: &reason });
        }

        shared.at_work[self.stage.id.0].store(true, Ordering::SeqCst);
        let _place = shared.places.enter();
        if shared.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let layer = if let Some(layer) = self.make_known(&key, copy.as_ref(), detached, id)? {
            self.settle()?;
            self.tree = None;
            layer
        } else if detached {
            let prepared = copy.as_ref().expect("only a copy is detached");
            let mut empty = shared.checkout(&[])?;
            let tree_step = empty.begin()?;
            prepared.apply(tree_step.rootfs())?;
            let changes = self.changes(&tree_step, &[])?;
            let layer = shared.seal(&changes, tree_step.rootfs(), step, id)?;
            self.settle()?;
            self.tree = None;
            layer
        } else {
            let begun = Instant::now();
            let mut tree = match self.tree.take() {
                Some(tree) => tree,
                None => {
                    self.settle()?;
                    shared.checkout(&self.layers)?
                }
            };
            let mut tree_step = tree.begin()?;
            if let Action::Run(_) = &step.action {
                tree_step.prepare_command(&shared.cancel)?;
            }
            phases.done("tree", begun);
            let begun = Instant::now();
            match &step.action {
                Action::Run(action) => {
                    running::run(shared, self.stage, action, tree_step.rootfs(), id)?;
                }
                Action::Workdir(action) => crate::copy::workdir(action, tree_step.rootfs())?,
                Action::Copy(_) => copy.as_ref().expect("prepared above").apply(tree_step.rootfs())?,
            }
            phases.done(if matches!(step.action, Action::Run(_)) { "run" } else { "copy" }, begun);
            let begun = Instant::now();
            let changes = self.changes(&tree_step, &self.layers)?;
            phases.done("changes", begun);
            let more = index + 1 < self.stage.steps.len();
            let large = more && content_bytes(&changes) >= BACKGROUND_FROM_BYTES && tree_step.can_detach();
            if large || !self.coming.is_empty() {
                let detached = tree_step.detach()?;
                self.tree = Some(tree);
                self.make_meanwhile(key, detached, changes, id, started);
                return Ok(None);
            }
            let layer = shared.seal(&changes, tree_step.rootfs(), step, id)?;
            tree_step.commit(layer.diff_id)?;
            self.tree = Some(tree);
            layer
        };
        let begun = Instant::now();
        let (made, trail) = key.keep(self.chain(), self.trail, layer)?;
        self.trail = trail;
        phases.done("keep", begun);
        Ok(Some((made, false)))
    }

    /// Makes the layer of a step without a directory, if that is the better way and works.
    fn make_known(
        &mut self,
        key: &StepKey<'_>,
        copy: Option<&copying::Prepared<'_>>,
        detached: bool,
        id: StepId,
    ) -> Result<Option<SealedLayer>, BuildError> {
        let (shared, step) = (self.shared, key.step);
        let way = known::Way { stage: self.stage, index: key.index, detached, tree: self.tree.is_some() };
        if matches!(step.action, Action::Run(_)) || !way.is_better(shared) {
            return Ok(None);
        }
        if detached {
            let made = known::make(shared, IndexTree::empty(), &[], step, id, copy)?;
            return Ok(made.map(|(layer, _)| layer));
        }
        if !self.coming.is_empty() {
            return Ok(None);
        }
        let before = match self.index.take().filter(|tree| tree.layers() == self.layers.len()) {
            Some(tree) => tree,
            None => match shared.known.tree(shared, &self.layers, shared.blobs)? {
                Some(tree) => tree,
                None => return Ok(None),
            },
        };
        let made = known::make(shared, before, &self.layers, step, id, copy)?;
        Ok(made.map(|(layer, tree)| {
            self.index = Some(tree);
            layer
        }))
    }

    /// If `step` copies from a stage that is at work, and a command follows: unpacks the layers below it in the meantime, so
    /// that the bases of all stages are fetched at once. Where all steps of the other stage come from a cache nothing is
    /// fetched, since this one may as well.
    fn fetch_base_meanwhile(&self, index: usize, step: &Step) {
        let (shared, stage) = (self.shared, self.stage);
        let Action::Copy(CopyAction { from: FileSource::Stage(other), .. }) = &step.action else { return };
        let other = other.0;
        let runs = stage.steps[index..].iter().any(|step| matches!(step.action, Action::Run(_)));
        // In directory mode each tree is made for one user.
        let shares = shared.trees.mode() == TreeMode::Overlay;
        if !runs || !shares || self.tree.is_some() || !self.coming.is_empty() || shared.stages[other].is_filled() {
            return;
        }
        let layers = self.layers.clone();
        self.scope.spawn(move || {
            while !shared.at_work[other].load(Ordering::SeqCst) {
                if shared.stages[other].is_filled() || shared.cancel.is_cancelled() {
                    return;
                }
                std::thread::sleep(LOOK_AGAIN);
            }
            if let Err(error) = shared.checkout(&layers) {
                // Whoever needs the tree meets it, too.
                tracing::debug!(%error, stage = stage.name, "the base cannot be fetched ahead");
            }
        });
    }

    /// What a step changed in a tree of the layers `below`.
    fn changes(&self, step: &TreeStep<'_>, below: &[LayerRef]) -> Result<Vec<Change>, BuildError> {
        let shared = self.shared;
        Ok(snapshot::changes(step, Some(Recall { layers: below, source: shared.blobs, cancel: &shared.cancel }))?)
    }

    /// Makes the layer of a step in a thread of its own, and everything that follows from it.
    fn make_meanwhile(
        &mut self,
        key: StepKey<'a>,
        detached: DetachedStep,
        changes: Vec<Change>,
        id: StepId,
        started: Instant,
    ) {
        let below = match self.coming.last() {
            Some(coming) => Below::Coming(Arc::clone(&coming.done)),
            None => Below::Known(self.chain(), self.trail),
        };
        self.trail = self.shared.trail_meanwhile(&key, self.trail);
        let done = Arc::new(Slot::default());
        let promise = Promise(Arc::clone(&done));
        let index = key.index;
        let thread = self.scope.spawn(move || {
            let (shared, stage, step) = (key.shared, key.stage, key.step);
            let mut elapsed = Duration::ZERO;
            let made = (|| {
                let layer = shared.seal(&changes, detached.rootfs(), step, id)?;
                drop(changes);
                // What it waits for from here on is not its own work.
                elapsed = started.elapsed();
                let (below, trail) = below.wait()?;
                let chain = ChainId::extend(below, layer.diff_id);
                detached.name(chain)?;
                let (made, trail) = key.keep(below, trail, layer)?;
                Ok((chain, made, trail))
            })();
            match made {
                Ok((chain, made, trail)) => {
                    shared.sealed(stage, &made);
                    let layer = Some(made.sealed.diff_id);
                    shared.observer.event(Event::StepFinished { step: id, cached: false, layer, elapsed });
                    promise.keep((chain, made, trail));
                    Ok(())
                }
                Err(error) => {
                    // What runs on top of it has no future.
                    shared.cancel.cancel();
                    drop(promise);
                    shared.observer.event(match error {
                        BuildError::Cancelled => Event::StepCancelled { step: id },
                        _ => Event::StepFailed { step: id, elapsed: started.elapsed() },
                    });
                    Err(error.at(step, stage))
                }
            }
        });
        self.coming.push(Coming { index, done, thread });
    }
}

/// How often it is looked whether another stage is at work.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Bytes of files in a layer from which on the next step does not wait for it. Smaller ones are done in about a tenth of a
/// second, and what stands on them may be in the cache.
const BACKGROUND_FROM_BYTES: u64 = 32 << 20;

/// Bytes of all files among `changes`, holes included.
fn content_bytes(changes: &[Change]) -> u64 {
    let size = |change: &Change| match change {
        Change::Entry { metadata, link_to: None, .. } if metadata.kind == FileKind::File => metadata.size,
        _ => 0,
    };
    changes.iter().map(size).sum()
}

/// A layer that is being made.
struct Coming<'scope> {
    /// Of its step in the stage.
    index: usize,
    /// The layer, the chain id of the stack with it, and how it came about.
    done: Arc<Slot<(ChainId, MadeLayer, Trail)>>,
    thread: ScopedJoinHandle<'scope, Result<(), BuildError>>,
}

impl Coming<'_> {
    /// Its layer, when it is done.
    fn wait(self) -> (usize, Result<(MadeLayer, Trail), BuildError>) {
        let ended = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let made =
            ended.and_then(|()| self.done.wait().map(|(_, made, trail)| (made, trail)).ok_or(BuildError::Cancelled));
        (self.index, made)
    }
}

/// The stack below a layer.
enum Below {
    Known(Option<ChainId>, Trail),
    Coming(Arc<Slot<(ChainId, MadeLayer, Trail)>>),
}

impl Below {
    fn wait(&self) -> Result<(Option<ChainId>, Trail), BuildError> {
        match self {
            Self::Known(chain, trail) => Ok((*chain, *trail)),
            // It has reported its own error.
            Self::Coming(slot) => {
                slot.wait().map(|(chain, _, trail)| (Some(chain), trail)).ok_or(BuildError::Cancelled)
            }
        }
    }
}

/// Everything that decides the result of a step but the tree below it.
pub(super) struct StepKey<'a> {
    shared: &'a Shared<'a>,
    pub(super) stage: &'a Stage,
    pub(super) step: &'a Step,
    pub(super) index: usize,
    pub(super) inputs: Inputs,
}

impl StepKey<'_> {
    fn components(&self, below: Option<ChainId>) -> Components {
        self.components_on(StateKey::image(below))
    }

    fn components_on(&self, below: StateKey) -> Components {
        let base = if self.index == 0 { self.stage.pinned.clone() } else { None };
        Components::new(self.step, &self.stage.platform, below, &self.inputs.items)
            .on_base(base)
            .clamped_to(self.shared.request.clamp_mtime(self.shared.plan))
            .ignoring(self.shared.request.ignored.patterns())
    }

    /// Notes the layer that the step made on `below`, so that another build finds it.
    fn keep(&self, below: Option<ChainId>, trail: Trail, layer: SealedLayer) -> Result<(MadeLayer, Trail), BuildError> {
        let shared = self.shared;
        let components = self.components(below);
        let record = StepRecord { layer, created: shared.timestamp() };
        shared.cache.put_step(components.key(), &record).map_err(|source| BuildError::Cache { source })?;
        shared.remember(self.stage, self.index, &components);
        let trail = shared.offer(self, trail, &record);
        Ok((MadeLayer::from_record(&record, &self.step.title), trail))
    }
}

/// Tells how long the parts of a step take.
struct Phases<'a> {
    shared: &'a Shared<'a>,
    step: StepId,
}

impl Phases<'_> {
    fn done(&self, name: &'static str, begun: Instant) {
        self.shared.observer.event(Event::Phase { step: self.step, name, elapsed: begun.elapsed() });
    }
}

impl Shared<'_> {
    /// Writes changes of a tree as a layer.
    pub(super) fn seal(
        &self,
        changes: &[Change],
        tree: &dyn layer::Tree,
        step: &Step,
        id: StepId,
    ) -> Result<SealedLayer, BuildError> {
        let begun = Instant::now();
        let layer = self.write_layer(changes, tree, &step.title)?;
        Phases { shared: self, step: id }.done("layer", begun);
        self.observer.event(Event::Packed {
            step: id,
            digest: layer.blob.digest,
            tar_bytes: layer.uncompressed_bytes,
            blob_bytes: layer.blob.size,
            entries: layer.entries,
        });
        Ok(layer)
    }

    /// The same of something that is no step.
    pub(super) fn write_layer(
        &self,
        changes: &[Change],
        tree: &dyn layer::Tree,
        title: &str,
    ) -> Result<SealedLayer, BuildError> {
        let _turn = self.seals.enter();
        let options = LayerOptions {
            compression: self.request.layer_compression(),
            docker_media_types: self.request.docker_media_types(),
            clamp_mtime: self.request.clamp_mtime(self.plan),
        };
        let progress = |done| {
            let transfer = crate::event::Transfer::Compress;
            self.observer.event(Event::Progress { transfer, id: title, done, total: None });
        };
        let limits = &self.request.limits;
        let index = self.trees.indexes().record_new();
        let index = index.inspect_err(|error| tracing::debug!(%error, "a layer's index cannot be written")).ok();
        let changes = self.request.ignored.leave_out(changes);
        let input = LayerInput { changes: &changes, tree, index };
        Ok(layer::write(input, self.store, &options, limits, &self.cancel, &progress)?)
    }
}

impl MadeLayer {
    fn from_record(record: &StepRecord, title: &str) -> Self {
        Self { sealed: record.layer.clone(), created: record.created, title: title.to_owned() }
    }
}

impl Shared<'_> {
    /// Seconds and nanoseconds since 1970.
    pub(super) fn timestamp(&self) -> (i64, u32) {
        let now = (self.request.now)();
        match now.duration_since(std::time::UNIX_EPOCH) {
            Ok(since) => (since.as_secs().try_into().unwrap_or(i64::MAX), since.subsec_nanos()),
            Err(_) => (0, 0),
        }
    }

    /// Where the step at this place of this Dockerfile leaves what it was made from.
    fn place(&self, stage: &Stage, index: usize) -> Sha256 {
        let dockerfile = format!("{:?}", self.request.dockerfile);
        Sha256::of(format!("{dockerfile}\0{}\0{}\0{}\0{index}", stage.position, stage.name, stage.platform).as_bytes())
    }

    /// A layer is whole: it may leave at once if it is one of the image, in the form that it has.
    fn sealed(&self, stage: &Stage, made: &MadeLayer) {
        if self.leaves_at_once(stage, &made.sealed.blob) {
            self.uploads.offer(&made.sealed.blob);
        }
    }

    /// Whether a layer of `stage` is one of the image in the form that it has.
    pub(super) fn leaves_at_once(&self, stage: &Stage, blob: &Descriptor) -> bool {
        let as_it_is = in_image(self.plan, stage.id) && !self.request.single_layer;
        as_it_is && !output::needs_recompression(blob, self.request.layer_compression())
    }

    fn recall(&self, stage: &Stage, index: usize) -> Option<Components> {
        self.cache.last(self.place(stage, index))
    }

    fn remember(&self, stage: &Stage, index: usize, components: &Components) {
        if let Err(error) = self.cache.put_last(self.place(stage, index), components) {
            // Only the wording of the next build's miss depends on it.
            tracing::debug!(%error, "cannot note what a step was made from");
        }
    }
}

/// Runs all stages of the plan, each in its thread, and gives the target's result.
pub(super) fn build_all(shared: &Shared<'_>) -> Result<Arc<StageResult>, BuildError> {
    let forecast = shared.forecast.get_or_init(|| forecast(shared));
    for stage in shared.plan.stages.iter().filter(|stage| !forecast.is_needed(stage.id)) {
        for (index, step) in stage.steps.iter().enumerate() {
            let (step, title) = (shared.step_id(stage.id, index), &step.title);
            shared.observer.event(Event::StepStarted { step, title });
            shared.observer.event(Event::StepFinished { step, cached: true, layer: None, elapsed: Duration::ZERO });
        }
    }
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = shared
            .plan
            .stages
            .iter()
            .filter(|stage| forecast.is_needed(stage.id))
            .map(|stage| {
                scope.spawn(move || {
                    let result = build(shared, stage);
                    let slot = &shared.stages[stage.id.0];
                    match result {
                        Ok(done) => {
                            slot.fill(Some(Arc::new(done)));
                            None
                        }
                        Err(error) => {
                            shared.cancel.cancel();
                            slot.fill(None);
                            Some(error)
                        }
                    }
                })
            })
            .collect();
        workers
            .into_iter()
            .filter_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    // The first error that is not the consequence of another one is the build's.
    let mut cancelled = None;
    for error in failures {
        if !matches!(error, BuildError::Cancelled) {
            return Err(error);
        }
        cancelled = Some(error);
    }
    if let Some(error) = cancelled {
        return Err(error);
    }
    shared.stage(shared.plan.target)
}

/// Where each file source of a plan stands.
pub(super) fn file_sources(plan: &Plan) -> impl Iterator<Item = &FileSource> {
    plan.stages.iter().flat_map(|stage| &stage.steps).flat_map(|step| -> Vec<&FileSource> {
        match &step.action {
            Action::Copy(action) => vec![&action.from],
            Action::Workdir(_) => Vec::new(),
            Action::Run(action) => action
                .mounts
                .iter()
                .filter_map(|mount| match &mount.kind {
                    MountKind::Bind { from, .. } | MountKind::Cache { from: Some(from), .. } => Some(from),
                    _ => None,
                })
                .collect(),
        }
    })
}

/// Whether the layers of a stage are layers of the image: it is the target, or the target stands on it.
pub(super) fn in_image(plan: &Plan, id: StageId) -> bool {
    let below = |stage: &StageId| match &plan.stages[stage.0].base {
        Base::Stage(base) => Some(*base),
        _ => None,
    };
    std::iter::successors(Some(plan.target), below).any(|stage| stage == id)
}

/// How often a stage's result is used: as a base, by COPY and mounts, as the result.
fn users(plan: &Plan, id: StageId) -> usize {
    let bases = plan.stages.iter().filter(|stage| stage.base == Base::Stage(id)).count();
    let files = file_sources(plan).filter(|from| **from == FileSource::Stage(id)).count();
    bases + files + usize::from(plan.target == id)
}
