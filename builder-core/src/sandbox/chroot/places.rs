//! What takes the place of mounts where nothing can be mounted: directories and files that are put into the tree by
//! rename(2) while a command runs, and taken out again without a trace.
//!
//! What the tree has at such a place is moved aside, out of the tree, and moved back afterwards: it keeps its inode, its
//! times and its content whatever the command does there. Modification times of the directories around are kept as `stubs`
//! keeps them.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, FlockOperation, Gid, Mode, OFlags, RenameFlags, Stat, Uid};
use rustix::io::Errno;

use super::super::stubs::{self, Stubs};
use super::super::{MountSource, SandboxError, SandboxMount, setup};
use super::journal::{self, Whereabouts};
use super::secrets::Secret;
use crate::cancel::Cancel;
use crate::rootfs::Touched;

/// Everything put into one tree.
pub struct Places<'a> {
    root: BorrowedFd<'a>,
    /// The tree's path for this process.
    outside: PathBuf,
    stubs: Stubs,
    /// A directory on the tree's file system, outside of the tree.
    aside: tempfile::TempDir,
    swaps: Vec<Swap>,
    read_only: Vec<PathBuf>,
    secrets: Vec<Secret>,
    /// Directories that are in use by us alone.
    locks: Vec<OwnedFd>,
}

struct Swap {
    /// Within the tree, without symbolic links.
    target: PathBuf,
    /// What was there; `None` if the place is the tree's own.
    kept: Option<Kept>,
    /// Where what is there now goes afterwards; `None` if it is removed.
    home: Option<PathBuf>,
}

/// What was moved aside.
struct Kept {
    /// Where to.
    path: PathBuf,
    /// Its change time before and after.
    ctimes: (Time, Time),
}

/// Seconds since 1970 and nanoseconds.
type Time = (i64, u32);

impl<'a> Places<'a> {
    /// Prepares for the tree `root`, which must not be the root of its file system.
    ///
    /// # Errors
    /// If nothing can be made beside the tree.
    pub fn new(root: BorrowedFd<'a>) -> Result<Self, SandboxError> {
        let outside = setup("find the tree", path_of(root))?;
        let parent = outside.parent().map(Path::to_owned).unwrap_or_default();
        let aside = tempfile::Builder::new().prefix(".aside-").tempdir_in(&parent);
        let aside = setup(format!("make a directory in `{}`", parent.display()), aside)?;
        let (swaps, read_only, secrets, locks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Ok(Self { root, outside, stubs: Stubs::default(), aside, swaps, read_only, secrets, locks })
    }

    /// A directory for files of ours, on the tree's file system and outside of the tree.
    pub fn aside(&self) -> &Path {
        self.aside.path()
    }

    /// Waits until no other RUN uses the directories that are going to be moved, and keeps them from others: a directory can
    /// be in one tree at a time. In one order for all, so that nobody waits for each other.
    ///
    /// # Errors
    /// [`SandboxError::Cancelled`], and what the kernel says.
    pub fn claim(&mut self, mounts: &[SandboxMount], cancel: &Cancel) -> Result<(), SandboxError> {
        let mut moved: Vec<&Path> = mounts.iter().filter_map(moved).collect();
        moved.sort_unstable();
        moved.dedup();
        for path in moved {
            let what = format!("lock `{}`", path.display());
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            loop {
                let directory = match rustix::fs::open(path, flags, Mode::empty()) {
                    Err(Errno::NOENT) => match setup(&*what, journal::bring_home(path))? {
                        Whereabouts::Home => continue,
                        Whereabouts::Away => None,
                        Whereabouts::Nowhere => return setup(what, Err(Errno::NOENT)),
                    },
                    other => Some(setup(&*what, other)?),
                };
                if let Some(directory) = directory
                    && let Ok(()) = rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)
                    && path.exists()
                {
                    self.locks.push(directory);
                    break;
                }
                if cancel.is_cancelled() {
                    return Err(SandboxError::Cancelled);
                }
                std::thread::sleep(super::super::execute::CANCEL_INTERVAL);
            }
        }
        Ok(())
    }

