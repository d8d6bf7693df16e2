//! All layers of the build as one, above those of the base.
//!
//! Every step has a layer of its own first, for the caches. Both stacks are then compared as their indexes tell them, so
//! what one step made and another removed is nowhere. Content is read from the tree if one is there, else the files that
//! matter are taken out of the layers. The result is kept under a key made of the layers' digests, here and in other places, so
//! where all steps come from a cache nothing is fetched for it.
//!
//! # Limitations
//! Stacks that are too large to be known without a directory ([`crate::rootfs::index::Bounds`]) keep a layer a step, which
//! the observer is told.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use super::BuildError;
use super::cache::StepRecord;
use super::partial::{self, Failure};
use super::shared::{MadeLayer, Shared, StageResult};
use crate::event::Event;
use crate::layer::SealedLayer;
use crate::oci::{ChainId, json_hash};
use crate::plan::{PlannedHistory, StageId};
use crate::rootfs::TreeError;
use crate::snapshot::{self, Change, Changes, SnapshotError};

/// Part of every key: another number for another meaning.
const VERSION: u32 = 1;

/// Layers by stage and number of the step.
type Made = BTreeMap<(StageId, usize), MadeLayer>;

/// The layers that a stage made as one, in the place of the last of them.
pub(super) fn squash(shared: &Shared<'_>, result: &StageResult) -> Result<Made, BuildError> {
    let made = &result.made;
    // In the order of the stack: stages stand on earlier ones.
    let Some((place, last)) = made.iter().next_back().filter(|_| made.len() > 1) else { return Ok(made.clone()) };
    let (base, new) = result.tree.layers.split_at(result.tree.layers.len() - made.len());
    let below = ChainId::of(base.iter().map(|layer| layer.diff_id)).map(|chain| chain.to_string());
    let digests: Vec<String> = new.iter().map(|layer| layer.diff_id.to_string()).collect();
    let key = json_hash(&("single layer", VERSION, below, digests));
    let kept = shared.cache.step(key).filter(|record| shared.blobs.released.knows(record.layer.blob.digest));
    let step = shared.step_id(place.0, place.1);
    let found = match kept {
        Some(record) => Some((record.layer, None)),
        None => shared.record_elsewhere(key, step).map(|(layer, shelf)| (layer, Some(shelf))),
    };
    let (layer, at) = match found {
        Some(found) => found,
        None => match make(shared, result, base.len())? {
            Some(layer) => (layer, None),
            None => {
                let message = "the image has too many files for one layer: each step keeps its own";
                shared.observer.event(Event::Notice { message });
                return Ok(made.clone());
            }
        },
    };
    let record = StepRecord { layer: layer.clone(), created: last.created };
    shared.cache.put_step(key, &record).map_err(|source| BuildError::Cache { source })?;
    shared.offer_record((key, step), &record, made.keys(), at);
    Ok(Made::from([(*place, MadeLayer { sealed: layer, ..last.clone() })]))
}

/// The history of an image whose steps have no layer but those of `made`.
pub(super) fn history(planned: &[PlannedHistory], made: &Made) -> Vec<PlannedHistory> {
    let item = |item: &PlannedHistory| match item {
        PlannedHistory::New { created_by, step } => {
            let step = step.filter(|place| made.contains_key(place));
            PlannedHistory::New { created_by: created_by.clone(), step }
        }
        inherited => inherited.clone(),
    };
    planned.iter().map(item).collect()
}

/// What has to be there for the layer to be written.
fn paths(changes: &Changes) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for change in changes {
        if let Change::Entry { path, .. } = change? {
            paths.push(path);
        }
    }
    Ok(paths)
}

/// Writes the layer; `None` if the stacks cannot be compared.
fn make(shared: &Shared<'_>, result: &StageResult, base: usize) -> Result<Option<SealedLayer>, BuildError> {
    let layers = &result.tree.layers;
    let Some(before) = shared.known.tree(shared, &layers[..base], shared.blobs)? else { return Ok(None) };
    let Some(after) = shared.trees.index_on(before.clone(), &layers[base..], shared.blobs, &shared.cancel)? else {
        return Ok(None);
    };
    let changes = snapshot::changes_of_stack(&before, &after, Some(shared.trees.lists_in()))?;
    let title = "one layer of all";
    if !result.tree.is_there() {
        let paths = paths(&changes).map_err(SnapshotError::Keep)?;
        let mut tree = shared.checkout(&[])?;
        let step = tree.begin()?;
        match partial::write(shared, layers, &after, paths.iter().map(|path| &**path), step.rootfs()) {
            Ok(()) => return Ok(Some(shared.write_layer(&changes, step.rootfs(), title, true)?)),
            Err(Failure::Layer(TreeError::Cancelled)) => return Err(BuildError::Cancelled),
            Err(Failure::Layer(error)) => return Err(error.into()),
            // What cannot be made here is recorded in a whole tree.
            Err(Failure::Disk(error)) => tracing::debug!(%error, "files cannot be taken out of their layers"),
        }
    }
    Ok(Some(shared.write_layer(&changes, &result.tree.rootfs(shared)?, title, true)?))
}
