//! COPY, ADD and WORKDIR without a directory: they see the tree below them as the indexes of its layers tell it, and their
//! layers are written straight from where the files are.
//!
//! That is what happens unless a directory is there or will be needed anyway ([`Way::is_better`]). A step that has to look
//! into a file that only the layers hold is done in a directory after all.
//!
//! Architecture invariant: the layer has the same bytes either way, for the tests force both.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::BuildError;
use super::copying::Prepared;
use super::request::Directories;
use super::shared::{Shared, lock};
use crate::context::FilesError;
use crate::copy::{self, CopyError};
use crate::event::StepId;
use crate::layer::{LayerError, SealedLayer};
use crate::oci::ChainId;
use crate::output::Target;
use crate::plan::{Action, Base, Plan, Stage, StageId, Step};
use crate::rootfs::index::{IndexStep, IndexTree};
use crate::rootfs::{FileKind, LayerRef, LayerSource, Recall};
use crate::snapshot::{self, Change, Changes, SnapshotError};

/// What is known of stacks of layers, for all stages of a build.
#[derive(Default)]
pub(super) struct Known {
    trees: Mutex<BTreeMap<Option<ChainId>, Slot>>,
}

/// One stack; locked while it is read. `Some(None)`: it cannot be known without a directory.
type Slot = Arc<Mutex<Option<Option<IndexTree>>>>;

impl Known {
    /// The tree of these layers, which are read from `source` where they have no index yet; `None` if it cannot be known without a directory.
    pub(super) fn tree(
        &self,
        shared: &Shared<'_>,
        layers: &[LayerRef],
        source: &dyn LayerSource,
    ) -> Result<Option<IndexTree>, BuildError> {
        let chain = ChainId::of(layers.iter().map(|layer| layer.diff_id));
        let slot = Arc::clone(lock(&self.trees).entry(chain).or_default());
        let mut slot = lock(&slot);
        if let Some(known) = &*slot {
            return Ok(known.clone());
        }
        let most = shared.trees.known_bounds().entries;
        let left = most.saturating_sub(self.held(most));
        let found = shared.trees.index_within(left, layers, source, &shared.cancel)?;
        Ok(slot.insert(found).clone())
    }

    /// Entries of the trees that are held. If that is more than half of `most`, those that nobody uses are forgotten, to be
    /// read again when somebody asks.
    fn held(&self, most: u64) -> u64 {
        let mut slots: Vec<_> = lock(&self.trees).values().cloned().collect();
        // One that is being read is not counted.
        let mut held = |forget: bool| -> u64 {
            let entries = slots.iter_mut().map(|slot| match slot.try_lock().as_deref_mut() {
                Ok(slot @ Some(Some(_))) if forget && !slot.iter().flatten().any(IndexTree::is_shared) => {
                    *slot = None;
                    0
                }
                Ok(Some(Some(tree))) => tree.entries(),
                _ => 0,
            });
            entries.sum()
        };
        match held(false) {
            few if few <= most / 2 => few,
            _ => held(true),
        }
    }
}

/// A step that could be done with or without a directory.
pub(super) struct Way<'a> {
    pub(super) stage: &'a Stage,
    /// Of the step.
    pub(super) index: usize,
    /// It does not see the tree below it.
    pub(super) detached: bool,
    /// The directory is there.
    pub(super) tree: bool,
}

impl Way<'_> {
    /// Whether it is better done without.
    pub(super) fn is_better(&self, shared: &Shared<'_>) -> bool {
        match shared.request.directories {
            Directories::Always => false,
            Directories::WhenNeeded if self.detached => true,
            // What is there knows more than the layers: fractions of seconds, which tell whether a file is the same.
            Directories::WhenNeeded => !self.tree && !self.needed(shared),
        }
    }

    /// Whether the directory will be needed.
    fn needed(&self, shared: &Shared<'_>) -> bool {
        let written = shared.request.outputs.iter().any(Target::is_files) && shared.plan.in_image(self.stage.id);
        written || runs(&self.stage.steps[self.index + 1..]) || needed_above(shared.plan, self.stage.id)
    }
}

