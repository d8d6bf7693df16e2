//! Who makes a call that this process answers, and doing things as that user.

use std::fs;

use rustix::io::Errno;
use rustix::process::{Gid, Uid};

/// The file mode creation mask of a thread; `None` if it is gone.
pub fn umask(thread: i32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let mask = text.lines().find_map(|line| line.strip_prefix("Umask:"))?;
    u32::from_str_radix(mask.trim(), 8).ok()
}

/// Who a thread is: its process, and its real and effective ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Thread group.
    pub process: i32,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

impl Identity {
    /// Of a thread.
    pub fn of(thread: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
        let field = |name: &str, at: usize| -> Option<u32> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_ascii_whitespace().nth(at)?.parse().ok()
        };
        let process = i32::try_from(field("Tgid:", 0)?).ok()?;
        Some(Self { process, uid: field("Uid:", 1)?, gid: field("Gid:", 1)? })
    }

    /// The further groups of its process; none if it is gone.
    pub fn groups(self) -> Vec<Gid> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.process)).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        line.split_ascii_whitespace().filter_map(|group| Some(Gid::from_raw(group.parse().ok()?))).collect()
    }
}

/// The user of a call, for as long as this lives: the thread opens files with its rights. The saved id stays 0, by which the
/// thread comes back.
pub struct AsUser(Option<Vec<Gid>>);

impl AsUser {
    /// Becomes `identity`; nothing happens for root in root's group.
    ///
    /// # Errors
    /// `EPERM` without CAP_SETUID.
    pub fn new(identity: Identity) -> Result<Self, Errno> {
        if (identity.uid, identity.gid) == (0, 0) {
            return Ok(Self(None));
        }
        let changed = Self(Some(rustix::process::getgroups()?));
        rustix::thread::set_thread_groups(&identity.groups())?;
        let gid = Gid::from_raw(identity.gid);
        rustix::thread::set_thread_res_gid(gid, gid, Gid::ROOT)?;
        let uid = Uid::from_raw(identity.uid);
        rustix::thread::set_thread_res_uid(uid, uid, Uid::ROOT)?;
        Ok(changed)
    }
}

impl Drop for AsUser {
    fn drop(&mut self) {
        if let Some(groups) = self.0.take() {
            rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
                .expect("because the saved id is root's");
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).expect("because root may");
            rustix::thread::set_thread_groups(&groups).expect("because root may");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_are_known() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let id = child.id().cast_signed();
        let identity = Identity::of(id).expect("it lives");
        assert_eq!(umask(id), umask(own));
        assert_eq!((identity.process, identity.uid), (id, rustix::process::geteuid().as_raw()));
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
