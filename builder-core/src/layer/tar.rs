//! Changes and files → bytes of a tar, read straight into the buffers that are hashed and compressed.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;

use super::LayerError;
use super::ahead::{self, Content, Ready};
use super::entry::{Entry, EntryKind, TAR_BLOCK, padding};
use crate::rootfs::index::{IndexEntry, IndexStep, MadeFile, Opened, Passing, Recorder};
use crate::rootfs::{CAPABILITY, FileKind, Metadata, Rootfs, TarKind, View};
use crate::snapshot::Change;

/// Takes bytes into buffers of its own, so that files are read to where they are needed.
pub trait Sink {
    /// Room for more bytes; never empty.
    ///
    /// # Errors
    /// Whatever stopped the sink.
    fn spare(&mut self) -> Result<&mut [u8], LayerError>;

    /// Says that the first `bytes` of the room are filled.
    fn advance(&mut self, bytes: usize);

    /// Takes all of `bytes`.
    ///
    /// # Errors
    /// Whatever stopped the sink.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), LayerError> {
        while !bytes.is_empty() {
            let room = self.spare()?;
            let length = room.len().min(bytes.len());
            room[..length].copy_from_slice(&bytes[..length]);
            self.advance(length);
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// Takes `count` zeros.
    ///
    /// # Errors
    /// Whatever stopped the sink.
    fn zeros(&mut self, mut count: u64) -> Result<(), LayerError> {
        while count > 0 {
            let room = self.spare()?;
            let length = usize::try_from(count).map_or(room.len(), |count| count.min(room.len()));
            room[..length].fill(0);
            self.advance(length);
            count -= length as u64;
        }
        Ok(())
    }
}

/// A [`Sink`] in front of a plain writer.
#[derive(Debug)]
pub struct WriteSink<W> {
    inner: W,
    buffer: Box<[u8]>,
    filled: usize,
}

/// Bytes that [`WriteSink`] collects; one write of this size costs less than copying it.
const WRITE_SINK_BYTES: usize = 128 * 1024;

impl<W: io::Write> WriteSink<W> {
    /// Collects bytes for `inner`.
    pub fn new(inner: W) -> Self {
        Self { inner, buffer: vec![0; WRITE_SINK_BYTES].into(), filled: 0 }
    }

    /// Writes what is left and gives the writer back.
    ///
    /// # Errors
    /// [`LayerError::Write`]
    pub fn finish(mut self) -> Result<W, LayerError> {
        self.drain()?;
        self.inner.flush().map_err(LayerError::Write)?;
        Ok(self.inner)
    }

    fn drain(&mut self) -> Result<(), LayerError> {
        self.inner.write_all(&self.buffer[..self.filled]).map_err(LayerError::Write)?;
        self.filled = 0;
        Ok(())
    }
}

impl<W: io::Write> Sink for WriteSink<W> {
    fn spare(&mut self) -> Result<&mut [u8], LayerError> {
        if self.filled == self.buffer.len() {
            self.drain()?;
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn advance(&mut self, bytes: usize) {
        self.filled += bytes;
    }
}

impl<S: Sink> Sink for &mut S {
    fn spare(&mut self) -> Result<&mut [u8], LayerError> {
        (**self).spare()
    }

    fn advance(&mut self, bytes: usize) {
        (**self).advance(bytes);
    }
}

/// What a tar writer reads of a tree.
pub trait Tree {
    /// Finds a regular file; asked in the order of the changes.
    ///
    /// # Errors
    /// What the kernel says.
    fn file<'a>(&'a self, path: &Path) -> io::Result<Box<dyn TreeFile + 'a>>;

    /// Text of a symbolic link.
    ///
    /// # Errors
    /// What the kernel says.
    fn read_link(&self, path: &Path) -> io::Result<PathBuf>;

    /// The extended attribute `security.capability` of a regular file that is not read.
    ///
    /// # Errors
    /// What the kernel says.
    fn capability(&self, path: &Path) -> io::Result<Option<Vec<u8>>>;
}

/// A regular file of a tree, which any thread may read.
pub trait TreeFile: Send {
    /// Opens the content.
    ///
    /// # Errors
    /// What the kernel says.
    fn open(&self) -> io::Result<Opened>;

