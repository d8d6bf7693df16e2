//! Directories of the tree that no symbolic link leads to. Nearly all calls name files in a few of them; what is known of them
//! need not be asked of the kernel for each.
//!
//! # Limitations
//! What was found holds for [`MOMENT`]: if a directory is replaced by a link to `/proc` in that time, in a way that the
//! supervisor does not see (renameat(2) with a descriptor of a directory), paths through it lead into the tree for the rest
//! of it. The kernel looks the path up itself then, within the tree as always.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::stubs::open_again;

/// How long a directory is taken for what it was: as long as a compiler runs, not as long as a script does.
const MOMENT: Duration = Duration::from_millis(50);

/// So many are known at a time.
const MOST: usize = 256;

/// What is known.
#[derive(Debug, Default)]
pub struct Ways {
    known: Mutex<BTreeMap<Vec<u8>, Instant>>,
}

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// To what its text says, or to nothing; no link is on it. `..` is taken away.
    Plain(PathBuf),
    /// There are links, or it cannot be told.
    Links,
}

impl Ways {
    /// For an absolute path; of its last name only with `follow` it is asked whether it is a link.
    pub fn of(&self, root: &OwnedFd, path: &Path, follow: bool) -> Way {
        let bytes = path.as_os_str().as_bytes();
        let plain = if bytes.windows(3).any(|three| three == b"/..") {
            match self.without_up(root, path) {
                Some(plain) => plain,
                None => return Way::Links,
            }
        } else {
            path.to_owned()
        };
        let Some((parent, name)) = plain.parent().zip(plain.file_name()) else { return Way::Plain(plain) };
        match self.is_plain(root, parent) {
            Ok(true) => {}
            Ok(false) => return Way::Links,
            // There is nothing.
            Err(_) => return Way::Plain(plain),
        }
        // A slash at the end follows a link.
        let ends_open = matches!(bytes.last(), Some(b'/' | b'.'));
        if !follow && !ends_open {
            return Way::Plain(plain);
        }
        // Without a slash at its end.
        let last = parent.strip_prefix("/").unwrap_or(parent).join(name);
        let mut text = [std::mem::MaybeUninit::<u8>::uninit(); 1];
        match rustix::fs::readlinkat_raw(root, &last, &mut text) {
            Ok(_) => Way::Links,
            Err(_) => Way::Plain(plain),
        }
    }

    /// `..` taken away where what is before it is a directory of that name.
    fn without_up(&self, root: &OwnedFd, path: &Path) -> Option<PathBuf> {
        let mut plain = PathBuf::from("/");
        for part in path.components() {
            match part {
                Component::Normal(name) => plain.push(name),
                Component::ParentDir => {
                    if !self.is_plain(root, &plain).ok()? {
                        return None;
                    }
                    plain.pop();
                }
                _ => {}
            }
        }
        Some(plain)
    }

    /// Whether a path without `..` is a directory that no link leads to; `Err` if there is none at all.
    fn is_plain(&self, root: &OwnedFd, directory: &Path) -> Result<bool, Errno> {
        let key = directory.as_os_str().as_bytes();
        let now = Instant::now();
        if let Some(until) = self.lock().get(key)
            && now < *until
        {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match open_plain(root, directory, flags) {
            Ok(_) => {}
            Err(errno @ Errno::NOENT) => return Err(errno),
            Err(_) => return Ok(false),
        }
        let mut known = self.lock();
        if known.len() >= MOST {
            known.retain(|_, until| now < *until);
            if known.len() >= MOST {
                known.clear();
            }
        }
        known.insert(key.to_vec(), now + MOMENT);
        Ok(true)
    }

    /// Links or names have been made: nothing is known any more.
    pub fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Opens a path of the tree; a link on the way is `ELOOP`.
fn open_plain(root: &OwnedFd, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    let below = path.strip_prefix("/").unwrap_or(path);
    let below = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_SYMLINKS;
    open_again(root.as_fd(), below, flags, Mode::empty(), how)
}
