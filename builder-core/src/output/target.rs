//! `--output`: what is written where, as a value.

mod annotation;
mod error;
mod parse;
#[cfg(test)]
mod tests;
mod words;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

pub use self::annotation::{Annotation, AnnotationError, AnnotationErrorKind, AnnotationLevel};
pub use self::error::{TargetError, TargetErrorKind};
use super::OutputError;
use crate::layer::Compression;
use crate::oci::Reference;

/// One `--output`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Which form, and where it goes.
    pub exporter: Exporter,
    /// `name=`: more names for the image, besides those of `--tag`.
    pub names: Vec<Reference>,
    /// Compression of new layers; `None` if not asked for.
    pub compression: Option<Compression>,
    /// Bring base layers to that compression as well.
    pub force_compression: bool,
    /// `oci-mediatypes=`; `None` if not asked for.
    pub oci_media_types: Option<bool>,
    /// `annotation…=`, in the order given.
    pub annotations: Vec<Annotation>,
    /// Clamp the times in new layers to the source date epoch.
    pub rewrite_timestamp: bool,
    /// `source-date-epoch=`: overrides that of the build; `Some(None)` switches it off (checklist X-13).
    pub source_date_epoch: Option<Option<i64>>,
}

/// Which form an output has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exporter {
    /// Pushed to a registry (`type=registry`, `type=image,push=true`).
    Registry {
        /// Under no tag, only its digest.
        by_digest: bool,
        /// Plain HTTP or unverified TLS is fine for these names.
        insecure: bool,
    },
    /// OCI layout as a tar (`type=oci`).
    OciArchive(Destination),
    /// OCI layout as a directory (`type=oci,tar=false`).
    OciDirectory(PathBuf),
    /// `docker load` format, which is an OCI layout as well (`type=docker`).
    DockerArchive(Destination),
    /// OCI layout as a directory that holds this image alone, without a name, whatever was there.
    OnlyOciDirectory(PathBuf),
    /// The form that `docker save` had before it was an OCI layout: `sha256:<hex>` is the config, `<hex>.tar.gz` a layer.
    DockerSave {
        /// Where to.
        to: Destination,
        /// The names in it, as they are to be read.
        names: Vec<String>,
    },
    /// The files of the root filesystem as a tar (`type=tar`).
    Tar {
        /// Where to.
        to: Destination,
        /// One directory a platform; `None`: only if there are several.
        platform_split: Option<bool>,
    },
    /// The files of the root filesystem in a directory (`type=local`).
    Local {
        /// Where to.
        directory: PathBuf,
        /// One directory a platform; `None`: only if there are several.
        platform_split: Option<bool>,
        /// Remove what is there and not in the result (`mode=delete`).
        delete: bool,
    },
    /// Nothing is written; the result stays in the work dir (`type=cacheonly`).
    CacheOnly,
}

/// A file, or standard output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// `-`
    Stdout,
    /// A file; replaced only when the new one is whole.
    File(PathBuf),
}

impl Destination {
    /// `-`, or the path as people read it.
    pub fn name(&self) -> Cow<'_, str> {
        match self {
            Self::Stdout => Cow::Borrowed("-"),
            Self::File(path) => Cow::Owned(path.display().to_string()),
        }
    }
}

impl Target {
    /// Every `type=` with its keys, as the reader knows them; documentation is tested with it.
    pub fn words() -> impl Iterator<Item = (&'static str, Vec<&'static str>)> {
        words::TYPES.iter().map(|exporter| (*exporter, words::keys_of(exporter)))
    }

    /// An output without options.
    pub fn new(exporter: Exporter) -> Self {
        Self {
            exporter,
            names: Vec::new(),
            compression: None,
            force_compression: false,
            oci_media_types: None,
            annotations: Vec::new(),
            rewrite_timestamp: false,
            source_date_epoch: None,
        }
    }

    /// What `--push` stands for.
    pub fn push() -> Self {
        Self::new(Exporter::Registry { by_digest: false, insecure: false })
    }

    /// Reads `DIR`, `-`, or `type=…,key=value,…` in one line of CSV. Relative paths are taken from `cwd`. Archives without
    /// `dest=` go to standard output, except `type=docker`, which would mean a daemon.
    ///
    /// # Errors
    /// [`TargetError`], with a hint where a word is nearly right.
    pub fn parse(text: &str, cwd: &Path) -> Result<Self, TargetError> {
        parse::parse(text, cwd, false).map_err(|kind| TargetError { text: text.to_owned(), kind })
    }

    /// The same beside `--push`: `type=image` and `type=registry` are pushed then, whatever their `push=` says.
    ///
    /// # Errors
    /// As [`Target::parse`].
    pub fn parse_beside_push(text: &str, cwd: &Path) -> Result<Self, TargetError> {
        parse::parse(text, cwd, true).map_err(|kind| TargetError { text: text.to_owned(), kind })
    }

    /// Whether it takes standard output for itself, so that no digest can be printed there.
    pub fn is_stdout(&self) -> bool {
        matches!(
            &self.exporter,
            Exporter::OciArchive(Destination::Stdout)
                | Exporter::DockerArchive(Destination::Stdout)
                | Exporter::Tar { to: Destination::Stdout, .. }
        )
    }

    /// Whether the image has Docker's media types.
    pub fn wants_docker_media_types(&self) -> bool {
        self.oci_media_types == Some(false)
    }

    /// The directory in which this writes files; `None` for registries, standard output, and what writes nothing.
    pub fn directory(&self) -> Option<PathBuf> {
        match &self.exporter {
            Exporter::OciArchive(Destination::File(path))
            | Exporter::DockerArchive(Destination::File(path))
            | Exporter::Tar { to: Destination::File(path), .. } => path.parent().map(Path::to_owned),
            Exporter::OciDirectory(directory) | Exporter::Local { directory, .. } => Some(directory.clone()),
            _ => None,
        }
    }

    /// Refuses a file where a directory is, and a directory where a file is: what is known before the build is said before it.
    ///
    /// # Errors
    /// [`OutputError::Place`]
    pub fn check_place(&self) -> Result<(), OutputError> {
        let wrong = |path: &PathBuf, reason| Err(OutputError::Place { path: path.clone(), reason });
        match &self.exporter {
            Exporter::OciArchive(Destination::File(path))
            | Exporter::DockerArchive(Destination::File(path))
            | Exporter::DockerSave { to: Destination::File(path), .. }
            | Exporter::Tar { to: Destination::File(path), .. }
                if path.is_dir() =>
            {
                wrong(path, "it is a directory, and a file is to be written")
            }
            Exporter::OciDirectory(path)
            | Exporter::OnlyOciDirectory(path)
            | Exporter::Local { directory: path, .. }
                if path.metadata().is_ok_and(|found| !found.is_dir()) =>
            {
                wrong(path, "it is no directory, and a directory is to be written")
            }
            _ => Ok(()),
        }
    }

    /// Whether this needs the files of the result, not an image.
    pub fn is_files(&self) -> bool {
        matches!(self.exporter, Exporter::Tar { .. } | Exporter::Local { .. })
    }
}
