//! Access lists: acl(5), and their form in `system.posix_acl_access` and `system.posix_acl_default` (linux/posix_acl_xattr.h).
//!
//! The disk cannot have them, since the users that they name do not exist there. They are recorded as other attributes are, and
//! permission bits follow them and they follow those, as in the kernel; they decide who may do what, and new files begin with what
//! their directory's default list says. No layer has lists, so they end with the tree.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, Statx};
use rustix::io::Errno;

use super::calls::{Answered, DONE};
use super::held::Directory;
use super::ids::Credentials;
use super::view::{key, statx};
use super::world::{Caller, NewMode, Reached};
use crate::rootfs::Owners;

/// Names of the attributes.
pub const NAMES: [&str; 2] = [ACCESS, DEFAULT];

/// The list that decides about a file.
const ACCESS: &str = "system.posix_acl_access";
/// The list that files in a directory begin with.
const DEFAULT: &str = "system.posix_acl_default";

/// `POSIX_ACL_XATTR_VERSION`.
const VERSION: u32 = 2;
const HEADER_BYTES: usize = 4;
const ENTRY_BYTES: usize = 8;

/// Whose permissions an entry says (`e_tag`).
mod tag {
    pub const OWNER: u16 = 0x01;
    pub const USER: u16 = 0x02;
    pub const OWNING_GROUP: u16 = 0x04;
    pub const GROUP: u16 = 0x08;
    pub const MASK: u16 = 0x10;
    pub const OTHERS: u16 = 0x20;
}

