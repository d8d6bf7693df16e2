//! The tier `traced`: a RUN without any privilege. No namespace, no mount, no chroot; a supervisor plays them.
//!
//! # How it works
//! The command and all that it starts run under a seccomp filter. Calls that name files, ids or other processes wait while a
//! thread of this process *performs them itself* on the right file of the host and hands over the result, a descriptor if it is
//! an open (`calls`): the kernel never acts on a path that the command could still change. What only the command's own process
//! can do (execve(2), connect(2) to a path, …) is rewritten while it is stopped by ptrace(2) (`tracer`, `exec`), by which the
//! supervisor also learns of every fork and exit before anything else happens. All other calls, and so computing, reading and
//! writing, are the kernel's alone.
//!
//! What the command may not really do is played and remembered: ids and capabilities of processes (`ids`), owners, modes, devices
//! and privileged attributes of files (in the records that the tree keeps, [`crate::rootfs::Owners`]), mounts (`view`) and /proc
//! (`procfs`).
//!
//! # What holds a command that tries to get out
//! It has no capabilities and no_new_privs; the filter answers everything that could name something outside; what is looked up is
//! opened with openat2(2), beneath a directory of ours and without following links. Beneath it, where the kernel has Landlock, the
//! command's own calls can open nothing but files of its tree, and signal nothing outside. If this process is killed, the kernel
//! kills everything that it traces.
//!
//! # Limitations
//! - The network is the host's; `--network=none` is refused where no user namespace can be had. IPC objects of System V are
//!   shared too, and before version 6 of Landlock abstract sockets.
//! - Process numbers are the outer ones; /proc lists the numbers of other processes, but nothing of them can be opened.
//! - Programs of 32 bits do not run; ptrace(2), io_uring(7) and user namespaces are refused.
//! - Neither a `tmpfs` mount nor /dev/shm has a limit of its size.
//! - connect(2) to a socket by its path is checked before the kernel reads the path, so a program of several threads could name
//!   socket of the host in between. Landlock does not restrict sockets with a path; file permissions of the host do.
//! - A directory whose path on the host is longer than 4,095 bytes can be worked in, but links in it are not followed.

mod acl;
mod attributes;
mod behind;
mod calls;
mod descriptors;
mod elf;
mod exec;
mod files;
mod filter;
mod held;
mod identity;
mod ids;
mod instead;
mod interrupted;
mod layout;
mod loader;
mod located;
mod met;
mod names;
mod owned;
mod peers;
mod permission;
mod pipes;
mod place;
mod procfs;
mod serve;
mod stands;
mod tasks;
mod tracer;
mod view;
mod world;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, mpsc};

use super::command::{CAPABILITIES, Ends, Steps, pipes};
use super::execute::CANCEL_INTERVAL;
use super::stubs::Stubs;
use super::sys::landlock::{self, Ruleset};
use super::sys::notify::Listener;
use super::sys::{self, Op, Program, ptrace};
use super::{Environment, ExitStatus, RunSpec, SandboxError, setup};
use rustix::fs::{Mode, OFlags};

use crate::cancel::Cancel;
use crate::event::Stream;
use crate::rootfs::Rootfs;
use ids::Credentials;
use place::Places;
use tasks::{Image, Surroundings, Task, Tasks};
use tracer::Tracer;
use world::World;

/// What the command's process needs, and what is left of it here.
struct Prepared {
    program: Program,
    places: Places,
    socket: OwnedFd,
    ends: Ends,
}

/// See [`super::run`].
pub fn run(
    environment: &Environment,
    rootfs: &Rootfs,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    if spec.no_network && !environment.own_network {
        return Err(SandboxError::NoNetworkNamespace);
    }
    let root = rootfs.root_fd();
    let mut places = setup("arrange the image's tree", Places::new(rootfs))?;
    let stubs = places.arrange(spec);

    match stubs {
        Ok(()) => prepare(places, spec).and_then(|(prepared, stubs)| {
            let ended = execute(prepared, spec, output, cancel);
            stubs.remove(root).and(ended)
        }),
        Err(error) => places.into_stubs().remove(root).and(Err(error)),
    }
}

