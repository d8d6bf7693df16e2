//! One stage: its steps in order, each from the cache or done now.
//!
//! The next step does not wait for a large layer, which is packed while it runs. Where trees are stacked by overlayfs what the step before wrote
//! becomes a lower directory at once; in directory mode, in which a step changes the files of the one before it, they are kept as
//! they are where that costs little ([`crate::rootfs::TreeStep::detach`]). The diff_id that decides the next step's cache key is known only
//! when the layer is done, so its record is written then.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::thread::Scope;
use std::time::{Duration, Instant};

use super::background::Coming;
use super::elsewhere::Trail;
use super::known::runs;
use super::sealing::Phases;
use super::shared::{ForIndex, MadeLayer, Shared, StageResult, Tree, lock};
use super::step_key::{Inputs, StepKey};
use super::{BuildError, copying, known, running};
use crate::event::{Event, StepId};
use crate::layer::SealedLayer;
use crate::oci::{ChainId, Sha256};
use crate::plan::key::{Components, StateKey};
use crate::plan::{Action, Base, CopyAction, FileSource, Stage, StageId, Step};
use crate::rootfs::index::IndexTree;
use crate::rootfs::{Expected, LayerRef, Recall, TreeError, TreeMode, TreeStep, WorkTree};
use crate::snapshot::{self, Below, Changes};

