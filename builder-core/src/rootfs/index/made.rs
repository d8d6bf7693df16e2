//! The content of a regular file that a step made, wherever it is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::content::{Content, Passing};
use super::step::{Held, IndexStep};
use super::walk::find;

/// The content of a regular file that a step made. It is found by the step, in whose order files are best asked for, and
/// can be read on any thread.
pub struct MadeFile<'c> {
    place: Place<'c>,
    /// What the step says of it; content that is elsewhere says so itself.
    capability: Option<Vec<u8>>,
}

enum Place<'c> {
    Bytes(Vec<u8>),
    /// A part of a file.
    Part {
        path: PathBuf,
        offset: u64,
        size: u64,
    },
    /// A file of its own.
    Own(PathBuf),
    Elsewhere(Arc<dyn Content + 'c>),
}

/// The content of a new file, opened.
pub enum Opened {
    /// A file that is the content.
    File(File),
    /// The content as a stream.
    Stream(Box<dyn Read + Send>),
}

impl std::fmt::Debug for MadeFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeFile").finish_non_exhaustive()
    }
}

impl MadeFile<'_> {
    /// Opens the content.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open(&self) -> io::Result<Opened> {
        Ok(match &self.place {
            Place::Bytes(bytes) => Opened::Stream(Box::new(io::Cursor::new(bytes.clone()))),
            Place::Part { path, offset, size } => {
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(*offset))?;
                Opened::Stream(Box::new(file.take(*size)))
            }
            Place::Own(path) => Opened::File(File::open(path)?),
            // Opening may wait for a disk far away.
            Place::Elsewhere(content) => Opened::File(content.open()?),
        })
    }

    /// Its `security.capability`; `file` is its content if that is open.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn capability(&self, file: Option<&File>) -> io::Result<Option<Vec<u8>>> {
        match (&self.place, file) {
            (Place::Elsewhere(content), Some(file)) => content.capability(file),
            (Place::Elsewhere(content), None) => content.capability(&content.open()?),
            _ => Ok(self.capability.clone()),
        }
    }

    /// Whether it is still what it was when it was opened as `file`, now that it was read.
    ///
    /// # Errors
    /// That it is not.
    pub fn check(&self, file: &File) -> io::Result<()> {
        match &self.place {
            Place::Elsewhere(content) => content.check(file),
            _ => Ok(()),
        }
    }

    /// What is to see the bytes while they are read, if anybody wants to.
    pub fn passing(&self) -> Option<Box<dyn Passing + '_>> {
        match &self.place {
            Place::Elsewhere(content) => content.passing(),
            _ => None,
        }
    }
}

impl<'c> IndexStep<'c> {
    /// The content of the regular file at `path`.
    ///
    /// # Errors
    /// `NotFound` if the step did not make it.
    pub fn made_file(&self, path: &Path) -> io::Result<MadeFile<'c>> {
        let mut state = self.lock();
        if let Some(file) = state.brought_at(path)? {
            let place = file.content.clone().map_or(Place::Bytes(Vec::new()), Place::Elsewhere);
            return Ok(MadeFile { place, capability: None });
        }
        let node = find(&state.tree.root, path, false)?;
        let place = match state.contents.get(&node.metadata.inode) {
            Some(Held::Bytes(bytes)) => Place::Bytes(bytes.clone()),
            Some(Held::Spilled { offset }) => {
                let spill = state.spill.as_ref().ok_or(io::ErrorKind::NotFound)?;
                Place::Part { path: spill.path(), offset: *offset, size: node.metadata.size }
            }
            Some(Held::Own(place)) => Place::Own(place.clone()),
            Some(Held::Elsewhere(content)) => Place::Elsewhere(Arc::clone(content)),
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(MadeFile { place, capability: node.capability().map(<[u8]>::to_vec) })
    }

    /// The `security.capability` of a regular file, also of one that the step did not make.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn capability(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        match self.made_file(path) {
            Ok(made) => made.capability(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let state = self.lock();
                Ok(find(&state.tree.root, path, false)?.capability().map(<[u8]>::to_vec))
            }
            Err(error) => Err(error),
        }
    }
}
