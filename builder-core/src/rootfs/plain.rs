//! Directory mode: one plain directory a checkout, layers applied in order, later ones fetched meanwhile.
//!
//! A tree is taken from its place while it is used and put back, under the chain id that it has then, when nobody uses it
//! any more and no change in it is unaccounted for. So no two users share one, and a killed process costs its trees.

use std::fs::File;
use std::io::{Read, Seek};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::fetch::{Stop, open, unpack_blob};
use super::links::Separated;
use super::owners::{Key, Owners};
use super::pretend::Pretence;
use super::stat::Stat;
use super::unpack::Whiteouts;
use super::workdir::{TempDir, TreesDir, io_error, make_directory, publish};
use super::{LayerRef, LayerSource, ListError, Listing, Rootfs, TreeError};
use crate::cancel::Cancel;
use crate::oci::ChainId;

/// Layers that are fetched while an earlier one is unpacked.
const FETCH_AHEAD: usize = 3;

/// How often a thread that waits looks whether it should end.
const WAIT: Duration = Duration::from_millis(50);

/// One tree in use.
#[derive(Debug)]
pub(super) struct PlainTree {
    dir: Arc<TreesDir>,
    temp: TempDir,
    pretence: Pretence,
    pub chain: Option<ChainId>,
    /// What the last step found at its end, as long as nothing changed since.
    pub listing: Option<Arc<Listing>>,
    /// Hard links that a step needed apart.
    separated: Mutex<Separated>,
    /// They were joined since, which `listing` does not know.
    joined: AtomicBool,
    /// A step began and did not end well, or is at work.
    pub dirty: bool,
}

impl PlainTree {
    /// Makes or finds a tree with this content. `real` is what is pretended where owners are real; `None`: recorded.
    pub(super) fn checkout(
        dir: &Arc<TreesDir>,
        real: Option<Pretence>,
        layers: &[LayerRef],
        chains: &[ChainId],
        source: &dyn LayerSource,
        limit: Option<u64>,
        stop: &Stop<'_>,
    ) -> Result<Self, TreeError> {
        let temp = dir.temp()?;
        let tree = temp.path().join("tree");
        let mut there = 0;
        for (at, chain) in chains.iter().enumerate().rev() {
            // Whoever renames it first has it.
            if rustix::fs::rename(dir.plain(*chain), &tree).is_ok() {
                there = at + 1;
                break;
            }
        }
        if there == 0 {
            make_directory(&tree)?;
            make_directory(&tree.join("root"))?;
        }
        let pretence = match real {
            Some(pretence) => pretence,
            None => {
                let path = tree.join("owners.json");
                Pretence::Recorded(Arc::new(Owners::load(&path).map_err(io_error("read", &path))?))
            }
        };
        let mut this = Self {
            dir: Arc::clone(dir),
            temp,
            pretence,
            chain: chains.last().copied(),
            listing: None,
            separated: Mutex::default(),
            joined: AtomicBool::new(false),
            // Until all layers are applied.
            dirty: true,
        };
        let rootfs = this.rootfs()?;
        apply_in_order(&layers[there..], dir, &rootfs, source, limit, stop)?;
        this.dirty = false;
        Ok(this)
    }

    pub(super) fn owners(&self) -> Option<&Owners> {
        match &self.pretence {
            Pretence::Recorded(owners) => Some(owners),
            Pretence::Nothing | Pretence::Marked(_) => None,
        }
    }

    fn tree(&self) -> PathBuf {
        self.temp.path().join("tree")
    }

    pub(super) fn rootfs(&self) -> Result<Rootfs, TreeError> {
        let path = self.tree().join("root");
        let opened = Rootfs::open(&path).map_err(io_error("open", &path))?;
        Ok(opened.pretending(self.pretence.clone()).within(self.dir.disk()).listing_in(self.dir.root()))
    }

    /// The tree to read from: hard links are what they are in its layers.
    pub(super) fn readable(&self) -> Result<Rootfs, TreeError> {
        let rootfs = self.rootfs()?;
        let mut separated = self.separated();
        if !separated.is_empty() {
            let taken = std::mem::take(&mut *separated);
            self.joined.store(true, Ordering::Relaxed);
            rootfs.join(&taken).map_err(|error| io_error("link", &error.path)(error.source))?;
        }
        Ok(rootfs)
    }

    fn separated(&self) -> MutexGuard<'_, Separated> {
        self.separated.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The listing at the beginning of a step, if it still holds.
    pub(super) fn take_listing(&mut self) -> Option<Arc<Listing>> {
        let joined = std::mem::take(self.joined.get_mut());
        self.listing.take().filter(|_| !joined)
    }

    /// Sets hard links apart that are listed, for a step whose command must not change files by another name.
    pub(super) fn separate(
        &self,
        rootfs: &Rootfs,
        listing: &mut Arc<Listing>,
        cancel: &Cancel,
    ) -> Result<(), TreeError> {
        let done = rootfs.separate(&mut self.separated(), Arc::make_mut(listing), cancel);
        done.map_err(|error| match cancel.is_cancelled() {
            true => TreeError::Cancelled,
            false => io_error("copy", &error.path)(error.source),
        })
    }

    /// Says in a new listing what of it is one file, though it was set apart.
    pub(super) fn follow(&self, listing: &mut Listing) -> Result<(), ListError> {
        let mut separated = self.separated();
        if separated.is_empty() { Ok(()) } else { separated.follow(listing) }
    }

