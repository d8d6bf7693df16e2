//! The tier `namespaces`: one run, from the specification to the exit status.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType};
use rustix::mount::MountAttrFlags;
use rustix::thread::CapabilitySet;

use super::execute::{Prepared, execute};
use super::stubs::{self, Stubs};
use super::sys::{self, Arguments, Op, Program, Step};
use super::{
    Environment, ExitStatus, IdMapping, MountSource, RunSpec, SandboxError, SandboxMount, mounts, network, setup,
};
use crate::cancel::Cancel;
use crate::event::Stream;

/// Bytes of /dev/shm unless asked otherwise: Docker's default.
const SHM_BYTES: u64 = 64 << 20;

/// Search path if the environment has none, as the kernel's own shells have it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a RUN may do as root: Docker's default capabilities (checklist R-11).
pub const CAPABILITIES: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::SYS_CHROOT)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::AUDIT_WRITE)
    .union(CapabilitySet::SETFCAP);

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

/// Directories that a RUN always has; made where missing, and they stay (checklist B-06).
const STANDARD: [&str; 3] = ["/dev", "/proc", "/sys"];

/// See [`super::run`].
pub fn run(
    environment: &Environment,
    root: BorrowedFd<'_>,
    spec: &RunSpec,
    output: &(dyn Fn(Stream, &[u8]) + Sync),
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    if cancel.is_cancelled() {
        return Err(SandboxError::Cancelled);
    }
    check_ids(environment, spec)?;
    let mut stubs = Stubs::default();
    let result =
        prepare(environment, root, spec, &mut stubs).and_then(|prepared| execute(prepared, spec, output, cancel));
    let removed = stubs.remove(root).map_err(|(path, source)| SandboxError::Setup {
        what: format!("remove the mount point `{}`", path.display()),
        source,
    });
    let status = result?;
    removed?;
    Ok(status)
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
    steps: Vec<Step>,
    /// Mount points so far, without symbolic links.
    covered: Vec<PathBuf>,
    staging: OwnedFd,
    staged: usize,
}

fn prepare(
    environment: &Environment,
    root: BorrowedFd<'_>,
    spec: &RunSpec,
    stubs: &mut Stubs,
) -> Result<Prepared, SandboxError> {
    let staging = setup("make a tmpfs for files", mounts::staging())?;
    let mut builder =
        Builder { environment, root, spec, stubs, steps: Vec::new(), covered: Vec::new(), staging, staged: 0 };
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
    builder.finish()
}

