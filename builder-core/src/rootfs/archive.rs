//! Reading tar archives as a stream: ustar, GNU and PAX, without trust in anything they say.
//!
//! The `tar` crate is not used for reading: it splits PAX records at line ends, which tears binary attributes (a file
//! capability may hold the byte 0x0a), and reads long names of any length into memory.
//!
//! Where formats and readers disagree, the answer is that of Go's `archive/tar`, with which registries' images are
//! written and read: only regular files have data, whatever the size field says; PAX global headers are passed over;
//! GNU long names win over PAX paths.
//!
//! # Limitations
//! Multi-volume archives, volume labels and incremental dumps are errors.

use std::ffi::OsString;
use std::io::{self, BufRead, Read};
use std::os::unix::ffi::OsStringExt;

use super::pax::{Pax, PaxSparse, decimal};

/// Size of a header and unit of padding (POSIX.1-2017, pax, "ustar Interchange Format").
const BLOCK: usize = 512;

/// Largest long name, PAX header or sparse map in bytes; Go's reader has the same limit.
const SPECIAL_BYTES: u64 = 1 << 20;

/// What kind of file an entry stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TarKind {
    /// Regular file with data.
    File,
    /// Another name of an earlier entry.
    HardLink,
    /// Symbolic link.
    Symlink,
    /// Character device.
    CharDevice,
    /// Block device.
    BlockDevice,
    /// Directory.
    Directory,
    /// Named pipe.
    Fifo,
}

/// One entry, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TarEntry {
    /// Name as written: may be absolute, hold `..`, or end in `/`. Holds no NUL.
    pub name: OsString,
    /// Kind.
    pub kind: TarKind,
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
    /// Extended attributes by full name (PAX `SCHILY.xattr.`).
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    /// Where the data of a sparse file goes: offset and length; the data follows without gaps.
    pub sparse: Option<Vec<(u64, u64)>>,
}

/// What is wrong with an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TarProblem {
    /// The header's bytes do not add up.
    #[error("the header's checksum is wrong")]
    Checksum,
    /// A number is not octal, or does not fit.
    #[error("the header's field `{0}` is not a number that fits")]
    Number(&'static str),
    /// A PAX record is malformed.
    #[error("a PAX record is malformed")]
    Pax,
    /// A name holds a NUL byte.
    #[error("a name holds a NUL byte")]
    Nul,
    /// A long name or extended header is too long.
    #[error("an extended header is longer than 1 MiB")]
    SpecialTooLong,
    /// A long name or extended header is followed by nothing.
    #[error("an extended header is not followed by an entry")]
    Dangling,
    /// The map of a sparse file contradicts itself.
    #[error("the map of a sparse file is malformed")]
    Sparse,
    /// The kind of entry is not known.
    #[error("entries of type `{}` are not supported", .0.escape_ascii())]
    Kind(u8),
}

/// Why an archive cannot be read on.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The bytes could not be had, or end too early.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The archive is not one.
    #[error("entry `{entry}`: {problem}")]
    Malformed {
        /// Name in the archive as far as it is known, lossy.
        entry: String,
        /// What is wrong.
        problem: TarProblem,
    },
}