    /// The extended attribute `security.capability`; `file` is the content if it is one.
    ///
    /// # Errors
    /// What the kernel says.
    fn capability(&self, file: Option<&File>) -> io::Result<Option<Vec<u8>>>;

    /// Whether it is still what it was when it was opened, now that it was read.
    ///
    /// # Errors
    /// That it is not.
    fn check(&self, file: &File) -> io::Result<()> {
        let _ = file;
        Ok(())
    }

    /// What is to see the bytes while they are read, if anybody wants to.
    fn passing(&self) -> Option<Box<dyn Passing + '_>> {
        None
    }
}

impl Tree for IndexStep<'_> {
    fn file<'a>(&'a self, path: &Path) -> io::Result<Box<dyn TreeFile + 'a>> {
        Ok(Box::new(self.made_file(path)?))
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        View::read_link(self, path)
    }

    fn capability(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        Self::capability(self, path)
    }
}

impl TreeFile for MadeFile<'_> {
    fn open(&self) -> io::Result<Opened> {
        Self::open(self)
    }

    fn capability(&self, file: Option<&File>) -> io::Result<Option<Vec<u8>>> {
        Self::capability(self, file)
    }

    fn check(&self, file: &File) -> io::Result<()> {
        Self::check(self, file)
    }

    fn passing(&self) -> Option<Box<dyn Passing + '_>> {
        Self::passing(self)
    }
}

impl Tree for Rootfs {
    fn file<'a>(&'a self, path: &Path) -> io::Result<Box<dyn TreeFile + 'a>> {
        Ok(Box::new(FileIn { tree: self, path: path.to_owned() }))
    }

    fn read_link(&self, path: &Path) -> io::Result<PathBuf> {
        Self::read_link(self, path)
    }

    fn capability(&self, path: &Path) -> io::Result<Option<Vec<u8>>> {
        self.xattr(path, OsStr::new(CAPABILITY))
    }
}

/// A file of a tree on disk.
struct FileIn<'a> {
    tree: &'a Rootfs,
    path: PathBuf,
}

impl TreeFile for FileIn<'_> {
    fn open(&self) -> io::Result<Opened> {
        self.tree.open_file(&self.path).map(Opened::File)
    }

    fn capability(&self, file: Option<&File>) -> io::Result<Option<Vec<u8>>> {
        match file {
            Some(file) => self.tree.xattr_of(file, OsStr::new(CAPABILITY)),
            None => Tree::capability(self.tree, &self.path),
        }
    }
}

/// Modification times of entries, in seconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Times {
    /// Those of the files.
    #[default]
    Keep,
    /// Those of the files, but none later than this.
    Clamp(i64),
    /// This one for all.
    Set(i64),
}

impl Times {
    /// The time to write for a file with `mtime`.
    pub fn apply(self, mtime: i64) -> i64 {
        match self {
            Self::Keep => mtime,
            Self::Clamp(latest) => mtime.min(latest),
            Self::Set(time) => time,
        }
    }
}

/// Writes tar entries into a [`Sink`].
pub struct TarWriter<S> {
    sink: S,
    header: Vec<u8>,
    entries: u64,
    times: Times,
    index: Option<Recorder>,
}

impl<S: Sink> TarWriter<S> {
    /// Writes into `sink`.
    pub fn new(sink: S, times: Times) -> Self {
        Self { sink, header: Vec::new(), entries: 0, times, index: None }
    }

    /// Notes in `index` what is written from now on. Only changes may be.
    pub fn noting(self, index: Option<Recorder>) -> Self {
        Self { index, ..self }
    }

    /// What was noted.
    pub fn take_index(&mut self) -> Option<Recorder> {
        self.index.take()
    }

