//! What the kernel says about one file.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;

use super::{FileKind, Metadata};
use crate::spool::{self, Fields};

/// Everything `statx` says that somebody here needs, owners and devices as the disk has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stat {
    pub kind: FileKind,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub device: (u32, u32),
    pub size: u64,
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// Zeros where the file system does not keep it.
    pub btime: (i64, u32),
    pub inode: u64,
    pub links: u64,
}

impl FileKind {
    pub(super) fn of(file_type: FileType) -> Option<Self> {
        Some(match file_type {
            FileType::RegularFile => Self::File,
            FileType::Directory => Self::Directory,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice => Self::CharDevice,
            FileType::BlockDevice => Self::BlockDevice,
            FileType::Socket => Self::Socket,
            FileType::Unknown => return None,
        })
    }
}

impl Stat {
    /// Of the file behind a descriptor.
    pub(super) fn of(fd: impl AsFd) -> rustix::io::Result<Self> {
        Self::at(fd, OsStr::new(""), AtFlags::EMPTY_PATH)
    }

    /// Of an entry of a directory, which is not followed.
    pub(super) fn entry(dir: impl AsFd, name: &OsStr) -> rustix::io::Result<Self> {
        Self::at(dir, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn at(dir: impl AsFd, name: &OsStr, flags: AtFlags) -> rustix::io::Result<Self> {
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        match rustix::fs::statx(&dir, name, flags, mask) {
            Ok(found) => Ok(Self::from_statx(&found)),
            // Seccomp filters older than the call refuse it, and kernels before 4.11 lack it.
            Err(Errno::NOSYS | Errno::PERM) => Self::from_stat(&rustix::fs::statat(dir, name, flags)?),
            Err(error) => Err(error),
        }
    }

    fn from_statx(found: &rustix::fs::Statx) -> Self {
        let mode = u32::from(found.stx_mode);
        let time = |stamp: rustix::fs::StatxTimestamp| (stamp.tv_sec, stamp.tv_nsec);
        let has_btime = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        let kind = kind_of_mode(mode);
        Self {
            kind,
            mode: mode & 0o7777,
            uid: found.stx_uid,
            gid: found.stx_gid,
            device: device_of(kind, (found.stx_rdev_major, found.stx_rdev_minor)),
            size: found.stx_size,
            mtime: time(found.stx_mtime),
            ctime: time(found.stx_ctime),
            btime: if has_btime { time(found.stx_btime) } else { (0, 0) },
            inode: found.stx_ino,
            links: u64::from(found.stx_nlink),
        }
    }

    #[allow(clippy::unnecessary_cast, reason = "the widths of struct stat differ between architectures")]
    fn from_stat(found: &rustix::fs::Stat) -> rustix::io::Result<Self> {
        let mode = found.st_mode as u32;
        let kind = kind_of_mode(mode);
        let rdev = found.st_rdev;
        Ok(Self {
            kind,
            mode: mode & 0o7777,
            uid: found.st_uid,
            gid: found.st_gid,
            device: device_of(kind, (rustix::fs::major(rdev), rustix::fs::minor(rdev))),
            size: u64::try_from(found.st_size).map_err(|_| Errno::OVERFLOW)?,
            mtime: (found.st_mtime as i64, found.st_mtime_nsec as u32),
            ctime: (found.st_ctime as i64, found.st_ctime_nsec as u32),
            btime: (0, 0),
            inode: found.st_ino as u64,
            links: found.st_nlink as u64,
        })
    }

    pub(super) fn metadata(&self) -> Metadata {
        Metadata {
            kind: self.kind,
            mode: self.mode,
            uid: self.uid,
            gid: self.gid,
            device: self.device,
            size: if matches!(self.kind, FileKind::File | FileKind::Symlink) { self.size } else { 0 },
            mtime: self.mtime,
            inode: self.inode,
            links: self.links,
        }
    }
}

/// In the order of their codes in records.
const KINDS: [FileKind; 7] = [
    FileKind::File,
    FileKind::Directory,
    FileKind::Symlink,
    FileKind::Fifo,
    FileKind::CharDevice,
    FileKind::BlockDevice,
    FileKind::Socket,
];

impl FileKind {
    /// A number below 7 for records.
    pub fn code(self) -> u8 {
        match self {
            Self::File => 0,
            Self::Directory => 1,
            Self::Symlink => 2,
            Self::Fifo => 3,
            Self::CharDevice => 4,
            Self::BlockDevice => 5,
            Self::Socket => 6,
        }
    }

    /// What [`FileKind::code`] gave this number.
    pub fn from_code(code: u8) -> Option<Self> {
        KINDS.get(usize::from(code)).copied()
    }
}

impl Metadata {
    /// Adds all but the kind to a record of a [`crate::spool::Spool`].
    pub fn write(&self, out: &mut Vec<u8>) {
        for small in [self.mode, self.uid, self.gid] {
            spool::number(out, small.into());
        }
        if is_device(self.kind) {
            spool::number(out, self.device.0.into());
            spool::number(out, self.device.1.into());
        }
        spool::number(out, self.size);
        write_time(out, self.mtime);
        spool::number(out, self.inode);
        spool::number(out, self.links);
    }

    /// Reads what [`Metadata::write`] wrote of a file of this kind.
    ///
    /// # Errors
    /// What the reader says; `InvalidData` for something else.
    pub fn read(kind: FileKind, input: &mut impl Read) -> io::Result<Self> {
        let (mode, uid, gid) = (input.small()?, input.small()?, input.small()?);
        let device = if is_device(kind) { (input.small()?, input.small()?) } else { (0, 0) };
        let (size, mtime) = (input.number()?, read_time(input)?);
        Ok(Self { kind, mode, uid, gid, device, size, mtime, inode: input.number()?, links: input.number()? })
    }
}

impl Stat {
    /// Adds it to a record.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        out.push(self.kind.code());
        Metadata { size: self.size, ..self.metadata() }.write(out);
        write_time(out, self.ctime);
        write_time(out, self.btime);
    }

    /// Reads it from a record.
    pub(super) fn read(input: &mut impl Read) -> io::Result<Self> {
        let kind = FileKind::from_code(input.byte()?).ok_or(io::ErrorKind::InvalidData)?;
        let Metadata { mode, uid, gid, device, size, mtime, inode, links, .. } = Metadata::read(kind, input)?;
        let (ctime, btime) = (read_time(input)?, read_time(input)?);
        Ok(Self { kind, mode, uid, gid, device, size, mtime, ctime, btime, inode, links })
    }
}

fn write_time(out: &mut Vec<u8>, (seconds, nanoseconds): (i64, u32)) {
    spool::signed(out, seconds);
    spool::number(out, nanoseconds.into());
}

fn read_time(input: &mut impl Read) -> io::Result<(i64, u32)> {
    Ok((input.signed()?, input.small()?))
}

fn is_device(kind: FileKind) -> bool {
    matches!(kind, FileKind::CharDevice | FileKind::BlockDevice)
}

fn kind_of_mode(mode: u32) -> FileKind {
    // The seven kinds are all that inode(7) knows.
    FileKind::of(FileType::from_raw_mode(mode)).unwrap_or(FileKind::File)
}

fn device_of(kind: FileKind, numbers: (u32, u32)) -> (u32, u32) {
    if is_device(kind) { numbers } else { (0, 0) }
}
