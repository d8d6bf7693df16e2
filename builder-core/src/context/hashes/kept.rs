//! Records of files in the order of their paths, which lie on the disk: those of earlier builds in a file with a name, those of this
//! build in one without.
//!
//! ```text
//! "slipway hashes 3\n"
//! per file: path, size, mtime, ctime, inode as `spool` writes paths and numbers, 32 bytes BLAKE3, a byte that says whether
//!           security.capability follows, its bytes, a byte for the age
//! marks: how many; per mark the position of a record and its path
//! u64 position of the marks
//! SHA-256 of all of the above
//! ```
//!
//! The last number is little endian. Each record behind a mark has its whole path. The file is replaced as a whole, so the last
//! of several builds wins; a file that is cut, of another version or otherwise wrong counts as missing. `age` is the number of
//! times it was written without the file being asked for.

#[cfg(test)]
mod tests;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::FileHash;
use crate::context::files::Found;
use crate::oci::Hasher;
use crate::rootfs::path_order;
use crate::spool::{Fields, Paths, Place, Spool, bytes, number, signed};

const MAGIC: &[u8] = b"slipway hashes 3\n";

/// Records that were not asked for so many times are dropped: steps of other Dockerfiles over the same context come
/// round again, files of last year do not.
const MAX_AGE: u8 = 16;

/// Files whose hashes are kept; those of a larger context are partly read again. A record takes about 90 bytes of the disk.
const MAX_RECORDS: u64 = 2_000_000;

/// Records from one mark to the next.
const MARK_EVERY: u64 = 256;

/// Runs of this build from which on they are made one: each that is read takes a buffer.
const MAX_RUNS: usize = 32;

/// One read of a kept file, in bytes.
const READ_BYTES: usize = 32 * 1024;

/// What is known of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Record {
    size: u64,
    mtime: (i64, u32),
    ctime: (i64, u32),
    inode: u64,
    hash: FileHash,
    age: u8,
}

impl Record {
    fn new(found: &Found, hash: FileHash) -> Self {
        let metadata = &found.metadata;
        let (size, mtime, inode) = (metadata.size, metadata.mtime, metadata.inode);
        Self { size, mtime, ctime: found.ctime, inode, hash, age: 0 }
    }

    fn is_of(&self, found: &Found) -> bool {
        let metadata = &found.metadata;
        self.size == metadata.size
            && self.mtime == metadata.mtime
            && self.ctime == found.ctime
            && self.inode == metadata.inode
    }

    fn write(&self, out: &mut Vec<u8>) {
        number(out, self.size);
        for (seconds, nanoseconds) in [self.mtime, self.ctime] {
            signed(out, seconds);
            number(out, nanoseconds.into());
        }
        number(out, self.inode);
        out.extend_from_slice(self.hash.data.as_bytes());
        out.push(self.hash.capability.is_some().into());
        if let Some(capability) = &self.hash.capability {
            bytes(out, capability);
        }
        out.push(self.age);
    }

    fn read(input: &mut impl BufRead) -> io::Result<Self> {
        let size = input.number()?;
        let mtime = (input.signed()?, input.small()?);
        let ctime = (input.signed()?, input.small()?);
        let inode = input.number()?;
        let mut data = [0; 32];
        input.read_exact(&mut data)?;
        let capability = if input.byte()? == 0 { None } else { Some(input.sized()?) };
        let hash = FileHash { data: blake3::Hash::from_bytes(data), capability };
        Ok(Self { size, mtime, ctime, inode, hash, age: input.byte()? })
    }
}

/// Records in order, somewhere among bytes.
#[derive(Debug, Default)]
struct Run {
    count: u64,
    marks: Vec<Mark>,
    last: Vec<u8>,
}

#[derive(Debug)]
struct Mark {
    position: u64,
    path: Box<[u8]>,
}

fn order(a: &[u8], b: &[u8]) -> Ordering {
    path_order(Path::new(OsStr::from_bytes(a)), Path::new(OsStr::from_bytes(b)))
}

/// Writes a run.
#[derive(Debug, Default)]
struct Writer {
    run: Run,
    paths: Paths,
    bytes: Vec<u8>,
}

