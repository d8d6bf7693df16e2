//! What a layer's whiteouts and opaque markers do: remove, or leave a mark for overlayfs.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use super::FileKind;
use super::attributes::{Handle, Target};
use super::overlay::make_whiteout;
use super::pretend::Existing;
use super::stat::Stat;
use super::unpack::{UnpackError, Unpacker, Whiteouts, entry_error, hash, implied_attributes};

impl Unpacker<'_> {
    /// Hides what the lower layers have under this name of the current directory.
    pub(super) fn hide(&mut self, name: &OsStr) -> Result<(), UnpackError> {
        let (dir, path) = self.place(name);
        let fail = |error: io::Error| entry_error(&path, None, error);
        let found = match Stat::entry(&dir, name) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(fail(error.into())),
        };
        match self.whiteouts {
            Whiteouts::Apply => match found {
                None => Ok(()),
                Some(_) if !self.brought.contains(&hash(&path)) => self.vacate(&dir, name, &path),
                Some(found) if found.kind == FileKind::Directory => {
                    self.renew(&dir, name, &path)?;
                    self.remove_lower(path)
                }
                Some(_) => Ok(()),
            },
            Whiteouts::Keep(_) => match found {
                // A hard link of this layer that waits for its target.
                None if self.brought.contains(&hash(&path)) => Ok(()),
                None => {
                    make_whiteout(&dir, name).map_err(|error| fail(error.into()))?;
                    self.pending.whiteouts.insert(path);
                    Ok(())
                }
                Some(found) if found.kind == FileKind::Directory => {
                    let handle = Handle::entry(&dir, name, FileKind::Directory).map_err(|error| fail(error.into()))?;
                    self.mark_opaque(handle.target(), &path)?;
                    self.pending.renewed.insert(path);
                    Ok(())
                }
                Some(_) => Ok(()),
            },
        }
    }

    /// Hides all that the lower layers have in the current directory.
    pub(super) fn hide_all(&mut self) -> Result<(), UnpackError> {
        let top = self.levels.last().expect("the root is never popped").clone();
        match self.whiteouts {
            Whiteouts::Apply => self.remove_lower(top.path),
            Whiteouts::Keep(_) if top.path.as_os_str().is_empty() => {
                self.pending.opaque_root = true;
                Ok(())
            }
            Whiteouts::Keep(_) => {
                let dir = top.dir.as_ref().expect("enter() opens the last level");
                let handle = Handle::entry(dir, OsStr::new(""), FileKind::Directory)
                    .map_err(|error| entry_error(&top.path, None, error.into()))?;
                self.mark_opaque(handle.target(), &top.path)
            }
        }
    }

    pub(super) fn mark_opaque(&self, target: Target<'_>, path: &Path) -> Result<(), UnpackError> {
        match self.whiteouts {
            Whiteouts::Apply => Ok(()),
            Whiteouts::Keep(marks) => marks.set_opaque(target).map_err(|error| entry_error(path, None, error)),
        }
    }

    /// Makes a directory that no entry describes as if it were new, because what lower layers had there is hidden.
    pub(super) fn renew(&mut self, dir: &OwnedFd, name: &OsStr, path: &Path) -> Result<(), UnpackError> {
        if !self.pending.implied.contains(path) {
            return Ok(());
        }
        let renew = || {
            let handle = Handle::entry(dir, name, FileKind::Directory)?;
            self.rootfs.retain_xattrs(handle.target(), &[])?;
            self.rootfs.apply(handle.target(), FileKind::Directory, &implied_attributes(), Existing::Changed)
        };
        renew().map_err(|error| entry_error(path, None, error))?;
        self.times.insert(path.to_owned(), (0, 0));
        Ok(())
    }

    /// Removes all in a directory that this layer did not bring.
    pub(super) fn remove_lower(&mut self, top: PathBuf) -> Result<(), UnpackError> {
        let mut left = vec![top];
        while let Some(path) = left.pop() {
            let fail = |error: io::Error| entry_error(&path, None, error);
            let dir = self.open_plain(&path).map_err(fail)?;
            for (name, kind) in self.rootfs.read_dir(&Path::new("/").join(&path)).map_err(fail)? {
                let below = path.join(&name);
                if !self.brought.contains(&hash(&below)) {
                    self.vacate(&dir, &name, &below)?;
                } else if kind == FileKind::Directory {
                    self.renew(&dir, &name, &below)?;
                    left.push(below);
                }
            }
        }
        Ok(())
    }
}
