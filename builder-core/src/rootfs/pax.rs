//! PAX extended headers (POSIX.1-2017, pax, "pax Extended Header").

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;

use super::TarProblem;

/// What a PAX extended header says about the next entry.
#[derive(Debug, Default)]
pub(super) struct Pax {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<i128>,
    pub gid: Option<i128>,
    pub mtime: Option<(i64, u32)>,
    pub xattrs: Vec<(OsString, Vec<u8>)>,
    pub sparse: PaxSparse,
}

#[derive(Debug, Default)]
pub(super) struct PaxSparse {
    pub real_size: Option<u64>,
    pub in_data: bool,
    pub map: Vec<u64>,
}

impl Pax {
    /// Records are `length key=value\n`, where only the length says where a value ends (POSIX.1-2017, pax).
    pub(super) fn parse(mut bytes: &[u8]) -> Result<Self, TarProblem> {
        let mut pax = Self::default();
        let mut sparse_name = None;
        while !bytes.is_empty() {
            let space = bytes.iter().position(|byte| *byte == b' ').ok_or(TarProblem::Pax)?;
            let length = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok()).ok_or(TarProblem::Pax)?;
            if length <= space + 1 || length > bytes.len() {
                return Err(TarProblem::Pax);
            }
            let (record, rest) = bytes.split_at(length);
            bytes = rest;
            let [record @ .., b'\n'] = &record[space + 1..] else { return Err(TarProblem::Pax) };
            let equals = record.iter().position(|byte| *byte == b'=').ok_or(TarProblem::Pax)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            if key == b"GNU.sparse.name" {
                sparse_name = Some(text(value)?);
            } else {
                pax.record(key, value)?;
            }
        }
        if sparse_name.is_some() {
            pax.path = sparse_name;
        }
        Ok(pax)
    }

    /// The last record of a key counts; an empty value takes it back.
    fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarProblem> {
        let number = || decimal(value).ok_or(TarProblem::Pax);
        let signed = || {
            let text = std::str::from_utf8(value).map_err(|_| TarProblem::Pax)?;
            text.parse::<i64>().map(i128::from).map_err(|_| TarProblem::Pax)
        };
        let empty = value.is_empty();
        match key {
            b"path" => self.path = if empty { None } else { Some(text(value)?) },
            b"linkpath" => self.link = if empty { None } else { Some(text(value)?) },
            b"size" => self.size = if empty { None } else { Some(number()?) },
            b"uid" => self.uid = if empty { None } else { Some(signed()?) },
            b"gid" => self.gid = if empty { None } else { Some(signed()?) },
            b"mtime" => self.mtime = if empty { None } else { Some(pax_time(value).ok_or(TarProblem::Pax)?) },
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.major" => self.sparse.in_data = value == b"1",
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => self.sparse.map.push(number()?),
            b"GNU.sparse.map" => {
                self.sparse.map = value
                    .split(|byte| *byte == b',')
                    .filter(|number| !number.is_empty())
                    .map(|number| decimal(number).ok_or(TarProblem::Sparse))
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.contains(&0) {
                        return Err(TarProblem::Pax);
                    }
                    let name = OsStr::from_bytes(name);
                    self.xattrs.retain(|(present, _)| present != name);
                    self.xattrs.push((name.to_owned(), value.to_vec()));
                }
            }
        }
        Ok(())
    }
}

fn text(value: &[u8]) -> Result<Vec<u8>, TarProblem> {
    if value.contains(&0) { Err(TarProblem::Nul) } else { Ok(value.to_vec()) }
}

/// Seconds with a decimal fraction, of which nine digits count; negative times round down to a positive fraction.
pub(super) fn pax_time(value: &[u8]) -> Option<(i64, u32)> {
    let value = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    let negative = whole.starts_with('-');
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut nanoseconds = 0_u32;
    for digit in fraction.bytes().chain(std::iter::repeat(b'0')).take(9) {
        nanoseconds = nanoseconds * 10 + u32::from(digit - b'0');
    }
    if negative && nanoseconds > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

/// A number of a record: decimal, without sign, within the range of off_t.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    let number: u64 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (number <= i64::MAX.cast_unsigned() && !text.starts_with(b"+")).then_some(number)
}