/// Reads entries one after the other. Its own [`Read`] and [`BufRead`] give the data of the entry that came last.
#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    /// Data of the current entry that was not read yet.
    data: u64,
    /// Bytes between that data and the next header.
    padding: u64,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    /// Starts at the first header.
    pub fn new(input: R) -> Self {
        Self { input, data: 0, padding: 0, ended: false }
    }

    /// The next entry, what is left of the last one's data skipped; `None` at the end mark or at the end of the stream.
    ///
    /// # Errors
    /// [`TarError`]; the reader is of no use afterwards.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry>, TarError> {
        let mut pax: Option<Pax> = None;
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        loop {
            let Some(header) = self.header()? else {
                if pax.is_some() || long_name.is_some() || long_link.is_some() {
                    return Err(malformed(long_name.as_deref().unwrap_or_default(), TarProblem::Dangling));
                }
                return Ok(None);
            };
            let name = header.name();
            let fail = |problem| malformed(&name, problem);
            match header.kind() {
                b'x' => {
                    let bytes = self.special(&header).map_err(|error| error.of(&name))?;
                    pax = Some(Pax::parse(&bytes).map_err(fail)?);
                }
                b'g' => {
                    let size = header.number(124, 12, "size").map_err(fail)?;
                    self.expect_data(u64::try_from(size).map_err(|_| fail(TarProblem::Number("size")))?);
                    self.skip_entry()?;
                }
                b'L' => long_name = Some(until_nul(self.special(&header).map_err(|error| error.of(&name))?)),
                b'K' => long_link = Some(until_nul(self.special(&header).map_err(|error| error.of(&name))?)),
                _ => {
                    let pax = pax.unwrap_or_default();
                    let name = long_name.or_else(|| pax.path.clone()).unwrap_or(name);
                    let link = long_link.or_else(|| pax.link.clone()).unwrap_or_else(|| header.text(157, 100));
                    return self.entry(&header, pax, name, link).map(Some);
                }
            }
        }
    }

    fn entry(&mut self, header: &Header, pax: Pax, name: Vec<u8>, link: Vec<u8>) -> Result<TarEntry, TarError> {
        let fail = |problem| malformed(&name, problem);
        let size = match pax.size {
            Some(size) => size,
            None => header.number(124, 12, "size").and_then(length).map_err(fail)?,
        };
        let kind = match header.kind() {
            // Before ustar a directory was a file whose name ends in a slash. Who writes a `0` knows better.
            0 if name.ends_with(b"/") => TarKind::Directory,
            b'0' | b'7' | b'S' | 0 => TarKind::File,
            b'1' => TarKind::HardLink,
            b'2' => TarKind::Symlink,
            b'3' => TarKind::CharDevice,
            b'4' => TarKind::BlockDevice,
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            other => return Err(fail(TarProblem::Kind(other))),
        };
        let uid = pax.uid.map_or_else(|| header.number(108, 8, "uid"), Ok).and_then(|n| id(n, "uid")).map_err(fail)?;
        let gid = pax.gid.map_or_else(|| header.number(116, 8, "gid"), Ok).and_then(|n| id(n, "gid")).map_err(fail)?;
        let mtime = match pax.mtime {
            Some(mtime) => mtime,
            None => {
                let seconds = header.number(136, 12, "mtime").map_err(fail)?;
                (i64::try_from(seconds).map_err(|_| fail(TarProblem::Number("mtime")))?, 0)
            }
        };
        let mode = header.number(100, 8, "mode").map_err(fail)?;
        let device = if matches!(kind, TarKind::CharDevice | TarKind::BlockDevice) {
            let number = |offset, field| {
                header.number(offset, 8, field).and_then(|n| u32::try_from(n).map_err(|_| TarProblem::Number(field)))
            };
            (number(329, "devmajor").map_err(fail)?, number(337, "devminor").map_err(fail)?)
        } else {
            (0, 0)
        };
        let mut entry = TarEntry {
            name: OsString::new(),
            kind,
            link: OsString::from_vec(link),
            mode: u32::try_from(mode & 0o7777).map_err(|_| fail(TarProblem::Number("mode")))?,
            uid,
            gid,
            mtime,
            device,
            size: 0,
            xattrs: pax.xattrs,
            sparse: None,
        };
        if header.kind() == 0 {
            self.expect_data(size);
        }
        if kind == TarKind::File {
            self.expect_data(size);
            entry.size = size;
            let map = if header.kind() == b'S' {
                Some(self.gnu_sparse(header).map_err(|error| error.of(&name))?)
            } else {
                self.pax_sparse(pax.sparse).map_err(|error| error.of(&name))?
            };
            if let Some((map, real_size)) = map {
                check_map(&map, self.data, real_size).map_err(fail)?;
                entry.size = real_size;
                entry.sparse = Some(map);
            }
        }
        entry.name = OsString::from_vec(name);
        Ok(entry)
    }

    /// The data of the current entry is `size` bytes from here on.
    fn expect_data(&mut self, size: u64) {
        self.data = size;
        self.padding = size.wrapping_neg() % BLOCK as u64;
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<Header>, TarError> {
        if self.ended {
            return Ok(None);
        }
        self.skip_entry()?;
        let mut block = [0_u8; BLOCK];
        if self.input.fill_buf()?.is_empty() {
            self.ended = true;
            return Ok(None);
        }
        self.input.read_exact(&mut block)?;
        if block.iter().all(|byte| *byte == 0) {
            self.ended = true;
            return Ok(None);
        }
        let header = Header(block);
        if header.checksum_is_right() { Ok(Some(header)) } else { Err(malformed(&header.name(), TarProblem::Checksum)) }
    }

    fn skip_entry(&mut self) -> io::Result<()> {
        let mut left = std::mem::take(&mut self.data).saturating_add(std::mem::take(&mut self.padding));
        while left > 0 {
            let available = self.input.fill_buf()?.len() as u64;
            if available == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let step = available.min(left);
            self.input.consume(usize::try_from(step).expect("no more than what is in memory"));
            left -= step;
        }
        Ok(())
    }

    /// Data of a header that describes the next entry.
    fn special(&mut self, header: &Header) -> Result<Vec<u8>, Trouble> {
        let size = header.number(124, 12, "size").and_then(length)?;
        if size > SPECIAL_BYTES {
            return Err(TarProblem::SpecialTooLong.into());
        }
        self.expect_data(size);
        let mut bytes = Vec::new();
        self.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Old GNU format: the map is in the header and in blocks after it (GNU tar manual, "Storing Sparse Files").
    fn gnu_sparse(&mut self, header: &Header) -> Result<(Vec<(u64, u64)>, u64), Trouble> {
        let mut map = Vec::new();
        collect_map(&header.0[386..482], &mut map)?;
        let real_size = header.number(483, 12, "realsize").and_then(length)?;
        let mut more = header.0[482] != 0;
        while more {
            let mut block = [0_u8; BLOCK];
            self.input.read_exact(&mut block)?;
            collect_map(&block[..504], &mut map)?;
            more = block[504] != 0;
            if map.len() as u64 * 24 > SPECIAL_BYTES {
                return Err(TarProblem::SpecialTooLong.into());
            }
        }
        Ok((map, real_size))
    }

    /// The three PAX formats of GNU tar: 0.0 and 0.1 have the map in the header, 1.0 at the start of the data.
    #[expect(clippy::type_complexity, reason = "pieces of a sparse file, offset and length, and its real size")]
    fn pax_sparse(&mut self, sparse: PaxSparse) -> Result<Option<(Vec<(u64, u64)>, u64)>, Trouble> {
        let pairs = |numbers: &[u64]| -> Result<Vec<(u64, u64)>, TarProblem> {
            if !numbers.len().is_multiple_of(2) {
                return Err(TarProblem::Sparse);
            }
            Ok(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
        };
        let Some(real_size) = sparse.real_size else { return Ok(None) };
        if !sparse.in_data {
            return Ok(Some((pairs(&sparse.map)?, real_size)));
        }
        let mut text = Vec::new();
        let mut numbers = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            let mut block = [0_u8; BLOCK];
            self.read_exact(&mut block)?;
            for byte in block {
                match byte {
                    b'\n' => {
                        let number = decimal(&text).ok_or(TarProblem::Sparse)?;
                        text.clear();
                        match wanted {
                            None => {
                                let count = usize::try_from(number).map_err(|_| TarProblem::Sparse)?;
                                wanted = Some(count.checked_mul(2).ok_or(TarProblem::Sparse)?);
                            }
                            Some(wanted) if numbers.len() < wanted => numbers.push(number),
                            Some(_) => return Err(TarProblem::Sparse.into()),
                        }
                    }
                    0 => break,
                    digit => text.push(digit),
                }
            }
            if numbers.len() as u64 * 8 > SPECIAL_BYTES || text.len() > 20 {
                return Err(TarProblem::SpecialTooLong.into());
            }
        }
        Ok(Some((pairs(&numbers)?, real_size)))
    }

    /// Reads the stream to its end, past the end mark of the archive, and gives it back.
    ///
    /// # Errors
    /// If the stream fails.
    pub fn finish(mut self) -> io::Result<R> {
        loop {
            let available = self.input.fill_buf()?.len();
            if available == 0 {
                return Ok(self.input);
            }
            self.input.consume(available);
        }
    }
}

impl<R: BufRead> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let count = available.len().min(buffer.len());
        buffer[..count].copy_from_slice(&available[..count]);
        self.consume(count);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for TarReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.data == 0 {
            return Ok(&[]);
        }
        let available = self.input.fill_buf()?;
        if available.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let count = usize::try_from(self.data).unwrap_or(usize::MAX).min(available.len());
        Ok(&available[..count])
    }

    fn consume(&mut self, count: usize) {
        self.input.consume(count);
        self.data -= count as u64;
    }
}

