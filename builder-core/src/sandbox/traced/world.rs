//! What all threads of a supervisor share, and what a call sees of it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, Statx};
use rustix::io::Errno;
use rustix::path::DecInt;

use super::super::sys::notify::{Listener, Notification};
use super::super::sys::{memory, raw};
use super::acl;
use super::behind::Behind;
use super::descriptors::link_text;
use super::held::Directory;
use super::ids::{Credentials, capability};
use super::instead::Instead;
use super::located::LONG;
use super::met::Met;
use super::procfs;
use super::stands::Stands;
use super::tasks::{Program, Task, Tasks, lock};
use super::view::{
    Base, Kind, MAX_PATH, Mount, Place, Request, STAT, View, device_type, key, mount_id, own_path, reopen, statx,
};
use crate::rootfs::{Facts, InodeKey, Owners};

/// One RUN.
pub struct World {
    /// What paths mean.
    pub view: View,
    /// All threads.
    pub tasks: Tasks,
    /// Where calls come from.
    pub listener: Listener,
    /// Name of the machine.
    pub hostname: String,
    /// Ids of this process, which files of ours really belong to.
    pub own: (u32, u32),
    /// Permission bits that this process's umask takes away.
    pub umask: u32,
    /// Whether a device was made or recorded, so that opening one has to be refused.
    pub devices: AtomicBool,
    /// Whether there are access lists.
    pub lists: AtomicBool,
    /// Whether it has been said that 32-bit programs do not run.
    pub narrow: AtomicBool,
    /// Held by readers from the moment when a caller gets a file until our own descriptor of it is closed; see [`World::settle`].
    pub giving: RwLock<()>,
    /// Programs that run, so that each is held open once.
    pub programs: Mutex<HashMap<InodeKey, Weak<Program>>>,
    /// Files that descriptors of the RUN stand for.
    pub stands: Stands,
    /// What was given instead of files of /proc and /sys.
    pub instead: Instead,
    /// Where files were met lately.
    pub met: Met,
    /// What descriptors stood for lately.
    pub behind: Behind,
    /// Whether this kernel cannot change modes by descriptors alone.
    pub modes_by_path: AtomicBool,
    /// /proc/self/fd, `O_PATH`.
    pub ourselves: OwnedFd,
}

/// A file that a call is about.
#[derive(Clone)]
pub struct Reached<'a> {
    /// `O_PATH`, or anything.
    pub fd: Arc<OwnedFd>,
    /// What is known of it, as it is really.
    pub real: Statx,
    /// Where it is; `None` for what has no path, such as pipes.
    pub mount: Option<&'a Mount>,
    /// Physical path, if it was looked up by one.
    pub path: Option<Vec<u8>>,
}

/// Directories of /sys that container runtimes show empty.
pub const HIDDEN: [&[u8]; 2] = [b"/sys/firmware", b"/sys/devices/virtual/powercap"];

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}

/// What ids without a number in a user namespace are shown as: user_namespaces(7).
const OVERFLOW: u32 = 65534;

/// The number that means "the working directory": `AT_FDCWD`.
pub const HERE: i32 = libc::AT_FDCWD;

impl World {
    /// The working directory of a thread.
    pub fn cwd(&self, task: &Task) -> Base {
        let mut surroundings = lock(&task.surroundings);
        let generation = self.view.generation();
        if surroundings.generation != generation {
            // Directories were renamed or removed since.
            let host = rustix::fs::readlinkat(CWD, own_path(surroundings.directory.as_fd()), Vec::new());
            surroundings.cwd = match (host, rustix::fs::fstat(&*surroundings.directory)) {
                (_, Ok(stat)) if stat.st_nlink == 0 => return Base::Gone,
                (Ok(host), _) => self.instead.inside(host.as_bytes()).or_else(|| self.view.inside(host.as_bytes())),
                (Err(_), _) => None,
            };
            surroundings.generation = generation;
        }
        match &surroundings.cwd {
            Some(path) => Base::Path(path.clone()),
            None => match reopen(surroundings.directory.as_fd(), OFlags::PATH, Mode::empty()) {
                Ok(fd) => Base::Directory(fd),
                Err(_) => Base::Gone,
            },
        }
    }

