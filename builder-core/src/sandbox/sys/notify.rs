//! The supervisor's end of a seccomp filter with `SECCOMP_RET_USER_NOTIF`: seccomp_unotify(2).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;

/// A call that waits for an answer.
#[derive(Debug, Clone, Copy)]
pub struct Notification {
    /// Names the call in answers.
    pub id: u64,
    /// The thread that made it, as this process sees it.
    pub thread: i32,
    /// `AUDIT_ARCH_…`
    pub architecture: u32,
    /// Its number.
    pub number: i32,
    /// Arguments, as in the registers.
    pub arguments: [u64; 6],
}

/// What the caller sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reply {
    /// The call returns this.
    Value(i64),
    /// The call fails.
    Error(Errno),
    /// The kernel does the call itself. It reads memory that other threads may have changed since, so this is only for
    /// calls whose arguments are numbers.
    Continue,
}

/// The descriptor that [`super::Op::Listen`] sent.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

// The numbers are those of linux/seccomp.h, which are the same on x86-64 and aarch64; libc does not have them for musl.
const RECEIVE: u32 = 0xc050_2100;
const SEND: u32 = 0xc018_2101;
const IS_VALID: u32 = 0x4008_2102;
const ADD_DESCRIPTOR: u32 = 0x4018_2103;
const SET_FLAGS: u32 = 0x4008_2104;

/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE`
const CONTINUE: u32 = 1;

/// `SECCOMP_ADDFD_FLAG_SEND`, since Linux 5.14.
const AND_SEND: u32 = 2;

/// `SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP`, since Linux 6.6.
const SYNC_WAKE_UP: u64 = 1;

#[repr(C)]
#[derive(Default)]
struct RawNotification {
    id: u64,
    pid: u32,
    flags: u32,
    number: i32,
    architecture: u32,
    instruction: u64,
    arguments: [u64; 6],
}

#[repr(C)]
struct RawReply {
    id: u64,
    value: i64,
    error: i32,
    flags: u32,
}

#[repr(C)]
struct RawAdd {
    id: u64,
    flags: u32,
    source: u32,
    new: u32,
    new_flags: u32,
}

// What the ioctl numbers say they are.
const _: () =
    assert!(size_of::<RawNotification>() == 0x50 && size_of::<RawReply>() == 0x18 && size_of::<RawAdd>() == 0x18);

impl Listener {
    /// Takes the descriptor, and asks the kernel to wake whoever is waited for on the processor of who wakes it, if it can.
    pub fn new(descriptor: OwnedFd) -> Self {
        // SAFETY: a number by value. Kernels before 6.6 refuse it, which costs speed alone.
        unsafe { libc::ioctl(descriptor.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) };
        Self(descriptor)
    }

    /// Waits for a call; `None` if it went away before it was seen (its thread was killed) or a signal came.
    ///
    /// # Errors
    /// What the kernel says. With no process left under the filter kernels before 6.11 wait forever: poll(2) first.
    pub fn receive(&self) -> io::Result<Option<Notification>> {
        let mut raw = RawNotification::default();
        // SAFETY: the struct is valid for writing and all zeros, as the kernel demands.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE as _, &raw mut raw) };
        if result != 0 {
            return match super::last_errno() {
                Errno::NOENT | Errno::INTR => Ok(None),
                errno => Err(errno.into()),
            };
        }
        Ok(Some(Notification {
            id: raw.id,
            thread: raw.pid.cast_signed(),
            architecture: raw.architecture,
            number: raw.number,
            arguments: raw.arguments,
        }))
    }

    /// Whether the call still waits, so that its thread's id still means the same thread: to be asked after reading its
    /// memory and before doing anything.
    pub fn is_waiting(&self, id: u64) -> bool {
        // SAFETY: the number is valid for reading.
        unsafe { libc::ioctl(self.0.as_raw_fd(), IS_VALID as _, &raw const id) == 0 }
    }

    /// Answers; `false` if nobody waits any more (a signal, or death).
    pub fn reply(&self, id: u64, reply: Reply) -> bool {
        let mut raw = RawReply { id, value: 0, error: 0, flags: 0 };
        match reply {
            Reply::Value(value) => raw.value = value,
            Reply::Error(errno) => raw.error = -errno.raw_os_error(),
            Reply::Continue => raw.flags = CONTINUE,
        }
        // SAFETY: the struct is valid for reading.
        unsafe { libc::ioctl(self.0.as_raw_fd(), SEND as _, &raw mut raw) == 0 }
    }

    /// Gives the caller a copy of `descriptor`, whose number is told to nobody but this process: the call still waits.
    ///
    /// # Errors
    /// As [`Self::reply_with`].
    pub fn put(&self, id: u64, descriptor: BorrowedFd<'_>) -> Result<i32, Errno> {
        self.add(id, descriptor, libc::O_CLOEXEC as u32, 0)
    }

    /// Gives the caller a copy of `descriptor`, whose number is what its call returns, and this; closed by its exec if `cloexec`.
    ///
    /// # Errors
    /// `EMFILE` if the caller has no number free, which it has not been told; `ENOENT` if nobody waits any more.
    pub fn reply_with(&self, id: u64, descriptor: BorrowedFd<'_>, cloexec: bool) -> Result<i32, Errno> {
        let new_flags = if cloexec { libc::O_CLOEXEC as u32 } else { 0 };
        match self.add(id, descriptor, new_flags, AND_SEND) {
            // Before Linux 5.14: one after the other.
            Err(Errno::INVAL) => {
                let number = self.add(id, descriptor, new_flags, 0)?;
                if self.reply(id, Reply::Value(number.into())) { Ok(number) } else { Err(Errno::NOENT) }
            }
            given => given,
        }
    }

    /// As [`Self::reply_with`]; ours is closed before the caller goes on.
    ///
    /// # Errors
    /// As [`Self::reply_with`].
    pub fn hand(&self, id: u64, descriptor: OwnedFd, cloexec: bool) -> Result<(), Errno> {
        let number = self.add(id, descriptor.as_fd(), if cloexec { libc::O_CLOEXEC as u32 } else { 0 }, 0)?;
        drop(descriptor);
        self.reply(id, Reply::Value(number.into()));
        Ok(())
    }

    fn add(&self, id: u64, descriptor: BorrowedFd<'_>, new_flags: u32, flags: u32) -> Result<i32, Errno> {
        let source = descriptor.as_raw_fd().cast_unsigned();
        let raw = RawAdd { id, flags, source, new: 0, new_flags };
        // SAFETY: the struct is valid for reading, the descriptor is open.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), ADD_DESCRIPTOR as _, &raw const raw) };
        if result >= 0 { Ok(result) } else { Err(super::last_errno()) }
    }
}
