//! The tree as a RUN sees it: where a path of the RUN leads on the host.
//!
//! # How a path is looked up
//! A path is first made *physical*: absolute, without `.`, `..` and symbolic links, as text. Links that were met before are
//! known, because nobody but the supervisor changes the tree while a RUN is at work. Then the mount it lies in is found by
//! comparing prefixes, and the kernel opens the rest with openat2(2), which is told to follow no link and to stay beneath the
//! mount: whatever happened meanwhile, it cannot lead out. When the kernel meets a link (`ELOOP`), the links on the way are
//! learned and the look-up begins again.
//!
//! A physical path is empty for the root and begins with `/` otherwise.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::held::Held;
use crate::rootfs::{FileBytes, FileKind, InodeKey, Owners, Touched};

/// Links followed in one look-up: path_resolution(7).
const MAX_LINKS: u32 = 40;

/// Longest path that one call takes, in bytes: limits.h, `PATH_MAX` less the NUL.
pub const MAX_PATH: usize = 4095;

/// What is behind a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The image's tree: links in it are remembered.
    Tree,
    /// Other files of ours.
    Plain,
    /// Files of ours that stand for a tmpfs.
    Temporary,
    /// The host's /proc, seen through `procfs`.
    Proc,
    /// The host's /sys.
    Sys,
    /// A device node of the host, or /dev/pts.
    Device,
}

/// Something that covers a path.
#[derive(Debug)]
pub struct Mount {
    /// Physical path.
    pub target: Vec<u8>,
    /// `O_PATH`, or a file in memory.
    pub fd: OwnedFd,
    /// Path on the host, to know descriptors by.
    pub host: Vec<u8>,
    /// Whether it is a directory.
    pub directory: bool,
    /// Whether nothing in it may change.
    pub readonly: bool,
    /// What it is.
    pub kind: Kind,
    /// What is recorded of its files.
    pub owners: Option<Arc<Owners>>,
    /// The host's mount that it is in.
    pub mount_id: u64,
}

impl Mount {
    /// Opens what a mount shows; `fd` is an `O_PATH` descriptor or a file in memory.
    pub fn new(
        target: &[u8],
        fd: OwnedFd,
        kind: Kind,
        readonly: bool,
        owners: Option<Arc<Owners>>,
    ) -> Result<Self, Errno> {
        let stat = statx(&fd)?;
        let directory = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        let host = rustix::fs::readlinkat(CWD, own_path(fd.as_fd()), Vec::new())?.into_bytes();
        let mount_id = mount_id(&stat);
        Ok(Self { target: target.to_owned(), fd, host, directory, readonly, kind, owners, mount_id })
    }
}

/// Everything that covers something, and the links in the tree.
#[derive(Debug)]
pub struct View {
    mounts: Vec<Mount>,
    /// First names of the targets of all but the tree: nothing covers a path that begins otherwise.
    tops: Vec<Vec<u8>>,
    links: RwLock<HashMap<Vec<u8>, Vec<u8>>>,
    pub held: Held,
    /// Changes when paths of directories do.
    generation: AtomicU64,
    /// Gets every change of the tree.
    pub touched: Arc<Touched>,
}

/// What is looked up, for whom.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Where relative paths begin.
    pub base: &'a Base,
    /// Where absolute paths begin: chroot(2).
    pub root: &'a [u8],
    /// The path as given; not empty.
    pub path: &'a [u8],
    /// Whether a link at its end is followed.
    pub follow: bool,
    /// Process and thread, for /proc/self.
    pub caller: (i32, i32),
    /// Limits of openat2(2).
    pub resolve: ResolveFlags,
}

/// Where a look-up begins.
#[derive(Debug)]
pub enum Base {
    /// A physical path.
    Path(Vec<u8>),
    /// A directory whose path is too long to be had; no link below it is followed.
    Directory(OwnedFd),
    /// A directory that was removed.
    Gone,
}

