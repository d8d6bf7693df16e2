//! What this process may do, found out by doing it in a child process, and then done.
//!
//! The first that works is taken. Whether it works is tried in a forked child with everything that a RUN needs: the
//! namespaces and a mount in them.
//!
//! # Limitations
//! Names from directory services (LDAP, sssd) are not asked for subordinate ranges; ranges can be given by number in
//! /etc/subuid. `newuidmap` is looked for in the usual directories only, not in `PATH`, as it is a privileged program.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::ids::{IdRanges, granted};
use super::sys::{self, Ids, Outsider, Refused, try_namespaces};

/// What this process may do, found out by doing it. Made once by [`enter`](super::enter).
#[derive(Debug, Clone)]
pub struct Environment {
    /// Which ids can be used.
    pub ids: IdMapping,
    /// One line for `slipway info`, per refused possibility.
    pub refused: Vec<String>,
    /// How commands are run; `None` if they cannot be.
    pub tier: Option<Tier>,
    /// User ids that exist inside.
    pub uids: IdRanges,
    /// Group ids that exist inside.
    pub gids: IdRanges,
    /// The kernel's release, as uname(1) prints it.
    pub kernel: String,
}

/// How commands are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Own namespaces and mounts.
    Namespaces,
}

/// Ids that exist inside.
///
/// | [`IdMapping`] | who | files and processes can belong to | RUN cannot |
/// |---|---|---|---|
/// | `Root` | root with CAP_SYS_ADMIN | every id | – |
/// | `Identity` | root without it, where user namespaces are allowed (a pod without a seccomp profile) | every id that the container has | make device nodes |
/// | `Subordinate` | a user with ranges in /etc/subuid and /etc/subgid, and newuidmap(1) | as many ids as granted, usually 65,536; inside they begin at 0 | make device nodes, use larger ids |
/// | `Single` | any other user | id 0 only, which is the user itself | `chown` to, `setuid` to or `USER` of another id (`EINVAL`), setgroups(2), device nodes |
/// | `None` | nobody's fault: see [`Environment::refused`] | | run at all |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdMapping {
    /// Real root with CAP_SYS_ADMIN; no user namespace is needed.
    Root,
    /// A user namespace in which root's ids are as outside (root in a container without CAP_SYS_ADMIN).
    Identity,
    /// A user namespace with subordinate ids from /etc/subuid and /etc/subgid.
    Subordinate,
    /// A user namespace with one id.
    Single,
    /// None of these: RUN is not possible here.
    None,
}

impl IdMapping {
    /// For `slipway info`: what it is and what it means.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Root => "root: every id, no user namespace needed",
            Self::Identity => "root in a user namespace: every id of this container",
            Self::Subordinate => "a user namespace with subordinate ids (/etc/subuid, /etc/subgid)",
            Self::Single => "a user namespace with one id: everything belongs to you, shown as root",
            Self::None => "none: commands cannot be run, builds without RUN work",
        }
    }
}

impl Environment {
    /// Advice after a RUN failed, if this environment may be why.
    pub fn failed_run_hint(&self) -> Option<String> {
        (self.ids == IdMapping::Single).then(|| {
            "only one user id exists in this sandbox, so `chown`, `su` and package managers that switch users fail with \
             \"Invalid argument\"; grant subordinate ids (`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 \
             $USER`, package uidmap) to give the build all of them"
                .to_owned()
        })
    }

    /// For `slipway info`: name and value, most important first, one line each.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let tier = match self.tier {
            Some(Tier::Namespaces) => "namespaces",
            None => "none",
        };
        let mut facts = vec![
            ("sandbox", tier.to_owned()),
            ("ids", self.ids.describe().to_owned()),
            ("user ids", self.uids.count().to_string()),
            ("group ids", self.gids.count().to_string()),
            ("kernel", self.kernel.clone()),
        ];
        facts.extend(self.refused.iter().map(|reason| ("refused", reason.clone())));
        facts
    }
}

/// A way to get ids, with all that is needed to try and to take it.
enum Candidate {
    Root,
    UserNamespace { ids: IdMapping, uids: IdRanges, gids: IdRanges, how: Writer },
}

/// Who writes the maps.
#[derive(Clone, Copy)]
enum Writer {
    /// The process in the namespace itself: one id, without setgroups(2).
    Itself,
    /// A process outside with CAP_SETUID and CAP_SETGID: this program.
    Outside,
    /// newuidmap(1) and newgidmap(1).
    Programs,
}

/// Looks without changing the calling process.
pub(super) fn probe() -> Environment {
    choose().0
}

