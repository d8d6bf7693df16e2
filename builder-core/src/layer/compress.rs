//! One block of a layer → compressed bytes that concatenate to one valid stream.
//!
//! gzip: every block becomes deflate blocks that end on a byte boundary ([`super::deflate`]); all of them together are
//! one member. zstd: every block is a frame of its own (RFC 8878 section 3.1: frames concatenate). Blocks do not see
//! each other, so the result depends on their size alone and not on who compresses them.
//!
//! # Limitations
//! No history is carried from one block to the next: at [`super::pipeline::BLOCK_BYTES`] this costs 0.2 % of the size with
//! gzip and 2 % with zstd.

use std::io;

use crc32fast::Hasher as Crc;

use super::{Compression, deflate};

/// Order-0 entropy, in bits a byte, above which a block is suspected not to compress. Text has 4 to 5, machine code 6,
/// compressed files 7.9 and more.
const SUSPICIOUS_ENTROPY: f64 = 7.8;
/// Bytes of a suspicious block that are compressed for a try at a time; a shorter block is compressed without one. About as far
/// as deflate looks back: zstd would find what lies further apart, and promise too much.
const TRIAL_BYTES: usize = 64 * 1024;
/// Every this many bytes one is counted for the entropy.
const ENTROPY_STRIDE: usize = 13;
/// A block is stored if trying saves less than this part of it, in thousandths.
const WORTH_SAVING: usize = 10;

/// Bytes that are looked at together when zeros are searched for: many instructions' worth, and few are read in vain.
const ZERO_CHUNK_BYTES: usize = 256;

/// gzip member header (RFC 1952 section 2.3): no name, no time, unknown system, as Go writes it.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];

/// CRC-32 and length of a piece of a stream (RFC 1952 section 2.3.1).
#[derive(Debug, Clone, Default)]
pub(super) struct Check {
    crc: Crc,
    bytes: u64,
}

impl Check {
    fn of(bytes: &[u8]) -> Self {
        let mut crc = Crc::new();
        crc.update(bytes);
        Self { crc, bytes: bytes.len() as u64 }
    }

    /// The check of this piece with `next` behind it.
    pub(super) fn combine(&mut self, next: &Self) {
        self.crc.combine(&next.crc);
        self.bytes += next.bytes;
    }
}

/// Compresses blocks; one for each thread.
pub(super) enum BlockCompressor {
    None,
    Gzip(Box<Gzip>),
    Zstd(zstd::bulk::Compressor<'static>),
}

/// What one thread needs for gzip.
pub(super) struct Gzip {
    compressor: libdeflater::Compressor,
    /// zstd says forty times as fast as the fastest deflate that a piece does not shrink.
    trial: zstd::bulk::Compressor<'static>,
    sample: Vec<u8>,
    /// The last block that was all zeros, compressed: holes of sparse files are many of them.
    zeros: Option<(usize, Vec<u8>, Check)>,
}

impl BlockCompressor {
    pub(super) fn new(compression: Compression) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None,
            Compression::Gzip { level } => {
                let level = i32::try_from(level.min(9)).expect("at most 9");
                let level = libdeflater::CompressionLvl::new(level).expect("a level from 0 to 12");
                Self::Gzip(Box::new(Gzip {
                    compressor: libdeflater::Compressor::new(level),
                    trial: zstd::bulk::Compressor::new(1)?,
                    sample: Vec::new(),
                    zeros: None,
                }))
            }
            Compression::Zstd { level } => Self::Zstd(zstd::bulk::Compressor::new(level.clamp(1, 22))?),
        })
    }

    /// Appends the compressed form of `block` to `out` and gives its check (of gzip only; empty otherwise).
    pub(super) fn block(&mut self, block: &[u8], out: &mut Vec<u8>) -> io::Result<Check> {
        match self {
            Self::None => out.extend_from_slice(block),
            Self::Gzip(gzip) => return gzip.block(block, out),
            Self::Zstd(compressor) => {
                let start = out.len();
                let bound = zstd::zstd_safe::compress_bound(block.len());
                out.resize(start + bound, 0);
                let length = compressor.compress_to_buffer(block, &mut out[start..])?;
                out.truncate(start + length);
            }
        }
        Ok(Check::default())
    }
}

impl Gzip {
    fn block(&mut self, block: &[u8], out: &mut Vec<u8>) -> io::Result<Check> {
        let is_zeros = block.chunks(ZERO_CHUNK_BYTES).all(|chunk| chunk.iter().fold(0, |or, byte| or | byte) == 0);
        if is_zeros
            && let Some((length, bytes, check)) = &self.zeros
            && *length == block.len()
        {
            out.extend_from_slice(bytes);
            return Ok(check.clone());
        }
        let start = out.len();
        let check = Check::of(block);
        self.deflate(block, out)?;
        if is_zeros {
            self.zeros = Some((block.len(), out[start..].to_vec(), check.clone()));
        }
        Ok(check)
    }

