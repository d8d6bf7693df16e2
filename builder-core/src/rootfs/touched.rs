//! Which paths of a tree a command touched, as told by somebody who sees every change that it makes.
//!
//! Two kinds of things are told: that an entry changed (what a file holds, or what is known of it), and that everything at and
//! below a path may have: a directory was made, removed or moved there. The listing before the command is then true
//! everywhere else, so a new one is made of it without looking at the tree ([`Rootfs::list_again`]).
//!
//! An inode with several names is no trouble: before a command every name has a file of its own (`links`), and whoever makes a
//! link afterwards tells of both names.
//!
//! # Limitations
//! More than [`MOST_BYTES`] of paths are not kept: the tree is listed as a whole then, which costs hardly more than to look
//! at as many paths. What is in a new directory, and what was in a removed one, counts as one path.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::listing::Writer;
use super::ordered::{self, Everywhere, Visited};
use super::owners::Key;
use super::stat::Stat;
use super::{FileKind, ListError, Listing, Rootfs, path_order};

/// Memory for paths, in bytes.
const MOST_BYTES: usize = 16 << 20;

/// What a path costs beside its own bytes.
const EACH_BYTES: usize = 64;

/// The paths that one command touched. Until somebody begins to tell, anything may have been.
#[derive(Debug, Default)]
pub struct Touched {
    state: Mutex<State>,
    back: Mutex<BTreeMap<PathBuf, (Time, Time)>>,
}

/// Seconds since 1970 and nanoseconds.
type Time = (i64, u32);

#[derive(Debug, Default)]
enum State {
    #[default]
    Untold,
    Told(Paths),
    /// Something happened that was not told, or there was too much of it.
    Lost(&'static str),
}

/// Paths without the leading slash, in which NUL stands for `/`: so what is in a directory comes right behind it, as in
/// [`path_order`].
#[derive(Debug, Default)]
struct Paths {
    /// Nothing in here is below another one.
    whole: BTreeSet<Vec<u8>>,
    /// Nothing in here is at or below one of `whole`.
    single: BTreeSet<Vec<u8>>,
    bytes: usize,
}

fn sortable(path: &[u8]) -> Vec<u8> {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    path.iter().map(|&byte| if byte == b'/' { 0 } else { byte }).collect()
}

fn readable(mut key: Vec<u8>) -> PathBuf {
    for byte in key.iter_mut().filter(|byte| **byte == 0) {
        *byte = b'/';
    }
    PathBuf::from(OsStr::from_bytes(&key))
}

fn is_within(key: &[u8], directory: &[u8]) -> bool {
    key.starts_with(directory) && matches!(key.get(directory.len()), None | Some(0))
}

impl Paths {
    /// Whether a path is at or below one of `whole`: that would be the last one before it.
    fn is_known(&self, key: &[u8]) -> bool {
        let before = self.whole.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back();
        before.is_some_and(|directory| is_within(key, directory))
    }

    fn entry(&mut self, key: Vec<u8>) {
        if !self.is_known(&key) && !self.single.contains(&key) {
            self.bytes += key.len() + EACH_BYTES;
            self.single.insert(key);
        }
    }

    fn subtree(&mut self, key: Vec<u8>) {
        if self.is_known(&key) {
            return;
        }
        for set in [&mut self.whole, &mut self.single] {
            let within = set.range::<[u8], _>((Bound::Included(key.as_slice()), Bound::Unbounded));
            let gone: Vec<Vec<u8>> = within.take_while(|other| is_within(other, &key)).cloned().collect();
            for other in gone {
                self.bytes -= other.len() + EACH_BYTES;
                set.remove(&other);
            }
        }
        self.bytes += key.len() + EACH_BYTES;
        self.whole.insert(key);
    }

    /// All of them in order, and whether what is below is meant too. Directories around the entries come with them: their
    /// times and numbers of links changed.
    fn in_order(&self) -> Vec<(PathBuf, bool)> {
        let mut keys: Vec<(Vec<u8>, bool)> = self.whole.iter().map(|key| (key.clone(), true)).collect();
        let mut around = BTreeSet::new();
        for key in self.whole.iter().chain(&self.single) {
            let mut key = key.as_slice();
            while let Some(end) = key.iter().rposition(|&byte| byte == 0)
                && around.insert(&key[..end])
            {
                key = &key[..end];
            }
        }
        around.extend(self.single.iter().map(Vec::as_slice));
        keys.extend(around.into_iter().map(|key| (key.to_vec(), false)));
        keys.sort_unstable();
        keys.into_iter().map(|(key, whole)| (readable(key), whole)).collect()
    }
}

impl Touched {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is whole before the lock is released, even if its thread then panics.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on everything is told.
    pub fn begin(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Untold) {
            *state = State::Told(Paths::default());
        }
    }

