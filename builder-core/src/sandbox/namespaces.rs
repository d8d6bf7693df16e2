//! The tier `namespaces`: one run, from the specification to the exit status.

use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::mount::MountAttrFlags;

use super::command::{CAPABILITIES, Ends, Steps, cstring, mounts_in_order, pipes};
use super::execute::{Prepared, execute};
use super::guard::{self, Guard, Scope};
use super::members::Members;
use super::nodes::{self, Mounts, Nodes};
use super::stubs::{self, Stubs};
use super::sys::bpf::{self, Action};
use super::sys::landlock::{self, Ruleset};
use super::sys::notify::Notification;
use super::sys::{self, Op, Program};
use super::{
    Environment, ExitStatus, IdMapping, MountSource, Processes, RunSpec, SandboxError, SandboxMount, dev, kept, mounts,
    network, setup,
};
use crate::cancel::Cancel;
use crate::event::Stream;
use crate::rootfs::Rootfs;

/// Bytes of /dev/shm unless asked otherwise: Docker's default.
const SHM_BYTES: u64 = 64 << 20;

/// Hidden from a RUN: Docker's masked paths.
const MASKED: [&CStr; 12] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/sys/devices/virtual/powercap",
    c"/sys/firmware",
];

/// Read-only for a RUN: Docker's read-only paths.
const READ_ONLY: [&CStr; 5] = [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// See [`super::run`].
pub fn run(
    environment: &Environment,
    rootfs: &Rootfs,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    check_ids(environment, spec)?;
    let root = rootfs.root_fd();
    let mut stubs = Stubs::default();
    let result = match environment.processes {
        Processes::Own | Processes::Renumbered => prepare(environment, root, spec, &mut stubs)
            .and_then(Builder::finish)
            .and_then(|prepared| execute(prepared, rootfs, spec, output, cancel)),
        Processes::Guarded => prepare(environment, root, spec, &mut stubs)
            .and_then(Builder::finish_guarded)
            .and_then(|prepared| execute_guarded(prepared, rootfs, spec, output, cancel)),
    };
    let removed = stubs.remove(root);
    let status = result?;
    removed?;
    Ok(status)
}

/// Runs what has no pid namespace.
fn execute_guarded(
    (prepared, flags): (kept::Prepared, i32),
    rootfs: &Rootfs,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let nodes = setup("open /proc", Nodes::new(rootfs, Mounts::Own))?;
    let started = prepared.start(flags | libc::CLONE_NEWCGROUP, &[], cancel)?;
    let members = Members::below(started.keeper()).in_namespace_of(started.command());
    let guard = Guard { members, command: started.command(), scope: scope(spec), may_nest: spec.insecure };
    let answer = started.listener().map(|listener| {
        let (guard, nodes) = (&guard, &nodes);
        move |call: Notification| {
            let reply = guard.answer(listener, &call).unwrap_or_else(|| nodes.answer(listener, &call));
            // Nobody waits any more if it fails.
            _ = listener.reply(call.id, reply);
        }
    });
    started.perform(spec, answer, output, cancel)
}

/// Whether the kernel keeps a command's signals in.
fn scope(spec: &RunSpec) -> Scope {
    let scoped = !spec.insecure && landlock::version() >= landlock::WITH_SCOPES;
    if scoped { Scope::Kernel } else { Scope::Guard }
}

/// Everything in it must exist, or the kernel would say `EINVAL` in the middle.
fn check_ids(environment: &Environment, spec: &RunSpec) -> Result<(), SandboxError> {
    let mut uids = vec![spec.user.uid];
    let mut gids = vec![spec.user.gid];
    if environment.ids != IdMapping::Single {
        gids.extend(&spec.user.groups);
    }
    for mount in &spec.mounts {
        if let MountSource::Bytes { uid, gid, .. } = mount.source {
            uids.push(uid);
            gids.push(gid);
        }
    }
    let missing_uid = uids.into_iter().find(|&id| !environment.uids.contains(id));
    let missing = missing_uid.or_else(|| gids.into_iter().find(|&id| !environment.gids.contains(id)));
    missing.map_or(Ok(()), |id| Err(SandboxError::NoSuchId { id }))
}

/// Collects the steps.
struct Builder<'a> {
    environment: &'a Environment,
    root: BorrowedFd<'a>,
    spec: &'a RunSpec,
    stubs: &'a mut Stubs,
    steps: Steps,
    /// Mount points so far, without symbolic links.
    covered: Vec<PathBuf>,
    staging: OwnedFd,
    staged: usize,
}

