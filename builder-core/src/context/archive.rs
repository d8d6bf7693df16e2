//! Archives that ADD and contexts unpack: found by content, unpacked so that nothing leaves the destination (checklist
//! C-55 to C-57).
//!
//! Entries behave as in a chroot at the destination: links in their paths, absolute ones too, resolve inside it, and `..`
//! stops at it. The archive is a stream; never more of it is in memory than a block and the directories it lists.
//!
//! # Limitations
//! What a directory of a huge archive will look like in the end is remembered until then: about 200 bytes each.

mod decompress;
mod unpack;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use crate::hint::Hint;
use crate::rootfs::{Attributes, FileKind, NewFile, TarError, TarReader, View};

pub(crate) use unpack::{unpack, unpack_context};

/// Buffer between decompressor and tar reader, in bytes.
const BUFFER_BYTES: usize = 128 * 1024;

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It ends in the middle.
    #[error("unexpected EOF")]
    Truncated,
    /// Its bytes could not be read or decompressed.
    #[error("cannot read the archive")]
    Read(#[source] io::Error),
    /// It is no tar, or one with entries that nobody can make.
    #[error(transparent)]
    Malformed(TarError),
    /// An entry below a link that leads nowhere.
    #[error("open {}: no such file or directory", entry.display())]
    NoParent {
        /// The entry, `/` being the destination.
        entry: PathBuf,
    },
    /// An entry below something that is no directory.
    #[error("open {}: not a directory", entry.display())]
    ParentNotADirectory {
        /// The entry, `/` being the destination.
        entry: PathBuf,
    },
    /// An entry of a context that climbs out of it.
    #[error("`{}` lies outside of the archive", entry.display())]
    Outside {
        /// As the archive names it.
        entry: PathBuf,
    },
    /// A hard link to what is not there.
    #[error("link {} {}: no such file or directory", link.display(), entry.display())]
    NoLinkTarget {
        /// What it should be linked to.
        link: PathBuf,
        /// The entry, `/` being the destination.
        entry: PathBuf,
    },
    /// Links that lead to each other.
    #[error("open {}: too many levels of symbolic links", entry.display())]
    TooManyLinks {
        /// The entry, `/` being the destination.
        entry: PathBuf,
    },
    /// The destination itself as anything but a directory.
    #[error("an entry would replace the destination")]
    ReplacesRoot,
    /// The destination cannot be made.
    #[error("mkdir {}: not a directory", path.display())]
    NotADirectory {
        /// Path in the target.
        path: PathBuf,
    },
    /// The target's disk or kernel refused.
    #[error("cannot {action} `{}`", path.display())]
    Target {
        /// `create`, `write`, …
        action: &'static str,
        /// Path in the target.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Cancelled from outside.
    #[error("cancelled")]
    Cancelled,
}

impl Hint for ArchiveError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Malformed(_) | Self::Truncated => {
                Some("`--unpack=false` adds the file as it is, without looking into it".to_owned())
            }
            Self::Outside { .. } => {
                Some("make the archive in the directory itself: tar -C DIRECTORY -czf FILE .".to_owned())
            }
            _ => None,
        }
    }
}

impl From<TarError> for ArchiveError {
    fn from(error: TarError) -> Self {
        match error {
            TarError::Read(error) => error.into(),
            error @ TarError::Malformed { .. } => Self::Malformed(error),
        }
    }
}

impl From<io::Error> for ArchiveError {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof { Self::Truncated } else { Self::Read(error) }
    }
}

/// An archive at its beginning.
pub(crate) type Archive = TarReader<Box<dyn BufRead + Send>>;

/// Whether a file is an archive: a tar, plain or compressed, whose first header can be read.
///
/// # Errors
/// Only if the file itself cannot be read: what cannot be decompressed is no archive.
pub(crate) fn detect(mut file: File) -> Result<Option<Archive>, ArchiveError> {
    let magic = magic_of(&mut file)?;
    let mut again = file.try_clone()?;
    file.rewind()?;
    let first = tar_reader(file, &magic).map(|mut reader| reader.next_entry().is_ok_and(|first| first.is_some()));
    if !first.unwrap_or(false) {
        return Ok(None);
    }
    again.rewind()?;
    Ok(Some(tar_reader(again, &magic)?))
}

/// Whether a stream that begins so is an archive.
pub(super) fn is_prefix_of_archive(prefix: &[u8]) -> bool {
    let reader = open(io::Cursor::new(prefix.to_vec()));
    reader.is_ok_and(|mut reader| reader.next_entry().is_ok_and(|first| first.is_some()))
}

/// Takes a stream that is known to be an archive.
pub(super) fn open(mut stream: impl Read + Send + 'static) -> io::Result<Archive> {
    let magic = magic_of(&mut stream)?;
    let whole = io::Cursor::new(magic.clone()).chain(stream);
    tar_reader(whole, &magic)
}

/// The bytes by which compressions are told apart, or as many as there are.
fn magic_of(file: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut magic = Vec::with_capacity(8);
    file.take(8).read_to_end(&mut magic)?;
    Ok(magic)
}

fn tar_reader(file: impl Read + Send + 'static, magic: &[u8]) -> io::Result<Archive> {
    let plain = decompress::decompress(file, magic)?;
    Ok(TarReader::new(Box::new(BufReader::with_capacity(BUFFER_BYTES, plain))))
}

/// Makes a directory and its parents, each with `attributes`; `path` holds no links. Those that exist stay as they are.
/// Returns those it made, outermost first.
///
/// # Errors
/// With the path: `NotADirectory` if something else is in the way.
pub(crate) fn make_directories(
    tree: &dyn View<'_>,
    path: &Path,
    attributes: &Attributes,
) -> Result<Vec<PathBuf>, (PathBuf, io::Error)> {
    let mut missing = Vec::new();
    for ancestor in path.ancestors() {
        match tree.lstat(ancestor) {
            Ok(there) if there.kind == FileKind::Directory => break,
            Ok(_) => return Err((ancestor.to_owned(), io::ErrorKind::NotADirectory.into())),
            // Something above is no directory: found when its turn comes.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                missing.push(ancestor);
            }
            Err(error) => return Err((ancestor.to_owned(), error)),
        }
    }
    let mut made = Vec::with_capacity(missing.len());
    for directory in missing.into_iter().rev() {
        tree.create(directory, NewFile::Directory, attributes).map_err(|error| (directory.to_owned(), error))?;
        made.push(directory.to_owned());
    }
    Ok(made)
}

#[cfg(test)]
pub(super) mod tests;
