//! Directory mode: one plain directory a checkout, layers applied in order, later ones fetched meanwhile.
//!
//! A tree is taken from its place while it is used and put back, under the chain id that it has then, when nobody uses it
//! any more and no change in it is unaccounted for. So no two users share one, and a killed process costs its trees.
//!
//! Where several users of one build will begin with the same layers (`wanted`), the first one that needs them unpacks them into a
//! tree that nobody changes, and takes a copy of it (`duplicate`), as do the others; the last one takes the tree itself. A tree
//! that is being copied is not taken away by anybody, in any process (see [`TreesDir::lend`]).
//!
//! Where a copy costs next to no space ([`Sharing`]), what a stage begins with stays as it was unpacked, for one user as for
//! several: it is the one form in which a base is kept, for later builds too.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::applied::apply_in_order;
use super::borrowed::{Borrowed, LentFiles};
use super::duplicate::Duplicate;
use super::fetch::Stop;
use super::frozen::Naming;
use super::index::Indexes;
use super::inflate::Allowance;
use super::links::Separated;
use super::owners::{Key, Owners};
use super::pretend::Pretence;
use super::recall::Unchanged;
use super::stack::Claims;
use super::stat::Stat;
use super::trees::chain_ids;
use super::wanted::{Expected, Wanted};
use super::workdir::{Taken, TempDir, TreesDir, io_error, make_directory, publish};
use super::{LayerRef, LayerSource, ListError, Listing, Rootfs, TreeError};
use crate::cancel::Cancel;
use crate::oci::{ChainId, DiffId};

/// One tree in use.
#[derive(Debug)]
pub(super) struct PlainTree {
    plains: Arc<Plains>,
    temp: TempDir,
    pretence: Pretence,
    chain: Option<ChainId>,
    /// Steps above those of `chain`, whose layers are being made.
    unnamed: Vec<Arc<Naming>>,
    /// What the last step found at its end, as long as nothing changed since.
    pub listing: Option<Arc<Listing>>,
    /// Hard links that a step needed apart.
    separated: Mutex<Separated>,
    /// Files of a base that it has names of.
    lent: LentFiles,
    /// They were joined since, which `listing` does not know.
    joined: AtomicBool,
    /// A step began and did not end well, or is at work.
    pub dirty: bool,
}

/// The parts of `Trees` that directory mode needs.
#[derive(Debug)]
pub(super) struct Plains {
    pub dir: TreesDir,
    /// Trees that several users of this process will begin with.
    pub wanted: Wanted,
    /// Those of them that somebody unpacks or copies.
    claims: Claims,
    /// What trees have in common, once it is said.
    sharing: OnceLock<Sharing>,
}

/// What a tree has in common with the unchanged one that it is a copy of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Sharing {
    /// Nothing: all bytes are there twice.
    #[default]
    Nothing,
    /// Blocks of files, as the file system does it.
    Blocks,
    /// Files, where their owners are recorded: see `borrowed`.
    Names,
}

/// A tree that is to be made.
#[derive(Clone, Copy)]
pub(super) struct Making<'a> {
    pub plains: &'a Arc<Plains>,
    /// What is pretended; the tree gets its own records.
    pub pretence: &'a Pretence,
    pub layers: &'a [LayerRef],
    /// Chain ids of `layers`.
    pub chains: &'a [ChainId],
    pub source: &'a dyn LayerSource,
    pub allowed: &'a Allowance,
    pub stop: &'a Stop<'a>,
}