    /// Whether somebody tells what happens, or did.
    pub(super) fn is_told(&self) -> bool {
        !matches!(*self.lock(), State::Untold)
    }

    /// What is at `path` (physical, of the tree) changed, is new or is gone.
    pub fn entry(&self, path: &[u8]) {
        self.tell(path, Paths::entry);
    }

    /// Everything at and below `path` may have changed: a directory was made, removed or moved there.
    pub fn subtree(&self, path: &[u8]) {
        self.tell(path, Paths::subtree);
    }

    fn tell(&self, path: &[u8], tell: impl FnOnce(&mut Paths, Vec<u8>)) {
        let key = sortable(path);
        let mut state = self.lock();
        let State::Told(paths) = &mut *state else { return };
        // The root itself is in no listing.
        if !key.is_empty() {
            tell(paths, key);
        }
        if paths.bytes > MOST_BYTES {
            *state = State::Lost("more paths were touched than are kept");
        }
    }

    /// What is at `path` (physical, of the tree) was out of the command's reach while it ran. Moving it aside and back changed
    /// nothing but its change time, from `was` to `is`.
    pub fn moved_back(&self, path: &Path, was: (i64, u32), is: (i64, u32)) {
        let path = path.strip_prefix("/").unwrap_or(path).to_owned();
        self.back.lock().unwrap_or_else(PoisonError::into_inner).insert(path, (was, is));
    }

    /// Whether what is at `path` (without a leading `/`) has another change time for that reason alone.
    pub fn was_moved_back(&self, path: &Path, was: (i64, u32), is: (i64, u32)) -> bool {
        self.back.lock().unwrap_or_else(PoisonError::into_inner).get(path) == Some(&(was, is))
    }

    /// Something changed of which no path is known.
    pub fn lost(&self, why: &'static str) {
        let mut state = self.lock();
        if let State::Told(_) = *state {
            *state = State::Lost(why);
        }
    }

    /// What to look at; `None` for everything.
    fn told(&self) -> Option<Vec<(PathBuf, bool)>> {
        match &*self.lock() {
            State::Untold => None,
            State::Told(paths) => Some(paths.in_order()),
            State::Lost(why) => {
                tracing::info!(why, "the whole tree is listed");
                None
            }
        }
    }
}