/// Whether one of the steps is a command.
pub(super) fn runs(steps: &[Step]) -> bool {
    steps.iter().any(|step| matches!(step.action, Action::Run(_)))
}

/// Whether others need the directory of a stage: those that go on from it, and those that read its files.
fn needed_above(plan: &Plan, id: StageId) -> bool {
    let above = plan.stages.iter().filter(|stage| stage.base == Base::Stage(id));
    above.into_iter().any(|stage| runs(&stage.steps) || needed_above(plan, stage.id))
        || plan.file_sources().any(|from| from.stage() == Some(id))
}

/// Makes the layer of a COPY, ADD or WORKDIR on what is known of `layers`; `None` if it needs a directory after all. What
/// comes with it is the tree behind the step, or one that some layers are missing from.
pub(super) fn make(
    shared: &Shared<'_>,
    before: IndexTree,
    layers: &[LayerRef],
    step: &Step,
    id: StepId,
    copy: Option<&Prepared<'_>>,
) -> Result<Option<(SealedLayer, IndexTree)>, BuildError> {
    let work = IndexStep::begin(before, shared.timestamp(), shared.trees);
    let applied = match (&step.action, copy) {
        (Action::Workdir(action), _) => copy::workdir(action, &work).map_err(BuildError::from),
        (Action::Copy(_), Some(prepared)) => prepared.apply(&work),
        _ => return Ok(None),
    };
    if let Err(error) = applied {
        return match work.unsuited() {
            Some(reason) => {
                tracing::debug!(step = step.title, ?reason, "done in a directory after all");
                Ok(None)
            }
            None => Err(error),
        };
    }
    let recall = Recall { layers, source: shared.blobs, cancel: &shared.cancel };
    let changes = snapshot::changes_of_index(&work, recall)?;
    let layer = shared.seal(&changes, &work, step, id).map_err(of_context)?;
    let tree = work.commit(contents(&changes), changes.len()).map_err(SnapshotError::Keep)?;
    Ok(Some((layer, tree)))
}

/// An error of writing a layer straight from the context: a file is read only now, and may be another one than it was.
pub(super) fn of_context(error: BuildError) -> BuildError {
    match error {
        BuildError::Layer(LayerError::Read { path, source }) => match source.downcast::<FilesError>() {
            Ok(error) => CopyError::from(error).into(),
            Err(source) => LayerError::Read { path, source }.into(),
        },
        error => error,
    }
}