impl Making<'_> {
    /// Makes or finds the tree. What others than `own` will begin with is unpacked once, and copied for all but the last of them.
    pub(super) fn tree(self, own: Expected) -> Result<PlainTree, TreeError> {
        self.on(self.plains.wanted.longest(self.chains), own)
    }

    /// The same with a tree of the first `shared` layers left to others, if there are any.
    fn on(self, shared: usize, own: Expected) -> Result<PlainTree, TreeError> {
        let temp = self.plains.dir.temp()?;
        let tree = temp.path().join("tree");
        let mut there = self.find(shared, &tree)?;
        if there == 0 && shared > 0 {
            there = self.share(shared, &tree, own)?;
            if there == 0 {
                there = self.find(0, &tree)?;
            }
        }
        if there == 0 {
            make_root(&tree)?;
        }
        let pretence = match self.records(&tree)? {
            Some(records) => self.pretence.with_records(Arc::new(records)),
            None => self.pretence.clone(),
        };
        let lent = LentFiles::load(&tree).map_err(io_error("read", &tree))?;
        self.finish(temp, (pretence, lent), there)
    }

    /// The tree of what another one has, and of all layers on top of it.
    pub(super) fn on_copy_of(self, other: &PlainTree) -> Result<PlainTree, TreeError> {
        if other.dirty {
            return Err(TreeError::Discarded);
        }
        other.readable()?;
        let temp = self.plains.dir.temp()?;
        let tree = temp.path().join("tree");
        let path = other.tree().join("root");
        let from = Rootfs::open(&path).map_err(io_error("open", &path))?;
        let known = other.pretence.records().map(Arc::as_ref);
        let pretence = match self.copy_from(&from, (known, &other.lent), &tree)? {
            Some(later) => other.pretence.with_records(Arc::new(later)),
            None => other.pretence.clone(),
        };
        let mut made = self.finish(temp, (pretence, other.lent.clone()), 0)?;
        made.chain = made.chain.or(other.chain());
        Ok(made)
    }

    /// Applies the layers after the first `there`.
    fn finish(
        &self,
        temp: TempDir,
        (pretence, lent): (Pretence, LentFiles),
        there: usize,
    ) -> Result<PlainTree, TreeError> {
        if let Some(owners) = pretence.owners()
            && (!lent.is_empty() || self.borrows())
        {
            let staging = temp.path().join("staging");
            make_directory(&staging)?;
            owners.borrows(Borrowed::new(lent.clone(), staging, self.plains.dir.disk()));
        }
        let mut made = PlainTree {
            plains: Arc::clone(self.plains),
            temp,
            pretence,
            chain: self.chains.last().copied(),
            unnamed: Vec::new(),
            listing: None,
            separated: Mutex::default(),
            lent,
            joined: AtomicBool::new(false),
            // Until all layers are applied.
            dirty: true,
        };
        let (dir, rootfs) = (&self.plains.dir, made.rootfs()?);
        apply_in_order(&self.layers[there..], dir, &rootfs, self.source, self.allowed, self.stop)?;
        made.dirty = false;
        Ok(made)
    }

    /// Takes the finished tree with the most of the layers, but with more than `above`; how many it has, 0 for none.
    fn find(&self, above: usize, tree: &Path) -> Result<usize, TreeError> {
        let dir = &self.plains.dir;
        for (at, chain) in self.chains.iter().enumerate().skip(above).rev() {
            if self.borrows() && dir.take(&dir.linked(*chain), tree)? == Taken::Yes {
                return Ok(at + 1);
            }
            match dir.take(&dir.plain(*chain), tree)? {
                Taken::Yes => return Ok(at + 1),
                Taken::Lent | Taken::Missing if self.keeps() && self.copy(*chain, tree)? => return Ok(at + 1),
                Taken::Lent if self.copy(*chain, tree)? => return Ok(at + 1),
                Taken::Lent | Taken::Missing => {}
            }
        }
        Ok(0)
    }

    /// Copies the tree of the first `shared` layers, which is unpacked before if it is not there; 0 if nobody else wants it any
    /// more.
    fn share(&self, shared: usize, tree: &Path, own: Expected) -> Result<usize, TreeError> {
        let chain = self.chains[shared - 1];
        // Whoever waits here finds it unpacked, and perhaps is the last one then.
        let Some(_claim) = self.plains.claims.take(chain, || false, self.stop) else {
            return Err(TreeError::Cancelled);
        };
        drop(own);
        if !self.keeps() && !self.plains.wanted.has(chain) {
            return Ok(0);
        }
        if self.copy(chain, tree)? {
            return Ok(shared);
        }
        // It gets its name when it is dropped, unless it has one then.
        let base = Self { layers: &self.layers[..shared], chains: &self.chains[..shared], ..*self };
        let mut base = base.on(0, Expected::nobody())?;
        if self.keeps() {
            base.become_base()?;
        }
        drop(base);
        Ok(if self.copy(chain, tree)? { shared } else { 0 })
    }

    /// Whether the tree may have names of a base's files.
    fn borrows(&self) -> bool {
        self.pretence.owners().is_some() && self.plains.sharing() == Sharing::Names
    }

    /// Whether what others begin with stays as it is.
    fn keeps(&self) -> bool {
        self.borrows() || self.plains.sharing() == Sharing::Blocks
    }

    /// Copies a finished tree; `false` if there is none.
    fn copy(&self, chain: ChainId, tree: &Path) -> Result<bool, TreeError> {
        let dir = &self.plains.dir;
        let path = if self.keeps() { dir.base(chain) } else { dir.plain(chain) };
        let Some(lease) = dir.lend(&path)? else { return Ok(false) };
        let from = lease.root().map_err(io_error("open", &path))?;
        let known = self.records(&path)?;
        let lent = LentFiles::load(&path).map_err(io_error("read", &path))?;
        let later = self.copy_from(&from, (known.as_ref(), &lent), tree)?;
        save_beside(tree, later.as_ref(), &lent)?;
        Ok(true)
    }

    /// What is recorded of a finished tree, where anything is recorded.
    fn records(&self, tree: &Path) -> Result<Option<Owners>, TreeError> {
        self.pretence.records().map(|_| records(tree)).transpose()
    }

    /// Copies a tree with what is known of it; what is known of the copy.
    fn copy_from(
        &self,
        from: &Rootfs,
        (known, lent): (Option<&Owners>, &LentFiles),
        tree: &Path,
    ) -> Result<Option<Owners>, TreeError> {
        make_root(tree)?;
        let later = known.map(|_| Owners::default());
        let to = Rootfs::open(&tree.join("root")).map_err(io_error("open", tree))?;
        let disk = self.plains.dir.disk();
        let owners = known.zip(later.as_ref());
        let owned = self.pretence.owners().is_none();
        let copied = Duplicate { from, to: &to, owners, owned, lent, disk: &disk, stop: self.stop }.make();
        copied.map_err(|error| match self.stop.is_stopped() {
            true => TreeError::Cancelled,
            false => io_error("copy", &error.path)(error.source),
        })?;
        Ok(later)
    }
}