/// See [`super::enter`].
pub(super) fn enter() -> io::Result<Environment> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let message = format!("the process has {threads} threads; namespaces can be entered only with one");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let (mut environment, candidate) = choose();
    match candidate {
        None => return Ok(environment),
        Some(Candidate::Root) => sys::unshare(UnshareFlags::NEWNS)?,
        Some(Candidate::UserNamespace { uids, gids, how, .. }) => {
            enter_user_namespace(&uids, &gids, how)?;
            environment.uids = IdRanges::read(Path::new("/proc/self/uid_map"))?;
            environment.gids = IdRanges::read(Path::new("/proc/self/gid_map"))?;
        }
    }
    // What we mount must not appear outside; what is mounted outside (an automounter's work) may appear here.
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    // Where /proc cannot be mounted afresh a RUN sees the outer one. It has our user id, so this keeps it away from our
    // memory, environment and descriptors: ptrace(2), "Ptrace access mode checking".
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(environment)
}

fn choose() -> (Environment, Option<Candidate>) {
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let mut environment = Environment {
        ids: IdMapping::None,
        refused: Vec::new(),
        tier: None,
        uids: IdRanges::read(Path::new("/proc/self/uid_map")).unwrap_or_default(),
        gids: IdRanges::read(Path::new("/proc/self/gid_map")).unwrap_or_default(),
        kernel,
    };
    for candidate in candidates(&mut environment) {
        match try_out(&candidate) {
            Ok(()) => {
                environment.tier = Some(Tier::Namespaces);
                environment.ids = match &candidate {
                    Candidate::Root => IdMapping::Root,
                    Candidate::UserNamespace { ids, uids, gids, .. } => {
                        (environment.uids, environment.gids) = (uids.clone(), gids.clone());
                        *ids
                    }
                };
                return (environment, Some(candidate));
            }
            Err(reason) => {
                let name = match &candidate {
                    Candidate::Root => "namespaces as root",
                    Candidate::UserNamespace { ids: IdMapping::Identity, .. } => "a user namespace for root",
                    Candidate::UserNamespace { ids: IdMapping::Subordinate, .. } => "subordinate ids",
                    Candidate::UserNamespace { .. } => "a user namespace with one id",
                };
                environment.refused.push(format!("{name}: {reason}"));
            }
        }
    }
    (environment, None)
}

/// What could work for this user, best first; adds to `refused` what cannot even be tried.
fn candidates(environment: &mut Environment) -> Vec<Candidate> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let mut candidates = Vec::new();
    if uid == 0 {
        candidates.push(Candidate::Root);
        let (uids, gids) = (environment.uids.identity(), environment.gids.identity());
        candidates.push(Candidate::UserNamespace { ids: IdMapping::Identity, uids, gids, how: Writer::Outside });
    } else {
        match subordinate(uid, gid) {
            Ok((uids, gids)) => {
                let ids = IdMapping::Subordinate;
                candidates.push(Candidate::UserNamespace { ids, uids, gids, how: Writer::Programs });
            }
            Err(reason) => environment.refused.push(format!("subordinate ids: {reason}")),
        }
    }
    candidates.push(Candidate::UserNamespace {
        ids: IdMapping::Single,
        uids: IdRanges::single(uid),
        gids: IdRanges::single(gid),
        how: Writer::Itself,
    });
    candidates
}

fn subordinate(uid: u32, gid: u32) -> Result<(IdRanges, IdRanges), String> {
    let passwd = fs::read("/etc/passwd").unwrap_or_default();
    let users = crate::rootfs::Users::parse(&passwd, b"");
    let name = users.user_by_id(uid).map(|user| user.name.as_str());
    let ranges = |path: &str| {
        let file = fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"))?;
        let ranges = granted(&file, uid, name);
        if ranges.is_empty() {
            let who = name.map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"));
            return Err(format!("{path} has no range for {who}"));
        }
        Ok(ranges)
    };
    let (subuids, subgids) = (ranges("/etc/subuid")?, ranges("/etc/subgid")?);
    for program in ["newuidmap", "newgidmap"] {
        find_program(program).ok_or_else(|| format!("{program} is not installed (package uidmap or shadow-utils)"))?;
    }
    Ok((IdRanges::subordinate(uid, &subuids), IdRanges::subordinate(gid, &subgids)))
}

fn find_program(name: &str) -> Option<PathBuf> {
    // The last one is where NixOS keeps its setuid programs.
    let directories = ["/usr/bin", "/bin", "/usr/local/bin", "/usr/sbin", "/run/wrappers/bin"];
    directories.into_iter().map(|directory| Path::new(directory).join(name)).find(|path| path.is_file())
}