    /// Where a path relative to a descriptor begins.
    ///
    /// # Errors
    /// `EBADF`, `ENOTDIR`.
    pub fn base(&self, task: &Task, descriptor: i32) -> Result<Base, Errno> {
        if descriptor == HERE {
            return Ok(self.cwd(task));
        }
        let real = task.descriptors.stat(descriptor)?;
        if let Some(path) = self.instead.path(&real) {
            return Ok(Base::Path(path));
        }
        let is_directory = u32::from(real.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        let generation = self.view.generation();
        if is_directory && let Some(path) = self.behind.path(&real, generation) {
            return Ok(Base::Path(path));
        }
        let host = match task.descriptors.path(descriptor) {
            Err(Errno::NAMETOOLONG) => Vec::new(),
            host => host?,
        };
        let gone = host.ends_with(b" (deleted)");
        if host.starts_with(b"/") && !gone {
            // What is not in here is nothing to start from.
            let path = self.view.inside(&host).ok_or(Errno::ACCESS)?;
            // The number may stand for something else by now.
            let same = |now: &Statx| (key(now), mount_id(now)) == (key(&real), mount_id(&real));
            if is_directory && task.descriptors.stat(descriptor).as_ref().is_ok_and(same) {
                self.behind.remember(&real, generation, &path);
            }
            return Ok(Base::Path(path));
        }
        let directory = task.descriptors.open(descriptor, OFlags::DIRECTORY)?;
        if rustix::fs::fstat(&directory)?.st_nlink == 0 {
            return Ok(Base::Gone);
        }
        Ok(Base::Directory(directory))
    }

    /// Records for a file in a mount of the host, if it is of ours.
    pub fn owners_of(&self, real: &Statx) -> impl Iterator<Item = &Arc<Owners>> {
        let id = mount_id(real);
        self.view.mounts().iter().filter(move |mount| mount.mount_id == id).filter_map(|mount| mount.owners.as_ref())
    }

    /// What is recorded of a file; `None` if it is not one of ours.
    pub fn facts(&self, real: &Statx, mount: Option<&Mount>) -> Option<Facts> {
        let key = key(real);
        if let Some(mount) = mount {
            return mount.owners.as_ref().map(|owners| owners.facts(key));
        }
        let mut found = None;
        for owners in self.owners_of(real) {
            let facts = owners.facts(key);
            if facts != Facts::default() {
                return Some(facts);
            }
            found = Some(facts);
        }
        found
    }

    /// What the RUN sees of a file.
    pub fn shown(&self, real: &Statx, mount: Option<&Mount>, me: &Credentials) -> Statx {
        let mut shown = *real;
        match self.facts(real, mount) {
            Some(facts) => {
                (shown.stx_uid, shown.stx_gid) = facts.owner.unwrap_or((0, 0));
                facts.show_links_and_change(&mut shown);
                let mode = u32::from(real.stx_mode);
                let mut kind = mode & libc::S_IFMT;
                if let Some((device, major, minor)) = facts.device {
                    kind = device_type(device);
                    (shown.stx_rdev_major, shown.stx_rdev_minor) = (major, minor);
                    shown.stx_size = 0;
                }
                shown.stx_mode = (kind | facts.mode(mode & 0o7777)) as u16;
            }
            None => {
                let show = |id: u32, own: u32, mine: u32| match id {
                    _ if id == own => mine,
                    // Root's, where this process is in a user namespace of one id.
                    OVERFLOW => 0,
                    _ => id,
                };
                shown.stx_uid = show(shown.stx_uid, self.own.0, me.user.files);
                shown.stx_gid = show(shown.stx_gid, self.own.1, me.group.files);
            }
        }
        shown
    }
}

/// A call that is being answered.
pub struct Caller<'a> {
    /// Everything.
    pub world: &'a World,
    /// Who calls.
    pub task: Arc<Task>,
    /// What.
    pub call: Notification,
}