impl Writer {
    /// The bytes of the next record, which are at `position`.
    fn record(&mut self, position: u64, path: &[u8], record: &Record) -> &[u8] {
        if self.run.count.is_multiple_of(MARK_EVERY) {
            self.paths.restart();
            self.run.marks.push(Mark { position, path: path.into() });
        }
        self.run.count += 1;
        path.clone_into(&mut self.run.last);
        self.bytes.clear();
        self.paths.write(&mut self.bytes, path);
        record.write(&mut self.bytes);
        &self.bytes
    }
}

/// Reads a run from a mark on.
struct Reader<'a> {
    input: Box<dyn BufRead + 'a>,
    paths: Paths,
    /// Number of the record that was read last, plus one.
    index: u64,
    count: u64,
}

impl Reader<'_> {
    fn next(&mut self) -> io::Result<Option<(&[u8], Record)>> {
        if self.index >= self.count {
            return Ok(None);
        }
        if self.index.is_multiple_of(MARK_EVERY) {
            self.paths.restart();
        }
        self.index += 1;
        self.paths.read(&mut self.input)?;
        let record = Record::read(&mut self.input)?;
        Ok(Some((self.paths.last(), record)))
    }
}

/// Where the bytes of a run are.
trait Source {
    fn bytes_from(&self, position: u64) -> Box<dyn BufRead + '_>;
}

impl Source for Spool {
    fn bytes_from(&self, position: u64) -> Box<dyn BufRead + '_> {
        Box::new(self.read_from(position))
    }
}

impl Source for File {
    fn bytes_from(&self, position: u64) -> Box<dyn BufRead + '_> {
        Box::new(BufReader::with_capacity(READ_BYTES, At { file: self, at: position }))
    }
}

struct At<'a> {
    file: &'a File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buffer, self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

impl Run {
    /// Reads from a mark on.
    fn reader<'a>(&self, source: &'a dyn Source, mark: usize) -> Reader<'a> {
        let position = self.marks.get(mark).map_or(0, |mark| mark.position);
        let index = mark as u64 * MARK_EVERY;
        Reader { input: source.bytes_from(position), paths: Paths::default(), index, count: self.count }
    }

    /// Calls `found` with those of the wanted paths (in order) that it has: position in `wanted`, number of the record.
    fn find<'p>(
        &self,
        source: &dyn Source,
        wanted: impl Iterator<Item = (usize, &'p [u8])>,
        found: &mut dyn FnMut(usize, u64, &Record),
    ) -> io::Result<()> {
        let mut reader: Option<Reader<'_>> = None;
        let mut current: Option<(Vec<u8>, Record)> = None;
        for (at, path) in wanted {
            let after = self.marks.partition_point(|mark| order(&mark.path, path).is_le());
            let Some(mark) = after.checked_sub(1) else { continue };
            if reader.as_ref().is_none_or(|reader| reader.index <= mark as u64 * MARK_EVERY) {
                reader = Some(self.reader(source, mark));
                current = None;
            }
            let Some(reader) = &mut reader else { continue };
            while current.as_ref().is_none_or(|(known, _)| order(known, path).is_lt()) {
                match reader.next()? {
                    Some((path, record)) => current = Some((path.to_vec(), record)),
                    None => break,
                }
            }
            if let Some((_, record)) = current.as_ref().filter(|(known, _)| known == path) {
                found(at, reader.index - 1, record);
            }
        }
        Ok(())
    }
}

/// All that is known of one tree.
#[derive(Debug)]
pub(super) struct Kept {
    /// What earlier builds kept, and which of its records were asked for.
    old: Option<(File, Run)>,
    asked: Vec<u64>,
    place: Place,
    /// Records of this build, in several runs.
    new: Spool,
    runs: Vec<Run>,
    /// The run that is being written.
    open: Writer,
    changed: bool,
}

