//! What a layer that was unpacked alone could not know is put right once the layers below it are there, so that the stack
//! shows what unpacking one onto the other would have shown:
//!
//! - parents that no entry described are what they are below: a link (then their content moves to where it leads) or a
//!   directory (then they take its attributes);
//! - hard links to files of lower layers get a copy of the file, under both names;
//! - whiteouts that hide nothing go, because overlayfs shows them in directories that only one layer has.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags};

use super::attributes::{Handle, Target};
use super::overlay::{Marks, is_opaque, is_whiteout, make_whiteout};
use super::resolve::{MAX_LINKS, PLACE};
use super::unpack::{EntryProblem, Pending, PendingLink, UnpackError};
use super::{Attributes, FileKind, ListError, Metadata, NewFile, Rootfs};

/// Makes `layer` ready to lie on `lower` (`None`: it is the lowest).
pub(super) fn fix_up(
    layer: &Rootfs,
    lower: Option<&Rootfs>,
    pending: Pending,
    marks: Marks,
) -> Result<(), UnpackError> {
    let mut fixer = Fixer { layer, lower, marks, pending, seen_below: BTreeMap::new() };
    fixer.follow_links()?;
    fixer.link()?;
    fixer.drop_idle_whiteouts()?;
    fixer.copy_parents()?;
    fixer.hide_root()
}

/// Where the file is that a hard link wants.
enum LinkTarget {
    /// In this layer.
    Here(PathBuf),
    /// In a lower layer, and this one lets it through.
    Reachable(PathBuf, Metadata),
    /// In a lower layer, where this one hides it.
    Below(PathBuf, Metadata),
}

/// Where a directory waits while its content moves; no entry of a layer can have this name.
const ASIDE: &str = ".wh..wh.moving";

struct Fixer<'a> {
    layer: &'a Rootfs,
    lower: Option<&'a Rootfs>,
    marks: Marks,
    pending: Pending,
    /// Whether the lower layers' directory at this path shows through.
    seen_below: BTreeMap<PathBuf, bool>,
}

fn fail(path: &Path) -> impl Fn(io::Error) -> UnpackError + '_ {
    move |source| UnpackError::Io { path: path.to_owned(), source }
}