impl Builder<'_> {
    fn push(&mut self, what: impl Into<String>, op: Op) {
        self.steps.push(Step { what: what.into(), op });
    }

    fn root(&mut self) -> Result<(), SandboxError> {
        self.push("begin a session of its own", Op::Detach);
        let tree = setup("clone the mount of the root filesystem", mounts::root(self.root, self.spec.insecure))?;
        self.push("make the image's tree the root", Op::EnterRoot { tree });
        let mount = setup("keep the tmpfs for files", self.staging.try_clone())?;
        self.push("attach the tmpfs for files", Op::AttachStaging { mount });
        for path in STANDARD {
            let place = self.locate(Path::new(path))?;
            match place.kind {
                Some(FileType::Directory) => {}
                Some(_) => {
                    let source = io::Error::from(io::ErrorKind::NotADirectory);
                    return Err(SandboxError::Setup { what: format!("mount `{path}`"), source });
                }
                None => {
                    let made = stubs::create_directories(self.root, &place.path, (0, 0));
                    setup(format!("create `{path}`"), made)?;
                }
            }
            self.covered.push(place.path);
        }
        Ok(())
    }

    fn locate(&self, path: &Path) -> Result<stubs::Place, SandboxError> {
        setup(format!("look up `{}` in the image", path.display()), stubs::locate(self.root, path, &self.covered))
    }

    fn dev(&mut self) -> Result<(), SandboxError> {
        let insecure = self.spec.insecure;
        let mut devices = mounts::DEVICES.to_vec();
        if insecure {
            devices.extend(mounts::INSECURE_DEVICES.iter().filter(|name| Path::new("/dev").join(os(name)).exists()));
        }
        let dev = setup("make a tmpfs for /dev", mounts::dev(&devices, insecure))?;
        self.push("mount /dev", Op::Attach { mount: dev, target: c"/dev".into() });
        for name in devices {
            let path = format!("/dev/{}", name.to_string_lossy());
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
        let shm = mounts::tmpfs(&[("mode", "1777"), ("size", &size)], harmless | nodev);
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

        let fallback = outer("/proc", harmless).ok();
        self.fresh(c"proc", Vec::new(), harmless, c"/proc", fallback, false);
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
        let host = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let hosts = network::hosts(&self.spec.hostname, &self.spec.extra_hosts);
        for (path, text) in [("/etc/resolv.conf", network::resolv_conf(&host)), ("/etc/hosts", hosts)] {
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
        let spec = self.spec;
        let mut sorted: Vec<&SandboxMount> = spec.mounts.iter().collect();
        sorted.sort_by(|a, b| a.target.cmp(&b.target));
        for mount in sorted {
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
            MountSource::Bytes { content, mode, uid, gid } => {
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
        for (name, soft, hard) in &spec.ulimits {
            let resource = limit(name).ok_or_else(|| SandboxError::UnknownLimit { name: name.clone() })?;
            // -1 is "none", which is all ones for the kernel too.
            let op = Op::Limit { resource, soft: soft.cast_unsigned(), hard: hard.cast_unsigned() };
            self.push(format!("set the limit {name} to {soft}:{hard}"), op);
        }
        Ok(())
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
            setup(what, stubs::create_directories(self.root, &place.path, owner))?;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<Prepared, SandboxError> {
        let spec = self.spec;
        let cwd = cstring(&spec.cwd)?;
        let enter = format!("enter the working directory `{}`", spec.cwd.display());
        self.push(&*enter, Op::WorkingDirectory { path: cwd.clone(), last_try: false });

        let pipe = || setup("make a pipe", sys::pipe());
        let ((stdout, output), (stderr, error), (report, reporter)) = (pipe()?, pipe()?, pipe()?);
        let input = setup("open /dev/null", mounts::open_null().and_then(sys::above_stdio))?;
        self.push("arrange the output", Op::Standard { input, output, error, uid: spec.user.uid });

        let permitted = setup("read the capabilities", rustix::thread::capabilities(None))?.permitted;
        let capabilities = if spec.insecure { permitted } else { permitted & CAPABILITIES };
        if !spec.insecure {
            self.push("drop capabilities", Op::BoundingSet(CAPABILITIES));
            if let Some(filter) = sys::seccomp::filter() {
                self.push("install the system call filter", Op::Filter(filter));
            }
        }
        let groups = (self.environment.ids != IdMapping::Single).then(|| {
            let unique: BTreeSet<u32> = spec.user.groups.iter().copied().collect();
            unique.into_iter().map(rustix::process::Gid::from_raw).collect()
        });
        let (uid, gid) = (spec.user.uid, spec.user.gid);
        self.push(format!("become user {uid}:{gid}"), Op::Become { uid, gid, groups, capabilities });
        self.push(enter, Op::WorkingDirectory { path: cwd, last_try: true });

        let name = spec.argv.first().cloned().unwrap_or_default();
        let bad = |source| SandboxError::Exec { program: name.clone(), source };
        let mut program = Program {
            steps: self.steps,
            candidates: candidates(&name, &spec.env).map_err(bad)?,
            argv: Arguments::new(&spec.argv).map_err(bad)?,
            env: Arguments::new(spec.env.iter().map(pair)).map_err(bad)?,
            report: reporter,
        };
        program.close_others();
        let mut flags = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
        if spec.no_network {
            flags |= libc::CLONE_NEWNET;
        }
        Ok(Prepared { program, flags, stdout, stderr, report })
    }
}

/// A variable as execve(2) takes it.
pub fn pair((key, value): &(OsString, OsString)) -> OsString {
    let mut pair = key.clone();
    pair.push("=");
    pair.push(value);
    pair
}

/// linux/magic.h
const CGROUP2_MAGIC: i64 = 0x6367_7270;

fn os(text: &CStr) -> &OsStr {
    OsStr::from_bytes(text.to_bytes())
}

fn cstring(path: impl AsRef<Path>) -> Result<CString, SandboxError> {
    let path = path.as_ref();
    setup(format!("use the path `{}`", path.display()), CString::new(path.as_os_str().as_bytes()))
}

/// Paths to try for the program `name`, in order.
///
/// # Errors
/// `NotFound` for an empty name, `InvalidInput` for a NUL byte in it.
pub fn candidates(name: &OsStr, env: &[(OsString, OsString)]) -> io::Result<Vec<CString>> {
    let name = name.as_bytes();
    if name.is_empty() {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    if name.contains(&b'/') {
        return Ok(vec![CString::new(name)?]);
    }
    // Of a variable that is there twice the last one counts, as for a shell.
    let path = env.iter().rev().find(|(key, _)| key == "PATH").map(|(_, value)| value.as_bytes());
    let path = path.unwrap_or(DEFAULT_PATH.as_bytes());
    let join = |directory: &[u8]| {
        let directory = if directory.is_empty() { &b"."[..] } else { directory };
        CString::new([directory, name].join(&b'/'))
    };
    Ok(path.split(|&byte| byte == b':').map(join).collect::<Result<_, _>>()?)
}

/// `RLIMIT_…` by the name that `--ulimit` uses. setrlimit(2)
#[allow(clippy::unnecessary_cast, reason = "the constants are signed with musl")]
pub fn limit(name: &str) -> Option<u32> {
    Some(match name {
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    } as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, path: Option<&str>, expected: &[&str]) {
        let env: Vec<_> = path.into_iter().map(|path| ("PATH".into(), path.into())).collect();
        let found = candidates(OsStr::new(name), &env).expect("no NUL");
        assert_eq!(found.iter().map(|path| path.to_str().expect("UTF-8")).collect::<Vec<_>>(), expected, "{name:?}");
    }

    #[test]
    fn programs_are_looked_up() {
        check("/bin/sh", Some("/x"), &["/bin/sh"]);
        check("./x", Some("/x"), &["./x"]);
        check("sh", Some("/a:/b"), &["/a/sh", "/b/sh"]);
        check("sh", Some(":/b:"), &["./sh", "/b/sh", "./sh"]);
        check(
            "sh",
            None,
            &["/usr/local/sbin/sh", "/usr/local/bin/sh", "/usr/sbin/sh", "/usr/bin/sh", "/sbin/sh", "/bin/sh"],
        );
        assert!(candidates(OsStr::new(""), &[]).is_err());
    }

    #[test]
    fn capabilities_are_dockers() {
        assert_eq!(CAPABILITIES.bits(), 0xa804_25fb);
    }
}