fn prepare(mut places: Places, spec: &RunSpec) -> Result<(Prepared, Stubs), SandboxError> {
    let stubs = places.take_stubs();
    let (ends, inner) = pipes()?;
    let mut steps = Steps::default();
    steps.push("begin a session of its own", Op::Session);
    if spec.no_network {
        steps.push("bring the loopback interface up", Op::LoopbackUp);
    }
    steps.push("give privileges up", Op::GiveUpPrivileges);
    steps.limits(spec)?;
    let report = steps.standard(inner, rustix::process::geteuid().as_raw());
    // Anywhere but where the builder is.
    steps.enter(Path::new("/proc"), false)?;
    if !spec.insecure {
        steps.filter();
    }
    if landlock::version() > 0 {
        let ruleset = setup("make rules for files", rules(&places))?;
        steps.push("obey rules for files", Op::Restrict { ruleset });
    }
    let (socket, theirs) = setup("make a pair of sockets", sys::socket_pair())?;
    steps.push("install the supervisor's filter", Op::Listen { filter: filter::first(), socket: theirs });
    steps.push("install the supervisor's second filter", Op::Filter(filter::second()));
    steps.push("unblock signals", Op::UnblockSignals);
    let program = steps.program(spec, report)?;
    Ok((Prepared { program, places, socket, ends }, stubs))
}

/// What the command's own calls may open: what is executed, and where sockets are made.
fn rules(places: &Places) -> io::Result<OwnedFd> {
    /// `LANDLOCK_ACCESS_FS_MAKE_SOCK`
    const MAKE_SOCKETS: u64 = 1 << 9;
    let rules = Ruleset::new()?;
    for mount in places.view().mounts() {
        if mount.directory && matches!(mount.kind, view::Kind::Tree | view::Kind::Plain | view::Kind::Temporary) {
            rules.allow(mount.fd.as_fd(), landlock::EXECUTE | if mount.readonly { 0 } else { MAKE_SOCKETS })?;
        }
    }
    Ok(rules.into_fd())
}

