//! Files that a tree borrows from a base: names of the base's own inodes, which nobody may change.
//!
//! Where a supervisor sees every change that a command is about to make (the tier `traced`), a tree need not have files of
//! its own: they are hard links to those of a *base*, a tree below `<work>/trees/bases` that is never changed, and each gets a
//! copy of its own before it is changed in any way ([`Owners::own`]), as overlayfs does it. Only regular files that have
//! bytes and one name in the base are lent.
//!
//! What is borrowed is known by inode and birth time, kept beside the base and each tree of its (`borrowed`). A tree shows
//! such a file with one name, with the mode that the base's image gives it, and with a change time that does not move when others
//! take or drop names of it.
//!
//! Lent files may be written by nobody: their modes on the disk lack the bits, so that a way to change one that was overlooked
//! is an error, not damage, unless this process may do everything.
//!
//! # Limitations
//! A descriptor that was opened for reading before a file was changed by its name still reads the old bytes (so it is with
//! overlayfs), and flock(2) on one meets other stages that lock the same file of their base. Flags of inodes (chattr(1)) that
//! their owner may set reach the base; no layer has them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::Target;
use super::holds::Holds;
use super::owners::{Facts, Key, Owners};
use super::sparse::Original;
use super::stat::Stat;
use super::{FileKind, ListError, Listing, Rootfs};
use crate::disk::Disk;

/// Name of the list beside a tree.
pub(super) const BORROWED: &str = "borrowed";

/// First bytes of the list; another number for another form.
const MAGIC: &[u8; 16] = b"slipway lent  1\n";

/// Bytes of one entry: inode, birth time (seconds, nanoseconds), mode shown, mode on the disk, check.
const ENTRY_BYTES: usize = 28;

/// Bits of a mode that nobody has for a lent file.
const WRITABLE: u32 = 0o222;

/// One lent file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Lent {
    key: Key,
    /// Permission bits that the image has, and that the disk has.
    modes: (u16, u16),
    /// Of what a write would change.
    check: u32,
}

/// Tells whether a file was written to.
fn check(stat: &Stat) -> u32 {
    let mut hasher = flate2::Crc::new();
    hasher.update(&stat.size.to_le_bytes());
    hasher.update(&stat.mtime.0.to_le_bytes());
    hasher.update(&stat.mtime.1.to_le_bytes());
    hasher.sum()
}

/// The files of a base that trees may borrow.
#[derive(Debug, Default, Clone)]
pub(super) struct LentFiles(Arc<[Lent]>);

