//! What an exec needs to know of a program: elf(5), and the first line of a script.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// Bytes of a file that decide what it is: linux/binfmts.h, `BINPRM_BUF_SIZE`.
pub const HEAD_BYTES: usize = 256;

/// `e_machine` of this machine.
#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const MACHINE: u16 = 0;

/// Largest table of segments that the kernel takes, in bytes.
const TABLE_BYTES: usize = 65_536;

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// `#!interpreter [argument]`
    Script { interpreter: Vec<u8>, argument: Option<Vec<u8>> },
    /// A program for this machine.
    Program(Elf),
    /// A program of 32 bits that this machine could run, or of the machine's other kind.
    Narrow,
}

/// A program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Whether it can be put anywhere.
    pub movable: bool,
    /// Address of the first instruction, as linked.
    pub entry: u64,
    /// Address of the segment table, as linked.
    pub table: u64,
    /// Size of one of its entries, in bytes.
    pub entry_bytes: u16,
    /// Number of its entries.
    pub entries: u16,
    /// What is put into memory.
    pub segments: Vec<Segment>,
    /// Path of the loader.
    pub interpreter: Option<Vec<u8>>,
}

/// `PT_LOAD`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub offset: u64,
    pub address: u64,
    pub in_file: u64,
    pub in_memory: u64,
    pub align: u64,
    /// `PF_X` 1, `PF_W` 2, `PF_R` 4.
    pub flags: u32,
}

/// Reads what a file is.
///
/// # Errors
/// `ENOEXEC` if it is nothing that can be executed.
pub fn read(file: BorrowedFd<'_>) -> Result<Format, Errno> {
    let mut head = [0; HEAD_BYTES];
    let length = read_at(file, &mut head, 0)?;
    let head = &head[..length];
    if let Some(line) = head.strip_prefix(b"#!") {
        return script(line);
    }
    let Some(ident) = head.strip_prefix(b"\x7fELF").filter(|_| head.len() >= 64) else { return Err(Errno::NOEXEC) };
    if ident[0] == 1 {
        return Ok(Format::Narrow);
    }
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    let word = |bytes: &[u8], at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    let kind = half(16);
    if ident[0] != 2 || ident[1] != 1 || half(18) != MACHINE || !matches!(kind, 2 | 3) {
        return Err(Errno::NOEXEC);
    }
    let (entry, table_offset, entry_bytes, entries) = (word(head, 24), word(head, 32), half(54), half(56));
    if entry_bytes != 56 || entries == 0 {
        return Err(Errno::NOEXEC);
    }
    let mut table = vec![0; (usize::from(entries) * 56).min(TABLE_BYTES)];
    if read_at(file, &mut table, table_offset)? != table.len() {
        return Err(Errno::NOEXEC);
    }
    let mut elf =
        Elf { movable: kind == 3, entry, table: 0, entry_bytes, entries, segments: Vec::new(), interpreter: None };
    for header in table.chunks_exact(56) {
        let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let flags = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let (offset, address, in_file, in_memory) =
            (word(header, 8), word(header, 16), word(header, 32), word(header, 40));
        match kind {
            // PT_LOAD
            1 => {
                let sane = in_memory >= in_file && address.checked_add(in_memory).is_some_and(|end| end < 1 << 56);
                if !sane {
                    return Err(Errno::NOEXEC);
                }
                if (offset..offset.saturating_add(in_file)).contains(&table_offset) {
                    elf.table = address + (table_offset - offset);
                }
                let align = word(header, 48);
                elf.segments.push(Segment { offset, address, in_file, in_memory, align, flags });
            }
            // PT_INTERP
            3 => {
                if !(2..=4096).contains(&in_file) {
                    return Err(Errno::NOEXEC);
                }
                let mut path = vec![0; usize::try_from(in_file).map_err(|_| Errno::NOEXEC)?];
                if read_at(file, &mut path, offset)? != path.len() || path.pop() != Some(0) {
                    return Err(Errno::NOEXEC);
                }
                path.truncate(path.iter().position(|&byte| byte == 0).unwrap_or(path.len()));
                elf.interpreter = Some(path);
            }
            _ => {}
        }
    }
    if elf.segments.is_empty() { Err(Errno::NOEXEC) } else { Ok(Format::Program(elf)) }
}

/// The rest of the first line behind `#!`, as the kernel reads it: one argument, blanks in it kept.
fn script(line: &[u8]) -> Result<Format, Errno> {
    let end = line.iter().position(|&byte| byte == b'\n');
    let whole = end.is_some();
    let line = &line[..end.unwrap_or(line.len())];
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let line = &line[line.iter().position(|byte| !blank(byte)).ok_or(Errno::NOEXEC)?..];
    let line = &line[..line.iter().rposition(|byte| !blank(byte) && *byte != 0).ok_or(Errno::NOEXEC)? + 1];
    let cut = line.iter().position(|byte| blank(byte) || *byte == 0);
    let interpreter = line[..cut.unwrap_or(line.len())].to_vec();
    // A name that goes on behind what was read is not known.
    if !whole && cut.is_none() && line.len() >= HEAD_BYTES - 2 {
        return Err(Errno::NOEXEC);
    }
    let argument = cut.and_then(|cut| {
        let rest = &line[cut..];
        rest.iter().position(|byte| !blank(byte) && *byte != 0).map(|start| rest[start..].to_vec())
    });
    Ok(Format::Script { interpreter, argument })
}

fn read_at(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::pread(file, &mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(length) => filled += length,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(filled)
}

impl Elf {
    /// Lowest address of a segment and the end of the highest, as linked.
    pub fn extent(&self) -> (u64, u64) {
        let low = self.segments.iter().map(|segment| segment.address).min().unwrap_or(0);
        let high = self.segments.iter().map(|segment| segment.address + segment.in_memory).max().unwrap_or(0);
        (low, high)
    }

    /// Largest alignment of a segment, in bytes.
    pub fn align(&self) -> u64 {
        self.segments.iter().map(|segment| segment.align).filter(|align| align.is_power_of_two()).max().unwrap_or(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Option<(&str, Option<&str>)>) {
        let found = script(text.as_bytes()).ok();
        let expected = expected.map(|(interpreter, argument)| Format::Script {
            interpreter: interpreter.into(),
            argument: argument.map(Into::into),
        });
        assert_eq!(found, expected, "{text:?}");
    }

    #[test]
    fn first_lines() {
        check("/bin/sh\nx", Some(("/bin/sh", None)));
        check(" \t/bin/sh  -e x \nx", Some(("/bin/sh", Some("-e x"))));
        check("/bin/sh", Some(("/bin/sh", None)));
        check("\n", None);
        check("  ", None);
        check(&"x".repeat(300)[..254], None);
    }

    #[test]
    fn this_program() {
        use std::os::fd::AsFd;
        let me = std::fs::File::open("/proc/self/exe").expect("open");
        let Format::Program(elf) = read(me.as_fd()).expect("a program") else { panic!("no program") };
        assert!(elf.table > 0 && elf.segments.len() > 1 && elf.extent().1 > elf.entry);
    }
}
