//! Long sequences that leave memory: bytes of which the last are held, and the others lie in a file without a name.
//!
//! Lists of the files of a tree grow with the tree, and a builder's memory must not. They are written once, in order, and
//! read in order, as often as needed. The file is made below the work dir and has no name, so nothing has to be tidied up
//! after a kill; a walk through the work dir does not count it (about 40 bytes a file of the list).
//!
//! Records are made of numbers and bytes: numbers are LEB128; signed ones are zigzag-coded first; bytes have their
//! length before them.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes of a sequence that are held in memory.
const HELD_BYTES: usize = 256 * 1024;

/// Bytes read at a time.
const READ_BYTES: usize = 32 * 1024;

/// Longest bytes in a record; longer ones are damage. No path is as long.
const MAX_BYTES: u64 = 1 << 20;

/// Directory in which files without a name are made; `None` for sequences that stay in memory.
pub type Place = Option<Arc<Path>>;

/// A sequence of bytes that grows at its end.
#[derive(Debug, Default)]
pub struct Spool {
    place: Place,
    /// The bytes before `held`.
    file: Option<File>,
    in_file: u64,
    held: Vec<u8>,
}

impl Spool {
    /// An empty sequence whose beginning goes to a file in `place` when it becomes long.
    pub fn new(place: Place) -> Self {
        Self { place, file: None, in_file: 0, held: Vec::new() }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.in_file + self.held.len() as u64
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds bytes at the end.
    ///
    /// # Errors
    /// If a file cannot be made or written.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.held.extend_from_slice(bytes);
        if self.held.len() < HELD_BYTES {
            return Ok(());
        }
        let Some(place) = &self.place else { return Ok(()) };
        let file = match &mut self.file {
            Some(file) => file,
            None => self.file.insert(tempfile::tempfile_in(place)?),
        };
        file.write_all(&self.held)?;
        self.in_file += self.held.len() as u64;
        self.held.clear();
        Ok(())
    }

    /// Reads from a position on.
    pub fn read_from(&self, position: u64) -> SpoolReader<'_> {
        BufReader::with_capacity(READ_BYTES, Position { spool: self, at: position })
    }
}

/// Reads a [`Spool`].
pub type SpoolReader<'a> = BufReader<Position<'a>>;

/// Where a reader is.
#[derive(Debug)]
pub struct Position<'a> {
    spool: &'a Spool,
    at: u64,
}

impl Read for Position<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Spool { file, in_file, held, .. } = self.spool;
        let read = match (file, in_file.checked_sub(self.at)) {
            (Some(file), Some(left @ 1..)) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
                match file.read_at(&mut buffer[..length], self.at)? {
                    0 if length > 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                    read => read,
                }
            }
            _ => {
                let from = usize::try_from(self.at - in_file).unwrap_or(usize::MAX).min(held.len());
                (&held[from..]).read(buffer)?
            }
        };
        self.at += read as u64;
        Ok(read)
    }
}

/// Adds a number to a record.
pub fn number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Adds a signed number to a record.
pub fn signed(out: &mut Vec<u8>, value: i64) {
    number(out, (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned());
}

/// Adds bytes to a record.
pub fn bytes(out: &mut Vec<u8>, value: &[u8]) {
    number(out, value.len() as u64);
    out.extend_from_slice(value);
}

/// Reads what [`number()`], [`signed`] and [`bytes()`] wrote.
pub trait Fields: Read {
    /// A byte.
    ///
    /// # Errors
    /// What the reader says; its end too.
    fn byte(&mut self) -> io::Result<u8> {
        let mut byte = [0];
        self.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// A number.
    ///
    /// # Errors
    /// What the reader says; `InvalidData` if none was written.
    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let part = u64::from(byte & 0x7f);
            // The last of ten bytes has room for one bit.
            if shift == 63 && part > 1 {
                break;
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(damaged())
    }

    /// A number that was one of 32 bits.
    ///
    /// # Errors
    /// As [`Fields::number`].
    fn small(&mut self) -> io::Result<u32> {
        u32::try_from(self.number()?).map_err(|_| damaged())
    }

    /// A signed number.
    ///
    /// # Errors
    /// As [`Fields::number`].
    fn signed(&mut self) -> io::Result<i64> {
        let value = self.number()?;
        Ok((value >> 1).cast_signed() ^ -(value & 1).cast_signed())
    }

    /// Bytes, at the end of `out`.
    ///
    /// # Errors
    /// As [`Fields::number`].
    fn sized_onto(&mut self, out: &mut Vec<u8>) -> io::Result<()> {
        let length = self.number()?;
        if length > MAX_BYTES {
            return Err(damaged());
        }
        let from = out.len();
        out.resize(from + usize::try_from(length).map_err(|_| damaged())?, 0);
        self.read_exact(&mut out[from..])
    }

    /// Bytes.
    ///
    /// # Errors
    /// As [`Fields::number`].
    fn sized(&mut self) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        self.sized_onto(&mut out)?;
        Ok(out)
    }
}

impl<R: Read> Fields for R {}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a record is damaged")
}

