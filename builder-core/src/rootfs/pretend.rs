//! Giving attributes to files, and what stands in for those that cannot be made real.
//!
//! In a user namespace no device can be made: an empty regular file with the attribute `user.slipway.device` stands for it,
//! which renames, copies up in overlayfs and copies with attributes keep. Nor does every id exist there: a file or
//! directory that an image gives to another one gets the namespace's last id, and the attribute `user.slipway.owner` says
//! whose it is, until somebody gives it away. With one id alone, owners, devices and privileged attributes are recorded
//! beside the tree (see `owners`).
//!
//! # Limitations
//! Links, fifos and sockets can have no such attribute (xattr(7)): one that belongs to an id that does not exist is an error.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::attributes::{DEVICE_MARK, OWNER_MARK, Target, entry_xattr, is_internal, tolerate};
use super::owners::{Key, Owners};
use super::stat::Stat;
use super::tree::new_file;
use super::{Attributes, FileKind, Rootfs};

/// What of a tree is only pretended.
#[derive(Debug, Clone)]
pub(super) enum Pretence {
    /// Nothing.
    Nothing,
    /// Devices, and owners that do not exist here, by marked files.
    Marked(Option<Arc<StandIn>>),
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

/// The ids of a user namespace that does not have all.
#[derive(Debug)]
pub(super) struct StandIn {
    uids: Ids,
    gids: Ids,
}

/// Ranges of ids: first id and how many.
#[derive(Debug, PartialEq, Eq)]
struct Ids(Vec<(u32, u32)>);

impl StandIn {
    /// Of this process; `None` where every id exists, or the kernel does not say.
    pub(super) fn here() -> Option<Self> {
        let ids = |path: &str| Ids::parse(&std::fs::read_to_string(path).ok()?);
        let (uids, gids) = (ids("/proc/self/uid_map")?, ids("/proc/self/gid_map")?);
        (!uids.is_all() || !gids.is_all()).then_some(Self { uids, gids })
    }
}

impl Ids {
    /// Reads `inside outside count` lines (user_namespaces(7)).
    fn parse(text: &str) -> Option<Self> {
        let mut ranges = Vec::new();
        for line in text.lines() {
            let mut numbers = line.split_whitespace().map(str::parse);
            let (Some(Ok(first)), Some(Ok(_outside)), Some(Ok(count))): (_, Option<Result<u32, _>>, _) =
                (numbers.next(), numbers.next(), numbers.next())
            else {
                return None;
            };
            ranges.push((first, count));
        }
        (!ranges.is_empty()).then_some(Self(ranges))
    }

    /// The last id of all is no id: chown(2) takes it for "leave it".
    fn is_all(&self) -> bool {
        self.0.iter().map(|(_, count)| u64::from(*count)).sum::<u64>() >= u64::from(u32::MAX)
    }

    fn last(&self) -> u32 {
        let end = |(first, count): &(u32, u32)| first.saturating_add(count.saturating_sub(1));
        self.0.iter().map(end).max().unwrap_or(0)
    }

