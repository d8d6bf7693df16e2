//! Giving attributes to files, and what stands in for those that cannot be made real.
//!
//! In a user namespace no device can be made: an empty regular file with the attribute `user.slipway.device` stands for it,
//! which renames, copies up in overlayfs and copies with attributes keep. Nor does every id exist there: a file or
//! directory that an image gives to another one gets the namespace's last id, and the attribute `user.slipway.owner` says
//! whose it is, until somebody gives it away. In directory mode on a volume without such attributes (ramfs, NFS, older tmpfs) both are
//! recorded beside the tree instead (see `owners`). With one id alone, owners, devices and privileged attributes are recorded there.
//!
//! # Limitations
//! Links, fifos and sockets can have no such attribute (xattr(7)): one that belongs to an id that does not exist is an error where
//! attributes are the marks.

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
    Marked(Marks),
    /// Owners, devices and privileged attributes, by records.
    Recorded(Arc<Owners>),
}

/// How files are marked.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    /// The ids that there are, if those are not all.
    pub ids: Option<Arc<StandIn>>,
    /// Where the marks are, if files cannot have attributes. Permission bits and attributes are never among them.
    pub records: Option<Arc<Owners>>,
}

impl Marks {
    /// The device that a file stands for.
    fn device(&self, stat: &Stat, dir: impl AsFd, name: &OsStr) -> Option<DeviceMark> {
        if stat.kind != FileKind::File || stat.size != 0 {
            return None;
        }
        match &self.records {
            Some(records) => {
                let (kind, major, minor) = records.facts(Key::of(stat)).device?;
                Some(DeviceMark { kind, major, minor })
            }
            None => DeviceMark::parse(&entry_xattr(dir, name, OsStr::new(DEVICE_MARK))?),
        }
    }

    /// The owner of a file that cannot be had here.
    fn owner(&self, stat: &Stat, dir: impl AsFd, name: &OsStr) -> Option<(u32, u32)> {
        match &self.records {
            Some(records) => records.facts(Key::of(stat)).owner,
            None => parse_owner(&entry_xattr(dir, name, OsStr::new(OWNER_MARK))?),
        }
    }

    fn set_owner(&self, target: Target<'_>, (uid, gid): (u32, u32)) -> rustix::io::Result<()> {
        match &self.records {
            Some(records) => {
                records.set_owner(Key::of(&Stat::of(target.fd())?), (uid, gid));
                Ok(())
            }
            None => target.set_xattr(OsStr::new(OWNER_MARK), format!("{uid} {gid}").as_bytes()),
        }
    }
}

impl Pretence {
    /// What is recorded beside the tree, if anything can be.
    pub(super) fn records(&self) -> Option<&Arc<Owners>> {
        match self {
            Self::Nothing => None,
            Self::Marked(marks) => marks.records.as_ref(),
            Self::Recorded(owners) => Some(owners),
        }
    }

    /// The same for a tree of which this is recorded.
    pub(super) fn with_records(&self, records: Arc<Owners>) -> Self {
        match self {
            Self::Nothing => Self::Nothing,
            Self::Marked(marks) => Self::Marked(Marks { ids: marks.ids.clone(), records: Some(records) }),
            Self::Recorded(_) => Self::Recorded(records),
        }
    }