/// Where a path leads.
#[derive(Debug)]
pub struct Place<'a> {
    /// In which mount.
    pub mount: &'a Mount,
    /// Physical path; the part below `directory` if that is given.
    pub path: Vec<u8>,
    /// Length of the part of `path` that is the mount.
    pub covered: usize,
    /// From where instead of the mount.
    pub directory: Option<BorrowedFd<'a>>,
    /// The path ended with `/` or a dot: it must be a directory.
    pub slash: bool,
    /// Directories that were passed on the way to links.
    pub passed: Vec<Vec<u8>>,
}

/// What happened to a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was removed or replaced, and was no directory.
    Name,
    /// It was a directory, which was removed.
    RemovedDirectory,
    /// It was a directory that has another name now, or was exchanged with one.
    MovedDirectories,
}

/// How to answer paths in /proc that mean the caller or that lead elsewhere.
pub trait Magic {
    /// Where the link `path` (physical, below /proc) leads for `caller`: a physical path. `None` if it is none of ours.
    ///
    /// # Errors
    /// `ENOENT` for processes that are not of this RUN.
    fn link(&self, path: &[u8], caller: (i32, i32), last: bool) -> Result<Option<Vec<u8>>, Errno>;
}

impl View {
    /// With the image's tree alone; `touched` is told what changes in it.
    pub fn new(tree: Mount, touched: Arc<Touched>) -> Self {
        Self {
            mounts: vec![tree],
            tops: Vec::new(),
            links: RwLock::default(),
            held: Held::new(),
            generation: AtomicU64::new(0),
            touched,
        }
    }

    /// Covers a path; what is there with the same target is covered too.
    pub fn cover(&mut self, mount: Mount) {
        let top = top(&mount.target);
        if !self.tops.iter().any(|known| known == top) {
            self.tops.push(top.to_owned());
        }
        self.mounts.push(mount);
    }

    /// Mounts in the order in which they were made, the tree first.
    pub fn mounts(&self) -> &[Mount] {
        &self.mounts
    }

    /// Whether a physical path is surely in the tree, and nothing is mounted below it.
    fn is_plain(&self, path: &[u8]) -> bool {
        let top = top(path);
        !top.is_empty() && !self.tops.iter().any(|known| known.is_empty() || known == top)
    }

    /// The mount that a physical path is in.
    pub fn mount(&self, path: &[u8]) -> &Mount {
        if self.is_plain(path) {
            return &self.mounts[0];
        }
        let inside = |mount: &&Mount| {
            let target = mount.target.as_slice();
            path.starts_with(target) && matches!(path.get(target.len()), None | Some(b'/'))
        };
        // The root's target is empty, so there is always one. Later ones cover earlier ones of the same length.
        let mut best = &self.mounts[0];
        for mount in self.mounts.iter().filter(inside) {
            if mount.target.len() >= best.target.len() {
                best = mount;
            }
        }
        best
    }

    /// The same mount, for as long as this lives.
    pub fn known(&self, mount: &Mount) -> Option<&Mount> {
        self.mounts.iter().find(|known| std::ptr::eq(*known, mount))
    }

    /// Whether something is mounted at or below a physical path.
    pub fn is_covered(&self, path: &[u8]) -> bool {
        !self.is_plain(path)
            && self.mounts.iter().skip(1).any(|mount| {
                mount.target.starts_with(path) && matches!(mount.target.get(path.len()), None | Some(b'/'))
            })
    }

    /// The physical path of a path on the host; `None` if it is not in here.
    pub fn inside(&self, host: &[u8]) -> Option<Vec<u8>> {
        let inside = |mount: &&Mount| {
            let from = mount.host.as_slice();
            from == b"/" || host.starts_with(from) && matches!(host.get(from.len()), None | Some(b'/'))
        };
        let best = self.mounts.iter().filter(inside).max_by_key(|mount| mount.host.len())?;
        let rest = if best.host == b"/" { host } else { &host[best.host.len()..] };
        Some([&best.target, rest].concat())
    }

