//! Compressions that archives come in, by their first bytes.

use std::io::{self, BufReader, Read};

/// Memory that an xz stream may ask for, in bytes: `xz -9` needs 65 MiB to decompress (xz(1)).
const XZ_MEMORY_BYTES: u64 = 128 << 20;

/// Largest zstd window, as a power of two: what the reference decoder takes without being told otherwise.
const ZSTD_WINDOW_LOG: u32 = 27;

/// Undoes gzip, bzip2, xz or zstd, any number of members or frames; anything else passes as it is.
pub(super) fn decompress(file: impl Read + Send + 'static, magic: &[u8]) -> io::Result<Box<dyn Read + Send>> {
    let file = BufReader::new(file);
    Ok(match magic {
        // RFC 1952, 2.3.1
        [0x1f, 0x8b, 0x08, ..] => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        [b'B', b'Z', b'h', ..] => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        // The .xz file format, 2.1.1.1
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY_BYTES, liblzma::stream::CONCATENATED)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(file, stream))
        }
        // RFC 8878, 3.1.1 and 3.1.2: a frame, or a skippable one before it
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            let mut decoder = zstd::Decoder::with_buffer(file)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
        _ => Box::new(file),
    })
}
