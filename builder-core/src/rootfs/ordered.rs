//! A walk through a tree in order, on all threads, that holds a small part of it at a time.
//!
//! The directories that come next are listed ahead, several at once, as many as memory allows; a directory with very many
//! files is examined piece by piece. What is held at a time are the names of the directories on the way (about 30 bytes
//! each), and some thousand files.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rayon::prelude::*;
use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::listing::ListError;
use super::stat::Stat;
use super::{FileKind, Rootfs};

/// Files of a directory that are examined at a time.
const PIECE: usize = 4096;

/// Directories that are listed ahead, at most.
const MOST_AHEAD: usize = 64;

/// Files that directories listed ahead may have together before fewer are.
const FILES_AHEAD: usize = 16 * 1024;

/// The names of a directory in byte order.
#[derive(Default)]
struct Names {
    text: Vec<u8>,
    /// Position and length of each in `text`. No file system has longer names than 255 bytes, nor 16 GiB of them in a
    /// directory.
    spans: Vec<(u32, u16)>,
}

impl Names {
    fn len(&self) -> usize {
        self.spans.len()
    }

    fn get(&self, index: usize) -> &OsStr {
        let (start, length) = self.spans[index];
        let start = start as usize;
        OsStr::from_bytes(&self.text[start..start + usize::from(length)])
    }

    fn read(dir: &rustix::fd::OwnedFd) -> Result<Self, Errno> {
        let mut names = Self::default();
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let start = u32::try_from(names.text.len()).map_err(|_| Errno::OVERFLOW)?;
            names.spans.push((start, u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?));
            names.text.extend_from_slice(name);
        }
        let text = &names.text;
        let name = |&(start, length): &(u32, u16)| &text[start as usize..start as usize + usize::from(length)];
        names.spans.sort_unstable_by(|a, b| name(a).cmp(name(b)));
        Ok(names)
    }
}

/// Decides where a walk goes.
pub(crate) trait Guide: Sync {
    /// What is to be known of a directory for what is in it.
    type Directory: Send + Sync;

    /// What is to be known of the directory `path` in a directory of which `around` is known, and whether to look into it.
    fn enter(&self, around: &Self::Directory, path: &Path) -> (Self::Directory, bool);

    /// Whether a directory that may not be read counts as empty.
    fn may_be_closed(&self, directory: &Self::Directory) -> bool;
}

/// Leads everywhere.
pub(super) struct Everywhere;

impl Guide for Everywhere {
    type Directory = ();

    fn enter(&self, (): &(), _path: &Path) -> ((), bool) {
        ((), true)
    }

    fn may_be_closed(&self, (): &()) -> bool {
        false
    }
}

/// A directory being walked through.
struct Level<D> {
    known: D,
    names: Names,
    /// Of the names that come next; `None` for what vanished.
    stats: VecDeque<Option<Stat>>,
    /// The name that comes next.
    next: usize,
    /// What is in the directories among `stats` that are to be entered, with the numbers of their names, as far as it was
    /// listed ahead.
    ahead: VecDeque<(usize, Level<D>)>,
}

impl<D: Send + Sync> Level<D> {
    /// Lists a directory, and examines what is in it if that is little. One that vanished is empty.
    fn list(rootfs: &Rootfs, path: &Path, known: D, guide: &dyn Guide<Directory = D>) -> Result<Self, ListError> {
        let dir = match open(rootfs, path) {
            Ok(Some(dir)) => dir,
            Ok(None) => return Ok(Self::of(known, Names::default())),
            Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied && guide.may_be_closed(&known) => {
                return Ok(Self::of(known, Names::default()));
            }
            Err(error) => return Err(error),
        };
        let names = Names::read(&dir).map_err(|error| failed(path, error))?;
        let mut level = Self::of(known, names);
        if level.names.len() <= PIECE {
            let stat = |index| stat(rootfs, &dir, path, level.names.get(index));
            level.stats = (0..level.names.len()).map(stat).collect::<Result<_, _>>()?;
        }
        Ok(level)
    }

    fn of(known: D, names: Names) -> Self {
        Self { known, names, stats: VecDeque::new(), next: 0, ahead: VecDeque::new() }
    }

    /// Examines the next piece.
    fn examine(&mut self, rootfs: &Rootfs, path: &Path) -> Result<(), ListError> {
        let piece = self.next..self.names.len().min(self.next + PIECE);
        let Some(dir) = open(rootfs, path)? else {
            self.stats = piece.map(|_| None).collect();
            return Ok(());
        };
        let names = &self.names;
        let found: Result<Vec<_>, ListError> =
            piece.into_par_iter().map(|index| stat(rootfs, &dir, path, names.get(index))).collect();
        self.stats = found?.into();
        Ok(())
    }

