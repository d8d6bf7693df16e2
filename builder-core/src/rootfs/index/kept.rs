//! The indexes of a work dir.

use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read};
use std::path::{Path, PathBuf};

use super::{IndexEntry, IndexReader, IndexWriter};
use crate::oci::DiffId;
use crate::rootfs::archive::{TarEntry, TarError, TarKind};

/// Indexes of layers, by diff_id. Several processes may use one directory: an index appears by rename, and two of the same
/// layer are equal.
#[derive(Debug, Clone)]
pub struct Indexes {
    directory: PathBuf,
    /// Whether what files hold is hashed.
    hashes: bool,
}

/// An index that is being written; dropped without [`Recorder::keep`] it is gone.
#[derive(Debug)]
pub struct Recorder {
    place: PathBuf,
    writer: IndexWriter<BufWriter<tempfile::NamedTempFile>>,
    hashes: bool,
    /// The first failure: an index that cannot be written is no reason to fail.
    failed: Option<io::Error>,
}

impl Indexes {
    /// Those in a directory that exists.
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), hashes: false }
    }

    /// The same; what files hold is hashed in new indexes, for those who compare.
    #[must_use]
    pub(in crate::rootfs) fn hashing(self) -> Self {
        Self { hashes: true, ..self }
    }

    /// Whether the index of a layer is kept.
    pub fn contains(&self, layer: DiffId) -> bool {
        self.place(layer).is_file()
    }

    /// The index of a layer, if it is kept.
    ///
    /// # Errors
    /// What the disk says, but that it is not there; `InvalidData` for an index of another version.
    pub fn open(&self, layer: DiffId) -> io::Result<Option<IndexReader<BufReader<File>>>> {
        match File::open(self.place(layer)) {
            Ok(file) => IndexReader::new(BufReader::new(file)).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Removes an index that turned out to be damaged.
    pub fn forget(&self, layer: DiffId) {
        if let Err(error) = std::fs::remove_file(self.place(layer)) {
            tracing::debug!(%layer, %error, "a damaged index could not be removed");
        }
    }

    /// Begins the index of a layer.
    ///
    /// # Errors
    /// What the disk says.
    pub fn record(&self, layer: DiffId) -> io::Result<Recorder> {
        self.recorder(self.place(layer))
    }

    /// Begins the index of a layer whose diff_id will be known at its end; see [`Recorder::keep_as`].
    ///
    /// # Errors
    /// What the disk says.
    pub fn record_new(&self) -> io::Result<Recorder> {
        self.recorder(self.directory.clone())
    }

    fn recorder(&self, place: PathBuf) -> io::Result<Recorder> {
        // A name that is no diff_id: what a killed process leaves is no index.
        let file = tempfile::Builder::new().prefix(".new").tempfile_in(&self.directory)?;
        let writer = IndexWriter::new(BufWriter::new(file))?;
        Ok(Recorder { place, writer, hashes: self.hashes, failed: None })
    }

    /// Removes what killed processes left. Nobody else may be at work.
    pub(in crate::rootfs) fn remove_unfinished(&self) {
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.filter_map(Result::ok) {
            if entry.file_name().as_encoded_bytes().starts_with(b".new") {
                // Tried again at the next start.
                _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// Where they are.
    pub(in crate::rootfs) fn directory(&self) -> PathBuf {
        self.directory.clone()
    }

    fn place(&self, layer: DiffId) -> PathBuf {
        self.directory.join(layer.to_hex())
    }
}

impl Recorder {
    /// Takes notice of an entry whose content is not wanted.
    pub fn add(&mut self, entry: &IndexEntry) {
        if self.failed.is_none()
            && let Err(error) = self.writer.entry(entry)
        {
            self.failed = Some(error);
        }
    }

    /// Takes notice of an entry of a tar while `take` reads its content, if it wants to.
    ///
    /// # Errors
    /// Those of `take`; if the tar cannot be read.
    pub(in crate::rootfs) fn entry<E: From<TarError>>(
        &mut self,
        entry: TarEntry,
        mut data: impl BufRead,
        take: impl FnOnce(TarEntry, &mut dyn BufRead) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut noted = IndexEntry::of(&entry);
        let is_plain = entry.kind == TarKind::File && entry.sparse.is_none();
        if is_plain && noted.keeps_content() {
            let mut content = Vec::new();
            data.take(entry.size).read_to_end(&mut content).map_err(TarError::Read)?;
            noted.hash = self.hash(&content);
            take(entry, &mut content.as_slice())?;
            noted.content = Some(content);
        } else if is_plain && self.hashes {
            let mut hashing = Hashing { inner: data, hasher: blake3::Hasher::new() };
            take(entry, &mut hashing)?;
            let Hashing { mut inner, mut hasher } = hashing;
            while hasher.count() < noted.size {
                let bytes = inner.fill_buf().map_err(TarError::Read)?;
                let length = bytes.len();
                if length == 0 {
                    break;
                }
                hasher.update(bytes);
                inner.consume(length);
            }
            noted.hash = (hasher.count() == noted.size).then(|| hasher.finalize());
        } else {
            take(entry, &mut data)?;
        }
        self.add(&noted);
        Ok(())
    }

    /// Hash of the content of a file, if hashes are wanted.
    pub(crate) fn hash(&self, content: &[u8]) -> Option<blake3::Hash> {
        self.hashes.then(|| blake3::hash(content))
    }

    /// Keeps the index.
    pub fn keep(self) {
        let place = self.place.clone();
        self.publish(&place);
    }

    /// Keeps the index as that of `layer`.
    pub fn keep_as(self, layer: DiffId) {
        let place = self.place.join(layer.to_hex());
        self.publish(&place);
    }

    fn publish(self, place: &Path) {
        let written = match self.failed {
            Some(error) => Err(error),
            None => self.writer.finish().and_then(|writer| writer.into_inner().map_err(io::Error::from)),
        };
        let kept = written.and_then(|file| file.persist(place).map_err(|error| error.error));
        if let Err(error) = kept {
            // It is made again when it is needed.
            tracing::debug!(place = %place.display(), %error, "an index is not kept");
        }
    }
}

/// Hashes what is taken from it.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

impl<R: BufRead> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(buffer)?;
        self.consume(read);
        Ok(read)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, length: usize) {
        // What is there already: it was asked for before.
        if let Some(bytes) = self.inner.fill_buf().ok().and_then(|bytes| bytes.get(..length)) {
            self.hasher.update(bytes);
        }
        self.inner.consume(length);
    }
}
