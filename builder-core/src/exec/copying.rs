//! COPY and ADD as steps: where files come from, what their cache key covers.
//!
//! A step that cannot have been done before, in a work dir where nothing was, needs its key for nothing but its record. Its files
//! are then read once, for the layer or into the tree, and hashed while they pass (`Shared::misses_surely`). The same goes for a step whose
//! *outline* is new in its work dir: names, modes, owners, sizes and links of its files, for which none is read. Steps are kept with their
//! outlines, so one that was done has one.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::Path;

use super::BuildError;
use super::cache::{InputRecord, StepRecord};
use super::shared::{Shared, SourceTree};
use super::step_key::Inputs;
use super::{known, partial};
use crate::context::{Clue, Files};
use crate::copy::{self, ContentHash, CopyError, ResolvedCopy};
use crate::oci::{ChainId, Sha256, json_hash};
use crate::plan::key::WHOLE;
use crate::plan::{CopyAction, CopySource, FileSource, Stage};
use crate::rootfs::index::{IndexStep, IndexTree};
use crate::rootfs::{LayerRef, Recall, View, WorkTree};
use crate::snapshot;

/// A COPY or ADD whose source is known. The sources are read at most once, and not at all when the same paths of the
/// same immutable tree were read for an earlier build.
pub(super) struct Prepared<'a> {
    shared: &'a Shared<'a>,
    action: &'a CopyAction,
    /// The stage or image that files come from; keeps its directory alive.
    source: Option<SourceTree>,
    opened: OnceCell<Opened<'a>>,
    /// Asked for before the step, and to keep it.
    outline: OnceCell<Inputs>,
    /// The tree that `opened` reads from, if it has the sources alone. Declared later: it goes last.
    partial: OnceCell<WorkTree>,
}

/// Open files and what was selected from them.
struct Opened<'a> {
    files: FilesRef<'a>,
    resolved: ResolvedCopy,
}

/// Files of a context, which the whole build shares, or of a tree, opened for one step.
enum FilesRef<'a> {
    Shared(&'a Files),
    Own(Box<Files>),
}

impl FilesRef<'_> {
    fn get(&self) -> &Files {
        match self {
            Self::Shared(files) => files,
            Self::Own(files) => files,
        }
    }
}

impl<'a> Prepared<'a> {
    pub(super) fn new(shared: &'a Shared<'a>, action: &'a CopyAction) -> Result<Self, BuildError> {
        let source = shared.tree_of(&action.from)?;
        Ok(Self { shared, action, source, opened: OnceCell::new(), outline: OnceCell::new(), partial: OnceCell::new() })
    }

    fn open(&self) -> Result<&Opened<'a>, BuildError> {
        if let Some(opened) = self.opened.get() {
            return Ok(opened);
        }
        let shared = self.shared;
        let files = match (&self.action.from, &self.source) {
            (_, Some(source)) => {
                FilesRef::Own(Box::new(Files::rootfs(match partial::tree(shared, source.tree(), self.action)? {
                    Some(tree) => {
                        let rootfs = tree.rootfs()?;
                        self.partial.get_or_init(|| tree);
                        rootfs
                    }
                    None => source.tree().rootfs(shared)?,
                })))
            }
            (FileSource::NamedContext(name), _) => FilesRef::Shared(shared.named_context(name)?),
            (FileSource::Scratch, _) => FilesRef::Own(Box::new(Files::empty())),
            _ => FilesRef::Shared(shared.context),
        };
        let resolved = copy::resolve_with_remote(self.action, files.get(), &shared.remote, &shared.cancel);
        let resolved = resolved.map_err(|error| self.explained(error))?;
        Ok(self.opened.get_or_init(|| Opened { files, resolved }))
    }

    /// A source that is not at the root of a stage may be in its working directory, where its commands saw it.
    fn explained(&self, error: CopyError) -> CopyError {
        let (CopyError::Missing { path, .. }, FileSource::Stage(id)) = (&error, &self.action.from) else {
            return error;
        };
        let workdir = Path::new(self.shared.plan.stages[id.0].config.text("WorkingDir"));
        let relative = path.strip_prefix("/").unwrap_or(path);
        let written = |source: &CopySource| matches!(source, CopySource::Path(source) if Path::new(source) == relative);
        let there = workdir.join(relative);
        if !workdir.is_absolute() || there == *path || !self.action.sources.iter().any(written) {
            return error;
        }
        let found = self.in_stage(&whole(self.action.from.clone(), &there.to_string_lossy(), "/"));
        match found {
            Ok(()) => CopyError::Missing { path: path.clone(), clue: Some(Clue::InWorkdir { path: there }) },
            Err(_) => error,
        }
    }

    /// Whether another copy from the same stage would find its sources.
    fn in_stage(&self, action: &CopyAction) -> Result<(), BuildError> {
        let Some(source) = &self.source else { return Ok(()) };
        let partial = partial::tree(self.shared, source.tree(), action)?;
        let rootfs = match &partial {
            Some(tree) => tree.rootfs()?,
            None => source.tree().rootfs(self.shared)?,
        };
        copy::resolve(action, &Files::rootfs(rootfs), &self.shared.cancel)?;
        Ok(())
    }

    /// What the cache key covers.
    pub(super) fn inputs(&self) -> Result<Inputs, BuildError> {
        let Some(source) = &self.source else {
            return Ok(Inputs::from_record(&record(&self.content_hash()?)));
        };
        // A tree of layers never changes, so what was read from it once need not be read again.
        let key = self.question(source);
        if let Some(known) = self.shared.cache.input(key) {
            return Ok(Inputs::from_record(&known));
        }
        let found = record(&self.content_hash()?);
        self.shared.cache.put_input(key, &found).map_err(|source| BuildError::Cache { source })?;
        Ok(Inputs::from_record(&found))
    }

    /// What is asked of a tree of layers.
    fn question(&self, source: &SourceTree) -> Sha256 {
        let chain = source.tree().chain().map_or_else(String::new, |chain| chain.to_string());
        json_hash(&(chain, self.action))
    }

    /// Whether [`Prepared::inputs`] need not look at any file.
    pub(super) fn has_known_inputs(&self) -> bool {
        self.source.as_ref().is_some_and(|source| self.shared.cache.input(self.question(source)).is_some())
    }

    /// What the cache key covers, if no file of a context has to be read for it.
    pub(super) fn known_inputs(&self) -> Result<Option<Inputs>, BuildError> {
        if self.source.is_some() {
            return Ok(None);
        }
        let opened = self.open()?;
        let known = opened.resolved.known_hash(self.action, opened.files.get())?;
        Ok(known.map(|known| Inputs::from_record(&record(&known))))
    }

    /// What the cache key covers, but for what files hold.
    pub(super) fn outline(&self) -> Result<Inputs, BuildError> {
        if let Some(known) = self.outline.get() {
            return Ok(known.clone());
        }
        let outline = self.open()?.resolved.outline(self.action)?;
        let outline = Inputs { items: BTreeMap::from([(WHOLE.to_owned(), outline)]) };
        Ok(self.outline.get_or_init(|| outline).clone())
    }

    fn content_hash(&self) -> Result<ContentHash, BuildError> {
        let opened = self.open()?;
        Ok(opened.resolved.content_hash(self.action, opened.files.get(), &self.shared.cancel)?)
    }

    /// Finds the sources, and has what is read of them from now on hashed in passing, for [`Prepared::inputs`] to be asked
    /// afterwards.
    pub(super) fn hash_in_passing(&self) -> Result<(), BuildError> {
        self.open()?.files.get().take_notes();
        Ok(())
    }

    /// Writes the files into `target`.
    pub(super) fn apply<'s>(&'s self, target: &dyn View<'s>) -> Result<(), BuildError> {
        let opened = self.open()?;
        Ok(copy::apply(self.action, &opened.resolved, opened.files.get(), target, &self.shared.cancel)?)
    }
}

