//! An index onto the tree of the layers below it, as `unpack` applies a layer's tar to a directory that holds them: the same
//! rules for names, links, whiteouts and directories that nobody describes, in the same order.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::node::{Body, IndexNode, IndexTree, Known, Origin, names, own};
use super::walk::{borrowed, find, parent, walk};
use super::{IndexEntry, IndexReader};
use crate::rootfs::resolve::join;
use crate::rootfs::unpack::{EntryProblem, OPAQUE, WHITEOUT, WHITEOUT_META};
use crate::rootfs::{FileKind, Metadata, TarKind, clean};

/// Why an index cannot be applied. Unpacking the layer says more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The index could not be read, or is damaged.
    #[error("cannot read the index")]
    Read(#[from] io::Error),
    /// An entry cannot be applied.
    #[error("entry `{entry}`: {reason}")]
    Entry {
        /// Name in the tar, lossy.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The tree would be too large for memory.
    #[error("the layers have more than {most} entries")]
    TooLarge {
        /// Entries that there may be.
        most: u64,
    },
}

impl IndexTree {
    /// Applies one more layer, as long as all have at most so many entries together.
    ///
    /// # Errors
    /// [`ReplayError`]; the tree is of no use then.
    pub fn apply<R: Read>(&mut self, index: &mut IndexReader<R>, most: u64) -> Result<(), ReplayError> {
        self.layers += 1;
        let mut replay = Replay {
            layer: self.layers,
            tree: self,
            at: 0,
            implied: BTreeSet::new(),
            last: None,
            linked: BTreeMap::new(),
        };
        while let Some(entry) = index.next_entry()? {
            if replay.tree.entries >= most {
                return Err(ReplayError::TooLarge { most });
            }
            replay.entry(entry)?;
            replay.at += 1;
            replay.tree.entries += 1;
        }
        Ok(())
    }
}

struct Replay<'t> {
    tree: &'t mut IndexTree,
    layer: u32,
    /// Number of the entry.
    at: u64,
    /// Directories that no entry of this layer described.
    implied: BTreeSet<PathBuf>,
    /// The directory of the last entry: its names in the tar, and the plain ones.
    last: Option<(Vec<OsString>, Vec<OsString>)>,
    /// All names of files that have several, by inode.
    linked: BTreeMap<u64, Vec<Vec<OsString>>>,
}

fn new_directory(metadata: Metadata, touched: u32) -> IndexNode {
    IndexNode { metadata, touched, origin: Origin::NONE, body: Body::Directory(BTreeMap::new()) }
}

fn problem(path: &Path, problem: &EntryProblem) -> ReplayError {
    ReplayError::Entry { entry: path.to_string_lossy().into_owned(), reason: problem.to_string() }
}

fn unusable(path: &Path, error: &io::Error) -> ReplayError {
    ReplayError::Entry { entry: path.to_string_lossy().into_owned(), reason: error.to_string() }
}

