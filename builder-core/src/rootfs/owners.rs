//! What cannot be made real where only one id exists: owners, devices and privileged attributes, kept beside the tree.
//!
//! ```text
//! <tree>/root/         the tree; every file really belongs to us, devices are empty regular files
//! <tree>/owners.json   one JSON object a line for each file with something recorded
//! ```
//!
//! A record belongs to an inode (its number and birth time), so renames and further links by anybody keep it, and a number
//! that is used again does not inherit it. A file without a record belongs to 0:0.
//!
//! # Limitations
//! Where the file system keeps no birth times, a file that somebody else makes with the inode of a removed one inherits
//! its record. A copy that a step makes has no record.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rustix::fs::{Statx, StatxTimestamp};
use serde::{Deserialize, Serialize};

use super::attributes::CAPABILITY;
use super::borrowed::Borrowed;
use super::holds::Hold;
use super::stat::Stat;
use super::{FileKind, ListError, Listing};

/// The records of one tree.
#[derive(Debug, Default)]
pub struct Owners {
    records: Mutex<BTreeMap<Key, Record>>,
    /// Files that the tree borrows from a base.
    borrowed: OnceLock<Borrowed>,
    /// What was in files with a capability when somebody could begin to write to them, or gave them another time.
    watched: Mutex<BTreeMap<Key, Bytes>>,
    /// Whether any file has, or had, a capability.
    capable: AtomicBool,
}

/// By what it is told whether a file was written to: its size, and when it was, as in [`Key::born`].
pub type Bytes = (u64, (i64, u32));

/// An inode during its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Its number.
    pub inode: u64,
    /// When it was made: seconds since 1970 and nanoseconds; zeros where the file system does not say.
    pub born: (i64, u32),
}

/// All that is recorded of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Record {
    facts: Facts,
    xattrs: BTreeMap<OsString, Vec<u8>>,
}

impl Record {
    fn is_capable(&self) -> bool {
        self.xattrs.contains_key(OsStr::new(CAPABILITY))
    }
}

/// What is recorded of a file beside extended attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Facts {
    /// User and group, if they are not 0.
    pub owner: Option<(u32, u32)>,
    /// That it is a device, and which: major, minor.
    pub device: Option<(FileKind, u32, u32)>,
    /// Permission bits as the image sees them, and as the disk has them instead: somebody without privileges must be able to
    /// open what root can open. They count only as long as the disk has these.
    pub mode: Option<(u32, u32)>,
    /// That it is a file of a base ([`Owners::own`]): it has one name, whatever the disk says.
    pub borrowed: bool,
    /// That it has, or had, a name more than anybody knows of.
    pub(super) hold: Option<Hold>,
}

impl Facts {
    /// Number of links and change time to show for a file that has these, and this modification time.
    fn links_and_change(&self, links: u64, mtime: (i64, u32), ctime: (i64, u32)) -> (u64, (i64, u32)) {
        match self.hold {
            // Others take names of it and drop them.
            _ if self.borrowed => (1, mtime),
            Some(hold) => hold.show(links, ctime),
            None => (links, ctime),
        }
    }

    /// Puts the number of links and the change time that are to be shown in the place of those that the disk has.
    pub fn show_links_and_change(&self, stat: &mut Statx) {
        let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
        let (links, ctime) = self.links_and_change(stat.stx_nlink.into(), time(stat.stx_mtime), time(stat.stx_ctime));
        stat.stx_nlink = u32::try_from(links).unwrap_or(u32::MAX);
        (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) = ctime;
    }

    /// Permission bits to show for a file that has `real` ones.
    pub fn mode(&self, real: u32) -> u32 {
        match self.mode {
            Some((shown, instead)) if instead == real => shown,
            _ => real,
        }
    }
}

/// A record as a line of the file; bytes in base64.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    inode: u64,
    born: (i64, u32),
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<(u32, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    device: Option<(char, u32, u32)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    mode: Option<(u32, u32)>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    xattrs: Vec<(String, String)>,
}

impl Key {
    pub(super) fn of(stat: &Stat) -> Self {
        Self { inode: stat.inode, born: stat.btime }
    }
}

impl Owners {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Record>> {
        // Every change is whole before the lock is released, even if its thread then panics.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the image sees of a file.
    pub(super) fn shown(&self, mut stat: Stat) -> Stat {
        (stat.uid, stat.gid) = (0, 0);
        let facts = self.facts(Key::of(&stat));
        if facts != Facts::default() {
            (stat.links, stat.ctime) = facts.links_and_change(stat.links, stat.mtime, stat.ctime);
            if let Some(owner) = facts.owner {
                (stat.uid, stat.gid) = owner;
            }
            stat.mode = facts.mode(stat.mode);
            if let Some((kind, major, minor)) = facts.device {
                (stat.kind, stat.device, stat.size) = (kind, (major, minor), 0);
            }
        }
        stat
    }