fn record(hash: &ContentHash) -> InputRecord {
    let items = hash.items.iter().map(|(path, hash)| (path.clone(), hash.to_hex()));
    InputRecord { hash: hash.whole.to_hex(), items: items.collect() }
}

impl Inputs {
    pub(super) fn from_record(record: &InputRecord) -> Self {
        let named = record.items.iter().map(|(path, hash)| (path.as_str(), hash.as_str()));
        let all = named.chain([(WHOLE, record.hash.as_str())]);
        Self { items: all.filter_map(|(name, hash)| Some((name.to_owned(), Sha256::from_hex(hash)?))).collect() }
    }
}

impl Shared<'_> {
    /// Files of a named context.
    pub(super) fn named_context(&self, name: &str) -> Result<&Files, BuildError> {
        self.named_contexts.get(name).ok_or_else(|| BuildError::UnknownContext { name: name.to_owned() })
    }
}

/// A copy of everything below `source`, as mounts and `FROM context` need it.
pub(super) fn whole(from: FileSource, source: &str, destination: &str) -> CopyAction {
    // The path is literal here, a wildcard elsewhere.
    let literal: String =
        source.chars().flat_map(|c| if r"*?[\".contains(c) { vec!['\\', c] } else { vec![c] }).collect();
    CopyAction::plain(from, vec![CopySource::Path(literal)], destination)
}

/// `FROM context`: the files of a named context as the one layer below a stage.
pub(super) fn context_as_base(shared: &Shared<'_>, stage: &Stage, name: &str) -> Result<LayerRef, BuildError> {
    let action = whole(FileSource::NamedContext(name.to_owned()), "/", "/");
    let prepared = Prepared::new(shared, &action)?;
    let inputs = prepared.inputs()?;
    let clamp = shared.request.clamp_mtime(shared.plan);
    let key = Sha256::of(format!("context as base {:?} {clamp:?}", inputs.items).as_bytes());
    if let Some(record) = shared.cache.step(key)
        && shared.blobs.released.knows(record.layer.blob.digest)
    {
        return Ok(LayerRef { diff_id: record.layer.diff_id, blob: record.layer.blob });
    }
    let work = IndexStep::begin(IndexTree::empty(), shared.timestamp(), shared.trees);
    prepared.apply(&work)?;
    let changes =
        snapshot::changes_of_index(&work, Recall { layers: &[], source: shared.blobs, cancel: &shared.cancel })?;
    let layer =
        shared.write_layer(&changes, &work, &stage.name, shared.plan.in_image(stage.id)).map_err(known::of_context)?;
    let record = StepRecord { layer, created: shared.timestamp() };
    shared.cache.put_step(key, &record).map_err(|source| BuildError::Cache { source })?;
    tracing::debug!(stage = stage.name, context = name, "context taken as base");
    Ok(LayerRef { diff_id: record.layer.diff_id, blob: record.layer.blob })
}

/// Identity of a tree of layers as an input of a step.
pub(super) fn chain_hash(chain: Option<ChainId>) -> Sha256 {
    chain.map_or_else(|| Sha256::of(b""), |chain| chain.0)
}