    /// Number that changes when a directory was renamed or removed.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Forgets what is known of a name, which was removed or replaced; of everything if directories moved.
    pub fn forget(&self, path: &[u8], change: Change) {
        match change {
            Change::Name => {}
            Change::RemovedDirectory => {
                self.generation.fetch_add(1, Ordering::AcqRel);
                // It was empty, so nothing below it is known.
                return self.held.removed(path);
            }
            Change::MovedDirectories => {
                self.generation.fetch_add(1, Ordering::AcqRel);
                self.held.changed();
            }
        }
        let directories = change == Change::MovedDirectories;
        let known = self.links.read().unwrap_or_else(PoisonError::into_inner);
        if known.is_empty() || !directories && !known.contains_key(path) {
            return;
        }
        drop(known);
        let mut known = self.links.write().unwrap_or_else(PoisonError::into_inner);
        if directories {
            known.clear();
        } else {
            known.remove(path);
        }
    }

    /// A directory got setgid.
    pub fn passes_group_on(&self) {
        self.held.changed();
    }

    /// Looks a path up and does something there; again when the kernel meets a link that was not known.
    ///
    /// # Errors
    /// Those of path_resolution(7) and of `act`.
    pub fn at<T>(
        &self,
        request: Request<'_>,
        magic: &dyn Magic,
        mut act: impl FnMut(&Place<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        let mut learned = HashMap::new();
        let mut repaired = false;
        for _ in 0..=MAX_LINKS {
            let place = match self.locate(request, magic, &mut learned) {
                // Another link is known now.
                Err(Errno::AGAIN) => continue,
                place => place?,
            };
            match act(&place) {
                Err(Errno::LOOP) if self.learn(&place, request.follow, &mut learned) => {}
                Err(Errno::ACCESS) if !repaired && place.repair(&self.touched) => repaired = true,
                Err(Errno::AGAIN) => {}
                done => return done,
            }
        }
        Err(Errno::LOOP)
    }

    fn locate<'a>(
        &'a self,
        request: Request<'a>,
        magic: &dyn Magic,
        learned: &mut HashMap<Vec<u8>, Vec<u8>>,
    ) -> Result<Place<'a>, Errno> {
        let mut at: Vec<u8> = Vec::with_capacity(128);
        let absolute = request.path.first() == Some(&b'/');
        let scoped = request.resolve.intersects(ResolveFlags::IN_ROOT | ResolveFlags::BENEATH);
        let mut root = request.root;
        if absolute && request.resolve.contains(ResolveFlags::BENEATH) {
            return Err(Errno::XDEV);
        }
        match request.base {
            Base::Path(base) => {
                if scoped {
                    root = base;
                }
                at.extend_from_slice(if absolute { root } else { base });
            }
            _ if absolute && !scoped => at.extend_from_slice(root),
            Base::Gone => return Err(Errno::NOENT),
            Base::Directory(fd) => {
                let path = normal(request.path)?;
                let mount = &self.mounts[0];
                let slash = request.path.ends_with(b"/");
                return Ok(Place { mount, path, covered: 0, directory: Some(fd.as_fd()), slash, passed: Vec::new() });
            }
        }
        let mut passed = Vec::new();
        // What is still to go, the next piece last: pieces are the path and the texts of links.
        let mut pieces: Vec<Cow<'_, [u8]>> = vec![Cow::Borrowed(request.path)];
        let mut links = 0;
        let mut slash = false;
        while let Some(piece) = pieces.pop() {
            let start = piece.iter().position(|&byte| byte != b'/').unwrap_or(piece.len());
            let end = piece[start..].iter().position(|&byte| byte == b'/').map_or(piece.len(), |length| start + length);
            let name = &piece[start..end];
            let rest = &piece[end..];
            let last = pieces.is_empty() && rest.iter().all(|&byte| byte == b'/');
            if last {
                slash |= !rest.is_empty() || matches!(name, b"" | b"." | b"..");
            }
            match name {
                b"" | b"." => {}
                b".." => {
                    if at.len() > root.len() {
                        // What is left must be there and be a directory.
                        if at.len() > request_base_length(&request) {
                            self.check_directory(&at, learned)?;
                        }
                        at.truncate(at.iter().rposition(|&byte| byte == b'/').unwrap_or(0));
                    } else if request.resolve.contains(ResolveFlags::BENEATH) {
                        return Err(Errno::XDEV);
                    }
                }
                _ => {
                    if name.len() > 255 {
                        return Err(Errno::NAMETOOLONG);
                    }
                    at.push(b'/');
                    at.extend_from_slice(name);
                    if !last || request.follow || slash {
                        let target = match magic.link(&at, request.caller, last)? {
                            Some(physical) => {
                                links += 1;
                                at = physical;
                                None
                            }
                            None => self.link(&at, learned),
                        };
                        if let Some(text) = target {
                            links += 1;
                            if request.resolve.contains(ResolveFlags::NO_SYMLINKS) {
                                return Err(Errno::LOOP);
                            }
                            if text.is_empty() {
                                return Err(Errno::NOENT);
                            }
                            at.truncate(at.len() - name.len() - 1);
                            passed.push(at.clone());
                            if text[0] == b'/' {
                                if request.resolve.contains(ResolveFlags::BENEATH) {
                                    return Err(Errno::XDEV);
                                }
                                at.clear();
                                at.extend_from_slice(root);
                            }
                            if !rest.is_empty() {
                                pieces.push(Cow::Owned(rest.to_vec()));
                            }
                            pieces.push(Cow::Owned(text));
                            if links > MAX_LINKS {
                                return Err(Errno::LOOP);
                            }
                            continue;
                        }
                        if links > MAX_LINKS {
                            return Err(Errno::LOOP);
                        }
                    }
                }
            }
            if !rest.is_empty() {
                let rest = match piece {
                    Cow::Borrowed(piece) => Cow::Borrowed(&piece[end..]),
                    Cow::Owned(ref piece) => Cow::Owned(piece[end..].to_vec()),
                };
                if rest.iter().any(|&byte| byte != b'/') {
                    pieces.push(rest);
                }
            }
        }
        let mount = self.mount(&at);
        let covered = mount.target.len();
        Ok(Place { mount, path: at, covered, directory: None, slash, passed })
    }

    /// Opens a physical path.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let mount = self.mount(path);
        open_beneath(mount, &path[mount.target.len()..], flags, Mode::empty())
    }

    /// Whether a directory is there; `EAGAIN` if a link on the way was not known before.
    fn check_directory(&self, path: &[u8], learned: &mut HashMap<Vec<u8>, Vec<u8>>) -> Result<(), Errno> {
        let mount = self.mount(path);
        let covered = mount.target.len();
        match open_beneath(mount, &path[covered..], OFlags::PATH | OFlags::DIRECTORY, Mode::empty()) {
            Err(Errno::LOOP) => {
                let path = path.to_vec();
                let place = Place { mount, path, covered, directory: None, slash: true, passed: Vec::new() };
                Err(if self.learn(&place, true, learned) { Errno::AGAIN } else { Errno::LOOP })
            }
            opened => opened.map(drop),
        }
    }

    fn link(&self, path: &[u8], learned: &HashMap<Vec<u8>, Vec<u8>>) -> Option<Vec<u8>> {
        if let Some(text) = learned.get(path) {
            return Some(text.clone());
        }
        self.links.read().unwrap_or_else(PoisonError::into_inner).get(path).cloned()
    }

    /// Finds the links on the way to a place; whether there was one that was not known.
    fn learn(&self, place: &Place<'_>, last_too: bool, learned: &mut HashMap<Vec<u8>, Vec<u8>>) -> bool {
        if place.directory.is_some() {
            return false;
        }
        let mut ends: Vec<usize> = (place.covered + 1..place.path.len()).filter(|&at| place.path[at] == b'/').collect();
        if last_too || place.slash {
            ends.push(place.path.len());
        }
        for end in ends {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let Ok(fd) = open_beneath(place.mount, &place.path[place.covered..end], flags, Mode::empty()) else {
                return false;
            };
            if let Ok(text) = rustix::fs::readlinkat(&fd, "", Vec::new()) {
                let (path, text) = (place.path[..end].to_vec(), text.into_bytes());
                if place.mount.kind == Kind::Tree {
                    let mut links = self.links.write().unwrap_or_else(PoisonError::into_inner);
                    return links.insert(path, text).is_none();
                }
                return learned.insert(path, text).is_none();
            }
        }
        false
    }
}

