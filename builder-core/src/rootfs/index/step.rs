//! A step at work on a tree in memory: what COPY, ADD and WORKDIR do to a directory, done to what is known of one.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::Bounds;
use super::bulk::Brought;
use super::content::Content;
use super::made::Opened;
use super::node::{Body, IndexNode, IndexTree, Known, Origin, own};
use super::walk::{borrowed, find, parent, walk};
use crate::rootfs::resolve::join;
use crate::rootfs::workdir::TempDir;
use crate::rootfs::{Attributes, FileKind, Metadata, NewFile, Trees, View};
use crate::spool::Place;

/// Bytes of new files that are kept in memory in all; the others go to a file below the work dir.
const HELD_BYTES: usize = 1 << 20;

/// Files whose content a later step may ask for: names of users are looked up in them.
const USER_FILES: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// Why a step cannot be done without a tree on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsuited {
    /// It looks into a file of which only the layers know the content.
    Content,
    /// It makes more files than [`super::Bounds`] allow.
    TooMany,
}

/// A step that changes an [`IndexTree`]. The tree before it stays as it was.
pub struct IndexStep<'c> {
    before: IndexTree,
    state: Mutex<State<'c>>,
    /// Time of what is made without one: seconds since 1970 and nanoseconds.
    now: (i64, u32),
    trees: &'c Trees,
}

pub(super) struct State<'c> {
    pub(super) tree: IndexTree,
    /// Content of the regular files that the step made, by inode.
    pub(super) contents: BTreeMap<u64, Held<'c>>,
    /// Names of files that got further ones in this step, by inode.
    linked: BTreeMap<u64, Vec<Vec<OsString>>>,
    /// Files of which there are too many for nodes.
    pub(super) brought: Brought<'c>,
    held_bytes: usize,
    pub(super) spill: Option<Spill>,
    unsuited: Option<Unsuited>,
}

/// Content of a new file.
pub(super) enum Held<'c> {
    Bytes(Vec<u8>),
    /// A part of the spill file.
    Spilled {
        offset: u64,
    },
    /// A file of its own in the directory of the spill file.
    Own(PathBuf),
    Elsewhere(Arc<dyn Content + 'c>),
}

/// Where content goes that has no other place.
pub(super) struct Spill {
    temp: TempDir,
    file: File,
    end: u64,
    own: u64,
}

impl std::fmt::Debug for IndexStep<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexStep").field("now", &self.now).finish_non_exhaustive()
    }
}

impl<'c> IndexStep<'c> {
    /// Begins a step. `now` is the time of what is made without one; content without another place goes below the work
    /// dir of `trees`.
    pub fn begin(before: IndexTree, now: (i64, u32), trees: &'c Trees) -> Self {
        let state = State {
            tree: before.clone(),
            contents: BTreeMap::new(),
            linked: BTreeMap::new(),
            brought: Brought::default(),
            held_bytes: 0,
            spill: None,
            unsuited: None,
        };
        Self { before, state: Mutex::new(state), now, trees }
    }

    /// The tree before the step.
    pub fn before(&self) -> &IndexTree {
        &self.before
    }

    /// The tree as it is now.
    pub fn after(&self) -> IndexTree {
        self.lock().tree.clone()
    }

    /// Why the step failed although it may succeed in a tree on disk.
    pub fn unsuited(&self) -> Option<Unsuited> {
        self.lock().unsuited
    }

    /// Creates a regular file with content that stays where it is until the layer is written.
    ///
    /// # Errors
    /// As [`View::create`].
    pub fn refer(
        &self,
        path: &Path,
        content: Arc<dyn Content + 'c>,
        size: u64,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let known = Known { identity: content.identity(), ..Known::default() };
        let body = if known == Known::default() { Body::Plain } else { Body::File(Arc::new(known)) };
        self.file(path, size, body, Held::Elsewhere(content), attributes)
    }

