//! What a caller may do to files, by the ids and modes that it sees: path_resolution(7), capabilities(7).

use rustix::fs::{AtFlags, OFlags, Statx};
use rustix::io::Errno;

use super::held::Directory;
use super::ids::{Credentials, capability};
use super::view::{Kind, Mount, Place, STAT};
use super::world::Caller;

/// Ways in which a file is accessed: access(2).
pub mod may {
    pub const EXECUTE: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const READ: u32 = 4;
}

impl Caller<'_> {
    /// Whether every directory on the way may be searched.
    pub fn check_way(&self, place: &Place<'_>, me: &Credentials) -> Result<(), Errno> {
        let view = &self.world.view;
        let way = std::iter::once(&place.path).map(|path| {
            let end = path.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
            &path[..end]
        });
        for path in way.chain(place.passed.iter().map(Vec::as_slice)) {
            let ends = std::iter::once(0).chain((1..path.len()).filter(|&at| path[at] == b'/')).chain([path.len()]);
            for end in ends {
                let path = &path[..end];
                let mount = view.mount(path);
                if matches!(mount.kind, Kind::Proc | Kind::Sys) {
                    continue;
                }
                let Ok(fd) = view.open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW) else { break };
                let stat = rustix::fs::statx(&fd, "", AtFlags::EMPTY_PATH, STAT)?;
                self.allow(&self.world.shown(&stat, Some(mount), me), may::EXECUTE, me)?;
            }
        }
        Ok(())
    }

    /// Whether a file may be accessed so.
    ///
    /// # Errors
    /// `EACCES`
    pub fn allow(&self, shown: &Statx, wanted: u32, me: &Credentials) -> Result<(), Errno> {
        let mode = u32::from(shown.stx_mode);
        let directory = mode & libc::S_IFMT == libc::S_IFDIR;
        let listed = if self.world.has_lists() { self.listed(shown, wanted, me) } else { None };
        let granted = if shown.stx_uid == me.user.files {
            mode >> 6
        } else if let Some(bits) = listed {
            bits
        } else if me.is_in(shown.stx_gid) {
            mode >> 3
        } else {
            mode
        };
        let missing = wanted & !(granted & 7);
        if missing == 0 {
            return Ok(());
        }
        let overridden = if me.can(capability::DAC_OVERRIDE) {
            // Executing needs one of the bits, whoever asks.
            directory || missing & may::EXECUTE == 0 || mode & 0o111 != 0
        } else {
            me.can(capability::DAC_READ_SEARCH) && (directory && missing & may::WRITE == 0 || missing == may::READ)
        };
        if overridden { Ok(()) } else { Err(Errno::ACCESS) }
    }

    /// Whether the caller may change attributes of a file: it is the owner, or root.
    ///
    /// # Errors
    /// `EPERM`
    pub fn own(&self, shown: &Statx, me: &Credentials) -> Result<(), Errno> {
        if shown.stx_uid == me.user.files || me.can(capability::FOWNER) { Ok(()) } else { Err(Errno::PERM) }
    }

    /// Whether entries of the directory `parent` may be made, or removed: `victim` is what is removed.
    ///
    /// # Errors
    /// `EACCES`, `EPERM`, `EROFS`.
    pub fn change(
        &self,
        mount: &Mount,
        parent: &Directory,
        victim: Option<&std::ffi::OsStr>,
        me: &Credentials,
    ) -> Result<(), Errno> {
        if me.can(capability::DAC_OVERRIDE) && me.can(capability::FOWNER) {
            return Ok(());
        }
        let real = rustix::fs::statx(parent, "", AtFlags::EMPTY_PATH, STAT)?;
        let directory = self.world.shown(&real, Some(mount), me);
        self.allow(&directory, may::WRITE | may::EXECUTE, me)?;
        let sticky = u32::from(directory.stx_mode) & 0o1000 != 0;
        if let Some(name) = victim.filter(|_| sticky && directory.stx_uid != me.user.files) {
            let real = rustix::fs::statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, STAT)?;
            self.own(&self.world.shown(&real, Some(mount), me), me)?;
        }
        Ok(())
    }
}
