//! What the file system of a work dir can do, found out by doing it.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, StatVfsMountFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::stat::Stat;

/// Attribute that is set and read again.
const PROBE_ATTRIBUTE: &str = "user.slipway.probe";

/// A name like those that Debian's packages bring.
const UNUSUAL_NAME: &str = "libc6:amd64\\x2d.list";

/// What the volume of a work dir can do.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Volume {
    /// Type of the file system as mount(8) names it, or its number in hexadecimal.
    pub file_system: String,
    /// Whether programs on it cannot be executed.
    pub no_exec: bool,
    /// Whether setuid programs on it do nothing special.
    pub no_suid: bool,
    /// Whether device nodes on it cannot be opened.
    pub no_dev: bool,
    /// Whether files can have attributes of the user (`user.…`).
    pub user_xattrs: bool,
    /// Whether files can share their bytes until one of them is changed (ioctl_ficlone(2)).
    pub reflink: bool,
    /// Whether files can be named pipes and sockets (not where qemu shares a directory by 9p).
    pub pipes: bool,
    /// Bytes that are free for this user.
    pub free_bytes: u64,
    /// Files that can still be made; `None` where the file system has no such limit.
    pub free_files: Option<u64>,
}

/// Whether a volume can hold the trees of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fitness {
    /// What every image needs and the volume has not, as the end of a sentence about it; `None` if it can hold trees.
    pub lacks: Option<&'static str>,
    /// [`Volume::pipes`], which some images need.
    pub pipes: bool,
}

impl Volume {
    /// Looks at the volume of `directory`, which is made if it is missing. What is tried leaves nothing behind.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn probe(directory: &Path) -> io::Result<Self> {
        let scratch = scratch(directory)?;
        let stat = rustix::fs::statvfs(scratch.path())?;
        let flags = stat.f_flag;
        Ok(Self {
            file_system: file_system(scratch.path())?,
            no_exec: flags.contains(StatVfsMountFlags::NOEXEC),
            no_suid: flags.contains(StatVfsMountFlags::NOSUID),
            no_dev: flags.contains(StatVfsMountFlags::NODEV),
            user_xattrs: user_xattrs(scratch.path())?,
            reflink: reflink(scratch.path())?,
            pipes: pipes(scratch.path()),
            free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
            free_files: (stat.f_files != 0).then_some(stat.f_favail),
        })
    }

    /// What trees need of this volume, and whether it has that. Owners, modes, devices and attributes are not asked for, as they can be
    /// recorded beside a tree.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn fitness(directory: &Path) -> io::Result<Fitness> {
        let scratch = scratch(directory)?;
        let (file, other) = (scratch.path().join("name"), scratch.path().join("NAME"));
        File::create(&file)?;
        let lacks = if other.try_exists()? {
            Some("tells no `name` from `NAME`")
        } else if std::os::unix::fs::symlink("name", &other).is_err() {
            Some("has no symbolic links")
        } else if std::fs::hard_link(&file, scratch.path().join("link")).is_err() {
            Some("has no hard links")
        } else if File::create(scratch.path().join(UNUSUAL_NAME)).is_err() {
            Some("cannot hold names with a colon or a backslash")
        } else {
            None
        };
        Ok(Fitness { lacks, pipes: pipes(scratch.path()) })
    }

    /// [`Volume::pipes`] alone.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn holds_pipes(directory: &Path) -> io::Result<bool> {
        Ok(pipes(scratch(directory)?.path()))
    }

    /// Whether a file in `directory` can be given to `uid` and `gid`, which must exist in this user namespace and not be
    /// this process's own: not so where root is squashed (NFS) or the volume has fixed owners (CIFS, FUSE, some CSI drivers).
    ///
    /// # Errors
    /// If nothing can be written there.
    pub fn keeps_owners(directory: &Path, (uid, gid): (u32, u32)) -> io::Result<bool> {
        let scratch = scratch(directory)?;
        let path = scratch.path().join("owned");
        let file = File::create(&path)?;
        let given = rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let stat = rustix::fs::fstat(&file)?;
        let kept = given.is_ok() && (stat.st_uid, stat.st_gid) == (uid, gid);
        // Where root is squashed a file that belongs to another one may not be changed any more either.
        let usable = || {
            let mode = Mode::from_raw_mode(0o4711);
            rustix::fs::fchmod(&file, mode).is_ok() && File::options().append(true).open(&path).is_ok()
        };
        Ok(kept && usable())
    }

    /// Whether a disk of this machine stays shut although root makes a node for it in `directory`: container runtimes see to
    /// that by a control group, and a volume that is mounted nodev does. Also where nothing can be made at all.
    pub fn confines_devices(directory: &Path) -> bool {
        let Ok(disks) = std::fs::read_dir("/sys/dev/block") else { return false };
        let mut confined = false;
        for disk in disks.flatten().take(DISKS) {
            let name = disk.file_name();
            let numbers = name.to_str().and_then(|name| name.split_once(':'));
            let Some((major, minor)) = numbers.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?))) else {
                continue;
            };
            let Ok(scratch) = scratch(directory) else { return false };
            let node = scratch.path().join("disk");
            let device = rustix::fs::makedev(major, minor);
            let kind = FileType::BlockDevice;
            let made = rustix::fs::mknodat(CWD, &node, kind, Mode::from_raw_mode(0o600), device);
            let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match made.and_then(|()| rustix::fs::open(&node, flags, Mode::empty())) {
                Err(Errno::PERM | Errno::ACCESS) => confined = true,
                // Open, or nothing there today: nobody stands between.
                Ok(_) | Err(_) => return false,
            }
        }
        confined
    }
}

