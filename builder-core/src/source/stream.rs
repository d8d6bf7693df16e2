//! Readers around blobs: one verifies, one keeps a copy.

use std::io::{self, Read, Write as _};
use std::sync::Arc;

use super::LayerProgress;
use super::error::LayoutError;
use crate::cancel::Cancel;
use crate::oci::{BlobDigest, Descriptor, Hasher};
use crate::store::{BlobWriter, Store, StoreError};

/// Verifies size and digest; fails before the last byte is handed out.
pub(super) struct Verified<R> {
    inner: R,
    descriptor: Descriptor,
    hasher: Hasher,
    bytes: u64,
    failed: bool,
    cancel: Cancel,
}

impl<R: Read> Verified<R> {
    pub(super) fn new(inner: R, descriptor: &Descriptor, cancel: &Cancel) -> Self {
        let (descriptor, cancel) = (descriptor.clone(), cancel.clone());
        Self { inner, descriptor, hasher: Hasher::default(), bytes: 0, failed: false, cancel }
    }

    fn wrong(&mut self) -> io::Error {
        self.failed = true;
        let (expected, size) = (self.descriptor.digest, self.descriptor.size);
        let actual = BlobDigest(self.hasher.clone().finish());
        let error = LayoutError::WrongDigest { expected, actual, bytes: self.bytes, size };
        io::Error::new(io::ErrorKind::InvalidData, error)
    }
}

impl<R: Read> Read for Verified<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.cancel.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        if self.failed {
            return Err(self.wrong());
        }
        let count = self.inner.read(buf)?;
        if count == 0 && !buf.is_empty() {
            let whole = self.bytes == self.descriptor.size
                && BlobDigest(self.hasher.clone().finish()) == self.descriptor.digest;
            return if whole { Ok(0) } else { Err(self.wrong()) };
        }
        self.hasher.update(&buf[..count]);
        self.bytes += count as u64;
        let complete = self.bytes >= self.descriptor.size;
        if complete
            && (self.bytes > self.descriptor.size || BlobDigest(self.hasher.clone().finish()) != self.descriptor.digest)
        {
            return Err(self.wrong());
        }
        Ok(count)
    }
}

/// Writes what passes into the store, and publishes it once it is whole. `inner` verifies size and digest before it hands
/// out the last byte, so nothing is hashed here. A stream that is dropped earlier leaves nothing in the store.
pub(super) struct Keeping<R> {
    inner: R,
    writer: Option<BlobWriter>,
    descriptor: Descriptor,
}

impl<R: Read> Keeping<R> {
    pub(super) fn new(inner: R, store: &Store, descriptor: &Descriptor) -> Result<Self, StoreError> {
        let writer = store.verified_writer(descriptor.digest)?;
        Ok(Self { inner, writer: Some(writer), descriptor: descriptor.clone() })
    }
}

impl<R: Read> Read for Keeping<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        if let Some(writer) = &mut self.writer {
            writer.write_all(&buf[..count])?;
            // An empty blob is whole only when its end was read.
            let ended = self.descriptor.size > 0 || (count == 0 && !buf.is_empty());
            if ended
                && writer.bytes() == self.descriptor.size
                && let Some(writer) = self.writer.take()
            {
                writer.publish(Some(self.descriptor.digest))?;
            }
        }
        Ok(count)
    }
}

/// Tells how many bytes have passed.
pub(super) struct Counting<R> {
    inner: R,
    descriptor: Descriptor,
    bytes: u64,
    progress: Arc<LayerProgress>,
}

impl<R: Read> Counting<R> {
    pub(super) fn new(inner: R, descriptor: &Descriptor, progress: Arc<LayerProgress>) -> Self {
        progress(descriptor, 0);
        Self { inner, descriptor: descriptor.clone(), bytes: 0, progress }
    }
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buf)?;
        self.bytes += count as u64;
        (self.progress)(&self.descriptor, self.bytes);
        Ok(count)
    }
}