    /// Entries so far.
    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// The sink, for the content of an entry whose header is written. The caller pads it.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Writes what `change` of `tree` is in a layer.
    ///
    /// # Errors
    /// [`LayerError`]
    pub fn change(&mut self, change: &Change, tree: &dyn Tree) -> Result<(), LayerError> {
        self.change_below(Path::new(""), change, tree)
    }

    /// As [`TarWriter::change`], with the name in the tar below the directory `prefix`.
    ///
    /// # Errors
    /// [`LayerError`]
    pub fn change_below(&mut self, prefix: &Path, change: &Change, tree: &dyn Tree) -> Result<(), LayerError> {
        let file = ahead::own_file(change).map(|(path, size)| ahead::read(tree.file(path), size, path)).transpose()?;
        self.ready(prefix, change, file, tree)
    }

    /// As [`TarWriter::change_below`], with the file of the change if it has one of its own.
    pub(super) fn ready(
        &mut self,
        prefix: &Path,
        change: &Change,
        file: Option<Ready<'_>>,
        tree: &dyn Tree,
    ) -> Result<(), LayerError> {
        match change {
            Change::Entry { path, metadata, link_to } => {
                self.file(prefix, path, metadata, link_to.as_deref(), file, tree)
            }
            Change::Removed { path } => self.whiteout(&prefix.join(path)),
        }
    }

    /// Writes an entry without content, or the header of one whose content follows.
    ///
    /// # Errors
    /// [`LayerError`]
    pub fn header(&mut self, entry: &Entry<'_>) -> Result<(), LayerError> {
        self.header.clear();
        entry.encode(&mut self.header);
        self.sink.write(&self.header)?;
        self.entries += 1;
        Ok(())
    }

    /// Writes a regular file whose content is at hand.
    ///
    /// # Errors
    /// [`LayerError`]
    pub fn bytes(&mut self, entry: &Entry<'_>, content: &[u8]) -> Result<(), LayerError> {
        debug_assert_eq!(entry.kind, EntryKind::File(content.len() as u64));
        self.header(entry)?;
        self.sink.write(content)?;
        self.sink.zeros(padding(content.len() as u64) as u64)
    }

    /// Ends the tar with two blocks of zeros and gives the sink back.
    ///
    /// # Errors
    /// [`LayerError`]
    pub fn finish(mut self) -> Result<S, LayerError> {
        self.sink.zeros(2 * TAR_BLOCK as u64)?;
        Ok(self.sink)
    }

    /// A deleted name (checklist T-05; image-spec, layer.md, "Whiteouts").
    fn whiteout(&mut self, path: &Path) -> Result<(), LayerError> {
        let path = path.as_os_str().as_bytes();
        let split = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let name = [&path[..split], b".wh.", &path[split..]].concat();
        let entry =
            Entry { name: &name, kind: EntryKind::File(0), mode: 0, uid: 0, gid: 0, mtime: 0, capability: None };
        self.note(&entry, None);
        self.header(&entry)
    }

