//! What is known of all steps before the first one: keys, records in other places, and which stages must be built.
//!
//! A step has up to two keys. The *forecast* key is known from the plan and the context alone: the key of the step below (at
//! first the base's layers), the step's definition, hashes of context files, and for a stage that files come from the key of
//! that stage's end. The *content* key has the files' own hash in place of that last one, so it is known only when that stage
//! is built; it finds the result where the stage was built again and gave the same files. Without such sources both are one.
//!
//! [`forecast`] asks for all steps of the target at once, then for those of stages that a step without a record reads
//! from; a stage that nobody reads from is not built at all. So a build that is wholly cached costs one request a step, and neither
//! base nor layer is fetched unless an output wants it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::copying::{self, Prepared};
use super::elsewhere::{Trail, detached};
use super::shared::Shared;
use super::{BuildError, running};
use crate::cache::Record;
use crate::oci::{ChainId, Sha256};
use crate::plan::key::{Components, StateKey};
use crate::plan::{Action, Base, FileSource, Stage, StageId, Step};

/// A step's place in a plan.
type Place = (StageId, usize);

/// What is known before the first step.
#[derive(Default)]
pub(super) struct Forecast {
    /// What steps read from contexts.
    pub(super) inputs: BTreeMap<Place, BTreeMap<String, Sha256>>,
    /// Keys; a step whose inputs cannot be read has none, and reports that itself.
    pub(super) keys: BTreeMap<Place, Sha256>,
    /// Records that were found, with the number of the shelf.
    pub(super) found: BTreeMap<Place, (Record, usize)>,
    /// Stages that must be built, if it is known.
    needed: Option<BTreeSet<StageId>>,
}

impl Forecast {
    pub(super) fn is_needed(&self, stage: StageId) -> bool {
        self.needed.as_ref().is_none_or(|needed| needed.contains(&stage))
    }
}

/// Finds out which steps have records, and which stages must be built.
pub(super) fn forecast(shared: &Shared<'_>) -> Forecast {
    let mut forecast = Forecast::default();
    if shared.request.cache.is_empty() {
        return forecast;
    }
    let mut ends: Vec<Option<StateKey>> = Vec::new();
    for stage in &shared.plan.stages {
        let end = keys(shared, stage, &ends, &mut forecast);
        ends.push(end);
    }
    if shared.elsewhere.readers == 0 {
        return forecast;
    }
    let mut visit = Visit { shared, forecast, trails: BTreeMap::new(), needed: BTreeSet::new() };
    visit.stage(shared.plan.target);
    let Visit { mut forecast, needed, .. } = visit;
    forecast.needed = Some(needed);
    forecast
}

/// Works out the keys of a stage's steps; returns the key of its end, if all could be.
fn keys(shared: &Shared<'_>, stage: &Stage, ends: &[Option<StateKey>], forecast: &mut Forecast) -> Option<StateKey> {
    let mut state = match &stage.base {
        Base::Stage(id) => ends.get(id.0).copied().flatten()?,
        _ => start(shared, stage).ok()?.content,
    };
    for (index, step) in stage.steps.iter().enumerate() {
        let place = (stage.id, index);
        let inputs = match inputs(shared, step, ends, place, forecast) {
            Ok(inputs) => inputs?,
            Err(error) => {
                tracing::debug!(step = step.title, %error, "no key yet");
                return None;
            }
        };
        let components = components(shared, stage, step, state, &inputs);
        let key = components.key();
        forecast.keys.insert(place, key);
        state = state.after_key(key);
    }
    Some(state)
}

pub(super) fn components(
    shared: &Shared<'_>,
    stage: &Stage,
    step: &Step,
    below: StateKey,
    inputs: &BTreeMap<String, Sha256>,
) -> Components {
    Components::new(step, &stage.platform, below, inputs)
        .clamped_to(shared.request.clamp_mtime(shared.plan))
        .ignoring(shared.request.ignored.patterns())
}

