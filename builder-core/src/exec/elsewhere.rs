//! Results of steps in other places: using what was found, and putting there what was made.
//!
//! Two machines that do the same RUN make different layers, and a layer on top belongs to one of them. Therefore each record
//! says what lay below it ([`Trail`]: content keys, and the diff_ids of RUNs), and one that does not fit is a miss.
//! Layers of COPY and ADD are not part of that: their files are in the keys, and times of files, which differ between clones of
//! a repository, are not what a RUN is done again for.
//!
//! A record leaves as soon as its layer is made. Where the image goes to the same registry, the layer is sent there once and
//! mounted into the other repository. A place that fails is told once and left alone.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::BuildError;
use super::cache::StepRecord;
use super::forecast::{Forecast, components, start};
use super::request::BuildRequest;
use super::shared::{BlobAccess, MadeLayer, Shared, lock};
use super::step_key::{Inputs, StepKey};
use super::uploads::Uploads;
use crate::cache::{CacheError, CacheOptions, Record, Shelf};
use crate::cancel::Cancel;
use crate::event::{Event, Observer, StepId};
use crate::hint::Hint as _;
use crate::layer::SealedLayer;
use crate::oci::Sha256;
use crate::plan::key::StateKey;
use crate::plan::{Action, Base, Stage, StageId, Step};
use crate::registry::Registry;
use crate::source::Origin;

/// Uploads of records at one time. Each waits for its layer, which the image's own push would send too.
const UPLOADS: usize = 2;

/// How a stage came to where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Trail {
    /// By the content of everything that was read.
    pub(super) content: StateKey,
    /// The same, and by what RUNs made of it; `None` while the layer of one is still being made.
    below: Option<Sha256>,
}

impl Trail {
    pub(super) fn begin(content: StateKey) -> Self {
        Self { content, below: Some(content.0) }
    }

    /// After a step with this content key. `made` is its layer, if that is known.
    pub(super) fn after(self, key: Sha256, action: &Action, made: Option<&SealedLayer>) -> Self {
        let result = match (action, made) {
            (Action::Run(_), Some(made)) => Some(made.diff_id.to_string()),
            (Action::Run(_), None) => None,
            _ => Some(String::new()),
        };
        let below = self
            .below
            .zip(result)
            .map(|(below, result)| Sha256::of(format!("{}\0{}\0{result}", below.to_hex(), key.to_hex()).as_bytes()));
        Self { content: self.content.after_key(key), below }
    }

    /// Whether a record of this step was made on the same.
    pub(super) fn fits(&self, record: &Record, action: &Action) -> bool {
        detached(action) || self.below == Some(record.below)
    }
}

/// All places of a build.
pub(super) struct Elsewhere<'a> {
    options: &'a CacheOptions,
    shelves: Vec<(Shelf, AtomicBool)>,
    /// Number of the shelf, whether all steps go there, whether it must succeed.
    to: Vec<(usize, bool, bool)>,
    /// How many of `shelves` are asked.
    pub(super) readers: usize,
    observer: Arc<dyn Observer>,
    now: fn() -> std::time::SystemTime,
    queue: Mutex<Queue>,
    changed: Condvar,
    /// Results that go to places of `mode=min` if they turn out to be part of the image.
    held: Mutex<BTreeMap<StepId, Job>>,
    /// The first failure of a place that must succeed.
    failed: Mutex<Option<CacheError>>,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<(usize, Job)>,
    closed: bool,
}

/// A record to put.
#[derive(Debug, Clone)]
struct Job {
    step: StepId,
    record: Record,
    keys: Vec<Sha256>,
    /// The shelf that has it already.
    at: Option<usize>,
    /// Whether its layer is one of the image, in the image's form.
    in_image: bool,
}

impl<'a> Elsewhere<'a> {
    pub(super) fn new(request: &'a BuildRequest, registry: &Registry, observer: Arc<dyn Observer>) -> Self {
        let options = &request.cache;
        let mut places: Vec<_> = options.from.clone();
        let readers = places.len();
        let mut to = Vec::new();
        for target in &options.to {
            let number = places.iter().position(|place| *place == target.place).unwrap_or_else(|| {
                places.push(target.place.clone());
                places.len() - 1
            });
            to.push((number, target.all_steps, target.required));
        }
        let shelf = |place| (Shelf::new(place, registry.clone()), AtomicBool::new(false));
        Self {
            options,
            shelves: places.into_iter().map(shelf).collect(),
            to,
            readers,
            observer,
            now: request.now,
            queue: Mutex::default(),
            changed: Condvar::new(),
            held: Mutex::default(),
            failed: Mutex::default(),
        }
    }

