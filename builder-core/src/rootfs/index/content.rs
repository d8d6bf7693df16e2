//! Bytes of files that were not copied anywhere yet.

use std::fs::File;
use std::io;

use crate::oci::Sha256;

/// A file somewhere else, to be read when the layer is written that it goes into.
pub trait Content: Send + Sync {
    /// Opens it, and makes sure that it is what it was.
    ///
    /// # Errors
    /// What the kernel says, or that it changed.
    fn open(&self) -> io::Result<File>;

    /// Its `security.capability`, if it has one.
    ///
    /// # Errors
    /// What the kernel says.
    fn capability(&self, file: &File) -> io::Result<Option<Vec<u8>>>;

    /// Whether it is still what it was when it was opened, now that it was read.
    ///
    /// # Errors
    /// That it changed.
    fn check(&self, file: &File) -> io::Result<()>;

    /// What only this file, as it is now, has: two files with one identity have the same content and capability. `None`
    /// if nothing is known for sure.
    fn identity(&self) -> Option<Sha256>;

    /// What is to see the bytes while they are read, if anybody wants to.
    fn passing(&self) -> Option<Box<dyn Passing + '_>> {
        None
    }
}

/// Sees what a file holds while it is read for something else.
pub trait Passing: Send {
    /// The next bytes.
    fn bytes(&mut self, bytes: &[u8]);

    /// So many zeros, which were not read.
    fn zeros(&mut self, count: u64);

    /// That was all, it is still what it was when it was opened, and this is its `security.capability`. Not called, nothing is known.
    fn whole(self: Box<Self>, capability: Option<Vec<u8>>);
}