/// The first name of a physical path, with the slash before it.
fn top(path: &[u8]) -> &[u8] {
    let end = path.iter().skip(1).position(|&byte| byte == b'/').map_or(path.len(), |end| end + 1);
    &path[..end]
}

fn request_base_length(request: &Request<'_>) -> usize {
    match request.base {
        Base::Path(base) if request.path.first() != Some(&b'/') => base.len(),
        _ => request.root.len(),
    }
}

/// Without dots, as text; `EXDEV` if it leads up.
fn normal(path: &[u8]) -> Result<Vec<u8>, Errno> {
    let mut found = Vec::new();
    for name in path.split(|&byte| byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(Errno::NAMETOOLONG),
            _ => {
                found.push(b'/');
                found.extend_from_slice(name);
            }
        }
    }
    Ok(found)
}

/// Opens a path below a mount; empty for the mount itself, else it begins with `/`.
pub fn open_beneath(mount: &Mount, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    if mount.directory {
        return beneath(mount.fd.as_fd(), path, flags, mode);
    }
    if !path.is_empty() {
        return Err(Errno::NOTDIR);
    }
    if flags.contains(OFlags::CREATE | OFlags::EXCL) {
        return Err(Errno::EXIST);
    }
    reopen(mount.fd.as_fd(), flags.difference(OFlags::CREATE | OFlags::NOFOLLOW), mode)
}