    /// Whether steps of this kind are kept elsewhere.
    pub(super) fn takes(&self, action: &Action) -> bool {
        match action {
            Action::Copy(_) => self.options.copy_layers,
            Action::Run(_) | Action::Workdir(_) => self.options.run_layers,
        }
    }

    /// The first fresh record under `key`, and the number of its shelf.
    pub(super) fn find(&self, key: Sha256, step: StepId, cancel: &Cancel) -> Option<(Record, usize)> {
        for (number, (shelf, broken)) in self.shelves.iter().enumerate().take(self.readers) {
            if broken.load(Ordering::Relaxed) || cancel.is_cancelled() {
                continue;
            }
            let place = shelf.place().to_string();
            self.observer.event(Event::CacheAsked { step, place: &place, key });
            match shelf.find(key, cancel) {
                Ok(Some(record)) if self.options.is_expired(record.created, (self.now)()) => {
                    tracing::debug!(%place, key = key.to_hex(), "a record is older than it may be");
                }
                Ok(Some(record)) => return Some((record, number)),
                Ok(None) => {}
                Err(error) => self.report(number, error, "is not asked any more"),
            }
        }
        None
    }

    /// A failure of a place is told once, and the place left alone from then on.
    fn report(&self, shelf: usize, error: CacheError, consequence: &str) {
        let (_, broken) = &self.shelves[shelf];
        if error.is_cancelled() || broken.swap(true, Ordering::Relaxed) {
            return;
        }
        let causes = std::iter::successors(Some(&error.source as &dyn std::error::Error), |error| error.source());
        let reason: Vec<String> = causes.map(ToString::to_string).collect();
        let hint = error.hint().map_or_else(String::new, |hint| format!(" ({hint})"));
        let message = format!("{error} {consequence}: {}{hint}", reason.join(": "));
        self.observer.event(Event::Notice { message: &message });
    }

    /// Notes the result of a step.
    fn offer(&self, job: Job) {
        for (shelf, all_steps, _) in &self.to {
            if *all_steps && job.at != Some(*shelf) {
                lock(&self.queue).jobs.push_back((*shelf, job.clone()));
                self.changed.notify_one();
            }
        }
        if self.to.iter().any(|(_, all_steps, _)| !all_steps) {
            lock(&self.held).insert(job.step, job);
        }
    }

    /// Says which steps' layers the image has.
    pub(super) fn is_result(&self, steps: impl Iterator<Item = StepId>) {
        let mut held = lock(&self.held);
        for job in steps.filter_map(|step| held.remove(&step)) {
            for (shelf, ..) in self.to.iter().filter(|(_, all_steps, _)| !all_steps) {
                if job.at != Some(*shelf) {
                    lock(&self.queue).jobs.push_back((*shelf, job.clone()));
                    self.changed.notify_one();
                }
            }
        }
    }