/// Makes an empty tree.
fn make_root(tree: &Path) -> Result<(), TreeError> {
    make_directory(tree)?;
    make_directory(&tree.join("root"))
}

/// Name of the records beside a tree.
const RECORDS: &str = "owners.json";

/// What is recorded of a tree.
fn records(tree: &Path) -> Result<Owners, TreeError> {
    let path = tree.join(RECORDS);
    Owners::load(&path).map_err(io_error("read", &path))
}

/// Writes what is recorded of a tree, if anything is, and what it has borrowed or lends.
fn save_beside(tree: &Path, owners: Option<&Owners>, lent: &LentFiles) -> Result<(), TreeError> {
    if let Some(owners) = owners {
        let path = tree.join(RECORDS);
        owners.save(&path).map_err(io_error("write", &path))?;
    }
    if !lent.is_empty() {
        lent.save(tree).map_err(io_error("write", tree))?;
    }
    Ok(())
}

impl Plains {
    /// Whether there is a finished tree.
    pub(super) fn has(&self, chain: ChainId) -> bool {
        let sharing = self.sharing();
        self.dir.plain(chain).exists()
            || sharing != Sharing::Nothing && self.dir.base(chain).exists()
            || sharing == Sharing::Names && self.dir.linked(chain).exists()
    }

    /// Says what trees have in common; the first word is the last.
    pub(super) fn share(&self, sharing: Sharing) {
        _ = self.sharing.set(sharing);
    }

    fn sharing(&self) -> Sharing {
        self.sharing.get().copied().unwrap_or_default()
    }

    pub(super) fn new(dir: TreesDir) -> Self {
        Self { dir, wanted: Wanted::default(), claims: Claims::default(), sharing: OnceLock::new() }
    }
}

impl PlainTree {
    /// Where everything is recorded that cannot be made real without privileges.
    pub(super) fn owners(&self) -> Option<&Owners> {
        self.pretence.owners().map(Arc::as_ref)
    }

    /// Writes down beside the tree what is known of it.
    fn save_beside(&self, tree: &Path, lent: &LentFiles) -> Result<(), TreeError> {
        save_beside(tree, self.pretence.records().map(Arc::as_ref), lent)
    }

    fn tree(&self) -> PathBuf {
        self.temp.path().join("tree")
    }

    /// What it has in common with others.
    pub(super) fn sharing(&self) -> Sharing {
        self.plains.sharing()
    }

    /// The directory of all trees.
    pub(super) fn dir(&self) -> &TreesDir {
        &self.plains.dir
    }

