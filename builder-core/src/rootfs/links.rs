//! Hard links of lower layers, for steps in directory mode.
//!
//! Where layers are stacked, writing to one of several names of a lower file copies that name up, and the others keep
//! what they had (kernel documentation, overlayfs, "Non-standard behavior"). That is what BuildKit's users know. One plain
//! directory would change all names at once, and nothing afterwards could tell what a command would have read through
//! the others meanwhile. So before a command runs, every name gets a file of its own. Those that the command did not touch
//! still count as one file, wherever a directory around them went, and are joined again before somebody reads the tree as a
//! source or it is put away.
//!
//! After a step names are one file exactly if the layers say so ([`Rootfs::settle`]), as in a tree that is made from them: a command
//! that makes a further name of a lower file adds a file of that name alone to its layer, and one that changes a file and
//! changes it back adds nothing.
//!
//! # Limitations
//! While a command runs, each name of a file takes the file's place on disk, unless the file system shares blocks (xfs,
//! btrfs). `stat` tells such a command one link where a stack of layers would tell all, so a copy that is to keep hard links
//! of a lower layer (`cp -a`, `tar`) makes separate files.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rayon::iter::{IntoParallelIterator, IntoParallelRefIterator, ParallelIterator};
use rustix::io::Errno;

use super::attributes::Target;
use super::owners::Key;
use super::pretend::Existing;
use super::remove::remove_entry;
use super::sparse::Original;
use super::stat::Stat;
use super::tree::new_file;
use super::{Attributes, FileKind, ListError, Listing, NewFile, Rootfs};
use crate::cancel::Cancel;

/// Names that were one file and are to be one again.
#[derive(Debug, Default)]
pub(super) struct Separated(Vec<Vec<Name>>);

/// Where one of them is, and what it looked like when it was set apart.
#[derive(Debug)]
struct Name {
    path: PathBuf,
    stat: Stat,
}

/// Set in the inode numbers that images see of files that were set apart; no file system counts that far.
const APART: u64 = 1 << 63;

impl Separated {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn shared(index: usize, names: usize) -> (u64, u64) {
        (APART | index as u64, names as u64)
    }

    /// Finds the names that nobody touched in the tree as it is now, and says there that they are still one file.
    pub(super) fn follow(&mut self, listing: &mut Listing) -> Result<(), ListError> {
        let known: BTreeMap<Key, (usize, usize)> = (self.0.iter().enumerate())
            .flat_map(|(group, names)| {
                names.iter().enumerate().map(move |(at, name)| (Key::of(&name.stat), (group, at)))
            })
            .collect();
        let mut found = Vec::new();
        for entry in listing.raw() {
            let (path, stat) = entry?;
            if let Some((group, at)) = known.get(&Key::of(&stat))
                && self.0[*group][*at].stat == stat
            {
                self.0[*group][*at].path.clone_from(&path);
                let names = self.0[*group].len();
                // As [`tell`] has it.
                found.push((
                    path,
                    stat,
                    if names > 1 { Self::shared(*group, names) } else { (stat.inode, stat.links) },
                ));
            }
        }
        found.into_iter().try_for_each(|(path, stat, shared)| listing.replace(&path, stat, shared))
    }
}

impl Rootfs {
    /// Gives each name of a file with several names a file of its own; `listing` of the whole tree follows. `separated`
    /// is what of the same tree was set apart before.
    ///
    /// # Errors
    /// The path that could not be copied; the tree is then half done. `Interrupted` when cancelled.
    pub(super) fn separate(
        &self,
        separated: &mut Separated,
        listing: &mut Listing,
        cancel: &Cancel,
    ) -> Result<(), ListError> {
        let groups = hard_links(listing)?;
        let parents = self.times_of_parents(groups.iter().flatten())?;
        let groups: Vec<Vec<Name>> = groups
            .into_par_iter()
            .map(|names| {
                let (first, others) = names.split_first().expect("a group has two names");
                for name in others {
                    if cancel.is_cancelled() {
                        return Err(fail(name)(io::ErrorKind::Interrupted.into()));
                    }
                    self.copy_file(first, name).map_err(fail(name))?;
                }
                // The first one too has changed: its number of links.
                names
                    .into_iter()
                    .map(|path| match self.stat_name(&path) {
                        Ok(stat) => Ok(Name { path, stat }),
                        Err(error) => Err(fail(&path)(error)),
                    })
                    .collect()
            })
            .collect::<Result<_, _>>()?;
        self.set_times(&parents)?;
        for names in groups {
            let shared = Separated::shared(separated.0.len(), names.len());
            for name in &names {
                listing.replace(&name.path, name.stat, shared)?;
            }
            separated.0.push(names);
        }
        // Some file systems keep fractions of seconds in times of their own alone (9p as qemu shares a directory).
        for path in parents.keys().filter_map(|path| path.strip_prefix("/").ok()).filter(|path| *path != Path::new(""))
        {
            listing.note(path, self.stat_name(path).map_err(fail(path))?)?;
        }
        Ok(())
    }