    /// Does `build` while records are put where they belong; returns when that is done, too.
    pub(super) fn with_uploads<T>(
        &self,
        blobs: &BlobAccess<'_>,
        uploads: &Uploads<'_>,
        cancel: &Cancel,
        build: impl FnOnce() -> T,
    ) -> T {
        if self.to.is_empty() {
            return build();
        }
        std::thread::scope(|scope| {
            for _ in 0..UPLOADS {
                scope.spawn(|| self.upload_all(blobs, uploads, cancel));
            }
            // A panic must not leave the workers waiting.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(build));
            lock(&self.queue).closed = true;
            self.changed.notify_all();
            result
        })
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// The failure of a place that must not fail.
    pub(super) fn failure(&self) -> Option<CacheError> {
        lock(&self.failed).take()
    }

    fn upload_all(&self, blobs: &BlobAccess<'_>, uploads: &Uploads<'_>, cancel: &Cancel) {
        loop {
            let mut queue = lock(&self.queue);
            let (shelf, job) = loop {
                if let Some(next) = queue.jobs.pop_front() {
                    break next;
                }
                if queue.closed {
                    return;
                }
                queue = self.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            };
            drop(queue);
            if job.in_image {
                // One upload of the layer is enough where image and record go to one registry: the other is a mount.
                for place in uploads.bring(&job.record.layer.blob, self.shelves[shelf].0.registry(), cancel) {
                    blobs.is_also_at(job.record.layer.blob.digest, Origin::Registry(vec![place]));
                }
            }
            self.upload(shelf, &job, blobs, cancel);
        }
    }

    fn upload(&self, number: usize, job: &Job, blobs: &BlobAccess<'_>, cancel: &Cancel) {
        let (shelf, broken) = &self.shelves[number];
        if broken.load(Ordering::Relaxed) || cancel.is_cancelled() {
            return;
        }
        let place = shelf.place().to_string();
        self.observer.event(Event::CachePut { step: job.step, place: &place, key: job.keys[0] });
        let quiet = Quiet(&*self.observer);
        match shelf.put(&job.record, &job.keys, blobs, &quiet, cancel) {
            Ok(()) => blobs.is_also_at(job.record.layer.blob.digest, shelf.origin()),
            Err(error) => {
                let required = self.to.iter().any(|(shelf, _, required)| *shelf == number && *required);
                if required && !error.is_cancelled() {
                    broken.store(true, Ordering::Relaxed);
                    lock(&self.failed).get_or_insert(error);
                } else {
                    self.report(number, error, "gets no records");
                }
            }
        }
    }
}

/// Passes on what moves, not that a record is complete: that is nothing that was asked for.
struct Quiet<'a>(&'a dyn Observer);

impl Observer for Quiet<'_> {
    fn event(&self, event: Event<'_>) {
        if !matches!(event, Event::Exported { .. }) {
            self.0.event(event);
        }
    }
}

/// Whether the step's layer depends on nothing below it.
pub(super) fn detached(action: &Action) -> bool {
    matches!(action, Action::Copy(action) if crate::copy::links(action))
}

/// A record that fits.
pub(super) struct Found {
    record: Record,
    keys: Vec<Sha256>,
    shelf: usize,
    /// Whether that shelf has it under all keys.
    complete: bool,
}

