//! Files that a command sees and that are on no disk: `--mount=type=secret`. In the tree there is an empty file of the name;
//! whoever opens or looks at it is given a file in memory (memfd_create(2)), which goes with the builder however that ends.
//!
//! # Limitations
//! They cannot be executed, and a hard link that is made through a directory's descriptor is one to the empty file. The kernel
//! may put memory into the machine's swap, as it may do with the memory of every program.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, SealFlags, Uid};
use rustix::io::Errno;

/// Longest name that memfd_create(2) takes, in bytes.
const NAME_BYTES: usize = 249;

/// One file.
#[derive(Debug)]
pub struct Secret {
    /// In the tree, absolute and without symbolic links.
    pub path: PathBuf,
    file: OwnedFd,
}

impl Secret {
    /// A file at `path` with these bytes, mode, and owner, which nobody can change any more.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(path: &Path, content: &[u8], mode: u32, (uid, gid): (u32, u32)) -> std::io::Result<Self> {
        let name = Some(path.as_os_str().as_bytes()).filter(|name| name.len() <= NAME_BYTES).unwrap_or(b"secret");
        let file = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        let mut file = File::from(file);
        file.write_all(content)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        Ok(Self { path: path.to_owned(), file: file.into() })
    }

    /// Opens it anew as the calling thread's user.
    ///
    /// # Errors
    /// `EACCES` if that may not read it.
    pub fn open(&self, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::open(self.name(), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// A name of the file for this process.
    pub fn name(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }

    /// What a link of /proc/PID/fd to it says.
    pub fn is_shown_as(&self, text: &[u8]) -> bool {
        let path = self.path.as_os_str().as_bytes();
        text.strip_prefix(b"/memfd:").and_then(|rest| rest.strip_suffix(b" (deleted)")) == Some(path)
    }
}