    /// Lists the directory `first`, the name before the next one, and some that come after it.
    fn read_ahead(
        &mut self,
        rootfs: &Rootfs,
        path: &Path,
        first: (usize, D),
        guide: &dyn Guide<Directory = D>,
        most: &mut usize,
    ) -> Result<(), ListError> {
        let is_directory = |stat: &Option<Stat>| stat.is_some_and(|stat| stat.kind == FileKind::Directory);
        let following = self.stats.iter().zip(self.next..).filter(|(stat, _)| is_directory(stat));
        let following = following.filter_map(|(_, index)| {
            let (known, enter) = guide.enter(&self.known, &path.join(self.names.get(index)));
            enter.then_some((index, known))
        });
        let wanted: Vec<(usize, D)> = std::iter::once(first).chain(following).take(*most).collect();
        let names = &self.names;
        let listed: Result<Vec<_>, ListError> = wanted
            .into_par_iter()
            .map(|(index, known)| Ok((index, Self::list(rootfs, &path.join(names.get(index)), known, guide)?)))
            .collect();
        self.ahead = listed?.into();
        let files: usize = self.ahead.iter().map(|(_, level)| level.names.len()).sum();
        *most = if files > FILES_AHEAD { (*most / 4).max(1) } else { (*most * 2).min(MOST_AHEAD) };
        Ok(())
    }
}

fn failed(path: &Path, error: impl Into<io::Error>) -> ListError {
    ListError { path: path.to_owned(), source: error.into() }
}

/// `None` for what vanished.
fn open(rootfs: &Rootfs, path: &Path) -> Result<Option<rustix::fd::OwnedFd>, ListError> {
    match rootfs.open_place(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(path, error)),
    }
}

/// `None` for what vanished.
fn stat(rootfs: &Rootfs, dir: &rustix::fd::OwnedFd, path: &Path, name: &OsStr) -> Result<Option<Stat>, ListError> {
    match rootfs.stat_entry(dir, name) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(failed(&path.join(name), error)),
    }
}

/// One file on the way.
pub(super) struct Visited<'a, D> {
    pub(super) path: &'a Path,
    pub(super) stat: &'a Stat,
    /// What is known of the directory that it is in, and of itself if it is one.
    pub(super) around: &'a D,
    pub(super) own: Option<&'a D>,
}

/// Calls `visit` with everything below the directory `top` of a tree (plain, without a leading `/`) that `guide` leads
/// to, in the order of [`super::path_order`]. What vanishes meanwhile is left out.
pub(super) fn walk<D: Send + Sync, E: From<ListError>>(
    rootfs: &Rootfs,
    top: &Path,
    known: D,
    guide: &dyn Guide<Directory = D>,
    visit: &mut dyn FnMut(Visited<'_, D>) -> Result<(), E>,
) -> Result<(), E> {
    let mut most_ahead = 4;
    let mut path = top.to_owned();
    let mut levels = vec![Level::list(rootfs, &path, known, guide)?];
    while let Some(level) = levels.last_mut() {
        if level.stats.is_empty() && level.next < level.names.len() {
            level.examine(rootfs, &path)?;
        }
        let Some(stat) = level.stats.pop_front() else {
            levels.pop();
            path.pop();
            continue;
        };
        let index = level.next;
        level.next += 1;
        let Some(stat) = stat else { continue };
        path.push(level.names.get(index));
        if stat.kind != FileKind::Directory {
            visit(Visited { path: &path, stat: &stat, around: &level.known, own: None })?;
            path.pop();
            continue;
        }
        let (own, enter) = guide.enter(&level.known, &path);
        visit(Visited { path: &path, stat: &stat, around: &level.known, own: Some(&own) })?;
        if !enter {
            path.pop();
            continue;
        }
        if level.ahead.is_empty() {
            let directory = path.parent().unwrap_or(Path::new("")).to_owned();
            level.read_ahead(rootfs, &directory, (index, own), guide, &mut most_ahead)?;
        }
        let (listed, below) = level.ahead.pop_front().expect("the first at least is listed");
        debug_assert_eq!(listed, index, "directories are listed ahead in the order of visits");
        levels.push(below);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::path_order;
    use super::*;

    #[test]
    fn wide_and_deep_trees_are_walked_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let put = |path: &str| std::fs::write(dir.path().join(path), "").unwrap();
        let mut expected = 0;
        std::fs::create_dir(dir.path().join("wide")).unwrap();
        for number in 0..PIECE + 100 {
            // Directories among the files of one that is examined in pieces.
            if number % 500 == 0 {
                std::fs::create_dir_all(dir.path().join(format!("wide/n{number}.d/x/y"))).unwrap();
                put(&format!("wide/n{number}.d/x/y/z"));
                expected += 4;
            }
            put(&format!("wide/n{number}"));
            expected += 1;
        }
        for number in 0..3 * MOST_AHEAD {
            std::fs::create_dir_all(dir.path().join(format!("many/d{number}"))).unwrap();
            put(&format!("many/d{number}/f"));
            expected += 2;
        }
        let deep = "deep/".repeat(60);
        std::fs::create_dir_all(dir.path().join(deep)).unwrap();
        let mut found: Vec<std::path::PathBuf> = Vec::new();
        let rootfs = Rootfs::open(dir.path()).unwrap();
        walk(&rootfs, Path::new(""), (), &Everywhere, &mut |Visited { path, stat, .. }| -> Result<(), ListError> {
            let is_directory = dir.path().join(path).symlink_metadata().unwrap().is_dir();
            assert_eq!(stat.kind == FileKind::Directory, is_directory, "{}", path.display());
            found.push(path.to_owned());
            Ok(())
        })
        .unwrap();
        assert_eq!(found.len(), expected + 60 + 2);
        assert!(found.is_sorted_by(|a, b| path_order(a, b).is_lt()));
    }
}