/// The part of a stage's progress that concerns other places.
impl Shared<'_> {
    /// Where a stage begins. Without other places, nobody looks at it.
    pub(super) fn trail(&self, stage: &Stage) -> Result<Trail, BuildError> {
        if self.request.cache.is_empty() {
            return Ok(Trail::begin(StateKey::scratch()));
        }
        match &stage.base {
            Base::Stage(id) => Ok(self.stage(*id)?.trail),
            _ => start(self, stage),
        }
    }

    /// The record that the forecast found for a step, if it fits what lies below.
    pub(super) fn forecast_hit(&self, stage: &Stage, index: usize, trail: Trail) -> Option<Found> {
        let (record, shelf) = self.forecast().found.get(&(stage.id, index))?;
        let step = &stage.steps[index];
        if !trail.fits(record, &step.action) {
            tracing::debug!(step = step.title, "the record belongs to another result of a step below");
            return None;
        }
        let key = *self.forecast().keys.get(&(stage.id, index))?;
        let keys = distinct(&[key, record.content]);
        Some(Found { record: record.clone(), keys, shelf: *shelf, complete: true })
    }

    /// The record for what a step really reads, if the forecast asked for something else.
    pub(super) fn content_hit(&self, key: &StepKey<'_>, trail: Trail) -> Option<Found> {
        let (stage, index, step) = (key.stage, key.index, key.step);
        let may_fit = trail.below.is_some() || detached(&step.action);
        if self.request.cache.is_empty() || !self.elsewhere.takes(&step.action) || !may_fit {
            return None;
        }
        let content = self.content_key(key, trail);
        let forecast = self.forecast().keys.get(&(stage.id, index)).copied();
        if forecast == Some(content) {
            return None;
        }
        let (record, shelf) = self.elsewhere.find(content, self.step_id(stage.id, index), &self.cancel)?;
        let keys: Vec<Sha256> = forecast.into_iter().chain([content]).collect();
        trail.fits(&record, &step.action).then(|| Found { record, keys: distinct(&keys), shelf, complete: false })
    }

    fn content_key(&self, key: &StepKey<'_>, trail: Trail) -> Sha256 {
        components(self, key.stage, key.step, trail.content, &key.inputs().items).key()
    }

    /// Notes the result of a step that was done here, now or earlier, on what `trail` says. Returns how it goes on.
    pub(super) fn offer(&self, key: &StepKey<'_>, trail: Trail, made: &StepRecord) -> Trail {
        if self.request.cache.is_empty() {
            return trail;
        }
        let content = self.content_key(key, trail);
        let (place, action) = ((key.stage.id, key.index), &key.step.action);
        if let (true, Some(below)) = (self.elsewhere.takes(action), trail.below) {
            let record = Record {
                content,
                below,
                layer: made.layer.clone(),
                created: made.created,
                platform: key.stage.platform.clone(),
            };
            let keys: Vec<Sha256> = self.forecast().keys.get(&place).copied().into_iter().chain([content]).collect();
            let in_image = self.leaves_at_once(key.stage, &made.layer.blob);
            let step = self.step_id(key.stage.id, key.index);
            self.elsewhere.offer(Job { step, record, keys: distinct(&keys), at: None, in_image });
        }
        trail.after(content, action, Some(&made.layer))
    }

    /// The layer under a key that says by itself what the layer holds, and the number of its shelf.
    pub(super) fn record_elsewhere(&self, key: Sha256, step: StepId) -> Option<(SealedLayer, usize)> {
        let (record, shelf) = self.elsewhere.find(key, step, &self.cancel)?;
        self.blobs.is_also_at(record.layer.blob.digest, self.elsewhere.shelves[shelf].0.origin());
        Some((record.layer, shelf))
    }

    /// Notes the layer under such a key, unless it has `parts` that are not kept elsewhere. `at` has it already.
    pub(super) fn offer_record<'p>(
        &self,
        (key, step): (Sha256, StepId),
        made: &StepRecord,
        mut parts: impl Iterator<Item = &'p (StageId, usize)>,
        at: Option<usize>,
    ) {
        if parts.all(|(stage, index)| self.elsewhere.takes(&self.plan.stages[stage.0].steps[*index].action)) {
            let platform = self.plan.stages[self.plan.target.0].platform.clone();
            let record =
                Record { content: key, below: key, layer: made.layer.clone(), created: made.created, platform };
            let in_image = !crate::output::needs_recompression(&record.layer.blob, self.request.layer_compression());
            self.elsewhere.offer(Job { step, record, keys: vec![key], at, in_image });
        }
    }

    /// How it goes on while the step's layer is still being made.
    pub(super) fn trail_meanwhile(&self, key: &StepKey<'_>, trail: Trail) -> Trail {
        if self.request.cache.is_empty() {
            return trail;
        }
        trail.after(self.content_key(key, trail), &key.step.action, None)
    }

    /// What a step reads from a context, if that was found out.
    pub(super) fn known_inputs(&self, stage: &Stage, index: usize) -> Option<Inputs> {
        self.forecast().inputs.get(&(stage.id, index)).map(|items| Inputs { items: items.clone() })
    }

    /// Whether a result is older than results may be.
    pub(super) fn is_expired(&self, created: (i64, u32)) -> bool {
        self.request.cache.is_expired(created, (self.request.now)())
    }

    /// Number of a step in the whole build.
    pub(super) fn step_id(&self, stage: StageId, index: usize) -> StepId {
        StepId(self.first_step[stage.0] + index)
    }

    fn forecast(&self) -> &Forecast {
        self.forecast.get().expect("it is made before the first stage begins")
    }
}

impl Found {
    /// Uses the record, and passes it on to places that lack it.
    pub(super) fn take(self, shared: &Shared<'_>, stage: &Stage, index: usize, trail: &mut Trail) -> MadeLayer {
        let Self { record, keys, shelf, complete } = self;
        let step = shared.step_id(stage.id, index);
        let Step { title, action, .. } = &stage.steps[index];
        let (at, _) = &shared.elsewhere.shelves[shelf];
        shared.observer.event(Event::CacheFound { step, place: &at.place().to_string() });
        shared.blobs.is_also_at(record.layer.blob.digest, at.origin());
        *trail = trail.after(record.content, action, Some(&record.layer));
        let made = MadeLayer { sealed: record.layer.clone(), created: record.created, title: title.clone() };
        let in_image = shared.leaves_at_once(stage, &record.layer.blob);
        shared.elsewhere.offer(Job { step, record, keys, at: complete.then_some(shelf), in_image });
        made
    }
}

fn distinct(keys: &[Sha256]) -> Vec<Sha256> {
    let mut distinct: Vec<Sha256> = Vec::new();
    for key in keys {
        if !distinct.contains(key) {
            distinct.push(*key);
        }
    }
    distinct
}
