//! All stages of a plan, each in a thread of its own.

use std::sync::Arc;
use std::time::Duration;

use super::BuildError;
use super::forecast::forecast;
use super::shared::{Shared, StageResult};
use super::stage::build;
use crate::event::Event;

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
