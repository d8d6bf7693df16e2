//! Overlay mode: one directory a layer, unpacked in parallel, put right in order, stacked by a mount.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, mpsc};
use std::time::Duration;

use super::fetch::{Stop, describe, open, unpack_blob};
use super::fixup::{copy_tree, fix_up};
use super::inflate::Allowance;
use super::merge::{Merge, TOGETHER};
use super::overlay::{Attached, MAX_LOWER, Marks, Stack};
use super::pretend::Pretence;
use super::trees::MOST_DETACHED;
use super::unpack::{Pending, Whiteouts};
use super::workdir::{TempDir, TreesDir, io_error, make_directory, publish};
use super::{LayerRef, LayerSource, ListError, Rootfs, TreeError};
use crate::cancel::Cancel;
use crate::oci::ChainId;

/// Layers, and multiples of them, that become one directory whatever they hold where a stack is too high to be mounted.
const FLATTEN: usize = TOGETHER * TOGETHER;

/// How often a thread that waits for another one's layer looks whether it should end.
const WAIT: Duration = Duration::from_millis(50);

/// Layers that some thread of this process is unpacking, so that stages with the same base do it once.
#[derive(Debug, Default)]
pub(super) struct Claims {
    taken: Mutex<BTreeSet<ChainId>>,
    released: Condvar,
}

/// A layer that nobody else unpacks as long as this lives.
pub(super) struct Claim<'a> {
    claims: &'a Claims,
    chain: ChainId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.claims.taken.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.chain);
        self.claims.released.notify_all();
    }
}

impl Claims {
    /// Waits until nobody else has the layer. `None` if it is there then, or if we are to stop.
    pub(super) fn take(&self, chain: ChainId, is_there: impl Fn() -> bool, stop: &Stop<'_>) -> Option<Claim<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if is_there() || stop.is_stopped() {
                return None;
            }
            if taken.insert(chain) {
                return Some(Claim { claims: self, chain });
            }
            taken = self.released.wait_timeout(taken, WAIT).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// The parts of `Trees` that overlay mode needs.
#[derive(Debug)]
pub(super) struct Stacks {
    pub dir: TreesDir,
    pub marks: Marks,
    pub claims: Claims,
    pub pretence: Pretence,
    /// Held for reading while directories are looked up for a mount, alone while one of them gets its name.
    pub naming: RwLock<()>,
    /// Runs of layers by the uppermost one and their number: whether one directory stands for them.
    pub merged: Mutex<BTreeMap<(ChainId, usize), bool>>,
}

/// What a step wrote, in use as a layer before its chain id is known.
#[derive(Debug)]
pub(super) struct Unnamed {
    /// Where it lies until it has a name, and stays if another one took the name first.
    temp: TempDir,
    chain: Mutex<Option<(ChainId, bool)>>,
}

impl Unnamed {
    /// `temp` has the directory `upper`.
    pub(super) fn new(temp: TempDir) -> Self {
        Self { temp, chain: Mutex::default() }
    }

    pub(super) fn chain(&self) -> Option<ChainId> {
        self.chain.lock().unwrap_or_else(PoisonError::into_inner).map(|(chain, _)| chain)
    }

    fn place(&self, dir: &TreesDir) -> PathBuf {
        match *self.chain.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((chain, true)) => dir.layer(chain),
            // Who took the name first has the same content; what is mounted already stays where it is.
            Some((_, false)) | None => self.temp.path().join("upper"),
        }
    }
}

/// A layer unpacked alone, not named yet.
struct Unpacked<'a> {
    temp: TempDir,
    pending: Pending,
    _claim: Claim<'a>,
}

