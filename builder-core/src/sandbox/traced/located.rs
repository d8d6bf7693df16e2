//! What is done at the place where a path leads: opened, looked at, named by its directory, and told of when it changes.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::held::Directory;
use super::view::{Kind, MAX_PATH, Place, STAT, View, beneath, key, open_beneath, own_path, read_link, statx};
use crate::rootfs::Touched;

/// Why it is not known what changed.
pub const LONG: &str = "something changed whose path is too long";

impl Place<'_> {
    /// Opens it. A link at its end is `ELOOP`, unless with `O_PATH` and `O_NOFOLLOW`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
        match self.directory {
            Some(directory) => beneath(directory, &self.path, flags, mode),
            None => open_beneath(self.mount, &self.path[self.covered..], flags, mode),
        }
    }

    /// The physical path, if it is known.
    pub fn physical(&self) -> Option<Vec<u8>> {
        self.directory.is_none().then(|| self.path.clone())
    }

    /// Opens the directory that it is in, and says its name there.
    ///
    /// # Errors
    /// `EBUSY` for what something is mounted on; what the kernel says.
    pub fn parent(&self, view: &View) -> Result<(Arc<Directory>, &OsStr), Errno> {
        if self.directory.is_none() && (self.path.len() == self.covered || view.is_covered(&self.path)) {
            return Err(Errno::BUSY);
        }
        if let Some(held) = self.held(view)? {
            return Ok(held);
        }
        let slash = self.path.iter().rposition(|&byte| byte == b'/').ok_or(Errno::EXIST)?;
        let name = OsStr::from_bytes(&self.path[slash + 1..]);
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let parent = match self.directory {
            Some(directory) => beneath(directory, &self.path[..slash], flags, Mode::empty())?,
            None => open_beneath(self.mount, &self.path[self.covered..slash], flags, Mode::empty())?,
        };
        Ok((Arc::new(parent.into()), name))
    }

    /// The directory of the tree that it is in, held open, and its name there; `None` if it is in no such one.
    fn held(&self, view: &View) -> Result<Option<(Arc<Directory>, &OsStr)>, Errno> {
        if self.directory.is_some() || self.mount.kind != Kind::Tree || self.path.len() > MAX_PATH {
            return Ok(None);
        }
        let Some(slash) = self.path.iter().rposition(|&byte| byte == b'/') else { return Ok(None) };
        let directory = &self.path[..slash];
        let open = || open_beneath(self.mount, directory, OFlags::PATH | OFlags::DIRECTORY, Mode::empty());
        Ok(Some((view.held.get(directory, open)?, OsStr::from_bytes(&self.path[slash + 1..]))))
    }

    /// With which it is opened to be looked at: a link that is to be followed must be an error, so that it is.
    pub fn flags(&self, follow: bool) -> OFlags {
        let mut flags = OFlags::PATH;
        flags.set(OFlags::NOFOLLOW, !follow && !self.slash);
        flags.set(OFlags::DIRECTORY, self.slash);
        flags
    }

    /// What is known of it. A link at its end is `ELOOP` if it is to be followed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn stat(&self, view: &View, follow: bool) -> Result<Statx, Errno> {
        let Some((parent, name)) = self.held(view)? else {
            return statx(self.open(self.flags(follow), Mode::empty())?);
        };
        let stat = rustix::fs::statx(&*parent, name, AtFlags::SYMLINK_NOFOLLOW, STAT)?;
        match u32::from(stat.stx_mode) & libc::S_IFMT {
            libc::S_IFLNK if follow || self.slash => Err(Errno::LOOP),
            libc::S_IFDIR => Ok(stat),
            _ if self.slash => Err(Errno::NOTDIR),
            _ => Ok(stat),
        }
    }

    /// The text of the link that it is.
    ///
    /// # Errors
    /// `EINVAL` if it is none; what the kernel says.
    pub fn read_link(&self, view: &View) -> Result<Vec<u8>, Errno> {
        let text = match self.held(view)? {
            Some((parent, name)) => rustix::fs::readlinkat(&*parent, name, Vec::new())?,
            None => return read_link(&self.open(OFlags::PATH | OFlags::NOFOLLOW, Mode::empty())?),
        };
        Ok(text.into_bytes())
    }

    /// Tells that what is there changed, is new or is gone.
    pub fn tell(&self, view: &View) {
        match self.directory {
            None if self.mount.kind == Kind::Tree => view.touched.entry(&self.path),
            None => {}
            Some(_) => view.touched.lost(LONG),
        }
    }

    /// Tells that everything at and below it may be another.
    pub fn tell_subtree(&self, view: &View) {
        match self.directory {
            None if self.mount.kind == Kind::Tree => view.touched.subtree(&self.path),
            None => {}
            Some(_) => view.touched.lost(LONG),
        }
    }

    /// Gives files of ours on the way the rights that root does not need; whether there was one without.
    pub fn repair(&self, touched: &Touched) -> bool {
        let Some(owners) = &self.mount.owners else { return false };
        let mut ends: Vec<usize> = (self.covered + 1..self.path.len()).filter(|&at| self.path[at] == b'/').collect();
        ends.push(self.path.len());
        let mut repaired = false;
        for end in ends {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let Ok(fd) = open_beneath(self.mount, &self.path[self.covered.min(end)..end], flags, Mode::empty()) else {
                break;
            };
            let Ok(stat) = statx(&fd) else { break };
            let mode = u32::from(stat.stx_mode);
            let needed = match mode & libc::S_IFMT {
                libc::S_IFDIR => 0o700,
                libc::S_IFLNK => continue,
                _ => 0o600,
            };
            if mode & needed == needed {
                continue;
            }
            let key = key(&stat);
            if owners.is_lent(key) {
                continue;
            }
            let shown = owners.facts(key).mode(mode & 0o7777);
            let real = mode & 0o7777 | needed;
            if rustix::fs::chmod(own_path(fd.as_fd()), Mode::from_raw_mode(real)).is_err() {
                break;
            }
            owners.set_mode(key, shown, real);
            match self.directory {
                None if self.mount.kind == Kind::Tree => touched.entry(&self.path[..end]),
                None => {}
                Some(_) => touched.lost(LONG),
            }
            repaired = true;
        }
        repaired
    }
}