    /// Time of what is made without one: seconds since 1970 and nanoseconds.
    pub fn now(&self) -> (i64, u32) {
        self.now
    }

    /// How much of it may be in memory.
    pub fn bounds(&self) -> Bounds {
        self.trees.known_bounds()
    }

    /// Where long lists of its files go.
    pub fn lists_in(&self) -> Place {
        Some(self.trees.lists_in())
    }

    /// Whether the step made the file, so that its content can be opened.
    pub fn made(&self, node: &IndexNode) -> bool {
        self.lock().contents.contains_key(&node.metadata.inode)
    }

    /// Ends the step: the tree with one layer more. Its tar has the content of the files `written` in the entries of these
    /// numbers, counted from 0. Of a step that brings files in bulk it is the tree before: only the layer's index has the other one.
    ///
    /// # Errors
    /// The first of `written`.
    pub fn commit(
        self,
        written: impl Iterator<Item = io::Result<(PathBuf, u64)>>,
        entries: u64,
    ) -> io::Result<IndexTree> {
        if self.lock().brought.is_some() {
            return Ok(self.before);
        }
        let users = self.user_files();
        let Self { before, state, .. } = self;
        // What held the files' content is of no use from here on, and nobody else has the tree.
        let mut tree = state.into_inner().unwrap_or_else(PoisonError::into_inner).tree;
        for (names, known) in users {
            if let Some(node) = own(&mut tree.root, borrowed(&names)) {
                node.body = Body::File(Arc::new(known));
            }
        }
        tree.layers += 1;
        tree.entries += entries;
        for file in written {
            let (path, entry) = file?;
            let layer = tree.layers;
            if let Some(node) = own(&mut tree.root, super::node::names(&path)) {
                node.origin = Origin { layer, entry };
            }
        }
        keep_origins(&before, &mut tree);
        Ok(tree)
    }

    /// Those of [`USER_FILES`] that the step made, with their content.
    fn user_files(&self) -> Vec<(Vec<OsString>, Known)> {
        let tree = self.after();
        let mut found = Vec::new();
        for path in USER_FILES {
            let Ok(walked) = walk(&tree.root, Path::new(path), true) else { continue };
            let Some(node) = walked.node.filter(|node| node.metadata.kind == FileKind::File) else { continue };
            if !self.made(node) || node.metadata.size > super::KEPT_CONTENT_BYTES {
                continue;
            }
            // Whoever looks a name up finds that the content is not known, and has the tree unpacked.
            let Ok(content) = self.read_content(&walked.path(), node.metadata.size) else { continue };
            let known = match &node.body {
                Body::File(known) => (**known).clone(),
                _ => Known::default(),
            };
            found.push((walked.names, Known { content: Some(content), ..known }));
        }
        found
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State<'c>> {
        // A panic while it was locked ends the build anyway.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_content(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        match self.made_file(path)?.open()? {
            Opened::File(file) => file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?,
            Opened::Stream(stream) => stream.take(limit.saturating_add(1)).read_to_end(&mut bytes)?,
        };
        if bytes.len() as u64 > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    }

    fn file(&self, path: &Path, size: u64, body: Body, held: Held<'c>, attributes: &Attributes) -> io::Result<()> {
        let mut state = self.lock();
        if state.contents.len() >= self.bounds().files_of_step {
            state.unsuited = Some(Unsuited::TooMany);
            return Err(io::ErrorKind::Unsupported.into());
        }
        let inode = state.put(path, FileKind::File, body, size, (0, 0), attributes, self.now)?;
        state.contents.insert(inode, held);
        Ok(())
    }

    /// Takes content that is given piece by piece.
    fn take(&self, data: &mut dyn Read) -> io::Result<(Held<'c>, u64)> {
        let room = HELD_BYTES - self.lock().held_bytes.min(HELD_BYTES);
        let mut head = Vec::new();
        data.take(room as u64 + 1).read_to_end(&mut head)?;
        let mut state = self.lock();
        if head.len() <= room {
            state.held_bytes += head.len();
            let size = head.len() as u64;
            return Ok((Held::Bytes(head), size));
        }
        let spill = state.spill(self.trees)?;
        let offset = spill.end;
        let written = (|| {
            spill.file.seek(SeekFrom::Start(offset))?;
            spill.file.write_all(&head)?;
            io::copy(&mut self.trees.disk().taking(data), &mut spill.file)
        })()?;
        let size = head.len() as u64 + written;
        spill.end = offset + size;
        Ok((Held::Spilled { offset }, size))
    }
}