    /// Puts a mount of a RUN in.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn mount(&mut self, mount: &SandboxMount) -> Result<(), SandboxError> {
        let what = match &mount.source {
            MountSource::Host(path) => format!("mount `{}` at `{}`", path.display(), mount.target.display()),
            _ => format!("put `{}` in", mount.target.display()),
        };
        // In two places of one tree: the second is a link to the first.
        if let MountSource::Host(path) = &mount.source
            && let Some(first) = self.swaps.iter().find(|swap| swap.home.as_ref() == Some(path))
        {
            let link = self.new_name();
            let made = symlink(&first.target, &link).and_then(|()| self.put(&mount.target, link, None, false));
            return setup(what, made);
        }
        if let Some(path) = moved(mount) {
            return setup(what, self.put(&mount.target, path.to_owned(), Some(path.to_owned()), true));
        }
        let copy = self.new_name();
        let made = match &mount.source {
            MountSource::Bytes { content, mode, uid, gid, secret: true } => {
                // Only its name is on the disk.
                let made = write(&copy, b"", *mode & !0o111, (*uid, *gid))
                    .and_then(|()| self.put(&mount.target, copy, None, false));
                setup(&*what, made)?;
                let path = self.swaps.last().map(|swap| swap.target.clone()).unwrap_or_default();
                let secret = setup(what, Secret::new(&path, content, *mode, (*uid, *gid)))?;
                self.secrets.push(secret);
                return Ok(());
            }
            MountSource::Bytes { content, mode, uid, gid, secret: false } => {
                write(&copy, content, *mode, (*uid, *gid)).map(|()| false)
            }
            MountSource::Tmpfs(_) => self.empty_directory(&mount.target, &copy).map(|()| true),
            MountSource::Descriptor(descriptor) => path_of(descriptor.as_fd()).and_then(|path| bring(&path, &copy)),
            MountSource::Host(path) => bring(path, &copy),
        };
        let directory = setup(&*what, made)?;
        setup(what, self.put(&mount.target, copy, None, directory))?;
        if mount.readonly {
            self.read_only.extend(self.swaps.last().map(|swap| swap.target.clone()));
        }
        Ok(())
    }

    /// A directory of ours at `target`; where it lies meanwhile is the same place.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn directory(&mut self, target: &Path, mode: u32) -> Result<PathBuf, SandboxError> {
        let what = format!("put `{}` in", target.display());
        let made = self.new_name();
        setup(
            &*what,
            fs::create_dir(&made).and_then(|()| fs::set_permissions(&made, fs::Permissions::from_mode(mode))),
        )?;
        setup(what, self.put(target, made, None, true))?;
        Ok(self.swaps.last().map(|swap| swap.target.clone()).unwrap_or_default())
    }

    /// A file with these bytes at `target`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn file(&mut self, target: &Path, content: &[u8]) -> Result<(), SandboxError> {
        let what = format!("put `{}` in", target.display());
        let made = self.new_name();
        setup(&*what, write(&made, content, 0o644, (0, 0)))?;
        setup(what, self.put(target, made, None, false))?;
        self.read_only.extend(self.swaps.last().map(|swap| swap.target.clone()));
        Ok(())
    }

    /// What a mount would show read-only.
    pub fn read_only(&self) -> Vec<PathBuf> {
        self.read_only.clone()
    }

    /// Files that are in memory alone, each once.
    pub fn take_secrets(&mut self) -> Vec<Secret> {
        std::mem::take(&mut self.secrets)
    }

    /// What is held as long as a process of the command lives.
    pub fn locks(&self) -> &[OwnedFd] {
        &self.locks
    }

    fn new_name(&self) -> PathBuf {
        self.aside.path().join(format!("new-{}", self.swaps.len()))
    }

    /// With the mode of what it covers, 1777 if there is nothing.
    fn empty_directory(&self, target: &Path, at: &Path) -> io::Result<()> {
        let place = stubs::locate(self.root, target, &[])?;
        let mode = if place.kind.is_some() { place.mode } else { 0o1777 };
        fs::create_dir(at)?;
        fs::set_permissions(at, fs::Permissions::from_mode(mode))
    }

    fn put(&mut self, target: &Path, from: PathBuf, home: Option<PathBuf>, directory: bool) -> io::Result<()> {
        // What lies within an earlier place is that place's.
        let place = stubs::locate(self.root, target, &[])?;
        if place.path == Path::new("/") {
            return Err(Errno::BUSY.into());
        }
        // Files there are served, and what lies in the tree is not seen.
        if super::tree::SERVED.iter().any(|top| place.path.starts_with(top) && place.path != Path::new(top)) {
            return Err(Errno::ACCESS.into());
        }
        if place.kind.is_none() {
            let ours = self.swaps.iter().any(|swap| place.path.starts_with(&swap.target));
            if ours {
                // Goes with that place.
                stubs::create_directories(self.root, place.path.parent().unwrap_or(Path::new("/")), Some((0, 0)))?;
            } else {
                self.stubs.create(self.root, &place.path, directory)?;
            }
        }
        let (parent, name) = (inside(self.root, place.path.parent().unwrap_or(Path::new("/")))?, name(&place.path)?);
        let before = stubs::mtime(&rustix::fs::fstat(&parent)?);
        let kept = self.set_aside(&parent, name)?;
        let outer = self.outside.join(place.path.strip_prefix("/").unwrap_or(&place.path));
        let moved = home.as_deref().map_or(Ok(()), |home| journal::leaving(home, &outer)).and_then(|()| {
            let moved = rustix::fs::renameat_with(rustix::fs::CWD, &from, &parent, name, RenameFlags::NOREPLACE);
            Ok(moved?)
        });
        // Remembered first: what was moved aside is moved back whatever happens.
        self.swaps.push(Swap { target: place.path.clone(), kept, home: home.clone().filter(|_| moved.is_ok()) });
        if moved.is_err() {
            home.as_deref().map_or(Ok(()), journal::returned)?;
        }
        moved?;
        stubs::set_mtime(&parent, before)
    }

    /// Moves what has this name, if anything has, out of the tree.
    fn set_aside(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<Option<Kept>> {
        let path = self.aside.path().join(format!("kept-{}", self.swaps.len()));
        let was = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => ctime(&stat),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        rustix::fs::renameat(parent, name, rustix::fs::CWD, &path)?;
        let is = ctime(&rustix::fs::lstat(&path)?);
        Ok(Some(Kept { path, ctimes: (was, is) }))
    }

    /// Takes everything out again. Called when no process of the command is left. What was set aside is told to `touched`.
    ///
    /// # Errors
    /// The first thing that could not be put back.
    pub fn restore(mut self, touched: Option<&Touched>) -> Result<(), SandboxError> {
        let mut first = Ok(());
        while let Some(swap) = self.swaps.pop() {
            let restored = self.take_out(&swap, touched);
            let restored = setup(format!("take `{}` out of the tree", swap.target.display()), restored);
            first = first.and(restored);
        }
        let removed = self.stubs.remove(self.root);
        first.and(removed)
    }

    fn take_out(&self, swap: &Swap, touched: Option<&Touched>) -> io::Result<()> {
        // The command may have moved the parent away, or put a link there: then what it put in is its own.
        let parent = inside(self.root, swap.target.parent().unwrap_or(Path::new("/")));
        let (parent, name) = match parent {
            Ok(parent) => (parent, name(&swap.target)?),
            Err(_) => return self.give_home(swap),
        };
        let now = stubs::mtime(&rustix::fs::fstat(&parent)?);
        let out = self.aside.path().join(format!("out-{}", self.swaps.len()));
        match rustix::fs::renameat(&parent, name, rustix::fs::CWD, &out) {
            Ok(()) => match &swap.home {
                Some(home) if out.is_dir() && !out.is_symlink() => {
                    rustix::fs::rename(&out, home)?;
                    journal::returned(home)?;
                }
                Some(_) => self.give_home(swap)?,
                // Removed with the directory.
                None => {}
            },
            Err(Errno::NOENT) => self.give_home(swap)?,
            Err(errno) => return Err(errno.into()),
        }
        if let Some(kept) = &swap.kept {
            // The command could not reach it there, but by another name perhaps.
            let untouched = ctime(&rustix::fs::lstat(&kept.path)?) == kept.ctimes.1;
            rustix::fs::renameat(rustix::fs::CWD, &kept.path, &parent, name)?;
            if let (true, Some(touched)) = (untouched, touched) {
                let back = ctime(&rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?);
                touched.moved_back(&swap.target, kept.ctimes.0, back);
            }
        }
        stubs::set_mtime(&parent, now)
    }

    /// The command has removed or moved a directory of somebody else's, which then is empty again.
    fn give_home(&self, swap: &Swap) -> io::Result<()> {
        match &swap.home {
            Some(home) => {
                fs::create_dir_all(home)?;
                journal::returned(home)
            }
            None => Ok(()),
        }
    }
}

