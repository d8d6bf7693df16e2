//! A tree in memory that shares with its copies what neither changed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use crate::oci::Sha256;
use crate::rootfs::{FileKind, Metadata};

/// A tree that is known but not there: what the layers of a stack hold. Copies cost nothing.
#[derive(Debug, Clone)]
pub struct IndexTree {
    pub(super) root: Arc<IndexNode>,
    pub(super) next_inode: u64,
    /// Layers that were applied.
    pub(super) layers: u32,
    /// Entries of these layers, which the number of files cannot pass by much.
    pub(super) entries: u64,
}

/// One file of an [`IndexTree`].
#[derive(Debug, Clone)]
pub struct IndexNode {
    /// As `lstat` would say.
    pub metadata: Metadata,
    /// Number of the layer that touched it last, counted from 1; 0 for none.
    pub(super) touched: u32,
    /// What holds a regular file's content.
    pub(super) origin: Origin,
    pub(super) body: Body,
}

/// Where the content of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// Number of the layer, counted from 1; 0 for what no layer brought yet.
    pub(super) layer: u32,
    /// Number of the entry in the layer's tar that has its content, counted from 0.
    pub(super) entry: u64,
}

/// What only some kinds have.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// Nothing else.
    Plain,
    /// Names and what they stand for.
    Directory(BTreeMap<OsString, Arc<IndexNode>>),
    /// A directory whose content a step brings in bulk.
    Brought,
    /// The text of a link.
    Symlink(Box<OsStr>),
    /// A regular file of which more is known.
    File(Arc<Known>),
}

/// What is known of a regular file beside its metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) capability: Option<Vec<u8>>,
    pub(super) content: Option<Vec<u8>>,
    /// See [`super::Content::identity`].
    pub(super) identity: Option<Sha256>,
}

impl IndexTree {
    /// A tree without layers: a directory without content, as `FROM scratch` has.
    pub fn empty() -> Self {
        let metadata = Metadata {
            kind: FileKind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            device: (0, 0),
            size: 0,
            mtime: (0, 0),
            inode: 1,
            links: 1,
        };
        let root = IndexNode { metadata, touched: 0, origin: Origin::NONE, body: Body::Directory(BTreeMap::new()) };
        Self { root: Arc::new(root), next_inode: 2, layers: 0, entries: 0 }
    }

    /// The root directory.
    pub fn root(&self) -> &Arc<IndexNode> {
        &self.root
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        // A stack of more layers than that cannot be.
        usize::try_from(self.layers).unwrap_or(usize::MAX)
    }

    /// Entries of all layers, which bounds the number of files.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Whether somebody else has a copy.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.root) > 1
    }

    /// What is at exactly this path, no link followed.
    pub fn get(&self, path: &Path) -> Option<&Arc<IndexNode>> {
        let mut node = &self.root;
        for name in names(path) {
            node = node.child(name)?;
        }
        Some(node)
    }
}

impl Origin {
    pub(super) const NONE: Self = Self { layer: 0, entry: 0 };
}

impl IndexNode {
    /// What is in it, in byte order of names; nothing if it is no directory.
    pub fn children(&self) -> impl Iterator<Item = (&OsStr, &Arc<Self>)> {
        let children = match &self.body {
            Body::Directory(children) => Some(children),
            _ => None,
        };
        children.into_iter().flatten().map(|(name, node)| (name.as_os_str(), node))
    }

    /// What has this name in it.
    pub fn child(&self, name: &OsStr) -> Option<&Arc<Self>> {
        match &self.body {
            Body::Directory(children) => children.get(name),
            _ => None,
        }
    }

    /// Text of a symbolic link.
    pub fn link(&self) -> Option<&OsStr> {
        match &self.body {
            Body::Symlink(text) => Some(text),
            _ => None,
        }
    }

    /// Its `security.capability`, as far as it is known here.
    pub fn capability(&self) -> Option<&[u8]> {
        match &self.body {
            Body::File(known) => known.capability.as_deref(),
            _ => None,
        }
    }

    /// The layer that its content is in, counted from 0, and the entry of that layer's tar, counted from 0 too; `None` if
    /// no layer has it yet.
    pub fn origin(&self) -> Option<(usize, u64)> {
        let layer = usize::try_from(self.origin.layer).ok()?.checked_sub(1)?;
        Some((layer, self.origin.entry))
    }

    /// Whether its content is surely that of `other`, because both came from the same file while it did not change.
    pub fn has_content_of(&self, other: &Self) -> bool {
        if self.metadata.inode == other.metadata.inode {
            return true;
        }
        match (&self.body, &other.body) {
            (Body::File(a), Body::File(b)) => a.identity.is_some() && a.identity == b.identity,
            _ => false,
        }
    }

    /// Whether it is a directory whose content a step brings in bulk.
    pub fn is_brought(&self) -> bool {
        matches!(self.body, Body::Brought)
    }

    pub(super) fn content(&self) -> Option<&[u8]> {
        match &self.body {
            Body::File(known) => known.content.as_deref(),
            _ => None,
        }
    }

    pub(super) fn is_directory(&self) -> bool {
        self.metadata.kind == FileKind::Directory
    }

    pub(super) fn children_mut(&mut self) -> Option<&mut BTreeMap<OsString, Arc<Self>>> {
        match &mut self.body {
            Body::Directory(children) => Some(children),
            _ => None,
        }
    }
}

/// The names of a plain path, with or without a leading `/`.
pub(super) fn names(path: &Path) -> impl Iterator<Item = &OsStr> {
    path.components().filter_map(|component| match component {
        std::path::Component::Normal(name) => Some(name),
        _ => None,
    })
}

/// The node at a plain path, made its own on the way, to be changed.
pub(super) fn own<'n, 'p>(
    root: &'n mut Arc<IndexNode>,
    names: impl IntoIterator<Item = &'p OsStr>,
) -> Option<&'n mut IndexNode> {
    let mut node = Arc::make_mut(root);
    for name in names {
        node = Arc::make_mut(node.children_mut()?.get_mut(name)?);
    }
    Some(node)
}
