//! Tar headers: ustar, with PAX records where ustar has no room, byte for byte as Go's `archive/tar` writes them for
//! BuildKit, so that equal trees give equal diff_ids.
//!
//! Formats: POSIX.1-2017 pax, "ustar Interchange Format" and "pax Extended Header". GNU extensions are never written.

use std::collections::BTreeMap;

/// Tar is made of blocks of this many bytes.
pub const TAR_BLOCK: usize = 512;

/// Length of the `name` and `linkname` fields in bytes.
const NAME_BYTES: usize = 100;
/// Length of the `prefix` field in bytes.
const PREFIX_BYTES: usize = 155;

/// Kind of a tar entry, with what only that kind has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind<'a> {
    /// A regular file with this many bytes of content.
    File(u64),
    /// A directory; its name ends in `/`.
    Directory,
    /// A symbolic link with this text.
    Symlink(&'a [u8]),
    /// A hard link to this earlier entry.
    HardLink(&'a [u8]),
    /// A named pipe.
    Fifo,
    /// A character device: major and minor number.
    CharDevice(u32, u32),
    /// A block device: major and minor number.
    BlockDevice(u32, u32),
}

/// A tar entry without its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Name, any bytes but NUL; a directory's may or may not end in `/`.
    pub name: &'a [u8],
    /// Kind.
    pub kind: EntryKind<'a>,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Modification time in seconds since 1970.
    pub mtime: i64,
    /// Value of the extended attribute `security.capability`.
    pub capability: Option<&'a [u8]>,
}

impl Entry<'_> {
    /// Appends the header blocks of this entry to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let mut name = self.name.to_vec();
        if self.kind == EntryKind::Directory && name.last() != Some(&b'/') {
            name.push(b'/');
        }
        let (flag, link, size, device) = match self.kind {
            EntryKind::File(size) => (b'0', &[][..], size, (0, 0)),
            EntryKind::HardLink(target) => (b'1', target, 0, (0, 0)),
            EntryKind::Symlink(text) => (b'2', text, 0, (0, 0)),
            EntryKind::CharDevice(major, minor) => (b'3', &[][..], 0, (major, minor)),
            EntryKind::BlockDevice(major, minor) => (b'4', &[][..], 0, (major, minor)),
            EntryKind::Directory => (b'5', &[][..], 0, (0, 0)),
            EntryKind::Fifo => (b'6', &[][..], 0, (0, 0)),
        };

        let mut records = BTreeMap::new();
        if let Some(capability) = self.capability {
            records.insert("SCHILY.xattr.security.capability", capability.to_vec());
        }
        if !fits(link, NAME_BYTES) {
            records.insert("linkpath", link.to_vec());
        }
        for (key, value, width) in
            [("uid", u64::from(self.uid), 8), ("gid", u64::from(self.gid), 8), ("size", size, 12)]
        {
            if !fits_octal(value, width) {
                records.insert(key, value.to_string().into_bytes());
            }
        }
        let mtime = u64::try_from(self.mtime).ok().filter(|mtime| fits_octal(*mtime, 12));
        if mtime.is_none() {
            records.insert("mtime", self.mtime.to_string().into_bytes());
        }
        // A long name alone is split if that works; once there are records, it becomes one of them.
        let split = if fits(&name, NAME_BYTES) { Some((&[][..], &name[..])) } else { split_name(&name) };
        let (prefix, short) = match split {
            Some((prefix, short)) if prefix.is_empty() || records.is_empty() => (prefix.to_vec(), short.to_vec()),
            _ => {
                records.insert("path", name.clone());
                (Vec::new(), name.clone())
            }
        };
        if !records.is_empty() {
            encode_records(&name, &records, out);
        }

        let mut block = Block::new(flag);
        block.text(0, NAME_BYTES, &ascii(&short));
        block.octal(100, 8, u64::from(self.mode));
        block.octal(108, 8, u64::from(self.uid));
        block.octal(116, 8, u64::from(self.gid));
        block.octal(124, 12, size);
        block.octal(136, 12, mtime.unwrap_or(0));
        block.text(157, NAME_BYTES, &ascii(link));
        block.octal(329, 8, u64::from(device.0));
        block.octal(337, 8, u64::from(device.1));
        block.text(345, PREFIX_BYTES, &prefix);
        block.finish(out);
    }
}

