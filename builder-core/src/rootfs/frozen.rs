//! What a step of directory mode left of the files that its layer has, kept as it is while later steps change the tree.
//!
//! A layer is packed from a tree of its own then, below the work dir: the directories, links and files of the layer under the names that
//! they have there. What a file in it is depends on who could change it meanwhile:
//!
//! - Where the file system shares blocks, a file that has them in common with the tree's ([`Sharing::Blocks`]).
//! - Where every change that a command is about to make is seen ([`Sharing::Names`]), a further name of the tree's own file, which is
//!   *held* as the files of a base are *lent* (`borrowed`): who is about to change it gets a copy in its place. When the layer is packed it is
//!   the tree's alone again. Nobody sees the name: what is shown of such a file is its number of links and its change time without it,
//!   also afterwards, so that lists of the tree stay true.
//! - Elsewhere a copy, if it is small beside what is free ([`Holding`]); larger layers are packed before the next step begins.
//!
//! Files with several names are copied in the second way too, since one of them alone would get another file when it is changed.
//! Names that were removed and whiteouts need nothing; owners, modes and times are in the list of changes.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use rustix::fs::{AtFlags, Mode};

use super::attributes::{CAPABILITY, Target};
use super::holds::Given;
use super::ordered::{Everywhere, Visited, walk};
use super::owners::{Key, Owners};
use super::plain::{PlainTree, Sharing};
use super::sparse::Original;
use super::stat::Stat;
use super::tree::new_file;
use super::workdir::{TempDir, io_error, make_directory};
use super::{FileKind, ListError, Metadata, Rootfs, TreeError};
use crate::cancel::Cancel;
use crate::disk::Disk;
use crate::oci::ChainId;

/// Files of a tree that are held at most, over all its steps: what is known of each stays in memory, about 100 bytes.
const MOST_FILES: u64 = 100_000;

/// Bytes of one layer that are copied at most, to be packed meanwhile: a fifth of a second's work.
const MOST_COPIED: u64 = 256 << 20;

/// The same where files are in memory, which may be limited to less than the volume says is free.
const MOST_COPIED_IN_MEMORY: u64 = 64 << 20;

/// The same as a share of what is free on the volume, and of what may still be taken of it: one part in so many.
const COPIED_SHARE: u64 = 16;

/// Files that are dealt with at once, on all threads.
const BATCH: usize = 512;

/// One entry of a layer that is to be kept.
#[derive(Debug)]
pub struct Held {
    /// Path in the tree, without a leading `/`.
    pub path: PathBuf,
    /// Metadata at the end of the step.
    pub metadata: Metadata,
    /// An earlier path with the same inode.
    pub link_to: Option<PathBuf>,
}

/// How much of a tree would be kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Holding {
    /// Regular files, each once.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Those of files that have several names.
    pub linked_bytes: u64,
}

impl Holding {
    /// Counts one more entry.
    pub fn count(&mut self, metadata: &Metadata, link_to: Option<&Path>) {
        if metadata.kind == FileKind::File && link_to.is_none() {
            self.files += 1;
            self.bytes += metadata.size;
            if metadata.links > 1 {
                self.linked_bytes += metadata.size;
            }
        }
    }
}

/// The chain id of a step, once it is known.
#[derive(Debug, Default)]
pub(super) struct Naming(OnceLock<ChainId>);

impl Naming {
    pub(super) fn chain(&self) -> Option<ChainId> {
        self.0.get().copied()
    }

    pub(super) fn name(&self, chain: ChainId) {
        _ = self.0.set(chain);
    }
}

/// What is kept. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Frozen {
    rootfs: Rootfs,
    /// Who held the files, where they are further names.
    holds: Option<Arc<Owners>>,
    /// Declared last: it goes when all is given back.
    _temp: TempDir,
}

