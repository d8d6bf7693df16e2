//! Who uses what in a plan: the files that a step reads, and how often a stage's result is needed.

use super::types::{Action, Base, FileSource, Mount, MountKind, Plan, StageId};

impl Mount {
    /// Where the mounted files come from; `None` if they come from nowhere in the plan.
    pub fn file_source(&self) -> Option<&FileSource> {
        match &self.kind {
            MountKind::Bind { from, .. } | MountKind::Cache { from: Some(from), .. } => Some(from),
            _ => None,
        }
    }
}

impl Action {
    /// Where the files come from that the step reads beside the tree below it, in the order in which it names them.
    pub fn file_sources(&self) -> Vec<&FileSource> {
        match self {
            Self::Copy(action) => vec![&action.from],
            Self::Workdir(_) => Vec::new(),
            Self::Run(action) => action.mounts.iter().filter_map(Mount::file_source).collect(),
        }
    }
}

impl FileSource {
    /// The stage, if files come from one.
    pub fn stage(&self) -> Option<StageId> {
        match self {
            Self::Stage(id) => Some(*id),
            _ => None,
        }
    }
}

impl Plan {
    /// Where the files of all steps come from.
    pub fn file_sources(&self) -> impl Iterator<Item = &FileSource> {
        self.stages.iter().flat_map(|stage| &stage.steps).flat_map(|step| step.action.file_sources())
    }

    /// Whether the layers of a stage are layers of the image: it is the target, or the target stands on it.
    pub fn in_image(&self, id: StageId) -> bool {
        let below = |stage: &StageId| match &self.stages[stage.0].base {
            Base::Stage(base) => Some(*base),
            _ => None,
        };
        std::iter::successors(Some(self.target), below).any(|stage| stage == id)
    }

    /// How often a stage's result is used: as a base, by COPY and mounts, as the result.
    pub fn users(&self, id: StageId) -> usize {
        let bases = self.stages.iter().filter(|stage| stage.base == Base::Stage(id)).count();
        let files = self.file_sources().filter(|from| from.stage() == Some(id)).count();
        bases + files + usize::from(self.target == id)
    }
}