impl Kept {
    /// What the file at `path` holds. New records go to a file in `place`.
    pub(super) fn open(path: &Path, place: Place) -> Self {
        let old = File::open(path).and_then(|file| Ok((read_marks(&file)?, file)));
        let old = match old {
            Ok((run, file)) => Some((file, run)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "the kept hashes are unusable; files will be read again");
                None
            }
        };
        let words = old.as_ref().map_or(0, |(_, run)| run.count.div_ceil(64));
        let asked = vec![0; usize::try_from(words).unwrap_or(0)];
        Self { old, asked, ..Self::new(place) }
    }

    /// Nothing that an earlier build kept. New records go to a file in `place`.
    pub(super) fn new(place: Place) -> Self {
        let (new, open) = (Spool::new(place.clone()), Writer::default());
        Self { old: None, asked: Vec::new(), place, new, runs: Vec::new(), open, changed: false }
    }

    /// Known hashes of `files`, in their order.
    pub(super) fn known(&mut self, files: &[(PathBuf, Found)]) -> io::Result<Vec<Option<FileHash>>> {
        let order = in_order(files);
        let mut known: Vec<Option<FileHash>> = vec![None; files.len()];
        let path_of = |at: &usize| (*at, files[*at].0.as_os_str().as_bytes());
        for run in self.new_runs() {
            run.find(&self.new, order.iter().map(path_of), &mut |at, _, record| {
                if record.is_of(&files[at].1) {
                    known[at] = Some(record.hash.clone());
                }
            })?;
        }
        if let Some((file, run)) = &self.old {
            let asked = &mut self.asked;
            let unknown: Vec<usize> = order.into_iter().filter(|at| known[*at].is_none()).collect();
            run.find(file, unknown.iter().map(path_of), &mut |at, index, record| {
                if record.is_of(&files[at].1) {
                    known[at] = Some(record.hash.clone());
                    if let Some(word) = asked.get_mut(usize::try_from(index / 64).unwrap_or(usize::MAX)) {
                        *word |= 1 << (index % 64);
                    }
                }
            })?;
        }
        Ok(known)
    }

    /// Keeps the hashes that there are, of files that `settled` says can be told from later ones.
    pub(super) fn keep(
        &mut self,
        files: &[(PathBuf, Found)],
        hashes: &[Option<FileHash>],
        settled: impl Fn(&Found) -> bool,
    ) -> io::Result<()> {
        for at in in_order(files) {
            let (path, found) = &files[at];
            let Some(hash) = hashes[at].as_ref().filter(|_| settled(found)) else { continue };
            let path = path.as_os_str().as_bytes();
            if self.open.run.count > 0 && order(&self.open.run.last, path).is_ge() {
                self.runs.push(std::mem::take(&mut self.open).run);
            }
            let bytes = self.open.record(self.new.len(), path, &Record::new(found, hash.clone()));
            self.new.append(bytes)?;
            self.changed = true;
        }
        if self.runs.len() > MAX_RUNS { self.join_runs() } else { Ok(()) }
    }

    /// The runs of this build, later ones behind earlier ones.
    fn new_runs(&self) -> impl Iterator<Item = &Run> {
        self.runs.iter().chain([&self.open.run])
    }

    /// Makes one run of all that are new.
    fn join_runs(&mut self) -> io::Result<()> {
        let mut joined = Spool::new(self.place.clone());
        let mut writer = Writer::default();
        merge(self.new_runs().map(|run| run.reader(&self.new, 0)).collect(), &mut |path, record, _| {
            joined.append(writer.record(joined.len(), path, record))?;
            Ok(true)
        })?;
        (self.new, self.runs, self.open) = (joined, Vec::new(), writer);
        Ok(())
    }

    /// Replaces the file at `path`, if there is anything new.
    pub(super) fn save(&mut self, path: &Path) -> io::Result<()> {
        if !std::mem::take(&mut self.changed) {
            return Ok(());
        }
        let directory = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(directory)?;
        let file = tempfile::NamedTempFile::new_in(directory)?;
        self.write(file.as_file())?;
        file.persist(path)?;
        Ok(())
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let mut out = Hashed { inner: BufWriter::new(file), hasher: Hasher::default(), position: 0 };
        out.write_all(MAGIC)?;
        let old = self.old.as_ref().map(|(file, run)| run.reader(file, 0));
        let readers: Vec<_> = old.into_iter().chain(self.new_runs().map(|run| run.reader(&self.new, 0))).collect();
        let has_old = self.old.is_some();
        let mut writer = Writer::default();
        merge(readers, &mut |path, record, (reader, index)| {
            let mut record = record.clone();
            if has_old && reader == 0 && !self.was_asked(index) {
                record.age = record.age.saturating_add(1);
            } else {
                record.age = 0;
            }
            if record.age <= MAX_AGE {
                let position = out.position;
                out.write_all(writer.record(position, path, &record))?;
            }
            Ok(writer.run.count < MAX_RECORDS)
        })?;
        let position = out.position;
        let mut footer = Vec::new();
        number(&mut footer, writer.run.count);
        number(&mut footer, writer.run.marks.len() as u64);
        for mark in &writer.run.marks {
            number(&mut footer, mark.position);
            bytes(&mut footer, &mark.path);
        }
        footer.extend_from_slice(&position.to_le_bytes());
        out.write_all(&footer)?;
        let Hashed { mut inner, hasher, .. } = out;
        inner.write_all(hasher.finish().as_bytes())?;
        inner.flush()
    }

    fn was_asked(&self, index: u64) -> bool {
        let word = self.asked.get(usize::try_from(index / 64).unwrap_or(usize::MAX));
        word.is_some_and(|word| word & (1 << (index % 64)) != 0)
    }
}