/// Opens a file for flock(2), which is made if it is missing. For reading and for writing: NFS takes shared locks of what can be read
/// only, and exclusive ones of what can be written only.
///
/// # Errors
/// What the kernel says.
pub(crate) fn lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path)
}

/// How many disks are tried.
const DISKS: usize = 4;

fn scratch(directory: &Path) -> io::Result<tempfile::TempDir> {
    std::fs::create_dir_all(directory)?;
    tempfile::Builder::new().prefix(".probe-").tempdir_in(directory)
}

fn user_xattrs(directory: &Path) -> io::Result<bool> {
    let path = directory.join("attributes");
    File::create(&path)?;
    Ok(rustix::fs::setxattr(&path, PROBE_ATTRIBUTE, b"1", XattrFlags::empty()).is_ok())
}

fn pipes(directory: &Path) -> bool {
    let (kind, mode) = (FileType::Fifo, Mode::from_raw_mode(0o600));
    match rustix::fs::mknodat(CWD, directory.join("pipe"), kind, mode, 0) {
        // A profile that refuses the call says nothing of the volume.
        Ok(()) | Err(Errno::PERM | Errno::ACCESS) => true,
        Err(_) => false,
    }
}

/// Whether it is known of files in a directory when they were made, without which a number that is used again tells nothing.
pub(super) fn keeps_birth_times(directory: &Path) -> bool {
    let made = scratch(directory).and_then(|scratch| {
        let file = File::create(scratch.path().join("born"))?;
        Ok(Stat::of(&file)?.btime != (0, 0))
    });
    made.unwrap_or(false)
}

/// Whether files in a directory can have attributes of the user.
pub(super) fn keeps_user_attributes(directory: &Path) -> bool {
    scratch(directory).and_then(|scratch| user_xattrs(scratch.path())).unwrap_or(false)
}

/// Whether files in a directory can share their blocks.
pub(super) fn shares_blocks(directory: &Path) -> bool {
    scratch(directory).and_then(|scratch| reflink(scratch.path())).unwrap_or(false)
}

fn reflink(directory: &Path) -> io::Result<bool> {
    let mut from = File::create(directory.join("from"))?;
    from.write_all(&[1; 4096])?;
    let from = File::open(directory.join("from"))?;
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
    let to = rustix::fs::open(directory.join("to"), flags, Mode::from_raw_mode(0o600))?;
    Ok(rustix::fs::ioctl_ficlone(&to, from.as_fd()).is_ok())
}

/// By the mount table, as many types share a number; by number if the mount is not in it (a detached one).
fn file_system(directory: &Path) -> io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;
    let device = std::fs::metadata(directory)?.dev();
    let wanted = format!("{}:{}", rustix::fs::major(device), rustix::fs::minor(device));
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    // proc(5): … ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAGS] - TYPE SOURCE SUPEROPTIONS
    let kind = table.lines().rev().find_map(|line| {
        let (mount, system) = line.split_once(" - ")?;
        (mount.split(' ').nth(2)? == wanted).then(|| system.split(' ').next()).flatten()
    });
    match kind {
        Some(kind) => Ok(kind.to_owned()),
        None => Ok(format!("{:#x}", rustix::fs::statfs(directory)?.f_type)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left() {
        let directory = tempfile::tempdir().unwrap();
        let work = directory.path().join("not/there/yet");
        let volume = Volume::probe(&work).unwrap();
        assert!(!volume.file_system.is_empty());
        assert!(volume.free_bytes > 0);
        assert!(volume.pipes);
        let fit = Fitness { lacks: None, pipes: true };
        assert_eq!(Volume::fitness(&work).unwrap(), fit, "a plain directory of this machine");
        let kept = Volume::keeps_owners(&work, (61_234, 61_235)).unwrap();
        assert_eq!(kept, rustix::process::geteuid().is_root(), "a plain directory of this machine");
        assert_eq!(std::fs::read_dir(&work).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        assert!(Volume::probe(Path::new("/proc/slipway")).is_err());
        assert!(Volume::fitness(Path::new("/proc/slipway")).is_err());
    }
}
