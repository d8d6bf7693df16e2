//! Writing a stream into a file, with holes for long runs of zeros; copying a file, which shares its blocks where it can.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::SeekFrom;

use super::index::Passing;
use crate::disk::Disk;

/// Bytes read and written at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Bytes of a file that are tried first. Most files are shorter, and then nothing larger is needed.
const SMALL_BYTES: usize = 16 * 1024;

/// Shorter runs of zeros are written: each hole costs a system call and an extent.
const HOLE_BYTES: usize = 64 * 1024;

std::thread_local! {
    // One small buffer a thread: a fresh one for each of many small files would cost more than writing them, and a large one
    // in each of many threads more memory than all else that they do.
    static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Copies all of `data` into an empty file.
pub(super) fn write_sparse(data: &mut dyn Read, file: &File, disk: &Disk) -> io::Result<()> {
    let mut buffer = BUFFER.take();
    buffer.resize(SMALL_BYTES, 0);
    let begun = fill(data, &mut buffer);
    let result = begun.and_then(|length| {
        let mut writer = SparseWriter::new(file, disk);
        if length < SMALL_BYTES {
            writer.write_aligned(&buffer[..length])?;
            return writer.finish();
        }
        let mut large = vec![0; CHUNK_BYTES];
        large[..SMALL_BYTES].copy_from_slice(&buffer);
        copy(data, writer, &mut large, SMALL_BYTES)
    });
    BUFFER.set(buffer);
    result
}

/// A regular file that another one is to be made from: by sharing its blocks where the file system can (ioctl_ficlone(2)), in
/// the kernel where both are on file systems that allow it (copy_file_range(2)), else by reading it.
pub struct Original<'a> {
    /// Read from its beginning.
    pub file: &'a File,
    /// Asked now and then; an error ends the copy.
    pub go_on: &'a dyn Fn() -> io::Result<()>,
    /// Who wants to see the bytes, where they have to be copied.
    pub seen: Option<Seen<'a>>,
}

/// Who sees the bytes of a file that is copied.
pub struct Seen<'a> {
    /// Gets them.
    pub passing: &'a mut (dyn Passing + 'a),
    /// Whether it got all of them: not where the file system shares blocks, nor of files with holes.
    pub whole: &'a mut bool,
}

/// Shows what is read to somebody else.
pub struct Tee<'a, R> {
    /// Read from.
    pub inner: R,
    /// Gets what was read.
    pub passing: Option<&'a mut (dyn Passing + 'a)>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buf)?;
        if let Some(passing) = &mut self.passing {
            passing.bytes(&buf[..length]);
        }
        Ok(length)
    }
}

/// Bytes that the kernel is asked to copy at once: a few hundredths of a second.
const KERNEL_COPY_BYTES: u64 = 32 << 20;

impl Original<'_> {
    /// Makes the empty file `to` have the same bytes, holes included.
    pub(super) fn copy_to(&mut self, to: &File, disk: &Disk) -> io::Result<()> {
        (self.go_on)()?;
        // Shared blocks take no room.
        if rustix::fs::ioctl_ficlone(to, self.file).is_ok() {
            return Ok(());
        }
        let is_sparse = || -> io::Result<bool> {
            let status = rustix::fs::fstat(self.file)?;
            // Blocks of 512 bytes whatever the file system's own are (inode(7)).
            Ok(i128::from(status.st_blocks) * 512 < i128::from(status.st_size))
        };
        let seen = match self.seen.take() {
            Some(seen) if !is_sparse()? => Some(seen),
            _ => None,
        };
        if seen.is_none() && self.copy_in_kernel(to, disk)? {
            return Ok(());
        }
        let mut file = self.file;
        rustix::fs::seek(file, SeekFrom::Start(0))?;
        rustix::fs::ftruncate(to, 0)?;
        rustix::fs::seek(to, SeekFrom::Start(0))?;
        let mut asking = Asking { file: &mut file, go_on: self.go_on };
        let Some(Seen { passing, whole }) = seen else { return write_sparse(&mut asking, to, disk) };
        write_sparse(&mut Tee { inner: asking, passing: Some(passing) }, to, disk)?;
        *whole = true;
        Ok(())
    }

    /// Whether the kernel did it. If not, `to` may have some bytes.
    fn copy_in_kernel(&self, to: &File, disk: &Disk) -> io::Result<bool> {
        let status = rustix::fs::fstat(self.file)?;
        let size = u64::try_from(status.st_size).unwrap_or(0);
        if size == 0 {
            // Or one that does not say how long it is, as in procfs.
            return Ok(false);
        }
        let mut position = 0;
        while position < size {
            let data = match rustix::fs::seek(self.file, SeekFrom::Data(position)) {
                Ok(data) => data,
                Err(rustix::io::Errno::NXIO) => break, // only a hole is left
                Err(_) => return Ok(false),
            };
            let Ok(hole) = rustix::fs::seek(self.file, SeekFrom::Hole(data)) else { return Ok(false) };
            position = data;
            while position < hole.min(size) {
                (self.go_on)()?;
                let piece = KERNEL_COPY_BYTES.min(hole.min(size) - position);
                disk.take(piece)?;
                let (mut from_offset, mut to_offset) = (position, position);
                let length = usize::try_from(piece).expect("a few megabytes");
                match rustix::fs::copy_file_range(self.file, Some(&mut from_offset), to, Some(&mut to_offset), length) {
                    // Some file systems say so although there is more.
                    Ok(0) => return Ok(false),
                    Ok(count) => position += count as u64,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error @ (rustix::io::Errno::NOSPC | rustix::io::Errno::DQUOT | rustix::io::Errno::IO)) => {
                        return Err(error.into());
                    }
                    Err(error) => {
                        tracing::trace!(%error, "the kernel does not copy between these file systems");
                        return Ok(false);
                    }
                }
            }
        }
        rustix::fs::ftruncate(to, size)?;
        Ok(true)
    }
}