    fn deflate(&mut self, block: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
        if is_incompressible(block, &mut self.trial, &mut self.sample) {
            deflate::store(block, out);
            return Ok(());
        }
        let start = out.len();
        out.resize(start + self.compressor.deflate_compress_bound(block.len()), 0);
        let length = self
            .compressor
            .deflate_compress(block, &mut out[start..])
            .map_err(|libdeflater::CompressionError::InsufficientSpace| io::ErrorKind::OutOfMemory)?;
        out.truncate(start + length);
        deflate::open_end(out, start).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        // Not less than stored blocks would take.
        if out.len() - start > block.len() + block.len() / 1000 {
            out.truncate(start);
            deflate::store(block, out);
        }
        Ok(())
    }
}

/// What stands before the first block.
pub(super) fn header(compression: Compression) -> &'static [u8] {
    match compression {
        Compression::Gzip { .. } => &GZIP_HEADER,
        Compression::None | Compression::Zstd { .. } => &[],
    }
}

/// Appends what stands after the last block; `check` covers all of them.
pub(super) fn trailer(compression: Compression, check: &Check, out: &mut Vec<u8>) {
    if let Compression::Gzip { .. } = compression {
        out.extend_from_slice(&deflate::END);
        out.extend_from_slice(&check.crc.clone().finalize().to_le_bytes());
        // Modulo 2³², as the RFC says.
        out.extend_from_slice(&(check.bytes as u32).to_le_bytes());
    }
}

/// Whether compressing `block` would be time lost: its bytes are spread evenly, and zstd at its fastest, which runs over noise
/// at several GB/s, saves next to nothing anywhere in it. Samples would not do: an archive of documents that are compressed one by one
/// has text between them.
fn is_incompressible(block: &[u8], trial: &mut zstd::bulk::Compressor<'_>, sample: &mut Vec<u8>) -> bool {
    if block.len() < TRIAL_BYTES || entropy(block) < SUSPICIOUS_ENTROPY {
        return false;
    }
    sample.resize(zstd::zstd_safe::compress_bound(TRIAL_BYTES), 0);
    let mut saved = 0;
    block.chunks(TRIAL_BYTES).all(|piece| {
        let length = trial.compress_to_buffer(piece, &mut sample[..]).unwrap_or(0);
        saved += piece.len().saturating_sub(length);
        saved * 1000 < block.len() * WORTH_SAVING
    })
}

/// Order-0 entropy of a part of the bytes of `block`, in bits a byte.
fn entropy(block: &[u8]) -> f64 {
    let mut counts = [0_u32; 256];
    for &byte in block.iter().step_by(ENTROPY_STRIDE) {
        counts[usize::from(byte)] += 1;
    }
    let total = f64::from(counts.iter().sum::<u32>());
    counts
        .iter()
        .filter(|count| **count > 0)
        .map(|&count| f64::from(count))
        .map(|c| -c / total * (c / total).log2())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 88_172_645_463_325_252_u64;
        (0..length)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 24) as u8
            })
            .collect()
    }

    #[test]
    fn only_what_does_not_shrink_is_stored() {
        let mut trial = zstd::bulk::Compressor::new(1).expect("no memory limit");
        let mut check = |block: &[u8], expected: bool, what: &str| {
            assert_eq!(is_incompressible(block, &mut trial, &mut Vec::new()), expected, "{what}");
        };
        check(&noise(1 << 20), true, "noise");
        check(&noise(1000), false, "little noise");
        check(&[0; 1 << 20], false, "zeros");
        check(&noise(4096).repeat(256), false, "noise that repeats");
        let mut mixed = noise(1 << 20);
        mixed[300_000..340_000].copy_from_slice(&b"between compressed files\n".repeat(1600));
        check(&mixed, false, "noise with text in it");
        mixed[303_000..340_000].copy_from_slice(&noise(37_000));
        check(&mixed, true, "noise with very little text in it");
        let nearly: Vec<u8> = noise(1 << 20).into_iter().map(|byte| if byte < 12 { 0 } else { byte }).collect();
        check(&nearly, false, "noise with a byte that is more frequent");
        check(&b"some text, and more of it\n".repeat(40_000), false, "text");
        let compressed = zstd::bulk::compress(&b"some text, and more of it\n".repeat(400), 3).expect("in memory");
        check(&compressed, false, "short");
    }

    #[test]
    fn zeros_are_the_same_from_memory() {
        let new = || BlockCompressor::new(Compression::Gzip { level: 4 }).expect("no memory limit");
        let mut used = new();
        for length in [5000, 5000, 1 << 20, 5000, 1 << 20, 1 << 20] {
            let (mut fresh, mut again) = (Vec::new(), Vec::new());
            let checks = [
                new().block(&vec![0; length], &mut fresh).expect("in memory"),
                used.block(&vec![0; length], &mut again).expect("in memory"),
            ];
            assert!(fresh == again && checks[0].crc.clone().finalize() == checks[1].crc.clone().finalize());
            assert_eq!(checks[1].bytes, length as u64);
        }
    }

    #[test]
    fn noise_grows_by_less_than_a_thousandth() {
        let mut compressor = BlockCompressor::new(Compression::Gzip { level: 4 }).expect("no memory limit");
        let mut out = Vec::new();
        compressor.block(&noise(1 << 20), &mut out).expect("in memory");
        assert!(out.len() < (1 << 20) + 1024);
    }
}