    /// Whether a directory entry with this inode may be a device.
    pub(super) fn may_be_device(&self, inode: u64) -> bool {
        let from = Key { inode, born: (i64::MIN, 0) };
        let to = Key { inode, born: (i64::MAX, u32::MAX) };
        self.lock().range(from..=to).any(|(_, record)| record.facts.device.is_some())
    }

    /// What is recorded of a file.
    pub fn facts(&self, key: Key) -> Facts {
        let mut facts = self.lock().get(&key).map(|record| record.facts).unwrap_or_default();
        self.complete(key, &mut facts);
        facts
    }

    /// The files that the tree borrows, if it does.
    pub(super) fn borrowed(&self) -> Option<&Borrowed> {
        self.borrowed.get()
    }

    /// Says which files the tree borrows; the first word is the last.
    pub(super) fn borrows(&self, files: Borrowed) {
        _ = self.borrowed.set(files);
    }

    /// All that is recorded of a file, if anything is.
    pub(super) fn record(&self, key: Key) -> Option<Record> {
        self.lock().get(&key).cloned()
    }

    /// Records all of it of another one.
    pub(super) fn put_record(&self, key: Key, record: Record) {
        if record.is_capable() {
            self.capable.store(true, Ordering::Relaxed);
        }
        self.lock().insert(key, record);
    }

    /// Whether a device is recorded.
    pub fn has_devices(&self) -> bool {
        self.lock().values().any(|record| record.facts.device.is_some())
    }

    /// Records an owner.
    pub fn set_owner(&self, key: Key, owner: (u32, u32)) {
        self.change(key, |record| record.facts.owner = (owner != (0, 0)).then_some(owner));
    }

    /// Records that a file is a device.
    pub fn set_device(&self, key: Key, kind: FileKind, (major, minor): (u32, u32)) {
        self.change(key, |record| record.facts.device = Some((kind, major, minor)));
    }

    /// Records permission bits in the place of those that the disk has.
    pub fn set_mode(&self, key: Key, shown: u32, real: u32) {
        // Nothing is recorded of most files, and most modes are real.
        if shown != real || self.facts(key).mode.is_some() {
            self.change(key, |record| record.facts.mode = (shown != real).then_some((shown, real)));
        }
    }

    /// Records an extended attribute.
    pub fn set_xattr(&self, key: Key, name: &OsStr, value: &[u8]) {
        if name == CAPABILITY {
            self.capable.store(true, Ordering::Relaxed);
        }
        self.change(key, |record| {
            record.xattrs.insert(name.to_owned(), value.to_vec());
        });
    }

    /// Drops a recorded attribute.
    pub fn remove_xattr(&self, key: Key, name: &OsStr) {
        self.change(key, |record| {
            record.xattrs.remove(name);
        });
    }

    /// All recorded attributes of a file.
    pub fn xattrs(&self, key: Key) -> BTreeMap<OsString, Vec<u8>> {
        self.lock().get(&key).map(|record| record.xattrs.clone()).unwrap_or_default()
    }

    /// Whether an attribute of this name is recorded of any file.
    pub fn has_xattr(&self, name: &OsStr) -> bool {
        self.lock().values().any(|record| record.xattrs.contains_key(name))
    }

    /// A file that holds `bytes` may be written to from now on, by calls that nobody sees; or it has just been given a capability or a
    /// time. A capability is taken from it when it is found to hold others ([`Self::settle`]), as the kernel does (capabilities(7)).
    pub fn watch(&self, key: Key, bytes: Bytes) {
        if self.is_capable(key) {
            self.watched.lock().unwrap_or_else(PoisonError::into_inner).insert(key, bytes);
        }
    }

    /// Takes the capability from a file that was written to: that holds `bytes`, and others when it was watched.
    pub fn settle(&self, key: Key, bytes: Bytes) {
        let written = {
            let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
            let written = watched.get(&key).is_some_and(|before| *before != bytes);
            written && watched.remove(&key).is_some()
        };
        if written {
            self.remove_xattr(key, OsStr::new(CAPABILITY));
        }
    }

    /// Whether any file has a capability.
    pub fn has_capable(&self) -> bool {
        self.capable.load(Ordering::Relaxed)
    }

    /// Whether a file has a capability.
    pub fn is_capable(&self, key: Key) -> bool {
        self.lock().get(&key).is_some_and(Record::is_capable)
    }

    /// A new file begins without a record, whatever had its inode before.
    pub fn forget(&self, key: Key) {
        self.lock().remove(&key);
    }

    fn change(&self, key: Key, change: impl FnOnce(&mut Record)) {
        let mut records = self.lock();
        let mut record = records.remove(&key).unwrap_or_default();
        change(&mut record);
        if record != Record::default() {
            records.insert(key, record);
        }
    }

    /// Drops the records of all inodes but these (sorted).
    pub(super) fn retain(&self, alive: &[Key]) {
        self.lock().retain(|key, _| alive.binary_search(key).is_ok());
    }

