//! Whom `USER` names (checklist R-10): `name`, `uid`, either with `:group` or `:gid`, or nothing.

use std::io;
use std::path::PathBuf;

use super::RunUser;
use crate::hint::Hint;
use crate::rootfs::{Rootfs, Users};

/// Largest id that may stand in `USER` alone; the pair `uid:gid` is taken as it is. BuildKit has the same limit.
const LARGEST_ID: u32 = i32::MAX as u32;

/// Why a `USER` means nobody. `Display` holds BuildKit's words.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserError {
    /// The name is not in `/etc/passwd`.
    #[error("unable to find user {name}: no matching entries in passwd file")]
    UnknownUser {
        /// As written.
        name: String,
    },
    /// The name is not in `/etc/group`.
    #[error("unable to find group {name}: no matching entries in group file")]
    UnknownGroup {
        /// As written.
        name: String,
    },
    /// A number that is no id.
    #[error("uids and gids must be in range 0-{LARGEST_ID}, not {id}")]
    OutOfRange {
        /// As written.
        id: String,
    },
    /// The image's user file cannot be read.
    #[error("cannot read `{}` of the image", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Hint for UserError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownUser { .. } => {
                Some("create the user in an earlier RUN (useradd, adduser) or name it by number".into())
            }
            Self::UnknownGroup { .. } => {
                Some("create the group in an earlier RUN (groupadd, addgroup) or name it by number".into())
            }
            Self::OutOfRange { .. } | Self::Read { .. } => None,
        }
    }
}

/// Looks up `user`, the text of the `USER` in force, in `rootfs`.
///
/// # Errors
/// [`UserError`]
pub fn lookup(rootfs: &Rootfs, user: &str) -> Result<RunUser, UserError> {
    let users = Users::read(rootfs).map_err(|(path, source)| UserError::Read { path: path.to_owned(), source });
    if let (Some((uid, gid)), Err(_)) = (numeric_pair(user), &users) {
        // Unreadable files do not matter where they are not needed; only HOME would come from them.
        return Ok(RunUser { uid, gid, groups: vec![gid], home: "/".into() });
    }
    find(&users?, user)
}

fn find(users: &Users, user: &str) -> Result<RunUser, UserError> {
    let mut found = if let Some((uid, gid)) = numeric_pair(user) {
        RunUser { uid, gid, groups: vec![gid], home: String::new() }
    } else {
        by_name(users, user)?
    };
    let home = users.user_by_id(found.uid).map(|user| user.home.as_str()).filter(|home| !home.is_empty());
    found.home = home.unwrap_or("/").to_owned();
    Ok(found)
}

fn numeric_pair(user: &str) -> Option<(u32, u32)> {
    let (uid, gid) = user.split_once(':')?;
    Some((digits(uid)?.parse().ok()?, digits(gid)?.parse().ok()?))
}

fn digits(text: &str) -> Option<&str> {
    (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

fn by_name(users: &Users, spec: &str) -> Result<RunUser, UserError> {
    let mut parts = spec.split(':');
    let (name, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());

    let (uid, entry) = if name.is_empty() {
        (0, users.user_by_id(0))
    } else if let Some(uid) = number(name)? {
        (uid, users.user_by_id(uid))
    } else {
        let entry = users.user(name).ok_or_else(|| UserError::UnknownUser { name: name.to_owned() })?;
        (entry.uid, Some(entry))
    };

    if group.is_empty() {
        let gid = entry.map_or(0, |entry| entry.gid);
        let mut groups = vec![gid];
        for other in entry.map(|entry| users.groups_of(&entry.name)).unwrap_or_default() {
            if !groups.contains(&other) {
                groups.push(other);
            }
        }
        return Ok(RunUser { uid, gid, groups, home: String::new() });
    }
    let gid = match number(group)? {
        Some(gid) => gid,
        None => users.group(group).ok_or_else(|| UserError::UnknownGroup { name: group.to_owned() })?.gid,
    };
    Ok(RunUser { uid, gid, groups: vec![gid], home: String::new() })
}

/// A number with an optional sign, as Go's `Atoi` takes it; anything else is a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits(unsigned).is_none() {
        return Ok(None);
    }
    let value = text.parse::<i64>().ok().and_then(|value| u32::try_from(value).ok());
    match value.filter(|&value| value <= LARGEST_ID) {
        Some(value) => Ok(Some(value)),
        None => Err(UserError::OutOfRange { id: text.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nappuser:x:1000:1000::/home/appuser:/bin/sh\n\
                          builder:x:1001:50::/home/builder:/bin/sh\nnohome:x:7:7:::\n77:x:5:6::/by-digits:\n";
    const GROUP: &str =
        "root:x:0:\nadm:x:4:appuser\nwheel:x:10:root,builder\nstaff:x:50:appuser,builder\nusers:x:100:\n";

    #[track_caller]
    fn check(spec: &str, ids: &str, home: &str) {
        let users = Users::parse(PASSWD.as_bytes(), GROUP.as_bytes());
        let found = find(&users, spec).expect(spec);
        let groups: Vec<_> = found.groups.iter().map(u32::to_string).collect();
        assert_eq!(format!("{}:{} {}", found.uid, found.gid, groups.join(" ")), ids, "ids of {spec:?}");
        assert_eq!(found.home, home, "home of {spec:?}");
    }

    #[track_caller]
    fn fails(spec: &str, message: &str) {
        let users = Users::parse(PASSWD.as_bytes(), GROUP.as_bytes());
        assert_eq!(find(&users, spec).expect_err(spec).to_string(), message, "{spec:?}");
    }

    #[test]
    fn every_spelling() {
        check("", "0:0 0 10", "/root");
        check("root", "0:0 0 10", "/root");
        check("0:0", "0:0 0", "/root");
        check("appuser", "1000:1000 1000 4 50", "/home/appuser");
        check("builder", "1001:50 50 10", "/home/builder");
        check("1001", "1001:50 50 10", "/home/builder");
        check("1001:100", "1001:100 100", "/home/builder");
        check("builder:users", "1001:100 100", "/home/builder");
        check("builder:", "1001:50 50 10", "/home/builder");
        check("4321", "4321:0 0", "/");
        check("4321:4322", "4321:4322 4322", "/");
        check("4321:users", "4321:100 100", "/");
        check(":50", "0:50 50", "/root");
        check("nohome", "7:7 7", "/");
        check("3000000000:3000000001", "3000000000:3000000001 3000000001", "/");
        check("77", "77:0 0", "/"); // a number is an id, also where a user is called so
    }

    #[test]
    fn unknown_names() {
        fails("ghost", "unable to find user ghost: no matching entries in passwd file");
        fails("ghost:root", "unable to find user ghost: no matching entries in passwd file");
        fails("root:phantom", "unable to find group phantom: no matching entries in group file");
        fails("-1", "uids and gids must be in range 0-2147483647, not -1");
        fails("3000000000", "uids and gids must be in range 0-2147483647, not 3000000000");
        fails("0:99999999999999999999", "uids and gids must be in range 0-2147483647, not 99999999999999999999");
    }
}
