//! COPY --from of a few files of an image that is not unpacked: only those files are taken out of its layers.
//!
//! What is known of the layers says where the sources are, links on the way included. A tree of its own gets them, and
//! copying goes on in it as it would in the whole tree. It is kept like a tree of layers, under a name made of the chain
//! id and the sources, so another build finds it.
//!
//! # Limitations
//! Sources with wildcards and `--parents` have the whole tree unpacked: what they match is followed through any links.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::BuildError;
use super::request::Directories;
use super::shared::{BlobAccess, Shared, Tree};
use crate::context::glob::has_wildcards;
use crate::oci::{BlobDigest, Descriptor, DiffId, MediaType, json_hash};
use crate::plan::{CopyAction, CopySource};
use crate::rootfs::index::{IndexNode, IndexTree, Places};
use crate::rootfs::{Attributes, FileKind, LayerRef, LayerSource, NewFile, Recall, Rootfs, TreeError, WorkTree};

/// Symbolic links followed in one source; one with more is left to the whole tree.
const MAX_LINKS: usize = 40;

/// A tree with the sources of `action` alone; `None` where the whole tree is there, or must be.
pub(super) fn tree(shared: &Shared<'_>, whole: &Tree, action: &CopyAction) -> Result<Option<WorkTree>, BuildError> {
    let paths: Option<Vec<&str>> = action.sources.iter().map(literal).collect();
    let unwanted = action.parents || shared.request.directories == Directories::Always;
    let Some(paths) = paths.filter(|_| !unwanted) else { return Ok(None) };
    let Some(chain) = whole.chain().filter(|_| !whole.is_there() && !shared.trees.has(&whole.layers)) else {
        return Ok(None);
    };
    let named = json_hash(&("files of layers", chain.to_string(), &paths));
    // No layer has this name: it is no digest of a tar.
    let layer = LayerRef { diff_id: DiffId(named), blob: Descriptor::new(MediaType::OciLayer, BlobDigest(named), 0) };
    // Somebody else may take it meanwhile.
    if shared.trees.has(std::slice::from_ref(&layer))
        && let Ok(tree) = shared.checkout(std::slice::from_ref(&layer))
    {
        return Ok(Some(tree));
    }
    // What is fetched to be known stays, because some of it is read again.
    let source = Keeper(shared.blobs);
    let Some(known) = shared.known.tree(shared, &whole.layers, &source)? else { return Ok(None) };
    let mut wanted = Wanted::default();
    if !paths.iter().all(|path| wanted.source(&known, path)) {
        return Ok(None);
    }
    let mut tree = shared.checkout(&[])?;
    let step = tree.begin()?;
    let paths = wanted.paths.iter().map(PathBuf::as_path);
    match write(shared, &whole.layers, &known, paths, step.rootfs()) {
        Ok(()) => {}
        Err(Failure::Layer(TreeError::Cancelled)) => return Err(BuildError::Cancelled),
        Err(Failure::Layer(error)) => return Err(error.into()),
        Err(Failure::Disk(error)) => {
            // An owner that does not exist here, a device: unpacking says it with the entry's name.
            tracing::debug!(%error, "files cannot be taken out of their layers: all is unpacked");
            return Ok(None);
        }
    }
    step.commit(layer.diff_id)?;
    Ok(Some(tree))
}

/// Blobs of bases, which it keeps in the store.
struct Keeper<'a>(&'a BlobAccess<'a>);

impl LayerSource for Keeper<'_> {
    fn open(&self, layer: &LayerRef) -> Result<Box<dyn Read + Send>, Box<dyn std::error::Error + Send + Sync>> {
        Ok(self.0.open_and_keep(&layer.blob)?)
    }
}

/// A source that means one path and no other.
fn literal(source: &CopySource) -> Option<&str> {
    match source {
        CopySource::Path(path) if !path.split('/').any(has_wildcards) => Some(path),
        _ => None,
    }
}

/// Why files could not be taken out of their layers.
pub(super) enum Failure {
    /// A layer cannot be read.
    Layer(TreeError),
    /// The disk does not take them.
    Disk(io::Error),
}

/// What has to be in the tree.
#[derive(Default)]
struct Wanted {
    /// Plain paths, parents before what is in them.
    paths: BTreeSet<PathBuf>,
}

