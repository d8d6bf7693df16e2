//! The tier `chroot`: root with the capabilities that container runtimes leave it, where nothing can be mounted.
//!
//! The tree is the command's real root, by chroot(2), and its ids are real. What a mount would show is put into the tree
//! meanwhile (`places`); `/proc`, `/sys` and terminals are served by this process (`files`), to which a seccomp filter sends
//! the calls that could name them (`serve`, `changes`, `names`). A keeper (`sys::Kept`) stands for the pid namespace: it adopts orphans and ends
//! everything with the command, or with this process.
//!
//! # Why a command stays inside
//!
//! - chroot(2) can be left by who may call it again, by a directory descriptor from outside, and by a working directory
//!   outside: the command has no CAP_SYS_CHROOT, and never gets a descriptor of a directory that is not in its tree, as
//!   listings of served directories are copies in the tree.
//! - Landlock, where the kernel has it, allows nothing but the tree, lets no signal out and no tracing.
//! - Signals, tracing and scheduling of other processes are calls whose arguments are numbers; they are answered by who asks
//!   for whom. The builder cannot be traced anyway, as it is not dumpable and nobody here has CAP_SYS_PTRACE.
//! - Device nodes other than harmless ones are neither made nor kept in the tree, unless a control group keeps them shut.
//!
//! # Limitations
//!
//! - no_new_privs is set, without which a process without CAP_SYS_ADMIN can have no filter: setuid programs and file
//!   capabilities give nothing. `su` and `sudo` work for root, not for other users.
//! - What cannot be read sees no `/proc` and `/sys`: some programs that changed their user (`peer`), and those of 32 bits.
//! - A signal may make a call say `EINTR` that never says it elsewhere (`shells`).
//! - Bind mounts that are read-only or come from a context or image are copies; writing to them works and changes nothing
//!   else. The size of tmpfs and /dev/shm is not bounded. A cache that is mounted to be shared is used by one RUN at a time
//!   (`journal`), and is a symbolic link at a second place of the same tree. Secrets (`secrets`) cannot be executed.
//! - No network, pid, ipc or uts namespace: no `--network=none`; process ids are the container's.

mod bases;
mod changes;
mod files;
mod inject;
pub mod journal;
mod names;
mod peer;
mod places;
mod secrets;
mod serve;
mod shells;
mod tree;
mod ways;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::thread::CapabilitySet;

use super::command::{CAPABILITIES, Steps, mounts_in_order, pipes};
use super::guard::{Guard, Scope};
use super::kept::Prepared;
use super::members::Members;
use super::nodes::{Mounts, Nodes};
use super::sys::landlock::{self, Ruleset};
use super::sys::notify::Notification;
use super::sys::{self, Op};
use super::{Environment, ExitStatus, RunSpec, SandboxError, dev, network, setup, stubs};
use crate::cancel::Cancel;
use crate::event::Stream;
use crate::rootfs::{Rootfs, Volume};
use files::Files;

use peer::Memories;
use places::Places;
use serve::Server;
use tree::Tree;

/// What of Docker's default capabilities stays: all but the one to leave a root with.
const KEPT_CAPABILITIES: CapabilitySet = CAPABILITIES.difference(CapabilitySet::SYS_CHROOT);

/// See [`super::run`].
pub fn run(
    environment: &Environment,
    rootfs: &Rootfs,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let root = rootfs.root_fd();
    for id in [spec.user.uid, spec.user.gid].iter().chain(&spec.user.groups) {
        if !environment.uids.contains(*id) {
            return Err(SandboxError::NoSuchId { id: *id });
        }
    }
    if spec.no_network {
        return Err(SandboxError::NoNetworkNamespace);
    }
    let mut places = Places::new(root)?;
    let result =
        places.claim(&spec.mounts, cancel).and_then(|()| furnish(&mut places, root, spec)).and_then(|devices| {
            let confined = Volume::confines_devices(places.aside());
            let (read_only, secrets) = (places.read_only(), places.take_secrets());
            let tree = root.try_clone_to_owned().and_then(|root| Tree::new(root, devices, read_only, secrets));
            perform(rootfs, spec, setup("open the tree", tree)?, (confined, places.locks()), output, cancel)
        });
    let restored = places.restore(rootfs.touched().map(Arc::as_ref));
    let status = result?;
    restored?;
    Ok(status)
}