fn try_out(candidate: &Candidate) -> Result<(), String> {
    let result = match candidate {
        Candidate::Root => try_namespaces(&Ids::Outer),
        Candidate::UserNamespace { uids, gids, how: Writer::Itself, .. } => {
            let (uid_map, gid_map) = (uids.to_map(), gids.to_map());
            try_namespaces(&Ids::Own { uid_map: uid_map.as_bytes(), gid_map: gid_map.as_bytes() })
        }
        Candidate::UserNamespace { uids, gids, how, .. } => {
            try_namespaces(&Ids::Given(&|pid| write_maps(pid, uids, gids, *how)))
        }
    };
    result.map_err(|(refused, error)| explain(refused, &error))
}

fn enter_user_namespace(uids: &IdRanges, gids: &IdRanges, how: Writer) -> io::Result<()> {
    let namespaces = UnshareFlags::NEWUSER | UnshareFlags::NEWNS;
    if let Writer::Itself = how {
        let (uid_map, gid_map) = (uids.to_map(), gids.to_map());
        sys::unshare(namespaces)?;
        return Ok(sys::write_own_maps(uid_map.as_bytes(), gid_map.as_bytes())?);
    }
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    let outsider = Outsider::new(|| write_maps(pid, uids, gids, how))?;
    sys::unshare(namespaces)?;
    outsider.act()
}

/// Writes the maps of process `pid` from outside its namespace.
fn write_maps(pid: i32, uids: &IdRanges, gids: &IdRanges, how: Writer) -> io::Result<()> {
    let kinds = [("newuidmap", "uid_map", uids), ("newgidmap", "gid_map", gids)];
    for (program, file, ranges) in kinds {
        match how {
            Writer::Programs => run_map_program(program, pid, ranges)?,
            Writer::Itself | Writer::Outside => fs::write(format!("/proc/{pid}/{file}"), ranges.to_map())?,
        }
    }
    Ok(())
}

fn run_map_program(name: &str, pid: i32, ranges: &IdRanges) -> io::Result<()> {
    let path = find_program(name).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("no {name}")))?;
    let output = Command::new(path).arg(pid.to_string()).args(ranges.to_arguments()).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(io::Error::other(format!("{name} failed ({}): {said}", output.status)))
}

/// Why, and what an administrator or the author of a pod can change.
fn explain(refused: Refused, error: &io::Error) -> String {
    let what = match refused {
        Refused::Unshare => "unshare",
        Refused::Maps => "writing the id maps",
        Refused::Namespaces => "unshare of pid, ipc and uts namespaces",
        Refused::Private => "making mounts private",
        Refused::Mount => "mount",
        Refused::Attributes => "mount_setattr (Linux 5.12 or later is needed)",
    };
    let mut text = format!("{what}: {error}");
    for cause in causes() {
        text.push_str("; ");
        text.push_str(&cause);
    }
    text
}

/// Settings of this machine that refuse user namespaces or mounts.
fn causes() -> Vec<String> {
    let sysctl = |name: &str| {
        let path = format!("/proc/sys/{}", name.replace('.', "/"));
        fs::read_to_string(path).ok()?.trim().parse::<i64>().ok()
    };
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let mut causes = Vec::new();
    for (name, refusing) in [
        ("kernel.unprivileged_userns_clone", 0),
        ("kernel.apparmor_restrict_unprivileged_userns", 1),
        ("user.max_user_namespaces", 0),
        ("user.max_mnt_namespaces", 0),
    ] {
        if sysctl(name) == Some(refusing) {
            causes.push(format!("sysctl {name} is {refusing}"));
        }
    }
    if field("Seccomp:") == Some("2") {
        causes.push(
            "a seccomp filter is active (in a pod: securityContext.seccompProfile.type; Unconfined allows it)"
                .to_owned(),
        );
    }
    if field("NoNewPrivs:") == Some("1") {
        causes.push("no_new_privs is set (in a pod: securityContext.allowPrivilegeEscalation: false)".to_owned());
    }
    let profile = fs::read_to_string("/proc/self/attr/apparmor/current")
        .or_else(|_| fs::read_to_string("/proc/self/attr/current"))
        .unwrap_or_default();
    let profile = profile.trim_end_matches(['\0', '\n']);
    if profile.ends_with("(enforce)") {
        causes.push(format!(
            "the AppArmor profile {profile} is enforced (in a pod: securityContext.appArmorProfile.type; Unconfined allows it)"
        ));
    }
    causes
}