impl Rootfs {
    /// Lists the tree anew: as it was listed before where nothing was touched since, which is not looked at. `None` if that is
    /// not known, or does not fit what is there.
    ///
    /// # Errors
    /// As [`Rootfs::list`].
    pub fn list_again(&self, before: &Listing, touched: &Touched) -> Result<Option<Listing>, ListError> {
        let Some(paths) = touched.told() else { return Ok(None) };
        let mut writer = Writer::new(self.lists_in());
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| ListError { path, source }
        };
        let mut old = before.raw();
        let mut was = old.next().transpose()?;
        // What is at and below it has been dealt with.
        let mut done: Option<&Path> = None;
        for (path, whole) in &paths {
            if done.is_some_and(|done| path.starts_with(done)) {
                continue;
            }
            while let Some((there, stat)) = &was
                && path_order(there, path).is_lt()
            {
                writer.push(there, stat).map_err(fail(there))?;
                was = old.next().transpose()?;
            }
            let mut same_directory = false;
            let now = self.stat_if_there(path).map_err(fail(path))?;
            if let Some((there, stat)) = &was
                && there == path
            {
                let is_directory = |stat: &Stat| stat.kind == FileKind::Directory;
                let same = |now: &Stat| is_directory(now) && is_directory(stat) && Key::of(now) == Key::of(stat);
                same_directory = !whole && now.as_ref().is_some_and(same);
                was = old.next().transpose()?;
            }
            if let Some(now) = &now {
                writer.push(path, now).map_err(fail(path))?;
            }
            if same_directory {
                continue;
            }
            done = Some(path);
            while was.as_ref().is_some_and(|(there, _)| there.starts_with(path)) {
                was = old.next().transpose()?;
            }
            if now.is_some_and(|now| now.kind == FileKind::Directory) {
                ordered::walk(self, path, (), &Everywhere, &mut |Visited { path, stat, .. }| {
                    writer.push(path, stat).map_err(fail(path))
                })?;
            }
        }
        while let Some((there, stat)) = &was {
            writer.push(there, stat).map_err(fail(there))?;
            was = old.next().transpose()?;
        }
        Ok(Some(writer.finish()))
    }

    /// `None` if nothing is there.
    fn stat_if_there(&self, path: &Path) -> std::io::Result<Option<Stat>> {
        let found = match self.parent_of(path) {
            Ok(Some((dir, name))) => self.stat_entry(&dir, &name).map_err(std::io::Error::from),
            Ok(None) => return Ok(None),
            Err(error) => Err(error),
        };
        match found {
            Ok(stat) => Ok(Some(stat)),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(touched: &Touched) -> Vec<(String, bool)> {
        let paths = touched.told().expect("everything was told");
        paths.into_iter().map(|(path, whole)| (path.to_str().expect("text").to_owned(), whole)).collect()
    }

    #[test]
    fn what_is_below_a_subtree_is_not_kept() {
        let touched = Touched::default();
        touched.entry(b"/before/it/began");
        assert!(touched.told().is_none());
        touched.begin();
        for path in ["/a/b/c", "/a-b", "/a/b", "/a/b/c/d", "/z", ""] {
            touched.entry(path.as_bytes());
        }
        touched.subtree(b"/a/b");
        touched.entry(b"/a/b/later");
        touched.entry(b"/a/bc");
        let expected = [("a", false), ("a/b", true), ("a/bc", false), ("a-b", false), ("z", false)];
        assert_eq!(told(&touched), expected.map(|(path, whole)| (path.to_owned(), whole)));
        touched.subtree(b"/a");
        let expected = [("a", true), ("a-b", false), ("z", false)];
        assert_eq!(told(&touched), expected.map(|(path, whole)| (path.to_owned(), whole)));
        touched.lost("a reason");
        assert!(touched.told().is_none());
    }

    #[test]
    fn too_much_is_everything() {
        let touched = Touched::default();
        touched.begin();
        for number in 0..MOST_BYTES / EACH_BYTES {
            touched.entry(format!("/{number}").as_bytes());
        }
        assert!(touched.told().is_none());
    }

    #[test]
    fn only_what_was_touched_is_looked_at() {
        let dir = tempfile::tempdir().expect("directory");
        let at = |path: &str| dir.path().join(path);
        for path in ["kept/a", "kept/b", "moved/x/y", "gone/x", "wide"] {
            std::fs::create_dir_all(at(path)).expect("mkdir");
        }
        for path in ["kept/file", "kept/quiet", "moved/x/file", "wide/file", "becomes-directory"] {
            std::fs::write(at(path), path).expect("write");
        }
        let rootfs = Rootfs::open(dir.path()).expect("open");
        let before = rootfs.list().expect("list");
        let touched = Touched::default();
        touched.begin();

        std::fs::write(at("kept/file"), "other").expect("write");
        touched.entry(b"/kept/file");
        std::fs::rename(at("moved"), at("kept/b/moved")).expect("rename");
        touched.subtree(b"/moved");
        touched.subtree(b"/kept/b/moved");
        std::fs::remove_dir_all(at("gone")).expect("remove");
        touched.subtree(b"/gone/x");
        touched.subtree(b"/gone");
        std::fs::remove_file(at("becomes-directory")).expect("remove");
        touched.entry(b"/becomes-directory");
        std::fs::create_dir_all(at("becomes-directory/with/something")).expect("mkdir");
        std::fs::remove_file(at("wide/file")).expect("remove");
        std::os::unix::fs::symlink("/kept", at("wide/file")).expect("link");
        touched.entry(b"/wide/file");

        let again = rootfs.list_again(&before, &touched).expect("list").expect("known");
        let entries = |listing: &Listing| listing.raw().collect::<Result<Vec<_>, _>>().expect("read");
        assert_eq!(entries(&again), entries(&rootfs.list().expect("list")));
        // What nobody told of is as it was.
        std::fs::write(at("kept/quiet"), "changed all the same").expect("write");
        let again = rootfs.list_again(&before, &touched).expect("list").expect("known");
        assert_eq!(
            again.get(Path::new("kept/quiet")).expect("read"),
            before.get(Path::new("kept/quiet")).expect("read")
        );
    }
}