impl Replay<'_> {
    fn entry(&mut self, entry: IndexEntry) -> Result<(), ReplayError> {
        let plain = clean(&entry.name);
        let all: Vec<&OsStr> = names(&plain).collect();
        let Some((name, parents)) = all.split_last() else { return Ok(()) };
        if parents.iter().any(|parent| parent.as_bytes().starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            if name.as_bytes() == OPAQUE {
                let dir = self.enter(parents)?;
                self.remove_lower(dir);
                return Ok(());
            }
            if name.as_bytes().starts_with(WHITEOUT_META) {
                return Ok(());
            }
            if matches!(hidden, b"" | b"." | b"..") {
                return Err(problem(&plain, &EntryProblem::WhiteoutName));
            }
            let dir = self.enter(parents)?;
            self.hide(&dir, OsStr::from_bytes(hidden));
            return Ok(());
        }
        let dir = self.enter(parents)?;
        if entry.kind == TarKind::CharDevice && entry.device == (0, 0) {
            self.hide(&dir, name);
            return Ok(());
        }
        let mut path = dir;
        path.push((*name).to_owned());
        self.write(&path, entry)
    }

    /// Plain names of the directory with these names in the tar; makes what is missing.
    fn enter(&mut self, parents: &[&OsStr]) -> Result<Vec<OsString>, ReplayError> {
        if let Some((written, plain)) = &self.last
            && written.len() == parents.len()
            && written.iter().zip(parents).all(|(a, b)| a == b)
        {
            return Ok(plain.clone());
        }
        let mut plain = Vec::with_capacity(parents.len());
        for name in parents {
            plain.push((*name).to_owned());
            if self.open_or_make(&plain) {
                continue;
            }
            // A link: on from the root along the plain path that it stands for.
            let path = join(&plain);
            let linked = walk(&self.tree.root, &path, true).map_err(|error| unusable(&path, &error))?.names;
            plain.clear();
            for step in linked {
                plain.push(step);
                if !self.open_or_make(&plain) {
                    return Err(problem(&join(&plain), &EntryProblem::Parent(path)));
                }
            }
        }
        self.last = Some((parents.iter().map(|&name| name.to_owned()).collect(), plain.clone()));
        Ok(plain)
    }

    fn node(&mut self, names: &[OsString]) -> &mut IndexNode {
        own(&mut self.tree.root, borrowed(names)).expect("the caller has just seen this directory")
    }

    /// Makes sure that a name of a directory is a directory; `false` if it is a link.
    fn open_or_make(&mut self, names: &[OsString]) -> bool {
        let (name, dir) = names.split_last().expect("a name below the root");
        let layer = self.layer;
        let found = self.node(dir).child(name).map(|node| (node.metadata.kind, node.touched));
        match found {
            Some((FileKind::Directory, brought)) => {
                if brought != layer {
                    self.implied.insert(join(names));
                    self.node(names).touched = layer;
                }
                true
            }
            Some((FileKind::Symlink, _)) => false,
            _ => {
                // What this layer put here already hides the lower layers; so does a name that nobody has.
                let hides = found.is_some_and(|(_, brought)| brought == layer);
                self.vacate(names);
                let metadata = Metadata { mode: 0o755, ..self.metadata(FileKind::Directory) };
                self.put(names, new_directory(metadata, layer));
                if !hides {
                    self.implied.insert(join(names));
                }
                true
            }
        }
    }

    /// Of something new: 0:0, no time.
    fn metadata(&mut self, kind: FileKind) -> Metadata {
        let inode = self.tree.next_inode;
        self.tree.next_inode += 1;
        Metadata { kind, mode: 0, uid: 0, gid: 0, device: (0, 0), size: 0, mtime: (0, 0), inode, links: 1 }
    }

    fn put(&mut self, names: &[OsString], node: IndexNode) {
        let (name, dir) = names.split_last().expect("a name below the root");
        if let Some(children) = self.node(dir).children_mut() {
            children.insert(name.clone(), Arc::new(node));
        }
    }

    /// Removes what has a name.
    fn vacate(&mut self, names: &[OsString]) {
        let (name, dir) = names.split_last().expect("a name below the root");
        let Some(gone) = self.node(dir).children_mut().and_then(|children| children.remove(name)) else { return };
        if matches!(gone.metadata.kind, FileKind::Directory | FileKind::Symlink) {
            self.last = None;
            let top = join(names);
            let below: Vec<_> =
                self.implied.range(top.clone()..).take_while(|path| path.starts_with(&top)).cloned().collect();
            for path in below {
                self.implied.remove(&path);
            }
        }
    }

    fn write(&mut self, path: &[OsString], entry: IndexEntry) -> Result<(), ReplayError> {
        let origin = Origin { layer: self.layer, entry: self.at };
        if entry.kind == TarKind::HardLink {
            return self.hard_link(path, &entry);
        }
        if entry.kind == TarKind::Directory {
            return self.directory(path, &entry);
        }
        let (kind, body, size) = match entry.kind {
            TarKind::Symlink => {
                let size = entry.link.len() as u64;
                (FileKind::Symlink, Body::Symlink(entry.link.into_boxed_os_str()), size)
            }
            TarKind::Fifo => (FileKind::Fifo, Body::Plain, 0),
            TarKind::CharDevice => (FileKind::CharDevice, Body::Plain, 0),
            TarKind::BlockDevice => (FileKind::BlockDevice, Body::Plain, 0),
            _ => {
                let known = Known { capability: entry.capability, content: entry.content, identity: None };
                let body = if known == Known::default() { Body::Plain } else { Body::File(Arc::new(known)) };
                (FileKind::File, body, entry.size)
            }
        };
        let device = if matches!(kind, FileKind::CharDevice | FileKind::BlockDevice) { entry.device } else { (0, 0) };
        let mode = if kind == FileKind::Symlink { 0o777 } else { entry.mode };
        let (uid, gid, mtime) = (entry.uid, entry.gid, entry.mtime);
        let metadata = Metadata { mode, uid, gid, device, size, mtime, ..self.metadata(kind) };
        self.vacate(path);
        self.put(path, IndexNode { metadata, touched: self.layer, origin, body });
        Ok(())
    }

    fn directory(&mut self, path: &[OsString], entry: &IndexEntry) -> Result<(), ReplayError> {
        let (name, dir) = path.split_last().expect("a name below the root");
        let there = self.node(dir).child(name).is_some_and(|node| node.is_directory());
        if !there {
            self.vacate(path);
            let metadata = self.metadata(FileKind::Directory);
            self.put(path, new_directory(metadata, self.layer));
        }
        let layer = self.layer;
        let node = self.node(path);
        node.touched = layer;
        let metadata = &mut node.metadata;
        (metadata.mode, metadata.uid, metadata.gid, metadata.mtime) = (entry.mode, entry.uid, entry.gid, entry.mtime);
        self.implied.remove(&join(path));
        Ok(())
    }

    fn hard_link(&mut self, path: &[OsString], entry: &IndexEntry) -> Result<(), ReplayError> {
        let shown = join(path);
        let target = clean(&entry.link);
        let missing = || problem(&shown, &EntryProblem::LinkTarget(target.clone()));
        let (mut existing, name) = match parent(&self.tree.root, &target) {
            Ok(Some(found)) => found,
            Ok(None) => return Err(problem(&shown, &EntryProblem::LinkToDirectory(target))),
            Err(_) => return Err(missing()),
        };
        existing.push(name);
        let found = find(&self.tree.root, &join(&existing), false).map_err(|_| missing())?;
        if found.is_directory() {
            return Err(problem(&shown, &EntryProblem::LinkToDirectory(target)));
        }
        let inode = found.metadata.inode;
        let mut node = found.clone();
        let layer = self.layer;
        if existing != path {
            self.vacate(path);
            let all = self.linked.entry(inode).or_insert_with(|| vec![existing]);
            if !all.iter().any(|known| known == path) {
                all.push(path.to_vec());
            }
        }
        let all = match self.linked.get(&inode) {
            Some(all) => all.clone(),
            None => vec![path.to_vec()],
        };
        // A further link gives the file its attributes.
        let metadata = &mut node.metadata;
        (metadata.uid, metadata.gid, metadata.mtime) = (entry.uid, entry.gid, entry.mtime);
        metadata.links = all.len() as u64;
        if metadata.kind != FileKind::Symlink {
            metadata.mode = entry.mode;
        }
        if entry.capability.is_some() {
            let content = node.content().map(<[u8]>::to_vec);
            node.body = Body::File(Arc::new(Known { capability: entry.capability.clone(), content, identity: None }));
        }
        for names in all {
            let still = names == path
                || find(&self.tree.root, &join(&names), false).is_ok_and(|node| node.metadata.inode == inode);
            if still {
                let touched = match names == path {
                    true => layer,
                    false => find(&self.tree.root, &join(&names), false).map_or(layer, |node| node.touched),
                };
                self.put(&names, IndexNode { touched, ..node.clone() });
            }
        }
        Ok(())
    }

    /// Hides what the lower layers have under this name of a directory.
    fn hide(&mut self, dir: &[OsString], name: &OsStr) {
        let layer = self.layer;
        let found = self.node(dir).child(name).map(|node| (node.is_directory(), node.touched == layer));
        let mut path = dir.to_vec();
        path.push(name.to_owned());
        match found {
            None | Some((false, true)) => {}
            Some((_, false)) => self.vacate(&path),
            Some((true, true)) => {
                self.renew(&path);
                self.remove_lower(path);
            }
        }
    }

    /// Makes a directory that no entry describes as if it were new.
    fn renew(&mut self, path: &[OsString]) {
        if self.implied.contains(&join(path)) {
            let metadata = &mut self.node(path).metadata;
            (metadata.mode, metadata.uid, metadata.gid, metadata.mtime) = (0o755, 0, 0, (0, 0));
        }
    }

    /// Removes all in a directory that this layer did not bring.
    fn remove_lower(&mut self, top: Vec<OsString>) {
        let mut left = vec![top];
        while let Some(path) = left.pop() {
            let layer = self.layer;
            let children: Vec<_> = self
                .node(&path)
                .children()
                .map(|(name, node)| (name.to_owned(), node.is_directory(), node.touched == layer))
                .collect();
            for (name, is_directory, brought) in children {
                let mut below = path.clone();
                below.push(name);
                if !brought {
                    self.vacate(&below);
                } else if is_directory {
                    self.renew(&below);
                    left.push(below);
                }
            }
        }
    }
}