/// What `lstat` found, if anything.
fn lookup(rootfs: &Rootfs, path: &Path) -> io::Result<Option<Metadata>> {
    match rootfs.lstat(&Path::new("/").join(path)) {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Joins without a trailing slash for nothing.
fn join(path: &Path, rest: &Path) -> PathBuf {
    if rest.as_os_str().is_empty() { path.to_owned() } else { path.join(rest) }
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

impl Fixer<'_> {
    /// What lies at a plain path below this layer, if this layer lets it through.
    fn below(&mut self, path: &Path) -> Result<Option<Metadata>, UnpackError> {
        let Some(lower) = self.lower else { return Ok(None) };
        if self.pending.opaque_root {
            return Ok(None);
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty())
            && !self.shows_through(lower, parent)?
        {
            return Ok(None);
        }
        lookup(lower, path).map_err(fail(path))
    }

    fn shows_through(&mut self, lower: &Rootfs, directory: &Path) -> Result<bool, UnpackError> {
        if let Some(known) = self.seen_below.get(directory) {
            return Ok(*known);
        }
        let parent = directory.parent().filter(|parent| !parent.as_os_str().is_empty());
        let shows = match parent {
            Some(parent) if !self.shows_through(lower, parent)? => false,
            _ => {
                let is_directory = |found: Option<Metadata>| found.is_some_and(|f| f.kind == FileKind::Directory);
                let here = lookup(self.layer, directory).map_err(fail(directory))?;
                is_directory(lookup(lower, directory).map_err(fail(directory))?)
                    && match here {
                        None => true,
                        Some(found) => {
                            found.kind == FileKind::Directory
                                && !is_opaque(self.layer, directory, self.marks).map_err(fail(directory))?
                        }
                    }
            }
        };
        self.seen_below.insert(directory.to_owned(), shows);
        Ok(shows)
    }

    /// Moves what was put below implied parents that are links in lower layers.
    fn follow_links(&mut self) -> Result<(), UnpackError> {
        let mut left = self.pending.implied.clone();
        while let Some(path) = left.pop_first() {
            if self.below(&path)?.is_none_or(|found| found.kind != FileKind::Symlink) {
                continue;
            }
            let opaque = is_opaque(self.layer, &path, self.marks).map_err(fail(&path))?;
            // Out of the way first: the link may lead to where the directory itself is.
            let aside = Path::new(ASIDE);
            self.keeping_time(path.parent().unwrap_or(Path::new("")), |fixer| fixer.rename(&path, aside))?;
            self.seen_below.clear();
            let target = self.resolve(&path)?;
            self.make_parents(&target, true)?;
            let described = self.move_content(&path, &target)?;
            self.unlink(aside, true)?;
            if opaque {
                self.set_opaque(&target)?;
            }
            self.seen_below.clear();
            let rebase = |old: &Path| old.strip_prefix(&path).ok().map(|rest| join(&target, rest));
            for set in [&mut self.pending.implied, &mut self.pending.whiteouts] {
                let moved: Vec<_> =
                    set.range(path.clone()..).take_while(|old| old.starts_with(&path)).cloned().collect();
                for old in moved {
                    set.remove(&old);
                    if let Some(new) = rebase(&old).filter(|new| *new != target && !described.contains(new)) {
                        set.insert(new);
                    }
                }
            }
            for link in &mut self.pending.links {
                if let Some(new) = rebase(&link.path) {
                    link.path = new;
                }
            }
            left = self.pending.implied.range(PathBuf::new()..).cloned().collect();
        }
        Ok(())
    }

    /// Follows all links of a path in what the layer shows together with those below it. What does not exist is taken
    /// literally.
    fn resolve(&mut self, path: &Path) -> Result<PathBuf, UnpackError> {
        let names = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|component| component.as_os_str().to_owned()).collect()
        };
        let mut plain = PathBuf::new();
        let mut left = names(path);
        let mut links = 0;
        while let Some(name) = left.pop() {
            match name.as_encoded_bytes() {
                b"/" => plain = PathBuf::new(),
                b"." => {}
                b".." => {
                    plain.pop();
                }
                _ => {
                    let next = plain.join(&name);
                    let here = lookup(self.layer, &next).map_err(fail(&next))?;
                    let (rootfs, found) = match here {
                        Some(found) if is_whiteout(found.kind, found.device) => (self.layer, None),
                        Some(found) => (self.layer, Some(found)),
                        None => (self.lower.unwrap_or(self.layer), self.below(&next)?),
                    };
                    match found.map(|found| found.kind) {
                        Some(FileKind::Symlink) => {
                            links += 1;
                            if links > MAX_LINKS {
                                return Err(parent_problem(path));
                            }
                            left.extend(names(&rootfs.read_link(&Path::new("/").join(&next)).map_err(fail(&next))?));
                        }
                        Some(FileKind::Directory) | None => plain = next,
                        // A directory takes its place, as where no link is involved.
                        Some(_) if left.is_empty() => plain = next,
                        Some(_) => return Err(parent_problem(path)),
                    }
                }
            }
        }
        Ok(plain)
    }

    /// Makes the missing ones of a plain path's directories, the last one too if `whole`.
    fn make_parents(&mut self, path: &Path, whole: bool) -> Result<(), UnpackError> {
        let mut ancestors: Vec<&Path> = path.ancestors().skip(usize::from(!whole)).collect();
        ancestors.reverse();
        for directory in ancestors.into_iter().filter(|directory| !directory.as_os_str().is_empty()) {
            let here = lookup(self.layer, directory).map_err(fail(directory))?;
            match here {
                Some(found) if found.kind == FileKind::Directory => {}
                Some(found) if !is_whiteout(found.kind, found.device) => return Err(parent_problem(directory)),
                whiteout => {
                    let attributes =
                        Attributes { owner: Some((0, 0)), mode: Some(0o755), mtime: Some((0, 0)), xattrs: Vec::new() };
                    let parent = directory.parent().unwrap_or(Path::new(""));
                    self.keeping_time(parent, |fixer| {
                        let absolute = Path::new("/").join(directory);
                        fixer.layer.create(&absolute, NewFile::Directory, &attributes).map_err(fail(directory))?;
                        if whiteout.is_some() {
                            fixer.pending.whiteouts.remove(directory);
                            fixer.set_opaque(directory)?;
                        }
                        Ok(())
                    })?;
                    // Over a whiteout it has nothing to take over.
                    if whiteout.is_none() {
                        self.pending.implied.insert(directory.to_owned());
                    }
                    self.seen_below.clear();
                }
            }
        }
        Ok(())
    }

    fn set_opaque(&self, directory: &Path) -> Result<(), UnpackError> {
        let absolute = Path::new("/").join(directory);
        let opened = self.layer.open_place(&absolute, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty());
        let opened = opened.map_err(fail(directory))?;
        self.marks.set_opaque(Target::Open(opened.as_fd())).map_err(fail(directory))
    }

    /// Runs a change in a directory of the layer and gives the directory its time back.
    fn keeping_time(
        &mut self,
        directory: &Path,
        change: impl FnOnce(&mut Self) -> Result<(), UnpackError>,
    ) -> Result<(), UnpackError> {
        let before = lookup(self.layer, directory).map_err(fail(directory))?;
        change(self)?;
        let Some(before) = before else { return Ok(()) };
        let attributes = Attributes { mtime: Some(before.mtime), ..Attributes::default() };
        let absolute = Path::new("/").join(directory);
        self.layer.set_attributes(&absolute, &attributes).map_err(fail(directory))
    }

    /// Moves the content of [`ASIDE`], which was `origin`, into another directory; directories merge, other things that
    /// are moved replace. Names the directories whose own description won.
    fn move_content(&mut self, origin: &Path, target: &Path) -> Result<BTreeSet<PathBuf>, UnpackError> {
        let mut left = vec![PathBuf::new()];
        let mut emptied = Vec::new();
        let mut described = BTreeSet::new();
        while let Some(rest) = left.pop() {
            let (from, to) = (join(Path::new(ASIDE), &rest), join(target, &rest));
            let before = lookup(self.layer, &to).map_err(fail(&to))?;
            let mut mtime = before.map(|found| found.mtime);
            if !rest.as_os_str().is_empty() {
                if is_opaque(self.layer, &from, self.marks).map_err(fail(&from))? {
                    self.set_opaque(&to)?;
                }
                if self.pending.implied.contains(&to) && !self.pending.implied.contains(&join(origin, &rest)) {
                    self.pending.implied.remove(&to);
                    mtime = Some(self.copy_attributes(&from, &to)?);
                }
                if !self.pending.implied.contains(&to) {
                    described.insert(to.clone());
                }
            }
            for (name, kind) in self.layer.read_dir(&Path::new("/").join(&from)).map_err(fail(&from))? {
                let (old, new) = (from.join(&name), to.join(&name));
                let there = lookup(self.layer, &new).map_err(fail(&new))?;
                match there {
                    Some(found) if found.kind == FileKind::Directory && kind == FileKind::Directory => {
                        emptied.push(old);
                        left.push(rest.join(&name));
                    }
                    Some(found) => {
                        let moved = lookup(self.layer, &old).map_err(fail(&old))?;
                        if moved.is_some_and(|moved| is_whiteout(moved.kind, moved.device)) {
                            // What this layer brings stays, what lies below goes.
                            self.unlink(&old, false)?;
                            if found.kind == FileKind::Directory {
                                self.pending.implied.remove(&new);
                                self.set_opaque(&new)?;
                            }
                            continue;
                        }
                        self.layer.remove(&Path::new("/").join(&new)).map_err(fail(&new))?;
                        self.rename(&old, &new)?;
                        if is_whiteout(found.kind, found.device) && kind == FileKind::Directory {
                            self.set_opaque(&new)?;
                        }
                    }
                    None => self.rename(&old, &new)?,
                }
            }
            if let Some(mtime) = mtime {
                let attributes = Attributes { mtime: Some(mtime), ..Attributes::default() };
                self.layer.set_attributes(&Path::new("/").join(&to), &attributes).map_err(fail(&to))?;
            }
        }
        for path in emptied.iter().rev() {
            self.unlink(path, true)?;
        }
        Ok(described)
    }

    /// Gives one directory of the layer the attributes of another one; returns the time.
    fn copy_attributes(&self, from: &Path, to: &Path) -> Result<(i64, u32), UnpackError> {
        let absolute = Path::new("/").join(from);
        let found = self.layer.lstat(&absolute).map_err(fail(from))?;
        let attributes = Attributes {
            owner: Some((found.uid, found.gid)),
            mode: Some(found.mode),
            mtime: Some(found.mtime),
            xattrs: self.layer.xattrs(&absolute).map_err(fail(from))?,
        };
        self.layer.set_attributes(&Path::new("/").join(to), &attributes).map_err(fail(to))?;
        Ok(found.mtime)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), UnpackError> {
        let (Some((old_dir, old)), Some((new_dir, new))) =
            (self.layer.parent_of(from).map_err(fail(from))?, self.layer.parent_of(to).map_err(fail(to))?)
        else {
            return Ok(());
        };
        rustix::fs::renameat(&old_dir, &*old, &new_dir, &*new).map_err(|error| fail(from)(error.into()))
    }

    fn unlink(&self, path: &Path, directory: bool) -> Result<(), UnpackError> {
        let Some((dir, name)) = self.layer.parent_of(path).map_err(fail(path))? else { return Ok(()) };
        let flags = if directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(&dir, &*name, flags).map_err(|error| fail(path)(error.into()))
    }

    /// Makes the hard links whose target was not in the layer.
    fn link(&mut self) -> Result<(), UnpackError> {
        // Where this layer has a copy of a lower file whose own name is taken.
        let mut copies: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        for PendingLink { path, target, attributes, through_directory } in std::mem::take(&mut self.pending.links) {
            let target = self.find_target(&path, &target, through_directory)?;
            if lookup(self.layer, &path).map_err(fail(&path))?.is_some() {
                // A later entry took the name.
                continue;
            }
            self.make_parents(&path, false)?;
            if let LinkTarget::Reachable(plain, found) = &target {
                self.copy_up(plain, found)?;
            }
            let parent = path.parent().unwrap_or(Path::new("")).to_owned();
            let absolute = Path::new("/").join(&path);
            match target {
                LinkTarget::Here(file) | LinkTarget::Reachable(file, _) => {
                    self.keeping_time(&parent, |fixer| {
                        fixer.layer.hard_link(&Path::new("/").join(&file), &absolute).map_err(fail(&path))
                    })?;
                }
                LinkTarget::Below(plain, found) => match copies.get(&plain) {
                    Some(copy) => {
                        let copy = Path::new("/").join(copy);
                        self.keeping_time(&parent, |fixer| {
                            fixer.layer.hard_link(&copy, &absolute).map_err(fail(&path))
                        })?;
                    }
                    None => {
                        self.keeping_time(&parent, |fixer| match fixer.lower {
                            None => Ok(()),
                            Some(lower) => copy_file(lower, &plain, fixer.layer, &path, &found).map_err(fail(&path)),
                        })?;
                        copies.insert(plain, path.clone());
                    }
                },
            }
            let found = self.layer.lstat(&absolute).map_err(fail(&path))?;
            let changed = Attributes {
                owner: attributes.owner.filter(|owner| *owner != (found.uid, found.gid)),
                mode: attributes.mode.filter(|mode| *mode != found.mode),
                mtime: attributes.mtime.filter(|mtime| *mtime != found.mtime),
                xattrs: attributes.xattrs,
            };
            self.layer.set_attributes(&absolute, &changed).map_err(fail(&path))?;
        }
        Ok(())
    }

    /// Finds what a link was to lead to when it was read.
    fn find_target(&mut self, path: &Path, target: &Path, through_directory: bool) -> Result<LinkTarget, UnpackError> {
        let problem = |problem| UnpackError::Entry { entry: path.to_owned(), problem };
        let missing = || problem(EntryProblem::LinkTarget(target.to_owned()));
        let (Some(name), Some(lower)) = (target.file_name(), self.lower) else { return Err(missing()) };
        let parent = self.resolve(relative(target).parent().unwrap_or(Path::new("")))?;
        let plain = join(&parent, Path::new(name));
        let here = lookup(self.layer, &plain).map_err(fail(&plain))?;
        if let Some(found) = here.filter(|found| !is_whiteout(found.kind, found.device)) {
            // Found only now because a link of a lower layer led there. By its plain name it would have been found when
            // the entry was read, so that name came later, and the file is the one below.
            if relative(target) != plain && found.kind != FileKind::Directory {
                return Ok(LinkTarget::Here(plain));
            }
        }
        if through_directory && here.is_some_and(|found| found.kind == FileKind::Directory) {
            return Err(problem(EntryProblem::LinkToDirectory(target.to_owned())));
        }
        // Not through a link that this layer has replaced.
        let absolute = Path::new("/").join(&parent);
        if !lower.resolve(&absolute, true).is_ok_and(|resolved| resolved == absolute) {
            return Err(missing());
        }
        let found = lookup(lower, &plain).map_err(fail(&plain))?.ok_or_else(missing)?;
        if found.kind == FileKind::Directory {
            return Err(problem(EntryProblem::LinkToDirectory(target.to_owned())));
        }
        if here.is_some() || self.below(&plain)?.is_none() {
            return Ok(LinkTarget::Below(plain, found));
        }
        Ok(LinkTarget::Reachable(plain, found))
    }

    fn copy_up(&mut self, path: &Path, found: &Metadata) -> Result<(), UnpackError> {
        self.make_parents(path, false)?;
        let Some(lower) = self.lower else { return Ok(()) };
        let parent = path.parent().unwrap_or(Path::new("")).to_owned();
        self.keeping_time(&parent, |fixer| copy_file(lower, path, fixer.layer, path, found).map_err(fail(path)))
    }

    fn drop_idle_whiteouts(&mut self) -> Result<(), UnpackError> {
        for path in std::mem::take(&mut self.pending.whiteouts) {
            let here = lookup(self.layer, &path).map_err(fail(&path))?;
            let is_there = here.is_some_and(|found| is_whiteout(found.kind, found.device));
            if is_there && self.below(&path)?.is_none() {
                let parent = path.parent().unwrap_or(Path::new("")).to_owned();
                self.keeping_time(&parent, |fixer| fixer.unlink(&path, false))?;
            }
        }
        Ok(())
    }

    /// Gives implied directories the attributes of the directories that they lie on.
    fn copy_parents(&mut self) -> Result<(), UnpackError> {
        for path in std::mem::take(&mut self.pending.implied) {
            if self.pending.renewed.contains(&path) {
                continue;
            }
            let Some(found) = self.below(&path)?.filter(|found| found.kind == FileKind::Directory) else {
                continue;
            };
            let Some(lower) = self.lower else { continue };
            let absolute = Path::new("/").join(&path);
            let attributes = Attributes {
                owner: Some((found.uid, found.gid)),
                mode: Some(found.mode),
                mtime: Some(found.mtime),
                xattrs: lower.xattrs(&absolute).map_err(fail(&path))?,
            };
            self.layer.set_attributes(&absolute, &attributes).map_err(fail(&path))?;
        }
        Ok(())
    }

    /// The root of a layer cannot be opaque: each name of the lower layers is hidden by itself.
    fn hide_root(&mut self) -> Result<(), UnpackError> {
        let Some(lower) = self.lower.filter(|_| self.pending.opaque_root) else { return Ok(()) };
        let root = Path::new("/");
        for (name, kind) in lower.read_dir(root).map_err(fail(root))? {
            let path = root.join(&name);
            match lookup(self.layer, &path).map_err(fail(&path))? {
                None => {
                    make_whiteout(self.layer.root_fd(), &name).map_err(|error| fail(&path)(error.into()))?;
                }
                Some(found) if found.kind == FileKind::Directory && kind == FileKind::Directory => {
                    let handle = Handle::entry(self.layer.root_fd(), OsStr::new(&name), kind)
                        .map_err(|error| fail(&path)(error.into()))?;
                    self.marks.set_opaque(handle.target()).map_err(fail(&path))?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }
}

fn parent_problem(path: &Path) -> UnpackError {
    UnpackError::Entry { entry: path.to_owned(), problem: EntryProblem::Parent(path.to_owned()) }
}

/// Copies one file, of a directory only itself, with all its attributes, into another tree.
fn copy_file(from: &Rootfs, old: &Path, to: &Rootfs, new: &Path, found: &Metadata) -> io::Result<()> {
    let absolute = Path::new("/").join(old);
    let attributes = Attributes {
        owner: Some((found.uid, found.gid)),
        mode: Some(found.mode),
        mtime: Some(found.mtime),
        xattrs: from.xattrs(&absolute)?,
    };
    let text;
    let mut file;
    let file_kind = match found.kind {
        FileKind::File => {
            file = from.open_file(&absolute)?;
            NewFile::File(&mut file)
        }
        FileKind::Directory => NewFile::Directory,
        FileKind::Symlink => {
            text = from.read_link(&absolute)?;
            NewFile::Symlink(&text)
        }
        FileKind::Fifo => NewFile::Fifo,
        FileKind::CharDevice => NewFile::CharDevice(found.device.0, found.device.1),
        FileKind::BlockDevice => NewFile::BlockDevice(found.device.0, found.device.1),
        FileKind::Socket => return Ok(()),
    };
    to.create(&Path::new("/").join(new), file_kind, &attributes)
}

/// Copies a whole tree, hard links as such, into an empty directory.
pub(super) fn copy_tree(from: &Rootfs, to: &Rootfs) -> Result<(), ListError> {
    let fail = |path: &Path| {
        let path = path.to_owned();
        move |source| ListError { path, source }
    };
    let listing = from.list()?;
    let mut first: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for file in listing.iter() {
        let file = file?;
        let linked = file.metadata.kind != FileKind::Directory && file.metadata.links > 1;
        match first.get(&file.metadata.inode).filter(|_| linked) {
            Some(name) => to.hard_link(&Path::new("/").join(name), &Path::new("/").join(&file.path)),
            None => copy_file(from, &file.path, to, &file.path, &file.metadata),
        }
        .map_err(fail(&file.path))?;
        if linked {
            first.entry(file.metadata.inode).or_insert(file.path);
        }
    }
    for file in listing.iter() {
        let file = file?;
        if file.metadata.kind != FileKind::Directory {
            continue;
        }
        let place = to.open_place(&file.path, PLACE | OFlags::NOFOLLOW, Mode::empty()).map_err(fail(&file.path))?;
        let target = Target::Place(place.as_fd(), FileKind::Directory);
        target.set_mtime(file.metadata.mtime).map_err(fail(&file.path))?;
    }
    Ok(())
}