impl Caller<'_> {
    /// An argument that is an address or a size.
    pub fn word(&self, at: usize) -> u64 {
        self.call.arguments[at]
    }

    /// An argument that is an `int`.
    pub fn int(&self, at: usize) -> i32 {
        self.call.arguments[at] as i32
    }

    /// An argument that is an `unsigned int`.
    pub fn uint(&self, at: usize) -> u32 {
        self.call.arguments[at] as u32
    }

    /// Reads the path at an argument.
    ///
    /// # Errors
    /// `EFAULT`, `ENAMETOOLONG`.
    pub fn path(&self, at: usize) -> Result<Vec<u8>, Errno> {
        self.path_at(self.word(at))
    }

    /// Reads the path at an address.
    ///
    /// # Errors
    /// `EFAULT`, `ENAMETOOLONG`.
    pub fn path_at(&self, address: u64) -> Result<Vec<u8>, Errno> {
        memory::read_string(self.task.thread, address, MAX_PATH)
    }

    /// Reads memory.
    ///
    /// # Errors
    /// `EFAULT`
    pub fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        memory::read_exact(self.task.thread, address, &mut bytes)?;
        Ok(bytes)
    }

    /// Writes memory.
    ///
    /// # Errors
    /// `EFAULT`
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        memory::write(self.task.thread, address, bytes)
    }

    /// Whether the call still waits: to be asked before anything is changed, because what was read may be another process's.
    ///
    /// # Errors
    /// `EINTR`, which nobody will see.
    pub fn still(&self) -> Result<(), Errno> {
        if self.world.listener.is_waiting(self.call.id) { Ok(()) } else { Err(Errno::INTR) }
    }

    /// Whom the caller plays.
    pub fn me(&self) -> Credentials {
        lock(&self.task.credentials).clone()
    }

    /// Looks a path up.
    ///
    /// # Errors
    /// Those of path_resolution(7) and of `act`.
    pub fn at<T>(
        &self,
        descriptor: i32,
        path: &[u8],
        follow: bool,
        act: impl FnMut(&Place<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        self.at_with(descriptor, path, follow, ResolveFlags::empty(), act)
    }

    /// Looks a path up with limits of openat2(2).
    ///
    /// # Errors
    /// Those of path_resolution(7) and of `act`.
    pub fn at_with<T>(
        &self,
        descriptor: i32,
        path: &[u8],
        follow: bool,
        resolve: ResolveFlags,
        mut act: impl FnMut(&Place<'_>) -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let scoped = resolve.intersects(ResolveFlags::IN_ROOT | ResolveFlags::BENEATH);
        let base = if path[0] == b'/' && !scoped {
            Base::Path(Vec::new())
        } else {
            self.world.base(&self.task, descriptor)?
        };
        let mut base = base;
        let mut path = path;
        // Where the path of a directory is too long to be had, it has a parent that is not the root.
        while let Base::Directory(fd) = &base
            && let Some(rest) = path.strip_prefix(b"..").filter(|rest| matches!(rest.first(), None | Some(b'/')))
        {
            let parent =
                rustix::fs::openat(fd, "..", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
            let host = rustix::fs::readlinkat(CWD, own_path(parent.as_fd()), Vec::new());
            base = match host.ok().and_then(|host| self.world.view.inside(host.as_bytes())) {
                Some(path) => Base::Path(path),
                None => Base::Directory(parent),
            };
            let start = rest.iter().position(|&byte| byte != b'/').unwrap_or(rest.len());
            path = if start == rest.len() { b"." } else { &rest[start..] };
        }
        let root = lock(&self.task.surroundings).root.clone();
        let caller = (self.task.process, self.task.thread);
        let request = Request { base: &base, root: &root, path, follow, caller, resolve };
        let all = {
            let me = lock(&self.task.credentials);
            me.can(capability::DAC_OVERRIDE) || me.can(capability::DAC_READ_SEARCH)
        };
        self.world.view.at(request, self.world, |place| {
            match place.mount.kind {
                Kind::Proc => procfs::check(self.world, &place.path)?,
                Kind::Sys if HIDDEN.iter().any(|hidden| is_below(&place.path, hidden)) => return Err(Errno::NOENT),
                _ => {}
            }
            if !all {
                self.check_way(place, &self.me())?;
            }
            act(place)
        })
    }

    /// The file at a path, or for an empty one, if that is allowed, behind the descriptor.
    ///
    /// # Errors
    /// Those of path_resolution(7).
    pub fn reach(&self, descriptor: i32, path: &[u8], follow: bool, empty: bool) -> Result<Reached<'_>, Errno> {
        if path.is_empty() && empty {
            return self.reach_descriptor(descriptor);
        }
        let world = self.world;
        let (fd, mount, path) = self.at(descriptor, path, follow, |place| {
            if let Some(fd) = self.magic(place, follow)? {
                return Ok((fd, None, None));
            }
            let fd = place.open(place.flags(follow), Mode::empty())?;
            Ok((fd, world.view.known(place.mount), place.physical()))
        })?;
        let real = statx(&fd)?;
        match mount {
            Some(_) => Ok(Reached { fd: Arc::new(fd), real, mount, path }),
            // What /proc/self/fd/3 stands for.
            None => Ok(self.behind(Arc::new(fd), real)),
        }
    }

    /// What is known of the file at a path, as it is really, and where it is: [`Caller::reach`] without a descriptor.
    ///
    /// # Errors
    /// Those of path_resolution(7).
    pub fn look(
        &self,
        descriptor: i32,
        path: &[u8],
        follow: bool,
        empty: bool,
    ) -> Result<(Statx, Option<&Mount>), Errno> {
        if path.is_empty() && empty {
            let file = self.reach_descriptor(descriptor)?;
            return Ok((file.real, file.mount));
        }
        let view = &self.world.view;
        self.at(descriptor, path, follow, |place| {
            if let Some(fd) = self.magic(place, follow)? {
                let real = statx(&fd)?;
                let file = self.behind(Arc::new(fd), real);
                return Ok((file.real, file.mount));
            }
            Ok((place.stat(view, follow)?, view.known(place.mount)))
        })
    }

    /// The file behind a descriptor of the caller.
    ///
    /// # Errors
    /// `EBADF`
    pub fn reach_descriptor(&self, descriptor: i32) -> Result<Reached<'_>, Errno> {
        let (fd, real) = if descriptor == HERE {
            let directory = Arc::clone(&lock(&self.task.surroundings).directory);
            let fd = reopen(directory.as_fd(), OFlags::PATH, Mode::empty())?;
            let real = statx(&fd)?;
            (Arc::new(fd), real)
        } else {
            self.world.open_descriptor(&self.task, descriptor)?
        };
        Ok(self.behind(fd, real))
    }

    /// The file behind a descriptor of ours: the mount that it is in is found out.
    pub fn behind(&self, fd: Arc<OwnedFd>, real: Statx) -> Reached<'_> {
        let real = self.world.instead.find(&real).unwrap_or(real);
        let id = mount_id(&real);
        // The same file may be in two mounts with one base.
        if let Some((mount, _)) = self.world.met.find(&real).filter(|_| !self.world.is_borrowed(&real)) {
            return Reached { fd, real, mount: Some(&self.world.view.mounts()[mount]), path: None };
        }
        let mut mounts = self.world.view.mounts().iter().filter(|mount| mount.mount_id == id && mount.owners.is_some());
        let mount = match (mounts.next(), mounts.next()) {
            (Some(only), None) => Some(only),
            (None, _) => None,
            // Several in one place of the host: its path tells.
            (Some(first), Some(_)) => {
                let host = self.world.host_path(&fd);
                let path = host.ok().and_then(|host| self.world.view.inside(&host));
                let mount = path.map_or(first, |path| self.world.view.mount(&path));
                self.met(&real, mount, false);
                Some(mount)
            }
        };
        Reached { fd, real, mount, path: None }
    }

    /// Remembers where a file is, and whether it was told that it changed.
    pub fn met(&self, real: &Statx, mount: &Mount, told: bool) {
        if let Some(index) = self.world.view.mounts().iter().position(|known| std::ptr::eq(known, mount)) {
            self.world.met.remember(real, index, told);
        }
    }

    /// Tells that a file changed, or is about to.
    pub fn tell_file(&self, file: &Reached<'_>) {
        let Some(mount) = file.mount.filter(|mount| mount.kind == Kind::Tree) else { return };
        let view = &self.world.view;
        if let Some(path) = &file.path {
            return view.touched.entry(path);
        }
        // Whoever gives a file another name or moves it tells of that as well. One without a name is nowhere.
        if file.real.stx_nlink == 0 || self.world.met.find(&file.real).is_some_and(|(_, told)| told) {
            return;
        }
        match self.world.host_path(&file.fd).ok().and_then(|host| view.inside(&host)) {
            Some(path) => view.touched.entry(&path),
            None => view.touched.lost(LONG),
        }
        self.met(&file.real, mount, true);
    }

    /// What a link in /proc stands for that has no path: a descriptor, or a program; `O_PATH`.
    pub fn magic(&self, place: &Place<'_>, follow: bool) -> Result<Option<OwnedFd>, Errno> {
        if !follow || place.mount.kind != Kind::Proc {
            return Ok(None);
        }
        let Some(procfs::Entry::Process(process, below)) = procfs::entry(&self.world.view, &place.path) else {
            return Ok(None);
        };
        let task = self.world.tasks.of_process(process).ok_or(Errno::NOENT)?;
        if below == b"exe" {
            let program = Arc::clone(&lock(&task.image).program);
            return reopen(program.file.as_fd(), OFlags::PATH, Mode::empty()).map(Some);
        }
        match procfs::descriptor(below) {
            Some(number) => match self.world.open_descriptor(&task, number) {
                Err(Errno::BADF) => Err(Errno::NOENT),
                Err(errno) => Err(errno),
                Ok((fd, _)) => rustix::io::fcntl_dupfd_cloexec(&*fd, 0).map(Some),
            },
            None => Ok(None),
        }
    }

    /// Owner, mode and kind of a new file are recorded as far as they are not real; links have no mode.
    pub fn made(&self, mount: &Mount, parent: &Directory, fd: &OwnedFd, new: Option<NewMode>) -> Result<(), Errno> {
        let Some(owners) = &mount.owners else { return Ok(()) };
        let (user, group) = {
            let me = lock(&self.task.credentials);
            (me.user.files, me.group.files)
        };
        let passes_group_on = parent.passes_group_on()?;
        let inherited = if self.world.has_lists() { acl::inherited(owners, parent, new)? } else { None };
        let mode = inherited.as_ref().map(acl::Inherited::mode).or(new.and_then(|new| new.told));
        if (user, group) == (0, 0) && !passes_group_on && mode.is_none() {
            return Ok(());
        }
        let real = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, STAT)?;
        let group = if passes_group_on {
            owners.facts(key(&statx(parent)?)).owner.map_or(0, |(_, group)| group)
        } else {
            group
        };
        if (user, group) != (0, 0) {
            owners.set_owner(key(&real), (user, group));
        }
        if let Some(inherited) = &inherited {
            inherited.record(owners, &real);
        }
        if let Some(mode) = mode {
            let now = u32::from(real.stx_mode) & 0o7777;
            // A directory inherits setgid.
            let mode = mode | now & 0o2000;
            let kind = u32::from(real.stx_mode) & libc::S_IFMT;
            let wanted = kept_mode(mode, kind == libc::S_IFDIR, &self.me());
            if now != wanted {
                self.world.chmod(fd, wanted)?;
            }
            owners.set_mode(key(&real), mode, wanted);
        }
        Ok(())
    }

    /// Mode for the kernel and, if the file shall show another one, that: `mode` less the caller's umask, and rights for us.
    pub fn modes(&self, mode: u32, directory: bool) -> NewMode {
        let shown = mode & 0o7777 & !lock(&self.task.surroundings).umask;
        let real = kept_mode(shown, directory, &self.me());
        // What the umask of this process takes away has to be given back.
        let told = (real != shown || real & self.world.umask != 0).then_some(shown);
        NewMode { real: Mode::from_raw_mode(real), told, asked: mode & 0o7777 }
    }
}

