//! The root filesystem that is copied into: where things go (checklist C-02 to C-06), and what they become (C-20 to C-28).

use std::ffi::OsStr;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::mode::ModeChange;
use super::{CopyError, attributes_error, io_error};
use crate::cancel::Cancel;
use crate::context::{self, clean};
use crate::rootfs::{Attributes, FileKind, Metadata, NewFile, View};

/// A target and what the flags say about everything that is put into it.
pub(super) struct Target<'a, 'c> {
    pub(super) tree: &'a dyn View<'c>,
    pub(super) given: Given,
    pub(super) cancel: &'a Cancel,
}

/// What flags say about every file.
#[derive(Debug, Clone)]
pub(super) struct Given {
    /// `--chown`
    pub(super) owner: Option<(u32, u32)>,
    /// `--chmod`
    pub(super) mode: Option<ModeChange>,
}

impl Given {
    /// What a copied file gets.
    pub(super) fn attributes(&self, source: &Metadata, mtime: Option<(i64, u32)>) -> Attributes {
        let mode = match (&self.mode, source.kind) {
            (_, FileKind::Symlink) => None,
            (Some(mode), kind) => Some(mode.apply(source.mode, kind == FileKind::Directory)),
            (None, _) => Some(source.mode),
        };
        Attributes {
            owner: Some(self.owner.unwrap_or((source.uid, source.gid))),
            mode,
            mtime: Some(mtime.unwrap_or(source.mtime)),
            xattrs: Vec::new(),
        }
    }
}

impl Target<'_, '_> {
    /// Makes the directories that the destination needs, and says where a source called `name` goes. A directory goes to
    /// the destination itself, a file into it if the destination is a directory or is spelled as one.
    pub(super) fn place(&self, destination: &str, name: &OsStr, is_directory: bool) -> Result<PathBuf, CopyError> {
        let cleaned = PathBuf::from(clean(&format!("/{destination}")));
        let spelled_as_directory = destination.ends_with('/') || destination.ends_with("/.") || destination.is_empty();
        let needed = if spelled_as_directory { &*cleaned } else { cleaned.parent().unwrap_or(&cleaned) };
        self.make_directories(&self.follow(needed)?)?;

        let mut path = self.follow(&cleaned)?;
        let there = self.lstat(&path)?;
        if !is_directory && there.is_some_and(|there| there.kind == FileKind::Directory) {
            path.push(name);
        }
        let needed = match path.parent() {
            Some(parent) if !is_directory || there.is_some() => parent,
            _ => &path,
        };
        self.make_directories(needed)?;
        Ok(path)
    }

    /// Follows all links of a path of the target.
    pub(super) fn follow(&self, path: &Path) -> Result<PathBuf, CopyError> {
        self.tree.resolve(path, true).map_err(|error| match error.kind() {
            io::ErrorKind::NotADirectory => CopyError::NotADirectory { path: path.to_owned() },
            _ => io_error("resolve", path, error),
        })
    }

    pub(super) fn lstat(&self, path: &Path) -> Result<Option<Metadata>, CopyError> {
        match self.tree.lstat(path) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(io_error("examine", path, error)),
        }
    }

    /// Makes a directory and its parents; `path` holds no links (checklist C-20).
    pub(super) fn make_directories(&self, path: &Path) -> Result<(), CopyError> {
        let mode = self.given.mode.as_ref().map_or(0o755, ModeChange::for_new_parents);
        let attributes = Attributes { owner: self.given.owner, mode: Some(mode), ..Attributes::default() };
        make_directories(self.tree, path, &attributes).map(drop)
    }

    /// Writes a file that is no directory, in place of what is there unless that is one (checklist C-06).
    pub(super) fn write(&self, path: &Path, file: NewFile<'_>, attributes: &Attributes) -> Result<(), CopyError> {
        self.check_replaceable(path)?;
        self.tree.create(path, file, attributes).map_err(|error| self.refused("create", path, attributes, error))
    }

    pub(super) fn check_replaceable(&self, path: &Path) -> Result<(), CopyError> {
        match self.lstat(path)? {
            Some(there) if there.kind == FileKind::Directory => {
                Err(CopyError::ReplacesDirectory { path: path.to_owned() })
            }
            _ => Ok(()),
        }
    }

    /// An error of the target, or the cancellation that caused it.
    pub(super) fn failed(&self, action: &'static str, path: &Path, error: io::Error) -> CopyError {
        if self.cancel.is_cancelled() { CopyError::Cancelled } else { io_error(action, path, error) }
    }

    /// Like [`Target::failed`], of something that also gives attributes.
    pub(super) fn refused(
        &self,
        action: &'static str,
        path: &Path,
        attributes: &Attributes,
        error: io::Error,
    ) -> CopyError {
        if self.cancel.is_cancelled() {
            CopyError::Cancelled
        } else {
            attributes_error(action, path, attributes, error)
        }
    }

    pub(super) fn check_cancel(&self) -> Result<(), CopyError> {
        if self.cancel.is_cancelled() { Err(CopyError::Cancelled) } else { Ok(()) }
    }
}

/// Makes a directory and its parents, each with `attributes`; `path` holds no links. Returns those it made, outermost
/// first.
///
/// # Errors
/// [`CopyError::NotADirectory`] if something else is in the way.
pub(super) fn make_directories(
    tree: &dyn View<'_>,
    path: &Path,
    attributes: &Attributes,
) -> Result<Vec<PathBuf>, CopyError> {
    context::make_directories(tree, path, attributes).map_err(|(path, error)| match error.kind() {
        io::ErrorKind::NotADirectory => CopyError::NotADirectory { path },
        _ => io_error("create the directory", &path, error),
    })
}

/// A reader that ends with an error once the build is cancelled, and counts.
pub(super) struct Watched<'a, R> {
    pub(super) inner: R,
    pub(super) cancel: &'a Cancel,
    pub(super) bytes: u64,
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        let length = self.inner.read(buf)?;
        self.bytes += length as u64;
        Ok(length)
    }
}