/// How the tracing ended.
enum Ended {
    Status(Option<ExitStatus>),
    NotTraced(io::Error),
    Failed(&'static str, io::Error),
}

fn execute(
    prepared: Prepared,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let Prepared { program, places, socket, ends } = prepared;
    let what = program.names();
    let (ended, alive) = setup("make a pipe", sys::pipe())?;
    let cancelled = AtomicBool::new(false);
    let child: Mutex<Option<OwnedFd>> = Mutex::new(None);
    let complain = |line: &str| output(Stream::Stderr, line.as_bytes());
    let result = std::thread::scope(|scope| {
        ends.stream(scope, &ended, output);
        let (sender, receiver) = mpsc::channel();
        let (child, cancelled, complain) = (&child, &cancelled, &complain);
        // Events of a process go to the thread that traces it, so this thread does nothing else, and also makes the process.
        scope.spawn(move || {
            let result = trace(program, places, &socket, spec, child, cancelled, complain);
            // The receiver waits until it has got it.
            _ = sender.send(result);
        });
        let result = loop {
            match receiver.recv_timeout(CANCEL_INTERVAL) {
                Ok(result) => break result,
                Err(mpsc::RecvTimeoutError::Timeout) if cancel.is_cancelled() => {
                    cancelled.store(true, Ordering::Relaxed);
                    if let Some(child) = tasks::lock(child).as_ref() {
                        // ESRCH: it has ended.
                        _ = rustix::process::pidfd_send_signal(child, rustix::process::Signal::KILL);
                    }
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break Ended::Status(None),
            }
        };
        drop(alive);
        result
    });
    if cancel.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    ends.reported(&what, spec)?;
    match result {
        Ended::Status(Some(status)) => Ok(status),
        Ended::Status(None) => {
            let source = io::Error::other("the command vanished");
            Err(SandboxError::Setup { what: "wait for the command".into(), source })
        }
        Ended::NotTraced(error) => Err(SandboxError::Unavailable {
            reason: format!(
                "tracing processes (ptrace) is refused: {error}; sysctl kernel.yama.ptrace_scope must be 0 or 1 (2 where \
                 user namespaces are allowed), and a seccomp profile must allow ptrace as RuntimeDefault does"
            ),
        }),
        Ended::Failed(what, source) => Err(SandboxError::Setup { what: what.into(), source }),
    }
}

/// Starts the command and serves it until nothing of it is left.
fn trace(
    program: Program,
    places: Places,
    socket: &OwnedFd,
    spec: &RunSpec,
    pidfd: &Mutex<Option<OwnedFd>>,
    cancelled: &AtomicBool,
    complain: &(dyn Fn(&str) + Sync),
) -> Ended {
    let child = match sys::start(&program, if spec.no_network { libc::CLONE_NEWNET } else { 0 }) {
        Ok(child) => child,
        Err(error) => return Ended::Failed("start a process", error),
    };
    *tasks::lock(pidfd) = child.pidfd.try_clone().ok();
    // The parent's ends of the pipes and of the socket: as long as they are open, none of them ends.
    drop(program);
    let listener = match sys::receive_descriptor(socket.as_fd()) {
        Ok(Some(listener)) => Listener::new(listener),
        // The report says why.
        Ok(None) => return Ended::Status(child.wait().ok()),
        Err(error) => {
            child.end();
            return Ended::Failed("get the listener of the filter", error);
        }
    };
    if let Err(errno) = ptrace::seize(child.pid) {
        child.end();
        return Ended::NotTraced(errno.into());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let ourselves = match rustix::fs::open("/proc/self/fd", flags, Mode::empty()) {
        Ok(ourselves) => ourselves,
        Err(errno) => {
            child.end();
            return Ended::Failed("open /proc/self/fd", errno.into());
        }
    };
    let Places { view, cwd, directory, temporary, owners, .. } = places;
    let capabilities = if spec.insecure { (1 << 41) - 1 } else { CAPABILITIES.bits() };
    let user = &spec.user;
    let program = tasks::Program {
        path: b"/".to_vec(),
        file: match directory.try_clone() {
            Ok(file) => file,
            Err(error) => {
                child.end();
                return Ended::Failed("keep a descriptor", error);
            }
        },
    };
    let surroundings =
        Surroundings { cwd: Some(cwd), directory: Arc::new(directory), generation: 0, root: Vec::new(), umask: 0o022 };
    let first = Task {
        thread: child.pid,
        process: child.pid,
        surroundings: Arc::new(Mutex::new(surroundings)),
        credentials: Mutex::new(Credentials::new(user.uid, user.gid, &user.groups, capabilities)),
        image: Mutex::new(Image { program: Arc::new(program), scratch: Arc::default() }),
        handed: Mutex::default(),
        given_up: AtomicBool::default(),
        missed: Mutex::default(),
        descriptors: descriptors::Descriptors::new(child.pid, Arc::default()),
    };
    let world = World {
        view,
        tasks: Tasks::new(first),
        listener,
        hostname: spec.hostname.clone(),
        own: (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
        umask: own_umask(),
        devices: AtomicBool::new(owners.has_devices()),
        lists: AtomicBool::new(acl::NAMES.iter().any(|name| owners.has_xattr(name.as_ref()))),
        narrow: AtomicBool::new(false),
        giving: RwLock::default(),
        programs: Mutex::default(),
        stands: stands::Stands::default(),
        instead: instead::Instead::new(temporary.path()),
        met: met::Met::default(),
        behind: behind::Behind::default(),
        modes_by_path: AtomicBool::new(false),
        ourselves,
    };
    let status = serve::serve(&world, complain, || {
        // Now everything is ready for its first call.
        if rustix::io::write(socket, &[0]).is_err() {
            child.kill();
        }
        Tracer::new(&world, child.pid, complain, cancelled).run()
    });
    drop(temporary);
    match status {
        Ok(status) => Ended::Status(status),
        Err(error) => Ended::Failed("serve the command", error),
    }
}

/// Permission bits that files made by this process do not get, without changing them as umask(2) would.
fn own_umask() -> u32 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
}