    /// Takes recorded file capabilities from files that a step wrote to, which the kernel does with real ones
    /// (capabilities(7)). A file that was not watched and whose time was set is taken for written.
    pub(super) fn drop_capabilities(&self, before: &Listing, after: &Listing) -> Result<(), ListError> {
        let name = OsStr::new(CAPABILITY);
        let copies = self.copies();
        let later: BTreeMap<Key, Key> = copies.iter().map(|(is, was)| (*was, *is)).collect();
        let mut records = self.lock();
        if !records.values().any(|record| record.xattrs.contains_key(name)) {
            return Ok(());
        }
        let has = |key: &Key| records.get(key).is_some_and(|record| record.xattrs.contains_key(name));
        let capable = |stat: &Stat| has(&Key::of(stat)) || later.get(&Key::of(stat)).is_some_and(has);
        let data = |listing: &Listing| -> Result<BTreeMap<_, _>, ListError> {
            let capable = listing.stats().filter(|stat| stat.as_ref().map_or(true, capable));
            capable.map(|stat| stat.map(|stat| (Key::of(&stat), (stat.size, stat.mtime)))).collect()
        };
        let (was, is) = (data(before)?, data(after)?);
        let watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, data) in is {
            let before = copies.get(&key).unwrap_or(&key);
            if watched.get(&key).or_else(|| was.get(before)).is_some_and(|was| *was != data)
                && let Some(record) = records.get_mut(&key)
            {
                record.xattrs.remove(name);
            }
        }
        Ok(())
    }

    /// Gives new files in a directory with setgid the directory's group, as the kernel does where that group is real
    /// (inode(7)).
    pub(super) fn inherit_groups(&self, before: &Listing, after: &mut Listing) -> Result<(), ListError> {
        const SETGID: u32 = 0o2000;
        let passes_on = |stat: &Stat| stat.kind == FileKind::Directory && stat.mode & SETGID != 0 && stat.gid != 0;
        if !after.stats().any(|stat| stat.as_ref().map_or(true, passes_on)) {
            return Ok(());
        }
        let old: Result<Vec<Key>, ListError> = before.stats().map(|stat| stat.map(|stat| Key::of(&stat))).collect();
        let mut old = old?;
        old.extend(self.copies().into_keys());
        old.sort_unstable();
        after.visit_children(|directory, stat| {
            let key = Key::of(stat);
            if passes_on(directory) && stat.gid == 0 && old.binary_search(&key).is_err() {
                stat.gid = directory.gid;
                self.set_owner(key, (stat.uid, stat.gid));
            }
        })
    }

    /// Reads records; a file that is not there has none.
    ///
    /// # Errors
    /// What the kernel says; `InvalidData` for what [`Owners::save`] has not written.
    pub fn load(path: &Path) -> io::Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error),
        };
        let mut records = BTreeMap::new();
        for line in BufReader::new(file).lines() {
            let line: Line = serde_json::from_str(&line?)?;
            let (key, record) = line.parse().ok_or(io::ErrorKind::InvalidData)?;
            records.insert(key, record);
        }
        let capable = AtomicBool::new(records.values().any(Record::is_capable));
        Ok(Self { records: Mutex::new(records), capable, ..Self::default() })
    }

    /// Writes records in the place of those in the file, but keeps those of files of which nothing is recorded here: somebody
    /// else may have added them since.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn save_over(&self, path: &Path) -> io::Result<()> {
        let others = Self::load(path)?.records.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut records = self.lock();
        for (key, record) in others {
            records.entry(key).or_insert(record);
        }
        drop(records);
        self.save(path)
    }

    /// Writes records in the place of those in the file.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        {
            let mut writer = BufWriter::new(&mut file);
            for (key, record) in self.lock().iter() {
                serde_json::to_writer(&mut writer, &Line::new(*key, record))?;
                writer.write_all(b"\n")?;
            }
            writer.flush()?;
        }
        file.persist(path)?;
        Ok(())
    }
}

impl Line {
    fn new(key: Key, record: &Record) -> Self {
        Self {
            inode: key.inode,
            born: key.born,
            owner: record.facts.owner,
            mode: record.facts.mode,
            device: record
                .facts
                .device
                .map(|(kind, major, minor)| (if kind == FileKind::BlockDevice { 'b' } else { 'c' }, major, minor)),
            xattrs: record
                .xattrs
                .iter()
                .map(|(name, value)| (BASE64.encode(name.as_bytes()), BASE64.encode(value)))
                .collect(),
        }
    }

    fn parse(self) -> Option<(Key, Record)> {
        let device = match self.device {
            None => None,
            Some(('c', major, minor)) => Some((FileKind::CharDevice, major, minor)),
            Some(('b', major, minor)) => Some((FileKind::BlockDevice, major, minor)),
            Some(_) => return None,
        };
        let mut xattrs = BTreeMap::new();
        for (name, value) in self.xattrs {
            xattrs.insert(OsString::from_vec(BASE64.decode(name).ok()?), BASE64.decode(value).ok()?);
        }
        Some((
            Key { inode: self.inode, born: self.born },
            Record { facts: Facts { owner: self.owner, device, mode: self.mode, ..Facts::default() }, xattrs },
        ))
    }
}