/// A problem or failed read while the entry's name is at hand elsewhere.
enum Trouble {
    Problem(TarProblem),
    Read(io::Error),
}

impl Trouble {
    fn of(self, name: &[u8]) -> TarError {
        match self {
            Self::Problem(problem) => malformed(name, problem),
            Self::Read(error) => error.into(),
        }
    }
}

impl From<TarProblem> for Trouble {
    fn from(problem: TarProblem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for Trouble {
    fn from(error: io::Error) -> Self {
        Self::Read(error)
    }
}

fn malformed(name: &[u8], problem: TarProblem) -> TarError {
    TarError::Malformed { entry: String::from_utf8_lossy(name).into_owned(), problem }
}

/// One header block.
struct Header([u8; BLOCK]);

impl Header {
    fn kind(&self) -> u8 {
        self.0[156]
    }

    fn text(&self, offset: usize, length: usize) -> Vec<u8> {
        until_nul(self.0[offset..offset + length].to_vec())
    }

    fn name(&self) -> Vec<u8> {
        let mut name = self.text(345, self.prefix_length());
        if !name.is_empty() {
            name.push(b'/');
        }
        name.extend(self.text(0, 100));
        name
    }

    /// POSIX has a prefix of 155 bytes, star one of 131 before its times, GNU and V7 none.
    fn prefix_length(&self) -> usize {
        match (&self.0[257..263], &self.0[508..512]) {
            (b"ustar\0", b"tar\0") => 131,
            (b"ustar\0", _) => 155,
            _ => 0,
        }
    }

    /// A number in octal, or in base 256 if its first bit is set (GNU), which may be negative.
    fn number(&self, offset: usize, length: usize, field: &'static str) -> Result<i128, TarProblem> {
        parse_number(&self.0[offset..offset + length]).ok_or(TarProblem::Number(field))
    }

    /// Some old writers summed signed bytes.
    fn checksum_is_right(&self) -> bool {
        let Ok(expected) = self.number(148, 8, "chksum") else { return false };
        let blanked = || self.0.iter().enumerate().map(|(at, b)| if (148..156).contains(&at) { b' ' } else { *b });
        let unsigned: i128 = blanked().map(i128::from).sum();
        let signed: i128 = blanked().map(|byte| i128::from(byte.cast_signed())).sum();
        expected == unsigned || expected == signed
    }
}

fn parse_number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 { -1 } else { 0 };
        // The first bit only says that this is base 256; the second is the sign.
        let head = if start < 0 { first } else { first & 0x7f };
        return field[1..].iter().try_fold((start << 8) | i128::from(head), |value: i128, byte| {
            // 12 bytes always fit.
            value.checked_mul(256)?.checked_add(i128::from(*byte))
        });
    }
    let digits = field.iter().skip_while(|byte| matches!(byte, b' ' | 0)).take_while(|byte| !matches!(byte, b' ' | 0));
    digits.copied().try_fold(0, |value: i128, digit| match digit {
        b'0'..=b'7' => Some(value * 8 + i128::from(digit - b'0')),
        _ => None,
    })
}

