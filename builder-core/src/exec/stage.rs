//! One stage: its steps in order, each from the cache or done now.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use super::cache::StepRecord;
use super::shared::{MadeLayer, Shared, StageResult, Tree};
use super::{BuildError, copying, running};
use crate::event::{Event, StepId};
use crate::layer::{self, LayerOptions, SealedLayer};
use crate::oci::{ChainId, Sha256};
use crate::plan::key::{Components, StateKey};
use crate::plan::{Action, Base, FileSource, MountKind, Plan, Stage, StageId, Step};
use crate::rootfs::{LayerRef, Recall, TreeStep, WorkTree};
use crate::snapshot;

/// A stage on its way.
pub(super) struct Progress<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) stage: &'a Stage,
    /// Base layers, then one for each step done.
    layers: Vec<LayerRef>,
    /// The directory behind `layers`, once a step needed one; `None` after a cached step, which leaves it behind.
    tree: Option<WorkTree>,
    made: BTreeMap<(StageId, usize), MadeLayer>,
}

/// What a step is made from: everything that its cache key covers.
pub(super) struct Inputs {
    /// Hash over each thing that it reads beside the tree below it, by a name for people.
    pub(super) items: BTreeMap<String, Sha256>,
}

/// Builds `stage` to its end.
pub(super) fn build(shared: &Shared<'_>, stage: &Stage) -> Result<StageResult, BuildError> {
    let mut progress = Progress::begin(shared, stage)?;
    for (index, step) in stage.steps.iter().enumerate() {
        progress.step(index, step)?;
    }
    Ok(StageResult { tree: Tree::new(progress.layers, progress.tree), made: progress.made })
}

impl<'a> Progress<'a> {
    fn begin(shared: &'a Shared<'a>, stage: &'a Stage) -> Result<Self, BuildError> {
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
        Ok(Self { shared, stage, layers, tree, made })
    }

    /// Number of the step in the whole build.
    fn id(&self, index: usize) -> StepId {
        StepId(self.shared.first_step[self.stage.id.0] + index)
    }

    fn chain(&self) -> Option<ChainId> {
        ChainId::of(self.layers.iter().map(|layer| layer.diff_id))
    }

    fn step(&mut self, index: usize, step: &Step) -> Result<(), BuildError> {
        let shared = self.shared;
        let id = self.id(index);
        if shared.cancel.is_cancelled() {
            shared.observer.event(Event::StepCancelled { step: id });
            return Err(BuildError::Cancelled);
        }
        let started = Instant::now();
        shared.observer.event(Event::StepStarted { step: id, title: &step.title });
        let outcome = self.find_or_make(index, step, id);
        let elapsed = started.elapsed();
        match outcome {
            Ok((made, cached)) => {
                let layer = made.sealed.diff_id;
                self.layers.push(made.layer());
                self.made.insert((self.stage.id, index), made);
                shared.observer.event(Event::StepFinished { step: id, cached, layer: Some(layer), elapsed });
                Ok(())
            }
            Err(BuildError::Cancelled) => {
                shared.observer.event(Event::StepCancelled { step: id });
                Err(BuildError::Cancelled)
            }
            Err(error) => {
                shared.observer.event(Event::StepFailed { step: id, elapsed });
                Err(error.at(step, self.stage))
            }
        }
    }