/// Whether an attribute is a list.
pub fn is_list(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// A list that is well-formed: acl(5), "VALID ACLs".
#[derive(Debug, Clone, PartialEq, Eq)]
struct List(Vec<Entry>);

impl List {
    /// Reads an attribute's value; `None` if it has no entries, which removes the list.
    fn parse(value: &[u8]) -> Result<Option<Self>, Errno> {
        let (version, entries) = value.split_first_chunk::<HEADER_BYTES>().ok_or(Errno::INVAL)?;
        if u32::from_le_bytes(*version) != VERSION {
            return Err(Errno::OPNOTSUPP);
        }
        let (entries, rest) = entries.as_chunks::<ENTRY_BYTES>();
        if !rest.is_empty() {
            return Err(Errno::INVAL);
        }
        let entry = |[t0, t1, p0, p1, i0, i1, i2, i3]: [u8; ENTRY_BYTES]| Entry {
            tag: u16::from_le_bytes([t0, t1]),
            permissions: u16::from_le_bytes([p0, p1]),
            id: u32::from_le_bytes([i0, i1, i2, i3]),
        };
        let list = Self(entries.iter().map(|bytes| entry(*bytes)).collect());
        match list.0.is_empty() {
            true => Ok(None),
            false if list.is_valid() => Ok(Some(list)),
            false => Err(Errno::INVAL),
        }
    }

    /// In this order: the owner, users, the owning group, groups, the mask, others. The mask may be missing where nobody is
    /// named.
    fn is_valid(&self) -> bool {
        let tags: Vec<u16> = self.0.iter().map(|entry| entry.tag).collect();
        let count = |wanted: u16| tags.iter().filter(|tag| **tag == wanted).count();
        let known = tag::OWNER | tag::USER | tag::OWNING_GROUP | tag::GROUP | tag::MASK | tag::OTHERS;
        let named = count(tag::USER) + count(tag::GROUP) > 0;
        tags.is_sorted()
            && tags.iter().all(|tag| tag.is_power_of_two() && tag & known != 0)
            && [tag::OWNER, tag::OWNING_GROUP, tag::OTHERS].map(count) == [1, 1, 1]
            && (usize::from(named)..=1).contains(&count(tag::MASK))
            && self.0.iter().all(|entry| entry.permissions <= 7)
    }

    fn value(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for Entry { tag, permissions, id } in &self.0 {
            value.extend(tag.to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    /// Whether it says no more than nine permission bits do.
    fn is_minimal(&self) -> bool {
        self.0.len() == 3
    }

    /// The entry that the group's bits are: the mask, where there is one.
    fn class(&self) -> u16 {
        if self.0.iter().any(|entry| entry.tag == tag::MASK) { tag::MASK } else { tag::OWNING_GROUP }
    }

    /// The nine permission bits.
    fn mode(&self) -> u32 {
        let bits = |wanted: u16| {
            let found = self.0.iter().find(|entry| entry.tag == wanted);
            found.map_or(0, |entry| u32::from(entry.permissions))
        };
        bits(tag::OWNER) << 6 | bits(self.class()) << 3 | bits(tag::OTHERS)
    }

    /// What chmod(2) makes of it.
    fn follow(&mut self, mode: u32) {
        let class = self.class();
        for entry in &mut self.0 {
            let shift = match entry.tag {
                tag::OWNER => 6,
                tag::OTHERS => 0,
                other if other == class => 3,
                _ => continue,
            };
            entry.permissions = u16::try_from(mode >> shift & 7).expect("three bits");
        }
    }
}

impl List {
    /// The bits that somebody other than the owner gets of those `wanted`: acl(5), "ACCESS CHECK ALGORITHM".
    fn granted(&self, owning_group: u32, wanted: u32, me: &Credentials) -> u32 {
        let mask = self.0.iter().find(|entry| entry.tag == tag::MASK).map_or(7, |entry| entry.permissions);
        let bits = |entry: &Entry| u32::from(entry.permissions & mask);
        if let Some(user) = self.0.iter().find(|entry| entry.tag == tag::USER && entry.id == me.user.files) {
            return bits(user);
        }
        let mut groups = self.0.iter().filter(|entry| match entry.tag {
            tag::OWNING_GROUP => me.is_in(owning_group),
            tag::GROUP => me.is_in(entry.id),
            _ => false,
        });
        match groups.next() {
            // One of them has to allow all of it.
            Some(first) if wanted & !bits(first) != 0 => {
                groups.map(bits).find(|bits| wanted & !bits == 0).unwrap_or_else(|| bits(first))
            }
            Some(first) => bits(first),
            None => self.mode() & 7,
        }
    }
}

/// What a new file gets of its directory's default list.
#[derive(Debug)]
pub struct Inherited {
    access: List,
    default: Vec<u8>,
    /// Bits that no list has.
    special: u32,
}

impl Inherited {
    /// What the file shows. The umask does not count: umask(2).
    pub fn mode(&self) -> u32 {
        self.special | self.access.mode()
    }

    /// Gives the file its lists.
    pub fn record(&self, owners: &Owners, real: &Statx) {
        if !self.access.is_minimal() {
            owners.set_xattr(key(real), OsStr::new(ACCESS), &self.access.value());
        }
        if FileType::from_raw_mode(real.stx_mode.into()).is_dir() {
            owners.set_xattr(key(real), OsStr::new(DEFAULT), &self.default);
        }
    }
}

/// What a file that is made in `parent` inherits; links inherit nothing.
///
/// # Errors
/// What the kernel says.
pub fn inherited(owners: &Owners, parent: &Directory, new: Option<NewMode>) -> Result<Option<Inherited>, Errno> {
    let Some(new) = new else { return Ok(None) };
    let Some(default) = owners.xattrs(key(&statx(parent)?)).remove(OsStr::new(DEFAULT)) else { return Ok(None) };
    let Some(mut access) = List::parse(&default)? else { return Ok(None) };
    access.follow(access.mode() & new.asked);
    Ok(Some(Inherited { access, default, special: new.asked & 0o7000 }))
}

/// The value of a recorded list of a file whose mode may have changed since.
pub fn shown(name: &OsStr, value: Vec<u8>, mode: u32) -> Vec<u8> {
    match List::parse(&value) {
        Ok(Some(mut list)) if name == ACCESS => {
            list.follow(mode);
            list.value()
        }
        _ => value,
    }
}

impl Caller<'_> {
    /// What the list of a file grants somebody who does not own it; `None` if it has none.
    pub fn listed(&self, shown: &Statx, wanted: u32, me: &Credentials) -> Option<u32> {
        let value =
            self.world.owners_of(shown).find_map(|owners| owners.xattrs(key(shown)).remove(OsStr::new(ACCESS)))?;
        let mut list = List::parse(&value).ok()??;
        list.follow(shown.stx_mode.into());
        Some(list.granted(shown.stx_gid, wanted, me))
    }

    /// setxattr(2) of a list, or removexattr(2) without a value.
    pub fn set_list(&self, file: &Reached<'_>, name: &OsStr, value: Option<&[u8]>) -> Answered {
        file.writable()?;
        let list = value.map(List::parse).transpose()?.flatten();
        match file.kind() {
            libc::S_IFLNK => return Err(Errno::OPNOTSUPP),
            libc::S_IFDIR => {}
            _ if name == DEFAULT && list.is_some() => return Err(Errno::ACCESS),
            _ if name == DEFAULT => return DONE,
            _ => {}
        }
        let me = self.me();
        let before = self.world.shown(&file.real, file.mount, &me);
        self.own(&before, &me)?;
        let owners = file.mount.and_then(|mount| mount.owners.as_ref()).ok_or(Errno::OPNOTSUPP)?;
        self.still()?;
        let own = self.owned(file)?;
        let file = own.as_ref().unwrap_or(file);
        let recorded = list.as_ref().filter(|list| name == DEFAULT || !list.is_minimal());
        match recorded {
            Some(list) => {
                self.world.lists.store(true, Ordering::Relaxed);
                owners.set_xattr(key(&file.real), name, &list.value());
            }
            None => owners.remove_xattr(key(&file.real), name),
        }
        match list {
            Some(list) if name == ACCESS => self.chmod(file.clone(), u32::from(before.stx_mode) & 0o7000 | list.mode()),
            _ => {
                self.recorded(file);
                DONE
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: u32 = u32::MAX;

    fn list(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        List(entries.iter().map(|&(tag, permissions, id)| Entry { tag, permissions, id }).collect()).value()
    }

    #[test]
    fn lists_and_modes() {
        let named = list(&[(1, 6, ME), (2, 7, 33), (4, 4, ME), (16, 7, ME), (32, 0, ME)]);
        let minimal = list(&[(1, 7, ME), (4, 5, ME), (32, 1, ME)]);
        let mode = |value: &[u8]| List::parse(value).map(|list| list.map(|list| (list.mode(), list.is_minimal())));
        for (value, expected) in [
            (named.clone(), Ok(Some((0o670, false)))),
            (minimal.clone(), Ok(Some((0o751, true)))),
            (list(&[]), Ok(None)),
            (vec![], Err(Errno::INVAL)),
            (vec![3, 0, 0, 0], Err(Errno::OPNOTSUPP)),
            (minimal[..minimal.len() - 1].to_vec(), Err(Errno::INVAL)),
            // No mask, no others, an unknown tag, in another order, more than rwx.
            (list(&[(1, 6, ME), (2, 7, 33), (4, 4, ME), (32, 0, ME)]), Err(Errno::INVAL)),
            (list(&[(1, 6, ME), (4, 4, ME)]), Err(Errno::INVAL)),
            (list(&[(1, 6, ME), (4, 4, ME), (32, 0, ME), (64, 0, ME)]), Err(Errno::INVAL)),
            (list(&[(4, 5, ME), (1, 7, ME), (32, 1, ME)]), Err(Errno::INVAL)),
            (list(&[(1, 8, ME), (4, 5, ME), (32, 1, ME)]), Err(Errno::INVAL)),
        ] {
            assert_eq!(mode(&value), expected, "{value:?}");
        }
        let after = shown(OsStr::new(ACCESS), named.clone(), 0o104);
        assert_eq!(after, list(&[(1, 1, ME), (2, 7, 33), (4, 4, ME), (16, 0, ME), (32, 4, ME)]));
        assert_eq!(shown(OsStr::new(DEFAULT), named.clone(), 0o104), named);
    }
}
