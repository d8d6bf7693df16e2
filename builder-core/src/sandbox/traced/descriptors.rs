//! What descriptors of a thread stand for, by /proc/PID/fd, which is held open as long as there are descriptors to spare.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::path::DecInt;
use rustix::process::{Resource, getrlimit};

use super::view::MAX_PATH;

/// Most such directories that are open at a time, where the limit of descriptors (an eighth of which they may take) is higher.
const MOST: usize = 512;

/// How many directories may still be opened.
#[derive(Debug)]
pub struct Budget(AtomicUsize);

impl Default for Budget {
    fn default() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self(AtomicUsize::new(usize::try_from(limit / 8).unwrap_or(MOST).min(MOST)))
    }
}

/// The descriptors of one thread.
#[derive(Debug)]
pub struct Descriptors {
    thread: i32,
    /// `None` if there was none to spare when it was first wanted.
    directory: OnceLock<Option<OwnedFd>>,
    budget: Arc<Budget>,
}

impl Drop for Descriptors {
    fn drop(&mut self) {
        if let Some(Some(_)) = self.directory.get() {
            self.budget.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Descriptors {
    /// Those of `thread`.
    pub fn new(thread: i32, budget: Arc<Budget>) -> Self {
        Self { thread, directory: OnceLock::new(), budget }
    }

    /// Those of another thread of the same RUN.
    pub fn of(&self, thread: i32) -> Self {
        Self::new(thread, Arc::clone(&self.budget))
    }

    fn directory(&self) -> Option<&OwnedFd> {
        let open = || {
            let left = &self.budget.0;
            left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).ok()?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::open(format!("/proc/{}/fd", self.thread), flags, Mode::empty());
            if opened.is_err() {
                left.fetch_add(1, Ordering::Relaxed);
            }
            opened.ok()
        };
        self.directory.get_or_init(open).as_ref()
    }

    /// Does something with a descriptor's link in /proc.
    fn with<T>(
        &self,
        descriptor: i32,
        act: impl FnOnce(std::os::fd::BorrowedFd<'_>, &std::ffi::CStr) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if descriptor < 0 {
            return Err(Errno::BADF);
        }
        let done = match self.directory() {
            Some(directory) => act(directory.as_fd(), DecInt::new(descriptor).as_c_str()),
            None => {
                let path = format!("/proc/{}/fd/{descriptor}\0", self.thread);
                act(CWD, std::ffi::CStr::from_bytes_with_nul(path.as_bytes()).map_err(|_| Errno::INVAL)?)
            }
        };
        match done {
            Err(Errno::NOENT) => Err(Errno::BADF),
            done => done,
        }
    }

    /// What one stands for, opened with `O_PATH` and `flags`.
    ///
    /// # Errors
    /// `EBADF` if there is no such descriptor.
    pub fn open(&self, descriptor: i32, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
        self.with(descriptor, |directory, name| rustix::fs::openat(directory, name, flags, Mode::empty()))
    }

    /// What is known of what one stands for.
    ///
    /// # Errors
    /// `EBADF` if there is no such descriptor.
    pub fn stat(&self, descriptor: i32) -> Result<rustix::fs::Statx, Errno> {
        self.with(descriptor, |directory, name| {
            rustix::fs::statx(directory, name, rustix::fs::AtFlags::empty(), super::view::STAT)
        })
    }

    /// The path on the host of what one stands for, or what the kernel says instead.
    ///
    /// # Errors
    /// `EBADF` if there is no such descriptor, `ENAMETOOLONG`.
    pub fn path(&self, descriptor: i32) -> Result<Vec<u8>, Errno> {
        self.with(descriptor, |directory, name| link_text(directory, name))
    }
}

/// The text of a link of /proc, which is never longer than a path.
pub fn link_text(directory: impl AsFd, name: &std::ffi::CStr) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::with_capacity(256);
    loop {
        let read = rustix::fs::readlinkat_raw(&directory, name, rustix::buffer::spare_capacity(&mut text))?;
        if read < text.capacity() || text.capacity() > MAX_PATH {
            return Ok(text);
        }
        text.clear();
        text.reserve(MAX_PATH + 1);
    }
}
