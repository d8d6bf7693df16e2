//! Memory of a traced process: process_vm_readv(2), and /proc/PID/mem for what it may not write itself.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

/// Smallest page of any machine, in bytes: what lies within one can be read if its first byte can.
const PAGE: u64 = 4096;

/// Reads as much as there is, up to the length of `buffer`; how much that was.
///
/// # Errors
/// `EFAULT` if there is nothing, `ESRCH` if the process is gone, `EPERM` if it may not be traced.
pub fn read(thread: i32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: buffer.len() };
    // SAFETY: `local` names memory that is ours and valid for writing; the other address is another process's.
    let count = unsafe { libc::process_vm_readv(thread, &raw const local, 1, &raw const remote, 1, 0) };
    if count < 0 { Err(super::last_errno()) } else { Ok(count.cast_unsigned()) }
}

/// Reads exactly the length of `buffer`.
///
/// # Errors
/// As [`read`]; `EFAULT` also if there is less.
pub fn read_exact(thread: i32, address: u64, buffer: &mut [u8]) -> Result<(), Errno> {
    if buffer.is_empty() || read(thread, address, buffer)? == buffer.len() { Ok(()) } else { Err(Errno::FAULT) }
}

/// Reads a number of the machine's width.
///
/// # Errors
/// As [`read_exact`].
pub fn read_word(thread: i32, address: u64) -> Result<u64, Errno> {
    let mut bytes = [0; 8];
    read_exact(thread, address, &mut bytes)?;
    Ok(u64::from_ne_bytes(bytes))
}

/// Reads a C string of up to `longest` bytes, without its NUL.
///
/// # Errors
/// As [`read`]; `ENAMETOOLONG` if there is no NUL within `longest` bytes and one.
pub fn read_string(thread: i32, address: u64, longest: usize) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::new();
    let mut at = address;
    let mut piece = [0; 256];
    loop {
        // Not over the end of a page: the next one need not exist. Paths are mostly short, so small pieces come first.
        let in_page = PAGE - at % PAGE;
        let length = (piece.len() as u64).min(in_page) as usize;
        let read = read(thread, at, &mut piece[..length])?;
        if read == 0 {
            return Err(Errno::FAULT);
        }
        if let Some(end) = piece[..read].iter().position(|&byte| byte == 0) {
            text.extend_from_slice(&piece[..end]);
            return if text.len() > longest { Err(Errno::NAMETOOLONG) } else { Ok(text) };
        }
        text.extend_from_slice(&piece[..read]);
        if text.len() > longest {
            return Err(Errno::NAMETOOLONG);
        }
        at += read as u64;
    }
}

/// Writes where the process itself may write.
///
/// # Errors
/// As [`read_exact`].
pub fn write(thread: i32, address: u64, bytes: &[u8]) -> Result<(), Errno> {
    if bytes.is_empty() {
        return Ok(());
    }
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: `local` names memory that is valid for reading, and is only read; the other address is another process's.
    let count = unsafe { libc::process_vm_writev(thread, &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(count) {
        Err(_) => Err(super::last_errno()),
        Ok(count) if count == bytes.len() => Ok(()),
        Ok(_) => Err(Errno::FAULT),
    }
}

/// Writes also where the process may only read or execute; private pages are copied for it. For tracers only.
///
/// # Errors
/// What the kernel says.
pub fn write_anywhere(thread: i32, address: u64, bytes: &[u8]) -> io::Result<()> {
    File::options().write(true).open(format!("/proc/{thread}/mem"))?.write_all_at(bytes, address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let address = |bytes: &[u8]| bytes.as_ptr().addr() as u64;
        assert_eq!(read_string(me, address(b"\0"), 10), Ok(Vec::new()));
        let mut long = vec![b'x'; 10_000];
        long.push(0);
        assert_eq!(read_string(me, address(&long), 10_000).map(|text| text.len()), Ok(10_000));
        assert_eq!(read_string(me, address(&long), 9_999), Err(Errno::NAMETOOLONG));
        assert_eq!(read_string(me, 16, 10), Err(Errno::FAULT));
    }

    #[test]
    fn words() {
        let me = rustix::process::getpid().as_raw_nonzero().get();
        let mut word = [1_u64];
        let address = word.as_mut_ptr().addr() as u64;
        write(me, address, &7_u64.to_ne_bytes()).expect("own memory");
        assert_eq!(read_word(me, address), Ok(7));
        assert_eq!(write(me, 16, b"x"), Err(Errno::FAULT));
    }
}