    fn file(
        &mut self,
        prefix: &Path,
        path: &Path,
        metadata: &Metadata,
        link_to: Option<&Path>,
        ready: Option<Ready<'_>>,
        tree: &dyn Tree,
    ) -> Result<(), LayerError> {
        let read_error = |source| LayerError::Read { path: path.to_owned(), source };
        let link;
        let target = link_to.map(|target| prefix.join(target));
        let name = prefix.join(path);
        let kind = match metadata.kind {
            FileKind::Socket => return Ok(()),
            FileKind::File => EntryKind::File(metadata.size),
            FileKind::Directory => EntryKind::Directory,
            FileKind::Symlink => {
                link = tree.read_link(path).map_err(read_error)?;
                EntryKind::Symlink(link.as_os_str().as_bytes())
            }
            FileKind::Fifo => EntryKind::Fifo,
            FileKind::CharDevice => EntryKind::CharDevice(metadata.device.0, metadata.device.1),
            FileKind::BlockDevice => EntryKind::BlockDevice(metadata.device.0, metadata.device.1),
        };
        let (capability, content) = match ready {
            Some(Ready { capability, content }) => (capability, Some(content)),
            None if metadata.kind == FileKind::File => {
                (tree.capability(path).map_err(read_error)?.map(portable_capability), None)
            }
            None => (None, None),
        };
        let kind = match &target {
            Some(target) => EntryKind::HardLink(target.as_os_str().as_bytes()),
            None => kind,
        };
        let entry = Entry {
            name: name.as_os_str().as_bytes(),
            kind,
            mode: metadata.mode,
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: self.times.apply(metadata.mtime.0),
            capability: capability.as_deref(),
        };
        let whole = match &content {
            Some(Content::Whole(bytes)) => Some(&**bytes),
            _ => None,
        };
        self.note(&entry, whole);
        self.header(&entry)?;
        match content {
            Some(Content::Whole(bytes)) => {
                self.sink.write(&bytes)?;
                self.sink.zeros(padding(metadata.size) as u64)
            }
            Some(Content::Open(Opened::File(file), of)) => {
                let mut passing = of.passing();
                self.content(&file, metadata.size, path, passing.as_deref_mut())?;
                of.check(&file).map_err(read_error)?;
                if let Some(passing) = passing {
                    passing.whole(of.capability(Some(&file)).map_err(read_error)?);
                }
                Ok(())
            }
            Some(Content::Open(Opened::Stream(mut stream), _)) => self.stream(&mut stream, metadata.size, path),
            None => Ok(()),
        }
    }

