//! Directories of others that are in a tree for as long as a command runs: written down before they are moved, so that they
//! are found and moved back when a builder was killed meanwhile.
//!
//! ```text
//! <home>        the directory; missing while it is in a tree
//! <home>.away   symbolic link to where it is: relative, as the volume may be mounted elsewhere the next time
//! ```
//!
//! Who moves a directory holds flock(2) on it from before it is written down until it is back, and so does the keeper of the
//! command, which outlives a builder that is killed. Where a directory is both at home and written down it was never moved.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags, RenameFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::stubs::open_again;

/// Where a directory is that may be in a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whereabouts {
    /// At home.
    Home,
    /// In the tree of a command that runs.
    Away,
    /// Nowhere: it was never made, or a command has removed it before its builder was killed.
    Nowhere,
}

/// Finds a directory, and moves it back if whoever has moved it away is gone.
///
/// # Errors
/// What the kernel says.
pub fn bring_home(home: &Path) -> io::Result<Whereabouts> {
    loop {
        if fs::symlink_metadata(home).is_ok() {
            return Ok(Whereabouts::Home);
        }
        let place = match fs::read_link(mark(home)) {
            Ok(place) => place,
            // Brought home between the two looks, or never there.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(if fs::symlink_metadata(home).is_ok() { Whereabouts::Home } else { Whereabouts::Nowhere });
            }
            Err(error) => return Err(error),
        };
        let Some((parent, directory)) = find(home, &place)? else {
            if fs::symlink_metadata(home).is_ok() {
                return Ok(Whereabouts::Home);
            }
            returned(home)?;
            return Ok(Whereabouts::Nowhere);
        };
        match rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Whereabouts::Away),
            Err(errno) => return Err(errno.into()),
        }
        // What was opened may have been the tree's own directory, which has made place since.
        let name = place.file_name().ok_or(Errno::INVAL)?;
        let (now, locked) =
            (rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW), rustix::fs::fstat(&directory)?);
        if !now.is_ok_and(|now| (now.st_dev, now.st_ino) == (locked.st_dev, locked.st_ino)) {
            continue;
        }
        match rustix::fs::renameat_with(&parent, name, CWD, home, RenameFlags::NOREPLACE) {
            Ok(()) => {
                tracing::debug!(home = %home.display(), from = %place.display(), "moved back after a builder was killed");
                returned(home)?;
                return Ok(Whereabouts::Home);
            }
            Err(Errno::EXIST | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// The directory at `place`, which is relative to the one that `home` is in, and its parent. No link of the tree is followed.
fn find(home: &Path, place: &Path) -> io::Result<Option<(OwnedFd, OwnedFd)>> {
    let start = rustix::fs::open(around(home), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |path: &Path| match open_again(start.as_fd(), path, flags, Mode::empty(), how) {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        result => result.map(Some),
    };
    let parent = place.parent().ok_or(Errno::INVAL)?;
    Ok(open(parent)?.zip(open(place)?))
}

/// Writes down that the directory is going to be at `place`, an absolute path without symbolic links.
///
/// # Errors
/// What the kernel says.
pub fn leaving(home: &Path, place: &Path) -> io::Result<()> {
    returned(home)?;
    symlink(relative(&fs::canonicalize(around(home))?, place), mark(home))
}

/// The directory is at home again, and nothing is written down any more.
///
/// # Errors
/// What the kernel says.
pub fn returned(home: &Path) -> io::Result<()> {
    match fs::remove_file(mark(home)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn mark(home: &Path) -> PathBuf {
    let mut name = home.file_name().map(OsString::from).unwrap_or_default();
    name.push(".away");
    home.with_file_name(name)
}

fn around(home: &Path) -> &Path {
    home.parent().unwrap_or(Path::new("/"))
}

/// How `to` is reached from the directory `from`, both absolute.
fn relative(from: &Path, to: &Path) -> PathBuf {
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| Path::new(".."));
    up.chain(to.components().skip(common).map(|part| Path::new(part.as_os_str()))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_again() {
        let work = tempfile::tempdir().expect("directory");
        let top = fs::canonicalize(work.path()).expect("its name");
        let (home, tree) = (top.join("mounts/7/data"), top.join("trees/tmp/x"));
        fs::create_dir_all(&home).expect("home");
        fs::create_dir_all(tree.join("root/.cache")).expect("tree");
        fs::write(home.join("f"), "kept").expect("content");
        let there = || bring_home(&home).expect("looked");
        assert_eq!(there(), Whereabouts::Home);

        // Killed before it was moved: what is in the tree is the tree's own.
        let place = tree.join("root/.cache");
        leaving(&home, &place).expect("written down");
        assert_eq!(there(), Whereabouts::Home);
        assert!(place.exists());

        let lock = fs::File::open(&home).expect("open");
        rustix::fs::flock(&lock, FlockOperation::LockExclusive).expect("locked");
        fs::remove_dir(&place).expect("made place");
        leaving(&home, &place).expect("written down again");
        fs::rename(&home, &place).expect("moved");
        assert_eq!(there(), Whereabouts::Away);
        drop(lock);
        // The volume may be somewhere else by then.
        let elsewhere = work.path().join("elsewhere");
        fs::create_dir(&elsewhere).expect("directory");
        for name in ["mounts", "trees"] {
            fs::rename(top.join(name), elsewhere.join(name)).expect("moved");
        }
        let home = elsewhere.join("mounts/7/data");
        assert_eq!(bring_home(&home).expect("looked"), Whereabouts::Home);
        assert_eq!(fs::read(home.join("f")).expect("content"), b"kept");
        assert!(!mark(&home).is_symlink());

        // Removed by the command.
        let home = elsewhere.join("mounts/7/none");
        assert_eq!(bring_home(&home).expect("looked"), Whereabouts::Nowhere);
        leaving(&home, &elsewhere.join("trees/tmp/x/none")).expect("written down");
        assert_eq!(bring_home(&home).expect("looked"), Whereabouts::Nowhere);
        assert!(!mark(&home).is_symlink());
    }

    #[test]
    fn links_of_the_tree_are_not_followed() {
        let work = tempfile::tempdir().expect("directory");
        let top = fs::canonicalize(work.path()).expect("its name");
        fs::create_dir_all(top.join("victim/c")).expect("victim");
        fs::create_dir_all(top.join("tree")).expect("tree");
        symlink("../victim", top.join("tree/a")).expect("link");
        leaving(&top.join("data"), &top.join("tree/a/c")).expect("written down");
        assert_eq!(bring_home(&top.join("data")).expect("looked"), Whereabouts::Nowhere);
        assert!(top.join("victim/c").exists());
    }

    #[test]
    fn ways_from_here_to_there() {
        for (from, to, expected) in [("/w/m/1", "/w/t/x", "../../t/x"), ("/a", "/a/b", "b"), ("/a/b", "/c", "../../c")]
        {
            assert_eq!(relative(Path::new(from), Path::new(to)), Path::new(expected), "{from} {to}");
        }
    }
}