    /// Where everything is recorded that somebody without privileges cannot make real.
    pub(super) fn owners(&self) -> Option<&Arc<Owners>> {
        match self {
            Self::Recorded(owners) => Some(owners),
            Self::Nothing | Self::Marked(_) => None,
        }
    }
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
            Pretence::Marked(marks) => {
                if let Some(ids) = &marks.ids
                    && (stat.uid == ids.uids.last() || stat.gid == ids.gids.last())
                    && let Some((uid, gid)) = marks.owner(&stat, &dir, name)
                {
                    if stat.uid == ids.uids.last() {
                        stat.uid = uid;
                    }
                    if stat.gid == ids.gids.last() {
                        stat.gid = gid;
                    }
                }
                if let Some(mark) = marks.device(&stat, dir, name) {
                    (stat.kind, stat.device) = (mark.kind, (mark.major, mark.minor));
                }
                stat
            }
        }
    }

    /// Whether what a directory lists as this kind may be a device for the image.
    pub(super) fn may_be_device(&self, kind: FileKind, inode: u64) -> bool {
        kind == FileKind::File
            && match (&self.pretence, self.pretence.records()) {
                (_, Some(records)) => records.may_be_device(inode),
                (pretence, None) => !matches!(pretence, Pretence::Nothing),
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
        let recorded = match self.owners() {
            Some(owners) => Some((owners, Key::of(&Stat::of(target.fd())?))),
            None => None,
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
        let Pretence::Marked(marks @ Marks { ids: Some(ids), .. }) = &self.pretence else {
            return target.chown(uid, gid);
        };
        let (real_uid, real_gid) = (ids.uids.real(uid), ids.gids.real(gid));
        target.chown(real_uid, real_gid)?;
        if real_uid == ids.uids.last() || real_gid == ids.gids.last() {
            let marked = marks.set_owner(target, (uid, gid));
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
        if let Some(owners) = self.owners() {
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
        match (&self.pretence, self.pretence.records()) {
            (Pretence::Nothing, _) => Err(Errno::PERM),
            (_, Some(records)) => {
                let fd = new_file(dir, name)?;
                let key = Key::of(&Stat::of(&fd)?);
                records.forget(key);
                records.set_device(key, kind, (major, minor));
                Ok(())
            }
            (_, None) => {
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

    /// Whether what stands for a device is recorded beside the tree, so that it is one in the tree alone.
    pub(crate) fn records_stand_ins(&self) -> bool {
        self.pretence.records().is_some()
    }

    /// Takes notice of a new regular file, so that it does not inherit what was recorded for its inode.
    pub(super) fn is_new(&self, file: impl AsFd) -> rustix::io::Result<()> {
        if let Some(records) = self.pretence.records() {
            records.forget(Key::of(&Stat::of(file)?));
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
        let marks = Marks { ids: Some(Arc::new(standin)), records: None };
        let rootfs = Rootfs::open(dir.path()).unwrap().pretending(Pretence::Marked(marks));
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
    fn marks_beside_the_tree_need_no_attributes() {
        let dir = tempfile::tempdir().unwrap();
        let ids = |last: u32| Ids(vec![(0, last + 1)]);
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let standin = StandIn { uids: ids(own.0), gids: ids(own.1) };
        let marks = Marks { ids: Some(Arc::new(standin)), records: Some(Arc::default()) };
        let rootfs = Rootfs::open(dir.path()).unwrap().pretending(Pretence::Marked(marks));
        let create = |path: &str, file: NewFile<'_>, owner| {
            let attributes = Attributes { owner: Some(owner), ..Attributes::default() };
            rootfs.create(Path::new(path), file, &attributes).unwrap();
        };
        let seen = |path: &str| {
            let found = rootfs.lstat(Path::new(path)).unwrap();
            (found.kind, found.device, (found.uid, found.gid))
        };
        let far = (3_000_000, 3_000_001);
        create("null", NewFile::CharDevice(1, 3), own);
        create("sda", NewFile::BlockDevice(8, 0), far);
        create("link", NewFile::Symlink(Path::new("f")), far);
        create("fifo", NewFile::Fifo, far);
        create("d", NewFile::Directory, far);
        create("f", NewFile::File(&mut &b""[..]), own);
        rustix::fs::rename(dir.path().join("null"), dir.path().join("d/null")).unwrap();
        assert_eq!(seen("d/null"), (FileKind::CharDevice, (1, 3), own));
        assert_eq!(seen("sda"), (FileKind::BlockDevice, (8, 0), far));
        assert_eq!(seen("link"), (FileKind::Symlink, (0, 0), far));
        assert_eq!(seen("fifo"), (FileKind::Fifo, (0, 0), far));
        assert_eq!(seen("f"), (FileKind::File, (0, 0), own));
        let kinds = rootfs.read_dir(Path::new("/")).unwrap();
        let kind = |name: &str| kinds.iter().find(|(found, _)| found == name).unwrap().1;
        assert_eq!([kind("sda"), kind("f")], [FileKind::BlockDevice, FileKind::File]);
        // Nothing stands on the disk.
        let real = Rootfs::open(dir.path()).unwrap();
        assert_eq!(real.lstat(Path::new("d/null")).unwrap().kind, FileKind::File);
        assert!(real.xattrs(Path::new("d/null")).unwrap().is_empty());
        // What comes in its place is what it is.
        create("sda", NewFile::File(&mut &b""[..]), own);
        assert_eq!(seen("sda"), (FileKind::File, (0, 0), own));
    }

    #[test]
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    fn a_marked_file_is_a_device() {
        let dir = tempfile::tempdir().unwrap();
        let rootfs = Rootfs::open(dir.path()).unwrap().pretending(Pretence::Marked(Marks::default()));
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
