//! Files are read before it is their turn: small ones whole and several at once, of large ones the beginning.
//!
//! Opening, examining and closing a small file takes longer than its bytes do. One thread after the other would leave the
//! processors idle, and a disk waiting for the next request. What is read here goes into the tar in the order of the changes.

use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU64;
use std::path::Path;
use std::vec;

use rayon::iter::{IndexedParallelIterator, IntoParallelIterator, ParallelIterator};
use rustix::fs::Advice;

use super::LayerError;
use super::tar::{Tree, TreeFile, portable_capability};
use crate::rootfs::FileKind;
use crate::rootfs::index::Opened;
use crate::snapshot::Change;

/// Files of up to so many bytes are read whole.
pub(super) const SMALL_BYTES: u64 = 64 * 1024;

/// Changes that are looked at together, at most.
const CHANGES_AT_ONCE: usize = 256;

/// Bytes of files that are read together; a large file counts as one of [`SMALL_BYTES`], which bounds how many are open.
const BYTES_AT_ONCE: u64 = 1 << 20;

/// Files that one thread takes at a time.
const FILES_A_THREAD: usize = 8;

/// What is read of a large file before its turn.
const BEGINNING: NonZeroU64 = NonZeroU64::new(1 << 20).expect("not zero");

/// A regular file whose header can be written.
pub(super) struct Ready<'a> {
    /// As an image may carry it.
    pub(super) capability: Option<Vec<u8>>,
    pub(super) content: Content<'a>,
}

/// Its bytes.
pub(super) enum Content<'a> {
    /// All of them, as many as were listed.
    Whole(Vec<u8>),
    /// Still to be read.
    Open(Opened, Box<dyn TreeFile + 'a>),
}

/// A change, and its file if it has one of its own.
type Prepared<'a> = (Change, Option<Result<Ready<'a>, LayerError>>);

/// Bytes that were listed, and where they are to be read.
type FoundFile<'a> = (u64, io::Result<Box<dyn TreeFile + 'a>>);

/// Changes with their files, in order.
pub(super) struct Ahead<'a, I> {
    changes: I,
    tree: &'a dyn Tree,
    prepared: vec::IntoIter<Prepared<'a>>,
    /// Why there are no more.
    failed: Option<io::Error>,
}

impl<'a, I: Iterator<Item = io::Result<Change>>> Ahead<'a, I> {
    pub(super) fn new(changes: I, tree: &'a dyn Tree) -> Self {
        Self { changes, tree, prepared: Vec::new().into_iter(), failed: None }
    }

    /// Reads the next few.
    fn read(&mut self) {
        let mut found = Vec::new();
        let (mut bytes, mut files) = (0, 0);
        while found.len() < CHANGES_AT_ONCE && bytes < BYTES_AT_ONCE && self.failed.is_none() {
            let change = match self.changes.next() {
                Some(Ok(change)) => change,
                Some(Err(error)) => {
                    self.failed = Some(error);
                    break;
                }
                None => break,
            };
            // Trees are asked in order, and here.
            let file = own_file(&change).map(|(path, size)| (size, self.tree.file(path)));
            if let Some((size, _)) = &file {
                bytes += SMALL_BYTES.min(*size);
                files += 1;
            }
            found.push((change, file));
        }
        let read = |(change, file): (Change, Option<FoundFile<'a>>)| {
            let ready = file.map(|(size, file)| read(file, size, path_of(&change)));
            (change, ready)
        };
        let prepared: Vec<_> = if files > FILES_A_THREAD {
            found.into_par_iter().with_min_len(FILES_A_THREAD).map(read).collect()
        } else {
            found.into_iter().map(read).collect()
        };
        self.prepared = prepared.into_iter();
    }
}

impl<'a, I: Iterator<Item = io::Result<Change>>> Iterator for Ahead<'a, I> {
    type Item = io::Result<Prepared<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.prepared.len() == 0 && self.failed.is_none() {
            self.read();
        }
        match self.prepared.next() {
            Some(prepared) => Some(Ok(prepared)),
            None => self.failed.take().map(Err),
        }
    }
}

/// The file of a change that has one of its own: where it is, and how many bytes were listed.
pub(super) fn own_file(change: &Change) -> Option<(&Path, u64)> {
    match change {
        Change::Entry { path, metadata, link_to: None } if metadata.kind == FileKind::File => {
            Some((path, metadata.size))
        }
        _ => None,
    }
}

fn path_of(change: &Change) -> &Path {
    match change {
        Change::Entry { path, .. } | Change::Removed { path } => path,
    }
}