impl Frozen {
    pub(super) fn rootfs(&self) -> &Rootfs {
        &self.rootfs
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let Some(owners) = &self.holds else { return };
        let mut given = Given::default();
        let walked = walk(&self.rootfs, Path::new(""), (), &Everywhere, &mut |Visited { path, stat, .. }| match self
            .rootfs
            .parent_of(path)
            .map_err(fail(path))?
        {
            Some((dir, name)) if stat.kind == FileKind::File => {
                owners.give_back(&dir, &name, &mut given).map_err(fail(path))
            }
            _ => Ok(()),
        });
        if let Err(ListError { path, source }) = walked {
            // What is held for ever costs a copy when it is changed.
            tracing::debug!(path = %path.display(), error = %source, "files of a layer stay held");
        }
        owners.given_back(&given);
    }
}

impl PlainTree {
    /// Whether what a step changed can be kept while the next one changes the tree. `commands` says whether any of them runs a command, which
    /// may take long.
    pub(super) fn can_freeze(&self, holding: Holding, commands: bool) -> bool {
        match self.sharing() {
            Sharing::Blocks => true,
            Sharing::Names => {
                let known = self.owners().map_or(0, Owners::known_holds) as u64;
                known + holding.files <= MOST_FILES && self.can_copy(holding.linked_bytes)
            }
            Sharing::Nothing => commands && self.can_copy(holding.bytes),
        }
    }

    fn can_copy(&self, bytes: u64) -> bool {
        let directory = self.dir();
        let free = || rustix::fs::statvfs(directory.root()).map_or(0, |volume| volume.f_bavail * volume.f_frsize);
        let most = if is_memory(directory.root()) { MOST_COPIED_IN_MEMORY } else { MOST_COPIED };
        bytes == 0
            || bytes <= most
                && bytes <= directory.disk().left().unwrap_or(u64::MAX) / COPIED_SHARE
                && bytes <= free() / COPIED_SHARE
    }

    /// Keeps the entries of a layer.
    ///
    /// # Errors
    /// Those of `entries`, as `read`; the path that cannot be kept; [`TreeError::Cancelled`]. Nothing is held then.
    pub(super) fn freeze(
        &self,
        from: &Rootfs,
        entries: impl Iterator<Item = io::Result<Held>>,
        cancel: &Cancel,
    ) -> Result<Frozen, TreeError> {
        let temp = self.dir().temp()?;
        let path = temp.path().join("root");
        make_directory(&path)?;
        let mut rootfs = Rootfs::open(&path).map_err(io_error("open", &path))?;
        if from.owners().is_some() {
            // Of the tree's own records some may be gone meanwhile.
            rootfs = rootfs.recording(Arc::default());
        }
        let holds = from.owners().filter(|_| self.sharing() == Sharing::Names).cloned();
        // From here on what is held is given back, whatever happens.
        let frozen = Frozen { rootfs, holds, _temp: temp };
        let disk = self.dir().disk();
        let freezing = Freezing { from, to: &frozen.rootfs, holds: frozen.holds.as_deref(), disk: &disk, cancel };
        freezing.all(entries).map_err(|error| match cancel.is_cancelled() {
            true => TreeError::Cancelled,
            false => io_error("keep", &error.path)(error.source),
        })?;
        Ok(frozen)
    }
}

/// Whether files on this volume are in memory: the numbers of tmpfs and ramfs (statfs(2)).
#[allow(clippy::unnecessary_cast, reason = "the width of the number differs between architectures")]
fn is_memory(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|volume| matches!(volume.f_type as u32, 0x0102_1994 | 0x8584_58f6))
}

/// How entries are kept.
struct Freezing<'a> {
    from: &'a Rootfs,
    to: &'a Rootfs,
    holds: Option<&'a Owners>,
    disk: &'a Disk,
    cancel: &'a Cancel,
}

