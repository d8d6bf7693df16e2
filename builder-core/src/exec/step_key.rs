//! What decides the result of a step, and the notes that are kept under it.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use super::BuildError;
use super::cache::StepRecord;
use super::copying::Prepared;
use super::elsewhere::Trail;
use super::shared::{MadeLayer, Shared, lock};
use crate::layer::SealedLayer;
use crate::oci::{ChainId, Sha256};
use crate::plan::key::{Components, StateKey};
use crate::plan::{Stage, Step};

/// What a step is made from: everything that its cache key covers.
#[derive(Clone)]
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
    /// Of a COPY or ADD that was done: the same but for what files hold.
    pub(super) outline: OnceLock<Inputs>,
}

impl StepKey<'_> {
    /// What the step reads: to be asked when it is known.
    pub(super) fn inputs(&self) -> &Inputs {
        self.inputs
            .get()
            .expect("a step that may have been done before is not begun without them, and none ends without them")
    }

    /// What the step has read, now that it did. Whether that was not known before.
    pub(super) fn learn(&self, copy: &Prepared<'_>) -> Result<bool, BuildError> {
        if self.outline.get().is_none() {
            _ = self.outline.set(copy.outline()?);
        }
        let is_news = self.inputs.get().is_none();
        if is_news {
            _ = self.inputs.set(copy.inputs()?);
        }
        Ok(is_news)
    }

    pub(super) fn components(&self, below: Option<ChainId>) -> Components {
        self.components_on(StateKey::image(below))
    }

    pub(super) fn components_on(&self, below: StateKey) -> Components {
        self.components_of(self.inputs(), below)
    }

    fn components_of(&self, inputs: &Inputs, below: StateKey) -> Components {
        let base = if self.index == 0 { self.stage.pinned.clone() } else { None };
        Components::new(self.step, &self.stage.platform, below, &inputs.items)
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
        // First: a step without its outline would not be looked for.
        let outline = self.outline.get().map(|outline| self.components_of(outline, StateKey::image(below)).key());
        outline
            .map_or(Ok(()), |outline| shared.cache.put_outline(outline))
            .and_then(|()| shared.cache.put_step(components.key(), &record))
            .map_err(|source| BuildError::Cache { source })?;
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
    pub(super) fn misses_surely(
        &self,
        (stage, index): (&Stage, usize),
        below: Option<ChainId>,
        copy: &Prepared<'_>,
    ) -> Result<bool, BuildError> {
        if self.begins_anew(stage) {
            return Ok(true);
        }
        // Places elsewhere are asked by key.
        if !self.request.cache.is_empty() || !self.cache.has_all_outlines() || copy.has_known_inputs() {
            return Ok(false);
        }
        let outline = OnceLock::from(copy.outline()?);
        let (step, outline_too) = (&stage.steps[index], OnceLock::new());
        let step = StepKey { shared: self, stage, step, index, inputs: outline, outline: outline_too };
        let outline = step.components(below).key();
        Ok(!self.cache.has_outline(outline) && lock(&self.begun).insert(outline))
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