impl LentFiles {
    fn find(&self, key: Key) -> Option<&Lent> {
        self.0.binary_search_by_key(&key, |lent| lent.key).ok().map(|at| &self.0[at])
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        self.find(key).is_some()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The mode that the image gives a lent file.
    pub(super) fn mode(&self, key: Key) -> Option<u32> {
        self.find(key).map(|lent| lent.modes.0.into())
    }

    /// The first path of a list where a lent file was written to.
    pub(super) fn damaged(&self, listing: &Listing) -> Result<Option<PathBuf>, ListError> {
        for entry in listing.raw() {
            let (path, stat) = entry?;
            if self.find(Key::of(&stat)).is_some_and(|lent| lent.check != check(&stat)) {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }

    /// Reads the list beside a tree; one without has none.
    pub(super) fn load(tree: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        match File::open(tree.join(BORROWED)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            opened => opened?.read_to_end(&mut bytes)?,
        };
        let entries = bytes.strip_prefix(MAGIC).filter(|entries| entries.len().is_multiple_of(ENTRY_BYTES));
        let parse = |entry: &[u8]| Lent {
            key: Key {
                inode: u64::from_le_bytes(entry[..8].try_into().expect("eight bytes")),
                born: (
                    i64::from_le_bytes(entry[8..16].try_into().expect("eight bytes")),
                    u32::from_le_bytes(entry[16..20].try_into().expect("four bytes")),
                ),
            },
            modes: (
                u16::from_le_bytes(entry[20..22].try_into().expect("two bytes")),
                u16::from_le_bytes(entry[22..24].try_into().expect("two bytes")),
            ),
            check: u32::from_le_bytes(entry[24..].try_into().expect("four bytes")),
        };
        Ok(Self(entries.ok_or(io::ErrorKind::InvalidData)?.chunks_exact(ENTRY_BYTES).map(parse).collect()))
    }

    /// Writes the list beside a tree.
    pub(super) fn save(&self, tree: &Path) -> io::Result<()> {
        let mut file = io::BufWriter::new(File::create(tree.join(BORROWED))?);
        file.write_all(MAGIC)?;
        for Lent { key, modes, check } in self.0.iter() {
            file.write_all(&key.inode.to_le_bytes())?;
            file.write_all(&key.born.0.to_le_bytes())?;
            file.write_all(&key.born.1.to_le_bytes())?;
            file.write_all(&modes.0.to_le_bytes())?;
            file.write_all(&modes.1.to_le_bytes())?;
            file.write_all(&check.to_le_bytes())?;
        }
        file.flush()
    }

    /// Makes the files of a whole tree, whose owners are recorded, such that they can be lent.
    pub(super) fn of(rootfs: &Rootfs) -> Result<Self, ListError> {
        let listing = rootfs.list()?;
        let mut lent = Vec::new();
        for entry in listing.raw() {
            let (path, stat) = entry?;
            // Devices are empty files, too.
            if stat.kind != FileKind::File || stat.links != 1 || stat.size == 0 || stat.btime == (0, 0) {
                continue;
            }
            let fail = |source: io::Error| ListError { path: path.clone(), source };
            let Some((dir, name)) = rootfs.parent_of(&path).map_err(fail)? else { continue };
            let real = Stat::entry(&dir, &name).map_err(|error| fail(error.into()))?.mode;
            let kept = (real | 0o400) & !WRITABLE;
            rustix::fs::chmodat(&dir, &*name, Mode::from_raw_mode(kept), AtFlags::empty())
                .map_err(|error| fail(error.into()))?;
            let bits = |mode: u32| u16::try_from(mode & 0o7777).expect("twelve bits");
            lent.push(Lent { key: Key::of(&stat), modes: (bits(stat.mode), bits(kept)), check: check(&stat) });
        }
        lent.sort_unstable();
        Ok(Self(lent.into()))
    }
}

/// Permission bits with which the copy of a file of this mode is kept. Setuid and setgid count for nobody here, and the kernel would
/// take them with the first write.
pub(super) fn own_mode(shown: u32) -> u32 {
    (shown & !0o6000) | 0o600
}

/// What one tree has borrowed.
#[derive(Debug)]
pub(super) struct Borrowed {
    files: LentFiles,
    /// A directory on the same file system, in which copies are made before they get their names.
    staging: PathBuf,
    /// What the copies count for.
    disk: Disk,
    /// The copies that this process made, by what they are copies of.
    copies: Mutex<BTreeMap<Key, Key>>,
    /// Held while one is made.
    making: Mutex<()>,
    /// Files of the tree's own that are treated as borrowed.
    pub(super) holds: Holds,
}

impl Borrowed {
    pub(super) fn new(files: LentFiles, staging: PathBuf, disk: Disk) -> Self {
        Self { files, staging, disk, copies: Mutex::default(), making: Mutex::default(), holds: Holds::default() }
    }

    /// Does something between two copies.
    pub(super) fn while_nobody_copies(&self, action: impl FnOnce()) {
        let _making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        action();
    }

    fn copies(&self) -> MutexGuard<'_, BTreeMap<Key, Key>> {
        // Every change is whole before the lock is released.
        self.copies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Owners {
    fn lent(&self, key: Key) -> Option<Lent> {
        self.borrowed()?.files.find(key).copied()
    }

    /// Whether there are borrowed files at all.
    pub fn borrows_files(&self) -> bool {
        self.borrowed().is_some()
    }

    /// Whether a file is a base's.
    pub fn is_lent(&self, key: Key) -> bool {
        self.lent(key).is_some()
    }

    /// Whether a file is borrowed, a base's or one that is held, or was: [`Owners::own`] comes before every change of it. What is held
    /// may be the tree's alone at the next moment.
    pub fn is_borrowed(&self, key: Key) -> bool {
        self.is_lent(key) || self.is_held(key) || self.copy_of(key).is_some()
    }

    /// Whether a file is held, or was.
    pub fn was_held(&self, key: Key) -> bool {
        self.borrowed().is_some_and(|borrowed| borrowed.holds.find(key).is_some())
    }

    fn is_held(&self, key: Key) -> bool {
        self.borrowed().is_some_and(|borrowed| borrowed.holds.has(key))
    }

    /// The file that took the place of a borrowed one.
    pub fn copy_of(&self, key: Key) -> Option<Key> {
        let is_known = |borrowed: &&Borrowed| borrowed.files.contains(key) || borrowed.holds.find(key).is_some();
        self.borrowed().filter(is_known)?.copies().get(&key).copied()
    }

    /// The copies of borrowed files, with what each is a copy of.
    pub(super) fn copies(&self) -> BTreeMap<Key, Key> {
        let copies = self.borrowed().map(|borrowed| borrowed.copies().clone()).unwrap_or_default();
        copies.into_iter().map(|(was, is)| (is, was)).collect()
    }

    /// Adds what is known of a borrowed file because it is one.
    pub(super) fn complete(&self, key: Key, facts: &mut Facts) {
        if let Some(Lent { modes: (shown, real), .. }) = self.lent(key) {
            facts.mode = Some((shown.into(), real.into()));
            facts.borrowed = true;
        } else if let Some(borrowed) = self.borrowed() {
            facts.hold = borrowed.holds.find(key);
        }
    }

    /// Gives an entry of a directory a file of its own, if it is a borrowed one, and says whether it was. What the image sees is the
    /// same before and after, the time of the directory included.
    ///
    /// # Errors
    /// What the kernel says; the entry is then as it was.
    pub fn own(&self, dir: impl AsFd, name: &OsStr) -> io::Result<bool> {
        let Some(borrowed) = self.borrowed() else { return Ok(false) };
        let is_lent = |stat: &Stat| {
            let key = Key::of(stat);
            stat.kind == FileKind::File && (borrowed.files.contains(key) || borrowed.holds.has(key))
        };
        match Stat::entry(&dir, name) {
            Ok(stat) if is_lent(&stat) => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        let _making = borrowed.making.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have been here meanwhile, or whoever held it.
        let was = Stat::entry(&dir, name)?;
        if !is_lent(&was) {
            return Ok(true);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let original = File::from(rustix::fs::openat(&dir, name, flags, Mode::empty())?);
        if Key::of(&Stat::of(&original)?) != Key::of(&was) {
            return Err(Errno::AGAIN.into());
        }
        let copy = tempfile::NamedTempFile::new_in(&borrowed.staging)?;
        Original { file: &original, go_on: &|| Ok(()), seen: None }.copy_to(copy.as_file(), &borrowed.disk)?;
        let key = Key::of(&Stat::of(copy.as_file())?);
        let (from, to) = (Target::Open(original.as_fd()), Target::Open(copy.as_file().as_fd()));
        let facts = self.facts(Key::of(&was));
        let shown = facts.mode(was.mode);
        let real = own_mode(shown);
        to.chmod(real)?;
        from.copy_xattrs(to)?;
        to.set_mtime(was.mtime)?;
        if let Some(record) = self.record(Key::of(&was)) {
            self.put_record(key, record);
        }
        self.set_mode(key, shown, real);
        let around = Stat::of(&dir)?;
        let (_, path) = copy.keep().map_err(|error| error.error)?;
        if let Err(error) = rustix::fs::renameat(CWD, &path, &dir, name) {
            _ = std::fs::remove_file(&path);
            return Err(error.into());
        }
        borrowed.copies().insert(Key::of(&was), key);
        // To get a file of its own is no change of the directory.
        Target::Place(dir.as_fd(), FileKind::Directory).set_mtime(around.mtime)?;
        Ok(true)
    }
}

impl Rootfs {
    /// Gives what `path` leads to a file of its own, before it is changed.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn own_at(&self, path: &Path) -> io::Result<()> {
        if !self.owners().is_some_and(|owners| owners.borrows_files()) {
            return Ok(());
        }
        let plain = self.resolve(path, true)?;
        match self.parent_of(&plain)? {
            Some((dir, name)) => self.own(&dir, &name),
            None => Ok(()),
        }
    }

    /// Gives an entry of a directory a file of its own, before it is changed.
    pub(super) fn own(&self, dir: impl AsFd, name: &OsStr) -> io::Result<()> {
        match self.owners() {
            Some(owners) => owners.own(dir, name).map(drop),
            None => Ok(()),
        }
    }
}
