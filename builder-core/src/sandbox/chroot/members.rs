//! Which processes belong to a RUN: those whose chain of parents leads to its keeper, which adopts orphans.

use std::fs;

use rustix::process::Gid;

/// The processes below one keeper.
#[derive(Debug, Clone, Copy)]
pub struct Members {
    /// Its id.
    pub keeper: i32,
}

/// Longest chain of parents that is followed; deeper than any process can be where ids have 22 bits is not needed.
const DEPTH: usize = 4096;

impl Members {
    /// Whether a process or thread is one of them. The keeper is not.
    pub fn contains(self, id: i32) -> bool {
        let mut at = id;
        for _ in 0..DEPTH {
            match parent(at) {
                Some(parent) if parent == self.keeper => return true,
                Some(parent) if parent > 1 => at = parent,
                _ => return false,
            }
        }
        false
    }

    /// All of them.
    pub fn list(self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|&id| self.contains(id)).collect()
    }

    /// Whether one of them is in this process group.
    pub fn have_group(self, group: i32) -> bool {
        // Mostly there is none of that number at all, which the kernel knows at once.
        let exists = rustix::process::Pid::from_raw(group).map(rustix::process::test_kill_process_group);
        if !matches!(exists, Some(Ok(()) | Err(rustix::io::Errno::PERM))) {
            return false;
        }
        self.list().into_iter().any(|id| stat_field(id, 2) == Some(group))
    }
}

/// The parent of a process; of a thread, that of its process.
pub fn parent(id: i32) -> Option<i32> {
    stat_field(id, 1)
}

/// A number of /proc/ID/stat, counted from the state on (proc(5)).
fn stat_field(id: i32, field: usize) -> Option<i32> {
    let text = fs::read(format!("/proc/{id}/stat")).ok()?;
    let after = text.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&text[after + 1..]).ok()?;
    text.split_ascii_whitespace().nth(field)?.parse().ok()
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_members() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let id = child.id().cast_signed();
        let members = Members { keeper: own };
        assert!(members.contains(id));
        assert!(members.list().contains(&id));
        assert!(!members.contains(own), "the keeper itself");
        assert!(!members.contains(1));
        assert!(!Members { keeper: id }.contains(own));
        let identity = Identity::of(id).expect("it lives");
        assert_eq!(umask(id), umask(own));
        assert_eq!((identity.process, identity.uid), (id, rustix::process::geteuid().as_raw()));
        child.kill().expect("kill");
        child.wait().expect("wait");
    }
}