fn length(number: i128) -> Result<u64, TarProblem> {
    // off_t is signed, so no file is longer.
    i64::try_from(number).ok().and_then(|n| u64::try_from(n).ok()).ok_or(TarProblem::Number("size"))
}

fn id(number: i128, field: &'static str) -> Result<u32, TarProblem> {
    u32::try_from(number).map_err(|_| TarProblem::Number(field))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn collect_map(fields: &[u8], map: &mut Vec<(u64, u64)>) -> Result<(), TarProblem> {
    for pair in fields.chunks_exact(24) {
        if pair[0] == 0 {
            break;
        }
        let number = |field| parse_number(field).ok_or(TarProblem::Sparse).and_then(length);
        map.push((number(&pair[..12])?, number(&pair[12..])?));
    }
    Ok(())
}

/// Pieces in order, within the file, and as long together as the data.
fn check_map(map: &[(u64, u64)], data: u64, real_size: u64) -> Result<(), TarProblem> {
    let mut end = 0_u64;
    let mut total = 0_u64;
    for (offset, length) in map {
        if *offset < end {
            return Err(TarProblem::Sparse);
        }
        end = offset.checked_add(*length).ok_or(TarProblem::Sparse)?;
        total = total.checked_add(*length).ok_or(TarProblem::Sparse)?;
    }
    if end > real_size || total != data { Err(TarProblem::Sparse) } else { Ok(()) }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
