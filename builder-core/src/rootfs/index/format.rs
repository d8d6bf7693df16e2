//! The form in which an index lies on disk.
//!
//! After the line [`MAGIC`] one zstd frame with a checksum. In it, entry after entry: a byte for the kind, then the fields of
//! [`IndexEntry`] in their order, coded as [`crate::spool`] does it; what may be missing has a byte 0 or 1 before it. A byte [`END`] comes last: an index without it is not whole.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::rootfs::{TarEntry, TarKind};
use crate::spool::{Fields, bytes, number, signed};

/// First bytes of an index: the form and its version.
const MAGIC: &[u8] = b"slipway index 2\n";

/// Stands where the next entry's kind would.
const END: u8 = 0xff;

/// zstd level: an index is written once for each layer, at no cost that shows, and is a tenth of what it describes.
const LEVEL: i32 = 1;

/// One entry of a layer's tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// Kind.
    pub kind: TarKind,
    /// Name as written: may be absolute, hold `..`, or end in `/`.
    pub name: OsString,
    /// Text of a symbolic link or name of a hard link's target.
    pub link: OsString,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Device numbers of devices.
    pub device: (u32, u32),
    /// Length of the file in bytes, holes included.
    pub size: u64,
    /// Value of `security.capability`.
    pub capability: Option<Vec<u8>>,
    /// The bytes of the file, of those few that are kept.
    pub content: Option<Vec<u8>>,
    /// Hash of the bytes of the file, where somebody may want to compare it with another one.
    pub hash: Option<blake3::Hash>,
}

impl IndexEntry {
    /// What an index keeps of an entry, without content.
    pub(in crate::rootfs) fn of(entry: &TarEntry) -> Self {
        let capability = entry.xattrs.iter().find(|(name, _)| name == "security.capability");
        Self {
            kind: entry.kind,
            name: entry.name.clone(),
            link: entry.link.clone(),
            mode: entry.mode,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            device: entry.device,
            size: entry.size,
            capability: capability.map(|(_, value)| value.clone()),
            content: None,
            hash: None,
        }
    }

    /// Whether an index keeps the content of this file: it may be where names of users are looked up.
    pub fn keeps_content(&self) -> bool {
        let path = super::super::clean(&self.name);
        self.kind == TarKind::File
            && self.size <= super::KEPT_CONTENT_BYTES
            && (path.ends_with("etc/passwd") || path.ends_with("etc/group"))
    }
}

/// Writes an index.
pub struct IndexWriter<W: Write> {
    inner: zstd::Encoder<'static, W>,
    buffer: Vec<u8>,
}

impl<W: Write> std::fmt::Debug for IndexWriter<W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexWriter").finish_non_exhaustive()
    }
}

impl<W: Write> IndexWriter<W> {
    /// Begins an index.
    ///
    /// # Errors
    /// What `inner` says.
    pub fn new(mut inner: W) -> io::Result<Self> {
        inner.write_all(MAGIC)?;
        let mut inner = zstd::Encoder::new(inner, LEVEL)?;
        inner.include_checksum(true)?;
        Ok(Self { inner, buffer: Vec::new() })
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// What the writer below says.
    pub fn entry(&mut self, entry: &IndexEntry) -> io::Result<()> {
        let out = &mut self.buffer;
        out.clear();
        out.push(code(entry.kind));
        bytes(out, entry.name.as_bytes());
        bytes(out, entry.link.as_bytes());
        for value in [entry.mode, entry.uid, entry.gid] {
            number(out, value.into());
        }
        signed(out, entry.mtime.0);
        number(out, entry.mtime.1.into());
        number(out, entry.device.0.into());
        number(out, entry.device.1.into());
        number(out, entry.size);
        let hash = entry.hash.as_ref().map(|hash| &hash.as_bytes()[..]);
        for value in [entry.capability.as_deref(), entry.content.as_deref(), hash] {
            match value {
                None => out.push(0),
                Some(value) => {
                    out.push(1);
                    bytes(out, value);
                }
            }
        }
        self.inner.write_all(out)
    }

    /// Ends the index and gives the writer back.
    ///
    /// # Errors
    /// What the writer below says.
    pub fn finish(mut self) -> io::Result<W> {
        self.inner.write_all(&[END])?;
        self.inner.finish()
    }
}

/// Reads an index.
pub struct IndexReader<R: Read> {
    inner: io::BufReader<zstd::Decoder<'static, io::BufReader<R>>>,
    ended: bool,
}

impl<R: Read> std::fmt::Debug for IndexReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IndexReader").finish_non_exhaustive()
    }
}

/// Bytes of entries read at a time.
const READ_BYTES: usize = 64 * 1024;

