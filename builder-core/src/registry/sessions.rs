//! Uploads that outlive the process that began them.
//!
//! ```text
//! <directory>/<digest of the blob>-<hash of the repository>.json    an upload that was begun
//! ```
//!
//! Whoever is killed in the middle of an upload leaves such a file; the next process that sends the same blob to the same
//! repository asks the registry how much of it came, and goes on behind that (distribution-spec, "Pushing a blob in chunks"). What a
//! registry does not know any more is begun anew, and its verdict on the digest at the end covers what the first process sent.
//!
//! The address of an upload can carry a signed query: the directory is closed to other users, the files are too, and they
//! go when the upload ends. A file is locked (flock(2)) by the process whose upload it is, so that two of them never write into one
//! upload: the other one sends the blob for itself, and keeps nothing.
//!
//! # Limitations
//! Blobs whose digest is not known yet have no file: their bytes do not outlive the process either. Nothing is kept where files cannot be
//! locked (some network file systems).

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::upload::Session;
use crate::oci::{BlobDigest, Sha256};

/// Blobs of fewer bytes are not worth a file: they are sent again.
const LEAST_BYTES: u64 = 1 << 20;

/// Longest file that is read, in bytes; addresses with signed queries have a few thousand.
const LONGEST_FILE_BYTES: u64 = 64 << 10;

/// A directory with the uploads of one work dir.
#[derive(Debug, Clone)]
pub struct Sessions {
    directory: PathBuf,
}

/// An upload as the next process finds it.
#[derive(Debug, Serialize, Deserialize)]
struct Note {
    url: String,
    /// Of the blob, in bytes.
    size: u64,
    min_chunk: u64,
}

impl Sessions {
    /// Keeps uploads in `directory`, which appears with the first one.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Forgets uploads of blobs that `wanted` says no to, unless a process is busy with one.
    pub fn forget_unless(&self, wanted: impl Fn(BlobDigest) -> bool) {
        let entries = match fs::read_dir(&self.directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => return tracing::debug!(%error, "uploads of earlier processes cannot be listed"),
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let digest = name.split_once('-').and_then(|(digest, _)| Sha256::from_hex(digest)).map(BlobDigest);
            if !digest.is_some_and(&wanted) && File::open(&path).is_ok_and(|file| is_locked_by_us(&file)) {
                remove(&path);
            }
        }
    }

    /// The upload of a blob of `size` bytes to a repository. `None` if it is not worth it, if another process is busy with it, or if
    /// nothing can be kept here.
    pub(super) fn of(&self, (registry, repository): (&str, &str), digest: BlobDigest, size: u64) -> Option<Kept> {
        if size < LEAST_BYTES {
            return None;
        }
        let place = Sha256::of(format!("{registry}/{repository}").as_bytes());
        let path = self.directory.join(format!("{}-{}.json", digest.to_hex(), place.to_hex()));
        let opened =
            DirBuilder::new().recursive(true).mode(0o700).create(&self.directory).and_then(|()| {
                File::options().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path)
            });
        match opened {
            Ok(file) => is_locked_by_us(&file).then_some(Kept { file, path, size }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "the upload is not kept");
                None
            }
        }
    }
}

/// The file of an upload that is this process's.
#[derive(Debug)]
pub(super) struct Kept {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Kept {
    /// What an earlier process left; how many bytes the registry has is for it to say.
    pub(super) fn found(&self) -> Option<Session> {
        let mut bytes = Vec::new();
        (&self.file).take(LONGEST_FILE_BYTES).read_to_end(&mut bytes).ok()?;
        let note: Note = serde_json::from_slice(&bytes).ok()?;
        (note.size == self.size).then_some(Session {
            url: note.url.parse().ok()?,
            offset: 0,
            min_chunk: note.min_chunk,
        })
    }

    /// Keeps where the upload goes on. A file that is torn by a kill in here is none.
    pub(super) fn note(&self, session: &Session) {
        let note = Note { url: session.url.to_string(), size: self.size, min_chunk: session.min_chunk };
        let bytes = serde_json::to_vec(&note).expect("because its keys are strings");
        let written = self.file.write_all_at(&bytes, 0).and_then(|()| self.file.set_len(bytes.len() as u64));
        if let Err(error) = written {
            tracing::debug!(path = %self.path.display(), %error, "the upload is not kept");
            remove(&self.path);
        }
    }

    /// The upload has ended.
    pub(super) fn ended(self) {
        remove(&self.path);
    }
}

fn is_locked_by_us(file: &File) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path = %path.display(), %error, "the note of an upload stays");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    const SIZE: u64 = 5 << 20;

    fn session(url: &str) -> Session {
        Session { url: url.parse().expect("a URL"), offset: 7, min_chunk: 3 }
    }

    #[test]
    fn an_upload_is_found_by_the_next_process_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let sessions = Sessions::new(directory.path().join("uploads"));
        let digest = BlobDigest(Sha256::of(b"a"));
        let (here, elsewhere) = (("r:5000", "a/b"), ("r:5000", "a/c"));
        assert!(sessions.of(here, digest, LEAST_BYTES - 1).is_none());
        let kept = sessions.of(here, digest, SIZE).expect("kept");
        assert!(kept.found().is_none());
        kept.note(&session("https://r:5000/v2/a/b/blobs/uploads/1?_state=quite-a-long-one"));
        kept.note(&session("https://r:5000/v2/a/b/blobs/uploads/1?_state=short"));
        // Somebody is busy with it.
        assert!(sessions.of(here, digest, SIZE).is_none());
        sessions.forget_unless(|_| false);
        let mode = |path: &Path| fs::metadata(path).expect("it is there").mode() & 0o777;
        assert_eq!((mode(&sessions.directory), mode(&kept.path)), (0o700, 0o600));
        drop(kept);
        let found = sessions.of(here, digest, SIZE).expect("kept").found().expect("found");
        let expected = session("https://r:5000/v2/a/b/blobs/uploads/1?_state=short");
        assert_eq!((found.url, found.offset, found.min_chunk), (expected.url, 0, 3));
        // Another size, another repository, another blob.
        assert!(sessions.of(here, digest, SIZE + 1).expect("kept").found().is_none());
        assert!(sessions.of(elsewhere, digest, SIZE).expect("kept").found().is_none());
        assert!(sessions.of(here, BlobDigest(Sha256::of(b"b")), SIZE).expect("kept").found().is_none());
        sessions.forget_unless(|known| known == digest);
        assert_eq!(fs::read_dir(&sessions.directory).expect("listed").count(), 2);
        sessions.of(here, digest, SIZE).expect("kept").ended();
        sessions.forget_unless(|_| false);
        assert_eq!(fs::read_dir(&sessions.directory).expect("listed").count(), 0);
    }

    #[test]
    fn what_is_torn_is_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let sessions = Sessions::new(directory.path().to_owned());
        for torn in ["", "{\"url\":\"https://r/", "{}", "{\"url\":\"no URL\",\"size\":5242880,\"min_chunk\":0}"] {
            let kept = sessions.of(("r", "a"), BlobDigest(Sha256::of(b"a")), SIZE).expect("kept");
            fs::write(&kept.path, torn).expect("written");
            assert!(kept.found().is_none(), "{torn}");
        }
    }
}