    /// Notes an entry, with its content if that is at hand and an index keeps it: such files are small.
    fn note(&mut self, entry: &Entry<'_>, content: Option<&[u8]>) {
        let Some(index) = &mut self.index else { return };
        let (kind, link, size, device) = match entry.kind {
            EntryKind::File(size) => (TarKind::File, &[][..], size, (0, 0)),
            EntryKind::Directory => (TarKind::Directory, &[][..], 0, (0, 0)),
            EntryKind::Symlink(text) => (TarKind::Symlink, text, 0, (0, 0)),
            EntryKind::HardLink(target) => (TarKind::HardLink, target, 0, (0, 0)),
            EntryKind::Fifo => (TarKind::Fifo, &[][..], 0, (0, 0)),
            EntryKind::CharDevice(major, minor) => (TarKind::CharDevice, &[][..], 0, (major, minor)),
            EntryKind::BlockDevice(major, minor) => (TarKind::BlockDevice, &[][..], 0, (major, minor)),
        };
        let mut noted = IndexEntry {
            kind,
            name: OsStr::from_bytes(entry.name).to_owned(),
            link: OsStr::from_bytes(link).to_owned(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: (entry.mtime, 0),
            device,
            size,
            capability: entry.capability.map(<[u8]>::to_vec),
            content: None,
            hash: content.and_then(|content| index.hash(content)),
        };
        if noted.keeps_content() {
            noted.content = content.map(<[u8]>::to_vec);
        }
        index.add(&noted);
    }

    /// The bytes of a stream that must be exactly `size` long.
    fn stream(&mut self, stream: &mut dyn Read, size: u64, path: &Path) -> Result<(), LayerError> {
        let copied = copy(&mut self.sink, stream, size, size.saturating_add(1), path, None)?;
        if copied != size {
            return Err(LayerError::Changed { path: path.to_owned(), expected: size, actual: copied });
        }
        self.sink.zeros(padding(size) as u64)
    }

    /// The bytes of a file that must be exactly `size` long; holes are not read.
    fn content(
        &mut self,
        mut file: &File,
        size: u64,
        path: &Path,
        mut passing: Option<&mut (dyn Passing + '_)>,
    ) -> Result<(), LayerError> {
        let read_error = |source| LayerError::Read { path: path.to_owned(), source };
        let mut position = 0;
        // st_blocks counts 512 bytes whatever the file system's own blocks are (inode(7)).
        let sparse = {
            let status = rustix::fs::fstat(file).map_err(|error| read_error(error.into()))?;
            u64::try_from(status.st_blocks).unwrap_or(0) < size / 512
        };
        while sparse && position < size {
            let data = match rustix::fs::seek(file, SeekFrom::Data(position)) {
                Ok(data) => data.min(size),
                Err(rustix::io::Errno::NXIO) => size, // only a hole is left
                Err(_) => break,                      // this file system has no such seek: read it all
            };
            // Bytes behind the end do not count, but the file must still be that long.
            self.sink.zeros(data - position)?;
            if let Some(passing) = &mut passing {
                passing.zeros(data - position);
            }
            let hole = match data {
                end if end == size => size,
                data => rustix::fs::seek(file, SeekFrom::Hole(data)).map_or(size, |hole| hole.min(size)),
            };
            rustix::fs::seek(file, SeekFrom::Start(data)).map_err(|error| read_error(error.into()))?;
            let copied = copy(&mut self.sink, &mut file, hole - data, hole - data, path, passing.as_deref_mut())?;
            position = data + copied;
            if copied != hole - data {
                return Err(LayerError::Changed { path: path.to_owned(), expected: size, actual: position });
            }
        }
        if sparse && position < size {
            rustix::fs::seek(file, SeekFrom::Start(position)).map_err(|error| read_error(error.into()))?;
        }
        // One byte more than is left: that it does not come says that the file is not longer.
        let rest = size - position;
        let copied = copy(&mut self.sink, &mut file, rest, rest + 1, path, passing)?;
        let length = || rustix::fs::fstat(file).map_or(0, |status| u64::try_from(status.st_size).unwrap_or(0));
        if copied != rest || (sparse && length() != size) {
            let actual = if copied < rest { position + copied } else { length() };
            return Err(LayerError::Changed { path: path.to_owned(), expected: size, actual });
        }
        self.sink.zeros(padding(size) as u64)
    }
}

/// Copies `keep` bytes into the sink, reading up to `limit` of them; returns how many came. More than `keep` are
/// counted but not kept. `passing` sees those that are kept.
fn copy(
    sink: &mut impl Sink,
    from: &mut dyn Read,
    keep: u64,
    limit: u64,
    path: &Path,
    mut passing: Option<&mut (dyn Passing + '_)>,
) -> Result<u64, LayerError> {
    let mut copied = 0;
    let mut extra = [0];
    while copied < limit {
        let room = if copied < keep { sink.spare()? } else { &mut extra[..] };
        let wanted = usize::try_from(limit - copied).map_or(room.len(), |left| left.min(room.len()));
        let read = match from.read(&mut room[..wanted]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(LayerError::Read { path: path.to_owned(), source }),
        };
        let kept = (read as u64).min(keep.saturating_sub(copied));
        if let Some(passing) = &mut passing {
            passing.bytes(&room[..kept as usize]);
        }
        copied += read as u64;
        sink.advance(kept as usize);
    }
    Ok(copied)
}

/// A capability as an image may carry it: revision 3 names the user namespace's root on this machine
/// (capabilities(7), "Namespaced file capabilities"); without that it is revision 2.
pub(super) fn portable_capability(value: Vec<u8>) -> Vec<u8> {
    const REVISION_MASK: u32 = 0xff00_0000;
    const REVISION_2: u32 = 0x0200_0000;
    const REVISION_3: u32 = 0x0300_0000;
    match value.first_chunk::<4>().map(|magic| u32::from_le_bytes(*magic)) {
        Some(magic) if magic & REVISION_MASK == REVISION_3 && value.len() == 24 => {
            let mut portable = (magic & !REVISION_MASK | REVISION_2).to_le_bytes().to_vec();
            portable.extend_from_slice(&value[4..20]);
            portable
        }
        _ => value,
    }
}
