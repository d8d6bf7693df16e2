//! Directories of the tree that no symbolic link leads to. Nearly all calls name files in a few of them; what is known of them
//! need not be asked of the kernel for each. Calls that replace a directory, as far as they name it by a path, take back what is
//! known of it and of what lies below; calls that make and move files leave it.
//!
//! # Limitations
//! What was found holds for [`MOMENT`]: if a directory is replaced by a link to `/proc` in that time, in a way that the
//! supervisor does not see (renameat(2) with a descriptor of a directory), paths through it lead into the tree for the rest
//! of it. The kernel looks the path up itself then, within the tree as always.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::stubs::open_again;

/// How long a directory is taken for what it was: as long as a compiler runs, not as long as a script does.
pub const MOMENT: Duration = Duration::from_millis(50);

/// So many are known at a time.
const MOST: usize = 1024;

/// What is known: physical paths of directories, and until when. With a directory those that it is in are known, for as long.
#[derive(Debug)]
pub struct Ways {
    known: Mutex<HashMap<Vec<u8>, Instant>>,
    moment: Duration,
}

impl Default for Ways {
    fn default() -> Self {
        Self { known: Mutex::default(), moment: MOMENT }
    }
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
    /// Whether an absolute path surely leads where its text says, by what is known: [`Self::of`] for the paths of most calls.
    pub fn is_known(&self, root: &OwnedFd, path: &[u8], follow: bool) -> bool {
        let Some(slash) = last_slash(path) else { return false };
        let parent = &path[..slash];
        let now = Instant::now();
        let known = self.lock();
        let is_known = |path: &[u8]| known.get(path).is_some_and(|until| now < *until);
        if !parent.is_empty() && !is_known(parent) {
            return false;
        }
        // Of directories that files were looked up in nothing need be asked.
        if !follow || is_known(path) {
            return true;
        }
        drop(known);
        !is_link(root, &path[1..])
    }

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
        if is_link(root, last.as_os_str().as_bytes()) { Way::Links } else { Way::Plain(plain) }
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
        let mut key = Vec::with_capacity(directory.as_os_str().len());
        for name in directory.iter().skip(1) {
            key.push(b'/');
            key.extend_from_slice(name.as_bytes());
        }
        let now = Instant::now();
        if self.lock().get(&key).is_some_and(|until| now < *until) {
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
        while let Some(slash) = key.iter().rposition(|&byte| byte == b'/') {
            known.insert(key.clone(), now + self.moment);
            key.truncate(slash);
        }
        Ok(true)
    }

    /// What has this physical path is going to be another: nothing is known of it any more, nor of what lies below.
    pub fn forget(&self, path: &[u8]) {
        let mut known = self.lock();
        if known.contains_key(path) {
            known.retain(|key, _| !(key.starts_with(path) && matches!(key.get(path.len()), None | Some(b'/'))));
        }
    }

    /// Something is going to be another, and it cannot be told what.
    pub fn forget_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Vec<u8>, Instant>> {
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

/// Whether the last name of a path below the root is that of a link.
fn is_link(root: &OwnedFd, below: &[u8]) -> bool {
    let mut text = [std::mem::MaybeUninit::<u8>::uninit(); 1];
    rustix::fs::readlinkat_raw(root, below, &mut text).is_ok()
}

/// Where the last name of an absolute path begins, less one; `None` if the path has empty names, or dots for a name.
fn last_slash(path: &[u8]) -> Option<usize> {
    let mut last = None;
    for (at, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
        match &path[at + 1..] {
            [] | [b'/', ..] | [b'.'] | [b'.', b'/', ..] | [b'.', b'.'] | [b'.', b'.', b'/', ..] => return None,
            _ => last = Some(at),
        }
    }
    last
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn remarkable_texts() {
        for (path, expected) in [
            ("/a", Some(0)),
            ("/a/.b", Some(2)),
            ("/a/..b", Some(2)),
            ("/a/b.", Some(2)),
            ("/a/", None),
            ("//a", None),
            ("/a/.", None),
            ("/a/./b", None),
            ("/a/..", None),
            ("/../a", None),
            ("a", None),
        ] {
            assert_eq!(last_slash(path.as_bytes()), expected, "{path}");
        }
    }

    #[test]
    fn what_is_replaced_is_forgotten_with_all_below() {
        let directory = tempfile::tempdir().expect("directory");
        let at = |path: &str| directory.path().join(path);
        std::fs::create_dir_all(at("a/b/c")).expect("directories");
        std::fs::create_dir(at("ab")).expect("directory");
        symlink("c", at("a/b/link")).expect("link");
        let root = OwnedFd::from(std::fs::File::open(directory.path()).expect("open"));
        let ways = Ways { moment: Duration::from_secs(3600), ..Ways::default() };
        let plain = |path: &str| Way::Plain(path.into());
        let known = |path: &str, follow| ways.is_known(&root, path.as_bytes(), follow);
        assert!(!known("/a/b/x", false), "not asked yet");
        assert_eq!(ways.of(&root, Path::new("/a/./b//c/x"), true), plain("/a/./b//c/x"));
        assert!(known("/a/b/c/x", true) && known("/a/x", true), "with those that it is in");
        assert!(known("/a/b/link", false) && !known("/a/b/link", true), "a link");
        assert_eq!(ways.of(&root, Path::new("/ab/x"), true), plain("/ab/x"));
        ways.forget(b"/a/b");
        assert!(!known("/a/b/c/x", true) && !known("/a/b/x", true), "below");
        assert!(known("/a/x", true) && known("/ab/x", true), "beside");
        std::fs::rename(at("a/b"), at("a/d")).expect("rename");
        symlink("d", at("a/b")).expect("link");
        assert_eq!(ways.of(&root, Path::new("/a/b/c/x"), false), Way::Links);
    }
}
