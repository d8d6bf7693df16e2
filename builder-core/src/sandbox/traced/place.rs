//! Everything that a RUN finds mounted: the tree, /proc, /sys, /dev, files of /etc, and the mounts of its specification.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::super::command::mounts_in_order;
use super::super::stubs::{self, Stubs};
use super::super::{MountSource, RunSpec, SandboxError, SandboxMount, dev, network, setup};
use super::view::{Kind, Mount, View, key, own_path, statx};
use crate::rootfs::{Owners, Rootfs};

/// Longest name that memfd_create(2) takes, in bytes.
const MEMORY_NAME_BYTES: usize = 249;

/// What a RUN sees, ready.
pub struct Places {
    /// The mounts.
    pub view: View,
    /// Physical path of the working directory.
    pub cwd: Vec<u8>,
    /// The working directory.
    pub directory: OwnedFd,
    /// Where everything is that is not the tree; removed at the end.
    pub temporary: tempfile::TempDir,
    /// The tree's records.
    pub owners: Arc<Owners>,
    /// Records of what is in `temporary`.
    played: Arc<Owners>,
    stubs: Stubs,
    root: OwnedFd,
    /// Names given out in `temporary`.
    made: usize,
}

impl Places {
    /// The tree alone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new(rootfs: &Rootfs) -> io::Result<Self> {
        let root = rootfs.root_fd();
        let owners = rootfs.owners().cloned().unwrap_or_default();
        let touched = rootfs.touched().cloned().unwrap_or_default();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let tree = super::view::reopen(root, flags, Mode::empty())?;
        let host = rustix::fs::readlinkat(CWD, own_path(root), Vec::new())?;
        let host = PathBuf::from(OsStr::from_bytes(host.as_bytes()));
        // Beside the tree, on the volume: nothing else need be writable.
        let beside = host.parent().ok_or(io::ErrorKind::NotFound)?;
        let temporary = tempfile::Builder::new().prefix("run-").tempdir_in(beside)?;
        let directory = tree.try_clone()?;
        let mount = Mount::new(b"", tree, Kind::Tree, false, Some(Arc::clone(&owners)))?;
        Ok(Self {
            view: View::new(mount, touched),
            cwd: Vec::new(),
            directory,
            temporary,
            owners,
            played: Arc::default(),
            stubs: Stubs::default(),
            root: super::view::reopen(root, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?,
            made: 0,
        })
    }

    /// The mounts.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// What was made in the tree for mounts.
    pub fn into_stubs(self) -> Stubs {
        self.stubs
    }

    /// What was made in the tree for mounts; nothing is left here.
    pub fn take_stubs(&mut self) -> Stubs {
        std::mem::take(&mut self.stubs)
    }

    /// Mounts everything.
    ///
    /// # Errors
    /// With the mount: what the kernel says.
    pub fn arrange(&mut self, spec: &RunSpec) -> Result<(), SandboxError> {
        for path in stubs::create_standard(self.root.as_fd(), None)? {
            // What is served is known by these very names.
            if !stubs::STANDARD.iter().any(|standard| path == Path::new(standard)) {
                let what = format!("mount something at `{}`, where a link leads", path.display());
                return Err(SandboxError::Setup { what, source: io::ErrorKind::NotADirectory.into() });
            }
        }
        for (path, kind) in [("/proc", Kind::Proc), ("/sys", Kind::Sys)] {
            setup(format!("mount {path}"), self.host(path, kind))?;
        }
        if spec.no_network {
            setup("mount /sys/class/net", self.loopback_only())?;
        }
        setup("make /dev", self.dev(spec))?;
        for (path, text) in network::files(spec) {
            setup(format!("mount {path}"), self.bytes(Path::new(path), text.as_bytes(), (0o644, 0, 0), true))?;
        }
        for mount in mounts_in_order(spec) {
            let what = match &mount.source {
                MountSource::Host(path) => format!("mount `{}` at `{}`", path.display(), mount.target.display()),
                _ => format!("mount `{}`", mount.target.display()),
            };
            setup(what, self.mount(mount))?;
        }
        let what = format!("enter the working directory `{}`", spec.cwd.display());
        setup(what, self.working_directory(&spec.cwd, (spec.user.uid, spec.user.gid)))?;
        self.tell();
        Ok(())
    }