impl Spill {
    pub(super) fn path(&self) -> PathBuf {
        self.temp.path().join("content")
    }
}

impl State<'_> {
    fn spill(&mut self, trees: &Trees) -> io::Result<&mut Spill> {
        if self.spill.is_none() {
            let temp = trees.temp().map_err(io::Error::other)?;
            let file = File::create_new(temp.path().join("content"))?;
            self.spill = Some(Spill { temp, file, end: 0, own: 0 });
        }
        Ok(self.spill.as_mut().expect("filled above"))
    }

    fn touch(&mut self, dir: &[OsString], now: (i64, u32)) {
        if let Some(node) = own(&mut self.tree.root, borrowed(dir)) {
            node.metadata.mtime = now;
        }
    }

    /// Puts something new under a name, in place of what is there; gives its inode.
    #[expect(clippy::too_many_arguments, reason = "what makes up a file")]
    fn put(
        &mut self,
        path: &Path,
        kind: FileKind,
        body: Body,
        size: u64,
        device: (u32, u32),
        attributes: &Attributes,
        now: (i64, u32),
    ) -> io::Result<u64> {
        let Some((dir, name)) = parent(&self.tree.root, path)? else { return Err(Errno::BUSY.into()) };
        let inode = self.tree.next_inode;
        self.tree.next_inode += 1;
        let mode = match kind {
            FileKind::Directory => 0o755,
            FileKind::Symlink => 0o777,
            _ => 0o644,
        };
        let metadata = Metadata { kind, mode, uid: 0, gid: 0, device, size, mtime: now, inode, links: 1 };
        let mut node = IndexNode { metadata, touched: 0, origin: Origin::NONE, body };
        change(&mut node, attributes, true);
        let parent = own(&mut self.tree.root, borrowed(&dir)).ok_or(Errno::NOENT)?;
        parent.metadata.mtime = now;
        parent.children_mut().ok_or(Errno::NOTDIR)?.insert(name, Arc::new(node));
        Ok(inode)
    }
}

/// Files that the step made anew with the content that they had are in no new layer: it stays where it was.
fn keep_origins(before: &IndexTree, after: &mut IndexTree) {
    let mut kept = Vec::new();
    let mut left = vec![(PathBuf::new(), Arc::clone(&before.root), Arc::clone(&after.root))];
    let layer = after.layers;
    while let Some((path, before, after)) = left.pop() {
        for (name, is) in after.children() {
            let Some(was) = before.child(name).filter(|was| !Arc::ptr_eq(was, is)) else { continue };
            let path = path.join(name);
            match (was.metadata.kind, is.metadata.kind) {
                (FileKind::Directory, FileKind::Directory) => left.push((path, Arc::clone(was), Arc::clone(is))),
                (FileKind::File, FileKind::File) if is.origin.layer != layer => {
                    kept.push((path, Arc::clone(was)));
                }
                _ => {}
            }
        }
    }
    for (path, was) in kept {
        let Some(node) = own(&mut after.root, super::node::names(&path)) else { continue };
        node.origin = was.origin;
        if let Body::File(old) = &was.body {
            let identity = match &node.body {
                Body::File(known) => known.identity.or(old.identity),
                _ => old.identity,
            };
            node.body = Body::File(Arc::new(Known { identity, ..(**old).clone() }));
        }
    }
}

