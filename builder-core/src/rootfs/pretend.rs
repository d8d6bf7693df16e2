//! Giving attributes to files, and what stands in for those that cannot be made real.
//!
//! In a user namespace no device can be made: an empty regular file with the attribute `user.slipway.device` stands for it,
//! which renames, copies up in overlayfs and copies with attributes keep. With one id alone, owners, devices and
//! privileged attributes are recorded beside the tree (see `owners`).

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::attributes::{DEVICE_MARK, Target, entry_xattr, is_internal, tolerate};
use super::owners::{Key, Owners};
use super::stat::Stat;
use super::tree::new_file;
use super::{Attributes, FileKind, Rootfs};

/// What of a tree is only pretended.
#[derive(Debug, Clone)]
pub(super) enum Pretence {
    /// Nothing.
    Nothing,
    /// Devices, by marked files.
    Devices,
    /// Owners, devices and privileged attributes, by records.
    Recorded(Arc<Owners>),
}

/// Whether attributes that are not given have a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Existing {
    /// Just made: 0:0, 0644 or 0755.
    New,
    /// Was there: left alone.
    Changed,
}

/// Value of the attribute that makes a device of an empty file: `c 1 3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DeviceMark {
    kind: FileKind,
    major: u32,
    minor: u32,
}

impl fmt::Display for DeviceMark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = if self.kind == FileKind::BlockDevice { 'b' } else { 'c' };
        write!(f, "{letter} {} {}", self.major, self.minor)
    }
}

impl DeviceMark {
    fn parse(text: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(text).ok()?;
        let (letter, numbers) = text.split_once(' ')?;
        let (major, minor) = numbers.split_once(' ')?;
        let kind = match letter {
            "b" => FileKind::BlockDevice,
            "c" => FileKind::CharDevice,
            _ => return None,
        };
        Some(Self { kind, major: major.parse().ok()?, minor: minor.parse().ok()? })
    }
}

impl Rootfs {
    /// What the image sees of an open file.
    pub(super) fn stat_fd(&self, fd: impl AsFd) -> rustix::io::Result<Stat> {
        let stat = Stat::of(&fd)?;
        Ok(self.shown(stat, fd, OsStr::new("")))
    }

    /// What the image sees of an entry of a directory.
    pub(super) fn stat_entry(&self, dir: impl AsFd, name: &OsStr) -> rustix::io::Result<Stat> {
        let stat = Stat::entry(&dir, name)?;
        Ok(self.shown(stat, dir, name))
    }

    fn shown(&self, mut stat: Stat, dir: impl AsFd, name: &OsStr) -> Stat {
        match &self.pretence {
            Pretence::Nothing => stat,
            Pretence::Recorded(owners) => owners.shown(stat),
            Pretence::Devices => {
                if stat.kind == FileKind::File
                    && stat.size == 0
                    && let Some(mark) = entry_xattr(dir, name, OsStr::new(DEVICE_MARK))
                    && let Some(mark) = DeviceMark::parse(&mark)
                {
                    (stat.kind, stat.device) = (mark.kind, (mark.major, mark.minor));
                }
                stat
            }
        }
    }

    /// Whether what a directory lists as this kind may be a device for the image.
    pub(super) fn may_be_device(&self, kind: FileKind, inode: u64) -> bool {
        kind == FileKind::File
            && match &self.pretence {
                Pretence::Nothing => false,
                Pretence::Devices => true,
                Pretence::Recorded(owners) => owners.may_be_device(inode),
            }
    }

    /// Applies attributes in the order in which none undoes another: a change of owner clears setuid, setgid and file
    /// capabilities (chown(2), capabilities(7)); the time comes last.
    pub(super) fn apply(
        &self,
        target: Target<'_>,
        kind: FileKind,
        attributes: &Attributes,
        existing: Existing,
    ) -> io::Result<()> {
        let new = existing == Existing::New;
        let recorded = match &self.pretence {
            Pretence::Recorded(owners) => Some((owners, Key::of(&Stat::of(target.fd())?))),
            Pretence::Nothing | Pretence::Devices => None,
        };
        match recorded {
            // A directory with setgid passes its group on, so even a new file of our own is not surely 0:0.
            None => {
                if let Some((uid, gid)) = attributes.owner.or(new.then_some((0, 0))) {
                    target.chown(uid, gid)?;
                }
            }
            Some((owners, key)) => {
                if let Some(owner) = attributes.owner {
                    owners.set_owner(key, owner);
                }
            }
        }
        // The umask has been at work on new files.
        let default = if kind == FileKind::Directory { 0o755 } else { 0o644 };
        if let Some(mode) = attributes.mode.or(new.then_some(default)) {
            match recorded {
                None => target.chmod(mode)?,
                Some((owners, key)) => {
                    let real = openable(mode, kind);
                    target.chmod(real)?;
                    // Who is not in the group of a file cannot set its setgid bit (chmod(2)).
                    let real = if mode & 0o6000 == 0 { real } else { Stat::of(target.fd())?.mode };
                    owners.set_mode(key, mode & 0o7777, real & 0o7777);
                }
            }
        }
        for (name, value) in attributes.xattrs.iter().filter(|(name, _)| !is_internal(name)) {
            match recorded {
                None => tolerate(name, target.set_xattr(name, value))?,
                Some((owners, key)) => {
                    if !name.as_bytes().starts_with(b"user.") || target.set_xattr(name, value).is_err() {
                        owners.set_xattr(key, name, value);
                    }
                }
            }
        }
        if let Some(mtime) = attributes.mtime {
            target.set_mtime(mtime)?;
        }
        Ok(())
    }