    pub(super) fn rootfs(&self) -> Result<Rootfs, TreeError> {
        let path = self.tree().join("root");
        let opened = Rootfs::open(&path).map_err(io_error("open", &path))?;
        Ok(opened.pretending(self.pretence.clone()).within(self.plains.dir.disk()).listing_in(self.plains.dir.root()))
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

    /// Makes hard links after a command what the layers say.
    pub(super) fn settle<E: From<ListError>>(
        &self,
        rootfs: &Rootfs,
        listing: &mut Arc<Listing>,
        written: impl Iterator<Item = Result<(PathBuf, Option<PathBuf>), E>>,
    ) -> Result<(), E> {
        rootfs.settle(&mut self.separated(), Arc::make_mut(listing), written)
    }

    /// All layers of the tree that have a name.
    pub(super) fn chain(&self) -> Option<ChainId> {
        self.unnamed.iter().map_while(|step| step.chain()).last().or(self.chain)
    }

    /// Ends a step well: what is there now is the tree.
    ///
    /// # Errors
    /// If a layer below has no name yet.
    pub(super) fn committed(&mut self, diff_id: DiffId, now: Option<Arc<Listing>>) -> Result<(), TreeError> {
        for step in std::mem::take(&mut self.unnamed) {
            self.chain = Some(step.chain().ok_or(TreeError::Discarded)?);
        }
        self.chain = Some(ChainId::extend(self.chain, diff_id));
        self.end_step(now);
        Ok(())
    }

    /// The same of a step whose layer is being made. Whoever learns its chain id says it.
    pub(super) fn detached(&mut self, now: Option<Arc<Listing>>) -> Arc<Naming> {
        let step = Arc::new(Naming::default());
        self.unnamed.push(Arc::clone(&step));
        self.end_step(now);
        step
    }

    fn end_step(&mut self, now: Option<Arc<Listing>>) {
        self.dirty = false;
        if let (Some(records), Some(now)) = (self.pretence.records(), &now) {
            let alive: Result<Vec<Key>, ListError> = now.stats().map(|stat| stat.map(|stat| Key::of(&stat))).collect();
            match alive {
                Ok(mut alive) => {
                    // Which the listing leaves out.
                    let root = self.rootfs().ok().and_then(|rootfs| Stat::of(rootfs.root_fd()).ok());
                    alive.extend(root.as_ref().map(Key::of));
                    alive.sort_unstable();
                    records.retain(&alive);
                }
                // They cost a little memory, and what has such an inode later is not what they are about.
                Err(error) => tracing::debug!(%error, "records of files that are gone are kept"),
            }
        }
        self.listing = now;
    }

    /// Puts the tree back to be found again.
    fn park(&mut self) -> Result<(), TreeError> {
        let is_named = self.unnamed.iter().all(|step| step.chain().is_some());
        let Some(chain) = self.chain().filter(|_| is_named && !self.dirty) else { return Ok(()) };
        self.readable()?;
        let (tree, dir) = (self.tree(), &self.plains.dir);
        self.save_beside(&tree, &self.lent)?;
        let place = if self.lent.is_empty() { dir.plain(chain) } else { dir.linked(chain) };
        publish(&tree, &place)?;
        Ok(())
    }

    /// Puts the tree where it stays as it is, and others can have what is in it. It cannot be used any more.
    fn become_base(&mut self) -> Result<(), TreeError> {
        let Some(chain) = self.chain() else { return Ok(()) };
        let rootfs = self.readable()?;
        // Half of it may have lost its modes.
        self.dirty = true;
        let lent = match self.plains.sharing() {
            Sharing::Names => LentFiles::of(&rootfs).map_err(|error| io_error("list", &error.path)(error.source))?,
            Sharing::Blocks | Sharing::Nothing => LentFiles::default(),
        };
        let tree = self.tree();
        self.save_beside(&tree, &lent)?;
        publish(&tree, &self.plains.dir.base(chain))?;
        Ok(())
    }

    /// The indexes of the work dir.
    pub(super) fn indexes(&self) -> Indexes {
        self.plains.dir.indexes()
    }

    /// What the lowest of `layers`, of which this tree is made, looked like when it was unpacked, if that is kept.
    pub(super) fn unchanged(&self, layers: &[LayerRef]) -> Result<Option<Unchanged>, TreeError> {
        let dir = &self.plains.dir;
        for (at, chain) in chain_ids(None, layers).enumerate().collect::<Vec<_>>().into_iter().rev() {
            let path = dir.base(chain);
            let Some(lease) = dir.lend(&path)? else { continue };
            let pretence = match self.pretence.records() {
                Some(_) => self.pretence.with_records(Arc::new(records(&path)?)),
                None => self.pretence.clone(),
            };
            let rootfs = lease.root().map_err(io_error("open", &path))?.pretending(pretence);
            return Ok(Some(Unchanged { layers: at + 1, rootfs, _lease: lease }));
        }
        Ok(None)
    }

    /// The first path at which a file of a base was changed, as far as a listing of this tree tells.
    pub(super) fn damaged(&self, listing: &Listing) -> Result<Option<PathBuf>, ListError> {
        self.lent.damaged(listing)
    }
}

impl Drop for PlainTree {
    fn drop(&mut self) {
        if let Err(error) = self.park() {
            tracing::debug!(%error, "a finished tree is not kept");
        }
    }
}
