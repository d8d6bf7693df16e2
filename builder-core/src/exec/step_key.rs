//! What decides the result of a step, and the notes that are kept under it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::BuildError;
use super::cache::StepRecord;
use super::elsewhere::Trail;
use super::shared::{MadeLayer, Shared, lock};
use crate::layer::SealedLayer;
use crate::oci::{ChainId, Sha256};
use crate::plan::key::{Components, StateKey};
use crate::plan::{Stage, Step};

/// What a step is made from: everything that its cache key covers.
pub(super) struct Inputs {
    /// Hash over each thing that it reads beside the tree below it, by a name for people.
    pub(super) items: BTreeMap<String, Sha256>,
}

/// Everything that decides the result of a step but the tree below it.
pub(super) struct StepKey<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) stage: &'a Stage,
    pub(super) step: &'a Step,
    pub(super) index: usize,
    /// Not known before the step is done where it is certain that it was not done before.
    pub(super) inputs: OnceLock<Inputs>,
}

impl StepKey<'_> {
    /// What the step reads: to be asked when it is known.
    pub(super) fn inputs(&self) -> &Inputs {
        self.inputs
            .get()
            .expect("a step that may have been done before is not begun without them, and none ends without them")
    }

    /// What the step has read, now that it did.
    pub(super) fn learn(&self, inputs: impl FnOnce() -> Result<Inputs, BuildError>) -> Result<(), BuildError> {
        if self.inputs.get().is_none() {
            _ = self.inputs.set(inputs()?);
        }
        Ok(())
    }

    pub(super) fn components(&self, below: Option<ChainId>) -> Components {
        self.components_on(StateKey::image(below))
    }

    pub(super) fn components_on(&self, below: StateKey) -> Components {
        let base = if self.index == 0 { self.stage.pinned.clone() } else { None };
        Components::new(self.step, &self.stage.platform, below, &self.inputs().items)
            .on_base(base)
            .clamped_to(self.shared.request.clamp_mtime(self.shared.plan))
            .ignoring(self.shared.request.ignored.patterns())
    }

    /// Notes the layer that the step made on `below`, so that another build finds it.
    pub(super) fn keep(
        &self,
        below: Option<ChainId>,
        trail: Trail,
        layer: SealedLayer,
    ) -> Result<(MadeLayer, Trail), BuildError> {
        let shared = self.shared;
        let components = self.components(below);
        let record = StepRecord { layer, created: shared.timestamp() };
        shared.cache.put_step(components.key(), &record).map_err(|source| BuildError::Cache { source })?;
        shared.remember(self.stage, self.index, &components);
        let trail = shared.offer(self, trail, &record);
        Ok((MadeLayer::from_record(&record, &self.step.title), trail))
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

    /// Whether no build has done this COPY or ADD on `below`, whatever its sources hold, so that its key need not be known before it
    /// is done. `true` once: who asks again may meet what was made meanwhile.
    pub(super) fn misses_surely(&self, stage: &Stage, index: usize, below: Option<ChainId>) -> bool {
        if self.request.no_cache.applies_to(&stage.name) {
            return true;
        }
        // Places elsewhere are asked by key.
        if !self.request.cache.is_empty() || !self.cache.was_empty() {
            return false;
        }
        let nothing = OnceLock::from(Inputs { items: BTreeMap::new() });
        let step = StepKey { shared: self, stage, step: &stage.steps[index], index, inputs: nothing };
        lock(&self.begun).insert(step.components(below).key())
    }

    pub(super) fn recall(&self, stage: &Stage, index: usize) -> Option<Components> {
        self.cache.last(self.place(stage, index))
    }

    pub(super) fn remember(&self, stage: &Stage, index: usize, components: &Components) {
        if let Err(error) = self.cache.put_last(self.place(stage, index), components) {
            // Only the wording of the next build's miss depends on it.
            tracing::debug!(%error, "cannot note what a step was made from");
        }
    }
}
