//! One directory with the metadata of what is in it, for those who walk a tree selectively.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::resolve::PLACE;
use super::{Metadata, Rootfs};

/// One file of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryEntry {
    /// Its name.
    pub name: OsString,
    /// Metadata of the file itself.
    pub metadata: Metadata,
    /// Time of the last change to content or metadata: seconds since 1970 and nanoseconds. Nobody can set it.
    pub ctime: (i64, u32),
}

impl Rootfs {
    /// What is in a directory, in no order. What vanishes meanwhile is left out.
    ///
    /// # Errors
    /// `NotADirectory` and what the kernel says.
    pub fn entries(&self, path: &Path) -> io::Result<Vec<DirectoryEntry>> {
        let dir = self.open_place(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut found = Vec::new();
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut entries = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            match self.stat_entry(&dir, name) {
                Ok(stat) => {
                    found.push(DirectoryEntry { name: name.to_owned(), metadata: stat.metadata(), ctime: stat.ctime });
                }
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(found)
    }

    /// As [`Rootfs::examine`], of a file of this tree that is open.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn examine_open(&self, file: &File) -> io::Result<(Metadata, (i64, u32))> {
        let stat = self.stat_fd(file)?;
        Ok((stat.metadata(), stat.ctime))
    }

    /// Metadata of `path` itself with the time of its last change (ctime).
    ///
    /// # Errors
    /// `NotFound` and what the kernel says.
    pub fn examine(&self, path: &Path) -> io::Result<(Metadata, (i64, u32))> {
        let place = self.open_place(path, PLACE | OFlags::NOFOLLOW, Mode::empty())?;
        let stat = self.stat_fd(&place)?;
        Ok((stat.metadata(), stat.ctime))
    }
}
