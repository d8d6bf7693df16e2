//! How unpacking gets to the directory of an entry: along open directories, through links, making what is missing.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::FileKind;
use super::resolve::PLACE;
use super::stat::Stat;
use super::unpack::{
    EntryProblem, Level, UnpackError, Unpacker, entry_error, hash, implied_attributes, is_setgid, stat,
};

/// Open directories of the current path; deeper paths open theirs again.
const MAX_OPEN_LEVELS: usize = 64;

impl Unpacker<'_> {
    /// Makes the directory with these names (as in the tar) the current one; makes what is missing.
    pub(super) fn enter(&mut self, names: &[&OsStr]) -> Result<(), UnpackError> {
        let same = self.levels[1..].iter().zip(names).take_while(|(level, name)| level.name == **name).count();
        self.levels.truncate(same + 1);
        for name in &names[same..] {
            self.reopen_last()?;
            let level = self.descend(name)?;
            self.brought.insert(hash(&level.path));
            self.levels.push(level);
            if self.levels.len() > MAX_OPEN_LEVELS {
                let far = self.levels.len() - MAX_OPEN_LEVELS;
                self.levels[far].dir = None;
            }
        }
        self.reopen_last()
    }

    pub(super) fn reopen_last(&mut self) -> Result<(), UnpackError> {
        let last = self.levels.last().expect("the root is never popped");
        if last.dir.is_none() {
            let path = last.path.clone();
            let dir = self.open_plain(&path).map_err(|error| entry_error(&path, None, error))?;
            self.levels.last_mut().expect("seen above").dir = Some(Arc::new(dir));
        }
        Ok(())
    }

    pub(super) fn open_plain(&self, path: &Path) -> io::Result<OwnedFd> {
        self.rootfs.open_place(path, PLACE | OFlags::NOFOLLOW | OFlags::DIRECTORY, Mode::empty())
    }

    pub(super) fn descend(&mut self, name: &OsStr) -> Result<Level, UnpackError> {
        let (dir, path) = self.place(name);
        let level = match self.open_or_make(&dir, name, &path)? {
            Some((fd, setgid)) => Level { name: name.to_owned(), path, dir: Some(Arc::new(fd)), setgid },
            None => {
                // A link: on from the root along the plain path that it stands for.
                let linked = self.rootfs.resolve(&Path::new("/").join(&path), true);
                let linked = linked.map_err(|error| entry_error(&path, None, error))?;
                let mut plain = PathBuf::new();
                let mut at = Arc::clone(self.levels[0].dir.as_ref().expect("the root stays open"));
                let mut setgid = self.levels[0].setgid;
                for component in linked.components() {
                    let Component::Normal(step) = component else { continue };
                    plain.push(step);
                    let Some(opened) = self.open_or_make(&at, step, &plain)? else {
                        // Resolved paths hold no links, unless one appeared by what was just made.
                        let problem = EntryProblem::Parent(path);
                        return Err(UnpackError::Entry { entry: plain, problem });
                    };
                    self.brought.insert(hash(&plain));
                    (at, setgid) = (Arc::new(opened.0), opened.1);
                }
                Level { name: name.to_owned(), path: plain, dir: Some(at), setgid }
            }
        };
        Ok(level)
    }

    /// Opens a directory in a directory, made if it is missing or something else that is no link; `None` for a link.
    pub(super) fn open_or_make(
        &mut self,
        dir: &OwnedFd,
        name: &OsStr,
        path: &Path,
    ) -> Result<Option<(OwnedFd, bool)>, UnpackError> {
        let flags = PLACE | OFlags::NOFOLLOW | OFlags::DIRECTORY;
        let fail = |error: Errno| entry_error(path, None, error.into());
        match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            Ok(fd) => {
                let found = stat(&fd, path)?;
                // Who adds an entry changes the time, which the layer did not ask for.
                self.times.entry(path.to_owned()).or_insert(found.mtime);
                if !self.brought.contains(&hash(path)) {
                    self.pending.implied.insert(path.to_owned());
                }
                return Ok(Some((fd, is_setgid(&found))));
            }
            Err(Errno::NOENT) => {}
            Err(Errno::NOTDIR | Errno::LOOP) => {
                if Stat::entry(dir, name).map_err(fail)?.kind == FileKind::Symlink {
                    return Ok(None);
                }
            }
            Err(error) => return Err(fail(error)),
        }
        let hides = self.directory(dir, name, path, &implied_attributes())?;
        self.times.insert(path.to_owned(), (0, 0));
        if !hides {
            self.pending.implied.insert(path.to_owned());
        }
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).map_err(fail)?;
        Ok(Some((fd, false)))
    }
}
