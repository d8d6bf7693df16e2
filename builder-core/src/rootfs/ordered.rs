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

/// A directory being walked through.
struct Level {
    names: Names,
    /// Of the names that come next; `None` for what vanished.
    stats: VecDeque<Option<Stat>>,
    /// The name that comes next.
    next: usize,
    /// What is in the directories among `stats`, in their order, as far as it was listed ahead.
    ahead: VecDeque<Level>,
}

impl Level {
    /// Lists a directory, and examines what is in it if that is little. One that vanished is empty.
    fn list(rootfs: &Rootfs, path: &Path) -> Result<Self, ListError> {
        let names = match open(rootfs, path)? {
            Some(dir) => Names::read(&dir).map(|names| (dir, names)).map_err(|error| failed(path, error))?,
            None => return Ok(Self::of(Names::default())),
        };
        let (dir, names) = names;
        let mut level = Self::of(names);
        if level.names.len() <= PIECE {
            let stat = |index| stat(rootfs, &dir, path, level.names.get(index));
            level.stats = (0..level.names.len()).map(stat).collect::<Result<_, _>>()?;
        }
        Ok(level)
    }

    fn of(names: Names) -> Self {
        Self { names, stats: VecDeque::new(), next: 0, ahead: VecDeque::new() }
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

    /// Lists the directory `first`, whose stat was taken just now, and some that come after it.
    fn read_ahead(&mut self, rootfs: &Rootfs, path: &Path, first: &OsStr, most: &mut usize) -> Result<(), ListError> {
        let is_directory = |stat: &Option<Stat>| stat.is_some_and(|stat| stat.kind == FileKind::Directory);
        let following = self.stats.iter().zip(self.next..).filter(|(stat, _)| is_directory(stat));
        let following = following.map(|(_, index)| self.names.get(index));
        let wanted: Vec<&OsStr> = std::iter::once(first).chain(following).take(*most).collect();
        let listed: Result<Vec<Self>, ListError> =
            wanted.par_iter().map(|name| Self::list(rootfs, &path.join(name))).collect();
        self.ahead = listed?.into();
        let files: usize = self.ahead.iter().map(|level| level.names.len()).sum();
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

/// Calls `visit` with each path of a tree and what is there, in the order of [`super::path_order`], the root excepted. What
/// vanishes meanwhile is left out.
pub(super) fn walk(
    rootfs: &Rootfs,
    visit: &mut dyn FnMut(&Path, &Stat) -> Result<(), ListError>,
) -> Result<(), ListError> {
    let mut most_ahead = 4;
    let mut path = std::path::PathBuf::new();
    let mut levels = vec![Level::list(rootfs, &path)?];
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
        let name = level.names.get(index);
        path.push(name);
        visit(&path, &stat)?;
        if stat.kind == FileKind::Directory {
            if level.ahead.is_empty() {
                let (directory, name) = (path.parent().unwrap_or(Path::new("")), name.to_owned());
                level.read_ahead(rootfs, directory, &name, &mut most_ahead)?;
            }
            let below = level.ahead.pop_front().expect("the first at least is listed");
            levels.push(below);
            continue;
        }
        path.pop();
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
        walk(&Rootfs::open(dir.path()).unwrap(), &mut |path, stat| {
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
