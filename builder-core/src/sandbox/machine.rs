//! What `slipway info` tells about the kernel and the limits of this process, beside the tiers.

use std::fs;
use std::path::Path;

use rustix::process::Resource;

use super::remedies::{Status, sysctl};
use super::sys::landlock;

/// The kernel and the limits as this process meets them. Limits that are not set are `None`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Machine {
    /// Release, as uname(1) prints it.
    pub kernel: String,
    /// Machine, as uname(1) prints it: `x86_64`.
    pub machine: String,
    /// Effective capabilities, as a bit set (capabilities(7)).
    pub capabilities: u64,
    /// Whether a seccomp filter is active.
    pub seccomp_filter: bool,
    /// Whether no_new_privs is set.
    pub no_new_privileges: bool,
    /// Version of Landlock; 0 without.
    pub landlock: u32,
    /// sysctl kernel.yama.ptrace_scope; `None` without Yama.
    pub ptrace_scope: Option<i64>,
    /// Bytes of memory that the control group allows.
    pub memory: Option<u64>,
    /// Processes that the control group allows.
    pub processes: Option<u64>,
    /// Processors this process may use.
    pub processors: usize,
    /// Soft and hard limit of open files: getrlimit(2).
    pub descriptors: (Option<u64>, Option<u64>),
}

impl Machine {
    /// Looks.
    pub fn look() -> Self {
        let uname = rustix::system::uname();
        let status = Status::read();
        let files = rustix::process::getrlimit(Resource::Nofile);
        Self {
            kernel: uname.release().to_string_lossy().into_owned(),
            machine: uname.machine().to_string_lossy().into_owned(),
            capabilities: status.capabilities,
            seccomp_filter: status.filtered,
            no_new_privileges: status.no_new_privileges,
            landlock: landlock::version().unsigned_abs(),
            ptrace_scope: sysctl("kernel.yama.ptrace_scope"),
            memory: group_limit("memory.max", "memory", "memory.limit_in_bytes"),
            processes: group_limit("pids.max", "pids", "pids.max"),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            descriptors: (files.current, files.maximum),
        }
    }
}

/// Limits of the first version are this large, rounded to pages, where there is none.
const NO_LIMIT: u64 = 1 << 62;

/// The least that this process's control group and those around it allow: `unified` is the file of version 2, `file` the
/// one of version 1's `controller`. Groups outside of a container's own view count too, but nobody inside can see them.
fn group_limit(unified: &str, controller: &str, file: &str) -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let limits = groups.lines().filter_map(|line| {
        // cgroups(7): ID:CONTROLLERS:PATH
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (top, file) = match controllers {
            "" => (Path::new("/sys/fs/cgroup").to_owned(), unified),
            some if some.split(',').any(|one| one == controller) => {
                (Path::new("/sys/fs/cgroup").join(controller), file)
            }
            _ => return None,
        };
        let group = Path::new(path.trim_start_matches('/'));
        let read = |group: &Path| limit(&fs::read_to_string(top.join(group).join(file)).ok()?);
        group.ancestors().filter_map(read).min()
    });
    limits.min()
}

fn limit(text: &str) -> Option<u64> {
    // "max" is no number.
    text.trim().parse().ok().filter(|limit| *limit < NO_LIMIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read() {
        assert_eq!(limit("max\n"), None);
        assert_eq!(limit("536870912\n"), Some(512 << 20));
        assert_eq!(limit("9223372036854771712\n"), None, "version 1 without a limit");
    }

    #[test]
    fn this_machine() {
        let machine = Machine::look();
        assert!(machine.processors > 0);
        assert!(!machine.kernel.is_empty() && !machine.machine.is_empty());
    }
}
