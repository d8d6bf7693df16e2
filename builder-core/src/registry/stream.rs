//! Pushing a blob while it is being written: its digest is known last, which is when an upload needs it.

use std::io::{self, Read};

use super::sessions::Sessions;
use super::upload::{Begun, GaveUp, Source, Step, Upload};
use super::{Pushed, Registry, RegistryError};
use crate::cancel::Cancel;
use crate::oci::{BlobDigest, Reference};

/// Pieces are not smaller than this, in bytes, unless they must be: each costs a round trip, and registries on object stores
/// put pieces of less than 5 MiB together again at some expense.
const LEAST_PIECE_BYTES: u64 = 8 << 20;

/// With so few bytes left, sending them costs less than asking whether they are needed.
const FEW_BYTES: u64 = 1 << 20;

/// A blob that is being written.
pub trait GrowingBlob {
    /// Waits until there are `at_least` bytes of it, or nothing more will come.
    fn wait(&self, at_least: u64) -> Grown;

    /// Reads what there is from `offset` in bytes on.
    ///
    /// # Errors
    /// Of the disk.
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + '_>>;

    /// Told how many bytes the registry was sent so far; goes back when a part must be sent again.
    fn progress(&self, sent: u64);

    /// Where the upload is kept for a later process once the blob is whole, if it can be read again then.
    fn sessions(&self) -> Option<&Sessions> {
        None
    }
}

/// How far a blob has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Grown {
    /// So many bytes are there.
    Bytes(u64),
    /// It is whole.
    Whole {
        /// Its digest.
        digest: BlobDigest,
        /// Bytes of it.
        size: u64,
    },
    /// It will not be whole, or nobody wants it any more.
    Lost,
}

/// What became of a blob that was pushed while it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Streamed {
    /// The registry has it.
    There(Pushed),
    /// The registry takes no pieces. Nothing is wrong with the blob.
    Refused,
    /// The blob never became whole, and the registry has nothing of it.
    Lost,
}

impl Registry {
    /// Pushes a blob while it is written: pieces as they come, its digest at the end. What fails for a while is tried again from
    /// the byte on that the registry has. If it turns out at the end that the registry has the blob already, the upload is given up.
    ///
    /// # Errors
    /// [`RegistryError`]; the registry has no part of the blob under its digest then, and it can be pushed as a whole.
    pub fn push_growing(
        &self,
        target: &Reference,
        blob: &dyn GrowingBlob,
        cancel: &Cancel,
    ) -> Result<Streamed, RegistryError> {
        let call = self.push_call(target, None);
        let (open, progress) = (|offset| blob.open(offset), |sent| blob.progress(sent));
        let source = Source { digest: None, open: &open, progress: &progress };
        let mut upload = Upload::new(None, self.options().upload_chunk_bytes);
        let (digest, size) = loop {
            let session = match &mut upload.session {
                Some(session) => session,
                none => match self.begin(&call, None, cancel)? {
                    Begun::Session(new) => none.insert(new),
                    // A registry that answers so to a request without a digest does not know what it says.
                    Begun::Mounted => return Ok(Streamed::Refused),
                },
            };
            let least = upload.chunk.map_or(LEAST_PIECE_BYTES, |chunk| chunk.min(LEAST_PIECE_BYTES));
            let there = match blob.wait(session.offset + least.max(session.min_chunk)) {
                Grown::Whole { digest, size } => break (digest, size),
                Grown::Lost => {
                    self.give_up(&call, session, cancel);
                    return Ok(Streamed::Lost);
                }
                Grown::Bytes(there) => there,
            };
            let ready = there.saturating_sub(session.offset);
            let piece = upload.chunk.map_or(ready, |chunk| chunk.max(session.min_chunk).min(ready));
            let is_first = session.offset == 0;
            match self.patch(&call, &source, session, piece, cancel)? {
                Step::Done | Step::Continue => {}
                Step::Diverged(error) | Step::Failed(error, None) if is_first && !error.is_temporary() => {
                    tracing::debug!(%error, place = %call.place(), "no uploads in pieces");
                    self.give_up(&call, session, cancel);
                    return match error {
                        RegistryError::Refused { .. } | RegistryError::NotARegistry { .. } => Ok(Streamed::Refused),
                        error => Err(error),
                    };
                }
                failed => match self.recover(&call, &mut upload, failed, there, cancel) {
                    Ok(()) => {}
                    Err(GaveUp::Final(error) | GaveUp::Attempts { error, .. }) => return Err(error),
                },
            }
        };
        let source = Source { digest: Some(digest), ..source };
        if let Some(session) = &upload.session
            && size.saturating_sub(session.offset) > FEW_BYTES
            && self.exists(&call, digest, cancel)?
        {
            self.give_up(&call, session, cancel);
            return Ok(Streamed::There(Pushed::Existed));
        }
        upload.rest_with_end = true;
        upload.kept =
            blob.sessions().and_then(|sessions| sessions.of((target.registry(), target.repository()), digest, size));
        self.upload(&call, (digest, size), &source, upload, cancel).map(Streamed::There)
    }
}
