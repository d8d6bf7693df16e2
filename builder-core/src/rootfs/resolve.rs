//! Path resolution that cannot leave a root: by the kernel (`openat2` with `RESOLVE_IN_ROOT`), or component by
//! component where an old kernel, a seccomp filter or gVisor refuses that system call.
//!
//! Both never jump through magic links of procfs: the kernel answers `ELOOP`, the walk reads their text like that of any
//! other link and stays inside.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symbolic links followed in one resolution (path_resolution(7)).
pub(super) const MAX_LINKS: u32 = 40;

/// How often a resolution by the kernel is tried again when a rename elsewhere made it unsure (openat2(2), `EAGAIN`).
const MAX_RETRIES: u32 = 64;

/// Opening a place without the right to read or write it.
pub(super) const PLACE: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// How paths are resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Resolver {
    /// `openat2(2)`.
    Kernel,
    /// One `openat(2)` a component.
    Walk,
}

/// A directory that paths cannot leave.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    resolver: Resolver,
}

/// A directory: the root itself or one opened for the purpose.
#[derive(Debug)]
pub(super) enum Dir<'a> {
    Root(BorrowedFd<'a>),
    Own(OwnedFd),
}

impl AsFd for Dir<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Root(fd) => *fd,
            Self::Own(fd) => fd.as_fd(),
        }
    }
}

/// Where a walk ended.
struct Walked<'a> {
    /// The last directory reached.
    dir: Dir<'a>,
    /// Plain names that lead to it from the root.
    names: Vec<OsString>,
    end: End,
}

enum End {
    /// The directory itself: the path was `/`, or ended in `..`.
    Dir,
    /// This entry of the directory, which exists.
    Entry(OsString, OwnedFd),
    /// These components, of which the first does not exist in the directory.
    Missing(Vec<OsString>),
}

impl Root {
    /// Takes a directory, and finds out whether the kernel can resolve in it.
    pub(super) fn new(fd: OwnedFd) -> Self {
        let resolver = match rustix::fs::openat2(&fd, ".", PLACE, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(_) => Resolver::Kernel,
            Err(error) => {
                tracing::debug!(%error, "openat2 is not available, paths are resolved component by component");
                Resolver::Walk
            }
        };
        Self { fd, resolver }
    }

    #[cfg(test)]
    pub(super) fn with_resolver(fd: OwnedFd, resolver: Resolver) -> Self {
        Self { fd, resolver }
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Opens `path`; its last component is followed unless `flags` has `NOFOLLOW`.
    pub(super) fn open(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if self.resolver == Resolver::Kernel {
            // An empty path is an error for the kernel; here it is the root.
            let text = if path.as_os_str().is_empty() { Path::new("/") } else { path };
            let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
            for _ in 0..MAX_RETRIES {
                match rustix::fs::openat2(&self.fd, text, flags, mode, resolve) {
                    Err(Errno::AGAIN | Errno::INTR) => {}
                    // A deep path of fine names can be walked, although no single call takes it.
                    Err(Errno::NAMETOOLONG) => break,
                    other => return Ok(other?),
                }
            }
        }
        self.open_walking(path, flags, mode)
    }

    fn open_walking(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let walked = self.walk(path, !flags.contains(OFlags::NOFOLLOW))?;
        let opened = match walked.end {
            End::Dir => rustix::fs::openat(&walked.dir, ".", flags, mode),
            End::Entry(_, fd) if flags.difference(OFlags::NOFOLLOW) == PLACE => Ok(fd),
            End::Entry(name, _) => rustix::fs::openat(&walked.dir, name, flags | OFlags::NOFOLLOW, mode),
            End::Missing(names) => match <[OsString; 1]>::try_from(names) {
                Ok([name]) if flags.contains(OFlags::CREATE) => {
                    rustix::fs::openat(&walked.dir, name, flags | OFlags::NOFOLLOW, mode)
                }
                _ => Err(Errno::NOENT),
            },
        };
        Ok(opened?)
    }

    /// The directory in which `path` is an entry, parents followed, and the entry's name; `None` for the root itself.
    pub(super) fn parent<'p>(&self, path: &'p Path) -> io::Result<Option<(Dir<'_>, std::borrow::Cow<'p, OsStr>)>> {
        use std::borrow::Cow;
        let (parent, name) = split(path);
        match name {
            None => Ok(None),
            Some(name) if name == ".." => {
                let plain = self.resolve(path, true)?;
                let (parent, name) = split(&plain);
                match name {
                    None => Ok(None),
                    Some(name) => Ok(Some((self.directory(parent)?, Cow::Owned(name.to_owned())))),
                }
            }
            Some(name) => Ok(Some((self.directory(parent)?, Cow::Borrowed(name)))),
        }
    }

