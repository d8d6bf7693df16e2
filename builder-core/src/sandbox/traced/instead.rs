//! What a RUN is given instead of files of /proc and /sys: texts in memory that tell the inner story, and directories of ours that
//! list what it may see.
//!
//! cp(1), find(1) and du(1) compare what stat(2) says of a path with what fstat(2) says of the descriptor, so it is remembered what
//! each stands for. A directory is made when it is opened first, and kept: when it is opened again, names are added and removed.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FileType, Mode, OFlags, Statx};
use rustix::io::Errno;

use super::files::in_memory;
use super::tasks::lock;
use super::view::statx;

/// So many texts are remembered; the oldest is forgotten first, and is a file in memory then.
const TEXTS: usize = 1024;

/// Device and inode.
type Identity = (u32, u32, u64);

/// What descriptors of the RUN stand for.
#[derive(Debug)]
pub struct Instead {
    /// Where directories are made, out of the RUN's reach.
    directory: PathBuf,
    /// Whether there was ever anything.
    any: AtomicBool,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    texts: HashMap<Identity, Statx>,
    /// The oldest first.
    order: VecDeque<Identity>,
    listings: Vec<Listing>,
}

#[derive(Debug)]
struct Listing {
    /// Physical.
    path: Vec<u8>,
    host: PathBuf,
    identity: Identity,
    real: Statx,
}

/// A name in a directory: what it is, and of a link its text.
pub type Names = BTreeMap<OsString, (FileType, Vec<u8>)>;

fn identity(stat: &Statx) -> Identity {
    (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)
}

impl Instead {
    /// With a directory on the host that the RUN cannot reach.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), any: AtomicBool::new(false), known: Mutex::default() }
    }

    /// A descriptor of a file with this text, which stands for the file of which `real` is known.
    ///
    /// # Errors
    /// If there can be no more files.
    pub fn text(&self, text: &[u8], real: Statx) -> Result<OwnedFd, Errno> {
        let given = in_memory(text)?;
        let identity = identity(&statx(&given)?);
        let mut known = lock(&self.known);
        if known.order.len() >= TEXTS
            && let Some(oldest) = known.order.pop_front()
        {
            known.texts.remove(&oldest);
        }
        known.texts.insert(identity, real);
        known.order.push_back(identity);
        self.any.store(true, Ordering::Release);
        Ok(given)
    }

    /// A descriptor of a directory with these names, which stands for the one at `path` (physical) of which `real` is known.
    ///
    /// # Errors
    /// What the disk says.
    pub fn listing(&self, path: &[u8], real: Statx, names: &Names) -> Result<OwnedFd, Errno> {
        let mut known = lock(&self.known);
        let host = match known.listings.iter().find(|listing| listing.path == path) {
            Some(listing) => listing.host.clone(),
            None => {
                let host = self.directory.join(format!("listing-{}", known.listings.len()));
                fs::create_dir(&host).map_err(errno)?;
                let identity = identity(&statx(open(&host)?)?);
                known.listings.push(Listing { path: path.to_owned(), host: host.clone(), identity, real });
                self.any.store(true, Ordering::Release);
                host
            }
        };
        fill(&host, names).map_err(errno)?;
        open(&host)
    }

    /// What is known of the file that a descriptor stands for, of which itself `given` is known.
    pub fn find(&self, given: &Statx) -> Option<Statx> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let (known, given) = (lock(&self.known), identity(given));
        let listing = || known.listings.iter().find(|listing| listing.identity == given).map(|listing| listing.real);
        known.texts.get(&given).copied().or_else(listing)
    }

    /// The physical path of the directory that one of these directories stands for.
    pub fn path(&self, given: &Statx) -> Option<Vec<u8>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let (known, given) = (lock(&self.known), identity(given));
        known.listings.iter().find(|listing| listing.identity == given).map(|listing| listing.path.clone())
    }

    /// The same by its path on the host.
    pub fn inside(&self, host: &[u8]) -> Option<Vec<u8>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        let known = lock(&self.known);
        let listing = known.listings.iter().find(|listing| listing.host.as_os_str().as_bytes() == host)?;
        Some(listing.path.clone())
    }
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn open(host: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(host, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Gives a directory these names and no others.
fn fill(host: &Path, names: &Names) -> io::Result<()> {
    let mut missing: BTreeMap<_, _> = names.iter().collect();
    for entry in fs::read_dir(host)? {
        let entry = entry?;
        if missing.remove(&entry.file_name()).is_none() {
            // Empty, if it is a directory.
            let removed = if entry.file_type()?.is_dir() { fs::remove_dir } else { fs::remove_file };
            removed(entry.path())?;
        }
    }
    for (name, (kind, text)) in missing {
        let path = host.join(name);
        match kind {
            FileType::Directory => fs::create_dir(path)?,
            FileType::Symlink => symlink(std::ffi::OsStr::from_bytes(text), path)?,
            _ => fs::write(path, "")?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stand_for_others() {
        let directory = tempfile::tempdir().expect("a directory");
        let real = statx(std::fs::File::open("/proc/self/status").expect("open")).expect("statx");
        let instead = Instead::new(directory.path());
        assert!(instead.find(&real).is_none());
        let text = instead.text(b"text", real).expect("a file in memory");
        let found = instead.find(&statx(&text).expect("statx")).expect("it is remembered");
        assert_eq!(identity(&found), identity(&real));

        let names = |names: &str| -> Names {
            names.split(' ').map(|name| (name.into(), (FileType::Directory, Vec::new()))).collect()
        };
        let listed = |names: &Names| {
            let given = instead.listing(b"/proc", real, names).expect("a directory");
            let given = statx(&given).expect("statx");
            assert_eq!(instead.path(&given).as_deref(), Some(&b"/proc"[..]));
            assert!(instead.find(&given).is_some());
            let mut found: Vec<_> = fs::read_dir(directory.path().join("listing-0"))
                .expect("list")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            found.sort();
            found
        };
        assert_eq!(listed(&names("1 2 sys")), ["1", "2", "sys"]);
        assert_eq!(listed(&names("2 3 sys")), ["2", "3", "sys"]);
        let host = directory.path().join("listing-0");
        assert_eq!(instead.inside(host.as_os_str().as_bytes()).as_deref(), Some(&b"/proc"[..]));
    }
}