/// Paths one after the other, each as what it has not in common with the one before.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    last: Vec<u8>,
}

impl Paths {
    /// Adds a path to a record.
    pub fn write(&mut self, out: &mut Vec<u8>, path: &[u8]) {
        let same = self.last.iter().zip(path).take_while(|(a, b)| a == b).count();
        number(out, same as u64);
        bytes(out, &path[same..]);
        self.last.truncate(same);
        self.last.extend_from_slice(&path[same..]);
    }

    /// Reads the next path.
    ///
    /// # Errors
    /// As [`Fields::number`].
    pub fn read(&mut self, input: &mut impl BufRead) -> io::Result<&[u8]> {
        let same = usize::try_from(input.number()?).map_err(|_| damaged())?;
        if same > self.last.len() {
            return Err(damaged());
        }
        self.last.truncate(same);
        input.sized_onto(&mut self.last)?;
        Ok(&self.last)
    }

    /// The path that was written or read last.
    pub fn last(&self) -> &[u8] {
        &self.last
    }

    /// Forgets the last path: the next one is written, or was written, as a whole.
    pub fn restart(&mut self) {
        self.last.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_are_read_as_written(numbers in prop::collection::vec((any::<u64>(), any::<i64>()), 0..50)) {
            let mut out = Vec::new();
            for (plain, with_sign) in &numbers {
                number(&mut out, *plain);
                signed(&mut out, *with_sign);
                bytes(&mut out, &plain.to_le_bytes());
            }
            let mut input = &out[..];
            for (plain, with_sign) in numbers {
                prop_assert_eq!(input.number().unwrap(), plain);
                prop_assert_eq!(input.signed().unwrap(), with_sign);
                prop_assert_eq!(input.sized().unwrap(), plain.to_le_bytes());
            }
            prop_assert!(input.is_empty());
        }
    }

    #[test]
    fn what_is_long_leaves_memory_and_is_read_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        for place in [None, Some(Arc::from(dir.path()))] {
            let leaves = place.is_some();
            let mut spool = Spool::new(place);
            let all: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
            for piece in all.chunks(1001) {
                spool.append(piece).unwrap();
                assert!(!leaves || spool.held.len() <= HELD_BYTES + 1001);
            }
            assert_eq!((spool.len(), spool.file.is_some()), (all.len() as u64, leaves));
            for from in [0, 1, HELD_BYTES - 1, HELD_BYTES, HELD_BYTES + 5, all.len() - 1, all.len()] {
                let mut read = Vec::new();
                spool.read_from(from as u64).read_to_end(&mut read).unwrap();
                assert!(read == all[from..], "from {from}");
            }
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn paths_share_their_beginnings() {
        let paths: [&[u8]; 5] = [b"a", b"a/long/name", b"a/long/other", b"b", b"b"];
        let (mut out, mut writer) = (Vec::new(), Paths::default());
        for path in paths {
            writer.write(&mut out, path);
        }
        assert!(out.len() < paths.concat().len() + 2 * paths.len());
        let (mut input, mut reader) = (&out[..], Paths::default());
        for path in paths {
            assert_eq!(reader.read(&mut input).unwrap(), path);
        }
    }
}
