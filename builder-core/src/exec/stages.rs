//! All stages of a plan, side by side.
//!
//! A thread takes the first stage that none has taken. Stages use only such as stand before them, so the first one that is not
//! done never waits for one that no thread has: any number of threads gets to the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::BuildError;
use super::forecast::forecast;
use super::known::runs;
use super::shared::{Shared, StageResult, lock};
use super::stage::build;
use super::twins::Twins;
use crate::event::Event;
use crate::plan::{Base, ImageRequest, Plan, Stage};
use crate::rootfs::Expected;

/// Stages that are under way at most, waiting ones included. A thread takes about 70 KiB, and one of the pids that a pod has; how
/// many steps work at once is decided elsewhere.
const AT_ONCE: usize = 64;

/// Runs all stages of the plan and gives the target's result.
pub(super) fn build_all(shared: &Shared<'_>) -> Result<Arc<StageResult>, BuildError> {
    let forecast = shared.forecast.get_or_init(|| forecast(shared));
    let (needed, others): (Vec<&Stage>, Vec<&Stage>) =
        shared.plan.stages.iter().partition(|stage| forecast.is_needed(stage.id));
    for stage in others {
        for (index, step) in stage.steps.iter().enumerate() {
            let (step, title) = (shared.step_id(stage.id, index), &step.title);
            shared.observer.event(Event::StepStarted { step, title });
            shared.observer.event(Event::StepFinished { step, cached: true, layer: None, elapsed: Duration::ZERO });
        }
    }
    shared.twins.get_or_init(|| Twins::among(&needed, |stage| shared.begins_anew(stage)));
    let expected = needed.iter().filter_map(|stage| Some((stage.id, expect(shared, stage)?)));
    *lock(&shared.expected) = expected.collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failures = Vec::new();
        while let Some(stage) = needed.get(next.fetch_add(1, Ordering::Relaxed)) {
            let _awaited = Awaited { shared, stage };
            let done = build(shared, stage).map(Arc::new).map_err(|error| {
                shared.cancel.cancel();
                failures.push((stage.id.0, error));
            });
            lock(&shared.expected).remove(&stage.id);
            shared.twins().ended(stage.id);
            shared.stages[stage.id.0].fill(done.ok());
        }
        failures
    };
    let mut failures = std::thread::scope(|scope| {
        let workers: Vec<_> = needed.iter().take(AT_ONCE).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect::<Vec<_>>()
    });
    failures.sort_by_key(|(stage, _)| *stage);
    // The first error that is not the consequence of another one is the build's.
    let mut cancelled = None;
    for (_, error) in failures {
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

/// A stage that others wait for. They do so no longer when its thread panics: the panic is told when all threads have ended.
struct Awaited<'a> {
    shared: &'a Shared<'a>,
    stage: &'a Stage,
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.cancel.cancel();
            lock(&self.shared.expected).remove(&self.stage.id);
            self.shared.twins().ended(self.stage.id);
            self.shared.stages[self.stage.id.0].fill(None);
        }
    }
}

/// Says that a stage will need the directory of its base, if a command runs in it.
fn expect(shared: &Shared<'_>, stage: &Stage) -> Option<Expected> {
    let image = base_of_commands(shared.plan, stage)?;
    let layers = &shared.images.get(image)?.layers;
    Some(shared.trees.expect(layers))
}

/// The image in whose tree the commands of a stage run; `None` if there are none, or they run in that of another stage.
fn base_of_commands<'p>(plan: &'p Plan, stage: &'p Stage) -> Option<&'p ImageRequest> {
    let mut below = Some(stage).filter(|stage| runs(&stage.steps))?;
    loop {
        match &below.base {
            Base::Image(image) => return Some(image),
            Base::Stage(id) => below = Some(&plan.stages[id.0]).filter(|stage| !runs(&stage.steps))?,
            Base::Scratch | Base::Context(_) => return None,
        }
    }
}