    /// The id itself, or the last one in its place.
    fn real(&self, id: u32) -> u32 {
        let has = self.0.iter().any(|(first, count)| id.checked_sub(*first).is_some_and(|offset| offset < *count));
        if has || id == u32::MAX { id } else { self.last() }
    }
}

/// `3000000 3000001`
fn parse_owner(text: &[u8]) -> Option<(u32, u32)> {
    let (uid, gid) = std::str::from_utf8(text).ok()?.split_once(' ')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
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
            Pretence::Marked(ids) => {
                if let Some(ids) = ids
                    && (stat.uid == ids.uids.last() || stat.gid == ids.gids.last())
                    && let Some(mark) = entry_xattr(&dir, name, OsStr::new(OWNER_MARK))
                    && let Some((uid, gid)) = parse_owner(&mark)
                {
                    if stat.uid == ids.uids.last() {
                        stat.uid = uid;
                    }
                    if stat.gid == ids.gids.last() {
                        stat.gid = gid;
                    }
                }
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
                Pretence::Marked(_) => true,
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
            Pretence::Nothing | Pretence::Marked(_) => None,
        };
        match recorded {
            // A directory with setgid passes its group on, so even a new file of our own is not surely 0:0.
            None => {
                if let Some(owner) = attributes.owner.or(new.then_some((0, 0))) {
                    self.give(target, owner)?;
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

    /// Changes the owner, or marks the file where that one does not exist.
    fn give(&self, target: Target<'_>, (uid, gid): (u32, u32)) -> io::Result<()> {
        let Pretence::Marked(Some(ids)) = &self.pretence else { return target.chown(uid, gid) };
        let (real_uid, real_gid) = (ids.uids.real(uid), ids.gids.real(gid));
        target.chown(real_uid, real_gid)?;
        if real_uid == ids.uids.last() || real_gid == ids.gids.last() {
            let marked = target.set_xattr(OsStr::new(OWNER_MARK), format!("{uid} {gid}").as_bytes());
            if marked.is_err() && (real_uid, real_gid) != (uid, gid) {
                // What chown(2) says of an id that does not exist.
                return Err(Errno::INVAL.into());
            }
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
        if !matches!(self.pretence, Pretence::Nothing) {
            // Not even where it could be made: there is somebody who could open it.
            return self.make_stand_in(dir, name, kind, (major, minor));
        }
        let file_type = match kind {
            FileKind::BlockDevice => FileType::BlockDevice,
            _ => FileType::CharacterDevice,
        };
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(dir, name, file_type, Mode::from_raw_mode(0o600), device)
    }

    /// Makes an empty file, mode 0600, that stands for a device.
    ///
    /// # Errors
    /// What the kernel says; `EPERM` for a tree whose devices are real, and where a file cannot be marked.
    pub(crate) fn make_stand_in(
        &self,
        dir: &impl AsFd,
        name: &OsStr,
        kind: FileKind,
        (major, minor): (u32, u32),
    ) -> rustix::io::Result<()> {
        match &self.pretence {
            Pretence::Nothing => Err(Errno::PERM),
            Pretence::Recorded(owners) => {
                let fd = new_file(dir, name)?;
                let key = Key::of(&Stat::of(&fd)?);
                owners.forget(key);
                owners.set_device(key, kind, (major, minor));
                Ok(())
            }
            Pretence::Marked(_) => {
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
    fn ids_of_a_namespace() {
        let ids = Ids::parse("         0       1000          1\n         1     100000      65536\n").unwrap();
        assert_eq!((ids.last(), ids.is_all()), (65_536, false));
        assert_eq!([0, 1, 65_536, 65_537, 3_000_000].map(|id| ids.real(id)), [0, 1, 65_536, 65_536, 65_536]);
        assert!(Ids::parse("         0          0 4294967295\n").unwrap().is_all());
        assert_eq!(Ids::parse("what"), None);
        assert_eq!(Ids::parse(""), None);
        assert_eq!(parse_owner(b"3000000 7"), Some((3_000_000, 7)));
        assert_eq!(parse_owner(b"3000000"), None);
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn a_marked_file_belongs_to_whom_the_mark_says() {
        let dir = tempfile::tempdir().unwrap();
        let ids = |last: u32| Ids(vec![(0, last + 1)]);
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        // As if only the ids up to our own existed.
        let standin = StandIn { uids: ids(own.0), gids: ids(own.1) };
        let rootfs = Rootfs::open(dir.path()).unwrap().pretending(Pretence::Marked(Some(Arc::new(standin))));
        let owner = |path: &str| {
            let metadata = rootfs.lstat(Path::new(path)).unwrap();
            (metadata.uid, metadata.gid)
        };
        let give = |uid, gid| Attributes { owner: Some((uid, gid)), ..Attributes::default() };
        let far = (3_000_000, 3_000_001);
        if let Err(error) = rootfs.create(Path::new("f"), NewFile::File(&mut &b"x"[..]), &give(far.0, far.1)) {
            eprintln!("skipped: no user attributes here: {error}");
            return;
        }
        rootfs.create(Path::new("d"), NewFile::Directory, &give(far.0, own.1)).unwrap();
        assert_eq!((owner("f"), owner("d")), (far, (far.0, own.1)));
        assert_eq!(rootfs.list().unwrap().get(Path::new("f")).unwrap().unwrap().metadata.uid, far.0);
        assert!(rootfs.xattrs(Path::new("f")).unwrap().is_empty());
        rootfs.set_attributes(Path::new("f"), &give(own.0, own.1)).unwrap();
        assert_eq!(owner("f"), own);
        let link = rootfs.create(Path::new("l"), NewFile::Symlink(Path::new("f")), &give(far.0, far.1));
        assert_eq!(link.unwrap_err().raw_os_error(), Some(Errno::INVAL.raw_os_error()));
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn a_marked_file_is_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = Rootfs::open(dir.path()).unwrap().pretending(Pretence::Marked(None));
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
        assert_eq!(rootfs.list().unwrap().get(Path::new("null")).unwrap().unwrap().metadata.device, (1, 3));
        // A layer cannot make a device of its file.
        let attributes = Attributes { xattrs: vec![(DEVICE_MARK.into(), b"c 1 3".to_vec())], ..Attributes::default() };
        rootfs.set_attributes(Path::new("plain"), &attributes).unwrap();
        assert_eq!(rootfs.lstat(Path::new("plain")).unwrap().kind, FileKind::File);
    }
}
