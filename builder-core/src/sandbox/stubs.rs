//! Mount points in the tree: made where they are missing, removed afterwards, without a trace (checklist R-07).
//!
//! What is made is empty. What is still empty when the command has ended is removed again, innermost first; directories in
//! which it has put something stay, as with BuildKit. A directory that got a stub keeps its old modification time, and gets it
//! back after the removal unless the command itself changed the directory.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, UTIME_OMIT};
use rustix::io::Errno;

use super::{SandboxError, setup};

/// Symbolic links that are followed in one path: path_resolution(7).
const LINKS: usize = 40;

/// Where a path of the image leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path without symbolic links.
    pub path: PathBuf,
    /// What is there; `None` if nothing is.
    pub kind: Option<FileType>,
    /// It leads into another mount, which covers what the tree has there; nothing is known about it.
    pub covered: bool,
    /// Permission bits of what is there.
    pub mode: u32,
}

/// Finds where `path` leads in the tree `root`, every link followed within it, given that `mounts` will cover what is there.
///
/// # Errors
/// `ELOOP`, `ENOTDIR`, and what the kernel says.
pub fn locate(root: BorrowedFd<'_>, path: &Path, mounts: &[PathBuf]) -> io::Result<Place> {
    let mut rest: Vec<OsString> = names(path).rev().collect();
    let mut at = PathBuf::from("/");
    let mut kind = Some(FileType::Directory);
    let mut mode = 0;
    let mut links = 0;
    while let Some(name) = rest.pop() {
        if name == ".." {
            at.pop();
            kind = Some(FileType::Directory);
            continue;
        }
        let next = at.join(&name);
        if mounts.contains(&next) {
            let path = rest.iter().rev().fold(next, |path, name| path.join(name));
            return Ok(Place { path, kind: None, covered: true, mode: 0 });
        }
        if kind.is_none() {
            at = next;
            continue;
        }
        match open_path(root, &next) {
            Ok(found) => {
                let stat = rustix::fs::fstat(&found)?;
                let found_kind = FileType::from_raw_mode(stat.st_mode);
                if found_kind.is_symlink() {
                    links += 1;
                    if links > LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let text = rustix::fs::readlinkat(&found, c"", Vec::new())?;
                    let text = Path::new(OsStr::from_bytes(text.as_bytes())).to_owned();
                    if text.has_root() {
                        at = PathBuf::from("/");
                    }
                    rest.extend(names(&text).rev());
                    continue;
                }
                if !found_kind.is_dir() && !rest.is_empty() {
                    return Err(Errno::NOTDIR.into());
                }
                kind = Some(found_kind);
                mode = stat.st_mode & 0o7777;
            }
            Err(Errno::NOENT) => kind = None,
            Err(errno) => return Err(errno.into()),
        }
        at = next;
    }
    Ok(Place { path: at, kind, covered: false, mode })
}

fn names(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    })
}

/// Opens a path of the tree; a symbolic link at its end is opened itself. No path gets out, whatever is in it.
fn open_path(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    open_in(root, path, flags)
}