impl Wanted {
    /// Adds what a source leads to, with all below it and the links on the way. `false` if it is the root, or not there:
    /// then the whole tree is looked at.
    fn source(&mut self, known: &IndexTree, source: &str) -> bool {
        let names = |text: &OsStr| -> Vec<OsString> {
            let parts = text.as_bytes().split(|byte| *byte == b'/');
            parts
                .filter(|part| !part.is_empty() && *part != b".")
                .map(|part| OsStr::from_bytes(part).to_owned())
                .collect()
        };
        let mut pending: VecDeque<OsString> = names(OsStr::new(source)).into();
        let mut plain = PathBuf::new();
        let mut links = 0;
        while let Some(name) = pending.pop_front() {
            if name == ".." {
                plain.pop();
                continue;
            }
            let next = plain.join(&name);
            let Some(node) = known.get(&next) else { return false };
            self.paths.insert(next.clone());
            match node.link() {
                Some(text) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return false;
                    }
                    if text.as_bytes().starts_with(b"/") {
                        plain = PathBuf::new();
                    }
                    for name in names(text).into_iter().rev() {
                        pending.push_front(name);
                    }
                }
                None => plain = next,
            }
        }
        if plain.as_os_str().is_empty() {
            return false;
        }
        let Some(node) = known.get(&plain) else { return false };
        let mut left = vec![(plain, node)];
        while let Some((path, node)) = left.pop() {
            left.extend(node.children().map(|(name, node)| (path.join(name), node)));
            self.paths.insert(path);
        }
        true
    }
}

/// Writes what is at `paths` into an empty tree: plain ones, parents before what is in them.
pub(super) fn write<'p>(
    shared: &Shared<'_>,
    layers: &[LayerRef],
    known: &IndexTree,
    paths: impl Iterator<Item = &'p Path>,
    into: &Rootfs,
) -> Result<(), Failure> {
    let mut files: BTreeMap<(usize, u64), Vec<(&Path, &IndexNode)>> = BTreeMap::new();
    let mut directories = Vec::new();
    let mut empty: BTreeMap<u64, &Path> = BTreeMap::new();
    for path in paths {
        let Some(node) = known.get(path) else { continue };
        let device = node.metadata.device;
        let new = match node.metadata.kind {
            FileKind::Directory => {
                directories.push((path, node));
                into.create(path, NewFile::Directory, &Attributes::default()).map_err(Failure::Disk)?;
                continue;
            }
            FileKind::File if node.metadata.size > 0 => {
                let Some(place) = node.origin() else {
                    return Err(Failure::Disk(io::ErrorKind::NotFound.into()));
                };
                let names = files.entry(place).or_default();
                if names.iter().any(|(_, other)| other.metadata.inode != node.metadata.inode) {
                    // Two files from one entry: it can be read once.
                    return Err(Failure::Disk(io::ErrorKind::Unsupported.into()));
                }
                names.push((path, node));
                continue;
            }
            FileKind::File | FileKind::Socket => {
                if node.metadata.links > 1
                    && let Some(first) = empty.insert(node.metadata.inode, path)
                {
                    into.hard_link(first, path).map_err(Failure::Disk)?;
                    continue;
                }
                NewFile::File(&mut io::empty())
            }
            FileKind::Symlink => NewFile::Symlink(Path::new(node.link().unwrap_or_default())),
            FileKind::Fifo => NewFile::Fifo,
            FileKind::CharDevice => NewFile::CharDevice(device.0, device.1),
            FileKind::BlockDevice => NewFile::BlockDevice(device.0, device.1),
        };
        into.create(path, new, &attributes(node)).map_err(Failure::Disk)?;
    }
    let places: Places = files.keys().copied().collect();
    let mut failed = None;
    let recall = Recall { layers, source: shared.blobs, cancel: &shared.cancel };
    let read = recall.entries(&places, &mut |place, _, data| {
        let names = files.get(&place).map(Vec::as_slice).unwrap_or_default();
        let mut first = None;
        for (path, node) in names {
            let written = match first {
                Some(first) => into.hard_link(first, path),
                None => {
                    first = Some(*path);
                    into.create(path, NewFile::File(data), &attributes(node))
                }
            };
            if let Err(error) = written {
                let kind = error.kind();
                failed.get_or_insert(error);
                return Err(kind.into());
            }
        }
        Ok(())
    });
    match (read, failed) {
        (Ok(()), _) => {}
        // Its own errors carry a cause; what only has a number came from the disk.
        (Err(_), Some(error)) if error.raw_os_error().is_some() => return Err(Failure::Disk(error)),
        (Err(error), _) => return Err(Failure::Layer(error)),
    }
    // Deepest first, so that none changes the time of the one around it.
    for (path, node) in directories.into_iter().rev() {
        into.set_attributes(path, &attributes(node)).map_err(Failure::Disk)?;
    }
    Ok(())
}

fn attributes(node: &IndexNode) -> Attributes {
    let metadata = node.metadata;
    let capability = node.capability().map(|value| ("security.capability".into(), value.to_vec()));
    Attributes {
        owner: Some((metadata.uid, metadata.gid)),
        mode: (metadata.kind != FileKind::Symlink).then_some(metadata.mode),
        mtime: Some(metadata.mtime),
        xattrs: capability.into_iter().collect(),
    }
}