    /// Ends a step well: what is there now is the tree.
    pub(super) fn committed(&mut self, chain: ChainId, now: Option<Arc<Listing>>) {
        self.chain = Some(chain);
        self.dirty = false;
        if let (Pretence::Recorded(owners), Some(now)) = (&self.pretence, &now) {
            let alive: Result<Vec<Key>, ListError> = now.stats().map(|stat| stat.map(|stat| Key::of(&stat))).collect();
            match alive {
                Ok(mut alive) => {
                    // Which the listing leaves out.
                    let root = self.rootfs().ok().and_then(|rootfs| Stat::of(rootfs.root_fd()).ok());
                    alive.extend(root.as_ref().map(Key::of));
                    alive.sort_unstable();
                    owners.retain(&alive);
                }
                // They cost a little memory, and what has such an inode later is not what they are about.
                Err(error) => tracing::debug!(%error, "records of files that are gone are kept"),
            }
        }
        self.listing = now;
    }

    /// Puts the tree back to be found again.
    fn park(&mut self) -> Result<(), TreeError> {
        let Some(chain) = self.chain.filter(|_| !self.dirty) else { return Ok(()) };
        self.readable()?;
        let tree = self.tree();
        if let Pretence::Recorded(owners) = &self.pretence {
            let path = tree.join("owners.json");
            owners.save(&path).map_err(io_error("write", &path))?;
        }
        publish(&tree, &self.dir.plain(chain))?;
        Ok(())
    }
}

impl Drop for PlainTree {
    fn drop(&mut self) {
        if let Err(error) = self.park() {
            tracing::debug!(%error, "a finished tree is not kept");
        }
    }
}

/// Applies layers one onto the other.
fn apply_in_order(
    layers: &[LayerRef],
    dir: &TreesDir,
    rootfs: &Rootfs,
    source: &dyn LayerSource,
    limit: Option<u64>,
    stop: &Stop<'_>,
) -> Result<(), TreeError> {
    let Some((first, later)) = layers.split_first() else { return Ok(()) };
    let indexes = dir.indexes();
    let unpack = |blob: Box<dyn Read + Send>, layer: &LayerRef| {
        unpack_blob(blob, layer, rootfs, Whiteouts::Apply, &indexes, limit, stop).map(|_| ())
    };
    let ahead = Ahead::default();
    std::thread::scope(|scope| {
        for worker in 0..FETCH_AHEAD.min(later.len()) {
            let ahead = &ahead;
            // Each takes every third layer, which keeps the order and needs no queue.
            scope.spawn(move || {
                for (at, layer) in later.iter().enumerate().skip(worker).step_by(FETCH_AHEAD) {
                    if !ahead.wait_until(stop, |state| at < state.unpacked + FETCH_AHEAD) {
                        return;
                    }
                    let spilled = spill(layer, dir, source, stop);
                    ahead.lock().spilled.push((at, spilled));
                    ahead.changed.notify_all();
                }
            });
        }
        let result = (|| {
            unpack(open(source, first)?, first)?;
            for (at, layer) in later.iter().enumerate() {
                if !ahead.wait_until(stop, |state| state.spilled.iter().any(|(found, _)| *found == at)) {
                    return Err(TreeError::Cancelled);
                }
                let found = {
                    let mut state = ahead.lock();
                    let position = state.spilled.iter().position(|(found, _)| *found == at);
                    position.map(|position| state.spilled.swap_remove(position).1)
                };
                let file = found.unwrap_or(Err(TreeError::Cancelled))?;
                unpack(Box::new(file), layer)?;
                ahead.lock().unpacked = at + 1;
                ahead.changed.notify_all();
            }
            Ok(())
        })();
        if result.is_err() {
            stop.fail();
            ahead.changed.notify_all();
        }
        result
    })
}

/// What the fetching threads and the unpacking one know of each other.
#[derive(Default)]
struct Ahead {
    state: Mutex<AheadState>,
    changed: Condvar,
}

#[derive(Default)]
struct AheadState {
    /// How many of the later layers are unpacked.
    unpacked: usize,
    spilled: Vec<(usize, Result<File, TreeError>)>,
}

impl Ahead {
    fn lock(&self) -> MutexGuard<'_, AheadState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `false` if everything is to stop.
    fn wait_until(&self, stop: &Stop<'_>, ready: impl Fn(&AheadState) -> bool) -> bool {
        let mut state = self.lock();
        loop {
            if ready(&state) {
                return true;
            }
            if stop.is_stopped() {
                return false;
            }
            state = self.changed.wait_timeout(state, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Fetches a blob into a file without a name.
fn spill(layer: &LayerRef, dir: &TreesDir, source: &dyn LayerSource, stop: &Stop<'_>) -> Result<File, TreeError> {
    let place = dir.root().join("tmp");
    let mut file = tempfile::tempfile_in(&place).map_err(io_error("create a file in", &place))?;
    let mut blob = open(source, layer)?;
    let mut buffer = vec![0_u8; 256 * 1024];
    loop {
        if stop.is_stopped() {
            return Err(TreeError::Cancelled);
        }
        match blob.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                let taken = dir.disk().take(count as u64);
                let written = taken.and_then(|()| std::io::Write::write_all(&mut file, &buffer[..count]));
                written.map_err(io_error("write a file in", &place))?;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => {
                return Err(TreeError::Fetch { layer: layer.diff_id, source: super::fetch::into_cause(error) });
            }
        }
    }
    file.rewind().map_err(io_error("read a file in", &place))?;
    Ok(file)
}