impl Stacks {
    /// Makes sure that all layers have their directories. `chains` are the chain ids of `layers`.
    pub(super) fn prepare(
        &self,
        layers: &[LayerRef],
        chains: &[ChainId],
        source: &dyn LayerSource,
        streams: usize,
        allowed: &Allowance,
        stop: &Stop<'_>,
    ) -> Result<(), TreeError> {
        let missing: Vec<usize> = (0..layers.len()).filter(|at| !self.dir.layer(chains[*at]).exists()).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let next = AtomicUsize::new(0);
        let (done, results) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..streams.min(missing.len()) {
                let done = done.clone();
                let (next, missing) = (&next, &missing);
                scope.spawn(move || {
                    while let Some(at) = missing.get(next.fetch_add(1, Ordering::SeqCst)) {
                        let result = self.unpack_alone(&layers[*at], chains[*at], source, allowed, stop);
                        if result.is_err() {
                            stop.fail();
                        }
                        // Nobody listens any more only after an error that says more.
                        _ = done.send((*at, result));
                    }
                });
            }
            drop(done);
            let named = self.name_in_order(layers, chains, &missing, &results, stop);
            if named.is_err() {
                stop.fail();
            }
            named
        })
    }

    fn unpack_alone(
        &self,
        layer: &LayerRef,
        chain: ChainId,
        source: &dyn LayerSource,
        allowed: &Allowance,
        stop: &Stop<'_>,
    ) -> Result<Option<Unpacked<'_>>, TreeError> {
        let place = self.dir.layer(chain);
        let Some(claim) = self.claims.take(chain, || place.exists(), stop) else {
            return if stop.is_stopped() { Err(TreeError::Cancelled) } else { Ok(None) };
        };
        let temp = self.dir.temp()?;
        let path = temp.path().join("layer");
        make_directory(&path)?;
        let rootfs = self.open(&path)?;
        let blob = open(source, layer)?;
        let pending =
            unpack_blob(blob, layer, &rootfs, Whiteouts::Keep(self.marks), &self.dir.indexes(), allowed, stop)?;
        Ok(Some(Unpacked { temp, pending, _claim: claim }))
    }

    /// Puts layers right and names them, each after the one below it.
    fn name_in_order<'a>(
        &'a self,
        layers: &[LayerRef],
        chains: &[ChainId],
        missing: &[usize],
        results: &mpsc::Receiver<(usize, Result<Option<Unpacked<'a>>, TreeError>)>,
        stop: &Stop<'_>,
    ) -> Result<(), TreeError> {
        let mut early: Vec<Option<Option<Unpacked<'a>>>> = (0..layers.len()).map(|_| None).collect();
        let mut first_error = None;
        let mut waiting = missing.iter().copied().peekable();
        for (at, result) in results {
            match result {
                Ok(unpacked) => early[at] = Some(unpacked),
                Err(error) => {
                    // Others only say that they were cancelled because of it.
                    if !matches!(first_error, Some(ref first) if !matches!(first, TreeError::Cancelled)) {
                        first_error = Some(error);
                    }
                    continue;
                }
            }
            if first_error.is_some() {
                continue;
            }
            while let Some(unpacked) = waiting.peek().and_then(|at| early[*at].take()) {
                let Some(at) = waiting.next() else { break };
                if let Some(unpacked) = unpacked
                    && let Err(error) = self.name(&layers[at], &chains[..=at], unpacked, stop)
                {
                    stop.fail();
                    first_error = Some(error);
                    break;
                }
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    fn name(
        &self,
        layer: &LayerRef,
        chains: &[ChainId],
        unpacked: Unpacked<'_>,
        stop: &Stop<'_>,
    ) -> Result<(), TreeError> {
        let Some((chain, below)) = chains.split_last() else { return Ok(()) };
        let path = unpacked.temp.path().join("layer");
        if !unpacked.pending.is_empty() {
            let rootfs = self.open(&path)?;
            let lower = if below.is_empty() { None } else { Some(self.view(below)?) };
            fix_up(&rootfs, lower.as_ref(), unpacked.pending, self.marks)
                .map_err(|error| describe(error, layer, stop))?;
        }
        publish(&path, &self.dir.layer(*chain))?;
        Ok(())
    }

    /// Mounts a stack read-only.
    pub(super) fn view(&self, chains: &[ChainId]) -> Result<Rootfs, TreeError> {
        self.view_of(chains, &[])
    }

    /// Mounts a stack read-only, unnamed layers on top.
    pub(super) fn view_of(&self, chains: &[ChainId], unnamed: &[Arc<Unnamed>]) -> Result<Rootfs, TreeError> {
        self.mount_on(chains, unnamed, None)
    }

    /// The uppermost directory of a stack, whose root is that of the mounted stack.
    pub(super) fn top_of(&self, chains: &[ChainId], unnamed: &[Arc<Unnamed>]) -> Result<Rootfs, TreeError> {
        let _looking_up = self.naming.read().unwrap_or_else(PoisonError::into_inner);
        let place = match (unnamed.last(), chains.last()) {
            (Some(layer), _) => layer.place(&self.dir),
            (None, Some(chain)) => self.dir.layer(*chain),
            (None, None) => self.dir.none()[0].clone(),
        };
        self.open(&place)
    }

    /// Mounts a stack with unnamed layers on top, and `upper` above them.
    pub(super) fn mount_on(
        &self,
        chains: &[ChainId],
        unnamed: &[Arc<Unnamed>],
        upper: Option<(&Path, &Path)>,
    ) -> Result<Rootfs, TreeError> {
        let named = self.lower(chains)?;
        let _looking_up = self.naming.read().unwrap_or_else(PoisonError::into_inner);
        let mut lower: Vec<PathBuf> = unnamed.iter().rev().map(|layer| layer.place(&self.dir)).collect();
        lower.extend(named);
        self.mount(lower, upper)
    }

    /// Gives a layer that is in use its name. Mounts that have it as a lower directory keep it: they hold the directory, not
    /// its path.
    pub(super) fn name_detached(&self, layer: &Unnamed, chain: ChainId) -> Result<(), TreeError> {
        let _alone = self.naming.write().unwrap_or_else(PoisonError::into_inner);
        let ours = publish(&layer.temp.path().join("upper"), &self.dir.layer(chain))?;
        *layer.chain.lock().unwrap_or_else(PoisonError::into_inner) = Some((chain, ours));
        Ok(())
    }

    pub(super) fn mount(&self, mut lower: Vec<PathBuf>, upper: Option<(&Path, &Path)>) -> Result<Rootfs, TreeError> {
        // Two directories at least are needed without an upper one.
        let [one, two] = self.dir.none();
        lower.push(one);
        if lower.len() == 1 {
            lower.push(two);
        }
        let place = upper.map_or(self.dir.root(), |(upper, _)| upper).to_owned();
        let stack = Stack { lower, upper, marks: self.marks };
        let fd = stack.mount().map_err(|error| io_error("mount", &place)(std::io::Error::other(error)))?;
        let attached = Attached::if_needed(&fd, || self.dir.temp())?;
        let rootfs = Rootfs::from_fd(fd).attached(attached);
        Ok(rootfs.pretending(self.pretence.clone()).within(self.dir.disk()).listing_in(self.dir.root()))
    }

    /// Opens the raw directory of a layer.
    pub(super) fn open(&self, path: &Path) -> Result<Rootfs, TreeError> {
        let opened = Rootfs::open(path).map_err(io_error("open", path))?;
        Ok(opened.pretending(self.pretence.clone()).within(self.dir.disk()).listing_in(self.dir.root()))
    }

    /// Directories of a stack, the uppermost first, few enough to be mounted with detached layers above them.
    pub(super) fn lower(&self, chains: &[ChainId]) -> Result<Vec<PathBuf>, TreeError> {
        let mut directories = self.directories(chains, 0);
        // One is the empty directory, one room for a step's layer.
        if directories.len() + MOST_DETACHED + 2 > MAX_LOWER {
            let flat = (chains.len() - 1) / FLATTEN * FLATTEN;
            directories = self.directories(chains, flat);
            directories.push(self.flatten(&chains[..flat])?);
        }
        Ok(directories)
    }

    /// Directories of the layers from one on, which has a number that [`TOGETHER`] divides; the uppermost first.
    fn directories(&self, chains: &[ChainId], from: usize) -> Vec<PathBuf> {
        let mut directories = Vec::new();
        let mut at = from;
        while at < chains.len() {
            let mut next = None;
            for count in [TOGETHER * TOGETHER, TOGETHER] {
                if at.is_multiple_of(count) && chains.len() - at >= count && chains.len() >= 2 * TOGETHER {
                    next = self.merged(&chains[..at + count], count).map(|place| (place, count));
                }
                if next.is_some() {
                    break;
                }
            }
            let (place, count) = next.unwrap_or_else(|| (self.dir.layer(chains[at]), 1));
            directories.push(place);
            at += count;
        }
        directories.reverse();
        directories
    }

    /// The directory that stands for the last `count` layers of a stack, if they are small; made if it is not there yet.
    fn merged(&self, chains: &[ChainId], count: usize) -> Option<PathBuf> {
        let top = chains.last()?;
        let place = self.dir.merged(*top, count);
        let known = || self.merged.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = known().get(&(*top, count)) {
            return there.then_some(place);
        }
        let there = place.exists()
            || self.merge(chains, count, &place).unwrap_or_else(|error| {
                // What stands in the way, as a full disk, is told by whoever needs it gone.
                tracing::debug!(%error, "small layers stay apart");
                false
            });
        known().insert((*top, count), there);
        there.then_some(place)
    }

    fn merge(&self, chains: &[ChainId], count: usize, place: &Path) -> Result<bool, TreeError> {
        let (below, layers) = chains.split_at(chains.len() - count);
        let mut sources = Vec::with_capacity(TOGETHER);
        for end in (1..=TOGETHER).map(|part| below.len() + part * (count / TOGETHER)) {
            let source = match count {
                TOGETHER => Some(self.dir.layer(chains[end - 1])),
                _ => self.merged(&chains[..end], count / TOGETHER),
            };
            let Some(source) = source else { return Ok(false) };
            // As the disk has it: marks are copied like other attributes.
            sources.push(Rootfs::open(&source).map_err(io_error("open", &source))?);
        }
        let cancel = Cancel::default();
        let (stop, disk) = (Stop::new(&cancel), self.dir.disk());
        let merge = Merge { sources: &sources, marks: self.marks, disk: &disk, stop: &stop };
        let fail = |error: ListError| io_error("copy", &error.path)(error.source);
        let Some(mut merged) = merge.read().map_err(fail)? else { return Ok(false) };
        if merged.has_whiteouts() {
            let lower = if below.is_empty() { None } else { Some(self.view(below)?) };
            merged.drop_idle_whiteouts(lower.as_ref()).map_err(fail)?;
        }
        tracing::debug!(layers = layers.len(), "small layers become one directory");
        let temp = self.dir.temp()?;
        let path = temp.path().join("merged");
        make_directory(&path)?;
        let to = Rootfs::open(&path).map_err(io_error("open", &path))?;
        merge.write(&merged, &to).map_err(fail)?;
        publish(&path, place)?;
        Ok(true)
    }

    /// The directory that holds a whole stack; made if it is not there yet.
    fn flatten(&self, chains: &[ChainId]) -> Result<PathBuf, TreeError> {
        let Some(top) = chains.last() else { return Ok(self.dir.none()[0].clone()) };
        let place = self.dir.flat(*top);
        if !place.exists() {
            tracing::debug!(layers = chains.len(), "more layers than a mount takes: the lowest become one directory");
            let temp = self.dir.temp()?;
            let path = temp.path().join("flat");
            make_directory(&path)?;
            let to = self.open(&path)?;
            let from = self.view(chains)?;
            copy_tree(&from, &to).map_err(|error| io_error("copy", &error.path)(error.source))?;
            publish(&path, &place)?;
        }
        Ok(place)
    }
}