/// Bytes of zeros that follow `size` bytes of content.
pub fn padding(size: u64) -> usize {
    (size.next_multiple_of(TAR_BLOCK as u64) - size) as usize
}

/// One header block being filled.
struct Block([u8; TAR_BLOCK]);

impl Block {
    fn new(flag: u8) -> Self {
        let mut block = [0; TAR_BLOCK];
        block[156] = flag;
        block[257..265].copy_from_slice(b"ustar\x0000");
        Self(block)
    }

    /// A text, cut at the end of its field; one that fills it has no NUL.
    fn text(&mut self, offset: usize, width: usize, text: &[u8]) {
        let length = text.len().min(width);
        self.0[offset..offset + length].copy_from_slice(&text[..length]);
        if text.len() > width && text[width - 1] == b'/' {
            // Readers that know no PAX take a regular file whose cut name ends in a slash for a directory.
            let kept = text[..width - 1].iter().rposition(|byte| *byte != b'/').map_or(0, |last| last + 1);
            self.0[offset + kept] = 0;
        }
    }

    /// A number in octal digits with leading zeros and a NUL; 0 if it has no room (then a PAX record has it).
    fn octal(&mut self, offset: usize, width: usize, value: u64) {
        let value = if fits_octal(value, width) { value } else { 0 };
        let digits = format!("{value:0digits$o}", digits = width - 1);
        self.0[offset..offset + width - 1].copy_from_slice(digits.as_bytes());
    }

    fn finish(mut self, out: &mut Vec<u8>) {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.octal(148, 7, sum);
        self.0[154] = 0;
        out.extend_from_slice(&self.0);
    }
}

/// Appends a PAX extended header (typeflag `x`) with `records`.
fn encode_records(name: &[u8], records: &BTreeMap<&str, Vec<u8>>, out: &mut Vec<u8>) {
    let mut data = Vec::new();
    for (key, value) in records {
        // `<length> <key>=<value>\n`, where the length counts its own digits too.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + decimal_digits(rest);
        length = rest + decimal_digits(length);
        data.extend_from_slice(format!("{length} {key}=").as_bytes());
        data.extend_from_slice(value);
        data.push(b'\n');
    }
    // The name only matters to readers that know no PAX.
    let (directory, file) = match name.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&name[..slash + 1], &name[slash + 1..]),
        None => (&[][..], name),
    };
    let mut header_name = ascii(directory);
    header_name.extend_from_slice(b"PaxHeaders.0");
    if !file.is_empty() {
        header_name.push(b'/');
        header_name.extend_from_slice(&ascii(file));
    }
    header_name.truncate(NAME_BYTES);
    while header_name.last() == Some(&b'/') {
        header_name.pop();
    }
    let mut block = Block::new(b'x');
    block.text(0, NAME_BYTES, &header_name);
    block.octal(100, 8, 0);
    block.octal(108, 8, 0);
    block.octal(116, 8, 0);
    block.octal(124, 12, data.len() as u64);
    block.octal(136, 12, 0);
    block.finish(out);
    let pad = padding(data.len() as u64);
    out.append(&mut data);
    out.resize(out.len() + pad, 0);
}

fn decimal_digits(number: usize) -> usize {
    number.to_string().len()
}

fn fits(text: &[u8], width: usize) -> bool {
    text.len() <= width && text.is_ascii()
}

/// Whether `value` has room in `width` bytes, of which the last is a NUL.
fn fits_octal(value: u64, width: usize) -> bool {
    value < 1 << ((width - 1) * 3)
}

/// The part of a name that a reader without PAX may see.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(u8::is_ascii).collect()
}

/// Splits a long name at a slash into prefix and name, if both have room.
fn split_name(name: &[u8]) -> Option<(&[u8], &[u8])> {
    if !name.is_ascii() {
        return None;
    }
    let mut length = name.len();
    if length > PREFIX_BYTES + 1 {
        length = PREFIX_BYTES + 1;
    } else if name.last() == Some(&b'/') {
        length -= 1;
    }
    let slash = name[..length].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, rest) = (&name[..slash], &name[slash + 1..]);
    (!prefix.is_empty() && !rest.is_empty() && rest.len() <= NAME_BYTES && prefix.len() <= PREFIX_BYTES)
        .then_some((prefix, rest))
}