/// All steps but the last ones.
fn prepare<'a>(
    environment: &'a Environment,
    root: BorrowedFd<'a>,
    spec: &'a RunSpec,
    stubs: &'a mut Stubs,
) -> Result<Builder<'a>, SandboxError> {
    let staging = setup("make a tmpfs for files", mounts::staging())?;
    let mut builder =
        Builder { environment, root, spec, stubs, steps: Steps::default(), covered: Vec::new(), staging, staged: 0 };
    builder.root()?;
    builder.dev()?;
    builder.proc_and_sys()?;
    builder.files_of_etc()?;
    builder.mounts()?;
    if !spec.insecure {
        builder.masks();
    }
    builder.push("leave the old root", Op::LeaveOldRoot);
    builder.surroundings()?;
    builder.working_directory()?;
    Ok(builder)
}

impl Builder<'_> {
    fn push(&mut self, what: impl Into<String>, op: Op) {
        self.steps.push(what, op);
    }

    fn root(&mut self) -> Result<(), SandboxError> {
        self.push("begin a session of its own", Op::Detach);
        let tree = setup("clone the mount of the root filesystem", mounts::root(self.root, self.spec.insecure))?;
        self.push("make the image's tree the root", Op::EnterRoot { tree });
        let mount = setup("keep the tmpfs for files", self.staging.try_clone())?;
        self.push("attach the tmpfs for files", Op::AttachStaging { mount });
        self.covered.extend(stubs::create_standard(self.root, Some((0, 0)))?);
        Ok(())
    }

    fn locate(&self, path: &Path) -> Result<stubs::Place, SandboxError> {
        setup(format!("look up `{}` in the image", path.display()), stubs::locate(self.root, path, &self.covered))
    }

    fn dev(&mut self) -> Result<(), SandboxError> {
        let insecure = self.spec.insecure;
        let mut devices: Vec<&str> = dev::NODES.iter().map(|node| node.name).collect();
        if insecure {
            devices.extend(dev::INSECURE.iter().filter(|name| Path::new("/dev").join(name).exists()));
        }
        let dev = setup("make a tmpfs for /dev", mounts::dev(&devices, insecure))?;
        self.push("mount /dev", Op::Attach { mount: dev, target: c"/dev".into() });
        for name in devices {
            let path = format!("/dev/{name}");
            let mount = setup(format!("bind {path} of the host"), mounts::device(name))?;
            let target = cstring(&path)?;
            self.push(format!("mount {path}"), Op::Attach { mount, target });
        }
        let harmless = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mut options = vec![(c"ptmxmode", c"0666".into()), (c"mode", c"0620".into())];
        if self.environment.gids.contains(5) {
            options.push((c"gid", c"5".into())); // tty in every distribution
        }
        self.fresh(c"devpts", options, harmless, c"/dev/pts", None, false);
        let size = self.spec.shm_size.unwrap_or(SHM_BYTES).to_string();
        let nodev = MountAttrFlags::MOUNT_ATTR_NODEV;
        let shm = mounts::tmpfs(&[("source", "shm"), ("mode", "1777"), ("size", &size)], harmless | nodev);
        let mount = setup("make a tmpfs for /dev/shm", shm)?;
        self.push("mount /dev/shm", Op::Attach { mount, target: c"/dev/shm".into() });
        // Kernels without POSIX message queues exist.
        self.fresh(c"mqueue", Vec::new(), harmless | nodev, c"/dev/mqueue", None, true);
        Ok(())
    }

    fn fresh(
        &mut self,
        kind: &'static CStr,
        options: Vec<(&'static CStr, CString)>,
        flags: MountAttrFlags,
        target: &CStr,
        fallback: Option<OwnedFd>,
        optional: bool,
    ) {
        let what = format!("mount {}", target.to_string_lossy());
        self.push(what, Op::Fresh { kind, options, flags, target: target.into(), fallback, optional });
    }

    fn proc_and_sys(&mut self) -> Result<(), SandboxError> {
        let harmless =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NODEV;
        let writable = if self.spec.insecure { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
        // The outer one, where the kernel refuses a new one: mount_namespaces(7), "Restrictions", or for /sys because the
        // network is the outer one. Recursive, because what is mounted below it may be there to hide something.
        let outer = |path: &str, flags| mounts::bind(CWD, Path::new(path), flags, true);

        if self.environment.processes == Processes::Guarded {
            let mount = setup("bind /proc", outer("/proc", harmless))?;
            self.push("mount /proc", Op::Attach { mount, target: c"/proc".into() });
            self.push("make other processes read-only", Op::ReadOnlyProcesses);
        } else {
            let fallback = outer("/proc", harmless).ok();
            self.fresh(c"proc", Vec::new(), harmless, c"/proc", fallback, false);
        }
        let fallback = outer("/sys", harmless | writable).ok();
        self.fresh(c"sysfs", Vec::new(), harmless | writable, c"/sys", fallback, false);
        if self.spec.no_network {
            // The outer /sys would name the interfaces of the outer network, which are not there.
            let target = c"/sys/class/net".into();
            self.push("mount /sys/class/net", Op::CoverFallback { name: mounts::LOOPBACK_ONLY, target });
        }

        let unified = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type == CGROUP2_MAGIC);
        let fallback = outer("/sys/fs/cgroup", harmless | writable).ok();
        match (unified, fallback) {
            (true, fallback) => {
                self.fresh(c"cgroup2", Vec::new(), harmless | writable, c"/sys/fs/cgroup", fallback, true);
            }
            (false, Some(mount)) => {
                let target = c"/sys/fs/cgroup".into();
                self.push("mount /sys/fs/cgroup", Op::AttachIfPossible { mount, target });
            }
            (false, None) => {}
        }
        Ok(())
    }

    fn files_of_etc(&mut self) -> Result<(), SandboxError> {
        for (path, text) in network::files(self.spec) {
            let place = self.mount_point(Path::new(path), false)?;
            self.stage(text.as_bytes(), (0o644, 0, 0), &place, MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        }
        Ok(())
    }

    /// Makes a file in the staging tmpfs and mounts it at `place`.
    fn stage(
        &mut self,
        content: &[u8],
        (mode, uid, gid): (u32, u32, u32),
        place: &Path,
        flags: MountAttrFlags,
    ) -> Result<(), SandboxError> {
        let name = cstring(self.staged.to_string())?;
        self.staged += 1;
        let what = format!("mount `{}`", place.display());
        setup(&*what, mounts::write_file(&self.staging, &name, content, mode, (uid, gid)))?;
        // Not noexec: scripts of heredocs come this way.
        let flags = flags | MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        self.push(what, Op::AttachStaged { name, target: cstring(place)?, flags });
        Ok(())
    }

    /// Finds or makes the place for a mount; in the child if it lies within another mount.
    fn mount_point(&mut self, target: &Path, directory: bool) -> Result<PathBuf, SandboxError> {
        let place = self.locate(target)?;
        let what = || format!("create the mount point `{}`", target.display());
        if place.covered {
            let parents = if directory { Some(&*place.path) } else { place.path.parent() };
            let mut paths: Vec<_> = parents.into_iter().flat_map(Path::ancestors).collect();
            paths.pop(); // "/"
            paths.reverse();
            let paths = paths.into_iter().map(cstring).collect::<Result<_, _>>()?;
            self.push(what(), Op::MakeDirectories { paths });
            if !directory {
                self.push(what(), Op::MakeFile { path: cstring(&place.path)? });
            }
        } else if place.kind.is_none() {
            setup(what(), self.stubs.create(self.root, &place.path, directory))?;
        }
        if !self.covered.contains(&place.path) {
            self.covered.push(place.path.clone());
        }
        Ok(place.path)
    }

    fn mounts(&mut self) -> Result<(), SandboxError> {
        for mount in mounts_in_order(self.spec) {
            self.mount(mount)?;
        }
        Ok(())
    }

    fn mount(&mut self, mount: &SandboxMount) -> Result<(), SandboxError> {
        let what = format!("mount `{}`", mount.target.display());
        let mut flags = MountAttrFlags::empty();
        if mount.readonly {
            flags |= MountAttrFlags::MOUNT_ATTR_RDONLY;
        }
        if !self.spec.insecure {
            flags |= MountAttrFlags::MOUNT_ATTR_NODEV;
        }
        let source = match &mount.source {
            MountSource::Bytes { content, mode, uid, gid, .. } => {
                let place = self.mount_point(&mount.target, false)?;
                return self.stage(content, (*mode, *uid, *gid), &place, flags);
            }
            MountSource::Tmpfs(size) => {
                let place = self.locate(&mount.target)?;
                let mode = if place.kind.is_some() { format!("{:o}", place.mode) } else { "1777".to_owned() };
                let size = size.map(|size| size.to_string());
                let mut options = vec![("mode", mode.as_str())];
                options.extend(size.as_deref().map(|size| ("size", size)));
                setup(&*what, mounts::tmpfs(&options, flags | MountAttrFlags::MOUNT_ATTR_NOSUID))?
            }
            MountSource::Descriptor(descriptor) => {
                setup(&*what, mounts::bind(descriptor.as_fd(), Path::new(""), flags, false))?
            }
            MountSource::Host(path) => {
                let what = format!("mount `{}` at `{}`", path.display(), mount.target.display());
                setup(what, mounts::bind(CWD, path, flags, false))?
            }
        };
        let kind = setup(&*what, rustix::fs::fstat(&source))?.st_mode;
        let place = self.mount_point(&mount.target, FileType::from_raw_mode(kind).is_dir())?;
        let target = cstring(&place)?;
        self.push(what, Op::Attach { mount: source, target });
        Ok(())
    }

    fn masks(&mut self) {
        for path in MASKED {
            self.push(format!("hide {}", os(path).display()), Op::Mask { path: path.into(), empty: mounts::EMPTY });
        }
        for path in READ_ONLY {
            self.push(format!("make {} read-only", os(path).display()), Op::ReadOnly { path: path.into() });
        }
    }

    fn surroundings(&mut self) -> Result<(), SandboxError> {
        let spec = self.spec;
        self.push("set the host name", Op::HostName(spec.hostname.as_bytes().to_vec()));
        if spec.no_network {
            self.push("bring the loopback interface up", Op::LoopbackUp);
        }
        self.steps.limits(spec)
    }

    fn working_directory(&mut self) -> Result<(), SandboxError> {
        let what = format!("make the working directory `{}`", self.spec.cwd.display());
        let place = self.locate(&self.spec.cwd)?;
        if place.covered {
            let mut paths: Vec<_> = place.path.ancestors().collect();
            paths.pop(); // "/"
            paths.reverse();
            let paths = paths.into_iter().map(cstring).collect::<Result<_, _>>()?;
            self.push(what, Op::MakeDirectories { paths });
        } else if place.kind.is_none() {
            let owner = (self.spec.user.uid, self.spec.user.gid);
            setup(what, stubs::create_directories(self.root, &place.path, Some(owner)))?;
        }
        Ok(())
    }

    /// For a command in a pid namespace of its own.
    fn finish(mut self) -> Result<Prepared, SandboxError> {
        let (ends, report) = self.standard()?;
        // While it has all capabilities, so that it may install a filter, and no other RUN may look into it.
        let nodes =
            (self.environment.ids != IdMapping::Root).then(|| setup("make a pair of sockets", sys::socket_pair()));
        let nodes = nodes.transpose()?.map(|(socket, ours)| {
            let filter = bpf::filter(&nodes::rules(), Action::Allow);
            self.push("hand device nodes over", Op::ListenIfPossible { filter, socket });
            ours
        });
        let flags = self.namespaces() | libc::CLONE_NEWPID;
        Ok(Prepared { program: self.confine(report)?, flags, ends, nodes })
    }

    /// For one without, whose calls are answered. With the namespaces that it is to be in.
    fn finish_guarded(mut self) -> Result<(kept::Prepared, i32), SandboxError> {
        let (ends, report) = self.standard()?;
        let (socket, ours) = setup("make a pair of sockets", sys::socket_pair())?;
        let scope = scope(self.spec);
        let mut rules = guard::rules(scope);
        if self.environment.ids != IdMapping::Root {
            rules.extend(nodes::rules());
        }
        let filter = bpf::filter_both(&rules, &guard::foreign_rules(scope));
        // As above.
        self.push("be guarded", Op::ListenUnseen { filter, socket });
        let flags = self.namespaces();
        Ok((kept::Prepared { program: self.confine(report)?, ends, socket: ours }, flags))
    }

    fn namespaces(&self) -> i32 {
        let network = if self.spec.no_network { libc::CLONE_NEWNET } else { 0 };
        libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | network
    }

    /// Descriptors 0, 1 and 2; this process's ends of them, and where the child reports.
    fn standard(&mut self) -> Result<(Ends, OwnedFd), SandboxError> {
        let (ends, inner) = pipes()?;
        self.steps.enter(&self.spec.cwd, false)?;
        Ok((ends, self.steps.standard(inner, self.spec.user.uid)))
    }

    /// The last steps.
    fn confine(mut self, report: OwnedFd) -> Result<Program, SandboxError> {
        let spec = self.spec;
        let permitted = setup("read the capabilities", rustix::thread::capabilities(None))?.permitted;
        let capabilities = if spec.insecure { permitted } else { permitted & CAPABILITIES };
        if !spec.insecure {
            self.push("drop capabilities", Op::BoundingSet(CAPABILITIES));
            if let Some(ruleset) = setup("make rules for Landlock", Ruleset::about_processes())? {
                self.push("be put under Landlock", Op::Restrict { ruleset: ruleset.into_fd() });
            }
            self.steps.filter();
        }
        self.steps.become_user(spec, self.environment.ids != IdMapping::Single, capabilities);
        self.steps.enter(&spec.cwd, true)?;
        self.steps.program(spec, report)
    }
}

/// linux/magic.h
const CGROUP2_MAGIC: i64 = 0x6367_7270;

fn os(text: &CStr) -> &OsStr {
    OsStr::from_bytes(text.to_bytes())
}
