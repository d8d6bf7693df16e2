//! What this process may do, found out by doing it in a child process, and then done.
//!
//! The strongest that works is taken, unless it cannot make a file belong to anyone but one user and a weaker one can play
//! all of them: a build must give the same image for everybody who runs it. Whether it works is tried in a forked child with everything that a RUN needs: the
//! namespaces and a mount in them; or a chroot, and a system call that this process answers.
//!
//! # Limitations
//! Names from directory services (LDAP, sssd) are not asked for subordinate ranges; ranges can be given by number in
//! /etc/subuid. `newuidmap` is looked for in the usual directories only, not in `PATH`, as it is a privileged program.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::MountPropagationFlags;
use rustix::thread::UnshareFlags;

use super::SandboxError;
use super::counters::Counters;
use super::ids::{IdRanges, granted};
use super::processes::Processes;
use super::remedies;
use super::supervision::{Supervised, try_calls, try_supervision};
use super::sys::{self, Ids, Outsider, try_namespaces};
use crate::rootfs::Volume;

/// What [`enter_as`](super::enter_as) is asked for. The default is the strongest tier that works.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// This tier or none.
    pub tier: Option<Tier>,
    /// Where trees will be: tiers that its volume cannot serve are refused. Made if it is missing.
    pub work_dir: Option<PathBuf>,
}

/// What this process may do, found out by doing it. Made once by [`enter`](super::enter).
#[derive(Debug, Clone)]
pub struct Environment {
    /// Which ids can be used.
    pub ids: IdMapping,
    /// What was tried before and refused, strongest first; and what works but was not the best choice, with the reason.
    pub refused: Vec<Refusal>,
    /// How commands are run; `None` if they cannot be.
    pub tier: Option<Tier>,
    /// Which processes a command sees, and what keeps it from the others.
    pub processes: Processes,
    /// Whether a command can have a network of its own, which reaches nothing: for `--network=none`.
    pub own_network: bool,
    /// User ids that exist inside.
    pub uids: IdRanges,
    /// Group ids that exist inside.
    pub gids: IdRanges,
    /// The kernel's release, as uname(1) prints it.
    pub kernel: String,
    /// What was read and written.
    pub counters: Counters,
}

/// How commands are run, the strongest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Tier {
    /// Own namespaces and mounts.
    Namespaces,
    /// A chroot, with `/proc`, `/sys` and `/dev` served by this process. Needs root with the capabilities that container
    /// runtimes leave it.
    Chroot,
    /// Every system call with a path, an id or mount state is answered by this process. Needs nothing.
    Traced,
}

impl Tier {
    /// All of them, the strongest first.
    pub const ALL: [Self; 3] = [Self::Namespaces, Self::Chroot, Self::Traced];

    /// As `--sandbox` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Chroot => "chroot",
            Self::Traced => "traced",
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A possibility that this machine does not give.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Refusal {
    /// The tier it is a way to.
    pub tier: Tier,
    /// What was tried: `a user namespace for root`.
    pub attempt: String,
    /// What the kernel said to what.
    pub reason: String,
    /// What would make it work: a field of a pod, a sysctl, a package. Never empty for what a setting refuses.
    pub remedies: Vec<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.tier, self.attempt, self.reason)?;
        for (number, remedy) in self.remedies.iter().enumerate() {
            write!(f, "{}{remedy}", if number == 0 { "; remedy: " } else { "; or: " })?;
        }
        Ok(())
    }
}

/// Ids that exist inside.
///
/// | [`IdMapping`] | who | files and processes can belong to | RUN cannot |
/// |---|---|---|---|
/// | `Root` | root with CAP_SYS_ADMIN, and root in the tier `chroot` | every id | in the tier `chroot`: open device nodes other than the harmless ones |
/// | `Identity` | root without it, where user namespaces are allowed (a pod without a seccomp profile) | every id that the container has | open device nodes |
/// | `Subordinate` | a user with ranges in /etc/subuid and /etc/subgid, and newuidmap(1) | as many ids as granted, usually 65,536; inside they begin at 0 | open device nodes, use larger ids |
/// | `Single` | any other user | id 0 only, which is the user itself | `chown` to, `setuid` to or `USER` of another id (`EINVAL`), setgroups(2), open device nodes |
/// | `Played` | any user, in the tier `traced` | every id, as far as the build can see | – |
/// | `None` | nobody's fault: see [`Environment::refused`] | | run at all |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum IdMapping {
    /// Real root's own ids, without a user namespace.
    Root,
    /// A user namespace in which root's ids are as outside (root in a container without CAP_SYS_ADMIN).
    Identity,
    /// A user namespace with subordinate ids from /etc/subuid and /etc/subgid.
    Subordinate,
    /// A user namespace with one id.
    Single,
    /// One real id that plays all others; what it plays is recorded beside the tree.
    Played,
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
            Self::Played => "one real id that plays all others; owners are recorded beside the tree",
            Self::None => "none: commands cannot be run, builds without RUN work",
        }
    }
}