    /// Makes names that nobody touched since [`Rootfs::separate`] one file again. Whether anything changed.
    ///
    /// # Errors
    /// The path that could not be linked; the tree is then half done.
    pub(super) fn join(&self, separated: &Separated) -> Result<bool, ListError> {
        let untouched: Vec<Vec<&Path>> = separated
            .0
            .par_iter()
            .map(|names| {
                let same = |name: &&Name| self.stat_name(&name.path).is_ok_and(|stat| stat == name.stat);
                names.iter().filter(same).map(|name| &*name.path).collect()
            })
            .filter(|names: &Vec<_>| names.len() > 1)
            .collect();
        let parents = self.times_of_parents(untouched.iter().flatten())?;
        for names in &untouched {
            for name in &names[1..] {
                self.hard_link(names[0], name).map_err(fail(name))?;
            }
        }
        self.set_times(&parents)?;
        Ok(!untouched.is_empty())
    }

    /// Makes names one file or several after a command, as the layers do with what it changed. `written` are the paths that its
    /// layer has, with the first name of that file if it is another one; all other names are what they were before. `listing` of the
    /// whole tree follows.
    ///
    /// # Errors
    /// The path that could not be copied or linked; the tree is then half done.
    pub(super) fn settle<E: From<ListError>>(
        &self,
        separated: &mut Separated,
        listing: &mut Listing,
        written: impl Iterator<Item = Result<(PathBuf, Option<PathBuf>), E>>,
    ) -> Result<(), E> {
        // Every file had one name when the command began.
        let linked = hard_links(listing)?;
        let names = separated.0.iter().flatten().map(|name| &name.path).chain(linked.iter().flatten());
        let names: BTreeSet<PathBuf> = names.cloned().collect();
        if names.is_empty() {
            return Ok(());
        }
        let mut first_of: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
        for entry in written {
            let (path, first) = entry?;
            if names.contains(&path) {
                first_of.insert(path.clone(), first.unwrap_or(path));
            }
        }
        Ok(self.settle_names(separated, listing, &linked, &first_of)?)
    }

    fn settle_names(
        &self,
        separated: &mut Separated,
        listing: &mut Listing,
        linked: &[Vec<PathBuf>],
        first_of: &BTreeMap<PathBuf, PathBuf>,
    ) -> Result<(), ListError> {
        let is_written = |path: &PathBuf| first_of.contains_key(path);
        let mixed: Vec<&Vec<PathBuf>> = linked.iter().filter(|names| !names.iter().all(is_written)).collect();
        let parents = self.times_of_parents(mixed.iter().copied().flatten())?;
        for names in &mixed {
            let (written, kept): (Vec<&PathBuf>, Vec<&PathBuf>) = names.iter().partition(|name| is_written(name));
            let Some((stays, others)) = kept.split_first() else { continue };
            for name in others {
                self.copy_file(stays, name).map_err(fail(name))?;
            }
            if let Some((first, others)) = written.split_first() {
                self.copy_file(stays, first).map_err(fail(first))?;
                for name in others {
                    self.hard_link(first, name).map_err(fail(name))?;
                }
            }
        }
        self.set_times(&parents)?;
        for name in mixed.into_iter().flatten() {
            let stat = self.stat_name(name).map_err(fail(name))?;
            listing.replace(name, stat, (stat.inode, stat.links))?;
        }

        let mut made: BTreeMap<&Path, Vec<Name>> = BTreeMap::new();
        for (group, names) in separated.0.iter_mut().enumerate() {
            let many = names.len();
            let mut touched = false;
            for mut name in std::mem::take(names) {
                // Gone, or something else that the layer has.
                let Ok(stat) = self.stat_name(&name.path) else { continue };
                let same = stat == name.stat;
                match first_of.get(&name.path) {
                    Some(first) if same => made.entry(first).or_default().push(name),
                    Some(_) => {}
                    None => {
                        touched |= !same;
                        name.stat = stat;
                        names.push(name);
                    }
                }
            }
            if touched || names.len() != many {
                tell(names, group, listing)?;
            }
        }
        for names in made.into_values() {
            tell(&names, separated.0.len(), listing)?;
            separated.0.push(names);
        }
        Ok(())
    }

