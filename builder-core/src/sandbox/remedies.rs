//! Why a tier was refused, in words, and what an administrator or the author of a pod can change.

use std::fs;
use std::io;

use super::supervision::Missing;
use super::sys::Refused;

/// What the kernel said to a namespace, and what would make it work.
pub fn namespaces(refused: Refused, error: &io::Error) -> (String, Vec<String>) {
    let what = match refused {
        Refused::Unshare => "unshare",
        Refused::Maps => "writing the id maps",
        Refused::Namespaces => "unshare of pid, ipc and uts namespaces",
        Refused::Private => "making mounts private",
        Refused::Mount => "mount",
        Refused::Attributes => "mount_setattr (Linux 5.12 or later is needed)",
    };
    let mut remedies = Vec::new();
    for (name, refusing, better) in [
        ("kernel.unprivileged_userns_clone", 0, "1"),
        ("kernel.apparmor_restrict_unprivileged_userns", 1, "0"),
        ("user.max_user_namespaces", 0, "15000"),
        ("user.max_mnt_namespaces", 0, "15000"),
    ] {
        if sysctl(name) == Some(refusing) {
            remedies.push(format!("sysctl {name}={better} (it is {refusing})"));
        }
    }
    let status = Status::read();
    if status.filtered {
        remedies.push(SECCOMP.to_owned());
    }
    remedies.extend(apparmor());
    if refused == Refused::Attributes {
        remedies.push("Linux 5.12 or later".to_owned());
    }
    if remedies.is_empty() {
        remedies.push(match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            Some(rustix::io::Errno::NOSPC) => "a larger sysctl user.max_user_namespaces".to_owned(),
            Some(rustix::io::Errno::NOSYS | rustix::io::Errno::INVAL) => "a kernel with CONFIG_USER_NS".to_owned(),
            Some(rustix::io::Errno::AGAIN) => more_processes(),
            Some(rustix::io::Errno::MFILE) => more_descriptors(),
            _ => "CAP_SYS_ADMIN (securityContext.capabilities.add: [SYS_ADMIN]), or a user namespace for the pod (hostUsers: false)"
                .to_owned(),
        });
    }
    (format!("{what}: {error}"), remedies)
}

/// What the kernel said to a supervisor's tools, and what would make it work.
pub fn supervision(missing: Missing, error: &io::Error) -> (String, Vec<String>) {
    let status = Status::read();
    let yama = sysctl("kernel.yama.ptrace_scope");
    let (what, mut remedies) = match missing {
        Missing::Process => ("fork", vec![]),
        Missing::Namespace => return namespaces(Refused::Unshare, error),
        Missing::Chroot => {
            ("chroot", vec!["capability SYS_CHROOT (not dropped in securityContext.capabilities.drop)".to_owned()])
        }
        Missing::Ids => (
            "becoming another user",
            vec![
                "capabilities SETUID, SETGID and SETPCAP (not dropped in securityContext.capabilities.drop)".to_owned(),
            ],
        ),
        Missing::NoNewPrivileges => ("no_new_privs", vec![]),
        Missing::Notification => (
            "seccomp user notification",
            vec![
                "Linux 5.9 or later with CONFIG_SECCOMP_FILTER (gVisor and some other sandboxes have none)".to_owned(),
            ],
        ),
        Missing::Memory => ("reading and writing a child's memory", vec![]),
        Missing::Tracing => ("ptrace", vec![]),
        Missing::Call(name) => (name, vec![format!("Linux 5.12 or later, with a seccomp profile that knows {name}")]),
    };
    if matches!(missing, Missing::Memory | Missing::Tracing) {
        match yama {
            Some(scope @ 2..) => remedies.push(format!("sysctl kernel.yama.ptrace_scope=1 (it is {scope})")),
            _ => remedies.push(
                "Linux 4.8 or later and a seccomp profile that allows ptrace, process_vm_readv and process_vm_writev"
                    .to_owned(),
            ),
        }
    }
    match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::AGAIN) => remedies = vec![more_processes()],
        Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => remedies = vec![more_descriptors()],
        _ => {}
    }
    if status.filtered && !matches!(missing, Missing::Process | Missing::Chroot | Missing::Ids) {
        remedies.push("securityContext.seccompProfile.type: RuntimeDefault, if a stricter one is set".to_owned());
    }
    (format!("{what}: {error}"), remedies)
}

/// The field of a pod that lifts a filter.
const SECCOMP: &str = "securityContext.seccompProfile.type: Unconfined (a seccomp filter is active)";

fn more_processes() -> String {
    "more processes (the pod's pid limit, `ulimit -u`)".to_owned()
}

fn more_descriptors() -> String {
    "more descriptors (`ulimit -n`)".to_owned()
}

fn apparmor() -> Option<String> {
    let profile = fs::read_to_string("/proc/self/attr/apparmor/current")
        .or_else(|_| fs::read_to_string("/proc/self/attr/current"))
        .unwrap_or_default();
    let profile = profile.trim_end_matches(['\0', '\n']);
    profile.ends_with("(enforce)").then(|| {
        format!("securityContext.appArmorProfile.type: Unconfined (the AppArmor profile {profile} is enforced)")
    })
}

/// A number from /proc/sys.
pub fn sysctl(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/{}", name.replace('.', "/"))).ok()?.trim().parse().ok()
}

/// What /proc/self/status says about confinement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status {
    /// A seccomp filter is active.
    pub filtered: bool,
    /// no_new_privs is set.
    pub no_new_privileges: bool,
    /// Effective capabilities.
    pub capabilities: u64,
}

impl Status {
    /// Of this process.
    pub fn read() -> Self {
        Self::parse(&fs::read_to_string("/proc/self/status").unwrap_or_default())
    }

    fn parse(status: &str) -> Self {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        Self {
            filtered: field("Seccomp:") == Some("2"),
            no_new_privileges: field("NoNewPrivs:") == Some("1"),
            capabilities: field("CapEff:").and_then(|text| u64::from_str_radix(text, 16).ok()).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_is_read() {
        let text = "Name:\tx\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t1\n";
        let expected = Status { filtered: true, no_new_privileges: true, capabilities: 0xa804_25fb };
        assert_eq!(Status::parse(text), expected);
        assert_eq!(Status::parse(""), Status { filtered: false, no_new_privileges: false, capabilities: 0 });
    }

    #[test]
    fn every_refusal_names_a_remedy() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        for refused in [Refused::Unshare, Refused::Maps, Refused::Mount, Refused::Attributes] {
            assert!(!namespaces(refused, &denied()).1.is_empty(), "{refused:?}");
        }
        for missing in [
            Missing::Chroot,
            Missing::Ids,
            Missing::Notification,
            Missing::Memory,
            Missing::Tracing,
            Missing::Call("statx"),
        ] {
            assert!(!supervision(missing, &denied()).1.is_empty(), "{missing:?}");
        }
        let full = io::Error::from_raw_os_error(libc::EAGAIN);
        assert!(supervision(Missing::Process, &full).1[0].contains("ulimit -u"));
    }
}