impl Environment {
    /// Advice after a RUN failed, if this environment may be why.
    pub fn failed_run_hint(&self) -> Option<String> {
        (self.ids == IdMapping::Single).then(|| {
            format!(
                "only one user id exists in this sandbox, so `chown`, `su` and package managers that switch users fail \
                 with \"Invalid argument\"; `--sandbox auto` plays all ids where `slipway info` says that the tier \
                 traced is possible, and {SUBORDINATE_IDS} give the build real ones"
            )
        })
    }

    /// Whether commands can be run.
    ///
    /// # Errors
    /// [`SandboxError::Unavailable`] with everything that was refused and what would help.
    pub fn available(&self) -> Result<(), SandboxError> {
        if self.tier.is_some() {
            return Ok(());
        }
        let reasons: Vec<_> = self.refused.iter().map(ToString::to_string).collect();
        Err(SandboxError::Unavailable { reason: reasons.join("\n") })
    }

    /// For `slipway info`: name and value, most important first, one line each.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        vec![
            ("sandbox", self.tier.map_or("none", Tier::name).to_owned()),
            ("ids", self.ids.describe().to_owned()),
            ("processes", self.processes.describe(self.tier)),
            ("user ids", self.uids.count().to_string()),
            ("group ids", self.gids.count().to_string()),
            ("kernel", self.kernel.clone()),
        ]
    }
}

/// What gives a user more ids than its own.
const SUBORDINATE_IDS: &str = "ranges in /etc/subuid and /etc/subgid (`usermod --add-subuids 100000-165535 --add-subgids \
                               100000-165535 $USER`), and package uidmap";

/// What gives root of a container more ids than its own.
const IDS_OF_A_CONTAINER: &str =
    "more ids in the id map of the container, with capabilities SETUID and SETGID (securityContext.capabilities.add)";

/// A way to get ids, with all that is needed to try and to take it.
enum Candidate {
    Root,
    UserNamespace {
        ids: IdMapping,
        uids: IdRanges,
        gids: IdRanges,
        how: Writer,
    },
    Chroot,
    /// In a user namespace with these ids if there are any: nothing is mounted there, but a command can be kept from the
    /// network, and files of the user's own can be read whatever their mode.
    Traced {
        namespace: Option<(IdRanges, IdRanges)>,
    },
}

impl Candidate {
    fn tier(&self) -> Tier {
        match self {
            Self::Root | Self::UserNamespace { .. } => Tier::Namespaces,
            Self::Chroot => Tier::Chroot,
            Self::Traced { .. } => Tier::Traced,
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Root => "namespaces as root",
            Self::UserNamespace { ids: IdMapping::Identity, .. } => "a user namespace for root",
            Self::UserNamespace { ids: IdMapping::Subordinate, .. } => "subordinate ids",
            Self::UserNamespace { .. } => "a user namespace with one id",
            Self::Chroot => "a chroot as root",
            Self::Traced { namespace: Some(_) } => "tracing in a user namespace",
            Self::Traced { namespace: None } => "tracing without privileges",
        }
    }
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
pub(super) fn probe(wish: &Wish) -> Environment {
    choose(wish).0
}

/// Each tier by itself, the strongest first.
pub(super) fn survey(work_dir: Option<&Path>) -> Vec<(Tier, Environment)> {
    let alone = |tier| (tier, choose(&Wish { tier: Some(tier), work_dir: work_dir.map(Path::to_owned) }).0);
    Tier::ALL.into_iter().map(alone).collect()
}

/// See [`super::enter_as`].
pub(super) fn enter(wish: &Wish) -> io::Result<Environment> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        let message = format!("the process has {threads} threads; namespaces can be entered only with one");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
    }
    let (mut environment, candidate) = choose(wish);
    match candidate {
        None => return Ok(environment),
        Some(Candidate::Root) => sys::unshare(UnshareFlags::NEWNS)?,
        Some(Candidate::UserNamespace { uids, gids, how, .. }) => {
            enter_user_namespace(&uids, &gids, how)?;
            environment.uids = IdRanges::read(Path::new("/proc/self/uid_map"))?;
            environment.gids = IdRanges::read(Path::new("/proc/self/gid_map"))?;
        }
        Some(Candidate::Traced { namespace: Some((uids, gids)) }) => {
            enter_user_namespace(&uids, &gids, Writer::Itself)?
        }
        Some(Candidate::Chroot | Candidate::Traced { namespace: None }) => {}
    }
    if environment.tier == Some(Tier::Namespaces) || environment.own_network {
        // What we mount must not appear outside; what is mounted outside (an automounter's work) may appear here.
        rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    }
    // A RUN may have our user id, and see the outer /proc. This keeps it away from our memory, environment and
    // descriptors: ptrace(2), "Ptrace access mode checking".
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(environment)
}