    /// Opens a directory, following links, only to work in it.
    pub(super) fn directory(&self, path: &Path) -> io::Result<Dir<'_>> {
        if path.as_os_str().as_bytes().iter().all(|byte| *byte == b'/') {
            return Ok(Dir::Root(self.fd()));
        }
        Ok(Dir::Own(self.open(path, PLACE | OFlags::DIRECTORY, Mode::empty())?))
    }

    /// The plain path of `path`; what does not exist is taken literally from there on.
    pub(super) fn resolve(&self, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
        let walked = self.walk(path, follow_last)?;
        let mut names = walked.names;
        match walked.end {
            End::Dir => {}
            End::Entry(name, _) => names.push(name),
            End::Missing(missing) => {
                for name in missing {
                    if name == ".." {
                        names.pop();
                    } else {
                        names.push(name);
                    }
                }
            }
        }
        Ok(join(&names))
    }

    fn walk(&self, path: &Path, follow_last: bool) -> io::Result<Walked<'_>> {
        let mut dir = Dir::Root(self.fd());
        let mut names: Vec<OsString> = Vec::new();
        let mut pending: Vec<OsString> = Vec::new();
        push_components(&mut pending, path.as_os_str());
        let mut directory_wanted = ends_as_directory(path.as_os_str());
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == ".." {
                // Never opened: what `..` leads to may have been moved out of the root by then.
                if names.pop().is_some() {
                    dir = self.reopen(&names)?;
                }
                continue;
            }
            let last = pending.is_empty();
            let fd = match rustix::fs::openat(&dir, &name, PLACE | OFlags::NOFOLLOW, Mode::empty()) {
                Ok(fd) => fd,
                Err(Errno::NOENT) => {
                    pending.push(name);
                    pending.reverse();
                    return Ok(Walked { dir, names, end: End::Missing(pending) });
                }
                Err(error) => return Err(error.into()),
            };
            match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
                FileType::Symlink if !last || follow_last || directory_wanted => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP.into());
                    }
                    let text = OsString::from_vec(rustix::fs::readlinkat(&fd, "", Vec::new())?.into_bytes());
                    if text.is_empty() {
                        return Err(Errno::NOENT.into());
                    }
                    if text.as_bytes().starts_with(b"/") {
                        names.clear();
                        dir = Dir::Root(self.fd());
                    }
                    if last {
                        directory_wanted |= ends_as_directory(&text);
                    }
                    push_components(&mut pending, &text);
                }
                FileType::Directory if !last => {
                    names.push(name);
                    dir = Dir::Own(fd);
                }
                kind if !last || (directory_wanted && kind != FileType::Directory) => {
                    return Err(Errno::NOTDIR.into());
                }
                _ => return Ok(Walked { dir, names, end: End::Entry(name, fd) }),
            }
        }
        Ok(Walked { dir, names, end: End::Dir })
    }

    /// Opens the directory behind names that were all seen to be directories.
    fn reopen(&self, names: &[OsString]) -> io::Result<Dir<'_>> {
        let mut dir = Dir::Root(self.fd());
        for name in names {
            let flags = PLACE | OFlags::NOFOLLOW | OFlags::DIRECTORY;
            dir = Dir::Own(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
        }
        Ok(dir)
    }
}

/// Splits off the last component; `None` if there is none. `.` and repeated or trailing slashes do not count.
pub(super) fn split(path: &Path) -> (&Path, Option<&OsStr>) {
    let mut bytes = path.as_os_str().as_bytes();
    loop {
        bytes = match bytes {
            [rest @ .., b'/'] => rest,
            [rest @ .., b'/', b'.'] => rest,
            b"." | b"" => return (Path::new(""), None),
            _ => break,
        };
    }
    let start = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let (parent, name) = bytes.split_at(start);
    (Path::new(OsStr::from_bytes(parent)), Some(OsStr::from_bytes(name)))
}

/// Joins and cleans lexically: `.` and `..` and double slashes vanish, the result begins with `/`.
pub fn clean(path: &OsStr) -> PathBuf {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.as_bytes().split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    let mut bytes = Vec::with_capacity(path.len() + 1);
    for name in &names {
        bytes.push(b'/');
        bytes.extend_from_slice(name);
    }
    if bytes.is_empty() {
        bytes.push(b'/');
    }
    PathBuf::from(OsString::from_vec(bytes))
}

pub(super) fn join(names: &[OsString]) -> PathBuf {
    let mut path = OsString::from("/");
    for (index, name) in names.iter().enumerate() {
        if index > 0 {
            path.push("/");
        }
        path.push(name);
    }
    PathBuf::from(path)
}

/// Pushes components so that the first is popped first.
pub(super) fn push_components(pending: &mut Vec<OsString>, path: &OsStr) {
    let start = pending.len();
    for name in path.as_bytes().split(|byte| *byte == b'/') {
        if !name.is_empty() && name != b"." {
            pending.push(OsStr::from_bytes(name).to_owned());
        }
    }
    pending[start..].reverse();
}

/// Whether the text demands a directory: it ends in `/` or `/.`.
pub(super) fn ends_as_directory(path: &OsStr) -> bool {
    let bytes = path.as_bytes();
    bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

/// Opens an entry of a directory without following it, only to have it.
pub(super) fn entry(dir: impl AsFd, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    if name.is_empty() {
        return rustix::fs::openat(dir, ".", PLACE, Mode::empty());
    }
    rustix::fs::openat(dir, name, PLACE | OFlags::NOFOLLOW, Mode::empty())
}

/// Flags for system calls on the descriptor itself.
pub(super) const ITSELF: AtFlags = AtFlags::EMPTY_PATH;