    /// The step's layer and whether it came from the cache.
    fn find_or_make(&mut self, index: usize, step: &Step, id: StepId) -> Result<(MadeLayer, bool), BuildError> {
        let shared = self.shared;
        let copy = match &step.action {
            Action::Copy(action) => Some(copying::Prepared::new(shared, action)?),
            Action::Run(_) | Action::Workdir(_) => None,
        };
        let inputs = match (&step.action, &copy) {
            (Action::Run(action), _) => running::inputs(shared, action)?,
            (Action::Copy(_), Some(prepared)) => prepared.inputs()?,
            _ => Inputs { items: BTreeMap::new() },
        };
        let detached = matches!(&step.action, Action::Copy(action) if crate::copy::links(action));
        let below = StateKey::image(self.chain());
        let base = if index == 0 { self.stage.pinned.clone() } else { None };
        let components = Components::new(step, &self.stage.platform, below, &inputs.items)
            .on_base(base)
            .clamped_to(shared.request.clamp_mtime(shared.plan));
        let key = components.key();

        if !shared.request.no_cache.applies_to(&self.stage.name) {
            if let Some(record) = shared.cache.step(key)
                && shared.store.size(record.layer.blob.digest).is_some()
            {
                self.tree = None;
                shared.remember(self.stage, index, &components);
                return Ok((MadeLayer::from_record(&record, &step.title), true));
            }
            let reason = match shared.recall(self.stage, index) {
                None => "not built here before".to_owned(),
                Some(old) if old.key() == key => "its result was pruned".to_owned(),
                Some(old) => components.difference(&old),
            };
            shared.observer.event(Event::CacheMiss { step: id, reason: &reason });
        }

        let _place = shared.places.enter();
        if shared.cancel.is_cancelled() {
            return Err(BuildError::Cancelled);
        }
        let layer = if detached {
            let prepared = copy.as_ref().expect("only a copy is detached");
            let mut empty = shared.checkout(&[])?;
            let tree_step = empty.begin()?;
            prepared.apply(tree_step.rootfs())?;
            let layer = self.seal(&tree_step, &[], &step.title)?;
            self.tree = None;
            layer
        } else {
            let mut tree = match self.tree.take() {
                Some(tree) => tree,
                None => shared.checkout(&self.layers)?,
            };
            let tree_step = tree.begin()?;
            match &step.action {
                Action::Run(action) => running::run(shared, self.stage, action, tree_step.rootfs(), id)?,
                Action::Workdir(action) => crate::copy::workdir(action, tree_step.rootfs())?,
                Action::Copy(_) => copy.as_ref().expect("prepared above").apply(tree_step.rootfs())?,
            }
            let layer = self.seal(&tree_step, &self.layers, &step.title)?;
            tree_step.commit(layer.diff_id)?;
            self.tree = Some(tree);
            layer
        };
        let record = StepRecord { layer, created: shared.timestamp() };
        shared.cache.put_step(key, &record).map_err(|source| BuildError::Cache { source })?;
        shared.remember(self.stage, index, &components);
        Ok((MadeLayer::from_record(&record, &step.title), false))
    }

    /// Writes what the step changed in a tree of the layers `below` as a layer.
    fn seal(&self, step: &TreeStep<'_>, below: &[LayerRef], title: &str) -> Result<SealedLayer, BuildError> {
        let shared = self.shared;
        let below = Recall { layers: below, source: shared.blobs, cancel: &shared.cancel };
        let changes = snapshot::changes(step, Some(below))?;
        let options = LayerOptions {
            compression: shared.request.layer_compression(),
            docker_media_types: shared.request.docker_media_types(),
            clamp_mtime: shared.request.clamp_mtime(shared.plan),
        };
        let progress = |done| {
            shared.observer.event(Event::Progress {
                transfer: crate::event::Transfer::Compress,
                id: title,
                done,
                total: None,
            });
        };
        Ok(layer::write(
            &changes,
            step.rootfs(),
            shared.store,
            &options,
            &shared.request.limits,
            &shared.cancel,
            &progress,
        )?)
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
    let failures = std::thread::scope(|scope| {
        let workers: Vec<_> = shared
            .plan
            .stages
            .iter()
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

/// How often a stage's result is used: as a base, by COPY and mounts, as the result.
fn users(plan: &Plan, id: StageId) -> usize {
    let bases = plan.stages.iter().filter(|stage| stage.base == Base::Stage(id)).count();
    let files = file_sources(plan).filter(|from| **from == FileSource::Stage(id)).count();
    bases + files + usize::from(plan.target == id)
}