impl Freezing<'_> {
    fn all(&self, entries: impl Iterator<Item = io::Result<Held>>) -> Result<(), ListError> {
        let mut files = Vec::new();
        let mut others = Vec::new();
        for entry in entries {
            let Held { path, metadata, link_to } = entry.map_err(fail(Path::new("")))?;
            match (metadata.kind, link_to) {
                (FileKind::Directory, _) => self.directory(&path).map_err(fail(&path))?,
                (FileKind::Symlink, _) => self.symlink(&path).map_err(fail(&path))?,
                (FileKind::File, Some(first)) => others.push((first, path)),
                (FileKind::File, None) => files.push((path, metadata.links > 1)),
                // All that there is to them is in the list.
                (FileKind::Fifo | FileKind::CharDevice | FileKind::BlockDevice | FileKind::Socket, _) => {}
            }
            if files.len() == BATCH {
                self.files(&files)?;
                files.clear();
            }
        }
        self.files(&files)?;
        // Asked for capabilities alone.
        others.iter().try_for_each(|(first, path)| self.link(first, path).map_err(fail(path)))
    }

    fn directory(&self, path: &Path) -> io::Result<()> {
        let Some((dir, name)) = self.to.parent_of(path)? else { return Ok(()) };
        Ok(rustix::fs::mkdirat(&dir, &*name, Mode::from_raw_mode(0o700))?)
    }

    fn symlink(&self, path: &Path) -> io::Result<()> {
        let text = self.from.read_link(path)?;
        let Some((dir, name)) = self.to.parent_of(path)? else { return Ok(()) };
        Ok(rustix::fs::symlinkat(&text, &dir, &*name)?)
    }

    fn link(&self, first: &Path, path: &Path) -> io::Result<()> {
        let (Some((from, old)), Some((to, new))) = (self.to.parent_of(first)?, self.to.parent_of(path)?) else {
            return Ok(());
        };
        Ok(rustix::fs::linkat(&from, &*old, &to, &*new, AtFlags::empty())?)
    }

    fn files(&self, files: &[(PathBuf, bool)]) -> Result<(), ListError> {
        files.par_iter().try_for_each(|(path, linked)| self.file(path, *linked).map_err(fail(path)))
    }

    fn file(&self, path: &Path, linked: bool) -> io::Result<()> {
        if self.cancel.is_cancelled() {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let (Some((from, old)), Some((to, new))) = (self.from.parent_of(path)?, self.to.parent_of(path)?) else {
            return Ok(());
        };
        match self.holds {
            Some(owners) if !linked && owners.hold((&from, &old), (&to, &new))? => {
                let capability = OsStr::new(CAPABILITY);
                if owners.has_capable()
                    && let Some(value) = self.from.xattr(path, capability)?
                    && let Some(records) = self.to.owners()
                {
                    records.set_xattr(Key::of(&Stat::entry(&to, &new)?), capability, &value);
                }
                Ok(())
            }
            _ => self.copy(path, &to, &new),
        }
    }

    fn copy(&self, path: &Path, dir: impl AsFd, name: &OsStr) -> io::Result<()> {
        let original = self.from.open_file(path)?;
        let copy = File::from(new_file(&dir, name)?);
        let go_on = || match self.cancel.is_cancelled() {
            true => Err(io::ErrorKind::Interrupted.into()),
            false => Ok(()),
        };
        Original { file: &original, go_on: &go_on, seen: None }.copy_to(&copy, self.disk)?;
        let capability = OsStr::new(CAPABILITY);
        let Some(value) = self.from.xattr_of(&original, capability)? else { return Ok(()) };
        match self.to.owners() {
            Some(owners) => owners.set_xattr(Key::of(&Stat::of(&copy)?), capability, &value),
            None => Target::Open(copy.as_fd()).set_xattr(capability, &value)?,
        }
        Ok(())
    }
}

fn fail(path: &Path) -> impl Fn(io::Error) -> ListError {
    move |source| ListError { path: path.to_owned(), source }
}