    fn stat_name(&self, path: &Path) -> io::Result<Stat> {
        match self.parent_of(path)? {
            Some((dir, name)) => Ok(self.stat_entry(&dir, &name)?),
            None => Err(Errno::ISDIR.into()),
        }
    }

    /// Replaces `path` by a copy of `original`, which was the same file.
    fn copy_file(&self, original: &Path, path: &Path) -> io::Result<()> {
        let metadata = self.lstat(original)?;
        let attributes = Attributes {
            owner: Some((metadata.uid, metadata.gid)),
            mode: (metadata.kind != FileKind::Symlink).then_some(metadata.mode),
            mtime: Some(metadata.mtime),
            xattrs: self.xattrs(original)?,
        };
        match metadata.kind {
            FileKind::File => {
                let data = self.open_file(original)?;
                let Some((dir, name)) = self.parent_of(path)? else { return Err(Errno::ISDIR.into()) };
                remove_entry(&dir, &name)?;
                let copy = File::from(new_file(&dir, &name)?);
                self.is_new(&copy)?;
                Original { file: &data, go_on: &|| Ok(()), seen: None }.copy_to(&copy, &self.disk)?;
                self.apply(Target::Open(copy.as_fd()), metadata.kind, &attributes, Existing::New)
            }
            FileKind::Symlink => {
                let text = self.read_link(original)?;
                self.create(path, NewFile::Symlink(&text), &attributes)
            }
            FileKind::Fifo => self.create(path, NewFile::Fifo, &attributes),
            FileKind::CharDevice => {
                self.create(path, NewFile::CharDevice(metadata.device.0, metadata.device.1), &attributes)
            }
            FileKind::BlockDevice => {
                self.create(path, NewFile::BlockDevice(metadata.device.0, metadata.device.1), &attributes)
            }
            // A directory has one name, and a socket is in no layer.
            FileKind::Directory | FileKind::Socket => Ok(()),
        }
    }

    /// Directories in which names will be replaced, and their times.
    fn times_of_parents(
        &self,
        names: impl Iterator<Item = impl AsRef<Path>>,
    ) -> Result<BTreeMap<PathBuf, (i64, u32)>, ListError> {
        let parents: BTreeSet<PathBuf> =
            names.filter_map(|name| Some(Path::new("/").join(name.as_ref().parent()?))).collect();
        let time = |path: PathBuf| match self.lstat(&path) {
            Ok(metadata) => Ok((path, metadata.mtime)),
            Err(error) => Err(fail(&path)(error)),
        };
        parents.into_iter().map(time).collect()
    }

    fn set_times(&self, directories: &BTreeMap<PathBuf, (i64, u32)>) -> Result<(), ListError> {
        directories.iter().try_for_each(|(path, mtime)| {
            let attributes = Attributes { mtime: Some(*mtime), ..Attributes::default() };
            self.set_attributes(path, &attributes).map_err(fail(path))
        })
    }
}

/// Says in a listing that names are one file.
fn tell(names: &[Name], group: usize, listing: &mut Listing) -> Result<(), ListError> {
    for Name { path, stat } in names {
        let alone = (stat.inode, stat.links);
        let shared = if names.len() > 1 { Separated::shared(group, names.len()) } else { alone };
        listing.replace(path, *stat, shared)?;
    }
    Ok(())
}

/// Names of files that have several, in order.
fn hard_links(listing: &Listing) -> Result<Vec<Vec<PathBuf>>, ListError> {
    let mut groups: BTreeMap<u64, Vec<PathBuf>> = BTreeMap::new();
    for entry in listing.raw() {
        let (path, stat) = entry?;
        if stat.links > 1 && !matches!(stat.kind, FileKind::Directory | FileKind::Socket) {
            groups.entry(stat.inode).or_default().push(path);
        }
    }
    Ok(groups.into_values().filter(|names| names.len() > 1).collect())
}