/// Gives attributes to a file, as the kernel would.
fn change(node: &mut IndexNode, attributes: &Attributes, new: bool) {
    let metadata = &mut node.metadata;
    let mut capability = match &node.body {
        Body::File(known) => known.capability.clone(),
        _ => None,
    };
    let had = capability.clone();
    if let Some((uid, gid)) = attributes.owner {
        (metadata.uid, metadata.gid) = (uid, gid);
        // chown(2): a change of owner takes the capabilities of a file, and the rights to be somebody else.
        if !new && metadata.kind == FileKind::File {
            capability = None;
            metadata.mode &= !0o4000;
            if metadata.mode & 0o010 != 0 {
                metadata.mode &= !0o2000;
            }
        }
    }
    if let Some(mode) = attributes.mode.filter(|_| metadata.kind != FileKind::Symlink) {
        metadata.mode = mode & 0o7777;
    }
    if let Some(mtime) = attributes.mtime {
        metadata.mtime = mtime;
    }
    if metadata.kind == FileKind::File {
        if let Some((_, value)) = attributes.xattrs.iter().find(|(name, _)| name == "security.capability") {
            capability = Some(value.clone());
        }
        if capability != had {
            let known = match &node.body {
                Body::File(known) => Known { capability, ..(**known).clone() },
                _ => Known { capability, ..Known::default() },
            };
            node.body = Body::File(Arc::new(known));
        }
    }
}

