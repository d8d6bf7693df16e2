//! Hashes of files that are taken while somebody reads them for something else.
//!
//! Where it is certain that a step was not done before, its key decides nothing, and its files are read once: for the layer, or into
//! the tree. What passes is hashed ([`Files::take_notes`], [`Files::note`]), and the key is made from that afterwards
//! ([`Files::hash`]). A file that nobody read to its end has no note and is read then.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::kept::Kept;
use super::{FileHash, HashCache, READ_BYTES};
use crate::context::files::{Files, Found};
use crate::rootfs::Rootfs;
use crate::rootfs::index::Passing;
use crate::spool::Place;

/// Notes that are in memory before they go to the disk together.
const NOTES_AT_ONCE: usize = 4096;

/// Hash of what a file holds: BLAKE3 of its bytes unless whole blocks of them are zeros: then that of the others, and of where the
/// zeros are, so that a hole of a terabyte costs nothing, and is what written zeros are. Nobody outside sees it, so it need not be
/// SHA-256, which takes several times as long even where the processor has instructions for it.
pub(super) struct ContentHasher {
    data: blake3::Hasher,
    zeros: blake3::Hasher,
    /// Where the block begins that comes next.
    position: u64,
    /// The beginning of that block.
    partial: Vec<u8>,
    /// Where the zeros began that are being passed.
    passing: Option<u64>,
    holes: bool,
}

impl Default for ContentHasher {
    fn default() -> Self {
        let (data, zeros) = (blake3::Hasher::new(), blake3::Hasher::new());
        Self { data, zeros, position: 0, partial: Vec::new(), passing: None, holes: false }
    }
}

impl ContentHasher {
    /// The next bytes.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.partial.is_empty()
                && let Some((block, rest)) = bytes.split_at_checked(READ_BYTES)
            {
                self.block(block);
                bytes = rest;
                continue;
            }
            let (piece, rest) = bytes.split_at(bytes.len().min(READ_BYTES - self.partial.len()));
            self.partial.extend_from_slice(piece);
            self.full();
            bytes = rest;
        }
    }

    /// So many zeros.
    pub(super) fn zeros(&mut self, count: u64) {
        let whole = READ_BYTES as u64;
        // To the end of a block that has begun.
        let first = count.min((whole - self.partial.len() as u64) % whole);
        self.pad(first);
        let left = count - first;
        if left >= whole {
            self.passing.get_or_insert(self.position);
            self.position += left / whole * whole;
        }
        self.pad(left % whole);
    }

    /// Zeros that are less than a block.
    fn pad(&mut self, count: u64) {
        self.partial.resize(self.partial.len() + usize::try_from(count).expect("less than a block"), 0);
        self.full();
    }

    /// Takes the block that was gathered, if it is whole.
    fn full(&mut self) {
        if self.partial.len() == READ_BYTES {
            let block = std::mem::take(&mut self.partial);
            self.block(&block);
            self.partial = block;
            self.partial.clear();
        }
    }

    fn block(&mut self, block: &[u8]) {
        if block.iter().all(|byte| *byte == 0) {
            self.passing.get_or_insert(self.position);
        } else {
            self.end_of_zeros();
            self.data.update(block);
        }
        self.position += block.len() as u64;
    }

    fn end_of_zeros(&mut self) {
        if let Some(begin) = self.passing.take() {
            self.holes = true;
            for number in [begin, self.position] {
                self.zeros.update(&number.to_le_bytes());
            }
        }
    }

    /// The hash of all that came.
    pub(super) fn finish(mut self) -> blake3::Hash {
        self.end_of_zeros();
        self.data.update(&self.partial);
        if !self.holes {
            return self.data.finalize();
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"zeros apart");
        hasher.update(self.zeros.finalize().as_bytes());
        hasher.update(self.data.finalize().as_bytes());
        hasher.finalize()
    }
}

/// Hashes of files that passed.
#[derive(Debug)]
pub(in crate::context) struct Notes {
    /// When the first could be taken, as the file system tells it.
    pub(super) begun: Option<(i64, u32)>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// In no order.
    latest: Vec<((PathBuf, Found), Option<FileHash>)>,
    kept: Kept,
}