fn choose(wish: &Wish) -> (Environment, Option<Candidate>) {
    let uname = rustix::system::uname();
    let kernel = uname.release().to_string_lossy().into_owned();
    let mut environment = Environment {
        ids: IdMapping::None,
        refused: Vec::new(),
        tier: None,
        processes: Processes::Guarded,
        own_network: false,
        uids: IdRanges::read(Path::new("/proc/self/uid_map")).unwrap_or_default(),
        gids: IdRanges::read(Path::new("/proc/self/gid_map")).unwrap_or_default(),
        kernel,
        counters: Counters::open(),
    };
    // Works, but cannot make owners real.
    let mut second_choice = None;
    let mut chosen = None;
    for candidate in candidates(&mut environment) {
        if wish.tier.is_some_and(|tier| tier != candidate.tier()) {
            continue;
        }
        let refused = |(reason, remedies)| Refusal {
            tier: candidate.tier(),
            attempt: candidate.name().to_owned(),
            reason,
            remedies,
        };
        match try_out(&candidate, wish.work_dir.as_deref()).map_err(refused) {
            Ok(processes) => {
                let reason = one_id(&candidate, &environment).or_else(|| squashed(&candidate, wish));
                if let Some(reason) = reason {
                    environment.refused.push(refused(reason));
                    second_choice.get_or_insert((candidate, processes));
                    continue;
                }
                chosen = Some((candidate, processes));
                break;
            }
            Err(refusal) => environment.refused.push(refusal),
        }
    }
    if let Some(tier) = wish.tier {
        environment.refused.retain(|refusal| refusal.tier == tier);
    }
    let Some((candidate, processes)) = chosen.or(second_choice) else { return (environment, None) };
    environment.processes = processes;
    environment.tier = Some(candidate.tier());
    environment.own_network = match &candidate {
        Candidate::Root | Candidate::UserNamespace { .. } | Candidate::Traced { namespace: Some(_) } => true,
        Candidate::Chroot | Candidate::Traced { namespace: None } => false,
    };
    environment.ids = match &candidate {
        Candidate::Root | Candidate::Chroot => IdMapping::Root,
        Candidate::UserNamespace { ids, uids, gids, .. } => {
            (environment.uids, environment.gids) = (uids.clone(), gids.clone());
            *ids
        }
        Candidate::Traced { .. } => {
            (environment.uids, environment.gids) = (IdRanges::all(), IdRanges::all());
            IdMapping::Played
        }
    };
    (environment, Some(candidate))
}

/// Why a RUN cannot have more than one user, for tiers that do not play ids.
fn one_id(candidate: &Candidate, environment: &Environment) -> Option<(String, Vec<String>)> {
    let (uids, gids) = match candidate {
        Candidate::UserNamespace { uids, gids, .. } => (uids, gids),
        Candidate::Root | Candidate::Chroot => (&environment.uids, &environment.gids),
        Candidate::Traced { .. } => return None,
    };
    (uids.count() <= 1 || gids.count() <= 1).then(|| {
        (
            "it works, but with one id alone: no file can be given to another user, and nobody can become one; the tier \
             traced plays all of them"
                .to_owned(),
            vec![if rustix::process::geteuid().is_root() { IDS_OF_A_CONTAINER } else { SUBORDINATE_IDS }.to_owned()],
        )
    })
}

