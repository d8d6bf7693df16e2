//! `/etc/passwd` and `/etc/group` of an image, read as text: passwd(5), group(5).
//!
//! Both `USER` (in `sandbox`) and `--chown` (in `copy`) look names up here; what an unknown name means is theirs to say,
//! and differs. Lines that do not parse are skipped: images carry comments, NIS markers and worse.

use std::io;
use std::path::Path;

use super::View;

/// Longest passwd or group file that is read, in bytes. BuildKit refuses longer ones too (checklist C-32).
pub const USER_FILE_LIMIT: u64 = 10 << 20;

/// One line of passwd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Login name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Home directory; empty if the field is empty or missing.
    pub home: String,
}

/// One line of group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Group id.
    pub gid: u32,
    /// Names of the users that have it as a supplementary group.
    pub members: Vec<String>,
}

/// The users and groups of an image, in file order; where a name or id occurs twice, the first one counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Lines of passwd.
    pub users: Vec<User>,
    /// Lines of group.
    pub groups: Vec<Group>,
}

impl Users {
    /// Reads both files of a tree. A missing file has no lines.
    ///
    /// # Errors
    /// With the path: `InvalidData` if a file is not a regular file or is longer than [`USER_FILE_LIMIT`], or what the
    /// kernel says.
    pub fn read(tree: &dyn View<'_>) -> Result<Self, (&'static Path, io::Error)> {
        let text = |path: &'static str| match tree.read_small(Path::new(path), USER_FILE_LIMIT) {
            Ok(bytes) => Ok(bytes),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Vec::new())
            }
            Err(error) => Err((Path::new(path), error)),
        };
        Ok(Self::parse(&text("/etc/passwd")?, &text("/etc/group")?))
    }

    /// Reads the text of both files.
    pub fn parse(passwd: &[u8], group: &[u8]) -> Self {
        Self {
            users: lines(passwd).filter_map(|line| user(&line)).collect(),
            groups: lines(group).filter_map(|line| self::group(&line)).collect(),
        }
    }

    /// The user called `name`.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.iter().find(|user| user.name == name)
    }

    /// The first user with this id.
    pub fn user_by_id(&self, uid: u32) -> Option<&User> {
        self.users.iter().find(|user| user.uid == uid)
    }

    /// The group called `name`.
    pub fn group(&self, name: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.name == name)
    }

    /// Ids of the groups that list the user `name`, in file order.
    pub fn groups_of(&self, name: &str) -> Vec<u32> {
        let listed = self.groups.iter().filter(|group| group.members.iter().any(|member| member == name));
        listed.map(|group| group.gid).collect()
    }
}

fn lines(text: &[u8]) -> impl Iterator<Item = String> {
    text.split(|&byte| byte == b'\n').map(|line| String::from_utf8_lossy(line).trim().to_owned())
}

fn user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1).unwrap_or_default().to_owned();
    Some(User { name, uid, gid, home })
}

fn group(line: &str) -> Option<Group> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let gid = fields.nth(1)?.parse().ok()?;
    let members = fields.next().unwrap_or_default().split(',').map(str::trim).filter(|member| !member.is_empty());
    Some(Group { name, gid, members: members.map(str::to_owned).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(passwd: &str, group: &str, expected: &[(&str, u32, u32, &str)], members: &[(&str, u32, &[&str])]) {
        let users = Users::parse(passwd.as_bytes(), group.as_bytes());
        let seen: Vec<_> = users.users.iter().map(|u| (u.name.as_str(), u.uid, u.gid, u.home.as_str())).collect();
        assert_eq!(seen, expected, "{passwd:?}");
        for (name, gid, list) in members {
            let group = users.group(name).expect(name);
            assert_eq!(
                (group.gid, group.members.iter().map(String::as_str).collect::<Vec<_>>()),
                (*gid, list.to_vec())
            );
        }
        assert_eq!(users.groups.len(), members.len(), "{group:?}");
    }

    #[test]
    fn usual_lines() {
        check(
            "root:x:0:0:root:/root:/bin/sh\napp:x:1000:50:App:/home/app:/bin/sh\n",
            "root:x:0:\nwheel:x:10:root,app\n",
            &[("root", 0, 0, "/root"), ("app", 1000, 50, "/home/app")],
            &[("root", 0, &[]), ("wheel", 10, &["root", "app"])],
        );
    }

    #[test]
    fn odd_lines_are_skipped_or_short() {
        check(
            "# comment\n\n  \nshort:x:5:6\r\n+::::::\nbad:x:many:1::/:\n:x:1:1::/:\nlast:x:7:8::/l:/x",
            "# c\ng:x:3\nh:x:4: a , b,,\nbad:x:y:z",
            &[("short", 5, 6, ""), ("last", 7, 8, "/l")],
            &[("g", 3, &[]), ("h", 4, &["a", "b"])],
        );
    }

    #[test]
    fn ids_up_to_the_largest() {
        check(
            "m:x:4294967295:4294967294::/:/x\no:x:4294967296:0::/:\n",
            "",
            &[("m", u32::MAX, u32::MAX - 1, "/")],
            &[],
        );
    }

    #[test]
    fn the_first_of_two_counts() {
        let users = Users::parse(b"a:x:1:1::/one:\na:x:2:2::/two:\nb:x:1:3::/b:\n", b"g:x:1:a\nh:x:2:b\ni:x:3:a\n");
        assert_eq!(users.user("a").map(|u| u.uid), Some(1));
        assert_eq!(users.user_by_id(1).map(|u| u.name.as_str()), Some("a"));
        assert_eq!(users.groups_of("a"), [1, 3]);
        assert!(users.groups_of("nobody").is_empty());
    }
}
