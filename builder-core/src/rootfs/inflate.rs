//! Blob → tar: the compression is found by its magic bytes and undone in a thread of its own, a bounded number of blocks
//! ahead of the reader, which hashes what passes.

use std::io::{self, BufRead, Read};

use crossbeam_channel::{Receiver, Sender};

use super::fetch::Stop;
use super::frames::{Frames, Windows};
use crate::oci::{DiffId, Hasher};

/// One block between the threads, in bytes.
const BLOCK_BYTES: usize = 256 * 1024;

/// Blocks that may be on their way: enough to ride out a slow directory, 2 MiB for each layer in work.
const BLOCKS_AHEAD: usize = 8;

/// What a layer may take.
#[derive(Debug, Clone, Default)]
pub(super) struct Allowance {
    /// Bytes of its tar.
    pub tar_bytes: Option<u64>,
    /// Memory of decoders.
    pub windows: Windows,
}

/// Undoes gzip (any number of members) or zstd (any number of frames); anything else passes as it is. The media type is
/// not asked: it is wrong often enough.
///
/// # Errors
/// If the first bytes cannot be read.
pub(super) fn decompress<'a>(
    mut blob: impl Read + Send + 'a,
    windows: &Windows,
) -> io::Result<Box<dyn Read + Send + 'a>> {
    let mut magic = [0_u8; 4];
    let mut length = 0;
    while length < magic.len() {
        match blob.read(&mut magic[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let whole = io::Cursor::new(magic).take(length as u64).chain(blob);
    Ok(match magic {
        // RFC 1952, 2.3.1
        [0x1f, 0x8b, _, _] => {
            Box::new(flate2::bufread::MultiGzDecoder::new(io::BufReader::with_capacity(BLOCK_BYTES, whole)))
        }
        // RFC 8878, 3.1.1 and 3.1.2: a frame, or a skippable one before it
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(Frames::new(whole, windows)),
        _ => Box::new(whole),
    })
}

/// A message of the inflating thread.
type Block = io::Result<Vec<u8>>;

/// The end of the inflating thread: runs until the stream ends or the other end is dropped.
pub(super) struct Inflater {
    full: Sender<Block>,
    empty: Receiver<Vec<u8>>,
}

/// The end that is read. Hashes every byte that is consumed.
pub(super) struct Inflated {
    full: Receiver<Block>,
    empty: Sender<Vec<u8>>,
    block: Vec<u8>,
    at: usize,
    hasher: Hasher,
    ended: bool,
}

/// The two ends of a stream.
pub(super) fn channel() -> (Inflater, Inflated) {
    let (full_in, full_out) = crossbeam_channel::bounded(BLOCKS_AHEAD);
    let (empty_in, empty_out) = crossbeam_channel::bounded(BLOCKS_AHEAD + 2);
    (
        Inflater { full: full_in, empty: empty_out },
        Inflated { full: full_out, empty: empty_in, block: Vec::new(), at: 0, hasher: Hasher::default(), ended: false },
    )
}

/// The tar has more bytes than it may have.
#[derive(Debug, thiserror::Error)]
#[error("the layer inflates to more than {limit} bytes")]
pub(super) struct TooLarge {
    /// Bytes it may have.
    pub limit: u64,
}

impl Inflater {
    /// Inflates `blob` as far as it is allowed.
    pub(super) fn run(self, blob: impl Read + Send, allowed: &Allowance, stop: &Stop<'_>) {
        if let Err(error) = self.try_run(blob, allowed, stop) {
            // If nobody listens any more, the reason is known there.
            _ = self.full.send(Err(error));
        }
    }

    fn try_run(&self, blob: impl Read + Send, allowed: &Allowance, stop: &Stop<'_>) -> io::Result<()> {
        let mut tar = decompress(blob, &allowed.windows)?;
        let mut total = 0_u64;
        loop {
            if stop.is_stopped() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let mut block = self.empty.try_recv().unwrap_or_default();
            block.resize(BLOCK_BYTES, 0);
            let mut length = 0;
            while length < block.len() {
                match tar.read(&mut block[length..]) {
                    Ok(0) => break,
                    Ok(count) => length += count,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted && !stop.is_stopped() => {}
                    Err(error) => return Err(error),
                }
            }
            block.truncate(length);
            total += length as u64;
            if let Some(limit) = allowed.tar_bytes.filter(|limit| total > *limit) {
                return Err(io::Error::other(TooLarge { limit }));
            }
            if length == 0 {
                return Ok(());
            }
            if self.full.send(Ok(block)).is_err() {
                return Ok(());
            }
        }
    }
}

impl Inflated {
    /// Digest of everything that was consumed.
    pub(super) fn digest(self) -> DiffId {
        DiffId(self.hasher.finish())
    }
}

impl BufRead for Inflated {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.block.len() && !self.ended {
            let used = std::mem::take(&mut self.block);
            if used.capacity() > 0 {
                // Only saves an allocation.
                _ = self.empty.try_send(used);
            }
            self.at = 0;
            match self.full.recv() {
                Ok(Ok(block)) => {
                    // Hashed as a whole: every block that arrives is consumed, or the digest is never asked for.
                    self.hasher.update(&block);
                    self.block = block;
                }
                Ok(Err(error)) => {
                    self.ended = true;
                    return Err(error);
                }
                Err(crossbeam_channel::RecvError) => self.ended = true,
            }
        }
        Ok(&self.block[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Inflated {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}
