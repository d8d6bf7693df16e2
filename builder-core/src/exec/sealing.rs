//! Changes become layers: written, told of, and sent off.

use std::path::PathBuf;
use std::time::Instant;

use super::BuildError;
use super::cache::StepRecord;
use super::shared::{MadeLayer, Shared};
use crate::event::{Event, StepId};
use crate::layer::{self, LayerInput, LayerOptions, SealedLayer};
use crate::oci::Descriptor;
use crate::output;
use crate::plan::{Stage, StageId, Step};
use crate::rootfs::FileKind;
use crate::snapshot::{Change, Changes, SnapshotError};

/// Tells how long the parts of a step take.
pub(super) struct Phases<'a> {
    pub(super) shared: &'a Shared<'a>,
    pub(super) step: StepId,
}

impl Phases<'_> {
    pub(super) fn done(&self, name: &'static str, begun: Instant) {
        self.shared.observer.event(Event::Phase { step: self.step, name, elapsed: begun.elapsed() });
    }
}

impl Shared<'_> {
    /// Writes changes of a tree as a layer.
    pub(super) fn seal(
        &self,
        changes: &Changes,
        tree: &dyn layer::Tree,
        step: &Step,
        id: StepId,
    ) -> Result<SealedLayer, BuildError> {
        let begun = Instant::now();
        if let Some(told) = enormous(changes)? {
            self.observer.event(Event::Notice { message: &told });
        }
        let leaves = self.plan.in_image(self.stage_of(id)) && !self.request.single_layer;
        let layer = self.write_layer(changes, tree, &step.title, leaves)?;
        Phases { shared: self, step: id }.done("layer", begun);
        self.observer.event(Event::Packed {
            step: id,
            digest: layer.blob.digest,
            tar_bytes: layer.uncompressed_bytes,
            blob_bytes: layer.blob.size,
            entries: layer.entries,
        });
        Ok(layer)
    }

    /// The same of something that is no step. It `leaves` while it is written if it is part of the image.
    pub(super) fn write_layer(
        &self,
        changes: &Changes,
        tree: &dyn layer::Tree,
        title: &str,
        leaves: bool,
    ) -> Result<SealedLayer, BuildError> {
        let _turn = self.seals.enter();
        let options = LayerOptions {
            compression: self.request.layer_compression(),
            docker_media_types: self.request.docker_media_types(),
            clamp_mtime: self.request.clamp_mtime(self.plan),
        };
        let progress = |done| {
            let transfer = crate::event::Transfer::Compress;
            self.observer.event(Event::Progress { transfer, id: title, done, total: None });
        };
        let limits = &self.request.limits;
        let index = self.trees.indexes().record_new();
        let index = index.inspect_err(|error| tracing::debug!(%error, "a layer's index cannot be written")).ok();
        let changes = Box::new(self.request.ignored.leave_out(changes.iter()));
        let input = LayerInput { changes, tree, index };
        let mut blob = self.store.writer()?;
        let following = if leaves { self.uploads.follow(&mut blob) } else { None };
        let layer = layer::write_into(input, blob, &options, limits, &self.cancel, &progress)?;
        if let Some(following) = following {
            following.sealed(&layer.blob);
        }
        Ok(layer)
    }

    /// The stage of a step.
    fn stage_of(&self, id: StepId) -> StageId {
        // Of stages that begin at one number, all but the last have no steps.
        StageId(self.first_step.partition_point(|first| *first <= id.0).saturating_sub(1))
    }

    /// A layer is whole: it may leave at once if it is one of the image, in the form that it has.
    pub(super) fn sealed(&self, stage: &Stage, made: &MadeLayer) {
        if self.leaves_at_once(stage, &made.sealed.blob) {
            self.uploads.offer(&made.sealed.blob);
        }
    }

    /// Whether a layer of `stage` is one of the image in the form that it has.
    pub(super) fn leaves_at_once(&self, stage: &Stage, blob: &Descriptor) -> bool {
        let as_it_is = self.plan.in_image(stage.id) && !self.request.single_layer;
        as_it_is && !output::needs_recompression(blob, self.request.layer_compression())
    }
}

/// Files of a layer with so many bytes together, holes included, are told of before somebody waits for them: minutes.
const ENORMOUS_BYTES: u64 = 64 << 30;

/// One sentence about the largest file of a layer that takes very long. Most often it is one hole.
fn enormous(changes: &Changes) -> Result<Option<String>, BuildError> {
    let all = changes.content_bytes();
    if all < ENORMOUS_BYTES {
        return Ok(None);
    }
    let mut largest: Option<(u64, PathBuf)> = None;
    for change in changes {
        if let Change::Entry { path, metadata, link_to: None } = change.map_err(SnapshotError::Keep)?
            && metadata.kind == FileKind::File
            && largest.as_ref().is_none_or(|(size, _)| metadata.size > *size)
        {
            largest = Some((metadata.size, path));
        }
    }
    Ok(largest.map(|(size, path)| {
        format!(
            "the layer has {all} bytes, holes included, which are all hashed and compressed; `/{}` alone has {size}",
            path.display()
        )
    }))
}

impl MadeLayer {
    pub(super) fn from_record(record: &StepRecord, title: &str) -> Self {
        Self { sealed: record.layer.clone(), created: record.created, title: title.to_owned() }
    }
}