impl<'c> View<'c> for IndexStep<'c> {
    fn resolve(&self, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
        Ok(walk(&self.lock().tree.root, path, follow_last)?.path())
    }

    fn lstat(&self, path: &Path) -> io::Result<Metadata> {
        Ok(find(&self.lock().tree.root, path, false)?.metadata)
    }

    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.lock().tree.root.children().next().is_none())
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        let mut state = self.lock();
        if let Some(file) = state.brought_at(path)? {
            return Ok(file.link.clone().ok_or(Errno::INVAL)?);
        }
        let node = find(&state.tree.root, path, false)?;
        Ok(node.link().ok_or(Errno::INVAL)?.into())
    }

    fn read_small(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut state = self.lock();
        let walked = walk(&state.tree.root, path, true)?;
        let plain = walked.path();
        let node = walked.node.ok_or(Errno::NOENT)?;
        if node.metadata.kind != FileKind::File || node.metadata.size > limit {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if node.metadata.size == 0 {
            return Ok(Vec::new());
        }
        if let Some(content) = node.content() {
            return Ok(content.to_vec());
        }
        if !state.contents.contains_key(&node.metadata.inode) {
            state.unsuited = Some(Unsuited::Content);
            return Err(io::ErrorKind::Unsupported.into());
        }
        drop(state);
        self.read_content(&plain, limit)
    }

    fn create(&self, path: &Path, file: NewFile<'_>, attributes: &Attributes) -> io::Result<()> {
        let (kind, body, size, device) = match file {
            NewFile::File(data) => {
                let (held, size) = self.take(data)?;
                return self.file(path, size, Body::Plain, held, attributes);
            }
            NewFile::Copy(mut original) => {
                let (held, size) = self.take(&mut original.file)?;
                return self.file(path, size, Body::Plain, held, attributes);
            }
            NewFile::Directory => {
                let mut state = self.lock();
                let there = match parent(&state.tree.root, path)? {
                    None => Some(Vec::new()),
                    Some((mut names, name)) => {
                        names.push(name);
                        let node = find(&state.tree.root, &join(&names), false);
                        node.is_ok_and(IndexNode::is_directory).then_some(names)
                    }
                };
                if let Some(names) = there {
                    let node = own(&mut state.tree.root, borrowed(&names)).ok_or(Errno::NOENT)?;
                    change(node, attributes, false);
                    return Ok(());
                }
                (FileKind::Directory, Body::Directory(BTreeMap::new()), 0, (0, 0))
            }
            NewFile::Symlink(text) => {
                let text = text.as_os_str();
                let size = text.as_bytes().len() as u64;
                (FileKind::Symlink, Body::Symlink(text.to_owned().into_boxed_os_str()), size, (0, 0))
            }
            NewFile::Fifo => (FileKind::Fifo, Body::Plain, 0, (0, 0)),
            NewFile::CharDevice(major, minor) => (FileKind::CharDevice, Body::Plain, 0, (major, minor)),
            NewFile::BlockDevice(major, minor) => (FileKind::BlockDevice, Body::Plain, 0, (major, minor)),
        };
        self.lock().put(path, kind, body, size, device, attributes, self.now).map(drop)
    }

    fn create_with(
        &self,
        path: &Path,
        fill: &mut dyn FnMut(&mut File) -> io::Result<()>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        let (place, mut file) = {
            let mut state = self.lock();
            let spill = state.spill(self.trees)?;
            spill.own += 1;
            let place = spill.temp.path().join(spill.own.to_string());
            let file = File::create_new(&place)?;
            (place, file)
        };
        fill(&mut file)?;
        let size = file.metadata()?.len();
        self.file(path, size, Body::Plain, Held::Own(place), attributes)
    }

    fn hard_link(&self, existing: &Path, path: &Path) -> io::Result<()> {
        let mut state = self.lock();
        let (Some((mut old, old_name)), Some((dir, name))) =
            (parent(&state.tree.root, existing)?, parent(&state.tree.root, path)?)
        else {
            return Err(Errno::PERM.into());
        };
        old.push(old_name);
        let source = find(&state.tree.root, &join(&old), false)?.clone();
        if source.is_directory() {
            return Err(Errno::PERM.into());
        }
        let mut new = dir.clone();
        new.push(name.clone());
        let there = find(&state.tree.root, &join(&new), false).ok().map(|node| node.metadata.inode);
        if there == Some(source.metadata.inode) {
            return Ok(());
        }
        let inode = source.metadata.inode;
        if source.metadata.kind == FileKind::File && !state.contents.contains_key(&inode) && source.metadata.size > 0 {
            // The layer would need its content.
            state.unsuited = Some(Unsuited::Content);
            return Err(io::ErrorKind::Unsupported.into());
        }
        let all = state.linked.entry(inode).or_insert_with(|| vec![old]);
        all.push(new);
        let (all, links) = (all.clone(), all.len() as u64);
        let mut node = source;
        node.metadata.links = links;
        if node.metadata.kind == FileKind::File {
            // An empty file of a lower layer has its content here.
            state.contents.entry(inode).or_insert_with(|| Held::Bytes(Vec::new()));
        }
        let parent = own(&mut state.tree.root, borrowed(&dir)).ok_or(Errno::NOENT)?;
        parent.children_mut().ok_or(Errno::NOTDIR)?.insert(name, Arc::new(node));
        state.touch(&dir, self.now);
        state.each(inode, &all, |node| node.metadata.links = links);
        Ok(())
    }

    fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        let mut state = self.lock();
        let names = match parent(&state.tree.root, path)? {
            None => Vec::new(),
            Some((mut names, name)) => {
                names.push(name);
                names
            }
        };
        let inode = find(&state.tree.root, &join(&names), false)?.metadata.inode;
        let all = state.linked.get(&inode).cloned().unwrap_or_else(|| vec![names]);
        state.each(inode, &all, |node| change(node, attributes, false));
        Ok(())
    }

    fn index(&self) -> Option<&IndexStep<'c>> {
        Some(self)
    }
}

impl State<'_> {
    /// Changes a file under all its names that are still its own.
    fn each(&mut self, inode: u64, names: &[Vec<OsString>], mut change: impl FnMut(&mut IndexNode)) {
        for names in names {
            if find(&self.tree.root, &join(names), false).is_ok_and(|node| node.metadata.inode == inode)
                && let Some(node) = own(&mut self.tree.root, borrowed(names))
            {
                change(node);
            }
        }
    }
}