/// Permission bits of a file that is going to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewMode {
    /// For the kernel.
    pub real: Mode,
    /// What it shall show, if that is not what the kernel makes of it.
    pub told: Option<u32>,
    /// Those that were asked for, whatever the umask.
    pub asked: u32,
}

/// The bits setuid and setgid.
pub const SET_IDS: u32 = 0o6000;

/// Permission bits that the disk has for a file that shows `mode`: with rights for us, and for whoever may keep setuid and
/// setgid (CAP_FSETID) without these, which count for nobody here. The kernel takes them from a file that is written to, as
/// nobody really has that capability.
pub fn kept_mode(mode: u32, directory: bool, me: &Credentials) -> u32 {
    match directory {
        true => mode | 0o700,
        false if me.can(capability::FSETID) => mode & !SET_IDS | 0o600,
        false => mode | 0o600,
    }
}

impl World {
    /// Opens what a descriptor of a thread stands for, with `O_PATH`; what is known of it.
    ///
    /// # Errors
    /// `EBADF` if it has no such descriptor.
    pub fn open_descriptor(&self, task: &Task, descriptor: i32) -> Result<(Arc<OwnedFd>, Statx), Errno> {
        if self.behind.is_known(task.thread, descriptor) {
            let stat = task.descriptors.stat(descriptor)?;
            if let Some(file) = self.behind.file(task.thread, &stat) {
                return Ok(self.copy_of(&file, &stat)?.unwrap_or((file, stat)));
            }
        }
        let fd = Arc::new(task.descriptors.open(descriptor, OFlags::empty())?);
        let stat = statx(&*fd)?;
        if let Some(real) = self.instead.find(&stat) {
            return Ok((fd, real));
        }
        match self.stands.find(&stat) {
            Some(file) => {
                let stat = statx(&*file)?;
                Ok((file, stat))
            }
            None if let Some(copy) = self.copy_of(&fd, &stat)? => Ok(copy),
            None => {
                self.behind.keep(task.thread, descriptor, &stat, &fd);
                Ok((fd, stat))
            }
        }
    }