/// Puts everything in that other tiers mount; gives the devices that must be served as their nodes do not work here.
fn furnish(places: &mut Places<'_>, root: BorrowedFd<'_>, spec: &RunSpec) -> Result<Vec<PathBuf>, SandboxError> {
    for path in stubs::create_standard(root, Some((0, 0)))? {
        places.directory(&path, 0o755)?;
    }
    let served = setup("fill /dev", fill_dev(root))?;
    for (path, text) in network::files(spec) {
        places.file(Path::new(path), text.as_bytes())?;
    }
    for mount in mounts_in_order(spec) {
        places.mount(mount)?;
    }
    let cwd = setup("look up the working directory", stubs::locate(root, &spec.cwd, &[]))?;
    if cwd.kind.is_none() {
        let what = format!("make the working directory `{}`", spec.cwd.display());
        setup(what, stubs::create_directories(root, &cwd.path, Some((spec.user.uid, spec.user.gid))))?;
    }
    Ok(served)
}

fn fill_dev(root: BorrowedFd<'_>) -> std::io::Result<Vec<PathBuf>> {
    let dev = stubs::open_directory(root, Path::new("/dev"))?;
    let mut served = Vec::new();
    for dev::Node { name, major, minor } in dev::NODES {
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        let made = rustix::fs::mknodat(&dev, name, FileType::CharacterDevice, mode, device)
            .and_then(|()| rustix::fs::chmodat(&dev, name, mode, rustix::fs::AtFlags::empty()));
        // A terminal of our own we need not have.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY;
        let opened =
            if name == "tty" { Ok(()) } else { rustix::fs::openat(&dev, name, flags, Mode::empty()).map(drop) };
        if made.and(opened).is_err() {
            served.push(Path::new("/dev").join(name));
        }
    }
    for (name, text) in dev::LINKS {
        rustix::fs::symlinkat(text, &dev, name)?;
    }
    // Terminals are served; the node is for who only looks.
    _ = rustix::fs::mknodat(
        &dev,
        "ptmx",
        FileType::CharacterDevice,
        Mode::from_raw_mode(0o666),
        rustix::fs::makedev(5, 2),
    );
    for (name, mode) in [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)] {
        rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(mode))?;
        rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(mode), rustix::fs::AtFlags::empty())?;
    }
    Ok(served)
}

fn perform(
    rootfs: &Rootfs,
    spec: &RunSpec,
    tree: Tree,
    (devices_confined, locks): (bool, &[OwnedFd]),
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let nodes = setup("open /proc", Nodes::new(rootfs, Mounts::Ours))?;
    let scope = if landlock::version() >= landlock::WITH_SCOPES { Scope::Kernel } else { Scope::Guard };
    let kept = program(rootfs.root_fd(), spec, scope)?.start(0, locks, cancel)?;
    let members = Members::below(kept.keeper());
    let files = Files::new(tree, members, spec.hostname.clone());
    let complain = |line: &str| output(Stream::Stderr, line.as_bytes());
    let server = kept.listener().map(|listener| Server {
        files: &files,
        guard: Guard { members, command: kept.command(), scope, may_nest: false },
        listener,
        nodes: &nodes,
        devices_confined,
        programs: AtomicU32::new(0),
        memories: Memories::default(),
        untraceable: AtomicBool::new(false),
        complain: &complain,
        rooted: AtomicBool::new(false),
    });
    kept.perform(spec, server.as_ref().map(|server| move |call: Notification| server.serve(&call)), output, cancel)
}

/// What the child does.
fn program(root: BorrowedFd<'_>, spec: &RunSpec, scope: Scope) -> Result<Prepared, SandboxError> {
    let mut steps = Steps::default();
    let (ends, inner) = pipes()?;
    let (socket, ours) = setup("make a pair of sockets", sys::socket_pair())?;

    steps.push("begin a session of its own", Op::Session);
    let tree = setup("open the tree", root.try_clone_to_owned())?;
    steps.push("make the image's tree the root", Op::EnterChroot { tree });
    steps.limits(spec)?;
    steps.enter(&spec.cwd, false)?;
    let report = steps.standard(inner, spec.user.uid);

    let permitted = setup("read the capabilities", rustix::thread::capabilities(None))?.permitted;
    steps.push("drop capabilities", Op::BoundingSet(KEPT_CAPABILITIES));
    steps.push("set no_new_privs", Op::NoNewPrivileges);
    // Version 1 refuses every rename from one directory to another.
    if landlock::version() >= 2 {
        let ruleset = setup("make rules for Landlock", Ruleset::new())?;
        setup("make rules for Landlock", ruleset.allow(root, landlock::EVERYTHING))?;
        steps.push("be put under Landlock", Op::Restrict { ruleset: ruleset.into_fd() });
    }
    steps.filter();
    steps.become_user(spec, true, permitted & KEPT_CAPABILITIES);
    steps.enter(&spec.cwd, true)?;
    steps.push("be supervised", Op::Listen { filter: serve::filter(scope), socket });
    Ok(Prepared { program: steps.program(spec, report)?, ends, socket: ours })
}