impl Notes {
    fn new(cache: Option<&HashCache>, place: Place) -> Self {
        let state = State { latest: Vec::new(), kept: Kept::new(place) };
        Self { begun: cache.and_then(HashCache::now), state: Mutex::new(state) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, path: PathBuf, found: Found, hash: FileHash) {
        let mut state = self.lock();
        state.latest.push(((path, found), Some(hash)));
        if state.latest.len() >= NOTES_AT_ONCE
            && let Err(error) = state.spill()
        {
            tracing::debug!(%error, "hashes that were taken in passing are lost; files will be read again");
        }
    }

    /// The hashes of those of `files` that passed, in their order.
    pub(super) fn known(&self, files: &[(PathBuf, Found)]) -> Vec<Option<FileHash>> {
        let mut state = self.lock();
        state.spill().and_then(|()| state.kept.known(files)).unwrap_or_else(|error| {
            tracing::debug!(%error, "hashes that were taken in passing cannot be read; files will be");
            vec![None; files.len()]
        })
    }
}

impl State {
    fn spill(&mut self) -> io::Result<()> {
        let (files, hashes): (Vec<_>, Vec<_>) = self.latest.drain(..).unzip();
        self.kept.keep(&files, &hashes, |_| true)
    }
}

/// Hashes one file while somebody reads it.
struct Note<'a> {
    files: &'a Files,
    notes: &'a Notes,
    path: PathBuf,
    found: Found,
    hasher: ContentHasher,
    bytes: u64,
}

impl Passing for Note<'_> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hasher.bytes(bytes);
    }

    fn zeros(&mut self, count: u64) {
        self.hasher.zeros(count);
    }

    fn whole(self: Box<Self>, capability: Option<Vec<u8>>) {
        self.files.counters.count(self.bytes);
        self.notes.add(self.path, self.found, FileHash { data: self.hasher.finish(), capability });
    }
}

impl Files {
    /// From now on hashes files that are read for something else.
    pub(crate) fn take_notes(&self) {
        let place = || self.tree.as_ref().and_then(Rootfs::lists_in);
        self.notes.get_or_init(|| Notes::new(self.hashes.as_ref(), place()));
    }

    /// What is to see the bytes of a file that was found; `None` if nobody wants to know its hash.
    pub(crate) fn note(&self, path: &Path, found: &Found) -> Option<Box<dyn Passing + '_>> {
        let notes = self.notes.get()?;
        let (path, found) = (path.to_owned(), *found);
        Some(Box::new(Note { files: self, notes, path, found, hasher: ContentHasher::default(), bytes: 0 }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_make_one_hash() {
        let block = READ_BYTES;
        let noise: Vec<u8> = (0..3 * block as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let zeros = vec![0; 3 * block];
        let shapes: [Vec<&[u8]>; 7] = [
            vec![],
            vec![&noise[..5]],
            vec![&noise, &zeros, &noise[..7]],
            vec![&zeros],
            vec![&zeros[..block - 1], &noise[..1], &zeros],
            vec![&noise[..block], &zeros[..block], &zeros[..9]],
            vec![&zeros[..block / 2], &noise[..block], &zeros[..block / 2], &zeros[..2 * block], &noise],
        ];
        for (number, shape) in shapes.iter().enumerate() {
            let all = shape.concat();
            let mut whole = ContentHasher::default();
            whole.bytes(&all);
            let expected = whole.finish();
            if number == 1 {
                assert_eq!(expected, blake3::hash(&all));
            }
            for step in [1000, block - 1, block, block + 1, 5 * block] {
                let mut hasher = ContentHasher::default();
                all.chunks(step).for_each(|piece| hasher.bytes(piece));
                assert_eq!(hasher.finish(), expected, "shape {number} by {step}");
            }
            let mut hasher = ContentHasher::default();
            for piece in shape {
                match piece.iter().all(|byte| *byte == 0) {
                    true => hasher.zeros(piece.len() as u64),
                    false => hasher.bytes(piece),
                }
            }
            assert_eq!(hasher.finish(), expected, "shape {number} with holes");
        }
    }
}
