//! Content of single files, read from the layers that hold them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read};

use crate::rootfs::archive::{TarError, TarReader};
use crate::rootfs::fetch::{Stop, open, read_blob};
use crate::rootfs::inflate::Allowance;
use crate::rootfs::unpack::UnpackError;
use crate::rootfs::{Recall, TarEntry, TreeError};

/// Places of files: the numbers of their layer in the stack and of their entry in its tar, both counted from 0.
pub type Places = BTreeSet<(usize, u64)>;

/// What [`Recall::entries`] tells: the place of an entry, its header and its content.
pub type Visit<'v> = dyn FnMut((usize, u64), &TarEntry, &mut dyn Read) -> io::Result<()> + 'v;

impl Recall<'_> {
    /// Reads the entries at `places`, each layer once and to its end, so that nothing is told that its digests do not cover:
    /// an error that comes last takes back what was told before.
    ///
    /// # Errors
    /// Of reading layers, and of `visit`.
    pub fn entries(&self, places: &Places, visit: &mut Visit<'_>) -> Result<(), TreeError> {
        let stop = Stop::new(self.cancel);
        let mut by_layer: BTreeMap<usize, BTreeSet<u64>> = BTreeMap::new();
        for (layer, entry) in places {
            by_layer.entry(*layer).or_default().insert(*entry);
        }
        for (number, wanted) in by_layer {
            let Some(layer) = self.layers.get(number) else { continue };
            let blob = open(self.source, layer)?;
            read_blob(blob, layer, &Allowance::default(), &stop, |tar| {
                let read = |error| UnpackError::Tar(TarError::Read(error));
                let mut reader = TarReader::new(tar);
                let mut at = 0;
                while let Some(entry) = reader.next_entry().map_err(UnpackError::Tar)? {
                    if stop.is_stopped() {
                        return Err(UnpackError::Cancelled);
                    }
                    if wanted.contains(&at) {
                        let place = (number, at);
                        match &entry.sparse {
                            None => visit(place, &entry, &mut reader).map_err(read)?,
                            Some(pieces) => {
                                let mut whole = Expanded::new(&mut reader, pieces, entry.size);
                                visit(place, &entry, &mut whole).map_err(read)?;
                            }
                        }
                    }
                    at += 1;
                }
                Ok((reader.finish().map_err(read)?, ()))
            })?;
        }
        Ok(())
    }
}

/// A sparse file with its holes.
struct Expanded<'r, R> {
    inner: &'r mut R,
    pieces: &'r [(u64, u64)],
    at: u64,
    size: u64,
}

impl<'r, R: BufRead> Expanded<'r, R> {
    fn new(inner: &'r mut R, pieces: &'r [(u64, u64)], size: u64) -> Self {
        Self { inner, pieces, at: 0, size }
    }
}

impl<R: BufRead> Read for Expanded<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((offset, length)) = self.pieces.first()
            && offset + length <= self.at
        {
            self.pieces = &self.pieces[1..];
        }
        let room = |left: u64| usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = match self.pieces.first() {
            Some((offset, length)) if *offset <= self.at => {
                let count = room(offset + length - self.at);
                let count = self.inner.read(&mut buffer[..count])?;
                if count == 0 && !buffer.is_empty() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                count
            }
            next => {
                let end = next.map_or(self.size, |(offset, _)| *offset);
                let count = room(end - self.at);
                buffer[..count].fill(0);
                count
            }
        };
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holes_are_zeros() {
        let mut data = &b"abcde"[..];
        let pieces = [(2, 3), (5, 0), (8, 2)];
        let mut whole = Vec::new();
        Expanded::new(&mut data, &pieces, 12).read_to_end(&mut whole).unwrap();
        assert_eq!(whole, b"\0\0abc\0\0\0de\0\0");
    }
}
