//! Files of a tree that are held as they are for somebody who packs them (`frozen`), and given back when that is done.
//!
//! While a file is held it is borrowed, as those of a base are (`borrowed`): whoever is about to change it gets a copy in its place.
//! The further name by which it is held moves the change time on the disk, when it is made and when it goes. Shown is what was there
//! before: while it is held, and afterwards for as long as the disk has the time of that moment.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::FileKind;
use super::owners::{Key, Owners};
use super::stat::Stat;

/// A time of a file: seconds since 1970 and nanoseconds.
type Time = (i64, u32);

/// What is known of one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    /// Names by which it is held.
    names: u32,
    /// The change time to be shown.
    shown: Time,
    /// The one that the disk has instead since it was given back.
    instead: Option<Time>,
}

impl Hold {
    /// Number of links and change time that are shown in the place of those that the disk has.
    pub(super) fn show(&self, links: u64, ctime: Time) -> (u64, Time) {
        // Held are files with one name. How many of ours there are besides is not known at a moment when one goes.
        let links = if self.names > 0 { 1 } else { links };
        let is_ours = self.names > 0 || self.instead == Some(ctime);
        (links, if is_ours { self.shown } else { ctime })
    }
}

/// Files that are held, and that were.
#[derive(Debug, Default)]
pub(super) struct Holds {
    /// Whether there ever was one: most trees have none.
    any: AtomicBool,
    files: RwLock<BTreeMap<Key, Hold>>,
}

/// Longer than a tick of the clock that files get their times from: after so long a change has another time than what came before.
const TICK: Duration = Duration::from_millis(20);

impl Holds {
    fn read(&self) -> Option<RwLockReadGuard<'_, BTreeMap<Key, Hold>>> {
        // Every change is whole before the lock is released.
        self.any.load(Ordering::Acquire).then(|| self.files.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> RwLockWriteGuard<'_, BTreeMap<Key, Hold>> {
        self.any.store(true, Ordering::Release);
        self.files.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn find(&self, key: Key) -> Option<Hold> {
        self.read()?.get(&key).copied()
    }

    /// How many files are known.
    fn count(&self) -> usize {
        self.read().map_or(0, |files| files.len())
    }

    /// Whether a file is held now.
    pub(super) fn has(&self, key: Key) -> bool {
        self.find(key).is_some_and(|hold| hold.names > 0)
    }

    /// Holds a file by one name more.
    fn add(&self, stat: &Stat) {
        let mut files = self.write();
        let hold = files.entry(Key::of(stat)).or_insert(Hold { names: 0, shown: stat.ctime, instead: None });
        hold.shown = hold.show(0, stat.ctime).1;
        hold.names += 1;
    }

    /// Files have a name less, since when the disk has these change times.
    fn remove(&self, given: &[(Key, Time)]) {
        let mut files = self.write();
        for (key, now) in given {
            if let Some(hold) = files.get_mut(key) {
                hold.names = hold.names.saturating_sub(1);
                hold.instead = Some(*now);
            }
        }
    }
}

/// Names that are given back together.
#[derive(Debug, Default)]
pub(super) struct Given(Vec<(Key, Time)>);

impl Owners {
    /// How many files are held, or were.
    pub(super) fn known_holds(&self) -> usize {
        self.borrowed().map_or(0, |borrowed| borrowed.holds.count())
    }

    /// Makes a further name of a file with one name, by which it is held. `false` if the file system makes none.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn hold(&self, from: (impl AsFd, &OsStr), to: (impl AsFd, &OsStr)) -> io::Result<bool> {
        let Some(borrowed) = self.borrowed() else { return Ok(false) };
        let stat = Stat::entry(&from.0, from.1)?;
        if stat.kind != FileKind::File {
            return Err(Errno::INVAL.into());
        }
        let key = Key::of(&stat);
        // A base's file is changed by nobody.
        let held = !self.is_lent(key);
        if held {
            borrowed.holds.add(&stat);
        }
        match rustix::fs::linkat(&from.0, from.1, &to.0, to.1, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(error) => {
                tracing::trace!(%error, "a file of a layer is copied");
                if held {
                    borrowed.holds.remove(&[(key, stat.ctime)]);
                }
                Ok(false)
            }
        }
    }

    /// Removes the name by which a file is held, if it is. It stays held until [`Self::given_back`].
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn give_back(&self, dir: impl AsFd, name: &OsStr, given: &mut Given) -> io::Result<()> {
        let Some(borrowed) = self.borrowed() else { return Ok(()) };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
        let key = Key::of(&Stat::of(&file)?);
        if borrowed.holds.has(key) {
            rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            given.0.push((key, Stat::of(&file)?.ctime));
        }
        Ok(())
    }

    /// The files are the tree's alone again.
    pub(super) fn given_back(&self, given: &Given) {
        let Some(borrowed) = self.borrowed().filter(|_| !given.0.is_empty()) else { return };
        // A change that comes now must not have the time of the name's going.
        std::thread::sleep(TICK);
        borrowed.while_nobody_copies(|| borrowed.holds.remove(&given.0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEFORE: Time = (100, 0);
    const NOW: Time = (200, 5);

    fn stat(ctime: Time) -> Stat {
        let dir = tempfile::tempdir().unwrap();
        Stat { ctime, ..Stat::of(std::fs::File::open(dir.path()).unwrap()).unwrap() }
    }

    #[test]
    fn what_is_shown_of_a_file_does_not_move_with_its_names() {
        let (holds, stat) = (Holds::default(), stat(BEFORE));
        let key = Key::of(&stat);
        assert_eq!(holds.find(key), None);
        holds.add(&stat);
        let show = |links, ctime| holds.find(key).unwrap().show(links, ctime);
        assert_eq!(show(2, NOW), (1, BEFORE));
        // A second layer has it under another name.
        holds.add(&Stat { ctime: NOW, ..stat });
        assert_eq!(show(3, (201, 0)), (1, BEFORE));
        holds.remove(&[(key, (202, 0))]);
        assert!(holds.has(key));
        assert_eq!(show(2, (202, 0)), (1, BEFORE));
        holds.remove(&[(key, (203, 0))]);
        assert!(!holds.has(key));
        assert_eq!(show(1, (203, 0)), (1, BEFORE));
        // Then somebody changes it.
        assert_eq!(show(1, (204, 0)), (1, (204, 0)));
        holds.add(&Stat { ctime: (204, 0), ..stat });
        assert_eq!(show(2, (205, 0)), (1, (204, 0)));
    }
}