/// What a step reads, known without building any stage; `None` if a stage has no key.
fn inputs(
    shared: &Shared<'_>,
    step: &Step,
    ends: &[Option<StateKey>],
    place: Place,
    forecast: &mut Forecast,
) -> Result<Option<BTreeMap<String, Sha256>>, BuildError> {
    let of_tree = |from: &FileSource| -> Result<Option<Option<Sha256>>, BuildError> {
        Ok(match from {
            FileSource::Stage(id) => Some(ends.get(id.0).copied().flatten().map(|end| end.0)),
            FileSource::Image(request) => {
                let chain = ChainId::of(shared.image(request)?.layers.iter().map(|layer| layer.diff_id));
                Some(Some(copying::chain_hash(chain)))
            }
            FileSource::Context | FileSource::NamedContext(_) | FileSource::Scratch => None,
        })
    };
    match &step.action {
        Action::Workdir(_) => Ok(Some(BTreeMap::new())),
        Action::Copy(action) => match of_tree(&action.from)? {
            Some(tree) => Ok(tree.map(|tree| BTreeMap::from([("tree".to_owned(), tree)]))),
            None => {
                let items = Prepared::new(shared, action)?.inputs()?.items;
                forecast.inputs.insert(place, items.clone());
                Ok(Some(items))
            }
        },
        Action::Run(action) => {
            let mut items = BTreeMap::new();
            for mount in &action.mounts {
                let Some(from) = mount.file_source() else { continue };
                match of_tree(from)? {
                    Some(Some(tree)) => _ = items.insert(format!("tree at {}", mount.target), tree),
                    Some(None) => return Ok(None),
                    None => items.extend(running::mount_inputs(shared, mount)?.items),
                }
            }
            Ok(Some(items))
        }
    }
}

/// Where a stage begins, if not on another one.
pub(super) fn start(shared: &Shared<'_>, stage: &Stage) -> Result<Trail, BuildError> {
    let content = match &stage.base {
        Base::Scratch | Base::Stage(_) => StateKey::scratch(),
        Base::Image(request) => {
            StateKey::image(ChainId::of(shared.image(request)?.layers.iter().map(|layer| layer.diff_id)))
        }
        Base::Context(name) => {
            let action = copying::whole(FileSource::NamedContext(name.clone()), "/", "/");
            let items = Prepared::new(shared, &action)?.inputs()?.items;
            StateKey::files(Sha256::of(format!("{items:?}").as_bytes()))
        }
    };
    Ok(Trail::begin(content))
}

/// Goes from the target to what it needs.
struct Visit<'a, 'b> {
    shared: &'a Shared<'b>,
    forecast: Forecast,
    /// The trail at the end of a stage, if all its steps have records that fit.
    trails: BTreeMap<StageId, Option<Trail>>,
    needed: BTreeSet<StageId>,
}

impl Visit<'_, '_> {
    fn stage(&mut self, id: StageId) {
        if !self.needed.insert(id) {
            return;
        }
        let shared = self.shared;
        let stage = &shared.plan.stages[id.0];
        let mut trail = match &stage.base {
            Base::Stage(below) => {
                self.stage(*below);
                self.trails.get(below).copied().flatten()
            }
            _ => start(shared, stage).ok(),
        };
        self.look_up(stage);
        for (index, step) in stage.steps.iter().enumerate() {
            let record = self.forecast.found.get(&(id, index)).map(|(record, _)| record);
            let fits = |record: &&Record| match trail {
                Some(trail) => trail.fits(record, &step.action),
                None => detached(&step.action),
            };
            match record.filter(fits) {
                Some(record) => {
                    trail = trail.map(|at| at.after(record.content, &step.action, Some(&record.layer)));
                }
                None => {
                    trail = None;
                    for stage in step.action.file_sources().into_iter().filter_map(FileSource::stage) {
                        self.stage(stage);
                    }
                }
            }
        }
        self.trails.insert(id, trail);
    }

    /// Asks for all steps of a stage, several at once. The first goes alone: it finds out how the place is spoken to, or that it
    /// is not.
    fn look_up(&mut self, stage: &Stage) {
        let shared = self.shared;
        if shared.begins_anew(stage) {
            return;
        }
        let takes = |index: &usize| shared.elsewhere.takes(&stage.steps[*index].action);
        let wanted: Vec<(usize, Sha256)> = (0..stage.steps.len())
            .filter(takes)
            .filter_map(|index| Some((index, *self.forecast.keys.get(&(stage.id, index))?)))
            .collect();
        let Some((first, rest)) = wanted.split_first() else { return };
        let ask = |(index, key): &(usize, Sha256)| {
            let found = shared.elsewhere.find(*key, shared.step_id(stage.id, *index), &shared.cancel)?;
            Some((*index, found))
        };
        let mut found: Vec<_> = ask(first).into_iter().collect();
        let next = AtomicUsize::new(0);
        let workers = shared.request.limits.connections.get().min(rest.len());
        let more: Vec<_> = std::thread::scope(|scope| {
            let work = || {
                std::iter::from_fn(|| rest.get(next.fetch_add(1, Ordering::Relaxed)))
                    .filter_map(ask)
                    .collect::<Vec<_>>()
            };
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
                worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            workers.into_iter().flat_map(join).collect()
        });
        found.extend(more);
        self.forecast.found.extend(found.into_iter().map(|(index, found)| ((stage.id, index), found)));
    }
}