/// The entry of the layer's tar that has the content of each file: every change is one entry.
fn contents(changes: &Changes) -> impl Iterator<Item = io::Result<(PathBuf, u64)>> {
    let mut first: BTreeMap<PathBuf, u64> = BTreeMap::new();
    (0..).zip(changes).filter_map(move |(entry, change)| {
        let (path, metadata, link_to) = match change {
            Ok(Change::Entry { path, metadata, link_to }) if metadata.kind == FileKind::File => {
                (path, metadata, link_to)
            }
            Ok(_) => return None,
            Err(error) => return Some(Err(error)),
        };
        let entry = match &link_to {
            Some(target) => first.get(target).copied().unwrap_or(entry),
            None => entry,
        };
        if metadata.links > 1 && link_to.is_none() {
            first.insert(path.clone(), entry);
        }
        Some(Ok((path, entry)))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::cancel::Cancel;
    use crate::context::testing::build;
    use crate::context::{Files, Patterns};
    use crate::copy::testing::action;
    use crate::layer::tar::{TarWriter, Times, WriteSink};
    use crate::rootfs::index::Bounds;
    use crate::rootfs::{Ownership, TreeMode, Trees};

    struct Nowhere;

    impl LayerSource for Nowhere {
        fn open(&self, _: &LayerRef) -> Result<Box<dyn io::Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
            Err("there are no layers".into())
        }
    }

    /// What a COPY onto `before` puts into its layer, and how many files it had to know one by one.
    fn tar_of(dir: &Path, bounds: Bounds, before: &IndexTree, instruction: &str) -> Result<(Vec<u8>, bool), String> {
        let mut trees = Trees::open(dir, Some(TreeMode::Directory), Ownership::Real).expect("trees");
        trees.set_known_bounds(bounds);
        let cancel = Cancel::default();
        let patterns = Patterns::parse("hidden\n!hidden/but").expect("patterns");
        let files = Files::directory(&dir.join("context"), patterns).expect("a directory");
        let action = action(instruction);
        let resolved = copy::resolve(&action, &files, &cancel).expect("it is there");
        let work = IndexStep::begin(before.clone(), (77, 8), &trees);
        copy::apply(&action, &resolved, &files, &work, &cancel).map_err(|error| error.to_string())?;
        let recall = Recall { layers: &[], source: &Nowhere, cancel: &cancel };
        let changes = snapshot::changes_of_index(&work, recall).expect("changes");
        let mut tar = TarWriter::new(WriteSink::new(Vec::new()), Times::Keep);
        for change in &changes {
            tar.change(&change.expect("a change"), &work).expect("written");
        }
        let bytes = tar.finish().expect("the end").finish().expect("flushed");
        Ok((bytes, work.brought().is_some()))
    }

    #[test]
    fn files_in_bulk_and_one_by_one_give_one_layer() {
        let dir = tempfile::tempdir().expect("a directory");
        let context = dir.path().join("context");
        build(
            &context,
            "a=1 d/@700 d/b=2 d/b-c=3 e/f/g=4 e/f/h->../x e/empty/ hidden/but/this=5 hidden/not=6 p| \
             n/m/o@4755=7 z=8 d.x/y=9",
        );
        build(&dir.path().join("linked"), "l/1=x l/2==l/1 m/3==l/1 m/4=y");
        let bounds = |bulk_from| Bounds { bulk_from, ..Bounds::default() };
        let empty = IndexTree::empty();
        let mut trees = Trees::open(dir.path(), Some(TreeMode::Directory), Ownership::Real).expect("trees");
        trees.set_known_bounds(bounds(usize::MAX));
        let before = {
            build(&dir.path().join("before"), "e/f/@711 e/old=o app/d/ app/a=old app/x=x n=file link->app");
            let files = Files::directory(&dir.path().join("before"), Patterns::default()).expect("a directory");
            let everything = action("COPY . /");
            let resolved = copy::resolve(&everything, &files, &Cancel::default()).expect("it is there");
            let work = IndexStep::begin(empty.clone(), (5, 6), &trees);
            copy::apply(&everything, &resolved, &files, &work, &Cancel::default()).expect("copied");
            work.commit(std::iter::empty(), 0).expect("a tree")
        };
        let mut in_bulk = 0;
        for before in [&empty, &before] {
            for instruction in [
                "COPY . /",
                "COPY . /app",
                "COPY . /link/",
                "COPY . /deep/er/",
                "COPY --chown=7:8 --chmod=u+x,go-w . /app/",
                "COPY d e /app/",
                "COPY --parents e/f/g n/m /app/",
                "COPY --parents ./e/./*/g d* /",
                "COPY --exclude=**/g . /new",
                "COPY e/f /app/d",
                "COPY <<text . /",
                "COPY . <<text /",
            ] {
                let many = tar_of(dir.path(), bounds(0), before, instruction);
                let single = tar_of(dir.path(), bounds(usize::MAX), before, instruction);
                match (many, single) {
                    (Ok((many, bulk)), Ok((single, false))) => {
                        assert!(many == single, "{instruction}");
                        in_bulk += usize::from(bulk);
                    }
                    (many, single) => assert_eq!(many.map(drop), single.map(drop), "{instruction}"),
                }
            }
        }
        assert!(in_bulk > 15, "{in_bulk}");
        // Names of one file stay one file.
        std::fs::remove_dir_all(&context).expect("removed");
        std::fs::rename(dir.path().join("linked"), &context).expect("renamed");
        for before in [&empty, &before] {
            for instruction in ["COPY . /", "COPY . /app", "COPY l m /new/", "COPY m /new"] {
                let many = tar_of(dir.path(), bounds(0), before, instruction).expect("copied");
                let single = tar_of(dir.path(), bounds(usize::MAX), before, instruction).expect("copied");
                assert!(many.0 == single.0, "{instruction}");
            }
        }
    }
}