impl<R: Read> IndexReader<R> {
    /// Begins at the first entry.
    ///
    /// # Errors
    /// `InvalidData` if it is no index of this version, or what `inner` says.
    pub fn new(mut inner: R) -> io::Result<Self> {
        let mut magic = [0; MAGIC.len()];
        inner.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(damaged());
        }
        Ok(Self { inner: io::BufReader::with_capacity(READ_BYTES, zstd::Decoder::new(inner)?), ended: false })
    }

    /// The next entry; `None` at the end.
    ///
    /// # Errors
    /// `InvalidData` for damage, or what the reader below says.
    pub fn next_entry(&mut self) -> io::Result<Option<IndexEntry>> {
        if self.ended {
            return Ok(None);
        }
        let byte = self.inner.byte()?;
        if byte == END {
            // The checksum of the frame is compared when its end is read.
            if io::copy(&mut self.inner, &mut io::sink())? > 0 {
                return Err(damaged());
            }
            self.ended = true;
            return Ok(None);
        }
        Ok(Some(IndexEntry {
            kind: kind(byte).ok_or_else(damaged)?,
            name: OsString::from_vec(self.inner.sized()?),
            link: OsString::from_vec(self.inner.sized()?),
            mode: self.inner.small()?,
            uid: self.inner.small()?,
            gid: self.inner.small()?,
            mtime: (self.inner.signed()?, self.inner.small()?),
            device: (self.inner.small()?, self.inner.small()?),
            size: self.inner.number()?,
            capability: self.optional()?,
            content: self.optional()?,
            hash: self
                .optional()?
                .map(|bytes| <[u8; blake3::OUT_LEN]>::try_from(bytes).map_err(|_| damaged()))
                .transpose()?
                .map(blake3::Hash::from_bytes),
        }))
    }

    fn optional(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.inner.byte()? {
            0 => Ok(None),
            1 => self.inner.sized().map(Some),
            _ => Err(damaged()),
        }
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the index is damaged")
}

const KINDS: [TarKind; 7] = [
    TarKind::File,
    TarKind::HardLink,
    TarKind::Symlink,
    TarKind::CharDevice,
    TarKind::BlockDevice,
    TarKind::Directory,
    TarKind::Fifo,
];

fn code(kind: TarKind) -> u8 {
    match kind {
        TarKind::File => 0,
        TarKind::HardLink => 1,
        TarKind::Symlink => 2,
        TarKind::CharDevice => 3,
        TarKind::BlockDevice => 4,
        TarKind::Directory => 5,
        TarKind::Fifo => 6,
    }
}

fn kind(code: u8) -> Option<TarKind> {
    KINDS.get(usize::from(code)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = Vec<IndexEntry>> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..40);
        let entry = (
            (0..7_usize, bytes(), bytes(), any::<[u32; 3]>(), any::<(i64, u32)>()),
            (any::<(u32, u32)>(), any::<u64>(), prop::option::of(bytes()), prop::option::of(bytes())),
            prop::option::of(any::<[u8; 32]>()),
        )
            .prop_map(
                |((kind, name, link, [mode, uid, gid], mtime), (device, size, capability, content), hash)| {
                    let (name, link) = (OsString::from_vec(name), OsString::from_vec(link));
                    let kind = KINDS[kind];
                    let hash = hash.map(blake3::Hash::from_bytes);
                    IndexEntry { kind, name, link, mode, uid, gid, mtime, device, size, capability, content, hash }
                },
            );
        prop::collection::vec(entry, 0..20)
    }

    fn write(entries: &[IndexEntry]) -> Vec<u8> {
        let mut writer = IndexWriter::new(Vec::new()).unwrap();
        for entry in entries {
            writer.entry(entry).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read(bytes: &[u8]) -> io::Result<Vec<IndexEntry>> {
        let mut reader = IndexReader::new(bytes)?;
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            found.push(entry);
        }
        Ok(found)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(entries in entries()) {
            prop_assert_eq!(read(&write(&entries)).unwrap(), entries);
        }

        #[test]
        fn damage_is_seen(entries in entries(), at in any::<prop::sample::Index>(), bit in 0..8_u8, cut in any::<bool>()) {
            let whole = write(&entries);
            let mut bytes = whole.clone();
            let at = at.index(bytes.len());
            if cut {
                bytes.truncate(at);
            } else {
                bytes[at] ^= 1 << bit;
            }
            // A header of a zstd frame has bits without a meaning, so some damage does none.
            prop_assert!(read(&bytes).map_or(true, |found| found == entries), "damage at {at} of {} was not seen", whole.len());
        }
    }
}
