//! What COPY, ADD and WORKDIR need of a tree, whether it is on disk or only known.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use super::index::IndexStep;
use super::{Attributes, Metadata, NewFile, Rootfs};

/// A tree to look at and to change: a [`Rootfs`], or an [`IndexStep`] whose content stays where it is as long as `'c`.
///
/// Every method means what the one of the same name of [`Rootfs`] means, errors included.
pub trait View<'c>: Sync {
    /// See [`Rootfs::resolve`].
    ///
    /// # Errors
    /// As there.
    fn resolve(&self, path: &Path, follow_last: bool) -> io::Result<PathBuf>;

    /// See [`Rootfs::lstat`].
    ///
    /// # Errors
    /// As there.
    fn lstat(&self, path: &Path) -> io::Result<Metadata>;

    /// Whether nothing is in the root directory.
    ///
    /// # Errors
    /// What the kernel says.
    fn is_empty(&self) -> io::Result<bool>;

    /// See [`Rootfs::read_link`].
    ///
    /// # Errors
    /// As there.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;

    /// See [`Rootfs::read_small`].
    ///
    /// # Errors
    /// As there.
    fn read_small(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>>;

    /// See [`Rootfs::create`].
    ///
    /// # Errors
    /// As there.
    fn create(&self, path: &Path, file: NewFile<'_>, attributes: &Attributes) -> io::Result<()>;

    /// Creates a regular file like [`View::create`] whose content `fill` writes into an empty file, wherever in it.
    ///
    /// # Errors
    /// As there, and what `fill` says.
    fn create_with(
        &self,
        path: &Path,
        fill: &mut dyn FnMut(&mut File) -> io::Result<()>,
        attributes: &Attributes,
    ) -> io::Result<()>;

    /// See [`Rootfs::hard_link`].
    ///
    /// # Errors
    /// As there.
    fn hard_link(&self, existing: &Path, path: &Path) -> io::Result<()>;

    /// See [`Rootfs::set_attributes`].
    ///
    /// # Errors
    /// As there.
    fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()>;

    /// The tree as one that can take note of content instead of copying it.
    fn index(&self) -> Option<&IndexStep<'c>>;
}

impl<'c> View<'c> for Rootfs {
    fn resolve(&self, path: &Path, follow_last: bool) -> io::Result<PathBuf> {
        Self::resolve(self, path, follow_last)
    }

    fn lstat(&self, path: &Path) -> io::Result<Metadata> {
        Self::lstat(self, path)
    }

    fn is_empty(&self) -> io::Result<bool> {
        match self.read_dir(Path::new("/")) {
            Ok(entries) => Ok(entries.is_empty()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(error),
        }
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        Self::read_link(self, path)
    }

    fn read_small(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        Self::read_small(self, path, limit)
    }

    fn create(&self, path: &Path, file: NewFile<'_>, attributes: &Attributes) -> io::Result<()> {
        Self::create(self, path, file, attributes)
    }

    fn create_with(
        &self,
        path: &Path,
        fill: &mut dyn FnMut(&mut File) -> io::Result<()>,
        attributes: &Attributes,
    ) -> io::Result<()> {
        Self::create(self, path, NewFile::File(&mut io::empty()), &Attributes::default())?;
        fill(&mut self.overwrite(path)?)?;
        Self::set_attributes(self, path, attributes)
    }

    fn hard_link(&self, existing: &Path, path: &Path) -> io::Result<()> {
        Self::hard_link(self, existing, path)
    }

    fn set_attributes(&self, path: &Path, attributes: &Attributes) -> io::Result<()> {
        Self::set_attributes(self, path, attributes)
    }

    fn index(&self) -> Option<&IndexStep<'c>> {
        None
    }
}
