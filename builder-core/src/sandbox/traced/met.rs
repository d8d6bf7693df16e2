//! In which mount files were met lately and whether it was told that they changed, so that what a descriptor stands for need
//! not be asked for its path each time.

use std::sync::Mutex;

use rustix::fs::{Statx, StatxFlags};

use super::tasks::lock;
use super::view::{key, mount_id};
use crate::rootfs::InodeKey;

/// How many are remembered, each in the place that its number gives it.
const PLACES: usize = 256;

/// A file that was met.
#[derive(Debug, Clone, Copy)]
struct Entry {
    key: InodeKey,
    /// The host's mount.
    id: u64,
    /// Index of the mount of the RUN.
    mount: usize,
    /// Whether it was told that it changed. Its further names are told by who makes them.
    told: bool,
}

/// Files by inode. Nothing moves from one mount to another (rename(2), link(2): `EXDEV`), so what is remembered stays true; a
/// number that is used again comes with another birth time, and where there are none nothing is remembered.
#[derive(Debug)]
pub struct Met(Mutex<[Option<Entry>; PLACES]>);

impl Default for Met {
    fn default() -> Self {
        Self(Mutex::new([None; PLACES]))
    }
}

fn place(real: &Statx) -> usize {
    (real.stx_ino % PLACES as u64) as usize
}

impl Met {
    /// Index of the mount that a file is in, and whether it was told that it changed, if it was met lately.
    pub fn find(&self, real: &Statx) -> Option<(usize, bool)> {
        let (key, id) = (key(real), mount_id(real));
        let met = lock(&self.0)[place(real)].filter(|met| met.key == key && met.id == id);
        met.map(|met| (met.mount, met.told))
    }

    /// Remembers a file in the mount with this index.
    pub fn remember(&self, real: &Statx, mount: usize, told: bool) {
        if real.stx_mask & StatxFlags::BTIME.bits() != 0 {
            lock(&self.0)[place(real)] = Some(Entry { key: key(real), id: mount_id(real), mount, told });
        }
    }
}