/// Opens a file that was listed with `size` bytes, and reads it if it is small.
pub(super) fn read<'a>(
    file: io::Result<Box<dyn TreeFile + 'a>>,
    size: u64,
    path: &Path,
) -> Result<Ready<'a>, LayerError> {
    let failed = |source| LayerError::Read { path: path.to_owned(), source };
    let file = file.map_err(failed)?;
    let opened = file.open().map_err(failed)?;
    let plain = match &opened {
        Opened::File(file) => Some(file),
        Opened::Stream(_) => None,
    };
    let found = file.capability(plain).map_err(failed)?;
    let capability = found.clone().map(portable_capability);
    if size > SMALL_BYTES {
        if let Some(file) = plain {
            announce(file);
        }
        return Ok(Ready { capability, content: Content::Open(opened, file) });
    }
    let bytes = match opened {
        Opened::File(opened) => {
            let bytes = read_whole(&mut &opened, size).map_err(failed)?;
            file.check(&opened).map_err(failed)?;
            bytes
        }
        Opened::Stream(mut stream) => read_whole(&mut stream, size).map_err(failed)?,
    };
    match bytes.len() as u64 {
        actual if actual == size => {
            if let Some(mut passing) = file.passing() {
                passing.bytes(&bytes);
                passing.whole(found);
            }
            Ok(Ready { capability, content: Content::Whole(bytes) })
        }
        actual => Err(LayerError::Changed { path: path.to_owned(), expected: size, actual }),
    }
}

/// Up to one byte more than `size`.
fn read_whole(data: &mut dyn Read, size: u64) -> io::Result<Vec<u8>> {
    let size = usize::try_from(size).expect("small files only");
    let mut bytes = vec![0; size + 1];
    let mut filled = 0;
    // A read that gives less than there is room for has met the end, so a second one would only say so.
    while filled < size || size == 0 && filled == 0 {
        match data.read(&mut bytes[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

/// Says that a file will be read from its beginning to its end, so that the disk begins now and goes on in large pieces.
fn announce(file: &File) {
    // It only makes things faster; some file systems do not have it.
    for (length, advice) in [(None, Advice::Sequential), (Some(BEGINNING), Advice::WillNeed)] {
        if let Err(error) = rustix::fs::fadvise(file, 0, length, advice) {
            tracing::trace!(%error, "the kernel takes no advice about a file");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::tests::fixture;

    #[test]
    fn changes_keep_their_order_and_errors_their_place() {
        let fixture = fixture();
        let mut changes: Vec<Change> = (0..1000)
            .map(|number| match number % 7 {
                0 => Change::Removed { path: format!("gone-{number}").into() },
                _ => fixture.file(&format!("{number}"), format!("{number}").repeat(number).as_bytes()),
            })
            .collect();
        let large = vec![7; SMALL_BYTES as usize + 1];
        changes.insert(500, fixture.file("large", &large));
        let given = changes.iter().cloned().map(Ok).chain([Err(io::ErrorKind::InvalidData.into())]);
        let mut ahead = Ahead::new(given, &fixture.tree);
        for expected in &changes {
            let (change, ready) = ahead.next().expect("there are more").expect("listed");
            assert_eq!(&change, expected);
            match (own_file(&change), ready.map(|ready| ready.expect("readable").content)) {
                (None, None) => {}
                (Some((path, _)), Some(Content::Open(..))) => assert_eq!(path, Path::new("large")),
                (Some((path, _)), Some(Content::Whole(bytes))) => {
                    let text = path.to_str().expect("text");
                    assert_eq!(bytes, text.repeat(text.parse().expect("a number")).as_bytes());
                }
                _ => panic!("{change:?}"),
            }
        }
        assert_eq!(ahead.next().expect("the error").err().map(|error| error.kind()), Some(io::ErrorKind::InvalidData));
        assert!(ahead.next().is_none());
    }

    #[test]
    fn a_file_with_other_bytes_than_listed_is_noticed() {
        let fixture = fixture();
        for (listed, now) in [("", "x"), ("x", ""), ("four", "three"), ("three", "four")] {
            let change = fixture.file("file", listed.as_bytes());
            fixture.file("file", now.as_bytes());
            let (path, size) = own_file(&change).expect("a file");
            match read(fixture.tree.file(path), size, path) {
                Err(LayerError::Changed { expected, actual, .. }) => {
                    assert_eq!((expected, actual), (listed.len() as u64, now.len() as u64));
                }
                _ => panic!("{listed:?} became {now:?}"),
            }
        }
    }
}
