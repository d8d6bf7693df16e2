//! Results of system calls as the kernel writes them into a program's memory.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// The bytes of a plain C struct of the kernel's own interface.
fn bytes_of<T>(fill: impl FnOnce(*mut T) -> libc::c_long) -> Result<Vec<u8>, Errno> {
    let mut value = MaybeUninit::<T>::zeroed();
    if fill(value.as_mut_ptr()) != 0 {
        return Err(super::last_errno());
    }
    // SAFETY: all bytes were zero before the kernel wrote some, so all are initialised; any type can be read as bytes.
    let bytes = unsafe { std::slice::from_raw_parts(value.as_ptr().cast::<u8>(), size_of::<T>()) };
    Ok(bytes.to_vec())
}

/// `struct stat` of an open file: fstat(2) by the kernel's own layout, which is the C library's on 64-bit machines.
///
/// # Errors
/// What the kernel says.
pub fn stat(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    // SAFETY: the place is valid for writing a struct stat; the path is an empty C string.
    bytes_of::<libc::stat>(|place| unsafe {
        libc::syscall(libc::SYS_newfstatat, file.as_raw_fd(), c"".as_ptr(), place, libc::AT_EMPTY_PATH)
    })
}

/// `struct statx` of an open file: statx(2).
///
/// # Errors
/// What the kernel says.
pub fn statx(file: BorrowedFd<'_>, flags: u32, mask: u32) -> Result<Vec<u8>, Errno> {
    let flags = flags | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the place has the size of struct statx, which is 256 bytes for ever; the path is an empty C string.
    bytes_of::<[u64; 32]>(|place| unsafe {
        libc::syscall(libc::SYS_statx, file.as_raw_fd(), c"".as_ptr(), flags, mask, place)
    })
}

/// `struct statfs` of the file system of an open file: fstatfs(2).
///
/// # Errors
/// What the kernel says.
pub fn statfs(file: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    // SAFETY: the place is valid for writing a struct statfs.
    bytes_of::<libc::statfs>(|place| unsafe { libc::syscall(libc::SYS_fstatfs, file.as_raw_fd(), place) })
}

/// Length of each field of `struct new_utsname`, linux/utsname.h.
const NAME_BYTES: usize = 65;

/// `struct utsname` with another node name: uname(2).
///
/// # Errors
/// What the kernel says.
pub fn uname(node: &[u8]) -> Result<Vec<u8>, Errno> {
    // SAFETY: six fields of 65 bytes each.
    let mut bytes = bytes_of::<[[u8; NAME_BYTES]; 6]>(|place| unsafe { libc::syscall(libc::SYS_uname, place) })?;
    let field = &mut bytes[NAME_BYTES..2 * NAME_BYTES];
    field.fill(0);
    let length = node.len().min(NAME_BYTES - 1);
    field[..length].copy_from_slice(&node[..length]);
    Ok(bytes)
}

/// The number of a terminal that was opened by /dev/ptmx: ioctl_tty(2), TIOCGPTN.
///
/// # Errors
/// `ENOTTY` if it is none.
pub fn terminal_number(master: BorrowedFd<'_>) -> Result<u32, Errno> {
    let mut number: libc::c_uint = 0;
    // SAFETY: the number is valid for writing.
    let result = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN as _, &raw mut number) };
    if result == 0 { Ok(number) } else { Err(super::last_errno()) }
}

/// Changes the mode of an open file, which may be one with `O_PATH`: fchmodat2(2), since Linux 6.6.
///
/// # Errors
/// `ENOSYS` before, and what the kernel says.
pub fn chmod(file: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    // SAFETY: the path is an empty C string; the rest are numbers.
    let result = unsafe {
        libc::syscall(super::super::numbers::late::FCHMODAT2, file.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH)
    };
    if result == 0 { Ok(()) } else { Err(super::last_errno()) }
}

/// Size of `siginfo_t`, which is the same on all machines.
pub const SIGNAL_INFORMATION_BYTES: usize = 128;

/// Sends a signal to the process behind a descriptor, with what its handler is to be told: pidfd_send_signal(2).
///
/// # Errors
/// `ESRCH` if it is gone, `EPERM`, `EINVAL`.
pub fn send_signal(
    process: &impl AsRawFd,
    signal: i32,
    information: Option<&[u8; SIGNAL_INFORMATION_BYTES]>,
    flags: u32,
) -> Result<(), Errno> {
    let information = information.map_or(std::ptr::null(), |bytes| bytes.as_ptr());
    // SAFETY: the bytes are as many as the kernel reads, or there are none; the rest are numbers.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, information, flags) };
    if result == 0 { Ok(()) } else { Err(super::last_errno()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn modes_by_descriptor() {
        let file = tempfile::NamedTempFile::new().expect("file");
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let place = rustix::fs::open(file.path(), flags, rustix::fs::Mode::empty()).expect("open");
        match chmod(place.as_fd(), 0o4711) {
            Ok(()) => assert_eq!(rustix::fs::fstat(&place).expect("stat").st_mode & 0o7777, 0o4711),
            Err(errno) => assert_eq!(errno, Errno::NOSYS, "an older kernel"),
        }
    }

    #[test]
    fn structs_have_their_sizes() {
        let file = std::fs::File::open("/proc/self/status").expect("open");
        assert_eq!(stat(file.as_fd()).expect("stat").len(), size_of::<libc::stat>());
        assert_eq!(statx(file.as_fd(), 0, 0x7ff).expect("statx").len(), 256);
        assert_eq!(statfs(file.as_fd()).expect("statfs")[..4], 0x9fa0_u32.to_ne_bytes());
        let name = uname(b"somewhere").expect("uname");
        assert!(name.starts_with(b"Linux\0"));
        assert_eq!(&name[65..75], b"somewhere\0");
    }
}
