//! Build context: `.dockerignore`, walk, content hash.
//!
//! Architecture invariant: stages and root filesystems are not known here.

pub(crate) mod glob;
mod ignore;

pub use ignore::{IgnoreError, IgnoreFile, IgnoreFileError, Patterns, find_ignore_file};

use std::path::{Path, PathBuf};

use crate::rootfs::Rootfs;

/// A tree of files that COPY and ADD read: a directory with ignore rules, or a stage's root filesystem.
#[derive(Debug)]
pub struct Files {
    _private: (),
}

impl Files {
    /// A directory of the host. Owners are 0:0, `patterns` hide files.
    ///
    /// # Errors
    /// If it is not a readable directory.
    pub fn directory(_path: &Path, _patterns: Patterns) -> std::io::Result<Self> {
        todo!()
    }

    /// A root filesystem: owners as they are, nothing hidden.
    pub fn rootfs(_rootfs: Rootfs) -> Self {
        todo!()
    }

    /// An empty tree.
    pub fn empty() -> Self {
        todo!()
    }

    /// The directory of the host behind it, if there is one.
    pub fn host_path(&self) -> Option<PathBuf> {
        todo!()
    }
}