fn fail(path: &Path) -> impl Fn(io::Error) -> ListError {
    move |source| ListError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (tempfile::TempDir, Rootfs) {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = Rootfs::open(dir.path()).unwrap();
        let put = |path: &str, file: NewFile<'_>, mode| {
            let attributes = Attributes { mode: Some(mode), mtime: Some((7, 8)), ..Attributes::default() };
            rootfs.create(Path::new(path), file, &attributes).unwrap();
        };
        put("d", NewFile::Directory, 0o755);
        put("d/one", NewFile::File(&mut &b"data"[..]), 0o640);
        put("link", NewFile::Symlink(Path::new("d/one")), 0o777);
        put("alone", NewFile::File(&mut &b"data"[..]), 0o600);
        for (from, to) in [("d/one", "d/two"), ("d/one", "three"), ("link", "link2")] {
            rootfs.hard_link(Path::new(from), Path::new(to)).unwrap();
        }
        let attributes = Attributes { mtime: Some((9, 0)), ..Attributes::default() };
        for directory in ["d", "/"] {
            rootfs.set_attributes(Path::new(directory), &attributes).unwrap();
        }
        (dir, rootfs)
    }

    fn links(rootfs: &Rootfs) -> Vec<(String, u64)> {
        let listing = rootfs.list().unwrap();
        let files = listing.iter().map(Result::unwrap).filter(|listed| listed.metadata.kind != FileKind::Directory);
        files.map(|listed| (listed.path.display().to_string(), listed.metadata.links)).collect()
    }

    #[test]
    fn names_are_set_apart_and_joined_again() {
        let (dir, rootfs) = tree();
        let before = rootfs.list().unwrap();
        let mut listing = before.clone();
        let mut separated = Separated::default();
        rootfs.separate(&mut separated, &mut listing, &Cancel::default()).unwrap();
        assert!(links(&rootfs).iter().all(|(_, links)| *links == 1), "{:?}", links(&rootfs));
        for (was, is) in before.iter().map(Result::unwrap).zip(listing.iter().map(Result::unwrap)) {
            let seen = |metadata: crate::rootfs::Metadata| (metadata.mode, metadata.mtime, metadata.size);
            assert_eq!(seen(was.metadata), seen(is.metadata), "{}", was.path.display());
            if is.metadata.kind != FileKind::Directory {
                assert_eq!(was.metadata.links, is.metadata.links, "{}", was.path.display());
            }
        }
        for directory in ["d", "/"] {
            assert_eq!(rootfs.lstat(Path::new(directory)).unwrap().mtime, (9, 0), "{directory}");
        }
        rootfs.separate(&mut separated, &mut listing, &Cancel::default()).unwrap();
        assert_eq!(separated.0.len(), 2, "nothing is set apart twice");

        // Now a command writes through one name, and renames the directory around others.
        rootfs.hard_link(Path::new("link2"), Path::new("d/link3")).unwrap();
        rootfs.remove(Path::new("link2")).unwrap();
        std::io::Write::write_all(&mut rootfs.overwrite(Path::new("three")).unwrap(), b"DATA").unwrap();
        std::fs::rename(dir.path().join("d"), dir.path().join("e")).unwrap();
        assert_eq!(rootfs.read_small(Path::new("e/two"), 9).unwrap(), b"data");
        let mut after = rootfs.list().unwrap();
        separated.follow(&mut after).unwrap();
        let inode = |path: &str| after.get(Path::new(path)).unwrap().unwrap().metadata.inode;
        assert_eq!(inode("e/one"), inode("e/two"));
        assert_ne!(inode("e/one"), inode("three"));
        assert_eq!(inode("e/one"), listing.get(Path::new("d/one")).unwrap().unwrap().metadata.inode);

        let time = Attributes { mtime: Some((9, 0)), ..Attributes::default() };
        rootfs.set_attributes(Path::new("e"), &time).unwrap();
        assert!(rootfs.join(&separated).unwrap());
        let expected = [("alone", 1), ("e/link3", 1), ("e/one", 2), ("e/two", 2), ("link", 1), ("three", 1)];
        assert_eq!(links(&rootfs), expected.map(|(name, links)| (name.to_owned(), links)));
        assert_eq!(rootfs.lstat(Path::new("e")).unwrap().mtime, (9, 0));
        assert!(!rootfs.join(&separated).unwrap(), "what is joined was touched since");
    }

    #[test]
    fn times_that_do_not_come_back_are_noted() {
        let (_dir, rootfs) = tree();
        let mut listing = rootfs.list().unwrap();
        // As where a time that is set loses its fraction.
        let time = Attributes { mtime: Some((8, 0)), ..Attributes::default() };
        rootfs.set_attributes(Path::new("d"), &time).unwrap();
        rootfs.separate(&mut Separated::default(), &mut listing, &Cancel::default()).unwrap();
        assert_eq!(listing.difference(&rootfs.list().unwrap()).unwrap(), None);
    }

    #[test]
    fn cancelling_ends_it() {
        let (_dir, rootfs) = tree();
        let cancel = Cancel::default();
        cancel.cancel();
        let mut listing = rootfs.list().unwrap();
        let error = rootfs.separate(&mut Separated::default(), &mut listing, &cancel).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::Interrupted);
    }
}
