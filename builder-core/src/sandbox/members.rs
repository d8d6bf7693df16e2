//! Which processes belong to a RUN that has no pid namespace: those whose chain of parents leads to its keeper, which adopts
//! orphans.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use rustix::process::{Pid, PidfdFlags};

/// The processes below one keeper.
#[derive(Debug, Clone, Copy)]
pub struct Members {
    keeper: i32,
    /// The ipc namespace that they alone are in, if they have one: tells most of them with one look.
    namespace: Option<(u64, u64)>,
}

/// Longest chain of parents that is followed; deeper than any process can be where ids have 22 bits is not needed.
const DEPTH: usize = 4096;

impl Members {
    /// Those below the process `keeper`.
    pub fn below(keeper: i32) -> Self {
        Self { keeper, namespace: None }
    }

    /// The same, where `first` of them was made with an ipc namespace of its own, which none of them can leave.
    pub fn in_namespace_of(self, first: i32) -> Self {
        Self { namespace: namespace_of(first), ..self }
    }

    /// Whether a process or thread is one of them. The keeper is not.
    pub fn contains(self, id: i32) -> bool {
        // Who has ended and is not waited for is in no namespace any more.
        if self.namespace.is_some() && namespace_of(id) == self.namespace {
            return true;
        }
        let mut chain = self.chain(id);
        loop {
            if chain.last() == Some(&self.keeper) {
                return true;
            }
            // One who ends while it is looked at gives its children away: what is said twice is true.
            let again = self.chain(id);
            if again == chain {
                return false;
            }
            chain = again;
        }
    }

    /// Its parent, the parent's parent and so on, up to the keeper or the first process.
    fn chain(self, id: i32) -> Vec<i32> {
        let mut chain = Vec::new();
        let mut at = id;
        while chain.len() < DEPTH {
            match parent(at) {
                Some(parent) if parent > 1 => {
                    chain.push(parent);
                    if parent == self.keeper {
                        break;
                    }
                    at = parent;
                }
                _ => break,
            }
        }
        chain
    }

    /// A descriptor of one of them, which stays with it when its number is used again; `None` for others.
    pub fn descriptor(self, id: i32) -> Option<std::os::fd::OwnedFd> {
        let descriptor = rustix::process::pidfd_open(Pid::from_raw(id)?, PidfdFlags::empty()).ok()?;
        self.contains(id).then_some(descriptor)
    }

    /// All of them.
    pub fn list(self) -> Vec<i32> {
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        ids.filter(|&id| self.contains(id)).collect()
    }

    /// Those of them that are in a process group.
    pub fn of_group(self, group: i32) -> Vec<i32> {
        // Mostly there is none of that number at all, which the kernel knows at once.
        let exists = Pid::from_raw(group).map(rustix::process::test_kill_process_group);
        if !matches!(exists, Some(Ok(()) | Err(rustix::io::Errno::PERM))) {
            return Vec::new();
        }
        self.list().into_iter().filter(|&id| group_of(id) == Some(group)).collect()
    }
}

/// The ipc namespace of a process; `None` if it is gone, or nobody may look.
fn namespace_of(id: i32) -> Option<(u64, u64)> {
    let found = fs::metadata(format!("/proc/{id}/ns/ipc")).ok()?;
    Some((found.dev(), found.ino()))
}

/// The parent of a process; of a thread, that of its process.
pub fn parent(id: i32) -> Option<i32> {
    stat_field(id, 1)
}

/// The number below /dev/pts of the terminal that controls a process, if it is one of these.
pub fn terminal(id: i32) -> Option<u32> {
    /// Device numbers of terminals below /dev/pts, 256 of each: Documentation/admin-guide/devices.txt of the kernel.
    const MAJORS: std::ops::RangeInclusive<u32> = 136..=143;
    let device = stat_field(id, 4)?.cast_unsigned();
    let (major, minor) = (device >> 8 & 0xfff, device & 0xff | device >> 12 & 0xf_ff00);
    MAJORS.contains(&major).then(|| (major - MAJORS.start()) * 256 + minor)
}

/// The group of a process; of a thread, that of its process.
pub fn group_of(id: i32) -> Option<i32> {
    stat_field(id, 2)
}

/// A number of /proc/ID/stat, counted from the state on (proc(5)).
fn stat_field(id: i32, field: usize) -> Option<i32> {
    let text = fs::read(format!("/proc/{id}/stat")).ok()?;
    let after = text.iter().rposition(|&byte| byte == b')')?;
    let text = std::str::from_utf8(&text[after + 1..]).ok()?;
    text.split_ascii_whitespace().nth(field)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_members() {
        let own = rustix::process::getpid().as_raw_nonzero().get();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("sleep");
        let id = child.id().cast_signed();
        let members = Members::below(own);
        assert!(members.contains(id));
        assert!(members.list().contains(&id));
        assert!(members.descriptor(id).is_some());
        assert!(!members.contains(own), "the keeper itself");
        assert!(members.descriptor(own).is_none());
        assert!(!members.contains(1));
        assert!(!Members::below(id).contains(own));
        child.kill().expect("kill");
        let waits = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), waits).expect("waitid");
        assert!(members.in_namespace_of(own).contains(id), "until it has been waited for");
        child.wait().expect("wait");
        assert!(!members.contains(id));
    }
}