/// A stage on its way.
pub(super) struct Progress<'scope, 'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) stage: &'a Stage,
    /// For layers that are made while later steps run.
    pub(super) scope: &'scope Scope<'scope, 'a>,
    /// Base layers, then one for each step done.
    layers: Vec<LayerRef>,
    /// Of `layers`.
    chain: Option<ChainId>,
    /// Layers above those that are still being made; every step after the first of them is one.
    pub(super) coming: Vec<Coming<'scope>>,
    /// What it stands on, if that is a stage whose directory others need, too.
    below: Option<Arc<StageResult>>,
    /// The directory behind `layers` and `coming`, once a step needed one; `None` after a cached step, which leaves it behind.
    pub(super) tree: Option<WorkTree>,
    /// What `layers` hold, as far as a step without a directory had to know it; of use while it has as many layers.
    index: Option<IndexTree>,
    made: BTreeMap<(StageId, usize), MadeLayer>,
    /// How it came to where it is.
    pub(super) trail: Trail,
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
        let mut on = None;
        let (layers, tree, made) = match &stage.base {
            Base::Scratch => (Vec::new(), None, BTreeMap::new()),
            Base::Image(request) => (shared.image(request)?.layers.clone(), None, BTreeMap::new()),
            Base::Stage(id) => {
                let below = shared.stage(*id)?;
                let tree = if shared.plan.users(*id) == 1 { below.tree.take() } else { None };
                let found = (below.tree.layers.clone(), tree, below.made.clone());
                on = Some(below);
                found
            }
            Base::Context(name) => (vec![copying::context_as_base(shared, stage, name)?], None, BTreeMap::new()),
        };
        Ok(Self {
            shared,
            stage,
            scope,
            chain: ChainId::of(layers.iter().map(|layer| layer.diff_id)),
            layers,
            coming: Vec::new(),
            below: on,
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

    pub(super) fn chain(&self) -> Option<ChainId> {
        self.chain
    }

    fn step(&mut self, index: usize, step: &'a Step) -> Result<(), BuildError> {
        let shared = self.shared;
        if !runs(&self.stage.steps[index..]) {
            // Those that had to be run came from a cache.
            lock(&shared.expected).remove(&self.stage.id);
        }
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
                shared.twins().done(self.stage.id, index);
                self.push(index, made);
                shared.observer.event(Event::StepFinished { step: id, cached, layer, elapsed });
                Ok(())
            }
            Err(error) => match error.unless(&shared.cancel) {
                BuildError::Cancelled => {
                    shared.observer.event(Event::StepCancelled { step: id });
                    Err(BuildError::Cancelled)
                }
                error => {
                    shared.observer.event(Event::StepFailed { step: id, elapsed: started.elapsed() });
                    Err(error.at(step, self.stage))
                }
            },
        }
    }

    pub(super) fn push(&mut self, index: usize, made: MadeLayer) {
        self.chain = Some(ChainId::extend(self.chain, made.sealed.diff_id));
        self.layers.push(made.layer());
        self.made.insert((self.stage.id, index), made);
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
        // What another stage has just done is found as what an earlier build did.
        let is_done = shared.twins().wait(self.stage.id, index);
        let begun = Instant::now();
        self.fetch_base_meanwhile(index, step);
        let copy = match &step.action {
            Action::Copy(action) => Some(copying::Prepared::new(shared, action)?),
            Action::Run(_) | Action::Workdir(_) => None,
        };
        let inputs = match (&step.action, &copy) {
            (Action::Run(action), _) => Some(running::inputs(shared, action)?),
            (Action::Copy(_), Some(prepared)) => match shared.known_inputs(self.stage, index) {
                Some(known) => Some(known),
                None => self.inputs_before(index, prepared, is_done)?,
            },
            _ => Some(Inputs { items: BTreeMap::new() }),
        };
        phases.done("inputs", begun);
        let detached = matches!(&step.action, Action::Copy(action) if crate::copy::links(action));
        let inputs = inputs.map_or_else(OnceLock::new, OnceLock::from);
        let key = StepKey { shared, stage: self.stage, step, index, inputs, outline: OnceLock::new() };
        // Behind a layer that is being made nothing is looked up: what stands on a large layer made just now was hardly ever
        // built before, and to find out would mean to wait for it. Unless layers made again are often the same.
        if !self.coming.is_empty() && self.may_be_known(&key) {
            self.settle()?;
            self.tree = None;
        }
        let components = match self.coming.is_empty() && key.inputs.get().is_some() {
            true => Some(key.components(self.chain())),
            false => None,
        };

        if let Some(found) = self.look_up(&key, components.as_ref(), id, is_done)? {
            return Ok(Some((found, true)));
        }

        shared.at_work[self.stage.id.0].store(true, Ordering::SeqCst);
        let _place = shared.places.enter();
        if shared.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let layer = match self.make_known(&key, copy.as_ref(), detached, id)? {
            Some(layer) => layer,
            None if detached => {
                let prepared = copy.as_ref().expect("only a copy is detached");
                let mut empty = shared.checkout(&[])?;
                let tree_step = empty.begin()?;
                prepared.apply(tree_step.rootfs())?;
                let mut below = Recall { layers: &[], source: shared.blobs, cancel: &shared.cancel };
                let changes = snapshot::changes(&tree_step, Some(&mut below))?;
                shared.seal(&changes, tree_step.rootfs(), step, id)?
            }
            None => return self.make_in_tree(key, copy.as_ref(), started, &phases),
        };
        if let Some(copy) = &copy {
            self.learn(&key, copy, id)?;
        }
        self.settle()?;
        self.tree = None;
        self.keep(&key, layer, &phases).map(Some)
    }

    /// What a COPY or ADD reads, unless it is certain that it was not done before: then it is read once, and known afterwards.
    fn inputs_before(
        &self,
        index: usize,
        copy: &copying::Prepared<'_>,
        is_done: bool,
    ) -> Result<Option<Inputs>, BuildError> {
        let is_asked_for = is_done || !self.shared.begins_anew(self.stage);
        if is_asked_for && let Some(known) = copy.known_inputs()? {
            return Ok(Some(known));
        }
        if !is_done && self.coming.is_empty() && self.shared.misses_surely((self.stage, index), self.chain(), copy)? {
            copy.hash_in_passing()?;
            return Ok(None);
        }
        copy.inputs().map(Some)
    }

    /// Whether a step behind a layer that is being made may turn out to be done: it was done here, nothing of its own has changed
    /// since, and times are clamped, so that the same files give the same layer.
    fn may_be_known(&self, key: &StepKey<'_>) -> bool {
        let shared = self.shared;
        shared.request.clamp_mtime(shared.plan).is_some()
            && !shared.begins_anew(self.stage)
            && shared
                .recall(self.stage, key.index)
                .is_some_and(|old| key.components_on(StateKey(Sha256::of(b"not known yet"))).differs_below_alone(&old))
    }

    /// Does the step in the directory behind the layers; `None` if its layer is being made meanwhile.
    fn make_in_tree(
        &mut self,
        key: StepKey<'a>,
        copy: Option<&copying::Prepared<'_>>,
        started: Instant,
        phases: &Phases<'_>,
    ) -> Result<Option<(MadeLayer, bool)>, BuildError> {
        let (shared, step, id) = (self.shared, key.step, phases.step);
        let begun = Instant::now();
        let mut tree = match self.tree.take() {
            Some(tree) => tree,
            None => {
                self.settle()?;
                self.directory()?
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
            Action::Copy(_) => {
                let copy = copy.expect("prepared above");
                copy.apply(tree_step.rootfs())?;
                self.learn(&key, copy, id)?;
            }
        }
        phases.done(if matches!(step.action, Action::Run(_)) { "run" } else { "copy" }, begun);
        let begun = Instant::now();
        let changes = self.changes(&tree_step)?;
        let tree_step = match self.detach(key.index, tree_step, &changes)? {
            Ok(detached) => {
                phases.done("changes", begun);
                self.tree = Some(tree);
                self.make_meanwhile(key, detached, changes, id, started);
                return Ok(None);
            }
            Err(tree_step) => tree_step,
        };
        phases.done("changes", begun);
        let layer = shared.seal(&changes, tree_step.rootfs(), step, id)?;
        tree_step.commit(layer.diff_id)?;
        self.tree = Some(tree);
        self.keep(&key, layer, phases).map(Some)
    }

    /// A directory with the layers of the stage up to here.
    fn directory(&mut self) -> Result<WorkTree, BuildError> {
        let shared = self.shared;
        let expected = lock(&shared.expected).remove(&self.stage.id).unwrap_or_else(Expected::nobody);
        if let Some(below) = self.below.take()
            && let Some(copied) = below.tree.copy(shared, &self.layers)?
        {
            return Ok(copied);
        }
        Ok(shared.trees.checkout_as(expected, &self.layers, shared.blobs, &shared.cancel)?)
    }

    /// Notes a layer that was made now.
    fn keep(
        &mut self,
        key: &StepKey<'_>,
        layer: SealedLayer,
        phases: &Phases<'_>,
    ) -> Result<(MadeLayer, bool), BuildError> {
        let begun = Instant::now();
        let (made, trail) = key.keep(self.chain(), self.trail, layer)?;
        self.trail = trail;
        phases.done("keep", begun);
        Ok((made, false))
    }

    /// The step's layer from an earlier build, here or elsewhere, or from another stage of this one (`is_done`); without one it is told
    /// why.
    fn look_up(
        &mut self,
        key: &StepKey<'_>,
        components: Option<&Components>,
        id: StepId,
        is_done: bool,
    ) -> Result<Option<MadeLayer>, BuildError> {
        let (shared, stage, step, index) = (self.shared, self.stage, key.step, key.index);
        let begins_anew = shared.begins_anew(stage);
        if begins_anew && !is_done {
            return Ok(None);
        }
        if key.inputs.get().is_none() {
            // What changed is told when it is known: [`Self::learn`].
            if shared.recall(stage, index).is_none() {
                shared.observer.event(Event::CacheMiss { step: id, reason: NEVER_DONE });
            }
            return Ok(None);
        }
        if let Some(components) = components
            && let Some(record) = shared.cache.step(components.key())
            && shared.blobs.released.knows(record.layer.blob.digest)
            && !shared.is_expired(record.created)
        {
            self.tree = None;
            self.trail = shared.offer(key, self.trail, &record);
            shared.remember(stage, index, components);
            return Ok(Some(MadeLayer::from_record(&record, &step.title)));
        }
        if begins_anew {
            return Ok(None);
        }
        if let Some(found) = shared.content_hit(key, self.trail) {
            self.settle()?;
            self.tree = None;
            return Ok(Some(found.take(shared, stage, index, &mut self.trail)));
        }
        self.tell_miss(key, components, id);
        Ok(None)
    }

    /// What a COPY or ADD has read, now that it did. If it was begun before that was known, its miss is told now.
    fn learn(&self, key: &StepKey<'_>, copy: &copying::Prepared<'_>, id: StepId) -> Result<(), BuildError> {
        let was_begun_without = key.learn(copy)?;
        let is_asked_for = !self.shared.begins_anew(self.stage);
        if was_begun_without && is_asked_for && self.shared.recall(self.stage, key.index).is_some() {
            self.tell_miss(key, Some(&key.components(self.chain())), id);
        }
        Ok(())
    }

    /// Why a step is not in the cache.
    fn tell_miss(&self, key: &StepKey<'_>, components: Option<&Components>, id: StepId) {
        let reason = match (self.shared.recall(self.stage, key.index), components) {
            (None, _) => NEVER_DONE.to_owned(),
            (Some(old), Some(now)) if old.key() == now.key() => "its result was pruned".to_owned(),
            (Some(old), Some(now)) => now.difference(&old),
            (Some(old), None) => key.components_on(StateKey(Sha256::of(b"not known yet"))).difference(&old),
        };
        self.shared.observer.event(Event::CacheMiss { step: id, reason: &reason });
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
        let source = ForIndex(shared.blobs);
        let known = match self.index.take() {
            Some(tree) => {
                shared.trees.index_on(tree.clone(), &self.layers[tree.layers()..], &source, &shared.cancel)?
            }
            None => shared.known.tree(shared, &self.layers, &source)?,
        };
        let most = shared.trees.known_bounds().entries;
        let Some(before) = known.filter(|tree| tree.entries() <= most) else { return Ok(None) };
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
        let runs = runs(&stage.steps[index..]);
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

    /// What a step changed in the tree of the stage.
    fn changes(&mut self, step: &TreeStep<'_>) -> Result<Changes, BuildError> {
        let mut below = LayersBelow { progress: self, failed: None };
        let changes = snapshot::changes(step, Some(&mut below));
        match below.failed {
            Some(error) => Err(error),
            None => Ok(changes?),
        }
    }
}

/// The layers of a stage, all of which are there when somebody asks for them.
struct LayersBelow<'p, 'scope, 'a> {
    progress: &'p mut Progress<'scope, 'a>,
    failed: Option<BuildError>,
}

impl Below for LayersBelow<'_, '_, '_> {
    fn recall(&mut self) -> Result<Recall<'_>, TreeError> {
        let shared = self.progress.shared;
        if let Err(error) = self.progress.settle() {
            self.failed = Some(error);
            return Err(TreeError::Cancelled);
        }
        Ok(Recall { layers: &self.progress.layers, source: shared.blobs, cancel: &shared.cancel })
    }
}

/// Why a step is done, where nothing is known of an earlier time.
const NEVER_DONE: &str = "not built here before";

/// How often it is looked whether another stage is at work.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