    /// Tells what has been made in the tree; from now on every change is told.
    fn tell(&self) {
        let touched = &self.view.touched;
        touched.begin();
        for path in stubs::STANDARD.into_iter().map(Path::new).chain(self.stubs.paths()) {
            touched.entry(path.as_os_str().as_bytes());
        }
        touched.entry(&self.cwd);
        let tree = &self.view.mounts()[0].host;
        let within = |mount: &Mount| mount.host.starts_with(tree) && mount.host.get(tree.len()) == Some(&b'/');
        if self.view.mounts().iter().any(within) {
            touched.lost("a part of the tree is mounted elsewhere in it");
        }
    }

    /// A directory of the host that the tree always has.
    fn host(&mut self, path: &str, kind: Kind) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        self.view.cover(Mount::new(path.as_bytes(), fd, kind, kind == Kind::Sys, None)?);
        Ok(())
    }

    /// The outer /sys names the interfaces of the outer network, which a command without network does not have.
    fn loopback_only(&mut self) -> io::Result<()> {
        let (path, fd) = self.fresh(0o755)?;
        std::os::unix::fs::symlink("../../devices/virtual/net/lo", path.join("lo"))?;
        let played = Some(Arc::clone(&self.played));
        self.view.cover(Mount::new(b"/sys/class/net", fd, Kind::Temporary, true, played)?);
        Ok(())
    }

    /// A fresh directory that is not in the tree.
    fn fresh(&mut self, mode: u32) -> io::Result<(PathBuf, OwnedFd)> {
        let path = self.temporary.path().join(self.made.to_string());
        self.made += 1;
        std::fs::create_dir(&path)?;
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode | 0o700))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, Mode::empty())?;
        let stat = statx(&fd)?;
        self.played.set_mode(key(&stat), mode, mode | 0o700);
        Ok((path, fd))
    }

    fn dev(&mut self, spec: &RunSpec) -> io::Result<()> {
        let (path, fd) = self.fresh(0o755)?;
        let played = || Some(Arc::clone(&self.played));
        self.view.cover(Mount::new(b"/dev", fd, Kind::Temporary, false, played())?);
        for (name, text) in dev::LINKS {
            std::os::unix::fs::symlink(text, path.join(name))?;
        }
        std::fs::create_dir(path.join("pts"))?;
        let extra = ["fuse", "kvm"].into_iter().filter(|_| spec.insecure);
        let nodes = dev::NODES.iter().map(|node| node.name).chain(["ptmx"]);
        for name in nodes.chain(extra) {
            let host = format!("/dev/{name}");
            let Ok(fd) = rustix::fs::open(&host, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else { continue };
            std::fs::write(path.join(name), b"")?;
            self.view.cover(Mount::new(host.as_bytes(), fd, Kind::Device, false, None)?);
        }
        if let Ok(fd) = rustix::fs::open("/dev/pts", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        {
            self.view.cover(Mount::new(b"/dev/pts", fd, Kind::Device, false, None)?);
        }
        for name in ["shm", "mqueue"] {
            std::fs::create_dir(path.join(name))?;
            let (_, fd) = self.fresh(0o1777)?;
            let (target, played) = (format!("/dev/{name}"), Some(Arc::clone(&self.played)));
            self.view.cover(Mount::new(target.as_bytes(), fd, Kind::Temporary, false, played)?);
        }
        Ok(())
    }

    /// Finds or makes the place for a mount.
    fn mount_point(&mut self, target: &Path, directory: bool) -> io::Result<Vec<u8>> {
        let covered: Vec<PathBuf> =
            self.view.mounts().iter().skip(1).map(|mount| PathBuf::from(OsStr::from_bytes(&mount.target))).collect();
        let place = stubs::locate(self.root.as_fd(), target, &covered)?;
        let physical = place.path.as_os_str().as_bytes().to_vec();
        let physical = if physical == b"/" { Vec::new() } else { physical };
        if place.covered {
            self.make_in_mount(&physical, directory)?;
        } else if place.kind.is_none() {
            self.stubs.create(self.root.as_fd(), &place.path, directory)?;
        }
        Ok(physical)
    }

    /// Makes a mount point within another mount, if that can be written to.
    fn make_in_mount(&self, path: &[u8], directory: bool) -> io::Result<()> {
        let mount = self.view.mount(path);
        let mut at = mount.target.len();
        match mount.kind {
            Kind::Proc | Kind::Sys | Kind::Device => return Err(io::ErrorKind::NotFound.into()),
            _ if at == path.len() => return Ok(()),
            _ if !mount.directory => return Err(io::ErrorKind::NotADirectory.into()),
            _ if mount.readonly => {
                // What is there can be covered, but nothing is made in it.
                let there = self.view.open(path, OFlags::PATH);
                return there.map(drop).map_err(|errno| if errno == Errno::NOENT { Errno::ROFS } else { errno }.into());
            }
            _ => {}
        }
        while at < path.len() {
            let end = path[at + 1..].iter().position(|&byte| byte == b'/').map_or(path.len(), |slash| at + 1 + slash);
            let parent = self.view.open(&path[..at], OFlags::PATH | OFlags::DIRECTORY)?;
            let name = OsStr::from_bytes(&path[at + 1..end]);
            let made = if end < path.len() || directory {
                rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))
            } else {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            };
            match made {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            at = end;
        }
        Ok(())
    }

    fn bytes(
        &mut self,
        target: &Path,
        text: &[u8],
        (mode, uid, gid): (u32, u32, u32),
        readonly: bool,
    ) -> io::Result<()> {
        let physical = self.mount_point(target, false)?;
        // Links of descriptors say the name, and `Mount::host` with them is what leads back to the target.
        let named = physical.len() <= MEMORY_NAME_BYTES;
        let name = if named { physical.as_slice() } else { b"slipway" };
        let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
        let mut rest = text;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = &rest[written..];
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode | 0o600))?;
        // A number of its own: files in memory have inodes of another file system.
        let owners = Arc::new(Owners::default());
        let key = key(&statx(&file)?);
        owners.set_mode(key, mode, mode | 0o600);
        owners.set_owner(key, (uid, gid));
        let mut mount = Mount::new(&physical, file, Kind::Plain, readonly, Some(owners))?;
        if !named {
            // Several files in memory have the same name on the host.
            mount.host = [b"/memfd:".as_slice(), &physical].concat();
        }
        self.view.cover(mount);
        Ok(())
    }

    fn mount(&mut self, mount: &SandboxMount) -> io::Result<()> {
        let readonly = mount.readonly;
        let fd = match &mount.source {
            MountSource::Bytes { content, mode, uid, gid, .. } => {
                return self.bytes(&mount.target, content, (*mode, *uid, *gid), readonly);
            }
            MountSource::Tmpfs(_) => {
                let mode = match stubs::locate(self.root.as_fd(), &mount.target, &[]) {
                    Ok(place) if place.kind == Some(FileType::Directory) => place.mode,
                    _ => 0o1777,
                };
                self.fresh(mode)?.1
            }
            MountSource::Descriptor(descriptor) => {
                super::view::reopen(descriptor.as_fd(), OFlags::PATH, Mode::empty())?
            }
            MountSource::Host(path) => rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?,
        };
        let directory = FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode).is_dir();
        let physical = self.mount_point(&mount.target, directory)?;
        let owners = match &mount.source {
            MountSource::Tmpfs(_) => Arc::clone(&self.played),
            _ => mount.owners.clone().unwrap_or_default(),
        };
        let kind = if matches!(mount.source, MountSource::Tmpfs(_)) { Kind::Temporary } else { Kind::Plain };
        self.view.cover(Mount::new(&physical, fd, kind, readonly, Some(owners))?);
        Ok(())
    }

    fn working_directory(&mut self, path: &Path, owner: (u32, u32)) -> io::Result<()> {
        let covered: Vec<PathBuf> =
            self.view.mounts().iter().skip(1).map(|m| PathBuf::from(OsStr::from_bytes(&m.target))).collect();
        let place = stubs::locate(self.root.as_fd(), path, &covered)?;
        let physical = place.path.as_os_str().as_bytes().to_vec();
        let physical = if physical == b"/" { Vec::new() } else { physical };
        if place.covered {
            self.make_in_mount(&physical, true)?;
        } else if place.kind.is_none() {
            let ends = (1..physical.len()).filter(|&at| physical[at] == b'/').chain([physical.len()]);
            for end in ends {
                let slash = physical[..end].iter().rposition(|&byte| byte == b'/').unwrap_or(0);
                let parent = self.view.open(&physical[..slash], OFlags::PATH | OFlags::DIRECTORY)?;
                let name = OsStr::from_bytes(&physical[slash + 1..end]);
                match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
                    Ok(()) => {
                        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                        let made = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
                        rustix::fs::chmod(own_path(made.as_fd()), Mode::from_raw_mode(0o755))?;
                        self.owners.set_owner(key(&statx(&made)?), owner);
                    }
                    Err(Errno::EXIST) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        self.directory = self.view.open(&physical, OFlags::PATH | OFlags::DIRECTORY)?;
        self.cwd = physical;
        Ok(())
    }
}