/// Opens what a descriptor stands for once more.
pub fn reopen(fd: BorrowedFd<'_>, flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    rustix::fs::open(own_path(fd), flags | OFlags::CLOEXEC, mode)
}

pub fn beneath(directory: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let mut rest = path.strip_prefix(b"/").unwrap_or(path);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let mut at: Option<OwnedFd> = None;
    while rest.len() > MAX_PATH {
        let cut = rest[..MAX_PATH].iter().rposition(|&byte| byte == b'/').ok_or(Errno::NAMETOOLONG)?;
        let from = at.as_ref().map_or(directory, AsFd::as_fd);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let next = rustix::fs::openat2(from, OsStr::from_bytes(&rest[..cut]), flags, Mode::empty(), resolve)?;
        at = Some(next);
        rest = &rest[cut + 1..];
    }
    let from = at.as_ref().map_or(directory, AsFd::as_fd);
    let path = if rest.is_empty() { b"." } else { rest };
    // openat2(2) refuses a mode where nothing is made.
    let mode = if flags.intersects(OFlags::CREATE | OFlags::TMPFILE.difference(OFlags::DIRECTORY)) {
        mode
    } else {
        Mode::empty()
    };
    rustix::fs::openat2(from, OsStr::from_bytes(path), flags | OFlags::CLOEXEC, mode, resolve)
}

/// Text of a link behind an `O_PATH` descriptor.
///
/// # Errors
/// `EINVAL` if it is none.
pub fn read_link(fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
    match rustix::fs::readlinkat(fd, "", Vec::new()) {
        Ok(text) => Ok(text.into_bytes()),
        // readlinkat(2) on a descriptor says ENOENT for what is not a link.
        Err(Errno::NOENT) => Err(Errno::INVAL),
        Err(errno) => Err(errno),
    }
}

/// A path to what a descriptor of ours stands for.
pub fn own_path(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// What is known of a file behind a descriptor.
pub fn statx(fd: impl AsFd) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, STAT)
}

/// What is asked of files.
pub const STAT: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

/// Which of the host's mounts a file is in; the device where the kernel (before 5.8) does not tell.
pub fn mount_id(stat: &Statx) -> u64 {
    if stat.stx_mask & StatxFlags::MNT_ID.bits() != 0 {
        return stat.stx_mnt_id;
    }
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

/// By which a file is known in records.
pub fn key(stat: &Statx) -> InodeKey {
    let has_birth = stat.stx_mask & StatxFlags::BTIME.bits() != 0;
    let born = if has_birth { (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) } else { (0, 0) };
    InodeKey { inode: stat.stx_ino, born }
}

/// What a file holds, as far as that is told without reading it.
pub fn bytes(stat: &Statx) -> FileBytes {
    (stat.stx_size, (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec))
}

/// The type bits of a device.
pub fn device_type(kind: FileKind) -> u32 {
    if kind == FileKind::BlockDevice { libc::S_IFBLK } else { libc::S_IFCHR }
}
