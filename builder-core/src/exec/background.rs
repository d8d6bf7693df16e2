//! Layers that are made while later steps of their stage run.
//!
//! Each has a thread of its own, which waits for the layer below before it gives the directory its name and writes its
//! record, so that both name the whole stack. What a step wrote stays as it was for it ([`TreeStep::detach`]).

use std::io;
use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use super::BuildError;
use super::elsewhere::Trail;
use super::known::runs;
use super::shared::{MadeLayer, Promise, Slot};
use super::stage::Progress;
use super::step_key::StepKey;
use crate::event::{Event, StepId};
use crate::oci::ChainId;
use crate::rootfs::{DetachedStep, Held, Holding, TreeStep};
use crate::snapshot::{Change, Changes, SnapshotError};

impl<'a> Progress<'_, 'a> {
    /// Waits for all layers that are being made.
    pub(super) fn settle(&mut self) -> Result<(), BuildError> {
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

    /// Lets the next step begin before the layer of this one is made, if that is large enough and can be done; also small ones behind
    /// a layer that is being made. Where it cannot, nothing is being made any more.
    pub(super) fn detach<'t>(
        &mut self,
        index: usize,
        step: TreeStep<'t>,
        changes: &Changes,
    ) -> Result<Result<DetachedStep, TreeStep<'t>>, BuildError> {
        let later = &self.stage.steps[index + 1..];
        let is_behind = !self.coming.is_empty();
        if !is_behind && (later.is_empty() || changes.content_bytes() < BACKGROUND_FROM_BYTES) {
            return Ok(Err(step));
        }
        let mut holding = Holding::default();
        for entry in entries(changes) {
            let entry = entry.map_err(SnapshotError::Keep)?;
            holding.count(&entry.metadata, entry.link_to.as_deref());
        }
        if step.can_detach(holding, is_behind || runs(later)) {
            return Ok(Ok(step.detach(entries(changes), &self.shared.cancel)?));
        }
        self.settle()?;
        Ok(Err(step))
    }

    /// Makes the layer of a step in a thread of its own, and everything that follows from it.
    pub(super) fn make_meanwhile(
        &mut self,
        key: StepKey<'a>,
        detached: DetachedStep,
        changes: Changes,
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
            let made: Result<_, BuildError> = (|| {
                let layer = shared.seal(&changes, detached.rootfs(), step, id)?;
                drop(changes);
                let unnamed = detached.packed();
                // What it waits for from here on is not its own work.
                elapsed = started.elapsed();
                let (below, trail) = below.wait()?;
                let chain = ChainId::extend(below, layer.diff_id);
                unnamed.name(chain)?;
                let (made, trail) = key.keep(below, trail, layer)?;
                Ok((chain, made, trail))
            })();
            match made {
                Ok((chain, made, trail)) => {
                    shared.sealed(stage, &made);
                    shared.twins().done(stage.id, index);
                    let layer = Some(made.sealed.diff_id);
                    shared.observer.event(Event::StepFinished { step: id, cached: false, layer, elapsed });
                    promise.keep((chain, made, trail));
                    Ok(())
                }
                Err(error) => {
                    let error = error.unless(&shared.cancel);
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

/// What a layer has of a tree.
fn entries(changes: &Changes) -> impl Iterator<Item = io::Result<Held>> {
    changes.iter().filter_map(|change| match change {
        Ok(Change::Entry { path, metadata, link_to }) => Some(Ok(Held { path, metadata, link_to })),
        Ok(Change::Removed { .. }) => None,
        Err(error) => Some(Err(error)),
    })
}

/// Bytes of files in a layer from which on the next step does not wait for it. Smaller ones are done in about a tenth of a
/// second, and what stands on them may be in the cache.
const BACKGROUND_FROM_BYTES: u64 = 32 << 20;

/// A layer that is being made.
pub(super) struct Coming<'scope> {
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
