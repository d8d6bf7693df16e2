//! Steps that several stages have in common from their bases on: one stage does them, and the others take what it made. In BuildKit
//! equal operations are one, so a build that installs the same packages in three stages installs them once.
//!
//! Only what the plan says is compared, each step with all below it: what files hold is the same for all stages of a build. Stages wait
//! for such as stand before them, so there is always one that waits for none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::shared::Slot;
use crate::oci::{Sha256, json_hash};
use crate::plan::{Action, Base, Stage, StageId};

/// A step: its stage, and its number in there.
type Place = (StageId, usize);

/// Which steps are the same.
#[derive(Default)]
pub(super) struct Twins {
    /// Steps → the first one that is the same.
    first: BTreeMap<Place, Place>,
    /// Those first ones: told when they are done, or will not be.
    done: BTreeMap<Place, Slot<()>>,
}

impl Twins {
    /// Among all steps of `stages`, which stand in the plan's order; `begins_anew` says which of them may use nothing from earlier
    /// builds.
    pub(super) fn among(stages: &[&Stage], begins_anew: impl Fn(&Stage) -> bool) -> Self {
        let mut twins = Self::default();
        let mut ends: BTreeMap<StageId, Sha256> = BTreeMap::new();
        let mut firsts: BTreeMap<Sha256, Place> = BTreeMap::new();
        for stage in stages {
            let mut at = match &stage.base {
                Base::Stage(id) if ends.contains_key(id) => ends[id],
                base => json_hash(&(base, &stage.pinned)),
            };
            for (index, step) in stage.steps.iter().enumerate() {
                let below = (at.to_string(), &stage.platform, begins_anew(stage));
                at = match &step.action {
                    Action::Run(action) => json_hash(&(below, "run", action)),
                    Action::Copy(action) => json_hash(&(below, "copy", action)),
                    Action::Workdir(action) => json_hash(&(below, "workdir", action)),
                };
                let place = (stage.id, index);
                match firsts.entry(at) {
                    Entry::Vacant(entry) => _ = entry.insert(place),
                    Entry::Occupied(first) => {
                        twins.first.insert(place, *first.get());
                        twins.done.entry(*first.get()).or_default();
                    }
                }
            }
            ends.insert(stage.id, at);
        }
        twins
    }

    /// Waits until the same step of an earlier stage is done; whether it was.
    pub(super) fn wait(&self, stage: StageId, index: usize) -> bool {
        let first = self.first.get(&(stage, index)).and_then(|first| self.done.get(first));
        first.is_some_and(|first| first.wait().is_some())
    }

    /// A step is done, and can be found.
    pub(super) fn done(&self, stage: StageId, index: usize) {
        if let Some(slot) = self.done.get(&(stage, index)) {
            slot.fill(Some(()));
        }
    }

    /// A stage has ended: what it has not done, it will not do.
    pub(super) fn ended(&self, stage: StageId) {
        for (_, slot) in self.done.range((stage, 0)..=(stage, usize::MAX)) {
            if !slot.is_filled() {
                slot.fill(None);
            }
        }
    }
}
