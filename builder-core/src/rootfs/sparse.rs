//! Writing a stream into a file, with holes for long runs of zeros.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::SeekFrom;

use crate::disk::Disk;

/// Bytes read and written at once.
const CHUNK_BYTES: usize = 256 * 1024;

/// Shorter runs of zeros are written: each hole costs a system call and an extent.
const HOLE_BYTES: usize = 64 * 1024;

std::thread_local! {
    // One buffer a thread: a fresh one for each of many small files would cost more than writing them.
    static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Copies all of `data` into an empty file.
pub(super) fn write_sparse(data: &mut dyn Read, file: &File, disk: &Disk) -> io::Result<()> {
    let mut buffer = BUFFER.take();
    buffer.resize(CHUNK_BYTES, 0);
    let result = copy(data, SparseWriter::new(file, disk), &mut buffer);
    BUFFER.set(buffer);
    result
}

fn copy(data: &mut dyn Read, mut writer: SparseWriter<'_>, buffer: &mut [u8]) -> io::Result<()> {
    loop {
        let length = fill(data, buffer)?;
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