/// Asks before each read.
struct Asking<'a> {
    file: &'a mut dyn Read,
    go_on: &'a dyn Fn() -> io::Result<()>,
}

impl Read for Asking<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        (self.go_on)()?;
        self.file.read(buf)
    }
}

/// Copies what `buffer` has already, its first `read` bytes, and all that follows.
fn copy(data: &mut dyn Read, mut writer: SparseWriter<'_>, buffer: &mut [u8], mut read: usize) -> io::Result<()> {
    loop {
        let length = read + fill(data, &mut buffer[read..])?;
        read = 0;
        writer.write_aligned(&buffer[..length])?;
        if length < buffer.len() {
            return writer.finish();
        }
    }
}

fn fill(data: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match data.read(&mut buffer[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

/// Writes forward, skipping long runs of zeros.
pub(super) struct SparseWriter<'a> {
    file: &'a File,
    disk: &'a Disk,
    position: u64,
    /// Zeros skipped since the last write.
    skipped: u64,
}

impl<'a> SparseWriter<'a> {
    /// On a new, empty file.
    pub(super) fn new(file: &'a File, disk: &'a Disk) -> Self {
        Self { file, disk, position: 0, skipped: 0 }
    }

    /// Writes bytes; whole blocks of zeros, counted from the start of the slice, become holes.
    pub(super) fn write_aligned(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut start = 0;
        for (index, block) in bytes.chunks(HOLE_BYTES).enumerate() {
            let offset = index * HOLE_BYTES;
            if block.len() == HOLE_BYTES && is_zero(block) {
                self.write(&bytes[start..offset])?;
                self.skip(HOLE_BYTES as u64);
                start = offset + HOLE_BYTES;
            }
        }
        self.write(&bytes[start..])
    }

    /// Leaves a hole.
    pub(super) fn skip(&mut self, bytes: u64) {
        self.skipped += bytes;
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.skipped > 0 {
            self.position += self.skipped;
            self.skipped = 0;
            rustix::fs::seek(self.file, SeekFrom::Start(self.position))?;
        }
        self.disk.take(bytes.len() as u64)?;
        let mut file = self.file;
        file.write_all(bytes)?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// Gives the file its length if it ends in a hole.
    pub(super) fn finish(self) -> io::Result<()> {
        if self.skipped > 0 {
            rustix::fs::ftruncate(self.file, self.position + self.skipped)?;
        }
        Ok(())
    }
}

fn is_zero(block: &[u8]) -> bool {
    // The first bytes decide nearly always; the rest is compared in words by the compiler.
    block.first() == Some(&0) && block.iter().fold(0, |all, byte| all | byte) == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    /// Copies a file with holes at its beginning, in its middle and at its end.
    #[test]
    fn a_copy_has_the_bytes_and_holes() {
        let work = tempfile::tempdir().unwrap();
        let (from, to) = (work.path().join("from"), work.path().join("to"));
        let file = File::create_new(&from).unwrap();
        for (offset, byte) in [(3 << 20, 1_u8), (9 << 20, 2)] {
            file.write_all_at(&vec![byte; 300_000], offset).unwrap();
        }
        file.set_len(64 << 20).unwrap();
        let asked = std::cell::Cell::new(0);
        let go_on = || {
            asked.set(asked.get() + 1);
            Ok(())
        };
        let copied = File::create_new(&to).unwrap();
        Original { file: &File::open(&from).unwrap(), go_on: &go_on, seen: None }
            .copy_to(&copied, &Disk::default())
            .unwrap();
        assert!(std::fs::read(&from).unwrap() == std::fs::read(&to).unwrap());
        assert!(copied.metadata().unwrap().blocks() < 8 << 11, "holes are not written");
        assert!(asked.get() > 0);
        assert_eq!(from.metadata().unwrap().len(), to.metadata().unwrap().len());
    }

    /// Procfs has files that only reading shows.
    #[test]
    fn what_the_kernel_does_not_copy_is_read() {
        let to = tempfile::tempfile().unwrap();
        let from = File::open("/proc/self/status").unwrap();
        Original { file: &from, go_on: &|| Ok(()), seen: None }.copy_to(&to, &Disk::default()).unwrap();
        // Its length is said to be 0, so the kernel would have copied nothing.
        assert_eq!(from.metadata().unwrap().len(), 0);
        assert!(to.metadata().unwrap().len() > 100);
    }

    #[test]
    fn an_end_is_heeded() {
        let work = tempfile::tempdir().unwrap();
        std::fs::write(work.path().join("from"), vec![1; 100_000]).unwrap();
        let from = File::open(work.path().join("from")).unwrap();
        let go_on = || Err(io::ErrorKind::Interrupted.into());
        let copied = Original { file: &from, go_on: &go_on, seen: None }
            .copy_to(&tempfile::tempfile().unwrap(), &Disk::default());
        assert_eq!(copied.unwrap_err().kind(), io::ErrorKind::Interrupted);
    }
}