pub fn open_directory(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd, Errno> {
    open_in(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)
}

fn open_in(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    open_again(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
}

/// openat2(2), until the kernel is sure.
pub fn open_again(
    root: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    loop {
        match rustix::fs::openat2(root, path, flags, mode, resolve) {
            // Somewhere on this machine something was renamed or mounted meanwhile: openat2(2).
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Directories that a RUN always has; made where missing, and they stay (checklist B-06).
pub const STANDARD: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Makes what is missing of [`STANDARD`], owned by `owner`; their paths without symbolic links.
///
/// # Errors
/// If something else is there, and what the kernel says.
pub fn create_standard(root: BorrowedFd<'_>, owner: Option<(u32, u32)>) -> Result<Vec<PathBuf>, SandboxError> {
    let create = |path: &str| {
        let place = setup(format!("look up `{path}` in the image"), locate(root, Path::new(path), &[]))?;
        let made = match place.kind {
            Some(FileType::Directory) => Ok(()),
            Some(_) => Err(io::ErrorKind::NotADirectory.into()),
            None => create_directories(root, &place.path, owner),
        };
        setup(format!("make the directory `{path}`"), made)?;
        Ok(place.path)
    };
    STANDARD.into_iter().map(create).collect()
}

/// Makes missing directories down to `path`, which must be as [`locate`] gives it, 0755 and owned by `owner`, if one is given.
///
/// # Errors
/// What the kernel says.
pub fn create_directories(root: BorrowedFd<'_>, path: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    for directory in missing(root, path)? {
        let (parent, name) = open_parent(root, &directory)?;
        rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
        let made = open_directory(root, &directory)?;
        if let Some((uid, gid)) = owner {
            let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
            rustix::fs::fchown(&made, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
    }
    Ok(())
}

/// Those of the ancestors of `path` and itself that do not exist, outermost first.
fn missing(root: BorrowedFd<'_>, path: &Path) -> io::Result<Vec<PathBuf>> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match open_path(root, ancestor) {
            Ok(_) => break,
            Err(Errno::NOENT) => missing.push(ancestor.to_owned()),
            Err(errno) => return Err(errno.into()),
        }
    }
    missing.reverse();
    Ok(missing)
}

fn open_parent<'a>(root: BorrowedFd<'_>, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
    let (parent, name) = path.parent().zip(path.file_name()).ok_or(Errno::INVAL)?;
    Ok((open_directory(root, parent)?, name))
}

/// The stubs of one run.
#[derive(Debug, Default)]
pub struct Stubs {
    made: Vec<Stub>,
}

#[derive(Debug)]
struct Stub {
    path: PathBuf,
    directory: bool,
}

impl Stubs {
    /// Makes `path`, which must be as [`locate`] gives it, and its missing parents.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(&mut self, root: BorrowedFd<'_>, path: &Path, directory: bool) -> io::Result<()> {
        for made in missing(root, path)? {
            let directory = directory || made != path;
            let (parent, name) = open_parent(root, &made)?;
            let before = mtime(&rustix::fs::fstat(&parent)?);
            if directory {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o700))?;
                rustix::fs::fchmod(open_directory(root, &made)?, Mode::from_raw_mode(0o755))?;
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o600))?;
                rustix::fs::fchmod(file, Mode::from_raw_mode(0o755))?;
            }
            self.made.push(Stub { path: made, directory });
            // At once: the command sees the old time, and whether it changes the directory can be told later.
            set_mtime(&parent, before)?;
        }
        Ok(())
    }

    /// What was made.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.made.iter().map(|stub| stub.path.as_path())
    }

    /// Removes what is still empty, last made first.
    ///
    /// # Errors
    /// What the kernel says. Stubs that are gone or were replaced are no error.
    pub fn remove(self, root: BorrowedFd<'_>) -> Result<(), SandboxError> {
        for stub in self.made.into_iter().rev() {
            setup(format!("remove the mount point `{}`", stub.path.display()), stub.remove(root))?;
        }
        Ok(())
    }
}

impl Stub {
    fn remove(&self, root: BorrowedFd<'_>) -> io::Result<()> {
        let (parent, name) = match open_parent(root, &self.path) {
            Ok(parent) => parent,
            Err(error) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        let ours = if self.directory { kind.is_dir() } else { kind.is_file() && stat.st_size == 0 };
        if !ours {
            return Ok(());
        }
        let now = mtime(&rustix::fs::fstat(&parent)?);
        let how = if self.directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(&parent, name, how) {
            Ok(()) => {}
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        // `now` is what the command left: the old time if it did not touch the directory.
        set_mtime(&parent, now)
    }
}

fn gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw_os_error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

pub fn mtime(stat: &Stat) -> (i64, i64) {
    (stat.st_mtime, stat.st_mtime_nsec as i64)
}

pub fn set_mtime(directory: impl AsFd, (seconds, nanoseconds): (i64, i64)) -> io::Result<()> {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ },
    };
    Ok(rustix::fs::futimens(directory, &times)?)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    struct Tree {
        directory: tempfile::TempDir,
        root: OwnedFd,
    }

    impl Tree {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("temporary directory");
            let root = OwnedFd::from(fs::File::open(directory.path()).expect("open"));
            Self { directory, root }
        }

        fn path(&self, path: &str) -> PathBuf {
            self.directory.path().join(path)
        }

        fn mtime(&self, path: &str) -> (i64, i64) {
            mtime(&rustix::fs::stat(self.path(path)).expect(path))
        }