    /// The path on the host of what is behind a descriptor of ours.
    ///
    /// # Errors
    /// `ENAMETOOLONG`
    pub fn host_path(&self, fd: &OwnedFd) -> Result<Vec<u8>, Errno> {
        link_text(&self.ourselves, DecInt::from_fd(fd).as_c_str())
    }

    /// Changes the mode of a file behind a descriptor of ours, which may be one with `O_PATH`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn chmod(&self, fd: &OwnedFd, mode: u32) -> Result<(), Errno> {
        if !self.modes_by_path.load(Ordering::Relaxed) {
            match raw::chmod(fd.as_fd(), mode) {
                // An older kernel, or a filter that does not know it.
                Err(Errno::NOSYS | Errno::PERM) => {}
                done => return done,
            }
        }
        let mode = Mode::from_raw_mode(mode);
        rustix::fs::chmodat(&self.ourselves, DecInt::from_fd(fd).as_c_str(), mode, AtFlags::empty())?;
        self.modes_by_path.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Whether a file may have an access list.
    pub fn has_lists(&self) -> bool {
        self.lists.load(Ordering::Relaxed)
    }

    /// Notes that there are devices to be refused.
    pub fn has_devices(&self) -> bool {
        self.devices.load(Ordering::Relaxed)
    }
}
