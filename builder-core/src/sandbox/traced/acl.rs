//! Access lists: acl(5), and their form in `system.posix_acl_access` and `system.posix_acl_default` (linux/posix_acl_xattr.h).
//!
//! The disk cannot have them, since the users that they name do not exist there. They are recorded as other attributes are, and
//! permission bits follow them and they follow those, as in the kernel. No layer has lists, so they end with the tree.
//!
//! # Limitations
//! Nobody is given or refused anything because a list names him, and new files do not inherit a directory's default list.

use std::ffi::OsStr;

use rustix::io::Errno;

use super::calls::{Answered, DONE};
use super::view::key;
use super::world::{Caller, Reached};

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
            Some(list) => owners.set_xattr(key(&file.real), name, &list.value()),
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