        fn listing(&self) -> Vec<String> {
            let mut found = Vec::new();
            let mut todo = vec![self.directory.path().to_owned()];
            while let Some(directory) = todo.pop() {
                for entry in fs::read_dir(directory).expect("list") {
                    let path = entry.expect("entry").path();
                    found.push(path.strip_prefix(self.directory.path()).expect("inside").display().to_string());
                    if path.is_dir() && !path.is_symlink() {
                        todo.push(path);
                    }
                }
            }
            found.sort();
            found
        }
    }

    #[test]
    fn places() {
        let tree = Tree::new();
        fs::create_dir_all(tree.path("usr/lib")).expect("mkdir");
        fs::create_dir(tree.path("etc")).expect("mkdir");
        fs::write(tree.path("etc/file"), "").expect("write");
        symlink("usr/lib", tree.path("lib")).expect("symlink");
        symlink("/lib/../../../../etc", tree.path("up")).expect("symlink");
        symlink("../run/missing/x", tree.path("etc/resolv.conf")).expect("symlink");
        symlink("loop", tree.path("loop")).expect("symlink");

        #[track_caller]
        fn check(tree: &Tree, path: &str, mounts: &[&str], expected: &str, kind: Option<FileType>, covered: bool) {
            let mounts: Vec<_> = mounts.iter().map(PathBuf::from).collect();
            let place = locate(tree.root.as_fd(), Path::new(path), &mounts).expect(path);
            assert_eq!(
                (place.path.as_path(), place.kind, place.covered),
                (Path::new(expected), kind, covered),
                "{path}"
            );
        }
        let (dir, file) = (Some(FileType::Directory), Some(FileType::RegularFile));
        check(&tree, "/", &[], "/", dir, false);
        check(&tree, "/lib/x", &[], "/usr/lib/x", None, false);
        check(&tree, "lib/", &[], "/usr/lib", dir, false);
        check(&tree, "/up/file", &[], "/etc/file", file, false);
        check(&tree, "/etc/resolv.conf", &[], "/run/missing/x", None, false);
        check(&tree, "/../../etc/./file", &[], "/etc/file", file, false);
        check(&tree, "/none/a/../b", &[], "/none/b", None, false);
        check(&tree, "/lib/a/b", &["/usr/lib"], "/usr/lib/a/b", None, true);
        check(&tree, "/lib", &["/usr/lib"], "/usr/lib", None, true);
        check(&tree, "/library", &["/lib"], "/library", None, false);
        let error = locate(tree.root.as_fd(), Path::new("/loop"), &[]).expect_err("a loop");
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        let error = locate(tree.root.as_fd(), Path::new("/etc/file/x"), &[]).expect_err("not a directory");
        assert_eq!(error.raw_os_error(), Some(Errno::NOTDIR.raw_os_error()));
    }

    #[test]
    fn removed_without_a_trace() {
        let tree = Tree::new();
        fs::create_dir(tree.path("etc")).expect("mkdir");
        set_mtime(fs::File::open(tree.path("etc")).expect("open"), (1_000_000_000, 123_456_789)).expect("set");
        set_mtime(&tree.root, (1_000_000_001, 5)).expect("set");
        let before = tree.listing();
        let mut stubs = Stubs::default();
        let root = tree.root.as_fd();
        stubs.create(root, Path::new("/etc/hosts"), false).expect("create");
        stubs.create(root, Path::new("/etc/resolv.conf"), false).expect("create");
        stubs.create(root, Path::new("/a/b/c"), true).expect("create");
        stubs.create(root, Path::new("/a/f"), false).expect("create");
        assert_eq!(tree.listing(), ["a", "a/b", "a/b/c", "a/f", "etc", "etc/hosts", "etc/resolv.conf"]);
        assert_eq!(tree.mtime("etc"), (1_000_000_000, 123_456_789), "while it runs");
        stubs.remove(root).expect("remove");
        assert_eq!(tree.listing(), before);
        assert_eq!(tree.mtime("etc"), (1_000_000_000, 123_456_789));
        assert_eq!(tree.mtime("."), (1_000_000_001, 5));
    }

    #[test]
    fn what_was_used_stays() {
        let tree = Tree::new();
        let root = tree.root.as_fd();
        let mut stubs = Stubs::default();
        for (path, directory) in [("/a/b/c", true), ("/etc/hosts", false), ("/x/y", false), ("/gone/z", true)] {
            stubs.create(root, Path::new(path), directory).expect(path);
        }
        fs::write(tree.path("a/sibling"), "").expect("write");
        fs::write(tree.path("etc/hosts"), "text").expect("write");
        fs::remove_file(tree.path("x/y")).expect("remove");
        symlink("/nowhere", tree.path("x/y")).expect("symlink");
        fs::remove_dir_all(tree.path("gone")).expect("remove");
        let changed = tree.mtime("a");
        stubs.remove(root).expect("remove");
        assert_eq!(tree.listing(), ["a", "a/sibling", "etc", "etc/hosts", "x", "x/y"]);
        assert_eq!(tree.mtime("a"), changed, "the command's own change");
    }

    #[test]
    fn working_directories_belong_to_the_user() {
        let tree = Tree::new();
        fs::create_dir(tree.path("w")).expect("mkdir");
        let me = rustix::process::geteuid().as_raw();
        let owner = if me == 0 { (7, 8) } else { (me, rustix::process::getegid().as_raw()) };
        create_directories(tree.root.as_fd(), Path::new("/w/x/y"), Some(owner)).expect("create");
        let stat = rustix::fs::stat(tree.path("w/x/y")).expect("stat");
        assert_eq!((stat.st_uid, stat.st_gid, stat.st_mode & 0o7777), (owner.0, owner.1, 0o755));
        assert_eq!(rustix::fs::stat(tree.path("w")).expect("stat").st_uid, me);
    }
}