/// The directory that a mount moves into the tree: one that the command may change, and that lives on.
fn moved(mount: &SandboxMount) -> Option<&Path> {
    match &mount.source {
        MountSource::Host(path) if !mount.readonly && path.is_dir() => Some(path),
        _ => None,
    }
}

/// Where an open file lies.
///
/// # Errors
/// What the kernel says.
pub fn path_of(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd as _;
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn ctime(stat: &Stat) -> Time {
    (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or_default())
}

fn inside(root: BorrowedFd<'_>, path: &Path) -> io::Result<OwnedFd> {
    stubs::open_directory(root, path).map_err(io::Error::from)
}

fn name(path: &Path) -> io::Result<&OsStr> {
    path.file_name().ok_or_else(|| Errno::BUSY.into())
}

fn write(path: &Path, content: &[u8], mode: u32, (uid, gid): (u32, u32)) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let mut file = fs::File::from(rustix::fs::open(path, flags, Mode::from_raw_mode(0o600))?);
    file.write_all(content)?;
    rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?)
}

/// Makes `to` like `from`, whatever that is; whether it is a directory.
fn bring(from: &Path, to: &Path) -> io::Result<bool> {
    let metadata = fs::symlink_metadata(from)?;
    let kind = FileType::from_raw_mode(metadata.mode());
    match kind {
        FileType::Directory => {
            fs::create_dir(to)?;
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                bring(&entry.path(), &to.join(entry.file_name()))?;
            }
        }
        FileType::RegularFile => {
            // By reflink or in the kernel where it can.
            fs::copy(from, to)?;
        }
        FileType::Symlink => symlink(fs::read_link(from)?, to)?,
        // A link to the same socket: whoever listens at it is reached by any of its names.
        FileType::Socket => {
            rustix::fs::linkat(rustix::fs::CWD, from, rustix::fs::CWD, to, AtFlags::empty())?;
            return Ok(false);
        }
        _ => {
            rustix::fs::mknodat(
                rustix::fs::CWD,
                to,
                kind,
                Mode::from_raw_mode(metadata.mode() & 0o7777),
                metadata.rdev(),
            )?;
        }
    }
    let (uid, gid) = (Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()));
    rustix::fs::chownat(rustix::fs::CWD, to, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    if kind != FileType::Symlink {
        fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    }
    let time = rustix::fs::Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() as _ };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, to.as_os_str().as_bytes(), &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(kind == FileType::Directory)
}
