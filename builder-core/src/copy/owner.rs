//! `--chown` and the owner of a WORKDIR: names looked up in the target (checklist C-30 to C-33).

use std::path::Path;

use super::{CopyError, io_error};
use crate::rootfs::{Users, View};

/// Looks up `user[:group]` in the target as it is now. What is unknown there is 0, silently, as in BuildKit.
///
/// # Errors
/// [`CopyError::NoUsers`] for a name when the target is still empty; [`CopyError::Users`] for user files that cannot be
/// read.
pub(super) fn look_up(target: &dyn View<'_>, spec: &str) -> Result<(u32, u32), CopyError> {
    let (user, group) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    // An empty side counts as the number 0.
    let user = if group.is_some() && user.is_empty() { Id::Number(0) } else { Id::new(user) };
    let group = group.map(|group| if group.is_empty() { Id::Number(0) } else { Id::new(group) });
    let is_name = |id: &Id<'_>| matches!(id, Id::Name(_));
    let users = if is_name(&user) || group.as_ref().is_some_and(is_name) {
        if target.is_empty().map_err(|error| io_error("list", Path::new("/"), error))? {
            return Err(CopyError::NoUsers { spec: spec.to_owned() });
        }
        Users::read(target).map_err(|(path, source)| CopyError::Users { path: path.to_owned(), source })?
    } else {
        Users::default()
    };
    let (uid, primary) = match user {
        Id::Number(id) => (id, id),
        Id::Name(name) => users.user(name).map_or((0, 0), |user| (user.uid, user.gid)),
    };
    let gid = match group {
        None => primary,
        Some(Id::Number(id)) => id,
        Some(Id::Name(name)) => users.group(name).map_or(primary, |group| group.gid),
    };
    Ok((uid, gid))
}

enum Id<'a> {
    Number(u32),
    Name(&'a str),
}

impl<'a> Id<'a> {
    fn new(text: &'a str) -> Self {
        if text == "root" {
            return Self::Number(0);
        }
        // Go's ParseInt with 32 bits; ids above are names that nobody has.
        match text.parse::<i32>() {
            Ok(id) => Self::Number(id.cast_unsigned()),
            Err(_) => Self::Name(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rootfs::Rootfs;

    #[test]
    fn all_forms() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let target = Rootfs::open(directory.path()).expect("open");
        assert!(matches!(look_up(&target, "app"), Err(CopyError::NoUsers { .. })));
        assert!(matches!(look_up(&target, "5:staff"), Err(CopyError::NoUsers { .. })));
        assert_eq!(look_up(&target, "12:34").expect("numbers need no files"), (12, 34));
        std::fs::create_dir(directory.path().join("etc")).expect("mkdir");
        assert_eq!(look_up(&target, "app:staff").expect("missing files have no lines"), (0, 0));
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("write");
        write("etc/real", "root:x:0:0::/:\napp:x:1000:1001::/:\nbuilder:x:7:8::/:\n");
        std::os::unix::fs::symlink("/etc/real", directory.path().join("etc/passwd")).expect("symlink");
        write("etc/group", "staff:x:50:app\n");
        for (spec, expected) in [
            ("app", (1000, 1001)),
            ("app:staff", (1000, 50)),
            ("1001", (1001, 1001)),
            ("1001:7", (1001, 7)),
            ("builder:9", (7, 9)),
            ("7:staff", (7, 50)),
            (":staff", (0, 50)),
            ("app:", (1000, 0)),
            ("root", (0, 0)),
            ("99999:88888", (99999, 88888)),
            ("ghost:phantom", (0, 0)),
            ("ghost", (0, 0)),
            ("app:phantom", (1000, 1001)),
        ] {
            assert_eq!(look_up(&target, spec).expect(spec), expected, "{spec}");
        }
        std::fs::remove_file(directory.path().join("etc/group")).expect("rm");
        std::fs::create_dir(directory.path().join("etc/group")).expect("mkdir");
        assert!(matches!(look_up(&target, "app"), Err(CopyError::Users { .. })));
    }
}