/// Positions of files in the order of their paths.
fn in_order(files: &[(PathBuf, Found)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..files.len()).collect();
    let by_path = |a: &usize, b: &usize| path_order(&files[*a].0, &files[*b].0);
    if !order.is_sorted_by(|a, b| by_path(a, b).is_le()) {
        order.sort_by(by_path);
    }
    order
}

type Visit<'a> = dyn FnMut(&[u8], &Record, (usize, u64)) -> io::Result<bool> + 'a;

/// Calls `visit` with all records in order, of those with one path the one of the last reader, with the number of the reader and of the
/// record in it, until it says that it is enough.
fn merge(mut readers: Vec<Reader<'_>>, visit: &mut Visit<'_>) -> io::Result<()> {
    /// A path that sorts as paths do.
    #[derive(PartialEq, Eq)]
    struct Path(Vec<u8>);
    impl Ord for Path {
        fn cmp(&self, other: &Self) -> Ordering {
            order(&self.0, &other.0)
        }
    }
    impl PartialOrd for Path {
        fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
            Some(self.cmp(other))
        }
    }
    let mut heads: BTreeMap<(Path, usize), Record> = BTreeMap::new();
    for (number, reader) in readers.iter_mut().enumerate() {
        if let Some((path, record)) = reader.next()? {
            heads.insert((Path(path.to_vec()), number), record);
        }
    }
    while let Some(((path, number), record)) = heads.pop_first() {
        let index = readers[number].index - 1;
        if let Some((path, record)) = readers[number].next()? {
            heads.insert((Path(path.to_vec()), number), record);
        }
        let again = heads.first_key_value().is_some_and(|((next, _), _)| *next == path);
        if !again && !visit(&path.0, &record, (number, index))? {
            break;
        }
    }
    Ok(())
}

/// Checks a file and reads its marks.
fn read_marks(mut file: &File) -> io::Result<Run> {
    let damaged = || io::Error::from(io::ErrorKind::InvalidData);
    let length = file.seek(SeekFrom::End(0))?;
    let content = length.checked_sub(32).ok_or_else(damaged)?;
    let mut hasher = Hasher::default();
    let mut buffer = vec![0; 4 * READ_BYTES];
    let mut input = file.bytes_from(0).take(content);
    let mut begun = false;
    loop {
        let read = input.read(&mut buffer)?;
        if read == 0 {
            break;
        }
        if !std::mem::replace(&mut begun, true) && !buffer[..read].starts_with(MAGIC) {
            return Err(damaged());
        }
        hasher.update(&buffer[..read]);
    }
    let mut checksum = [0; 32];
    file.read_exact_at(&mut checksum, content)?;
    if hasher.finish().as_bytes() != &checksum {
        return Err(damaged());
    }
    let mut position = [0; 8];
    file.read_exact_at(&mut position, content.checked_sub(8).ok_or_else(damaged)?)?;
    let mut input = file.bytes_from(u64::from_le_bytes(position));
    let count = input.number()?;
    let marks = (0..input.number()?).map(|_| Ok(Mark { position: input.number()?, path: input.sized()?.into() }));
    Ok(Run { count, marks: marks.collect::<io::Result<_>>()?, last: Vec::new() })
}

/// Hashes and counts what is written.
struct Hashed<W> {
    inner: W,
    hasher: Hasher,
    position: u64,
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf)?;
        self.hasher.update(&buf[..written]);
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}