    /// Removes all extended attributes that the image sees but these.
    pub(super) fn retain_xattrs(&self, target: Target<'_>, kept: &[(OsString, Vec<u8>)]) -> io::Result<()> {
        let is_kept = |name: &OsStr| kept.iter().any(|(kept, _)| kept == name);
        for (name, _) in target.xattrs()? {
            if !is_kept(&name) {
                target.remove_xattr(&name)?;
            }
        }
        if let Pretence::Recorded(owners) = &self.pretence {
            let key = Key::of(&Stat::of(target.fd())?);
            for name in owners.xattrs(key).keys().filter(|name| !is_kept(name)) {
                owners.remove_xattr(key, name);
            }
        }
        Ok(())
    }

    /// Makes a device with no rights yet, or an empty file that stands for one.
    pub(super) fn make_device(
        &self,
        dir: &impl AsFd,
        name: &OsStr,
        kind: FileKind,
        (major, minor): (u32, u32),
    ) -> rustix::io::Result<()> {
        if let Pretence::Recorded(owners) = &self.pretence {
            let fd = new_file(dir, name)?;
            let key = Key::of(&Stat::of(&fd)?);
            owners.forget(key);
            owners.set_device(key, kind, (major, minor));
            return Ok(());
        }
        let file_type = match kind {
            FileKind::BlockDevice => FileType::BlockDevice,
            _ => FileType::CharacterDevice,
        };
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device) {
            Err(Errno::PERM) if matches!(self.pretence, Pretence::Devices) => {
                let file = new_file(dir, name)?;
                let text = DeviceMark { kind, major, minor }.to_string();
                let marked = Target::Open(file.as_fd()).set_xattr(OsStr::new(DEVICE_MARK), text.as_bytes());
                if marked.is_err() {
                    // Without attributes it would be an empty file, which is another thing.
                    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
                    return Err(Errno::PERM);
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Takes notice of a new regular file, so that it does not inherit what was recorded for its inode.
    pub(super) fn is_new(&self, file: impl AsFd) -> rustix::io::Result<()> {
        if let Pretence::Recorded(owners) = &self.pretence {
            owners.forget(Key::of(&Stat::of(file)?));
        }
        Ok(())
    }
}

/// Permission bits with which a file of this mode is kept, so that its owner can still do what root can: without privileges
/// the mode counts for the builder too.
fn openable(mode: u32, kind: FileKind) -> u32 {
    if rustix::process::geteuid().is_root() {
        return mode;
    }
    match kind {
        FileKind::Directory => mode | 0o700,
        FileKind::Symlink => mode,
        _ => mode | 0o600,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::NewFile;
    use std::path::Path;

    #[test]
    fn marks_survive_text() {
        for mark in [
            DeviceMark { kind: FileKind::CharDevice, major: 1, minor: 3 },
            DeviceMark { kind: FileKind::BlockDevice, major: 4_095, minor: 1_048_575 },
        ] {
            assert_eq!(DeviceMark::parse(mark.to_string().as_bytes()), Some(mark));
        }
        for bad in ["", "c", "c 1", "x 1 2", "c 1 2 3", "c -1 2", "\u{e9}"] {
            assert_eq!(DeviceMark::parse(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn a_marked_file_is_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = Rootfs::open(dir.path()).unwrap().pretending(Pretence::Devices);
        for (name, text) in [("null", "c 1 3"), ("broken", "nonsense"), ("plain", "")] {
            rootfs.create(Path::new(name), NewFile::File(&mut &b""[..]), &Attributes::default()).unwrap();
            if !text.is_empty() {
                let path = dir.path().join(name);
                let flags = rustix::fs::XattrFlags::empty();
                if let Err(error) = rustix::fs::setxattr(&path, DEVICE_MARK, text.as_bytes(), flags) {
                    eprintln!("skipped: no user attributes here: {error}");
                    return;
                }
            }
        }
        let null = rootfs.lstat(Path::new("null")).unwrap();
        assert_eq!((null.kind, null.device), (FileKind::CharDevice, (1, 3)));
        assert_eq!(rootfs.lstat(Path::new("broken")).unwrap().kind, FileKind::File);
        assert!(rootfs.xattrs(Path::new("null")).unwrap().is_empty());
        assert!(rootfs.open_file(Path::new("null")).is_err());
        let kinds = rootfs.read_dir(Path::new("/")).unwrap();
        assert_eq!(
            kinds,
            [
                ("broken".into(), FileKind::File),
                ("null".into(), FileKind::CharDevice),
                ("plain".into(), FileKind::File),
            ]
        );
        assert_eq!(rootfs.list().unwrap().get(Path::new("null")).unwrap().metadata.device, (1, 3));
        // A layer cannot make a device of its file.
        let attributes = Attributes { xattrs: vec![(DEVICE_MARK.into(), b"c 1 3".to_vec())], ..Attributes::default() };
        rootfs.set_attributes(Path::new("plain"), &attributes).unwrap();
        assert_eq!(rootfs.lstat(Path::new("plain")).unwrap().kind, FileKind::File);
    }
}