/// Why owners cannot be made real on the volume of the work dir, for those who could elsewhere. A tier that plays ids gives
/// the right result there.
fn squashed(candidate: &Candidate, wish: &Wish) -> Option<(String, Vec<String>)> {
    let directory = wish.work_dir.as_deref()?;
    match candidate {
        Candidate::Root | Candidate::Chroot | Candidate::UserNamespace { ids: IdMapping::Identity, .. } => {}
        Candidate::UserNamespace { .. } | Candidate::Traced { .. } => return None,
    }
    // Ids that every map has that has more than one.
    match Volume::keeps_owners(directory, (1, 1)) {
        // Without pipes there are no devices either, which root would be expected to make.
        Ok(true) if Volume::holds_pipes(directory).is_ok_and(|holds| !holds) => Some((
            format!("the volume of the work directory `{}` holds no device nodes", directory.display()),
            vec!["a work directory (--work-dir, SLIPWAY_DIR) on ext4, xfs, btrfs or tmpfs".to_owned()],
        )),
        Ok(true) => None,
        // Not being able to write there at all is told when the work dir is opened.
        Err(_) => None,
        Ok(false) => Some((
            format!(
                "the volume of the work directory `{}` does not keep owners (root squash, or fixed ids)",
                directory.display()
            ),
            vec![
                "a volume on which root may chown (for NFS: no_root_squash; for CIFS or a CSI driver: no uid=, gid=)"
                    .to_owned(),
            ],
        )),
    }
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
            Err(reason) => environment.refused.push(Refusal {
                tier: Tier::Namespaces,
                attempt: "subordinate ids".to_owned(),
                reason,
                remedies: vec![SUBORDINATE_IDS.to_owned()],
            }),
        }
    }
    candidates.push(Candidate::UserNamespace {
        ids: IdMapping::Single,
        uids: IdRanges::single(uid),
        gids: IdRanges::single(gid),
        how: Writer::Itself,
    });
    candidates.push(Candidate::Chroot);
    if uid != 0 {
        // Root's own id in a namespace gives nothing that it does not have.
        candidates.push(Candidate::Traced { namespace: Some((IdRanges::single(uid), IdRanges::single(gid))) });
    }
    candidates.push(Candidate::Traced { namespace: None });
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

fn try_out(candidate: &Candidate, work_dir: Option<&Path>) -> Result<Processes, (String, Vec<String>)> {
    try_calls().map_err(|(missing, error)| remedies::supervision(missing, &error))?;
    let result = match candidate {
        Candidate::Root => try_namespaces(&Ids::Outer),
        Candidate::UserNamespace { uids, gids, how: Writer::Itself, .. } => {
            let (uid_map, gid_map) = (uids.to_map(), gids.to_map());
            try_namespaces(&Ids::Own { uid_map: uid_map.as_bytes(), gid_map: gid_map.as_bytes() })
        }
        Candidate::UserNamespace { uids, gids, how, .. } => {
            try_namespaces(&Ids::Given(&|pid| write_maps(pid, uids, gids, *how)))
        }
        Candidate::Chroot | Candidate::Traced { .. } => {
            if let Some(directory) = work_dir
                && Volume::probe(directory).is_ok_and(|volume| volume.no_exec)
            {
                return Err((
                    format!("the volume of the work directory `{}` is mounted noexec", directory.display()),
                    vec![
                        "a work directory (--work-dir, SLIPWAY_DIR) on a volume without the mount option noexec"
                            .to_owned(),
                    ],
                ));
            }
            let tried = match candidate {
                Candidate::Chroot if !rustix::process::geteuid().is_root() => {
                    return Err((
                        "this process is not root".to_owned(),
                        vec!["securityContext.runAsUser: 0, with the runtime's default capabilities".to_owned()],
                    ));
                }
                Candidate::Chroot => try_supervision(Supervised::InChroot),
                Candidate::Traced { namespace: Some((uids, gids)) } => {
                    let (uid_map, gid_map) = (uids.to_map(), gids.to_map());
                    let (uid_map, gid_map) = (uid_map.as_bytes(), gid_map.as_bytes());
                    _ = try_namespaces(&Ids::Own { uid_map, gid_map })
                        .map_err(|(refused, error)| remedies::namespaces(refused, &error))?;
                    try_supervision(Supervised::TracedInNamespace { uid_map, gid_map })
                }
                _ => try_supervision(Supervised::Traced),
            };
            return tried
                .map(|()| Processes::Guarded)
                .map_err(|(missing, error)| remedies::supervision(missing, &error));
        }
    };
    let proc = result.map_err(|(refused, error)| remedies::namespaces(refused, &error))?;
    Ok(match proc {
        Ok(()) => Processes::Own,
        Err(_) if try_supervision(Supervised::Guarded).is_ok() => Processes::Guarded,
        Err(_) => Processes::Renumbered,
    })
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
