//! One layer from its source into a directory: fetched and inflated in one thread, hashed and unpacked in another.

use std::fmt;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};

use super::archive::{TarError, TarReader};
use super::frames::WindowTooLarge;
use super::index::{Indexes, Recorder};
use super::inflate::{Allowance, Inflated, TooLarge, channel};
use super::unpack::{Pending, UnpackError, Whiteouts, unpack};
use super::{LayerRef, LayerSource, Rootfs, TreeError};
use crate::cancel::Cancel;

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Ends all threads of a checkout: from outside, or because one of them failed.
#[derive(Debug)]
pub(super) struct Stop<'a> {
    pub cancel: &'a Cancel,
    failed: AtomicBool,
}

impl<'a> Stop<'a> {
    pub(super) fn new(cancel: &'a Cancel) -> Self {
        Self { cancel, failed: AtomicBool::new(false) }
    }

    pub(super) fn fail(&self) {
        self.failed.store(true, Ordering::SeqCst);
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.cancel.is_cancelled() || self.failed.load(Ordering::SeqCst)
    }
}

/// A read that failed in the source, told apart from one that failed in a decoder.
struct SourceFailed(io::Error);

impl fmt::Debug for SourceFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl fmt::Display for SourceFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl std::error::Error for SourceFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

struct Watched<R>(R);

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => error,
            _ => io::Error::other(SourceFailed(error)),
        })
    }
}

/// Opens a layer's blob.
pub(super) fn open(source: &dyn LayerSource, layer: &LayerRef) -> Result<Box<dyn Read + Send>, TreeError> {
    source.open(layer).map_err(|cause| TreeError::Fetch { layer: layer.diff_id, source: cause })
}

/// Unpacks a blob and checks the digest of its tar. Its index is kept, if it is not yet.
pub(super) fn unpack_blob(
    blob: Box<dyn Read + Send>,
    layer: &LayerRef,
    rootfs: &Rootfs,
    whiteouts: Whiteouts,
    indexes: &Indexes,
    allowed: &Allowance,
    stop: &Stop<'_>,
) -> Result<Pending, TreeError> {
    let mut index = recorder(indexes, layer);
    let pending = read_blob(blob, layer, allowed, stop, |tar| unpack(tar, rootfs, whiteouts, index.as_mut(), stop))?;
    if let Some(index) = index {
        index.keep();
    }
    Ok(pending)
}

/// Reads a blob for nothing but its index, which is kept.
pub(super) fn index_blob(
    blob: Box<dyn Read + Send>,
    layer: &LayerRef,
    indexes: &Indexes,
    allowed: &Allowance,
    stop: &Stop<'_>,
) -> Result<(), TreeError> {
    let io = |source| TreeError::Io { action: "write the index of a layer in", path: indexes.directory(), source };
    let mut index = indexes.record(layer.diff_id).map_err(io)?;
    read_blob(blob, layer, allowed, stop, |tar| {
        let mut reader = TarReader::new(tar);
        while let Some(entry) = reader.next_entry().map_err(UnpackError::Tar)? {
            if stop.is_stopped() {
                return Err(UnpackError::Cancelled);
            }
            index.entry(entry, &mut reader, |_, _| Ok::<_, UnpackError>(()))?;
        }
        let rest = reader.finish().map_err(|error| UnpackError::Tar(TarError::Read(error)))?;
        Ok((rest, ()))
    })?;
    index.keep();
    Ok(())
}

/// Where the index of a layer is written; `None` if it is there already, or cannot be written.
fn recorder(indexes: &Indexes, layer: &LayerRef) -> Option<Recorder> {
    if indexes.contains(layer.diff_id) {
        return None;
    }
    let recorder = indexes.record(layer.diff_id);
    recorder.inspect_err(|error| tracing::debug!(%error, "a layer's index cannot be written")).ok()
}

/// Inflates a blob in a thread of its own, gives its tar to `read`, which reads it to its end, and checks the tar's digest.
pub(super) fn read_blob<T>(
    blob: Box<dyn Read + Send>,
    layer: &LayerRef,
    allowed: &Allowance,
    stop: &Stop<'_>,
    read: impl FnOnce(Inflated) -> Result<(Inflated, T), UnpackError>,
) -> Result<T, TreeError> {
    let (inflater, inflated) = channel();
    let (tar, found) = std::thread::scope(|scope| {
        let inflating = std::thread::Builder::new().name("inflate".to_owned());
        inflating
            .spawn_scoped(scope, || inflater.run(Watched(blob), allowed, stop))
            .map_err(|source| TreeError::Fetch { layer: layer.diff_id, source: source.into() })?;
        read(inflated).map_err(|error| describe(error, layer, stop))
    })?;
    let actual = tar.digest();
    if actual != layer.diff_id {
        return Err(TreeError::WrongDiffId { expected: layer.diff_id, actual });
    }
    Ok(found)
}

/// The error of a layer, as callers see it.
pub(super) fn describe(error: UnpackError, layer: &LayerRef, stop: &Stop<'_>) -> TreeError {
    let id = layer.diff_id;
    match error {
        UnpackError::Cancelled => TreeError::Cancelled,
        UnpackError::Tar(TarError::Read(error)) => read_error(error, layer, stop),
        UnpackError::Tar(TarError::Malformed { entry, problem }) => {
            TreeError::BadEntry { layer: id, entry, reason: problem.to_string() }
        }
        UnpackError::Entry { entry, problem } => {
            TreeError::BadEntry { layer: id, entry: entry.to_string_lossy().into_owned(), reason: problem.to_string() }
        }
        UnpackError::Unmapped { entry, uid, gid } => {
            TreeError::UnmappedId { layer: id, entry: entry.to_string_lossy().into_owned(), uid, gid }
        }
        UnpackError::Io { path, source } => TreeError::Io { action: "unpack", path, source },
    }
}

fn read_error(error: io::Error, layer: &LayerRef, stop: &Stop<'_>) -> TreeError {
    if stop.is_stopped() {
        return TreeError::Cancelled;
    }
    let layer = layer.diff_id;
    if let Some(TooLarge { limit }) = error.get_ref().and_then(|cause| cause.downcast_ref()) {
        return TreeError::TooLarge { layer, limit: *limit };
    }
    if let Some(WindowTooLarge { needed, limit }) = error.get_ref().and_then(|cause| cause.downcast_ref()) {
        return TreeError::WindowTooLarge { layer, needed: *needed, limit: *limit };
    }
    match error.downcast::<SourceFailed>() {
        // Errors of a source often carry its own typed error; that is the cause callers can act on.
        Ok(SourceFailed(error)) => TreeError::Fetch { layer, source: into_cause(error) },
        Err(source) => TreeError::Damaged { layer, source },
    }
}

pub(super) fn into_cause(error: io::Error) -> Cause {
    let kind = error.kind();
    match error.get_ref() {
        None => error.into(),
        Some(_) => error.into_inner().unwrap_or_else(|| io::Error::from(kind).into()),
    }
}
