//! Blobs of bases that go on to other registries while they are read for their files: from registry to registry, without a
//! copy on the disk.
//!
//! Whoever unpacks a base, or makes its index, reads each blob anyway. [`Passing::beside`] hands the same bytes to an upload. A
//! reader whom others wait for (a RUN needs the tree) has little patience with a slow destination: the blob is then fetched
//! once more when the image is pushed, which costs network and no disk.
//!
//! # Limitations
//! What is passed on can be read once, so an upload that is cut does not resume; the blob then goes the usual way, which does.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, SendTimeoutError, Sender, bounded, unbounded};

use super::shared::lock;
use crate::oci::{BlobDigest, Descriptor, Reference};

/// One piece on its way, in bytes.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces that an upload may be behind.
const PIECES_BEHIND: usize = 8;

/// How long a reader waits for uploads in all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Others wait for what is read.
    Little,
    /// The image is done when the upload is.
    Much,
}

impl Patience {
    fn limit(self) -> Duration {
        match self {
            Self::Little => Duration::from_secs(2),
            // A registry that says nothing is given up long before.
            Self::Much => Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Which blobs of bases go where.
pub(super) struct Passing {
    uploads: Sender<Pass>,
    /// Base layers of the image, in the form that it has.
    layers: BTreeSet<BlobDigest>,
    /// Registries that the image goes to.
    registries: BTreeSet<String>,
    /// What is on its way or was; a second attempt is not made here.
    begun: Mutex<BTreeSet<(BlobDigest, String)>>,
}

/// A blob on its way to one registry: its bytes, as they come.
pub(super) struct Pass {
    pub(super) blob: Descriptor,
    pub(super) registry: String,
    pieces: Receiver<Vec<u8>>,
    piece: io::Cursor<Vec<u8>>,
}

impl Read for Pass {
    /// Ends early if whoever reads the blob stops, or loses patience.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.piece.read(buf)? {
                0 if !buf.is_empty() => match self.pieces.recv() {
                    Ok(piece) => self.piece = io::Cursor::new(piece),
                    Err(_) => return Ok(0),
                },
                count => return Ok(count),
            }
        }
    }
}

impl Passing {
    /// For an image with these base layers that goes to these registries, and whoever does the uploads.
    pub(super) fn new(layers: BTreeSet<BlobDigest>, registries: BTreeSet<String>) -> (Self, Receiver<Pass>) {
        let (uploads, passes) = unbounded();
        (Self { uploads, layers, registries, begun: Mutex::default() }, passes)
    }

    /// `stream`, and beside it an upload to each registry that needs the blob and is none of `locations`, where it comes from.
    pub(super) fn beside(
        &self,
        blob: &Descriptor,
        locations: &[Reference],
        stream: Box<dyn Read + Send>,
        patience: Patience,
    ) -> Box<dyn Read + Send> {
        if !self.layers.contains(&blob.digest) {
            return stream;
        }
        let far = self.registries.iter().filter(|registry| locations.iter().all(|at| at.registry() != **registry));
        let mut to = Vec::new();
        for registry in far {
            if !lock(&self.begun).insert((blob.digest, registry.clone())) {
                continue;
            }
            let (sender, pieces) = bounded(PIECES_BEHIND);
            let pass = Pass { blob: blob.clone(), registry: registry.clone(), pieces, piece: io::Cursor::default() };
            // If nobody does uploads any more, nobody takes the pieces either.
            if self.uploads.send(pass).is_ok() {
                to.push(sender);
            }
        }
        if to.is_empty() {
            return stream;
        }
        let piece = Vec::with_capacity(PIECE_BYTES);
        Box::new(Tee { inner: stream, to, piece, left: blob.size, patience: patience.limit() })
    }
}

/// Hands on what passes.
struct Tee {
    inner: Box<dyn Read + Send>,
    to: Vec<Sender<Vec<u8>>>,
    piece: Vec<u8>,
    /// Bytes of the blob to come.
    left: u64,
    /// How much longer uploads may be waited for.
    patience: Duration,
}

impl Tee {
    fn hand_on(&mut self) {
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        let patience = &mut self.patience;
        self.to.retain(|to| {
            let asked = Instant::now();
            let sent = to.send_timeout(piece.clone(), *patience);
            *patience = patience.saturating_sub(asked.elapsed());
            match sent {
                Ok(()) => true,
                Err(SendTimeoutError::Timeout(_)) => {
                    tracing::debug!("a registry is too slow to take a base while it is unpacked");
                    false
                }
                Err(SendTimeoutError::Disconnected(_)) => false,
            }
        });
    }
}

impl Read for Tee {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        if self.to.is_empty() {
            return Ok(count);
        }
        self.piece.extend_from_slice(&buf[..count]);
        self.left = self.left.saturating_sub(count as u64);
        if self.piece.len() >= PIECE_BYTES || (self.left == 0 && !self.piece.is_empty()) {
            self.hand_on();
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{MediaType, Sha256};

    fn blob(bytes: &[u8]) -> Descriptor {
        Descriptor::new(MediaType::OciLayerGzip, BlobDigest(Sha256::of(bytes)), bytes.len() as u64)
    }

    fn passing(blob: &Descriptor) -> (Passing, Receiver<Pass>) {
        let registries = ["a:5000", "b:5000"].map(str::to_owned);
        Passing::new(BTreeSet::from([blob.digest]), registries.into())
    }

    fn at(registry: &str) -> Vec<Reference> {
        vec![format!("{registry}/x").parse().expect("a reference")]
    }

    #[test]
    fn a_blob_goes_to_every_other_registry_once() {
        let bytes: Vec<u8> = (0..900_000_u32).flat_map(u32::to_le_bytes).collect();
        let blob = blob(&bytes);
        let (passing, passes) = passing(&blob);
        let read = || {
            let inner = Box::new(io::Cursor::new(bytes.clone()));
            let mut found = Vec::new();
            passing.beside(&blob, &at("a:5000"), inner, Patience::Much).read_to_end(&mut found).expect("read");
            assert!(found == bytes);
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut pass = passes.recv().expect("a pass");
                assert_eq!((pass.registry.as_str(), &pass.blob), ("b:5000", &blob));
                let mut found = Vec::new();
                pass.read_to_end(&mut found).expect("read");
                assert!(found == bytes);
            });
            read();
        });
        read();
        assert!(passes.is_empty());
    }

    #[test]
    fn nobody_waits_for_uploads_that_do_not_happen() {
        let bytes = vec![7; (PIECES_BEHIND + 3) * PIECE_BYTES];
        let blob = blob(&bytes);
        let (passing, passes) = passing(&blob);
        let read = |stop: usize| {
            let inner = Box::new(io::Cursor::new(bytes.clone()));
            let mut stream = passing.beside(&blob, &at("a:5000"), inner, Patience::Little).take(stop as u64);
            io::copy(&mut stream, &mut io::sink()).expect("read");
        };
        // Nobody takes the pieces: patience ends, and with it the pass.
        read(usize::MAX);
        let mut pass = passes.recv().expect("a pass");
        let passed = io::copy(&mut pass, &mut io::sink()).expect("read");
        assert_eq!(passed, (PIECES_BEHIND * PIECE_BYTES) as u64);
        drop(passes);
        read(usize::MAX);
    }
}
